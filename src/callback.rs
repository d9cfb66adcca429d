//! A callback of OpenIM: a request that was read whole and found to be what it claims to be.
//!
//! [`Callback::parse`] is the only door in. Behind it nothing is left to check: there is one command, named alike by
//! the URL and the body, an operation ID, and a JSON object, kept byte for byte as it was received.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, request};

use crate::go_json::{self, Field, Kind, Span, Token, Tokens, Type};
use crate::policy::{FieldTypes, UnknownCommands, Validation};
use command::{Command, Watched};
use operation_id::OperationId;
use rejection::Rejection;
use subject::Subject;
use target::Target;

pub mod command;
pub mod operation_id;
pub mod order;
pub mod rejection;
pub mod subject;
pub mod target;

/// The header of OpenIM's tracing ID, as every HTTP library compares it.
pub const OPERATION_ID: &str = "operationid";

/// Longest operation ID, bytes: OpenIM joins up to 500 of them for one push, and this is twice as much.
pub const OPERATION_ID_LIMIT: usize = 64 << 10;

/// Longest part of an operation ID that is shown in a log or in a text. OpenIM joins up to 500 of them.
pub const SHOWN_OPERATION_ID: usize = 128;

/// A request whose body was read whole, within its limits. Nothing else is known of it.
#[derive(Clone, Debug)]
pub struct RawRequest {
    /// Method, target and headers.
    pub head: request::Parts,
    /// The body, as received.
    pub body: Bytes,
}

/// A checked callback. A clone shares the body.
#[derive(Clone, Debug)]
pub struct Callback {
    raw: RawRequest,
    target: Target,
    command: Option<&'static Command>,
    operation_id: OperationId,
    /// The value of each field of the command's table, where the body has it.
    values: Vec<Option<(Token, Span)>>,
    wrong_type: Option<WrongType>,
    allow: Option<Bytes>,
}

/// The first known field that holds another type than the catalogue's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongType {
    /// The field's name.
    pub field: &'static str,
    /// What it should hold.
    pub expected: Kind,
    /// What it holds.
    pub found: Token,
}

impl Callback {
    /// Checks a request, in the order of the documentation's table; the first check that fails is the result.
    ///
    /// A rejected request comes back with the rejection, for a policy that only observes.
    /// `generate` makes an operation ID where the policy asks for one; it is called at most once.
    #[allow(clippy::result_large_err, reason = "the request comes back whole: a move, and no allocation")]
    pub fn parse(
        raw: RawRequest,
        validation: &Validation,
        generate: impl FnOnce() -> String,
    ) -> Result<Callback, (RawRequest, Rejection)> {
        let named = Named::of(&raw.head.uri);
        Callback::parse_named(raw, named, validation, generate)
    }

    /// As [`Callback::parse`], for a request whose target was read already.
    #[allow(clippy::result_large_err, reason = "the request comes back whole: a move, and no allocation")]
    pub fn parse_named(
        raw: RawRequest,
        named: Result<Named, Rejection>,
        validation: &Validation,
        generate: impl FnOnce() -> String,
    ) -> Result<Callback, (RawRequest, Rejection)> {
        match Checked::of(&raw, named, validation, generate) {
            Ok(Checked { target, command, operation_id, body }) => Ok(Callback {
                raw,
                target,
                command,
                operation_id,
                values: body.values,
                wrong_type: body.wrong_type,
                allow: None,
            }),
            Err(rejection) => Err((raw, rejection)),
        }
    }

    /// Lets a rejected request through unchecked, for a policy that only observes. Whatever can be known of it is.
    pub fn unchecked(raw: RawRequest, generate: impl FnOnce() -> String) -> Callback {
        let target = Target::parse(&raw.head.uri).unwrap_or_else(|_| Target::none());
        let command = command::lookup(target.name());
        let body = Body::walk(&raw.body, command).unwrap_or_else(|_| Body::empty(command));
        let operation_id = OperationId::unchecked(&raw.head.headers, generate);
        Callback {
            raw,
            target,
            command,
            operation_id,
            values: body.values,
            wrong_type: body.wrong_type,
            allow: None,
        }
    }

