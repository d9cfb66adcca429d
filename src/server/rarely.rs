//! What has nothing to say for long, beside what is polled thousands of times a second.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Knows whether something that was polled to no avail was woken since. In between a look is one load, where a socket, a
/// timer or a watched value would take its lock, for each of several polls a callback.
pub(super) struct Gate {
    woken: Arc<Woken>,
    /// `woken` as the waker of what is polled.
    waker: Waker,
    /// The task's waker as `woken` has it.
    task: Waker,
}

struct Woken {
    due: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.due.store(true, Ordering::Release);
        self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

impl Gate {
    /// Open for the first poll.
    pub(super) fn new() -> Gate {
        let task = Waker::noop();
        let woken = Arc::new(Woken { due: AtomicBool::new(true), task: Mutex::new(task.clone()) });
        Gate { waker: Waker::from(Arc::clone(&woken)), woken, task: task.clone() }
    }

    /// Opens it for the next poll.
    pub(super) fn open(&self) {
        self.woken.due.store(true, Ordering::Release);
    }

    /// Polls where it is open. It closes with a poll that is pending, until that is woken.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if !self.task.will_wake(cx.waker()) {
            self.task.clone_from(cx.waker());
            self.woken.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(cx.waker());
            // It may have been woken for a task that does not look any more.
            self.open();
        }
        if !self.woken.due.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Before the poll: what wakes it meanwhile must be seen at the next look.
        self.woken.due.store(false, Ordering::Release);
        let polled = poll(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            self.open();
        }
        polled
    }
}

/// A future that is polled only where it was woken itself.
pub(super) struct Rarely<F> {
    inner: F,
    gate: Gate,
}

impl<F: Future + Unpin> Rarely<F> {
    pub(super) fn new(inner: F) -> Rarely<F> {
        Rarely { inner, gate: Gate::new() }
    }

    /// The future itself, to be changed: it is polled again afterwards.
    pub(super) fn inner(&mut self) -> &mut F {
        self.gate.open();
        &mut self.inner
    }
}

impl<F: Future + Unpin> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Rarely { inner, gate } = self.get_mut();
        gate.poll(cx, |cx| Pin::new(inner).poll(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::time::{Duration, Instant, sleep, timeout};

    use super::*;

    /// Polls with a task's waker, until it is woken no more.
    async fn once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_polled_when_it_was_woken_and_at_no_other_look() {
        let polls = Cell::new(0);
        let mut timer = pin!(sleep(Duration::from_secs(1)));
        let counted = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            timer.as_mut().poll(cx)
        });
        let mut rarely = Rarely::new(counted);
        for _ in 0..100 {
            assert!(once(&mut rarely).await.is_pending());
        }
        assert_eq!(polls.get(), 1);
        rarely.await;
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_polled_again_after_a_change() {
        let begun = Instant::now();
        let mut timer = Rarely::new(Box::pin(sleep(Duration::from_secs(3600))));
        assert!(once(&mut timer).await.is_pending());
        timer.inner().as_mut().reset(begun + Duration::from_secs(2));
        timer.await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn it_wakes_the_task_that_looked_last() {
        let mut timer = Rarely::new(Box::pin(sleep(Duration::from_secs(1))));
        assert!(once(&mut timer).await.is_pending());
        let elsewhere = tokio::spawn(timer);
        timeout(Duration::from_secs(2), elsewhere).await.expect("it is woken").expect("no panic");
    }
}
