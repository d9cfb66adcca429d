//! Which replica writes: the one that holds a Lease, for as long as it renews it.
//!
//! The Lease is created by server-side apply, which is the same for everybody, and taken over by a PUT with the resourceVersion
//! that was seen last: of two that try, the API server takes one. A forced apply is no lock, as both would be taken.
//!
//! ```text
//!   renewed          two thirds of the duration             the duration
//!   ├────────────────────────────┼──────────────────────────────┤
//!   the holder writes            it has stopped, whatever       another replica may take over, if it has
//!                                it hears or does not hear      seen no renewal for so long by its own clock
//! ```
//!
//! Nothing here compares the clocks of two machines: `renewTime` is for people. In the third between, a write that was sent
//! before still arrives; what it changes has a resourceVersion of its own to hold it against.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use super::Config;
use super::write::{MANAGER, is_older, labels};
use crate::api_server::{Action, Door as _, Followed, Observer, Opened, Pool, Target, explain, follow};
use crate::sidecar::admission::rights::CONTROLLER as NAME;
use crate::sidecar::admission::sha256;

/// How long a request about the Lease may take.
const REQUEST: Duration = Duration::from_secs(5);

/// How long to wait before another try.
const RETRY: Duration = Duration::from_secs(1);

/// What is known of the Lease, and the right to write that comes of it.
#[derive(Debug)]
pub(super) struct Leadership {
    namespace: String,
    identity: String,
    duration: Duration,
    pool: Pool,
    seen: Rc<RefCell<Seen>>,
    news: Rc<Notify>,
}

#[derive(Debug, Default)]
struct Seen {
    listed: bool,
    lease: Option<Lease>,
    /// When it was seen to change.
    changed: Option<Instant>,
    problem: Option<String>,
}

impl Seen {
    /// `listed`: a list brought it, which is not older than what was seen, whatever its version says: etcd may have been
    /// restored from a backup.
    fn take(&mut self, lease: Option<Lease>, listed: bool) {
        if let (Some(known), Some(new)) = (&self.lease, &lease)
            && (!listed && is_older(&new.metadata, &known.metadata)
                || new.metadata.resource_version == known.metadata.resource_version)
        {
            return;
        }
        self.lease = lease;
        self.changed = Some(Instant::now());
    }
}

/// The time during which this replica may write. Clones are the same term.
#[derive(Clone, Debug)]
pub(super) struct Term(Rc<TermState>);

#[derive(Debug)]
struct TermState {
    name: String,
    /// Writing ends here, unless the Lease is renewed before.
    until: Cell<Instant>,
    closed: Cell<bool>,
    writes: Cell<usize>,
    written: Notify,
}

impl Term {
    fn new(name: String, until: Instant) -> Term {
        Term(Rc::new(TermState {
            name,
            until: Cell::new(until),
            closed: Cell::new(false),
            writes: Cell::new(0),
            written: Notify::new(),
        }))
    }

    /// A word that no other term has: for the field manager of what is created in it.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// Begins a write. `None`: no write may begin.
    pub(super) fn begin_write(&self) -> Option<Write> {
        let until = self.0.until.get();
        if self.0.closed.get() || Instant::now() >= until {
            return None;
        }
        self.0.writes.set(self.0.writes.get() + 1);
        Some(Write { term: self.clone() })
    }

    /// Lets no further write begin, and waits for those under way, up to this moment.
    async fn close(&self, patience: Duration) {
        self.0.closed.set(true);
        let over = async {
            while self.0.writes.get() > 0 {
                self.0.written.notified().await;
            }
        };
        let _ = timeout(patience, over).await;
    }
}

/// A write under way.
#[derive(Debug)]
#[must_use = "the write is under way until this is dropped"]
pub(super) struct Write {
    term: Term,
}

impl Write {
    /// When it has to be over, unless the Lease is renewed before.
    pub(super) fn until(&self) -> Instant {
        self.term.0.until.get()
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.term.0.writes.set(self.term.0.writes.get() - 1);
        self.term.0.written.notify_one();
    }
}

impl Leadership {
    /// Nothing is known yet. Follow the Lease with [`Leadership::follow`].
    pub(super) fn new(config: &Config, pool: Pool) -> Leadership {
        Leadership {
            namespace: config.own_namespace.clone(),
            identity: config.identity.clone(),
            duration: config.lease_duration,
            pool,
            seen: Rc::default(),
            news: Rc::new(Notify::new()),
        }
    }

