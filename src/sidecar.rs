//! The sidecar in a pod: what is added, to which pods, and how it is taken away again.
//!
//! [`inject`] is pure and works on the pod as JSON, so that fields this program does not know stay as they are. It gives
//! a patch that only adds; the admission webhook sends it, `inject -f` takes it itself. Injected once, a pod is
//! left alone; [`uninject`] gives back what was there before.

pub mod annotations;
pub mod patch;
pub mod workload;

mod container;

#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::{Value, json};

use annotations::{Annotations, PREFIX};
use container::{Plan, Resources};
use patch::{Draft, Operation};

use crate::policy::duration;

/// The name of our container, and of its TLS port.
pub const CONTAINER: &str = "callback-guard";

/// Names which container `kubectl logs` and `exec` take; ours is none that anybody means.
const DEFAULT_CONTAINER: &str = "/metadata/annotations/kubectl.kubernetes.io~1default-container";

/// What Kubernetes gives a pod that says nothing.
const GRACE_SECONDS: u64 = 30;

/// Where the app is asked when its containers do not tell.
const UPSTREAM_PORT: u32 = 8080;

/// What holds for all pods of an installation; annotations change some of it for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarSpec {
    /// The image.
    pub image: String,
    /// The ConfigMap with the policy, in the pod's namespace.
    pub policy_configmap: String,
    /// The Secret with the certificate, in the pod's namespace.
    pub tls_secret: String,
    /// The namespace of this installation, whose pods are never injected.
    pub own_namespace: Option<String>,
    /// The namespaces that are served; `None`: all.
    pub namespaces: Option<Vec<String>>,
}

/// Who asks for the injection of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'r> {
    /// The pod's namespace, as far as it is known.
    pub namespace: Option<&'r str>,
    /// How it was asked for.
    pub asked: Asked<'r>,
}

/// How an injection is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'r> {
    /// By somebody who named the pod, as on a command line. A label `disabled` still wins.
    ByName,
    /// By the label `callback-guard.io/inject` of the pod, or else of its namespace, whose value is here.
    ByLabel {
        /// The value on the namespace.
        of_namespace: Option<&'r str>,
    },
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injection {
    /// The steps that put the sidecar in, paths within the pod; all of them add.
    Patch {
        /// In their order.
        steps: Vec<Operation>,
        /// Where the app will be asked.
        upstream_port: u32,
        /// What is worth a look all the same.
        warnings: Vec<String>,
    },
    /// The pod stays as it is.
    Skipped(Skip),
    /// The pod asks for something that cannot be; never empty.
    Refused(Vec<Problem>),
}

/// What came of taking a sidecar away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The steps that take it out, paths within the pod; all of them remove.
    Patch(Vec<Operation>),
    /// There is none that was injected.
    NotInjected,
}

/// What is wrong with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// JSON pointer within the pod.
    pub pointer: String,
    /// What was found and what is right, in kubectl's form.
    pub message: String,
}

impl Problem {
    fn at(pointer: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { pointer: pointer.into(), message: message.into() }
    }
}

/// Why a pod is left alone. Each has one name, for people, events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// Nobody asked.
    NotAsked,
    /// Its label says so.
    Disabled,
    /// A namespace of Kubernetes itself.
    SystemNamespace,
    /// The namespace of this installation.
    OwnNamespace,
    /// A namespace that is not served.
    NamespaceNotListed,
    /// The image of a static pod.
    MirrorPod,
    /// It has us already.
    AlreadyInjected,
    /// It uses the node's network.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// The app declares one of our ports.
    PortInUse,
}

