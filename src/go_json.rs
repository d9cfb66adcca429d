//! JSON as Go's `encoding/json` reads it into a struct.
//!
//! OpenIM decodes every answer with `json.Unmarshal`, and what that makes of odd input is not what other
//! readers make of it: keys match in any letter case, an exact and a folded key are the same field, of two
//! scalars the last one wins while objects and array elements merge into what is there, `null` leaves a scalar
//! alone and empties a pointer, `1.0` is no integer, and one wrong type anywhere makes the whole answer an
//! error. A verdict is only right if it is read the same way.
//!
//! Two layers, both a single walk forward over the bytes and neither recursive:
//!
//! - [`Tokens`] is the grammar (Go's `scanner.go`): it yields tokens with their place, or the first syntax error.
//! - [`decode`] lays the tokens over a table of [`Field`]s (Go's `decode.go`): a value under construction is moved
//!   out of its parent onto a stack of frames and moved back at its end, so that a second `"list":[..]` finds
//!   the elements of the first and merges into them as Go does.
//!
//! Read in Go 1.26's sources; nothing here knows OpenIM.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::cancel;

pub use decode::decode;
pub use members::without;
pub use tokens::Tokens;

mod decode;
mod members;
mod tokens;

/// Deepest nesting Go accepts (`maxNestingDepth` in its `scanner.go`).
pub const DEPTH_LIMIT: usize = 10_000;

/// Most values [`decode`] keeps of one document, at 16 bytes each; an entry of a map counts as two. An answer beyond it is refused, so that a
/// few MiB of `{},` cannot become hundreds of MiB of tree.
pub const VALUES_LIMIT: usize = 1 << 20;

/// What a value of a field must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Go's `string`.
    Str,
    /// Go's `bool`.
    Bool,
    /// An integer literal within these bounds, both inclusive. With `min` 0 Go's type is unsigned, and takes no `-0`.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// Go's `[]uint8`: a base64 string, or an array of 0 to 255.
    Bytes,
    /// A slice.
    List(&'static Type),
    /// A map with string keys.
    Map(&'static Type),
    /// A struct.
    Struct(&'static [Field]),
}

impl Kind {
    /// Go's `int32`.
    pub const INT32: Kind = Kind::Int { min: i32::MIN as i64, max: i32::MAX as i64 };
    /// Go's `uint32`.
    pub const UINT32: Kind = Kind::Int { min: 0, max: u32::MAX as i64 };
    /// Go's `int64` and `int`.
    pub const INT64: Kind = Kind::Int { min: i64::MIN, max: i64::MAX };
    /// Go's `uint8`.
    const UINT8: Kind = Kind::Int { min: 0, max: u8::MAX as i64 };

    /// The JSON type in a word, for messages.
    pub const fn json_type(self) -> &'static str {
        match self {
            Kind::Str => "a string",
            Kind::Bool => "true or false",
            Kind::Int { min: 0, .. } => "a whole number, not negative",
            Kind::Int { max, .. } if max == i32::MAX as i64 => "a whole number of 32 bits",
            Kind::Int { .. } => "a whole number",
            Kind::Bytes => "a base64 string",
            Kind::List(_) => "an array",
            Kind::Map(_) | Kind::Struct(_) => "an object",
        }
    }
}

/// A [`Kind`], and whether `null` empties it (pointer, slice, map) or leaves it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    /// What the value must be.
    pub kind: Kind,
    /// Whether Go's type can be nil.
    pub nillable: bool,
}

/// One field of a struct, by its JSON name (ASCII).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The JSON name as Go writes it.
    pub name: &'static str,
    /// The type of its value.
    pub ty: Type,
}

/// A place in the bytes that were read; the end is exclusive. Four bytes each suffice: larger input is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    /// The bytes at this place.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// Where and why the bytes are not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyntaxError {
    /// The input ends inside a value, or is empty.
    #[error("unexpected end of JSON input")]
    End,
    /// A byte that the grammar does not allow there.
    #[error("unexpected byte 0x{found:02x} at offset {at}: expected {}", .expected.words())]
    Byte {
        /// Its offset.
        at: u32,
        /// The byte.
        found: u8,
        /// What the grammar wants there.
        expected: Expected,
    },
    /// Nested deeper than [`DEPTH_LIMIT`].
    #[error("nested deeper than 10000 levels")]
    Depth,
    /// More than [`VALUES_LIMIT`] values, or more than 4 GiB.
    #[error("more values than are kept of one document")]
    TooMany,
    /// The walk was cancelled ([`crate::cancel`]): nobody waits for its result.
    #[error("not read to the end")]
    Cancelled,
}

