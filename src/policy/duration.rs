//! Durations as Kubernetes and Go write them: `300ms`, `1.5s`, `1m30s`.

use std::time::Duration;

/// The units there are, longest first, with their length in nanoseconds.
const UNITS: [(&str, u128); 4] =
    [("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000)];

/// A number of more digits than this is a slip, and could not be added up safely.
const DIGITS: usize = 9;

/// Why a text is no duration; the text of the error says what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// A number and nothing behind it.
    NoUnit,
    /// Anything else.
    Malformed,
    /// More than can be meant.
    TooLong,
}

impl std::fmt::Display for DurationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DurationError::NoUnit => "must have a unit, as in 300ms or 2s",
            DurationError::Malformed => {
                "must be a duration of numbers and the units h, m, s, ms, as in 300ms, 1.5s or 1m30s"
            }
            DurationError::TooLong => "must be a duration of fewer digits",
        })
    }
}

impl std::error::Error for DurationError {}

/// Reads `10ms`, `1.5s`, `1500ms`, `2m`, `1m30s`: one or more numbers, each with a unit and at most one
/// decimal point, added up. No sign, no spaces; fractions go down to nanoseconds.
///
/// # Errors
///
/// [`DurationError`], which says what is missing.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(DurationError::NoUnit);
    }
    let (mut rest, mut nanos) = (text, 0_u128);
    loop {
        let number = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (digits, tail) = rest.split_at(number);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationError::Malformed)?.1;
        nanos += scaled(digits, scale)?;
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| DurationError::TooLong)
}

fn scaled(digits: &str, scale: u128) -> Result<u128, DurationError> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(DurationError::Malformed);
    }
    if whole.len() > DIGITS || fraction.len() > DIGITS {
        return Err(DurationError::TooLong);
    }
    let number = |text: &str| text.parse::<u128>().map_err(|_| DurationError::Malformed);
    let power = 10_u128.pow(fraction.len() as u32);
    Ok(number(whole)? * scale + number(fraction)? * scale / power)
}

/// Writes a duration so that [`parse`] reads it back, to the millisecond: `300ms`, `5s`, `1m30s`, `4800ms`.
pub fn display(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match (seconds, millis) {
        (_, 1..) => format!("{}ms", duration.as_millis()),
        // An hour is a round number of minutes to read; a year of them is not.
        (360_000.., 0) if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        (60.., 0) if seconds % 60 == 0 => format!("{}m", seconds / 60),
        (60.., 0) => format!("{}m{}s", seconds / 60, seconds % 60),
        (_, 0) => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, millis) in [
            ("10ms", 10),
            ("1.5s", 1_500),
            ("1500ms", 1_500),
            ("2m", 120_000),
            ("1m30s", 90_000),
            ("0s", 0),
            ("0.25s", 250),
            ("1h", 3_600_000),
            ("1s500ms", 1_500),
            ("010ms", 10),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("1.5ms"), Ok(Duration::from_micros(1_500)));
    }

    #[test]
    fn anything_else_is_refused_with_what_is_missing() {
        use DurationError::{Malformed, NoUnit, TooLong};
        for (text, error) in [
            ("2", NoUnit),
            ("0", NoUnit),
            ("1.5", NoUnit),
            ("", Malformed),
            ("s", Malformed),
            ("2 s", Malformed),
            (" 2s", Malformed),
            ("-2s", Malformed),
            ("+2s", Malformed),
            ("2S", Malformed),
            ("2sec", Malformed),
            ("2us", Malformed),
            (".5s", Malformed),
            ("1.s", Malformed),
            ("1.2.3s", Malformed),
            ("1m30", Malformed),
            ("1e3s", Malformed),
            ("٢s", Malformed),
            ("9999999999s", TooLong),
            ("999999999h", TooLong),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for (millis, text) in [
            (0, "0s"),
            (10, "10ms"),
            (4_800, "4800ms"),
            (5_000, "5s"),
            (60_000, "1m"),
            (90_000, "1m30s"),
            (600_000, "10m"),
            (3_600_000, "60m"),
            (360_000_000, "100h"),
            (360_060_000, "6001m"),
        ] {
            let duration = Duration::from_millis(millis);
            assert_eq!(display(duration), text);
            assert_eq!(parse(text), Ok(duration));
        }
    }
}
