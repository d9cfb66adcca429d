//! Every flag of `proxy` has an effect: what is read from the command line is used, and somebody can see it.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::app::ALLOW;
use crate::support::caller::try_secure;
use crate::support::{Act, App, Asked, Authority, Call, Caller, Gate, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";

/// Where each flag is seen to work: a test of this folder that gives it.
const SEEN: [(&str, &str, &str); 38] = [
    ("--admin-listen", "effects", "listeners_are_where_they_are_said_to_be"),
    ("--admin-timeout", "admin", "a_connection_lasts_as_long_as_the_flag_says"),
    ("--after-in-flight", "after", "deliveries_have_a_limit_of_their_own"),
    ("--after-queue", "after", "a_full_queue_drops_the_newcomer_and_one_command_has_half_of_it"),
    ("--after-queue-bytes", "after", "a_full_queue_drops_the_newcomer_and_one_command_has_half_of_it"),
    ("--allow-remote-upstream", "effects", "an_app_elsewhere_is_asked_only_where_that_is_allowed"),
    ("--basic-auth-file", "callers", "a_caller_without_the_right_password_is_not_let_in"),
    ("--client-ca", "callers", "a_caller_without_a_certificate_of_the_authority_is_not_let_in"),
    ("--drain-delay", "drain", "a_signal_ends_readiness_first_then_the_listener_then_what_is_in_flight"),
    ("--drain-timeout", "drain", "a_signal_ends_readiness_first_then_the_listener_then_what_is_in_flight"),
    ("--grace-period", "drain", "the_grace_period_is_longer_than_everything_else"),
    ("--handshake-timeout", "callers", "a_silent_caller_is_let_go_after_the_handshake_timeout"),
    ("--header-timeout", "callers", "a_slow_head_ends_its_connection_and_an_idle_one_stays"),
    ("--idle-timeout", "effects", "an_idle_timeout_under_what_go_needs_is_refused"),
    ("--listen", "effects", "listeners_are_where_they_are_said_to_be"),
    ("--log-format", "logs", "text_for_people_is_one_line_for_a_callback_whatever_it_holds"),
    ("--log-level", "logs", "content_and_passwords_are_in_no_log_and_on_no_page"),
    (
        "--max-admin-connections",
        "admin",
        "probes_are_answered_in_front_of_silent_sockets_and_the_oldest_make_room",
    ),
    ("--max-answer-size", "effects", "sizes_are_those_of_the_flags"),
    ("--max-connection-age", "drain", "a_connection_at_its_age_is_ended_gracefully_and_no_callback_fails"),
    ("--max-connections", "callers", "connections_over_their_bound_wait_until_there_is_room"),
    ("--max-header-size", "effects", "sizes_are_those_of_the_flags"),
    ("--max-held", "effects", "bytes_over_their_bound_are_not_taken_in"),
    ("--max-in-flight", "effects", "callbacks_over_their_bound_are_not_put_to_the_app"),
    ("--max-request-size", "effects", "sizes_are_those_of_the_flags"),
    ("--override-file", "reload", "an_override_comes_works_and_is_taken_away"),
    ("--policy-cache", "cache", "a_restart_with_the_api_server_away_has_the_last_good_policy"),
    ("--policy-configmap", "effects", "a_cluster_that_is_not_there_is_told_and_stops_nothing"),
    ("--policy-file", "reload", "a_mounted_folder_is_followed_through_its_symlinks"),
    ("--require-policy", "effects", "without_the_policy_that_is_required_there_is_no_start"),
    ("--tls-cert", "tls", "certificates_are_replaced_under_load_and_no_callback_fails"),
    ("--tls-key", "tls", "certificates_are_replaced_under_load_and_no_callback_fails"),
    ("--tls-self-signed", "effects", "a_certificate_made_at_the_start_is_served"),
    ("--tls-wait", "tls_wait", "with_its_files_there_it_does_not_wait"),
    ("--upstream", "effects", "an_app_elsewhere_is_asked_only_where_that_is_allowed"),
    ("--upstream-form", "effects", "the_app_gets_urls_in_the_form_it_wants"),
    ("--upstream-reuse", "whose_verdict", "without_reuse_one_answer_too_many_misleads_nobody"),
    ("--workers", "effects", "there_are_as_many_workers_as_wanted"),
];

/// The flags that the help of `proxy` names at the beginning of a line.
fn flags() -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callback-guard"));
    let output = command.args(["proxy", "--help"]).output().expect("the binary starts");
    let help = String::from_utf8(output.stdout).expect("text");
    let flag = |line: &str| {
        let start = line.trim_start().trim_start_matches("-h, ");
        let name = start.split([' ', '=', '[']).next().unwrap_or_default();
        name.starts_with("--").then(|| name.to_owned())
    };
    help.lines().filter_map(flag).filter(|name| name != "--help").collect()
}

