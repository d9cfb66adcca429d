//! Delivers events of after-commands in the background: OpenIM has its answer, and the app gets the event when it takes it.
//!
//! One queue of the process ([`crate::after`]) under a lock that is held for microseconds; each worker sends from it over its own
//! connections to the app.

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, watch};
use tracing_subscriber::filter::LevelFilter;

use self::attempt::Last;
use crate::after::{Bounds, Ended, Event, Loss, Queue, Start, Status};
use crate::callback::Callback;
use crate::callback::command::Command;
use crate::callback::subject::Subject;
use crate::callback::target::UpstreamForm;
use crate::in_force::InForce;
use crate::log::{self, Format};
use crate::metrics::Metrics;
use crate::policy::{After, Order};
use crate::upstream::Upstream;
use crate::wire;

mod attempt;

/// What an event takes in memory beside its own bytes: its places in the queue, the text of its last failure, and what the allocator
/// adds. 0.6 KiB without a failure, measured with 10,000 events by `cargo bench --bench events`.
const EVENT_BYTES: usize = 1 << 10;

/// How often it is looked whether an override's pause is over.
const PAUSE_LOOK: Duration = Duration::from_secs(1);

/// Most events that are given up in one go: each is a line in the log.
const GIVEN_UP_AT_ONCE: usize = 64;

/// What deliveries are made of.
#[derive(Debug)]
pub struct Config {
    /// How much may wait, and how much is sent at once.
    pub bounds: Bounds,
    /// How the app wants its URLs.
    pub upstream_form: UpstreamForm,
    /// Which lines are logged.
    pub log_level: LevelFilter,
    /// How they look.
    pub log_format: Format,
}

/// The events of the process, shared by all threads.
#[derive(Debug)]
pub struct Deliveries {
    config: Config,
    queue: Mutex<Queue<Payload>>,
    /// Something may be sent, or a time has changed.
    changed: Notify,
    in_force: watch::Receiver<Arc<InForce>>,
    metrics: Arc<Metrics>,
    log: log::Queue,
    writer: Mutex<Writer>,
    last_error: Mutex<Option<LastError>>,
    /// Names events: secret, so that no caller can guess the name of another's.
    names: [RandomState; 2],
    named: AtomicU64,
}

/// What the app gets, and what is told of it. An exact copy: of the callback nothing is kept.
#[derive(Debug)]
struct Payload {
    head: Box<[u8]>,
    body: Box<[u8]>,
    command: &'static Command,
    /// The command as it was sent.
    name: Box<str>,
    /// Its beginning.
    operation_id: Box<str>,
    rule: Arc<str>,
    id: u128,
    /// Of the last attempt, if it failed.
    last: Mutex<Option<Last>>,
}

#[derive(Debug, Default)]
struct Writer {
    line: String,
    clock: log::Clock,
}

