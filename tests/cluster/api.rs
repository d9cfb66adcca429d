//! Stage A: the API server is the real one.

use super::cluster::{Cluster, Stage};

/// A Role for one ConfigMap and nothing else, as a guard has it.
const ROLE: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: policy}
data: {policy.yaml: ''}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: policy}
rules:
- {apiGroups: [''], resources: [configmaps], resourceNames: [policy], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: policy}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: policy}
subjects:
- {kind: ServiceAccount, name: shop, namespace: NAMESPACE}
";

#[test]
fn a_service_account_may_read_the_one_config_map_of_its_role_and_nothing_else() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    let role = ROLE
        .replace("NAMESPACE", &namespace.name)
        .replace("{name:", &format!("{{namespace: {}, name:", namespace.name));
    cluster.apply(&role);
    let token = cluster.token(&namespace.name, "shop");
    let kubeconfig = cluster.kubeconfig_of(&namespace.name, &token);
    let ask = |arguments: &[&str]| cluster.kubectl_as(&kubeconfig, arguments);

    let one = ask(&["get", "configmap", "policy", "-o", "name"]).expect("the Role allows it");
    assert_eq!(one.trim(), "configmap/policy");
    let selected = ask(&["get", "configmaps", "--field-selector=metadata.name=policy", "-o", "name"]);
    assert_eq!(selected.expect("the Role allows it").trim(), "configmap/policy");

    for forbidden in [
        &["get", "configmap", "other"][..],
        &["get", "configmaps"],
        &["delete", "configmap", "policy"],
        &["get", "secrets"],
        &["-n", "kube-system", "get", "configmaps"],
    ] {
        let said = ask(forbidden).expect_err("the Role does not allow it");
        assert!(said.contains("Forbidden"), "{forbidden:?}: {said}");
    }
    let unknown = cluster.kubeconfig_of(&namespace.name, "no-token");
    let said =
        cluster.kubectl_as(&unknown, &["get", "configmap", "policy"]).expect_err("nobody has this token");
    assert!(said.contains("Unauthorized") || said.contains("logged in"), "{said}");
}

#[test]
fn the_api_server_ends_and_starts_alone_and_keeps_what_it_had() {
    let Some(_) = Cluster::shared(Stage::A) else { return };
    // One of its own: others are talking to the shared one.
    let cluster = Cluster::start(Stage::A);
    cluster.kubectl(&["-n", "default", "create", "configmap", "kept"]);
    for signal in ["KILL", "TERM"] {
        cluster.stop("kube-apiserver", signal);
        let said = cluster.try_kubectl(&["get", "--raw", "/readyz"]).expect_err("it has ended");
        assert!(said.contains("refused"), "{said}");
        cluster.start_again("kube-apiserver");
        cluster.wait_for_api();
        cluster.get("default", &["configmap", "kept"]).expect("etcd has it");
    }
}
