//! What the app gets, and what becomes of what it says.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use serde_json::json;

use crate::support::app::ALLOW;
use crate::support::caller::raw;
use crate::support::{
    Act, Answer, App, Asked, Call, Caller, Folder, Guard, OpenIm, PATIENCE, Raw, openim_verdict, within,
};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const SET_GROUP: &str = "callbackBeforeSetGroupInfoCommand";
const PATIENT: &str = "defaults: {callerTimeout: 15s, timeout: 14s}";

fn is_the_apps(answer: &Answer) {
    assert_eq!((answer.status, answer.told().as_str()), (200, "allow upstream -"), "{}", answer.text());
    assert_eq!(answer.text(), ALLOW);
}

/// The lines of a head but for the time that is left, which is never the same; sorted.
fn fields(asked: &Asked) -> Vec<&str> {
    let lines = asked.head.lines().skip(1).filter(|line| !line.is_empty());
    let mut lines: Vec<_> = lines.filter(|line| !line.starts_with("Callback-Guard-Timeout-Ms: ")).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test]
async fn a_callback_travels_byte_for_byte_with_its_own_headers() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let sample = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/support/openim/samples/callbackBeforeSendSingleMsgCommand/request.json"
    );
    let body = std::fs::read(sample).expect("a sample");
    let target = format!("/cb//{COMMAND}?contenttype=text%20x&key=%2F+&empty=&a;b");
    let call = Call::raw(COMMAND, body.clone())
        .target(&target)
        .header("operationID", "1730891241515000001")
        .header("User-Agent", "Go-http-client/2.0")
        .header("Accept-Encoding", "gzip")
        .header("authorization", "Basic b3BlbmltOnMzY3JldA==")
        .header("x-own-header", b"caf\xe9 \t spaces  inside")
        .more_header("X-Multi", "1")
        .more_header("x-multi", "2, 3");
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        is_the_apps(&caller.send(&call).await);
    }
    for asked in app.asked() {
        assert_eq!(asked.line(), format!("POST {target} HTTP/1.1"));
        assert_eq!(asked.body, body);
        let length = format!("Content-Length: {}", body.len());
        let wanted = [
            "Authorization: Basic b3BlbmltOnMzY3JldA==",
            length.as_str(),
            "Content-Type: application/json",
            "Host: localhost",
            "Operationid: 1730891241515000001",
            "User-Agent: Go-http-client/2.0",
            "X-Forwarded-For: 127.0.0.1",
            "X-Forwarded-Proto: https",
            "X-Multi: 1",
            "X-Multi: 2, 3",
            "X-Own-Header: caf\u{e9} \t spaces  inside",
        ];
        assert_eq!(fields(&asked), wanted);
        let left: u64 = asked.values("Callback-Guard-Timeout-Ms")[0].parse().expect("a number");
        assert!((1..=2000).contains(&left), "{left}");
    }
}

#[tokio::test]
async fn headers_of_the_connection_stay_behind_and_ours_cannot_be_forged() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let call = Call::new(COMMAND)
        .header("Connection", "keep-alive, X-Hop,x-hop-too")
        .header("X-Hop", "1")
        .header("X-Hop-Too", "1")
        .header("X-Stays", "1")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("Proxy-Authorization", "Basic eDp5")
        .header("TE", "trailers")
        .header("Trailer", "X-Trailer")
        .header("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
        .header("Accept-Encoding", "gzip, br")
        .header("X-Forwarded-For", "10.0.0.1")
        .more_header("X-Forwarded-For", "10.0.0.2, 10.0.0.3")
        .header("X-Forwarded-Proto", "gopher")
        .header("Callback-Guard-Timeout-Ms", "999999");
    let mut caller = Raw::over(raw(&guard).await);
    // A header twice, which a `Call` replaces.
    let bytes = String::from_utf8(call.bytes())
        .expect("text")
        .replace("X-Forwarded-For: ", "X-Forwarded-For: 10.9.9.9\r\nX-Forwarded-For: ");
    caller.send(bytes).await;
    is_the_apps(&caller.answer().await.expect("an answer"));
    let asked = app.asked();
    let wanted = [
        format!("Content-Length: {}", call.body.len()),
        "Content-Type: application/json".to_owned(),
        "Host: localhost".to_owned(),
        format!("Operationid: {}", call.operation_id()),
        "X-Forwarded-For: 10.9.9.9, 10.0.0.1, 10.9.9.9, 10.0.0.2, 10.0.0.3, 127.0.0.1".to_owned(),
        "X-Forwarded-Proto: https".to_owned(),
        "X-Stays: 1".to_owned(),
    ];
    assert_eq!(fields(&asked[0]), wanted);
    let left: u64 = asked[0].values("Callback-Guard-Timeout-Ms")[0].parse().expect("a number");
    assert!((1..=2000).contains(&left), "{left}");
}

