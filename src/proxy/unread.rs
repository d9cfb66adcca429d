//! The answers to callbacks whose body was not read to its end, or not decoded: what the head alone can tell.

use std::sync::Arc;

use http::{Method, request};

use super::large::NotDecoded;
use super::{Notes, Proxy, echoes, millis, time};
use crate::callback::rejection::Rejection;
use crate::callback::subject::Subject;
use crate::callback::target::Target;
use crate::cause::{Cause, Overload};
use crate::in_force::InForce;
use crate::policy::{Answer, Decision};
use crate::reply::Reply;
use crate::wire::ReadFault;

impl Proxy {
    /// The answer to a callback whose body was not read to its end.
    pub(super) fn not_read(
        &self,
        head: &request::Parts,
        fault: ReadFault,
        in_force: &InForce,
        notes: &mut Notes,
    ) -> Reply {
        let rejection = match fault {
            ReadFault::Full(overload) => return self.overloaded(head, overload, in_force, notes),
            ReadFault::Ending => {
                let detail = "the drain timeout came before the body";
                return self.unread(head, Cause::Draining, detail, in_force, notes);
            }
            ReadFault::TooLarge => Rejection::TooLarge { limit: self.shared.config.max_request_size },
            ReadFault::Slow => Rejection::SlowBody { after_ms: millis(in_force.policy.longest_timeout()) },
            ReadFault::Cut => Rejection::BodyCut,
        };
        self.rejected(head, &rejection, in_force, notes)
    }

    /// The answer to a callback whose body was not decoded.
    pub(super) fn not_decoded(
        &self,
        head: &request::Parts,
        why: NotDecoded,
        in_force: &InForce,
        notes: &mut Notes,
    ) -> Reply {
        let (cause, detail) = match why {
            NotDecoded::TooMany => return self.overloaded(head, Overload::Decoding, in_force, notes),
            NotDecoded::Deadline => (Cause::Timeout, "the deadline came before the body was decoded"),
            NotDecoded::Cut => (Cause::Draining, "the drain timeout came before the body was decoded"),
            NotDecoded::Bug => (Cause::Invalid, "a bug of the guard: the body could not be decoded"),
        };
        self.unread(head, cause, detail, in_force, notes)
    }

    /// The answer to a callback for which there is no room.
    pub(super) fn overloaded(
        &self,
        head: &request::Parts,
        overload: Overload,
        in_force: &InForce,
        notes: &mut Notes,
    ) -> Reply {
        self.shared.metrics.overloaded(overload);
        self.unread(head, Cause::Overloaded, overload.detail(), in_force, notes)
    }

    /// The answer to a callback whose body is not there, for want of room or of time: what the rule says that can be told by its command.
    pub(super) fn unread(
        &self,
        head: &request::Parts,
        cause: Cause,
        detail: &str,
        in_force: &InForce,
        notes: &mut Notes,
    ) -> Reply {
        if head.method != Method::POST {
            let rejection = Rejection::method(&head.method);
            return self.rejected(head, &rejection, in_force, notes);
        }
        let target = match Target::parse(&head.uri) {
            Ok(target) => target,
            Err(rejection) => return self.rejected(head, &rejection, in_force, notes),
        };
        let command = notes.name_by_head(head, &target);
        notes.detail = Some(detail.to_owned());
        let subject = Subject { name: target.name(), command, ..Subject::default() };
        match in_force.policy.decide(&subject, in_force.over.as_ref(), time(in_force)) {
            Decision::Answer { answer, by } => {
                notes.decided_by(by);
                let deny = Answer::Deny(in_force.policy.default_deny());
                Reply::fallback_unread(cause, answer, deny, echoes(command))
            }
            Decision::Ask(plan) => {
                notes.over = plan.over.map(|over| over.reason().to_owned());
                // A rule above that looks into the body might be for this one, and deny.
                let strict = in_force.policy.blind_denial(&subject, cause).filter(|_| plan.over.is_none());
                let rule = strict.unwrap_or(plan.rule);
                notes.rule = Some(Arc::clone(&rule.name));
                let deny = Answer::Deny(rule.deny());
                let fallback = if strict.is_some() { deny } else { plan.fallback(cause) };
                Reply::fallback_unread(cause, fallback, deny, echoes(command))
            }
        }
    }
}
