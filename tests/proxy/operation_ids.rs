//! Which operation ID counts, which the app gets, and what is told of the other: over both protocols, beside callbacks of
//! which nothing changes.

use crate::support::app::ALLOW;
use crate::support::{Act, App, Asked, Call, Caller, Gate, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
/// Sent to tell, and without an operation ID in its body.
const AFTER: &str = "callbackAfterAddFriendCommand";
const UPSTREAM: &str = "allow upstream -";

/// A callback whose header and body have these IDs.
fn call(header: Option<&str>, body: Option<&str>) -> Call {
    let call = Call::new(COMMAND);
    let call = match body {
        Some(body) => call.with("operationID", body),
        None => call.without("operationID"),
    };
    match header {
        Some(header) => call.header("operationID", header),
        None => call.without_header("operationID"),
    }
}

/// The fields of a head but for those that say something of the connection and the time.
fn fields(asked: &Asked) -> Vec<String> {
    let lines = asked.head.split("\r\n").skip(1);
    let changing = ["operationid:", "callback-guard-timeout-ms:", "user-agent:"];
    let is_kept = |line: &&str| !changing.iter().any(|name| line.to_ascii_lowercase().starts_with(name));
    lines.filter(is_kept).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_app_gets_the_body_s_id_and_the_header_s_is_told() {
    for (number, large) in [(1, ""), (2, &*"x".repeat(20 << 10))] {
        let app = App::allowing();
        let guard = Guard::with("").upstream(&app).start();
        for (version, mut caller) in [("h1", Caller::h1(&guard).await), ("h2", Caller::h2(&guard).await)] {
            let id = format!("body-{version}-{number}");
            let differs = call(Some("of another request"), Some(&id)).with("content", large);
            let answer = caller.send(&differs).await;
            assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, "operation-id-differs"));
            let asked = app.asked();
            let last = asked.last().expect("asked");
            assert_eq!(last.values("operationID"), [&*id], "{}", last.head);
            assert_eq!(last.body, differs.body);
            let line = guard.decision(&id);
            assert_eq!(line["headerOperationID"], "of another request", "{line}");
            assert_eq!((&line["finding"], &line["level"]), (&"operation-id-differs".into(), &"INFO".into()));
            // The twin: nothing differs, and nothing changes.
            let same = call(Some(&id), Some(&id)).with("content", large);
            let answer = caller.send(&same).await;
            assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, ""));
            let asked = app.asked();
            let [with_another, with_same] = &asked[asked.len() - 2..] else { panic!("asked twice") };
            assert!(with_same.head.contains(&format!("\r\nOperationid: {id}\r\n")), "{}", with_same.head);
            assert_eq!(with_same.body, same.body);
            let (before, after) = (fields(with_another), fields(with_same));
            assert_eq!(before.len(), after.len(), "no other header comes or goes");
        }
        let count = guard.metric("callback_guard_findings_total{finding=\"operation-id-differs\"}");
        assert_eq!(count, 2.0);
        let lines = guard.wait_for_decisions(4);
        assert_eq!(lines.iter().filter(|line| line.get("headerOperationID").is_some()).count(), 2);
    }
}

#[tokio::test]
async fn an_empty_header_is_filled_with_the_body_s_id_and_an_empty_body_leaves_the_header() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for (header, body, sent, finding, told) in [
            (Some(""), Some("of the body"), "of the body", "operation-id-differs", Some("")),
            (Some(" "), Some("of the body"), "of the body", "operation-id-differs", Some("")),
            (None, Some("of the body"), "of the body", "operation-id-differs", None),
            (Some("of the header"), None, "of the header", "", None),
            (Some("of the header"), Some(""), "of the header", "", None),
            (Some("of the header"), Some("of the header"), "of the header", "", None),
        ] {
            let answer = caller.send(&call(header, body)).await;
            assert_eq!(
                (answer.told().as_str(), answer.finding()),
                (UPSTREAM, finding),
                "{header:?} {body:?}"
            );
            let asked = app.asked();
            let last = asked.last().expect("asked");
            assert_eq!(last.values("operationID"), [sent], "{header:?} {body:?}");
            let line = guard.wait_for_decisions(asked.len()).pop().expect("a line");
            assert_eq!(line["operationID"], sent, "{line}");
            assert_eq!(line.get("headerOperationID").and_then(|id| id.as_str()), told, "{line}");
        }
    }
}