#[tokio::test]
async fn the_app_gets_the_url_in_the_form_it_wants() {
    let received = [
        format!("/cb/{COMMAND}"),
        format!("/cb/{COMMAND}?contenttype=text&key=a%2Fb"),
        format!("/cb?command={COMMAND}&contenttype=text&key=a%2Fb"),
        format!("/cb?contenttype=text&command={COMMAND}&key=a%2Fb"),
        format!("/cb?contenttype=text&key=a%2Fb/{COMMAND}"),
    ];
    let path = [format!("/cb/{COMMAND}"), format!("/cb/{COMMAND}?contenttype=text&key=a%2Fb")];
    let query =
        [format!("/cb?command={COMMAND}"), format!("/cb?command={COMMAND}&contenttype=text&key=a%2Fb")];
    for (form, wanted) in [
        ("as-received", received.clone()),
        ("path", [0, 1, 1, 1, 1].map(|at: usize| path[at].clone())),
        ("query", [0, 1, 1, 1, 1].map(|at: usize| query[at].clone())),
    ] {
        let app = App::allowing();
        let guard = Guard::with("").flag("--upstream-form", form).upstream(&app).start();
        let mut caller = Caller::h2(&guard).await;
        for target in &received {
            is_the_apps(&caller.send(&Call::new(COMMAND).target(target)).await);
        }
        let got: Vec<_> = app.asked().iter().map(|asked| asked.target().to_owned()).collect();
        assert_eq!(got, wanted, "{form}");
    }
}

#[tokio::test]
async fn an_app_on_a_unix_socket_is_asked_like_any_other() {
    let folder = Folder::new();
    let app = App::on_unix(folder.path().join("app.sock"), |asked| match asked.number {
        2 => vec![Act::json(ALLOW), Act::Close],
        5 => vec![Act::Close],
        _ => vec![Act::json(ALLOW)],
    });
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    for _ in 0..3 {
        is_the_apps(&caller.send(&Call::new(COMMAND)).await);
    }
    app.wait_for_ended(1).await;
    for _ in 0..2 {
        is_the_apps(&caller.send(&Call::new(COMMAND)).await);
    }
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow fallback broken");
    // Whether it still listens is asked once, without a word.
    app.wait_for_hung_up(1).await;
    assert_eq!(app.asked().len(), 6);
}

