//! The backstop for memory that nobody counted: looks at what the container uses, and takes in less before the kernel kills
//! the process.
//!
//! At 80 % of the limit no connection is accepted any more, until it is less than 75 %. At 90 % the connections that pin the
//! most memory are ended, as many as it takes by an estimate. Bounds on each thing that is counted should keep both from ever
//! happening; this is for what they miss. Without a limit there is no backstop.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::cgroup::Cgroup;
use crate::log::Repeated;
use crate::memory;
use crate::metrics::Metrics;
use crate::server::{Pressure, Workers};

/// How often memory is looked at. An attack on loopback took 230 MB a second: 23 MB between two looks, a tenth of the
/// container's memory as `inject` writes it. A look takes 0.15 ms of the main thread, on a busy machine.
const LOOK: Duration = Duration::from_millis(100);

/// How often the limit is read: Kubernetes resizes a container in place.
const LIMIT_LOOK: Duration = Duration::from_secs(5);

/// How often memory is given back while it is only so much that nothing is accepted. What was freed stays with the allocator
/// until it is asked for it, and might be all that is in use; asking makes workers wait for some milliseconds.
const BETWEEN_TRIMS: Duration = Duration::from_secs(5);

/// Percent of the limit from which on nothing is accepted.
const PAUSE: u64 = 80;

/// Percent of the limit below which connections are accepted again.
const EASE: u64 = 75;

/// Percent of the limit from which on connections are ended, until by an estimate it is [`PAUSE`].
const SHED: u64 = 90;

/// What a look at memory comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Judgment {
    /// Nothing is accepted.
    pause: bool,
    /// Bytes of connections to end.
    shed: u64,
}

impl Judgment {
    /// Judges bytes in use, where the last judgment was this one.
    fn of(self, used: u64, limit: u64) -> Judgment {
        let part = |percent: u64| u64::try_from(u128::from(limit) * u128::from(percent) / 100);
        let part = |percent| part(percent).unwrap_or(u64::MAX);
        let pause = used >= part(if self.pause { EASE } else { PAUSE });
        let shed = if used >= part(SHED) { used - part(PAUSE) } else { 0 };
        Judgment { pause, shed }
    }
}

/// Looks at memory for ever.
pub(super) struct Backstop {
    cgroup: Cgroup,
    limit: Option<u64>,
    limit_read: Option<Instant>,
    last: Judgment,
    trimmed: Option<Instant>,
    pressure: Pressure,
    workers: Workers,
    metrics: Arc<Metrics>,
}

impl Backstop {
    pub(super) fn new(
        cgroup: Cgroup,
        pressure: Pressure,
        workers: Workers,
        metrics: &Arc<Metrics>,
    ) -> Backstop {
        let (limit, limit_read, trimmed) = (None, None, None);
        let last = Judgment::default();
        let metrics = Arc::clone(metrics);
        Backstop { cgroup, limit, limit_read, last, trimmed, pressure, workers, metrics }
    }

    pub(super) async fn run(mut self) -> Infallible {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let found = self.limit().map(|limit| self.used().map(|used| (used, limit)));
        // Without a limit, or one that cannot be compared with, there is no backstop.
        let Some(Some((used, limit))) = found else { return self.judged(Judgment::default(), 0, 0) };
        let mut judgment = self.last.of(used, limit);
        if judgment.shed > 0 || judgment.pause && self.trimmed.is_none_or(|at| at.elapsed() >= BETWEEN_TRIMS)
        {
            memory::trim();
            self.trimmed = Some(Instant::now());
            judgment = self.last.of(self.used().unwrap_or(used), limit);
        }
        self.judged(judgment, used, limit);
        if judgment.shed > 0 {
            // What was ended is told by the workers, with a count.
            self.workers.shed(judgment.shed).await;
        }
    }

    fn judged(&mut self, judgment: Judgment, used: u64, limit: u64) {
        self.pressure.set(judgment.pause);
        match (self.last.pause, judgment.pause) {
            (false, true) => {
                static PAUSED: Repeated = Repeated::new();
                self.metrics.kept().paused();
                PAUSED.line(move |count| {
                    warn!(
                        used,
                        limit,
                        count,
                        "The container's memory is nearly used up: no connection is accepted until less than 75 % is in use"
                    );
                });
            }
            (true, false) => {
                static RESUMED: Repeated = Repeated::new();
                RESUMED.line(move |count| info!(used, limit, count, "Connections are accepted again"));
            }
            (true, true) | (false, false) => {}
        }
        self.last = judgment;
    }

    /// The limit as it was read last.
    fn limit(&mut self) -> Option<u64> {
        if self.limit_read.is_none_or(|at| at.elapsed() >= LIMIT_LOOK) {
            self.limit_read = Some(Instant::now());
            self.limit = self.cgroup.memory_limit().unwrap_or_else(|reason| {
                off(reason);
                None
            });
        }
        self.limit
    }

    fn used(&self) -> Option<u64> {
        self.cgroup.memory_used().map_err(off).ok()
    }
}

/// Once in the life of the process.
fn off(reason: String) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        warn!(
            reason,
            "Memory in use cannot be compared with its limit: new connections are accepted in any case"
        );
    });
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::time::advance;

    use super::*;
    use crate::files::tests::Folder;
    use crate::server::worker;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_pauses_at_80_percent_goes_on_below_75_and_sheds_from_90_down_to_80() {
        let mut last = Judgment::default();
        for (used, pause, shed) in [
            (0, false, 0),
            (79, false, 0),
            (80, true, 0),
            (79, true, 0),
            (75, true, 0),
            (74, false, 0),
            (79, false, 0),
            (89, true, 0),
            (90, true, 10),
            (100, true, 20),
            (130, true, 50),
            (89, true, 0),
            (10, false, 0),
        ] {
            last = last.of(used * MIB, 100 * MIB);
            assert_eq!(last, Judgment { pause, shed: shed * MIB }, "{used}");
        }
        assert_eq!(Judgment::default().of(1 << 40, u64::MAX), Judgment::default());
    }

    #[tokio::test(start_paused = true)]
    async fn accepting_pauses_within_a_look_and_only_where_there_is_a_limit() {
        let folder = Folder::new();
        let membership = folder.put("cgroup", "0::/");
        let (worker, _inbox) = worker();
        let metrics = Arc::new(Metrics::new(Counter::default()));
        let pressure = Pressure::default();
        let cgroup = Cgroup::at(membership, folder.path(""));
        let mut backstop = Backstop::new(cgroup, pressure.clone(), Workers::new(vec![worker]), &metrics);
        for (limit, used, high) in [
            ("max", "99999999", false),
            ("1000", "799", false),
            ("1000", "800", true),
            ("1000", "750", true),
            ("2000", "800", false),
            ("2000", "1700", true),
            ("max", "1700", false),
            ("nonsense", "1700", false),
            ("1000", "850", true),
            ("1000", "nonsense", false),
        ] {
            folder.put("memory.max", limit);
            folder.put("memory.current", used);
            advance(LIMIT_LOOK).await;
            backstop.look().await;
            assert_eq!(pressure.is_high(), high, "{used} of {limit}");
        }
    }
}
