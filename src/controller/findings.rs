//! What is wrong, since when, and what to do: for the log, the admin page and, as Events, for `kubectl`.
//!
//! A finding has a key: the same one is reported again and again while it lasts, which writes a log line only if its text has
//! changed, and an Event at once and then every hour, as Kubernetes forgets Events after one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::write::{Base, NotWritten, Retry, Writer};
use crate::api_server::Target;
use crate::sidecar::admission::sha256;
use crate::tls::Utc;

/// Longest message of an Event: Kubernetes' own limit for the newer kind of Events.
const MESSAGE_LIMIT_BYTES: usize = 1024;

/// How often an Event is written again: API servers keep them for an hour (`--event-ttl`).
const RENEWAL: Duration = Duration::from_secs(3500);

/// Time between two Events: after a bad day there are thousands, and nobody waits for the last.
const EVENT_PAUSE: Duration = Duration::from_millis(50);

/// Longest text of a finding: a log line, and a row of the page.
const TEXT_LIMIT_BYTES: usize = 4096;

/// Most findings at once. Some for each namespace, and one for each workload with pods that need something.
const LIMIT: usize = 20_000;

/// The object that an Event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct About {
    /// `apps/v1`
    pub api_version: String,
    /// `Deployment`
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Unknown for the Deployment of a pod, which the pod does not name.
    pub uid: Option<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// What it is about; with its reason this is its key.
    pub about: About,
    /// One word in capitals and small letters, as Events have it: `InvalidPolicy`.
    pub reason: &'static str,
    /// What was found, what was expected, what to do.
    pub text: String,
    /// Whether it needs somebody, or is only worth knowing.
    pub urgent: bool,
    /// Whether an Event is written about it.
    pub event: bool,
    /// The Event when it is over: reason and text. Without, there is none.
    pub over: Option<(&'static str, String)>,
}

/// Kind, namespace and name of the object, and the reason. The same object made again has another uid.
pub(super) type Key = (String, String, String, &'static str);

/// The key of findings about an object with this reason.
pub(super) fn key(about: &About, reason: &'static str) -> Key {
    (about.kind.clone(), about.namespace.clone(), about.name.clone(), reason)
}

#[derive(Debug)]
struct Entry {
    finding: Finding,
    since: SystemTime,
    /// When its Event was written.
    written: Option<Instant>,
    first_written: Option<Timestamp>,
    count: u32,
    retry: Retry,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, Entry>,
    /// Events of what is over, still to be written.
    over: Vec<(About, &'static str, String, Retry)>,
}

/// All findings. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    state: Rc<RefCell<State>>,
    news: Rc<Notify>,
    /// The namespaces where the controller may write Events.
    with_events: Rc<BTreeSet<String>>,
}

/// A finding for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    /// `Deployment shop/app`
    pub about: String,
    /// As in the Event.
    pub reason: &'static str,
    /// What was found.
    pub text: String,
    /// Since when.
    pub since: SystemTime,
    /// Whether it needs somebody.
    pub urgent: bool,
}

