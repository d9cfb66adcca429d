//! Frames of HTTP/2 and fields of HPACK, written by hand.

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub(crate) const INITIAL_WINDOW: u16 = 4;

/// What a connection begins with.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame: RFC 9113, section 4.1.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A SETTINGS frame with these pairs.
pub(crate) fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let pairs = pairs.iter().flat_map(|(id, value)| {
        let [a, b] = id.to_be_bytes();
        let [c, d, e, f] = value.to_be_bytes();
        [a, b, c, d, e, f]
    });
    frame(SETTINGS, 0, 0, &pairs.collect::<Vec<_>>())
}

/// A field as a literal that is not indexed and not packed: RFC 7541, section 6.2.2.
pub(crate) fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0], &text(name)[..], &text(value)[..]].concat()
}

/// A field as a literal that goes into the table: RFC 7541, section 6.2.1.
pub(crate) fn indexed_field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x40], &text(name)[..], &text(value)[..]].concat()
}

/// Text with its length, not packed: RFC 7541, sections 5.1 and 5.2.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 4);
    match bytes.len() {
        short @ 0..127 => out.push(short as u8),
        long => {
            out.push(0x7f);
            let mut rest = long - 127;
            while rest >= 128 {
                out.push((rest % 128) as u8 | 0x80);
                rest /= 128;
            }
            out.push(rest as u8);
        }
    }
    out.extend_from_slice(bytes);
    out
}

/// The fields that a callback has at least.
pub(crate) fn callback_fields(target: &str) -> Vec<u8> {
    callback_fields_by(field, target)
}

/// The same, each field written by this function.
pub(crate) fn callback_fields_by(field: impl Fn(&[u8], &[u8]) -> Vec<u8>, target: &str) -> Vec<u8> {
    let pairs: [(&[u8], &[u8]); 6] = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", target.as_bytes()),
        (b":authority", b"localhost"),
        (b"operationid", b"1"),
        (b"content-type", b"application/json"),
    ];
    pairs.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// A callback with its body.
pub(crate) fn callback(stream: u32, target: &str, body: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &callback_fields(target));
    [head, frame(DATA, END_STREAM, stream, body)].concat()
}
