//! What comes in TLS records beside plaintext, and behind a body: a connection has little room for it.

use std::sync::Arc;

use rustls::ContentType;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::raw_h2::{body, callback, connection};
use crate::support::caller::{plain, try_secure};
use crate::support::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, field, frame};
use crate::support::tls_records::{self, Records, config};
use crate::support::{App, Authority, Call, Caller, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";
const FLOOD: &str = "callback_guard_bad_http_total{reason=\"flood\"}";
const GARBAGE: &str = "callback_guard_tls_handshake_failures_total{reason=\"garbage\"}";

#[tokio::test]
async fn half_a_message_in_a_handshake_is_garbage_beyond_8_kib() {
    let guard = Guard::with("").flag("--handshake-timeout", "1h").start();
    let older = Authority::common().trusted_with(&["h2"], None, &[&rustls::version::TLS12]);
    let mut half = plain(&guard).await;
    within("a flight", tls_records::half_handshake(&mut half, Arc::clone(&older), 5_000))
        .await
        .expect("room");
    let mut long = plain(&guard).await;
    let _ = within("a flight", tls_records::half_handshake(&mut long, Arc::clone(&older), 12_000)).await;
    guard.wait_for_metric(GARBAGE, 1.0).await;
    // The twins: 5 KB are waited for, and a whole handshake is served.
    assert_eq!(guard.count("callback_guard_tls_handshake_failures_total", &[]), 1.0);
    within("a handshake", try_secure(&guard, older)).await.expect("TLS 1.2 is served");
}

#[tokio::test]
async fn half_a_message_behind_a_handshake_ends_its_connection_beyond_24_kib() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let config = config(&Authority::common().trusted_by(&["http/1.1"], None));
    let mut open = Vec::new();
    for (number, bytes) in [20_000, 30_000, 61_000].into_iter().enumerate() {
        let mut records = Records::over(plain(&guard).await, Arc::clone(&config)).await.expect("a handshake");
        let half = records.half_message(bytes);
        let _ = records.stream.write_all(&half).await;
        open.push(records);
        guard.wait_for_metric(FLOOD, number as f64).await;
    }
    // The twin: a callback in many small records, and an empty one now and then.
    let mut records = Records::over(plain(&guard).await, config).await.expect("a handshake");
    let text = body();
    let request = format!(
        "POST /{COMMAND} HTTP/1.1\r\nHost: x\r\noperationID: 1\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    for part in request.as_bytes().chunks(1) {
        let bytes = [records.data(part), records.record(ContentType::ApplicationData, b"")].concat();
        records.stream.write_all(&bytes).await.expect("room");
    }
    let mut answer = [0; 1024];
    assert!(within("an answer", records.stream.read(&mut answer)).await.expect("an answer") > 100);
    assert_eq!(guard.metric(FLOOD), 2.0);
}

#[tokio::test]
async fn new_keys_again_and_again_end_their_connection_and_some_do_not() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let config = Authority::common().trusted_by(&["http/1.1"], None);
    let mut few = plain(&guard).await;
    let mut client = tls_records::handshake(&mut few, Arc::clone(&config)).await.expect("a handshake");
    few.write_all(&tls_records::new_keys(&mut client, 10)).await.expect("room");
    let mut many = plain(&guard).await;
    let mut client = tls_records::handshake(&mut many, config).await.expect("a handshake");
    let _ = many.write_all(&tls_records::new_keys(&mut client, 40)).await;
    guard.wait_for_metric(FLOOD, 1.0).await;
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(guard.metric(FLOOD), 1.0);
}

#[tokio::test]
async fn a_callback_with_small_trailers_is_answered_and_large_ones_end_their_connection() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for (fields, count) in [(8, 0.0), (9, 1.0)] {
        let mut caller = connection(&guard, &[]).await;
        caller.send(frame(HEADERS, END_HEADERS, 1, &callback())).await;
        caller.send(frame(DATA, 0, 1, body().as_bytes())).await;
        let trailers = field(b"x-own", b"1").repeat(fields);
        caller.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers)).await;
        if fields == 8 {
            within("a callback", async {
                while app.asked().is_empty() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
        guard.wait_for_metric(FLOOD, count).await;
    }
    assert_eq!(app.asked().len(), 1);
}
