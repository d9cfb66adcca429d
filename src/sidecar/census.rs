//! What a pod is to the controller: guarded, or why not, and what replaces it by one that is.
//!
//! Anybody can create a pod with any labels and any owner. So a label alone makes no pod guarded, and a name is put into a command only
//! if Kubernetes allows it.

#[cfg(test)]
mod tests;

use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::annotations::{Annotation, INJECT, Kind, PREFIX, label_pointer};
use super::{BY_POLICY, CONTAINER, INJECTED, Injection, Installation, Problem, Reason, Request, inject, pod};
use crate::policy::timestamp;

/// What is known about the pods of a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'c> {
    /// The name of the namespace.
    pub namespace: &'c str,
    /// Its metadata: its label, and settings for all its pods.
    pub metadata: &'c Value,
    /// When its label became `enabled`, in seconds since 1970: [`label_time`]. `None`: unknown, and no pod is older.
    pub labeled_since: Option<i64>,
    /// The installation that serves it.
    pub installation: &'c Installation,
    /// The value of the label `callback-guard.io/injected` that the policy in the cluster writes now. `None`: unknown, and no pod
    /// is stale.
    pub current: Option<&'c str>,
}

/// What a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodState {
    /// It has the sidecar.
    ///
    /// The two flaws are independent, so count each. An order of them would hide one: an upgrade makes every pod stale at once,
    /// which must not look as if `in_front` had been corrected, and if another injector is always in front, no pod would ever
    /// be stale. Report `stale` first: a restart corrects it, while `in_front` takes a change to the other injector.
    Guarded {
        /// The admission policy that injected it has changed since.
        stale: bool,
        /// The init container in front of the sidecar, which does not serve until that one has finished. May be empty.
        in_front: Option<String>,
    },
    /// It asked, nothing in the pod is in the way, and it has no sidecar.
    Naked,
    /// The same, but it is older than the label of its namespace: no alarm, because it gets the sidecar when it is restarted.
    NotRestarted,
    /// It asked, and this is in the way: of several reasons the one that the admission policy names first.
    Skipped(Reason),
    /// It did not ask, or it is terminating or has terminated.
    NotOurs,
}

/// What the pod is. It has to come from this namespace.
pub fn state(pod: &Value, surroundings: &Surroundings<'_>) -> PodState {
    if !is_live(pod) {
        return PodState::NotOurs;
    }
    if let Some(label) = injected_label(pod) {
        return guarded(pod, label, surroundings.current);
    }
    let request = Request {
        namespace: Some(surroundings.namespace),
        namespace_metadata: Some(surroundings.metadata),
        by_name: false,
    };
    let in_the_way = match inject(pod, &request, surroundings.installation) {
        Injection::Patch { .. } => None,
        Injection::Skipped(reason) => Some(reason),
        Injection::Refused(problems) => first(&problems),
    };
    match in_the_way {
        Some(Reason::NotAsked | Reason::Disabled) => PodState::NotOurs,
        Some(reason) => PodState::Skipped(reason),
        None if is_older_than_label(pod, surroundings.labeled_since) => PodState::NotRestarted,
        None => PodState::Naked,
    }
}

/// Whether the pod runs or is about to. The API server sets the phase of a new pod to Pending, so one without is new.
fn is_live(pod: &Value) -> bool {
    let set = |pointer: &str| pod.pointer(pointer).filter(|value| !value.is_null());
    let phase = set("/status/phase");
    let runs = phase.is_none_or(|phase| matches!(phase.as_str(), Some("Pending" | "Running")));
    runs && set("/metadata/deletionTimestamp").is_none()
}

/// The label of an injected pod, if the sidecar is there too: anybody can set a label, and copies of a pod have it.
fn injected_label(pod: &Value) -> Option<&str> {
    let label = pod.pointer(&label_pointer(INJECTED))?.as_str()?;
    // Without the policy it would run once and guard nothing.
    let is_sidecar = |container: &Value| {
        let policy = container.get("restartPolicy").and_then(Value::as_str);
        pod::name(container) == CONTAINER && policy == Some("Always")
    };
    pod::containers(pod, &pod::INIT).any(is_sidecar).then_some(label)
}

fn guarded(pod: &Value, label: &str, current: Option<&str>) -> PodState {
    let injected_by = pod.pointer(&Annotation::pointer("injected-by")).and_then(Value::as_str);
    // The label that `inject -f` writes has another hash by design.
    let stale = injected_by == Some(BY_POLICY) && current.is_some_and(|current| current != label);
    let first = pod::containers(pod, &pod::INIT).next().map_or(CONTAINER, pod::name);
    PodState::Guarded { stale, in_front: (first != CONTAINER).then(|| first.to_owned()) }
}

/// Of several reasons the one that the admission policy names first.
fn first(problems: &[Problem]) -> Option<Reason> {
    Reason::ALL.into_iter().find(|reason| problems.iter().any(|problem| problem.reason == *reason))
}

/// Whether the pod was created before its namespace asked, and does not ask itself. Both times are whole seconds. A pod of the same
/// second counts as newer: if it is older, the alarm stops with the restart that it needs anyway.
fn is_older_than_label(pod: &Value, labeled_since: Option<i64>) -> bool {
    let asks_itself = pod.pointer(&label_pointer(INJECT)).is_some();
    let created = pod.pointer("/metadata/creationTimestamp").and_then(seconds);
    !asks_itself && created.zip(labeled_since).is_some_and(|(created, since)| created < since)
}

