//! The bounds of events that are delivered in the background.

use super::{MIB, MOST, Problems, ProxyArgs};

/// Default of `--after-in-flight`: with an app that works on an event for 10 ms, 1,600 a second. OpenIM itself has two workers in
/// each of its processes.
pub(super) const IN_FLIGHT: &str = "16";

/// Most events that are sent at once: as many as callbacks by default.
const MOST_IN_FLIGHT: usize = 1024;

/// The least of `--after-queue-bytes`: some thirty events.
const LEAST_BYTES: usize = MIB / 16;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct AfterLimits {
    /// `--after-in-flight`
    pub in_flight: usize,
    /// `--after-queue`
    pub queue: usize,
    /// `--after-queue-bytes`; `None`: an eighth of the container's memory limit.
    pub queue_bytes: Option<usize>,
}

pub(super) fn limits(typed: &ProxyArgs, problems: &mut Problems) -> Option<AfterLimits> {
    let in_flight = problems.count("--after-in-flight", &typed.after_in_flight, 1, MOST_IN_FLIGHT);
    let queue = problems.count("--after-queue", &typed.after_queue, 1, MOST);
    let most = usize::MAX / 2;
    let bytes = problems.optional_size("--after-queue-bytes", &typed.after_queue_bytes, LEAST_BYTES, most);
    Some(AfterLimits { in_flight: in_flight?, queue: queue?, queue_bytes: bytes? })
}
