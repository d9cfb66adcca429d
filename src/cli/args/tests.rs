//! Command lines, and what they become.

use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use super::problems::size;
use super::*;
use crate::log::Format;
use crate::upstream::Address;

fn problems(line: &str) -> Vec<String> {
    let arguments = std::iter::once("callback-guard").chain(line.split_whitespace()).map(OsString::from);
    match parse(&arguments.collect::<Vec<_>>()) {
        Ok(command) => panic!("no problem in {command:?}"),
        Err(Stop::Problems { problems, .. }) => problems,
        Err(Stop::Shown { code }) => vec![format!("shown, {code}")],
    }
}

fn proxy_of(line: &str) -> Proxy {
    let line = format!("callback-guard proxy --tls-self-signed {line}");
    match parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>()) {
        Ok(Command::Proxy(proxy)) => *proxy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_mistake_of_one_run_is_reported_and_begins_with_its_flag() {
    let found = problems(
        "proxy --listen 8443 --upstrem http://127.0.0.1:1 --tls-cert a --workers 0 --max-held 8M --drain-delay 3 \
         --log-level loud --header-timeout=1ms --no-such",
    );
    let flags: Vec<_> = found.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
    assert_eq!(
        flags,
        [
            "--upstrem",
            "--no-such",
            "--listen",
            "--tls-key",
            "--workers",
            "--max-held",
            "--header-timeout",
            "--drain-delay",
            "--log-level"
        ],
        "{found:#?}"
    );
    assert!(found[0].ends_with("did you mean --upstream?"), "{}", found[0]);
    assert_eq!(found[4], "--workers: value is too small (0), at least 1 is required");
    assert_eq!(found[6], "--header-timeout: value is too small (1ms), at least 100ms is required");
}

#[test]
fn the_defaults_are_those_of_the_help() {
    let proxy = proxy_of("");
    assert_eq!(proxy.upstream, Address::Ip(([127, 0, 0, 1], 8080).into()));
    assert_eq!(proxy.max_held, None);
    assert!(proxy.upstream_reuse);
    assert_eq!(proxy.max_connection_age, Duration::from_secs(600));
    assert_eq!((proxy.max_connections, proxy.max_in_flight, proxy.workers), (None, 1024, 1));
    assert_eq!((proxy.max_request_size, proxy.max_answer_size), (2 << 20, 2 << 20));
    assert_eq!((proxy.log_level, proxy.log_format), (LevelFilter::INFO, Format::Json));
    assert_eq!(proxy.listen, None);
}

#[test]
fn the_bound_on_bytes_held_is_given_or_left_to_the_container() {
    assert_eq!(proxy_of("--max-held=1MiB").max_held, Some(1 << 20));
    assert_eq!(proxy_of("--max-held=").max_held, None);
    for wrong in ["1023KiB", "0B", "half", "256"] {
        let found = problems(&format!("proxy --tls-self-signed --max-held {wrong}"));
        assert!(found.len() == 1 && found[0].starts_with("--max-held: "), "{found:?}");
    }
}

#[test]
fn an_upstream_is_loopback_unless_another_is_allowed() {
    for (url, expected) in [
        ("http://127.0.0.1:80", "http://127.0.0.1:80"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://LocalHost:8080/", "http://localhost:8080"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("http://10.0.0.1:80 --allow-remote-upstream", "http://10.0.0.1:80"),
        ("http://app.shop:80 --allow-remote-upstream", "http://app.shop:80"),
    ] {
        assert_eq!(proxy_of(&format!("--upstream {url}")).upstream.to_string(), expected);
    }
    // localhost is no name to look up, and no other name is taken for it.
    let upstream = |host: &str| {
        let line = format!("--upstream http://{host}:8080 --allow-remote-upstream");
        proxy_of(&line).upstream
    };
    assert_eq!(upstream("localhost"), Address::Loopback(8080));
    for name in ["localhost.", "localhost.shop", "localhost4"] {
        assert_eq!(upstream(name), Address::Name(name.to_owned(), 8080));
    }
    for url in [
        "http://10.0.0.1:80",
        "http://app.shop:80",
        "https://127.0.0.1:1",
        "127.0.0.1:80",
        "unix:app",
        "http://a:0",
        "http://localhost:0",
        "http://localhost.:80",
    ] {
        let found = problems(&format!("proxy --tls-self-signed --upstream {url}"));
        assert!(found.len() == 1 && found[0].starts_with("--upstream: "), "{found:?}");
    }
}

#[test]
fn a_certificate_is_files_or_made_here_and_never_both_or_neither() {
    for (line, flag) in [
        ("proxy", "--tls-cert: no certificate"),
        ("proxy --tls-key k", "--tls-cert: is missing"),
        ("proxy --tls-cert c", "--tls-key: is missing"),
        ("proxy --tls-cert c --tls-key k --tls-self-signed", "--tls-self-signed: stands beside"),
    ] {
        let found = problems(line);
        assert!(found.len() == 1 && found[0].starts_with(flag), "{found:?}");
    }
}

#[test]
fn a_cache_is_for_a_config_map_and_waiting_is_for_files() {
    for (line, flag) in [
        ("--tls-self-signed --policy-cache /c", "--policy-cache: needs --policy-configmap"),
        ("--tls-self-signed --tls-wait", "--tls-wait: stands beside --tls-self-signed"),
        ("--tls-cert c --tls-key k --tls-wait=perhaps", "--tls-wait: \"perhaps\" is none of true, false"),
    ] {
        let found = problems(&format!("proxy {line}"));
        assert!(found.len() == 1 && found[0].starts_with(flag), "{found:?}");
    }
    let proxy = proxy_of("--policy-cache /c --policy-configmap shop/policy --tls-wait=false");
    assert_eq!((proxy.policy_cache, proxy.tls_wait), (Some("/c".into()), false));
}

#[test]
fn sizes_have_a_unit_and_the_help_is_no_mistake() {
    assert_eq!(size("8MiB"), Ok(8 << 20));
    assert_eq!(size("1B"), Ok(1));
    for wrong in ["8", "8MB", "-1MiB", "1.5MiB", "99999999999999GiB", "MiB", ""] {
        assert!(size(wrong).is_err(), "{wrong}");
    }
    assert_eq!(problems("--help"), ["shown, 0"]);
    assert_eq!(problems("proxy --help"), ["shown, 0"]);
    assert_eq!(problems(""), ["shown, 2"]);
    assert_eq!(problems("check"), ["FILE: is missing"]);
}

#[test]
fn no_line_of_words_is_left_to_what_clap_says_of_it() {
    let words = [
        "--workers",
        "--workers=0",
        "--tls-self-signed",
        "--tls-self-signed=x",
        "--stay",
        "--command",
        "--command=a,b",
        "-f",
        "-fx",
        "-f=",
        "--filename=",
        "-x",
        "--",
        "-",
        "-1",
        "--=",
        "---",
        "-=",
        "x",
        "",
        "=",
        "--format",
        "--body",
        "http://h",
        "--callback",
        "\u{e9}",
        "-\u{e9}\u{e9}",
        "--listen=\u{e9}",
        "--admin-listen",
        "-f-f",
    ];
    let subcommands = ["proxy", "drain", "inject", "uninject", "check", "explain", "simulate", "demo"];
    let line = proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..6);
    proptest::proptest!(|(subcommand in proptest::sample::select(subcommands.to_vec()), line in line)| {
        let line: Vec<_> = ["callback-guard", subcommand].into_iter().chain(line).map(OsString::from).collect();
        match parse(&line) {
            Ok(_) => {}
            Err(Stop::Shown { code }) => panic!("{line:?} shows something, {code}"),
            Err(Stop::Problems { problems, .. }) => {
                assert!(!problems.is_empty(), "{line:?}");
                assert!(!problems.iter().any(|problem| problem.starts_with("command line: ")), "{line:?}: {problems:?}");
            }
        }
    });
}
