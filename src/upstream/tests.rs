//! How answers are framed, on tables; and what becomes of an exchange, on real loopback sockets.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream as StdStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};

use http::{HeaderMap, HeaderValue, header};
use prometheus_client::metrics::counter::Counter;

use super::connection::{INTERIM_LIMIT, LOOPBACK_CONGESTION, READ_CHUNK};
use super::framing::{CHUNK_LINE, Chunks, HEADERS_LIMIT, parse_head, unpack};
use super::outcome::Answered;
use super::reuse::USES_LIMIT;
use super::stream::Stream;
use super::*;
use crate::cause::Cause;
use crate::held::{Accounts, Held, Identity};
use crate::verdict::{Finding, Findings};

const ALLOW: &str = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;
const ANSWER_LIMIT: usize = 1 << 20;
const HEAD_LIMIT: usize = 64 << 10;

/// A head in a few words: its length, status, framing, and whether the connection may be kept.
fn head_words(text: impl AsRef<[u8]>) -> String {
    match parse_head(text.as_ref()) {
        Ok(None) => "more".to_owned(),
        Ok(Some((length, head))) => {
            let kept = if head.keep_alive { "kept" } else { "closed" };
            let rest = text.as_ref().len() - length;
            format!("{} {:?} {kept} +{rest}", head.status.as_u16(), head.framing)
        }
        Err(NoHead::NotHttp(why)) => format!("not HTTP: {why}"),
        Err(NoHead::Ended | NoHead::Reset(_) | NoHead::Cut) => unreachable!("bytes do not end"),
    }
}

fn heads(rows: &[(&str, &str)]) {
    for (fields, expected) in rows {
        let head = if fields.starts_with("HTTP") {
            format!("{fields}\r\n\r\n")
        } else {
            format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n")
        };
        assert_eq!(head_words(&head), *expected, "{fields:?}");
    }
}

#[test]
fn the_length_of_a_body_is_the_one_that_the_head_says() {
    const NO_NUMBER: &str = "not HTTP: content-length is no number, or there are two";
    heads(&[
        ("Content-Length: 5", "200 Length(5) kept +0"),
        ("content-LENGTH:\t007 ", "200 Length(7) kept +0"),
        ("Content-Length: 5\r\nContent-Length: 5", "200 Length(5) kept +0"),
        ("Content-Length: 5, 5", "200 Length(5) kept +0"),
        ("Server: x", "200 UntilEnd kept +0"),
        ("Content-Length: 5\r\nContent-Length: 6", NO_NUMBER),
        ("Content-Length: 5, 6", NO_NUMBER),
        ("Content-Length: 5,", NO_NUMBER),
        ("Content-Length:", NO_NUMBER),
        ("Content-Length: +5", NO_NUMBER),
        ("Content-Length: -5", NO_NUMBER),
        ("Content-Length: 0x5", NO_NUMBER),
        ("Content-Length: 5 5", NO_NUMBER),
        ("Content-Length: 99999999999999999999", NO_NUMBER),
        ("Content-Length: \u{ff15}", NO_NUMBER),
    ]);
}

#[test]
fn chunks_win_over_a_length_and_such_a_connection_is_not_kept() {
    const OTHER: &str = "not HTTP: a transfer-encoding other than chunked";
    heads(&[
        ("Transfer-Encoding: chunked", "200 Chunked kept +0"),
        ("Transfer-Encoding: CHUNKED", "200 Chunked kept +0"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", "200 Chunked closed +0"),
        ("Content-Length: x\r\nTransfer-Encoding: chunked", "200 Chunked closed +0"),
        ("Transfer-Encoding: gzip, chunked", OTHER),
        ("Transfer-Encoding: chunked, identity", OTHER),
        ("Transfer-Encoding: identity\r\nContent-Length: 5", OTHER),
        ("Transfer-Encoding: xchunked", OTHER),
        ("Transfer-Encoding:", OTHER),
    ]);
}

#[test]
fn a_status_without_a_body_has_none_whatever_its_head_says() {
    heads(&[
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5", "204 Length(0) kept +0"),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked", "304 Length(0) kept +0"),
        ("HTTP/1.1 100 Continue", "100 Length(0) kept +0"),
        ("HTTP/1.1 500\r\nContent-Length: 5", "500 Length(5) kept +0"),
        ("HTTP/1.1 999 What", "999 UntilEnd kept +0"),
    ]);
}

#[test]
fn a_connection_is_kept_as_version_and_header_say() {
    heads(&[
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close", "200 Length(0) closed +0"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close", "200 Length(0) closed +0"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x\r\nConnection: CLOSE",
            "200 Length(0) closed +0",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: closed", "200 Length(0) kept +0"),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0", "200 Length(0) closed +0"),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive", "200 Length(0) kept +0"),
    ]);
}

#[test]
fn a_head_with_very_many_connection_options_is_no_http() {
    let head = |count: usize| format!("Content-Length: 0\r\nConnection: {}", vec!["x"; count].join(","));
    heads(&[
        (&head(crate::wire::CONNECTION_OPTIONS_LIMIT), "200 Length(0) kept +0"),
        (
            &head(crate::wire::CONNECTION_OPTIONS_LIMIT + 1),
            "not HTTP: more options in Connection than are taken",
        ),
    ]);
}

#[test]
fn a_head_is_whole_or_wanting_or_no_http() {
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
    for end in 0..whole.len() {
        assert_eq!(head_words(&whole[..end]), "more", "cut at {end}");
    }
    assert_eq!(head_words(format!("{whole}{{}}x")), "200 Length(2) kept +3");
    assert_eq!(head_words("HTTP/1.1 200 OK\nContent-Length: 2\n\n"), "200 Length(2) kept +0");
    for text in [
        "HTTP/2 200\r\n\r\n",
        "<html>",
        "SSH-2.0-x\r\n",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "{}",
        "\0",
        "HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
    ] {
        assert!(head_words(text).starts_with("not HTTP: "), "{text:?}: {}", head_words(text));
    }
    let with = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(head_words(with(HEADERS_LIMIT)), "200 UntilEnd kept +0");
    assert_eq!(head_words(with(HEADERS_LIMIT + 1)), "not HTTP: too many headers");
}

