//! The policy: what is answered when the app is not, and which callbacks are not put to the app at all.
//!
//! [`compile`] is the only way from a text to a policy, for the file, the ConfigMap, the admission webhook
//! and `check` alike. It gives a policy that is whole, or every problem of the text at once; there is no
//! policy with something left to check. [`Policy::decide`] then says for one callback what is to be done
//! with it.

pub mod after;
pub mod duration;
pub mod overrides;

mod compile;
mod glob;
mod integers;
mod plan;
mod problem;
mod reader;
mod rule;
pub(crate) mod spec;
mod suggest;
pub(crate) mod timestamp;
mod warnings;

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

pub use after::After;
pub use overrides::Override;
pub use plan::{Answer, AnsweredBy, Decision, DenyText, Fallback, Plan, Rule};
pub use problem::{Problem, Problems, Warnings};
pub(crate) use suggest::{nearest_key, resembling_command};

pub use crate::breaker::BreakerSpec;
use crate::callback::command::Phase;
use crate::callback::subject::Subject;
use crate::cause::Cause;

/// Whether the policy acts, or only says what it would have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It acts.
    Enforce,
    /// What the app said travels on as it is; only silence until shortly before the caller gives up is
    /// answered.
    Observe,
}

/// What becomes of a command that is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnknownCommands {
    /// It is put to the app like any other: newer servers send commands that this version does not know.
    Forward,
    /// It is rejected.
    Reject,
}

/// What becomes of a callback without an operation ID, or with two that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationIds {
    /// Of two the body's counts; an empty header without one in the body is given one; without a header, and none in the body,
    /// it is rejected.
    Report,
    /// It is rejected.
    Require,
    /// Without one it is given one, of the body or made up; with two it is rejected.
    Generate,
}

/// What becomes of the fields of an answer that end a service of OpenIM v3.8.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrashingFields {
    /// They are taken out of the answer.
    LeaveOut,
    /// They are noticed, and go on.
    Pass,
}

/// What becomes of a callback with a known field of another type than OpenIM sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldTypes {
    /// It is counted, and travels on.
    Report,
    /// It is rejected.
    Reject,
}

/// How a rejection is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnRejection {
    /// As a refusal.
    Deny,
    /// As a permission.
    Allow,
}

/// Who waits for the delivery of an after-command's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Nobody: OpenIM has its answer at once.
    Background,
    /// OpenIM, as for any other callback.
    Inline,
}

/// Which attempts at a delivery are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redeliver {
    /// Those of which it is certain that the app has done nothing: at most one delivery.
    WhenNotTaken,
    /// Those that may have been taken, too: at least one delivery, as long as the event is kept.
    WhenUnsure,
}

/// Which deliveries wait for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// None: they begin in the order of acceptance, side by side.
    None,
    /// Those with the same key of the catalogue.
    Key,
}

macro_rules! words {
    ($($name:ident: $($word:ident)*;)*) => {$(
        impl $name {
            /// As written in a policy.
            pub const ALL: &'static [(&'static str, $name)] = &[$((stringify!($word), $name::$word)),*];

            /// As written in a policy.
            pub const fn label(self) -> &'static str {
                match self {
                    $($name::$word => stringify!($word),)*
                }
            }
        }
    )*};
}

words! {
    Mode: Enforce Observe;
    UnknownCommands: Forward Reject;
    OperationIds: Report Require Generate;
    CrashingFields: LeaveOut Pass;
    FieldTypes: Report Reject;
    OnRejection: Deny Allow;
    Delivery: Background Inline;
    Redeliver: WhenNotTaken WhenUnsure;
    Order: None Key;
}

/// How callbacks are checked before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validation {
    /// `unknownCommands`.
    pub unknown_commands: UnknownCommands,
    /// `operationID`.
    pub operation_id: OperationIds,
    /// `fieldTypes`.
    pub field_types: FieldTypes,
    /// `onRejection`.
    pub on_rejection: OnRejection,
}

