//! A ruler: the instructions that a callback costs the guard, counted by callgrind. `tests/instructions` builds what it needs and runs
//! this. Unlike times, the counts hardly change with what else the machine does.
//!
//! Each trace is sent twice over one connection, one callback after another: a short one and a long one. The difference is divided by the
//! difference of their lengths, so that start, handshake and end cancel out.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use crate::support::app::ALLOW;
use crate::support::{Act, App, Asked, Call, Caller, Folder, Guard, within};

/// The committed figures.
const FIGURES: &str = "tests/proxy/instructions.json";

/// How far a count may be from the committed one, in percent: builds of the same source differ less.
const BAND: f64 = 3.0;

/// Callbacks of one kind, over one connection.
#[derive(Clone, Copy)]
struct Trace {
    name: &'static str,
    over_h2: bool,
    command: &'static str,
    /// Verdict, origin and cause of each answer: what was not measured by mistake.
    answered: &'static str,
    /// Callbacks of the short and of the long one. A fallback waits for its deadline, so there are fewer.
    callbacks: [u32; 2],
}

const TRACES: [Trace; 4] = [
    Trace {
        name: "h1",
        over_h2: false,
        command: "callbackBeforeSendSingleMsgCommand",
        answered: "allow upstream -",
        callbacks: [200, 1_200],
    },
    Trace {
        name: "h2",
        over_h2: true,
        command: "callbackBeforeSendSingleMsgCommand",
        answered: "allow upstream -",
        callbacks: [200, 1_200],
    },
    Trace {
        name: "fallback",
        over_h2: false,
        command: "callbackBeforeSendGroupMsgCommand",
        answered: "deny fallback timeout",
        callbacks: [50, 250],
    },
    Trace {
        name: "rule",
        over_h2: false,
        command: "callbackBeforeCreateGroupCommand",
        answered: "allow rule -",
        callbacks: [200, 1_200],
    },
];

const POLICY: &str = "rules:\n\
    - {name: late, match: {commands: [callbackBeforeSendGroupMsgCommand]}, timeout: 10ms, fallback: Deny}\n\
    - {name: rule, match: {commands: [callbackBeforeCreateGroupCommand]}, answer: Allow}\n\
    - {name: app, match: {commands: [\"*\"]}, timeout: 4s}\n";

/// The instructions of the guard's whole life with so many callbacks.
async fn life(program: &Path, trace: Trace, callbacks: u32) -> u64 {
    let app = App::start(|asked: &Asked| match asked.command().as_str() {
        "callbackBeforeSendGroupMsgCommand" => vec![Act::Silence],
        _ => vec![Act::json(ALLOW)],
    });
    let folder = Folder::new();
    let report = folder.path().join("report");
    let log = format!("--log-file={}", report.display());
    let valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", &log];
    let guard = Guard::with(POLICY).upstream(&app).flag("--workers", "1").flag("--drain-delay", "0s");
    let guard = guard.flag("--drain-timeout", "1s").under(&valgrind, program).start();
    let mut caller = if trace.over_h2 { Caller::h2(&guard).await } else { Caller::h1(&guard).await };
    let call = Call::new(trace.command);
    for _ in 0..callbacks {
        let answer = within("an answer", caller.send(&call)).await;
        assert_eq!(answer.told(), trace.answered, "{}: {}", trace.name, answer.text());
    }
    caller.hang_up();
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    let report = fs::read_to_string(report).expect("valgrind writes a report");
    let counted =
        report.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, count)| count.trim());
    counted.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count in {report}"))
}

#[tokio::test]
#[ignore = "tests/instructions runs it, with a release build"]
async fn a_callback_costs_the_instructions_that_are_written_down() {
    let program = env::var_os("CALLBACK_GUARD_TEST_PROGRAM").expect("the program of a release build");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FIGURES);
    let written: BTreeMap<String, u64> =
        fs::read_to_string(&path).map(|text| serde_json::from_str(&text).expect("JSON")).unwrap_or_default();
    let (mut found, mut wrong) = (BTreeMap::new(), Vec::new());
    println!("| instructions per callback | counted | written down | difference |\n|---|--:|--:|--:|");
    for trace in TRACES {
        let [short, long] = trace.callbacks;
        let more =
            life(Path::new(&program), trace, long).await - life(Path::new(&program), trace, short).await;
        let each = more / u64::from(long - short);
        let before = written.get(trace.name).copied().unwrap_or_default();
        let difference = 100.0 * (each as f64 / before as f64 - 1.0);
        let (before, shown) = match before {
            0 => ("nothing".to_owned(), "-".to_owned()),
            before => (before.to_string(), format!("{difference:+.1} %")),
        };
        println!("| {} | {each} | {before} | {shown} |", trace.name);
        if difference.is_nan() || difference.abs() > BAND {
            wrong.push(format!("{}: {each}, {shown} from {before}", trace.name));
        }
        found.insert(trace.name, each);
    }
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, serde_json::to_string_pretty(&found).expect("JSON") + "\n")
            .expect("a file of the repository");
        return;
    }
    assert!(
        wrong.is_empty(),
        "beyond {BAND} %: {wrong:#?}\nif that is meant, `tests/instructions --update` writes the figures"
    );
}
