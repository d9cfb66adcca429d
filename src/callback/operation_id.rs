//! OpenIM's tracing ID: which one of header and body counts, and which the app gets.
//!
//! OpenIM sends it in the header of every callback, and of some commands in the body too. In a real callback the two
//! can differ: the standalone program of OpenIM's main branch reads the header's ID when the request that it belongs to is
//! over, so that it may be another request's, or empty. The body's is right.

use std::borrow::Cow;

use http::header::GetAll;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::rejection::Rejection;
use super::{OPERATION_ID, OPERATION_ID_LIMIT};
use crate::go_json;
use crate::policy::OperationIds;

/// The header's name, for look-ups: a text would be parsed for each.
static NAME: HeaderName = HeaderName::from_static(OPERATION_ID);

/// OpenIM's tracing ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationId {
    /// The ID, trimmed, with each byte of invalid UTF-8 as U+FFFD. Never empty.
    pub text: String,
    /// What the app gets as its header.
    pub header: SentHeader,
}

/// What becomes of the header on its way to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentHeader {
    /// It goes on as it was received: it has the ID, and the body has the same or none.
    AsReceived,
    /// One header with the ID takes its place: what was received differs, is empty, or is not there.
    Replaced,
    /// One header with an ID that was made up takes its place: none was received.
    Generated,
}

impl OperationId {
    /// Whether the app gets another header than the one that was received.
    pub fn replaces_header(&self) -> bool {
        self.header != SentHeader::AsReceived
    }

    /// The ID of a callback. `in_body` is the raw string of the body's field, if it is one. `generate` is called only if
    /// its result is used.
    pub(super) fn of(
        headers: &HeaderMap,
        in_body: Option<&[u8]>,
        wanted: OperationIds,
        generate: impl FnOnce() -> String,
    ) -> Result<OperationId, Rejection> {
        let mut values = values(headers).iter().map(|value| trimmed(value.as_bytes()));
        let first = values.next();
        let other = values.find(|other| Some(other) != first.as_ref());
        let is_missing = first.is_none();
        let header = first.unwrap_or_default();
        let is_one = other.is_none() && !header.is_empty();
        // As OpenIM sends it.
        if is_one && in_body.is_some_and(|raw| go_json::is_text(raw, &header)) {
            return Ok(OperationId { text: header, header: SentHeader::AsReceived });
        }
        let in_body = in_body.map_or(Cow::default(), go_json::unquote);
        let in_body = in_body.trim_matches(is_http_space);
        if is_one && (in_body.is_empty() || in_body == header) {
            return Ok(OperationId { text: header, header: SentHeader::AsReceived });
        }
        if wanted != OperationIds::Report {
            // Apps differ in which of two they read.
            if let Some(other) = other {
                return Err(Rejection::operation_ids(&header, &other));
            }
            if !header.is_empty() {
                return Err(Rejection::operation_ids(&header, in_body));
            }
            if wanted == OperationIds::Require {
                return Err(match is_missing {
                    true => Rejection::OperationIdMissing,
                    false => Rejection::OperationIdEmpty,
                });
            }
        }
        let replaced = |text| Ok(OperationId { text, header: SentHeader::Replaced });
        if !in_body.is_empty() && fits_header(in_body) {
            return replaced(in_body.to_owned());
        }
        if let Some(header) = [Some(header), other].into_iter().flatten().find(|header| !header.is_empty()) {
            return replaced(header);
        }
        if wanted == OperationIds::Report && is_missing && in_body.is_empty() {
            return Err(Rejection::OperationIdMissing);
        }
        Ok(OperationId { text: generate(), header: SentHeader::Generated })
    }

    /// The header's ID of a callback that is let in unchecked, else one that is made up.
    pub(super) fn unchecked(headers: &HeaderMap, generate: impl FnOnce() -> String) -> OperationId {
        let header = headers.get(&NAME).map(|value| trimmed(value.as_bytes())).unwrap_or_default();
        if header.is_empty() {
            OperationId { text: generate(), header: SentHeader::Generated }
        } else {
            OperationId { text: header, header: SentHeader::AsReceived }
        }
    }

    /// What the received header has in place of the ID, empty included; the first of several. `None` if it has the ID, is
    /// not there, or no ID was received at all.
    pub(super) fn header_beside(&self, headers: &HeaderMap) -> Option<String> {
        if self.header != SentHeader::Replaced {
            return None;
        }
        values(headers).iter().map(|value| trimmed(value.as_bytes())).find(|header| *header != self.text)
    }
}

fn values(headers: &HeaderMap) -> GetAll<'_, HeaderValue> {
    headers.get_all(&NAME)
}

/// Whether the app can get an ID of the body as its header: a body may hold line breaks, and what follows them.
fn fits_header(id: &str) -> bool {
    id.len() <= OPERATION_ID_LIMIT && HeaderValue::from_bytes(id.as_bytes()).is_ok()
}

/// Go trims a header's value over HTTP/1.1 and sends it as it is over HTTP/2; the body is never trimmed.
fn trimmed(value: &[u8]) -> String {
    go_json::lossy(value).trim_matches(is_http_space).to_owned()
}

fn is_http_space(letter: char) -> bool {
    letter == ' ' || letter == '\t'
}
