//! The policies that warn. They refuse nothing.

use serde_json::{Value, json};

use super::super::annotations::{INJECT, PREFIX};
use super::super::reason::Notice;
use super::super::template::quoted;
use super::super::{BY_POLICY, CONTAINER};
use super::variables::{invalid_label, not_served, notice};
use super::{API, NAME, Subject, TRUST, VALIDATING, Variables};

/// Longest message, in characters. The API server shows up to 5 KiB, of up to 4 bytes a character.
const MESSAGE: usize = 1_000;

/// The policies, each with its bindings.
pub(super) fn objects() -> Vec<Value> {
    [pods(), namespaces(), workloads(), trust()].concat()
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

/// Whether there is a sidecar: another init container of that name would run once, and guard nothing.
fn has_sidecar() -> String {
    format!(
        "variables.inits.exists(c, c.name == '{CONTAINER}' && has(c.restartPolicy) && c.restartPolicy == 'Always')"
    )
}

/// Why a pod that asked has no sidecar, or what is worth a look at one that has. It sees the final state of a pod.
fn pods() -> Vec<Value> {
    let mut variables = Variables::of(Subject::Pod);
    let by_policy = format!(
        "variables.podAnnotations.exists(k, k == '{PREFIX}injected-by' && variables.podAnnotations[k] == '{BY_POLICY}')"
    );
    variables.add("has-sidecar", has_sidecar());
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
    variables.add("served", format!("{asks} ? ({}) : []", not_served("object.metadata.name")));
    variables
        .add("words", format!("{} + variables.served + variables.reasons", invalid_label("object", INJECT)));
    variables.add("trust", invalid_label("object", TRUST));
    let rules = vec![super::rule("", &["namespaces"], &["CREATE", "UPDATE"])];
    vec![
        policy(
            &name,
            rules,
            variables,
            vec![warns("words", "no sidecars in this namespace as it is: "), warns("trust", "")],
        ),
        super::binding(VALIDATING, &name, &name, json!({}), json!({})),
    ]
}

/// What stops the guard in a workload: warnings about its pods reach the log of a controller and no person.
fn workloads() -> Vec<Value> {
    let name = format!("{NAME}-workloads");
    let mut variables = Variables::of(Subject::Workload);
    let key = |name: &str| quoted(&format!("{PREFIX}{name}"));
    let has = |map: &str, of: &str| format!("has({of}.metadata) && has({of}.metadata.{map})");
    let within =
        |name: &str, map: &str, of: &str| format!("{} && {} in {of}.metadata.{map}", has(map, of), key(name));
    variables.add("labeled", within(INJECT, "labels", "variables.template"));
    let inject = key(INJECT);
    let namespace_asks = format!(
        "has(namespaceObject.metadata.labels) && {inject} in namespaceObject.metadata.labels && \
         namespaceObject.metadata.labels[{inject}] == 'enabled'"
    );
    variables.add(
        "asks",
        format!(
            "variables.labeled ? variables.template.metadata.labels[{inject}] != 'disabled' : ({namespace_asks})"
        ),
    );
    variables.add("has-sidecar", has_sidecar());
    variables.add("words", "variables.asks && !variables.hasSidecar ? variables.reasons : []");
    let misplaced = |name: &str| {
        let in_template = within(name, "labels", "variables.template");
        format!("({} && !({in_template}))", within(name, "labels", "object"))
    };
    let settings = format!(
        "variables.asks && {} && object.metadata.annotations.exists(k, k.startsWith({}) && k != {inject})",
        has("annotations", "object"),
        quoted(PREFIX)
    );
    let as_annotation = format!(
        "({}) || (!variables.asks && {inject} in variables.podAnnotations)",
        within(INJECT, "annotations", "object")
    );
    variables.add(
        "notices",
        [
            notice(&format!("{} || {}", misplaced(INJECT), misplaced(TRUST)), Notice::LabelOnWorkload),
            notice(&settings, Notice::AnnotationOnWorkload),
            notice(&as_annotation, Notice::LabelAsAnnotation),
            invalid_label("variables.template", TRUST),
        ]
        .join("\n+ "),
    );
    let operations = ["CREATE", "UPDATE"];
    let rules = vec![
        super::rule("apps", &["deployments", "statefulsets", "daemonsets"], &operations),
        super::rule("batch", &["jobs", "cronjobs"], &operations),
    ];
    let validations = vec![warns("words", "no sidecar in its pods: "), warns("notices", "")];
    vec![
        policy(&name, rules, variables, validations),
        super::binding(VALIDATING, &name, &name, json!({}), json!({})),
    ]
}

/// Why a pod that asked for trust has none. It sees the final state of a pod.
fn trust() -> Vec<Value> {
    let name = format!("{NAME}-{TRUST}");
    let mut variables = Variables::default();
    variables.add("invalid", invalid_label("object", TRUST));
    let missing = notice(&format!("!{}", super::trust::is_there()), Notice::NotTrusting);
    variables.add("words", format!("variables.invalid.size() > 0 ? variables.invalid : {missing}"));
    let rules = vec![super::rule("", &["pods"], &["CREATE"])];
    let asking = super::other_than(TRUST, &["disabled"]);
    let [of_pods, of_namespaces] = super::bindings(VALIDATING, &name, TRUST, asking);
    vec![policy(&name, rules, variables, vec![warns("words", "")]), of_pods, of_namespaces]
}
