//! What a policy means, sentence by sentence.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::callback::command;
use crate::cause::Cause;

const BEFORE: &str = "callbackBeforeSendSingleMsgCommand";
const AFTER: &str = "callbackAfterSendSingleMsgCommand";
/// Sent after the fact, whatever its name says.
const AFTER_IN_DISGUISE: &str = "callbackBeforeAfterMsgCommand";

/// 2026-12-01T00:00:00Z.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_083_200)
}

fn policy(text: &str) -> Policy {
    quiet(compile(text).unwrap_or_else(|problems| panic!("{text}\n{problems}")))
}

/// Without a warning, but for the one about notifications: a rule here denies for another reason.
fn quiet<T>((compiled, warnings): (T, Warnings)) -> T {
    assert!(warnings.iter().all(is_about_notifications), "{warnings:?}");
    compiled
}

fn is_about_notifications(warning: &Problem) -> bool {
    warning.message.starts_with("Denies notifications too")
}

fn over(text: &str) -> Override {
    let text = format!("{text}\nuntil: 2026-12-01T10:00:00Z\nreason: a test\n");
    let compiled = overrides::compile(&text, now()).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    quiet(compiled).expect("an override")
}

fn problems(text: &str) -> Vec<String> {
    let problems = compile(text).err().unwrap_or_else(|| panic!("no problem in\n{text}"));
    problems.iter().map(ToString::to_string).collect()
}

fn warnings(text: &str) -> Vec<String> {
    let (_, warnings) = compile(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    warnings.iter().map(ToString::to_string).collect()
}

fn subject(name: &str) -> Subject<'_> {
    Subject { name, command: command::lookup(name), ..Subject::default() }
}

fn ask<'p>(policy: &'p Policy, subject: &Subject<'_>, over: Option<&'p Override>) -> Plan<'p> {
    match policy.decide(subject, over, now()) {
        Decision::Ask(plan) => plan,
        Decision::Answer { answer, .. } => panic!("answered {answer:?}"),
    }
}

/// Who decides what, in a few words.
fn decided(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Ask(plan) => format!("ask by {}", plan.rule.name),
        Decision::Answer { answer, by } => {
            let by = match by {
                AnsweredBy::Rule(rule) => format!("rule {}", rule.name),
                AnsweredBy::Override(over) => format!("override {}", over.reason()),
            };
            format!("{} by {by}", word(*answer))
        }
    }
}

