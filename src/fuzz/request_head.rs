//! A request's head and target: what goes to the app is one request with one command, and nothing in it that the caller
//! put there in disguise.
//!
//! Input: one byte of choices, then a request as HTTP/1.1 writes it. Without a body it has the one that fits its target.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version, header, request};

use super::{choices, shown};
use crate::callback::command;
use crate::callback::target::{Target, UpstreamForm, percent_decoded};
use crate::callback::{Callback, OPERATION_ID, RawRequest};
use crate::go_json;
use crate::policy::{OperationIds, Validation};
use crate::wire::{self, HeadSize};

/// Most headers of a request in here; hyper takes 100.
const HEADERS: usize = 100;

/// `--max-header-size`.
const LIMIT: usize = 16 << 10;

/// Most headers that the guard adds: Host, operationID and four that say something of the caller.
const ADDED: usize = 6;

const LEFT: Duration = Duration::from_millis(1_234);

/// What the first byte chooses.
struct Choice {
    form: UpstreamForm,
    peer: IpAddr,
    version: Version,
    wanted: OperationIds,
    observes: bool,
}

impl Choice {
    fn of(byte: u8) -> Choice {
        let bit = |at: u8| byte & (1 << at) != 0;
        Choice {
            form: [UpstreamForm::AsReceived, UpstreamForm::Path, UpstreamForm::Query]
                [usize::from(byte & 3) % 3],
            peer: if bit(2) { Ipv4Addr::new(10, 0, 200, 7).into() } else { Ipv6Addr::LOCALHOST.into() },
            version: match (bit(3), bit(4)) {
                (true, _) => Version::HTTP_2,
                (false, true) => Version::HTTP_10,
                (false, false) => Version::HTTP_11,
            },
            wanted: match (bit(7), bit(5)) {
                (true, _) => OperationIds::Report,
                (false, true) => OperationIds::Generate,
                (false, false) => OperationIds::Require,
            },
            observes: bit(6),
        }
    }
}

pub(super) fn run(input: &[u8]) {
    let Some(([byte], text)) = choices(input) else { return };
    let choice = Choice::of(byte);
    let Some(raw) = received(text, choice.version) else { return };
    let fields: usize = raw.head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let size = HeadSize::of(&raw.head);
    assert!(size.bytes + size.operation_id >= fields, "a head counts less than its fields");
    if size.fault(LIMIT).or_else(|| wire::head_fault(&raw.head)).is_some() {
        return;
    }
    let validation = Validation { operation_id: choice.wanted, ..Validation::default() };
    let made_up = || "made-up".to_owned();
    let (callback, is_checked) = match Callback::parse(raw, &validation, made_up) {
        Ok(callback) => (callback, true),
        Err((raw, _)) if choice.observes => (Callback::unchecked(raw, made_up), false),
        Err(_) => return,
    };
    let head = wire::upstream_head(&callback, choice.form, choice.peer, LEFT, Vec::new());
    let target = one_request(&head, &callback, &choice);
    if is_checked {
        one_id(&head, &callback);
        one_command(&target, &callback, choice.form);
    }
}

/// The request as hyper would hand it over.
fn received(text: &[u8], version: Version) -> Option<RawRequest> {
    let mut slots = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut slots);
    let httparse::Status::Complete(length) = parsed.parse(text).ok()? else { return None };
    let mut uri = Uri::try_from(parsed.path?).ok()?;
    let mut builder =
        Request::builder().method(Method::from_bytes(parsed.method?.as_bytes()).ok()?).version(version);
    for field in parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(field.value).ok()?;
        if version == Version::HTTP_2 && name == header::HOST {
            // Over HTTP/2 the authority is part of the URI.
            let mut parts = uri.into_parts();
            parts.authority = Some(value.as_bytes().try_into().ok()?);
            parts.scheme = Some(http::uri::Scheme::HTTPS);
            parts.path_and_query.get_or_insert(http::uri::PathAndQuery::from_static("/"));
            uri = Uri::from_parts(parts).ok()?;
            continue;
        }
        builder = builder.header(name, value);
    }
    let (head, ()) = builder.uri(uri).body(()).ok()?.into_parts();
    let body = match &text[length..] {
        [] => fitting_body(&head),
        body => Bytes::copy_from_slice(body),
    };
    Some(RawRequest { head, body })
}

fn fitting_body(head: &request::Parts) -> Bytes {
    let name = Target::parse(&head.uri).map(|target| target.name().to_owned()).unwrap_or_default();
    format!("{{\"callbackCommand\":\"{name}\"}}").into()
}

