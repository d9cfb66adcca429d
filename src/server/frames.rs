//! Follows the frames that a caller sends over HTTP/2 by their headers of 9 bytes, and bounds what nobody behind bounds.
//!
//! - **Frames that carry no callback.** A frame of SETTINGS, PING, PRIORITY or of an unknown type costs its sender a few
//!   bytes and the server a walk over all streams, at millions a second. A caller has credit for them: 1,000 at
//!   first, 100 more each second, 10 for each callback, and one for each KiB that it reads of answers (Go's client sends two
//!   WINDOW_UPDATE for 4 KiB). Without credit the connection ends. SETTINGS that change something cost one more for each open stream:
//!   a new window is set for each of them.
//! - **A head that does not end.** Whether a header block is under way is known here alone, and so is its time.
//! - **Trailers.** h2 decodes them before anybody may judge them, and keeps them until the body is read: a byte of HPACK becomes 65 bytes
//!   of a map. OpenIM's client sends none, so few fields are allowed. More end the connection before h2 has them.
//! - **What the decoder keeps** of the buffers that it read: see [`hpack`](super::hpack).

use std::time::{Duration, Instant};

use super::hpack::{Pinned, Walk};

/// The client's half of the preface (RFC 9113, section 3.4).
const PREFACE_BYTES: u8 = 24;

/// The header of a frame (RFC 9113, section 4.1).
const HEADER_BYTES: usize = 9;

/// Frames that a caller may send beside callbacks: at first, and most that may add up.
const CREDIT: u32 = 1000;

/// As many callbacks as may be open at once, ten frames each, on top.
const MOST_CREDIT: u32 = CREDIT + CALLBACK_CREDIT * super::STREAMS;

/// What a callback adds: HEADERS, DATA, its end, WINDOW_UPDATE for its answer, and as many again.
const CALLBACK_CREDIT: u32 = 10;

/// What each second adds: Go's client sends a PING now and then.
const CREDIT_PER_SECOND: u32 = 100;

/// A DATA frame of this size carries a part of a body worth its cost.
const DATA_BYTES: u32 = 256;

/// Most that is read at once where frames may begin: their processing is then looked at before it adds up to
/// milliseconds (a SETTINGS frame of 15 bytes may cost 3 us).
const FRAMES_AT_ONCE: usize = 2 << 10;

/// The same of a connection that has begun little yet, or once sent many heads in one read: some 17 of 15 bytes, 5 us each. With this
/// each of 60 callers that send 200 callbacks at once has 0.1 ms of a pass before it has to wait, with the other 0.4 ms.
const PACKED_AT_ONCE: usize = 256;

/// Heads in one read beyond which they are many. A callback of OpenIM has 400 bytes and more with its body, so one read has no more than
/// five.
const MANY_HEADS: u64 = 8;

/// Heads until a connection has begun enough: Go's client keeps one for minutes.
const FEW_HEADS: u64 = 8;

/// More fields than any head may have: one that has not ended by then will be refused.
const FIELDS_UNDER_WAY: usize = 256;

/// Most fields of trailers, and most bytes of their block. In memory that is 2 KiB, of the 16 KiB that its callback counts.
const TRAILER_FIELDS: usize = 8;
const TRAILER_BYTES: usize = 512;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
const STREAM_BITS: u32 = 0x7fff_ffff;

/// Why a connection may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abuse {
    /// The credit is used up.
    Frames,
    /// A head that has not ended has more fields than any may have.
    Fields,
    /// Trailers that are larger than allowed.
    Trailers,
}

