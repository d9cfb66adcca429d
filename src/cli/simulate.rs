//! `simulate`: plays OpenIM for the developer of an app.
//!
//! Sends callbacks as OpenIM's servers send them, byte for byte, waits as long as they do, and tells for each answer what
//! OpenIM would do with it: allow, refuse, fail, and with which code; which of the answer's fields it would take over;
//! and what is to be mended. With a rate it is a load.

use std::cell::Cell;
use std::fs;
use std::future;
use std::io::{self, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::runtime::{Builder, LocalOptions};

use crate::callback::target::Form;
use bodies::Sample;
pub use bodies::{Samples, Server};
use dial::Dialer;
use exchange::Caller;
use failure::{Failure, Phase};
use judge::Judged;
use report::{Case, Run, Screen};

pub use load::Load;
pub use place::Place;
pub use trust::Trust;

pub mod advice;
mod bodies;
mod dial;
mod effects;
mod exchange;
mod failure;
mod histogram;
mod judge;
mod load;
mod place;
mod report;
mod trust;

/// Longest body of one's own.
const BODY_LIMIT: u64 = 8 << 20;

/// What `simulate` was told.
#[derive(Clone, Debug)]
pub struct Simulate {
    /// The URL.
    pub place: Place,
    /// `--command`: names of the table; none for every before-command.
    pub commands: Vec<String>,
    /// `--server`
    pub server: Server,
    /// `--samples`
    pub samples: Samples,
    /// `--body`
    pub body: Option<PathBuf>,
    /// `--form`
    pub form: Form,
    /// `--timeout`, as OpenIM counts it.
    pub timeout: Duration,
    /// `--ca` and `--insecure`
    pub trust: Trust,
    /// `--format`
    pub format: Format,
    /// `--rate`, `--for` and `--concurrency`
    pub load: Option<Load>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For CI.
    Junit,
}

/// Plays OpenIM, and gives the exit code: 0 where every answer was good, 1 where OpenIM would have failed or a finding
/// is serious, 2 where a file given on the command line is no good.
pub fn run(config: &Simulate, stdin: &mut dyn Read, out: &mut dyn Write) -> u8 {
    let prepared = samples(config, stdin)
        .and_then(|samples| Ok((samples, Dialer::new(config.place.clone(), &config.trust)?)));
    let (samples, dialer) = match prepared {
        Ok(prepared) => prepared,
        Err(problem) => {
            super::complain(&[problem]);
            return super::USAGE;
        }
    };
    let caller = Caller { dialer, form: config.form, timeout: config.timeout };
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let played = match runtime {
        Ok(runtime) => runtime.block_on(play(config, caller, samples, out)),
        Err(error) => Err(error),
    };
    match played {
        Ok(bad) => u8::from(bad) * super::PROBLEM,
        Err(error) => {
            eprintln!("simulate did not come to its end: {error}");
            super::PROBLEM
        }
    }
}

/// The callbacks to send; the error begins with the flag that is wrong.
fn samples(config: &Simulate, stdin: &mut dyn Read) -> Result<Vec<Sample>, String> {
    if let Some(path) = &config.body {
        return Ok(vec![own(path, stdin)?]);
    }
    if config.commands.is_empty() {
        return Ok(Sample::before(config.server, config.samples));
    }
    // The command line was checked against the same table.
    Ok(config.commands.iter().flat_map(|name| Sample::of(name, config.server, config.samples)).collect())
}

/// What is wrong with the files of a command line that is wrong itself, so that nothing will be sent; each begins with
/// its flag. Standard input is left alone.
pub(super) fn file_problems(body: Option<&Path>, trust: Option<&Trust>) -> Vec<String> {
    let body = body.filter(|path| *path != Path::new("-")).map(|path| own(path, &mut io::empty()));
    let given = trust.filter(|trust| matches!(trust, Trust::File(_))).map(trust::connector);
    body.and_then(Result::err).into_iter().chain(given.and_then(Result::err)).collect()
}

/// A callback of one's own.
fn own(path: &Path, stdin: &mut dyn Read) -> Result<Sample, String> {
    let wrong = |why: String| format!("--body: {}: {why}", path.display());
    let body = read(path, stdin).map_err(|error| wrong(error.to_string()))?;
    Sample::own(body).map_err(wrong)
}

fn read(path: &Path, stdin: &mut dyn Read) -> io::Result<String> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        stdin.take(BODY_LIMIT + 1).read_to_string(&mut text)
    } else {
        fs::File::open(path)?.take(BODY_LIMIT + 1).read_to_string(&mut text)
    }?;
    if read as u64 > BODY_LIMIT {
        return Err(io::Error::other(format!("is larger than {} MiB", BODY_LIMIT >> 20)));
    }
    Ok(text)
}

