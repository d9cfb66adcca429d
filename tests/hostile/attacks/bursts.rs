//! Many small callbacks at the same moment, from everywhere.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::attacker::{Fates, H2};
use crate::good::KEPT;
use crate::lab::Lab;
use crate::setup::Setup;
use crate::support::frames::{END_HEADERS, END_STREAM, HEADERS, callback_fields_by, frame, indexed_field};

/// Connections, each from an address of its own.
const CONNECTIONS: u8 = 60;

/// Callbacks of each at once: 15 bytes each, for all their fields are in the table.
const CALLBACKS: u32 = 200;

/// Puts the fields of a callback into the table of a new connection: the last has the index 62.
fn first() -> Vec<u8> {
    callback_fields_by(indexed_field, &format!("/{}", crate::good::COMMAND))
}

/// Bursts twice a second.
pub(crate) fn from_everywhere() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack(
        "bursts of 200 callbacks of 15 bytes, on 60 connections from 60 addresses",
        &KEPT,
        5,
        async |target| {
            const FIELDS: [u8; 6] = [0x80 | 67, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
            let whole = END_HEADERS | END_STREAM;
            let mut open = Vec::new();
            for number in 0..CONNECTIONS {
                let source = Ipv4Addr::new(127, 30, number, 1);
                let Ok(mut connection) = H2::open_from(source, &target).await else { continue };
                let _ = connection.write(&frame(HEADERS, whole, 1, &first())).await;
                open.push(connection);
            }
            let (begun, mut stream, mut bursts) = (Instant::now(), 3, 0);
            while Instant::now() < target.until {
                let heads = (0..CALLBACKS).flat_map(|at| frame(HEADERS, whole, stream + 2 * at, &FIELDS));
                let heads: Vec<u8> = heads.collect();
                for connection in &mut open {
                    let _ = connection.write(&heads).await;
                }
                (stream, bursts) = (stream + 2 * CALLBACKS, bursts + 1);
                tokio::time::sleep_until((begun + Duration::from_millis(500) * bursts).into()).await;
            }
            let answers: u64 = open.iter().map(|connection| connection.seen().answers.get()).sum();
            let mut fates = Fates::default();
            open.iter().for_each(|connection| fates.add(connection.fate()));
            format!("{fates}; {answers} answers in {bursts} bursts")
        },
    );
    lab
}
