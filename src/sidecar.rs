//! The sidecar in a pod: what is added, to which pods, and how it is removed again.
//!
//! There are two ways in, and both add the same. [`inject`] is pure and works on the pod as JSON, so that fields this
//! program does not know stay as they are; `inject -f` applies the patch that it returns. [`admission`] renders the
//! same templates and checks as CEL, which the API server evaluates itself. A pod that has the sidecar is left alone;
//! [`uninject`] restores what was there before.

pub mod admission;
pub mod annotations;
pub mod census;
pub mod kind;
pub mod patch;
pub mod reason;
pub mod service;
pub mod workload;

mod container;
mod pod;
mod quantity;
mod template;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use annotations::{Annotation, INJECT, PREFIX, Settings, label_pointer};
use patch::{Draft, Operation};
pub use reason::{Notice, Reason, Words};

use crate::policy::duration;

/// The name of our container, and of its TLS port.
pub const CONTAINER: &str = "callback-guard";

/// The names of our ports.
const PORT_NAMES: [&str; 2] = [CONTAINER, ADMIN_PORT];
const ADMIN_PORT: &str = "guard-admin";

/// The label of a pod with a sidecar, and of the policy that adds it, behind [`PREFIX`]: version and hash.
pub const INJECTED: &str = "injected";

/// Names the container that `kubectl logs` and `exec` take without a flag, which should not be ours.
const DEFAULT_CONTAINER: &str = "/metadata/annotations/kubectl.kubernetes.io~1default-container";

const PULL_SECRETS: &str = "/spec/imagePullSecrets";

/// Where the app is called if nothing in the pod says it.
const UPSTREAM_PORT: u32 = 8080;

/// The image, if an installation does not name another.
pub const IMAGE: &str = concat!("callback-guard:", env!("CARGO_PKG_VERSION"));
/// The ConfigMap with the policy, if an installation does not name another.
pub const POLICY_CONFIGMAP: &str = "callback-guard-policy";
/// The Secret with the certificate, if an installation does not name another.
pub const TLS_SECRET: &str = "callback-guard-tls";

/// What holds for all pods of an installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installation {
    /// Settings for all pods, which the annotations of a namespace or a pod override. Every value is one that its row
    /// of [`annotations::TABLE`] allows; `image`, `policy-configmap` and `tls-secret` are always there.
    pub settings: BTreeMap<&'static str, String>,
    /// Secrets for pulling the image, added to those of the pod.
    pub image_pull_secrets: Vec<String>,
    /// The namespace of this installation, whose pods are never injected.
    pub own_namespace: Option<String>,
    /// The namespaces that are served; `None`: all.
    pub namespaces: Option<Vec<String>>,
}

impl Installation {
    /// One with this image, and the program's defaults for everything else.
    pub fn of_image(image: &str) -> Installation {
        let settings = [("image", image), ("policy-configmap", POLICY_CONFIGMAP), ("tls-secret", TLS_SECRET)];
        let settings = settings.map(|(name, value)| (name, value.to_owned())).into();
        Installation { settings, ..Installation::default() }
    }
}

/// Who asks for the injection of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'r> {
    /// The name of the pod's namespace, if it is known.
    pub namespace: Option<&'r str>,
    /// The metadata of that namespace, if it is known: its label, and settings for all its pods.
    pub namespace_metadata: Option<&'r Value>,
    /// Whether somebody named the pod, as on a command line. It is then injected without a label; `disabled` still wins.
    pub by_name: bool,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injection {
    /// The steps that put the sidecar in, paths within the pod; all of them add.
    Patch {
        /// In their order.
        steps: Vec<Operation>,
        /// Where the app is called.
        upstream: Upstream,
        /// The ports of the sidecar: for callbacks, and for its admin pages.
        ports: [u32; 2],
        /// What is worth a look all the same.
        warnings: Vec<String>,
    },
    /// The pod stays as it is.
    Skipped(Reason),
    /// The pod asks for something that cannot be; never empty.
    Refused(Vec<Problem>),
}

/// Where the app is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The port on loopback.
    pub port: u32,
    /// What says so.
    pub known_by: KnownBy,
}

/// What says where the app is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownBy {
    /// A setting.
    Setting,
    /// The ports or the probes of the app's containers.
    Pod,
    /// Nothing: it is a guess.
    Nothing,
}

/// What came of removing a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The steps that take it out, paths within the pod; all of them remove.
    Patch(Vec<Operation>),
    /// There is none that was injected.
    NotInjected,
    /// The admission policy injected it, so no manifest has it.
    InjectedByPolicy,
}

