//! Lifelike callbacks of every command, as Go's encoder writes them.
//!
//! `bodies.jsonl` holds one sample a line, of which `body` is the last key and is sent as it is written: the fields in the
//! order of OpenIM's struct, `<`, `>` and `&` escaped, nil slices and pointers as `null`, the fields of an embedded pointer that
//! is nil absent. Go's encoder ends each with a newline. `sample` says what is special, and the first of each command has
//! none; `server` is the only server that sends it; `header` is `other` or `empty` where the operation ID in the header is not
//! that of the body.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, header};
use serde_json::Value;

use crate::callback::command::{self, Phase};
use crate::callback::{Callback, OPERATION_ID, RawRequest};
use crate::go_json::{self, Field};
use crate::policy::Validation;

static BODIES: &str = include_str!("bodies.jsonl");

/// What is before the body in a line.
const BODY: &str = "\"body\":";

/// Stands in the bodies for the operation ID, which is new for each callback.
const PLACE_OF_ID: &str = "OPERATION-ID";

/// Those that main sends with `?key=`: the app can answer a message with it. Releases have the first two, without a key.
const KEYED: [&str; 3] = [
    "callbackAfterSendSingleMsgCommand",
    "callbackAfterSendGroupMsgCommand",
    "callbackAfterMsgSaveDBCommand",
];

/// The one of [`KEYED`] that main alone sends.
const KEYED_ALWAYS: &str = "callbackAfterMsgSaveDBCommand";

/// Which OpenIM is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// A release, v3.8.x.
    V38,
    /// The main branch, as its standalone program.
    Main,
}

impl Server {
    /// As typed.
    pub const ALL: [(&'static str, Server); 2] = [("v3.8", Server::V38), ("main", Server::Main)];

    fn label(self) -> &'static str {
        Server::ALL.iter().find(|(_, server)| *server == self).map_or("", |(label, _)| label)
    }
}

/// Which callbacks of a command are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// All that the server is known to send.
    All,
    /// The common one.
    Usual,
}

/// The operation ID in the header, which is the one in the body but for a server that mixes them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InHeader {
    Same,
    /// That of another request.
    Other,
    Empty,
}

/// A callback to be sent, as often as wanted.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// The command as it is sent: an alias stays one.
    pub(super) name: String,
    /// What is special about it; empty for the usual one.
    pub(super) special: String,
    body: String,
    in_header: InHeader,
    /// The operation ID that a body of one's own has.
    own_id: Option<String>,
    /// The value of `?key=`.
    pub(super) key: Option<String>,
}

/// One sending of a [`Sample`].
#[derive(Clone, Debug)]
pub(super) struct Sending {
    /// As the header has it.
    pub(super) operation_id: HeaderValue,
    /// As the body has it, or would.
    own_id: HeaderValue,
    pub(super) body: Bytes,
}

impl Sample {
    /// The callbacks of a command that a server sends, by today's name or an earlier one; the usual one first.
    pub(super) fn of(name: &str, server: Server, wanted: Samples) -> Vec<Sample> {
        let Some(command) = command::lookup(name) else { return Vec::new() };
        let all = BODIES.lines().filter_map(|line| Sample::line(line, command.name, name, server));
        match wanted {
            Samples::All => all.collect(),
            Samples::Usual => all.take(1).collect(),
        }
    }

    /// Those of every command that OpenIM waits for.
    pub(super) fn before(server: Server, wanted: Samples) -> Vec<Sample> {
        let before = command::all().iter().filter(|command| command.phase == Phase::Before);
        before.flat_map(|command| Sample::of(command.name, server, wanted)).collect()
    }

