//! Arguments as typed, and what the program may rely on.
//!
//! Every value is read as text first and checked here, so that one run shows every mistake, each beginning with its
//! flag, and a value from the environment is judged like one from the command line.

mod inject;
mod mistakes;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use super::check;
use super::inject::{Manifests, Task};
use super::proxy::load_client_ca;
use super::simulate::{Load, Place, Simulate, Trust};
use crate::basic_auth;
use crate::callback::command;
use crate::callback::target::{Form, UpstreamForm};
use crate::log::Format;
use crate::policy::{duration, resembling_command};
use crate::source::config_map;
use crate::tls;
use crate::upstream::Address;

/// Answers OpenIM's callbacks before a deadline, whatever the business app does.
///
/// Every flag is also an environment variable: --drain-delay is CALLBACK_GUARD_DRAIN_DELAY. The flag wins. Durations
/// are written as 300ms, 2s or 1m30s, sizes as 64KiB or 8MiB.
#[derive(Debug, Parser)]
#[command(name = "callback-guard", version, max_term_width = 100, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    subcommand: Typed,
}

#[derive(Debug, Subcommand)]
enum Typed {
    /// The sidecar: ends TLS, checks callbacks, asks the app, answers in time
    Proxy(Box<ProxyArgs>),
    /// Tells the proxy of this pod that the pod is ending (the sidecar's preStop hook)
    Drain(DrainArgs),
    /// Puts the sidecar into the pods of manifests, and writes all of them to standard output
    ///
    /// Every pod is taken for asked for unless its label callback-guard.io/inject is disabled; a pod's annotations go
    /// before the flags (docs/annotations.md). A document without pods comes out byte for byte; a changed one is
    /// written anew, without the comments between its keys. What became of each pod is told on standard error.
    /// Where there is a problem nothing is written, and the exit code is 1.
    Inject(inject::InjectArgs),
    /// Takes the sidecar out of the pods of manifests again
    ///
    /// The manifests are again what they were before `inject`; what others have added since then stays.
    Uninject(inject::UninjectArgs),
    /// Checks policy files and manifests; prints every problem with its place; exit code 1 when there is one
    Check(CheckArgs),
    /// Says what a policy makes of a callback: the rule, the deadline, and what each failure would be answered
    Explain(ExplainArgs),
    /// Plays OpenIM: sends callbacks to an app and says what OpenIM would make of each answer
    Simulate(SimulateArgs),
    /// Everything on one machine with no cluster: a toy app that fails in every way, and the guard in front of it
    Demo(DemoArgs),
}

