//! The head of an app's answer, how its body is framed and packed: read alike whole and in pieces, and once normalized it
//! stays so.
//!
//! A target of `crate::fuzz`. It is here because what it calls is private to this module.
//!
//! Input: a byte for the size of the pieces, then the answer as the app writes it.

use bytes::{Bytes, BytesMut};

use super::framing::{CHUNK_LINE, Chunks, Framing, HEADERS_LIMIT, Head, NoHead, parse_head, unpack};
use crate::held::{Accounts, Held, Identity};
use crate::wire;

/// Most bytes of an unpacked body in here.
const LIMIT: usize = 64 << 10;

pub(crate) fn run(input: &[u8]) {
    let Some((pieces, answer)) = input.split_first() else { return };
    let pieces = usize::from(*pieces);
    let (length, mut head) = match parse_head(answer) {
        Ok(Some(found)) => found,
        Ok(None) => return,
        Err(NoHead::NotHttp(why)) => return assert!(!why.is_empty()),
        Err(_) => panic!("bytes alone say nothing of a stream: {}", shown(answer)),
    };
    assert!(length <= answer.len());
    for cut in [0, 1, length / 2, pieces, length - 1] {
        let part = &answer[..cut.min(length - 1)];
        assert!(matches!(parse_head(part), Ok(None)), "{} of {}", part.len(), shown(answer));
    }
    passed_on(&head, &answer[..length]);
    let Some(body) = body(&head, &answer[length..], pieces + 1) else { return };
    assert!(body.len() <= answer.len() - length);
    let accounts = Accounts::new(Held::new(8 * LIMIT), 1);
    let account = accounts.open(Identity::of(std::net::Ipv4Addr::LOCALHOST.into(), None));
    let mut share = account.nothing(None).nothing_for_answer();
    let Ok((unpacked, _)) = unpack(&mut head.headers, body, LIMIT, &mut share) else { return };
    assert!(unpacked.len() <= LIMIT.max(answer.len()));
    let (again, findings) = match unpack(&mut head.headers, unpacked.clone(), LIMIT, &mut share) {
        Ok(again) => again,
        Err(_) => panic!("unpacked, and then it cannot be unpacked: {}", shown(answer)),
    };
    assert_eq!(again, unpacked);
    assert!(findings.is_empty(), "it was unpacked twice: {}", shown(answer));
}

/// What travels on of a head is of the answer and not of the connection; a head of that alone is read the same.
fn passed_on(head: &Head, text: &[u8]) {
    assert!(head.headers.len() <= HEADERS_LIMIT);
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut parsed = httparse::Response::new(&mut slots);
    parsed.parse(text).expect("it was parsed");
    let values = |name: &str| {
        let named = parsed.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect::<Vec<_>>()
    };
    let options = values("connection").join(&b',').to_ascii_lowercase();
    let options: Vec<_> = options.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).collect();
    let mut again = format!("HTTP/1.1 {}\r\n", head.status.as_str()).into_bytes();
    for (name, value) in &head.headers {
        assert!(!wire::stays_behind(name), "{name}: {}", shown(text));
        let is_named = options.contains(&name.as_str().as_bytes());
        assert!(!is_named || ["close", "keep-alive"].contains(&name.as_str()), "{name}: {}", shown(text));
        again.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    again.extend_from_slice(b"\r\n");
    match parse_head(&again) {
        Ok(Some((length, second))) => {
            assert_eq!((length, second.status), (again.len(), head.status));
            assert_eq!(second.headers, head.headers, "{}", shown(text));
        }
        _ => panic!("normalized, and then no head: {}", shown(&again)),
    }
    if options.contains(&&b"close"[..]) {
        assert!(
            !head.keep_alive || !options.contains(&&b"keep-alive"[..]) || parsed.version == Some(0),
            "{}",
            shown(text)
        );
        assert!(!head.keep_alive || parsed.version == Some(0), "{}", shown(text));
    }
    let both = !values("transfer-encoding").is_empty() && !values("content-length").is_empty();
    assert!(!both || !head.keep_alive || head.framing == Framing::Length(0), "smuggled: {}", shown(text));
}

/// The body, if all of it is there.
fn body(head: &Head, rest: &[u8], piece: usize) -> Option<Bytes> {
    match head.framing {
        Framing::Length(length) => rest.get(..length).map(Bytes::copy_from_slice),
        Framing::UntilEnd => Some(Bytes::copy_from_slice(rest)),
        Framing::Chunked => {
            let whole = chunked(rest, rest.len().max(1));
            if rest.len() <= CHUNK_LINE {
                assert_eq!(chunked(rest, piece), whole, "in pieces of {piece}: {}", shown(rest));
            }
            let (body, behind) = whole.ok().flatten()?;
            if let Some(strict) = strictly(rest) {
                assert_eq!((&body[..], behind), (&strict.0[..], strict.1), "{}", shown(rest));
            }
            Some(body.into())
        }
    }
}

/// What a body in chunks comes to when its bytes arrive in pieces of this size, and how many bytes are behind it.
fn chunked(bytes: &[u8], piece: usize) -> Result<Option<(Vec<u8>, usize)>, ()> {
    let (mut chunks, mut buffer, mut body) = (Chunks::Size, BytesMut::new(), Vec::new());
    let mut fed = 0;
    for part in bytes.chunks(piece) {
        buffer.extend_from_slice(part);
        fed += part.len();
        if chunks.take(&mut buffer, &mut body).map_err(|_| ())? {
            return Ok(Some((body, bytes.len() - fed + buffer.len())));
        }
    }
    Ok(None)
}

/// The same by a stricter reader, for what that reader takes.
fn strictly(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut rest, mut body) = (bytes, Vec::new());
    loop {
        let Ok(httparse::Status::Complete((digits, size))) = httparse::parse_chunk_size(rest) else {
            return None;
        };
        rest = &rest[digits..];
        let size = usize::try_from(size).ok()?;
        if size == 0 {
            return rest.strip_prefix(b"\r\n").map(|behind| (body, behind.len()));
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
}

fn shown(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
