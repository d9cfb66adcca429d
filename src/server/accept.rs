//! The thread that accepts connections and does their TLS handshakes.
//!
//! A handshake takes 0.1 to 5 ms of CPU time, by the kind of the certificate's key, and a caller may begin a thousand at once. On
//! a worker each would delay the callbacks of others. So workers get connections whose handshake is done, and this thread has
//! a lower priority than they have.
//!
//! It also keeps the number of connections: at `--max-connections` the longest idle one makes room for a new one, here or at
//! a worker, and while memory is short nothing is accepted.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::connections::{Rank, log_ended};
use super::handshake::{handshake, log_failed, turns};
use super::pressure::Pressure;
use super::workers::{Arrival, Workers};
use super::{BACKLOG, Limits};
use crate::descriptors;
use crate::drain::{Stage, Watch};
use crate::metrics::connections::ConnectionEnd;
use crate::metrics::{Counted, Metrics};
use crate::tls::{HandshakeFailure, Tls};

/// Most connections that are in the kernel's queue: it holds one more than its length.
const QUEUE: usize = BACKLOG as usize + 1;

/// How long the accept loop rests after an error such as "too many open files", and before it looks again for a connection
/// that may make room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The accept loop logs a warning at most once in this time.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// How often another connection is looked for if a request came on the one that was to make room.
const TRIES: usize = 4;

/// The part of all connections, one in so many, up to which new handshakes take the places of idle connections. Beyond it they
/// take those of one another: sockets that say nothing push out no more callers than that.
const HANDSHAKES_PART: usize = 8;

/// How long a handshake has before another one takes its place. In a cluster it takes some milliseconds.
const HANDSHAKE_CHANCE: Duration = Duration::from_millis(100);

/// How long a new connection waits before it looks again whether such a handshake is done.
const SOON: Duration = Duration::from_millis(5);

/// What the accepting thread works with.
pub struct Acceptor {
    /// The certificate, and who may call.
    pub tls: Tls,
    /// The bounds.
    pub limits: Limits,
    /// Most connections of the process.
    pub max_connections: usize,
    /// Whether memory is short.
    pub pressure: Pressure,
    /// Where connections are counted.
    pub metrics: Arc<Metrics>,
    /// The pod's end.
    pub drain: Watch,
    /// Who gets the connections.
    pub workers: Workers,
}

/// The connections whose handshake is not done.
struct Begun {
    /// A permit for each connection of the process.
    permits: Arc<Semaphore>,
    /// By number: the oldest is the first.
    next: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, (Instant, AbortHandle)>>,
}

impl Begun {
    /// The oldest. If handshakes are more than their part of so many connections, it is the next to go.
    fn oldest(&self, connections: i64) -> Option<Oldest> {
        let tasks = self.tasks.borrow();
        let (_, (accepted, task)) = tasks.first_key_value()?;
        let part = usize::try_from(connections).unwrap_or(0) / HANDSHAKES_PART;
        let is_crowded = tasks.len() + 1 > part.max(1);
        let now = tokio::time::Instant::now().into_std();
        let rank = if is_crowded { Rank::Silent } else { Rank::of_silent(*accepted, now) };
        let is_young = is_crowded && now.duration_since(*accepted) < HANDSHAKE_CHANCE;
        Some(Oldest { order: (rank, *accepted), is_young, task: task.clone() })
    }
}

/// The oldest connection whose handshake is not done.
struct Oldest {
    order: (Rank, Instant),
    /// It is the next to go, and may be done in a moment.
    is_young: bool,
    task: AbortHandle,
}

/// What came of the search for a connection that makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// One was ended.
    Made,
    /// One is going to be, if its handshake is not done in a moment.
    Soon,
    /// All have a request in hand.
    None,
}

/// One of them, until this is dropped.
struct Place(Rc<Begun>, u64);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.tasks.borrow_mut().remove(&self.1);
    }
}

