//! The CEL cost of admission policies, which no API server reports: computed by its own compiler, in
//! `tests/cluster/kubernetes/celcost`. This takes no cluster, only Go.

use serde_json::{Value, json};

use super::cluster::{Cluster, Stage, clean, eventually, script};
use super::support::Folder;

/// Evaluates policies (a stream of YAML documents) for the creation of objects: a list of `{"name", "object", "namespace"}`, the
/// namespace being the metadata of the object's own. Returns a list of `{"policy", "kind", "object", "cost", "budget",
/// "compileErrors", "error"}`, one entry for each policy and object that its resource rules match.
///
/// # Panics
///
/// If the input is invalid, or a policy that matches no object does not compile.
pub(crate) fn cost(policies: &str, objects: &Value) -> Value {
    let folder = Folder::new();
    let (policies, input) =
        (folder.write("policies.yaml", policies), folder.write("objects.json", objects.to_string()));
    let mut command = clean(script());
    command.arg("celcost").arg(policies).stdin(std::fs::File::open(input).expect("just written"));
    let done = command.output().expect("bash is there");
    let errors = String::from_utf8_lossy(&done.stderr);
    let costs: Value = serde_json::from_slice(&done.stdout).unwrap_or_default();
    let entries = costs.as_array().unwrap_or_else(|| panic!("celcost, {}: {errors}", done.status));
    let broken = entries.iter().any(|entry| entry["compileErrors"] != json!([]));
    assert!(done.status.success() || broken, "celcost, {}: {errors}", done.status);
    costs
}

/// Two policies, one for pods and one for Namespaces.
const POLICIES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: not-a-policy}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: mutate}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [''], apiVersions: [v1], resources: [pods], operations: [CREATE]}]
  reinvocationPolicy: IfNeeded
  variables:
  - {name: ports, expression: 'object.spec.containers.map(c, c.ports.filter(p, p.protocol == "TCP").size()).sum()'}
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: >-
        [JSONPatch{op: "add", path: "/metadata/labels", value: {
          "ports": string(variables.ports), "namespace": request.namespace, "team": namespaceObject.metadata.labels["team"]}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: validate}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [''], apiVersions: [v1], resources: [namespaces], operations: [CREATE, UPDATE]}]
  variables:
  - {name: team, expression: 'object.metadata.labels["team"]'}
  validations:
  - {expression: 'variables.team == "a"', messageExpression: '"not the team " + variables.team'}
"#;

fn objects(containers: usize) -> Value {
    let container = |number: usize| json!({"name": format!("c{number:03}"), "image": "app", "ports": [{"containerPort": 8080}]});
    let containers: Vec<_> = (0..containers).map(container).collect();
    json!([
        {"name": "pod", "namespace": {"name": "shop", "labels": {"team": "a"}},
         "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop"}, "spec": {"containers": containers}}},
        {"name": "namespace",
         "object": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "b"}}}},
    ])
}

fn entry<'c>(costs: &'c Value, policy: &str) -> &'c Value {
    let found: Vec<_> =
        costs.as_array().expect("a list").iter().filter(|entry| entry["policy"] == policy).collect();
    assert_eq!(found.len(), 1, "one object matches {policy}: {costs}");
    found[0]
}

#[test]
fn the_cost_of_a_policy_is_computed_and_grows_with_the_object() {
    let (one, twenty) = (cost(POLICIES, &objects(1)), cost(POLICIES, &objects(20)));
    for costs in [&one, &twenty] {
        for (policy, object) in [("mutate", "pod"), ("validate", "namespace")] {
            let entry = entry(costs, policy);
            assert_eq!(entry["object"], object, "{entry}");
            assert_eq!(entry["compileErrors"], json!([]), "{entry}");
            assert_eq!(entry["error"], "", "{entry}");
            assert_eq!(entry["budget"], 10_000_000, "{entry}");
            assert!(entry["cost"].as_u64().is_some_and(|cost| cost > 0), "{entry}");
        }
    }
    let cost_of = |costs, policy| entry(costs, policy)["cost"].as_u64();
    assert!(cost_of(&twenty, "mutate") > cost_of(&one, "mutate"), "{one} {twenty}");
    assert_eq!(cost_of(&twenty, "validate"), cost_of(&one, "validate"), "the same Namespace");
}

