//! Accepts connections, ends TLS and speaks HTTP/1.1 and HTTP/2, each connection within its bounds.
//!
//! What Go's client does decides how a connection ends. It does not repeat a POST that was under way when the
//! server closed a kept connection, so no connection is closed while it might be used: an ending is announced first
//! (GOAWAY, or `Connection: close` on the next answer), and an idle HTTP/1 connection is left alone for a quarter of an
//! hour. And it keeps one HTTP/2 connection for ever, so that a new pod would never be called: every connection is
//! ended, gracefully, at a certain age.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::descriptors;
use crate::drain::{Stage, Watch};
use crate::log::Repeated;
use crate::metrics::{BadHttp, Metrics};
use crate::tls::{HandshakeFailure, Tls, looks_like_plain_http};
use rarely::{Gate, Rarely};
use stream::{Activity, Caller, Watched};

mod rarely;
mod stream;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long the accept loop rests after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The same trouble of the accept loop is told once in so long.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// Streams a caller may open at once on one HTTP/2 connection: more than `--max-in-flight` lets through.
const STREAMS: u32 = 1024;

/// How long a connection that was told to end may go on: the longest OpenIM waits, and a little more.
const LAST_ANSWERS: Duration = Duration::from_secs(20);

/// How long a connection may take to say good-bye.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// hyper's own limits on a head answer with an empty body; it gets so many times ours, and we answer.
const HYPERS_SHARE: usize = 4;

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take, from its first byte.
    pub header_timeout: Duration,
    /// Most bytes of a head.
    pub header_limit: usize,
    /// When a connection is ended, give or take a tenth.
    pub connection_age: Duration,
    /// How long a connection past its age may be idle before it is closed.
    pub idle_timeout: Duration,
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
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Answers requests. One to a worker; never shared between threads.
pub trait Handler: 'static {
    /// Answers one request of this peer, whatever server it came through. Dropping the future is how a caller that hangs
    /// up cancels what it asked.
    fn answer<B: Body<Data = Bytes>>(
        self: Rc<Self>,
        request: Request<B>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Full<Bytes>>>;
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
        let io = TokioIo::new(Watched {
            stream: secure,
            activity: Rc::clone(&activity),
            limit: self.limits.header_timeout,
            timer: None,
            readable: Gate::new(),
        });
        let service = {
            let (server, activity) = (Rc::clone(&self), Rc::clone(&activity));
            service_fn(move |request| {
                // Before the future is polled: a read in between would find a head under way, and start its timer.
                let (handler, active) = (Rc::clone(&server.handler), activity.begin());
                async move {
                    let mut response = handler.answer(request, peer).await;
                    // Asked when the answer leaves: the end may have come while it was made.
                    if !active.h2 && active.ending.get() {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, std::convert::Infallible>(response)
                }
            })
        };
        let limit = self.limits.header_limit * HYPERS_SHARE;
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
                .max_buf_size(limit.max(512 << 10))
                .serve_connection(io, service);
            self.drive(pin!(connection), &activity).await;
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

    /// Runs a connection to its end: its own, its age's or the drain's.
    async fn drive<C: Graceful>(&self, mut connection: Pin<&mut C>, activity: &Activity) {
        let (mut leave, mut end) = (self.drain.clone(), self.drain.clone());
        let (leaving, over) = (pin!(leave.reached(Stage::Leaving)), pin!(end.reached(Stage::Over)));
        let (mut leaving, mut over) = (Rarely::new(leaving), Rarely::new(over));
        // A connection that comes while the pod is leaving is served, and then told to go elsewhere.
        let age = if self.drain.stage() >= Stage::Leaving { Duration::from_secs(1) } else { self.age() };
        let timer = pin!(sleep(age));
        let mut timer = Rarely::new(timer);
        let mut moved = self.drain.stage() >= Stage::Leaving;
        // Over HTTP/1.1 its first answer says so already.
        activity.ending.set(moved && !activity.h2);
        loop {
            tokio::select! {
                biased;
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        self.bad_http(&error);
                    }
                    return;
                }
                () = &mut over => {
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(LAST_WORDS, connection.as_mut()).await;
                    return;
                }
                () = &mut leaving, if !moved => {
                    moved = true;
                    self.end(connection.as_mut(), activity, timer.inner().as_mut());
                }
                () = &mut timer => {
                    if !activity.ending.get() {
                        self.end(connection.as_mut(), activity, timer.inner().as_mut());
                    } else if let Some(later) = self.may_stay(activity) {
                        timer.inner().as_mut().reset(later.into());
                    } else {
                        connection.as_mut().graceful_shutdown();
                        let _ = timeout(LAST_WORDS, connection.as_mut()).await;
                        return;
                    }
                }
            }
        }
    }

    /// What hyper refused by itself, with an empty body: it never came to the proxy, and is told here.
    fn bad_http(&self, error: &hyper::Error) {
        let mut source = std::error::Error::source(error);
        let mut timed_out = false;
        while let Some(inner) = source {
            timed_out |=
                inner.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::TimedOut);
            source = inner.source();
        }
        let fault = if timed_out {
            BadHttp::SlowHead
        } else if error.is_parse() || error.is_parse_too_large() {
            BadHttp::Malformed
        } else {
            // Callers that hang up, and HTTP/2 connections that break its rules.
            BadHttp::Ended
        };
        self.metrics.bad_http(fault);
        static BAD_HTTP: [Repeated; BadHttp::ALL.len()] = [const { Repeated::new() }; BadHttp::ALL.len()];
        let (limit, error) = (self.limits.header_timeout, error.to_string());
        BAD_HTTP[fault as usize].line(move |count| match fault {
            BadHttp::SlowHead => {
                warn!(?limit, count, "The head of a request took longer than --header-timeout");
            }
            BadHttp::Malformed => {
                warn!(
                    error,
                    count, "A request is not HTTP as it should be: its connection is closed, mostly after 400 or 431 with an empty body"
                );
            }
            BadHttp::Ended => debug!(error, count, "A connection ended with an error"),
        });
    }

    /// Announces the end: GOAWAY now, or `Connection: close` with the next answer.
    fn end<C: Graceful>(&self, connection: Pin<&mut C>, activity: &Activity, timer: Pin<&mut Sleep>) {
        activity.ending.set(true);
        if activity.h2 {
            connection.graceful_shutdown();
        }
        let stay = if activity.h2 { LAST_ANSWERS } else { self.limits.idle_timeout };
        timer.reset((Instant::now() + stay).into());
    }

    /// Until when a connection whose end was announced may still be there.
    fn may_stay(&self, activity: &Activity) -> Option<Instant> {
        if activity.h2 {
            return None;
        }
        let until = activity.quiet_since.get() + self.limits.idle_timeout;
        let now = Instant::now();
        match (activity.active.get(), until > now) {
            (0, false) => None,
            (0, true) => Some(until),
            (_, _) => Some(now + LAST_ANSWERS),
        }
    }

    /// The age, jittered by a tenth, so that connections that came together do not go together.
    fn age(&self) -> Duration {
        let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
        self.limits.connection_age.mul_f64(0.9 + 0.2 * random)
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

/// The two kinds of connection hyper serves.
trait Graceful: Future<Output = hyper::Result<()>> {
    /// Takes no more requests and ends when those under way are answered.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S> Graceful for http1::Connection<I, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::Connection::graceful_shutdown(self);
    }
}

impl<I, B, S, E> Graceful for http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
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
