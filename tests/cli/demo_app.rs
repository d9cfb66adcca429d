//! `demo-app` over real connections: what it answers, its bounds, its log, and how it shuts down.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{Folder, Ran, Running};

/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const BEHIND: &str = "\nFor the flags and their defaults: callback-guard demo-app --help\n";

const SINGLE: &str = "callbackBeforeSendSingleMsgCommand";

/// The app on a free port. Killed when this is dropped.
struct App {
    running: Running,
    address: SocketAddr,
}

impl App {
    fn start(folder: &Folder, flags: &str) -> App {
        let mut running = folder.program(&format!("demo-app --listen 127.0.0.1:0 {flags}")).start();
        let line = logged(&mut running);
        assert_eq!(line["message"], "Listening", "{line}");
        let address = line["listen.addr"].as_str().and_then(|address| address.parse().ok());
        App { running, address: address.expect("an address") }
    }

    fn connect(&self) -> Connection {
        Connection::new(TcpStream::connect(self.address).expect("the app accepts connections"))
    }

    /// One callback on a connection of its own.
    fn post(&self, target: &str, body: &str) -> Answer {
        self.connect().post(target, body)
    }

    fn signal(&self, name: &str) {
        let id = self.running.id().to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// The next log line.
    fn logged(&mut self) -> Value {
        logged(&mut self.running)
    }

    /// Sends the signal, and waits until the app reports it.
    fn shut_down(&mut self, signal: &str) {
        self.signal(signal);
        loop {
            let line = self.logged();
            if line["message"] == "Shutting down" {
                assert_eq!(line["signal"], format!("SIG{signal}"), "{line}");
                return;
            }
        }
    }

    /// Waits for its end.
    fn wait(&mut self) -> Ran {
        self.running.wait().err("")
    }
}

#[track_caller]
fn logged(running: &mut Running) -> Value {
    let line = running.line().expect("a log line before the end");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Connection(BufReader::new(stream))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).expect("the app reads");
    }

    fn post(&mut self, target: &str, body: &str) -> Answer {
        self.send(&post(target, body));
        self.answer()
    }

    fn get(&mut self, method: &str, target: &str) -> Answer {
        self.send(&format!("{method} {target} HTTP/1.1\r\nHost: app\r\n\r\n"));
        self.answer()
    }

    /// The head of an answer; none if the connection is closed.
    fn head(&mut self) -> Option<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).expect("an answer in time") == 0 {
                assert_eq!(head, "", "the connection is closed in the middle of a head");
                return None;
            }
        }
        Some(head.to_ascii_lowercase())
    }

    fn answer(&mut self) -> Answer {
        let head = self.head().expect("an answer");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.expect("a length").parse().expect("a number")];
        self.0.read_exact(&mut body).expect("a whole body");
        Answer { body: String::from_utf8(body).expect("UTF-8"), head }
    }
}

