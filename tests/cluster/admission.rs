//! The admission policies on a real API server: what tests of them share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use callback_guard::sidecar::patch::Operation;
use callback_guard::sidecar::{self, Injection, Installation, Request};
use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::cluster::{Cluster, Stage, clean, eventually, run};

mod audited;
mod census;
mod equality;
mod labels;
pub(crate) mod node;
mod others;
mod storm;
mod trust;
mod values;
mod warnings;

/// How many namespaces the policy of the tests serves; each test takes its own.
const SERVED: usize = 90;

/// The image of the sidecar, which no pod of stage A pulls.
const IMAGE: &str = "callback-guard:test";

/// The policies as they were applied to the shared API server.
pub(crate) struct Admission {
    pub(crate) cluster: &'static Cluster,
    /// The manifests.
    pub(crate) applied: String,
    taken: AtomicUsize,
}

/// The name of a namespace that the policy serves.
fn served(number: usize) -> String {
    format!("served-{}-{number}", std::process::id())
}

/// What the program prints for these namespaces, with these flags.
pub(crate) fn printed(namespaces: &[String], flags: &[&str]) -> String {
    let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
    command.args(["admission-policy", "--image", IMAGE, "--namespaces", &namespaces.join(",")]).args(flags);
    run(&mut command, None).unwrap_or_else(|said| panic!("admission-policy: {said}"))
}

/// The same installation for `inject`.
pub(crate) fn installation() -> Installation {
    Installation::of_image(IMAGE)
}

/// The policies in force on the shared cluster of stage A; `None` if this machine cannot hold one.
pub(crate) fn admission() -> Option<&'static Admission> {
    static ADMISSION: OnceLock<Option<Admission>> = OnceLock::new();
    let start = || {
        let cluster = Cluster::shared(Stage::A)?;
        let namespaces: Vec<_> = (0..SERVED).map(served).collect();
        // Roles need their namespaces; here nothing watches a ConfigMap.
        let printed = printed(&namespaces, &["--own-namespace", OWN]);
        let objects: Vec<_> =
            printed.split("---\n").filter(|object| !object.contains("kind: Role")).collect();
        let applied = objects.join("---\n");
        cluster.apply(&applied);
        let admission = Admission { cluster, applied, taken: AtomicUsize::new(0) };
        let mut client = Client::of(cluster);
        let namespace = admission.namespace(&mut client, &json!({INJECT: "enabled"}), &json!({}));
        let wrong = json!({INJECT: "enabled", "callback-guard.io/trust": "wrong"});
        eventually("every policy in force", || {
            let good = client.dry_run(&namespace, &pod());
            let bad = client.dry_run(&namespace, &annotated("workers", "0"));
            let workload = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "labels": {INJECT: "enabled"}},
                "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
                    "metadata": {"labels": {"a": "b"}}, "spec": pod()["spec"]
                }},
            });
            let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments?dryRun=All");
            let workload = client.create(&path, &workload);
            let trusting =
                json!({"metadata": {"name": "x", "labels": wrong}, "kind": "Namespace", "apiVersion": "v1"});
            let trusting = client.create("/api/v1/namespaces?dryRun=All", &trusting);
            let warned = [&bad, &workload, &trusting].iter().all(|reply| !reply.warnings.is_empty());
            let mut trust = pod();
            trust["metadata"]["labels"] = json!({"callback-guard.io/trust": "enabled"});
            let trusts = client.dry_run(&namespace, &trust).body.to_string().contains("SSL_CERT_DIR");
            (has_sidecar(&good.body) && warned && trusts).then_some(())
        });
        Some(admission)
    };
    ADMISSION.get_or_init(start).as_ref()
}

/// The label that asks for a sidecar.
pub(crate) const INJECT: &str = "callback-guard.io/inject";

/// The namespace of the installation.
const OWN: &str = "callback-guard-own";

impl Admission {
    /// A fresh namespace that the policy serves.
    pub(crate) fn namespace(&self, client: &mut Client, labels: &Value, annotations: &Value) -> String {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        assert!(number < SERVED, "more tests than namespaces: raise SERVED");
        let name = served(number);
        self.prepare(client, &name, labels, annotations);
        // Without the service account no pod is admitted; the API server sees it in a cache of its own.
        eventually("pods in a fresh namespace", || client.dry_run(&name, &pod()).is_success().then_some(()));
        name
    }

    /// The same where a plain pod may not be admitted.
    pub(crate) fn namespace_without_probe(&self, client: &mut Client, labels: &Value) -> String {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        assert!(number < SERVED, "more tests than namespaces: raise SERVED");
        self.prepare(client, &served(number), labels, &json!({}));
        served(number)
    }

    /// A namespace of any name, with its service account.
    pub(crate) fn prepare(&self, client: &mut Client, name: &str, labels: &Value, annotations: &Value) {
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        let created = client.create(
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
        );
        if created.status == 409 {
            let patched = client.patch(&format!("/api/v1/namespaces/{name}"), &json!({"metadata": metadata}));
            assert!(patched.is_success(), "{patched:?}");
        } else {
            assert!(created.is_success(), "{created:?}");
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let account = client.create(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account);
        assert!(account.is_success() || account.status == 409, "{account:?}");
    }
}

/// A small app that declares its port.
pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"},
        "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 3000}]}]},
    })
}

/// The same with an annotation of ours.
pub(crate) fn annotated(name: &str, value: &str) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({format!("callback-guard.io/{name}"): value});
    pod
}

/// Whether a pod has exactly one sidecar.
pub(crate) fn has_sidecar(pod: &Value) -> bool {
    sidecars(pod) == 1
}

/// How many sidecars a pod has.
pub(crate) fn sidecars(pod: &Value) -> usize {
    let inits = pod["spec"]["initContainers"].as_array().map(Vec::as_slice).unwrap_or_default();
    inits.iter().filter(|container| container["name"] == "callback-guard").count()
}

/// The warnings of our policies.
pub(crate) fn ours(reply: &Reply) -> Vec<&str> {
    let ours =
        reply.warnings.iter().filter(|warning| warning.contains("ValidatingAdmissionPolicy 'callback-guard"));
    ours.map(String::as_str).collect()
}

/// The pod as `inject -f` makes it, if it does; `metadata` is that of its namespace.
pub(crate) fn injected(
    pod: &Value,
    metadata: Option<&Value>,
    installation: &Installation,
) -> Result<Value, Injection> {
    let request = Request { namespace: None, namespace_metadata: metadata, by_name: true };
    match sidecar::inject(pod, &request, installation) {
        Injection::Patch { steps, .. } => {
            let mut pod = pod.clone();
            assert!(steps.iter().all(|step: &Operation| step.apply(&mut pod)), "{pod}");
            Ok(pod)
        }
        other @ (Injection::Skipped(_) | Injection::Refused(_)) => Err(other),
    }
}

/// One client for each test: a connection is not shared.
pub(crate) fn with_client(test: impl FnOnce(&'static Admission, &mut Client)) {
    let Some(admission) = admission() else { return };
    test(admission, &mut Client::of(admission.cluster));
}
