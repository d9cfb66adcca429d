//! The connections of an admin port: each one is accepted at once, and ends soon.
//!
//! kubelet's probes come through the same door as everybody else. If they had to wait until others left, a crowd of silent
//! sockets would fail them, and kubelet would kill a healthy container. So nobody waits: at the limit the address with the most
//! connections loses one. It is the oldest without a request in hand, if there is one in the oldest quarter, else the oldest.
//! The younger ones are left alone: a probe sends its request with its connection, and is gone before it is old. If no address has
//! many, as when each connection has an address of its own, any connection that is not young goes before those that are.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::warn;

use super::Answer;
use super::caller::Ends;
use crate::descriptors;
use crate::log::Repeated;
use crate::metrics::admin::{AdminMetrics, Closed};

/// Buffer of a connection, and so the limit of a head: browsers send the cookies of everything that ever ran on localhost.
const BUFFER_BYTES: usize = 16 << 10;

/// Buffer of the kernel for what a caller does not read, of each connection: by default it grows to megabytes.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// The part of the connections, one in so many, that may be replaced in one turn of the event loop. A request is read in the
/// second turn after its connection was accepted, long before all places have gone round; and a full queue of the kernel
/// is taken in within some tens of turns, however long a turn of a large crowd takes.
const REPLACED_AT_ONCE: usize = 8;

/// How long a connection may stay at least, per place: 25 ms of the default limit, or 10,000 new connections a second for any.
/// The kernel queues a thousand, which would otherwise replace one another before any of them could send its request.
const STAY_PER_PLACE: Duration = Duration::from_micros(100);

/// The most that [`STAY_PER_PLACE`] adds up to: no probe waits longer for the port to accept it.
const LONGEST_STAY: Duration = Duration::from_millis(100);

/// The part of the connections, one in so many, beyond which an address has many. With [`STAY_PER_PLACE`] some 1,000 new connections are
/// accepted a second whatever addresses they have: one of an address is waited for only if three quarters of so many came after it.
const MANY: usize = 8;

/// How long a further request of a connection waits. Probes send one, scrapers and people one in seconds; a connection that
/// sends thousands at once must not cost more than the connection of a probe.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(100);

/// How long the accept loop rests after an error that closing a connection does not mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The bounds of an admin port.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; fewer if few files may be open.
    pub connections: usize,
    /// How long a connection may last as a whole.
    pub timeout: Duration,
}

/// What answers a request: the pages with their type forgotten, so that the server is compiled once.
pub(super) type Answering = dyn Fn(&Request<Incoming>, Ends) -> Answer;

