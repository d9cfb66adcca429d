//! Floods over one HTTP/2 connection, or over 64, each made anew whenever the guard ends it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::attacker::{Fates, H2, MANY, all, body, named, path};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::setup::Setup;
use crate::support::frames::{
    END_HEADERS, HEADERS, INITIAL_WINDOW, PING, PRIORITY, RESET, SETTINGS, WINDOW_UPDATE, callback,
    callback_fields, frame, settings,
};

/// Makes the frames of a stream.
type Make<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// About what is written at once.
const BATCH_BYTES: usize = 48 << 10;

/// Frames that carry no callback.
pub(crate) fn frames() -> Lab {
    frames_by(1)
}

pub(crate) fn frames_by_many() -> Lab {
    frames_by(MANY)
}

fn frames_by(connections: usize) -> Lab {
    let mut lab = Lab::start(Setup::new());
    // Neither RFC 9113 nor anybody else has a frame of this type.
    let unknown = frame(0xbe, 0, 0, &[]);
    let rows = [
        ("flood of SETTINGS", settings(&[])),
        ("flood of PING", frame(PING, 0, 0, &[7; 8])),
        ("flood of PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("flood of WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("flood of unknown frames", unknown),
        ("flood of acknowledgments", frame(SETTINGS, 1, 0, &[])),
    ];
    for (name, bytes) in rows {
        let batch = bytes.repeat(BATCH_BYTES / bytes.len());
        lab.attack(named(name, connections), &KEPT, 2, async |target| {
            again_and_again(&target, connections, |_| batch.clone(), bytes.len(), Duration::ZERO).await
        });
    }
    lab
}

/// The window of all streams up and down: h2 walks every open stream for each.
pub(crate) fn windows() -> Lab {
    windows_by(1)
}

pub(crate) fn windows_by_many() -> Lab {
    windows_by(MANY)
}

fn windows_by(connections: usize) -> Lab {
    let mut lab = Lab::start(Setup::new());
    let pair = [settings(&[(INITIAL_WINDOW, 65_535)]), settings(&[(INITIAL_WINDOW, 1)])].concat();
    let batch = pair.repeat(BATCH_BYTES / pair.len());
    let open: Vec<u8> =
        (0..500).flat_map(|number| callback(2 * number + 1, &path("silent"), &body("u1"))).collect();
    let name = named("flood of SETTINGS that move the window of 500 streams", connections);
    lab.attack(name, &KEPT, 3, async |target| {
        let make = |number| if number == 0 { open.clone() } else { batch.clone() };
        again_and_again(&target, connections, make, pair.len() / 2, Duration::ZERO).await
    });
    lab
}

/// Streams that are reset when the guard has taken them.
pub(crate) fn resets() -> Lab {
    resets_by(1)
}

pub(crate) fn resets_by_many() -> Lab {
    resets_by(MANY)
}

fn resets_by(connections: usize) -> Lab {
    const AT_ONCE: u32 = 400;
    let mut lab = Lab::start(Setup::new());
    let head = |stream| frame(HEADERS, END_HEADERS, stream, &callback_fields(&path("silent")));
    let whole = |stream| callback(stream, &path("silent"), &body("u1"));
    let rows: [(&str, Make<'_>); 2] =
        [("resets of accepted heads", &head), ("resets of callbacks that the app has", &whole)];
    for (name, make) in rows {
        lab.attack(named(name, connections), &KEPT, 3, async |target| {
            let batch = |number: u32| {
                let stream = |within: u32| 2 * (number * AT_ONCE + within) + 1;
                let reset = |within| match number {
                    0 => Vec::new(),
                    _ => frame(RESET, 0, stream(within) - 2 * AT_ONCE, &[0, 0, 0, 8]),
                };
                let resets = (0..AT_ONCE).flat_map(reset);
                resets.chain((0..AT_ONCE).flat_map(|within| make(stream(within)))).collect()
            };
            let unit = 9 + 4 + make(1).len();
            again_and_again(&target, connections, batch, unit, Duration::from_millis(3)).await
        });
    }
    lab
}

/// Has so many connections write batches until time is over, with a breath after each; `unit` is the size of what is counted.
async fn again_and_again(
    target: &Target,
    connections: usize,
    batch: impl Fn(u32) -> Vec<u8>,
    unit: usize,
    breath: Duration,
) -> String {
    let (begun, bytes) = (Instant::now(), Cell::new(0));
    let flood = async || {
        let mut fates = Fates::default();
        while Instant::now() < target.until {
            let Ok(mut connection) = H2::open(target, &[]).await else {
                fates.add("not opened");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            for number in 0.. {
                if connection.is_over() || Instant::now() >= target.until {
                    break;
                }
                let batch = batch(number);
                if connection.write(&batch).await.is_err() {
                    // The reader may know more.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    break;
                }
                bytes.set(bytes.get() + batch.len());
                if !breath.is_zero() {
                    tokio::time::sleep(breath).await;
                }
            }
            fates.add(connection.fate());
        }
        fates
    };
    let fates = all(connections, flood).await;
    let a_second = (bytes.get() / unit) as f64 / begun.elapsed().as_secs_f64();
    format!("{a_second:.0} a second; {fates}")
}
