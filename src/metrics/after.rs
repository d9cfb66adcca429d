//! What is counted about events that are delivered in the background.
//!
//! Every accepted event is delivered, lost or in the queue: `after_accepted_total` is `after_delivered_total` and
//! `after_lost_total` of all labels, and `after_queue_events`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use self::labels::{AttemptLabel, CommandLabel, LossLabel};
use super::catalog::Catalog;
use crate::after::{Attempt, Loss, Status};
use crate::callback::command::Command;

/// Buckets in seconds: from an app that takes events at once to one that is away for a day.
const WAITS: [f64; 12] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 3_600.0, 86_400.0];

mod labels {
    use crate::after::{Attempt, Loss};
    use crate::metrics::catalog::{labels, one_of};

    labels! {
        AttemptLabel { result: &'static str = one_of(Attempt::ALL.map(Attempt::label)) }
        CommandLabel { command: &'static str = "an after-[command](causes-and-commands.md#commands)" }
        LossLabel { reason: &'static str = one_of(Loss::ALL.map(Loss::label)) }
    }
}

/// Counts events. Clones count together.
#[derive(Clone, Debug)]
pub struct AfterMetrics {
    events: Gauge,
    bytes: Gauge,
    oldest: Gauge<f64, AtomicU64>,
    accepted: Counter,
    delivered: Family<CommandLabel, Counter>,
    lost: Family<LossLabel, Counter>,
    attempts: Family<AttemptLabel, Counter>,
    wait: Histogram,
}

impl Default for AfterMetrics {
    fn default() -> AfterMetrics {
        let (lost, attempts) = (Family::<LossLabel, Counter>::default(), Family::default());
        for loss in Loss::ALL {
            let _ = lost.get_or_create(&LossLabel { reason: loss.label() });
        }
        for attempt in Attempt::ALL {
            let _ = Family::<AttemptLabel, Counter>::get_or_create(
                &attempts,
                &AttemptLabel { result: attempt.label() },
            );
        }
        AfterMetrics {
            events: Gauge::default(),
            bytes: Gauge::default(),
            oldest: Gauge::default(),
            accepted: Counter::default(),
            delivered: Family::default(),
            lost,
            attempts,
            wait: Histogram::new(WAITS),
        }
    }
}

impl AfterMetrics {
    /// Registers what is counted.
    pub fn register(&self, to: &mut Catalog) {
        let help = "Events of after-commands in the queue, those being delivered included";
        to.add("after_queue_events", help, self.events.clone());
        to.add_bytes_on_loopback("after_queue", "Memory for events in the queue", self.bytes.clone());
        let help = "Age of the oldest event in the queue; 0 without one";
        to.add_seconds("after_queue_oldest", help, self.oldest.clone());
        let help = "Events accepted for delivery in the background";
        to.add("after_accepted", help, self.accepted.clone());
        to.add("after_delivered", "Events that the app answered with 2xx", self.delivered.clone());
        let help = "Events given up, by [reason](after.md#what-is-lost-and-when)";
        to.add("after_lost", help, self.lost.clone());
        to.add("after_attempts", "Attempts to deliver an event", self.attempts.clone());
        let help = "Time from the acceptance of a delivered event to the attempt that delivered it";
        to.add_seconds("after_wait", help, self.wait.clone());
    }

    /// Shows what is in the queue.
    pub fn queue(&self, status: &Status) {
        self.events.set(i64::try_from(status.events).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(status.bytes).unwrap_or(i64::MAX));
        self.oldest.set(status.oldest.unwrap_or_default().as_secs_f64());
    }

    /// An event was accepted.
    pub fn accepted(&self) {
        self.accepted.inc();
    }

    /// An attempt is over.
    pub fn attempted(&self, attempt: Attempt) {
        self.attempts.get_or_create(&AttemptLabel { result: attempt.label() }).inc();
    }

    /// An event was delivered after so long a wait.
    pub fn delivered(&self, command: &'static Command, waited: Duration) {
        self.delivered.get_or_create(&CommandLabel { command: command.name }).inc();
        self.wait.observe(waited.as_secs_f64());
    }

    /// An event was given up.
    pub fn lost(&self, loss: Loss) {
        self.lost.get_or_create(&LossLabel { reason: loss.label() }).inc();
    }
}
