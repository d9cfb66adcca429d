//! `demo-app`: a small business app that answers OpenIM's callbacks over plain HTTP, to try the guard in a cluster.
//!
//! It shuts down as an app in Kubernetes should: it goes on accepting connections while endpoints change, announces the end of
//! each connection, and finishes what is in progress. It answers with the five common fields only: what OpenIM needs beyond
//! them, in two commands about groups, the guard adds.
//!
//! | request | answer |
//! |---|---|
//! | `POST`, any path | what OpenIM reads: an allow, or a refusal if the body contains [`BAD_WORD`] |
//! | `GET /readyz` | 200 |
//! | any other | 405 |

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::args::{self, APP_PORT};
use super::demo::app::{BAD_WORD, healthy_answer};
use super::process::{bind, local_runtime, open, report_panics};
use crate::admin::{Answer, json_text, text};
use crate::callback::command;
use crate::callback::target::Target;
use crate::descriptors::{self, Shortage};
use crate::drain::{Drain, Stage, Watch};
use crate::server::Bound;
use crate::{log, wire};

/// The path of probes.
const READY: &str = "/readyz";

/// How long callbacks in progress may take once no connection is accepted any more.
const FINISH: Duration = Duration::from_secs(5);

/// Buffer of a connection, and so the limit of a head: that of the guard, 64 KiB, with room for what the guard adds.
const BUFFER_BYTES: usize = 128 << 10;

/// How long the accept loop rests after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The accept loop logs a warning at most once in this time.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// Open files besides connections: the listener, the runtime, signals, standard streams.
const OTHER_FILES: usize = 32;

/// Runs the app to its end and returns the exit code.
pub fn run(config: args::DemoApp) -> u8 {
    // Before there is a second thread.
    let descriptors = descriptors::reserve((config.max_connections + OTHER_FILES) as u64);
    let queue = log::Queue::start(std::io::stdout());
    log::install(&queue, config.log_level, config.log_format);
    report_panics(|| {});
    let code = match bind("--listen", config.listen, APP_PORT, Bound::new) {
        Ok(listener) => local_runtime().block_on(serve(config, listener, descriptors)),
        Err(problem) => {
            super::complain(&[problem]);
            super::PROBLEM
        }
    };
    queue.flush();
    code
}

async fn serve(config: args::DemoApp, listener: Bound, descriptors: Result<(), Shortage>) -> u8 {
    let address = listener.address();
    let (listener, mut signals) = match open(listener) {
        Ok(opened) => opened,
        Err(error) => {
            error!(%error, "Neither can the port be served nor can signals be received");
            return super::PROBLEM;
        }
    };
    if let Err(Shortage { wanted, limit }) = descriptors {
        warn!(wanted, limit, "--max-connections exceeds the limit of open files: beyond that new ones wait");
    }
    info!(version = env!("CARGO_PKG_VERSION"), listen.addr = %address, "Listening");
    let shutdown_delay = config.shutdown_delay;
    let (drain, watch) = Drain::new(Instant::now());
    let mut accepting = pin!(Rc::new(App { config, watch }).accept(listener));
    let signal = tokio::select! {
        () = &mut accepting => return 0,
        signal = signals.next() => signal,
    };
    info!(signal, "Shutting down");
    drain.advance(Stage::Leaving, Instant::now());
    let close = async {
        // At a terminal there are no endpoints to wait for.
        if signal == "SIGTERM" {
            sleep(shutdown_delay).await;
        }
        drain.advance(Stage::Closed, Instant::now());
    };
    tokio::select! {
        _ = async { tokio::join!(close, accepting) } => {
            info!("Exiting");
            0
        }
        _ = signals.next() => {
            warn!("A second signal: exiting at once");
            super::PROBLEM
        }
    }
}

/// What all connections share.
struct App {
    config: args::DemoApp,
    watch: Watch,
}

impl App {
    /// Accepts connections until [`Stage::Closed`]. Returns when all are finished, at most [`FINISH`] later.
    async fn accept(self: Rc<Self>, listener: TcpListener) {
        let most = self.config.max_connections;
        let mut connections = JoinSet::new();
        let mut watch = self.watch.clone();
        let mut closed = pin!(watch.reached(Stage::Closed));
        let mut warned: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = &mut closed => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < most => {
                    let due = warned.is_none_or(|at| at.elapsed() > WARN_AGAIN);
                    match accepted {
                        Ok((stream, _)) => {
                            connections.spawn_local(Rc::clone(&self).connection(stream));
                            if due && connections.len() == most {
                                warn!("The number of connections is at --max-connections: new ones wait");
                                warned = Some(Instant::now());
                            }
                        }
                        Err(error) => {
                            if due {
                                warn!(%error, "A connection cannot be accepted; trying again");
                                warned = Some(Instant::now());
                            }
                            sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            }
        }
        // For callers in the queue the connection is already open: they get their answer too.
        if let Ok(listener) = listener.into_std() {
            while connections.len() < most
                && let Ok((stream, _)) = listener.accept()
            {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    connections.spawn_local(Rc::clone(&self).connection(stream));
                }
            }
        }
        let finished = timeout(FINISH, async { while connections.join_next().await.is_some() {} }).await;
        if finished.is_err() {
            warn!(connections = connections.len(), "Closing connections with a request in progress");
        }
    }

