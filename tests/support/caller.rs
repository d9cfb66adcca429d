//! Callers over TLS.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::callbacks::Ending;
use super::{Authority, Call, Guard, within};

/// A caller with one connection.
pub(crate) struct Caller {
    sender: Sender,
    driver: JoinHandle<hyper::Result<()>>,
}

enum Sender {
    H1(http1::SendRequest<Outgoing>),
    H2(http2::SendRequest<Outgoing>),
}

/// A body on its way out.
pub(crate) struct Outgoing {
    rest: Option<Bytes>,
    ending: Ending,
}

impl Outgoing {
    fn of(call: &Call) -> Outgoing {
        Outgoing { rest: Some(call.body.clone()).filter(|body| !body.is_empty()), ending: call.ending }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match (self.rest.take(), self.ending) {
            (Some(rest), _) => Poll::Ready(Some(Ok(Frame::data(rest)))),
            (None, Ending::Announced | Ending::Unannounced) => Poll::Ready(None),
            // Nothing wakes it: that is the point.
            (None, Ending::Stalls) => Poll::Pending,
            (None, Ending::Fails) => Poll::Ready(Some(Err(io::ErrorKind::Interrupted.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ending == Ending::Announced && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.ending {
            Ending::Announced => SizeHint::with_exact(self.rest.as_ref().map_or(0, Bytes::len) as u64),
            Ending::Unannounced | Ending::Stalls | Ending::Fails => SizeHint::default(),
        }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header, empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    /// The values of the guard's three headers, joined by spaces; `-` where one is missing.
    pub(crate) fn told(&self) -> String {
        let names = ["callback-guard-verdict", "callback-guard-origin", "callback-guard-cause"];
        names.map(|name| if self.headers.contains_key(name) { self.header(name) } else { "-" }).join(" ")
    }

    pub(crate) fn finding(&self) -> &str {
        self.header("callback-guard-finding")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("an answer is JSON")
    }
}

impl Caller {
    /// A connection over HTTP/1.1.
    pub(crate) async fn h1(guard: &Guard) -> Caller {
        Caller::over(secure(guard, Authority::common().trusted_by(&["http/1.1"], None)).await).await
    }

    /// A connection over HTTP/2.
    pub(crate) async fn h2(guard: &Guard) -> Caller {
        Caller::over(secure(guard, Authority::common().trusted_by(&["h2"], None)).await).await
    }

    /// A connection over HTTP/2 from another address of loopback.
    pub(crate) async fn h2_from(guard: &Guard, source: Ipv4Addr) -> Caller {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("all of 127.0.0.0/8 is loopback");
        let stream = within("a connection", socket.connect(guard.listen())).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        let config = Authority::common().trusted_by(&["h2"], None);
        Caller::over(handshake(stream, config).await.expect("a handshake")).await
    }

    /// A connection over the protocol that ALPN chose.
    pub(crate) async fn over(stream: TlsStream<TcpStream>) -> Caller {
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        if h2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            let builder = builder.max_header_list_size(1 << 20).initial_max_send_streams(1024);
            let (sender, connection) = within("HTTP/2", builder.handshake(io)).await.expect("HTTP/2");
            Caller { sender: Sender::H2(sender), driver: tokio::spawn(connection) }
        } else {
            let mut builder = http1::Builder::new();
            let builder = builder.title_case_headers(true);
            let (sender, connection) = within("HTTP/1", builder.handshake(io)).await.expect("HTTP/1");
            Caller { sender: Sender::H1(sender), driver: tokio::spawn(connection) }
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&mut self, call: &Call) -> Answer {
        self.try_send(call).await.expect("an answer")
    }

    /// As [`Caller::send`], where an answer need not come.
    pub(crate) async fn try_send(&mut self, call: &Call) -> hyper::Result<Answer> {
        within("the connection", self.ready()).await?;
        within("an answer", self.begin(call)).await
    }

    /// A callback of this command with this body and headers beside the usual ones.
    pub(crate) async fn post(
        &mut self,
        command: &str,
        body: impl Into<Bytes>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let call =
            headers.iter().fold(Call::raw(command, body), |call, (name, value)| call.header(name, value));
        self.send(&call).await
    }

    /// Begins a request. Dropping the future cancels it: over HTTP/1 that ends the connection.
    pub(crate) fn begin(&mut self, call: &Call) -> impl Future<Output = hyper::Result<Answer>> + use<> {
        let h2 = matches!(self.sender, Sender::H2(_));
        let target = if h2 { format!("https://localhost{}", call.target) } else { call.target.clone() };
        let mut request = Request::builder().method(call.method.as_str()).uri(target);
        if !h2 {
            request = request.header("Host", "localhost");
        }
        for (name, value) in &call.headers {
            request = request.header(name, value.as_slice());
        }
        let request = request.body(Outgoing::of(call)).expect("a request that http can hold");
        let (one, two) = match &mut self.sender {
            Sender::H1(sender) => (Some(sender.send_request(request)), None),
            Sender::H2(sender) => (None, Some(sender.send_request(request))),
        };
        async move {
            let response = match (one, two) {
                (Some(one), _) => one.await?,
                (None, two) => two.expect("one of the two").await?,
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        }
    }

    /// Waits until the connection takes a request.
    pub(crate) async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await,
            Sender::H2(sender) => sender.ready().await,
        }
    }

    /// Whether the connection is still open, as far as this side knows.
    pub(crate) fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Waits until the guard has ended the connection.
    pub(crate) async fn ended(self) {
        drop(self.sender);
        let _ = within("the connection's end", self.driver).await.expect("no panic");
    }

    /// Waits until the guard has ended the connection, or announced over HTTP/2 that it takes no more.
    pub(crate) async fn told_to_go(&mut self) {
        let _ = within("the connection's end", &mut self.driver).await.expect("no panic");
    }

    /// Cuts the connection, without a word.
    pub(crate) fn hang_up(self) {
        self.driver.abort();
    }
}

/// TLS to the guard, for a caller of this configuration.
pub(crate) async fn secure(guard: &Guard, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    try_secure(guard, config).await.expect("a handshake")
}

/// As [`secure`], where the handshake may fail.
pub(crate) async fn try_secure(guard: &Guard, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    handshake(plain(guard).await, config).await
}

async fn handshake(stream: TcpStream, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    within("a handshake", TlsConnector::from(config).connect(name, stream)).await
}

/// TLS with HTTP/1.1, to write bytes by hand.
pub(crate) async fn raw(guard: &Guard) -> TlsStream<TcpStream> {
    secure(guard, Authority::common().trusted_by(&["http/1.1"], None)).await
}

/// A plain TCP connection to the TLS port.
pub(crate) async fn plain(guard: &Guard) -> TcpStream {
    let stream = within("a connection", TcpStream::connect(guard.listen())).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// A caller who writes its bytes by hand, over TLS or without.
pub(crate) struct Raw<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub(crate) fn over(stream: S) -> Raw<S> {
        Raw { stream, buffer: BytesMut::new() }
    }

    /// Writes bytes. A guard that does not listen any more shows when it is read from.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let write = async {
            let _ = self.stream.write_all(bytes.as_ref()).await;
            let _ = self.stream.flush().await;
        };
        within("room to write", write).await;
    }

    /// Says that nothing more comes, and goes on reading.
    pub(crate) async fn finish(&mut self) {
        let _ = within("room to write", self.stream.shutdown()).await;
    }

    /// Reads one answer, interim ones included; `None` when the connection has ended first.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some((answer, length)) = parse(&self.buffer) {
                self.buffer.advance(length);
                return Some(answer);
            }
            let read = self.stream.read_buf(&mut self.buffer);
            if !matches!(within("an answer or the end", read).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Reads to the connection's end, and gives what came.
    pub(crate) async fn rest(&mut self) -> Bytes {
        while matches!(within("the end", self.stream.read_buf(&mut self.buffer)).await, Ok(1..)) {}
        self.buffer.split().freeze()
    }
}

/// One answer at the front of these bytes, and how long it is.
fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let mut slots = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut slots);
    let httparse::Status::Complete(head) = parsed.parse(bytes).ok()? else { return None };
    let mut headers = HeaderMap::new();
    for found in parsed.headers.iter() {
        let name = HeaderName::from_bytes(found.name.as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_bytes(found.value).expect("a value"));
    }
    let length = headers.get("content-length").map_or(0, |value| {
        value.to_str().ok().and_then(|text| text.parse::<usize>().ok()).expect("a length that is a number")
    });
    let body = bytes.get(head..head + length)?;
    let status = parsed.code.expect("a status");
    Some((Answer { status, headers, body: Bytes::copy_from_slice(body) }, head + length))
}
