//! Kinds of values that annotations have. Each is checked by this program, by the CEL of the admission policy in the API
//! server, and by the chart's template in Helm. All three checks are here, side by side, because they must agree on every text.

use std::time::Duration;

use crate::policy::duration;

/// What the value of an annotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A port. The sidecar's own begin at 1024, because it does not run as root.
    Port {
        /// The lowest.
        least: u16,
    },
    /// A whole number.
    Count {
        /// The lowest.
        least: u32,
        /// The highest.
        most: u32,
    },
    /// A duration as in the policy.
    Time {
        /// The shortest, seconds.
        least: u32,
        /// The longest, seconds.
        most: u32,
    },
    /// The same, without a fraction of a second, because Kubernetes sleeps whole seconds; or `none`.
    SecondsOrNone {
        /// The shortest, seconds.
        least: u32,
        /// The longest, seconds.
        most: u32,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// The name of an object: a DNS subdomain.
    Name,
    /// The name of a namespace: a DNS label.
    Namespace,
    /// The reference of an image.
    Image,
    /// CPU: `250m` or whole cores.
    Cpu,
    /// The same, or `none`.
    CpuOrNone,
    /// Memory: whole `Mi` or `Gi`.
    Memory,
    /// The number of a user, not root, or `none`.
    User,
    /// Written by the injection, never by a person.
    Written,
}

/// The word for "no value" where a kind has one.
pub const NONE: &str = "none";

/// The least and most of CPU, in thousandths of a core, and of memory, in MiB.
const CPU_RANGE: [u32; 2] = [10, 64_000];
const MEMORY_RANGE: [u32; 2] = [32, 65_536];

/// Digits of a number. Enough for every range above, and no sum of them overflows in CEL.
const DIGITS: usize = 5;
/// The largest user ID of Linux that Kubernetes accepts.
const MOST_USER: u32 = i32::MAX as u32;
const NAME_LENGTH: usize = 253;
const NAMESPACE_LENGTH: usize = 63;
/// What [`Kind::Name`] allows, its length aside, as a regular expression that Go and CEL read.
const NAME_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// The pattern of a namespace's name, its length included.
const NAMESPACE_PATTERN: &str = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$";
const IMAGE_LENGTH: usize = 512;

/// The duration of an annotation: as in the policy, but with few digits and few parts. CEL's `duration()` fails on an
/// overflow, and an expression that fails refuses the pod.
const DURATION_PATTERN: &str = "^([0-9]{1,4}([.][0-9]{1,3})?(h|m|s)|[0-9]{1,7}ms)+$";
const DURATION_LENGTH: usize = 32;