    /// Keeps the body of an allow of this callback, so that none has to be made when its deadline has come.
    pub fn keep_allow(&mut self, body: Bytes) {
        self.allow = Some(body);
    }

    /// The body of an allow of this callback, if it was made before.
    pub fn kept_allow(&self) -> Option<&Bytes> {
        self.allow.as_ref()
    }

    /// The body, byte for byte as received.
    pub fn body(&self) -> &Bytes {
        &self.raw.body
    }

    /// The head as received.
    pub fn head(&self) -> &request::Parts {
        &self.raw.head
    }

    /// The headers as received.
    pub fn headers(&self) -> &HeaderMap {
        &self.raw.head.headers
    }

    /// The request target as received.
    pub fn uri(&self) -> &Uri {
        &self.raw.head.uri
    }

    /// The command and where in the target it was named.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The table's entry, if the command is in it.
    pub fn command(&self) -> Option<&'static Command> {
        self.command
    }

    /// The tracing ID.
    pub fn operation_id(&self) -> &OperationId {
        &self.operation_id
    }

    /// What the header as received has in place of the tracing ID, trimmed, empty included; `None` if it agrees.
    pub fn header_operation_id(&self) -> Option<String> {
        self.operation_id.header_beside(&self.raw.head.headers)
    }

    /// The first known field of a wrong type, if there is one.
    pub fn wrong_type(&self) -> Option<WrongType> {
        self.wrong_type
    }

    /// The raw value of a field of the command's table, if the body has it and it is of the table's type.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let fields = command::request_table(self.command).fields;
        let at = fields.iter().position(|field| field.name == name)?;
        let (token, span) = self.values[at]?;
        let raw = span.of(&self.raw.body);
        fits(token, raw, fields[at].ty).then_some(raw)
    }

    /// What the URL alone tells a policy: the command.
    pub fn named(&self) -> Subject<'_> {
        Subject { name: self.target.name(), command: self.command, ..Subject::default() }
    }

    /// What a policy may look at. Takes time in proportion to the IDs.
    pub fn subject(&self) -> Subject<'_> {
        let table = command::request_table(self.command);
        let at = |watched: Watched| self.values[table.watched[watched as usize]];
        let text = |watched| match at(watched) {
            Some((Token::Str, span)) => Some(go_json::unquote(span.of(&self.raw.body))),
            _ => None,
        };
        let number = |watched| match at(watched) {
            Some((Token::Number, span)) => go_json::integer(span.of(&self.raw.body), i64::MIN, i64::MAX),
            _ => None,
        };
        Subject {
            name: self.target.name(),
            command: self.command,
            content_type: number(Watched::ContentType),
            msg_from: number(Watched::MsgFrom),
            session_type: number(Watched::SessionType),
            platform_ids: [number(Watched::PlatformId), number(Watched::SenderPlatformId)],
            send_id: text(Watched::SendId),
            recv_id: text(Watched::RecvId),
            group_id: text(Watched::GroupId),
        }
    }
}

/// What the target of a request says.
#[derive(Debug)]
pub struct Named {
    target: Target,
    command: Option<&'static Command>,
}

impl Named {
    /// Reads a target.
    pub fn of(uri: &Uri) -> Result<Named, Rejection> {
        let (target, command) = Target::parse_known(uri)?;
        Ok(Named { target, command })
    }

    /// The table's entry, if the command is in it.
    pub fn command(&self) -> Option<&'static Command> {
        self.command
    }
}

/// What the checks found out.
struct Checked {
    target: Target,
    command: Option<&'static Command>,
    operation_id: OperationId,
    body: Body,
}

