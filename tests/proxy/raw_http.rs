//! HTTP written by hand: what breaks its rules never reaches the app, what only looks odd reaches it once and plain.

use crate::support::app::ALLOW;
use crate::support::caller::raw;
use crate::support::{App, Call, Caller, Guard, OpenIm, Raw, openim_verdict};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

/// A request with these lines in its head, and this behind it. The operation ID is always there.
fn request(line: &str, fields: &str, body: &str) -> String {
    format!("{line}\r\nHost: localhost\r\noperationID: 1\r\n{fields}\r\n{body}")
}

fn post(fields: &str, body: &str) -> String {
    request(&format!("POST /cb/{COMMAND} HTTP/1.1"), fields, body)
}

fn body() -> String {
    format!(r#"{{"callbackCommand":"{COMMAND}","operationID":"1"}}"#)
}

fn sized(fields: &str) -> String {
    let body = body();
    post(&format!("{fields}Content-Length: {}\r\n", body.len()), &body)
}

#[tokio::test]
async fn requests_that_break_the_rules_end_their_connection_and_never_reach_the_app() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let (body, length) = (body(), body().len());
    let rows = [
        ("garbage", "garbage\r\n\r\n".to_owned()),
        ("no version", request(&format!("POST /cb/{COMMAND}"), "", "")),
        ("a version of its own", request(&format!("POST /cb/{COMMAND} HTTP/7.0"), "", "")),
        ("a space in the target", request(&format!("POST /cb /{COMMAND} HTTP/1.1"), "", "")),
        ("a space in a header's name", sized("Bad Header: x\r\n")),
        ("no name", sized(": x\r\n")),
        ("no colon", sized("nonsense\r\n")),
        ("a line folded", sized("Folded: a\r\n b\r\n")),
        ("a bare CR", sized("Bare: a\rb\r\n")),
        ("NUL", sized("Nul: a\0b\r\n")),
        ("two lengths", post(&format!("Content-Length: {length}\r\nContent-Length: 1\r\n"), &body)),
        ("a length that is none", post("Content-Length: many\r\n", &body)),
        ("a negative length", post("Content-Length: -1\r\n", &body)),
        ("a signed length", post(&format!("Content-Length: +{length}\r\n"), &body)),
        ("a coding that is none", post("Transfer-Encoding: gzip\r\n", &body)),
        ("chunked and more", post("Transfer-Encoding: chunked, identity\r\n", &body)),
        ("HTTP/2 unannounced", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ];
    let count = rows.len() as f64;
    for (what, bytes) in rows {
        let mut caller = Raw::over(raw(&guard).await);
        // What follows in the same write would be the smuggled one.
        caller.send(bytes + &sized("")).await;
        match caller.answer().await {
            Some(answer) => assert_eq!(answer.status, 400, "{what}"),
            None => assert_eq!(what, "HTTP/2 unannounced", "all others are told"),
        }
        assert_eq!(caller.rest().await, "", "{what}: the connection goes on");
        assert_eq!(app.asked().len(), 0, "{what}");
    }
    guard.wait_for_metric("callback_guard_bad_http_total{reason=\"malformed\"}", count).await;
    guard.wait_for_log(|line| line.contains("not HTTP as it should be"));
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    assert_eq!(app.asked().len(), 1);
}

#[tokio::test]
async fn requests_that_only_look_odd_reach_the_app_once_and_plain() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let (body, length) = (body(), body().len());
    let chunked = format!("{length:X};name=value\r\n{body}\r\n0\r\nTrailer: x\r\n\r\n");
    let pieces: String = body.chars().map(|letter| format!("1\r\n{letter}\r\n")).collect();
    let rows = [
        ("plain", sized("")),
        ("the same length twice", sized(&format!("Content-Length: {length}\r\n"))),
        ("bare line feeds", sized("").replace("\r\n", "\n")),
        ("an empty line before it", format!("\r\n{}", sized(""))),
        ("chunked", post("Transfer-Encoding: chunked\r\n", &chunked)),
        ("chunks of a byte", post("Transfer-Encoding: chunked\r\n", &format!("{pieces}0\r\n\r\n"))),
        ("absolute form", sized("").replace("POST /", "POST https://elsewhere.example/")),
        ("a header without a value", sized("Empty:\r\n")),
        ("a header with bytes beyond ASCII", sized("Name: caf\u{e9}\r\n")),
    ];
    for (at, (what, bytes)) in rows.into_iter().enumerate() {
        let mut caller = Raw::over(raw(&guard).await);
        for turn in 0..2 {
            caller.send(&bytes).await;
            let answer = caller.answer().await.unwrap_or_else(|| panic!("{what}: no answer"));
            assert_eq!((answer.status, answer.told().as_str()), (200, "allow upstream -"), "{what}, {turn}");
        }
        let asked = app.asked();
        assert_eq!(asked.len(), (at + 1) * 2, "{what}");
        let last = &asked[asked.len() - 1];
        assert_eq!(last.line(), format!("POST /cb/{COMMAND} HTTP/1.1"), "{what}");
        assert_eq!(last.values("Content-Length"), [length.to_string()], "{what}");
        assert_eq!(last.values("Transfer-Encoding"), [""; 0], "{what}");
        assert_eq!(last.body, body, "{what}");
    }
}

