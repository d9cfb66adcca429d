//! Which connection is ended, and when.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::{advance, timeout};

use super::super::answer::Outgoing;
use super::*;
use crate::wire::AnswerBody;

const TWO_MINUTES: Duration = Duration::from_secs(120);
const SECOND: Duration = Duration::from_secs(1);

/// A worker's connections, and what was counted about them.
struct Crowd {
    connections: Rc<Connections>,
    metrics: ConnectionMetrics,
    begun: Instant,
}

/// A connection and what it is doing.
struct Guest {
    registered: Registered,
    activity: Rc<Activity>,
    answers: RefCell<Vec<Outgoing>>,
}

impl Guest {
    /// An answer of so many bytes waits to be taken.
    fn leaves_unread(&self, bytes: usize) {
        let answer = AnswerBody { bytes: vec![0; bytes].into(), share: None };
        self.answers.borrow_mut().push(Outgoing::new(answer, &self.activity.unwritten));
    }
}

impl Crowd {
    fn new() -> Crowd {
        let begun = tokio::time::Instant::now().into_std();
        Crowd { connections: Connections::new(TWO_MINUTES), metrics: ConnectionMetrics::default(), begun }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.begun + SECOND * u32::try_from(seconds).expect("a short time")
    }

    /// A connection accepted then that never sent a request.
    fn silent(&self, seconds: u64) -> Guest {
        let registered = self.connections.register(self.at(seconds), None);
        let activity = Rc::new(Activity::new(true));
        registered.watch(&activity);
        Guest { registered, activity, answers: RefCell::default() }
    }

    /// A connection accepted at the beginning that is idle since then.
    fn idle_since(&self, seconds: u64) -> Guest {
        let guest = self.silent(0);
        drop(guest.activity.begin());
        guest.activity.quiet_since.set(self.at(seconds));
        guest
    }

    fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> T {
        let (sender, mut answer) = oneshot::channel();
        self.connections.obey(order(sender), &self.metrics);
        answer.try_recv().expect("orders are obeyed at once")
    }

    fn end(&self, candidate: Candidate, reason: ConnectionEnd) -> bool {
        self.ask(|answer| Order::End { candidate, reason, answer })
    }

    /// Ends connections for room until none may be; which they were.
    fn make_room(&self) -> Vec<u64> {
        std::iter::from_fn(|| {
            let candidate = self.ask(Order::LongestIdle)?;
            assert!(self.end(candidate, ConnectionEnd::Limit));
            Some(candidate.id)
        })
        .collect()
    }
}

fn ids(guests: &[&Guest]) -> Vec<u64> {
    guests.iter().map(|guest| guest.registered.id).collect()
}

/// Whether a connection ends by itself, now.
async fn ends(guest: &Guest) -> Option<Farewell> {
    timeout(Duration::ZERO, guest.registered.ended()).await.ok()
}

