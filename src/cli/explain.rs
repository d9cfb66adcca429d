//! `explain`: what a policy makes of one callback, and why, without sending anything.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value as Json, json};

use super::args::Explain;
use super::check::Format;
use crate::callback::rejection::Rejection;
use crate::callback::subject::{Messages, Subject};
use crate::callback::{Callback, RawRequest, SHOWN_OPERATION_ID};
use crate::cause::Cause;
use crate::policy::{
    After, Answer, AnsweredBy, CrashingFields, Decision, Mode, Order, Override, Plan, Policy, Redeliver,
    duration,
};
use crate::reply::Reply;
use crate::source::{compile, compile_override};
use crate::verdict::{Verdict, crashing_fields};

/// Explains, and gives the exit code: 0 where the callback would be accepted, 1 where it would be rejected or a file is
/// no good.
pub fn run(config: &Explain, stdin: &mut dyn Read, out: &mut dyn Write, now: SystemTime) -> u8 {
    let explained = match explained(config, stdin, now) {
        Ok(explained) => explained,
        Err(problems) => {
            super::complain(&problems);
            return super::PROBLEM;
        }
    };
    let text = match config.format {
        Format::Json => format!("{:#}\n", explained.json),
        Format::Text => explained.text,
    };
    u8::from(out.write_all(text.as_bytes()).is_err() || explained.rejected)
}

/// The same in both forms.
struct Explained {
    text: String,
    json: Json,
    rejected: bool,
}

fn explained(config: &Explain, stdin: &mut dyn Read, now: SystemTime) -> Result<Explained, Vec<String>> {
    let mut problems = Vec::new();
    let mut note = |flag: &str, problem: String| {
        problems.extend(problem.lines().map(|line| format!("{flag}: {line}")));
    };
    let policy = policy_of(config.policy.as_deref(), stdin).map_err(|problem| note("--policy", problem)).ok();
    let over = override_of(config.over.as_deref(), stdin).map_err(|problem| note("--override", problem)).ok();
    let body = read(&config.callback, stdin).map_err(|problem| note("--callback", problem)).ok();
    let (Some(policy), Some(over), Some(body)) = (policy, over, body) else { return Err(problems) };
    let raw = request(&body).map_err(|problem| vec![format!("--callback: {problem}")])?;
    Ok(match Callback::parse(raw, policy.validation(), || "made-up".to_owned()) {
        Ok(callback) => accepted(&policy, over.as_ref(), &callback, now),
        Err((_, rejection)) => rejected(&policy, &rejection),
    })
}

fn policy_of(path: Option<&Path>, stdin: &mut dyn Read) -> Result<Policy, String> {
    let Some(path) = path else { return Ok(Policy::builtin()) };
    read(path, stdin).and_then(|text| compile(&text)).map(|(policy, _)| policy)
}

fn override_of(path: Option<&Path>, stdin: &mut dyn Read) -> Result<Option<Override>, String> {
    let Some(path) = path else { return Ok(None) };
    read(path, stdin).and_then(|text| compile_override(&text)).map(|(over, _)| over)
}

/// What is wrong with the files of a command line that is wrong itself, so that nothing will be explained; each line
/// begins with its flag. Standard input is left alone.
pub(super) fn file_problems(
    policy: Option<&Path>,
    over: Option<&Path>,
    callback: Option<&Path>,
) -> Vec<String> {
    let file = |path: Option<&'_ Path>| path.filter(|path| *path != Path::new("-")).map(Path::to_owned);
    let stdin = &mut std::io::empty();
    let found = [
        ("--policy", policy_of(file(policy).as_deref(), stdin).err()),
        ("--override", override_of(file(over).as_deref(), stdin).err()),
        ("--callback", file(callback).and_then(|path| read(&path, stdin).err())),
    ];
    let lines = found.iter().filter_map(|(flag, problem)| problem.as_deref().map(|problem| (flag, problem)));
    lines.flat_map(|(flag, problem)| problem.lines().map(move |line| format!("{flag}: {line}"))).collect()
}