impl Kind {
    /// What kind of value, for the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Port { .. } => "port",
            Kind::Count { .. } => "whole number",
            Kind::Time { .. } => "duration",
            Kind::SecondsOrNone { .. } => "duration, whole seconds",
            Kind::OneOf(_) => "one of",
            Kind::Name => "name",
            Kind::Namespace => "name of a namespace",
            Kind::Image => "image",
            Kind::Cpu | Kind::CpuOrNone => "CPU",
            Kind::Memory => "memory",
            Kind::User => "user ID",
            Kind::Written => "written by the injection",
        }
    }

    /// The allowed values, for the documentation and for error messages.
    pub fn range(self) -> String {
        let seconds = |seconds: u32| duration::display(Duration::from_secs(seconds.into()));
        match self {
            Kind::Port { least } => format!("{least} to 65535"),
            Kind::Count { least, most } => format!("{least} to {most}"),
            Kind::Time { least, most } => format!("{} to {}", seconds(least), seconds(most)),
            Kind::SecondsOrNone { least, most } => {
                format!("{} to {}, or `none`", seconds(least), seconds(most))
            }
            Kind::OneOf(words) => words.join(", "),
            Kind::Name => format!("lower-case letters, digits, `-` and `.`; at most {NAME_LENGTH}"),
            Kind::Namespace => format!("lower-case letters, digits and `-`; at most {NAMESPACE_LENGTH}"),
            Kind::Image => format!("a reference without spaces; at most {IMAGE_LENGTH} characters"),
            Kind::Cpu => "10m to 64 cores, as `250m` or `2`".to_owned(),
            Kind::CpuOrNone => "10m to 64 cores, as `250m` or `2`, or `none`".to_owned(),
            Kind::Memory => "32Mi to 64Gi, as `256Mi` or `1Gi`".to_owned(),
            Kind::User => format!("1 to {MOST_USER}, or `none`"),
            Kind::Written => String::new(),
        }
    }

    /// What is allowed, as the end of an error message: `must be a port, 1 to 65535`.
    pub fn wanted(self) -> String {
        let range = self.range();
        if matches!(self, Kind::OneOf(_)) {
            return format!("must be one of {range}");
        }
        let article = if self.name().starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
        let article = if matches!(self, Kind::Cpu | Kind::CpuOrNone | Kind::Memory) { "" } else { article };
        format!("must be {article} {}, {range}", self.name()).replace("  ", " ")
    }

    /// Whether an annotation, a flag or a chart's value of this kind may be this text.
    ///
    /// # Errors
    ///
    /// What was found and what is allowed.
    pub fn check(self, text: &str) -> Result<(), String> {
        if self.allows(text) { Ok(()) } else { Err(format!("Invalid value: {text:?}: {}", self.wanted())) }
    }

    fn allows(self, text: &str) -> bool {
        let number = |digits: usize| text.parse::<u32>().ok().filter(|_| is_digits(text, digits));
        let within = |digits, least, most| number(digits).is_some_and(|it| (least..=most).contains(&it));
        let time = |least: u32, most: u32| {
            let range = Duration::from_secs(least.into())..=Duration::from_secs(most.into());
            short_duration(text).filter(|time| range.contains(time))
        };
        match self {
            Kind::Port { least } => within(DIGITS, least.into(), 65_535),
            Kind::Count { least, most } => within(DIGITS, least, most),
            Kind::Time { least, most } => time(least, most).is_some(),
            Kind::SecondsOrNone { least, most } => {
                text == NONE || time(least, most).is_some_and(|time| time.subsec_nanos() == 0)
            }
            Kind::OneOf(words) => words.contains(&text),
            Kind::Name => text.len() <= NAME_LENGTH && text.split('.').all(is_label),
            Kind::Namespace => text.len() <= NAMESPACE_LENGTH && is_label(text),
            Kind::Image => {
                (1..=IMAGE_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
            }
            Kind::Cpu => milli_cpu(text).is_some(),
            Kind::CpuOrNone => text == NONE || milli_cpu(text).is_some(),
            Kind::Memory => mebibytes(text).is_some(),
            Kind::User => text == NONE || within(10, 1, MOST_USER),
            Kind::Written => false,
        }
    }

    /// The same check in CEL, of the text that the expression `text` yields. It never fails, whatever the text is.
    pub(super) fn allows_in_cel(self, text: &str) -> String {
        let number = |digits: usize, least: u32, most: u32| {
            format!(
                "{text}.matches('^[0-9]{{1,{digits}}}$') && int({text}) >= {least} && int({text}) <= {most}"
            )
        };
        let time = |least: u32, most: u32| {
            format!(
                "{text}.size() <= {DURATION_LENGTH} && {text}.matches('{DURATION_PATTERN}') && duration({text}) >= \
                 duration('{least}s') && duration({text}) <= duration('{most}s')"
            )
        };
        let quantity = |pattern: &str, least: &str, most: &str| {
            format!(
                "{text}.matches('{pattern}') && quantity({text}).compareTo(quantity('{least}')) >= 0 && \
                 quantity({text}).compareTo(quantity('{most}')) <= 0"
            )
        };
        let cpu = || {
            let [least, most] = CPU_RANGE.map(|milli| format!("{milli}m"));
            quantity("^[0-9]{1,5}m?$", &least, &most)
        };
        match self {
            Kind::Port { least } => number(DIGITS, least.into(), 65_535),
            Kind::Count { least, most } => number(DIGITS, least, most),
            Kind::Time { least, most } => time(least, most),
            Kind::SecondsOrNone { least, most } => {
                let whole =
                    format!("duration({text}) == duration(string(duration({text}).getSeconds()) + 's')");
                format!("{text} == '{NONE}' || {} && {whole}", time(least, most))
            }
            Kind::OneOf(words) => format!("{text} in {}", serde_json::json!(words)),
            Kind::Name => format!("{text}.size() <= {NAME_LENGTH} && {text}.matches('{NAME_PATTERN}')"),
            Kind::Namespace => format!("{text}.matches('{NAMESPACE_PATTERN}')"),
            Kind::Image => format!("{text}.size() <= {IMAGE_LENGTH} && {text}.matches('^[!-~]+$')"),
            Kind::Cpu => cpu(),
            Kind::CpuOrNone => format!("{text} == '{NONE}' || {}", cpu()),
            Kind::Memory => {
                let [least, most] = MEMORY_RANGE.map(|mebibytes| format!("{mebibytes}Mi"));
                quantity("^[0-9]{1,5}(Mi|Gi)$", &least, &most)
            }
            Kind::User => format!("{text} == '{NONE}' || {}", number(10, 1, MOST_USER)),
            Kind::Written => "false".to_owned(),
        }
    }
}

