//! Whether memory is so short that no connection is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Set by whoever looks at memory, read by whoever takes something in. Cheap to clone and to read.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_high: AtomicBool,
    eased: Notify,
}

impl Pressure {
    /// Sets whether memory is short.
    pub fn set(&self, is_high: bool) {
        let was_high = self.0.is_high.swap(is_high, Ordering::Release);
        if was_high && !is_high {
            self.0.eased.notify_waiters();
        }
    }

    /// Whether memory is short.
    pub fn is_high(&self) -> bool {
        self.0.is_high.load(Ordering::Acquire)
    }

    /// Waits while memory is short.
    pub async fn eased(&self) {
        loop {
            // Listens before it looks: what comes in between is heard.
            let eased = self.0.eased.notified();
            if !self.is_high() {
                return;
            }
            eased.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_when_it_has_eased_and_not_before() {
        let pressure = Pressure::default();
        pressure.eased().await;
        pressure.set(true);
        let mut waiting = pin!(pressure.eased());
        timeout(SOON, waiting.as_mut()).await.expect_err("memory is short");
        pressure.set(true);
        timeout(SOON, waiting.as_mut()).await.expect_err("memory is short");
        pressure.set(false);
        waiting.await;
    }
}
