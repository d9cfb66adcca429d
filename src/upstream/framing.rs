//! What HTTP/1 asks of a client: the head of an answer, and where its body ends.

use std::io::{self, BufRead, Read};
use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::outcome::Failure;
use crate::cancel;
use crate::held::Holding;
use crate::verdict::{Finding, Findings, Invalid};
use crate::wire;

/// Most headers of an answer.
pub(super) const HEADERS_LIMIT: usize = 128;

/// Why an answer did not begin.
pub(super) enum NoHead {
    /// The end of the stream, and not a byte before it.
    Ended,
    /// A reset, and not a byte before it.
    Reset(io::Error),
    /// The end or a reset in the middle.
    Cut,
    NotHttp(String),
}

/// The head of an answer.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    pub(super) keep_alive: bool,
}

/// How the end of a body is known (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(usize),
    Chunked,
    UntilEnd,
}

pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Head)>, NoHead> {
    let mut slots = [const { MaybeUninit::uninit() }; HEADERS_LIMIT];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, bytes, &mut slots)
        .map_err(|error| NoHead::NotHttp(error.to_string()))?;
    let httparse::Status::Complete(length) = status else { return Ok(None) };
    let not_http = |what: &str| NoHead::NotHttp(what.to_owned());
    let code =
        parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| not_http("no status"))?;
    let fields = &*parsed.headers;
    let tokens = || {
        let tokens = named(fields, "connection").flat_map(|value| value.split(|byte| *byte == b','));
        tokens.map(<[u8]>::trim_ascii)
    };
    if tokens().count() > wire::CONNECTION_OPTIONS_LIMIT {
        return Err(not_http("more options in Connection than are taken"));
    }
    let says = |token: &str| tokens().any(|found| found.eq_ignore_ascii_case(token.as_bytes()));
    let names_headers = tokens()
        .any(|token| !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive"));
    let newer = parsed.version == Some(1);
    let mut keep_alive = if newer { !says("close") } else { says("keep-alive") };
    let framing = framing(code, fields, &mut keep_alive)?;
    // Room for those that our answer adds: a map that grows is made twice.
    let mut headers = HeaderMap::with_capacity(fields.len().max(wire::ANSWER_FIELDS));
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| not_http("a header's name"))?;
        if wire::stays_behind(&name) || (names_headers && says(field.name)) {
            continue;
        }
        let value = HeaderValue::from_bytes(field.value).map_err(|_| not_http("a header's value"))?;
        headers.append(name, value);
    }
    Ok(Some((length, Head { status: code, headers, framing, keep_alive })))
}

/// The values of a header, in their order.
fn named<'h>(fields: &'h [httparse::Header<'h>], name: &'h str) -> impl Iterator<Item = &'h [u8]> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