/// What the grammar wants where it found something else. (Not a text: a [`SyntaxError`] of eight bytes lets a token travel
/// in registers.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A colon behind the key.
    Colon,
    /// A comma or the end of the container.
    CommaOrEnd,
    /// A digit.
    Digit,
    /// One of "\/bfnrtu behind a backslash.
    Escape,
    /// Four hexadecimal digits behind \u.
    HexDigits,
    /// A key in quotes.
    Key,
    /// True, false or null.
    Literal,
    /// Nothing behind the value.
    Nothing,
    /// No control character in a string.
    StringByte,
    /// A value.
    Value,
}

impl Expected {
    const fn words(self) -> &'static str {
        match self {
            Expected::Colon => "a colon behind the key",
            Expected::CommaOrEnd => "a comma or the end of the container",
            Expected::Digit => "a digit",
            Expected::Escape => "one of \"\\/bfnrtu behind a backslash",
            Expected::HexDigits => "four hexadecimal digits behind \\u",
            Expected::Key => "a key in quotes",
            Expected::Literal => "true, false or null",
            Expected::Nothing => "nothing behind the value",
            Expected::StringByte => "no control character in a string",
            Expected::Value => "a value",
        }
    }
}

/// A token of JSON. `Key` comes with its colon consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// `{`
    BeginObject,
    /// `}`
    EndObject,
    /// `[`
    BeginArray,
    /// `]`
    EndArray,
    /// A string in the place of a key; the span includes its quotes.
    Key,
    /// A string value; the span includes its quotes.
    Str,
    /// A number.
    Number,
    /// `true`
    True,
    /// `false`
    False,
    /// `null`
    Null,
}

/// The text of a string token, quotes included in `raw`: escapes resolved, a lone surrogate and each byte of
/// invalid UTF-8 read as U+FFFD. Only for a token that [`Tokens`] yielded.
pub fn unquote(raw: &[u8]) -> Cow<'_, str> {
    #[cfg(test)]
    tests::count_unquoted();
    let inner = &raw[1..raw.len() - 1];
    if !inner.contains(&b'\\') {
        return lossy(inner);
    }
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    let mut look_at = cancel::STRIDE;
    while let Some(slash) = rest.iter().position(|byte| *byte == b'\\') {
        if out.len() >= look_at {
            if cancel::is_cancelled() {
                break;
            }
            look_at = out.len() + cancel::STRIDE;
        }
        out.push_str(&lossy(&rest[..slash]));
        let escape = rest[slash + 1];
        rest = &rest[slash + 2..];
        match escape {
            b'b' => out.push('\u{8}'),
            b'f' => out.push('\u{c}'),
            b'n' => out.push('\n'),
            b'r' => out.push('\r'),
            b't' => out.push('\t'),
            b'u' => {
                let unit = hex4(rest);
                rest = &rest[4..];
                let pair = match (unit, rest) {
                    (0xd800..=0xdbff, [b'\\', b'u', low @ ..]) => match hex4(low) {
                        low @ 0xdc00..=0xdfff => Some(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)),
                        _ => None,
                    },
                    _ => None,
                };
                if pair.is_some() {
                    rest = &rest[6..];
                }
                out.push(char::from_u32(pair.unwrap_or(unit)).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            // The quote, the backslash and the slash stand for themselves.
            other => out.push(other as char),
        }
    }
    out.push_str(&lossy(rest));
    Cow::Owned(out)
}

/// Whether the text of a string token is this one. Without an escape nothing has to be unquoted to find out.
pub fn is_text(raw: &[u8], text: &str) -> bool {
    let inner = &raw[1..raw.len() - 1];
    (inner == text.as_bytes() && !inner.contains(&b'\\')) || unquote(raw) == text
}

/// Checks that bytes are UTF-8; an error is the number of bytes in front of the first wrong one.
pub fn check_utf8(bytes: &[u8]) -> Result<(), usize> {
    let mut from = 0;
    while from < bytes.len() {
        let to = bytes.len().min(from + cancel::STRIDE);
        let part = &bytes[from..to];
        // Nearly all is ASCII, which is found out 32 bytes at a time.
        let read = if part.is_ascii() { Ok("") } else { std::str::from_utf8(part) };
        match read {
            Ok(_) => from = to,
            // A character across the edge: it begins the next part.
            Err(error) if error.error_len().is_none() && to < bytes.len() => from += error.valid_up_to(),
            Err(error) => return Err(from + error.valid_up_to()),
        }
        if from < bytes.len() && cancel::is_cancelled() {
            break;
        }
    }
    Ok(())
}

fn hex4(digits: &[u8]) -> u32 {
    digits[..4].iter().fold(0, |sum, digit| sum * 16 + (*digit as char).to_digit(16).unwrap_or(0))
}

/// Text as Go reads bytes: each byte that is not part of valid UTF-8 becomes one U+FFFD (where Rust's own lossy
/// reading makes one of a whole broken sequence).
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(out)
}

