//! The queue itself. Each operation takes time in proportion to the logarithm of what waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::{Pace, Says};
use super::{Attempt, Bounds, Event, Loss, pause_after};
use crate::callback::command::{self, Command, PLACES};
use crate::policy::{After, Redeliver};

/// Events that wait, and those that are being sent.
#[derive(Debug)]
pub struct Queue<P> {
    bounds: Bounds,
    next: u64,
    /// All of them, by the order in which they came.
    events: BTreeMap<u64, Entry<P>>,
    /// Those that may be sent now, by the place of their command.
    ready: Vec<BTreeSet<u64>>,
    /// Those that may be sent from a time on.
    delayed: BTreeSet<(Instant, u64)>,
    /// When those that are not being sent are given up.
    expiring: BTreeSet<(Instant, u64)>,
    /// Those with a key. The first of each is sent, the others wait for it.
    keys: HashMap<u64, BTreeSet<u64>>,
    /// Events and bytes of each command, by its place.
    shares: Vec<(usize, usize)>,
    bytes: usize,
    pace: Pace,
    /// Those before it were dropped by hand.
    dropped_before: u64,
    closed: bool,
}

#[derive(Debug)]
struct Entry<P> {
    payload: Arc<P>,
    command: &'static Command,
    bytes: usize,
    key: Option<u64>,
    after: After,
    accepted: Instant,
    attempts: u32,
    /// When the last attempt began.
    begun: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Ready, or behind another one with its key.
    Waits,
    /// Waits on its own account.
    Delayed(Instant),
    /// Is being sent, since this epoch.
    Sent(u64),
}

impl<P> Entry<P> {
    fn expires(&self) -> Instant {
        self.accepted + self.after.keep_for
    }
}

/// An event that is to be sent now.
#[derive(Debug)]
pub struct Start<P> {
    /// Names the event to [`Queue::finish`].
    pub number: u64,
    /// What to send.
    pub payload: Arc<P>,
    /// Which attempt it is, from 1.
    pub attempt: u32,
    /// Since its acceptance.
    pub age: Duration,
    /// How long the app has.
    pub timeout: Duration,
}

/// An event that has left the queue.
#[derive(Debug)]
pub struct Ended<P> {
    /// What was sent, or was to be.
    pub payload: Arc<P>,
    /// Delivered, or why it was given up.
    pub end: Result<(), Loss>,
    /// How often it was sent.
    pub attempts: u32,
    /// From its acceptance to its last attempt; to now if it was never sent.
    pub waited: Duration,
}

/// What there is in the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// All events.
    pub events: usize,
    /// Of them those that are being sent.
    pub in_flight: usize,
    /// Bytes of all.
    pub bytes: usize,
    /// How long the oldest has been there.
    pub oldest: Option<Duration>,
    /// Events by command.
    pub commands: Vec<(&'static str, usize)>,
}

impl<P> Queue<P> {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Queue<P> {
        Queue {
            bounds,
            next: 0,
            events: BTreeMap::new(),
            ready: vec![BTreeSet::new(); PLACES],
            delayed: BTreeSet::new(),
            expiring: BTreeSet::new(),
            keys: HashMap::new(),
            shares: vec![(0, 0); PLACES],
            bytes: 0,
            pace: Pace::new(bounds.in_flight),
            dropped_before: 0,
            closed: false,
        }
    }

    /// Puts an event in.
    ///
    /// # Errors
    ///
    /// There is no room for it, or the process ends. It has ended with that.
    pub fn accept(&mut self, event: Event<P>, now: Instant) -> Result<(), Ended<P>> {
        let Event { payload, command, bytes, key, after } = event;
        let place = command::place(Some(command));
        let refused = if self.closed { Some(Loss::Draining) } else { self.full(place, bytes) };
        let payload = Arc::new(payload);
        if let Some(loss) = refused {
            return Err(Ended { payload, end: Err(loss), attempts: 0, waited: Duration::ZERO });
        }
        let number = self.next;
        self.next += 1;
        self.shares[place].0 += 1;
        self.shares[place].1 += bytes;
        self.bytes += bytes;
        if let Some(key) = key {
            self.keys.entry(key).or_default().insert(number);
        }
        let entry = Entry {
            payload,
            command,
            bytes,
            key,
            after,
            accepted: now,
            attempts: 0,
            begun: now,
            state: State::Waits,
        };
        self.expiring.insert((entry.expires(), number));
        if self.is_first(number, key) {
            self.ready[place].insert(number);
        }
        self.events.insert(number, entry);
        Ok(())
    }

