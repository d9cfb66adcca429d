//! Connections as Go's client makes them: TLS by the URL, `h2` or `http/1.1` as the app chooses, two kept.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::failure::{Failure, Kind, Phase};
use super::place::Place;
use super::trust::{Trust, connector};

/// Go keeps so many idle HTTP/1 connections to a host; OpenIM leaves that at its default.
const KEPT_CONNECTIONS: usize = 2;

/// How long a second look may take that tells a port with TLS from one without.
const PROBE: Duration = Duration::from_secs(2);

/// A connection that can send.
#[derive(Clone, Debug)]
pub(super) enum Sender {
    H1(Rc<RefCell<http1::SendRequest<Full<Bytes>>>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

/// A connection, and the first byte that came over it where that can be seen.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) sender: Sender,
    pub(super) first: Rc<Cell<Option<u8>>>,
    pub(super) reused: bool,
}

/// Makes connections to one place, and keeps them as Go does.
pub(super) struct Dialer {
    pub(super) place: Place,
    tls: Option<TlsConnector>,
    kept: RefCell<Vec<Connection>>,
    shared: RefCell<Option<Connection>>,
    /// What a second look at the port showed: that it speaks the other protocol.
    other: Cell<Option<bool>>,
}

impl Dialer {
    /// A dialer; the error names the flag that is wrong.
    pub(super) fn new(place: Place, trust: &Trust) -> Result<Dialer, String> {
        let tls = if place.tls { Some(connector(trust)?) } else { None };
        Ok(Dialer {
            place,
            tls,
            kept: RefCell::default(),
            shared: RefCell::default(),
            other: Cell::default(),
        })
    }

    /// A kept connection, or a new one.
    pub(super) async fn connection(&self, phase: &Cell<Phase>) -> Result<Connection, Failure> {
        if let Some(shared) = self.shared.borrow_mut().take_if(|shared| shared.is_closed()) {
            drop(shared);
        }
        if let Some(shared) = &*self.shared.borrow() {
            return Ok(Connection { reused: true, ..shared.clone() });
        }
        loop {
            // The borrow ends here: a connection that is looked at may be given up.
            let kept = self.kept.borrow_mut().pop();
            match kept {
                Some(kept) if kept.is_closed() => {}
                Some(kept) => return Ok(Connection { reused: true, ..kept }),
                None => return self.dial(phase).await,
            }
        }
    }

    /// Gives up the connection that is shared, which turned out to be closed.
    pub(super) fn forget(&self, connection: &Connection) {
        if matches!(connection.sender, Sender::H2(_)) {
            self.shared.borrow_mut().take();
        }
    }

    /// Takes a connection back behind an answer that was read whole.
    pub(super) async fn keep(&self, connection: Connection) {
        let Sender::H1(sender) = &connection.sender else { return };
        let ready = std::future::poll_fn(|cx| sender.borrow_mut().poll_ready(cx)).await.is_ok();
        if ready && self.kept.borrow().len() < KEPT_CONNECTIONS {
            self.kept.borrow_mut().push(connection);
        }
    }

    async fn dial(&self, phase: &Cell<Phase>) -> Result<Connection, Failure> {
        phase.set(Phase::Connecting);
        let stream = self.stream().await?;
        let first = Rc::new(Cell::new(None));
        let Some(tls) = &self.tls else {
            let stream = Watched { stream, first: Rc::clone(&first) };
            return Ok(Connection { sender: http1(stream).await?, first, reused: false });
        };
        phase.set(Phase::Greeting);
        let stream = tls.connect(self.name()?, stream).await;
        let stream = stream.map_err(|error| Failure::handshake(&self.place, &error))?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if !h2 {
            return Ok(Connection { sender: http1(stream).await?, first, reused: false });
        }
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| Failure::malformed(&error.to_string()))?;
        tokio::task::spawn_local(async move { drop(connection.await) });
        let connection = Connection { sender: Sender::H2(sender), first, reused: false };
        *self.shared.borrow_mut() = Some(connection.clone());
        Ok(connection)
    }

    async fn stream(&self) -> Result<TcpStream, Failure> {
        let Place { host, port, .. } = &self.place;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let addresses = found.map_err(|_| Failure::unknown_host(&self.place))?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Go sets it too; without it the last segment of a body waits for an acknowledgement.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(error) => Failure::connecting(&self.place, &error),
            None => Failure::unknown_host(&self.place),
        })
    }

    fn name(&self) -> Result<ServerName<'static>, Failure> {
        ServerName::try_from(self.place.host.clone()).map_err(|_| Failure::unknown_host(&self.place))
    }

    /// Looks a second time at a failure that may be TLS where plain HTTP was expected, or the other way round.
    pub(super) async fn diagnosed(&self, failure: Failure) -> Failure {
        let plain = self.tls.is_none();
        let doubtful = match failure.kind {
            Kind::Closed | Kind::Malformed | Kind::Cut => plain,
            Kind::Tls | Kind::Timeout(Phase::Greeting) => !plain,
            Kind::UnknownHost
            | Kind::Refused
            | Kind::Unreachable
            | Kind::NotTls
            | Kind::IsTls
            | Kind::Untrusted
            | Kind::WrongName
            | Kind::WrongTime
            | Kind::BadCertificate
            | Kind::Timeout(_)
            | Kind::TooLarge
            | Kind::BadGzip => false,
        };
        if !doubtful {
            return failure;
        }
        match self.speaks_the_other().await {
            true if plain => Failure::is_tls(&self.place),
            true => Failure::not_tls(&self.place),
            false => failure,
        }
    }

    /// Whether a port that was asked in plain HTTP, and answered that this is a bad request, speaks TLS.
    pub(super) async fn wants_tls(&self) -> bool {
        self.tls.is_none() && self.speaks_the_other().await
    }

    /// Whether the port speaks TLS where plain HTTP was asked for, or the other way round; looked at once.
    async fn speaks_the_other(&self) -> bool {
        if let Some(known) = self.other.get() {
            return known;
        }
        let look =
            async { if self.tls.is_none() { self.speaks_tls().await } else { self.speaks_http().await } };
        let seen = timeout(PROBE, look).await == Ok(true);
        self.other.set(Some(seen));
        seen
    }

    async fn speaks_tls(&self) -> bool {
        let (Ok(stream), Ok(name)) = (self.stream().await, self.name()) else { return false };
        let Ok(connector) = connector(&Trust::Anyone) else { return false };
        connector.connect(name, stream).await.is_ok()
    }

    async fn speaks_http(&self) -> bool {
        let Ok(mut stream) = self.stream().await else { return false };
        let request =
            format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.place.authority);
        let mut begin = [0; 5];
        stream.write_all(request.as_bytes()).await.is_ok()
            && stream.read_exact(&mut begin).await.is_ok()
            && &begin == b"HTTP/"
    }
}

impl Connection {
    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.borrow().is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }
}

async fn http1<S>(stream: S) -> Result<Sender, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = http1::Builder::new();
    // Go writes `Operationid` and so on.
    builder.title_case_headers(true);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::malformed(&error.to_string()))?;
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(Sender::H1(Rc::new(RefCell::new(sender))))
}

/// A stream whose first byte is remembered: a TLS alert begins with 21, HTTP with a letter.
struct Watched<S> {
    stream: S,
    first: Rc<Cell<Option<u8>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if self.first.get().is_none() {
            self.first.set(buffer.filled().get(before).copied());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