#[test]
fn every_flag_is_seen_to_work_by_a_test_that_gives_it() {
    let seen: BTreeSet<_> = SEEN.iter().map(|(flag, _, _)| (*flag).to_owned()).collect();
    assert_eq!(flags(), seen, "a flag without a test, or a test without its flag");
    for (flag, file, test) in SEEN {
        let path = format!("{}/tests/proxy/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (_, rest) = text
            .split_once(&format!("async fn {test}()"))
            .unwrap_or_else(|| panic!("{test} is not in {path}"));
        let body = rest.split("\n}\n").next().unwrap_or_default();
        let given = [format!("\"{flag}\""), format!("\"{flag}=")].iter().any(|text| body.contains(text));
        assert!(given, "{test} does not give {flag}");
    }
}

#[tokio::test]
async fn listeners_are_where_they_are_said_to_be() {
    let app = App::allowing();
    let ports = [0; 2].map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let addresses = ports.map(|port| port.local_addr().expect("bound"));
    let [listen, admin] = addresses;
    let guard = Guard::with("").upstream(&app).flag("--listen", listen.to_string());
    let guard = guard.flag("--admin-listen", admin.to_string()).start();
    assert_eq!((guard.listen(), guard.admin_address()), (listen, admin));
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(guard.admin("/livez").0, 200);
    // A port that is taken is an error, and no silent share of it.
    for flag in ["--listen", "--admin-listen"] {
        let Err(ended) = Guard::with("").flag(flag, listen.to_string()).try_start() else {
            panic!("two guards on {listen}")
        };
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains(&format!("{flag}: {listen} cannot be listened on")), "{ended:?}");
    }
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
}

fn workers(guard: &Guard) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", guard.pid())).expect("a process");
    let names = tasks.map(|task| std::fs::read_to_string(task.expect("a task").path().join("comm")));
    names.filter(|name| name.as_ref().is_ok_and(|name| name.trim() == "worker")).count()
}

#[tokio::test]
async fn there_are_as_many_workers_as_wanted() {
    let app = App::allowing();
    assert_eq!(workers(&Guard::with("").start()), 1);
    let guard = Guard::with("").upstream(&app).flag("--workers", "2").flag("--drain-delay", "0s").start();
    assert_eq!(workers(&guard), 2);
    // Connections are spread over them; each answers, and each ends.
    let mut callers = Vec::new();
    for _ in 0..16 {
        callers.push(Caller::h2(&guard).await);
    }
    for caller in &mut callers {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    }
    assert_eq!(guard.count("callback_guard_callbacks_total", &[("origin", "upstream")]), 16.0);
    drop(callers);
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
}

#[tokio::test]
async fn callbacks_over_their_bound_are_not_put_to_the_app() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |_| acts.clone());
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}";
    let guard = Guard::with(policy).upstream(&app).flag("--max-in-flight", "2").start();
    let mut caller = Caller::h2(&guard).await;
    let held: Vec<_> = (0..2).map(|_| tokio::spawn(caller.begin(&Call::new(COMMAND)))).collect();
    app.wait_for_asked(2).await;
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow fallback overloaded");
    gate.open();
    for task in held {
        let answer = within("an answer", task).await.expect("no panic").expect("an answer");
        assert_eq!(answer.told(), UPSTREAM);
    }
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
}