/// Reads a chunked body given in pieces of one size: the body and what is left behind it, or why not.
fn chunked(text: &[u8], piece: usize) -> Result<(String, String), String> {
    let (mut buffer, mut body, mut chunks) = (BytesMut::new(), Vec::new(), Chunks::Size);
    let mut done = false;
    for part in text.chunks(piece) {
        buffer.extend_from_slice(part);
        done = done || chunks.take(&mut buffer, &mut body)?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done { Ok((text(&body), text(&buffer))) } else { Err("more".to_owned()) }
}

#[test]
fn a_chunked_body_is_read_however_it_comes() {
    for (text, body, rest) in [
        ("0\r\n\r\n", "", ""),
        ("2\r\n{}\r\n0\r\n\r\n", "{}", ""),
        ("1\r\n{\r\n1\r\n}\r\n0\r\n\r\nHTTP", "{}", "HTTP"),
        ("00000000002\r\n{}\r\n000\r\n\r\n", "{}", ""),
        ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", ""),
        ("2;name=value;other=\"1\"\r\n{}\r\n0;last\r\n\r\n", "{}", ""),
        ("2 \t\r\n{}\r\n0\r\n\r\n", "{}", ""),
        ("2;a b\t\r\n{}\r\n0\r\n\r\n", "{}", ""),
        ("2\r\n{}\r\n0\r\nTrailer: x\n\nrest", "{}", "rest"),
        ("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n", ""),
        ("2\r\n{}\r\n0\r\nTrailer: x\r\nAnother: 5\r\n\r\nrest", "{}", "rest"),
    ] {
        for piece in 1..=text.len() {
            let expected = Ok((body.to_owned(), rest.to_owned()));
            let whole = chunked(text.as_bytes(), piece);
            assert_eq!(whole, expected, "{text:?} in pieces of {piece}");
        }
        let end = text.len() - rest.len() - 1;
        for cut in 1..end {
            assert_eq!(chunked(&text.as_bytes()[..cut], 7), Err("more".to_owned()), "{text:?} cut at {cut}");
        }
    }
}

#[test]
fn a_broken_chunk_is_an_error_and_not_a_guess() {
    const SIZE: &str = "a chunk size that is none";
    const LONGER: &str = "a chunk longer than its size";
    for (text, expected) in [
        ("\r\n", SIZE),
        ("x\r\n", SIZE),
        ("+2\r\n{}\r\n", SIZE),
        ("-2\r\n", SIZE),
        ("0x2\r\n{}\r\n", SIZE),
        (";a\r\n", SIZE),
        ("2 2\r\n{}\r\n", SIZE),
        ("10000000000000000\r\n", SIZE),
        ("00000000000000002\r\n{}\r\n", SIZE),
        ("2\x0c\r\n{}\r\n", SIZE),
        ("\u{ff12}\r\n", SIZE),
        (" 2\r\n{}\r\n", SIZE),
        ("2 ;a\r\n{}\r\n", SIZE),
        ("2\n{}\r\n", SIZE),
        ("2\r\r\n{}\r\n", SIZE),
        ("2;a\rb\r\n{}\r\n", SIZE),
        ("2;a\n3\r\n{}\r\n", SIZE),
        ("2\r\n{}\n", LONGER),
        ("2\r\n{}\r\r\n", LONGER),
        ("1\r\n{}\r\n", LONGER),
        ("2\r\n{}0\r\n", LONGER),
        ("2\r\n{}x\r\n0\r\n\r\n", LONGER),
    ] {
        assert_eq!(chunked(text.as_bytes(), text.len()), Err(expected.to_owned()), "{text:?}");
    }
    let line = |length: usize| format!("2;{}", "x".repeat(length - 2));
    assert_eq!(chunked(line(CHUNK_LINE).as_bytes(), 1), Err("more".to_owned()));
    assert_eq!(chunked(line(CHUNK_LINE + 1).as_bytes(), 1), Err("an endless line between chunks".to_owned()));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// Unpacks a body of this coding, at most 1,000 bytes: the body, with the findings and whether the header is gone.
fn unpacked(coding: &str, body: &[u8]) -> Result<(Vec<u8>, String, bool), String> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_str(coding).expect("a value"));
    let mut holding = share_of(&Held::new(1 << 20)).nothing_for_answer();
    match unpack(&mut headers, Bytes::copy_from_slice(body), 1_000, &mut holding) {
        Ok((body, noticed)) => Ok((body.to_vec(), noticed.to_string(), headers.is_empty())),
        Err(failure) => {
            assert_eq!(failure.cause(), Cause::Invalid);
            Err(failure.to_string())
        }
    }
}

#[test]
fn gzip_is_unpacked_within_the_limit_and_no_other_coding_is() {
    let found = |body: &[u8]| Ok((body.to_vec(), "compressed".to_owned(), true));
    let (packed, allow) = (gzip(ALLOW.as_bytes()), ALLOW.as_bytes());
    for coding in ["gzip", " GZip ", "x-gzip"] {
        assert_eq!(unpacked(coding, &packed), found(allow));
    }
    let two = [gzip(b"one "), gzip(b"two")].concat();
    assert_eq!(unpacked("gzip", &two), found(b"one two"));
    assert_eq!(unpacked("gzip", &gzip(&[b' '; 1_000])), found(&[b' '; 1_000]));
    for coding in ["identity", ""] {
        assert_eq!(unpacked(coding, allow), Ok((allow.to_vec(), String::new(), false)));
    }
    let not_gzip = Err("upstream's answer: content-encoding gzip, and the body is not".to_owned());
    for end in 0..packed.len() {
        assert_eq!(unpacked("gzip", &packed[..end]), not_gzip, "cut at {end}");
    }
    assert_eq!(unpacked("gzip", allow), not_gzip);
    let mut flipped = packed.clone();
    let crc = flipped.len() - 8;
    flipped[crc] ^= 1;
    assert_eq!(unpacked("gzip", &flipped), not_gzip);
    let large = Err("upstream's answer: larger than 1000 bytes (--max-answer-size)".to_owned());
    assert_eq!(unpacked("gzip", &gzip(&[b' '; 1_001])), large);
    assert_eq!(unpacked("gzip", &gzip(&vec![0; 64 << 20])), large, "a bomb is not unpacked to its end");
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(allow).expect("memory");
    let deflated = encoder.finish().expect("memory");
    for coding in ["deflate", "br", "zstd", "gzip, gzip"] {
        let refused = format!("upstream's answer: content-encoding {coding:?}: only gzip is read");
        assert_eq!(unpacked(coding, &deflated), Err(refused));
    }
    let mut none = HeaderMap::new();
    let mut holding = share_of(&Held::new(0)).nothing_for_answer();
    let plain = unpack(&mut none, Bytes::from_static(b"x"), 1_000, &mut holding).expect("nothing to do");
    assert_eq!((&plain.0[..], plain.1), (&b"x"[..], Findings::default()));
}

/// Unpacks gzip, at most 10 MiB, under a bound on bytes held: how many bytes came out, or the failure; and how many were held then.
fn unpacked_under(bound: usize, packed: &[u8]) -> (Result<usize, String>, usize) {
    let held = Held::new(bound);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let mut holding = share_of(&held).nothing_for_answer();
    let result = unpack(&mut headers, Bytes::copy_from_slice(packed), 10 << 20, &mut holding);
    (result.map(|(body, _)| body.len()).map_err(|failure| failure.to_string()), held.bytes())
}

#[test]
fn what_is_unpacked_counts_as_held_while_it_grows() {
    let bytes = 3 << 20;
    let packed = gzip(&vec![b' '; bytes]);
    let (result, held) = unpacked_under(1 << 30, &packed);
    assert_eq!(result, Ok(bytes));
    assert!((packed.len() + bytes..=packed.len() + 2 * bytes).contains(&held), "{held}");
    // A bound in the middle ends it there: no more was held than the bound, and no less than half of it.
    for bound in [100, 100_000, bytes] {
        let (result, held) = unpacked_under(bound, &packed);
        assert!(matches!(&result, Err(why) if why.starts_with("the bytes held")), "{bound}: {result:?}");
        assert!(held <= bound && (held >= bound / 4 || bound == 100), "{held} of {bound}");
    }
    // Each size around those at which room is made comes out whole, with an empty member in front and behind.
    for bytes in [0, 1, 8_191, 8_192, 8_193, 16_384, 16_385, 10 << 20] {
        let members = [gzip(b""), gzip(&vec![b'x'; bytes]), gzip(b"")].concat();
        assert_eq!(unpacked_under(1 << 30, &members).0, Ok(bytes));
    }
}