macro_rules! proxy_args {
    ($($(#[doc = $doc:literal])+ $field:ident $flag:literal $env:literal $value:literal $default:expr;)*) => {
        /// As typed: everything is text.
        #[derive(Debug, clap::Args)]
        struct ProxyArgs {
            $(
                $(#[doc = $doc])+
                #[arg(long = $flag, env = $env, hide_env = true, value_name = $value, default_value = $default,
                      hide_default_value = $default.is_empty(), allow_hyphen_values = true)]
                $field: String,
            )*
            /// Serve with a certificate made at the start, for localhost and the pod's name; for trying things out
            #[arg(long, env = "CALLBACK_GUARD_TLS_SELF_SIGNED", hide_env = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            tls_self_signed: String,
            /// Start without good certificate files, and listen as soon as they are there; until then /readyz says why not
            #[arg(long, env = "CALLBACK_GUARD_TLS_WAIT", hide_env = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            tls_wait: String,
            /// Let --upstream name a host that is not loopback: the gateway form
            #[arg(long, env = "CALLBACK_GUARD_ALLOW_REMOTE_UPSTREAM", hide_env = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            allow_remote_upstream: String,
            /// Fail at the start when there is no good policy, instead of serving with the built-in defaults
            #[arg(long, env = "CALLBACK_GUARD_REQUIRE_POLICY", hide_env = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            require_policy: String,
        }
    };
}

// The defaults, with their reasons. A flag with an empty default has none.
proxy_args! {
    /// TLS listener; port 0 takes a free one, which the log names [default: [::]:8443, or 0.0.0.0:8443 without IPv6]
    listen "listen" "CALLBACK_GUARD_LISTEN" "ADDR:PORT" "";
    /// PEM file with the certificate chain, the server's own first; watched
    tls_cert "tls-cert" "CALLBACK_GUARD_TLS_CERT" "FILE" "";
    /// PEM file with the private key; watched
    tls_key "tls-key" "CALLBACK_GUARD_TLS_KEY" "FILE" "";
    /// The app: http://HOST:PORT on loopback, or unix:/PATH
    upstream "upstream" "CALLBACK_GUARD_UPSTREAM" "URL" "http://127.0.0.1:8080";
    /// How the app wants its URLs: as-received, path (/PREFIX/COMMAND) or query (/PREFIX?command=COMMAND)
    upstream_form "upstream-form" "CALLBACK_GUARD_UPSTREAM_FORM" "FORM" "as-received";
    /// File with the policy; watched [default: the built-in policy]
    policy_file "policy-file" "CALLBACK_GUARD_POLICY_FILE" "FILE" "";
    /// File with the override; watched, and need not be there
    override_file "override-file" "CALLBACK_GUARD_OVERRIDE_FILE" "FILE" "";
    /// ConfigMap with the policy, watched through the API server; once it is there, the files are no longer read
    policy_configmap "policy-configmap" "CALLBACK_GUARD_POLICY_CONFIGMAP" "NS/NAME" "";
    /// Folder where the last good policy of the ConfigMap is kept, for a restart with the API server away
    policy_cache "policy-cache" "CALLBACK_GUARD_POLICY_CACHE" "FOLDER" "";
    /// Plain HTTP: probes, metrics, and on loopback the status page [default: [::]:9090, or 0.0.0.0:9090 without IPv6]
    admin_listen "admin-listen" "CALLBACK_GUARD_ADMIN_LISTEN" "ADDR:PORT" "";
    /// Threads that answer callbacks, 1 to 64
    workers "workers" "CALLBACK_GUARD_WORKERS" "COUNT" "1";
    /// PEM file with the authorities whose clients may call; watched. OpenIM itself has no client certificate
    client_ca "client-ca" "CALLBACK_GUARD_CLIENT_CA" "FILE" "";
    /// File with one user:password a line; watched. OpenIM sends those of webhooks.url
    basic_auth_file "basic-auth-file" "CALLBACK_GUARD_BASIC_AUTH_FILE" "FILE" "";
    /// Open connections of callers; further ones wait
    max_connections "max-connections" "CALLBACK_GUARD_MAX_CONNECTIONS" "COUNT" "10000";
    /// Callbacks put to the app at once; further ones are answered by the fallback for `overloaded`
    max_in_flight "max-in-flight" "CALLBACK_GUARD_MAX_IN_FLIGHT" "COUNT" "1024";
    /// Bytes of callbacks and answers in memory; beyond it, the fallback for `overloaded`
    max_held "max-held" "CALLBACK_GUARD_MAX_HELD" "SIZE" "256MiB";
    /// Body of a callback
    max_request_size "max-request-size" "CALLBACK_GUARD_MAX_REQUEST_SIZE" "SIZE" "8MiB";
    /// Body of the app's answer
    max_answer_size "max-answer-size" "CALLBACK_GUARD_MAX_ANSWER_SIZE" "SIZE" "8MiB";
    /// Head of a callback; OpenIM joins up to 500 operation IDs in one header
    max_header_size "max-header-size" "CALLBACK_GUARD_MAX_HEADER_SIZE" "SIZE" "64KiB";
    /// TLS handshake
    handshake_timeout "handshake-timeout" "CALLBACK_GUARD_HANDSHAKE_TIMEOUT" "TIME" "5s";
    /// Head of a callback, from its first byte
    header_timeout "header-timeout" "CALLBACK_GUARD_HEADER_TIMEOUT" "TIME" "5s";
    /// When a connection is ended gracefully, give or take a tenth: Go would keep it for ever, and new pods see none
    max_connection_age "max-connection-age" "CALLBACK_GUARD_MAX_CONNECTION_AGE" "TIME" "10m";
    /// How long a connection past its age may be idle before it is closed, at least 15m: Go loses a POST on a closed one
    idle_timeout "idle-timeout" "CALLBACK_GUARD_IDLE_TIMEOUT" "TIME" "15m";
    /// How long new connections are accepted once the pod is ending
    drain_delay "drain-delay" "CALLBACK_GUARD_DRAIN_DELAY" "TIME" "3s";
    /// How long callbacks in flight have after that before they are answered with the fallback for `draining`
    drain_timeout "drain-timeout" "CALLBACK_GUARD_DRAIN_TIMEOUT" "TIME" "20s";
    /// The pod's terminationGracePeriodSeconds: the end is over a second before it
    grace_period "grace-period" "CALLBACK_GUARD_GRACE_PERIOD" "TIME" "30s";
    /// off, error, warn, info or debug. A callback is a line: info where the app or a rule decided, else warn
    log_level "log-level" "CALLBACK_GUARD_LOG_LEVEL" "LEVEL" "info";
    /// json, or text for people
    log_format "log-format" "CALLBACK_GUARD_LOG_FORMAT" "FORMAT" "json";
}

#[derive(Debug, clap::Args)]
struct DrainArgs {
    /// The admin port of the proxy in this pod
    #[arg(
        long,
        env = "CALLBACK_GUARD_ADMIN_LISTEN",
        hide_env = true,
        value_name = "ADDR:PORT",
        default_value = "[::]:9090"
    )]
    admin_listen: String,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Policy files, or manifests with ConfigMaps that have a key policy.yaml; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// text, or json for CI
    #[arg(
        long,
        env = "CALLBACK_GUARD_FORMAT",
        hide_env = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: String,
}

