//! Takes turns at long work, so that one connection or one body does not hold up the rest of a worker.
//!
//! A worker is one thread. What a callback costs is some 20 us, and whoever brings more work than that shares the thread in
//! turns: 16 KiB or 0.3 ms, whichever comes first. A *pass* is one round of the runtime: every task that is ready has
//! run, and the sockets were polled. At most one long turn is taken per pass; all others wait in a queue, of which one is
//! called per pass. A connection that reads less than 4 KiB at a time never waits.
//!
//! So beside any number of connections with endless work, a good callback waits for one long turn and for what a pass
//! costs anyway.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Work without a turn, bytes: larger than nearly every callback (OpenIM's largest without member lists has 1.5 KiB).
const FREE_BYTES: usize = 4 << 10;

/// Longest turn, bytes: one TLS record.
const TURN_BYTES: usize = 16 << 10;

/// Longest turn. With the 5 ms of the promise, more than ten of them may fall into one wait.
const TURN_TIME: Duration = Duration::from_micros(300);

/// Most bytes of bodies that a worker decodes in one pass: some 0.3 ms, at 5 ns a byte.
const DECODED_PER_PASS: usize = 64 << 10;

/// The turns of one worker. Not shared between threads.
#[derive(Debug, Default)]
pub struct Turns {
    queue: RefCell<VecDeque<Rc<Place>>>,
    /// Whether the long turn of this pass is taken.
    taken: Cell<bool>,
    /// Bytes decoded since the last pass that the keeper saw.
    decoded: Cell<usize>,
    keeper: RefCell<Option<Waker>>,
}

