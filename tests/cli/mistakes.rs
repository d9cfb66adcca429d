//! A command line with mistakes: all of them in one run, each beginning with its flag, exit code 2.

use crate::program::Folder;

/// What follows the mistakes.
const BEHIND: &str = "\nFor the flags and their defaults: callback-guard SUBCOMMAND --help\n";

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
    ran.problems_of(&flags, BEHIND)
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
    let set = set.code(2).out("").problems_of(&["--workers", "--drain-delay", "--log-format"], BEHIND);
    set.err(&typed.err);
}

#[test]
fn the_flag_wins_over_the_environment() {
    let folder = Folder::new();
    let program = folder.program("proxy --tls-self-signed --workers 2 --log-level loud");
    let ran = program.env("CALLBACK_GUARD_WORKERS", "0").env("CALLBACK_GUARD_LOG_LEVEL", "info").run();
    ran.code(2).problems_of(&["--log-level"], BEHIND);
}

#[test]
fn other_subcommands_begin_their_mistakes_with_the_flag_too() {
    let folder = Folder::new();
    folder.run("drain --admin-listen 9090").code(2).out("").problems_of(&["--admin-listen"], BEHIND);
    folder.run("check --format xml x.yaml").code(2).out("").problems_of(&["--format"], BEHIND);
    folder
        .run("demo --stya")
        .code(2)
        .out("")
        .problems_of(&["--stya"], BEHIND)
        .err_has("did you mean --stay?");
    folder.run("check").code(2).out("").err_has("<FILE>...");
}
