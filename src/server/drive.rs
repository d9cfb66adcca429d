//! Drives a connection to its end: its own, its age's, the drain's, because others need its room, or that of a
//! caller who takes more than a caller needs.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher as _, RandomState};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use tokio::time::{Sleep, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::connections::{Farewell, Registered};
use super::rarely::Rarely;
use super::stream::{Activity, Ending};
use super::{Handler, Server};
use crate::drain::Stage;
use crate::log::Repeated;
use crate::metrics::BadHttp;
use crate::turns::Pace;

/// How long a connection that was told to end may go on: the longest OpenIM waits, and a little more.
const LAST_ANSWERS: Duration = Duration::from_secs(20);

/// The same on a connection that is not read any more: it does not show when its caller has gone, or has room again.
const DEAF_LIMIT: Duration = Duration::from_secs(1);

/// How long a connection may take to say good-bye.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

impl<H: Handler> Server<H> {
    /// Runs a connection to its end, in the turns of its caller: hundreds may become ready at once.
    pub(super) async fn drive<C: Graceful>(
        &self,
        mut connection: Pin<&mut C>,
        mut pace: Pace,
        activity: &Activity,
        registered: &Registered,
    ) {
        let (mut leave, mut end) = (self.drain.clone(), self.drain.clone());
        let over = async {
            tokio::select! {
                () = end.reached(Stage::Over) => Farewell::Said,
                farewell = registered.ended() => farewell,
            }
        };
        let (leaving, over) = (pin!(leave.reached(Stage::Leaving)), pin!(over));
        let (mut leaving, mut over) = (Rarely::new(leaving), Rarely::new(over));
        // A connection that comes while the pod is leaving is served, and then told to go elsewhere.
        let age = if self.drain.stage() >= Stage::Leaving { Duration::from_secs(1) } else { self.age() };
        let timer = pin!(sleep(age));
        let mut timer = Rarely::new(timer);
        let mut moved = self.drain.stage() >= Stage::Leaving;
        // Over HTTP/1.1 its first answer says so already.
        activity.ending.set(moved && !activity.h2);
        let mut taken = Taken { limit: self.limits.answer_timeout, timer: None };
        loop {
            tokio::select! {
                biased;
                result = poll_fn(|cx| {
                    ready!(pace.poll(cx));
                    connection.as_mut().poll(cx)
                }) => {
                    match (result, activity.refused.get()) {
                        // hyper hides an error between two requests.
                        (_, Some((fault, text))) => self.told(fault, text),
                        (Err(error), None) => self.bad_http(&error),
                        (Ok(()), None) => {}
                    }
                    return;
                }
                why = poll_fn(|cx| misbehaves(activity, &mut taken, cx)) => {
                    let (fault, text) = why.reason();
                    self.told(fault, text);
                    if why.is_at_once() {
                        return;
                    }
                    if !activity.ending.get() {
                        self.end(connection.as_mut(), activity, timer.inner().as_mut());
                    }
                }
                farewell = &mut over => {
                    if farewell == Farewell::Said {
                        connection.as_mut().graceful_shutdown();
                        let _ = timeout(LAST_WORDS, connection.as_mut()).await;
                    }
                    return;
                }
                () = &mut leaving, if !moved => {
                    moved = true;
                    self.end(connection.as_mut(), activity, timer.inner().as_mut());
                }
                () = &mut timer => {
                    if !activity.ending.get() {
                        self.end(connection.as_mut(), activity, timer.inner().as_mut());
                    } else if let Some(later) = self.may_stay(activity) {
                        timer.inner().as_mut().reset(later.into());
                    } else {
                        connection.as_mut().graceful_shutdown();
                        let _ = timeout(LAST_WORDS, connection.as_mut()).await;
                        return;
                    }
                }
            }
        }
    }

    /// What ended a connection with an error: hyper answers by itself with an empty body, or not at all. It never came to the
    /// proxy, and is told here.
    fn bad_http(&self, error: &hyper::Error) {
        let fault = if error.is_parse() || error.is_parse_too_large() {
            BadHttp::Malformed
        } else {
            // Callers that hang up, and HTTP/2 connections that break its rules.
            BadHttp::Ended
        };
        self.told(fault, &error.to_string());
    }

    /// Counts and logs why a connection ended.
    fn told(&self, fault: BadHttp, error: &str) {
        self.metrics.bad_http(fault);
        static BAD_HTTP: [Repeated; BadHttp::ALL.len()] = [const { Repeated::new() }; BadHttp::ALL.len()];
        let (limit, error) = (self.limits.header_timeout, error.to_owned());
        BAD_HTTP[fault as usize].line(move |count| match fault {
            BadHttp::SlowHead => {
                warn!(?limit, count, "The head of a request took longer than --header-timeout");
            }
            BadHttp::Malformed => {
                warn!(
                    error,
                    count, "A request is not HTTP as it should be: its connection is closed, mostly after 400 or 431 with an empty body"
                );
            }
            BadHttp::Flood | BadHttp::Abandons | BadHttp::Unread => {
                warn!(reason = error, count, "A connection is closed: its caller takes more than a caller needs");
            }
            BadHttp::NoMemory => {
                warn!(
                    reason = error,
                    count,
                    "A connection is closed: the bytes held are at --max-held. Raise the container's memory limit, or find out who \
                     sends so much"
                );
            }
            BadHttp::Ended => debug!(error, count, "A connection ended with an error"),
        });
    }

