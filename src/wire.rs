//! Between hyper's messages and ours: a bounded read of a body, the head that goes to the app, the answer that goes out.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version, header, request};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use tokio::io::AsyncWrite;

use crate::callback::rejection::Rejection;
use crate::callback::target::UpstreamForm;
use crate::callback::{Callback, OPERATION_ID, OPERATION_ID_LIMIT};
use crate::cause::Overload;
use crate::held::{CALLBACK_BYTES, FREE_BODY_BYTES, Holding, SMALL_BODY_BYTES};
use crate::reply::Reply;
use crate::verdict::Verdict;

/// What is left for the app, in whole milliseconds; sent along with every callback.
pub const TIMEOUT_HEADER: &str = "Callback-Guard-Timeout-Ms";

/// For look-ups: a text would be parsed for each.
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How much of a rejected body is read and thrown away, so that a caller who is still writing gets the answer and not
/// a broken pipe, and for how long.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Why a body is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// More bytes than allowed.
    TooLarge,
    /// Not there in time.
    Slow,
    /// The caller stopped in the middle.
    Cut,
    /// The bytes held are at a bound.
    Full(Overload),
    /// The process ends before it is there.
    Ending,
}

/// A body that a caller sends. Whoever reads it says how much of it is kept.
pub trait CallerBody: Body<Data = Bytes> {
    /// Bytes that are kept of it, until its callback is answered. Of a small body nothing is said.
    fn keeps(&self, bytes: usize);
}

/// Reads a body whole: at most `limit` bytes. What does not fit is not read on here; see [`discard`].
/// `share` grows with it.
pub async fn read<B>(mut body: Pin<&mut B>, limit: usize, share: &mut Holding) -> Result<Bytes, ReadFault>
where
    B: CallerBody,
{
    let before = share.bytes();
    let mut count = |bytes: usize| share.grow_with_body(before, bytes);
    let announced = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if announced.is_some_and(|bytes| bytes > limit) {
        return Err(ReadFault::TooLarge);
    }
    let mut come = Come { first: Bytes::new(), rest: Vec::new(), most: announced.unwrap_or(limit) };
    while let Some(frame) = body.as_mut().frame().await {
        let Ok(frame) = frame.map(Frame::into_data) else { return Err(ReadFault::Cut) };
        let Ok(data) = frame else { continue }; // trailers
        if come.len() + data.len() > limit {
            return Err(ReadFault::TooLarge);
        }
        come.add(data, &mut count).map_err(ReadFault::Full)?;
        if come.room() > FREE_BODY_BYTES {
            body.keeps(come.room());
        }
    }
    Ok(come.whole())
}

/// What has come of a body.
struct Come {
    /// The first piece, as long as it is all.
    first: Bytes,
    /// All pieces, once there are two.
    rest: Vec<u8>,
    /// Most bytes that the body may have.
    most: usize,
}

impl Come {
    fn len(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    fn room(&self) -> usize {
        self.first.len() + self.rest.capacity()
    }

    /// Adds a piece. Room counts before it is made, and grows with what has come: an announcement costs its caller nothing.
    fn add(
        &mut self,
        data: Bytes,
        mut count: impl FnMut(usize) -> Result<(), Overload>,
    ) -> Result<(), Overload> {
        let there = self.len() + data.len();
        if data.is_empty() {
            return Ok(());
        }
        if there == data.len() {
            // Nearly every body comes in one piece: it is kept as it is.
            count(there)?;
            self.first = data;
            return Ok(());
        }
        if there > self.rest.capacity() {
            let room = room(there, self.most);
            count(room)?;
            self.rest.reserve_exact(room - self.rest.len());
        }
        self.rest.extend_from_slice(&self.first);
        self.rest.extend_from_slice(&data);
        self.first = Bytes::new();
        Ok(())
    }

    fn whole(self) -> Bytes {
        if self.rest.is_empty() { self.first } else { self.rest.into() }
    }
}

/// Room for a body of which so many bytes have come, in bytes: twice as much, so that few pieces move it, and no more than it has at
/// most.
pub fn room(there: usize, most: usize) -> usize {
    (2 * there).min(most).max(there)
}

/// Reads a body that nobody wants to its end, within bounds, and not beyond `until`: the answer waits for it.
pub async fn discard<B: Body<Data = Bytes>>(body: Pin<&mut B>, until: Instant) {
    let mut body = body;
    let all = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.as_mut().frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > DISCARD_BYTES {
                break;
            }
        }
    };
    let until = until.min(Instant::now() + DISCARD_TIME);
    let _ = tokio::time::timeout_at(until.into(), pin!(all)).await;
}