#[test]
fn unpacking_ends_when_it_is_cancelled_whatever_comes_out() {
    let cancelled = crate::cancel::Cancel::default();
    cancelled.cancel();
    for packed in [gzip(&vec![0; 1 << 20]), gzip(b"").repeat(10_000)] {
        assert!(unpacked_under(1 << 30, &packed).0.is_ok());
        let ended = crate::cancel::watched(&cancelled, || unpacked_under(1 << 30, &packed));
        assert!(ended.0.is_err(), "{ended:?}");
    }
}

/// One connection, from the app's side.
struct Peer(BufReader<StdStream>);

impl Peer {
    /// The body of the next request; `None` where the connection ends, or ends in the middle of one.
    fn request(&mut self) -> Option<String> {
        let mut body = vec![0; self.head()?];
        std::io::Read::read_exact(&mut self.0, &mut body).ok()?;
        Some(String::from_utf8(body).expect("the tests send text"))
    }

    /// Reads the head of the next request: the length of its body.
    fn head(&mut self) -> Option<usize> {
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).ok().filter(|count| *count > 0)?;
            if line == "\r\n" {
                return Some(length);
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().expect("a number");
            }
        }
    }

    fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    fn allow(&mut self) -> bool {
        self.write(answer("", ALLOW))
    }

    /// Closes with a reset, whatever was read.
    fn reset(self) {
        let stream = self.0.into_inner();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
    }
}

fn answer(fields: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// An app in a thread of its own: `script` plays one connection after the other.
struct App {
    address: Address,
    connections: Arc<AtomicUsize>,
}

impl App {
    fn start(mut script: impl FnMut(usize, Peer) + Send + 'static) -> App {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = Address::Ip(listener.local_addr().expect("bound"));
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = count.fetch_add(1, Ordering::SeqCst);
                script(number, Peer(BufReader::new(stream.expect("a connection"))));
            }
        });
        App { address, connections }
    }

    /// An app that reads one request on each connection and writes these bytes, then closes.
    fn saying(bytes: impl AsRef<[u8]> + Send + 'static) -> App {
        App::start(move |_, mut peer| {
            if peer.request().is_some() {
                peer.write(&bytes);
            }
        })
    }

    fn upstream(&self) -> Upstream {
        upstream_at(self.address.clone())
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An app at this address, with nothing known of it. Only the number of requests ends the use of a connection: tests may be
/// slow.
fn upstream_at(address: Address) -> Upstream {
    let reuse = Arc::new(Reuse::new(true, Counter::default()));
    let upstream = Upstream::new(address, (ANSWER_LIMIT, HEAD_LIMIT), reuse, &Rc::default());
    upstream.pool.borrow_mut().use_limit = Duration::MAX;
    upstream
}

/// What a callback has of these bytes.
fn share_of(held: &Held) -> Holding {
    let caller = Identity::of([127, 0, 0, 1].into(), None);
    Accounts::new(held.clone(), 1).open(caller).nothing(None)
}

fn head_for(length: usize) -> Vec<u8> {
    format!("POST /callback HTTP/1.1\r\nHost: app\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

/// Asks in a pod that is ending: an app that is gone is not waited for, nor is it asked whether it is.
async fn ask(upstream: &Upstream, body: impl Into<Bytes>) -> Result<Answered, Failure> {
    ask_with(upstream, body, &|| true).await
}

/// Asks in a pod that is ending when this says so.
async fn ask_with(
    upstream: &Upstream,
    body: impl Into<Bytes>,
    ending: &dyn Fn() -> bool,
) -> Result<Answered, Failure> {
    ask_under(upstream, body, ending, &Held::new(1 << 30)).await
}

/// Asks under a bound on bytes held.
async fn ask_under(
    upstream: &Upstream,
    body: impl Into<Bytes>,
    ending: &dyn Fn() -> bool,
    held: &Held,
) -> Result<Answered, Failure> {
    received_under(upstream, body, ending, held).await.and_then(Received::unpack)
}

/// The same, of which nothing is unpacked yet.
async fn received_under(
    upstream: &Upstream,
    body: impl Into<Bytes>,
    ending: &dyn Fn() -> bool,
    held: &Held,
) -> Result<Received, Failure> {
    let (body, share) = (body.into(), share_of(held));
    let (until, refused) = (Instant::now() + Duration::from_secs(30), Cell::new(false));
    let patience = Patience { now: Instant::now(), until, ending, refused: &refused };
    let exchange = upstream.exchange(head_for(body.len()), &body, &share, patience);
    let exchange = tokio::time::timeout(Duration::from_secs(30), exchange);
    tokio::select! {
        biased;
        never = upstream.lane.turns().keep() => match never {},
        ended = exchange => ended.expect("an exchange that comes to an end"),
    }
}

/// What came of an exchange, in a few words. The system's own words are left out.
fn words(outcome: &Result<Answered, Failure>) -> String {
    match outcome {
        Ok(answered) => {
            let length = answered.body.len();
            let same = answered.body == ALLOW;
            format!(
                "{} {}",
                answered.status.as_u16(),
                if same { "allow".to_owned() } else { length.to_string() }
            )
        }
        Err(Failure::Unreachable { .. }) => "unreachable".to_owned(),
        Err(other) => other.to_string(),
    }
}

#[tokio::test]
async fn a_kept_connection_is_used_again_until_it_rests() {
    let app = App::start(|_, mut peer| {
        thread::spawn(move || while peer.request().is_some() && peer.allow() {});
    });
    let upstream = app.upstream();
    for number in 0..USES_LIMIT {
        assert_eq!(words(&ask(&upstream, format!("callback {number}")).await), "200 allow");
        assert_eq!((upstream.kept(), app.connections()), (1, 1));
    }
    // Its rest may be over by now, if the machine is slow.
    assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
    assert_eq!(upstream.kept(), app.connections());
}

/// An app whose first answer has another behind it, as soon as the sender sends; what it tells then is that it has.
fn answering_twice() -> (App, Sender<()>, Receiver<()>) {
    let ((send, wanted), (sent, is_sent)) = (mpsc::channel(), mpsc::channel());
    let mut once = Some((wanted, sent));
    let app = App::start(move |_, mut peer| {
        let extra = once.take();
        thread::spawn(move || {
            let mut extra = extra;
            while let Some(body) = peer.request() {
                peer.write(answer("", &body));
                if let Some((wanted, sent)) = extra.take() {
                    let _ = wanted.recv();
                    peer.write(answer("", "another"));
                    let _ = sent.send(());
                }
            }
        });
    });
    (app, send, is_sent)
}

#[tokio::test]
async fn a_second_answer_is_not_that_to_the_next_request_and_ends_all_reuse() {
    let (app, send, is_sent) = answering_twice();
    let found = Counter::default();
    let reuse = Arc::new(Reuse::new(true, found.clone()));
    // Another worker of the same process.
    let other =
        Upstream::new(app.address.clone(), (ANSWER_LIMIT, HEAD_LIMIT), Arc::clone(&reuse), &Rc::default());
    let upstream = Upstream::new(app.address.clone(), (ANSWER_LIMIT, HEAD_LIMIT), reuse, &Rc::default());
    let body = async |upstream: &Upstream, body: &'static str| {
        String::from_utf8(ask(upstream, body).await.expect("an answer").body.to_vec()).expect("text")
    };
    assert_eq!(body(&upstream, "first").await, "first");
    assert_eq!(body(&other, "elsewhere").await, "elsewhere");
    assert_eq!((found.get(), upstream.kept(), other.kept()), (0, 1, 1));
    send.send(()).expect("the app listens");
    is_sent.recv().expect("the app runs");
    for _ in 0..3 {
        assert_eq!(body(&upstream, "next").await, "next");
        assert_eq!(body(&other, "elsewhere").await, "elsewhere");
    }
    assert_eq!((found.get(), upstream.kept(), other.kept()), (1, 0, 0));
    assert_eq!(app.connections(), 8);
}

#[tokio::test]
async fn bytes_on_a_new_connection_are_no_answer_and_nothing_is_sent() {
    let listener = UnixListener::bind(greeting_path()).expect("a socket");
    let found = Counter::default();
    let reuse = Arc::new(Reuse::new(false, found.clone()));
    let upstream =
        Upstream::new(Address::Unix(greeting_path()), (ANSWER_LIMIT, HEAD_LIMIT), reuse, &Rc::default());
    let app = thread::spawn(move || {
        let mut got = Vec::new();
        for _ in 0..200 {
            let mut stream = listener.accept().expect("a connection").0;
            stream.write_all(answer("", ALLOW).as_bytes()).expect("a listener");
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut stream, &mut text);
            got.push(text);
        }
        got
    });
    // Whether the greeting or the request is first is up to the machine.
    let mut refused = 0;
    for _ in 0..200 {
        match words(&ask(&upstream, "callback").await).as_str() {
            "200 allow" => {}
            "upstream does not speak HTTP/1: an answer before any request" => refused += 1,
            other => panic!("{other}"),
        }
    }
    let got = app.join().expect("the app is content");
    assert_eq!(got.iter().filter(|text| text.is_empty()).count(), refused);
    assert_eq!(found.get(), refused as u64);
    std::fs::remove_file(greeting_path()).expect("the socket's file");
}

fn greeting_path() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("callback-guard-greeting-{}.sock", std::process::id()))
}

