//! The lines that a process writes.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// Lines that a thread reads from a pipe, and whether the pipe has ended.
pub(crate) struct Lines {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
    pace: Mutex<Pace>,
    paced: Condvar,
}

/// Whether a pipe is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    #[default]
    Reads,
    /// Not any more after the line under way.
    Stalls,
    /// Closes it after the line under way.
    Leaves,
}

impl Lines {
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Arc<Lines> {
        let lines = Arc::new(Lines {
            state: Mutex::default(),
            changed: Condvar::new(),
            pace: Mutex::default(),
            paced: Condvar::new(),
        });
        let shared = Arc::clone(&lines);
        thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                lock(&shared.state).0.push(text);
                shared.changed.notify_all();
                line.clear();
                if shared.keeps_pace() == Pace::Leaves {
                    break;
                }
            }
            drop(reader);
            lock(&shared.state).1 = true;
            shared.changed.notify_all();
        });
        lines
    }

    pub(crate) fn set_pace(&self, pace: Pace) {
        *lock(&self.pace) = pace;
        self.paced.notify_all();
    }

    /// Waits while it stalls.
    fn keeps_pace(&self) -> Pace {
        let pace = self.paced.wait_while(lock(&self.pace), |pace| *pace == Pace::Stalls);
        *pace.unwrap_or_else(PoisonError::into_inner)
    }

    /// So far.
    pub(crate) fn so_far(&self) -> Vec<String> {
        lock(&self.state).0.clone()
    }

    /// Waits for something in the lines; `None` when the pipe has ended without it, or [`PATIENCE`].
    pub(crate) fn wait<T>(&self, look: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        self.wait_at_most(PATIENCE, look)
    }

    /// The same with a longer patience.
    pub(crate) fn wait_at_most<T>(
        &self,
        patience: Duration,
        look: impl Fn(&[String]) -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + patience;
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = look(&state.0) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now()).filter(|_| !state.1)?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the pipe's end; tells whether it came.
    pub(crate) fn wait_for_end(&self) -> bool {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, PATIENCE * 3, |state| !state.1);
        waited.unwrap_or_else(PoisonError::into_inner).0.1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
