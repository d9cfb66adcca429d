//! A controller as a process of this machine: its log, its admin port, its end.

use std::process::Command;

use serde_json::{Value, json};

use super::cluster::{clean, eventually, run};
use super::process::Process;

/// A controller of this machine. It is ended with the value.
pub(crate) struct Replica(Process);

impl Replica {
    /// Runs a command of `controller`.
    pub(crate) fn run(mut command: Command) -> Replica {
        Replica(Process::start(&mut command))
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> Vec<Value> {
        let lines = self.0.lines().into_iter();
        lines.map(|line| serde_json::from_str(&line).unwrap_or(json!({"message": line}))).collect()
    }

    /// Waits for a line with this message, and returns it: the one after so many others of the kind.
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

    /// Waits for a finding about an object, and returns its text.
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
        self.0.pid()
    }

    /// Sends a signal.
    #[track_caller]
    pub(crate) fn signal(&self, signal: i32) {
        self.0.signal(signal);
    }

    /// Waits for its end, and returns its exit code; -1 after a signal.
    pub(crate) fn wait(&self) -> i32 {
        self.0.wait_exit()
    }
}
