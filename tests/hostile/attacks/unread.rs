//! Answers that nobody reads.

use std::process::Command;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::attacker::{Fates, H2, Open, body, h1_callback, many_h1, open_or_closed, path, rest, tls};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::setup::Setup;
use crate::support::frames::{INITIAL_WINDOW, WINDOW_UPDATE, callback, frame};
use crate::toy;

const SET_GROUP: &str = "callbackBeforeSetGroupInfoCommand";

fn large_answer(bytes: usize) -> bytes::Bytes {
    let head = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0,"x":""#;
    toy::answer(format!("{head}{}\"}}", "y".repeat(bytes - head.len() - 2)), "")
}

/// An allow of this command echoes the request: the answer is as large as the callback, whatever the app sends.
pub(crate) fn h1() -> Lab {
    let setup = Setup::new();
    let largest = setup.default_size("--max-request-size").min(8 << 20) - 300;
    let mut lab = Lab::start(setup);
    lab.attack("unread answers of --max-request-size, 192 MiB over HTTP/1.1", &KEPT, 8, async |target| {
        let request = |bytes: usize| {
            let head = format!(
                r#"{{"callbackCommand":"{SET_GROUP}","operationID":"1","groupID":"g","introduction":""#
            );
            let text = format!("{head}{}\"}}", "x".repeat(bytes - head.len() - 2));
            h1_callback(&format!("/{SET_GROUP}?mode=allow"), "", text.as_bytes())
        };
        let mut open = Vec::new();
        // Smaller ones behind them fill what a large one leaves.
        let sizes =
            [(largest, (192 << 20) / largest), (1 << 20, 8), (128 << 10, 16), (16 << 10, 32), (9 << 10, 16)];
        for (bytes, count) in sizes.map(|(bytes, count)| (largest.min(bytes), count)) {
            let mut streams = Vec::new();
            for _ in 0..count {
                streams.extend(tls(target.listen, &target.h1, Some(4096)).await);
            }
            let request = request(bytes);
            // Some at a time, as their uploads share the bound.
            for part in streams.chunks_mut(4) {
                let writing = part.iter_mut().map(|stream| async {
                    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&request)).await;
                });
                join_all(writing).await;
            }
            open.extend(streams);
        }
        rest(&target).await;
        open_or_closed(open.iter().map(|stream| stream.get_ref().0)).to_string()
    });
    lab
}

/// A window of 0: not a byte of a body may be sent.
pub(crate) fn h2_large() -> Lab {
    let setup = Setup::new();
    let largest = setup.default_size("--max-answer-size").min(1 << 20) - 300;
    let mut lab = Lab::start(setup.app_answers("large", large_answer(largest)));
    lab.attack("unread answers of 1 MiB, 192 of them over HTTP/2", &KEPT, 5, async |target| {
        zero_window(&target, 2, 96 << 20, largest, "large").await
    });
    lab
}

/// The same with small answers, which nothing counted.
pub(crate) fn h2_small() -> Lab {
    let mut lab = Lab::start(Setup::new().app_answers("eight", large_answer(8 << 10)));
    lab.attack("unread answers of 8 KiB, 40 HTTP/2 connections of 500", &KEPT, 6, async |target| {
        zero_window(&target, 40, 500 * (8 << 10), 8 << 10, "eight").await
    });
    lab.attack("unread answers of rules, 60 HTTP/2 connections of 500", &KEPT, 5, async |target| {
        zero_window(&target, 60, 500, 1, "good").await
    });
    lab
}

async fn zero_window(target: &Target, connections: u32, bytes: usize, each: usize, mode: &str) -> String {
    let mut open = Vec::new();
    let sender = if mode == "good" { "good" } else { "u1" };
    for _ in 0..connections {
        let Ok(mut connection) = H2::open(target, &[(INITIAL_WINDOW, 0)]).await else { break };
        let streams = u32::try_from(bytes / each).expect("few");
        for from in (0..streams).step_by(50) {
            let numbers = from..streams.min(from + 50);
            let frames: Vec<u8> =
                numbers.flat_map(|number| callback(2 * number + 1, &path(mode), &body(sender))).collect();
            if connection.is_over() || connection.write(&frames).await.is_err() {
                break;
            }
        }
        open.push(connection);
        if std::time::Instant::now() > target.until {
            break;
        }
    }
    rest(target).await;
    let mut fates = Fates::default();
    open.iter().for_each(|connection| fates.add(connection.fate()));
    fates.to_string()
}

