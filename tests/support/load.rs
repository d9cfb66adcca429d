//! Callers that go on and on while a test changes something under them, on a thread of their own, so that a test may
//! block while it waits.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::{Answer, Authority, Call, Caller, Guard, within};

/// The callers. They behave as Go's client does: a connection is used until its end is announced, and a new one is made
/// for the next callback.
pub(crate) struct Load {
    signs: Arc<Signs>,
    thread: thread::JoinHandle<Report>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How often each answer was told, by the guard's headers.
    pub(crate) told: BTreeMap<String, usize>,
    /// Connections that were made.
    pub(crate) connections: usize,
    /// Connections that TCP made and TLS did not.
    pub(crate) unmade: Vec<String>,
    /// Callers that found nobody listening any more.
    pub(crate) refused: usize,
    /// Callbacks that were sent and got no answer.
    pub(crate) lost: Vec<String>,
}

#[derive(Default)]
struct Signs {
    stop: AtomicBool,
    answered: AtomicUsize,
}

struct Callers {
    address: SocketAddr,
    command: String,
    /// After so many turns a connection is given up, and a new one made.
    turns: usize,
    signs: Arc<Signs>,
    report: RefCell<Report>,
}

/// A breath between two callbacks, so that callers leave the machine to those who answer them.
const BREATH: Duration = Duration::from_millis(2);

/// How many callbacks a caller over HTTP/2 has under way at once.
const STREAMS: usize = 4;

impl Load {
    /// So many callers over each protocol, all with this command.
    pub(crate) fn start(guard: &Guard, command: &str, callers: usize, turns: usize) -> Load {
        let (address, command, signs) = (guard.listen(), command.to_owned(), Arc::<Signs>::default());
        let shared = Arc::clone(&signs);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let report = RefCell::default();
            let all = Rc::new(Callers { address, command, turns, signs: shared, report });
            let local = LocalSet::new();
            for _ in 0..callers {
                for alpn in ["http/1.1", "h2"] {
                    local.spawn_local(Rc::clone(&all).run(alpn));
                }
            }
            runtime.expect("a runtime").block_on(local);
            Rc::into_inner(all).expect("every caller has ended").report.into_inner()
        };
        let thread = thread::Builder::new().name("callers".to_owned()).spawn(work).expect("a thread");
        Load { signs, thread }
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> usize {
        self.signs.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many more are answered than now.
    pub(crate) async fn wait_for_more(&self, more: usize) {
        let wanted = self.answered() + more;
        super::eventually("more answers", || (self.answered() >= wanted).then_some(())).await;
    }

    /// Stops the callers when their callbacks under way are answered, and tells what came of all.
    pub(crate) fn stop(self) -> Report {
        self.signs.stop.store(true, Ordering::Relaxed);
        self.report()
    }

    /// Waits until every caller has found nobody listening, and tells what came of all. Blocks the test's thread.
    pub(crate) fn report(self) -> Report {
        match self.thread.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Callers {
    async fn run(self: Rc<Self>, alpn: &'static str) {
        while !self.stopped() {
            match self.connect(alpn).await {
                Ok(Some(caller)) => self.call(caller, alpn).await,
                Ok(None) => {}
                Err(_) => {
                    self.report.borrow_mut().refused += 1;
                    return;
                }
            }
        }
    }

    /// A connection; `None` when it ended before TLS was there.
    async fn connect(&self, alpn: &str) -> io::Result<Option<Caller>> {
        let stream = within("a connection", TcpStream::connect(self.address)).await?;
        stream.set_nodelay(true).expect("a socket");
        let config = Authority::common().trusted_by(&[alpn], None);
        let name = ServerName::try_from("localhost").expect("a name");
        let connected = within("a handshake", TlsConnector::from(config).connect(name, stream)).await;
        match connected {
            Ok(stream) => {
                self.report.borrow_mut().connections += 1;
                Ok(Some(Caller::over(stream).await))
            }
            Err(error) => {
                self.report.borrow_mut().unmade.push(format!("{alpn}: {error}"));
                Ok(None)
            }
        }
    }

    async fn call(&self, mut caller: Caller, alpn: &str) {
        let streams = if alpn == "h2" { STREAMS } else { 1 };
        for _ in 0..self.turns {
            if self.stopped() || within("the connection", caller.ready()).await.is_err() {
                return;
            }
            let calls: Vec<_> = (0..streams).map(|_| Call::new(&self.command)).collect();
            let under_way: Vec<_> = calls.iter().map(|call| caller.begin(call)).collect();
            for (call, answer) in calls.iter().zip(under_way) {
                self.note(alpn, call, within("an answer", answer).await);
            }
            tokio::time::sleep(BREATH).await;
        }
    }

    fn note(&self, alpn: &str, call: &Call, answer: hyper::Result<Answer>) {
        let mut report = self.report.borrow_mut();
        match answer {
            Ok(answer) => {
                *report.told.entry(answer.told()).or_default() += 1;
                self.signs.answered.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing of it was written: the connection's end had been announced, and Go sends it on the next one.
            Err(error) if error.is_canceled() => {}
            Err(error) => {
                let words = super::words(&error);
                report.lost.push(format!("{alpn} {}: {words}", call.operation_id()));
            }
        }
    }

    fn stopped(&self) -> bool {
        self.signs.stop.load(Ordering::Relaxed)
    }
}
