//! Lines that anybody can cause: at most one a second for each reason.
//!
//! A failed handshake costs its maker 20 bytes and a socket. With a line for each, one machine made 15,000 lines a second, and the
//! lines about callbacks rotated away. So the first line of a kind is written at once; those of the second after it are
//! counted, and written as one line at its end, with their count and the fields of the first of them.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep_until};

/// Between two lines of a kind.
const PERIOD: Duration = Duration::from_secs(1);

/// Those that have counted something once, for the end of the process: as many as there are reasons.
static USED: Mutex<Vec<&Repeated>> = Mutex::new(Vec::new());

/// One kind of line: one reason.
#[derive(Debug)]
pub struct Repeated {
    state: Mutex<State>,
}

struct State {
    /// Since when lines are counted.
    written: Option<Instant>,
    waiting: Option<Waiting>,
    is_used: bool,
}

/// A line that is written later, for all that come until then.
struct Waiting {
    count: u64,
    write: Box<dyn FnOnce(u64) + Send>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.waiting.as_ref().map(|waiting| waiting.count);
        f.debug_struct("State")
            .field("written", &self.written)
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

impl Default for Repeated {
    fn default() -> Repeated {
        Repeated::new()
    }
}

impl Repeated {
    /// Nothing written, nothing counted.
    pub const fn new() -> Repeated {
        Repeated { state: Mutex::new(State { written: None, waiting: None, is_used: false }) }
    }

    /// Writes a line now, within a second, or as one of the count of another. `write` is called with how many it stands for, not
    /// always here, and perhaps never. Returns whether it was called here. Runs inside a runtime with time; outside of one
    /// each line is written.
    pub fn line(&'static self, write: impl FnOnce(u64) + Send + 'static) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        if let Some(waiting) = &mut state.waiting {
            waiting.count += 1;
            return false;
        }
        let due = state.written.map(|written| written + PERIOD).filter(|due| *due > now);
        let (Some(due), Ok(runtime)) = (due, Handle::try_current()) else {
            state.written = Some(now);
            drop(state);
            write(1);
            return true;
        };
        state.waiting = Some(Waiting { count: 1, write: Box::new(write) });
        let was_used = std::mem::replace(&mut state.is_used, true);
        drop(state);
        if !was_used {
            USED.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        }
        runtime.spawn(async move {
            sleep_until(due).await;
            self.write_waiting();
        });
        false
    }

    fn write_waiting(&self) {
        let mut state = self.lock();
        let Some(Waiting { count, write }) = state.waiting.take() else { return };
        state.written = Some(Instant::now());
        drop(state);
        write(count);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what waits, at the end of the process.
pub(super) fn write_all_waiting() {
    let used = USED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    used.into_iter().for_each(Repeated::write_waiting);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;

    use super::*;

    /// What is written: which line, and its count.
    type Written = Arc<Mutex<Vec<(u64, u64)>>>;

    fn say(repeated: &'static Repeated, written: &Written, number: u64) -> bool {
        let written = Arc::clone(written);
        repeated.line(move |count| written.lock().expect("no panic").push((number, count)))
    }

    fn taken(written: &Written) -> Vec<(u64, u64)> {
        std::mem::take(&mut *written.lock().expect("no panic"))
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_written_at_once_and_the_others_once_a_second_with_their_count() {
        static REPEATED: Repeated = Repeated::new();
        let written = Written::default();
        assert!(say(&REPEATED, &written, 0));
        (1..1_000).for_each(|number| assert!(!say(&REPEATED, &written, number)));
        assert_eq!(taken(&written), [(0, 1)]);
        sleep(PERIOD + Duration::from_millis(2)).await;
        assert_eq!(taken(&written), [(1, 999)], "without another to push it out");
        assert!(!say(&REPEATED, &written, 1_000), "the second begins with each line");
        sleep(PERIOD).await;
        assert_eq!(taken(&written), [(1_000, 1)]);
        sleep(PERIOD + Duration::from_millis(2)).await;
        assert!(say(&REPEATED, &written, 1_001), "the twin: after a quiet second at once");
        assert_eq!(taken(&written), [(1_001, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_reason_has_its_own_second() {
        static REASONS: [Repeated; 2] = [const { Repeated::new() }; 2];
        let written = Written::default();
        assert!(say(&REASONS[0], &written, 0) && say(&REASONS[1], &written, 1));
        assert_eq!(taken(&written), [(0, 1), (1, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_what_waits_is_written() {
        static REPEATED: Repeated = Repeated::new();
        let written = Written::default();
        for number in 0..3 {
            say(&REPEATED, &written, number);
        }
        write_all_waiting();
        assert_eq!(taken(&written), [(0, 1), (1, 2)]);
        sleep(2 * PERIOD).await;
        assert_eq!(taken(&written), [], "and not again");
    }
}