impl Acceptor {
    /// Accepts until the drain closes the listener; handshakes go on in tasks of their own. When this returns, each
    /// connection that came is counted.
    pub async fn run(self: Rc<Self>, listener: std::net::TcpListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let permits = Arc::new(Semaphore::new(self.max_connections));
        let begun = Rc::new(Begun { permits, next: Cell::default(), tasks: RefCell::default() });
        let turns = Rc::new(turns());
        let mut drain = self.drain.clone();
        let mut closed = pin!(drain.reached(Stage::Closed));
        let mut warned: Option<Instant> = None;
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut closed => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, peer)) => {
                    self.below_the_reserve(stream, &begun, &mut warned).await.map(|stream| (stream, peer))
                }
                Err(error) => {
                    warn_not_accepted(&error, &mut warned);
                    self.make_room(&begun, ConnectionEnd::OpenFiles).await;
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok((stream, peer)) = stream else { continue };
            // Counted before its task begins: the end waits for it from here on.
            let counted = self.metrics.connection();
            let permit = self.permit(&begun, closed.as_mut(), &mut warned).await;
            let is_last = permit.is_none();
            self.begin(&begun, &turns, stream, peer, permit, counted);
            if is_last {
                break;
            }
        }
        self.take_the_queue(listener, &begun, &turns).await;
        Ok(())
    }

    /// Accepts what is in the kernel's queue, and closes the listener. Whoever is there already has a connection, and does not know that
    /// it was not accepted.
    ///
    /// While this runs others still come, and would keep it busy for ever: no more are accepted than the queue has room for. The other
    /// bounds hold as before: what has no place, or comes while memory is short, is closed with the listener.
    async fn take_the_queue(
        self: &Rc<Self>,
        listener: TcpListener,
        begun: &Rc<Begun>,
        turns: &Rc<Semaphore>,
    ) {
        // The socket itself is asked: what came since tokio last looked is not known to it.
        let Ok(listener) = listener.into_std() else { return };
        for _ in 0..QUEUE {
            if self.pressure.is_high() {
                return;
            }
            let Ok((stream, peer)) = listener.accept() else { return };
            let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else {
                continue;
            };
            let counted = self.metrics.connection();
            let mut permit = Arc::clone(&begun.permits).try_acquire_owned();
            if permit.is_err() {
                self.make_room(begun, ConnectionEnd::Limit).await;
                permit = Arc::clone(&begun.permits).try_acquire_owned();
            }
            let Ok(permit) = permit else { return };
            self.begin(begun, turns, stream, peer, Some(permit), counted);
            // Handshakes go on meanwhile.
            tokio::task::yield_now().await;
        }
    }

    /// A place among `--max-connections`, once memory allows. If all are taken, an idle connection gives up its own; while all
    /// have a request in hand the new one waits. `None` once the listener closes: the one that waits then is served without a
    /// place.
    async fn permit<C: Future<Output = ()>>(
        &self,
        begun: &Begun,
        mut closed: Pin<&mut C>,
        warned: &mut Option<Instant>,
    ) -> Option<OwnedSemaphorePermit> {
        // The one that was accepted already waits with those in the queue.
        tokio::select! {
            biased;
            () = closed.as_mut() => return None,
            () = self.pressure.eased() => {}
        }
        loop {
            if let Ok(permit) = Arc::clone(&begun.permits).try_acquire_owned() {
                return Some(permit);
            }
            let room = self.make_room(begun, ConnectionEnd::Limit).await;
            if room == Room::None && is_due(warned) {
                warn!(
                    "The number of connections is at --max-connections, and each has a request in hand: new ones wait"
                );
            }
            tokio::select! {
                biased;
                () = closed.as_mut() => return None,
                permit = Arc::clone(&begun.permits).acquire_owned() => {
                    return Some(permit.expect("the semaphore is never closed"));
                }
                () = sleep(if room == Room::Soon { SOON } else { ACCEPT_PAUSE }) => {}
            }
        }
    }

    /// Ends the connection that is to make room.
    async fn make_room(&self, begun: &Begun, reason: ConnectionEnd) -> Room {
        for _ in 0..TRIES {
            let oldest = begun.oldest(self.metrics.connections());
            let found = self.workers.longest_idle().await;
            let found = match (&oldest, found) {
                (Some(oldest), Some(found)) if oldest.order <= found.candidate.room_order() => None,
                (_, found) => found,
            };
            if let Some(found) = found {
                if found.end(reason).await {
                    return Room::Made;
                }
                continue;
            }
            let Some(oldest) = oldest else { return Room::None };
            if oldest.is_young {
                return Room::Soon;
            }
            oldest.task.abort();
            self.metrics.kept().ended(reason);
            log_ended(reason);
            return Room::Made;
        }
        Room::Soon
    }

    /// Starts the handshake of a connection, and hands it over when that is done.
    fn begin(
        self: &Rc<Self>,
        begun: &Rc<Begun>,
        turns: &Rc<Semaphore>,
        stream: TcpStream,
        peer: SocketAddr,
        permit: Option<OwnedSemaphorePermit>,
        counted: Counted,
    ) {
        let accepted = tokio::time::Instant::now().into_std();
        let id = begun.next.replace(begun.next.get() + 1);
        let place = Place(Rc::clone(begun), id);
        let (acceptor, turns) = (Rc::clone(self), Rc::clone(turns));
        let task = tokio::task::spawn_local(async move {
            // A socket that cannot be told to send at once still works, a little later.
            let _ = stream.set_nodelay(true);
            let done = handshake(stream, &acceptor.tls, &turns);
            let done = timeout(acceptor.limits.handshake_timeout, done).await;
            let mut secure = match done.unwrap_or(Err(HandshakeFailure::Timeout)) {
                Ok(secure) => Box::new(secure),
                Err(failure) => {
                    acceptor.metrics.handshake_failed(failure);
                    return log_failed(failure, peer);
                }
            };
            if secure.get_mut().0.leave().is_ok() {
                let arrival = |seat| Arrival { secure, peer, accepted, permit, counted, seat };
                acceptor.workers.hand_over(arrival).await;
            }
            drop(place);
        });
        begun.tasks.borrow_mut().insert(id, (accepted, task.abort_handle()));
    }

    /// Waits, as in the queue, while only descriptors that are set aside for the admin port are free; not beyond the end of
    /// the listener.
    async fn below_the_reserve(
        &self,
        stream: TcpStream,
        begun: &Begun,
        warned: &mut Option<Instant>,
    ) -> io::Result<TcpStream> {
        if !descriptors::is_set_aside(&stream) {
            return Ok(stream);
        }
        let mut stream = descriptors::renumbered(stream.into_std()?);
        while descriptors::is_set_aside(&stream) && self.drain.stage() < Stage::Closed {
            warn_not_accepted(&io::Error::from_raw_os_error(libc::EMFILE), warned);
            self.make_room(begun, ConnectionEnd::OpenFiles).await;
            sleep(ACCEPT_PAUSE).await;
            stream = descriptors::renumbered(stream);
        }
        TcpStream::from_std(stream)
    }
}

fn is_due(warned: &mut Option<Instant>) -> bool {
    let due = warned.is_none_or(|at| at.elapsed() > WARN_AGAIN);
    if due {
        *warned = Some(Instant::now());
    }
    due
}

fn warn_not_accepted(error: &io::Error, warned: &mut Option<Instant>) {
    if is_due(warned) {
        warn!(%error, "A connection cannot be accepted; trying again");
    }
}