    /// Who writes: the holder as it was seen last.
    pub(super) fn holder(&self) -> Option<String> {
        self.seen.borrow().lease.as_ref().and_then(holder).map(str::to_owned)
    }

    /// Whether the Lease has been looked up once.
    pub(super) fn is_known(&self) -> bool {
        self.seen.borrow().listed
    }

    /// Why the Lease cannot be watched.
    pub(super) fn problem(&self) -> Option<String> {
        self.seen.borrow().problem.clone()
    }

    fn target(&self) -> Target {
        Target {
            kind: "Lease",
            group: "coordination.k8s.io",
            resource: "leases",
            namespace: Some(self.namespace.clone()),
            name: Some(NAME.to_owned()),
        }
    }

    /// Watches the Lease for ever.
    pub(super) async fn follow(&self) {
        let observer = Watching {
            seen: Rc::clone(&self.seen),
            news: Rc::clone(&self.news),
            found: false,
            in_list: false,
        };
        let followed = Followed { target: self.target(), labels: String::new(), page: Some(10) };
        let api = |client| Api::namespaced(client, &self.namespace);
        follow(followed, self.pool.clone(), api, observer).await;
    }

    /// Waits until this replica holds the Lease.
    pub(super) async fn acquire(&self) -> Term {
        let mut reported = None;
        loop {
            if let Some(rest) = self.rest() {
                tokio::select! {
                    () = self.news.notified() => {}
                    () = sleep_until(rest) => {}
                }
                continue;
            }
            let known = self.seen.borrow().lease.clone();
            let taken = match known {
                None => self.create().await,
                Some(lease) => self.put(&lease, &self.identity, true).await,
            };
            match taken {
                Ok(Some(term)) => return term,
                Ok(None) => {}
                Err(problem) => {
                    if reported.as_ref() != Some(&problem) {
                        warn!(reason = problem, "The Lease cannot be taken; trying again");
                        reported = Some(problem);
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// When to look again, if the Lease cannot be taken now.
    fn rest(&self) -> Option<Instant> {
        let seen = self.seen.borrow();
        if !seen.listed {
            return Some(Instant::now() + self.duration);
        }
        let lease = seen.lease.as_ref()?;
        let free = holder(lease).is_none_or(|holder| holder == self.identity);
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let duration = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let expires = seen.changed? + duration.map_or(self.duration, Duration::from_secs);
        (!free && Instant::now() < expires).then_some(expires)
    }

    /// Creates the Lease without a holder, which anybody may do at once, and looks at what is there then.
    async fn create(&self) -> Result<Option<Term>, String> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": NAME, "namespace": self.namespace, "labels": labels()},
        });
        let patch = kube::api::Patch::Apply(&lease);
        let params = kube::api::PatchParams::apply(MANAGER);
        let lease = self
            .request(Action::Apply, async |api: Api<Lease>| api.patch(NAME, &params, &patch).await)
            .await?;
        self.seen.borrow_mut().take(Some(lease.clone()), false);
        // Whoever was faster holds it.
        if holder(&lease).is_some() { Ok(None) } else { self.put(&lease, &self.identity, true).await }
    }

    /// Replaces the Lease, unless it has changed since it was seen. An empty holder releases it.
    async fn put(&self, lease: &Lease, identity: &str, acquires: bool) -> Result<Option<Term>, String> {
        let begun = Instant::now();
        let now = MicroTime(Timestamp::now());
        let mut lease = lease.clone();
        lease.metadata.managed_fields = None;
        let before = lease.spec.take().unwrap_or_default();
        let same = !acquires && before.holder_identity.as_deref() == Some(identity);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            acquire_time: if same { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            lease_transitions: Some(before.lease_transitions.unwrap_or_default() + i32::from(acquires)),
            ..LeaseSpec::default()
        });
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let done = self
            .request(Action::Replace, async |api: Api<Lease>| {
                match api.replace(NAME, &params, &lease).await {
                    Ok(lease) => Ok(Some(lease)),
                    // Somebody else was faster, or it was deleted: the watch brings what is there.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await?;
        match done {
            Some(lease) => {
                // Each term is a transition of the Lease, which nobody else can have made.
                let transitions =
                    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
                let name =
                    sha256(&[&lease.uid().unwrap_or_default(), &self.identity, &transitions.to_string()]);
                self.seen.borrow_mut().take(Some(lease), false);
                Ok(Some(Term::new(name, begun + self.writing_time())))
            }
            None => {
                // Not at once again with the same version.
                let _ = timeout(RETRY, self.news.notified()).await;
                Ok(None)
            }
        }
    }

    /// How long after a renewal was sent writing goes on.
    fn writing_time(&self) -> Duration {
        self.duration * 2 / 3
    }

    async fn request<T>(
        &self,
        action: Action,
        send: impl AsyncFnOnce(Api<Lease>) -> Result<T, kube::Error>,
    ) -> Result<T, String> {
        let whole = async {
            let Opened { client, place, .. } = self.pool.open().await?;
            let done = send(Api::namespaced(client, &self.namespace)).await;
            done.map_err(|error| explain(&error, &place, action, &self.target()))
        };
        let late = |_| format!("the API server did not answer within {} s", REQUEST.as_secs());
        timeout(REQUEST, whole).await.map_err(late)?
    }

    /// Renews the Lease until it is lost, and says why it is.
    pub(super) async fn keep(&self, term: &Term) -> String {
        let mut next = Instant::now() + self.duration / 3;
        let mut problem = None;
        loop {
            let until = term.0.until.get();
            sleep_until(next.min(until)).await;
            if Instant::now() >= until {
                let reason = problem.unwrap_or_else(|| "no renewal was answered".to_owned());
                return format!("it could not be renewed in time: {reason}");
            }
            let lease = self.seen.borrow().lease.clone();
            let lease = match lease {
                Some(lease) if holder(&lease) == Some(self.identity.as_str()) => lease,
                Some(lease) => {
                    let other = holder(&lease).unwrap_or("nobody");
                    return format!("{other} holds it now");
                }
                None => return "it was deleted".to_owned(),
            };
            match timeout_at(until, self.put(&lease, &self.identity, false)).await {
                Ok(Ok(Some(renewed))) => {
                    term.0.until.set(renewed.0.until.get());
                    (next, problem) = (Instant::now() + self.duration / 3, None);
                }
                Ok(Ok(None)) => problem = Some("it has changed meanwhile".to_owned()),
                Ok(Err(reason)) => {
                    if problem.as_ref() != Some(&reason) {
                        warn!(reason, "The Lease cannot be renewed; trying again");
                    }
                    (next, problem) = (Instant::now() + RETRY, Some(reason));
                }
                Err(_) => {}
            }
        }
    }

    /// Lets no further write begin, and the ones under way finish.
    pub(super) async fn close(&self, term: &Term) {
        term.close(REQUEST).await;
    }

    /// Gives the Lease to whoever wants it.
    pub(super) async fn release(&self) {
        // A renewal that was under way may have changed it.
        for _ in 0..3 {
            let lease = self.seen.borrow().lease.clone();
            let Some(lease) = lease.filter(|lease| holder(lease) == Some(self.identity.as_str())) else {
                return;
            };
            match self.put(&lease, "", false).await {
                Ok(Some(_)) => return info!("The Lease is released"),
                Ok(None) => {}
                Err(reason) => {
                    return warn!(
                        reason,
                        "The Lease cannot be released; another replica takes it when it expires"
                    );
                }
            }
        }
        warn!("The Lease has changed again and again; another replica takes it when it expires");
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

struct Watching {
    seen: Rc<RefCell<Seen>>,
    news: Rc<Notify>,
    found: bool,
    in_list: bool,
}

impl Observer<Lease> for Watching {
    fn listing(&mut self) {
        (self.found, self.in_list) = (false, true);
    }

    fn found(&mut self, object: Lease) {
        self.found = true;
        self.seen.borrow_mut().take(Some(object), self.in_list);
        self.news.notify_waiters();
    }

    fn listed(&mut self) {
        self.in_list = false;
        let mut seen = self.seen.borrow_mut();
        seen.listed = true;
        if !self.found {
            seen.take(None, true);
        }
        drop(seen);
        self.news.notify_waiters();
    }

    fn deleted(&mut self, object: Lease) {
        let mut seen = self.seen.borrow_mut();
        // Not one that was made again meanwhile.
        if seen.lease.as_ref().is_none_or(|known| known.uid() == object.uid()) {
            seen.take(None, true);
        }
        drop(seen);
        self.news.notify_waiters();
    }

    fn connected(&mut self, connected: bool) {
        if connected {
            self.seen.borrow_mut().problem = None;
        }
    }

    fn trouble(&mut self, problem: &str) {
        warn!(reason = problem, "The Lease cannot be watched");
        self.seen.borrow_mut().problem = Some(problem.to_owned());
    }

    fn recovered(&mut self) {
        info!("The Lease is watched again");
    }
}
