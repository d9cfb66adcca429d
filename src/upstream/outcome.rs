//! What came of asking the app.

use std::io;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::cause::Cause;
use crate::verdict::{Findings, Invalid};

/// The app's answer, or the app's fault.
#[derive(Debug)]
pub enum Outcome {
    /// A whole HTTP answer arrived in time. Whether it holds a verdict is not known yet.
    Answered(Answered),
    /// None did.
    Failed(Failure),
}

/// A whole HTTP answer.
#[derive(Debug)]
pub struct Answered {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, without those that belong to the connection.
    pub headers: HeaderMap,
    /// Its body, unpacked where it came as gzip.
    pub body: Bytes,
    /// That it was packed.
    pub noticed: Findings,
}

/// What the app, or the way to it, did wrong. The texts are for the log: they may name the app's address.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The deadline passed.
    #[error("no whole answer before the deadline, while {doing}")]
    Timeout {
        /// What was going on.
        doing: &'static str,
    },
    /// No connection, or none that lasted until an answer began.
    #[error("{upstream} cannot be reached: {error}")]
    Unreachable {
        /// The app's address.
        upstream: String,
        /// What the system said.
        error: io::Error,
    },
    /// The connection ended in the middle.
    #[error("upstream closed or reset the connection {at}")]
    Cut {
        /// Where in the exchange.
        at: &'static str,
    },
    /// What came is not HTTP/1.
    #[error("upstream does not speak HTTP/1: {0}")]
    NotHttp(String),
    /// The answer can be none.
    #[error("upstream's answer: {0}")]
    Invalid(Invalid),
    /// Too much is in flight or held.
    #[error("{0}")]
    Overloaded(&'static str),
    /// The breaker refuses.
    #[error("the breaker is open")]
    BreakerOpen,
    /// The drain's end came before the answer.
    #[error("the drain timeout came before the answer")]
    Draining,
}

impl Failure {
    /// Whether a connection was there, and ended before the answer did.
    pub(super) fn lost_its_connection(&self) -> bool {
        let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
        matches!(self, Failure::Cut { .. })
            || matches!(self, Failure::Unreachable { error, .. } if reset(error))
    }

    /// The cause that a policy and a metric know it by.
    pub fn cause(&self) -> Cause {
        match self {
            Failure::Timeout { .. } => Cause::Timeout,
            Failure::Unreachable { .. } => Cause::Unreachable,
            Failure::Cut { .. } | Failure::NotHttp(_) => Cause::Broken,
            Failure::Invalid(_) => Cause::Invalid,
            Failure::Overloaded(_) => Cause::Overloaded,
            Failure::BreakerOpen => Cause::BreakerOpen,
            Failure::Draining => Cause::Draining,
        }
    }
}