impl Skip {
    /// Every reason.
    pub const ALL: [Skip; 10] = [
        Skip::NotAsked,
        Skip::Disabled,
        Skip::SystemNamespace,
        Skip::OwnNamespace,
        Skip::NamespaceNotListed,
        Skip::MirrorPod,
        Skip::AlreadyInjected,
        Skip::HostNetwork,
        Skip::Windows,
        Skip::PortInUse,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Skip::NotAsked => "not-asked",
            Skip::Disabled => "disabled",
            Skip::SystemNamespace => "system-namespace",
            Skip::OwnNamespace => "own-namespace",
            Skip::NamespaceNotListed => "namespace-not-listed",
            Skip::MirrorPod => "mirror-pod",
            Skip::AlreadyInjected => "already-injected",
            Skip::HostNetwork => "host-network",
            Skip::Windows => "windows",
            Skip::PortInUse => "port-in-use",
        }
    }

    /// What it means, and what may be done.
    pub fn meaning(self) -> &'static str {
        match self {
            Skip::NotAsked => {
                "neither the pod nor its namespace has the label callback-guard.io/inject: enabled"
            }
            Skip::Disabled => "the label callback-guard.io/inject is disabled",
            Skip::SystemNamespace => "kube-system and kube-node-lease are left alone",
            Skip::OwnNamespace => "the namespace of callback-guard itself is left alone",
            Skip::NamespaceNotListed => "the namespace is not among those that are served",
            Skip::MirrorPod => "the API server only shows this pod: its manifest is a file on its node",
            Skip::AlreadyInjected => "it has a container callback-guard; to renew it, uninject first",
            Skip::HostNetwork => "hostNetwork: the sidecar's ports would be the node's",
            Skip::Windows => "the pod is for Windows nodes, the sidecar for Linux",
            Skip::PortInUse => {
                "the app declares a port of the sidecar: annotations callback-guard.io/listen-port and admin-port give \
                 it others; the port's name callback-guard is ours alone"
            }
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Puts the sidecar into a pod: an object with `metadata` and `spec`, a Pod's own or a template's.
///
/// Pods come from anybody: nothing is taken for granted about them but that they are JSON.
pub fn inject(pod: &Value, request: &Request<'_>, spec: &SidecarSpec) -> Injection {
    let mut problems = Vec::new();
    match skip(pod, request, spec) {
        Ok(Some(reason)) => return Injection::Skipped(reason),
        Ok(None) => {}
        Err(problem) => problems.push(problem),
    }
    problems.extend(wrong_shapes(pod));
    let annotations = Annotations::read(pod, &mut problems);
    let grace_seconds =
        pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(GRACE_SECONDS);
    let sleep = annotations.given("app-pre-stop-sleep").and_then(|text| duration::parse(text).ok());
    let sleep = sleep.map(|sleep| sleep.as_secs());
    if sleep.is_some_and(|sleep| sleep >= grace_seconds) {
        let message = format!(
            "Invalid value: {:?}: must be shorter than the pod's terminationGracePeriodSeconds, {grace_seconds}",
            annotations.text("app-pre-stop-sleep")
        );
        problems.push(Problem::at(annotations::pointer("app-pre-stop-sleep"), message));
    }
    let ours = [annotations.number("listen-port"), annotations.number("admin-port")];
    let (upstream_port, warnings) = upstream_port(pod, &annotations);
    if ours.contains(&upstream_port) && annotations.given("upstream-port").is_some() {
        let message = format!("Invalid value: \"{upstream_port}\": must not be a port of the sidecar itself");
        problems.push(Problem::at(annotations::pointer("upstream-port"), message));
    }
    if !problems.is_empty() {
        return Injection::Refused(problems);
    }
    if ports(pod, &["containers", "initContainers"])
        .any(|(name, port)| name == CONTAINER || ours.contains(&port))
    {
        return Injection::Skipped(Skip::PortInUse);
    }
    let plan =
        Plan { spec, annotations: &annotations, upstream_port, grace_seconds, resources: resources(pod) };
    Injection::Patch { steps: steps(pod, &plan, sleep), upstream_port, warnings }
}

/// Which of the reasons to leave the pod alone holds, the cheapest first; all but [`Skip::PortInUse`], which
/// depends on annotations.
fn skip(pod: &Value, request: &Request<'_>, spec: &SidecarSpec) -> Result<Option<Skip>, Problem> {
    let label = pod.pointer("/metadata/labels").and_then(|labels| labels.get(format!("{PREFIX}inject")));
    let asked = match (label.map(Value::as_str), request.asked) {
        (Some(Some("disabled")), _) => return Ok(Some(Skip::Disabled)),
        (Some(Some("enabled")), _) | (None, Asked::ByName) => true,
        (None, Asked::ByLabel { of_namespace }) => of_namespace == Some("enabled"),
        (Some(_), _) => {
            let found = label.map(Value::to_string).unwrap_or_default();
            let message = format!("Unsupported value: {found}: supported values: \"enabled\", \"disabled\"");
            return Err(Problem::at(
                format!("/metadata/labels/{}", patch::escaped(&format!("{PREFIX}inject"))),
                message,
            ));
        }
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
        (!asked, Skip::NotAsked),
        (within(&["kube-system", "kube-node-lease"]), Skip::SystemNamespace),
        (spec.own_namespace.as_deref().is_some_and(|own| within(&[own])), Skip::OwnNamespace),
        (!spec.namespaces.as_ref().is_none_or(listed), Skip::NamespaceNotListed),
        (text("/metadata/annotations/kubernetes.io~1config.mirror").is_some(), Skip::MirrorPod),
        (
            containers(pod, &["containers", "initContainers"]).any(|(_, name)| name == CONTAINER),
            Skip::AlreadyInjected,
        ),
        (pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)), Skip::HostNetwork),
        (os.iter().any(|pointer| text(pointer) == Some("windows")), Skip::Windows),
    ];
    Ok(reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason)))
}

