//! `simulate` against apps that do one thing each, and against the guard itself.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;

use callback_guard::callback::command::{self, Phase};
use callback_guard::cli::simulate::advice::OWN;
use serde_json::Value;

use crate::program::{Folder, Ran, repository};
use crate::support::app::ALLOW;
use crate::support::{Act, App, Asked, Authority, Guard};

const SEND: &str = "callbackBeforeSendSingleMsgCommand";

/// An app that answers every callback of the table well: with what the request set, where OpenIM overwrites it.
fn good() -> App {
    App::start(|asked: &Asked| {
        let body: Value = serde_json::from_slice(&asked.body).expect("JSON");
        let mut answer: Value = serde_json::from_str(ALLOW).expect("JSON");
        if asked.command().starts_with("callbackBeforeSetGroupInfo") {
            for (name, value) in body.as_object().expect("an object") {
                if name != "callbackCommand" && name != "operationID" {
                    answer[name] = value.clone();
                }
            }
        }
        vec![Act::json(answer.to_string())]
    })
}

fn simulate(app: &App, rest: &str) -> Ran {
    Folder::new().run(&format!("simulate {}/cb {rest}", app.url()))
}

/// The usual callback of one command against an app that answers so.
fn answered(act: Act, command: &str) -> Ran {
    let app = App::start(move |_| vec![act.clone()]);
    simulate(&app, &format!("--samples usual --command {command}"))
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error} in\n{ran}"))
}

/// Standard error is one line with both in it.
#[track_caller]
fn one_sentence(ran: Ran, what: &str, remedy: &str) {
    assert_eq!(ran.err.lines().count(), 1, "\n{ran}");
    assert!(ran.out.is_empty(), "\n{ran}");
    ran.code(1).err_has(what).err_has(&format!("; try: {remedy}"));
}

#[test]
fn a_good_app_is_good_for_every_before_command_over_one_connection() {
    let app = good();
    let ran = simulate(&app, "--samples usual")
        .code(0)
        .err("")
        .out_has("25 callbacks: 25 allowed, 0 denied, 0 errors; 0 serious");
    assert!(ran.out.lines().all(|line| line.chars().count() <= 80), "{ran}");
    ran.has_no("\x1b");
    let before: Vec<_> =
        command::all().iter().filter(|command| command.phase == Phase::Before).map(|row| row.name).collect();
    let asked: Vec<_> = app.asked().iter().map(Asked::command).collect();
    assert_eq!(asked, before);
    assert_eq!(app.connections(), 1);
}

#[test]
fn every_byte_of_a_request_over_http_1_is_go_s() {
    let app = good();
    simulate(&app, &format!("--command {SEND}")).code(0);
    let asked = app.asked().remove(0);
    let id = asked.values("Operationid")[0].to_owned();
    let host = app.url().replace("http://", "");
    let body = String::from_utf8(asked.body.to_vec()).expect("UTF-8");
    let found = format!("{}{body}", asked.head).replace(&id, "1730891241515000001").replace(&host, "HOST");
    let path = repository("tests/cli/requests").join(format!("{SEND}.http"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).expect("a golden file is written");
    }
    let expected = fs::read_to_string(&path).expect("the golden file");
    assert_eq!(found, expected);
    // What was recorded of OpenIM itself has the same body.
    let recorded = repository(&format!("tests/support/openim/samples/{SEND}/request.json"));
    let recorded = fs::read_to_string(recorded).expect("a sample");
    assert_eq!(expected.split_once("\r\n\r\n").map(|(_, body)| body), Some(recorded.as_str()));
}

#[test]
fn a_user_is_sent_and_the_forms_and_names_of_earlier_servers_are_known() {
    let app = good();
    let url = app.url().replace("http://", "http://openim:p%40ss@");
    let line = format!("simulate {url} --form query --samples usual --command callbackOnlinePushCommand");
    Folder::new().run(&line).code(0).has_no("p%40ss").has_no("p@ss");
    let after = "--command callbackAfterSendSingleMsgCommand --samples usual";
    simulate(&app, &format!("{after} --server main")).code(0).out_has("read by nobody");
    simulate(&app, after).code(0).out_has("read by nobody");
    let asked = app.asked();
    assert_eq!(asked[0].values("authorization"), ["Basic b3BlbmltOnBAc3M="]);
    assert_eq!(asked[0].target(), "/?command=callbackOnlinePushCommand");
    assert_eq!(asked[0].command(), "callbackOnlinePushCommand");
    assert!(
        asked[1].target().starts_with("/cb/callbackAfterSendSingleMsgCommand?key=eyJ"),
        "{}",
        asked[1].line()
    );
    assert_eq!(asked[2].target(), "/cb/callbackAfterSendSingleMsgCommand");
}

