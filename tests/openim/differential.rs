//! Our reading of answers against OpenIM's own: the same bytes go to OpenIM's structs and `Parse` (a small Go program,
//! `tests/openim/judge`) and to ours, and every field must come out alike.
//!
//! ```sh
//! cargo test --test openim read_as_openim                       # 100,000 cases
//! CASES=2000000 SEED=7 cargo test --test openim read_as_openim  # any number, from another seed
//! ```
//!
//! A disagreement prints the seed and the smallest form of the case that was found, with both readings.

use std::collections::HashMap;
use std::env;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use callback_guard::callback::command::{Command, SafeDefault};
use callback_guard::callback::{Callback, RawRequest};
use callback_guard::go_json::{self, Field, Kind, Type, Value, unquote};
use callback_guard::policy::{CrashingFields, Validation};
use callback_guard::verdict::{self, Conclusion, Finding, Reading, Verdict};
use serde_json::{Value as Json, json};

use crate::judge::Judge;

/// Cases of one turn: the judge is asked in batches.
const BATCH: usize = 2_000;

fn number(name: &str, default: u64) -> u64 {
    env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn every_answer_is_read_as_openim_reads_it_and_every_correction_as_claimed() {
    let (cases, seed) = (number("CASES", 100_000) as usize, number("SEED", 20_261_123));
    let mut judge = Judge::start();
    let callbacks = callbacks(&judge.commands());
    let corpus = corpus();
    let mut random = Random(seed);
    let (mut errors, mut denials, mut corrected) = (0, 0, 0);
    for batch in 0..cases.div_ceil(BATCH) {
        let drawn: Vec<_> = (0..BATCH.min(cases - batch * BATCH))
            .map(|_| {
                let at = random.below(callbacks.len());
                (at, answer(&mut random, &callbacks[at], &corpus))
            })
            .collect();
        let read: Vec<_> = drawn.iter().map(|(at, answer)| repaired(answer, &callbacks[*at])).collect();
        let jobs = drawn.iter().zip(&read).flat_map(|((at, answer), read)| {
            let command = callbacks[*at].target().name();
            [
                read_job(command, answer),
                read_job(command, read.as_ref().map_or(b"null", |reading| &reading.body)),
            ]
        });
        let conclusions = judge.ask(jobs);
        for (((at, answer), read), pair) in drawn.iter().zip(&read).zip(conclusions.chunks(2)) {
            let callback = &callbacks[*at];
            if !agrees(answer, callback, &pair[0]) {
                disagreed(&mut judge, seed, answer, callback);
            }
            errors += usize::from(pair[0]["verdict"] == "error");
            denials += usize::from(pair[0]["verdict"] == "denied");
            if let Some(reading) = read {
                let Reading { verdict, body, .. } = reading;
                corrected += usize::from(**body != **answer);
                assert!(
                    as_claimed(*verdict, &pair[1]) && keeps_the_rest(answer, reading, callback, &pair[1]),
                    "seed {seed}: {:?} for {} became {:?}, claimed to be {verdict:?}, and OpenIM says {}",
                    String::from_utf8_lossy(answer),
                    callback.target().name(),
                    String::from_utf8_lossy(body),
                    pair[1]
                );
            }
        }
    }
    println!(
        "{cases} cases from seed {seed}: {errors} errors, {denials} denials, {corrected} corrected; no disagreement"
    );
    // A generator that makes only one kind of case proves little.
    assert!(errors > cases / 20 && denials > cases / 50 && corrected > cases / 100);
}

#[test]
fn every_recorded_answer_cut_at_every_byte_is_read_as_openim_reads_it() {
    let mut judge = Judge::start();
    let callbacks = callbacks(&judge.commands());
    // Of the deep ones a prefix is like any other.
    let cases: Vec<_> = corpus()
        .into_iter()
        .enumerate()
        .filter(|(_, answer)| answer.len() < 1_000)
        .flat_map(|(at, answer)| {
            let callback = &callbacks[at % callbacks.len()];
            (0..answer.len()).map(move |end| (callback, answer[..end].to_vec())).collect::<Vec<_>>()
        })
        .collect();
    assert!(cases.len() > 5_000, "{}", cases.len());
    for batch in cases.chunks(BATCH) {
        let jobs = batch.iter().map(|(callback, cut)| read_job(callback.target().name(), cut));
        for ((callback, cut), judged) in batch.iter().zip(judge.ask(jobs)) {
            if !agrees(cut, callback, &judged) {
                disagreed(&mut judge, 0, cut, callback);
            }
        }
    }
}

/// A callback of every command that OpenIM's module knows, with the body that Go sends when nothing is set.
fn callbacks(known: &[String]) -> Vec<Callback> {
    let catalogue = include_str!("../../src/callback/callbacks.json");
    let catalogue: Vec<Json> = serde_json::from_str(catalogue).expect("the catalogue");
    let bodies: HashMap<_, _> = catalogue
        .iter()
        .map(|entry| (entry["command"].as_str().expect("a name"), &entry["requestZeroWire"]))
        .collect();
    assert_eq!(known.len(), 47, "commands of OpenIM's module");
    let callback = |name: &String| {
        let mut body = bodies[name.as_str()].clone();
        body["callbackCommand"] = json!(name);
        if body.get("groupID").is_some() {
            body["groupID"] = json!("g1");
        }
        let head =
            http::Request::post(format!("/{name}")).header("operationID", "1").body(()).expect("a request");
        let raw = RawRequest { head: head.into_parts().0, body: Bytes::from(body.to_string()) };
        match Callback::parse(raw, &Validation::default(), || unreachable!("an ID is sent")) {
            Ok(callback) => callback,
            Err((_, rejection)) => panic!("{name}: {rejection}"),
        }
    };
    known.iter().map(callback).collect()
}

fn corpus() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openim/samples");
    let verdicts = std::fs::read_to_string(format!("{folder}/verdicts.json")).expect("the samples");
    let verdicts: Vec<Json> = serde_json::from_str(&verdicts).expect("the samples");
    let read = |entry: &Json| std::fs::read(format!("{folder}/{}", entry["file"].as_str().expect("a file")));
    verdicts.iter().map(|entry| read(entry).expect("a sample")).collect()
}

