//! Accepts connections, ends TLS and speaks HTTP/1.1 and HTTP/2, each connection within its bounds.
//!
//! What Go's client does decides how a connection ends. It does not repeat a POST that was under way when the
//! server closed a kept connection, so no connection is closed while it might be used: an ending is announced first
//! (GOAWAY, or `Connection: close` on the next answer), and an idle HTTP/1 connection is left alone for a quarter of an
//! hour. And it keeps one HTTP/2 connection for ever, so that a new pod would never be called: every connection is
//! ended, gracefully, at a certain age.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, request};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::descriptors;
use crate::drain::{Stage, Watch};
use crate::held::Held;
use crate::log::Repeated;
use crate::metrics::Metrics;
use crate::tls::{HandshakeFailure, Tls, looks_like_plain_http};
use crate::turns::{Turn, Turns};
use crate::wire::AnswerBody;
use answer::Outgoing;
use drive::LAST_WORDS;
use stream::{Activity, Caller, Ending, Watched};

mod answer;
mod drive;
mod frames;
mod hpack;
mod rarely;
mod stream;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long the accept loop rests after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The same trouble of the accept loop is told once in so long.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// Streams a caller may open at once on one HTTP/2 connection. Go's client opens a new connection for each burst beyond it: for 300
/// calls 104 connections at 128 streams, and one at 512 or more. What a stream takes of memory is counted.
const STREAMS: u32 = 512;

/// When a head exceeds hyper's limit, hyper answers 431 with an empty body, which OpenIM cannot read. So hyper gets so many bytes more
/// than we take, and we reject first.
const HEAD_SLACK_BYTES: usize = 16 << 10;

/// How much the kernel keeps of answers that a caller does not take: beyond it they wait here, where they are counted. A socket that is not
/// read had 4,176 KiB of kernel memory without it, and 218 KiB with it.
const UNSENT_BYTES: u32 = 64 << 10;

/// What the kernel keeps of requests that were not read yet; Linux doubles it for its own use. Callbacks are a tenth of it.
const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take, from its first byte.
    pub header_timeout: Duration,
    /// Most bytes of a head, without the one field that may be larger.
    pub header_limit: usize,
    /// Most bytes of the one field that may be larger.
    pub large_field_limit: usize,
    /// When a connection is ended, give or take a tenth.
    pub connection_age: Duration,
    /// How long a connection past its age may be idle before it is closed.
    pub idle_timeout: Duration,
    /// How long an answer may wait to be taken. Bytes that are taken meanwhile make it no longer.
    pub answer_timeout: Duration,
}

/// A listening socket, its address known, nothing served yet.
#[derive(Debug)]
pub struct Bound {
    sockets: Vec<Socket>,
    address: SocketAddr,
}

impl Bound {
    /// Listens with one socket for each worker. Only several share a port by `SO_REUSEPORT`: with one, a port that is
    /// taken is an error and not a silent share.
    pub fn new(address: SocketAddr, workers: usize) -> io::Result<Bound> {
        let bound = Bound::reserved(address, workers)?;
        bound.sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
        Ok(bound)
    }

