//! What was typed, word by word, laid over the flags that the subcommand has.
//!
//! clap stops at the first word that it cannot place, and says so in its own way. Here every such word is a problem among
//! the others, and what is left is a line that clap takes as it is.

use std::env;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use super::problems::Problems;
use crate::policy::nearest_key;

/// What the words are.
#[derive(Debug)]
pub(super) enum Lexed {
    /// Help or the version was asked for, or nothing was: clap answers these words itself.
    Help(Vec<OsString>),
    /// Of this subcommand, in words that clap takes.
    Line(String, Vec<OsString>),
    /// Of no subcommand.
    NoSubcommand,
}

/// Lays words, the program's name first, over the flags of their subcommand.
pub(super) fn lex(root: &Command, words: &[OsString], problems: &mut Problems) -> Lexed {
    let mut at = 1;
    while let Some(word) = words.get(at).filter(|word| is_flag(&word.to_string_lossy())) {
        let word = word.to_string_lossy();
        if matches!(&*word, "-h" | "--help" | "-V" | "--version") {
            return Lexed::Help(vec![words[0].clone(), words[at].clone()]);
        }
        let flag = word.split('=').next().unwrap_or_default();
        let of = root.get_subcommands().find(|command| find(command, flag).is_some());
        problems.add(
            flag,
            match of {
                Some(command) => format!("stands before the subcommand, as in {} {flag}", command.get_name()),
                None => "there is no such flag".to_owned(),
            },
        );
        at += 1;
        let is_value =
            |word: &OsString| !is_flag(&word.to_string_lossy()) && root.find_subcommand(word).is_none();
        if of.is_some() && !word.contains('=') && words.get(at).is_some_and(is_value) {
            at += 1;
        }
    }
    let Some(name) = words.get(at) else {
        return if problems.found.is_empty() { Lexed::Help(words.to_vec()) } else { Lexed::NoSubcommand };
    };
    let name = name.to_string_lossy();
    let Some(command) = root.find_subcommand(&*name) else {
        let known: Vec<_> = root.get_subcommands().map(Command::get_name).collect();
        let hint = match nearest_key(&name, &known) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        problems.add(&name, format!("there is no such subcommand, {hint}"));
        return Lexed::NoSubcommand;
    };
    let mut lexer = Lexer { command, problems, given: Vec::new(), flags: Vec::new(), places: Vec::new() };
    if let Some(help) = lexer.words(&words[at + 1..]) {
        return Lexed::Help(vec![words[0].clone(), name.into_owned().into(), help]);
    }
    lexer.environment();
    let mut line = vec![words[0].clone(), name.clone().into_owned().into()];
    line.append(&mut lexer.flags);
    line.push("--".into());
    line.append(&mut lexer.places);
    Lexed::Line(name.into_owned(), line)
}

/// The argument that a flag is, `--listen` or `-f`.
fn find<'c>(command: &'c Command, flag: &str) -> Option<&'c Arg> {
    if let Some(long) = flag.strip_prefix("--") {
        return command.get_arguments().find(|arg| arg.get_long() == Some(long));
    }
    let mut letters = flag.strip_prefix('-')?.chars();
    let short = letters.next().filter(|_| letters.next().is_none())?;
    command.get_arguments().find(|arg| arg.get_short() == Some(short))
}

/// Whether a value must stand behind the flag; those of a switch stand behind `=` alone.
fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && arg.get_num_args().is_none_or(|count| count.min_values() > 0)
}

/// Whether a word is a flag and no value, though a value may begin with a hyphen: -1s, or - for standard input.
fn is_flag(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| rest.starts_with(|letter: char| !letter.is_ascii_digit()))
}

fn value_name(arg: &Arg) -> &str {
    arg.get_value_names().and_then(|names| names.first()).map_or("VALUE", |name| name.as_str())
}

struct Lexer<'l> {
    command: &'l Command,
    problems: &'l mut Problems,
    /// The flags that were there, by their long names.
    given: Vec<&'l str>,
    /// `--flag=value`.
    flags: Vec<OsString>,
    /// What stands by its place.
    places: Vec<OsString>,
}