    /// Announces the end: GOAWAY now, or `Connection: close` with the next answer.
    fn end<C: Graceful>(&self, connection: Pin<&mut C>, activity: &Activity, timer: Pin<&mut Sleep>) {
        activity.ending.set(true);
        if activity.h2 {
            connection.graceful_shutdown();
        }
        let stay = if activity.h2 { LAST_ANSWERS } else { self.limits.idle_timeout };
        timer.reset((Instant::now() + stay).into());
    }

    /// Until when a connection whose end was announced may still be there.
    fn may_stay(&self, activity: &Activity) -> Option<Instant> {
        if activity.h2 {
            return None;
        }
        let until = activity.quiet_since.get() + self.limits.idle_timeout;
        let now = Instant::now();
        match (activity.active.get(), until > now) {
            (0, false) => None,
            (0, true) => Some(until),
            (_, _) => Some(now + LAST_ANSWERS),
        }
    }

    /// The age, jittered by a tenth, so that connections that came together do not go together.
    fn age(&self) -> Duration {
        let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
        self.limits.connection_age.mul_f64(0.9 + 0.2 * random)
    }
}

/// When the answers of a connection are looked at again. Without one that waits there is no timer: nearly every answer is
/// taken at once.
struct Taken {
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Taken {
    /// Whether an answer has waited too long to be taken.
    fn is_overdue(&mut self, activity: &Activity, cx: &mut Context<'_>) -> bool {
        if activity.unwritten.is_empty() {
            self.timer = None;
            return false;
        }
        let limit = if activity.deaf.get() { self.limit.min(DEAF_LIMIT) } else { self.limit };
        let now = tokio::time::Instant::now().into_std();
        // What is new is noted at each look.
        let Some(oldest) = activity.unwritten.oldest(now) else { return false };
        let until = oldest + limit;
        if until <= now {
            return true;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until.into())));
        if timer.deadline() != until.into() {
            timer.as_mut().reset(until.into());
        }
        timer.as_mut().poll(cx).is_ready()
    }
}

/// What a connection is ended for.
#[derive(Clone, Copy)]
enum Misbehaves {
    Unread,
    Ending(Ending),
    /// Nothing of what it abandoned is left.
    Gone,
}

impl Misbehaves {
    fn is_at_once(self) -> bool {
        match self {
            Misbehaves::Unread | Misbehaves::Gone | Misbehaves::Ending(Ending::NoMemory) => true,
            Misbehaves::Ending(Ending::Crowded | Ending::Abandons) => false,
        }
    }

    /// For the metric and for the log.
    fn reason(self) -> (BadHttp, &'static str) {
        match self {
            Misbehaves::Unread => (BadHttp::Unread, "an answer was not taken in time"),
            Misbehaves::Ending(Ending::NoMemory) => {
                (BadHttp::NoMemory, "a callback that not even a refusal can be kept for")
            }
            Misbehaves::Ending(Ending::Crowded) => {
                (BadHttp::NoMemory, "header fields that the connection keeps")
            }
            Misbehaves::Ending(Ending::Abandons) => (BadHttp::Abandons, "most callbacks are abandoned"),
            Misbehaves::Gone => (BadHttp::Ended, "a connection whose callbacks were abandoned"),
        }
    }
}

/// Looked at after each poll of the connection, in the same task: whatever changes it has woken that.
fn misbehaves(activity: &Activity, taken: &mut Taken, cx: &mut Context<'_>) -> Poll<Misbehaves> {
    if let Some(why) = activity.take_verdict() {
        return Poll::Ready(Misbehaves::Ending(why));
    }
    if activity.is_through(cx) {
        return Poll::Ready(Misbehaves::Gone);
    }
    if taken.is_overdue(activity, cx) { Poll::Ready(Misbehaves::Unread) } else { Poll::Pending }
}

/// The two kinds of connection hyper serves.
pub(super) trait Graceful: Future<Output = hyper::Result<()>> {
    /// Takes no more requests and ends when those under way are answered.
    fn graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S> Graceful for http1::Connection<I, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http1::Connection::graceful_shutdown(self);
    }
}

impl<I, B, S, E> Graceful for http2::Connection<I, S, E>
where
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn graceful_shutdown(self: Pin<&mut Self>) {
        http2::Connection::graceful_shutdown(self);
    }
}
