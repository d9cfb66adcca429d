//! Pods of a namespace that are not guarded as they should be: counted, named, and what mends them.
//!
//! Two watches, by labels: pods that asked and have no sidecar, and pods that have one. No pod is kept, only what was found of it.
//! What decides about a pod (the labels of its namespace, the policy in the cluster) may change: then both begin anew.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, ResourceExt as _};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Shared;
use super::findings::{About, Finding, key};
use super::kept::{NOT_WATCHED, PAGE, Trouble, about};
use crate::api_server::{Followed, Observer, Target, follow};
use crate::sidecar::census::{self, Owner, PodState, Surroundings};
use crate::sidecar::{Notice, Reason};

/// Workloads of one namespace that are named; the metrics count all pods.
const WORKLOADS: usize = 50;

/// Names in one message.
const NAMES: usize = 5;

/// What decides about the pods of a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Deciding {
    /// The labels and annotations of the namespace, as `metadata`.
    pub namespace: Value,
    /// Since when the namespace asks, in seconds since 1970.
    pub labeled_since: Option<i64>,
    /// What the policy in the cluster writes into the label of pods.
    pub current: Option<String>,
}

/// The states that are counted.
pub(super) const STATES: [&str; 6] = ["guarded", "naked", "not-restarted", "skipped", "stale", "not-first"];

/// The states that a pod counts for: a stale one may be behind another container as well.
fn labels(state: &PodState) -> Vec<&'static str> {
    match state {
        PodState::Guarded { stale: false, in_front: None } => vec!["guarded"],
        PodState::Guarded { stale, in_front } => {
            let flaws = [(*stale, "stale"), (in_front.is_some(), "not-first")];
            flaws.into_iter().filter_map(|(holds, label)| holds.then_some(label)).collect()
        }
        PodState::Naked => vec!["naked"],
        PodState::NotRestarted => vec!["not-restarted"],
        PodState::Skipped(_) => vec!["skipped"],
        PodState::NotOurs => Vec::new(),
    }
}

/// What was found of a pod. The owner of one that is guarded is nobody's question.
#[derive(Clone, Debug)]
struct Seen {
    state: PodState,
    owner: Option<Owner>,
}

type Map = Rc<RefCell<BTreeMap<String, Seen>>>;

/// The pods of a namespace.
pub(super) struct Pods {
    shared: Rc<Shared>,
    namespace: String,
    news: Rc<Notify>,
    deciding: Option<Deciding>,
    seen: [Map; 2],
    tasks: JoinSet<()>,
}

impl Pods {
    /// Nothing is followed yet.
    pub(super) fn new(shared: &Rc<Shared>, namespace: &str, news: &Rc<Notify>) -> Pods {
        Pods {
            shared: Rc::clone(shared),
            namespace: namespace.to_owned(),
            news: Rc::clone(news),
            deciding: None,
            seen: Default::default(),
            tasks: JoinSet::new(),
        }
    }

    /// Follows the pods as they have to be judged now.
    pub(super) fn keep(&mut self, deciding: &Deciding) {
        if self.deciding.as_ref() == Some(deciding) {
            return;
        }
        self.deciding = Some(deciding.clone());
        // Dropped, and so ended.
        self.tasks = JoinSet::new();
        let enabled =
            deciding.namespace.pointer("/labels/callback-guard.io~1inject") == Some(&Value::from("enabled"));
        let asked = match enabled {
            true => "!callback-guard.io/injected,callback-guard.io/inject notin (disabled)",
            false => "!callback-guard.io/injected,callback-guard.io/inject=enabled",
        };
        // Whoever reported it is gone.
        self.shared.findings.clear(&about(&self.target()), NOT_WATCHED);
        for (seen, labels) in self.seen.clone().into_iter().zip([asked, "callback-guard.io/injected"]) {
            let target = self.target();
            let observer = Watching {
                shared: Rc::clone(&self.shared),
                namespace: self.namespace.clone(),
                deciding: deciding.clone(),
                seen,
                listing: BTreeMap::new(),
                trouble: Trouble::new(&target, &self.shared.findings),
                news: Rc::clone(&self.news),
            };
            let (pool, namespace) = (self.shared.pool.clone(), self.namespace.clone());
            let followed = Followed { target, labels: labels.to_owned(), page: Some(PAGE) };
            let pods = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
            self.tasks.spawn_local(async move {
                let api = |client| Api::<DynamicObject>::namespaced_with(client, &namespace, &pods);
                follow(followed, pool, api, observer).await;
            });
        }
    }

    fn target(&self) -> Target {
        Target {
            kind: "Pod",
            group: "",
            resource: "pods",
            namespace: Some(self.namespace.clone()),
            name: None,
        }
    }