    async fn connection(self: Rc<Self>, stream: TcpStream) {
        // If this fails, answers are sent a little later.
        let _ = stream.set_nodelay(true);
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // hyper's timer also runs while the connection is idle.
            .header_read_timeout(self.config.idle_timeout)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(TokioIo::new(stream), service_fn(|request| self.answer(request)));
        let mut connection = pin!(connection);
        let from_queue = self.watch.stage() >= Stage::Closed;
        let mut watch = self.watch.clone();
        tokio::select! {
            biased;
            // Errors are callers that hang up or send something else than HTTP.
            _ = connection.as_mut() => return,
            // Closes an idle connection now, and any other one after its answer.
            () = watch.reached(Stage::Closed), if !from_queue => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let is_probe = request.uri().path() == READY;
        let mut answer = match *request.method() {
            Method::POST => self.callback(request).await,
            Method::GET | Method::HEAD if is_probe => text(StatusCode::OK, "ok\n"),
            _ => {
                let words = format!("callbacks are POST, probes are GET {READY}\n");
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, &words);
                let allowed = if is_probe { "GET, HEAD, POST" } else { "POST" };
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                answer
            }
        };
        // Checked last: the signal may have come while the answer was made.
        if self.watch.stage() >= Stage::Leaving {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(answer)
    }

    async fn callback(&self, request: Request<Incoming>) -> Answer {
        let command = known_command(&request);
        let mut unanswered = Unanswered(Some(command));
        let mut body = pin!(request.into_body());
        let limit = self.config.max_request_size;
        let refused = timeout(self.config.idle_timeout, has_bad_word(&mut body, limit)).await;
        let (status, problem) = match refused {
            Ok(Ok(refused)) => {
                if !self.config.delay.is_zero() {
                    sleep(self.config.delay).await;
                }
                unanswered.0 = None;
                info!(command, verdict = if refused { "deny" } else { "allow" }, "Answered");
                return json_text(healthy_answer(refused));
            }
            Ok(Err(BodyError::TooLarge)) => {
                wire::discard(body, Instant::now() + self.config.idle_timeout).await;
                (StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than --max-request-size")
            }
            Ok(Err(BodyError::Incomplete)) => (StatusCode::BAD_REQUEST, "the body is incomplete"),
            Err(_) => (StatusCode::REQUEST_TIMEOUT, "the body took longer than --idle-timeout"),
        };
        unanswered.0 = None;
        warn!(command, verdict = "none", problem, "Answered");
        text(status, &format!("{problem}\n"))
    }
}

/// The name of a command of OpenIM. Any other text of the request is not for the log.
fn known_command<B>(request: &Request<B>) -> &'static str {
    let target = Target::parse(request.uri()).ok();
    let known = target.and_then(|target| command::lookup(target.name()));
    known.map_or("unknown command", |command| command.name)
}

/// Logs a callback whose answer is canceled: the caller gave up, or the app exits.
struct Unanswered(Option<&'static str>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(command) = self.0 {
            info!(command, verdict = "none", "Not answered: the connection was closed");
        }
    }
}

/// Why a body cannot be judged.
#[derive(Debug, PartialEq, Eq)]
enum BodyError {
    TooLarge,
    Incomplete,
}

/// Whether a body of at most `limit` bytes contains [`BAD_WORD`]. Reads it to its end, and does not buffer it: the bound of
/// memory is the number of connections.
async fn has_bad_word<B: Body<Data = Bytes> + Unpin>(body: &mut B, limit: usize) -> Result<bool, BodyError> {
    let mut finder = Finder::default();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(BodyError::Incomplete) };
        let Ok(data) = frame.into_data() else { continue }; // trailers
        seen += data.len();
        if seen > limit {
            return Err(BodyError::TooLarge);
        }
        finder.look_at(&data);
    }
    Ok(finder.found)
}

/// Looks for [`BAD_WORD`] in a text that arrives in pieces.
#[derive(Default)]
struct Finder {
    found: bool,
    /// The end of what was seen, shorter than the word.
    tail: Vec<u8>,
}

impl Finder {
    fn look_at(&mut self, piece: &[u8]) {
        let word = BAD_WORD.as_bytes();
        self.tail.extend_from_slice(piece);
        self.found |= self.tail.windows(word.len()).any(|part| part == word);
        let seen = self.tail.len().saturating_sub(word.len() - 1);
        self.tail.drain(..seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_found_however_it_is_cut() {
        let text = b"at the casino";
        for cut in 0..=text.len() {
            let mut finder = Finder::default();
            finder.look_at(&text[..cut]);
            finder.look_at(&text[cut..]);
            assert!(finder.found, "cut at {cut}");
        }
        let mut finder = Finder::default();
        text.chunks(1).for_each(|piece| finder.look_at(piece));
        assert!(finder.found);
    }

    #[test]
    fn another_word_is_not_found_and_nothing_is_buffered() {
        let mut finder = Finder::default();
        for piece in ["cas", "in", "casin", "the cas ino Casino", ""] {
            finder.look_at(piece.as_bytes());
            assert!(finder.tail.len() < BAD_WORD.len());
        }
        assert!(!finder.found);
    }

    #[test]
    fn only_commands_of_openim_have_a_name_in_the_log() {
        for (target, expected) in [
            ("/cb/callbackBeforeSendSingleMsgCommand", "callbackBeforeSendSingleMsgCommand"),
            ("/cb?command=callbackBeforeSendSingleMsgCommand", "callbackBeforeSendSingleMsgCommand"),
            ("/cb?command=hunter2", "unknown command"),
            ("/hunter2", "unknown command"),
            ("/", "unknown command"),
            ("/callbackBeforePushCommand?command=hunter2", "unknown command"),
        ] {
            let request = Request::builder().uri(target).body(()).expect("a request");
            assert_eq!(known_command(&request), expected, "{target}");
        }
    }
}
