//! From when until when a certificate is valid.
//!
//! rustls checks the validity of the *other* side's certificates and does not tell that of our own, which is
//! what an operator wants to be warned about. The two dates stand at a fixed place near the front of each
//! certificate, so a walk over five elements finds them, without an ASN.1 library:
//!
//! ```text
//! Certificate     ::= SEQUENCE { tbsCertificate, .. }                        RFC 5280, 4.1
//! TBSCertificate  ::= SEQUENCE {
//!     version         [0] EXPLICIT Version DEFAULT v1,
//!     serialNumber        INTEGER,
//!     signature           AlgorithmIdentifier,                               a SEQUENCE
//!     issuer              Name,                                              a SEQUENCE
//!     validity            SEQUENCE { notBefore Time, notAfter Time },
//!     .. }
//! Time            ::= CHOICE { UTCTime, GeneralizedTime }                    4.1.2.5
//! ```

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When a certificate is valid. Both ends are in seconds since 1970 and both belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: i64,
    /// Its last second.
    pub not_after: i64,
}

/// A [`Validity`] seen from one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The moment is before it.
    NotYetValid,
    /// The moment is within it.
    Valid,
    /// The moment is after it.
    Expired,
}

impl Validity {
    /// Finds the dates in a certificate; `None` where what is given is not one.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (certificate, _) = element(der, SEQUENCE)?;
        let (mut tbs, _) = element(certificate, SEQUENCE)?;
        if let Some((_, after)) = element(tbs, VERSION) {
            tbs = after;
        }
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            (_, tbs) = element(tbs, tag)?;
        }
        let (dates, _) = element(tbs, SEQUENCE)?;
        let (not_before, dates) = time(dates)?;
        let (not_after, rest) = time(dates)?;
        (rest.is_empty() && not_before <= not_after).then_some(Self { not_before, not_after })
    }

    /// How it stands at `now`, in seconds since 1970.
    #[must_use]
    pub fn at(self, now: i64) -> Standing {
        if now < self.not_before {
            Standing::NotYetValid
        } else if now > self.not_after {
            Standing::Expired
        } else {
            Standing::Valid
        }
    }

    /// What is wrong with it at `now`, as the end of a sentence about a certificate; `None` while it is valid.
    #[must_use]
    pub fn fault(self, now: i64) -> Option<String> {
        match self.at(now) {
            Standing::Valid => None,
            Standing::NotYetValid => {
                Some(format!("is not valid before {}, now is {}", Utc(self.not_before), Utc(now)))
            }
            Standing::Expired => Some(format!("expired at {}, now is {}", Utc(self.not_after), Utc(now))),
        }
    }
}

/// Now, in seconds since 1970.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock set before 1970 finds every certificate not yet valid, which is the truth for such a clock.
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The content of the first element of `der`, which must have this tag, and what comes after the element.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, der) = der.split_first()?;
    let (&first, der) = der.split_first()?;
    // X.690, 8.1.3: up to 127 the length itself; else how many bytes of length follow. DER has no other form,
    // and nothing of 4 GiB or more is a certificate.
    let (length, der) = match first {
        0..=0x7f => (usize::from(first), der),
        0x81..=0x84 => {
            let (bytes, der) = der.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), der)
        }
        _ => return None,
    };
    (found == tag).then(|| der.split_at_checked(length)).flatten()
}

/// One `Time`, and what comes after it. RFC 5280 allows one form of each kind: seconds given, zone `Z`.
fn time(der: &[u8]) -> Option<(i64, &[u8])> {
    if let Some((text, rest)) = element(der, GENERALIZED_TIME) {
        let (century_and_year, text) = text.split_at_checked(4)?;
        return Some((seconds(number(century_and_year)?, text)?, rest));
    }
    let (text, rest) = element(der, UTC_TIME)?;
    let (year, text) = text.split_at_checked(2)?;
    // RFC 5280, 4.1.2.5.1: 50 to 99 are of the last century.
    let year = number(year)?;
    let year = if year >= 50 { 1900 + year } else { 2000 + year };
    Some((seconds(year, text)?, rest))
}

