//! A connection to the app: writes a request, reads the head and the body of its answer.

use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use http::StatusCode;
use socket2::SockRef;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};

use super::delivery::TcpInfo;
use super::dial::Dialer;
use super::framing::{Chunks, Framing, Head, NoHead, parse_head};
use super::outcome::Failure;
use super::reuse::Usage;
use super::stream::Stream;
use crate::held::Holding;
use crate::turns::Turn;
use crate::verdict::Invalid;
use crate::wire;

/// The plainest congestion control there is, which every Linux has and any process may choose. Loopback loses nothing and has no
/// rate to find out; where the system's choice is BBR its model and its pacing timers are work for nothing.
pub(super) const LOOPBACK_CONGESTION: &[u8] = b"reno";

/// How the answer of a server begins that closes an idle connection.
const TIMED_OUT: [&[u8; 12]; 2] = [b"HTTP/1.1 408", b"HTTP/1.0 408"];

/// Most interim (1xx) answers before the real one.
pub(super) const INTERIM_LIMIT: usize = 16;

/// How much is read at once.
pub(super) const READ_CHUNK: usize = 8 << 10;

/// A request as it goes out.
pub(super) struct Request<'b> {
    pub(super) head: Vec<u8>,
    pub(super) body: &'b [u8],
    /// What its callback holds.
    pub(super) share: &'b Holding,
}

/// A connection to the app, and what was read beyond what was asked for.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Stream,
    pub(super) buffer: BytesMut,
    /// Bytes written since the start, on top of what the kernel counted as acknowledged then (the handshake).
    pub(super) written: u64,
    /// How it was used since its last rest.
    pub(super) usage: Usage,
    local: bool,
}

/// What there is to read on a connection before a request is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// The app closed it. It may have said so: a server may send 408 before it closes an idle connection (RFC 9110,
    /// section 15.5.9), as HAProxy does.
    End,
    /// Bytes that no request was waiting for.
    Unsolicited,
}

impl Connection {
    pub(super) async fn open(dialer: &Dialer) -> io::Result<Connection> {
        let stream = dialer.dial().await?;
        let (mut written, mut local) = (0, true);
        if let Stream::Tcp(tcp) = &stream {
            // Without the option the socket still works, a little later.
            let _ = tcp.set_nodelay(true);
            local = tcp.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
            if local {
                let _ = SockRef::from(tcp).set_tcp_congestion(LOOPBACK_CONGESTION);
            }
            written = TcpInfo::of(tcp.as_fd()).map_or(0, |info| info.bytes_acked);
        }
        let usage = Usage::new(Instant::now());
        Ok(Connection { stream, buffer: BytesMut::new(), written, usage, local })
    }

    /// What there is to read. Asks the kernel: what the runtime knows of the socket is as old as its last look.
    pub(super) fn found(&self) -> Found {
        let socket = self.socket();
        match socket.peek(&mut [MaybeUninit::uninit()]) {
            Ok(0) => Found::End,
            Ok(_) => {
                let mut start = [0; TIMED_OUT[0].len()];
                let count = (&*socket).read(&mut start).unwrap_or(0);
                let end = TIMED_OUT.iter().any(|status| start[..count] == status[..]);
                if end { Found::End } else { Found::Unsolicited }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Found::Nothing,
            Err(_) => Found::End,
        }
    }

    /// Acknowledges all that was read, so that the app's kernel holds nothing back (Nagle's algorithm). Costs 2.3 us. A unix socket has
    /// no such delay.
    pub(super) fn acknowledge(&self) {
        if let Stream::Tcp(_) = self.stream {
            // Without the option the kernel acknowledges a little later.
            let _ = self.socket().set_tcp_quickack(true);
        }
    }

    /// Whether the app is on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.local
    }

