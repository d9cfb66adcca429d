//! The guard itself: this very program as `proxy`, in a process of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::folder::Folder;

/// How long the guard may take to listen; it takes some 20 ms.
const START: Duration = Duration::from_secs(5);

/// A running guard. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
    lines: mpsc::UnboundedReceiver<Value>,
    /// Where callbacks go to.
    pub(super) listen: SocketAddr,
    /// The admin port.
    pub(super) admin: SocketAddr,
}

impl Guard {
    /// Starts it in front of the app, and waits until it listens.
    pub(super) async fn start(app: SocketAddr, folder: &Folder) -> Result<Guard, String> {
        let program = std::env::current_exe()
            .map_err(|error| format!("the path of this program cannot be found: {error}"))?;
        let mut child = command(&program, app, folder)
            .spawn()
            .map_err(|error| format!("the guard cannot be started: {error}"))?;
        let stdout = child.stdout.take().expect("standard output is piped");
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let lines = follow(stdout);
        // From here on it is ended whatever happens.
        let mut guard = Guard { child, lines, listen: anywhere, admin: anywhere };
        let Some(line) = guard.logged("Listening", START).await else {
            return Err(format!("the guard did not start: {}", guard.last_words()));
        };
        let address = |key: &str| line[key].as_str().and_then(|text| text.parse().ok());
        let (Some(listen), Some(admin)) = (address("listen.addr"), address("admin.addr")) else {
            return Err("the guard did not say where it listens".to_owned());
        };
        (guard.listen, guard.admin) = (listen, admin);
        Ok(guard)
    }

    /// Waits for a line of its log with this message; what comes before it is passed over.
    pub(super) async fn logged(&mut self, message: &str, within: Duration) -> Option<Value> {
        let until = Instant::now() + within;
        loop {
            let line = timeout_at(until, self.lines.recv()).await.ok()??;
            if line["message"] == message {
                return Some(line);
            }
        }
    }

    /// The next line of its log; none when it has ended.
    pub(super) async fn next_line(&mut self) -> Option<Value> {
        self.lines.recv().await
    }

    /// Passes over what was logged so far.
    pub(super) fn forget_lines(&mut self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// What a guard that has failed complains of.
    fn last_words(&mut self) -> String {
        self.end();
        let mut text = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            let _ = stderr.take(4096).read_to_string(&mut text);
        }
        match text.trim() {
            "" => "it gave no reason".to_owned(),
            text => text.replace('\n', "; "),
        }
    }

    /// Ends it at once, by its process ID: no callback is on its way, and it keeps nothing.
    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

fn command(program: &Path, app: SocketAddr, folder: &Folder) -> Command {
    let mut command = Command::new(program);
    command.arg("proxy").args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.args(["--upstream", &format!("http://{app}"), "--require-policy", "--log-format", "json"]);
    command.arg("--tls-cert").arg(folder.certificate()).arg("--tls-key").arg(folder.key());
    command.arg("--policy-file").arg(folder.policy());
    // What is set for the real proxy of this machine is not meant for this one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CALLBACK_GUARD_") {
            command.env_remove(name);
        }
    }
    // Ctrl-C is for the demo, which then ends the guard.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Reads the log on a thread of its own, which ends with the guard.
fn follow(stdout: ChildStdout) -> mpsc::UnboundedReceiver<Value> {
    let (sender, lines) = mpsc::unbounded_channel();
    let read = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // What is not JSON is not the log's.
            if let Ok(line) = serde_json::from_str(&line) {
                let _ = sender.send(line);
            }
        }
    };
    let started = thread::Builder::new().name("guard's log".to_owned()).spawn(read);
    started.expect("a process that cannot start a thread cannot show anything");
    lines
}