#[derive(Debug, clap::Args)]
struct ExplainArgs {
    /// File with the policy [default: the built-in policy]
    #[arg(long, env = "CALLBACK_GUARD_POLICY", hide_env = true, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// File with the override
    #[arg(long = "override", env = "CALLBACK_GUARD_OVERRIDE", hide_env = true, value_name = "FILE")]
    over: Option<PathBuf>,
    /// File with the body of a callback; `-` is standard input
    #[arg(long, env = "CALLBACK_GUARD_CALLBACK", hide_env = true, value_name = "FILE")]
    callback: PathBuf,
    /// text, or json for programs
    #[arg(
        long,
        env = "CALLBACK_GUARD_FORMAT",
        hide_env = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: String,
}

#[derive(Debug, clap::Args)]
struct SimulateArgs {
    /// What stands in OpenIM's webhooks.url: http:// or https://, with a user where the app asks for one
    #[arg(value_name = "URL")]
    url: String,
    /// A command to send, by today's name or an earlier one; more than once, or with commas, for more [default: all
    /// before-commands]
    #[arg(long, env = "CALLBACK_GUARD_COMMAND", hide_env = true, value_name = "NAME", value_delimiter = ',')]
    command: Vec<String>,
    /// File with a body to send instead; its callbackCommand names the command. `-` is standard input
    #[arg(long, env = "CALLBACK_GUARD_BODY", hide_env = true, value_name = "FILE")]
    body: Option<PathBuf>,
    /// path (URL/COMMAND), or query (URL?command=COMMAND) as servers of v3.0 to v3.4 send
    #[arg(long, env = "CALLBACK_GUARD_FORM", hide_env = true, value_name = "FORM", default_value = "path")]
    form: String,
    /// What stands in webhooks.yml for `timeout`: whole seconds. OpenIM takes 0 and everything above 15 for 15
    #[arg(
        long,
        env = "CALLBACK_GUARD_TIMEOUT",
        hide_env = true,
        value_name = "SECONDS",
        default_value = "5"
    )]
    timeout: String,
    /// PEM file with the authorities to trust [default: those of this machine, as OpenIM does]
    #[arg(
        long,
        env = "CALLBACK_GUARD_CA",
        hide_env = true,
        value_name = "FILE",
        default_value = "",
        hide_default_value = true
    )]
    ca: String,
    /// Accept any certificate, which OpenIM does not
    #[arg(long, env = "CALLBACK_GUARD_INSECURE", hide_env = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    insecure: String,
    /// text, json for programs, or junit for CI
    #[arg(
        long,
        env = "CALLBACK_GUARD_FORMAT",
        hide_env = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: String,
    /// Make it a load: callbacks a second, at most 10000 [default with one of the next two: 10]
    #[arg(
        long,
        env = "CALLBACK_GUARD_RATE",
        hide_env = true,
        value_name = "COUNT",
        default_value = "",
        hide_default_value = true
    )]
    rate: String,
    /// How long the load lasts, at most 1h [default: 10s]
    #[arg(
        long = "for",
        env = "CALLBACK_GUARD_FOR",
        hide_env = true,
        value_name = "TIME",
        default_value = "",
        hide_default_value = true
    )]
    duration: String,
    /// Callbacks in flight at once, at most 1000; further ones wait [default: 100, as in a process of OpenIM]
    #[arg(
        long,
        env = "CALLBACK_GUARD_CONCURRENCY",
        hide_env = true,
        value_name = "COUNT",
        default_value = "",
        hide_default_value = true
    )]
    concurrency: String,
}

#[derive(Debug, clap::Args)]
struct DemoArgs {
    /// Keep everything running at the end, and say how to try it by hand
    #[arg(long, env = "CALLBACK_GUARD_STAY", hide_env = true)]
    stay: bool,
}

/// A command line without mistakes.
#[derive(Debug)]
pub enum Command {
    /// `proxy`
    Proxy(Box<Proxy>),
    /// `drain`
    Drain(Drain),
    /// `check`
    Check {
        /// The files, at least one.
        files: Vec<String>,
        /// How to print.
        format: check::Format,
    },
    /// `explain`
    Explain(Explain),
    /// `simulate`
    Simulate(Box<Simulate>),
    /// `demo`
    Demo(Demo),
    /// `inject`, `uninject`
    Inject(Manifests),
}

