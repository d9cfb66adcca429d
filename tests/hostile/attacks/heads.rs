//! Heads that are large in memory and small on the wire, heads that never end, and what heads leave behind.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use crate::attacker::{self, Fates, H2, MANY, Open, body, h1_callback, many_h1, named, path, rest};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::setup::Setup;
use crate::support::frames::{END_HEADERS, HEADERS, callback_fields, field, frame, indexed_field};

/// One field goes into the table, and thousands of references of one byte each: 8 KB on the wire, 580 KiB in memory. Nothing
/// follows the heads, so that each waits for its body.
pub(crate) fn references() -> Lab {
    references_by(2)
}

pub(crate) fn references_by_many() -> Lab {
    references_by(MANY)
}

fn references_by(connections: usize) -> Lab {
    let mut lab = Lab::start(Setup::new());
    let head = |first: bool| {
        let mut block = callback_fields(&path("ok"));
        if first {
            block.extend(indexed_field(b"a", b""));
        }
        // The newest entry of the table: 62.
        block.extend(std::iter::repeat_n(0x80 | 62, 7_900));
        block
    };
    lab.attack(named("heads of 7,900 references over HTTP/2", connections), &KEPT, 4, async |target| {
        heads_without_bodies(&target, connections, 1_000, head).await
    });
    lab
}

/// Heads of 60 KB in fields of different names, 455 KB each in memory.
pub(crate) fn distinct_names() -> Lab {
    distinct_names_by(2)
}

pub(crate) fn distinct_names_by_many() -> Lab {
    distinct_names_by(MANY)
}

fn distinct_names_by(connections: usize) -> Lab {
    let mut lab = Lab::start(Setup::new());
    let block = |_| {
        let fields = (0..1_300_u32).flat_map(|number| field(format!("x{number:04}").as_bytes(), b"1"));
        callback_fields(&path("ok")).into_iter().chain(fields).collect()
    };
    lab.attack(named("heads of 1,300 names over HTTP/2", connections), &KEPT, 4, async |target| {
        heads_without_bodies(&target, connections, 1_000, block).await
    });
    lab
}

async fn heads_without_bodies(
    target: &Target,
    connections: usize,
    streams: u32,
    block: impl Fn(bool) -> Vec<u8>,
) -> String {
    let mut fates = Fates::default();
    let (first, next) = (block(true), block(false));
    let mut open = Vec::new();
    for _ in 0..connections {
        match H2::open(target, &[]).await {
            Ok(connection) => open.push(connection),
            Err(error) => fates.add(format!("not opened: {}", error.kind())),
        }
    }
    for number in 0..streams {
        if Instant::now() > target.until {
            break;
        }
        for connection in open.iter_mut().filter(|connection| !connection.is_over()) {
            let block = if number == 0 { &first } else { &next };
            let _ = connection.write(&frame(HEADERS, END_HEADERS, 2 * number + 1, block)).await;
        }
    }
    rest(target).await;
    open.iter().for_each(|connection| fates.add(connection.fate()));
    fates.to_string()
}

/// Heads over HTTP/1.1 that stop short of their end, 250 KB each.
pub(crate) fn half_h1() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack("half heads of 250 KB, 1,000 HTTP/1.1 connections", &KEPT, 6, async |target| {
        let mut streams = many_h1(&target, 1_000, None).await;
        let half = format!("POST /x HTTP/1.1\r\nHost: x\r\nb: {}", "q".repeat(250 << 10));
        for stream in &mut streams {
            let _ = tokio::time::timeout(Duration::from_millis(20), stream.write_all(half.as_bytes())).await;
        }
        rest(&target).await;
        attacker::open_or_closed(streams.iter().map(|stream| stream.get_ref().0)).to_string()
    });
    lab
}

/// Half a HEADERS frame over HTTP/2, which `--header-timeout` ends; and half a head behind a whole request over HTTP/1.1: hyper holds
/// these bytes, so that nothing tells it from an idle connection, whose bounds hold (docs/security.md).
pub(crate) fn stuck() -> Lab {
    /// Behind the timeout, for the ends to arrive.
    const GRACE: Duration = Duration::from_secs(2);
    let mut lab = Lab::start(Setup::new().flag("--header-timeout", "2s"));
    let mut left = Vec::new();
    lab.attack("200 half heads behind a whole request, HTTP/1.1", &KEPT, 5, async |target| {
        let mut streams = many_h1(&target, 200, None).await;
        let made = streams.len();
        let whole = h1_callback(&path("ok"), "", &body("good"));
        for stream in &mut streams {
            let _ = stream.write_all(&[&whole[..], b"POST /x HTTP/1.1\r\nHos"].concat()).await;
        }
        rest(&target).await;
        let known = Open::now();
        let open = streams.iter().filter(|stream| known.has(stream.get_ref().0)).count();
        format!("{} of {made} closed", made - open)
    });
    lab.attack("200 half HEADERS frames, HTTP/2", &KEPT, 5, async |target| {
        let mut connections = Vec::new();
        let begun = Instant::now();
        for _ in 0..200 {
            let Ok(mut connection) = H2::open(&target, &[]).await else { break };
            let whole = frame(HEADERS, END_HEADERS, 1, &callback_fields(&path("ok")));
            let _ = connection.write(&whole[..whole.len() / 2]).await;
            connections.push(connection);
        }
        let until = begun.max(Instant::now()) + Duration::from_secs(2) + GRACE;
        tokio::time::sleep_until(until.max(target.until).into()).await;
        let open = connections.iter().filter(|connection| !connection.is_over()).count();
        left.push((open, connections.len()));
        format!("{} of {} closed", connections.len() - open, connections.len())
    });
    for (open, made) in left {
        if open > 0 || made == 0 {
            lab.complain(format!("{open} of {made} half heads are open past --header-timeout"));
        }
    }
    lab
}

/// Heads whose `:path` goes into the table, where it holds on to the buffer it was read from: 1.6 MiB a connection on which no
/// stream is open.
pub(crate) fn pinned() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack("table entries that keep read buffers, 200 HTTP/2 connections", &KEPT, 6, async |target| {
        let mut connections = Vec::new();
        // POST, https, a path that is indexed; and filler, so that the next head is in another buffer.
        let block = [&[0x83, 0x87, 0x44, 0x01, b'/'][..], &field(b"x", &[b'y'; 15_800])].concat();
        for _ in 0..200 {
            if Instant::now() > target.until {
                break;
            }
            let Ok(mut connection) = H2::open(&target, &[]).await else { break };
            for number in 0..100 {
                if connection.is_over()
                    || connection
                        .write(&frame(HEADERS, END_HEADERS | 1, 2 * number + 1, &block))
                        .await
                        .is_err()
                {
                    break;
                }
                // A read of its own for each.
                tokio::task::yield_now().await;
            }
            connections.push(connection);
        }
        rest(&target).await;
        let mut fates = Fates::default();
        connections.iter().for_each(|connection| fates.add(connection.fate()));
        fates.to_string()
    });
    lab
}