impl Kind {
    /// The same check as the entry of a dict in a Helm template, which the template `callback-guard.setting` reads: the pattern of a
    /// text, its length, the unit that its number is counted in, and the range of that number; or the words that it may be.
    pub fn in_template(self) -> String {
        let words = |words: &[&str]| words.iter().map(|word| format!(" {word:?}")).collect::<String>();
        let text = |pattern: &str, length: usize| format!("\"pattern\" {pattern:?} \"length\" {length}");
        let number = |pattern: &str, unit: &str, [least, most]: [u32; 2]| {
            let text = text(pattern, DURATION_LENGTH);
            format!("{text} \"unit\" {unit:?} \"least\" {least} \"most\" {most}")
        };
        let digits = |digits: usize, range| number(&format!("^[0-9]{{1,{digits}}}$"), "one", range);
        let time = |least: u32, most: u32| number(DURATION_PATTERN, "ms", [least * 1000, most * 1000]);
        let cpu = || number("^[0-9]{1,5}m?$", "milli", CPU_RANGE);
        let none = format!("\"words\" (list {NONE:?})");
        let check = match self {
            Kind::Port { least } => digits(DIGITS, [least.into(), 65_535]),
            Kind::Count { least, most } => digits(DIGITS, [least, most]),
            Kind::Time { least, most } => time(least, most),
            Kind::SecondsOrNone { least, most } => format!("{} \"whole\" 1000 {none}", time(least, most)),
            Kind::OneOf(allowed) => format!("\"words\" (list{})", words(allowed)),
            Kind::Name => text(NAME_PATTERN, NAME_LENGTH),
            Kind::Namespace => text(NAMESPACE_PATTERN, NAMESPACE_LENGTH),
            Kind::Image => text("^[!-~]+$", IMAGE_LENGTH),
            Kind::Cpu => cpu(),
            Kind::CpuOrNone => format!("{} {none}", cpu()),
            Kind::Memory => number("^[0-9]{1,5}(Mi|Gi)$", "mebi", MEMORY_RANGE),
            Kind::User => format!("{} {none}", digits(10, [1, MOST_USER])),
            Kind::Written => "\"words\" list".to_owned(),
        };
        format!("(dict \"wanted\" {:?} {check})", self.wanted())
    }
}

/// Whether a text is one part of a name; of any length.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.bytes().all(inner) && !text.is_empty() && !text.starts_with('-') && !text.ends_with('-')
}

