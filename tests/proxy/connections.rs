//! How many connections there may be, who makes room for whom, and what happens when the container's memory is short.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use crate::support::caller::{plain, try_secure};
use crate::support::{Act, App, Authority, Call, Caller, Folder, Gate, Guard, guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const UPSTREAM: &str = "allow upstream -";
const ENDED: &str = "callback_guard_connections_ended_total";
const OPEN: &str = "callback_guard_connections";

/// A whole ClientHello, as OpenIM's client begins with.
async fn client_hello() -> Vec<u8> {
    let config = Authority::common().trusted_by(&["h2"], None);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let (mut near, far) = tokio::io::duplex(64 << 10);
    let connecting = tokio::spawn(TlsConnector::from(config).connect(name, far));
    let mut header = [0; 5];
    within("a record", near.read_exact(&mut header)).await.expect("a ClientHello");
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    within("its rest", near.read_exact(&mut hello)).await.expect("a ClientHello");
    connecting.abort();
    [header.to_vec(), hello].concat()
}

#[tokio::test]
async fn silent_sockets_and_handshakes_that_stall_keep_no_caller_out() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--handshake-timeout", "1h").start();
    let hello = client_hello().await;
    let mut crowd = Vec::new();
    for number in 0..30 {
        let mut socket = plain(&guard).await;
        // Nothing, half a ClientHello, and a whole one whose answer is awaited in vain.
        let part = [0, hello.len() / 2, hello.len()][number % 3];
        socket.write_all(&hello[..part]).await.expect("room for a record");
        crowd.push(socket);
    }
    guard.wait_for_metric(OPEN, 30.0).await;
    for mut caller in [Caller::h1(&guard).await, Caller::h2(&guard).await] {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    }
    assert_eq!(guard.count("callback_guard_tls_handshake_failures_total", &[]), 0.0);
    drop(crowd);
}

#[tokio::test]
async fn a_handshake_that_goes_on_and_on_is_garbage_and_takes_no_more_memory() {
    let guard = Guard::with("").flag("--handshake-timeout", "1h").start();
    // A ClientHello of 60,000 bytes, as its header says, in records of 16,000.
    let mut first = vec![1, 0, 0xea, 0x60];
    first.resize(16_000, 0);
    let mut socket = plain(&guard).await;
    for part in [first, vec![0; 16_000], vec![0; 16_000]] {
        let length = u16::try_from(part.len()).expect("a record").to_be_bytes();
        let _ = socket.write_all(&[&[0x16, 3, 1], &length[..], &part].concat()).await;
    }
    let failures = "callback_guard_tls_handshake_failures_total{reason=\"garbage\"}";
    guard.wait_for_metric(failures, 1.0).await;
}

#[tokio::test]
async fn at_the_limit_idle_connections_make_room_and_a_busy_one_stays() {
    let gate = Gate::closed();
    let waiting = gate.clone();
    let app = App::start(move |asked| match asked.values("Patient")[..] {
        [] => vec![Act::json(crate::support::app::ALLOW)],
        _ => vec![Act::Wait(waiting.clone()), Act::json(crate::support::app::ALLOW)],
    });
    let policy = "defaults: {callerTimeout: 15s, timeout: 14s}";
    let guard = Guard::with(policy).upstream(&app).flag("--max-connections", "8").start();
    // The one with a request in hand is the first of all.
    let mut busy = Caller::h1(&guard).await;
    let patient = Call::new(COMMAND).header("Patient", "yes");
    let under_way = tokio::spawn(busy.begin(&patient));
    app.wait_for_asked(1).await;
    let mut idle = Vec::new();
    for _ in 0..7 {
        let mut caller = Caller::h2(&guard).await;
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
        idle.push(caller);
    }
    guard.wait_for_metric(OPEN, 8.0).await;
    assert_eq!(guard.count(ENDED, &[]), 0.0);
    let mut late = Vec::new();
    for (number, ended) in [1.0, 2.0, 3.0, 4.0].into_iter().enumerate() {
        let mut caller = Caller::h1(&guard).await;
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM, "{number}");
        assert_eq!(guard.count(ENDED, &[("reason", "limit")]), ended);
        late.push(caller);
    }
    let kept = idle.split_off(4);
    for mut caller in idle {
        caller.told_to_go().await;
    }
    for mut caller in kept {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), UPSTREAM, "the twins");
    }
    guard.wait_for_log(|line| line.contains("--max-connections is reached"));
    gate.open();
    let answer = within("an answer", under_way).await.expect("no panic").expect("an answer");
    assert_eq!(answer.told(), UPSTREAM);
}

