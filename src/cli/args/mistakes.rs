//! What clap stops at becomes one problem among the others: it is noted, what caused it is mended, and the rest is read.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Problems;

/// Most mistakes of this kind that are told in one run: each costs another reading of the whole line.
const LIMIT: usize = 32;

/// Notes clap's error and takes its cause out of the arguments. False where that cannot be done.
pub(super) fn mend(error: &clap::Error, arguments: &mut Vec<OsString>, problems: &mut Problems) -> bool {
    if problems.found.len() >= LIMIT {
        return false;
    }
    let kind = error.kind();
    // Of values clap judges only whether there is one.
    let flag_alone = match kind == ErrorKind::ArgumentConflict {
        true => Some("is given more than once"),
        false => (kind == ErrorKind::InvalidValue).then_some("needs a value behind it"),
    };
    if let (Some(problem), Some(flag)) = (flag_alone, flag_of(error)) {
        problems.add(&flag, problem);
        return take(arguments, &flag);
    }
    match kind == ErrorKind::UnknownArgument {
        true => unknown(error, arguments, problems),
        false => kind == ErrorKind::MissingRequiredArgument && missing(error, arguments, problems),
    }
}

/// The flag, or the name of what stands by its place, that an error is about: `--listen` of `--listen <ADDR:PORT>`.
fn flag_of(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(text)) = error.get(ContextKind::InvalidArg) else { return None };
    Some(text.split([' ', '=', '[']).next()?.to_owned())
}

/// Takes away the last argument that is this flag, with its value where that stands behind it.
fn take(arguments: &mut Vec<OsString>, flag: &str) -> bool {
    let is_flag = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        argument.split('=').next() == Some(flag) || (flag == "--filename" && argument.starts_with("-f"))
    };
    let Some(at) = arguments.iter().rposition(is_flag) else { return false };
    let whole = arguments.remove(at).to_string_lossy().contains('=');
    take_value(arguments, at, whole);
    true
}

/// What follows a flag and is no flag itself is its value.
fn take_value(arguments: &mut Vec<OsString>, at: usize, whole: bool) {
    let is_value = |next: &OsString| !next.to_string_lossy().starts_with('-');
    if !whole && at > 1 && arguments.get(at).is_some_and(is_value) {
        arguments.remove(at);
    }
}

fn unknown(error: &clap::Error, arguments: &mut Vec<OsString>, problems: &mut Problems) -> bool {
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return false };
    let named = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        argument == unknown.as_str() || argument.split('=').next() == Some(unknown.as_str())
    };
    let Some(at) = arguments.iter().position(named) else { return false };
    if !unknown.starts_with('-') {
        problems.add(unknown, "nothing was expected here");
        arguments.remove(at);
        return true;
    }
    let nearest = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(nearest)) => format!(", did you mean {nearest}?"),
        _ => String::new(),
    };
    problems.add(unknown, format!("there is no such flag{nearest}"));
    let whole = arguments.remove(at).to_string_lossy().contains('=');
    take_value(arguments, at, whole);
    true
}

/// Each of what is missing, by its name in the usage. Something stands in for it, so that the rest is read.
fn missing(error: &clap::Error, arguments: &mut Vec<OsString>, problems: &mut Problems) -> bool {
    let Some(ContextValue::Strings(names)) = error.get(ContextKind::InvalidArg) else { return false };
    for name in names {
        let (flag, value) = name.split_once(' ').unwrap_or((name, ""));
        if flag.starts_with('-') {
            problems.add(flag, format!("is missing, with its {value}"));
            arguments.push(flag.into());
        } else {
            problems.add(flag, "is missing");
        }
        arguments.push("http://stands.in".into());
    }
    !names.is_empty()
}
