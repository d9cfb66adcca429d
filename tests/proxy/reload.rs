//! Policies and overrides that are edited while the guard runs: what is in force, what is refused, and what is told.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::support::{Act, App, Call, Caller, Gate, Guard, eventually, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const FAILURES: &str = "callback_guard_policy_reload_failures_total";
const SUCCESSFUL: &str = "callback_guard_policy_last_reload_successful";
const OVERRIDDEN: &str = "callback_guard_override_active";

/// A policy that is known by its code.
fn denying(code: i64) -> String {
    format!("rules: [{{name: all, answer: Deny, deny: {{errCode: {code}}}}}]")
}

/// The code of the next answer, 0 for an allow.
async fn code(caller: &mut Caller) -> i64 {
    caller.send(&Call::new(COMMAND)).await.json()["errCode"].as_i64().expect("a number")
}

/// Sends callbacks until one is answered with this code.
async fn becomes(caller: &mut Caller, wanted: i64) {
    let look = async { while code(caller).await != wanted {} };
    within(&format!("code {wanted}"), look).await;
}

fn page(guard: &Guard) -> Value {
    let (status, text) = guard.admin("/policy");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("a page of JSON")
}

fn count(guard: &Guard, text: &str) -> usize {
    guard.log_lines().iter().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn an_edited_policy_is_in_force_soon_and_without_a_restart() {
    let app = App::answering("no answer");
    let text = |code| format!("defaults: {{fallback: Deny, deny: {{errCode: {code}}}}}");
    let guard = Guard::with(text(5101)).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    for turn in 5102..5106 {
        assert_eq!(code(&mut caller).await, turn - 1);
        let before = page(&guard);
        let begun = Instant::now();
        guard.write("policy.yaml", text(turn));
        becomes(&mut caller, turn).await;
        // It is looked for four times a second; the rest is for a busy machine.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let now = page(&guard);
        assert_eq!(now["source"], "file");
        assert_ne!(now["hash"], before["hash"]);
        let hash = now["hash"].as_str().expect("a text").to_owned();
        let info = format!("callback_guard_policy_info{{source=\"file\",hash=\"{hash}\"}}");
        assert_eq!(guard.metric(&info), 1.0);
        assert_eq!(guard.count("callback_guard_policy_info", &[]), 1.0, "the old one is gone");
        guard.wait_for_log(|line| line.contains("A policy is in force") && line.contains(&hash));
    }
    assert!(caller.is_open());
    assert_eq!((guard.metric(FAILURES), guard.metric(SUCCESSFUL)), (0.0, 1.0));
}

#[tokio::test]
async fn a_broken_edit_is_told_everywhere_and_never_in_force() {
    let guard = Guard::with(denying(5101)).start();
    let mut caller = Caller::h1(&guard).await;
    let rows = [
        ("rules: [{name: a, timeout: 0s}]", "rules[0].timeout: Invalid value"),
        ("rules: [{name: a, anwser: Deny}]", "rules[0].anwser"),
        ("defaults: {fallback: Maybe}", "defaults.fallback"),
        ("rules: {", "Invalid YAML"),
        ("version: 2", "version"),
    ];
    for (at, (text, path)) in rows.into_iter().enumerate() {
        guard.write("policy.yaml", text);
        guard.wait_for_metric(FAILURES, (at + 1) as f64).await;
        assert_eq!(guard.metric(SUCCESSFUL), 0.0);
        let refused = eventually("the page", || {
            let refused = page(&guard)["refusedPolicy"].as_str().map(str::to_owned);
            refused.filter(|refused| refused.contains(path))
        });
        let refused = refused.await;
        let first = refused.lines().next().expect("a line").replace('"', "\\\"");
        let line = guard.wait_for_log(|line| line.contains("The policy is refused") && line.contains(&first));
        assert!(line.contains("\"level\":\"ERROR\""), "{line}");
        assert!(guard.admin("/").1.contains("Refused, and not in force"));
        assert_eq!(code(&mut caller).await, 5101, "{text}");
        assert_eq!(guard.admin("/readyz").0, 200);
    }
    assert_eq!(count(&guard, "The policy is refused"), rows.len(), "one line for each");
    // Mended with what is in force, and then with something new.
    guard.write("policy.yaml", denying(5101));
    guard.wait_for_metric(SUCCESSFUL, 1.0).await;
    assert_eq!(page(&guard)["refusedPolicy"], Value::Null);
    guard.write("policy.yaml", rows[0].0);
    guard.wait_for_metric(SUCCESSFUL, 0.0).await;
    guard.write("policy.yaml", denying(5102));
    becomes(&mut caller, 5102).await;
    guard.wait_for_metric(SUCCESSFUL, 1.0).await;
    assert_eq!(page(&guard)["refusedPolicy"], Value::Null);
    assert!(!guard.admin("/").1.contains("Refused, and not in force"));
    assert_eq!(guard.metric(FAILURES), (rows.len() + 1) as f64);
}

#[tokio::test]
async fn a_mounted_folder_is_followed_through_its_symlinks() {
    let builder = Guard::with("");
    let folder = builder.folder().join("mounted");
    let mount = |round: i64| {
        let new = folder.join(format!("..round-{round}"));
        std::fs::create_dir_all(&new).expect("a folder");
        std::fs::write(new.join("policy.yaml"), denying(round)).expect("a file");
        symlink(new.file_name().expect("a name"), folder.join("..data_tmp")).expect("a symlink");
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a rename");
        let _ = std::fs::remove_dir_all(folder.join(format!("..round-{}", round - 1)));
    };
    mount(5100);
    symlink("..data/policy.yaml", folder.join("policy.yaml")).expect("a symlink");
    let guard = builder.flag("--policy-file", folder.join("policy.yaml")).start();
    let mut caller = Caller::h1(&guard).await;
    assert_eq!(code(&mut caller).await, 5100);
    for round in 5101..5105 {
        mount(round);
        becomes(&mut caller, round).await;
    }
    assert_eq!(guard.metric(FAILURES), 0.0);
}

#[tokio::test]
async fn a_deleted_policy_stays_in_force_and_is_missed() {
    let guard = Guard::with(denying(5101)).start();
    let mut caller = Caller::h1(&guard).await;
    std::fs::remove_file(guard.path("policy.yaml")).expect("it was there");
    guard.wait_for_metric(FAILURES, 1.0).await;
    guard.wait_for_log(|line| line.contains("The policy is refused") && line.contains("no such file"));
    assert_eq!((code(&mut caller).await, guard.metric(SUCCESSFUL)), (5101, 0.0));
    guard.write("policy.yaml", denying(5101));
    guard.wait_for_metric(SUCCESSFUL, 1.0).await;
    guard.write("policy.yaml", denying(5102));
    becomes(&mut caller, 5102).await;
}

#[tokio::test]
async fn without_a_policy_the_built_in_one_answers_loudly_until_there_is_one() {
    let app = App::answering("no answer");
    for (first, said) in [(None, "no such file"), (Some("rules: 7"), "rules")] {
        let builder = Guard::with("").upstream(&app);
        let path = builder.folder().join("later.yaml");
        if let Some(first) = first {
            std::fs::write(&path, first).expect("a file");
        }
        let guard = builder.flag("--policy-file", path).start();
        let mut caller = Caller::h1(&guard).await;
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow fallback invalid");
        guard.wait_for_log(|line| {
            line.contains("The policy is refused") && line.contains("ERROR") && line.contains(said)
        });
        assert_eq!(guard.admin("/readyz").0, 200);
        assert_eq!(page(&guard)["source"], "builtin");
        assert_eq!((guard.metric(FAILURES), guard.metric(SUCCESSFUL)), (1.0, 0.0));
        guard.write("later.yaml", denying(5101));
        becomes(&mut caller, 5101).await;
        guard.wait_for_metric(SUCCESSFUL, 1.0).await;
        assert_eq!(page(&guard)["source"], "file");
    }
}

#[tokio::test]
async fn of_edits_in_quick_succession_the_last_one_is_in_force() {
    let guard = Guard::with(denying(5101)).start();
    let mut caller = Caller::h2(&guard).await;
    for turn in 0..5 {
        // As an editor does it, and in place, to the same size and within one tick of a file system's clock.
        let (first, last) = (5200 + turn * 2, 5201 + turn * 2);
        guard.write("policy.yaml", denying(first));
        guard.write("policy.yaml", denying(last));
        becomes(&mut caller, last).await;
        std::fs::write(guard.path("policy.yaml"), denying(first)).expect("a file");
        std::fs::write(guard.path("policy.yaml"), denying(last + 100)).expect("a file");
        becomes(&mut caller, last + 100).await;
        std::fs::write(guard.path("policy.yaml"), denying(last + 200)).expect("a file");
        becomes(&mut caller, last + 200).await;
    }
    for _ in 0..100 {
        assert_eq!(code(&mut caller).await, 5409);
    }
    assert_eq!(guard.metric(FAILURES), 0.0);
}

/// An override that lasts for so long.
fn lasting(action: &str, time: Duration) -> String {
    let mut until = String::new();
    callback_guard::log::timestamp(&mut until, SystemTime::now() + time);
    format!("{{{action}, until: \"{until}\", reason: incident 42}}")
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn an_override_comes_works_and_is_taken_away() {
    let app = App::answering("no answer");
    let policy = "defaults: {fallback: Deny, deny: {errCode: 5101}}";
    let builder = Guard::with(policy).upstream(&app);
    let path = builder.folder().join("override.yaml");
    let guard = builder.flag("--override-file", &path).start();
    let mut caller = Caller::h1(&guard).await;
    assert_eq!(code(&mut caller).await, 5101);
    assert_eq!((guard.metric(OVERRIDDEN), &page(&guard)["override"]), (0.0, &Value::Null));
    guard.write("override.yaml", lasting("answer: Allow", HOUR));
    becomes(&mut caller, 0).await;
    let call = Call::new(COMMAND);
    assert_eq!(caller.send(&call).await.told(), "allow rule -");
    assert_eq!(guard.decision(&call.operation_id())["override"], "incident 42");
    assert_eq!((guard.metric(OVERRIDDEN), &page(&guard)["override"]["active"]), (1.0, &true.into()));
    guard.wait_for_log(|line| line.contains("An override is set") && line.contains("incident 42"));
    let asked = app.asked().len();
    assert_eq!(code(&mut caller).await, 0);
    assert_eq!(app.asked().len(), asked, "the app is not asked");
    guard.write("override.yaml", lasting("fallback: Allow", HOUR));
    let asks = async { while caller.send(&Call::new(COMMAND)).await.told() != "allow fallback invalid" {} };
    within("the other override", asks).await;
    std::fs::remove_file(path).expect("it was there");
    becomes(&mut caller, 5101).await;
    guard.wait_for_log(|line| line.contains("The override is taken away"));
    assert_eq!((guard.metric(OVERRIDDEN), guard.metric(FAILURES)), (0.0, 0.0));
}

#[tokio::test]
async fn an_override_ends_by_itself() {
    let guard = Guard::with(denying(5101));
    let text = lasting("answer: Allow", Duration::from_millis(2500));
    let guard = guard.file("--override-file", "override.yaml", text).start();
    let mut caller = Caller::h2(&guard).await;
    assert_eq!((code(&mut caller).await, guard.metric(OVERRIDDEN)), (0, 1.0));
    becomes(&mut caller, 5101).await;
    assert_eq!((guard.metric(OVERRIDDEN), &page(&guard)["override"]["active"]), (0.0, &false.into()));
    guard.wait_for_log(|line| line.contains("The override has ended by itself"));
    assert_eq!(guard.metric(FAILURES), 0.0);
}

#[tokio::test]
async fn policy_and_override_are_refused_and_mended_apart() {
    let builder = Guard::with(denying(5101));
    let path = builder.folder().join("override.yaml");
    let guard = builder.flag("--override-file", path).start();
    let mut caller = Caller::h1(&guard).await;
    let refused = || {
        let page = page(&guard);
        ["refusedPolicy", "refusedOverride"].map(|key| !page[key].is_null())
    };
    guard.write("policy.yaml", "rules: 7");
    guard.wait_for_metric(FAILURES, 1.0).await;
    assert_eq!(refused(), [true, false]);
    // An override works beside a broken policy.
    let good = lasting("answer: Allow", HOUR);
    guard.write("override.yaml", &good);
    becomes(&mut caller, 0).await;
    assert_eq!((refused(), guard.metric(SUCCESSFUL)), ([true, false], 0.0));
    guard.write("override.yaml", "{answer: Allow, until: tomorrow, reason: none}");
    guard.wait_for_metric(FAILURES, 2.0).await;
    assert_eq!((refused(), code(&mut caller).await), ([true, true], 0), "the last good one stays");
    guard.wait_for_log(|line| line.contains("The override is refused") && line.contains("until"));
    // The override holds again what is in force; the policy is as broken as before.
    guard.write("override.yaml", &good);
    eventually("the override", || (!refused()[1]).then_some(())).await;
    assert_eq!((refused(), guard.metric(SUCCESSFUL)), ([true, false], 0.0));
    guard.write("override.yaml", "{answer: Allow, until: tomorrow, reason: none}");
    guard.wait_for_metric(FAILURES, 3.0).await;
    // And the other way round.
    guard.write("policy.yaml", denying(5102));
    eventually("the policy", || (!refused()[0]).then_some(())).await;
    assert_eq!((refused(), guard.metric(SUCCESSFUL)), ([false, true], 0.0));
    guard.write("override.yaml", "");
    becomes(&mut caller, 5102).await;
    guard.wait_for_metric(SUCCESSFUL, 1.0).await;
    assert_eq!(refused(), [false, false]);
}

#[tokio::test]
async fn a_breaker_outlives_an_edit_elsewhere_and_not_one_of_its_own() {
    let app = App::answering("no answer");
    let text = |name: &str, open: &str, code: i64| {
        format!(
            "defaults: {{fallback: Deny, deny: {{errCode: {code}}}}}\nrules: [{{name: {name}, breaker: \
             {{failureRate: 1, minimumCallbacks: 2, window: 60s, openFor: {open}}}}}]"
        )
    };
    let guard = Guard::with(text("a", "60s", 5101)).upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    let state = |rule: &str| guard.metric(&format!("callback_guard_breaker_state{{rule=\"{rule}\"}}"));
    for _ in 0..2 {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "deny fallback invalid");
    }
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "deny fallback breaker-open");
    guard.write("policy.yaml", text("a", "60s", 5102));
    becomes(&mut caller, 5102).await;
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "deny fallback breaker-open");
    assert_eq!((state("a"), app.asked().len()), (1.0, 2));
    for (name, open, code) in [("a", "59s", 5103), ("b", "59s", 5104)] {
        guard.write("policy.yaml", text(name, open, code));
        let fresh = async { while caller.send(&Call::new(COMMAND)).await.json()["errCode"] != code {} };
        within("the edit", fresh).await;
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "deny fallback invalid", "{code}");
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "deny fallback breaker-open", "{code}");
        assert_eq!(state(name), 1.0);
    }
    assert_eq!((state("a"), app.asked().len()), (0.0, 6));
}