    fn socket(&self) -> SockRef<'_> {
        match &self.stream {
            Stream::Tcp(tcp) => SockRef::from(tcp),
            Stream::Unix(unix) => SockRef::from(unix),
        }
    }

    pub(super) fn proves_unread(&self, before: u64) -> bool {
        match &self.stream {
            Stream::Tcp(tcp) => TcpInfo::of(tcp.as_fd()).is_ok_and(|info| info.proves_unread(before)),
            Stream::Unix(_) => false,
        }
    }

    /// Writes the request; an app that answers before it has read it all is listened to.
    pub(super) async fn send(&mut self, (head, body): (&[u8], &[u8]), head_limit: usize) -> io::Result<()> {
        let mut rest = bytes::Buf::chain(head, body);
        let mut begun = false;
        while rest.has_remaining() {
            let mut slices = [IoSlice::new(&[]), IoSlice::new(&[])];
            let count = rest.chunks_vectored(&mut slices);
            let (stream, buffer) = (&mut self.stream, &mut self.buffer);
            // What comes before a byte of the request is written is no answer to it.
            let early = begun && buffer.len() < head_limit;
            let written = std::future::poll_fn(|cx| {
                if let Poll::Ready(written) = wire::poll_write_slices(&mut *stream, cx, &slices[..count]) {
                    return Poll::Ready(written.map(Some));
                }
                // The app's side is full. If it is talking meanwhile, it has an answer and wants no more.
                if early && let Poll::Ready(read) = poll_some(stream, buffer, cx) {
                    return Poll::Ready(read.map(|_| None));
                }
                Poll::Pending
            })
            .await?;
            match written {
                Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                Some(count) => {
                    rest.advance(count);
                    begun = true;
                    self.written += count as u64;
                }
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(())
    }

    /// Reads the head of the answer, past interim ones.
    pub(super) async fn head(&mut self, limit: usize) -> Result<Head, NoHead> {
        let mut interim = 0;
        loop {
            let (length, head) = loop {
                if !self.buffer.is_empty() {
                    match parse_head(&self.buffer)? {
                        Some(found) => break found,
                        None if self.buffer.len() >= limit => {
                            return Err(NoHead::NotHttp(format!("a head of more than {limit} bytes")));
                        }
                        None => {}
                    }
                }
                let begun = interim > 0 || !self.buffer.is_empty();
                match self.more().await {
                    Ok(0) if begun => return Err(NoHead::Cut),
                    Ok(0) => return Err(NoHead::Ended),
                    Ok(_) => {}
                    Err(_) if begun => return Err(NoHead::Cut),
                    Err(error) => return Err(NoHead::Reset(error)),
                }
            };
            self.buffer.advance(length);
            if length > READ_CHUNK {
                // What a long head took is not kept with the body.
                self.buffer = BytesMut::from(&self.buffer[..]);
            }
            if head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(NoHead::NotHttp("101, and nobody asked for another protocol".to_owned()));
            }
            if !head.status.is_informational() {
                return Ok(head);
            }
            interim += 1;
            if interim > INTERIM_LIMIT {
                return Err(NoHead::NotHttp(format!("more than {INTERIM_LIMIT} interim answers")));
            }
        }
    }

    /// Reads the body to its end.
    pub(super) async fn body(
        &mut self,
        framing: Framing,
        limit: usize,
        share: &Holding,
        mut turn: Turn,
    ) -> Result<(Bytes, Holding), Failure> {
        const CUT: Failure = Failure::Cut { at: "inside the body of its answer" };
        let too_large = || Failure::Invalid(Invalid::TooLarge { limit });
        let mut holding = share.nothing_for_answer();
        let mut hold = |bytes: usize| holding.grow_with_body(0, bytes).map_err(Failure::Overloaded);
        let body = match framing {
            Framing::Length(length) if length > limit => return Err(too_large()),
            Framing::Length(length) => {
                hold(length)?;
                // Room for what is announced is made as it comes: an announcement costs the app nothing.
                while self.buffer.len() < length {
                    self.make_room(length);
                    if !matches!(self.more_in_turn(&mut turn).await, Ok(1..)) {
                        return Err(CUT);
                    }
                }
                self.take(length, length)
            }
            Framing::UntilEnd => loop {
                let room = wire::room(self.buffer.len(), limit);
                hold(room)?;
                if self.buffer.len() > limit {
                    return Err(too_large());
                }
                self.make_room(limit);
                match self.more_in_turn(&mut turn).await {
                    Ok(0) => break self.take(self.buffer.len(), room),
                    Ok(_) => {}
                    Err(_) => return Err(CUT),
                }
            },
            Framing::Chunked => {
                let mut body = Vec::new();
                let mut chunks = Chunks::Size;
                loop {
                    // What is there may all be of the body.
                    let there = body.len() + self.buffer.len();
                    if there > body.capacity() {
                        let room = wire::room(there, limit);
                        hold(room + self.buffer.len())?;
                        body.reserve_exact(room - body.len());
                    }
                    let done = chunks.take(&mut self.buffer, &mut body).map_err(Failure::NotHttp)?;
                    if body.len() > limit {
                        return Err(too_large());
                    }
                    if done {
                        break body.into();
                    }
                    if !matches!(self.more_in_turn(&mut turn).await, Ok(1..)) {
                        return Err(CUT);
                    }
                }
            }
        };
        Ok((body, holding))
    }

    /// Reads a body that nobody looks at to its end; `false` if it has none within so many bytes.
    pub(super) async fn skip_body(&mut self, framing: Framing, limit: usize, mut turn: Turn) -> bool {
        let mut chunks = Chunks::Size;
        let mut skipped = Vec::new();
        let mut seen = 0;
        loop {
            let done = match framing {
                Framing::UntilEnd => return false,
                Framing::Length(length) => {
                    let count = self.buffer.len().min(length - seen);
                    self.buffer.advance(count);
                    seen += count;
                    seen == length
                }
                Framing::Chunked => {
                    let Ok(done) = chunks.take(&mut self.buffer, &mut skipped) else { return false };
                    seen += skipped.len();
                    skipped.clear();
                    done
                }
            };
            if done {
                return true;
            }
            if seen > limit || !matches!(self.more_in_turn(&mut turn).await, Ok(1..)) {
                return false;
            }
        }
    }

    /// A small body is copied, so that the connection keeps its buffer; a large one takes the buffer along, of which the connection
    /// then keeps nothing. `room` is what was counted for it: a buffer with much more stays.
    fn take(&mut self, length: usize, room: usize) -> Bytes {
        if length <= READ_CHUNK || self.buffer.capacity() > room + READ_CHUNK {
            let body = Bytes::copy_from_slice(&self.buffer[..length]);
            self.buffer.advance(length);
            return body;
        }
        let rest = BytesMut::from(&self.buffer[length..]);
        let mut body = std::mem::replace(&mut self.buffer, rest);
        body.truncate(length);
        body.freeze()
    }

    /// Makes room for more of a large body, which has this many bytes at most. By itself the buffer would grow to twice as much.
    fn make_room(&mut self, most: usize) {
        let there = self.buffer.len();
        if most <= READ_CHUNK || self.buffer.capacity() - there >= READ_CHUNK {
            return;
        }
        let mut grown = BytesMut::with_capacity(wire::room(there, most) + READ_CHUNK);
        grown.extend_from_slice(&self.buffer);
        self.buffer = grown;
    }

    async fn more_in_turn(&mut self, turn: &mut Turn) -> io::Result<usize> {
        turn.next().await;
        let count = self.more().await?;
        turn.spend(count);
        Ok(count)
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_CHUNK);
        self.stream.read_buf(&mut self.buffer).await
    }
}

fn poll_some(stream: &mut Stream, buffer: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut chunk = [MaybeUninit::uninit(); 4096];
    let mut read = ReadBuf::uninit(&mut chunk);
    ready!(Pin::new(stream).poll_read(cx, &mut read))?;
    buffer.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}
