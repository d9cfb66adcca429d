//! The end of a pod, and the age of a connection: callers are told to go elsewhere, and nothing accepted is lost.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::app::ALLOW;
use crate::support::caller::{plain, raw, secure};
use crate::support::{
    Act, Answer, App, Asked, Authority, Call, Caller, Gate, Guard, Load, Raw, eventually, within,
};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";

/// A fallback that no app gives, and time enough for whatever a test does.
const PATIENT: &str =
    "defaults: {callerTimeout: 15s, timeout: 14s, fallback: Deny, deny: {errCode: 5101, errMsg: later}}";

/// An app that waits for the gate when the callback has the header `Wait`.
fn waiting(gate: &Gate) -> App {
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    App::start(move |asked: &Asked| match asked.values("Wait")[..] {
        [] => vec![Act::json(ALLOW)],
        _ => acts.clone(),
    })
}

fn long() -> Call {
    Call::new(COMMAND).header("Wait", "yes")
}

/// The binary's own `drain`, as the preStop hook runs it.
fn drain(guard: &Guard) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callback-guard"));
    command.args(["drain", "--admin-listen", &guard.admin_address().to_string()]);
    command.output().expect("the binary starts")
}

/// An HTTP/2 caller without a request. Gives the last stream of each GOAWAY, up to the connection's end.
async fn goaway(mut stream: TlsStream<TcpStream>) -> Vec<i32> {
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..]].concat()).await.expect("open");
    let mut seen = Vec::new();
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.expect("a whole frame");
        match (head[3], head[4]) {
            (4, 0) => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await.expect("open"),
            (6, 0) => {
                stream.write_all(&[&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat()).await.expect("open");
            }
            (7, _) => seen.push(i32::from_be_bytes(payload[..4].try_into().expect("four bytes"))),
            _ => {}
        }
    }
    seen
}

async fn stops_listening(guard: &Guard) {
    let refuses = || std::net::TcpStream::connect(guard.listen()).is_err().then_some(());
    eventually("the listener's end", refuses).await;
}

async fn answered(task: tokio::task::JoinHandle<hyper::Result<Answer>>) -> Answer {
    within("an answer", task).await.expect("no panic").expect("an answer")
}

#[tokio::test]
async fn a_drain_moves_callers_on_and_goes_on_answering() {
    let gate = Gate::closed();
    let app = waiting(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).start();
    let (mut h1, mut idle, mut h2) =
        (Caller::h1(&guard).await, Caller::h1(&guard).await, Caller::h2(&guard).await);
    for caller in [&mut h1, &mut idle, &mut h2] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.header("connection"), "");
    }
    let quiet = secure(&guard, Authority::common().trusted_by(&["h2"], None)).await;
    let streams: Vec<_> = (0..3).map(|_| tokio::spawn(h2.begin(&long()))).collect();
    let under_way = tokio::spawn(h1.begin(&long()));
    app.wait_for_asked(7).await;
    let output = drain(&guard);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    guard.wait_for_log(|line| line.contains("The pod is ending: callers are told to go elsewhere"));
    assert_eq!(guard.admin("/readyz").0, 200);
    // No new streams, while those under way go on.
    assert_eq!(within("GOAWAY", goaway(quiet)).await, [i32::MAX, 0], "announced, and then the last stream");
    assert!(h2.is_open() && streams.iter().all(|stream| !stream.is_finished()));
    gate.open();
    for stream in streams {
        assert_eq!(answered(stream).await.told(), UPSTREAM);
    }
    h2.told_to_go().await;
    // Told with the answer that was under way; the idle one was left alone, and is told with its next answer.
    assert!(idle.is_open());
    for answer in [answered(under_way).await, idle.send(&Call::new(COMMAND)).await] {
        assert_eq!((answer.told().as_str(), answer.header("connection")), (UPSTREAM, "close"));
    }
    h1.told_to_go().await;
    idle.told_to_go().await;
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM, "new ones are still accepted");
    }
    assert!(drain(&guard).status.success(), "twice is no mistake");
    assert_eq!(guard.admin("/readyz").0, 200);
}

