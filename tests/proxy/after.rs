//! Events of after-commands: OpenIM has its answer at once, and the app gets each event when it takes it, or a line says why not.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::support::app::ALLOW;
use crate::support::{Act, App, Asked, Call, Caller, Gate, Guard};

const BEFORE: &str = "callbackBeforeSendSingleMsgCommand";
const QUIT: &str = "callbackAfterQuitGroupCommand";
const ONLINE: &str = "callbackAfterUserOnlineCommand";
const OFFLINE: &str = "callbackAfterUserOfflineCommand";
const REVOKE: &str = "callbackBeforeAfterMsgCommand";
const QUEUED: &str = "allow queued -";
const UPSTREAM: &str = "allow upstream -";

/// An app that answers events when the gate is open, and everything else at once.
fn slow_on_events(gate: &Gate) -> App {
    let acts = vec![Act::Wait(gate.clone()), Act::json(ALLOW)];
    App::start(move |asked: &Asked| match asked.values("Callback-Guard-Delivery")[..] {
        [] => vec![Act::json(ALLOW)],
        _ => acts.clone(),
    })
}

/// An app that answers its first requests in these ways, and allows the others.
fn first(ways: &'static [&'static str]) -> App {
    App::start(move |asked: &Asked| match ways.get(asked.number) {
        None => vec![Act::json(ALLOW)],
        Some(&"reset") => vec![Act::Reset],
        Some(&"silence") => vec![Act::Silence],
        Some(&"drip") => vec![Act::send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), Act::Silence],
        Some(status) => vec![Act::answer(status, &[], "<html>")],
    })
}

/// An address at which nobody listens.
fn vacant() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}

fn at(address: SocketAddr, policy: &str) -> crate::support::guard::Builder {
    Guard::with(policy).flag("--upstream", format!("http://{address}"))
}

/// Sends a callback over a connection of its own; what its caller is told.
async fn told(guard: &Guard, call: &Call) -> String {
    Caller::h1(guard).await.send(call).await.told()
}

/// The last line about an event. Blocks the test's thread.
fn line(guard: &Guard, call: &Call) -> Value {
    let quoted = format!("\"operationID\":\"{}\"", call.operation_id());
    let line = guard.wait_for_log(|line| line.contains("\"delivery\":\"") && line.contains(&quoted));
    serde_json::from_str(&line).expect("a line is JSON")
}

/// What it says: delivered or lost, why, and after how many attempts.
fn ending(line: &Value) -> (String, String, u64) {
    let text = |key: &str| line[key].as_str().expect("a text").to_owned();
    (text("delivery"), text("reason"), line["attempts"].as_u64().expect("a number"))
}

fn is(delivery: &str, reason: &str, attempts: u64) -> (String, String, u64) {
    (delivery.to_owned(), reason.to_owned(), attempts)
}

fn lost(guard: &Guard, reason: &str) -> f64 {
    guard.metric(&format!("callback_guard_after_lost_total{{reason=\"{reason}\"}}"))
}

/// That every accepted event is delivered, lost or in the queue.
fn adds_up(guard: &Guard) {
    let text = guard.metrics();
    let sum = |name: &str| -> f64 {
        let values = text.lines().filter(|line| line.starts_with(name));
        values.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
    };
    let [accepted, delivered, lost, queued] = [
        "callback_guard_after_accepted_total",
        "callback_guard_after_delivered_total",
        "callback_guard_after_lost_total",
        "callback_guard_after_queue_events",
    ]
    .map(sum);
    assert_eq!(accepted, delivered + lost + queued, "{text}");
}

