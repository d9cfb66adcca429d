//! The queue of events: its bounds, and how long the end of the process waits for it.

use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use crate::after::Bounds;
use crate::cgroup::Cgroup;
use crate::cli::args;
use crate::deliveries::{Config, Deliveries};
use crate::in_force::InForce;
use crate::log;
use crate::metrics::Metrics;
use crate::upstream::Address;

/// The part of the memory limit that queued events may have: half of what `--max-held` and `--max-connections` leave.
const PART: u64 = 8;

/// The bound without a limit: what a container of 256 MiB has.
const WITHOUT_LIMIT: usize = 32 << 20;

/// The least without the flag.
const LEAST: usize = 1 << 20;

/// The queue of the process, empty.
pub(super) fn deliveries(
    config: &args::Proxy,
    in_force: watch::Receiver<Arc<InForce>>,
    metrics: Arc<Metrics>,
    log: log::Queue,
) -> Arc<Deliveries> {
    let bytes = config.after.queue_bytes.unwrap_or_else(|| match Cgroup::own().memory_limit() {
        Ok(limit) => bound(limit),
        Err(reason) => {
            warn!(reason, "The memory limit cannot be read: --after-queue-bytes is as without one");
            WITHOUT_LIMIT
        }
    });
    let bounds = Bounds { events: config.after.queue, bytes, in_flight: config.after.in_flight };
    let (upstream_form, log_level, log_format) = (config.upstream_form, config.log_level, config.log_format);
    let config = Config { bounds, upstream_form, log_level, log_format };
    Arc::new(Deliveries::new(config, in_force, metrics, log))
}

fn bound(memory_limit: Option<u64>) -> usize {
    let eighth = |limit: u64| usize::try_from(limit / PART).unwrap_or(usize::MAX / 2);
    memory_limit.map_or(WITHOUT_LIMIT, eighth).max(LEAST)
}

/// Whether the app may outlive this process: it is not in the same pod.
pub(super) fn is_remote(upstream: &Address) -> bool {
    match upstream {
        Address::Ip(address) => !address.ip().to_canonical().is_loopback(),
        Address::Name(..) => true,
        Address::Loopback(_) | Address::Unix(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_an_eighth_of_the_limit_and_32_mib_without_one() {
        for (limit, expected) in
            [(Some(256 << 20), 32 << 20), (Some(64 << 20), 8 << 20), (Some(0), LEAST), (None, 32 << 20)]
        {
            assert_eq!(bound(limit), expected, "{limit:?}");
        }
    }

    #[test]
    fn an_app_on_loopback_or_behind_a_unix_socket_is_not_remote() {
        let ip = |text: &str| Address::Ip(text.parse().expect("an address"));
        for (address, remote) in [
            (ip("127.0.0.1:80"), false),
            (ip("[::ffff:127.0.0.1]:80"), false),
            (ip("10.0.0.1:80"), true),
            (Address::Loopback(80), false),
            (Address::Unix("/x".into()), false),
            (Address::Name("app".to_owned(), 80), true),
        ] {
            assert_eq!(is_remote(&address), remote, "{address}");
        }
    }
}
