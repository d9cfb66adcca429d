//! What is logged, what never is, and that nobody waits for a log.

use std::collections::BTreeSet;
use std::time::Instant;

use base64::Engine as _;
use serde_json::Value;

use crate::support::caller::raw;
use crate::support::{Act, App, Asked, Call, Caller, Guard, Raw, eventually, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const DROPPED: &str = "callback_guard_log_lines_dropped_total";

/// What nobody but OpenIM and the app may see.
const MARKER: &str = "Zq7-marker-9xW";
const PASSWORD: &str = "p4ssw0rd-marker";

/// An app that answers as the header `Case` says.
fn app_of(cases: &[(&'static str, String)]) -> App {
    let cases = cases.to_vec();
    App::start(move |asked: &Asked| {
        let wanted = asked.values("Case");
        let case = cases.iter().find(|(name, _)| wanted == [*name]);
        case.map_or_else(|| vec![Act::Reset], |(_, body)| vec![Act::json(body.clone())])
    })
}

fn answers() -> Vec<(&'static str, String)> {
    let deny =
        format!(r#"{{"actionCode":0,"errCode":5001,"errMsg":"{MARKER}","errDlt":"{MARKER}","nextCode":1}}"#);
    vec![
        (
            "allow",
            format!(r#"{{"actionCode":0,"errCode":0,"errMsg":"{MARKER}","nextCode":0,"ex":"{MARKER}"}}"#),
        ),
        ("deny", deny),
        ("refused", format!(r#"{{"actionCode":1,"errMsg":"{MARKER}","nextCode":1}}"#)),
        ("corrected", format!(r#"{{"actionCode":"","errMsg":"{MARKER}","nextCode":"1","errCode":7}}"#)),
        ("not JSON", MARKER.to_owned()),
        ("cut", format!(r#"{{"actionCode":0,"errMsg":"{MARKER}"#)),
        ("a text for a code", format!(r#"{{"actionCode":0,"errCode":"{MARKER}","nextCode":"{MARKER}"}}"#)),
        (
            "an object for a text",
            format!(r#"{{"actionCode":0,"errMsg":{{"{MARKER}":"{MARKER}"}},"nextCode":0}}"#),
        ),
        ("an unknown key", format!(r#"{{"actionCode":0,"nextCode":0,"{MARKER}":["{MARKER}"]}}"#)),
        ("twice", format!(r#"{{"actionCode":0,"nextCode":0}}{MARKER}"#)),
    ]
}

/// A callback whose content is the marker, wherever content may stand.
fn marked() -> Call {
    let call = ["content", "ex", "senderNickname", "senderFaceURL"].iter();
    call.fold(Call::new(COMMAND), |call, field| call.with(field, MARKER))
}

fn authorized(call: Call, pair: &str) -> Call {
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    call.header("Authorization", format!("Basic {encoded}"))
}

/// Sends the marker through every outcome; gives how many callbacks there were.
async fn every_outcome(guard: &Guard, cases: &[(&'static str, String)]) -> usize {
    let mut told = BTreeSet::new();
    let mut sent = 0;
    for mut caller in [Caller::h1(guard).await, Caller::h2(guard).await] {
        let with = |call: Call| authorized(call, &format!("openim:{PASSWORD}"));
        let mut calls: Vec<_> = cases.iter().map(|(name, _)| with(marked().header("Case", name))).collect();
        calls.extend([
            with(marked()),
            authorized(marked(), &format!("{MARKER}:{PASSWORD}x")),
            with(marked().without_header("operationID")),
            with(marked()).body(MARKER),
            with(marked()).body(format!(r#"{{"callbackCommand":"{COMMAND}","content":"{MARKER}"#)),
            with(marked()).body(format!(r#"["{MARKER}"]"#)),
            with(marked().with("contentType", MARKER)),
            with(marked().with("operationID", "another")),
            with(marked().header("Large", MARKER.repeat(400))),
            with(marked().with("content", MARKER.repeat(400))),
            with(marked()).method("PUT"),
        ]);
        sent += calls.len();
        for call in calls {
            let answer = caller.send(&call).await;
            told.insert(format!("{} {}", answer.status, answer.told()));
        }
    }
    let expected = [
        "200 allow upstream -",
        "200 deny fallback invalid",
        "200 deny fallback refused-by-app",
        "200 deny fallback unreachable",
        "200 deny upstream -",
        "400 deny rejection body",
        "400 deny rejection field-type",
        "400 deny rejection operation-id",
        "401 deny rejection unauthorized",
        "405 deny rejection method",
        "413 deny rejection too-large",
        "431 deny rejection too-large",
    ];
    let told: Vec<_> = told.iter().map(String::as_str).collect();
    assert_eq!(told, expected);
    sent
}

#[tokio::test]
async fn content_and_passwords_are_in_no_log_and_on_no_page() {
    let cases = answers();
    let app = app_of(&cases);
    let policy = "defaults: {fallback: Deny}\nvalidation: {operationID: Require, fieldTypes: Reject}";
    for format in ["json", "text"] {
        let guard = Guard::with(policy).upstream(&app).flag("--log-level", "debug");
        let guard = guard.flag("--log-format", format).flag("--max-header-size", "4KiB");
        let guard = guard.flag("--max-request-size", "4KiB").flag("--drain-delay", "0s");
        let users = format!("openim:{PASSWORD}\n");
        let guard = guard.file("--basic-auth-file", "users", users).start();
        let sent = every_outcome(&guard, &cases).await;
        let mut garbage = Raw::over(raw(&guard).await);
        garbage.send(format!("{MARKER} / HTTP/1.1\r\n{MARKER}\r\n\r\n")).await;
        garbage.rest().await;
        guard.write("users", format!("{PASSWORD}\n"));
        guard.wait_for_log(|line| line.contains("The new credentials of callers are refused"));
        let pages = ["/", "/metrics", "/policy", "/decisions"].map(|page| guard.admin(page).1);
        guard.terminate();
        assert_eq!(guard.wait_exit(), 0);
        let lines = guard.log_lines();
        let about = if format == "json" { "\"Callback answered\"" } else { " operationID=" };
        assert_eq!(lines.iter().filter(|line| line.contains(about)).count(), sent, "one line for each");
        for text in lines.iter().chain(&guard.error_lines()).chain(&pages) {
            for secret in [MARKER, PASSWORD, &MARKER[..8]] {
                assert!(!text.contains(secret), "{secret} in {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_callback_is_one_line_that_says_all_there_is_to_know() {
    let app = App::answering(r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#);
    let policy =
        "rules: [{name: groups, match: {commands: [callbackBeforeSendGroupMsgCommand]}, answer: Deny}]";
    let guard = Guard::with(policy).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let rows = [
        (Call::new(COMMAND), ["INFO", "default", "deny", "upstream", ""]),
        (Call::new("callbackBeforeSendGroupMsgCommand"), ["INFO", "groups", "deny", "rule", ""]),
        (Call::new(COMMAND).method("PUT"), ["WARN", "", "deny", "rejection", "method"]),
    ];
    for (call, expected) in &rows {
        caller.send(call).await;
        let line = guard.decision(&call.operation_id());
        assert_eq!(["level", "rule", "verdict", "origin", "cause"].map(|key| &line[key]), *expected);
        assert_eq!(Some(line["command"].as_str().expect("a text")), call.target.rsplit('/').next());
        let took = line["duration_ms"].as_f64().expect("a number");
        assert!(took > 0.0 && took < 20_000.0, "{took}");
        assert!(line["errCode"].is_i64() && line["timestamp"].is_string());
    }
    assert_eq!(guard.decisions().len(), rows.len());
    let page: Vec<Value> = serde_json::from_str(&guard.admin("/decisions").1).expect("JSON");
    let newest = page.iter().map(|line| line["operationID"].as_str().expect("a text").to_owned());
    let sent = rows.iter().rev().map(|(call, _)| call.operation_id());
    assert!(newest.eq(sent), "{page:?}");
}

#[tokio::test]
async fn text_for_people_is_one_line_for_a_callback_whatever_it_holds() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--log-format", "text").start();
    let mut caller = Caller::h2(&guard).await;
    let call = Call::new(COMMAND);
    caller.send(&call).await;
    let line = guard.wait_for_log(|line| line.contains(&call.operation_id()));
    for part in ["INFO", "allow", "upstream", COMMAND, "ms "] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(serde_json::from_str::<Value>(&line).is_err());
    let before = guard.log_lines().len();
    let sly = "sly\u{1b}[2J%0a";
    let rejected =
        Call::raw(COMMAND, "{}").header("operationID", "a\tb").target(&format!("/{COMMAND}%0A%1B[2J"));
    caller.send(&rejected).await;
    caller.send(&Call::raw(COMMAND, "{}").with("operationID", sly)).await;
    let both = || guard.log_lines().get(before + 1).cloned();
    eventually("two lines", both).await;
    for line in guard.log_lines() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    assert_eq!(guard.log_lines().len(), before + 2);
}

#[tokio::test]
async fn the_level_says_which_lines_there_are() {
    let app = App::start(|asked| match asked.values("Case")[..] {
        [] => vec![Act::json(crate::support::app::ALLOW)],
        _ => vec![Act::Reset],
    });
    for (level, wanted) in [("debug", 3), ("info", 3), ("warn", 2), ("error", 0), ("off", 0)] {
        let guard = Guard::with("rules: 7").upstream(&app).flag("--drain-delay", "0s").start_quietly(level);
        let mut caller = Caller::h1(&guard).await;
        caller.send(&Call::new(COMMAND)).await;
        caller.send(&Call::new(COMMAND).header("Case", "reset")).await;
        caller.send(&Call::new(COMMAND).method("PUT")).await;
        caller.hang_up();
        guard.wait_for_metric("callback_guard_connections", 0.0).await;
        guard.terminate();
        assert_eq!(guard.wait_exit(), 0);
        assert_eq!(guard.decisions().len(), wanted, "{level}");
        let lines = guard.log_lines();
        let any = |text: &str| lines.iter().any(|line| line.contains(text));
        assert_eq!(any("\"level\":\"INFO\""), matches!(level, "debug" | "info"), "{level}: {lines:?}");
        assert_eq!(any("The policy is refused"), level != "off", "{level}: {lines:?}");
    }
}

/// Sends callbacks, each with a long line, until so many bytes of log were made.
async fn flood(caller: &mut Caller, bytes: usize) {
    let id = "x".repeat(400);
    let mut made = 0;
    while made < bytes {
        let calls: Vec<_> =
            (0..50).map(|_| Call::new(COMMAND).header("operationID", &id).without("operationID")).collect();
        let under_way: Vec<_> = calls.iter().map(|call| caller.begin(call)).collect();
        for answer in under_way {
            let answer = within("an answer", answer).await.expect("an answer");
            assert_eq!(answer.told(), "allow upstream -");
            made += 400;
        }
    }
}

#[tokio::test]
async fn a_log_reader_that_hangs_costs_lines_and_holds_up_no_answer() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--drain-delay", "0s").start();
    let mut caller = Caller::h2(&guard).await;
    guard.stall_log();
    // The pipe holds 64 KiB, the queue 1 MiB, and what the writer has taken may be another.
    flood(&mut caller, 3 << 20).await;
    let dropped = guard.metric(DROPPED);
    assert!(dropped > 0.0);
    guard.resume_log();
    let call = Call::new(COMMAND);
    let heard = async {
        let mut last = call.clone();
        while !guard.log_lines().iter().any(|line| line.contains(&last.operation_id())) {
            last = Call::new(COMMAND);
            caller.send(&last).await;
        }
    };
    within("a line", heard).await;
    for line in guard.log_lines() {
        assert!(serde_json::from_str::<Value>(&line).is_ok(), "only whole lines: {line}");
    }
    let reads = guard.metric(DROPPED);
    flood(&mut caller, 1 << 16).await;
    assert_eq!(guard.metric(DROPPED), reads, "a reader that is back loses none");
}

#[tokio::test]
async fn a_log_reader_that_hangs_does_not_hold_up_the_end() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--drain-delay", "0s").start();
    let mut caller = Caller::h2(&guard).await;
    guard.stall_log();
    flood(&mut caller, 1 << 20).await;
    guard.terminate();
    let pid = guard.pid();
    let gone =
        || std::fs::read_to_string(format!("/proc/{pid}/stat")).ok().filter(|stat| stat.contains(") Z "));
    eventually("the end", gone).await;
    guard.resume_log();
    assert_eq!(guard.wait_exit(), 0);
}

#[tokio::test]
async fn without_anybody_to_read_the_log_callbacks_are_answered() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--drain-delay", "0s").start();
    guard.leave_log();
    let mut caller = Caller::h2(&guard).await;
    flood(&mut caller, 3 << 20).await;
    assert_eq!(guard.metric("callback_guard_panics_total"), 0.0);
    assert_eq!(guard.admin("/readyz").0, 200);
    drop(caller);
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
}

/// How many events the lines with this message stand for, and how many lines there are.
fn counted(guard: &Guard, message: &str) -> (u64, usize) {
    let lines = guard.log_lines();
    let lines: Vec<Value> = lines
        .iter()
        .filter(|line| line.contains(message))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let count = |line: &Value| line["count"].as_u64().unwrap_or_else(|| panic!("no count: {line}"));
    (lines.iter().map(count).sum(), lines.len())
}

#[tokio::test]
async fn what_anybody_can_cause_is_a_line_a_second_with_a_count() {
    let begun = Instant::now();
    let app = App::start(|_| vec![Act::Silence]);
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app);
    let guard = guard.file("--basic-auth-file", "users", format!("openim:{PASSWORD}\n"));
    let guard = guard.flag("--drain-delay", "0s").start();
    let mut authorized_caller = Caller::h2(&guard).await;
    for number in 1..=100_u64 {
        // Not TLS; not HTTP; no password; and a caller that does not wait.
        let mut garbage = std::net::TcpStream::connect(guard.listen()).expect("the port");
        std::io::Write::write_all(&mut garbage, &[0x99; 20]).expect("room for 20 bytes");
        let _ = std::io::copy(&mut garbage, &mut std::io::sink());
        let mut malformed = Raw::over(raw(&guard).await);
        malformed.send("garbage\r\n\r\n").await;
        malformed.rest().await;
        assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.status, 401);
        let call = authorized(Call::new(COMMAND), &format!("openim:{PASSWORD}"));
        let asked = tokio::spawn(authorized_caller.begin(&call));
        app.wait_for_asked(number as usize).await;
        asked.abort();
        guard.wait_for_metric("callback_guard_abandoned_total", number as f64).await;
    }
    let decisions = guard.admin("/decisions").1;
    authorized_caller.hang_up();
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    let lines_at_most = begun.elapsed().as_secs() as usize + 2;
    for message in [
        "A TLS handshake failed",
        "A request is not HTTP as it should be",
        "The caller hung up before its answer",
        "Callback answered",
    ] {
        let (count, lines) = counted(&guard, message);
        assert_eq!(count, 100, "{message}");
        assert!(lines <= lines_at_most, "{message}: {lines} lines, at most {lines_at_most}");
    }
    assert!(decisions.matches("unauthorized").count() <= lines_at_most, "{decisions}");
}

#[tokio::test]
async fn a_refused_policy_has_its_first_problems_in_the_log_and_a_count() {
    let guard = Guard::with("mode: Enforce").start();
    guard.write("policy.yaml", "version: 1\n".repeat(20_000));
    let line = guard.wait_for_log(|line| line.contains("The policy is refused"));
    let line: Value = serde_json::from_str(&line).expect("JSON");
    let reason: Vec<_> = line["reason"].as_str().expect("a text").lines().collect();
    assert_eq!((reason.len(), reason[20]), (21, "and 19979 more: callback-guard check prints all"));
    assert!(reason[0].contains("Duplicate key") && reason[19].contains("Duplicate key"), "{reason:?}");
    assert_eq!(guard.metric(DROPPED), 0.0);
    // The twin: few are all shown.
    guard.write("policy.yaml", "version: 1\n".repeat(21));
    let twin = |line: &str| line.contains("The policy is refused") && !line.contains("19979");
    let line: Value = serde_json::from_str(&guard.wait_for_log(twin)).expect("JSON");
    assert_eq!(line["reason"].as_str().expect("a text").lines().count(), 20);
}

#[tokio::test]
async fn no_text_from_outside_controls_a_terminal_or_reorders_a_line() {
    let app = App::allowing();
    // CSI of one byte, a line separator, right-to-left override; beside letters that need no escape.
    let sly = "a\u{9b}31m\u{2028}b\u{202e}c-é";
    let unsafe_ = |text: &str| text.contains(['\u{9b}', '\u{2028}', '\u{202e}']);
    for format in ["json", "text"] {
        let policy = format!("rules: [{{name: \"sly \\u202e\", match: {{sendIDs: [{COMMAND}]}}}}]");
        let guard = Guard::with(&policy).upstream(&app).flag("--log-format", format).start();
        let mut caller = Caller::h2(&guard).await;
        let call = Call::new(COMMAND).header("operationID", sly).with("operationID", sly);
        caller.send(&call).await;
        caller.send(&call.clone().with("operationID", "another")).await;
        caller.send(&Call::new(COMMAND).header("operationID", sly).with("sendID", COMMAND)).await;
        guard.write("policy.yaml", format!("\"{sly}\": 1\n"));
        guard.wait_for_log(|line| line.contains("The policy is refused"));
        let pages = ["/", "/decisions"].map(|page| guard.admin(page).1);
        for text in guard.log_lines().iter().chain(&pages) {
            assert!(!unsafe_(text), "{format}: {text:?}");
        }
        let about = guard.log_lines().iter().filter(|line| line.contains("c-é")).count();
        assert!(about >= 3, "the twin: the rest of it is there: {:?}", guard.log_lines());
        if format == "json" {
            let decisions = guard.decisions();
            assert!(
                decisions.iter().any(|line| line["operationID"] == sly),
                "it means the same: {decisions:?}"
            );
        }
    }
}
