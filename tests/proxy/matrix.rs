//! Every way an app can fail, for commands of every phase, with either fallback, over both protocols: what OpenIM gets,
//! what is counted and what is logged.

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::support::app::ALLOW;
use crate::support::{Act, Answer, App, Asked, Call, Caller, Gate, Guard, OpenIm, openim_verdict, within};

/// A rule to a command: its name, the command, its fallback, and what that comes to.
const RULES: [(&str, &str, &str, &str); 6] = [
    ("before-allow", "callbackBeforeSendSingleMsgCommand", "Allow", "allow"),
    ("before-deny", "callbackBeforeSendGroupMsgCommand", "Deny", "deny"),
    ("after-allow", "callbackAfterSendSingleMsgCommand", "Allow", "allow"),
    // Nobody reads the answer to an after-command: its fallback is the plain success.
    ("after-deny", "callbackAfterSendGroupMsgCommand", "Deny", "allow"),
    ("unknown-allow", "callbackBeforeSomethingNewCommand", "Allow", "allow"),
    ("unknown-deny", "callbackAfterSomethingNewCommand", "Deny", "deny"),
];

const DENY: &str =
    r#"{"actionCode":0,"errCode":5101,"errMsg":"no \"verdict\"","errDlt":"of the app","nextCode":1}"#;

fn policy(timeout: &str, more: &str) -> String {
    let mut text = format!(
        "defaults:\n  callerTimeout: 15s\n  timeout: {timeout}\n  after: {{delivery: Inline}}\n  \
         deny: {{errCode: 5101, errMsg: 'no \"verdict\"', errDlt: of the app}}\nrules:\n"
    );
    for (name, command, fallback, _) in RULES {
        text +=
            &format!("  - {{name: {name}, match: {{commands: [{command}]}}, fallback: {fallback}{more}}}\n");
    }
    text
}

/// An app that does what the header `Variant` of a callback asks for.
fn app_of(variants: Vec<Vec<Act>>) -> App {
    App::start(move |asked: &Asked| {
        let variant = asked.values("Variant").first().map_or(0, |text| text.parse().expect("a number"));
        variants[variant].clone()
    })
}

/// Sends a callback for each rule and variant over each protocol, all at once, and checks all that is told of them.
/// `labelled` is how many of each rule and protocol there were before with the same labels.
async fn each_gets_its_fallback(guard: &Guard, variants: usize, cause: &str, before: usize) {
    let mut callbacks = JoinSet::new();
    for variant in 0..variants {
        for rule in RULES {
            for mut caller in [Caller::h1(guard).await, Caller::h2(guard).await] {
                let call = Call::new(rule.1).header("Variant", variant.to_string());
                callbacks.spawn(async move {
                    let answer = caller.send(&call).await;
                    (rule, variant, call, answer)
                });
            }
        }
    }
    while let Some(answered) = within("the fallbacks", callbacks.join_next()).await {
        let ((rule, command, _, verdict), variant, call, answer) = answered.expect("no panic");
        let told = format!("{rule}, variant {variant}: {} {}", answer.told(), answer.text());
        is_the_fallback(&answer, verdict, cause, &told);
        let line = guard.decision(&call.operation_id());
        let seen = ["level", "command", "rule", "verdict", "origin", "cause"].map(|key| &line[key]);
        assert_eq!(seen, ["WARN", command, rule, verdict, "fallback", cause], "{told}");
    }
    for (rule, command, _, verdict) in RULES {
        let command = if rule.starts_with("unknown") { "unknown" } else { command };
        let series = format!(
            "callback_guard_callbacks_total{{command=\"{command}\",rule=\"{rule}\",verdict=\"{verdict}\",\
             origin=\"fallback\",cause=\"{cause}\"}}"
        );
        assert_eq!(guard.metric(&series), (variants * 2 + before) as f64, "{series}");
    }
}

