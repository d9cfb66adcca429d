//! From the tree of a document to a policy, or to everything that is wrong with it.

use std::collections::HashMap;
use std::num::{NonZeroI32, NonZeroUsize};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::after::{self, After};
use super::glob::Glob;
use super::integers::{self, Integers};
use super::plan::{DenyText, Fallback, Fallbacks, Rule};
use super::problem::{Problem, Problems, Warnings};
use super::reader::{Field, Findings, Keys, Table};
use super::rule::{Commands, Match, Steps};
use super::spec::{self, Node};
use super::{
    CrashingFields, FieldTypes, Mode, OnRejection, OperationIds, Policy, UnknownCommands, Validation,
};
use super::{suggest, warnings};
use crate::breaker::BreakerSpec;
use crate::callback::command::{self, Phase};
use crate::callback::subject::Messages;
use crate::cause::Cause;

const POLICY_KEYS: [&str; 5] = ["version", "defaults", "validation", "mode", "rules"];
const DEFAULTS_KEYS: [&str; 8] =
    ["callerTimeout", "timeout", "fallback", "fallbackFor", "deny", "maxInFlight", "crashingFields", "after"];
const VALIDATION_KEYS: [&str; 4] = ["unknownCommands", "operationID", "fieldTypes", "onRejection"];
const RULE_KEYS: [&str; 11] = [
    "name",
    "match",
    "timeout",
    "fallback",
    "fallbackFor",
    "deny",
    "breaker",
    "maxInFlight",
    "crashingFields",
    "after",
    "answer",
];
const MATCH_KEYS: [&str; 10] = [
    "commands",
    "phase",
    "messages",
    "contentTypes",
    "msgFrom",
    "sessionTypes",
    "sendIDs",
    "recvIDs",
    "groupIDs",
    "platformIDs",
];
const DENY_KEYS: [&str; 3] = ["errCode", "errMsg", "errDlt"];
const BREAKER_KEYS: [&str; 4] = ["failureRate", "minimumCallbacks", "window", "openFor"];

/// What a rule may not hold beside `answer`: all of it is about asking the app.
const ASKING_KEYS: [&str; 7] =
    ["timeout", "breaker", "fallback", "fallbackFor", "maxInFlight", "crashingFields", "after"];

const CALLER_TIMEOUT: Duration = Duration::from_secs(5);
const CALLER_TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
const TIMEOUT: Duration = Duration::from_secs(2);
const TIMEOUT_LEAST: Duration = Duration::from_millis(10);

/// What has to be left of the caller's patience for the answer to get back to it.
const CALLER_MARGIN: Duration = Duration::from_millis(200);

/// OpenIM keeps the codes below for itself.
const ERR_CODES: (i64, i64) = (5_000, 9_999);
const TEXT_LIMIT_BYTES: usize = 1_024;
const RULES_LIMIT: usize = 1_000;
const LIST_LIMIT: usize = 1_000;
const PATTERN_LIMIT_BYTES: usize = 256;
const NAME_LIMIT: usize = 63;
const MAX_IN_FLIGHT: (i64, i64) = (0, 1_000_000);
const MINIMUM_CALLBACKS: (i64, i64) = (1, 100_000);
const WINDOW_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
const OPEN_FOR_RANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));

/// The name of the rule that is always the last.
const DEFAULT_RULE: &str = "default";

/// Some tens of milliseconds of looking for covered rules.
const COVER_STEPS: usize = 1_000_000;

/// What the patterns of a policy may add to each callback without a warning. OpenIM waits for seconds; this is for the other
/// callbacks, which one thread answers too.
const PATTERNS_TIME: Duration = Duration::from_micros(300);

/// The one document of a text; `None` where it holds nothing.
pub(super) fn single(text: &str) -> Result<Option<Rc<Node>>, Problems> {
    let (mut roots, problem) = spec::documents(text, spec::DOCUMENT);
    if let Some(problem) = problem {
        return Err(Problems(vec![problem]));
    }
    if let Some(second) = roots.get(1) {
        return Err(Problems(vec![Problem {
            path: String::new(),
            message: "Too many: must be one document, and here a second one begins".to_owned(),
            line: Some(second.at.line),
            column: Some(second.at.column),
        }]));
    }
    Ok(roots.pop())
}

