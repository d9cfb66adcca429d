//! Writing: by server-side apply, within a term, and only on what is the controller's own.
//!
//! A write may arrive late, when another replica leads. So it says what it is based on, and the API server refuses it if that is no
//! longer so:
//!
//! | write | based on | refused if |
//! |---|---|---|
//! | change | the resourceVersion that was seen | the object has changed since |
//! | creation | a field manager that no other term has, and no force | the object exists with other content |
//!
//! Whose an object is, its managed fields say, and after a restore from a backup the label `managed-by`: one with neither
//! belongs to somebody else and is left alone.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::leadership::Term;
use crate::api_server::{Action, Door as _, Opened, Pool, Target, explain};

/// The field manager of changes; that of a creation begins with it.
pub(super) const MANAGER: &str = "callback-guard-controller";

/// How long a write may take: a webhook of the cluster may use 30 s of it.
pub(super) const WRITE: Duration = Duration::from_secs(35);

/// Why something was not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotWritten {
    /// The object has changed since it was seen: the watch brings the newer one.
    Changed,
    /// This replica may not write any more.
    TermOver,
    /// In a sentence.
    Refused(String),
}

/// Labels of every object that the controller makes.
pub(super) fn labels() -> Value {
    json!({"app.kubernetes.io/name": "callback-guard", "app.kubernetes.io/managed-by": MANAGER})
}

/// Whether the controller has applied the object, or it was restored from a backup of one that it has.
pub(super) fn is_ours(metadata: &ObjectMeta) -> bool {
    let managed_by = metadata.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/managed-by"));
    let is_labeled = managed_by.is_some_and(|name| name == MANAGER);
    is_labeled
        || metadata.managed_fields.iter().flatten().any(|entry| {
            let by_us = entry.manager.as_deref().and_then(|manager| manager.strip_prefix(MANAGER));
            by_us.is_some_and(|term| term.is_empty() || term.starts_with('.'))
                && entry.operation.as_deref() == Some("Apply")
        })
}

/// Who has written an object, for a text: the names of its field managers.
pub(super) fn writers(metadata: &ObjectMeta) -> String {
    let mut names: Vec<_> = metadata
        .managed_fields
        .iter()
        .flatten()
        .filter_map(|entry| entry.manager.as_deref())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { "an unknown client".to_owned() } else { names.join(", ") }
}

/// Whether one version of an object is older than another. Versions are numbers in every API server that stores in etcd; others
/// are not compared.
pub(super) fn is_older(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    let number = |metadata: &ObjectMeta| metadata.resource_version.as_deref()?.parse::<u64>().ok();
    one.uid == other.uid && number(one).zip(number(other)).is_some_and(|(one, other)| one < other)
}

/// What a write is based on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Base<'o> {
    /// There is no such object.
    Absent,
    /// The object as it was seen.
    Seen(&'o ObjectMeta),
    /// Whatever there is: it is nobody else's, and of no consequence.
    Any,
}

/// Writes within a term.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    /// The way to the API server.
    pub pool: Pool,
    /// The right to write.
    pub term: Term,
}

impl Writer {
    /// Applies an object, and returns what there is then.
    ///
    /// # Errors
    ///
    /// See [`NotWritten`].
    pub(super) async fn apply<K>(
        &self,
        target: &Target,
        base: Base<'_>,
        mut object: Value,
    ) -> Result<K, NotWritten>
    where
        K: Clone
            + DeserializeOwned
            + Debug
            + kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        let name = target.name.as_deref().unwrap_or_default();
        let namespace = target.namespace.as_deref().unwrap_or_default();
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["labels"] = merged(labels(), &object["metadata"]["labels"]);
        let params = match base {
            Base::Absent => PatchParams::apply(&format!("{MANAGER}.{}", self.term.name())),
            // What the controller made is put right, whoever has changed it.
            Base::Any => PatchParams::apply(MANAGER).force(),
            Base::Seen(seen) => {
                object["metadata"]["resourceVersion"] = json!(seen.resource_version);
                // Without it, one that was deleted meanwhile would be created.
                object["metadata"]["uid"] = json!(seen.uid);
                PatchParams::apply(MANAGER).force()
            }
        };
        let Some(write) = self.term.begin_write() else { return Err(NotWritten::TermOver) };
        let sent = async {
            let Opened { client, place, .. } = self.pool.open().await.map_err(NotWritten::Refused)?;
            let api: Api<K> = Api::namespaced(client, namespace);
            let done = api.patch(name, &params, &Patch::Apply(&object)).await;
            done.map_err(|error| {
                let changed = matches!(&error, kube::Error::Api(status) if status.code == 409);
                if changed {
                    return NotWritten::Changed;
                }
                NotWritten::Refused(explain(&error, &place, Action::Apply, target))
            })
        };
        tokio::pin!(sent);
        let begun = Instant::now();
        loop {
            // The term goes on meanwhile, if its Lease is renewed.
            let until = write.until().min(begun + WRITE);
            match timeout_at(until, &mut sent).await {
                Ok(done) => return done,
                Err(_) if write.until() > until && begun.elapsed() < WRITE => {}
                Err(_) => {
                    let seconds = begun.elapsed().as_secs();
                    let problem = format!("{target}: the API server did not answer within {seconds} s");
                    return Err(NotWritten::Refused(problem));
                }
            }
        }
    }
}

