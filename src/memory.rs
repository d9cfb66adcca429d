//! Gives memory back to the system once a load has passed.
//!
//! What was freed the allocator keeps for the next time. After a burst of connections that is some megabytes for ever, in
//! a sidecar that every pod pays for. glibc returns them when it is asked to (`malloc_trim(3)`), under the lock of each
//! arena: so it is asked in a quiet moment, and only after there was something to free.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::Metrics;

/// How often it is looked whether the moment is quiet.
const LOOK: Duration = Duration::from_secs(1);

/// So many looks in a row must find nothing going on.
const QUIET_LOOKS: u32 = 3;

/// Gives memory back after each load. Runs for ever.
pub async fn give_back(metrics: Arc<Metrics>) {
    let mut looks = tokio::time::interval(LOOK);
    let mut load = Load::default();
    loop {
        looks.tick().await;
        if load.has_passed(metrics.in_flight(), metrics.connections()) {
            trim();
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

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes no pointer, and is safe to be called from any thread.
    #[allow(unsafe_code, reason = "no safe interface to glibc's allocator")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back by themselves, or have no such call.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

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
}
