//! Requests that are no callbacks, over both protocols: each is told what is wrong with it in a way that OpenIM reads
//! as a refusal, none reaches the app, and the next callback on the same connection is answered.

use serde_json::{Value, json};

use crate::support::app::ALLOW;
use crate::support::{Answer, App, Call, Caller, Ending, Guard, OpenIm, openim_verdict};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const OTHER: &str = "callbackBeforeSendGroupMsgCommand";
const UNKNOWN: &str = "callbackBeforeSomethingNewCommand";

/// The larger bodies of this file are over it.
const BODY_LIMIT: usize = 64 << 10;

/// A request that is none, the status of its answer, the cause, and how the text begins.
struct Bad {
    call: Call,
    status: u16,
    cause: &'static str,
    text: String,
}

fn bad(call: Call, status: u16, cause: &'static str, text: impl Into<String>) -> Bad {
    Bad { call, status, cause, text: text.into() }
}

fn good() -> Call {
    Call::new(COMMAND)
}

fn methods() -> Vec<Bad> {
    let row =
        |method| bad(good().method(method), 405, "method", format!("method {method}: a callback is a POST"));
    ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "post", "PROPFIND"].map(row).into()
}

fn commands() -> Vec<Bad> {
    const NONE: &str =
        "no command in the URL: expected POST /<prefix>/<command> or POST /<path>?command=<command>";
    let mut rows: Vec<Bad> =
        ["/", "/callbackExample/", "/?command=", "/a%20b", "/callback?command=a%2Fb", "/?a/"]
            .map(|target| bad(good().target(target), 400, "command", NONE))
            .into();
    let long = format!("/{}", "c".repeat(129));
    rows.push(bad(good().target(&long), 400, "command", NONE));
    rows.push(bad(
        good().target(&format!("/{COMMAND}?command={OTHER}")),
        400,
        "command",
        format!("two commands: the path says {COMMAND:?}, command= says {OTHER:?}"),
    ));
    rows.push(bad(
        good().target(&format!("/?command={COMMAND}&command={OTHER}")),
        400,
        "command",
        format!("two commands: one command= says {COMMAND:?}, another says {OTHER:?}"),
    ));
    rows.push(bad(
        good().with("callbackCommand", OTHER),
        400,
        "command",
        format!("two commands: the URL says {COMMAND:?}, the body says {OTHER:?}"),
    ));
    let twice = format!(r#"{{"callbackCommand":"{COMMAND}","callbackCommand":"{OTHER}"}}"#);
    rows.push(bad(
        good().body(twice),
        400,
        "command",
        "two commands: callbackCommand stands in the body twice",
    ));
    let missing = "no callbackCommand in the body: expected the URL's command as a string";
    rows.push(bad(good().without("callbackCommand"), 400, "command", missing));
    for (value, found) in [(json!(7), "a number"), (json!(null), "null"), (json!([COMMAND]), "an array")] {
        let text = format!("callbackCommand in the body is {found}");
        rows.push(bad(good().with("callbackCommand", value), 400, "command", text));
    }
    rows
}

fn bodies() -> Vec<Bad> {
    let mut rows = Vec::new();
    let whole = good().body;
    let cut = whole.slice(..whole.len() - 1);
    for body in
        [&b""[..], b" ", b"ok", b"{", &cut, &[&whole[..], b"}"].concat(), &[&whole[..], &whole].concat()]
    {
        rows.push(bad(good().body(body.to_vec()), 400, "body", "the body is not JSON: "));
    }
    rows.push(bad(good().body(&b"\xef\xbb\xbf{}"[..]), 400, "body", "the body is not JSON: "));
    for (body, found) in [
        ("[]", "an array"),
        ("\"text\"", "a string"),
        ("null", "null"),
        ("true", "true or false"),
        ("7", "a number"),
    ] {
        rows.push(bad(good().body(body), 400, "body", format!("the body is {found}")));
    }
    let latin = [b"{\"callbackCommand\":\"", COMMAND.as_bytes(), b"\",\"content\":\"\xe9\"}"].concat();
    let at = latin.len() - 3;
    rows.push(bad(good().body(latin), 400, "body", format!("the body is not UTF-8 from byte {at} on")));
    let text = "the body is larger than 65536 bytes (--max-request-size)";
    let large = good().with("content", "x".repeat(BODY_LIMIT));
    rows.push(bad(large.clone(), 413, "too-large", text));
    rows.push(bad(large.ending(Ending::Unannounced), 413, "too-large", text));
    rows.push(bad(good().with("content", "x".repeat(4 << 20)), 413, "too-large", text));
    rows
}

fn operation_ids() -> Vec<Bad> {
    let two = |header: &str, body: &str| {
        format!("two operation IDs: the header says {header:?}, the body or another header says {body:?}")
    };
    vec![
        bad(good().without_header("operationID"), 400, "operation-id", "no operationID header: "),
        bad(
            good().header("operationID", "1").more_header("operationid", "2").without("operationID"),
            400,
            "operation-id",
            two("1", "2"),
        ),
        bad(good().header("operationID", ""), 400, "operation-id", "the operationID header is empty"),
        bad(
            good().with("operationID", "another").header("operationID", "one"),
            400,
            "operation-id",
            two("one", "another"),
        ),
        bad(
            good().with("operationID", "你").header("operationID", "好"),
            400,
            "operation-id",
            two("好", "你"),
        ),
        bad(
            good().with("operationID", "caf\u{e9}").header("operationID", b"caf\xe9"),
            400,
            "operation-id",
            two("caf\u{fffd}", "caf\u{e9}"),
        ),
    ]
}

/// What the guard said no to, as OpenIM and a person read it.
fn is_told(answer: &Answer, row: &Bad) {
    assert_eq!(answer.status, row.status, "{} {}", row.text, answer.text());
    assert_eq!(answer.told(), format!("deny rejection {}", row.cause), "{}", row.text);
    assert_eq!(answer.header("content-type"), "application/json");
    let json = answer.json();
    let text = json["errMsg"].as_str().expect("a text");
    let wanted = format!("callback rejected: {}", row.text);
    assert!(text.starts_with(&wanted), "{text:?} and not {wanted:?}");
    let whole =
        json!({ "actionCode": 0, "errCode": 5400, "errMsg": text, "errDlt": row.cause, "nextCode": 1 });
    assert_eq!(json, whole);
    assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
}

/// Sends bad ones and good ones by turns on one connection.
async fn by_turns(caller: &mut Caller, rows: &[Bad]) {
    for row in rows {
        let answer = caller.send(&row.call).await;
        is_told(&answer, row);
        assert_eq!(answer.header("allow"), if row.status == 405 { "POST" } else { "" });
        let next = caller.send(&good()).await;
        assert_eq!(
            (next.status, next.told().as_str(), next.text().as_str()),
            (200, "allow upstream -", ALLOW)
        );
    }
}

/// The whole check: what is answered, logged and counted, and that the app never saw any of it.
async fn are_rejected(policy: &str, rows: Vec<Bad>) {
    let app = App::allowing();
    let guard = Guard::with(policy).flag("--max-request-size", "64KiB").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        by_turns(&mut caller, &rows).await;
    }
    assert!(app.asked().iter().all(|asked| asked.command() == COMMAND));
    assert_eq!(app.asked().len(), rows.len() * 2, "only the good ones");
    let decisions = guard.wait_for_decisions(rows.len() * 4);
    let rejected: Vec<&Value> = decisions.iter().filter(|line| line["origin"] == "rejection").collect();
    assert_eq!(rejected.len(), rows.len() * 2);
    for (line, row) in rejected.iter().zip(rows.iter().chain(&rows)) {
        let seen = ["level", "verdict", "cause", "rule"].map(|key| &line[key]);
        assert_eq!(seen, ["WARN", "deny", row.cause, ""], "{line}");
        assert_eq!(line["errCode"], 5400, "{line}");
        assert!(line["detail"].as_str().is_some_and(|detail| detail.starts_with(&row.text)), "{line}");
    }
    for row in &rows {
        let count = rows.iter().filter(|other| other.cause == row.cause).count() as f64 * 2.0;
        let labels = [("cause", row.cause)];
        assert_eq!(guard.count("callback_guard_rejections_total", &labels), count, "{}", row.cause);
        let labels = [("cause", row.cause), ("origin", "rejection"), ("verdict", "deny"), ("rule", "none")];
        assert_eq!(guard.count("callback_guard_callbacks_total", &labels), count, "{}", row.cause);
    }
}

