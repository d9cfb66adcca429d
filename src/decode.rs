//! One thread for the process that decodes large bodies, so that no worker does: a worker answers everybody else.
//!
//! A megabyte of JSON takes 3 to 12 ms, and many may come at once. Each piece of work has the deadline of its callback. The
//! earliest is done first; one whose deadline has passed, or whose caller waits no more, is skipped; one that is under way
//! then ends within some 0.1 ms ([`crate::cancel`]). What belongs to the work, its share of the bytes held too, goes along
//! with it and is dropped with it, not when the wait ends.
//!
//! (Not the runtime's pool for blocking work: names are looked up there, and many threads would take the cores from the workers.)

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Instant;

use tokio::sync::oneshot;

use self::jobs::{Job, Jobs};
use crate::cancel::{Cancel, watched};
use crate::held::Held;
use crate::niceness;

mod jobs;

/// Bodies above this size are decoded on the thread, in bytes: four times OpenIM's usual callback, and 0.2 ms on a worker at
/// the worst (12 ns a byte).
pub const LARGE_BODY_BYTES: usize = 16 << 10;

/// The thread, as workers see it. Clones share it.
#[derive(Clone, Debug)]
pub struct DecodeThread {
    jobs: mpsc::Sender<Job>,
    /// How many there are: those that wait and the one under way.
    count: Arc<AtomicUsize>,
    held: Held,
    max_in_flight: usize,
}

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// The work has no result: it was skipped, or it panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoResult;

impl DecodeThread {
    /// Starts the thread. It ends when nobody can send it work any more.
    pub fn start(held: Held, max_in_flight: usize) -> DecodeThread {
        let (sender, receiver) = mpsc::channel();
        let thread = thread::Builder::new().name("decode".to_owned()).spawn(move || work_on(&receiver));
        thread.expect("a process that cannot start a thread cannot serve");
        DecodeThread { jobs: sender, count: Arc::default(), held, max_in_flight }
    }

    /// How many pieces of work there may be. Each is either for a request above [`LARGE_BODY_BYTES`], which is counted in the
    /// bytes held, or for the answer to a callback that is in flight. Work that nobody waits for stays until its turn: the bound
    /// is on both together.
    fn limit(&self) -> usize {
        self.max_in_flight.saturating_add(self.held.limit() / LARGE_BODY_BYTES)
    }

    /// Has work done on the thread, if its turn comes before the deadline and what is returned is still there. Blocks nobody.
    ///
    /// # Errors
    ///
    /// There are as many pieces of work as [`Self::limit`] says; the work is dropped.
    pub fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Decoding<T>, TooMany> {
        let place = Place::take(&self.count, self.limit()).ok_or(TooMany)?;
        let (done, result) = oneshot::channel();
        let cancel = Cancel::default();
        let run = Box::new(move || {
            // The place is free before anybody can know of the result.
            let made = work();
            drop(place);
            let _ = done.send(made);
        });
        let job = Job { deadline, cancel: cancel.clone(), run };
        // Without the thread, which ends with the process alone, the job is dropped, and the wait ends.
        let _ = self.jobs.send(job);
        Ok(Decoding { result, cancel })
    }
}

/// One of the places that there are for work, given back when it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(count: &Arc<AtomicUsize>, limit: usize) -> Option<Place> {
        let below = |taken: usize| (taken < limit).then_some(taken + 1);
        count.try_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        Some(Place(Arc::clone(count)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Work that is waited for. Dropped, it is cancelled.
#[derive(Debug)]
#[must_use = "work that nobody waits for is cancelled"]
pub struct Decoding<T> {
    result: oneshot::Receiver<T>,
    cancel: Cancel,
}

impl<T> Future for Decoding<T> {
    type Output = Result<T, NoResult>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(cx).map_err(|_| NoResult)
    }
}

impl<T> Drop for Decoding<T> {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What the thread does.
fn work_on(receiver: &mpsc::Receiver<Job>) {
    if let Err(error) = niceness::step_back() {
        tracing::debug!(%error, "Large bodies are decoded with the same priority as the rest");
    }
    let mut jobs = Jobs::default();
    loop {
        if jobs.is_empty() {
            let Ok(job) = receiver.recv() else { return };
            jobs.add(job);
        }
        jobs.extend(receiver.try_iter());
        if let Some(Job { cancel, run, .. }) = jobs.next(Instant::now()) {
            // The hook of the process counts a panic. The work's own values are dropped, and its caller has no result.
            let _ = catch_unwind(AssertUnwindSafe(|| watched(&cancel, run)));
        }
    }
}

#[cfg(test)]
mod tests;