#[test]
fn the_last_request_of_a_connection_says_so() {
    let mut head = head_for(0);
    last_on_its_connection(&mut head);
    let text = String::from_utf8(head).expect("text");
    assert_eq!(
        text,
        "POST /callback HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
}

#[tokio::test]
async fn a_connection_whose_end_is_announced_or_cannot_be_told_is_not_kept() {
    for (bytes, kept) in [
        (answer("", ALLOW), 1),
        (format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n41\r\n{ALLOW}\r\n0\r\n\r\n"), 1),
        (answer("Connection: close\r\n", ALLOW), 0),
        (answer("", ALLOW).replacen("1.1", "1.0", 1), 0),
        (format!("HTTP/1.1 200 OK\r\n\r\n{ALLOW}"), 0),
        // Something behind the answer that nobody asked for.
        (answer("", ALLOW) + "x", 0),
        (
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 65\r\nTransfer-Encoding: chunked\r\n\r\n41\r\n{ALLOW}\r\n0\r\n\r\n"
            ),
            0,
        ),
    ] {
        let app = App::saying(bytes.clone());
        let upstream = app.upstream();
        assert_eq!(words(&ask(&upstream, "callback").await), "200 allow", "{bytes}");
        assert_eq!(upstream.kept(), kept, "{bytes}");
    }
}

#[tokio::test]
async fn an_app_that_closes_after_each_answer_is_asked_on_a_new_connection_each_time() {
    let app = App::saying(answer("Connection: close\r\n", ALLOW));
    let upstream = app.upstream();
    for number in 0..20 {
        assert_eq!(words(&ask(&upstream, format!("callback {number}")).await), "200 allow");
    }
    assert_eq!(app.connections(), 20);
}

/// An app that answers one request on each connection and closes it without a word; it tells when it has.
fn closing_silently() -> (App, Receiver<()>, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (closed, is_closed): (Sender<()>, _) = mpsc::channel();
    let log = Arc::clone(&seen);
    let app = App::start(move |_, mut peer| {
        if let Some(body) = peer.request() {
            log.lock().expect("no panic").push(body);
            peer.allow();
        }
        drop(peer);
        // The test may be over.
        let _ = closed.send(());
    });
    (app, is_closed, seen)
}

/// Waits for the app's FIN. The app's `close` has returned before it arrives where the kernel is busy, and a write that
/// overtakes it is answered with a reset, which proves nothing (see `delivery`).
fn wait_until_closed(connection: &Connection) {
    let begun = Instant::now();
    while connection.found() == Found::Nothing {
        assert!(begun.elapsed() < Duration::from_secs(30), "the app closed, and its FIN does not come");
        thread::yield_now();
    }
}

#[tokio::test]
async fn a_connection_closed_in_between_is_replaced_and_each_callback_arrives_once() {
    let (app, is_closed, seen) = closing_silently();
    let upstream = app.upstream();
    for number in 0..50 {
        let outcome = ask(&upstream, format!("callback {number}")).await;
        assert_eq!(words(&outcome), "200 allow", "callback {number}: {outcome:?}");
        assert_eq!(upstream.kept(), 1);
        is_closed.recv().expect("the app runs");
        wait_until_closed(upstream.pool.borrow().newest());
    }
    assert_eq!(app.connections(), 50);
    let expected: Vec<_> = (0..50).map(|number| format!("callback {number}")).collect();
    assert_eq!(*seen.lock().expect("no panic"), expected);
}

#[tokio::test]
async fn bytes_written_to_a_connection_that_was_closed_before_are_proved_unread() {
    let (app, is_closed, seen) = closing_silently();
    let upstream = app.upstream();
    for size in [10, ONE_WRITE, 4 << 20] {
        assert_eq!(words(&ask(&upstream, "first").await), "200 allow");
        let connection = upstream.pool.borrow_mut().pop();
        is_closed.recv().expect("the app runs");
        wait_until_closed(&connection);
        let body = vec![b'x'; size];
        let share = share_of(&Held::new(1 << 20));
        let request = Request { head: head_for(size), body: &body, share: &share };
        let ended = upstream.run(connection, &request, Instant::now()).await.err();
        assert!(matches!(ended, Some(Ended::Unread)), "{size} bytes");
    }
    assert_eq!(*seen.lock().expect("no panic"), ["first"; 3]);
}

#[tokio::test]
async fn an_app_that_closes_every_new_connection_is_unreachable_and_not_asked_without_end() {
    let app = App::start(|_, peer| drop(peer));
    let upstream = app.upstream();
    for number in 1..=20 {
        let outcome = words(&ask(&upstream, "callback").await);
        assert!(
            ["unreachable", "upstream closed or reset the connection before an answer"].contains(&&*outcome)
        );
        assert_eq!(app.connections(), number);
    }
}

/// A small source of chance: xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn spin(&mut self) {
        for _ in 0..self.below(4) * self.below(2_000) {
            std::hint::spin_loop();
        }
    }
}