fn post(target: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[derive(Debug)]
struct Answer {
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn has_status(&self, status: u16) -> &Answer {
        assert!(self.head.starts_with(&format!("http/1.1 {status} ")), "{self:?}");
        self
    }

    fn closes(&self) -> bool {
        self.head.contains("\r\nconnection: close\r\n")
    }

    #[track_caller]
    fn is_json(&self, expected: &Value) {
        assert!(self.head.contains("\r\ncontent-type: application/json\r\n"), "{self:?}");
        let found: Value = serde_json::from_str(&self.body).expect("JSON");
        assert_eq!(found, *expected);
    }
}

fn allow() -> Value {
    json!({"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0})
}

fn refusal() -> Value {
    json!({"actionCode": 0, "errCode": 5001, "errMsg": "that word is not welcome here", "errDlt": "", "nextCode": 1})
}

#[test]
fn it_allows_refuses_one_word_and_logs_command_and_verdict() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "");
    let target = format!("/cb/{SINGLE}");
    app.post(&target, r#"{"content":"see you at the cinema"}"#).has_status(200).is_json(&allow());
    let line = app.logged();
    assert_eq!([&line["command"], &line["verdict"], &line["message"]], [SINGLE, "allow", "Answered"]);
    app.post(&format!("/cb?command={SINGLE}"), r#"{"content":"see you at the casino"}"#)
        .has_status(200)
        .is_json(&refusal());
    let line = app.logged();
    assert_eq!([&line["command"], &line["verdict"]], [SINGLE, "deny"]);
    // In two chunks it is the same word.
    let mut connection = app.connect();
    connection.send(&format!(
        "POST {target} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ncas\r\n3\r\nino\r\n0\r\n\r\n"
    ));
    let answer = connection.answer();
    answer.is_json(&refusal());
    assert!(!answer.closes(), "{answer:?}");
    // The connection is kept open for the next one.
    connection.post("/", "{}").is_json(&allow());
}

#[test]
fn probes_are_answered_and_other_methods_are_not_allowed() {
    let folder = Folder::new();
    let app = App::start(&folder, "");
    let mut connection = app.connect();
    assert_eq!(connection.get("GET", "/readyz").has_status(200).body, "ok\n");
    for (method, target) in [("GET", "/"), ("GET", "/readyz/"), ("PUT", "/readyz"), ("DELETE", "/cb")] {
        let answer = connection.get(method, target);
        answer.has_status(405);
        assert!(answer.head.contains("\r\nallow: "), "{method} {target}: {answer:?}");
    }
    connection.send("HEAD /readyz HTTP/1.1\r\nHost: app\r\n\r\n");
    assert!(connection.head().is_some_and(|head| head.starts_with("http/1.1 200 ")));
    connection.post("/readyz", "{}").has_status(200).is_json(&allow());
}

#[test]
fn a_body_at_the_limit_is_answered_and_a_larger_one_is_not() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "--max-request-size 1KiB");
    app.post("/", &"a".repeat(1024)).has_status(200).is_json(&allow());
    assert_eq!(app.logged()["verdict"], "allow");
    app.post("/", &"a".repeat(1025)).has_status(413);
    assert_eq!(app.logged()["verdict"], "none");
    // A caller that sends everything first still reads the answer.
    let answer = app.post("/", &"a".repeat(4 << 20));
    assert_eq!(answer.has_status(413).body, "the body is larger than --max-request-size\n");
    let default = App::start(&folder, "");
    default.post("/", &"a".repeat(1 << 20)).has_status(200);
    default.post("/", &"a".repeat((1 << 20) + 1)).has_status(413);
}

#[test]
fn the_delay_is_before_the_answer_to_a_callback_and_to_nothing_else() {
    let folder = Folder::new();
    let app = App::start(&folder, "--delay 300ms");
    let start = Instant::now();
    app.post("/", "{}").has_status(200);
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());

    let mut app = App::start(&folder, "--delay 1h");
    let mut waiting = app.connect();
    waiting.send(&post(&format!("/{SINGLE}"), "{}"));
    app.connect().get("GET", "/readyz").has_status(200);
    // The guard closes the connection like this when its timeout has passed.
    drop(waiting);
    let line = app.logged();
    assert_eq!(line["message"], "Not answered: the connection was closed", "{line}");
    assert_eq!(line["command"], SINGLE, "{line}");
}

#[test]
fn further_connections_wait_for_their_turn() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "--max-connections 1");
    let (mut first, mut second) = (app.connect(), app.connect());
    let line = app.logged();
    assert_eq!(line["message"], "The number of connections is at --max-connections: new ones wait");
    second.send(&post("/callbackBeforeAddFriendCommand", "{}"));
    first.post(&format!("/{SINGLE}"), "{}").has_status(200);
    drop(first);
    second.answer().has_status(200);
    assert_eq!(app.logged()["command"], SINGLE);
    assert_eq!(app.logged()["command"], "callbackBeforeAddFriendCommand");
}

#[test]
fn a_caller_that_sends_nothing_or_half_a_request_does_not_stay() {
    let folder = Folder::new();
    let app = App::start(&folder, "--idle-timeout 1s");
    let (mut idle, mut head, mut body) = (app.connect(), app.connect(), app.connect());
    head.send("POST / HTTP/1.1\r\nHost:");
    body.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\n{");
    assert_eq!(idle.head(), None);
    assert_eq!(head.head(), None);
    body.answer().has_status(408);
    // The twin: the delay of an answer is not the caller's idleness.
    let app = App::start(&folder, "--idle-timeout 1s --delay 1500ms");
    app.post("/", "{}").has_status(200);
}

#[test]
fn after_sigterm_it_accepts_and_answers_for_the_shutdown_delay_and_exits() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "--shutdown-delay 3s");
    let mut open = app.connect();
    assert!(!open.post("/", "{}").has_status(200).closes());
    let signaled = Instant::now();
    app.shut_down("TERM");
    let mut new = app.connect();
    for connection in [&mut new, &mut open] {
        let answer = connection.post("/", "{}");
        answer.has_status(200).is_json(&allow());
        assert!(answer.closes(), "{answer:?}");
        assert_eq!(connection.head(), None);
    }
    let probe = app.connect().get("GET", "/readyz");
    assert!(probe.has_status(200).closes(), "{probe:?}");
    assert!(app.connect().get("PUT", "/").has_status(405).closes());
    // Idle until the end.
    let mut idle = app.connect();
    app.wait().code(0);
    assert!(signaled.elapsed() >= Duration::from_secs(3), "{:?}", signaled.elapsed());
    assert_eq!(idle.head(), None);
    assert!(TcpStream::connect(app.address).is_err(), "it still listens");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "--shutdown-delay 1h");
    app.shut_down("TERM");
    app.post("/", "{}").has_status(200);
    app.signal("TERM");
    app.wait().code(1).out_has("A second signal: exiting at once");
}

