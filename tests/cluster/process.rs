//! A process on this machine that a test starts, reads and ends: a second guard beside those in pods, or a kubectl that watches.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, thread};

use serde_json::Value;

use super::audit::{ACCOUNT, Audit, Right, account};
use super::cluster::{Cluster, PATIENCE, Stage, clean, eventually, signal};
use super::support::guard::ask;
use super::support::lines::Lines;

/// A running process. It is killed when this is dropped, so also when the test fails.
pub(crate) struct Process {
    child: Mutex<Child>,
    out: Arc<Lines>,
    errors: Arc<Lines>,
}

/// Our own program with these arguments, to be given more, and to be started with [`Process::start`]. It finds no variables of
/// the developer, and a cluster only if `KUBECONFIG` is set on the command.
pub(crate) fn program(arguments: &[&str]) -> Command {
    let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CALLBACK_GUARD_"))
    {
        command.env_remove(name);
    }
    command.args(arguments);
    command
}

impl Process {
    /// Starts it. Its pipes are read to their ends, so it never waits for a reader.
    pub(crate) fn start(command: &mut Command) -> Process {
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let out = Lines::of(child.stdout.take().expect("piped"));
        let errors = Lines::of(child.stderr.take().expect("piped"));
        Process { child: Mutex::new(child), out, errors }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child().id()
    }

    /// The lines of its standard output so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.out.so_far()
    }

    /// The lines of its standard error so far.
    pub(crate) fn error_lines(&self) -> Vec<String> {
        self.errors.so_far()
    }

    /// Waits for the first line of its standard output that has this text.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_line_after(0, text)
    }

    /// The same after so many lines, as many as [`Process::lines`] returned before.
    #[track_caller]
    pub(crate) fn wait_for_line_after(&self, lines: usize, text: &str) -> String {
        let found = self
            .out
            .wait_at_most(PATIENCE, |all| all.iter().skip(lines).find(|line| line.contains(text)).cloned());
        found.unwrap_or_else(|| {
            if !self.is_running() {
                // Why it ended.
                self.errors.wait_for_end();
            }
            panic!("no line with {text:?} after {lines} lines:\n{}", self.told())
        })
    }

    /// Waits for the log line with this message: `Listening`.
    #[track_caller]
    pub(crate) fn wait_for_message(&self, message: &str) -> Value {
        let line = self.wait_for_line(&format!("\"message\":{}", Value::from(message)));
        serde_json::from_str(&line).expect("a line is JSON")
    }

    /// An address that it logs with this message, under this key: `Listening`, `admin.addr`. What listens there is asked with
    /// [`ask`].
    #[track_caller]
    pub(crate) fn address(&self, message: &str, key: &str) -> SocketAddr {
        let line = self.wait_for_message(message);
        let address = line[key].as_str().and_then(|text| text.parse().ok());
        address.unwrap_or_else(|| panic!("no address under {key}: {line}"))
    }

    /// Sends a signal, `SIGSTOP` and `SIGCONT` too, to a process that has not ended.
    #[track_caller]
    pub(crate) fn signal(&self, number: i32) {
        assert!(self.is_running(), "it has ended:\n{}", self.told());
        signal(self.pid(), number);
    }

    /// Whether it has not ended.
    pub(crate) fn is_running(&self) -> bool {
        self.child().try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits until it has ended, and returns its exit code; -1 after a signal.
    pub(crate) fn wait_exit(&self) -> i32 {
        let status = eventually("the end of a process", || self.child().try_wait().expect("a child"));
        status.code().unwrap_or(-1)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its last lines.
    fn told(&self) -> String {
        let lines = [self.lines(), self.error_lines()].map(|lines| {
            let from = lines.len().saturating_sub(40);
            lines[from..].join("\n")
        });
        lines.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        {
            let mut child = self.child();
            let _ = child.kill();
            let _ = child.wait();
        }
        self.out.wait_for_end();
        if thread::panicking() {
            eprintln!("the last lines of process {}:\n{}", self.pid(), self.told());
        } else {
            let lines = self.lines();
            let bug = lines.iter().find(|line| line.contains("A bug: please report it"));
            assert!(bug.is_none(), "it panicked: {bug:?}");
        }
    }
}

#[test]
fn two_guards_on_this_machine_use_one_account_of_the_cluster_and_its_rights_alone() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    let name = namespace.name.as_str();
    cluster.apply(&ACCOUNT.replace("NAMESPACE", name));
    let kubeconfig = cluster.kubeconfig_of(name, &cluster.token(name, "shop"));
    let audit = Audit::of(cluster).since_now();
    let policy = format!("{name}/policy");
    let guard = || {
        let mut command = program(&["proxy", "--tls-self-signed", "--upstream=http://127.0.0.1:9"]);
        command.args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--policy-configmap", &policy]);
        Process::start(command.env("KUBECONFIG", &kubeconfig))
    };
    let guards = [guard(), guard()];
    assert_ne!(guards[0].pid(), guards[1].pid());
    for guard in &guards {
        guard.wait_for_line("\"policy.source\":\"configmap\"");
        let admin = guard.address("Listening", "admin.addr");
        assert_eq!(ask(admin, "GET", "/livez").0, 200);
    }
    let right = |verb: &str| Right::new(name, "", "configmaps", "policy", verb);
    eventually("both watches", || {
        let used = audit.used_rights(&account(name, "shop"));
        let watches =
            audit.by_user(&account(name, "shop")).into_iter().filter(|entry| entry.verb() == "watch");
        let expected = [right("list"), right("watch")];
        assert!(used.keys().all(|used| expected.contains(used)), "{used:?}");
        (watches.count() >= 2 && used.len() == expected.len()).then_some(())
    });
    guards[0].signal(libc::SIGTERM);
    assert_eq!(guards[0].wait_exit(), 0);
    assert!(!guards[0].is_running() && guards[1].is_running());
}

#[test]
fn a_process_ends_with_its_test_also_when_it_is_stopped_and_the_test_fails() {
    let pids = Mutex::new(Vec::new());
    let failed = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..2 {
            let process = Process::start(clean("sleep").arg("1000"));
            pids.lock().expect("not poisoned").push(process.pid());
            if pids.lock().expect("not poisoned").len() == 1 {
                continue;
            }
            process.signal(libc::SIGSTOP);
            std::panic::resume_unwind(Box::new("a test that fails"));
        }
    }));
    assert!(failed.is_err_and(|panic| panic.is::<&str>()));
    let pids = pids.into_inner().expect("not poisoned");
    // They were waited for, so their numbers are free.
    let left: Vec<_> = pids.iter().filter(|pid| Path::new("/proc").join(pid.to_string()).exists()).collect();
    assert_eq!((pids.len(), left.len()), (2, 0), "{left:?}");
}

#[test]
fn lines_are_waited_for_and_a_process_that_ends_without_one_is_shown() {
    let shell = "echo one; echo two; echo one more; echo trouble >&2; read -r _; exit 3";
    let process = Process::start(clean("sh").args(["-c", shell]));
    assert_eq!(process.wait_for_line("o"), "one");
    assert_eq!(process.wait_for_line_after(1, "one"), "one more");
    assert_eq!(process.wait_exit(), 3, "its standard input is empty");
    let waiting = catch_unwind(AssertUnwindSafe(|| process.wait_for_line("three")));
    let shown = *waiting.expect_err("no such line").downcast::<String>().expect("a text");
    for part in ["no line with \"three\"", "one more", "trouble"] {
        assert!(shown.contains(part), "{shown}");
    }
}
