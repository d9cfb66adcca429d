//! The end of a pod, in stages that only ever go forward.
//!
//! A pod leaves its Service when its deletion begins, while callers still hold connections; a native sidecar gets its
//! SIGTERM only after the app's containers are gone. So leaving and ending are two things: [`Stage::Leaving`] moves
//! callers elsewhere and asks the app as ever, [`Stage::Ending`] is the signal, and the two last stages answer what is
//! left and let go of what is idle.

use std::time::Instant;

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No end in sight.
    Serving,
    /// The pod's deletion has begun: every answer announces the end of its connection.
    Leaving,
    /// The signal came: `/readyz` says no, connections are still accepted.
    Ending,
    /// No new connections.
    Closed,
    /// What is in flight is answered now.
    Cut,
    /// Idle connections are closed.
    Over,
}

/// Sets the stage. One to a process.
#[derive(Debug)]
pub struct Drain {
    stage: watch::Sender<(Stage, Instant)>,
}

/// Sees the stage. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch {
    stage: watch::Receiver<(Stage, Instant)>,
}

impl Drain {
    /// Nothing is ending yet.
    pub fn new(now: Instant) -> (Drain, Watch) {
        let (sender, receiver) = watch::channel((Stage::Serving, now));
        (Drain { stage: sender }, Watch { stage: receiver })
    }

    /// Goes forward to a stage; going back, or nowhere, does nothing. Tells whether it went.
    pub fn advance(&self, to: Stage, now: Instant) -> bool {
        self.stage.send_if_modified(|(stage, since)| {
            let forward = to > *stage;
            if forward {
                (*stage, *since) = (to, now);
            }
            forward
        })
    }

    /// Another pair of eyes.
    pub fn watch(&self) -> Watch {
        Watch { stage: self.stage.subscribe() }
    }
}

impl Watch {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        self.stage.borrow().0
    }

    /// Since when it is the stage.
    pub fn since(&self) -> Instant {
        self.stage.borrow().1
    }

    /// Waits until the stage is this one or a later one. Never ends when the process has no end any more.
    pub async fn reached(&mut self, stage: Stage) {
        if self.stage.wait_for(|(now, _)| *now >= stage).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_only_go_forward() {
        let now = Instant::now();
        let (drain, mut watch) = Drain::new(now);
        assert!(drain.advance(Stage::Ending, now));
        assert!(!drain.advance(Stage::Leaving, now), "leaving is behind it");
        assert!(!drain.advance(Stage::Ending, now));
        watch.reached(Stage::Leaving).await;
        assert_eq!(watch.stage(), Stage::Ending);
    }
}
