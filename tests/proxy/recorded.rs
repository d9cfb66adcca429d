//! The requests that a real OpenIM server sent, put to the guard.

use serde_json::Value;

use crate::support::{App, Call, Caller, Guard};

/// One request a line: `head` without its last line end, and `body`.
const REQUESTS: &str = include_str!("../support/openim/requests-v3.8.3.jsonl");

fn calls() -> Vec<Call> {
    let call = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let (command, head, body) = (&line["command"], &line["head"], &line["body"]);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let mut call = Call::raw(&text(command), text(body)).without_header("Content-Type");
        for field in text(head).split("\r\n").skip(1) {
            let (name, value) = field.split_once(": ").expect("a field");
            if !["Host", "Content-Length"].contains(&name) {
                call = call.more_header(name, value);
            }
        }
        call
    };
    REQUESTS.lines().map(call).collect()
}

#[tokio::test]
async fn every_request_that_a_real_server_sent_reaches_the_app_unchanged_and_without_a_finding() {
    let app = App::allowing();
    let guard = Guard::with("defaults: {after: {delivery: Inline}}").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let calls = calls();
    assert_eq!(calls.len(), 71);
    for call in &calls {
        let answer = caller.send(call).await;
        assert_eq!(answer.told(), "allow upstream -", "{call:?}");
        let filled_in = call.target.contains("BeforeSetGroupInfo");
        assert_eq!(answer.finding(), if filled_in { "fields-left-out" } else { "" }, "{call:?}");
    }
    let bodies: Vec<_> = app.asked().into_iter().map(|asked| asked.body).collect();
    assert_eq!(bodies, calls.iter().map(|call| call.body.clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_notifications_among_them_are_those_that_a_policy_calls_so() {
    let app = App::allowing();
    let policy = "defaults: {after: {delivery: Inline}}\nrules: [{name: notifications, match: {messages: Notifications}}, {name: users, match: {messages: Users}}]";
    let guard = Guard::with(policy).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let mut seen = [0; 3];
    for (number, call) in calls().into_iter().enumerate() {
        let call = call.header("operationID", format!("op-{number}"));
        let body: Value = serde_json::from_slice(&call.body).expect("JSON");
        // An operation ID of the body must be the header's.
        let call = if body.get("operationID").is_some() {
            call.with("operationID", format!("op-{number}"))
        } else {
            call
        };
        caller.send(&call).await;
        let rule = guard.decision(&format!("op-{number}"))["rule"].as_str().unwrap_or_default().to_owned();
        let expected = match body["contentType"].as_i64() {
            Some(1000..=5000) => "notifications",
            Some(_) => "users",
            None => "default",
        };
        assert_eq!(rule, expected, "{body}");
        seen[["notifications", "users", "default"].iter().position(|name| *name == rule).expect("a rule")] +=
            1;
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