    fn full(&self, place: usize, bytes: usize) -> Option<Loss> {
        let half = |bound: usize| (bound / 2).max(1);
        let (events, of_command) = self.shares[place];
        let fits = self.events.len() < self.bounds.events
            && events < half(self.bounds.events)
            && self.bytes + bytes <= self.bounds.bytes
            && of_command + bytes <= half(self.bounds.bytes);
        (!fits).then_some(Loss::Full)
    }

    fn is_first(&self, number: u64, key: Option<u64>) -> bool {
        key.is_none_or(|key| self.keys.get(&key).and_then(BTreeSet::first) == Some(&number))
    }

    /// The next event to send at `now`; none of a command that is `paused`. Call it until it returns `None`.
    pub fn start(&mut self, now: Instant, paused: impl Fn(&'static Command) -> bool) -> Option<Start<P>> {
        while let Some((at, number)) = self.delayed.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.remove(&(at, number));
            let entry = self.events.get_mut(&number).expect("what is delayed is there");
            entry.state = State::Waits;
            // One that waits by itself is the first of its key.
            self.ready[command::place(Some(entry.command))].insert(number);
        }
        if !self.pace.may_start(now) {
            return None;
        }
        let all = command::all().iter().zip(&self.ready);
        let first = all.filter_map(|(command, ready)| Some((*ready.first()?, command)));
        let (number, command) =
            first.filter(|(_, command)| !paused(command)).min_by_key(|(number, _)| *number)?;
        self.ready[command::place(Some(command))].remove(&number);
        let entry = self.events.get_mut(&number).expect("what is ready is there");
        self.expiring.remove(&(entry.expires(), number));
        entry.state = State::Sent(self.pace.started());
        entry.attempts = entry.attempts.saturating_add(1);
        entry.begun = now;
        Some(Start {
            number,
            payload: Arc::clone(&entry.payload),
            attempt: entry.attempts,
            age: now.saturating_duration_since(entry.accepted),
            timeout: entry.after.timeout,
        })
    }

    /// What came of an attempt. `None`: the event waits for another one, or has left before, with [`Queue::close`].
    pub fn finish(&mut self, number: u64, attempt: Attempt, now: Instant) -> Option<Ended<P>> {
        let entry = self.events.get_mut(&number)?;
        let State::Sent(epoch) = entry.state else { return None };
        let says = match attempt {
            Attempt::Delivered | Attempt::Refused => Says::Takes,
            Attempt::Unsure => Says::Nothing,
            Attempt::Busy => Says::Busy,
            Attempt::NotReached => Says::Gone,
        };
        self.pace.ended(epoch, says, now);
        let given_up = match attempt {
            Attempt::Delivered => return Some(self.end(number, Ok(()), now)),
            Attempt::NotReached | Attempt::Busy => None,
            Attempt::Refused => Some(Loss::Refused),
            Attempt::Unsure => Some(Loss::Unsure),
        };
        let given_up = given_up.filter(|_| entry.after.redeliver == Redeliver::WhenNotTaken);
        let dropped = Some(Loss::Dropped).filter(|_| number < self.dropped_before);
        let expired = Some(Loss::Expired).filter(|_| now >= entry.expires());
        if let Some(loss) = given_up.or(dropped).or(expired) {
            return Some(self.end(number, Err(loss), now));
        }
        self.expiring.insert((entry.expires(), number));
        if attempt == Attempt::NotReached {
            // It keeps its turn: the pace is what waits.
            entry.state = State::Waits;
            self.ready[command::place(Some(entry.command))].insert(number);
        } else {
            let at = now + pause_after(entry.attempts);
            entry.state = State::Delayed(at);
            self.delayed.insert((at, number));
        }
        None
    }

    /// The next event that was kept for long enough at `now`. Call it until it returns `None`.
    pub fn expire(&mut self, now: Instant) -> Option<Ended<P>> {
        let (at, number) = *self.expiring.first()?;
        (at <= now).then(|| self.end(number, Err(Loss::Expired), now))
    }

