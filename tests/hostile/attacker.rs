//! What attackers have in common. They come from 127.0.0.2: to the guard another caller than the good ones.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::lab::Target;
use crate::support::frames::{DATA, END_STREAM, GOAWAY, HEADERS, PREFACE, RESET, settings};

/// How long an attacker waits for a connection, a handshake, or room to write.
const PATIENCE: Duration = Duration::from_secs(3);

/// A TCP connection, with a receive buffer of this many bytes if one is given.
pub(crate) async fn tcp(address: SocketAddr, receive_buffer: Option<u32>) -> io::Result<TcpStream> {
    tcp_from(Ipv4Addr::new(127, 0, 0, 2), address, receive_buffer).await
}

/// The same from another address of this machine: all of 127.0.0.0/8 is.
pub(crate) async fn tcp_from(
    source: Ipv4Addr,
    address: SocketAddr,
    receive_buffer: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    // The port is chosen when it connects: more than 28,000 of them are one by one in use.
    let _ = socket2::SockRef::from(&socket).set_reuse_address(true);
    socket.bind((source, 0).into())?;
    let stream = in_time(socket.connect(address)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// TLS over it.
pub(crate) async fn tls(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    receive_buffer: Option<u32>,
) -> io::Result<TlsStream<TcpStream>> {
    secured(tcp(address, receive_buffer).await?, config).await
}

async fn secured(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    in_time(TlsConnector::from(Arc::clone(config)).connect(name, stream)).await
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Many HTTP/1.1 connections over TLS, as many as come about.
pub(crate) async fn many_h1(
    target: &Target,
    count: usize,
    receive_buffer: Option<u32>,
) -> Vec<TlsStream<TcpStream>> {
    let mut made = Vec::new();
    while made.len() < count && Instant::now() < target.until {
        match tls(target.listen, &target.h1, receive_buffer).await {
            Ok(stream) => made.push(stream),
            Err(_) => break,
        }
    }
    made
}

/// Waits until the attack is over.
pub(crate) async fn rest(target: &Target) {
    tokio::time::sleep_until(target.until.into()).await;
}

/// A connection over HTTP/2 whose frames are written by hand. What comes back is read and thrown away all the time.
pub(crate) struct H2 {
    writer: WriteHalf<TlsStream<TcpStream>>,
    reader: JoinHandle<()>,
    seen: Rc<Seen>,
}

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How the connection ended, if it has.
    pub(crate) fate: RefCell<Option<String>>,
    /// Heads of answers.
    pub(crate) answers: Cell<u64>,
    /// Streams that have ended, by an answer or by a reset.
    pub(crate) ended: Cell<u64>,
}

impl H2 {
    /// Opens one with these settings.
    pub(crate) async fn open(target: &Target, pairs: &[(u16, u32)]) -> io::Result<H2> {
        H2::speak(tls(target.listen, &target.h2, None).await?, pairs).await
    }

    /// Opens one from another address of this machine.
    pub(crate) async fn open_from(source: Ipv4Addr, target: &Target) -> io::Result<H2> {
        let stream = tcp_from(source, target.listen, None).await?;
        H2::speak(secured(stream, &target.h2).await?, &[]).await
    }

    async fn speak(stream: TlsStream<TcpStream>, pairs: &[(u16, u32)]) -> io::Result<H2> {
        let (read, writer) = tokio::io::split(stream);
        let seen = Rc::<Seen>::default();
        let reader = tokio::task::spawn_local(follow(read, Rc::clone(&seen)));
        let mut connection = H2 { writer, reader, seen };
        connection.write(&[PREFACE, &settings(pairs)].concat()).await?;
        Ok(connection)
    }

    /// Writes frames. An error is the end of the connection, or that nobody reads for [`PATIENCE`].
    pub(crate) async fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        let write = async {
            self.writer.write_all(frames).await?;
            self.writer.flush().await
        };
        in_time(write).await
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Whether the guard has announced or made an end of it.
    pub(crate) fn is_over(&self) -> bool {
        self.seen.fate.borrow().is_some()
    }

    /// What became of it.
    pub(crate) fn fate(&self) -> String {
        self.seen.fate.borrow().clone().unwrap_or_else(|| "open".to_owned())
    }
}

impl Drop for H2 {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn follow(mut read: ReadHalf<TlsStream<TcpStream>>, seen: Rc<Seen>) {
    let mut buffer = BytesMut::new();
    let told = |what: String| {
        seen.fate.borrow_mut().get_or_insert(what);
    };
    loop {
        while let Some(length) = buffer
            .get(..3)
            .map(|three| usize::from(three[0]) << 16 | usize::from(three[1]) << 8 | usize::from(three[2]))
        {
            let Some(frame) = buffer.get(..9 + length) else { break };
            let (kind, flags) = (frame[3], frame[4]);
            match kind {
                HEADERS => seen.answers.set(seen.answers.get() + 1),
                GOAWAY => {
                    let code = frame
                        .get(13..17)
                        .map_or(0, |code| u32::from_be_bytes(code.try_into().expect("four")));
                    told(format!("GOAWAY {code}"));
                }
                _ => {}
            }
            if kind == RESET || matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                seen.ended.set(seen.ended.get() + 1);
            }
            buffer.advance(9 + length);
        }
        match read.read_buf(&mut buffer).await {
            Ok(1..) => {}
            Ok(0) => return told("closed".to_owned()),
            Err(error) => return told(format!("ended: {}", error.kind())),
        }
    }
}

/// In how many connections an attack of one connection is made again.
pub(crate) const MANY: usize = 64;

/// The name of an attack that so many connections make.
pub(crate) fn named(attack: &str, connections: usize) -> &'static str {
    match connections {
        1 => attack.to_owned().leak(),
        _ => format!("{attack}, by {connections} connections").leak(),
    }
}

/// Has so many attackers at work at once, and returns what became of them all.
pub(crate) async fn all(connections: usize, attacker: impl AsyncFn() -> Fates) -> Fates {
    let mut fates = Fates::default();
    for others in futures::future::join_all((0..connections).map(|_| attacker())).await {
        fates.extend(others);
    }
    fates
}

/// Fates with how often each came.
#[derive(Debug, Default)]
pub(crate) struct Fates(BTreeMap<String, usize>);

impl Fates {
    pub(crate) fn add(&mut self, fate: impl Into<String>) {
        *self.0.entry(fate.into()).or_default() += 1;
    }

    fn extend(&mut self, others: Fates) {
        for (fate, count) in others.0 {
            *self.0.entry(fate).or_default() += count;
        }
    }
}

impl std::fmt::Display for Fates {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return out.write_str("no connection");
        }
        for (number, (fate, count)) in self.0.iter().enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(out, "{comma}{count} x {fate}")?;
        }
        Ok(())
    }
}