impl Abuse {
    /// What it is, for the log.
    pub(super) fn text(self) -> &'static str {
        match self {
            Abuse::Frames => "more frames without a callback than a caller needs",
            Abuse::Fields => "a head with more fields than a callback has",
            Abuse::Trailers => "trailers with more than 8 fields or 512 bytes",
        }
    }
}

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    at: At,
    /// Bytes of the stream so far.
    position: u64,
    /// The header block of which the end has not come.
    block: Option<Walk>,
    /// Bytes of this block, and whether a frame of it has ended.
    block_bytes: usize,
    continued: bool,
    /// The highest stream that had a head, and whether this block is not its first one.
    highest: u32,
    trailers: bool,
    /// Many heads came in one read.
    packed: bool,
    /// Header blocks that ended.
    blocks: u64,
    pinned: Pinned,
    credit: u32,
    /// When the credit of the seconds was added last.
    credited: Instant,
}

#[derive(Clone, Copy, Debug)]
enum At {
    Preface {
        left: u8,
    },
    Header {
        bytes: [u8; HEADER_BYTES],
        filled: u8,
    },
    /// In a frame that is passed over.
    Payload {
        left: u32,
        data: bool,
    },
    /// In HEADERS or CONTINUATION: bytes before the block, of the block, and of padding.
    Block {
        before: u8,
        padded: bool,
        left: u32,
        padding: u32,
        last: bool,
    },
}

const NO_HEADER: At = At::Header { bytes: [0; HEADER_BYTES], filled: 0 };

impl Frames {
    /// A connection that begins now.
    pub(super) fn new(now: Instant) -> Frames {
        Frames {
            at: At::Preface { left: PREFACE_BYTES },
            position: 0,
            block: None,
            block_bytes: 0,
            continued: false,
            highest: 0,
            trailers: false,
            packed: false,
            blocks: 0,
            pinned: Pinned::default(),
            credit: CREDIT,
            credited: now,
        }
    }

    /// How much may be read at once.
    pub(super) fn read_limit(&self) -> usize {
        let at_once = if self.packed || self.blocks < FEW_HEADS { PACKED_AT_ONCE } else { FRAMES_AT_ONCE };
        match self.at {
            At::Payload { left, data: true } => at_once.max(left as usize),
            // There is no other head in the rest of this one.
            At::Block { left, .. } => at_once.max(FRAMES_AT_ONCE.min(left as usize)),
            At::Preface { .. } | At::Header { .. } | At::Payload { .. } => at_once,
        }
    }

    /// Whether the caller owes the rest of the preface or of a head.
    pub(super) fn owes(&self) -> bool {
        let part = match self.at {
            At::Preface { .. } | At::Block { .. } => true,
            At::Header { filled, .. } => filled > 0,
            At::Payload { .. } => false,
        };
        part || self.block.is_some()
    }

    /// How many header blocks have ended: what is owed after another one is another head.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes that a head of several frames may hold, as far as it came: its fields, decoded, and the buffers they came in. One of a
    /// single frame is decoded once it is whole.
    pub(super) fn head_bytes(&self) -> usize {
        let continued = match self.at {
            At::Block { last, .. } => !last || self.continued,
            At::Preface { .. } | At::Header { .. } | At::Payload { .. } => self.block.is_some(),
        };
        if continued { 2 * self.block_bytes + FIELDS_UNDER_WAY * 104 } else { 0 }
    }

