//! Where the policy comes from: what is loaded is proved whole, and only then in force.
//!
//! Policy and override are loaded apart, so that an override for 3 a.m. works beside a broken policy. A broken
//! one of either leaves the last good one in force, and says why: in the log, in a metric, on `/policy`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tracing::{error, info, warn};

use crate::in_force::{InForce, SourceKind};
use crate::metrics::Metrics;
use crate::policy::{self, Override, Policy, Warnings, overrides};
use crate::status::{Refused, Watched};

pub mod boot;
pub mod cache;
pub mod config_map;
pub mod file;
pub mod watch;

/// A ConfigMap holds at most 1 MiB; so does a text that is read as a policy.
const TEXT_LIMIT_BYTES: usize = 1 << 20;

/// Puts policies in force. Clones publish to the same receivers.
#[derive(Clone, Debug)]
pub struct Publisher {
    in_force: Arc<tokio::sync::watch::Sender<Arc<InForce>>>,
    metrics: Arc<Metrics>,
    refused_policy: Refused,
    refused_override: Refused,
    /// Whether the ConfigMap has delivered, good or bad.
    from_cluster: Arc<AtomicBool>,
    watched: Watched,
    cache_problem: Refused,
}

impl Publisher {
    /// Starts with the built-in defaults in force.
    pub fn new(metrics: Arc<Metrics>) -> (Publisher, tokio::sync::watch::Receiver<Arc<InForce>>) {
        let builtin = Arc::new(InForce::builtin());
        metrics.policy_in_force(&builtin);
        metrics.policy_mended(true);
        let (sender, receiver) = tokio::sync::watch::channel(builtin);
        let publisher = Publisher {
            in_force: Arc::new(sender),
            metrics,
            refused_policy: Refused::default(),
            refused_override: Refused::default(),
            from_cluster: Arc::default(),
            watched: Watched::default(),
            cache_problem: Refused::default(),
        };
        (publisher, receiver)
    }

