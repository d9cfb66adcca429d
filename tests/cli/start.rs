//! What can be wrong when the proxy starts, and what is none of its business.

use std::net::TcpListener;

use callback_guard::tls::{self, SelfSigned};
use serde_json::Value;

use crate::program::{Folder, Ran, Running};

/// Stands in every file that holds a secret.
const SECRET: &str = "hunter2";

/// Base64 of something that is no key, with the secret in it.
const BROKEN_KEY: &str = "-----BEGIN PRIVATE KEY-----\naHVudGVyMiBpcyBubyBrZXk=\n-----END PRIVATE KEY-----\n";

/// A folder with a broken key, broken credentials and a broken policy, and a port that is taken.
fn broken() -> (Folder, TcpListener, String) {
    let folder = Folder::new();
    folder.write("key.pem", BROKEN_KEY);
    folder.write("auth", &format!("openim:{SECRET}\nopenim-{SECRET}\n"));
    folder.write("policy.yaml", "defaults: {timeout: 0s}\n");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    (folder, taken, address)
}

fn tells_no_secret(ran: Ran) -> Ran {
    ran.has_no(SECRET).has_no("aHVudGVyMi")
}

#[test]
fn what_is_wrong_at_the_start_is_told_at_once_and_no_secret() {
    let (folder, _taken, address) = broken();
    let rest = format!("--basic-auth-file auth --listen {address} --admin-listen {address}");
    let rest = format!("{rest} --policy-file policy.yaml --require-policy");
    let line = format!("proxy --tls-cert missing.pem --tls-key key.pem {rest}");
    let ran = tells_no_secret(folder.run(&line)).code(1);
    let flags = ["--basic-auth-file", "--policy-file", "--listen", "--admin-listen"];
    let ran = ran
        .err_has("--tls-cert: missing.pem: no such file\n")
        .err_has("--basic-auth-file: auth: line 2: no colon")
        .err_has("--policy-file: defaults.timeout: Invalid value: \"0s\"");
    assert!(flags.iter().all(|flag| ran.err.contains(&format!("\n{flag}: "))), "{ran}");

    let made = SelfSigned::new(&[], tls::now()).expect("a certificate for localhost");
    folder.write("cert.pem", &made.certificate_pem);
    let ran = tells_no_secret(folder.run(&line.replace("missing.pem", "cert.pem"))).code(1);
    let ran = ran.err_has("--tls-key: key.pem: the private key ");
    assert!(flags.iter().all(|flag| ran.err.contains(&format!("\n{flag}: "))), "{ran}");
}

#[test]
fn each_problem_of_certificate_key_and_policy_has_a_line_that_begins_with_its_flag() {
    let (folder, ..) = broken();
    folder.write("policy.yaml", "defaults: {timeout: 0s, fallback: Maybe}\n");
    let line = "proxy --tls-cert missing.pem --tls-key key.pem --policy-file policy.yaml --require-policy \
                --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
    let ran = folder.run(line).code(1);
    ran.problems_of(&["--tls-cert", "--tls-key", "--policy-file", "--policy-file"], "");
}

#[test]
fn a_port_that_is_taken_is_told_by_its_flag() {
    let (folder, _taken, address) = broken();
    let ran = folder.run(&format!("proxy --tls-self-signed --listen {address} --admin-listen 127.0.0.1:0"));
    ran.code(1).problems_of(&["--listen"], "").err_has("Address already in use");
    let ran = folder.run(&format!("proxy --tls-self-signed --listen 127.0.0.1:0 --admin-listen {address}"));
    ran.code(1).problems_of(&["--admin-listen"], "");
}

#[test]
fn a_policy_that_is_required_must_be_there_and_good() {
    let (folder, ..) = broken();
    let base = "proxy --tls-self-signed --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0";
    folder.run(&format!("{base} --require-policy")).code(1).problems_of(&["--require-policy"], "");
    let missing = folder.run(&format!("{base} --require-policy --policy-file none.yaml"));
    missing.code(1).problems_of(&["--policy-file"], "").err_has("none.yaml: no such file");
    // Not required, it is told in the log, and the guard serves.
    let mut running = folder.program(&format!("{base} --policy-file none.yaml")).start();
    listening(&mut running);
}

/// Waits until it listens; gives that line.
#[track_caller]
fn listening(running: &mut Running) -> Value {
    let mut before = Vec::new();
    while let Some(line) = running.line() {
        let json: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        if json["message"] == "Listening" {
            return json;
        }
        before.push(line);
    }
    panic!("it ended before it listened\n{before:#?}\n{}", running.wait());
}

#[test]
fn variables_that_kubernetes_makes_for_a_service_of_that_name_are_ignored() {
    let folder = Folder::new();
    let mut running = folder
        .program("proxy --tls-self-signed --listen 127.0.0.1:0")
        .env("CALLBACK_GUARD_SERVICE_HOST", "10.0.0.1")
        .env("CALLBACK_GUARD_SERVICE_PORT", "8443")
        .env("CALLBACK_GUARD_PORT", "tcp://10.0.0.1:8443")
        .env("CALLBACK_GUARD_PORT_8443_TCP_ADDR", "10.0.0.1")
        .env("CALLBACK_GUARD_ADMIN_LISTEN", "127.0.0.1:0")
        .start();
    let line = listening(&mut running);
    let admin = line["admin.addr"].as_str().unwrap_or_default();
    assert!(admin.starts_with("127.0.0.1:") && !admin.ends_with(":9090"), "{line}");
}
