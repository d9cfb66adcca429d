//! Asks the app: one HTTP/1.1 exchange on a kept connection, never repeated once its bytes may have arrived.
//!
//! The client is our own, on a plain socket. A library's client runs its connection in a task of its own and hides
//! what this module has to know: whether a byte of the request was written, and whether it can have arrived. It also
//! costs a tenth of the whole callback. What HTTP/1 asks of a client is kept small: a head (parsed by `httparse`), three
//! ways to frame a body, and the rule when a connection may be used again (RFC 9112, sections 6 and 9).
//!
//! Nothing in here knows a deadline: the caller drops the exchange when its time has come, and with it the connection. An
//! app that refuses connections and took them a moment ago is the exception. It is about to restart, or its pod is
//! ending and nobody has told us yet: the kubelet needs up to a second to run our hook, and by then the app may have had
//! its SIGTERM. So it is waited for, within the [`Patience`] of the caller, until it is back or the end of the pod is
//! known. A callback that was not sent is sent then. One that was under way when its connection ended is not sent again,
//! whatever it is waited for: its failure is only named once it is known whether the app failed or was told to end.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header;

use crate::cause::Overload;
use crate::held::Holding;
use crate::turns::{Lane, NO_CALLER, Turn, Turns};
use connection::{Connection, Found, Request};
use dial::Dialer;
use framing::{Framing, NoHead};
use outcome::{Failure, Received};
use pool::{Pool, Taken};
use reuse::USE_LIMIT;

pub use dial::Address;
pub use event::{Progress, Undelivered};
pub use pool::KEPT_CONNECTIONS;
pub use reuse::Reuse;

#[cfg(any(test, fuzzing))]
pub(crate) mod claims;
mod connection;
mod delivery;
mod event;
mod dial;
mod framing;
pub mod outcome;
mod pool;
mod reuse;
mod stream;

/// How long an app that was there is waited for, from its first refusal. A hook ran 0.9 s after the deletion of its pod
/// on a real kubelet.
const GONE_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is tried again meanwhile; and how long after the end of a connection an app is asked whether it still takes
/// new ones. A process that ends closes its sockets in no order that helps: the listener may be the last.
const GONE_RETRY: Duration = Duration::from_millis(20);

/// A request up to this size goes out in one write, its body copied behind its head.
const ONE_WRITE: usize = 16 << 10;

/// Largest buffer that an idle connection keeps for its next answer.
const KEPT_BUFFER: usize = 32 << 10;

/// The app, as one worker sees it: its address and the connections kept to it. Not shared between threads.
#[derive(Debug)]
pub struct Upstream {
    dialer: Dialer,
    /// Most bytes of an answer's body.
    answer_limit: usize,
    /// Most bytes of an answer's head.
    head_limit: usize,
    /// A long answer is read in turns.
    lane: Rc<Lane>,
    pool: RefCell<Pool>,
    reuse: Arc<Reuse>,
    /// Buffers of heads that were sent.
    heads: RefCell<Vec<Vec<u8>>>,
    /// Whether the app takes connections, as far as it was tried.
    presence: Cell<Presence>,
}

/// Whether the app takes connections.
#[derive(Clone, Copy, Debug)]
enum Presence {
    /// It never has.
    Unknown,
    Here,
    /// It has, and refuses them since then.
    GoneSince(Instant),
}

/// How long a caller lets an app that was there be waited for.
pub struct Patience<'p> {
    /// When the exchange begins.
    pub now: Instant,
    /// A little before the deadline.
    pub until: Instant,
    /// Whether the pod is known to be ending: then there is nothing to wait for.
    pub ending: &'p dyn Fn() -> bool,
    /// Set while the app refuses: should the deadline come now, it has found no app, and not a slow one.
    pub refused: &'p Cell<bool>,
}

