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
//!
//! If the hard limit is low, callers and the app could take every descriptor, and the probes would fail with nothing wrong.
//! So the last ones are set aside for the admin port. The kernel hands out the lowest free number: a new descriptor with
//! one of the last numbers shows that all before it are taken.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// How many of the last descriptors are set aside, as wanted.
static SET_ASIDE: AtomicUsize = AtomicUsize::new(0);

/// Sets aside descriptors for so many connections of the admin port.
pub fn set_aside(connections: usize) {
    SET_ASIDE.store(connections, Ordering::Relaxed);
}

/// How many of the wanted connections the admin port may have: at most a quarter of what the process may open, so that
/// neither it nor the rest can take all.
pub fn admin_share(wanted: usize) -> usize {
    wanted.min(soft_limit() / 4)
}

/// Whether this descriptor is one of those set aside: whoever is not the admin port has to do without it.
pub fn is_set_aside(descriptor: &impl AsFd) -> bool {
    let limit = soft_limit();
    let first = limit - SET_ASIDE.load(Ordering::Relaxed).min(limit / 4);
    usize::try_from(descriptor.as_fd().as_raw_fd()).is_ok_and(|number| number >= first)
}

/// Read each time, as it may be changed from outside.
fn soft_limit() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize)
}

/// The same socket at the lowest number that is free; unchanged if none is.
pub fn renumbered(socket: TcpStream) -> TcpStream {
    socket.try_clone().unwrap_or(socket)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_admin_port_has_at_most_a_quarter() {
        assert_eq!(admin_share(1), 1);
        let limit = getrlimit(Resource::Nofile).current.expect("tests have a limit");
        assert_eq!(admin_share(usize::MAX), (limit / 4) as usize);
    }

    #[test]
    fn only_the_last_numbers_are_set_aside_and_a_lower_one_is_found_when_it_is_free() {
        set_aside(8);
        let last = getrlimit(Resource::Nofile).current.expect("tests have a limit") - 1;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        assert!(!is_set_aside(&socket));
        let at = |number: u64| {
            let copy = fcntl_dupfd_cloexec(&socket, i32::try_from(number).expect("a number")).expect("free");
            TcpStream::from(copy)
        };
        assert!(is_set_aside(&at(last)) && is_set_aside(&at(last - 7)));
        assert!(!is_set_aside(&at(last - 8)), "the twin");
        assert!(!is_set_aside(&renumbered(at(last))));
    }
}
