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
use std::mem;

use base64::Engine as _;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

/// Deepest nesting Go accepts (`maxNestingDepth` in its `scanner.go`).
pub const DEPTH_LIMIT: usize = 10_000;

/// Most values [`decode`] keeps of one document, at 16 bytes each. An answer beyond it is refused, so that a
/// few MiB of `{},` cannot become hundreds of MiB of tree.
pub const VALUES_LIMIT: usize = 1 << 20;

/// Most type errors that are kept with their place; the rest are counted.
const KEPT_ERRORS: usize = 16;

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

/// What the grammar expects next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    /// A value or `]`.
    FirstElement,
    /// A key or `}`.
    FirstKey,
    Key,
    /// `,` or the end of the innermost container; at the top, the end of the input.
    Next,
}

/// The grammar: a pull reader of tokens.
pub struct Tokens<'b> {
    bytes: &'b [u8],
    at: usize,
    expect: Expect,
    depth: usize,
    /// Whether the innermost open container is an object.
    in_object: bool,
    /// The same of every level, a bit each: 1,250 bytes at the deepest.
    objects: Vec<u64>,
    /// Whether the last string has a backslash in it.
    escaped: bool,
}

impl<'b> Tokens<'b> {
    /// Starts at the first byte.
    pub fn new(bytes: &'b [u8]) -> Self {
        let (in_object, objects, escaped) = (false, Vec::new(), false);
        Tokens { bytes, at: 0, expect: Expect::Value, depth: 0, in_object, objects, escaped }
    }

    /// How many containers are open.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Whether the last key or string has an escape in it: without one it is its own text.
    pub fn escaped(&self) -> bool {
        self.escaped
    }

    /// The next token, or `None` behind the one value that the input is.
    #[allow(
        clippy::should_implement_trait,
        reason = "an Iterator of Results goes on after an error; this must not"
    )]
    pub fn next(&mut self) -> Result<Option<(Token, Span)>, SyntaxError> {
        let Some(mut byte) = self.skip_space() else {
            let done = self.expect == Expect::Next && self.depth == 0;
            return if done { Ok(None) } else { Err(SyntaxError::End) };
        };
        if self.expect == Expect::Next && byte == b',' && self.depth > 0 {
            self.at += 1;
            self.expect = if self.in_object { Expect::Key } else { Expect::Value };
            byte = self.skip_space().ok_or(SyntaxError::End)?;
        }
        match (self.expect, byte) {
            (Expect::FirstKey | Expect::Key, b'"') => {
                let start = self.at;
                self.string()?;
                let span = Span::new(start, self.at);
                match self.skip_space() {
                    Some(b':') => self.at += 1,
                    found => return Err(self.unexpected(found, Expected::Colon)),
                }
                self.expect = Expect::Value;
                Ok(Some((Token::Key, span)))
            }
            (Expect::Next | Expect::FirstElement, b']') if self.depth > 0 && !self.in_object => {
                self.close(Token::EndArray).map(Some)
            }
            (Expect::Value | Expect::FirstElement, _) => self.value(byte).map(Some),
            (Expect::Next | Expect::FirstKey, b'}') if self.in_object => {
                self.close(Token::EndObject).map(Some)
            }
            (Expect::Next, _) if self.depth == 0 => Err(self.unexpected(Some(byte), Expected::Nothing)),
            (Expect::Next, _) => Err(self.unexpected(Some(byte), Expected::CommaOrEnd)),
            (Expect::FirstKey | Expect::Key, _) => Err(self.unexpected(Some(byte), Expected::Key)),
        }
    }

    /// Reads to the end of the container that the last token began.
    pub fn skip_container(&mut self) -> Result<(), SyntaxError> {
        let outside = self.depth - 1;
        while self.depth > outside {
            self.next()?;
        }
        Ok(())
    }

    fn value(&mut self, byte: u8) -> Result<(Token, Span), SyntaxError> {
        let start = self.at;
        let token = match byte {
            b'{' => return self.open(Token::BeginObject),
            b'[' => return self.open(Token::BeginArray),
            b'"' => {
                self.string()?;
                Token::Str
            }
            b't' => self.literal(b"true", Token::True)?,
            b'f' => self.literal(b"false", Token::False)?,
            b'n' => self.literal(b"null", Token::Null)?,
            b'-' | b'0'..=b'9' => {
                self.number()?;
                Token::Number
            }
            other => return Err(self.unexpected(Some(other), Expected::Value)),
        };
        self.expect = Expect::Next;
        Ok((token, Span::new(start, self.at)))
    }

    fn open(&mut self, token: Token) -> Result<(Token, Span), SyntaxError> {
        if self.depth == DEPTH_LIMIT {
            return Err(SyntaxError::Depth);
        }
        let (word, bit) = (self.depth / 64, 1_u64 << (self.depth % 64));
        if word == self.objects.len() {
            self.objects.push(0);
        }
        self.in_object = token == Token::BeginObject;
        if self.in_object {
            self.objects[word] |= bit;
            self.expect = Expect::FirstKey;
        } else {
            self.objects[word] &= !bit;
            self.expect = Expect::FirstElement;
        }
        self.depth += 1;
        self.at += 1;
        Ok((token, Span::new(self.at - 1, self.at)))
    }

    fn close(&mut self, token: Token) -> Result<(Token, Span), SyntaxError> {
        self.depth -= 1;
        self.in_object =
            self.depth > 0 && self.objects[(self.depth - 1) / 64] >> ((self.depth - 1) % 64) & 1 == 1;
        self.at += 1;
        self.expect = Expect::Next;
        Ok((token, Span::new(self.at - 1, self.at)))
    }

    #[inline]
    fn skip_space(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    fn literal(&mut self, word: &'static [u8], token: Token) -> Result<Token, SyntaxError> {
        for expected in word {
            match self.bytes.get(self.at) {
                Some(found) if found == expected => self.at += 1,
                found => return Err(self.unexpected(found.copied(), Expected::Literal)),
            }
        }
        Ok(token)
    }

    fn string(&mut self) -> Result<(), SyntaxError> {
        self.escaped = false;
        self.at += 1;
        loop {
            self.at += plain_run(&self.bytes[self.at..]);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                found => return Err(self.unexpected(found.copied(), Expected::StringByte)),
            }
        }
    }

    fn escape(&mut self) -> Result<(), SyntaxError> {
        match self.bytes.get(self.at) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    match self.bytes.get(self.at) {
                        Some(digit) if digit.is_ascii_hexdigit() => self.at += 1,
                        found => {
                            return Err(self.unexpected(found.copied(), Expected::HexDigits));
                        }
                    }
                }
            }
            found => return Err(self.unexpected(found.copied(), Expected::Escape)),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        // A leading zero stands alone: what follows it is not part of the number.
        if self.bytes.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), SyntaxError> {
        let start = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start {
            return Err(self.unexpected(self.bytes.get(start).copied(), Expected::Digit));
        }
        Ok(())
    }

    fn unexpected(&self, found: Option<u8>, expected: Expected) -> SyntaxError {
        match found {
            Some(found) => {
                SyntaxError::Byte { at: u32::try_from(self.at).unwrap_or(u32::MAX), found, expected }
            }
            None => SyntaxError::End,
        }
    }
}

