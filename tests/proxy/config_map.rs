//! The policy from a ConfigMap, through kube, from an API server that is played here: what a real one does is seen
//! elsewhere; what it can be made to do on cue is seen here.

use std::time::Instant;

use serde_json::{Value, json};

use super::cluster::{
    builder_at, code, config_map, deny, event, in_force, list, no, page, places, script, status, until,
    watch, with_data,
};
use crate::support::{Act, App, Folder, Gate, Guard};

fn guard(api: &App, folder: &Folder) -> Guard {
    builder_at(&api.url(), folder).start()
}

#[tokio::test]
async fn a_config_map_is_watched_and_an_edit_is_in_force_without_a_restart() {
    let (edit, slip, delete, good) = (Gate::closed(), Gate::closed(), Gate::closed(), Gate::closed());
    let acts = watch([
        Act::Wait(edit.clone()),
        event("MODIFIED", &config_map("11", &deny(5003))),
        Act::Wait(slip.clone()),
        event("MODIFIED", &config_map("12", "defaults: {fallback: Denny}")),
        Act::Wait(delete.clone()),
        event("DELETED", &config_map("13", "")),
        Act::Wait(good.clone()),
        event("ADDED", &config_map("14", &deny(5004))),
        Act::Silence,
    ]);
    let play = script(vec![list("10", &[config_map("9", &deny(5002))])], vec![acts]);
    let api = App::start(move |asked| {
        assert_eq!(asked.values("Authorization"), ["Bearer t0ken"]);
        play(asked)
    });
    let folder = Folder::new();
    let guard = guard(&api, &folder);
    in_force(&guard, "9");
    assert_eq!(code(&guard).await, 5002, "the ConfigMap, and no longer the file it booted from");
    guard.wait_for_metric("callback_guard_policy_watch_connected", 1.0).await;
    guard.write("policy.yaml", deny(5009));
    edit.open();
    in_force(&guard, "11");
    assert_eq!(code(&guard).await, 5003);
    for (gate, told) in [(slip, "Unsupported value"), (delete, "the ConfigMap was deleted")] {
        gate.open();
        guard.wait_for_log(|line| line.contains("The policy is refused") && line.contains(told));
        assert_eq!(code(&guard).await, 5003, "{told}: the last good one");
        guard.wait_for_metric("callback_guard_policy_last_reload_successful", 0.0).await;
    }
    good.open();
    in_force(&guard, "14");
    assert_eq!(code(&guard).await, 5004);
    guard.wait_for_metric("callback_guard_policy_last_reload_successful", 1.0).await;
    assert_eq!(
        page(&guard)["watch"],
        json!({
            "configmap": "shop/policy", "connected": true, "exists": true, "problem": null, "cacheProblem": null,
        })
    );
}

#[tokio::test]
async fn a_config_map_that_has_never_existed_is_no_error_and_a_deleted_one_is() {
    let (make, delete) = (Gate::closed(), Gate::closed());
    let acts = watch([
        Act::Wait(make.clone()),
        event("ADDED", &config_map("11", &deny(5003))),
        Act::Wait(delete.clone()),
        event("DELETED", &config_map("12", "")),
        Act::Silence,
    ]);
    let api = App::start(script(vec![list("10", &[])], vec![acts]));
    let folder = Folder::new();
    // As in an injected pod: the file is the same ConfigMap, mounted, and is not there either.
    let guard = builder_at(&api.url(), &folder).flag("--policy-file", folder.path().join("none")).start();
    let line = guard.wait_for_log(|line| line.contains("No such ConfigMap yet"));
    assert!(line.contains("INFO") && line.contains("shop/policy"), "{line}");
    guard.wait_for_metric("callback_guard_policy_watch_connected", 1.0).await;
    let shown = page(&guard);
    assert_eq!((&shown["source"], &shown["refusedPolicy"]), (&json!("builtin"), &Value::Null));
    assert_eq!((&shown["watch"]["exists"], &shown["watch"]["problem"]), (&json!(false), &Value::Null));
    assert!(guard.admin("/").1.contains("shop/policy: connected, no such ConfigMap"));
    assert_eq!(guard.metric("callback_guard_policy_reload_failures_total"), 0.0);
    assert_eq!(guard.metric("callback_guard_policy_last_reload_successful"), 1.0);
    assert!(!guard.log_lines().iter().any(|line| line.contains("ERROR")), "{:?}", guard.log_lines());
    make.open();
    in_force(&guard, "11");
    assert_eq!(page(&guard)["watch"]["exists"], true);
    delete.open();
    let line = guard.wait_for_log(|line| line.contains("the ConfigMap was deleted"));
    assert!(line.contains("ERROR"), "{line}");
    assert_eq!(code(&guard).await, 5003, "the last good one");
    guard.wait_for_metric("callback_guard_policy_reload_failures_total", 1.0).await;
    assert_eq!(guard.metric("callback_guard_policy_last_reload_successful"), 0.0);
    assert_eq!(page(&guard)["watch"]["exists"], false);
}

