use std::time::{Duration, Instant};

use super::*;
use crate::policy::{Delivery, Order};

const SECOND: Duration = Duration::from_secs(1);
const ONLINE: &str = "callbackAfterUserOnlineCommand";
const OFFLINE: &str = "callbackAfterUserOfflineCommand";

const BOUNDS: Bounds = Bounds { events: 100, bytes: 100_000, in_flight: 16 };

fn after() -> After {
    After {
        delivery: Delivery::Background,
        timeout: SECOND,
        keep_for: 60 * SECOND,
        redeliver: Redeliver::WhenNotTaken,
        order: Order::None,
    }
}

fn unsure() -> After {
    After { redeliver: Redeliver::WhenUnsure, ..after() }
}

fn event(payload: u32, name: &str) -> Event<u32> {
    let command = command::lookup(name).expect("known");
    Event { payload, command, bytes: 10, key: None, after: after() }
}

fn queue(bounds: Bounds) -> Queue<u32> {
    Queue::new(bounds)
}

fn none(_: &'static Command) -> bool {
    false
}

/// Everything that may be sent.
fn start_all(queue: &mut Queue<u32>, now: Instant) -> Vec<Start<u32>> {
    std::iter::from_fn(|| queue.start(now, none)).collect()
}

fn payloads(starts: &[Start<u32>]) -> Vec<u32> {
    starts.iter().map(|start| *start.payload).collect()
}

/// The reason with which an event was given up.
fn loss(ended: Option<Ended<u32>>) -> Option<Loss> {
    ended.expect("it has ended").end.err()
}

#[test]
fn events_are_sent_first_in_first_out_side_by_side_up_to_the_limit() {
    let now = Instant::now();
    let mut queue = queue(Bounds { in_flight: 3, ..BOUNDS });
    for number in 0..5 {
        let name = if number % 2 == 0 { ONLINE } else { OFFLINE };
        queue.accept(event(number, name), now).expect("room");
    }
    let starts = start_all(&mut queue, now);
    assert_eq!(payloads(&starts), [0, 1, 2]);
    assert!(queue.finish(starts[1].number, Attempt::Delivered, now).expect("the end").end.is_ok());
    assert_eq!(payloads(&start_all(&mut queue, now)), [3]);
    assert_eq!((queue.len(), queue.status(now).in_flight), (4, 3));
}

#[test]
fn an_event_that_was_not_taken_keeps_its_turn_and_one_that_the_app_was_too_busy_for_waits() {
    let mut now = Instant::now();
    for (attempt, next) in [(Attempt::NotReached, [0, 1]), (Attempt::Busy, [1, 0])] {
        let mut queue = queue(Bounds { in_flight: 1, ..BOUNDS });
        (0..2).for_each(|number| queue.accept(event(number, ONLINE), now).expect("room"));
        let start = queue.start(now, none).expect("ready");
        assert!(queue.finish(start.number, attempt, now).is_none());
        assert!(queue.start(now, none).is_none(), "the app is not asked again at once");
        for (expected, pause) in next.into_iter().zip([SECOND / 10, 10 * SECOND]) {
            now += pause;
            let start = queue.start(now, none).expect("the pause is over");
            assert_eq!(*start.payload, expected, "{attempt:?}");
            assert_eq!(start.attempt, if expected == 0 { 2 } else { 1 });
            queue.finish(start.number, Attempt::Delivered, now).expect("the end");
        }
        assert!(queue.is_empty());
    }
}

