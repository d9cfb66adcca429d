//! Gives memory back to the system once a load has passed.
//!
//! What was freed the allocator keeps for the next time. After a burst of connections that is some megabytes for ever, in
//! a sidecar that every pod pays for. glibc returns them when it is asked to (`malloc_trim(3)`), under the lock of each
//! arena: so it is asked in a quiet moment, and only after there was something to free.
//!
//! While others go on calling there may be no quiet moment. So it is asked too when much more is resident than after the last
//! time, in a moment without a callback in flight if one comes within [`GAP_PATIENCE`]. A worker that allocates meanwhile
//! waits (measured with blocks of 4 KiB): 4 ms if 32 MiB are given back, 19 ms for 128 MiB, and less than 1 ms if there is
//! nothing to give. After it gave back it is not asked again within [`GROWTH_PAUSE`], and ever more seldom while the memory is
//! in use.
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

/// By so much more must be resident than at best, for the allocator to be asked while others call. A sixteenth of the container's
/// default limit, and 2.4 ms of a worker's time.
const GROWN_BYTES: usize = 16 << 20;

/// How long it is not asked again, for growth, once it has given back.
const GROWTH_PAUSE: Duration = Duration::from_secs(10);

/// The same, if it gave little back: the memory is in use, for as long as most loads last. It doubles each time.
const IN_USE_PAUSE: Duration = Duration::from_secs(2);
const IN_USE_PAUSE_MOST: Duration = Duration::from_secs(60);

/// How long a moment without a callback in flight is waited for, and how often it is looked for.
const GAP_PATIENCE: Duration = Duration::from_secs(2);
const GAP_LOOK: Duration = Duration::from_millis(10);

/// From this size on a block has a mapping of its own, which its end gives back at once.
const OWN_MAPPING_BYTES: libc::c_int = 128 << 10;

/// Has the allocator give large blocks back at once, for good. By itself glibc raises the size from which it does so up to 32 MiB, with
/// each large block that is freed: answers of some megabytes then stay in its arenas. To be called while there is one
/// thread.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; a size that is refused leaves all as it was.
    #[allow(unsafe_code, reason = "no safe interface to glibc's allocator")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, OWN_MAPPING_BYTES);
    }
}

/// Gives memory back after the start, after each load, and while others call. Runs for ever, on a thread that serves no callbacks.
pub async fn give_back(metrics: Arc<Metrics>) {
    let mut looks = tokio::time::interval(LOOK);
    let mut load = Load { seen: true, ..Load::default() };
    let mut growth = Growth::new(anonymous(), Instant::now());
    let mut code_given_back: Option<Instant> = None;
    loop {
        looks.tick().await;
        if load.has_passed(metrics.in_flight(), metrics.connections()) {
            trim();
            growth.quiet(anonymous());
            if code_given_back.is_none_or(|at| at.elapsed() >= CODE_STAYS) {
                give_back_code();
                code_given_back = Some(Instant::now());
            }
        } else if growth.is_due(anonymous(), Instant::now()) {
            gap(|| metrics.in_flight() == 0).await;
            let before = anonymous();
            trim();
            growth.given_back(before, anonymous(), Instant::now());
        }
    }
}

/// Waits for a moment of which this is true, and no longer than there is patience.
async fn gap(is_gap: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + GAP_PATIENCE;
    while !is_gap() && tokio::time::Instant::now() < until {
        tokio::time::sleep(GAP_LOOK).await;
    }
}

/// Resident memory that is no file's, bytes: what the allocator has, and some stacks. 0 if the system does not tell.
fn anonymous() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

/// How much more is resident than when memory was given back.
#[derive(Debug)]
struct Growth {
    /// The least that was resident then, bytes.
    least: usize,
    /// When it may be asked again.
    next: Instant,
    in_use_pause: Duration,
}

impl Growth {
    fn new(resident: usize, now: Instant) -> Growth {
        Growth { least: resident, next: now, in_use_pause: IN_USE_PAUSE }
    }

    /// Whether there may be much to give back.
    fn is_due(&self, resident: usize, now: Instant) -> bool {
        now >= self.next && resident >= self.least.saturating_add(GROWN_BYTES)
    }

    /// It was asked while others call. What is resident now may be in use, and be free later: it is no new measure.
    fn given_back(&mut self, before: usize, after: usize, now: Instant) {
        let useful = before.saturating_sub(after) >= GROWN_BYTES / 2;
        let pause = if useful { GROWTH_PAUSE } else { self.in_use_pause };
        self.in_use_pause = if useful { IN_USE_PAUSE } else { (pause * 2).min(IN_USE_PAUSE_MOST) };
        self.next = now + pause;
        self.least = self.least.min(after);
    }

    /// It was asked in a quiet moment: what is resident now is what the program needs.
    fn quiet(&mut self, after: usize) {
        self.least = after;
        self.in_use_pause = IN_USE_PAUSE;
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

    const MIB: usize = 1 << 20;

    #[test]
    fn growth_is_given_back_while_others_call_and_not_again_within_the_pause() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut growth = Growth::new(10 * MIB, start);
        assert!(!growth.is_due(26 * MIB - 1, at(1)), "the twin: less");
        assert!(growth.is_due(26 * MIB, at(1)));
        growth.given_back(200 * MIB, 12 * MIB, at(1));
        for (seconds, due) in [(2, false), (10, false), (11, true)] {
            assert_eq!(growth.is_due(200 * MIB, at(seconds)), due, "{seconds}");
        }
        assert!(!growth.is_due(25 * MIB, at(3600)));
    }

    #[test]
    fn memory_in_use_is_asked_for_ever_more_seldom_and_given_back_within_a_minute_of_its_end() {
        let start = Instant::now();
        let mut growth = Growth::new(10 * MIB, start);
        let mut asked = Vec::new();
        for seconds in 0..=300 {
            let now = start + Duration::from_secs(seconds);
            if growth.is_due(100 * MIB, now) {
                asked.push(seconds);
                growth.given_back(100 * MIB, 99 * MIB, now);
            }
        }
        assert_eq!(asked, [0, 2, 6, 14, 30, 62, 122, 182, 242]);
        let now = start + Duration::from_secs(302);
        assert!(growth.is_due(100 * MIB, now));
        growth.given_back(100 * MIB, 11 * MIB, now);
        assert!(growth.is_due(100 * MIB, now + GROWTH_PAUSE), "a load that comes again is seen at once");
        assert!(!growth.is_due(100 * MIB, now + GROWTH_PAUSE - Duration::from_millis(1)));
    }

    #[test]
    fn what_stays_after_a_quiet_moment_is_the_new_measure() {
        let start = Instant::now();
        let mut growth = Growth::new(10 * MIB, start);
        growth.quiet(40 * MIB);
        assert!(!growth.is_due(50 * MIB, start));
        assert!(growth.is_due(56 * MIB, start), "the twin");
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_waited_for_and_not_for_ever() {
        let begun = tokio::time::Instant::now();
        gap(|| true).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        gap(|| begun.elapsed() >= Duration::from_millis(30)).await;
        assert_eq!(begun.elapsed(), Duration::from_millis(30));
        gap(|| false).await;
        assert_eq!(begun.elapsed(), GAP_PATIENCE + Duration::from_millis(30));
    }

    #[test]
    fn what_the_allocator_gave_out_is_resident() {
        let before = anonymous();
        assert!(before > 0);
        // Far more than what other tests give back meanwhile.
        let block = std::hint::black_box(vec![1_u8; 256 * MIB]);
        assert!(anonymous() > before + 128 * MIB);
        drop(block);
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
