//! Every cause by every kind of command by every fallback, and the app's own answers beside them.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use serde_json::Value as Json;

use super::*;
use crate::breaker::Outcome as Learned;
use crate::callback::RawRequest;
use crate::policy::{Decision, Policy, Validation};
use crate::reply::Origin;
use crate::verdict::Invalid;

const BEFORE: &str = "callbackBeforeSendSingleMsgCommand";
/// Sent after the fact, whatever its name says.
const AFTER: &str = "callbackBeforeAfterMsgCommand";
const UNKNOWN: &str = "callbackOfTomorrow";
const SET_GROUP: &str = "callbackBeforeSetGroupInfoCommand";

const PLAIN: &str = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;
const REFUSAL: &str = r#"{"actionCode":0,"errCode":6001,"errMsg":"no","errDlt":"","nextCode":1}"#;
const DENIED: &str = r#"{"actionCode":0,"errCode":5123,"errMsg":"not now","errDlt":"later","nextCode":1}"#;

fn callback(command: &str, fields: &str) -> Callback {
    let body = format!(r#"{{"callbackCommand":"{command}"{fields}}}"#);
    let request = Request::post(format!("/{command}")).header("operationID", "an id").body(());
    let raw = RawRequest { head: request.expect("a request").into_parts().0, body: body.into() };
    Callback::parse(raw, &Validation::default(), || unreachable!("it has one")).expect("a callback")
}

fn policy(text: &str) -> Policy {
    let deny = "defaults: {deny: {errCode: 5123, errMsg: not now, errDlt: later}";
    let text = text.replace("defaults: {", &format!("{deny}, "));
    crate::policy::compile(&text).unwrap_or_else(|problems| panic!("{text}\n{problems}")).0
}

fn settled(policy: &Policy, callback: &Callback, outcome: Outcome, draining: bool) -> Settled {
    match policy.decide(&callback.subject(), None, std::time::SystemTime::UNIX_EPOCH) {
        Decision::Ask(plan) => settle(callback, &plan, outcome, Findings::default(), draining),
        Decision::Answer { .. } => panic!("the policy of the test asks"),
    }
}

fn answered(status: u16, body: &str) -> Outcome {
    let status = StatusCode::from_u16(status).expect("a status");
    let mut headers = HeaderMap::new();
    headers.insert("x-app", HeaderValue::from_static("its own"));
    let body = Bytes::copy_from_slice(body.as_bytes());
    Outcome::Answered(Answered { status, headers, body, noticed: Findings::default() })
}

/// What leads to each cause; `RefusedByApp` and `Status` come from an answer.
fn leading_to(cause: Cause) -> Vec<Outcome> {
    let failed = |failure| vec![Outcome::Failed(failure)];
    let upstream = "http://127.0.0.1:1".to_owned();
    match cause {
        Cause::Timeout => failed(Failure::Timeout { doing: "connecting" }),
        Cause::Unreachable => {
            failed(Failure::Unreachable { upstream, error: std::io::ErrorKind::ConnectionRefused.into() })
        }
        Cause::Broken => vec![
            Outcome::Failed(Failure::Cut { at: "before an answer" }),
            Outcome::Failed(Failure::NotHttp("an echo".to_owned())),
        ],
        Cause::Status => vec![
            answered(500, PLAIN),
            answered(302, PLAIN),
            answered(404, "not found"),
            answered(503, ""),
            answered(500, r#"{"actionCode":1,"errCode":6001,"nextCode":1}"#),
        ],
        Cause::Invalid => vec![
            Outcome::Failed(Failure::Invalid(Invalid::TooLarge { limit: 8 })),
            answered(200, ""),
            answered(200, "OK"),
            answered(200, "[]"),
            answered(204, ""),
            answered(200, r#"{"nextCode":"x"}"#),
        ],
        Cause::RefusedByApp => vec![answered(200, r#"{"actionCode":1,"nextCode":1}"#)],
        Cause::Overloaded => failed(Failure::Overloaded(crate::cause::Overload::RuleInFlight)),
        Cause::BreakerOpen => failed(Failure::BreakerOpen),
        Cause::Draining => failed(Failure::Draining),
    }
}

/// `CommonCallbackResp.Parse` of OpenIM: the code of a refusal.
fn openims_parse(body: &[u8]) -> Option<i64> {
    let decoded: Json = serde_json::from_slice(body).expect("every reply is JSON");
    let code = |name: &str| decoded[name].as_i64().expect("every reply has its codes");
    (code("actionCode") == 0 && code("nextCode") == 1).then(|| code("errCode"))
}

fn body(settled: &Settled) -> &str {
    std::str::from_utf8(settled.reply.body()).expect("UTF-8")
}

#[test]
fn every_cause_is_answered_by_the_fallback_and_an_after_command_by_success() {
    for fallback in ["Allow", "Deny"] {
        let policy = policy(&format!("defaults: {{fallback: {fallback}}}"));
        for (command, deny) in [(BEFORE, fallback == "Deny"), (UNKNOWN, fallback == "Deny"), (AFTER, false)] {
            let callback = callback(command, "");
            for cause in Cause::ALL {
                for outcome in leading_to(cause) {
                    let what = format!("{fallback} {command} {cause:?} {outcome:?}");
                    let settled = settled(&policy, &callback, outcome, false);
                    let reply = &settled.reply;
                    let (verdict, bytes) =
                        if deny { (Verdict::Deny { code: 5123 }, DENIED) } else { (Verdict::Allow, PLAIN) };
                    assert_eq!((reply.status(), reply.verdict()), (StatusCode::OK, verdict), "{what}");
                    assert_eq!(
                        (reply.origin(), reply.why()),
                        (Origin::Fallback, Why::Cause(cause)),
                        "{what}"
                    );
                    assert_eq!(body(&settled), bytes, "{what}");
                    assert_eq!(openims_parse(reply.body()), deny.then_some(5123), "{what}");
                    assert!(settled.detail.is_some() && settled.instead.is_none(), "{what}");
                    let counted = if cause.trips_breaker() { Learned::Failure } else { Learned::Ignored };
                    assert_eq!(settled.learned, counted, "{what}");
                    assert_eq!(settled.reply.into_parts().1, None, "{what}: no header of the app");
                }
            }
        }
    }
}

#[test]
fn a_fallback_for_one_cause_is_for_that_one_alone() {
    for denied in Cause::ALL {
        let policy = policy(&format!("defaults: {{fallbackFor: {{{}: Deny}}}}", denied.label()));
        for cause in Cause::ALL {
            let outcome = leading_to(cause).remove(0);
            let reply = settled(&policy, &callback(BEFORE, ""), outcome, false).reply;
            assert_eq!(openims_parse(reply.body()).is_some(), cause == denied, "{denied:?}, {cause:?}");
        }
    }
}

#[test]
fn the_causes_that_a_breaker_counts_are_the_app_s_own_failures() {
    let counted: Vec<_> = Cause::ALL.into_iter().filter(|cause| cause.trips_breaker()).collect();
    let expected = [Cause::Timeout, Cause::Unreachable, Cause::Broken, Cause::Status, Cause::Invalid];
    assert_eq!(counted, expected);
}

#[test]
fn the_allow_of_a_command_that_overwrites_echoes_the_request() {
    let callback = callback(SET_GROUP, r#","groupID":"g","groupName":"n","introduction":"","faceURL":"f""#);
    let settled = settled(
        &policy("defaults: {fallback: Allow}"),
        &callback,
        Outcome::Failed(Failure::BreakerOpen),
        false,
    );
    let start = &PLAIN[..PLAIN.len() - 1];
    let expected = format!(r#"{start},"groupID":"g","groupName":"n","faceURL":"f","introduction":""}}"#);
    assert_eq!(body(&settled), expected);
}

#[test]
fn an_app_that_is_gone_while_the_pod_ends_has_not_failed() {
    let policy = policy("defaults: {fallback: Deny, fallbackFor: {draining: Allow}}");
    for cause in Cause::ALL {
        for outcome in leading_to(cause) {
            let settled = settled(&policy, &callback(BEFORE, ""), outcome, true);
            let gone = matches!(cause, Cause::Unreachable | Cause::Broken);
            let why = if gone { Cause::Draining } else { cause };
            let learned = if why.trips_breaker() { Learned::Failure } else { Learned::Ignored };
            assert_eq!((settled.reply.why(), settled.learned), (Why::Cause(why), learned), "{cause:?}");
            let allowed = why == Cause::Draining;
            assert_eq!(openims_parse(settled.reply.body()).is_none(), allowed, "{cause:?}");
        }
    }
    // What it still answers counts as ever.
    let settled = settled(&policy, &callback(BEFORE, ""), answered(200, REFUSAL), true);
    assert_eq!((settled.reply.why(), body(&settled)), (Why::Nothing, REFUSAL));
}

#[test]
fn a_verdict_of_the_app_travels_on_with_its_headers() {
    let policy = policy("defaults: {fallback: Deny}");
    for (answer, passed_on, verdict, findings) in [
        (PLAIN, PLAIN, Verdict::Allow, ""),
        (REFUSAL, REFUSAL, Verdict::Deny { code: 6001 }, ""),
        (r#" {"nextCode":0} "#, r#" {"nextCode":0} "#, Verdict::Allow, ""),
        (r#"{"nextCode":""}"#, r#"{"nextCode":0}"#, Verdict::Allow, "code-as-string"),
        (
            r#"{"nextCode":1}"#,
            r#"{"nextCode":1,"errCode":5123}"#,
            Verdict::Deny { code: 5123 },
            "deny-code-too-small",
        ),
        ("\u{feff}{\"nextCode\":0}", "{\"nextCode\":0}", Verdict::Allow, "byte-order-mark"),
    ] {
        for status in [200, 201, 299] {
            let settled = settled(&policy, &callback(BEFORE, ""), answered(status, answer), false);
            let reply = &settled.reply;
            assert_eq!(
                (reply.status(), reply.origin(), reply.why()),
                (StatusCode::OK, Origin::Upstream, Why::Nothing)
            );
            assert_eq!((reply.verdict(), body(&settled)), (verdict, passed_on));
            assert_eq!(reply.findings().to_string(), findings);
            assert_eq!((settled.detail, settled.instead, settled.learned), (None, None, Learned::Success));
            let headers = settled.reply.into_parts().1.expect("the app's headers");
            assert_eq!(headers["x-app"], "its own");
        }
    }
}

#[test]
fn a_clear_refusal_is_obeyed_whatever_the_status() {
    let policy = policy("defaults: {fallback: Allow}");
    for (status, answer, passed_on, code, findings) in [
        (403, REFUSAL, REFUSAL, 6001, "refusal-with-status"),
        (500, REFUSAL, REFUSAL, 6001, "refusal-with-status"),
        (302, REFUSAL, REFUSAL, 6001, "refusal-with-status"),
        (
            400,
            r#"{"nextCode":"1"}"#,
            r#"{"nextCode":1,"errCode":5123}"#,
            5123,
            "code-as-string,deny-code-too-small,refusal-with-status",
        ),
        (200, REFUSAL, REFUSAL, 6001, ""),
    ] {
        let settled = settled(&policy, &callback(BEFORE, ""), answered(status, answer), false);
        let reply = &settled.reply;
        assert_eq!((reply.status(), reply.verdict()), (StatusCode::OK, Verdict::Deny { code }), "{status}");
        assert_eq!(
            (reply.origin(), reply.why(), settled.learned),
            (Origin::Upstream, Why::Nothing, Learned::Success)
        );
        assert_eq!((body(&settled), reply.findings().to_string().as_str()), (passed_on, findings));
        assert_eq!(openims_parse(passed_on_whole(passed_on).as_bytes()), Some(i64::from(code)));
    }
}

/// The same answer with every code written out, for the judge.
fn passed_on_whole(answer: &str) -> String {
    let mut json: Json = serde_json::from_str(answer).expect("JSON");
    for code in ["actionCode", "errCode", "nextCode"] {
        json[code] = json.get(code).cloned().unwrap_or_else(|| 0.into());
    }
    json.to_string()
}

#[test]
fn what_was_noticed_before_stays_noticed() {
    let (policy, callback) = (policy("defaults: {}"), callback(BEFORE, ""));
    let Decision::Ask(plan) = policy.decide(&callback.subject(), None, std::time::SystemTime::UNIX_EPOCH)
    else {
        panic!("the policy asks")
    };
    let noticed: Findings = [Finding::FieldType].into_iter().collect();
    let packed: Findings = [Finding::Compressed].into_iter().collect();
    let answer = |status, body: &'static str| {
        Outcome::Answered(Answered {
            status,
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
            noticed: packed,
        })
    };
    for (outcome, expected) in [
        (answer(StatusCode::OK, "{}"), "no-known-field,compressed,field-type"),
        (answer(StatusCode::OK, "x"), "compressed,field-type"),
        (answer(StatusCode::FORBIDDEN, REFUSAL), "refusal-with-status,compressed,field-type"),
        (Outcome::Failed(Failure::BreakerOpen), "field-type"),
    ] {
        let settled = settle(&callback, &plan, outcome, noticed, false);
        assert_eq!(settled.reply.findings().to_string(), expected);
    }
}

#[test]
fn a_policy_that_observes_passes_on_the_app_s_bytes_and_tells_what_it_would_have_done() {
    let policy = policy("mode: Observe\ndefaults: {fallback: Deny}");
    let denied = |why| Some((Verdict::Deny { code: 5123 }, why));
    let data_error = Verdict::Deny { code: DATA_ERROR };
    for (status, answer, shown, verdict, instead) in [
        (200, PLAIN, 200, Verdict::Allow, None),
        (200, REFUSAL, 200, Verdict::Deny { code: 6001 }, None),
        (201, PLAIN, 201, Verdict::Allow, None),
        // What OpenIM obeys whatever the status is no difference.
        (403, REFUSAL, 403, Verdict::Deny { code: 6001 }, None),
        (500, PLAIN, 500, Verdict::Allow, denied(Why::Cause(Cause::Status))),
        (302, PLAIN, 200, Verdict::Allow, denied(Why::Cause(Cause::Status))),
        (200, "x", 200, data_error, denied(Why::Cause(Cause::Invalid))),
        (200, r#"{"nextCode":""}"#, 200, data_error, Some((Verdict::Allow, Why::Nothing))),
        (200, "\u{feff}{}", 200, data_error, Some((Verdict::Allow, Why::Nothing))),
        (200, r#"{"nextCode":1}"#, 200, Verdict::Deny { code: 0 }, denied(Why::Nothing)),
        (
            200,
            r#"{"actionCode":1,"nextCode":1}"#,
            200,
            Verdict::Allow,
            denied(Why::Cause(Cause::RefusedByApp)),
        ),
    ] {
        let settled = settled(&policy, &callback(BEFORE, ""), answered(status, answer), false);
        let reply = &settled.reply;
        assert_eq!((reply.status().as_u16(), reply.verdict()), (shown, verdict), "{status} {answer}");
        assert_eq!((reply.origin(), reply.why()), (Origin::Upstream, Why::Nothing), "{status} {answer}");
        assert_eq!((body(&settled), settled.instead), (answer, instead), "{status} {answer}");
        assert_eq!(settled.learned, Learned::Ignored, "{status} {answer}");
        assert_eq!(settled.reply.into_parts().1.expect("the app's headers")["x-app"], "its own");
    }
}

#[test]
fn a_policy_that_observes_gives_the_fallback_where_the_app_says_nothing() {
    let policy = policy("mode: Observe\ndefaults: {fallback: Deny}");
    for outcome in
        [Failure::Timeout { doing: "waiting" }, Failure::Cut { at: "in the middle" }, Failure::Draining]
    {
        let cause = outcome.cause();
        let settled = settled(&policy, &callback(BEFORE, ""), Outcome::Failed(outcome), false);
        assert_eq!((settled.reply.origin(), settled.reply.why()), (Origin::Fallback, Why::Cause(cause)));
        assert_eq!((body(&settled), settled.instead), (DENIED, None));
    }
}
