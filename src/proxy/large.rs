//! The same route for a callback with a large body, and the end of it for an answer that is large or packed: whatever takes time in
//! proportion to a body happens on the thread of [`crate::decode`]. The worker waits no longer than the deadline, and then has an
//! answer for which no body is read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request;

use super::admit::replaced_id_bytes;
use super::{Asking, Notes, Proxy, TIMER_GRAIN, echoes, time};
use crate::callback::rejection::Rejection;
use crate::callback::{Callback, Named, RawRequest};
use crate::cause::Overload;
use crate::deadlines::End;
use crate::decode::LARGE_BODY_BYTES;
use crate::held::{Holding, SMALL_BODY_BYTES, tie};
use crate::in_force::InForce;
use crate::policy::{Mode, Plan};
use crate::reply::Reply;
use crate::settle::{Settled, settle};
use crate::turns::Next;
use crate::upstream::outcome::{Failure, Outcome, Received};
use crate::verdict::{self, Findings};

/// Why something was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotDecoded {
    /// The deadline came first.
    Deadline,
    /// The drain's cut came first.
    Cut,
    /// As much waits as may.
    TooMany,
    /// Decoding panicked.
    Bug,
}

/// A callback with a large body, as it was read.
pub(super) struct Large {
    pub(super) head: request::Parts,
    pub(super) body: Bytes,
    pub(super) named: Result<Named, Rejection>,
    /// When it must be answered, whatever its rule is.
    pub(super) until: Instant,
    pub(super) started: Instant,
    pub(super) peer: SocketAddr,
}

/// A callback that may be answered.
struct Accepted {
    callback: Callback,
    /// The place of the rule that matches.
    rule_index: usize,
    /// Why it would be rejected, if the policy did more than observe.
    observed: Option<Rejection>,
}

/// Why a callback may not.
enum Refused {
    Rejected(Rejection),
    /// What its allow must echo is more than may be held.
    Overloaded(Overload),
}

/// Whether reading an answer takes longer than a worker has: it is large, its size is not known, or it is an answer to a large
/// callback, which is read along with it.
pub(super) fn is_large(callback: &Callback, received: &Received) -> bool {
    received.known_size().is_none_or(|size| size.max(callback.body().len()) > LARGE_BODY_BYTES)
}

impl Proxy {
    /// Answers a callback whose body is large. The share of the body, which is what there is beyond `before` bytes, goes along with
    /// it.
    pub(super) async fn reply_to_large(
        &self,
        Large { head, body, named, until, started, peer }: Large,
        (share, before): (&mut Holding, usize),
        in_force: &Arc<InForce>,
        accepted_as: &mut Option<Callback>,
        notes: &mut Notes,
    ) -> Reply {
        let generated = self.generate();
        let on_thread = {
            let (raw, share) = (RawRequest { head: head.clone(), body }, share.split_off(before));
            let in_force = Arc::clone(in_force);
            move || {
                let mut share = share;
                let accepted = accept(raw, named, &in_force, &generated, &mut share);
                (accepted, share)
            }
        };
        let (accepted, of_body) = match self.decoded(until - TIMER_GRAIN, on_thread).await {
            Ok(decoded) => decoded,
            Err(why) => return self.not_decoded(&head, why, in_force, notes),
        };
        share.join(of_body);
        let Accepted { callback, rule_index, observed } = match accepted {
            Ok(accepted) => accepted,
            Err(Refused::Rejected(rejection)) => return self.rejected(&head, &rejection, in_force, notes),
            Err(Refused::Overloaded(overload)) => {
                return self.overloaded(&head, overload, in_force, notes);
            }
        };
        if let Some(rejection) = observed {
            let would = self.rejected(&head, &rejection, in_force, notes);
            notes.instead = Some((would.verdict(), would.why()));
        }
        let (over, now) = (in_force.over.as_ref(), time(in_force));
        let decision = in_force.policy.decide_by_rule(rule_index, &callback.named(), over, now);
        let asking = Asking { callback: accepted_as.insert(callback), share, peer };
        self.decided(asking, decision, in_force, started, notes).await
    }

