//! Each callback gets the app's answer to it, and not the answer to another: what an app does that answers twice or unasked.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::support::app::ALLOW;
use crate::support::{Act, App, Asked, Call, Caller, Folder, Gate, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const COUNTER: &str = "callback_guard_unsolicited_answers_total";
const LOGGED: &str = "The app sent an answer that no request was waiting for";

/// The most callbacks that one answer too many may mislead.
const MISLED_LIMIT: usize = 16;

/// An answer that names its callback.
fn answer_to(id: &str) -> Act {
    Act::json(format!(
        "{{\"actionCode\":0,\"errCode\":5001,\"errMsg\":\"{id}\",\"errDlt\":\"\",\"nextCode\":1}}"
    ))
}

fn id_of(asked: &Asked) -> String {
    asked.values("operationID")[0].to_owned()
}

/// An app that answers the first request twice, the second time when the next one on that connection has arrived: from then on
/// there is one answer too many on it.
fn twice() -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    let last: Mutex<HashMap<usize, (usize, String)>> = Mutex::default();
    move |asked| {
        let id = id_of(asked);
        let mut last = last.lock().expect("no panic");
        let before = last.remove(&asked.connection);
        let number = before.as_ref().map_or(0, |(number, _)| number + 1);
        last.insert(asked.connection, (number, id.clone()));
        // The work leaves the caller of the wrong answer time for its next callback.
        let own = [Act::Work(Duration::from_millis(2)), answer_to(&id)];
        match before {
            Some((0, first)) if asked.connection == 0 => [vec![answer_to(&first)], own.to_vec()].concat(),
            _ => own.to_vec(),
        }
    }
}

/// Sends callbacks one after the other: which of them got the answer to another.
async fn misled(caller: &mut Caller, count: usize) -> Vec<usize> {
    let mut misled = Vec::new();
    for number in 0..count {
        let call = Call::new(COMMAND);
        let answer = caller.send(&call).await;
        assert_eq!(answer.told(), "deny upstream -", "{}", answer.text());
        if answer.json()["errMsg"] != call.operation_id() {
            misled.push(number);
        }
    }
    misled
}

/// The lines about it, of which there is one at least.
fn told(guard: &Guard) -> Vec<String> {
    guard.wait_for_log(|line| line.contains(LOGGED));
    logged(guard)
}

fn logged(guard: &Guard) -> Vec<String> {
    guard.log_lines().into_iter().filter(|line| line.contains(LOGGED)).collect()
}

#[tokio::test]
async fn one_answer_too_many_misleads_few_callbacks_and_then_none() {
    for (policy, unix) in [("", false), ("mode: Observe", false), ("", true)] {
        // A machine that stands still for a second has no connection left to mislead anybody on.
        let mut seen = false;
        for _ in 0..10 {
            if !seen {
                seen = misleads_few(policy, unix).await;
            }
        }
        assert!(seen, "{policy:?}, unix: {unix}");
    }
}

/// Whether anybody was misled, and it was found.
async fn misleads_few(policy: &str, unix: bool) -> bool {
    let folder = Folder::new();
    let app = if unix { App::on_unix(folder.path().join("app.sock"), twice()) } else { App::start(twice()) };
    let guard = Guard::with(policy).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let wrong = misled(&mut caller, 100).await;
    let found = format!("{policy:?}, unix: {unix}: {wrong:?}");
    assert!(wrong.len() <= MISLED_LIMIT, "{found}");
    if wrong.is_empty() || guard.metric(COUNTER) == 0.0 {
        return false;
    }
    // It was seen: each has its own connection, and says so.
    let (asked, connections) = (app.asked().len(), app.connections());
    assert_eq!(misled(&mut caller, 30).await, [0; 0], "{found}");
    assert_eq!((guard.metric(COUNTER), app.connections() - connections), (1.0, 30), "{found}");
    assert!(app.asked()[asked..].iter().all(|asked| asked.values("Connection") == ["close"]));
    let lines = told(&guard);
    assert!(lines.len() == 1 && lines[0].contains(&app.url()), "{lines:?}");
    assert!(lines[0].contains("\"WARN\"") && !lines[0].contains("errMsg"), "{lines:?}");
    true
}

