use std::collections::BTreeSet;

use super::*;
use crate::callback::command;
use crate::cause::Cause;
use crate::verdict::Finding;

/// What dashboards and alerts are written against: each sample's name with the names of its labels. A histogram
/// stands for its three kinds of sample.
const INTERFACE: [&str; 40] = [
    "abandoned_total",
    "accept_pauses_total",
    "admin_connections_closed_total{reason}",
    "after_accepted_total",
    "after_attempts_total{result}",
    "after_delivered_total{command}",
    "after_lost_total{reason}",
    "after_queue_bytes",
    "after_queue_events",
    "after_queue_oldest_seconds",
    "after_wait_seconds",
    "bad_http_total{reason}",
    "breaker_state{rule}",
    "build_info{version}",
    "callback_duration_seconds{origin}",
    "callbacks_total{command,rule,verdict,origin,cause}",
    "certificate_expiry_timestamp_seconds",
    "connections",
    "connections_ended_total{reason}",
    "deadline_margin_seconds",
    "findings_total{finding}",
    "held_bytes",
    "held_limit_bytes",
    "in_flight",
    "log_lines_dropped_total",
    "observe_mode",
    "observed_total{cause}",
    "overloads_total{reason}",
    "override_active",
    "panics_total",
    "policy_info{source,hash}",
    "policy_last_reload_successful",
    "policy_reload_failures_total",
    "policy_watch_connected",
    "rejections_total{cause}",
    "tls_handshake_failures_total{reason}",
    "tls_reload_failures_total",
    "unsolicited_answers_total",
    "upstream_duration_seconds",
    "EOF",
];

fn sample(line: &str) -> String {
    let (series, _) = line.rsplit_once(' ').expect("a sample has a value");
    let name = series.strip_prefix("callback_guard_").expect("every name begins alike");
    let (name, labels) =
        name.split_once('{').map_or((name, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
    let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
    let keys: Vec<_> = labels
        .split("\",")
        .filter_map(|label| Some(label.split_once('=')?.0))
        .filter(|key| *key != "le")
        .collect();
    let name = histogram.unwrap_or(name);
    if keys.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", keys.join(",")) }
}

#[test]
fn the_names_and_labels_are_those_that_dashboards_rely_on() {
    let metrics = Arc::new(Metrics::new(Counter::default()));
    let text =
        "rules: [{name: r, breaker: {failureRate: 0.5, minimumCallbacks: 2, window: 1s, openFor: 1s}}]";
    let (policy, _) = crate::policy::compile(text).expect("valid");
    let source = crate::in_force::SourceKind::File;
    let in_force = InForce::new(policy, None, source, String::new(), None);
    metrics.policy_in_force(&in_force);
    metrics.handshake_failed(HandshakeFailure::Timeout);
    metrics.bad_http(BadHttp::Malformed);
    let event = command::lookup("callbackAfterQuitGroupCommand").expect("known");
    metrics.after().delivered(event, Duration::from_millis(3));
    let recorder = Recorder::new(Arc::clone(&metrics));
    recorder.observed(Why::Cause(Cause::Timeout));
    recorder.record(&Counting {
        command: command::lookup("callbackBeforeSendSingleMsgCommand"),
        rule: &Arc::from("r"),
        verdict: Verdict::Allow,
        origin: Origin::Fallback,
        why: Why::Cause(Cause::Timeout),
        findings: [Finding::FieldType].into_iter().collect(),
        took: Duration::from_millis(3),
        margin: Some(-0.002),
    });
    let text = metrics.text(Audience::Loopback, &in_force, (7, 9), UNIX_EPOCH);
    let samples = text.lines().filter(|line| !line.starts_with('#')).map(sample);
    let mut found: BTreeSet<_> = samples.collect();
    found.extend(text.lines().last().map(|line| line.trim_start_matches("# ").to_owned()));
    assert_eq!(found, INTERFACE.map(str::to_owned).into_iter().collect());
    let documented = metrics.entries().iter().map(|entry| {
        let name = entry.name().trim_start_matches("callback_guard_").to_owned();
        let keys: Vec<_> = entry.labels().iter().map(|label| label.name).collect();
        if keys.is_empty() { name } else { format!("{name}{{{}}}", keys.join(",")) }
    });
    let documented: BTreeSet<_> = documented.chain(["EOF".to_owned()]).collect();
    assert_eq!(documented, found, "what the reference says of names and labels");
    let counted = "callback_guard_callbacks_total{command=\"callbackBeforeSendSingleMsgCommand\",rule=\"r\",\
                   verdict=\"allow\",origin=\"fallback\",cause=\"timeout\"} 1";
    assert!(text.lines().any(|line| line == counted), "{text}");
    for observed in [
        "callback_guard_callback_duration_seconds_bucket{le=\"0.0025\",origin=\"fallback\"} 0",
        "callback_guard_callback_duration_seconds_bucket{le=\"0.005\",origin=\"fallback\"} 1",
        "callback_guard_deadline_margin_seconds_bucket{le=\"-0.005\"} 0",
        "callback_guard_deadline_margin_seconds_bucket{le=\"-0.001\"} 1",
        "callback_guard_held_bytes 7",
        "callback_guard_held_limit_bytes 9",
    ] {
        assert!(text.lines().any(|line| line == observed), "{observed}\n{text}");
    }
}