#[tokio::test]
async fn no_callback_arrives_twice_however_the_app_closes() {
    const ROUNDS: usize = 600;
    let seen = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let log = Arc::clone(&seen);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let app = App::start(move |_, mut peer| {
        // Now and then none at all: closed as soon as it was accepted.
        for _ in 0..chance.below(5) {
            let Some(body) = peer.request() else { break };
            *log.lock().expect("no panic").entry(body).or_default() += 1;
            peer.allow();
        }
        chance.spin();
    });
    let upstream = app.upstream();
    let mut chance = Chance(0xdead_beef_cafe_f00d);
    let mut answered = 0;
    for number in 0..ROUNDS {
        let size = [0, 20_000, 400_000][chance.below(3) as usize];
        let body = format!("{number}{}", "x".repeat(size));
        chance.spin();
        let outcome = ask(&upstream, body.clone()).await;
        let times = seen.lock().expect("no panic").get(&body).copied().unwrap_or(0);
        match words(&outcome).as_str() {
            "200 allow" => {
                assert_eq!(times, 1, "callback {number} was answered");
                answered += 1;
            }
            "unreachable" | "upstream closed or reset the connection before an answer" => {
                assert!(times <= 1, "callback {number} arrived {times} times");
            }
            other => panic!("callback {number}: {other}"),
        }
    }
    assert!(answered > ROUNDS / 4, "only {answered} were answered");
    assert!(seen.lock().expect("no panic").values().all(|times| *times == 1));
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_read_is_the_answer() {
    const REFUSED: &str = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}";
    for waits in [true, false] {
        for _ in 0..10 {
            let (over, is_over) = mpsc::channel::<()>();
            let app = App::start(move |_, mut peer| {
                peer.head();
                peer.write(REFUSED);
                if waits {
                    // Until the test lets go of its end; or it closes at once, with a reset behind its answer.
                    let _ = is_over.recv();
                }
            });
            let upstream = app.upstream();
            let body = vec![b'x'; 16 << 20];
            assert_eq!(words(&ask(&upstream, body).await), "413 2", "waits: {waits}");
            assert_eq!((upstream.kept(), app.connections()), (0, 1), "half a request is left on it");
            drop(over);
        }
    }
}

#[tokio::test]
async fn a_reset_before_an_answer_is_unreachable_and_nothing_is_sent_again() {
    type Script = fn(Peer);
    let scripts: [(&str, usize, Script); 4] = [
        ("read whole", 100, |mut peer| {
            peer.request();
            peer.reset();
        }),
        ("read in part", 100, |mut peer| {
            std::io::Read::read_exact(peer.0.get_mut(), &mut [0; 3]).expect("three bytes");
        }),
        ("read in part, while more is written", 16 << 20, |mut peer| {
            std::io::Read::read_exact(peer.0.get_mut(), &mut [0; 3]).expect("three bytes");
        }),
        ("read whole, large", 4 << 20, |mut peer| {
            peer.request();
            peer.reset();
        }),
    ];
    for (what, size, script) in scripts {
        for kept in [false, true] {
            let app = App::start(move |number, mut peer| {
                assert_eq!(number, 0, "one connection");
                if kept {
                    peer.request();
                    peer.allow();
                }
                script(peer);
            });
            let upstream = app.upstream();
            if kept {
                assert_eq!(words(&ask(&upstream, "first").await), "200 allow");
            }
            assert_eq!(words(&ask(&upstream, vec![b'x'; size]).await), "unreachable", "{what}, kept: {kept}");
            assert_eq!((app.connections(), upstream.kept()), (1, 0), "{what}, kept: {kept}");
        }
    }
}

#[tokio::test]
async fn an_app_that_is_not_there_is_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound");
    for address in [
        Address::Ip(free),
        Address::Name("app.invalid".to_owned(), 80),
        Address::Unix("/nowhere/app.sock".into()),
    ] {
        let text = address.to_string();
        let outcome = ask(&upstream_at(address), "callback").await;
        let failure = outcome.expect_err("nobody answers");
        assert_eq!(failure.cause(), Cause::Unreachable);
        assert!(failure.to_string().starts_with(&format!("{text} cannot be reached: ")), "{failure}");
    }
}

#[tokio::test]
async fn an_end_before_in_or_behind_the_head_is_a_cut_and_says_where() {
    const BEFORE: &str = "upstream closed or reset the connection before an answer";
    const HEAD: &str = "upstream closed or reset the connection inside the head of its answer";
    const BODY: &str = "upstream closed or reset the connection inside the body of its answer";
    for (bytes, expected) in [
        ("", BEFORE),
        ("H", HEAD),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", HEAD),
        ("HTTP/1.1 100 Continue\r\n\r\n", HEAD),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", BODY),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", BODY),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", BODY),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", BODY),
        ("HTTP/1.1 200 OK\r\n\r\n{}", "200 2"),
        ("HTTP/1.1 200 OK\r\n\r\n", "200 0"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "200 0"),
    ] {
        let expected = if bytes.contains("204") { "204 0" } else { expected };
        let app = App::saying(bytes);
        let outcome = ask(&app.upstream(), "callback").await;
        assert_eq!(words(&outcome), expected, "{bytes:?}");
        if let Err(failure) = outcome {
            assert_eq!(failure.cause(), Cause::Broken);
        }
        assert_eq!(app.connections(), 1);
    }
}

