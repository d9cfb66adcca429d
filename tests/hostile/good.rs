//! Good callers beside an attack: each sends 100 callbacks a second and checks every answer. They go before everything else on the
//! machine, on a thread of their own, and come from 127.0.0.1; attackers come from elsewhere.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsConnector;

use crate::priority;
use crate::support::Authority;
use crate::toy::DENIED;

/// The command of every good callback.
pub(crate) const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

/// The timeout of the rule for [`Kind::Silent`].
pub(crate) const SILENT_TIMEOUT: Duration = Duration::from_millis(300);

/// The rules that the good callers' answers come from; to be the first of a policy.
pub(crate) const RULES: &str = "  - {name: good, match: {sendIDs: [good]}, answer: Allow}
  - {name: quick, match: {sendIDs: [quick]}, timeout: 1s}
  - {name: silent, match: {sendIDs: [silent]}, timeout: 300ms, fallback: Deny, deny: {errCode: 5300, errMsg: late}}
";

/// Between two callbacks of one caller.
const PACE: Duration = Duration::from_millis(10);

/// Between two connections of [`Kind::Fresh`]: 20 handshakes a second.
const FRESH_PACE: Duration = Duration::from_millis(50);

/// What is not there by then does not come: longer than any timeout of OpenIM's.
const MISSING: Duration = Duration::from_secs(5);

/// How often a callback is sent that was not accepted because its connection ended, as Go does.
const TRIES: usize = 3;

/// Callbacks before the attack, which are not counted: handshakes and first allocations.
const WARM: Duration = Duration::from_millis(400);

/// A good caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Answered by a rule; one kept connection over HTTP/1.1.
    Rule,
    /// Answered by a quick app; one kept connection over HTTP/1.1.
    App,
    /// The app says nothing, and the fallback answers; one kept connection over HTTP/2.
    Silent,
    /// As [`Kind::Rule`], with a new connection for each callback, which counts.
    Fresh,
}

pub(crate) const KEPT: [Kind; 3] = [Kind::Rule, Kind::App, Kind::Silent];
pub(crate) const KEPT_AND_FRESH: [Kind; 4] = [Kind::Rule, Kind::App, Kind::Silent, Kind::Fresh];

/// One callback of a good caller.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) kind: Kind,
    pub(crate) sent: Instant,
    pub(crate) ended: Instant,
    /// Why it is not the right answer, if it is not.
    pub(crate) wrong: Option<String>,
}

impl Sample {
    /// How much later it came than it had to: behind the deadline for [`Kind::Silent`], at all for the others.
    pub(crate) fn lateness(&self) -> Duration {
        let due = if self.kind == Kind::Silent { SILENT_TIMEOUT } else { Duration::ZERO };
        (self.ended - self.sent).saturating_sub(due)
    }
}

/// The callers at work.
pub(crate) struct Good {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Vec<Sample>>>,
    counted_from: Instant,
}

impl Good {
    /// Starts them, and returns when they are warm.
    pub(crate) fn start(address: SocketAddr, kinds: &'static [Kind]) -> Good {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let work = move || {
            let _ = priority::first_in(priority::GOOD_CALLERS);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let callers = Rc::new(Callers {
                address,
                configs: ["http/1.1", "h2"].map(|alpn| Authority::common().trusted_by(&[alpn], None)),
                stop: stopped,
                samples: RefCell::new(Vec::with_capacity(1 << 14)),
            });
            let local = LocalSet::new();
            for kind in kinds {
                local.spawn_local(Rc::clone(&callers).run(*kind));
            }
            // Ends when every caller has, and every callback under way is answered or missing.
            runtime.block_on(local);
            callers.samples.take()
        };
        let thread = thread::Builder::new().name("good callers".to_owned()).spawn(work).expect("a thread");
        #[allow(clippy::disallowed_methods, reason = "no runtime runs on this thread")]
        thread::sleep(WARM);
        Good { stop, thread: Some(thread), counted_from: Instant::now() }
    }

    /// Stops them when their callbacks under way are answered, and returns what came of all that were sent since they were warm.
    pub(crate) fn stop(mut self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("stopped once");
        let mut samples = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        samples.retain(|sample| sample.sent >= self.counted_from);
        samples
    }
}

impl Drop for Good {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How often each reason comes up among wrong answers.
pub(crate) fn reasons(samples: &[Sample]) -> BTreeMap<String, usize> {
    let mut reasons = BTreeMap::new();
    for sample in samples {
        if let Some(reason) = &sample.wrong {
            *reasons.entry(format!("{:?}: {reason}", sample.kind)).or_default() += 1;
        }
    }
    reasons
}

struct Callers {
    address: SocketAddr,
    /// For HTTP/1.1 and for HTTP/2.
    configs: [Arc<ClientConfig>; 2],
    stop: Arc<AtomicBool>,
    samples: RefCell<Vec<Sample>>,
}

enum Sender {
    H1(http1::SendRequest<Full<Bytes>>),
    H2(http2::SendRequest<Full<Bytes>>),
}

impl Callers {
    async fn run(self: Rc<Self>, kind: Kind) {
        let mut ticks = interval(if kind == Kind::Fresh { FRESH_PACE } else { PACE });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept = None;
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            number += 1;
            if kind == Kind::Fresh {
                // Open loop: the next caller does not wait for this one.
                tokio::task::spawn_local(Rc::clone(&self).fresh(number));
                continue;
            }
            let begun = Instant::now();
            let sender = match kept.take().filter(Sender::is_open) {
                Some(sender) => Ok(sender),
                None => self.connect(kind == Kind::Silent).await,
            };
            match sender {
                // Streams do not wait for one another; over HTTP/1.1 callbacks do.
                Ok(Sender::H2(sender)) => {
                    kept = Some(Sender::H2(sender.clone()));
                    tokio::task::spawn_local(Rc::clone(&self).kept(kind, Sender::H2(sender), number, begun));
                }
                Ok(sender) => kept = Rc::clone(&self).kept(kind, sender, number, begun).await,
                Err(why) => self.note(kind, begun, Some(why)),
            }
        }
    }