    /// Bytes of read buffers that the decoder's table may keep from being freed.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.pinned.bytes()
    }

    /// So many callbacks came.
    pub(super) fn callbacks(&mut self, count: u32) {
        self.add_credit(count.saturating_mul(CALLBACK_CREDIT));
    }

    /// So many bytes were written to the caller.
    pub(super) fn written(&mut self, kibibytes: u32) {
        self.add_credit(kibibytes);
    }

    fn add_credit(&mut self, frames: u32) {
        self.credit = self.credit.saturating_add(frames).min(MOST_CREDIT);
    }

    /// Follows what was read while so many streams are open.
    pub(super) fn read(
        &mut self,
        mut bytes: &[u8],
        streams: usize,
        now: impl Fn() -> Instant,
    ) -> Result<(), Abuse> {
        let blocks = self.blocks;
        while !bytes.is_empty() {
            let taken = match self.at {
                At::Preface { left } => {
                    let taken = usize::from(left).min(bytes.len());
                    let left = left - taken as u8;
                    self.at = if left == 0 { NO_HEADER } else { At::Preface { left } };
                    taken
                }
                At::Header { bytes: mut header, filled } => {
                    let start = usize::from(filled);
                    let taken = (HEADER_BYTES - start).min(bytes.len());
                    header[start..start + taken].copy_from_slice(&bytes[..taken]);
                    self.at = At::Header { bytes: header, filled: filled + taken as u8 };
                    if start + taken == HEADER_BYTES {
                        self.frame(header, streams, &now)?;
                    }
                    taken
                }
                At::Payload { left, data } => {
                    let taken = (left as usize).min(bytes.len());
                    let left = left - taken as u32;
                    self.at = if left == 0 { NO_HEADER } else { At::Payload { left, data } };
                    taken
                }
                At::Block { .. } => self.block(bytes)?,
            };
            self.position += taken as u64;
            bytes = &bytes[taken..];
        }
        self.packed |= self.blocks - blocks > MANY_HEADS;
        Ok(())
    }

    fn frame(
        &mut self,
        header: [u8; HEADER_BYTES],
        streams: usize,
        now: impl Fn() -> Instant,
    ) -> Result<(), Abuse> {
        let left = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        let (kind, flags) = (header[3], header[4]);
        if !(kind == DATA && (left >= DATA_BYTES || flags & END_STREAM != 0)) {
            let walk = if kind == SETTINGS && left > 0 { streams as u32 } else { 0 };
            self.spend(1 + walk, now)?;
        }
        self.at = match kind {
            HEADERS | CONTINUATION => {
                if kind == HEADERS {
                    // A stream begins with a higher number than all before it (RFC 9113, section 5.1.1): another block has trailers,
                    // or is an error, which h2 finds after it has decoded it.
                    let stream =
                        u32::from_be_bytes([header[5], header[6], header[7], header[8]]) & STREAM_BITS;
                    self.trailers = stream <= self.highest;
                    self.highest = self.highest.max(stream);
                }
                if kind == HEADERS || self.block.is_none() {
                    self.block = Some(Walk::new());
                    self.block_bytes = 0;
                }
                let padded = kind == HEADERS && flags & PADDED != 0;
                let before = if kind == HEADERS && flags & PRIORITY != 0 { 5 } else { 0 };
                At::Block { before, padded, left, padding: 0, last: flags & END_HEADERS != 0 }
            }
            _ if left == 0 => NO_HEADER,
            _ => At::Payload { left, data: kind == DATA },
        };
        if let At::Block { left: 0, last, .. } = self.at {
            self.end_of_block(last);
        }
        Ok(())
    }

    /// Takes a part of a header block's frame, and returns how much.
    fn block(&mut self, bytes: &[u8]) -> Result<usize, Abuse> {
        let At::Block { before, padded, left, padding, last } = self.at else { return Ok(0) };
        let (taken, before, padded, padding) = if padded {
            // What is wrong with the padding ends the connection behind.
            (1, before, false, u32::from(bytes[0]).min(left - 1))
        } else if before > 0 && left > padding {
            (1, before - 1, false, padding)
        } else if left > padding {
            let taken = ((left - padding) as usize).min(bytes.len());
            let (pinned, start) = (&mut self.pinned, self.position);
            let block = self.block.get_or_insert_with(Walk::new);
            block.over(&bytes[..taken], |least| pinned.insert(start + taken as u64, least));
            self.block_bytes += taken;
            if self.trailers && (block.fields() > TRAILER_FIELDS || self.block_bytes > TRAILER_BYTES) {
                return Err(Abuse::Trailers);
            }
            (taken, before, false, padding)
        } else {
            ((left as usize).min(bytes.len()), before, false, padding.saturating_sub(bytes.len() as u32))
        };
        let left = left - taken as u32;
        self.at = At::Block { before, padded, left, padding: padding.min(left), last };
        if left == 0 {
            self.end_of_block(last);
        }
        if self.block.as_ref().is_some_and(|block| block.fields() > FIELDS_UNDER_WAY) && !last {
            return Err(Abuse::Fields);
        }
        Ok(taken)
    }

    fn end_of_block(&mut self, last: bool) {
        self.at = NO_HEADER;
        self.continued = !last;
        if last {
            self.block = None;
            self.blocks += 1;
        }
    }

    fn spend(&mut self, frames: u32, now: impl Fn() -> Instant) -> Result<(), Abuse> {
        if self.credit < frames {
            let now = now();
            let since = now.saturating_duration_since(self.credited).min(Duration::from_secs(60));
            let earned = since.as_millis() as u32 * CREDIT_PER_SECOND / 1000;
            if self.credit + earned < frames {
                return Err(Abuse::Frames);
            }
            self.credited = now;
            self.add_credit(earned);
        }
        self.credit -= frames;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A connection of which the preface came, at this time.
    fn connection(start: Instant) -> Frames {
        let mut frames = Frames::new(start);
        frames.read(PREFACE, 0, || start).expect("a preface");
        frames
    }

    /// How many of these frames are taken, at most so many.
    fn taken(frames: &mut Frames, frame: &[u8], most: usize, now: Instant) -> usize {
        (0..most).take_while(|_| frames.read(frame, 0, || now).is_ok()).count()
    }

    #[test]
    fn a_caller_has_credit_for_1000_frames_and_for_100_more_each_second() {
        let start = Instant::now();
        let mut frames = connection(start);
        let ping = frame(PING, 0, &[0; 8]);
        assert_eq!(taken(&mut frames, &ping, 2000, start), 1000);
        assert_eq!(taken(&mut frames, &ping, 2000, start + Duration::from_millis(9)), 0);
        let mut frames = connection(start);
        taken(&mut frames, &ping, 1000, start);
        assert_eq!(taken(&mut frames, &ping, 2000, start + Duration::from_secs(2)), 200);
        let mut frames = connection(start);
        assert_eq!(
            taken(&mut frames, &ping, 9999, start + Duration::from_secs(3600)),
            1000 + 6000,
            "an hour is a minute"
        );
    }

    #[test]
    fn settings_that_change_something_cost_one_more_for_each_open_stream() {
        let start = Instant::now();
        let taken = |payload: &[u8], flags, streams| {
            let mut frames = connection(start);
            let settings = frame(SETTINGS, flags, payload);
            (0..2000).take_while(|_| frames.read(&settings, streams, || start).is_ok()).count()
        };
        let window = [0, 4, 0, 0, 0, 1];
        assert_eq!(taken(&window, 0, 500), 1);
        assert_eq!(taken(&window, 0, 9), 100);
        assert_eq!(taken(&window, 0, 0), 1000, "no stream is open, as when a client begins");
        assert_eq!(taken(b"", 1, 500), 1000, "an acknowledgment changes nothing");
        let mut frames = connection(start);
        frames.callbacks(500);
        frames.read(&frame(SETTINGS, 0, &window), 500, || start).expect("each callback adds ten");
        assert_eq!(frames.credit, 1000 + 5000 - 501);
    }

    #[test]
    fn a_callback_adds_ten_frames_and_a_kib_of_answer_one_up_to_a_bound() {
        let start = Instant::now();
        let ping = frame(PING, 0, &[0; 8]);
        let mut frames = connection(start);
        frames.callbacks(7);
        frames.written(5);
        assert_eq!(taken(&mut frames, &ping, 9999, start), 1000 + 70 + 5);
        let mut frames = connection(start);
        frames.callbacks(u32::MAX);
        assert_eq!(taken(&mut frames, &ping, 99_999, start), 1000 + 5120);
    }

    #[test]
    fn data_that_carries_something_costs_no_credit_and_data_of_a_byte_does() {
        let start = Instant::now();
        for (payload, flags, most) in
            [(256, 0, 5000), (16_384, 0, 5000), (0, END_STREAM, 5000), (1, 0, 1000), (0, 0, 1000)]
        {
            let mut frames = connection(start);
            let data = frame(DATA, flags, &vec![0; payload]);
            assert_eq!(taken(&mut frames, &data, 5000, start), most, "{payload} bytes");
        }
    }

    #[test]
    fn trailers_have_at_most_8_fields_and_512_bytes_and_a_head_more() {
        let start = Instant::now();
        let text = [&b"\x00\x01a\x7f\xf7\x03"[..], &[b'x'; 502 + 128]].concat();
        let on = |stream: u8, flags, block: &[u8]| {
            let mut frame = frame(HEADERS, flags, block);
            frame[8] = stream;
            frame
        };
        for (block, allowed) in [
            (&[0xbe; 8][..], true),
            (&[0xbe; 9][..], false),
            (&[0xbe; 2900][..], false),
            (&text[..512], true),
            (&text[..513], false),
        ] {
            let head = [0xbe; 100];
            let mut frames = connection(start);
            frames.read(&on(1, END_HEADERS, &head), 0, || start).expect("a head");
            frames.read(&on(3, END_HEADERS, &head), 0, || start).expect("another one");
            let trailers = on(1, END_HEADERS | END_STREAM, block);
            let expected = if allowed { Ok(()) } else { Err(Abuse::Trailers) };
            assert_eq!(frames.read(&trailers, 0, || start), expected, "{} bytes", block.len());
            if allowed {
                frames.read(&on(5, END_HEADERS, &head), 0, || start).expect("the next head");
            }
        }
        let mut frames = connection(start);
        frames.read(&on(1, END_HEADERS, &[0xbe]), 0, || start).expect("a head");
        frames.read(&on(1, END_STREAM, &[0xbe; 8]), 0, || start).expect("trailers that go on");
        let last = frame(CONTINUATION, END_HEADERS, &[0xbe]);
        assert_eq!(frames.read(&last, 0, || start), Err(Abuse::Trailers), "over all frames");
    }

    #[test]
    fn every_other_kind_of_frame_costs_credit() {
        let start = Instant::now();
        for kind in (1..=255).filter(|kind| *kind != CONTINUATION) {
            let mut frames = connection(start);
            let other = frame(kind, END_HEADERS, b"");
            assert_eq!(taken(&mut frames, &other, 1500, start), 1000, "{kind}");
        }
    }

    #[test]
    fn what_is_owed_is_the_preface_and_a_head_from_its_first_byte_to_its_last() {
        let start = Instant::now();
        let head = [
            frame(HEADERS, PADDED | PRIORITY, b"\x02\0\0\0\0\0\x82pp"),
            frame(CONTINUATION, 0, b"\x44\x02a"),
            frame(CONTINUATION, END_HEADERS, b"b\x82"),
        ]
        .concat();
        let other = [frame(SETTINGS, 0, &[0; 6]), frame(DATA, 0, &[0; 300])].concat();
        let stream = [PREFACE, &other, &head, &other].concat();
        let (head_start, head_end) = (PREFACE.len() + other.len(), PREFACE.len() + other.len() + head.len());
        let mut frames = Frames::new(start);
        for (at, byte) in stream.iter().enumerate() {
            frames.read(std::slice::from_ref(byte), 0, || start).expect("nothing is wrong");
            let (read, owes) = (at + 1, frames.owes());
            if read < PREFACE.len() || (read > head_start && read < head_end) {
                assert!(owes, "after {read} bytes");
            }
            let whole = [PREFACE.len(), head_start, head_end, stream.len()].contains(&read);
            assert!(!(whole && owes), "after {read} bytes");
            assert_eq!(frames.blocks(), u64::from(read >= head_end), "after {read} bytes");
        }
        let mut whole = Frames::new(start);
        whole.read(&stream, 0, || start).expect("nothing is wrong");
        assert_eq!((whole.position, whole.blocks), (frames.position, 1));
        assert!(whole.pinned_bytes() >= frames.pinned_bytes());
        assert!(frames.pinned_bytes() > 0, "a literal with indexing was in it");
    }

    #[test]
    fn a_head_that_does_not_end_is_counted_and_ends_with_more_fields_than_any_has() {
        let start = Instant::now();
        let mut frames = connection(start);
        frames.read(&frame(HEADERS, 0, &[0x82; 100]), 0, || start).expect("100 fields");
        let counted = frames.head_bytes();
        assert!(counted >= 200 && frames.owes(), "{counted}");
        frames.read(&frame(CONTINUATION, 0, &[0x82; 156]), 0, || start).expect("256 fields");
        assert!(frames.head_bytes() > counted);
        assert_eq!(frames.read(&frame(CONTINUATION, 0, &[0x82]), 0, || start), Err(Abuse::Fields));
        let mut twin = connection(start);
        twin.read(&frame(HEADERS, END_HEADERS, &[0x82; 5000]), 0, || start)
            .expect("a whole head is judged by its size");
        assert_eq!((twin.head_bytes(), twin.owes()), (0, false));
    }

    /// A head that says nothing, whole.
    fn head() -> Vec<u8> {
        frame(HEADERS, END_HEADERS | END_STREAM, &[0x82])
    }

    #[test]
    fn inside_of_data_much_is_read_at_once_and_elsewhere_little() {
        let start = Instant::now();
        let mut frames = connection(start);
        for _ in 0..FEW_HEADS {
            assert_eq!(frames.read_limit(), PACKED_AT_ONCE);
            frames.read(&head(), 0, || start).expect("a head");
        }
        assert_eq!(frames.read_limit(), FRAMES_AT_ONCE);
        let data = frame(DATA, 0, &[0; 10_000]);
        frames.read(&data[..9], 0, || start).expect("a header");
        assert_eq!(frames.read_limit(), 10_000);
        frames.read(&data[9..], 0, || start).expect("its payload");
        assert_eq!(frames.read_limit(), FRAMES_AT_ONCE);
    }

    #[test]
    fn once_many_heads_came_in_one_read_little_is_read_at_once() {
        let start = Instant::now();
        for (heads, limit) in [(8, FRAMES_AT_ONCE), (9, PACKED_AT_ONCE)] {
            let mut frames = connection(start);
            frames.read(&head().repeat(heads), 0, || start).expect("heads");
            for _ in 0..FEW_HEADS {
                frames.read(&head(), 0, || start).expect("a head");
            }
            assert_eq!(frames.read_limit(), limit, "{heads}");
            // The rest of a head is none of many.
            frames.read(&frame(HEADERS, END_HEADERS, &[0x82; 5_000])[..9], 0, || start).expect("a header");
            assert_eq!(frames.read_limit(), FRAMES_AT_ONCE);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_and_no_piece_changes_what_is_seen() {
        let start = Instant::now();
        let mut state = 7_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for _ in 0..2000 {
            let mut stream = PREFACE.to_vec();
            for _ in 0..20 {
                let kind = [HEADERS, CONTINUATION, DATA, SETTINGS, random() as u8][random() as usize % 5];
                let payload: Vec<_> = (0..random() % 40).map(|_| random() as u8).collect();
                stream.extend(frame(kind, random() as u8, &payload));
            }
            let (mut whole, mut pieces) = (Frames::new(start), Frames::new(start));
            let all = whole.read(&stream, 0, || start);
            let piece = 1 + random() as usize % 50;
            let each = stream.chunks(piece).try_for_each(|piece| pieces.read(piece, 0, || start));
            assert_eq!(all, each, "{stream:x?}");
            if all.is_ok() {
                assert_eq!((whole.blocks, whole.position), (pieces.blocks, pieces.position), "{stream:x?}");
            }
        }
    }
}
