//! Takes turns at long work, so that one connection, one body or one caller does not hold up the rest of a worker.
//!
//! A worker is one thread. What a callback costs is some 20 us, and whoever brings more work than that shares the thread in
//! turns. A *pass* is one round of the runtime: every task that is ready has run, and the sockets were polled.
//!
//! - **Long work** of one connection or body: 16 KiB or 0.3 ms at once, whichever comes first. At most one long turn is taken per
//!   pass. A connection that reads less than 4 KiB at a time needs none.
//! - **Many small pieces** of one caller: 500 callbacks that come, are answered, reach their deadline or are reset at once are 500 tasks
//!   that are ready at once, and so are those of 64 connections. A caller has a [`Lane`], in which so many run per pass; the rest wait.
//!
//! Who waits, waits in the lane of its caller. One lane is called per pass, each after the other. So beside any number of
//! connections with endless work, a good callback waits for one long turn of another caller and for what a pass costs anyway.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

/// Work without a turn, bytes: larger than nearly every callback (OpenIM's largest without member lists has 1.5 KiB).
const FREE_BYTES: usize = 4 << 10;

/// Longest turn, bytes: one TLS record.
const TURN_BYTES: usize = 16 << 10;

/// Longest turn. With the 5 ms of the promise, more than ten of them may fall into one wait.
const TURN_TIME: Duration = Duration::from_micros(300);

/// Most bytes of bodies that a worker decodes in one pass: some 0.3 ms, at 5 ns a byte.
const DECODED_PER_PASS: usize = 64 << 10;

/// Pieces of work of one caller in one pass, which end after [`TURN_TIME`] too. A callback is three to seven of them, and some 20 us
/// in all; one with long IDs beside many patterns has pieces of 0.3 ms.
const PIECES: u32 = 32;

/// So many pieces in a pass are not timed: most passes have no more, and to read the clock for each costs more than it is worth.
const UNTIMED_PIECES: u32 = 4;

/// The same, if that many callers wait.
const LEAST_PIECES: u32 = 4;

/// The number of a lane for what is no caller's.
pub const NO_CALLER: usize = 0;

thread_local! {
    /// The number of this pass.
    static PASS: Cell<u64> = const { Cell::new(0) };
}

/// The thread has nothing to do: what comes next is another pass. To be called before a worker sleeps; without it the keeper alone
/// counts passes.
pub fn rest() {
    PASS.set(PASS.get() + 1);
}

/// The turns of one worker. Not shared between threads.
#[derive(Debug)]
pub struct Turns {
    /// The lanes in which somebody waits, in the order in which they are called.
    ring: RefCell<VecDeque<Rc<Lane>>>,
    /// How many pieces of work a caller has in each pass.
    pieces: Cell<u32>,
    lanes: RefCell<HashMap<usize, Weak<Lane>>>,
    /// Whether the long turn of this pass is taken.
    taken: Cell<bool>,
    /// Bytes decoded since the last pass that the keeper saw.
    decoded: Cell<usize>,
    keeper: RefCell<Option<Waker>>,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns {
            ring: RefCell::default(),
            pieces: Cell::new(PIECES),
            lanes: RefCell::default(),
            taken: Cell::new(false),
            decoded: Cell::new(0),
            keeper: RefCell::default(),
        }
    }
}

/// What one caller has at one worker.
pub struct Lane {
    turns: Rc<Turns>,
    /// Pieces of work done or called in this pass, and since when they are timed.
    pass: Cell<u64>,
    done: Cell<u32>,
    timed: Cell<Option<Instant>>,
    /// Whether one that was called has run since.
    resumed: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Place>>>,
    /// Somebody waits.
    in_ring: Cell<bool>,
}

/// A place in the queue of a lane.
struct Place {
    /// Nothing else is called in the same pass.
    alone: bool,
    called: Cell<bool>,
    /// Whoever waited has gone: nobody is to be called.
    left: Cell<bool>,
    waker: RefCell<Waker>,
}

impl fmt::Debug for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Place").field("called", &self.called.get()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Lane").field("waiting", &self.waiting.borrow().len()).finish_non_exhaustive()
    }
}

