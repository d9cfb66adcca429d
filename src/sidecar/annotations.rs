//! What can be set about a sidecar: one table for validation, for the CEL of the admission policy, for the arguments of the
//! container and for the documentation.
//!
//! Each row can be set in three layers, and the last one wins: the installation, the annotations of the namespace, the
//! annotations of the pod.

use std::collections::BTreeMap;

use serde_json::Value;

pub use super::kind::Kind;
use super::kind::{NONE, mebibytes, milli_cpu};
use super::patch::escaped;
use super::{Layer, Problem, Reason};
use crate::policy::nearest_key;

/// The prefix of all our labels and annotations.
pub const PREFIX: &str = "callback-guard.io/";

/// The label that asks for a sidecar, behind [`PREFIX`].
pub const INJECT: &str = "inject";

/// What becomes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is passed on as the flag of `proxy` with the same name, if it is set.
    Flag,
    /// The container, its volumes or the pod are made with it.
    Field,
    /// It records an injection.
    Record,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Annotation {
    /// Its name behind [`PREFIX`].
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What becomes of it.
    pub effect: Effect,
    /// The value without it; in words if it has none of its own.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, kind, effect: Effect::Flag, default, meaning }
}

const fn field(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, kind, effect: Effect::Field, default, meaning }
}

const fn record(name: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, kind: Kind::Written, effect: Effect::Record, default: "", meaning }
}

const HOUR: u32 = 3600;

/// The value of a row that no layer sets and that has no default of its own.
pub const NOT_SET: &str = "";

/// Every annotation under our prefix.
pub const TABLE: [Annotation; 28] = [
    field(
        "upstream-port",
        Kind::Port { least: 1 },
        "the one TCP port that the app's containers declare; else the one port that their probes name; else `8080`, with a \
         warning",
        "the app's port on loopback (127.0.0.1 or [::1])",
    ),
    flag(
        "upstream-form",
        Kind::OneOf(&["as-received", "path", "query"]),
        "as-received",
        "how the app wants its URLs: `proxy --upstream-form`",
    ),
    flag(
        "upstream-reuse",
        Kind::OneOf(&["true", "false"]),
        "true",
        "`false`: each callback has its own connection to the app, so no verdict can be that of another callback: `proxy \
         --upstream-reuse`",
    ),
    field(
        "listen-port",
        Kind::Port { least: 1024 },
        "18443",
        "the sidecar's port for callbacks over TLS; the port's name stays `callback-guard`",
    ),
    field("admin-port", Kind::Port { least: 1024 }, "19090", "probes, metrics and the status page"),
    field(
        "policy-configmap",
        Kind::Name,
        "`--policy-configmap`",
        "the ConfigMap with the policy, in the pod's namespace. The Role that `admission-policy` prints covers that of the \
         installation; for another one add a Role, or set `policy-source: volume`",
    ),
    field(
        "policy-source",
        Kind::OneOf(&["watch", "volume"]),
        "watch",
        "`watch`: the ConfigMap is mounted and watched, and edits apply within a second. `volume`: it is only mounted, edits \
         apply within two minutes, and the pod gets no token for the API server",
    ),
    field(
        "tls-secret",
        Kind::Name,
        "`--tls-secret`",
        "the Secret with `tls.crt` and `tls.key`, in the pod's namespace",
    ),
    field(
        "app-pre-stop-sleep",
        Kind::SecondsOrNone { least: 1, most: HOUR },
        NONE,
        "adds a `preStop.sleep` to the app's containers that have no preStop hook, so that the app still answers while \
         the endpoints change; must be shorter than the pod's grace period",
    ),
    field("image", Kind::Image, "`--image`", "the sidecar's image"),
    field(
        "image-pull-policy",
        Kind::OneOf(&["Always", "IfNotPresent", "Never"]),
        "left to Kubernetes",
        "when the image is pulled",
    ),
    field(
        "run-as-user",
        Kind::User,
        "65532",
        "the sidecar's user ID; `none` leaves it to the cluster, as OpenShift requires (the image runs as any user)",
    ),
    field(
        "cpu-request",
        Kind::Cpu,
        "100m",
        "the CPU request, lowered to the limit if that is less; in a Guaranteed pod it equals the limit",
    ),
    field(
        "cpu-limit",
        Kind::CpuOrNone,
        NONE,
        "the CPU limit; set it where a quota requires one. A Guaranteed pod needs one: there `none` means `1`",
    ),
    field(
        "memory-request",
        Kind::Memory,
        "64Mi",
        "the memory request, lowered to the limit if that is less; in a Guaranteed pod it equals the limit",
    ),
    field(
        "memory-limit",
        Kind::Memory,
        "256Mi",
        "the memory limit; up to half of it holds callbacks and answers (`proxy --max-held`), up to a quarter connections \
         (`proxy --max-connections`), up to an eighth events that wait for the app (`proxy --after-queue-bytes`)",
    ),
    flag(
        "workers",
        Kind::Count { least: 1, most: 64 },
        "1",
        "threads that answer callbacks: `proxy --workers`",
    ),
    flag(
        "after-in-flight",
        Kind::Count { least: 1, most: 1024 },
        "16",
        "events of after-commands sent to the app at once: `proxy --after-in-flight`",
    ),
    flag(
        "after-queue",
        Kind::Count { least: 1, most: 99_999 },
        "10000",
        "events that wait for the app, or are being sent to it: `proxy --after-queue`. Their memory is an eighth of the memory limit",
    ),
    flag("log-level", Kind::OneOf(&["off", "error", "warn", "info", "debug"]), "info", "`proxy --log-level`"),
    flag(
        "max-connection-age",
        Kind::Time { least: 1, most: HOUR },
        "10m",
        "when OpenIM has to connect again, and sees new pods and certificates: `proxy --max-connection-age`",
    ),
    flag("drain-delay", Kind::Time { least: 0, most: HOUR }, "3s", "`proxy --drain-delay`"),
    flag("drain-timeout", Kind::Time { least: 0, most: HOUR }, "20s", "`proxy --drain-timeout`"),
    record(INJECT, "is a label: set it under `metadata.labels`, to `enabled` or `disabled`"),
    record("injected-version", "the version of callback-guard that injected the sidecar"),
    record("injected-hash", "the hash that the label `callback-guard.io/injected` has too"),
    record(
        "injected-paths",
        "what the injection added beside the sidecar, for `uninject` (only by `inject -f`)",
    ),
    record("injected-by", "`policy` if the admission policy injected the sidecar"),
];

