//! A shop whose app is guarded: a Deployment of two pods that `inject` gave the sidecar, its Service, and OpenIM's own
//! client as caller.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use serde_json::{Value, json};

use super::cluster::{Cluster, Namespace, clean, eventually, run};
use super::judge::{self, Judge};
use super::support::{Authority, Folder};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const BODY: &str = include_str!("../support/openim/samples/callbackBeforeSendSingleMsgCommand/request.json");

/// The app as its developer wrote it. It knows nothing of a guard; `ANNOTATIONS` are of its pods.
const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: NAMESPACE}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}, annotations: ANNOTATIONS}
    spec:
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: callback-guard.test/app:1
        args: [serve]
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {port: 8081, path: /control}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;

/// What a cluster needs for the sidecar: the right to its ConfigMap.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: callback-guard, namespace: NAMESPACE}
rules:
- {apiGroups: [''], resources: [configmaps], resourceNames: [callback-guard-policy], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: callback-guard, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: callback-guard}
subjects:
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: 'system:serviceaccounts:NAMESPACE'}
"#;

/// The way of callers to its port.
const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: NAMESPACE}
spec:
  selector: {app: shop}
  ports:
  - {name: callbacks, port: 443, targetPort: callback-guard}
  - {name: unguarded, port: 80, targetPort: 8080}
"#;

/// The shop, and what its test needs at hand.
pub(crate) struct Shop<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) namespace: Namespace<'c>,
    image: String,
    folder: Folder,
    /// The Service's address.
    address: String,
    authority: PathBuf,
}

/// What OpenIM concluded, and how often.
pub(crate) type Counts = BTreeMap<String, u64>;

/// OpenIM's client, which goes on until it is told to stop.
pub(crate) struct Load {
    stop: PathBuf,
    thread: thread::JoinHandle<Counts>,
}

impl Load {
    /// Stops it, and tells what came of all callbacks.
    pub(crate) fn end(self) -> Counts {
        fs::write(&self.stop, "").expect("a file of the test");
        self.thread.join().expect("the load")
    }
}

/// A policy whose timeout outlasts the way of a hook: what every fallback is refused with, and more of `defaults`.
pub(crate) fn deny(code: u32, more: &str) -> String {
    format!("defaults: {{timeout: 3s, fallback: Deny, deny: {{errCode: {code}}}{more}}}")
}

/// A job of the judge with a callback about a message, to this URL.
pub(crate) fn job(what: &str, url: &str) -> Value {
    let request: Value = serde_json::from_str(BODY).expect("the sample");
    json!({
        "do": what, "command": COMMAND, "url": url, "timeout": 5,
        "operationID": request["operationID"], "request": request,
    })
}