impl Turns {
    /// Calls those who wait, some per pass, for ever. Without it nobody is called: it runs beside them, once a worker.
    pub async fn keep(&self) -> Infallible {
        let _cleared = Cleared(self);
        loop {
            poll_fn(|cx| {
                let idle = !self.taken.get() && self.decoded.get() == 0 && self.ring.borrow().is_empty();
                if !idle {
                    return Poll::Ready(());
                }
                *self.keeper.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            tokio::task::yield_now().await;
            rest();
            self.decoded.set(0);
            self.taken.set(self.call_next());
        }
    }

    /// The lane of a caller, who has this number among all.
    pub fn lane(self: &Rc<Self>, caller: usize) -> Rc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        if let Some(lane) = lanes.get(&caller).and_then(Weak::upgrade) {
            return lane;
        }
        if lanes.len() == lanes.capacity() {
            // Those of callers that have gone, before the table would grow.
            lanes.retain(|_, lane| lane.strong_count() > 0);
        }
        let (turns, waiting, in_ring) = (Rc::clone(self), RefCell::default(), Cell::new(false));
        let (pass, done, timed, resumed) = (Cell::new(0), Cell::new(0), Cell::new(None), Cell::new(false));
        let lane = Rc::new(Lane { turns, pass, done, timed, resumed, waiting, in_ring });
        lanes.insert(caller, Rc::downgrade(&lane));
        lane
    }

    /// Asks to decode `bytes` on the worker in this pass, for a caller: `None` if it may begin at once, else what to wait for.
    pub fn decode(self: &Rc<Self>, bytes: usize, caller: impl FnOnce() -> usize) -> Option<Next> {
        let decoded = self.decoded.get();
        if decoded > 0 && decoded + bytes > DECODED_PER_PASS {
            let lane = self.lane(caller());
            return Some(Next(lane.join(true, Waker::noop().clone())));
        }
        self.count_decoded(bytes);
        None
    }

    /// So many bytes are decoded in this pass, whatever others did.
    pub fn count_decoded(&self, bytes: usize) {
        self.decoded.set(self.decoded.get() + bytes);
        // A pass is worth counting only if it comes near the bound: most of them decode one body of a kilobyte.
        if self.decoded.get() > DECODED_PER_PASS / 2 {
            self.wake_keeper();
        }
    }

    /// Takes the long turn of this pass, if nobody has it and nobody waits.
    fn take(&self) -> bool {
        if self.taken.get() || !self.ring.borrow().is_empty() {
            return false;
        }
        self.taken.set(true);
        self.wake_keeper();
        true
    }

    /// Calls those who wait in the next lane, and returns whether it was one alone.
    fn call_next(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        while let Some(lane) = ring.pop_front() {
            let called = lane.call(self.pieces.get());
            let empty = lane.waiting.borrow().is_empty();
            lane.in_ring.set(!empty);
            if !empty {
                ring.push_back(lane);
            }
            if let Some(alone) = called {
                self.share_among(ring.len());
                return alone;
            }
        }
        self.share_among(0);
        false
    }

    /// The more callers wait, the fewer pieces of work each has in a pass.
    fn share_among(&self, lanes: usize) {
        let lanes = u32::try_from(lanes).unwrap_or(u32::MAX).max(1);
        self.pieces.set((PIECES / lanes).max(LEAST_PIECES));
    }

    fn wake_keeper(&self) {
        if let Some(keeper) = self.keeper.borrow_mut().take() {
            keeper.wake();
        }
    }
}

/// Nobody is called any more: those who wait are let go of.
struct Cleared<'t>(&'t Turns);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        let lanes = std::mem::take(&mut *self.0.ring.borrow_mut());
        lanes.iter().for_each(|lane| lane.in_ring.set(false));
    }
}

impl Lane {
    /// The turns of its worker.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Whether a piece of work may begin in this pass. It counts if it may.
    fn enter(&self) -> bool {
        let done = self.done();
        if self.in_ring.get() || done >= self.turns.pieces.get() {
            return false;
        }
        if done >= UNTIMED_PIECES {
            if self.timed.get().is_none() {
                self.timed.set(Some(Instant::now()));
            } else if self.is_late() {
                return false;
            }
        }
        self.count(1);
        true
    }

    /// Whether one that was called may run: those before it may have taken long. One of them does in any case.
    fn resume(&self) -> bool {
        !self.resumed.replace(true) || !self.is_late()
    }

    fn is_late(&self) -> bool {
        self.timed.get().is_some_and(|timed| timed.elapsed() >= TURN_TIME)
    }

    fn done(&self) -> u32 {
        if self.pass.get() == PASS.get() { self.done.get() } else { 0 }
    }

    fn count(&self, pieces: u32) {
        if self.pass.replace(PASS.get()) != PASS.get() {
            self.done.set(0);
            self.timed.set(None);
        }
        self.done.set(self.done.get().saturating_add(pieces));
    }

