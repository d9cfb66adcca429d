//! The command line: what was typed becomes a [`args::Command`] that the program may rely on, or every mistake at once.

use std::ffi::OsString;
use std::io;
use std::time::SystemTime;

use args::Command;

pub mod admission_policy;
pub mod args;
pub mod check;
pub mod controller;
pub mod demo;
pub mod demo_app;
pub mod drain;
pub mod explain;
pub mod inject;
mod process;
pub mod proxy;
pub mod simulate;

/// Exit code: a problem was found, or something failed while running.
pub const PROBLEM: u8 = 1;

/// Exit code: the command line is wrong.
pub const USAGE: u8 = 2;

/// Runs the program with these arguments, the program's name first, and gives its exit code.
pub fn run(arguments: &[OsString]) -> u8 {
    match args::parse(arguments) {
        Ok(Command::Proxy(config)) => proxy::run(*config),
        Ok(Command::Controller(config)) => controller::run(*config),
        Ok(Command::Drain(config)) => drain::run(&config),
        Ok(Command::Explain(config)) => {
            explain::run(&config, &mut io::stdin(), &mut io::stdout(), SystemTime::now())
        }
        Ok(Command::Simulate(config)) => simulate::run(&config, &mut io::stdin(), &mut io::stdout()),
        Ok(Command::Demo(config)) => demo::run(&config),
        Ok(Command::DemoApp(config)) => demo_app::run(config),
        Ok(Command::Inject(config)) => {
            inject::run(&config, &mut io::stdin(), &mut io::stdout(), &mut io::stderr())
        }
        Ok(Command::AdmissionPolicy(config)) => {
            admission_policy::run(&config, &mut io::stdout(), &mut io::stderr())
        }
        Ok(Command::Check { files, format }) => {
            let (mut stdin, mut out, mut err) = (io::stdin(), io::stdout(), io::stderr());
            check::run(&files, format, &mut stdin, &mut out, &mut err, SystemTime::now())
        }
        Err(args::Stop::Shown { code }) => code,
        Err(args::Stop::Problems { problems, subcommand }) => {
            complain(&problems);
            let whose = subcommand.map(|name| name + " ").unwrap_or_default();
            eprintln!("\nFor the flags and their defaults: callback-guard {whose}--help");
            USAGE
        }
    }
}

/// Prints every problem, a line each.
fn complain(problems: &[String]) {
    for problem in problems {
        eprintln!("{problem}");
    }
}