/// An app on this loopback address alone: its port on the other one is taken, and refuses. `None` without IPv6.
fn app_on(address: IpAddr) -> Option<(App, u16, socket2::Socket)> {
    let other: IpAddr =
        if address.is_ipv4() { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let socket = |address: IpAddr, port: u16| {
        let address = SocketAddr::from((address, port));
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.bind(&address.into()).map(|()| socket)
    };
    loop {
        let reserved = socket(other, 0).and_then(|socket| Ok((socket.local_addr()?, socket)));
        let found = reserved.and_then(|(at, reserved)| {
            let port = at.as_socket().expect("TCP").port();
            let free = std::net::TcpListener::bind((address, port))?;
            Ok((free, port, reserved))
        });
        match found {
            Ok((free, port, reserved)) => {
                drop(free);
                let app = App::start_at((address, port).into(), |_| vec![Act::json(ALLOW)]);
                return Some((app, port, reserved));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => {
                let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
                assert!(!ci, "this machine has no IPv6: an app on [::1] is not tested ({error})");
                eprintln!("skipped: this machine has no IPv6 ({error})");
                return None;
            }
        }
    }
}

#[tokio::test]
async fn localhost_is_the_loopback_address_that_the_app_listens_on() {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let Some((app, port, _refuses)) = app_on(address) else { return };
        let guard = Guard::with("").flag("--upstream", format!("http://localhost:{port}")).start();
        let mut caller = Caller::h2(&guard).await;
        for _ in 0..3 {
            is_the_apps(&caller.send(&Call::new(COMMAND).header("Host", "chat.example:8443")).await);
        }
        let hosts: Vec<_> = app.asked().iter().map(|asked| asked.values("Host").join(" and ")).collect();
        assert_eq!(hosts, ["chat.example:8443"; 3], "{address}");
        // Nobody listens while it restarts, and a callback waits for it.
        drop(app);
        let waiting = tokio::spawn(caller.begin(&Call::new(COMMAND)));
        guard.wait_for_metric("callback_guard_in_flight", 1.0).await;
        let app = App::start_at((address, port).into(), |_| vec![Act::json(ALLOW)]);
        is_the_apps(&within("the app's restart", waiting).await.expect("no panic").expect("an answer"));
        assert_eq!(app.asked().len(), 1, "{address}");
    }
}

#[tokio::test]
async fn a_loopback_address_in_digits_is_that_one_alone() {
    for (address, other) in [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1")] {
        let address = address.trim_matches(['[', ']']).parse().expect("an address");
        let Some((app, port, _refuses)) = app_on(address) else { return };
        let guard = Guard::with("").flag("--upstream", format!("http://{other}:{port}")).start();
        let answer = Caller::h1(&guard).await.send(&Call::new(COMMAND)).await;
        assert_eq!(answer.told(), "allow fallback unreachable");
        assert_eq!(app.connections(), 0, "{address}");
    }
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_callback() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for _ in 0..25 {
            is_the_apps(&caller.send(&Call::new(COMMAND)).await);
        }
    }
    // How many rest at a time depends on the machine.
    assert_eq!(app.asked().len(), 50);
    assert!(app.connections() < 50, "{} connections", app.connections());
}

#[tokio::test]
async fn an_app_that_closes_after_every_answer_loses_nothing() {
    let closing = ("Connection", "close");
    let variants = [
        vec![Act::answer("200 OK", &[closing], ALLOW), Act::Close],
        // It says that it closes, and does not.
        vec![Act::answer("200 OK", &[closing], ALLOW)],
        vec![
            Act::send(format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{ALLOW}", ALLOW.len())),
            Act::Close,
        ],
        vec![Act::send(format!("HTTP/1.0 200 OK\r\n\r\n{ALLOW}")), Act::Close],
    ];
    for (at, acts) in variants.into_iter().enumerate() {
        let app = App::start(move |_| acts.clone());
        let guard = Guard::with("").upstream(&app).start();
        let mut caller = Caller::h2(&guard).await;
        for _ in 0..50 {
            let answer = caller.send(&Call::new(COMMAND)).await;
            assert_eq!(answer.told(), "allow upstream -", "variant {at}");
        }
        assert_eq!((app.asked().len(), app.connections()), (50, 50), "variant {at}: each is asked once");
    }
}

#[tokio::test]
async fn a_callback_that_meets_an_unannounced_close_is_never_asked_twice() {
    let app = App::start(|_| vec![Act::json(ALLOW), Act::Close]);
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for _ in 0..100 {
        // Where the bytes may have come before the close, nobody can know what became of them.
        let told = caller.send(&Call::new(COMMAND)).await.told();
        let lawful = ["allow upstream -", "allow fallback broken", "allow fallback unreachable"];
        assert!(lawful.contains(&told.as_str()), "{told}");
    }
    let asked = app.asked();
    let mut ids: Vec<_> = asked.iter().map(|asked| asked.values("operationID")[0]).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), asked.len());
}

