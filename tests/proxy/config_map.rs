//! The policy from a ConfigMap, through kube, from an API server that is played here: what a real one does is seen
//! elsewhere; what it can be made to do on cue is seen here.

use serde_json::{Value, json};

use crate::support::{Act, App, Call, Caller, Folder, Gate, Guard};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

fn config_map(version: &str, policy: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "policy", "namespace": "shop", "resourceVersion": version},
        "data": {"policy.yaml": policy},
    })
}

fn event(kind: &str, object: &Value) -> Act {
    Act::send(format!("{}\n", json!({"type": kind, "object": object})))
}

fn deny(code: u32) -> String {
    format!("defaults: {{fallback: Deny, deny: {{errCode: {code}}}}}")
}

/// A guard whose API server is this one, and whose app is not there.
fn guard(api: &App, folder: &Folder) -> Guard {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url()}}],
        "users": [{"name": "u", "user": {"token": "t0ken"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
    });
    let path = folder.write("kubeconfig", kubeconfig.to_string());
    Guard::with(deny(5001))
        .flag("--policy-configmap", "shop/policy")
        .flag("--upstream", "http://127.0.0.1:9")
        .env("KUBECONFIG", &path.to_string_lossy())
        .start()
}

async fn code(guard: &Guard) -> Value {
    Caller::h2(guard).await.send(&Call::new(COMMAND)).await.json()["errCode"].clone()
}

#[tokio::test]
async fn a_config_map_is_watched_and_an_edit_is_in_force_without_a_restart() {
    let (edit, slip, delete, good) = (Gate::closed(), Gate::closed(), Gate::closed(), Gate::closed());
    let acts = vec![
        Act::send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"),
        Act::Wait(edit.clone()),
        event("MODIFIED", &config_map("11", &deny(5003))),
        Act::Wait(slip.clone()),
        event("MODIFIED", &config_map("12", "defaults: {fallback: Denny}")),
        Act::Wait(delete.clone()),
        event("DELETED", &config_map("13", "")),
        Act::Wait(good.clone()),
        event("ADDED", &config_map("14", &deny(5004))),
        Act::Silence,
    ];
    let api = App::start(move |asked| {
        assert_eq!(asked.values("Authorization"), ["Bearer t0ken"]);
        assert!(asked.target().starts_with("/api/v1/namespaces/shop/configmaps?"), "{}", asked.line());
        assert!(asked.target().contains("fieldSelector=metadata.name%3Dpolicy"), "{}", asked.line());
        if asked.target().contains("watch=") {
            return acts.clone();
        }
        let items = [config_map("9", &deny(5002))];
        let list = json!({
            "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "10"}, "items": items,
        });
        vec![Act::json(list.to_string())]
    });
    let folder = Folder::new();
    let guard = guard(&api, &folder);
    let in_force = |version: &str| {
        let wanted = format!("resourceVersion {version}\"");
        guard.wait_for_log(|line| line.contains("A policy is in force") && line.contains(&wanted));
    };
    in_force("9");
    assert_eq!(code(&guard).await, 5002, "the ConfigMap, and no longer the file it booted from");
    guard.wait_for_metric("callback_guard_policy_watch_connected", 1.0).await;
    guard.write("policy.yaml", deny(5009));
    edit.open();
    in_force("11");
    assert_eq!(code(&guard).await, 5003);
    for (gate, told) in [(slip, "Unsupported value"), (delete, "the ConfigMap was deleted")] {
        gate.open();
        guard.wait_for_log(|line| line.contains("The policy is refused") && line.contains(told));
        assert_eq!(code(&guard).await, 5003, "{told}: the last good one");
        guard.wait_for_metric("callback_guard_policy_last_reload_successful", 0.0).await;
    }
    good.open();
    in_force("14");
    assert_eq!(code(&guard).await, 5004);
    guard.wait_for_metric("callback_guard_policy_last_reload_successful", 1.0).await;
}

#[tokio::test]
async fn an_api_server_that_refuses_leaves_the_file_in_force_and_is_told() {
    let forbidden = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": "configmaps \"policy\" is forbidden",
    });
    let api = App::start(move |_| vec![Act::answer("403 Forbidden", &[], forbidden.to_string())]);
    let folder = Folder::new();
    let guard = guard(&api, &folder);
    guard.wait_for_log(|line| line.contains("cannot be watched") && line.contains("is forbidden"));
    assert_eq!(code(&guard).await, 5001);
    assert_eq!(guard.metric("callback_guard_policy_watch_connected"), 0.0);
    assert_eq!(guard.admin("/readyz").0, 200);
}
