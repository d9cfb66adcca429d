//! A lifelike callback of every command, as Go's encoder writes it.
//!
//! `bodies.jsonl` holds one body a line: the fields in the order of OpenIM's struct, `<`, `>` and `&` escaped, nil slices
//! and pointers as `null`, the fields of an embedded pointer that is nil absent. Go's encoder ends each with a newline.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, header};

use crate::callback::command::{self, Phase};
use crate::callback::{Callback, OPERATION_ID, RawRequest};
use crate::go_json::{self, Field, Value};
use crate::policy::Validation;

static BODIES: &str = include_str!("bodies.jsonl");

/// Stands in the bodies for the operation ID, which is new for each callback.
const PLACE_OF_ID: &str = "OPERATION-ID";

/// Those that today's server sends with `?key=`: the app can answer a message with it.
const KEYED: [&str; 3] = [
    "callbackAfterSendSingleMsgCommand",
    "callbackAfterSendGroupMsgCommand",
    "callbackAfterMsgSaveDBCommand",
];

/// A callback to be sent, as often as wanted.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The command as it is sent: an alias stays one.
    pub(super) name: String,
    body: String,
    /// The operation ID that a body of one's own has.
    own_id: Option<String>,
    /// The value of `?key=`.
    pub(super) key: Option<String>,
}

/// One sending of a [`Sample`].
#[derive(Clone, Debug)]
pub(super) struct Sending {
    pub(super) operation_id: HeaderValue,
    pub(super) body: Bytes,
}

impl Sample {
    /// The lifelike callback of a command, by today's name or an earlier one.
    pub(super) fn of(name: &str) -> Option<Sample> {
        let command = command::lookup(name)?;
        let wanted = format!("\"callbackCommand\":\"{}\"", command.name);
        let line = BODIES.lines().find(|line| line.contains(&wanted))?;
        let body = line.replace(&wanted, &format!("\"callbackCommand\":\"{name}\"")) + "\n";
        let key = KEYED.contains(&name).then(|| key(&body));
        Some(Sample { name: name.to_owned(), body, own_id: None, key })
    }

    /// Every command that OpenIM waits for.
    pub(super) fn before() -> Vec<Sample> {
        let before = command::all().iter().filter(|command| command.phase == Phase::Before);
        before.filter_map(|command| Sample::of(command.name)).collect()
    }

    /// A body of one's own, which names its command; the error says why it is no callback.
    pub(super) fn own(body: String) -> Result<Sample, String> {
        const NAMES: &[Field] =
            &[Field { name: "callbackCommand", ty: TEXT }, Field { name: "operationID", ty: TEXT }];
        let decoded =
            go_json::decode(body.as_bytes(), NAMES).map_err(|error| format!("is not JSON: {error}"))?;
        let text = |at| {
            let Value::Str(span) = decoded.root.field(at) else { return String::new() };
            go_json::unquote(span.of(body.as_bytes())).into_owned()
        };
        let (name, id) = (text(0), text(1));
        if name.is_empty() || format!("/{name}").parse::<PathAndQuery>().is_err() || name.contains(['/', '?'])
        {
            return Err("has no callbackCommand, which names the command to send".to_owned());
        }
        let own_id = Some(id).filter(|id| !id.trim().is_empty());
        let sample = Sample { name, body, own_id, key: None };
        sample.parsed(&sample.sending(0)).map_err(|rejection| format!("is no callback: {rejection}"))?;
        Ok(sample)
    }

    /// A callback with an operation ID of its own.
    pub(super) fn sending(&self, number: u64) -> Sending {
        let id = self.own_id.clone().unwrap_or_else(|| operation_id(number));
        let body =
            if self.own_id.is_some() { self.body.clone() } else { self.body.replace(PLACE_OF_ID, &id) };
        let operation_id = HeaderValue::from_bytes(id.trim().as_bytes());
        Sending {
            operation_id: operation_id.unwrap_or(HeaderValue::from_static("not-a-header")),
            body: body.into(),
        }
    }

    /// The callback as the guard reads it: what a verdict is read against.
    pub(super) fn callback(&self, sending: &Sending) -> Option<Callback> {
        self.parsed(sending).ok()
    }

    fn parsed(&self, sending: &Sending) -> Result<Callback, String> {
        let head = Request::builder()
            .method(Method::POST)
            .uri(format!("/{}", self.name))
            .header(OPERATION_ID, &sending.operation_id)
            .header(header::CONTENT_LENGTH, sending.body.len())
            .body(())
            .map_err(|error| error.to_string())?;
        let raw = RawRequest { head: head.into_parts().0, body: sending.body.clone() };
        Callback::parse(raw, &Validation::default(), String::new)
            .map_err(|(_, rejection)| rejection.to_string())
    }
}

const TEXT: go_json::Type = go_json::Type { kind: go_json::Kind::Str, nillable: false };