/// What `proxy` was told.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where callbacks come to; `None`: the default, with its way back to IPv4.
    pub listen: Option<SocketAddr>,
    /// Where the certificate is from.
    pub tls: TlsSource,
    /// `--tls-wait`; never with `--tls-self-signed`.
    pub tls_wait: bool,
    /// `--client-ca`
    pub client_ca: Option<PathBuf>,
    /// `--basic-auth-file`
    pub basic_auth_file: Option<PathBuf>,
    /// `--upstream`
    pub upstream: Address,
    /// `--upstream-form`
    pub upstream_form: UpstreamForm,
    /// `--policy-file`
    pub policy_file: Option<PathBuf>,
    /// `--override-file`
    pub override_file: Option<PathBuf>,
    /// `--policy-configmap`
    pub policy_configmap: Option<config_map::Name>,
    /// `--policy-cache`; never without `--policy-configmap`.
    pub policy_cache: Option<PathBuf>,
    /// `--require-policy`
    pub require_policy: bool,
    /// Where the admin port is; `None` as above.
    pub admin_listen: Option<SocketAddr>,
    /// `--workers`
    pub workers: usize,
    /// `--max-connections`
    pub max_connections: usize,
    /// `--max-in-flight`
    pub max_in_flight: usize,
    /// `--max-held`, bytes
    pub max_held: usize,
    /// `--max-request-size`, bytes
    pub max_request_size: usize,
    /// `--max-answer-size`, bytes
    pub max_answer_size: usize,
    /// `--max-header-size`, bytes
    pub max_header_size: usize,
    /// `--handshake-timeout`
    pub handshake_timeout: Duration,
    /// `--header-timeout`
    pub header_timeout: Duration,
    /// `--max-connection-age`
    pub max_connection_age: Duration,
    /// `--idle-timeout`
    pub idle_timeout: Duration,
    /// `--drain-delay`
    pub drain_delay: Duration,
    /// `--drain-timeout`
    pub drain_timeout: Duration,
    /// `--grace-period`
    pub grace_period: Duration,
    /// `--log-level`
    pub log_level: LevelFilter,
    /// `--log-format`
    pub log_format: Format,
}

/// Where the certificate is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSource {
    /// `--tls-cert` and `--tls-key`
    Files {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// `--tls-self-signed`
    SelfSigned,
}

/// What `drain` was told.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Where the proxy's admin port is, on loopback.
    pub admin: SocketAddr,
}

/// What `explain` was told.
#[derive(Clone, Debug)]
pub struct Explain {
    /// `--policy`; the built-in one without.
    pub policy: Option<PathBuf>,
    /// `--override`
    pub over: Option<PathBuf>,
    /// `--callback`
    pub callback: PathBuf,
    /// `--format`
    pub format: check::Format,
}

/// What `demo` was told.
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    /// `--stay`
    pub stay: bool,
}

/// Why nothing is to be run.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was asked for, or no subcommand was given; it was shown.
    Shown {
        /// The exit code.
        code: u8,
    },
    /// Every mistake, each beginning with its flag.
    Problems(Vec<String>),
}

/// Default ports of the two listeners, on every address of the pod.
pub const LISTEN_PORT: u16 = 8443;
/// See [`LISTEN_PORT`].
pub const ADMIN_PORT: u16 = 9090;

/// Reads a command line, the program's name first.
pub fn parse(mut arguments: Vec<OsString>) -> Result<Command, Stop> {
    let mut problems = Problems::default();
    let args = loop {
        match Args::try_parse_from(&arguments) {
            Ok(args) => break args,
            Err(error) if mistakes::mend(&error, &mut arguments, &mut problems) => {}
            Err(error) => return Err(shown(&error, problems)),
        }
    };
    let command = match args.subcommand {
        Typed::Proxy(typed) => {
            let proxy = proxy(&typed, &mut problems);
            if !problems.found.is_empty() {
                named_files(&typed, &mut problems);
            }
            proxy.map(|proxy| Command::Proxy(Box::new(proxy)))
        }
        Typed::Drain(typed) => problems
            .read("--admin-listen", &typed.admin_listen, socket)
            .map(|admin| Command::Drain(Drain { admin: on_loopback(admin) })),
        Typed::Check(typed) => {
            problems.format(&typed.format).map(|format| Command::Check { files: typed.files, format })
        }
        Typed::Explain(ExplainArgs { policy, over, callback, format }) => problems
            .format(&format)
            .map(|format| Command::Explain(Explain { policy, over, callback, format })),
        Typed::Simulate(typed) => {
            simulate(typed, &mut problems).map(|simulate| Command::Simulate(Box::new(simulate)))
        }
        Typed::Inject(typed) => typed.read(&mut problems).map(Command::Inject),
        Typed::Uninject(typed) => {
            Some(Command::Inject(Manifests { files: typed.files, task: Task::Uninject }))
        }
        Typed::Demo(typed) => Some(Command::Demo(Demo { stay: typed.stay })),
    };
    match command {
        Some(command) if problems.found.is_empty() => Ok(command),
        Some(_) | None => Err(Stop::Problems(problems.found)),
    }
}

