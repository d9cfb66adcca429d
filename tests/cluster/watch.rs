//! The policy of a ConfigMap, watched at a real API server with a service account's token, under the Role that the
//! documentation gives: stage A.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::cluster::{Cluster, Namespace, PATIENCE, Stage};
use super::support::{Call, Caller, Guard, Load};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

/// The right to one ConfigMap and to nothing else.
const ROLE: &str = r"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: callback-guard-policy, namespace: NAMESPACE}
rules:
- {apiGroups: [''], resources: [configmaps], resourceNames: [policy], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: callback-guard-policy, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: callback-guard-policy}
subjects:
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: 'system:serviceaccounts:NAMESPACE'}
";

/// A policy whose every fallback is told apart by this code.
fn deny(code: u32) -> String {
    format!("defaults: {{fallback: Deny, deny: {{errCode: {code}}}}}")
}

/// A namespace with a service account and a policy, and with or without the Role.
struct Place<'c> {
    cluster: &'c Cluster,
    namespace: Namespace<'c>,
    kubeconfig: PathBuf,
}

impl<'c> Place<'c> {
    fn new(cluster: &'c Cluster) -> Place<'c> {
        let namespace = cluster.namespace(&[]);
        let name = namespace.name.as_str();
        cluster.kubectl(&["-n", name, "create", "serviceaccount", "shop"]);
        let kubeconfig = cluster.kubeconfig_of(name, &cluster.token(name, "shop"));
        Place { cluster, namespace, kubeconfig }
    }

    fn with_role(self) -> Place<'c> {
        self.cluster.apply(&ROLE.replace("NAMESPACE", &self.namespace.name));
        self
    }

    /// `kubectl apply` of the ConfigMap with this policy.
    fn put(&self, policy: &str) {
        let metadata = json!({"name": "policy", "namespace": self.namespace.name});
        let data = json!({"policy.yaml": policy});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
        self.cluster.apply(&object.to_string());
    }

    /// `kubectl patch` of one key.
    fn patch(&self, key: &str, text: &str) {
        let patch = json!({"data": {key: text}}).to_string();
        let name = &self.namespace.name;
        self.cluster.kubectl(&["-n", name, "patch", "configmap", "policy", "--type=merge", "-p", &patch]);
    }

    fn delete(&self) {
        self.cluster.kubectl(&["-n", &self.namespace.name, "delete", "configmap", "policy"]);
    }

    /// A guard with no app behind it, so that every answer is a fallback; it boots from a file that says 5001.
    fn guard(&self) -> Guard {
        let builder = Guard::with(deny(5001)).flag("--upstream", "http://127.0.0.1:9");
        let builder = builder.flag("--policy-configmap", format!("{}/policy", self.namespace.name));
        builder.env("KUBECONFIG", &self.kubeconfig.to_string_lossy()).start()
    }
}

/// The code that a callback is refused with now.
async fn code(guard: &Guard) -> Value {
    Caller::h2(guard).await.send(&Call::new(COMMAND)).await.json()["errCode"].clone()
}

async fn wait_for_code(guard: &Guard, wanted: u32) {
    let mut caller = Caller::h2(guard).await;
    let call = Call::new(COMMAND);
    let seen = async {
        while caller.send(&call).await.json()["errCode"] != wanted {
            tokio::task::yield_now().await;
        }
    };
    // After trouble a guard stays away from the API server for up to half a minute.
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{wanted} is not in force"));
}

fn wait_for_refusal(guard: &Guard, reason: &str) {
    guard.wait_for_log(|line| line.contains("The policy is refused") && line.contains(reason));
}

#[tokio::test]
async fn an_edit_is_in_force_and_a_broken_or_deleted_one_leaves_the_last_good_policy() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let place = Place::new(cluster).with_role();
    place.put(&deny(5002));
    let guard = place.guard();
    wait_for_code(&guard, 5002).await;
    guard.wait_for_metric("callback_guard_policy_watch_connected", 1.0).await;
    place.patch("policy.yaml", &deny(5003));
    wait_for_code(&guard, 5003).await;

    place.patch("policy.yaml", "defaults: {fallback: Denny}");
    wait_for_refusal(&guard, "Unsupported value: \\\"Denny\\\"");
    assert_eq!(code(&guard).await, 5003, "the last good one");
    let (_, page) = guard.admin("/policy");
    assert!(page.contains("Denny"), "{page}");
    assert_eq!(guard.metric("callback_guard_policy_last_reload_successful"), 0.0);

    place.delete();
    wait_for_refusal(&guard, "deleted");
    assert_eq!(code(&guard).await, 5003, "the last good one");
    place.put(&deny(5004));
    wait_for_code(&guard, 5004).await;
    assert_eq!(guard.metric("callback_guard_policy_last_reload_successful"), 1.0);

    for step in 0..10 {
        place.patch("policy.yaml", &deny(5100 + 2 * step));
        place.patch("policy.yaml", &deny(5101 + 2 * step));
    }
    wait_for_code(&guard, 5119).await;
    let version = cluster.get(&place.namespace.name, &["configmap", "policy"]).expect("it is there");
    let version = version["metadata"]["resourceVersion"].as_str().expect("a text").to_owned();
    let (_, page) = guard.admin("/policy");
    assert!(page.contains(&version), "of many edits the last one: {version} in {page}");
}