/// Accepts for ever.
pub(super) async fn accept(
    answering: Rc<Answering>,
    listener: TcpListener,
    limits: Limits,
    metrics: AdminMetrics,
) {
    let crowd = Rc::new(Crowd::new(limits, metrics));
    static FAILING: Repeated = Repeated::new();
    // Inherited by the connections. What cannot be set costs memory of the kernel alone.
    let _ = SockRef::from(&listener).set_send_buffer_size(SEND_BUFFER_BYTES);
    let mut replaced = 0;
    loop {
        let accepted = listener.accept().await.and_then(|(stream, peer)| {
            let local = stream.local_addr()?;
            Ok((stream, Ends { peer, local }))
        });
        match accepted {
            Ok((stream, ends)) => {
                let limit = descriptors::admin_share(limits.connections);
                if let Some(rest) = crowd.until_room(limit, Instant::now()) {
                    tokio::time::sleep(rest).await;
                }
                replaced += usize::from(crowd.make_room(limit, Closed::Limit));
                crowd.admit(stream, ends, &answering);
                if replaced > limit / REPLACED_AT_ONCE {
                    // Whoever has sent something is answered before more take the places of those who have not.
                    replaced = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                let short = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                if short && crowd.make_room(crowd.len(), Closed::OpenFiles) {
                    tokio::task::yield_now().await;
                    continue;
                }
                FAILING.line(move |count| {
                    warn!(%error, count, "A connection to the admin port cannot be accepted; trying again");
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All connections of the port.
struct Crowd {
    limits: Limits,
    members: RefCell<Members>,
    next: Cell<u64>,
    metrics: AdminMetrics,
}

/// Connections by the network of their peer and then by their number, the oldest first.
#[derive(Default)]
struct Members(BTreeMap<IpAddr, BTreeMap<u64, Member>>);

/// Whose connections are counted together: those of an address, of IPv6 the first 64 bits, as one host may have them all.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

/// The connection that makes room for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dispensable {
    address: IpAddr,
    number: u64,
    /// How long it may stay before that.
    rest: Duration,
}

struct Member {
    progress: Rc<Progress>,
    task: AbortHandle,
    since: Instant,
}

impl Members {
    fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<Member> {
        let of_address = self.0.get_mut(&address)?;
        let removed = of_address.remove(&number);
        if of_address.is_empty() {
            self.0.remove(&address);
        }
        removed
    }

    /// Which connection makes room for another, if so many are allowed.
    fn dispensable(&self, limit: usize, now: Instant) -> Option<Dispensable> {
        let stay = STAY_PER_PLACE * u32::try_from(limit).unwrap_or(u32::MAX);
        let stay = stay.min(LONGEST_STAY);
        let rest = |member: &Member| stay.saturating_sub(now.saturating_duration_since(member.since));
        let many = (limit / MANY).max(1);
        let candidates = self.0.iter().filter_map(|(address, members)| {
            let count = members.len();
            let crowd = if count > many { count } else { 0 };
            let mut oldest = members.iter().take(count.div_ceil(4));
            // Of a crowd one that is in the oldest quarter is soon not young any more: many came after it.
            let may_go = |member: &Member| crowd > 0 || rest(member).is_zero();
            let idle = oldest.find(|(_, member)| !member.progress.in_hand.get() && may_go(member));
            let (number, member) = idle.or_else(|| members.iter().next())?;
            let (number, rest) = (*number, rest(member));
            let order = (crowd, rest.is_zero(), count, idle.is_some(), Reverse(number));
            Some((order, Dispensable { address: *address, number, rest }))
        });
        candidates.max_by_key(|(order, _)| *order).map(|(_, found)| found)
    }
}

impl Crowd {
    fn new(limits: Limits, metrics: AdminMetrics) -> Crowd {
        Crowd { limits, members: RefCell::default(), next: Cell::new(0), metrics }
    }

    fn len(&self) -> usize {
        self.members.borrow().len()
    }

    /// How long until there is room below this limit, or somebody may be closed.
    fn until_room(&self, limit: usize, now: Instant) -> Option<Duration> {
        let members = self.members.borrow();
        if members.len() < limit {
            return None;
        }
        members.dispensable(limit, now).map(|found| found.rest).filter(|rest| !rest.is_zero())
    }

    /// Closes connections until there are fewer than this; says whether it closed any.
    fn make_room(&self, limit: usize, reason: Closed) -> bool {
        let mut members = self.members.borrow_mut();
        let mut closed = false;
        while members.len() >= limit.max(1) {
            let found = members.dispensable(limit, Instant::now());
            let Some(Dispensable { address, number, .. }) = found else { break };
            let Some(member) = members.remove(address, number) else { break };
            member.task.abort();
            self.closed(reason);
            closed = true;
        }
        closed
    }

    /// Serves a connection in a task of its own.
    fn admit(self: &Rc<Self>, stream: TcpStream, ends: Ends, answering: &Rc<Answering>) {
        let number = self.next.replace(self.next.get() + 1);
        let address = network(ends.peer.ip());
        let progress = Rc::new(Progress::default());
        let (crowd, answering, own) = (Rc::clone(self), Rc::clone(answering), Rc::clone(&progress));
        let task = tokio::task::spawn_local(async move {
            // A probe that closes its connection early is not a problem, and neither is one that breaks the rules of HTTP.
            let served = timeout(crowd.limits.timeout, serve(stream, ends, &answering, &own)).await;
            crowd.members.borrow_mut().remove(address, number);
            // One that was answered and stays, as scrapers do, ends without a word.
            if served.is_err() && (own.in_hand.get() || !own.asked.get()) {
                crowd.closed(Closed::Timeout);
            }
        });
        let member = Member { progress, task: task.abort_handle(), since: Instant::now() };
        self.members.borrow_mut().0.entry(address).or_default().insert(number, member);
    }

    fn closed(&self, reason: Closed) {
        self.metrics.closed(reason);
        let Limits { connections, timeout } = self.limits;
        /// In the order of [`Closed`].
        static LINES: [Repeated; Closed::ALL.len()] = [const { Repeated::new() }; Closed::ALL.len()];
        LINES[reason as usize].line(move |count| match reason {
            Closed::Limit => warn!(
                count,
                limit = descriptors::admin_share(connections),
                "The admin port has as many connections as it may: the oldest were closed for new ones. Find out who opens \
                 them, and keep them out with a NetworkPolicy"
            ),
            Closed::OpenFiles => warn!(
                count,
                "The admin port closed its oldest connections for new ones: the process has no file descriptor left"
            ),
            Closed::Timeout => warn!(
                count,
                ?timeout,
                "The admin port closed connections that sent no request, or did not read the answer, within --admin-timeout"
            ),
        });
    }
}

async fn serve(stream: TcpStream, ends: Ends, answering: &Rc<Answering>, progress: &Rc<Progress>) {
    let service = service_fn(move |request: Request<Incoming>| {
        progress.in_hand.set(true);
        progress.made.set(false);
        async move {
            if progress.asked.replace(true) {
                tokio::time::sleep(BETWEEN_REQUESTS).await;
            }
            let response = answering(&request, ends);
            progress.made.set(true);
            Ok::<_, Infallible>(response)
        }
    });
    let io = Watched { stream: TokioIo::new(stream), progress: Rc::clone(progress) };
    let served = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(io, service)
        .await;
    drop(served);
}

/// How far a connection is.
#[derive(Debug, Default)]
struct Progress {
    /// A request has come whose answer the kernel has not taken yet.
    in_hand: Cell<bool>,
    /// That answer is made.
    made: Cell<bool>,
    /// A request has come at all.
    asked: Cell<bool>,
}

/// A stream that sees when an answer has left: hyper flushes when it has written all it had.
struct Watched {
    stream: TokioIo<TcpStream>,
    progress: Rc<Progress>,
}

impl hyper::rt::Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(task, into)
    }
}

impl hyper::rt::Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(task));
        if self.progress.made.get() {
            self.progress.in_hand.set(false);
        }
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(connections: impl IntoIterator<Item = (u64, IpAddr, bool)>, since: Instant) -> Members {
        let mut members = Members::default();
        for (number, address, in_hand) in connections {
            let progress = Rc::new(Progress::default());
            progress.in_hand.set(in_hand);
            let task = tokio::spawn(async {}).abort_handle();
            members.0.entry(address).or_default().insert(number, Member { progress, task, since });
        }
        members
    }

    /// Connections as (number, last part of the address, whether a request is in hand), none of them young.
    fn dispensable(connections: impl IntoIterator<Item = (u64, u8, bool)>) -> Option<u64> {
        let of_address = |(number, address, in_hand)| (number, IpAddr::from([10, 0, 0, address]), in_hand);
        let since = Instant::now();
        let members = members(connections.into_iter().map(of_address), since);
        let found = members.dispensable(members.len(), since + LONGEST_STAY);
        assert!(found.is_none_or(|found| found.rest.is_zero()));
        found.map(|found| found.number)
    }

    #[tokio::test]
    async fn the_oldest_without_a_request_in_hand_makes_room() {
        assert_eq!(dispensable([]), None);
        assert_eq!(dispensable((0..8).map(|number| (number, 1, false))), Some(0));
        assert_eq!(dispensable((0..8).map(|number| (number, 1, number == 0))), Some(1));
        assert_eq!(dispensable((0..8).map(|number| (number, 1, true))), Some(0));
    }

    #[tokio::test]
    async fn the_young_are_left_alone_though_all_others_have_a_request_in_hand() {
        assert_eq!(dispensable((0..8).map(|number| (number, 1, number < 7))), Some(0));
        assert_eq!(dispensable((0..8).map(|number| (number, 1, number < 2))), Some(0));
        assert_eq!(dispensable((0..8).map(|number| (number, 1, number < 1))), Some(1), "the twin");
    }

    #[tokio::test]
    async fn the_address_with_the_most_connections_loses_one() {
        let crowd = (10..20).map(|number| (number, 1, true));
        assert_eq!(
            dispensable([(0, 2, false), (1, 3, false), (2, 3, false)].into_iter().chain(crowd)),
            Some(10)
        );
        let each_its_own =
            |in_hand: u8| (0..8).map(move |number| (u64::from(number), number, number < in_hand));
        assert_eq!(dispensable(each_its_own(0)), Some(0));
        assert_eq!(dispensable(each_its_own(3)), Some(3));
        assert_eq!(dispensable(each_its_own(8)), Some(0));
    }

    #[tokio::test]
    async fn a_connection_stays_for_a_moment_before_another_takes_its_place() {
        let limits = Limits { connections: 250, timeout: Duration::from_secs(1) };
        let crowd = Crowd::new(limits, AdminMetrics::default());
        let begun = Instant::now();
        for number in 0..250 {
            let (progress, task) = (Rc::default(), tokio::spawn(async {}).abort_handle());
            let mut members = crowd.members.borrow_mut();
            let of_address = members.0.entry(IpAddr::from([10, 0, 0, 1])).or_default();
            of_address.insert(number, Member { progress, task, since: begun });
        }
        let at = |limit, millis| crowd.until_room(limit, begun + Duration::from_millis(millis));
        assert_eq!(at(250, 0), Some(Duration::from_millis(25)));
        assert_eq!(at(250, 24), Some(Duration::from_millis(1)));
        assert_eq!(at(250, 25), None);
        assert_eq!(at(251, 0), None, "the twin: there is room");
        assert_eq!(at(10, 0), Some(Duration::from_millis(1)), "few places go round faster");
        assert_eq!(at(10, 1), None);
    }
    /// Connections that each have an address of their own, from this number on.
    fn each_from_elsewhere(
        numbers: std::ops::Range<u16>,
        in_hand: bool,
    ) -> impl Iterator<Item = (u64, IpAddr, bool)> {
        numbers.map(move |number| {
            let [high, low] = number.to_be_bytes();
            (number.into(), IpAddr::from([10, 0, high, low]), in_hand)
        })
    }

    #[tokio::test]
    async fn a_newcomer_is_no_more_idle_than_others_that_each_have_an_address_of_their_own() {
        const STAY: Duration = Duration::from_millis(25);
        let begun = Instant::now();
        let later = begun + Duration::from_secs(1);
        let mut crowd = members(each_from_elsewhere(0..249, true), begun);
        crowd.0.append(&mut members(each_from_elsewhere(249..250, false), later).0);
        let found = |crowd: &Members, now| {
            let found = crowd.dispensable(250, now).expect("250 connections");
            (found.number, found.rest)
        };
        assert_eq!(found(&crowd, later), (0, Duration::ZERO), "nobody waits for the newcomer to grow old");
        assert_eq!(found(&crowd, later + STAY), (249, Duration::ZERO), "the twin: it had its time");
        // Two of one address are not many.
        crowd.0.append(&mut members([(250, IpAddr::from([10, 0, 0, 249]), false)], later).0);
        assert_eq!(found(&crowd, later), (0, Duration::ZERO));
        let young = members(each_from_elsewhere(0..250, true), later);
        assert_eq!(found(&young, later), (0, STAY), "the oldest, if all are young");
    }

    #[tokio::test]
    async fn many_connections_of_an_address_make_room_before_an_old_one_of_another() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(1);
        let one = |count: u64| (100..100 + count).map(|number| (number, IpAddr::from([10, 9, 9, 9]), false));
        for (count, expected) in [(32, 100), (31, 0)] {
            let mut crowd = members(each_from_elsewhere(0..100, false), begun);
            crowd.0.append(&mut members(one(count), later).0);
            assert_eq!(crowd.dispensable(250, later).expect("some").number, expected, "{count}");
        }
    }

    #[test]
    fn the_addresses_of_an_ipv6_host_count_together() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