/// Where a setting is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The settings of the installation.
    Installation,
    /// The annotations of the namespace.
    Namespace,
    /// The annotations of the pod.
    Pod,
}

/// What is wrong with a pod, or with the settings of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Why there is no sidecar, by the name that the admission policy uses too; never one that is skipped.
    pub reason: Reason,
    /// The object that it is about.
    pub layer: Layer,
    /// JSON pointer within that object.
    pub pointer: String,
    /// What was found and what is right, in kubectl's form.
    pub message: String,
}

impl Problem {
    fn at(reason: Reason, pointer: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { reason, layer: Layer::Pod, pointer: pointer.into(), message: message.into() }
    }
}

/// Puts the sidecar into a pod: an object with `metadata` and `spec`, a Pod's own or a template's.
pub fn inject(pod: &Value, request: &Request<'_>, installation: &Installation) -> Injection {
    let mut problems = Vec::new();
    match skip(pod, request, installation) {
        Ok(Some(reason)) => return Injection::Skipped(reason),
        Ok(None) => {}
        Err(problem) => problems.push(problem),
    }
    problems.extend(wrong_shapes(pod));
    let namespace = request.namespace_metadata;
    let settings = Settings::read(&installation.settings, namespace, pod, &mut problems);
    let upstream = upstream(pod, &settings);
    let ours = ["listen-port", "admin-port"].map(|name| settings.port(name));
    let in_use = pod::containers(pod, &pod::ALL)
        .flat_map(pod::ports)
        .any(|port| PORT_NAMES.contains(&port.name) || port.is_tcp && ours.contains(&port.number));
    problems.extend(conflicts(pod, &settings, upstream, in_use));
    if !problems.is_empty() {
        return Injection::Refused(problems);
    }
    if in_use {
        return Injection::Skipped(Reason::PortInUse);
    }
    let mut warnings = Vec::new();
    if upstream.known_by == KnownBy::Nothing {
        warnings.push(guess(pod));
    }
    let steps = steps(pod, &settings, upstream, installation);
    Injection::Patch { steps, upstream, ports: ours, warnings }
}

/// Which of the reasons to skip the pod holds, the cheapest first; all but [`Reason::PortInUse`], which depends on
/// annotations.
fn skip(pod: &Value, request: &Request<'_>, installation: &Installation) -> Result<Option<Reason>, Problem> {
    let key = format!("{PREFIX}{INJECT}");
    let label = pod.pointer("/metadata/labels").and_then(|labels| labels.get(&key));
    let of_namespace =
        request.namespace_metadata.and_then(|metadata| metadata.get("labels")?.get(&key)?.as_str());
    let asked = match (label.map(Value::as_str), of_namespace) {
        (Some(Some("disabled")), _) => return Ok(Some(Reason::Disabled)),
        (Some(Some("enabled")), _) => true,
        (Some(_), _) => {
            let found = label.map(Value::to_string).unwrap_or_default();
            return Err(Problem::at(Reason::InvalidLabel, label_pointer(INJECT), unsupported_label(&found)));
        }
        (None, Some("disabled")) if request.by_name => return Ok(Some(Reason::Disabled)),
        (None, of_namespace) => request.by_name || of_namespace == Some("enabled"),
    };
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
    let within = |names: &[&str]| request.namespace.is_some_and(|namespace| names.contains(&namespace));
    let os = [
        "/spec/os/name",
        "/spec/nodeSelector/kubernetes.io~1os",
        "/spec/nodeSelector/beta.kubernetes.io~1os",
    ];
    let listed = |names: &Vec<String>| {
        request.namespace.is_none_or(|namespace| names.iter().any(|name| name == namespace))
    };
    let reasons = [
        (!asked, Reason::NotAsked),
        (within(&SYSTEM_NAMESPACES), Reason::SystemNamespace),
        (installation.own_namespace.as_deref().is_some_and(|own| within(&[own])), Reason::OwnNamespace),
        (!installation.namespaces.as_ref().is_none_or(listed), Reason::NamespaceNotListed),
        (text("/metadata/annotations/kubernetes.io~1config.mirror").is_some(), Reason::MirrorPod),
        (
            pod::containers(pod, &pod::ALL).any(|container| pod::name(container) == CONTAINER),
            Reason::AlreadyInjected,
        ),
        (pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)), Reason::HostNetwork),
        (os.iter().any(|pointer| text(pointer) == Some("windows")), Reason::Windows),
    ];
    Ok(reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason)))
}

/// Namespaces of Kubernetes itself.
pub const SYSTEM_NAMESPACES: [&str; 2] = ["kube-system", "kube-node-lease"];