    /// The sample of a line, if it is of the command and this server sends it.
    fn line(line: &str, today: &str, name: &str, server: Server) -> Option<Sample> {
        let wanted = format!("\"callbackCommand\":\"{today}\"");
        let (about, body) = line.split_once(BODY).filter(|(_, body)| body.contains(&wanted))?;
        let about: Value = serde_json::from_str(&format!("{about}{BODY}0}}")).expect("the line must be JSON");
        let text = |key: &str| about[key].as_str().unwrap_or_default();
        if !text("server").is_empty() && text("server") != server.label() {
            return None;
        }
        let body = body.strip_suffix('}').expect("the body must be the last key");
        let body = body.replace(&wanted, &format!("\"callbackCommand\":\"{name}\"")) + "\n";
        let keyed = KEYED.contains(&name) && (server == Server::Main || name == KEYED_ALWAYS);
        Some(Sample {
            name: name.to_owned(),
            special: text("sample").to_owned(),
            key: keyed.then(|| key(&body)),
            body,
            in_header: match text("header") {
                "other" => InHeader::Other,
                "empty" => InHeader::Empty,
                _ => InHeader::Same,
            },
            own_id: None,
        })
    }

    /// A body of one's own, which names its command; the error says why it is no callback.
    pub(super) fn own(body: String) -> Result<Sample, String> {
        const NAMES: &[Field] =
            &[Field { name: "callbackCommand", ty: TEXT }, Field { name: "operationID", ty: TEXT }];
        let decoded =
            go_json::decode(body.as_bytes(), NAMES).map_err(|error| format!("is not JSON: {error}"))?;
        let text = |at| {
            let go_json::Value::Str(span) = decoded.root.field(at) else { return String::new() };
            go_json::unquote(span.of(body.as_bytes())).into_owned()
        };
        let (name, id) = (text(0), text(1));
        if name.is_empty() || format!("/{name}").parse::<PathAndQuery>().is_err() || name.contains(['/', '?'])
        {
            return Err("has no callbackCommand, which names the command to send".to_owned());
        }
        let own_id = Some(id).filter(|id| !id.trim().is_empty());
        let sample =
            Sample { name, special: String::new(), body, in_header: InHeader::Same, own_id, key: None };
        sample.parsed(&sample.sending(0)).map_err(|rejection| format!("is no callback: {rejection}"))?;
        Ok(sample)
    }

    /// A callback with an operation ID of its own.
    pub(super) fn sending(&self, number: u64) -> Sending {
        let id = self.own_id.clone().unwrap_or_else(|| operation_id(number));
        let body =
            if self.own_id.is_some() { self.body.clone() } else { self.body.replace(PLACE_OF_ID, &id) };
        let header = |id: &str| {
            HeaderValue::from_bytes(id.trim().as_bytes()).unwrap_or(HeaderValue::from_static("not-a-header"))
        };
        let own_id = header(&id);
        let operation_id = match self.in_header {
            InHeader::Same => own_id.clone(),
            InHeader::Other => header(&operation_id(number.wrapping_add(1))),
            InHeader::Empty => HeaderValue::from_static(""),
        };
        Sending { operation_id, own_id, body: body.into() }
    }

    /// The callback as the guard reads it: what a verdict is read against.
    pub(super) fn callback(&self, sending: &Sending) -> Option<Callback> {
        self.parsed(sending).ok()
    }

