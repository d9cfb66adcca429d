//! Arguments as typed, and what the program may rely on.
//!
//! Every value is read as text first and checked here, so that one run shows every mistake, each beginning with its
//! flag, and a value from the environment is judged like one from the command line.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use super::check;
use super::inject::{Manifests, Task};
use super::simulate::Simulate;
use problems::{Problems, socket};
use proxy::ProxyArgs;
use simulate::SimulateArgs;

pub use proxy::{ADMIN_PORT, LISTEN_PORT, Proxy, TlsSource, any};

mod inject;
mod mistakes;
mod problems;
mod proxy;
mod simulate;

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
            let proxy = typed.read(&mut problems);
            if !problems.found.is_empty() {
                typed.read_files(&mut problems);
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
            typed.read(&mut problems).map(|simulate| Command::Simulate(Box::new(simulate)))
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
