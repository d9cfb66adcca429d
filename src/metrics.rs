//! What is counted, by the names that dashboards rely on.
//!
//! Every label comes from a closed set: commands of the table (`unknown` for the rest), rules of the policy, causes,
//! findings. A callback costs one count in a small map that each worker keeps to itself, and three histograms.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use self::admin::AdminMetrics;
use self::after::AfterMetrics;
use self::catalog::{Audience, Catalog, Entry};
use self::connections::ConnectionMetrics;
use self::labels::{
    BadHttpLabel, CallbackLabels, CauseLabel, FindingLabel, HandshakeLabel, OriginLabel, OverloadLabel,
    PolicyLabels, RejectionLabel, RuleLabel, VersionLabel,
};
use crate::callback::command::Command;
use crate::callback::rejection::RejectionCause;
use crate::cause::Overload;
use crate::in_force::InForce;
use crate::reply::{Origin, Why};
use crate::tls::HandshakeFailure;
use crate::verdict::{FINDINGS, Findings, Verdict};

pub use labels::BadHttp;

pub mod admin;
pub mod after;
pub mod catalog;
pub mod connections;
mod labels;

/// Most series of `callbacks_total`: beyond it, after many edits that rename rules, new ones are counted under the rule
/// `other`.
const SERIES_LIMIT: usize = 20_000;

/// Buckets in seconds: 100 us is a loopback exchange, 15 s is the longest OpenIM waits.
const SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];