impl Default for Validation {
    /// Unknown commands are forwarded, what is wrong with operation IDs and field types is reported, a rejection is a
    /// refusal.
    fn default() -> Validation {
        Validation {
            unknown_commands: UnknownCommands::Forward,
            operation_id: OperationIds::Report,
            field_types: FieldTypes::Report,
            on_rejection: OnRejection::Deny,
        }
    }
}

/// A policy, ready to decide.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    hash: String,
    mode: Mode,
    validation: Validation,
    caller_timeout: Duration,
    /// The written ones and then the one that matches all: never empty.
    rules: Vec<Rule>,
    /// Whether one of them looks further than at the command.
    looks_into_bodies: bool,
}

/// Reads a `policy.yaml`. A text that holds nothing, or only comments, gives the built-in defaults under a
/// hash of its own.
///
/// The text is YAML of at most 1 MiB with one document of at most 50,000 values, those repeated by aliases
/// counted each time. A rule without `name` is called by its place, as `rules[3]`. A `breaker` that leaves
/// something out has `failureRate: 0.5`, `minimumCallbacks: 20`, `window: 10s`, `openFor: 5s`. Where
/// `callerTimeout` is too short for the built-in `timeout` of 2 s, the built-in one is `callerTimeout -
/// 200ms`.
///
/// # Errors
///
/// Every problem of the text, each with its field path and position; a text that is no YAML has one.
pub fn compile(text: &str) -> Result<(Policy, Warnings), Problems> {
    match compile::single(text)? {
        Some(node) => compile::compile(&node, hash(text)),
        None => Ok((compile::builtin(hash(text)), Warnings::default())),
    }
}

/// The same for a document that was read already, as one of several in a file.
pub(crate) fn compile_node(node: &spec::Node) -> Result<(Policy, Warnings), Problems> {
    compile::compile(node, String::new())
}

impl Policy {
    fn new(
        hash: String,
        mode: Mode,
        validation: Validation,
        caller_timeout: Duration,
        rules: Vec<Rule>,
    ) -> Policy {
        let looks_into_bodies = rules.iter().any(|rule| rule.matches.looks_into_bodies());
        Policy { hash, mode, validation, caller_timeout, rules, looks_into_bodies }
    }

    /// What is in force where there is no policy: every callback is put to the app with a timeout of 2 s,
    /// and every fallback is `Allow`.
    pub fn builtin() -> Policy {
        compile::builtin("builtin".to_owned())
    }

    /// Names the text it was made from: 16 hexadecimal digits (FNV-1a, 64 bits, of its bytes), the same on
    /// every machine; `builtin` for the built-in one. Tells texts apart; proves nothing about them.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The rules as written and then the one named `default`, which matches every callback.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How callbacks are checked.
    pub fn validation(&self) -> &Validation {
        &self.validation
    }

    /// Whether it acts.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a rule looks into callbacks. If none does, [`Self::decide`] needs to know no more than the command.
    pub fn looks_into_bodies(&self) -> bool {
        self.looks_into_bodies
    }

    /// How long OpenIM waits for an answer, 1 s to 15 s.
    pub fn caller_timeout(&self) -> Duration {
        self.caller_timeout
    }

    /// The longest timeout that a callback can be given.
    pub fn longest_timeout(&self) -> Duration {
        match self.mode {
            Mode::Observe => compile::longest(self.caller_timeout),
            // A rule with `answer` has the timeout of the default rule.
            Mode::Enforce => self.rules.iter().map(Rule::timeout).max().unwrap_or_default(),
        }
    }

    /// The text of the defaults' denials, and of an override's.
    pub fn default_deny(&self) -> &DenyText {
        &self.rules[self.rules.len() - 1].deny
    }

