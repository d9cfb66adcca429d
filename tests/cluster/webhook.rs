//! A mutating webhook for pods, as other injectors in a cluster have one: its patch is chosen by the test.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::cluster::{Applied, Cluster, Stage, eventually};
use super::support::Authority;
use super::tls_host::server_config;

/// Returns the JSON patch (RFC 6902) for the `request` of an AdmissionReview; an empty one changes nothing.
type Patch = dyn Fn(&Value) -> Vec<Value> + Send + Sync;

/// The webhook's server. It stops when it is dropped.
pub(crate) struct Webhook {
    url: String,
    calls: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    /// Serves HTTPS on a free port of this address, which is [`Cluster::host`] for an API server to reach it.
    pub(crate) fn start(
        on: Ipv4Addr,
        patch: impl Fn(&Value) -> Vec<Value> + Send + Sync + 'static,
    ) -> Webhook {
        let listener = TcpListener::bind((on, 0)).expect("a free port of the host's end");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("https://{}/mutate", listener.local_addr().expect("bound"));
        let tls = TlsAcceptor::from(Arc::new(server_config(Authority::common(), on)));
        let calls = Arc::new(AtomicUsize::new(0));
        let (patch, counter): (Arc<Patch>, _) = (Arc::new(patch), Arc::clone(&calls));
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serve(listener, tls, patch, counter, stopped));
        };
        let thread = thread::Builder::new().name("webhook".to_owned()).spawn(work).expect("a thread");
        Webhook { url, calls, stop: Some(stop), thread: Some(thread) }
    }

    /// How many AdmissionReviews it has answered.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// The MutatingWebhookConfiguration that has it called for each pod created in one namespace. The API server calls
    /// webhooks in the order of their configurations' names. `reinvocation` is `Never` or `IfNeeded`.
    pub(crate) fn configuration(&self, name: &str, namespace: &str, reinvocation: &str) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": "pods.webhook.test",
                "clientConfig": {"url": self.url, "caBundle": BASE64.encode(Authority::common().pem())},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "reinvocationPolicy": reinvocation,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 5,
                "failurePolicy": "Fail",
            }],
        })
    }

    /// Applies the configuration under this name, and waits until the API server calls the webhook. It is
    /// deleted when the returned value is dropped.
    pub(crate) fn configure<'c>(
        &self,
        name: &str,
        namespace: &str,
        reinvocation: &str,
        cluster: &'c Cluster,
    ) -> Applied<'c> {
        let configuration = self.configuration(name, namespace, reinvocation);
        let configured = cluster.apply_until_dropped(&configuration.to_string());
        let before = self.calls();
        eventually("a call of the webhook", || {
            // Only the call counts: whether other admission plugins accept this pod does not matter.
            let _ = dry_run(cluster, namespace, "probe");
            (self.calls() > before).then_some(())
        });
        configured
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Puts the init container `first` in front of all others, unless the pod has it.
pub(crate) fn first_init_container(request: &Value) -> Vec<Value> {
    let first = json!({"name": "first", "image": "callback-guard.test/app:1", "args": ["job", "--lasts=0s"]});
    let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    match request["object"]["spec"]["initContainers"].as_array() {
        Some(present) if present.iter().any(|container| container["name"] == "first") => vec![],
        Some(present) if !present.is_empty() => vec![add("/spec/initContainers/0", first)],
        // An index needs a list to be there.
        _ => vec![add("/spec/initContainers", json!([first]))],
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    patch: Arc<Patch>,
    calls: Arc<AtomicUsize>,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    // Its end aborts the connections, which the API server keeps open.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            _ = &mut stopped => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted.expect("a connection"),
        };
        let (tls, patch, calls) = (tls.clone(), Arc::clone(&patch), Arc::clone(&calls));
        connections.spawn(async move {
            let stream = match tls.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => return eprintln!("webhook: TLS handshake: {error}"),
            };
            let service = service_fn(|request| review(request, &*patch, &calls));
            // An error means that the API server has closed the connection, and reports it itself.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Answers one AdmissionReview.
async fn review(
    request: Request<Incoming>,
    patch: &Patch,
    calls: &AtomicUsize,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let answer = if review["apiVersion"] == "admission.k8s.io/v1" {
        let patch = patch(&review["request"]);
        let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
        if !patch.is_empty() {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(BASE64.encode(json!(patch).to_string()));
        }
        calls.fetch_add(1, Ordering::Relaxed);
        let answer =
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        Response::builder().header("Content-Type", "application/json").body(Full::from(answer.to_string()))
    } else {
        Response::builder().status(400).body(Full::from("not an AdmissionReview of v1"))
    };
    Ok(answer.expect("a valid response"))
}

/// Has the API server admit a pod without storing it, and returns the pod as it would be stored.
fn dry_run(cluster: &Cluster, namespace: &str, name: &str) -> Result<Value, String> {
    let image = "--image=callback-guard.test/app:1";
    let pod =
        cluster.try_kubectl(&["-n", namespace, "run", name, image, "--dry-run=server", "-o", "json"])?;
    Ok(serde_json::from_str(&pod).expect("kubectl writes JSON"))
}

fn init_containers(pod: &Value) -> Vec<String> {
    let containers = pod["spec"]["initContainers"].as_array();
    containers.into_iter().flatten().filter_map(|c| c["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_webhook_patches_the_pods_of_its_namespace_alone_and_its_configuration_is_deleted() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let (selected, other) = (cluster.namespace(&[]), cluster.namespace(&[]));
    let webhook = Webhook::start(cluster.host(), first_init_container);
    let name = format!("first-{}", selected.name);
    let is_configured = || cluster.try_kubectl(&["get", "mutatingwebhookconfiguration", &name]).is_ok();
    {
        let _configured = webhook.configure(&name, &selected.name, "Never", cluster);
        assert!(is_configured());
        for (namespace, expected) in [(&selected, vec!["first"]), (&other, vec![])] {
            let before = webhook.calls();
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shop", "namespace": namespace.name},
                "spec": {"containers": [{"name": "app", "image": "callback-guard.test/app:1"}]},
            });
            cluster.apply(&pod.to_string());
            let stored = cluster.get(&namespace.name, &["pod", "shop"]).expect("it was created");
            assert_eq!(init_containers(&stored), expected, "{stored}");
            assert_eq!(webhook.calls() - before, expected.len(), "calls for {}", namespace.name);
        }
    }
    assert!(!is_configured(), "deleted at the end");
    eventually("a pod without the init container", || {
        let pod = dry_run(cluster, &selected.name, "after").ok()?;
        init_containers(&pod).is_empty().then_some(())
    });

    let failed = catch_unwind(AssertUnwindSafe(|| {
        let _configured = webhook.configure(&name, &selected.name, "IfNeeded", cluster);
        assert!(is_configured());
        std::panic::resume_unwind(Box::new("a test that fails"));
    }));
    assert!(failed.is_err_and(|panic| panic.is::<&str>()));
    assert!(!is_configured(), "deleted after a failure");
}

#[test]
fn the_first_init_container_is_added_once_and_before_the_others() {
    let patch = |init: Value| first_init_container(&json!({"object": {"spec": {"initContainers": init}}}));
    let paths = |init: Value| patch(init).iter().map(|add| add["path"].clone()).collect::<Vec<_>>();
    assert_eq!(paths(Value::Null), ["/spec/initContainers"]);
    assert_eq!(paths(json!([])), ["/spec/initContainers"]);
    assert_eq!(paths(json!([{"name": "other"}])), ["/spec/initContainers/0"]);
    assert_eq!(patch(json!([{"name": "other"}, {"name": "first"}])), Vec::<Value>::new());
}