#[tokio::test]
async fn an_override_is_set_by_one_patch_and_is_over_by_itself() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let place = Place::new(cluster).with_role();
    place.put(&deny(5002));
    let guard = place.guard();
    wait_for_code(&guard, 5002).await;
    let until =
        std::process::Command::new("date").args(["-u", "-d", "+4 seconds", "+%Y-%m-%dT%H:%M:%SZ"]).output();
    let until = String::from_utf8(until.expect("date is there").stdout).expect("a time");
    place.patch("override.yaml", &format!("answer: Allow\nuntil: {:?}\nreason: incident 42\n", until.trim()));
    let mut caller = Caller::h2(&guard).await;
    let call = Call::new(COMMAND);
    let told = |wanted: &'static str| {
        guard.wait_for_log(move |line| line.contains(wanted));
    };
    told("An override is set");
    assert_eq!(caller.send(&call).await.told(), "allow rule -");
    told("The override has ended by itself");
    assert_eq!(caller.send(&call).await.json()["errCode"], 5002);
}

#[tokio::test]
async fn a_missing_role_is_told_with_the_rule_that_it_needs_and_one_given_later_is_enough() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let place = Place::new(cluster);
    place.put(&deny(5002));
    let guard = place.guard();
    guard.wait_for_log(|line| line.contains("said 403") && line.contains("resourceNames: [policy]"));
    assert_eq!(code(&guard).await, 5001, "the file it booted from");
    let _place = place.with_role();
    wait_for_code(&guard, 5002).await;
}

#[tokio::test]
async fn a_token_that_is_none_is_told_and_the_file_serves() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let mut place = Place::new(cluster).with_role();
    place.put(&deny(5002));
    place.kubeconfig = cluster.kubeconfig_of(&place.namespace.name, "no-token-of-this-cluster");
    let guard = place.guard();
    let line = guard.wait_for_log(|line| line.contains("said 401"));
    assert!(!line.contains("no-token-of-this-cluster"), "{line}");
    assert_eq!(code(&guard).await, 5001);
}

#[tokio::test]
async fn a_restart_of_the_api_server_under_load_costs_no_callback_and_no_edit() {
    if !super::cluster::can_hold(Stage::A) {
        return;
    }
    // One of its own: others are talking to the API server of the shared one.
    let cluster = Cluster::start(Stage::A);
    let place = Place::new(&cluster).with_role();
    place.put(&deny(5002));
    let guard = place.guard();
    wait_for_code(&guard, 5002).await;
    let load = Load::start(&guard, COMMAND, 4, usize::MAX);
    // History goes on without this ConfigMap, so that a server that has just begun no longer has the place where the
    // watch was: it answers 410.
    for number in 0..5 {
        let name = format!("other-{number}");
        cluster.kubectl(&["-n", &place.namespace.name, "create", "configmap", &name]);
    }
    cluster.stop("kube-apiserver", "KILL");
    guard.wait_for_metric("callback_guard_policy_watch_connected", 0.0).await;
    load.wait_for_more(200).await;
    assert_eq!(code(&guard).await, 5002, "what is in force stays");
    cluster.start_again("kube-apiserver");
    cluster.wait_for_api();
    place.patch("policy.yaml", &deny(5003));
    wait_for_code(&guard, 5003).await;
    let forgotten = |line: &str| line.contains("said 410") && line.contains("too old resource version");
    guard.wait_for_log(forgotten);
    assert_eq!(guard.count("callback_guard_policy_info", &[("source", "configmap")]), 1.0);
    guard.wait_for_metric("callback_guard_policy_watch_connected", 1.0).await;
    load.wait_for_more(200).await;
    let report = load.stop();
    assert!(report.lost.is_empty(), "{report:?}");
}
