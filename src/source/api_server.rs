//! The way to the API server, for kube's client: a connection for each request, over our own TLS.
//!
//! A sidecar asks for one object and then watches it for an hour, so there is nothing to pool. kube's own stack for this
//! (a pool, a connector, the platform's trust store) would be a fifth of the binary.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body as Asked;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::access::Access;
use super::trouble::Failure;

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection with nothing on it for so long is dead: the API server sends a bookmark each minute, give or take.
const SILENCE: Duration = Duration::from_secs(150);

/// A ConfigMap holds at most 1 MiB, of which JSON makes 6 MiB at the worst; a line, or a list, is no longer.
const LINE_LIMIT_BYTES: usize = 8 << 20;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Heard<Incoming>>, Error>> + Send>>;

/// What the last answer said besides its body, which is all that kube's errors tell of it.
#[derive(Clone, Debug, Default)]
pub(super) struct LastAnswer(Arc<(AtomicU16, AtomicU64)>);

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

/// A client for this access, and what its server said last.
pub(super) fn client(access: Access) -> (Client, LastAnswer) {
    let last = LastAnswer::default();
    let namespace = access.namespace.clone();
    let service = ApiServer { access: Arc::new(access), last: last.clone() };
    (Client::new(service, namespace), last)
}

/// The service that kube's client sends its requests through.
struct ApiServer {
    access: Arc<Access>,
    last: LastAnswer,
}

impl tower_service::Service<Request<Asked>> for ApiServer {
    type Response = Response<Heard<Incoming>>;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Asked>) -> Answering {
        let (access, last) = (Arc::clone(&self.access), self.last.clone());
        Box::pin(async move { Ok(ask(&access, &last, request).await?) })
    }
}

async fn ask(
    access: &Access,
    last: &LastAnswer,
    mut request: Request<Asked>,
) -> Result<Response<Heard<Incoming>>, Failure> {
    let wrong = |error: &dyn std::fmt::Display| Failure::Token(error.to_string());
    last.heard(0, &HeaderMap::new());
    let authority = match access.host.contains(':') {
        true => format!("[{}]:{}", access.host, access.port),
        false => format!("{}:{}", access.host, access.port),
    };
    let host = HeaderValue::try_from(authority).map_err(|error| wrong(&error))?;
    request.headers_mut().insert(header::HOST, host);
    if let Some(authorization) = access.authorization().map_err(Failure::Token)? {
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
    }
    // A cluster may be behind a path; what kube asks for begins with /api.
    let base = access.url.path().trim_end_matches('/');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = format!("{base}{target}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| Failure::Request(error.into()))?;
    let mut sender = connect(access).await?;
    let silent = || Failure::Silent(SILENCE.as_secs());
    let answer =
        timeout(SILENCE, sender.send_request(request)).await.map_err(|_| silent())?.map_err(Failure::Http)?;
    last.heard(answer.status().as_u16(), answer.headers());
    // The sender goes along: its connection ends when nobody can ask any more.
    Ok(answer.map(|body| Heard::new(body, Some(sender))))
}

async fn connect(access: &Access) -> Result<http1::SendRequest<Asked>, Failure> {
    let late =
        || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT.as_secs()));
    let tcp = timeout(CONNECT, TcpStream::connect((access.host.as_str(), access.port))).await;
    let tcp = tcp.unwrap_or_else(|_| Err(late())).map_err(Failure::Connect)?;
    match &access.tls {
        None => handshake(tcp).await,
        Some((connector, name)) => {
            let tls = timeout(CONNECT, connector.connect(name.clone(), tcp)).await;
            handshake(tls.unwrap_or_else(|_| Err(late())).map_err(Failure::Tls)?).await
        }
    }
}

async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Asked>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Failure::Http)?;
    tokio::spawn(async move {
        // How it ended is told by the body, or by the request that is under way.
        let _ = connection.await;
    });
    Ok(sender)
}

/// An answer's body that ends with an error when nothing comes for too long, or a line has no end.
struct Heard<B> {
    body: B,
    silence: Pin<Box<Sleep>>,
    /// Bytes since the last end of a line.
    line: usize,
    _sender: Option<http1::SendRequest<Asked>>,
}

impl<B> Heard<B> {
    fn new(body: B, sender: Option<http1::SendRequest<Asked>>) -> Heard<B> {
        Heard { body, silence: Box::pin(sleep(SILENCE)), line: 0, _sender: sender }
    }
}

impl<B> Body for Heard<B>
where
    B: Body<Data = Bytes, Error: Into<Error>> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            return this
                .silence
                .as_mut()
                .poll(cx)
                .map(|()| Some(Err(Failure::Silent(SILENCE.as_secs()).into())));
        };
        this.silence.as_mut().reset(Instant::now() + SILENCE);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match data.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => this.line = data.len() - end - 1,
                None => this.line += data.len(),
            }
            if this.line > LINE_LIMIT_BYTES {
                return Poll::Ready(Some(Err(Failure::TooLong(LINE_LIMIT_BYTES).into())));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::advance;

    use super::*;

    /// A body that the test feeds.
    fn fed() -> (
        futures::channel::mpsc::UnboundedSender<Bytes>,
        Heard<impl Body<Data = Bytes, Error = Infallible> + Unpin>,
    ) {
        use futures::StreamExt as _;
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        (sender, Heard::new(StreamBody::new(receiver.map(|data| Ok(Frame::data(data)))), None))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_a_byte_is_dead_after_its_time_and_one_with_bookmarks_is_not() {
        let (sender, mut heard) = fed();
        let begun = Instant::now();
        for _ in 0..5 {
            advance(Duration::from_secs(60)).await;
            sender.unbounded_send(Bytes::from_static(b"{}\n")).expect("the body listens");
            assert!(matches!(heard.frame().await, Some(Ok(_))), "a bookmark a minute keeps it alive");
        }
        // The clock runs ahead by itself while there is nothing else to do.
        let error = heard.frame().await.expect("not an end").expect_err("dead");
        assert_eq!(begun.elapsed().as_secs(), 5 * 60 + 150);
        assert!(error.to_string().contains("150 s"), "{error}");
        drop(sender);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_refused_and_long_watches_of_lines_are_not() {
        let (sender, mut heard) = fed();
        let mebibyte = Bytes::from(vec![b' '; 1 << 20]);
        let mut line = vec![b' '; 1 << 20];
        line.push(b'\n');
        for _ in 0..20 {
            sender.unbounded_send(line.clone().into()).expect("the body listens");
            assert!(matches!(heard.frame().await, Some(Ok(_))));
        }
        for _ in 0..8 {
            sender.unbounded_send(mebibyte.clone()).expect("the body listens");
            assert!(matches!(heard.frame().await, Some(Ok(_))));
        }
        sender.unbounded_send(mebibyte).expect("the body listens");
        assert!(heard.frame().await.expect("not an end").is_err());
    }

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