/// What clap itself has to say: help, the version, a missing subcommand or file.
fn shown(error: &clap::Error, problems: Problems) -> Stop {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return Stop::Shown { code: u8::from(error.use_stderr()) * super::USAGE };
    }
    super::complain(&problems.found);
    let _ = error.print();
    Stop::Shown { code: super::USAGE }
}

/// The mistakes found so far.
#[derive(Debug, Default)]
struct Problems {
    found: Vec<String>,
}

impl Problems {
    fn add(&mut self, flag: &str, problem: impl std::fmt::Display) {
        self.found.push(format!("{flag}: {problem}"));
    }

    /// Reads a value; a mistake is noted under its flag.
    fn read<T>(&mut self, flag: &str, text: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.add(flag, problem);
                None
            }
        }
    }

    /// Reads a value that may be left out.
    fn read_optional<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { self.read(flag, text, read).map(Some) }
    }

    fn time(&mut self, flag: &str, text: &str, least: Duration, most: Duration) -> Option<Duration> {
        self.read(flag, text, |text| {
            let found = duration::parse(text).map_err(|error| format!("{text:?} {error}"))?;
            bounded(text, &found, &least, &most, |bound| duration::display(*bound))?;
            Ok(found)
        })
    }

    fn size(&mut self, flag: &str, text: &str, least: usize, most: usize) -> Option<usize> {
        self.read(flag, text, |text| {
            let found = size(text)?;
            bounded(text, &found, &least, &most, |bound| shown_size(*bound))?;
            Ok(found)
        })
    }

    fn count(&mut self, flag: &str, text: &str, least: usize, most: usize) -> Option<usize> {
        self.read(flag, text, |text| {
            let found = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
            bounded(text, &found, &least, &most, usize::to_string)?;
            Ok(found)
        })
    }

    fn format(&mut self, text: &str) -> Option<check::Format> {
        let formats = [("text", check::Format::Text), ("json", check::Format::Json)];
        self.read("--format", text, |text| one_of(text, &formats))
    }

    fn switch(&mut self, flag: &str, text: &str) -> Option<bool> {
        self.read(flag, text, |text| one_of(text, &[("true", true), ("false", false)]))
    }
}

fn bounded<T: PartialOrd>(
    text: &str,
    found: &T,
    least: &T,
    most: &T,
    show: impl Fn(&T) -> String,
) -> Result<(), String> {
    if found < least {
        return Err(format!("value is too small ({text}), at least {} is required", show(least)));
    }
    if found > most {
        return Err(format!("value is too large ({text}), at most {} is allowed", show(most)));
    }
    Ok(())
}

const LEVELS: [(&str, LevelFilter); 5] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
];
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1 << 20;

fn proxy(typed: &ProxyArgs, problems: &mut Problems) -> Option<Proxy> {
    let listen = problems.read_optional("--listen", &typed.listen, socket);
    let admin_listen = problems.read_optional("--admin-listen", &typed.admin_listen, socket);
    let tls = tls_source(typed, problems);
    let tls_wait = tls_wait(typed, problems);
    let upstream = upstream(typed, problems);
    let upstream_form = problems.read("--upstream-form", &typed.upstream_form, |text| {
        let forms = [
            ("as-received", UpstreamForm::AsReceived),
            ("path", UpstreamForm::Path),
            ("query", UpstreamForm::Query),
        ];
        one_of(text, &forms)
    });
    let policy_configmap = problems.read_optional("--policy-configmap", &typed.policy_configmap, str::parse);
    let policy_cache = policy_cache(typed, problems);
    let require_policy = problems.switch("--require-policy", &typed.require_policy);
    let workers = problems.count("--workers", &typed.workers, 1, 64);
    let max_connections = problems.count("--max-connections", &typed.max_connections, 1, 1_000_000);
    let max_in_flight = problems.count("--max-in-flight", &typed.max_in_flight, 1, 1_000_000);
    let max_held = problems.size("--max-held", &typed.max_held, MIB, usize::MAX / 2);
    let max_request_size = problems.size("--max-request-size", &typed.max_request_size, 1024, 1024 * MIB);
    let max_answer_size = problems.size("--max-answer-size", &typed.max_answer_size, 1024, 1024 * MIB);
    let max_header_size = problems.size("--max-header-size", &typed.max_header_size, 4096, 4 * MIB);
    let tenth = SECOND / 10;
    let handshake_timeout = problems.time("--handshake-timeout", &typed.handshake_timeout, tenth, HOUR);
    let header_timeout = problems.time("--header-timeout", &typed.header_timeout, tenth, HOUR);
    let max_connection_age =
        problems.time("--max-connection-age", &typed.max_connection_age, SECOND, 24 * 7 * HOUR);
    let idle_timeout = problems.time("--idle-timeout", &typed.idle_timeout, HOUR / 4, 24 * HOUR);
    let drain_delay = problems.time("--drain-delay", &typed.drain_delay, Duration::ZERO, HOUR);
    let drain_timeout = problems.time("--drain-timeout", &typed.drain_timeout, Duration::ZERO, HOUR);
    let grace_period = problems.time("--grace-period", &typed.grace_period, 2 * SECOND, HOUR);
    let log_level = problems.read("--log-level", &typed.log_level, |text| one_of(text, &LEVELS));
    let log_format = problems.read("--log-format", &typed.log_format, |text| {
        one_of(text, &[("json", Format::Json), ("text", Format::Text)])
    });
    Some(Proxy {
        listen: listen?,
        tls: tls?,
        tls_wait: tls_wait?,
        client_ca: path(&typed.client_ca),
        basic_auth_file: path(&typed.basic_auth_file),
        upstream: upstream?,
        upstream_form: upstream_form?,
        policy_file: path(&typed.policy_file),
        override_file: path(&typed.override_file),
        policy_configmap: policy_configmap?,
        policy_cache: policy_cache?,
        require_policy: require_policy?,
        admin_listen: admin_listen?,
        workers: workers?,
        max_connections: max_connections?,
        max_in_flight: max_in_flight?,
        max_held: max_held?,
        max_request_size: max_request_size?,
        max_answer_size: max_answer_size?,
        max_header_size: max_header_size?,
        handshake_timeout: handshake_timeout?,
        header_timeout: header_timeout?,
        max_connection_age: max_connection_age?,
        idle_timeout: idle_timeout?,
        drain_delay: drain_delay?,
        drain_timeout: drain_timeout?,
        grace_period: grace_period?,
        log_level: log_level?,
        log_format: log_format?,
    })
}

