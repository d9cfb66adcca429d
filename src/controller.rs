//! The controller: certificates, policies and pods of the namespaces served, on no request path.
//!
//! Replicas elect a leader, which alone writes. It keeps everything as it should be for as long as it leads:
//!
//! ```text
//!                       ┌─ ca            one Secret: who signs, and who signs next
//!   leadership ── lead ─┼─ namespace     for each one: CA and certificate, starter policy, policies, pods
//!                       ├─ namespace …   (only the CA in those of OpenIM)
//!                       ├─ policy        what the admission policy in the cluster writes into pods
//!                       └─ findings      Events of what is wrong, and of what is mended
//! ```
//!
//! Whoever loses the Lease drops all of it and begins anew when it has the Lease again. If the controller is away, guarded apps
//! go on as they are; certificates last for a third of their lifetime after the moment in which they should have been renewed.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::api_server::{Pool, Target};
use crate::authority::{Authority, Clocks, Lifetimes};
use crate::sidecar::annotations::PREFIX;
use crate::sidecar::{INJECTED, Installation, admission};
use crate::tls;

use self::findings::{Finding, Findings};
use self::kept::{Kept, about};
use self::leadership::{Leadership, Term};
use self::metrics::Metrics;
use self::write::Writer;

mod ca;
mod certificates;
mod findings;
mod kept;
mod leadership;
pub mod metrics;
mod namespace;
mod owned;
pub mod page;
mod pods;
mod policies;
mod write;

/// The reason of a finding about admission policies that are not there.
const NO_POLICY: &str = "NoAdmissionPolicy";

/// What the controller is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the Lease and the CA's Secret are.
    pub own_namespace: String,
    /// The name of this replica, different from all others that are or were.
    pub identity: String,
    /// The namespaces served.
    pub namespaces: Vec<Served>,
    /// Namespaces where only the CA is published: OpenIM's.
    pub trust_namespaces: Vec<String>,
    /// The suffix of the names of Services.
    pub cluster_domain: String,
    /// How long CAs and certificates last.
    pub lifetimes: Lifetimes,
    /// How long a silent holder keeps the Lease; whole seconds.
    pub lease_duration: Duration,
    /// What decides which pods can have a sidecar.
    pub installation: Installation,
}

/// A namespace that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its name.
    pub name: String,
    /// Services in it, whose short names the certificate is for too.
    pub services: Vec<String>,
    /// Somebody else provides the Secret with the certificate.
    pub external_tls: bool,
}

impl Config {
    fn setting(&self, name: &str) -> &str {
        self.installation.settings.get(name).map_or("", String::as_str)
    }

    /// The Secret with the certificate of the sidecars.
    pub fn tls_secret(&self) -> &str {
        self.setting("tls-secret")
    }

    /// The ConfigMap with the policy.
    pub fn policy_configmap(&self) -> &str {
        self.setting("policy-configmap")
    }
}

impl Served {
    /// The names that OpenIM may call: of every Service of the namespace, long and with the domain, and the short ones of those
    /// that were named.
    pub fn certificate_names(&self, domain: &str) -> Vec<String> {
        let namespace = &self.name;
        let mut names = vec![format!("*.{namespace}.svc"), format!("*.{namespace}.svc.{domain}")];
        for service in &self.services {
            names.extend([service.clone(), format!("{service}.{namespace}")]);
        }
        names
    }
}

/// What all parts of the controller share.
#[derive(Debug)]
pub struct Shared {
    /// What to do.
    pub config: Config,
    findings: Findings,
    metrics: Metrics,
    leadership: Leadership,
    pool: Pool,
    /// The authority of the last term, for a Secret that is gone when the next one begins.
    last_authority: RefCell<Option<Rc<Authority>>>,
}

impl Shared {
    /// Nothing is done yet.
    pub fn new(config: Config, metrics: Metrics) -> Shared {
        let client = format!("callback-guard/{} controller {}", env!("CARGO_PKG_VERSION"), config.identity);
        let pool = Pool::new(&client);
        // Connections of its own: whatever else waits for an answer, the Lease is renewed.
        let leadership = Leadership::new(&config, Pool::new(&client));
        let with_events = config.namespaces.iter().map(|served| &served.name).chain([&config.own_namespace]);
        let findings = Findings::new(with_events.cloned().collect());
        Shared { config, findings, metrics, leadership, pool, last_authority: RefCell::default() }
    }

