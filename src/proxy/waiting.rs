//! A caller that may hang up before its answer.

use std::time::Instant;

use super::{Proxy, millis};
use crate::callback::{Callback, SHOWN_OPERATION_ID};
use crate::log;

/// A callback whose caller waits. Dropped, it tells that the caller did not wait long enough: OpenIM's own timeout is
/// then shorter than the policy says.
pub(super) struct Waiting<'w> {
    pub(super) proxy: &'w Proxy,
    pub(super) callback: &'w Callback,
    pub(super) started: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.proxy.shared.metrics.abandoned();
        static ABANDONED: log::Repeated = log::Repeated::new();
        let beginning = |text: &str| text.chars().take(SHOWN_OPERATION_ID).collect::<String>();
        let (id, command) =
            (beginning(&self.callback.operation_id().text), beginning(self.callback.target().name()));
        let waited_ms = millis(self.started.elapsed());
        ABANDONED.line(move |count| {
            tracing::warn!(
                operationID = id,
                command,
                waited_ms,
                count,
                "The caller hung up before its answer"
            );
        });
    }
}
