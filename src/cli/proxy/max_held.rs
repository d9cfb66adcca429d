//! `--max-held` if it is not given: half of the container's memory limit, also after that has changed.
//!
//! Kubernetes resizes a container in place, without a restart. Nothing reports it to the process, so the limit is read
//! again every few seconds, on the main thread, which serves no callbacks: two small files of the kernel.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use crate::cgroup::Cgroup;
use crate::cli::args::{LEAST_HELD, shown_size};
use crate::held::Held;

/// How often the limit is read.
const LOOK: Duration = Duration::from_secs(5);

/// The bound without a limit.
pub(super) const WITHOUT_LIMIT: usize = 256 << 20;

/// The other half of the container's memory is for connections, policies and the program itself.
pub(super) fn bound(memory_limit: Option<u64>) -> usize {
    let half = |limit: u64| usize::try_from(limit / 2).unwrap_or(usize::MAX / 2);
    memory_limit.map_or(WITHOUT_LIMIT, half).max(LEAST_HELD)
}

/// What a look at the limit has found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Another limit, and with it another bound.
    Changed { memory_limit: Option<u64>, old: usize, new: usize },
    /// No limit that could be read; the bound stays.
    Unreadable { problem: String, bound: usize },
}

impl Found {
    pub(super) fn log(self) {
        let size = |bytes: usize| shown_size(bytes);
        match self {
            Found::Changed { memory_limit, old, new } => {
                let limit = memory_limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
                let (old, new) = (size(old), size(new));
                let memory_limit = limit.map_or("none".to_owned(), size);
                info!(memory_limit, old, new, "The container's memory limit changed, and --max-held with it");
            }
            Found::Unreadable { problem, bound } => warn!(
                reason = problem,
                max_held = size(bound),
                "The container's memory limit cannot be read: --max-held stays as it is until it can be"
            ),
        }
    }
}

/// Keeps the bound at half of the limit.
#[derive(Debug)]
pub(super) struct Follower {
    cgroup: Cgroup,
    held: Held,
    /// The last look found nothing to read, which was reported.
    unreadable: bool,
}

impl Follower {
    /// Sets the bound for the first time, which is no change.
    pub(super) fn start(cgroup: Cgroup, held: Held, report: impl FnOnce(Found)) -> Follower {
        let mut follower = Follower { cgroup, held, unreadable: false };
        if let Some(found @ Found::Unreadable { .. }) = follower.look() {
            report(found);
        }
        follower
    }

    /// Follows the limit for ever.
    pub(super) async fn run(mut self, mut report: impl FnMut(Found)) -> Infallible {
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Some(found) = self.look() {
                report(found);
            }
        }
    }

    /// Reads the limit and sets the bound.
    fn look(&mut self) -> Option<Found> {
        let old = self.held.limit();
        match self.cgroup.memory_limit() {
            Ok(memory_limit) => {
                self.unreadable = false;
                let new = bound(memory_limit);
                self.held.set_limit(new);
                (new != old).then_some(Found::Changed { memory_limit, old, new })
            }
            Err(problem) => {
                let reported = std::mem::replace(&mut self.unreadable, true);
                (!reported).then_some(Found::Unreadable { problem, bound: old })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;

    use tokio::time::timeout;

    use super::*;
    use crate::files::tests::Folder;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_bound_is_half_of_the_limit_and_no_less_than_the_flag_may_be() {
        for (limit, expected) in [
            (None, 256 * MIB),
            (Some(128 << 20), 64 * MIB),
            (Some(2 << 20), MIB),
            (Some(1), MIB),
            (Some(0), MIB),
            (Some(64 << 30), 32 << 30),
        ] {
            assert_eq!(bound(limit), expected, "{limit:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_follows_the_limit_within_seconds_and_each_change_is_reported_once() {
        let folder = Folder::new();
        let membership = folder.put("cgroup", "0::/");
        let set = |text: &str| folder.put("memory.max", text);
        set("134217728\n");
        let held = Held::new(WITHOUT_LIMIT);
        let reports = RefCell::new(Vec::new());
        let report = |found| reports.borrow_mut().push(found);
        let follower = Follower::start(Cgroup::at(membership, folder.path("")), held.clone(), report);
        assert_eq!((held.limit(), reports.take()), (64 * MIB, vec![]), "the start is no change");
        let mut run = pin!(follower.run(report));
        let changed =
            |memory_limit, old, new| Found::Changed { memory_limit, old: old * MIB, new: new * MIB };
        let unreadable = |problem: &str, bound| {
            let path = folder.path("memory.max").display().to_string();
            Found::Unreadable { problem: format!("{path}: {problem}"), bound: bound * MIB }
        };
        for (text, bound, expected) in [
            ("134217728\n", 64, vec![]),
            ("67108864\n", 32, vec![changed(Some(64 << 20), 64, 32)]),
            ("268435456\n", 128, vec![changed(Some(256 << 20), 32, 128)]),
            ("max\n", 256, vec![changed(None, 128, 256)]),
            ("536870912\n", 256, vec![]),
            ("4\n", 1, vec![changed(Some(4), 256, 1)]),
            ("x\n", 1, vec![unreadable("\"x\" is neither a number of bytes nor max", 1)]),
            ("y\n", 1, vec![]),
            ("67108864\n", 32, vec![changed(Some(64 << 20), 1, 32)]),
            ("\n", 32, vec![unreadable("\"\" is neither a number of bytes nor max", 32)]),
        ] {
            set(text);
            let before = held.limit();
            timeout(LOOK - Duration::from_millis(1), run.as_mut()).await.expect_err("it never ends");
            assert_eq!((held.limit(), reports.take()), (before, vec![]), "{text:?} before its time");
            timeout(Duration::from_millis(1), run.as_mut()).await.expect_err("it never ends");
            assert_eq!((held.limit(), reports.take()), (bound * MIB, expected), "{text:?}");
            timeout(LOOK * 3, run.as_mut()).await.expect_err("it never ends");
            assert_eq!((held.limit(), reports.take()), (bound * MIB, vec![]), "{text:?} later");
        }
    }

    #[test]
    fn a_limit_that_cannot_be_read_at_the_start_leaves_the_bound_as_without_one() {
        let held = Held::new(WITHOUT_LIMIT);
        let mut reports = Vec::new();
        Follower::start(Cgroup::at("/nowhere/cgroup", "/nowhere"), held.clone(), |found| reports.push(found));
        let problem = "/nowhere/cgroup: no such file".to_owned();
        assert_eq!(reports, [Found::Unreadable { problem, bound: WITHOUT_LIMIT }]);
        assert_eq!(held.limit(), 256 * MIB);
    }
}