impl<'l> Lexer<'l> {
    /// Places every word; ends at a flag that asks for help, and gives it.
    fn words(&mut self, words: &[OsString]) -> Option<OsString> {
        let mut words = words.iter().peekable();
        let mut only_places = false;
        while let Some(word) = words.next() {
            let text = word.to_string_lossy();
            if only_places || !text.starts_with('-') || text == "-" {
                self.place(word);
                continue;
            }
            if text == "--" {
                only_places = true;
                continue;
            }
            let (flag, value) = split(&text);
            let Some(arg) = find(self.command, flag) else {
                let swallows = self.unknown(flag);
                if value.is_none() && swallows {
                    words.next_if(|next| !is_flag(&next.to_string_lossy()));
                }
                continue;
            };
            if matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong) {
                return Some(word.clone());
            }
            let long = arg.get_long().unwrap_or_default();
            let value = match value {
                Some(value) => Some(checked(word, value)),
                None if !takes_value(arg) => None,
                None => {
                    let next = words.next_if(|next| !is_flag(&next.to_string_lossy()));
                    let Some(next) = next else {
                        let problem = format!("needs a value behind it: {flag} {}", value_name(arg));
                        self.problems.add_unread(&format!("--{long}"), problem);
                        continue;
                    };
                    Some(next.to_str().map(str::to_owned).ok_or(()))
                }
            };
            self.flag(arg, value);
        }
        None
    }

    fn flag(&mut self, arg: &'l Arg, value: Option<Result<String, ()>>) {
        let long = arg.get_long().unwrap_or_default();
        let flag = format!("--{long}");
        let again = self.given.contains(&long);
        self.given.push(long);
        if again && !matches!(arg.get_action(), ArgAction::Append) {
            return self.problems.add(&flag, "is given more than once");
        }
        match value {
            None => self.flags.push(flag.into()),
            Some(Ok(value)) => self.flags.push(format!("{flag}={value}").into()),
            Some(Err(())) => self.problems.add_unread(&flag, "its value is not UTF-8"),
        }
    }

    fn place(&mut self, word: &OsString) {
        let text = word.to_string_lossy();
        match self.command.get_positionals().next() {
            Some(arg) if matches!(arg.get_action(), ArgAction::Append) || self.places.is_empty() => {
                if word.to_str().is_none() {
                    self.problems.add_unread(value_name(arg), format!("{text:?} is not UTF-8"));
                } else {
                    self.places.push(word.clone());
                }
            }
            Some(_) | None => self.problems.add(&text, "nothing was expected here"),
        }
    }

    /// Notes an unknown flag. Whether the word behind it is its value: where the flag that was meant has one, or nothing
    /// stands by its place.
    fn unknown(&mut self, flag: &str) -> bool {
        let longs: Vec<_> = self.command.get_arguments().filter_map(Arg::get_long).collect();
        let near = flag.strip_prefix("--").and_then(|name| nearest_key(name, &longs));
        let hint = near.map(|near| format!(", did you mean --{near}?")).unwrap_or_default();
        self.problems.add(flag, format!("there is no such flag{hint}"));
        match near.and_then(|near| find(self.command, &format!("--{near}"))) {
            Some(arg) => takes_value(arg),
            None => self.command.get_positionals().next().is_none(),
        }
    }

    /// What clap would stop at in the environment.
    fn environment(&mut self) {
        for arg in self.command.get_arguments() {
            let (Some(long), Some(name)) = (arg.get_long(), arg.get_env()) else { continue };
            let unreadable = env::var_os(name).is_some_and(|value| value.to_str().is_none());
            if unreadable && !self.given.contains(&long) {
                let problem = format!("{} is not UTF-8", name.to_string_lossy());
                self.problems.add_unread(&format!("--{long}"), problem);
                // The flag wins over the variable, which is so left unread.
                let default = arg.get_default_values().first().and_then(|value| value.to_str());
                self.flags.push(format!("--{long}={}", default.unwrap_or_default()).into());
            }
        }
    }
}

/// A flag and what is written together with it: `--listen=x`, `-fx` and `-f=x`.
fn split(word: &str) -> (&str, Option<&str>) {
    if word.starts_with("--") {
        return word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
    }
    match word.char_indices().nth(2) {
        Some((end, _)) => (&word[..end], Some(word[end..].strip_prefix('=').unwrap_or(&word[end..]))),
        None => (word, None),
    }
}

/// A value out of a word that had to be made readable first.
fn checked(word: &OsString, value: &str) -> Result<String, ()> {
    word.to_str().map(|_| value.to_owned()).ok_or(())
}