#[tokio::test]
async fn a_length_beside_chunks_smuggles_nothing() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let (body, length) = (body(), body().len());
    let hidden = sized("Smuggled: yes\r\n");
    for fields in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n".to_owned(),
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", hidden.len() + 5),
    ] {
        let before = app.asked().len();
        let mut caller = Raw::over(raw(&guard).await);
        caller.send(post(&fields, &format!("{length:x}\r\n{body}\r\n0\r\n\r\n"))).await;
        // Either reading is a lawful one; what must not be is two readings.
        let answer = caller.answer().await.expect("an answer");
        let asked = app.asked();
        match answer.status {
            200 => {
                assert_eq!(asked.len(), before + 1);
                let last = &asked[before];
                assert_eq!(last.values("Content-Length"), [length.to_string()], "{fields}");
                assert_eq!(last.values("Transfer-Encoding"), [""; 0], "{fields}");
                assert_eq!(last.body, body, "{fields}");
            }
            400 => assert_eq!(asked.len(), before),
            other => panic!("{fields}: {other}"),
        }
        assert!(asked.iter().all(|asked| asked.values("Smuggled").is_empty()));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_rejected_and_never_reaches_the_app() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let (body, length) = (body(), body().len());
    let rows = [
        post(&format!("Content-Length: {}\r\n", length + 1), &body),
        post("Transfer-Encoding: chunked\r\n", &format!("{length:x}\r\n{body}\r\n")),
        post("Transfer-Encoding: chunked\r\n", &format!("zz\r\n{body}\r\n0\r\n\r\n")),
        post("Transfer-Encoding: chunked\r\n", &format!("{:x}\r\n{body}\r\n0\r\n\r\n", length - 1)),
        post("Transfer-Encoding: chunked\r\n", &format!("fffffffffffffffff\r\n{body}\r\n0\r\n\r\n")),
    ];
    for (at, bytes) in rows.into_iter().enumerate() {
        let mut caller = Raw::over(raw(&guard).await);
        caller.send(bytes).await;
        caller.finish().await;
        let answer = caller.answer().await.unwrap_or_else(|| panic!("row {at}: no answer"));
        assert_eq!((answer.status, answer.told().as_str()), (400, "deny rejection body"), "row {at}");
        assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
        assert_eq!(caller.rest().await, "");
    }
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    assert_eq!(guard.metric("callback_guard_rejections_total{cause=\"body\"}"), 5.0);
    assert!(guard.wait_for_decisions(5).iter().all(|line| line["cause"] == "body"));
    assert_eq!(app.asked().len(), 0);
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn a_head_over_its_bound_is_told_so_over_both_protocols() {
    let app = App::allowing();
    let guard = Guard::with("").flag("--max-header-size", "4KiB").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for (size, rejected) in [(100, false), (3300, false), (4096, true), (12_000, true), (10, false)] {
            let answer = caller.send(&Call::new(COMMAND).header("Padding", "x".repeat(size))).await;
            if !rejected {
                assert_eq!((answer.status, answer.told().as_str()), (200, "allow upstream -"), "{size}");
                continue;
            }
            assert_eq!((answer.status, answer.told().as_str()), (431, "deny rejection too-large"), "{size}");
            assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
            let text = answer.json()["errMsg"].as_str().expect("a text").to_owned();
            let expected = "bytes, 32 added for each field: at most 4096 are taken (--max-header-size)";
            assert!(text.ends_with(expected), "{text}");
        }
    }
    assert_eq!(app.asked().len(), 6);
    assert_eq!(guard.metric("callback_guard_rejections_total{cause=\"too-large\"}"), 4.0);
    for decision in guard.decisions().iter().filter(|line| line["origin"] == "rejection") {
        assert_eq!((&decision["cause"], &decision["level"]), (&"too-large".into(), &"WARN".into()));
    }
}

#[tokio::test]
async fn a_head_far_over_its_bound_is_refused_and_the_app_never_sees_it() {
    let app = App::allowing();
    let guard = Guard::with("").flag("--max-header-size", "4KiB").upstream(&app).start();
    let huge = Call::new(COMMAND).header("Padding", "x".repeat(120_000));
    let mut caller = Raw::over(raw(&guard).await);
    caller.send(huge.bytes()).await;
    assert_eq!(caller.answer().await.expect("an answer").status, 431);
    assert_eq!(caller.rest().await, "");
    let mut many = Call::new(COMMAND);
    for number in 0..200 {
        many = many.more_header(&format!("X{number}"), "x");
    }
    let mut caller = Raw::over(raw(&guard).await);
    caller.send(many.bytes()).await;
    assert_eq!(caller.answer().await.expect("an answer").status, 431);
    let mut caller = Caller::h2(&guard).await;
    assert_eq!(caller.send(&huge).await.status, 431);
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    assert_eq!(app.asked().len(), 1);
}

