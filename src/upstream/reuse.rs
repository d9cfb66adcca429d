//! Whether a connection to the app may be used again, and for how long.
//!
//! HTTP/1.1 has no number that ties an answer to its request: the next answer on a connection is the answer to the next
//! request. An app that answers one request twice shifts every later verdict on that connection by one. The second answer
//! cannot be told from a quick answer to the next request if it is sent after that request arrived; and TCP delays it until
//! then by itself if the app's socket lacks `TCP_NODELAY` (Nagle's algorithm waits for our acknowledgment, which waits for
//! our next request).
//!
//! A shift shows once the connection is left alone: one answer is left over. So a connection rests after a few requests,
//! for longer than the app takes to answer, with everything acknowledged. If bytes are found then, or behind an answer,
//! the app is not trusted for a while: each request gets its own connection, and no shift is possible.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;

use super::dial::Address;

/// Most requests between two rests: so many callbacks at most are answered with the verdict of another after one answer
/// too many. Acknowledging and looking at each rest then costs 0.2 us per callback.
pub(super) const USES_LIMIT: u32 = 16;

/// Longest use between two rests.
pub(super) const USE_LIMIT: Duration = Duration::from_millis(50);

/// Shortest rest: the answers of a quick app vary by more than twice their usual time when the machine is busy.
pub(super) const LEAST_REST: Duration = Duration::from_millis(5);

/// How long each request has its own connection after the app sent bytes that no request was waiting for. Also the shortest
/// time between two log lines about it.
pub(super) const DISTRUST: Duration = Duration::from_secs(600);

/// How a connection was used since its last rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// When the first of these requests was sent.
    since: Instant,
    uses: u32,
    /// The slowest exchange. Halved at each rest, so that one slow answer does not count forever.
    slowest: Duration,
}

impl Usage {
    pub(super) fn new(now: Instant) -> Usage {
        Usage { since: now, uses: 0, slowest: Duration::ZERO }
    }

    /// Counts an exchange.
    pub(super) fn exchanged(&mut self, begun: Instant, now: Instant) {
        if self.uses == 0 {
            self.since = begun;
        }
        self.uses += 1;
        self.slowest = self.slowest.max(now.saturating_duration_since(begun));
    }

    /// Whether it must rest before its next request.
    pub(super) fn is_over(&self, now: Instant, limit: Duration) -> bool {
        self.uses >= USES_LIMIT || self.uses > 0 && now.saturating_duration_since(self.since) >= limit
    }

    /// How long it must rest.
    pub(super) fn rest(&self) -> Duration {
        LEAST_REST.max(self.slowest * 2)
    }

    /// It rested, and nothing was found.
    pub(super) fn rested(&mut self) {
        self.uses = 0;
        self.slowest /= 2;
    }
}

/// Whether connections are used again. All workers share it: what one of them finds counts for all.
#[derive(Debug)]
pub struct Reuse {
    allowed: bool,
    start: Instant,
    /// Milliseconds after `start`; 0 if nothing was found yet.
    distrusted_until: AtomicU64,
    quiet_until: AtomicU64,
    found: Counter,
}

impl Reuse {
    /// Connections are used again if `allowed`. `found` counts the connections with bytes that no request was waiting for.
    pub fn new(allowed: bool, found: Counter) -> Reuse {
        let (distrusted_until, quiet_until) = (AtomicU64::new(0), AtomicU64::new(0));
        Reuse { allowed, start: Instant::now(), distrusted_until, quiet_until, found }
    }

    /// Whether a connection may be used for a second request.
    pub(super) fn is_allowed(&self, now: Instant) -> bool {
        if !self.allowed {
            return false;
        }
        let until = self.distrusted_until.load(Ordering::Relaxed);
        until == 0 || self.millis(now) >= until
    }

    /// Bytes were found that no request was waiting for.
    pub(super) fn unsolicited(&self, app: &Address, now: Instant) {
        if self.record(now) {
            tracing::warn!(
                upstream.addr = %app,
                "The app sent an answer that no request was waiting for, or two answers to one request: for 10 minutes each \
                 callback gets its own connection to the app. The verdict of up to 16 callbacks may be that of another"
            );
        }
    }