/// A timestamp in seconds since 1970.
fn seconds(text: &Value) -> Option<i64> {
    let time = timestamp::parse(text.as_str()?)?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(time.as_secs()).ok()
}

/// When the label of a namespace became `enabled`, by its metadata, in seconds since 1970: the earliest time of a field manager
/// that owns the label. `None` if it is not enabled, or if the managed fields do not say.
///
/// The time may be later than the label: Kubernetes renews it when the same manager changes another field that it owns. Pods
/// created in between then look older than the label, and are not reported as naked. So while the label stays enabled, keep the
/// earliest time that this has returned.
///
/// If the managed fields do not say, every pod counts as newer than the label: some are then reported although they only wait for a
/// restart, which corrects both. The other way round, nobody would report pods that have no guard.
pub fn label_time(metadata: &Value) -> Option<i64> {
    let key = format!("{PREFIX}{INJECT}");
    if metadata.get("labels")?.get(&key)?.as_str() != Some("enabled") {
        return None;
    }
    let field = format!("f:{key}");
    let owns = |entry: &&Value| {
        let labels = entry.pointer("/fieldsV1/f:metadata/f:labels");
        labels.is_some_and(|labels| labels.get(&field).is_some())
    };
    let entries = metadata.get("managedFields")?.as_array()?.iter();
    entries.filter(owns).filter_map(|entry| seconds(entry.get("time")?)).min()
}

/// What creates a pod again: the object to write Events about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `apps/v1`
    pub api_version: String,
    /// `Deployment`
    pub kind: String,
    /// Its name, in the namespace of the pod.
    pub name: String,
    /// Its UID. Unknown for a Deployment, because its pods name only their ReplicaSet.
    pub uid: Option<String>,
}

/// The controller of the pod; for the ReplicaSet of a Deployment, the Deployment. The pod itself if it has none, or one that cannot exist.
///
/// A Job stays the Job, because the pod does not say whether a CronJob created it.
pub fn owner(pod: &Value) -> Owner {
    let references = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let is_controller = |reference: &&Value| reference.get("controller") == Some(&Value::Bool(true));
    let controller = references.into_iter().flatten().find(is_controller).and_then(Owner::of_reference);
    let Some(controller) = controller else {
        let metadata = |key: &str| pod.get("metadata").and_then(|metadata| text(metadata, key));
        return Owner {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: metadata("name").unwrap_or_default().to_owned(),
            uid: metadata("uid").filter(is_uid).map(str::to_owned),
        };
    };
    let hash = pod.pointer("/metadata/labels/pod-template-hash").and_then(Value::as_str);
    controller.deployment(hash.unwrap_or_default()).unwrap_or(controller)
}

/// A member of an object, if it is a text that is not empty.
fn text<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Whether an object can have this name. Such a name means nothing to a shell.
fn is_name(text: &str) -> bool {
    Kind::Name.check(text).is_ok()
}

/// Whether a text may be a UID: Kubernetes does not bound that of a reference.
fn is_uid(text: &&str) -> bool {
    text.len() <= 64
}

impl Owner {
    /// `None` if there can be no such object: Kubernetes does not check what a reference says.
    fn of_reference(reference: &Value) -> Option<Owner> {
        let [api_version, kind, name] = ["apiVersion", "kind", "name"].map(|key| text(reference, key));
        let (api_version, kind, name) = (api_version?, kind?, name?);
        let is_kind = kind.len() <= 63 && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let is_version = api_version.split('/').count() <= 2 && api_version.split('/').all(is_name);
        (is_kind && is_version && is_name(name)).then(|| Owner {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: text(reference, "uid").filter(is_uid).map(str::to_owned),
        })
    }

    /// Group and kind: kinds of other groups bear the same names.
    fn group_and_kind(&self) -> (&str, &str) {
        (self.api_version.split_once('/').map_or("", |(group, _)| group), &self.kind)
    }

    /// The Deployment whose ReplicaSet this is, by the label `pod-template-hash` of its pods.
    fn deployment(&self, hash: &str) -> Option<Owner> {
        let of_deployment = self.group_and_kind() == ("apps", "ReplicaSet") && !hash.is_empty();
        let name = self.name.strip_suffix(hash)?.strip_suffix('-')?;
        (of_deployment && is_name(name)).then(|| Owner {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            uid: None,
        })
    }

    /// What replaces its pods by new ones, as a command where one will do; `pod` is the name of one of them. `None` if that is not
    /// known for its kind, or if a name in the command is none that Kubernetes allows.
    pub fn remedy(&self, namespace: &str, pod: &str) -> Option<String> {
        let kubectl = |name: &str, rest: String| {
            let are_names = is_name(name) && Kind::Namespace.check(namespace).is_ok();
            are_names.then(|| format!("kubectl -n {namespace} {rest}"))
        };
        let name = &self.name;
        match self.group_and_kind() {
            ("apps", kind @ ("Deployment" | "StatefulSet" | "DaemonSet")) => {
                kubectl(name, format!("rollout restart {}/{name}", kind.to_ascii_lowercase()))
            }
            ("apps", "ReplicaSet") | ("", "ReplicationController") => {
                let command = kubectl(pod, format!("delete pod {pod}"))?;
                Some(format!("delete its pods one at a time: {command}"))
            }
            ("batch", "Job") | ("", "Pod") => Some("delete it and create it again".to_owned()),
            _ => None,
        }
    }
}
