//! An API server that is played: it holds one ConfigMap, and does on cue what a real one seldom does.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::{Act, App, Asked, Call, Caller, Folder, Guard};

pub(crate) const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

/// The ConfigMap with this policy, as of this version.
pub(crate) fn config_map(version: &str, policy: &str) -> Value {
    with_data(version, &json!({"policy.yaml": policy}))
}

/// The ConfigMap with this data.
pub(crate) fn with_data(version: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "policy", "namespace": "shop", "resourceVersion": version},
        "data": data,
    })
}

pub(crate) fn event(kind: &str, object: &Value) -> Act {
    Act::send(format!("{}\n", json!({"type": kind, "object": object})))
}

/// What the API server says when it says no.
pub(crate) fn status(code: u16, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Because", "code": code,
        "message": message,
    })
}

/// The same as a whole answer.
pub(crate) fn no(code: u16, message: &str) -> Vec<Act> {
    vec![Act::answer(&format!("{code} No"), &[], status(code, message).to_string())]
}

/// A list with what is there as of this version.
pub(crate) fn list(version: &str, items: &[Value]) -> Vec<Act> {
    let list = json!({
        "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": version}, "items": items,
    });
    vec![Act::json(list.to_string())]
}

/// A watch: the head of its answer, then this. Its end is that of the connection.
pub(crate) fn watch(acts: impl IntoIterator<Item = Act>) -> Vec<Act> {
    let head = Act::send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n");
    [head].into_iter().chain(acts).collect()
}

pub(crate) fn is_watch(asked: &Asked) -> bool {
    asked.target().contains("watch=")
}

/// Gives the lists and the watches one after the other; the last of each again and again.
pub(crate) fn script(
    lists: Vec<Vec<Act>>,
    watches: Vec<Vec<Act>>,
) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    let (listed, watched) = (AtomicUsize::new(0), AtomicUsize::new(0));
    move |asked| {
        assert!(asked.target().starts_with("/api/v1/namespaces/shop/configmaps?"), "{}", asked.line());
        assert!(asked.target().contains("fieldSelector=metadata.name%3Dpolicy"), "{}", asked.line());
        let (all, count) = if is_watch(asked) { (&watches, &watched) } else { (&lists, &listed) };
        all[count.fetch_add(1, Ordering::Relaxed).min(all.len() - 1)].clone()
    }
}

/// A policy whose every fallback is told apart by this code.
pub(crate) fn deny(code: u32) -> String {
    format!("defaults: {{fallback: Deny, deny: {{errCode: {code}}}}}")
}

/// A kubeconfig for a cluster and a user.
pub(crate) fn kubeconfig(folder: &Folder, cluster: &Value, user: &Value) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
    });
    folder.write("kubeconfig", config.to_string()).to_string_lossy().into_owned()
}

/// A guard that watches, whose file denies with 5001 and whose app is not there.
pub(crate) fn builder(kubeconfig: &str) -> crate::support::guard::Builder {
    Guard::with(deny(5001))
        .flag("--policy-configmap", "shop/policy")
        .flag("--upstream", "http://127.0.0.1:9")
        .env("KUBECONFIG", kubeconfig)
}

/// The same for the API server at this URL, and the token `t0ken`.
pub(crate) fn builder_at(url: &str, folder: &Folder) -> crate::support::guard::Builder {
    builder(&kubeconfig(folder, &json!({"server": url}), &json!({"token": "t0ken"})))
}

/// Waits until the policy as of this version is in force.
pub(crate) fn in_force(guard: &Guard, version: &str) {
    let wanted = format!("resourceVersion {version}\"");
    guard.wait_for_log(|line| line.contains("A policy is in force") && line.contains(&wanted));
}

/// The code that a callback is denied with.
pub(crate) async fn code(guard: &Guard) -> Value {
    Caller::h2(guard).await.send(&Call::new(COMMAND)).await.json()["errCode"].clone()
}

/// `/policy`.
pub(crate) fn page(guard: &Guard) -> Value {
    serde_json::from_str(&guard.admin("/policy").1).expect("JSON")
}

/// The lists and watches that were asked for, each as `list` or the version that the watch goes on from.
pub(crate) fn places(api: &App) -> Vec<String> {
    let asked = api.asked();
    let place = |asked: &Asked| {
        let query = asked.target().split_once('?').map_or("", |(_, query)| query);
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        match (is_watch(asked), version) {
            (true, version) => version.unwrap_or("none").to_owned(),
            (false, Some(version)) => format!("list from {version}"),
            (false, None) => "list".to_owned(),
        }
    };
    asked.iter().map(place).collect()
}

/// Waits for a file to have this in it.
pub(crate) async fn holds(path: &Path, wanted: &str) {
    let look = || std::fs::read_to_string(path).ok().filter(|text| text.contains(wanted));
    crate::support::eventually("a file to be written", look).await;
}

/// Until when, so many seconds from now, as an override says it.
pub(crate) fn until(seconds: i64) -> String {
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    k8s_openapi::jiff::Timestamp::from_second(now + seconds).expect("a time").to_string()
}
