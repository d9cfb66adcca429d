//! Arguments as typed, and what the program may rely on.
//!
//! Every value is read as text first and checked here, so that one run shows every mistake, each beginning with its
//! flag, and a value from the environment is judged like one from the command line.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use super::admission_policy::AdmissionPolicy;
use super::check;
use super::explain;
use super::inject::{Manifests, Task};
use super::simulate::Simulate;
use lexer::Lexed;
use problems::{Problems, path, socket};
use proxy::ProxyArgs;
use simulate::SimulateArgs;

pub use controller::Controller;
pub use demo_app::{APP_PORT, DemoApp};
pub use problems::shown_size;
pub use proxy::{ADMIN_PORT, LEAST_HELD, LISTEN_PORT, Proxy, TlsSource, any};

mod controller;
mod demo_app;
mod inject;
mod lexer;
mod log;
mod problems;
mod proxy;
mod scope;
mod simulate;

/// Answers OpenIM's callbacks before a deadline, whatever the business app does.
///
/// Every flag is also an environment variable: --drain-delay is CALLBACK_GUARD_DRAIN_DELAY. The flag wins, and a list
/// is written with commas. Durations are written as 300ms, 2s or 1m30s, sizes as 64KiB or 8MiB.
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
    /// Keep certificates up to date, and report policies and pods that need attention
    ///
    /// In each served namespace it signs and renews the sidecars' certificate, publishes the CA, creates a policy to start
    /// from, and reports invalid policies and unguarded pods as Events, metrics and log lines. Run it as a Deployment: of
    /// several replicas one leads. Its rights are printed by callback-guard admission-policy --controller with the same flags.
    Controller(Box<controller::ControllerArgs>),
    /// Tells the proxy of this pod that the pod is ending (the sidecar's preStop hook)
    Drain(DrainArgs),
    /// Inject the sidecar into the pods of manifests, and print all of them
    ///
    /// The pods need Kubernetes 1.33 or later. Every pod gets the sidecar unless it, its workload or its namespace is
    /// labeled callback-guard.io/inject: disabled. Annotations of a pod override those of its namespace (from a Namespace in the
    /// same run), which override the flags (docs/annotations.md). A document without pods is copied unchanged; a
    /// changed one is re-rendered, without the comments between its keys. Standard error has a line for each pod. If
    /// there is a problem, nothing is printed and the exit code is 1.
    Inject(inject::InjectArgs),
    /// Remove the sidecar from the pods of manifests
    ///
    /// The manifests are again what they were before `inject`; what others have added since then stays.
    Uninject(inject::FilesArgs),
    /// Print the policies that make the API server inject the sidecar, for kubectl apply -f -
    ///
    /// They need Kubernetes 1.36 or later, and no webhook or controller. Label a namespace or a pod with
    /// callback-guard.io/inject: enabled, restart the app, and new pods get the sidecar. Label OpenIM's namespace or pods
    /// with callback-guard.io/trust: enabled, and new pods trust the CA in the ConfigMap callback-guard-ca. Also printed: a
    /// Role per namespace that lets its pods watch the ConfigMap with the policy, and policies that warn why a pod has
    /// no sidecar. Never apply them with --force, which deletes them first: pods created meanwhile have no sidecar.
    AdmissionPolicy(inject::AdmissionPolicyArgs),
    /// Checks policy files and manifests; prints every problem with its place; exit code 1 when there is one
    Check(CheckArgs),
    /// Says what a policy makes of a callback: the rule, the deadline, and what each failure would be answered
    Explain(ExplainArgs),
    /// Plays OpenIM: sends callbacks to an app and says what OpenIM would make of each answer
    Simulate(SimulateArgs),
    /// Everything on one machine with no cluster: a toy app that fails in every way, and the guard in front of it
    Demo(DemoArgs),
    /// Run a small app that answers callbacks, to try the guard in a cluster
    ///
    /// It speaks plain HTTP, so put the guard in front of it. It refuses callbacks whose body contains the word casino, with
    /// errCode 5001, and allows all others. For each callback it logs the command and the verdict, never content. GET /readyz
    /// is for probes. After SIGTERM it keeps accepting connections for a while, and answers with Connection: close. Then it
    /// finishes the callbacks in progress, within 5s, and exits.
    DemoApp(demo_app::DemoAppArgs),
}

#[derive(Debug, clap::Args)]
struct DrainArgs {
    /// The admin port of the proxy in this pod
    #[arg(
        long,
        env = "CALLBACK_GUARD_ADMIN_LISTEN",
        hide_env_values = true,
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
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: String,
}

#[derive(Debug, clap::Args)]
struct ExplainArgs {
    /// File with the policy [default: the built-in policy]
    #[arg(long, env = "CALLBACK_GUARD_POLICY", hide_env_values = true, value_name = "FILE")]
    policy: Option<String>,
    /// File with the override
    #[arg(long = "override", env = "CALLBACK_GUARD_OVERRIDE", hide_env_values = true, value_name = "FILE")]
    over: Option<String>,
    /// File with the body of a callback; `-` is standard input
    #[arg(
        long,
        env = "CALLBACK_GUARD_CALLBACK",
        hide_env_values = true,
        value_name = "FILE",
        required = true
    )]
    callback: Option<String>,
    /// text, or json for programs
    #[arg(
        long,
        env = "CALLBACK_GUARD_FORMAT",
        hide_env_values = true,
        value_name = "FORMAT",
        default_value = "text"
    )]
    format: String,
}

