//! The arguments of `demo-app`.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use super::log::LogArgs;
use super::problems::{Problems, socket};
use crate::log::Format;

/// Default port: the one that `proxy` forwards to.
pub const APP_PORT: u16 = 8080;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// `demo-app` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct DemoAppArgs {
    /// Plain HTTP listener; port 0 takes a free one, which the log names [default: [::]:8080, or 0.0.0.0:8080 without IPv6]
    #[arg(
        long,
        env = "CALLBACK_GUARD_LISTEN",
        hide_env_values = true,
        value_name = "ADDR:PORT",
        default_value = "",
        hide_default_value = true
    )]
    listen: String,
    /// Time to wait before each answer to a callback, at most 1h. Exceed the guard's timeout to see its fallback
    #[arg(
        long,
        env = "CALLBACK_GUARD_DELAY",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "0s"
    )]
    delay: String,
    /// Open connections; further ones wait
    #[arg(
        long,
        env = "CALLBACK_GUARD_MAX_CONNECTIONS",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "1000"
    )]
    max_connections: String,
    /// Body of a callback; a larger one is answered with status 413
    #[arg(
        long,
        env = "CALLBACK_GUARD_MAX_REQUEST_SIZE",
        hide_env_values = true,
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    max_request_size: String,
    /// How long a connection may be idle, and a request may take to arrive. Keep it long: Go loses a POST if the connection is
    /// closed at the same moment
    #[arg(
        long,
        env = "CALLBACK_GUARD_IDLE_TIMEOUT",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "15m"
    )]
    idle_timeout: String,
    /// How long to accept new connections after SIGTERM, at most 1h. Meanwhile Kubernetes removes the pod from its Services
    #[arg(
        long,
        env = "CALLBACK_GUARD_SHUTDOWN_DELAY",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "5s"
    )]
    shutdown_delay: String,
    #[command(flatten)]
    log: LogArgs,
}

/// A `demo-app` without mistakes.
#[derive(Clone, Debug)]
pub struct DemoApp {
    /// `--listen`; `None`: the default.
    pub listen: Option<SocketAddr>,
    /// `--delay`
    pub delay: Duration,
    /// `--max-connections`
    pub max_connections: usize,
    /// `--max-request-size`, bytes
    pub max_request_size: usize,
    /// `--idle-timeout`
    pub idle_timeout: Duration,
    /// `--shutdown-delay`
    pub shutdown_delay: Duration,
    /// `--log-level`
    pub log_level: LevelFilter,
    /// `--log-format`
    pub log_format: Format,
}

impl DemoAppArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<DemoApp> {
        let listen = problems.read_optional("--listen", &self.listen, socket);
        let delay = problems.time("--delay", &self.delay, Duration::ZERO, HOUR);
        let max_connections = problems.count("--max-connections", &self.max_connections, 1, 1_000_000);
        let max_request_size = problems.size("--max-request-size", &self.max_request_size, 1024, 1 << 30);
        let idle_timeout = problems.time("--idle-timeout", &self.idle_timeout, SECOND, 24 * HOUR);
        let shutdown_delay = problems.time("--shutdown-delay", &self.shutdown_delay, Duration::ZERO, HOUR);
        let (log_level, log_format) = self.log.read(problems);
        Some(DemoApp {
            listen: listen?,
            delay: delay?,
            max_connections: max_connections?,
            max_request_size: max_request_size?,
            idle_timeout: idle_timeout?,
            shutdown_delay: shutdown_delay?,
            log_level: log_level?,
            log_format: log_format?,
        })
    }
}