fn is_the_fallback(answer: &Answer, verdict: &str, cause: &str, told: &str) {
    assert_eq!(answer.status, 200, "{told}");
    assert_eq!(answer.told(), format!("{verdict} fallback {cause}"), "{told}");
    assert_eq!(answer.header("content-type"), "application/json", "{told}");
    let (body, openim) =
        if verdict == "allow" { (ALLOW, OpenIm::Allowed) } else { (DENY, OpenIm::Denied(5101)) };
    assert_eq!(answer.text(), body, "{told}");
    assert_eq!(openim_verdict(&answer.body), openim, "{told}");
}

/// The whole check for an app that fails in these ways. Each callback has one line in the log, and no more.
async fn fails(timeout: &str, variants: Vec<Vec<Act>>, cause: &str) {
    let count = variants.len();
    let app = app_of(variants);
    let guard = Guard::with(policy(timeout, ""))
        .flag("--max-answer-size", "64KiB")
        .flag("--drain-delay", "10ms")
        .upstream(&app)
        .start();
    each_gets_its_fallback(&guard, count, cause, 0).await;
    assert_eq!(app.asked().len(), count * RULES.len() * 2, "each is asked once, and never again");
    drop(app);
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    assert_eq!(guard.decisions().len(), count * RULES.len() * 2);
}

fn head(length: usize) -> Act {
    Act::send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))
}

#[tokio::test]
async fn an_app_that_takes_too_long_is_a_timeout() {
    let variants = vec![
        vec![Act::Silence],
        vec![Act::send("HTTP/1.1 200 OK\r\nContent-Le"), Act::Silence],
        vec![head(ALLOW.len()), Act::Silence],
        vec![head(ALLOW.len()), Act::send(&ALLOW[..20]), Act::Silence],
        vec![Act::send("HTTP/1.1 100 Continue\r\n\r\n"), Act::Silence],
        vec![Act::send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"act"), Act::Silence],
        // The end of the connection would be the end of the answer.
        vec![Act::send(format!("HTTP/1.0 200 OK\r\n\r\n{ALLOW}")), Act::Silence],
    ];
    fails("400ms", variants, "timeout").await;
}

#[tokio::test]
async fn an_app_that_is_not_there_is_unreachable() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", port.local_addr().expect("bound"));
    drop(port);
    let guard = Guard::with(policy("10s", "")).flag("--upstream", url).start();
    each_gets_its_fallback(&guard, 1, "unreachable", 0).await;
    let missing = Guard::with(policy("10s", ""));
    let url = format!("unix:{}", missing.folder().join("no-such-socket").display());
    let guard = missing.flag("--upstream", url).start();
    each_gets_its_fallback(&guard, 1, "unreachable", 0).await;
}

#[tokio::test]
async fn an_app_that_resets_before_an_answer_is_unreachable() {
    fails("10s", vec![vec![Act::Reset]], "unreachable").await;
}

#[tokio::test]
async fn an_app_that_stops_in_the_middle_is_broken() {
    let variants = vec![
        vec![Act::Close],
        vec![Act::send("HTTP/1.1 200 OK\r\nContent-Le"), Act::Close],
        vec![head(ALLOW.len()), Act::Close],
        vec![head(ALLOW.len() + 1), Act::send(ALLOW), Act::Close],
        vec![head(ALLOW.len()), Act::send(&ALLOW[..20]), Act::Reset],
        vec![Act::send("HTTP/1.1 100 Continue\r\n\r\n"), Act::Close],
        vec![
            Act::send(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{ALLOW}\r\n",
                ALLOW.len()
            )),
            Act::Close,
        ],
    ];
    fails("10s", variants, "broken").await;
}

#[tokio::test]
async fn an_app_that_does_not_speak_http_is_broken() {
    let variants = [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "\0\0\0\0\0\0\0\0\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#,
    ];
    let variants = variants.map(|text| vec![Act::send(text), Act::Silence]).to_vec();
    fails("10s", variants, "broken").await;
}

