//! What makes one callback dear: patterns and the IDs they are matched with, and the tokens of `Connection`.

use std::fmt::Write as _;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::attacker::{Fates, MANY, all, body, h1_callback, many_h1, named, path, told};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::setup::Setup;

/// 48,000 patterns that may match anywhere, and IDs as long as a callback may have them.
pub(crate) fn patterns() -> Lab {
    patterns_by(1)
}

pub(crate) fn patterns_by_many() -> Lab {
    patterns_by(MANY)
}

fn patterns_by(connections: usize) -> Lab {
    let rules = (0..48).fold(String::new(), |mut rules, rule| {
        let patterns: Vec<_> = (0..1_000).map(|number| format!("'*{rule}z{number}*'")).collect();
        let patterns = patterns.join(",");
        let _ = writeln!(rules, "  - {{name: r{rule}, match: {{sendIDs: [{patterns}]}}, answer: Allow}}");
        rules
    });
    let setup = Setup::new().rules(rules);
    let largest = setup.default_size("--max-request-size") - 300;
    let mut lab = Lab::start(setup);
    for (name, length) in [
        ("48,000 patterns, IDs of 10 letters", 10),
        ("48,000 patterns, IDs of 1,000 letters", 1_000),
        ("48,000 patterns, IDs of --max-request-size", largest),
    ] {
        let request = h1_callback(&path("ok"), "", &body(&"a".repeat(length)));
        lab.attack(named(name, connections), &KEPT, 2, async |target| {
            all(connections, async || one_by_one(&target, &request).await).await.to_string()
        });
    }
    lab
}

/// `Connection` with thousands of options, each of which may name a header.
pub(crate) fn tokens() -> Lab {
    tokens_by(2)
}

pub(crate) fn tokens_by_many() -> Lab {
    tokens_by(MANY)
}

fn tokens_by(connections: usize) -> Lab {
    let mut lab = Lab::start(Setup::new());
    for (name, options) in [
        ("Connection with 30,000 options", "a,".repeat(30_000)),
        ("Connection with 7,000 options", "a,".repeat(7_000)),
        ("Connection with 32 options of 400 letters", format!("{},", "a".repeat(400)).repeat(32)),
    ] {
        let request = h1_callback(&path("ok"), &format!("Connection: {options}b\r\n"), &body("u1"));
        lab.attack(named(name, connections), &KEPT, 2, async |target| {
            all(connections, async || one_by_one(&target, &request).await).await.to_string()
        });
    }
    lab
}

/// The same callback again and again over one connection.
async fn one_by_one(target: &Target, request: &[u8]) -> Fates {
    let mut fates = Fates::default();
    while Instant::now() < target.until {
        let Some(mut stream) = many_h1(target, 1, None).await.pop() else { break };
        while Instant::now() < target.until {
            let ask = async {
                stream.write_all(request).await?;
                told(&mut stream).await
            };
            match tokio::time::timeout_at(target.until.into(), ask).await {
                Ok(Ok(answer)) => fates.add(answer),
                Ok(Err(_)) => break,
                Err(_) => {
                    fates.add("unanswered at the end");
                    break;
                }
            }
        }
    }
    fates
}

/// Callbacks that a rule answers, each sent before the answer to the one before: nothing but the worker's own time bounds them.
pub(crate) fn pipelined() -> Lab {
    let mut lab = Lab::start(Setup::new());
    let batch = h1_callback(&path("ok"), "", &body("good")).repeat(200);
    for connections in [1, MANY] {
        let name = named("callbacks for a rule, sent without waiting for answers, HTTP/1.1", connections);
        lab.attack(name, &KEPT, 3, async |target| {
            all(connections, async || without_waiting(&target, &batch).await).await.to_string()
        });
    }
    lab
}

/// Writes again and again, and reads whatever comes.
async fn without_waiting(target: &Target, batch: &[u8]) -> Fates {
    let mut fates = Fates::default();
    while let Some(stream) = many_h1(target, 1, None).await.pop() {
        let (mut read, mut write) = tokio::io::split(stream);
        let writing = async { while write.write_all(batch).await.is_ok() {} };
        let reading = async {
            let mut buffer = vec![0; 64 << 10];
            while !matches!(read.read(&mut buffer).await, Ok(0) | Err(_)) {}
        };
        let both = async { tokio::join!(writing, reading) };
        let fate = tokio::time::timeout_at(target.until.into(), both).await;
        fates.add(fate.map_or("open", |_| "closed"));
    }
    fates
}
