//! What no input may do, whoever wrote it.
//!
//! `PROPTEST_CASES` scales all of it; what the generators reach is counted at the end, so that no property holds for
//! want of a case.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use callback_guard::breaker::{Breaker, BreakerSpec, Outcome, Permit, State};
use callback_guard::callback::command::{self, Command};
use callback_guard::callback::{Callback, RawRequest};
use callback_guard::cli::inject::{self, Manifests, Task};
use callback_guard::go_json::{self, Field, Kind};
use callback_guard::policy::{
    self, CrashingFields, FieldTypes, OnRejection, OperationIds, UnknownCommands, Validation,
};
use callback_guard::reply::Reply;
use callback_guard::sidecar::census::{self, PodState, Surroundings};
use callback_guard::sidecar::{self, Injection, Installation, Removal};
use callback_guard::verdict::{self, Conclusion, SMALLEST_DENY_CODE, Unusable, Verdict};
use http::{HeaderValue, Method, Request, Uri};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

#[path = "properties/after.rs"]
mod after;

const RULE_CODE: i32 = 5123;

/// Cases of each property where the environment does not say otherwise: about three seconds of all.
const CASES: u32 = 2_000;

fn config() -> ProptestConfig {
    let told = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { told.cases } else { CASES };
    ProptestConfig { cases, failure_persistence: None, ..told }
}

/// Every name of the catalogue, and some that are in none.
fn command_name() -> impl Strategy<Value = String> {
    // The ones that OpenIM does more with than to parse come more often.
    const SPECIAL: [&str; 6] = [
        "callbackBeforeMsgModifyCommand",
        "callbackBeforeMembersJoinGroupCommand",
        "callbackBeforeUserRegisterCommand",
        "callbackBeforeUpdateUserInfoExCommand",
        "callbackBeforeSetGroupInfoCommand",
        "callbackBeforeSetGroupInfoExCommand",
    ];
    let all: Vec<_> = command::names().map(|(name, _)| name.to_owned()).collect();
    prop_oneof![
        4 => select(&SPECIAL[..]).prop_map(str::to_owned),
        3 => select(all),
        1 => "callback[A-Za-z0-9._-]{0,20}",
    ]
}

/// The text of a value that may stand for a code, in every spelling that somebody's library writes.
fn code() -> impl Strategy<Value = String> {
    let spelled = select(vec![
        "0",
        "1",
        "-0",
        "-1",
        "2",
        "14",
        "99",
        "100",
        "5001",
        "2147483647",
        "2147483648",
        "-2147483649",
        "0.0",
        "1.0",
        "1e0",
        "10E-1",
        "1.5",
        "1e400",
        "\"\"",
        "\"0\"",
        "\"1\"",
        "\"5001\"",
        "\"-5\"",
        "\" 1\"",
        "\"+1\"",
        "\"x\"",
        "\"\\u0031\"",
        "null",
        "true",
        "[]",
        "{}",
    ]);
    let often = select(vec!["0", "1", "5001"]);
    prop_oneof![
        6 => often.prop_map(str::to_owned),
        6 => spelled.prop_map(str::to_owned),
        1 => any::<i64>().prop_map(|number| number.to_string()),
    ]
}

fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z0-9 ]{0,6}",
        1 => select(vec!["\\\"", "\\\\", "\\/", "\\n", "\\u0000", "\\ud83d\\ude00", "\\ud800", "\\u00e9"]).prop_map(str::to_owned),
        1 => select(vec!["é", "你", "\u{2028}", "\u{1f600}", "{", "}", "[", ":", "null"]).prop_map(str::to_owned),
    ];
    vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// The text of a value: of any type, and nested.
fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![3 => code(), 2 => string(), 1 => select(vec!["\"{}\"", "\"null\"", "\"[]\"", "\"{\\\"a\\\":1}\""]).prop_map(str::to_owned)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let member = (key(vec!["userID", "ex", "title", "nickname"]), inner.clone());
        prop_oneof![
            vec(inner, 0..4).prop_map(|list| format!("[{}]", list.join(","))),
            vec(member, 0..4).prop_map(|members| object(&members, "")),
        ]
    })
}

/// A key for one of these fields in some spelling, or another key.
fn key(names: Vec<&'static str>) -> impl Strategy<Value = String> {
    let spelled = (select(names), 0..10_u8).prop_map(|(name, how)| match how {
        0 => name.to_uppercase(),
        1 => name.to_lowercase(),
        2 => name.replacen('s', "\u{17f}", 1),
        3 => name.replacen('k', "\u{212a}", 1),
        4 => format!("\\u{:04x}{}", name.as_bytes()[0], &name[1..]),
        5 => format!("{name}s"),
        _ => name.to_owned(),
    });
    prop_oneof![9 => spelled, 1 => "[a-z_]{0,8}"].prop_map(|key| format!("\"{key}\""))
}

fn object(members: &[(String, String)], space: &str) -> String {
    let members: Vec<_> =
        members.iter().map(|(key, value)| format!("{space}{key}{space}:{space}{value}{space}")).collect();
    format!("{{{}}}", members.join(","))
}

