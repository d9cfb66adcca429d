//! How a guard is started: the program, the arguments that `inject` writes, the memory cgroup, and what the machine lacks.

#![allow(dead_code, reason = "the test target and the benchmark each use their own part of this")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Once, OnceLock};
use std::{env, io};

use bytes::Bytes;

use crate::cgroup::Cgroup;
use crate::lab::HEAD;
use crate::priority;
use crate::support::certificates::Issued;

/// The memory limit that `inject` writes.
pub(crate) const MEMORY_LIMIT: u64 = 256 << 20;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: app, labels: {callback-guard.io/inject: enabled}}\n\
    spec: {containers: [{name: app, image: app, ports: [{containerPort: 10008}]}]}\n";

/// What a lab is made of.
pub(crate) struct Setup {
    pub(crate) program: PathBuf,
    pub(crate) rules: String,
    pub(crate) flags: Vec<(&'static str, String)>,
    pub(crate) answers: Vec<(&'static str, Bytes)>,
    pub(crate) certificate: Option<Issued>,
}

impl Setup {
    /// The program of `CALLBACK_GUARD_TEST_PROGRAM`, else that of this build, with the good callers' policy.
    pub(crate) fn new() -> Setup {
        let program = release().unwrap_or_else(|| env!("CARGO_BIN_EXE_callback-guard").into());
        Setup { program, rules: String::new(), flags: Vec::new(), answers: Vec::new(), certificate: None }
    }

    /// Rules behind those of the good callers.
    pub(crate) fn rules(mut self, rules: impl Into<String>) -> Setup {
        self.rules = rules.into();
        self
    }

    /// A flag beside those that `inject` writes.
    pub(crate) fn flag(mut self, name: &'static str, value: impl Into<String>) -> Setup {
        self.flags.push((name, value.into()));
        self
    }

    /// A whole answer of the app for `?mode=`.
    pub(crate) fn app_answers(mut self, mode: &'static str, answer: Bytes) -> Setup {
        self.answers.push((mode, answer));
        self
    }

    pub(crate) fn certificate(mut self, issued: Issued) -> Setup {
        self.certificate = Some(issued);
        self
    }

    /// The default of a size in the program's help, in bytes.
    pub(crate) fn default_size(&self, flag: &str) -> usize {
        let shown =
            Command::new(&self.program).args(["proxy", "--help"]).output().expect("the program starts");
        let text = String::from_utf8_lossy(&shown.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, rest) =
            text.split_once(&format!("{flag} <")).unwrap_or_else(|| panic!("no {flag} in the help"));
        let (_, rest) = rest.split_once("[default: ").expect("a default");
        let number: usize =
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number");
        match rest.trim_start_matches(|letter: char| letter.is_ascii_digit()).get(..3) {
            Some("MiB") => number << 20,
            Some("KiB") => number << 10,
            _ => number,
        }
    }
}

/// The program of a release, if the benchmark has made one.
static MEASURED: OnceLock<PathBuf> = OnceLock::new();

/// Has every lab start this program, which is that of a release.
pub(crate) fn measure(program: PathBuf) {
    MEASURED.set(program).expect("set once");
}

/// The program of a release: the benchmark's, or that of the variable.
fn release() -> Option<PathBuf> {
    MEASURED.get().cloned().or_else(|| env::var_os("CALLBACK_GUARD_TEST_PROGRAM").map(PathBuf::from))
}

/// What the guard's process does first: it goes before ordinary ones, and ends with the test.
pub(crate) fn prepare_guard() -> io::Result<()> {
    // Refused to those who may not; said elsewhere.
    let _ = priority::first_in(priority::GUARD);
    // SAFETY: a system call on numbers.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says once what is measured; tells whether lateness counts.
pub(crate) fn announce(program: &Path) -> bool {
    static ONCE: Once = Once::new();
    let release = release().is_some();
    let refused = priority::refused();
    ONCE.call_once(|| {
        let mut text = format!("program: {}", program.display());
        if !release {
            text.push_str(
                " (debug; lateness is not asserted: CALLBACK_GUARD_TEST_PROGRAM names the program of a release build)",
            );
        }
        if let Some(why) = &refused {
            let _ = write!(text, "\nlateness is not asserted: {why}");
            assert!(!is_ci(), "{why}");
        }
        println!("{text}\n\n{HEAD}");
    });
    release && refused.is_none()
}

fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

/// The group with the limit that `inject` writes, if this machine has one. In CI it must.
pub(crate) fn limited() -> Option<Cgroup> {
    match Cgroup::limited_to(MEMORY_LIMIT) {
        Ok(cgroup) => Some(cgroup),
        Err(why) => {
            assert!(!is_ci(), "no memory cgroup: that nothing kills the guard is not tested ({why})");
            println!("LEFT OUT: that the guard is not killed for want of memory; no memory cgroup: {why}");
            None
        }
    }
}

/// The arguments that `inject` writes for a pod, without those that name what is not here: the API server and the files of a
/// container.
pub(crate) fn injected(program: &Path) -> Vec<(String, Option<String>)> {
    let mut inject = Command::new(program);
    let mut inject = inject
        .args(["inject", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    inject.stdin.take().expect("a pipe").write_all(POD.as_bytes()).expect("it reads");
    let output = inject.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains(&format!("memory: \"{}Mi\"", MEMORY_LIMIT >> 20)), "another memory limit: {text}");
    let lines = text.lines().map(str::trim).skip_while(|line| *line != "args:").skip(1);
    let words = lines.map_while(|line| line.strip_prefix("- ")).map(|word| word.trim_matches('"'));
    let pairs: Vec<_> = words
        .filter(|word| word.starts_with("--"))
        .map(|word| match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        })
        .collect();
    assert!(pairs.iter().any(|(name, _)| name == "--grace-period"), "not the arguments: {text}");
    let elsewhere = [
        "--listen",
        "--tls-cert",
        "--tls-key",
        "--upstream",
        "--policy-file",
        "--override-file",
        "--policy-configmap",
        "--policy-cache",
    ];
    pairs.into_iter().filter(|(name, _)| !elsewhere.contains(&name.as_str())).collect()
}
