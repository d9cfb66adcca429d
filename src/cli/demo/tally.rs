//! What the tour counts, and the summary of it.

use std::time::Duration;

use super::caller::{Outcome, Seen};
use super::screen::{Paint, Screen, time};
use super::tour::TIMEOUT;

/// What became of all callbacks, without the guard and with it.
#[derive(Debug, Default)]
pub(super) struct Tally {
    without: Side,
    with: Side,
    /// By how much the latest answer of the guard missed its deadline.
    latest: Duration,
}

#[derive(Debug, Default)]
struct Side {
    asked: u32,
    lost: u32,
    let_through: u32,
    slowest: Duration,
}

impl Side {
    fn count(&mut self, seen: &Seen) {
        self.asked += 1;
        self.lost += u32::from(matches!(seen.outcome, Outcome::Lost(_)));
        self.slowest = self.slowest.max(seen.took);
    }

    fn lost(&self) -> (String, Paint) {
        (format!("{} of {}", self.lost, self.asked), alarming(self.lost))
    }

    fn let_through(&self) -> (String, Paint) {
        (self.let_through.to_string(), alarming(self.let_through))
    }
}

impl Tally {
    /// Counts a callback that the app was asked about itself.
    pub(super) fn without_guard(&mut self, seen: &Seen) {
        self.without.count(seen);
    }

    /// Counts a callback that the guard was asked about, with what the app has for it.
    pub(super) fn with_guard(&mut self, seen: &Seen, timeout: Duration) {
        self.with.count(seen);
        self.latest = self.latest.max(seen.took.saturating_sub(timeout));
    }

    /// Counts a refusal that OpenIM let through.
    pub(super) fn misread(&mut self, without: bool, with: bool) {
        self.without.let_through += u32::from(without);
        self.with.let_through += u32::from(with);
    }

    /// Shows the summary.
    pub(super) fn show(&self, screen: &mut Screen) -> Result<(), String> {
        let Tally { without, with, latest } = self;
        let plain = |text: String| (text, Paint::Plain);
        let [head_without, head_with] =
            ["without the guard", "with the guard"].map(|words| (words.to_owned(), Paint::Dim));
        let slowest = format!("{} (the app has {})", time(with.slowest), time(TIMEOUT));
        screen.gap()?;
        screen.heading("Summary")?;
        screen.tally("", head_without, head_with)?;
        screen.tally("operations lost", without.lost(), with.lost())?;
        screen.tally("refusals let through", without.let_through(), with.let_through())?;
        screen.tally("slowest answer", plain(time(without.slowest)), plain(slowest))?;
        let latest = format!("{} past its deadline", time(*latest));
        screen.tally("latest answer", plain("-".to_owned()), plain(latest))?;
        let measured = "Measured by the caller, TLS included, on a machine that plays all the parts.";
        screen.paragraph(2, Paint::Dim, measured)
    }
}

fn alarming(count: u32) -> Paint {
    if count == 0 { Paint::Green } else { Paint::Red }
}
