//! What a policy may say, and its author probably did not mean: usable, with a warning.

use super::glob::Glob;
use super::plan::Rule;
use super::reader::{Field, Findings};
use super::rule::{Commands, Match, Steps};
use super::spec::{Node, Value};
use super::suggest;
use crate::callback::command::{self, Command, Notifications, Phase};
use crate::callback::subject::Messages;
use crate::cause::Cause;
use crate::policy::Fallback;

/// The after-command whose name says otherwise.
const REVOKE: &str = "callbackBeforeAfterMsgCommand";

/// How many warnings a policy may have before no more patterns are compared with every command for what was meant: that
/// takes some 0.1 ms each, and a policy has room for 50,000.
const SUGGESTIONS: usize = 100;

/// Warns of patterns in a list of commands that fit no command, and of those that were meant for every after-command.
pub(super) fn patterns(elements: &[Field<'_>], commands: &Commands, findings: &mut Findings) {
    for field in elements {
        let Some(pattern) = field.node.scalar().filter(|name| name.contains('*')) else { continue };
        let glob = Glob::new(pattern);
        let suggest = findings.warnings.len() < SUGGESTIONS;
        let mut warn = |message: String| findings.warning(&field.path, field.node.at, message);
        if !command::names().any(|(name, _)| glob.matches(name)) {
            let near = suggest.then(|| suggest::resembling_pattern(pattern)).flatten();
            let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            warn(format!("Fits no command that OpenIM is known to send: {pattern:?}{near}"));
        } else if let Some(revoke) = command::lookup(REVOKE)
            && !commands.has(revoke)
            && after().all(|command| glob.matches(command.name) != std::ptr::eq(command, revoke))
        {
            warn(format!(
                "Misses {REVOKE}, which is sent after a message was revoked: in a rule write phase: [After] instead of \
                 {pattern:?}, or name it too"
            ));
        }
    }
}

fn after() -> impl Iterator<Item = &'static Command> {
    command::all().iter().filter(|command| command.phase == Phase::After)
}