/// Like those of OpenIM's SDKs: the time in nanoseconds.
fn operation_id(number: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}{:06}", now.as_millis(), number % 1_000_000)
}

/// Whom a message is between, in base64 as Go's URLs have it.
fn key(body: &str) -> String {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let whom = format!(
        r#"{{"sendID":"{}","recvID":"{}","groupID":"{}"}}"#,
        text("sendID"),
        text("recvID"),
        text("groupID")
    );
    STANDARD.encode(whom).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json::{Token, Tokens};

    fn keys(body: &[u8]) -> Vec<String> {
        let (mut tokens, mut keys) = (Tokens::new(body), Vec::new());
        while let Some((token, span)) = tokens.next().expect("JSON") {
            if token == Token::Key && tokens.depth() == 1 {
                keys.push(go_json::unquote(span.of(body)).into_owned());
            }
        }
        keys
    }

    #[test]
    fn every_command_has_a_body_that_is_a_callback_with_its_fields_in_order() {
        assert_eq!(BODIES.lines().count(), command::all().len());
        for command in command::all() {
            let sample = Sample::of(command.name).expect(command.name);
            let sending = sample.sending(1);
            let callback = sample.parsed(&sending).unwrap_or_else(|why| panic!("{}: {why}", command.name));
            assert_eq!(callback.wrong_type(), None, "{}", command.name);
            let known = &command.request.fields[..command.request.known];
            let known: Vec<_> = known.iter().map(|field| field.name).collect();
            let found = keys(&sending.body);
            // The fields of an embedded pointer that is nil are absent; the order of the rest is that of the struct.
            let mut rest = known.iter();
            assert!(found.iter().all(|key| rest.any(|known| known == key)), "{found:?} out of {known:?}");
            let absent: Vec<_> =
                known.iter().filter(|known| !found.iter().any(|key| key == *known)).collect();
            let push_info = ["title", "desc", "ex", "iOSPushSound", "iOSBadgeCount", "signalInfo"];
            if command.name == "callbackBeforeOnlinePushCommand" {
                assert_eq!(absent, push_info.iter().collect::<Vec<_>>());
            } else {
                assert!(absent.is_empty(), "{}: {absent:?}", command.name);
            }
        }
    }

    #[test]
    fn bodies_are_written_as_go_writes_them() {
        for line in BODIES.lines() {
            assert!(!line.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{line}");
            assert!(!line.contains("[]") && !line.contains(": ") && !line.contains("\\/"), "{line}");
        }
        let sending = Sample::of("callbackBeforeJoinGroupCommand").expect("a sample").sending(7);
        assert!(sending.body.ends_with(b"}\n"));
        assert!(sending.body.windows(8).any(|window| window == b"\"\\u0002\""));
    }

    #[test]
    fn an_alias_is_sent_under_its_own_name() {
        let sample = Sample::of("callbackOnlinePushCommand").expect("an alias");
        assert_eq!(sample.name, "callbackOnlinePushCommand");
        let body = sample.sending(1).body;
        assert!(body.starts_with(b"{\"callbackCommand\":\"callbackOnlinePushCommand\","), "{body:?}");
        assert_eq!(Sample::before().len(), 25);
    }

    #[test]
    fn the_three_that_today_s_server_sends_with_a_key_have_one() {
        let key =
            Sample::of("callbackAfterSendGroupMsgCommand").and_then(|sample| sample.key).expect("a key");
        let decoded = STANDARD.decode(key.replace("%3D", "=").replace("%2B", "+").replace("%2F", "/"));
        assert_eq!(
            decoded.expect("base64"),
            br#"{"sendID":"8112345670","recvID":"","groupID":"2349876510"}"#
        );
        assert!(Sample::before().iter().all(|sample| sample.key.is_none()));
    }

    #[test]
    fn a_body_of_one_s_own_names_its_command_and_keeps_its_operation_id() {
        let own = |body: &str| Sample::own(body.to_owned());
        let sample = own(r#"{"callbackCommand":"callbackX","operationID":" a\u0062 "}"#).expect("a callback");
        assert_eq!(
            (sample.name.as_str(), sample.sending(1).operation_id.as_bytes()),
            ("callbackX", &b"ab"[..])
        );
        for (body, why) in [
            ("", "is not JSON"),
            ("{}", "has no callbackCommand"),
            ("[1]", "has no callbackCommand"),
            (r#"{"callbackCommand":1}"#, "has no callbackCommand"),
            (r#"{"callbackCommand":"a b"}"#, "has no callbackCommand"),
            (r#"{"callbackCommand":"a","callbackCommand":"b"}"#, "callback"),
        ] {
            let _ = own(body)
                .map(|sample| panic!("{sample:?}"))
                .map_err(|found| assert!(found.contains(why), "{found}"));
        }
    }
}
