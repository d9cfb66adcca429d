//! Callers that take more than a caller needs: they lose their connection, with a reason in metric and log, and nobody else
//! loses anything.

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::raw_h2::{body, callback, connection};
use crate::support::app::ALLOW;
use crate::support::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, frame};
use crate::support::{Act, App, Call, Caller, Gate, Guard, Raw};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

async fn is_told(guard: &Guard, reason: &str, count: f64) {
    guard.wait_for_metric(&format!("callback_guard_bad_http_total{{reason=\"{reason}\"}}"), count).await;
}

/// Begins callbacks on these streams.
async fn begin(caller: &mut Raw<TlsStream<TcpStream>>, streams: impl Iterator<Item = u32>) {
    for stream in streams {
        caller.send(frame(HEADERS, END_HEADERS, stream, &callback())).await;
        caller.send(frame(DATA, END_STREAM, stream, body().as_bytes())).await;
    }
}

#[tokio::test]
async fn more_frames_than_callbacks_need_end_their_connection() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for (count, ping) in [(1.0, frame(PING, 1, 0, &[7; 8])), (2.0, frame(0xbe, 0, 0, &[]))] {
        let mut caller = connection(&guard, &[]).await;
        // It may be gone before all is sent.
        caller.send(ping.repeat(7_000)).await;
        caller.rest().await;
        is_told(&guard, "flood", count).await;
    }
    guard.wait_for_log(|line| line.contains("its caller takes more than a caller needs"));
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn most_callbacks_abandoned_end_their_connection_after_what_is_in_hand() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |_| acts.clone());
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
    let odd = |from: u32, count: u32| (0..count).map(move |at| from + 2 * at);
    let mut caller = connection(&guard, &[]).await;
    begin(&mut caller, odd(1, 151)).await;
    app.wait_for_asked(151).await;
    for stream in odd(1, 100) {
        caller.send(frame(RESET, 0, stream, &[0, 0, 0, 8])).await;
    }
    guard.wait_for_metric("callback_guard_in_flight", 51.0).await;
    assert_eq!(guard.count("callback_guard_bad_http_total", &[]), 0.0, "100 are not too many");
    for stream in odd(201, 50) {
        caller.send(frame(RESET, 0, stream, &[0, 0, 0, 8])).await;
    }
    is_told(&guard, "abandons", 1.0).await;
    gate.open();
    let rest = caller.rest().await;
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains(ALLOW), "the one that was not abandoned: {rest}");
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn some_callbacks_abandoned_among_many_answered_end_nothing() {
    let app = App::start(|asked| match asked.values("Patient")[..] {
        [] => vec![Act::Silence],
        _ => vec![Act::json(ALLOW)],
    });
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for _ in 0..150 {
        for _ in 0..2 {
            let patient = Call::new(COMMAND).header("Patient", "1");
            assert_eq!(caller.send(&patient).await.told(), "allow upstream -");
        }
        let before = app.asked().len();
        let abandoned = tokio::spawn(caller.begin(&Call::new(COMMAND)));
        app.wait_for_asked(before + 1).await;
        abandoned.abort();
    }
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    assert!(caller.is_open());
    assert_eq!(guard.count("callback_guard_bad_http_total", &[]), 0.0);
}

#[tokio::test]
async fn heads_that_unpack_to_hundreds_of_kilobytes_are_refused_and_dropped() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = connection(&guard, &[]).await;
    // One field goes into the table, and is then named 2,000 times in one byte each.
    let bomb = |first: &[u8]| [&callback()[..], first, &[0xbe; 2000]].concat();
    for at in 0..300 {
        let head = bomb(if at == 0 { b"\x40\x01a\x00" } else { b"" });
        caller.send(frame(HEADERS, END_HEADERS, 1 + 2 * at, &head)).await;
    }
    guard.wait_for_metric("callback_guard_rejections_total{cause=\"too-large\"}", 300.0).await;
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn each_callback_counts_from_its_head_to_the_end_of_its_answer() {
    let app = App::allowing();
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
    // SETTINGS_INITIAL_WINDOW_SIZE of 0: not a byte of a body may be sent.
    let mut caller = connection(&guard, &[0, 4, 0, 0, 0, 0]).await;
    for stream in 0..50 {
        caller.send(frame(HEADERS, END_HEADERS, 1 + 2 * stream, &callback())).await;
    }
    guard.wait_for_metric("callback_guard_in_flight", 50.0).await;
    let heads = guard.metric("callback_guard_held_bytes");
    assert!(heads >= f64::from(50 * (16 << 10)), "{heads}");
    for stream in 0..50 {
        caller.send(frame(DATA, END_STREAM, 1 + 2 * stream, body().as_bytes())).await;
    }
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    let answers = guard.metric("callback_guard_held_bytes");
    assert!(answers >= f64::from(50 * (16 << 10)), "{answers}");
    drop(caller);
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
}

#[tokio::test]
async fn without_memory_for_a_refusal_the_connection_ends() {
    let app = App::allowing();
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}")
        .flag("--max-held", "1MiB")
        .upstream(&app)
        .start();
    let mut caller = connection(&guard, &[0, 4, 0, 0, 0, 0]).await;
    for stream in 0..200 {
        caller.send(frame(HEADERS, END_HEADERS, 1 + 2 * stream, &callback())).await;
    }
    caller.rest().await;
    is_told(&guard, "no-memory", 1.0).await;
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn half_a_head_over_http_2_ends_its_connection_behind_a_whole_callback_too() {
    let app = App::allowing();
    let guard = Guard::with("").flag("--header-timeout", "300ms").upstream(&app).start();
    let whole = frame(HEADERS, END_HEADERS, 3, &callback());
    for (count, half) in [
        (1.0, frame(HEADERS, 0, 3, &callback())),
        (2.0, [frame(HEADERS, 0, 3, &callback()), frame(CONTINUATION, 0, 3, b"")].concat()),
        (3.0, whole[..whole.len() / 2].to_vec()),
        (4.0, whole[..5].to_vec()),
    ] {
        let mut caller = connection(&guard, &[]).await;
        begin(&mut caller, 1..2).await;
        caller.send(half).await;
        caller.rest().await;
        is_told(&guard, "slow-head", count).await;
    }
    // The twin: a whole callback, and nothing behind it.
    let mut idle = connection(&guard, &[]).await;
    begin(&mut idle, 1..2).await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    begin(&mut idle, 3..4).await;
    app.wait_for_asked(6).await;
}
