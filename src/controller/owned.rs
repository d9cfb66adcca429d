//! An object that the controller makes and keeps as it should be: what is known of it, whose it is, and how it is written.

use std::fmt::Debug;
use std::rc::Rc;

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::findings::{About, Finding, Findings};
use super::kept::{Kept, about};
use super::write::{Base, NotWritten, Retry, Writer, is_ours, writers};
use crate::api_server::Target;

/// The reason of a finding about an object of somebody else.
const FOREIGN: &str = "ForeignObject";
/// The reason of a finding about a write that failed.
pub(super) const NOT_WRITTEN: &str = "NotWritten";

/// A ConfigMap.
pub(super) fn config_map(namespace: &str, name: &str) -> Target {
    core("ConfigMap", "configmaps", namespace, name)
}

/// A Secret.
pub(super) fn secret(namespace: &str, name: &str) -> Target {
    core("Secret", "secrets", namespace, name)
}

fn core(kind: &'static str, resource: &'static str, namespace: &str, name: &str) -> Target {
    Target { kind, group: "", resource, namespace: Some(namespace.to_owned()), name: Some(name.to_owned()) }
}

/// An object that is there or not, and the right to make it.
#[derive(Debug)]
pub(super) struct Owned<K> {
    kept: Kept<K>,
    findings: Findings,
    writer: Writer,
    retry: Retry,
    seen: u64,
    /// What to do about an object of somebody else that has this name.
    remedy: String,
}

/// How an object stands.
#[derive(Debug)]
pub(super) enum Found<K> {
    /// It is not known yet.
    Unknown,
    /// There is none.
    Absent,
    /// Somebody else made it, which was reported.
    Foreign,
    /// It is the controller's.
    Ours(Box<K>),
}

impl<K> Owned<K>
where
    K: Clone
        + DeserializeOwned
        + Debug
        + Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + 'static,
{
    /// Follows the object within `tasks`; `news` is notified of changes.
    pub(super) fn follow(
        target: Target,
        remedy: &str,
        writer: &Writer,
        (findings, news): (&Findings, &Rc<Notify>),
        tasks: &mut JoinSet<()>,
    ) -> Owned<K> {
        let namespace = target.namespace.clone().unwrap_or_default();
        let api = move |client| Api::namespaced(client, &namespace);
        Owned {
            kept: Kept::follow(target, api, (&writer.pool, findings, news), tasks),
            findings: findings.clone(),
            writer: writer.clone(),
            retry: Retry::default(),
            seen: 0,
            remedy: remedy.to_owned(),
        }
    }

    /// How it stands now, and whether that has changed since the last look.
    pub(super) fn look(&mut self) -> (Found<K>, bool) {
        if !self.kept.is_known() {
            return (Found::Unknown, false);
        }
        let changed = self.kept.version() != self.seen;
        if changed {
            self.seen = self.kept.version();
            self.retry.changed();
        }
        let found = match self.kept.get() {
            None => Found::Absent,
            Some(object) if is_ours(object.meta()) => Found::Ours(Box::new(object)),
            Some(object) => {
                let text = format!(
                    "{} was made by {}, and this name is reserved for callback-guard, so it is left as it is: {}",
                    self.about(),
                    writers(object.meta()),
                    self.remedy
                );
                self.problem(FOREIGN, Some(text));
                return (Found::Foreign, changed);
            }
        };
        self.problem(FOREIGN, None);
        (found, changed)
    }

    /// It is what it should be, so an earlier write has come through, whatever was heard of it.
    pub(super) fn is_good(&self) {
        self.problem(NOT_WRITTEN, None);
    }

    /// Whether it is as it was at the last look.
    pub(super) fn is_unchanged(&self) -> bool {
        self.kept.version() == self.seen
    }

    /// Whether a write may be tried now.
    pub(super) fn is_due(&self) -> bool {
        self.retry.is_due()
    }

    /// What was to be written could not be made: to be tried again later.
    pub(super) fn failed(&mut self) {
        self.retry.failed();
    }

    /// The object, for texts and Events.
    pub(super) fn about(&self) -> About {
        let mut about = about(self.kept.target());
        about.uid = self.kept.get().and_then(|object| object.uid());
        about
    }

    /// Reports what is wrong with the object, or that it is not.
    pub(super) fn problem(&self, reason: &'static str, text: Option<String>) {
        let about = self.about();
        let finding = text.map(|text| Finding {
            about: about.clone(),
            reason,
            text,
            urgent: true,
            event: true,
            over: None,
        });
        self.findings.set(&about, reason, finding);
    }

    /// Applies the object, which must be absent or the controller's. A failure is reported, and tried again later.
    pub(super) async fn write(&mut self, mut object: Value) -> Option<K> {
        let about = about(self.kept.target());
        object["apiVersion"] = json!(about.api_version);
        object["kind"] = json!(about.kind);
        let seen = self.kept.get();
        let base = seen.as_ref().map_or(Base::Absent, |seen| Base::Seen(seen.meta()));
        let written = self.writer.apply::<K>(self.kept.target(), base, object).await;
        match written {
            Ok(written) => {
                self.kept.wrote(written.clone());
                self.retry.wrote();
                self.problem(NOT_WRITTEN, None);
                Some(written)
            }
            Err(NotWritten::Refused(problem)) => {
                self.retry.failed();
                self.problem(NOT_WRITTEN, Some(problem));
                None
            }
            Err(NotWritten::Changed | NotWritten::TermOver) => {
                self.retry.failed();
                None
            }
        }
    }
}