fn tls_source(typed: &ProxyArgs, problems: &mut Problems) -> Option<TlsSource> {
    let self_signed = problems.switch("--tls-self-signed", &typed.tls_self_signed)?;
    match (path(&typed.tls_cert), path(&typed.tls_key), self_signed) {
        (Some(cert), Some(key), false) => return Some(TlsSource::Files { cert, key }),
        (None, None, true) => return Some(TlsSource::SelfSigned),
        (None, None, false) => {
            problems.add(
                "--tls-cert",
                "no certificate: give --tls-cert and --tls-key, or --tls-self-signed to try things out",
            );
        }
        (_, _, true) => {
            problems.add("--tls-self-signed", "stands beside --tls-cert or --tls-key: give one or the other")
        }
        (Some(_), None, false) => problems.add("--tls-key", "is missing beside --tls-cert"),
        (None, Some(_), false) => problems.add("--tls-cert", "is missing beside --tls-key"),
    }
    None
}

/// What is wrong with the files that were named, where something else is wrong already and nothing will be run: who
/// mends that should not meet the files next. Only those whose flags are themselves right.
fn named_files(typed: &ProxyArgs, problems: &mut Problems) {
    let client_ca = path(&typed.client_ca);
    let found = match (path(&typed.tls_cert), path(&typed.tls_key), &*typed.tls_self_signed) {
        // Missing files are what it waits for.
        _ if typed.tls_wait != "false" => Ok(()),
        (Some(cert), Some(key), "false") => {
            tls::open(tls::Files { cert, key, client_ca }).map(|_| ()).map_err(|errors| errors.to_string())
        }
        _ => client_ca.map_or(Ok(()), |path| load_client_ca(&path).map(|_| ())),
    };
    problems.found.extend(found.err().iter().flat_map(|text| text.lines()).map(str::to_owned));
    if let Some(Err(error)) = path(&typed.basic_auth_file).map(basic_auth::open) {
        problems.found.extend(error.to_string().lines().map(str::to_owned));
    }
}

fn tls_wait(typed: &ProxyArgs, problems: &mut Problems) -> Option<bool> {
    let wait = problems.switch("--tls-wait", &typed.tls_wait)?;
    if wait && typed.tls_self_signed == "true" {
        problems.add("--tls-wait", "stands beside --tls-self-signed, which has no files to wait for");
        return None;
    }
    Some(wait)
}

fn policy_cache(typed: &ProxyArgs, problems: &mut Problems) -> Option<Option<PathBuf>> {
    let folder = path(&typed.policy_cache);
    if folder.is_some() && typed.policy_configmap.is_empty() {
        problems.add("--policy-cache", "needs --policy-configmap: only what comes from a ConfigMap is kept");
        return None;
    }
    Some(folder)
}

