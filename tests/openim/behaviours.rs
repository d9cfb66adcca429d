//! How OpenIM's client behaves, each seen once in front of the guard: what it sends, what it never repeats, how many
//! connections it opens, and that it is let go of without a loss.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::client::{call, judge, known, request, said};
use crate::judge::Judge;
use crate::support::{Act, App, Folder, Guard, app::ALLOW};

const SINGLE: &str = "callbackBeforeSendSingleMsgCommand";

fn url(guard: &Guard) -> String {
    format!("https://localhost:{}/cb", guard.listen().port())
}

fn one(judge: &mut Judge, job: Json) -> Json {
    judge.ask([job].into_iter()).remove(0)
}

fn with(mut job: Json, key: &str, value: impl Into<Json>) -> Json {
    job[key] = value.into();
    job
}

#[test]
fn an_empty_operation_id_is_given_one_or_rejected_as_the_policy_says() {
    let mut judge = judge(false);
    for (policy, expected, asked) in [
        ("", "allowed", 1),
        ("validation: {operationID: Require}", "denied 5400", 0),
        ("validation: {operationID: Generate}", "allowed", 1),
    ] {
        let app = App::allowing();
        let guard = Guard::with(policy).upstream(&app).start();
        let mut job = with(call(known(SINGLE), &url(&guard), 5), "operationID", "");
        job["request"]["operationID"] = json!("");
        assert_eq!(said(&one(&mut judge, job)), expected);
        assert_eq!(app.asked().len(), asked);
        for asked in app.asked() {
            assert!(asked.values("operationID").concat().starts_with("guard-"), "{}", asked.head);
        }
    }
}

/// What the standalone program of OpenIM's main branch sends: the header's ID is read when it is another request's, or gone.
#[test]
fn a_header_of_another_request_or_an_empty_one_loses_no_callback_unless_the_policy_says_so() {
    for h1 in [false, true] {
        let mut judge = judge(h1);
        for (policy, header, expected) in [
            ("", "of another request", Some("op-1")),
            ("", "", Some("op-1")),
            ("", "op-1", Some("op-1")),
            ("validation: {operationID: Require}", "of another request", None),
            ("validation: {operationID: Require}", "", None),
            ("validation: {operationID: Require}", "op-1", Some("op-1")),
        ] {
            let app = App::allowing();
            let guard = Guard::with(policy).upstream(&app).start();
            let job = with(call(known(SINGLE), &url(&guard), 5), "operationID", header);
            let verdict = if expected.is_some() { "allowed" } else { "denied 5400" };
            assert_eq!(said(&one(&mut judge, job)), verdict, "{policy} {header:?}");
            let asked = app.asked();
            let ids = asked.first().map(|asked| asked.values("operationID"));
            assert_eq!(ids, expected.map(|id| vec![id]), "{policy} {header:?}");
        }
    }
}