/// A callback that the app has begun to answer: it asked for the body.
fn begun(app: &App) -> Connection {
    let mut connection = app.connect();
    connection.send("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(connection.head().as_deref(), Some("http/1.1 100 continue\r\n\r\n"));
    connection.send("{}");
    connection
}

#[test]
fn at_a_terminal_it_waits_only_for_callbacks_in_progress() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "--shutdown-delay 1h --delay 1s");
    let mut callback = begun(&app);
    app.shut_down("INT");
    let answer = callback.answer();
    answer.has_status(200).is_json(&allow());
    assert!(answer.closes(), "{answer:?}");
    app.wait().code(0).has_no("Closing connections");
}

#[test]
fn it_does_not_wait_for_a_callback_for_ever() {
    let folder = Folder::new();
    let mut app = App::start(&folder, "--shutdown-delay 0s --delay 1h");
    let mut callback = begun(&app);
    app.shut_down("TERM");
    app.wait()
        .code(0)
        .out_has("Closing connections with a request in progress")
        .out_has("Not answered: the connection was closed");
    assert_eq!(callback.head(), None);
}

#[test]
fn nothing_of_a_message_and_no_id_is_in_the_log() {
    const SECRET: &str = "hunter2";
    let folder = Folder::new();
    let mut app = App::start(&folder, "--log-level debug --max-request-size 1KiB");
    let body = format!(r#"{{"sendID":"{SECRET}","content":"casino {SECRET}","operationID":"{SECRET}"}}"#);
    let targets = [
        format!("/{SINGLE}"),
        format!("/{SECRET}"),
        format!("/cb?command={SECRET}"),
        format!("/{SECRET}/{SINGLE}?key={SECRET}"),
    ];
    for target in &targets {
        let mut connection = app.connect();
        connection.send(&format!(
            "POST {target} HTTP/1.1\r\nHost: {SECRET}\r\noperationID: {SECRET}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        connection.answer().has_status(200).is_json(&refusal());
    }
    app.post("/", &SECRET.repeat(1000)).has_status(413);
    app.connect().get("GET", &format!("/{SECRET}")).has_status(405);
    let mut garbage = app.connect();
    garbage.send(&format!("{SECRET} {SECRET}\r\n\r\n"));
    assert!(garbage.head().is_some_and(|head| head.starts_with("http/1.1 400 ")));
    app.signal("INT");
    let ran = app.wait().code(0).has_no(SECRET);
    let answered = |command: &str| ran.out.matches(&format!(r#""command":"{command}","verdict""#)).count();
    assert_eq!([answered(SINGLE), answered("unknown command")], [2, 3], "{ran}");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_flag() {
    let folder = Folder::new();
    let line = "demo-app --listen 8080 --delay 2h --max-connections 0 --max-request-size 1 --idle-timeout 0s \
                --shutdown-delay 61m --log-level loud --log-format yaml --dely 1s";
    let flags = [
        "--dely",
        "--listen",
        "--delay",
        "--max-connections",
        "--max-request-size",
        "--idle-timeout",
        "--shutdown-delay",
        "--log-level",
        "--log-format",
    ];
    folder
        .run(line)
        .code(2)
        .out("")
        .problems_of(&flags, BEHIND)
        .err_has("--dely: there is no such flag, did you mean --delay?\n")
        .err_has("--delay: value is too large (2h), at most 60m is allowed\n")
        .err_has("--shutdown-delay: value is too large (61m), at most 60m is allowed\n");
    let set = folder.program("demo-app").env("CALLBACK_GUARD_DELAY", "5").run();
    set.code(2).out("").problems_of(&["--delay"], BEHIND);
}

#[test]
fn a_port_that_is_taken_is_reported_with_its_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let ran = Folder::new().run(&format!("demo-app --listen {address}")).code(1).out("");
    ran.problems_of(&["--listen"], "").err_has("Address already in use");
}