/// A place in the queue.
struct Place {
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

impl Turns {
    /// Calls one from the queue per pass, for ever. Without it nobody is called: it runs beside them, once a worker.
    pub async fn keep(&self) -> Infallible {
        loop {
            poll_fn(|cx| {
                let idle = !self.taken.get() && self.decoded.get() == 0 && self.queue.borrow().is_empty();
                if !idle {
                    return Poll::Ready(());
                }
                *self.keeper.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            tokio::task::yield_now().await;
            self.decoded.set(0);
            self.taken.set(self.call_next());
        }
    }

    /// A turn that waits for the next pass, or a later one if others wait.
    pub fn next(&self) -> Next {
        Next(self.join(Waker::noop().clone()))
    }

    /// Asks to decode `bytes` on the worker in this pass: `None` if it may begin at once, else what to wait for before it
    /// asks again.
    pub fn decode(&self, bytes: usize) -> Option<Next> {
        let decoded = self.decoded.get();
        if decoded > 0 && decoded + bytes > DECODED_PER_PASS {
            return Some(self.next());
        }
        self.decoded.set(decoded + bytes);
        // A pass is worth counting only if it comes near the bound: most of them decode one body of a kilobyte.
        if self.decoded.get() > DECODED_PER_PASS / 2 {
            self.wake_keeper();
        }
        None
    }

    /// Takes the long turn of this pass, if nobody has it and nobody waits.
    fn take(&self) -> bool {
        if self.taken.get() || !self.queue.borrow().is_empty() {
            return false;
        }
        self.taken.set(true);
        self.wake_keeper();
        true
    }

    fn join(&self, waker: Waker) -> Rc<Place> {
        let place =
            Rc::new(Place { called: Cell::new(false), left: Cell::new(false), waker: RefCell::new(waker) });
        self.queue.borrow_mut().push_back(Rc::clone(&place));
        self.wake_keeper();
        place
    }

    fn call_next(&self) -> bool {
        while let Some(place) = self.queue.borrow_mut().pop_front() {
            if !place.left.get() {
                place.called.set(true);
                place.waker.borrow().wake_by_ref();
                return true;
            }
        }
        false
    }

    fn wake_keeper(&self) {
        if let Some(keeper) = self.keeper.borrow_mut().take() {
            keeper.wake();
        }
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

/// How much one connection has done in its turn.
#[derive(Debug)]
pub struct Turn {
    turns: Rc<Turns>,
    used: usize,
    /// When its long turn began, while it has one.
    began: Option<Instant>,
    place: Option<Next>,
}

impl Turn {
    /// A connection of this worker, with nothing done.
    pub fn new(turns: Rc<Turns>) -> Turn {
        Turn { turns, used: 0, began: None, place: None }
    }

    /// Whether it may go on. Wakes the task when it may.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.used < FREE_BYTES {
            return Poll::Ready(());
        }
        if let Some(place) = &mut self.place {
            if Pin::new(place).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.place = None;
            self.begin();
            return Poll::Ready(());
        }
        match self.began {
            Some(began) if self.used < TURN_BYTES && began.elapsed() < TURN_TIME => return Poll::Ready(()),
            None if self.turns.take() => {
                self.begin();
                return Poll::Ready(());
            }
            Some(_) | None => {}
        }
        self.began = None;
        self.place = Some(Next(self.turns.join(cx.waker().clone())));
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
mod tests {
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// Runs this beside a keeper, on a worker's kind of runtime.
    async fn kept<T>(turns: &Rc<Turns>, work: impl Future<Output = T>) -> T {
        let local = LocalSet::new();
        let keeper = Rc::clone(turns);
        local.spawn_local(async move { keeper.keep().await });
        local.run_until(work).await
    }

    /// A connection with endless work in pieces of so many bytes. Notes each turn that begins.
    async fn greedy(name: usize, piece: usize, turns: Rc<Turns>, log: Rc<RefCell<Vec<usize>>>) {
        let mut turn = Turn::new(turns);
        loop {
            let waited = poll_fn(|cx| Poll::Ready(turn.poll(cx).is_pending())).await;
            if waited {
                turn.next().await;
                log.borrow_mut().push(name);
            }
            turn.spend(piece);
        }
    }

    #[tokio::test]
    async fn of_many_with_endless_work_one_is_called_per_pass_each_in_its_order() {
        let (turns, log) = (Rc::new(Turns::default()), Rc::new(RefCell::default()));
        kept(&turns, async {
            for name in 0..5 {
                tokio::task::spawn_local(greedy(name, 8 << 10, Rc::clone(&turns), Rc::clone(&log)));
            }
            let mut most = 0;
            for _ in 0..200 {
                let before = log.borrow().len();
                yield_now().await;
                most = most.max(log.borrow().len() - before);
            }
            assert_eq!(most, 1, "two long turns in one pass");
        })
        .await;
        let log = log.borrow();
        assert!(log.len() > 50, "{log:?}");
        let first: Vec<_> = log[..5].to_vec();
        for (at, name) in log.iter().enumerate() {
            assert_eq!(*name, first[at % 5], "{log:?}");
        }
    }

    #[tokio::test]
    async fn small_work_never_waits_however_long_the_queue_is() {
        let (turns, log) = (Rc::new(Turns::default()), Rc::new(RefCell::default()));
        kept(&turns, async {
            for name in 0..20 {
                tokio::task::spawn_local(greedy(name, 16 << 10, Rc::clone(&turns), Rc::clone(&log)));
            }
            yield_now().await;
            assert!(turns.queue.borrow().len() > 10);
            let (mut small, mut large) = (Turn::new(Rc::clone(&turns)), Turn::new(Rc::clone(&turns)));
            for _ in 0..100 {
                for _ in 0..3 {
                    assert!(poll_fn(|cx| Poll::Ready(small.poll(cx))).await.is_ready());
                    small.spend(1024);
                }
                small.pause();
            }
            large.spend(FREE_BYTES);
            assert!(poll_fn(|cx| Poll::Ready(large.poll(cx))).await.is_pending(), "the twin");
            large.pause();
            assert!(
                poll_fn(|cx| Poll::Ready(large.poll(cx))).await.is_pending(),
                "a pause is no way around the queue"
            );
        })
        .await;
    }

    #[tokio::test]
    async fn who_leaves_the_queue_costs_no_pass() {
        let turns = Rc::new(Turns::default());
        kept(&turns, async {
            let gone: Vec<_> = (0..100).map(|_| turns.next()).collect();
            let last = turns.next();
            drop(gone);
            last.await;
            assert!(turns.queue.borrow().is_empty());
        })
        .await;
    }

    #[tokio::test]
    async fn a_pass_decodes_64_kib_and_one_body_more_than_that_only_alone() {
        let turns = Rc::new(Turns::default());
        kept(&turns, async {
            assert!(turns.decode(200 << 10).is_none(), "alone");
            assert!(turns.decode(1).is_some());
            turns.decode(1).expect("not in this pass").await;
            for _ in 0..4 {
                assert!(turns.decode(16 << 10).is_none());
            }
            turns.decode(1).expect("64 KiB are decoded").await;
            assert!(turns.decode(1).is_none(), "the twin: another pass");
        })
        .await;
    }
}
