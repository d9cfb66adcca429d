//! HTTP/2 written by hand: floods end their own connection, or come to nothing, and harm nobody else's.

use crate::support::app::ALLOW;
use crate::support::caller::secure;
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, SETTINGS, WINDOW_UPDATE, field, frame,
};
use crate::support::{App, Authority, Call, Caller, Guard, Raw};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";

/// Header fields as literals, nothing indexed and nothing packed (RFC 7541, section 6.2.2).
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| field(name.as_bytes(), value.as_bytes())).collect()
}

pub(crate) fn callback() -> Vec<u8> {
    let target = format!("/{COMMAND}");
    let pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", &target)];
    fields(&[&pseudo[..], &[("operationid", "1")]].concat())
}

pub(crate) fn body() -> String {
    format!(r#"{{"callbackCommand":"{COMMAND}","operationID":"1"}}"#)
}

/// A connection with its preface sent, and these settings.
pub(crate) async fn connection(guard: &Guard, settings: &[u8]) -> Raw<TlsStream<TcpStream>> {
    let mut caller = Raw::over(secure(guard, Authority::common().trusted_by(&["h2"], None)).await);
    caller.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    caller.send(frame(SETTINGS, 0, 0, settings)).await;
    caller
}

async fn a_good_one_is_answered(app: &App, guard: &Guard) {
    let before = app.asked().len();
    for mut caller in [Caller::h1(guard).await, Caller::h2(guard).await] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    }
    assert_eq!(app.asked().len(), before + 2);
}

#[tokio::test]
async fn frames_written_by_hand_are_a_callback_like_any_other() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = connection(&guard, &[]).await;
    caller.send(frame(HEADERS, END_HEADERS, 1, &callback())).await;
    caller.send(frame(DATA, END_STREAM, 1, body().as_bytes())).await;
    app.wait_for_asked(1).await;
    assert_eq!(app.asked()[0].body, body());
    guard.decision("1");
}

#[tokio::test]
async fn a_head_without_end_ends_its_connection() {
    let app = App::allowing();
    let guard = Guard::with("").flag("--max-header-size", "4KiB").upstream(&app).start();
    let mut caller = connection(&guard, &[]).await;
    caller.send(frame(HEADERS, 0, 1, &callback())).await;
    let piece = fields(&[("padding", &"x".repeat(100))]).repeat(100);
    for _ in 0..1000 {
        caller.send(frame(CONTINUATION, 0, 1, &piece)).await;
    }
    caller.rest().await;
    a_good_one_is_answered(&app, &guard).await;
}

#[tokio::test]
async fn floods_of_small_frames_harm_nobody_else() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for flood in [
        frame(PING, 0, 0, &[7; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(DATA, 0, 1, &[]),
        [frame(HEADERS, END_HEADERS, 1, &callback()), frame(RESET, 0, 1, &[0, 0, 0, 8])].concat(),
    ] {
        let mut caller = connection(&guard, &[]).await;
        // Nothing of what comes back is read.
        let bytes = flood.repeat(40_000 / flood.len());
        for _ in 0..5 {
            caller.send(&bytes).await;
        }
        a_good_one_is_answered(&app, &guard).await;
    }
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
}

#[tokio::test]
async fn a_caller_that_takes_no_answer_holds_nothing_up() {
    let app = App::allowing();
    let guard = Guard::with("defaults: {maxInFlight: 1}").flag("--max-in-flight", "1").upstream(&app).start();
    // SETTINGS_INITIAL_WINDOW_SIZE of 0: not a byte of a body may be sent.
    let mut caller = connection(&guard, &[0, 4, 0, 0, 0, 0]).await;
    for stream in [1, 3, 5] {
        caller.send(frame(HEADERS, END_HEADERS, stream, &callback())).await;
        caller.send(frame(DATA, END_STREAM, stream, body().as_bytes())).await;
        app.wait_for_asked(usize::try_from(stream.div_ceil(2)).expect("small") + (stream as usize / 2) * 2)
            .await;
        guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
        a_good_one_is_answered(&app, &guard).await;
    }
    assert_eq!(guard.count("callback_guard_callbacks_total", &[("cause", "none")]), 9.0);
}

#[tokio::test]
async fn frames_that_break_the_rules_end_their_connection() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let overflow = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]);
    for (what, bytes) in [
        ("a window over its most", overflow),
        ("data of no stream", frame(DATA, END_STREAM, 0, b"x")),
        ("an even stream", frame(HEADERS, END_HEADERS, 2, &callback())),
        ("a lone continuation", frame(CONTINUATION, END_HEADERS, 1, &callback())),
        ("fields that are none", frame(HEADERS, END_HEADERS, 1, &[0x40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("settings of an odd length", frame(SETTINGS, 0, 0, &[0; 5])),
        ("a frame over its most", frame(DATA, 0, 1, &[0; 1 << 17])),
    ] {
        let mut caller = connection(&guard, &[]).await;
        caller.send(&bytes).await;
        caller.rest().await;
        assert_eq!(app.asked().len(), 0, "{what}");
    }
    a_good_one_is_answered(&app, &guard).await;
}

#[tokio::test]
async fn a_body_shorter_or_longer_than_it_says_never_reaches_the_app() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = connection(&guard, &[]).await;
    for (stream, said) in [(1, body().len() + 1), (3, body().len() - 1)] {
        let more = fields(&[("content-length", &said.to_string())]);
        caller.send(frame(HEADERS, END_HEADERS, stream, &[callback(), more].concat())).await;
        caller.send(frame(DATA, END_STREAM, stream, body().as_bytes())).await;
    }
    let exact = fields(&[("content-length", &body().len().to_string())]);
    caller.send(frame(HEADERS, END_HEADERS, 5, &[callback(), exact].concat())).await;
    caller.send(frame(DATA, END_STREAM, 5, body().as_bytes())).await;
    app.wait_for_asked(1).await;
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    assert_eq!((app.asked().len(), app.asked()[0].body.as_ref()), (1, body().as_bytes()));
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.text(), ALLOW);
}

#[tokio::test]
async fn frames_that_mean_nothing_are_no_lines_in_the_log() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = connection(&guard, &[]).await;
    // Acknowledgments of pings that were never sent; then a callback, so that they have been read.
    caller.send(frame(PING, 1, 0, &[7; 8]).repeat(900)).await;
    caller.send(frame(HEADERS, END_HEADERS, 1, &callback())).await;
    caller.send(frame(DATA, END_STREAM, 1, body().as_bytes())).await;
    guard.decision("1");
    let about = guard.log_lines().iter().filter(|line| line.contains("PING")).count();
    assert_eq!(about, 0, "{:?}", guard.log_lines());
}
