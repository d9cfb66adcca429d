//! What a policy decides about one callback: an answer given here, or a plan for asking the app.

use std::num::{NonZeroI32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::after::After;
use super::overrides::Override;
use super::rule::Match;
use super::{CrashingFields, Delivery, duration};
use crate::breaker::BreakerSpec;
use crate::callback::subject::Subject;
use crate::cause::Cause;

/// What a policy says is answered: `Allow` is what OpenIM's configuration calls `failedContinue: true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// Let OpenIM go on, with the command's safe default.
    Allow,
    /// Have OpenIM refuse, with the text of the rule.
    Deny,
}

impl Fallback {
    /// As written in a policy.
    pub const ALL: [(&'static str, Fallback); 2] = [("Allow", Fallback::Allow), ("Deny", Fallback::Deny)];

    /// As written in a policy.
    pub const fn label(self) -> &'static str {
        match self {
            Fallback::Allow => "Allow",
            Fallback::Deny => "Deny",
        }
    }

    pub(super) fn with(self, deny: &DenyText) -> Answer<'_> {
        match self {
            Fallback::Allow => Answer::Allow,
            Fallback::Deny => Answer::Deny(deny),
        }
    }
}

/// What a denial tells OpenIM's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyText {
    /// `errCode`, 5000 to 9999: OpenIM keeps those for apps.
    pub code: NonZeroI32,
    /// `errMsg`, at most 1,024 bytes.
    pub message: String,
    /// `errDlt`, at most 1,024 bytes.
    pub detail: String,
}

impl DenyText {
    pub(super) fn builtin() -> DenyText {
        DenyText {
            code: NonZeroI32::new(5100).expect("5100 is not 0"),
            message: "temporarily unavailable".to_owned(),
            detail: String::new(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "errCode": self.code.get(), "errMsg": self.message, "errDlt": self.detail })
    }
}

/// What is answered without, or instead of, the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'p> {
    /// The command's safe default.
    Allow,
    /// A denial with this text.
    Deny(&'p DenyText),
}

/// A fallback for each cause; the precedence of rule and defaults is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fallbacks([Fallback; Cause::ALL.len()]);

impl Fallbacks {
    pub(super) fn all(fallback: Fallback) -> Fallbacks {
        Fallbacks([fallback; Cause::ALL.len()])
    }

    pub(super) fn set(&mut self, cause: Cause, fallback: Fallback) {
        self.0[cause as usize] = fallback;
    }

    pub(super) fn of(&self, cause: Cause) -> Fallback {
        self.0[cause as usize]
    }

    fn to_json(&self) -> Value {
        let entry = |cause: &Cause| (cause.label().to_owned(), Value::from(self.of(*cause).label()));
        Value::Object(Cause::ALL.iter().map(entry).collect())
    }
}

/// One rule of a policy, with all it takes from the defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The name as written; `rules[3]` where the fourth has none; `default` for the one that is always the
    /// last.
    pub name: Arc<str>,
    pub(super) matches: Match,
    pub(super) answer: Option<Fallback>,
    pub(super) timeout: Duration,
    pub(super) fallbacks: Fallbacks,
    pub(super) deny: DenyText,
    pub(super) breaker: Option<BreakerSpec>,
    pub(super) max_in_flight: Option<NonZeroUsize>,
    pub(super) crashing_fields: CrashingFields,
    pub(super) after: After,
}

impl Rule {
    /// Why the rule is not for a callback: the first key of its `match` that does not fit, with what it asks for. `None`
    /// where it is.
    pub fn misfit(&self, subject: &Subject<'_>) -> Option<(&'static str, Value)> {
        let key = self.matches.misfit(subject)?;
        Some((key, self.matches.to_json()[key].take()))
    }