impl fmt::Debug for Patience<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Patience")
            .field("until", &self.until)
            .field("refused", self.refused)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// An app at this address. The limits are bytes of an answer's body and of its head.
    pub fn new(
        address: Address,
        (answer_limit, head_limit): (usize, usize),
        reuse: Arc<Reuse>,
        turns: &Rc<Turns>,
    ) -> Upstream {
        let (heads, presence) = (RefCell::default(), Cell::new(Presence::Unknown));
        let pool = RefCell::new(Pool::new(USE_LIMIT));
        let (dialer, lane) = (Dialer::new(address), turns.lane(NO_CALLER));
        Upstream { dialer, answer_limit, head_limit, lane, pool, reuse, heads, presence }
    }

    /// An empty buffer for the head of a request: one that was used before, if there is one.
    pub fn head_buffer(&self) -> Vec<u8> {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    fn keep_head(&self, mut head: Vec<u8>) {
        let mut heads = self.heads.borrow_mut();
        if head.capacity() <= ONE_WRITE && heads.len() < KEPT_CONNECTIONS {
            head.clear();
            heads.push(head);
        }
    }

    /// Sends one request, `head` as it goes over the wire, and reads the whole answer, which counts for the caller that `share` is of.
    ///
    /// Dropping the future ends the exchange and its connection.
    pub async fn exchange(
        &self,
        head: Vec<u8>,
        body: &Bytes,
        share: &Holding,
        patience: Patience<'_>,
    ) -> Result<Received, Failure> {
        let mut request = Request { head, body, share };
        if !self.reuse.is_allowed(patience.now) {
            last_on_its_connection(&mut request.head);
        }
        if request.body.len() + request.head.len() <= ONE_WRITE {
            request.head.extend_from_slice(body);
            request.body = &[];
        }
        let ended = self.sent_once(&request, &patience).await;
        self.keep_head(request.head);
        let failure = match ended {
            Ok(answered) => return Ok(answered),
            Err(Ended::Failed(failure)) => failure,
            Err(Ended::Unread) => self.unreachable(io::ErrorKind::ConnectionReset.into()),
        };
        if failure.lost_its_connection() {
            // In a box, as all that is rare: the future of every callback would have its size.
            Box::pin(self.wait_while_gone(&patience)).await;
        }
        Err(failure)
    }

    async fn sent_once(&self, request: &Request<'_>, patience: &Patience<'_>) -> Result<Received, Ended> {
        let mut begun = patience.now;
        loop {
            if let Some(connection) = self.pooled_connection(begun) {
                match self.run(connection, request, begun).await {
                    // The app had closed this one before our bytes came: nothing was asked yet.
                    Err(Ended::Unread) => begun = Instant::now(),
                    ended => return ended,
                }
                continue;
            }
            let error = match self.connect(patience).await {
                Ok(connection) => return Box::pin(self.run_first(connection, request)).await,
                Err(error) => error,
            };
            // With no file descriptor for a new connection, wait for one that rests.
            let rested = self.pool.borrow().first_rested();
            let Some(at) = rested.filter(|at| *at <= patience.until && is_shortage(&error)) else {
                return Err(self.unreachable(error).into());
            };
            tokio::time::sleep_until(at.into()).await;
            begun = Instant::now();
        }
    }

    /// Uses a new connection.
    async fn run_first(&self, connection: Connection, request: &Request<'_>) -> Result<Received, Ended> {
        let begun = Instant::now();
        if connection.found() == Found::Unsolicited {
            self.unsolicited(begun);
            return Err(Failure::NotHttp("an answer before any request".to_owned()).into());
        }
        self.run(connection, request, begun).await
    }

    /// Where a connection ended because the app goes away, waits until it is back, or its pod is known to be ending, or
    /// there is no patience left. Where the app still takes connections it is over at once.
    async fn wait_while_gone(&self, patience: &Patience<'_>) {
        let Some(until) = patience.until.checked_sub(GONE_RETRY) else { return };
        if (patience.ending)() || Instant::now() + GONE_RETRY >= until {
            return;
        }
        tokio::time::sleep(GONE_RETRY).await;
        // What the deadline finds is the failure, and not the app's refusal.
        let now = Instant::now();
        let patience = Patience { now, until, ending: patience.ending, refused: &Cell::new(false) };
        let limit = until.min(now + GONE_PATIENCE);
        // The connection is not kept: an app that serves one at a time would wait on it for a request.
        let _ = tokio::time::timeout_at(limit.into(), self.connect(&patience)).await;
    }

    async fn connect(&self, patience: &Patience<'_>) -> io::Result<Connection> {
        loop {
            let error = match Connection::open(&self.dialer).await {
                Ok(connection) => {
                    self.presence.set(Presence::Here);
                    patience.refused.set(false);
                    return Ok(connection);
                }
                Err(error) => error,
            };
            // A unix socket whose file is gone is refused in its own way.
            let refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
            let now = Instant::now();
            let since = match self.presence.get() {
                Presence::GoneSince(since) => since,
                Presence::Here if refused => now,
                Presence::Here | Presence::Unknown => return Err(error),
            };
            self.presence.set(Presence::GoneSince(since));
            let until = patience.until.min(since + GONE_PATIENCE);
            if !refused || now + GONE_RETRY >= until || (patience.ending)() {
                return Err(error);
            }
            patience.refused.set(true);
            tokio::time::sleep(GONE_RETRY).await;
        }
    }

    /// How many idle connections there are.
    pub fn kept(&self) -> usize {
        self.pool.borrow().len()
    }

    /// What a deadline has found that came while the app refused.
    pub fn refused(&self) -> Failure {
        self.unreachable(io::ErrorKind::ConnectionRefused.into())
    }

    fn unreachable(&self, error: io::Error) -> Failure {
        // Our own want, and no fault of the app: a breaker must not count it.
        if is_shortage(&error) {
            return Failure::Overloaded(Overload::OpenFiles);
        }
        Failure::Unreachable { upstream: self.dialer.address.to_string(), error }
    }

    /// A connection that may be used again.
    fn pooled_connection(&self, now: Instant) -> Option<Connection> {
        let mut pool = self.pool.borrow_mut();
        if !self.reuse.is_allowed(now) {
            pool.clear();
            return None;
        }
        match pool.take(now) {
            Taken::Connection(connection) => Some(connection),
            Taken::None => None,
            Taken::Unsolicited => {
                pool.clear();
                self.unsolicited(now);
                None
            }
        }
    }

    /// The app sent bytes that no request was waiting for.
    fn unsolicited(&self, now: Instant) {
        self.reuse.unsolicited(&self.dialer.address, now);
    }

    #[allow(clippy::manual_async_fn, reason = "the future of an async fn has room for its arguments twice")]
    fn run(
        &self,
        mut connection: Connection,
        request: &Request<'_>,
        begun: Instant,
    ) -> impl Future<Output = Result<Received, Ended>> {
        async move {
            let before = connection.written;
            let sent = connection.send((&request.head, request.body), self.head_limit).await;
            let head = match connection.head(self.head_limit).await {
                Ok(head) => head,
                Err(no_head) => return Err(self.without_head(&connection, before, sent, no_head)),
            };
            let turn = Turn::new(Rc::clone(&self.lane));
            let (body, holding) =
                connection.body(head.framing, self.answer_limit, request.share, turn).await?;
            if !connection.buffer.is_empty() {
                self.unsolicited(Instant::now());
            } else if head.keep_alive && sent.is_ok() && head.framing != Framing::UntilEnd {
                self.keep(connection, begun);
            }
            let (status, headers, limit) = (head.status, head.headers, self.answer_limit);
            let coded = headers.contains_key(header::CONTENT_ENCODING);
            Ok(Received { status, headers, body, holding, coded, limit })
        }
    }

    /// What it means that no answer began. `before` is how much was written to the connection before the request, `sent` how
    /// writing that one ended.
    fn without_head(
        &self,
        connection: &Connection,
        before: u64,
        sent: io::Result<()>,
        no_head: NoHead,
    ) -> Ended {
        match no_head {
            // The kernel tells of a reset once. Told to the write, it makes the read look like the end of the stream.
            NoHead::Ended if !was_reset(&sent) && connection.proves_unread(before) => Ended::Unread,
            NoHead::Ended => match sent {
                // A write that failed outright on a connection with no answer behind it: nothing went out at all.
                Err(_) if connection.written == before => Ended::Unread,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    self.unreachable(error).into()
                }
                Ok(()) | Err(_) => Failure::Cut { at: "before an answer" }.into(),
            },
            NoHead::Reset(_) if connection.written == before => Ended::Unread,
            NoHead::Reset(error) => self.unreachable(error).into(),
            NoHead::Cut => Failure::Cut { at: "inside the head of its answer" }.into(),
            NoHead::NotHttp(why) => Failure::NotHttp(why).into(),
        }
    }

    fn keep(&self, mut connection: Connection, begun: Instant) {
        let now = Instant::now();
        if !self.reuse.is_allowed(now) {
            return;
        }
        if connection.buffer.capacity() > KEPT_BUFFER {
            connection.buffer = BytesMut::new();
        }
        connection.usage.exchanged(begun, now);
        self.pool.borrow_mut().put(connection, now);
    }
}

/// Whether the process or the system has no file descriptor left.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Says in the head of a request that its connection will not be used again. An app that closes it itself leaves no port of
/// ours in TIME_WAIT.
fn last_on_its_connection(head: &mut Vec<u8>) {
    if head.ends_with(b"\r\n\r\n") {
        head.truncate(head.len() - 2);
        head.extend_from_slice(b"Connection: close\r\n\r\n");
    }
}

/// Why an exchange has no answer.
enum Ended {
    /// It is proved that the app has seen none of it.
    Unread,
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

fn was_reset(sent: &io::Result<()>) -> bool {
    matches!(sent, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests;
