//! Lines of the log: each is one line, has no character that controls or reorders a terminal, and is JSON where it is to be.
//!
//! Input: three bytes of choices, then texts between bytes of 0xff.

use std::time::Duration;

use serde_json::Value as Json;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, warn};

use super::{choices, shown};
use crate::cause::Cause;
use crate::log::{self, Decision, Format, Queue, is_unsafe};
use crate::reply::{Origin, Why};
use crate::verdict::{FINDINGS, Findings, Verdict};

const STAMP: &str = "2026-11-26T12:34:56.789Z";

thread_local! {
    /// What `tracing` writes to in each format, and the lines.
    static LOGS: [(Format, Queue, Dispatch); 2] = [Format::Json, Format::Text].map(|format| {
        let queue = Queue::unwritten();
        let dispatch = log::dispatch(&queue, LevelFilter::INFO, format);
        (format, queue, dispatch)
    });
}

pub(super) fn run(input: &[u8]) {
    let Some((choices, rest)) = choices(input) else { return };
    let mut texts = rest.split(|byte| *byte == 0xff).map(shown);
    let texts: [String; 5] = std::array::from_fn(|_| texts.next().unwrap_or_default().into_owned());
    decision(choices, &texts);
    let [_, _, _, detail, reason] = &texts;
    assert!(!log::shown(detail).contains(is_unsafe));
    assert_eq!(log::shown(detail).chars().count(), detail.chars().count());
    LOGS.with(|logs| {
        for (format, queue, dispatch) in logs {
            tracing::dispatcher::with_default(dispatch, || warn!(reason, ?detail, "{reason}"));
            let line = queue.take();
            traced(&line, *format, reason);
        }
    });
}

/// The line of one callback.
fn decision([who, code, which]: [u8; 3], texts: &[String; 5]) {
    let [operation_id, command, rule, detail, over] = texts;
    let deny = Verdict::Deny { code: i32::from(code) * 40 };
    let (cause, finding) =
        (Cause::ALL[usize::from(code) % Cause::ALL.len()], &FINDINGS[usize::from(which) % FINDINGS.len()]);
    let decision = Decision {
        operation_id,
        header_operation_id: (which & 1 == 0).then_some(over),
        command,
        rule,
        verdict: if who & 1 == 0 { Verdict::Allow } else { deny },
        origin: Origin::ALL[usize::from(who >> 1) % 4],
        why: if who & 8 == 0 { Why::Nothing } else { Why::Cause(cause) },
        findings: if who & 16 == 0 { Findings::default() } else { [finding.finding].into_iter().collect() },
        took: Duration::from_micros(u64::from(which) << (who >> 3)),
        detail: (who & 32 == 0).then_some(detail),
        instead: (who & 64 == 0).then_some((deny, Why::Cause(cause))),
        over: (who & 128 == 0).then_some(over),
    };
    for format in [Format::Json, Format::Text] {
        let mut line = String::new();
        decision.write(&mut line, format, STAMP);
        let is_one = |line: &str| line.strip_suffix('\n').is_some_and(|text| !text.contains(is_unsafe));
        assert!(is_one(&line), "{line:?}");
        let mut counted = line.clone();
        Decision::add_count(&mut counted, format, 7);
        assert!(is_one(&counted), "{counted:?}");
        if format == Format::Text {
            assert!(counted.ends_with(" count=7\n"));
            assert!(decision.header_operation_id.is_none() || line.contains(" headerOperationID="), "{line}");
            continue;
        }
        let json: Json = serde_json::from_str(&line).expect("a line is JSON");
        // What a caller writes is a value: it is cut, and never becomes a field.
        assert!(operation_id.starts_with(json["operationID"].as_str().expect("a string")), "{line}");
        if let Some(id) = decision.header_operation_id {
            assert!(id.starts_with(json["headerOperationID"].as_str().expect("a string")), "{line}");
        }
        assert!(command.starts_with(json["command"].as_str().expect("a string")), "{line}");
        assert_eq!(json["rule"].as_str(), Some(&**rule));
        assert_eq!(json["detail"].as_str(), decision.detail);
        assert_eq!(json["override"].as_str(), decision.over);
        let mut keys = vec![
            "timestamp",
            "level",
            "message",
            "operationID",
            "headerOperationID",
            "command",
            "rule",
            "verdict",
            "origin",
            "cause",
        ];
        keys.extend([
            "errCode",
            "finding",
            "duration_ms",
            "enforceVerdict",
            "enforceErrCode",
            "enforceCause",
            "override",
            "detail",
        ]);
        let object = json.as_object().expect("an object");
        assert!(object.keys().all(|key| keys.contains(&&**key)), "{line}");
        let again: Json = serde_json::from_str(&counted).expect("a line with a count is JSON");
        assert_eq!(
            (&again["count"], again.as_object().map(serde_json::Map::len)),
            (&Json::from(7), Some(object.len() + 1))
        );
    }
}

/// A line of `tracing`.
fn traced(line: &[u8], format: Format, reason: &str) {
    let line = std::str::from_utf8(line).expect("UTF-8");
    let text = line.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {line:?}"));
    match format {
        Format::Json => {
            assert!(!text.contains(is_unsafe), "{text:?}");
            let json: Json = serde_json::from_str(text).expect("a line is JSON");
            assert_eq!(
                (json["reason"].as_str(), json["message"].as_str()),
                (Some(reason), Some(reason)),
                "{text}"
            );
        }
        Format::Text => {
            let safe = |letter: char| letter == '\t' || letter == '\n' || !is_unsafe(letter);
            assert!(text.chars().all(safe), "{text:?}");
            // A line that begins in the first column is one that the guard wrote.
            assert!(text.split('\n').skip(1).all(|more| more.starts_with("    ")), "{text:?}");
        }
    }
}