/// Seconds since 1970 of a year and `MMDDHHMMSSZ`.
fn seconds(year: i64, text: &[u8]) -> Option<i64> {
    let (b"Z", digits) = (text.get(10..)?, text.get(..10)?) else { return None };
    let mut parts = [0; 5];
    for (part, digits) in parts.iter_mut().zip(digits.chunks_exact(2)) {
        *part = number(digits)?;
    }
    let [month, day, hour, minute, second] = parts;
    let in_range =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    in_range.then(|| days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits
        .iter()
        .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year, in eras of 400 years, after
/// which the calendar repeats; 719,468 days lie between 0000-03-01 and 1970-01-01.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Seconds since 1970 as `2026-12-01T10:00:00Z`.
pub struct Utc(pub i64);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The way back from `days`.
        let day = self.0.div_euclid(86_400) + 719_468;
        let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let from_march = (5 * day + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = era * 400 + year + i64::from(month <= 2);
        let (day, second) = (day - (153 * from_march + 2) / 5 + 1, self.0.rem_euclid(86_400));
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(from: (i32, u8, u8), until: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(until.0, until.1, until.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        let rows = [
            // Both as UTCTime, on either side of its turn of the century.
            ((1950, 1, 1), (2049, 12, 31), -631_152_000, 2_524_521_600),
            ((1999, 12, 31), (2000, 2, 29), 946_598_400, 951_782_400),
            // UTCTime and GeneralizedTime in one certificate.
            ((2024, 2, 29), (2050, 1, 1), 1_709_164_800, 2_524_608_000),
            ((2100, 3, 1), (9999, 12, 31), 4_107_542_400, 253_402_214_400),
        ];
        for (from, until, not_before, not_after) in rows {
            let found = Validity::of_certificate(&certificate(from, until));
            assert_eq!(found, Some(Validity { not_before, not_after }), "{from:?} {until:?}");
        }
    }

    #[test]
    fn what_rcgen_was_told_is_what_is_found() {
        for year in [1970, 1971, 1972, 1999, 2000, 2001, 2026, 2049, 2050, 2096, 2100, 2101, 2400] {
            for (month, day) in [(1, 1), (2, 28), (3, 1), (7, 31), (12, 31)] {
                let told = date_time_ymd(year, month, day);
                let found = Validity::of_certificate(&certificate((1960, 1, 1), (year, month, day))).unwrap();
                assert_eq!(found.not_after, told.unix_timestamp());
                assert_eq!(Utc(found.not_after).to_string(), format!("{year}-{month:02}-{day:02}T00:00:00Z"));
            }
        }
    }

    #[test]
    fn a_certificate_of_version_1_has_dates_too() {
        // The walk needs the fields up to the dates alone. Version 1 is the absent one.
        let dates = [b"\x30\x1e\x17\x0d260101000000Z".as_slice(), b"\x17\x0d260102030405Z"].concat();
        let front = [b"\x02\x01\x01\x30\x00\x30\x00".as_slice(), &dates].concat();
        let with = |front: &[u8]| {
            let tbs = [&[SEQUENCE, u8::try_from(front.len()).unwrap()], front].concat();
            Validity::of_certificate(
                &[&[SEQUENCE, u8::try_from(tbs.len()).unwrap()], tbs.as_slice()].concat(),
            )
        };
        let expected = Some(Validity { not_before: 1_767_225_600, not_after: 1_767_323_045 });
        assert_eq!(with(&front), expected);
        assert_eq!(with(&[b"\xa0\x03\x02\x01\x02".as_slice(), &front].concat()), expected);
        assert_eq!(with(&[b"\xa1\x03\x02\x01\x02".as_slice(), &front].concat()), None);
    }

    #[test]
    fn a_certificate_cut_anywhere_before_its_dates_end_is_none() {
        let whole = certificate((2026, 1, 1), (2026, 2, 1));
        for length in 0..whole.len() {
            // The outer length no longer fits, so none of these is a certificate.
            assert_eq!(Validity::of_certificate(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn times_of_any_other_form_are_none() {
        let read = |tag: u8, text: &str| {
            time(&[&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()).map(|(time, _)| time)
        };
        assert_eq!(read(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(read(GENERALIZED_TIME, "19700101000001Z"), Some(1));
        for text in [
            "7001010000Z",
            "700101000000+0100",
            "700101000000",
            "701301000000Z",
            "700100000000Z",
            "700132000000Z",
            "700101240000Z",
            "700101006000Z",
            "700101000060Z",
            "70010100000.Z",
            "700101000000ZZ",
            "19700101000000Z",
            "",
        ] {
            assert_eq!(read(UTC_TIME, text), None, "{text}");
        }
        assert_eq!(read(GENERALIZED_TIME, "700101000000Z"), None);
        assert_eq!(read(GENERALIZED_TIME, "19700101000000.5Z"), None);
        assert_eq!(read(INTEGER, "700101000000Z"), None);
    }

    #[test]
    fn both_ends_belong_to_it() {
        let validity = Validity { not_before: 1_000, not_after: 2_000 };
        let rows = [
            (
                999,
                Standing::NotYetValid,
                Some("is not valid before 1970-01-01T00:16:40Z, now is 1970-01-01T00:16:39Z"),
            ),
            (1_000, Standing::Valid, None),
            (2_000, Standing::Valid, None),
            (2_001, Standing::Expired, Some("expired at 1970-01-01T00:33:20Z, now is 1970-01-01T00:33:21Z")),
        ];
        for (now, standing, fault) in rows {
            assert_eq!((validity.at(now), validity.fault(now).as_deref()), (standing, fault), "{now}");
        }
    }
}
