//! Runs the binary where nothing else is, and keeps everything it said.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// Nothing here takes longer, the demo's twenty seconds and a busy machine included.
const PATIENCE: Duration = Duration::from_secs(60);

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A fresh folder, removed at the end of the test.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    pub(crate) fn new() -> Folder {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("callback-guard-cli-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a fresh folder");
        Folder { path }
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).expect("a file is written");
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).expect("the folder is read");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    /// The binary with these arguments, to be run in this folder. Of the environment it gets nothing.
    pub(crate) fn program(&self, line: &str) -> Program<'_> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_callback-guard"));
        command.args(line.split_whitespace()).current_dir(&self.path).env_clear().env("TMPDIR", &self.path);
        Program { folder: self, line: line.to_owned(), command, stdin: String::new() }
    }

    /// Runs the binary with these arguments to its end.
    pub(crate) fn run(&self, line: &str) -> Ran {
        self.program(line).run()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The binary, about to be run.
pub(crate) struct Program<'f> {
    folder: &'f Folder,
    line: String,
    command: Command,
    stdin: String,
}

impl Program<'_> {
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn stdin(mut self, text: &str) -> Self {
        text.clone_into(&mut self.stdin);
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Ran {
        self.start().wait()
    }

    /// Starts it, for those that run until they are told to end.
    pub(crate) fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A program that does not read its input may have ended already.
        let _ = stdin.write_all(self.stdin.as_bytes());
        drop(stdin);
        let (sender, lines) = channel();
        let stdout = child.stdout.take().expect("piped");
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let _ = sender.send(line.expect("UTF-8"));
            }
        });
        let what = format!("callback-guard {} (in {})", self.line, self.folder.path.display());
        Running { what, child, lines }
    }
}

/// The binary while it runs; ended when this is dropped.
pub(crate) struct Running {
    what: String,
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// The next line of standard output; none at its end.
    pub(crate) fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                panic!("{} said nothing for {PATIENCE:?}", self.what)
            }
        }
    }

    /// Its process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Ran {
        let err = self.read_err();
        let out: String = std::iter::from_fn(|| self.line()).map(|line| line + "\n").collect();
        let status = self.child.wait().expect("it has ended");
        let err = err.recv_timeout(PATIENCE).expect("standard error has ended");
        Ran { line: self.what.clone(), status, out, err }
    }

    fn read_err(&mut self) -> Receiver<String> {
        let (sender, whole) = channel();
        let mut stderr = self.child.stderr.take().expect("piped, and taken once");
        thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).expect("UTF-8");
            let _ = sender.send(text);
        });
        whole
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a run. Printed whole where a test fails.
pub(crate) struct Ran {
    line: String,
    status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ran { line, status, out, err } = self;
        write!(f, "{line}\n{status}\n---- standard output\n{out}---- standard error\n{err}----")
    }
}

impl Ran {
    /// The exit code is this one.
    #[track_caller]
    pub(crate) fn code(self, expected: i32) -> Ran {
        assert_eq!(self.status.code(), Some(expected), "\n{self}");
        self
    }

    /// Standard output is exactly this.
    #[track_caller]
    pub(crate) fn out(self, expected: &str) -> Ran {
        assert_eq!(self.out, expected, "\n{self}");
        self
    }

    /// Standard error is exactly this.
    #[track_caller]
    pub(crate) fn err(self, expected: &str) -> Ran {
        assert_eq!(self.err, expected, "\n{self}");
        self
    }

    /// Standard output has this in it.
    #[track_caller]
    pub(crate) fn out_has(self, part: &str) -> Ran {
        assert!(self.out.contains(part), "{part:?} is not in the output of\n{self}");
        self
    }

    /// Standard error has this in it.
    #[track_caller]
    pub(crate) fn err_has(self, part: &str) -> Ran {
        assert!(self.err.contains(part), "{part:?} is not in the errors of\n{self}");
        self
    }

    /// Neither stream has this in it.
    #[track_caller]
    pub(crate) fn has_no(self, part: &str) -> Ran {
        assert!(!self.out.contains(part) && !self.err.contains(part), "{part:?} is said by\n{self}");
        self
    }

    /// Standard error is these flags' problems, a line each, in this order, and then nothing but `behind`.
    #[track_caller]
    pub(crate) fn problems_of(self, flags: &[&str], behind: &str) -> Ran {
        let Some(problems) = self.err.strip_suffix(behind) else {
            panic!("{behind:?} is missing in\n{self}")
        };
        let found: Vec<_> =
            problems.lines().map(|line| line.split(": ").next().unwrap_or_default()).collect();
        assert_eq!(found, flags, "\n{self}");
        self
    }
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