#[tokio::test]
async fn an_app_that_answers_each_request_once_keeps_its_connections() {
    for (switch, kept) in [("--upstream-reuse=true", true), ("--upstream-reuse=false", false)] {
        let app = App::start(|asked| vec![answer_to(&id_of(asked))]);
        let guard = Guard::with("").switch(switch).upstream(&app).start();
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            assert_eq!(misled(&mut caller, 50).await, [0; 0]);
        }
        assert_eq!(app.connections() < 100, kept, "{} connections", app.connections());
        assert_eq!(guard.metric(COUNTER), 0.0);
        assert!(logged(&guard).is_empty());
        let closing: &[&str] = if kept { &[] } else { &["close"] };
        assert!(app.asked().iter().all(|asked| asked.values("Connection") == closing), "{switch}");
    }
}

#[tokio::test]
async fn without_reuse_one_answer_too_many_misleads_nobody() {
    let app = App::start(twice());
    let guard = Guard::with("").switch("--upstream-reuse=false").upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    assert_eq!(misled(&mut caller, 50).await, [0; 0]);
    assert_eq!(app.connections(), 50);
}

#[tokio::test]
async fn bytes_that_are_there_before_the_request_are_no_answer_to_it() {
    let extra = [
        answer_to("another"),
        Act::send("HTTP/1.1 100 Continue\r\n\r\n"),
        Act::send("HTTP/1.1 200 OK\r\nContent-Le"),
        Act::send("\r\n"),
    ];
    for (turn, extra) in extra.into_iter().enumerate() {
        let mut seen = 0.0;
        for unix in [false, true, false, true] {
            let (sent, more) = (Gate::closed(), extra.clone());
            let gate = sent.clone();
            let script = move |asked: &Asked| {
                let own = answer_to(&id_of(asked));
                if asked.number > 0 {
                    return vec![own];
                }
                vec![own, Act::Wait(gate.clone()), more.clone(), Act::Close]
            };
            let folder = Folder::new();
            let path = folder.path().join("app.sock");
            let app = if unix { App::on_unix(path, script) } else { App::start(script) };
            let guard = Guard::with("").upstream(&app).start();
            let mut caller = Caller::h1(&guard).await;
            assert_eq!(misled(&mut caller, 1).await, [0; 0]);
            assert_eq!(guard.metric(COUNTER), 0.0);
            sent.open();
            app.wait_for_ended(1).await;
            assert_eq!(misled(&mut caller, 3).await, [0; 0], "turn {turn}, unix: {unix}");
            assert_eq!(app.asked().len(), 4, "each is sent once");
            let found = guard.metric(COUNTER);
            assert!(found == 0.0 || app.connections() == 4, "turn {turn}, unix: {unix}");
            seen += found;
        }
        // Where the first took half a second, its connection is closed at once.
        assert!(seen > 0.0, "turn {turn}");
    }
}

#[tokio::test]
async fn an_app_that_says_that_it_closes_an_idle_connection_is_trusted() {
    let goodbye = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let sent = Gate::closed();
    let gate = sent.clone();
    let app = App::start(move |asked| {
        let own = answer_to(&id_of(asked));
        match asked.number {
            0 => vec![own, Act::Wait(gate.clone()), Act::send(goodbye), Act::Close],
            _ => vec![own],
        }
    });
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    assert_eq!(misled(&mut caller, 1).await, [0; 0]);
    sent.open();
    app.wait_for_ended(1).await;
    assert_eq!(misled(&mut caller, 30).await, [0; 0]);
    assert_eq!((guard.metric(COUNTER), logged(&guard).len()), (0.0, 0));
    assert!(app.connections() < 31, "{} connections", app.connections());
}

#[tokio::test]
async fn an_answer_on_a_new_connection_before_any_request_is_nobodys() {
    // Whether it comes before the request is a race: bytes that come later cannot be told from an answer.
    let app = App::greeting(vec![answer_to("nobody")]);
    let guard = Guard::with("defaults: {fallback: Allow}").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let until_seen = async {
        loop {
            let answer = caller.send(&Call::new(COMMAND)).await;
            match answer.told().as_str() {
                "allow fallback broken" => break,
                "deny upstream -" => assert_eq!(answer.json()["errMsg"], "nobody"),
                // An answer of its own, on a connection whose greeting had been read.
                "allow upstream -" => assert_eq!(answer.text(), ALLOW),
                other => panic!("{other}"),
            }
        }
    };
    within("a greeting that comes first", until_seen).await;
    assert!(guard.metric(COUNTER) >= 1.0);
    assert_eq!(told(&guard).len(), 1);
}