/// What is wrong with a value of the label, in kubectl's form. `found` is JSON.
pub fn unsupported_label(found: &str) -> String {
    format!("Unsupported value: {found}: supported values: \"enabled\", \"disabled\"")
}

/// What a patch could not be put into, and what it would clash with.
fn wrong_shapes(pod: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    let no_containers = match pod.pointer("/spec/containers").and_then(Value::as_array) {
        Some(list) => list.is_empty().then_some("Required value: is empty"),
        None => Some("Required value: must be a list of containers"),
    };
    problems
        .extend(no_containers.map(|message| Problem::at(Reason::NoContainers, "/spec/containers", message)));
    let mut malformed = |pointer: &str, message: &str| {
        problems.push(Problem::at(Reason::Malformed, pointer, message));
    };
    for pointer in ["/metadata", "/metadata/annotations", "/metadata/labels"] {
        if pod.pointer(pointer).is_some_and(|value| !value.is_object() && !value.is_null()) {
            malformed(pointer, "Invalid value: must be a mapping");
        }
    }
    for pointer in ["/spec/initContainers", "/spec/volumes", PULL_SECRETS] {
        if pod.pointer(pointer).is_some_and(|value| !value.is_array() && !value.is_null()) {
            malformed(pointer, "Invalid value: must be a list");
        }
    }
    for (index, container) in pod::containers(pod, &pod::APP).enumerate() {
        if !container.is_object() {
            malformed(&format!("/spec/containers/{index}"), "Invalid value: must be a container");
        }
    }
    for (index, name) in pod::volumes_of_ours(pod) {
        let message = format!("Invalid value: {name:?}: the sidecar has a volume of that name");
        problems.push(Problem::at(Reason::VolumeInUse, format!("/spec/volumes/{index}/name"), message));
    }
    problems
}

/// Settings that contradict each other: the row that is at fault, and why.
fn contradictions(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut found: Vec<_> = settings
        .requests_above_limits()
        .map(|(request, limit)| {
            (request, format!("is more than {PREFIX}{limit}, which is {}", settings.text(limit)))
        })
        .collect();
    if settings.port("listen-port") == settings.port("admin-port") {
        let (row, other) = if settings.given("admin-port").is_some() {
            ("admin-port", "listen-port")
        } else {
            ("listen-port", "admin-port")
        };
        found.push((row, format!("{PREFIX}{other} is the same")));
    }
    let ours = ["listen-port", "admin-port"].map(|name| settings.port(name));
    if settings.given("upstream-port").is_some() && ours.contains(&settings.port("upstream-port")) {
        found.push(("upstream-port", OWN_PORT.to_owned()));
    }
    found
}

/// Why the ConfigMap with the CA is not one with a policy.
pub const IS_AUTHORITY: &str = "is the ConfigMap with the CA";

/// Why a port of the sidecar is not the app's.
pub const OWN_PORT: &str = "must not be a port of the sidecar itself";

/// What in the settings of an installation contradicts itself, so that no pod would get a sidecar: name and message.
pub fn contradictions_of(installation: &Installation) -> Vec<(&'static str, String)> {
    let settings = Settings::of(&installation.settings);
    let message = |(name, why): (&'static str, String)| {
        (name, format!("Invalid value: {:?}: {}", settings.text(name), why.replace(PREFIX, "")))
    };
    let mut found = contradictions(&settings);
    if settings.given("policy-configmap") == Some(admission::trust::AUTHORITY) {
        found.push(("policy-configmap", IS_AUTHORITY.to_owned()));
    }
    found.into_iter().map(message).collect()
}

/// The same of a namespace, by its metadata: pointer within the metadata, and message.
pub fn contradictions_of_namespace(metadata: &Value) -> Vec<(String, String)> {
    let settings = Settings::read(&BTreeMap::new(), Some(metadata), &Value::Null, &mut Vec::new());
    let message = |(name, why): (&'static str, String)| {
        let pointer = Annotation::pointer(name).replacen("/metadata", "", 1);
        (pointer, format!("Invalid value: {:?}: {why}", settings.text(name)))
    };
    contradictions(&settings).into_iter().map(message).collect()
}

