//! What one caller might do to the app, or to other callers.

use crate::support::app::ALLOW;
use crate::support::caller::raw;
use crate::support::{Act, App, Call, Caller, Guard, Raw, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";

#[tokio::test]
async fn an_operation_id_of_a_body_cannot_become_headers_or_another_request() {
    let app = App::allowing();
    let guard = Guard::with("validation: {operationID: Generate}").upstream(&app).start();
    let ids = [
        "x\r\nEvil: 1\r\nContent-Length: 0\r\n\r\nPOST /smuggled HTTP/1.1\r\nHost: y".to_owned(),
        "a\nb".to_owned(),
        "a\0b".to_owned(),
        "a\u{7f}b".to_owned(),
        "x".repeat(70_000),
    ];
    for (number, id) in ids.iter().enumerate() {
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            let call = Call::new(COMMAND).with("operationID", id.as_str()).without_header("operationID");
            assert_eq!(caller.send(&call).await.told(), UPSTREAM, "{number}");
        }
        let asked = app.asked();
        assert_eq!(asked.len(), 2 * (number + 1), "{number}: {:?}", asked.last().map(|asked| &asked.head));
        for asked in &asked[2 * number..] {
            assert!(asked.values("operationID").concat().starts_with("guard-"), "{}", asked.head);
            assert!(asked.values("Evil").is_empty(), "{}", asked.head);
        }
    }
    // The twin: an ordinary one is taken.
    let call = Call::new(COMMAND).with("operationID", "of the body").without_header("operationID");
    assert_eq!(Caller::h2(&guard).await.send(&call).await.told(), UPSTREAM);
    assert_eq!(app.asked().last().expect("asked").values("operationID"), ["of the body"]);
}

#[tokio::test]
async fn what_is_announced_and_does_not_come_takes_no_room_from_others() {
    let app = App::allowing();
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app);
    let guard = guard.flag("--max-held", "1MiB").start();
    let mut announcing = Vec::new();
    for _ in 0..8 {
        let mut caller = Raw::over(raw(&guard).await);
        let head = format!(
            "POST /cb/{COMMAND} HTTP/1.1\r\nHost: a\r\noperationID: 1\r\nContent-Length: 1000000\r\n\r\n{{"
        );
        caller.send(head).await;
        announcing.push(caller);
    }
    guard.wait_for_metric("callback_guard_in_flight", 8.0).await;
    assert_eq!(Caller::h2(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
}

#[tokio::test]
async fn connection_takes_away_nothing_that_makes_a_callback() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let call = Call::new(COMMAND)
        .more_header("Connection", "operationid, host, content-type, authorization, x-own")
        .more_header("Authorization", "Basic eDp5")
        .more_header("X-Own", "1");
    assert_eq!(Caller::h1(&guard).await.send(&call).await.told(), UPSTREAM);
    let asked = app.asked().remove(0);
    for name in ["operationID", "Host", "Authorization"] {
        assert_eq!(asked.values(name).len(), 1, "{name}: {}", asked.head);
    }
    assert!(asked.values("X-Own").is_empty(), "the twin: {}", asked.head);
}

#[tokio::test]
async fn a_header_in_disguise_does_not_reach_the_app() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    // To an app that reads an underscore as a hyphen these are headers that the guard checks, writes or drops.
    let disguised =
        ["Content_Length", "Transfer_Encoding", "X_Forwarded-For", "Callback_Guard_Timeout_Ms", "X_Real-Own"];
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let call = disguised.iter().fold(Call::new(COMMAND), |call, name| call.more_header(name, "1"));
        let call = call.more_header("X-Real-Own", "2").more_header("X_Signature", "3");
        assert_eq!(caller.send(&call).await.told(), UPSTREAM);
        let asked = app.asked().pop().expect("asked");
        for name in disguised {
            assert!(asked.values(name).is_empty(), "{name}: {}", asked.head);
        }
        // The twins: the real one, and a name of the caller's own, as a signature of OpenIM's may have.
        assert_eq!((asked.values("X-Real-Own"), asked.values("X_Signature")), (vec!["2"], vec!["3"]));
    }
}

#[tokio::test]
async fn what_an_app_says_of_the_guards_address_stays_behind() {
    let fields = "Alt-Svc: h3=\":443\"\r\nStrict-Transport-Security: max-age=9\r\nX-Own: 1\r\n";
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{fields}\r\n{ALLOW}", ALLOW.len());
    let app = App::start(move |_| vec![Act::Send(head.clone().into())]);
    let guard = Guard::with("").upstream(&app).start();
    let answer = Caller::h2(&guard).await.send(&Call::new(COMMAND)).await;
    assert_eq!(answer.told(), UPSTREAM);
    for name in ["alt-svc", "strict-transport-security"] {
        assert!(!answer.headers.contains_key(name), "{name}: {:?}", answer.headers);
    }
    assert_eq!(answer.headers["x-own"], "1", "the twin");
}

#[tokio::test]
async fn connection_names_few_options_or_the_request_is_rejected() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let options = |count: usize| vec!["x-own"; count].join(",");
    let rows = [
        (vec![options(32)], UPSTREAM),
        (vec![options(33)], "deny rejection head"),
        (vec![options(16), options(16)], UPSTREAM),
        (vec![options(16), options(17)], "deny rejection head"),
        (vec![",".repeat(15_000)], "deny rejection head"),
    ];
    for (values, told) in rows {
        let call =
            values.iter().fold(Call::new(COMMAND), |call, value| call.more_header("Connection", value));
        let before = app.asked().len();
        let answer = Caller::h1(&guard).await.send(&call.more_header("X-Own", "1")).await;
        assert_eq!(answer.told(), told, "{} bytes", values.concat().len());
        assert_eq!(app.asked().len() - before, usize::from(told == UPSTREAM));
        assert_eq!(answer.status, if told == UPSTREAM { 200 } else { 400 });
    }
    assert!(app.asked().iter().all(|asked| asked.values("X-Own").is_empty()), "it goes no further");
}

#[tokio::test]
async fn a_caller_who_does_not_wait_for_the_answer_is_counted_and_told() {
    let app = App::start(|_| vec![Act::Silence]);
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let call = Call::new(COMMAND);
    let asked = tokio::spawn(caller.begin(&call));
    app.wait_for_asked(1).await;
    assert_eq!(guard.metric("callback_guard_abandoned_total"), 0.0);
    asked.abort();
    caller.hang_up();
    guard.wait_for_metric("callback_guard_abandoned_total", 1.0).await;
    let id = call.operation_id();
    guard.wait_for_log(|line| line.contains("The caller hung up before its answer") && line.contains(&id));
    within("the app to be let go", app.wait_for_hung_up(1)).await;
}

#[tokio::test]
async fn a_page_in_a_browser_cannot_drain_a_pod() {
    let guard = Guard::with("").start();
    let client = std::net::TcpStream::connect(guard.admin_address()).expect("the admin port");
    let request = "POST /drain HTTP/1.1\r\nHost: localhost\r\nOrigin: https://elsewhere.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    std::io::Write::write_all(&mut &client, request.as_bytes()).expect("a request");
    let answer = std::io::read_to_string(&client).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(guard.admin_post("/drain").0, 200, "the twin");
}
