//! The corpora of two fuzz targets against OpenIM's own code: what libFuzzer found of answers and of callbacks is read by both.
//!
//! ```sh
//! fuzz/run callback-body answer-body --for 600
//! CORPORA=$PWD/fuzz/found cargo test --test openim corpora    # all that was found, not only what is kept
//! ```

use std::path::PathBuf;
use std::{env, fs};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use callback_guard::callback::rejection::Rejection;
use callback_guard::callback::{Callback, RawRequest};
use callback_guard::go_json::{SyntaxError, Token};
use callback_guard::policy::{CrashingFields, Validation};
use callback_guard::verdict::{self, Reading};
use http::Request;
use serde_json::{Value as Json, json};

use crate::differential::{agrees, as_claimed, disagreed, keeps_the_rest, read_job};
use crate::judge::Judge;

/// The fields of a request that `src/fuzz/answer_body.rs` sets, by the bits of its first byte.
const FIELDS: [&str; 8] =
    ["groupID", "groupName", "introduction", "faceURL", "ex", "nickName", "userID", "notification"];

/// What stands for a command that OpenIM's module does not know; libFuzzer makes up many.
const KNOWN: &str = "callbackBeforeSendSingleMsgCommand";

/// The inputs of a target: a command of OpenIM's module, choices, and the rest.
fn inputs(target: &str, known: &[String]) -> Vec<(String, u8, Vec<u8>)> {
    let folder = env::var_os("CORPORA")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")), PathBuf::from);
    let folder = folder.join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read =
        |entry: std::io::Result<fs::DirEntry>| fs::read(entry.expect("an entry").path()).expect("an input");
    let cases = entries.map(read).filter_map(|input| {
        let (choices, input) = input.split_first()?;
        let end = input.iter().position(|byte| *byte == b'\n')?;
        let (name, rest) = (String::from_utf8(input[..end].to_vec()).ok()?, &input[end + 1..]);
        if known.contains(&name) {
            return Some((name, *choices, rest.to_vec()));
        }
        Some((KNOWN.to_owned(), *choices, replaced(rest, name.as_bytes(), KNOWN.as_bytes())))
    });
    let cases: Vec<_> = cases.collect();
    assert!(cases.len() >= 10, "{} inputs in {}: too few to prove anything", cases.len(), folder.display());
    cases
}

/// The bytes with each `from` become `to`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while let [first, tail @ ..] = rest {
        match rest.strip_prefix(from) {
            Some(behind) if !from.is_empty() => {
                out.extend_from_slice(to);
                rest = behind;
            }
            Some(_) | None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn parsed(name: &str, body: Vec<u8>) -> Result<Callback, Rejection> {
    let head = Request::post(format!("/{name}")).header("operationID", "1").body(()).expect("a request");
    let raw = RawRequest { head: head.into_parts().0, body: Bytes::from(body) };
    Callback::parse(raw, &Validation::default(), || unreachable!("it has an ID"))
        .map_err(|(_, rejection)| rejection)
}

#[test]
fn every_answer_of_the_corpus_is_read_as_openim_reads_it_and_every_correction_as_claimed() {
    let mut judge = Judge::start();
    let cases: Vec<_> = inputs("answer-body", &judge.commands())
        .into_iter()
        .map(|(name, fields, answer)| {
            let mut body = json!({"callbackCommand": name, "needVerification": fields});
            for (at, field) in FIELDS.iter().enumerate() {
                body[field] = if fields & (1 << at) != 0 { json!("of \"the\" request") } else { Json::Null };
            }
            (parsed(&name, body.to_string().into()).expect("a callback"), answer)
        })
        .collect();
    let read: Vec<_> = cases
        .iter()
        .map(|(callback, answer)| verdict::read(answer, callback, 5123, CrashingFields::LeaveOut).ok())
        .collect();
    let jobs = cases.iter().zip(&read).flat_map(|((callback, answer), read)| {
        let name = callback.target().name();
        [read_job(name, answer), read_job(name, read.as_ref().map_or(b"null", |reading| &reading.body))]
    });
    let conclusions = judge.ask(jobs.collect::<Vec<_>>().into_iter());
    for (((callback, answer), read), pair) in cases.iter().zip(&read).zip(conclusions.chunks(2)) {
        if !agrees(answer, callback, &pair[0]) {
            disagreed(&mut judge, 0, answer, callback);
        }
        if let Some(reading @ Reading { verdict, .. }) = read {
            assert!(
                as_claimed(*verdict, &pair[1]) && keeps_the_rest(answer, reading, callback, &pair[1]),
                "{:?} for {} is claimed to be {verdict:?}, and OpenIM says {}",
                String::from_utf8_lossy(answer),
                callback.target().name(),
                pair[1]
            );
        }
    }
    println!("{} answers", cases.len());
}

#[test]
fn every_callback_of_the_corpus_is_json_to_go_if_it_is_to_us_and_names_the_same_command() {
    let mut judge = Judge::start();
    let cases = inputs("callback-body", &judge.commands());
    let jobs: Vec<_> = cases
        .iter()
        .map(|(name, _, body)| json!({"do": "request", "command": name, "answer": BASE64_STANDARD.encode(body)}))
        .collect();
    let mut accepted = 0;
    for ((name, _, body), go) in cases.into_iter().zip(judge.ask(jobs.into_iter())) {
        let shown = String::from_utf8_lossy(&body).into_owned();
        match parsed(&name, body) {
            Ok(callback) => {
                assert!(go["valid"] == true && go["command"] == *name, "{name}: {shown}: {go}");
                // Go finds more wrong types, for it folds the case of every key; and `null` is none to it.
                let wrong = callback.wrong_type().is_some_and(|wrong| wrong.found != Token::Null);
                assert!(!wrong || go["fits"] == false, "{name}: {shown}: {go}");
                accepted += 1;
            }
            Err(Rejection::NotJson(SyntaxError::Byte { .. } | SyntaxError::End | SyntaxError::Depth)) => {
                assert_eq!(go["valid"], false, "{name}: {shown}");
            }
            // Found before the end, or by a bound of ours.
            Err(Rejection::TwoCommandsInBody | Rejection::NotUtf8 { .. } | Rejection::NotJson(_)) => {}
            Err(_) => assert_eq!(go["valid"], true, "{name}: {shown}"),
        }
    }
    println!("{accepted} callbacks are accepted");
    assert!(accepted >= 10, "{accepted} callbacks are accepted: too few to prove anything");
}
