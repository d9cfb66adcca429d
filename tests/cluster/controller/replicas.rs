//! Several replicas: whatever ends the leader, another takes over, no two write at once, and certificates are never missing.

use std::time::{Duration, Instant};

use super::super::audit::{Audit, Entry, account};
use super::super::cluster::eventually;
use super::super::forward::Forward;
use super::super::replica::Replica;
use super::{Installation, OWN, SERVED};

/// A short one, for the time of the tests; it stops writing after 4 s.
const LEASE: &str = "--lease-duration=6s";

/// The replicas that have changed something, one after another, each as often as it took over: who and what, in the order in which
/// the API server completed the requests.
fn writers(installed: &Installation) -> Vec<(String, Vec<Entry>)> {
    let writes = ["create", "update", "patch", "delete"];
    let entries = Audit::of(&installed.cluster).by_user(&account(OWN, "callback-guard-controller"));
    let mut done: Vec<_> = entries
        .into_iter()
        .filter(|entry| writes.contains(&entry.verb()) && entry.code() < 300)
        // The Lease without a holder is created by whoever comes first, also by two at once.
        .filter(|entry| !(entry.resource() == "leases" && entry.verb() == "patch"))
        .collect();
    done.sort_by(|one, other| one.answered().cmp(other.answered()));
    let mut writers: Vec<(String, Vec<Entry>)> = Vec::new();
    for entry in done {
        let who = entry.user_agent().rsplit(' ').next().unwrap_or_default().to_owned();
        match writers.last_mut() {
            Some((last, entries)) if *last == who => entries.push(entry),
            Some(_) | None => writers.push((who, vec![entry])),
        }
    }
    writers
}

fn names(writers: &[(String, Vec<Entry>)]) -> Vec<&str> {
    writers.iter().map(|(who, _)| who.as_str()).collect()
}

/// Deletes the certificate, and waits until this replica has signed another.
fn signs_again(installed: &Installation, replica: &Replica) {
    let before = installed.certificate(SERVED, None);
    let signed = |line: &serde_json::Value| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("The certificate of the sidecars is signed"))
    };
    let lines = replica.log().iter().filter(|line| signed(line)).count();
    installed.cluster.kubectl(&["-n", SERVED, "delete", "secret", "callback-guard-tls"]);
    installed.certificate(SERVED, Some(&before));
    replica.wait_for_line("The certificate of the sidecars is signed", lines);
}

#[test]
fn a_killed_leader_is_followed_by_another_and_a_swapped_one_at_once() {
    let Some(installed) = Installation::new() else { return };
    let first = installed.start("first", &[LEASE]);
    first.wait_to_lead();
    let certificate = installed.certificate(SERVED, None);
    let second = installed.start("second", &[LEASE]);
    second.wait_for_line("Started", 0);
    assert!(second.page("/readyz").contains("ok"), "one that waits is ready too");
    assert_eq!(second.metric("callback_guard_controller_leader"), Some(0));

    first.signal(libc::SIGKILL);
    first.wait();
    second.wait_to_lead();
    assert_eq!(
        installed.certificate(SERVED, None),
        certificate,
        "a change of the leader changes nothing else"
    );
    signs_again(&installed, &second);

    // Swapped, as a rollout does: the next is there, and the other is asked to end. The Lease is released, not waited for.
    let third = installed.start("third", &["--lease-duration=1h"]);
    third.wait_for_line("Started", 0);
    eventually("the third to be ready", || third.page("/readyz").contains("ok").then_some(()));
    second.signal(libc::SIGTERM);
    assert_eq!(second.wait(), 0);
    second.wait_for_line("The Lease is released", 0);
    third.wait_to_lead();
    signs_again(&installed, &third);
    let writers = writers(&installed);
    assert_eq!(names(&writers), ["first", "second", "third"]);
}

#[test]
fn a_leader_that_is_cut_off_stops_writing_before_another_begins_and_what_arrives_late_changes_nothing() {
    let Some(installed) = Installation::new() else { return };
    let way = Forward::to(&installed.cluster);
    let token = installed.cluster.token(OWN, "callback-guard-controller");
    let kubeconfig = way.kubeconfig(&installed.cluster, OWN, &token);
    let first = Replica::run(installed.command("first", &kubeconfig, &[LEASE]));
    first.wait_to_lead();
    let before = installed.certificate(SERVED, None);
    let second = installed.start("second", &[LEASE]);
    second.wait_for_line("Started", 0);

    // It sees that the certificate is gone; what it sends of it does not arrive.
    way.freeze_requests();
    installed.cluster.kubectl(&["-n", SERVED, "delete", "secret", "callback-guard-tls"]);
    first.wait_for_line("The Lease is lost", 0);
    second.wait_to_lead();
    let lost = first
        .log()
        .iter()
        .position(|line| line["message"].as_str().is_some_and(|text| text.contains("is lost")));
    assert!(lost.is_some(), "{:?}", first.log());
    let after = installed.certificate(SERVED, Some(&before));
    second.wait_for_line("The certificate of the sidecars is signed", 0);
    // Now everything that was held arrives.
    let late = Audit::of(&installed.cluster).since_now();
    way.thaw();
    eventually("the late requests", || {
        let arrived =
            late.by_agent("callback-guard/").into_iter().any(|entry| entry.user_agent().ends_with(" first"));
        arrived.then_some(())
    });
    eventually("the first to wait again", || first.page("/readyz").contains("ok").then_some(()));
    signs_again(&installed, &second);
    assert_ne!(installed.certificate(SERVED, None), after);
    let writers = writers(&installed);
    assert_eq!(names(&writers), ["first", "second"], "{writers:#?}");
}

