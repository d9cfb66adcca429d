//! A policy ConfigMap, watched through the API server.
//!
//! One object is watched by its name, which is all that the Role of a sidecar allows. A normal end of the watch is
//! taken up again at once; after an error the next try waits a random while, so that ten thousand sidecars do not come
//! back to a restarted API server together. Whatever happens, what is in force stays in force: a deleted ConfigMap is a
//! problem to be told, not an empty policy.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, utils::Backoff};
use kube::{Api, Client};
use tracing::{info, warn};

use super::{Publisher, api_server, compile, compile_override};
use crate::in_force::SourceKind;

/// The key of the policy.
pub const POLICY_KEY: &str = "policy.yaml";

/// The key of the override.
pub const OVERRIDE_KEY: &str = "override.yaml";

/// How long one watch lasts, in seconds, at random between these: an hour keeps ten thousand sidecars at three
/// re-watches a second, and the spread keeps them apart.
const WATCH_SECONDS: (u32, u32) = (3_000, 3_600);

/// The first and the longest wait after an error; the wait is a random part of it.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

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

/// Follows a ConfigMap for ever.
pub async fn follow(name: Name, publisher: Publisher) {
    let mut waits = Waits::default();
    loop {
        match api_server::client().await {
            Ok(client) => watch(client, &name, &publisher).await,
            Err(reason) => warn!(configmap = %name, reason, "The API server cannot be asked; trying again"),
        }
        publisher.watch_connected(false);
        tokio::time::sleep(waits.next().unwrap_or(WAITS.1)).await;
    }
}

async fn watch(client: Client, name: &Name, publisher: &Publisher) {
    let api: Api<ConfigMap> = Api::namespaced(client, &name.namespace);
    let (least, most) = WATCH_SECONDS;
    let seconds = least + (f64::from(most - least) * random()) as u32;
    let mut config = watcher::Config::default()
        .fields(&format!("metadata.name={}", name.name))
        .timeout(seconds)
        .any_semantic();
    config.page_size = None;
    let mut events = pin!(watcher::watcher(api, config).backoff(Waits::default()));
    let mut listed = None;
    let mut told = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if told.take().is_some() {
                    info!(configmap = %name, "The ConfigMap is watched again");
                }
                publisher.watch_connected(true);
                match event {
                    Event::Init => listed = None,
                    Event::InitApply(found) => listed = Some(found),
                    Event::InitDone => match listed.take() {
                        Some(found) => apply(name, found, publisher),
                        None => publisher
                            .refused_policy(&name.to_string(), "there is no such ConfigMap".to_owned()),
                    },
                    Event::Apply(found) => apply(name, found, publisher),
                    Event::Delete(_) => {
                        publisher.refused_policy(&name.to_string(), "the ConfigMap was deleted".to_owned());
                    }
                }
            }
            Err(error) => {
                publisher.watch_connected(false);
                // The same trouble again and again is told once.
                let reason = reason(&error);
                if told.as_ref() != Some(&reason) {
                    warn!(configmap = %name, reason, "The ConfigMap cannot be watched; what is in force stays");
                    told = Some(reason);
                }
            }
        }
    }
}

/// An error with all that is behind it: the outermost alone says only what was tried.
fn reason(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Puts what a ConfigMap holds in force, if it is any good; policy and override each for itself.
fn apply(name: &Name, found: ConfigMap, publisher: &Publisher) {
    publisher.delivered_from_cluster();
    let revision = found.metadata.resource_version.unwrap_or_default();
    let data: BTreeMap<String, String> = found.data.unwrap_or_default();
    let now = publisher.current();
    match compile_override(data.get(OVERRIDE_KEY).map_or("", String::as_str)) {
        Ok((over, _)) if now.over == over => publisher.override_is_good(),
        Ok((over, warnings)) => publisher.over(over, &warnings),
        Err(reason) => publisher.refused_override(&format!("{name} {OVERRIDE_KEY}"), reason),
    }
    let Some(text) = data.get(POLICY_KEY) else {
        return publisher.refused_policy(&name.to_string(), format!("the ConfigMap has no key {POLICY_KEY}"));
    };
    match compile(text) {
        Ok((policy, _)) if policy.hash() == now.policy.hash() && now.source == SourceKind::ConfigMap => {
            publisher.policy_is_good();
        }
        Ok((policy, warnings)) => {
            publisher.policy(
                policy,
                &warnings,
                SourceKind::ConfigMap,
                format!("{name} resourceVersion {revision}"),
            );
        }
        Err(reason) => publisher.refused_policy(&format!("{name} {POLICY_KEY}"), reason),
    }
}

/// A wait that doubles up to its bound; each a random part of it ("full jitter").
#[derive(Debug)]
struct Waits(Duration);

impl Default for Waits {
    fn default() -> Waits {
        Waits(WAITS.0)
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0.mul_f64(random());
        self.0 = (self.0 * 2).min(WAITS.1);
        Some(wait)
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        *self = Waits::default();
    }
}

/// A number from 0 to 1, different for each process and call; for spreading, not for secrets.
fn random() -> f64 {
    RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::policy::Mode;

    fn config_map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    fn publisher() -> Publisher {
        Publisher::new(Arc::new(Metrics::new(prometheus_client::metrics::counter::Counter::default()))).0
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
        let (name, publisher): (Name, _) = ("shop/policy".parse().expect("valid"), publisher());
        assert!(!publisher.is_from_cluster());
        apply(&name, config_map(&[(POLICY_KEY, "mode: Observe")]), &publisher);
        assert!(publisher.is_from_cluster());
        assert_eq!(publisher.current().policy.mode(), Mode::Observe);
        assert_eq!(publisher.current().source, SourceKind::ConfigMap);
        for broken in [config_map(&[(POLICY_KEY, "mode: Observed")]), config_map(&[("other", "")])] {
            apply(&name, broken, &publisher);
            assert_eq!(publisher.current().policy.mode(), Mode::Observe);
            assert!(publisher.refused()[0].is_some());
        }
        apply(&name, config_map(&[(POLICY_KEY, "mode: Observe")]), &publisher);
        assert_eq!(publisher.refused(), [None, None], "what is in force already mends what was refused");
        apply(&name, config_map(&[(POLICY_KEY, "mode: Enforce")]), &publisher);
        assert_eq!(publisher.current().policy.mode(), Mode::Enforce);
    }

    #[test]
    fn an_override_works_beside_a_broken_policy_and_goes_with_its_key() {
        let (name, publisher): (Name, _) = ("shop/policy".parse().expect("valid"), publisher());
        let until = "2026-01-01T00:00:00Z";
        let over = format!("answer: Allow\nuntil: {until:?}\nreason: incident");
        apply(&name, config_map(&[(POLICY_KEY, "mode: wrong"), (OVERRIDE_KEY, &over)]), &publisher);
        assert_eq!(
            publisher.current().over.as_ref().map(|over| over.until_text().to_owned()),
            Some(until.to_owned())
        );
        apply(&name, config_map(&[(POLICY_KEY, "")]), &publisher);
        assert_eq!(publisher.current().over, None);
    }

    #[test]
    fn waits_grow_and_stay_within_their_bound() {
        let waits: Vec<_> = Waits::default().take(20).collect();
        assert!(waits[0] <= WAITS.0 && waits.iter().all(|wait| *wait <= WAITS.1), "{waits:?}");
    }
}
