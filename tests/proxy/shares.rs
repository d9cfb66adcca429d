//! What one caller or one command may take of the process leaves something for the others.

use std::net::Ipv4Addr;

use tokio::task::JoinSet;

use crate::support::app::ALLOW;
use crate::support::caller::secure;
use crate::support::{Act, Answer, App, Authority, Call, Caller, Gate, Guard, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const OTHER_COMMAND: &str = "callbackBeforeAddFriendCommand";
const UPSTREAM: &str = "allow upstream -";
const OVERLOADED: &str = "allow fallback overloaded";

/// Nothing but the end of the test ends a callback that waits.
const PATIENT: &str = "defaults: {callerTimeout: 15s, timeout: 14s}";

const OTHER_CALLER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// An app that lets callbacks with the header `Slow` wait for the gate.
fn sometimes_slow(gate: &Gate) -> App {
    let slow = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    App::start(move |asked| match asked.values("Slow")[..] {
        [] => vec![Act::json(ALLOW)],
        _ => slow.clone(),
    })
}

fn slow(command: &str) -> Call {
    Call::new(command).header("Slow", "yes")
}

/// Callbacks that are under way.
#[derive(Default)]
struct UnderWay(JoinSet<hyper::Result<Answer>>);

impl UnderWay {
    fn begin(&mut self, caller: &mut Caller, call: &Call, count: usize) {
        for _ in 0..count {
            self.0.spawn(caller.begin(call));
        }
    }

    /// What came of them, as often as it did, sorted.
    async fn told(&mut self) -> Vec<(String, usize)> {
        let mut told = std::collections::BTreeMap::new();
        while let Some(answered) = within("an answer", self.0.join_next()).await {
            *told.entry(answered.expect("no panic").expect("an answer").told()).or_insert(0) += 1;
        }
        told.into_iter().collect()
    }
}

fn told(overloaded: usize, upstream: usize) -> Vec<(String, usize)> {
    [(OVERLOADED.to_owned(), overloaded), (UPSTREAM.to_owned(), upstream)].into()
}

async fn are_the_apps(caller: &mut Caller, command: &str) {
    for _ in 0..10 {
        assert_eq!(caller.send(&Call::new(command)).await.told(), UPSTREAM, "{command}");
    }
}

/// How often a bound was met.
async fn met(guard: &Guard, reason: &str, count: usize) {
    guard
        .wait_for_metric(&format!("callback_guard_overloads_total{{reason=\"{reason}\"}}"), count as f64)
        .await;
}

#[tokio::test]
async fn a_caller_at_its_share_of_places_leaves_some_to_another_address() {
    let gate = Gate::closed();
    let app = sometimes_slow(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-in-flight", "50").start();
    let mut greedy = Caller::h2(&guard).await;
    let mut under_way = UnderWay::default();
    under_way.begin(&mut greedy, &slow(COMMAND), 50);
    met(&guard, "in-flight-caller-command", 18).await;
    app.wait_for_asked(32).await;
    // A second connection is the same caller.
    let again = Call::new(COMMAND);
    assert_eq!(Caller::h1(&guard).await.send(&again).await.told(), OVERLOADED);
    let detail = "this caller's callbacks of this command in flight are at their share of --max-in-flight";
    assert_eq!(guard.decision(&again.operation_id())["detail"], detail);
    let mut other = Caller::h2_from(&guard, OTHER_CALLER).await;
    are_the_apps(&mut other, COMMAND).await;
    are_the_apps(&mut other, OTHER_COMMAND).await;
    gate.open();
    assert_eq!(under_way.told().await, told(18, 32));
    are_the_apps(&mut greedy, COMMAND).await;
}

#[tokio::test]
async fn a_command_that_the_app_is_slow_at_leaves_places_to_the_others_of_its_caller() {
    let gate = Gate::closed();
    let app = sometimes_slow(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-in-flight", "50").start();
    let mut caller = Caller::h2(&guard).await;
    let mut under_way = UnderWay::default();
    under_way.begin(&mut caller, &slow(COMMAND), 40);
    met(&guard, "in-flight-caller-command", 8).await;
    app.wait_for_asked(32).await;
    are_the_apps(&mut caller, OTHER_COMMAND).await;
    are_the_apps(&mut caller, "callbackOfTomorrow").await;
    assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), OVERLOADED, "the twin");
    gate.open();
    assert_eq!(under_way.told().await, told(8, 32));
}

#[tokio::test]
async fn a_command_of_many_callers_leaves_places_to_the_other_commands() {
    let gate = Gate::closed();
    let app = sometimes_slow(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-in-flight", "50").start();
    let mut under_way = UnderWay::default();
    let mut callers = Vec::new();
    for number in 1..=10 {
        let mut caller = Caller::h2_from(&guard, Ipv4Addr::new(127, 0, 1, number)).await;
        under_way.begin(&mut caller, &slow(COMMAND), 5);
        callers.push(caller);
    }
    // 5 m + 4 M <= 16 (50 - M), for M of the command and m of the caller: the 39th is one of a caller with three others.
    met(&guard, "in-flight-command", 11).await;
    app.wait_for_asked(39).await;
    for caller in &mut callers {
        are_the_apps(caller, OTHER_COMMAND).await;
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), OVERLOADED, "the twin");
    }
    gate.open();
    assert_eq!(under_way.told().await, told(11, 39));
}

