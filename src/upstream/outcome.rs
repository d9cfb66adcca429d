//! What came of asking the app.

use std::io;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::framing::unpack;
use crate::cause::{Cause, Overload};
use crate::held::{Holding, SMALL_BODY_BYTES, tie};
use crate::verdict::{Findings, Invalid};

/// The app's answer, or the app's fault.
#[derive(Debug)]
pub enum Outcome {
    /// A whole HTTP answer arrived in time. Whether it holds a verdict is not known yet.
    Answered(Answered),
    /// None did.
    Failed(Failure),
}

/// A whole HTTP answer as it arrived.
#[derive(Debug)]
pub struct Received {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// The share of the bytes held that the body has.
    pub(super) holding: Holding,
    /// Whether the head names a coding.
    pub(super) coded: bool,
    /// Most bytes of a body that was unpacked.
    pub(super) limit: usize,
}

impl Received {
    /// How many bytes of the body are to be read; `None` if nobody knows, because it is packed.
    pub fn known_size(&self) -> Option<usize> {
        (!self.coded).then_some(self.body.len())
    }

    /// Unpacks the body, if it is packed, within the bound on bytes held. A body that is not small is tied to its share.
    ///
    /// # Errors
    ///
    /// The body is packed in another way than gzip, is not gzip, or is too large or more than may be held when unpacked.
    pub fn unpack(mut self) -> Result<Answered, Failure> {
        let mut noticed = Findings::default();
        if self.coded {
            (self.body, noticed) = unpack(&mut self.headers, self.body, self.limit, &mut self.holding)?;
        }
        let body = if self.body.len() <= SMALL_BODY_BYTES { self.body } else { tie(self.body, self.holding) };
        Ok(Answered { status: self.status, headers: self.headers, body, noticed })
    }
}

/// A whole HTTP answer, unpacked.
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
    Overloaded(Overload),
    /// A whole answer came in time, and was not decoded in time.
    #[error("the app's answer came in time, and was not decoded before the deadline")]
    Undecoded,
    /// Decoding the answer panicked.
    #[error("a bug of the guard: the app's answer could not be decoded")]
    Bug,
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

    /// Whether it is the guard's own, although its cause would be a failure of the app: a breaker must not count it.
    pub fn is_ours(&self) -> bool {
        matches!(self, Failure::Undecoded | Failure::Bug)
    }

    /// The cause that a policy and a metric know it by.
    pub fn cause(&self) -> Cause {
        match self {
            Failure::Timeout { .. } | Failure::Undecoded => Cause::Timeout,
            Failure::Unreachable { .. } => Cause::Unreachable,
            Failure::Cut { .. } | Failure::NotHttp(_) => Cause::Broken,
            Failure::Invalid(_) | Failure::Bug => Cause::Invalid,
            Failure::Overloaded(_) => Cause::Overloaded,
            Failure::BreakerOpen => Cause::BreakerOpen,
            Failure::Draining => Cause::Draining,
        }
    }
}
