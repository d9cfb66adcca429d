//! What is put to the guard, and what must come of it.

#![allow(dead_code, reason = "each bench uses its own part of this")]

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::app;
use crate::support::{self, COMMAND, OPERATION_ID, SAMPLE};

pub(crate) type Failure = Box<dyn Error>;

/// The rules by the sender that each matches, and what each says when it has to answer itself.
pub(crate) const POLICY: &str = r#"
version: 1
defaults: {callerTimeout: 15s, timeout: 2s, fallback: Allow}
rules:
  - {name: 50 ms, match: {sendIDs: [wait-50]}, timeout: 50ms, fallback: Deny, deny: {errCode: 5150, errMsg: late}}
  - {name: 100 ms, match: {sendIDs: [wait-100]}, timeout: 100ms}
  - {name: 200 ms, match: {sendIDs: [wait-200]}, timeout: 200ms, fallback: Deny, deny: {errCode: 5152, errMsg: late}}
  - {name: 300 ms, match: {sendIDs: [wait-300]}, timeout: 300ms}
  - {name: deny, match: {sendIDs: [deny]}, timeout: 1s, fallback: Deny, deny: {errCode: 5200, errMsg: failed}}
  - {name: one at a time, match: {sendIDs: [one]}, timeout: 14s, fallback: Deny, deny: {errCode: 5201}, maxInFlight: 1}
  - name: breaker
    match: {sendIDs: [breaker]}
    timeout: 1s
    fallback: Deny
    deny: {errCode: 5202}
    breaker: {failureRate: 0.5, minimumCallbacks: 20, window: 60s, openFor: 600s}
"#;

/// What is sent, what the app does, and what must come of it.
pub(crate) struct Case {
    /// The line of the table.
    pub(crate) name: &'static str,
    pub(crate) sender: &'static str,
    pub(crate) script: &'static str,
    pub(crate) timeout: Duration,
    /// `Callback-Guard-Cause`; empty where the app's answer travels on.
    pub(crate) cause: &'static str,
    /// The `errCode` of the refusal, or that it is allowed.
    pub(crate) refused: Option<u16>,
    pub(crate) count: usize,
}

pub(crate) const fn case(
    name: &'static str,
    [sender, script, cause]: [&'static str; 3],
    timeout_ms: u64,
    refused: Option<u16>,
    count: usize,
) -> Case {
    let timeout = Duration::from_millis(timeout_ms);
    Case { name, sender, script, timeout, cause, refused, count }
}

/// Put to the app in one throng, in random order.
pub(crate) const MIXED: [Case; 10] = [
    case("timeout 50 ms, no answer", ["wait-50", "silent", "timeout"], 50, Some(5150), 15_000),
    case("timeout 100 ms, half an answer", ["wait-100", "half", "timeout"], 100, None, 15_000),
    case("timeout 200 ms, an answer too late", ["wait-200", "late-300", "timeout"], 200, Some(5152), 15_000),
    case("timeout 300 ms, no answer", ["wait-300", "silent", "timeout"], 300, None, 15_000),
    case("broken", ["deny", "broken", "broken"], 1000, Some(5200), 10_000),
    case("status", ["deny", "status", "status"], 1000, Some(5200), 10_000),
    case("invalid", ["deny", "invalid", "invalid"], 1000, Some(5200), 10_000),
    case("refused-by-app", ["deny", "refused", "refused-by-app"], 1000, Some(5200), 10_000),
    case("healthy", ["deny", "healthy", ""], 1000, None, 10_000),
    case("healthy, after 150 of 200 ms", ["wait-200", "healthy-150", ""], 200, None, 10_000),
];

/// A request's body that notes when its last byte was taken to be written.
pub(crate) struct Stamped {
    bytes: Bytes,
    written: Arc<std::sync::Mutex<Option<Instant>>>,
}

impl Buf for Stamped {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let (false, Ok(mut written)) = (self.bytes.has_remaining(), self.written.lock()) {
            *written = Some(Instant::now());
        }
    }
}

/// One connection to the guard.
pub(crate) enum Sender {
    H1(Box<http1::SendRequest<Full<Stamped>>>),
    H2(http2::SendRequest<Full<Stamped>>),
}

/// An answer, and when the request's last byte and its own were there.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) written: Instant,
    pub(crate) ended: Instant,
}

impl Sender {
    pub(crate) async fn connect(
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
        h2: bool,
    ) -> Result<Sender, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(support::server_name(), stream).await?;
        let io = TokioIo::new(stream);
        if h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Ok(Sender::H2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Ok(Sender::H1(Box::new(sender)))
        }
    }

    /// Whether it takes another request, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Sender::H1(sender) => !sender.is_closed(),
            Sender::H2(sender) => !sender.is_closed(),
        }
    }

    /// HTTP/2 takes further callers on one connection.
    pub(crate) fn again(&self) -> Option<Sender> {
        match self {
            Sender::H1(_) => None,
            Sender::H2(sender) => Some(Sender::H2(sender.clone())),
        }
    }

    pub(crate) fn over(&self) -> &'static str {
        match self {
            Sender::H1(_) => "h1",
            Sender::H2(_) => "h2",
        }
    }

    pub(crate) async fn ask(&mut self, case: &Case) -> Result<Answer, Failure> {
        let written = Arc::default();
        let body = SAMPLE.trim_end().replacen("8112345670", case.sender, 1);
        let body = Full::new(Stamped { bytes: body.into(), written: Arc::clone(&written) });
        // Over HTTP/2 `:authority` says it; over HTTP/1.1 hyper leaves it to whoever writes the request.
        let target = match self {
            Sender::H1(_) => Request::post(format!("/{COMMAND}")).header("host", "127.0.0.1"),
            Sender::H2(_) => Request::post(format!("https://127.0.0.1/{COMMAND}")),
        };
        let request = target
            .header("operationID", OPERATION_ID)
            .header("content-type", "application/json")
            .header("script", case.script)
            .body(body)?;
        let response = match self {
            Sender::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let ended = Instant::now();
        let written = written.lock().ok().and_then(|written| *written).ok_or("an answer to no request")?;
        Ok(Answer { status: head.status, headers: head.headers, body, written, ended })
    }
}

/// Whether an answer is the one the policy says.
pub(crate) fn is_intended(answer: &Answer, case: &Case) -> bool {
    let header = |name| answer.headers.get(name).map_or("", |value| value.to_str().unwrap_or("?"));
    let expected = [
        ("callback-guard-verdict", if case.refused.is_some() { "deny" } else { "allow" }),
        ("callback-guard-origin", if case.cause.is_empty() { "upstream" } else { "fallback" }),
        ("callback-guard-cause", case.cause),
    ];
    let text = String::from_utf8_lossy(&answer.body);
    let body = match case.refused {
        None if case.cause.is_empty() => text == support::allow_answer(app::ANSWER_BYTES),
        None => text.contains(r#""errCode":0"#) && text.contains(r#""nextCode":0"#),
        Some(code) => text.contains(&format!(r#""errCode":{code}"#)) && text.contains(r#""nextCode":1"#),
    };
    answer.status == StatusCode::OK && body && expected.iter().all(|(name, value)| header(*name) == *value)
}
