//! The way to the workers: connections go to the one with the fewest, and orders about those that are open to all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::caller::Caller;
use super::connections::{CONNECTION_BYTES, Candidate, Heaviest};
use crate::metrics::Counted;
use crate::metrics::connections::ConnectionEnd;

/// Connections on their way to one worker. One that takes them in slower than handshakes are done is waited for.
const ARRIVALS: usize = 64;

/// Orders on their way to one worker: the accepting thread and the memory's backstop have one each.
const ORDERS: usize = 4;

/// How long an answer of a worker is waited for. A worker looks at its orders in between any two other things.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// A connection whose handshake is done.
pub(super) struct Arrival {
    /// Boxed: each task that it passes through would hold its two kilobytes once more.
    pub(super) secure: Box<TlsStream<Caller>>,
    pub(super) peer: SocketAddr,
    pub(super) accepted: Instant,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) counted: Counted,
    pub(super) seat: Seat,
}

/// One more connection of a worker, until it is dropped.
pub(super) struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn at(worker: &Worker) -> Seat {
        worker.seats.fetch_add(1, Ordering::Relaxed);
        Seat(Arc::clone(&worker.seats))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a worker is asked to do with its connections.
pub(super) enum Order {
    /// Name the one that is to make room.
    LongestIdle(oneshot::Sender<Option<Candidate>>),
    /// Name those that pin the most memory.
    Heaviest(oneshot::Sender<Heaviest>),
    /// End this one; answer whether it ends.
    End {
        /// As it was named.
        candidate: Candidate,
        /// For the metric and the log.
        reason: ConnectionEnd,
        /// Where the answer goes.
        answer: oneshot::Sender<bool>,
    },
}

/// What comes to a worker.
pub struct Inbox {
    pub(super) arrivals: mpsc::Receiver<Arrival>,
    pub(super) orders: mpsc::Receiver<Order>,
}

/// The way to a worker.
#[derive(Clone)]
pub struct Worker {
    arrivals: mpsc::Sender<Arrival>,
    orders: mpsc::Sender<Order>,
    /// Its connections, and those on their way to it.
    seats: Arc<AtomicUsize>,
}

/// Makes the way to a worker, and its end there.
pub fn worker() -> (Worker, Inbox) {
    let (arrivals, arriving) = mpsc::channel(ARRIVALS);
    let (orders, ordered) = mpsc::channel(ORDERS);
    let worker = Worker { arrivals, orders, seats: Arc::default() };
    (worker, Inbox { arrivals: arriving, orders: ordered })
}

impl Worker {
    /// Its answer to an order; `None` if it has none in time.
    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        let asked = async {
            self.orders.send(order(sender)).await.ok()?;
            answer.await.ok()
        };
        timeout(ANSWER_TIMEOUT, asked).await.ok().flatten()
    }
}

/// The ways to all workers.
#[derive(Clone)]
pub struct Workers(Vec<Worker>);

impl Workers {
    /// At least one.
    pub fn new(workers: Vec<Worker>) -> Workers {
        assert!(!workers.is_empty(), "somebody has to serve");
        Workers(workers)
    }

    /// Hands a connection to the worker with the fewest, by a function that is handed its seat there.
    pub(super) async fn hand_over(&self, arrival: impl FnOnce(Seat) -> Arrival) {
        let fewest = self.0.iter().min_by_key(|worker| worker.seats.load(Ordering::Relaxed));
        let fewest = fewest.expect("there is at least one");
        // A worker that has ended has told the main thread.
        let _ = fewest.arrivals.send(arrival(Seat::at(fewest))).await;
    }

    /// Which connection of all is to make room.
    pub(super) async fn longest_idle(&self) -> Option<Idle<'_>> {
        let mut first: Option<Idle<'_>> = None;
        for worker in &self.0 {
            let Some(Some(candidate)) = worker.ask(Order::LongestIdle).await else { continue };
            if first.as_ref().is_none_or(|first| candidate.room_order() < first.candidate.room_order()) {
                first = Some(Idle { worker, candidate });
            }
        }
        first
    }

    /// Ends the connections that pin the most memory, until those that are ending pin so many bytes together. Returns how many
    /// it ended, and the estimate for them in bytes.
    pub async fn shed(&self, bytes: u64) -> (usize, u64) {
        let mut leaving = 0;
        let mut candidates = Vec::new();
        for worker in &self.0 {
            let Some(heaviest) = worker.ask(Order::Heaviest).await else { continue };
            leaving += heaviest.leaving as u64;
            candidates.extend(heaviest.candidates.into_iter().map(|candidate| Idle { worker, candidate }));
        }
        candidates.sort_unstable_by_key(|found| found.candidate.weight_order());
        let (mut count, mut estimate) = (0, 0);
        for found in candidates {
            if leaving + estimate >= bytes {
                break;
            }
            let pins = (found.candidate.unread + CONNECTION_BYTES) as u64;
            if found.end(ConnectionEnd::Memory).await {
                count += 1;
                estimate += pins;
            }
        }
        (count, estimate)
    }
}

/// A connection of a worker that may be ended.
pub(super) struct Idle<'w> {
    worker: &'w Worker,
    pub(super) candidate: Candidate,
}

impl Idle<'_> {
    /// Ends it. Returns whether it ends: a request may have come meanwhile.
    pub(super) async fn end(self, reason: ConnectionEnd) -> bool {
        let candidate = self.candidate;
        self.worker.ask(|answer| Order::End { candidate, reason, answer }).await.unwrap_or(false)
    }
}