    fn join(self: &Rc<Self>, alone: bool, waker: Waker) -> Rc<Place> {
        let (called, left, waker) = (Cell::new(false), Cell::new(false), RefCell::new(waker));
        let place = Rc::new(Place { alone, called, left, waker });
        self.waiting.borrow_mut().push_back(Rc::clone(&place));
        self.enter_ring();
        place
    }

    /// Has one that was called wait again, before all others.
    fn wait_again(self: &Rc<Self>, place: &Rc<Place>) {
        place.called.set(false);
        self.waiting.borrow_mut().push_front(Rc::clone(place));
        self.enter_ring();
    }

    fn enter_ring(self: &Rc<Self>) {
        if !self.in_ring.replace(true) {
            let mut ring = self.turns.ring.borrow_mut();
            ring.push_back(Rc::clone(self));
            self.turns.share_among(ring.len());
        }
        self.turns.wake_keeper();
    }

    /// Calls at most so many, or one alone; returns which of the two, if there was somebody to call.
    fn call(&self, most: u32) -> Option<bool> {
        let mut waiting = self.waiting.borrow_mut();
        let mut count = 0;
        self.count(0);
        self.resumed.set(false);
        self.timed.set(Some(Instant::now()));
        while count < most
            && let Some(place) = waiting.pop_front_if(|place| count == 0 || !place.alone || place.left.get())
        {
            if place.left.get() {
                continue;
            }
            place.called.set(true);
            place.waker.borrow().wake_by_ref();
            count += 1;
            if place.alone {
                self.count(1);
                return Some(true);
            }
        }
        self.count(count);
        (count > 0).then_some(false)
    }
}

impl Place {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.called.get() {
            return Poll::Ready(());
        }
        self.waker.borrow_mut().clone_from(cx.waker());
        Poll::Pending
    }
}

/// Waits for a turn of its own.
#[derive(Debug)]
#[must_use = "nothing is waited for before it is polled"]
pub struct Next(Rc<Place>);

impl Future for Next {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

impl Drop for Next {
    fn drop(&mut self) {
        self.0.left.set(true);
    }
}

/// Lets a task of a caller run in the turns of its lane: each poll is a piece of work.
#[derive(Debug)]
pub struct Pace {
    lane: Rc<Lane>,
    alone: bool,
    place: Option<Next>,
}

impl Pace {
    /// A task in this lane. One whose poll may have many callbacks in it is called alone.
    pub fn new(lane: Rc<Lane>, alone: bool) -> Pace {
        Pace { lane, alone, place: None }
    }

    /// Whether it may run now. Wakes the task when it may.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(place) = &mut self.place {
            ready!(Pin::new(&mut *place).poll(cx));
            if !self.lane.resume() {
                self.lane.wait_again(&place.0);
                return Pin::new(place).poll(cx);
            }
            self.place = None;
            return Poll::Ready(());
        }
        if self.lane.enter() {
            return Poll::Ready(());
        }
        self.place = Some(Next(self.lane.join(self.alone, cx.waker().clone())));
        Poll::Pending
    }
}

/// How much one connection has done in its turn.
#[derive(Debug)]
pub struct Turn {
    lane: Rc<Lane>,
    used: usize,
    /// When its long turn began, while it has one.
    began: Option<Instant>,
    place: Option<Next>,
}

impl Turn {
    /// A connection of a caller, with nothing done.
    pub fn new(lane: Rc<Lane>) -> Turn {
        Turn { lane, used: 0, began: None, place: None }
    }

    /// Whether it may go on. Wakes the task when it may.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.used < FREE_BYTES {
            return Poll::Ready(());
        }
        if let Some(place) = &mut self.place {
            ready!(Pin::new(place).poll(cx));
            self.place = None;
            self.begin();
            return Poll::Ready(());
        }
        match self.began {
            Some(began) if self.used < TURN_BYTES && began.elapsed() < TURN_TIME => return Poll::Ready(()),
            None if self.lane.turns.take() => {
                self.begin();
                return Poll::Ready(());
            }
            Some(_) | None => {}
        }
        self.began = None;
        self.place = Some(Next(self.lane.join(true, cx.waker().clone())));
        Poll::Pending
    }

    /// Waits until it may go on.
    pub async fn next(&mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    /// Counts work that was done.
    pub fn spend(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Counts pieces of work that came up in it.
    pub fn pieces(&self, count: u32) {
        self.lane.count(count);
    }

    /// There is nothing to do until something comes: the next work begins a turn of its own.
    pub fn pause(&mut self) {
        if self.place.is_none() {
            self.used = 0;
            self.began = None;
        }
    }

    fn begin(&mut self) {
        self.used = FREE_BYTES;
        self.began = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests;