#[tokio::test]
async fn another_method_is_no_callback() {
    are_rejected("", methods()).await;
}

#[tokio::test]
async fn a_head_request_is_told_so_without_a_body() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let answer = caller.send(&good().method("HEAD").body("")).await;
        assert_eq!((answer.status, answer.told().as_str()), (405, "deny rejection method"));
        assert_eq!((answer.text().as_str(), answer.header("allow")), ("", "POST"));
        assert!(answer.header("content-length").parse::<usize>().is_ok_and(|length| length > 0));
        assert_eq!(caller.send(&good()).await.told(), "allow upstream -");
    }
    assert_eq!(app.asked().len(), 2);
}

#[tokio::test]
async fn a_request_without_one_command_is_no_callback() {
    are_rejected("", commands()).await;
}

#[tokio::test]
async fn a_body_that_is_no_json_object_within_bounds_is_no_callback() {
    are_rejected("", bodies()).await;
}

#[tokio::test]
async fn a_callback_has_one_operation_id_where_the_policy_says_so() {
    are_rejected("validation: {operationID: Require}", operation_ids()).await;
}

#[tokio::test]
async fn a_field_of_another_type_is_rejected_where_the_policy_says_so() {
    let rows = vec![
        bad(
            good().with("contentType", "101"),
            400,
            "field-type",
            "contentType is a string: expected a whole number of 32 bits (validation.fieldTypes: Reject)",
        ),
        bad(
            good().with("contentType", 2_147_483_648_u64),
            400,
            "field-type",
            "contentType is a number of another kind or range: expected a whole number of 32 bits",
        ),
        bad(
            good().with("sendID", 7),
            400,
            "field-type",
            "sendID is a number: expected a string (validation.fieldTypes: Reject)",
        ),
        bad(
            good().with("atUserList", json!({})),
            400,
            "field-type",
            "atUserList is an object: expected an array",
        ),
        bad(
            good().with("atUserList", json!([7])),
            400,
            "field-type",
            "atUserList is a number: expected a string",
        ),
        bad(good().with("sendID", Value::Null), 400, "field-type", "sendID is null: expected a string"),
    ];
    are_rejected("validation: {fieldTypes: Reject}", rows).await;
}