#[test]
fn by_default_everything_a_release_sends_is_sent_and_each_special_callback_is_told_apart() {
    let app = good();
    let group = "callbackBeforeSendGroupMsgCommand";
    let ran = simulate(&app, "").code(0).err("");
    assert!(ran.out.lines().all(|line| line.chars().count() <= 80), "{ran}");
    ran.out_has("  a notification: a member was kicked\n").out_has("  somebody is mentioned\n");
    let contents = |app: &App| -> Vec<(i64, String, bool)> {
        let bodies = app.asked().into_iter().filter(|asked| asked.command() == group).map(|asked| asked.body);
        let bodies = bodies.map(|body| serde_json::from_slice::<Value>(&body).expect("JSON"));
        let content = |body: &Value| body["content"].as_str().unwrap_or_default().to_owned();
        bodies
            .map(|body| {
                (body["contentType"].as_i64().unwrap_or(0), content(&body), body["atUserList"].is_null())
            })
            .collect()
    };
    let sent = contents(&app);
    let types: Vec<_> = sent.iter().map(|(content_type, _, nobody)| (*content_type, *nobody)).collect();
    assert_eq!(types, [(101, true), (106, false), (1508, true), (1519, true)]);
    assert_eq!(sent[2].1, "");
    // Main does not send it for notifications.
    let app = good();
    simulate(&app, &format!("--server main --command {group}"))
        .code(0)
        .err("")
        .out_has("2 callbacks: 2 allowed");
    assert!(contents(&app).iter().all(|(content_type, ..)| *content_type < 1000));
    let app = good();
    let report = json(&simulate(&app, &format!("--command {group} --format json")).code(0));
    let samples: Vec<_> =
        (0..3).map(|at| report["callbacks"][at]["sample"].as_str().unwrap_or("none")).collect();
    assert_eq!(samples, ["", "somebody is mentioned", "a notification: a member was kicked"]);
    simulate(&app, &format!("--command {group} --format junit"))
        .code(0)
        .out_has(&format!("name=\"{group}\""))
        .out_has(&format!("name=\"{group} (a notification: a member was kicked)\""));
}