    fn parsed(&self, sending: &Sending) -> Result<Callback, String> {
        let head = Request::builder()
            .method(Method::POST)
            .uri(format!("/{}", self.name))
            .header(OPERATION_ID, &sending.own_id)
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
    let body: Value = serde_json::from_str(body).unwrap_or_default();
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
    use crate::callback::command::Notifications;
    use crate::callback::subject::Messages;
    use crate::go_json::{Token, Tokens};

    const SERVERS: [Server; 2] = [Server::V38, Server::Main];

    fn usual(name: &str, server: Server) -> Sample {
        Sample::of(name, server, Samples::Usual).pop().expect(name)
    }

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
        let samples: Vec<_> = SERVERS
            .iter()
            .flat_map(|server| command::all().iter().map(move |command| (command, *server)))
            .flat_map(|(command, server)| {
                let samples = Sample::of(command.name, server, Samples::All);
                assert_eq!(samples.first().map(|first| first.special.as_str()), Some(""), "{}", command.name);
                assert!(samples[1..].iter().all(|sample| !sample.special.is_empty()), "{}", command.name);
                samples.into_iter().map(move |sample| (command, sample))
            })
            .collect();
        for (command, sample) in samples {
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
            let (_, body) = line.split_once(BODY).expect("a body");
            assert!(!body.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{body}");
            // A nil slice is null; one list there is that OpenIM makes and leaves empty.
            let body = body.replace("\"membersID\":[]", "");
            assert!(!body.contains("[]") && !body.contains("\": ") && !body.contains("\\/"), "{body}");
        }
        let sending = usual("callbackBeforeJoinGroupCommand", Server::V38).sending(7);
        assert!(sending.body.ends_with(b"}\n"));
        assert!(sending.body.windows(8).any(|window| window == b"\"\\u0002\""));
    }

    #[test]
    fn an_alias_is_sent_under_its_own_name() {
        let sample = usual("callbackOnlinePushCommand", Server::V38);
        assert_eq!(sample.name, "callbackOnlinePushCommand");
        let body = sample.sending(1).body;
        assert!(body.starts_with(b"{\"callbackCommand\":\"callbackOnlinePushCommand\","), "{body:?}");
        assert_eq!(Sample::before(Server::V38, Samples::Usual).len(), 25);
        assert!(Sample::of("callbackOfNobody", Server::V38, Samples::All).is_empty());
    }

    #[test]
    fn main_sends_a_key_with_three_commands_and_a_release_with_none_that_it_has() {
        let group = "callbackAfterSendGroupMsgCommand";
        let key = usual(group, Server::Main).key.expect("a key");
        let decoded = STANDARD.decode(key.replace("%3D", "=").replace("%2B", "+").replace("%2F", "/"));
        assert_eq!(
            decoded.expect("base64"),
            br#"{"sendID":"8112345670","recvID":"","groupID":"2349876510"}"#
        );
        let keyed = |server| -> Vec<_> {
            let names = command::all().iter().map(|command| command.name);
            names.filter(|name| Sample::of(name, server, Samples::All)[0].key.is_some()).collect()
        };
        assert_eq!(keyed(Server::Main), KEYED);
        assert_eq!(keyed(Server::V38), [KEYED_ALWAYS]);
    }

    #[test]
    fn notifications_are_sent_by_the_servers_that_do_and_with_the_commands_that_the_table_says() {
        for server in SERVERS {
            for command in command::all() {
                let samples = Sample::of(command.name, server, Samples::All);
                let found = samples.iter().any(|sample| {
                    let sending = sample.sending(1);
                    let callback = sample.callback(&sending).expect("a callback");
                    callback.subject().messages() == Some(Messages::Notifications)
                });
                let expected = match command.notifications {
                    Notifications::Never => false,
                    Notifications::Releases => server == Server::V38,
                    Notifications::Always => true,
                };
                assert_eq!(found, expected, "{} {server:?}", command.name);
            }
        }
    }

    #[test]
    fn main_mixes_up_operation_ids_in_the_header_and_a_release_does_not() {
        let ids = |name, server| -> Vec<(String, String)> {
            let samples = Sample::of(name, server, Samples::All);
            let sendings = samples.iter().map(|sample| sample.sending(7));
            let text = |id: &HeaderValue| id.to_str().expect("ASCII").to_owned();
            sendings.map(|sending| (text(&sending.operation_id), text(&sending.own_id))).collect()
        };
        let main = ids("callbackAfterSendSingleMsgCommand", Server::Main);
        assert_eq!(main[0].0, main[0].1);
        assert!(main[1].0 != main[1].1 && !main[1].0.is_empty(), "{main:?}");
        assert_eq!(main[2].0, "");
        for command in command::all() {
            assert!(
                ids(command.name, Server::V38).iter().all(|(header, own)| header == own && !own.is_empty())
            );
        }
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