#[tokio::test]
async fn openim_has_its_answer_before_the_app_has_answered_and_the_app_gets_the_event() {
    let gate = Gate::closed();
    let app = slow_on_events(&gate);
    let guard = Guard::with("").upstream(&app).start();
    let call = Call::new(QUIT).header("Callback-Guard-Delivery", "forged");
    let mut caller = Caller::h2(&guard).await;
    let answer = caller.send(&call).await;
    assert_eq!((answer.told().as_str(), answer.text().as_str()), (QUEUED, ALLOW));
    app.wait_for_asked(1).await;
    assert_eq!(guard.metric("callback_guard_after_queue_events"), 1.0);
    adds_up(&guard);
    gate.open();
    let line = line(&guard, &call);
    assert_eq!(ending(&line), is("delivered", "", 1));
    assert_eq!((&line["status"], &line["level"]), (&200.into(), &"INFO".into()));
    let asked = &app.asked()[0];
    assert_eq!(asked.body, call.body);
    assert_eq!(asked.values("Callback-Guard-Delivery"), [line["deliveryID"].as_str().expect("a text")]);
    assert_eq!(line["deliveryID"].as_str().map(str::len), Some(32));
    assert_eq!(asked.values("Callback-Guard-Attempt"), ["1"]);
    assert_eq!(asked.values("Callback-Guard-Timeout-Ms"), ["15000"]);
    assert!(asked.values("Callback-Guard-Age-Ms")[0].parse::<u64>().expect("a number") < 15_000);
    guard.wait_for_metric("callback_guard_after_queue_events", 0.0).await;
    let delivered = format!("callback_guard_after_delivered_total{{command=\"{QUIT}\"}}");
    assert_eq!(guard.metric(&delivered), 1.0);
    assert_eq!(guard.metric("callback_guard_after_attempts_total{result=\"delivered\"}"), 1.0);
    assert_eq!(guard.metric("callback_guard_after_wait_seconds_count"), 1.0);
    adds_up(&guard);
    assert!(guard.decisions().is_empty(), "the acceptance is a line of level debug");
}

#[tokio::test]
async fn the_acceptance_is_logged_at_debug() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).flag("--log-level", "debug").start();
    let call = Call::new(QUIT);
    assert_eq!(told(&guard, &call).await, QUEUED);
    let accepted = guard.decision(&call.operation_id());
    assert_eq!((&accepted["origin"], &accepted["level"]), (&"queued".into(), &"DEBUG".into()));
}

#[tokio::test]
async fn only_commands_that_the_table_calls_after_are_queued_and_only_if_the_policy_does_not_say_inline() {
    let app = App::allowing();
    let guard = Guard::with(
        "rules: [{name: in, match: {commands: [callbackAfterUserOnlineCommand]}, after: {delivery: Inline}}]",
    )
    .upstream(&app)
    .start();
    for (command, expected) in [
        (QUIT, QUEUED),
        (REVOKE, QUEUED),
        ("callbackSingleMsgRevokeCommand", QUEUED),
        (BEFORE, UPSTREAM),
        ("callbackAfterSomethingNewCommand", UPSTREAM),
        (ONLINE, UPSTREAM),
    ] {
        assert_eq!(told(&guard, &Call::new(command)).await, expected, "{command}");
    }
    let observing = Guard::with("mode: Observe").upstream(&app).start();
    assert_eq!(told(&observing, &Call::new(QUIT)).await, UPSTREAM);
    let everywhere = Guard::with("defaults: {after: {delivery: Inline}}").upstream(&app).start();
    assert_eq!(told(&everywhere, &Call::new(QUIT)).await, UPSTREAM);
    assert!(
        app.asked()
            .iter()
            .all(|asked| asked.command() != BEFORE || asked.values("Callback-Guard-Delivery").is_empty())
    );
}

#[tokio::test]
async fn a_large_event_is_queued_too() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let call = Call::new(QUIT).with("ex", "x".repeat(200_000));
    assert_eq!(told(&guard, &call).await, QUEUED);
    assert_eq!(ending(&line(&guard, &call)), is("delivered", "", 1));
    assert_eq!(app.asked()[0].body, call.body);
}

#[tokio::test]
async fn an_event_waits_for_an_app_that_is_away_under_the_plan_of_its_acceptance() {
    let address = vacant();
    let guard = at(address, "defaults: {after: {timeout: 7s}}").start();
    let calls: Vec<_> = (0..20).map(|_| Call::new(QUIT)).collect();
    for call in &calls {
        assert_eq!(told(&guard, call).await, QUEUED);
    }
    guard.write("policy.yaml", "defaults: {after: {timeout: 8s, keepFor: 1s}}");
    guard.wait_for_log(|line| line.contains("policy") && line.contains("in force"));
    assert_eq!(guard.metric("callback_guard_after_queue_events"), 20.0);
    guard.wait_for_metric("callback_guard_held_bytes", 0.0).await;
    assert!(guard.metric("callback_guard_after_queue_bytes") > 20.0 * 1_024.0, "of its own");
    assert!(guard.metric("callback_guard_after_attempts_total{result=\"not-reached\"}") >= 1.0);
    let (_, page) = guard.admin("/");
    assert!(page.contains("20 events in the queue") && page.contains("last error"), "{page}");
    let (_, queue) = guard.admin("/after");
    let queue: Value = serde_json::from_str(&queue).expect("JSON");
    assert_eq!((&queue["events"], &queue["commands"][QUIT]), (&20.into(), &20.into()));
    let app = App::start_at(address, |_| vec![Act::json(ALLOW)]);
    app.wait_for_asked(20).await;
    for call in &calls {
        assert_eq!(line(&guard, call)["delivery"], "delivered");
    }
    let asked = app.asked();
    assert!(asked.iter().all(|asked| asked.values("Callback-Guard-Timeout-Ms") == ["7000"]));
    assert_eq!(asked[0].command(), QUIT);
    assert_eq!(asked[0].body, calls[0].body, "the first in is the first out");
    adds_up(&guard);
}

