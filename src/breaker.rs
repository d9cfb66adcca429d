//! A circuit breaker: stop asking an app that keeps failing, and find out when it is well again.
//!
//! Closed lets every callback through and keeps count of the last `window`. When enough of them failed it
//! trips: open refuses at once, so that the callers of a dead app do not each wait for a deadline. After
//! `open_for` it is half-open: one callback at a time is let through as a probe, and what comes of it
//! decides.
//!
//! A result can arrive long after the state it was permitted in has gone: a callback let through while closed
//! may fail while a probe is out. Each change of state therefore starts a new generation, and a permit of an
//! earlier one counts for nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many parts the window is counted in. What is older than `window` is forgotten part by part, so the
/// count covers between nine tenths of the window and all of it; memory does not grow with traffic.
const BUCKETS: usize = 10;

/// When a breaker trips, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSpec {
    /// The share of failures at which it trips, `0 < rate <= 1`.
    pub failure_rate: f64,
    /// How many callbacks the window must hold before the rate means anything, 1 to 100,000.
    pub minimum_callbacks: u32,
    /// How far back it looks, 1 s to 10 min.
    pub window: Duration,
    /// How long it refuses before it probes, 100 ms to 10 min.
    pub open_for: Duration,
}

impl Default for BreakerSpec {
    /// Half of at least 20 callbacks within 10 s; open for 5 s.
    fn default() -> BreakerSpec {
        BreakerSpec {
            failure_rate: 0.5,
            minimum_callbacks: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(5),
        }
    }
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Lets everything through and counts.
    Closed,
    /// Refuses everything. It stays so, past `open_for` too, until a callback comes to be the probe.
    Open,
    /// Lets one callback at a time through, as a probe.
    HalfOpen,
}

impl State {
    /// The value of the metric: 0 closed, 1 open, 2 half-open.
    pub const fn number(self) -> u8 {
        match self {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        }
    }

    /// The word for people.
    pub const fn label(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        }
    }
}

/// What came of a permitted callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The app answered as it should. A probe that does so closes the breaker.
    Success,
    /// The app failed. A probe that does so opens the breaker again.
    Failure,
    /// Says nothing about the app, as when the caller hung up: not counted, and a probe is given back.
    Ignored,
}

/// The breaker does not let this callback through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// One breaker, shared by the callbacks of one rule.
#[derive(Debug)]
pub struct Breaker {
    spec: BreakerSpec,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// Goes up with each change of state.
    generation: u64,
}

#[derive(Debug)]
enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { probing: bool },
}

impl Breaker {
    /// A closed breaker that has seen nothing.
    pub fn new(spec: BreakerSpec) -> Breaker {
        Breaker { spec, inner: Mutex::new(Inner { phase: Phase::Closed(Window::new()), generation: 0 }) }
    }

