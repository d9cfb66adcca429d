//! The whole route of a callback, on one screen: [`Proxy::reply`].
//!
//! ```text
//! Request<B>         wire::read          whole, within limits, in memory
//!   RawRequest       Callback::parse     one command, an operation ID, a JSON object; or a Rejection
//!     Callback       Policy::decide      an answer given here, or a Plan
//!       Plan         Proxy::ask          admitted, sent once, answered or failed by the deadline
//!         Outcome    settle              the app's verdict, corrected; or the rule's fallback
//!           Reply    wire::response
//! ```
//!
//! What is large is decoded elsewhere: see [`large`].

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Request, Response, Version, header, request};
use tokio::sync::watch;
use tracing_subscriber::filter::LevelFilter;

use crate::basic_auth::BasicAuth;
use crate::callback::command::{self, Command, SafeDefault};
use crate::callback::rejection::{Rejection, RejectionCause};
use crate::callback::target::{Target, UpstreamForm};
use crate::callback::{Callback, Named, RawRequest};
use crate::cause::Overload;
use crate::deadlines::{Deadlines, End};
use crate::decode::{DecodeThread, LARGE_BODY_BYTES};
use crate::deliveries::Deliveries;
use crate::drain::{self, Stage};
use crate::held::{Account, Accounts, Holding};
use crate::in_force::InForce;
use crate::log::{self, Format};
use crate::metrics::{Counting, Metrics, Recorder};
use crate::policy::{AnsweredBy, Decision, Mode, Plan};
use crate::reply::{Reply, Why};
use crate::server::Handler;
use crate::settle::{Settled, settle};
use crate::status::Recent;
use crate::turns::Turns;
use crate::upstream::outcome::{Failure, Outcome, Received};
use crate::upstream::{Address, Patience, Reuse, Upstream};
use crate::verdict::{Findings, Verdict};
use crate::wire::{self, AnswerBody, CallerBody, ReadFault};
use admit::{Admitted, NotAdmitted};
use large::Large;
use waiting::Waiting;

mod admit;
mod events;
mod large;
mod unread;
mod waiting;

/// tokio rounds a timer up to a whole millisecond, and epoll its wait once more. Aiming both earlier makes a fallback
/// come by its deadline, and not up to two milliseconds behind it.
const TIMER_GRAIN: Duration = Duration::from_millis(2);

/// What the proxy needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The app.
    pub upstream: Address,
    /// How the app wants its URLs.
    pub upstream_form: UpstreamForm,
    /// Most bytes of a callback's body.
    pub max_request_size: usize,
    /// Most bytes of an answer's body.
    pub max_answer_size: usize,
    /// Most bytes of a head.
    pub max_header_size: usize,
    /// Which lines are logged.
    pub log_level: LevelFilter,
    /// How they look.
    pub log_format: Format,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The policy.
    pub in_force: watch::Receiver<Arc<InForce>>,
    /// Who may call, where that is asked.
    pub auth: Option<BasicAuth>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where lines go.
    pub log: log::Queue,
    /// What each caller holds.
    pub accounts: Accounts,
    /// Where large bodies are decoded.
    pub decode: DecodeThread,
    /// Whether connections to the app are used again.
    pub reuse: Arc<Reuse>,
    /// The last decisions.
    pub recent: Recent,
    /// Events that are delivered in the background.
    pub deliveries: Arc<Deliveries>,
}

/// One worker's proxy.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    upstream: Rc<Upstream>,
    recorder: Recorder,
    drain: drain::Watch,
    deadlines: Deadlines,
    turns: Rc<Turns>,
    /// The rule's name of what no rule matched.
    no_rule: Arc<str>,
    line: RefCell<String>,
    clock: RefCell<log::Clock>,
    generated: Cell<u64>,
}

/// What is put to the app: a callback, its share of memory, and whose it is.
#[derive(Clone, Copy)]
struct Asking<'c> {
    callback: &'c Callback,
    share: &'c Holding,
    peer: SocketAddr,
}

/// A request that was let in. Its parts stay where they are until they are taken.
struct Arrived<'r, B> {
    head: &'r mut request::Parts,
    body: Pin<&'r mut B>,
    admitted: &'r mut Admitted,
}

/// What is told of a callback beside its answer.
#[derive(Default)]
struct Notes {
    /// Of one that was not accepted: of others the callback itself tells these three.
    command: Option<&'static Command>,
    name: String,
    operation_id: String,
    rule: Option<Arc<str>>,
    detail: Option<String>,
    instead: Option<(Verdict, Why)>,
    over: Option<String>,
    deadline: Option<Instant>,
}

