//! `demo`: the first thing anyone sees.

use crate::program::{Folder, Ran};

fn is_plain(ran: &Ran) {
    assert!(!ran.out.contains('\x1b'), "colours on a pipe\n{ran}");
    assert!(ran.out.lines().all(|line| line.chars().count() < 80), "wider than a terminal\n{ran}");
}

#[test]
fn the_tour_comes_to_its_end_keeps_its_claims_and_leaves_nothing_behind() {
    let folder = Folder::new();
    // What is set for the proxy of this machine is not for the demo's.
    let program = folder.program("demo").env("TERM", "xterm").env("CALLBACK_GUARD_WORKERS", "0");
    let ran = program.run().code(0).err("");
    is_plain(&ran);
    let ran = ran.out_has("\nSummary\n").out_has("\nNext\n").out_has("proxy --help");
    let numbers: Vec<_> = (1..=7).map(|number| format!("\n{number}. ")).collect();
    assert!(numbers.iter().all(|scene| ran.out.contains(scene)), "a scene is missing\n{ran}");
    let lost = ran.out.lines().find(|line| line.contains("operations lost")).unwrap_or_default();
    assert!(lost.contains(" of ") && lost.split_whitespace().nth(5) == Some("0"), "{lost:?}\n{ran}");
    assert_eq!(folder.names(), Vec::<String>::new(), "{ran}");
}

#[test]
fn a_folder_that_cannot_be_made_is_told_in_a_sentence() {
    let folder = Folder::new();
    let ran = folder.program("demo").env("TMPDIR", "/nonexistent").run().code(1).out("");
    let ran = ran.err_has("the demo did not come to its end: no temporary folder can be made: ");
    assert_eq!(ran.err.lines().count(), 1, "{ran}");
}

#[test]
fn kept_running_it_says_how_to_try_it_and_ends_on_a_signal_with_all_it_started() {
    let folder = Folder::new();
    let mut running = folder.program("demo --stay").start();
    let mut said = Vec::new();
    while let Some(line) = running.line() {
        let last = line.contains("What the guard decides");
        said.push(line);
        if last {
            break;
        }
    }
    let said = said.join("\n");
    for part in
        ["curl -i --cacert ", "/behave/slow", "policy.yaml", "https://localhost:", "http://127.0.0.1:"]
    {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    let status = said.lines().find_map(|line| line.trim().strip_prefix("its status")).unwrap_or_default();
    let admin = status.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
    std::net::TcpStream::connect(&admin).expect("the status page is served");
    let killed = std::process::Command::new("kill").args(["-INT", &running.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    running.wait().code(0).err("").out_has("nothing is left behind");
    assert!(std::net::TcpStream::connect(&admin).is_err(), "the guard still listens at {admin}");
    assert_eq!(folder.names(), Vec::<String>::new());
}