    /// Starts or extends the time without reuse; whether to log it.
    fn record(&self, now: Instant) -> bool {
        self.found.inc();
        let (now, distrust) = (self.millis(now), u64::try_from(DISTRUST.as_millis()).unwrap_or(u64::MAX));
        self.distrusted_until.fetch_max(now + distrust, Ordering::Relaxed);
        let quiet = self.quiet_until.load(Ordering::Relaxed);
        let swap = |to| self.quiet_until.compare_exchange(quiet, to, Ordering::Relaxed, Ordering::Relaxed);
        now >= quiet && swap(now + distrust).is_ok()
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A connection after so many exchanges of one length, back to back, and the time at their end.
    fn used(times: u32, each: Duration) -> (Usage, Instant) {
        let mut now = Instant::now();
        let mut usage = Usage::new(now);
        for _ in 0..times {
            usage.exchanged(now, now + each);
            now += each;
        }
        (usage, now)
    }

    #[test]
    fn a_connection_rests_after_sixteen_requests_or_fifty_milliseconds() {
        for (times, each, later, over) in [
            (0, MS, Duration::ZERO, false),
            (0, MS, USE_LIMIT, false),
            (1, MS, Duration::ZERO, false),
            (USES_LIMIT - 1, MS, Duration::ZERO, false),
            (USES_LIMIT, MS, Duration::ZERO, true),
            (1, USE_LIMIT - MS, Duration::ZERO, false),
            (1, USE_LIMIT - MS, MS, true),
            (1, USE_LIMIT, Duration::ZERO, true),
            (2, MS, USE_LIMIT - 3 * MS, false),
            (2, MS, USE_LIMIT - 2 * MS, true),
        ] {
            let (usage, now) = used(times, each);
            assert_eq!(usage.is_over(now + later, USE_LIMIT), over, "{times} of {each:?}, {later:?} later");
        }
    }

    #[test]
    fn a_rest_is_twice_the_slowest_exchange_and_five_milliseconds_at_least() {
        for (slowest, rest) in [(0, 5), (2, 5), (3, 6), (40, 80)] {
            let (mut usage, now) = used(1, MS * slowest);
            usage.exchanged(now, now);
            assert_eq!(usage.rest(), MS * rest, "{slowest} ms");
        }
    }

    #[test]
    fn after_a_rest_the_count_starts_again_and_one_slow_answer_is_forgotten_in_time() {
        let (mut usage, now) = used(USES_LIMIT, 20 * MS);
        let later = now + usage.rest();
        assert!(usage.is_over(later, USE_LIMIT), "only a look ends a rest");
        usage.rested();
        assert!(!usage.is_over(later, USE_LIMIT));
        usage.exchanged(later, later + MS);
        assert!(
            !usage.is_over(later + USE_LIMIT - MS, USE_LIMIT) && usage.is_over(later + USE_LIMIT, USE_LIMIT)
        );
        assert_eq!(usage.rest(), 20 * MS);
        for _ in 0..10 {
            usage.rested();
        }
        assert_eq!(usage.rest(), LEAST_REST);
    }

    #[test]
    fn bytes_without_a_request_end_reuse_for_ten_minutes_and_are_logged_once_in_that_time() {
        let found = Counter::default();
        let reuse = Reuse::new(true, found.clone());
        let first = Instant::now();
        assert!(reuse.is_allowed(first));
        assert!(reuse.record(first), "the first is logged");
        assert!(!reuse.is_allowed(first) && !reuse.is_allowed(first + DISTRUST - MS));
        assert!(reuse.is_allowed(first + DISTRUST + MS));
        let second = first + DISTRUST / 2;
        assert!(!reuse.record(second), "the second is counted alone");
        assert!(!reuse.is_allowed(first + DISTRUST + MS), "the time starts again");
        assert!(reuse.is_allowed(second + DISTRUST + MS));
        assert!(reuse.record(first + DISTRUST + MS), "the log repeats it after ten minutes");
        assert_eq!(found.get(), 3);
    }

    #[test]
    fn without_reuse_none_is_allowed_at_any_time() {
        let reuse = Reuse::new(false, Counter::default());
        let now = Instant::now();
        assert!(!reuse.is_allowed(now) && !reuse.is_allowed(now + 10 * DISTRUST));
        assert!(reuse.record(now), "and what the app sends is still logged");
    }
}