    /// What it was made from.
    pub fn spec(&self) -> &BreakerSpec {
        &self.spec
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        match self.lock().phase {
            Phase::Closed(_) => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Asks to send one callback at `now`.
    ///
    /// # Errors
    ///
    /// [`Refused`] while open, and while half-open as long as another callback is the probe.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Permit, Refused> {
        let mut inner = self.lock();
        match &mut inner.phase {
            Phase::Closed(_) => {}
            Phase::Open { until } if now < *until => return Err(Refused),
            Phase::Open { .. } => inner.turn(Phase::HalfOpen { probing: true }),
            Phase::HalfOpen { probing: true } => return Err(Refused),
            Phase::HalfOpen { probing } => *probing = true,
        }
        let generation = inner.generation;
        drop(inner);
        Ok(Permit { breaker: Arc::clone(self), generation, pending: true })
    }

    fn count(&self, generation: u64, failed: bool, now: Instant) {
        let mut inner = self.lock();
        if inner.generation != generation {
            return;
        }
        let trips = match &mut inner.phase {
            Phase::Closed(window) => window.count(&self.spec, failed, now),
            Phase::HalfOpen { .. } if failed => true,
            Phase::HalfOpen { .. } => return inner.turn(Phase::Closed(Window::new())),
            // No permit is issued in this state, and those of the state before are of another generation.
            Phase::Open { .. } => false,
        };
        if trips {
            inner.turn(Phase::Open { until: now + self.spec.open_for });
        }
    }

    fn give_back(&self, generation: u64) {
        let mut inner = self.lock();
        if inner.generation == generation
            && let Phase::HalfOpen { probing } = &mut inner.phase
        {
            *probing = false;
        }
    }

    /// A panic elsewhere while the lock was held leaves at worst one callback miscounted: no reason to fail
    /// every callback after it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Leave to send one callback. Dropped unrecorded, as when the caller hangs up, it counts for nothing and a
/// probe's place is free again.
#[must_use = "a permit says that a callback is on its way: record what comes of it"]
#[derive(Debug)]
pub struct Permit {
    breaker: Arc<Breaker>,
    generation: u64,
    pending: bool,
}

impl Permit {
    /// Tells the breaker what came of the callback, at `now`.
    pub fn record(mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Success | Outcome::Failure => {
                self.pending = false;
                self.breaker.count(self.generation, outcome == Outcome::Failure, now);
            }
            Outcome::Ignored => drop(self),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.pending {
            self.breaker.give_back(self.generation);
        }
    }
}

/// Counts of the last `window`, in a ring.
#[derive(Debug)]
struct Window {
    /// When counting began; parts are numbered from here.
    origin: Option<Instant>,
    /// The number of the newest part.
    newest: u64,
    parts: [Part; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Part {
    all: u32,
    failures: u32,
}

impl Window {
    fn new() -> Window {
        Window { origin: None, newest: 0, parts: [Part::default(); BUCKETS] }
    }

    /// Counts one callback and tells whether the breaker has to trip.
    fn count(&mut self, spec: &BreakerSpec, failed: bool, now: Instant) -> bool {
        self.advance(spec.window, now);
        let part = &mut self.parts[slot(self.newest)];
        part.all = part.all.saturating_add(1);
        part.failures = part.failures.saturating_add(u32::from(failed));
        let all: u64 = self.parts.iter().map(|part| u64::from(part.all)).sum();
        let failures: u64 = self.parts.iter().map(|part| u64::from(part.failures)).sum();
        // Both are far below 2^53, so the division is as good as exact.
        all >= u64::from(spec.minimum_callbacks) && failures as f64 / all as f64 >= spec.failure_rate
    }

    /// Forgets the parts that `now` has left behind. Two threads may arrive with their instants swapped: an
    /// instant before the newest part counts in the newest part.
    fn advance(&mut self, window: Duration, now: Instant) {
        let origin = *self.origin.get_or_insert(now);
        let width = (window / BUCKETS as u32).max(Duration::from_nanos(1));
        let since = now.saturating_duration_since(origin);
        let current = u64::try_from(since.as_nanos() / width.as_nanos()).unwrap_or(u64::MAX);
        if current <= self.newest {
            return;
        }
        let steps = (current - self.newest).min(BUCKETS as u64);
        for step in 1..=steps {
            self.parts[slot(self.newest.wrapping_add(step))] = Part::default();
        }
        if steps == BUCKETS as u64 {
            self.parts = [Part::default(); BUCKETS];
        }
        self.newest = current;
    }
}

fn slot(number: u64) -> usize {
    (number % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: BreakerSpec = BreakerSpec {
        failure_rate: 0.5,
        minimum_callbacks: 4,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
    };

    struct Bench {
        breaker: Arc<Breaker>,
        start: Instant,
    }

    impl Bench {
        fn new(spec: BreakerSpec) -> Bench {
            Bench { breaker: Arc::new(Breaker::new(spec)), start: Instant::now() }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn play(&self, millis: u64, outcomes: &[Outcome]) {
            for outcome in outcomes {
                self.breaker.admit(self.at(millis)).expect("let through").record(*outcome, self.at(millis));
            }
        }

        fn tripped() -> Bench {
            let bench = Bench::new(SPEC);
            bench.play(0, &[F; 4]);
            assert_eq!(bench.breaker.state(), State::Open);
            bench
        }
    }

    const S: Outcome = Outcome::Success;
    const F: Outcome = Outcome::Failure;
    const I: Outcome = Outcome::Ignored;

    #[test]
    fn it_trips_at_the_rate_and_not_below() {
        for (outcomes, state) in [
            (&[S, S, F, F][..], State::Open),
            (&[S, S, S, F], State::Closed),
            (&[F, F, F], State::Closed),
            (&[F, F, F, F], State::Open),
            (&[F, F, F, S], State::Open),
            (&[I, F, I, F, I, F, I], State::Closed),
            (&[], State::Closed),
        ] {
            let bench = Bench::new(SPEC);
            bench.play(0, outcomes);
            assert_eq!(bench.breaker.state(), state, "{outcomes:?}");
        }
        let all = Bench::new(BreakerSpec { failure_rate: 1.0, minimum_callbacks: 1, ..SPEC });
        all.play(0, &[S, F, F, F]);
        assert_eq!(all.breaker.state(), State::Closed);
        let first = Bench::new(BreakerSpec { failure_rate: 1.0, minimum_callbacks: 1, ..SPEC });
        first.play(0, &[F]);
        assert_eq!(first.breaker.state(), State::Open);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let within = Bench::new(SPEC);
        within.play(0, &[F, F, F]);
        within.play(9_999, &[F]);
        assert_eq!(within.breaker.state(), State::Open);
        for later in [10_000, 10_999, 25_000, 10_000_000] {
            let after = Bench::new(SPEC);
            after.play(0, &[F, F, F]);
            after.play(later, &[F]);
            assert_eq!(after.breaker.state(), State::Closed, "{later} ms");
        }
        let sliding = Bench::new(SPEC);
        for second in 0..30 {
            sliding.play(second * 1_000, &[F]);
            assert_eq!(sliding.breaker.state(), if second < 3 { State::Closed } else { State::Open });
            if second >= 3 {
                break;
            }
        }
    }

    #[test]
    fn open_refuses_until_its_time_and_then_lets_one_probe_through() {
        let bench = Bench::tripped();
        assert_eq!(bench.breaker.admit(bench.at(4_999)).err(), Some(Refused));
        let probe = bench.breaker.admit(bench.at(5_000)).expect("a probe");
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        assert_eq!(bench.breaker.admit(bench.at(5_001)).err(), Some(Refused));
        probe.record(S, bench.at(5_002));
        assert_eq!(bench.breaker.state(), State::Closed);
        bench.play(5_003, &[F, F, F]);
        assert_eq!(bench.breaker.state(), State::Closed, "the failures before the trip are forgotten");
    }

    #[test]
    fn a_failed_probe_opens_it_for_as_long_again() {
        let bench = Bench::tripped();
        bench.breaker.admit(bench.at(6_000)).expect("a probe").record(F, bench.at(7_000));
        assert_eq!(bench.breaker.state(), State::Open);
        assert_eq!(bench.breaker.admit(bench.at(11_999)).err(), Some(Refused));
        assert!(bench.breaker.admit(bench.at(12_000)).is_ok());
    }

    #[test]
    fn a_probe_dropped_or_ignored_is_given_back() {
        let bench = Bench::tripped();
        drop(bench.breaker.admit(bench.at(5_000)).expect("a probe"));
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        bench.breaker.admit(bench.at(5_001)).expect("the next probe").record(I, bench.at(5_001));
        assert_eq!(bench.breaker.state(), State::HalfOpen);
        let probe = bench.breaker.admit(bench.at(5_002)).expect("one more probe");
        assert_eq!(bench.breaker.admit(bench.at(5_002)).err(), Some(Refused));
        probe.record(S, bench.at(5_003));
        assert_eq!(bench.breaker.state(), State::Closed);
    }

    #[test]
    fn a_permit_dropped_while_closed_counts_for_nothing() {
        let bench = Bench::new(BreakerSpec { minimum_callbacks: 1, ..SPEC });
        drop(bench.breaker.admit(bench.at(0)).expect("let through"));
        assert_eq!(bench.breaker.state(), State::Closed);
        bench.play(1, &[F]);
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn results_of_an_earlier_state_do_not_touch_the_new_one() {
        let bench = Bench::new(SPEC);
        let late: Vec<_> = (0..3).map(|_| bench.breaker.admit(bench.at(0)).expect("let through")).collect();
        bench.play(0, &[F; 4]);
        let probe = bench.breaker.admit(bench.at(5_000)).expect("a probe");
        for (permit, outcome) in late.into_iter().zip([Some(S), Some(F), None]) {
            match outcome {
                Some(outcome) => permit.record(outcome, bench.at(5_001)),
                None => drop(permit),
            }
            assert_eq!(bench.breaker.state(), State::HalfOpen);
            assert_eq!(bench.breaker.admit(bench.at(5_001)).err(), Some(Refused), "the probe is still out");
        }
        probe.record(S, bench.at(5_002));
        assert_eq!(bench.breaker.state(), State::Closed);
    }

    #[test]
    fn instants_out_of_order_neither_panic_nor_lose_counts() {
        let bench = Bench::new(SPEC);
        bench.play(9_000, &[F, F]);
        bench.play(100, &[F, F]);
        assert_eq!(bench.breaker.state(), State::Open);
        assert_eq!(bench.breaker.admit(bench.at(0)).err(), Some(Refused));
    }

    #[test]
    fn one_probe_at_a_time_whatever_happens() {
        // A small generator of its own, so that the run is the same each time.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let bench = Bench::new(SPEC);
        let (mut now, mut out) = (0, Vec::new());
        for _ in 0..50_000 {
            now += next(700);
            let before = bench.breaker.state();
            match next(3) {
                0 => {
                    if let Ok(permit) = bench.breaker.admit(bench.at(now)) {
                        out.push((permit, before));
                    }
                }
                1 if !out.is_empty() => {
                    let (permit, _) = out.swap_remove(next(out.len() as u64) as usize);
                    permit.record([S, F, I][next(3) as usize], bench.at(now));
                }
                _ if out.len() > 8 => {
                    drop(out.swap_remove(next(out.len() as u64) as usize));
                }
                _ => {}
            }
            let generation = bench.breaker.lock().generation;
            let probes = out.iter().filter(|(permit, _)| permit.generation == generation).count();
            if bench.breaker.state() == State::HalfOpen {
                assert!(probes <= 1, "{probes} probes are out");
            }
        }
    }

    #[test]
    fn threads_share_it_and_one_gets_the_probe() {
        let bench = Bench::tripped();
        let at = bench.at(5_000);
        let permits: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| bench.breaker.admit(at))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(permits.iter().filter(|permit| permit.is_ok()).count(), 1);
    }
}