/// What became of sockets that nobody reads.
pub(crate) fn open_or_closed<'s>(streams: impl IntoIterator<Item = &'s TcpStream>) -> Fates {
    let mut fates = Fates::default();
    let open = Open::now();
    for stream in streams {
        fates.add(if open.has(stream) { "open" } else { "closed" });
    }
    fates
}

/// The connections of this machine that the other side has open, by their two ports. This side may not know of an end yet: a
/// FIN waits behind bytes that nobody reads.
pub(crate) struct Open(HashSet<[u16; 2]>);

impl Open {
    /// From `/proc/net/tcp`: `TCP_ESTABLISHED` is 1, `TCP_CLOSE_WAIT` 8.
    pub(crate) fn now() -> Open {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux lists its connections");
        let ports = table.lines().filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
            let port = |address: &str| u16::from_str_radix(address.split_once(':')?.1, 16).ok();
            matches!(state, "01" | "08").then_some([port(local)?, port(remote)?])
        });
        Open(ports.collect())
    }

    /// Whether the other side of this one is open.
    pub(crate) fn has(&self, stream: &TcpStream) -> bool {
        let ports = stream.peer_addr().and_then(|peer| Ok([peer.port(), stream.local_addr()?.port()]));
        // Without a peer it was reset.
        ports.is_ok_and(|ports| self.0.contains(&ports))
    }
}

/// A callback over HTTP/1.1.
pub(crate) fn h1_callback(target: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\noperationID: 1\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The body of a callback of the usual command, from a sender without a rule of its own.
pub(crate) fn body(sender: &str) -> Vec<u8> {
    let command = crate::good::COMMAND;
    format!(r#"{{"callbackCommand":"{command}","operationID":"1","sendID":"{sender}"}}"#).into_bytes()
}

/// A target with this mode of the app.
pub(crate) fn path(mode: &str) -> String {
    format!("/{}?mode={mode}", crate::good::COMMAND)
}

/// Reads one answer over HTTP/1.1 and returns what the guard says of it: verdict, origin, cause.
pub(crate) async fn told(stream: &mut TlsStream<TcpStream>) -> io::Result<String> {
    let mut buffer = BytesMut::new();
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
    let value = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or("-").to_owned()
    };
    let length: usize = value("content-length").parse().unwrap_or(0);
    let mut left = (end + length).saturating_sub(buffer.len());
    while left > 0 {
        buffer.clear();
        let count = stream.read_buf(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(count);
    }
    let names = ["verdict", "origin", "cause"].map(|name| value(&format!("callback-guard-{name}")));
    Ok(names.join(" "))
}