#[tokio::test]
async fn a_drain_that_reaches_no_proxy_says_so() {
    let guard = Guard::with("").start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_callback-guard"));
    let output = command.args(["drain", "--admin-listen", &guard.listen().to_string()]).output();
    let output = output.expect("the binary starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("was not told that the pod is ending"));
    assert_eq!(guard.admin("/drain").0, 405, "GET drains nothing");
    let mut caller = Caller::h1(&guard).await;
    assert_eq!(caller.send(&Call::new(COMMAND)).await.header("connection"), "");
}

#[tokio::test]
async fn an_app_that_is_gone_while_draining_has_not_failed() {
    let text = "rules: [{name: a, fallback: Deny, breaker: {failureRate: 0.1, minimumCallbacks: 1, window: 60s, \
                openFor: 60s}}]";
    let state = |guard: &Guard| guard.metric("callback_guard_breaker_state{rule=\"a\"}");
    for drained in [true, false] {
        let app = App::allowing();
        let guard = Guard::with(text).upstream(&app).start();
        assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
        if drained {
            assert_eq!(guard.admin_post("/drain").0, 200);
        }
        drop(app);
        let mut told = Vec::new();
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            told.push(caller.send(&Call::new(COMMAND)).await.told());
        }
        if drained {
            assert_eq!(told, ["deny fallback draining"; 2]);
            assert_eq!(state(&guard), 0.0);
        } else {
            assert_eq!(told, ["deny fallback unreachable", "deny fallback breaker-open"]);
            assert_eq!(state(&guard), 1.0);
        }
    }
}

#[tokio::test]
async fn a_signal_ends_readiness_first_then_the_listener_then_what_is_in_flight() {
    let gate = Gate::closed();
    let app = waiting(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--drain-delay", "3s").flag("--drain-timeout", "3s");
    let guard = guard.start();
    let (mut h1, mut h2) = (Caller::h1(&guard).await, Caller::h2(&guard).await);
    let mut under_way = vec![tokio::spawn(h1.begin(&long()))];
    under_way.extend((0..3).map(|_| tokio::spawn(h2.begin(&long()))));
    app.wait_for_asked(4).await;
    assert_eq!(guard.admin("/readyz").0, 200);
    let begun = Instant::now();
    guard.terminate();
    guard.wait_for_log(|line| line.contains("Ending") && line.contains("SIGTERM"));
    let ready = eventually("the end", || Some(guard.admin("/readyz")).filter(|ready| ready.0 == 503)).await;
    assert_eq!(ready.1, "not ready: draining\n");
    assert_eq!(guard.admin("/livez").0, 200);
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM, "still accepting");
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "the machine is too slow for this test");
    stops_listening(&guard).await;
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(guard.admin("/readyz").0, 503, "the admin port still answers");
    for task in under_way {
        let answer = answered(task).await;
        assert_eq!((answer.status, answer.told().as_str()), (200, "deny fallback draining"));
        assert_eq!(
            answer.text(),
            r#"{"actionCode":0,"errCode":5101,"errMsg":"later","errDlt":"","nextCode":1}"#
        );
    }
    assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(guard.wait_exit(), 0);
    assert_eq!(guard.decisions().len(), 6);
    guard.wait_for_log(|line| line.contains("Everything is answered"));
}