#[tokio::test]
async fn a_callback_under_way_lives_by_the_policy_it_began_with() {
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json("no answer")];
    let app = App::start(move |_| acts.clone());
    let text = |timeout: &str, code: i64| {
        format!(
            "defaults: {{callerTimeout: 15s, timeout: {timeout}, fallback: Deny, deny: {{errCode: {code}}}}}"
        )
    };
    let guard = Guard::with(text("14s", 5101)).upstream(&app).start();
    let mut early = Caller::h2(&guard).await;
    let first = early.begin(&Call::new(COMMAND));
    let first = tokio::spawn(first);
    app.wait_for_asked(1).await;
    guard.write("policy.yaml", text("200ms", 5102));
    eventually("the edit", || (count(&guard, "A policy is in force") > 1).then_some(())).await;
    // By the new deadline and fallback, while the old one waits on.
    let second = Caller::h1(&guard).await.send(&Call::new(COMMAND)).await;
    assert_eq!((second.told().as_str(), &second.json()["errCode"]), ("deny fallback timeout", &5102.into()));
    assert!(!first.is_finished());
    gate.open();
    let first = within("the first", first).await.expect("no panic").expect("an answer");
    assert_eq!((first.told().as_str(), &first.json()["errCode"]), ("deny fallback invalid", &5101.into()));
}