#[tokio::test]
async fn a_connection_that_the_app_ended_while_idle_is_replaced() {
    for ending in [Act::Close, Act::Reset] {
        let acts = vec![Act::json(ALLOW), ending];
        let app = App::start(move |_| acts.clone());
        let guard = Guard::with("").upstream(&app).start();
        let mut caller = Caller::h1(&guard).await;
        for count in 1..=10 {
            is_the_apps(&caller.send(&Call::new(COMMAND)).await);
            app.wait_for_ended(count).await;
        }
        assert_eq!((app.asked().len(), app.connections()), (10, 10));
    }
}

#[tokio::test]
async fn an_app_that_went_away_is_unreachable_and_not_slow_whenever_the_deadline_comes() {
    // Deadlines that end within the wait for an app that was there, at every place of its rhythm.
    for timeout in [30, 61, 97, 140, 199] {
        // It keeps no connection: what meets the end of one is another story.
        let app = App::start(|_| vec![Act::answer("200 OK", &[("Connection", "close")], ALLOW), Act::Close]);
        let guard = Guard::with(format!("defaults: {{timeout: {timeout}ms}}")).upstream(&app).start();
        let mut caller = Caller::h2(&guard).await;
        while caller.send(&Call::new(COMMAND)).await.told() != "allow upstream -" {}
        drop(app);
        for _ in 0..4 {
            let told = caller.send(&Call::new(COMMAND)).await.told();
            assert_eq!(told, "allow fallback unreachable", "timeout {timeout} ms");
        }
    }
}

#[tokio::test]
async fn a_callback_that_the_app_has_read_is_never_sent_twice() {
    for (ending, cause) in [(Act::Close, "broken"), (Act::Reset, "unreachable")] {
        let acts = vec![ending];
        let app = App::start(
            move |asked| if asked.number % 2 == 0 { vec![Act::json(ALLOW)] } else { acts.clone() },
        );
        let guard = Guard::with("").upstream(&app).start();
        let mut caller = Caller::h1(&guard).await;
        for _ in 0..10 {
            is_the_apps(&caller.send(&Call::new(COMMAND)).await);
            let answer = caller.send(&Call::new(COMMAND)).await;
            assert_eq!(answer.told(), format!("allow fallback {cause}"));
        }
        // After each, whether it still listens is asked once, without a word.
        app.wait_for_hung_up(10).await;
        let asked = app.asked();
        assert_eq!((asked.len(), app.connections()), (20, 20));
        let mut ids: Vec<_> = asked.iter().map(|asked| asked.values("operationID")[0].to_owned()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 20, "no callback came twice");
    }
}

