//! A policy ConfigMap: its name, and what is made of what it holds.
//!
//! Whatever comes, what is in force stays in force until something better is there: a broken policy, a ConfigMap without
//! the key and a deleted one are reported as problems, and are not an empty policy. The ConfigMap is optional: one that has
//! never existed is not a problem.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::ConfigMap;
use tracing::info;

use super::cache::{Cache, Keeper, Kept};
use super::{Publisher, TEXT_LIMIT_BYTES, compile, compile_override};
use crate::in_force::SourceKind;

/// The key of the policy.
pub const POLICY_KEY: &str = "policy.yaml";

/// The key of the override.
pub const OVERRIDE_KEY: &str = "override.yaml";

/// Which ConfigMap: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
        };
        match text.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Ok(Name { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            Some(_) | None => Err(format!("{text:?} is not NAMESPACE/NAME of a ConfigMap")),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.namespace, self.name)
    }
}

/// The text of a key, if it has one.
///
/// # Errors
///
/// It is too large, or no text.
pub fn text_of<'c>(object: &'c ConfigMap, key: &str) -> Result<Option<&'c str>, String> {
    let binary = object.binary_data.as_ref().is_some_and(|binary| binary.contains_key(key));
    match object.data.as_ref().and_then(|data| data.get(key)) {
        Some(text) if text.len() > TEXT_LIMIT_BYTES => {
            Err(format!("is {} bytes, at most {TEXT_LIMIT_BYTES} are read", text.len()))
        }
        None if binary => Err("stands in binaryData, expected UTF-8 text in data".to_owned()),
        found => Ok(found.map(String::as_str)),
    }
}

/// Where what a ConfigMap holds goes: in force, and to the cache. Policy and override each for itself.
pub(super) struct Receiver {
    name: Name,
    publisher: Publisher,
    kept: Kept,
    keeper: Option<Keeper>,
    /// The version that was looked at last: a list may bring it again.
    seen: Option<String>,
}

impl Receiver {
    /// Runs inside a runtime. The cache comes with what it held at the start: a broken edit does not take that away.
    pub(super) fn new(name: Name, publisher: Publisher, cache: Option<(Cache, Kept)>) -> Receiver {
        let (keeper, kept) = match cache {
            Some((cache, kept)) => (Some(Keeper::start(cache, name.clone(), publisher.clone())), kept),
            None => (None, Kept::default()),
        };
        Receiver { name, publisher, kept, keeper, seen: None }
    }

    /// The ConfigMap as it is now.
    pub(super) fn found(&mut self, found: ConfigMap) {
        self.publisher.delivered_from_cluster();
        self.publisher.watched().set_exists(true);
        let revision = found.metadata.resource_version.clone().unwrap_or_default();
        if !revision.is_empty() && self.seen.as_ref() == Some(&revision) {
            return;
        }
        self.seen = Some(revision.clone());
        let before = self.kept.clone();
        self.over(text_of(&found, OVERRIDE_KEY));
        self.policy(text_of(&found, POLICY_KEY), &revision);
        if let Some(keeper) = &self.keeper
            && self.kept != before
        {
            keeper.keep(&self.kept);
        }
    }

    /// There is none, and why it is known. That is a problem only if there was one before.
    pub(super) fn absent(&mut self, why: &str) {
        self.seen = None;
        let known = self.publisher.watched().exists() == Some(false);
        self.publisher.watched().set_exists(false);
        if self.has_existed() {
            if self.publisher.refused()[0].as_deref() != Some(why) {
                self.publisher.refused_policy(&self.name.to_string(), why.to_owned());
            }
        } else if !known {
            info!(configmap = %self.name, "No such ConfigMap yet; the built-in defaults are in force");
        }
    }

    /// Whether there is a sign of an earlier ConfigMap: this process saw it, an earlier one of this pod kept what was in it,
    /// or a file is in force, which usually is the ConfigMap, mounted.
    fn has_existed(&self) -> bool {
        self.publisher.is_from_cluster()
            || self.kept != Kept::default()
            || self.publisher.current().source != SourceKind::Builtin
    }

    fn over(&mut self, text: Result<Option<&str>, String>) {
        let compiled = text.and_then(|text| Ok((compile_override(text.unwrap_or_default())?, text)));
        match compiled {
            Ok(((over, warnings), text)) => {
                self.kept.over = over.is_some().then(|| text.unwrap_or_default().to_owned());
                if self.publisher.current().over == over {
                    self.publisher.override_is_good();
                } else {
                    self.publisher.over(over, &warnings);
                }
            }
            Err(reason) => self.publisher.refused_override(&format!("{} {OVERRIDE_KEY}", self.name), reason),
        }
    }

