//! One namespace that is served: its certificate, the CA, its policies and its pods, each namespace for itself, so that trouble
//! with one keeps no other waiting.

use std::rc::Rc;
use std::time::Duration;

use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::ca::{InForce, TICK};
use super::certificates::{Bundle, Leaf};
use super::findings::Finding;
use super::kept::{Kept, about};
use super::pods::{Deciding, Pods};
use super::policies::{Starter, follow_policies};
use super::write::Writer;
use super::{Current, Served, Shared};
use crate::api_server::Target;
use crate::sidecar::annotations::PREFIX;
use crate::sidecar::census;

/// How often pods are counted if nothing has changed.
const COUNT: Duration = Duration::from_secs(60);

/// The reason of a finding about a namespace that is not there.
const MISSING: &str = "NoNamespace";

/// Looks after a namespace for ever.
pub(super) async fn serve(
    shared: Rc<Shared>,
    served: Served,
    writer: Writer,
    authority: InForce,
    current: watch::Receiver<Current>,
) {
    let news = Rc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let name = served.name.as_str();
    follow_policies(&shared, name, &mut tasks);
    let mut keeper = Keeper {
        namespace: follow_namespace(&shared, name, &news, &mut tasks),
        bundle: Bundle::follow(&shared, name, &writer, &news, &mut tasks),
        leaf: (!served.external_tls).then(|| {
            let names = served.certificate_names(&shared.config.cluster_domain);
            Leaf::follow(&shared, name, names, &writer, (&news, &mut tasks))
        }),
        starter: Starter::new(&shared, name, &writer),
        pods: Pods::new(&shared, name, &news),
        uid: None,
        seen: None,
        metadata: None,
        labeled_since: None,
        authority,
        current,
        shared,
    };
    let mut counted: Option<Instant> = None;
    loop {
        let changed = tokio::select! {
            () = news.notified() => true,
            _ = keeper.authority.changed() => true,
            _ = keeper.current.changed() => true,
            () = sleep(TICK) => false,
        };
        keeper.keep().await;
        if changed || counted.is_none_or(|at| at.elapsed() >= COUNT) {
            keeper.pods.report();
            counted = Some(Instant::now());
        }
        if changed {
            // What comes in a burst is looked at once.
            sleep(BREATH).await;
        }
    }
}

/// Changes that come within this time are looked at together.
const BREATH: Duration = Duration::from_millis(200);

/// A namespace where only the CA is published. Runs for ever.
pub(super) async fn publish(shared: Rc<Shared>, name: String, writer: Writer, mut authority: InForce) {
    let news = Rc::new(Notify::new());
    let mut tasks = JoinSet::new();
    let mut bundle = Bundle::follow(&shared, &name, &writer, &news, &mut tasks);
    loop {
        let now = authority.borrow_and_update().clone();
        if let Some(now) = now {
            bundle.keep(&now).await;
        }
        tokio::select! {
            () = news.notified() => {}
            _ = authority.changed() => {}
            () = sleep(TICK) => {}
        }
    }
}

fn follow_namespace(
    shared: &Rc<Shared>,
    name: &str,
    news: &Rc<Notify>,
    tasks: &mut JoinSet<()>,
) -> Kept<DynamicObject> {
    let target = Target {
        kind: "Namespace",
        group: "",
        resource: "namespaces",
        namespace: None,
        name: Some(name.to_owned()),
    };
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Namespace>(&());
    let api = move |client| Api::all_with(client, &resource);
    Kept::follow(target, api, (&shared.pool, &shared.findings, news), tasks)
}

struct Keeper {
    shared: Rc<Shared>,
    namespace: Kept<DynamicObject>,
    uid: Option<String>,
    /// The version of it that was looked at last.
    seen: Option<u64>,
    /// What of its metadata decides about pods; `None` if it does not exist, or is being deleted.
    metadata: Option<Value>,
    bundle: Bundle,
    leaf: Option<Leaf>,
    starter: Starter,
    pods: Pods,
    /// Since when the namespace has its label, in seconds since 1970; while it has it, only an earlier time is believed.
    labeled_since: Option<i64>,
    authority: InForce,
    current: watch::Receiver<Current>,
}

impl Keeper {
    async fn keep(&mut self) {
        if !self.namespace.is_known() {
            return;
        }
        if self.seen != Some(self.namespace.version()) {
            self.seen = Some(self.namespace.version());
            self.look();
        }
        let Some(metadata) = self.metadata.clone() else { return };
        // Before the CA, whose ConfigMap notes that it was created.
        self.starter.keep(&mut self.bundle).await;
        let now = self.authority.borrow_and_update().clone();
        if let Some(now) = now {
            // First who is to trust it, then what is signed.
            self.bundle.keep(&now).await;
            if let Some(leaf) = &mut self.leaf {
                leaf.keep(&now).await;
            }
        }
        let current = self.current.borrow_and_update().clone();
        if let Some(current) = current {
            self.pods.keep(&Deciding { namespace: metadata, labeled_since: self.labeled_since, current });
        }
    }

    /// Looks at the namespace as it is now.
    fn look(&mut self) {
        let about = about(self.namespace.target());
        let namespace = self.namespace.get();
        let uid = namespace.as_ref().and_then(|namespace| namespace.metadata.uid.clone());
        if self.uid.is_some() && self.uid != uid {
            self.bundle.begin_anew();
            self.starter.begin_anew();
            self.shared.metrics.forget(&about.name);
        }
        self.uid = uid.or(self.uid.take());
        let there = namespace.filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
        self.metadata = there.map(|there| {
            let metadata = serde_json::to_value(there.metadata).unwrap_or_default();
            let found = census::label_time(&metadata);
            self.labeled_since = match (self.labeled_since, found) {
                (Some(known), Some(found)) => Some(known.min(found)),
                (None, found) => found,
                (Some(_), None) => None,
            };
            ours(&metadata)
        });
        let finding = self.metadata.is_none().then(|| Finding {
            about: about.clone(),
            reason: MISSING,
            text: format!(
                "namespace {} does not exist or is being deleted, so nothing is done for it: create it, or take it from \
                 --namespaces",
                about.name
            ),
            urgent: true,
            event: false,
            over: None,
        });
        self.shared.findings.set(&about, MISSING, finding);
    }
}

/// The labels and annotations that decide about pods, without what changes for other reasons.
fn ours(metadata: &Value) -> Value {
    let part = |name: &str| {
        let all = metadata.get(name).and_then(Value::as_object).into_iter().flatten();
        let ours = all.filter(|(key, _)| key.starts_with(PREFIX));
        ours.map(|(key, value)| (key.clone(), value.clone())).collect::<serde_json::Map<_, _>>()
    };
    json!({"labels": part("labels"), "annotations": part("annotations")})
}
