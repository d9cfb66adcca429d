//! What a pod may say about its sidecar: one table for validation and for the documentation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::Problem;
use super::patch::escaped;
use crate::policy::{duration, nearest_key};

/// What our labels and annotations begin with.
pub const PREFIX: &str = "callback-guard.io/";

/// What the value of an annotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A port. Ours begin at 1024: the sidecar is no root.
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
        least: u64,
        /// The longest, seconds.
        most: u64,
    },
    /// The same, without a fraction of a second: Kubernetes sleeps whole seconds.
    WholeSeconds {
        /// The shortest, seconds.
        least: u64,
        /// The longest, seconds.
        most: u64,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// The name of an object: a DNS subdomain.
    Name,
    /// The reference of an image.
    Image,
    /// CPU: `250m` or whole cores.
    Cpu,
    /// Memory: whole `Mi` or `Gi`.
    Memory,
    /// Written at the injection, by nobody else.
    Written,
}

/// The least and most of CPU, in thousandths of a core, and of memory, in MiB.
const CPU_RANGE: [u32; 2] = [10, 64_000];
const MEMORY_RANGE: [u32; 2] = [32, 65_536];

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Annotation {
    /// Its name behind [`PREFIX`].
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What holds without it. In words where it is no value of its own.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn row(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, kind, default, meaning }
}

const HOUR: u64 = 3600;

/// Every annotation under our prefix.
pub const TABLE: [Annotation; 22] = [
    row(
        "upstream-port",
        Kind::Port { least: 1 },
        "the one port that the app's containers declare, else `8080`",
        "the app's port, asked on loopback",
    ),
    row(
        "upstream-form",
        Kind::OneOf(&["as-received", "path", "query"]),
        "as-received",
        "how the app wants its URLs: `proxy --upstream-form`",
    ),
    row(
        "listen-port",
        Kind::Port { least: 1024 },
        "18443",
        "where the sidecar listens for callbacks over TLS; the port's name stays `callback-guard`",
    ),
    row("admin-port", Kind::Port { least: 1024 }, "19090", "probes, metrics and the status page"),
    row(
        "policy-configmap",
        Kind::Name,
        "`--policy-configmap`",
        "the ConfigMap with the policy, in the pod's namespace",
    ),
    row(
        "policy-source",
        Kind::OneOf(&["watch", "volume"]),
        "watch",
        "`watch`: the ConfigMap is mounted and watched, an edit is in force within a second. `volume`: it is only \
         mounted, an edit takes a minute or so, and the pod gets no token for the API server",
    ),
    row(
        "tls-secret",
        Kind::Name,
        "`--tls-secret`",
        "the Secret with `tls.crt` and `tls.key`, in the pod's namespace",
    ),
    row(
        "app-pre-stop-sleep",
        Kind::WholeSeconds { least: 1, most: HOUR },
        "none",
        "adds a `preStop.sleep` to the app's containers that have no preStop hook, so that the app still answers while \
         the endpoints change; shorter than the pod's grace period",
    ),
    row("image", Kind::Image, "`--image`", "the sidecar's image"),
    row(
        "image-pull-policy",
        Kind::OneOf(&["Always", "IfNotPresent", "Never"]),
        "left to Kubernetes",
        "when the image is pulled",
    ),
    row(
        "cpu-request",
        Kind::Cpu,
        "100m",
        "CPU set aside, at most the limit; in a Guaranteed pod it is the limit",
    ),
    row(
        "cpu-limit",
        Kind::Cpu,
        "1",
        "CPU at most: one worker and the admin thread seldom need more than a core",
    ),
    row(
        "memory-request",
        Kind::Memory,
        "64Mi",
        "memory set aside, at most the limit; in a Guaranteed pod it is the limit",
    ),
    row(
        "memory-limit",
        Kind::Memory,
        "256Mi",
        "memory at most; half of it may be callbacks and answers (`proxy --max-held`)",
    ),
    row(
        "workers",
        Kind::Count { least: 1, most: 64 },
        "1",
        "threads that answer callbacks: `proxy --workers`",
    ),
    row("log-level", Kind::OneOf(&["off", "error", "warn", "info", "debug"]), "info", "`proxy --log-level`"),
    row("drain-delay", Kind::Time { least: 0, most: HOUR }, "3s", "`proxy --drain-delay`"),
    row("drain-timeout", Kind::Time { least: 0, most: HOUR }, "20s", "`proxy --drain-timeout`"),
    row("inject", Kind::Written, "", "is a label: stands under `metadata.labels`, `enabled` or `disabled`"),
    row("injected-version", Kind::Written, "", "the version of callback-guard that injected"),
    row("injected-hash", Kind::Written, "", "a hash of what was injected: equal where the sidecars are"),
    row("injected-paths", Kind::Written, "", "what the pod did not have before, for `uninject`"),
];

