//! Texts become values, and every mistake is noted under its flag.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::check;
use crate::policy::duration;

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) found: Vec<String>,
    /// Flags whose values could not be had: what would be said of them beyond that is no mistake of anybody.
    unread: Vec<String>,
}

impl Problems {
    pub(super) fn add(&mut self, flag: &str, problem: impl std::fmt::Display) {
        if !self.unread.iter().any(|unread| unread == flag) {
            self.found.push(format!("{flag}: {problem}"));
        }
    }

    /// Notes that a flag has no value that could be read.
    pub(super) fn add_unread(&mut self, flag: &str, problem: impl std::fmt::Display) {
        self.add(flag, problem);
        self.unread.push(flag.to_owned());
    }

    /// A value that must be given.
    pub(super) fn required(&mut self, flag: &str, text: Option<String>) -> Option<String> {
        let given = text.filter(|text| !text.is_empty());
        if given.is_none() {
            self.add(flag, "is missing");
        }
        given
    }

    /// Values of which there must be one; a variable that is set to nothing is none.
    pub(super) fn required_list(&mut self, flag: &str, mut texts: Vec<String>) -> Option<Vec<String>> {
        texts.retain(|text| !text.is_empty());
        if texts.is_empty() {
            self.add(flag, "is missing");
        }
        Some(texts).filter(|texts| !texts.is_empty())
    }

    /// Reads a value; a mistake is noted under its flag.
    pub(super) fn read<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.add(flag, problem);
                None
            }
        }
    }

    /// Reads a value that may be left out.
    pub(super) fn read_optional<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { self.read(flag, text, read).map(Some) }
    }

    pub(super) fn time(
        &mut self,
        flag: &str,
        text: &str,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        self.read(flag, text, |text| {
            let found = duration::parse(text).map_err(|error| format!("{text:?} {error}"))?;
            bounded(text, &found, &least, &most, |bound| duration::display(*bound))?;
            Ok(found)
        })
    }

    pub(super) fn size(&mut self, flag: &str, text: &str, least: usize, most: usize) -> Option<usize> {
        self.read(flag, text, |text| {
            let found = size(text)?;
            bounded(text, &found, &least, &most, |bound| shown_size(*bound))?;
            Ok(found)
        })
    }

    pub(super) fn optional_size(
        &mut self,
        flag: &str,
        text: &str,
        least: usize,
        most: usize,
    ) -> Option<Option<usize>> {
        if text.is_empty() { Some(None) } else { self.size(flag, text, least, most).map(Some) }
    }

    pub(super) fn count(&mut self, flag: &str, text: &str, least: usize, most: usize) -> Option<usize> {
        self.read(flag, text, |text| {
            let found = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            bounded(text, &found, &least, &most, usize::to_string)?;
            Ok(found)
        })
    }

    pub(super) fn optional_count(
        &mut self,
        flag: &str,
        text: &str,
        least: usize,
        most: usize,
    ) -> Option<Option<usize>> {
        if text.is_empty() { Some(None) } else { self.count(flag, text, least, most).map(Some) }
    }

    pub(super) fn format(&mut self, text: &str) -> Option<check::Format> {
        let formats = [("text", check::Format::Text), ("json", check::Format::Json)];
        self.read("--format", text, |text| one_of(text, &formats))
    }

    pub(super) fn switch(&mut self, flag: &str, text: &str) -> Option<bool> {
        self.read(flag, text, |text| one_of(text, &[("true", true), ("false", false)]))
    }
}

fn bounded<T: PartialOrd>(
    text: &str,
    found: &T,
    least: &T,
    most: &T,
    show: impl Fn(&T) -> String,
) -> Result<(), String> {
    if found < least {
        return Err(format!("value is too small ({text}), at least {} is required", show(least)));
    }
    if found > most {
        return Err(format!("value is too large ({text}), at most {} is allowed", show(most)));
    }
    Ok(())
}

pub(super) fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

pub(super) fn one_of<T: Copy>(text: &str, allowed: &[(&str, T)]) -> Result<T, String> {
    let found = allowed.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = allowed.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}

pub(super) fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not ADDRESS:PORT, as in 0.0.0.0:8443, [::]:8443 or 127.0.0.1:0"))
}

const SIZES: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

pub(super) fn size(text: &str) -> Result<usize, String> {
    let expected = || format!("{text:?} is not a size, as in 64KiB, 8MiB or 1GiB");
    let (number, unit) = SIZES
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit)))
        .ok_or_else(expected)?;
    let number: usize = number.parse().map_err(|_| expected())?;
    number.checked_mul(unit).ok_or_else(expected)
}

/// The size as a flag takes it, exactly.
pub fn shown_size(bytes: usize) -> String {
    let (name, unit) = SIZES.iter().find(|(_, unit)| bytes.is_multiple_of(*unit)).expect("1 B divides all");
    format!("{}{name}", bytes / unit)
}