#[tokio::test]
async fn a_status_that_is_no_success_is_a_status_whatever_the_body_allows() {
    let json: &[_] = &[("Content-Type", "application/json")];
    let variants = vec![
        vec![Act::answer("500 Internal Server Error", json, ALLOW)],
        vec![Act::answer("502 Bad Gateway", &[("Content-Type", "text/html")], "<h1>502 Bad Gateway</h1>")],
        vec![Act::answer("404 Not Found", &[], "")],
        vec![Act::answer("302 Found", &[("Location", "https://elsewhere.example/")], ALLOW)],
        vec![Act::answer("307 Temporary Redirect", &[("Location", "/elsewhere")], "")],
        vec![Act::send("HTTP/1.1 304 Not Modified\r\n\r\n")],
        // No clear refusal: the app says that it could not decide.
        vec![Act::answer("500 Oops", json, r#"{"actionCode":1,"errCode":5001,"nextCode":1}"#)],
        vec![Act::answer("599 Oops", json, "")],
    ];
    fails("10s", variants, "status").await;
}

#[tokio::test]
async fn an_answer_that_openim_cannot_read_is_invalid() {
    let large = format!("{{\"errMsg\":\"{}\"}}", "x".repeat(64 << 10));
    let chunked =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}", large.len());
    let mut variants: Vec<Vec<Act>> = vec![
        vec![Act::json(large.clone())],
        vec![Act::send(chunked), Act::Silence],
        vec![Act::send(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{large}")), Act::Silence],
        vec![head(usize::MAX), Act::Silence],
        vec![Act::send("HTTP/1.1 204 No Content\r\n\r\n")],
        vec![Act::answer("200 OK", &[("Content-Encoding", "br")], ALLOW)],
        vec![Act::answer("200 OK", &[("Content-Encoding", "gzip")], ALLOW)],
    ];
    let bodies: [&[u8]; 14] = [
        b"",
        b" ",
        b"ok",
        b"<html></html>",
        b"[]",
        b"0",
        b"true",
        br#"{"actionCode":0,"nextCode":0}{}"#,
        br#"{"actionCode":0,"nextCode":0"#,
        br#"{"actionCode":0,"nextCode":"yes"}"#,
        br#"{"actionCode":0,"nextCode":1.5}"#,
        br#"{"actionCode":true,"nextCode":0}"#,
        br#"{"actionCode":0,"errMsg":404,"nextCode":0}"#,
        b"{\"actionCode\":0,\"nextCode\":4294967296}",
    ];
    variants.extend(bodies.map(|body| vec![Act::json(Bytes::from_static(body))]));
    fails("10s", variants, "invalid").await;
}

#[tokio::test]
async fn an_app_that_could_not_decide_is_told_apart_from_one_that_refused() {
    let bodies = [
        r#"{"actionCode":1,"errCode":5001,"errMsg":"","errDlt":"","nextCode":1}"#,
        r#"{"actionCode":-1,"nextCode":0}"#,
        r#"{"actionCode":"1","nextCode":""}"#,
    ];
    let variants = bodies.map(|body| vec![Act::json(body)]).to_vec();
    fails("10s", variants, "refused-by-app").await;
}

#[tokio::test]
async fn a_working_app_decides_whatever_the_fallback_says() {
    let deny = r#"{"actionCode":0,"errCode":5001,"errMsg":"no","errDlt":"","nextCode":1}"#;
    for (body, verdict, openim) in [(ALLOW, "allow", OpenIm::Allowed), (deny, "deny", OpenIm::Denied(5001))] {
        let app = App::answering(body);
        let guard = Guard::with(policy("10s", "")).upstream(&app).start();
        for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
            for (rule, command, _, _) in RULES {
                let call = Call::new(command);
                let answer = caller.send(&call).await;
                assert_eq!((answer.status, answer.told()), (200, format!("{verdict} upstream -")), "{rule}");
                assert_eq!((answer.text().as_str(), openim_verdict(&answer.body)), (body, openim), "{rule}");
                let line = guard.decision(&call.operation_id());
                assert_eq!(
                    ["level", "rule", "verdict", "origin", "cause"].map(|key| &line[key]),
                    ["INFO", rule, verdict, "upstream", ""]
                );
            }
        }
        let labels = [("verdict", verdict), ("origin", "upstream"), ("cause", "none")];
        assert_eq!(guard.count("callback_guard_callbacks_total", &labels), 12.0);
    }
}

#[tokio::test]
async fn a_process_at_its_bound_gives_the_fallback_and_asks_again_when_there_is_room() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |_| acts.clone());
    let guard = Guard::with(policy("14s", "")).flag("--max-in-flight", "1").upstream(&app).start();
    let mut first = Caller::h1(&guard).await;
    let held = tokio::spawn(first.begin(&Call::new(RULES[1].1)));
    app.wait_for_asked(1).await;
    each_gets_its_fallback(&guard, 1, "overloaded", 0).await;
    assert_eq!(app.asked().len(), 1, "no other one came to the app");
    gate.open();
    let answer = within("the one in flight", held).await.expect("no panic").expect("an answer");
    assert_eq!(answer.told(), "allow upstream -");
    assert_eq!(first.send(&Call::new(RULES[1].1)).await.told(), "allow upstream -");
}