/// The last attempt that failed.
#[derive(Clone, Debug)]
pub struct LastError {
    /// When.
    pub at: SystemTime,
    /// At which command.
    pub command: &'static str,
    /// What happened, in words; never content of a message.
    pub text: String,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deliveries {
    /// Nothing is queued yet.
    pub fn new(
        config: Config,
        in_force: watch::Receiver<Arc<InForce>>,
        metrics: Arc<Metrics>,
        log: log::Queue,
    ) -> Deliveries {
        Deliveries {
            queue: Mutex::new(Queue::new(config.bounds)),
            config,
            changed: Notify::new(),
            in_force,
            metrics,
            log,
            writer: Mutex::default(),
            last_error: Mutex::default(),
            names: [RandomState::new(), RandomState::new()],
            named: AtomicU64::new(0),
        }
    }

    /// Takes an event over from the callback that it came in, which was put to the guard by `peer`.
    ///
    /// # Errors
    ///
    /// It was given up at once: there is no room, or the process ends.
    pub fn accept(
        &self,
        callback: &Callback,
        command: &'static Command,
        peer: IpAddr,
        rule: &Arc<str>,
        after: After,
    ) -> Result<(), Loss> {
        let key = match after.order {
            Order::None => None,
            Order::Key => callback.order_key().map(|key| self.names[0].hash_one(key)),
        };
        let payload = Payload {
            head: wire::event_head(callback, self.config.upstream_form, peer),
            body: callback.body().to_vec().into_boxed_slice(),
            command,
            name: callback.target().name().into(),
            operation_id: log::beginning(&callback.operation_id().text).into(),
            rule: Arc::clone(rule),
            id: self.name(),
            last: Mutex::default(),
        };
        let bytes = EVENT_BYTES
            + payload.head.len()
            + payload.body.len()
            + payload.name.len()
            + payload.operation_id.len();
        self.metrics.after().accepted();
        let event = Event { payload, command, bytes, key, after };
        let accepted = lock(&self.queue).accept(event, Instant::now());
        match accepted {
            Ok(()) => {
                self.changed.notify_one();
                Ok(())
            }
            Err(ended) => {
                let loss = ended.end.err().unwrap_or(Loss::Full);
                self.report(&ended, None);
                Err(loss)
            }
        }
    }

    /// 128 bits that nobody can guess, and that no other event has.
    fn name(&self) -> u128 {
        let number = self.named.fetch_add(1, Ordering::Relaxed);
        let [high, low] = self.names.each_ref().map(|secret| u128::from(secret.hash_one((1, number))));
        high << 64 | low
    }

    /// Sends events over the connections of one worker, for ever. Runs inside a local runtime.
    pub async fn run(self: &Arc<Self>, upstream: &Rc<Upstream>) -> Infallible {
        loop {
            let now = Instant::now();
            let (starts, expired, wakes) = self.due(now);
            for start in starts {
                tokio::task::spawn_local(Arc::clone(self).attempt(Rc::clone(upstream), start));
            }
            let more = expired.len() >= GIVEN_UP_AT_ONCE;
            expired.iter().for_each(|ended| self.report(ended, None));
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let sleep = async {
                match wakes {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = sleep => {}
            }
        }
    }

    /// What is to be sent now, what was kept for long enough, and when to look again.
    fn due(&self, now: Instant) -> (Vec<Start<Payload>>, Vec<Ended<Payload>>, Option<Instant>) {
        let (mut starts, mut expired) = (Vec::new(), Vec::new());
        let mut queue = lock(&self.queue);
        if queue.is_empty() {
            return (starts, expired, None);
        }
        let paused = self.pauses();
        while expired.len() < GIVEN_UP_AT_ONCE
            && let Some(ended) = queue.expire(now)
        {
            expired.push(ended);
        }
        while let Some(start) = queue.start(now, &paused) {
            starts.push(start);
        }
        let look = queue.any_paused(&paused).then(|| now + PAUSE_LOOK);
        let wakes = [queue.wakes(now), look].into_iter().flatten().min();
        (starts, expired, wakes)
    }

    /// Which commands an override pauses at this moment.
    fn pauses(&self) -> impl Fn(&'static Command) -> bool + use<> {
        let in_force = Arc::clone(&self.in_force.borrow());
        let active = in_force.over.as_ref().is_some_and(|over| over.active(SystemTime::now()));
        move |command| {
            let over = in_force.over.as_ref().filter(|over| active && over.answer().is_some());
            let subject = Subject { name: command.name, command: Some(command), ..Subject::default() };
            over.is_some_and(|over| over.covers(&subject))
        }
    }

    /// What there is in the queue.
    pub fn status(&self) -> Status {
        lock(&self.queue).status(Instant::now())
    }

    /// The last attempt that failed, if one did.
    pub fn last_error(&self) -> Option<LastError> {
        lock(&self.last_error).clone()
    }

    /// The bounds.
    pub fn bounds(&self) -> Bounds {
        self.config.bounds
    }

    /// Gives up all that is not being sent. Returns how many.
    pub fn drop_all(&self) -> usize {
        lock(&self.queue).drop_all();
        let mut count = 0;
        loop {
            // Workers wait for the lock no longer than for a few events.
            let dropped: Vec<_> = {
                let (mut queue, now) = (lock(&self.queue), Instant::now());
                std::iter::from_fn(|| queue.dropped(now)).take(GIVEN_UP_AT_ONCE).collect()
            };
            dropped.iter().for_each(|ended| self.report(ended, None));
            count += dropped.len();
            if dropped.len() < GIVEN_UP_AT_ONCE {
                self.changed.notify_one();
                return count;
            }
        }
    }

    /// The process begins to end: has the next attempt made at once, to see whether the app is still there.
    pub fn hurry(&self) {
        lock(&self.queue).hurry();
        self.changed.notify_one();
    }

    /// Whether the end of the process, which began at `since`, has no delivery to wait for: nothing is queued but what an override
    /// pauses, or the app is gone.
    pub fn are_over(&self, since: Instant) -> bool {
        let queue = lock(&self.queue);
        queue.is_empty() || queue.has_no_prospects(since, self.pauses())
    }

    /// Gives up all there is, with a line each, and takes no more.
    pub fn close(&self) {
        let lost = lock(&self.queue).close(Instant::now());
        lost.iter().for_each(|ended| self.report(ended, None));
    }

    /// Counts and logs what became of an event; `took` is the duration of its last attempt, if that was the one that ended it.
    fn report(&self, ended: &Ended<Payload>, last: Option<&Last>) {
        let payload = &*ended.payload;
        match ended.end {
            Ok(()) => self.metrics.after().delivered(payload.command, ended.waited),
            Err(loss) => self.metrics.after().lost(loss),
        }
        let level = if ended.end.is_ok() { LevelFilter::INFO } else { LevelFilter::WARN };
        if level > self.config.log_level {
            return;
        }
        let before = lock(&payload.last);
        let last = last.or(before.as_ref());
        let delivery = log::Delivery {
            operation_id: &payload.operation_id,
            command: &payload.name,
            rule: &payload.rule,
            lost: ended.end.err().map(Loss::label),
            attempts: ended.attempts,
            waited: ended.waited,
            took: last.map(|last| last.took),
            status: last.and_then(|last| last.status).map(|status| status.as_u16()),
            id: payload.id,
            detail: last.and_then(|last| last.detail.as_deref()),
        };
        let mut writer = lock(&self.writer);
        let Writer { line, clock } = &mut *writer;
        line.clear();
        delivery.write(line, self.config.log_format, clock.stamp(Instant::now()));
        self.log.push(line.as_bytes());
    }
}
