//! Who goes before whom: the good callers before the app, the app before the guard, the guard before everything else on the
//! machine. So neither another process nor an attacker that uses a whole core decides how late an answer is.

use std::io;

/// Threads that note when a core itself stood still.
pub(crate) const PAUSES: i32 = 50;
pub(crate) const GOOD_CALLERS: i32 = 5;
pub(crate) const APP: i32 = 4;
pub(crate) const GUARD: i32 = 1;

/// Puts the calling thread, and all that it starts, into `SCHED_FIFO`. Needs root, or `CAP_SYS_NICE`. Makes a system call alone.
pub(crate) fn first_in(priority: i32) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameter is read by the call alone.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Why priorities are refused on this machine, if they are.
pub(crate) fn refused() -> Option<String> {
    let tried = std::thread::spawn(|| first_in(GUARD)).join().expect("no panic");
    tried.err().map(|error| format!("SCHED_FIFO is refused ({error}); it needs root, or CAP_SYS_NICE"))
}
