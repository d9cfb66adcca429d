//! Walks over the header blocks of HTTP/2 without decoding them: how many fields there are, and how many of them go into
//! the table of the decoder (HPACK, RFC 7541).
//!
//! The decoder behind keeps what is inserted as a part of the buffer it was read to, so an entry of 40 bytes may keep
//! 16 KiB from being freed for as long as it is in the table: 1.6 MiB for an idle connection. [`Pinned`] tells how much
//! that can be.

use std::collections::VecDeque;

/// Size of the table in bytes as RFC 7541, section 4.1 counts: the default of HTTP/2 (RFC 9113, section 6.5.2), which this server does not
/// change. A caller may only lower it.
const TABLE_BYTES: usize = 4096;

/// What an entry counts beside its name and its value (RFC 7541, section 4.1).
const ENTRY_BYTES: usize = 32;

/// Most bytes of one buffer that an entry keeps: a frame of 16 KiB, and what was reserved for the one behind it.
const BUFFER_BYTES: u64 = 32 << 10;

/// Where in a header block the walk is.
#[derive(Debug)]
pub(super) struct Walk {
    at: At,
    /// Strings that still belong to this field.
    strings: u8,
    /// Whether the field goes into the table, and the least that its strings count there.
    inserts: bool,
    least: usize,
    /// Fields of this block so far.
    fields: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Between two fields.
    Field,
    /// In an index behind its first byte, of which the value does not matter.
    Index,
    /// Before the first byte of a string.
    Length,
    /// In the length of a string behind its first byte.
    LongLength { so_far: usize, shift: u32, huffman: bool },
    /// In a string.
    String { left: usize },
}

impl Walk {
    pub(super) fn new() -> Walk {
        Walk { at: At::Field, strings: 0, inserts: false, least: 0, fields: 0 }
    }

    /// How many fields the block has so far.
    pub(super) fn fields(&self) -> usize {
        self.fields
    }

    /// Walks over a part of a block. `inserted` gets the least number of bytes that each entry counts in the table.
    pub(super) fn over(&mut self, mut bytes: &[u8], mut inserted: impl FnMut(usize)) {
        while let [first, rest @ ..] = bytes {
            if let At::String { left } = self.at {
                let taken = left.min(bytes.len());
                bytes = &bytes[taken..];
                self.at = At::String { left: left - taken };
                if left == taken {
                    self.next_string(&mut inserted);
                }
                continue;
            }
            bytes = rest;
            self.byte(*first, &mut inserted);
        }
    }

    fn byte(&mut self, byte: u8, inserted: &mut impl FnMut(usize)) {
        match self.at {
            At::Field => self.field(byte, inserted),
            At::Index if byte & 0x80 == 0 => self.next_string(inserted),
            At::Index => {}
            At::Length => {
                let huffman = byte & 0x80 != 0;
                match usize::from(byte & 0x7f) {
                    0x7f => self.at = At::LongLength { so_far: 0x7f, shift: 0, huffman },
                    short => self.string(short, huffman, inserted),
                }
            }
            At::LongLength { so_far, shift, huffman } => {
                // A length beyond 32 bits is none that the decoder takes.
                let part = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
                let so_far = so_far.saturating_add(part);
                if byte & 0x80 == 0 {
                    self.string(so_far, huffman, inserted);
                } else {
                    self.at = At::LongLength { so_far, shift: (shift + 7).min(63), huffman };
                }
            }
            At::String { .. } => unreachable!("strings are passed over in one piece"),
        }
    }

    /// The first byte of a field (RFC 7541, section 6).
    fn field(&mut self, byte: u8, inserted: &mut impl FnMut(usize)) {
        let (prefix, value) = match byte {
            0x80.. => (0x7f, 0),
            0x40.. => (0x3f, 1),
            // A change of the table's size is no field.
            0x20.. => (0x1f, 0),
            _ => (0x0f, 1),
        };
        self.inserts = (0x40..0x80).contains(&byte);
        self.fields += usize::from(!(0x20..0x40).contains(&byte));
        self.least = 0;
        let index = byte & prefix;
        // Index 0 stands for a name that follows.
        self.strings = value + u8::from(value == 1 && index == 0);
        if index == prefix {
            self.at = At::Index;
        } else {
            self.next_string(inserted);
        }
    }

    fn string(&mut self, length: usize, huffman: bool, inserted: &mut impl FnMut(usize)) {
        // The longest code of the Huffman table has 30 bits (RFC 7541, appendix B).
        self.least = self.least.saturating_add(if huffman { length / 4 } else { length });
        self.at = At::String { left: length };
        if length == 0 {
            self.next_string(inserted);
        }
    }

    fn next_string(&mut self, inserted: &mut impl FnMut(usize)) {
        if self.strings > 0 {
            self.strings -= 1;
            self.at = At::Length;
            return;
        }
        self.at = At::Field;
        if self.inserts {
            inserted(self.least.saturating_add(ENTRY_BYTES));
        }
    }
}