fn word(answer: Answer<'_>) -> String {
    match answer {
        Answer::Allow => "Allow".to_owned(),
        Answer::Deny(text) => format!("Deny {}", text.code),
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn the_built_in_defaults_ask_for_everything_and_allow_when_that_fails() {
    let builtin = Policy::builtin();
    let plan = ask(&builtin, &subject(BEFORE), None);
    assert_eq!((&*plan.rule.name, plan.rule_index, plan.timeout), ("default", 0, ms(2_000)));
    for cause in Cause::ALL {
        assert_eq!(plan.fallback(cause), Answer::Allow);
    }
    assert_eq!((plan.breaker(), plan.max_in_flight(), plan.observe), (None, None, false));
    assert_eq!(plan.crashing_fields(), CrashingFields::LeaveOut);
    assert_eq!(builtin.caller_timeout(), ms(5_000));
    assert_eq!(builtin.longest_timeout(), ms(2_000));
    assert_eq!(builtin.mode(), Mode::Enforce);
    assert_eq!(
        *builtin.validation(),
        Validation {
            unknown_commands: UnknownCommands::Forward,
            operation_id: OperationIds::Report,
            field_types: FieldTypes::Report,
            on_rejection: OnRejection::Deny,
        }
    );
    let deny = builtin.default_deny();
    assert_eq!((deny.code.get(), &*deny.message, &*deny.detail), (5100, "temporarily unavailable", ""));
    assert_eq!(builtin.hash(), "builtin");
}

#[test]
fn a_text_that_holds_nothing_is_the_defaults() {
    for text in ["", "# nothing\n", "---\n", "{}", "null", "defaults:\nrules:\nvalidation:\n", "\u{feff}"] {
        let read = policy(text);
        assert_eq!(Policy { hash: "builtin".to_owned(), ..read }, Policy::builtin(), "{text:?}");
    }
}

#[test]
fn the_hash_names_the_text() {
    assert_eq!(policy("").hash(), "cbf29ce484222325");
    assert_eq!(policy("version: 1").hash(), policy("version: 1").hash());
    assert_ne!(policy("version: 1").hash(), policy("version: 1\n").hash());
}

#[test]
fn defaults_are_what_rules_start_from() {
    let policy = policy(
        "
defaults:
  callerTimeout: 10s
  timeout: 3s
  fallback: Deny
  fallbackFor: {draining: Allow}
  deny: {errCode: 6000, errMsg: sorry, errDlt: later}
  maxInFlight: 7
rules: [{match: {phase: [Unknown]}}]
",
    );
    assert_eq!(policy.caller_timeout(), ms(10_000));
    for name in ["somethingNew", BEFORE] {
        let plan = ask(&policy, &subject(name), None);
        assert_eq!(plan.timeout, ms(3_000), "{name}");
        assert_eq!(plan.max_in_flight(), Some(7));
        assert_eq!(plan.fallback(Cause::Draining), Answer::Allow);
        let Answer::Deny(deny) = plan.fallback(Cause::Timeout) else { panic!("allowed") };
        assert_eq!((deny.code.get(), &*deny.message, &*deny.detail), (6000, "sorry", "later"));
        assert_eq!(deny, policy.default_deny());
    }
    assert_eq!(&*ask(&policy, &subject("somethingNew"), None).rule.name, "rules[0]");
    assert_eq!(&*ask(&policy, &subject(BEFORE), None).rule.name, "default");
}

#[test]
fn a_rule_says_otherwise_field_by_field() {
    let policy = policy(
        "
defaults: {timeout: 3s, fallback: Deny, deny: {errCode: 6000, errMsg: sorry, errDlt: later}, maxInFlight: 7}
rules:
  - timeout: 300ms
    fallback: Allow
    fallbackFor: {overloaded: Deny}
    deny: {errCode: 6001}
    breaker: {failureRate: 0.25, minimumCallbacks: 5, window: 20s, openFor: 1s}
    maxInFlight: 0
",
    );
    let plan = ask(&policy, &subject(BEFORE), None);
    assert_eq!((plan.timeout, plan.max_in_flight()), (ms(300), None));
    assert_eq!(plan.fallback(Cause::Timeout), Answer::Allow);
    let Answer::Deny(deny) = plan.fallback(Cause::Overloaded) else { panic!("allowed") };
    assert_eq!((deny.code.get(), &*deny.message, &*deny.detail), (6001, "sorry", "later"));
    let breaker = BreakerSpec {
        failure_rate: 0.25,
        minimum_callbacks: 5,
        window: Duration::from_secs(20),
        open_for: Duration::from_secs(1),
    };
    assert_eq!(plan.breaker(), Some(&breaker));
    assert_eq!(policy.default_deny().code.get(), 6000);
}

#[test]
fn a_breaker_is_off_when_absent_and_has_defaults_when_empty() {
    let policy = policy("rules: [{name: a, match: {contentTypes: [1]}}, {name: b, breaker: {}}]");
    assert_eq!(policy.rules()[0].breaker(), None);
    assert_eq!(policy.rules()[1].breaker(), Some(&BreakerSpec::default()));
    assert_eq!(policy.rules()[2].breaker(), None);
}

#[test]
fn the_first_rule_that_matches_wins_and_the_default_matches_all() {
    let policy = policy(
        "
rules:
  - {name: one, match: {commands: [callbackBeforeSendSingleMsgCommand], contentTypes: [101]}}
  - {name: two, match: {commands: [callbackBeforeSendSingleMsgCommand]}}
  - {name: three, match: {commands: ['callbackBefore*']}}
",
    );
    let names: Vec<_> = policy.rules().iter().map(|rule| &*rule.name).collect();
    assert_eq!(names, ["one", "two", "three", "default"]);
    for (subject, index) in [
        (Subject { content_type: Some(101), ..subject(BEFORE) }, 0),
        (Subject { content_type: Some(102), ..subject(BEFORE) }, 1),
        (subject("callbackBeforeSendGroupMsgCommand"), 2),
        (subject(AFTER), 3),
        (Subject::default(), 3),
    ] {
        let plan = ask(&policy, &subject, None);
        assert_eq!((plan.rule_index, plan.rule), (index, &policy.rules()[index]));
    }
}

#[test]
fn every_key_of_match_is_read() {
    let id = || Some(Cow::Borrowed("x1"));
    let base = || subject(BEFORE);
    for (key, matching) in [
        ("commands: [callbackBeforeSendSingleMsgCommand]", base()),
        ("commands: ['*SendSingle*']", base()),
        ("phase: [After]", subject(AFTER_IN_DISGUISE)),
        ("phase: [Unknown]", subject("somethingNew")),
        ("messages: Users", Subject { content_type: Some(101), ..base() }),
        ("messages: Notifications", Subject { content_type: Some(1508), ..base() }),
        ("msgFrom: [100, 200]", Subject { msg_from: Some(200), ..base() }),
        ("contentTypes: ['1000-5000']", Subject { content_type: Some(5000), ..base() }),
        ("contentTypes: [1000-5000, 7]", Subject { content_type: Some(1000), ..base() }),
        ("contentTypes: [7, 8]", Subject { content_type: Some(8), ..base() }),
        ("sessionTypes: [8]", Subject { session_type: Some(8), ..base() }),
        ("platformIDs: [8]", Subject { platform_ids: [Some(1), Some(8)], ..base() }),
        ("sendIDs: ['x*']", Subject { send_id: id(), ..base() }),
        ("recvIDs: [x1]", Subject { recv_id: id(), ..base() }),
        ("groupIDs: [b, '*1']", Subject { group_id: id(), ..base() }),
    ] {
        let policy = policy(&format!("rules: [{{name: it, match: {{{key}}}}}]"));
        assert_eq!(&*ask(&policy, &matching, None).rule.name, "it", "{key}");
        let other = subject("callbackBeforeUserRegisterCommand");
        assert_eq!(&*ask(&policy, &other, None).rule.name, "default", "{key}");
    }
}

#[test]
fn fallbacks_have_an_order() {
    let text = |defaults: &str, rule: &str| format!("defaults: {{{defaults}}}\nrules: [{{name: r, {rule}}}]");
    let denying = over("fallback: Deny");
    let allowing = over("fallback: Allow");
    for (defaults, rule, over, denies) in [
        ("", "", None, false),
        ("fallback: Deny", "", None, true),
        ("fallback: Deny, fallbackFor: {timeout: Allow}", "", None, false),
        ("fallback: Allow, fallbackFor: {timeout: Deny}", "", None, true),
        ("fallbackFor: {timeout: Deny}", "fallback: Allow", None, false),
        ("fallbackFor: {timeout: Allow}", "fallback: Deny", None, true),
        ("", "fallback: Deny, fallbackFor: {timeout: Allow}", None, false),
        ("", "fallback: Allow, fallbackFor: {timeout: Deny}", None, true),
        ("", "fallback: Deny, fallbackFor: {status: Allow}", None, true),
        ("", "fallbackFor: {timeout: Allow}", Some(&denying), true),
        ("", "fallbackFor: {timeout: Deny}", Some(&allowing), false),
    ] {
        let policy = policy(&text(defaults, rule));
        let plan = ask(&policy, &subject(BEFORE), over);
        let expected = if denies { Answer::Deny(policy.default_deny()) } else { Answer::Allow };
        assert_eq!(plan.fallback(Cause::Timeout), expected, "{defaults} / {rule} / {over:?}");
        assert_eq!(plan.over, over);
    }
}

#[test]
fn an_override_s_fallback_denies_with_the_text_of_the_rule() {
    let policy = policy("rules: [{deny: {errCode: 7000}, match: {contentTypes: [1]}}]");
    let over = over("fallback: Deny");
    let picture = Subject { content_type: Some(1), ..subject(BEFORE) };
    assert_eq!(word(ask(&policy, &picture, Some(&over)).fallback(Cause::Broken)), "Deny 7000");
    assert_eq!(word(ask(&policy, &subject(BEFORE), Some(&over)).fallback(Cause::Broken)), "Deny 5100");
}

#[test]
fn an_after_command_s_fallback_is_always_the_plain_success() {
    let policy = policy("defaults: {fallback: Deny, fallbackFor: {timeout: Deny}}");
    let denying = over("fallback: Deny");
    for cause in Cause::ALL {
        for name in [AFTER, AFTER_IN_DISGUISE] {
            assert_eq!(ask(&policy, &subject(name), None).fallback(cause), Answer::Allow);
            assert_eq!(ask(&policy, &subject(name), Some(&denying)).fallback(cause), Answer::Allow);
        }
        for name in [BEFORE, "somethingNew"] {
            assert_eq!(word(ask(&policy, &subject(name), None).fallback(cause)), "Deny 5100");
        }
    }
}

#[test]
fn an_answer_is_given_here() {
    let policy = policy(
        "
rules:
  - {name: bots, match: {sendIDs: ['bot-*']}, answer: Allow}
  - {name: trolls, match: {sendIDs: ['troll-*']}, answer: Deny, deny: {errCode: 5666}}
",
    );
    for (sender, expected) in [
        ("bot-1", "Allow by rule bots"),
        ("troll-1", "Deny 5666 by rule trolls"),
        ("user-1", "ask by default"),
    ] {
        let subject = Subject { send_id: Some(Cow::Borrowed(sender)), ..subject(BEFORE) };
        assert_eq!(decided(&policy.decide(&subject, None, now())), expected);
    }
}

#[test]
fn an_override_s_answer_comes_before_rules_and_observe() {
    let text =
        "defaults: {deny: {errCode: 5500}}\nrules: [{name: all, answer: Allow, deny: {errCode: 5501}}]\n";
    let enforcing = policy(text);
    let observing = policy(&format!("{text}mode: Observe\n"));
    let denying = over("answer: Deny\ncommands: ['callbackBefore*']");
    for policy in [&enforcing, &observing] {
        let decision = policy.decide(&subject(BEFORE), Some(&denying), now());
        assert_eq!(decided(&decision), "Deny 5500 by override a test");
    }
    let uncovered = enforcing.decide(&subject(AFTER), Some(&denying), now());
    assert_eq!(decided(&uncovered), "Allow by rule all");
    assert_eq!(decided(&observing.decide(&subject(AFTER), Some(&denying), now())), "ask by all");
}

#[test]
fn an_override_covers_its_commands_until_its_time() {
    let policy = Policy::builtin();
    let all = over("answer: Allow");
    let some = over("answer: Allow\ncommands: [callbackOnlinePushCommand]");
    for (over, name, covered) in [
        (&all, BEFORE, true),
        (&all, "somethingNew", true),
        (&some, "callbackBeforeOnlinePushCommand", true),
        (&some, "callbackOnlinePushCommand", true),
        (&some, BEFORE, false),
    ] {
        let expected = if covered { "Allow by override a test" } else { "ask by default" };
        assert_eq!(decided(&policy.decide(&subject(name), Some(over), now())), expected, "{name}");
    }
    let last = all.until() - ms(1);
    assert!(all.active(last) && !all.active(all.until()));
    assert_eq!(decided(&policy.decide(&subject(BEFORE), Some(&all), last)), "Allow by override a test");
    assert_eq!(decided(&policy.decide(&subject(BEFORE), Some(&all), all.until())), "ask by default");
    let fallback = over("fallback: Deny");
    let Decision::Ask(plan) = policy.decide(&subject(BEFORE), Some(&fallback), fallback.until()) else {
        panic!("answered")
    };
    assert_eq!((plan.over, plan.fallback(Cause::Timeout)), (None, Answer::Allow));
}

#[test]
fn observe_asks_everything_for_as_long_as_the_caller_waits() {
    let text = "
defaults: {callerTimeout: 4s, fallback: Deny}
rules:
  - {name: answered, match: {contentTypes: [1]}, answer: Deny, deny: {errCode: 5001}}
  - {name: asked, timeout: 300ms, breaker: {}, maxInFlight: 3}
";
    let (enforcing, observing) = (policy(text), policy(&format!("{text}mode: Observe\n")));
    let asked = ask(&enforcing, &subject(BEFORE), None);
    assert_eq!((asked.timeout, asked.observe, asked.would_answer), (ms(300), false, None));
    assert_eq!((asked.breaker().is_some(), asked.max_in_flight()), (true, Some(3)));

    let asked = ask(&observing, &subject(BEFORE), None);
    assert_eq!((asked.timeout, asked.observe, asked.would_answer), (ms(3_800), true, None));
    assert_eq!((asked.breaker(), asked.max_in_flight()), (None, None));
    assert_eq!(word(asked.fallback(Cause::Timeout)), "Deny 5100", "what would be given can be told");

    let picture = Subject { content_type: Some(1), ..subject(BEFORE) };
    assert_eq!(decided(&enforcing.decide(&picture, None, now())), "Deny 5001 by rule answered");
    let plan = ask(&observing, &picture, None);
    assert_eq!(plan.would_answer.map(word), Some("Deny 5001".to_owned()));
    assert_eq!((&*plan.rule.name, plan.rule_index, plan.timeout), ("answered", 0, ms(3_800)));
    assert_eq!(enforcing.longest_timeout(), ms(2_000));
    assert_eq!(observing.longest_timeout(), ms(3_800));
}

#[test]
fn the_longest_timeout_is_that_of_any_callback() {
    assert_eq!(policy("rules: [{timeout: 4s}]").longest_timeout(), ms(4_000));
    assert_eq!(policy("rules: [{timeout: 100ms}]").longest_timeout(), ms(2_000));
    assert_eq!(policy("defaults: {timeout: 1s}\nrules: [{answer: Allow}]").longest_timeout(), ms(1_000));
}

#[test]
fn a_short_caller_timeout_shortens_the_built_in_timeout() {
    for (caller, timeout) in [("1s", 800), ("2s", 1_800), ("3s", 2_000), ("15s", 2_000)] {
        let policy = policy(&format!("defaults: {{callerTimeout: {caller}}}"));
        assert_eq!(policy.rules()[0].timeout(), ms(timeout), "{caller}");
    }
}

#[test]
fn the_switches_of_validation_and_mode_are_read() {
    let policy = policy(
        "validation: {unknownCommands: Reject, operationID: Generate, fieldTypes: Reject, onRejection: Allow}\n\
         mode: Observe",
    );
    assert_eq!(
        *policy.validation(),
        Validation {
            unknown_commands: UnknownCommands::Reject,
            operation_id: OperationIds::Generate,
            field_types: FieldTypes::Reject,
            on_rejection: OnRejection::Allow,
        }
    );
    assert_eq!(policy.mode(), Mode::Observe);
}

#[test]
fn every_bound_holds_on_both_sides() {
    let name = |chars: usize| format!("rules: [{{name: '{}'}}]", "ü".repeat(chars));
    let text = |key: &str, bytes: usize| format!("defaults: {{deny: {{{key}: '{}'}}}}", "x".repeat(bytes));
    let ids = |count: usize| format!("rules: [{{match: {{sendIDs: [{}]}}}}]", "x,".repeat(count));
    let pattern = |bytes: usize| format!("rules: [{{match: {{sendIDs: ['{}']}}}}]", "x".repeat(bytes));
    let rules = |count: usize| "rules:\n".to_owned() + &"- {}\n".repeat(count);
    let default = |text: &str| format!("defaults: {{{text}}}");
    let breaker = |text: &str| format!("rules: [{{breaker: {{{text}}}}}]");
    for (good, bad, path) in [
        (default("callerTimeout: 1s"), default("callerTimeout: 999ms"), "defaults.callerTimeout"),
        (default("callerTimeout: 15s"), default("callerTimeout: 16s"), "defaults.callerTimeout"),
        (default("callerTimeout: 2000ms"), default("callerTimeout: 2500ms"), "defaults.callerTimeout"),
        (default("timeout: 10ms"), default("timeout: 9.9ms"), "defaults.timeout"),
        (default("timeout: 4800ms"), default("timeout: 4801ms"), "defaults.timeout"),
        ("rules: [{timeout: 4.8s}]".to_owned(), "rules: [{timeout: 5s}]".to_owned(), "rules[0].timeout"),
        (default("deny: {errCode: 5000}"), default("deny: {errCode: 4999}"), "defaults.deny.errCode"),
        (default("deny: {errCode: 9999}"), default("deny: {errCode: 10000}"), "defaults.deny.errCode"),
        (text("errMsg", 1_024), text("errMsg", 1_025), "defaults.deny.errMsg"),
        (text("errDlt", 1_024), text("errDlt", 1_025), "defaults.deny.errDlt"),
        (default("maxInFlight: 0"), default("maxInFlight: -1"), "defaults.maxInFlight"),
        (default("maxInFlight: 1000000"), default("maxInFlight: 1000001"), "defaults.maxInFlight"),
        (breaker("failureRate: 1"), breaker("failureRate: 1.01"), "rules[0].breaker.failureRate"),
        (breaker("failureRate: 0.01"), breaker("failureRate: 0.0"), "rules[0].breaker.failureRate"),
        (breaker("failureRate: .5"), breaker("failureRate: '0.5'"), "rules[0].breaker.failureRate"),
        (breaker("minimumCallbacks: 1"), breaker("minimumCallbacks: 0"), "rules[0].breaker.minimumCallbacks"),
        (
            breaker("minimumCallbacks: 100000"),
            breaker("minimumCallbacks: 100001"),
            "rules[0].breaker.minimumCallbacks",
        ),
        (breaker("window: 1s"), breaker("window: 999ms"), "rules[0].breaker.window"),
        (breaker("window: 10m"), breaker("window: 10m1s"), "rules[0].breaker.window"),
        (breaker("openFor: 100ms"), breaker("openFor: 99ms"), "rules[0].breaker.openFor"),
        (breaker("openFor: 10m"), breaker("openFor: 601s"), "rules[0].breaker.openFor"),
        (name(63), name(64), "rules[0].name"),
        (ids(1_000), ids(1_001), "rules[0].match.sendIDs"),
        (pattern(256), pattern(257), "rules[0].match.sendIDs[0]"),
        (rules(1_000), rules(1_001), "rules"),
        ("version: 1".to_owned(), "version: 0".to_owned(), "version"),
        ("version: 1".to_owned(), "version: '1'".to_owned(), "version"),
    ] {
        assert!(compile(&good).is_ok(), "{path}: {:?}", compile(&good).err());
        let found = compile(&bad).expect_err(path);
        let paths: Vec<_> = found.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, [path], "{found}");
    }
}

#[test]
fn problems_are_worded_as_kubectl_does() {
    for (text, expected) in [
        ("rules: [{timeout: 0s}]", "rules[0].timeout: Invalid value: \"0s\": must be at least 10ms"),
        ("rules: [{timeout: 2}]", "rules[0].timeout: Invalid value: 2: must have a unit, as in 300ms or 2s"),
        ("rules: [{timeuot: 2s}]", "rules[0].timeuot: Unknown key: did you mean \"timeout\"?"),
        (
            "rules: [{match: {qqqqqqqq: 1}}]",
            "rules[0].match.qqqqqqqq: Unknown key: known keys are commands, phase, messages, contentTypes, msgFrom, \
             sessionTypes, sendIDs, recvIDs, groupIDs, platformIDs",
        ),
        (
            "defaults: {fallback: yes}",
            "defaults.fallback: Unsupported value: yes: supported values: \"Allow\", \"Deny\"",
        ),
        (
            "rules: [{name: on}]",
            "rules[0].name: Invalid value: on: must be a string, and without quotes this may be read as a boolean: \
             write \"on\"",
        ),
        (
            "defaults: {maxInFlight: 010}",
            "defaults.maxInFlight: Invalid value: 010: must be an integer without leading zeros, which may be read \
             as octal",
        ),
        (
            "rules: [{breaker: }]",
            "rules[0].breaker: Invalid value: null: must be a mapping: write {} for the \
         defaults, or leave the key out for none",
        ),
        (
            "rules: [{name: default}]",
            "rules[0].name: Invalid value: \"default\": is the name of the rule that is \
         always the last",
        ),
        (
            "rules: [{name: 'rules[1]'}]",
            "rules[0].name: Invalid value: \"rules[1]\": is how rules without a name are \
         called",
        ),
        (
            "rules: [{name: \"a\\nb\"}]",
            "rules[0].name: Invalid value: \"a\\nb\": must not hold control characters",
        ),
        ("rules: [{name: a}, {name: a}]", "rules[1].name: Duplicate value: \"a\": rules[0] has it already"),
        ("rules:\n- {}\n- x", "rules[1]: Invalid value: \"x\": must be a mapping of keys to values"),
        ("mode: Enforce\nmode: Observe", "mode: Duplicate key: it stands in line 1 already"),
        ("a: 1\n---\nb: 1", "Too many: must be one document, and here a second one begins"),
        ("<<: {mode: Observe}", "<<: Unknown key: merge keys are not supported; repeat the keys"),
        ("? [a]\n: b", "Invalid key: must be text"),
        ("mode: !x Observe", "mode: Unsupported value: !x: supported values: \"Enforce\", \"Observe\""),
        (
            "rules: !!set {a}",
            "rules: Invalid value: tag:yaml.org,2002:set: must be a list; the tag \
         tag:yaml.org,2002:set is not supported",
        ),
        (
            "rules: [{match: {commands: ['']}}]",
            "rules[0].match.commands[0]: Invalid value: \"\": must not be empty",
        ),
        ("rules: [{match: {commands: }}]", "rules[0].match.commands: Invalid value: null: must be a list"),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
}

#[test]
fn a_match_key_that_is_wrong_never_widens_a_rule() {
    for key in [
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
    ] {
        for value in ["[]", "null", "{}", "x", "[[]]", "[null]"] {
            let text = format!("rules: [{{match: {{{key}: {value}}}}}]");
            assert_eq!(problems(&text).len(), 1, "{text}");
        }
    }
}

#[test]
fn answer_stands_alone() {
    for (key, good) in [
        ("timeout: 1s", false),
        ("breaker: {}", false),
        ("fallback: Deny", false),
        ("fallbackFor: {}", false),
        ("maxInFlight: 1", false),
        ("crashingFields: Pass", false),
        ("deny: {errCode: 5001}", true),
        ("match: {}", true),
    ] {
        let text = format!("rules: [{{answer: Deny, {key}}}]");
        assert_eq!(compile(&text).is_ok(), good, "{text}");
        assert!(compile(&text.replace("answer: Deny, ", "")).is_ok(), "{text}");
    }
}

#[test]
fn every_problem_has_its_place_and_they_come_in_order() {
    let problems = compile("rules:\n  - timeout: 0s\n    nmae: x\nmode: X\n").expect_err("three problems");
    let places: Vec<_> = problems.iter().map(|it| (it.path.as_str(), it.line.zip(it.column))).collect();
    assert_eq!(
        places,
        [("rules[0].timeout", Some((2, 14))), ("rules[0].nmae", Some((3, 5))), ("mode", Some((4, 7))),]
    );
    assert_eq!(problems.len(), 3);
    assert_eq!(problems.to_string().lines().count(), 3);
}

#[test]
fn every_cause_is_a_key_of_fallback_for() {
    for cause in Cause::ALL {
        let policy = policy(&format!("rules: [{{fallbackFor: {{{}: Deny}}}}]", cause.label()));
        for other in Cause::ALL {
            let denied = policy.rules()[0].fallback(other) != Answer::Allow;
            assert_eq!(denied, other == cause, "{cause:?} {other:?}");
        }
    }
}

#[test]
fn unknown_commands_are_refused_only_where_they_look_like_a_slip() {
    for (name, good) in [
        ("callbackBeforeSendSingleMsgCommand", true),
        ("callbackOnlinePushCommand", true),
        ("callbackBeforePushCommand", true),
        ("callbackBeforeSendChannelMsgCommand", true),
        ("'callbackBeforeSendSingel*'", true),
        ("callbackBeforeSendSingelMsgCommand", false),
        ("CallbackBeforeSendSingleMsgCommand", false),
        ("beforeSendSingleMsg", false),
    ] {
        assert_eq!(compile(&format!("rules: [{{match: {{commands: [{name}]}}}}]")).is_ok(), good, "{name}");
    }
}

#[test]
fn patterns_that_take_long_are_a_warning_with_an_estimate() {
    let patterns =
        |make: &dyn Fn(usize) -> String, count: usize| (0..count).map(make).collect::<Vec<_>>().join(",");
    let rule = |list: &str| format!("{{match: {{sendIDs: [{list}]}}}}");
    let contains = |count| rule(&patterns(&|n| format!("'*z{n}*'"), count));
    assert_eq!(
        warnings(&format!("rules: [{}, {}]", contains(50), contains(1000).replace("z", "y"))),
        [
            "rules: Slow: the patterns may add 1.6 ms to each callback (an estimate, for IDs of 1 KiB), 1.5 ms of it rules[1]; \
             more than 0.3 ms delays others: write IDs in full or as prefix-*, which cost next to nothing, or use fewer patterns \
             with text between two *"
        ]
    );
    // Of each rule little, of all too much.
    let thirty = vec![contains(30); 30].join(",");
    let found = warnings(&format!("rules: [{thirty}]"));
    assert_eq!(found.iter().filter(|warning| warning.contains("Slow")).count(), 1, "{found:?}");
    for cheap in [
        contains(100),
        rule(&patterns(&|n| format!("'u{n}'"), 1000)),
        rule(&patterns(&|n| format!("'u{n}-*'"), 1000)),
        rule(&patterns(&|n| format!("'*-{n}'"), 1000)),
    ] {
        assert_eq!(warnings(&format!("rules: [{cheap}]")), [""; 0]);
    }
}

#[test]
fn an_id_above_1_kib_is_matched_by_no_pattern_with_a_star() {
    let policy = policy("rules: [{name: starred, match: {sendIDs: ['*', 'a*']}, answer: Deny}]");
    for (bytes, rule) in
        [(1024, "Deny 5100 by rule starred"), (1025, "ask by default"), (1 << 20, "ask by default")]
    {
        let subject = Subject { send_id: Some("a".repeat(bytes).into()), ..subject(BEFORE) };
        assert_eq!(decided(&policy.decide(&subject, None, now())), rule, "{bytes}");
    }
}

#[test]
fn a_rule_that_never_matches_is_a_warning() {
    let text = "
rules:
  - {name: before, match: {phase: [Before]}}
  - {name: single, match: {commands: [callbackBeforeSendSingleMsgCommand], sendIDs: [a]}}
  - {name: group, match: {commands: ['callback*'], sendIDs: [a]}}
";
    assert_eq!(warnings(text), ["rules[1]: Never matches: \"before\" fits every callback it is for"],);
    let (_, found) = compile(text).expect("usable");
    assert_eq!(found.iter().map(|it| it.line.zip(it.column)).collect::<Vec<_>>(), [Some((4, 5))]);
    assert_eq!(
        warnings("rules: [{name: all}, {match: {sendIDs: [a]}}, {}]"),
        [
            "rules[1]: Never matches: \"all\" fits every callback it is for",
            "rules[2]: Never matches: \"all\" fits every callback it is for",
        ]
    );
    assert_eq!(warnings("rules: [{match: {sendIDs: [a]}}, {match: {recvIDs: [a]}}, {}]"), [""; 0]);
}

#[test]
fn aliases_save_writing() {
    let policy = policy("rules: [{name: a, match: {sendIDs: &ids [x]}}, {name: b, match: {recvIDs: *ids}}]");
    let received = Subject { recv_id: Some(Cow::Borrowed("x")), ..subject(BEFORE) };
    assert_eq!(&*ask(&policy, &received, None).rule.name, "b");
}

#[test]
fn an_override_has_one_action_a_reason_and_an_end() {
    let full = "until: 2026-12-01T10:00:00Z\nreason: r\n";
    let long = "x".repeat(257);
    for (text, expected) in [
        (format!("answer: Allow\nfallback: Deny\n{full}"), vec![
            "fallback: Forbidden: may not stand beside answer, which does not ask the app".to_owned(),
        ]),
        (full.to_owned(), vec!["answer: Required value: write answer or fallback".to_owned()]),
        ("answer: Allow".to_owned(), vec![
            "until: Required value".to_owned(),
            "reason: Required value".to_owned(),
        ]),
        (format!("answer: Maybe\n{full}"), vec![
            "answer: Unsupported value: \"Maybe\": supported values: \"Allow\", \"Deny\"".to_owned(),
        ]),
        (format!("answer: Deny\ncommand: x\n{full}"), vec![
            "command: Unknown key: did you mean \"commands\"?".to_owned(),
        ]),
        (format!("answer: Deny\ncommands: [callbackBeforeAddBlackComand]\n{full}"), vec![
            "commands[0]: Invalid value: \"callbackBeforeAddBlackComand\": is no command; did you mean \
             \"callbackBeforeAddBlackCommand\"?"
                .to_owned(),
        ]),
        ("answer: Deny\nuntil: tomorrow\nreason: r".to_owned(), vec![
            "until: Invalid value: \"tomorrow\": must be an RFC 3339 timestamp, as in 2026-12-01T10:00:00Z".to_owned(),
        ]),
        ("answer: Deny\nuntil: 2026-12-08T00:00:01Z\nreason: r".to_owned(), vec![
            "until: Invalid value: \"2026-12-08T00:00:01Z\": must be at most 7 days ahead".to_owned(),
        ]),
        (format!("answer: Deny\nuntil: 2026-12-08T00:00:00Z\nreason: {long}"), vec![
            "reason: Too long: 257 characters: must be at most 256 characters".to_owned(),
        ]),
        ("answer: Deny\nuntil: 2026-12-08T00:00:00Z\nreason: ' '".to_owned(), vec![
            "reason: Invalid value: \" \": must say why".to_owned(),
        ]),
    ] {
        let problems = overrides::compile(&text, now()).expect_err(&text);
        assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{text}");
    }
    for good in [
        "answer: Deny\nuntil: 2026-12-08T00:00:00Z\nreason: r".to_owned(),
        format!("fallback: Allow\nuntil: '2026-12-08T01:00:00+01:00'\nreason: {}", "x".repeat(256)),
    ] {
        assert!(quiet(overrides::compile(&good, now()).expect(&good)).is_some());
    }
}

#[test]
fn a_past_override_is_inert_and_says_so() {
    let text = "answer: Deny\nuntil: 2026-12-01T00:00:00Z\nreason: r";
    let (over, warnings) = overrides::compile(text, now()).expect("usable");
    let over = over.expect("an override");
    assert_eq!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["until: Past: \"2026-12-01T00:00:00Z\": the override is inert"]
    );
    assert!(!over.active(now()));
    assert_eq!(decided(&Policy::builtin().decide(&subject(BEFORE), Some(&over), now())), "ask by default");
}

#[test]
fn an_empty_override_is_none() {
    for text in ["", "# over\n", "---\n"] {
        assert_eq!(quiet(overrides::compile(text, now()).expect("usable")), None);
    }
    assert!(overrides::compile("{}", now()).is_err());
}

#[test]
fn threads_may_share_a_policy() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Policy>();
    shared::<Override>();
    shared::<Problems>();
}