    /// Gives up all that there are now; those that are being sent are not repeated. See [`Queue::dropped`].
    pub fn drop_all(&mut self) {
        self.dropped_before = self.next;
    }

    /// The next event that was dropped and is not being sent. Call it until it returns `None`.
    pub fn dropped(&mut self, now: Instant) -> Option<Ended<P>> {
        let mut dropped = self.events.range(..self.dropped_before);
        let (number, _) = dropped.find(|(_, entry)| !matches!(entry.state, State::Sent(_)))?;
        let number = *number;
        Some(self.end(number, Err(Loss::Dropped), now))
    }

    /// Gives up all, and takes no more: the process ends.
    pub fn close(&mut self, now: Instant) -> Vec<Ended<P>> {
        self.closed = true;
        let all: Vec<_> = self.events.keys().copied().collect();
        all.into_iter().map(|number| self.end(number, Err(Loss::Draining), now)).collect()
    }

    fn end(&mut self, number: u64, end: Result<(), Loss>, now: Instant) -> Ended<P> {
        let entry = self.events.remove(&number).expect("who ends an event has found it");
        let place = command::place(Some(entry.command));
        self.shares[place].0 -= 1;
        self.shares[place].1 -= entry.bytes;
        self.bytes -= entry.bytes;
        self.ready[place].remove(&number);
        self.expiring.remove(&(entry.expires(), number));
        if let State::Delayed(at) = entry.state {
            self.delayed.remove(&(at, number));
        }
        if let Some(key) = entry.key {
            self.release(key, number);
        }
        let last = if entry.attempts == 0 { now } else { entry.begun };
        let waited = last.saturating_duration_since(entry.accepted);
        Ended { payload: entry.payload, end, attempts: entry.attempts, waited }
    }

    /// Lets the next with the key go, if this one was the first.
    fn release(&mut self, key: u64, number: u64) {
        let Some(same) = self.keys.get_mut(&key) else { return };
        let was_first = same.first() == Some(&number);
        same.remove(&number);
        let Some(next) = same.first().copied() else {
            self.keys.remove(&key);
            return;
        };
        if was_first && let Some(entry) = self.events.get(&next) {
            self.ready[command::place(Some(entry.command))].insert(next);
        }
    }

    /// When to call [`Queue::expire`] and [`Queue::start`] again, if nothing happens before. Events of paused commands are not
    /// looked at.
    pub fn wakes(&self, now: Instant) -> Option<Instant> {
        let expires = self.expiring.first().map(|(at, _)| *at);
        let delayed = self.delayed.first().map(|(at, _)| *at);
        let opens =
            self.pace.opens().filter(|at| *at > now && self.ready.iter().any(|ready| !ready.is_empty()));
        [expires, delayed, opens].into_iter().flatten().min()
    }

    /// Whether an event that may be sent is of a command that is `paused`.
    pub fn any_paused(&self, paused: impl Fn(&'static Command) -> bool) -> bool {
        command::all().iter().zip(&self.ready).any(|(command, ready)| !ready.is_empty() && paused(command))
    }

    /// Whether the end of the process, which began at `since`, has nothing to wait for: no event is left but those of paused
    /// commands, or an attempt since then found no app.
    pub fn has_no_prospects(&self, since: Instant, paused: impl Fn(&'static Command) -> bool) -> bool {
        if self.pace.in_flight() > 0 {
            return false;
        }
        let waiting = command::all().iter().zip(&self.shares).filter(|(_, (events, _))| *events > 0);
        self.pace.is_gone(since) || waiting.into_iter().all(|(command, _)| paused(command))
    }

    /// Has the next attempt made at once.
    pub fn hurry(&mut self) {
        self.pace.hurry();
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What there is.
    pub fn status(&self, now: Instant) -> Status {
        let commands = command::all().iter().zip(&self.shares).filter(|(_, (events, _))| *events > 0);
        let oldest = self.events.values().next();
        Status {
            events: self.events.len(),
            in_flight: self.pace.in_flight(),
            bytes: self.bytes,
            oldest: oldest.map(|entry| now.saturating_duration_since(entry.accepted)),
            commands: commands.map(|(command, (events, _))| (command.name, *events)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