    /// What is to be done with a callback at `now`: an override's `answer` comes first, then the first rule
    /// that matches.
    pub fn decide<'p>(
        &'p self,
        subject: &Subject<'_>,
        over: Option<&'p Override>,
        now: SystemTime,
    ) -> Decision<'p> {
        self.decide_with(|| self.rule_index(subject), subject, over, now)
    }

    /// The same, if it is known which rule matches: then `subject` needs no more than the command.
    pub fn decide_by_rule<'p>(
        &'p self,
        rule_index: usize,
        subject: &Subject<'_>,
        over: Option<&'p Override>,
        now: SystemTime,
    ) -> Decision<'p> {
        self.decide_with(|| rule_index, subject, over, now)
    }

    /// The place in [`Self::rules`] of the first rule that matches.
    pub fn rule_index(&self, subject: &Subject<'_>) -> usize {
        let found = self.rules.iter().position(|rule| rule.matches.fits(subject));
        found.unwrap_or(self.rules.len() - 1)
    }

    fn decide_with<'p>(
        &'p self,
        rule_index: impl FnOnce() -> usize,
        subject: &Subject<'_>,
        over: Option<&'p Override>,
        now: SystemTime,
    ) -> Decision<'p> {
        let over = over.filter(|over| over.active(now) && over.covers(subject));
        let answered = |over: &'p Override| {
            let (answer, by) = (over.answer()?.with(self.default_deny()), AnsweredBy::Override(over));
            Some(Decision::Answer { answer, by })
        };
        let answered = over.and_then(answered);
        if let Some(answered) = answered.as_ref().filter(|_| subject.phase() != Phase::After) {
            return answered.clone();
        }
        let rule_index = rule_index();
        let rule = &self.rules[rule_index];
        // An event that is delivered in the background waits for the override's end instead.
        if let Some(answered) = answered.filter(|_| !self.is_in_background(rule)) {
            return answered;
        }
        match rule.answer() {
            Some(answer) if self.mode == Mode::Enforce => {
                Decision::Answer { answer, by: AnsweredBy::Rule(rule) }
            }
            Some(_) | None => Decision::Ask(self.plan(rule_index, subject, over)),
        }
    }

    /// Whether the events of after-commands under this rule are delivered in the background.
    fn is_in_background(&self, rule: &Rule) -> bool {
        self.mode == Mode::Enforce && rule.answer.is_none() && rule.after.delivery == Delivery::Background
    }

    /// How to ask the app, under the rule at this place and an override that is in time and covers the callback. `subject`
    /// needs no more than the command.
    pub fn plan<'p>(
        &'p self,
        rule_index: usize,
        subject: &Subject<'_>,
        over: Option<&'p Override>,
    ) -> Plan<'p> {
        let rule = &self.rules[rule_index];
        let observe = self.mode == Mode::Observe;
        Plan {
            rule,
            rule_index,
            timeout: if observe { compile::longest(self.caller_timeout) } else { rule.timeout },
            observe,
            would_answer: rule.answer(),
            over,
            after: subject.phase() == Phase::After,
        }
    }

    /// The first rule that would deny a callback of which only the command is known: rules that look into the body may be
    /// for it or not, and one of them that denies counts. `None` where every rule that may be for it allows.
    pub fn blind_denial(&self, subject: &Subject<'_>, cause: Cause) -> Option<&Rule> {
        if subject.phase() == Phase::After {
            return None;
        }
        for rule in &self.rules {
            let for_certain = match rule.matches.misfit(subject) {
                None => true,
                Some("commands" | "phase") => continue,
                Some(_) => false,
            };
            let answer = rule.answer().unwrap_or_else(|| rule.fallback(cause));
            if matches!(answer, Answer::Deny(_)) {
                return Some(rule);
            }
            if for_certain {
                return None;
            }
        }
        None
    }

    /// What is in force, with the keys of the document and everything filled in that it leaves out. Rules
    /// are shown as they act in `Enforce`; in `Observe` there is `observeTimeout`, which stands for the
    /// timeouts of all.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "hash": self.hash,
            "mode": self.mode.label(),
            "callerTimeout": duration::display(self.caller_timeout),
            "validation": {
                "unknownCommands": self.validation.unknown_commands.label(),
                "operationID": self.validation.operation_id.label(),
                "fieldTypes": self.validation.field_types.label(),
                "onRejection": self.validation.on_rejection.label(),
            },
            "rules": self.rules.iter().map(Rule::to_json).collect::<Vec<_>>(),
        });
        if self.mode == Mode::Observe {
            json["observeTimeout"] = json!(duration::display(self.longest_timeout()));
        }
        json
    }
}

fn hash(text: &str) -> String {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{fnv:016x}")
}
