//! The body of an app's answer: what is passed on means to OpenIM what the guard claims, and correcting it twice is
//! correcting it once.
//!
//! Input: a byte for the fields that the request has, the command, a line break, then the answer.

use serde_json::{Value as Json, json};

use super::{callback, choice_and_command, shown};
use crate::callback::Callback;
use crate::go_json::{self, Value};
use crate::policy::CrashingFields::{LeaveOut, Pass};
use crate::verdict::{self, Conclusion, Finding, Reading, SMALLEST_DENY_CODE, Verdict};

/// What takes the place of a refusal's code that would not reach the user.
const RULE_CODE: i32 = 5123;

/// The fields that some command's allow has to echo, or that an answer may only set if the request has them.
const FIELDS: [&str; 8] =
    ["groupID", "groupName", "introduction", "faceURL", "ex", "nickName", "userID", "notification"];

fn asked(fields: u8, name: &str) -> Callback {
    let mut body = json!({"callbackCommand": name, "needVerification": fields});
    for (at, field) in FIELDS.iter().enumerate() {
        body[field] = if fields & (1 << at) != 0 { json!("of \"the\" request") } else { Json::Null };
    }
    callback(name, body.to_string())
}

pub(super) fn run(input: &[u8]) {
    let Some((fields, name, answer)) = choice_and_command(input) else { return };
    let callback = asked(fields, name);
    written_refusal(answer, &callback);
    let concluded = verdict::openim(answer, &callback);
    let Ok(reading) = verdict::read(answer, &callback, RULE_CODE, LeaveOut) else {
        // Of a refusal that OpenIM would have read nothing may be left but its code.
        return assert!(!matches!(concluded, Conclusion::Denied { .. }), "{}", shown(answer));
    };
    let claimed = match reading.verdict {
        Verdict::Allow => Conclusion::Allowed,
        Verdict::Deny { code } => {
            assert!(code >= SMALLEST_DENY_CODE);
            Conclusion::Denied { code }
        }
    };
    assert_eq!(verdict::openim(&reading.body, &callback), claimed, "{}", shown(answer));
    let corrects = reading.findings.iter().any(|finding| finding.row().becomes.is_some());
    assert_eq!(*reading.body != *answer, corrects, "{}", shown(answer));
    if !corrects {
        assert_eq!(concluded, claimed, "{}", shown(answer));
    }
    if let Conclusion::Denied { .. } = concluded {
        assert!(matches!(reading.verdict, Verdict::Deny { .. }), "{}", shown(answer));
    }
    let again = verdict::read(&reading.body, &callback, RULE_CODE, LeaveOut).expect("an answer stays one");
    assert_eq!((again.verdict, &again.body), (reading.verdict, &reading.body), "{}", shown(answer));
    assert!(!again.findings.iter().any(|finding| finding.row().becomes.is_some()), "{}", shown(answer));
    disarmed(answer, &callback, &reading);
}

/// What is passed on has no field that OpenIM may end on, and every other field as it was; with `Pass` it has both.
fn disarmed(answer: &[u8], callback: &Callback, reading: &Reading<'_>) {
    let passed = verdict::read(answer, callback, RULE_CODE, Pass).expect("whatever becomes of these fields");
    assert_eq!(passed.verdict, reading.verdict, "{}", shown(answer));
    let left_out = &reading.left_out;
    assert_eq!(reading.findings.has(Finding::CrashPrevented), !left_out.is_empty(), "{}", shown(answer));
    assert_eq!(passed.findings.has(Finding::MayCrash), !left_out.is_empty(), "{}", shown(answer));
    if left_out.is_empty() {
        return assert_eq!(passed.body, reading.body, "{}", shown(answer));
    }
    let fields = callback.command().expect("only known commands have such fields").response;
    let [before, after] =
        [&passed.body, &reading.body].map(|body| go_json::decode(body, fields).expect("JSON"));
    for (at, field) in fields.iter().enumerate() {
        let text = |body: &[u8], value: &Value| {
            // Where a text is may change.
            if let Value::Str(span) = value {
                return go_json::unquote(span.of(body)).into_owned();
            }
            format!("{value:?}")
        };
        if left_out.contains(&field.name) {
            assert_eq!(after.last[at], None, "{}: {}", field.name, shown(answer));
            assert_ne!(*before.root.field(at), Value::Zero, "{}: {}", field.name, shown(answer));
        } else if !matches!(
            field.ty.kind,
            go_json::Kind::List(_) | go_json::Kind::Map(_) | go_json::Kind::Struct(_)
        ) {
            let [before, after] = [(&passed.body, &before), (&reading.body, &after)]
                .map(|(body, read)| text(body, read.root.field(at)));
            assert_eq!(after, before, "{}: {}", field.name, shown(answer));
        }
    }
}

/// A refusal with these bytes in its texts is read as a refusal.
fn written_refusal(text: &[u8], callback: &Callback) {
    let code = text.first_chunk().map_or(0, |bytes| i32::from_be_bytes(*bytes));
    let body = verdict::deny_body(code, &shown(text), &shown(text));
    let json: Json = serde_json::from_slice(&body).expect("what the guard writes is JSON");
    assert_eq!(
        (&json["actionCode"], &json["nextCode"], &json["errCode"]),
        (&json!(0), &json!(1), &json!(code))
    );
    assert_eq!(json["errMsg"], *shown(text));
    assert_eq!(verdict::openim(&body, callback), Conclusion::Denied { code });
    let read = verdict::read(&body, callback, RULE_CODE, LeaveOut).expect("a refusal");
    assert_eq!(
        read.verdict,
        Verdict::Deny { code: if code < SMALLEST_DENY_CODE { RULE_CODE } else { code } }
    );
}