#[test]
fn an_expression_that_does_not_compile_is_reported_with_its_place() {
    for (sound, broken, policy, place) in [
        (".sum()", ".sum(", "mutate", "variable ports: "),
        ("request.namespace", "request.nowhere", "mutate", "mutation 0: "),
        (" == \"a\"", "", "validate", "validation 0, expression: "),
        (
            "\"not the team \" + variables.team",
            "variables.nobody",
            "validate",
            "validation 0, messageExpression: ",
        ),
    ] {
        let policies = POLICIES.replace(sound, broken);
        assert_ne!(policies, POLICIES);
        let costs = cost(&policies, &objects(1));
        let errors = entry(&costs, policy)["compileErrors"].as_array().expect("a list");
        assert!(errors.iter().any(|error| error.to_string().contains(place)), "{broken:?}: {costs}");
        // The other policy is not affected.
        let other = if policy == "mutate" { "validate" } else { "mutate" };
        assert_eq!(entry(&costs, other)["compileErrors"], json!([]), "{costs}");
    }
}

#[test]
fn an_evaluation_that_fails_is_reported_and_compiles() {
    let mut objects = objects(1);
    objects[0]["namespace"]["labels"] = json!({});
    let costs = cost(POLICIES, &objects);
    let entry = entry(&costs, "mutate");
    assert_eq!(entry["compileErrors"], json!([]), "{entry}");
    assert!(entry["error"].as_str().is_some_and(|error| error.contains("no such key: team")), "{entry}");
}

/// What a policy evaluates a dozen times for the test below: its cost grows with the square of the containers, and a dozen
/// are over the budget before one is over the limit of one expression, 1,000,000.
const SQUARE: &str = "object.spec.containers.all(a, object.spec.containers.all(b, a.name + b.name != \"\"))";

/// A policy of each kind, with its binding to one namespace.
fn expensive_policies(name: &str) -> [Value; 2] {
    let policies = [
        (
            "MutatingAdmissionPolicy",
            json!({
                "reinvocationPolicy": "Never",
                "variables": (0..12).map(|i| json!({"name": format!("v{i}"), "expression": SQUARE})).collect::<Vec<_>>(),
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression":
                    (0..12).map(|i| format!("variables.v{i}")).collect::<Vec<_>>().join(" && ")
                        + "? [JSONPatch{op: \"add\", path: \"/metadata/labels\", value: {\"evaluated\": \"yes\"}}] : []"}}],
            }),
        ),
        (
            "ValidatingAdmissionPolicy",
            json!({
                "validations": (0..12).map(|_| json!({"expression": SQUARE})).collect::<Vec<_>>(),
            }),
        ),
    ];
    policies.map(|(kind, mut spec)| {
        spec["failurePolicy"] = json!("Fail");
        spec["matchConstraints"] = json!({"resourceRules": [
            {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]});
        let mut binding = json!({"policyName": name, "matchResources": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}});
        if kind == "ValidatingAdmissionPolicy" {
            binding["validationActions"] = json!(["Deny"]);
        }
        let object = |kind: &str, spec: &Value| json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        json!([object(kind, &spec), object(&format!("{kind}Binding"), &binding)])
    })
}

/// The most containers that are within the budget, computed from the costs of one, two and three: finding it by trial takes
/// minutes. The cost is a polynomial of degree 2 in the containers, because their names have the same length.
fn most_within_budget(costs: &[Value]) -> usize {
    let cost = |index: usize| costs[index]["cost"].as_i64().expect("a number");
    let second = cost(2) - 2 * cost(1) + cost(0);
    let first = cost(1) - cost(0);
    let of = |n: i64| cost(0) + first * (n - 1) + second * (n - 1) * (n - 2) / 2;
    let budget = costs[0]["budget"].as_i64().expect("a number");
    let over = (1..1000).find(|n| of(*n) > budget).expect("a thousand are over the budget");
    usize::try_from(over - 1).expect("a small number")
}

#[test]
fn the_api_server_refuses_a_policy_from_the_computed_cost_on() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    for policy in expensive_policies(&namespace.name) {
        let manifests = format!("{}\n---\n{}\n", policy[0], policy[1]);
        let entries = |containers: &[usize]| -> Vec<Value> {
            let pods: Vec<_> = containers.iter().map(|number| objects(*number)[0].clone()).collect();
            cost(&manifests, &json!(pods)).as_array().cloned().expect("a list")
        };
        let most = most_within_budget(&entries(&[1, 2, 3]));
        let [last, next] = &entries(&[most, most + 1])[..] else { panic!("two pods, one policy") };
        assert_eq!(last["error"], "", "{last}");
        assert!(next["error"].to_string().contains("over the budget"), "{next}");

        let _applied = cluster.apply_until_dropped(&manifests);
        let create = |containers: usize| {
            let pod = objects(containers)[0]["object"].to_string();
            cluster.try_apply(&pod, &["-n", &namespace.name, "--dry-run=server"])
        };
        let refusal = eventually("a refusal", || create(most + 1).err());
        assert!(refusal.contains("out of cost budget"), "{refusal}");
        create(most).unwrap_or_else(|said| panic!("{most} containers cost {last}: {said}"));
    }
}
