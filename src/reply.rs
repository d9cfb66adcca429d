//! The one thing that can be written back to OpenIM: a status, a body that is a valid callback answer, and where it
//! came from. Every constructor makes a whole answer; there is no other way to get one.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::callback::Callback;
use crate::callback::rejection::{REJECTION_CODE, Rejection, RejectionCause};
use crate::cause::Cause;
use crate::policy::{Answer, OnRejection};
use crate::verdict::{self, Findings, Reading, Verdict};

/// Who decided: the value of `Callback-Guard-Origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// The app.
    Upstream,
    /// A rule or the override; the app was not asked.
    Rule,
    /// The fallback of a rule, for a cause.
    Fallback,
    /// The guard, because the request is no callback.
    Rejection,
    /// The guard, because nobody reads the answer: the event is delivered in the background.
    Queued,
}

impl Origin {
    /// All of them, in the order of the documentation.
    pub const ALL: [Origin; 5] =
        [Origin::Upstream, Origin::Rule, Origin::Fallback, Origin::Rejection, Origin::Queued];

    /// The word for headers, metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Origin::Upstream => "upstream",
            Origin::Rule => "rule",
            Origin::Fallback => "fallback",
            Origin::Rejection => "rejection",
            Origin::Queued => "queued",
        }
    }
}

/// Why the answer is not the app's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It is the app's, or a rule's.
    Nothing,
    /// What went wrong with an accepted callback.
    Cause(Cause),
    /// What was wrong with the request.
    Rejection(RejectionCause),
}

impl Why {
    /// The value of `Callback-Guard-Cause`, empty where there is none.
    pub const fn label(self) -> &'static str {
        match self {
            Why::Nothing => "",
            Why::Cause(cause) => cause.label(),
            Why::Rejection(cause) => cause.label(),
        }
    }
}

/// An answer to a callback.
#[derive(Clone, Debug)]
pub struct Reply {
    status: StatusCode,
    body: Bytes,
    verdict: Verdict,
    origin: Origin,
    why: Why,
    findings: Findings,
    /// The app's own headers, where it is the app's answer.
    headers: Option<HeaderMap>,
    /// The memory of the body counts already: it is a part of the app's answer.
    is_counted: bool,
}

impl Reply {
    /// The app's answer, as it was read: its own bytes unless something was corrected.
    pub fn upstream(reading: Reading<'_>, answer: &Bytes, headers: HeaderMap, noticed: Findings) -> Reply {
        let (body, is_counted) = match reading.body {
            Cow::Borrowed(part) => (answer.slice_ref(part), true),
            Cow::Owned(corrected) => (corrected.into(), false),
        };
        Reply {
            is_counted,
            status: StatusCode::OK,
            body,
            verdict: reading.verdict,
            origin: Origin::Upstream,
            why: Why::Nothing,
            findings: reading.findings.and(noticed),
            headers: Some(headers),
        }
    }

    /// The app's answer untouched, for a policy that only observes. A redirect is never sent on, since Go would
    /// follow it: its body goes out with status 200.
    pub fn observed(
        verdict: Verdict,
        status: StatusCode,
        body: Bytes,
        headers: HeaderMap,
        noticed: Findings,
    ) -> Reply {
        let status =
            if status.is_redirection() || status.is_informational() { StatusCode::OK } else { status };
        let (origin, why) = (Origin::Upstream, Why::Nothing);
        let (headers, is_counted) = (Some(headers), true);
        Reply { status, body, verdict, origin, why, findings: noticed, headers, is_counted }
    }

    /// A rule's or the override's own answer.
    pub fn rule(answer: Answer<'_>, callback: &Callback, noticed: Findings) -> Reply {
        let (verdict, body) = written(answer, Some(callback));
        let (status, origin, why) = (StatusCode::OK, Origin::Rule, Why::Nothing);
        Reply { status, body, verdict, origin, why, findings: noticed, headers: None, is_counted: false }
    }

