//! The idle connections to the app: those that are ready for the next request, and those that rest.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::connection::{Connection, Found};

/// How long a pooled connection may be idle and still be used. The shortest keep-alive in common use is gunicorn's 2 s,
/// then Node's and uvicorn's 5 s; half of the shortest keeps the app's closing and our writing well apart. A new
/// connection over loopback costs 0.1 ms.
const IDLE_LIMIT: Duration = Duration::from_secs(1);

/// Most idle connections of a worker: as many as one OpenIM process can have callbacks in flight over HTTP/1.
pub const KEPT_CONNECTIONS: usize = 100;

/// Idle connections.
#[derive(Debug)]
pub(super) struct Pool {
    /// Longest use of a connection between two rests.
    pub(super) use_limit: Duration,
    /// The one that was used last is at the end.
    ready: Vec<Idle>,
    /// In the order in which their rests end.
    resting: VecDeque<(Instant, Idle)>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

/// What the pool has.
pub(super) enum Taken {
    /// An open connection on which nothing is waiting to be read.
    Connection(Connection),
    None,
    /// A connection had bytes that no request was waiting for. It is closed.
    Unsolicited,
}

impl Pool {
    /// An empty one. A connection rests after it was used for `use_limit`, and for other reasons.
    pub(super) fn new(use_limit: Duration) -> Pool {
        Pool { use_limit, ready: Vec::new(), resting: VecDeque::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.resting.len()
    }

    /// When the first rest ends.
    pub(super) fn first_rested(&self) -> Option<Instant> {
        self.resting.front().map(|(until, _)| *until)
    }

    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.resting.clear();
    }

    /// Adds a connection whose last answer was read to its end, with nothing behind it.
    pub(super) fn put(&mut self, connection: Connection, now: Instant) {
        let idle = Idle { connection, since: now };
        if idle.connection.usage.is_over(now, self.use_limit) {
            self.rest(idle, now);
        } else if self.len() < KEPT_CONNECTIONS {
            self.ready.push(idle);
        }
    }

    fn rest(&mut self, idle: Idle, now: Instant) {
        let rest = idle.connection.usage.rest();
        if rest < IDLE_LIMIT && self.len() < KEPT_CONNECTIONS {
            // What the app's kernel holds back until then is sent now, and is there at the end of the rest.
            idle.connection.acknowledge();
            let until = now + rest;
            let at = self.resting.partition_point(|(other, _)| *other <= until);
            self.resting.insert(at, (until, idle));
        }
    }

