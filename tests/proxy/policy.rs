//! What a policy says, seen from outside: which rule decides, when the app is asked, and what an override and the mode
//! Observe change.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::support::app::ALLOW;
use crate::support::{Act, App, Call, Caller, Guard, OpenIm, openim_verdict, within};

const SINGLE: &str = "callbackBeforeSendSingleMsgCommand";
const GROUP: &str = "callbackBeforeSendGroupMsgCommand";
const AFTER: &str = "callbackAfterSendSingleMsgCommand";
const UNKNOWN: &str = "callbackBeforeSomethingNewCommand";

#[tokio::test]
async fn each_key_of_a_match_picks_its_rule_and_nothing_near_it() {
    let policy = r#"
defaults: {callerTimeout: 15s, timeout: 14s}
rules:
  - {name: both, match: {contentTypes: [110], sendIDs: [boss]}}
  - {name: content, match: {contentTypes: [102, 103]}}
  - {name: session, match: {sessionTypes: [3]}}
  - {name: sender, match: {sendIDs: ["bot-*", exact]}}
  - {name: receiver, match: {recvIDs: ["vip*"]}}
  - {name: group, match: {groupIDs: ["g-*-end"]}}
  - {name: platform, match: {platformIDs: [5]}}
  - {name: system, match: {msgFrom: [200]}}
  - {name: kicked, match: {messages: Notifications, contentTypes: [1, "1508-1511"]}}
  - {name: files, match: {messages: Users, contentTypes: ["104-105", 1509]}}
  - {name: pushes, match: {commands: [callbackBeforePushCommand, "callbackBefore*PushCommand"]}}
  - {name: friends, match: {commands: [callbackBeforeAddFriendCommand]}}
  - {name: newcomers, match: {phase: [Unknown]}}
  - {name: past, match: {phase: [After]}, after: {delivery: Inline}}
"#;
    let single = || Call::new(SINGLE).with("sendID", "u1").with("recvID", "u2");
    let rows = [
        (single(), "default"),
        (single().with("contentType", 110).with("sendID", "boss"), "both"),
        (single().with("contentType", 110), "default"),
        (single().with("sendID", "boss"), "default"),
        (single().with("sendID", format!("bot-{}", "x".repeat(1020))), "sender"),
        (single().with("sendID", format!("bot-{}", "x".repeat(1021))), "default"),
        (single().with("contentType", 103), "content"),
        (single().with("contentType", "103"), "default"),
        (single().with("contentType", 1030), "default"),
        (single().with("contentType", 1507), "default"),
        (single().with("contentType", 1508), "kicked"),
        (single().with("contentType", 1511), "kicked"),
        (single().with("contentType", 1512), "default"),
        (single().with("contentType", 1), "default"),
        (single().with("contentType", 104), "files"),
        (single().with("contentType", 105), "files"),
        (single().with("contentType", 106), "default"),
        (single().with("contentType", 105).with("msgFrom", 200), "system"),
        (single().with("msgFrom", "200"), "default"),
        (single().without("contentType"), "default"),
        (single().with("sessionType", 3), "session"),
        (single().with("sendID", "bot-7"), "sender"),
        (single().with("sendID", "bot-"), "sender"),
        (single().with("sendID", "exact"), "sender"),
        (single().with("sendID", "Bot-7"), "default"),
        (single().with("sendID", "exactly"), "default"),
        (single().with("sendID", Value::Null), "default"),
        (single().with("recvID", "vip"), "receiver"),
        (single().with("recvID", "a vip"), "default"),
        (Call::new(GROUP).with("sendID", "u1").with("groupID", "g-1-end").with("sessionType", 2), "group"),
        (Call::new(GROUP).with("sendID", "u1").with("groupID", "g-end").with("sessionType", 2), "default"),
        (single().with("senderPlatformID", 5), "platform"),
        (single().with("platformID", 5), "platform"),
        (Call::new("callbackBeforePushCommand"), "pushes"),
        (Call::new("callbackBeforeOfflinePushCommand"), "pushes"),
        // What earlier servers call callbackBeforeOnlinePushCommand.
        (Call::new("callbackOnlinePushCommand"), "pushes"),
        (Call::new("callbackBeforeAddFriendCommand"), "friends"),
        (Call::new(UNKNOWN), "newcomers"),
        (Call::new("callbackBeforeAfterMsgCommand"), "past"),
        (Call::new("callbackAfterUserOfflineCommand"), "past"),
    ];
    let app = App::allowing();
    let guard = Guard::with(policy).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (call, rule) in &rows {
        let answer = caller.send(call).await;
        assert_eq!(answer.told(), "allow upstream -", "{call:?} {}", answer.text());
        assert_eq!(guard.decision(&call.operation_id())["rule"], *rule, "{call:?}");
    }
    assert_eq!(app.asked().len(), rows.len());
}

