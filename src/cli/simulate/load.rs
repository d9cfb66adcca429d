//! Callbacks at a rate, for a while.
//!
//! Each is due at a time of its own, fixed by the rate before anything is sent, and its latency counts from then: an app
//! that stalls does not slow the callbacks that wait behind it out of the statistics. The timeout counts from then too,
//! as OpenIM's does while a callback waits for one of its connections.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep_until, timeout_at};

use super::advice::Advice;
use super::bodies::Sample;
use super::exchange::Caller;
use super::failure::{Failure, Kind, Phase};
use super::histogram::Histogram;
use super::judge::{self, Judged, Outcome};
use super::report::time;

/// A start that is later than this behind its time is told.
const LATE: Duration = Duration::from_millis(10);

/// How often the bar moves.
const PROGRESS: Duration = Duration::from_millis(200);

/// The bar's width.
const BAR: usize = 30;

/// How many callbacks that are due are started in a row before the others get their turn.
const BATCH: u64 = 32;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// `--rate`, a second.
    pub rate: u32,
    /// `--for`
    pub duration: Duration,
    /// `--concurrency`
    pub concurrency: usize,
}

/// What a load came to.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) wanted: Load,
    pub(super) took: Duration,
    pub(super) histogram: Histogram,
    /// How often each outcome came.
    pub(super) outcomes: BTreeMap<String, u64>,
    /// For each command, how often it was sent, and how often the answer was not good.
    pub(super) commands: BTreeMap<String, (u64, u64)>,
    pub(super) findings: BTreeMap<&'static str, (Advice, u64)>,
    pub(super) failures: BTreeMap<Kind, (Failure, u64)>,
    pub(super) late: u64,
    pub(super) latest: Duration,
}

impl Loaded {
    fn new(wanted: Load) -> Loaded {
        Loaded {
            wanted,
            took: Duration::ZERO,
            histogram: Histogram::new(),
            outcomes: BTreeMap::new(),
            commands: BTreeMap::new(),
            findings: BTreeMap::new(),
            failures: BTreeMap::new(),
            late: 0,
            latest: Duration::ZERO,
        }
    }

    /// How many answers were not good.
    pub(super) fn bad(&self) -> u64 {
        self.commands.values().map(|(_, bad)| bad).sum()
    }

    /// Answers a second.
    pub(super) fn rate_reached(&self) -> f64 {
        (self.histogram.total() as f64 / self.took.as_secs_f64().max(0.001) * 10.0).round() / 10.0
    }

    fn add(&mut self, command: &str, judged: &Judged, latency: Duration) {
        self.histogram.add(latency);
        *self.outcomes.entry(judge::tally(&judged.outcome)).or_default() += 1;
        let (sent, bad) = self.commands.entry(command.to_owned()).or_default();
        *sent += 1;
        *bad += u64::from(judged.is_bad());
        for found in &judged.findings {
            self.findings.entry(found.name).or_insert((*found, 0)).1 += 1;
        }
        if let Outcome::Network(failure) = &judged.outcome {
            self.failures.entry(failure.kind).or_insert_with(|| (failure.clone(), 0)).1 += 1;
        }
    }
}

struct Shared {
    caller: Rc<Caller>,
    slots: Semaphore,
    loaded: RefCell<Loaded>,
}

