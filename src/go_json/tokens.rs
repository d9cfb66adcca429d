//! The grammar: bytes become tokens with their place, or the first syntax error.

use super::{DEPTH_LIMIT, Expected, Span, SyntaxError, Token};
use crate::cancel::{self, STRIDE};

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
    /// Where it is next looked whether the walk is cancelled; at the latest at the end of the input.
    look_at: usize,
    expect: Expect,
    depth: usize,
    /// Whether the innermost open container is an object.
    in_object: bool,
    /// The same of every level, a bit each: of the first 64, and of the rest, 1,250 bytes at the deepest.
    shallow: u64,
    deep: Vec<u64>,
    /// Whether the last string has a backslash in it.
    escaped: bool,
}

impl<'b> Tokens<'b> {
    /// Starts at the first byte.
    pub fn new(bytes: &'b [u8]) -> Self {
        let (in_object, shallow, deep, escaped) = (false, 0, Vec::new(), false);
        let look_at = bytes.len().min(STRIDE);
        Tokens { bytes, at: 0, look_at, expect: Expect::Value, depth: 0, in_object, shallow, deep, escaped }
    }

    /// How many containers are open.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The offset behind the last token: of a key, behind its colon.
    pub fn offset(&self) -> usize {
        self.at
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
        if self.at >= self.look_at {
            self.look()?;
        }
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

    /// Reads the key with this name, written without an escape or space, if it stands next; else nothing is read. Those who
    /// write a struct write its fields in their order, and to compare a key costs a fifth of reading it.
    pub fn expected_key(&mut self, name: &str) -> bool {
        debug_assert_eq!(plain_run(name.as_bytes()), name.len(), "a name that needs no escape");
        let comma = match self.expect {
            Expect::Next if self.in_object => true,
            Expect::FirstKey => false,
            Expect::Next | Expect::Value | Expect::FirstElement | Expect::Key => return false,
        };
        let (name, rest) = (name.as_bytes(), &self.bytes[self.at..]);
        let rest = if comma { rest.strip_prefix(b",") } else { Some(rest) };
        let Some([b'"', rest @ ..]) = rest else { return false };
        // Of two names most differ in the first letter; to compare the rest is a call.
        if rest.first() != name.first() {
            return false;
        }
        let Some([b'"', b':', rest @ ..]) = rest.strip_prefix(name) else { return false };
        self.at = self.bytes.len() - rest.len();
        self.expect = Expect::Value;
        self.escaped = false;
        true
    }

    /// Reads to the end of the container that the last token began.
    pub fn skip_container(&mut self) -> Result<(), SyntaxError> {
        let outside = self.depth - 1;
        while self.depth > outside {
            self.next()?;
        }
        Ok(())
    }

    /// Ends a walk that was cancelled.
    #[cold]
    fn look(&mut self) -> Result<(), SyntaxError> {
        if self.look_at < self.bytes.len() && cancel::is_cancelled() {
            return Err(SyntaxError::Cancelled);
        }
        self.look_at = self.bytes.len().min(self.at + STRIDE);
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
        self.in_object = token == Token::BeginObject;
        self.expect = if self.in_object { Expect::FirstKey } else { Expect::FirstElement };
        let (in_object, bit) = (u64::from(self.in_object), self.depth % 64);
        if self.depth / 64 > self.deep.len() {
            self.deep.push(0);
        }
        let word = self.levels(self.depth);
        *word = *word & !(1 << bit) | in_object << bit;
        self.depth += 1;
        self.at += 1;
        Ok((token, Span::new(self.at - 1, self.at)))
    }

    fn close(&mut self, token: Token) -> Result<(Token, Span), SyntaxError> {
        self.depth -= 1;
        self.in_object = match self.depth.checked_sub(1) {
            Some(level) => *self.levels(level) >> (level % 64) & 1 == 1,
            None => false,
        };
        self.at += 1;
        self.expect = Expect::Next;
        Ok((token, Span::new(self.at - 1, self.at)))
    }

    /// The bits of 64 levels, this one among them.
    fn levels(&mut self, level: usize) -> &mut u64 {
        match level / 64 {
            0 => &mut self.shallow,
            word => &mut self.deep[word - 1],
        }
    }

    #[inline]
    fn skip_space(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\r' | b'\n') => {
                    self.at += 1;
                    if self.at >= self.look_at && self.look().is_err() {
                        return None;
                    }
                }
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

    /// Reads a string behind its first quote; nearly all are short.
    #[inline]
    fn string(&mut self) -> Result<(), SyntaxError> {
        self.escaped = false;
        self.at += 1;
        if let Some(chunk) = self.bytes[self.at..].first_chunk()
            && let Some(stop) = first_stop(chunk)
            && chunk[stop] == b'"'
        {
            self.at += stop + 1;
            return Ok(());
        }
        self.long_string()
    }

    fn long_string(&mut self) -> Result<(), SyntaxError> {
        loop {
            if self.at >= self.look_at {
                self.look()?;
            }
            self.at += plain_run(&self.bytes[self.at..self.look_at]);
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
                // Plain up to where the walk is looked at.
                Some(0x20..) => {}
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
            if self.at >= self.look_at {
                self.look()?;
            }
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
pub(super) fn plain_run(bytes: &[u8]) -> usize {
    let (chunks, rest) = bytes.as_chunks();
    for (at, chunk) in chunks.iter().enumerate() {
        if let Some(stop) = first_stop(chunk) {
            return at * 16 + stop;
        }
    }
    bytes.len() - rest.len() + rest.iter().take_while(|byte| !needs_look(**byte)).count()
}

/// The first of 16 bytes that needs a look. Without a branch inside, the compiler looks at all of them at once.
#[inline]
fn first_stop(chunk: &[u8; 16]) -> Option<usize> {
    let marks = u128::from_le_bytes(chunk.map(|byte| if needs_look(byte) { 0xff } else { 0 }));
    (marks != 0).then(|| marks.trailing_zeros() as usize / 8)
}

fn needs_look(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}