pub(crate) fn read_job(command: &str, answer: &[u8]) -> Json {
    json!({"do": "read", "command": command, "answer": BASE64_STANDARD.encode(answer)})
}

/// What the guard would pass on, with the verdict it claims and what it corrected.
fn repaired<'a>(answer: &'a [u8], callback: &Callback) -> Option<Reading<'a>> {
    verdict::read(answer, callback, 5100, CrashingFields::LeaveOut).ok()
}

/// Whether OpenIM holds in the corrected answer what the app wrote, but for the fields that were corrected, and none that was
/// left out.
pub(crate) fn keeps_the_rest(
    answer: &[u8],
    reading: &Reading<'_>,
    callback: &Callback,
    judged: &Json,
) -> bool {
    let command = callback.command().expect("known");
    let plain = answer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(answer);
    let Ok(decoded) = go_json::decode(plain, command.response) else { return false };
    let echoed: &[&str] = match command.default {
        SafeDefault::Echo(fields) if reading.findings.has(Finding::FieldsLeftOut) => fields,
        SafeDefault::Echo(_) | SafeDefault::Plain => &[],
    };
    let corrected =
        |name: &str| ["actionCode", "errCode", "nextCode"].contains(&name) || echoed.contains(&name);
    command.response.iter().enumerate().filter(|(_, field)| !corrected(field.name)).all(|(at, field)| {
        let held = judged["response"].get(field.name).unwrap_or(&Json::Null);
        if reading.left_out.contains(&field.name) {
            return held.is_null();
        }
        same(plain, decoded.root.field(at), field.ty, held)
    })
}

pub(crate) fn as_claimed(verdict: Verdict, judged: &Json) -> bool {
    match verdict {
        Verdict::Allow => judged["verdict"] == "allowed",
        Verdict::Deny { code } => judged["verdict"] == "denied" && judged["code"] == code && code >= 100,
    }
}

/// Whether our reading of an answer is OpenIM's: error or not, every field, and the verdict.
pub(crate) fn agrees(answer: &[u8], callback: &Callback, judged: &Json) -> bool {
    let fields = callback.command().expect("known").response;
    let decoded = go_json::decode(answer, fields).ok().filter(|decoded| decoded.error_count == 0);
    let Some(decoded) = decoded else { return judged["verdict"] == "error" };
    if judged["verdict"] == "error" {
        return false;
    }
    let alike = fields.iter().enumerate().all(|(at, field)| {
        same(
            answer,
            decoded.root.field(at),
            field.ty,
            judged["response"].get(field.name).unwrap_or(&Json::Null),
        )
    });
    let verdict = match verdict::openim(answer, callback) {
        Conclusion::Allowed | Conclusion::Fails(_) => judged["verdict"] == "allowed",
        // OpenIM leaves a code of 0 out of what it prints, as the judge does.
        Conclusion::Denied { code } => {
            judged["verdict"] == "denied" && judged["code"].as_i64().unwrap_or(0) == i64::from(code)
        }
        Conclusion::DataError(_) => false,
    };
    alike && verdict
}

