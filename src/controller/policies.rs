//! Policy ConfigMaps of a namespace: a broken one is reported with the words of `check`, and so is that it was mended.
//!
//! The sidecars decide for themselves, by the same code: the last good policy stays in force there. This is for those who edit it
//! with `kubectl` and look at Events.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use super::Shared;
use super::certificates::Bundle;
use super::findings::{About, Finding};
use super::kept::{PAGE, Trouble, about};
use super::owned::{NOT_WRITTEN, config_map};
use super::write::{Base, NotWritten, Retry, Writer};
use crate::api_server::{Action, Door as _, Followed, Observer, Opened, Target, explain, follow};
use crate::policy::{self, overrides};
use crate::source::config_map::{OVERRIDE_KEY, POLICY_KEY, text_of};

/// The label of ConfigMaps that hold a policy, with the value `true`.
pub(super) const POLICY_LABEL: &str = "callback-guard.io/policy";

/// What a namespace without a policy gets: everything in it is a comment, so the built-in defaults are in force.
pub(super) const STARTER: &str = include_str!("starter.yaml");

/// The reason of a finding about a policy that cannot be used, and of the Event when it can.
const INVALID: &str = "InvalidPolicy";
const MENDED: &str = "PolicyMended";
/// The reason of a finding about a policy that is not looked at here.
const UNLABELED: &str = "UnlabeledPolicy";

/// Follows the labelled ConfigMaps of a namespace within `tasks`.
pub(super) fn follow_policies(shared: &Rc<Shared>, namespace: &str, tasks: &mut JoinSet<()>) {
    let target = Target { name: None, ..config_map(namespace, "") };
    let observer = Watching {
        trouble: Trouble::new(&target, &shared.findings),
        shared: Rc::clone(shared),
        namespace: namespace.to_owned(),
        broken: BTreeMap::new(),
        listing: BTreeMap::new(),
    };
    let (pool, namespace) = (shared.pool.clone(), namespace.to_owned());
    let followed = Followed { target, labels: format!("{POLICY_LABEL}=true"), page: Some(PAGE) };
    tasks.spawn_local(async move {
        follow(followed, pool, |client| Api::namespaced(client, &namespace), observer).await;
    });
}

struct Watching {
    shared: Rc<Shared>,
    namespace: String,
    trouble: Trouble,
    /// The broken ones, by name.
    broken: BTreeMap<String, About>,
    /// Those of them that a list has not brought yet.
    listing: BTreeMap<String, About>,
}

impl Watching {
    fn count(&self) {
        self.shared.metrics.policies_broken(&self.namespace, self.broken.len());
    }

    /// It is gone, so nothing is wrong with it.
    fn gone(&mut self, name: &str) {
        if let Some(about) = self.broken.remove(name) {
            self.shared.findings.drop_silently(&about, INVALID);
        }
        self.count();
    }
}

impl Observer<ConfigMap> for Watching {
    fn listing(&mut self) {
        self.listing = self.broken.clone();
    }

    fn found(&mut self, object: ConfigMap) {
        let name = object.name_any();
        self.listing.remove(&name);
        let about = About { uid: object.uid(), ..about(&config_map(&self.namespace, &name)) };
        self.shared.findings.clear(&about, UNLABELED);
        let problems = problems(&object);
        if problems.is_empty() {
            self.broken.remove(&name);
            self.shared.findings.clear(&about, INVALID);
        } else {
            self.broken.insert(name, about.clone());
            self.shared.findings.report(Finding {
                about,
                reason: INVALID,
                text: problems.join("\n"),
                urgent: true,
                event: true,
                over: Some((MENDED, "The policy is valid again".to_owned())),
            });
        }
        self.count();
    }

    fn listed(&mut self) {
        for name in std::mem::take(&mut self.listing).into_keys() {
            self.gone(&name);
        }
        self.count();
    }

    fn deleted(&mut self, object: ConfigMap) {
        self.gone(&object.name_any());
    }

    fn trouble(&mut self, problem: &str) {
        self.trouble.report(problem);
    }

    fn recovered(&mut self) {
        self.trouble.clear();
    }
}

/// What `check` says of a ConfigMap, a line for each problem.
fn problems(object: &ConfigMap) -> Vec<String> {
    let lines = |key: &str, found: policy::Problems| -> Vec<String> {
        found.iter().map(|problem| format!("{key}{}: {problem}", problem.place())).collect()
    };
    let of_key =
        |key: &str, compile: &dyn Fn(&str) -> Result<(), policy::Problems>, required: bool| match text_of(
            object, key,
        ) {
            Ok(None) if required => vec![format!("{key}: Required value: the ConfigMap has no such key")],
            Ok(None) => Vec::new(),
            Ok(Some(text)) => compile(text).err().map(|found| lines(key, found)).unwrap_or_default(),
            Err(reason) => vec![format!("{key}: {reason}")],
        };
    let of_override = |text: &str| overrides::compile(text, SystemTime::now()).map(drop);
    let mut problems = of_key(POLICY_KEY, &|text| policy::compile(text).map(drop), true);
    problems.extend(of_key(OVERRIDE_KEY, &of_override, false));
    problems
}

/// Creates the starter policy of a namespace, once.
pub(super) struct Starter {
    shared: Rc<Shared>,
    writer: Writer,
    target: Target,
    retry: Retry,
    looked: bool,
}

