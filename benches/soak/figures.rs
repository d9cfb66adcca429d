//! What a soak counts, in memory that does not grow with its length.

use std::time::Duration;

/// How often each lateness came: in steps of 10 us up to a second, and once for all above.
pub(crate) struct Lateness {
    steps: Vec<u64>,
    count: u64,
    worst: Duration,
}

impl Lateness {
    const STEP_MICROS: u128 = 10;
    const STEPS: usize = 100_000;

    pub(crate) fn new() -> Lateness {
        Lateness { steps: vec![0; Self::STEPS + 1], count: 0, worst: Duration::ZERO }
    }

    pub(crate) fn add(&mut self, late: Duration) {
        let step = usize::try_from(late.as_micros() / Self::STEP_MICROS).unwrap_or(Self::STEPS);
        self.steps[step.min(Self::STEPS)] += 1;
        self.count += 1;
        self.worst = self.worst.max(late);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn worst_ms(&self) -> f64 {
        self.worst.as_secs_f64() * 1e3
    }

    /// The lateness that this share of them does not pass, in milliseconds.
    pub(crate) fn ms_at(&self, share: f64) -> f64 {
        let rank = (share * self.count as f64).ceil() as u64;
        let mut so_far = 0;
        let place = self.steps.iter().position(|count| {
            so_far += count;
            so_far >= rank
        });
        let step = place.unwrap_or_default() as f64;
        ((step + 1.0) * Self::STEP_MICROS as f64 / 1e3).min(self.worst_ms())
    }
}

/// A line through points, by least squares: its slope.
#[derive(Default)]
pub(crate) struct Line {
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(crate) fn add(&mut self, x: f64, y: f64) {
        self.points.push((x, y));
    }

    /// Growth of `y` for each `x`, without the first quarter, in which a process still grows to its size.
    pub(crate) fn slope(&self) -> f64 {
        let points = &self.points[self.points.len() / 4..];
        let count = points.len() as f64;
        let (mean_x, mean_y) =
            points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
        let (over, under) = points.iter().fold((0.0, 0.0), |(over, under), (x, y)| {
            (over + (x - mean_x) * (y - mean_y), under + (x - mean_x).powi(2))
        });
        if under > 0.0 { over / under } else { 0.0 }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|point| point.1)
    }
}
