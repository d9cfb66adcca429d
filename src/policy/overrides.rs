//! The override: one answer, or one fallback, above all rules for a bounded time. For the middle of the
//! night.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::compile::{commands, single};
use super::plan::Fallback;
use super::problem::{Problems, Warnings};
use super::reader::{Field, Findings, Keys, Table};
use super::rule::Commands;
use super::spec::Node;
use super::{timestamp, warnings};
use crate::callback::subject::Subject;

/// How far ahead `until` may be: an override is for an incident, and a longer one belongs into the policy.
const AHEAD_LIMIT: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Characters of `reason`; it stands in every log line of an overridden callback.
const REASON_LIMIT: usize = 256;

const KEYS: [&str; 5] = ["answer", "fallback", "commands", "until", "reason"];

/// An override as written, ready to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    action: Action,
    commands: Option<Commands>,
    until: SystemTime,
    until_text: String,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Answer(Fallback),
    Fallback(Fallback),
}

impl Override {
    /// Whether it is in force at `now`: not at `until` any more, nor after it.
    pub fn active(&self, now: SystemTime) -> bool {
        now < self.until
    }

    /// Whether it is for this callback; without `commands` it is for all.
    pub fn covers(&self, subject: &Subject<'_>) -> bool {
        self.commands.as_ref().is_none_or(|commands| commands.contain(subject))
    }

    /// When it ends.
    pub fn until(&self) -> SystemTime {
        self.until
    }

    /// When it ends, as written.
    pub fn until_text(&self) -> &str {
        &self.until_text
    }

    /// Why it was set, at most 256 characters.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What the callbacks it covers are answered without asking the app.
    pub fn answer(&self) -> Option<Fallback> {
        match self.action {
            Action::Answer(answer) => Some(answer),
            Action::Fallback(_) => None,
        }
    }

    /// What is every fallback of the callbacks it covers; the app is still asked.
    pub fn fallback(&self) -> Option<Fallback> {
        match self.action {
            Action::Answer(_) => None,
            Action::Fallback(fallback) => Some(fallback),
        }
    }

    /// As in the document it was made from.
    pub fn to_json(&self) -> Value {
        let mut json = Map::new();
        let (key, word) = match self.action {
            Action::Answer(answer) => ("answer", answer.label()),
            Action::Fallback(fallback) => ("fallback", fallback.label()),
        };
        json.insert(key.to_owned(), json!(word));
        if let Some(commands) = &self.commands {
            json.insert("commands".to_owned(), json!(commands.source()));
        }
        json.insert("until".to_owned(), json!(self.until_text));
        json.insert("reason".to_owned(), json!(self.reason));
        Value::Object(json)
    }
}

/// Reads an `override.yaml`. A text that holds nothing, or only comments, is no override: emptying the key
/// is how one is ended early.
///
/// # Errors
///
/// Every problem, each with its field path: `answer` and `fallback` both or neither, no `until` or `reason`,
/// an `until` that is no RFC 3339 timestamp or more than 7 days after `now`, unknown keys and commands. An
/// `until` that has passed is a warning; the override is then inert.
pub fn compile(text: &str, now: SystemTime) -> Result<(Option<Override>, Warnings), Problems> {
    match single(text)? {
        Some(node) => compile_node(&node, now).map(|(over, warnings)| (Some(over), warnings)),
        None => Ok((None, Warnings::default())),
    }
}

/// The same for a document that was read already.
pub(crate) fn compile_node(node: &Node, now: SystemTime) -> Result<(Override, Warnings), Problems> {
    let mut findings = Findings::default();
    let over = read(&Field::root(node), now, &mut findings);
    findings.sort();
    match over {
        Some(over) if findings.problems.is_empty() => Ok((over, Warnings(findings.warnings))),
        Some(_) | None => Err(Problems(findings.problems)),
    }
}

fn read(root: &Field<'_>, now: SystemTime, findings: &mut Findings) -> Option<Override> {
    let table = Table::read(root, &KEYS, Keys::Fields, findings)?;
    let action = action(root, &table, findings);
    let commands = table.get("commands").map(|field| commands(field, findings));
    let until = required(root, &table, "until", findings).and_then(|field| until(field, now, findings));
    let reason = required(root, &table, "reason", findings).and_then(|field| reason(field, findings));
    let (until, until_text) = until?;
    if let Some(Action::Answer(Fallback::Deny) | Action::Fallback(Fallback::Deny)) = action
        && let Some(field) = table.get("answer").or_else(|| table.get("fallback"))
        && !matches!(commands, Some(None))
        && now < until
    {
        warnings::overridden_notifications(field, commands.as_ref().and_then(Option::as_ref), findings);
    }
    Some(Override {
        action: action?,
        commands: match commands {
            Some(commands) => Some(commands?),
            None => None,
        },
        until,
        until_text,
        reason: reason?,
    })
}

fn action(root: &Field<'_>, table: &Table<'_>, findings: &mut Findings) -> Option<Action> {
    match (table.get("answer"), table.get("fallback")) {
        (Some(answer), None) => answer.choice(&Fallback::ALL, findings).map(Action::Answer),
        (None, Some(fallback)) => fallback.choice(&Fallback::ALL, findings).map(Action::Fallback),
        (Some(_), Some(fallback)) => {
            let message = "Forbidden: may not stand beside answer, which does not ask the app";
            findings.problem(&fallback.path, fallback.node.at, message);
            None
        }
        (None, None) => {
            findings.problem("answer", root.node.at, "Required value: write answer or fallback");
            None
        }
    }
}

fn required<'t, 'n>(
    root: &Field<'_>,
    table: &'t Table<'n>,
    key: &str,
    findings: &mut Findings,
) -> Option<&'t Field<'n>> {
    let field = table.section(key);
    if field.is_none() {
        let at = table.get(key).map_or(root.node.at, |field| field.node.at);
        findings.problem(key, at, "Required value");
    }
    field
}

fn until(field: &Field<'_>, now: SystemTime, findings: &mut Findings) -> Option<(SystemTime, String)> {
    let text = field.string(findings)?;
    let Some(until) = timestamp::parse(text) else {
        field.invalid(findings, "must be an RFC 3339 timestamp, as in 2026-12-01T10:00:00Z");
        return None;
    };
    if until > now + AHEAD_LIMIT {
        field.invalid(findings, "must be at most 7 days ahead");
        return None;
    }
    if until <= now {
        findings.warning(&field.path, field.node.at, format!("Past: {text:?}: the override is inert"));
    }
    Some((until, text.to_owned()))
}

fn reason(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.string(findings)?;
    if text.trim().is_empty() {
        field.invalid(findings, "must say why");
        return None;
    }
    let chars = text.chars().count();
    if chars > REASON_LIMIT {
        let message = format!("Too long: {chars} characters: must be at most {REASON_LIMIT} characters");
        findings.problem(&field.path, field.node.at, message);
        return None;
    }
    Some(text.to_owned())
}