    /// Unpacks and reads an answer, and makes the one of it that goes out.
    pub(super) async fn settle_large(
        &self,
        Asking { callback, share, .. }: Asking<'_>,
        plan: &Plan<'_>,
        received: Received,
        in_force: &Arc<InForce>,
        wake: Instant,
        noticed: Findings,
    ) -> Result<Settled, Failure> {
        let on_thread = {
            let (rule_index, overridden) = (plan.rule_index, plan.over.is_some());
            let (callback, in_force) = (callback.clone(), Arc::clone(in_force));
            move || {
                let over = in_force.over.as_ref().filter(|_| overridden);
                let plan = in_force.policy.plan(rule_index, &callback.named(), over);
                let outcome = Outcome::Answered(received.unpack()?);
                // An app that answered is not gone.
                Ok::<_, Failure>(settle(&callback, &plan, outcome, noticed, false))
            }
        };
        let mut settled = self.decoded(wake, on_thread).await??;
        // An answer that was corrected is a copy.
        let body = settled.reply.body();
        if !settled.reply.is_counted() && body.len() > SMALL_BODY_BYTES {
            let (body, mut copy) = (body.clone(), share.nothing_for_answer());
            copy.grow_to(body.len()).map_err(Failure::Overloaded)?;
            settled.reply = settled.reply.counted(tie(body, copy));
        }
        Ok(settled)
    }

    /// Waits for the turn to decode so many bytes on the worker, because enough were decoded in this pass.
    pub(super) async fn wait_for(&self, turn: Next, bytes: usize, until: Instant) -> Result<(), NotDecoded> {
        tokio::select! {
            biased;
            () = turn => {
                // One is called per pass, and may begin whatever others took meanwhile: else small ones would come first for
                // ever.
                self.turns.count_decoded(bytes);
                Ok(())
            }
            end = self.deadlines.wait(until) => Err(end.into()),
        }
    }

    /// Has work done on the thread, and waits for it until this time.
    async fn decoded<T: Send + 'static>(
        &self,
        until: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDecoded> {
        let decoding = self.shared.decode.run(until, work).map_err(|_| NotDecoded::TooMany)?;
        tokio::select! {
            biased;
            // What the thread skips has no result either.
            result = decoding => result.map_err(|_| match Instant::now() >= until {
                true => NotDecoded::Deadline,
                false => NotDecoded::Bug,
            }),
            end = self.deadlines.wait(until) => Err(end.into()),
        }
    }
}

impl From<End> for NotDecoded {
    fn from(end: End) -> NotDecoded {
        match end {
            End::Deadline => NotDecoded::Deadline,
            End::Cut => NotDecoded::Cut,
        }
    }
}

/// What it means for an app's answer.
impl From<NotDecoded> for Failure {
    fn from(why: NotDecoded) -> Failure {
        match why {
            NotDecoded::Deadline => Failure::Undecoded,
            NotDecoded::Cut => Failure::Draining,
            NotDecoded::TooMany => Failure::Overloaded(Overload::Decoding),
            NotDecoded::Bug => Failure::Bug,
        }
    }
}

/// Checks a callback, finds its rule, and makes the allow that its fallback may need: all that takes time in proportion to its
/// body.
fn accept(
    raw: RawRequest,
    named: Result<Named, Rejection>,
    in_force: &InForce,
    generated: &str,
    share: &mut Holding,
) -> Result<Accepted, Refused> {
    let policy = &in_force.policy;
    let generate = || generated.to_owned();
    let (mut callback, observed) = match Callback::parse_named(raw, named, policy.validation(), generate) {
        Ok(callback) => (callback, None),
        Err((raw, rejection)) if policy.mode() == Mode::Observe && rejection.may_be_observed() => {
            (Callback::unchecked(raw, generate), Some(rejection))
        }
        Err((_, rejection)) => return Err(Refused::Rejected(rejection)),
    };
    let of_id = replaced_id_bytes(&callback);
    if of_id > 0 {
        share.grow_to(share.bytes() + of_id).map_err(Refused::Overloaded)?;
    }
    if echoes(callback.command()) {
        share.grow_to(2 * callback.body().len() + of_id).map_err(Refused::Overloaded)?;
        callback.keep_allow(Bytes::from(verdict::allow_body(Some(&callback)).into_owned()));
    }
    let rule_index = policy.rule_index(&callback.subject());
    Ok(Accepted { callback, rule_index, observed })
}