#[tokio::test]
async fn sizes_are_those_of_the_flags() {
    let app = App::start(|asked: &Asked| {
        let length = asked.values("Answer").first().map_or(0, |length| length.parse().expect("a number"));
        let padding = "x".repeat(length);
        vec![Act::json(format!(r#"{{"actionCode":0,"nextCode":0,"errMsg":"{padding}"}}"#))]
    });
    let guard = Guard::with("").upstream(&app).flag("--max-request-size", "4KiB");
    let guard = guard.flag("--max-answer-size", "2KiB").flag("--max-header-size", "6KiB").start();
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        let rows = [
            (Call::new(COMMAND).with("content", "x".repeat(2000)), UPSTREAM),
            (Call::new(COMMAND).with("content", "x".repeat(4096)), "deny rejection too-large"),
            (Call::new(COMMAND).header("Answer", "1900"), UPSTREAM),
            (Call::new(COMMAND).header("Answer", "2048"), "allow fallback invalid"),
            (Call::new(COMMAND).header("Large", "x".repeat(5000)), UPSTREAM),
            (Call::new(COMMAND).header("Large", "x".repeat(6144)), "deny rejection too-large"),
        ];
        for (call, told) in rows {
            assert_eq!(caller.send(&call).await.told(), told);
        }
    }
}

#[tokio::test]
async fn bytes_over_their_bound_are_not_taken_in() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |_| acts.clone());
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}";
    let guard = Guard::with(policy).upstream(&app).flag("--max-held", "1MiB").start();
    let large = || Call::new(COMMAND).with("content", "x".repeat(600 << 10));
    let (mut first, mut second) = (Caller::h2(&guard).await, Caller::h1(&guard).await);
    let held = tokio::spawn(first.begin(&large()));
    app.wait_for_asked(1).await;
    assert!(guard.metric("callback_guard_held_bytes") >= f64::from(600 << 10));
    assert_eq!(second.send(&large()).await.told(), "allow fallback overloaded");
    gate.open();
    assert_eq!(within("an answer", held).await.expect("no panic").expect("an answer").told(), UPSTREAM);
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert_eq!(Caller::h1(&guard).await.send(&large()).await.told(), UPSTREAM);
}

#[tokio::test]
async fn the_app_gets_urls_in_the_form_it_wants() {
    let query = format!("/callbackExample?command={COMMAND}");
    let path = format!("/callbackExample/{COMMAND}");
    for (form, of_path, of_query) in
        [("as-received", &path, &query), ("path", &path, &path), ("query", &query, &query)]
    {
        let app = App::allowing();
        let guard = Guard::with("").upstream(&app).flag("--upstream-form", form).start();
        let mut caller = Caller::h1(&guard).await;
        for target in [&path, &query] {
            assert_eq!(caller.send(&Call::new(COMMAND).target(target)).await.told(), UPSTREAM);
        }
        let asked: Vec<_> = app.asked().iter().map(|asked| asked.target().to_owned()).collect();
        assert_eq!(asked, [of_path.as_str(), of_query.as_str()], "{form}");
    }
}

#[tokio::test]
async fn an_app_elsewhere_is_asked_only_where_that_is_allowed() {
    let app = App::allowing();
    let url = app.url().replace("127.0.0.1", "0.0.0.0");
    let Err(ended) = Guard::with("").flag("--upstream", &url).try_start() else { panic!("not loopback") };
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("--upstream: ") && ended.stderr.contains("not loopback"), "{ended:?}");
    // 0.0.0.0 is this machine to Linux, and not loopback to the check.
    let guard = Guard::with("").flag("--upstream", &url).switch("--allow-remote-upstream").start();
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(app.asked().len(), 1);
}