/// On a v3.8.x server the command is sent for notifications too.
#[tokio::test]
async fn a_deny_for_messages_of_users_lets_notifications_through_and_one_for_all_does_not() {
    let group = |content_type| Call::new(GROUP).with("contentType", content_type);
    for (key, kicked) in [("messages: Users, ", "allow fallback"), ("", "deny fallback")] {
        let policy = format!(
            "rules: [{{match: {{{key}commands: [{GROUP}]}}, fallback: Deny, deny: {{errCode: 5101}}}}]"
        );
        let app = App::start(|_| vec![Act::json("no JSON")]);
        let guard = Guard::with(&policy).upstream(&app).start();
        let mut caller = Caller::h2(&guard).await;
        for (content_type, told) in [(101, "deny fallback"), (1508, kicked), (1000, kicked), (5000, kicked)] {
            let answer = caller.send(&group(content_type)).await;
            assert_eq!(answer.told(), format!("{told} invalid"), "{key}{content_type}");
        }
        assert_eq!(caller.send(&group(5001)).await.told(), "deny fallback invalid");
        assert_eq!(caller.send(&group(999)).await.told(), "deny fallback invalid");
    }
}

#[tokio::test]
async fn the_timeout_of_the_rule_is_what_the_app_is_told_and_given() {
    let policy = r#"
defaults: {callerTimeout: 15s, timeout: 9s}
rules:
  - {name: short, match: {contentTypes: [1]}, timeout: 300ms}
  - {name: long, match: {contentTypes: [2]}, timeout: 14800ms}
"#;
    let app = App::start(|asked| match asked.values("Silent")[..] {
        [] => vec![Act::json(ALLOW)],
        _ => vec![Act::Silence],
    });
    let guard = Guard::with(policy).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (kind, least, most) in [(1, 1, 300), (2, 9_000, 14_800), (3, 301, 9_000)] {
        // A rule of 300 ms may be over before a busy machine has asked; then there is nothing to see.
        let answer = caller.send(&Call::new(SINGLE).with("contentType", kind)).await;
        assert_eq!(answer.status, 200);
        if answer.told() == "allow upstream -" {
            let asked = app.asked();
            let left =
                asked[asked.len() - 1].values("Callback-Guard-Timeout-Ms")[0].parse().expect("a number");
            assert!((least..=most).contains(&left), "{kind}: {left}");
        } else {
            assert_eq!((kind, answer.told().as_str()), (1, "allow fallback timeout"));
        }
    }
    let call = Call::new(SINGLE).with("contentType", 1).header("Silent", "yes");
    assert_eq!(caller.send(&call).await.told(), "allow fallback timeout");
}

#[tokio::test]
async fn the_nearest_source_of_a_fallback_wins() {
    let policy = r#"
defaults:
  fallback: Deny
  fallbackFor: {invalid: Allow}
  deny: {errCode: 6000, errMsg: sorry, errDlt: later}
rules:
  - {name: bare, match: {contentTypes: [1]}}
  - {name: own, match: {contentTypes: [2]}, fallback: Deny, deny: {errCode: 6001}}
  - {name: per cause, match: {contentTypes: [3]}, fallback: Allow, fallbackFor: {invalid: Deny}, deny: {errMsg: busy}}
"#;
    let app = App::start(|asked| match asked.values("Status")[..] {
        [] => vec![Act::json("no answer")],
        _ => vec![Act::answer("500 Oops", &[], "")],
    });
    let guard = Guard::with(policy).upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    let deny = |code, message| json!({"actionCode": 0, "errCode": code, "errMsg": message, "errDlt": "later", "nextCode": 1});
    let allow = || serde_json::from_str::<Value>(ALLOW).expect("JSON");
    let rows = [
        (1, allow(), deny(6000, "sorry")),
        (2, deny(6001, "sorry"), deny(6001, "sorry")),
        (3, deny(6000, "busy"), allow()),
        (4, allow(), deny(6000, "sorry")),
    ];
    for (kind, invalid, status) in rows {
        let call = Call::new(SINGLE).with("contentType", kind);
        let answer = caller.send(&call).await;
        assert_eq!((answer.json(), answer.header("callback-guard-cause")), (invalid, "invalid"), "{kind}");
        let answer = caller.send(&call.header("Status", "500")).await;
        assert_eq!((answer.json(), answer.header("callback-guard-cause")), (status, "status"), "{kind}");
    }
}

