//! The policy that adds the sidecar.

use serde_json::Value;

use super::super::annotations::{INJECT, PREFIX};
use super::super::template::{quoted, variable};
use super::super::{BY_POLICY, INJECTED, container};
use super::{POLICY, Subject, Variables, markers};

/// The expression of the patch, with markers for what an installation fills in.
fn patch() -> String {
    let record =
        |name: &str| format!("'/metadata/annotations/' + jsonpatch.escapeKey({})", quoted(&key(name)));
    let default_container = "kubectl.kubernetes.io/default-container";
    let hook = "Object.spec.containers.lifecycle.preStop";
    let sleep = format!("{hook}{{sleep: {hook}.sleep{{seconds: variables.sleepSeconds}}}}");
    let container_path = "'/spec/containers/' + string(i) + '/lifecycle'";
    let mut steps = vec![
        format!(
            "(has(object.metadata.annotations) ? [] : [{}])",
            add("'/metadata/annotations'", &format!("{{{}: '{BY_POLICY}'}}", quoted(&key("injected-by"))))
        ),
        format!(
            "(has(object.metadata.labels) ? [] : [{}])",
            add("'/metadata/labels'", &format!("{{{}: {}}}", quoted(&key(INJECTED)), quoted(&label())))
        ),
        format!(
            "({key} in variables.podAnnotations ? [] : [{}])",
            add(
                &format!("'/metadata/annotations/' + jsonpatch.escapeKey('{default_container}')"),
                "string(variables.apps[0].name)"
            ),
            key = quoted(default_container),
        ),
        format!("(has(object.spec.initContainers) ? [] : [{}])", add("'/spec/initContainers'", "[]")),
        format!("(has(object.spec.volumes) ? [] : [{}])", add("'/spec/volumes'", "[]")),
        format!(
            "[{}]",
            add("'/spec/initContainers/0'", &container::container().cel("Object.spec.initContainers"))
        ),
    ];
    for volume in container::volumes() {
        let (condition, volume) = volume.condition();
        let step = format!("[{}]", add("'/spec/volumes/-'", &volume.cel("Object.spec.volumes")));
        steps.push(
            condition.map_or(step.clone(), |condition| format!("({} ? {step} : [])", variable(condition))),
        );
    }
    steps.extend([
        format!(
            "(variables.sleepSeconds == 0 ? [] : variables.apps.transformList(i, c, !(has(c.lifecycle) && \
             has(c.lifecycle.preStop)), has(c.lifecycle) ? {} : {}))",
            add(&format!("{container_path} + '/preStop'"), &sleep),
            add(container_path, &format!("Object.spec.containers.lifecycle{{preStop: {sleep}}}")),
        ),
        format!(
            "(variables.pullSecrets.size() == 0 || has(object.spec.imagePullSecrets) ? [] : [{}])",
            add("'/spec/imagePullSecrets'", "[]")
        ),
        format!(
            "variables.pullSecrets.filter(s, !has(object.spec.imagePullSecrets) || \
             !object.spec.imagePullSecrets.exists(k, has(k.name) && k.name == s)).map(s, {})",
            add("'/spec/imagePullSecrets/-'", "Object.spec.imagePullSecrets{name: s}")
        ),
        format!(
            "[{}, {}, {}, {}]",
            add(
                &format!("'/metadata/labels/' + jsonpatch.escapeKey({})", quoted(&key(INJECTED))),
                &quoted(&label())
            ),
            add(&record("injected-version"), &quoted(env!("CARGO_PKG_VERSION"))),
            add(&record("injected-hash"), &quoted(markers::HASH)),
            add(&record("injected-by"), &quoted(BY_POLICY)),
        ),
    ]);
    format!("variables.reasons.size() > 0 ? [] : (\n{}\n)", steps.join("\n+ "))
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The value of the label that marks a pod with a sidecar.
fn label() -> String {
    format!("{}-{}", super::super::label_version(), markers::HASH)
}

/// A step of a patch. `path` and `value` are expressions.
pub(super) fn add(path: &str, value: &str) -> String {
    format!("JSONPatch{{op: 'add', path: {path}, value: {value}}}")
}

/// The variables of the policy.
fn variables() -> Variables {
    let mut variables = Variables::of(Subject::Pod);
    variables.add("pull-secrets", markers::PULL_SECRETS);
    variables.used_by(&[&patch()])
}

/// Everything of the policy that decides what a pod gets, but for the settings of the installation.
pub(super) fn text() -> String {
    variables().text() + &patch()
}

/// The policy and its two bindings: to pods that ask, and to pods of namespaces that ask. The policy has the label that it writes,
/// so that the current one can be read from the cluster.
pub(super) fn objects() -> [Value; 3] {
    let mut objects = super::mutating(POLICY, INJECT, &variables(), &patch());
    objects[0]["metadata"]["labels"][key(INJECTED)] = label().into();
    objects
}