    /// Counts and names them.
    pub(super) fn report(&self) {
        let mut counts: BTreeMap<&str, i64> = STATES.map(|state| (state, 0)).into();
        let mut skipped: HashMap<Reason, i64> = HashMap::new();
        // Of pods of one owner that need different things of one kind, the first is named until it is mended.
        let mut groups: BTreeMap<(String, &'static str), (Need, Owner, Vec<String>)> = BTreeMap::new();
        for map in &self.seen {
            for (name, seen) in map.borrow().iter() {
                for label in labels(&seen.state) {
                    *counts.entry(label).or_default() += 1;
                }
                if let PodState::Skipped(reason) = seen.state {
                    *skipped.entry(reason).or_default() += 1;
                }
                let Some(owner) = &seen.owner else { continue };
                for need in Need::of(&seen.state) {
                    let group = groups.entry((format!("{}/{}", owner.kind, owner.name), need.reason()));
                    let (first, _, names) =
                        group.or_insert_with(|| (need.clone(), owner.clone(), Vec::new()));
                    if *first == need {
                        names.push(name.clone());
                    }
                }
            }
        }
        self.shared.metrics.pods(&self.namespace, &counts);
        self.shared.metrics.skipped(&self.namespace, &skipped);
        let mut kept = BTreeSet::new();
        for (need, owner, names) in groups.into_values().take(WORKLOADS) {
            let about = About {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                namespace: self.namespace.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            };
            let urgent = need != Need::Restart;
            let text = need.text(&about, &names, owner.remedy(&self.namespace, &names[0]).as_deref());
            kept.insert(key(&about, need.reason()));
            let finding = Finding { about, reason: need.reason(), text, urgent, event: urgent, over: None };
            self.shared.findings.report(finding);
        }
        self.shared.findings.keep_only(&self.namespace, &Need::REASONS, &kept);
    }
}

/// What pods of one owner need.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    /// A sidecar, which they asked for.
    Sidecar,
    /// A restart, as they are older than the label.
    Restart,
    /// Something else than a sidecar: they cannot have one.
    Change(Reason),
    /// A restart, as their sidecar is one of another policy.
    Renewal,
    /// Another order of their init containers.
    Order(String),
}

impl Need {
    const REASONS: [&'static str; 5] =
        ["NakedPods", "NotRestarted", "SkippedPods", "StalePods", "SidecarNotFirst"];

    fn of(state: &PodState) -> Vec<Need> {
        match state {
            PodState::Naked => vec![Need::Sidecar],
            PodState::NotRestarted => vec![Need::Restart],
            PodState::Skipped(reason) => vec![Need::Change(*reason)],
            PodState::Guarded { stale, in_front } => {
                let order = in_front.as_ref().map(|in_front| Need::Order(in_front.clone()));
                stale.then_some(Need::Renewal).into_iter().chain(order).collect()
            }
            PodState::NotOurs => Vec::new(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Need::Sidecar => "NakedPods",
            Need::Restart => "NotRestarted",
            Need::Change(_) => "SkippedPods",
            Need::Renewal => "StalePods",
            Need::Order(_) => "SidecarNotFirst",
        }
    }

    /// What was found, and what to do; `remedy` makes pods anew.
    fn text(&self, about: &About, names: &[String], remedy: Option<&str>) -> String {
        let pods = if names.len() == 1 { "1 pod".to_owned() } else { format!("{} pods", names.len()) };
        let shown = names.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(NAMES);
        let shown = if more > 0 { format!("{shown} and {more} more") } else { shown };
        let of = if about.kind == "Pod" { String::new() } else { format!(" of {about}") };
        let run = remedy.map(|remedy| format!(": {remedy}")).unwrap_or_default();
        match self {
            Need::Sidecar => format!(
                "{pods}{of} asked for a sidecar and {have} none ({shown}). New pods get it{run}",
                have = if names.len() == 1 { "has" } else { "have" },
            ),
            Need::Restart => {
                format!(
                    "{pods}{of} {are} older than the label ({shown}) and get{s} a sidecar after a restart{run}",
                    are = if names.len() == 1 { "is" } else { "are" },
                    s = if names.len() == 1 { "s" } else { "" }
                )
            }
            Need::Change(reason) => {
                let words = reason.words();
                format!(
                    "{pods}{of} asked for a sidecar and cannot have one ({shown}): {}: {}; {}",
                    words.name, words.meaning, words.remedy
                )
            }
            Need::Renewal => {
                format!(
                    "{pods}{of} {have} a sidecar of another version or other settings ({shown}). New pods get the present one{run}",
                    have = if names.len() == 1 { "has" } else { "have" }
                )
            }
            Need::Order(in_front) => {
                let words = Notice::NotFirst.words();
                format!(
                    "In {pods}{of} the init container {in_front:?} is in front of the sidecar ({shown}): {}; {}",
                    words.meaning, words.remedy
                )
            }
        }
    }
}

struct Watching {
    shared: Rc<Shared>,
    namespace: String,
    deciding: Deciding,
    seen: Map,
    /// What was known before the list that is under way, and it has not brought.
    listing: BTreeMap<String, Seen>,
    trouble: Trouble,
    news: Rc<Notify>,
}

impl Observer<DynamicObject> for Watching {
    fn listing(&mut self) {
        self.listing = self.seen.borrow().clone();
    }

    fn found(&mut self, object: DynamicObject) {
        let name = object.name_any();
        self.listing.remove(&name);
        let DynamicObject { metadata, data: mut pod, .. } = object;
        pod["metadata"] = serde_json::to_value(metadata).unwrap_or_default();
        let state = census::state(
            &pod,
            &Surroundings {
                namespace: &self.namespace,
                metadata: &self.deciding.namespace,
                labeled_since: self.deciding.labeled_since,
                installation: &self.shared.config.installation,
                current: self.deciding.current.as_deref(),
            },
        );
        let owner = (!Need::of(&state).is_empty()).then(|| census::owner(&pod));
        let mut seen = self.seen.borrow_mut();
        if state == PodState::NotOurs {
            seen.remove(&name);
        } else {
            seen.insert(name, Seen { state, owner });
        }
        drop(seen);
        self.news.notify_one();
    }

    fn listed(&mut self) {
        let mut seen = self.seen.borrow_mut();
        for name in std::mem::take(&mut self.listing).into_keys() {
            seen.remove(&name);
        }
        self.news.notify_one();
    }

    fn deleted(&mut self, object: DynamicObject) {
        self.seen.borrow_mut().remove(&object.name_any());
        self.news.notify_one();
    }

    fn trouble(&mut self, problem: &str) {
        self.trouble.report(problem);
    }

    fn recovered(&mut self) {
        self.trouble.clear();
    }
}