impl Starter {
    /// Nothing is done yet.
    pub(super) fn new(shared: &Rc<Shared>, namespace: &str, writer: &Writer) -> Starter {
        let target = config_map(namespace, shared.config.policy_configmap());
        let (shared, writer) = (Rc::clone(shared), writer.clone());
        Starter { shared, writer, target, retry: Retry::default(), looked: false }
    }

    /// The namespace was made again.
    pub(super) fn begin_anew(&mut self) {
        self.looked = false;
    }

    /// Looks once whether there is a policy, and creates one if the namespace has never had one of this controller.
    pub(super) async fn keep(&mut self, bundle: &mut Bundle) {
        if self.looked || !self.retry.is_due() {
            return;
        }
        let Some(had) = bundle.had_starter() else { return };
        let done = match self.find().await {
            Ok(Some(found)) => {
                self.report_unlabeled(&found);
                Ok(())
            }
            Ok(None) if had => Ok(()),
            Ok(None) => self.create().await,
            Err(problem) => Err(problem),
        };
        match done {
            Ok(()) => {
                self.looked = true;
                bundle.has_starter();
                self.shared.findings.clear(&about(&self.target), NOT_WRITTEN);
            }
            Err(problem) => {
                self.retry.failed();
                self.report(NOT_WRITTEN, problem);
            }
        }
    }

    fn report(&self, reason: &'static str, text: String) {
        let about = about(&self.target);
        self.shared.findings.report(Finding { about, reason, text, urgent: true, event: false, over: None });
    }

    async fn find(&self) -> Result<Option<ConfigMap>, String> {
        let find = async {
            let Opened { client, place, .. } = self.shared.pool.open().await?;
            let api: Api<ConfigMap> =
                Api::namespaced(client, self.target.namespace.as_deref().unwrap_or_default());
            let found = api.get_opt(self.target.name.as_deref().unwrap_or_default()).await;
            found.map_err(|error| explain(&error, &place, Action::Read, &self.target))
        };
        timeout(super::write::WRITE, find)
            .await
            .unwrap_or_else(|_| Err("the API server did not answer".to_owned()))
    }

    fn report_unlabeled(&self, found: &ConfigMap) {
        if found.labels().get(POLICY_LABEL).is_none_or(|value| value != "true") {
            let about = about(&self.target);
            let (namespace, name) = (&about.namespace, &about.name);
            let text = format!(
                "{about} has no label {POLICY_LABEL}: \"true\", so its problems are reported by the sidecars alone: kubectl -n \
                 {namespace} label configmap {name} {POLICY_LABEL}=true"
            );
            let finding = Finding { about, reason: UNLABELED, text, urgent: false, event: false, over: None };
            self.shared.findings.report(finding);
        }
    }

    async fn create(&self) -> Result<(), String> {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"labels": {POLICY_LABEL: "true"}},
            "data": {POLICY_KEY: STARTER},
        });
        match self.writer.apply::<ConfigMap>(&self.target, Base::Absent, object).await {
            Ok(_) => {
                info!(configmap = %self.target, "The starter policy is created: the built-in defaults, with what can be set");
                Ok(())
            }
            // Somebody has made one in this moment.
            Err(NotWritten::Changed) => Ok(()),
            Err(NotWritten::TermOver) => Err("this replica may not write any more".to_owned()),
            Err(NotWritten::Refused(problem)) => Err(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[test]
    fn the_starter_policy_is_valid_and_changes_nothing() {
        assert!(problems(&super::tests::config_map(&[(POLICY_KEY, STARTER)])).is_empty());
        let (starter, warnings) = policy::compile(STARTER).expect("valid");
        assert_eq!(warnings.iter().count(), 0);
        let mut starter = starter.to_json();
        let mut builtin = policy::Policy::builtin().to_json();
        for policy in [&mut starter, &mut builtin] {
            policy.as_object_mut().expect("an object").remove("hash");
        }
        assert_eq!(starter, builtin);
    }

    #[test]
    fn what_the_starter_policy_shows_can_be_uncommented_as_a_whole() {
        let (_, shown) = STARTER.split_once("you want to change.\n#\n").expect("the sentence before");
        let (shown, _) = shown.split_once("#\n# For a bad night").expect("the override after it");
        let text: String =
            shown.lines().map(|line| line.strip_prefix("# ").unwrap_or_default().to_owned() + "\n").collect();
        let compiled = policy::compile(&text);
        assert!(compiled.is_ok(), "{compiled:?}\n{text}");
        assert!(text.contains("rules:"), "{text}");
    }

    #[test]
    fn each_problem_is_named_with_its_key_and_place() {
        let broken =
            config_map(&[(POLICY_KEY, "defaults:\n  timeout: 0s\nmode: x"), (OVERRIDE_KEY, "answer: Allow")]);
        let found = problems(&broken);
        assert_eq!(
            found[0],
            "policy.yaml:2:12: defaults.timeout: Invalid value: \"0s\": must be at least 10ms"
        );
        assert!(found[1].starts_with("policy.yaml:3:7: mode: Unsupported value"), "{found:?}");
        assert!(found.iter().any(|line| line == "override.yaml:1:1: until: Required value"), "{found:?}");
        assert_eq!(
            problems(&config_map(&[])),
            ["policy.yaml: Required value: the ConfigMap has no such key"]
        );
        assert!(problems(&config_map(&[(POLICY_KEY, "")])).is_empty(), "the built-in defaults");
    }
}
