//! HTTP/2 frames from a caller, over a stream in memory, against the server and the proxy as they run, with a policy that answers
//! every callback: memory, what is read in a pass, and frames that carry no callback stay within their bounds, and nothing is left
//! when the connection has ended.
//!
//! Input: one byte of choices, then steps of at least one byte. The low half of the first one is the type of a frame:
//! 0 to 12 a frame of that type, of which flags, stream, repetitions (an index of [`TIMES`]), length and payload follow
//! (with bit 4 the payload is repeated up to 64 times its length, with bit 7 each repetition is on the next stream);
//! 13 a whole callback on the next stream; 14 bytes as they are; 15 time that passes.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::advance;
use tracing::level_filters::LevelFilter;

use super::choices;
use super::memory::{begin_peak, live, peak};
use crate::after::Bounds;
use crate::callback::target::UpstreamForm;
use crate::decode::{DecodeThread, LARGE_BODY_BYTES};
use crate::deliveries::{self, Deliveries};
use crate::drain::{Drain, Watch};
use crate::held::{Accounts, Held};
use crate::in_force::{InForce, SourceKind};
use crate::log::{Format, Queue};
use crate::metrics::Metrics;
use crate::policy;
use crate::proxy::{Config, Proxy, Shared};
use crate::server::{Limits, Server};
use crate::status::Recent;
use crate::upstream::{Address, Reuse};

