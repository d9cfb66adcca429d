//! Many connections, many streams, many handshakes, and one connection that takes every place.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::future::join_all;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::attacker::{Fates, H2, MANY, all, body, open_or_closed, path, rest, tcp, tls};
use crate::good::{KEPT, KEPT_AND_FRESH};
use crate::lab::{Lab, Target};
use crate::setup::Setup;
use crate::support::Authority;
use crate::support::frames::{END_HEADERS, HEADERS, callback, callback_fields, frame};

/// A handshake, and then nothing, as often as there was ever room for by default.
pub(crate) fn idle() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack("10,050 idle connections", &KEPT_AND_FRESH, 12, async |target| {
        handshakes(&target, 10_050).await
    });
    lab
}

/// The same with fewer places than connections.
pub(crate) fn full() -> Lab {
    let mut lab = Lab::start(Setup::new().flag("--max-connections", "500"));
    lab.attack("700 idle connections at 500 places", &KEPT_AND_FRESH, 5, async |target| {
        handshakes(&target, 700).await
    });
    lab
}

async fn handshakes(target: &Target, count: usize) -> String {
    let (mut open, mut failed) = (Vec::with_capacity(count), 0);
    // The last seconds are for callers who come when all places are taken.
    let until = target.until - Duration::from_secs(3);
    while open.len() + failed < count && Instant::now() < until {
        let making = join_all((0..16).map(|_| tls(target.listen, &target.h1, None)));
        let Ok(made) = tokio::time::timeout_at(until.into(), making).await else { break };
        for stream in made {
            match stream {
                Ok(stream) => open.push(stream),
                Err(_) => failed += 1,
            }
        }
    }
    rest(target).await;
    let fates = open_or_closed(open.iter().map(|stream| stream.get_ref().0));
    format!("{fates}, {failed} not made")
}

/// Heads whose bodies do not come, on many connections.
pub(crate) fn streams() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack("100 HTTP/2 connections of 1,000 heads without bodies", &KEPT, 5, async |target| {
        let block = callback_fields(&path("ok"));
        let mut open = Vec::new();
        for _ in 0..100 {
            let Ok(mut connection) = H2::open(&target, &[]).await else { break };
            let frames: Vec<u8> =
                (0..1_000).flat_map(|number| frame(HEADERS, END_HEADERS, 2 * number + 1, &block)).collect();
            let _ = connection.write(&frames).await;
            open.push(connection);
            if Instant::now() > target.until {
                break;
            }
        }
        rest(&target).await;
        let mut fates = Fates::default();
        open.iter().for_each(|connection| fates.add(connection.fate()));
        fates.to_string()
    });
    lab
}

/// One connection that keeps as many callbacks with a slow app as there are places.
pub(crate) fn in_flight() -> Lab {
    in_flight_by(1)
}

pub(crate) fn in_flight_by_many() -> Lab {
    in_flight_by(MANY)
}

fn in_flight_by(connections: usize) -> Lab {
    let mut lab = Lab::start(Setup::new());
    let each = 1_023_usize.div_ceil(connections) as u32;
    let name =
        if connections == 1 { "1,023 callbacks in flight, of one connection" } else { "the same of 64" };
    lab.attack(name, &KEPT, 5, async |target| {
        let all_sent = Cell::new(0);
        let keep = async || {
            let mut fates = Fates::default();
            let Ok(mut connection) = H2::open(&target, &[]).await else {
                fates.add("not opened");
                return fates;
            };
            let mut sent = 0_u32;
            while Instant::now() < target.until && !connection.is_over() {
                let ended = u32::try_from(connection.seen().ended.get()).unwrap_or(u32::MAX);
                let room = each.saturating_sub(sent.saturating_sub(ended));
                let frames: Vec<u8> = (0..room)
                    .flat_map(|more| callback(2 * (sent + more) + 1, &path("silent"), &body("u1")))
                    .collect();
                if !frames.is_empty() && connection.write(&frames).await.is_err() {
                    break;
                }
                sent += room;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            rest(&target).await;
            all_sent.set(all_sent.get() + sent);
            fates.add(connection.fate());
            fates
        };
        let fates = all(connections, keep).await;
        format!("{fates}, {} callbacks sent", all_sent.get())
    });
    lab
}

/// ClientHellos: the server signs, the client does nothing and is gone.
pub(crate) fn handshakes_ecdsa() -> Lab {
    let mut lab = Lab::start(Setup::new());
    flood(&mut lab, ["handshakes with ECDSA, 20 at once", "handshakes with ECDSA, 1,000 at once"]);
    lab
}

pub(crate) fn handshakes_rsa() -> Lab {
    let issued = Authority::common().rsa_server();
    let mut lab = Lab::start(Setup::new().certificate(issued));
    flood(&mut lab, ["handshakes with RSA-2048, 20 at once", "handshakes with RSA-2048, 1,000 at once"]);
    lab
}

fn flood(lab: &mut Lab, [few, many]: [&'static str; 2]) {
    for (name, at_once) in [(few, 20), (many, 1_000)] {
        lab.attack(name, &KEPT_AND_FRESH, 3, async |target| {
            let hello = client_hello(&target);
            let begun = Instant::now();
            let mut answered = 0;
            while Instant::now() < target.until {
                let asking = (0..at_once).map(|_| async {
                    let mut stream = tcp(target.listen, None).await.ok()?;
                    stream.write_all(&hello).await.ok()?;
                    let answer = tokio::time::timeout(Duration::from_secs(2), stream.read_u8()).await;
                    // Gone without a word.
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    answer.ok()?.ok()
                });
                let asked = tokio::time::timeout_at(target.until.into(), join_all(asking)).await;
                answered += asked.map_or(0, |answers| answers.iter().flatten().count());
            }
            format!("{:.0} ClientHellos answered a second", answered as f64 / begun.elapsed().as_secs_f64())
        });
    }
}

/// A ClientHello as rustls writes it, to be sent again and again.
fn client_hello(target: &Target) -> Vec<u8> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut connection = ClientConnection::new(target.h2.clone(), name).expect("a configuration");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("memory");
    hello
}