#[tokio::test(start_paused = true)]
async fn room_is_made_by_those_without_a_request_first_and_then_by_the_longest_idle() {
    let crowd = Crowd::new();
    let (late, early) = (crowd.idle_since(30), crowd.idle_since(5));
    let (first, second) = (crowd.silent(40), crowd.silent(50));
    advance(SECOND * 60).await;
    assert_eq!(crowd.make_room(), ids(&[&first, &second, &early, &late]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_just_come_has_its_chance_before_it_goes() {
    let crowd = Crowd::new();
    let (idle, other) = (crowd.idle_since(5), crowd.idle_since(6));
    let (new, newer) = (crowd.silent(40), crowd.silent(41));
    advance(SECOND * 41 - Duration::from_millis(1)).await;
    let named = crowd.ask(Order::LongestIdle).expect("they are idle");
    assert_eq!(named.id, idle.registered.id);
    advance(Duration::from_millis(1)).await;
    let overdue = crowd.ask(Order::LongestIdle).expect("they are idle");
    assert_eq!(overdue.id, new.registered.id, "the twin: its second is over");
    assert_eq!(crowd.make_room(), ids(&[&new, &idle, &other, &newer]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_had_a_request_within_this_second_goes_after_those_that_have_just_come() {
    let crowd = Crowd::new();
    let (recent, new) = (crowd.idle_since(40), crowd.silent(41));
    advance(SECOND * 41 - Duration::from_millis(1)).await;
    assert_eq!(crowd.ask(Order::LongestIdle).map(|named| named.id), Some(new.registered.id));
    advance(Duration::from_millis(1)).await;
    let named = crowd.ask(Order::LongestIdle).expect("they are idle");
    assert_eq!(named.id, recent.registered.id, "the twin: it is idle for a second");
    let still_recent = crowd.idle_since(41);
    assert_eq!(crowd.make_room(), ids(&[&recent, &new, &still_recent]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_a_request_in_hand_makes_room_for_nobody_and_without_one_it_does() {
    let crowd = Crowd::new();
    let busy = crowd.idle_since(1);
    let request = busy.activity.begin();
    let first = crowd.silent(2);
    let in_hand = first.activity.begin();
    assert!(crowd.make_room().is_empty());
    assert_eq!((ends(&busy).await, ends(&first).await), (None, None));
    drop(in_hand);
    assert_eq!(crowd.make_room(), ids(&[&first]));
    drop(request);
    assert_eq!(crowd.make_room(), ids(&[&busy]));
    assert_eq!(ends(&busy).await, Some(Farewell::Said));
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_a_request_came_after_it_was_named_is_not_ended() {
    for make in [Crowd::silent, Crowd::idle_since] {
        let crowd = Crowd::new();
        let guest = make(&crowd, 1);
        let named = crowd.ask(Order::LongestIdle).expect("it is idle");
        drop(guest.activity.begin());
        // Also where the request has been answered already.
        assert!(!crowd.end(named, ConnectionEnd::Limit));
        assert_eq!(ends(&guest).await, None);
        let named = crowd.ask(Order::LongestIdle).expect("it is idle again");
        assert!(crowd.end(named, ConnectionEnd::Limit), "the twin");
    }
}

#[tokio::test(start_paused = true)]
async fn the_order_holds_beyond_one_look_and_while_connections_are_used() {
    let crowd = Crowd::new();
    let many = u64::try_from(FOUND_AT_ONCE * 3).expect("few");
    let guests: Vec<_> = (0..many).map(|number| crowd.idle_since(many - number)).collect();
    let first = crowd.ask(Order::LongestIdle).expect("all are idle");
    assert_eq!(first.id, guests.last().expect("many").registered.id);
    // Used after the look: it becomes the last.
    let used = &guests[guests.len() - 10];
    used.activity.quiet_since.set(crowd.at(many + 1));
    let mut expected: Vec<_> = guests.iter().rev().map(|guest| guest.registered.id).collect();
    expected.retain(|id| *id != used.registered.id);
    expected.push(used.registered.id);
    assert_eq!(crowd.ask(Order::LongestIdle), Some(first), "whoever asks gets the same answer");
    assert_eq!(crowd.make_room(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_ends_after_two_minutes_and_with_one_it_stays() {
    let crowd = Crowd::new();
    let (silent, served, younger) = (crowd.silent(0), crowd.silent(0), crowd.silent(30));
    drop(served.activity.begin());
    let busy = crowd.silent(0);
    let _request = busy.activity.begin();
    let mut ending = pin!(crowd.connections.end_silent(&crowd.metrics));
    let mut pass = async |time: Duration| {
        let _ = timeout(time, ending.as_mut()).await;
    };
    pass(TWO_MINUTES - Duration::from_millis(2)).await;
    assert_eq!(ends(&silent).await, None);
    pass(Duration::from_millis(4)).await;
    assert_eq!(ends(&silent).await, Some(Farewell::Said));
    assert_eq!(ends(&younger).await, None);
    pass(SECOND * 30).await;
    assert_eq!(ends(&younger).await, Some(Farewell::Said));
    // One that comes when there was none left is waited for too.
    drop((silent, younger));
    pass(SECOND * 600).await;
    let late = crowd.silent(700);
    advance(SECOND).await;
    pass(SECOND * 300).await;
    assert_eq!(ends(&late).await, Some(Farewell::Said));
    assert_eq!((ends(&served).await, ends(&busy).await), (None, None), "the twins");
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_as_soon_as_its_connection_is_to_end() {
    let crowd = Crowd::new();
    let places = Arc::new(Semaphore::new(1));
    let permit = Arc::clone(&places).try_acquire_owned().expect("a place");
    let registered = crowd.connections.register(crowd.at(0), Some(permit));
    assert_eq!(places.available_permits(), 0);
    assert_eq!(crowd.make_room(), [registered.id]);
    assert_eq!(places.available_permits(), 1, "though it may say good-bye for half a second");
}

#[tokio::test(start_paused = true)]
async fn only_so_many_say_goodbye_at_once_and_those_with_a_request_in_hand_always() {
    let crowd = Crowd::new();
    let guests: Vec<_> = (0..FAREWELLS as u64 + 2).map(|at| crowd.silent(at)).collect();
    let busy = crowd.idle_since(0);
    let _request = busy.activity.begin();
    assert_eq!(crowd.make_room().len(), FAREWELLS + 2);
    let mut said = 0;
    for guest in &guests {
        said += usize::from(ends(guest).await.expect("it is to end") == Farewell::Said);
    }
    assert_eq!(said, FAREWELLS);
    let heaviest = crowd.ask(Order::Heaviest).candidates;
    assert!(crowd.end(heaviest[0], ConnectionEnd::Memory));
    assert_eq!(ends(&busy).await, Some(Farewell::Said));
    // Those that have gone leave their places.
    drop(guests);
    let next = crowd.silent(90);
    assert_eq!(crowd.make_room(), ids(&[&next]));
    assert_eq!(ends(&next).await, Some(Farewell::Said));
}

#[tokio::test(start_paused = true)]
async fn for_memory_the_most_unread_goes_first_then_the_longest_idle_then_any() {
    let crowd = Crowd::new();
    let (light, heavy, idle, busy) =
        (crowd.idle_since(1), crowd.idle_since(9), crowd.idle_since(3), crowd.idle_since(0));
    let silent = crowd.silent(5);
    light.leaves_unread(10);
    heavy.leaves_unread(1 << 20);
    let _request = busy.activity.begin();
    advance(SECOND * 60).await;
    let Heaviest { leaving, candidates } = crowd.ask(Order::Heaviest);
    let found: Vec<_> = candidates.iter().map(|candidate| candidate.id).collect();
    assert_eq!((leaving, found), (0, ids(&[&heavy, &light, &silent, &idle, &busy])));
    // What is being ended is counted until it has gone, and not named again.
    assert!(crowd.end(candidates[0], ConnectionEnd::Memory));
    let Heaviest { leaving, candidates } = crowd.ask(Order::Heaviest);
    assert_eq!((leaving, candidates.len()), ((1 << 20) + CONNECTION_BYTES, 4));
    drop(heavy);
    assert_eq!(crowd.ask(Order::Heaviest).leaving, 0);
}

#[tokio::test(start_paused = true)]
async fn larger_bodies_of_callbacks_in_hand_count_until_they_are_answered_or_dropped() {
    let crowd = Crowd::new();
    let (light, heavy) = (crowd.idle_since(1), crowd.idle_since(2));
    light.leaves_unread(100 << 10);
    let (one, other) = (heavy.activity.begin(), heavy.activity.begin());
    let first = || crowd.ask(Order::Heaviest).candidates[0];
    assert_eq!(first().id, light.registered.id, "the twin: small bodies");
    one.keeps(3 << 10);
    one.keeps(60 << 10);
    other.keeps(60 << 10);
    assert_eq!((first().id, first().unread), (heavy.registered.id, 120 << 10));
    other.keeps(0);
    assert_eq!(first().id, light.registered.id, "it was too large, and dropped");
    other.keeps(50 << 10);
    drop(one);
    drop(other);
    assert_eq!(heavy.activity.kept_bytes(), 0);
}

/// Obeys the orders of several workers while something is asked of them.
async fn obeyed<T>(asked: impl Future<Output = T>, crowds: &[(&Crowd, RefCell<super::super::Inbox>)]) -> T {
    let serve = async {
        loop {
            for (crowd, inbox) in crowds {
                while let Ok(order) = inbox.borrow_mut().orders.try_recv() {
                    crowd.connections.obey(order, &crowd.metrics);
                }
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = asked => answer,
        () = serve => unreachable!("it serves for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_workers_the_connection_is_the_same_as_of_one() {
    let (one, two) = (Crowd::new(), Crowd::new());
    let (ways, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| super::super::worker()).unzip();
    let workers = super::super::Workers::new(ways);
    let inboxes: Vec<_> = [&one, &two].into_iter().zip(inboxes.into_iter().map(RefCell::new)).collect();
    let (older, longest, newer) = (one.idle_since(7), two.idle_since(3), one.idle_since(9));
    for expected in [&longest, &older, &newer] {
        let found = obeyed(workers.longest_idle(), &inboxes).await.expect("one is idle");
        assert_eq!(found.candidate.idle_since, expected.activity.quiet_since.get());
        assert!(obeyed(found.end(ConnectionEnd::Limit), &inboxes).await);
        assert!(ends(expected).await.is_some());
    }
    assert!(obeyed(workers.longest_idle(), &inboxes).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn as_many_are_ended_as_pin_what_is_too_much_and_no_more() {
    let (one, two) = (Crowd::new(), Crowd::new());
    let (ways, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| super::super::worker()).unzip();
    let workers = super::super::Workers::new(ways);
    let inboxes: Vec<_> = [&one, &two].into_iter().zip(inboxes.into_iter().map(RefCell::new)).collect();
    let guests: Vec<_> = (0..6).map(|at| [&one, &two][at % 2].idle_since(at as u64)).collect();
    for (guest, unread) in guests.iter().zip([0, 3 << 20, 1 << 20, 2 << 20, 0, 0]) {
        guest.leaves_unread(unread);
    }
    let (count, estimate) = obeyed(workers.shed(5 << 20), &inboxes).await;
    assert_eq!((count, estimate), (2, (5 << 20) + 2 * CONNECTION_BYTES as u64));
    for (at, ended) in [false, true, false, true, false, false].into_iter().enumerate() {
        assert_eq!(ends(&guests[at]).await.is_some(), ended, "{at}");
    }
    // They are still there: what they pin is as good as given back.
    assert_eq!(obeyed(workers.shed(5 << 20), &inboxes).await, (0, 0));
    let all = obeyed(workers.shed(1 << 30), &inboxes).await;
    assert_eq!(all.0, 4, "the twin");
    assert_eq!(obeyed(workers.shed(1 << 30), &inboxes).await, (0, 0), "there is none left");
}
