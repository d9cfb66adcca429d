//! Readiness as named latches: not ready is a list of what is still missing, and once ready is ready for good, until
//! the end begins.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is still missing.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    missing: Arc<Mutex<Vec<Missing>>>,
}

/// One condition, and why it is not met where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Missing {
    name: &'static str,
    reason: Option<String>,
}

/// One thing that is missing, until this is dropped.
#[derive(Debug)]
#[must_use = "what is missing is there as soon as this is dropped"]
pub struct Latch {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Makes a condition.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.lock().push(Missing { name, reason: None });
        Latch { readiness: self.clone(), name }
    }

    /// The names of what is missing, each with the reason in brackets where there is one.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.lock();
        let texts = missing.iter().map(|Missing { name, reason }| match reason {
            Some(reason) => format!("{name} ({reason})"),
            None => (*name).to_owned(),
        });
        texts.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Missing>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latch {
    /// Says why it is missing; a later reason takes the place of an earlier one.
    pub fn because(&self, reason: &str) {
        let mut missing = self.readiness.lock();
        if let Some(found) = missing.iter_mut().find(|missing| missing.name == self.name) {
            found.reason = Some(reason.to_owned());
        }
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut missing = self.readiness.lock();
        if let Some(at) = missing.iter().position(|missing| missing.name == self.name) {
            missing.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_until_its_latch_is_dropped() {
        let readiness = Readiness::default();
        let (tls, listener) = (readiness.latch("tls"), readiness.latch("listener"));
        assert_eq!(readiness.missing(), ["tls", "listener"]);
        tls.because("no such file");
        assert_eq!(readiness.missing(), ["tls (no such file)", "listener"]);
        drop(tls);
        assert_eq!(readiness.missing(), ["listener"]);
        drop(listener);
        assert!(readiness.missing().is_empty());
    }
}