impl Notes {
    /// What the head alone tells of a callback whose body is not there, or is none.
    fn name_by_head(&mut self, head: &request::Parts, target: &Target) -> Option<&'static Command> {
        self.command = command::lookup(target.name());
        target.name().clone_into(&mut self.name);
        if let Some(id) = head.headers.get(crate::callback::OPERATION_ID) {
            self.operation_id = crate::go_json::lossy(id.as_bytes()).into_owned();
        }
        self.command
    }

    fn decided_by(&mut self, by: AnsweredBy<'_>) {
        match by {
            AnsweredBy::Rule(rule) => self.rule = Some(Arc::clone(&rule.name)),
            AnsweredBy::Override(over) => self.over = Some(over.reason().to_owned()),
        }
    }
}

impl Handler for Proxy {
    type Admitted = Admitted;

    fn admit(&self, head: &mut request::Parts, account: &Arc<Account>) -> Option<Admitted> {
        Admitted::of(self, head, account)
    }

    async fn answer<B>(
        self: Rc<Self>,
        head: &mut request::Parts,
        body: Pin<&mut B>,
        peer: SocketAddr,
        admitted: &mut Admitted,
    ) -> Response<AnswerBody>
    where
        B: CallerBody,
    {
        let started = Instant::now();
        let bodiless = head.method == Method::HEAD;
        let _counted = self.shared.metrics.callback();
        let in_force = Arc::clone(&self.shared.in_force.borrow());
        let (mut callback, mut notes) = (None, Notes::default());
        let arrived = Arrived { head, body, admitted: &mut *admitted };
        let reply = self.reply(arrived, peer, started, &in_force, &mut callback, &mut notes).await;
        self.record(&reply, callback.as_ref(), &notes, started);
        let response = wire::response(reply, Some(admitted.share.split_off(0)));
        if bodiless { wire::without_body(response) } else { response }
    }
}

impl Proxy {
    /// A proxy for one worker, which must [`keep_time`](Self::keep_time) beside it.
    pub fn new(shared: Arc<Shared>, drain: drain::Watch) -> Proxy {
        let Config { upstream, max_answer_size, max_header_size, .. } = &shared.config;
        let reuse = Arc::clone(&shared.reuse);
        let turns = Rc::new(Turns::default());
        let limits = (*max_answer_size, *max_header_size);
        let upstream = Rc::new(Upstream::new(upstream.clone(), limits, reuse, &turns));
        let recorder = Recorder::new(Arc::clone(&shared.metrics));
        let (line, clock, generated) = (RefCell::default(), RefCell::default(), Cell::new(0));
        let (deadlines, no_rule) = (Deadlines::default(), Arc::from("none"));
        Proxy { shared, upstream, recorder, drain, deadlines, turns, no_rule, line, clock, generated }
    }

    /// Ends each callback by its deadline, gives long work its turns, and delivers events, for ever.
    pub async fn keep_time(&self) -> Infallible {
        tokio::select! {
            biased;
            never = self.deadlines.keep(self.drain.clone()) => never,
            never = self.turns.keep() => never,
            never = self.shared.deliveries.run(&self.upstream) => never,
        }
    }

    /// The turns of this worker.
    pub fn turns(&self) -> Rc<Turns> {
        Rc::clone(&self.turns)
    }

