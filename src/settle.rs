//! From what came of asking to what is answered.

use crate::breaker;
use crate::callback::Callback;
use crate::cause::Cause;
use crate::policy::Plan;
use crate::reply::{Reply, Why};
use crate::upstream::outcome::{Answered, Failure, Outcome};
use crate::verdict::{self, Conclusion, Finding, Findings, Unusable, Verdict};

/// `errCode` of OpenIM's own data error: what a user meets where an observed answer is none.
const DATA_ERROR: i32 = 90007;

/// An answer, and what is worth telling of how it came about.
#[derive(Debug)]
pub struct Settled {
    /// What is answered.
    pub reply: Reply,
    /// What went wrong, in words for the log; they may name the app's address.
    pub detail: Option<String>,
    /// What would have been answered, where the policy only observes and it differs.
    pub instead: Option<(Verdict, Why)>,
    /// What a breaker learns.
    pub learned: breaker::Outcome,
}

/// Makes an answer of an outcome: the app's verdict, or the rule's fallback for the cause. `draining` says that the
/// pod is ending: an app that is gone then has not failed.
pub fn settle(
    callback: &Callback,
    plan: &Plan<'_>,
    outcome: Outcome,
    noticed: Findings,
    draining: bool,
) -> Settled {
    match outcome {
        Outcome::Failed(failure) => failed(callback, plan, &failure, noticed, draining),
        Outcome::Answered(answered) if plan.observe => observed(callback, plan, answered, noticed),
        Outcome::Answered(answered) => enforced(callback, plan, answered, noticed),
    }
}

fn failed(
    callback: &Callback,
    plan: &Plan<'_>,
    failure: &Failure,
    noticed: Findings,
    draining: bool,
) -> Settled {
    // An app that goes away does it between two callbacks or in the middle of one.
    let gone = draining && matches!(failure.cause(), Cause::Unreachable | Cause::Broken);
    let cause = if gone { Cause::Draining } else { failure.cause() };
    Settled {
        reply: Reply::fallback(cause, plan.fallback(cause), callback, noticed),
        detail: Some(failure.to_string()),
        instead: None,
        learned: if failure.is_ours() { breaker::Outcome::Ignored } else { learned(cause) },
    }
}

fn enforced(callback: &Callback, plan: &Plan<'_>, answered: Answered, noticed: Findings) -> Settled {
    let Answered { status, headers, body, noticed: packed } = answered;
    let mut noticed = noticed.and(packed);
    let fall_back = |cause: Cause, detail: String| Settled {
        reply: Reply::fallback(cause, plan.fallback(cause), callback, noticed),
        detail: Some(detail),
        instead: None,
        learned: learned(cause),
    };
    let deny_code = plan.rule.deny().code.get();
    let read = verdict::read(&body, callback, deny_code, plan.crashing_fields());
    if !status.is_success() {
        match read {
            // OpenIM would obey a clear refusal, whatever the status.
            Ok(reading @ verdict::Reading { verdict: Verdict::Deny { .. }, .. }) => {
                noticed.add(Finding::RefusalWithStatus);
                let reply = Reply::upstream(reading, &body, headers, noticed);
                return Settled { reply, detail: None, instead: None, learned: breaker::Outcome::Success };
            }
            Ok(_) | Err(_) => {
                return fall_back(Cause::Status, format!("upstream answered with status {status}"));
            }
        }
    }
    match read {
        Ok(reading) => Settled {
            detail: left_out(&reading),
            reply: Reply::upstream(reading, &body, headers, noticed),
            instead: None,
            learned: breaker::Outcome::Success,
        },
        Err(Unusable::Invalid(invalid)) => fall_back(Cause::Invalid, format!("upstream's answer: {invalid}")),
        Err(Unusable::RefusedByApp { action_code }) => {
            fall_back(Cause::RefusedByApp, format!("upstream answered with actionCode {action_code}"))
        }
    }
}

/// The app's answer travels on as it is; what the policy would have made of it is told.
fn observed(callback: &Callback, plan: &Plan<'_>, answered: Answered, noticed: Findings) -> Settled {
    let verdict = match verdict::openim(&answered.body, callback) {
        Conclusion::Allowed => Verdict::Allow,
        Conclusion::Denied { code } => Verdict::Deny { code },
        Conclusion::DataError(_) | Conclusion::Fails(_) => Verdict::Deny { code: DATA_ERROR },
    };
    let Answered { status, headers, body, noticed: packed } = answered;
    let copy = Answered { status, headers: headers.clone(), body: body.clone(), noticed: packed };
    let enforced = enforced(callback, plan, copy, noticed);
    let would = (enforced.reply.verdict(), enforced.reply.why());
    let findings = enforced.reply.findings();
    Settled {
        reply: Reply::observed(verdict, status, body, headers, findings),
        detail: enforced.detail,
        instead: (would != (verdict, Why::Nothing)).then_some(would),
        learned: breaker::Outcome::Ignored,
    }
}

/// What is told of fields that OpenIM may end on.
fn left_out(reading: &verdict::Reading<'_>) -> Option<String> {
    let fields = &reading.left_out;
    (!fields.is_empty()).then(|| format!("left out of upstream's answer: {}", fields.join(", ")))
}

fn learned(cause: Cause) -> breaker::Outcome {
    if cause.trips_breaker() { breaker::Outcome::Failure } else { breaker::Outcome::Ignored }
}

#[cfg(test)]
mod tests;