impl Annotation {
    /// Whether a person can set it.
    pub fn is_setting(&self) -> bool {
        self.effect != Effect::Record
    }

    /// The default as a value; [`NOT_SET`] if the row has none of its own, or if `proxy` has it.
    pub fn default_value(&self) -> &'static str {
        let is_value = self.effect == Effect::Field && self.kind.check(self.default).is_ok();
        if is_value { self.default } else { NOT_SET }
    }

    /// JSON pointer to it within an object.
    pub fn pointer(name: &str) -> String {
        format!("/metadata/annotations/{}", escaped(&format!("{PREFIX}{name}")))
    }
}

/// JSON pointer to a label of ours within an object.
pub fn label_pointer(name: &str) -> String {
    format!("/metadata/labels/{}", escaped(&format!("{PREFIX}{name}")))
}

/// The rows that can be set.
pub fn settings() -> impl Iterator<Item = &'static Annotation> {
    TABLE.iter().filter(|row| row.is_setting())
}

/// The row of a setting.
pub fn setting(name: &str) -> Option<&'static Annotation> {
    settings().find(|row| row.name == name)
}

/// What is set for one sidecar, each with the layer that sets it. Every value is one that its row allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings(BTreeMap<&'static str, (Layer, String)>);

impl Settings {
    /// Those of an installation alone, which were checked when they were read.
    pub(super) fn of(installation: &BTreeMap<&'static str, String>) -> Settings {
        let set = installation.iter().map(|(name, value)| (*name, (Layer::Installation, value.clone())));
        Settings(set.collect())
    }

