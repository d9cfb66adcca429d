//! What OpenIM makes of an answer, and what is made of it here: the recorded answers, then each rule by itself.

use std::collections::BTreeMap;
use std::fs;

use bytes::Bytes;
use http::Request;
use serde_json::Value as Json;

use super::*;
use crate::callback::RawRequest;
use crate::policy::CrashingFields::{LeaveOut, Pass};
use crate::policy::Validation;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openim/samples");

/// The code of the rule's own denials.
const RULE_CODE: i32 = 5123;

const SEND: &str = "callbackBeforeSendSingleMsgCommand";
const MODIFY: &str = "callbackBeforeMsgModifyCommand";
const MEMBERS: &str = "callbackBeforeMembersJoinGroupCommand";
const REGISTER: &str = "callbackBeforeUserRegisterCommand";
const UPDATE: &str = "callbackBeforeUpdateUserInfoExCommand";
const SET_GROUP: &str = "callbackBeforeSetGroupInfoCommand";
const SET_GROUP_EX: &str = "callbackBeforeSetGroupInfoExCommand";

const PLAIN_ALLOW: &str = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;

/// Answers on which OpenIM panics in some cases that the request does not tell.
const MAY_CRASH: [&str; 2] = [
    "callbackBeforeMsgModifyCommand/resp-11-offlinepushinfo-offlinenil-panic.json",
    "callbackBeforeUpdateUserInfoExCommand/resp-04-ex-panic.json",
];

fn callback(command: &str, body: impl Into<Bytes>) -> Callback {
    let body = body.into();
    let json: Json = serde_json::from_slice(&body).expect("a request of a test is JSON");
    let id = json["operationID"].as_str().filter(|id| !id.is_empty()).unwrap_or("an operation");
    let request = Request::post(format!("/callback/{command}")).header("operationID", id).body(());
    let head = request.expect("a valid request").into_parts().0;
    let generate = || unreachable!("the header is there");
    Callback::parse(RawRequest { head, body }, &Validation::default(), generate).expect("a callback")
}

/// A callback with these fields behind `callbackCommand`.
fn asked(command: &str, fields: &str) -> Callback {
    let comma = if fields.is_empty() { "" } else { "," };
    callback(command, format!(r#"{{"callbackCommand":"{command}"{comma}{fields}}}"#))
}

fn recorded(command: &str) -> Callback {
    callback(command, fs::read(format!("{SAMPLES}/{command}/request.json")).expect("a recorded request"))
}

struct Sample {
    file: String,
    callback: Callback,
    answer: Vec<u8>,
    row: Json,
}

fn samples() -> Vec<Sample> {
    let text = fs::read(format!("{SAMPLES}/verdicts.json")).expect("the recorded verdicts");
    let rows: Vec<Json> = serde_json::from_slice(&text).expect("an array");
    let sample = |row: Json| {
        let file = row["file"].as_str().expect("a file").to_owned();
        let folder = file.split('/').next().expect("a folder");
        let answer = fs::read(format!("{SAMPLES}/{file}")).expect("a recorded answer");
        let callback = recorded(if folder == "common" { SEND } else { folder });
        Sample { file, callback, answer, row }
    };
    rows.into_iter().map(sample).collect()
}

/// `CommonCallbackResp.Parse` of OpenIM, on the fields as decoded: the code of a refusal.
fn openims_parse(decoded: &Json) -> Option<i64> {
    let code = |name: &str| decoded[name].as_i64().unwrap_or(0);
    (code("actionCode") == 0 && code("nextCode") == 1).then(|| code("errCode"))
}

fn conclusion(conclusion: &Conclusion) -> String {
    match conclusion {
        Conclusion::Allowed => "allow".to_owned(),
        Conclusion::Denied { code } => format!("deny {code}"),
        Conclusion::DataError(_) => "error at parse".to_owned(),
        Conclusion::Fails(_) => "error at apply".to_owned(),
    }
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow => "allow".to_owned(),
        Verdict::Deny { code } => format!("deny {code}"),
    }
}

/// A reading in a few words: the verdict and the findings, or why there is none.
fn reading(read: &Result<Reading<'_>, Unusable>) -> String {
    match read {
        Ok(Reading { verdict: found, findings, .. }) if findings.is_empty() => verdict(*found),
        Ok(Reading { verdict: found, findings, .. }) => format!("{} {findings:?}", verdict(*found)),
        Err(Unusable::Invalid(_)) => "invalid".to_owned(),
        Err(Unusable::RefusedByApp { action_code }) => format!("actionCode {action_code}"),
    }
}

#[test]
fn there_are_117_recorded_answers_and_their_verdicts_are_those_of_openims_own_rule() {
    let samples = samples();
    assert_eq!(samples.len(), 117);
    for Sample { file, row, .. } in &samples {
        let decoded = &row["decodedAs"];
        match row["verdict"].as_str() {
            Some("allow") => assert_eq!(openims_parse(decoded), None, "{file}"),
            Some("deny") => assert_eq!(openims_parse(decoded), row["code"].as_i64(), "{file}"),
            other => assert_eq!(other, Some("error"), "{file}"),
        }
    }
}

#[test]
fn every_recorded_answer_is_concluded_as_openim_did() {
    for Sample { file, callback, answer, row } in samples() {
        let expected = match (row["verdict"].as_str(), row["stage"].as_str()) {
            (Some("allow"), _) => "allow".to_owned(),
            (Some("deny"), _) => format!("deny {}", row["code"]),
            _ if MAY_CRASH.contains(&&*file) => "allow".to_owned(),
            (_, Some("parse")) => "error at parse".to_owned(),
            _ if file.contains("published") => "error at parse".to_owned(),
            _ => "error at apply".to_owned(),
        };
        assert_eq!(conclusion(&openim(&answer, &callback)), expected, "{file}");
    }
}

#[test]
fn the_answers_for_any_command_are_concluded_alike_for_every_recorded_command() {
    let callbacks: Vec<_> = fs::read_dir(SAMPLES)
        .expect("the samples")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.starts_with("callback"))
        .map(|name| recorded(&name))
        .collect();
    assert_eq!(callbacks.len(), 14);
    for Sample { file, callback, answer, .. } in samples() {
        if file.starts_with("common/") {
            let expected = conclusion(&openim(&answer, &callback));
            for other in &callbacks {
                assert_eq!(
                    conclusion(&openim(&answer, other)),
                    expected,
                    "{file} for {}",
                    other.target().name()
                );
            }
        }
    }
}

