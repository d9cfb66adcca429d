//! One object that is known by its name: what the watch has brought of it, or what a write has given back.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::rc::Rc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::findings::{About, Finding, Findings};
use super::write::is_older;
use crate::api_server::{Followed, Observer, Pool, Target, follow};

/// The reason of a finding about objects that cannot be watched.
pub(super) const NOT_WATCHED: &str = "NotWatched";

/// What is known of an object.
#[derive(Debug)]
pub(super) struct Kept<K> {
    target: Target,
    object: Rc<RefCell<Option<K>>>,
    listed: Rc<Cell<bool>>,
    /// Counts changes that somebody else made, or that were written here.
    version: Rc<Cell<u64>>,
}

impl<K> Kept<K>
where
    K: Clone + DeserializeOwned + Debug + Resource + 'static,
{
    /// Follows the object within `tasks`; `news` is notified of changes.
    pub(super) fn follow(
        target: Target,
        api: impl Fn(Client) -> Api<K> + 'static,
        (pool, findings, news): (&Pool, &Findings, &Rc<Notify>),
        tasks: &mut JoinSet<()>,
    ) -> Kept<K> {
        let kept = Kept {
            target: target.clone(),
            object: Rc::default(),
            listed: Rc::default(),
            version: Rc::default(),
        };
        let observer = Watching {
            object: Rc::clone(&kept.object),
            listed: Rc::clone(&kept.listed),
            version: Rc::clone(&kept.version),
            found: false,
            in_list: false,
            trouble: Trouble::new(&target, findings),
            news: Rc::clone(news),
        };
        let followed = Followed { target, labels: String::new(), page: Some(PAGE) };
        let pool = pool.clone();
        tasks.spawn_local(async move {
            follow(followed, pool, api, observer).await;
        });
        kept
    }

    /// What it is called.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether it is known if the object exists.
    pub(super) fn is_known(&self) -> bool {
        self.listed.get()
    }

    /// The object as it was seen last.
    pub(super) fn get(&self) -> Option<K> {
        self.object.borrow().clone()
    }

    /// A number that grows with each change.
    pub(super) fn version(&self) -> u64 {
        self.version.get()
    }

    /// What a write has given back.
    pub(super) fn wrote(&self, object: K) {
        take(&self.object, &self.version, Some(object), false);
    }
}

/// Objects in one page of a list.
pub(super) const PAGE: u32 = 50;

/// `listed`: a list brought it, which is not older than what was seen, whatever its version says: etcd may have been restored from a
/// backup.
fn take<K: Resource>(known: &RefCell<Option<K>>, version: &Cell<u64>, object: Option<K>, listed: bool) {
    let mut known = known.borrow_mut();
    let same = match (known.as_ref(), object.as_ref()) {
        (Some(known), Some(new)) => {
            !listed && is_older(new.meta(), known.meta()) || same_version(new.meta(), known.meta())
        }
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    if !same {
        *known = object;
        version.set(version.get() + 1);
    }
}

fn same_version(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    one.uid == other.uid && one.resource_version.is_some() && one.resource_version == other.resource_version
}

struct Watching<K> {
    object: Rc<RefCell<Option<K>>>,
    listed: Rc<Cell<bool>>,
    version: Rc<Cell<u64>>,
    found: bool,
    in_list: bool,
    trouble: Trouble,
    news: Rc<Notify>,
}

impl<K: Resource + Clone> Observer<K> for Watching<K> {
    fn listing(&mut self) {
        (self.found, self.in_list) = (false, true);
    }

    fn found(&mut self, object: K) {
        self.found = true;
        take(&self.object, &self.version, Some(object), self.in_list);
        self.news.notify_one();
    }

    fn listed(&mut self) {
        self.in_list = false;
        if !self.found {
            take(&self.object, &self.version, None, true);
        }
        self.listed.set(true);
        self.news.notify_one();
    }

    fn deleted(&mut self, object: K) {
        // Not one that was made again meanwhile.
        let same = self.object.borrow().as_ref().is_none_or(|known| known.uid() == object.uid());
        if same {
            take(&self.object, &self.version, None, true);
        }
        self.news.notify_one();
    }

    fn trouble(&mut self, problem: &str) {
        self.trouble.report(problem);
    }

    fn recovered(&mut self) {
        self.trouble.clear();
    }
}

/// The finding that objects cannot be watched.
#[derive(Debug)]
pub(super) struct Trouble {
    about: About,
    findings: Findings,
}

impl Trouble {
    /// None yet.
    pub(super) fn new(target: &Target, findings: &Findings) -> Trouble {
        Trouble { about: about(target), findings: findings.clone() }
    }

    /// They cannot be watched.
    pub(super) fn report(&self, problem: &str) {
        let (about, text) = (self.about.clone(), problem.to_owned());
        self.findings.report(Finding {
            about,
            reason: NOT_WATCHED,
            text,
            urgent: true,
            event: false,
            over: None,
        });
    }

    /// They can.
    pub(super) fn clear(&self) {
        self.findings.clear(&self.about, NOT_WATCHED);
    }
}

/// The object, for findings and Events.
pub(super) fn about(target: &Target) -> About {
    let api_version = match target.group {
        "" => "v1".to_owned(),
        group => format!("{group}/v1"),
    };
    About {
        api_version,
        kind: target.kind.to_owned(),
        namespace: target.namespace.clone().unwrap_or_default(),
        name: target.name.clone().unwrap_or_default(),
        uid: None,
    }
}