#[tokio::test]
async fn an_id_is_made_up_for_an_empty_header_and_not_for_one_that_is_missing() {
    let app = App::allowing();
    let guard = Guard::with("defaults: {after: {delivery: Inline}}").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for empty in [
            Call::new(AFTER).without("operationID").header("operationID", ""),
            call(Some(""), None),
            call(Some(""), Some("")),
            call(Some(" "), Some(" \t ")),
        ] {
            let before = app.asked().len();
            let answer = caller.send(&empty).await;
            assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, "operation-id-generated"));
            let asked = app.asked();
            let ids = asked[before].values("operationID");
            let [id] = ids[..] else { panic!("not one header: {}", asked[before].head) };
            assert!(id.len() == 22 && id.starts_with("guard-"), "{id}");
            assert!(
                asked[..before].iter().all(|asked| asked.values("operationID") != [id]),
                "one of its own"
            );
            let line = guard.decision(id);
            assert_eq!(line["finding"], "operation-id-generated", "{line}");
        }
        let asked = app.asked().len();
        for missing in [
            call(None, None),
            call(None, Some("")),
            Call::new(AFTER).without_header("operationID").without("operationID"),
        ] {
            let answer = caller.send(&missing).await;
            assert_eq!(answer.told(), "deny rejection operation-id");
            assert!(answer.text().contains("no operationID header"), "{}", answer.text());
        }
        assert_eq!(app.asked().len(), asked, "the app hears of none");
    }
}

#[tokio::test]
async fn of_two_different_headers_the_app_gets_one() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (body, sent, finding) in
        [(Some("of the body"), "of the body", "operation-id-differs"), (None, "one", "operation-id-differs")]
    {
        let answer = caller.send(&call(Some("one"), body).more_header("operationid", "two")).await;
        assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, finding));
        assert_eq!(app.asked().last().expect("asked").values("operationID"), [sent]);
    }
    // The twin: two that are equal go on as they came.
    let answer = caller.send(&call(Some("one"), Some("one")).more_header("operationid", "one")).await;
    assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, ""));
    assert_eq!(app.asked().last().expect("asked").values("operationID"), ["one", "one"]);
}

#[tokio::test]
async fn an_id_of_the_body_that_no_header_can_hold_never_becomes_one_and_loses_no_callback() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for id in [
        "x\r\nEvil: 1\r\nContent-Length: 0\r\n\r\nPOST /smuggled HTTP/1.1\r\nHost: y".to_owned(),
        "a\nb".to_owned(),
        "a\0b".to_owned(),
        "x".repeat(70_000),
    ] {
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            for (header, finding, starts) in [
                (Some("of the header"), "operation-id-differs", "of the header"),
                (Some(""), "operation-id-generated", "guard-"),
                (None, "operation-id-generated", "guard-"),
            ] {
                let answer = caller.send(&call(header, Some(&id))).await;
                assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, finding));
                let asked = app.asked();
                let last = asked.last().expect("asked");
                assert!(last.values("operationID").concat().starts_with(starts), "{}", last.head);
                assert!(last.values("Evil").is_empty() && last.line().contains(COMMAND), "{}", last.head);
            }
        }
    }
}

#[tokio::test]
async fn a_large_id_that_takes_the_header_s_place_counts_in_max_held_and_one_of_the_header_counts_there() {
    // Bodies below and above the size from which they are decoded on a thread of their own.
    for size in [14 << 10, 40 << 10] {
        let id = "x".repeat(size);
        let mut held = Vec::new();
        // Three bodies of one size: the ID replaces the header, there is no ID of this size, the header has it too.
        for call in [
            call(Some(""), Some(&id)),
            call(Some("1"), Some("1")).with("zz", "x".repeat(size - 8)),
            call(Some(&id), Some(&id)),
        ] {
            let gate = Gate::closed();
            let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
            let app = App::start(move |_| acts.clone());
            let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
            let mut caller = Caller::h2(&guard).await;
            let waiting = tokio::spawn(caller.begin(&call));
            app.wait_for_asked(1).await;
            held.push(guard.metric("callback_guard_held_bytes"));
            gate.open();
            let answer = within("an answer", waiting).await.expect("no panic").expect("an answer");
            assert_eq!(answer.told(), UPSTREAM);
        }
        let [replaced, without, same] = held[..] else { panic!("three: {held:?}") };
        assert!(replaced - without >= 1.9 * size as f64, "{size}: {held:?}");
        assert!(same - without >= 1.9 * size as f64, "{size}: counted with the head: {held:?}");
    }
}

#[tokio::test]
async fn with_the_other_checks_a_difference_is_rejected_as_before() {
    for (check, empty, missing) in [
        ("Require", "deny rejection operation-id", "deny rejection operation-id"),
        ("Generate", UPSTREAM, UPSTREAM),
    ] {
        let app = App::allowing();
        let guard = Guard::with(format!("validation: {{operationID: {check}}}")).upstream(&app).start();
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            let answer = caller.send(&call(Some("one"), Some("another"))).await;
            assert_eq!(answer.told(), "deny rejection operation-id", "{check}");
            assert_eq!(caller.send(&call(Some(""), Some("of the body"))).await.told(), empty, "{check}");
            assert_eq!(caller.send(&call(None, None)).await.told(), missing, "{check}");
            assert_eq!(caller.send(&call(Some("one"), Some("one"))).await.told(), UPSTREAM, "{check}");
        }
    }
}
