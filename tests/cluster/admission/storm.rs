//! Pods created without pause while everything around them changes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::client::Client;
use super::super::cluster::{Cluster, PATIENCE, Stage, busy, can_hold, eventually};
use super::{INJECT, has_sidecar, ours, pod, printed, sidecars};

/// How long pods are created.
const LASTS: Duration = Duration::from_secs(120);
/// How often the policies are edited.
const EDIT: Duration = Duration::from_secs(5);

#[test]
fn every_pod_has_one_sidecar_while_the_api_server_restarts_and_the_policy_is_edited() {
    if !can_hold(Stage::A) {
        return;
    }
    let _busy = busy();
    // One of its own: others are talking to the API server of the shared one.
    let cluster = Cluster::start(Stage::A);
    cluster.kubectl(&["create", "namespace", "storm"]);
    cluster.kubectl(&["label", "namespace", "storm", &format!("{INJECT}=enabled")]);
    cluster.kubectl(&["-n", "storm", "create", "serviceaccount", "default"]);
    edit(&cluster, 0).expect("the first one is applied");
    let mut client = Client::of(&cluster);
    eventually("the policy", || has_sidecar(&client.dry_run("storm", &pod()).body).then_some(()));

    let over = AtomicBool::new(false);
    let (created, naked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let create = || {
        let mut client = Client::of(&cluster);
        let mut named = pod();
        named["metadata"] = json!({"generateName": "app-"});
        let body = named.to_string();
        while !over.load(Ordering::Relaxed) {
            let sent = client.try_send("POST", "/api/v1/namespaces/storm/pods", "application/json", &body);
            match sent {
                Ok(reply) if reply.is_success() => {
                    created.fetch_add(1, Ordering::Relaxed);
                    naked.fetch_add(usize::from(sidecars(&reply.body) != 1), Ordering::Relaxed);
                }
                // A server that is not there creates nothing; it is asked again.
                Ok(_) | Err(_) => thread::yield_now(),
            }
        }
    };
    let edits = AtomicUsize::new(0);
    let keep_editing = || {
        let began = Instant::now();
        for round in 1.. {
            eventually_or_over(began + EDIT * u32::try_from(round).expect("few rounds"), &over);
            if over.load(Ordering::Relaxed) {
                return;
            }
            edits.fetch_add(usize::from(edit(&cluster, round).is_ok()), Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        scope.spawn(create);
        scope.spawn(create);
        scope.spawn(keep_editing);
        let began = Instant::now();
        let more_than = |least: usize| {
            eventually("more pods", || (created.load(Ordering::Relaxed) > least).then_some(()));
        };
        for (after, signal) in [(LASTS / 4, "KILL"), (LASTS / 2, "TERM")] {
            eventually_or_over(began + after, &over);
            cluster.stop("kube-apiserver", signal);
            let before = created.load(Ordering::Relaxed);
            cluster.start_again("kube-apiserver");
            more_than(before + 100);
        }
        eventually_or_over(began + LASTS, &over);
        over.store(true, Ordering::Relaxed);
    });
    let (created, naked, edits) = (created.into_inner(), naked.into_inner(), edits.into_inner());
    eprintln!("{created} pods created, {naked} of them without exactly one sidecar, {edits} edits");
    assert!(created > 1_000 && edits > 10, "{created} pods, {edits} edits");
    assert_eq!(naked, 0, "of {created}");
    // What was created while the answer was lost is among these.
    let count = |selector: &str| {
        let names = cluster.kubectl(&["-n", "storm", "get", "pods", "-l", selector, "-o", "name"]);
        names.lines().count()
    };
    assert_eq!(count("!callback-guard.io/injected"), 0);
    assert!(count("callback-guard.io/injected") >= created);
    without_the_policy_a_pod_is_plain_and_says_so(&cluster);
}

fn without_the_policy_a_pod_is_plain_and_says_so(cluster: &Cluster) {
    cluster.kubectl(&["delete", "mutatingadmissionpolicy", "callback-guard"]);
    let mut client = Client::of(cluster);
    let plain = eventually("a plain pod", || {
        Some(client.dry_run("storm", &pod())).filter(|made| sidecars(&made.body) == 0)
    });
    let warnings = ours(&plain);
    assert!(warnings.len() == 1 && warnings[0].contains("not-applied: "), "{warnings:?}");
}

/// Applies the policies, each time with another setting.
fn edit(cluster: &Cluster, round: usize) -> Result<String, String> {
    let workers = format!("workers={}", 1 + round % 60);
    let policies = printed(&["storm".to_owned()], &["--set", &workers]);
    cluster.try_apply(&policies, &["--server-side", "--force-conflicts"])
}

/// Waits for a time, or for the end of the storm.
fn eventually_or_over(until: Instant, over: &AtomicBool) {
    assert!(until < Instant::now() + LASTS + PATIENCE, "a storm is bounded");
    while Instant::now() < until && !over.load(Ordering::Relaxed) {
        thread::park_timeout(Duration::from_millis(50));
    }
}