/// Settings that contradict each other, or the pod.
fn conflicts(pod: &Value, settings: &Settings, upstream: Upstream, in_use: bool) -> Vec<Problem> {
    let mut found = contradictions(settings);
    let grace = pod::grace_seconds(pod);
    if sleep_seconds(settings).is_some_and(|sleep| i64::try_from(sleep).is_ok_and(|sleep| sleep >= grace)) {
        let why = format!("must be shorter than the pod's terminationGracePeriodSeconds, {grace}");
        found.push(("app-pre-stop-sleep", why));
    }
    let problem = |(name, why): (&'static str, String)| Problem {
        reason: Reason::Conflict,
        layer: settings.layer_of(name),
        pointer: Annotation::pointer(name),
        message: format!("Invalid value: {:?}: {why}", settings.text(name)),
    };
    let mut problems: Vec<_> = found.into_iter().map(problem).collect();
    let ours = ["listen-port", "admin-port"].map(|name| settings.port(name));
    // A pod that declares such a port is skipped.
    if ours.contains(&upstream.port) && upstream.known_by != KnownBy::Setting && !in_use {
        let message = format!("Invalid value: \"{}\": {OWN_PORT}", upstream.port);
        problems.push(Problem::at(Reason::Conflict, Annotation::pointer("upstream-port"), message));
    }
    if pod::annotation_bytes(pod) > ANNOTATION_BYTES {
        let message = format!("Too long: may not be more than {ANNOTATION_BYTES} bytes for an injection");
        problems.push(Problem::at(Reason::AnnotationsTooLong, "/metadata/annotations", message));
    }
    problems
}

/// Most bytes of annotations before an injection: Kubernetes allows 256 KiB, and an injection adds some.
const ANNOTATION_BYTES: usize = (256 << 10) - (1 << 10);

/// How long the app's containers are to sleep before they stop, seconds; `None`: they are left as they are.
fn sleep_seconds(settings: &Settings) -> Option<u64> {
    duration::parse(settings.text("app-pre-stop-sleep")).ok().map(|sleep| sleep.as_secs())
}

/// Where the app is called, and whether that is a guess.
fn upstream(pod: &Value, settings: &Settings) -> Upstream {
    if settings.given("upstream-port").is_some() {
        return Upstream { port: settings.port("upstream-port"), known_by: KnownBy::Setting };
    }
    for ports in [pod::declared_ports(pod), pod::probed_ports(pod)] {
        if let [one] = ports.as_slice() {
            return Upstream { port: *one, known_by: KnownBy::Pod };
        }
    }
    Upstream { port: UPSTREAM_PORT, known_by: KnownBy::Nothing }
}

/// What is said about a guess.
fn guess(pod: &Value) -> String {
    let list = |ports: Vec<u32>| match ports.as_slice() {
        [] => "none".to_owned(),
        ports => ports.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    };
    let Words { meaning, remedy, .. } = Notice::UpstreamGuessed.words();
    let [declared, probed] = [pod::declared_ports(pod), pod::probed_ports(pod)].map(list);
    format!("{meaning} (TCP ports: {declared}; ports of probes: {probed}): {remedy}")
}

/// The patch. What the pod did not have before is noted in an annotation, so that `uninject` can remove it too.
fn steps(
    pod: &Value,
    settings: &Settings,
    upstream: Upstream,
    installation: &Installation,
) -> Vec<Operation> {
    let values = container::values(pod, settings, upstream);
    let container = container::container().json(&values).unwrap_or_default();
    let volumes: Vec<_> = container::volumes().iter().filter_map(|volume| volume.json(&values)).collect();
    let sleep = sleep_seconds(settings);
    let hash = hash(&json!({"container": container, "volumes": volumes, "sleep": sleep}).to_string());
    let mut draft = Draft::of(pod);
    let mut made = Vec::new();
    let mut ensure = |draft: &mut Draft, pointer: &str, empty: Value| {
        if draft.document.pointer(pointer).is_none_or(Value::is_null) {
            draft.add(pointer, empty);
            made.push(pointer.to_owned());
        }
    };
    ensure(&mut draft, "/metadata", json!({}));
    ensure(&mut draft, "/metadata/annotations", json!({}));
    ensure(&mut draft, "/metadata/labels", json!({}));
    if let Some(first) = pod::containers(pod, &pod::APP).next().map(pod::name).filter(|name| !name.is_empty())
    {
        ensure(&mut draft, DEFAULT_CONTAINER, first.into());
    }
    ensure(&mut draft, "/spec/initContainers", json!([]));
    draft.add("/spec/initContainers/0", container);
    ensure(&mut draft, "/spec/volumes", json!([]));
    for volume in volumes {
        draft.add("/spec/volumes/-", volume);
    }
    if let Some(seconds) = sleep {
        let apps = pod::containers(pod, &pod::APP).count();
        for lifecycle in (0..apps).map(|index| format!("/spec/containers/{index}/lifecycle")) {
            let hook = json!({"sleep": {"seconds": seconds}});
            if draft.document.pointer(&lifecycle).is_none_or(Value::is_null) {
                ensure(&mut draft, &lifecycle, json!({"preStop": hook}));
            } else {
                ensure(&mut draft, &format!("{lifecycle}/preStop"), hook);
            }
        }
    }
    if !installation.image_pull_secrets.is_empty() {
        ensure(&mut draft, PULL_SECRETS, json!([]));
    }
    for secret in &installation.image_pull_secrets {
        let known = draft.document.pointer(PULL_SECRETS).and_then(Value::as_array);
        if !known.is_some_and(|known| known.iter().any(|one| pod::name(one) == secret)) {
            draft.add(format!("{PULL_SECRETS}/-"), json!({"name": secret}));
            made.push(format!("{PULL_SECRETS}/{secret}"));
        }
    }
    draft.add(label_pointer(INJECTED), format!("{}-{hash}", label_version()).into());
    draft.add(Annotation::pointer("injected-version"), env!("CARGO_PKG_VERSION").into());
    draft.add(Annotation::pointer("injected-hash"), hash.into());
    draft.add(Annotation::pointer("injected-paths"), json!(made).to_string().into());
    draft.steps
}