#[test]
fn each_check_of_operation_ids_is_a_word_of_the_policy() {
    for (word, wanted) in [
        ("Report", OperationIds::Report),
        ("Require", OperationIds::Require),
        ("Generate", OperationIds::Generate),
    ] {
        let policy = policy(&format!("validation: {{operationID: {word}}}"));
        assert_eq!(policy.validation().operation_id, wanted);
        assert_eq!(policy.to_json()["validation"]["operationID"], word);
    }
    assert_eq!(
        problems("validation: {operationID: Reject}"),
        [
            "validation.operationID: Unsupported value: \"Reject\": supported values: \"Report\", \"Require\", \"Generate\""
        ]
    );
}

#[test]
fn crashing_fields_come_from_the_rule_then_the_defaults_and_pass_in_observe() {
    use CrashingFields::{LeaveOut, Pass};
    for (text, expected) in [
        ("", LeaveOut),
        ("defaults: {crashingFields: Pass}", Pass),
        ("defaults: {crashingFields: Pass}\nrules: [{crashingFields: LeaveOut}]", LeaveOut),
        ("rules: [{crashingFields: Pass}]", Pass),
        ("rules: [{match: {sendIDs: [nobody]}, crashingFields: Pass}]", LeaveOut),
    ] {
        assert_eq!(ask(&policy(text), &subject(BEFORE), None).crashing_fields(), expected, "{text}");
        let observing = policy(&format!("mode: Observe\n{text}"));
        assert_eq!(ask(&observing, &subject(BEFORE), None).crashing_fields(), Pass, "{text}");
    }
    for (text, path) in [
        ("defaults: {crashingFields: true}", "defaults.crashingFields"),
        ("rules: [{crashingFields: leaveOut}]", "rules[0].crashingFields"),
    ] {
        let [problem] = &problems(text)[..] else { panic!("{text}") };
        assert!(problem.starts_with(path) && problem.contains("\"LeaveOut\", \"Pass\""), "{problem}");
    }
}

