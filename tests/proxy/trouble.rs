//! A way to the API server that does not work: what was tried, what the server said, what to check; and no secret.

use std::net::TcpListener;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::cluster::{
    builder, builder_at, code, config_map, deny, in_force, kubeconfig, list, no, page, script, watch,
};
use crate::support::{Act, App, Authority, Folder, Gate, Guard};

const SECRET: &str = "s3cret-t0ken";

/// Waits for the line about the trouble, and looks at it and at both pages.
fn told(guard: &Guard, parts: &[&str]) {
    let line = guard.wait_for_log(|line| {
        line.contains("The ConfigMap cannot be watched; what is in force stays")
            && parts.iter().all(|part| line.contains(part))
    });
    let problem = page(guard)["watch"]["problem"].as_str().expect("a text").to_owned();
    assert!(parts.iter().all(|part| problem.contains(&part.replace("\\\"", "\""))), "{problem}");
    assert!(guard.admin("/").1.contains("The ConfigMap cannot be watched"), "{line}");
    assert_eq!(guard.metric("callback_guard_policy_watch_connected"), 0.0);
    assert_eq!(guard.admin("/readyz").0, 200);
    let said = [guard.log_lines().join("\n"), guard.error_lines().join("\n"), guard.admin("/").1].concat();
    assert!(!said.contains(SECRET), "{said}");
}

#[tokio::test]
async fn a_missing_right_is_told_with_the_rule_that_gives_it() {
    let allowed = Gate::closed();
    let gate = allowed.clone();
    let play = script(vec![list("10", &[config_map("9", &deny(5002))])], vec![watch([Act::Silence])]);
    let api = App::start(move |asked| match gate.is_open() {
        true => play(asked),
        false => no(403, "configmaps \"policy\" is forbidden: User \"system:serviceaccount:shop:default\""),
    });
    let folder = Folder::new();
    let guard = builder_at(&api.url(), &folder).start();
    told(
        &guard,
        &[
            "was asked for ConfigMap shop/policy and said 403",
            "is forbidden: User",
            "check that a Role in namespace shop has the rule",
            "resources: [configmaps], resourceNames: [policy], verbs: [get, list, watch]",
        ],
    );
    assert_eq!(code(&guard).await, 5001, "the file");
    allowed.open();
    in_force(&guard, "9");
    guard.wait_for_log(|line| line.contains("The ConfigMap is watched again"));
    assert_eq!(page(&guard)["watch"]["problem"], Value::Null);
    let lines = guard.log_lines();
    assert_eq!(lines.iter().filter(|line| line.contains("cannot be watched")).count(), 1, "told once");
}

#[tokio::test]
async fn a_token_that_has_expired_is_told_by_its_file_and_the_renewed_one_is_used() {
    let play = script(vec![list("10", &[config_map("9", &deny(5002))])], vec![watch([Act::Silence])]);
    let api = App::start(move |asked| match asked.values("Authorization")[..] {
        ["Bearer renewed"] => play(asked),
        _ => no(401, "Unauthorized"),
    });
    let folder = Folder::new();
    let file = folder.write("token", SECRET);
    let user = json!({"tokenFile": file});
    let guard = builder(&kubeconfig(&folder, &json!({"server": api.url()}), &user)).start();
    told(
        &guard,
        &["said 401 (Unauthorized)", "check the token in", "/token: the server does not know whose it is"],
    );
    folder.write("token", "renewed\n");
    in_force(&guard, "9");
}

#[tokio::test]
async fn a_token_that_is_not_there_or_no_token_is_told_by_its_file() {
    for (content, said) in
        [(None, "No such file"), (Some(""), "is empty"), (Some("s3cret-t0ken\nx"), "no token has")]
    {
        let folder = Folder::new();
        let file = folder.path().join("token");
        if let Some(content) = content {
            std::fs::write(&file, content).expect("a file");
        }
        let api = App::start(|_| no(500, "not to be asked"));
        let user = json!({"tokenFile": file});
        let guard = builder(&kubeconfig(&folder, &json!({"server": api.url()}), &user)).start();
        told(&guard, &["/token", said, "check that the token is mounted"]);
        assert!(api.asked().is_empty());
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_told_by_its_path_and_quotes_nothing_of_it() {
    let cluster = json!({"server": "https://127.0.0.1:9"});
    let exec = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}});
    for (folder, write, said) in [
        (Folder::new(), None, "No such file"),
        (
            Folder::new(),
            Some(format!("users: [{{name: u, user: {{token: {SECRET}}}}}\nclusters: {{\n")),
            "YAML is broken",
        ),
    ] {
        write.map(|text| folder.write("kubeconfig", text));
        let path = folder.path().join("kubeconfig").to_string_lossy().into_owned();
        told(&builder(&path).start(), &[&path, "(KUBECONFIG) cannot be used", said, "check the file"]);
    }
    let folder = Folder::new();
    told(&builder(&kubeconfig(&folder, &cluster, &exec)).start(), &["a program (exec)", "expected a token"]);
    let insecure = json!({"server": "https://127.0.0.1:9", "insecure-skip-tls-verify": true});
    let path = kubeconfig(&folder, &insecure, &json!({"token": SECRET}));
    told(&builder(&path).start(), &["insecure-skip-tls-verify, expected a certificate-authority"]);
}

