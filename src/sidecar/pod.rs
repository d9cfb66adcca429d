//! What a pod says about itself. Pods come from anybody: nothing is taken for granted about them but that they are JSON.

use serde_json::Value;

use super::container::{self, Resources};
use super::quantity::Quantity;

/// What Kubernetes sets in a pod without one, seconds.
pub(super) const GRACE_SECONDS: i64 = 30;

/// The lists of containers that declare ports and resources.
pub(super) const ALL: [&str; 2] = ["containers", "initContainers"];
/// The app's own.
pub(super) const APP: [&str; 1] = ["containers"];
/// Those that start before the app's.
pub(super) const INIT: [&str; 1] = ["initContainers"];

const PROBES: [&str; 3] = ["readinessProbe", "livenessProbe", "startupProbe"];
/// The kinds of probes that name a port.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// A port that a container declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port<'p> {
    pub(super) name: &'p str,
    pub(super) number: u32,
    /// Whether it is TCP.
    pub(super) is_tcp: bool,
}

/// The containers of these lists.
pub(super) fn containers<'p>(pod: &'p Value, lists: &'p [&str]) -> impl Iterator<Item = &'p Value> {
    lists.iter().flat_map(move |list| {
        let list = pod.pointer("/spec").and_then(|spec| spec.get(list)).and_then(Value::as_array);
        list.into_iter().flatten()
    })
}

/// The name of a container, a volume or a port; empty without one.
pub(super) fn name(value: &Value) -> &str {
    value.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The ports that a container declares.
pub(super) fn ports(container: &Value) -> impl Iterator<Item = Port<'_>> {
    let ports = container.get("ports").and_then(Value::as_array);
    ports.into_iter().flatten().filter_map(|port| {
        let number = port.get("containerPort").and_then(Value::as_u64)?;
        Some(Port { name: name(port), number: u32::try_from(number).ok()?, is_tcp: is_tcp(port) })
    })
}

/// Whether a port of a container or of a Service is TCP, which Kubernetes assumes of one that does not say.
pub(super) fn is_tcp(port: &Value) -> bool {
    port.get("protocol").and_then(Value::as_str).is_none_or(|protocol| matches!(protocol, "TCP" | ""))
}

/// The bytes of all annotations, as Kubernetes counts them.
pub(super) fn annotation_bytes(pod: &Value) -> usize {
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    let bytes = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
    annotations.into_iter().flatten().map(bytes).sum()
}

/// The TCP ports that the app's containers declare, each once.
pub(super) fn declared_ports(pod: &Value) -> Vec<u32> {
    let ports = containers(pod, &APP).flat_map(ports).filter(|port| port.is_tcp);
    once(ports.map(|port| port.number).collect())
}

/// The ports that the probes of the app's containers name, by number or by the name of a TCP port of theirs; each once.
pub(super) fn probed_ports(pod: &Value) -> Vec<u32> {
    let mut found = Vec::new();
    for container in containers(pod, &APP) {
        let probes = PROBES.iter().filter_map(|probe| container.get(probe));
        // A probe of another host says nothing about the app.
        let here = |handler: &&Value| handler.get("host").and_then(Value::as_str).is_none_or(str::is_empty);
        let handlers = probes.flat_map(|probe| HANDLERS.iter().filter_map(|kind| probe.get(kind)));
        let named = handlers.filter(here).filter_map(|handler| handler.get("port"));
        for port in named {
            match port {
                Value::Number(number) => {
                    found.extend(number.as_u64().and_then(|number| u32::try_from(number).ok()));
                }
                Value::String(name) => {
                    let of_name = ports(container).filter(|port| port.is_tcp && port.name == name);
                    found.extend(of_name.map(|port| port.number));
                }
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {}
            }
        }
    }
    once(found)
}

fn once(mut numbers: Vec<u32>) -> Vec<u32> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// `terminationGracePeriodSeconds`.
pub(super) fn grace_seconds(pod: &Value) -> i64 {
    pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(GRACE_SECONDS)
}

/// A pod is Guaranteed if every container has limits on CPU and memory, and requests equal to them or none. Kubernetes
/// compares by value, and takes a limit of zero for none.
pub(super) fn resources(pod: &Value) -> Resources {
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
    let guaranteed = containers(pod, &ALL).all(|container| {
        ["cpu", "memory"].iter().all(|resource| {
            let of = |part: &str| container.pointer(&format!("/resources/{part}/{resource}"));
            let limit = of("limits").and_then(Quantity::of).filter(|limit| limit.is_positive());
            limit.is_some() && of("requests").is_none_or(|request| Quantity::of(request) == limit)
        })
    });
    if guaranteed { Resources::Guaranteed } else { Resources::Burstable }
}

/// The place in `volumes` of each volume that has a name of ours.
pub(super) fn volumes_of_ours(pod: &Value) -> impl DoubleEndedIterator<Item = (usize, &str)> {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).map(Vec::as_slice);
    let named = volumes.unwrap_or_default().iter().map(name).enumerate();
    named.filter(|(_, name)| container::VOLUMES.contains(name))
}
