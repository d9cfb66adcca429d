//! Bodies that take long to read: one that is large, one that is quadratic, many at once, and packed ones.

use std::fmt::Write as _;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncWriteExt as _;

use crate::attacker::{Fates, H2, MANY, all, body, h1_callback, many_h1, named, path, rest, told};
use crate::good::{COMMAND, KEPT};
use crate::lab::{Lab, Target};
use crate::setup::Setup;
use crate::support::frames::{INITIAL_WINDOW, callback};
use crate::toy;

const MIB: usize = 1 << 20;
const MODIFY: &str = "callbackBeforeMsgModifyCommand";
const HEAD: &str = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0"#;

/// An answer whose `options` have 1,023 keys, and then the last of them again and again, until it has this many bytes. With an
/// escape in them keys cost more to compare.
fn quadratic(bytes: usize) -> Vec<u8> {
    let key = |number: u32| format!("\"\\u0061{number:04}\":true");
    let mut text = format!("{HEAD},\"options\":{{{}", (0..1_023).map(key).collect::<Vec<_>>().join(","));
    let last = format!(",{}", key(1_022));
    while text.len() + last.len() + 2 < bytes {
        text.push_str(&last);
    }
    text.push_str("}}");
    text.into_bytes()
}

/// Lists in lists, the shape that costs most for its size.
fn nested(bytes: usize, head: &str) -> Vec<u8> {
    let tower = format!("{}{},", "[".repeat(9_990), "]".repeat(9_990));
    let mut text = format!("{head},\"zz\":[");
    while text.len() + tower.len() + 4 < bytes {
        text.push_str(&tower);
    }
    text.push_str("1]}");
    text.into_bytes()
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn packed_answer(body: impl AsRef<[u8]>) -> Bytes {
    toy::answer(body, "Content-Encoding: gzip\r\n")
}

/// Asks again and again over one connection, each time for this answer of the app.
async fn ask(target: &Target, command: &str, mode: &str) -> Fates {
    let mut fates = Fates::default();
    let text = format!(r#"{{"callbackCommand":"{command}","operationID":"1","sendID":"u1"}}"#);
    let request = h1_callback(&format!("/{command}?mode={mode}"), "", text.as_bytes());
    while std::time::Instant::now() < target.until {
        let Some(mut stream) = many_h1(target, 1, None).await.pop() else { break };
        let answer = async {
            stream.write_all(&request).await?;
            told(&mut stream).await
        };
        fates.add(answer.await.unwrap_or_else(|error| error.kind().to_string()));
    }
    fates
}

/// A map in an answer, with a key that comes up again and again.
pub(crate) fn map() -> Lab {
    map_by(1)
}

pub(crate) fn map_by_many() -> Lab {
    map_by(MANY)
}

fn map_by(connections: usize) -> Lab {
    let setup = Setup::new();
    let largest = setup.default_size("--max-answer-size");
    let answer = |bytes| toy::answer(quadratic(bytes), "");
    let sizes = [("small", 900 << 10), ("large", largest.min(2 * MIB) - 200)];
    let setup = sizes.iter().fold(setup, |setup, (mode, bytes)| setup.app_answers(mode, answer(*bytes)));
    let mut lab = Lab::start(setup);
    for (name, mode) in [
        ("answers with a map of one key again and again, 0.9 MB", "small"),
        ("the same, 2 MB or --max-answer-size", "large"),
    ] {
        lab.attack(named(name, connections), &KEPT, 2, async |target| {
            all(connections, async || ask(&target, MODIFY, mode).await).await.to_string()
        });
    }
    lab
}

/// Large answers that come together.
pub(crate) fn answers_at_once() -> Lab {
    let setup = Setup::new();
    let largest = setup.default_size("--max-answer-size");
    let setup = setup.app_answers("nested", toy::answer(nested(largest.min(7 * MIB) - 200, HEAD), ""));
    let mut lab = Lab::start(setup);
    lab.attack("31 answers of 7 MB or --max-answer-size at once, in turns", &KEPT, 4, async |target| {
        at_once(&target, 31, &h1_callback(&path("nested"), "", &body("u1"))).await
    });
    lab
}

/// Large callbacks that come together.
pub(crate) fn requests_at_once() -> Lab {
    let setup = Setup::new();
    let largest = setup.default_size("--max-request-size");
    let mut lab = Lab::start(setup);
    let head = format!(r#"{{"callbackCommand":"{COMMAND}","operationID":"1","sendID":"good""#);
    let request = |bytes: usize| h1_callback(&path("ok"), "", &nested(bytes, &head));
    lab.attack("24 requests of --max-request-size at once, in turns", &KEPT, 4, async |target| {
        at_once(&target, 24, &request(largest - 200)).await
    });
    lab.attack("100 requests of 256 KiB at once, in turns", &KEPT, 2, async |target| {
        at_once(&target, 100, &request(256 << 10)).await
    });
    lab
}

/// Sends a request on each of so many connections, the last bytes of all together; and again until time is over.
async fn at_once(target: &Target, connections: usize, request: &[u8]) -> String {
    let mut streams = many_h1(target, connections, None).await;
    let (first, last) = request.split_at(request.len() - 10);
    let mut fates = Fates::default();
    while std::time::Instant::now() < target.until && !streams.is_empty() {
        let writing = streams.drain(..).map(|mut stream| async move {
            let written = tokio::time::timeout_at(target.until.into(), stream.write_all(first)).await;
            matches!(written, Ok(Ok(()))).then_some(stream)
        });
        let written = futures::future::join_all(writing).await;
        let asking = written.into_iter().flatten().map(|mut stream| async move {
            let asked = async {
                stream.write_all(last).await?;
                told(&mut stream).await
            };
            let answer = tokio::time::timeout_at(target.until.into(), asked).await;
            (stream, answer.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())))
        });
        for (stream, answer) in futures::future::join_all(asking).await {
            match answer {
                Ok(answer) => {
                    fates.add(answer);
                    streams.push(stream);
                }
                Err(error) => fates.add(format!("ended: {}", error.kind())),
            }
        }
        if streams.is_empty() {
            streams = many_h1(target, connections, None).await;
        }
    }
    fates.to_string()
}

/// Packed answers: small ones that become large, and one of nothing but ends and beginnings.
pub(crate) fn packed_answers() -> Lab {
    let setup = Setup::new();
    let largest = setup.default_size("--max-answer-size");
    let mut members = format!("{HEAD},\"x\":\"");
    let _ = write!(members, "{}\"}}", "y".repeat(largest.min(3 * MIB) - 300));
    let empty = packed(b"");
    let ends = empty.repeat((largest - 200) / empty.len());
    let setup = setup.app_answers("bomb", packed_answer(packed(members.as_bytes())));
    let setup = setup.app_answers("nested", packed_answer(packed(&nested(largest.min(3 * MIB) - 300, HEAD))));
    let mut lab = Lab::start(setup.app_answers("members", packed_answer(ends)));
    for (name, mode) in [
        ("200 packed answers of 3 KiB at once, 3 MB or --max-answer-size unpacked", "bomb"),
        ("the same of lists in lists", "nested"),
    ] {
        lab.attack(name, &KEPT, 2, async |target| {
            let Ok(mut connection) = H2::open(&target, &[(INITIAL_WINDOW, 1 << 20)]).await else {
                return "not opened".to_owned();
            };
            let frames: Vec<u8> =
                (0..200).flat_map(|number| callback(2 * number + 1, &path(mode), &body("u1"))).collect();
            let _ = connection.write(&frames).await;
            rest(&target).await;
            format!("{}, {} answers", connection.fate(), connection.seen().answers.get())
        });
    }
    lab.attack("a packed answer of empty members, --max-answer-size", &KEPT, 2, async |target| {
        ask(&target, COMMAND, "members").await.to_string()
    });
    lab
}
