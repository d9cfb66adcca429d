//! A connection's stream: what it is doing, and when a head on it has taken too long.

use std::cell::Cell;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

use super::rarely::Gate;
use crate::wire;

/// The client's half of the HTTP/2 preface (RFC 9113, section 3.4).
const H2_PREFACE_BYTES: usize = 24;

/// What a connection is doing, seen by its stream, its service and whoever drives it.
pub(super) struct Activity {
    pub(super) h2: bool,
    /// Requests being answered.
    pub(super) active: Cell<usize>,
    /// When the last answer ended, or the connection began.
    pub(super) quiet_since: Cell<Instant>,
    /// Bytes read since the last request began or ended: a head under way.
    unread_head: Cell<usize>,
    /// Whether the end was announced, or is with the next answer.
    pub(super) ending: Cell<bool>,
    /// Whether a request ever came.
    served: Cell<bool>,
}

impl Activity {
    pub(super) fn new(h2: bool) -> Activity {
        Activity {
            h2,
            active: Cell::new(0),
            quiet_since: Cell::new(Instant::now()),
            unread_head: Cell::new(0),
            ending: Cell::new(false),
            served: Cell::new(false),
        }
    }

    pub(super) fn begin(self: &Rc<Self>) -> Active {
        self.active.set(self.active.get() + 1);
        self.unread_head.set(0);
        self.served.set(true);
        Active(Rc::clone(self))
    }

    /// Whether the caller owes us the rest of something: over HTTP/1 a head that has begun, over HTTP/2 the preface. (A
    /// later frame that stalls there costs the caller its connection, whose age is bounded.)
    fn owes(&self) -> bool {
        let unread = self.unread_head.get();
        if self.h2 {
            !self.served.get() && unread < H2_PREFACE_BYTES
        } else {
            self.active.get() == 0 && unread > 0
        }
    }
}

/// A request being answered, until it is dropped.
pub(super) struct Active(Rc<Activity>);

impl Deref for Active {
    type Target = Activity;

    fn deref(&self) -> &Activity {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
        self.0.quiet_since.set(Instant::now());
        self.0.unread_head.set(0);
    }
}

/// A caller's socket. TLS hands it one record at a time, as a vector of one.
pub(super) struct Caller(pub(super) TcpStream);

impl AsyncRead for Caller {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Caller {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        wire::poll_write_slices(&mut self.get_mut().0, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// A caller's stream that ends when a head takes too long. The time runs from its first byte, so that an idle
/// connection is left alone.
pub(super) struct Watched {
    pub(super) stream: TlsStream<Caller>,
    pub(super) activity: Rc<Activity>,
    pub(super) limit: Duration,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    /// hyper reads several times a callback; the socket has something once.
    pub(super) readable: Gate,
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let stream = Pin::new(&mut this.stream);
        let read = this.readable.poll(cx, |cx| stream.poll_read(cx, buffer));
        let activity = &this.activity;
        if read.is_ready() {
            activity.unread_head.set(activity.unread_head.get() + buffer.filled().len() - before);
            return read;
        }
        if !activity.owes() {
            this.timer = None;
            return Poll::Pending;
        }
        let limit = this.limit;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until((Instant::now() + limit).into())));
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, "the head took too long")))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
