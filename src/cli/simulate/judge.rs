//! What OpenIM would do with an answer, what it would overwrite, and what is worth mending.

use std::time::Duration;

use http::{StatusCode, header};

use super::advice::{self, Advice, Own, Severity};
use super::effects::{self, Effect};
use super::exchange::Answer;
use super::failure::Failure;
use crate::callback::Callback;
use crate::callback::command::Phase;
use crate::policy::CrashingFields;
use crate::verdict::{self, Conclusion, Finding, Invalid, SMALLEST_DENY_CODE, Unusable};

/// Stands in for a rule's code where the guard's reading is only asked for its findings.
const SOME_DENY_CODE: i32 = 5100;

/// What OpenIM's documentation leaves to apps.
const APP_CODES: std::ops::RangeInclusive<i32> = 5000..=9999;

/// What OpenIM does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Goes on.
    Allowed,
    /// Refuses.
    Denied {
        /// The code the app gave.
        code: i32,
    },
    /// The operation is done already, and nobody reads the answer.
    Unread,
    /// Asks elsewhere.
    Redirected {
        /// Where.
        location: String,
        /// Whether with the callback, or with a GET and no body.
        repeats: bool,
    },
    /// 90004 NetworkError.
    Network(Failure),
    /// 90007 DataError.
    Data(String),
    /// Fails when it applies the answer.
    Fails(String),
}

impl Outcome {
    /// Whether OpenIM has an error of its own here.
    pub(super) fn is_error(&self) -> bool {
        match self {
            Outcome::Network(_) | Outcome::Data(_) | Outcome::Fails(_) => true,
            Outcome::Allowed | Outcome::Denied { .. } | Outcome::Unread | Outcome::Redirected { .. } => false,
        }
    }

    /// A few words; 18 columns at most.
    pub(super) fn label(&self) -> String {
        match self {
            Outcome::Allowed => "allowed".to_owned(),
            Outcome::Denied { code } => format!("denied {code}"),
            Outcome::Unread => "read by nobody".to_owned(),
            Outcome::Redirected { .. } => "redirected".to_owned(),
            Outcome::Network(_) => "error 90004".to_owned(),
            Outcome::Data(_) => "error 90007".to_owned(),
            Outcome::Fails(_) => "fails when applied".to_owned(),
        }
    }

    /// The word for programs.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Outcome::Allowed => "allowed",
            Outcome::Denied { .. } => "denied",
            Outcome::Unread => "unread",
            Outcome::Redirected { .. } => "redirected",
            Outcome::Network(_) => "network-error",
            Outcome::Data(_) => "data-error",
            Outcome::Fails(_) => "fails",
        }
    }

    /// What else there is to say of it, in a sentence; none where the label says it all.
    pub(super) fn explanation(&self) -> Option<String> {
        match self {
            Outcome::Allowed | Outcome::Unread => None,
            Outcome::Denied { code } => seen(*code),
            Outcome::Redirected { location, repeats } => {
                let how = if *repeats { "repeat the POST" } else { "send a GET without the callback" };
                Some(format!("OpenIM would {how} to {location}, and take that answer"))
            }
            Outcome::Network(failure) => Some(failure.to_string()),
            Outcome::Data(why) | Outcome::Fails(why) => Some(why.clone()),
        }
    }
}

/// What becomes of a refusal's code on its way to the user; none where it arrives as it is.
pub(super) fn seen(code: i32) -> Option<String> {
    let text = match code {
        SMALLEST_DENY_CODE.. => return None,
        0 => {
            "the user sees a success with nothing in it, although nothing was done (v3.8 release: error 500)"
        }
        1.. => "the user sees error 500, with the text in its detail (v3.8 release: the code as it is)",
        _ => "the user sees error 500, malformed status",
    };
    Some(text.to_owned())
}

/// Everything about one callback and its answer.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) outcome: Outcome,
    pub(super) findings: Vec<Advice>,
    pub(super) effects: Vec<Effect>,
}