#[derive(Debug, clap::Args)]
struct DemoArgs {
    /// Keep everything running at the end, and say how to try it by hand
    #[arg(long, env = "CALLBACK_GUARD_STAY", hide_env_values = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    stay: String,
}

impl CheckArgs {
    fn read(self, problems: &mut Problems) -> Option<Command> {
        let files = problems.required_list("FILE", self.files);
        let format = problems.format(&self.format);
        Some(Command::Check { files: files?, format: format? })
    }
}

impl ExplainArgs {
    fn read(self, problems: &mut Problems) -> Option<Explain> {
        let given = |text: Option<String>| text.as_deref().and_then(path);
        let (policy, over) = (given(self.policy), given(self.over));
        let callback = problems.required("--callback", self.callback).map(PathBuf::from);
        let format = problems.format(&self.format);
        if !problems.found.is_empty() {
            let found = explain::file_problems(policy.as_deref(), over.as_deref(), callback.as_deref());
            problems.found.extend(found);
        }
        Some(Explain { policy, over, callback: callback?, format: format? })
    }
}

/// A command line without mistakes.
#[derive(Debug)]
pub enum Command {
    /// `proxy`
    Proxy(Box<Proxy>),
    /// `controller`
    Controller(Box<Controller>),
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
    /// `demo-app`
    DemoApp(DemoApp),
    /// `inject`, `uninject`
    Inject(Manifests),
    /// `admission-policy`
    AdmissionPolicy(AdmissionPolicy),
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
    /// The command line is wrong.
    Problems {
        /// Every mistake, each beginning with its flag.
        problems: Vec<String>,
        /// Of which subcommand, where that is known.
        subcommand: Option<String>,
    },
}

/// Reads a command line, the program's name first.
///
/// # Errors
///
/// [`Stop`]: every mistake, those in the files that `proxy`, `explain` and `simulate` are told included; or help.
pub fn parse(words: &[OsString]) -> Result<Command, Stop> {
    let mut problems = Problems::default();
    let mut root = Args::command();
    root.build();
    let (subcommand, line) = match lexer::lex(&root, words, &mut problems) {
        Lexed::Help(words) => return Err(shown(Args::command(), words)),
        Lexed::Line(subcommand, line) => (subcommand, line),
        Lexed::NoSubcommand => return Err(Stop::Problems { problems: problems.found, subcommand: None }),
    };
    // What is required is so in the usage. That it is missing is one problem among the others, and told where it is read.
    let lenient = Args::command().mut_subcommands(|command| command.mut_args(|arg| arg.required(false)));
    let args = lenient.try_get_matches_from(line).and_then(|matches| Args::from_arg_matches(&matches));
    let command = match args {
        Ok(args) => args.subcommand.read(&mut problems),
        Err(error) => {
            // The lexer has let something through: better told in clap's words than not at all.
            let text = error.to_string();
            problems.add("command line", text.lines().next().unwrap_or_default());
            None
        }
    };
    match command {
        Some(command) if problems.found.is_empty() => Ok(command),
        Some(_) | None => Err(Stop::Problems { problems: problems.found, subcommand: Some(subcommand) }),
    }
}

impl Typed {
    fn read(self, problems: &mut Problems) -> Option<Command> {
        match self {
            Typed::Proxy(typed) => {
                let proxy = typed.read(problems);
                if !problems.found.is_empty() {
                    typed.read_files(problems);
                }
                proxy.map(|proxy| Command::Proxy(Box::new(proxy)))
            }
            Typed::Controller(typed) => {
                typed.read(problems).map(|controller| Command::Controller(Box::new(controller)))
            }
            Typed::Drain(typed) => {
                let admin = problems.read("--admin-listen", &typed.admin_listen, socket)?;
                Some(Command::Drain(Drain { admin: on_loopback(admin) }))
            }
            Typed::Check(typed) => typed.read(problems),
            Typed::Explain(typed) => typed.read(problems).map(Command::Explain),
            Typed::Simulate(typed) => {
                typed.read(problems).map(|simulate| Command::Simulate(Box::new(simulate)))
            }
            Typed::Inject(typed) => typed.read(problems).map(Command::Inject),
            Typed::AdmissionPolicy(typed) => typed.read(problems).map(Command::AdmissionPolicy),
            Typed::Uninject(typed) => {
                let files = typed.read(problems)?;
                Some(Command::Inject(Manifests { files, task: Task::Uninject }))
            }
            Typed::Demo(typed) => {
                problems.switch("--stay", &typed.stay).map(|stay| Command::Demo(Demo { stay }))
            }
            Typed::DemoApp(typed) => typed.read(problems).map(Command::DemoApp),
        }
    }
}

/// Shows what clap itself has to say: help, the version, or the usage where nothing was asked.
fn shown(command: clap::Command, words: Vec<OsString>) -> Stop {
    let code = match command.try_get_matches_from(words) {
        Ok(_) => 0,
        Err(error) => {
            let _ = error.print();
            u8::from(error.use_stderr()) * super::USAGE
        }
    };
    Stop::Shown { code }
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

#[cfg(test)]
mod tests;
