//! A policy's text: a whole policy or problems that name places in the text, and bounded work for either.
//!
//! Input: the text.

use std::time::{Duration, SystemTime};

use super::memory::total;
use crate::policy::{self, Problem, overrides};

/// Most bytes that reading a text allocates: for itself, and for each of its bytes. A byte may be a node (`[,,,`), and a node that is
/// repeated by an alias counts each time, up to 50,000 of them.
const ALLOCATED: usize = 32 << 20;
const ALLOCATED_PER_BYTE: usize = 8 << 10;

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let before = total();
    let compiled = policy::compile(text);
    let (used, most) = (total() - before, ALLOCATED + text.len() * ALLOCATED_PER_BYTE);
    assert!(used <= most, "{used} bytes are allocated for {} of text", text.len());
    assert_eq!(compiled, policy::compile(text), "the same text is another policy: {text:?}");
    match compiled {
        Ok((policy, warnings)) => {
            assert_eq!(policy.rules().last().map(|rule| &*rule.name), Some("default"));
            assert!(policy.longest_timeout() <= policy.caller_timeout() - Duration::from_millis(200));
            for rule in policy.rules() {
                assert!(rule.timeout() >= Duration::from_millis(10));
                assert!((5000..=9999).contains(&rule.deny().code.get()));
            }
            warnings.iter().for_each(|warning| placed(text, warning));
            policy.to_json();
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            problems.iter().for_each(|problem| placed(text, problem));
        }
    }
    if let Err(problems) = overrides::compile(text, SystemTime::UNIX_EPOCH) {
        assert!(!problems.is_empty());
        problems.iter().for_each(|problem| placed(text, problem));
    }
}

/// The place of a problem is one that an editor can go to: behind the last character at most.
fn placed(text: &str, problem: &Problem) {
    assert!(!problem.message.is_empty());
    let Some(line) = problem.line else { return assert_eq!(problem.column, None) };
    // To YAML a carriage return alone ends a line too.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<_> = text.split('\n').collect();
    let found = (line as usize).checked_sub(1).and_then(|at| lines.get(at));
    let Some(found) = found else { panic!("line {line} of {}: {problem}: {text:?}", lines.len()) };
    let Some(column) = problem.column else { return };
    let columns = found.chars().count() + 1;
    assert!((1..=columns).contains(&(column as usize)), "{line}:{column} of {columns}: {problem}: {text:?}");
}
