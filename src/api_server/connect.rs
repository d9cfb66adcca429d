//! The way to the API server, for kube's client: over our own TLS, a connection for each request, or a few shared ones.
//!
//! A sidecar reads one object and then watches it for an hour, so there is nothing to pool. The controller has some watches
//! for each namespace: they share connections by HTTP/2. kube's own stack (a pool of HTTP/1.1 connections, a connector, the
//! platform's trust store) would be a fifth of the binary, and one connection for each watch.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body as Asked;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::access::Access;
use super::body::{Heard, SILENCE};
use super::pool::{Pool, Shared};
use super::trouble::{Failure, Place};

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<Heard<Incoming, Held>>;
type Answering = Pin<Box<dyn Future<Output = Result<Answer, Error>> + Send>>;

/// What has to live as long as the body of an answer.
pub(super) enum Held {
    /// The connection of this request alone: it is closed when nobody can ask any more.
    Own(#[expect(dead_code, reason = "held")] http1::SendRequest<Asked>),
    /// A stream of a shared one.
    Shared(#[expect(dead_code, reason = "held")] Shared),
}

/// What the last answer said besides its body, which is all that kube's errors tell of it.
#[derive(Clone, Debug, Default)]
pub struct LastAnswer(Arc<(AtomicU16, AtomicU64)>);

impl LastAnswer {
    /// Its status; 0 where there was no answer.
    pub(super) fn status(&self) -> u16 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// How long to stay away; zero where it said nothing of it.
    pub(super) fn retry_after(&self) -> Duration {
        Duration::from_secs(self.0.1.load(Ordering::Relaxed))
    }

    /// Whole seconds are what the API server sends; a date, which it does not, counts as nothing said.
    fn heard(&self, status: u16, headers: &HeaderMap) {
        let seconds =
            headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        self.0.0.store(status, Ordering::Relaxed);
        self.0.1.store(seconds.unwrap_or(0), Ordering::Relaxed);
    }
}

/// A client, where its server is, and what that said last.
pub struct Opened {
    /// Sends requests.
    pub client: Client,
    /// Of the last request of this client.
    pub last: LastAnswer,
    /// For texts.
    pub place: Arc<Place>,
}

/// How a client comes to a connection.
pub trait Door {
    /// A client for one purpose.
    ///
    /// # Errors
    ///
    /// Why there is no way to an API server, in a sentence.
    fn open(&self) -> impl Future<Output = Result<Opened, String>>;
}

/// A connection for each request; kubeconfig, authority and client certificate are read again for each client.
#[derive(Clone, Copy, Debug)]
pub struct EachTime;

impl Door for EachTime {
    async fn open(&self) -> Result<Opened, String> {
        let access = Access::find().await?;
        let (place, namespace) = (Arc::clone(&access.place), access.namespace.clone());
        Ok(opened(Way::Own(Arc::new(access)), place, &namespace))
    }
}

impl Door for Pool {
    async fn open(&self) -> Result<Opened, String> {
        let access = self.access().await?;
        let (place, namespace) = (Arc::clone(&access.place), access.namespace.clone());
        Ok(opened(Way::Shared(self.clone()), place, &namespace))
    }
}

fn opened(way: Way, place: Arc<Place>, namespace: &str) -> Opened {
    let last = LastAnswer::default();
    let client = Client::new(ApiServer { way, last: last.clone() }, namespace);
    Opened { client, last, place }
}

/// Whose connections are used.
#[derive(Clone)]
enum Way {
    Own(Arc<Access>),
    Shared(Pool),
}

/// The service that kube's client sends its requests through.
struct ApiServer {
    way: Way,
    last: LastAnswer,
}

impl tower_service::Service<Request<Asked>> for ApiServer {
    type Response = Answer;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Asked>) -> Answering {
        let (way, last) = (self.way.clone(), self.last.clone());
        Box::pin(async move {
            last.heard(0, &HeaderMap::new());
            let answer = match way {
                Way::Own(access) => alone(&access, request).await?,
                Way::Shared(pool) => pool.send(request).await?,
            };
            last.heard(answer.status().as_u16(), answer.headers());
            Ok(answer)
        })
    }
}

/// Sends a request over a connection of its own.
pub(super) async fn alone(access: &Access, request: Request<Asked>) -> Result<Answer, Failure> {
    let request = addressed(access, request, Version::Http1)?;
    let mut sender = match connect(access, Version::Http1).await? {
        Stream::Plain(stream) => handshake(stream).await?,
        Stream::Tls(stream) => handshake(*stream).await?,
    };
    let answer = in_time(sender.send_request(request)).await?;
    Ok(answer.map(|body| Heard::new(body, Held::Own(sender))))
}

/// Waits for the head of an answer.
pub(super) async fn in_time<T>(answer: impl Future<Output = hyper::Result<T>>) -> Result<T, Failure> {
    let answer = timeout(SILENCE, answer).await.map_err(|_| Failure::Silent(SILENCE.as_secs()))?;
    answer.map_err(Failure::Http)
}

/// The version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// The request as this server has to get it: its address, the credential, the path before its own.
pub(super) fn addressed(
    access: &Access,
    mut request: Request<Asked>,
    version: Version,
) -> Result<Request<Asked>, Failure> {
    let authority = match access.host.contains(':') {
        true => format!("[{}]:{}", access.host, access.port),
        false => format!("{}:{}", access.host, access.port),
    };
    if let Some(authorization) = access.authorization().map_err(Failure::Access)? {
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
    }
    // A cluster may be behind a path; what kube asks for begins with /api.
    let base = access.url.path().trim_end_matches('/');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let target = match version {
        Version::Http1 => {
            let host = HeaderValue::try_from(authority);
            let host = host.map_err(|error| Failure::Access(error.to_string()))?;
            request.headers_mut().insert(header::HOST, host);
            format!("{base}{target}")
        }
        Version::Http2 => format!("https://{authority}{base}{target}"),
    };
    let target = target.parse().map_err(|error: http::uri::InvalidUri| Failure::Request(error.into()))?;
    *request.uri_mut() = target;
    Ok(request)
}

/// A connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The version that the server has chosen.
    pub(super) fn version(&self) -> Version {
        match self {
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => Version::Http2,
            Stream::Plain(_) | Stream::Tls(_) => Version::Http1,
        }
    }
}

