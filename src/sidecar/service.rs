//! Services beside a pod: whether they lead to the sidecar, and whether they contradict where the app is called.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use super::annotations::PREFIX;
use super::{CONTAINER, KnownBy, PORT_NAMES, Upstream, pod};

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
        // An ExternalName leads elsewhere, and a headless Service maps no ports.
        let leads_here =
            text("/spec/type") != Some("ExternalName") && text("/spec/clusterIP") != Some("None");
        if text("/kind") != Some("Service") || text("/apiVersion") != Some("v1") || !leads_here {
            return None;
        }
        let ports = object.pointer("/spec/ports").and_then(Value::as_array);
        let ports = ports.into_iter().flatten().filter_map(|port| {
            let number = port.get("port").and_then(Value::as_u64).filter(|_| pod::is_tcp(port))?;
            let of_number = |target: u64| Target::Number(if target == 0 { number } else { target });
            let target = match port.get("targetPort") {
                Some(Value::Number(target)) => of_number(target.as_u64()?),
                Some(Value::String(name)) => {
                    name.parse().map_or_else(|_| Target::Name(name.clone()), of_number)
                }
                // Without one it is the Service's own port.
                _ => of_number(0),
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
}

/// What to say about the Services beside a pod that got the sidecar. `ports` are those of the sidecar: for callbacks, and
/// for its admin pages.
pub fn notes(
    services: &[Service],
    namespace: Option<&str>,
    pod: &Value,
    upstream: Upstream,
    ports: [u32; 2],
) -> Vec<String> {
    let selecting: Vec<_> = services.iter().filter(|service| service.selects(namespace, pod)).collect();
    let targets: BTreeSet<_> = selecting.iter().flat_map(|service| service.targets(pod)).collect();
    if targets.is_empty() {
        return Vec::new();
    }
    let names: Vec<_> = selecting.iter().map(|service| service.name.as_str()).collect();
    let verb = |one: &str, many: &str| {
        if let [name] = names.as_slice() {
            format!("Service {name} {one}")
        } else {
            format!("Services {} {many}", names.join(", "))
        }
    };
    let mut notes = Vec::new();
    let of = |port: usize| [Target::Name(PORT_NAMES[port].to_owned()), Target::Number(ports[port].into())];
    if !of(0).iter().any(|guard| targets.contains(guard)) {
        let taken = selecting.iter().flat_map(|service| &service.ports).any(|(port, _)| *port == HTTPS);
        let taken = if taken && names.len() == 1 {
            format!(" ({HTTPS} is taken here: choose another)")
        } else {
            String::new()
        };
        notes.push(format!(
            "{} to {} of this pod: for OpenIM add a port with targetPort: {CONTAINER}{taken}",
            verb("sends", "send"),
            shown(&targets)
        ));
    }
    let ours = [of(0), of(1)].concat();
    let elsewhere: BTreeSet<_> = targets.into_iter().filter(|target| !ours.contains(target)).collect();
    let agrees = elsewhere.contains(&Target::Number(upstream.port.into()));
    if upstream.known_by != KnownBy::Setting && !elsewhere.is_empty() && !agrees {
        notes.push(format!(
            "warning: callbacks go to port {} of the app, but {} to {}: set the annotation {PREFIX}upstream-port",
            upstream.port,
            verb("sends", "send"),
            shown(&elsewhere)
        ));
    }
    notes
}

fn shown(targets: &BTreeSet<Target>) -> String {
    targets.iter().map(Target::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, ports: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app": "x"}, "ports": ports},
        })
    }

    fn said(services: &[Value], known_by: KnownBy) -> Vec<String> {
        let pod = json!({
            "metadata": {"labels": {"app": "x"}},
            "spec": {"containers": [{"name": "app", "ports": [{"name": "web", "containerPort": 3000}]}]},
        });
        let services: Vec<_> = services.iter().filter_map(Service::of).collect();
        notes(&services, None, &pod, Upstream { port: 3000, known_by }, [18443, 19090])
    }

    #[test]
    fn a_service_that_leads_to_the_guard_and_to_the_app_needs_no_word() {
        for ports in [
            json!([{"port": 443, "targetPort": "callback-guard"}]),
            json!([{"port": 443, "targetPort": 18443}, {"port": 80, "targetPort": "web"}]),
            json!([{"port": 443, "targetPort": "callback-guard"}, {"port": 3000, "targetPort": 0}]),
            json!([{"port": 443, "targetPort": "callback-guard"}, {"port": 1, "targetPort": "3000"}]),
            json!([{"port": 443, "targetPort": "callback-guard"}, {"port": 9090, "targetPort": "guard-admin"}]),
            json!([{"port": 443, "targetPort": "callback-guard"}, {"port": 53, "protocol": "UDP"}]),
            json!([]),
        ] {
            assert_eq!(said(&[service("app", ports.clone())], KnownBy::Pod), [""; 0], "{ports}");
        }
        let apart = [
            service("app", json!([{"port": 80, "targetPort": 3000}])),
            service("callbacks", json!([{"port": 443, "targetPort": "callback-guard"}])),
            service("metrics", json!([{"port": 9100}])),
        ];
        assert_eq!(said(&apart, KnownBy::Pod), [""; 0], "together they lead where they have to");
    }

    #[test]
    fn a_service_around_the_guard_or_to_another_port_is_noted() {
        let one = |ports| said(&[service("app", ports)], KnownBy::Pod);
        assert_eq!(
            one(json!([{"port": 443, "targetPort": "web", "protocol": ""}])),
            [
                "Service app sends to 3000 of this pod: for OpenIM add a port with targetPort: callback-guard (443 is taken \
                 here: choose another)"
            ]
        );
        let both = one(json!([{"port": 80, "targetPort": 4000}]));
        assert_eq!(both.len(), 2, "{both:?}");
        assert_eq!(
            both[1],
            "warning: callbacks go to port 3000 of the app, but Service app sends to 4000: set the annotation \
             callback-guard.io/upstream-port"
        );
        let set = said(&[service("app", json!([{"port": 80, "targetPort": 4000}]))], KnownBy::Setting);
        assert_eq!(set.len(), 1, "whoever set the port knows: {set:?}");
        let two = ["a", "b"].map(|name| service(name, json!([{"port": 443, "targetPort": 3000}])));
        let two = said(&two, KnownBy::Pod);
        assert_eq!(
            two,
            ["Services a, b send to 3000 of this pod: for OpenIM add a port with targetPort: callback-guard"]
        );
    }

    #[test]
    fn a_service_that_does_not_lead_to_the_pod_is_none_of_ours() {
        let with = |pointer: &str, value: Value| {
            let mut service = service("app", json!([{"port": 80}]));
            let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
            service.pointer_mut(parent).expect("the place above it")[last] = value;
            service
        };
        for service in [
            with("/spec/type", json!("ExternalName")),
            with("/spec/clusterIP", json!("None")),
            with("/spec/selector", Value::Null),
            with("/spec/selector", json!({})),
            with("/spec/selector", json!({"app": "y"})),
            with("/spec/selector", json!({"app": "x", "more": "y"})),
            with("/metadata/namespace", json!("other")),
            with("/spec/ports", Value::Null),
            with("/apiVersion", json!("serving.example/v1")),
        ] {
            assert_eq!(said(std::slice::from_ref(&service), KnownBy::Pod), [""; 0], "{service}");
        }
    }
}