#[test]
fn escapes_and_null_slices_travel_byte_for_byte() {
    let mut judge = judge(false);
    let app = App::allowing();
    let guard = Guard::with("validation: {fieldTypes: Reject}").upstream(&app).start();
    let mut job = call(known(SINGLE), &url(&guard), 5);
    job["request"]["content"] = json!("<b> & \u{2028}");
    job["request"]["atUserList"] = Json::Null;
    assert_eq!(said(&one(&mut judge, job)), "allowed", "null is what Go sends for an empty list");
    let body = String::from_utf8(app.asked()[0].body.to_vec()).expect("UTF-8");
    assert!(body.contains(r"\u003cb\u003e \u0026 \u2028"), "{body}");
    assert!(body.contains(r#""atUserList":null"#) && body.ends_with("}\n"), "{body}");
}

#[test]
fn five_hundred_joined_operation_ids_pass_over_h2_and_h1() {
    let ids = vec!["5f2c1d3e4b5a69788796a5b4c3d2e1f0-1730891241515000001-4711-0123456"; 500].join("$");
    assert!(ids.len() > 32_000);
    for h1 in [false, true] {
        let app = App::allowing();
        let guard = Guard::with("").upstream(&app).start();
        let mut job = with(call(known(SINGLE), &url(&guard), 5), "operationID", ids.clone());
        job["request"]["operationID"] = json!(ids);
        assert_eq!(said(&one(&mut judge(h1), job)), "allowed");
        assert_eq!(app.asked()[0].values("operationID"), [ids.as_str()]);
    }
}

#[test]
fn the_key_of_newer_servers_travels_untouched() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let name = "callbackAfterSendSingleMsgCommand";
    let query = "key=eyJzZW5kSUQiOiJhIiwicmVjdklEIjoiYiIsImdyb3VwSUQiOiIifQ%3D%3D";
    let job = json!({
        "do": "post", "url": format!("{}/{name}?{query}", url(&guard)), "operationID": "op-1", "request": request(known(name)),
    });
    assert_eq!(said(&one(&mut judge(false), job)), "allowed");
    // It was answered before the app had it.
    guard.wait_for_log(|line| line.contains("Event delivered"));
    assert_eq!(app.asked()[0].target(), format!("/cb/{name}?{query}"));
}

#[test]
fn commands_newer_than_the_module_go_through_its_client_too() {
    let app = App::start(|asked| {
        let known = asked.command() == "callbackBeforeCreateSingleChatConversationsCommand";
        if known { vec![Act::json(ALLOW)] } else { vec![Act::Silence] }
    });
    let guard = Guard::with("defaults: {timeout: 200ms, fallback: Deny}").upstream(&app).start();
    let mut judge = judge(false);
    let mut raw = |name: &str, body: Json| {
        let job = json!({
            "do": "call", "raw": true, "command": name, "url": url(&guard), "operationID": "op-1", "timeout": 5,
            "request": body,
        });
        said(&one(&mut judge, job))
    };
    let name = "callbackBeforeCreateSingleChatConversationsCommand";
    assert_eq!(raw(name, request(known(name))), "allowed");
    let name = "callbackBeforeCreateGroupChatConversationsCommand";
    assert_eq!(raw(name, request(known(name))), "denied 5100");
    assert_eq!(raw("callbackOfTomorrow", json!({"callbackCommand": "callbackOfTomorrow"})), "denied 5100");
}

#[test]
fn a_callback_is_asked_once_whatever_becomes_of_it() {
    for act in [Act::Close, Act::Reset, Act::Silence] {
        let app = App::start(move |_| vec![act.clone()]);
        let guard = Guard::with("defaults: {timeout: 200ms}").upstream(&app).start();
        let jobs = (0..20).map(|_| call(known(SINGLE), &url(&guard), 5)).collect::<Vec<_>>();
        let conclusions = judge(false).ask(jobs.into_iter());
        assert!(conclusions.iter().all(|conclusion| said(conclusion) == "allowed"), "{conclusions:?}");
        assert_eq!(app.asked().len(), 20);
    }
}

#[test]
fn a_redirect_of_the_app_is_never_sent_on() {
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let app = App::start(move |asked| {
            let next = [("Location", "/elsewhere")];
            assert!(asked.target().starts_with("/cb/"), "it was followed");
            vec![Act::answer(status, &next, ALLOW)]
        });
        for mode in ["Enforce", "Observe"] {
            let guard = Guard::with(format!("mode: {mode}")).upstream(&app).start();
            assert_eq!(
                said(&one(&mut judge(false), call(known(SINGLE), &url(&guard), 5))),
                "allowed",
                "{status} {mode}"
            );
        }
        assert_eq!(app.asked().len(), 2);
    }
}

#[test]
fn userinfo_of_the_url_is_the_password() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).file("--basic-auth-file", "auth", "openim:s3cret\n").start();
    let mut judge = judge(false);
    for (user, expected) in
        [("openim:s3cret@", "allowed"), ("openim:wrong@", "denied 5400"), ("", "denied 5400")]
    {
        let url = format!("https://{user}localhost:{}/cb", guard.listen().port());
        assert_eq!(said(&one(&mut judge, call(known(SINGLE), &url, 5))), expected, "{user}");
    }
    assert_eq!(app.asked().len(), 1);
}