/// Compares a value with the same one as Go prints it. A zero value is printed as such, as null, or not at all.
fn same(bytes: &[u8], value: &Value, ty: Type, go: &Json) -> bool {
    let zero = |go: &Json| match go {
        Json::Null => true,
        Json::Bool(flag) => !flag && !ty.nillable,
        Json::Number(number) => number.as_i64() == Some(0) && !ty.nillable,
        Json::String(text) => text.is_empty() && !ty.nillable,
        Json::Array(_) | Json::Object(_) => false,
    };
    match (value, ty.kind) {
        (Value::Zero, _) => zero(go),
        (Value::Int(number), _) => go.as_i64() == Some(*number) || (*number == 0 && go.is_null()),
        (Value::Bool(flag), _) => go.as_bool() == Some(*flag) || (!flag && go.is_null()),
        (Value::Str(span), Kind::Bytes) => {
            let text: String =
                unquote(span.of(bytes)).chars().filter(|letter| !matches!(letter, '\r' | '\n')).collect();
            let printed = go.as_str().unwrap_or_default();
            // Go prints what it decoded; loose bits at the end are gone then.
            text.trim_end_matches('=').len() == printed.trim_end_matches('=').len()
                && (text.len() < 4 || text[..text.len() - 4] == printed[..printed.len() - 4])
        }
        (Value::Str(span), _) => {
            let text = unquote(span.of(bytes));
            go.as_str().map_or(text.is_empty() && go.is_null(), |printed| printed == text)
        }
        (Value::List(list), Kind::Bytes) => {
            let numbers: Vec<u8> = list.elements().iter().map(|element| element.int() as u8).collect();
            go.as_str().unwrap_or_default() == BASE64_STANDARD.encode(numbers)
        }
        (Value::List(list), Kind::List(element)) => match go.as_array() {
            Some(printed) => {
                printed.len() == list.elements().len()
                    && list.elements().iter().zip(printed).all(|(value, go)| same(bytes, value, *element, go))
            }
            // A field that Go leaves out when it is empty.
            None => go.is_null() && list.elements().is_empty(),
        },
        (Value::Map(map), Kind::Map(element)) => {
            let printed = go.as_object().cloned().unwrap_or_default();
            let entries = map.entries(bytes);
            printed.len() == entries.len()
                && entries.iter().all(|(key, value)| {
                    same(bytes, value, *element, printed.get(&**key).unwrap_or(&Json::Null))
                })
        }
        (Value::Struct(_), Kind::Struct(fields)) => {
            go.is_object()
                && fields.iter().enumerate().all(|(at, field)| {
                    same(bytes, value.field(at), field.ty, go.get(field.name).unwrap_or(&Json::Null))
                })
        }
        (Value::List(_) | Value::Map(_) | Value::Struct(_), _) => false,
    }
}

/// Cuts a case down as long as the two still disagree, and shows it.
pub(crate) fn disagreed(judge: &mut Judge, seed: u64, answer: &[u8], callback: &Callback) -> ! {
    let command = callback.target().name();
    let mut smallest = answer.to_vec();
    let mut step = smallest.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < smallest.len() {
            let mut tried = smallest.clone();
            tried.drain(at..(at + step).min(smallest.len()));
            let judged = judge.ask([read_job(command, &tried)].into_iter());
            if agrees(&tried, callback, &judged[0]) {
                at += step;
            } else {
                smallest = tried;
            }
        }
        step /= 2;
    }
    let judged = judge.ask([read_job(command, &smallest)].into_iter());
    let mut ours = String::new();
    let fields = callback.command().expect("known").response;
    write!(ours, "{:?}", go_json::decode(&smallest, fields)).expect("a string");
    panic!(
        "seed {seed}, {command}: the two disagree on {:?}\n OpenIM: {}\n ours: {ours}",
        String::from_utf8_lossy(&smallest),
        judged[0]
    );
}

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): the same cases from the same seed on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<'t, T: ?Sized>(&mut self, of: &[&'t T]) -> &'t T {
        of[self.below(of.len())]
    }
}

/// An answer for this callback: mostly grammatical, mostly of the right types, never of only one kind.
fn answer(random: &mut Random, callback: &Callback, corpus: &[Vec<u8>]) -> Vec<u8> {
    let command = callback.command().expect("known");
    let mut out = match random.below(10) {
        0 => corpus[random.below(corpus.len())].clone(),
        1 => {
            let mut out = Vec::new();
            any(random, &mut out, 3);
            out
        }
        _ => object(random, command),
    };
    if random.one_in(6) {
        mutate(random, &mut out, corpus);
    }
    out
}

