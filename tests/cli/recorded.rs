//! What `simulate` sends, beside what a real OpenIM server sent.
//!
//! `tests/support/openim/requests-v3.8.3.jsonl` holds requests as OpenIM Server v3.8.3 sent them over HTTP/1.1, all commands
//! that it ever sends, at most four of each: its head (`head`, without the last line end) and its body.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::program::{Folder, repository};
use crate::support::{App, Asked};

/// What a value may be told apart by: its JSON type, with null and emptiness.
type Kinds = BTreeMap<String, BTreeSet<&'static str>>;

/// A request, recorded or sent by `simulate`.
struct Request {
    command: String,
    /// Path and query behind `/cb`.
    target: String,
    /// As spelled, in order.
    headers: Vec<String>,
    operation_id: String,
    body: String,
}

impl Request {
    fn new(command: &str, head: &str, body: &str) -> Request {
        let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
        let line = lines.next().expect("a request line");
        let target =
            line.strip_prefix("POST /cb/").and_then(|rest| rest.strip_suffix(" HTTP/1.1")).expect(line);
        let fields: Vec<_> = lines.map(|line| line.split_once(": ").expect(line)).collect();
        let value = |name: &str| fields.iter().find(|(known, _)| *known == name).expect(name).1.to_owned();
        assert_eq!(value("Content-Length"), body.len().to_string(), "{command}");
        assert_eq!(value("Content-Type"), "application/json; charset=utf-8");
        assert_eq!(
            (value("User-Agent"), value("Accept-Encoding")),
            ("Go-http-client/1.1".to_owned(), "gzip".to_owned())
        );
        Request {
            command: command.to_owned(),
            target: target.to_owned(),
            headers: fields.iter().map(|(name, _)| (*name).to_owned()).collect(),
            operation_id: value("Operationid"),
            body: body.to_owned(),
        }
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    /// The keys of the body in the order of the text.
    fn order(&self) -> Vec<String> {
        // The objects in a body hold no key of the body's own, and texts are escaped.
        let mut keys: Vec<_> = self.json().as_object().expect("an object").keys().cloned().collect();
        keys.sort_by_key(|key| self.body.find(&format!("\"{key}\":")).expect(key));
        keys
    }
}

fn recorded() -> Vec<Request> {
    let path = repository("tests/support/openim/requests-v3.8.3.jsonl");
    let text = fs::read_to_string(path).expect("the recorded requests");
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| line[key].as_str().expect(key).to_owned();
        Request::new(&text("command"), &text("head"), &text("body"))
    };
    text.lines().map(line).collect()
}

/// Every callback that `simulate` sends for the commands that were recorded.
fn sent(recorded: &[Request], server: &str) -> Vec<Request> {
    let commands: BTreeSet<_> = recorded.iter().map(|request| request.command.as_str()).collect();
    let app = App::allowing();
    let commands: Vec<_> = commands.into_iter().collect();
    Folder::new().run(&format!(
        "simulate {}/cb --server {server} --command {}",
        app.url(),
        commands.join(",")
    ));
    let request = |asked: Asked| {
        let body = String::from_utf8(asked.body.to_vec()).expect("UTF-8");
        Request::new(&asked.command(), &asked.head, &body)
    };
    app.asked().into_iter().map(request).collect()
}

fn by_command(requests: &[Request]) -> BTreeMap<&str, Vec<&Request>> {
    let mut by_command: BTreeMap<&str, Vec<&Request>> = BTreeMap::new();
    for request in requests {
        by_command.entry(&request.command).or_default().push(request);
    }
    by_command
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.as_i64() == Some(0) => "0",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "float",
        Value::String(text) if text.is_empty() => "empty string",
        Value::String(_) => "string",
        Value::Array(list) if list.is_empty() => "empty list",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

fn collect(value: &Value, path: &str, kinds: &mut Kinds) {
    kinds.entry(path.to_owned()).or_default().insert(kind(value));
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| collect(value, &format!("{path}.{key}"), kinds));
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, &format!("{path}[]"), kinds)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn kinds(requests: &[&Request]) -> Kinds {
    let mut kinds = Kinds::new();
    requests.iter().for_each(|request| collect(&request.json(), "", &mut kinds));
    kinds
}