/// What is in force where nothing is written.
pub(super) fn builtin(hash: String) -> Policy {
    let defaults = Defaults::builtin();
    let rules = vec![defaults.rule(Arc::from(DEFAULT_RULE), Match::default())];
    Policy::new(hash, Mode::Enforce, Validation::default(), CALLER_TIMEOUT, rules)
}

/// Reads a document; `hash` names it.
pub(super) fn compile(node: &Node, hash: String) -> Result<(Policy, Warnings), Problems> {
    let mut findings = Findings::default();
    let policy = policy(&Field::root(node), hash, &mut findings);
    findings.sort();
    match policy {
        Some(policy) if findings.problems.is_empty() => Ok((policy, Warnings(findings.warnings))),
        Some(_) | None => Err(Problems(findings.problems)),
    }
}

/// How long the app has at most: the timeout of every callback in `Observe`.
pub(super) fn longest(caller_timeout: Duration) -> Duration {
    caller_timeout.saturating_sub(CALLER_MARGIN)
}

fn policy(root: &Field<'_>, hash: String, findings: &mut Findings) -> Option<Policy> {
    let table = Table::read(root, &POLICY_KEYS, Keys::Fields, findings)?;
    if let Some(field) = table.get("version") {
        field.choice(&[("1", ())], findings).filter(|()| field.integer((1, 1), findings).is_some());
    }
    let defaults = defaults(table.section("defaults"), findings);
    let validation = validation(table.section("validation"), findings);
    let mode = choice(table.get("mode"), Mode::ALL, Mode::Enforce, findings);
    let fields = table.section("rules").and_then(|field| field.elements(RULES_LIMIT, findings));
    let fields = fields.unwrap_or_default();
    let rules: Vec<_> =
        fields.iter().enumerate().map(|(index, field)| rule(index, field, &defaults, findings)).collect();
    duplicate_names(&fields, findings);
    let mut rules = rules.into_iter().collect::<Option<Vec<_>>>()?;
    covered(&fields, &rules, findings);
    warnings::contradictions(&fields, &rules, findings);
    let last = defaults.rule(Arc::from(DEFAULT_RULE), Match::default());
    let of_defaults = (table.section("defaults"), &last);
    warnings::denied_notifications(&fields, &rules, of_defaults, findings, Steps::new(COVER_STEPS));
    if let Some(field) = table.get("rules") {
        slow_patterns(field, &fields, &rules, findings);
    }
    rules.push(last);
    Some(Policy::new(hash, mode, validation, defaults.caller_timeout, rules))
}

fn choice<T: Copy>(
    field: Option<&Field<'_>>,
    choices: &[(&str, T)],
    default: T,
    findings: &mut Findings,
) -> T {
    field.and_then(|field| field.choice(choices, findings)).unwrap_or(default)
}

fn validation(field: Option<&Field<'_>>, findings: &mut Findings) -> Validation {
    let default = Validation::default();
    let Some(table) = field.and_then(|field| Table::read(field, &VALIDATION_KEYS, Keys::Fields, findings))
    else {
        return default;
    };
    Validation {
        unknown_commands: choice(
            table.get("unknownCommands"),
            UnknownCommands::ALL,
            default.unknown_commands,
            findings,
        ),
        operation_id: choice(table.get("operationID"), OperationIds::ALL, default.operation_id, findings),
        field_types: choice(table.get("fieldTypes"), FieldTypes::ALL, default.field_types, findings),
        on_rejection: choice(table.get("onRejection"), OnRejection::ALL, default.on_rejection, findings),
    }
}

/// What rules take over where they say nothing.
#[derive(Clone, Debug)]
struct Defaults {
    caller_timeout: Duration,
    /// The most a timeout may be; `None` while `callerTimeout` is itself wrong, so that one mistake is told
    /// once.
    longest: Option<Duration>,
    timeout: Duration,
    fallbacks: Fallbacks,
    deny: DenyText,
    max_in_flight: Option<NonZeroUsize>,
    crashing_fields: CrashingFields,
    after: After,
}

impl Defaults {
    fn builtin() -> Defaults {
        Defaults {
            caller_timeout: CALLER_TIMEOUT,
            longest: Some(longest(CALLER_TIMEOUT)),
            timeout: TIMEOUT,
            fallbacks: Fallbacks::all(Fallback::Allow),
            deny: DenyText::builtin(),
            max_in_flight: None,
            crashing_fields: CrashingFields::LeaveOut,
            after: After::default(),
        }
    }