#[test]
fn main_s_mixed_up_operation_ids_are_in_the_header_alone() {
    let app = good();
    simulate(&app, "--server main --command callbackAfterSendSingleMsgCommand").code(0).err("");
    let ids: Vec<_> = app
        .asked()
        .iter()
        .map(|asked| {
            let body: Value = serde_json::from_slice(&asked.body).expect("JSON");
            (
                asked.values("operationid").concat(),
                body["operationID"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|(_, body)| !body.is_empty()), "{ids:?}");
    assert_eq!(ids[0].0, ids[0].1);
    assert!(!ids[1].0.is_empty() && ids[1].0 != ids[1].1, "{ids:?}");
    assert_eq!(ids[2].0, "");
}

#[test]
fn a_connection_that_the_app_ends_is_replaced_without_a_failure() {
    let app = App::start(|_| vec![Act::answer("200 OK", &[("Connection", "close")], ALLOW), Act::Close]);
    let commands = "--command callbackBeforeAddFriendCommand --command callbackBeforeAddBlackCommand";
    simulate(&app, &format!("--samples usual {commands} --command {SEND}")).code(0).out_has("3 allowed");
    assert_eq!(app.connections(), 3);
}

/// An answer, and what is told of it: the outcome, the finding, the exit code.
const ANSWERS: [(&str, &str, &str, &str, i32); 20] = [
    (SEND, ALLOW, "allowed", "", 0),
    (SEND, r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#, "denied 5001", "", 0),
    (SEND, r#"{"actionCode":0,"errCode":300,"nextCode":1}"#, "denied 300", "note: deny-code-out-of-range", 0),
    (
        SEND,
        r#"{"actionCode":0,"errCode":0,"nextCode":1}"#,
        "sees a success",
        "serious: deny-code-too-small",
        1,
    ),
    (SEND, r#"{"nextCode":1,"errCode":14}"#, "sees error 500", "serious: deny-code-too-small", 1),
    (SEND, r#"{"nextCode":1,"errCode":-1}"#, "malformed status", "serious: deny-code-too-small", 1),
    (SEND, r#"{"actionCode":1,"errCode":5001,"nextCode":1}"#, "allowed", "serious: action-code", 1),
    (SEND, r#"{"actionCode":0,"errCode":5001}"#, "allowed", "serious: error-code-without-refusal", 1),
    (SEND, r#"{"actionCode":0,"nextCode":2}"#, "allowed", "serious: unknown-next-code", 1),
    (SEND, r#"{"actionCode":0,"nextCode":""}"#, "error 90007", "serious: code-as-string", 1),
    (SEND, r#"{"actionCode":0.0}"#, "error 90007", "serious: code-as-float", 1),
    (SEND, "\u{feff}{}", "error 90007", "serious: byte-order-mark", 1),
    (SEND, "<html>", "not JSON", "serious: not-json", 1),
    (SEND, "", "unexpected end", "serious: not-json", 1),
    (SEND, r#"{"nextCode":0,"errMsg":7}"#, "errMsg is of the wrong type", "serious: wrong-type", 1),
    (SEND, "{}", "allowed", "note: no-known-field", 0),
    (SEND, r#"{"data":{"next_code":1}}"#, "allowed", "serious: no-known-field", 1),
    (
        "callbackBeforeMsgModifyCommand",
        r#"{"nextCode":0,"content":"x"}"#,
        "fails when applied",
        "cannot-be-applied",
        1,
    ),
    (
        "callbackBeforeMsgModifyCommand",
        r#"{"nextCode":0,"offlinePushInfo":{}}"#,
        "allowed",
        "serious: may-crash",
        1,
    ),
    ("callbackBeforeSetGroupInfoCommand", ALLOW, "fails when applied", "serious: fields-left-out", 1),
];

#[test]
fn each_answer_is_told_as_openim_would_take_it_with_its_finding() {
    for (command, answer, outcome, finding, code) in ANSWERS {
        let ran = answered(Act::json(answer), command);
        ran.out_has(outcome).out_has(finding).code(code).err("");
    }
}

#[test]
fn what_http_adds_is_told_too() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(ALLOW.as_bytes()).expect("a Vec takes everything");
    let packed = packed.finish().expect("a Vec takes everything");
    let gzip = [("Content-Encoding", "gzip")];
    let deny = r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#;
    for (act, outcome, finding, code) in [
        (Act::answer("500 Oops", &[], ALLOW), "allowed", "serious: status-ignored", 1),
        (Act::answer("404 Not Found", &[], "nothing here"), "error 90007", "note: status-ignored", 1),
        (Act::answer("403 Forbidden", &[], deny), "denied 5001", "note: refusal-with-status", 0),
        (
            Act::answer("307 Elsewhere", &[("Location", "/b")], ""),
            "repeat the POST to /b",
            "serious: redirect",
            1,
        ),
        (
            Act::answer("302 Found", &[("Location", "/b")], ""),
            "GET without the callback",
            "serious: redirect",
            1,
        ),
        (Act::answer("302 Found", &[], ALLOW), "allowed", "serious: status-ignored", 1),
        (Act::answer("200 OK", &gzip, packed.clone()), "allowed", "note: compressed", 0),
        (Act::answer("200 OK", &gzip, "no gzip"), "error 90004", "cannot be unpacked", 1),
        (Act::answer("200 OK", &[("Content-Encoding", "br")], packed), "error 90007", "content-encoding", 1),
    ] {
        answered(act, SEND).out_has(outcome).out_has(finding).code(code);
    }
}

#[test]
fn nobody_reads_the_answer_to_an_after_command_and_so_nothing_of_it_is_serious() {
    let after = "callbackBeforeAfterMsgCommand";
    let deny = r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#;
    answered(Act::json(deny), after).code(0).out_has("read by nobody").out_has("note: refused-afterwards");
    answered(Act::json("no JSON"), after).code(0).out_has("read by nobody").has_no("serious:");
    // But that it was not delivered is.
    answered(Act::Close, after).code(1).out_has("error 90004");
    let elsewhere = Act::answer("307 Elsewhere", &[("Location", "/b")], "");
    answered(elsewhere, after).code(1).out_has("serious: redirect");
}

#[test]
fn fields_are_told_apart_by_what_becomes_of_them() {
    let answer = r#"{"nextCode":0,"userIDList":["9857614859","x"],"offlinePushInfo":null,"userIds":[]}"#;
    let ran = answered(Act::json(answer), "callbackBeforeOfflinePushCommand").code(0);
    ran.out_has("replaces userIDList with [\"9857614859\",\"x\"]")
        .out_has("keeps    offlinePushInfo")
        .out_has("unknown  userIds");
    answered(Act::json(answer), "callbackBeforeOnlinePushCommand")
        .code(0)
        .out_has("ignores  userIDList, offlinePushInfo");
}

#[test]
fn a_body_of_one_s_own_is_sent_as_it_is() {
    let folder = Folder::new();
    let body = "{ \"callbackCommand\": \"callbackBeforeAddBlackCommand\",\"operationID\":\"mine\", \"ownerUserID\":7}";
    folder.write("body.json", body);
    let app = good();
    let ran = folder.run(&format!("simulate {} --body body.json", app.url())).code(0);
    ran.out_has("callbackBeforeAddBlackCommand").out_has("note: field-type");
    let asked = app.asked().remove(0);
    assert_eq!((&asked.body[..], asked.values("operationid")), (body.as_bytes(), vec!["mine"]));
    assert_eq!(asked.target(), "/callbackBeforeAddBlackCommand");
    let ran = folder.program(&format!("simulate {} --body -", app.url())).stdin("{}").run();
    ran.code(2).out("").err("--body: -: has no callbackCommand, which names the command to send\n");
    let ran = folder.run(&format!("simulate {} --body gone.json", app.url())).code(2).out("");
    ran.err_has("--body: gone.json: ");
}

#[test]
fn without_an_answer_it_is_said_why_in_one_sentence_and_what_to_try() {
    let large =
        [b"HTTP/1.1 200 OK\r\nContent-Length: 99000000\r\n\r\n".to_vec(), vec![b' '; 17 << 20]].concat();
    for (acts, what) in [
        (vec![Act::Silence], "did not answer within 1 s; try: answer first"),
        (vec![Act::Close], "closed the connection without an answer; try: "),
        (
            vec![Act::send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), Act::Close],
            "in the middle of its answer; try: ",
        ),
        (
            vec![Act::send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), Act::Silence],
            "did not end within 1 s; try: ",
        ),
        (vec![Act::send("SSH-2.0-OpenSSH\r\n"), Act::Close], "is not HTTP: "),
        (vec![Act::send(large)], "longer than 16 MiB and was not read to its end; try: "),
    ] {
        let app = App::start(move |_| acts.clone());
        let ran = simulate(&app, &format!("--samples usual --timeout 1 --command {SEND}"))
            .code(1)
            .err("")
            .out_has("error 90004");
        let flat = ran.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(what), "{what:?} is not in\n{ran}");
    }
}

#[test]
fn what_every_callback_would_meet_is_said_once() {
    let folder = Folder::new();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    one_sentence(folder.run(&format!("simulate http://{free}")), "nothing listens on port", "start the app");
    one_sentence(
        folder.run("simulate http://app.invalid/cb"),
        "no host \"app.invalid\" can be found",
        "check the spell",
    );
    // A port with plain HTTP hears a TLS greeting and waits for the end of a line, or says that it is no request.
    let app = App::allowing();
    let url = app.url().replace("http://", "https://");
    let line = format!("simulate {url}/cb --insecure --timeout 1");
    one_sentence(folder.run(&line), "does not speak TLS", "http://127");
    let app = App::greeting(vec![Act::send("HTTP/1.1 400 Bad Request\r\n\r\n"), Act::Close]);
    let url = app.url().replace("http://", "https://");
    one_sentence(folder.run(&format!("simulate {url} --insecure")), "does not speak TLS", "http://127");
    // A TLS alert, as most TLS servers answer plain HTTP.
    let app = App::greeting(vec![Act::send(&b"\x15\x03\x01\x00\x02\x02\x46"[..]), Act::Close]);
    one_sentence(simulate(&app, ""), "speaks TLS, and was asked in plain HTTP", "https://127");
}

#[test]
fn the_guard_is_asked_over_tls_and_certificates_are_verified_as_openim_does() {
    let app = good();
    let (folder, ours, other) = (Folder::new(), Authority::common(), Authority::new("another authority"));
    folder.write("ca.pem", &ours.pem());
    folder.write("other.pem", &other.pem());
    folder.write("broken.pem", "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n");
    folder.write("empty.pem", "");
    let guard = Guard::with("").upstream(&app).start();
    let url = format!("https://{}/cb", guard.listen());
    let run = |rest: &str| folder.run(&format!("simulate {url} {rest}"));
    let ran = run("--ca ca.pem --samples usual --format json").code(0).err("");
    let report = json(&ran);
    assert_eq!(report["callbacks"].as_array().map(Vec::len), Some(25));
    assert!(
        report["callbacks"].as_array().is_some_and(|all| all.iter().all(|one| one["http"] == "2")),
        "{report}"
    );
    // The guard fills in what a plain allow leaves out, in the special callbacks too.
    let plain = App::allowing();
    let filling = Guard::with("").upstream(&plain).start();
    run("--ca ca.pem").code(0).err("").out_has("; 0 serious");
    let ran = folder.run(&format!("simulate https://{}/cb --ca ca.pem", filling.listen())).code(0).err("");
    ran.out_has("37 callbacks: 37 allowed, 0 denied, 0 errors; 0 serious");
    run(&format!("--insecure --samples usual --command {SEND}")).code(0).err("").out_has("1 allowed");
    let system =
        folder.program(&format!("simulate {url} --command {SEND}")).env("SSL_CERT_FILE", "ca.pem").run();
    system.code(0).err("");
    one_sentence(run("--ca other.pem"), "is of an authority that is not trusted here", "--ca FILE");
    one_sentence(
        folder.run(&format!("simulate http://{}", guard.listen())),
        "speaks TLS, and was asked in plain HTTP",
        "https://127",
    );
    for (file, why) in [
        ("gone.pem", "No such file"),
        ("empty.pem", "holds no certificate in PEM"),
        ("broken.pem", "--ca: broken.pem: has a"),
    ] {
        run(&format!("--ca {file}")).code(2).out("").err_has(&format!("--ca: {file}: ")).err_has(why);
    }
    folder
        .program(&format!("simulate {url}"))
        .env("SSL_CERT_FILE", "empty.pem")
        .run()
        .code(2)
        .err_has("give --ca");
}

#[test]
fn a_certificate_for_another_name_or_time_is_said_to_be_one() {
    let (folder, ours) = (Folder::new(), Authority::common());
    folder.write("ca.pem", &ours.pem());
    let mut params = rcgen::CertificateParams::new(vec!["app.example".to_owned()]).expect("a name");
    let issued = ours.issue(params.clone());
    let app = good();
    let start = |issued: &crate::support::certificates::Issued| {
        let guard = Guard::with("").upstream(&app);
        guard
            .file("--tls-cert", "other.pem", &issued.cert)
            .file("--tls-key", "other.key", &issued.key)
            .start()
    };
    let guard = start(&issued);
    let line = format!("simulate https://localhost:{} --ca ca.pem", guard.listen().port());
    one_sentence(
        folder.run(&line),
        "the certificate is for app.example, and not for localhost",
        "OpenIM would not",
    );
    params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    let guard = start(&ours.issue(params.clone()));
    let line = format!("simulate https://localhost:{} --ca ca.pem", guard.listen().port());
    one_sentence(folder.run(&line), "the certificate of localhost has expired", "renew it");
    // One that is its own authority, as `openssl req -x509` makes it: Go takes it from whom it is trusted by name.
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(4001, 1, 1));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let own = params.self_signed(&key).expect("a certificate").pem();
    folder.write("own.pem", &own);
    let guard = start(&crate::support::certificates::Issued { cert: own, key: key.serialize_pem() });
    let line = format!("simulate https://localhost:{}", guard.listen().port());
    folder.run(&format!("{line} --ca own.pem --command {SEND}")).code(0).err("");
    one_sentence(
        folder.run(&format!("{line} --ca ca.pem")),
        "is signed by itself, and not trusted",
        "--ca FILE",
    );
    let other_name = line.replace("localhost", "127.0.0.1");
    one_sentence(
        folder.run(&format!("{other_name} --ca own.pem")),
        "is for localhost, and not",
        "OpenIM would",
    );
}

#[test]
fn mistakes_of_the_command_line_are_told_at_once() {
    let ran = Folder::new().run(
        "simulate ftp://h --command callbackBeforeSendSingelMsgCommand --command nothing --server v3.7 --samples some \
         --form odd --timeout 1.5 --ca x --insecure --format xml --rate 0 --for 2h --concurrency 1001",
    );
    let flags = [
        "URL",
        "--command",
        "--command",
        "--server",
        "--samples",
        "--form",
        "--timeout",
        "--insecure",
        "--format",
        "--rate",
        "--for",
    ];
    let flags = [&flags[..], &["--concurrency"]].concat();
    let ran = ran.code(2).out("").err_has("did you mean callbackBeforeSendSingleMsgCommand?");
    ran.problems_of(&flags, "\nFor the flags and their defaults: callback-guard simulate --help\n");
    let ran = Folder::new().run(&format!("simulate http://h --command {SEND} --body b")).code(2).out("");
    ran.err_has("--command: stands beside --body");
    Folder::new().run(&format!("simulate http://h/cb/{SEND}")).code(2).err_has("which OpenIM appends itself");
    Folder::new().run("simulate").code(2);
}

#[test]
fn the_json_has_everything_the_text_says() {
    let ran = answered(
        Act::json(r#"{"actionCode":0,"errCode":7,"nextCode":1}"#),
        &format!("{SEND} --format json --timeout 60"),
    );
    let report = json(&ran.code(1).err(""));
    assert_eq!((&report["ok"], &report["timeoutSeconds"]), (&Value::from(false), &Value::from(15)));
    let one = &report["callbacks"][0];
    assert_eq!((&one["outcome"], &one["errCode"]), (&Value::from("denied"), &Value::from(7)));
    assert!(one["seenByUser"].as_str().is_some_and(|text| text.contains("500")), "{one}");
    assert_eq!(one["findings"][0]["name"], "deny-code-too-small");
    assert_eq!(one["findings"][0]["documentation"], "docs/findings.md#deny-code-too-small-corrected");
    assert!(one["tookMilliseconds"].as_f64().is_some_and(|took| took > 0.0), "{one}");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let ran = Folder::new().run(&format!("simulate http://{free} --format json")).code(1);
    assert_eq!(json(&ran)["stopped"]["kind"], "refused");
}

/// The elements of a document, each with its attributes; a panic where it is not well-formed.
fn elements(xml: &str) -> Vec<(String, String)> {
    let rest = xml.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").expect("a declaration");
    let (mut open, mut found): (Vec<&str>, Vec<(String, String)>) = (Vec::new(), Vec::new());
    for part in rest.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("a tag has an end");
        for piece in [tag, text].into_iter().flat_map(|text| text.split('&').skip(1)) {
            let entity = piece.split(';').next().expect("an entity");
            assert!(["amp", "lt", "gt", "quot", "apos"].contains(&entity), "&{entity} in {xml}");
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{xml}");
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert_eq!(attributes.matches('"').count() % 2, 0, "{tag}");
        found.push((name.to_owned(), attributes.to_owned()));
        if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} in {xml}");
    found
}

#[test]
fn junit_has_a_test_case_a_command_and_is_well_formed() {
    let app = App::start(|asked: &Asked| {
        vec![match asked.number {
            0 => Act::json(ALLOW),
            1 => Act::json("\u{1}<&\">"),
            2 => Act::json(r#"{"actionCode":1}"#),
            _ => Act::answer("302 <&>", &[("Location", "/\"<&'>")], ""),
        }]
    });
    let commands = ["Single", "Group"].map(|kind| format!("--command callbackBeforeSend{kind}MsgCommand"));
    let rest = "--samples usual --command callbackBeforeAddFriendCommand --command callbackBeforeAddBlackCommand --format junit";
    let ran = simulate(&app, &format!("{} {rest}", commands.join(" "))).code(1).err("");
    let elements = elements(&ran.out);
    let count = |name: &str| elements.iter().filter(|(found, _)| found == name).count();
    assert_eq!([count("testcase"), count("error"), count("failure")], [4, 1, 2], "{ran}");
    assert!(elements[0].1.starts_with("tests=\"4\" failures=\"2\" errors=\"1\""), "{elements:?}");
}

#[test]
fn a_load_sends_what_is_due_and_counts_every_answer() {
    let app = good();
    let rest = format!("--rate 200 --for 500ms --concurrency 4 --command {SEND}");
    let ran = simulate(&app, &rest).code(0).err("");
    ran.out_has("100 callbacks in ").out_has("allowed").out_has("p50 ").out_has("p99 ").has_no("\r");
    assert_eq!(app.asked().len(), 100);
    let report = json(&simulate(&app, &format!("{rest} --format json")).code(0));
    let load = &report["load"];
    assert_eq!((&load["callbacks"], &load["outcomes"]["allowed"]), (&Value::from(100), &Value::from(100)));
    let buckets = load["buckets"].as_array().expect("buckets");
    assert_eq!(buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum::<u64>(), 100);
    let ids: std::collections::BTreeSet<_> =
        app.asked().iter().map(|asked| asked.values("operationid").concat()).collect();
    assert_eq!(ids.len(), 200);
}

#[test]
fn callbacks_that_wait_behind_a_silent_app_are_counted_from_when_they_were_due() {
    let app = App::start(|_| vec![Act::Silence]);
    let rest = format!("--rate 20 --for 500ms --concurrency 1 --timeout 1 --command {SEND} --format json");
    let ran = simulate(&app, &rest).code(1);
    let load = &json(&ran)["load"];
    // None is left out because the one before it had no answer, and none looks fast because it was sent late.
    assert_eq!(
        (&load["callbacks"], &load["outcomes"]["error 90004, timeout"]),
        (&Value::from(10), &Value::from(10))
    );
    assert!(load["latencyMilliseconds"]["p50"].as_f64().is_some_and(|p50| p50 >= 1000.0), "{ran}");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    one_sentence(
        Folder::new().run(&format!("simulate http://{free} --rate 5")),
        "nothing listens",
        "start the app",
    );
}

#[test]
fn a_load_through_the_guard_shares_a_connection() {
    let app = good();
    let guard = Guard::with("").upstream(&app).start();
    let folder = Folder::new();
    folder.write("ca.pem", &Authority::common().pem());
    let rest = "--ca ca.pem --samples usual --rate 100 --for 300ms --format junit";
    let ran = folder.run(&format!("simulate https://{} {rest}", guard.listen())).code(0).err("");
    let elements = elements(&ran.out);
    assert_eq!(elements.iter().filter(|(name, _)| name == "testcase").count(), 25, "{ran}");
    assert_eq!(app.asked().len(), 30);
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect()
}

#[test]
fn each_finding_has_its_documentation() {
    let mut text = String::from(
        "# simulate: what is found in an app's answers\n\n\
         Generated from the table that the program uses (`src/cli/simulate/advice.rs`). `callback-guard simulate` also\n\
         tells what the guard itself corrects or notices: see [findings](findings.md). Serious is what makes OpenIM fail,\n\
         or do something other than the app probably meant; then the exit code is 1.\n\n\
         Of each command it sends what the server is known to send: the usual callback, and special ones, such as a\n\
         notification, a message sent by REST, or one with fields that are null. `--samples usual` leaves the special ones out.\n\
         `--server v3.8` (the default) plays a release, `--server main` OpenIM's main branch:\n\n\
         | | v3.8 | main |\n|---|---|---|\n\
         | [notifications](messages.md) with the commands of messages | yes | no |\n\
         | notifications with the push commands | yes | yes |\n\
         | `?key=` on `callbackAfterSendSingleMsgCommand` and `callbackAfterSendGroupMsgCommand` | no | yes |\n\
         | a header `operationID` that is empty, or another request's | no | now and then (the standalone program) |\n",
    );
    for row in &OWN {
        let (found, why, hint) = (row.found, row.why, row.hint);
        text.push_str(&format!(
            "\n## `{}`\n\nFound ({}): {found}.\n\nWhy: {why}\n\n",
            row.name,
            row.severity.label()
        ));
        text.push_str(&format!(
            "Try: {}.\n",
            if hint.contains('{') { format!("`{hint}`") } else { hint.to_owned() }
        ));
    }
    let path = repository("docs/simulate.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).expect("the document is writable");
    }
    assert_eq!(fs::read_to_string(&path).expect("the document"), text, "UPDATE_GOLDEN=1 writes it anew");
    for (command, answer, _, _, _) in ANSWERS {
        let report = json(&answered(Act::json(answer), &format!("{command} --format json")));
        for found in report["callbacks"][0]["findings"].as_array().expect("findings") {
            let link = found["documentation"].as_str().expect("a link");
            let (file, wanted) = link.split_once('#').expect("a file and a place in it");
            let document = fs::read_to_string(repository(file)).expect(link);
            let mut headings = document.lines().filter_map(|line| line.strip_prefix("## "));
            assert!(headings.any(|heading| anchor(heading) == wanted), "{link}");
        }
    }
}
