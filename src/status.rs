//! What is known of the process at a moment, for those who look at it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many decisions are kept.
const RECENT: usize = 300;

/// The last decisions, as their log lines: no content of messages. Shared by all workers.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Recent {
    /// Adds one; the oldest goes, and its memory is used again.
    pub fn push(&self, line: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slot =
            if lines.len() < RECENT { String::new() } else { lines.pop_front().unwrap_or_default() };
        slot.clear();
        slot.push_str(line.trim_end());
        lines.push_back(slot);
    }

    /// The lines, the newest first, each a JSON object.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().cloned().collect()
    }
}

/// The watch of a ConfigMap.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    connected: Arc<AtomicBool>,
    exists: Arc<Mutex<Option<bool>>>,
    /// Why it cannot be watched, until it can.
    pub problem: Refused,
}

impl Watched {
    /// Remembers whether there is a watch under way.
    pub fn connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// Whether there is a watch under way.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Remembers whether the ConfigMap exists.
    pub fn set_exists(&self, exists: bool) {
        *self.exists.lock().unwrap_or_else(PoisonError::into_inner) = Some(exists);
    }

    /// Whether the ConfigMap exists, as the API server reported last; none before its first report.
    pub fn exists(&self) -> Option<bool> {
        *self.exists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the last policy was refused, until one is accepted.
#[derive(Clone, Debug, Default)]
pub struct Refused {
    reason: Arc<Mutex<Option<String>>>,
}

impl Refused {
    /// Remembers why, or that all is well.
    pub fn set(&self, reason: Option<String>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Why, if there is a refused policy waiting to be mended.
    pub fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_decisions_are_kept_and_no_more() {
        let recent = Recent::default();
        (0..RECENT + 5).for_each(|number| recent.push(&format!("{number}\n")));
        let lines = recent.lines();
        assert_eq!(lines.len(), RECENT);
        assert_eq!(lines.first().map(String::as_str), Some("304"));
        assert_eq!(lines.last().map(String::as_str), Some("5"));
    }
}