/// Most header fields of a callback: OpenIM's client sends 8, proxies in between add some. hyper has the same limit over HTTP/1.1.
pub const FIELDS_LIMIT: usize = 100;

/// What RFC 9113, section 6.5.2 counts for a field beside its name and its value.
const FIELD_BYTES: usize = 32;

/// What a head amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSize {
    /// Header fields.
    pub fields: usize,
    /// Bytes as RFC 9113 counts them, 32 for each field beside its name and its value, whatever the protocol: the measure of
    /// `--max-header-size`. Without the value of the operation ID.
    pub bytes: usize,
    /// Bytes of the operation ID.
    pub operation_id: usize,
}

impl HeadSize {
    /// Measures a head.
    pub fn of(head: &request::Parts) -> HeadSize {
        let target = head.uri.path_and_query().map_or(1, |target| target.as_str().len());
        let line = head.method.as_str().len() + target + FIELD_BYTES;
        let mut size = HeadSize { fields: head.headers.len(), bytes: line, operation_id: 0 };
        for (name, value) in &head.headers {
            size.bytes += FIELD_BYTES + name.as_str().len() + value.len();
            // A look-up by name would cost more than all of this.
            if size.operation_id == 0 && name.as_str() == OPERATION_ID {
                size.operation_id = value.len();
            }
        }
        size.bytes -= size.operation_id;
        size
    }

    /// What is wrong with it.
    pub fn fault(self, limit: usize) -> Option<Rejection> {
        if self.fields > FIELDS_LIMIT {
            return Some(Rejection::TooManyFields { found: self.fields, limit: FIELDS_LIMIT });
        }
        if self.operation_id > OPERATION_ID_LIMIT {
            let (found, limit) = (self.operation_id, OPERATION_ID_LIMIT);
            return Some(Rejection::OperationIdTooLarge { found, limit });
        }
        (self.bytes > limit).then_some(Rejection::HeaderTooLarge { found: self.bytes, limit })
    }

    /// Bytes that it takes in memory, at most: names, values and the table they are in, whose capacity is a power of two.
    pub fn memory(self) -> usize {
        2 * self.bytes + 2 * self.operation_id + TABLE_FIELD_BYTES * self.fields.next_power_of_two()
    }
}

/// A place in the table of a `HeaderMap`: its entry and two index places.
const TABLE_FIELD_BYTES: usize = 112;

/// Longest operation ID that a refused head keeps, for the log.
const STRIPPED_ID_BYTES: usize = 1 << 10;

/// Takes everything out of a head that will not be forwarded, but what tells whose it was.
pub fn strip(head: &mut request::Parts) {
    let id = head.headers.remove(OPERATION_ID).filter(|id| id.len() <= STRIPPED_ID_BYTES);
    head.headers = HeaderMap::new();
    if let Some(id) = id {
        head.headers.insert(OPERATION_ID, id);
    }
}

/// Whether a header belongs to one connection and goes no further (RFC 9110, section 7.6.1, and the older names).
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Whether a header of the app's goes no further: it belongs to the app's connection, says something of the app's own address or
/// time, tells a client how to reach this address, or is in our name.
pub fn stays_behind(name: &HeaderName) -> bool {
    is_hop_by_hop(name)
        || matches!(*name, header::CONTENT_LENGTH | header::LOCATION | header::DATE)
        || matches!(*name, header::ALT_SVC | header::STRICT_TRANSPORT_SECURITY)
        || name.as_str().starts_with("callback-guard-")
}

/// Most options that `Connection` may name, on either side: each header is compared with each of them. Go's client sends one
/// at most, browsers two. (A set of thousands would cost as much to build as it saves.)
pub const CONNECTION_OPTIONS_LIMIT: usize = 32;

