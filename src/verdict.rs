//! What OpenIM would make of an app's answer, and what is corrected so that it makes of it what the app meant.
//!
//! OpenIM refuses exactly where `actionCode` is 0 and `nextCode` is 1 (`CommonCallbackResp.Parse` in its
//! `pkg/callbackstruct/common.go`), fails on anything its JSON decoder fails on, and goes on in every other case:
//! also where the app meant a refusal. [`openim`] tells which. [`read`] is what the guard makes of the same bytes: where
//! the app's meaning is plain and only the spelling is one OpenIM cannot read, the spelling is corrected in place and
//! every other byte stays; where it is not plain, the answer is none, and the policy's fallback is given.
//!
//! [`FINDINGS`] is the table of what is corrected or noticed; the documentation is generated from it.

use std::borrow::Cow;

use crate::callback::Callback;
use crate::callback::command::{self, Command, SafeDefault};
use crate::go_json::{self, Decoded, Field, Kind, Span, SyntaxError, Token, TypeError, Value};
use crate::policy::CrashingFields;

pub use crashing::crashing_fields;
pub use findings::{FINDINGS, Finding, FindingRow, Findings};

mod crashing;
mod findings;

/// Deny codes below this do not reach the user as they are: OpenIM turns 0 into a success and 1 to 99, which are
/// gRPC's own, into a server error.
pub const SMALLEST_DENY_CODE: i32 = 100;

/// What the app decided, as OpenIM will read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// OpenIM goes on.
    Allow,
    /// OpenIM refuses, and the user sees this `errCode`.
    Deny {
        /// At least [`SMALLEST_DENY_CODE`] in everything the guard writes.
        code: i32,
    },
}

/// An answer that holds a verdict.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The verdict.
    pub verdict: Verdict,
    /// The answer to pass on: the app's own bytes, unless something was corrected.
    pub body: Cow<'a, [u8]>,
    /// What was corrected or noticed.
    pub findings: Findings,
    /// The fields that are left out, because OpenIM may end on them.
    pub left_out: Vec<&'static str>,
}

/// An answer that holds none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// OpenIM could not parse it, or would choke on it.
    Invalid(Invalid),
    /// `actionCode` is not 0.
    RefusedByApp {
        /// What it is.
        action_code: i32,
    },
}

/// Why an answer is none. The texts hold field names and types, never content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Syntax(#[from] SyntaxError),
    /// JSON of a wrong type.
    #[error("{field} is of the wrong type: expected {}", expected.json_type())]
    Type {
        /// The field, or what stands for it.
        field: &'static str,
        /// What OpenIM decodes there.
        expected: Kind,
    },
    /// A list of structs with a `null` in it, which OpenIM dereferences.
    #[error("{field} has a null element, on which OpenIM panics")]
    NullElement {
        /// The list.
        field: &'static str,
    },
    /// A member without its ID, which OpenIM dereferences.
    #[error("an element of {field} has no userID, on which OpenIM panics")]
    NoUserId {
        /// The list.
        field: &'static str,
    },
    /// MsgModify's `content` must itself be JSON text of an object.
    #[error("content is not the text of a JSON object, which OpenIM refuses")]
    Content,
    /// A field that OpenIM copies into a nil pointer.
    #[error("{field} is set, which the request had as null: OpenIM panics")]
    NotInRequest {
        /// The field.
        field: &'static str,
    },
    /// A body larger than `--max-answer-size`.
    #[error("larger than {limit} bytes (--max-answer-size)")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Compressed in a way OpenIM does not ask for.
    #[error("content-encoding {0:?}: only gzip is read")]
    Encoding(String),
    /// Said to be gzip, and is not.
    #[error("content-encoding gzip, and the body is not")]
    Gzip,
}

/// What OpenIM, left alone with an answer, would conclude.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// It goes on.
    Allowed,
    /// It refuses with this `errCode`, whatever the user then sees of it.
    Denied {
        /// The code, as the app wrote it.
        code: i32,
    },
    /// Error 90007: the operation fails.
    DataError(Invalid),
    /// The answer is parsed, and the operation fails when it is applied.
    Fails(Invalid),
}