    fn rule(&self, name: Arc<str>, matches: Match) -> Rule {
        Rule {
            name,
            matches,
            answer: None,
            timeout: self.timeout,
            fallbacks: self.fallbacks.clone(),
            deny: self.deny.clone(),
            breaker: None,
            max_in_flight: self.max_in_flight,
            crashing_fields: self.crashing_fields,
            after: self.after,
        }
    }
}

fn defaults(field: Option<&Field<'_>>, findings: &mut Findings) -> Defaults {
    let mut defaults = Defaults::builtin();
    let Some(table) = field.and_then(|field| Table::read(field, &DEFAULTS_KEYS, Keys::Fields, findings))
    else {
        return defaults;
    };
    if let Some(field) = table.get("callerTimeout") {
        let timeout = caller_timeout(field, findings);
        defaults.caller_timeout = timeout.unwrap_or(CALLER_TIMEOUT);
        defaults.longest = timeout.map(longest);
    }
    // A caller that waits for 1 s or 2 s leaves less than the built-in timeout.
    defaults.timeout = TIMEOUT.min(longest(defaults.caller_timeout));
    if let Some(field) = table.get("timeout") {
        defaults.timeout = timeout(field, &defaults, findings).unwrap_or(defaults.timeout);
    }
    fallbacks(&table, &mut defaults.fallbacks, findings);
    deny(&table, &mut defaults.deny, findings);
    defaults.max_in_flight = max_in_flight(&table, defaults.max_in_flight, findings);
    defaults.crashing_fields = crashing_fields(&table, defaults.crashing_fields, findings);
    after::read(&table, &mut defaults.after, findings);
    defaults
}

fn caller_timeout(field: &Field<'_>, findings: &mut Findings) -> Option<Duration> {
    let (least, most) = CALLER_TIMEOUT_RANGE;
    let timeout = field.duration(least, Some((most, "")), findings)?;
    if timeout.subsec_nanos() != 0 {
        field.invalid(findings, "must be whole seconds, as in OpenIM's configuration");
        return None;
    }
    Some(timeout)
}

fn timeout(field: &Field<'_>, defaults: &Defaults, findings: &mut Findings) -> Option<Duration> {
    let most = defaults.longest.map(|longest| (longest, ", which is callerTimeout - 200ms"));
    field.duration(TIMEOUT_LEAST, most, findings)
}

/// Reads `fallback`, which speaks for every cause, and then `fallbackFor`, which speaks for some.
fn fallbacks(table: &Table<'_>, fallbacks: &mut Fallbacks, findings: &mut Findings) {
    if let Some(fallback) = table.get("fallback").and_then(|field| field.choice(&Fallback::ALL, findings)) {
        *fallbacks = Fallbacks::all(fallback);
    }
    let labels = Cause::ALL.map(Cause::label);
    let Some(table) =
        table.section("fallbackFor").and_then(|field| Table::read(field, &labels, Keys::Entries, findings))
    else {
        return;
    };
    for cause in Cause::ALL {
        if let Some(fallback) =
            table.get(cause.label()).and_then(|field| field.choice(&Fallback::ALL, findings))
        {
            fallbacks.set(cause, fallback);
        }
    }
}

/// Puts what is written over `deny`, field by field.
fn deny(table: &Table<'_>, deny: &mut DenyText, findings: &mut Findings) {
    let Some(table) =
        table.section("deny").and_then(|field| Table::read(field, &DENY_KEYS, Keys::Fields, findings))
    else {
        return;
    };
    let code = table.get("errCode").and_then(|field| field.integer(ERR_CODES, findings));
    if let Some(code) = code.and_then(|code| i32::try_from(code).ok()).and_then(NonZeroI32::new) {
        deny.code = code;
    }
    let mut text = |key| table.get(key).and_then(|field| field.bounded_string(TEXT_LIMIT_BYTES, findings));
    if let Some(message) = text("errMsg") {
        message.clone_into(&mut deny.message);
    }
    if let Some(detail) = text("errDlt") {
        detail.clone_into(&mut deny.detail);
    }
}

fn max_in_flight(
    table: &Table<'_>,
    default: Option<NonZeroUsize>,
    findings: &mut Findings,
) -> Option<NonZeroUsize> {
    let Some(field) = table.get("maxInFlight") else { return default };
    let limit = field.integer(MAX_IN_FLIGHT, findings)?;
    usize::try_from(limit).ok().and_then(NonZeroUsize::new)
}

