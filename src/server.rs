//! Accepts connections, ends TLS and speaks HTTP/1.1 and HTTP/2, each connection within its bounds.
//!
//! One thread accepts and does the handshakes ([`Acceptor`]); workers speak HTTP ([`Server`]), each on connections of its own.
//!
//! What Go's client does decides how a connection ends. It does not repeat a POST that was under way when the
//! server closed a kept connection, so no connection is closed while it might be used: an ending is announced first
//! (GOAWAY, or `Connection: close` on the next answer), and an idle HTTP/1 connection is left alone for a quarter of an
//! hour. And it keeps one HTTP/2 connection for ever, so that a new pod would never be called: every connection is
//! ended, gracefully, at a certain age.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::ready;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, request};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
#[cfg(any(test, fuzzing))]
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use crate::drain::Watch;
use crate::held::{Account, Accounts, Identity};
use crate::metrics::Metrics;
use crate::turns::{Lane, Pace, Turn, Turns};
use crate::wire::{AnswerBody, CallerBody};
use answer::Outgoing;
use body::Counted;
use caller::Caller;
use connections::{Connections, Registered};
use records::Transport;
use stream::{Activity, Ending, Watched};
use workers::Arrival;

pub use accept::Acceptor;
pub use connections::FAREWELLS;
pub use pressure::Pressure;
pub use workers::{Inbox, Worker, Workers, worker};

mod accept;
mod answer;
mod body;
mod caller;
mod connections;
mod drive;
mod frames;
mod handshake;
mod hpack;
mod pressure;
mod rarely;
mod records;
mod stream;
mod workers;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

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
    /// How long a connection may stay without a first request.
    pub first_request_timeout: Duration,
}

/// A listening socket, its address known, nothing served yet.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    address: SocketAddr,
}

impl Bound {
    /// Listens. A port that is taken is an error.
    pub fn new(address: SocketAddr) -> io::Result<Bound> {
        let bound = Bound::reserved(address)?;
        bound.socket.listen(BACKLOG)?;
        Ok(bound)
    }