/// What the table of a decoder can keep from being freed, at most.
///
/// Buffers follow one another in the stream. One that holds an entry is charged with the bytes between this entry and the
/// one before it, at most a buffer's size, and twice, since it reaches as far beyond its last entry.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    /// For each entry, oldest first: its charge, and the least that it counts in the table.
    entries: VecDeque<(u32, u32)>,
    /// Sums of both.
    charges: usize,
    table: usize,
    /// Where in the stream the last entry was.
    last: u64,
}

impl Pinned {
    /// An entry came, so many bytes into the stream, and counts at least so many bytes in the table.
    pub(super) fn insert(&mut self, position: u64, least: usize) {
        let gap = (position - self.last).min(BUFFER_BYTES);
        self.last = position;
        let least = least.min(TABLE_BYTES + 1);
        self.table += least;
        self.charges += 2 * gap as usize;
        self.entries.push_back((2 * gap as u32, least as u32));
        while self.table > TABLE_BYTES {
            let Some((charge, least)) = self.entries.pop_front() else { break };
            self.charges -= charge as usize;
            self.table -= least as usize;
        }
    }

    /// Bytes that may be kept.
    pub(super) fn bytes(&self) -> usize {
        self.charges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a block, and what was inserted, whatever the pieces it comes in.
    fn walked(block: &[u8]) -> (usize, Vec<usize>) {
        let results: Vec<_> = (1..=block.len().max(1))
            .map(|piece| {
                let (mut walk, mut inserted) = (Walk::new(), Vec::new());
                block.chunks(piece).for_each(|piece| walk.over(piece, |least| inserted.push(least)));
                assert_eq!(walk.at, At::Field, "{block:x?} in pieces of {piece}");
                (walk.fields(), inserted)
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "{block:x?}: {results:?}");
        results[0].clone()
    }

    #[test]
    fn each_kind_of_field_is_passed_over_and_only_the_indexed_literal_is_inserted() {
        for (block, fields, inserted) in [
            (&b""[..], 0, vec![]),
            // Indexed: 2, and 127 + 1.
            (b"\x82", 1, vec![]),
            (b"\xff\x01\x82", 2, vec![]),
            // Literal with indexing: a name of its own, an index of the table, a long index.
            (b"\x40\x01a\x02bc", 1, vec![32 + 3]),
            (b"\x44\x02bc", 1, vec![32 + 2]),
            (b"\x7f\x01\x02bc", 1, vec![32 + 2]),
            (b"\x44\x00", 1, vec![32]),
            // Huffman: at least a quarter of its bytes.
            (b"\x44\x88\x01\x02\x03\x04\x05\x06\x07\x08", 1, vec![32 + 2]),
            // Without indexing, and never.
            (b"\x00\x01a\x02bc", 1, vec![]),
            (b"\x10\x01a\x02bc\x04\x01b", 2, vec![]),
            (b"\x0f\x01\x02bc", 1, vec![]),
            // A change of size is no field.
            (b"\x20\x82", 1, vec![]),
            (b"\x3f\xe1\x1f\x82", 1, vec![]),
        ] {
            assert_eq!(walked(block), (fields, inserted), "{block:x?}");
        }
        let long = [&b"\x44\x7f\x49"[..], &[b'x'; 200]].concat();
        assert_eq!(walked(&long), (1, vec![232]));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut walk = Walk::new();
        let mut state = 1_u64;
        let mut inserted = 0_usize;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            walk.over(&state.to_le_bytes()[4..], |least| inserted = inserted.saturating_add(least));
        }
        let mut endless = Walk::new();
        endless.over(b"\x44\x7f", |_| {});
        (0..100).for_each(|_| endless.over(b"\xff", |_| {}));
        assert_eq!(endless.fields(), 1);
    }

    #[test]
    fn a_table_full_of_far_apart_entries_pins_as_many_buffers_and_one_of_close_entries_little() {
        let (mut far, mut close) = (Pinned::default(), Pinned::default());
        for at in 1..=1000_u64 {
            far.insert(at * 20_000, ENTRY_BYTES);
            close.insert(at * 300, 80);
        }
        assert_eq!(far.bytes(), 128 * 2 * 20_000, "4096 / 32 entries");
        assert_eq!(close.bytes(), 51 * 2 * 300, "4096 / 80 entries");
    }

    #[test]
    fn an_entry_larger_than_the_table_empties_it() {
        let mut pinned = Pinned::default();
        (1..=10).for_each(|at| pinned.insert(at * 20_000, ENTRY_BYTES));
        pinned.insert(300_000, usize::MAX);
        assert_eq!((pinned.bytes(), pinned.entries.len()), (0, 0));
        pinned.insert(300_100, ENTRY_BYTES);
        assert_eq!(pinned.bytes(), 200);
    }

    #[test]
    fn no_gap_counts_more_than_a_buffer() {
        let mut pinned = Pinned::default();
        pinned.insert(100, ENTRY_BYTES);
        pinned.insert(1 << 40, ENTRY_BYTES);
        assert_eq!(pinned.bytes(), 200 + 2 * BUFFER_BYTES as usize);
    }
}
