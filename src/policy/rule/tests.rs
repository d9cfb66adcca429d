//! Which callbacks a rule is for, key by key.

use super::*;

fn subject(name: &str) -> Subject<'_> {
    Subject { name, command: command::lookup(name), ..Subject::default() }
}

fn commands(names: &[&str]) -> Commands {
    Commands::new(names.iter().map(|name| (*name).to_owned()).collect())
}

fn globs(patterns: &[&str]) -> Option<Vec<Glob>> {
    Some(patterns.iter().map(|pattern| Glob::new(pattern)).collect())
}

fn ints(list: &[i64]) -> Option<Integers> {
    Some(Integers::new(list.iter().map(|number| (*number, *number)).collect()))
}

#[test]
fn every_command_of_the_table_has_its_own_place() {
    for (at, command) in command::all().iter().enumerate() {
        assert_eq!(index(command), at);
        let only = commands(&[command.name]);
        for other in command::all() {
            assert_eq!(only.contain(&subject(other.name)), std::ptr::eq(command, other), "{}", other.name);
        }
    }
}

#[test]
fn an_alias_and_today_s_name_are_equal() {
    let (alias, today) = ("callbackOnlinePushCommand", "callbackBeforeOnlinePushCommand");
    for written in [alias, today] {
        for sent in [alias, today] {
            assert!(commands(&[written]).contain(&subject(sent)), "{written} {sent}");
        }
        assert!(!commands(&[written]).contain(&subject("callbackBeforeOfflinePushCommand")));
    }
}

#[test]
fn a_pattern_is_held_against_the_name_as_sent_and_today_s() {
    let alias = subject("callbackOnlinePushCommand");
    assert!(commands(&["callbackOnline*"]).contain(&alias));
    assert!(commands(&["callbackBeforeOnline*"]).contain(&alias));
    assert!(!commands(&["callbackOnline*"]).contain(&subject("callbackBeforeOnlinePushCommand")));
    assert!(!commands(&["callbackAfter*"]).contain(&alias));
    assert!(commands(&["*"]).contain(&subject("somethingNew")));
    assert!(commands(&["something*"]).contain(&subject("somethingNew")));
    assert!(commands(&["somethingNew"]).contain(&subject("somethingNew")));
    assert!(!commands(&["somethingNew"]).contain(&subject("somethingElse")));
}

#[test]
fn keys_are_joined_by_and_their_elements_by_or() {
    let rule =
        Match { content_types: ints(&[101, 102]), send_ids: globs(&["bot-*", "u1"]), ..Match::default() };
    let with = |content_type, send_id: Option<&'static str>| Subject {
        content_type,
        send_id: send_id.map(Cow::Borrowed),
        ..Subject::default()
    };
    for (content_type, send_id, fits) in [
        (Some(101), Some("bot-9"), true),
        (Some(102), Some("u1"), true),
        (Some(103), Some("u1"), false),
        (Some(101), Some("u2"), false),
        (None, Some("u1"), false),
        (Some(101), None, false),
    ] {
        assert_eq!(rule.fits(&with(content_type, send_id)), fits, "{content_type:?} {send_id:?}");
    }
    assert!(Match::default().fits(&Subject::default()));
}