#[test]
fn what_may_have_been_taken_is_given_up_and_repeated_only_when_unsure_events_are() {
    let now = Instant::now();
    for (attempt, reason) in [(Attempt::Unsure, Loss::Unsure), (Attempt::Refused, Loss::Refused)] {
        let mut queue = queue(BOUNDS);
        queue.accept(event(0, ONLINE), now).expect("room");
        queue.accept(Event { after: unsure(), ..event(1, ONLINE) }, now).expect("room");
        let starts = start_all(&mut queue, now);
        assert_eq!(loss(queue.finish(starts[0].number, attempt, now)), Some(reason));
        assert!(queue.finish(starts[1].number, attempt, now).is_none());
        assert!(start_all(&mut queue, now).is_empty());
        let again = start_all(&mut queue, now + SECOND);
        assert_eq!((payloads(&again), again[0].attempt, again[0].age), (vec![1], 2, SECOND));
    }
}

#[test]
fn of_events_with_one_key_the_next_is_sent_once_the_one_before_is_answered_or_given_up() {
    let now = Instant::now();
    let mut queue = queue(BOUNDS);
    for (number, name) in [(0, ONLINE), (1, OFFLINE), (2, ONLINE)] {
        queue.accept(Event { key: Some(7), ..event(number, name) }, now).expect("room");
    }
    queue.accept(Event { key: Some(8), ..event(3, ONLINE) }, now).expect("room");
    queue.accept(event(4, ONLINE), now).expect("room");
    let starts = start_all(&mut queue, now);
    assert_eq!(payloads(&starts), [0, 3, 4]);
    assert!(queue.finish(starts[0].number, Attempt::Busy, now).is_none());
    let later = now + 10 * SECOND;
    let again = start_all(&mut queue, later);
    assert_eq!(payloads(&again), [0], "not answered yet");
    assert_eq!(loss(queue.finish(again[0].number, Attempt::Refused, later)), Some(Loss::Refused));
    let next = start_all(&mut queue, later);
    assert_eq!(payloads(&next), [1], "given up is enough");
    queue.finish(next[0].number, Attempt::Delivered, later).expect("the end");
    assert_eq!(payloads(&start_all(&mut queue, later)), [2]);
}

#[test]
fn an_event_is_kept_for_as_long_as_its_rule_says_also_behind_one_with_its_key() {
    let now = Instant::now();
    let mut queue = queue(BOUNDS);
    let short = After { keep_for: SECOND, ..after() };
    queue.accept(Event { key: Some(1), ..event(0, ONLINE) }, now).expect("room");
    for number in [1, 2] {
        let after = if number == 1 { short } else { after() };
        queue.accept(Event { key: Some(1), after, ..event(number, ONLINE) }, now).expect("room");
    }
    let first = queue.start(now, none).expect("ready");
    assert!(queue.expire(now + SECOND / 2).is_none());
    assert_eq!(queue.wakes(now), Some(now + SECOND));
    let expired = queue.expire(now + SECOND).expect("its time is over");
    assert_eq!((*expired.payload, expired.end, expired.attempts), (1, Err(Loss::Expired), 0));
    assert_eq!(expired.waited, SECOND);
    // The one under way is not given up; its failure is.
    assert!(queue.expire(now + 60 * SECOND).is_some_and(|ended| *ended.payload == 2));
    let ended = queue.finish(first.number, Attempt::NotReached, now + 61 * SECOND);
    assert_eq!(loss(ended), Some(Loss::Expired));
    assert!(queue.is_empty() && queue.wakes(now).is_none());
}

#[test]
fn the_newcomer_is_dropped_when_the_queue_is_full_and_one_command_has_half_of_it() {
    let now = Instant::now();
    for bounds in [Bounds { events: 4, ..BOUNDS }, Bounds { bytes: 40, ..BOUNDS }] {
        let mut queue = queue(bounds);
        let mut taken = Vec::new();
        for (number, name) in
            [(0, ONLINE), (1, ONLINE), (2, ONLINE), (3, OFFLINE), (4, OFFLINE), (5, OFFLINE)]
        {
            match queue.accept(event(number, name), now) {
                Ok(()) => taken.push(number),
                Err(ended) => assert_eq!((*ended.payload, ended.end), (number, Err(Loss::Full))),
            }
        }
        assert_eq!(taken, [0, 1, 3, 4], "{bounds:?}");
        let start = queue.start(now, none).expect("ready");
        assert!(queue.accept(event(6, ONLINE), now).is_err(), "what is being sent counts");
        queue.finish(start.number, Attempt::Delivered, now).expect("the end");
        queue.accept(event(7, ONLINE), now).expect("room again");
    }
    let mut queue = queue(Bounds { events: 1, ..BOUNDS });
    queue.accept(event(0, ONLINE), now).expect("half of one is one");
}

