//! Events of after-commands: OpenIM is answered at once, and [`crate::deliveries`] has the rest.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Notes, Proxy};
use crate::after::Loss;
use crate::callback::Callback;
use crate::cause::{Cause, Overload};
use crate::policy::{After, Answer, Plan};
use crate::reply::Reply;
use crate::verdict::Findings;

impl Proxy {
    /// Takes an event for a delivery in the background, and answers it. One that there is no room for is answered as the fallback
    /// for `overloaded`: its caller cannot do anything about it, and dashboards should.
    pub(super) fn accept_event(
        &self,
        (callback, peer): (&Callback, SocketAddr),
        (plan, after): (&Plan<'_>, After),
        noticed: Findings,
        notes: &mut Notes,
    ) -> Reply {
        notes.rule = Some(Arc::clone(&plan.rule.name));
        notes.over = plan.over.map(|over| over.reason().to_owned());
        let command = callback.command().expect("only commands of the table are after-commands");
        let accepted = self.shared.deliveries.accept(callback, command, peer.ip(), &plan.rule.name, after);
        let (cause, detail) = match accepted {
            Ok(()) => return Reply::queued(callback, noticed),
            Err(Loss::Draining) => (Cause::Draining, "the guard ends, and takes no more events"),
            Err(_) => {
                self.shared.metrics.overloaded(Overload::AfterQueue);
                (Cause::Overloaded, Overload::AfterQueue.detail())
            }
        };
        notes.detail = Some(detail.to_owned());
        Reply::fallback(cause, Answer::Allow, callback, noticed)
    }
}
