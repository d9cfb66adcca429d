//! Bodies that take long to decode: they come to their verdict or to their deadline, and nobody else notices.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::support::app::ALLOW;
use crate::support::{Act, Answer, App, Call, Caller, Guard, eventually};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const MODIFY: &str = "callbackBeforeMsgModifyCommand";
const SET_GROUP: &str = "callbackBeforeSetGroupInfoCommand";
const REFUSAL: &str = r#"{"actionCode":0,"errCode":6001,"errMsg":"no","errDlt":"","nextCode":1}"#;

/// Large enough for the thread.
const LARGE: usize = 20 << 10;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn packed(bytes: &[u8]) -> Act {
    Act::answer("200 OK", &[("Content-Encoding", "gzip")], gzip(bytes))
}

/// An allow of so many bytes with a field that OpenIM reads as a map.
fn allow_with_a_map(bytes: usize) -> String {
    let mut answer = ALLOW[..ALLOW.len() - 1].to_owned();
    answer.push_str(r#","options":{"a":true"#);
    while answer.len() < bytes {
        answer.push_str(r#","a":true"#);
    }
    answer.push_str("}}");
    answer
}

/// How often each answer was given.
fn counts(answers: &[Answer]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.told()).or_default() += 1;
    }
    counts
}

/// Sends callbacks at once, some on each of a few connections.
async fn sent_at_once(guard: &Guard, calls: &[Call]) -> Vec<Answer> {
    let mut answers = JoinSet::new();
    for calls in calls.chunks(calls.len().div_ceil(4)) {
        let mut caller = Caller::h2(guard).await;
        let calls = calls.to_vec();
        answers.spawn(async move {
            let mut under_way = JoinSet::new();
            for call in &calls {
                caller.ready().await.expect("a connection");
                under_way.spawn(caller.begin(call));
            }
            under_way
                .join_all()
                .await
                .into_iter()
                .map(|answer| answer.expect("an answer"))
                .collect::<Vec<_>>()
        });
    }
    answers.join_all().await.concat()
}

/// Sends one callback after the other until this is set, ten at least.
async fn sent_until(mut caller: Caller, call: Call, over: Arc<AtomicBool>) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !over.load(Ordering::Relaxed) || answers.len() < 10 {
        answers.push(caller.send(&call).await);
    }
    answers
}

#[tokio::test]
async fn good_callers_get_their_verdicts_beside_answers_that_take_seconds_to_decode() {
    let large = allow_with_a_map(2_900_000);
    let (plain, packed) = (Act::json(large.clone()), packed(large.as_bytes()));
    assert!(matches!(&packed, Act::Send(bytes) if bytes.len() < 30_000));
    let app = App::start(move |asked| match asked.target() {
        target if target.ends_with("plain") => vec![plain.clone()],
        target if target.ends_with("packed") => vec![packed.clone()],
        _ => vec![Act::json(ALLOW)],
    });
    let guard = Guard::with(
        "defaults: {callerTimeout: 15s, timeout: 5s, fallback: Deny}\n\
         rules:\n\
         - {name: rule, match: {sendIDs: [good]}, answer: Allow}\n\
         - {name: large, match: {commands: [callbackBeforeMsgModifyCommand]}, timeout: 400ms}",
    );
    let guard = guard.upstream(&app).flag("--max-held", "1GiB").flag("--max-answer-size", "8MiB").start();
    let over = Arc::new(AtomicBool::new(false));
    let by_rule = Call::new(COMMAND).with("sendID", "good");
    let by_app = Call::new(COMMAND).with("sendID", "other");
    let by_rule = tokio::spawn(sent_until(Caller::h1(&guard).await, by_rule, Arc::clone(&over)));
    let by_app = tokio::spawn(sent_until(Caller::h1(&guard).await, by_app, Arc::clone(&over)));

    let of_kind = |kind: &str| Call::new(MODIFY).target(&format!("/cb/{MODIFY}?kind={kind}"));
    let calls: Vec<_> = (0..231)
        .map(|number| of_kind(if number % 8 == 0 && number / 8 < 31 { "plain" } else { "packed" }))
        .collect();
    let answers = counts(&sent_at_once(&guard, &calls).await);
    over.store(true, Ordering::Relaxed);
    // Each is decoded in time, or has the fallback. That a part is not in time is what makes this a test.
    let [upstream, late] =
        ["allow upstream -", "deny fallback timeout"].map(|told| answers.get(told).copied().unwrap_or(0));
    assert_eq!(upstream + late, 231, "{answers:?}");
    assert!(late > 0, "{answers:?}");
    let of_rule = counts(&by_rule.await.expect("no panic"));
    assert_eq!(of_rule.keys().collect::<Vec<_>>(), ["allow rule -"], "{of_rule:?}");
    let of_app = counts(&by_app.await.expect("no panic"));
    assert_eq!(of_app.keys().collect::<Vec<_>>(), ["allow upstream -"], "{of_app:?}");

    let detail = "the app's answer came in time, and was not decoded before the deadline";
    guard.wait_for_log(|line| line.contains(detail));
    // The share of what nobody waited for is given back too, and the thread goes on.
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    let call = Call::new(COMMAND).target(&format!("/cb/{COMMAND}?kind=packed"));
    assert_eq!(Caller::h2(&guard).await.send(&call).await.told(), "allow upstream -");
    assert_eq!(guard.metric("callback_guard_panics_total"), 0.0);
}