#[tokio::test]
async fn a_rule_with_an_answer_leaves_the_app_alone() {
    let policy = r#"
rules:
  - {name: "yes", match: {sendIDs: ["bot-*"]}, answer: Allow}
  - {name: "no", match: {contentTypes: [102]}, answer: Deny, deny: {errCode: 7000, errMsg: no pictures}}
  - {name: groups, match: {commands: [callbackBeforeSetGroupInfoCommand]}, answer: Allow}
"#;
    let app = App::answering("no answer");
    let guard = Guard::with(policy).upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let bot = Call::new(SINGLE).with("sendID", "bot-1");
        let answer = caller.send(&bot).await;
        assert_eq!(
            (answer.status, answer.told().as_str(), answer.text().as_str()),
            (200, "allow rule -", ALLOW)
        );
        let line = guard.decision(&bot.operation_id());
        assert_eq!(["level", "rule", "origin", "cause"].map(|key| &line[key]), ["INFO", "yes", "rule", ""]);
        let answer = caller.send(&Call::new(SINGLE).with("contentType", 102)).await;
        assert_eq!((answer.status, answer.told().as_str()), (200, "deny rule -"));
        let text = r#"{"actionCode":0,"errCode":7000,"errMsg":"no pictures","errDlt":"","nextCode":1}"#;
        assert_eq!((answer.text().as_str(), openim_verdict(&answer.body)), (text, OpenIm::Denied(7000)));
        let group =
            Call::new("callbackBeforeSetGroupInfoCommand").with("groupID", "g").with("groupName", "name");
        let answer = caller.send(&group).await;
        assert_eq!((answer.told().as_str(), openim_verdict(&answer.body)), ("allow rule -", OpenIm::Allowed));
        assert_eq!((&answer.json()["groupID"], &answer.json()["groupName"]), (&json!("g"), &json!("name")));
    }
    assert_eq!(app.connections(), 0);
    let labels = [("rule", "no"), ("verdict", "deny"), ("origin", "rule"), ("cause", "none")];
    assert_eq!(guard.count("callback_guard_callbacks_total", &labels), 2.0);
    let answer = Caller::h1(&guard).await.send(&Call::new(SINGLE)).await;
    assert_eq!((answer.told().as_str(), app.asked().len()), ("allow fallback invalid", 1));
}

/// RFC 3339, so many milliseconds from now.
fn from_now(millis: u64) -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let then = since + Duration::from_millis(millis);
    let (mut days, seconds) = (then.as_secs() / 86_400, then.as_secs() % 86_400);
    let mut year = 1970;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let (month, day, milli) = (month + 1, days + 1, then.subsec_millis());
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[tokio::test]
async fn an_override_answers_what_it_covers_above_all_rules() {
    let policy = "mode: Observe\nrules: [{name: rule, match: {sendIDs: [bot]}, answer: Allow}]";
    let over = format!(
        "answer: Deny\ncommands: [\"callbackBeforeSend*\"]\nuntil: \"{}\"\nreason: incident 42",
        from_now(3_600_000)
    );
    let app = App::allowing();
    let guard = Guard::with(policy).file("--override-file", "override.yaml", over).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for call in [Call::new(SINGLE), Call::new(GROUP), Call::new(SINGLE).with("sendID", "bot")] {
        let answer = caller.send(&call).await;
        assert_eq!((answer.status, answer.told().as_str()), (200, "deny rule -"));
        assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5100));
        assert_eq!(guard.decision(&call.operation_id())["override"], "incident 42");
    }
    assert_eq!(app.asked().len(), 0);
    assert_eq!(guard.metric("callback_guard_override_active"), 1.0);
    for command in [AFTER, "callbackBeforeAddFriendCommand", UNKNOWN] {
        assert_eq!(caller.send(&Call::new(command)).await.told(), "allow upstream -");
    }
    std::fs::remove_file(guard.path("override.yaml")).expect("a file");
    guard.wait_for_log(|line| line.contains("The override is taken away"));
    assert_eq!(caller.send(&Call::new(SINGLE)).await.told(), "allow upstream -");
    assert_eq!(guard.metric("callback_guard_override_active"), 0.0);
}

