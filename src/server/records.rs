//! The records of TLS on the wire (RFC 8446, section 5.1): how many there are, and what they bring.
//!
//! A record may carry no plaintext: new keys, padding, part of a handshake message. A caller's client sends such ones hardly ever, so few
//! of them are allowed in a row, and what they cost is counted in turns like everything else.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::server::TlsStream;

use super::caller::Caller;

/// The type, the version and the length.
const HEADER_BYTES: u8 = 5;

/// What a record costs beside its bytes, in bytes of a turn (0.3 ms for 16 KiB): new keys take some 3 us.
const RECORD_WORK: usize = 128;

/// Most work in one poll: a record of the largest size, which is read in pieces of 4 KiB.
const POLL_WORK: usize = 20 << 10;

/// Most plaintext bytes that TLS encrypts ahead of the kernel. They are counted as long as the answers that they belong to.
pub(super) const SEND_BUFFER_BYTES: usize = 16 << 10;

/// What TLS may have beyond the kernel: these bytes encrypted, and a record of its own.
const MOST_UNSENT: u64 = SEND_BUFFER_BYTES as u64 + (1 << 10);

/// Most bytes without plaintext. A record has up to 18 KiB; what was read of it is in a buffer of TLS that nobody else counts.
const BARREN_BYTES: usize = 24 << 10;

/// Most records without plaintext, less one for each byte of plaintext. Go's client sends new keys once in 16 million records.
const BARREN_RECORDS: usize = 1000;

/// From so many on, little is read at once: its processing is then looked at before it adds up.
const SUSPECT_RECORDS: usize = 32;
const SUSPECT_READ: usize = 512;

/// How much of what was read in the handshake counts as behind it: one read of TLS.
const EARLY_BYTES: usize = 4 << 10;

/// More than a record takes beside its content, without padding: 22 bytes in TLS 1.3, 29 in TLS 1.2.
const RECORD_BYTES: usize = 32;

/// What one connection reads and writes on the wire.
#[derive(Debug)]
pub(super) struct Wire {
    /// Bytes of the record that are to come.
    left: u32,
    /// Bytes of the next record's header that have come, and the first of its length.
    header: u8,
    high: u8,
    received: Received,
    room: usize,
    sent: u64,
}

/// What was read since it was asked for last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    bytes: usize,
    records: usize,
    /// Reading stopped for the next pass, though there may be more.
    stopped: bool,
}

impl Wire {
    pub(super) fn new() -> Wire {
        Wire { left: 0, header: 0, high: 0, received: Received::default(), room: POLL_WORK, sent: 0 }
    }

    /// How much may be read at once.
    pub(super) fn read_limit(&self) -> usize {
        if self.room == 0 { SUSPECT_READ } else { usize::MAX }
    }

    /// Whether more may be read before somebody asks what came.
    pub(super) fn may_read(&mut self) -> bool {
        let Received { bytes, records, .. } = self.received;
        let may = bytes == 0 || bytes + RECORD_WORK * records < self.room;
        self.received.stopped |= !may;
        may
    }

    /// Follows what was read.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        self.received.bytes += bytes.len();
        loop {
            let skipped = (self.left as usize).min(bytes.len());
            self.left -= skipped as u32;
            bytes = &bytes[skipped..];
            let Some((first, rest)) = bytes.split_first() else { return };
            self.header += 1;
            if self.header == HEADER_BYTES - 1 {
                self.high = *first;
            } else if self.header == HEADER_BYTES {
                self.header = 0;
                self.left = u32::from(u16::from_be_bytes([self.high, *first]));
                self.received.records += 1;
            }
            bytes = rest;
        }
    }

    /// What came since this was asked last.
    pub(super) fn received(&mut self) -> Received {
        std::mem::take(&mut self.received)
    }

    /// How much work may be read before this is asked again.
    fn allow(&mut self, room: usize) {
        self.room = room.min(POLL_WORK);
    }

    /// What came before belongs to the handshake, but for a little of what follows.
    pub(super) fn begin(&mut self) {
        let bytes = self.received.bytes.min(EARLY_BYTES);
        self.received = Received { bytes, ..Received::default() };
    }

    pub(super) fn wrote(&mut self, count: usize) {
        self.sent += count as u64;
    }

    /// Bytes written.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }
}