#[tokio::test]
async fn a_reset_inside_an_answer_is_a_cut() {
    for (bytes, at) in [
        ("HTTP/1.1 200 OK\r\nConte", "head"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{", "body"),
        ("HTTP/1.1 200 OK\r\n\r\n{", "body"),
    ] {
        let app = App::start(move |_, mut peer| {
            peer.request();
            peer.write(bytes);
            peer.reset();
        });
        let outcome = words(&ask(&app.upstream(), "callback").await);
        assert_eq!(outcome, format!("upstream closed or reset the connection inside the {at} of its answer"));
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over_up_to_a_bound() {
    let real = answer("", ALLOW);
    let rows = [
        (format!("{}{real}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(INTERIM_LIMIT)), "200 allow".to_owned()),
        (
            format!("HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\n\r\n{real}"),
            "200 allow".to_owned(),
        ),
        (
            format!("{}{real}", "HTTP/1.1 102 Processing\r\n\r\n".repeat(INTERIM_LIMIT + 1)),
            format!("upstream does not speak HTTP/1: more than {INTERIM_LIMIT} interim answers"),
        ),
        (
            format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n{real}"),
            "upstream does not speak HTTP/1: 101, and nobody asked for another protocol".to_owned(),
        ),
    ];
    for (bytes, expected) in rows {
        assert_eq!(words(&ask(&App::saying(bytes).upstream(), "callback").await), expected);
    }
}

#[tokio::test]
async fn an_endless_head_ends_at_the_limit() {
    let app = App::start(|_, mut peer| {
        peer.request();
        peer.write("HTTP/1.1 200 OK\r\nX: ");
        while peer.write([b'x'; 1024]) {}
    });
    let expected = format!("upstream does not speak HTTP/1: a head of more than {HEAD_LIMIT} bytes");
    assert_eq!(words(&ask(&app.upstream(), "callback").await), expected);
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused_however_it_is_framed() {
    let body = |length: usize| " ".repeat(length);
    let chunked = |length: usize| {
        let chunk = format!("400\r\n{}\r\n", body(1024)).repeat(length / 1024);
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{:x}\r\n{}\r\n0\r\n\r\n",
            length % 1024 + 1,
            body(length % 1024 + 1)
        )
    };
    let until_end = |length: usize| format!("HTTP/1.1 200 OK\r\n\r\n{}", body(length));
    let large = format!("upstream's answer: larger than {ANSWER_LIMIT} bytes (--max-answer-size)");
    let fits = format!("200 {ANSWER_LIMIT}");
    for (bytes, expected) in [
        (answer("", &body(ANSWER_LIMIT)), &fits),
        (chunked(ANSWER_LIMIT - 1), &fits),
        (until_end(ANSWER_LIMIT), &fits),
        (answer("", &body(ANSWER_LIMIT + 1)), &large),
        (chunked(ANSWER_LIMIT), &large),
        (until_end(ANSWER_LIMIT + 1), &large),
        // By its announcement alone.
        (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", ANSWER_LIMIT + 1), &large),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_owned()
                + &body(ANSWER_LIMIT + 1),
            &large,
        ),
    ] {
        let start = bytes[..60.min(bytes.len())].to_owned();
        let outcome = words(&ask(&App::saying(bytes).upstream(), "callback").await);
        assert_eq!(outcome, *expected, "{start:?}");
    }
}

#[tokio::test]
async fn the_room_of_an_answer_is_counted_however_it_is_framed_and_its_connection_keeps_none_of_it() {
    let chunked = |body: &str| {
        let chunks = body.as_bytes().chunks(1000);
        let chunk = |chunk: &[u8]| format!("{:x}\r\n{}\r\n", chunk.len(), "x".repeat(chunk.len()));
        let chunks: String = chunks.map(chunk).collect();
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")
    };
    let until_end = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}");
    for length in [9 << 10, 20_000, 33 << 10, 60_000, ANSWER_LIMIT] {
        let body = "x".repeat(length);
        for (bytes, stays) in [(answer("", &body), true), (chunked(&body), true), (until_end(&body), false)] {
            let app = App::start(
                move |_, mut peer| {
                    while peer.request().is_some() && peer.write(&bytes) && stays {}
                },
            );
            let (upstream, held) = (app.upstream(), Held::new(1 << 30));
            let received = received_under(&upstream, "callback", &|| true, &held).await.expect("an answer");
            assert_eq!(received.body.len(), body.len());
            let counted = held.bytes();
            let Received { body: kept, holding, .. } = received;
            assert!(kept.is_unique(), "{length}: the connection has a part of it");
            let room = Vec::from(kept).capacity();
            assert!(room <= counted + (2 << 10) + READ_CHUNK, "{length}: room for {room}, {counted} counted");
            assert!(counted <= 2 * length + READ_CHUNK, "{length}: {counted}");
            drop(holding);
        }
    }
}

#[tokio::test]
async fn an_answer_is_held_within_the_process_s_bound_and_given_back() {
    const SHARE: &str =
        "the bytes held for this caller's callbacks of this command are at their share of --max-held";
    // The beginning of a body counts with its callback.
    let held = Held::new(100);
    for (body, expected) in [("x".repeat(2112), "200 2112"), ("x".repeat(2113), SHARE)] {
        let app = App::saying(answer("", &body));
        let upstream = upstream_at(app.address.clone());
        assert_eq!(words(&ask_under(&upstream, "callback", &|| true, &held).await), expected);
        assert_eq!(held.bytes(), 0);
    }
}

#[tokio::test]
async fn a_compressed_answer_is_unpacked_and_says_so() {
    let packed = gzip(ALLOW.as_bytes());
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nX: y\r\nContent-Length: {}\r\n\r\n",
        packed.len()
    );
    let app = App::saying([head.into_bytes(), packed].concat());
    let answered = ask(&app.upstream(), "callback").await.expect("an answer");
    assert_eq!(answered.body, ALLOW);
    assert_eq!(answered.noticed, [Finding::Compressed].into_iter().collect());
    assert!(!answered.headers.contains_key("content-encoding"));
    assert_eq!(answered.headers["x"], "y");
}

#[tokio::test]
async fn a_large_request_arrives_whole_and_an_answer_in_small_pieces_too() {
    let (whole, is_whole) = mpsc::channel();
    let app = App::start(move |_, mut peer| {
        whole.send(peer.request().expect("a request")).expect("the test listens");
        for byte in answer("", ALLOW).bytes() {
            peer.write([byte]);
        }
    });
    let body: String = (0..1_000_000).map(|number| format!("{number},")).collect();
    assert_eq!(words(&ask(&app.upstream(), body.clone()).await), "200 allow");
    assert!(is_whole.recv().expect("the app runs") == body);
}

#[tokio::test]
async fn a_unix_socket_is_as_good_as_an_address() {
    let path = std::env::temp_dir().join(format!("callback-guard-upstream-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a socket");
    let (closed, is_closed) = mpsc::channel();
    let app = thread::spawn(move || {
        for requests in [2, 1] {
            let mut stream = BufReader::new(listener.accept().expect("a connection").0);
            for _ in 0..requests {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(stream.read_line(&mut head).expect("a socket") > 0);
                }
                std::io::Read::read_exact(&mut stream, &mut [0; 8]).expect("the body");
                stream.get_mut().write_all(answer("", ALLOW).as_bytes()).expect("a listener");
            }
            drop(stream);
            closed.send(()).expect("the test listens");
        }
    });
    let upstream = upstream_at(Address::Unix(path.clone()));
    for last in [false, true, true] {
        assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
        assert_eq!(upstream.kept(), 1);
        if last {
            is_closed.recv().expect("the app runs");
        }
    }
    // Closed before a byte was written: nothing went out.
    let connection = upstream.pool.borrow_mut().pop();
    let share = share_of(&Held::new(1 << 20));
    let request = Request { head: head_for(8), body: b"callback", share: &share };
    assert!(matches!(upstream.run(connection, &request, Instant::now()).await, Err(Ended::Unread)));
    app.join().expect("the app is content");
    std::fs::remove_file(path).expect("the socket's file");
}

#[tokio::test]
async fn an_exchange_that_is_dropped_takes_its_connection_along() {
    let (arrived, has_arrived) = tokio::sync::oneshot::channel();
    let (ended, has_ended) = mpsc::channel();
    let mut arrived = Some(arrived);
    let app = App::start(move |_, mut peer| {
        let request = peer.request();
        arrived.take().expect("one connection").send(request).expect("the test listens");
        ended.send(peer.request()).expect("the test listens");
    });
    let upstream = app.upstream();
    tokio::select! {
        outcome = ask(&upstream, "callback") => panic!("the app never answers: {outcome:?}"),
        request = has_arrived => assert_eq!(request.expect("the app runs").as_deref(), Some("callback")),
    }
    assert_eq!(has_ended.recv().expect("the app runs"), None, "the app sees the end");
    assert_eq!(upstream.kept(), 0);
}

/// Answers one request of one connection, and closes connection and listener before it ends.
fn answering_once(listener: TcpListener) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut peer = Peer(BufReader::new(listener.accept().expect("a connection").0));
        drop(listener);
        assert!(peer.request().is_some() && peer.allow());
    })
}

#[tokio::test]
async fn an_app_that_was_there_a_moment_ago_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let upstream = upstream_at(Address::Ip(address));
    let app = answering_once(listener);
    assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
    app.join().expect("the app is content");
    wait_until_closed(upstream.pool.borrow().newest());
    let comes_back = async {
        while !matches!(upstream.presence.get(), Presence::GoneSince(_)) {
            tokio::task::yield_now().await;
        }
        answering_once(TcpListener::bind(address).expect("the port is free again"))
    };
    let (outcome, app) = tokio::join!(ask_with(&upstream, "callback", &|| false), comes_back);
    assert_eq!(words(&outcome), "200 allow");
    app.join().expect("the app is content");
    assert!(matches!(upstream.presence.get(), Presence::Here));
}