fn crashing_fields(table: &Table<'_>, default: CrashingFields, findings: &mut Findings) -> CrashingFields {
    choice(table.get("crashingFields"), CrashingFields::ALL, default, findings)
}

fn rule(index: usize, field: &Field<'_>, defaults: &Defaults, findings: &mut Findings) -> Option<Rule> {
    let table = Table::read(field, &RULE_KEYS, Keys::Fields, findings)?;
    let name = table.get("name").and_then(|field| name(field, findings));
    let name = name.map_or_else(|| Arc::from(format!("rules[{index}]")), Arc::from);
    let matches = table.section("match").map(|field| matches(field, findings)).unwrap_or_default();
    let mut rule = defaults.rule(name, matches);
    deny(&table, &mut rule.deny, findings);
    // Read beside an answer too: whoever takes the answer away again should not meet the next problem then.
    if let Some(field) = table.get("timeout") {
        rule.timeout = timeout(field, defaults, findings).unwrap_or(rule.timeout);
    }
    fallbacks(&table, &mut rule.fallbacks, findings);
    rule.breaker = table.get("breaker").and_then(|field| breaker(field, findings));
    rule.max_in_flight = max_in_flight(&table, rule.max_in_flight, findings);
    rule.crashing_fields = crashing_fields(&table, rule.crashing_fields, findings);
    after::read(&table, &mut rule.after, findings);
    if let Some(field) = table.get("answer") {
        rule.answer = field.choice(&Fallback::ALL, findings);
        rule.max_in_flight = None;
        for key in ASKING_KEYS {
            if let Some(field) = table.get(key) {
                let message = "Forbidden: may not stand beside answer, which does not ask the app";
                findings.problem(&field.path, field.node.at, message);
            }
        }
    }
    after::unused_keys(field, &rule, findings);
    Some(rule)
}

fn name<'n>(field: &Field<'n>, findings: &mut Findings) -> Option<&'n str> {
    let name = field.string(findings)?;
    let chars = name.chars().count();
    let rule = if name.trim().is_empty() {
        "must not be empty"
    } else if name.chars().any(char::is_control) {
        "must not hold control characters"
    } else if name == DEFAULT_RULE {
        "is the name of the rule that is always the last"
    } else if name == "none" {
        "is what metrics call the rule of a rejection"
    } else if name.strip_prefix("rules[").is_some_and(|rest| rest.ends_with(']')) {
        "is how rules without a name are called"
    } else if chars > NAME_LIMIT {
        let message = format!("Too long: {chars} characters: must be at most {NAME_LIMIT} characters");
        findings.problem(&field.path, field.node.at, message);
        return None;
    } else {
        return Some(name);
    };
    field.invalid(findings, rule);
    None
}

fn duplicate_names(rules: &[Field<'_>], findings: &mut Findings) {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for rule in rules {
        let Some(node) = rule.node.get("name") else { continue };
        let Some(name) = node.scalar().filter(|name| !name.trim().is_empty()) else { continue };
        if let Some(first) = seen.get(name) {
            let message = format!("Duplicate value: {name:?}: {first} has it already");
            findings.problem(&format!("{}.name", rule.path), node.at, message);
        } else {
            seen.insert(name, &rule.path);
        }
    }
}

fn breaker(field: &Field<'_>, findings: &mut Findings) -> Option<BreakerSpec> {
    if field.node.is_null() {
        field
            .invalid(findings, "must be a mapping: write {} for the defaults, or leave the key out for none");
        return None;
    }
    let table = Table::read(field, &BREAKER_KEYS, Keys::Fields, findings)?;
    let mut spec = BreakerSpec::default();
    if let Some(field) = table.get("failureRate") {
        spec.failure_rate = field.share(findings).unwrap_or(spec.failure_rate);
    }
    if let Some(field) = table.get("minimumCallbacks") {
        let minimum = field.integer(MINIMUM_CALLBACKS, findings);
        spec.minimum_callbacks =
            minimum.and_then(|it| u32::try_from(it).ok()).unwrap_or(spec.minimum_callbacks);
    }
    let mut between = |key, (least, most)| {
        table.get(key).and_then(|field| field.duration(least, Some((most, "")), findings))
    };
    spec.window = between("window", WINDOW_RANGE).unwrap_or(spec.window);
    spec.open_for = between("openFor", OPEN_FOR_RANGE).unwrap_or(spec.open_for);
    Some(spec)
}