    /// This machine's clock and the API server's.
    fn clocks(&self) -> Clocks {
        /// Whole seconds, and the way of an answer.
        const JITTER: i64 = 2;
        let (now, ahead) = (tls::now(), self.pool.server_ahead());
        let ahead = if ahead.abs() <= JITTER { 0 } else { ahead };
        Clocks::new(now, now + ahead)
    }
}

/// Runs until `ending`, and releases the Lease then.
pub async fn run(shared: Rc<Shared>, ending: impl Future<Output = ()>) {
    tokio::pin!(ending);
    let following = shared.leadership.follow();
    tokio::pin!(following);
    loop {
        let term = tokio::select! {
            term = shared.leadership.acquire() => term,
            () = &mut following => unreachable!("it runs for ever"),
            () = &mut ending => return,
        };
        info!(identity = shared.config.identity, "This replica leads");
        shared.metrics.leads(true);
        let mut leading = Box::pin(lead(&shared, &term));
        let lost = tokio::select! {
            lost = shared.leadership.keep(&term) => Some(lost),
            () = &mut leading => unreachable!("it runs for ever"),
            () = &mut following => unreachable!("it runs for ever"),
            () = &mut ending => None,
        };
        let Some(reason) = lost else {
            let release = async {
                shared.leadership.close(&term).await;
                shared.leadership.release().await;
            };
            return tokio::select! {
                () = release => {}
                () = &mut leading => unreachable!("it runs for ever"),
                () = &mut following => unreachable!("it runs for ever"),
            };
        };
        drop(leading);
        shared.metrics.leads(false);
        shared.findings.forget();
        warn!(reason, "The Lease is lost: this replica waits until it may lead again");
    }
}

/// Everything that the leader does. Runs for ever; what it has begun ends when it is dropped.
async fn lead(shared: &Rc<Shared>, term: &Term) {
    let writer = Writer { pool: shared.pool.clone(), term: term.clone() };
    let mut tasks = JoinSet::new();
    let authority = ca::Keeper::start(shared, &writer, &mut tasks);
    let current = follow_policy(shared, &mut tasks);
    for served in &shared.config.namespaces {
        let (shared, writer) = (Rc::clone(shared), writer.clone());
        tasks.spawn_local(namespace::serve(
            shared,
            served.clone(),
            writer,
            authority.clone(),
            current.clone(),
        ));
    }
    for name in &shared.config.trust_namespaces {
        let (shared, writer) = (Rc::clone(shared), writer.clone());
        tasks.spawn_local(namespace::publish(shared, name.clone(), writer, authority.clone()));
    }
    shared.findings.write_events(&writer).await;
}

/// What the policy in the cluster writes into the label of pods, if there is one; `None` until that is known.
type Current = Option<Option<String>>;

/// How long it is waited for what is in the cluster.
const PATIENCE: Duration = Duration::from_secs(10);

/// Follows what the policy in the cluster writes into the label of pods.
fn follow_policy(shared: &Rc<Shared>, tasks: &mut JoinSet<()>) -> watch::Receiver<Current> {
    let (sender, receiver) = watch::channel(None);
    let target = Target {
        kind: admission::MUTATING,
        group: "admissionregistration.k8s.io",
        resource: "mutatingadmissionpolicies",
        namespace: None,
        name: Some(admission::POLICY.to_owned()),
    };
    let resource = ApiResource {
        group: target.group.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{}/v1", target.group),
        kind: target.kind.to_owned(),
        plural: target.resource.to_owned(),
    };
    let api = move |client| Api::<DynamicObject>::all_with(client, &resource);
    let news = Rc::new(Notify::new());
    let kept = Kept::follow(target, api, (&shared.pool, &shared.findings, &news), tasks);
    let shared = Rc::clone(shared);
    tasks.spawn_local(async move {
        loop {
            tokio::select! {
                () = news.notified() => {}
                // Pods are counted without it then.
                () = tokio::time::sleep(PATIENCE) => {}
            }
            let policy = kept.get();
            let about = about(kept.target());
            let missing = kept.is_known() && policy.is_none();
            let text = || {
                format!(
                    "{about} does not exist, so new pods get no sidecar: apply the output of callback-guard admission-policy, or \
                     upgrade the release of the chart"
                )
            };
            let finding = missing.then(|| Finding {
                about: about.clone(),
                reason: NO_POLICY,
                text: text(),
                urgent: true,
                event: false,
                over: None,
            });
            shared.findings.set(&about, NO_POLICY, finding);
            let current = policy.and_then(|policy| policy.metadata.labels?.get(&format!("{PREFIX}{INJECTED}")).cloned());
            sender.send_if_modified(|now| now.replace(current.clone()).as_ref() != Some(&current));
        }
    });
    receiver
}