impl<'c> Shop<'c> {
    /// Namespace and Service; no app yet, and nothing for its sidecar.
    pub(crate) fn bare(cluster: &'c Cluster, image: String) -> Shop<'c> {
        let namespace = cluster.namespace(&["pod-security.kubernetes.io/enforce=restricted"]);
        let name = namespace.name.clone();
        cluster.apply(&SERVICE.replace("NAMESPACE", &name));
        let service = cluster.get(&name, &["service", "shop"]).expect("it was applied");
        let address = service["spec"]["clusterIP"].as_str().expect("an address").to_owned();
        let folder = Folder::new();
        let authority = folder.write("ca.pem", Authority::common().pem());
        Shop { cluster, namespace, image, folder, address, authority }
    }

    /// The same with rights, Secret and policy.
    pub(crate) fn new(cluster: &'c Cluster, image: String, policy: &str) -> Shop<'c> {
        let shop = Shop::bare(cluster, image);
        let name = shop.name().to_owned();
        cluster.apply(&RIGHTS.replace("NAMESPACE", &name));
        let mut params =
            CertificateParams::new(vec![shop.address.clone(), format!("shop.{name}.svc")]).expect("names");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = Authority::common().issue(params);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "callback-guard-tls", "namespace": name},
            "stringData": {"tls.crt": issued.cert, "tls.key": issued.key},
        });
        cluster.apply(&secret.to_string());
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "callback-guard-policy", "namespace": name}, "data": {"policy.yaml": policy},
        });
        cluster.apply(&map.to_string());
        shop
    }

    /// The Service's address.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn name(&self) -> &str {
        &self.namespace.name
    }

    /// The app's manifest with these annotations of its pods, as JSON.
    pub(crate) fn manifest(&self, annotations: &str) -> String {
        DEPLOYMENT.replace("NAMESPACE", self.name()).replace("ANNOTATIONS", annotations)
    }

    /// Runs `inject` or `uninject` on a manifest.
    pub(crate) fn injected(&self, subcommand: &str, manifest: &str) -> String {
        let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
        command.args([subcommand, "-f", "-"]);
        if subcommand == "inject" {
            command.args(["--image", &self.image]);
        }
        run(&mut command, Some(manifest)).unwrap_or_else(|said| panic!("{subcommand}: {said}"))
    }

    /// `kubectl apply`, and waits until every pod is the new one and Ready.
    pub(crate) fn roll_out(&self, manifest: &str) {
        self.cluster.apply(manifest);
        let arguments = ["-n", self.name(), "rollout", "status", "deployment/shop", "--timeout=120s"];
        self.cluster.kubectl(&arguments);
    }

    /// The pods that are not ending, by name.
    pub(crate) fn pods(&self) -> Vec<Value> {
        let pods = self.cluster.pods(self.name(), "app=shop");
        pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    pub(crate) fn pod_names(&self) -> Vec<String> {
        self.pods().iter().map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// `kubectl patch` of the policy.
    pub(crate) fn patch(&self, policy: &str) {
        let patch = json!({"data": {"policy.yaml": policy}}).to_string();
        let what = ["patch", "configmap", "callback-guard-policy", "--type=merge", "-p", &patch];
        self.cluster.kubectl(&[&["-n", self.name()], &what[..]].concat());
    }

    /// Tells every app how to behave: `delay=5s`, `listener=close`.
    pub(crate) fn behave(&self, how: &str) {
        for pod in self.pods() {
            let url =
                format!("http://{}:8081/control?{how}", pod["status"]["podIP"].as_str().expect("it runs"));
            run(self.cluster.command_in_network("curl").args(["-sSf", "-m", "10", &url]), None)
                .unwrap_or_else(|said| panic!("{url}: {said}"));
        }
    }

    /// The URL for OpenIM's webhooks.yml.
    pub(crate) fn url(&self) -> String {
        format!("https://{}/cb", self.address)
    }

    fn job(&self, what: &str) -> Value {
        job(what, &self.url())
    }

    fn judge(&self, h1: bool) -> Judge {
        let mut command: Command = self.cluster.command_in_network(judge::built());
        command.env("SSL_CERT_FILE", &self.authority);
        if h1 {
            command.env("GODEBUG", "http2client=0");
        }
        Judge::run(command)
    }

    /// What OpenIM concludes of one callback to the Service, over a new connection: `allowed`, `denied 5100`.
    pub(crate) fn ask(&self) -> String {
        let conclusion = self.judge(false).ask([self.job("call")].into_iter()).remove(0);
        match conclusion["verdict"].as_str() {
            Some("allowed") => "allowed".to_owned(),
            _ => format!("{} {}", conclusion["verdict"].as_str().unwrap_or("nothing"), conclusion["code"]),
        }
    }

    /// Waits until both pods answer so.
    pub(crate) fn wait_for(&self, wanted: &str) {
        eventually(wanted, || {
            // Which pod a connection comes to is chance: twelve in a row leave little of it.
            (0..12).all(|_| self.ask() == wanted).then_some(())
        });
    }

    /// OpenIM's client, eight callbacks at a time, over HTTP/2 or HTTP/1.1.
    pub(crate) fn load(&self, h1: bool) -> Load {
        let stop = self.folder.path().join(if h1 { "stop-h1" } else { "stop-h2" });
        let _ = fs::remove_file(&stop);
        let mut job = self.job("steady");
        for (key, value) in [("times", json!(8)), ("pause", json!(20)), ("until", json!(stop))] {
            job[key] = value;
        }
        let mut judge = self.judge(h1);
        let thread = thread::spawn(move || {
            let counts = judge.ask([job].into_iter()).remove(0);
            serde_json::from_value(counts).expect("counts by conclusion")
        });
        Load { stop, thread }
    }
}