/// How many bytes from the start need no look in a string: no quote, no backslash, no control character.
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    let mut run = 0;
    // Eight at a time: `x - ONES & !x & HIGH` has a bit where a byte of x is zero, and `(x - 0x20 each) & !x & HIGH`
    // where a byte is below 0x20. Only behind such a byte can there be a bit too many, so the first one is right.
    for chunk in bytes.chunks_exact(8) {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks_exact yields eight bytes"));
        let zero = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let stops = control | zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\')));
        if stops != 0 {
            return run + stops.trailing_zeros() as usize / 8;
        }
        run += 8;
    }
    run + bytes[run..].iter().take_while(|byte| **byte >= 0x20 && **byte != b'"' && **byte != b'\\').count()
}

/// The text of a string token, quotes included in `raw`: escapes resolved, a lone surrogate and each byte of
/// invalid UTF-8 read as U+FFFD. Only for a token that [`Tokens`] yielded.
pub fn unquote(raw: &[u8]) -> Cow<'_, str> {
    let inner = &raw[1..raw.len() - 1];
    if !inner.contains(&b'\\') {
        return lossy(inner);
    }
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(slash) = rest.iter().position(|byte| *byte == b'\\') {
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
    /// A map that is not nil: keys in the order of their first appearance.
    Map(Box<Vec<(Span, Value)>>),
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

/// A container under construction.
enum Frame {
    /// `field` is the one that the last key was for; none yet is `usize::MAX`.
    Struct {
        fields: &'static [Field],
        values: Vec<Value>,
        field: usize,
    },
    List {
        element: &'static Type,
        list: List,
        next: usize,
    },
    Map {
        element: &'static Type,
        entries: Vec<(Span, Value)>,
        key: Span,
    },
}

static BYTE: Type = Type { kind: Kind::UINT8, nillable: false };

/// Reads a document into a struct with these fields, as `json.Unmarshal` would: the whole input is checked
/// first and foremost, so that a syntax error anywhere is the result, whatever types came before it.
pub fn decode(bytes: &[u8], fields: &'static [Field]) -> Result<Decoded, SyntaxError> {
    if u32::try_from(bytes.len()).is_err() {
        return Err(SyntaxError::TooMany);
    }
    Decoder {
        bytes,
        tokens: Tokens::new(bytes),
        out: Decoded { last: vec![None; fields.len()], ..Decoded::default() },
        frames: Vec::new(),
        values: 0,
        root: Type { kind: Kind::Struct(fields), nillable: false },
    }
    .run()
}

struct Decoder<'b> {
    bytes: &'b [u8],
    tokens: Tokens<'b>,
    out: Decoded,
    frames: Vec<Frame>,
    values: usize,
    root: Type,
}