/// The recorded answers that become something else than OpenIM makes of them, or have something to be noticed.
const READ_DIFFERENTLY: &[(&str, &str)] = &[
    ("callbackBeforeAddFriendCommand/resp-04-nextcode-empty-string.json", "allow [code-as-string]"),
    ("callbackBeforeAddFriendCommand/resp-06-gin-error-envelope.json", "allow [error-code-without-refusal]"),
    ("callbackBeforeAddFriendCommand/resp-08-deny-errcode-0.json", "deny 5123 [deny-code-too-small]"),
    ("callbackBeforeAddFriendCommand/resp-09-snake-case.json", "allow [no-known-field]"),
    ("callbackBeforeGroupOnlinePushCommand/resp-05-seed-doc-allow.json", "allow [code-as-string]"),
    ("callbackBeforeGroupOnlinePushCommand/resp-10-exp-1e0.json", "deny 5001 [code-as-float]"),
    (
        "callbackBeforeGroupOnlinePushCommand/resp-11-case-dup-mixed.json",
        "allow [error-code-without-refusal]",
    ),
    (
        "callbackBeforeMsgModifyCommand/resp-11-offlinepushinfo-offlinenil-panic.json",
        "allow [crash-prevented]",
    ),
    ("callbackBeforeOnlinePushCommand/resp-03-seed-doc-allow.json", "allow [code-as-string]"),
    ("callbackBeforeOnlinePushCommand/resp-07-null-literal.json", "allow [no-known-field]"),
    ("callbackBeforeOnlinePushCommand/resp-08-action1-next1.json", "actionCode 1"),
    ("callbackBeforePushCommand/resp-published-allow.json", "allow [code-as-string]"),
    ("callbackBeforeSendGroupMsgCommand/resp-04-nextcode-null.json", "allow [error-code-without-refusal]"),
    ("callbackBeforeSendGroupMsgCommand/resp-09-nested-data.json", "allow [no-known-field]"),
    ("callbackBeforeSendSingleMsgCommand/resp-05-nextcode-string-1.json", "deny 5001 [code-as-string]"),
    ("callbackBeforeSendSingleMsgCommand/resp-07-empty-object.json", "allow [no-known-field]"),
    ("callbackBeforeSendSingleMsgCommand/resp-08-float-1.0.json", "deny 5001 [code-as-float]"),
    ("callbackBeforeSendSingleMsgCommand/resp-11-bom-allow.json", "allow [byte-order-mark]"),
    ("callbackBeforeSetGroupInfoCommand/resp-01-allow-canonical-unsafe.json", "allow [fields-left-out]"),
    ("callbackBeforeSetGroupInfoExCommand/resp-01-allow-canonical-unsafe.json", "allow [fields-left-out]"),
    (
        "callbackBeforeUpdateUserInfoExCommand/resp-03-face-not-in-request-panic.json",
        "allow [crash-prevented]",
    ),
    ("callbackBeforeUpdateUserInfoExCommand/resp-04-ex-panic.json", "allow [crash-prevented]"),
    ("common/resp-06-null-literal.json", "allow [no-known-field]"),
    ("common/resp-07-nextcode-empty-string.json", "allow [code-as-string]"),
    ("common/resp-09-nextcode-string-0.json", "allow [code-as-string]"),
    ("common/resp-12-nextcode-null.json", "allow [error-code-without-refusal]"),
    ("common/resp-14-action1-next1.json", "actionCode 1"),
    ("common/resp-16-actionneg-next1.json", "actionCode -1"),
    ("common/resp-17-next2.json", "allow [error-code-without-refusal,unknown-next-code]"),
    ("common/resp-19-errcode-only.json", "allow [error-code-without-refusal]"),
    ("common/resp-20-gin-error-envelope.json", "allow [error-code-without-refusal]"),
    ("common/resp-24-deny-errcode-neg.json", "deny 5123 [deny-code-too-small]"),
    ("common/resp-27-deny-errcode-small.json", "deny 5123 [deny-code-too-small]"),
    ("common/resp-30-float-1.0.json", "deny 5001 [code-as-float]"),
    ("common/resp-32-exp-1e0.json", "deny 5001 [code-as-float]"),
    ("common/resp-48-snake-case.json", "allow [no-known-field]"),
];

