//! Stage B: the kubelet is the real one.

use serde_json::{Value, json};
use std::fs;

use super::cluster::{Cluster, Stage, eventually, run};

/// Two pods with a native sidecar, and a Service before them. Both programs are the app of the tests.
const SHOP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop, namespace: NAMESPACE}
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      initContainers:
      - name: sidecar
        image: callback-guard.test/app:1
        args: [serve, "--listen=:9080", "--control=:9081"]
        restartPolicy: Always
        startupProbe: {httpGet: {port: 9081, path: /control}, periodSeconds: 1}
        securityContext: &restricted
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {drop: [ALL]}
      containers:
      - name: app
        image: callback-guard.test/app:1
        args: [serve]
        readinessProbe: {httpGet: {port: 8081, path: /control}, periodSeconds: 1}
        securityContext: *restricted
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: NAMESPACE}
spec:
  selector: {app: shop}
  ports: [{port: 80, targetPort: 8080}]
"#;

fn pod_names(pods: &[Value]) -> Vec<String> {
    pods.iter().map(|pod| pod["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_native_sidecar_starts_before_the_app_and_the_service_reaches_the_pods() {
    let Some(cluster) = Cluster::shared(Stage::B) else { return };
    let namespace = cluster.namespace(&["pod-security.kubernetes.io/enforce=restricted"]);
    let name = namespace.name.as_str();
    cluster.apply(&SHOP.replace("NAMESPACE", name));
    cluster.kubectl(&["-n", name, "rollout", "status", "deployment/shop", "--timeout=90s"]);
    let pods = pod_names(&cluster.pods(name, "app=shop"));
    assert_eq!(pods.len(), 2);
    for pod in &pods {
        let began = |container: &str| {
            let log = cluster.log(name, pod, container);
            log.into_iter().find(|line| line.text.contains("app started")).expect("it says so").time
        };
        assert!(began("sidecar") < began("app"), "{pod}");
    }

    let service = cluster.get(name, &["service", "shop"]).expect("it was applied");
    let url = format!("http://{}/", service["spec"]["clusterIP"].as_str().expect("an address"));
    let answer = eventually("the Service", || {
        // The app's own program, from this machine, in the cluster's network.
        run(cluster.command_in_network(app_program()).args(["get", &url]), None).ok()
    });
    assert!(answer.contains("\"actionCode\":0"), "{answer}");
    // The same from a pod, whose network is another.
    let answer = cluster.kubectl(&["-n", name, "exec", &pods[0], "-c", "app", "--", "/app", "get", &url]);
    assert!(answer.contains("\"actionCode\":0"), "{answer}");
}

#[test]
fn pod_security_refuses_what_is_not_restricted() {
    let Some(cluster) = Cluster::shared(Stage::B) else { return };
    let namespace = cluster.namespace(&["pod-security.kubernetes.io/enforce=restricted"]);
    let image = "--image=callback-guard.test/app:1";
    let said = cluster
        .try_kubectl(&["-n", &namespace.name, "run", "loose", image])
        .expect_err("it is not restricted");
    assert!(said.contains("violates PodSecurity"), "{said}");
}

#[test]
fn a_killed_container_is_started_again_while_the_api_server_is_away() {
    if !super::cluster::can_hold(Stage::B) {
        return;
    }
    // One of its own: others are talking to the API server of the shared one.
    let cluster = Cluster::start(Stage::B);
    cluster.apply(&SHOP.replace("NAMESPACE", "default"));
    cluster.kubectl(&["rollout", "status", "deployment/shop", "--timeout=90s"]);
    let pod = pod_names(&cluster.pods("default", "app=shop")).remove(0);
    let before = cluster.containers("default", &pod, "sidecar");
    assert_eq!(before.len(), 1);
    let app = cluster.containers("default", &pod, "app");

    cluster.stop("kube-apiserver", "KILL");
    cluster.kill_container(&before[0]);
    let after = eventually("the next container", || {
        cluster.containers("default", &pod, "sidecar").into_iter().find(|container| *container != before[0])
    });
    assert_ne!(after, before[0]);
    assert_eq!(cluster.containers("default", &pod, "app"), app, "the app's container is the same");
    eventually("its first line", || {
        let log = cluster.log("default", &pod, "sidecar");
        (log.iter().filter(|line| line.text.contains("app started")).count() == 2).then_some(())
    });
    cluster.start_again("kube-apiserver");
    cluster.wait_for_api();
    eventually("the count of restarts", || {
        let pods = cluster.pods("default", "app=shop");
        let pod = pods.iter().find(|other| other["metadata"]["name"] == *pod)?;
        (pod["status"]["initContainerStatuses"][0]["restartCount"] == 1).then_some(())
    });
}

/// The program in the image of the app, for this machine: `tests/image app` has built it.
fn app_program() -> std::path::PathBuf {
    let program = super::cluster::target().join("images/app");
    assert!(
        fs::exists(&program).is_ok_and(|there| there),
        "{} is missing: tests/image app",
        program.display()
    );
    program
}

/// How often kubelet looks after each pod, as it says itself.
fn sync_frequency(cluster: &Cluster) -> Value {
    let config = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node/proxy/configz"]);
    let config: Value = serde_json::from_str(&config).expect("kubelet writes JSON");
    config["kubeletconfig"]["syncFrequency"].clone()
}

#[test]
fn a_mounted_secret_follows_its_object_and_a_variable_says_how_soon() {
    let Some(shared) = Cluster::shared(Stage::B) else { return };
    assert_eq!(sync_frequency(shared), "1m0s");
    let variables = [("CALLBACK_GUARD_TEST_SYNC_FREQUENCY", "1s")];
    let cluster = Cluster::try_start(Stage::B, &variables, |_| {});
    let cluster = cluster.unwrap_or_else(|said| panic!("no cluster of stage B:\n{said}"));
    assert_eq!(sync_frequency(&cluster), "1s");

    let secret = |value: &str| {
        let metadata = json!({"name": "secret", "namespace": "default"});
        let data = json!({"key": value});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data});
        cluster.apply(&secret.to_string());
    };
    secret("first");
    let mounts = json!([{"name": "secret", "mountPath": "/secret"}]);
    let container = json!({"name": "app", "image": "callback-guard.test/app:1", "args": ["serve"], "volumeMounts": mounts});
    let volumes = json!([{"name": "secret", "secret": {"secretName": "secret"}}]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": "default"},
        "spec": {"containers": [container], "volumes": volumes},
    });
    cluster.apply(&pod.to_string());
    cluster.kubectl(&["wait", "pod/pod", "--for=condition=Ready", "--timeout=90s"]);
    let pod = cluster.get("default", &["pod", "pod"]).expect("it is Ready");
    let uid = pod["metadata"]["uid"].as_str().expect("a text");
    // The image has no program that reads a file.
    let file = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~secret/secret/key");
    let mounted = || run(cluster.command_inside("cat").arg(&file), None).expect("it is mounted");
    assert_eq!(mounted(), "first");
    secret("second");
    eventually("the Secret in the pod", || (mounted() == "second").then_some(()));
}