    /// What the rule answers without asking the app, if it does.
    pub fn answer(&self) -> Option<Answer<'_>> {
        self.answer.map(|answer| answer.with(&self.deny))
    }

    /// How long the app has, 10 ms to `callerTimeout` - 200 ms; as written, whatever the mode.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What a before-command is answered for a cause when no override says otherwise.
    pub fn fallback(&self, cause: Cause) -> Answer<'_> {
        self.fallbacks.of(cause).with(&self.deny)
    }

    /// The text of its denials.
    pub fn deny(&self) -> &DenyText {
        &self.deny
    }

    /// Its breaker, if it has one.
    pub fn breaker(&self) -> Option<&BreakerSpec> {
        self.breaker.as_ref()
    }

    /// How many of its callbacks may be in flight at once; `None` leaves that to the process's bound.
    pub fn max_in_flight(&self) -> Option<usize> {
        self.max_in_flight.map(NonZeroUsize::get)
    }

    /// What becomes of the fields of an answer that end a service of OpenIM; as written, whatever the mode.
    pub fn crashing_fields(&self) -> CrashingFields {
        self.crashing_fields
    }

    /// How the events of its after-commands are delivered.
    pub fn after(&self) -> &After {
        &self.after
    }

    pub(super) fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("name".to_owned(), json!(&*self.name));
        json.insert("match".to_owned(), self.matches.to_json());
        json.insert("deny".to_owned(), self.deny.to_json());
        if let Some(answer) = self.answer {
            json.insert("answer".to_owned(), json!(answer.label()));
            return Value::Object(json);
        }
        json.insert("timeout".to_owned(), json!(duration::display(self.timeout)));
        json.insert("fallbackFor".to_owned(), self.fallbacks.to_json());
        json.insert("maxInFlight".to_owned(), json!(self.max_in_flight().unwrap_or(0)));
        json.insert("crashingFields".to_owned(), json!(self.crashing_fields.label()));
        json.insert("after".to_owned(), self.after.to_json());
        if let Some(breaker) = &self.breaker {
            json.insert(
                "breaker".to_owned(),
                json!({
                    "failureRate": breaker.failure_rate,
                    "minimumCallbacks": breaker.minimum_callbacks,
                    "window": duration::display(breaker.window),
                    "openFor": duration::display(breaker.open_for),
                }),
            );
        }
        Value::Object(json)
    }
}

/// What is to be done with a callback.
#[derive(Clone, Debug)]
pub enum Decision<'p> {
    /// Answer it here; the app is not asked.
    Answer {
        /// What is answered.
        answer: Answer<'p>,
        /// Who says so.
        by: AnsweredBy<'p>,
    },
    /// Ask the app, within the bounds of the plan.
    Ask(Plan<'p>),
}

/// Who answers in place of the app.
#[derive(Clone, Copy, Debug)]
pub enum AnsweredBy<'p> {
    /// A rule with `answer`.
    Rule(&'p Rule),
    /// An override with `answer`.
    Override(&'p Override),
}

/// How to ask the app about one callback, and what to answer when it does not.
#[derive(Clone, Debug)]
pub struct Plan<'p> {
    /// The first rule that matched.
    pub rule: &'p Rule,
    /// Its place in [`Policy::rules`](super::Policy::rules).
    pub rule_index: usize,
    /// How long the app has from the end of the request's head.
    pub timeout: Duration,
    /// Whether what the app says travels on as it is. [`Plan::fallback`] tells what would have been given.
    pub observe: bool,
    /// What the rule would have answered by itself, had the mode not been `Observe`.
    pub would_answer: Option<Answer<'p>>,
    /// The override that this callback falls under: its `fallback`, or for a delivery in the background its `answer`, which
    /// pauses it.
    pub over: Option<&'p Override>,
    /// Whether nobody reads the answer, so that a fallback is always the plain success.
    pub(super) after: bool,
}

impl<'p> Plan<'p> {
    /// What is answered for a cause. Of several sources the first that says something wins: the override,
    /// the rule's `fallbackFor`, its `fallback`, the defaults' `fallbackFor`, their `fallback`. The answer
    /// to an after-command is read by nobody but servers of before v3.7, which fail what was done already
    /// when it is a refusal: it is always `Allow`.
    pub fn fallback(&self, cause: Cause) -> Answer<'p> {
        if self.after {
            return Answer::Allow;
        }
        let fallback =
            self.over.and_then(Override::fallback).unwrap_or_else(|| self.rule.fallbacks.of(cause));
        fallback.with(&self.rule.deny)
    }

    /// How to deliver the event in the background, if that is how it is delivered: OpenIM is then answered at once.
    pub fn background(&self) -> Option<&'p After> {
        let background = self.after && !self.observe && self.rule.after.delivery == Delivery::Background;
        background.then_some(&self.rule.after)
    }

    /// The breaker to ask for leave, if any; none acts in `Observe`.
    pub fn breaker(&self) -> Option<&'p BreakerSpec> {
        self.rule.breaker.as_ref().filter(|_| !self.observe)
    }

    /// What becomes of the fields of an answer that end a service of OpenIM; in `Observe` they pass.
    pub fn crashing_fields(&self) -> CrashingFields {
        if self.observe { CrashingFields::Pass } else { self.rule.crashing_fields }
    }

    /// How many callbacks of the rule may be in flight, where it says so; no bound of a rule acts in
    /// `Observe`.
    pub fn max_in_flight(&self) -> Option<usize> {
        self.rule.max_in_flight().filter(|_| !self.observe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_fallback_of_its_own() {
        for (place, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, place);
            let mut fallbacks = Fallbacks::all(Fallback::Allow);
            fallbacks.set(cause, Fallback::Deny);
            let denied: Vec<_> =
                Cause::ALL.into_iter().filter(|other| fallbacks.of(*other) == Fallback::Deny).collect();
            assert_eq!(denied, [cause]);
        }
    }
}