/// Whether the output is read by a person who sees colours.
fn is_colourful() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

async fn play(
    config: &Simulate,
    caller: Caller,
    samples: Vec<Sample>,
    out: &mut dyn Write,
) -> io::Result<bool> {
    let mut run = Run {
        url: config.place.to_string(),
        form: config.form,
        timeout: config.timeout,
        cases: Vec::new(),
        stopped: None,
        loaded: None,
    };
    let mut screen = Screen::new(out, is_colourful());
    match config.load {
        None => one_by_one(config, &caller, &samples, &mut run, &mut screen).await?,
        Some(load) => under_load(caller, samples, load, &mut run).await,
    }
    if let Some(failure) = &run.stopped {
        super::complain(&[failure.to_string()]);
    }
    match config.format {
        Format::Text => {
            if !run.cases.is_empty() {
                screen.summary(&run)?;
            }
            if let Some(loaded) = &run.loaded {
                screen.head(&run)?;
                screen.load(loaded)?;
            }
        }
        Format::Json => writeln!(out, "{:#}", report::json(&run))?,
        Format::Junit => out.write_all(report::junit(&run).as_bytes())?,
    }
    Ok(run.is_bad())
}

/// Each callback once, one behind the other. What every other one would meet too ends it.
async fn one_by_one(
    config: &Simulate,
    caller: &Caller,
    samples: &[Sample],
    run: &mut Run,
    screen: &mut Screen<'_>,
) -> io::Result<()> {
    for (number, sample) in samples.iter().enumerate() {
        let case = case(caller, sample, number as u64).await;
        if let Some(failure) = judge::concerns_all(&case.judged.outcome) {
            run.stopped = Some(failure.clone());
            return Ok(());
        }
        if config.format == Format::Text {
            screen.head(run)?;
            screen.case(&case)?;
        }
        run.cases.push(case);
    }
    Ok(())
}

async fn case(caller: &Caller, sample: &Sample, number: u64) -> Case {
    let (sending, phase, began) = (sample.sending(number), Cell::new(Phase::Waiting), Instant::now());
    let asked = caller.ask(sample, &sending, began, &phase).await;
    let took = began.elapsed();
    let mut case = Case {
        command: sample.name.clone(),
        special: sample.special.clone(),
        operation_id: String::from_utf8_lossy(sending.operation_id.as_bytes()).into_owned(),
        status: None,
        h2: false,
        took,
        judged: Judged { outcome: judge::Outcome::Unread, findings: Vec::new(), effects: Vec::new() },
    };
    case.judged = match asked {
        // Servers with TLS answer a request without it with a 400 that says so, each in other words.
        Ok(answer) if answer.status == StatusCode::BAD_REQUEST && caller.dialer.wants_tls().await => {
            Judged::failed(Failure::is_tls(&caller.dialer.place))
        }
        Ok(answer) => {
            (case.status, case.h2) = (Some(answer.status.as_u16()), answer.h2);
            match sample.callback(&sending) {
                Some(callback) => judge::judge(&callback, &answer, took, caller.timeout),
                None => Judged::failed(Failure::malformed("a body that is no callback")),
            }
        }
        Err(failure) => Judged::failed(caller.dialer.diagnosed(failure).await),
    };
    case
}

/// At a rate, until time is up or Ctrl-C.
async fn under_load(caller: Caller, samples: Vec<Sample>, load: Load, run: &mut Run) {
    let caller = Rc::new(caller);
    // What every callback would meet is found out before there are thousands.
    let phase = Cell::new(Phase::Connecting);
    if let Err(failure) = caller.reached(&phase).await {
        let failure = caller.dialer.diagnosed(failure).await;
        if failure.kind.concerns_all() {
            run.stopped = Some(failure);
            return;
        }
    }
    let mut stderr = io::stderr();
    let bar = io::stderr().is_terminal().then_some(&mut stderr as &mut dyn Write);
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Where signals cannot be received, the system ends the program.
            future::pending::<()>().await;
        }
    };
    let mut loaded = load::run(Rc::clone(&caller), samples, load, bar, interrupted).await;
    for (failure, _) in loaded.failures.values_mut() {
        *failure = caller.dialer.diagnosed(failure.clone()).await;
    }
    run.loaded = Some(loaded);
}