/// Reads an answer as OpenIM would, with nothing corrected.
pub fn openim(answer: &[u8], callback: &Callback) -> Conclusion {
    let fields = response_fields(callback.command());
    let decoded = match go_json::decode(answer, fields) {
        Ok(decoded) => decoded,
        Err(error) => return Conclusion::DataError(error.into()),
    };
    if let Some(error) = decoded.errors.first() {
        return Conclusion::DataError(type_error(fields, error));
    }
    let codes = Codes::of(&decoded, fields);
    if codes.action == 0 && codes.next == 1 {
        return Conclusion::Denied { code: codes.error };
    }
    if let Err(invalid) = chokes(answer, &decoded, fields, callback) {
        return Conclusion::Fails(invalid);
    }
    let mut crashing = crashing::set(&decoded, fields, callback).into_iter().map(|at| fields[at].name);
    match crashing.find(|name| crashing::is_certain(name)) {
        Some(field) => Conclusion::Fails(Invalid::NotInRequest { field }),
        None => Conclusion::Allowed,
    }
}

/// Reads an answer, correcting what is plain. `deny_code` takes the place of a refusal's code that would not
/// reach the user; `crashing_fields` says what becomes of fields that OpenIM may end on.
pub fn read<'a>(
    answer: &'a [u8],
    callback: &Callback,
    deny_code: i32,
    crashing_fields: CrashingFields,
) -> Result<Reading<'a>, Unusable> {
    let fields = response_fields(callback.command());
    let mut findings = Findings::default();
    let mut body = Cow::Borrowed(answer);
    if let Some(rest) = answer.strip_prefix(b"\xef\xbb\xbf") {
        findings.add(Finding::ByteOrderMark);
        body = Cow::Borrowed(rest);
    }
    let mut decoded = decode(&body, fields)?;
    if let Some(edits) = plain_codes(&body, &decoded, fields, &mut findings)? {
        body = Cow::Owned(edits.applied(&body, &decoded));
        decoded = decode(&body, fields)?;
    }
    if let Some(error) = decoded.errors.first() {
        return Err(Unusable::Invalid(type_error(fields, error)));
    }
    let codes = Codes::of(&decoded, fields);
    if codes.action != 0 {
        return Err(Unusable::RefusedByApp { action_code: codes.action });
    }
    if !Codes::any(&decoded) {
        findings.add(Finding::NoKnownField);
    }
    let mut edits = Edits::default();
    let mut crashing = Vec::new();
    let verdict = if codes.next == 1 {
        let code = if codes.error < SMALLEST_DENY_CODE {
            findings.add(Finding::DenyCodeTooSmall);
            edits.set(&decoded, fields, "errCode", deny_code.to_string().into_bytes());
            deny_code
        } else {
            codes.error
        };
        Verdict::Deny { code }
    } else {
        if codes.next != 0 {
            findings.add(Finding::UnknownNextCode);
        }
        if codes.error != 0 {
            findings.add(Finding::ErrorCodeWithoutRefusal);
        }
        chokes(&body, &decoded, fields, callback).map_err(Unusable::Invalid)?;
        crashing = crashing::set(&decoded, fields, callback);
        complete(&body, &decoded, fields, callback, &mut edits);
        if !edits.is_empty() {
            findings.add(Finding::FieldsLeftOut);
        }
        Verdict::Allow
    };
    if !edits.is_empty() {
        body = Cow::Owned(edits.applied(&body, &decoded));
    }
    let mut left_out = Vec::new();
    if !crashing.is_empty() && crashing_fields == CrashingFields::Pass {
        findings.add(Finding::MayCrash);
    } else if !crashing.is_empty() {
        findings.add(Finding::CrashPrevented);
        let without = go_json::without(&body, fields, &crashing);
        body = Cow::Owned(without.map_err(|error| Unusable::Invalid(error.into()))?);
        left_out.extend(crashing.iter().map(|at| fields[*at].name));
    }
    Ok(Reading { verdict, body, findings, left_out })
}

/// The body of an allow that changes nothing for this callback, as section "safe default" of the catalogue has it.
pub fn allow_body(callback: Option<&Callback>) -> Cow<'static, [u8]> {
    const PLAIN: &[u8] = br#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;
    let Some(callback) = callback else { return Cow::Borrowed(PLAIN) };
    let Some(Command { default: SafeDefault::Echo(names), .. }) = callback.command() else {
        return Cow::Borrowed(PLAIN);
    };
    let mut body = PLAIN[..PLAIN.len() - 1].to_vec();
    for name in *names {
        if let Some(value) = callback.value(name) {
            body.extend_from_slice(format!(",\"{name}\":").as_bytes());
            body.extend_from_slice(value);
        }
    }
    body.push(b'}');
    Cow::Owned(body)
}

