//! What makes one callback dear: patterns and the IDs they are matched with, and the tokens of `Connection`.

use std::fmt::Write as _;
use std::time::Instant;

use tokio::io::AsyncWriteExt as _;

use crate::attacker::{Fates, body, h1_callback, many_h1, path, told};
use crate::good::KEPT;
use crate::lab::{Lab, Target};
use crate::setup::Setup;

/// 48,000 patterns that may match anywhere, and IDs as long as a callback may have them.
pub(crate) fn patterns() -> Lab {
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
        lab.attack(name, &KEPT, 2, async |target| one_by_one(&target, &request).await);
    }
    lab
}

/// `Connection` with thousands of options, each of which may name a header.
pub(crate) fn tokens() -> Lab {
    let mut lab = Lab::start(Setup::new());
    for (name, options) in [
        ("Connection with 30,000 options", "a,".repeat(30_000)),
        ("Connection with 7,000 options", "a,".repeat(7_000)),
        ("Connection with 32 options of 400 letters", format!("{},", "a".repeat(400)).repeat(32)),
    ] {
        let request = h1_callback(&path("ok"), &format!("Connection: {options}b\r\n"), &body("u1"));
        lab.attack(name, &KEPT, 2, async |target| {
            let (fates, other) = tokio::join!(one_by_one(&target, &request), one_by_one(&target, &request));
            format!("{fates}; {other}")
        });
    }
    lab
}

/// The same callback again and again over one connection.
async fn one_by_one(target: &Target, request: &[u8]) -> String {
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
    fates.to_string()
}
