//! The open connections of one worker: which of them makes room for a new one, which stayed without a request, and which
//! pins the most memory.
//!
//! Go does not repeat a POST that was lost on a kept connection over HTTP/1.1, so the order matters. A connection that sent no
//! request within a second goes first: nothing is lost with it. Then the longest idle one: the longer it has been idle, the less
//! likely is the next request to be on its way. One that came within this second has its chance before it goes.
//! Otherwise whoever fills all places, and then opens further connections, would push out each newcomer before its first
//! request. One that had a request in hand within this second goes last, and one that has it now makes room for nobody.
//!
//! A callback costs nothing here: what a connection is doing is read from its [`Activity`] when somebody asks.

use std::cell::{Cell, OnceCell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tracing::{info, warn};

use super::stream::Activity;
use super::workers::Order;
use crate::log::Repeated;
use crate::metrics::connections::{ConnectionEnd, ConnectionMetrics};

/// What a connection pins beside what is unread of it: an idle one with TLS was measured at 25 KiB.
pub(super) const CONNECTION_BYTES: usize = 25 << 10;

/// Ended connections of a worker that may say good-bye at once, which takes up to half a second where the caller does not
/// answer. They are beyond `--max-connections`; further ones are closed without a word.
pub const FAREWELLS: usize = 16;

/// How long a connection has for its handshake and its first request before it is the first to make room. In a cluster both
/// take some milliseconds.
pub(super) const FIRST_CHANCE: Duration = Duration::from_secs(1);

/// The longest idle connections that are found in one look at all. A look at 10,000 takes half a millisecond.
const FOUND_AT_ONCE: usize = 64;

/// Most connections that are named as the heaviest at once.
const HEAVIEST: usize = 256;

/// Whether a connection goes before another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It sent no request though it had the time.
    Silent,
    /// It is idle after a request.
    Idle,
    /// It has just come.
    New,
    /// It had a request in hand a moment ago, and so it may be used again at any moment.
    Recent,
}

impl Rank {
    /// That of a connection which is idle since then, after a request.
    fn of_idle(since: Instant, now: Instant) -> Rank {
        if now.saturating_duration_since(since) >= FIRST_CHANCE { Rank::Idle } else { Rank::Recent }
    }

    /// Whether a request came on the connection.
    fn is_served(self) -> bool {
        matches!(self, Rank::Idle | Rank::Recent)
    }

    /// That of a connection which sent no request since it was accepted.
    pub(super) fn of_silent(accepted: Instant, now: Instant) -> Rank {
        if now.duration_since(accepted) >= FIRST_CHANCE { Rank::Silent } else { Rank::New }
    }
}

/// A connection that might be ended, as it was when somebody asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its number at its worker.
    pub(super) id: u64,
    /// Whether it goes before others.
    pub(super) rank: Rank,
    /// Since when nothing is in hand; of one that never sent a request, when it was accepted.
    pub(super) idle_since: Instant,
    /// Whether a request is in hand.
    pub(super) busy: bool,
    /// Bytes that it pins.
    pub(super) unread: usize,
}

impl Candidate {
    /// The least of these makes room first.
    pub(super) fn room_order(&self) -> (Rank, Instant) {
        (self.rank, self.idle_since)
    }

    /// Whether nothing came or went since.
    fn is_as(&self, before: &Candidate) -> bool {
        !self.busy && self.rank.is_served() == before.rank.is_served() && self.idle_since == before.idle_since
    }

    /// The least of these goes first when memory is short: the most unread, then the longest idle, then any.
    pub(super) fn weight_order(&self) -> (Reverse<usize>, bool, (Rank, Instant)) {
        (Reverse(self.unread), self.busy, self.room_order())
    }
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It is announced (GOAWAY, or TLS's `close_notify`), and what is in hand has half a second.
    Said,
    /// The socket is closed.
    None,
}

/// What is known of one connection.
pub(super) struct Entry {
    accepted: Instant,
    activity: OnceCell<Rc<Activity>>,
    /// A place among `--max-connections`. One that was in the queue when the listener closed has none.
    permit: RefCell<Option<OwnedSemaphorePermit>>,
    /// How it was ended.
    farewell: Cell<Option<Farewell>>,
    end: Notify,
}

impl Entry {
    fn unread(&self) -> usize {
        self.activity.get().map_or(0, |activity| activity.kept_bytes())
    }