/// Connects, and offers this version and the ones before it.
pub(super) async fn connect(access: &Access, offered: Version) -> Result<Stream, Failure> {
    let late =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT.as_secs()));
    let tcp = timeout(CONNECT, TcpStream::connect((access.host.as_str(), access.port))).await;
    let tcp = tcp.unwrap_or_else(|_| Err(late())).map_err(Failure::Connect)?;
    // Otherwise the body of a request waits for the acknowledgment of its head, up to 40 ms.
    let _ = tcp.set_nodelay(true);
    let Some((config, name)) = &access.tls else { return Ok(Stream::Plain(tcp)) };
    let mut config = Arc::clone(config);
    if offered == Version::Http2 {
        Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    let tls = timeout(CONNECT, TlsConnector::from(config).connect(name.clone(), tcp)).await;
    let tls = tls.unwrap_or_else(|_| Err(late())).map_err(Failure::Tls)?;
    Ok(Stream::Tls(Box::new(tls)))
}

async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Asked>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Failure::Http)?;
    tokio::spawn(async move {
        // The body says how it ended, or the request that is under way.
        let _ = connection.await;
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_to_stay_away_are_heard_and_forgotten_with_the_next_answer() {
        let last = LastAnswer::default();
        for (value, seconds) in [("7", 7), ("soon", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), (" 3 ", 3)] {
            let headers = [(header::RETRY_AFTER, HeaderValue::from_static(value))].into_iter().collect();
            last.heard(429, &headers);
            assert_eq!((last.status(), last.retry_after()), (429, Duration::from_secs(seconds)), "{value}");
        }
        last.heard(200, &HeaderMap::new());
        assert_eq!((last.status(), last.retry_after()), (200, Duration::ZERO));
    }
}