#[tokio::test]
async fn an_app_that_never_was_or_that_ends_with_its_pod_or_is_gone_for_long_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = Address::Ip(listener.local_addr().expect("bound"));
    drop(listener);
    let upstream = upstream_at(address);
    let looks = Cell::new(0);
    let ending = || {
        looks.set(looks.get() + 1);
        true
    };
    let body = Bytes::from_static(b"callback");
    let long_ago = Instant::now() - GONE_PATIENCE;
    for (presence, wait, looked) in [
        (Presence::Unknown, 30, 0),
        (Presence::Here, 30, 1),
        (Presence::Here, 0, 0),
        (Presence::GoneSince(long_ago), 30, 0),
    ] {
        upstream.presence.set(presence);
        looks.set(0);
        let (until, refused) = (Instant::now() + Duration::from_secs(wait), Cell::new(false));
        let patience = Patience { now: Instant::now(), until, ending: &ending, refused: &refused };
        let share = share_of(&Held::new(1 << 20));
        let outcome = upstream.exchange(head_for(body.len()), &body, &share, patience).await;
        let outcome = outcome.and_then(Received::unpack);
        assert_eq!((words(&outcome).as_str(), looks.get()), ("unreachable", looked), "{presence:?} {wait}");
    }
}

/// What became of a request on a connection that the app then loses, and what the app got on the next one.
struct Lost {
    outcome: String,
    /// How often the end of the pod was asked for.
    looks: usize,
    next: Option<String>,
}

/// How an app loses a connection.
#[derive(Clone, Copy, PartialEq)]
enum Loss {
    /// It closes that one and listens on.
    Listening,
    /// It stops listening too, and is back at the third look.
    Back,
    /// It stops listening for good; the end of the pod is told at the tenth look.
    Gone,
}

async fn lost(loss: Loss, reset: bool, patience: Duration) -> Lost {
    // Bound and silent: no other test gets its port while nobody listens.
    let reserved =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    reserved.set_reuse_address(true).expect("a socket");
    reserved.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback");
    let address = reserved.local_addr().expect("bound").as_socket().expect("TCP");
    let listener = TcpListener::bind(address).expect("its port is not listened on");
    let upstream = upstream_at(Address::Ip(address));
    let app = thread::spawn(move || {
        let mut peer = Peer(BufReader::new(listener.accept().expect("a connection").0));
        assert_eq!(peer.request().as_deref(), Some("callback"));
        let listener = (loss == Loss::Listening).then_some(listener);
        if reset {
            peer.reset()
        } else {
            drop(peer)
        }
        listener
    });
    let (looks, back) = (Cell::new(0), RefCell::new(None));
    let ending = || {
        looks.set(looks.get() + 1);
        if loss == Loss::Back && looks.get() == 3 {
            *back.borrow_mut() = Some(TcpListener::bind(address).expect("the port is free again"));
        }
        loss == Loss::Gone && looks.get() == 10
    };
    let (until, refused) = (Instant::now() + patience, Cell::new(false));
    let patience = Patience { now: Instant::now(), until, ending: &ending, refused: &refused };
    let body = Bytes::from_static(b"callback");
    let share = share_of(&Held::new(1 << 20));
    let outcome =
        upstream.exchange(head_for(body.len()), &body, &share, patience).await.and_then(Received::unpack);
    assert!(!refused.get(), "its callback was sent: a deadline finds no refusal");
    let next = app.join().expect("the app is content").or(back.take()).and_then(|listener| {
        listener.set_nonblocking(true).expect("a socket");
        let mut stream = listener.accept().ok()?.0;
        stream.set_nonblocking(false).expect("a socket");
        let mut got = String::new();
        std::io::Read::read_to_string(&mut stream, &mut got).expect("it was closed at once");
        Some(got)
    });
    Lost { outcome: words(&outcome), looks: looks.get(), next }
}

#[tokio::test]
async fn a_callback_cut_by_an_app_that_goes_away_waits_for_the_reason_and_is_not_sent_again() {
    const CUT: &str = "upstream closed or reset the connection before an answer";
    for (reset, outcome) in [(false, CUT), (true, "unreachable")] {
        for (loss, looks, next) in
            [(Loss::Listening, 1, Some("")), (Loss::Back, 3, Some("")), (Loss::Gone, 10, None)]
        {
            let found = lost(loss, reset, Duration::from_secs(30)).await;
            assert_eq!((found.outcome.as_str(), found.looks, found.next.as_deref()), (outcome, looks, next));
        }
    }
}

#[tokio::test]
async fn a_callback_cut_shortly_before_its_deadline_does_not_wait() {
    let found = lost(Loss::Gone, false, GONE_RETRY).await;
    assert_eq!((found.looks, found.next), (1, None));
}

#[tokio::test]
async fn a_connection_over_loopback_is_spared_the_system_s_congestion_control() {
    let app = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = Address::Ip(app.local_addr().expect("bound"));
    let connection = Connection::open(&Dialer::new(address.clone())).await.expect("it listens");
    let Stream::Tcp(tcp) = &connection.stream else { panic!("{address} is TCP") };
    let chosen = socket2::SockRef::from(tcp).tcp_congestion().expect("Linux tells");
    assert_eq!(chosen.split(|byte| *byte == 0).next(), Some(LOOPBACK_CONGESTION));
    // The app's own end is the app's.
    let (other, _) = app.accept().expect("connected");
    let others = socket2::SockRef::from(&other).tcp_congestion().expect("Linux tells");
    let system = std::fs::read("/proc/sys/net/ipv4/tcp_congestion_control").expect("Linux tells");
    assert!(others.starts_with(system.trim_ascii_end()), "{}", String::from_utf8_lossy(&others));
}

/// A port that is the test's own on 127.0.0.1 and on [::1], in this order: bound, and refusing until it listens. `None`
/// on a machine without IPv6.
fn loopback_port() -> Option<(u16, [socket2::Socket; 2])> {
    loop {
        let v4 = loopback_socket(([127, 0, 0, 1], 0).into()).expect("loopback");
        let port = v4.local_addr().expect("bound").as_socket().expect("TCP").port();
        match loopback_socket((std::net::Ipv6Addr::LOCALHOST, port).into()) {
            Ok(v6) => return Some((port, [v4, v6])),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => {
                let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
                assert!(!ci, "this machine has no IPv6: an app on [::1] is not tested ({error})");
                eprintln!("skipped: this machine has no IPv6 ({error})");
                return None;
            }
        }
    }
}

