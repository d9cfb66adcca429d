//! Who may call, and who gets in the way: callers without TLS, without a word, without a certificate or a password,
//! and floods of them while a good one goes on.

use base64::Engine as _;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use crate::support::caller::{plain, raw, secure, try_secure};
use crate::support::{Act, App, Authority, Call, Caller, Gate, Guard, OpenIm, Raw, openim_verdict, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const FAILURES: &str = "callback_guard_tls_handshake_failures_total";

#[tokio::test]
async fn plain_http_is_told_to_use_https() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Raw::over(plain(&guard).await);
    caller.send(Call::new(COMMAND).bytes()).await;
    let answer = caller.answer().await.expect("an answer without TLS");
    assert_eq!((answer.status, answer.header("content-type")), (400, "application/json"));
    assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
    let text = "callback rejected: plain HTTP came to a TLS port, webhooks.url must begin with https://";
    assert_eq!(answer.json()["errMsg"], text);
    assert_eq!(caller.rest().await, "");
    guard.wait_for_log(|line| line.contains("Plain HTTP came to the TLS port") && line.contains("WARN"));
    guard.wait_for_metric(&format!("{FAILURES}{{reason=\"plain-http\"}}"), 1.0).await;
    assert_eq!(app.asked().len(), 0);
}

#[tokio::test]
async fn a_large_callback_without_tls_is_told_too() {
    let guard = Guard::with("").start();
    let mut caller = Raw::over(plain(&guard).await);
    caller.send(Call::new(COMMAND).with("content", "x".repeat(20_000)).bytes()).await;
    assert_eq!(caller.answer().await.expect("an answer without TLS").status, 400);
}

#[tokio::test]
async fn garbage_instead_of_tls_ends_its_connection() {
    let guard = Guard::with("").start();
    for bytes in [&b"\x16\x03\x01\xff\xff\x01\0\0\0"[..], &[0; 100], &[0xff; 100], b"SSH-2.0-OpenSSH_9.6\r\n"]
    {
        let mut caller = Raw::over(plain(&guard).await);
        caller.send(bytes).await;
        caller.finish().await;
        caller.rest().await;
    }
    guard.wait_for_log(|line| line.contains("A TLS handshake failed") && line.contains("garbage"));
    guard.wait_for_metric(&format!("{FAILURES}{{reason=\"garbage\"}}"), 4.0).await;
}

#[tokio::test]
async fn a_caller_that_leaves_without_a_word_is_counted_and_no_more() {
    let guard = Guard::with("").start();
    drop(plain(&guard).await);
    guard.wait_for_metric(&format!("{FAILURES}{{reason=\"closed\"}}"), 1.0).await;
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
    assert!(!guard.log_lines().iter().any(|line| line.contains("WARN")));
}