#[test]
fn every_recorded_answer_is_read_as_openim_does_or_as_the_table_says() {
    let mut differing = BTreeMap::new();
    for Sample { file, callback, answer, row } in samples() {
        let same = match row["verdict"].as_str() {
            Some("deny") => format!("deny {}", row["code"]),
            Some("allow") => "allow".to_owned(),
            _ => "invalid".to_owned(),
        };
        let found = reading(&read(&answer, &callback, RULE_CODE, LeaveOut));
        if found != same {
            differing.insert(file, found);
        }
    }
    let expected: BTreeMap<_, _> =
        READ_DIFFERENTLY.iter().map(|(file, found)| ((*file).to_owned(), (*found).to_owned())).collect();
    assert_eq!(expected.len(), READ_DIFFERENTLY.len(), "a row stands twice");
    assert_eq!(differing, expected);
}

/// What holds for whatever [`read`] returns.
fn assert_sound(what: &str, answer: &[u8], callback: &Callback) {
    let Ok(first) = read(answer, callback, RULE_CODE, LeaveOut) else { return };
    let claimed = verdict(first.verdict);
    assert_eq!(conclusion(&openim(&first.body, callback)), claimed, "{what}: OpenIM of what is passed on");
    if let Verdict::Deny { code } = first.verdict {
        assert!(code >= SMALLEST_DENY_CODE, "{what}");
    }
    let correcting = first.findings.iter().any(|finding| finding.row().becomes.is_some());
    assert_eq!(*first.body != *answer, correcting, "{what}: bytes change where something is corrected only");
    if !correcting {
        assert!(matches!(first.body, Cow::Borrowed(_)), "{what}");
    }
    let again = read(&first.body, callback, RULE_CODE, LeaveOut).expect("a corrected answer is an answer");
    assert_eq!((again.verdict, &*again.body), (first.verdict, &*first.body), "{what}: read again");
    assert!(!again.findings.iter().any(|finding| finding.row().becomes.is_some()), "{what}: corrected twice");
}

#[test]
fn what_is_passed_on_means_to_openim_what_is_claimed_and_is_changed_only_where_corrected() {
    for Sample { file, callback, answer, .. } in samples() {
        assert_sound(&file, &answer, &callback);
    }
}

/// Rows of answer, reading, and the body passed on (`=` for the same bytes).
fn read_table(callback: &Callback, rows: &[(&str, &str, &str)]) {
    for (answer, expected, body) in rows {
        let found = read(answer.as_bytes(), callback, RULE_CODE, LeaveOut);
        assert_eq!(reading(&found), *expected, "{answer}");
        let passed_on =
            found.map_or(String::new(), |found| String::from_utf8_lossy(&found.body).into_owned());
        let body = match *body {
            "=" => answer,
            other => other,
        };
        assert_eq!(passed_on, body, "{answer}");
        assert_sound(answer, answer.as_bytes(), callback);
    }
}