#[tokio::test]
async fn a_request_whose_deadline_comes_while_it_is_decoded_is_answered_as_one_that_was_not_read() {
    let guard = Guard::with(
        "defaults: {callerTimeout: 5s, timeout: 1s, fallback: Deny}\n\
         rules:\n\
         - {name: rule, match: {sendIDs: [good]}, answer: Allow}",
    );
    let guard = guard.flag("--max-held", "1GiB").flag("--max-request-size", "8MiB").start();
    let over = Arc::new(AtomicBool::new(false));
    let good = Call::new(COMMAND).with("sendID", "good");
    let small = tokio::spawn(sent_until(Caller::h1(&guard).await, good.clone(), Arc::clone(&over)));
    // Nothing takes longer for its size than keys with escapes: each is compared with every field, in either spelling.
    let text = String::from_utf8(good.body.to_vec()).expect("UTF-8");
    let large = format!("{},{}\"zz\":0}}", text.trim_end_matches('}'), "\"\\u0061\":0,".repeat(100_000));
    let calls = vec![good.clone().body(large); 20];
    let answers = counts(&sent_at_once(&guard, &calls).await);
    over.store(true, Ordering::Relaxed);
    let [read, unread, slow] = ["allow rule -", "deny fallback timeout", "deny rejection slow-body"]
        .map(|told| answers.get(told).copied().unwrap_or(0));
    assert_eq!(read + unread + slow, 20, "{answers:?}");
    // An optimized program reads them all in time.
    assert!(unread > 0 || !cfg!(debug_assertions), "{answers:?}");
    let of_small = counts(&small.await.expect("no panic"));
    assert_eq!(of_small.keys().collect::<Vec<_>>(), ["allow rule -"], "{of_small:?}");
    let detail = "the deadline came before the body was decoded";
    eventually("a line for each", || {
        let lines = guard.decisions();
        let told = lines.iter().filter(|line| line["detail"] == detail).count();
        (told == unread).then_some(())
    })
    .await;
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert_eq!(guard.metric("callback_guard_panics_total"), 0.0);
}

