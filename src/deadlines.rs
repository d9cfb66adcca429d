//! When the waits of one worker end: one timer for all of them.
//!
//! A callback waits twice, for its body and for the app's answer, each time until its deadline or the drain's cut. Next to
//! none comes to that: a timer and a watched value for each wait are four lists entered and left for nothing. Here a wait
//! takes a place in a table and gives it back. A keeper sleeps until the earliest deadline it knows of; it may find that
//! wait long gone, and then looks for the next.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use crate::drain::{self, Stage};

/// The waits of one worker. Not shared between threads.
#[derive(Debug, Default)]
pub struct Deadlines {
    table: RefCell<Table>,
}

#[derive(Debug, Default)]
struct Table {
    places: Vec<Place>,
    free: Vec<usize>,
    /// When the keeper wakes: no later than the earliest deadline of the table.
    next: Option<Instant>,
    keeper: Option<Waker>,
    /// Whether the drain has cut: no wait begins any more.
    cut: bool,
}

#[derive(Debug)]
enum Place {
    Free,
    Waiting(Instant, Waker),
    Over,
}

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its deadline.
    Deadline,
    /// [`Stage::Cut`]: what is in flight is answered now.
    Cut,
}

impl Deadlines {
    /// Waits until this time or the cut. Nothing is waited for before the first poll.
    pub fn wait(&self, until: Instant) -> Wait<'_> {
        Wait { deadlines: self, until, place: None }
    }

    /// Wakes the waits at their time, for ever. Without it none ends: it runs beside them, once a worker.
    pub async fn keep(&self, mut drain: drain::Watch) -> Infallible {
        let mut timer = pin!(tokio::time::sleep_until(Instant::now().into()));
        let mut cut = pin!(drain.reached(Stage::Cut));
        poll_fn(|cx| {
            if cut.as_mut().poll(cx).is_ready() {
                self.ring(None);
                return Poll::Ready(());
            }
            loop {
                let Some(next) = self.table.borrow_mut().next_for(cx) else { return Poll::Pending };
                if timer.deadline() != next.into() {
                    timer.as_mut().reset(next.into());
                }
                ready!(timer.as_mut().poll(cx));
                self.ring(Some(tokio::time::Instant::now().into_std()));
            }
        })
        .await;
        pending().await
    }

    /// Ends the waits that are over by now, or, without a time, all of them and those to come.
    fn ring(&self, now: Option<Instant>) {
        let over = self.table.borrow_mut().over(now);
        over.into_iter().for_each(Waker::wake);
    }
}

impl Table {
    fn next_for(&mut self, cx: &Context<'_>) -> Option<Instant> {
        if self.keeper.as_ref().is_none_or(|keeper| !keeper.will_wake(cx.waker())) {
            self.keeper = Some(cx.waker().clone());
        }
        self.next
    }

    fn over(&mut self, now: Option<Instant>) -> Vec<Waker> {
        self.cut |= now.is_none();
        self.next = None;
        let mut wakers = Vec::new();
        for place in &mut self.places {
            match place {
                Place::Waiting(until, _) if now.is_some_and(|now| *until > now) => {
                    self.next = Some(self.next.map_or(*until, |next| next.min(*until)));
                }
                Place::Waiting(..) => {
                    if let Place::Waiting(_, waker) = std::mem::replace(place, Place::Over) {
                        wakers.push(waker);
                    }
                }
                Place::Free | Place::Over => {}
            }
        }
        wakers
    }

    fn enter(&mut self, until: Instant, waker: Waker) -> usize {
        if self.next.is_none_or(|next| until < next) {
            self.next = Some(until);
            self.keeper.iter().for_each(Waker::wake_by_ref);
        }
        let place = Place::Waiting(until, waker);
        match self.free.pop() {
            Some(at) => {
                self.places[at] = place;
                at
            }
            None => {
                self.places.push(place);
                self.places.len() - 1
            }
        }
    }
}