impl Decoder<'_> {
    fn run(mut self) -> Result<Decoded, SyntaxError> {
        while let Some((token, span)) = self.tokens.next()? {
            match token {
                Token::Key => self.key(span)?,
                Token::EndObject | Token::EndArray => self.end(span)?,
                Token::BeginObject
                | Token::BeginArray
                | Token::Str
                | Token::Number
                | Token::True
                | Token::False
                | Token::Null => self.value(token, span)?,
            }
        }
        Ok(self.out)
    }

    /// A key: picks the field that the next value is for. An unknown field's value is passed over at once.
    fn key(&mut self, span: Span) -> Result<(), SyntaxError> {
        let outermost = self.frames.len() == 1;
        self.out.has_keys |= outermost;
        match self.frames.last_mut().expect("a key stands inside an object that has a frame") {
            Frame::Struct { fields, field, .. } => {
                let raw = span.of(self.bytes);
                let inner = &raw[1..raw.len() - 1];
                // Most write the fields in their order: the one behind the last is tried first.
                let next = field.wrapping_add(1);
                let found = if fields.get(next).is_some_and(|field| field.name.as_bytes() == inner) {
                    Some(next)
                } else if self.tokens.escaped() {
                    find(fields, unquote(raw).as_bytes())
                } else {
                    find(fields, inner)
                };
                match found {
                    Some(index) => *field = index,
                    None => {
                        let (token, _) = self.tokens.next()?.ok_or(SyntaxError::End)?;
                        if matches!(token, Token::BeginObject | Token::BeginArray) {
                            self.tokens.skip_container()?;
                        }
                    }
                }
            }
            Frame::Map { key, .. } => *key = span,
            Frame::List { .. } => unreachable!("the grammar yields no key in an array"),
        }
        Ok(())
    }

    /// The type of the value that comes next, and the value already in its place (a Go variable: second and
    /// later assignments merge into it).
    fn place(&mut self) -> (Type, Value) {
        match self.frames.last_mut() {
            None => (self.root, mem::take(&mut self.out.root)),
            Some(Frame::Struct { fields, values, field }) => {
                (fields[*field].ty, values.get_mut(*field).map(mem::take).unwrap_or_default())
            }
            Some(Frame::List { element, list, next }) => {
                (**element, list.kept.get_mut(*next).map(mem::take).unwrap_or_default())
            }
            // Go decodes each value of a map into a fresh zero.
            Some(Frame::Map { element, .. }) => (**element, Value::Zero),
        }
    }

    /// Puts a finished value where [`Self::place`] took the old one from.
    fn put(&mut self, value: Value) -> Result<(), SyntaxError> {
        let grown = match self.frames.last_mut() {
            None => {
                self.out.root = value;
                0
            }
            Some(Frame::Struct { fields, values, field }) => {
                let grown = if values.is_empty() { fields.len() } else { 0 };
                if values.is_empty() {
                    values.resize(fields.len(), Value::Zero);
                }
                values[*field] = value;
                grown
            }
            Some(Frame::List { list, next, .. }) => {
                let grown = usize::from(*next == list.kept.len());
                if grown == 1 {
                    list.kept.push(value);
                } else {
                    list.kept[*next] = value;
                }
                *next += 1;
                grown
            }
            Some(Frame::Map { entries, key, .. }) => {
                let text = unquote(key.of(self.bytes));
                let known = entries.iter_mut().find(|(other, _)| unquote(other.of(self.bytes)) == text);
                match known {
                    Some((_, old)) => {
                        *old = value;
                        0
                    }
                    None => {
                        entries.push((*key, value));
                        // A map of n keys costs n looks a key: it may hold 1,024 (OpenIM's has a dozen options).
                        VALUES_LIMIT / 1024
                    }
                }
            }
        };
        self.values += grown;
        if self.values > VALUES_LIMIT { Err(SyntaxError::TooMany) } else { Ok(()) }
    }

    fn value(&mut self, token: Token, span: Span) -> Result<(), SyntaxError> {
        if let [Frame::Struct { field, .. }] = self.frames[..] {
            self.out.last[field] = Some(span);
        }
        let (ty, old) = self.place();
        let new = match (token, ty.kind) {
            (Token::Null, _) => {
                if ty.nillable {
                    Value::Zero
                } else {
                    old
                }
            }
            (Token::BeginObject, Kind::Struct(fields)) => {
                let values = if let Value::Struct(values) = old { *values } else { Vec::new() };
                self.frames.push(Frame::Struct { fields, values, field: usize::MAX });
                return Ok(());
            }
            (Token::BeginObject, Kind::Map(element)) => {
                let entries = if let Value::Map(entries) = old { *entries } else { Vec::new() };
                self.frames.push(Frame::Map { element, entries, key: span });
                return Ok(());
            }
            (Token::BeginArray, Kind::List(element)) => {
                let list = if let Value::List(list) = old { *list } else { List::default() };
                self.frames.push(Frame::List { element, list, next: 0 });
                return Ok(());
            }
            (Token::BeginArray, Kind::Bytes) => {
                let list = self.bytes_as_list(old);
                self.frames.push(Frame::List { element: &BYTE, list, next: 0 });
                return Ok(());
            }
            (Token::True | Token::False, Kind::Bool) => Value::Bool(token == Token::True),
            (Token::Str, Kind::Str) => Value::Str(span),
            (Token::Str, Kind::Bytes) if base64_of(span.of(self.bytes)).is_some() => Value::Str(span),
            (Token::Number, Kind::Int { min, max }) => match integer(span.of(self.bytes), min, max) {
                Some(number) => Value::Int(number),
                None => self.mismatch(token, span, ty.kind, old)?,
            },
            _ => self.mismatch(token, span, ty.kind, old)?,
        };
        self.put(new)
    }

    /// Go notes the error, leaves the variable as it is, and goes on.
    fn mismatch(
        &mut self,
        found: Token,
        span: Span,
        expected: Kind,
        old: Value,
    ) -> Result<Value, SyntaxError> {
        let top_field = match self.frames[..] {
            [Frame::Struct { field, .. }] => Some(field),
            _ => None,
        };
        self.out.error_count += 1;
        if self.out.errors.len() < KEPT_ERRORS {
            self.out.errors.push(TypeError { top_field, span, found, expected });
        }
        if matches!(found, Token::BeginObject | Token::BeginArray) {
            self.tokens.skip_container()?;
        }
        Ok(old)
    }

    fn end(&mut self, span: Span) -> Result<(), SyntaxError> {
        let value = match self.frames.pop().expect("a container that ends has a frame") {
            Frame::Struct { values, .. } => Value::Struct(Box::new(values)),
            Frame::Map { entries, .. } => Value::Map(Box::new(entries)),
            // An empty array is a fresh slice: nothing is left behind its end.
            Frame::List { next: 0, .. } => Value::List(Box::default()),
            Frame::List { list, next, .. } => Value::List(Box::new(List { len: next, ..list })),
        };
        self.out.end = span.start as usize;
        if let [Frame::Struct { field, .. }] = self.frames[..]
            && let Some(Some(last)) = self.out.last.get_mut(field)
        {
            last.end = span.end;
        }
        self.put(value)
    }

    fn bytes_as_list(&self, old: Value) -> List {
        match old {
            Value::List(list) => *list,
            Value::Str(span) => {
                let bytes = base64_of(span.of(self.bytes)).unwrap_or_default();
                let kept: Vec<_> = bytes.iter().map(|byte| Value::Int(i64::from(*byte))).collect();
                List { len: kept.len(), kept }
            }
            Value::Zero | Value::Int(_) | Value::Bool(_) | Value::Map(_) | Value::Struct(_) => {
                List::default()
            }
        }
    }
}

/// The field a key is for: the one spelled exactly so, else the first that it folds to.
fn find(fields: &[Field], key: &[u8]) -> Option<usize> {
    let exact = fields.iter().position(|field| field.name.as_bytes() == key);
    exact.or_else(|| fields.iter().position(|field| folds_to(key, field.name)))
}

/// An integer literal as Go's `strconv.ParseInt` and `ParseUint` take it: digits alone, `1.0` and `1e0` are none.
pub fn integer(raw: &[u8], min: i64, max: i64) -> Option<i64> {
    if min >= 0 && raw.first() == Some(&b'-') {
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

/// Go's `base64.StdEncoding`: padded, line breaks passed over, loose bits at the end ignored.
fn base64_of(raw: &[u8]) -> Option<Vec<u8>> {
    const STD: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    let text: Vec<u8> = unquote(raw).bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    STD.decode(text).ok()
}

// A token and an error fit two registers.
const _: () = assert!(size_of::<Result<Option<(Token, Span)>, SyntaxError>>() <= 16);

#[cfg(test)]
mod tests;
