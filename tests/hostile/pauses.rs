//! Notes when the machine itself stands still: a virtual machine whose host has other work runs nothing for milliseconds, and
//! nobody inside can answer meanwhile. On each core a thread that goes before every other one sleeps, again and again; what it
//! could not do, neither guard nor caller could.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::priority;

/// How long each thread sleeps, and how much later than that it is woken for a pause to be noted.
const STEP: Duration = Duration::from_millis(2);
const SHORTEST: Duration = Duration::from_millis(2);

type Pause = (Instant, Instant);

pub(crate) struct Pauses {
    stop: Arc<AtomicBool>,
    noted: Arc<Mutex<Vec<Pause>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Pauses {
    pub(crate) fn watch() -> Pauses {
        let (stop, noted) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Pause>>>::default());
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores).map(|core| {
            let (stop, noted) = (Arc::clone(&stop), Arc::clone(&noted));
            thread::spawn(move || {
                // Among others it would note what the load does.
                if pin(core).is_ok() && priority::first_in(priority::PAUSES).is_ok() {
                    watch(&stop, &noted);
                }
            })
        });
        let threads = threads.collect();
        Pauses { stop, noted, threads }
    }

    /// How much of this time a core stood still.
    pub(crate) fn within(&self, from: Instant, to: Instant) -> Duration {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let parts =
            noted.iter().map(|(begun, ended)| (*ended).min(to).saturating_duration_since((*begun).max(from)));
        parts.sum()
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn watch(stop: &AtomicBool, noted: &Mutex<Vec<Pause>>) {
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + STEP;
        #[allow(clippy::disallowed_methods, reason = "the thread does nothing else")]
        thread::sleep(STEP);
        let woken = Instant::now();
        if woken.saturating_duration_since(due) >= SHORTEST {
            noted.lock().unwrap_or_else(PoisonError::into_inner).push((due, woken));
        }
    }
}

/// Keeps the calling thread on one core.
fn pin(core: usize) -> std::io::Result<()> {
    // SAFETY: the set is plain bits, made here and read by the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