#[tokio::test]
async fn the_fallback_of_an_override_still_asks_and_beats_every_other() {
    let policy = "defaults: {fallback: Deny, fallbackFor: {invalid: Deny}}\n\
                  rules: [{name: rule, match: {phase: [Before]}, fallback: Deny, fallbackFor: {invalid: Deny}}]";
    let app = App::start(|asked| match asked.values("Good")[..] {
        [] => vec![Act::json("no answer")],
        _ => vec![Act::json(r#"{"actionCode":0,"errCode":5001,"errMsg":"","errDlt":"","nextCode":1}"#)],
    });
    let guard = Guard::with(policy).flag("--override-file", "").upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    assert_eq!(caller.send(&Call::new(SINGLE)).await.told(), "deny fallback invalid");
    drop(guard);
    let over = format!("fallback: Allow\nuntil: \"{}\"\nreason: incident 43", from_now(3_600_000));
    let guard = Guard::with(policy).file("--override-file", "override.yaml", over).upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    for command in [SINGLE, UNKNOWN] {
        let call = Call::new(command);
        assert_eq!(caller.send(&call).await.told(), "allow fallback invalid");
        assert_eq!(guard.decision(&call.operation_id())["override"], "incident 43");
    }
    assert_eq!(caller.send(&Call::new(SINGLE).header("Good", "yes")).await.told(), "deny upstream -");
    assert_eq!(app.asked().len(), 4);
}

#[tokio::test]
async fn an_override_ends_by_itself() {
    let app = App::allowing();
    let over = format!("answer: Deny\nuntil: \"{}\"\nreason: a moment", from_now(1_500));
    let guard = Guard::with("").file("--override-file", "override.yaml", over).upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    let asked = within("the override's end", async {
        loop {
            match caller.send(&Call::new(SINGLE)).await.told().as_str() {
                "deny rule -" => {}
                told => break told.to_owned(),
            }
        }
    });
    assert_eq!(asked.await, "allow upstream -");
    assert_eq!(guard.metric("callback_guard_override_active"), 0.0);
    guard.wait_for_log(|line| line.contains("The override has ended by itself"));
    assert_eq!(caller.send(&Call::new(SINGLE)).await.told(), "allow upstream -");
}

const OBSERVE: &str = r#"
mode: Observe
defaults: {fallback: Deny, maxInFlight: 1}
validation: {operationID: Require, fieldTypes: Reject, unknownCommands: Reject}
rules:
  - {name: answering, match: {sendIDs: [bot]}, answer: Deny}
  - {name: broken, match: {contentTypes: [102]}, breaker: {failureRate: 0.1, minimumCallbacks: 1, window: 60s, openFor: 60s}}
"#;

#[tokio::test]
async fn observed_answers_travel_untouched_and_what_would_have_been_is_told() {
    let rows: [(&str, &str, u16, &str, &str, &str); 7] = [
        (r#"{"actionCode":0,"nextCode":"1"}"#, "200 OK", 200, "deny", "deny", ""),
        ("no answer", "200 OK", 200, "deny", "deny", "invalid"),
        (ALLOW, "500 Oops", 500, "allow", "deny", "status"),
        (r#"{"actionCode":1,"nextCode":0}"#, "200 OK", 200, "allow", "deny", "refused-by-app"),
        (ALLOW, "302 Found", 200, "allow", "deny", "status"),
        (r#"{"actionCode":0,"errCode":7,"nextCode":1}"#, "200 OK", 200, "deny", "deny", ""),
        ("\u{feff}{}", "200 OK", 200, "deny", "allow", ""),
    ];
    let answers = rows.map(|(body, status, ..)| {
        Act::answer(status, &[("Location", "/x"), ("X-App", "1")], body.to_owned())
    });
    let app = App::start(move |asked| {
        let row: usize = asked.values("Row")[0].parse().expect("a number");
        vec![answers[row].clone()]
    });
    let guard = Guard::with(OBSERVE).upstream(&app).start();
    assert_eq!(guard.metric("callback_guard_observe_mode"), 1.0);
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for (at, (body, _, status, verdict, would, cause)) in rows.into_iter().enumerate() {
            let call = Call::new(SINGLE).with("contentType", 102).header("Row", at.to_string());
            let answer = caller.send(&call).await;
            assert_eq!((answer.status, answer.text().as_str()), (status, body), "row {at}");
            assert_eq!(answer.told(), format!("{verdict} upstream -"), "row {at}");
            assert_eq!((answer.header("location"), answer.header("x-app")), ("", "1"), "row {at}");
            let line = guard.decision(&call.operation_id());
            assert_eq!([&line["enforceVerdict"], &line["enforceCause"]], [would, cause], "row {at}: {line}");
        }
    }
    for (cause, count) in [("invalid", 2.0), ("status", 4.0), ("refused-by-app", 2.0), ("none", 6.0)] {
        let labels = [("cause", cause)];
        assert_eq!(guard.count("callback_guard_observed_total", &labels), count, "{cause}");
    }
    assert_eq!(app.asked().len(), rows.len() * 2, "no breaker acts");
}

#[tokio::test]
async fn observed_requests_that_would_be_rejected_travel_on_untouched() {
    let app = App::allowing();
    let guard = Guard::with(OBSERVE).flag("--max-request-size", "64KiB").upstream(&app).start();
    let rows = [
        (Call::new(SINGLE).body("no JSON"), "body"),
        (Call::new(SINGLE).body(&b"\xff\xfe"[..]), "body"),
        (Call::new(SINGLE).target("/"), "command"),
        (Call::new(SINGLE).with("callbackCommand", GROUP), "command"),
        (Call::new(SINGLE).header("operationID", "another"), "operation-id"),
        (Call::new(SINGLE).with("contentType", "102"), "field-type"),
        (Call::new(UNKNOWN), "unknown-command"),
    ];
    let mut caller = Caller::h2(&guard).await;
    for (at, (call, cause)) in rows.iter().enumerate() {
        let answer = caller.send(call).await;
        assert_eq!((answer.told().as_str(), answer.text().as_str()), ("allow upstream -", ALLOW), "{cause}");
        let asked = app.asked();
        assert_eq!((asked.len(), &asked[at].body), (at + 1, &call.body), "{cause}");
        assert_eq!(asked[at].target(), call.target);
        let line = guard.decision(&call.operation_id());
        assert_eq!([&line["enforceVerdict"], &line["enforceCause"]], ["deny", cause], "{line}");
    }
    assert_eq!(guard.count("callback_guard_observed_total", &[]), rows.len() as f64);
    assert_eq!(guard.count("callback_guard_rejections_total", &[]), 0.0);
    // What was not read whole cannot travel, and GET is no callback of anybody's.
    let large = Call::new(SINGLE).with("content", "x".repeat(64 << 10));
    assert_eq!(caller.send(&large).await.told(), "deny rejection too-large");
    assert_eq!(caller.send(&Call::new(SINGLE).method("GET")).await.told(), "deny rejection method");
    assert_eq!(app.asked().len(), rows.len());
}

#[tokio::test]
async fn while_observing_no_rule_answers_and_no_rule_bounds_and_silence_is_still_answered() {
    let gate = crate::support::Gate::closed();
    let held = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |asked| match asked.values("Mood")[..] {
        ["held"] => held.clone(),
        ["silent"] => vec![Act::Silence],
        _ => vec![Act::json(ALLOW)],
    });
    let guard = Guard::with(
        format!("{OBSERVE}\n").replace("defaults: {", "defaults: {callerTimeout: 1s, timeout: 10ms, "),
    );
    let guard = guard.upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let bot = Call::new(SINGLE).with("sendID", "bot");
    assert_eq!(caller.send(&bot).await.told(), "allow upstream -");
    let waiting = tokio::spawn(caller.begin(&Call::new(SINGLE).header("Mood", "held")));
    app.wait_for_asked(2).await;
    assert_eq!(caller.send(&Call::new(SINGLE)).await.told(), "allow upstream -", "maxInFlight does not act");
    gate.open();
    let answer = within("the one held", waiting).await.expect("no panic").expect("an answer");
    assert_eq!(answer.status, 200);
    let answer = caller.send(&Call::new(SINGLE).header("Mood", "silent")).await;
    assert_eq!((answer.status, answer.told().as_str()), (200, "deny fallback timeout"));
    let line = guard.decision(&bot.operation_id());
    assert_eq!([&line["enforceVerdict"], &line["rule"]], ["deny", "answering"], "{line}");
}
