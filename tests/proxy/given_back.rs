//! Memory goes back to the system when a load has gone, also while others call.

use std::time::Duration;

use crate::support::{Act, App, Call, Caller, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const MIB: usize = 1 << 20;

/// Resident memory of a process that is no file's, bytes.
fn anonymous(guard: &Guard) -> usize {
    let path = format!("/proc/{}/status", guard.pid());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[tokio::test]
async fn memory_of_a_load_that_has_gone_is_given_back_while_another_caller_has_callbacks_in_flight() {
    let app = App::start(|_| vec![Act::Silence]);
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
    // Two that are never idle at the same time: nothing is ever quiet.
    let mut others = Vec::new();
    for number in 0..2 {
        let mut caller = Caller::h1(&guard).await;
        others.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(7) * number).await;
            while let Ok(answer) = caller.try_send(&Call::new(COMMAND)).await {
                assert_eq!(answer.told(), "allow fallback timeout");
            }
        }));
    }
    app.wait_for_asked(1).await;
    let before = anonymous(&guard);
    let mut greedy = Caller::h2(&guard).await;
    let call = Call::new(COMMAND).with("content", "x".repeat(60 << 10));
    let load: Vec<_> = (0..400).map(|_| tokio::spawn(greedy.begin(&call))).collect();
    app.wait_for_asked(401).await;
    assert!(anonymous(&guard) > before + 30 * MIB, "{} of {before}", anonymous(&guard));
    load.iter().for_each(tokio::task::JoinHandle::abort);
    greedy.hang_up();
    let given_back = async {
        while anonymous(&guard) > before + 16 * MIB {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("memory", given_back).await;
    assert!(guard.metric("callback_guard_in_flight") >= 1.0);
    for task in others {
        task.abort();
    }
}