/// The caller's half of the preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How often a frame is sent, by the low half of a byte.
const TIMES: [usize; 16] = [1, 1, 1, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

/// Most bytes that an input may come to.
const BYTES: usize = 512 << 10;

/// Most bytes that one connection may take of memory beside what is counted as held: hyper's and h2's state with 512 streams open and
/// as many reset, buffers of reads and writes, and the table of HPACK.
const CONNECTION: usize = 1 << 20;

/// There is one byte on top of so many of the bound, for refusals.
const REFUSALS: usize = 8;

/// Most bytes that are read in one pass: a turn of 16 KiB, one read behind it, and what needs no turn.
const READ: usize = (16 << 10) + (16 << 10) + (4 << 10);

/// Most bytes that are left of a connection when it has ended: what the worker keeps for the next one.
const LEFT: usize = 256 << 10;

/// Most frames in one read where frames may begin.
const FRAMES_IN_A_READ: u64 = (2 << 10) / 9 + 1;

/// After so many passes in which nothing moves there is nothing more to come without time.
const QUIET: usize = 4;

enum Step {
    /// Up to this place in the bytes.
    Send(usize),
    Wait(Duration),
}

/// What the caller sends, and when.
struct Script {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

impl Script {
    fn of(mut input: &[u8]) -> Script {
        let mut script = Script { bytes: PREFACE.to_vec(), steps: Vec::new() };
        let mut next_stream = 1;
        while let Some((first, rest)) = input.split_first() {
            input = rest;
            if script.bytes.len() >= BYTES || script.steps.len() >= 64 {
                break;
            }
            match first & 15 {
                15 => {
                    script.steps.push(Step::Send(script.bytes.len()));
                    script.steps.push(Step::Wait(Duration::from_millis(u64::from(first >> 4) * 100 + 1)));
                }
                14 => {
                    let (bytes, rest) = input.split_at(input.len().min(usize::from(first >> 4) + 1));
                    script.bytes.extend_from_slice(bytes);
                    input = rest;
                }
                13 => script.callbacks(first >> 4, &mut input, &mut next_stream),
                kind => script.frames(kind, first >> 4, &mut input),
            }
        }
        script.steps.push(Step::Send(script.bytes.len()));
        script
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        self.bytes.extend_from_slice(&length[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&stream.to_be_bytes());
        self.bytes.extend_from_slice(payload);
    }

    fn frames(&mut self, kind: u8, how: u8, input: &mut &[u8]) {
        let Some(([flags, stream, times, length], rest)) = choices(input) else { return *input = &[] };
        let (payload, rest) = rest.split_at(rest.len().min(length.into()));
        *input = rest;
        let payload = if how & 1 == 0 {
            payload.to_vec()
        } else {
            payload.repeat(64.min((16 << 10) / payload.len().max(1)))
        };
        let mut stream = u32::from(stream);
        for _ in 0..TIMES[usize::from(times & 15)] {
            if self.bytes.len() >= BYTES {
                break;
            }
            self.frame(kind, flags, stream, &payload);
            stream += if how & 8 == 0 { 0 } else { 2 };
        }
    }

    /// Callbacks: without their body, with a part of it, with all, or larger than is taken.
    fn callbacks(&mut self, how: u8, input: &mut &[u8], next_stream: &mut u32) {
        let Some(([times], rest)) = choices(input) else { return };
        *input = rest;
        let name = if how & 4 == 0 {
            "callbackBeforeSendSingleMsgCommand"
        } else {
            "callbackBeforeSetGroupInfoCommand"
        };
        let filling = "x".repeat(if how & 8 == 0 { 10 } else { 12 << 10 });
        let body = format!("{{\"callbackCommand\":\"{name}\",\"introduction\":\"{filling}\"}}");
        let mut head = vec![0x83, 0x87];
        for (name, value) in [
            (":path", format!("/{name}").as_str()),
            (":authority", "guard"),
            ("operationid", "1"),
            ("content-type", "application/json"),
        ] {
            head.push(0);
            for text in [name, value] {
                head.push(text.len() as u8);
                head.extend_from_slice(text.as_bytes());
            }
        }
        for _ in 0..TIMES[usize::from(times & 15)].min(1000) {
            if self.bytes.len() >= BYTES {
                break;
            }
            let stream = *next_stream;
            *next_stream += 2;
            self.frame(1, 4, stream, &head);
            match how & 3 {
                0 => self.frame(0, 1, stream, body.as_bytes()),
                1 => self.frame(0, 0, stream, &body.as_bytes()[..20]),
                2 => {}
                _ => {
                    self.frame(0, 0, stream, &body.as_bytes()[..20]);
                    self.frame(3, 0, stream, &[0, 0, 0, 8]);
                }
            }
        }
    }
}

/// The caller's end of a connection.
struct Pipe {
    bytes: Vec<u8>,
    /// How much of it may be read, and was read.
    sent: Cell<usize>,
    read: Cell<usize>,
    closed: Cell<bool>,
    written: Cell<usize>,
    /// How much the caller takes of answers.
    takes: usize,
    wakers: RefCell<Vec<Waker>>,
}

impl Pipe {
    fn wake(&self) {
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    fn wait<T>(&self, cx: &Context<'_>) -> Poll<T> {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

struct End(Rc<Pipe>);

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = &self.0;
        let part = &pipe.bytes[pipe.read.get()..pipe.sent.get()];
        let count = part.len().min(buffer.remaining());
        if count == 0 && !pipe.closed.get() {
            return pipe.wait(cx);
        }
        buffer.put_slice(&part[..count]);
        pipe.read.set(pipe.read.get() + count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = &self.0;
        if pipe.closed.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(pipe.takes - pipe.written.get());
        if count == 0 && !bytes.is_empty() {
            return pipe.wait(cx);
        }
        pipe.written.set(pipe.written.get() + count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What all inputs have in common: made once a thread.
#[derive(Clone)]
struct World {
    metrics: Arc<Metrics>,
    in_force: watch::Receiver<Arc<InForce>>,
    drain: Watch,
    reuse: Arc<Reuse>,
    decode: DecodeThread,
}

thread_local! {
    static WORLD: World = {
        let (policy, _) = policy::compile("rules: [{name: all, answer: Allow}]").expect("a policy");
        let (sender, in_force) =
            watch::channel(Arc::new(InForce::new(policy, None, SourceKind::File, String::new(), None)));
        let (drain, watch) = Drain::new(Instant::now());
        // They live as long as the thread.
        std::mem::forget((sender, drain));
        World {
            metrics: Arc::new(Metrics::new(Counter::default())),
            in_force,
            drain: watch,
            reuse: Arc::new(Reuse::new(true, Counter::default())),
            decode: DecodeThread::start(Held::new(0), 0),
        }
    };
}

impl World {
    /// The server of one worker, its proxy, and where its memory counts.
    fn server(&self, limit: usize) -> (Rc<Server<Proxy>>, Rc<Proxy>, (Held, Accounts)) {
        let held = Held::new(limit);
        let accounts = Accounts::new(held.clone(), 1024);
        let config = Config {
            upstream: Address::Loopback(1),
            upstream_form: UpstreamForm::AsReceived,
            // What is larger is decoded on a thread of its own, which this one does not see.
            max_request_size: LARGE_BODY_BYTES,
            max_answer_size: 64 << 10,
            max_header_size: 16 << 10,
            log_level: LevelFilter::OFF,
            log_format: Format::Json,
        };
        let deliveries = Deliveries::new(
            deliveries::Config {
                bounds: Bounds { events: 16, bytes: 64 << 10, in_flight: 1 },
                upstream_form: UpstreamForm::AsReceived,
                log_level: LevelFilter::OFF,
                log_format: Format::Json,
            },
            self.in_force.clone(),
            Arc::clone(&self.metrics),
            Queue::unwritten(),
        );
        let shared = Shared {
            deliveries: Arc::new(deliveries),
            config,
            in_force: self.in_force.clone(),
            auth: None,
            metrics: Arc::clone(&self.metrics),
            log: Queue::unwritten(),
            accounts: accounts.clone(),
            reuse: Arc::clone(&self.reuse),
            recent: Recent::default(),
            decode: self.decode.clone(),
        };
        let proxy = Rc::new(Proxy::new(Arc::new(shared), self.drain.clone()));
        let server = Server {
            handler: Rc::clone(&proxy),
            limits: Limits {
                handshake_timeout: Duration::from_secs(5),
                header_timeout: Duration::from_secs(5),
                answer_timeout: Duration::from_secs(20),
                header_limit: 16 << 10,
                large_field_limit: 24 << 10,
                connection_age: Duration::from_secs(600),
                idle_timeout: Duration::from_secs(900),
                first_request_timeout: Duration::from_secs(120),
            },
            turns: proxy.turns(),
            accounts: accounts.clone(),
            metrics: Arc::clone(&self.metrics),
            drain: self.drain.clone(),
        };
        (Rc::new(server), proxy, (held, accounts))
    }
}

pub(super) fn run(input: &[u8]) {
    let Some(([choice], input)) = choices(input) else { return };
    let world = WORLD.with(World::clone);
    let Script { bytes, steps } = Script::of(input);
    let pipe = Rc::new(Pipe {
        bytes,
        sent: Cell::new(0),
        read: Cell::new(0),
        closed: Cell::new(false),
        written: Cell::new(0),
        takes: if choice & 1 == 0 { usize::MAX } else { 1 << 10 },
        wakers: RefCell::default(),
    });
    let limit = [256 << 10, 1 << 20, 4 << 20, 16 << 20][usize::from(choice >> 1) & 3];
    let runtime =
        Builder::new_current_thread().enable_time().start_paused(true).build_local(LocalOptions::default());
    let runtime = runtime.expect("a runtime without I/O");
    runtime.block_on(async {
        let (server, proxy, (held, accounts)) = world.server(limit);
        let mut watcher = Watcher::new(Rc::clone(&pipe), held, accounts);
        let ended = Rc::new(Cell::new(false));
        let (done, end) = (Rc::clone(&ended), End(Rc::clone(&pipe)));
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        tokio::task::spawn_local(async move {
            server.speak_alone(end, true, peer).await;
            done.set(true);
        });
        let caller = async {
            for step in steps {
                match step {
                    Step::Send(to) => pipe.sent.set(to),
                    Step::Wait(time) => {
                        advance(time).await;
                        watcher.seconds += time.as_secs_f64();
                    }
                }
                pipe.wake();
                watcher.until_quiet().await;
            }
            pipe.closed.set(true);
            pipe.wake();
            watcher.until_quiet().await;
            // Whatever is waited for is over by then.
            advance(Duration::from_secs(60)).await;
            watcher.until_quiet().await;
            assert!(ended.get(), "its caller has gone, and the connection goes on");
        };
        tokio::select! {
            biased;
            never = proxy.keep_time() => match never {},
            () = caller => {}
        }
        watcher.nothing_left();
    });
}

/// Looks at the server between two passes.
struct Watcher {
    pipe: Rc<Pipe>,
    held: Held,
    accounts: Accounts,
    /// Bytes in use before the connection.
    before: isize,
    /// Where the headers of frames begin in what the caller sends, and what they are.
    frames: Vec<(usize, u8)>,
    /// Time that was let pass; what the work takes comes on top.
    seconds: f64,
    began: Instant,
}

impl Watcher {
    fn new(pipe: Rc<Pipe>, held: Held, accounts: Accounts) -> Watcher {
        let (mut frames, mut at) = (Vec::new(), PREFACE.len());
        while let Some(header) = pipe.bytes.get(at..at + 9) {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let (kind, flags) = (header[3], header[4]);
            // As the server counts: what is not a worthwhile part of a body.
            if !(kind == 0 && (length >= 256 || flags & 1 != 0)) {
                frames.push((at, kind));
            }
            at += 9 + length;
        }
        Watcher { pipe, held, accounts, before: live(), frames, seconds: 0.0, began: Instant::now() }
    }

    /// Lets the server run until nothing moves.
    async fn until_quiet(&mut self) {
        let (mut quiet, mut last) = (0, (usize::MAX, 0, 0));
        let mut passes = 0;
        while quiet < QUIET {
            let before = self.pipe.read.get();
            begin_peak();
            yield_now().await;
            let read = self.pipe.read.get() - before;
            assert!(read <= READ, "{read} bytes are read in one pass");
            let most = usize::try_from(peak() - self.before).unwrap_or(0);
            let limit = self.held.limit();
            assert!(most <= limit + limit / REFUSALS + CONNECTION, "{most} bytes were in use within a pass");
            self.within_bounds();
            let now = (self.pipe.read.get(), self.pipe.written.get(), live());
            quiet = if now == last { quiet + 1 } else { 0 };
            last = now;
            passes += 1;
            assert!(passes < 100_000, "it never comes to rest");
        }
    }

    fn within_bounds(&self) {
        let used = usize::try_from(live() - self.before).unwrap_or(0);
        let (held, refusals) = (self.held.bytes(), self.held.limit() / REFUSALS);
        assert!(
            used <= held + refusals + CONNECTION,
            "{used} bytes are in use, and {held} are counted as held"
        );
        let read = self.pipe.read.get();
        let taken = &self.frames[..self.frames.partition_point(|(at, _)| at + 9 <= read)];
        let heads = taken.iter().filter(|(_, kind)| *kind == 1).count() as u64;
        let seconds = self.seconds + self.began.elapsed().as_secs_f64();
        let written = (self.pipe.written.get() >> 10) as u64;
        let credit = 1000 + 10 * heads + (seconds * 100.0) as u64 + written;
        assert!(
            taken.len() as u64 <= credit + FRAMES_IN_A_READ,
            "{} frames are taken, {credit} have credit",
            taken.len()
        );
    }

    fn nothing_left(&self) {
        assert_eq!((self.held.bytes(), self.accounts.callers()), (0, 0), "held by nobody");
        let left = live() - self.before;
        assert!(left <= LEFT as isize, "{left} bytes are left of a connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SETTINGS, a head that puts its long fields into the table, and 1,000 heads of 13 bytes that refer to them.
    const SMALL_HEADS: &[u8] =
        b"\x04\0\0\0\0\x01\x05\x01\0\x36\x83\x87\x44\x23/callbackBeforeSendSingleMsgCommand\
        \x40\x0boperationid\x011\x81\x04\x03\x0d\x04\x83\x87\xbf\xbe";

    /// 1,000 callbacks, of which some do not fit: 11 KiB each for as long as their connection ends were 5.8 MB.
    #[test]
    fn heads_that_come_when_memory_is_full_take_none() {
        run(&[b"\0", SMALL_HEADS].concat());
    }

    /// The twin: with memory they are waited for, and counted.
    #[test]
    fn heads_that_come_while_there_is_memory_are_counted() {
        run(&[b"\x06", SMALL_HEADS].concat());
    }
}
