//! Bodies of which much is announced and little comes.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;

use crate::attacker::{Fates, H2};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::probe::status;
use crate::setup::{MEMORY_LIMIT, Setup};
use crate::support::frames::{DATA, END_HEADERS, HEADERS, callback_fields, field, frame};

/// Just below the size from which the allocator gives a block a mapping of its own: such blocks come from memory that was used before,
/// and are resident at once.
const BYTES: usize = 127 << 10;

/// Commands in turn, so that no command's share is the bound.
const COMMANDS: [&str; 8] = [
    "callbackBeforeSendSingleMsgCommand",
    "callbackBeforeSendGroupMsgCommand",
    "callbackAfterSendSingleMsgCommand",
    "callbackAfterSendGroupMsgCommand",
    "callbackBeforeMsgModifyCommand",
    "callbackBeforeAddFriendCommand",
    "callbackBeforeCreateGroupCommand",
    "callbackBeforeMemberJoinGroupCommand",
];

/// Callbacks that announce a body of [`BYTES`], each with DATA frames of so many bytes and no end.
fn begun(callbacks: usize, data: &[usize]) -> Vec<u8> {
    let mut frames = Vec::new();
    for (number, command) in (0..callbacks).zip(COMMANDS.iter().cycle()) {
        let stream = 2 * u32::try_from(number).expect("few") + 1;
        let fields = callback_fields(&format!("/{command}?mode=silent"));
        let fields = [fields, field(b"content-length", BYTES.to_string().as_bytes())].concat();
        frames.extend(frame(HEADERS, END_HEADERS, stream, &fields));
        data.iter().for_each(|bytes| frames.extend(frame(DATA, 0, stream, &vec![b'x'; *bytes])));
    }
    frames
}

/// Writes these frames on so many new connections.
async fn wave(target: &Target, connections: usize, frames: &[u8], open: &mut Vec<H2>) {
    for _ in 0..connections {
        if let Ok(mut connection) = H2::open(target, &[]).await {
            let _ = connection.write(frames).await;
            open.push(connection);
        }
    }
}

/// Bodies that come nearly whole, and when they are given up, many of which 600 bytes come: they would have the room of those before.
pub(crate) fn bodies() -> Lab {
    let mut lab = Lab::start(Setup::new());
    lab.attack(
        "2,400 bodies of 127 KiB that were announced, of which 600 bytes came, in turns",
        &KEPT,
        11,
        async |target| {
            let (whole, little) =
                (begun(8, &[[16 << 10; 7].as_slice(), &[14_000]].concat()), begun(400, &[300, 300]));
            let start = Instant::now();
            let mut open = Vec::new();
            for round in 0..4_u32 {
                // A body has two seconds.
                sleep_until((start + Duration::from_millis(2_600) * round).into()).await;
                wave(&target, 90, &whole, &mut open).await;
                sleep_until(
                    (start + Duration::from_millis(2_600) * round + Duration::from_millis(2_150)).into(),
                )
                .await;
                wave(&target, 6, &little, &mut open).await;
            }
            wave(&target, 90, &whole, &mut open).await;
            let mut fates = Fates::default();
            open.iter().for_each(|connection| fates.add(connection.fate()));
            fates.to_string()
        },
    );
    let peak = status(lab.guard().pid(), "VmHWM:").unwrap_or_default();
    if peak > MEMORY_LIMIT / 4 * 3 {
        lab.complain(format!("{} MiB were resident, and half of the limit is for callbacks", peak >> 20));
    }
    lab
}
