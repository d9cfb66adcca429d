//! The injection without a server: admission policies that the API server evaluates itself, in CEL.
//!
//! A `MutatingAdmissionPolicy` adds the sidecar. `ValidatingAdmissionPolicy` objects, which only warn, say why a pod that
//! asked has none. Everything is generated from what [`super::inject`] uses: the table of annotations, the templates of
//! the container and its volumes, the table of reasons. What cannot be shared, the facts about a pod, is in
//! `variables.rs` in the same order as in [`super::inject`], and tests compare both on a real API server.
//!
//! An expression that fails while it makes a patch refuses the pod, even under `failurePolicy: Ignore`. So every text is
//! checked before it is converted, and the mutation is empty if any check fails.

use aws_lc_rs::digest;
use serde_json::{Value, json};

use super::annotations::PREFIX;
use super::{Installation, SYSTEM_NAMESPACES};
use variables::{Subject, Variables};

mod mutation;
pub mod rights;
pub mod trust;
mod validation;
mod variables;

/// The API of all these objects; in force by default since Kubernetes 1.36.
const API: &str = "admissionregistration.k8s.io/v1";

/// The name of the objects, alone or as a prefix.
const NAME: &str = "callback-guard";

/// The name of the `MutatingAdmissionPolicy` that adds the sidecar. Its label `callback-guard.io/injected` has the value that it writes
/// into the same label of pods: a pod that it injected and that has another value is not current.
pub const POLICY: &str = NAME;

/// The label that asks for trust in the guard's authority, behind [`PREFIX`].
pub const TRUST: &str = "trust";

/// What an installation fills into the objects. Until then a marker is in its place: a text that no object has
/// otherwise, so that the same objects can be filled by this program or by a chart.
pub mod markers {
    /// A map of texts: the settings of the installation.
    pub const SETTINGS: &str = "@settings@";
    /// A list of texts: the namespaces that are served.
    pub const NAMESPACES: &str = "@namespaces@";
    /// A list of texts: the Secrets for pulling the image.
    pub const PULL_SECRETS: &str = "@pull-secrets@";
    /// The namespace of the installation, inside a literal of CEL or a list.
    pub const OWN_NAMESPACE: &str = "@own-namespace@";
    /// The hash of what a pod gets, inside a literal of CEL.
    pub const HASH: &str = "@hash@";
    /// One of the namespaces that are served.
    pub const NAMESPACE: &str = "@namespace@";
    /// The ConfigMap with the policy.
    pub const POLICY_CONFIGMAP: &str = "@policy-configmap@";
    /// The Secret with the certificate.
    pub const TLS_SECRET: &str = "@tls-secret@";
    /// In place of a list: the names of the namespaces that are served.
    pub const NAMESPACE_LIST: &str = "@namespace-list@";
}

/// The objects that are there once, in the order in which they are applied, with [`markers`].
pub fn cluster_objects() -> Vec<Value> {
    let mut objects = mutation::objects().to_vec();
    objects.extend(validation::objects());
    objects.extend(trust::objects());
    objects
}

/// The objects of each namespace that is served, with [`markers`]: its pods may watch the ConfigMap with the policy.
pub fn namespace_objects() -> [Value; 2] {
    let metadata = json!({"name": NAME, "namespace": markers::NAMESPACE, "labels": labels()});
    let rules = json!([{
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [markers::POLICY_CONFIGMAP],
        "verbs": ["get", "list", "watch"],
    }]);
    let subject = json!({
        "apiGroup": rights::API, "kind": "Group", "name": format!("system:serviceaccounts:{}", markers::NAMESPACE),
    });
    rights::role(metadata, rules, subject)
}

/// Every object of an installation.
pub fn objects(installation: &Installation) -> Vec<Value> {
    let none = Vec::new();
    let namespaces = installation.namespaces.as_ref().unwrap_or(&none);
    let (settings, secrets) = literals(installation);
    let configmap = installation.settings.get("policy-configmap").map_or("", String::as_str);
    let fill = |object: Value, namespace: &str| {
        filled(
            object,
            &[
                (markers::SETTINGS, &settings),
                (markers::NAMESPACES, &json!(namespaces).to_string()),
                (markers::PULL_SECRETS, &secrets),
                (markers::OWN_NAMESPACE, installation.own_namespace.as_deref().unwrap_or_default()),
                (markers::HASH, &hash(installation)),
                (markers::NAMESPACE, namespace),
                (markers::POLICY_CONFIGMAP, configmap),
            ],
        )
    };
    let mut objects: Vec<_> = cluster_objects().into_iter().map(|object| fill(object, "")).collect();
    for namespace in namespaces {
        objects.extend(namespace_objects().into_iter().map(|object| fill(object, namespace)));
    }
    objects
}

/// The settings and the pull secrets as CEL has them, which is JSON.
fn literals(installation: &Installation) -> (String, String) {
    (json!(installation.settings).to_string(), json!(installation.image_pull_secrets).to_string())
}

/// The hash in the label of each pod that this installation injects, over all that decides what a pod gets. The
/// namespaces are left out: one more makes no pod of another stale.
pub fn hash(installation: &Installation) -> String {
    let (settings, secrets) = literals(installation);
    sha256(&[&template_hash(), &settings, &secrets])
}