    /// Puts the layers together, the last one on top, and notes everything that is wrong with them.
    pub(super) fn read(
        installation: &BTreeMap<&'static str, String>,
        namespace: Option<&Value>,
        pod: &Value,
        problems: &mut Vec<Problem>,
    ) -> Settings {
        let mut found = Settings::of(installation);
        if let Some(metadata) = namespace {
            found.layer(metadata.get("annotations"), Layer::Namespace, problems);
        }
        found.layer(pod.pointer("/metadata/annotations"), Layer::Pod, problems);
        found
    }

    fn layer(&mut self, annotations: Option<&Value>, layer: Layer, problems: &mut Vec<Problem>) {
        for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            match read(name, value) {
                Ok((row, text)) => {
                    self.0.insert(row.name, (layer, text));
                }
                Err(message) => {
                    let reason = if row(name).is_some() {
                        Reason::InvalidAnnotation
                    } else {
                        Reason::UnknownAnnotation
                    };
                    problems.push(Problem { reason, layer, pointer: Annotation::pointer(name), message });
                }
            }
        }
    }

    /// What a layer sets.
    pub(super) fn given(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|(_, text)| text.as_str())
    }

    /// The layer that sets a row; without one the pod, where it can be set.
    pub(super) fn layer_of(&self, name: &str) -> Layer {
        self.0.get(name).map_or(Layer::Pod, |(layer, _)| *layer)
    }

    /// The value in force: what a layer sets, or the default of the table; empty without one.
    pub(super) fn text(&self, name: &str) -> &str {
        self.given(name).unwrap_or_else(|| setting(name).map_or("", Annotation::default_value))
    }

    /// A port as a number.
    pub(super) fn port(&self, name: &str) -> u32 {
        self.text(name).parse().unwrap_or_default()
    }

    /// The requests that are set and are above their limits: each as (request, limit), names of rows.
    pub(super) fn requests_above_limits(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        AMOUNTS.into_iter().filter_map(|(request, limit, amount)| {
            let asked = amount(self.given(request)?)?;
            amount(self.text(limit)).is_some_and(|limit| asked > limit).then_some((request, limit))
        })
    }

    /// A request, lowered to its limit.
    pub(super) fn lowered(&self, request: &str, limit: &str) -> &str {
        let (asked, most) = (self.text(request), self.text(limit));
        let amount = |text| milli_cpu(text).or_else(|| mebibytes(text));
        if amount(most).is_some_and(|most| amount(asked) > Some(most)) { most } else { asked }
    }
}

/// Reads a quantity of an annotation.
type Amount = fn(&str) -> Option<u32>;
const AMOUNTS: [(&str, &str, Amount); 2] =
    [("cpu-request", "cpu-limit", milli_cpu), ("memory-request", "memory-limit", mebibytes)];

fn row(name: &str) -> Option<&'static Annotation> {
    TABLE.iter().find(|row| row.name == name)
}

/// Reads one annotation, its name without the prefix.
///
/// # Errors
///
/// What is wrong with it, and what is right.
pub fn read(name: &str, value: &Value) -> Result<(&'static Annotation, String), String> {
    match (row(name), value) {
        (None, _) => Err(unknown(name)),
        (Some(row), _) if row.name == INJECT => Err(format!("Not allowed: {}", row.meaning)),
        (Some(row), _) if !row.is_setting() => {
            Err(format!("Not allowed: {}; only the injection writes it: remove it", row.meaning))
        }
        (Some(row), Value::String(text)) => row.kind.check(text).map(|()| (row, text.clone())),
        (Some(_), other) => Err(format!("Invalid value: {other}: must be a string: put it in quotes")),
    }
}

fn unknown(name: &str) -> String {
    let known: Vec<_> = settings().map(|row| row.name).collect();
    match nearest_key(name, &known) {
        Some(near) => format!("Unknown annotation: did you mean \"{PREFIX}{near}\"?"),
        None => format!("Unknown annotation: known under {PREFIX} are {}", known.join(", ")),
    }
}