#[tokio::test]
async fn what_is_answered_before_the_timeout_is_answered_by_the_app_and_ends_it_at_once() {
    let gate = Gate::closed();
    let app = waiting(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--drain-delay", "0s").start();
    let mut h1 = Caller::h1(&guard).await;
    let mut h2 = Caller::h2(&guard).await;
    let under_way = [tokio::spawn(h1.begin(&long())), tokio::spawn(h2.begin(&long()))];
    app.wait_for_asked(2).await;
    let begun = Instant::now();
    guard.terminate();
    stops_listening(&guard).await;
    gate.open();
    for task in under_way {
        assert_eq!(answered(task).await.told(), UPSTREAM);
    }
    assert_eq!(guard.wait_exit(), 0);
    assert!(begun.elapsed() < Duration::from_secs(10), "not the whole --drain-timeout of 20s");
}

#[tokio::test]
async fn a_signal_under_load_loses_no_callback() {
    let app = App::allowing();
    let guard = Guard::with(PATIENT).upstream(&app).flag("--drain-delay", "500ms").start();
    let load = Load::start(&guard, COMMAND, 4, 20);
    load.wait_for_more(100).await;
    guard.terminate();
    let report = load.report();
    assert_eq!(guard.wait_exit(), 0);
    assert_eq!(report.lost, Vec::<String>::new());
    assert_eq!(report.refused, 8, "every caller went on until nobody listened");
    assert_eq!(report.told.keys().collect::<Vec<_>>(), [UPSTREAM]);
    assert_eq!(guard.decisions().len(), report.told[UPSTREAM]);
}

#[tokio::test]
async fn a_drain_and_then_a_signal_under_load_lose_no_callback() {
    let app = App::allowing();
    let guard = Guard::with(PATIENT).upstream(&app).flag("--drain-delay", "1s").start();
    let load = Load::start(&guard, COMMAND, 4, 100_000);
    load.wait_for_more(100).await;
    assert!(drain(&guard).status.success());
    load.wait_for_more(100).await;
    guard.terminate();
    let report = load.report();
    assert_eq!(guard.wait_exit(), 0);
    assert_eq!((report.lost, report.refused), (Vec::new(), 8));
    assert_eq!(report.told.keys().collect::<Vec<_>>(), [UPSTREAM]);
    assert!(report.connections >= 16, "they were told to make new connections: {}", report.connections);
}

#[tokio::test]
async fn the_delay_is_counted_from_the_drain() {
    let guard = Guard::with("").flag("--drain-delay", "2s").start();
    let begun = Instant::now();
    assert_eq!(guard.admin_post("/drain").0, 200);
    let delay = Duration::from_secs(2);
    eventually("the delay", || (begun.elapsed() > delay).then_some(())).await;
    let signalled = Instant::now();
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    assert!(signalled.elapsed() < Duration::from_millis(1900), "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn a_signal_with_nothing_going_on_ends_soon_after_the_delay() {
    let guard = Guard::with("").flag("--drain-delay", "500ms").start();
    let begun = Instant::now();
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(5), "{took:?}");
    let guard = Guard::with("").flag("--drain-delay", "0s").start();
    guard.signal(libc::SIGINT);
    assert_eq!(guard.wait_exit(), 0);
    guard.wait_for_log(|line| line.contains("Ending") && line.contains("SIGINT"));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let gate = Gate::closed();
    let app = waiting(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--drain-delay", "20s").start();
    let mut caller = Caller::h1(&guard).await;
    let under_way = tokio::spawn(caller.begin(&long()));
    app.wait_for_asked(1).await;
    let begun = Instant::now();
    guard.terminate();
    guard.wait_for_log(|line| line.contains("\"Ending\""));
    guard.terminate();
    assert_eq!(guard.wait_exit(), 1);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    guard.wait_for_log(|line| line.contains("A second signal: ending at once"));
    assert!(within("the end", under_way).await.expect("no panic").is_err());
}

#[tokio::test]
async fn the_grace_period_is_longer_than_everything_else() {
    let gate = Gate::closed();
    let app = waiting(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--grace-period", "3s");
    let guard = guard.flag("--drain-delay", "1h").flag("--drain-timeout", "1h").start();
    let mut caller = Caller::h2(&guard).await;
    let under_way = tokio::spawn(caller.begin(&long()));
    app.wait_for_asked(1).await;
    let begun = Instant::now();
    guard.terminate();
    assert_eq!(answered(under_way).await.told(), "deny fallback draining");
    assert_eq!(guard.wait_exit(), 0);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end_beyond_the_timeout() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--drain-delay", "0s").flag("--drain-timeout", "1s");
    let guard = guard.start();
    let (mut h1, mut h2) = (Caller::h1(&guard).await, Caller::h2(&guard).await);
    for caller in [&mut h1, &mut h2] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    }
    let (silent, mut fresh) = (plain(&guard).await, Caller::h1(&guard).await);
    let begun = Instant::now();
    guard.terminate();
    h2.told_to_go().await;
    // Until the timeout a callback on an idle connection is answered, and is its last one.
    let answer = h1.send(&Call::new(COMMAND)).await;
    assert_eq!((answer.told().as_str(), answer.header("connection")), (UPSTREAM, "close"));
    fresh.told_to_go().await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "idle ones are closed last: {:?}", begun.elapsed());
    assert_eq!(guard.wait_exit(), 0);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(silent);
}

/// Connects as fast as it can, and keeps the last 400 connections, until it is stopped.
fn connecting(to: std::net::SocketAddr, stopped: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut open = VecDeque::new();
        while !stopped.load(Ordering::Relaxed) {
            if let Ok(stream) = std::net::TcpStream::connect_timeout(&to, Duration::from_millis(20)) {
                open.push_back(stream);
            }
            if open.len() > 400 {
                open.pop_front();
            }
        }
    })
}

#[tokio::test]
async fn those_that_go_on_connecting_keep_the_listener_open_no_longer_and_get_no_more_places() {
    const PLACES: f64 = 50.0;
    // A callback in progress keeps the process, so that it can be asked after its listener is closed.
    let app = App::start(|_| vec![Act::Silence]);
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 4s}").upstream(&app);
    let guard = guard.flag("--max-connections", PLACES.to_string());
    let guard = guard.flag("--drain-delay", "300ms").flag("--drain-timeout", "5s").start();
    let mut caller = Caller::h1(&guard).await;
    let answer = tokio::spawn(caller.begin(&Call::new(COMMAND)));
    app.wait_for_asked(1).await;
    let stop = Arc::<AtomicBool>::default();
    let flood: Vec<_> = (0..2).map(|_| connecting(guard.listen(), Arc::clone(&stop))).collect();
    guard.wait_for_metric("callback_guard_connections", PLACES).await;
    let begun = Instant::now();
    guard.terminate();
    guard.wait_for_log(|line| line.contains("\"Ending\""));
    let mut most = 0.0_f64;
    let closed = loop {
        most = most.max(guard.metric("callback_guard_connections"));
        if std::net::TcpStream::connect(guard.listen())
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        {
            break begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "it listens");
    };
    most = most.max(guard.metric("callback_guard_connections"));
    stop.store(true, Ordering::Relaxed);
    flood.into_iter().for_each(|flood| flood.join().expect("no panic"));
    assert!(closed >= Duration::from_millis(300), "{closed:?}");
    // One more waits for a place when the listener closes, one in the queue that gets none is about to be closed.
    assert!(most <= PLACES + 2.0, "{most} connections");
    let answer = within("the fallback", answer).await.expect("no panic").expect("an answer");
    assert_eq!(answer.told(), "allow fallback timeout");
    assert_eq!(guard.wait_exit(), 0);
}