/// Buckets of what was left of the deadline, in seconds; below zero it was missed.
const MARGIN: [f64; 14] =
    [-1.0, -0.05, -0.005, -0.001, 0.0, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Everything that is counted. One to a process.
#[derive(Debug)]
pub struct Metrics {
    catalog: Catalog,
    callbacks: Family<CallbackLabels, Counter>,
    /// How many of them were asked for, by all workers together: never fewer than there are.
    series: AtomicUsize,
    rejections: Family<RejectionLabel, Counter>,
    findings: Family<FindingLabel, Counter>,
    observed: Family<CauseLabel, Counter>,
    /// In the order of [`Origin`].
    duration: [Histogram; Origin::ALL.len()],
    upstream_duration: Histogram,
    unsolicited_answers: Counter,
    deadline_margin: Histogram,
    in_flight: Gauge<i64, AtomicI64>,
    connections: Gauge<i64, AtomicI64>,
    handshake_failures: Family<HandshakeLabel, Counter>,
    bad_http: Family<BadHttpLabel, Counter>,
    certificate_expiry: Gauge<i64, AtomicI64>,
    policy: Family<PolicyLabels, Gauge>,
    policy_reload_failures: Counter,
    policy_last_reload: Gauge,
    policy_watch_connected: Gauge,
    override_active: Gauge,
    observe_mode: Gauge,
    tls_reload_failures: Counter,
    breakers: Family<RuleLabel, Gauge>,
    panics: Counter,
    abandoned: Counter,
    overloads: Family<OverloadLabel, Counter>,
    log_lines_dropped: Counter,
    bytes_held: Gauge,
    held_limit: Gauge,
    kept: ConnectionMetrics,
    admin: AdminMetrics,
    after: AfterMetrics,
}

impl Metrics {
    /// Registers every metric. `dropped` counts log lines that were not written.
    pub fn new(dropped: Counter) -> Metrics {
        let mut catalog = Catalog::new("callback_guard");
        let durations = Family::<OriginLabel, Histogram>::new_with_constructor(|| Histogram::new(SECONDS));
        let duration = Origin::ALL
            .map(|origin| durations.get_or_create(&OriginLabel { origin: origin.label() }).clone());
        let version = Family::<VersionLabel, Gauge>::default();
        version.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        let metrics = Metrics {
            callbacks: Family::default(),
            series: AtomicUsize::new(0),
            rejections: Family::default(),
            findings: Family::default(),
            observed: Family::default(),
            duration,
            upstream_duration: Histogram::new(SECONDS),
            unsolicited_answers: Counter::default(),
            deadline_margin: Histogram::new(MARGIN),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            handshake_failures: Family::default(),
            bad_http: Family::default(),
            certificate_expiry: Gauge::default(),
            policy: Family::default(),
            policy_reload_failures: Counter::default(),
            policy_last_reload: Gauge::default(),
            policy_watch_connected: Gauge::default(),
            override_active: Gauge::default(),
            observe_mode: Gauge::default(),
            tls_reload_failures: Counter::default(),
            breakers: Family::default(),
            panics: Counter::default(),
            abandoned: Counter::default(),
            overloads: Family::default(),
            log_lines_dropped: dropped,
            bytes_held: Gauge::default(),
            held_limit: Gauge::default(),
            kept: ConnectionMetrics::default(),
            admin: AdminMetrics::default(),
            after: AfterMetrics::default(),
            catalog: Catalog::default(),
        };
        metrics.register(&mut catalog, durations, version);
        for cause in RejectionCause::ALL {
            let _ = metrics.rejections.get_or_create(&RejectionLabel { cause: cause.label() });
        }
        for overload in Overload::ALL {
            let _ = metrics.overloads.get_or_create(&OverloadLabel { reason: overload.label() });
        }
        for row in &FINDINGS {
            let _ = metrics.findings.get_or_create(&FindingLabel { finding: row.name });
        }
        Metrics { catalog, ..metrics }
    }

    fn register(
        &self,
        to: &mut Catalog,
        durations: Family<OriginLabel, Histogram>,
        version: Family<VersionLabel, Gauge>,
    ) {
        to.add("callbacks", "Callbacks answered", self.callbacks.clone());
        to.add(
            "rejections",
            "Requests rejected because they are not valid callbacks",
            self.rejections.clone(),
        );
        let help = "Findings in callbacks and in the app's answers, corrected or only reported";
        to.add("findings", help, self.findings.clone());
        let help = "Answers passed unchanged in mode Observe that Enforce would have replaced";
        to.add("observed", help, self.observed.clone());
        to.add_seconds("callback_duration", "Time from the end of the request head to the answer", durations);
        to.add_seconds("upstream_duration", "Duration of calls to the app", self.upstream_duration.clone());
        let help = "Connections to the app closed because of bytes that no request was waiting for: verdicts may be mixed up";
        to.add("unsolicited_answers", help, self.unsolicited_answers.clone());
        let help = "Time left until the deadline when the answer was ready; negative if it was missed";
        to.add_seconds("deadline_margin", help, self.deadline_margin.clone());
        to.add("build_info", "Version of callback-guard; always 1", version);
        self.register_state(to);
    }

    /// What is as it is, and what went wrong beside callbacks.
    fn register_state(&self, to: &mut Catalog) {
        to.add_on_loopback("in_flight", "Callbacks in progress", self.in_flight.clone());
        to.add_on_loopback("connections", "Open connections from callers", self.connections.clone());
        to.add("bad_http", "Connections closed because of an HTTP error", self.bad_http.clone());
        to.add("tls_handshake_failures", "Failed TLS handshakes", self.handshake_failures.clone());
        let help = "Unix time at which the served certificate expires";
        to.add_seconds("certificate_expiry_timestamp", help, self.certificate_expiry.clone());
        to.add("policy_info", "Policy in force; always 1", self.policy.clone());
        let help = "Failed reloads of the policy or the override";
        to.add("policy_reload_failures", help, self.policy_reload_failures.clone());
        let help = "1 if the last reload succeeded, 0 while an invalid policy or override waits for a fix";
        to.add("policy_last_reload_successful", help, self.policy_last_reload.clone());
        let help = "1 while the policy's ConfigMap is being watched";
        to.add("policy_watch_connected", help, self.policy_watch_connected.clone());
        to.add("override_active", "1 while an override is in force", self.override_active.clone());
        to.add("observe_mode", "1 while the policy's mode is Observe", self.observe_mode.clone());
        let help = "Failed reloads of certificate or credential files";
        to.add("tls_reload_failures", help, self.tls_reload_failures.clone());
        let help = "State of the rule's circuit breaker: 0 closed, 1 open, 2 half-open";
        to.add("breaker_state", help, self.breakers.clone());
        let help = "Callbacks whose caller disconnected before the answer";
        to.add("abandoned", help, self.abandoned.clone());
        let help = "Callbacks answered by the fallback for overloaded, by the bound that was reached";
        to.add("overloads", help, self.overloads.clone());
        to.add("panics", "Panics", self.panics.clone());
        to.add("log_lines_dropped", "Log lines dropped (queue full)", self.log_lines_dropped.clone());
        to.add_bytes_on_loopback(
            "held",
            "Memory reserved for callbacks in progress",
            self.bytes_held.clone(),
        );
        let help = "Limit of callback_guard_held_bytes: --max-held, by default half of the memory limit";
        to.add_bytes_on_loopback("held_limit", help, self.held_limit.clone());
        self.kept.register(to);
        self.admin.register(to);
        self.after.register(to);
    }

    /// Every metric with its meaning and its labels, for the reference.
    pub fn entries(&self) -> &[Entry] {
        self.catalog.entries()
    }

    /// The text of `/metrics`. What only the moment knows is passed in; of the bytes held, how many and the bound.
    pub fn text(
        &self,
        audience: Audience,
        in_force: &InForce,
        (held, held_limit): (usize, usize),
        now: SystemTime,
    ) -> String {
        self.breakers.clear();
        for (rule, breaker) in in_force.breakers() {
            self.breakers
                .get_or_create(&RuleLabel { rule: rule.to_string() })
                .set(i64::from(breaker.state().number()));
        }
        let active = in_force.over.as_ref().is_some_and(|over| over.active(now));
        self.override_active.set(i64::from(active));
        self.bytes_held.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.held_limit.set(i64::try_from(held_limit).unwrap_or(i64::MAX));
        self.catalog.text(audience)
    }

    /// What is counted about connections.
    pub fn kept(&self) -> &ConnectionMetrics {
        &self.kept
    }

    /// What is counted about events that are delivered in the background.
    pub fn after(&self) -> &AfterMetrics {
        &self.after
    }

    /// What the admin port counts.
    pub fn admin(&self) -> &AdminMetrics {
        &self.admin
    }

    /// A policy came into force.
    pub fn policy_in_force(&self, in_force: &InForce) {
        self.policy.clear();
        let labels =
            PolicyLabels { source: in_force.source.label(), hash: in_force.policy.hash().to_owned() };
        self.policy.get_or_create(&labels).set(1);
        self.observe_mode.set(i64::from(in_force.policy.mode() == crate::policy::Mode::Observe));
    }

    /// Nothing that was refused waits to be mended, or something does.
    pub fn policy_mended(&self, mended: bool) {
        self.policy_last_reload.set(i64::from(mended));
    }

    /// A policy was refused.
    pub fn policy_refused(&self) {
        self.policy_reload_failures.inc();
        self.policy_last_reload.set(0);
    }

    /// The ConfigMap is watched, or no longer.
    pub fn policy_watch(&self, connected: bool) {
        self.policy_watch_connected.set(i64::from(connected));
    }

    /// A certificate is served.
    pub fn certificate(&self, not_after: SystemTime) {
        let seconds = not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.certificate_expiry.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// A certificate was refused.
    pub fn certificate_refused(&self) {
        self.tls_reload_failures.inc();
    }

    /// A TLS handshake failed.
    pub fn handshake_failed(&self, failure: HandshakeFailure) {
        self.handshake_failures.get_or_create(&HandshakeLabel { reason: failure.label() }).inc();
    }

    /// A connection was closed because of an HTTP error.
    pub fn bad_http(&self, error: BadHttp) {
        self.bad_http.get_or_create(&BadHttpLabel { reason: error.label() }).inc();
    }

    /// A caller hung up before its answer.
    pub fn abandoned(&self) {
        self.abandoned.inc();
    }

    /// A callback met a bound.
    pub fn overloaded(&self, overload: Overload) {
        self.overloads.get_or_create(&OverloadLabel { reason: overload.label() }).inc();
    }

    /// A bug of the guard showed.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Counts a connection for as long as the guard lives.
    pub fn connection(&self) -> Counted {
        Counted::new(&self.connections)
    }

    /// Counts a callback in flight for as long as the guard lives.
    pub fn callback(&self) -> Counted {
        Counted::new(&self.in_flight)
    }

    /// Callbacks being answered.
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Open connections.
    pub fn connections(&self) -> i64 {
        self.connections.get()
    }

    /// Counts connections to the app with bytes that no request was waiting for.
    pub fn unsolicited_answers(&self) -> Counter {
        self.unsolicited_answers.clone()
    }

    /// How long the app was asked.
    pub fn upstream(&self, asked: Duration) {
        self.upstream_duration.observe(asked.as_secs_f64());
    }
}

/// One more of a gauge, until it is dropped.
#[derive(Debug)]
#[must_use = "what is counted is counted until this is dropped"]
pub struct Counted(Gauge<i64, AtomicI64>);

impl Counted {
    fn new(gauge: &Gauge<i64, AtomicI64>) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What a callback came to, as far as it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Counting<'r> {
    /// The table's entry.
    pub command: Option<&'static Command>,
    /// The name of the rule that matched; of a rejection, none did.
    pub rule: &'r Arc<str>,
    /// What was answered.
    pub verdict: Verdict,
    /// Who decided.
    pub origin: Origin,
    /// Why it was not the app.
    pub why: Why,
    /// What was corrected or noticed.
    pub findings: Findings,
    /// From the end of the head to the answer.
    pub took: Duration,
    /// What was left of the deadline, in seconds, where there was one.
    pub margin: Option<f64>,
}

/// Counts the callbacks of one worker. Not shared between threads: it keeps the counters it has met at hand.
#[derive(Debug)]
pub struct Recorder {
    metrics: Arc<Metrics>,
    met: RefCell<HashMap<Key, Met, BuildHasherDefault<Mixer>>>,
}

/// A counter, and the rule's name that its key stands for.
type Met = (Arc<str>, Counter);

/// What tells series apart, without a look at a text: the places of the command and of the rule's name (which the
/// value keeps alive, so that no other name can take it), and the rest in a byte each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    command: usize,
    rule: usize,
    rest: u32,
}

impl Key {
    fn of(counting: &Counting<'_>) -> Key {
        let why = match counting.why {
            Why::Nothing => 0,
            Why::Cause(cause) => 1 + cause as u32,
            Why::Rejection(cause) => 0x80 + cause as u32,
        };
        let denied = u32::from(matches!(counting.verdict, Verdict::Deny { .. }));
        Key {
            command: counting.command.map_or(0, |command| std::ptr::from_ref(command).addr()),
            rule: Arc::as_ptr(counting.rule).addr(),
            rest: why << 16 | (counting.origin as u32) << 8 | denied,
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(
            self.command as u64 ^ (self.rule as u64).rotate_left(24) ^ u64::from(self.rest).rotate_left(48),
        );
    }
}

/// A hash of one number: no caller chooses these keys, so none can make them collide.
#[derive(Debug, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Recorder {
    /// A recorder for one worker.
    pub fn new(metrics: Arc<Metrics>) -> Recorder {
        Recorder { metrics, met: RefCell::default() }
    }

    /// Counts one callback.
    pub fn record(&self, counting: &Counting<'_>) {
        let mut met = self.met.borrow_mut();
        if met.len() >= SERIES_LIMIT {
            met.clear(); // only what is at hand: the series themselves stay
        }
        let fresh = || (Arc::clone(counting.rule), self.metrics.counter(counting));
        met.entry(Key::of(counting)).or_insert_with(fresh).1.inc();
        if let Why::Rejection(cause) = counting.why {
            self.metrics.rejections.get_or_create(&RejectionLabel { cause: cause.label() }).inc();
        }
        for finding in counting.findings.iter() {
            self.metrics.findings.get_or_create(&FindingLabel { finding: finding.row().name }).inc();
        }
        self.metrics.duration[counting.origin as usize].observe(counting.took.as_secs_f64());
        if let Some(margin) = counting.margin {
            self.metrics.deadline_margin.observe(margin);
        }
    }

    /// Counts an answer that mode Observe let through and Enforce would have replaced.
    pub fn observed(&self, why: Why) {
        self.metrics.observed.get_or_create(&CauseLabel { cause: cause_label(why) }).inc();
    }
}

impl Metrics {
    fn counter(&self, counting: &Counting<'_>) -> Counter {
        self.callbacks.get_or_create_owned(&CallbackLabels {
            command: counting.command.map_or(labels::UNKNOWN_COMMAND, |command| command.name),
            rule: if self.series.fetch_add(1, Ordering::Relaxed) < SERIES_LIMIT {
                Arc::clone(counting.rule)
            } else {
                Arc::from(labels::OTHER_RULES)
            },
            verdict: match counting.verdict {
                Verdict::Allow => labels::ALLOW,
                Verdict::Deny { .. } => labels::DENY,
            },
            origin: counting.origin.label(),
            cause: cause_label(counting.why),
        })
    }
}

fn cause_label(why: Why) -> &'static str {
    if why == Why::Nothing { labels::NO_CAUSE } else { why.label() }
}

#[cfg(test)]
mod tests;
