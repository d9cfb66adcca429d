//! A cluster with many namespaces that are served, and pods in each: what the controller costs there.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::client::Client;
use super::cluster::{Cluster, clean, eventually, run};

/// The namespace of the controller.
pub(crate) const OWN: &str = "guard";

const INJECT: &str = "callback-guard.io/inject";

/// The namespaces, each of which asks for sidecars.
pub(crate) struct Crowd<'c> {
    cluster: &'c Cluster,
    program: PathBuf,
    names: Vec<String>,
}

impl<'c> Crowd<'c> {
    /// Creates so many namespaces, with so many guarded pods in each. The policies stay until the cluster ends. The controller may do
    /// everything: its rights are tested elsewhere.
    pub(crate) fn create(cluster: &'c Cluster, program: &Path, namespaces: usize, pods: usize) -> Crowd<'c> {
        let names: Vec<_> = (0..namespaces).map(|number| format!("crowd-{number}")).collect();
        let crowd = Crowd { cluster, program: program.to_owned(), names };
        let mut client = Client::of(cluster);
        for name in crowd.names.iter().map(String::as_str).chain([OWN]) {
            let labels = if name == OWN { json!({}) } else { json!({INJECT: "enabled"}) };
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
            create(&mut client, "/api/v1/namespaces", &namespace);
            let account =
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
            create(&mut client, &format!("/api/v1/namespaces/{name}/serviceaccounts"), &account);
        }
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": OWN},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": OWN}],
        });
        create(&mut client, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding);
        crowd.apply_policies(true);
        for name in &crowd.names {
            for number in 0..pods {
                create_pod(&mut client, name, &format!("pod-{number}"));
            }
        }
        crowd
    }

    /// Applies the policies, or deletes them, and waits until that has an effect.
    pub(crate) fn apply_policies(&self, there: bool) {
        let mut command = clean(&self.program);
        command.args(["admission-policy", "--own-namespace", OWN, "--namespaces", &self.names.join(",")]);
        let printed = run(&mut command, None).unwrap_or_else(|said| panic!("admission-policy: {said}"));
        let policies: Vec<_> =
            printed.split("---\n").filter(|text| text.contains("AdmissionPolicy")).collect();
        let mut kubectl = self.cluster.kubectl_command();
        kubectl.args([if there { "apply" } else { "delete" }, "-f", "-"]);
        run(&mut kubectl, Some(&policies.join("---\n"))).unwrap_or_else(|said| panic!("kubectl: {said}"));
        let mut client = Client::of(self.cluster);
        eventually("the policies", || {
            let made = client.dry_run(&self.names[0], &pod("probe"));
            (made.body["spec"]["initContainers"].is_array() == there).then_some(())
        });
    }

    /// A pod that is created while there is no policy. The policies are there again before this returns.
    pub(crate) fn create_naked(&self, namespace: usize) -> Value {
        self.apply_policies(false);
        let made = create_pod(&mut Client::of(self.cluster), &self.names[namespace], "naked");
        self.apply_policies(true);
        made
    }

    /// The name of a namespace.
    pub(crate) fn name(&self, namespace: usize) -> &str {
        &self.names[namespace]
    }

    /// The controller of the first namespaces.
    pub(crate) fn controller(&self, namespaces: usize, identity: &str) -> Command {
        let token = self.cluster.token(OWN, "default");
        let mut command = clean(&self.program);
        command.env("KUBECONFIG", self.cluster.kubeconfig_of(OWN, &token));
        command.args([
            "controller",
            "--own-namespace",
            OWN,
            "--admin-listen",
            "127.0.0.1:0",
            "--identity",
            identity,
        ]);
        command.args(["--namespaces", &self.names[..namespaces].join(",")]);
        command
    }
}

fn create(client: &mut Client, path: &str, object: &Value) -> Value {
    let made = client.create(path, object);
    assert!(made.is_success(), "{path}: {made:?}");
    made.body
}

/// Creates a pod; with a sidecar if the policies are there.
pub(crate) fn create_pod(client: &mut Client, namespace: &str, name: &str) -> Value {
    create(client, &format!("/api/v1/namespaces/{namespace}/pods"), &pod(name))
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]},
    })
}

/// The resident memory of a process in bytes, and the most that it has had.
pub(crate) fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let kilobytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the kernel");
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    (kilobytes("VmRSS:") * 1024, kilobytes("VmHWM:") * 1024)
}