#[tokio::test]
async fn a_command_that_is_not_known_is_rejected_where_the_policy_says_so() {
    let text = format!("command {UNKNOWN:?} is not known (validation.unknownCommands: Reject)");
    are_rejected(
        "validation: {unknownCommands: Reject}",
        vec![bad(Call::new(UNKNOWN), 404, "unknown-command", text)],
    )
    .await;
}

#[tokio::test]
async fn what_is_near_a_rejection_travels_on() {
    let rows = [
        (good().without("operationID"), ""),
        (good().with("operationID", ""), ""),
        (good().with("operationID", Value::Null), "field-type"),
        (good().header("operationID", "  padded\t").with("operationID", "padded"), ""),
        (good().header("operationID", b"caf\xe9").with("operationID", "caf\u{fffd}"), ""),
        (good().header("operationID", "a,b,c").without("operationID"), ""),
        (good().header("operationID", "1").more_header("operationID", "1").without("operationID"), ""),
        (good().with("somethingNew", json!({ "a": [1] })), ""),
        (good().with("atUserList", Value::Null), ""),
        (good().without("contentType"), ""),
        (Call::raw(COMMAND, format!(r#"{{"callbackCommand":"{COMMAND}"}}"#)).header("operationID", "1"), ""),
        (good().without_header("content-type"), ""),
        (good().ending(Ending::Unannounced), ""),
        (good().target(&format!("/{COMMAND}")), ""),
        (good().target(&format!("/a/b/c/{COMMAND}?contenttype=text")), ""),
        (good().target(&format!("/cb?key=value&command={COMMAND}")), ""),
        (good().target(&format!("/cb?key=value/{COMMAND}")), ""),
        (good().target(&format!("/{COMMAND}?command={COMMAND}")), ""),
        (Call::new(UNKNOWN), ""),
        (good().with("contentType", "101"), "field-type"),
        (good().with("sendID", 7), "field-type"),
    ];
    let app = App::allowing();
    let guard = Guard::with("").flag("--max-request-size", "64KiB").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for (call, finding) in &rows {
            let answer = caller.send(call).await;
            assert_eq!(answer.told(), "allow upstream -", "{call:?} {}", answer.text());
            assert_eq!(
                (answer.status, answer.finding(), answer.text().as_str()),
                (200, *finding, ALLOW),
                "{call:?}"
            );
        }
    }
    assert_eq!(app.asked().len(), rows.len() * 2);
    assert_eq!(guard.count("callback_guard_rejections_total", &[]), 0.0);
    assert_eq!(guard.metric("callback_guard_findings_total{finding=\"field-type\"}"), 6.0);
}

#[tokio::test]
async fn a_body_of_exactly_the_bound_travels_on_and_one_byte_more_does_not() {
    let app = App::allowing();
    let guard = Guard::with("").flag("--max-request-size", "64KiB").upstream(&app).start();
    let empty = good().with("operationID", "").with("content", "").body.len();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for ending in [Ending::Announced, Ending::Unannounced] {
            for (more, told) in
                [(0, "allow upstream -"), (1, "deny rejection too-large"), (0, "allow upstream -")]
            {
                let filler = "x".repeat(BODY_LIMIT - empty + more);
                let call = good().with("operationID", "").with("content", filler).ending(ending);
                assert_eq!(call.body.len(), BODY_LIMIT + more);
                assert_eq!(caller.send(&call).await.told(), told, "{ending:?} {more}");
            }
        }
    }
}

#[tokio::test]
async fn an_sdk_without_operation_ids_gets_one_where_the_policy_says_so() {
    let app = App::allowing();
    let guard = Guard::with("validation: {operationID: Generate}").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for call in [
        good().without_header("operationID").without("operationID"),
        good().header("operationID", " ").without("operationID"),
    ] {
        assert_eq!(caller.send(&call).await.told(), "allow upstream -");
        let asked = app.asked();
        let ids = asked[asked.len() - 1].values("operationID");
        assert!(matches!(ids[..], [id] if id.starts_with("guard-")), "{ids:?}");
    }
    // The body's own is taken where there is one.
    let call = good().without_header("operationID").with("operationID", "of-the-body");
    assert_eq!(caller.send(&call).await.told(), "allow upstream -");
    let asked = app.asked();
    assert_eq!(asked[asked.len() - 1].values("operationID"), ["of-the-body"]);
}

#[tokio::test]
async fn a_rejection_is_a_permission_where_the_policy_says_so_but_for_what_it_would_wipe() {
    let app = App::allowing();
    let policy =
        "validation: {onRejection: Allow, operationID: Require, fieldTypes: Reject, unknownCommands: Reject}";
    let guard = Guard::with(policy).flag("--max-request-size", "64KiB").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for rows in [methods(), commands(), bodies(), operation_ids()] {
            for row in rows {
                let answer = caller.send(&row.call).await;
                assert_eq!(answer.status, row.status, "{}", row.text);
                assert_eq!(answer.told(), format!("allow rejection {}", row.cause), "{}", row.text);
                assert_eq!((answer.text().as_str(), openim_verdict(&answer.body)), (ALLOW, OpenIm::Allowed));
            }
        }
        // OpenIM overwrites a group with what an allow of these holds, and here there is nothing to echo.
        for command in ["callbackBeforeSetGroupInfoCommand", "callbackBeforeSetGroupInfoExCommand"] {
            let answer = caller.send(&Call::new(command).body("{")).await;
            assert_eq!((answer.status, answer.told().as_str()), (400, "deny rejection body"));
            assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
        }
    }
    assert_eq!(app.asked().len(), 0);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_slow_after_the_longest_timeout() {
    let policy = "defaults: {timeout: 10ms}\nrules: [{match: {commands: [callbackAfterSendGroupMsgCommand]}, timeout: 300ms}]";
    let app = App::allowing();
    let guard = Guard::with(policy).upstream(&app).start();
    for (mut caller, stays) in [(Caller::h1(&guard).await, false), (Caller::h2(&guard).await, true)] {
        for part in ["", "{\"callbackCommand\":"] {
            if !stays {
                // Over HTTP/1 there is no way past a body that does not end.
                caller = Caller::h1(&guard).await;
            }
            let call = good().body(part).ending(Ending::Stalls);
            let text = "the body was not there after 300 ms, the longest timeout of the policy";
            let row = bad(call, 408, "slow-body", text);
            is_told(&caller.send(&row.call).await, &row);
            if stays {
                // The shortest timeout is for the app alone: this one may be answered by it, or by the fallback.
                assert_eq!(caller.send(&good()).await.status, 200);
            }
        }
    }
    let slow = app.asked().iter().filter(|asked| asked.command() != COMMAND).count();
    assert_eq!(slow, 0);
    assert_eq!(guard.metric("callback_guard_rejections_total{cause=\"slow-body\"}"), 4.0);
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
}

#[tokio::test]
async fn a_body_that_is_given_up_never_reaches_the_app() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let body = good().body;
        let call = good().body(body.slice(..20)).ending(Ending::Fails);
        assert!(caller.try_send(&call).await.is_err(), "the caller itself gave up");
    }
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert_eq!(Caller::h2(&guard).await.send(&good()).await.told(), "allow upstream -");
    assert_eq!(app.asked().len(), 1);
}
