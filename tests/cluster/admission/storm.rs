//! Pods created without pause while everything around them changes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::client::Client;
use super::super::cluster::{Cluster, PATIENCE, Stage, busy, can_hold, eventually};
use super::equality::{Fate, Pair, both};
use super::{INJECT, has_sidecar, installation, ours, pod, printed, sidecars};

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

    let (created, naked, edits) = storm(&cluster);
    eprintln!("{created} pods created, {naked} of them without exactly one sidecar, {edits} edits");
    assert!(created > 1_000 && edits > 10, "{created} pods, {edits} edits");
    assert_eq!(naked, 0, "of {created}");
    // What was created while the answer was lost is among these.
    let inits = cluster.kubectl(&[
        "-n",
        "storm",
        "get",
        "pods",
        "-o",
        "jsonpath={range .items[*]}{.spec.initContainers[*].name}{\"\\n\"}{end}",
    ]);
    let wrong: Vec<_> = inits.lines().filter(|names| *names != "callback-guard").collect();
    assert!(
        inits.lines().count() >= created && wrong.is_empty(),
        "{} of {}",
        wrong.len(),
        inits.lines().count()
    );
    settings_of_an_installation_and_its_pull_secrets_are_the_same_by_both_ways(&cluster);
    without_the_policy_a_pod_is_plain_and_says_so(&cluster);
}

/// Creates pods while the API server restarts twice and the policies are edited: how many, how many of them without
/// exactly one sidecar, and how many edits.
fn storm(cluster: &Cluster) -> (usize, usize, usize) {
    let over = AtomicBool::new(false);
    let (created, naked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let create = || {
        let mut client = Client::of(cluster);
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
                Ok(reply) if reply.body.to_string().contains("callback-guard") => {
                    panic!("refused because of a policy: {reply:?}")
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
            edits.fetch_add(usize::from(edit(cluster, round).is_ok()), Ordering::Relaxed);
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
    (created.into_inner(), naked.into_inner(), edits.into_inner())
}

/// Here, because the policies of the shared server are those of an installation without settings.
fn settings_of_an_installation_and_its_pull_secrets_are_the_same_by_both_ways(cluster: &Cluster) {
    let flags = "run-as-user=none,workers=3,cpu-limit=500m,log-level=warn";
    let policies = printed(&["storm".to_owned()], &["--set", flags, "--image-pull-secrets", "a,b"]);
    cluster.try_apply(&policies, &["--server-side", "--force-conflicts"]).expect("applied");
    cluster.kubectl(&["create", "namespace", "plain"]);
    cluster.kubectl(&["-n", "plain", "create", "serviceaccount", "default"]);
    let mut installation = installation();
    for (name, value) in flags.split(',').filter_map(|flag| flag.split_once('=')) {
        let row = callback_guard::sidecar::annotations::setting(name).expect("a row of the table");
        installation.settings.insert(row.name, value.to_owned());
    }
    installation.image_pull_secrets = vec!["a".to_owned(), "b".to_owned()];
    let mut client = Client::of(cluster);
    let pair = Pair { asking: "storm".to_owned(), plain: "plain".to_owned(), metadata: json!({}) };
    eventually("the settings and the namespace", || {
        let made = client.dry_run("storm", &pod()).body.to_string();
        (made.contains("--workers=3") && client.dry_run("plain", &pod()).is_success()).then_some(())
    });
    let mut of_pod = super::annotated("workers", "4");
    of_pod["spec"]["imagePullSecrets"] = json!([{"name": "b"}, {"name": "mine"}]);
    for (pod, workers) in [(pod(), "--workers=3"), (of_pod, "--workers=4")] {
        assert_eq!(both(&mut client, &pair, &pod, &installation), Ok(Fate::Injected), "{pod}");
        let made = client.dry_run("storm", &pod).body;
        assert!(made.to_string().contains(workers), "{made}");
        let secrets = made["spec"]["imagePullSecrets"].to_string();
        assert!(secrets.contains("\"a\"") && secrets.matches("\"b\"").count() == 1, "{secrets}");
    }
    // Those of the service account come first, and stay.
    let account = json!({"imagePullSecrets": [{"name": "of-account"}]});
    assert!(client.patch("/api/v1/namespaces/storm/serviceaccounts/default", &account).is_success());
    let made = eventually("the secrets of the service account", || {
        let made = client.dry_run("storm", &pod()).body;
        made["spec"]["imagePullSecrets"].to_string().contains("of-account").then_some(made)
    });
    let wanted = json!([{"name": "of-account"}, {"name": "a"}, {"name": "b"}]);
    assert_eq!(made["spec"]["imagePullSecrets"], wanted);
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