    fn candidate(&self, id: u64, now: Instant) -> Candidate {
        let activity = self.activity.get();
        let served = activity.is_some_and(|activity| activity.served());
        let quiet = activity.filter(|_| served).map(|activity| activity.quiet_since.get());
        Candidate {
            id,
            rank: quiet
                .map_or_else(|| Rank::of_silent(self.accepted, now), |quiet| Rank::of_idle(quiet, now)),
            idle_since: quiet.unwrap_or(self.accepted),
            busy: activity.is_some_and(|activity| activity.active.get() > 0),
            unread: self.unread(),
        }
    }
}

/// The open connections of one worker.
pub(super) struct Connections {
    own: Weak<Connections>,
    first_request_timeout: Duration,
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<Entry>>>,
    /// Those that may not have sent a request yet, the oldest first. One that has is taken out when it is met.
    silent: RefCell<BTreeSet<u64>>,
    /// Of those that have sent one the longest idle, in this order. Whatever was busy or came since the look is idle for less.
    found: RefCell<VecDeque<Candidate>>,
    farewells: Cell<usize>,
    registered: Notify,
}

impl Connections {
    pub(super) fn new(first_request_timeout: Duration) -> Rc<Connections> {
        Rc::new_cyclic(|own| Connections {
            own: own.clone(),
            first_request_timeout,
            next: Cell::new(0),
            open: RefCell::default(),
            silent: RefCell::default(),
            found: RefCell::default(),
            farewells: Cell::new(0),
            registered: Notify::new(),
        })
    }

    /// Adds a connection that was accepted then, until what is returned is dropped.
    pub(super) fn register(&self, accepted: Instant, permit: Option<OwnedSemaphorePermit>) -> Registered {
        let id = self.next.replace(self.next.get() + 1);
        let entry = Rc::new(Entry {
            accepted,
            activity: OnceCell::new(),
            permit: RefCell::new(permit),
            farewell: Cell::new(None),
            end: Notify::new(),
        });
        self.open.borrow_mut().insert(id, Rc::clone(&entry));
        self.silent.borrow_mut().insert(id);
        self.registered.notify_one();
        let connections = self.own.upgrade().expect("it is borrowed from one");
        Registered { connections, id, entry }
    }

    /// Does what another thread asks for.
    pub(super) fn obey(&self, order: Order, metrics: &ConnectionMetrics) {
        // An asker that has gone has decided without this answer.
        match order {
            Order::LongestIdle(answer) => {
                let _ = answer.send(self.longest_idle());
            }
            Order::Heaviest(answer) => {
                let _ = answer.send(self.heaviest());
            }
            Order::End { candidate, reason, answer } => {
                let _ = answer.send(self.end(candidate, reason, metrics));
            }
        }
    }

    /// Which connection is to make room; none if all have a request in hand.
    fn longest_idle(&self) -> Option<Candidate> {
        let silent = self.oldest_silent();
        if silent.is_some_and(|silent| silent.rank == Rank::Silent) {
            return silent;
        }
        let served = self.longest_idle_after_a_request();
        if served.is_some_and(|served| served.rank == Rank::Idle) { served } else { silent.or(served) }
    }

    /// The oldest connection that never sent a request.
    fn oldest_silent(&self) -> Option<Candidate> {
        let open = self.open.borrow();
        let mut silent = self.silent.borrow_mut();
        let now = now();
        while let Some(id) = silent.first().copied() {
            let candidate = open.get(&id).map(|entry| entry.candidate(id, now));
            if let Some(candidate) = candidate.filter(|candidate| !candidate.rank.is_served()) {
                return Some(candidate);
            }
            silent.pop_first();
        }
        None
    }

    fn longest_idle_after_a_request(&self) -> Option<Candidate> {
        self.first_found().or_else(|| {
            let open = self.open.borrow();
            let staying = open.iter().filter(|(_, entry)| entry.farewell.get().is_none());
            let now = now();
            let candidates = staying.map(|(id, entry)| entry.candidate(*id, now));
            let idle = |candidate: &Candidate| candidate.rank.is_served() && !candidate.busy;
            let found = candidates.filter(idle).collect();
            let found = least(found, FOUND_AT_ONCE, Candidate::room_order);
            let first = found.first().copied();
            *self.found.borrow_mut() = found.into();
            first
        })
    }

    /// The longest idle connection of those that were found at the last look and are as they were.
    fn first_found(&self) -> Option<Candidate> {
        let open = self.open.borrow();
        let mut found = self.found.borrow_mut();
        let now = now();
        while let Some(candidate) = found.front().copied() {
            let staying = open.get(&candidate.id).filter(|entry| entry.farewell.get().is_none());
            let as_it_is = staying.map(|entry| entry.candidate(candidate.id, now));
            if let Some(as_it_is) = as_it_is.filter(|as_it_is| as_it_is.is_as(&candidate)) {
                return Some(as_it_is);
            }
            found.pop_front();
        }
        None
    }