#[tokio::test]
async fn a_silent_caller_is_let_go_after_the_handshake_timeout() {
    let guard = Guard::with("").flag("--handshake-timeout", "300ms").start();
    let mut half = plain(&guard).await;
    let mut caller = Raw::over(plain(&guard).await);
    caller.send(b"\x16\x03\x01\x02\0\x01").await;
    assert_eq!(caller.rest().await, "");
    assert!(matches!(within("the end", half.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    guard.wait_for_metric(&format!("{FAILURES}{{reason=\"timeout\"}}"), 2.0).await;
    guard.wait_for_log(|line| line.contains("A TLS handshake failed") && line.contains("timeout"));
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
}

#[tokio::test]
async fn a_slow_head_ends_its_connection_and_an_idle_one_stays() {
    let app = App::allowing();
    let guard = Guard::with("").flag("--header-timeout", "300ms").upstream(&app).start();
    let mut idle = Caller::h1(&guard).await;
    let mut used = Caller::h1(&guard).await;
    assert_eq!(used.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    for part in ["P", "POST / HTTP/1.1\r\nHost:", "POST / HTTP/1.1\r\nHost: localhost\r\n"] {
        let mut slow = Raw::over(raw(&guard).await);
        slow.send(part).await;
        slow.rest().await;
    }
    let mut second = Raw::over(raw(&guard).await);
    second.send(Call::new(COMMAND).bytes()).await;
    assert_eq!(second.answer().await.expect("an answer").status, 200);
    second.send("POST /").await;
    second.rest().await;
    let mut preface = Raw::over(secure(&guard, Authority::common().trusted_by(&["h2"], None)).await);
    preface.send("PRI * HT").await;
    preface.rest().await;
    guard.wait_for_metric("callback_guard_bad_http_total{reason=\"slow-head\"}", 5.0).await;
    guard.wait_for_log(|line| line.contains("took longer than --header-timeout"));
    for caller in [&mut idle, &mut used] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    }
    assert_eq!(app.asked().len(), 4);
}

#[tokio::test]
async fn a_caller_without_the_right_password_is_not_let_in() {
    let app = App::allowing();
    let policy = "validation: {onRejection: Allow}\nmode: Observe";
    let guard =
        Guard::with(policy).file("--basic-auth-file", "users", "openim:s3cret\nother:a:b\n").upstream(&app);
    let guard = guard.start();
    let basic = |pair: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let wrong = [
            None,
            Some(basic("openim:secret")),
            Some(basic("s3cret")),
            Some("Bearer s3cret".to_owned()),
            Some(String::new()),
        ];
        for given in wrong {
            let mut call = Call::new(COMMAND);
            if let Some(given) = &given {
                call = call.header("Authorization", given);
            }
            let answer = caller.send(&call).await;
            assert_eq!(
                (answer.status, answer.told().as_str()),
                (401, "deny rejection unauthorized"),
                "{given:?}"
            );
            assert_eq!(answer.header("www-authenticate"), "Basic realm=\"callback-guard\"");
            assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5400));
            let line = guard.decision(&call.operation_id());
            assert_eq!((&line["cause"], &line["level"]), (&"unauthorized".into(), &"WARN".into()));
        }
        for right in ["openim:s3cret", "other:a:b"] {
            let answer = caller.send(&Call::new(COMMAND).header("Authorization", basic(right))).await;
            assert_eq!((answer.status, answer.told().as_str()), (200, "allow upstream -"));
        }
    }
    assert_eq!(guard.metric("callback_guard_rejections_total{cause=\"unauthorized\"}"), 10.0);
    assert_eq!(app.asked().len(), 4);
    assert!(!guard.log_lines().iter().any(|line| line.contains("s3cret")));
}

#[tokio::test]
async fn a_caller_without_a_certificate_of_the_authority_is_not_let_in() {
    let (ours, others) = (Authority::new("callers"), Authority::new("others"));
    let app = App::allowing();
    let guard = Guard::with("").file("--client-ca", "callers.pem", ours.pem()).upstream(&app).start();
    for alpn in ["http/1.1", "h2"] {
        let known = ours.client();
        let stream = secure(&guard, Authority::common().trusted_by(&[alpn], Some(&known))).await;
        let answer = Caller::over(stream).await.send(&Call::new(COMMAND)).await;
        assert_eq!(answer.told(), "allow upstream -");
        for own in [None, Some(others.client()), Some(ours.server())] {
            // With TLS 1.3 a caller learns of it with the first bytes it reads.
            if let Ok(stream) =
                try_secure(&guard, Authority::common().trusted_by(&[alpn], own.as_ref())).await
            {
                let mut caller = Raw::over(stream);
                caller.send(Call::new(COMMAND).bytes()).await;
                assert!(caller.answer().await.is_none());
            }
        }
    }
    guard.wait_for_metric(&format!("{FAILURES}{{reason=\"no-client-certificate\"}}"), 2.0).await;
    guard.wait_for_metric(&format!("{FAILURES}{{reason=\"bad-certificate\"}}"), 4.0).await;
    guard.wait_for_log(|line| {
        line.contains("A TLS handshake failed") && line.contains("no-client-certificate")
    });
    assert_eq!(app.asked().len(), 2);
}

