//! Connections that several requests share: HTTP/2, as many streams on each as an API server allows by default, and as many
//! connections as that takes.
//!
//! A client with one connection would wait for ever: watches hold their streams, and the server allows 100 of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body as Asked;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::access::Access;
use super::body::Heard;
use super::connect::{Held, Stream, Version, addressed, alone, connect, in_time};
use super::trouble::Failure;

/// Requests at once on one connection. Kubernetes' API server allows 100 (`--http2-max-streams-per-connection`).
const STREAMS: usize = 64;

/// Connections at once: 4,096 watches and requests, which are those of about 600 namespaces.
const CONNECTIONS: usize = 64;

/// Lists and watches at once whose answer has not begun. An API server lets a client have some dozens, and refuses others with
/// 429; at the start there are some for each namespace.
const WAITING: usize = 8;

/// A connection is asked for a sign of life so often, and closed without one after so long.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));

/// A stream of a shared connection, free again when this is dropped.
pub(super) struct Shared(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

/// The connections. Clones share them.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    connections: Mutex<Vec<Connection>>,
    waiting: Semaphore,
    agent: HeaderValue,
    /// How far the API server's clock is ahead of this machine's, in seconds.
    ahead: AtomicI64,
}

struct Connection {
    access: Arc<Access>,
    sender: http2::SendRequest<Asked>,
    streams: Arc<Semaphore>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// No connection yet. The API server's audit log has the name of the client, which is visible ASCII.
    pub fn new(client: &str) -> Pool {
        let agent = HeaderValue::from_str(client).unwrap_or(HeaderValue::from_static("callback-guard"));
        let (connections, waiting) = (Mutex::default(), Semaphore::new(WAITING));
        Pool(Arc::new(Inner { connections, waiting, agent, ahead: AtomicI64::new(0) }))
    }

    /// How far the API server's clock was ahead of this machine's when it answered last, in seconds; below zero: behind.
    pub fn server_ahead(&self) -> i64 {
        self.0.ahead.load(Ordering::Relaxed)
    }

    /// The way that is in use, or the one that the next connection takes.
    pub(super) async fn access(&self) -> Result<Arc<Access>, String> {
        let mut connections = self.0.connections.lock().await;
        connections.retain(|connection| !connection.sender.is_closed());
        match connections.last() {
            Some(connection) => Ok(Arc::clone(&connection.access)),
            None => Access::find().await.map(Arc::new),
        }
    }

    /// Sends a request over a connection that has room for it.
    pub(super) async fn send(
        &self,
        mut request: Request<Asked>,
    ) -> Result<Response<Heard<Incoming, Held>>, Failure> {
        request.headers_mut().insert(header::USER_AGENT, self.0.agent.clone());
        // A write may wait for a slow webhook, and keeps no other waiting.
        let _waiting = match *request.method() == Method::GET {
            true => Some(self.0.waiting.acquire().await.expect("the semaphore is never closed")),
            false => None,
        };
        let answer = match self.stream().await? {
            Found::Stream { access, mut sender, permit } => {
                let request = addressed(&access, request, Version::Http2)?;
                let answer = in_time(sender.send_request(request)).await?;
                answer.map(|body| Heard::new(body, Held::Shared(Shared(permit))))
            }
            Found::OneByOne(access) => alone(&access, request).await?,
        };
        self.compare_clocks(answer.headers());
        Ok(answer)
    }

    async fn stream(&self) -> Result<Found, Failure> {
        // Held while it connects: many requests at once make one connection, not many.
        let mut connections = self.0.connections.lock().await;
        connections.retain(|connection| !connection.sender.is_closed());
        let free = |connection: &Connection| {
            let permit = Arc::clone(&connection.streams).try_acquire_owned().ok()?;
            let (access, sender) = (Arc::clone(&connection.access), connection.sender.clone());
            Some(Found::Stream { access, sender, permit })
        };
        if let Some(found) = connections.iter().find_map(free) {
            return Ok(found);
        }
        if connections.len() >= CONNECTIONS {
            let all = CONNECTIONS * STREAMS;
            return Err(Failure::Access(format!(
                "{all} requests are under way, at most that many are allowed"
            )));
        }
        let access = Arc::new(Access::find().await.map_err(Failure::Access)?);
        let stream = connect(&access, Version::Http2).await?;
        let (Version::Http2, Stream::Tls(stream)) = (stream.version(), stream) else {
            return Ok(Found::OneByOne(access));
        };
        let (every, patience) = KEEP_ALIVE;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(every)
            .keep_alive_timeout(patience)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(*stream))
            .await
            .map_err(Failure::Http)?;
        tokio::spawn(async move {
            // How it ended is reported by the requests that are under way.
            let _ = connection.await;
        });
        let connection = Connection { access, sender, streams: Arc::new(Semaphore::new(STREAMS)) };
        let found = free(&connection);
        connections.push(connection);
        Ok(found.expect("a fresh connection has a free stream"))
    }

    fn compare_clocks(&self, headers: &HeaderMap) {
        let date =
            headers.get(header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if let Some(server) = date {
            let now = SystemTime::now();
            let seconds = |by: Duration| i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
            let ahead = match server.duration_since(now) {
                Ok(ahead) => seconds(ahead),
                Err(behind) => -seconds(behind.duration()),
            };
            self.0.ahead.store(ahead, Ordering::Relaxed);
        }
    }
}

enum Found {
    Stream {
        access: Arc<Access>,
        sender: http2::SendRequest<Asked>,
        permit: OwnedSemaphorePermit,
    },
    /// The server, or a proxy in front of it, does not speak HTTP/2.
    OneByOne(Arc<Access>),
}