/// An answer of the app, and what is told of it. The body that goes out, if it is not the one that came in.
type Row = (String, &'static str, Option<String>);

fn answers() -> Vec<Row> {
    let with_string = ALLOW.replace(r#""nextCode":0"#, r#""nextCode":"0""#);
    let same = |body: &str, told| (body.to_owned(), told, None);
    vec![
        same(ALLOW, "allow upstream - "),
        same(REFUSAL, "deny upstream - "),
        (with_string, "allow upstream - code-as-string", Some(ALLOW.to_owned())),
        same(r#"{"actionCode":0,"nextCode":2}"#, "allow upstream - unknown-next-code"),
        same(r#"{"actionCode":1}"#, "deny fallback refused-by-app "),
        same("{}}", "deny fallback invalid "),
        same("[]", "deny fallback invalid "),
        same(r#"{"nextCode":"x"}"#, "deny fallback invalid "),
    ]
}

#[tokio::test]
async fn a_large_answer_a_packed_one_and_one_to_a_large_callback_have_the_verdict_of_a_small_one() {
    let rows = answers();
    let bodies: Vec<_> = rows.iter().map(|(body, _, _)| body.clone()).collect();
    let app = App::start(move |asked| {
        let (_, kind) = asked.target().rsplit_once("kind=").expect("a kind");
        let (number, kind) = kind.split_once('-').expect("a number and a kind");
        let body = &bodies[number.parse::<usize>().expect("a number")];
        let padded = format!("{body}{}", " ".repeat(LARGE));
        match kind {
            "small" => vec![Act::json(body.clone())],
            "large" => vec![Act::json(padded)],
            "packed" => vec![packed(body.as_bytes())],
            "both" => vec![packed(padded.as_bytes())],
            other => panic!("{other}"),
        }
    });
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s, fallback: Deny}");
    let guard = guard.upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (number, (body, told, corrected)) in rows.iter().enumerate() {
        for kind in ["small", "large", "packed", "both"] {
            for content in ["", &"x".repeat(LARGE)] {
                let call = Call::new(COMMAND).with("zz", content);
                let call = call.target(&format!("/cb/{COMMAND}?kind={number}-{kind}"));
                let answer = caller.send(&call).await;
                let findings = match kind {
                    "small" | "large" => answer.finding().to_owned(),
                    _ => answer.finding().replace(",compressed", "").replace("compressed", ""),
                };
                let what = format!("{body} {kind} {}", content.len());
                assert_eq!(format!("{} {findings}", answer.told()), *told, "{what}");
                if told.contains("upstream") {
                    assert_eq!(answer.text().trim_end(), corrected.as_ref().unwrap_or(body), "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_large_callback_is_checked_and_answered_as_a_small_one_is() {
    let app = App::start(|asked| match asked.target() {
        target if target.ends_with("silent") => vec![Act::Silence],
        _ => vec![Act::json(ALLOW)],
    });
    let policy = |mode: &str| {
        format!(
            "mode: {mode}\n\
             defaults: {{callerTimeout: 15s, timeout: 14s}}\n\
             rules:\n\
             - {{name: some, match: {{sendIDs: [bad]}}, answer: Allow}}\n\
             - {{name: silent, match: {{commands: [{SET_GROUP}]}}, timeout: 2s}}"
        )
    };
    let guard = Guard::with(policy("Enforce")).upstream(&app).start();
    let observing = Guard::with(policy("Observe")).upstream(&app).start();
    let (mut caller, mut observed) = (Caller::h2(&guard).await, Caller::h2(&observing).await);
    for content in ["", &"x".repeat(LARGE)] {
        let call = || Call::new(COMMAND).with("zz", content);
        let cut = |call: Call| {
            let body = call.body.slice(..call.body.len() - 1);
            call.body(body)
        };
        for (call, told, when_observed) in [
            (call(), "allow upstream -", "allow upstream -"),
            (call().with("sendID", "bad"), "allow rule -", "allow upstream -"),
            (call().with("callbackCommand", MODIFY), "deny rejection command", "allow upstream -"),
            (cut(call()), "deny rejection body", "allow upstream -"),
            (
                call().without_header("operationID").without("operationID"),
                "deny rejection operation-id",
                "allow upstream -",
            ),
            (call().method("PUT"), "deny rejection method", "deny rejection method"),
        ] {
            assert_eq!(caller.send(&call).await.told(), told, "{} bytes", call.body.len());
            assert_eq!(observed.send(&call).await.told(), when_observed, "{} bytes", call.body.len());
            let arrived = app.asked();
            if when_observed == "allow upstream -" {
                assert!(arrived.last().expect("asked").body == call.body, "the app has it byte for byte");
            }
        }
        // An allow of the guard's own echoes what a large callback asks for.
        let call = Call::new(SET_GROUP).with("introduction", format!("a \"group\" {content}"));
        let answer = caller.send(&call.clone().target(&format!("/cb/{SET_GROUP}?kind=silent"))).await;
        assert_eq!(answer.told(), "allow fallback timeout");
        let sent: serde_json::Value = serde_json::from_slice(&call.body).expect("JSON");
        for field in ["groupID", "introduction"] {
            assert_eq!(answer.json()[field], sent[field], "{field}");
        }
        // And so does the app's, which leaves it out.
        let answer = caller.send(&call).await;
        assert_eq!((answer.told().as_str(), answer.finding()), ("allow upstream -", "fields-left-out"));
        assert_eq!(answer.json()["introduction"], sent["introduction"]);
    }
    let bytes: Bytes = app.asked().pop().expect("asked").body;
    assert!(bytes.len() > LARGE);
    // What a connection holds is given back with it.
    caller.hang_up();
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
}

#[tokio::test]
async fn an_answer_with_no_room_to_unpack_is_an_overload_that_is_counted_and_with_room_it_is_the_apps() {
    let app = App::start(|_| vec![packed(allow_with_a_map(900 << 10).as_bytes())]);
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s, fallback: Deny}";
    for (held, expected, overloads) in
        [("1MiB", "deny fallback overloaded", 1.0), ("64MiB", "allow upstream -", 0.0)]
    {
        let guard = Guard::with(policy).upstream(&app).flag("--max-held", held).start();
        let answer = Caller::h2(&guard).await.send(&Call::new(COMMAND)).await;
        assert_eq!(answer.told(), expected, "{held}");
        assert_eq!(guard.count("callback_guard_overloads_total", &[]), overloads, "{held}");
    }
}