#[test]
fn each_key_reads_its_own_field() {
    let id = || Some(Cow::Borrowed("x"));
    let base = Subject::default;
    let rows: [(Match, Subject<'_>); 9] = [
        (
            Match { commands: Some(commands(&["callbackAfterUserOnlineCommand"])), ..Match::default() },
            subject("callbackAfterUserOnlineCommand"),
        ),
        (
            Match { phases: Some(vec![Phase::After]), ..Match::default() },
            subject("callbackBeforeAfterMsgCommand"),
        ),
        (
            Match { content_types: ints(&[1]), ..Match::default() },
            Subject { content_type: Some(1), ..base() },
        ),
        (Match { msg_from: ints(&[1]), ..Match::default() }, Subject { msg_from: Some(1), ..base() }),
        (
            Match { session_types: ints(&[1]), ..Match::default() },
            Subject { session_type: Some(1), ..base() },
        ),
        (
            Match { platform_ids: ints(&[1]), ..Match::default() },
            Subject { platform_ids: [None, Some(1)], ..base() },
        ),
        (Match { send_ids: globs(&["x"]), ..Match::default() }, Subject { send_id: id(), ..base() }),
        (Match { recv_ids: globs(&["x"]), ..Match::default() }, Subject { recv_id: id(), ..base() }),
        (Match { group_ids: globs(&["x"]), ..Match::default() }, Subject { group_id: id(), ..base() }),
    ];
    for (row, (rule, _)) in rows.iter().enumerate() {
        for (column, (_, subject)) in rows.iter().enumerate() {
            // The first subject is of an after-command too.
            let expected = row == column || (row == 1 && column == 0);
            assert_eq!(rule.fits(subject), expected, "rule {row}, subject {column}");
        }
    }
    let first = Match { platform_ids: ints(&[1]), ..Match::default() };
    assert!(first.fits(&Subject { platform_ids: [Some(1), Some(2)], ..base() }));
    let unknown = Match { phases: Some(vec![Phase::Unknown]), ..Match::default() };
    assert!(unknown.fits(&subject("somethingNew")));
}

#[test]
fn every_key_but_the_command_and_its_phase_looks_into_bodies() {
    let base = Match::default;
    for (rule, looks) in [
        (base(), false),
        (Match { commands: Some(commands(&["new"])), phases: Some(vec![Phase::Before]), ..base() }, false),
        (Match { messages: Some(Messages::Users), ..base() }, true),
        (Match { content_types: ints(&[1]), ..base() }, true),
        (Match { msg_from: ints(&[1]), ..base() }, true),
        (Match { session_types: ints(&[1]), ..base() }, true),
        (Match { platform_ids: ints(&[1]), ..base() }, true),
        (Match { send_ids: globs(&["x"]), ..base() }, true),
        (Match { recv_ids: globs(&["x"]), ..base() }, true),
        (Match { group_ids: globs(&["x"]), ..base() }, true),
    ] {
        assert_eq!(rule.looks_into_bodies(), looks, "{rule:?}");
    }
}

#[test]
fn every_key_counts_in_covering() {
    let keys = [
        Match { commands: Some(commands(&["new"])), ..Match::default() },
        Match { phases: Some(vec![Phase::Before]), ..Match::default() },
        Match { content_types: ints(&[1]), ..Match::default() },
        Match { messages: Some(Messages::Notifications), ..Match::default() },
        Match { msg_from: ints(&[1]), ..Match::default() },
        Match { session_types: ints(&[1]), ..Match::default() },
        Match { platform_ids: ints(&[1]), ..Match::default() },
        Match { send_ids: globs(&["x"]), ..Match::default() },
        Match { recv_ids: globs(&["x"]), ..Match::default() },
        Match { group_ids: globs(&["x"]), ..Match::default() },
    ];
    for (at, wide) in keys.iter().enumerate() {
        for (other, narrow) in keys.iter().enumerate() {
            assert_eq!(wide.covers(narrow, &mut Steps::new(1_000)), at == other, "{wide:?}\n{narrow:?}");
        }
    }
}

#[test]
fn one_rule_covers_another_key_by_key() {
    let single = "callbackBeforeSendSingleMsgCommand";
    let named = |names: &[&str]| Match { commands: Some(commands(names)), ..Match::default() };
    let senders = |patterns: &[&str]| Match { send_ids: globs(patterns), ..Match::default() };
    let types = |list: &[i64]| Match { content_types: ints(list), ..Match::default() };
    let about = |messages| Match { messages: Some(messages), ..Match::default() };
    let phases = |list: &[Phase]| Match { phases: Some(list.to_vec()), ..Match::default() };
    let every = [Phase::Before, Phase::After, Phase::Unknown];
    for (wide, narrow, covers) in [
        (Match::default(), senders(&["a"]), true),
        (senders(&["*"]), Match::default(), false),
        (senders(&["a*"]), senders(&["a1", "ab*"]), true),
        (senders(&["a*"]), senders(&["a1", "b"]), false),
        (types(&[1, 2]), types(&[2]), true),
        (types(&[2]), types(&[1, 2]), false),
        (about(Messages::Users), types(&[101, 999, 5001]), true),
        (about(Messages::Users), types(&[101, 1000]), false),
        (about(Messages::Notifications), types(&[1000, 5000]), true),
        (about(Messages::Notifications), types(&[5001]), false),
        (about(Messages::Users), about(Messages::Users), true),
        (about(Messages::Users), about(Messages::Notifications), false),
        (about(Messages::Users), Match::default(), false),
        (types(&[1000]), about(Messages::Notifications), false),
        (named(&["callbackBefore*"]), named(&[single]), true),
        (named(&[single]), named(&["callbackBefore*"]), false),
        (named(&["callbackBefore*"]), named(&["callbackBeforeSend*"]), true),
        (named(&["callbackOnlinePushCommand"]), named(&["callbackBeforeOnlinePushCommand"]), true),
        (named(&["new"]), named(&["new"]), true),
        (named(&["n*"]), named(&["new"]), true),
        (named(&["other"]), named(&["new"]), false),
        (named(&[single]), senders(&["a"]), false),
        (phases(&every), Match::default(), true),
        (phases(&[Phase::Before]), phases(&[Phase::Before]), true),
        (phases(&[Phase::Before]), phases(&[Phase::Before, Phase::After]), false),
        (phases(&[Phase::Before]), named(&[single]), true),
        (phases(&[Phase::After]), named(&[single]), false),
        (phases(&[Phase::Before]), named(&["callbackBeforeSend*"]), false),
    ] {
        assert_eq!(wide.covers(&narrow, &mut Steps::new(1_000)), covers, "{wide:?}\n{narrow:?}");
    }
    assert!(!senders(&["a*"]).covers(&senders(&["a1"]), &mut Steps::new(1)), "out of steps");
}

#[test]
fn users_messages_and_notifications_are_told_apart_and_what_has_no_content_type_is_neither() {
    for (messages, fits) in
        [(Messages::Users, [true, false, false]), (Messages::Notifications, [false, true, false])]
    {
        let rule = Match { messages: Some(messages), ..Match::default() };
        let found = [Some(101), Some(1508), None]
            .map(|content_type| rule.misfit(&Subject { content_type, ..Subject::default() }));
        assert_eq!(found.map(|misfit| misfit.is_none()), fits, "{messages:?}");
        assert!(found.iter().flatten().all(|key| *key == "messages"));
    }
}
