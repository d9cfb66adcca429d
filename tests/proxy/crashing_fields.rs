//! Answers on which a service of OpenIM exits: what OpenIM gets of them, with each setting of the policy.

use serde_json::json;

use crate::support::{Act, App, Call, Caller, Guard, OpenIm, openim_verdict};

const MODIFY: &str = "callbackBeforeMsgModifyCommand";
const UPDATE: &str = "callbackBeforeUpdateUserInfoExCommand";
const SEND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";

/// A row: the callback, the app's answer, what OpenIM gets by default, and the fields that it does not get.
type Row = (Call, &'static str, &'static str, &'static str);

fn rows() -> Vec<Row> {
    let update = |nick: serde_json::Value, face: serde_json::Value| {
        Call::new(UPDATE).with("nickName", nick).with("faceURL", face).with("ex", json!(null))
    };
    vec![
        (
            Call::new(MODIFY),
            r#"{"actionCode":0,"nextCode":0,"content":"{}","offlinePushInfo":{"title":"t"},"x": 1.0}"#,
            r#"{"actionCode":0,"nextCode":0,"content":"{}","x": 1.0}"#,
            "offlinePushInfo",
        ),
        (
            Call::new(MODIFY),
            r#"{"OfflinePushinfo":{},"nextCode":0,"\u006ffflinePushInfo":{"desc":"d"}}"#,
            r#"{"nextCode":0}"#,
            "offlinePushInfo",
        ),
        (update(json!("n"), json!(null)), r#"{"nextCode":0,"ex":"e"}"#, r#"{"nextCode":0}"#, "ex"),
        (
            update(json!("n"), json!(null)),
            r#"{"nextCode":0,"nickName":"m","faceURL":"f"}"#,
            r#"{"nextCode":0,"nickName":"m"}"#,
            "faceURL",
        ),
        // An app that echoes its profile.
        (
            update(json!(null), json!(null)),
            r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0,"nickName":"m","faceURL":"f","ex":"e"}"#,
            r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#,
            "nickName, faceURL, ex",
        ),
    ]
}

/// The twins: answers on which OpenIM does not exit, or that it does not apply.
fn harmless() -> Vec<(Call, &'static str)> {
    vec![
        (Call::new(MODIFY), r#"{"nextCode":0,"offlinePushInfo":null,"content":"{}"}"#),
        (Call::new(MODIFY), r#"{"nextCode":0,"options":{"offlinePushInfo":true}}"#),
        (Call::new(MODIFY), r#"{"errCode":5001,"nextCode":1,"offlinePushInfo":{}}"#),
        (Call::new(UPDATE).with("ex", "x"), r#"{"nextCode":0,"ex":"e"}"#),
        (
            Call::new(UPDATE).with("nickName", "").with("faceURL", "f"),
            r#"{"nextCode":0,"nickName":"","faceURL":""}"#,
        ),
        (Call::new(UPDATE).with("nickName", json!(null)), r#"{"nextCode":0,"nickName":null}"#),
        (
            Call::new("callbackBeforeUpdateUserInfoCommand"),
            r#"{"nextCode":0,"nickName":"n","faceURL":"f","ex":"e"}"#,
        ),
        (Call::new("callbackBeforeOfflinePushCommand"), r#"{"nextCode":0,"offlinePushInfo":{"title":"t"}}"#),
        (Call::new(SEND), r#"{"nextCode":0,"offlinePushInfo":{},"ex":"e"}"#),
    ]
}

/// An app that gives the answer that a header of the callback has.
fn app() -> App {
    App::start(|asked| vec![Act::json(asked.values("Answer")[0].to_owned())])
}

#[tokio::test]
async fn openim_gets_no_field_that_it_exits_on_and_every_other_byte() {
    let app = app();
    // With Deny an app that echoes its profile had every update refused.
    for fallback in ["Allow", "Deny"] {
        let guard = Guard::with(format!("defaults: {{fallback: {fallback}}}")).upstream(&app).start();
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            for (call, given, wanted, fields) in rows() {
                let call = call.header("Answer", given);
                let answer = caller.send(&call).await;
                assert_eq!(
                    (answer.told().as_str(), answer.finding()),
                    (UPSTREAM, "crash-prevented"),
                    "{given}"
                );
                assert_eq!(answer.text(), wanted, "{given}");
                assert_eq!(answer.header("content-length"), wanted.len().to_string());
                assert_eq!(openim_verdict(&answer.body), OpenIm::Allowed);
                let line = guard.decision(&call.operation_id());
                assert_eq!((&line["level"], &line["finding"]), (&json!("WARN"), &json!("crash-prevented")));
                assert_eq!(line["detail"], format!("left out of upstream's answer: {fields}"));
            }
        }
        let count = guard.metric("callback_guard_findings_total{finding=\"crash-prevented\"}");
        assert_eq!(count, 2.0 * rows().len() as f64);
    }
}

#[tokio::test]
async fn an_answer_that_openim_survives_goes_on_byte_for_byte() {
    let app = app();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (call, given) in harmless() {
        let call = call.header("Answer", given);
        let answer = caller.send(&call).await;
        assert_eq!((answer.text().as_str(), answer.finding()), (given, ""), "{given}");
        assert_eq!(guard.decision(&call.operation_id())["level"], "INFO", "{given}");
    }
}

#[tokio::test]
async fn the_fields_pass_if_the_rule_or_the_defaults_say_so_and_in_observe() {
    let app = app();
    let of_a_rule = format!(
        "defaults: {{crashingFields: LeaveOut}}\nrules: [{{match: {{commands: [{MODIFY}, {UPDATE}]}}, crashingFields: Pass}}]"
    );
    for policy in [&*of_a_rule, "defaults: {crashingFields: Pass}", "mode: Observe"] {
        let guard = Guard::with(policy).upstream(&app).start();
        let mut caller = Caller::h2(&guard).await;
        for (call, given, ..) in rows() {
            let call = call.header("Answer", given);
            let answer = caller.send(&call).await;
            assert_eq!(answer.text(), given, "{policy}");
            assert_eq!(answer.finding(), "may-crash", "{policy} {given}");
            assert_eq!(guard.decision(&call.operation_id())["finding"], "may-crash");
        }
        assert_eq!(guard.metric("callback_guard_findings_total{finding=\"crash-prevented\"}"), 0.0);
        for (call, given) in harmless() {
            let answer = caller.send(&call.header("Answer", given)).await;
            assert_eq!((answer.text().as_str(), answer.finding()), (given, ""), "{policy}");
        }
    }
    // The twin: a rule for other commands, or one that takes it back.
    for policy in [
        format!("rules: [{{match: {{commands: [{SEND}]}}, crashingFields: Pass}}]"),
        "defaults: {crashingFields: Pass}\nrules: [{crashingFields: LeaveOut}]".to_owned(),
    ] {
        let guard = Guard::with(&*policy).upstream(&app).start();
        let mut caller = Caller::h2(&guard).await;
        for (call, given, wanted, _) in rows() {
            assert_eq!(caller.send(&call.header("Answer", given)).await.text(), wanted, "{policy}");
        }
    }
}

#[tokio::test]
async fn they_are_left_out_of_a_large_answer_too() {
    let filler = "y".repeat(40 << 10);
    let given = format!(
        r#"{{"nextCode":0,"offlinePushInfo":{{"desc":"{filler}"}},"content":"{{}}","z":"{filler}"}}"#
    );
    let wanted = format!(r#"{{"nextCode":0,"content":"{{}}","z":"{filler}"}}"#);
    let app = App::answering(given);
    let guard = Guard::with("").upstream(&app).start();
    let answer = Caller::h2(&guard).await.send(&Call::new(MODIFY)).await;
    assert_eq!((answer.told().as_str(), answer.finding()), (UPSTREAM, "crash-prevented"));
    assert!(answer.text() == wanted, "every other byte");
}

#[tokio::test]
async fn a_policy_with_another_word_for_them_is_never_applied() {
    let guard = Guard::with("defaults: {crashingFields: Drop}").upstream(&App::allowing()).start();
    let line = guard.wait_for_log(|line| line.contains("crashingFields"));
    assert!(line.contains(r#"\"LeaveOut\", \"Pass\""#), "{line}");
}
