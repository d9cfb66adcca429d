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
        ("check", &["FILE"]),
        ("check --format xml", &["FILE", "--format"]),
        ("explain --format q", &["--callback", "--format"]),
        ("explain --polcy x --format q", &["--polcy", "--callback", "--format"]),
        ("simulate --bogus --timeout x", &["--bogus", "URL", "--timeout"]),
        ("simulate --bogus --timeout x http://127.0.0.1:1", &["--bogus", "--timeout"]),
        ("simulate --bogus http://127.0.0.1:1 --timeout x", &["--bogus", "--timeout"]),
        ("simulate --rate --for x", &["--rate", "URL", "--for"]),
        ("proxy --tls-self-signed --listen --workers 0", &["--listen", "--workers"]),
        ("proxy --tls-cert --workers 0", &["--tls-cert", "--workers"]),
        ("proxy --tls-self-signed --max-held -1MiB -x", &["-x", "--max-held"]),
        ("drain --admin-listen", &["--admin-listen"]),
        ("explain --callback= --format q", &["--callback", "--format"]),
        ("demo --stay --stay extra --stay=no", &["--stay", "extra", "--stay"]),
        ("inject -f --image=", &["--filename", "--image"]),
        ("simulate http://127.0.0.1:1 http://127.0.0.1:2 --rate x", &["http://127.0.0.1:2", "--rate"]),
        ("inject --image= --tls-secret -x", &["--tls-secret", "-x", "--filename", "--image"]),
        ("uninject --dry-run", &["--dry-run", "--filename"]),
    ] {
        let subcommand = line.split(' ').next().expect("a subcommand");
        let ran = folder.run(line).code(2).out("");
        ran.problems_of(flags, &behind(subcommand)).has_no("Usage:").has_no("error:");
    }
}

#[test]
fn what_stands_in_the_place_of_the_subcommand_is_told_too() {
    const NOWHERE: &str = "\nFor the flags and their defaults: callback-guard --help\n";
    let folder = Folder::new();
    for (line, flags, footer) in [
        ("prxy", &["prxy"][..], NOWHERE),
        ("--bogus", &["--bogus"], NOWHERE),
        ("-x --bogus=1 nothing", &["-x", "--bogus", "nothing"], NOWHERE),
        (
            "--workers 0 proxy --tls-self-signed --drain-delay 3",
            &["--workers", "--drain-delay"],
            &behind("proxy"),
        ),
        ("--bogus demo --stay=x", &["--bogus", "--stay"], &behind("demo")),
    ] {
        folder.run(line).code(2).out("").problems_of(flags, footer).has_no("Usage:").has_no("error:");
    }
    folder.run("prxy").err_has("prxy: there is no such subcommand, did you mean proxy?\n");
    folder
        .run("--workers 0 proxy")
        .err_has("--workers: stands before the subcommand, as in proxy --workers\n");
}

#[test]
fn help_is_shown_whatever_else_is_wrong_and_is_a_value_where_it_stands_for_one() {
    let folder = Folder::new();
    let help = folder.run("demo --help").code(0).err("").out;
    folder.run("demo --bogus --help").code(0).err("").out(&help);
    folder.run("demo extra --help --bogus").code(0).err("").out(&help);
    let program = folder.program("proxy --tls-self-signed --log-level=--help");
    program.run().code(2).out("").problems_of(&["--log-level"], &behind("proxy"));
    folder.run("check -- --help").code(1).err_has("--help: cannot be read");
}

#[test]
fn what_is_no_text_is_told_by_its_flag() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = Folder::new();
    let bytes = std::ffi::OsStr::from_bytes(b"a\xff");
    let run = |line| folder.program(line).arg(bytes).run().code(2).out("");
    run("check --format xml").problems_of(&["FILE", "--format"], &behind("check"));
    run("proxy --tls-self-signed --drain-delay 3 --workers")
        .problems_of(&["--workers", "--drain-delay"], &behind("proxy"));
    let set =
        folder.program("proxy --tls-self-signed --drain-delay 3").env("CALLBACK_GUARD_WORKERS", bytes).run();
    set.code(2)
        .problems_of(&["--workers", "--drain-delay"], &behind("proxy"))
        .err_has("--workers: CALLBACK_GUARD_WORKERS is not UTF-8\n");
}

#[test]
fn files_that_cannot_be_used_are_told_beside_flags_that_are_wrong() {
    let folder = Folder::new();
    let line = "proxy --workers 0 --tls-cert /nope --tls-key /n --client-ca /n --basic-auth-file /n";
    let flags = ["--workers", "--tls-cert", "--tls-key", "--client-ca", "--basic-auth-file"];
    folder.run(line).code(2).out("").problems_of(&flags, &behind("proxy"));
    let line = "proxy --workers 0 --tls-wait --tls-cert /nope --tls-key /n";
    folder.run(line).code(2).out("").problems_of(&["--workers"], &behind("proxy"));
    for (line, flags) in [
        // Which of the two is meant is not known.
        ("proxy --tls-self-signed --tls-cert /n --tls-key /n", &["--tls-self-signed"][..]),
        ("proxy --workers 0 --tls-self-signed --client-ca /n", &["--workers", "--client-ca"]),
        ("proxy --workers 0 --tls-self-signed --policy-file /n", &["--workers"]),
        (
            "proxy --workers 0 --tls-self-signed --policy-file /n --require-policy",
            &["--workers", "--policy-file"],
        ),
        (
            "explain --format q --policy /n --override /n --callback /n",
            &["--format", "--policy", "--override", "--callback"],
        ),
        ("explain --format q --callback -", &["--format"]),
        ("simulate http://h --timeout x --body /n --ca /n", &["--timeout", "--body", "--ca"]),
    ] {
        let subcommand = line.split(' ').next().expect("a subcommand");
        folder.run(line).code(2).out("").problems_of(flags, &behind(subcommand));
    }
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
