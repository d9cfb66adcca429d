//! One attempt to deliver an event.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;

use super::{Deliveries, LastError, Payload, lock};
use crate::after::{Attempt, Start};
use crate::upstream::{Progress, Undelivered, Upstream};
use crate::wire::{self, AttemptHeaders};

/// What there is to tell of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Last {
    /// How long it took.
    pub(super) took: Duration,
    /// The status of its answer, if there was one.
    pub(super) status: Option<StatusCode>,
    /// What went wrong, if something did; never content of a message.
    pub(super) detail: Option<String>,
}

/// An event under way. Dropped before its end, as by a panic, it is reported as sent with nothing known of it.
struct Flight {
    deliveries: Arc<Deliveries>,
    payload: Arc<Payload>,
    number: u64,
    begun: Instant,
    is_over: bool,
}

impl Flight {
    fn end(mut self, attempt: Attempt, status: Option<StatusCode>, detail: Option<String>) {
        self.is_over = true;
        self.report(attempt, status, detail);
    }

    fn report(&self, attempt: Attempt, status: Option<StatusCode>, detail: Option<String>) {
        let deliveries = &*self.deliveries;
        let now = Instant::now();
        let last = Last { took: now.saturating_duration_since(self.begun), status, detail };
        deliveries.metrics.after().attempted(attempt);
        if attempt != Attempt::Delivered {
            let text = last.detail.clone().unwrap_or_else(|| attempt.label().to_owned());
            let error = LastError { at: SystemTime::now(), command: self.payload.command.name, text };
            *lock(&deliveries.last_error) = Some(error);
        }
        let ended = lock(&deliveries.queue).finish(self.number, attempt, now);
        match ended {
            Some(ended) => deliveries.report(&ended, Some(&last)),
            None => *lock(&self.payload.last) = Some(last),
        }
        deliveries.changed.notify_one();
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.is_over {
            self.report(Attempt::Unsure, None, Some("the attempt was broken off".to_owned()));
        }
    }
}

impl Deliveries {
    /// Sends an event once, and reports what came of it.
    pub(super) async fn attempt(self: Arc<Self>, upstream: Rc<Upstream>, start: Start<Payload>) {
        let Start { number, payload, attempt, age, timeout } = start;
        let flight = Flight {
            deliveries: self,
            payload: Arc::clone(&payload),
            number,
            begun: Instant::now(),
            is_over: false,
        };
        let headers =
            AttemptHeaders { delivery: payload.id, attempt, age, timeout, length: payload.body.len() };
        let head = wire::attempt_head(&payload.head, headers, upstream.head_buffer());
        let progress = Progress::default();
        let sent = upstream.deliver(head, &payload.body, &progress);
        match tokio::time::timeout(timeout, sent).await {
            Ok(Ok(status)) => flight.end(of(status), Some(status), detail(status)),
            Ok(Err(Undelivered::NotReached(failure))) => {
                flight.end(Attempt::NotReached, None, Some(failure.to_string()));
            }
            Ok(Err(Undelivered::Unsure(failure))) => {
                flight.end(Attempt::Unsure, None, Some(failure.to_string()));
            }
            Err(_) => match progress.status() {
                // The rest of its body does not matter.
                Some(status) => flight.end(of(status), Some(status), detail(status)),
                None if progress.is_sent() => {
                    flight.end(Attempt::Unsure, None, Some("no answer within the timeout".to_owned()));
                }
                None => {
                    let detail = "no connection to the app within the timeout".to_owned();
                    flight.end(Attempt::NotReached, None, Some(detail));
                }
            },
        }
    }
}

fn of(status: StatusCode) -> Attempt {
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Attempt::Busy,
        status if status.is_success() => Attempt::Delivered,
        _ => Attempt::Refused,
    }
}

fn detail(status: StatusCode) -> Option<String> {
    (!status.is_success()).then(|| format!("upstream answered with status {status}"))
}