#[tokio::test]
async fn a_caller_at_its_share_of_memory_leaves_some_to_another_address() {
    let gate = Gate::closed();
    let app = sometimes_slow(&gate);
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-held", "1MiB").start();
    let large = |call: Call| call.with("content", "x".repeat(100 << 10));
    let mut greedy = Caller::h2(&guard).await;
    let mut under_way = UnderWay::default();
    under_way.begin(&mut greedy, &large(slow(COMMAND)), 5);
    app.wait_for_asked(5).await;
    let again = large(Call::new(COMMAND));
    assert_eq!(Caller::h1(&guard).await.send(&again).await.told(), OVERLOADED);
    let detail =
        "the bytes held for this caller's callbacks of this command are at their share of --max-held";
    assert_eq!(guard.decision(&again.operation_id())["detail"], detail);
    met(&guard, "held-caller-command", 1).await;
    let mut other = Caller::h2_from(&guard, OTHER_CALLER).await;
    for command in [COMMAND, OTHER_COMMAND] {
        assert_eq!(other.send(&large(Call::new(command))).await.told(), UPSTREAM, "{command}");
    }
    gate.open();
    assert_eq!(under_way.told().await, [(UPSTREAM.to_owned(), 5)]);
    assert_eq!(greedy.send(&large(Call::new(COMMAND))).await.told(), UPSTREAM);
    drop((greedy, other));
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
}

#[tokio::test]
async fn bodies_that_do_not_end_leave_memory_to_another_address() {
    let app = App::allowing();
    let guard = Guard::with(PATIENT).upstream(&app).flag("--max-held", "1MiB").start();
    let mut unfinished = Vec::new();
    for _ in 0..10 {
        let mut caller = crate::support::caller::Raw::over(crate::support::caller::raw(&guard).await);
        let head = format!(
            "POST /cb/{COMMAND} HTTP/1.1\r\nHost: a\r\noperationID: 1\r\nContent-Length: 200000\r\n\r\n"
        );
        caller.send(head + &"x".repeat(100_000)).await;
        unfinished.push(caller);
    }
    guard.wait_for_metric("callback_guard_in_flight", 10.0).await;
    met(&guard, "held-caller-command", 5).await;
    let call = |command| Call::new(command).with("content", "x".repeat(50 << 10));
    let mut other = Caller::h2_from(&guard, OTHER_CALLER).await;
    for command in [COMMAND, OTHER_COMMAND] {
        assert_eq!(other.send(&call(command)).await.told(), UPSTREAM, "{command}");
    }
}

#[tokio::test]
async fn callers_with_certificates_are_told_apart_at_one_address() {
    let gate = Gate::closed();
    let app = sometimes_slow(&gate);
    let authority = Authority::new("callers");
    let guard = Guard::with(PATIENT).file("--client-ca", "callers.pem", authority.pem());
    let guard = guard.upstream(&app).flag("--max-in-flight", "50").start();
    let (first, second) = (authority.client(), authority.client());
    let connect = async |own| {
        Caller::over(secure(&guard, Authority::common().trusted_by(&["h2"], Some(own))).await).await
    };
    let mut greedy = connect(&first).await;
    let mut under_way = UnderWay::default();
    under_way.begin(&mut greedy, &slow(COMMAND), 50);
    met(&guard, "in-flight-caller-command", 18).await;
    assert_eq!(connect(&first).await.send(&Call::new(COMMAND)).await.told(), OVERLOADED);
    are_the_apps(&mut connect(&second).await, COMMAND).await;
    gate.open();
    assert_eq!(under_way.told().await, told(18, 32));
}