fn framing(
    status: StatusCode,
    fields: &[httparse::Header<'_>],
    keep_alive: &mut bool,
) -> Result<Framing, NoHead> {
    if status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    let mut codings = named(fields, "transfer-encoding").peekable();
    let mut lengths = named(fields, "content-length").peekable();
    if codings.peek().is_some() {
        // Both at once is how answers are smuggled; the length is passed over, and the connection not used again.
        *keep_alive &= lengths.peek().is_none();
        let only_chunked = codings.all(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
        return if only_chunked {
            Ok(Framing::Chunked)
        } else {
            Err(NoHead::NotHttp("a transfer-encoding other than chunked".to_owned()))
        };
    }
    let mut length = None;
    for part in lengths.flat_map(|value| value.split(|byte| *byte == b',')) {
        let digits = std::str::from_utf8(part.trim_ascii()).unwrap_or_default();
        let found =
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<usize>().ok()).flatten();
        match (found, length) {
            (Some(found), None) => length = Some(found),
            (Some(found), Some(before)) if found == before => {}
            _ => return Err(NoHead::NotHttp("content-length is no number, or there are two".to_owned())),
        }
    }
    Ok(length.map_or(Framing::UntilEnd, Framing::Length))
}

/// Where in a chunked body the reader is (RFC 9112, section 7.1). It takes what Go's client takes (net/http/internal/chunked.go
/// of Go 1.26): a line of a size, and the end of a chunk, are ended by CR LF and have no other CR.
pub(super) enum Chunks {
    Size,
    Data(usize),
    DataEnd,
    /// Behind the last chunk, so many trailer fields in.
    Trailer(usize),
}

/// Longest line between chunks: a size with its extensions, or a trailer field.
pub(super) const CHUNK_LINE: usize = 4096;

impl Chunks {
    /// Moves what is there to the body; true behind the last chunk.
    pub(super) fn take(&mut self, buffer: &mut BytesMut, body: &mut Vec<u8>) -> Result<bool, String> {
        loop {
            match self {
                Chunks::Data(0) => *self = Chunks::DataEnd,
                Chunks::Data(left) => {
                    let count = (*left).min(buffer.len());
                    if count == 0 {
                        return Ok(false);
                    }
                    body.extend_from_slice(&buffer[..count]);
                    buffer.advance(count);
                    *left -= count;
                }
                Chunks::Size | Chunks::DataEnd | Chunks::Trailer(_) => {
                    let Some(end) = buffer.iter().position(|byte| *byte == b'\n') else {
                        let long = buffer.len() > CHUNK_LINE;
                        return if long {
                            Err("an endless line between chunks".to_owned())
                        } else {
                            Ok(false)
                        };
                    };
                    let line = buffer.split_to(end + 1);
                    match self {
                        Chunks::DataEnd if line == "\r\n" => *self = Chunks::Size,
                        Chunks::DataEnd => return Err("a chunk longer than its size".to_owned()),
                        Chunks::Trailer(_) if line == "\r\n" || line == "\n" => return Ok(true),
                        Chunks::Trailer(HEADERS_LIMIT) => return Err("endless trailers".to_owned()),
                        Chunks::Trailer(fields) => *fields += 1,
                        Chunks::Size | Chunks::Data(_) => {
                            let size = chunk_size(&line);
                            *self = match size.ok_or("a chunk size that is none")? {
                                0 => Chunks::Trailer(0),
                                size => Chunks::Data(size),
                            };
                        }
                    }
                }
            }
        }
    }
}

/// The size in a line that ends with LF: hexadecimal digits, then perhaps an extension, which says nothing to anybody here.
fn chunk_size(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r'))?;
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    // A blank may stand at the end of the line, and not before an extension.
    let blanks = digits.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let digits = if digits.len() == line.len() { &digits[..digits.len() - blanks] } else { digits };
    let size = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+') && text.len() <= 16)?;
    usize::from_str_radix(size, 16).ok()
}

/// Unpacks gzip, as Go's client would, and takes the header away; any other coding is one OpenIM cannot read. What is unpacked
/// counts among the bytes held while it grows, and beside what is packed.
pub(super) fn unpack(
    headers: &mut HeaderMap,
    body: Bytes,
    limit: usize,
    holding: &mut Holding,
) -> Result<(Bytes, Findings), Failure> {
    let Some(coding) = headers.get(header::CONTENT_ENCODING) else { return Ok((body, Findings::default())) };
    let coding = coding.as_bytes().trim_ascii().to_ascii_lowercase();
    match &coding[..] {
        b"" | b"identity" => Ok((body, Findings::default())),
        b"gzip" | b"x-gzip" => {
            let unpacked = gunzip(&body, limit, holding)?;
            headers.remove(header::CONTENT_ENCODING);
            Ok((unpacked.into(), [Finding::Compressed].into_iter().collect()))
        }
        other => Err(Failure::Invalid(Invalid::Encoding(
            String::from_utf8_lossy(other).chars().take(32).collect(),
        ))),
    }
}

fn gunzip(packed: &[u8], limit: usize, holding: &mut Holding) -> Result<Vec<u8>, Failure> {
    let mut unpacked = Vec::new();
    let mut reader = flate2::bufread::MultiGzDecoder::new(InStrides(packed));
    loop {
        let length = unpacked.len();
        if length == unpacked.capacity() {
            // One byte above the limit, to see whether there is one.
            let capacity = (2 * length).clamp(cancel::STRIDE, limit.max(cancel::STRIDE) + 1);
            holding.grow_to(packed.len() + capacity).map_err(Failure::Overloaded)?;
            unpacked.reserve_exact(capacity - length);
        }
        unpacked.resize(unpacked.capacity().min(length + cancel::STRIDE), 0);
        let read = reader.read(&mut unpacked[length..]).map_err(|_| Failure::Invalid(Invalid::Gzip))?;
        unpacked.truncate(length + read);
        if read == 0 {
            return Ok(unpacked);
        }
        if unpacked.len() > limit {
            return Err(Failure::Invalid(Invalid::TooLarge { limit }));
        }
    }
}

/// Bytes that are read a stride at a time, and not to their end if the work is cancelled: 8 MiB of empty members are
/// read in one call, and unpack to nothing.
struct InStrides<'b>(&'b [u8]);

impl BufRead for InStrides<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if cancel::is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        // A byte packed may be a thousand unpacked.
        Ok(&self.0[..self.0.len().min(cancel::STRIDE / 16)])
    }

    fn consume(&mut self, count: usize) {
        self.0 = &self.0[count..];
    }
}

impl Read for InStrides<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(to)?;
        self.consume(count);
        Ok(count)
    }
}
