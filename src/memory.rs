//! Gives memory back to the system once a load has passed.
//!
//! What was freed the allocator keeps for the next time. After a burst of connections that is some megabytes for ever, in
//! a sidecar that every pod pays for. glibc returns them when it is asked to (`malloc_trim(3)`), under the lock of each
//! arena: so it is asked in a quiet moment, and only after there was something to free.
//!
//! The program's own code is the larger part: what only the start, a handshake or a rare path needed stays mapped. Those
//! pages are let go of too (`madvise(2)`, `MADV_DONTNEED`): they are never written, so the next use maps them again
//! from the file, in a tenth of a millisecond for all that a callback needs. No more than once a minute.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metrics::Metrics;

/// How often it is looked whether the moment is quiet.
const LOOK: Duration = Duration::from_secs(1);

/// So many looks in a row must find nothing going on.
const QUIET_LOOKS: u32 = 3;

/// How long the program's code stays mapped at the least.
const CODE_STAYS: Duration = Duration::from_secs(60);

/// Gives memory back after the start, and after each load. Runs for ever.
pub async fn give_back(metrics: Arc<Metrics>) {
    let mut looks = tokio::time::interval(LOOK);
    let mut load = Load { seen: true, ..Load::default() };
    let mut code_given_back: Option<Instant> = None;
    loop {
        looks.tick().await;
        if load.has_passed(metrics.in_flight(), metrics.connections()) {
            trim();
            if code_given_back.is_none_or(|at| at.elapsed() >= CODE_STAYS) {
                give_back_code();
                code_given_back = Some(Instant::now());
            }
        }
    }
}

/// What the looks have found since memory was given back.
#[derive(Debug, Default)]
struct Load {
    connections: i64,
    seen: bool,
    quiet: u32,
}

impl Load {
    /// Takes a look; true once at the end of a load. An idle connection that stays is no load, one that ends is.
    fn has_passed(&mut self, in_flight: i64, connections: i64) -> bool {
        let busy = in_flight > 0 || connections < self.connections;
        self.connections = connections;
        self.seen |= busy;
        self.quiet = if busy { 0 } else { self.quiet + 1 };
        let passed = self.seen && self.quiet >= QUIET_LOOKS;
        self.seen &= !passed;
        passed
    }
}

/// Gives back what the allocator keeps, at once. Threads that allocate meanwhile wait for some milliseconds.
#[cfg(target_env = "gnu")]
pub fn trim() {
    // SAFETY: takes no pointer, and is safe to be called from any thread.
    #[allow(unsafe_code, reason = "no safe interface to glibc's allocator")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back by themselves, or have no such call.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}

/// Lets go of the pages of the program's own code. What cannot be read or done is left as it is: it costs memory alone.
fn give_back_code() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, end) in code_of(&maps, &program.to_string_lossy()) {
        // SAFETY: a mapping of this process's own file that can be executed and not written: no page of it differs from
        // the file, whose pages come back at the next use.
        #[allow(unsafe_code, reason = "no safe interface to advice on a mapping that is not our own making")]
        unsafe {
            libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Where `/proc/self/maps` has the code of a program: private, executable, never writable.
fn code_of(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (permissions, rest) = rest.split_once(' ')?;
        let path = rest.splitn(4, ' ').nth(3)?.trim_start();
        let (start, end) = range.split_once('-')?;
        let is_code = permissions == "r-xp" && !program.is_empty() && path == program;
        let place = |text| usize::from_str_radix(text, 16).ok();
        is_code.then_some((place(start)?, place(end)?))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks (callbacks in flight, connections), and at which of them a load has passed.
    fn passed(looks: &[(i64, i64)]) -> Vec<usize> {
        let mut load = Load::default();
        let mut passed = Vec::new();
        for (at, (in_flight, connections)) in looks.iter().enumerate() {
            if load.has_passed(*in_flight, *connections) {
                passed.push(at);
            }
        }
        passed
    }

    #[test]
    fn a_load_has_passed_once_after_three_quiet_looks() {
        assert_eq!(passed(&[(5, 9), (0, 9), (0, 9), (0, 9), (0, 9), (0, 9)]), [3]);
        assert_eq!(passed(&[(5, 9), (0, 9), (0, 9), (1, 9), (0, 9), (0, 9), (0, 9)]), [6]);
    }

    #[test]
    fn connections_that_end_are_a_load_and_idle_ones_are_not() {
        assert_eq!(passed(&[(0, 9), (0, 2), (0, 2), (0, 2), (0, 2), (0, 2)]), [4]);
        assert_eq!(passed(&[(0, 0), (0, 2), (0, 2), (0, 2), (0, 2), (0, 3), (0, 3), (0, 3)]), [0; 0]);
    }

    #[test]
    fn code_is_what_is_executable_of_the_program_alone() {
        let maps = "\
55d0c0000000-55d0c0200000 r--p 00000000 fe:00 1234    /callback-guard
55d0c0200000-55d0c0900000 r-xp 001ff000 fe:00 1234    /callback-guard
55d0c0900000-55d0c0940000 r--p 008ff000 fe:00 1234    /callback-guard
55d0c0940000-55d0c0944000 rw-p 0093f000 fe:00 1234    /callback-guard
7f0000000000-7f0000100000 r-xp 00000000 fe:00 99      /lib/libc.so.6
7f0000200000-7f0000201000 rwxp 00000000 fe:00 1234    /callback-guard
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0       [vdso]
7ffd00003000-7ffd00004000 r-xp 00000000 00:00 0
";
        assert_eq!(code_of(maps, "/callback-guard"), [(0x55d0_c020_0000, 0x55d0_c090_0000)]);
        assert_eq!(code_of(maps, ""), []);
    }

    #[test]
    fn a_program_whose_code_was_given_back_goes_on() {
        let maps = fs::read_to_string("/proc/self/maps").expect("Linux tells its mappings");
        let program = fs::read_link("/proc/self/exe").expect("Linux tells the program");
        let code = code_of(&maps, &program.to_string_lossy());
        let here = code_of as *const () as usize;
        assert!(code.iter().any(|(start, end)| (*start..*end).contains(&here)), "{code:x?}");
        give_back_code();
        assert_eq!(passed(&[(5, 9), (0, 9), (0, 9), (0, 9)]), [3]);
    }
}