fn packed(body: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

#[tokio::test]
async fn answers_in_every_lawful_shape_are_read() {
    let length = ALLOW.len();
    let (first, second) = ALLOW.split_at(20);
    let shapes = [
        ("lower case", format!("HTTP/1.1 200 OK\r\ncontent-length:{length}\r\n\r\n{ALLOW}"), ""),
        ("no reason", format!("HTTP/1.1 200\r\nContent-Length: {length}\r\n\r\n{ALLOW}"), ""),
        ("201", format!("HTTP/1.1 201 Created\r\nContent-Length: {length}\r\n\r\n{ALLOW}"), ""),
        (
            "100 first",
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{ALLOW}"
            ),
            "",
        ),
        (
            "103 twice",
            format!(
                "{}HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{ALLOW}",
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(2)
            ),
            "",
        ),
        (
            "chunked",
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};a=b\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\nX-Trailer: 1\r\n\r\n",
                first.len(),
                second.len()
            ),
            "",
        ),
        (
            "a length beside chunks",
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{ALLOW}\r\n0\r\n\r\n"
            ),
            "",
        ),
        (
            "the same length twice",
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}, {length}\r\n\r\n{ALLOW}"),
            "",
        ),
    ];
    for (what, text, finding) in shapes {
        let whole = Act::send(text.clone());
        let piecemeal: Vec<Act> = text.bytes().map(|byte| Act::send(vec![byte])).collect();
        let app = App::start(
            move |asked| if asked.number % 2 == 0 { vec![whole.clone()] } else { piecemeal.clone() },
        );
        let guard = Guard::with(PATIENT).upstream(&app).start();
        let mut caller = Caller::h1(&guard).await;
        for turn in 0..4 {
            let answer = caller.send(&Call::new(COMMAND)).await;
            assert_eq!(
                (answer.told().as_str(), answer.text().as_str()),
                ("allow upstream -", ALLOW),
                "{what}, {turn}"
            );
            assert_eq!((answer.status, answer.finding()), (200, finding), "{what}");
            assert_eq!(answer.header("content-length"), length.to_string(), "{what}");
            assert!(!answer.headers.contains_key("transfer-encoding"), "{what}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_packed_unasked_is_unpacked_and_bounded() {
    let large = format!("{{\"actionCode\":0,\"errMsg\":\"{}\",\"nextCode\":0}}", "x".repeat(1 << 20));
    for (coding, body, told) in [
        ("gzip", ALLOW, "allow upstream -"),
        ("X-GZIP", ALLOW, "allow upstream -"),
        ("identity", "", "allow upstream -"),
        ("gzip", &large, "allow fallback invalid"),
    ] {
        let bytes = if body.is_empty() { ALLOW.as_bytes().to_vec() } else { packed(body) };
        assert!(bytes.len() < 64 << 10);
        let act = Act::answer(
            "200 OK",
            &[("Content-Encoding", coding), ("Content-Type", "application/json")],
            bytes,
        );
        let app = App::start(move |_| vec![act.clone()]);
        let guard = Guard::with("").flag("--max-answer-size", "64KiB").upstream(&app).start();
        let answer = Caller::h2(&guard).await.send(&Call::new(COMMAND)).await;
        assert_eq!((answer.told().as_str(), answer.text().as_str()), (told, ALLOW), "{coding}");
        let unpacked = told == "allow upstream -" && coding != "identity";
        assert_eq!(answer.finding(), if unpacked { "compressed" } else { "" });
        assert_eq!(answer.headers.contains_key("content-encoding"), coding == "identity", "{coding}");
        assert_eq!(
            guard.metric("callback_guard_findings_total{finding=\"compressed\"}"),
            f64::from(u8::from(unpacked))
        );
    }
}

#[tokio::test]
async fn what_stands_behind_an_answer_is_nobodys() {
    let deny = r#"{"actionCode":0,"errCode":5001,"errMsg":"","errDlt":"","nextCode":1}"#;
    let Act::Send(one) = Act::json(ALLOW) else { unreachable!("an answer is bytes") };
    let Act::Send(two) = Act::json(deny) else { unreachable!("an answer is bytes") };
    let both = [one.clone(), two].concat();
    let more = [&one[..], b"and more"].concat();
    for bytes in [both, more] {
        let acts = vec![Act::send(bytes)];
        let app = App::start(move |_| acts.clone());
        let guard = Guard::with("").upstream(&app).start();
        let mut caller = Caller::h1(&guard).await;
        for _ in 0..20 {
            is_the_apps(&caller.send(&Call::new(COMMAND)).await);
        }
        assert_eq!((app.asked().len(), app.connections()), (20, 20), "no connection is used after that");
    }
}

#[tokio::test]
async fn an_answer_that_needs_no_correction_arrives_byte_for_byte_with_the_apps_headers() {
    let body = "{ \"nextCode\" : 1,\n\"actionCode\":0, \"errCode\":5001,\"errMsg\":\"\\u4f60 好\",\"errDlt\":\"\", \"more\":[1.0] }\n";
    let headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("X-App", "caf\u{e9}"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Server", "gin"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Location", "https://elsewhere.example/"),
        ("Callback-Guard-Verdict", "allow"),
        ("Callback-Guard-Cause", "timeout"),
        ("Callback-Guard-Other", "1"),
    ];
    let act = Act::answer("200 OK", &headers, body);
    let app = App::start(move |_| vec![act.clone()]);
    let guard = Guard::with("").upstream(&app).start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let answer = caller.send(&Call::new(COMMAND)).await;
        assert_eq!((answer.status, answer.told().as_str(), answer.finding()), (200, "deny upstream -", ""));
        assert_eq!((answer.text().as_str(), openim_verdict(&answer.body)), (body, OpenIm::Denied(5001)));
        let mut names: Vec<_> = answer.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        let wanted = [
            "callback-guard-origin",
            "callback-guard-verdict",
            "content-length",
            "content-type",
            "date",
            "server",
            "set-cookie",
            "x-app",
        ];
        assert_eq!(names, wanted);
        assert_eq!(answer.header("content-type"), "application/json; charset=utf-8");
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.headers["x-app"].as_bytes(), "caf\u{e9}".as_bytes());
    }
}