#[test]
fn what_is_in_force_is_shown_whole() {
    let policy = policy(
        "
mode: Observe
rules:
  - name: one
    match:
      {commands: ['callback*'], phase: [Before], messages: Users, contentTypes: [102, '5000-6000', 101], msgFrom: [200, 100],
       sessionTypes: [1], platformIDs: [2], sendIDs: [a], recvIDs: [b], groupIDs: [c]}
    timeout: 1500ms
    breaker: {}
    maxInFlight: 5
  - {name: two, match: {sendIDs: [d]}, answer: Deny}
",
    );
    let deny = json!({ "errCode": 5100, "errMsg": "temporarily unavailable", "errDlt": "" });
    let allow: serde_json::Map<_, _> =
        Cause::ALL.iter().map(|cause| (cause.label().to_owned(), json!("Allow"))).collect();
    assert_eq!(
        policy.to_json(),
        json!({
            "hash": policy.hash(),
            "mode": "Observe",
            "observeTimeout": "4800ms",
            "callerTimeout": "5s",
            "validation": {
                "unknownCommands": "Forward",
                "operationID": "Report",
                "fieldTypes": "Report",
                "onRejection": "Deny",
            },
            "rules": [
                {
                    "name": "one",
                    "match": {
                        "commands": ["callback*"],
                        "phase": ["Before"],
                        "messages": "Users",
                        "contentTypes": [101, 102, "5000-6000"],
                        "msgFrom": [100, 200],
                        "sessionTypes": [1],
                        "platformIDs": [2],
                        "sendIDs": ["a"],
                        "recvIDs": ["b"],
                        "groupIDs": ["c"],
                    },
                    "timeout": "1500ms",
                    "fallbackFor": allow,
                    "deny": deny,
                    "maxInFlight": 5,
                    "crashingFields": "LeaveOut",
                    "after": After::default().to_json(),
                    "breaker": { "failureRate": 0.5, "minimumCallbacks": 20, "window": "10s", "openFor": "5s" },
                },
                { "name": "two", "match": { "sendIDs": ["d"] }, "answer": "Deny", "deny": deny },
                {
                    "name": "default",
                    "match": {},
                    "timeout": "2s",
                    "fallbackFor": allow,
                    "deny": deny,
                    "maxInFlight": 0,
                    "crashingFields": "LeaveOut",
                    "after": After::default().to_json(),
                },
            ],
        })
    );
    assert!(Policy::builtin().to_json().get("observeTimeout").is_none());
}