#[tokio::test]
async fn at_the_limit_silent_sockets_make_room_before_callers_do() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--max-connections", "4");
    let guard = guard.flag("--handshake-timeout", "1h").start();
    let mut kept = Caller::h1(&guard).await;
    assert_eq!(kept.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    let mut crowd = Vec::new();
    for _ in 0..12 {
        crowd.push(plain(&guard).await);
    }
    let mut fresh = Caller::h1(&guard).await;
    assert_eq!(fresh.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(kept.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    // One kept, one fresh, two silent. A caller had its chance while they made room for one another.
    guard.wait_for_metric("callback_guard_connections_ended_total{reason=\"limit\"}", 10.0).await;
}

/// Whether this machine lets a test mount a folder. If not, the test is left out, and fails in CI.
fn can_mount() -> bool {
    let Err(error) = guard::may_mount(Folder::new().path()) else { return true };
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "no mount namespace: short memory is not tested ({error})");
    eprintln!("skipped: no mount namespace ({error})");
    false
}

/// A container of 100 MiB that uses so much, as both versions of cgroup have it.
fn uses(folder: &Folder, mib: u64) {
    for (name, mib) in [
        ("memory.max", 100),
        ("memory/memory.limit_in_bytes", 100),
        ("memory.current", mib),
        ("memory/memory.usage_in_bytes", mib),
    ] {
        folder.write(name, format!("{}\n", mib << 20));
    }
}

#[tokio::test]
async fn while_memory_is_short_nothing_is_accepted_and_at_90_percent_connections_are_ended() {
    if !can_mount() {
        return;
    }
    let app = App::allowing();
    let container = Folder::new();
    std::fs::create_dir(container.path().join("memory")).expect("a folder");
    uses(&container, 50);
    let guard = Guard::with("").upstream(&app).cgroup(container.path()).start();
    let mut kept = Caller::h2(&guard).await;
    assert_eq!(kept.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    assert_eq!(guard.metric("callback_guard_accept_pauses_total"), 0.0);
    uses(&container, 85);
    guard.wait_for_metric("callback_guard_accept_pauses_total", 1.0).await;
    guard.wait_for_log(|line| line.contains("no connection is accepted until less than 75 %"));
    let config = Authority::common().trusted_by(&["http/1.1"], None);
    let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
    let stream = plain(&guard).await;
    let second = tokio::spawn(async move { TlsConnector::from(config).connect(name, stream).await });
    assert_eq!(kept.send(&Call::new(COMMAND)).await.told(), UPSTREAM, "who is there is served");
    assert_eq!(guard.admin("/readyz").0, 200);
    assert!(!second.is_finished());
    uses(&container, 95);
    guard.wait_for_metric("callback_guard_connections_ended_total{reason=\"memory\"}", 1.0).await;
    kept.told_to_go().await;
    assert!(!second.is_finished());
    uses(&container, 60);
    let stream = within("room", second).await.expect("no panic").expect("a handshake");
    assert_eq!(Caller::over(stream).await.send(&Call::new(COMMAND)).await.told(), UPSTREAM);
    let config = Authority::common().trusted_by(&["h2"], None);
    assert!(try_secure(&guard, config).await.is_ok());
    assert_eq!(guard.metric("callback_guard_accept_pauses_total"), 1.0);
}
