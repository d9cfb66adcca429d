//! The policies that warn. They refuse nothing.

use serde_json::{Value, json};

use super::super::annotations::{INJECT, PREFIX};
use super::super::reason::{Notice, Reason};
use super::super::template::quoted;
use super::super::{BY_POLICY, CONTAINER, SYSTEM_NAMESPACES};
use super::variables::{invalid_label, notice};
use super::{API, NAME, Subject, TRUST, VALIDATING, Variables, markers};

/// Longest message, in characters. The API server shows up to 5 KiB, of up to 4 bytes a character.
const MESSAGE: usize = 1_000;

/// The policies, each with its bindings.
pub(super) fn objects() -> Vec<Value> {
    [pods(), namespaces(), workloads()].concat()
}

/// A validation that warns with the texts of a variable, if there are any.
fn warns(variable: &str, prefix: &str) -> Value {
    let text = format!("{} + variables.{variable}.join('; ')", quoted(prefix));
    json!({
        "expression": format!("variables.{variable}.size() == 0"),
        // The API server falls back to it if the expression below fails.
        "message": "callback-guard: see docs/annotations.md",
        "messageExpression": format!("({text}).size() > {MESSAGE} ? ({text}).substring(0, {MESSAGE}) + '...' : {text}"),
    })
}

fn policy(name: &str, rules: Vec<Value>, variables: Variables, validations: Vec<Value>) -> Value {
    let texts =
        validations.iter().flat_map(|one| ["expression", "messageExpression"].map(|key| one[key].as_str()));
    let variables = variables.used_by(&texts.flatten().collect::<Vec<_>>());
    json!({
        "apiVersion": API, "kind": VALIDATING, "metadata": super::metadata(name),
        "spec": {
            "failurePolicy": "Ignore",
            "matchConstraints": super::constraints(rules, json!({})),
            "variables": variables.json(),
            "validations": validations,
        },
    })
}

/// Why a pod that asked has no sidecar, or what is worth a look at one that has. It sees the final state of a pod.
fn pods() -> Vec<Value> {
    let mut variables = Variables::of(Subject::Pod);
    let has_sidecar = format!("variables.inits.exists(c, c.name == '{CONTAINER}')");
    let by_policy = format!(
        "variables.podAnnotations.exists(k, k == '{PREFIX}injected-by' && variables.podAnnotations[k] == '{BY_POLICY}')"
    );
    variables.add("has-sidecar", has_sidecar);
    variables.add(
        "missing",
        format!(
            "variables.hasSidecar ? [] : variables.reasons.size() > 0 ? variables.reasons : [{}]",
            quoted(&Notice::NotApplied.words().to_string())
        ),
    );
    variables.add(
        "notices",
        format!(
            "!variables.hasSidecar ? [] : {} + {}",
            notice(&format!("variables.inits[0].name != '{CONTAINER}'"), Notice::NotFirst),
            notice(&format!("{by_policy} && variables.upstreamIsGuess"), Notice::UpstreamGuessed)
        ),
    );
    let rules = vec![super::rule("", &["pods"], &["CREATE"])];
    let validations = vec![warns("missing", "no sidecar: "), warns("notices", "")];
    let asking = super::other_than(INJECT, &["disabled"]);
    let [of_pods, of_namespaces] = super::bindings(VALIDATING, NAME, INJECT, asking);
    vec![policy(NAME, rules, variables, validations), of_pods, of_namespaces]
}

/// What is wrong with the labels and settings of a namespace.
fn namespaces() -> Vec<Value> {
    let name = format!("{NAME}-namespaces");
    let mut variables = Variables::of(Subject::Namespace);
    let key = quoted(&format!("{PREFIX}{INJECT}"));
    let asks = format!(
        "has(object.metadata.labels) && {key} in object.metadata.labels && object.metadata.labels[{key}] == 'enabled'"
    );
    let reasons = [
        (Reason::SystemNamespace, format!("object.metadata.name in {}", json!(SYSTEM_NAMESPACES))),
        (Reason::OwnNamespace, format!("object.metadata.name == '{}'", markers::OWN_NAMESPACE)),
        (Reason::NamespaceNotListed, "!(object.metadata.name in variables.namespaces)".to_owned()),
    ];
    // The first one says enough.
    let served = reasons.iter().rev().fold("[]".to_owned(), |rest, (reason, holds)| {
        format!("{holds} ? [{}] : {rest}", quoted(&reason.words().to_string()))
    });
    variables.add("served", format!("{asks} ? ({served}) : []"));
    variables.add(
        "words",
        format!(
            "{} + {} + variables.served + variables.reasons",
            invalid_label("object", INJECT),
            invalid_label("object", TRUST)
        ),
    );
    let rules = vec![super::rule("", &["namespaces"], &["CREATE", "UPDATE"])];
    vec![
        policy(&name, rules, variables, vec![warns("words", "no sidecars in this namespace as it is: ")]),
        super::binding(VALIDATING, &name, &name, json!({}), json!({})),
    ]
}

/// What stops the guard in a workload: warnings about its pods reach the log of a controller and no person.
fn workloads() -> Vec<Value> {
    let name = format!("{NAME}-workloads");
    let mut variables = Variables::of(Subject::Workload);
    let key = quoted(&format!("{PREFIX}{INJECT}"));
    let within = |map: &str, of: &str| {
        format!("has({of}.metadata) && has({of}.metadata.{map}) && {key} in {of}.metadata.{map}")
    };
    let own_label = within("labels", "object");
    let template_label = within("labels", "variables.template");
    variables.add("labeled", template_label);
    let namespace_asks = format!(
        "has(namespaceObject.metadata.labels) && {key} in namespaceObject.metadata.labels && \
         namespaceObject.metadata.labels[{key}] == 'enabled'"
    );
    variables.add(
        "asks",
        format!(
            "variables.labeled ? variables.template.metadata.labels[{key}] != 'disabled' : ({namespace_asks})"
        ),
    );
    variables.add("has-sidecar", format!("variables.inits.exists(c, c.name == '{CONTAINER}')"));
    variables.add(
        "words",
        format!(
            "{} + {} + (variables.asks && !variables.hasSidecar ? variables.reasons : [])",
            notice(&format!("{own_label} && !variables.labeled"), Notice::LabelOnWorkload),
            notice(
                &format!(
                    "({}) || (!variables.asks && {key} in variables.podAnnotations)",
                    within("annotations", "object")
                ),
                Notice::LabelAsAnnotation
            ),
        ),
    );
    let operations = ["CREATE", "UPDATE"];
    let rules = vec![
        super::rule("apps", &["deployments", "statefulsets", "daemonsets"], &operations),
        super::rule("batch", &["jobs", "cronjobs"], &operations),
    ];
    vec![
        policy(&name, rules, variables, vec![warns("words", "no sidecar in its pods: ")]),
        super::binding(VALIDATING, &name, &name, json!({}), json!({})),
    ]
}