/// One wait. Dropped, it gives its place back.
#[derive(Debug)]
#[must_use = "nothing is waited for before it is polled"]
pub struct Wait<'d> {
    deadlines: &'d Deadlines,
    until: Instant,
    place: Option<usize>,
}

impl Future for Wait<'_> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let mut table = self.deadlines.table.borrow_mut();
        if table.cut {
            return Poll::Ready(End::Cut);
        }
        let Some(at) = self.place else {
            let at = table.enter(self.until, cx.waker().clone());
            drop(table);
            self.place = Some(at);
            return Poll::Pending;
        };
        match &mut table.places[at] {
            Place::Waiting(_, waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            Place::Over => Poll::Ready(End::Deadline),
            Place::Free => unreachable!("a place is given back when its wait is dropped"),
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(at) = self.place {
            let mut table = self.deadlines.table.borrow_mut();
            table.places[at] = Place::Free;
            table.free.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::drain::Drain;

    const SECOND: Duration = Duration::from_secs(1);

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Runs this beside a keeper.
    async fn kept<T>(deadlines: &Deadlines, drain: drain::Watch, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            never = deadlines.keep(drain) => match never {},
            done = work => done,
        }
    }

    fn table_size(deadlines: &Deadlines) -> (usize, usize) {
        let table = deadlines.table.borrow();
        (table.places.len(), table.free.len())
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_ends_at_its_own_time_whatever_the_order() {
        let (deadlines, (_drain, watch)) = (Deadlines::default(), Drain::new(now()));
        let begun = now();
        let wait = async |seconds: u32| {
            // A wait that begins while the keeper sleeps for a later one, or for an earlier one.
            sleep(SECOND / 100 * seconds).await;
            assert_eq!(deadlines.wait(begun + SECOND * seconds).await, End::Deadline);
            let late = now() - (begun + SECOND * seconds);
            assert!(late <= Duration::from_millis(1), "{seconds}: {late:?}");
        };
        kept(&deadlines, watch, async {
            tokio::join!(wait(5), wait(3), wait(9), wait(1), wait(3), wait(7));
        })
        .await;
        assert_eq!(table_size(&deadlines), (6, 6), "every place was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_dropped_gives_its_place_to_the_next_and_never_ends() {
        let (deadlines, (_drain, watch)) = (Deadlines::default(), Drain::new(now()));
        kept(&deadlines, watch, async {
            for _ in 0..1000 {
                let wait = deadlines.wait(now() + SECOND);
                timeout(SECOND / 1000, wait).await.expect_err("its time has not come");
            }
            assert_eq!(table_size(&deadlines), (1, 1));
            let begun = now();
            assert_eq!(deadlines.wait(begun + SECOND * 2).await, End::Deadline);
            assert!(now() >= begun + SECOND * 2, "the time of those before is not its own");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_cut_ends_every_wait_and_those_to_come_and_no_stage_before_it_does() {
        let (deadlines, (drain, watch)) = (Deadlines::default(), Drain::new(now()));
        kept(&deadlines, watch, async {
            let cut = async {
                for stage in [Stage::Leaving, Stage::Ending, Stage::Closed] {
                    drain.advance(stage, now());
                    sleep(SECOND).await;
                }
                drain.advance(Stage::Cut, now());
            };
            let begun = now();
            let (one, other, ()) =
                tokio::join!(deadlines.wait(begun + SECOND * 60), deadlines.wait(begun + SECOND * 2), cut);
            assert_eq!((one, other), (End::Cut, End::Deadline));
            assert_eq!(now() - begun, SECOND * 3);
            assert_eq!(deadlines.wait(begun + SECOND * 60).await, End::Cut);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_whose_time_is_past_ends_at_once() {
        let (deadlines, (_drain, watch)) = (Deadlines::default(), Drain::new(now()));
        kept(&deadlines, watch, async {
            sleep(SECOND).await;
            let begun = now();
            assert_eq!(deadlines.wait(begun - SECOND / 2).await, End::Deadline);
            assert!(now() - begun <= Duration::from_millis(1));
        })
        .await;
    }
}
