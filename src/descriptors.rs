//! Makes room for every descriptor the process may open, before it has a second thread.
//!
//! Linux keeps the open files of a process in a table that begins with 64 places and doubles when it is full. Where the
//! process has threads, the one that fills it sleeps until every core has passed a quiet state (`expand_fdtable` in Linux's
//! `fs/file.c` calls `synchronize_rcu`): 7 to 26 ms in a trace of `sched_switch` on a machine of two cores. A
//! worker answers nobody meanwhile. A table that has been large once stays large, and a process of one thread does not
//! wait: so the table is filled to its end at the start, for 8 bytes a place.
//!
//! The soft limit of open files is raised to what is needed, as Go and Java do by themselves: it is 1,024 in many a
//! container, for the sake of `select(2)`, which nothing here uses.

use std::fs::File;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The system allows fewer open files than were wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Open files, at most, that the bounds of the process add up to.
    pub wanted: u64,
    /// Open files that the process may have.
    pub limit: u64,
}

/// Raises the soft limit of open files to `wanted` where it is lower, and makes the kernel's table as large. Where the
/// hard limit is lower still there is room for as many as that, and it is told.
pub fn reserve(wanted: u64) -> Result<(), Shortage> {
    let limit = raise(wanted);
    let room = wanted.min(limit);
    // What fails here would fail at the first connection too, and costs time alone.
    if let (Ok(last), Ok(any)) = (i32::try_from(room.saturating_sub(1)), File::open("/dev/null")) {
        drop(fcntl_dupfd_cloexec(&any, last));
    }
    if room < wanted { Err(Shortage { wanted, limit }) } else { Ok(()) }
}

/// The soft limit, after it was raised as far as is wanted and allowed.
fn raise(wanted: u64) -> u64 {
    let is = getrlimit(Resource::Nofile);
    // `None` is without a limit.
    let soft = is.current.unwrap_or(u64::MAX);
    let raised = wanted.min(is.maximum.unwrap_or(u64::MAX));
    if soft >= raised {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: is.maximum }) {
        Ok(()) => raised,
        Err(_) => soft,
    }
}
