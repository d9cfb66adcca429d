//! Whatever the app does, every accepted event ends once: it is delivered, or lost for a reason, or it is still in the queue.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use callback_guard::after::{Attempt, Bounds, Ended, Event, Loss, Queue, Start};
use callback_guard::callback::command::{self, Command};
use callback_guard::policy::{After, Delivery, Order, Redeliver};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const COMMANDS: [&str; 3] =
    ["callbackAfterUserOnlineCommand", "callbackAfterUserOfflineCommand", "callbackAfterQuitGroupCommand"];

const BOUNDS: Bounds = Bounds { events: 12, bytes: 400, in_flight: 3 };

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    Accept { command: usize, bytes: usize, key: Option<u64>, unsure: bool, keep_seconds: u64 },
    Send,
    Answer(Index, Attempt),
    Pass(u64),
    Pause(Option<usize>),
    Empty,
}

fn step() -> impl Strategy<Value = Step> {
    let accept = (0..COMMANDS.len(), 1..60_usize, prop::option::of(0..3_u64), any::<bool>(), 1..30_u64);
    prop_oneof![
        6 => accept.prop_map(|(command, bytes, key, unsure, keep_seconds)| Step::Accept {
            command, bytes, key, unsure, keep_seconds
        }),
        5 => Just(Step::Send),
        5 => (any::<Index>(), select(&Attempt::ALL[..])).prop_map(|(which, what)| Step::Answer(which, what)),
        4 => (1..3_000_u64).prop_map(Step::Pass),
        1 => prop::option::of(0..COMMANDS.len()).prop_map(Step::Pause),
        1 => Just(Step::Empty),
    ]
}

fn command(number: usize) -> &'static Command {
    command::lookup(COMMANDS[number]).expect("known")
}

/// An event as the test remembers it.
#[derive(Debug)]
struct Known {
    command: usize,
    bytes: usize,
    key: Option<u64>,
    unsure: bool,
    expires: Instant,
    attempts: u32,
    last: Option<Attempt>,
    end: Option<Result<(), Loss>>,
}

/// The queue beside what the test knows of it.
struct Model {
    queue: Queue<usize>,
    known: Vec<Known>,
    /// Number and event of what is being sent.
    sent: BTreeMap<u64, usize>,
    paused: Option<usize>,
    now: Instant,
}

impl Model {
    fn new() -> Model {
        let queue = Queue::new(BOUNDS);
        Model { queue, known: Vec::new(), sent: BTreeMap::new(), paused: None, now: Instant::now() }
    }

    fn live(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(|known| known.end.is_none())
    }

    fn ended(&mut self, ended: &Ended<usize>) {
        let known = &mut self.known[*ended.payload];
        assert_eq!(known.end, None, "it ends once");
        assert_eq!(known.attempts, ended.attempts);
        known.end = Some(ended.end);
    }

    fn accept(
        &mut self,
        (command, bytes, key, unsure): (usize, usize, Option<u64>, bool),
        keep_for: Duration,
    ) {
        let redeliver = if unsure { Redeliver::WhenUnsure } else { Redeliver::WhenNotTaken };
        let after = After {
            delivery: Delivery::Background,
            timeout: Duration::from_secs(1),
            keep_for,
            redeliver,
            order: Order::Key,
        };
        let (events, held) = (self.live().count(), self.live().map(|known| known.bytes).sum::<usize>());
        let same = || self.live().filter(|known| known.command == command);
        let fits = events < BOUNDS.events
            && same().count() < BOUNDS.events / 2
            && held + bytes <= BOUNDS.bytes
            && same().map(|known| known.bytes).sum::<usize>() + bytes <= BOUNDS.bytes / 2;
        let payload = self.known.len();
        let event = Event { payload, command: self::command(command), bytes, key, after };
        let expires = self.now + keep_for;
        self.known.push(Known { command, bytes, key, unsure, expires, attempts: 0, last: None, end: None });
        match self.queue.accept(event, self.now) {
            Ok(()) => assert!(fits, "there is no room"),
            Err(ended) => {
                assert!(!fits && ended.end == Err(Loss::Full), "there is room");
                self.ended(&ended);
            }
        }
    }

    /// As the deliveries do it: first what has expired, then all that may go.
    fn send(&mut self) {
        while let Some(ended) = self.queue.expire(self.now) {
            assert!(ended.end == Err(Loss::Expired) && self.known[*ended.payload].expires <= self.now);
            self.ended(&ended);
        }
        let paused = self.paused.map(command);
        let is_paused = |command: &'static Command| paused.is_some_and(|it| std::ptr::eq(it, command));
        while let Some(start) = self.queue.start(self.now, is_paused) {
            self.started(&start);
        }
        assert!(self.sent.len() <= BOUNDS.in_flight);
    }

