//! Lifelike callbacks, and what OpenIM makes of an answer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use serde_json::{Map, Value};

/// A request as OpenIM makes it, until a test changes it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Bytes,
    pub(crate) ending: Ending,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its length is announced, and it has it.
    Announced,
    /// Its length is not announced: in chunks over HTTP/1.
    Unannounced,
    /// Its length is not announced, and it never ends.
    Stalls,
    /// Its length is not announced, and the caller gives up behind it.
    Fails,
}

impl Call {
    /// A callback of this command, with an operation ID of its own.
    pub(crate) fn new(command: &str) -> Call {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("operation-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut body = sample(command);
        body["callbackCommand"] = command.into();
        body["operationID"] = id.clone().into();
        Call::raw(command, body.to_string()).header("operationID", &id)
    }

    /// A request with this body and no operation ID.
    pub(crate) fn raw(command: &str, body: impl Into<Bytes>) -> Call {
        Call {
            method: "POST".to_owned(),
            target: format!("/callbackExample/{command}"),
            headers: vec![("Content-Type".to_owned(), b"application/json".to_vec())],
            body: body.into(),
            ending: Ending::Announced,
        }
    }

    pub(crate) fn ending(mut self, ending: Ending) -> Call {
        self.ending = ending;
        self
    }

    /// Gives a field of the body a value.
    pub(crate) fn with(mut self, field: &str, value: impl Into<Value>) -> Call {
        let mut body: Value = serde_json::from_slice(&self.body).expect("JSON until now");
        body[field] = value.into();
        self.body = body.to_string().into();
        self
    }

    /// Takes a field of the body away.
    pub(crate) fn without(mut self, field: &str) -> Call {
        let mut body: Map<String, Value> = serde_json::from_slice(&self.body).expect("an object until now");
        body.remove(field);
        self.body = Value::from(body).to_string().into();
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Call {
        self.body = body.into();
        self
    }

    pub(crate) fn target(mut self, target: &str) -> Call {
        target.clone_into(&mut self.target);
        self
    }

    pub(crate) fn method(mut self, method: &str) -> Call {
        method.clone_into(&mut self.method);
        self
    }

    /// Adds a header, or gives one that is there another value.
    pub(crate) fn header(self, name: &str, value: impl AsRef<[u8]>) -> Call {
        self.without_header(name).more_header(name, value)
    }

    /// Adds a header beside those that are there.
    pub(crate) fn more_header(mut self, name: &str, value: impl AsRef<[u8]>) -> Call {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    pub(crate) fn without_header(mut self, name: &str) -> Call {
        self.headers.retain(|(found, _)| !found.eq_ignore_ascii_case(name));
        self
    }

    /// The operation ID of its header.
    pub(crate) fn operation_id(&self) -> String {
        let header = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("operationID"));
        header.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
    }

    /// The request as HTTP/1.1 writes it, its length announced.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            format!("{} {} HTTP/1.1\r\nHost: localhost\r\n", self.method, self.target).into_bytes();
        for (name, value) in &self.headers {
            bytes.extend_from_slice(&[name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", self.body.len()).as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// The body of a callback: a recorded one where there is one, else the one with every field empty.
pub(crate) fn sample(command: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openim/samples");
    if let Ok(text) = std::fs::read(format!("{folder}/{command}/request.json")) {
        return serde_json::from_slice(&text).expect("a sample is JSON");
    }
    let row = catalogue().iter().find(|row| row["command"] == command);
    let mut body = row.map_or_else(|| Value::Object(Map::new()), |row| row["requestZeroWire"].clone());
    body["callbackCommand"] = command.into();
    body
}

/// The table of commands.
pub(crate) fn catalogue() -> &'static [Value] {
    static CATALOGUE: OnceLock<Vec<Value>> = OnceLock::new();
    CATALOGUE.get_or_init(|| {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/callback/callbacks.json"));
        serde_json::from_str(text).expect("the catalogue is JSON")
    })
}

/// What OpenIM concludes from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenIm {
    Allowed,
    Denied(i64),
    /// 90007 DataError: the operation fails.
    Error,
}

/// `CommonCallbackResp.Parse` of OpenIM's `pkg/callbackstruct/common.go`, behind a decoder that takes the common
/// fields as Go's does: keys in any letter case, the last one counts, `null` leaves a field as it was.
pub(crate) fn openim_verdict(body: &[u8]) -> OpenIm {
    let Ok(pairs) = serde_json::from_slice::<Option<Pairs>>(body) else { return OpenIm::Error };
    let (mut action, mut error, mut next) = (0, 0, 0);
    for (key, value) in pairs.map(|pairs| pairs.0).unwrap_or_default() {
        let code = match key.to_lowercase().as_str() {
            "actioncode" => &mut action,
            "errcode" => &mut error,
            "nextcode" => &mut next,
            "errmsg" | "errdlt" if !value.is_string() && !value.is_null() => return OpenIm::Error,
            _ => continue,
        };
        match (&value, value.as_i64().filter(|code| i32::try_from(*code).is_ok())) {
            (Value::Null, _) => {}
            (_, Some(found)) => *code = found,
            (_, None) => return OpenIm::Error,
        }
    }
    if action == 0 && next == 1 { OpenIm::Denied(error) } else { OpenIm::Allowed }
}

/// An object with its keys in order, twice the same one included.
struct Pairs(Vec<(String, Value)>);

impl<'de> serde::Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Pairs, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Visitor)
    }
}