fn object(random: &mut Random, command: &Command) -> Vec<u8> {
    let mut out = b"{".to_vec();
    let deny = random.one_in(3);
    let members = random.below(9);
    for member in 0..members {
        if member > 0 {
            out.extend_from_slice(random.pick(&[&b","[..], b" , ", b",\n\t"]));
        }
        if random.one_in(12) {
            string(random, &mut out);
            out.push(b':');
            if random.one_in(300) {
                let depth = 9_990 + random.below(20);
                out.extend(std::iter::repeat_n(b'[', depth));
                out.extend(std::iter::repeat_n(b']', depth));
            } else {
                any(random, &mut out, 3);
            }
            continue;
        }
        let field = &command.response[random.below(command.response.len())];
        key(random, &mut out, field.name);
        out.extend_from_slice(random.pick(&[&b":"[..], b" : ", b":\r\n"]));
        match field.name {
            "nextCode" if deny && !random.one_in(4) => {
                out.extend_from_slice(random.pick(&[&b"1"[..], b"1", b"\"1\"", b"1.0", b"1e0"]))
            }
            "actionCode" if !random.one_in(4) => {
                out.extend_from_slice(random.pick(&[&b"0"[..], b"0", b"\"\"", b"0.0", b"null"]))
            }
            _ => value(random, &mut out, field.ty, 3),
        }
    }
    if deny && random.one_in(2) {
        out.extend_from_slice(if members > 0 { b",\"nextCode\":1" } else { b"\"nextCode\":1" });
    }
    out.push(b'}');
    out
}

/// A key in one of the spellings that Go takes for the field, or nearly.
fn key(random: &mut Random, out: &mut Vec<u8>, name: &str) {
    out.push(b'"');
    let (plain, style) = (!random.one_in(3), random.below(5));
    for letter in name.chars() {
        let odd = !plain && random.one_in(3);
        match (odd, style, letter) {
            (true, 0, 's' | 'S') => out.extend_from_slice("\u{17f}".as_bytes()),
            (true, 0 | 1, 'k' | 'K') => out.extend_from_slice("\u{212a}".as_bytes()),
            (true, 0 | 1, _) => out.push(letter.to_ascii_uppercase() as u8),
            (true, 2, _) => out.push(letter.to_ascii_lowercase() as u8),
            (true, 3, _) => out.extend_from_slice(format!("\\u{:04x}", letter as u32).as_bytes()),
            (true, _, 's') => out.extend_from_slice(b"\\u017F"),
            _ => out.push(letter as u8),
        }
    }
    if random.one_in(60) {
        out.extend_from_slice(random.pick(&[&b"_"[..], b"s", b"\xff", b"\\u0000"]));
    }
    out.push(b'"');
}

/// A value, three times in four of its type.
fn value(random: &mut Random, out: &mut Vec<u8>, ty: Type, depth: usize) {
    if random.one_in(8) {
        return out.extend_from_slice(b"null");
    }
    if random.one_in(40) {
        return any(random, out, depth);
    }
    match ty.kind {
        Kind::Str => string(random, out),
        Kind::Bool => out.extend_from_slice(random.pick(&[&b"true"[..], b"false"])),
        Kind::Int { .. } => integer(random, out),
        Kind::Bytes if random.one_in(2) => {
            out.extend_from_slice(random.pick(&[
                &b"\"AAEC\""[..],
                b"\"AB==\"",
                b"\"AA\\nEC\"",
                b"\"\"",
                b"\"A\"",
                b"\"AAE\"",
                b"\"-_-_\"",
            ]));
        }
        Kind::Bytes => {
            list(random, out, Type { kind: Kind::Int { min: 0, max: 255 }, nillable: false }, depth)
        }
        Kind::List(element) => list(random, out, *element, depth),
        Kind::Map(element) => {
            out.push(b'{');
            for member in 0..random.below(4) {
                out.extend_from_slice(if member > 0 { b"," } else { b"" });
                out.extend_from_slice(random.pick(&[
                    &b"\"history\":"[..],
                    b"\"persistent\":",
                    b"\"\\u0061\":",
                    b"\"a\":",
                ]));
                value(random, out, *element, depth - 1);
            }
            out.push(b'}');
        }
        Kind::Struct(fields) => structure(random, out, fields, depth),
    }
}

fn structure(random: &mut Random, out: &mut Vec<u8>, fields: &[Field], depth: usize) {
    out.push(b'{');
    for member in 0..random.below(4) {
        out.extend_from_slice(if member > 0 { b"," } else { b"" });
        let field = &fields[random.below(fields.len())];
        key(random, out, field.name);
        out.push(b':');
        value(random, out, field.ty, depth.saturating_sub(1));
    }
    out.push(b'}');
}