/// A server that lists version 9, watches as told, and then has version 12.
fn cut_by(first_watch: Vec<Act>) -> App {
    let lists =
        vec![list("10", &[config_map("9", &deny(5002))]), list("12", &[config_map("12", &deny(5004))])];
    let second = watch([event("MODIFIED", &config_map("12", &deny(5004))), Act::Silence]);
    App::start(script(lists, vec![first_watch, second]))
}

#[tokio::test]
async fn a_watch_that_is_cut_goes_on_from_the_last_version_without_a_list() {
    let edit = || event("MODIFIED", &config_map("11", &deny(5003)));
    let bookmark = || event("BOOKMARK", &with_data("17", &json!({})));
    let half = || {
        let Act::Send(whole) = event("MODIFIED", &config_map("12", &deny(5004))) else { unreachable!() };
        Act::Send(whole.slice(..whole.len() / 2))
    };
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n{\"type\":";
    for (what, acts, from) in [
        ("its time is over", watch([edit(), Act::Close]), "11"),
        ("a bookmark and its time is over", watch([edit(), bookmark(), Act::Close]), "17"),
        ("half an event", watch([edit(), half(), Act::Close]), "11"),
        ("half an event in a chunk", vec![Act::send(chunked), Act::Close], "10"),
        ("a reset within an event", watch([edit(), half(), Act::Reset]), "11"),
        ("too many requests", no(429, "later"), "10"),
        ("no server behind the balancer", no(503, "away"), "10"),
    ] {
        let (api, folder) = (cut_by(acts), Folder::new());
        let guard = guard(&api, &folder);
        in_force(&guard, "12");
        let places = places(&api);
        // A reset may overtake the event before it.
        let from = if what.contains("reset") && places[2] == "10" { "10" } else { from };
        assert_eq!(places, ["list from 0", "10", from], "{what}");
        assert_eq!(code(&guard).await, 5004, "{what}");
    }
}

#[tokio::test]
async fn a_place_in_the_history_that_is_gone_is_given_up_for_a_fresh_list() {
    for (what, acts) in [
        ("410 as a status", no(410, "too old resource version: 10 (400)")),
        ("410 as an event", watch([event("ERROR", &status(410, "too old")), Act::Silence])),
        ("another error event", watch([event("ERROR", &status(500, "etcd")), Act::Silence])),
        ("no JSON", watch([Act::send("<html>\n"), Act::Silence])),
    ] {
        let (api, folder) = (cut_by(acts), Folder::new());
        let guard = guard(&api, &folder);
        in_force(&guard, "12");
        api.wait_for_asked(4).await;
        // The second list must not be older than what was seen: it asks for no cached one.
        assert_eq!(places(&api), ["list from 0", "10", "list", "12"], "{what}");
        guard.wait_for_log(|line| line.contains("is watched again"));
        assert_eq!(page(&guard)["watch"]["problem"], Value::Null, "{what}");
    }
}

#[tokio::test]
async fn a_server_that_is_overloaded_is_left_alone_for_as_long_as_it_wants() {
    let busy = Act::answer("429 Too Many Requests", &[("Retry-After", "2")], "Too many requests");
    let (api, folder) = (cut_by(vec![busy]), Folder::new());
    let guard = guard(&api, &folder);
    api.wait_for_asked(2).await;
    let begun = Instant::now();
    in_force(&guard, "12");
    // The first random wait alone is a second at most.
    assert!(begun.elapsed().as_millis() >= 1_900, "{:?}", begun.elapsed());
    guard.wait_for_log(|line| line.contains("said 429") && line.contains("Too many requests"));
}

#[tokio::test]
async fn of_many_edits_at_once_the_last_is_in_force_and_memory_stays_small() {
    let gate = Gate::closed();
    let edits: String = (0..1000_u32)
        .map(|number| {
            let policy = format!("{}\n# {}", deny(5000 + number % 900), "x".repeat(4_000));
            let edit = config_map(&(100 + number).to_string(), &policy);
            format!("{}\n", json!({"type": "MODIFIED", "object": edit}))
        })
        .collect();
    let acts = watch([Act::Wait(gate.clone()), Act::send(edits), Act::Silence]);
    let api = App::start(script(vec![list("10", &[config_map("9", &deny(5002))])], vec![acts]));
    let folder = Folder::new();
    let guard = guard(&api, &folder);
    in_force(&guard, "9");
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", guard.pid())).expect("a process");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line").to_owned();
        line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number")
    };
    let before = resident();
    gate.open();
    in_force(&guard, "1099");
    assert_eq!(code(&guard).await, 5000 + 999 % 900);
    let grown = resident() - before;
    assert!(grown < 12 << 10, "{grown} KiB more at the height of it");
}

