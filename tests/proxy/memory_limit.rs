//! Without `--max-held` the bound on bytes held is half of the container's memory limit, also after that has changed.
//!
//! The limit is a file in a folder of the test's, which the guard finds mounted as its `/sys/fs/cgroup`.

use crate::support::app::ALLOW;
use crate::support::{Act, App, Call, Caller, Folder, Gate, Guard, guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";
const BOUND: &str = "callback_guard_held_limit_bytes";
const MIB: f64 = 1_048_576.0;

/// Whether this machine lets a test mount a folder. If not, the tests are left out, and fail in CI.
fn can_mount() -> bool {
    let Err(error) = guard::may_mount(Folder::new().path()) else { return true };
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "no mount namespace: the memory limit of a container is not tested ({error})");
    eprintln!("skipped: no mount namespace ({error})");
    false
}

/// A folder with this limit, as both versions of cgroup have it.
fn limited_to(text: &str) -> Folder {
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("memory")).expect("a folder");
    // These limits are below what the process really uses.
    folder.write("memory.current", "0\n");
    folder.write("memory/memory.usage_in_bytes", "0\n");
    limit(&folder, text);
    folder
}

fn limit(folder: &Folder, text: &str) {
    folder.write("memory.max", text);
    folder.write("memory/memory.limit_in_bytes", text);
}

#[tokio::test]
async fn the_bound_follows_the_memory_limit_without_a_restart_and_loses_nothing() {
    if !can_mount() {
        return;
    }
    let gate = Gate::closed();
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    let app = App::start(move |_| acts.clone());
    let container = limited_to("4194304\n");
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}";
    let guard = Guard::with(policy).upstream(&app).cgroup(container.path()).start();
    assert_eq!(guard.metric(BOUND), 2.0 * MIB);
    let of = |kib: usize| Call::new(COMMAND).with("content", "x".repeat(kib << 10));
    let (mut first, mut second) = (Caller::h2(&guard).await, Caller::h1(&guard).await);
    let under_way = tokio::spawn(first.begin(&of(1200)));
    app.wait_for_asked(1).await;
    limit(&container, "2097152\n");
    guard.wait_for_metric(BOUND, MIB).await;
    assert!(guard.metric("callback_guard_held_bytes") > MIB);
    assert_eq!(second.send(&of(1)).await.told(), "allow fallback overloaded");
    gate.open();
    assert_eq!(within("an answer", under_way).await.expect("no panic").expect("an answer").told(), UPSTREAM);
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert_eq!(second.send(&of(600)).await.told(), UPSTREAM);
    assert_eq!(second.send(&of(1200)).await.told(), "allow fallback overloaded");
    limit(&container, "4194304\n");
    guard.wait_for_metric(BOUND, 2.0 * MIB).await;
    assert_eq!(second.send(&of(1200)).await.told(), UPSTREAM);
    guard.wait_for_log(|line| line.contains("\"memory_limit\":\"4MiB\""));
    let lines = guard.log_lines();
    let changes = lines.iter().filter(|line| line.contains("memory limit")).map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        ["level", "memory_limit", "old", "new"].map(|key| line[key].as_str().unwrap_or_default().to_owned())
    });
    let expected = [["INFO", "2MiB", "2MiB", "1MiB"], ["INFO", "4MiB", "1MiB", "2MiB"]];
    assert_eq!(changes.collect::<Vec<_>>(), expected.map(|change| change.map(str::to_owned)));
}

#[tokio::test]
async fn without_a_limit_or_with_the_flag_the_bound_is_what_the_help_says() {
    if !can_mount() {
        return;
    }
    for (text, flag, bound) in [("max\n", None, 256.0), ("4194304\n", Some("3MiB"), 3.0)] {
        let container = limited_to(text);
        // v1 has no word for it.
        if flag.is_none() {
            container.write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        }
        let guard = Guard::with("").cgroup(container.path());
        let guard = match flag {
            Some(size) => guard.flag("--max-held", size).start(),
            None => guard.start(),
        };
        assert_eq!(guard.metric(BOUND), bound * MIB, "{text:?} {flag:?}");
        let lines = guard.log_lines();
        assert!(!lines.iter().any(|line| line.contains("memory limit")), "{lines:?}");
    }
}

#[tokio::test]
async fn a_limit_that_is_not_understood_is_logged_with_what_is_used() {
    if !can_mount() {
        return;
    }
    let container = limited_to("plenty\n");
    let guard = Guard::with("").cgroup(container.path()).start();
    let line = guard.wait_for_log(|line| line.contains("The container's memory limit cannot be read"));
    let line: serde_json::Value = serde_json::from_str(&line).expect("a line is JSON");
    assert_eq!((&line["level"], &line["max_held"]), (&"WARN".into(), &"256MiB".into()));
    let reason = line["reason"].as_str().expect("a text");
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let expected = files.map(|file| format!("{file}: \"plenty\" is neither a number of bytes nor max"));
    assert!(expected.contains(&reason.to_owned()), "{reason}");
    assert_eq!(guard.metric(BOUND), 256.0 * MIB);
}