/// What a patch could not be put into, and what it would clash with.
fn wrong_shapes(pod: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    match pod.pointer("/spec/containers").and_then(Value::as_array) {
        Some(list) if list.is_empty() => {
            problems.push(Problem::at("/spec/containers", "Required value: is empty"))
        }
        Some(_) => {}
        None => {
            problems.push(Problem::at("/spec/containers", "Required value: must be a list of containers"))
        }
    }
    for pointer in ["/metadata", "/metadata/annotations", "/metadata/labels"] {
        if pod.pointer(pointer).is_some_and(|value| !value.is_object() && !value.is_null()) {
            problems.push(Problem::at(pointer, "Invalid value: must be a mapping"));
        }
    }
    for pointer in ["/spec/initContainers", "/spec/volumes"] {
        if pod.pointer(pointer).is_some_and(|value| !value.is_array() && !value.is_null()) {
            problems.push(Problem::at(pointer, "Invalid value: must be a list"));
        }
    }
    for (index, (container, _)) in containers(pod, &["containers"]).enumerate() {
        if !container.is_object() {
            problems
                .push(Problem::at(format!("/spec/containers/{index}"), "Invalid value: must be a container"));
        }
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    for (index, volume) in volumes.into_iter().flatten().enumerate() {
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default();
        if container::VOLUMES.contains(&name) {
            let message = format!("Invalid value: {name:?}: the sidecar has a volume of that name");
            problems.push(Problem::at(format!("/spec/volumes/{index}/name"), message));
        }
    }
    problems
}

/// The containers of these lists, each with its name.
fn containers<'p>(pod: &'p Value, lists: &'p [&str]) -> impl Iterator<Item = (&'p Value, &'p str)> {
    lists.iter().flat_map(move |list| {
        let list = pod.pointer("/spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .map(|one| (one, one.get("name").and_then(Value::as_str).unwrap_or_default()))
    })
}

/// The ports that these containers declare, each with its name.
fn ports<'p>(pod: &'p Value, lists: &'p [&str]) -> impl Iterator<Item = (&'p str, u32)> {
    containers(pod, lists).flat_map(|(container, _)| {
        let ports = container.get("ports").and_then(Value::as_array);
        ports.into_iter().flatten().filter_map(|port| {
            let number = port.get("containerPort").and_then(Value::as_u64)?;
            Some((port.get("name").and_then(Value::as_str).unwrap_or_default(), u32::try_from(number).ok()?))
        })
    })
}

/// Where the app is asked, and whether that was a guess.
fn upstream_port(pod: &Value, annotations: &Annotations) -> (u32, Vec<String>) {
    if annotations.given("upstream-port").is_some() {
        return (annotations.number("upstream-port"), Vec::new());
    }
    let mut declared: Vec<_> = ports(pod, &["containers"]).map(|(_, port)| port).collect();
    declared.sort_unstable();
    declared.dedup();
    match declared.as_slice() {
        [one] => (*one, Vec::new()),
        several if several.is_empty() || several.contains(&UPSTREAM_PORT) => (UPSTREAM_PORT, Vec::new()),
        several => {
            let several: Vec<_> = several.iter().map(u32::to_string).collect();
            let warning = format!(
                "the app declares the ports {}, none of them {UPSTREAM_PORT}, where it will be asked: say which with the \
                 annotation {PREFIX}upstream-port",
                several.join(", ")
            );
            (UPSTREAM_PORT, vec![warning])
        }
    }
}