#[tokio::test]
async fn two_edits_in_one_go_are_the_last_one() {
    let Act::Send(first) = event("MODIFIED", &config_map("11", &deny(5003))) else { unreachable!() };
    let Act::Send(second) = event("MODIFIED", &config_map("12", &deny(5004))) else { unreachable!() };
    let (api, folder) = (cut_by(watch([Act::send([first, second].concat()), Act::Silence])), Folder::new());
    let guard = guard(&api, &folder);
    in_force(&guard, "12");
    assert_eq!(code(&guard).await, 5004);
}

#[tokio::test]
async fn an_override_in_the_config_map_is_in_force_and_over_by_itself() {
    let gate = Gate::closed();
    let over = format!("fallback: Allow\nuntil: {:?}\nreason: incident 42", until(3));
    let both = with_data("11", &json!({"policy.yaml": deny(5002), "override.yaml": over}));
    let acts = watch([Act::Wait(gate.clone()), event("MODIFIED", &both), Act::Silence]);
    let api = App::start(script(vec![list("10", &[config_map("9", &deny(5002))])], vec![acts]));
    let folder = Folder::new();
    let guard = guard(&api, &folder);
    in_force(&guard, "9");
    assert_eq!(code(&guard).await, 5002);
    gate.open();
    guard.wait_for_log(|line| line.contains("An override is set") && line.contains("incident 42"));
    assert_eq!(code(&guard).await, 0, "allowed");
    guard.wait_for_log(|line| line.contains("The override has ended by itself"));
    assert_eq!(code(&guard).await, 5002);
}

#[tokio::test]
async fn a_config_map_that_is_not_there_or_has_no_policy_is_told_and_the_file_stays() {
    for (items, told) in [
        (vec![], "there is no such ConfigMap"),
        (vec![with_data("9", &json!({"other.yaml": ""}))], "the ConfigMap has no key policy.yaml"),
    ] {
        let made = watch([event("ADDED", &config_map("11", &deny(5003))), Act::Silence]);
        let gate = Gate::closed();
        let made = [vec![Act::Wait(gate.clone())], made].concat();
        let api = App::start(script(vec![list("10", &items)], vec![made]));
        let folder = Folder::new();
        let guard = guard(&api, &folder);
        guard.wait_for_log(|line| line.contains("The policy is refused") && line.contains(told));
        assert_eq!((code(&guard).await, page(&guard)["source"].clone()), (json!(5001), json!("file")));
        gate.open();
        in_force(&guard, "11");
        assert_eq!(page(&guard)["refusedPolicy"], Value::Null);
    }
}
