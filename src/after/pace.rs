//! How many events are sent at once. While the app cannot be reached, one at a time tries, at growing intervals; when it is back,
//! that one goes first, and every one that it answers lets one more go beside it, which doubles them with each round.

use std::time::{Duration, Instant};

/// The first interval between two attempts at an app that cannot be reached; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest: an app that is back has its first event within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Counts what is under way, and knows whether one more may go.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    /// How many may go, at most `limit`.
    allowed: usize,
    /// Goes up when the app turns out not to take events. What was sent before says nothing about the time after.
    epoch: u64,
    in_flight: usize,
    /// Of them those of this epoch.
    of_epoch: usize,
    /// Since the app took one.
    failures: u32,
    /// Nothing goes before.
    until: Option<Instant>,
    /// When the last attempt could not reach the app, if none has reached it since.
    unreached: Option<Instant>,
}

/// What an attempt says about the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// It takes events.
    Takes,
    /// Nothing.
    Nothing,
    /// It is there and takes none.
    Busy,
    /// It is not there.
    Gone,
}

impl Pace {
    pub(super) fn new(limit: usize) -> Pace {
        let limit = limit.max(1);
        Pace {
            limit,
            allowed: limit,
            epoch: 0,
            in_flight: 0,
            of_epoch: 0,
            failures: 0,
            until: None,
            unreached: None,
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Until when nothing may go, if there is room then.
    pub(super) fn opens(&self) -> Option<Instant> {
        self.until.filter(|_| self.has_room())
    }

    pub(super) fn may_start(&self, now: Instant) -> bool {
        self.has_room() && self.until.is_none_or(|until| now >= until)
    }

    fn has_room(&self) -> bool {
        self.in_flight < self.limit && self.of_epoch < self.allowed
    }

    /// One goes. Returns its epoch.
    pub(super) fn started(&mut self) -> u64 {
        self.in_flight += 1;
        self.of_epoch += 1;
        self.epoch
    }

    /// One has come back.
    pub(super) fn ended(&mut self, epoch: u64, says: Says, now: Instant) {
        self.in_flight -= 1;
        if epoch != self.epoch {
            return;
        }
        self.of_epoch -= 1;
        match says {
            Says::Takes => {
                (self.failures, self.until, self.unreached) = (0, None, None);
                self.allowed = self.limit.min(self.allowed + 1);
            }
            Says::Nothing => self.unreached = None,
            Says::Busy | Says::Gone => {
                self.unreached = Some(now).filter(|_| says == Says::Gone);
                self.epoch += 1;
                (self.of_epoch, self.allowed) = (0, 1);
                self.until = Some(now + (FIRST_PAUSE * (1 << self.failures.min(5))).min(LONGEST_PAUSE));
                self.failures += 1;
            }
        }
    }

    /// The next attempt need not wait.
    pub(super) fn hurry(&mut self) {
        self.until = None;
    }

    /// Whether an attempt since then did not reach the app, and none has reached it after that.
    pub(super) fn is_gone(&self, since: Instant) -> bool {
        self.unreached.is_some_and(|at| at >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// As many as may go.
    fn fill(pace: &mut Pace, now: Instant) -> Vec<u64> {
        let mut epochs = Vec::new();
        while pace.may_start(now) {
            epochs.push(pace.started());
        }
        epochs
    }

    #[test]
    fn when_the_app_is_back_one_goes_first_and_then_twice_as_many_up_to_the_limit() {
        let now = Instant::now();
        let mut pace = Pace::new(16);
        for epoch in fill(&mut pace, now) {
            pace.ended(epoch, Says::Gone, now);
        }
        let mut rounds = Vec::new();
        let now = now + FIRST_PAUSE;
        for _ in 0..6 {
            let round = fill(&mut pace, now);
            rounds.push(round.len());
            round.into_iter().for_each(|epoch| pace.ended(epoch, Says::Takes, now));
        }
        assert_eq!(rounds, [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn an_app_that_is_gone_is_tried_at_growing_intervals_up_to_a_second() {
        let mut now = Instant::now();
        let mut pace = Pace::new(16);
        let mut intervals = Vec::new();
        for _ in 0..7 {
            let epochs = fill(&mut pace, now);
            epochs.into_iter().for_each(|epoch| pace.ended(epoch, Says::Gone, now));
            let opens = pace.opens().expect("it has failed");
            assert!(!pace.may_start(opens - MS) && pace.may_start(opens));
            intervals.push((opens - now).as_millis());
            now = opens;
        }
        assert_eq!(intervals, [50, 100, 200, 400, 800, 1000, 1000]);
        pace.hurry();
        assert!(pace.may_start(now - 100 * MS));
    }

    #[test]
    fn what_was_sent_before_the_app_went_away_neither_holds_back_the_first_nor_lets_more_go() {
        let now = Instant::now();
        let mut pace = Pace::new(4);
        let mut sent = fill(&mut pace, now);
        pace.ended(sent.pop().expect("four"), Says::Gone, now);
        let later = now + LONGEST_PAUSE;
        assert_eq!(fill(&mut pace, later).len(), 1, "beside three that hang");
        sent.into_iter().for_each(|epoch| pace.ended(epoch, Says::Takes, later));
        assert!(!pace.may_start(later));
    }

    #[test]
    fn only_an_app_that_was_not_reached_lately_is_gone() {
        let now = Instant::now();
        for (says, gone) in [(Says::Gone, true), (Says::Busy, false), (Says::Nothing, false)] {
            let mut pace = Pace::new(1);
            let epoch = pace.started();
            pace.ended(epoch, says, now);
            assert_eq!((pace.is_gone(now), pace.is_gone(now + MS)), (gone, false), "{says:?}");
            let epoch = pace.started();
            pace.ended(epoch, Says::Takes, now);
            assert!(!pace.is_gone(now));
        }
    }
}