#[tokio::test]
async fn silent_and_babbling_callers_do_not_get_in_the_way_of_a_good_one() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut others = Vec::new();
    for _ in 0..40 {
        others.push(Raw::over(plain(&guard).await));
    }
    for number in 0..20 {
        let mut caller = Raw::over(plain(&guard).await);
        caller
            .send([[b"\x16\x03\x01\x7f\xff\x01", &[number; 6][..]].concat(), vec![number; 4000]].concat())
            .await;
        others.push(caller);
    }
    for _ in 0..10 {
        let mut caller = Raw::over(raw(&guard).await);
        caller.send("POST / HTTP/1.1\r\nHo").await;
        others.push(Raw::over(plain(&guard).await));
    }
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for _ in 0..100 {
            assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
        }
    }
    assert_eq!(app.asked().len(), 200);
    drop(others);
}

#[tokio::test]
async fn five_hundred_streams_of_one_connection_are_all_answered() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(crate::support::app::ALLOW)];
    let app = App::start(move |_| acts.clone());
    // One caller's share of so many, for one command, is 1,280.
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app);
    let guard = guard.flag("--max-in-flight", "2000").start();
    let mut caller = Caller::h2(&guard).await;
    let mut callbacks = JoinSet::new();
    for _ in 0..600 {
        callbacks.spawn(caller.begin(&Call::new(COMMAND)));
    }
    // As many as the guard lets a connection open; the caller holds the others back.
    app.wait_for_asked(512).await;
    assert_eq!(guard.metric("callback_guard_in_flight"), 512.0);
    gate.open();
    while let Some(answered) = within("all of them", callbacks.join_next()).await {
        let answer = answered.expect("no panic").expect("an answer");
        assert_eq!((answer.status, answer.told().as_str()), (200, "allow upstream -"));
    }
    assert!(caller.is_open(), "no GOAWAY");
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
}

#[tokio::test]
async fn streams_reset_as_fast_as_they_come_harm_nobody_else() {
    let app = App::start(|asked| match asked.values("Patient")[..] {
        [] => vec![Act::Silence],
        _ => vec![Act::json(crate::support::app::ALLOW)],
    });
    let guard = Guard::with("defaults: {callerTimeout: 15s, timeout: 14s}").upstream(&app).start();
    let mut good = Caller::h2(&guard).await;
    for _ in 0..4 {
        let mut caller = Caller::h2(&guard).await;
        for round in 0..50 {
            let many: Vec<_> = (0..20).map(|_| caller.begin(&Call::new(COMMAND))).collect();
            tokio::task::yield_now().await;
            drop(many);
            if round % 10 == 0 {
                let answer = good.send(&Call::new(COMMAND).header("Patient", "yes")).await;
                assert_eq!(answer.told(), "allow upstream -");
            }
        }
    }
    assert!(good.is_open());
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    assert_eq!(good.send(&Call::new(COMMAND).header("Patient", "yes")).await.told(), "allow upstream -");
}

#[tokio::test]
async fn connections_over_their_bound_wait_until_there_is_room() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(crate::support::app::ALLOW)];
    let app = App::start(move |_| acts.clone());
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}";
    let guard = Guard::with(policy).flag("--max-connections", "1").upstream(&app).start();
    let mut first = Caller::h1(&guard).await;
    let under_way = tokio::spawn(first.begin(&Call::new(COMMAND)));
    app.wait_for_asked(1).await;
    let config = Authority::common().trusted_by(&["http/1.1"], None);
    let second = {
        let stream = plain(&guard).await;
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        tokio::spawn(async move { tokio_rustls::TlsConnector::from(config).connect(name, stream).await })
    };
    guard.wait_for_log(|line| line.contains("at --max-connections"));
    assert!(!second.is_finished());
    gate.open();
    let answer = within("an answer", under_way).await.expect("no panic").expect("an answer");
    assert_eq!(answer.told(), "allow upstream -");
    // It has no request in hand any more.
    let stream = within("room", second).await.expect("no panic").expect("a handshake");
    assert_eq!(Caller::over(stream).await.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}