#[test]
fn an_api_server_that_restarts_leaves_one_leader_and_every_certificate() {
    let Some(installed) = Installation::new() else { return };
    let replicas = ["first", "second"].map(|identity| installed.start(identity, &[LEASE]));
    let certificate = installed.certificate(SERVED, None);
    for signal in ["KILL", "TERM"] {
        installed.cluster.stop("kube-apiserver", signal);
        let away = Instant::now();
        // Longer than the Lease.
        eventually("some seconds without an API server", || {
            (away.elapsed() > Duration::from_secs(8)).then_some(())
        });
        installed.cluster.start_again("kube-apiserver");
        installed.cluster.wait_for_api();
        assert_eq!(installed.certificate(SERVED, None), certificate);
        let leader = eventually("one leader", || {
            let leads = |replica: &&Replica| replica.metric("callback_guard_controller_leader") == Some(1);
            let leaders: Vec<_> = replicas.iter().filter(leads).collect();
            (leaders.len() == 1).then(|| leaders[0])
        });
        let expiry = "callback_guard_controller_ca_expiry_timestamp_seconds";
        eventually("the CA in its memory", || leader.metric(expiry).filter(|seconds| *seconds > 0));
        let is_stored = |line: &serde_json::Value| {
            line["message"].as_str().is_some_and(|text| text.contains("The CA is stored again"))
        };
        let stored = leader.log().iter().filter(|line| is_stored(line)).count();
        installed.cluster.kubectl(&["-n", OWN, "delete", "secret", "callback-guard-ca"]);
        eventually("the CA's Secret", || installed.text(OWN, "secret", "callback-guard-ca", "tls.crt"));
        leader.wait_for_line("The CA is stored again", stored);
        assert_eq!(installed.certificate(SERVED, None), certificate, "the CA is the same");
    }
    // After each restart one took over, or the same went on; in between nobody else wrote.
    let writers = writers(&installed);
    assert!(writers.len() <= 3, "{:?}", names(&writers));
}

/// What a leader of another term would send late, by hand: the API server itself refuses it.
#[test]
fn a_late_creation_and_a_late_change_are_refused_and_one_of_now_is_not() {
    let Some(installed) = Installation::new() else { return };
    let replica = installed.start("first", &[]);
    let served = installed.certificate(SERVED, None);
    replica.signal(libc::SIGTERM);
    assert_eq!(replica.wait(), 0);
    let seen = installed.cluster.get(SERVED, &["secret", "callback-guard-tls"]).expect("it is there");
    let apply = |manager: &str, version: &serde_json::Value, uid: &serde_json::Value, force: bool| {
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "callback-guard-tls", "namespace": SERVED, "resourceVersion": version, "uid": uid},
            "data": {"tls.crt": "bGF0ZQ==", "tls.key": "bGF0ZQ=="},
        });
        let manager = format!("--field-manager={manager}");
        let force = format!("--force-conflicts={force}");
        installed.cluster.try_apply(&secret.to_string(), &["--server-side", &manager, &force])
    };
    let (null, uid) = (serde_json::Value::Null, &seen["metadata"]["uid"]);
    let creation = apply("callback-guard-controller.other", &null, &null, false).expect_err("it exists");
    assert!(creation.contains("conflict"), "{creation}");
    let change =
        apply("callback-guard-controller", &serde_json::json!("1"), uid, true).expect_err("it has changed");
    assert!(change.contains("the object has been modified"), "{change}");
    assert_eq!(installed.certificate(SERVED, None), served);
    // Negative twin: based on what is there, it is taken.
    apply("callback-guard-controller", &seen["metadata"]["resourceVersion"], uid, true)
        .expect("it is as it was seen");
    installed.cluster.kubectl(&["-n", SERVED, "delete", "secret", "callback-guard-tls"]);
    let change = apply("callback-guard-controller", &seen["metadata"]["resourceVersion"], uid, true)
        .expect_err("it is gone");
    assert!(change.contains("onflict"), "{change}");
}