/// Sends callbacks of these commands in turn until time is up or `stop` comes, and waits for the last answers.
pub(super) async fn run(
    caller: Rc<Caller>,
    samples: Vec<Sample>,
    wanted: Load,
    mut bar: Option<&mut dyn Write>,
    stop: impl Future<Output = ()>,
) -> Loaded {
    let samples: Vec<_> = samples.into_iter().map(Rc::new).collect();
    let slots = Semaphore::new(wanted.concurrency);
    let shared = Rc::new(Shared { caller, slots, loaded: RefCell::new(Loaded::new(wanted)) });
    let (mut running, mut ticks) = (JoinSet::new(), interval(PROGRESS));
    let (began, mut stop, mut number) = (Instant::now(), pin!(stop), 0_u64);
    let step = Duration::from_secs(1) / wanted.rate;
    let due_at = |number: u64| {
        // Whole seconds apart, so that the rounding of a step does not add up.
        let (seconds, rest) = (number / u64::from(wanted.rate), number % u64::from(wanted.rate));
        began + Duration::from_secs(seconds) + step * u32::try_from(rest).unwrap_or(u32::MAX)
    };
    loop {
        let due = due_at(number);
        if due >= began + wanted.duration {
            break;
        }
        tokio::select! {
            biased;
            () = &mut stop => break,
            _ = ticks.tick(), if bar.is_some() => draw(&mut bar, &shared, began.elapsed(), running.len()),
            () = sleep_until(due.into()) => {
                let sample = Rc::clone(&samples[(number % samples.len() as u64) as usize]);
                running.spawn_local(one(Rc::clone(&shared), sample, number, due));
                number += 1;
                // A sleep whose end has passed does not give way, and neither would a late sender.
                if number.is_multiple_of(BATCH) {
                    tokio::task::yield_now().await;
                    while running.try_join_next().is_some() {}
                }
            }
        }
    }
    loop {
        tokio::select! {
            ended = running.join_next() => if ended.is_none() { break },
            _ = ticks.tick(), if bar.is_some() => draw(&mut bar, &shared, began.elapsed(), running.len()),
        }
    }
    if let Some(bar) = bar {
        let _ = write!(bar, "\r{:79}\r", "");
    }
    let mut loaded = shared.loaded.replace(Loaded::new(wanted));
    loaded.took = began.elapsed();
    loaded
}

impl Shared {
    fn note_start(&self, due: Instant) {
        let late = due.elapsed();
        let mut loaded = self.loaded.borrow_mut();
        if late > LATE {
            loaded.late += 1;
            loaded.latest = loaded.latest.max(late);
        }
    }
}

/// One callback, from when it is due.
async fn one(shared: Rc<Shared>, sample: Rc<Sample>, number: u64, due: Instant) {
    shared.note_start(due);
    let Shared { caller, slots, loaded } = &*shared;
    let phase = Cell::new(Phase::Waiting);
    let sending = sample.sending(number);
    let judged = match timeout_at((due + caller.timeout).into(), slots.acquire()).await {
        Ok(_slot) => match caller.ask(&sample, &sending, due, &phase).await {
            Ok(answer) => match sample.callback(&sending) {
                Some(callback) => judge::judge(&callback, &answer, due.elapsed(), caller.timeout),
                None => Judged::failed(Failure::malformed("a body that is no callback")),
            },
            Err(failure) => Judged::failed(failure),
        },
        Err(_) => Judged::failed(Failure::timeout(Phase::Waiting, caller.timeout)),
    };
    loaded.borrow_mut().add(&sample.name, &judged, due.elapsed());
}

/// `[=====>   ] 12 s of 30 s, 1204 answers, 3 in flight, p99 12 ms`, over itself.
fn draw(bar: &mut Option<&mut dyn Write>, shared: &Shared, elapsed: Duration, in_flight: usize) {
    let Some(bar) = bar else { return };
    let loaded = shared.loaded.borrow();
    let share = (elapsed.as_secs_f64() / loaded.wanted.duration.as_secs_f64()).min(1.0);
    let filled = "=".repeat((share * BAR as f64) as usize);
    let text = format!(
        "[{filled:<BAR$}] {} of {} s, {} answers, {in_flight} in flight, p99 {}",
        elapsed.as_secs(),
        loaded.wanted.duration.as_secs(),
        loaded.histogram.total(),
        time(loaded.histogram.quantile(0.99)),
    );
    let text: String = text.chars().take(79).collect();
    let _ = write!(bar, "\r{text:<79}").and_then(|()| bar.flush());
}
