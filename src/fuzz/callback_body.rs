//! A callback's body: taken if and only if it is JSON that means one thing, to a strict reader and to Go's.
//!
//! Input: a byte for the validation, the command, a line break, then the body.

use bytes::Bytes;
use http::Request;
use serde::de::IgnoredAny;
use serde_json::Value as Json;

use super::{choice_and_command, shown};
use crate::callback::command;
use crate::callback::operation_id::SentHeader;
use crate::callback::rejection::Rejection;
use crate::callback::{Callback, OPERATION_ID, RawRequest};
use crate::go_json::{self, Field, Kind, SyntaxError, Type, Value};
use crate::policy::{FieldTypes, OnRejection, OperationIds, UnknownCommands, Validation};
use crate::reply::Reply;
use crate::verdict::{self, Conclusion};

/// What an app written in Go looks at first.
static GOS: &[Field] = &[Field { name: "callbackCommand", ty: Type { kind: Kind::Str, nillable: false } }];

/// The input as a callback or a rejection.
#[allow(clippy::result_large_err, reason = "as of Callback::parse")]
fn parsed(how: u8, name: &str, body: &[u8]) -> Result<Callback, (RawRequest, Rejection)> {
    let bit = |at: u8| how & (1 << at) != 0;
    let validation = Validation {
        unknown_commands: if bit(0) { UnknownCommands::Reject } else { UnknownCommands::Forward },
        operation_id: match (bit(4), bit(1)) {
            (true, _) => OperationIds::Report,
            (false, true) => OperationIds::Generate,
            (false, false) => OperationIds::Require,
        },
        field_types: if bit(2) { FieldTypes::Reject } else { FieldTypes::Report },
        on_rejection: OnRejection::Deny,
    };
    let mut request = Request::post(format!("/{name}"));
    if !bit(3) {
        request = request.header(OPERATION_ID, if bit(5) { "" } else { "1" });
    }
    let head = request.body(()).expect("a request").into_parts().0;
    let raw = RawRequest { head, body: Bytes::copy_from_slice(body) };
    Callback::parse(raw, &validation, || "made-up".to_owned())
}

pub(super) fn run(input: &[u8]) {
    let Some((how, name, body)) = choice_and_command(input) else { return };
    match parsed(how, name, body) {
        Ok(callback) => {
            accepted(&callback, name, body);
            one_id(&callback);
        }
        Err((raw, rejection)) => {
            assert_eq!(raw.body, body);
            rejected(&rejection, body);
            let observed = Callback::unchecked(raw, || "made-up".to_owned());
            assert_eq!(observed.body(), body);
            assert!(!observed.operation_id().text.is_empty());
            assert_eq!(observed.subject().name, name);
        }
    }
}

fn accepted(callback: &Callback, name: &str, body: &[u8]) {
    assert_eq!(callback.body(), body);
    assert!(!callback.operation_id().text.is_empty());
    assert_eq!(callback.subject().name, name);
    let is_nested = match serde_json::from_slice::<IgnoredAny>(body) {
        Ok(_) => false,
        Err(error) => {
            // serde_json stops at 128 levels, Go at 10,000.
            assert!(error.to_string().starts_with("recursion limit"), "{error}: {}", shown(body));
            true
        }
    };
    // Half a surrogate is JSON to Go, and to serde_json where it is not decoded.
    if let Ok(json) = serde_json::from_slice::<Json>(body) {
        assert_eq!(json["callbackCommand"], name, "{}", shown(body));
        for field in command::request_table(callback.command()).fields {
            if let Some(raw) = callback.value(field.name) {
                let value: Json = serde_json::from_slice(raw).expect("a value is JSON");
                assert_eq!(json[field.name], value, "{}: {}", field.name, shown(body));
            }
        }
    }
    // Go folds the case of keys, and the last one wins.
    if let Ok(decoded) = go_json::decode(body, GOS) {
        assert_eq!(decoded.error_count, 0, "{}", shown(body));
        let Value::Str(span) = decoded.root.field(0) else { panic!("no command for Go: {}", shown(body)) };
        assert_eq!(go_json::unquote(span.of(body)), name, "{}", shown(body));
    }
    let allow = verdict::allow_body(Some(callback));
    assert_eq!(verdict::openim(&allow, callback), Conclusion::Allowed, "{}", shown(&allow));
    if !is_nested {
        serde_json::from_slice::<IgnoredAny>(&allow).expect("an allow is JSON");
    }
}

/// The ID is the body's if a header can hold that, else the header's, else made up; and the header of another is told of.
fn one_id(callback: &Callback) {
    let header = callback.headers().get(OPERATION_ID).map(|value| value.to_str().expect("of this target"));
    let in_body = callback.value("operationID").map(go_json::unquote).unwrap_or_default();
    let in_body = in_body.trim_matches([' ', '\t']);
    let fits = !in_body.is_empty() && http::HeaderValue::from_bytes(in_body.as_bytes()).is_ok();
    let received = if fits { Some(in_body) } else { header.filter(|header| !header.is_empty()) };
    let id = callback.operation_id();
    assert_eq!(id.text, received.unwrap_or("made-up"));
    let expected = match received {
        None => SentHeader::Generated,
        Some(_) if in_body.is_empty() || header == Some(in_body) => SentHeader::AsReceived,
        Some(_) => SentHeader::Replaced,
    };
    assert_eq!(id.header, expected);
    let beside = header.filter(|header| expected == SentHeader::Replaced && *header != id.text);
    assert_eq!(callback.header_operation_id().as_deref(), beside);
}

fn rejected(rejection: &Rejection, body: &[u8]) {
    assert!(rejection.status().is_client_error());
    if let Rejection::NotUtf8 { .. } = rejection {
        assert!(std::str::from_utf8(body).is_err());
    }
    if let Rejection::NotJson(SyntaxError::End | SyntaxError::Byte { .. }) = rejection {
        let read = serde_json::from_slice::<IgnoredAny>(body);
        assert!(read.is_err(), "{rejection}: {}", shown(body));
    }
    for (on, echoes, refused) in [
        (OnRejection::Deny, false, true),
        (OnRejection::Allow, true, true),
        (OnRejection::Allow, false, false),
    ] {
        let reply = Reply::rejection(rejection, on, echoes);
        let json: Json = serde_json::from_slice(reply.body()).expect("what the guard writes is JSON");
        assert_eq!(json["actionCode"], 0);
        assert_eq!(json["nextCode"], i32::from(refused));
    }
}
