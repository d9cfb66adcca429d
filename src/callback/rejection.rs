//! What a caller did wrong: the HTTP status, the label and the words of each, side by side.

use http::{Method, StatusCode};

use super::{SHOWN_OPERATION_ID, WrongType};
use crate::go_json::{Kind, SyntaxError, Token};

/// `errCode` of every rejection.
pub const REJECTION_CODE: i32 = 5400;

/// A request that is no callback. It never reaches the app.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not a POST.
    #[error("method {found}: a callback is a POST")]
    Method {
        /// The method, its beginning.
        found: String,
    },
    /// No credentials, or wrong ones.
    #[error(
        "wrong or missing credentials: put the user and password into webhooks.url, as https://USER:PASSWORD@HOST"
    )]
    Unauthorized,
    /// The URL names no command.
    #[error("no command in the URL: expected POST /<prefix>/<command> or POST /<path>?command=<command>")]
    NoCommand,
    /// The URL names two, or another than the body.
    #[error("two commands: {one} says {first:?}, {other} says {second:?}")]
    TwoCommands {
        /// Where the first stands.
        one: &'static str,
        /// The first.
        first: String,
        /// Where the second stands.
        other: &'static str,
        /// The second.
        second: String,
    },
    /// The body has the key twice, with different values.
    #[error("two commands: callbackCommand stands in the body twice with different values")]
    TwoCommandsInBody,
    /// The body lacks the key.
    #[error("no callbackCommand in the body: expected the URL's command as a string")]
    BodyCommandMissing,
    /// The key holds no string.
    #[error("callbackCommand in the body is {}: expected the URL's command as a string", token_words(*found))]
    BodyCommandType {
        /// What it holds.
        found: Token,
    },
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(SyntaxError),
    /// The body is JSON, yet no object.
    #[error("the body is {}: expected a JSON object", token_words(*found))]
    NotAnObject {
        /// What it is.
        found: Token,
    },
    /// The body is not UTF-8.
    #[error("the body is not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// Bytes in front of the first wrong one.
        at: usize,
    },
    /// The body ended early.
    #[error("the body was cut short")]
    BodyCut,
    /// The body is over its limit, in bytes.
    #[error("the body is larger than {limit} bytes (--max-request-size)")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The head is over its limit, in bytes.
    #[error(
        "the request head is {found} bytes, 32 added for each field: at most {limit} are taken (--max-header-size)"
    )]
    HeaderTooLarge {
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The head has too many fields.
    #[error("the request head has {found} fields: at most {limit} are taken")]
    TooManyFields {
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The operation ID is over its limit, in bytes.
    #[error("the operationID header is {found} bytes: at most {limit} are taken")]
    OperationIdTooLarge {
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// No `Host`.
    #[error("no Host header: HTTP/1.1 wants one")]
    HostMissing,
    /// More than one `Host`.
    #[error("more than one Host header: HTTP wants one")]
    TwoHosts,
    /// `Connection` names more headers than anybody needs.
    #[error("the Connection headers name {found} options: at most {limit} are taken")]
    ConnectionOptions {
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The body took too long, in milliseconds.
    #[error("the body was not there after {after_ms} ms, the longest timeout of the policy")]
    SlowBody {
        /// How long was waited.
        after_ms: u64,
    },
    /// No header.
    #[error(
        "no operationID header: OpenIM sends one with every callback (validation.operationID: Generate makes one)"
    )]
    OperationIdMissing,
    /// A header with nothing in it.
    #[error("the operationID header is empty (validation.operationID: Generate makes one)")]
    OperationIdEmpty,
    /// Header and body differ.
    #[error("two operation IDs: the header says {header:?}, the body or another header says {body:?}")]
    OperationIdMismatch {
        /// The header's, its beginning.
        header: String,
        /// The body's, its beginning.
        body: String,
    },
    /// A known field of a wrong type, where the policy says Reject.
    #[error("{} is {}: expected {} (validation.fieldTypes: Reject)", .0.field, .0.found_words(), .0.expected.json_type())]
    FieldType(WrongType),
    /// A command outside the table, where the policy says Reject.
    #[error("command {name:?} is not known (validation.unknownCommands: Reject)")]
    UnknownCommand {
        /// The name.
        name: String,
    },
}

impl Rejection {
    /// Another method; what is shown of it is bounded.
    pub fn method(found: &Method) -> Rejection {
        Rejection::Method { found: beginning(found.as_str()) }
    }

    /// Two names for one callback; what is shown of them is bounded.
    pub fn two_commands(one: &'static str, first: &str, other: &'static str, second: &str) -> Rejection {
        Rejection::TwoCommands { one, first: beginning(first), other, second: beginning(second) }
    }

    /// Two IDs for one callback; what is shown of them is bounded.
    pub fn operation_ids(header: &str, body: &str) -> Rejection {
        Rejection::OperationIdMismatch { header: beginning(header), body: beginning(body) }
    }

    /// The HTTP status of the answer. OpenIM does not look at it; people, proxies and other clients do.
    pub fn status(&self) -> StatusCode {
        match self {
            Rejection::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Rejection::Unauthorized => StatusCode::UNAUTHORIZED,
            Rejection::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Rejection::HeaderTooLarge { .. }
            | Rejection::TooManyFields { .. }
            | Rejection::OperationIdTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Rejection::SlowBody { .. } => StatusCode::REQUEST_TIMEOUT,
            Rejection::UnknownCommand { .. } => StatusCode::NOT_FOUND,
            Rejection::NoCommand
            | Rejection::TwoCommands { .. }
            | Rejection::TwoCommandsInBody
            | Rejection::BodyCommandMissing
            | Rejection::BodyCommandType { .. }
            | Rejection::NotJson(_)
            | Rejection::NotAnObject { .. }
            | Rejection::NotUtf8 { .. }
            | Rejection::BodyCut
            | Rejection::HostMissing
            | Rejection::TwoHosts
            | Rejection::ConnectionOptions { .. }
            | Rejection::OperationIdMissing
            | Rejection::OperationIdEmpty
            | Rejection::OperationIdMismatch { .. }
            | Rejection::FieldType(_) => StatusCode::BAD_REQUEST,
        }
    }

    /// The word for headers, metrics and logs.
    pub fn label(&self) -> RejectionCause {
        match self {
            Rejection::Method { .. } => RejectionCause::Method,
            Rejection::Unauthorized => RejectionCause::Unauthorized,
            Rejection::NoCommand
            | Rejection::TwoCommands { .. }
            | Rejection::TwoCommandsInBody
            | Rejection::BodyCommandMissing
            | Rejection::BodyCommandType { .. } => RejectionCause::Command,
            Rejection::NotJson(_)
            | Rejection::NotAnObject { .. }
            | Rejection::NotUtf8 { .. }
            | Rejection::BodyCut => RejectionCause::Body,
            Rejection::TooLarge { .. }
            | Rejection::HeaderTooLarge { .. }
            | Rejection::TooManyFields { .. }
            | Rejection::OperationIdTooLarge { .. } => RejectionCause::TooLarge,
            Rejection::HostMissing | Rejection::TwoHosts | Rejection::ConnectionOptions { .. } => {
                RejectionCause::Head
            }
            Rejection::SlowBody { .. } => RejectionCause::SlowBody,
            Rejection::OperationIdMissing
            | Rejection::OperationIdEmpty
            | Rejection::OperationIdMismatch { .. } => RejectionCause::OperationId,
            Rejection::FieldType(_) => RejectionCause::FieldType,
            Rejection::UnknownCommand { .. } => RejectionCause::UnknownCommand,
        }
    }

    /// Whether a policy that only observes may let it through: its body was read whole, and the caller may call.
    pub fn may_be_observed(&self) -> bool {
        match self.label() {
            RejectionCause::Command
            | RejectionCause::Body
            | RejectionCause::OperationId
            | RejectionCause::FieldType
            | RejectionCause::UnknownCommand => *self != Rejection::BodyCut,
            RejectionCause::Method
            | RejectionCause::Head
            | RejectionCause::TooLarge
            | RejectionCause::SlowBody
            | RejectionCause::Unauthorized => false,
        }
    }
}

/// The closed set of labels of a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectionCause {
    /// Not a POST.
    Method,
    /// No command, two commands.
    Command,
    /// Not a JSON object in UTF-8.
    Body,
    /// Body or head over its limit.
    TooLarge,
    /// A head that is not as HTTP wants it.
    Head,
    /// The body took too long.
    SlowBody,
    /// Missing, empty, or two different ones.
    OperationId,
    /// A known field of a wrong type.
    FieldType,
    /// A command outside the table.
    UnknownCommand,
    /// Wrong or missing credentials.
    Unauthorized,
}