    /// A connection that has rested, or else the one that was used last. Those that rested come first, so that one answer too
    /// many is found as soon as it can be.
    pub(super) fn take(&mut self, now: Instant) -> Taken {
        loop {
            let rested = self.resting.pop_front_if(|(until, _)| *until <= now).map(|(_, idle)| idle);
            let (Idle { mut connection, since }, mut rested) = match rested {
                Some(idle) => (idle, true),
                None => match self.ready.pop() {
                    Some(idle) => (idle, false),
                    None => return Taken::None,
                },
            };
            let idle = now.saturating_duration_since(since);
            if idle >= IDLE_LIMIT && !rested {
                // All below it have been idle for longer. What they have to say counts all the same.
                let below = self.ready.drain(..).map(|idle| idle.connection);
                if below.chain([connection]).any(|connection| connection.found() == Found::Unsolicited) {
                    return Taken::Unsolicited;
                }
                continue;
            }
            // Over loopback, what an acknowledgment releases is there when the call returns.
            if !rested && connection.is_local() && idle >= connection.usage.rest() {
                connection.acknowledge();
                rested = true;
            }
            if rested {
                connection.usage.rested();
            } else if connection.usage.is_over(now, self.use_limit) {
                self.rest(Idle { connection, since }, now);
                continue;
            }
            match connection.found() {
                Found::Unsolicited => return Taken::Unsolicited,
                Found::Nothing if idle < IDLE_LIMIT => return Taken::Connection(connection),
                Found::Nothing | Found::End => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::super::connection::Connection;
    use super::super::delivery::TcpInfo;
    use super::super::dial::{Address, Dialer};
    use super::super::reuse::{LEAST_REST, USE_LIMIT, USES_LIMIT};
    use super::super::stream::Stream;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    impl Pool {
        /// The connection that was added last, or else one that rests.
        pub(in super::super) fn newest(&self) -> &Connection {
            let resting = self.resting.back().map(|(_, idle)| idle);
            &self.ready.last().or(resting).expect("an idle connection").connection
        }

        /// Takes the same, whatever there is to read.
        pub(in super::super) fn pop(&mut self) -> Connection {
            let idle = self.ready.pop().or_else(|| self.resting.pop_back().map(|(_, idle)| idle));
            idle.expect("an idle connection").connection
        }
    }

    /// A connection with the app's end of it.
    async fn connected() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = Address::Ip(listener.local_addr().expect("bound"));
        let connection = Connection::open(&Dialer::new(address)).await.expect("it listens");
        (connection, listener.accept().expect("connected").0)
    }

    /// So many exchanges of one length, up to `now`.
    fn use_it(connection: &mut Connection, times: u32, each: Duration, now: Instant) {
        for _ in 0..times {
            connection.usage.exchanged(now - each, now);
        }
    }

    fn word(taken: &Taken) -> &'static str {
        match taken {
            Taken::Connection(_) => "connection",
            Taken::None => "none",
            Taken::Unsolicited => "unsolicited",
        }
    }

    #[tokio::test]
    async fn a_connection_is_ready_at_once_or_rests() {
        let now = Instant::now();
        for (times, each, rest) in [
            (1, MS, Duration::ZERO),
            (USES_LIMIT - 1, MS, Duration::ZERO),
            (USES_LIMIT, MS, LEAST_REST),
            (USES_LIMIT, 4 * MS, 8 * MS),
            (1, USE_LIMIT, 2 * USE_LIMIT),
        ] {
            let (mut connection, _app) = connected().await;
            use_it(&mut connection, times, each, now);
            let mut pool = Pool::new(USE_LIMIT);
            pool.put(connection, now);
            assert_eq!(pool.len(), 1);
            if let Some(before) = rest.checked_sub(MS / 10) {
                assert_eq!(word(&pool.take(now + before)), "none", "{times} of {each:?}");
            }
            let Taken::Connection(connection) = pool.take(now + rest) else {
                panic!("{times} of {each:?}: it has rested")
            };
            let over = connection.usage.is_over(now + rest, USE_LIMIT);
            assert!(!over && pool.len() == 0, "{times} of {each:?}");
        }
    }

    #[tokio::test]
    async fn an_exchange_too_slow_for_a_rest_ends_its_connection() {
        let now = Instant::now();
        let (mut connection, mut app) = connected().await;
        use_it(&mut connection, 1, IDLE_LIMIT / 2, now);
        let mut pool = Pool::new(USE_LIMIT);
        pool.put(connection, now);
        assert_eq!((pool.len(), app.read(&mut [0]).expect("a socket")), (0, 0));
    }

    #[tokio::test]
    async fn an_idle_connection_rests_by_itself_and_a_busy_one_is_made_to() {
        let now = Instant::now();
        for (pause, word_) in [(MS, "none"), (LEAST_REST, "connection")] {
            let (mut connection, _app) = connected().await;
            use_it(&mut connection, USES_LIMIT - 1, MS, now);
            let mut pool = Pool::new(USE_LIMIT);
            pool.put(connection, now);
            let Taken::Connection(mut connection) = pool.take(now + pause) else { panic!("it is ready") };
            use_it(&mut connection, 1, MS, now + pause);
            pool.put(connection, now + pause);
            assert_eq!(word(&pool.take(now + pause)), word_, "{pause:?}");
        }
    }

    #[tokio::test]
    async fn one_answer_too_many_is_found_before_the_next_request_and_at_the_end_of_a_rest() {
        let now = Instant::now();
        for (times, later) in [(1, Duration::ZERO), (1, LEAST_REST), (USES_LIMIT, LEAST_REST)] {
            for (bytes, expected) in [
                (ANSWER, "unsolicited"),
                (&b"\r\n"[..], "unsolicited"),
                (b"HTTP/1.1 408 Request Timeout\r\n\r\n", "none"),
                (b"", "connection"),
            ] {
                let (mut connection, mut app) = connected().await;
                use_it(&mut connection, times, MS, now);
                app.write_all(bytes).expect("a socket");
                if !bytes.is_empty() {
                    wait_for_bytes(&connection);
                }
                let mut pool = Pool::new(USE_LIMIT);
                pool.put(connection, now);
                assert_eq!(word(&pool.take(now + later)), expected, "{times}, {later:?}, {bytes:?}");
            }
        }
    }

    #[tokio::test]
    async fn over_a_unix_socket_it_is_found_too() {
        let path = std::env::temp_dir().join(format!("callback-guard-pool-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let now = Instant::now();
        for (bytes, expected) in [(ANSWER, "unsolicited"), (b"", "connection")] {
            let connection = Connection::open(&Dialer::new(Address::Unix(path.clone()))).await;
            let mut connection = connection.expect("it listens");
            let mut app: UnixStream = listener.accept().expect("connected").0;
            app.write_all(bytes).expect("a socket");
            use_it(&mut connection, USES_LIMIT, MS, now);
            let mut pool = Pool::new(USE_LIMIT);
            pool.put(connection, now);
            assert_eq!(word(&pool.take(now)), "none");
            assert_eq!(word(&pool.take(now + LEAST_REST)), expected);
        }
        std::fs::remove_file(path).expect("the socket's file");
    }

    #[tokio::test]
    async fn those_that_rested_come_first_and_none_is_used_after_a_second() {
        let now = Instant::now();
        let mut pool = Pool::new(USE_LIMIT);
        let mut apps = Vec::new();
        for times in [USES_LIMIT, 1] {
            let (mut connection, mut app) = connected().await;
            use_it(&mut connection, times, MS, now);
            if times == USES_LIMIT {
                app.write_all(ANSWER).expect("a socket");
                wait_for_bytes(&connection);
            }
            pool.put(connection, now);
            apps.push(app);
        }
        assert_eq!(word(&pool.take(now + LEAST_REST)), "unsolicited");
        assert_eq!(word(&pool.take(now + IDLE_LIMIT)), "none");
        assert_eq!(pool.len(), 0);
        for (times, bytes, expected) in [
            (USES_LIMIT, &b""[..], "none"),
            (1, b"", "none"),
            (USES_LIMIT, ANSWER, "unsolicited"),
            (1, ANSWER, "unsolicited"),
        ] {
            let (mut connection, mut app) = connected().await;
            app.write_all(bytes).expect("a socket");
            if !bytes.is_empty() {
                wait_for_bytes(&connection);
            }
            use_it(&mut connection, times, MS, now);
            pool.put(connection, now);
            assert_eq!((word(&pool.take(now + IDLE_LIMIT)), pool.len()), (expected, 0), "{times}, {bytes:?}");
        }
    }

    #[tokio::test]
    async fn at_most_a_hundred_are_kept_ready_or_resting() {
        let now = Instant::now();
        let mut pool = Pool::new(USE_LIMIT);
        for number in 0..KEPT_CONNECTIONS + 10 {
            let (mut connection, _app) = connected().await;
            use_it(&mut connection, if number % 2 == 0 { 1 } else { USES_LIMIT }, MS, now);
            pool.put(connection, now);
        }
        assert_eq!(pool.len(), KEPT_CONNECTIONS);
    }

    #[tokio::test]
    async fn a_rest_begins_with_an_acknowledgment() {
        // An answer to a request is acknowledged with the next request, or 40 ms later: a busy machine may be slower than
        // that, so one time of many is enough.
        let seen = async |times: u32| {
            for _ in 0..200 {
                let now = Instant::now();
                let (mut connection, mut app) = connected().await;
                let Stream::Tcp(near) = &connection.stream else { panic!("it is TCP") };
                let near = socket2::SockRef::from(near);
                for _ in 0..20 {
                    let mut buffer = [0; 64];
                    near.send(b"request").expect("a socket");
                    let _ = app.read(&mut buffer).expect("a socket");
                    app.write_all(ANSWER).expect("a socket");
                    wait_for_bytes(&connection);
                    let _ = (&*near).read(&mut buffer).expect("an answer");
                }
                let acked = || TcpInfo::of(app.as_fd()).expect("TCP").bytes_acked;
                let before = acked();
                use_it(&mut connection, times, MS, now);
                let mut pool = Pool::new(USE_LIMIT);
                pool.put(connection, now);
                if acked() > before {
                    return true;
                }
            }
            false
        };
        assert!(seen(USES_LIMIT).await);
    }

    fn wait_for_bytes(connection: &Connection) {
        let Stream::Tcp(near) = &connection.stream else { panic!("it is TCP") };
        let near = socket2::SockRef::from(near);
        let begun = Instant::now();
        while near.peek(&mut [std::mem::MaybeUninit::uninit()]).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "what was sent does not come");
        }
    }
}