impl std::fmt::Display for About {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(out, "{} {}", self.kind, self.name),
            namespace => write!(out, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl Findings {
    /// None yet. Events are written in these namespaces.
    pub(super) fn new(with_events: BTreeSet<String>) -> Findings {
        Findings { with_events: Rc::new(with_events), ..Findings::default() }
    }

    /// It is so now. Reporting it again with the same text does nothing.
    pub(super) fn report(&self, mut finding: Finding) {
        finding.text = cut(&finding.text, TEXT_LIMIT_BYTES);
        finding.event &= self.with_events.contains(&finding.about.namespace);
        let mut state = self.state.borrow_mut();
        let key = key(&finding.about, finding.reason);
        if let Some(entry) = state.entries.get_mut(&key) {
            if entry.finding == finding {
                return;
            }
            // A text that has changed waits for the hour: the Event of a policy that is edited again is an exception.
            if finding.over.is_some() {
                entry.written = None;
                entry.retry.reset();
            }
            log(&finding);
            entry.finding = finding;
        } else {
            if state.entries.len() >= LIMIT {
                return;
            }
            log(&finding);
            let (since, retry) = (SystemTime::now(), Retry::default());
            let entry = Entry { finding, since, written: None, first_written: None, count: 0, retry };
            state.entries.insert(key, entry);
        }
        drop(state);
        self.news.notify_one();
    }

    /// It is over.
    pub(super) fn clear(&self, about: &About, reason: &'static str) {
        let mut state = self.state.borrow_mut();
        let Some(entry) = state.entries.remove(&key(about, reason)) else { return };
        info!(about = %about, reason, "Resolved");
        if let Some((reason, text)) = entry.finding.over
            && state.over.len() < LIMIT
        {
            state.over.push((about.clone(), reason, text, Retry::default()));
        }
        drop(state);
        self.news.notify_one();
    }

    /// What it is about is gone: nothing is left to say of it.
    pub(super) fn drop_silently(&self, about: &About, reason: &'static str) {
        if let Some(entry) = self.state.borrow_mut().entries.get_mut(&key(about, reason)) {
            entry.finding.over = None;
        }
        self.clear(about, reason);
    }

    /// Reports the finding, or that what it is about is in order.
    pub(super) fn set(&self, about: &About, reason: &'static str, finding: Option<Finding>) {
        match finding {
            Some(finding) => self.report(finding),
            None => self.clear(about, reason),
        }
    }

    /// Everything about objects of a namespace with these reasons that is not among the given ones is over.
    pub(super) fn keep_only(&self, namespace: &str, reasons: &[&'static str], keep: &BTreeSet<Key>) {
        let stale: Vec<_> = {
            let state = self.state.borrow();
            let of_namespace = state
                .entries
                .iter()
                .filter(|((_, of, _, reason), _)| of == namespace && reasons.contains(reason));
            let stale = of_namespace.filter(|(key, _)| !keep.contains(key));
            stale.map(|(_, entry)| (entry.finding.about.clone(), entry.finding.reason)).collect()
        };
        for (about, reason) in stale {
            self.clear(&about, reason);
        }
    }

    /// This replica looks after nothing any more.
    pub(super) fn forget(&self) {
        *self.state.borrow_mut() = State::default();
    }

    /// All of them, the urgent ones first, the older first.
    pub(super) fn list(&self) -> Vec<Listed> {
        let state = self.state.borrow();
        let mut list: Vec<_> = state
            .entries
            .values()
            .map(|Entry { finding, since, .. }| Listed {
                about: finding.about.to_string(),
                reason: finding.reason,
                text: finding.text.clone(),
                since: *since,
                urgent: finding.urgent,
            })
            .collect();
        list.sort_by_key(|listed| (!listed.urgent, listed.since));
        list
    }

    /// Writes Events while the term lasts.
    pub(super) async fn write_events(&self, writer: &Writer) {
        loop {
            let due = self.state.borrow().next();
            let Some(due) = due else {
                // Often enough for the hour and for tries that failed.
                tokio::select! {
                    () = self.news.notified() => {}
                    () = sleep(Duration::from_secs(1)) => {}
                }
                continue;
            };
            let (about, reason, text, kind) = match &due {
                Due::Entry(finding) => {
                    let kind = if finding.urgent { "Warning" } else { "Normal" };
                    (&finding.about, finding.reason, &finding.text, kind)
                }
                Due::Over(about, reason, text) => (about, *reason, text, "Normal"),
            };
            let (count, first) = self.state.borrow().written(&due);
            let written = event(writer, about, (reason, kind, text), count + 1, first).await;
            self.state.borrow_mut().done(&due, written.as_ref().err());
            match written {
                Err(NotWritten::TermOver) => sleep(Duration::from_secs(1)).await,
                Err(NotWritten::Refused(problem)) => {
                    warn!(about = %about, reason = problem, "An Event cannot be written")
                }
                Err(NotWritten::Changed) | Ok(()) => debug!(about = %about, reason, "Event written"),
            }
            sleep(EVENT_PAUSE).await;
        }
    }
}

enum Due {
    Entry(Finding),
    Over(About, &'static str, String),
}

impl State {
    fn next(&self) -> Option<Due> {
        if let Some((about, reason, text, _)) = self.over.iter().find(|(.., retry)| retry.is_due()) {
            return Some(Due::Over(about.clone(), reason, text.clone()));
        }
        let is_due = |entry: &Entry| {
            entry.finding.event
                && entry.retry.is_due()
                && entry.written.is_none_or(|at| at.elapsed() >= RENEWAL)
        };
        let entry = self.entries.values().find(|entry| is_due(entry))?;
        Some(Due::Entry(entry.finding.clone()))
    }

    fn written(&self, due: &Due) -> (u32, Option<Timestamp>) {
        match due {
            Due::Entry(Finding { about, reason, .. }) => self
                .entries
                .get(&key(about, reason))
                .map_or((0, None), |entry| (entry.count, entry.first_written)),
            Due::Over(..) => (0, None),
        }
    }

    fn done(&mut self, due: &Due, problem: Option<&NotWritten>) {
        match due {
            Due::Entry(Finding { about, reason, .. }) => {
                let Some(entry) = self.entries.get_mut(&key(about, reason)) else { return };
                match problem {
                    None => {
                        entry.written = Some(Instant::now());
                        entry.first_written.get_or_insert_with(Timestamp::now);
                        entry.count += 1;
                        entry.retry.reset();
                    }
                    Some(_) => entry.retry.failed(),
                }
            }
            Due::Over(about, reason, text) => {
                let at = self.over.iter().position(|(a, r, t, _)| (a, r, t) == (about, reason, text));
                let Some(at) = at else { return };
                match problem {
                    None => {
                        self.over.remove(at);
                    }
                    Some(_) => self.over[at].3.failed(),
                }
            }
        }
    }
}

fn log(finding: &Finding) {
    let Finding { about, reason, text, urgent, .. } = finding;
    if *urgent {
        warn!(about = %about, reason, text, "Needs attention");
    } else {
        info!(about = %about, reason, text, "Noticed");
    }
}

/// Writes an Event. Its name follows from what it is about, so that the next one takes its place.
async fn event(
    writer: &Writer,
    about: &About,
    (reason, kind, text): (&str, &str, &str),
    count: u32,
    first: Option<Timestamp>,
) -> Result<(), NotWritten> {
    let name = format!("callback-guard-{}", sha256(&[&about.to_string(), reason]));
    let target = Target {
        kind: "Event",
        group: "",
        resource: "events",
        namespace: Some(about.namespace.clone()),
        name: Some(name),
    };
    let now = Timestamp::now();
    let object = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {},
        "involvedObject": involved(about),
        "reason": reason, "type": kind, "message": cut(text, MESSAGE_LIMIT_BYTES),
        "firstTimestamp": seconds(first.unwrap_or(now)), "lastTimestamp": seconds(now), "count": count,
        "source": {"component": "callback-guard"},
        "reportingComponent": "callback-guard", "reportingInstance": "",
    });
    writer.apply::<Event>(&target, Base::Any, object).await.map(drop)
}

fn involved(about: &About) -> Value {
    let mut involved = json!({
        "apiVersion": about.api_version, "kind": about.kind, "namespace": about.namespace, "name": about.name,
    });
    if let Some(uid) = &about.uid {
        involved["uid"] = json!(uid);
    }
    involved
}

/// Kubernetes' `Time` has whole seconds.
fn seconds(time: Timestamp) -> String {
    Utc(time.as_second()).to_string()
}

/// The text, cut at a letter's end, with a sign that it was.
fn cut(text: &str, limit: usize) -> String {
    const MORE: &str = " …";
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit - MORE.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MORE}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(name: &str, text: &str) -> Finding {
        let about = About {
            kind: "Secret".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            ..About::default()
        };
        Finding { about, reason: "Foreign", text: text.to_owned(), urgent: true, event: true, over: None }
    }

    #[test]
    fn a_finding_keeps_its_beginning_while_its_text_changes_and_goes_when_it_is_over() {
        let findings = Findings::default();
        findings.report(finding("a", "one"));
        let first = findings.list();
        findings.report(finding("a", "two"));
        let second = findings.list();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_eq!((first[0].since, second[0].text.as_str()), (second[0].since, "two"));
        findings.clear(&finding("a", "").about, "Foreign");
        assert!(findings.list().is_empty());
    }

    #[test]
    fn what_is_not_kept_is_over_and_other_namespaces_and_reasons_stay() {
        let findings = Findings::default();
        let mut elsewhere = finding("a", "");
        elsewhere.about.namespace = "other".to_owned();
        let policy = Finding { reason: "InvalidPolicy", ..finding("a", "") };
        for finding in [finding("a", ""), finding("b", ""), elsewhere, policy] {
            findings.report(finding);
        }
        findings.keep_only("shop", &["Foreign"], &BTreeSet::from([key(&finding("b", "").about, "Foreign")]));
        let left: Vec<_> = findings.list().into_iter().map(|listed| (listed.about, listed.reason)).collect();
        let expected =
            [("Secret other/a", "Foreign"), ("Secret shop/a", "InvalidPolicy"), ("Secret shop/b", "Foreign")];
        let mut sorted = left.clone();
        sorted.sort();
        assert_eq!(sorted, expected.map(|(about, reason)| (about.to_owned(), reason)));
    }

    #[test]
    fn a_long_message_is_cut_at_a_letter_within_its_bytes() {
        assert_eq!(cut("short", 1024), "short");
        let long = "é".repeat(1000);
        let text = cut(&long, MESSAGE_LIMIT_BYTES);
        assert!(text.len() <= MESSAGE_LIMIT_BYTES && text.ends_with(" …"), "{}", text.len());
    }

    #[test]
    fn a_namespace_without_the_right_to_write_events_gets_none() {
        let findings = Findings::new(["other".to_owned()].into());
        findings.report(finding("a", "bad"));
        assert!(findings.state.borrow().next().is_none() && findings.list().len() == 1);
    }

    #[test]
    fn an_event_is_due_at_once_and_again_after_its_hour_and_when_it_is_over() {
        let findings = Findings::new(["shop".to_owned()].into());
        findings.report(Finding { over: Some(("Mended", "good".to_owned())), ..finding("a", "bad") });
        let due = findings.state.borrow().next().expect("an Event");
        findings.state.borrow_mut().done(&due, None);
        assert!(findings.state.borrow().next().is_none(), "once an hour");
        findings.report(Finding { over: Some(("Mended", "good".to_owned())), ..finding("a", "worse") });
        assert!(findings.state.borrow().next().is_some(), "another text of what can be mended");
        findings.clear(&finding("a", "").about, "Foreign");
        let due = findings.state.borrow().next().expect("an Event");
        assert!(matches!(&due, Due::Over(_, "Mended", text) if text == "good"));
        findings.state.borrow_mut().done(&due, None);
        assert!(findings.state.borrow().next().is_none());
    }
}