/// Warns of rules that can match nothing, because their content types are not those of the messages they are for.
pub(super) fn contradictions(fields: &[Field<'_>], rules: &[Rule], findings: &mut Findings) {
    for (field, rule) in fields.iter().zip(rules) {
        let Some(messages) = rule.matches.messages else { continue };
        if rule.matches.contents().is_some_and(|left| left.is_empty()) {
            let message = format!(
                "Never matches: none of its contentTypes is of {}, as notifications are those from 1000 to 5000",
                match messages {
                    Messages::Users => "users' messages",
                    Messages::Notifications => "notifications",
                }
            );
            let at = field
                .node
                .get("match")
                .and_then(|node| node.get("messages"))
                .map_or(field.node.at, |it| it.at);
            findings.warning(&format!("{}.match.messages", field.path), at, message);
        }
    }
}

/// Warns of rules that deny notifications beside other callbacks. `last` is the default rule; `defaults` is that section,
/// if it is there. One that is for notifications alone says that it means them.
pub(super) fn denied_notifications(
    fields: &[Field<'_>],
    rules: &[Rule],
    (defaults, last): (Option<&Field<'_>>, &Rule),
    findings: &mut Findings,
    mut steps: Steps,
) {
    let mut denied = |index: usize, rule: &Rule| -> Vec<&'static Command> {
        if !denies(rule) || only_notifications(&rule.matches) {
            return Vec::new();
        }
        let earlier = &rules[..index];
        let left = |command: &&'static Command| {
            let Some(notifications) = rule.matches.of_notifications(command) else { return false };
            !earlier.iter().any(|rule| rule.matches.covers(&notifications, &mut steps))
        };
        command::all().iter().filter(left).collect()
    };
    let by_default = denied(rules.len(), last);
    let of_rules: Vec<_> = rules.iter().enumerate().map(|(index, rule)| denied(index, rule)).collect();
    if steps.spent() {
        return;
    }
    for (field, commands) in fields.iter().zip(of_rules) {
        let key = denying_key(field.node);
        // What a rule takes over from the defaults is said once, there.
        if commands.is_empty() || (key.is_none() && !by_default.is_empty()) {
            continue;
        }
        let (path, at) = match key {
            Some((key, node)) => (format!("{}.{key}", field.path), node.at),
            None => (field.path.clone(), field.node.at),
        };
        findings.warning(&path, at, denial(&commands, "add messages: Users to its match"));
    }
    if let Some(field) = defaults.filter(|_| !by_default.is_empty()) {
        let (path, at) = match denying_key(field.node) {
            Some((key, node)) => (format!("{}.{key}", field.path), node.at),
            None => (field.path.clone(), field.node.at),
        };
        let remedy = "make {match: {messages: Notifications}, fallback: Allow} the first rule";
        findings.warning(&path, at, denial(&by_default, remedy));
    }
}

/// Warns of an override that denies notifications; it has no way to leave them out.
pub(super) fn overridden_notifications(
    field: &Field<'_>,
    commands: Option<&Commands>,
    findings: &mut Findings,
) {
    let matches = Match { commands: commands.cloned(), ..Match::default() };
    let commands: Vec<_> =
        command::all().iter().filter(|command| matches.of_notifications(command).is_some()).collect();
    if !commands.is_empty() {
        let remedy = "to deny users' messages alone, use a rule with messages: Users";
        findings.warning(&field.path, field.node.at, denial(&commands, remedy));
    }
}

fn denies(rule: &Rule) -> bool {
    match rule.answer {
        Some(answer) => answer == Fallback::Deny,
        None => Cause::ALL.into_iter().any(|cause| rule.fallbacks.of(cause) == Fallback::Deny),
    }
}

/// Whether every content type it is for is a notification's.
fn only_notifications(matches: &Match) -> bool {
    let Some(contents) = matches.contents() else { return false };
    let users = Match { messages: Some(Messages::Users), ..Match::default() };
    users.contents().is_some_and(|users| users.both(&contents).is_empty())
}

/// The key of a rule, or of the defaults, that says `Deny`.
fn denying_key(node: &Node) -> Option<(&'static str, &Node)> {
    ["answer", "fallback", "fallbackFor"].into_iter().find_map(|key| {
        let value = node.get(key)?;
        let says = |node: &Node| node.scalar() == Some(Fallback::Deny.label());
        let denies = match &value.value {
            Value::Map(entries) => entries.iter().any(|(_, value)| says(value)),
            Value::Scalar { .. } | Value::List(_) | Value::Tagged(_) => says(value),
        };
        denies.then_some((key, &**value))
    })
}

fn denial(commands: &[&'static Command], remedy: &str) -> String {
    let listed = |wanted: Notifications| {
        let names =
            commands.iter().filter(|command| command.notifications == wanted).map(|command| command.name);
        names.collect::<Vec<_>>().join(", ")
    };
    let (releases, always) = (listed(Notifications::Releases), listed(Notifications::Always));
    let mut sent = Vec::new();
    if !releases.is_empty() {
        sent.push(format!("OpenIM v3.8 sends {releases} for them"));
    }
    if !always.is_empty() {
        sent.push(format!("every OpenIM sends {always} for them"));
    }
    format!(
        "Denies notifications too, such as \"you were kicked\" ({}): {remedy}, or leave it if that is meant",
        sent.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use crate::policy::{compile, overrides};

    /// Path and message of each warning.
    fn warnings(text: &str) -> Vec<(String, String)> {
        let (_, warnings) = compile(text).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
        warnings.into_iter().map(|warning| (warning.path, warning.message)).collect()
    }

    /// Where it is said that notifications are denied; nothing else is.
    fn denied(text: &str) -> Vec<String> {
        let said = |(path, message): (String, String)| {
            assert!(message.starts_with("Denies notifications too"), "{text}\n{message}");
            path
        };
        warnings(text).into_iter().map(said).collect()
    }

    #[test]
    fn a_deny_that_covers_notifications_is_warned_of_where_it_is_written() {
        const GROUP: &str = "callbackBeforeSendGroupMsgCommand";
        for (rule, path) in [
            ("answer: Deny", "rules[0].answer"),
            ("fallback: Deny", "rules[0].fallback"),
            ("fallbackFor: {timeout: Allow, status: Deny}", "rules[0].fallbackFor"),
            ("fallback: Deny, fallbackFor: {timeout: Allow}", "rules[0].fallback"),
            ("match: {phase: [Before]}, fallback: Deny", "rules[0].fallback"),
            ("match: {commands: ['callback*']}, fallback: Deny", "rules[0].fallback"),
            ("match: {commands: [callbackBeforeSendGroupMsgCommand]}, answer: Deny", "rules[0].answer"),
            ("match: {commands: [callbackBeforeOnlinePushCommand]}, answer: Deny", "rules[0].answer"),
            ("match: {contentTypes: ['100-2000']}, answer: Deny", "rules[0].answer"),
            ("match: {contentTypes: [102, 1508]}, answer: Deny", "rules[0].answer"),
            ("match: {msgFrom: [100, 200]}, answer: Deny", "rules[0].answer"),
            ("match: {sendIDs: ['bot-*']}, answer: Deny", "rules[0].answer"),
        ] {
            assert_eq!(denied(&format!("rules: [{{{rule}}}]")), [path], "{rule}");
        }
        let (path, message) =
            warnings(&format!("rules: [{{match: {{commands: [{GROUP}]}}, fallback: Deny}}]")).remove(0);
        assert_eq!(
            (path.as_str(), message.as_str()),
            (
                "rules[0].fallback",
                "Denies notifications too, such as \"you were kicked\" (OpenIM v3.8 sends callbackBeforeSendGroupMsgCommand \
                 for them): add messages: Users to its match, or leave it if that is meant"
            )
        );
    }

    #[test]
    fn a_deny_that_covers_none_or_means_them_or_comes_too_late_is_not_warned_of() {
        for rule in [
            "answer: Allow",
            "fallback: Allow, fallbackFor: {status: Allow}",
            "match: {messages: Users}, answer: Deny",
            "match: {messages: Notifications}, answer: Deny",
            "match: {contentTypes: [1508]}, fallback: Deny",
            "match: {contentTypes: ['101-999', 5001]}, fallback: Deny",
            "match: {contentTypes: [101, 2000], messages: Users}, fallback: Deny",
            "match: {msgFrom: [100]}, fallback: Deny",
            "match: {phase: [After, Unknown]}, fallback: Deny",
            "match: {commands: [callbackBeforeSendSingleMsgCommand]}, fallback: Deny",
            "match: {commands: [callbackBeforeMsgModifyCommand, 'callback*Friend*']}, answer: Deny",
            // The command has no recvID.
            "match: {commands: [callbackBeforeSendGroupMsgCommand], recvIDs: [u1]}, answer: Deny",
            "match: {commands: [aNewServersCommand]}, fallback: Deny",
        ] {
            assert_eq!(denied(&format!("rules: [{{{rule}}}]")), [""; 0], "{rule}");
        }
        let deny = "{match: {commands: ['callback*']}, answer: Deny}";
        for (first, warned) in [
            ("{match: {messages: Notifications}, fallback: Allow}", false),
            ("{match: {contentTypes: ['1000-5000']}, answer: Allow}", false),
            ("{match: {phase: [Before], messages: Notifications}, answer: Allow}", false),
            ("{match: {messages: Notifications, sendIDs: [u1]}, answer: Allow}", true),
            ("{match: {messages: Users}, answer: Allow}", true),
            ("{match: {contentTypes: ['1001-5000']}, answer: Allow}", true),
        ] {
            assert_eq!(denied(&format!("rules: [{first}, {deny}]")).len(), usize::from(warned), "{first}");
        }
    }

    #[test]
    fn what_rules_take_over_from_the_defaults_is_warned_of_once() {
        let defaults = "defaults: {fallback: Deny}\n";
        let notifications = "{match: {messages: Notifications}, fallback: Allow}";
        for (rules, paths) in [
            ("", &["defaults.fallback"][..]),
            ("rules: [{timeout: 1s, match: {sendIDs: [u]}}]", &["defaults.fallback"]),
            ("rules: [{fallback: Deny, match: {sendIDs: [u]}}]", &["defaults.fallback", "rules[0].fallback"]),
            (&format!("rules: [{notifications}, {{timeout: 1s}}]"), &[]),
            // Its rule comes before.
            (
                &format!("rules: [{{match: {{platformIDs: [1]}}, timeout: 1s}}, {notifications}]"),
                &["rules[0]"],
            ),
        ] {
            assert_eq!(denied(&format!("{defaults}{rules}")), paths, "{rules}");
        }
        assert_eq!(denied("defaults: {fallbackFor: {timeout: Deny}}"), ["defaults.fallbackFor"]);
        assert_eq!(denied("defaults: {fallback: Allow}"), [""; 0]);
    }

    #[test]
    fn an_override_that_denies_notifications_is_warned_of_while_it_is_in_force() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_083_200);
        for (action, until, warned) in [
            ("answer: Deny", 10, true),
            ("fallback: Deny", 10, true),
            ("fallback: Deny\ncommands: ['*Push*']", 10, true),
            ("answer: Allow", 10, false),
            (
                "answer: Deny\ncommands: [callbackBeforeAddFriendCommand, 'callbackAfter*SendSingle*']",
                10,
                false,
            ),
            ("answer: Deny", 0, false),
        ] {
            let text = format!("{action}\nuntil: 2026-12-01T{until:02}:00:00Z\nreason: r\n");
            let (_, warnings) = overrides::compile(&text, now).expect("usable");
            let said = warnings.iter().any(|warning| warning.message.starts_with("Denies notifications too"));
            assert_eq!(said, warned, "{text}");
        }
    }

    #[test]
    fn a_pattern_that_fits_no_command_is_warned_of_with_what_was_meant() {
        let fits_none = |pattern: &str, near: &str| {
            let said = format!("Fits no command that OpenIM is known to send: {pattern:?}{near}");
            assert_eq!(
                warnings(&format!("rules: [{{match: {{commands: [callbackNew, '{pattern}']}}}}]")),
                [("rules[0].match.commands[1]".to_owned(), said)]
            );
        };
        fits_none("callbackbefore*", "; did you mean \"callbackBefore*\"?");
        fits_none("callbackBeforeSned*", "; did you mean \"callbackBeforeSend*\"?");
        fits_none("somethingNew*", "");
        fits_none("*/callbackBefore*", "");
        for pattern in ["*", "callback*", "callbackBefore*PushCommand", "*SendGroupMsg*", "callbackOnline*"] {
            assert_eq!(
                warnings(&format!("rules: [{{match: {{commands: ['{pattern}']}}}}]")),
                [],
                "{pattern}"
            );
        }
    }

    #[test]
    fn a_hundred_patterns_have_a_suggestion_and_further_ones_the_warning_alone() {
        let patterns = vec!["'callbackbefore*'"; 1_000].join(", ");
        let found = warnings(&format!("rules: [{{match: {{commands: [{patterns}]}}}}]"));
        assert_eq!(found.len(), 1_000);
        let suggested = found.iter().filter(|(_, message)| message.contains("did you mean"));
        assert_eq!(suggested.count(), 100);
    }

    #[test]
    fn a_pattern_for_every_after_command_that_misses_the_revoke_is_warned_of() {
        let of = |commands: &str| {
            warnings(&format!("rules: [{{match: {{commands: [{commands}]}}, after: {{timeout: 50ms}}}}]"))
        };
        for commands in
            ["'callbackAfter*'", "'callbackAfter*Command'", "callbackBeforeAddFriendCommand, 'c*kAfter*'"]
        {
            let found = of(commands);
            assert_eq!(found.len(), 1, "{commands}: {found:?}");
            let message = &found[0].1;
            assert!(message.starts_with("Misses callbackBeforeAfterMsgCommand"), "{message}");
            assert!(message.contains("phase: [After]"), "{message}");
        }
        for commands in [
            "'callbackAfter*', callbackBeforeAfterMsgCommand",
            "'callbackAfter*', '*AfterMsg*'",
            "'callback*After*'",
            "'callbackAfterSend*'",
            "'callback*'",
        ] {
            assert_eq!(of(commands), [], "{commands}");
        }
        assert_eq!(warnings("rules: [{match: {phase: [After]}, after: {timeout: 50ms}}]"), []);
    }

    #[test]
    fn content_types_of_the_other_kind_never_match_and_are_warned_of() {
        let of = |keys: &str| warnings(&format!("rules: [{{match: {{{keys}}}}}]"));
        for keys in [
            "messages: Users, contentTypes: [1508, '2000-3000']",
            "messages: Notifications, contentTypes: [101]",
        ] {
            let found = of(keys);
            assert!(
                found.iter().any(|(path, message)| path == "rules[0].match.messages"
                    && message.starts_with("Never matches: none of its contentTypes is of ")),
                "{found:?}"
            );
        }
        assert_eq!(of("messages: Users, contentTypes: [101, 1508]"), []);
        assert_eq!(of("messages: Notifications, contentTypes: ['100-1000']"), []);
    }
}