impl Judged {
    /// A callback without an answer.
    pub(super) fn failed(failure: Failure) -> Judged {
        Judged { outcome: Outcome::Network(failure), findings: Vec::new(), effects: Vec::new() }
    }

    /// Whether the app should be mended.
    pub(super) fn is_bad(&self) -> bool {
        self.outcome.is_error() || self.findings.iter().any(|found| found.severity == Severity::Serious)
    }
}

/// Reads an answer as OpenIM would.
pub(super) fn judge(callback: &Callback, answer: &Answer, took: Duration, timeout: Duration) -> Judged {
    let after = callback.command().is_some_and(|command| command.phase == Phase::After);
    if let Some((location, repeats)) = redirect(answer) {
        let findings = vec![Own::Redirect.advice()];
        return Judged { outcome: Outcome::Redirected { location, repeats }, findings, effects: Vec::new() };
    }
    let conclusion = verdict::openim(&answer.body, callback);
    let mut findings = of_the_body(callback, answer);
    findings.extend(of_a_failure(&conclusion, &findings));
    findings.extend(of_http(answer, &conclusion));
    if took > timeout / 2 {
        findings.push(Own::Slow.advice());
    }
    if after {
        findings.retain(|found| found.name != "deny-code-out-of-range");
        findings.iter_mut().for_each(|found| found.severity = Severity::Note);
        if matches!(conclusion, Conclusion::Denied { .. }) {
            findings.push(Own::RefusedAfterwards.advice());
        }
        return Judged { outcome: Outcome::Unread, findings, effects: Vec::new() };
    }
    let allowed = conclusion == Conclusion::Allowed;
    let effects = if allowed { effects::of(callback, &answer.body) } else { Vec::new() };
    let outcome = match conclusion {
        Conclusion::Allowed => match effects::lost_group(&effects) {
            Some(why) => Outcome::Fails(why),
            None => Outcome::Allowed,
        },
        Conclusion::Denied { code } => Outcome::Denied { code },
        Conclusion::DataError(invalid) => Outcome::Data(invalid.to_string()),
        Conclusion::Fails(invalid) => Outcome::Fails(invalid.to_string()),
    };
    findings.sort_by_key(|found| found.severity);
    Judged { outcome, findings, effects }
}

/// Where Go's client would go instead: only these five, and only with a place to go to.
fn redirect(answer: &Answer) -> Option<(String, bool)> {
    let repeats = match answer.status {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => false,
        _ => return None,
    };
    let location = answer.headers.get(header::LOCATION).filter(|location| !location.is_empty())?;
    Some((String::from_utf8_lossy(location.as_bytes()).chars().take(200).collect(), repeats))
}

fn of_the_body(callback: &Callback, answer: &Answer) -> Vec<Advice> {
    let empty = matches!(answer.body.trim_ascii(), b"{}" | b"null");
    let mut findings: Vec<_> =
        match verdict::read(&answer.body, callback, SOME_DENY_CODE, CrashingFields::Pass) {
            Ok(reading) => reading.findings.iter().map(|finding| advice::advice(finding, empty)).collect(),
            Err(Unusable::RefusedByApp { .. }) => vec![Own::ActionCode.advice()],
            Err(Unusable::Invalid(_)) => Vec::new(),
        };
    if callback.wrong_type().is_some() {
        findings.push(advice::advice(Finding::FieldType, empty));
    }
    findings
}

/// What makes OpenIM fail, where no finding of the guard says so already.
fn of_a_failure(conclusion: &Conclusion, found: &[Advice]) -> Option<Advice> {
    let spelling = ["code-as-string", "code-as-float", "byte-order-mark"];
    if found.iter().any(|found| spelling.contains(&found.name)) {
        return None;
    }
    match conclusion {
        Conclusion::Allowed | Conclusion::Denied { .. } => None,
        Conclusion::DataError(Invalid::Syntax(_)) => Some(Own::NotJson.advice()),
        Conclusion::DataError(_) => Some(Own::WrongType.advice()),
        Conclusion::Fails(_) => Some(Own::CannotBeApplied.advice()),
    }
}