    /// The answer to an event that was accepted for a delivery in the background.
    pub fn queued(callback: &Callback, noticed: Findings) -> Reply {
        Reply { origin: Origin::Queued, ..Reply::rule(Answer::Allow, callback, noticed) }
    }

    /// A rule's fallback for a cause.
    pub fn fallback(cause: Cause, answer: Answer<'_>, callback: &Callback, noticed: Findings) -> Reply {
        let (verdict, body) = written(answer, Some(callback));
        let (status, origin, why) = (StatusCode::OK, Origin::Fallback, Why::Cause(cause));
        Reply { status, body, verdict, origin, why, findings: noticed, headers: None, is_counted: false }
    }

    /// The fallback for a callback whose body was not kept. For a command whose allow must echo the request there
    /// is then nothing to echo, and an allow would wipe what it is about: it is refused with the policy's words.
    pub fn fallback_unread(cause: Cause, answer: Answer<'_>, deny: Answer<'_>, echoes: bool) -> Reply {
        let answer = if echoes && answer == Answer::Allow { deny } else { answer };
        let (verdict, body) = written(answer, None);
        let (status, origin, why) = (StatusCode::OK, Origin::Fallback, Why::Cause(cause));
        Reply {
            status,
            body,
            verdict,
            origin,
            why,
            findings: Findings::default(),
            headers: None,
            is_counted: false,
        }
    }

    /// What the caller did wrong. Read by OpenIM as a refusal, or as a permission where the policy says so; never
    /// as a permission where the caller is not known, or where the allow would have to echo the request.
    pub fn rejection(rejection: &Rejection, on_rejection: OnRejection, echoes: bool) -> Reply {
        let denied = *rejection == Rejection::Unauthorized || echoes;
        let (verdict, body) = match on_rejection {
            OnRejection::Allow if !denied => (Verdict::Allow, Bytes::from_static(PLAIN)),
            OnRejection::Allow | OnRejection::Deny => {
                let text = format!("callback rejected: {rejection}");
                let body = verdict::deny_body(REJECTION_CODE, &text, rejection.label().label());
                (Verdict::Deny { code: REJECTION_CODE }, body.into())
            }
        };
        Reply {
            status: rejection.status(),
            body,
            verdict,
            origin: Origin::Rejection,
            why: Why::Rejection(rejection.label()),
            findings: Findings::default(),
            headers: None,
            is_counted: false,
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body: JSON, whole.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// What OpenIM will read in it.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Who decided.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Why it was not the app.
    pub fn why(&self) -> Why {
        self.why
    }

    /// What was corrected or noticed.
    pub fn findings(&self) -> Findings {
        self.findings
    }

    /// Whether the memory of the body is counted already.
    pub fn is_counted(&self) -> bool {
        self.is_counted
    }

    /// The same answer, with the same body, whose memory is counted now.
    #[must_use]
    pub fn counted(self, body: Bytes) -> Reply {
        Reply { body, is_counted: true, ..self }
    }

    /// The body and the app's headers, for the writer.
    pub fn into_parts(self) -> (Bytes, Option<HeaderMap>) {
        (self.body, self.headers)
    }
}

const PLAIN: &[u8] = br#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;

fn written(answer: Answer<'_>, callback: Option<&Callback>) -> (Verdict, Bytes) {
    match answer {
        Answer::Allow => {
            let body = match callback.and_then(Callback::kept_allow) {
                Some(kept) => kept.clone(),
                None => match verdict::allow_body(callback) {
                    Cow::Borrowed(plain) => Bytes::from_static(plain),
                    Cow::Owned(echoing) => echoing.into(),
                },
            };
            (Verdict::Allow, body)
        }
        Answer::Deny(deny) => {
            let code = deny.code.get();
            (Verdict::Deny { code }, verdict::deny_body(code, &deny.message, &deny.detail).into())
        }
    }
}