/// The hash of the same without the settings.
pub fn template_hash() -> String {
    sha256(&[&mutation::text()])
}

/// The first 16 digits of a SHA-256 over texts, one a line: a chart computes the same with `sha256sum | trunc 16`.
pub(crate) fn sha256(texts: &[&str]) -> String {
    let digest = digest::digest(&digest::SHA256, texts.join("\n").as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The object with texts in place of markers. An item of a list whose text is empty is left out.
fn filled(object: Value, texts: &[(&str, &str)]) -> Value {
    match object {
        Value::String(text) => Value::String(replaced(&text, texts)),
        Value::Array(items) => {
            let is_empty_marker =
                |item: &Value| texts.iter().any(|(marker, with)| item == marker && with.is_empty());
            items.into_iter().filter(|item| !is_empty_marker(item)).map(|item| filled(item, texts)).collect()
        }
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, filled(value, texts))).collect(),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_)) => other,
    }
}

/// The text with texts in place of markers. What is put in is not searched: the reference of an image may contain a marker.
fn replaced(text: &str, texts: &[(&str, &str)]) -> String {
    let (mut rest, mut replaced) = (text, String::new());
    let next = |rest: &str| {
        let found = texts.iter().filter_map(|(marker, with)| Some((rest.find(marker)?, *marker, *with)));
        found.min_by_key(|(at, ..)| *at)
    };
    while let Some((at, marker, with)) = next(rest) {
        replaced.push_str(&rest[..at]);
        replaced.push_str(with);
        rest = &rest[at + marker.len()..];
    }
    replaced + rest
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/version": super::label_version()})
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "labels": labels()})
}

/// A rule for matching: these resources of a group, at these operations.
fn rule(group: &str, resources: &[&str], operations: &[&str]) -> Value {
    json!({
        "apiGroups": [group], "apiVersions": ["v1"], "operations": operations, "resources": resources, "scope": "*",
    })
}

/// What a policy looks at. The defaults of the API server are written out, so that `kubectl diff` has nothing to show.
fn constraints(rules: Vec<Value>, namespaces: Value) -> Value {
    json!({
        "matchPolicy": "Equivalent", "namespaceSelector": namespaces, "objectSelector": {}, "resourceRules": rules,
    })
}

/// A binding of a policy to the objects with these labels, in the namespaces with those.
fn binding(kind: &str, policy: &str, name: &str, namespaces: Value, objects: Value) -> Value {
    let mut binding = json!({
        "apiVersion": API, "kind": format!("{kind}Binding"), "metadata": metadata(name),
        "spec": {
            "policyName": policy,
            "matchResources": {
                "matchPolicy": "Equivalent", "namespaceSelector": namespaces, "objectSelector": objects,
            },
        },
    });
    if kind == VALIDATING {
        binding["spec"]["validationActions"] = json!(["Warn", "Audit"]);
    }
    binding
}

/// The two bindings of a policy to pods that ask by a label of ours: with these labels of their own, or without the label in a
/// namespace that has it.
fn bindings(kind: &str, policy: &str, label: &str, pods: Value) -> [Value; 2] {
    let binding = |scope: &str, namespaces, objects| {
        binding(kind, policy, &format!("{policy}-{scope}"), namespaces, objects)
    };
    [binding("pod", json!({}), pods), binding("namespace", enabled(label), without(label))]
}

/// A policy that changes pods when they are created, and its two bindings. If it fails, the pod is created as it was: a pod
/// without a change is better than no pod.
fn mutating(name: &str, label: &str, variables: &Variables, patch: &str) -> [Value; 3] {
    let policy = json!({
        "apiVersion": API, "kind": MUTATING, "metadata": metadata(name),
        "spec": {
            "failurePolicy": "Ignore",
            "reinvocationPolicy": "IfNeeded",
            "matchConstraints": constraints(vec![rule("", &["pods"], &["CREATE"])], all_but_system()),
            "variables": variables.json(),
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    });
    let [of_pods, of_namespaces] = bindings(MUTATING, name, label, enabled(label));
    [policy, of_pods, of_namespaces]
}

/// The kind of a policy that changes objects.
pub const MUTATING: &str = "MutatingAdmissionPolicy";
const VALIDATING: &str = "ValidatingAdmissionPolicy";

/// Selects what has the label `name` of ours with the value `enabled`.
fn enabled(name: &str) -> Value {
    json!({"matchLabels": {format!("{PREFIX}{name}"): "enabled"}})
}

/// Selects what does not have that label.
fn without(name: &str) -> Value {
    json!({"matchExpressions": [{"key": format!("{PREFIX}{name}"), "operator": "DoesNotExist"}]})
}

/// Selects what has that label with a value other than these.
fn other_than(name: &str, values: &[&str]) -> Value {
    let key = format!("{PREFIX}{name}");
    json!({"matchExpressions": [
        {"key": key, "operator": "Exists"},
        {"key": key, "operator": "NotIn", "values": values},
    ]})
}

/// Every namespace but those of Kubernetes itself and our own.
fn all_but_system() -> Value {
    let names: Vec<_> = SYSTEM_NAMESPACES.into_iter().chain([markers::OWN_NAMESPACE]).collect();
    json!({"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": names}
    ]})
}