/// A good value for a field of this kind.
fn fitting(kind: Kind) -> BoxedStrategy<String> {
    match kind {
        Kind::Str => prop_oneof![string(), Just("\"{}\"".to_owned())].boxed(),
        Kind::Bool => select(vec!["true", "false"]).prop_map(str::to_owned).boxed(),
        Kind::Int { min, max } => (min..=max).prop_map(|number| number.to_string()).boxed(),
        Kind::Bytes => Just("\"AAEC\"".to_owned()).boxed(),
        Kind::List(element) => {
            let element = prop_oneof![4 => fitting(element.kind), 1 => Just("null".to_owned())];
            vec(element, 0..3).prop_map(|list| format!("[{}]", list.join(","))).boxed()
        }
        Kind::Map(element) => fitting(element.kind).prop_map(|value| format!("{{\"a\":{value}}}")).boxed(),
        Kind::Struct([]) => Just("{}".to_owned()).boxed(),
        Kind::Struct(fields) => select(fields)
            .prop_flat_map(|field: Field| {
                fitting(field.ty.kind).prop_map(move |value| format!("{{\"{}\":{value}}}", field.name))
            })
            .boxed(),
    }
}

fn member(fields: &'static [Field]) -> impl Strategy<Value = (String, String)> {
    let names: Vec<_> = fields.iter().map(|field| field.name).collect();
    let good = select(fields).prop_flat_map(|field: Field| (key(vec![field.name]), fitting(field.ty.kind)));
    let coded = (key(vec!["actionCode", "errCode", "nextCode"]), code());
    let said = (key(vec!["errMsg", "errDlt"]), string());
    prop_oneof![4 => good, 4 => coded, 1 => said, 1 => (key(names), any_value())]
}

/// A document of these fields: most are JSON, some are broken in one place.
fn document(members: impl Strategy<Value = (String, String)>) -> impl Strategy<Value = Vec<u8>> {
    let space = prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t")];
    let whole = (vec(members, 0..8), space).prop_map(|(members, space)| object(&members, space));
    let whole = prop_oneof![30 => whole, 1 => any_value(), 1 => Just("null".to_owned())];
    (whole, 0..40_u8, any::<Index>(), any::<u8>()).prop_map(|(text, how, at, byte)| {
        let mut bytes = text.into_bytes();
        match how {
            0..=2 => {
                bytes.splice(..0, *b"\xef\xbb\xbf");
            }
            3 => bytes.truncate(at.index(bytes.len())),
            4 => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            5 => bytes.insert(at.index(bytes.len()), byte),
            6 => bytes.push(byte),
            7 => {
                let nested = 9_990 + usize::from(byte % 20);
                bytes.splice(..0, std::iter::repeat_n(b'[', nested));
                bytes.extend(std::iter::repeat_n(b']', nested));
            }
            _ => {}
        }
        bytes
    })
}

fn response_fields(name: &str) -> &'static [Field] {
    command::lookup(name).map_or(command::COMMON_RESPONSE, |command: &Command| command.response)
}

