//! RFC 3339 timestamps, as Kubernetes writes them: `2026-12-01T10:00:00Z`, `2026-12-01T11:00:00.5+01:00`.

use std::time::{Duration, SystemTime};

const DAY_SECONDS: i64 = 86_400;

/// Reads a timestamp of 1970 or later; `None` for anything else, a date without a time or an offset included.
/// A leap second is refused: nothing that takes part in a policy keeps time that way.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if bytes.len() < "2026-12-01T10:00:00Z".len() || !text.is_ascii() {
        return None;
    }
    let shape = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !shape.iter().all(|(at, byte)| bytes[*at].to_ascii_uppercase() == *byte) {
        return None;
    }
    let (year, month, day) = (number(&text[0..4])?, number(&text[5..7])?, number(&text[8..10])?);
    let (hour, minute, second) = (number(&text[11..13])?, number(&text[14..16])?, number(&text[17..19])?);
    let sound = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !sound {
        return None;
    }
    let (fraction, zone) = fraction(&text[19..])?;
    let seconds = days_since_1970(year, month, day) * DAY_SECONDS + hour * 3_600 + minute * 60 + second;
    let seconds = u64::try_from(seconds - offset(zone)?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + fraction)
}

fn number(text: &str) -> Option<i64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Splits `.25+01:00` into a quarter of a second and `+01:00`.
fn fraction(text: &str) -> Option<(Duration, &str)> {
    let Some(rest) = text.strip_prefix('.') else { return Some((Duration::ZERO, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if !(1..=9).contains(&digits) {
        return None;
    }
    let nanos = number(&rest[..digits])? * 10_i64.pow(9 - digits as u32);
    Some((Duration::from_nanos(nanos.unsigned_abs()), &rest[digits..]))
}

/// The seconds that `Z`, `+01:00` or `-02:30` is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01, with the year counted from March so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> Option<f64> {
        let at = parse(text)?;
        Some(at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64())
    }

    #[test]
    fn timestamps_are_read_with_their_offset_and_fraction() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0.0),
            ("2026-12-01T10:00:00Z", 1_796_119_200.0),
            ("2026-12-01T11:00:00+01:00", 1_796_119_200.0),
            ("2026-12-01T07:30:00-02:30", 1_796_119_200.0),
            ("2026-12-01t10:00:00z", 1_796_119_200.0),
            ("2026-12-01T10:00:00.25Z", 1_796_119_200.25),
            ("2024-02-29T23:59:59Z", 1_709_251_199.0),
            ("2000-03-01T00:00:00Z", 951_868_800.0),
            ("2100-03-01T00:00:00Z", 4_107_542_400.0),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_timestamp() {
        for text in [
            "",
            "tomorrow",
            "2026-12-01",
            "2026-12-01T10:00:00",
            "2026-12-01 10:00:00Z",
            "2026-12-01T10:00Z",
            "2026-13-01T10:00:00Z",
            "2026-00-01T10:00:00Z",
            "2026-12-32T10:00:00Z",
            "2026-12-00T10:00:00Z",
            "2025-02-29T10:00:00Z",
            "2100-02-29T10:00:00Z",
            "2026-12-01T24:00:00Z",
            "2026-12-01T10:60:00Z",
            "2026-12-01T10:00:60Z",
            "2026-12-01T10:00:00.Z",
            "2026-12-01T10:00:00+0100",
            "2026-12-01T10:00:00+24:00",
            "2026-12-01T10:00:00Z ",
            "+026-12-01T10:00:00Z",
            "1969-12-31T23:59:59Z",
            "２026-12-01T10:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