    /// `accepted` has the callback once it is one.
    async fn reply<B: CallerBody>(
        &self,
        Arrived { head, mut body, admitted }: Arrived<'_, B>,
        peer: SocketAddr,
        started: Instant,
        in_force: &Arc<InForce>,
        accepted: &mut Option<Callback>,
        notes: &mut Notes,
    ) -> Reply {
        let policy = &in_force.policy;
        let config = &self.shared.config;
        let until = started + policy.longest_timeout();
        let Admitted { share, named, refused } = admitted;
        if refused.is_none() {
            *refused = self.unwanted(head).map(NotAdmitted::Rejected);
        }
        if let Some(refused) = refused {
            // Over HTTP/2 the answer does not wait for the body, and the body not in memory.
            if head.version != Version::HTTP_2 {
                self.discard(body, until).await;
            }
            return match refused {
                NotAdmitted::Rejected(rejection) => self.rejected(head, rejection, in_force, notes),
                NotAdmitted::Overloaded(overload) => self.overloaded(head, *overload, in_force, notes),
            };
        }
        let before = share.bytes();
        let read = tokio::select! {
            biased;
            read = wire::read(body.as_mut(), config.max_request_size, share) => read,
            end = self.deadlines.wait(until) => Err(match end {
                End::Deadline => ReadFault::Slow,
                End::Cut => ReadFault::Ending,
            }),
        };
        if read.is_err() {
            // What came of it was dropped.
            share.shrink_to(before);
            body.keeps(0);
        }
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(fault) => {
                if matches!(fault, ReadFault::Full(_) | ReadFault::TooLarge) {
                    self.discard(body, until).await;
                }
                return self.not_read(head, fault, in_force, notes);
            }
        };
        if bytes.len() > LARGE_BODY_BYTES {
            let large =
                Large { head: take(head), body: bytes, named: take_named(named), until, started, peer };
            // In a box: the future of every callback would have its size.
            return Box::pin(self.reply_to_large(large, (share, before), in_force, accepted, notes)).await;
        }
        if let Some(turn) = self.turns.decode(bytes.len(), || share.caller())
            && let Err(why) = Box::pin(self.wait_for(turn, bytes.len(), until - TIMER_GRAIN)).await
        {
            return self.not_decoded(head, why, in_force, notes);
        }
        let raw = RawRequest { head: take(head), body: bytes };
        let callback = match self.accept(raw, take_named(named), in_force, notes) {
            Ok(callback) => accepted.insert(callback),
            Err(reply) => return reply,
        };
        if let Err(overload) = admit::count_replaced_id(callback, share) {
            return self.overloaded(callback.head(), overload, in_force, notes);
        }
        let decision = {
            let subject = if policy.looks_into_bodies() { callback.subject() } else { callback.named() };
            policy.decide(&subject, in_force.over.as_ref(), time(in_force))
        };
        let asking = Asking { callback, share, peer };
        self.decided(asking, decision, in_force, started, notes).await
    }

    /// Checks a callback; what is wrong with it is answered, unless the policy only observes.
    #[allow(clippy::result_large_err, reason = "a move, and no allocation")]
    fn accept(
        &self,
        raw: RawRequest,
        named: Result<Named, Rejection>,
        in_force: &InForce,
        notes: &mut Notes,
    ) -> Result<Callback, Reply> {
        let policy = &in_force.policy;
        match Callback::parse_named(raw, named, policy.validation(), || self.generate()) {
            Ok(callback) => Ok(callback),
            Err((raw, rejection)) if policy.mode() == Mode::Observe && rejection.may_be_observed() => {
                let would = self.rejected(&raw.head, &rejection, in_force, notes);
                notes.instead = Some((would.verdict(), would.why()));
                Ok(Callback::unchecked(raw, || self.generate()))
            }
            Err((raw, rejection)) => Err(self.rejected(&raw.head, &rejection, in_force, notes)),
        }
    }

    async fn discard<B: CallerBody>(&self, body: Pin<&mut B>, until: Instant) {
        let mut drain = self.drain.clone();
        tokio::select! {
            () = wire::discard(body, until) => {}
            () = drain.reached(Stage::Cut) => {}
        }
    }

    /// Does what the policy says about a callback that was accepted.
    async fn decided(
        &self,
        asking: Asking<'_>,
        decision: Decision<'_>,
        in_force: &Arc<InForce>,
        started: Instant,
        notes: &mut Notes,
    ) -> Reply {
        let callback = asking.callback;
        let waiting = Waiting { proxy: self, callback, started };
        let noticed = Findings::of_callback(callback);
        let reply = match decision {
            Decision::Answer { answer, by } => {
                notes.decided_by(by);
                Reply::rule(answer, callback, noticed)
            }
            Decision::Ask(plan) if let Some(after) = plan.background() => {
                self.accept_event((callback, asking.peer), (&plan, *after), noticed, notes)
            }
            Decision::Ask(plan) => {
                let deadline = started + plan.timeout;
                let settled = self.ask(asking, &plan, in_force, deadline, noticed).await;
                notes.rule = Some(Arc::clone(&plan.rule.name));
                notes.over = plan.over.map(|over| over.reason().to_owned());
                notes.deadline = Some(deadline);
                notes.detail = settled.detail.or(notes.detail.take());
                // A rule's own answer would have come before anything the app says.
                let would = plan.would_answer.map(|answer| Reply::rule(answer, callback, noticed));
                let would = would.map(|reply| (reply.verdict(), reply.why()));
                let given = (settled.reply.verdict(), settled.reply.why());
                let instead =
                    would.map_or(settled.instead, |would| Some(would).filter(|would| *would != given));
                notes.instead = notes.instead.or(instead);
                settled.reply
            }
        };
        // Its caller is still there: what is told of it now is told with its answer.
        std::mem::forget(waiting);
        reply
    }

    /// Asks the app once, if the bounds and the breaker let it, and makes an answer of what comes of it.
    async fn ask(
        &self,
        asking: Asking<'_>,
        plan: &Plan<'_>,
        in_force: &Arc<InForce>,
        deadline: Instant,
        noticed: Findings,
    ) -> Settled {
        let (rule, callback) = (in_force.rule(plan.rule_index), asking.callback);
        let failed = |failure| {
            if let Failure::Overloaded(overload) = failure {
                self.shared.metrics.overloaded(overload);
            }
            settle(callback, plan, Outcome::Failed(failure), noticed, self.pod_is_ending())
        };
        let _place = match asking.share.take_place() {
            Ok(place) => place,
            Err(overload) => return failed(Failure::Overloaded(overload)),
        };
        let limit = plan.max_in_flight().unwrap_or(usize::MAX);
        let Some(_slot_of_rule) = rule.take_slot(limit) else {
            return failed(Failure::Overloaded(Overload::RuleInFlight));
        };
        let mut permit = None;
        if let (Some(_), Some(breaker)) = (plan.breaker(), &rule.breaker) {
            match breaker.admit(Instant::now()) {
                Ok(admitted) => permit = Some(admitted),
                Err(_) => return failed(Failure::BreakerOpen),
            }
        }
        let wake = deadline - TIMER_GRAIN;
        let settled = match self.exchange(asking, wake).await {
            Ok(received) if large::is_large(callback, &received) => {
                Box::pin(self.settle_large(asking, plan, received, in_force, wake, noticed)).await
            }
            Ok(received) => {
                let bytes = received.known_size().unwrap_or_default();
                let turn = match self.turns.decode(bytes, || asking.share.caller()) {
                    Some(turn) => Box::pin(self.wait_for(turn, bytes, wake)).await,
                    None => Ok(()),
                };
                turn.map_err(Failure::from).and_then(|()| received.unpack()).map(|answered| {
                    let outcome = Outcome::Answered(answered);
                    settle(callback, plan, outcome, noticed, self.pod_is_ending())
                })
            }
            Err(failure) => Err(failure),
        };
        let settled = settled.unwrap_or_else(failed);
        if let Some(permit) = permit {
            permit.record(settled.learned, Instant::now());
        }
        settled
    }

    fn pod_is_ending(&self) -> bool {
        self.drain.stage() >= Stage::Leaving
    }

    async fn exchange(
        &self,
        Asking { callback, share, peer }: Asking<'_>,
        wake: Instant,
    ) -> Result<Received, Failure> {
        let asked = Instant::now();
        let Some(left) = wake.checked_duration_since(asked).filter(|left| !left.is_zero()) else {
            return Err(Failure::Timeout { doing: "receiving the callback" });
        };
        let buffer = self.upstream.head_buffer();
        let head = wire::upstream_head(callback, self.shared.config.upstream_form, peer.ip(), left, buffer);
        let ending = || self.pod_is_ending();
        let refused = Cell::new(false);
        let patience = Patience { now: asked, until: wake, ending: &ending, refused: &refused };
        let answered = tokio::select! {
            biased;
            answered = self.upstream.exchange(head, callback.body(), share, patience) => answered,
            end = self.deadlines.wait(wake) => Err(match end {
                End::Deadline if refused.get() => self.upstream.refused(),
                End::Deadline => Failure::Timeout { doing: "waiting for the app" },
                End::Cut => Failure::Draining,
            }),
        };
        self.shared.metrics.upstream(asked.elapsed());
        answered
    }

    /// What is wrong with a request before its body is worth reading, beside the size of its head.
    fn unwanted(&self, head: &request::Parts) -> Option<Rejection> {
        self.unknown_caller(head).or_else(|| wire::head_fault(head))
    }

    fn unknown_caller(&self, head: &request::Parts) -> Option<Rejection> {
        let auth = self.shared.auth.as_ref()?;
        let given = head.headers.get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        (!auth.verify(given)).then_some(Rejection::Unauthorized)
    }

    fn rejected(
        &self,
        head: &request::Parts,
        rejection: &Rejection,
        in_force: &InForce,
        notes: &mut Notes,
    ) -> Reply {
        let target = Target::parse(&head.uri).unwrap_or_else(|_| Target::none());
        let command = notes.name_by_head(head, &target);
        notes.detail = Some(rejection.to_string());
        Reply::rejection(rejection, in_force.policy.validation().on_rejection, echoes(command))
    }

    fn record(&self, reply: &Reply, callback: Option<&Callback>, notes: &Notes, started: Instant) {
        let (command, name, operation_id) = match callback {
            Some(callback) => (callback.command(), callback.target().name(), &callback.operation_id().text),
            None => (notes.command, &*notes.name, &notes.operation_id),
        };
        let now = Instant::now();
        let took = now - started;
        let rule = notes.rule.as_ref().unwrap_or(&self.no_rule);
        let margin = notes.deadline.map(|deadline| match deadline.checked_duration_since(now) {
            Some(left) => left.as_secs_f64(),
            None => -(now - deadline).as_secs_f64(),
        });
        self.recorder.record(&Counting {
            command,
            rule,
            verdict: reply.verdict(),
            origin: reply.origin(),
            why: reply.why(),
            findings: reply.findings(),
            took,
            margin,
        });
        if let Some((_, why)) = notes.instead {
            self.recorder.observed(why);
        }
        let in_header = callback.and_then(Callback::header_operation_id);
        let decision = log::Decision {
            operation_id,
            header_operation_id: in_header.as_deref(),
            command: name,
            rule: notes.rule.as_deref().unwrap_or_default(),
            verdict: reply.verdict(),
            origin: reply.origin(),
            why: reply.why(),
            findings: reply.findings(),
            took,
            detail: notes.detail.as_deref(),
            instead: notes.instead,
            over: notes.over.as_deref(),
        };
        let mut line = self.line.borrow_mut();
        line.clear();
        let mut clock = self.clock.borrow_mut();
        let stamp = clock.stamp(now);
        decision.write(&mut line, Format::Json, stamp);
        let logged = decision.level() <= self.shared.config.log_level;
        let format = self.shared.config.log_format;
        if reply.why() == Why::Rejection(RejectionCause::Unauthorized) {
            return self.record_stranger(decision, logged.then_some(format), stamp, &line);
        }
        self.shared.recent.push(&line);
        if !logged {
            return;
        }
        if format == Format::Text {
            line.clear();
            decision.write(&mut line, Format::Text, stamp);
        }
        self.shared.log.push(line.as_bytes());
    }

    /// Records what anybody can send: one line a second, so that the decisions about callers stay in the log and among the recent
    /// ones.
    fn record_stranger(&self, decision: log::Decision<'_>, logged: Option<Format>, stamp: &str, json: &str) {
        static STRANGERS: log::Repeated = log::Repeated::new();
        let mut line = String::new();
        if let Some(format) = logged {
            decision.write(&mut line, format, stamp);
        }
        let (json, recent, queue) = (json.to_owned(), self.shared.recent.clone(), self.shared.log.clone());
        STRANGERS.line(move |count| {
            recent.push(&json);
            if let Some(format) = logged {
                log::Decision::add_count(&mut line, format, count);
                queue.push(line.as_bytes());
            }
        });
    }

    /// An operation ID for a caller that sent none: unlike any other of this process, and of others.
    fn generate(&self) -> String {
        use std::hash::{BuildHasher as _, RandomState};
        self.generated.set(self.generated.get() + 1);
        format!("guard-{:016x}", RandomState::new().hash_one((self.generated.get(), SystemTime::now())))
    }
}

/// Takes a head from where it came.
fn take(head: &mut request::Parts) -> request::Parts {
    std::mem::replace(head, Request::new(()).into_parts().0)
}

/// Takes what the target says from where it came.
fn take_named(named: &mut Result<Named, Rejection>) -> Result<Named, Rejection> {
    std::mem::replace(named, Err(Rejection::NoCommand))
}

/// The time, where the policy looks at it: an override ends by itself.
fn time(in_force: &InForce) -> SystemTime {
    if in_force.over.is_some() { SystemTime::now() } else { SystemTime::UNIX_EPOCH }
}

/// Whether an allow of this command must echo the request.
fn echoes(command: Option<&Command>) -> bool {
    match command.map(|command| command.default) {
        Some(SafeDefault::Echo(_)) => true,
        Some(SafeDefault::Plain) | None => false,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
