//! The last good policy on disk: for a container that restarts while the API server is away.

use serde_json::{Value, json};

use super::cluster::{
    builder_at, code, config_map, deny, event, holds, in_force, list, page, script, until, watch, with_data,
};
use crate::support::{Act, App, Folder, Gate, Guard};

/// Where nobody listens.
const AWAY: &str = "http://127.0.0.1:9";

#[tokio::test]
async fn a_restart_with_the_api_server_away_has_the_last_good_policy() {
    let folder = Folder::new();
    let kept = folder.path().join("kept");
    let over = format!("fallback: Deny\nuntil: {:?}\nreason: incident", until(3_000));
    let acts = watch([
        event("MODIFIED", &with_data("11", &json!({"policy.yaml": deny(5003), "override.yaml": over}))),
        event("MODIFIED", &with_data("12", &json!({"policy.yaml": "mode: Wrong", "override.yaml": over}))),
        Act::Silence,
    ]);
    let api = App::start(script(vec![list("10", &[config_map("9", &deny(5002))])], vec![acts]));
    let guard = builder_at(&api.url(), &folder).flag("--policy-cache", &kept).start();
    guard.wait_for_log(|line| line.contains("The policy is refused"));
    holds(&kept.join("last-good.json"), "5003").await;
    // As the kill of a container: nothing is told to the process.
    drop((guard, api));
    let none = || builder_at(AWAY, &folder).flag("--policy-file", folder.path().join("none"));
    let guard = none().flag("--policy-cache", &kept).switch("--require-policy").start();
    assert_eq!(code(&guard).await, 5003);
    let shown = page(&guard);
    assert_eq!(
        (&shown["source"], &shown["revision"]),
        (&json!("cache"), &json!("shop/policy resourceVersion 11"))
    );
    assert_eq!(shown["override"]["active"], true, "{shown}");
    assert!(guard.metrics().contains("callback_guard_policy_info{source=\"cache\""));
    guard.wait_for_log(|line| {
        line.contains("A policy is in force") && line.contains("\"policy.source\":\"cache\"")
    });
    drop(guard);
    // The file of the pod stands before what was kept, and the built-in policy behind it.
    let guard = builder_at(AWAY, &folder).flag("--policy-cache", &kept).start();
    assert_eq!((code(&guard).await, page(&guard)["source"].clone()), (json!(5001), json!("file")));
    drop(guard);
    std::fs::write(kept.join("last-good.json"), "{").expect("a file");
    let guard = none().flag("--policy-cache", &kept).start();
    guard.wait_for_log(|line| line.contains("is not used") && line.contains("last-good.json"));
    assert_eq!(page(&guard)["source"], "builtin");
}

#[tokio::test]
async fn what_the_watch_delivers_takes_the_place_of_what_was_kept() {
    let folder = Folder::new();
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).expect("a folder");
    let text =
        json!({"configmap": "shop/policy", "resourceVersion": "7", "policy": deny(5007), "override": null});
    std::fs::write(kept.join("last-good.json"), text.to_string()).expect("a file");
    let gate = Gate::closed();
    let first = [vec![Act::Wait(gate.clone())], list("10", &[config_map("9", &deny(5007))])].concat();
    let api = App::start(script(vec![first], vec![watch([Act::Silence])]));
    let builder = builder_at(&api.url(), &folder).flag("--policy-file", folder.path().join("none"));
    let guard = builder.flag("--policy-cache", &kept).start();
    assert_eq!((code(&guard).await, page(&guard)["source"].clone()), (json!(5007), json!("cache")));
    gate.open();
    in_force(&guard, "9");
    let shown = page(&guard);
    assert_eq!((&shown["source"], &shown["refusedPolicy"]), (&json!("configmap"), &Value::Null));
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_told_once_and_harms_nothing() {
    let folder = Folder::new();
    let below_a_file = folder.write("file", "").join("kept");
    let gate = Gate::closed();
    let acts =
        watch([Act::Wait(gate.clone()), event("MODIFIED", &config_map("11", &deny(5003))), Act::Silence]);
    let api = App::start(script(vec![list("10", &[config_map("9", &deny(5002))])], vec![acts]));
    let guard: Guard = builder_at(&api.url(), &folder).flag("--policy-cache", below_a_file).start();
    let told = |line: &str| line.contains("cannot be kept on disk");
    let line = guard.wait_for_log(told);
    assert!(line.contains("ERROR") && line.contains("file/kept"), "{line}");
    assert!(page(&guard)["watch"]["cacheProblem"].is_string());
    assert!(guard.admin("/").1.contains("not kept on disk"));
    gate.open();
    in_force(&guard, "11");
    assert_eq!(code(&guard).await, 5003);
    assert_eq!(guard.log_lines().iter().filter(|line| told(line)).count(), 1);
}