/// A callback, and what its app says.
fn asked_and_answered() -> impl Strategy<Value = (Callback, Vec<u8>)> {
    let nothing = prop_oneof![Just("null".to_owned()), Just("\"\"".to_owned()), string()];
    let numbers = prop_oneof![Just("null"), Just("0"), Just("7"), Just("\"7\"")];
    let request = (command_name(), vec(prop::option::of(nothing), 8), numbers);
    request.prop_flat_map(|(name, texts, number)| {
        let names =
            ["groupID", "groupName", "introduction", "faceURL", "ex", "nickName", "userID", "notification"];
        let mut body = format!(r#"{{"callbackCommand":"{name}","needVerification":{number}"#);
        for (name, text) in names.iter().zip(&texts) {
            if let Some(text) = text {
                body.push_str(&format!(",\"{name}\":{text}"));
            }
        }
        body.push('}');
        let answer = document(member(response_fields(&name)));
        answer.prop_map(move |answer| (callback(&name, body.clone()), answer))
    })
}

fn callback(name: &str, body: String) -> Callback {
    let request = Request::post(format!("/{name}")).header("operationID", "an id").body(());
    let raw = RawRequest { head: request.expect("a request").into_parts().0, body: body.into() };
    let parsed = Callback::parse(raw, &Validation::default(), || unreachable!("it has one"));
    parsed.unwrap_or_else(|(_, rejection)| panic!("{name}: {rejection}"))
}

/// `CommonCallbackResp.Parse` of OpenIM: the code of a refusal.
fn openims_parse(body: &[u8]) -> Option<i64> {
    let decoded: serde_json::Value = serde_json::from_slice(body).expect("what the guard writes is JSON");
    let code = |name: &str| decoded[name].as_i64().expect("what the guard writes has its codes");
    (code("actionCode") == 0 && code("nextCode") == 1).then(|| code("errCode"))
}

fn validation() -> impl Strategy<Value = Validation> {
    let ids = select(vec![OperationIds::Report, OperationIds::Require, OperationIds::Generate]);
    (ids, any::<[bool; 3]>()).prop_map(|(operation_id, [forward, report, deny])| Validation {
        unknown_commands: if forward { UnknownCommands::Forward } else { UnknownCommands::Reject },
        operation_id,
        field_types: if report { FieldTypes::Report } else { FieldTypes::Reject },
        on_rejection: if deny { OnRejection::Deny } else { OnRejection::Allow },
    })
}

/// A request: mostly one that means to be a callback, and anything else.
fn request() -> impl Strategy<Value = RawRequest> {
    let method = prop_oneof![9 => Just(Method::POST), 1 => Just(Method::GET)];
    let parts = (
        command_name(),
        command_name(),
        method,
        prop::option::weighted(0.9, vec(any::<u8>(), 0..20)),
        0..12_u8,
    );
    parts.prop_flat_map(|(name, other, method, id, how)| {
        let table = command::request_table(command::lookup(&name));
        let named = (key(vec!["callbackCommand"]), Just(format!("\"{name}\"")));
        let id_text = string().prop_map(|id| ("\"operationID\"".to_owned(), id));
        let member = prop_oneof![
            6 => select(table.fields).prop_flat_map(|field: Field| (key(vec![field.name]), fitting(field.ty.kind))),
            1 => named,
            1 => id_text,
            2 => (key(table.fields.iter().map(|field| field.name).collect()), any_value()),
        ];
        let target = match how {
            0 => format!("/any?command={name}&contenttype=json"),
            1 => format!("/{other}?command={name}"),
            2 => format!("/?command={name}&command={other}"),
            3 => format!("/cb?token=x/{name}"),
            4 => "/".to_owned(),
            _ => format!("/callback/{name}"),
        };
        document(member).prop_map(move |mut body| {
            let start = format!("{{\"callbackCommand\":\"{name}\"");
            if how != 11 && body.starts_with(b"{") {
                let comma: &[u8] = if body.starts_with(b"{}") { b"" } else { b"," };
                body.splice(..1, [start.as_bytes(), comma].concat());
            }
            let mut head = Request::builder().method(method.clone()).uri(target.parse::<Uri>().expect("a target"));
            if let Some(Ok(id)) = id.as_deref().map(HeaderValue::from_bytes) {
                head = head.header("operationID", id);
            }
            RawRequest { head: head.body(()).expect("a request").into_parts().0, body: body.into() }
        })
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_request_is_a_callback_or_a_rejection_and_keeps_its_bytes(request in request(), validation in validation()) {
        let (received, target): (Bytes, Uri) = (request.body.clone(), request.head.uri.clone());
        let raw = match Callback::parse(request, &validation, || "made-up".to_owned()) {
            Ok(callback) => {
                prop_assert_eq!(callback.body(), &received);
                prop_assert_eq!(callback.uri(), &target);
                let text: serde_json::Result<serde_json::Value> = serde_json::from_slice(&received);
                if let Ok(body) = text {
                    prop_assert!(body.is_object());
                }
                let id = callback.operation_id();
                prop_assert!(!id.text.is_empty());
                // Whichever header the app would read has the ID, or gives way to one that has.
                let headers = callback.headers().get_all("operationID");
                let agree = headers.iter().all(|value| go_json::lossy(value.as_bytes()).trim_matches([' ', '\t']) == id.text);
                prop_assert!(id.replaces_header() || (agree && headers.iter().count() > 0));
                prop_assert_eq!(callback.subject().name, callback.target().name());
                let allow = verdict::allow_body(Some(&callback));
                prop_assert_eq!(verdict::openim(&allow, &callback), Conclusion::Allowed);
                return Ok(());
            }
            Err((raw, rejection)) => {
                prop_assert!(rejection.status().is_client_error());
                for (on, echoes, refused) in [(OnRejection::Deny, false, true), (OnRejection::Allow, true, true), (OnRejection::Allow, false, false)] {
                    let reply = Reply::rejection(&rejection, on, echoes);
                    prop_assert_eq!(openims_parse(reply.body()), refused.then_some(5400));
                }
                raw
            }
        };
        prop_assert_eq!(&raw.body, &received);
        let observed = Callback::unchecked(raw, || "made-up".to_owned());
        prop_assert_eq!(observed.body(), &received);
        prop_assert!(!observed.operation_id().text.is_empty());
        let _ = observed.subject();
    }

    #[test]
    fn bytes_of_any_kind_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..200), name in command_name()) {
        let callback = callback(&name, format!(r#"{{"callbackCommand":"{name}"}}"#));
        let concluded = verdict::openim(&bytes, &callback);
        if let Ok(reading) = verdict::read(&bytes, &callback, RULE_CODE, CrashingFields::LeaveOut) {
            prop_assert!(concluded == Conclusion::Allowed || reading.findings.iter().count() > 0);
        }
    }

    #[test]
    fn whatever_is_passed_on_means_to_openim_what_is_claimed((callback, answer) in asked_and_answered()) {
        let concluded = verdict::openim(&answer, &callback);
        let Ok(reading) = verdict::read(&answer, &callback, RULE_CODE, CrashingFields::LeaveOut) else { return Ok(()) };
        let passed = verdict::read(&answer, &callback, RULE_CODE, CrashingFields::Pass).expect("an answer all the same");
        prop_assert_eq!(passed.verdict, reading.verdict);
        prop_assert_eq!(passed.body == reading.body, reading.left_out.is_empty());
        let claimed = match reading.verdict {
            Verdict::Allow => Conclusion::Allowed,
            Verdict::Deny { code } => {
                prop_assert!(code >= SMALLEST_DENY_CODE);
                Conclusion::Denied { code }
            }
        };
        prop_assert_eq!(verdict::openim(&reading.body, &callback), claimed.clone());
        let corrects = reading.findings.iter().any(|finding| finding.row().becomes.is_some());
        prop_assert_eq!(*reading.body != *answer, corrects);
        if !corrects {
            prop_assert_eq!(concluded, claimed);
        }
        let again = verdict::read(&reading.body, &callback, RULE_CODE, CrashingFields::LeaveOut).expect("an answer stays one");
        prop_assert_eq!((again.verdict, &again.body), (reading.verdict, &reading.body));
        prop_assert!(!again.findings.iter().any(|finding| finding.row().becomes.is_some()));
    }

    #[test]
    fn a_written_refusal_is_read_as_one(code: i32, message: String, detail: String, name in command_name()) {
        let body = verdict::deny_body(code, &message, &detail);
        prop_assert_eq!(openims_parse(&body), Some(i64::from(code)));
        let callback = callback(&name, format!(r#"{{"callbackCommand":"{name}"}}"#));
        prop_assert_eq!(verdict::openim(&body, &callback), Conclusion::Denied { code });
        let read = verdict::read(&body, &callback, RULE_CODE, CrashingFields::LeaveOut).expect("a refusal");
        prop_assert_eq!(read.verdict, Verdict::Deny { code: if code < SMALLEST_DENY_CODE { RULE_CODE } else { code } });
    }
}

fn valid_policies() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/policies/valid");
    let entries = fs::read_dir(folder).expect("the policies");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).expect("a policy")).collect()
}

/// A valid policy with some of its lines dropped, doubled, swapped or changed.
fn mutated_policy() -> impl Strategy<Value = String> {
    let words = select(vec![
        "rules",
        "defaults",
        "timeout",
        "1ms",
        "99h",
        "-1",
        "Allow",
        "Deny",
        "*",
        "&a",
        "*a",
        "<<",
        "{",
        "}",
        "[",
        "]",
        ":",
        "- ",
        "'",
        "\"",
        "|",
        "!!int",
        "null",
        "~",
        "1e9",
        "\t",
        "#",
        "---",
        "...",
        "callbackBefore*",
        "\u{0}",
        "é",
    ]);
    let change = (0..6_u8, any::<Index>(), any::<Index>(), words);
    (select(valid_policies()), vec(change, 1..6)).prop_map(|(text, changes)| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (how, one, other, word) in changes {
            if lines.is_empty() {
                break;
            }
            let (at, to) = (one.index(lines.len()), other.index(lines.len()));
            match how {
                0 => drop(lines.remove(at)),
                1 => lines.insert(to, lines[at].clone()),
                2 => lines.swap(at, to),
                3 => lines[at].push_str(word),
                4 => lines[at].insert_str(0, word),
                _ => {
                    let line = &mut lines[at];
                    let ends: Vec<_> =
                        line.char_indices().map(|(index, _)| index).chain([line.len()]).collect();
                    line.insert_str(ends[other.index(ends.len())], word);
                }
            }
        }
        lines.join("\n")
    })
}

/// Arbitrary text, and pieces of YAML in any order.
fn arbitrary_policy() -> impl Strategy<Value = String> {
    let pieces = select(vec![
        "rules:",
        "defaults:",
        "match:",
        "messages: Users",
        "contentTypes:",
        " 1000-5000",
        "commands:",
        "timeout:",
        " 2s",
        " 10ms",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "&a ",
        "*a",
        "!!str ",
        "'",
        "\"",
        "|\n",
        ">\n",
        "? ",
        "---\n",
        "# x\n",
        "null",
        "breaker:",
        "name: x",
        "version: 1",
    ]);
    prop_oneof![any::<String>(), vec(pieces, 0..30).prop_map(|pieces| pieces.concat())]
}

/// A text is a whole policy, or a list of problems that is not empty; and the same each time.
fn check_policy(text: &str) -> Result<(), TestCaseError> {
    let compiled = policy::compile(text);
    prop_assert_eq!(&compiled, &policy::compile(text));
    match compiled {
        Ok((policy, _)) => {
            prop_assert_eq!(policy.rules().last().map(|rule| &*rule.name), Some("default"));
            prop_assert!(policy.longest_timeout() <= policy.caller_timeout() - Duration::from_millis(200));
            for rule in policy.rules() {
                prop_assert!(rule.timeout() >= Duration::from_millis(10));
                prop_assert!((5000..=9999).contains(&rule.deny().code.get()));
            }
        }
        Err(problems) => {
            prop_assert!(problems.iter().count() > 0);
            prop_assert!(problems.iter().all(|problem| !problem.message.is_empty()));
        }
    }
    if let Err(problems) = policy::overrides::compile(text, SystemTime::UNIX_EPOCH) {
        prop_assert!(problems.iter().count() > 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_changed_policy_is_whole_or_has_problems(text in mutated_policy()) {
        check_policy(&text)?;
    }

    #[test]
    fn a_text_of_any_kind_is_a_policy_or_has_problems(text in arbitrary_policy()) {
        check_policy(&text)?;
    }
}

const MINIMUM: usize = 5;
const WINDOW_MS: u64 = 1_000;
const OPEN_MS: u64 = 500;

#[derive(Clone, Debug)]
enum Step {
    Admit,
    Record(Index, Outcome),
    Drop(Index),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = select(vec![Outcome::Success, Outcome::Failure, Outcome::Failure, Outcome::Ignored]);
    prop_oneof![
        6 => Just(Step::Admit),
        5 => (any::<Index>(), outcome).prop_map(|(which, outcome)| Step::Record(which, outcome)),
        1 => any::<Index>().prop_map(Step::Drop),
        2 => prop_oneof![3 => 0..150_u64, 1 => 0..2_000_u64].prop_map(Step::Wait),
    ]
}

/// The breaker as one would explain it: a list of what was counted, and a state.
struct Model {
    state: Phase,
    /// The state's number, so that a permit of an earlier one is told apart.
    turn: usize,
}

enum Phase {
    /// When each of the counted came, and whether it failed; parts of the window are counted from the first.
    Closed(Vec<(u64, bool)>),
    Open(u64),
    HalfOpen {
        probing: bool,
    },
}

impl Model {
    fn go(&mut self, state: Phase) {
        self.state = state;
        self.turn += 1;
    }

    fn admit(&mut self, now: u64) -> bool {
        match &mut self.state {
            Phase::Closed(_) => true,
            Phase::Open(until) if now < *until => false,
            Phase::Open(_) => {
                self.go(Phase::HalfOpen { probing: true });
                true
            }
            Phase::HalfOpen { probing } => !std::mem::replace(probing, true),
        }
    }

    fn record(&mut self, turn: usize, outcome: Outcome, now: u64) {
        if turn != self.turn {
            return;
        }
        let failed = outcome == Outcome::Failure;
        match (&mut self.state, outcome) {
            (Phase::HalfOpen { probing }, Outcome::Ignored) => *probing = false,
            (_, Outcome::Ignored) | (Phase::Open(_), _) => {}
            (Phase::HalfOpen { .. }, Outcome::Failure) => self.go(Phase::Open(now + OPEN_MS)),
            (Phase::HalfOpen { .. }, Outcome::Success) => self.go(Phase::Closed(Vec::new())),
            (Phase::Closed(counted), _) => {
                counted.push((now, failed));
                let first = counted[0].0;
                let part = |at: u64| (at - first) / (WINDOW_MS / 10);
                let recent: Vec<_> = counted.iter().filter(|(at, _)| part(*at) + 10 > part(now)).collect();
                let failures = recent.iter().filter(|(_, failed)| *failed).count();
                if recent.len() >= MINIMUM && failures * 2 >= recent.len() {
                    self.go(Phase::Open(now + OPEN_MS));
                }
            }
        }
    }

    fn shown(&self) -> State {
        match self.state {
            Phase::Closed(_) => State::Closed,
            Phase::Open(_) => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

fn play(steps: Vec<Step>, mut seen: impl FnMut(State)) -> Result<(), TestCaseError> {
    let spec = BreakerSpec {
        failure_rate: 0.5,
        minimum_callbacks: MINIMUM as u32,
        window: Duration::from_millis(WINDOW_MS),
        open_for: Duration::from_millis(OPEN_MS),
    };
    let (breaker, start, mut now) = (Arc::new(Breaker::new(spec)), Instant::now(), 0);
    let mut model = Model { state: Phase::Closed(Vec::new()), turn: 0 };
    let mut permits: Vec<(Permit, usize)> = Vec::new();
    let mut counted = 0;
    for step in steps {
        let at = |now: u64| start + Duration::from_millis(now);
        match step {
            Step::Wait(millis) => now += millis,
            Step::Admit => {
                let permit = breaker.admit(at(now));
                prop_assert_eq!(permit.is_ok(), model.admit(now));
                permits.extend(permit.map(|permit| (permit, model.turn)));
            }
            Step::Record(..) | Step::Drop(_) if permits.is_empty() => {}
            Step::Record(which, outcome) => {
                let (permit, turn) = permits.swap_remove(which.index(permits.len()));
                permit.record(outcome, at(now));
                model.record(turn, outcome, now);
                counted += usize::from(outcome != Outcome::Ignored);
            }
            Step::Drop(which) => {
                let (permit, turn) = permits.swap_remove(which.index(permits.len()));
                drop(permit);
                model.record(turn, Outcome::Ignored, now);
            }
        }
        prop_assert_eq!(breaker.state(), model.shown());
        seen(breaker.state());
        prop_assert!(counted >= MINIMUM || breaker.state() == State::Closed, "tripped below the minimum");
        let probes = permits.iter().filter(|(_, turn)| *turn == model.turn).count();
        match model.state {
            Phase::HalfOpen { probing } => prop_assert_eq!(probes, usize::from(probing), "one probe at most"),
            Phase::Open(_) => prop_assert_eq!(probes, 0),
            Phase::Closed(_) => {}
        }
    }
    // Whatever was out is given back: once its time has passed, there is a way through again.
    drop(permits);
    let later = start + Duration::from_millis(now + OPEN_MS);
    prop_assert!(breaker.admit(later).is_ok());
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_breaker_does_what_its_model_does(steps in vec(step(), 0..200)) {
        play(steps, drop)?;
    }
}

/// How often each label comes up in a thousand cases.
fn counted<T>(cases: impl Strategy<Value = T>, labels: impl Fn(T) -> Vec<String>) -> BTreeMap<String, usize> {
    let mut runner = TestRunner::deterministic();
    let mut counts = BTreeMap::new();
    for _ in 0..1_000 {
        let case = cases.new_tree(&mut runner).expect("a case").current();
        for label in labels(case) {
            *counts.entry(label).or_default() += 1;
        }
    }
    counts
}

fn assert_reached(counts: &BTreeMap<String, usize>, labels: &[&str]) {
    for label in labels {
        assert!(counts.get(*label).is_some_and(|count| *count >= 5), "{label} is hardly reached: {counts:?}");
    }
}

/// A text that readers of YAML may stumble over, or any other.
fn odd_text() -> impl Strategy<Value = String> {
    const ODD: &[&str] = &[
        "",
        "yes",
        "010",
        "1e3",
        "~",
        "null",
        "- a",
        "a: b",
        "a #b",
        "---",
        "...",
        "|",
        " x",
        "x ",
        "a\n",
        "a\n\n",
        "\n",
        "\n a\nb",
        "a\n\tb\n",
        "a\n  \nb",
        "# a\nb",
        "2001-01-01",
        "0x1F",
        "1:30",
        "=",
        "<<",
        "!a",
        "&a",
        "*a",
        "\"",
        "\\",
        "'",
        "a\r\nb",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{1f600}",
        "a:",
        "%a",
        "@a",
        "`a",
        "[",
        "{a}",
        "a,b",
        "off",
        "-",
        "?",
        ".5",
    ];
    prop_oneof![3 => select(ODD).prop_map(str::to_owned), 1 => any::<String>()]
}

/// Any JSON, its numbers whole.
fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        odd_text().prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let map = vec((odd_text(), inner.clone()), 0..4);
        prop_oneof![
            vec(inner, 0..4).prop_map(Value::from),
            map.prop_map(|entries| Value::Object(entries.into_iter().collect()))
        ]
    })
}

/// A pod with this or that set, some of it to values that no pod has.
fn pod() -> impl Strategy<Value = serde_json::Value> {
    let of = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let settings: Vec<(&str, serde_json::Value)> = [
        ("/metadata/annotations", "{}"),
        ("/metadata/annotations", r#"{"callback-guard.io/app-pre-stop-sleep": "5s"}"#),
        ("/metadata/annotations", r#"{"kubectl.kubernetes.io/default-container": "b"}"#),
        ("/metadata/annotations", r#"{"callback-guard.io/policy-source": "volume"}"#),
        ("/metadata/annotations", r#"{"callback-guard.io/colour": "red"}"#),
        ("/metadata/labels", r#"{"callback-guard.io/inject": "disabled"}"#),
        ("/metadata/labels", "{}"),
        ("/spec/initContainers", "[]"),
        ("/spec/initContainers", r#"[{"name": "first"}]"#),
        ("/spec/volumes", "[]"),
        ("/spec/volumes", r#"[{"name": "own"}]"#),
        ("/spec/hostNetwork", "true"),
        ("/spec/containers/0/lifecycle", "{}"),
        ("/spec/containers/0/lifecycle", r#"{"preStop": {"sleep": {"seconds": 3}}}"#),
        ("/spec/containers/0/ports", r#"[{"containerPort": 18443}]"#),
        ("/spec/containers/-", r#"{"name": "b"}"#),
    ]
    .map(|(path, value)| (path, of(value)))
    .to_vec();
    let bare = select(vec![
        r#"{"spec": {"containers": [{"name": "app"}]}}"#,
        r#"{"metadata": {}, "spec": {"containers": [{"name": "app"}]}}"#,
        r#"{"metadata": {"name": "x"}, "spec": {"containers": [{}]}}"#,
    ]);
    (bare, vec(select(settings), 0..5), json(), json()).prop_map(move |(bare, set, unknown, env)| {
        let mut pod = of(bare);
        let set = set.into_iter().chain([("/spec/unknown", unknown), ("/spec/containers/0/env", env)]);
        for (path, value) in set {
            sidecar::patch::Operation::Add { path: path.to_owned(), value }.apply(&mut pod);
        }
        pod
    })
}

fn injection(pod: &serde_json::Value) -> Injection {
    let request = sidecar::Request { by_name: true, ..sidecar::Request::default() };
    sidecar::inject(pod, &request, &Installation::of_image("guard:1"))
}

/// What the pod is in a namespace with this metadata. What is said about its owner is safe to type.
fn census(pod: &serde_json::Value, metadata: &serde_json::Value) -> Result<PodState, TestCaseError> {
    let installation = Installation::of_image("guard:1");
    let surroundings = Surroundings {
        namespace: "shop",
        metadata,
        labeled_since: census::label_time(metadata),
        installation: &installation,
        current: Some("1-aa"),
    };
    let owner = census::owner(pod);
    if let Some(remedy) = owner.remedy("shop", owner.name.as_str()) {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || " -./:".contains(letter);
        prop_assert!(remedy.chars().all(is_plain), "{}", remedy);
    }
    Ok(census::state(pod, &surroundings))
}

fn manifests(task: Task, text: &str) -> Result<String, String> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let config = Manifests { files: vec!["-".to_owned()], task };
    let code = inject::run(&config, &mut text.as_bytes(), &mut out, &mut err);
    let said = if code == 0 { out } else { err };
    let said = String::from_utf8(said).expect("UTF-8");
    if code == 0 { Ok(said) } else { Err(said) }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn injected_twice_is_injected_once_and_taken_out_it_is_as_before(pod in pod()) {
        if let Injection::Patch { steps, .. } = injection(&pod) {
            let mut after = pod.clone();
            for step in steps {
                let adds = matches!(step, sidecar::patch::Operation::Add { .. });
                prop_assert!(adds && step.apply(&mut after));
            }
            prop_assert_eq!(injection(&after), Injection::Skipped(sidecar::Reason::AlreadyInjected));
            let Removal::Patch(steps) = sidecar::uninject(&after) else { panic!("nothing to take out of {after}") };
            for step in steps {
                prop_assert!(step.apply(&mut after));
            }
            prop_assert_eq!(after, pod);
        }
    }

    #[test]
    fn no_pod_whatever_it_holds_stops_an_injection(pod in json()) {
        match injection(&pod) {
            Injection::Skipped(reason) => prop_assert!(reason.is_skipped()),
            Injection::Refused(problems) => {
                prop_assert!(!problems.is_empty());
                prop_assert!(problems.iter().all(|problem| !problem.reason.is_skipped()));
            }
            Injection::Patch { .. } => {}
        }
        sidecar::uninject(&pod);
        sidecar::workload::workloads(&pod);
    }

    #[test]
    fn no_pod_whatever_it_holds_stops_the_census(pod in json(), metadata in json(), times in vec(odd_text(), 0..3)) {
        census(&pod, &metadata)?;
        census(&pod, &serde_json::json!({"labels": {"callback-guard.io/inject": "enabled"}, "managedFields": metadata}))?;
        // The shapes that it looks at, with anything in their places.
        let managed: Vec<_> = times.iter().map(|time| serde_json::json!({
            "time": time, "fieldsV1": {"f:metadata": {"f:labels": {"f:callback-guard.io/inject": {}}}},
        })).collect();
        let namespace = serde_json::json!({"labels": {"callback-guard.io/inject": "enabled"}, "managedFields": managed});
        let name = times.first();
        let reference = serde_json::json!({"controller": true, "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name});
        let inside = serde_json::json!({
            "metadata": {
                "name": name, "creationTimestamp": metadata, "ownerReferences": [metadata, reference],
                "labels": {"callback-guard.io/injected": pod, "pod-template-hash": name}, "annotations": metadata,
            },
            "spec": {"initContainers": [pod, {"name": "callback-guard", "restartPolicy": "Always"}]},
        });
        census(&inside, &namespace)?;
    }

    #[test]
    fn a_pod_that_is_injected_is_guarded_and_one_that_is_not_says_why(pod in pod()) {
        let metadata = serde_json::json!({"labels": {"callback-guard.io/inject": "enabled"}});
        let installation = Installation::of_image("guard:1");
        let request = sidecar::Request { namespace_metadata: Some(&metadata), ..sidecar::Request::default() };
        match sidecar::inject(&pod, &request, &installation) {
            Injection::Patch { steps, .. } => {
                prop_assert_eq!(census(&pod, &metadata)?, PodState::Naked);
                let mut after = pod.clone();
                prop_assert!(steps.iter().all(|step| step.apply(&mut after)));
                prop_assert_eq!(census(&after, &metadata)?, PodState::Guarded { stale: false, in_front: None });
            }
            Injection::Skipped(sidecar::Reason::NotAsked | sidecar::Reason::Disabled) => {
                prop_assert_eq!(census(&pod, &metadata)?, PodState::NotOurs);
            }
            Injection::Skipped(reason) => prop_assert_eq!(census(&pod, &metadata)?, PodState::Skipped(reason)),
            Injection::Refused(problems) => {
                let PodState::Skipped(reason) = census(&pod, &metadata)? else { panic!("{problems:?}") };
                prop_assert!(problems.iter().any(|problem| problem.reason == reason));
            }
        }
    }

    #[test]
    fn a_manifest_written_anew_is_the_same_to_another_reader(mut pod in pod()) {
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        // Behind a marker it is YAML, and comes out as YAML.
        for text in [pod.to_string(), format!("---\n{pod}")] {
            let Ok(once) = manifests(Task::Inject(Installation::of_image("guard:1")), &text) else { continue };
            prop_assert_eq!(manifests(Task::Inject(Installation::of_image("guard:1")), &once), Ok(once.clone()));
            let back = manifests(Task::Uninject, &once).map_err(TestCaseError::fail)?;
            let read: serde_json::Value = serde_saphyr::from_str(&back).map_err(|error| TestCaseError::fail(format!("{error}: {back}")))?;
            prop_assert_eq!(&read, &pod, "{}", back);
        }
    }
}

#[test]
fn the_generators_reach_pods_of_every_fate() {
    let counts = counted(pod(), |pod| {
        let fate = match injection(&pod) {
            Injection::Patch { .. } => "injected".to_owned(),
            Injection::Skipped(skip) => skip.words().name.to_owned(),
            Injection::Refused(_) => "refused".to_owned(),
        };
        vec![fate]
    });
    assert_reached(&counts, &["injected", "disabled", "host-network", "port-in-use", "refused"]);
    let counts = counted(pod(), |mut pod| {
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let written = manifests(Task::Inject(Installation::of_image("guard:1")), &format!("---\n{pod}"));
        let refused = matches!(injection(&pod), Injection::Refused(_));
        vec![
            if written.is_ok() {
                "written"
            } else if refused {
                "refused"
            } else {
                "not written"
            }
            .to_owned(),
        ]
    });
    assert_reached(&counts, &["written", "refused"]);
    assert_eq!(counts.get("not written"), None, "{counts:?}");
}

#[test]
fn the_generators_reach_every_kind_of_request() {
    let strict = Validation {
        unknown_commands: UnknownCommands::Reject,
        field_types: FieldTypes::Reject,
        ..Validation::default()
    };
    let counts = counted(request(), |request| match Callback::parse(request, &strict, String::new) {
        Ok(_) => vec!["callback".to_owned()],
        Err((_, rejection)) => vec![rejection.label().label().to_owned()],
    });
    let labels = ["callback", "method", "command", "body", "operation-id", "field-type", "unknown-command"];
    assert_reached(&counts, &labels);
}

#[test]
fn the_generators_reach_every_kind_of_answer() {
    let counts = counted(asked_and_answered(), |(callback, answer)| {
        let concluded = match verdict::openim(&answer, &callback) {
            Conclusion::Allowed => "openim: allowed",
            Conclusion::Denied { .. } => "openim: denied",
            Conclusion::DataError(_) => "openim: data error",
            Conclusion::Fails(_) => "openim: fails",
        };
        let read = match verdict::read(&answer, &callback, RULE_CODE, CrashingFields::LeaveOut) {
            Ok(reading) => {
                let verdict = if reading.verdict == Verdict::Allow { "allow" } else { "deny" };
                let findings = reading.findings.iter().map(|finding| finding.row().name);
                findings.chain([verdict]).map(str::to_owned).collect()
            }
            Err(Unusable::Invalid(_)) => vec!["invalid".to_owned()],
            Err(Unusable::RefusedByApp { .. }) => vec!["refused by the app".to_owned()],
        };
        [concluded.to_owned()].into_iter().chain(read).collect()
    });
    assert_reached(&counts, &["openim: allowed", "openim: denied", "openim: data error", "openim: fails"]);
    assert_reached(&counts, &["allow", "deny", "invalid", "refused by the app"]);
    assert_reached(&counts, &["code-as-string", "code-as-float", "byte-order-mark", "deny-code-too-small"]);
    assert_reached(&counts, &["fields-left-out", "crash-prevented", "error-code-without-refusal"]);
    assert_reached(&counts, &["unknown-next-code", "no-known-field"]);
}

#[test]
fn the_generators_reach_good_and_bad_policies_and_every_state_of_a_breaker() {
    let word = |text: &str| if policy::compile(text).is_ok() { "policy" } else { "problems" };
    let counts = counted(mutated_policy(), |text| vec![word(&text).to_owned()]);
    assert_reached(&counts, &["policy", "problems"]);
    let counts = counted(arbitrary_policy(), |text| vec![word(&text).to_owned()]);
    assert_reached(&counts, &["policy", "problems"]);
    let counts = counted(vec(step(), 0..200), |steps| {
        let mut states = Vec::new();
        play(steps, |state| states.push(state.label().to_owned())).expect("the model holds");
        states
    });
    assert_reached(&counts, &["closed", "open", "half-open"]);
}