    /// Takes the port and does not listen yet: until [`Bound::into_sockets`] callers are refused at once.
    pub fn reserved(address: SocketAddr, workers: usize) -> io::Result<Bound> {
        let mut sockets = vec![socket(address, workers > 1)?];
        // With port 0 the first takes a free one, and the others the same.
        let address = sockets[0].local_addr()?;
        let address = address.as_socket().expect("an Internet socket has such an address");
        for _ in 1..workers {
            sockets.push(socket(address, true)?);
        }
        Ok(Bound { sockets, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The sockets, one for each worker, listening.
    pub fn into_sockets(self) -> io::Result<Vec<std::net::TcpListener>> {
        let listening = self.sockets.into_iter().map(|socket| {
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        });
        listening.collect()
    }
}

/// A socket that is bound and does not listen: callers are refused.
fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // [::] is both families wherever the system allows it.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Every connection inherits both. Without them the kernel's own defaults are in force, which costs memory alone.
    let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Answers requests. One to a worker; never shared between threads.
pub trait Handler: 'static {
    /// What was found out about a request when its head came.
    type Admitted: 'static;

    /// Looks at a head in the moment in which it was decoded, and takes away what is not to be kept of it: heads of many
    /// streams come at once. `None`: there is no memory even for a refusal, and the connection is ended.
    fn admit(&self, head: &mut request::Parts) -> Option<Self::Admitted>;

    /// Answers one request of this peer, whatever server it came through. Dropping the future is how a caller that hangs
    /// up cancels what it asked.
    fn answer<B: Body<Data = Bytes>>(
        self: Rc<Self>,
        request: Request<B>,
        peer: SocketAddr,
        admitted: Self::Admitted,
    ) -> impl Future<Output = Response<AnswerBody>>;
}

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Server<H> {
    /// Who answers.
    pub handler: Rc<H>,
    /// The certificate, and who may call.
    pub tls: Tls,
    /// The bounds.
    pub limits: Limits,
    /// A permit for each connection of the process.
    pub connections: Arc<Semaphore>,
    /// The turns of the worker's long work.
    pub turns: Rc<Turns>,
    /// Where the memory of heads counts.
    pub held: Held,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// The pod's end.
    pub drain: Watch,
}

impl<H: Handler> Server<H> {
    /// Accepts until the drain closes the listener; connections go on in tasks of their own.
    pub async fn serve(self: Rc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut drain = self.drain.clone();
        let mut closed = pin!(drain.reached(Stage::Closed));
        let mut warned: Option<Instant> = None;
        loop {
            let permit = match Arc::clone(&self.connections).try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => {
                    if warned.is_none_or(|at| at.elapsed() > WARN_AGAIN) {
                        warn!("The number of connections is at --max-connections: new ones wait");
                        warned = Some(Instant::now());
                    }
                    tokio::select! {
                        biased;
                        () = &mut closed => break,
                        permit = Arc::clone(&self.connections).acquire_owned() => {
                            permit.expect("the semaphore is never closed")
                        }
                    }
                }
            };
            let accepted = tokio::select! {
                biased;
                () = &mut closed => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let Ok(stream) = self.below_the_reserve(stream, &mut warned).await else { continue };
                    let server = Rc::clone(&self);
                    // Counted before its task begins: the end waits for it from here on.
                    let counted = server.metrics.connection();
                    tokio::task::spawn_local(async move {
                        server.connection(stream, peer).await;
                        drop((permit, counted));
                    });
                }
                Err(error) => {
                    warn_not_accepted(&error, &mut warned);
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Whoever is in the queue already was told that we listen. The socket itself is asked: what came since tokio last
        // looked is not known to it.
        let Ok(listener) = listener.into_std() else { return Ok(()) };
        while let Ok((stream, peer)) = listener.accept() {
            let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else {
                continue;
            };
            let server = Rc::clone(&self);
            let counted = server.metrics.connection();
            tokio::task::spawn_local(async move {
                server.connection(stream, peer).await;
                drop(counted);
            });
        }
        Ok(())
    }

    /// Waits, as in the queue, while only descriptors that are set aside for the admin port are free; not beyond the end of
    /// the listener.
    async fn below_the_reserve(
        &self,
        stream: TcpStream,
        warned: &mut Option<Instant>,
    ) -> io::Result<TcpStream> {
        if !descriptors::is_set_aside(&stream) {
            return Ok(stream);
        }
        let mut stream = descriptors::renumbered(stream.into_std()?);
        while descriptors::is_set_aside(&stream) && self.drain.stage() < Stage::Closed {
            warn_not_accepted(&io::Error::from_raw_os_error(libc::EMFILE), warned);
            sleep(ACCEPT_PAUSE).await;
            stream = descriptors::renumbered(stream);
        }
        TcpStream::from_std(stream)
    }

    async fn connection(self: Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        // A socket that cannot be told to send at once still works, a little later.
        let _ = stream.set_nodelay(true);
        let secure = match timeout(self.limits.handshake_timeout, self.handshake(stream)).await {
            Ok(Ok(secure)) => secure,
            Ok(Err(failure)) => return self.failed(failure, peer),
            Err(_) => return self.failed(HandshakeFailure::Timeout, peer),
        };
        let h2 = secure.get_ref().1.alpn_protocol() == Some(b"h2");
        let activity = Rc::new(Activity::new(h2));
        let turn = Turn::new(Rc::clone(&self.turns));
        let limit = self.limits.header_timeout;
        let io = Watched::new(secure, Rc::clone(&activity), limit, turn, self.held.clone());
        let io = TokioIo::new(io);
        let service = {
            let (server, activity) = (Rc::clone(&self), Rc::clone(&activity));
            service_fn(move |request| server.request(request, peer, &activity))
        };
        let limit = self.limits.header_limit + self.limits.large_field_limit + HEAD_SLACK_BYTES;
        if h2 {
            let connection = http2::Builder::new(LocalExecutor)
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(u32::try_from(limit).unwrap_or(u32::MAX))
                .serve_connection(io, service);
            self.drive(pin!(connection), &activity).await;
        } else {
            let connection = http1::Builder::new()
                .header_read_timeout(None)
                .max_header_size(limit)
                .max_buf_size(limit)
                .serve_connection(io, service);
            self.drive(pin!(connection), &activity).await;
        }
    }

    /// Answers a request. hyper calls this in the poll that decoded its head.
    fn request(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        activity: &Rc<Activity>,
    ) -> impl Future<Output = Result<Response<Outgoing>, Infallible>> + use<H> {
        let (mut head, body) = request.into_parts();
        let admitted = self.handler.admit(&mut head);
        // Before the future is polled: a read in between would find a head under way, and start its timer.
        let mut active = activity.begin();
        if admitted.is_none() {
            activity.end(Ending::NoMemory);
        }
        let (handler, unwritten) = (Rc::clone(&self.handler), Rc::clone(&activity.unwritten));
        async move {
            // Without memory its connection ends now.
            let Some(admitted) = admitted else { return std::future::pending().await };
            let response = handler.answer(Request::from_parts(head, body), peer, admitted).await;
            active.answered();
            let mut response = response.map(|answer| Outgoing::new(answer, &unwritten));
            // Asked when the answer leaves: the end may have come while it was made.
            if !active.h2 && active.ending.get() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<Caller>, HandshakeFailure> {
        let mut first = [0; 8];
        let seen = stream.peek(&mut first).await.map_err(|error| HandshakeFailure::of(&error))?;
        if looks_like_plain_http(&first[..seen]) {
            plain_http(stream).await;
            return Err(HandshakeFailure::PlainHttp);
        }
        TlsAcceptor::from(self.tls.config())
            .accept(Caller(stream))
            .await
            .map_err(|error| HandshakeFailure::of(&error))
    }

    fn failed(&self, failure: HandshakeFailure, peer: SocketAddr) {
        static FAILED: [Repeated; HandshakeFailure::ALL.len()] =
            [const { Repeated::new() }; HandshakeFailure::ALL.len()];
        self.metrics.handshake_failed(failure);
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
}

fn warn_not_accepted(error: &io::Error, warned: &mut Option<Instant>) {
    if warned.is_none_or(|at| at.elapsed() > WARN_AGAIN) {
        warn!(%error, "A connection cannot be accepted; trying again");
        *warned = Some(Instant::now());
    }
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
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut rest);
        if !matches!(timeout(LAST_WORDS, read).await, Ok(Ok(1..))) {
            break;
        }
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        // A panic of the task is counted by the process's panic hook and ends that stream alone.
        drop(tokio::task::spawn_local(async move {
            future.await;
        }));
    }
}

#[cfg(test)]
mod tests;