#[tokio::test]
async fn an_idle_timeout_under_what_go_needs_is_refused() {
    let Err(ended) = Guard::with("").flag("--idle-timeout", "14m").try_start() else { panic!("too short") };
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("--idle-timeout: value is too small (14m), at least 15m"), "{ended:?}");
    drop(Guard::with("").flag("--idle-timeout", "16m").start());
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_told_and_stops_nothing() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--policy-configmap", "chat/callback-guard");
    let guard = guard.env("KUBECONFIG", "/nowhere/config").start();
    let line = guard.wait_for_log(|line| line.contains("The ConfigMap cannot be watched"));
    assert!(line.contains("WARN") && line.contains("/nowhere/config"), "{line}");
    assert_eq!(guard.metric("callback_guard_policy_watch_connected"), 0.0);
    assert_eq!(guard.admin("/readyz").0, 200);
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
}

#[tokio::test]
async fn without_the_policy_that_is_required_there_is_no_start() {
    for (text, said) in [("rules: 7", "rules"), ("version: 2", "version")] {
        let Err(ended) = Guard::with(text).switch("--require-policy").try_start() else { panic!("{text}") };
        assert!(ended.stderr.contains("--policy-file: ") && ended.stderr.contains(said), "{ended:?}");
        assert_eq!(ended.code, 1);
        assert_eq!(Guard::with(text).start().admin("/readyz").0, 200);
    }
    drop(Guard::with("version: 1").switch("--require-policy").start());
}

#[tokio::test]
async fn a_certificate_made_at_the_start_is_served() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).switch("--tls-self-signed").start();
    guard.wait_for_log(|line| line.contains("The certificate is self-signed"));
    let trusting = Authority::common().trusted_by(&["h2"], None);
    assert!(try_secure(&guard, trusting).await.is_err(), "nobody has signed it");
    guard.wait_for_metric("callback_guard_tls_handshake_failures_total{reason=\"unknown-ca\"}", 1.0).await;
    assert!(guard.metric("callback_guard_certificate_expiry_timestamp_seconds") > 0.0);
}

#[tokio::test]
async fn the_admin_port_says_what_there_is_and_how_it_is_asked() {
    let guard = Guard::with("").start();
    for path in ["/", "/livez", "/readyz", "/metrics", "/policy", "/decisions"] {
        assert_eq!(guard.admin(path).0, 200, "{path}");
        assert_eq!(guard.admin_post(path).0, 405, "{path}");
    }
    assert_eq!(guard.admin("/drain").0, 405);
    for path in ["/healthz", "/metrics/", "/policy/x", "//"] {
        let (status, text) = guard.admin(path);
        assert_eq!(status, 404, "{path}");
        assert!(text.contains("/readyz"), "{text}");
    }
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.header("connection"), "", "no drain");
}

/// An address of this machine that is not loopback, where it has one: the kernel's own list, which needs no route.
pub(super) fn outer_address() -> Option<std::net::IpAddr> {
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut leaf: Option<std::net::Ipv4Addr> = None;
    for line in table.lines() {
        if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line.trim() == "/32 host LOCAL"
            && let Some(address) = leaf.filter(|address| !address.is_loopback())
        {
            return Some(address.into());
        }
    }
    None
}

#[tokio::test]
async fn pages_with_more_than_numbers_are_for_loopback_alone() {
    let Some(address) = outer_address() else {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(
            !ci,
            "this machine has no IPv4 address beside loopback: who else may read pages is not tested"
        );
        eprintln!("skipped: this machine has no IPv4 address beside loopback");
        return;
    };
    let guard = Guard::with("").flag("--admin-listen", format!("{address}:0")).start();
    for (path, status) in [
        ("/livez", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/", 403),
        ("/policy", 403),
        ("/decisions", 403),
    ] {
        assert_eq!(guard.admin(path).0, status, "{path}");
    }
    assert_eq!(guard.admin_post("/drain").0, 403);
    assert!(!guard.log_lines().iter().any(|line| line.contains("The pod is ending")));
}