/// Whether a step of a patch sets the label of a pod with a sidecar.
pub fn is_injected_label(step: &Operation) -> bool {
    step.path() == label_pointer(INJECTED)
}

/// The version as a label may have it.
fn label_version() -> String {
    env!("CARGO_PKG_VERSION").replace('+', "-")
}

/// FNV-1a, 64 bits: it distinguishes sidecars, and is no seal.
fn hash(text: &str) -> String {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{fnv:016x}")
}

/// Takes the sidecar out of a pod that [`inject`] put it into; what others have added since then stays.
pub fn uninject(pod: &Value) -> Removal {
    let place = pod::containers(pod, &pod::INIT).position(|one| pod::name(one) == CONTAINER);
    let Some(place) = place else { return Removal::NotInjected };
    let record = |name: &str| pod.pointer(&Annotation::pointer(name)).and_then(Value::as_str);
    let Some(made) = record("injected-paths") else {
        let by_policy = record("injected-by") == Some(BY_POLICY);
        return if by_policy { Removal::InjectedByPolicy } else { Removal::NotInjected };
    };
    let made: Vec<String> = serde_json::from_str(made).unwrap_or_default();
    let mut draft = Draft::of(pod);
    draft.remove(format!("/spec/initContainers/{place}"));
    for (index, _) in pod::volumes_of_ours(pod).rev() {
        draft.remove(format!("/spec/volumes/{index}"));
    }
    draft.remove(label_pointer(INJECTED));
    for name in ["injected-version", "injected-hash", "injected-paths"] {
        draft.remove(Annotation::pointer(name));
    }
    // The annotation may say anything: only what an injection makes is taken away, and only while it is as made.
    for pointer in made.iter().rev() {
        if let Some(secret) = pointer.strip_prefix(PULL_SECRETS).and_then(|rest| rest.strip_prefix('/')) {
            let known = draft.document.pointer(PULL_SECRETS).and_then(Value::as_array);
            if let Some(place) = known.and_then(|known| known.iter().position(|one| pod::name(one) == secret))
            {
                draft.remove(format!("{PULL_SECRETS}/{place}"));
            }
            continue;
        }
        let Some(value) = draft.document.pointer(pointer) else { continue };
        let as_made = match pointer.as_str() {
            "/metadata" | "/metadata/annotations" | "/metadata/labels" => {
                value.as_object().is_some_and(serde_json::Map::is_empty)
            }
            "/spec/initContainers" | "/spec/volumes" | PULL_SECRETS => {
                value.as_array().is_some_and(Vec::is_empty)
            }
            DEFAULT_CONTAINER => {
                pod::containers(pod, &pod::APP).any(|one| value.as_str() == Some(pod::name(one)))
            }
            other if other.starts_with("/spec/containers/") && other.ends_with("/lifecycle/preStop") => {
                is_sleep(value)
            }
            other if other.starts_with("/spec/containers/") && other.ends_with("/lifecycle") => {
                value.as_object().is_some_and(|map| map.len() == 1)
                    && value.get("preStop").is_some_and(is_sleep)
            }
            _ => false,
        };
        if as_made {
            draft.remove(pointer);
        }
    }
    Removal::Patch(draft.steps)
}

/// The value of `injected-by` on the pods that the admission policy injects.
const BY_POLICY: &str = "policy";

fn is_sleep(hook: &Value) -> bool {
    hook.as_object().is_some_and(|hook| hook.len() == 1) && hook.pointer("/sleep/seconds").is_some()
}
