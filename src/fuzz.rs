//! The fuzz targets: claims that no input may break, as functions of bytes.
//!
//! Both `fuzz/run` (libFuzzer) and the replay of the corpora below `fuzz/corpus` (`cargo test --lib fuzz`) call them. A
//! broken claim is a panic. The module is compiled for tests and with `--cfg fuzzing`, never into the program, so that it
//! may look at private parts.

mod answer_body;
mod callback_body;
mod h2_frames;
mod log_lines;
mod manifests;
mod memory;
mod policy_text;
mod request_head;

use std::borrow::Cow;

use bytes::Bytes;
use http::Request;

use crate::callback::target::Target;
use crate::callback::{Callback, OPERATION_ID, RawRequest};
use crate::policy::Validation;

/// A set of claims.
pub struct Claims {
    /// Its name for `fuzz/run`, and of the folder of its corpus.
    pub name: &'static str,
    /// Panics if a claim does not hold for these bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Claims] = &[
    Claims { name: "request-head", run: request_head::run },
    Claims { name: "callback-body", run: callback_body::run },
    Claims { name: "answer-head", run: crate::upstream::claims::run },
    Claims { name: "answer-body", run: answer_body::run },
    Claims { name: "policy-text", run: policy_text::run },
    Claims { name: "manifests", run: manifests::run },
    Claims { name: "log-lines", run: log_lines::run },
    Claims { name: "h2-frames", run: h2_frames::run },
];

/// Takes the first `N` bytes, which choose among the cases of a target.
fn choices<const N: usize>(input: &[u8]) -> Option<([u8; N], &[u8])> {
    input.split_first_chunk().map(|(choices, rest)| (*choices, rest))
}

/// Takes a byte of choices and the name of a command, which is the rest of the first line.
fn choice_and_command(input: &[u8]) -> Option<(u8, &str, &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let (choice, name) = input[..end].split_first()?;
    let name = std::str::from_utf8(name).ok()?;
    let target = Target::parse(&format!("/{name}").parse().ok()?).ok()?;
    (target.name() == name).then_some((*choice, name, &input[end + 1..]))
}

/// A callback of this command with this body, as OpenIM sends it.
fn callback(name: &str, body: impl Into<Bytes>) -> Callback {
    let request = Request::post(format!("/{name}")).header(OPERATION_ID, "1").body(());
    let raw = RawRequest { head: request.expect("a request").into_parts().0, body: body.into() };
    let parsed = Callback::parse(raw, &Validation::default(), || unreachable!("it has an ID"));
    parsed.unwrap_or_else(|(_, rejection)| panic!("{name}: {rejection}"))
}

/// Bytes for the text of a failed claim.
fn shown(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a target on each input of its corpus.
    fn replay(name: &str) {
        let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
        let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert!(paths.len() >= 10, "{} inputs in {folder}: too few to prove anything", paths.len());
        paths.retain(|path| {
            let input = std::fs::read(path).expect("an input");
            let breaks = std::panic::catch_unwind(|| (target.run)(&input)).is_err();
            if breaks {
                println!("^ {}", path.display());
            }
            breaks
        });
        assert!(paths.is_empty(), "these inputs break a claim, as told above: {paths:?}");
    }

    #[test]
    fn the_corpus_of_request_heads_breaks_no_claim() {
        replay("request-head");
    }

    #[test]
    fn the_corpus_of_callback_bodies_breaks_no_claim() {
        replay("callback-body");
    }

    #[test]
    fn the_corpus_of_answer_heads_breaks_no_claim() {
        replay("answer-head");
    }

    #[test]
    fn the_corpus_of_answer_bodies_breaks_no_claim() {
        replay("answer-body");
    }

    #[test]
    fn the_corpus_of_policies_breaks_no_claim() {
        replay("policy-text");
    }

    #[test]
    fn the_corpus_of_manifests_breaks_no_claim() {
        replay("manifests");
    }

    #[test]
    fn the_corpus_of_log_lines_breaks_no_claim() {
        replay("log-lines");
    }

    #[test]
    fn the_corpus_of_h2_frames_breaks_no_claim() {
        replay("h2-frames");
    }

    #[test]
    fn each_target_has_a_corpus_and_each_corpus_a_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.expect("an entry").file_name().into_string().expect("UTF-8")
        };
        let mut folders: Vec<_> = std::fs::read_dir(folder).expect("the corpora").map(name).collect();
        let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        folders.sort();
        targets.sort();
        assert_eq!(folders, targets);
    }
}