/// What is wrong with a head, beside its size, so that it must not travel on.
pub fn head_fault(head: &request::Parts) -> Option<Rejection> {
    // RFC 9112, section 3.2; over HTTP/2 `:authority` takes its place (RFC 9113, section 8.3.1).
    let needs_host = head.version == Version::HTTP_11;
    match head.headers.get_all(header::HOST).iter().count() {
        0 if needs_host => return Some(Rejection::HostMissing),
        0 | 1 => {}
        _ => return Some(Rejection::TwoHosts),
    }
    let commas = |value: &HeaderValue| value.as_bytes().iter().filter(|byte| **byte == b',').count();
    let found: usize = head.headers.get_all(header::CONNECTION).iter().map(|value| commas(value) + 1).sum();
    let limit = CONNECTION_OPTIONS_LIMIT;
    (found > limit).then_some(Rejection::ConnectionOptions { found, limit })
}

/// Whether `Connection` names a header as belonging to the connection.
fn is_named(connection: &HeaderMap, name: &HeaderName) -> bool {
    connection.get_all(header::CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// Whether a header is written by us, whatever came.
fn is_ours(name: &HeaderName) -> bool {
    matches!(*name, header::HOST | header::ACCEPT_ENCODING | header::CONTENT_LENGTH | header::EXPECT)
        || matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-proto")
        || name
            .as_str()
            .strip_prefix("callback-guard-")
            .is_some_and(|rest| matches!(rest, "timeout-ms" | "delivery" | "attempt" | "age-ms"))
}

/// Whether a header makes a callback: no caller may take it away by naming it in `Connection`.
fn is_promised(name: &HeaderName) -> bool {
    matches!(*name, header::CONTENT_TYPE | header::AUTHORIZATION) || name == OPERATION_ID
}

/// Whether a header would be another one to an app that reads `_` as `-` (CGI and WSGI do): one that says something else to us, or
/// is there beside it.
fn is_in_disguise(name: &HeaderName, headers: &HeaderMap) -> bool {
    if !name.as_str().contains('_') {
        return false;
    }
    let Ok(real) = HeaderName::try_from(name.as_str().replace('_', "-")) else { return true };
    is_ours(&real) || is_hop_by_hop(&real) || is_promised(&real) || headers.contains_key(&real)
}

/// The head of the request to the app, as it goes over the wire. Header names are written as Go writes them.
/// `head` is an empty buffer to write it to.
pub fn upstream_head(
    callback: &Callback,
    form: UpstreamForm,
    peer: IpAddr,
    left: Duration,
    mut head: Vec<u8>,
) -> Vec<u8> {
    lasting_head(callback, form, peer, &mut head);
    time_and_length(&mut head, left, callback.body().len());
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// The part of a head that is the same in each attempt to deliver an event: all but what [`attempt_head`] adds.
pub fn event_head(callback: &Callback, form: UpstreamForm, peer: IpAddr) -> Box<[u8]> {
    let mut head = Vec::new();
    lasting_head(callback, form, peer, &mut head);
    head.into_boxed_slice()
}

/// What the app reads of an attempt to deliver an event.
#[derive(Clone, Copy, Debug)]
pub struct AttemptHeaders {
    /// Names the event: the same in each attempt.
    pub delivery: u128,
    /// From 1.
    pub attempt: u32,
    /// Since the event was accepted.
    pub age: Duration,
    /// How long the app has.
    pub timeout: Duration,
    /// Bytes of the body.
    pub length: usize,
}

/// The whole head of one attempt, in an empty buffer.
pub fn attempt_head(lasting: &[u8], headers: AttemptHeaders, mut head: Vec<u8>) -> Vec<u8> {
    let AttemptHeaders { delivery, attempt, age, timeout, length } = headers;
    head.reserve(lasting.len() + 256);
    head.extend_from_slice(lasting);
    time_and_length(&mut head, timeout, length);
    head.extend_from_slice(b"\r\nCallback-Guard-Delivery: ");
    head.extend_from_slice(format!("{delivery:032x}").as_bytes());
    head.extend_from_slice(b"\r\nCallback-Guard-Attempt: ");
    decimal(&mut head, attempt.into());
    head.extend_from_slice(b"\r\nCallback-Guard-Age-Ms: ");
    decimal(&mut head, age.as_millis().try_into().unwrap_or(u64::MAX));
    head.extend_from_slice(b"\r\n\r\n");
    head
}

fn time_and_length(head: &mut Vec<u8>, left: Duration, length: usize) {
    head.extend_from_slice(b"\r\nCallback-Guard-Timeout-Ms: ");
    decimal(head, left.as_millis().try_into().unwrap_or(u64::MAX));
    head.extend_from_slice(b"\r\nContent-Length: ");
    decimal(head, length as u64);
}

/// All lines of a head but the last, whose end is missing.
fn lasting_head(callback: &Callback, form: UpstreamForm, peer: IpAddr, head: &mut Vec<u8>) {
    let headers = callback.headers();
    let has_connection = headers.contains_key(header::CONNECTION);
    // Room for the body too: a small one goes out in the same write.
    head.reserve(1024 + callback.body().len().min(8 << 10));
    head.extend_from_slice(b"POST ");
    head.extend_from_slice(callback.target().rewritten(callback.uri(), form).as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    // One Host, also of HTTP/1.0 and HTTP/2: apps refuse none.
    let authority = || callback.uri().authority().map_or("callback-guard", |authority| authority.as_str());
    let host = headers.get(header::HOST).map_or_else(|| authority().as_bytes(), HeaderValue::as_bytes);
    head.extend_from_slice(b"Host: ");
    head.extend_from_slice(host);
    head.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        let dropped = is_ours(name) || is_hop_by_hop(name) || is_in_disguise(name, headers);
        if dropped || (has_connection && !is_promised(name) && is_named(headers, name)) {
            continue;
        }
        if callback.operation_id().replaces_header() && name == OPERATION_ID {
            continue;
        }
        field(head, name.as_str(), value.as_bytes());
    }
    if callback.operation_id().replaces_header() {
        field(head, OPERATION_ID, callback.operation_id().text.as_bytes());
    }
    head.extend_from_slice(b"X-Forwarded-For: ");
    for value in headers.get_all(&FORWARDED_FOR) {
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b", ");
    }
    match peer.to_canonical() {
        IpAddr::V4(peer) => {
            for (place, octet) in peer.octets().into_iter().enumerate() {
                if place > 0 {
                    head.push(b'.');
                }
                short_decimal(head, octet);
            }
        }
        IpAddr::V6(peer) => head.extend_from_slice(peer.to_string().as_bytes()),
    }
    head.extend_from_slice(b"\r\nX-Forwarded-Proto: https");
}

/// Writes a header, its name in the form `X-Forwarded-For`.
fn field(head: &mut Vec<u8>, key: &str, value: &[u8]) {
    name(head, key);
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn name(head: &mut Vec<u8>, name: &str) {
    let start = head.len();
    head.extend_from_slice(name.as_bytes());
    let mut first = true;
    for byte in &mut head[start..] {
        if first {
            byte.make_ascii_uppercase();
        }
        first = *byte == b'-';
    }
    head.extend_from_slice(b": ");
}

/// Writes a number of at most three digits.
fn short_decimal(head: &mut Vec<u8>, number: u8) {
    if number >= 100 {
        head.push(b'0' + number / 100);
    }
    if number >= 10 {
        head.push(b'0' + number / 10 % 10);
    }
    head.push(b'0' + number % 10);
}

/// Writes a number. What std would do for the four of a head costs as much as the rest of the head.
fn decimal(head: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    head.extend_from_slice(&digits[at..]);
}

/// The body of an answer, and the share of memory that its callback was counted with. The share is given back when the last byte is written.
#[derive(Debug)]
pub struct AnswerBody {
    /// The body.
    pub bytes: Bytes,
    /// The share.
    pub share: Option<Holding>,
}

/// How many header fields an answer of the app mostly has in the end: its type, our verdict and its origin, and a few more.
pub const ANSWER_FIELDS: usize = 6;

/// The answer as hyper writes it.
pub fn response(reply: Reply, mut share: Option<Holding>) -> Response<AnswerBody> {
    const VERDICT: HeaderName = HeaderName::from_static("callback-guard-verdict");
    const ORIGIN: HeaderName = HeaderName::from_static("callback-guard-origin");
    const CAUSE: HeaderName = HeaderName::from_static("callback-guard-cause");
    const FINDING: HeaderName = HeaderName::from_static("callback-guard-finding");
    let (status, verdict, origin, why, findings) =
        (reply.status(), reply.verdict(), reply.origin(), reply.why(), reply.findings());
    let is_counted = reply.is_counted();
    let (body, from_app) = reply.into_parts();
    if let Some(share) = share
        .as_mut()
        .filter(|_| body.len() > FREE_BODY_BYTES && !(is_counted && body.len() > SMALL_BODY_BYTES))
    {
        // At the bound the body is kept all the same: it is an answer that is owed.
        let _ = share.grow_owed(CALLBACK_BYTES + body.len());
    }
    let mut response = Response::new(AnswerBody { bytes: body, share });
    *response.status_mut() = status;
    *response.headers_mut() = from_app.unwrap_or_default();
    let headers = response.headers_mut();
    headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    headers.insert(
        VERDICT,
        HeaderValue::from_static(match verdict {
            Verdict::Allow => "allow",
            Verdict::Deny { .. } => "deny",
        }),
    );
    headers.insert(ORIGIN, HeaderValue::from_static(origin.label()));
    if !why.label().is_empty() {
        headers.insert(CAUSE, HeaderValue::from_static(why.label()));
    }
    if !findings.is_empty() {
        let names = HeaderValue::try_from(findings.to_string()).expect("names of findings are visible ASCII");
        headers.insert(FINDING, names);
    }
    if status == http::StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    if status == http::StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"callback-guard\""));
    }
    response
}