/// What `simulate` sends and the recording lacks, by command, field and kind, with the reason: every message there was sent
/// by REST or is a notification, nobody was mentioned, and of two callbacks about one dissolution only the first is there.
const NOT_RECORDED: [(&str, &str, &str); 29] = [
    ("callbackAfterDisMissGroupCommand", ".membersID", "empty list"),
    ("callbackAfterSendGroupMsgCommand", ".content", "string"),
    ("callbackAfterSendGroupMsgCommand", ".faceURL", "string"),
    ("callbackAfterSendGroupMsgCommand", ".senderPlatformID", "integer"),
    ("callbackAfterSendGroupMsgCommand", ".status", "integer"),
    ("callbackAfterSendSingleMsgCommand", ".content", "string"),
    ("callbackAfterSendSingleMsgCommand", ".faceURL", "string"),
    ("callbackAfterSendSingleMsgCommand", ".senderNickname", "string"),
    ("callbackAfterSendSingleMsgCommand", ".senderPlatformID", "integer"),
    ("callbackAfterSendSingleMsgCommand", ".status", "integer"),
    ("callbackBeforeGroupOnlinePushCommand", ".atUserIDList", "list"),
    ("callbackBeforeGroupOnlinePushCommand", ".atUserIDList[]", "string"),
    ("callbackBeforeGroupOnlinePushCommand", ".platform", "string"),
    ("callbackBeforeGroupOnlinePushCommand", ".platformID", "integer"),
    ("callbackBeforeMsgModifyCommand", ".status", "integer"),
    ("callbackBeforeOfflinePushCommand", ".desc", "empty string"),
    ("callbackBeforeOfflinePushCommand", ".ex", "empty string"),
    ("callbackBeforeOfflinePushCommand", ".iOSPushSound", "string"),
    ("callbackBeforeOfflinePushCommand", ".platform", "string"),
    ("callbackBeforeOfflinePushCommand", ".platformID", "integer"),
    ("callbackBeforeOnlinePushCommand", ".platform", "string"),
    ("callbackBeforeOnlinePushCommand", ".platformID", "integer"),
    ("callbackBeforeSendGroupMsgCommand", ".atUserList", "list"),
    ("callbackBeforeSendGroupMsgCommand", ".atUserList[]", "string"),
    ("callbackBeforeSendGroupMsgCommand", ".content", "string"),
    ("callbackBeforeSendGroupMsgCommand", ".faceURL", "string"),
    ("callbackBeforeSendGroupMsgCommand", ".senderPlatformID", "integer"),
    ("callbackBeforeSendGroupMsgCommand", ".status", "integer"),
    ("callbackBeforeSendSingleMsgCommand", ".status", "integer"),
];