/// Reads what goes to the app as the app does; returns the target.
fn one_request(head: &[u8], callback: &Callback, choice: &Choice) -> String {
    let written = shown(head);
    let mut slots = [httparse::EMPTY_HEADER; HEADERS + ADDED];
    let mut parsed = httparse::Request::new(&mut slots);
    let length = match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        other => panic!("no request: {other:?}: {written}"),
    };
    assert_eq!(length, head.len(), "there is something behind the head: {written}");
    assert_eq!((parsed.method, parsed.version), (Some("POST"), Some(1)), "{written}");
    let target = parsed.path.expect("it is complete").to_owned();
    assert_eq!(target, callback.target().rewritten(callback.uri(), choice.form), "{written}");
    let fields = &*parsed.headers;
    // A line for the request, one for each header and an empty one; whoever splits lines at other places finds no more.
    let lines = fields.len() + 2;
    for (end, count) in [(b'\n', lines), (b'\r', lines), (0, 0)] {
        assert_eq!(head.iter().filter(|byte| **byte == end).count(), count, "{written}");
    }
    let all = |name: &str| {
        // CGI and WSGI read `_` as `-`.
        let is_it = |field: &&httparse::Header<'_>| field.name.replace('_', "-").eq_ignore_ascii_case(name);
        fields.iter().filter(is_it).map(|field| field.value).collect::<Vec<_>>()
    };
    let body = callback.body().len().to_string();
    assert_eq!(all("content-length"), [body.as_bytes()], "{written}");
    assert_eq!(all("callback-guard-timeout-ms"), [LEFT.as_millis().to_string().as_bytes()], "{written}");
    assert_eq!(all("x-forwarded-proto"), [b"https"], "{written}");
    assert_eq!(all("host").len(), 1, "{written}");
    let [forwarded] = all("x-forwarded-for")[..] else { panic!("not one X-Forwarded-For: {written}") };
    assert!(forwarded.ends_with(choice.peer.to_string().as_bytes()), "{written}");
    for name in [
        "connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
        "keep-alive",
        "proxy-connection",
        "http2-settings",
        "expect",
        "accept-encoding",
    ] {
        assert_eq!(all(name), [b""; 0], "{name}: {written}");
    }
    let ids = all(OPERATION_ID);
    if callback.operation_id().replaces_header() {
        assert_eq!(ids, [callback.operation_id().text.as_bytes()], "{written}");
    }
    let headers = callback.headers();
    assert_eq!(all("content-type").len(), headers.get_all(header::CONTENT_TYPE).iter().count(), "{written}");
    assert_eq!(
        all("authorization").len(),
        headers.get_all(header::AUTHORIZATION).iter().count(),
        "{written}"
    );
    let ours = [
        "host",
        "content-length",
        "callback-guard-timeout-ms",
        "x-forwarded-proto",
        "x-forwarded-for",
        OPERATION_ID,
    ];
    for field in fields.iter().filter(|field| !ours.iter().any(|name| field.name.eq_ignore_ascii_case(name)))
    {
        let came =
            headers.get_all(field.name).iter().any(|value| value.as_bytes().trim_ascii() == field.value);
        assert!(came, "{} was not sent: {written}", field.name);
    }
    target
}

/// Whichever header an app reads, it finds this ID; and the body has no other that a header could hold.
fn one_id(head: &[u8], callback: &Callback) {
    let mut slots = [httparse::EMPTY_HEADER; HEADERS + ADDED];
    let mut parsed = httparse::Request::new(&mut slots);
    parsed.parse(head).expect("it was parsed");
    let text = |value: &[u8]| go_json::lossy(value).trim_matches([' ', '\t']).to_owned();
    let id = &callback.operation_id().text;
    let ids: Vec<_> =
        parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(OPERATION_ID)).collect();
    assert!(!ids.is_empty() && ids.iter().all(|field| text(field.value) == *id), "{}", shown(head));
    if let Some(raw) = callback.value("operationID") {
        let in_body = go_json::unquote(raw);
        let in_body = in_body.trim_matches([' ', '\t']);
        let fits = HeaderValue::from_bytes(in_body.as_bytes()).is_ok() && !in_body.is_empty();
        assert!(!fits || in_body == id, "{}", shown(head));
    }
}

/// Whichever way an app finds the command in the target, it finds this one.
fn one_command(target: &str, callback: &Callback, form: UpstreamForm) {
    let name = callback.target().name();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parameters = 0;
    for part in query.split(['&', ';']) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if percent_decoded(key).eq_ignore_ascii_case(b"command") {
            assert_eq!(value, name, "{target}");
            parameters += 1;
        }
    }
    let segment = path.rsplit('/').next().unwrap_or_default();
    let is_known = |segment: &str| command::lookup(segment).is_some();
    if is_known(segment) {
        assert_eq!(segment, name, "{target}");
    }
    match form {
        UpstreamForm::AsReceived => {}
        UpstreamForm::Path => assert_eq!((segment, parameters), (name, 0), "{target}"),
        UpstreamForm::Query => assert_eq!((is_known(segment), parameters), (false, 1), "{target}"),
    }
}