#[test]
fn names_and_forms_of_earlier_servers_work_end_to_end() {
    let app = App::answering(r#"{"actionCode":0,"errCode":0,"errMsg":"Success","errDlt":"","nextCode":""}"#);
    let published = json!({
        "callbackCommand": "callbackBeforePushCommand", "platformID": 1, "platform": "iOS",
        "userIDList": ["user123", "user456"], "title": "New Message", "desc": "You have a new message",
        "ex": "Extra push info", "iOSPushSound": "default", "iOSBadgeCount": true, "signalInfo": "Signal data",
        "clientMsgID": "msg123", "sendID": "user789", "groupID": "group123", "contentType": 1, "sessionType": 2,
        "atUserIDList": ["user101", "user102"], "content": "Hello, this is a test message",
    });
    let older =
        json!({"callbackCommand": "callbackOnlinePushCommand", "operationID": "op-1", "userIDList": null});
    let rows = [
        ("/cb?command=callbackBeforePushCommand&contenttype=json", &published),
        ("/cb?command=callbackOnlinePushCommand", &older),
        ("/cb/callbackOnlinePushCommand", &older),
    ];
    let forms = [
        (
            "as-received",
            [
                "/cb?command=callbackBeforePushCommand&contenttype=json",
                "/cb?command=callbackOnlinePushCommand",
                "/cb/callbackOnlinePushCommand",
            ],
        ),
        (
            "path",
            [
                "/cb/callbackBeforePushCommand?contenttype=json",
                "/cb/callbackOnlinePushCommand",
                "/cb/callbackOnlinePushCommand",
            ],
        ),
        (
            "query",
            [
                "/cb?command=callbackBeforePushCommand&contenttype=json",
                "/cb?command=callbackOnlinePushCommand",
                "/cb?command=callbackOnlinePushCommand",
            ],
        ),
    ];
    let mut judge = judge(false);
    for (form, targets) in forms {
        let policy = "rules: [{name: push, match: {commands: [callbackBeforeOnlinePushCommand, callbackBeforePushCommand]}}]";
        let guard = Guard::with(policy).upstream(&app).flag("--upstream-form", form).start();
        for ((target, body), expected) in rows.iter().zip(targets) {
            let url = format!("https://localhost:{}{target}", guard.listen().port());
            let job = json!({"do": "post", "url": url, "operationID": "op-1", "request": body});
            assert_eq!(said(&one(&mut judge, job)), "allowed", "{form} {target}");
            assert_eq!(app.asked().last().expect("asked").target(), expected, "{form}");
        }
        let decisions = guard.wait_for_decisions(3);
        assert!(
            decisions
                .iter()
                .all(|decision| decision["rule"] == "push" && decision["finding"] == "code-as-string")
        );
    }
}

/// How many of 300 callbacks at once OpenIM lets go on, with its timeout in seconds.
fn of_300(judge: &mut Judge, url: &str, timeout: u32) -> usize {
    let job = with(call(known(SINGLE), url, timeout), "times", 300);
    let conclusions = one(judge, job);
    conclusions
        .as_array()
        .expect("300 conclusions")
        .iter()
        .filter(|conclusion| said(conclusion) == "allowed")
        .count()
}

#[test]
fn three_hundred_at_once_all_pass_over_h2_and_h1_stops_at_a_hundred_connections() {
    let app = App::start(|_| vec![Act::Work(Duration::from_millis(700)), Act::json(ALLOW)]);
    let guard = Guard::with("").upstream(&app).start();
    for timeout in [2, 5] {
        assert_eq!(of_300(&mut judge(false), &url(&guard), timeout), 300, "h2, {timeout} s");
    }
    // A hundred connections, 0.7 s each: two turns in 2 s, with the guard as without it.
    for url in [url(&guard), format!("{}/cb", app.url())] {
        assert_eq!(of_300(&mut judge(true), &url, 2), 200, "h1, {url}");
        assert_eq!(of_300(&mut judge(true), &url, 5), 300, "h1, {url}");
    }
    // What helps a caller that is left with h1 is a shorter deadline: three turns of 0.3 s.
    let guard = Guard::with("defaults: {timeout: 300ms}").upstream(&app).start();
    assert_eq!(of_300(&mut judge(true), &url(&guard), 2), 300);
}

#[test]
fn a_client_that_is_warm_opens_no_connection_for_300_callbacks_at_once() {
    let app = App::start(|_| vec![Act::Work(Duration::from_millis(1500)), Act::json(ALLOW)]);
    let guard = Guard::with("").upstream(&app).start();
    let mut judge = judge(false);
    let url = url(&guard);
    assert_eq!(said(&one(&mut judge, call(known(SINGLE), &url, 5))), "allowed");
    let load = std::thread::spawn(move || of_300(&mut judge, &url, 5));
    // All of them are under way: no further connection is needed any more.
    while !load.is_finished() && guard.metric("callback_guard_in_flight") < 300.0 {}
    assert_eq!(guard.metric("callback_guard_connections"), 1.0);
    assert_eq!(load.join().expect("the load"), 300);
    assert_eq!(app.asked().len(), 301);
}

#[test]
fn idle_connections_come_and_go_over_h1_without_a_failure() {
    let app = App::start(|_| vec![Act::Work(Duration::from_millis(20)), Act::json(ALLOW)]);
    let guard = Guard::with("").upstream(&app).start();
    let mut judge = judge(true);
    let job =
        with(with(with(call(known(SINGLE), &url(&guard), 5), "do", "steady"), "times", 20), "rounds", 20);
    assert_eq!(one(&mut judge, job), json!({"allowed": 400}));
    // Go keeps two of twenty: the rest was opened again and again.
    assert!(app.asked().len() == 400);
}

/// What a Service is to pods: an address whose connections go to one of them, each to its end.
struct Service {
    address: SocketAddr,
    pod: Arc<Mutex<SocketAddr>>,
}

impl Service {
    fn of(pod: SocketAddr) -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let pod = Arc::new(Mutex::new(pod));
        let current = Arc::clone(&pod);
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let pod = *current.lock().expect("no panic under it");
                let Ok(far) = TcpStream::connect(pod) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) =
                        (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    let _ = to.set_nodelay(true);
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        Service { address, pod }
    }

    /// New connections go to this one.
    fn moves_to(&self, pod: SocketAddr) {
        *self.pod.lock().expect("no panic under it") = pod;
    }
}