#[tokio::test]
async fn a_proxy_of_a_kubeconfig_is_refused_and_not_passed_over() {
    let api =
        App::start(script(vec![list("10", &[config_map("9", &deny(5002))])], vec![watch([Act::Silence])]));
    let (folder, user) = (Folder::new(), json!({"token": SECRET}));
    let proxied = json!({"server": api.url(), "proxy-url": format!("http://me:{SECRET}@proxy.example:3128")});
    told(
        &builder(&kubeconfig(&folder, &proxied, &user)).start(),
        &["has a proxy-url, expected a server that"],
    );
    assert!(api.asked().is_empty(), "{:?}", api.asked());
    // The twin: the proxies of the environment are for other servers.
    let path = kubeconfig(&folder, &json!({"server": api.url(), "proxy-url": ""}), &user);
    let guard = builder(&path).env("HTTPS_PROXY", "http://proxy.example:3128").start();
    in_force(&guard, "9");
}

#[tokio::test]
async fn a_token_that_leaves_the_host_in_clear_is_warned_of() {
    let clear = |line: &str| line.contains("its token goes over the network in clear");
    // The same server by a name that is not known to be this host's own.
    for (host, user, warned) in [
        ("0.0.0.0", json!({"token": SECRET}), 1),
        ("127.0.0.1", json!({"token": SECRET}), 0),
        ("0.0.0.0", json!({}), 0),
    ] {
        let lists = || list("10", &[config_map("9", &deny(5002))]);
        let api = App::start(script(vec![lists(), lists()], vec![watch([]), watch([Act::Silence])]));
        let folder = Folder::new();
        let server = api.url().replace("127.0.0.1", host);
        let guard = builder(&kubeconfig(&folder, &json!({"server": server}), &user)).start();
        in_force(&guard, "9");
        let lines = guard.log_lines();
        assert_eq!(lines.iter().filter(|line| clear(line)).count(), warned, "{host} {user}: {lines:?}");
        assert!(!lines.iter().any(|line| line.contains(SECRET)), "{lines:?}");
    }
}

#[tokio::test]
async fn an_api_server_of_another_authority_is_told_with_the_authority_to_check() {
    // A guard is a TLS server too; what it answers is no matter of TLS.
    let server = Guard::with("").start();
    let folder = Folder::new();
    let stranger = Authority::new("somebody else");
    for (authority, parts) in [
        (
            &stranger,
            ["TLS with it failed", "UnknownIssuer", "check that the certificate-authority of the kubeconfig"],
        ),
        (
            Authority::common(),
            ["was asked for ConfigMap shop/policy and said 405", "https://127.0.0.1", "405"],
        ),
    ] {
        let cluster = json!({
            "server": format!("https://{}", server.listen()),
            "certificate-authority-data": BASE64_STANDARD.encode(authority.pem()),
        });
        let path = kubeconfig(&folder, &cluster, &json!({"token": SECRET}));
        told(&builder(&path).start(), &parts);
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_at_the_start_is_told_and_used_when_it_comes() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = port.local_addr().expect("bound");
    drop(port);
    let folder = Folder::new();
    let guard = builder_at(&format!("http://{address}"), &folder).start();
    told(&guard, &[&format!("http://{address} cannot be connected: Connection refused"), "network policies"]);
    assert_eq!(code(&guard).await, 5001);
    let play = script(vec![list("10", &[config_map("9", &deny(5002))])], vec![watch([Act::Silence])]);
    let _api = App::start_at(address, play);
    in_force(&guard, "9");
    assert_eq!(code(&guard).await, 5002);
}
