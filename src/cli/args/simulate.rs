//! The arguments of `simulate`.

use std::time::Duration;

use super::problems::{Problems, one_of, path};
use crate::callback::command;
use crate::callback::target::Form;
use crate::cli::simulate::{Load, Place, Samples, Server, Simulate, Trust, file_problems};
use crate::policy::resembling_command;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Where OpenIM's client gives up, whatever its configuration says.
const OPENIM_TIMEOUT_SECONDS: u64 = 15;

#[derive(Debug, clap::Args)]
pub(super) struct SimulateArgs {
    /// What stands in OpenIM's webhooks.url: http:// or https://, with a user where the app asks for one
    #[arg(value_name = "URL", required = true)]
    url: Option<String>,
    /// A command to send, by today's name or an earlier one; more than once, or with commas, for more [default: all
    /// before-commands]
    #[arg(
        long,
        env = "CALLBACK_GUARD_COMMAND",
        hide_env_values = true,
        value_name = "NAME",
        value_delimiter = ','
    )]
    command: Vec<String>,
    /// The OpenIM to play: v3.8 for releases, which also send notifications with the commands of messages; main for its main
    /// branch, which sends ?key= with three after-commands, and not always the right operationID in the header
    #[arg(
        long,
        env = "CALLBACK_GUARD_SERVER",
        hide_env_values = true,
        value_name = "SERVER",
        default_value = "v3.8"
    )]
    server: String,
    /// all that the server is known to send of each command (a notification, a message sent by REST, fields that are null),
    /// or the usual one
    #[arg(
        long,
        env = "CALLBACK_GUARD_SAMPLES",
        hide_env_values = true,
        value_name = "WHICH",
        default_value = "all"
    )]
    samples: String,
    /// File with a body to send instead; its callbackCommand names the command. `-` is standard input
    #[arg(long, env = "CALLBACK_GUARD_BODY", hide_env_values = true, value_name = "FILE")]
    body: Option<String>,
    /// path (URL/COMMAND), or query (URL?command=COMMAND) as servers of v3.0 to v3.4 send
    #[arg(
        long,
        env = "CALLBACK_GUARD_FORM",
        hide_env_values = true,
        value_name = "FORM",
        default_value = "path"
    )]
    form: String,
    /// What stands in webhooks.yml for `timeout`: whole seconds. OpenIM takes 0 and everything above 15 for 15
    #[arg(
        long,
        env = "CALLBACK_GUARD_TIMEOUT",
        hide_env_values = true,
        value_name = "SECONDS",
        default_value = "5"
    )]
    timeout: String,
    /// PEM file with the authorities to trust [default: those of this machine, as OpenIM does]
    #[arg(
        long,
        env = "CALLBACK_GUARD_CA",
        hide_env_values = true,
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    ca: String,
    /// Accept any certificate, which OpenIM does not
    #[arg(long, env = "CALLBACK_GUARD_INSECURE", hide_env_values = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    insecure: String,
    /// text, json for programs, or junit for CI
    #[arg(
        long,
        env = "CALLBACK_GUARD_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: String,
    /// Make it a load: callbacks a second, at most 10000 [default with one of the next two: 10]
    #[arg(
        long,
        env = "CALLBACK_GUARD_RATE",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "",
        hide_default_value = true
    )]
    rate: String,
    /// How long the load lasts, at most 1h [default: 10s]
    #[arg(
        long = "for",
        env = "CALLBACK_GUARD_FOR",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "",
        hide_default_value = true
    )]
    duration: String,
    /// Callbacks in flight at once, at most 1000; further ones wait [default: 100, as in a process of OpenIM]
    #[arg(
        long,
        env = "CALLBACK_GUARD_CONCURRENCY",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = "",
        hide_default_value = true
    )]
    concurrency: String,
}

impl SimulateArgs {
    /// What was typed, where all of it is right.
    pub(super) fn read(self, problems: &mut Problems) -> Option<Simulate> {
        let url = problems.required("URL", self.url);
        let place = url.and_then(|url| problems.read("URL", &url, Place::parse));
        let body = self.body.as_deref().and_then(path);
        let before = problems.found.len();
        let typed: Vec<_> = self.command.into_iter().filter(|name| !name.is_empty()).collect();
        for name in typed.iter().filter(|name| command::lookup(name).is_none()) {
            let near = resembling_command(name).map(|near| format!(", did you mean {near}?"));
            let near = near.unwrap_or_else(|| ": docs/causes-and-commands.md has the list".to_owned());
            problems.add("--command", format!("OpenIM has no command {name:?}{near}"));
        }
        if !typed.is_empty() && body.is_some() {
            problems.add("--command", "stands beside --body, whose callbackCommand names the command");
        }
        let commands = (problems.found.len() == before).then_some(typed);
        let server = problems.read("--server", &self.server, |text| one_of(text, &Server::ALL));
        let samples = problems.read("--samples", &self.samples, |text| {
            one_of(text, &[("all", Samples::All), ("usual", Samples::Usual)])
        });
        let form = problems
            .read("--form", &self.form, |text| one_of(text, &[("path", Form::Path), ("query", Form::Query)]));
        let timeout = problems.read("--timeout", &self.timeout, |text| {
            let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>();
            let seconds =
                seconds.map_err(|_| format!("{text:?} is not whole seconds, as in OpenIM's webhooks.yml"))?;
            let capped =
                if seconds == 0 { OPENIM_TIMEOUT_SECONDS } else { seconds.min(OPENIM_TIMEOUT_SECONDS) };
            Ok(Duration::from_secs(capped))
        });
        let insecure = problems.switch("--insecure", &self.insecure);
        let trust = match (path(&self.ca), insecure) {
            (Some(_), Some(true)) => {
                problems.add("--insecure", "stands beside --ca: give one or the other");
                None
            }
            (Some(file), _) => Some(Trust::File(file)),
            (None, Some(true)) => Some(Trust::Anyone),
            (None, _) => Some(Trust::System),
        };
        let format = problems.read("--format", &self.format, |text| {
            use crate::cli::simulate::Format::{Json, Junit, Text};
            one_of(text, &[("text", Text), ("json", Json), ("junit", Junit)])
        });
        let load = load(&self.rate, &self.duration, &self.concurrency, problems);
        if !problems.found.is_empty() {
            problems.found.extend(file_problems(body.as_deref(), trust.as_ref()));
        }
        Some(Simulate {
            place: place?,
            commands: commands?,
            server: server?,
            samples: samples?,
            body,
            form: form?,
            timeout: timeout?,
            trust: trust?,
            format: format?,
            load: load?,
        })
    }
}

/// One of the three makes it a load, and the others then have their defaults.
fn load(rate: &str, duration: &str, concurrency: &str, problems: &mut Problems) -> Option<Option<Load>> {
    if [rate, duration, concurrency].iter().all(|text| text.is_empty()) {
        return Some(None);
    }
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let rate = problems.count("--rate", &or(rate, "10"), 1, 10_000);
    let duration = problems.time("--for", &or(duration, "10s"), SECOND / 10, HOUR);
    let concurrency = problems.count("--concurrency", &or(concurrency, "100"), 1, 1000);
    let rate = u32::try_from(rate?).expect("at most 10000");
    Some(Some(Load { rate, duration: duration?, concurrency: concurrency? }))
}
