//! A caller's socket, below TLS: what may be read of it in one go, in its handshake and after it.
//!
//! What TLS makes of the bytes is not known here, so records are counted by their headers. A record without plaintext costs
//! its sender 27 bytes and a worker 3 us (new keys), and TLS looks for more as long as it has no plaintext.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::records::Wire;
use crate::wire;

/// Most bytes of a ClientHello. Go's has 300 to 1,700; each name and each key that a caller offers adds some.
const CLIENT_HELLO_BYTES: usize = 16 << 10;

/// Most bytes from a caller for the rest of its handshake: another ClientHello if the first one offers no key that the guard has, and a few
/// hundred bytes. TLS buffers them.
const REST_OF_HANDSHAKE_BYTES: usize = 8 << 10;

/// The same with a client certificate: real chains have 2 to 8 KB, one of four certificates with post-quantum keys some 20.
const REST_WITH_CERTIFICATE_BYTES: usize = 32 << 10;

/// A caller's socket. TLS hands it one record at a time, as a vector of one. It belongs to the runtime of one thread, and
/// has to leave that to get to another.
pub(super) struct Caller {
    socket: Socket,
    wire: Wire,
}

enum Socket {
    /// In its handshake.
    Accepting(TcpStream, Phase),
    /// On its way.
    Between(std::net::TcpStream),
    /// At its worker.
    Serving(TcpStream),
    /// It could not be moved.
    Lost,
}

/// How many more bytes the handshake may take.
#[derive(Clone, Copy)]
enum Phase {
    Hello(usize),
    Rest(usize),
}

impl Caller {
    /// A socket whose ClientHello comes now.
    pub(super) fn accepted(stream: TcpStream) -> Caller {
        Caller { socket: Socket::Accepting(stream, Phase::Hello(CLIENT_HELLO_BYTES)), wire: Wire::new() }
    }

    /// The ClientHello has been read, and the answer asks for a certificate or not.
    pub(super) fn greeted(&mut self, certificate: bool) {
        if let Socket::Accepting(_, phase) = &mut self.socket {
            let most = if certificate { REST_WITH_CERTIFICATE_BYTES } else { REST_OF_HANDSHAKE_BYTES };
            *phase = Phase::Rest(most);
            self.wire.received();
        }
    }

    /// Why a handshake that waits for more gets no more.
    pub(super) fn handshake_fault(&self) -> Option<io::Error> {
        matches!(self.socket, Socket::Accepting(_, Phase::Rest(0))).then(too_long)
    }

    /// Whether the caller has closed its side, and no byte of it is left to read.
    pub(super) fn has_left(&mut self) -> bool {
        let Ok(stream) = self.stream() else { return true };
        // Asked of the system: it costs a microsecond, and the answer that nobody would read a hundred.
        matches!(SockRef::from(&*stream).peek(&mut [MaybeUninit::uninit()]), Ok(0))
    }

    /// Leaves the runtime of this thread.
    pub(super) fn leave(&mut self) -> io::Result<()> {
        let (Socket::Accepting(stream, _) | Socket::Serving(stream)) =
            std::mem::replace(&mut self.socket, Socket::Lost)
        else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        self.socket = Socket::Between(stream.into_std()?);
        Ok(())
    }

    /// Joins the runtime of this thread.
    pub(super) fn arrive(&mut self) -> io::Result<()> {
        let Socket::Between(stream) = std::mem::replace(&mut self.socket, Socket::Lost) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        self.socket = Socket::Serving(TcpStream::from_std(stream)?);
        self.wire.begin();
        Ok(())
    }

    /// What comes and goes on the wire.
    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Bytes that the kernel took.
    pub(super) fn sent(&self) -> u64 {
        self.wire.sent()
    }

    fn stream(&mut self) -> io::Result<&mut TcpStream> {
        match &mut self.socket {
            Socket::Serving(stream) | Socket::Accepting(stream, _) => Ok(stream),
            Socket::Between(_) | Socket::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn too_long() -> io::Error {
    let long = rustls::Error::General("the handshake is too long".to_owned());
    io::Error::new(io::ErrorKind::InvalidData, long)
}

impl AsyncRead for Caller {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Caller { socket, wire } = self.get_mut();
        let (stream, mut phase) = match socket {
            Socket::Serving(stream) => (stream, None),
            Socket::Accepting(stream, phase) => (stream, Some(phase)),
            Socket::Between(_) | Socket::Lost => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        let mut most = wire.read_limit();
        match phase.as_deref() {
            None => {}
            Some(Phase::Hello(0)) => return Poll::Ready(Err(too_long())),
            // If the handshake is done, the rest is the worker's; else whoever polls it finds the fault.
            Some(Phase::Rest(0)) => return Poll::Pending,
            Some(Phase::Hello(left) | Phase::Rest(left)) => most = most.min(*left),
        }
        if !wire.may_read() {
            if phase.is_some() {
                // Nobody asks in a handshake: it goes on in the next pass.
                wire.received();
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        if buffer.remaining() <= most {
            ready!(Pin::new(stream).poll_read(cx, buffer))?;
        } else {
            // What TLS hands down has been initialized: this fills nothing with zeros.
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
            ready!(Pin::new(stream).poll_read(cx, &mut part))?;
            let count = part.filled().len();
            buffer.advance(count);
        }
        let read = &buffer.filled()[before..];
        wire.read(read);
        if let Some(Phase::Hello(left) | Phase::Rest(left)) = &mut phase {
            *left -= read.len();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Caller {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(Pin::new(this.stream()?).poll_write(cx, bytes))?;
        this.wire.wrote(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().stream()?).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().stream()?).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let count = ready!(wire::poll_write_slices(this.stream()?, cx, slices))?;
        this.wire.wrote(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
