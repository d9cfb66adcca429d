//! Services beside a pod: whether they lead to the sidecar, and whether they contradict where the app is called.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use super::annotations::PREFIX;
use super::{CONTAINER, KnownBy, Upstream, pod};

/// The port of HTTPS, where OpenIM's URLs lead without a port.
const HTTPS: u64 = 443;

/// A Service that selects pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    name: String,
    namespace: Option<String>,
    selector: Map<String, Value>,
    /// Its TCP ports, each with its target.
    ports: Vec<(u64, Target)>,
}

/// Where a port of a Service leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Number(u64),
    Name(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Number(number) => number.fmt(f),
            Target::Name(name) => f.write_str(name),
        }
    }
}

impl Service {
    /// Reads an object of the API; `None` if it is no Service, or selects no pods.
    pub fn of(object: &Value) -> Option<Service> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let selector =
            object.pointer("/spec/selector")?.as_object().filter(|selector| !selector.is_empty())?;
        if text("/kind") != Some("Service") || text("/apiVersion") != Some("v1") {
            return None;
        }
        let ports = object.pointer("/spec/ports").and_then(Value::as_array);
        let ports = ports.into_iter().flatten().filter_map(|port| {
            let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            let number = port.get("port").and_then(Value::as_u64).filter(|_| protocol == "TCP")?;
            let target = match port.get("targetPort") {
                Some(Value::Number(target)) => Target::Number(target.as_u64()?),
                Some(Value::String(name)) => Target::Name(name.clone()),
                // Without one it is the Service's own port.
                _ => Target::Number(number),
            };
            Some((number, target))
        });
        Some(Service {
            name: text("/metadata/name").unwrap_or_default().to_owned(),
            namespace: text("/metadata/namespace").map(str::to_owned),
            selector: selector.clone(),
            ports: ports.collect(),
        })
    }

    fn selects(&self, namespace: Option<&str>, pod: &Value) -> bool {
        let labels = pod.pointer("/metadata/labels");
        self.namespace.as_deref() == namespace
            && self
                .selector
                .iter()
                .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    }

    /// Where its ports lead in this pod, the name of a declared port as its number.
    fn targets(&self, pod: &Value) -> BTreeSet<Target> {
        let number = |name: &str| {
            let mut ports = pod::containers(pod, &pod::ALL).flat_map(pod::ports);
            ports.find(|port| port.is_tcp && port.name == name).map(|port| u64::from(port.number))
        };
        let resolved = |target: &Target| match target {
            Target::Name(name) => number(name).map_or_else(|| target.clone(), Target::Number),
            Target::Number(_) => target.clone(),
        };
        self.ports.iter().map(|(_, target)| resolved(target)).collect()
    }

    /// What to say about this Service and a pod that got the sidecar, which listens at `listen_port`; nothing if the
    /// Service does not select the pod.
    pub fn notes(
        &self,
        namespace: Option<&str>,
        pod: &Value,
        upstream: Upstream,
        listen_port: u32,
    ) -> Vec<String> {
        if !self.selects(namespace, pod) || self.ports.is_empty() {
            return Vec::new();
        }
        let targets = self.targets(pod);
        let (name, shown) = (&self.name, shown(&targets));
        let mut notes = Vec::new();
        let guard = [Target::Name(CONTAINER.to_owned()), Target::Number(listen_port.into())];
        if !guard.iter().any(|guard| targets.contains(guard)) {
            let taken = self.ports.iter().any(|(port, _)| *port == HTTPS);
            let taken =
                if taken { format!(" ({HTTPS} is taken here: choose another)") } else { String::new() };
            notes.push(format!(
                "Service {name} sends to {shown} of this pod: for OpenIM add a port with targetPort: {CONTAINER}{taken}"
            ));
        }
        let elsewhere: BTreeSet<_> = targets.into_iter().filter(|target| !guard.contains(target)).collect();
        let agrees = elsewhere.contains(&Target::Number(upstream.port.into()));
        if upstream.known_by != KnownBy::Setting && !elsewhere.is_empty() && !agrees {
            notes.push(format!(
                "warning: callbacks go to port {} of the app, but Service {name} sends to {}: set the annotation \
                 {PREFIX}upstream-port",
                upstream.port,
                self::shown(&elsewhere)
            ));
        }
        notes
    }
}

fn shown(targets: &BTreeSet<Target>) -> String {
    targets.iter().map(Target::to_string).collect::<Vec<_>>().join(", ")
}