fn upstream(typed: &ProxyArgs, problems: &mut Problems) -> Option<Address> {
    let remote = problems.switch("--allow-remote-upstream", &typed.allow_remote_upstream);
    let address = problems.read("--upstream", &typed.upstream, address)?;
    let loopback = match &address {
        Address::Ip(address) => address.ip().to_canonical().is_loopback(),
        Address::Name(host, _) => host == "localhost",
        Address::Unix(_) => true,
    };
    if !loopback && !remote? {
        problems.add(
            "--upstream",
            format!("{address} is not loopback: the app is expected in the same pod (--allow-remote-upstream lifts this)"),
        );
        return None;
    }
    Some(address)
}

/// Where OpenIM's client gives up, whatever its configuration says.
const OPENIM_TIMEOUT_SECONDS: u64 = 15;

fn simulate(typed: SimulateArgs, problems: &mut Problems) -> Option<Simulate> {
    let place = problems.read("URL", &typed.url, Place::parse);
    let before = problems.found.len();
    for name in typed.command.iter().filter(|name| command::lookup(name).is_none()) {
        let near = resembling_command(name).map(|near| format!(", did you mean {near}?"));
        let near = near.unwrap_or_else(|| ": docs/causes-and-commands.md has the list".to_owned());
        problems.add("--command", format!("OpenIM has no command {name:?}{near}"));
    }
    if !typed.command.is_empty() && typed.body.is_some() {
        problems.add("--command", "stands beside --body, whose callbackCommand names the command");
    }
    let commands = (problems.found.len() == before).then_some(typed.command);
    let form = problems
        .read("--form", &typed.form, |text| one_of(text, &[("path", Form::Path), ("query", Form::Query)]));
    let timeout = problems.read("--timeout", &typed.timeout, |text| {
        let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>();
        let seconds =
            seconds.map_err(|_| format!("{text:?} is not whole seconds, as in OpenIM's webhooks.yml"))?;
        let capped = if seconds == 0 { OPENIM_TIMEOUT_SECONDS } else { seconds.min(OPENIM_TIMEOUT_SECONDS) };
        Ok(Duration::from_secs(capped))
    });
    let insecure = problems.switch("--insecure", &typed.insecure);
    let trust = match (path(&typed.ca), insecure) {
        (Some(_), Some(true)) => {
            problems.add("--insecure", "stands beside --ca: give one or the other");
            None
        }
        (Some(file), _) => Some(Trust::File(file)),
        (None, Some(true)) => Some(Trust::Anyone),
        (None, _) => Some(Trust::System),
    };
    let format = problems.read("--format", &typed.format, |text| {
        use super::simulate::Format::{Json, Junit, Text};
        one_of(text, &[("text", Text), ("json", Json), ("junit", Junit)])
    });
    let load = load(&typed.rate, &typed.duration, &typed.concurrency, problems);
    Some(Simulate {
        place: place?,
        commands: commands?,
        body: typed.body,
        form: form?,
        timeout: timeout?,
        trust: trust?,
        format: format?,
        load: load?,
    })
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

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn one_of<T: Copy>(text: &str, allowed: &[(&str, T)]) -> Result<T, String> {
    let found = allowed.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = allowed.iter().map(|(name, _)| *name).collect();
        format!("{text:?} is none of {}", names.join(", "))
    })
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not ADDRESS:PORT, as in 0.0.0.0:8443, [::]:8443 or 127.0.0.1:0"))
}

/// Where a listener on any address is reached from inside the pod.
fn on_loopback(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        // A listener on [::] takes IPv4 too, and a pod may have no IPv6 loopback.
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// The default listener: every address of both families.
pub fn any(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)]
}

fn address(text: &str) -> Result<Address, String> {
    let expected = || format!("{text:?} is neither http://HOST:PORT nor unix:/PATH");
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(expected()) };
    }
    if text.starts_with("https://") {
        return Err(format!("{text:?}: TLS ends here, the app is asked over plain HTTP: http://HOST:PORT"));
    }
    let authority = text
        .strip_prefix("http://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .ok_or_else(expected)?;
    if let Ok(address) = authority.parse() {
        return Ok(Address::Ip(address));
    }
    let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match port.parse() {
        Ok(port) if port > 0 && !host.is_empty() && host.bytes().all(plain) => {
            Ok(Address::Name(host.to_owned(), port))
        }
        _ => Err(expected()),
    }
}

const SIZES: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

fn size(text: &str) -> Result<usize, String> {
    let expected = || format!("{text:?} is not a size, as in 64KiB, 8MiB or 1GiB");
    let (number, unit) = SIZES
        .iter()
        .find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit)))
        .ok_or_else(expected)?;
    let number: usize = number.parse().map_err(|_| expected())?;
    number.checked_mul(unit).ok_or_else(expected)
}