fn matches(field: &Field<'_>, findings: &mut Findings) -> Match {
    let Some(table) = Table::read(field, &MATCH_KEYS, Keys::Fields, findings) else {
        return Match::default();
    };
    Match {
        commands: table.get("commands").and_then(|field| commands(field, findings)),
        phases: list(table.get("phase"), findings, |field, findings| field.choice(&Phase::ALL, findings)),
        messages: table.get("messages").and_then(|field| field.choice(&Messages::ALL, findings)),
        content_types: list(table.get("contentTypes"), findings, integers::number_or_range)
            .map(Integers::new),
        msg_from: integers(table.get("msgFrom"), findings),
        session_types: integers(table.get("sessionTypes"), findings),
        platform_ids: integers(table.get("platformIDs"), findings),
        send_ids: globs(table.get("sendIDs"), findings),
        recv_ids: globs(table.get("recvIDs"), findings),
        group_ids: globs(table.get("groupIDs"), findings),
    }
}

/// Reads a list of `commands`: names and patterns.
pub(super) fn commands(field: &Field<'_>, findings: &mut Findings) -> Option<Commands> {
    let names = list(Some(field), findings, |field, findings| {
        let name = field.bounded_string(PATTERN_LIMIT_BYTES, findings)?;
        if name.is_empty() {
            field.invalid(findings, "must not be empty");
            return None;
        }
        // A name that resembles nothing may be a newer server's.
        if !name.contains('*')
            && command::lookup(name).is_none()
            && let Some(near) = suggest::resembling_command(name)
        {
            field.invalid(findings, &format!("is no command; did you mean {near:?}?"));
            return None;
        }
        Some(name.to_owned())
    })?;
    let commands = Commands::new(names);
    warnings::patterns(&field.elements(LIST_LIMIT, findings)?, &commands, findings);
    Some(commands)
}

fn integers(field: Option<&Field<'_>>, findings: &mut Findings) -> Option<Integers> {
    list(field, findings, integers::number).map(Integers::new)
}

fn globs(field: Option<&Field<'_>>, findings: &mut Findings) -> Option<Vec<Glob>> {
    list(field, findings, |field, findings| {
        field.bounded_string(PATTERN_LIMIT_BYTES, findings).map(Glob::new)
    })
}

/// Reads every element of a list, for the problems of all; a list with a wrong one is no list.
fn list<'n, T>(
    field: Option<&Field<'n>>,
    findings: &mut Findings,
    mut element: impl FnMut(&Field<'n>, &mut Findings) -> Option<T>,
) -> Option<Vec<T>> {
    let field = field?;
    let elements = field.elements(LIST_LIMIT, findings)?;
    if elements.is_empty() {
        field.invalid(
            findings,
            "must name at least one, else nothing matches; leave the key out to match all",
        );
        return None;
    }
    let read: Vec<_> = elements.iter().map(|field| element(field, findings)).collect();
    read.into_iter().collect()
}

/// Warns of rules that never match because one earlier rule fits every callback they are for.
fn covered(fields: &[Field<'_>], rules: &[Rule], findings: &mut Findings) {
    let mut steps = Steps::new(COVER_STEPS);
    for (index, rule) in rules.iter().enumerate() {
        let covers = |earlier: &&Rule| earlier.matches.covers(&rule.matches, &mut steps);
        if let Some(earlier) = rules[..index].iter().find(covers) {
            let field = &fields[index];
            let message = format!("Never matches: {:?} fits every callback it is for", earlier.name);
            findings.warning(&field.path, field.node.at, message);
        }
    }
}

/// Warns of patterns that take long, with the rule that has most of it. A callback that no rule fits is held against all.
fn slow_patterns(field: &Field<'_>, fields: &[Field<'_>], rules: &[Rule], findings: &mut Findings) {
    let times = || rules.iter().map(|rule| rule.matches.worst_time());
    let total: Duration = times().sum();
    let Some((most, time)) = times().enumerate().max_by_key(|(_, time)| *time) else { return };
    if total > PATTERNS_TIME {
        let shown = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let message = format!(
            "Slow: the patterns may add {} to each callback (an estimate, for IDs of 1 KiB), {} of it {}; more than 0.3 ms delays \
             others: write IDs in full or as prefix-*, which cost next to nothing, or use fewer patterns with text between two *",
            shown(total),
            shown(time),
            fields[most].path,
        );
        findings.warning(&field.path, field.node.at, message);
    }
}