#[test]
fn an_override_is_shown_whole() {
    let over = over("fallback: Deny\ncommands: ['callback*']");
    assert_eq!(
        over.to_json(),
        json!({
            "fallback": "Deny",
            "commands": ["callback*"],
            "until": "2026-12-01T10:00:00Z",
            "reason": "a test",
        })
    );
    let over = self::over("answer: Allow");
    assert_eq!(
        over.to_json(),
        json!({ "answer": "Allow", "until": "2026-12-01T10:00:00Z", "reason": "a test" })
    );
}

/// A reading of `*` that can be seen to be right.
fn naive(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => naive(rest, text),
        (Some((b'*', rest)), Some((_, behind))) => naive(rest, text) || naive(pattern, behind),
        (Some((wanted, rest)), Some((found, behind))) => wanted == found && naive(rest, behind),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

proptest! {
    #[test]
    fn patterns_match_what_a_plain_reading_matches(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
        prop_assert_eq!(glob::Glob::new(&pattern).matches(&text), naive(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn a_covering_pattern_matches_whatever_the_covered_one_does(
        wide in "[ab*]{0,5}", narrow in "[ab*]{0,5}", text in "[ab]{0,8}",
    ) {
        let (wide, narrow) = (glob::Glob::new(&wide), glob::Glob::new(&narrow));
        if wide.covers(&narrow) && narrow.matches(&text) {
            prop_assert!(wide.matches(&text));
        }
    }

    #[test]
    fn content_types_match_what_a_plain_reading_matches(
        ranges in proptest::collection::vec((0i64..6_000, 0i64..600), 1..6), number in 0i64..7_000,
    ) {
        let written: Vec<_> = ranges.iter().map(|(first, more)| format!("'{first}-{}'", first + more)).collect();
        let within = ranges.iter().any(|(first, more)| (*first..=first + more).contains(&number));
        let notification = (1000..=5000).contains(&number);
        let subject = Subject { content_type: Some(number), ..subject(BEFORE) };
        for (messages, wanted) in [("", true), ("messages: Users, ", !notification), ("messages: Notifications, ", notification)] {
            let text = format!("rules: [{{match: {{{messages}contentTypes: [{}]}}}}]", written.join(", "));
            let (policy, _) = compile(&text).map_err(|problems| TestCaseError::fail(problems.to_string()))?;
            prop_assert_eq!(policy.rule_index(&subject) == 0, within && wanted, "{} {}", text, number);
        }
    }

    /// What is warned of as never matching never matches, and where none is warned of a denial, none is denied.
    #[test]
    fn a_policy_without_the_warning_denies_no_notification(
        rules in proptest::collection::vec((0usize..6, 0usize..5, any::<bool>()), 0..4), by_default in any::<bool>(),
    ) {
        const MATCH: [&str; 6] = [
            "", "messages: Users", "messages: Notifications", "contentTypes: ['900-1600']", "contentTypes: [1508]", "msgFrom: [100]",
        ];
        const COMMANDS: [&str; 5] =
            ["", "commands: ['callback*']", "commands: ['*Push*']", "phase: [Before]", "commands: ['*SendGroup*']"];
        let verdict = |deny: bool| if deny { "Deny" } else { "Allow" };
        let rule = |(keys, commands, deny): &(usize, usize, bool)| {
            let keys: Vec<_> = [MATCH[*keys], COMMANDS[*commands]].into_iter().filter(|key| !key.is_empty()).collect();
            format!("{{match: {{{}}}, fallback: {}}}", keys.join(", "), verdict(*deny))
        };
        let written: Vec<_> = rules.iter().map(rule).collect();
        let text = format!("defaults: {{fallback: {}}}\nrules: [{}]", verdict(by_default), written.join(", "));
        let (policy, warnings) = compile(&text).map_err(|problems| TestCaseError::fail(problems.to_string()))?;
        if warnings.iter().any(is_about_notifications) {
            return Ok(());
        }
        for (name, content_type) in [
            ("callbackBeforeSendGroupMsgCommand", 1508), ("callbackBeforeSendGroupMsgCommand", 1501),
            ("callbackBeforeSendGroupMsgCommand", 5000), ("callbackBeforeOnlinePushCommand", 1508),
            ("callbackBeforeGroupOnlinePushCommand", 1000), ("callbackBeforeOfflinePushCommand", 2200),
        ] {
            let msg_from = name.contains("Send").then_some(200);
            let subject = Subject { content_type: Some(content_type), msg_from, ..subject(name) };
            let rule = &policy.rules()[policy.rule_index(&subject)];
            let meant = rules.get(policy.rule_index(&subject)).is_some_and(|(keys, ..)| matches!(keys, 2 | 4));
            prop_assert!(meant || rule.fallback(Cause::Timeout) == Answer::Allow, "{} {} {}", text, name, content_type);
        }
    }

    #[test]
    fn no_text_makes_the_compiler_panic(text in "\\PC{0,80}", yaml in "[-a-z0-9:,\\[\\]{}&*!'\"|>#% \n]{0,80}") {
        for text in [&text, &yaml, &format!("rules: [{{match: {{sendIDs: {yaml}}}}}]"), &format!("rules: [{{match: {{contentTypes: ['{yaml}', {yaml}]}}}}]")] {
            let _ = compile(text);
            let _ = overrides::compile(text, now());
            let _ = duration::parse(text);
            let _ = timestamp::parse(text);
        }
    }
}

#[test]
fn of_a_callback_whose_body_is_unknown_a_rule_that_may_be_for_it_and_denies_counts() {
    let denial = |text: &str, command: &'static str| {
        let (policy, _) = compile(text).expect("a policy");
        policy.blind_denial(&subject(command), Cause::Overloaded).map(|rule| rule.name.to_string())
    };
    let pictures = "rules: [{name: pictures, match: {contentTypes: [102]}, fallback: Deny}]";
    let banned = "rules: [{name: banned, match: {sendIDs: [x]}, answer: Deny}]";
    let push = "rules: [{name: push, match: {commands: [callbackBeforeOnlinePushCommand]}, fallback: Deny}]";
    let shielded =
        "rules: [{name: all, match: {phase: [Before]}}, {name: banned, match: {sendIDs: [x]}, answer: Deny}]";
    for (text, expected) in [
        (pictures, Some("pictures")),
        (banned, Some("banned")),
        ("defaults: {fallback: Deny}", Some("default")),
        ("defaults: {fallbackFor: {overloaded: Deny}}", Some("default")),
        // Twins: for another command, behind a rule that is for it for certain, and where all allow.
        (push, None),
        (shielded, None),
        ("rules: [{name: pictures, match: {contentTypes: [102]}, timeout: 1s}]", None),
        ("", None),
    ] {
        assert_eq!(denial(text, BEFORE).as_deref(), expected, "{text}");
        assert_eq!(denial(text, AFTER), None, "{text}: nobody reads the answer");
    }
}

#[test]
fn a_decision_by_the_rule_is_the_decision_by_the_callback() {
    let text = "rules:\n\
                - {name: one, match: {sendIDs: [a]}, answer: Deny}\n\
                - {name: two, match: {sendIDs: [b]}, timeout: 1s}\n\
                - {name: three, match: {commands: [callbackAfterSendSingleMsgCommand]}}";
    let overs = [
        over("answer: Deny\ncommands: [callbackAfterSendSingleMsgCommand]"),
        over("fallback: Deny\ncommands: [callbackBeforeSendSingleMsgCommand]"),
    ];
    for mode in ["Enforce", "Observe"] {
        let policy = policy(&format!("mode: {mode}\n{text}"));
        for over in [None, Some(&overs[0]), Some(&overs[1])] {
            for (id, name, rule) in [
                ("a", "callbackBeforeSendSingleMsgCommand", 0),
                ("b", "callbackBeforeSendSingleMsgCommand", 1),
                ("c", "callbackAfterSendSingleMsgCommand", 2),
                ("c", "callbackOfTomorrow", 3),
            ] {
                let named = Subject { name, command: command::lookup(name), ..Subject::default() };
                let subject = Subject { send_id: Some(id.into()), ..named.clone() };
                assert_eq!(policy.rule_index(&subject), rule);
                let whole = policy.decide(&subject, over, now());
                let by_rule = policy.decide_by_rule(rule, &named, over, now());
                assert_eq!(format!("{whole:?}"), format!("{by_rule:?}"));
                if let Decision::Ask(plan) = &whole {
                    let again = policy.plan(plan.rule_index, &named, plan.over);
                    assert_eq!(format!("{plan:?}"), format!("{again:?}"));
                }
            }
        }
    }
}
