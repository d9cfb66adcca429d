//! The queue of the thread: what is due first comes first, and what is of no use to anybody is dropped.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Instant;

use crate::cancel::Cancel;

/// One piece of work.
pub(super) struct Job {
    pub(super) deadline: Instant,
    /// Set when nobody waits for it any more.
    pub(super) cancel: Cancel,
    pub(super) run: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Job {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Job").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// In the order of deadlines, the earliest being the greatest: a heap yields it first.
impl Ord for Job {
    fn cmp(&self, other: &Job) -> Ordering {
        other.deadline.cmp(&self.deadline)
    }
}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Job) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Job) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Job {}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Jobs(BinaryHeap<Job>);

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, job: Job) {
        self.0.push(job);
    }

    pub(super) fn extend(&mut self, jobs: impl Iterator<Item = Job>) {
        self.0.extend(jobs);
    }

    /// The job with the earliest deadline, if that has not come and somebody waits for it; else it is dropped. One at a time, so
    /// that jobs which came meanwhile are seen between two of them.
    pub(super) fn next(&mut self, now: Instant) -> Option<Job> {
        self.0.pop().filter(|job| job.deadline > now && !job.cancel.is_set())
    }
}
