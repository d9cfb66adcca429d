//! Descriptors: there is room for all that the bounds allow from the start, and running out of them stops nobody.

use tokio::net::TcpStream;

use crate::support::caller::plain;
use crate::support::{App, Call, Caller, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";

/// The number in the line of a file of `/proc` that begins so.
fn number(guard: &Guard, file: &str, line: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/{file}", guard.pid())).expect("a process");
    let rest = text.lines().find_map(|whole| whole.strip_prefix(line)).expect("the line");
    rest.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Places in the kernel's table of a process's open files.
fn places(guard: &Guard) -> u64 {
    number(guard, "status", "FDSize:")
}

fn soft_limit(guard: &Guard) -> u64 {
    number(guard, "limits", "Max open files")
}

#[tokio::test]
async fn the_table_of_open_files_is_as_large_as_the_bounds_from_the_start() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--max-connections", "2000").start();
    // And 1,024 callbacks in flight, the idle connections of a worker, and the rest.
    let at_the_start = places(&guard);
    assert!(at_the_start >= 2000 + 1024 + 100, "{at_the_start}");
    let mut callers = Vec::new();
    for _ in 0..300 {
        callers.push(plain(&guard).await);
    }
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(places(&guard), at_the_start, "a worker waits for the kernel when the table grows");

    let bounds = Guard::with("").flag("--max-connections", "10").flag("--max-in-flight", "10");
    let small = places(&bounds.start());
    assert!(small <= 512, "a place costs memory: {small}");
}

#[tokio::test]
async fn a_low_soft_limit_is_raised_to_what_the_bounds_need_and_no_further() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--max-connections", "500").open_files(64, 4000).start();
    let mut callers = Vec::new();
    for _ in 0..200 {
        callers.push(plain(&guard).await);
    }
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert!(!guard.log_lines().iter().any(|line| line.contains("open files")), "nothing is short");
    let raised = soft_limit(&guard);
    assert!((500 + 1024..2000).contains(&raised), "{raised}");
    let enough = Guard::with("").flag("--max-connections", "500").open_files(3000, 4000).start();
    assert_eq!(soft_limit(&enough), 3000, "a limit that is high enough is left alone");
}

#[tokio::test]
async fn a_hard_limit_under_what_the_bounds_need_is_told_and_stops_nothing() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).open_files(64, 512).start();
    let line = guard.wait_for_log(|line| line.contains("add up to more open files"));
    assert!(line.contains(r#""limit":512"#) && line.contains(r#""wanted":11"#), "{line}");
    assert_eq!((soft_limit(&guard), places(&guard)), (512, 512));
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
}

/// Sets the most descriptors that a running process may have open.
fn limit_descriptors(guard: &Guard, limit: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    let pid = libc::pid_t::try_from(guard.pid()).expect("a pid");
    // SAFETY: the new limit is read during the call alone, and the old one is not asked for.
    let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[tokio::test]
async fn without_descriptors_new_connections_wait_and_those_that_are_there_are_answered() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let mut first = Caller::h2(&guard).await;
    assert_eq!(first.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    limit_descriptors(&guard, 64);
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(plain(&guard).await);
    }
    let line = guard.wait_for_log(|line| line.contains("A connection cannot be accepted; trying again"));
    assert!(line.contains("Too many open files"), "{line}");
    for _ in 0..20 {
        assert_eq!(first.send(&Call::new(COMMAND)).await.told(), UPSTREAM, "the app's connection is kept");
    }
    let waiting = tokio::spawn(TcpStream::connect(guard.listen()));
    let waiting = within("the queue", waiting).await.expect("no panic");
    drop((silent, waiting));
    assert_eq!(Caller::h1(&guard).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(guard.admin("/readyz").0, 200);
    assert_eq!(guard.metric("callback_guard_panics_total"), 0.0);
    let lines = guard.log_lines();
    let told = lines.iter().filter(|line| line.contains("A connection cannot be accepted")).count();
    assert!(told < 200, "{told} lines");
}
