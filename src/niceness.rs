//! The scheduling priority of a thread that may wait for others.

use std::io;

use rustix::process::setpriority_process;

/// How much nicer it is than the rest of the process: a tenth of a core, while another thread wants all of it.
const NICENESS: i32 = 10;

/// Puts the calling thread behind the other threads of the process: it is nicer, preempts nobody when it wakes
/// (`SCHED_BATCH`), and has no real-time policy, if the process was started with one. No privilege is needed. A system that refuses
/// leaves the thread as it is: it works, and takes more of a core that others want.
///
/// # Errors
///
/// What the system refused.
pub fn step_back() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and the kernel only reads the parameters.
    #[allow(unsafe_code, reason = "no crate in use offers the policy of one thread")]
    let policy = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
    let policy = if policy == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let niceness = setpriority_process(None, NICENESS).map_err(io::Error::from);
    policy.and(niceness)
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    /// Niceness and policy of the calling thread.
    fn own() -> (i32, libc::c_int) {
        // SAFETY: takes no pointer.
        #[allow(unsafe_code, reason = "as above")]
        let policy = unsafe { libc::sched_getscheduler(0) };
        (getpriority_process(None).expect("this thread"), policy)
    }

    #[test]
    fn a_thread_that_steps_back_is_nicer_and_the_others_are_as_before() {
        let before = own();
        let stepped = std::thread::spawn(|| {
            let stepped = step_back();
            (stepped.is_ok(), own())
        });
        let niceness = before.0.max(NICENESS);
        assert_eq!(stepped.join().expect("no panic"), (true, (niceness, libc::SCHED_BATCH)));
        assert_eq!(own(), before);
    }
}