#[tokio::test]
async fn an_app_that_was_too_busy_gets_the_event_again_under_its_id() {
    let app = first(&["503 Service Unavailable", "429 Too Many Requests"]);
    let guard = Guard::with("").upstream(&app).start();
    let call = Call::new(QUIT);
    assert_eq!(told(&guard, &call).await, QUEUED);
    assert_eq!(ending(&line(&guard, &call)), is("delivered", "", 3));
    let asked = app.asked();
    let ids: Vec<_> = asked.iter().map(|asked| asked.values("Callback-Guard-Delivery")).collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2]);
    let attempts: Vec<_> = asked.iter().map(|asked| asked.values("Callback-Guard-Attempt")[0]).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    assert_eq!(guard.metric("callback_guard_after_attempts_total{result=\"busy\"}"), 2.0);
}

#[tokio::test]
async fn what_the_app_may_have_done_is_not_repeated_unless_the_policy_says_so() {
    let policy = |redeliver: &str| format!("defaults: {{after: {{timeout: 300ms, redeliver: {redeliver}}}}}");
    for (way, reason) in [
        ("500 Internal Server Error", "refused"),
        ("404 Not Found", "refused"),
        ("302 Found", "refused"),
        ("silence", "unsure"),
        ("reset", "unsure"),
    ] {
        let ways: &'static [&'static str] = vec![way].leak();
        let app = first(ways);
        let guard = Guard::with(policy("WhenNotTaken")).upstream(&app).start();
        let call = Call::new(QUIT);
        assert_eq!(told(&guard, &call).await, QUEUED);
        let line_ = line(&guard, &call);
        assert_eq!((ending(&line_), &line_["level"]), (is("lost", reason, 1), &"WARN".into()), "{way}");
        assert_eq!((lost(&guard, reason), app.asked().len()), (1.0, 1), "{way}");
        adds_up(&guard);

        let app = first(ways);
        let guard = Guard::with(policy("WhenUnsure")).upstream(&app).start();
        let call = Call::new(QUIT);
        assert_eq!(told(&guard, &call).await, QUEUED);
        assert_eq!(ending(&line(&guard, &call)), is("delivered", "", 2), "{way}");
        assert_eq!(app.asked().len(), 2, "{way}");
    }
}

#[tokio::test]
async fn any_2xx_is_done_whatever_its_body() {
    for way in ["200 OK", "204 No Content", "299 Whatever", "drip"] {
        let app = first(vec![way].leak());
        let guard = Guard::with("defaults: {after: {timeout: 300ms}}").upstream(&app).start();
        let call = Call::new(QUIT);
        assert_eq!(told(&guard, &call).await, QUEUED);
        assert_eq!(ending(&line(&guard, &call)), is("delivered", "", 1), "{way}");
    }
}

#[tokio::test]
async fn an_event_that_is_not_taken_in_time_is_given_up() {
    let guard = at(vacant(), "defaults: {after: {keepFor: 1s}}").start();
    let call = Call::new(QUIT);
    assert_eq!(told(&guard, &call).await, QUEUED);
    let line = line(&guard, &call);
    assert_eq!((&line["delivery"], &line["reason"]), (&"lost".into(), &"expired".into()));
    assert!(line["detail"].as_str().expect("what the last attempt met").contains("cannot be reached"));
    assert!(line["waited_ms"].as_f64().expect("a number") < 1_000.0, "the last attempt began before");
    guard.wait_for_metric("callback_guard_after_queue_events", 0.0).await;
    adds_up(&guard);
}

