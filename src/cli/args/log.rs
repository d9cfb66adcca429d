//! The arguments of the log, of subcommands without callbacks of their own.

use tracing_subscriber::filter::LevelFilter;

use super::problems::{Problems, one_of};
use super::proxy::{LEVELS, LOG_FORMATS};
use crate::log::Format;

/// As typed.
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// off, error, warn, info or debug
    #[arg(
        long,
        env = "CALLBACK_GUARD_LOG_LEVEL",
        hide_env_values = true,
        value_name = "LEVEL",
        default_value = "info"
    )]
    log_level: String,
    /// json, or text for people
    #[arg(
        long,
        env = "CALLBACK_GUARD_LOG_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "json"
    )]
    log_format: String,
}

impl LogArgs {
    /// The level and the format.
    pub(super) fn read(&self, problems: &mut Problems) -> (Option<LevelFilter>, Option<Format>) {
        let level = problems.read("--log-level", &self.log_level, |text| one_of(text, &LEVELS));
        let format = problems.read("--log-format", &self.log_format, |text| one_of(text, &LOG_FORMATS));
        (level, format)
    }
}
