//! The controller on a real API server: with the rights that are printed for it, as one process or two of this machine, or as
//! a Deployment on a node.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::cluster::{Cluster, Stage, can_hold, clean, eventually, run};
use super::replica::Replica;

mod clock;
mod foreign;
mod node;
mod replicas;
mod rights;
mod scale;

/// The namespaces of an installation of the tests.
pub(crate) const OWN: &str = "guard";
pub(crate) const SERVED: &str = "shop";
pub(crate) const TRUSTING: &str = "openim";

/// What the program prints for an installation of these namespaces, with more flags.
pub(crate) fn printed(served: &[String], flags: &[&str]) -> String {
    let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
    command.args([
        "admission-policy",
        "--controller",
        "--own-namespace",
        OWN,
        "--namespaces",
        &served.join(","),
    ]);
    command.args(["--trust-namespaces", TRUSTING]).args(flags);
    run(&mut command, None).unwrap_or_else(|said| panic!("admission-policy: {said}"))
}

/// A cluster of its own with an installation: cluster-scoped objects have one name.
pub(crate) struct Installation {
    pub(crate) cluster: Cluster,
    pub(crate) served: Vec<String>,
}

impl Installation {
    /// With these namespaces served. `None` where the machine cannot hold a cluster.
    pub(crate) fn of(served: &[&str], flags: &[&str]) -> Option<Installation> {
        if !can_hold(Stage::A) {
            return None;
        }
        let cluster = Cluster::start(Stage::A);
        let served: Vec<_> = served.iter().map(|name| (*name).to_owned()).collect();
        let own = [OWN.to_owned(), TRUSTING.to_owned()];
        let objects = served.iter().chain(&own).map(|name| {
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string()
        });
        cluster.apply(&objects.collect::<Vec<_>>().join("\n---\n"));
        cluster.apply(&printed(&served, flags));
        Some(Installation { cluster, served })
    }

    /// With one.
    pub(crate) fn new() -> Option<Installation> {
        Installation::of(&[SERVED], &[])
    }

    /// A kubeconfig with the rights of the controller.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let token = self.cluster.token(OWN, "callback-guard-controller");
        self.cluster.kubeconfig_of(OWN, &token)
    }

    /// The command of a replica.
    pub(crate) fn command(&self, identity: &str, kubeconfig: &Path, flags: &[&str]) -> Command {
        let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
        command.env("KUBECONFIG", kubeconfig).args(["controller", "--own-namespace", OWN]);
        command.args(["--namespaces", &self.served.join(","), "--trust-namespaces", TRUSTING]);
        command.args(["--identity", identity, "--admin-listen", "127.0.0.1:0"]).args(flags);
        command
    }

    /// A replica.
    pub(crate) fn start(&self, identity: &str, flags: &[&str]) -> Replica {
        Replica::run(self.command(identity, &self.kubeconfig(), flags))
    }

    /// The text of a key of a Secret, or of a ConfigMap.
    pub(crate) fn text(&self, namespace: &str, kind: &str, name: &str, key: &str) -> Option<String> {
        let decode = if kind == "secret" { " | base64decode" } else { "" };
        let template = format!("go-template={{{{index .data \"{key}\"{decode}}}}}");
        self.cluster.try_kubectl(&["-n", namespace, "get", kind, name, "-o", &template]).ok()
    }

    /// The certificate that sidecars of a namespace serve, once there is one that is another than this.
    pub(crate) fn certificate(&self, namespace: &str, other_than: Option<&str>) -> String {
        eventually("a certificate", || {
            let found = self.text(namespace, "secret", "callback-guard-tls", "tls.crt")?;
            (found.contains("CERTIFICATE") && other_than != Some(found.as_str())).then_some(found)
        })
    }

    /// What OpenIM trusts, once it is published.
    pub(crate) fn bundle(&self) -> String {
        eventually("the CA", || self.text(TRUSTING, "configmap", "callback-guard-ca", "ca.crt"))
    }

    /// The messages of Events about an object with this reason.
    pub(crate) fn events(&self, namespace: &str, kind: &str, name: &str, reason: &str) -> Vec<String> {
        let selector = format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
        let events = self.cluster.get(namespace, &["events", "--field-selector", &selector]);
        let events = events.unwrap_or_default()["items"].as_array().cloned().unwrap_or_default();
        events.iter().filter_map(|event| event["message"].as_str()).map(str::to_owned).collect()
    }
}

/// The first certificate of a PEM text, as openssl prints it; an error if openssl says no.
pub(crate) fn openssl(pem: &str, arguments: &[&str]) -> Result<String, String> {
    let mut command = clean("openssl");
    command.arg("x509").args(arguments);
    run(&mut command, Some(pem)).map(|text| text.trim().to_owned())
}