/// What came on the wire without plaintext, of one connection.
#[derive(Debug, Default)]
pub(super) struct Barren {
    bytes: usize,
    records: usize,
}

impl Barren {
    /// Follows what a poll read, and the plaintext that came of it, and bounds the next one. Returns how much work it was beside the
    /// plaintext, and whether there may be more; or `None` if the connection is to end.
    pub(super) fn follow(&mut self, wire: &mut Wire, plain: usize) -> Option<(usize, bool)> {
        let followed = self.judge(wire.received(), plain);
        wire.allow(self.room());
        followed
    }

    fn judge(&mut self, received: Received, plain: usize) -> Option<(usize, bool)> {
        let Received { bytes, records, stopped } = received;
        self.records = (self.records + records).saturating_sub(plain);
        self.bytes = if plain > 0 {
            // What is left belongs to a record that has not ended, or is padding.
            bytes.saturating_sub(plain + RECORD_BYTES * records)
        } else {
            self.bytes + bytes
        };
        let work = RECORD_WORK * records + if plain > 0 { 0 } else { bytes };
        (self.records <= BARREN_RECORDS && self.bytes <= BARREN_BYTES).then_some((work, stopped))
    }

    /// How much work the next poll may do before this is looked at again: a little if that is suspect.
    fn room(&self) -> usize {
        if self.records > SUSPECT_RECORDS { 0 } else { BARREN_BYTES + 1 - self.bytes.min(BARREN_BYTES) }
    }
}

/// A stream of plaintext, and what is below it.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// What came on the wire, if TLS is below.
    fn wire(&mut self) -> Option<&mut Wire>;

    /// Whether something was written that the kernel does not have yet.
    fn has_unsent(&self) -> bool;

    /// Bytes that the kernel took, and where what was written ends at most: beyond it all of that was taken.
    fn sent(&self) -> (u64, u64);
}

impl Transport for Box<TlsStream<Caller>> {
    fn wire(&mut self) -> Option<&mut Wire> {
        Some(self.get_mut().0.wire())
    }

    fn has_unsent(&self) -> bool {
        self.get_ref().1.wants_write()
    }

    fn sent(&self) -> (u64, u64) {
        let sent = self.get_ref().0.sent();
        (sent, sent + MOST_UNSENT)
    }
}

/// A stream without TLS.
#[cfg(any(test, fuzzing))]
pub(super) struct Plain<S>(pub(super) S);

#[cfg(any(test, fuzzing))]
mod plain {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::{AsyncRead, AsyncWrite, Plain, Transport, Wire};

    impl<S: AsyncRead + AsyncWrite + Unpin> Transport for Plain<S> {
        fn wire(&mut self) -> Option<&mut Wire> {
            None
        }

        fn has_unsent(&self) -> bool {
            false
        }

        fn sent(&self) -> (u64, u64) {
            (0, 0)
        }
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Plain<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write_vectored(cx, slices)
        }

