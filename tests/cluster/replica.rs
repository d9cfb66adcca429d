//! A controller as a process of this machine: its log, its admin port, its end.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde_json::{Value, json};

use super::cluster::{clean, eventually, run};

/// A controller of this machine. It is ended with the value.
pub(crate) struct Replica {
    child: RefCell<Child>,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Replica {
    /// Runs a command of `controller`.
    pub(crate) fn run(mut command: Command) -> Replica {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("it was built");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&lines);
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(json!({"message": line}));
                shared.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Replica { child: RefCell::new(child), lines }
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line with this message, and gives it: the one after so many others of the kind.
    pub(crate) fn wait_for_line(&self, message: &str, after: usize) -> Value {
        let look = || {
            let is_it = |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains(message));
            self.log().iter().filter(is_it).nth(after).cloned()
        };
        eventually(message, look)
    }

    /// Waits until it leads.
    pub(crate) fn wait_to_lead(&self) {
        self.wait_for_line("This replica leads", 0);
    }

    /// A page of its admin port.
    pub(crate) fn page(&self, path: &str) -> String {
        let address = self.wait_for_line("Started", 0)["admin.addr"].as_str().expect("an address").to_owned();
        let url = format!("http://{address}{path}");
        run(clean("curl").args(["-sS", "-m", "10", &url]), None)
            .unwrap_or_else(|said| panic!("{url}: {said}"))
    }

    /// What is wrong, of which this is the reason.
    pub(crate) fn findings(&self, reason: &str) -> Vec<Value> {
        let status: Value = serde_json::from_str(&self.page("/status")).expect("JSON");
        let findings = status["findings"].as_array().cloned().expect("a list");
        findings.into_iter().filter(|finding| finding["reason"] == reason).collect()
    }

    /// Waits for a finding about an object, and gives its text.
    pub(crate) fn wait_for_finding(&self, reason: &str, about: &str) -> String {
        eventually(&format!("{reason} about {about}"), || {
            let found = self.findings(reason).into_iter().find(|finding| finding["about"] == about)?;
            found["text"].as_str().map(str::to_owned)
        })
    }

    /// Waits until nothing is wrong of this reason.
    pub(crate) fn wait_for_no_finding(&self, reason: &str) {
        eventually(&format!("no {reason}"), || self.findings(reason).is_empty().then_some(()));
    }

    /// The value of a metric, by its whole name with labels.
    pub(crate) fn metric(&self, name: &str) -> Option<i64> {
        let text = self.page("/metrics");
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.pid()).expect("a pid");
        // SAFETY: no memory is involved. The process is a child that has not been waited for, so its pid is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for its end, and gives its exit code.
    pub(crate) fn wait(&self) -> Option<i32> {
        eventually("the end of a controller", || self.child.borrow_mut().try_wait().expect("a child")).code()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if thread::panicking() {
            for line in self.log() {
                eprintln!("{line}");
            }
        }
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}
