//! Tokens laid over a table of fields, as Go's decoder lays them over a struct.

use std::mem;

use base64::Engine as _;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

use super::{
    Decoded, Field, Kind, List, Map, Span, SyntaxError, Token, Tokens, Type, TypeError, VALUES_LIMIT, Value,
    folds_to, integer, unquote,
};
use crate::cancel;

/// Most type errors that are kept with their place; the rest are counted.
const KEPT_ERRORS: usize = 16;

/// What an entry of a map costs among [`VALUES_LIMIT`]: 24 bytes, its key included. A repeated key costs as much as a new one.
const ENTRY_VALUES: usize = 2;

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
        map: Map,
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
        loop {
            if self.next_key() {
                continue;
            }
            let Some((token, span)) = self.tokens.next()? else { break };
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

    /// Picks the field behind the last one, if its key stands next.
    fn next_key(&mut self) -> bool {
        let outermost = self.frames.len() == 1;
        let Some(Frame::Struct { fields, field, .. }) = self.frames.last_mut() else { return false };
        let next = field.wrapping_add(1);
        let found = fields.get(next).is_some_and(|field| self.tokens.expected_key(field.name));
        if found {
            *field = next;
            self.out.has_keys |= outermost;
        }
        found
    }

    /// A key: picks the field that the next value is for. An unknown field's value is passed over at once.
    fn key(&mut self, span: Span) -> Result<(), SyntaxError> {
        let outermost = self.frames.len() == 1;
        self.out.has_keys |= outermost;
        match self.frames.last_mut().expect("a key stands inside an object that has a frame") {
            Frame::Struct { fields, field, .. } => {
                let raw = span.of(self.bytes);
                let inner = &raw[1..raw.len() - 1];
                let found = if self.tokens.escaped() {
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
            Some(Frame::Map { map, key, .. }) => {
                map.written.push((*key, value));
                ENTRY_VALUES
            }
        };
        self.count(grown)
    }

    fn count(&mut self, values: usize) -> Result<(), SyntaxError> {
        self.values += values;
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
                let map = if let Value::Map(map) = old { *map } else { Map::default() };
                self.frames.push(Frame::Map { element, map, key: span });
                return Ok(());
            }
            (Token::BeginArray, Kind::List(element)) => {
                let list = if let Value::List(list) = old { *list } else { List::default() };
                self.frames.push(Frame::List { element, list, next: 0 });
                return Ok(());
            }
            (Token::BeginArray, Kind::Bytes) => {
                let list = self.bytes_as_list(old)?;
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
            Frame::Map { map, .. } => Value::Map(Box::new(map)),
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

    fn bytes_as_list(&mut self, old: Value) -> Result<List, SyntaxError> {
        Ok(match old {
            Value::List(list) => *list,
            Value::Str(span) => {
                let bytes = base64_of(span.of(self.bytes)).unwrap_or_default();
                self.count(bytes.len())?;
                let kept: Vec<_> = bytes.iter().map(|byte| Value::Int(i64::from(*byte))).collect();
                List { len: kept.len(), kept }
            }
            Value::Zero | Value::Int(_) | Value::Bool(_) | Value::Map(_) | Value::Struct(_) => {
                List::default()
            }
        })
    }
}

/// The field a key is for: the one spelled exactly so, else the first that it folds to.
pub(super) fn find(fields: &[Field], key: &[u8]) -> Option<usize> {
    let exact = fields.iter().position(|field| field.name.as_bytes() == key);
    exact.or_else(|| fields.iter().position(|field| folds_to(key, field.name)))
}

/// Go's `base64.StdEncoding`: padded, line breaks passed over, loose bits at the end ignored.
fn base64_of(raw: &[u8]) -> Option<Vec<u8>> {
    const STD: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    let text: Vec<u8> = unquote(raw).bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    if cancel::is_cancelled() {
        return None;
    }
    STD.decode(text).ok()
}
