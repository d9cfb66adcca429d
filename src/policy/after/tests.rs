use std::time::SystemTime;

use super::super::{AnsweredBy, Decision, Override, Policy, compile, overrides};
use super::*;

const BEFORE: &str = "callbackBeforeSendSingleMsgCommand";
const AFTER: &str = "callbackAfterSendSingleMsgCommand";
const REVOKE: &str = "callbackBeforeAfterMsgCommand";

fn subject(name: &str) -> Subject<'_> {
    Subject { name, command: command::lookup(name), ..Subject::default() }
}

fn policy(text: &str) -> Policy {
    compile(text).unwrap_or_else(|problems| panic!("{text}\n{problems}")).0
}

/// What a command gets: who answers, or how its event is delivered.
fn decided(policy: &Policy, name: &str, over: Option<&Override>) -> String {
    match policy.decide(&subject(name), over, SystemTime::UNIX_EPOCH) {
        Decision::Answer { by: AnsweredBy::Rule(_), .. } => "rule".to_owned(),
        Decision::Answer { by: AnsweredBy::Override(_), .. } => "override".to_owned(),
        Decision::Ask(plan) => match plan.background() {
            None => "inline".to_owned(),
            Some(_) if plan.over.is_some_and(|over| over.answer().is_some()) => "paused".to_owned(),
            Some(_) => "background".to_owned(),
        },
    }
}