#[tokio::test]
async fn a_connection_at_its_age_is_ended_gracefully_and_no_callback_fails() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--max-connection-age", "1s").start();
    let mut h1 = Caller::h1(&guard).await;
    let mut idle = Caller::h1(&guard).await;
    let load = Load::start(&guard, COMMAND, 2, usize::MAX);
    let begun = Instant::now();
    let last = async {
        loop {
            let answer = h1.send(&Call::new(COMMAND)).await;
            assert_eq!(answer.told(), UPSTREAM);
            if answer.header("connection") == "close" {
                return;
            }
        }
    };
    within("Connection: close", last).await;
    assert!(begun.elapsed() >= Duration::from_millis(800), "{:?}", begun.elapsed());
    h1.told_to_go().await;
    load.wait_for_more(200).await;
    eventually("three seconds", || (begun.elapsed() > Duration::from_secs(3)).then_some(())).await;
    let report = load.stop();
    assert_eq!((report.lost, report.unmade, report.refused), (Vec::new(), Vec::new(), 0));
    assert_eq!(report.told.keys().collect::<Vec<_>>(), [UPSTREAM]);
    assert!(report.connections >= 8, "each of four was made anew, twice: {}", report.connections);
    // Past its age and idle: it is left alone, and told with its next answer.
    let answer = idle.send(&Call::new(COMMAND)).await;
    assert_eq!((answer.told().as_str(), answer.header("connection")), (UPSTREAM, "close"));
}

#[tokio::test]
async fn callbacks_under_way_outlive_the_age_of_their_connection() {
    let gate = Gate::closed();
    let app = waiting(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-connection-age", "1s").start();
    let begun = Instant::now();
    let (mut h1, mut h2) = (Caller::h1(&guard).await, Caller::h2(&guard).await);
    let under_way = [tokio::spawn(h1.begin(&long())), tokio::spawn(h2.begin(&long()))];
    app.wait_for_asked(2).await;
    let quiet = secure(&guard, Authority::common().trusted_by(&["h2"], None)).await;
    assert_eq!(within("GOAWAY", goaway(quiet)).await, [i32::MAX, 0]);
    assert!(h2.is_open());
    assert!(under_way.iter().all(|task| !task.is_finished()));
    // By then the age of the two is reached as well.
    let all = Duration::from_millis(1200);
    eventually("the age of all", || (begun.elapsed() > all).then_some(())).await;
    gate.open();
    let [first, second] = under_way;
    let first = answered(first).await;
    assert_eq!((first.told().as_str(), first.header("connection")), (UPSTREAM, "close"));
    assert_eq!(answered(second).await.told(), UPSTREAM);
    h1.told_to_go().await;
    h2.told_to_go().await;
}

#[tokio::test]
async fn a_body_that_is_still_coming_at_the_cut_is_answered_too() {
    let app = App::allowing();
    let guard = Guard::with(PATIENT).upstream(&app).flag("--drain-delay", "0s").flag("--drain-timeout", "1s");
    let guard = guard.start();
    let mut slow = Raw::over(raw(&guard).await);
    let bytes = Call::new(COMMAND).bytes();
    slow.send(&bytes[..bytes.len() - 10]).await;
    guard.wait_for_metric("callback_guard_in_flight", 1.0).await;
    guard.terminate();
    let answer = slow.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.told().as_str()), (200, "deny fallback draining"));
    assert_eq!(guard.wait_exit(), 0);
}

#[tokio::test]
async fn a_grace_period_that_leaves_no_time_for_the_drain_is_warned_of() {
    const WARNING: &str = "do not fit into --grace-period";
    let start = |grace: &str| {
        let flags = Guard::with("").flag("--drain-delay", "3s").flag("--drain-timeout", "5s");
        flags.flag("--grace-period", grace).start()
    };
    let short = start("9s");
    let line = short.wait_for_log(|line| line.contains(WARNING));
    assert!(line.contains("\"level\":\"WARN\"") && line.contains("10s"), "{line}");
    let long = start("10s");
    assert!(!long.log_lines().iter().any(|line| line.contains(WARNING)));
}