    /// Sends one callback over a connection that may have ended meanwhile, then over another one; returns the last.
    async fn kept(
        self: Rc<Self>,
        kind: Kind,
        mut sender: Sender,
        number: u64,
        begun: Instant,
    ) -> Option<Sender> {
        for _ in 0..TRIES {
            if let Some(wrong) = self.call(kind, &mut sender, number).await {
                self.note(kind, begun, wrong);
                return Some(sender);
            }
            match self.connect(kind == Kind::Silent).await {
                Ok(another) => sender = another,
                Err(why) => {
                    self.note(kind, begun, Some(why));
                    return None;
                }
            }
        }
        self.note(kind, begun, Some(format!("not accepted {TRIES} times")));
        None
    }

    async fn fresh(self: Rc<Self>, number: u64) {
        let begun = Instant::now();
        let wrong = match self.connect(false).await {
            Ok(mut sender) => {
                let wrong = self.call(Kind::Fresh, &mut sender, number).await;
                wrong.unwrap_or_else(|| Some("not accepted".to_owned()))
            }
            Err(why) => Some(why),
        };
        self.note(Kind::Fresh, begun, wrong);
    }

    /// Sends one callback and returns why its answer is wrong or missing, if it is; `None` if nothing of it was sent, because the connection's end had been announced: then Go sends it
    /// on the next one.
    async fn call(&self, kind: Kind, sender: &mut Sender, number: u64) -> Option<Option<String>> {
        let operation = format!("{kind:?}-{number}");
        let outcome = timeout(MISSING, sender.send(kind, &operation)).await;
        let wrong = match outcome {
            Err(_) => Some("no answer".to_owned()),
            Ok(Err(error)) if error.is_canceled() => return None,
            Ok(Err(error)) => Some(format!("no answer: {error}")),
            Ok(Ok((headers, body))) => wrong(kind, &operation, &headers, &body),
        };
        Some(wrong)
    }

    fn note(&self, kind: Kind, sent: Instant, wrong: Option<String>) {
        self.samples.borrow_mut().push(Sample { kind, sent, ended: Instant::now(), wrong });
    }

    async fn connect(&self, h2: bool) -> Result<Sender, String> {
        let made = timeout(MISSING, self.try_connect(h2)).await;
        let made = made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        made.map_err(|error| format!("no connection: {}", error.kind()))
    }

    async fn try_connect(&self, h2: bool) -> io::Result<Sender> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        let config = Arc::clone(&self.configs[usize::from(h2)]);
        let io = TokioIo::new(TlsConnector::from(config).connect(name, stream).await?);
        if h2 {
            let made = http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
            tokio::task::spawn_local(made.1);
            Ok(Sender::H2(made.0))
        } else {
            let made = http1::handshake(io).await.map_err(io::Error::other)?;
            tokio::task::spawn_local(made.1);
            Ok(Sender::H1(made.0))
        }
    }
}

impl Sender {
    fn is_open(&self) -> bool {
        match self {
            Sender::H1(sender) => !sender.is_closed(),
            Sender::H2(sender) => !sender.is_closed(),
        }
    }

    async fn send(&mut self, kind: Kind, operation: &str) -> hyper::Result<(HeaderMap, Bytes)> {
        let (sender, mode) = match kind {
            Kind::Rule | Kind::Fresh => ("good", "ok"),
            Kind::App => ("quick", "ok"),
            Kind::Silent => ("silent", "silent"),
        };
        let body =
            format!(r#"{{"callbackCommand":"{COMMAND}","operationID":"{operation}","sendID":"{sender}"}}"#);
        let origin = if matches!(self, Sender::H2(_)) { "https://localhost" } else { "" };
        let request = Request::post(format!("{origin}/{COMMAND}?mode={mode}"))
            .header("host", "localhost")
            .header("operationid", operation)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let response = match self {
            Sender::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        Ok((head.headers, body.collect().await?.to_bytes()))
    }
}

/// Why this is not the right answer, if it is not. The app's answer names its operation, so that one of another's shows.
fn wrong(kind: Kind, operation: &str, headers: &HeaderMap, body: &[u8]) -> Option<String> {
    let header = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap_or("?"));
    let told = ["verdict", "origin", "cause"]
        .map(|name| header(&format!("callback-guard-{name}")).to_owned())
        .join(" ");
    let (expected, part) = match kind {
        Kind::Rule | Kind::Fresh => ("allow rule -", "\"nextCode\":0".to_owned()),
        Kind::App => ("deny upstream -", format!("\"errCode\":{DENIED},\"errMsg\":\"{operation}\"")),
        Kind::Silent => ("deny fallback timeout", "\"errCode\":5300".to_owned()),
    };
    if told != expected {
        return Some(told);
    }
    let text = String::from_utf8_lossy(body);
    (!text.contains(&part)).then(|| format!("{told}, with the answer of another: {text}"))
}