impl RejectionCause {
    /// All of them, in the order of the documentation.
    pub const ALL: [RejectionCause; 10] = [
        RejectionCause::Method,
        RejectionCause::Command,
        RejectionCause::Body,
        RejectionCause::TooLarge,
        RejectionCause::Head,
        RejectionCause::SlowBody,
        RejectionCause::OperationId,
        RejectionCause::FieldType,
        RejectionCause::UnknownCommand,
        RejectionCause::Unauthorized,
    ];

    /// The word for headers, metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            RejectionCause::Method => "method",
            RejectionCause::Command => "command",
            RejectionCause::Body => "body",
            RejectionCause::TooLarge => "too-large",
            RejectionCause::Head => "head",
            RejectionCause::SlowBody => "slow-body",
            RejectionCause::OperationId => "operation-id",
            RejectionCause::FieldType => "field-type",
            RejectionCause::UnknownCommand => "unknown-command",
            RejectionCause::Unauthorized => "unauthorized",
        }
    }
}

impl WrongType {
    /// What was found, in words that differ from those for what was expected.
    fn found_words(&self) -> &'static str {
        match (self.found, self.expected) {
            (Token::Number, Kind::Int { .. }) => "a number of another kind or range",
            (found, _) => token_words(found),
        }
    }
}

/// What a token is, in words.
pub fn token_words(token: Token) -> &'static str {
    match token {
        Token::BeginObject | Token::EndObject => "an object",
        Token::BeginArray | Token::EndArray => "an array",
        Token::Key | Token::Str => "a string",
        Token::Number => "a number",
        Token::True | Token::False => "true or false",
        Token::Null => "null",
    }
}

fn beginning(text: &str) -> String {
    if text.chars().nth(SHOWN_OPERATION_ID).is_none() {
        return text.to_owned();
    }
    text.chars().take(SHOWN_OPERATION_ID).chain(['…']).collect()
}