impl Kind {
    /// What kind of value, for the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Port { .. } => "port",
            Kind::Count { .. } => "whole number",
            Kind::Time { .. } => "duration",
            Kind::WholeSeconds { .. } => "duration, whole seconds",
            Kind::OneOf(_) => "one of",
            Kind::Name => "name",
            Kind::Image => "image",
            Kind::Cpu => "CPU",
            Kind::Memory => "memory",
            Kind::Written => "written at the injection",
        }
    }

    /// The allowed values, for the documentation and for whoever used another.
    pub fn range(self) -> String {
        let seconds = |seconds| duration::display(Duration::from_secs(seconds));
        match self {
            Kind::Port { least } => format!("{least} to 65535"),
            Kind::Count { least, most } => format!("{least} to {most}"),
            Kind::Time { least, most } | Kind::WholeSeconds { least, most } => {
                format!("{} to {}", seconds(least), seconds(most))
            }
            Kind::OneOf(words) => words.join(", "),
            Kind::Name => "lower-case letters, digits, `-` and `.`; at most 253".to_owned(),
            Kind::Image => "a reference without spaces; at most 512 characters".to_owned(),
            Kind::Cpu => "10m to 64 cores, as `250m` or `2`".to_owned(),
            Kind::Memory => "32Mi to 64Gi, as `256Mi` or `1Gi`".to_owned(),
            Kind::Written => String::new(),
        }
    }

    fn allows(self, text: &str) -> bool {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| text.parse::<u32>().ok().filter(|_| digits(text));
        let time = |least, most| {
            let range = Duration::from_secs(least)..=Duration::from_secs(most);
            duration::parse(text).ok().filter(|time| range.contains(time))
        };
        match self {
            Kind::Port { least } => {
                number(text).is_some_and(|port| (u32::from(least)..=65_535).contains(&port))
            }
            Kind::Count { least, most } => number(text).is_some_and(|count| (least..=most).contains(&count)),
            Kind::Time { least, most } => time(least, most).is_some(),
            Kind::WholeSeconds { least, most } => {
                time(least, most).is_some_and(|time| time.subsec_nanos() == 0)
            }
            Kind::OneOf(words) => words.contains(&text),
            Kind::Name => {
                let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                let part = |part: &str| {
                    part.bytes().all(inner)
                        && !part.is_empty()
                        && !part.starts_with('-')
                        && !part.ends_with('-')
                };
                text.len() <= 253 && text.split('.').all(part)
            }
            Kind::Image => {
                (1..=512).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
            }
            Kind::Cpu => milli_cpu(text).is_some(),
            Kind::Memory => mebibytes(text).is_some(),
            Kind::Written => false,
        }
    }

    /// Whether a flag or an annotation of this kind may have this value.
    ///
    /// # Errors
    ///
    /// What was found and what is allowed.
    pub fn check(self, text: &str) -> Result<(), String> {
        if self.allows(text) {
            return Ok(());
        }
        let range = self.range();
        let article = if self.name().starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let one_of = matches!(self, Kind::OneOf(_));
        let allowed = if one_of { range } else { format!("{article} {}, {range}", self.name()) };
        Err(format!("Invalid value: {text:?}: must be {allowed}"))
    }
}

/// Thousandths of a core of `250m` or `2`, if within the range.
fn milli_cpu(text: &str) -> Option<u32> {
    let (number, scale) = text.strip_suffix('m').map_or((text, 1000), |number| (number, 1));
    let milli = number.parse::<u32>().ok()?.checked_mul(scale)?;
    (CPU_RANGE[0]..=CPU_RANGE[1]).contains(&milli).then_some(milli)
}

