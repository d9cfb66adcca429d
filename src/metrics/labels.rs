//! The labels of the sidecar's metrics: each comes from a closed set.

use std::sync::Arc;

use super::catalog::{labels, one_of};
use crate::callback::rejection::RejectionCause;
use crate::cause::Overload;
use crate::in_force::SourceKind;
use crate::reply::Origin;
use crate::tls::HandshakeFailure;

/// The command of a callback that is not in the table.
pub(super) const UNKNOWN_COMMAND: &str = "unknown";

/// The rule of callbacks beyond the bound on series.
pub(super) const OTHER_RULES: &str = "other";

/// The cause of an answer that is the app's or a rule's.
pub(super) const NO_CAUSE: &str = "none";

pub(super) const ALLOW: &str = "allow";
pub(super) const DENY: &str = "deny";

/// Why a connection was closed on the level of HTTP. In the order of its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHttp {
    /// The head of a request took longer than `--header-timeout`.
    SlowHead,
    /// The head of a request is not HTTP.
    Malformed,
    /// The caller disconnected, or broke a rule of HTTP/2.
    Ended,
    /// More frames than callbacks need.
    Flood,
    /// What the connection keeps does not fit into `--max-held`.
    NoMemory,
    /// An answer was not taken in time.
    Unread,
    /// Most callbacks were reset before their answer.
    Abandons,
}

impl BadHttp {
    /// All of them, in the order of the documentation.
    pub const ALL: [BadHttp; 7] = [
        BadHttp::SlowHead,
        BadHttp::Malformed,
        BadHttp::Ended,
        BadHttp::Flood,
        BadHttp::NoMemory,
        BadHttp::Unread,
        BadHttp::Abandons,
    ];

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            BadHttp::SlowHead => "slow-head",
            BadHttp::Malformed => "malformed",
            BadHttp::Ended => "ended",
            BadHttp::Flood => "flood",
            BadHttp::NoMemory => "no-memory",
            BadHttp::Unread => "unread-answer",
            BadHttp::Abandons => "abandons",
        }
    }
}

labels! {
    CallbackLabels {
        command: &'static str = format!("a [command](causes-and-commands.md#commands), or `{UNKNOWN_COMMAND}`"),
        rule: Arc<str> = format!(
            "the name of a rule of the policy; `none` if no rule applied; `{OTHER_RULES}` beyond {} series",
            super::SERIES_LIMIT
        ),
        verdict: &'static str = one_of([ALLOW, DENY]),
        origin: &'static str = one_of(Origin::ALL.map(Origin::label)),
        cause: &'static str = causes(),
    }
    CauseLabel { cause: &'static str = causes() }
    RejectionLabel { cause: &'static str = one_of(RejectionCause::ALL.map(RejectionCause::label)) }
    FindingLabel { finding: &'static str = "a [finding](findings.md)" }
    OriginLabel { origin: &'static str = one_of(Origin::ALL.map(Origin::label)) }
    HandshakeLabel { reason: &'static str = one_of(HandshakeFailure::ALL.map(HandshakeFailure::label)) }
    BadHttpLabel { reason: &'static str = one_of(BadHttp::ALL.map(BadHttp::label)) }
    OverloadLabel { reason: &'static str = one_of(Overload::ALL.map(Overload::label)) }
    RuleLabel { rule: String = "the name of a rule that has a breaker" }
    VersionLabel { version: &'static str = "the version" }
    PolicyLabels {
        source: &'static str = one_of(SourceKind::ALL.map(SourceKind::label)),
        hash: String = "the hash of the policy, as on `/policy`",
    }
}

fn causes() -> String {
    format!(
        "a [cause](causes-and-commands.md#causes), a [rejection](causes-and-commands.md#rejections), or `{NO_CAUSE}`"
    )
}
