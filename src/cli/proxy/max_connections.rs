//! `--max-connections` if it is not given: as many as fit into a quarter of the container's memory limit.
//!
//! The limit is read once, at the start: the bound also decides how many files the process may open, and a connection that
//! is open cannot be taken back. `--max-held` follows a changed limit; after a resize restart the pod to change this bound.

use tracing::warn;

use crate::cgroup::Cgroup;

/// Memory of a connection, bytes: idle ones with TLS take 26 KiB each, measured with 10,000 of them, and each may have 16 KiB of
/// buffers that count nowhere else.
const CONNECTION_BYTES: u64 = 42 << 10;

/// The part of the memory limit that connections may have. `--max-held` has half, and the last quarter is for the program
/// itself, its policies and what the kernel holds for its sockets.
const PART: u64 = 4;

/// The bound without a limit, and the highest without the flag: 420 MB of connections.
const MOST: usize = 10_000;

/// The least without the flag: OpenIM has up to eight processes, each of which keeps two connections.
const LEAST: usize = 64;

/// The bound, and why it is not that of the memory limit, if it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MaxConnections {
    pub(super) count: usize,
    problem: Option<String>,
}

impl MaxConnections {
    /// What the flag says, or what fits the memory limit.
    pub(super) fn new(flag: Option<usize>, cgroup: &Cgroup) -> MaxConnections {
        let (count, problem) = match flag.map_or_else(|| cgroup.memory_limit(), |_| Ok(None)) {
            Ok(limit) => (flag.unwrap_or_else(|| bound(limit)), None),
            Err(problem) => (MOST, Some(problem)),
        };
        MaxConnections { count, problem }
    }

    /// Warns if the limit could not be read.
    pub(super) fn log(&self) {
        if let Some(reason) = &self.problem {
            let max_connections = self.count;
            warn!(
                reason,
                max_connections, "The memory limit cannot be read: --max-connections is as without one"
            );
        }
    }
}

fn bound(memory_limit: Option<u64>) -> usize {
    let fitting = |limit: u64| usize::try_from(limit / PART / CONNECTION_BYTES).unwrap_or(MOST);
    memory_limit.map_or(MOST, fitting).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proxy::max_held;
    use crate::files::tests::Folder;

    #[test]
    fn connections_fit_a_quarter_of_the_limit_and_with_the_bytes_held_they_leave_a_quarter() {
        for (mib, expected) in [(32, 195), (64, 390), (256, 1560), (1024, 6241), (65_536, 10_000)] {
            let limit = mib << 20;
            let count = bound(Some(limit));
            assert_eq!(count, expected, "{mib} MiB");
            let held = u64::try_from(max_held::bound(Some(limit))).expect("a size");
            assert!(held + count as u64 * CONNECTION_BYTES <= limit / 4 * 3, "{mib} MiB");
        }
        assert_eq!((bound(None), bound(Some(0)), bound(Some(u64::MAX))), (MOST, LEAST, MOST));
    }

    #[test]
    fn the_flag_wins_and_an_unreadable_limit_is_none_and_reported() {
        let folder = Folder::new();
        let membership = folder.put("cgroup", "0::/");
        folder.put("memory.max", "268435456\n");
        let readable = Cgroup::at(membership, folder.path(""));
        let unreadable = Cgroup::at("/nowhere/cgroup", "/nowhere");
        let made = |flag, cgroup| MaxConnections::new(flag, cgroup);
        assert_eq!(made(None, &readable), MaxConnections { count: 1560, problem: None });
        for cgroup in [&readable, &unreadable] {
            assert_eq!(made(Some(20_000), cgroup), MaxConnections { count: 20_000, problem: None });
        }
        let problem = Some("/nowhere/cgroup: no such file".to_owned());
        assert_eq!(made(None, &unreadable), MaxConnections { count: MOST, problem });
    }
}