    /// The connections that pin the most memory, and how much of it is of connections whose end has begun.
    fn heaviest(&self) -> Heaviest {
        let open = self.open.borrow();
        let mut leaving = 0;
        let mut found = Vec::new();
        let now = now();
        for (id, entry) in open.iter() {
            match entry.farewell.get() {
                Some(_) => leaving += entry.unread() + CONNECTION_BYTES,
                None => found.push(entry.candidate(*id, now)),
            }
        }
        Heaviest { leaving, candidates: least(found, HEAVIEST, Candidate::weight_order) }
    }

    /// Ends a connection. Whoever wants its room gets it only if nothing came since; returns whether it ends.
    fn end(&self, candidate: Candidate, reason: ConnectionEnd, metrics: &ConnectionMetrics) -> bool {
        let entry = self.open.borrow().get(&candidate.id).cloned();
        let Some(entry) = entry.filter(|entry| entry.farewell.get().is_none()) else { return false };
        let now = entry.candidate(candidate.id, now());
        if !now.is_as(&candidate) && reason != ConnectionEnd::Memory {
            return false;
        }
        // What is in hand may be answered in any case: callers of those wait for a verdict.
        let said = now.busy || self.farewells.get() < FAREWELLS;
        let farewell = if said { Farewell::Said } else { Farewell::None };
        if said {
            self.farewells.set(self.farewells.get() + 1);
        }
        entry.farewell.set(Some(farewell));
        drop(entry.permit.take());
        self.silent.borrow_mut().remove(&candidate.id);
        entry.end.notify_one();
        metrics.ended(reason);
        log_ended(reason);
        true
    }

    /// Ends each connection that sends no request in time. Runs for ever.
    pub(super) async fn end_silent(&self, metrics: &ConnectionMetrics) {
        loop {
            let Some(oldest) = self.oldest_silent() else {
                self.registered.notified().await;
                continue;
            };
            let due = oldest.idle_since + self.first_request_timeout;
            if tokio::time::Instant::now() < due.into() {
                tokio::time::sleep_until(due.into()).await;
            } else {
                self.end(oldest, ConnectionEnd::NoRequest, metrics);
            }
        }
    }
}

/// The time by tokio's clock, which tests move.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// One line a second for each reason.
pub(super) fn log_ended(reason: ConnectionEnd) {
    static ENDED: [Repeated; ConnectionEnd::ALL.len()] =
        [const { Repeated::new() }; ConnectionEnd::ALL.len()];
    ENDED[reason as usize].line(move |count| match reason {
        ConnectionEnd::Limit => warn!(
            count,
            "--max-connections is reached: idle connections were closed to make room for new ones"
        ),
        ConnectionEnd::OpenFiles => warn!(
            count,
            "The limit of open files is reached: idle connections were closed to make room for new ones"
        ),
        ConnectionEnd::NoRequest => {
            info!(count, "Connections were closed because no request came on them within 2 minutes");
        }
        ConnectionEnd::Memory => warn!(
            count,
            "The container's memory is nearly used up: the connections that pin the most of it were closed"
        ),
    });
}

/// The connections of a worker that pin the most memory.
#[derive(Debug, Default)]
pub(super) struct Heaviest {
    /// Bytes of connections whose end has begun.
    pub(super) leaving: usize,
    /// The heaviest first.
    pub(super) candidates: Vec<Candidate>,
}

/// The first `most` in this order, sorted.
fn least<K: Ord>(mut found: Vec<Candidate>, most: usize, order: impl Fn(&Candidate) -> K) -> Vec<Candidate> {
    if found.len() > most {
        found.select_nth_unstable_by_key(most, &order);
        found.truncate(most);
    }
    found.sort_unstable_by_key(order);
    found
}

/// One connection in the list, until this is dropped.
pub(super) struct Registered {
    connections: Rc<Connections>,
    id: u64,
    pub(super) entry: Rc<Entry>,
}

impl Registered {
    /// From now on it is known what the connection is doing.
    pub(super) fn watch(&self, activity: &Rc<Activity>) {
        let _ = self.entry.activity.set(Rc::clone(activity));
    }

    /// Waits until the connection has to end.
    pub(super) async fn ended(&self) -> Farewell {
        self.entry.end.notified().await;
        self.entry.farewell.get().unwrap_or(Farewell::Said)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.open.borrow_mut().remove(&self.id);
        self.connections.silent.borrow_mut().remove(&self.id);
        if self.entry.farewell.get() == Some(Farewell::Said) {
            self.connections.farewells.set(self.connections.farewells.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests;