    /// Takes the port and does not listen yet: until [`Bound::into_listener`] callers are refused at once.
    pub fn reserved(address: SocketAddr) -> io::Result<Bound> {
        let socket = socket(address)?;
        let address = socket.local_addr()?.as_socket().expect("an Internet socket has such an address");
        Ok(Bound { socket, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket, listening.
    pub fn into_listener(self) -> io::Result<std::net::TcpListener> {
        self.socket.listen(BACKLOG)?;
        self.socket.set_nonblocking(true)?;
        Ok(self.socket.into())
    }
}

/// A socket that is bound and does not listen: callers are refused.
fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // [::] is both families wherever the system allows it.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
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
    /// streams come at once. What it takes of memory counts for the caller. `None`: there is no memory even for a refusal, and the connection is ended.
    fn admit(&self, head: &mut request::Parts, account: &Arc<Account>) -> Option<Self::Admitted>;

    /// Answers one request of this peer, whatever server it came through. Dropping the future is how a caller that hangs
    /// up cancels what it asked. The request stays with the server, and is taken from as needed: a future has room of its own for
    /// each value that it is handed, and this one is moved before its first poll.
    fn answer<B: CallerBody>(
        self: Rc<Self>,
        head: &mut request::Parts,
        body: Pin<&mut B>,
        peer: SocketAddr,
        admitted: &mut Self::Admitted,
    ) -> impl Future<Output = Response<AnswerBody>>;
}

/// What the connections of one worker share.
#[derive(Debug)]
pub struct Server<H> {
    /// Who answers.
    pub handler: Rc<H>,
    /// The bounds.
    pub limits: Limits,
    /// The turns of the worker's long work.
    pub turns: Rc<Turns>,
    /// What each caller holds.
    pub accounts: Accounts,
    /// Where errors of connections are counted.
    pub metrics: Arc<Metrics>,
    /// The pod's end.
    pub drain: Watch,
}

impl<H: Handler> Server<H> {
    /// Serves the connections of a worker's inbox. Returns once no more can come; those that are open go on in tasks of
    /// their own.
    pub async fn serve(self: Rc<Self>, inbox: Inbox) {
        let Inbox { mut arrivals, mut orders } = inbox;
        let connections = Connections::new(self.limits.first_request_timeout);
        let (ordered, aging) = (Rc::clone(&connections), Rc::clone(&connections));
        let metrics = self.metrics.kept().clone();
        tokio::task::spawn_local(async move {
            while let Some(order) = orders.recv().await {
                ordered.obey(order, &metrics);
            }
        });
        let metrics = self.metrics.kept().clone();
        tokio::task::spawn_local(async move { aging.end_silent(&metrics).await });
        while let Some(arrival) = arrivals.recv().await {
            let (server, connections) = (Rc::clone(&self), Rc::clone(&connections));
            tokio::task::spawn_local(async move {
                let Arrival { mut secure, peer, accepted, permit, counted, seat } = arrival;
                // The socket is registered with this thread's runtime now. Where that fails there is nobody to tell.
                if secure.get_mut().0.arrive().is_ok() {
                    let registered = connections.register(accepted, permit);
                    server.connection(secure, peer, &registered).await;
                }
                drop((counted, seat));
            });
        }
    }

    async fn connection(
        self: Rc<Self>,
        secure: Box<TlsStream<Caller>>,
        peer: SocketAddr,
        registered: &Registered,
    ) {
        let session = secure.get_ref().1;
        let leaf = session.peer_certificates().and_then(|chain| chain.first()).map(AsRef::as_ref);
        let account = self.accounts.open(Identity::of(peer.ip(), leaf));
        let h2 = session.alpn_protocol() == Some(b"h2");
        self.speak(secure, h2, (peer, account), registered).await;
    }

    /// Serves a stream that nobody accepted, as if its handshake had been.
    #[cfg(any(test, fuzzing))]
    pub(crate) async fn speak_alone<S>(self: Rc<Self>, stream: S, h2: bool, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connections = Connections::new(self.limits.first_request_timeout);
        let registered = connections.register(std::time::Instant::now(), None);
        let account = self.accounts.open(Identity::of(peer.ip(), None));
        self.speak(records::Plain(stream), h2, (peer, account), &registered).await;
    }

    /// Speaks HTTP with a caller, to the end of the connection.
    async fn speak<S>(
        self: Rc<Self>,
        stream: S,
        h2: bool,
        (peer, account): (SocketAddr, Arc<Account>),
        registered: &Registered,
    ) where
        S: Transport,
    {
        let activity = Rc::new(Activity::new(h2));
        registered.watch(&activity);
        let lane = self.turns.lane(account.number());
        let (turn, pace) = (Turn::new(Rc::clone(&lane)), Pace::new(Rc::clone(&lane), h2));
        let limit = self.limits.header_timeout;
        let io = Watched::new(stream, Rc::clone(&activity), limit, turn, Arc::clone(&account));
        let io = TokioIo::new(io);
        let service = {
            let (server, activity) = (Rc::clone(&self), Rc::clone(&activity));
            move |request| server.request(request, peer, &account, &activity)
        };
        let limit = self.limits.header_limit + self.limits.large_field_limit + HEAD_SLACK_BYTES;
        if h2 {
            let connection = http2::Builder::new(LocalExecutor { activity: Rc::clone(&activity), lane })
                .max_concurrent_streams(STREAMS)
                .max_header_list_size(u32::try_from(limit).unwrap_or(u32::MAX))
                // In a box: hyper and tokio move the future of a stream a dozen times before it is polled, several KiB each time.
                .serve_connection(io, service_fn(move |request| Box::pin(service(request))));
            self.drive(pin!(connection), pace, &activity, registered).await;
        } else {
            let connection = http1::Builder::new()
                .header_read_timeout(None)
                .max_header_size(limit)
                .max_buf_size(limit)
                .serve_connection(io, service_fn(service));
            self.drive(pin!(connection), pace, &activity, registered).await;
        }
    }

    /// Answers a request. hyper calls this in the poll that decoded its head.
    fn request(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        account: &Arc<Account>,
        activity: &Rc<Activity>,
    ) -> impl Future<Output = Result<Response<Outgoing>, Infallible>> + use<H> {
        let (mut head, mut body) = request.into_parts();
        let mut admitted = self.handler.admit(&mut head, account);
        // Before the future is polled: a read in between would find a head under way, and start its timer.
        let mut active = activity.begin();
        if admitted.is_none() {
            activity.end(Ending::NoMemory);
        }
        let (handler, unwritten) = (Rc::clone(&self.handler), Rc::clone(&activity.unwritten));
        async move {
            // Without memory its connection ends now.
            let Some(admitted) = &mut admitted else { return std::future::pending().await };
            let mut body = Counted::new(&mut body, &active);
            let response = handler.answer(&mut head, Pin::new(&mut body), peer, admitted).await;
            active.answered();
            let mut response = response.map(|answer| Outgoing::new(answer, &unwritten));
            // Asked when the answer leaves: the end may have come while it was made.
            if !active.h2 && active.ending.get() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    }
}

/// Runs the tasks of a connection's streams on the worker's own thread, in the turns of their caller: hundreds may become ready at once.
#[derive(Clone)]
struct LocalExecutor {
    activity: Rc<Activity>,
    lane: Rc<Lane>,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        // The connection ends before its next read. Until then a caller may have begun hundreds of streams with 13 bytes each,
        // and each task takes 11 KiB that nobody has counted: dropped, the stream is reset.
        if self.activity.has_no_memory() {
            return;
        }
        // A panic of the task is counted by the process's panic hook and ends that stream alone.
        let mut pace = Pace::new(Rc::clone(&self.lane), false);
        drop(tokio::task::spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                ready!(pace.poll(cx));
                future.as_mut().poll(cx).map(drop)
            })
            .await;
        }));
    }
}

#[cfg(test)]
mod tests;