#[test]
fn a_drain_under_load_loses_nothing() {
    for h1 in [false, true] {
        let app = App::start(|_| vec![Act::Work(Duration::from_millis(5)), Act::json(ALLOW)]);
        let guard = || {
            let flags = Guard::with("").upstream(&app).flag("--workers", "2");
            flags.flag("--drain-delay", "1s").start()
        };
        let mut old = guard();
        let service = Service::of(old.listen());
        let folder = Folder::new();
        let enough = folder.path().join("enough");
        let to = format!("https://localhost:{}/cb", service.address.port());
        let job = with(with(call(known(SINGLE), &to, 5), "do", "steady"), "times", 16);
        let job = with(job, "until", enough.to_string_lossy());
        // Built and started before the clock runs: a first build takes longer than the log is waited for.
        let mut judge = judge(h1);
        let load = std::thread::spawn(move || one(&mut judge, job));
        for _ in 0..3 {
            old.wait_for_decisions(200);
            let new = guard();
            assert_eq!(old.admin_post("/drain").0, 200);
            old.terminate();
            // A Service hears of it last: until then connections come to the one that ends.
            service.moves_to(new.listen());
            assert_eq!(old.wait_exit(), 0);
            old = new;
        }
        folder.write("enough", "");
        let ended = load.join().expect("the load");
        assert!(ended["allowed"].as_u64() >= Some(600), "h1 {h1}: {ended}");
        assert_eq!(ended.as_object().map(serde_json::Map::len), Some(1), "h1 {h1}: {ended}");
    }
}