fn shown_size(bytes: usize) -> String {
    let (name, unit) = SIZES.iter().find(|(_, unit)| bytes.is_multiple_of(*unit)).expect("1 B divides all");
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(line: &str) -> Vec<String> {
        let arguments = std::iter::once("callback-guard").chain(line.split_whitespace()).map(OsString::from);
        match parse(arguments.collect()) {
            Ok(command) => panic!("no problem in {command:?}"),
            Err(Stop::Problems(problems)) => problems,
            Err(Stop::Shown { code }) => vec![format!("shown, {code}")],
        }
    }

    fn proxy_of(line: &str) -> Proxy {
        let line = format!("callback-guard proxy --tls-self-signed {line}");
        match parse(line.split_whitespace().map(OsString::from).collect()) {
            Ok(Command::Proxy(proxy)) => *proxy,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_mistake_of_one_run_is_reported_and_begins_with_its_flag() {
        let found = problems(
            "proxy --listen 8443 --upstrem http://127.0.0.1:1 --tls-cert a --workers 0 --max-held 8M --drain-delay 3 \
             --log-level loud --header-timeout=1ms --no-such",
        );
        let flags: Vec<_> = found.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
        assert_eq!(
            flags,
            [
                "--upstrem",
                "--no-such",
                "--listen",
                "--tls-key",
                "--workers",
                "--max-held",
                "--header-timeout",
                "--drain-delay",
                "--log-level"
            ],
            "{found:#?}"
        );
        assert!(found[0].ends_with("did you mean --upstream?"), "{}", found[0]);
        assert_eq!(found[4], "--workers: value is too small (0), at least 1 is required");
        assert_eq!(found[6], "--header-timeout: value is too small (1ms), at least 100ms is required");
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        let proxy = proxy_of("");
        assert_eq!(proxy.upstream, Address::Ip(([127, 0, 0, 1], 8080).into()));
        assert_eq!(proxy.max_held, 256 << 20);
        assert_eq!(proxy.max_connection_age, Duration::from_secs(600));
        assert_eq!((proxy.max_connections, proxy.max_in_flight, proxy.workers), (10_000, 1024, 1));
        assert_eq!((proxy.log_level, proxy.log_format), (LevelFilter::INFO, Format::Json));
        assert_eq!(proxy.listen, None);
    }

    #[test]
    fn an_upstream_is_loopback_unless_another_is_allowed() {
        for (url, expected) in [
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
            ("http://localhost:8080", "http://localhost:8080"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("http://10.0.0.1:80 --allow-remote-upstream", "http://10.0.0.1:80"),
            ("http://app.shop:80 --allow-remote-upstream", "http://app.shop:80"),
        ] {
            assert_eq!(proxy_of(&format!("--upstream {url}")).upstream.to_string(), expected);
        }
        for url in [
            "http://10.0.0.1:80",
            "http://app.shop:80",
            "https://127.0.0.1:1",
            "127.0.0.1:80",
            "unix:app",
            "http://a:0",
        ] {
            let found = problems(&format!("proxy --tls-self-signed --upstream {url}"));
            assert!(found.len() == 1 && found[0].starts_with("--upstream: "), "{found:?}");
        }
    }

    #[test]
    fn a_certificate_is_files_or_made_here_and_never_both_or_neither() {
        for (line, flag) in [
            ("proxy", "--tls-cert: no certificate"),
            ("proxy --tls-key k", "--tls-cert: is missing"),
            ("proxy --tls-cert c", "--tls-key: is missing"),
            ("proxy --tls-cert c --tls-key k --tls-self-signed", "--tls-self-signed: stands beside"),
        ] {
            let found = problems(line);
            assert!(found.len() == 1 && found[0].starts_with(flag), "{found:?}");
        }
    }

    #[test]
    fn a_cache_is_for_a_config_map_and_waiting_is_for_files() {
        for (line, flag) in [
            ("--tls-self-signed --policy-cache /c", "--policy-cache: needs --policy-configmap"),
            ("--tls-self-signed --tls-wait", "--tls-wait: stands beside --tls-self-signed"),
            ("--tls-cert c --tls-key k --tls-wait=perhaps", "--tls-wait: \"perhaps\" is none of true, false"),
        ] {
            let found = problems(&format!("proxy {line}"));
            assert!(found.len() == 1 && found[0].starts_with(flag), "{found:?}");
        }
        let proxy = proxy_of("--policy-cache /c --policy-configmap shop/policy --tls-wait=false");
        assert_eq!((proxy.policy_cache, proxy.tls_wait), (Some("/c".into()), false));
    }

    #[test]
    fn sizes_have_a_unit_and_the_help_is_no_mistake() {
        assert_eq!(size("8MiB"), Ok(8 << 20));
        assert_eq!(size("1B"), Ok(1));
        for wrong in ["8", "8MB", "-1MiB", "1.5MiB", "99999999999999GiB", "MiB", ""] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(problems("--help"), ["shown, 0"]);
        assert_eq!(problems("proxy --help"), ["shown, 0"]);
        assert_eq!(problems(""), ["shown, 2"]);
        assert_eq!(problems("check"), ["<FILE>...: is missing"]);
    }
}