/// The body of a refusal.
pub fn deny_body(code: i32, message: &str, detail: &str) -> Vec<u8> {
    let [message, detail] =
        [message, detail].map(|text| serde_json::to_string(text).expect("a str always becomes JSON"));
    format!(r#"{{"actionCode":0,"errCode":{code},"errMsg":{message},"errDlt":{detail},"nextCode":1}}"#)
        .into_bytes()
}

fn response_fields(command: Option<&'static Command>) -> &'static [Field] {
    command.map_or(command::COMMON_RESPONSE, |command| command.response)
}

fn decode(body: &[u8], fields: &'static [Field]) -> Result<Decoded, Unusable> {
    go_json::decode(body, fields).map_err(|error| Unusable::Invalid(error.into()))
}

fn type_error(fields: &[Field], error: &TypeError) -> Invalid {
    let field =
        error.top_field.map_or("the answer, or something inside one of its fields,", |at| fields[at].name);
    Invalid::Type { field, expected: error.expected }
}

fn index_of(fields: &[Field], name: &str) -> Option<usize> {
    fields.iter().position(|field| field.name == name)
}

const CODES: [&str; 3] = ["actionCode", "errCode", "nextCode"];

struct Codes {
    action: i32,
    error: i32,
    next: i32,
}

impl Codes {
    fn of(decoded: &Decoded, fields: &[Field]) -> Codes {
        // `build.rs` sees to it that every response begins with the five common fields, in this order.
        debug_assert_eq!(fields[..COMMON], *command::COMMON_RESPONSE);
        let code =
            |at| i32::try_from(decoded.root.field(at).int()).expect("the table's type for a code is int32");
        Codes { action: code(0), error: code(1), next: code(4) }
    }

    /// Whether the answer has any of the five common fields.
    fn any(decoded: &Decoded) -> bool {
        decoded.last[..COMMON].iter().any(Option::is_some)
    }
}

/// How many fields every response has.
const COMMON: usize = 5;

/// The edits that make numbers of the codes which are plain numbers in another spelling. `None` where every type
/// is right; an error where one is wrong and not plain.
fn plain_codes(
    body: &[u8],
    decoded: &Decoded,
    fields: &[Field],
    findings: &mut Findings,
) -> Result<Option<Edits>, Unusable> {
    if decoded.error_count == 0 {
        return Ok(None);
    }
    let mut edits = Edits::default();
    for error in &decoded.errors {
        let code = error.top_field.filter(|at| CODES.contains(&fields[*at].name));
        let raw = error.span.of(body);
        let plain = code.and_then(|_| {
            if error.found == Token::Str {
                string_code(raw).map(|code| (Finding::CodeAsString, code))
            } else if error.found == Token::Number {
                float_code(raw).map(|code| (Finding::CodeAsFloat, code))
            } else {
                None
            }
        });
        let Some((finding, code)) = plain else {
            return Err(Unusable::Invalid(type_error(fields, error)));
        };
        findings.add(finding);
        edits.replace.push((error.span, code.to_string().into_bytes()));
    }
    // More errors than are kept with their place: nobody means that.
    if decoded.error_count > decoded.errors.len() {
        return Err(Unusable::Invalid(type_error(fields, &decoded.errors[0])));
    }
    Ok(Some(edits))
}

fn string_code(raw: &[u8]) -> Option<i32> {
    let text = go_json::unquote(raw);
    if text.is_empty() {
        return Some(0);
    }
    // Rust's parser takes a plus sign, which nobody's JSON library writes.
    if text.starts_with('+') { None } else { text.parse().ok() }
}

fn float_code(raw: &[u8]) -> Option<i32> {
    let number: f64 = std::str::from_utf8(raw).ok()?.parse().ok()?;
    let whole = number.fract() == 0.0 && (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number);
    whole.then_some(number as i32)
}

/// What OpenIM's own code, behind a successful parse, would fail or panic on, and what cannot be left out.
fn chokes(body: &[u8], decoded: &Decoded, fields: &[Field], callback: &Callback) -> Result<(), Invalid> {
    let value = |name: &str| index_of(fields, name).map_or(&Value::Zero, |at| decoded.root.field(at));
    let Some(command) = callback.command() else { return Ok(()) };
    match command.name {
        "callbackBeforeMsgModifyCommand" => {
            if let Value::Str(span) = value("content")
                && !is_object_text(&go_json::unquote(span.of(body)))
            {
                return Err(Invalid::Content);
            }
        }
        "callbackBeforeMembersJoinGroupCommand" => {
            members("memberCallbackList", value("memberCallbackList"), true, fields)?;
        }
        "callbackBeforeUserRegisterCommand" => members("users", value("users"), false, fields)?,
        _ => {}
    }
    Ok(())
}

fn members(field: &'static str, list: &Value, need_user_id: bool, fields: &[Field]) -> Result<(), Invalid> {
    let Value::List(list) = list else { return Ok(()) };
    let element = index_of(fields, field).map(|at| fields[at].ty.kind);
    let Some(Kind::List(go_json::Type { kind: Kind::Struct(inner), .. })) = element else { return Ok(()) };
    let user_id = index_of(inner, "userID");
    for element in list.elements() {
        if *element == Value::Zero {
            return Err(Invalid::NullElement { field });
        }
        if need_user_id && user_id.is_some_and(|at| *element.field(at) == Value::Zero) {
            return Err(Invalid::NoUserId { field });
        }
    }
    Ok(())
}

/// OpenIM unmarshals `content` into a map: an object passes, and so does `null`.
fn is_object_text(text: &str) -> bool {
    let mut tokens = go_json::Tokens::new(text.as_bytes());
    let first = match tokens.next() {
        Ok(Some((first, _))) => first,
        Ok(None) | Err(_) => return false,
    };
    if !matches!(first, Token::BeginObject | Token::Null) {
        return false;
    }
    loop {
        match tokens.next() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Fills an allow of the SetGroupInfo commands with the request's fields that it leaves out: absent or null. An
/// app that fills in OpenIM's own Go struct sends empty strings instead: where even the group's ID is empty, no
/// field was meant, and the empty ones are filled too.
fn complete(body: &[u8], decoded: &Decoded, fields: &[Field], callback: &Callback, edits: &mut Edits) {
    let Some(Command { default: SafeDefault::Echo(names), .. }) = callback.command() else { return };
    let empty = |at: usize| match decoded.root.field(at) {
        Value::Zero => true,
        Value::Str(span) => span.of(body) == b"\"\"",
        Value::Int(_) | Value::Bool(_) | Value::List(_) | Value::Map(_) | Value::Struct(_) => false,
    };
    let nothing_meant = index_of(fields, "groupID").is_none_or(empty);
    for name in *names {
        let (Some(at), Some(wanted)) = (index_of(fields, name), callback.value(name)) else { continue };
        let absent = *decoded.root.field(at) == Value::Zero;
        let left_out = absent || (nothing_meant && empty(at));
        // An empty text is what OpenIM reads anyway, but for an absent pointer: that is "leave it as it is", where the
        // request says "make it empty".
        let same = wanted == b"\"\"" && !(absent && fields[at].ty.nillable);
        if left_out && !same {
            edits.set(decoded, fields, name, wanted.to_vec());
        }
    }
}

/// Changes to an answer's bytes: everything else stays as it is, spelling, order and unknown fields.
#[derive(Default)]
struct Edits {
    replace: Vec<(Span, Vec<u8>)>,
    append: Vec<(&'static str, Vec<u8>)>,
}

impl Edits {
    fn is_empty(&self) -> bool {
        self.replace.is_empty() && self.append.is_empty()
    }

    /// Gives a field of the outermost object a value: in the place of its last one, which is the one that counts,
    /// or at the end.
    fn set(&mut self, decoded: &Decoded, fields: &[Field], name: &'static str, value: Vec<u8>) {
        match index_of(fields, name).and_then(|at| decoded.last[at]) {
            Some(span) => self.replace.push((span, value)),
            None => self.append.push((name, value)),
        }
    }

    fn applied(mut self, body: &[u8], decoded: &Decoded) -> Vec<u8> {
        self.replace.sort_by_key(|(span, _)| span.start);
        let extra: usize = self.replace.iter().map(|(_, new)| new.len()).sum();
        let more: usize = self.append.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let mut out = Vec::with_capacity(body.len() + extra + more + 2);
        let mut from = 0;
        for (span, new) in &self.replace {
            out.extend_from_slice(&body[from..span.start as usize]);
            out.extend_from_slice(new);
            from = span.end as usize;
        }
        if self.append.is_empty() {
            out.extend_from_slice(&body[from..]);
            return out;
        }
        // The answer `null` is an allow too, and has no braces to write between.
        let (end, mut first) =
            if decoded.end > 0 { (decoded.end, !decoded.has_keys) } else { (body.len(), true) };
        if decoded.end == 0 {
            out.clear();
            out.push(b'{');
        } else {
            out.extend_from_slice(&body[from..end]);
        }
        for (name, value) in &self.append {
            out.extend_from_slice(if first { b"\"" } else { b",\"" });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value);
            first = false;
        }
        if decoded.end == 0 {
            out.push(b'}');
        } else {
            out.extend_from_slice(&body[end..]);
        }
        out
    }
}

#[cfg(test)]
mod tests;
