//! A command line with mistakes: all of them in one run, each beginning with its flag, exit code 2.

use crate::program::Folder;

/// What follows the mistakes.
fn behind(subcommand: &str) -> String {
    format!("\nFor the flags and their defaults: callback-guard {subcommand} --help\n")
}

#[test]
fn every_mistake_is_told_at_once_and_begins_with_its_flag() {
    let line = "proxy --listen 8443 --upstrem http://127.0.0.1:1 --tls-cert a --workers 0 --max-held 8M --grace-period 3 \
                --log-level loud --upstream http://10.0.0.1:80 --policy-configmap nowhere --no-such";
    let ran = Folder::new().run(line).code(2).out("");
    let flags = [
        "--upstrem",
        "--no-such",
        "--listen",
        "--tls-key",
        "--upstream",
        "--policy-configmap",
        "--workers",
        "--max-held",
        "--grace-period",
        "--log-level",
    ];
    ran.problems_of(&flags, &behind("proxy"))
        .err_has("--upstrem: there is no such flag, did you mean --upstream?\n")
        .err_has("--workers: value is too small (0), at least 1 is required\n");
}

#[test]
fn a_value_from_the_environment_is_judged_like_one_of_the_command_line() {
    let folder = Folder::new();
    let typed = folder.run("proxy --tls-self-signed --workers 0 --drain-delay 3 --log-format xml").code(2);
    let set = folder
        .program("proxy")
        .env("CALLBACK_GUARD_TLS_SELF_SIGNED", "true")
        .env("CALLBACK_GUARD_WORKERS", "0")
        .env("CALLBACK_GUARD_DRAIN_DELAY", "3")
        .env("CALLBACK_GUARD_LOG_FORMAT", "xml")
        .run();
    let set =
        set.code(2).out("").problems_of(&["--workers", "--drain-delay", "--log-format"], &behind("proxy"));
    set.err(&typed.err);
}

#[test]
fn the_flag_wins_over_the_environment() {
    let folder = Folder::new();
    let program = folder.program("proxy --tls-self-signed --workers 2 --log-level loud");
    let ran = program.env("CALLBACK_GUARD_WORKERS", "0").env("CALLBACK_GUARD_LOG_LEVEL", "info").run();
    ran.code(2).problems_of(&["--log-level"], &behind("proxy"));
}

#[test]
fn other_subcommands_begin_their_mistakes_with_the_flag_too() {
    let folder = Folder::new();
    folder
        .run("drain --admin-listen 9090")
        .code(2)
        .out("")
        .problems_of(&["--admin-listen"], &behind("drain"));
    folder.run("check --format xml x.yaml").code(2).out("").problems_of(&["--format"], &behind("check"));
    folder
        .run("demo --stya")
        .code(2)
        .out("")
        .problems_of(&["--stya"], &behind("demo"))
        .err_has("did you mean --stay?");
}

#[test]
fn what_is_missing_or_doubled_is_told_among_the_other_mistakes() {
    let folder = Folder::new();
    for (line, flags) in [
        ("proxy --tls-self-signed --workers 0 --listen", &["--listen", "--workers"][..]),
        (
            "proxy --tls-self-signed --workers 0 --workers 2 --drain-delay 3",
            &["--workers", "--workers", "--drain-delay"],
        ),
        ("check", &["<FILE>..."]),
        ("check --format xml", &["<FILE>...", "--format"]),
        ("explain --format q", &["--callback", "--format"]),
        ("explain --polcy x --format q", &["--polcy", "--callback", "--format"]),
        ("simulate --bogus --timeout x", &["--bogus", "<URL>", "--timeout"]),
        ("simulate http://127.0.0.1:1 http://127.0.0.1:2 --rate x", &["http://127.0.0.1:2", "--rate"]),
        ("inject --image= --tls-secret", &["--tls-secret", "--filename", "--image"]),
        ("uninject --dry-run", &["--dry-run", "--filename"]),
    ] {
        let subcommand = line.split(' ').next().expect("a subcommand");
        let ran = folder.run(line).code(2).out("");
        ran.problems_of(flags, &behind(subcommand)).has_no("Usage:").has_no("error:");
    }
}

#[test]
fn files_that_cannot_be_used_are_told_beside_flags_that_are_wrong() {
    let folder = Folder::new();
    let line = "proxy --workers 0 --tls-cert /nope --tls-key /n --client-ca /n --basic-auth-file /n";
    let flags = ["--workers", "--tls-cert", "--tls-key", "--client-ca", "--basic-auth-file"];
    folder.run(line).code(2).out("").problems_of(&flags, &behind("proxy"));
    let line = "proxy --workers 0 --tls-wait --tls-cert /nope --tls-key /n";
    folder.run(line).code(2).out("").problems_of(&["--workers"], &behind("proxy"));
}

#[test]
fn what_explain_and_simulate_are_told_may_stand_in_the_environment() {
    let folder = Folder::new();
    folder.write("policy.yaml", "rules: [{name: of the variable}]");
    folder
        .write("body.json", r#"{"callbackCommand":"callbackBeforeSendSingleMsgCommand","operationID":"1"}"#);
    let explained = folder
        .program("explain")
        .env("CALLBACK_GUARD_POLICY", "policy.yaml")
        .env("CALLBACK_GUARD_CALLBACK", "body.json")
        .run();
    explained.code(0).out_has("of the variable");
    let program = folder.program("explain").env("CALLBACK_GUARD_OVERRIDE", "/no/override");
    program.env("CALLBACK_GUARD_CALLBACK", "body.json").run().code(1).err_has("/no/override");
    let program = folder.program("simulate http://127.0.0.1:1");
    program
        .env("CALLBACK_GUARD_COMMAND", "a,b")
        .run()
        .code(2)
        .err_has("no command \"a\"")
        .err_has("no command \"b\"");
    let program = folder.program("simulate http://127.0.0.1:1");
    program.env("CALLBACK_GUARD_BODY", "/no/body").run().code(2).err_has("/no/body");
}
