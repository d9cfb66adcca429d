//! What is in force: a policy, the override beside it, and the state that its rules keep while it changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::breaker::Breaker;
use crate::policy::{Override, Policy};

/// A policy with the running state of its rules. A callback takes one at its start and lives by it to its end.
#[derive(Debug)]
pub struct InForce {
    /// The policy.
    pub policy: Policy,
    /// The override, in time or past it.
    pub over: Option<Override>,
    /// Where the policy came from.
    pub source: SourceKind,
    /// What else is known of where it came from: a path and its place in time, or a resource version.
    pub revision: String,
    /// The state of each rule, in the policy's order.
    rules: Vec<RuleState>,
}

/// Where a policy came from: a label of `policy_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// None was given, or none was any good.
    Builtin,
    /// `--policy-file`
    File,
    /// `--policy-configmap`
    ConfigMap,
    /// `--policy-cache`: what came from the ConfigMap before this process began.
    Cache,
}

impl SourceKind {
    /// All of them, in the order of the documentation.
    pub const ALL: [SourceKind; 4] =
        [SourceKind::Builtin, SourceKind::File, SourceKind::ConfigMap, SourceKind::Cache];

    /// The word for metrics and pages.
    pub const fn label(self) -> &'static str {
        match self {
            SourceKind::Builtin => "builtin",
            SourceKind::File => "file",
            SourceKind::ConfigMap => "configmap",
            SourceKind::Cache => "cache",
        }
    }
}

/// What a rule keeps while the process runs.
#[derive(Clone, Debug)]
pub struct RuleState {
    /// Its breaker, where it has one.
    pub breaker: Option<Arc<Breaker>>,
    in_flight: Arc<AtomicUsize>,
}

/// A place among the callbacks in flight, given back when it is dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Slot<'c>(&'c AtomicUsize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a place, where fewer than `limit` are taken.
pub fn take_slot(count: &AtomicUsize, limit: usize) -> Option<Slot<'_>> {
    let below = |taken: usize| (taken < limit).then_some(taken + 1);
    count.try_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
    Some(Slot(count))
}

impl InForce {
    /// Puts a policy in the place of another. A rule that keeps its name keeps its count, and its breaker too where
    /// that is written as before.
    pub fn new(
        policy: Policy,
        over: Option<Override>,
        source: SourceKind,
        revision: String,
        before: Option<&InForce>,
    ) -> InForce {
        let kept: HashMap<&str, &RuleState> = before
            .into_iter()
            .flat_map(|before| before.policy.rules().iter().map(|rule| &*rule.name).zip(&before.rules))
            .collect();
        let rules = policy.rules().iter().map(|rule| {
            let old = kept.get(&*rule.name);
            let breaker = rule.breaker().map(|spec| {
                let same = old.and_then(|old| old.breaker.as_ref()).filter(|breaker| breaker.spec() == spec);
                same.cloned().unwrap_or_else(|| Arc::new(Breaker::new(*spec)))
            });
            RuleState { breaker, in_flight: old.map_or_else(Arc::default, |old| Arc::clone(&old.in_flight)) }
        });
        let rules = rules.collect();
        InForce { policy, over, source, revision, rules }
    }

    /// The built-in defaults.
    pub fn builtin() -> InForce {
        InForce::new(Policy::builtin(), None, SourceKind::Builtin, String::new(), None)
    }

    /// The state of the rule at this place.
    pub fn rule(&self, index: usize) -> &RuleState {
        &self.rules[index]
    }

    /// The breakers with the names of their rules.
    pub fn breakers(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Breaker>)> {
        let named = self.policy.rules().iter().map(|rule| &rule.name).zip(&self.rules);
        named.filter_map(|(name, state)| state.breaker.as_ref().map(|breaker| (name, breaker)))
    }
}

impl RuleState {
    /// Takes a place among the callbacks of this rule.
    pub fn take_slot(&self, limit: usize) -> Option<Slot<'_>> {
        take_slot(&self.in_flight, limit)
    }

    /// How many callbacks of this rule are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile;

    fn in_force(text: &str, before: Option<&InForce>) -> InForce {
        let (policy, _) = compile(text).expect("a valid policy");
        InForce::new(policy, None, SourceKind::File, String::new(), before)
    }

    const RULE: &str = "rules: [{name: a, match: {phase: [Before]}, breaker: {openFor: 5s}}]";

    #[test]
    fn a_breaker_outlives_an_edit_that_leaves_it_and_its_rule_s_name_as_they_were() {
        let first = in_force(RULE, None);
        let breaker = first.rule(0).breaker.clone().expect("a breaker");
        let same = in_force(&RULE.replace("a, match", "a, timeout: 1s, match"), Some(&first));
        assert!(Arc::ptr_eq(&breaker, same.rule(0).breaker.as_ref().expect("a breaker")));
        for edited in [RULE.replace("openFor: 5s", "openFor: 6s"), RULE.replace("name: a", "name: b")] {
            let other = in_force(&edited, Some(&first));
            assert!(!Arc::ptr_eq(&breaker, other.rule(0).breaker.as_ref().expect("a breaker")), "{edited}");
        }
    }

    #[test]
    fn places_in_flight_are_counted_across_an_edit() {
        let first = in_force(RULE, None);
        let slot = first.rule(0).take_slot(1).expect("free");
        let second = in_force(RULE, Some(&first));
        assert!(second.rule(0).take_slot(1).is_none());
        drop(slot);
        assert!(second.rule(0).take_slot(1).is_some());
    }
}