/// Whether Go takes a key for the field `name` (ASCII) when no field is spelled exactly so: letter case is
/// ignored, and U+017F (long s) and U+212A (Kelvin sign) fold to S and K.
pub fn folds_to(key: &[u8], name: &str) -> bool {
    let mut rest = key;
    for wanted in name.bytes() {
        let (found, width) = match rest {
            [0xc5, 0xbf, ..] => (b's', 2),
            [0xe2, 0x84, 0xaa, ..] => (b'k', 3),
            [byte, ..] => (*byte, 1),
            [] => return false,
        };
        if !found.eq_ignore_ascii_case(&wanted) {
            return false;
        }
        rest = &rest[width..];
    }
    rest.is_empty()
}

/// What was decoded. Texts stay where they are: a span into the input, read by [`unquote`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// Go's zero value: never set, or emptied by `null`.
    #[default]
    Zero,
    /// An integer.
    Int(i64),
    /// A boolean.
    Bool(bool),
    /// A string, or base64 where the type is [`Kind::Bytes`].
    Str(Span),
    /// A slice that is not nil.
    List(Box<List>),
    /// A map that is not nil.
    Map(Box<Map>),
    /// A struct with at least one field set, in the order of its table; or empty: all zero, yet not nil.
    Struct(Box<Vec<Value>>),
}

/// A slice of Go: elements, of which a later, shorter array leaves some behind the end for a still later, longer
/// one to merge into.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct List {
    kept: Vec<Value>,
    len: usize,
}

impl List {
    /// The elements that the slice holds.
    pub fn elements(&self) -> &[Value] {
        &self.kept[..self.len]
    }
}

/// A map of Go, as it was written: a key may be there more than once, and the last value of it counts. Keys are compared by
/// whoever reads the map, not while it is decoded: the guard itself never looks into one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    written: Vec<(Span, Value)>,
}

impl Map {
    /// The keys in the order of their first appearance, each with its last value. `bytes` is the document.
    pub fn entries<'m>(&'m self, bytes: &'m [u8]) -> Vec<(Cow<'m, str>, &'m Value)> {
        let mut entries: Vec<(Cow<'m, str>, &'m Value)> = Vec::new();
        let mut places = HashMap::new();
        for (key, value) in &self.written {
            match places.entry(unquote(key.of(bytes))) {
                Entry::Occupied(place) => {
                    let place: usize = *place.get();
                    entries[place].1 = value;
                }
                Entry::Vacant(place) => {
                    entries.push((place.key().clone(), value));
                    place.insert(entries.len() - 1);
                }
            }
        }
        entries
    }
}

impl Value {
    /// The field at `index` of a struct; zero where it was not set.
    pub fn field(&self, index: usize) -> &Value {
        match self {
            Value::Struct(fields) => fields.get(index).unwrap_or(&Value::Zero),
            Value::Zero | Value::Int(_) | Value::Bool(_) | Value::Str(_) | Value::List(_) | Value::Map(_) => {
                &Value::Zero
            }
        }
    }

    /// An integer field's value, 0 when it was not set.
    pub fn int(&self) -> i64 {
        if let Value::Int(value) = self { *value } else { 0 }
    }
}

/// A value of the wrong type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeError {
    /// The field's index, when the value stands directly in a field of the outermost struct.
    pub top_field: Option<usize>,
    /// The wrong value (of a container, its first byte).
    pub span: Span,
    /// What it is.
    pub found: Token,
    /// What it should be.
    pub expected: Kind,
}

/// A whole document laid over a struct.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The outermost struct; [`Value::Zero`] where the document is `null`.
    pub root: Value,
    /// Where the last value of each field of the outermost struct stands, `null` included.
    pub last: Vec<Option<Span>>,
    /// The first wrong types, in the order of the document. Go returns the first and fails the whole.
    pub errors: Vec<TypeError>,
    /// How many wrong types there were.
    pub error_count: usize,
    /// The closing brace of the outermost object.
    pub end: usize,
    /// Whether the outermost object has any key.
    pub has_keys: bool,
}

/// An integer literal as Go's `strconv.ParseInt` and `ParseUint` take it: digits alone, `1.0` and `1e0` are none.
pub fn integer(raw: &[u8], min: i64, max: i64) -> Option<i64> {
    if min >= 0 && raw.first() == Some(&b'-') {
        return None;
    }
    // A sign and 19 digits are the longest of 64 bits; a literal has no zeros in front.
    if raw.len() > 20 {
        return None;
    }
    let (negative, digits) = match raw {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let number = if (1..=18).contains(&digits.len()) {
        // Eighteen digits cannot overflow.
        let mut number = 0;
        for digit in digits {
            let value = digit.wrapping_sub(b'0');
            if value > 9 {
                return None;
            }
            number = number * 10 + i64::from(value);
        }
        if negative { -number } else { number }
    } else {
        std::str::from_utf8(raw).ok()?.parse().ok()?
    };
    (min..=max).contains(&number).then_some(number)
}

// A token and an error fit two registers.
const _: () = assert!(size_of::<Result<Option<(Token, Span)>, SyntaxError>>() <= 16);

#[cfg(test)]
mod tests;