#[tokio::test]
async fn a_full_queue_drops_the_newcomer_and_one_command_has_half_of_it() {
    let guard = at(vacant(), "").flag("--after-queue", "4").start();
    let told_of = async |command| told(&guard, &Call::new(command)).await;
    assert_eq!([told_of(QUIT).await, told_of(QUIT).await], [QUEUED; 2]);
    let full = Call::new(QUIT);
    assert_eq!(told(&guard, &full).await, "allow fallback overloaded");
    assert_eq!(ending(&line(&guard, &full)), is("lost", "full", 0));
    assert_eq!([told_of(ONLINE).await, told_of(ONLINE).await], [QUEUED; 2]);
    assert_eq!(told_of(REVOKE).await, "allow fallback overloaded", "of all");
    assert_eq!((lost(&guard, "full"), guard.metric("callback_guard_after_queue_events")), (2.0, 4.0));
    assert_eq!(guard.metric("callback_guard_overloads_total{reason=\"after-queue\"}"), 2.0);
    adds_up(&guard);
    let small = at(vacant(), "").flag("--after-queue-bytes", "64KiB").start();
    let large = Call::new(QUIT).with("ex", "x".repeat(40 << 10));
    assert_eq!(told(&small, &large).await, "allow fallback overloaded");
    assert_eq!(told(&small, &Call::new(QUIT)).await, QUEUED);
}

#[tokio::test]
async fn no_bound_of_callbacks_counts_deliveries_and_none_limits_them() {
    let policy = "rules: [{name: all, maxInFlight: 1, timeout: 300ms, breaker: {failureRate: 0.1, minimumCallbacks: 1, window: 60s, \
                  openFor: 60s}}]";
    let gate = Gate::closed();
    let app = slow_on_events(&gate);
    let guard = Guard::with(policy).upstream(&app).flag("--max-in-flight", "1").start();
    for _ in 0..8 {
        assert_eq!(told(&guard, &Call::new(QUIT)).await, QUEUED);
    }
    app.wait_for_asked(8).await;
    assert_eq!(
        told(&guard, &Call::new(BEFORE)).await,
        UPSTREAM,
        "there is a place, and the breaker is closed"
    );
    gate.open();
    guard.wait_for_metric("callback_guard_after_queue_events", 0.0).await;
    assert_eq!(guard.count("callback_guard_after_delivered_total", &[]), 8.0);
}

#[tokio::test]
async fn deliveries_have_a_limit_of_their_own() {
    let gate = Gate::closed();
    let app = slow_on_events(&gate);
    let guard = Guard::with("").upstream(&app).flag("--after-in-flight", "2").start();
    for _ in 0..5 {
        assert_eq!(told(&guard, &Call::new(QUIT)).await, QUEUED);
    }
    app.wait_for_asked(2).await;
    // One that came behind all of them is answered meanwhile.
    assert_eq!(told(&guard, &Call::new(BEFORE)).await, UPSTREAM);
    assert_eq!(app.asked().len(), 3);
    gate.open();
    app.wait_for_asked(6).await;
}

