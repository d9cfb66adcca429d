//! What is let in as a callback, and what is not: each row of the table of checks with its twin.

use std::fs;

use http::Request;
use serde_json::{Value as Json, json};

use super::*;
use crate::callback::command::Phase;
use crate::go_json::{Expected, SyntaxError};
use crate::policy::{OnRejection, OperationIds};
use operation_id::SentHeader;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openim/samples");
const SEND: &str = "callbackBeforeSendSingleMsgCommand";
/// The defaults, but for the strictest check of operation IDs.
const DEFAULTS: Validation = Validation {
    unknown_commands: UnknownCommands::Forward,
    operation_id: OperationIds::Require,
    field_types: FieldTypes::Report,
    on_rejection: OnRejection::Deny,
};

/// A request under construction: a good one, changed by a test where it wants to be bad.
struct Try {
    method: Method,
    target: String,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
    validation: Validation,
}

impl Try {
    fn new() -> Try {
        Try {
            method: Method::POST,
            target: format!("/callback/{SEND}"),
            headers: vec![("operationID", b"1646445464564".to_vec())],
            body: format!(r#"{{"callbackCommand":"{SEND}"}}"#).into_bytes(),
            validation: DEFAULTS,
        }
    }

    fn target(self, target: impl Into<String>) -> Try {
        Try { target: target.into(), ..self }
    }

    fn body(self, body: impl Into<Vec<u8>>) -> Try {
        Try { body: body.into(), ..self }
    }

    /// The command alone, in URL and body.
    fn command(self, name: &str) -> Try {
        let body = format!(r#"{{"callbackCommand":"{name}"}}"#);
        self.target(format!("/callback/{name}")).body(body)
    }

    /// A callback with these fields behind `callbackCommand`.
    fn fields(self, command: &str, fields: &str) -> Try {
        let body = format!(r#"{{"callbackCommand":"{command}",{fields}}}"#);
        self.target(format!("/callback/{command}")).body(body)
    }

    fn id(self, id: impl Into<Vec<u8>>) -> Try {
        Try { headers: vec![("operationID", id.into())], ..self }
    }

    fn no_id(self) -> Try {
        Try { headers: Vec::new(), ..self }
    }

    fn raw(&self) -> RawRequest {
        let mut request = Request::builder().method(self.method.clone()).uri(&self.target);
        for (name, value) in &self.headers {
            request = request.header(*name, &value[..]);
        }
        let head = request.body(()).expect("a valid request").into_parts().0;
        RawRequest { head, body: Bytes::from(self.body.clone()) }
    }

    fn parse(&self) -> Result<Callback, Rejection> {
        let mut calls = 0;
        let parsed = Callback::parse(self.raw(), &self.validation, || {
            calls += 1;
            "made-up".to_owned()
        });
        let generated = parsed.as_ref().is_ok_and(|callback| callback.operation_id().text == "made-up");
        assert_eq!(calls, usize::from(generated), "an ID is made where it is used only");
        parsed.map_err(|(raw, rejection)| {
            assert_eq!(raw.body, self.body, "a rejected request comes back whole");
            rejection
        })
    }

    fn accepted(&self) -> Callback {
        let callback = self.parse().unwrap_or_else(|rejection| panic!("{}: {rejection}", self.target));
        assert_eq!(callback.body(), &self.body, "the bytes are kept");
        assert_eq!(callback.uri(), &*self.target, "the target is kept");
        callback
    }

    fn rejected(&self) -> Rejection {
        self.parse().err().unwrap_or_else(|| panic!("{} was let in", self.target))
    }
}

fn status_and_label(rejection: &Rejection) -> (u16, &'static str) {
    (rejection.status().as_u16(), rejection.label().label())
}

#[test]
fn a_good_request_is_a_callback() {
    let callback = Try::new().accepted();
    assert_eq!(callback.target().name(), SEND);
    assert_eq!(callback.command().map(|command| (command.name, command.phase)), Some((SEND, Phase::Before)));
    let expected = OperationId { text: "1646445464564".to_owned(), header: SentHeader::AsReceived };
    assert_eq!(*callback.operation_id(), expected);
    assert_eq!(callback.wrong_type(), None);
    assert_eq!(callback.headers().len(), 1);
}

#[test]
fn only_a_post_is_a_callback() {
    for method in [Method::GET, Method::PUT, Method::HEAD, Method::OPTIONS, Method::DELETE] {
        let rejection = Try { method: method.clone(), ..Try::new() }.rejected();
        assert_eq!(status_and_label(&rejection), (405, "method"));
        assert_eq!(rejection, Rejection::method(&method));
    }
    let post = Method::from_bytes(b"post").expect("a method of its own");
    assert!(matches!(Try { method: post, ..Try::new() }.rejected(), Rejection::Method { .. }));
}

#[test]
fn a_url_without_a_command_is_rejected() {
    for target in [
        "/",
        "/callback/",
        "/callback?command=",
        "/callback?contenttype=json&command=",
        "/a%20b",
        // Names another command to an app that ignores case, or splits at a semicolon too.
        "/any?Command=a&command=a",
        "/a?COMMAND=b",
        "/any?command=a&x=1;command=b",
        "/a?x=1;command=b",
        "/a?x=1;c%6fmmand=b",
    ] {
        let rejection = Try::new().target(target).rejected();
        assert_eq!(rejection, Rejection::NoCommand, "{target}");
        assert_eq!(status_and_label(&rejection), (400, "command"));
    }
}

#[test]
fn url_and_body_must_name_the_same_command() {
    let other = "callbackBeforeAddFriendCommand";
    for (target, body, expected) in [
        (format!("/{SEND}"), other, Rejection::two_commands("the URL", SEND, "the body", other)),
        (format!("/?command={SEND}"), other, Rejection::two_commands("the URL", SEND, "the body", other)),
        (format!("/{SEND}"), "", Rejection::two_commands("the URL", SEND, "the body", "")),
        (
            format!("/{SEND}?command={other}"),
            other,
            Rejection::two_commands("the path", SEND, "command=", other),
        ),
        (
            format!("/?command={SEND}&command={other}"),
            SEND,
            Rejection::two_commands("one command=", SEND, "another", other),
        ),
    ] {
        let rejection =
            Try::new().target(&*target).body(json!({ "callbackCommand": body }).to_string()).rejected();
        assert_eq!(rejection, expected, "{target}");
        assert_eq!(status_and_label(&rejection), (400, "command"));
    }
    for target in
        [format!("/{SEND}?command={SEND}"), format!("/any/{SEND}"), format!("/any?a=b&command={SEND}&c")]
    {
        assert_eq!(Try::new().target(target).accepted().target().name(), SEND);
    }
    // Letter case counts, and an alias is not the name it stands for.
    let lower = SEND.to_lowercase();
    assert!(matches!(Try::new().target(format!("/{lower}")).rejected(), Rejection::TwoCommands { .. }));
    let today = "callbackBeforeOnlinePushCommand";
    let mixed = Try::new().command(today).target("/callbackOnlinePushCommand");
    assert!(matches!(mixed.rejected(), Rejection::TwoCommands { .. }));
}

#[test]
fn callback_command_must_be_one_string() {
    for (value, found) in [
        ("null", Token::Null),
        ("5", Token::Number),
        ("true", Token::True),
        ("[]", Token::BeginArray),
        (r#"{"a":[]}"#, Token::BeginObject),
    ] {
        let rejection = Try::new().body(format!(r#"{{"callbackCommand":{value}}}"#)).rejected();
        assert_eq!(rejection, Rejection::BodyCommandType { found });
        assert_eq!(status_and_label(&rejection), (400, "command"));
    }
    for body in [r#"{}"#, r#"{"callback_command":"x"}"#, r#"{"x":{"callbackCommand":"y"}}"#] {
        assert_eq!(Try::new().body(body).rejected(), Rejection::BodyCommandMissing, "{body}");
    }
}

#[test]
fn callback_command_may_stand_twice_with_one_value_only_in_whatever_letter_case() {
    for second in [
        "callbackCommand",
        "CallbackCommand",
        "CALLBACKCOMMAND",
        "callbac\u{212a}Command",
        "callback\\u0043ommand",
    ] {
        for value in ["callbackBeforeAddFriendCommand", "", "\\u0000"] {
            for (first, last) in [(SEND, value), (value, SEND)] {
                let body = format!(r#"{{"callbackCommand":"{first}","x":1,"{second}":"{last}"}}"#);
                assert_eq!(Try::new().body(&*body).rejected(), Rejection::TwoCommandsInBody, "{body}");
            }
        }
        let same = format!(r#"{{"callbackCommand":"{SEND}","{second}":"{SEND}"}}"#);
        assert_eq!(Try::new().body(same).accepted().target().name(), SEND);
        let null = format!(r#"{{"callbackCommand":"{SEND}","{second}":null}}"#);
        assert_eq!(Try::new().body(null).rejected(), Rejection::TwoCommandsInBody);
    }
    // Alone it is a command to Go and none to others.
    for alone in ["CallbackCommand", "CALLBACKCOMMAND", "callbac\u{212a}Command"] {
        let body = format!(r#"{{"{alone}":"{SEND}","x":1}}"#);
        assert_eq!(Try::new().body(&*body).rejected(), Rejection::BodyCommandMissing, "{body}");
    }
    Try::new().body(format!(r#"{{"callback\u0043ommand":"{SEND}"}}"#)).accepted();
    assert_eq!(status_and_label(&Rejection::TwoCommandsInBody), (400, "command"));
    // Another key, and a key inside a value, are nobody's command.
    let others =
        format!(r#"{{"callbackCommand":"{SEND}","callbackCommands":"x","y":{{"callbackCommand":"z"}}}}"#);
    Try::new().body(others).accepted();
    // An escape in the value is the same name.
    Try::new().body(format!(r#"{{"callbackCommand":"\u0063{}"}}"#, &SEND[1..])).accepted();
}

#[test]
fn the_body_must_be_one_json_object_in_utf_8() {
    let end = Rejection::NotJson(SyntaxError::End);
    let junk = |at, found, expected| Rejection::NotJson(SyntaxError::Byte { at, found, expected });
    for (body, expected) in [
        (&b""[..], end.clone()),
        (b" \n", end.clone()),
        (b"{", end),
        (b"OK", junk(0, b'O', Expected::Value)),
        (b"1x", junk(1, b'x', Expected::Nothing)),
        (b"{}{}", junk(2, b'{', Expected::Nothing)),
        (b"{\"a\":1,}", junk(7, b'}', Expected::Key)),
        (b"1", Rejection::NotAnObject { found: Token::Number }),
        (b"\"x\"", Rejection::NotAnObject { found: Token::Str }),
        (b"[{}]", Rejection::NotAnObject { found: Token::BeginArray }),
        (b"null", Rejection::NotAnObject { found: Token::Null }),
        (b"false", Rejection::NotAnObject { found: Token::False }),
        (b"{\"a\":\"\xff\"}", Rejection::NotUtf8 { at: 6 }),
        (b"\xff\xfe{\0}\0", Rejection::NotUtf8 { at: 0 }),
        ("\u{feff}{}".as_bytes(), junk(0, 0xef, Expected::Value)),
    ] {
        let rejection = Try::new().body(body).rejected();
        assert_eq!(rejection, expected, "{:?}", String::from_utf8_lossy(body));
        assert_eq!(status_and_label(&rejection), (400, "body"));
    }
    let deep =
        |depth| format!(r#"{{"callbackCommand":"{SEND}","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    Try::new().body(deep(9_999)).accepted();
    assert_eq!(Try::new().body(deep(10_000)).rejected(), Rejection::NotJson(SyntaxError::Depth));
    Try::new().body(format!("\r\n {{ \"callbackCommand\" : \"{SEND}\" }}\t\n")).accepted();
}

/// An ID as a test writes it: the text, and what becomes of the header.
fn id(text: &str, header: SentHeader) -> OperationId {
    OperationId { text: text.to_owned(), header }
}

#[test]
fn the_operation_id_is_required_unless_it_may_be_made_up() {
    use SentHeader::{AsReceived, Generated, Replaced};
    let with = |body: &str| Try::new().fields(SEND, &format!(r#""operationID":{body}"#));
    for (request, required, generated) in [
        (Try::new().no_id(), Err(Rejection::OperationIdMissing), ("made-up", Generated)),
        (with(r#""of the body""#).no_id(), Err(Rejection::OperationIdMissing), ("of the body", Replaced)),
        (with(r#"" \t ""#).no_id(), Err(Rejection::OperationIdMissing), ("made-up", Generated)),
        (with("null").no_id(), Err(Rejection::OperationIdMissing), ("made-up", Generated)),
        (with("5").no_id(), Err(Rejection::OperationIdMissing), ("made-up", Generated)),
        (Try::new().id(""), Err(Rejection::OperationIdEmpty), ("made-up", Generated)),
        (Try::new().id(" \t "), Err(Rejection::OperationIdEmpty), ("made-up", Generated)),
        (Try::new().id("an id"), Ok(("an id", AsReceived)), ("an id", AsReceived)),
        (Try::new().id(" an id\t"), Ok(("an id", AsReceived)), ("an id", AsReceived)),
    ] {
        let of = |callback: &Callback| callback.operation_id().clone();
        assert_eq!(
            request.parse().as_ref().map(of),
            required.as_ref().map(|(text, header)| id(text, *header))
        );
        if let Err(rejection) = &required {
            assert_eq!(status_and_label(rejection), (400, "operation-id"));
        }
        let validation = Validation { operation_id: OperationIds::Generate, ..DEFAULTS };
        assert_eq!(of(&Try { validation, ..request }.accepted()), id(generated.0, generated.1));
    }
}

#[test]
fn by_default_the_body_s_id_counts_then_the_header_s_and_no_callback_with_a_header_is_lost() {
    use SentHeader::{AsReceived, Generated, Replaced};
    assert_eq!(Validation::default().operation_id, OperationIds::Report);
    let with = |body: &str| Try::new().fields(SEND, &format!(r#""operationID":{body}"#));
    let long = |length| format!("\"{}\"", "x".repeat(length));
    let longest = "x".repeat(OPERATION_ID_LIMIT);
    for (request, text, header, beside) in [
        // Both the same, or nothing in the body: nothing changes.
        (with(r#""an id""#).id("an id"), "an id", AsReceived, None),
        (with(r#""an id""#).id(" an id\t"), "an id", AsReceived, None),
        (with(r#""""#).id("an id"), "an id", AsReceived, None),
        (with("null").id("an id"), "an id", AsReceived, None),
        (with("5").id("an id"), "an id", AsReceived, None),
        (Try::new().id("an id"), "an id", AsReceived, None),
        // The body's wins.
        (with(r#""of the body""#).id("another"), "of the body", Replaced, Some("another")),
        (with(r#""AN ID""#).id("an id"), "AN ID", Replaced, Some("an id")),
        (with(r#"" of the body ""#).id(""), "of the body", Replaced, Some("")),
        (with(r#""of the body""#).id(" \t"), "of the body", Replaced, Some("")),
        (with(r#""of the body""#).no_id(), "of the body", Replaced, None),
        (with(r#""\u4f60\u597d""#).id("another"), "\u{4f60}\u{597d}", Replaced, Some("another")),
        // Unless no header can hold it.
        (with(r#""an\r\nX: y""#).id("an id"), "an id", Replaced, None),
        (with(r#""an\r\nX: y""#).id(""), "made-up", Generated, None),
        (with(r#""an\r\nX: y""#).no_id(), "made-up", Generated, None),
        (with(&long(OPERATION_ID_LIMIT)).id("an id"), &longest, Replaced, Some("an id")),
        (with(&long(OPERATION_ID_LIMIT + 1)).id("an id"), "an id", Replaced, None),
        // Go sends an empty header if it has no ID.
        (Try::new().id(""), "made-up", Generated, None),
        (with(r#""""#).id(" "), "made-up", Generated, None),
        (with("null").id(""), "made-up", Generated, None),
    ] {
        let request = Try { validation: Validation::default(), ..request };
        let callback = request.accepted();
        assert_eq!(*callback.operation_id(), id(text, header));
        assert_eq!(callback.header_operation_id().as_deref(), beside);
    }
    // No header, and none in the body: OpenIM's documentation says that there is one.
    for request in [Try::new(), with(r#""""#), with(r#"" ""#), with("null"), with("5")] {
        let request = Try { validation: Validation::default(), ..request.no_id() };
        assert_eq!(request.rejected(), Rejection::OperationIdMissing);
    }
}

#[test]
fn of_two_different_headers_one_goes_on_by_default_and_neither_with_another_check() {
    let two = |first: &str, second: &str, fields: &str| {
        let headers = [first, second].map(|id| ("operationID", id.as_bytes().to_vec())).to_vec();
        Try { headers, ..Try::new().fields(SEND, fields) }
    };
    let in_body = r#""operationID":"of the body""#;
    for (request, text, beside) in [
        (two("a", "b", in_body), "of the body", Some("a")),
        (two("of the body", "b", in_body), "of the body", Some("b")),
        (two("a", "b", r#""seq":1"#), "a", Some("b")),
        (two("", "b", r#""seq":1"#), "b", Some("")),
    ] {
        let request = Try { validation: Validation::default(), ..request };
        let callback = request.accepted();
        assert_eq!(*callback.operation_id(), id(text, SentHeader::Replaced));
        assert_eq!(callback.header_operation_id().as_deref(), beside);
        for operation_id in [OperationIds::Require, OperationIds::Generate] {
            let validation = Validation { operation_id, ..DEFAULTS };
            let headers = request.headers.clone();
            let strict = Try { validation, headers, ..Try::new().body(request.body.clone()) };
            assert!(matches!(strict.rejected(), Rejection::OperationIdMismatch { .. }));
        }
    }
    let same = Try { validation: Validation::default(), ..two("a", "a", r#""seq":1"#) }.accepted();
    assert_eq!(*same.operation_id(), id("a", SentHeader::AsReceived));
}

#[test]
fn a_header_in_any_letter_case_is_the_operation_id() {
    for name in ["operationid", "operationID", "Operationid", "OPERATIONID"] {
        let request = Try { headers: vec![(name, b"an id".to_vec())], ..Try::new() };
        assert_eq!(request.accepted().operation_id().text, "an id", "{name}");
    }
    let dashed = Try { headers: vec![("operation-id", b"an id".to_vec())], ..Try::new() };
    assert_eq!(dashed.rejected(), Rejection::OperationIdMissing);
}

#[test]
fn header_and_body_must_have_the_same_operation_id_as_go_writes_it_in_both() {
    let joined = (0..500).map(|n| format!("{n:064}")).collect::<Vec<_>>().join("$");
    assert!(joined.len() > 32_000);
    let long = format!("\"{joined}\"");
    for (header, body) in [
        (&b"an id"[..], r#""an id""#),
        (b"an id", r#""  an id\t""#),
        (b" an id ", r#""an id""#),
        (b"an id", r#""""#),
        (b"an id", r#"" ""#),
        (b"an id", "null"),
        (b"an id", "5"),
        ("\u{4f60}\u{597d}".as_bytes(), r#""\u4f60\u597d""#),
        ("\u{4f60}\u{597d}".as_bytes(), "\"\u{4f60}\u{597d}\""),
        // Raw in the header, one U+FFFD for each byte in the body.
        (b"a\xff\xe4\xbdz", r#""a\ufffd\ufffd\ufffdz""#),
        (b"a\tb", r#""a\tb""#),
        (joined.as_bytes(), &long),
    ] {
        let callback = Try::new().fields(SEND, &format!(r#""operationID":{body}"#)).id(header).accepted();
        let expected = go_json::lossy(header).trim().to_owned();
        assert_eq!(*callback.operation_id(), id(&expected, SentHeader::AsReceived));
    }
    for (header, body) in [
        (&b"an id"[..], r#""another""#),
        (b"an id", r#""AN ID""#),
        (b"a\xff\xfez", r#""a\ufffdz""#),
        (b"an id", r#""an\nid""#),
        (b"an id", r#""an id\n""#),
    ] {
        let rejection = Try::new().fields(SEND, &format!(r#""operationID":{body}"#)).id(header).rejected();
        assert!(matches!(rejection, Rejection::OperationIdMismatch { .. }), "{body}: {rejection:?}");
        assert_eq!(status_and_label(&rejection), (400, "operation-id"));
        let validation = Validation { operation_id: OperationIds::Generate, ..DEFAULTS };
        let generating =
            Try { validation, ..Try::new().fields(SEND, &format!(r#""operationID":{body}"#)).id(header) };
        assert_eq!(generating.rejected(), rejection, "a made-up ID settles no contradiction");
    }
}

#[test]
fn what_a_rejection_shows_of_two_names_is_bounded() {
    let long = "x".repeat(10_000);
    let shown = format!("{}…", "x".repeat(SHOWN_OPERATION_ID));
    let ids = Try::new().fields(SEND, &format!(r#""operationID":"{long}y""#)).id(&*long).rejected();
    assert_eq!(ids, Rejection::OperationIdMismatch { header: shown.clone(), body: shown.clone() });
    let names = Try::new().body(json!({ "callbackCommand": long }).to_string()).rejected();
    let (first, second) = (SEND.to_owned(), shown);
    assert_eq!(names, Rejection::TwoCommands { one: "the URL", first, other: "the body", second });
}

/// Rows of command, fields, and the first field of a wrong type.
const FIELD_TYPES: &[(&str, &str, Option<&str>)] = &[
    (SEND, r#""contentType":101,"seq":7,"atUserList":["a","b"],"content":"c""#, None),
    (SEND, r#""contentType":"101""#, Some("contentType")),
    (SEND, r#""contentType":2147483647"#, None),
    (SEND, r#""contentType":2147483648"#, Some("contentType")),
    (SEND, r#""contentType":-2147483648"#, None),
    (SEND, r#""contentType":-2147483649"#, Some("contentType")),
    (SEND, r#""contentType":1.0"#, Some("contentType")),
    (SEND, r#""contentType":1e2"#, Some("contentType")),
    (SEND, r#""contentType":true"#, Some("contentType")),
    (SEND, r#""sendTime":1730891241668"#, None),
    (SEND, r#""sendTime":9223372036854775808"#, Some("sendTime")),
    // Of an unsigned one.
    (SEND, r#""seq":4294967295"#, None),
    (SEND, r#""seq":-1"#, Some("seq")),
    // A slice may be nil, a plain field may not, and no element of a list of texts may.
    (SEND, r#""atUserList":null"#, None),
    (SEND, r#""atUserList":[]"#, None),
    (SEND, r#""sendID":null"#, Some("sendID")),
    (SEND, r#""contentType":null"#, Some("contentType")),
    (SEND, r#""atUserList":["a",null]"#, Some("atUserList")),
    (SEND, r#""atUserList":["a",5]"#, Some("atUserList")),
    (SEND, r#""atUserList":["a",["b"]]"#, Some("atUserList")),
    (SEND, r#""atUserList":[{"a":[1]}]"#, Some("atUserList")),
    (SEND, r#""atUserList":{}"#, Some("atUserList")),
    (SEND, r#""atUserList":"a""#, Some("atUserList")),
    // The first of several; a good field behind a bad one does not heal it.
    (SEND, r#""sendID":5,"recvID":6"#, Some("sendID")),
    (SEND, r#""recvID":6,"recvID":"a""#, Some("recvID")),
    (SEND, r#""atUserList":[1,2],"sendID":5"#, Some("atUserList")),
    // What is not known may hold anything, another letter case too.
    (SEND, r#""tomorrow":{"sendID":5},"SENDID":5"#, None),
    ("callbackBeforeUpdateUserInfoExCommand", r#""nickName":null,"faceURL":"f""#, None),
    ("callbackBeforeUpdateUserInfoExCommand", r#""nickName":5"#, Some("nickName")),
    ("callbackBeforeUpdateUserInfoExCommand", r#""userID":null"#, Some("userID")),
    ("callbackBeforeOfflinePushCommand", r#""iOSBadgeCount":true"#, None),
    ("callbackBeforeOfflinePushCommand", r#""iOSBadgeCount":1"#, Some("iOSBadgeCount")),
    ("callbackBeforeUserRegisterCommand", r#""users":null"#, None),
    ("callbackBeforeUserRegisterCommand", r#""users":[{"userID":"a","createTime":0},{}]"#, None),
    ("callbackBeforeUserRegisterCommand", r#""users":[null,{"userID":"a"}]"#, None),
    ("callbackBeforeUserRegisterCommand", r#""users":[{"userID":5}]"#, Some("userID")),
    (
        "callbackBeforeUserRegisterCommand",
        r#""users":[{},{"userID":"a","createTime":"0"}]"#,
        Some("createTime"),
    ),
    ("callbackBeforeUserRegisterCommand", r#""users":[{"userID":{"x":1}}]"#, Some("userID")),
    ("callbackBeforeUserRegisterCommand", r#""users":["a"]"#, Some("users")),
    ("callbackBeforeUserRegisterCommand", r#""users":[[{"userID":5}]]"#, Some("users")),
    ("callbackBeforeUserRegisterCommand", r#""users":[{"x":{"userID":5},"y":[{"userID":5}]}]"#, None),
    ("callbackOfTomorrow", r#""contentType":"x","sendID":5"#, None),
];

#[test]
fn a_known_field_of_another_type_is_reported_or_rejected_as_the_policy_says() {
    for (command, fields, expected) in FIELD_TYPES {
        let request = Try::new().fields(command, fields);
        let wrong = request.accepted().wrong_type();
        assert_eq!(wrong.map(|wrong| wrong.field), *expected, "{command} {fields}");
        let strict =
            Try { validation: Validation { field_types: FieldTypes::Reject, ..DEFAULTS }, ..request };
        match (strict.parse(), wrong) {
            (Ok(_), None) => {}
            (Err(rejection), Some(wrong)) => {
                assert_eq!(rejection, Rejection::FieldType(wrong));
                assert_eq!(status_and_label(&rejection), (400, "field-type"));
            }
            (parsed, wrong) => panic!("{command} {fields}: {parsed:?} with {wrong:?}"),
        }
    }
    let wrong = Try::new().fields(SEND, r#""contentType":"101""#).accepted().wrong_type();
    assert_eq!(wrong, Some(WrongType { field: "contentType", expected: Kind::INT32, found: Token::Str }));
}

#[test]
fn an_unknown_command_is_forwarded_or_rejected_as_the_policy_says() {
    let name = "callbackOfTomorrow";
    let request = Try::new().command(name);
    let callback = request.accepted();
    assert_eq!((callback.target().name(), callback.command().is_none()), (name, true));
    assert_eq!(callback.subject().phase(), Phase::Unknown);
    let validation = Validation { unknown_commands: UnknownCommands::Reject, ..DEFAULTS };
    let rejection = Try { validation, ..request }.rejected();
    assert_eq!(rejection, Rejection::UnknownCommand { name: name.to_owned() });
    assert_eq!(status_and_label(&rejection), (404, "unknown-command"));
    Try { validation, ..Try::new() }.accepted();
}

#[test]
fn a_name_of_an_earlier_server_is_today_s_command_and_keeps_its_own_name() {
    let validation = Validation { unknown_commands: UnknownCommands::Reject, ..DEFAULTS };
    let mut aliases = 0;
    for (name, command) in command::names() {
        let callback = Try { validation, ..Try::new().command(name) }.accepted();
        assert_eq!((callback.target().name(), callback.subject().canonical_name()), (name, command.name));
        aliases += usize::from(name != command.name);
    }
    assert!(aliases > 0);
}

#[test]
fn the_packet_of_the_published_page_is_a_callback_and_keeps_its_bytes() {
    let body =
        fs::read(format!("{SAMPLES}/callbackBeforePushCommand/request.json")).expect("the page's packet");
    let target = "/?command=callbackBeforePushCommand&contenttype=json";
    let strict =
        Validation { unknown_commands: UnknownCommands::Reject, field_types: FieldTypes::Reject, ..DEFAULTS };
    let callback = Try { validation: strict, ..Try::new().target(target).body(body.clone()) }.accepted();
    assert_eq!(callback.target().name(), "callbackBeforePushCommand");
    assert_eq!(callback.command().map(|command| command.phase), Some(Phase::Before));
    assert_eq!(callback.operation_id().text, "1646445464564");
    assert_eq!(*callback.body(), body);
    let subject = callback.subject();
    assert_eq!((subject.content_type, subject.session_type), (Some(1), Some(2)));
    assert_eq!(subject.platform_ids, [Some(1), None]);
    assert_eq!(
        (subject.send_id.as_deref(), subject.group_id.as_deref()),
        (Some("user789"), Some("group123"))
    );
    assert_eq!(subject.recv_id, None);
}

/// The ID that a body has, or one for the header where it has none.
fn id_of(body: &Json) -> String {
    body["operationID"].as_str().filter(|id| !id.is_empty()).unwrap_or("an id").to_owned()
}

#[test]
fn every_recorded_request_passes_the_strictest_checks() {
    let strict =
        Validation { unknown_commands: UnknownCommands::Reject, field_types: FieldTypes::Reject, ..DEFAULTS };
    let mut count = 0;
    for entry in fs::read_dir(SAMPLES).expect("the samples") {
        let folder = entry.expect("an entry");
        let Ok(body) = fs::read(folder.path().join("request.json")) else { continue };
        let name = folder.file_name().into_string().expect("UTF-8");
        let id = id_of(&serde_json::from_slice(&body).expect("JSON"));
        let request = Try { validation: strict, ..Try::new().command(&name).body(body).id(id) };
        assert_eq!(request.accepted().command().map(|command| command.name), Some(&*name));
        count += 1;
    }
    assert_eq!(count, 14);
}

#[test]
fn the_zero_body_of_every_command_as_go_writes_it_has_no_wrong_type() {
    let catalogue: Vec<Json> = serde_json::from_str(include_str!("callbacks.json")).expect("the catalogue");
    let mut count = 0;
    for entry in &catalogue {
        let name = entry["command"].as_str().expect("a command");
        // The published page's command was never sent by a server, so there is nothing that Go writes for it.
        let Some(wire) = entry["requestZeroWire"].as_object() else {
            assert_eq!(name, "callbackBeforePushCommand");
            continue;
        };
        let mut wire = wire.clone();
        wire.insert("callbackCommand".to_owned(), json!(name));
        if wire.contains_key("operationID") {
            wire.insert("operationID".to_owned(), json!("an id"));
        }
        let body = Json::Object(wire).to_string();
        let callback = Try::new().command(name).body(body).id("an id").accepted();
        assert_eq!(callback.wrong_type(), None, "{name}");
        count += 1;
    }
    assert_eq!(count, 53);
}

#[test]
fn a_policy_sees_what_the_body_has_of_the_right_type() {
    let fields = r#""contentType":101,"sessionType":3,"senderPlatformID":2,"platformID":9,"sendID":"a\u0062","recvID":"","groupID":"g\ud800""#;
    let callback = Try::new().fields(SEND, fields).accepted();
    let subject = callback.subject();
    assert_eq!((subject.name, subject.command.map(|command| command.name)), (SEND, Some(SEND)));
    assert_eq!((subject.content_type, subject.session_type), (Some(101), Some(3)));
    assert_eq!(subject.platform_ids, [Some(9), Some(2)]);
    assert_eq!(subject.send_id.as_deref(), Some("ab"));
    assert_eq!(subject.recv_id.as_deref(), Some(""));
    assert_eq!(subject.group_id.as_deref(), Some("g\u{fffd}"));
    let wrong =
        r#""contentType":"101","sessionType":1.0,"platformID":null,"sendID":5,"groupID":["g"],"RECVID":"r""#;
    let callback = Try::new().fields("callbackOfTomorrow", wrong).accepted();
    let subject = callback.subject();
    assert_eq!(
        (subject.content_type, subject.session_type, subject.platform_ids),
        (None, None, [None, None])
    );
    assert_eq!((subject.send_id, subject.recv_id, subject.group_id), (None, None, None));
}

#[test]
fn of_a_field_that_stands_twice_the_last_value_counts() {
    let callback =
        Try::new().fields(SEND, r#""sendID":"first","sendID":"last","contentType":1,"contentType":"x""#);
    let callback = callback.accepted();
    assert_eq!(callback.subject().send_id.as_deref(), Some("last"));
    assert_eq!(callback.subject().content_type, None);
    assert_eq!(callback.value("sendID"), Some(&b"\"last\""[..]));
}

#[test]
fn a_value_is_its_own_bytes_where_the_type_is_right() {
    let callback = Try::new()
        .fields(SEND, r#""sendID":"a\u0062","contentType": 101 ,"recvID":null,"ex":5,"faceURL":"""#);
    let callback = callback.accepted();
    assert_eq!(callback.value("sendID"), Some(&br#""a\u0062""#[..]));
    assert_eq!(callback.value("contentType"), Some(&b"101"[..]));
    assert_eq!(callback.value("faceURL"), Some(&br#""""#[..]));
    for absent in ["recvID", "ex", "content", "nobody's field", ""] {
        assert_eq!(callback.value(absent), None, "{absent}");
    }
}

#[test]
fn of_a_request_that_is_only_observed_is_known_what_can_be() {
    let made_up = || "made-up".to_owned();
    let mut bad = Try::new().fields(SEND, r#""sendID":"a","operationID":"another""#).id("an id");
    bad.method = Method::PUT;
    let callback = Callback::unchecked(bad.raw(), made_up);
    assert_eq!((callback.target().name(), callback.body()), (SEND, &Bytes::from(bad.body.clone())));
    assert_eq!(*callback.operation_id(), id("an id", SentHeader::AsReceived));
    assert_eq!(callback.subject().send_id.as_deref(), Some("a"));
    for (request, name) in [
        (Try::new().body("no JSON").no_id(), SEND),
        (Try::new().body(b"\xff".to_vec()).no_id(), SEND),
        (Try::new().target("/").no_id(), ""),
        (Try::new().target("/?command=a&command=b").no_id(), ""),
        (Try::new().target("/callbackOfTomorrow").id(" "), "callbackOfTomorrow"),
    ] {
        let callback = Callback::unchecked(request.raw(), made_up);
        assert_eq!((callback.target().name(), &callback.body()[..]), (name, &request.body[..]));
        assert_eq!(*callback.operation_id(), id("made-up", SentHeader::Generated));
        assert_eq!(callback.subject().send_id, None);
        assert_eq!(callback.wrong_type(), None);
        assert_eq!(callback.uri(), &*request.target);
    }
}

#[test]
fn only_a_whole_request_of_a_caller_who_may_call_can_be_observed() {
    let wrong = WrongType { field: "x", expected: Kind::Str, found: Token::Null };
    for (rejection, may) in [
        (Rejection::NoCommand, true),
        (Rejection::TwoCommandsInBody, true),
        (Rejection::NotJson(SyntaxError::End), true),
        (Rejection::NotUtf8 { at: 0 }, true),
        (Rejection::OperationIdMissing, true),
        (Rejection::FieldType(wrong), true),
        (Rejection::UnknownCommand { name: "x".to_owned() }, true),
        (Rejection::BodyCut, false),
        (Rejection::TooLarge { limit: 1 }, false),
        (Rejection::HeaderTooLarge { found: 2, limit: 1 }, false),
        (Rejection::SlowBody { after_ms: 1 }, false),
        (Rejection::Unauthorized, false),
        (Rejection::method(&Method::GET), false),
    ] {
        assert_eq!(rejection.may_be_observed(), may, "{rejection}");
    }
}

#[test]
fn rejections_of_the_connection_have_their_own_status() {
    for (rejection, expected) in [
        (Rejection::TooLarge { limit: 8 }, (413, "too-large")),
        (Rejection::HeaderTooLarge { found: 9, limit: 8 }, (431, "too-large")),
        (Rejection::SlowBody { after_ms: 5 }, (408, "slow-body")),
        (Rejection::BodyCut, (400, "body")),
        (Rejection::Unauthorized, (401, "unauthorized")),
    ] {
        assert_eq!(status_and_label(&rejection), expected);
    }
}