/// Writes what there is in one call. One slice is sent, which costs the kernel less than a vector of one.
pub fn poll_write_slices<W: AsyncWrite + Unpin>(
    stream: &mut W,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let mut filled = slices.iter().filter(|slice| !slice.is_empty());
    match (filled.next(), filled.next()) {
        (Some(only), None) => Pin::new(stream).poll_write(cx, only),
        _ => Pin::new(stream).poll_write_vectored(cx, slices),
    }
}

/// The answer to HEAD: the same head, the length included, and nothing behind it. Over HTTP/2 hyper leaves that to us.
pub fn without_body(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    let length = response.body().bytes.len();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response.body_mut().bytes = Bytes::new();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_std_writes_them() {
        for number in 0..=u8::MAX {
            let (mut short, mut long) = (Vec::new(), Vec::new());
            short_decimal(&mut short, number);
            decimal(&mut long, number.into());
            assert_eq!((&short, &long), (&number.to_string().into_bytes(), &short));
        }
        let mut long = Vec::new();
        decimal(&mut long, u64::MAX);
        assert_eq!(long, u64::MAX.to_string().into_bytes());
    }

    /// Adds pieces of so many bytes to a body of at most `most`: what had counted and the room there was after each.
    fn added(pieces: &[usize], most: usize) -> Vec<(usize, usize)> {
        let mut come = Come { first: Bytes::new(), rest: Vec::new(), most };
        let mut counted = 0;
        let mut after = Vec::new();
        for piece in pieces {
            let count = |bytes| {
                assert!(bytes >= counted, "a share never shrinks");
                counted = bytes;
                Ok(())
            };
            come.add(Bytes::from(vec![b'x'; *piece]), count).expect("room");
            after.push((counted, come.room()));
        }
        assert_eq!(come.whole().len(), pieces.iter().sum::<usize>());
        after
    }

    #[test]
    fn room_for_a_body_is_counted_and_grows_with_what_has_come_not_with_what_was_announced() {
        let announced = 127 << 10;
        assert_eq!(added(&[300, 300], announced), [(300, 300), (1200, 1200)]);
        assert_eq!(added(&[300, 0, 300, 300, 400], announced)[4], (2600, 2600));
        assert_eq!(added(&[700, 100], 1000)[1], (1000, 1000), "no more than was announced");
        let whole = vec![1 << 10; 127];
        for (counted, room) in added(&whole, announced).into_iter().chain(added(&whole, 2 << 20)) {
            assert_eq!(counted, room);
        }
        assert_eq!(added(&whole, announced)[126], (announced, announced));
    }

    #[test]
    fn without_room_a_body_does_not_grow() {
        let mut come = Come { first: Bytes::from_static(b"12345"), rest: Vec::new(), most: 100 };
        let full = Overload::Held(crate::cause::Exhausted::Process);
        assert_eq!(come.add(Bytes::from_static(b"67890"), |_| Err(full)), Err(full));
        assert_eq!((come.len(), come.rest.capacity()), (5, 0));
    }
}