#[test]
fn all_46_commands_that_the_server_sent_are_sent_with_its_headers_and_without_a_query() {
    let recorded = recorded();
    let sent = sent(&recorded, "v3.8");
    let (theirs, ours) = (by_command(&recorded), by_command(&sent));
    assert_eq!(theirs.len(), 46);
    assert_eq!(theirs.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    let headers = |requests: &[Request]| -> BTreeSet<Vec<String>> {
        requests.iter().map(|request| request.headers.clone()).collect()
    };
    // The names, their order and their spelling.
    assert_eq!(headers(&recorded), headers(&sent));
    assert_eq!(headers(&sent).len(), 1);
    for request in recorded.iter().chain(&sent) {
        assert_eq!(request.target, request.command, "the path and no query");
        assert!(!request.operation_id.is_empty());
        assert!(request.body.ends_with("}\n") && !request.body.contains(['<', '>', '&']), "{}", request.body);
    }
}

#[test]
fn the_keys_of_each_body_are_the_server_s_in_its_order() {
    let recorded = recorded();
    let sent = sent(&recorded, "v3.8");
    let orders = |requests: &[&Request]| -> BTreeSet<Vec<String>> {
        requests.iter().map(|request| request.order()).collect()
    };
    for ((command, theirs), ours) in by_command(&recorded).into_iter().zip(by_command(&sent).into_values()) {
        assert_eq!(orders(&theirs), orders(&ours), "{command}");
    }
}

#[test]
fn each_field_is_of_the_kinds_that_the_server_sent_and_of_no_other_but_those_listed() {
    let recorded = recorded();
    let sent = sent(&recorded, "v3.8");
    let (theirs, ours) = (by_command(&recorded), by_command(&sent));
    let mut differences = Vec::new();
    for (command, theirs) in theirs {
        let (theirs, ours) = (kinds(&theirs), kinds(&ours[command]));
        let mut expected = theirs;
        for (_, path, kind) in NOT_RECORDED.iter().filter(|(name, ..)| *name == command) {
            // A line that is no longer needed must go.
            assert!(expected.entry((*path).to_owned()).or_default().insert(kind), "{command} {path}: {kind}");
        }
        for path in expected.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
            if expected.get(path) != ours.get(path) {
                differences.push(format!(
                    "{command} {path}: the server {:?}, simulate {:?}",
                    expected.get(path),
                    ours.get(path)
                ));
            }
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn each_request_of_the_server_has_a_sample_with_the_same_kinds_in_every_field_at_once() {
    let recorded = recorded();
    let sent = sent(&recorded, "v3.8");
    for request in &recorded {
        let ours = sent.iter().filter(|ours| ours.command == request.command);
        let mut same = ours.filter(|ours| kinds(&[ours]) == kinds(&[request]));
        assert!(same.next().is_some(), "{}: {}", request.command, request.body);
    }
}

/// Null where the server has null, an ID where it has an ID: the header's own.
#[test]
fn the_operation_id_of_the_body_is_that_of_the_header_or_empty_or_absent_as_the_server_has_it() {
    let recorded = recorded();
    let sent = sent(&recorded, "v3.8");
    let forms = |requests: &[&Request]| -> BTreeSet<&'static str> {
        let form = |request: &&Request| match request
            .json()
            .get("operationID")
            .map(|id| id.as_str().map(str::to_owned))
        {
            None => "absent",
            Some(Some(id)) if id.is_empty() => "empty",
            Some(Some(id)) if id == request.operation_id => "the header's",
            Some(_) => "another",
        };
        requests.iter().map(form).collect()
    };
    let mut seen = BTreeSet::new();
    for ((command, theirs), ours) in by_command(&recorded).into_iter().zip(by_command(&sent).into_values()) {
        assert_eq!(forms(&theirs), forms(&ours), "{command}");
        seen.extend(forms(&ours));
    }
    assert_eq!(seen, BTreeSet::from(["absent", "empty", "the header's"]));
}

/// The comparison sees what it is there for.
#[test]
fn a_difference_of_kind_key_or_order_is_one() {
    let request = |body: &str| {
        let head = format!(
            "POST /cb/c HTTP/1.1\r\nHost: h\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Content-Type: application/json; charset=utf-8\r\nOperationid: x\r\nAccept-Encoding: gzip",
            body.len()
        );
        Request::new("c", &head, body)
    };
    let base = request(r#"{"a":1,"b":[{"c":"x"}]}"#);
    for (other, same_kinds, same_order) in [
        (r#"{"a":2,"b":[{"c":"y"},{"c":"z"}]}"#, true, true),
        (r#"{"b":[{"c":"x"}],"a":1}"#, true, false),
        (r#"{"a":0,"b":[{"c":"x"}]}"#, false, true),
        (r#"{"a":null,"b":[{"c":"x"}]}"#, false, true),
        (r#"{"a":1,"b":[]}"#, false, true),
        (r#"{"a":1,"b":null}"#, false, true),
        (r#"{"a":1,"b":[{"c":""}]}"#, false, true),
        (r#"{"a":1,"b":[{"c":"x","d":1}]}"#, false, true),
        (r#"{"a":1}"#, false, false),
    ] {
        let other = request(other);
        assert_eq!(kinds(&[&base]) == kinds(&[&other]), same_kinds, "{}", other.body);
        assert_eq!(base.order() == other.order(), same_order, "{}", other.body);
    }
}

/// Main has no recording; what it adds is its query.
#[test]
fn main_sends_the_same_with_a_key_for_the_two_that_have_one() {
    let recorded = recorded();
    for request in sent(&recorded, "main") {
        let keyed = ["callbackAfterSendSingleMsgCommand", "callbackAfterSendGroupMsgCommand"];
        let query = request.target.strip_prefix(&request.command).expect("the path");
        assert_eq!(
            query.starts_with("?key=eyJzZW5kSUQi"),
            keyed.contains(&request.command.as_str()),
            "{}",
            request.target
        );
        assert!(query.is_empty() || query.starts_with("?key="));
    }
}
