//! Readiness as named latches: not ready is a list of what is still missing, and once ready is ready for good, until
//! the end begins.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is still missing.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    missing: Arc<Mutex<Vec<&'static str>>>,
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
        self.lock().push(name);
        Latch { readiness: self.clone(), name }
    }

    /// The names of what is missing.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut missing = self.readiness.lock();
        if let Some(at) = missing.iter().position(|name| *name == self.name) {
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
        drop(tls);
        assert_eq!(readiness.missing(), ["listener"]);
        drop(listener);
        assert!(readiness.missing().is_empty());
    }
}