#[tokio::test]
async fn a_head_has_at_most_100_fields_and_one_large_field_the_operation_id() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let with = |fields: usize| {
            (0..fields).fold(Call::new(COMMAND), |call, at| call.more_header(&format!("X{at}"), "x"))
        };
        assert_eq!(caller.send(&with(90)).await.told(), "allow upstream -");
        // OpenIM joins the IDs of up to 500 messages.
        let joined = |bytes: usize| {
            let id = "i".repeat(bytes);
            Call::new(COMMAND).header("operationID", &id).with("operationID", id)
        };
        assert_eq!(caller.send(&joined(60_000)).await.told(), "allow upstream -");
        let answer = caller.send(&joined((64 << 10) + 1)).await;
        assert_eq!((answer.status, answer.told().as_str()), (431, "deny rejection too-large"));
        assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
        let padded = Call::new(COMMAND).header("Padding", "x".repeat(20_000));
        assert_eq!(caller.send(&padded).await.told(), "deny rejection too-large", "any other field");
    }
    let mut caller = Caller::h2(&guard).await;
    let many = (0..101).fold(Call::new(COMMAND), |call, at| call.more_header(&format!("X{at}"), "x"));
    let answer = caller.send(&many).await;
    assert_eq!((answer.status, answer.told().as_str()), (431, "deny rejection too-large"));
    assert!(answer.text().contains("fields: at most 100 are taken"), "{}", answer.text());
}

#[tokio::test]
async fn callbacks_written_at_once_are_answered_in_their_order() {
    let app = App::start(|asked| {
        let body: serde_json::Value = serde_json::from_slice(&asked.body).expect("JSON");
        let text = format!("{{\"actionCode\":0,\"errMsg\":{},\"nextCode\":0}}", body["operationID"]);
        vec![crate::support::Act::json(text)]
    });
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Raw::over(raw(&guard).await);
    let calls: Vec<Call> = (0..20).map(|_| Call::new(COMMAND)).collect();
    let bytes: Vec<u8> = calls.iter().flat_map(Call::bytes).collect();
    caller.send(bytes).await;
    for call in &calls {
        let answer = caller.answer().await.expect("an answer");
        assert_eq!(answer.json()["errMsg"], call.operation_id());
    }
}

#[tokio::test]
async fn a_caller_who_waits_to_be_told_to_continue_is_told() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Raw::over(raw(&guard).await);
    let call = Call::new(COMMAND).header("Expect", "100-continue");
    let bytes = call.bytes();
    let (head, body) = bytes.split_at(bytes.len() - call.body.len());
    caller.send(head).await;
    assert_eq!(caller.answer().await.expect("an interim answer").status, 100);
    caller.send(body).await;
    let answer = caller.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, ALLOW));
    assert_eq!(app.asked()[0].values("Expect"), [""; 0]);
}

#[tokio::test]
async fn a_caller_of_http_1_0_is_answered_and_its_connection_ends() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Raw::over(raw(&guard).await);
    caller.send(sized("").replace("HTTP/1.1", "HTTP/1.0")).await;
    let answer = caller.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.text().as_str()), (200, ALLOW));
    assert_eq!(caller.rest().await, "");
    assert_eq!(app.asked()[0].line(), format!("POST /cb/{COMMAND} HTTP/1.1"));
}

#[tokio::test]
async fn a_request_has_one_host_or_is_rejected() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let allowed = (200, "allow upstream -");
    let rejected = (400, "deny rejection head");
    for (line, hosts, expected) in [
        ("HTTP/1.1", "Host: a\r\n", allowed),
        ("HTTP/1.1", "", rejected),
        ("HTTP/1.1", "Host: a\r\nHost: a\r\n", rejected),
        ("HTTP/1.1", "Host: a\r\nhost: b\r\n", rejected),
        ("HTTP/1.0", "", allowed),
        ("HTTP/1.0", "Host: a\r\nHost: b\r\n", rejected),
    ] {
        let before = app.asked().len();
        let mut caller = Raw::over(raw(&guard).await);
        let bytes = sized("").replace("HTTP/1.1", line).replace("Host: localhost\r\n", hosts);
        caller.send(bytes).await;
        let answer = caller.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.told().as_str()), expected, "{line} {hosts:?}");
        assert_eq!(app.asked().len() - before, usize::from(expected == allowed), "{line} {hosts:?}");
    }
}
