//! Builds and drives the judge: OpenIM's own Go code behind a pipe (`tests/openim/judge`).

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread;

use serde_json::{Value as Json, json};

/// A running judge. Ends when it is dropped.
pub(crate) struct Judge {
    child: Child,
    input: Option<BufWriter<ChildStdin>>,
    output: BufReader<ChildStdout>,
}

impl Judge {
    /// Builds the judge where that is not done yet (a minute, once; Go's own cache knows) and starts it.
    pub(crate) fn start() -> Judge {
        Judge::with_environment(&[])
    }

    /// The same with these variables set, as OpenIM's process would have them.
    pub(crate) fn with_environment(variables: &[(&str, &str)]) -> Judge {
        let mut command = Command::new(built());
        command.envs(variables.iter().copied());
        Judge::run(command)
    }

    /// The same by a command that runs the program of [`built`] somewhere else.
    pub(crate) fn run(mut command: Command) -> Judge {
        let mut child = command
            // OpenIM's logger makes a folder where it runs.
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the judge was just built");
        let input = child.stdin.take().map(BufWriter::new);
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Judge { child, input, output }
    }

    /// Asks everything and gives the conclusions in the same order.
    pub(crate) fn ask(&mut self, jobs: impl Iterator<Item = Json>) -> Vec<Json> {
        let lines: Vec<String> = jobs.map(|job| format!("{job}\n")).collect();
        let count = lines.len();
        let mut input = self.input.take().expect("it is given back below");
        // Written from a thread: the judge answers while it still reads.
        let writer = thread::spawn(move || {
            for line in lines {
                input.write_all(line.as_bytes()).expect("the judge reads");
            }
            input.flush().expect("the judge reads");
            input
        });
        let read = |output: &mut BufReader<ChildStdout>| {
            let mut line = String::new();
            output.read_line(&mut line).expect("the judge answers");
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("the judge said {line:?}: {error}"))
        };
        let conclusions = (0..count).map(|_| read(&mut self.output)).collect();
        self.input = Some(writer.join().expect("the judge reads"));
        conclusions
    }

    /// The commands that OpenIM's module knows, sorted.
    pub(crate) fn commands(&mut self) -> Vec<String> {
        let answer = self.ask([json!({"do": "commands"})].into_iter()).remove(0);
        let mut names: Vec<String> = serde_json::from_value(answer).expect("a list of names");
        names.sort();
        names
    }
}

/// Builds the judge, once a process.
pub(crate) fn built() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/openim/judge");
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("openim-judge");
        let built = Command::new("go")
            .args(["build", "-trimpath", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(&source)
            .status()
            .unwrap_or_else(|error| panic!("go is needed to build OpenIM's own code for the tests: {error}"));
        assert!(built.success(), "OpenIM's code does not build in {}", source.display());
        program
    })
}

impl Drop for Judge {
    fn drop(&mut self) {
        // Its input ends, and so does it.
        self.input = None;
        let _ = self.child.wait();
    }
}
