//! Why an answer is not the app's own: the closed sets that headers, metrics, logs and policies share.

pub use overload::{Exhausted, Overload};

mod overload;

/// What can go wrong once a callback was accepted. Each is answered by the matching rule's fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The deadline passed: connect, silence, a stalled body, all of it.
    Timeout,
    /// Refused, reset before an answer, no such host.
    Unreachable,
    /// Closed or reset in the middle, or malformed HTTP.
    Broken,
    /// An HTTP status other than 2xx, and no clear refusal in the body.
    Status,
    /// Not an answer OpenIM could parse or survive.
    Invalid,
    /// `actionCode` other than 0: the app says it could not decide.
    RefusedByApp,
    /// Too many callbacks in flight, or too many bytes held: see [`Overload`].
    Overloaded,
    /// The breaker of the rule is open.
    BreakerOpen,
    /// The pod is ending, and the app is gone or did not finish in time.
    Draining,
}

impl Cause {
    /// All of them, in the order of the documentation.
    pub const ALL: [Cause; 9] = [
        Cause::Timeout,
        Cause::Unreachable,
        Cause::Broken,
        Cause::Status,
        Cause::Invalid,
        Cause::RefusedByApp,
        Cause::Overloaded,
        Cause::BreakerOpen,
        Cause::Draining,
    ];

    /// The word used in `Callback-Guard-Cause`, in metrics, in logs and in a policy's `fallbackFor`.
    pub const fn label(self) -> &'static str {
        match self {
            Cause::Timeout => "timeout",
            Cause::Unreachable => "unreachable",
            Cause::Broken => "broken",
            Cause::Status => "status",
            Cause::Invalid => "invalid",
            Cause::RefusedByApp => "refused-by-app",
            Cause::Overloaded => "overloaded",
            Cause::BreakerOpen => "breaker-open",
            Cause::Draining => "draining",
        }
    }

    /// When it happens, in a sentence for the documentation.
    pub const fn when(self) -> &'static str {
        match self {
            Cause::Timeout => "the deadline passed: connecting, silence, a stalled answer, all of it",
            Cause::Unreachable => {
                "the app refused the connection (for 2 s, where it was there until then), reset it before an answer, \
                 or has no such host"
            }
            Cause::Broken => "the app closed or reset in the middle of its answer, or did not speak HTTP",
            Cause::Status => "an HTTP status other than 2xx, unless the body is a clear refusal",
            Cause::Invalid => "an answer that OpenIM could not parse, or would choke on after parsing",
            Cause::RefusedByApp => "`actionCode` is not 0: the app says that it could not decide",
            Cause::Overloaded => {
                "too many callbacks in flight (of the process, the caller, the command or the rule), or too many bytes held"
            }
            Cause::BreakerOpen => "the breaker of the rule is open",
            Cause::Draining => "the pod is ending, and the app is gone or did not finish in time",
        }
    }

    /// Whether a breaker counts it as a failure of the app.
    pub const fn trips_breaker(self) -> bool {
        match self {
            Cause::Timeout | Cause::Unreachable | Cause::Broken | Cause::Status | Cause::Invalid => true,
            Cause::RefusedByApp | Cause::Overloaded | Cause::BreakerOpen | Cause::Draining => false,
        }
    }
}