fn loopback_socket(address: std::net::SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listening(socket: socket2::Socket) -> TcpListener {
    socket.listen(8).expect("a bound socket");
    socket.into()
}

/// Answers one request on each of so many connections, closes them, and returns the listener.
fn answering(listener: TcpListener, connections: usize) -> thread::JoinHandle<TcpListener> {
    thread::spawn(move || {
        for _ in 0..connections {
            let mut peer = Peer(BufReader::new(listener.accept().expect("a connection").0));
            assert!(peer.request().is_some() && peer.write(answer("Connection: close\r\n", ALLOW)));
        }
        listener
    })
}

/// Stops listening, also if another test starts a program just now, which has a copy of the socket for a moment.
fn stop(listener: TcpListener) {
    let _ = socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both);
}

fn on_loopback(port: u16) -> Upstream {
    upstream_at(Address::Loopback(port))
}

#[tokio::test]
async fn an_app_on_either_loopback_address_is_found_and_tried_first_from_then_on() {
    for turned in [false, true] {
        let Some((port, mut sockets)) = loopback_port() else { return };
        if turned {
            sockets.reverse();
        }
        let [app, other] = sockets;
        let upstream = on_loopback(port);
        let app = answering(listening(app), 3);
        assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
        let other = listening(other);
        for _ in 0..2 {
            assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
        }
        app.join().expect("the app is content");
        other.set_nonblocking(true).expect("a socket");
        assert_eq!(other.accept().expect_err("not dialed").kind(), io::ErrorKind::WouldBlock);
    }
}

#[tokio::test]
async fn an_address_in_digits_is_dialed_alone() {
    for at in [0, 1] {
        let Some((port, mut sockets)) = loopback_port() else { return };
        if at == 1 {
            sockets.reverse();
        }
        let [named, other] = sockets;
        let address = Address::Ip(named.local_addr().expect("bound").as_socket().expect("TCP"));
        let other = listening(other);
        let upstream = upstream_at(address.clone());
        assert_eq!(words(&ask(&upstream, "callback").await), "unreachable", "{address}");
        // Its twin: the same port as localhost is reached.
        let app = answering(other, 1);
        assert_eq!(words(&ask(&on_loopback(port), "callback").await), "200 allow");
        app.join().expect("the app is content");
    }
}

#[tokio::test]
async fn an_app_that_moves_to_the_other_loopback_address_is_found_without_a_wait() {
    let Some((port, [v4, v6])) = loopback_port() else { return };
    let upstream = on_loopback(port);
    let not_waited_for = || panic!("the end of the pod is asked for by a wait alone");
    let (mut here, mut there) = (v4, v6);
    for _ in 0..4 {
        let address = here.local_addr().expect("bound").as_socket().expect("TCP");
        let app = answering(listening(here), 1);
        assert_eq!(words(&ask_with(&upstream, "callback", &not_waited_for).await), "200 allow");
        stop(app.join().expect("the app is content"));
        (here, there) = (there, loopback_socket(address).expect("the port is free again"));
    }
}

#[tokio::test]
async fn an_app_on_either_loopback_address_that_restarts_is_waited_for() {
    for at in [0, 1] {
        let Some((port, mut sockets)) = loopback_port() else { return };
        if at == 1 {
            sockets.reverse();
        }
        let [app, _refuses] = sockets;
        let address = app.local_addr().expect("bound").as_socket().expect("TCP");
        let upstream = on_loopback(port);
        let app = answering(listening(app), 1);
        assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
        stop(app.join().expect("the app is content"));
        let comes_back = async {
            while !matches!(upstream.presence.get(), Presence::GoneSince(_)) {
                tokio::task::yield_now().await;
            }
            answering(listening(loopback_socket(address).expect("the port is free again")), 1)
        };
        let (outcome, app) = tokio::join!(ask_with(&upstream, "callback", &|| false), comes_back);
        assert_eq!(words(&outcome), "200 allow", "{address}");
        app.join().expect("the app is content");
    }
}

/// Whether an app that no address accepts for is reported as refusing; and how often the end of its pod was asked for,
/// which is done at each wait for it.
async fn refused_by_both(upstream: &Upstream, presence: Presence) -> (bool, usize) {
    upstream.presence.set(presence);
    let looks = Cell::new(0);
    let ending = || {
        looks.set(looks.get() + 1);
        true
    };
    let refused = match ask_with(upstream, "callback", &ending).await {
        Err(Failure::Unreachable { error, .. }) => error.kind() == io::ErrorKind::ConnectionRefused,
        other => panic!("nothing listens: {other:?}"),
    };
    (refused, looks.get())
}

#[tokio::test]
async fn localhost_refuses_if_both_addresses_do() {
    let Some((port, _refuse)) = loopback_port() else { return };
    let upstream = on_loopback(port);
    assert_eq!(refused_by_both(&upstream, Presence::Unknown).await, (true, 0));
    assert_eq!(refused_by_both(&upstream, Presence::Here).await, (true, 1));
}

/// `ip link set lo up` in the network of this thread.
fn raise_loopback() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: it is made of numbers, for which zero is a value; the call reads it and keeps nothing.
    #[allow(unsafe_code, reason = "no safe interface among our dependencies")]
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS, &raw const request)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs this in a network of its own that has no IPv6; `None` if it may not make one.
fn without_ipv6<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let thread = thread::spawn(move || {
        // SAFETY: a system call without pointers. It changes the network of this thread alone, which ends with it.
        #[allow(unsafe_code, reason = "no safe interface among our dependencies")]
        let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        if made != 0 {
            let error = io::Error::last_os_error();
            let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
            assert!(!ci, "no network namespace: a machine without IPv6 is not tested ({error})");
            eprintln!("skipped: no network namespace ({error}); run as root");
            return None;
        }
        // A kernel without the file has no IPv6 anyway.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        raise_loopback().expect("a network of one's own");
        Some(work())
    });
    thread.join().expect("no panic")
}

#[test]
fn localhost_is_127_0_0_1_on_a_machine_without_ipv6() {
    let looked = without_ipv6(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let error = TcpListener::bind("[::1]:0").expect_err("there is no IPv6");
            let app = TcpListener::bind("127.0.0.1:0").expect("loopback");
            let port = app.local_addr().expect("bound").port();
            let upstream = on_loopback(port);
            let app = answering(app, 1);
            assert_eq!(words(&ask(&upstream, "callback").await), "200 allow");
            stop(app.join().expect("the app is content"));
            let unknown = refused_by_both(&upstream, Presence::Unknown).await;
            (error.kind(), unknown, refused_by_both(&upstream, Presence::Here).await)
        })
    });
    if let Some((no_ipv6, unknown, here)) = looked {
        assert_eq!(no_ipv6, io::ErrorKind::AddrNotAvailable);
        assert_eq!((unknown, here), ((true, 0), (true, 1)), "the app refuses, whatever IPv6 says");
    }
}