#[tokio::test]
async fn a_rule_at_its_bound_gives_its_fallback_and_leaves_the_others_alone() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |asked| match asked.command().as_str() {
        "callbackBeforeAddFriendCommand" => vec![Act::json(ALLOW)],
        _ => acts.clone(),
    });
    let guard = Guard::with(policy("14s", ", maxInFlight: 1")).upstream(&app).start();
    let mut holders = Vec::new();
    for (_, command, _, _) in RULES {
        let mut caller = Caller::h2(&guard).await;
        holders.push((tokio::spawn(caller.begin(&Call::new(command))), caller));
    }
    app.wait_for_asked(RULES.len()).await;
    each_gets_its_fallback(&guard, 1, "overloaded", 0).await;
    let mut other = Caller::h2(&guard).await;
    let answer = other.send(&Call::new("callbackBeforeAddFriendCommand")).await;
    assert_eq!(answer.told(), "allow upstream -");
    gate.open();
    for (held, _caller) in holders {
        let answer = within("the one in flight", held).await.expect("no panic").expect("an answer");
        assert_eq!(answer.told(), "allow upstream -");
    }
    for (rule, command, _, _) in RULES {
        assert_eq!(other.send(&Call::new(command)).await.told(), "allow upstream -", "{rule}");
    }
}

#[tokio::test]
async fn an_open_breaker_gives_the_fallback_and_the_app_is_left_alone() {
    let app = App::answering("this is no answer");
    let breaker = ", breaker: {failureRate: 1, minimumCallbacks: 1, window: 60s, openFor: 60s}";
    let guard = Guard::with(policy("10s", breaker)).upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    for (rule, command, _, verdict) in RULES {
        let answer = caller.send(&Call::new(command)).await;
        is_the_fallback(&answer, verdict, "invalid", rule);
        assert_eq!(guard.metric(&format!("callback_guard_breaker_state{{rule=\"{rule}\"}}")), 1.0);
    }
    each_gets_its_fallback(&guard, 1, "breaker-open", 0).await;
    assert_eq!(app.asked().len(), RULES.len(), "one failure each, and then no more");
}

#[tokio::test]
async fn what_is_no_failure_of_the_app_opens_no_breaker() {
    let app = app_of(vec![
        vec![Act::json(r#"{"actionCode":1,"nextCode":1}"#)],
        vec![Act::json(r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#)],
        vec![Act::answer("403 No", &[], r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#)],
    ]);
    let breaker = ", breaker: {failureRate: 0.1, minimumCallbacks: 1, window: 60s, openFor: 60s}";
    let guard = Guard::with(policy("10s", breaker)).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (variant, told) in [
        (0, "deny fallback refused-by-app"),
        (1, "deny upstream -"),
        (2, "deny upstream -"),
        (1, "deny upstream -"),
    ] {
        let call = Call::new(RULES[1].1).header("Variant", variant.to_string());
        assert_eq!(caller.send(&call).await.told(), told);
    }
    assert_eq!(guard.metric("callback_guard_breaker_state{rule=\"before-deny\"}"), 0.0);
    assert_eq!(app.asked().len(), 4);
}
