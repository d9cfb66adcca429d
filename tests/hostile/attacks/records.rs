//! What TLS itself buffers and works for, below HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attacker::{Fates, H2, body, h1_callback, open_or_closed, path, rest, tcp};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::setup::Setup;
use crate::support::Authority;
use crate::support::frames::{END_HEADERS, END_STREAM, HEADERS, callback_fields, frame, indexed_field};
use crate::support::tls_records::{self, Records};

/// At most as many connections as the default of `--max-connections` takes in 256 MiB, nearly.
const CONNECTIONS: usize = 1_400;

/// Bytes of a handshake message that announces 64 KiB.
const HALF: usize = 61_000;

/// 1,400 connections; what they hold beside that is at most 24 KiB each, not 64.
const MOST: u64 = 110 << 20;

/// Trailers of 2,900 references of one byte each, 190 KiB in memory, on each of many connections at once.
pub(crate) fn trailers() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack("trailers of 2,900 references over HTTP/2, 1,000 connections", &KEPT, 12, async |target| {
        let mut open = Vec::new();
        let by = Instant::now() + Duration::from_secs(8);
        while open.len() < 1_000 && Instant::now() < by {
            let Ok(mut connection) = H2::open(&target, &[]).await else { break };
            let head = [callback_fields("/x"), indexed_field(b"a", b"")].concat();
            let _ = connection.write(&frame(HEADERS, END_HEADERS, 1, &head)).await;
            open.push(connection);
        }
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xbe; 2_900]);
        for connection in &mut open {
            let _ = connection.write(&trailers).await;
        }
        rest(&target).await;
        let mut fates = Fates::default();
        open.iter().for_each(|connection| fates.add(connection.fate()));
        fates.to_string()
    });
    below(&mut lab, MOST);
    lab
}

/// A handshake message that does not end, before its keys and behind its handshake.
pub(crate) fn half_messages() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack(
        "half a handshake message in the handshake, TLS 1.2, 1,400 connections",
        &KEPT,
        7,
        async |target| {
            let config = Authority::common().trusted_with(&["http/1.1"], None, &[&rustls::version::TLS12]);
            many(&target, async |stream| tls_records::half_handshake(stream, Arc::clone(&config), HALF).await)
                .await
        },
    );
    below(&mut lab, 64 << 20);
    let mut stays = false;
    lab.attack(
        "half a handshake message behind the handshake, 1,400 connections",
        &KEPT,
        10,
        async |target| {
            let config = tls_records::config(&target.h1);
            let (mut open, by) = (Vec::new(), Instant::now() + Duration::from_secs(8));
            let mut long = Vec::new();
            while open.len() + long.len() < CONNECTIONS && Instant::now() < by {
                let Ok(stream) = tcp(target.listen, None).await else { break };
                let Ok(mut records) = Records::over(stream, Arc::clone(&config)).await else { break };
                // Every other one is within its bound, and stays.
                let is_long = open.len() > long.len();
                let half = records.half_message(if is_long { HALF } else { 23_000 });
                let _ = timeout(Duration::from_millis(20), records.stream.write_all(&half)).await;
                if is_long { &mut long } else { &mut open }.push(records);
            }
            rest(&target).await;
            let [open, long] = [&open, &long]
                .map(|made| open_or_closed(made.iter().map(|records| &records.stream)).to_string());
            stays = long.contains("open");
            format!("23 KB: {open}; 61 KB: {long}")
        },
    );
    if stays {
        lab.complain("half a message of 61 KB stays");
    }
    below(&mut lab, MOST);
    lab
}

/// Answers that are just too large for the kernel, so that TLS had the rest of them and nothing was left to count or to time.
pub(crate) fn unread() -> Lab {
    const COMMAND: &str = "callbackBeforeSetGroupInfoCommand";
    let mut lab = Lab::start(Setup::new());
    let mut left = Vec::new();
    lab.attack(
        "unread answers of 126 KB or 2,000 small ones, which TLS has, for 24 s",
        &KEPT,
        24,
        async |target| {
            let config = tls_records::config(&target.h1);
            let head = format!(
                r#"{{"callbackCommand":"{COMMAND}","operationID":"1","groupID":"g","introduction":""#
            );
            let echo = h1_callback(
                &format!("/{COMMAND}?mode=allow"),
                "",
                format!("{head}{}\"}}", "x".repeat(126_000)).as_bytes(),
            );
            let small = h1_callback(&path("ok"), "", &body("good")).repeat(2_000);
            let mut open = Vec::new();
            for number in 0..60 {
                let Ok(stream) = tcp(target.listen, Some(2048)).await else { break };
                let Ok(mut records) = Records::over(stream, Arc::clone(&config)).await else { break };
                let request = records.data(if number % 2 == 0 { &echo } else { &small });
                let _ = timeout(Duration::from_secs(1), records.stream.write_all(&request)).await;
                open.push(records);
            }
            rest(&target).await;
            left.push(open_or_closed(open.iter().map(|records| &records.stream)).to_string());
            left[0].clone()
        },
    );
    if left.first().is_none_or(|left| left.contains("open")) {
        lab.complain(format!("unread answers that TLS had: {left:?} after 24 s"));
    }
    below(&mut lab, 64 << 20);
    lab
}

/// New keys again and again, with a byte in between that makes rustls begin to count anew.
pub(crate) fn new_keys() -> Lab {
    let mut lab = Lab::start(Setup::new());
    let mut most = 0;
    lab.attack("new keys again and again, 10 connections", &KEPT, 5, async |target| {
        let written = join_all((0..10).map(|_| keys_until_it_ends(&target))).await;
        most = written.iter().copied().max().unwrap_or(0);
        format!("each connection ended after at most {most} bytes")
    });
    // What a connection may bring without plaintext, and what the kernels on both sides take of what nobody reads.
    if most == 0 || most > 2 << 20 {
        lab.complain(format!("new keys: a connection brought {most} bytes"));
    }
    below(&mut lab, 64 << 20);
    lab
}

/// The most that one connection could write, of all that were made in turn.
async fn keys_until_it_ends(target: &Target) -> usize {
    let mut most = 0;
    while Instant::now() < target.until {
        let Ok(mut stream) = tcp(target.listen, None).await else { continue };
        let Ok(mut client) = tls_records::handshake(&mut stream, Arc::clone(&target.h1)).await else {
            continue;
        };
        let mut written = 0;
        while Instant::now() < target.until {
            let keys = tls_records::new_keys(&mut client, 20);
            match timeout(Duration::from_secs(1), stream.write_all(&keys)).await {
                Ok(Ok(())) => written += keys.len(),
                _ => break,
            }
        }
        most = most.max(written);
    }
    most
}

async fn many(target: &Target, half: impl AsyncFn(&mut TcpStream) -> std::io::Result<()>) -> String {
    let (mut open, by) = (Vec::new(), Instant::now() + Duration::from_secs(5));
    while open.len() < CONNECTIONS && Instant::now() < by {
        let Ok(mut stream) = tcp(target.listen, None).await else { break };
        let _ = timeout(Duration::from_millis(500), half(&mut stream)).await;
        open.push(stream);
    }
    rest(target).await;
    open_or_closed(&open).to_string()
}

/// The process never had more.
fn below(lab: &mut Lab, most: u64) {
    if let Some(peak) = lab.peak().filter(|peak| *peak > most) {
        lab.complain(format!("{} MiB were in use, more than {}", peak >> 20, most >> 20));
    }
}
