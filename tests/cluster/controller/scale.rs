//! Many namespaces: bounds on what the controller holds and asks for. Figures are in `cargo bench --bench controller`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::audit::Audit;
use super::super::cluster::{Cluster, Stage, can_hold, eventually};
use super::super::crowd::{Crowd, memory};
use super::super::replica::Replica;

const NAMESPACES: usize = 200;
const PODS: usize = 10;

/// What is looked at while nothing happens.
const REST: Duration = Duration::from_secs(30);

#[test]
fn two_hundred_namespaces_and_two_thousand_pods_are_watched_within_bounds() {
    if !can_hold(Stage::A) {
        return;
    }
    let cluster = Cluster::start(Stage::A);
    let crowd = Crowd::create(&cluster, Path::new(env!("CARGO_BIN_EXE_callback-guard")), NAMESPACES, PODS);
    let replica = Replica::run(crowd.controller(NAMESPACES, "crowd"));
    let sum = |state: &str| -> i64 {
        let name = |number| {
            format!(
                "callback_guard_controller_pods{{state=\"{state}\",namespace=\"{}\"}}",
                crowd.name(number)
            )
        };
        let text = replica.page("/metrics");
        let value = |name: String| {
            text.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<i64>().ok()).unwrap_or(0)
        };
        (0..NAMESPACES).map(name).map(value).sum()
    };
    eventually("all pods", || (sum("guarded") == (NAMESPACES * PODS) as i64).then_some(()));
    let signed = "callback_guard_controller_renewals_total{result=\"succeeded\"}";
    eventually("all certificates", || (replica.metric(signed)? == NAMESPACES as i64 + 1).then_some(()));

    // At rest it renews its Lease each 5 s; watches last nearly an hour.
    let audit = Audit::of(&cluster);
    eventually("the last watch", || {
        beyond_the_lease(&audit, Duration::from_secs(3)).is_empty().then_some(())
    });
    let mark = audit.since_now();
    let others = beyond_the_lease(&audit, REST);
    assert!(others.is_empty(), "{others:?}");
    let renewals =
        mark.by_agent("callback-guard/").iter().filter(|entry| entry.resource() == "leases").count();
    assert!((5..=8).contains(&renewals), "{renewals} renewals in {REST:?}");

    let (resident, peak) = memory(replica.pid());
    println!("{NAMESPACES} namespaces: {} MiB, at most {} MiB", resident >> 20, peak >> 20);
    assert!(resident < 96 << 20, "{resident} bytes");
    crowd.create_naked(NAMESPACES - 1);
    let about = format!("Pod {}/naked", crowd.name(NAMESPACES - 1));
    replica.wait_for_finding("NakedPods", &about);
    assert_eq!(sum("naked"), 1);
}

/// What the controller asks for within this time, but for its Lease.
fn beyond_the_lease(audit: &Audit, time: Duration) -> Vec<String> {
    let audit = audit.since_now();
    let begun = Instant::now();
    eventually("some time", || (begun.elapsed() >= time).then_some(()));
    let entries = audit.by_agent("callback-guard/").into_iter().filter(|entry| entry.resource() != "leases");
    entries.map(|entry| entry.uri().to_owned()).collect()
}