#[tokio::test]
async fn an_answer_that_is_corrected_keeps_the_rest_of_it() {
    let rows: [(&str, &str, &str, &str); 7] = [
        (
            r#"{"actionCode":"0", "x": 1,"nextCode":""}"#,
            r#"{"actionCode":0, "x": 1,"nextCode":0}"#,
            "allow",
            "code-as-string",
        ),
        (
            r#"{"errCode":"5001","nextCode":"1"}"#,
            r#"{"errCode":5001,"nextCode":1}"#,
            "deny",
            "code-as-string",
        ),
        (
            r#"{"actionCode":0.0,"nextCode":0e0}"#,
            r#"{"actionCode":0,"nextCode":0}"#,
            "allow",
            "code-as-float",
        ),
        ("\u{feff}{\"nextCode\":0}", r#"{"nextCode":0}"#, "allow", "byte-order-mark"),
        (r#"{"errCode":7,"nextCode":1}"#, r#"{"errCode":5100,"nextCode":1}"#, "deny", "deny-code-too-small"),
        (r#"{"nextCode":1}"#, r#"{"nextCode":1,"errCode":5100}"#, "deny", "deny-code-too-small"),
        (
            r#"{"code":200,"data":{"nextCode":1}}"#,
            r#"{"code":200,"data":{"nextCode":1}}"#,
            "allow",
            "no-known-field",
        ),
    ];
    let answers = rows.map(|(body, ..)| {
        Act::answer("200 OK", &[("X-App", "1"), ("Content-Type", "text/json")], body.to_owned())
    });
    let app = App::start(move |asked| {
        let row: usize = asked.values("Row")[0].parse().expect("a number");
        vec![answers[row].clone()]
    });
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for (at, (given, wanted, verdict, finding)) in rows.into_iter().enumerate() {
        let call = Call::new(COMMAND).header("Row", at.to_string());
        let answer = caller.send(&call).await;
        assert_eq!((answer.text().as_str(), answer.finding()), (wanted, finding), "{given}");
        assert_eq!((answer.status, answer.told()), (200, format!("{verdict} upstream -")), "{given}");
        assert_eq!((answer.header("x-app"), answer.header("content-type")), ("1", "text/json"), "{given}");
        assert_eq!(answer.header("content-length"), wanted.len().to_string());
        assert_ne!(openim_verdict(&answer.body), OpenIm::Error, "{given}");
        assert_eq!(guard.decision(&call.operation_id())["finding"], finding);
        let same = rows.iter().take(at + 1).filter(|row| row.3 == finding).count() as f64;
        assert_eq!(guard.metric(&format!("callback_guard_findings_total{{finding=\"{finding}\"}}")), same);
    }
}

#[tokio::test]
async fn a_clear_refusal_is_obeyed_whatever_its_status() {
    let deny = r#"{"actionCode":0,"errCode":5001,"errMsg":"no","errDlt":"","nextCode":1}"#;
    for status in ["400 Bad Request", "403 Forbidden", "500 Oops", "302 Found"] {
        let act = Act::answer(status, &[("Location", "/elsewhere"), ("X-App", "1")], deny);
        let app = App::start(move |_| vec![act.clone()]);
        let guard = Guard::with("").upstream(&app).start();
        let answer = Caller::h1(&guard).await.send(&Call::new(COMMAND)).await;
        assert_eq!((answer.status, answer.told().as_str()), (200, "deny upstream -"), "{status}");
        assert_eq!((answer.text().as_str(), answer.finding()), (deny, "refusal-with-status"));
        assert_eq!((answer.header("location"), answer.header("x-app")), ("", "1"));
    }
}

#[tokio::test]
async fn an_allow_that_would_wipe_a_group_is_completed_and_the_default_echoes() {
    let app = App::start(|asked| match asked.number {
        0 => vec![Act::json(ALLOW)],
        1 => vec![Act::json("null")],
        2 => vec![Act::json("no answer")],
        _ => vec![Act::Reset],
    });
    let guard = Guard::with("").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let call = Call::new(SET_GROUP)
        .with("groupID", "g1")
        .with("groupName", "a \"name\"")
        .with("introduction", "听")
        .with("notification", "")
        .with("faceURL", "https://a/");
    for turn in 0..4 {
        let answer = caller.send(&call).await;
        let json = answer.json();
        assert_eq!(openim_verdict(&answer.body), OpenIm::Allowed, "{turn}");
        let echoed = ["groupID", "groupName", "introduction", "faceURL"].map(|name| json[name].clone());
        assert_eq!(
            echoed,
            ["g1", "a \"name\"", "听", "https://a/"].map(|text| json!(text)),
            "{turn}: {json}"
        );
        assert_eq!(
            answer.finding(),
            if turn < 2 {
                if turn == 0 { "fields-left-out" } else { "fields-left-out,no-known-field" }
            } else {
                ""
            }
        );
    }
}

#[tokio::test]
async fn large_callbacks_and_answers_travel_whole() {
    let filler = "0123456789abcdef".repeat(128 << 10);
    let answer = Bytes::from(format!("{{\"actionCode\":0,\"errMsg\":\"{filler}\",\"nextCode\":0}}"));
    let app = App::answering(answer.clone());
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-request-size", "8MiB");
    let guard = guard.flag("--max-answer-size", "8MiB").start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        for _ in 0..3 {
            let call = Call::new(COMMAND).with("content", filler.clone());
            let got = caller.send(&call).await;
            assert_eq!(got.told(), "allow upstream -");
            assert!(got.body == answer, "{} bytes and not {}", got.body.len(), answer.len());
            let asked = app.asked();
            assert!(asked[asked.len() - 1].body == call.body);
        }
    }
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
}

#[tokio::test]
async fn an_app_that_answers_before_it_has_read_everything_is_listened_to() {
    let deny = r#"{"actionCode":0,"errCode":5001,"errMsg":"too long","errDlt":"","nextCode":1}"#;
    let app = App::greeting(vec![Act::Begin, Act::answer("413 Too Large", &[], deny), Act::Deafness]);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-request-size", "8MiB").start();
    let call = Call::new(COMMAND).with("content", "x".repeat(7 << 20));
    let answer = Caller::h2(&guard).await.send(&call).await;
    assert_eq!((answer.told().as_str(), answer.text().as_str()), ("deny upstream -", deny));
}

#[tokio::test]
async fn at_the_deadline_the_app_is_hung_up_on() {
    let app = App::start(|_| vec![Act::Silence]);
    let guard = Guard::with("defaults: {timeout: 200ms}").upstream(&app).start();
    let mut caller = Caller::h1(&guard).await;
    for count in 1..=3 {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow fallback timeout");
        app.wait_for_hung_up(count).await;
    }
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    assert!(caller.is_open());
}

/// An app that is silent to a callback with the header `Silent`.
fn moody() -> App {
    App::start(
        |asked| if asked.values("Silent").is_empty() { vec![Act::json(ALLOW)] } else { vec![Act::Silence] },
    )
}

#[tokio::test]
async fn a_caller_that_hangs_up_takes_its_callback_along() {
    let app = moody();
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}\nrules: [{name: one, match: {phase: [Before]}, maxInFlight: 1}]";
    let guard = Guard::with(policy).upstream(&app).start();
    let mut other = Caller::h2(&guard).await;
    let silent = Call::new(COMMAND).header("Silent", "yes");
    for turn in 0..6 {
        let mut caller = if turn % 2 == 0 { Caller::h1(&guard).await } else { Caller::h2(&guard).await };
        let callback = tokio::spawn(caller.begin(&silent));
        app.wait_for_asked(turn * 2 + 1).await;
        assert_eq!(other.send(&Call::new(COMMAND)).await.told(), "allow fallback overloaded");
        // Over HTTP/2 one stream is reset; the connection goes on.
        callback.abort();
        if turn % 4 == 0 {
            caller.hang_up();
        }
        app.wait_for_hung_up(turn + 1).await;
        guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
        is_the_apps(&other.send(&Call::new(COMMAND)).await);
    }
    let answered = guard.count("callback_guard_callbacks_total", &[]);
    assert_eq!(answered, 12.0, "what nobody waited for is not an answer");
}

#[tokio::test]
async fn a_probe_whose_caller_hangs_up_is_given_back() {
    let app = App::start(|asked| match asked.values("Mood")[..] {
        ["silent"] => vec![Act::Silence],
        ["broken"] => vec![Act::Close],
        _ => vec![Act::json(ALLOW)],
    });
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}\nrules: [{name: probed, match: {phase: [Before]}, \
                  breaker: {failureRate: 1, minimumCallbacks: 1, window: 60s, openFor: 100ms}}]";
    let guard = Guard::with(policy).upstream(&app).start();
    let mut other = Caller::h1(&guard).await;
    let state = "callback_guard_breaker_state{rule=\"probed\"}";
    let broken = Call::new(COMMAND).header("Mood", "broken");
    assert_eq!(other.send(&broken).await.told(), "allow fallback broken");
    assert_eq!(guard.metric(state), 1.0);
    let mut caller = Caller::h2(&guard).await;
    // Until the breaker lets one through; each try is an answer, and the time is its own.
    let begun = Instant::now();
    let probe = loop {
        let mut probe = tokio::spawn(caller.begin(&Call::new(COMMAND).header("Mood", "silent")));
        tokio::select! {
            answered = &mut probe => {
                let answer = answered.expect("no panic").expect("an answer");
                assert_eq!(answer.told(), "allow fallback breaker-open");
                assert!(begun.elapsed() < PATIENCE, "no probe is let through");
            }
            () = app.wait_for_asked(2) => break probe,
        }
    };
    assert_eq!(guard.metric(state), 2.0, "half-open");
    assert_eq!(other.send(&Call::new(COMMAND)).await.told(), "allow fallback breaker-open");
    probe.abort();
    app.wait_for_hung_up(1).await;
    guard.wait_for_metric("callback_guard_in_flight", 0.0).await;
    is_the_apps(&other.send(&Call::new(COMMAND)).await);
    assert_eq!(guard.metric(state), 0.0, "closed");
}