impl Checked {
    fn of(
        raw: &RawRequest,
        named: Result<Named, Rejection>,
        validation: &Validation,
        generate: impl FnOnce() -> String,
    ) -> Result<Self, Rejection> {
        if raw.head.method != Method::POST {
            return Err(Rejection::method(&raw.head.method));
        }
        let Named { target, command } = named?;
        go_json::check_utf8(&raw.body).map_err(|at| Rejection::NotUtf8 { at })?;
        let body = Body::walk(&raw.body, command)?;
        let table = command::request_table(command);
        match body.values[table.watched[Watched::Command as usize]] {
            None => return Err(Rejection::BodyCommandMissing),
            Some((Token::Str, span)) => {
                let named = span.of(&raw.body);
                if !go_json::is_text(named, target.name()) {
                    let named = go_json::unquote(named);
                    return Err(Rejection::two_commands("the URL", target.name(), "the body", &named));
                }
            }
            Some((found, _)) => return Err(Rejection::BodyCommandType { found }),
        }
        let in_body = match body.values[table.watched[Watched::OperationId as usize]] {
            Some((Token::Str, span)) => Some(span.of(&raw.body)),
            _ => None,
        };
        let operation_id = OperationId::of(&raw.head.headers, in_body, validation.operation_id, generate)?;
        if let (FieldTypes::Reject, Some(wrong)) = (validation.field_types, body.wrong_type) {
            return Err(Rejection::FieldType(wrong));
        }
        if command.is_none() && validation.unknown_commands == UnknownCommands::Reject {
            return Err(Rejection::UnknownCommand { name: target.name().to_owned() });
        }
        Ok(Checked { target, command, operation_id, body })
    }
}

/// The body's top level, laid over the table of the command that the URL names.
struct Body {
    values: Vec<Option<(Token, Span)>>,
    wrong_type: Option<WrongType>,
}

impl Body {
    fn empty(command: Option<&'static Command>) -> Body {
        Body { values: vec![None; command::request_table(command).fields.len()], wrong_type: None }
    }

    /// One walk over the whole body: the grammar, the place of each known field, and its type.
    fn walk(bytes: &[u8], command: Option<&'static Command>) -> Result<Body, Rejection> {
        let table = command::request_table(command);
        let command_at = table.watched[Watched::Command as usize];
        let mut body = Body::empty(command);
        let mut tokens = Tokens::new(bytes);
        match tokens.next().map_err(Rejection::NotJson)? {
            Some((Token::BeginObject, _)) => {}
            Some((found, _)) => {
                // Junk behind a number is worth more to the caller than "not an object".
                while tokens.next().map_err(Rejection::NotJson)?.is_some() {}
                return Err(Rejection::NotAnObject { found });
            }
            None => unreachable!("the grammar yields a value or an error first"),
        }
        let mut expected = 0;
        let mut has_command = false;
        loop {
            let mut is_exact = true;
            // Go sends the fields in the table's order.
            let next = table.fields.get(expected);
            let at = if next.is_some_and(|field| tokens.expected_key(field.name)) {
                Some(expected)
            } else {
                match tokens.next().map_err(Rejection::NotJson)? {
                    Some((Token::Key, key)) => {
                        let (at, exactly) =
                            field_at(table.fields, key.of(bytes), tokens.escaped(), command_at);
                        is_exact = exactly;
                        at
                    }
                    Some(_) => continue, // the end of the object: nothing but the end of the input follows
                    None => break,
                }
            };
            let (found, start) = tokens
                .next()
                .map_err(Rejection::NotJson)?
                .expect("a value follows a key, or the grammar errs");
            let known = at.filter(|at| *at < table.known).map(|at| &table.fields[at]);
            body.value(&mut tokens, bytes, known, (found, start)).map_err(Rejection::NotJson)?;
            if let Some(at) = at {
                expected = at + 1;
                if at == command_at {
                    has_command |= is_exact;
                    if let Some((_, first)) = body.values[at]
                        && first.of(bytes) != start.of(bytes)
                    {
                        return Err(Rejection::TwoCommandsInBody);
                    }
                }
                body.values[at] = Some((found, start));
            }
        }
        if !has_command {
            // In another letter case alone it is one to Go, and none to everybody else.
            body.values[command_at] = None;
        }
        Ok(body)
    }