fn merged(mut one: Value, other: &Value) -> Value {
    if let (Some(one), Some(other)) = (one.as_object_mut(), other.as_object()) {
        one.extend(other.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    one
}

/// When to try again what has failed: after a second, then twice as long each time, up to five minutes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    not_before: Option<Instant>,
}

impl Retry {
    /// Whether it is time.
    pub(super) fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// It has failed.
    pub(super) fn failed(&mut self) {
        const LONGEST: Duration = Duration::from_secs(300);
        let wait = Duration::from_secs(1 << self.failures.min(9)).min(LONGEST);
        self.failures += 1;
        self.not_before = Some(Instant::now() + wait);
    }

    /// It was done: the next one comes no sooner than in a second, whoever undoes it.
    pub(super) fn wrote(&mut self) {
        *self = Retry { failures: 0, not_before: Some(Instant::now() + Duration::from_secs(1)) };
    }

    /// The object has changed, so what failed may work now.
    pub(super) fn changed(&mut self) {
        if self.failures > 0 {
            self.reset();
        }
    }

    /// Nothing has failed.
    pub(super) fn reset(&mut self) {
        *self = Retry::default();
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

    use super::*;

    fn written_by(manager: &str, operation: &str) -> ObjectMeta {
        let entry = ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            ..ManagedFieldsEntry::default()
        };
        ObjectMeta { managed_fields: Some(vec![entry]), ..ObjectMeta::default() }
    }

    #[test]
    fn what_somebody_else_made_is_not_ours_and_its_writers_are_named() {
        assert!(is_ours(&written_by(MANAGER, "Apply")));
        assert!(is_ours(&written_by("callback-guard-controller.1f", "Apply")));
        for foreign in [
            written_by("helm", "Apply"),
            written_by("callback-guard-controllers", "Apply"),
            written_by(MANAGER, "Update"),
            ObjectMeta::default(),
        ] {
            assert!(!is_ours(&foreign), "{foreign:?}");
        }
        assert_eq!(writers(&written_by("helm", "Apply")), "helm");
        assert_eq!(writers(&ObjectMeta::default()), "an unknown client");
    }

    #[test]
    fn versions_are_compared_only_if_both_are_numbers_of_the_same_object() {
        let version = |version: &str, uid: &str| ObjectMeta {
            resource_version: Some(version.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectMeta::default()
        };
        assert!(is_older(&version("9", "a"), &version("10", "a")));
        assert!(!is_older(&version("10", "a"), &version("9", "a")));
        assert!(!is_older(&version("9", "a"), &version("10", "b")), "made again, it begins anew");
        assert!(!is_older(&version("9", "a"), &version("x", "a")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_later_each_time_and_at_once_after_a_change() {
        let mut retry = Retry::default();
        assert!(retry.is_due());
        let mut waits = Vec::new();
        for _ in 0..12 {
            retry.failed();
            let begun = Instant::now();
            while !retry.is_due() {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            waits.push(begun.elapsed().as_secs());
        }
        assert_eq!(waits[..4], [1, 2, 4, 8]);
        assert_eq!(waits[9..], [300, 300, 300]);
        retry.failed();
        retry.reset();
        assert!(retry.is_due());
    }
}