    /// What is in force now.
    pub fn current(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.borrow())
    }

    /// Puts a policy in force; the override stays.
    pub fn policy(&self, policy: Policy, warnings: &Warnings, source: SourceKind, revision: String) {
        warn_of(warnings, "The policy has a weak spot");
        self.in_force.send_modify(|before| {
            let over = before.over.clone();
            *before = Arc::new(InForce::new(policy, over, source, revision, Some(before.as_ref())));
        });
        let now = self.current();
        self.metrics.policy_in_force(&now);
        self.mended(&self.refused_policy);
        info!(
            policy.source = source.label(),
            policy.hash = now.policy.hash(),
            policy.revision = now.revision,
            policy.rules = now.policy.rules().len(),
            policy.mode = now.policy.mode().label(),
            "A policy is in force"
        );
    }

    /// Puts an override beside the policy, or takes it away.
    pub fn over(&self, over: Option<Override>, warnings: &Warnings) {
        warn_of(warnings, "The override has a weak spot");
        match &over {
            Some(over) => {
                warn!(over.until = over.until_text(), over.reason = over.reason(), "An override is set");
            }
            None if self.current().over.is_some() => info!("The override is taken away"),
            None => {}
        }
        self.in_force.send_modify(|before| {
            let InForce { policy, source, revision, .. } = before.as_ref();
            let policy = policy.clone();
            *before = Arc::new(InForce::new(policy, over, *source, revision.clone(), Some(before.as_ref())));
        });
        self.mended(&self.refused_override);
    }

    /// Says that a policy was refused, and keeps what is in force.
    pub fn refused_policy(&self, from: &str, reason: String) {
        match self.current().source {
            SourceKind::Builtin => {
                error!(
                    policy.from = from,
                    reason, "The policy is refused; the built-in defaults are in force"
                );
            }
            SourceKind::File | SourceKind::ConfigMap | SourceKind::Cache => {
                error!(policy.from = from, reason, "The policy is refused; the last good one stays in force");
            }
        }
        self.metrics.policy_refused();
        self.refused_policy.set(Some(reason));
    }

    /// Says that an override was refused, and keeps what is in force.
    pub fn refused_override(&self, from: &str, reason: String) {
        error!(over.from = from, reason, "The override is refused; what was in force stays");
        self.metrics.policy_refused();
        self.refused_override.set(Some(reason));
    }

    /// The policy that is in force was seen again: nothing refused is waiting any more.
    pub fn policy_is_good(&self) {
        if self.refused_policy.reason().is_some() {
            self.mended(&self.refused_policy);
            info!("The policy is again the one in force");
        }
    }

    /// The override beside it was seen again.
    pub fn override_is_good(&self) {
        if self.refused_override.reason().is_some() {
            self.mended(&self.refused_override);
            info!("The override is again the one in force");
        }
    }

    /// One of the two is good again; the other may still wait.
    fn mended(&self, refused: &Refused) {
        refused.set(None);
        self.metrics.policy_mended(self.refused() == [None, None]);
    }

    /// Whether the ConfigMap is watched at the moment.
    pub fn watch_connected(&self, connected: bool) {
        self.metrics.policy_watch(connected);
        self.watched.connected(connected);
    }

    /// Why the ConfigMap cannot be watched, or that it can.
    pub fn watch_problem(&self, problem: Option<String>) {
        self.watched.problem.set(problem);
    }

    /// The watch, as it is at the moment.
    pub fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Why the last good policy cannot be kept on disk, or that it can.
    pub fn cache_problem(&self, problem: Option<String>) {
        self.cache_problem.set(problem);
    }

    /// Why the last good policy is not kept on disk, where it should be.
    pub fn not_kept(&self) -> Option<String> {
        self.cache_problem.reason()
    }

    /// Whether the ConfigMap has delivered: files are no longer read then.
    pub fn is_from_cluster(&self) -> bool {
        self.from_cluster.load(Ordering::Relaxed)
    }

    /// The ConfigMap has delivered: from now on it alone is the source.
    pub fn delivered_from_cluster(&self) {
        self.from_cluster.store(true, Ordering::Relaxed);
    }

    /// Why the last policy and the last override were refused, where they were.
    pub fn refused(&self) -> [Option<String>; 2] {
        [self.refused_policy.reason(), self.refused_override.reason()]
    }

    /// Says in the log when an override begins or ends by itself. Runs for ever.
    pub async fn tell_override(&self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let mut was_active = false;
        loop {
            ticks.tick().await;
            let now = self.current();
            let active = now.over.as_ref().is_some_and(|over| over.active(SystemTime::now()));
            if was_active
                && !active
                && let Some(over) = &now.over
            {
                warn!(over.until = over.until_text(), "The override has ended by itself");
            }
            was_active = active;
        }
    }
}

/// Most problems or warnings of one text that are logged and shown: a text of 1 MiB has 20,000 of them, more than a log line
/// holds.
const SHOWN_PROBLEMS: usize = 20;

/// Problems as one text, a line each: for a log field, a page and a person alike.
pub fn lines(problems: &policy::Problems) -> String {
    let mut lines: Vec<_> = problems.iter().take(SHOWN_PROBLEMS).map(ToString::to_string).collect();
    if let Some(more) = problems.len().checked_sub(SHOWN_PROBLEMS).filter(|more| *more > 0) {
        lines.push(format!("and {more} more: callback-guard check prints all"));
    }
    lines.join("\n")
}

fn warn_of(warnings: &Warnings, what: &str) {
    for warning in warnings.iter().take(SHOWN_PROBLEMS) {
        warn!(problem = %warning, "{what}");
    }
    if let Some(more) = warnings.len().checked_sub(SHOWN_PROBLEMS).filter(|more| *more > 0) {
        warn!(more, "{what}: callback-guard check prints all");
    }
}

/// A text to a policy, through the one door; the problems as text.
pub fn compile(text: &str) -> Result<(Policy, Warnings), String> {
    policy::compile(text).map_err(|problems| lines(&problems))
}

/// A text to an override.
pub fn compile_override(text: &str) -> Result<(Option<Override>, Warnings), String> {
    overrides::compile(text, SystemTime::now()).map_err(|problems| lines(&problems))
}

/// A path for a log field.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