    fn started(&mut self, start: &Start<usize>) {
        let at = *start.payload;
        let known = &self.known[at];
        assert!(known.end.is_none() && known.expires > self.now && Some(known.command) != self.paused);
        let repeated = match known.last {
            None => known.attempts == 0,
            Some(Attempt::NotReached | Attempt::Busy) => true,
            Some(Attempt::Unsure | Attempt::Refused) => known.unsure,
            Some(Attempt::Delivered) => false,
        };
        assert!(repeated && start.attempt == known.attempts + 1);
        let before = &self.known[..at];
        let first_of_key =
            known.key.is_none() || before.iter().all(|other| other.end.is_some() || other.key != known.key);
        assert!(first_of_key, "one with its key is before it");
        if known.attempts == 0 && known.key.is_none() {
            let passed = before.iter().find(|other| {
                other.end.is_none()
                    && other.attempts == 0
                    && other.key.is_none()
                    && other.command == known.command
            });
            assert!(passed.is_none(), "first in, first out");
        }
        self.known[at].attempts += 1;
        assert!(self.sent.insert(start.number, at).is_none());
    }

    fn answer(&mut self, which: Index, attempt: Attempt) {
        let numbers: Vec<_> = self.sent.keys().copied().collect();
        if numbers.is_empty() {
            return;
        }
        let number = *which.get(&numbers);
        let at = self.sent.remove(&number).expect("it is being sent");
        self.known[at].last = Some(attempt);
        let ended = self.queue.finish(number, attempt, self.now);
        if let Some(ended) = &ended {
            self.ended(ended);
        }
        let delivered = self.known[at].end == Some(Ok(()));
        assert_eq!(delivered, attempt == Attempt::Delivered);
        assert_eq!(self.queue.finish(number, Attempt::Delivered, self.now).map(|ended| ended.end), None);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Accept { command, bytes, key, unsure, keep_seconds } => {
                self.accept((command, bytes, key, unsure), Duration::from_secs(keep_seconds));
            }
            Step::Send => self.send(),
            Step::Answer(which, attempt) => self.answer(which, attempt),
            Step::Pass(millis) => self.now += Duration::from_millis(millis),
            Step::Pause(command) => self.paused = command,
            Step::Empty => {
                self.queue.drop_all();
                while let Some(ended) = self.queue.dropped(self.now) {
                    assert_eq!(ended.end, Err(Loss::Dropped));
                    self.ended(&ended);
                }
            }
        }
        self.adds_up();
    }

    fn adds_up(&self) {
        let status = self.queue.status(self.now);
        assert_eq!(status.events, self.live().count(), "accepted = delivered + lost + queued");
        assert_eq!(status.bytes, self.live().map(|known| known.bytes).sum::<usize>());
        assert_eq!(status.in_flight, self.sent.len());
        assert_eq!(status.commands.iter().map(|(_, events)| events).sum::<usize>(), status.events);
    }
}

proptest! {
    #![proptest_config(super::config())]

    #[test]
    fn every_accepted_event_is_delivered_or_lost_or_in_the_queue(steps in vec(step(), 1..80), closed in any::<bool>()) {
        let mut model = Model::new();
        steps.into_iter().for_each(|step| model.step(step));
        if closed {
            for ended in model.queue.close(model.now) {
                prop_assert_eq!(ended.end, Err(Loss::Draining));
                model.ended(&ended);
            }
            model.sent.clear();
        } else {
            // An app that is back gets all that has not expired, and nothing waits for a time that never comes.
            model.paused = None;
            let mut rounds = 0;
            while !model.queue.is_empty() {
                model.send();
                if model.sent.is_empty() && !model.queue.is_empty() {
                    let wakes = model.queue.wakes(model.now).expect("somebody has to look again");
                    prop_assert!(wakes > model.now, "or it would be looked at for ever");
                    model.now = wakes;
                }
                for number in model.sent.keys().copied().collect::<Vec<_>>() {
                    model.sent.remove(&number);
                    let ended = model.queue.finish(number, Attempt::Delivered, model.now).expect("delivered");
                    model.ended(&ended);
                }
                rounds += 1;
                prop_assert!(rounds < 1_000);
            }
        }
        prop_assert!(model.known.iter().all(|known| known.end.is_some()));
    }
}