#[tokio::test]
async fn bytes_held_over_their_bound_are_an_overload() {
    let gate = crate::support::Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |_| acts.clone());
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}\nrules:\n  - {name: denied, match: {phase: [Before]}, fallback: Deny}";
    let guard = Guard::with(policy).flag("--max-held", "1MiB").upstream(&app).start();
    let large = || "x".repeat(500 << 10);
    let mut holder = Caller::h2(&guard).await;
    let held = tokio::spawn(holder.begin(&Call::new(COMMAND).with("content", large())));
    app.wait_for_asked(1).await;
    assert!(guard.metric("callback_guard_held_bytes") > 500_000.0);
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let call = Call::new(COMMAND).with("content", large());
        let answer = caller.send(&call).await;
        assert_eq!((answer.status, answer.told().as_str()), (200, "deny fallback overloaded"));
        assert_eq!(openim_verdict(&answer.body), OpenIm::Denied(5100));
        let detail =
            "the bytes held for this caller's callbacks of this command are at their share of --max-held";
        assert_eq!(guard.decision(&call.operation_id())["detail"], detail);
        let other = Call::new("callbackAfterSendSingleMsgCommand").with("content", large());
        assert_eq!(caller.send(&other).await.told(), "allow fallback overloaded");
        // There is nothing to echo, and a plain allow would wipe the group.
        let group = Call::new("callbackBeforeSetGroupInfoExCommand").with("more", large());
        assert_eq!(caller.send(&group).await.told(), "deny fallback overloaded");
        let get = Call::new(COMMAND).method("GET").with("content", large());
        assert_eq!(caller.send(&get).await.told(), "deny rejection method");
    }
    gate.open();
    is_the_apps(&within("the holder", held).await.expect("no panic").expect("an answer"));
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    is_the_apps(&holder.send(&Call::new(COMMAND).with("content", large())).await);
}