fn list(random: &mut Random, out: &mut Vec<u8>, element: Type, depth: usize) {
    out.push(b'[');
    for member in 0..random.below(4) {
        out.extend_from_slice(if member > 0 { b"," } else { b"" });
        value(random, out, element, depth.saturating_sub(1));
    }
    out.push(b']');
}

fn integer(random: &mut Random, out: &mut Vec<u8>) {
    if !random.one_in(3) {
        return out.extend_from_slice(random.pick(&[
            &b"0"[..],
            b"1",
            b"-0",
            b"99",
            b"100",
            b"5001",
            b"255",
            b"2147483647",
        ]));
    }
    out.extend_from_slice(random.pick(&[
        &b"0"[..],
        b"0",
        b"0",
        b"1",
        b"1",
        b"2",
        b"-0",
        b"-1",
        b"99",
        b"100",
        b"5001",
        b"9999",
        b"255",
        b"256",
        b"1.0",
        b"0.0",
        b"1e0",
        b"1E+2",
        b"0.5",
        b"2147483647",
        b"2147483648",
        b"-2147483648",
        b"-2147483649",
        b"9223372036854775807",
        b"9223372036854775808",
        b"1e400",
        b"123456789012345678901234567890",
        b"\"\"",
        b"\"0\"",
        b"\"1\"",
        b"\"5001\"",
        b"\" 1\"",
        b"\"+1\"",
        b"\"01\"",
        b"\"\\u0031\"",
        b"01",
        b"+1",
        b"1.",
        b".5",
        b"-",
        b"true",
    ]));
}

fn string(random: &mut Random, out: &mut Vec<u8>) {
    out.push(b'"');
    for _ in 0..random.below(5) {
        out.extend_from_slice(random.pick(&[
            &b"a"[..],
            b"user-1",
            b"0",
            b" ",
            b"\\n",
            b"\\\"",
            b"\\\\",
            b"\\/",
            b"\\u0041",
            b"\\u00e9",
            b"\\ud83d\\ude00",
            b"\\ud800",
            b"\\udc00",
            b"\\ud800\\u0041",
            b"\\ud800\\ud800\\udc00",
            b"\xc3\xa9",
            b"\xf0\x9f\x98\x80",
            b"\xff",
            b"\xe2\x84",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"\xc0\x80",
            b"<",
            b"\x7f",
            b"{\\\"a\\\":1}",
        ]));
        if random.one_in(200) {
            out.extend_from_slice(random.pick(&[&b"\n"[..], b"\x00", b"\\x", b"\\u12", b"\""]));
        }
    }
    out.push(b'"');
}

fn any(random: &mut Random, out: &mut Vec<u8>, depth: usize) {
    match random.below(if depth == 0 { 6 } else { 9 }) {
        0 => out.extend_from_slice(b"null"),
        1 => out.extend_from_slice(random.pick(&[&b"true"[..], b"false", b"nul", b"True"])),
        2 | 3 => integer(random, out),
        4 | 5 => string(random, out),
        6 | 7 => {
            out.push(b'[');
            for member in 0..random.below(3) {
                out.extend_from_slice(if member > 0 { b"," } else { b"" });
                any(random, out, depth - 1);
            }
            out.push(b']');
        }
        _ => {
            out.push(b'{');
            for member in 0..random.below(3) {
                out.extend_from_slice(if member > 0 { b"," } else { b"" });
                string(random, out);
                out.push(b':');
                any(random, out, depth - 1);
            }
            out.push(b'}');
        }
    }
}

/// Breaks a case, or joins it with another.
fn mutate(random: &mut Random, out: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = random.below(out.len() + 1);
    match random.below(9) {
        0 => out.truncate(at),
        1 => out.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
        2 => out.extend_from_slice(random.pick(&[&b"x"[..], b"\n \t", b"\0", b"{}", b"//"])),
        3 if at < out.len() => out[at] = random.next() as u8,
        4 => out.insert(at, b",\"{] \\\x80"[random.below(7)]),
        5 if at < out.len() => drop(out.remove(at)),
        6 => {
            let other = &corpus[random.below(corpus.len())];
            let cut = random.below(other.len() + 1);
            out.splice(at..at, other[cut..].iter().copied()).for_each(drop);
        }
        7 => {
            let end = (at + random.below(20)).min(out.len());
            let again = out[at..end].to_vec();
            out.splice(at..at, again).for_each(drop);
        }
        _ => {
            out.splice(0..0, *b" \r\n\t").for_each(drop);
        }
    }
}