#[test]
fn a_paused_command_waits_and_others_pass_it() {
    let now = Instant::now();
    let mut queue = queue(BOUNDS);
    queue.accept(event(0, ONLINE), now).expect("room");
    queue.accept(event(1, OFFLINE), now).expect("room");
    let paused = |command: &'static Command| command.name == ONLINE;
    let start = queue.start(now, paused).expect("one is not paused");
    assert_eq!(*start.payload, 1);
    assert!(queue.start(now, paused).is_none() && queue.any_paused(paused));
    assert!(!queue.has_no_prospects(now, paused), "one is under way");
    queue.finish(start.number, Attempt::Delivered, now).expect("the end");
    assert!(queue.has_no_prospects(now, paused) && !queue.has_no_prospects(now, none));
    assert_eq!(*queue.start(now, none).expect("the pause is over").payload, 0);
}

#[test]
fn emptying_the_queue_gives_up_what_waits_and_repeats_nothing_that_is_under_way() {
    let now = Instant::now();
    let mut queue = queue(Bounds { in_flight: 2, ..BOUNDS });
    (0..4).for_each(|number| queue.accept(event(number, ONLINE), now).expect("room"));
    let starts = start_all(&mut queue, now);
    queue.drop_all();
    let dropped: Vec<_> = std::iter::from_fn(|| queue.dropped(now)).collect();
    assert_eq!(
        dropped.iter().map(|ended| (*ended.payload, ended.end)).collect::<Vec<_>>(),
        [(2, Err(Loss::Dropped)), (3, Err(Loss::Dropped))]
    );
    queue.accept(event(5, ONLINE), now).expect("it goes on");
    assert!(queue.finish(starts[0].number, Attempt::Delivered, now).expect("the end").end.is_ok());
    assert_eq!(loss(queue.finish(starts[1].number, Attempt::NotReached, now)), Some(Loss::Dropped));
    assert_eq!(payloads(&start_all(&mut queue, now + SECOND)), [5]);
}

#[test]
fn a_closed_queue_has_given_up_all_and_takes_no_more() {
    let now = Instant::now();
    let mut queue = queue(Bounds { in_flight: 1, ..BOUNDS });
    (0..2).for_each(|number| queue.accept(event(number, ONLINE), now).expect("room"));
    let start = queue.start(now, none).expect("ready");
    let lost = queue.close(now);
    assert!(lost.iter().all(|ended| ended.end == Err(Loss::Draining)) && lost.len() == 2);
    assert!(queue.finish(start.number, Attempt::Delivered, now).is_none(), "it was counted");
    let refused = queue.accept(event(2, ONLINE), now).expect_err("it is closed");
    assert_eq!(refused.end, Err(Loss::Draining));
}

#[test]
fn the_end_of_the_process_waits_no_longer_for_an_app_that_is_gone() {
    let begun = Instant::now();
    let mut queue = queue(Bounds { in_flight: 1, ..BOUNDS });
    queue.accept(event(0, ONLINE), begun).expect("room");
    let start = queue.start(begun, none).expect("ready");
    queue.finish(start.number, Attempt::NotReached, begun);
    let ending = begun + SECOND / 100;
    assert!(!queue.has_no_prospects(ending, none), "that was before");
    assert!(queue.start(ending, none).is_none());
    queue.hurry();
    let start = queue.start(ending, none).expect("at once");
    queue.finish(start.number, Attempt::NotReached, ending);
    assert!(queue.has_no_prospects(ending, none));
}