#[tokio::test]
async fn events_with_one_key_are_sent_one_after_the_other_if_the_policy_says_so() {
    for (order, at_once) in [("Key", 2), ("None", 4)] {
        let gate = Gate::closed();
        let app = slow_on_events(&gate);
        let guard = Guard::with(format!("defaults: {{after: {{order: {order}}}}}")).upstream(&app).start();
        for (command, user) in [(ONLINE, "a"), (OFFLINE, "a"), (ONLINE, "a"), (ONLINE, "b")] {
            assert_eq!(told(&guard, &Call::new(command).with("userID", user)).await, QUEUED);
        }
        app.wait_for_asked(at_once).await;
        assert_eq!(told(&guard, &Call::new(BEFORE)).await, UPSTREAM);
        assert_eq!(app.asked().len(), at_once + 1, "{order}");
        gate.open();
        app.wait_for_asked(5).await;
        if order == "Key" {
            let asked = app.asked();
            let of_a = asked.iter().filter(|asked| asked.body.windows(12).any(|it| it == br#""userID":"a""#));
            assert_eq!(of_a.map(Asked::command).collect::<Vec<_>>(), [ONLINE, OFFLINE, ONLINE]);
        }
    }
}

#[tokio::test]
async fn an_override_pauses_deliveries_and_the_answer_of_a_rule_drops_events() {
    let app = App::allowing();
    let over =
        format!("answer: Deny\ncommands: [{QUIT}]\nuntil: 2999-01-01T00:00:00Z\nreason: maintenance\n");
    let until = std::time::SystemTime::now() + Duration::from_secs(3600);
    let mut stamp = String::new();
    callback_guard::log::timestamp(&mut stamp, until);
    let over = over.replace("2999-01-01T00:00:00Z", &stamp);
    let policy = format!("rules: [{{name: drop, match: {{commands: [{OFFLINE}]}}, answer: Allow}}]");
    let guard = Guard::with(policy).upstream(&app).file("--override-file", "override.yaml", over).start();
    let (paused, dropped, free) = (Call::new(QUIT), Call::new(OFFLINE), Call::new(ONLINE));
    assert_eq!(told(&guard, &paused).await, QUEUED);
    assert_eq!(told(&guard, &dropped).await, "allow rule -");
    assert_eq!(told(&guard, &free).await, QUEUED);
    assert_eq!(ending(&line(&guard, &free)), is("delivered", "", 1));
    assert_eq!(guard.metric("callback_guard_after_queue_events"), 1.0);
    guard.write("override.yaml", "");
    assert_eq!(ending(&line(&guard, &paused)), is("delivered", "", 1));
    assert_eq!(app.asked().iter().map(Asked::command).collect::<Vec<_>>(), [ONLINE, QUIT]);
}

#[tokio::test]
async fn the_queue_is_emptied_by_hand_and_by_no_get() {
    let guard = at(vacant(), "").start();
    let call = Call::new(QUIT);
    assert_eq!(told(&guard, &call).await, QUEUED);
    assert_eq!(guard.admin("/after/drop").0, 405);
    // If it is being sent in this moment, that was its last attempt.
    assert_eq!(guard.admin_post("/after/drop").0, 200);
    let line = line(&guard, &call);
    assert_eq!((&line["delivery"], &line["reason"]), (&"lost".into(), &"dropped".into()));
    guard.wait_for_metric("callback_guard_after_queue_events", 0.0).await;
    adds_up(&guard);
}

#[tokio::test]
async fn the_end_waits_for_events_while_the_app_answers() {
    let app = App::start(|_| vec![Act::Work(Duration::from_millis(50)), Act::json(ALLOW)]);
    let guard =
        Guard::with("").upstream(&app).flag("--after-in-flight", "1").flag("--drain-delay", "0s").start();
    let calls: Vec<_> = (0..20).map(|_| Call::new(QUIT)).collect();
    let mut caller = Caller::h1(&guard).await;
    for call in &calls {
        assert_eq!(caller.send(call).await.told(), QUEUED);
    }
    caller.hang_up();
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    for call in &calls {
        assert_eq!(ending(&line(&guard, call)), is("delivered", "", 1));
    }
    assert_eq!(app.asked().len(), 20);
}

#[tokio::test]
async fn the_end_does_not_wait_for_an_app_that_is_gone_and_each_event_left_is_a_line() {
    let guard = at(vacant(), "").flag("--drain-delay", "0s").start();
    let calls: Vec<_> = (0..5).map(|_| Call::new(QUIT)).collect();
    let mut caller = Caller::h1(&guard).await;
    for call in &calls {
        assert_eq!(caller.send(call).await.told(), QUEUED);
    }
    caller.hang_up();
    guard.wait_for_metric("callback_guard_connections", 0.0).await;
    let begun = std::time::Instant::now();
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "the drain timeout alone is 20 s");
    for call in &calls {
        let line = line(&guard, call);
        assert_eq!((&line["reason"], &line["level"]), (&"draining".into(), &"WARN".into()));
    }
}

#[tokio::test]
async fn an_app_behind_a_gateway_is_waited_for_within_the_drain_timeout() {
    let gate = Gate::closed();
    let app = slow_on_events(&gate);
    // A name, which may be anywhere; it is looked up as what it says.
    let url = app.url().replace("127.0.0.1", "127.1");
    let guard = Guard::with("")
        .flag("--upstream", url)
        .switch("--allow-remote-upstream")
        .flag("--drain-delay", "0s")
        .flag("--drain-timeout", "200ms")
        .start();
    let call = Call::new(QUIT);
    assert_eq!(told(&guard, &call).await, QUEUED);
    app.wait_for_asked(1).await;
    let begun = std::time::Instant::now();
    guard.terminate();
    assert_eq!(guard.wait_exit(), 0);
    assert!(begun.elapsed() < Duration::from_secs(20), "not until the end of the grace period");
    assert_eq!(ending(&line(&guard, &call)), is("lost", "draining", 1));
}
