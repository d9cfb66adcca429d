//! `check`: what is fine, what is not, and where.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::program::{Folder, repository};

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = repository("tests/support/policies").join(kind);
    let entries = fs::read_dir(&folder).expect("the fixtures").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    assert!(!files.is_empty(), "{}", folder.display());
    files
}

/// An override must end within seven days, and the fixtures have one fixed day.
fn is_override(path: &std::path::Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "override")
}

#[test]
fn valid_fixtures_are_fine() {
    let folder = Folder::new();
    for path in fixtures("valid").into_iter().filter(|path| !is_override(path)) {
        let ran = folder.run(&format!("check {}", path.display())).code(0);
        ran.err("").out_has(" checked in 1 file: 0 problems, 0 warnings\n");
    }
}

#[test]
fn invalid_fixtures_have_exactly_the_problems_beside_them() {
    let folder = Folder::new();
    for path in fixtures("invalid").into_iter().filter(|path| !is_override(path)) {
        let expected = fs::read_to_string(path.with_extension("stderr")).expect("the expected problems");
        let count = expected.lines().count();
        let problems = if count == 1 { "1 problem".to_owned() } else { format!("{count} problems") };
        fs::copy(&path, folder.path().join("FILE")).expect("a copy");
        let ran = folder.run("check FILE").code(1).err(&expected);
        ran.out_has(&format!(" in 1 file: {problems}, 0 warnings\n"));
    }
}

#[test]
fn a_policy_with_slow_patterns_is_fine_with_a_warning() {
    let folder = Folder::new();
    let patterns = |count| (0..count).map(|n| format!("'*u{n}*'")).collect::<Vec<_>>().join(",");
    for (count, warnings) in [(500, "1 warning"), (50, "0 warnings")] {
        let policy = format!("rules:\n  - match: {{sendIDs: [{}]}}\n    answer: Allow\n", patterns(count));
        fs::write(folder.path().join("FILE"), policy).expect("a file");
        let ran = folder.run("check FILE").code(0).out_has(&format!("0 problems, {warnings}\n"));
        if count == 500 {
            ran.err_has("FILE:2:3: warning: rules: Slow: the patterns may add 0.8 ms to each callback");
        }
    }
}

#[test]
fn what_has_no_effect_on_events_and_what_the_queue_is_too_small_for_is_a_warning() {
    let folder = Folder::new();
    folder.write(
        "FILE",
        "defaults: {after: {keepFor: 1h}}\nrules:\n  - match: {phase: [After]}\n    timeout: 50ms\n",
    );
    let ran = folder.run("check FILE").code(0).out_has("0 problems, 2 warnings\n");
    let ran = ran.err_has("FILE:1:29: warning: defaults.after.keepFor: Small queue: the 10000 events");
    ran.err_has(
        "FILE:4:14: warning: rules[0].timeout: No effect: events of after-commands are delivered in the",
    );
    folder.write(
        "FILE",
        "defaults: {after: {keepFor: 10m}}\nrules: [{match: {phase: [Before]}, timeout: 50ms}]\n",
    );
    folder.run("check FILE").code(0).out_has("0 problems, 0 warnings\n");
}