/// MiB of `256Mi` or `1Gi`, if within the range.
fn mebibytes(text: &str) -> Option<u32> {
    let number = |unit, scale| text.strip_suffix(unit)?.parse::<u32>().ok()?.checked_mul(scale);
    let mebibytes = number("Mi", 1).or_else(|| number("Gi", 1024))?;
    (MEMORY_RANGE[0]..=MEMORY_RANGE[1]).contains(&mebibytes).then_some(mebibytes)
}

/// What a pod says about its sidecar; every value is one that its row allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations(BTreeMap<&'static str, String>);

impl Annotations {
    /// Reads those under our prefix, and notes everything that is wrong with them.
    pub(super) fn read(pod: &Value, problems: &mut Vec<Problem>) -> Annotations {
        let mut found = Annotations::default();
        let map = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        for (key, value) in map.into_iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let message = match (TABLE.iter().find(|row| row.name == name), value.as_str()) {
                (None, _) => unknown(name),
                (Some(Annotation { kind: Kind::Written, meaning, .. }), _) if name == "inject" => {
                    format!("Not allowed: {meaning}")
                }
                (Some(Annotation { kind: Kind::Written, meaning, .. }), _) => {
                    format!("Not allowed: {meaning}; nobody else writes it: take it away")
                }
                (Some(_), None) => format!("Invalid value: {value}: must be a string: put it in quotes"),
                (Some(row), Some(text)) => match row.kind.check(text) {
                    Ok(()) => {
                        found.0.insert(row.name, text.to_owned());
                        continue;
                    }
                    Err(message) => message,
                },
            };
            problems.push(Problem::at(pointer(name), message));
        }
        found.compare("cpu-request", "cpu-limit", milli_cpu, problems);
        found.compare("memory-request", "memory-limit", mebibytes, problems);
        if found.number("listen-port") == found.number("admin-port") {
            let message =
                format!("Invalid value: {:?}: {PREFIX}listen-port is the same", found.text("admin-port"));
            problems.push(Problem::at(pointer("admin-port"), message));
        }
        found
    }

    fn compare(
        &self,
        request: &str,
        limit: &str,
        read: fn(&str) -> Option<u32>,
        problems: &mut Vec<Problem>,
    ) {
        let Some(asked) = self.given(request) else { return };
        let most = self.text(limit);
        if read(asked) > read(most) {
            let message = format!("Invalid value: {asked:?}: is more than {PREFIX}{limit}, which is {most}");
            problems.push(Problem::at(pointer(request), message));
        }
    }

    /// A request, which is never above its limit.
    pub(super) fn request(&self, request: &str, limit: &str) -> &str {
        let (asked, most) = (self.text(request), self.text(limit));
        let amount = |text| milli_cpu(text).or_else(|| mebibytes(text));
        if amount(asked) > amount(most) { most } else { asked }
    }

    /// What the pod says.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What holds: what the pod says, or the default of the table, which has to be a value.
    pub(super) fn text(&self, name: &str) -> &str {
        let default = || TABLE.iter().find(|row| row.name == name).map_or("", |row| row.default);
        self.given(name).unwrap_or_else(default)
    }

    /// The same as a number: of a port, or of MiB.
    pub(super) fn number(&self, name: &str) -> u32 {
        let text = self.text(name);
        text.parse().ok().or_else(|| mebibytes(text)).unwrap_or_default()
    }
}

/// JSON pointer to an annotation of ours.
pub(super) fn pointer(name: &str) -> String {
    format!("/metadata/annotations/{}", escaped(&format!("{PREFIX}{name}")))
}

fn unknown(name: &str) -> String {
    let known: Vec<_> = TABLE.iter().filter(|row| row.kind != Kind::Written).map(|row| row.name).collect();
    match nearest_key(name, &known) {
        Some(near) => format!("Unknown annotation: did you mean \"{PREFIX}{near}\"?"),
        None => format!("Unknown annotation: known under {PREFIX} are {}", known.join(", ")),
    }
}