        fn is_write_vectored(&self) -> bool {
            self.0.is_write_vectored()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> Vec<u8> {
        [&[23, 3, 3][..], &(bytes as u16).to_be_bytes(), &vec![0xff; bytes]].concat()
    }

    #[test]
    fn records_are_counted_whatever_the_pieces_they_come_in() {
        let stream: Vec<u8> = [0, 17, 22, 300, 0, 1, 16_401].into_iter().flat_map(record).collect();
        for piece in [1, 2, 3, 4, 5, 7, 100, 4096, stream.len()] {
            let mut wire = Wire::new();
            stream.chunks(piece).for_each(|piece| wire.read(piece));
            assert_eq!((wire.left, wire.header), (0, 0), "in pieces of {piece}");
            let received = wire.received();
            assert_eq!((received.bytes, received.records), (stream.len(), 7), "in pieces of {piece}");
            assert_eq!(wire.received(), Received::default(), "it was asked for");
        }
    }

    #[test]
    fn a_poll_reads_20_kib_or_150_records_and_each_poll_reads_something() {
        let mut wire = Wire::new();
        let large = [0xff; 4096];
        let polls = (0..100).take_while(|_| wire.may_read().then(|| wire.read(&large)).is_some()).count();
        assert_eq!(polls, 5);
        assert!(wire.received().stopped);
        let keys: Vec<u8> = (0..150).flat_map(|_| record(22)).collect();
        let mut wire = Wire::new();
        assert!(wire.may_read());
        wire.read(&keys);
        assert!(!wire.may_read(), "one read of small records");
        wire.received();
        wire.allow(0);
        assert_eq!((wire.may_read(), wire.read_limit()), (true, SUSPECT_READ));
        wire.read(&record(22));
        assert!(!wire.may_read(), "without room one read at a time");
    }

    fn received(bytes: usize, records: usize) -> Received {
        Received { bytes, records, stopped: false }
    }

    /// How often this may come, at most so often.
    fn taken(most: usize, mut step: impl FnMut(&mut Barren) -> bool) -> usize {
        let mut barren = Barren::default();
        (0..most).take_while(|_| step(&mut barren)).count()
    }

    #[test]
    fn records_without_plaintext_end_a_connection_after_1000_or_24_kib_and_each_byte_of_plaintext_pays_for_one()
     {
        let updates = |barren: &mut Barren| barren.judge(received(27, 1), 0).is_some();
        assert_eq!(taken(5000, updates), BARREN_BYTES / 27);
        // New keys, and a byte in between: the bytes begin anew, the records add up.
        let mixed = |barren: &mut Barren| {
            barren.judge(received(31 * 27, 31), 0).is_some() && barren.judge(received(23, 1), 1).is_some()
        };
        assert_eq!(taken(5000, mixed), 32);
        let padded = |barren: &mut Barren| barren.judge(received(16_022, 1), 0).is_some();
        assert_eq!(taken(5000, padded), 1, "padding alone");
        // The twins.
        let bytes = |barren: &mut Barren| barren.judge(received(23, 1), 1).is_some();
        assert_eq!(taken(50_000, bytes), 50_000, "a byte in each record");
        let padding = |barren: &mut Barren| barren.judge(received(16_022, 1), 1).is_some();
        assert_eq!(taken(5000, padding), 5000, "a byte with padding");
        let large = |barren: &mut Barren| {
            // A record of 18 KiB in pieces, read in pieces of 2 KiB.
            (0..4).all(|_| barren.judge(received(4096, 0), 0).is_some())
                && barren.judge(received(2053, 1), 2048).is_some()
                && (0..7).all(|_| barren.judge(received(0, 0), 2048).is_some())
        };
        assert_eq!(taken(1000, large), 1000);
        let callbacks = |barren: &mut Barren| barren.judge(received(722, 1), 700).is_some();
        assert_eq!(taken(50_000, callbacks), 50_000);
    }

    #[test]
    fn a_connection_never_has_more_unseen_than_24_kib_and_one_read() {
        let (mut wire, mut barren, mut most) = (Wire::new(), Barren::default(), 0);
        loop {
            while wire.may_read() {
                wire.read(&[0xff; 4096]);
                most += 4096;
            }
            if barren.follow(&mut wire, 0).is_none() {
                break;
            }
        }
        assert!(most <= BARREN_BYTES + 4096, "{most}");
    }

    #[test]
    fn what_costs_more_than_its_plaintext_counts_as_work() {
        let mut barren = Barren::default();
        assert_eq!(barren.judge(received(722, 1), 700), Some((RECORD_WORK, false)));
        assert_eq!(barren.judge(received(27, 1), 0), Some((RECORD_WORK + 27, false)));
        assert_eq!(barren.judge(received(0, 0), 2048), Some((0, false)));
        let stopped = Received { bytes: 0, records: 0, stopped: true };
        assert_eq!(barren.judge(stopped, 0), Some((0, true)));
    }
}