fn read(path: &Path, stdin: &mut dyn Read) -> Result<String, String> {
    if path == Path::new("-") {
        let mut text = String::new();
        return stdin
            .read_to_string(&mut text)
            .map(|_| text)
            .map_err(|error| format!("standard input: {error}"));
    }
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The request that OpenIM would make of a body: the command in the URL, the operation ID in the header.
fn request(body: &str) -> Result<RawRequest, String> {
    let parsed: Json = serde_json::from_str(body).unwrap_or_default();
    let command = parsed["callbackCommand"].as_str().unwrap_or("callbackOfThisFile");
    let mut request = http::Request::post(format!("/{command}"));
    // The header is OpenIM's context, and there always; a body may lack it or hold an empty one.
    let id = parsed["operationID"].as_str().filter(|id| !id.is_empty()).unwrap_or("explained");
    request = request.header("operationID", id);
    let request = request.body(()).map_err(|error| format!("callbackCommand or operationID: {error}"))?;
    Ok(RawRequest { head: request.into_parts().0, body: Bytes::from(body.trim_end().to_owned()) })
}

fn rejected(policy: &Policy, rejection: &Rejection) -> Explained {
    let reply = Reply::rejection(rejection, policy.validation().on_rejection, false);
    let verdict = verdict_words(reply.verdict());
    let observed = policy.mode() == Mode::Observe && rejection.may_be_observed();
    let mut text = format!("rejected, cause {}: {rejection}\n", rejection.label().label());
    let tail = if observed {
        "mode Observe: it is forwarded all the same\n".to_owned()
    } else {
        format!("answered with HTTP {} and {verdict}; the app is not asked\n", reply.status().as_u16())
    };
    text.push_str(&tail);
    let json = json!({
        "rejected": { "cause": rejection.label().label(), "reason": rejection.to_string(), "status": reply.status().as_u16() },
        "answer": verdict_json(reply.verdict()),
        "forwarded": observed,
    });
    Explained { text, json, rejected: !observed }
}

fn accepted(policy: &Policy, over: Option<&Override>, callback: &Callback, now: SystemTime) -> Explained {
    let subject = callback.subject();
    let mut text = String::new();
    let id: String = callback.operation_id().text.chars().take(SHOWN_OPERATION_ID).collect();
    let _ =
        writeln!(text, "callback   {} ({:?}), operationID {id}", subject.canonical_name(), subject.phase());
    if let Some(wrong) = callback.wrong_type() {
        let _ =
            writeln!(text, "finding    field-type: {} should be {}", wrong.field, wrong.expected.json_type());
    }
    let mut json = json!({
        "command": subject.canonical_name(),
        "phase": format!("{:?}", subject.phase()),
        "mode": policy.mode().label(),
    });
    match policy.decide(&subject, over, now) {
        Decision::Answer { answer, by } => {
            let (who, name) = match by {
                AnsweredBy::Rule(rule) => {
                    passed_over(policy, &subject, &rule.name, &mut text, &mut json);
                    ("rule", rule.name.to_string())
                }
                AnsweredBy::Override(over) => ("override", over.reason().to_owned()),
            };
            let _ =
                writeln!(text, "{who:<10} {name:?} answers: {}; the app is not asked", answer_words(answer));
            json["answeredBy"] = json!({ "kind": who, "name": name });
            json["answer"] = answer_json(answer);
        }
        Decision::Ask(plan) => {
            asks(policy, &subject, &plan, &mut text, &mut json);
            crashing(callback, &plan, &mut text, &mut json);
        }
    }
    Explained { text, json, rejected: false }
}

/// The rules above the one that matched, each with the first key that did not fit.
fn passed_over(policy: &Policy, subject: &Subject<'_>, matched: &str, text: &mut String, json: &mut Json) {
    let mut rows = Vec::new();
    for rule in policy.rules().iter().take_while(|rule| &*rule.name != matched) {
        let Some((key, wanted)) = rule.misfit(subject) else { continue };
        let found = found(subject, key);
        let _ = writeln!(
            text,
            "passed     {:?}: match.{key} wants {wanted}, the callback has {found}",
            rule.name
        );
        rows.push(json!({ "rule": &*rule.name, "key": key, "wanted": wanted, "found": found }));
    }
    json["passedOver"] = Json::Array(rows);
}

/// What a callback holds under a key of `match`.
fn found(subject: &Subject<'_>, key: &str) -> Json {
    match key {
        "commands" => json!(subject.name),
        "phase" => json!(format!("{:?}", subject.phase())),
        "messages" => json!(subject.messages().map(Messages::label)),
        "contentTypes" => json!(subject.content_type),
        "msgFrom" => json!(subject.msg_from),
        "sessionTypes" => json!(subject.session_type),
        "platformIDs" => subject.platform_ids.iter().flatten().copied().collect(),
        "sendIDs" => json!(subject.send_id),
        "recvIDs" => json!(subject.recv_id),
        _ => json!(subject.group_id),
    }
}

fn asks(policy: &Policy, subject: &Subject<'_>, plan: &Plan<'_>, text: &mut String, json: &mut Json) {
    passed_over(policy, subject, &plan.rule.name, text, json);
    let _ = writeln!(text, "rule       {:?}", plan.rule.name);
    if plan.observe {
        text.push_str("mode       Observe: what the app says travels on as it is\n");
    }
    if let Some(answer) = plan.would_answer {
        let _ = writeln!(text, "           would answer {} by itself in mode Enforce", answer_words(answer));
    }
    if let Some(over) = plan.over {
        let _ = writeln!(text, "override   until {}: {:?}", over.until_text(), over.reason());
    }
    json["rule"] = json!(&*plan.rule.name);
    json["override"] = json!(plan.over.map(Override::reason));
    if let Some(after) = plan.background() {
        return in_background(after, plan, text, json);
    }
    let left = policy.caller_timeout().saturating_sub(plan.timeout);
    let _ = writeln!(
        text,
        "deadline   {} after the request's head ({} before OpenIM gives up)",
        duration::display(plan.timeout),
        duration::display(left)
    );
    if let Some(limit) = plan.max_in_flight() {
        let _ = writeln!(text, "in flight  at most {limit} of this rule");
    }
    if let Some(breaker) = plan.breaker() {
        let _ = writeln!(
            text,
            "breaker    trips at {} of at least {} callbacks in {}, for {}",
            breaker.failure_rate,
            breaker.minimum_callbacks,
            duration::display(breaker.window),
            duration::display(breaker.open_for)
        );
    }
    text.push_str("answers    when the app does not:\n");
    let mut fallbacks = serde_json::Map::new();
    for cause in Cause::ALL {
        let answer = plan.fallback(cause);
        let _ = writeln!(text, "           {:<15} {}", cause.label(), answer_words(answer));
        fallbacks.insert(cause.label().to_owned(), answer_json(answer));
    }
    json["deadlineMs"] = json!(milliseconds(plan.timeout));
    json["fallbacks"] = Json::Object(fallbacks);
}

/// The fields of an answer that OpenIM may end on, and what becomes of them.
fn crashing(callback: &Callback, plan: &Plan<'_>, text: &mut String, json: &mut Json) {
    let names: Vec<_> = crashing_fields(callback).collect();
    if names.is_empty() {
        return;
    }
    let fate = match plan.crashing_fields() {
        CrashingFields::LeaveOut => "left out of an allow",
        CrashingFields::Pass => "passed on",
    };
    let _ = writeln!(text, "crashing   {fate}: {}, on which OpenIM may exit", names.join(", "));
    json["crashingFields"] = json!({ "fields": names, "do": plan.crashing_fields().label() });
}

fn in_background(after: &After, plan: &Plan<'_>, text: &mut String, json: &mut Json) {
    let repeated = match after.redeliver {
        Redeliver::WhenNotTaken => "if the app has not taken it",
        Redeliver::WhenUnsure => "until the app has answered 2xx",
    };
    let order = match after.order {
        Order::None => "in no order",
        Order::Key => "after the one before with the same key",
    };
    let (timeout, keep_for) = (duration::display(after.timeout), duration::display(after.keep_for));
    let _ = write!(
        text,
        "answer     allow, at once\ndelivery   in the background, {order}: {timeout} for an attempt, repeated {repeated}, kept for \
         {keep_for}\n"
    );
    let paused = plan.over.is_some_and(|over| over.answer().is_some());
    if paused {
        text.push_str("           paused until the override is over\n");
    }
    json["answer"] = answer_json(Answer::Allow);
    json["delivery"] = json!({
        "timeoutMs": milliseconds(after.timeout),
        "keepForMs": milliseconds(after.keep_for),
        "redeliver": after.redeliver.label(),
        "order": after.order.label(),
        "paused": paused,
    });
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn answer_words(answer: Answer<'_>) -> String {
    match answer {
        Answer::Allow => "allow".to_owned(),
        Answer::Deny(deny) => format!("deny {} {:?}", deny.code, deny.message),
    }
}

fn answer_json(answer: Answer<'_>) -> Json {
    match answer {
        Answer::Allow => json!({ "verdict": "allow" }),
        Answer::Deny(deny) => {
            json!({ "verdict": "deny", "errCode": deny.code, "errMsg": deny.message, "errDlt": deny.detail })
        }
    }
}

fn verdict_words(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow => "an allow".to_owned(),
        Verdict::Deny { code } => format!("a refusal ({code})"),
    }
}

fn verdict_json(verdict: Verdict) -> Json {
    match verdict {
        Verdict::Allow => json!({ "verdict": "allow" }),
        Verdict::Deny { code } => json!({ "verdict": "deny", "errCode": code }),
    }
}
