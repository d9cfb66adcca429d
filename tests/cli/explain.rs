//! `explain`: the rule, the deadline and the answers, in both forms, without a proxy.

use serde_json::{Value, json};

use crate::program::Folder;

const POLICY: &str = "defaults: {callerTimeout: 5s, fallback: Deny, deny: {errCode: 5101, errMsg: later}}
rules:
  - {name: push, match: {commands: [\"callbackBefore*PushCommand\"]}, timeout: 300ms}
  - {name: pictures, match: {contentTypes: [102]}, timeout: 1s, fallbackFor: {overloaded: Allow}, maxInFlight: 3}
  - {name: bots, match: {sendIDs: [\"bot-*\"]}, answer: Allow}
";

fn callback(fields: Value) -> String {
    let mut body = json!({"callbackCommand": "callbackBeforeSendSingleMsgCommand", "operationID": "op"});
    for (key, value) in fields.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body.to_string()
}

fn explained(body: &str, code: i32) -> Value {
    let folder = Folder::new();
    folder.write("policy.yaml", POLICY);
    folder.write("callback.json", body);
    let line = "explain --policy policy.yaml --callback callback.json --format json";
    let ran = folder.run(line).code(code);
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

#[test]
fn the_rule_that_matches_is_named_and_why_the_ones_above_did_not() {
    let json = explained(&callback(json!({"contentType": 102, "sendID": "u"})), 0);
    assert_eq!((&json["rule"], &json["deadlineMs"]), (&json!("pictures"), &json!(1000)));
    let passed = json!([{
        "rule": "push", "key": "commands", "wanted": ["callbackBefore*PushCommand"],
        "found": "callbackBeforeSendSingleMsgCommand",
    }]);
    assert_eq!(json["passedOver"], passed);
    assert_eq!(json["fallbacks"]["overloaded"], json!({"verdict": "allow"}));
    let deny = json!({"verdict": "deny", "errCode": 5101, "errMsg": "later", "errDlt": ""});
    assert_eq!(json["fallbacks"]["timeout"], deny);
    assert_eq!(json["fallbacks"].as_object().map(serde_json::Map::len), Some(9), "every cause");
}

#[test]
fn a_rule_that_answers_by_itself_says_so_and_the_default_is_the_last() {
    let json = explained(&callback(json!({"contentType": 101, "sendID": "bot-7"})), 0);
    assert_eq!(json["answeredBy"], json!({"kind": "rule", "name": "bots"}));
    assert_eq!(json["answer"], json!({"verdict": "allow"}));
    let json = explained(&callback(json!({"contentType": 101, "sendID": "u"})), 0);
    assert_eq!((&json["rule"], json["passedOver"].as_array().map(Vec::len)), (&json!("default"), Some(3)));
}

#[test]
fn messages_of_users_and_notifications_and_msg_from_are_told_as_the_policy_calls_them() {
    let folder = Folder::new();
    folder.write(
        "policy.yaml",
        "rules:
  - {name: users, match: {messages: Users, contentTypes: [101, \"2000-5001\"]}}
  - {name: system, match: {msgFrom: [200]}}
  - {name: notifications, match: {messages: Notifications}}
",
    );
    let run = |fields: Value| -> Value {
        folder.write("callback.json", &callback(fields));
        let ran = folder.run("explain --policy policy.yaml --callback callback.json --format json").code(0);
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran}"))
    };
    assert_eq!(run(json!({"contentType": 5001}))["rule"], "users");
    assert_eq!(run(json!({"contentType": 102, "msgFrom": 200}))["rule"], "system");
    let json = run(json!({"contentType": 5000, "msgFrom": 100}));
    assert_eq!(json["rule"], "notifications");
    assert_eq!(
        json["passedOver"],
        json!([
            {"rule": "users", "key": "messages", "wanted": "Users", "found": "Notifications"},
            {"rule": "system", "key": "msgFrom", "wanted": [200], "found": 100},
        ])
    );
    let json = run(json!({"contentType": 102}));
    assert_eq!(json["passedOver"][0]["wanted"], json!([101, "2000-5001"]));
    assert_eq!(
        json["passedOver"][2],
        json!({"rule": "notifications", "key": "messages", "wanted": "Notifications", "found": "Users"})
    );
}

#[test]
fn an_event_is_delivered_in_the_background_unless_the_policy_says_inline() {
    let body = callback(json!({"callbackCommand": "callbackAfterSendSingleMsgCommand", "sendID": "u"}));
    let json = explained(&body, 0);
    let delivery = json!({
        "timeoutMs": 15_000, "keepForMs": 300_000, "redeliver": "WhenNotTaken", "order": "None", "paused": false,
    });
    assert_eq!((&json["delivery"], &json["answer"]), (&delivery, &json!({"verdict": "allow"})));
    assert!(json["deadlineMs"].is_null() && json["fallbacks"].is_null(), "{json}");
    let folder = Folder::new();
    folder.write("policy.yaml", "defaults: {after: {keepFor: 10m, order: Key}}");
    folder.write("inline.yaml", "defaults: {after: {delivery: Inline}}");
    folder.write("callback.json", &body);
    let text = folder.run("explain --policy policy.yaml --callback callback.json").code(0).out;
    assert!(
        text.contains("answer     allow, at once\ndelivery   in the background, after the one before"),
        "{text}"
    );
    assert!(text.contains("kept for 10m"), "{text}");
    let text = folder.run("explain --policy inline.yaml --callback callback.json").code(0).out;
    assert!(text.contains("deadline ") && !text.contains("in the background"), "{text}");
}

#[test]
fn a_callback_that_would_be_rejected_is_told_with_its_cause() {
    for (body, cause) in [("{\"callbackCommand\":5}", "command"), ("[]", "body"), ("{", "body")] {
        assert_eq!(explained(body, 1)["rejected"]["cause"], cause, "{body}");
    }
}

#[test]
fn the_fields_that_openim_may_end_on_are_told_with_what_becomes_of_them() {
    let update =
        json!({"callbackCommand": "callbackBeforeUpdateUserInfoExCommand", "nickName": "n", "faceURL": null});
    let of = |policy: &str, body: &Value| {
        let folder = Folder::new();
        folder.write("policy.yaml", policy);
        folder.write("callback.json", &body.to_string());
        let line = "explain --policy policy.yaml --callback callback.json";
        let json: Value =
            serde_json::from_str(&folder.run(&format!("{line} --format json")).code(0).out).expect("JSON");
        (folder.run(line).code(0).out, json["crashingFields"].clone())
    };
    let (text, json) = of("{}", &update);
    assert_eq!(json, json!({"fields": ["faceURL", "ex"], "do": "LeaveOut"}));
    assert!(text.contains("crashing   left out of an allow: faceURL, ex, "), "{text}");
    for policy in ["defaults: {crashingFields: Pass}", "mode: Observe"] {
        let (text, json) = of(policy, &update);
        assert_eq!(json["do"], "Pass");
        assert!(text.contains("crashing   passed on: faceURL, ex, "), "{text}");
    }
    // Other commands have none, and a rule's own answer has no field of the app.
    let (text, json) = of("{}", &json!({"callbackCommand": "callbackBeforeSendSingleMsgCommand"}));
    assert!(json.is_null() && !text.contains("crashing"), "{text}");
    assert!(of("rules: [{answer: Allow}]", &update).1.is_null());
}

#[test]
fn for_people_it_is_a_few_lines_and_every_broken_file_is_told_by_its_flag() {
    let folder = Folder::new();
    folder.write("policy.yaml", POLICY);
    folder.write("callback.json", &callback(json!({"contentType": 102})));
    let ran = folder.run("explain --policy policy.yaml --callback callback.json").code(0);
    for part in ["passed     \"push\"", "rule       \"pictures\"", "deadline   1s", "overloaded      allow"] {
        assert!(ran.out.contains(part), "{part}: {ran}");
    }
    folder.write("policy.yaml", "defaults: {timeout: 0s, fallback: Maybe}");
    let ran = folder.run("explain --policy policy.yaml --callback missing.json").code(1);
    for part in
        ["--policy: defaults.timeout: ", "--policy: defaults.fallback: ", "--callback: missing.json: "]
    {
        assert!(ran.err.lines().any(|line| line.starts_with(part)), "{part}: {ran}");
    }
}