    /// Reads a value to its end and notes the first wrong type in it, two levels deep: the catalogue has no more.
    fn value(
        &mut self,
        tokens: &mut Tokens<'_>,
        bytes: &[u8],
        field: Option<&'static Field>,
        (found, span): (Token, Span),
    ) -> Result<(), go_json::SyntaxError> {
        let container = matches!(found, Token::BeginObject | Token::BeginArray);
        let Some(field) = field else {
            return if container { tokens.skip_container() } else { Ok(()) };
        };
        self.check(field.name, field.ty, found, span.of(bytes));
        let (Kind::List(element), Token::BeginArray) = (field.ty.kind, found) else {
            return if container { tokens.skip_container() } else { Ok(()) };
        };
        let list_depth = tokens.depth();
        let mut inner: Option<&'static Field> = None;
        while let Some((token, span)) = tokens.next()? {
            match (token, tokens.depth()) {
                (Token::EndArray, depth) if depth < list_depth => return Ok(()),
                (Token::Key, depth) if depth == list_depth + 1 => {
                    let raw = span.of(bytes);
                    let name = &raw[1..raw.len() - 1];
                    inner = if let Kind::Struct(fields) = element.kind {
                        fields.iter().find(|field| field.name.as_bytes() == name)
                    } else {
                        None
                    };
                }
                (Token::EndArray | Token::EndObject, _) => {}
                (Token::BeginObject | Token::BeginArray, depth) if depth == list_depth + 1 => {
                    self.check(field.name, *element, token, span.of(bytes));
                    if token == Token::BeginArray {
                        tokens.skip_container()?;
                    }
                }
                (_, depth) if depth == list_depth => self.check(field.name, *element, token, span.of(bytes)),
                _ => {
                    if let Some(inner) = inner.take() {
                        self.check(inner.name, inner.ty, token, span.of(bytes));
                    }
                    if matches!(token, Token::BeginObject | Token::BeginArray) {
                        tokens.skip_container()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check(&mut self, field: &'static str, ty: Type, found: Token, raw: &[u8]) {
        if self.wrong_type.is_none() && !fits(found, raw, ty) && !(found == Token::Null && ty.nillable) {
            self.wrong_type = Some(WrongType { field, expected: ty.kind, found });
        }
    }
}

/// The place of a key in the table, and whether it is spelled exactly so. Keys must be, but for one: a second
/// `callbackCommand` in another letter case is the same to an app written in Go, and must not name another command.
fn field_at(fields: &[Field], raw: &[u8], escaped: bool, command_at: usize) -> (Option<usize>, bool) {
    let inner = &raw[1..raw.len() - 1];
    let key = if escaped {
        Cow::Owned(go_json::unquote(raw).into_owned().into_bytes())
    } else {
        Cow::Borrowed(inner)
    };
    // Of two names most differ in their length or in the first letter; to compare the rest is a call.
    let is = |name: &[u8]| name.len() == key.len() && name.first() == key.first() && name == &*key;
    match fields.iter().position(|field| is(field.name.as_bytes())) {
        Some(at) => (Some(at), true),
        None => (go_json::folds_to(&key, fields[command_at].name).then_some(command_at), false),
    }
}

/// Whether a value, told by its token (and, of a number, by its text), is of a type. `null` is not.
fn fits(found: Token, raw: &[u8], ty: Type) -> bool {
    match ty.kind {
        Kind::Str => found == Token::Str,
        Kind::Bool => matches!(found, Token::True | Token::False),
        Kind::Int { min, max } => found == Token::Number && go_json::integer(raw, min, max).is_some(),
        Kind::Bytes => matches!(found, Token::Str | Token::BeginArray),
        Kind::List(_) => found == Token::BeginArray,
        Kind::Map(_) | Kind::Struct(_) => found == Token::BeginObject,
    }
}

#[cfg(test)]
mod tests;