#[test]
fn what_a_policy_probably_does_not_mean_is_a_warning_with_its_place_and_what_to_write() {
    let folder = Folder::new();
    folder.write(
        "FILE",
        "rules:
  - match: {commands: [callbackBeforeSned*]}
    timeout: 1s
  - match: {commands: [\"callbackAfter*\"]}
    after: {timeout: 50ms}
  - match: {commands: [callbackBeforeSendGroupMsgCommand]}
    fallback: Deny
",
    );
    folder.run("check FILE").code(0).out_has("0 problems, 3 warnings\n").err(
        "FILE:2:24: warning: rules[0].match.commands[0]: Fits no command that OpenIM is known to send: \
         \"callbackBeforeSned*\"; did you mean \"callbackBeforeSend*\"?\n\
         FILE:4:24: warning: rules[1].match.commands[0]: Misses callbackBeforeAfterMsgCommand, which is sent after a \
         message was revoked: in a rule write phase: [After] instead of \"callbackAfter*\", or name it too\n\
         FILE:7:15: warning: rules[2].fallback: Denies notifications too, such as \"you were kicked\" (OpenIM v3.8 sends \
         callbackBeforeSendGroupMsgCommand for them): add messages: Users to its match, or leave it if that is meant\n",
    );
    folder.write(
        "FILE",
        "rules:
  - match: {commands: [callbackBeforeSendGroupMsgCommand], messages: Users}
    fallback: Deny
  - match: {commands: [\"callbackBeforeSend*\"]}
    timeout: 1s
  - match: {phase: [After]}
    after: {timeout: 50ms}
",
    );
    folder.run("check FILE").code(0).err("").out_has("0 problems, 0 warnings\n");
}

const MANIFESTS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: guard, namespace: chat}
data:
  policy.yaml: |
    defaults:
      timeout: 0s
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
---
kind: ConfigMap
metadata: {name: good}
data: {policy.yaml: 'mode: Observe'}
";

#[test]
fn config_maps_among_manifests_are_checked_and_the_rest_is_named() {
    let ran = Folder::new().program("check -").stdin(MANIFESTS).run().code(1);
    let ran = ran.err(
        "-:document 1: ConfigMap chat/guard, key policy.yaml:2:12: defaults.timeout: Invalid value: \"0s\": must be \
         at least 10ms\n",
    );
    ran.out(
        "-:document 2: skipped: Deployment app is not a ConfigMap\n\
         2 documents checked in 1 file: 1 problem, 0 warnings\n",
    );
}

#[test]
fn several_files_and_documents_are_checked_in_one_run() {
    let folder = Folder::new();
    folder.write("good.yaml", "mode: Observe\n");
    folder.write("bad.yaml", "mode: Observed\n---\nrulse: []\n");
    let ran = folder.program("check good.yaml bad.yaml - missing.yaml").stdin("version: 1\n").run().code(1);
    ran.err_has("bad.yaml:document 1:1:7: mode: Unsupported value: \"Observed\"")
        .err_has("bad.yaml:document 2:3:1: rulse: Unknown key: did you mean \"rules\"?\n")
        .err_has("bad.yaml:document 2:3:1: Too many: the proxy takes one document a file")
        .err_has("missing.yaml: cannot be read: ")
        .has_no("good.yaml")
        .out_has(" in 4 files: 4 problems, ");
}

#[test]
fn json_is_for_programs_and_leaves_standard_error_alone() {
    let folder = Folder::new();
    let ran = folder.program("check --format json -").stdin(MANIFESTS).run().code(1).err("");
    let json: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}\n{ran}"));
    assert_eq!(json["ok"], false, "{ran}");
    let entry = &json["files"][0];
    assert_eq!(entry["source"], "ConfigMap chat/guard, key policy.yaml", "{ran}");
    assert_eq!(entry["problems"][0]["path"], "defaults.timeout", "{ran}");
    assert_eq!((&entry["problems"][0]["line"], &entry["problems"][0]["column"]), (&2.into(), &12.into()));
    let set =
        folder.program("check -").env("CALLBACK_GUARD_FORMAT", "json").stdin("version: 1").run().code(0);
    let json: Value = serde_json::from_str(&set.out).unwrap_or_else(|error| panic!("{error}\n{set}"));
    assert_eq!(json["ok"], true, "{set}");
}

#[test]
fn nothing_to_check_is_a_failure() {
    let ran = Folder::new().program("check -").stdin("kind: Secret\nmetadata: {name: x}\n").run().code(1);
    ran.err("")
        .out("-: skipped: Secret x is not a ConfigMap\nnothing to check in 1 file: 0 problems, 0 warnings\n");
}

#[test]
fn an_override_is_judged_as_of_today() {
    let past = "answer: Allow\nuntil: 2020-01-01T00:00:00Z\nreason: a drill\n";
    let ran = Folder::new().program("check -").stdin(past).run().code(0);
    ran.err_has("warning: until: Past: ").out("1 document checked in 1 file: 0 problems, 1 warning\n");
    let far = past.replace("2020", "2120");
    Folder::new().program("check -").stdin(&far).run().code(1).err_has("must be at most 7 days ahead");
}
