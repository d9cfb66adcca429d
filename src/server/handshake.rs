//! The TLS handshake of one connection.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};

use rustls::server::{Acceptor, ServerConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::caller::Caller;
use super::drive::LAST_WORDS;
use super::records::SEND_BUFFER_BYTES;
use crate::log::Repeated;
use crate::tls::{HandshakeFailure, Tls, looks_like_plain_http};

/// Handshakes that compute at once. There is one thread, so more would only keep it longer from its sockets.
const COMPUTING: usize = 1;

/// The turns of those whose ClientHello has come, first come, first served.
pub(super) fn turns() -> Semaphore {
    Semaphore::new(COMPUTING)
}

/// Does the handshake.
///
/// Waiting costs nothing, so who waits takes no turn: sockets that say nothing keep nobody out, and neither do those that stop
/// after their ClientHello. A turn is for the answer to a ClientHello, which has the key exchange and the signature, 0.1 to
/// 5 ms of CPU time by the kind of key. Others whose bytes have come are served between two turns: a handshake that has begun
/// is completed though a thousand new ones wait.
pub(super) async fn handshake(
    stream: TcpStream,
    tls: &Tls,
    turns: &Semaphore,
) -> Result<TlsStream<Caller>, HandshakeFailure> {
    let mut first = [0; 8];
    let seen = stream.peek(&mut first).await.map_err(|error| HandshakeFailure::of(&error))?;
    if looks_like_plain_http(&first[..seen]) {
        plain_http(stream).await;
        return Err(HandshakeFailure::PlainHttp);
    }
    let hello = LazyConfigAcceptor::new(Acceptor::default(), Caller::accepted(stream)).await;
    let mut hello = hello.map_err(|error| HandshakeFailure::of(&error))?;
    let turn = turns.acquire().await.expect("the semaphore is never closed");
    if hello.io.has_left() {
        return Err(HandshakeFailure::Closed);
    }
    let (config, certificate) = tls.in_force();
    hello.io.greeted(certificate);
    // What a caller does not take waits as an answer that is counted, not here.
    let limited = |session: &mut ServerConnection| session.set_buffer_limit(Some(SEND_BUFFER_BYTES));
    let mut rest = pin!(hello.into_stream_with(config, limited));
    let mut poll = |cx: &mut Context<'_>| match rest.as_mut().poll(cx) {
        Poll::Pending => rest
            .get_ref()
            .and_then(Caller::handshake_fault)
            .map_or(Poll::Pending, |fault| Poll::Ready(Err(fault))),
        done => done,
    };
    let answered = poll_fn(|cx| Poll::Ready(poll(cx))).await;
    drop(turn);
    let done = match answered {
        Poll::Ready(done) => done,
        Poll::Pending => poll_fn(poll).await,
    };
    done.map_err(|error| HandshakeFailure::of(&error))
}

/// One line a second for each reason.
pub(super) fn log_failed(failure: HandshakeFailure, peer: SocketAddr) {
    static FAILED: [Repeated; HandshakeFailure::ALL.len()] =
        [const { Repeated::new() }; HandshakeFailure::ALL.len()];
    FAILED[failure as usize].line(move |count| match failure {
        // Port scanners and probes of load balancers; the metric counts them.
        HandshakeFailure::Closed | HandshakeFailure::Io => {
            debug!(%peer, count, "A connection ended before TLS began")
        }
        HandshakeFailure::PlainHttp => {
            warn!(%peer, count, "Plain HTTP came to the TLS port: webhooks.url must begin with https://");
        }
        HandshakeFailure::UnknownCa => warn!(
            %peer,
            count,
            "The caller does not trust this certificate: OpenIM takes its trust from the system's roots or from \
             SSL_CERT_FILE"
        ),
        HandshakeFailure::Timeout
        | HandshakeFailure::NoClientCertificate
        | HandshakeFailure::BadCertificate
        | HandshakeFailure::ProtocolVersion
        | HandshakeFailure::NoCommonCipher
        | HandshakeFailure::NoCommonAlpn
        | HandshakeFailure::Garbage => {
            warn!(%peer, count, reason = failure.label(), "A TLS handshake failed");
        }
    });
}

/// Tells a caller without TLS what is wrong, in a way that OpenIM reads as a refusal and a person understands.
async fn plain_http(mut stream: TcpStream) {
    let text = "callback rejected: plain HTTP came to a TLS port, webhooks.url must begin with https://";
    let body = crate::verdict::deny_body(crate::callback::rejection::REJECTION_CODE, text, "plain-http");
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = [head.into_bytes(), body].concat();
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
    // Closing with the request unread would reset the connection under the answer.
    let mut rest = [0; 4096];
    for _ in 0..16 {
        let read = stream.read(&mut rest);
        if !matches!(timeout(LAST_WORDS, read).await, Ok(Ok(1..))) {
            break;
        }
    }
}
