//! The rights of `callback-guard controller`: what it may do where, and nothing else.
//!
//! It reads by list and watch, of one object by its name where it can. It writes by server-side apply, which takes `patch`, and
//! `create` for an object that is not there yet; unlike other creations, this one can be limited to names.

use serde_json::{Value, json};

use super::super::Installation;
use super::trust::AUTHORITY;
use super::{POLICY, labels, markers};

/// The name of the controller's service account, of its Roles and bindings, and of its Lease.
pub const CONTROLLER: &str = "callback-guard-controller";

pub(super) const API: &str = "rbac.authorization.k8s.io";

/// Where the controller works, beside the namespaces that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its own namespace, with the Secret of its CA and its Lease.
    pub own_namespace: String,
    /// Namespaces of OpenIM, where it only publishes the certificate of its CA. One that is served has that already.
    pub trust_namespaces: Vec<String>,
    /// Those of the served namespaces whose TLS Secret is provided by something else.
    pub external_tls: Vec<String>,
}

/// What may be done to one kind of objects.
struct Right<'r> {
    /// The group of the API; empty for Kubernetes' first.
    group: &'static str,
    resource: &'static str,
    objects: Objects<'r>,
    verbs: &'static [&'static str],
}

enum Objects<'r> {
    All,
    Named(Vec<&'r str>),
}

const READ: &[&str] = &["list", "watch"];
const APPLY: &[&str] = &["create", "patch"];
const READ_AND_APPLY: &[&str] = &["list", "watch", "create", "patch"];

fn all(resource: &'static str, verbs: &'static [&'static str]) -> Right<'static> {
    Right { group: "", resource, objects: Objects::All, verbs }
}

fn named<'r>(
    group: &'static str,
    resource: &'static str,
    names: impl IntoIterator<Item = &'r str>,
    verbs: &'static [&'static str],
) -> Right<'r> {
    Right { group, resource, objects: Objects::Named(names.into_iter().collect()), verbs }
}

/// In its own namespace.
fn own() -> Vec<Right<'static>> {
    // Another replica takes the Lease over by an update, which fails if the Lease has changed.
    let lease = &["list", "watch", "create", "patch", "update"];
    vec![
        named("", "secrets", [AUTHORITY], READ_AND_APPLY),
        named("coordination.k8s.io", "leases", [CONTROLLER], lease),
        all("events", APPLY),
    ]
}

/// In a namespace that is served; `tls_secret` is the one that the controller issues, if it does.
fn served<'r>(tls_secret: Option<&'r str>, policy_configmap: &'r str) -> Vec<Right<'r>> {
    let secret = tls_secret.map(|name| named("", "secrets", [name], READ_AND_APPLY));
    let others = [
        // Policies are found by their label.
        all("configmaps", &["get", "list", "watch"]),
        named("", "configmaps", [AUTHORITY, policy_configmap], APPLY),
        all("pods", READ),
        all("events", APPLY),
    ];
    secret.into_iter().chain(others).collect()
}

/// In a namespace of OpenIM.
fn trusting() -> Vec<Right<'static>> {
    vec![named("", "configmaps", [AUTHORITY], READ_AND_APPLY)]
}

/// In the whole cluster.
fn cluster(served: &[String]) -> Vec<Right<'_>> {
    vec![
        named("", "namespaces", served.iter().map(String::as_str), READ),
        named("admissionregistration.k8s.io", "mutatingadmissionpolicies", [POLICY], READ),
    ]
}

/// The service account, its Roles and its ClusterRole, each with its binding.
pub fn objects(installation: &Installation, scope: &Scope) -> Vec<Value> {
    let none = Vec::new();
    let namespaces = installation.namespaces.as_ref().unwrap_or(&none);
    let setting = |name: &str| installation.settings.get(name).map_or("", String::as_str);
    let own_namespace = scope.own_namespace.as_str();
    let grant = |namespace: Option<&str>, rights: Vec<Right<'_>>| role_of(namespace, &rights, own_namespace);
    let mut objects = vec![account(own_namespace)];
    objects.extend(grant(Some(own_namespace), own()));
    for namespace in namespaces {
        let issues = !scope.external_tls.contains(namespace);
        let rights = served(issues.then(|| setting("tls-secret")), setting("policy-configmap"));
        objects.extend(grant(Some(namespace), rights));
    }
    for namespace in scope.trust_namespaces.iter().filter(|name| !namespaces.contains(name)) {
        objects.extend(grant(Some(namespace), trusting()));
    }
    objects.extend(grant(None, cluster(namespaces)));
    objects
}

/// With [`markers`], the Role and the binding of a namespace that is served; `issues`: the controller provides its TLS Secret.
pub fn of_served_namespace(issues: bool) -> [Value; 2] {
    let rights = served(issues.then_some(markers::TLS_SECRET), markers::POLICY_CONFIGMAP);
    role_of(Some(markers::NAMESPACE), &rights, markers::OWN_NAMESPACE)
}

/// With [`markers`], the Role and the binding of a namespace of OpenIM.
pub fn of_trusting_namespace() -> [Value; 2] {
    role_of(Some(markers::NAMESPACE), &trusting(), markers::OWN_NAMESPACE)
}

/// With [`markers`], what is there once: the service account, and its rights in its own namespace and in the whole cluster.
pub fn of_installation() -> Vec<Value> {
    let mut objects = vec![account(markers::OWN_NAMESPACE)];
    objects.extend(role_of(Some(markers::OWN_NAMESPACE), &own(), markers::OWN_NAMESPACE));
    let [mut role, binding] =
        role_of(None, &cluster(&[markers::NAMESPACE_LIST.to_owned()]), markers::OWN_NAMESPACE);
    role["rules"][0]["resourceNames"] = json!(markers::NAMESPACE_LIST);
    objects.extend([role, binding]);
    objects
}

fn account(own_namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(Some(own_namespace))})
}

/// The controller's rights in a namespace, or in the whole cluster.
fn role_of(namespace: Option<&str>, rights: &[Right<'_>], own_namespace: &str) -> [Value; 2] {
    let subject = json!({"kind": "ServiceAccount", "name": CONTROLLER, "namespace": own_namespace});
    role(metadata(namespace), rules(rights), subject)
}

fn metadata(namespace: Option<&str>) -> Value {
    match namespace {
        Some(namespace) => json!({"name": CONTROLLER, "namespace": namespace, "labels": labels()}),
        None => super::metadata(CONTROLLER),
    }
}

/// As a Role has them.
fn rules(rights: &[Right<'_>]) -> Value {
    let rule = |right: &Right<'_>| {
        let mut rule =
            json!({"apiGroups": [right.group], "resources": [right.resource], "verbs": right.verbs});
        match &right.objects {
            Objects::All => {}
            // Without a name the rule would hold for all objects.
            Objects::Named(names) if names.is_empty() => return None,
            Objects::Named(names) => rule["resourceNames"] = json!(names),
        }
        Some(rule)
    };
    rights.iter().filter_map(rule).collect()
}

/// A Role in the namespace of its metadata, or a ClusterRole if that has none, and its binding to a subject.
pub(super) fn role(metadata: Value, rules: Value, subject: Value) -> [Value; 2] {
    let version = format!("{API}/v1");
    let kind = if metadata["namespace"].is_null() { "ClusterRole" } else { "Role" };
    let role = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules});
    let binding = json!({
        "apiVersion": version, "kind": format!("{kind}Binding"), "metadata": metadata,
        "roleRef": {"apiGroup": API, "kind": kind, "name": metadata["name"]},
        "subjects": [subject],
    });
    [role, binding]
}
