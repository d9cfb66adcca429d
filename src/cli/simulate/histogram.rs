//! Latencies in buckets that grow with them: within 3 % at any size, in a few KiB however many there are.

use std::fmt::Write as _;
use std::time::Duration;

/// Buckets to a doubling: 32 make each 3 % wide.
const PARTS: u32 = 32;

/// Microseconds up to 2^36, which is 19 hours.
const DOUBLINGS: u32 = 32;

/// Widest bar.
const BAR: usize = 40;

/// How often each latency was seen.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: Duration,
}

impl Histogram {
    pub(super) fn new() -> Histogram {
        let buckets = (PARTS * (DOUBLINGS + 1)) as usize;
        Histogram { counts: vec![0; buckets], total: 0, longest: Duration::ZERO }
    }

    pub(super) fn add(&mut self, latency: Duration) {
        let last = self.counts.len() - 1;
        self.counts[bucket(latency).min(last)] += 1;
        self.total += 1;
        self.longest = self.longest.max(latency);
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// The latency that this share of all did not exceed.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(at).min(self.longest);
            }
        }
        self.longest
    }

    /// A bar for each doubling between the shortest and the longest.
    pub(super) fn bars(&self) -> String {
        let mut rows: Vec<(Duration, u64)> = Vec::new();
        for (at, count) in self.counts.iter().enumerate() {
            let (_, bound) = doubling(at);
            match rows.last_mut() {
                Some((last, sum)) if *last == bound => *sum += count,
                _ => rows.push((bound, *count)),
            }
        }
        let first = rows.iter().position(|(_, count)| *count > 0).unwrap_or(0);
        let last = rows.iter().rposition(|(_, count)| *count > 0).unwrap_or(0);
        let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        let mut out = String::new();
        for (bound, count) in rows.get(first..=last).unwrap_or_default() {
            let length = (*count as f64 / most as f64 * BAR as f64).ceil() as usize;
            let _ = writeln!(
                out,
                "  up to {:>8} {count:>8}  {}",
                super::report::time(*bound),
                "#".repeat(length)
            );
        }
        out
    }

    /// The buckets that hold something, with their upper bounds.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(at, count)| (upper(at), *count))
    }
}

/// Up to 32 us a bucket each; behind that, 32 to each doubling.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    let parts = u64::from(PARTS);
    if micros < parts {
        return micros as usize;
    }
    let doubling = micros.ilog2() - PARTS.ilog2();
    (u64::from(doubling) * parts + (micros >> doubling)) as usize
}

fn upper(bucket: usize) -> Duration {
    let (parts, bucket) = (u64::from(PARTS), bucket as u64);
    let doubling = (bucket / parts).saturating_sub(1);
    Duration::from_micros((bucket - doubling * parts + 1) << doubling)
}

/// The doubling a bucket is in: its number and its upper bound.
fn doubling(bucket: usize) -> (usize, Duration) {
    let number = bucket / PARTS as usize;
    (number, Duration::from_micros(u64::from(PARTS) << number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_told_within_three_percent() {
        for micros in [0_u64, 1, 31, 32, 33, 63, 64, 100, 999, 12_345, 1_000_000, 15_000_000, 3_600_000_000] {
            let bound = upper(bucket(Duration::from_micros(micros))).as_micros() as u64;
            assert!(bound > micros && bound <= micros + micros / 31 + 1, "{micros}: {bound}");
            if micros > 0 {
                assert!(bucket(Duration::from_micros(micros - 1)) <= bucket(Duration::from_micros(micros)));
            }
        }
    }

    #[test]
    fn quantiles_and_the_longest_are_those_of_what_was_added() {
        let mut histogram = Histogram::new();
        assert_eq!((histogram.total(), histogram.quantile(0.5)), (0, Duration::ZERO));
        (1..=1000).for_each(|millis| histogram.add(Duration::from_millis(millis)));
        for (share, millis) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile(share).as_secs_f64() * 1000.0;
            assert!(found >= millis && found <= millis * 1.04, "{share}: {found}");
        }
        assert_eq!(histogram.longest(), Duration::from_secs(1));
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 1000);
        histogram.add(Duration::from_secs(1 << 40));
        assert_eq!(histogram.longest(), Duration::from_secs(1 << 40));
    }

    #[test]
    fn bars_begin_at_the_shortest_and_end_at_the_longest() {
        let mut histogram = Histogram::new();
        histogram.add(Duration::from_micros(900));
        histogram.add(Duration::from_micros(950));
        histogram.add(Duration::from_millis(5));
        let bars = histogram.bars();
        assert_eq!(bars.lines().count(), 4, "{bars}");
        assert!(bars.lines().next().is_some_and(|line| line.ends_with(&"#".repeat(BAR))), "{bars}");
    }
}