/// An answer that is not taken 20 s after it was ready ends its connection; a byte now and then does not save it.
pub(crate) fn slowly_read() -> Lab {
    const LARGE: usize = 900 << 10;
    let mut lab = Lab::start(Setup::new().app_answers("large", large_answer(LARGE)));
    let mut left = Vec::new();
    lab.attack("answers read a byte each 3 s, or never, for 23 s", &KEPT, 23, async |target| {
        let request = h1_callback(&path("large"), "", &body("u1"));
        let mut never = many_h1(&target, 5, Some(4096)).await;
        let mut slowly = Vec::new();
        for _ in 0..5 {
            slowly.extend(tls(target.listen, &target.h1, Some(4096)).await);
        }
        for stream in never.iter_mut().chain(&mut slowly) {
            let _ = stream.write_all(&request).await;
        }
        let mut frames = Vec::new();
        for _ in 0..5 {
            let Ok(mut connection) = H2::open(&target, &[(INITIAL_WINDOW, 0)]).await else { continue };
            let _ = connection.write(&callback(1, &path("large"), &body("u1"))).await;
            frames.push(connection);
        }
        while std::time::Instant::now() + Duration::from_secs(2) < target.until {
            tokio::time::sleep(Duration::from_secs(3)).await;
            for stream in &mut slowly {
                // Of the socket, below TLS: a byte of the record under way.
                let _ = tokio::time::timeout(Duration::from_millis(5), stream.get_mut().0.read_u8()).await;
            }
            for connection in &mut frames {
                let _ = connection.write(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])).await;
            }
        }
        rest(&target).await;
        let known = Open::now();
        let count = |streams: &[TlsStream<TcpStream>]| {
            streams.iter().filter(|stream| known.has(stream.get_ref().0)).count()
        };
        let h2 = frames.iter().filter(|connection| !connection.is_over()).count();
        left = vec![
            ("HTTP/1.1, never", count(&never)),
            ("HTTP/1.1, bytes", count(&slowly)),
            ("HTTP/2, bytes", h2),
        ];
        format!("open of 5 each: {left:?}")
    });
    for (which, open) in left {
        if open > 0 {
            lab.complain(format!(
                "{open} of 5 connections whose answer is not taken for 22 s are open ({which})"
            ));
        }
    }
    lab
}

/// What the kernel keeps of answers that nobody reads. cgroup v1 charges nobody for it, so the sockets' own figures count.
pub(crate) fn send_buffers() -> Lab {
    /// Twice what `TCP_NOTSENT_LOWAT` of 64 KiB leads to, which is 218 KiB; without it these answers are there as a whole.
    const MOST: u64 = 448 << 10;
    let setup = Setup::new();
    let largest = setup.default_size("--max-answer-size").min(3 << 20) - 300;
    let mut lab = Lab::start(setup.app_answers("large", large_answer(largest)));
    let mut found = None;
    lab.attack(
        "kernel send buffers: 20 unread answers of 3 MiB or --max-answer-size",
        &KEPT,
        3,
        async |target| {
            let request = h1_callback(&path("large"), "", &body("u1"));
            let mut streams = many_h1(&target, 20, None).await;
            for stream in &mut streams {
                let _ = stream.write_all(&request).await;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            found = queued(target.listen.port()).into_iter().max();
            let shown = found.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 10).to_string());
            rest(&target).await;
            format!(
                "{shown} KiB in the fullest send queue; {}",
                open_or_closed(streams.iter().map(|s| s.get_ref().0))
            )
        },
    );
    match found {
        None => lab.complain("ss lists no socket of the guard's".to_owned()),
        Some(bytes) if bytes > MOST => {
            lab.complain(format!("a send queue has {} KiB, more than {}", bytes >> 10, MOST >> 10));
        }
        Some(_) => {}
    }
    lab
}

/// The memory of the send queue of each socket at this local port, in bytes: `w` of `skmem` in ss(8), of iproute2.
fn queued(port: u16) -> Vec<u64> {
    let filter = format!("sport = :{port}");
    let shown = Command::new("ss").args(["-tmnHO", "state", "established", &filter]).output();
    let text = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let sockets = text.lines().filter_map(|line| line.split_once("skmem:("));
    sockets
        .filter_map(|(_, rest)| {
            let mut parts = rest.trim_end_matches([')', ' ']).split(',');
            parts.find_map(|part| part.strip_prefix('w')?.parse().ok())
        })
        .collect()
}