#[test]
fn a_code_as_a_string_becomes_the_number_and_nothing_else_does() {
    read_table(
        &asked(SEND, ""),
        &[
            (r#"{"nextCode":""}"#, "allow [code-as-string]", r#"{"nextCode":0}"#),
            (
                r#"{"actionCode":"0","errCode":"5001","nextCode":"1"}"#,
                "deny 5001 [code-as-string]",
                r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#,
            ),
            (
                r#"{"nextCode":"\u0031","errCode":700}"#,
                "deny 700 [code-as-string]",
                r#"{"nextCode":1,"errCode":700}"#,
            ),
            (r#"{"actionCode":"-1"}"#, "actionCode -1", ""),
            (r#"{"errCode":"-0"}"#, "allow [code-as-string]", r#"{"errCode":0}"#),
            // Twins: a number already; no number; out of range; another field.
            (r#"{"nextCode":0}"#, "allow", "="),
            (r#"{"nextCode":"x"}"#, "invalid", ""),
            (r#"{"nextCode":" 1"}"#, "invalid", ""),
            (r#"{"nextCode":"+1"}"#, "invalid", ""),
            (r#"{"nextCode":"1.0"}"#, "invalid", ""),
            (r#"{"errCode":"2147483648"}"#, "invalid", ""),
            (r#"{"nextCode":true}"#, "invalid", ""),
            (r#"{"nextCode":[]}"#, "invalid", ""),
            (r#"{"nextCode":{}}"#, "invalid", ""),
            (r#"{"errMsg":5,"nextCode":0}"#, "invalid", ""),
            (r#"{"nextCode":"","errMsg":5}"#, "invalid", ""),
            (r#"{"data":{"nextCode":"1"}}"#, "allow [no-known-field]", "="),
        ],
    );
}

#[test]
fn a_code_as_a_float_becomes_digits_where_it_is_whole() {
    read_table(
        &asked(SEND, ""),
        &[
            (r#"{"nextCode":0.0}"#, "allow [code-as-float]", r#"{"nextCode":0}"#),
            (
                r#"{"nextCode":1.0,"errCode":5.001E3}"#,
                "deny 5001 [code-as-float]",
                r#"{"nextCode":1,"errCode":5001}"#,
            ),
            (r#"{"nextCode":-0.0}"#, "allow [code-as-float]", r#"{"nextCode":0}"#),
            (
                r#"{"nextCode":"1","errCode":1e3}"#,
                "deny 1000 [code-as-string,code-as-float]",
                r#"{"nextCode":1,"errCode":1000}"#,
            ),
            (r#"{"actionCode":1e0}"#, "actionCode 1", ""),
            (r#"{"nextCode":-0}"#, "allow", "="),
            (r#"{"nextCode":0.5}"#, "invalid", ""),
            (r#"{"nextCode":1e400}"#, "invalid", ""),
            (r#"{"errCode":2147483648}"#, "invalid", ""),
            (r#"{"errCode":1e10}"#, "invalid", ""),
        ],
    );
}

#[test]
fn a_byte_order_mark_is_taken_away_once_and_only_in_front() {
    read_table(
        &asked(SEND, ""),
        &[
            ("\u{feff}{\"nextCode\":0}", "allow [byte-order-mark]", "{\"nextCode\":0}"),
            (
                "\u{feff} {\"nextCode\":\"1\",\"errCode\":700}\n",
                "deny 700 [code-as-string,byte-order-mark]",
                " {\"nextCode\":1,\"errCode\":700}\n",
            ),
            ("\u{feff}null", "allow [byte-order-mark,no-known-field]", "null"),
            ("{\"nextCode\":0}", "allow", "="),
            ("{\"errMsg\":\"\u{feff}\"}", "allow", "="),
            ("\u{feff}\u{feff}{\"nextCode\":0}", "invalid", ""),
            (" \u{feff}{\"nextCode\":0}", "invalid", ""),
            ("\u{feff}", "invalid", ""),
        ],
    );
    let bom = b"\xef\xbb\xbf{\"nextCode\":0}";
    let found = read(bom, &asked(SEND, ""), RULE_CODE, LeaveOut).expect("an allow");
    assert!(matches!(found.body, Cow::Borrowed(_)), "taking bytes away in front copies nothing");
}

#[test]
fn a_refusal_gets_the_rules_code_where_its_own_would_not_reach_the_user() {
    read_table(
        &asked(SEND, ""),
        &[
            (r#"{"nextCode":1}"#, "deny 5123 [deny-code-too-small]", r#"{"nextCode":1,"errCode":5123}"#),
            (
                r#"{"errCode":"","nextCode":1}"#,
                "deny 5123 [code-as-string,deny-code-too-small]",
                r#"{"errCode":5123,"nextCode":1}"#,
            ),
            (
                r#"{"errCode":"14","nextCode":1}"#,
                "deny 5123 [code-as-string,deny-code-too-small]",
                r#"{"errCode":5123,"nextCode":1}"#,
            ),
            (
                r#"{"errCode":null,"nextCode":1}"#,
                "deny 5123 [deny-code-too-small]",
                r#"{"errCode":5123,"nextCode":1}"#,
            ),
            (
                r#"{"errCode":-5,"nextCode":1}"#,
                "deny 5123 [deny-code-too-small]",
                r#"{"errCode":5123,"nextCode":1}"#,
            ),
            (
                r#"{"errCode":99,"nextCode":1}"#,
                "deny 5123 [deny-code-too-small]",
                r#"{"errCode":5123,"nextCode":1}"#,
            ),
            // Of several the last one counts, and a null is no value: 7 holds until the correction takes the null's place.
            (
                r#"{"errCode":7,"nextCode":1,"ERRCODE":null}"#,
                "deny 5123 [deny-code-too-small]",
                r#"{"errCode":7,"nextCode":1,"ERRCODE":5123}"#,
            ),
            (
                r#"{"errCode":5001,"errCode":7,"nextCode":1}"#,
                "deny 5123 [deny-code-too-small]",
                r#"{"errCode":5001,"errCode":5123,"nextCode":1}"#,
            ),
            // Twins.
            (r#"{"errCode":100,"nextCode":1}"#, "deny 100", "="),
            (r#"{"errCode":5001,"nextCode":1,"errCode":null}"#, "deny 5001", "="),
            (r#"{"errCode":7,"nextCode":1,"errCode":5001}"#, "deny 5001", "="),
            (
                r#"{"errCode":"5001","nextCode":1}"#,
                "deny 5001 [code-as-string]",
                r#"{"errCode":5001,"nextCode":1}"#,
            ),
        ],
    );
}

#[test]
fn a_refusal_appended_to_an_answer_stands_inside_its_braces() {
    read_table(
        &asked(SEND, ""),
        &[
            (
                " { \"nextCode\" : 1 } \n",
                "deny 5123 [deny-code-too-small]",
                " { \"nextCode\" : 1 ,\"errCode\":5123} \n",
            ),
            (
                r#"{"nextCode":1,"x":{"errCode":6000}}"#,
                "deny 5123 [deny-code-too-small]",
                r#"{"nextCode":1,"x":{"errCode":6000},"errCode":5123}"#,
            ),
        ],
    );
}

#[test]
fn of_codes_in_several_spellings_each_is_corrected_and_the_last_one_counts() {
    read_table(
        &asked(SEND, ""),
        &[
            (
                r#"{"nextCode":"1","NextCode":"0"}"#,
                "allow [code-as-string]",
                r#"{"nextCode":1,"NextCode":0}"#,
            ),
            (
                r#"{"nextCode":"","NEXTCODE":1.0,"errCode":800,"nextCode":null}"#,
                "deny 800 [code-as-string,code-as-float]",
                r#"{"nextCode":0,"NEXTCODE":1,"errCode":800,"nextCode":null}"#,
            ),
            (r#"{"actionCode":1,"actionCode":0}"#, "allow", "="),
            (r#"{"actionCode":0,"actionCode":1}"#, "actionCode 1", ""),
            (r#"{"actionCode":1,"actionCode":null}"#, "actionCode 1", ""),
        ],
    );
}

#[test]
fn everything_around_a_correction_stays_as_it_was() {
    let answer = "\t{ \"zebra\" :[1e5, -0.10,\"\\u00e9\\/\"],\r\n\"errMsg\":\"a\\ud800\\n\u{e9}\",\"a\":{\"nextCode\":\"1\"},\
                  \"next\\u0043ode\" : \"1\" ,\"errDlt\":null, \"ERRCODE\":5001.0,\"zebra\":{} } ";
    let expected = answer.replacen(": \"1\" ,", ": 1 ,", 1).replacen("5001.0", "5001", 1);
    read_table(&asked(SEND, ""), &[(answer, "deny 5001 [code-as-string,code-as-float]", &expected)]);
}

#[test]
fn a_flood_of_wrong_types_is_not_corrected() {
    let flood = |count: usize| format!("{{{}\"nextCode\":\"0\"}}", "\"errCode\":\"0\",".repeat(count - 1));
    let callback = asked(SEND, "");
    assert_eq!(
        reading(&read(flood(16).as_bytes(), &callback, RULE_CODE, LeaveOut)),
        "allow [code-as-string]"
    );
    assert_eq!(reading(&read(flood(17).as_bytes(), &callback, RULE_CODE, LeaveOut)), "invalid");
}

#[test]
fn what_is_only_noticed_travels_on_as_it_is() {
    read_table(
        &asked(SEND, ""),
        &[
            (r#"{"errCode":5001}"#, "allow [error-code-without-refusal]", "="),
            (r#"{"errCode":0}"#, "allow", "="),
            (r#"{"nextCode":2}"#, "allow [unknown-next-code]", "="),
            (r#"{"nextCode":-1}"#, "allow [unknown-next-code]", "="),
            ("{}", "allow [no-known-field]", "="),
            (" null\n", "allow [no-known-field]", "="),
            (r#"{"data":{"errCode":0}}"#, "allow [no-known-field]", "="),
            (r#"{"errDlt":null}"#, "allow", "="),
            (r#"{"ERRMSG":"fine"}"#, "allow", "="),
        ],
    );
}

#[test]
fn each_finding_of_an_answer_has_a_case_in_which_it_is_found() {
    let elsewhere = [
        Finding::RefusalWithStatus,
        Finding::Compressed,
        Finding::FieldType,
        Finding::OperationIdDiffers,
        Finding::OperationIdGenerated,
    ];
    let mut found = Findings::default();
    for Sample { callback, answer, .. } in samples() {
        for crashing_fields in [LeaveOut, Pass] {
            if let Ok(reading) = read(&answer, &callback, RULE_CODE, crashing_fields) {
                found = found.and(reading.findings);
            }
        }
    }
    for row in &FINDINGS {
        assert!(std::ptr::eq(row.finding.row(), row), "{}: the table is in the order of the enum", row.name);
        let here = !elsewhere.contains(&row.finding);
        assert_eq!(found.iter().any(|finding| finding == row.finding), here, "{}", row.name);
    }
}

#[test]
fn what_is_wrong_with_a_callback_is_found_whatever_its_answer() {
    let validation = Validation::default();
    let found = |header: &str, fields: &str| {
        let head =
            Request::post(format!("/{SEND}")).header("operationID", header).body(()).expect("a request");
        let body = format!(r#"{{"callbackCommand":"{SEND}"{fields}}}"#).into();
        let raw = RawRequest { head: head.into_parts().0, body };
        let callback = Callback::parse(raw, &validation, || "made-up".to_owned()).expect("a callback");
        Findings::of_callback(&callback).to_string()
    };
    assert_eq!(found("a", r#","operationID":"a""#), "");
    assert_eq!(found("a", r#","operationID":"b""#), "operation-id-differs");
    assert_eq!(found("", r#","operationID":"b""#), "operation-id-differs");
    assert_eq!(found("", ""), "operation-id-generated");
    assert_eq!(found("", r#","contentType":"1""#), "field-type,operation-id-generated");
}

#[test]
fn findings_are_listed_in_the_order_of_the_table() {
    let set: Findings = [Finding::FieldType, Finding::MayCrash, Finding::CodeAsString].into_iter().collect();
    assert_eq!(set.to_string(), "code-as-string,may-crash,field-type");
    assert_eq!(Findings::default().to_string(), "");
    assert_eq!(set.and(Findings::default()), set);
}

#[test]
fn an_allow_of_set_group_info_is_completed_from_the_request() {
    let callback =
        asked(SET_GROUP, r#""groupID":"g1","groupName":"n\u00e9w","introduction":"","faceURL":"f","ex":"e""#);
    read_table(
        &callback,
        &[
            (
                "{}",
                "allow [fields-left-out,no-known-field]",
                r#"{"groupID":"g1","groupName":"n\u00e9w","faceURL":"f"}"#,
            ),
            (
                " null ",
                "allow [fields-left-out,no-known-field]",
                r#"{"groupID":"g1","groupName":"n\u00e9w","faceURL":"f"}"#,
            ),
            (
                r#"{"nextCode":0,"groupName":null,"groupID":"g2"}"#,
                "allow [fields-left-out]",
                r#"{"nextCode":0,"groupName":"n\u00e9w","groupID":"g2","faceURL":"f"}"#,
            ),
            // What the app says stands, emptiness too, as long as it says which group.
            (r#"{"nextCode":0,"groupID":"g1","groupName":"","faceURL":"x"}"#, "allow", "="),
            // OpenIM's own struct with nothing in it: even the group's ID is empty.
            (
                r#"{"nextCode":0,"groupID":"","groupName":"","introduction":"","faceURL":"","ex":null}"#,
                "allow [fields-left-out]",
                r#"{"nextCode":0,"groupID":"g1","groupName":"n\u00e9w","introduction":"","faceURL":"f","ex":null}"#,
            ),
            (
                r#"{"nextCode":"","groupID":"","GROUPNAME":"mine","introduction":"i"}"#,
                "allow [code-as-string,fields-left-out]",
                r#"{"nextCode":0,"groupID":"g1","GROUPNAME":"mine","introduction":"i","faceURL":"f"}"#,
            ),
            // A refusal is not completed, and other commands are not.
            (r#"{"errCode":700,"nextCode":1}"#, "deny 700", "="),
        ],
    );
    read_table(&asked(SEND, r#""groupID":"g1""#), &[("{}", "allow [no-known-field]", "=")]);
}

#[test]
fn an_allow_of_set_group_info_ex_is_completed_with_what_the_request_changes() {
    let callback = asked(
        SET_GROUP_EX,
        r#""groupID":"g1","groupName":null,"introduction":"","faceURL":"f","notification":"n","needVerification":0,"lookMemberInfo":null"#,
    );
    read_table(
        &callback,
        &[
            // An absent pointer is "leave it": the request's "make it empty" must be said, its null must not.
            (
                "{}",
                "allow [fields-left-out,no-known-field]",
                r#"{"groupID":"g1","introduction":"","faceURL":"f","needVerification":0}"#,
            ),
            (
                r#"{"nextCode":0,"groupID":"","introduction":null,"faceURL":null,"needVerification":null}"#,
                "allow [fields-left-out]",
                r#"{"nextCode":0,"groupID":"g1","introduction":"","faceURL":"f","needVerification":0}"#,
            ),
            (
                r#"{"nextCode":0,"groupID":"g1","introduction":"","faceURL":"","needVerification":1,"groupName":"x"}"#,
                "allow",
                "=",
            ),
            (
                r#"{"groupID":"g1","introduction":"i","faceURL":"x","needVerification":2,"needVerification":null}"#,
                "allow [fields-left-out,no-known-field]",
                r#"{"groupID":"g1","introduction":"i","faceURL":"x","needVerification":2,"needVerification":0}"#,
            ),
        ],
    );
    let nothing_changes = asked(SET_GROUP_EX, r#""groupID":"","groupName":null"#);
    read_table(&nothing_changes, &[(PLAIN_ALLOW, "allow", "=")]);
}

#[test]
fn what_openim_would_panic_on_or_refuse_is_no_answer() {
    for (command, request, answer, expected) in [
        (MEMBERS, "", r#"{"memberCallbackList":[{"userID":"a"}]}"#, Ok(())),
        (MEMBERS, "", r#"{"memberCallbackList":[{"userID":""}]}"#, Ok(())),
        (MEMBERS, "", r#"{"memberCallbackList":null}"#, Ok(())),
        (
            MEMBERS,
            "",
            r#"{"memberCallbackList":[{}]}"#,
            Err("an element of memberCallbackList has no userID"),
        ),
        (
            MEMBERS,
            "",
            r#"{"memberCallbackList":[{"nickname":"n"}]}"#,
            Err("an element of memberCallbackList has no userID"),
        ),
        (
            MEMBERS,
            "",
            r#"{"memberCallbackList":[{"userID":null}]}"#,
            Err("an element of memberCallbackList has no userID"),
        ),
        (
            MEMBERS,
            "",
            r#"{"memberCallbackList":[{"userID":"a"},null]}"#,
            Err("memberCallbackList has a null element"),
        ),
        // The second list merges into the first.
        (MEMBERS, "", r#"{"memberCallbackList":[{"userID":"a"}],"memberCallbackList":[{"ex":"e"}]}"#, Ok(())),
        (REGISTER, "", r#"{"users":[{"userID":"a"}]}"#, Ok(())),
        (REGISTER, "", r#"{"users":[{}]}"#, Ok(())),
        (REGISTER, "", r#"{"users":[null]}"#, Err("users has a null element")),
        (UPDATE, r#""nickName":"n""#, r#"{"nickName":"m"}"#, Ok(())),
        (UPDATE, r#""nickName":null"#, r#"{"nickName":null}"#, Ok(())),
        (UPDATE, r#""faceURL":"""#, r#"{"faceURL":""}"#, Ok(())),
        (SEND, "", r#"{"memberCallbackList":[null],"users":[null],"content":"x"}"#, Ok(())),
    ] {
        let callback = asked(command, request);
        match (
            openim(answer.as_bytes(), &callback),
            read(answer.as_bytes(), &callback, RULE_CODE, LeaveOut),
            expected,
        ) {
            (Conclusion::Allowed, Ok(Reading { verdict: Verdict::Allow, .. }), Ok(())) => {}
            (Conclusion::Fails(one), Err(Unusable::Invalid(other)), Err(why)) => {
                assert_eq!(one, other);
                assert!(one.to_string().starts_with(why), "{answer}: {one}");
            }
            (concluded, found, expected) => panic!("{answer}: {concluded:?}, {found:?}, not {expected:?}"),
        }
    }
}

#[test]
fn modified_content_must_be_the_text_of_an_object_or_null() {
    let callback = asked(MODIFY, "");
    for (content, passes) in [
        (r#""{}""#, true),
        (r#""null""#, true),
        (r#"" {\"a\":[{}]}\n""#, true),
        ("null", true),
        (r#""""#, false),
        (r#""[]""#, false),
        (r#""x""#, false),
        (r#""\"x\"""#, false),
        (r#""1""#, false),
        (r#""{\"a\":{\"b\":}}""#, false),
        (r#""{\"a\":[}""#, false),
        (r#""{}{}""#, false),
        (r#""nullx""#, false),
    ] {
        let answer = format!(r#"{{"nextCode":0,"content":{content}}}"#);
        let expected = if passes { Conclusion::Allowed } else { Conclusion::Fails(Invalid::Content) };
        assert_eq!(openim(answer.as_bytes(), &callback), expected, "{content}");
        assert_sound(content, answer.as_bytes(), &callback);
    }
    // A refusal is never applied: what it holds besides does not matter.
    let refusal = br#"{"errCode":700,"nextCode":1,"content":"x"}"#;
    assert_eq!(reading(&read(refusal, &callback, RULE_CODE, LeaveOut)), "deny 700");
}

/// Rows of command, request, answer, and the answer without what OpenIM may end on (`=` if there is nothing of that).
const CRASHING: &[(&str, &str, &str, &str)] = &[
    (MODIFY, "", r#"{"nextCode":0,"offlinePushInfo":{}}"#, r#"{"nextCode":0}"#),
    (
        MODIFY,
        "",
        r#"{"nextCode":0,"offlinePushInfo":{"title":"t"},"content":"{}"}"#,
        r#"{"nextCode":0,"content":"{}"}"#,
    ),
    (MODIFY, "", r#"{"nextCode":0,"offlinePushInfo":null}"#, "="),
    (UPDATE, r#""ex":null"#, r#"{"nextCode":0,"ex":"e"}"#, r#"{"nextCode":0}"#),
    (UPDATE, "", r#"{"nextCode":0,"ex":""}"#, r#"{"nextCode":0}"#),
    (UPDATE, r#""ex":"x""#, r#"{"nextCode":0,"ex":"e"}"#, "="),
    (UPDATE, r#""ex":null"#, r#"{"nextCode":0,"ex":null}"#, "="),
    (
        UPDATE,
        r#""nickName":"n","faceURL":null"#,
        r#"{"nextCode":0,"nickName":"m","faceURL":"f"}"#,
        r#"{"nextCode":0,"nickName":"m"}"#,
    ),
    (
        UPDATE,
        r#""nickName":null,"faceURL":"""#,
        r#"{"nextCode":0,"nickName":"m","faceURL":"f"}"#,
        r#"{"nextCode":0,"faceURL":"f"}"#,
    ),
    (
        UPDATE,
        r#""nickName":null,"faceURL":null"#,
        r#"{"userID":"u","nickName":"","faceURL":"","ex":"","nextCode":0}"#,
        r#"{"userID":"u","nextCode":0}"#,
    ),
    // In every spelling that Go takes, and each time that it is there; what is inside other fields is none.
    (MODIFY, "", r#"{"nextCode":0,"OFFLINEPUSHINFO":{},"ex":"a"}"#, r#"{"nextCode":0,"ex":"a"}"#),
    (MODIFY, "", "{\"nextCode\":0,\"offlinePu\u{17f}hInfo\":{},\"ex\":\"a\"}", r#"{"nextCode":0,"ex":"a"}"#),
    (MODIFY, "", r#"{"nextCode":0,"\u006fffline\u212aushInfo":{},"ex":"a"}"#, "="),
    (MODIFY, "", r#"{"nextCode":0,"\u006fffline\u0050ushInfo":{},"ex":"a"}"#, r#"{"nextCode":0,"ex":"a"}"#),
    (
        MODIFY,
        "",
        r#"{"offlinePushInfo":{"ex":"1"},"nextCode":0,"offlinepushinfo":{"desc":"d"}}"#,
        r#"{"nextCode":0}"#,
    ),
    (MODIFY, "", r#"{"offlinePushInfo":null,"nextCode":0,"offlinepushinfo":{}}"#, r#"{"nextCode":0}"#),
    (MODIFY, "", r#"{"offlinePushInfo":{},"nextCode":0,"offlinepushinfo":null}"#, "="),
    (MODIFY, "", r#"{"nextCode":0,"data":{"offlinePushInfo":{}},"options":{"offlinePushInfo":true}}"#, "="),
    (
        UPDATE,
        "",
        r#"{ "nextCode": 0 , "Nic\u212aName" : "\u00e4" , "x": 1.0 }"#,
        r#"{ "nextCode": 0 , "x": 1.0 }"#,
    ),
    // Beside another correction.
    (UPDATE, "", r#"{"nextCode":"0","ex":"e"}"#, r#"{"nextCode":0}"#),
    // A refusal is not applied, and other commands have a place for these fields or none at all.
    (MODIFY, "", r#"{"errCode":700,"nextCode":1,"offlinePushInfo":{}}"#, "="),
    (UPDATE, "", r#"{"errCode":700,"nextCode":1,"ex":"e"}"#, "="),
    (SEND, "", r#"{"nextCode":0,"offlinePushInfo":{},"ex":"e"}"#, "="),
    ("callbackBeforeOfflinePushCommand", "", r#"{"nextCode":0,"offlinePushInfo":{}}"#, "="),
    (
        "callbackBeforeUpdateUserInfoCommand",
        "",
        r#"{"nextCode":0,"nickName":"n","faceURL":"f","ex":"e"}"#,
        "=",
    ),
    ("callbackMsgModifyCommand", "", r#"{"nextCode":0,"offlinePushInfo":{}}"#, r#"{"nextCode":0}"#),
];

#[test]
fn what_openim_may_end_on_is_left_out_and_every_other_byte_stays() {
    for (command, request, answer, expected) in CRASHING {
        let callback = asked(command, request);
        let found = read(answer.as_bytes(), &callback, RULE_CODE, LeaveOut).expect("an answer");
        let prevented = found.findings.has(Finding::CrashPrevented);
        let expected = if *expected == "=" { answer } else { expected };
        assert_eq!(String::from_utf8_lossy(&found.body), **expected, "{answer}");
        assert_eq!((prevented, found.left_out.is_empty()), (expected != answer, !prevented), "{answer}");
        assert!(!found.findings.has(Finding::MayCrash), "{answer}");
        assert_sound(answer, answer.as_bytes(), &callback);
    }
}

#[test]
fn what_openim_may_end_on_passes_and_is_noticed_if_the_policy_says_so() {
    for (command, request, answer, expected) in CRASHING {
        let callback = asked(command, request);
        let found = read(answer.as_bytes(), &callback, RULE_CODE, Pass).expect("an answer");
        let left_out = read(answer.as_bytes(), &callback, RULE_CODE, LeaveOut).expect("an answer");
        assert_eq!(found.verdict, left_out.verdict, "{answer}");
        assert!(found.left_out.is_empty() && !found.findings.has(Finding::CrashPrevented), "{answer}");
        assert_eq!(found.findings.has(Finding::MayCrash), *expected != "=", "{answer}");
        let corrected = answer.replace(r#""0""#, "0");
        assert_eq!(String::from_utf8_lossy(&found.body), corrected, "{answer}");
    }
}

#[test]
fn openim_alone_fails_on_a_field_that_the_request_says_it_has_no_place_for() {
    let fails = |field| Conclusion::Fails(Invalid::NotInRequest { field });
    for (request, answer, expected) in [
        (r#""nickName":null"#, r#"{"nickName":"m"}"#, fails("nickName")),
        ("", r#"{"faceURL":""}"#, fails("faceURL")),
        (r#""faceURL":"""#, r#"{"faceURL":""}"#, Conclusion::Allowed),
        // The request never shows it.
        (r#""ex":null"#, r#"{"ex":"e"}"#, Conclusion::Allowed),
        ("", r#"{"nextCode":1,"faceURL":""}"#, Conclusion::Denied { code: 0 }),
    ] {
        assert_eq!(openim(answer.as_bytes(), &asked(UPDATE, request)), expected, "{answer}");
    }
}

#[test]
fn a_command_outside_the_table_is_read_by_the_common_fields_alone() {
    read_table(
        &asked("callbackOfTomorrow", ""),
        &[
            (
                r#"{"nextCode":"1","errCode":0}"#,
                "deny 5123 [code-as-string,deny-code-too-small]",
                r#"{"nextCode":1,"errCode":5123}"#,
            ),
            (r#"{"nextCode":0,"content":5,"users":[null]}"#, "allow", "="),
        ],
    );
}

#[test]
fn the_safe_allow_echoes_for_the_two_commands_that_need_it_and_is_plain_for_all_others() {
    let body =
        |callback: &Callback| String::from_utf8(allow_body(Some(callback)).into_owned()).expect("UTF-8");
    let start = &PLAIN_ALLOW[..PLAIN_ALLOW.len() - 1];
    assert_eq!(
        body(&recorded(SET_GROUP)),
        format!(r#"{start},"groupID":"2349876510","groupName":"new name","faceURL":"","introduction":""}}"#)
    );
    assert_eq!(
        body(&recorded(SET_GROUP_EX)),
        format!(r#"{start},"groupID":"2349876510","groupName":"new name","needVerification":1}}"#)
    );
    assert_eq!(body(&asked(SET_GROUP_EX, "")), PLAIN_ALLOW);
    assert_eq!(allow_body(None), PLAIN_ALLOW.as_bytes());
    for command in command::all() {
        let callback = asked(command.name, "");
        assert_eq!(body(&callback), PLAIN_ALLOW, "{}", command.name);
    }
    for echoing in [SET_GROUP, SET_GROUP_EX].map(recorded) {
        let allow = allow_body(Some(&echoing));
        assert_eq!(openim(&allow, &echoing), Conclusion::Allowed);
        let found = read(&allow, &echoing, RULE_CODE, LeaveOut).expect("an allow");
        assert_eq!(
            (found.verdict, &*found.body, found.findings),
            (Verdict::Allow, &*allow, Findings::default())
        );
    }
}

#[test]
fn a_written_refusal_is_one_whatever_its_texts_hold() {
    for text in [
        "",
        "plain",
        "\"quoted\\\"",
        "{\"nextCode\":0}",
        "\u{0}\u{1f}\n\u{2028}",
        "\u{1f600}é",
        "\",\"nextCode\":0,\"",
    ] {
        let body = deny_body(5001, text, text);
        let decoded: Json = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(openims_parse(&decoded), Some(5001));
        assert_eq!((decoded["errMsg"].as_str(), decoded["errDlt"].as_str()), (Some(text), Some(text)));
        assert_eq!(openim(&body, &asked(SEND, "")), Conclusion::Denied { code: 5001 });
    }
    assert_eq!(
        String::from_utf8(deny_body(-1, "a", "b\n")).expect("UTF-8"),
        r#"{"actionCode":0,"errCode":-1,"errMsg":"a","errDlt":"b\n","nextCode":1}"#
    );
}