fn warnings(text: &str) -> Vec<String> {
    let (_, warnings) = compile(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    warnings.into_iter().map(|warning| warning.to_string()).collect()
}

#[test]
fn events_of_after_commands_alone_are_delivered_in_the_background_and_none_in_observe() {
    for (text, [before, after, revoke, unknown]) in [
        ("", ["inline", "background", "background", "inline"]),
        ("mode: Observe", ["inline"; 4]),
        ("defaults: {after: {delivery: Inline}}", ["inline"; 4]),
        (
            "rules: [{match: {commands: [callbackAfter*]}, after: {delivery: Inline}}]",
            ["inline", "inline", "background", "inline"],
        ),
        (
            "defaults: {after: {delivery: Inline}}\nrules: [{match: {phase: [After]}, after: {delivery: Background}}]",
            ["inline", "background", "background", "inline"],
        ),
        ("rules: [{match: {phase: [After]}, answer: Deny}]", ["inline", "rule", "rule", "inline"]),
    ] {
        let policy = policy(text);
        let found =
            [BEFORE, AFTER, REVOKE, "callbackAfterNewCommand"].map(|name| decided(&policy, name, None));
        assert_eq!(found, [before, after, revoke, unknown], "{text}");
    }
}

#[test]
fn an_override_s_answer_pauses_events_and_answers_everything_else() {
    let over = "{answer: Deny, until: \"1970-01-02T00:00:00Z\", reason: test}";
    let (over, _) = overrides::compile(over, SystemTime::UNIX_EPOCH).expect("valid");
    for (text, before, after) in [
        ("", "override", "paused"),
        ("mode: Observe", "override", "override"),
        ("defaults: {after: {delivery: Inline}}", "override", "override"),
        ("rules: [{answer: Allow}]", "override", "override"),
    ] {
        let policy = policy(text);
        let found = [BEFORE, AFTER].map(|name| decided(&policy, name, over.as_ref()));
        assert_eq!(found, [before, after], "{text}");
    }
    let fallback = "{fallback: Deny, until: \"1970-01-02T00:00:00Z\", reason: test}";
    let (over, _) = overrides::compile(fallback, SystemTime::UNIX_EPOCH).expect("valid");
    assert_eq!(decided(&policy(""), AFTER, over.as_ref()), "background");
}

#[test]
fn a_rule_takes_from_the_defaults_what_it_leaves_out() {
    let policy = policy(
        "defaults: {after: {timeout: 7s, order: Key}}\nrules: [{after: {keepFor: 1h, redeliver: WhenUnsure}}]",
    );
    let expected = After {
        delivery: Delivery::Background,
        timeout: Duration::from_secs(7),
        keep_for: Duration::from_secs(3_600),
        redeliver: Redeliver::WhenUnsure,
        order: Order::Key,
    };
    assert_eq!(policy.rules()[0].after(), &expected);
    assert_eq!(Policy::builtin().rules()[0].after(), &After::default());
}

#[test]
fn every_mistake_is_named_with_its_path() {
    for (after, expected) in [
        (
            "{delivery: background}",
            "after.delivery: Unsupported value: \"background\": supported values: \"Background\", \"Inline\"",
        ),
        ("{timeout: 5ms}", "after.timeout: Invalid value: \"5ms\": must be at least 10ms"),
        ("{timeout: 6m}", "after.timeout: Invalid value: \"6m\": must be at most 5m"),
        ("{keepFor: 0s}", "after.keepFor: Invalid value: \"0s\": must be at least 1s"),
        ("{keepFor: 25h}", "after.keepFor: Invalid value: \"25h\": must be at most 1440m"),
        ("{redeliver: Always}", "after.redeliver: Unsupported value: \"Always\""),
        ("{order: key}", "after.order: Unsupported value: \"key\""),
        ("{keepfor: 5m}", "after.keepfor: Unknown key: did you mean \"keepFor\"?"),
        ("[]", "after: Invalid value: []: must be a mapping of keys to values"),
        ("Inline", "after: Invalid value: \"Inline\": must be a mapping"),
        ("{order: Key, order: Key}", "after.order: Duplicate key"),
    ] {
        for (path, text) in [
            ("defaults.", format!("defaults: {{after: {after}}}")),
            ("rules[0].", format!("rules: [{{after: {after}}}]")),
        ] {
            let problems = compile(&text).expect_err(&text).to_string();
            assert!(problems.contains(&format!("{path}{expected}")), "{text}\n{problems}");
        }
    }
    assert!(compile("defaults: {after: }").is_ok(), "all below it is commented out");
    let beside = compile("rules: [{answer: Allow, after: {order: Key}}]")
        .expect_err("nothing is delivered")
        .to_string();
    assert!(beside.contains("rules[0].after: Forbidden: may not stand beside answer"), "{beside}");
}

#[test]
fn keys_without_an_effect_on_events_are_warned_of() {
    let only_after = "match: {commands: [callbackAfter*, callbackBeforeAfterMsgCommand]}";
    for key in ["timeout: 1s", "breaker: {}", "maxInFlight: 3"] {
        let name = key.split(':').next().expect("a key");
        let found = warnings(&format!("rules: [{{{only_after}, {key}}}]"));
        assert_eq!(found.len(), 1, "{key}: {found:?}");
        assert!(
            found[0].starts_with(&format!("rules[0].{name}: No effect: events of after-commands")),
            "{found:?}"
        );
        for text in [
            format!("rules: [{{{only_after}, {key}, after: {{delivery: Inline}}}}]"),
            format!("rules: [{{match: {{commands: [callback*]}}, {key}}}]"),
            format!("rules: [{{match: {{phase: [Before]}}, {key}}}]"),
        ] {
            assert_eq!(warnings(&text), [] as [&str; 0], "{text}");
        }
    }
    let found = warnings("rules: [{match: {commands: [callbackBefore*PushCommand]}, after: {order: Key}}]");
    assert_eq!(found, ["rules[0].after: No effect: the rule is for no after-command"]);
    let found = warnings("defaults: {after: {delivery: Inline, timeout: 3s, order: Key}}");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("defaults.after.timeout: No effect: with delivery Inline"), "{found:?}");
}

#[test]
fn a_keep_for_that_the_queue_is_too_small_for_is_warned_of() {
    let found = warnings("defaults: {after: {keepFor: 1h}}");
    assert_eq!(found.len(), 1, "{found:?}");
    let expected = "defaults.after.keepFor: Small queue: the 10000 events of the default --after-queue are full after 60m if more \
                    than 2.8 come in a second";
    assert!(found[0].starts_with(expected), "{found:?}");
    for keep_for in ["5m", "15m", "1000s"] {
        assert_eq!(warnings(&format!("defaults: {{after: {{keepFor: {keep_for}}}}}")), [] as [&str; 0]);
    }
}