/// A pod is Guaranteed if every container has limits on CPU and memory, and requests equal to them or none.
fn resources(pod: &Value) -> Resources {
    let whole = pod.pointer("/spec/resources").and_then(Value::as_object);
    let some = |part: &str| {
        whole
            .and_then(|whole| whole.get(part))
            .and_then(Value::as_object)
            .is_some_and(|part| !part.is_empty())
    };
    if some("requests") || some("limits") {
        return Resources::OfPod;
    }
    let guaranteed = containers(pod, &["containers", "initContainers"]).all(|(container, _)| {
        ["cpu", "memory"].iter().all(|resource| {
            let of = |part: &str| {
                container.pointer(&format!("/resources/{part}/{resource}")).filter(|it| !it.is_null())
            };
            of("limits").is_some_and(|limit| of("requests").is_none_or(|request| request == limit))
        })
    });
    if guaranteed { Resources::Guaranteed } else { Resources::Burstable }
}

/// The patch. What the pod did not have before is noted in an annotation, so that nothing of it need stay.
fn steps(pod: &Value, plan: &Plan<'_>, sleep: Option<u64>) -> Vec<Operation> {
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
    if let Some((_, first)) = containers(pod, &["containers"]).next().filter(|(_, name)| !name.is_empty()) {
        ensure(&mut draft, DEFAULT_CONTAINER, first.into());
    }
    ensure(&mut draft, "/spec/initContainers", json!([]));
    let (container, volumes) = (plan.container(), plan.volumes());
    let hash = hash(&json!({"container": container, "volumes": volumes, "sleep": sleep}).to_string());
    draft.add("/spec/initContainers/0", container);
    ensure(&mut draft, "/spec/volumes", json!([]));
    for volume in volumes {
        draft.add("/spec/volumes/-", volume);
    }
    if let Some(seconds) = sleep {
        let apps = containers(pod, &["containers"]).count();
        for lifecycle in (0..apps).map(|index| format!("/spec/containers/{index}/lifecycle")) {
            let hook = json!({"sleep": {"seconds": seconds}});
            if draft.document.pointer(&lifecycle).is_none_or(Value::is_null) {
                ensure(&mut draft, &lifecycle, json!({"preStop": hook}));
            } else {
                ensure(&mut draft, &format!("{lifecycle}/preStop"), hook);
            }
        }
    }
    draft.add(annotations::pointer("injected-version"), env!("CARGO_PKG_VERSION").into());
    draft.add(annotations::pointer("injected-hash"), hash.into());
    draft.add(annotations::pointer("injected-paths"), json!(made).to_string().into());
    draft.steps
}

/// FNV-1a, 64 bits: it tells sidecars apart, and is no seal.
fn hash(text: &str) -> String {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{fnv:016x}")
}

/// Takes the sidecar out of a pod that [`inject`] put it into; what others have added since then stays.
pub fn uninject(pod: &Value) -> Removal {
    let own = |container: &Value| container.get("name").and_then(Value::as_str) == Some(CONTAINER);
    let place = pod
        .pointer("/spec/initContainers")
        .and_then(Value::as_array)
        .and_then(|list| list.iter().position(own));
    let made = pod.pointer(&annotations::pointer("injected-paths")).and_then(Value::as_str);
    let (Some(place), Some(made)) = (place, made) else { return Removal::NotInjected };
    let made: Vec<String> = serde_json::from_str(made).unwrap_or_default();
    let mut draft = Draft::of(pod);
    draft.remove(format!("/spec/initContainers/{place}"));
    let volumes =
        pod.pointer("/spec/volumes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (index, volume) in volumes.iter().enumerate().rev() {
        if volume.get("name").and_then(Value::as_str).is_some_and(|name| container::VOLUMES.contains(&name)) {
            draft.remove(format!("/spec/volumes/{index}"));
        }
    }
    for name in ["injected-version", "injected-hash", "injected-paths"] {
        draft.remove(annotations::pointer(name));
    }
    // The annotation may say anything: only what an injection makes is taken away, and only while it is as made.
    for pointer in made.iter().rev() {
        let Some(value) = draft.document.pointer(pointer) else { continue };
        let as_made = match pointer.as_str() {
            "/metadata" | "/metadata/annotations" => value.as_object().is_some_and(serde_json::Map::is_empty),
            "/spec/initContainers" | "/spec/volumes" => value.as_array().is_some_and(Vec::is_empty),
            DEFAULT_CONTAINER => {
                containers(pod, &["containers"]).any(|(_, name)| value.as_str() == Some(name))
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

fn is_sleep(hook: &Value) -> bool {
    hook.as_object().is_some_and(|hook| hook.len() == 1) && hook.pointer("/sleep/seconds").is_some()
}