fn is_digits(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The duration of a text that `DURATION_PATTERN` fits, read as the policy reads it.
fn short_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|letter: char| letter != '.' && !letter.is_ascii_digit())?;
        let (number, tail) = rest.split_at(number);
        let (whole, fraction) = number.split_once('.').map_or((number, None), |(a, b)| (a, Some(b)));
        let unit = ["ms", "h", "m", "s"].into_iter().find(|unit| tail.starts_with(unit))?;
        let fits = match (unit, fraction) {
            ("ms", None) => is_digits(whole, 7),
            ("ms", Some(_)) => false,
            (_, fraction) => is_digits(whole, 4) && fraction.is_none_or(|digits| is_digits(digits, 3)),
        };
        if !fits {
            return None;
        }
        rest = &tail[unit.len()..];
    }
    duration::parse(text).ok().filter(|_| text.len() <= DURATION_LENGTH)
}

/// Thousandths of a core of `250m` or `2`, if within the range.
pub(super) fn milli_cpu(text: &str) -> Option<u32> {
    let (number, scale) = text.strip_suffix('m').map_or((text, 1000), |number| (number, 1));
    let number = number.parse::<u32>().ok().filter(|_| is_digits(number, DIGITS))?;
    let milli = number.checked_mul(scale)?;
    (CPU_RANGE[0]..=CPU_RANGE[1]).contains(&milli).then_some(milli)
}

/// MiB of `256Mi` or `1Gi`, if within the range.
pub(super) fn mebibytes(text: &str) -> Option<u32> {
    let number = |unit, scale| {
        let number = text.strip_suffix(unit)?;
        number.parse::<u32>().ok().filter(|_| is_digits(number, DIGITS))?.checked_mul(scale)
    };
    let mebibytes = number("Mi", 1).or_else(|| number("Gi", 1024))?;
    (MEMORY_RANGE[0]..=MEMORY_RANGE[1]).contains(&mebibytes).then_some(mebibytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_takes_its_values_and_refuses_those_beside_them() {
        let port = Kind::Port { least: 1024 };
        let whole = Kind::SecondsOrNone { least: 1, most: 3600 };
        let time = Kind::Time { least: 0, most: 3600 };
        for (kind, good, bad) in [
            (port, &["1024", "08080", "65535"][..], &["1023", "65536", "", "+8080", "8080 ", "008080"][..]),
            (Kind::Count { least: 1, most: 64 }, &["1", "64"], &["0", "65", "1.0", "-1"]),
            (
                time,
                &["0s", "1h", "1.5s", "1m30s", "250ms", "3600000ms"],
                &["5", "1h1s", "1d", "-1s", "1.5ms", "3 s"],
            ),
            (
                whole,
                &["1s", "1.5m", "2000ms", "60m", "none"],
                &["0s", "1.5s", "1500ms", "99999s", "999999999h", ""],
            ),
            (Kind::OneOf(&["a", "b"]), &["a", "b"], &["c", "", "A"]),
            (Kind::Name, &["a", "a-b.c0"], &["", "A", "a..b", "-a", "a-", "a_b"]),
            (Kind::Namespace, &["a", "a-b0"], &["", "a.b", "A", "-a", "a-"]),
            (Kind::Image, &["app:1", "x@sha256:0"], &["", "a b", "\u{fc}", "a\n"]),
            (Kind::Cpu, &["10m", "64", "1"], &["9m", "65", "+2", "1.5", "1e3", "none"]),
            (Kind::CpuOrNone, &["10m", "none"], &["9m", "None", ""]),
            (Kind::Memory, &["32Mi", "64Gi"], &["31Mi", "65Gi", "64M", "64", "1.5Gi", "+64Mi"]),
            (Kind::User, &["1", "65532", "2147483647", "none"], &["0", "2147483648", "-1", "root", ""]),
            (Kind::Written, &[], &["", "x"]),
        ] {
            for text in good {
                assert_eq!(kind.check(text), Ok(()), "{kind:?}");
            }
            for text in bad {
                assert!(kind.check(text).is_err(), "{kind:?} takes {text:?}");
            }
        }
        assert!(Kind::Namespace.allows(&"a".repeat(63)) && !Kind::Namespace.allows(&"a".repeat(64)));
        assert!(!time.allows(&"1ms".repeat(11)), "longer than any that a person writes");
    }
}