    fn policy(&mut self, text: Result<Option<&str>, String>, revision: &str) {
        let from = format!("{} {POLICY_KEY}", self.name);
        let text = match text {
            Ok(Some(text)) => text,
            Ok(None) => {
                let reason = format!("the ConfigMap has no key {POLICY_KEY}");
                return self.publisher.refused_policy(&self.name.to_string(), reason);
            }
            Err(reason) => return self.publisher.refused_policy(&from, format!("{POLICY_KEY} {reason}")),
        };
        let now = self.publisher.current();
        match compile(text) {
            Ok((policy, warnings)) => {
                if self.kept.policy.as_deref() != Some(text) {
                    self.kept = Kept {
                        revision: revision.to_owned(),
                        policy: Some(text.to_owned()),
                        over: self.kept.over.take(),
                    };
                }
                if policy.hash() == now.policy.hash() && now.source == SourceKind::ConfigMap {
                    return self.publisher.policy_is_good();
                }
                let place = format!("{} resourceVersion {revision}", self.name);
                self.publisher.policy(policy, &warnings, SourceKind::ConfigMap, place);
            }
            Err(reason) => self.publisher.refused_policy(&from, reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::metrics::catalog::Audience;
    use crate::policy::Mode;

    fn config_map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    fn receiver() -> (Receiver, Publisher) {
        let metrics = Arc::new(Metrics::new(prometheus_client::metrics::counter::Counter::default()));
        let publisher = Publisher::new(metrics).0;
        (Receiver::new("shop/policy".parse().expect("valid"), publisher.clone(), None), publisher)
    }

    #[test]
    fn a_name_is_a_namespace_and_a_name() {
        let name: Name = "shop/policy".parse().expect("valid");
        assert_eq!(name.to_string(), "shop/policy");
        for wrong in ["policy", "/policy", "shop/", "shop/po/licy", "Shop/policy", ""] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_good_edit_is_in_force_and_a_broken_one_keeps_the_last_good_one() {
        let (mut receiver, publisher) = receiver();
        assert!(!publisher.is_from_cluster());
        receiver.found(config_map(&[(POLICY_KEY, "mode: Observe")]));
        assert!(publisher.is_from_cluster());
        assert_eq!(publisher.current().policy.mode(), Mode::Observe);
        assert_eq!(publisher.current().source, SourceKind::ConfigMap);
        for broken in [config_map(&[(POLICY_KEY, "mode: Observed")]), config_map(&[("other", "")])] {
            receiver.found(broken);
            assert_eq!(publisher.current().policy.mode(), Mode::Observe);
            assert!(publisher.refused()[0].is_some());
        }
        receiver.found(config_map(&[(POLICY_KEY, "mode: Observe")]));
        assert_eq!(publisher.refused(), [None, None], "what is in force already mends what was refused");
        receiver.found(config_map(&[(POLICY_KEY, "mode: Enforce")]));
        assert_eq!(publisher.current().policy.mode(), Mode::Enforce);
    }

    #[test]
    fn an_override_works_beside_a_broken_policy_and_goes_with_its_key() {
        let (mut receiver, publisher) = receiver();
        let until = "2026-01-01T00:00:00Z";
        let over = format!("answer: Allow\nuntil: {until:?}\nreason: incident");
        receiver.found(config_map(&[(POLICY_KEY, "mode: wrong"), (OVERRIDE_KEY, &over)]));
        assert_eq!(
            publisher.current().over.as_ref().map(|over| over.until_text().to_owned()),
            Some(until.to_owned())
        );
        receiver.found(config_map(&[(POLICY_KEY, "")]));
        assert_eq!(publisher.current().over, None);
    }

    #[test]
    fn what_is_too_large_or_no_text_is_refused_by_its_name_and_the_rest_is_used() {
        let (mut receiver, publisher) = receiver();
        let large = format!("mode: Observe # {}", "x".repeat(TEXT_LIMIT_BYTES));
        receiver.found(config_map(&[(POLICY_KEY, &large)]));
        let reason = publisher.refused()[0].clone().expect("refused");
        assert!(reason.starts_with("policy.yaml is 1048") && reason.contains("at most 1048576"), "{reason}");
        let mut binary = config_map(&[(OVERRIDE_KEY, "")]);
        binary.binary_data = Some([(POLICY_KEY.to_owned(), k8s_openapi::ByteString(vec![255]))].into());
        receiver.found(binary.clone());
        let reason = publisher.refused()[0].clone().expect("refused");
        assert!(reason.starts_with("policy.yaml stands in binaryData"), "{reason}");
        assert_eq!(publisher.current().source, SourceKind::Builtin);
        // Beside a text, what else is there is nobody's business.
        binary.data = Some([(POLICY_KEY.to_owned(), "mode: Observe".to_owned())].into());
        receiver.found(binary);
        assert_eq!(publisher.refused(), [None, None]);
        assert_eq!(publisher.current().policy.mode(), Mode::Observe);
    }

    #[test]
    fn the_same_version_is_looked_at_once_and_a_config_map_made_again_is_looked_at() {
        let (mut receiver, publisher) = receiver();
        let mut first = config_map(&[(POLICY_KEY, "mode: Observe")]);
        first.metadata.resource_version = Some("7".to_owned());
        receiver.found(first.clone());
        assert_eq!(publisher.current().revision, "shop/policy resourceVersion 7");
        let mut other = config_map(&[(POLICY_KEY, "mode: Enforce")]);
        other.metadata.resource_version = Some("7".to_owned());
        receiver.found(other.clone());
        assert_eq!(publisher.current().policy.mode(), Mode::Observe);
        receiver.absent("the ConfigMap was deleted");
        assert_eq!(publisher.refused()[0].as_deref(), Some("the ConfigMap was deleted"));
        assert_eq!(publisher.current().policy.mode(), Mode::Observe, "the last good one stays");
        receiver.found(other);
        assert_eq!(publisher.current().policy.mode(), Mode::Enforce);
        assert_eq!(publisher.refused(), [None, None]);
    }

    /// Failed reloads, and whether the last one succeeded, as exposed.
    fn reloads(publisher: &Publisher) -> [String; 2] {
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        let text = publisher.metrics.text(Audience::All, &publisher.current(), (0, 0), epoch);
        ["policy_reload_failures_total ", "policy_last_reload_successful "].map(|name| {
            let value =
                text.lines().find_map(|line| line.strip_prefix("callback_guard_")?.strip_prefix(name));
            value.expect("it is exposed").to_owned()
        })
    }

    #[test]
    fn a_config_map_that_has_never_existed_is_no_problem_and_a_deleted_one_is() {
        let (mut receiver, publisher) = receiver();
        assert_eq!(publisher.watched().exists(), None);
        for _ in 0..2 {
            receiver.absent("there is no such ConfigMap");
            assert_eq!(publisher.watched().exists(), Some(false));
            assert_eq!(
                (publisher.refused(), reloads(&publisher)),
                ([None, None], ["0", "1"].map(String::from))
            );
        }
        receiver.found(config_map(&[(POLICY_KEY, "mode: Observe")]));
        assert_eq!(publisher.watched().exists(), Some(true));
        receiver.absent("the ConfigMap was deleted");
        assert_eq!(publisher.watched().exists(), Some(false));
        assert_eq!(publisher.refused()[0].as_deref(), Some("the ConfigMap was deleted"));
        assert_eq!(reloads(&publisher), ["1", "0"]);
    }

    #[test]
    fn a_sign_of_an_earlier_config_map_makes_its_absence_a_problem() {
        let broken = |receiver: &mut Receiver| receiver.found(config_map(&[(POLICY_KEY, "mode: Wrong")]));
        let kept = |receiver: &mut Receiver| receiver.kept.policy = Some("mode: Wrong".to_owned());
        let file = |receiver: &mut Receiver| {
            let (policy, warnings) = compile("mode: Observe").expect("valid");
            receiver.publisher.policy(policy, &warnings, SourceKind::File, "/policy.yaml".to_owned());
        };
        for sign in [broken as fn(&mut Receiver), kept, file] {
            let (mut receiver, publisher) = receiver();
            sign(&mut receiver);
            receiver.absent("there is no such ConfigMap");
            assert_eq!(publisher.refused()[0].as_deref(), Some("there is no such ConfigMap"));
        }
    }

    #[test]
    fn what_is_to_be_kept_is_the_last_good_of_each() {
        let (mut receiver, _) = receiver();
        let over = "answer: Allow\nuntil: \"2026-01-01T00:00:00Z\"\nreason: incident";
        receiver.found(config_map(&[(POLICY_KEY, "mode: Observe"), (OVERRIDE_KEY, over)]));
        let good = receiver.kept.clone();
        assert_eq!((good.policy.as_deref(), good.over.as_deref()), (Some("mode: Observe"), Some(over)));
        receiver.found(config_map(&[(POLICY_KEY, "mode: Wrong"), (OVERRIDE_KEY, "answer: Wrong")]));
        assert_eq!(receiver.kept, good);
        receiver.found(config_map(&[]));
        assert_eq!(receiver.kept, Kept { over: None, ..good }, "an override that is taken away is");
    }
}
