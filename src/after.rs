//! Events of after-commands that the app has not taken yet: which of them may be sent now, and what becomes of each.
//!
//! [`Queue`] decides and never waits: who drives it passes the time in, sends what [`Queue::start`] returns, and reports what
//! came of it to [`Queue::finish`]. Every event that was put in comes out once, as an [`Ended`].

use std::time::Duration;

use crate::callback::command::Command;
use crate::policy::After;

pub use queue::{Ended, Queue, Start, Status};

mod pace;
mod queue;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Events, those that are being sent included; at least 1. One command may have half of them.
    pub events: usize,
    /// Their bytes. One command may have half of them.
    pub bytes: usize,
    /// How many are sent at once, at least 1.
    pub in_flight: usize,
}

/// An event as the queue looks at it; `P` is what is sent.
#[derive(Debug)]
pub struct Event<P> {
    /// What is sent.
    pub payload: P,
    /// Its command.
    pub command: &'static Command,
    /// What it takes of [`Bounds::bytes`].
    pub bytes: usize,
    /// Of those with the same key one is sent at a time, in the order in which they were put in.
    pub key: Option<u64>,
    /// How it is delivered.
    pub after: After,
}

/// What came of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attempt {
    /// Answered 2xx.
    Delivered,
    /// The app has seen nothing of it: no connection, or one that had ended before.
    NotReached,
    /// Answered 503 or 429: the app has done nothing, and can be reached.
    Busy,
    /// Answered with another status.
    Refused,
    /// Sent, and no answer came: the app may have done it.
    Unsure,
}

impl Attempt {
    /// All of them, in the order of the documentation.
    pub const ALL: [Attempt; 5] =
        [Attempt::Delivered, Attempt::NotReached, Attempt::Busy, Attempt::Refused, Attempt::Unsure];

    /// The word for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Attempt::Delivered => "delivered",
            Attempt::NotReached => "not-reached",
            Attempt::Busy => "busy",
            Attempt::Refused => "refused",
            Attempt::Unsure => "unsure",
        }
    }
}

/// Why an event was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// There was no room for it.
    Full,
    /// `keepFor` was over before the app took it.
    Expired,
    /// It was sent, no answer came, and it is not repeated then.
    Unsure,
    /// The app answered with a status other than 2xx, 429 and 503.
    Refused,
    /// The process ended first.
    Draining,
    /// Somebody had the queue emptied.
    Dropped,
}

impl Loss {
    /// All of them, in the order of the documentation.
    pub const ALL: [Loss; 6] =
        [Loss::Full, Loss::Expired, Loss::Unsure, Loss::Refused, Loss::Draining, Loss::Dropped];

    /// The word for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Loss::Full => "full",
            Loss::Expired => "expired",
            Loss::Unsure => "unsure",
            Loss::Refused => "refused",
            Loss::Draining => "draining",
            Loss::Dropped => "dropped",
        }
    }

    /// When it happens, for the documentation.
    pub const fn when(self) -> &'static str {
        match self {
            Loss::Full => {
                "the queue is at `--after-queue` or `--after-queue-bytes`, or the command has half of one of them: the newcomer is \
                 dropped"
            }
            Loss::Expired => "the app did not take it within `keepFor`",
            Loss::Unsure => {
                "it was sent, and the connection broke or the `timeout` passed before an answer; not with `WhenUnsure`"
            }
            Loss::Refused => {
                "the app answered with another status than 2xx, 429 and 503; not with `WhenUnsure`"
            }
            Loss::Draining => "the guard ended before the app took it",
            Loss::Dropped => "`POST /after/drop` emptied the queue",
        }
    }
}

/// How long an event itself waits after an attempt that is repeated: twice as long after each, from 250 ms to 30 s.
fn pause_after(attempts: u32) -> Duration {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(30);
    (FIRST * 2_u32.saturating_pow(attempts.saturating_sub(1)).min(1_000)).min(LONGEST)
}