fn of_http(answer: &Answer, conclusion: &Conclusion) -> Vec<Advice> {
    let mut findings = Vec::new();
    let coding = answer.headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes().trim_ascii());
    if answer.unpacked {
        findings.push(advice::advice(Finding::Compressed, false));
    } else if coding.is_some_and(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")) {
        findings.push(Own::ContentEncoding.advice());
    }
    if let Conclusion::Denied { code } = conclusion
        && *code >= SMALLEST_DENY_CODE
        && !APP_CODES.contains(code)
    {
        findings.push(Own::DenyCodeOutOfRange.advice());
    }
    if !answer.status.is_success() {
        findings.push(match conclusion {
            Conclusion::Denied { .. } => advice::advice(Finding::RefusalWithStatus, false),
            Conclusion::Allowed => Own::StatusIgnored.advice(),
            // It fails whatever the status.
            Conclusion::DataError(_) | Conclusion::Fails(_) => {
                Advice { severity: Severity::Note, ..Own::StatusIgnored.advice() }
            }
        });
    }
    findings
}

/// What a load counts: the verdict, or the kind of failure.
pub(super) fn tally(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Network(failure) => format!("error 90004, {}", failure.kind.label()),
        Outcome::Allowed
        | Outcome::Denied { .. }
        | Outcome::Unread
        | Outcome::Redirected { .. }
        | Outcome::Data(_)
        | Outcome::Fails(_) => outcome.label(),
    }
}

/// The failure that every other callback would meet too.
pub(super) fn concerns_all(outcome: &Outcome) -> Option<&Failure> {
    if let Outcome::Network(failure) = outcome
        && failure.kind.concerns_all()
    {
        return Some(failure);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::simulate::bodies::{Sample, Samples, Server};
    use http::HeaderMap;

    fn judged(body: &'static str, took: Duration) -> Judged {
        let sample = Sample::of("callbackBeforeSendSingleMsgCommand", Server::V38, Samples::Usual).remove(0);
        let callback = sample.callback(&sample.sending(1)).expect("a callback");
        let answer = Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: body.into(),
            unpacked: false,
            h2: false,
        };
        judge(&callback, &answer, took, Duration::from_secs(5))
    }

    fn names(judged: &Judged) -> Vec<&'static str> {
        judged.findings.iter().map(|found| found.name).collect()
    }

    #[test]
    fn an_answer_that_took_more_than_half_of_the_timeout_is_slow() {
        let allow = r#"{"actionCode":0,"nextCode":0}"#;
        assert_eq!(names(&judged(allow, Duration::from_millis(2500))), [""; 0]);
        let slow = judged(allow, Duration::from_millis(2501));
        assert_eq!((names(&slow), slow.is_bad()), (vec!["slow"], false));
    }

    #[test]
    fn what_is_serious_comes_first_and_is_said_once() {
        let found = judged(r#"{"errCode":1,"nextCode":1}"#, Duration::from_secs(4));
        assert_eq!(names(&found), ["deny-code-too-small", "slow"]);
        assert_eq!(names(&judged(r#"{"nextCode":""}"#, Duration::ZERO)), ["code-as-string"]);
        assert_eq!(names(&judged(r#"{"nextCode":"","errMsg":1}"#, Duration::ZERO)), ["wrong-type"]);
    }

    #[test]
    fn a_refusal_reaches_the_user_from_100_on() {
        for (code, words) in [(0, "success"), (1, "500"), (99, "500"), (-1, "malformed")] {
            assert!(seen(code).is_some_and(|text| text.contains(words)), "{code}");
        }
        for code in [100, 5000, 9999, i32::MAX] {
            assert_eq!(seen(code), None, "{code}");
        }
    }
}
