//! On a real node: what an operator does with labels, what a pod goes through, and what OpenIM's own client sees of it.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::client::Client;
use super::super::cluster::{Cluster, Namespace, Stage, clean, eventually, run, target, undisturbed};
use super::super::image::image;
use super::super::judge::Judge;
use super::super::shop::{Shop, deny, job};
use super::super::support::Authority;
use super::super::tls_host::TlsHost;
use super::{INJECT, has_sidecar, sidecars};

/// What the program prints for this namespace and image.
fn policies(namespace: &str, image: &str) -> String {
    let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
    command.args(["admission-policy", "--image", image, "--namespaces", namespace]);
    run(&mut command, None).unwrap_or_else(|said| panic!("admission-policy: {said}"))
}

/// The app listens on [::1] alone, as Node does for `localhost`.
fn unchanged(shop: &Shop<'_>) -> String {
    let manifest = shop.manifest("{}");
    let moved = manifest.replace("args: [serve]", r#"args: [serve, "--listen=[::1]:8080"]"#);
    assert_ne!(manifest, moved);
    moved
}

#[test]
fn a_label_guards_an_unchanged_app_and_openim_trusts_by_a_label_and_without_labels_all_is_as_before() {
    let _undisturbed = undisturbed();
    let Some(cluster) = Cluster::shared(Stage::B) else { return };
    let (archive, image) = image();
    cluster.import(&archive);
    let shop = Shop::new(cluster, image.clone(), &deny(5100, ""));
    shop.roll_out(&unchanged(&shop));
    assert!(shop.pods().iter().all(|pod| sidecars(pod) == 0), "nobody asked yet");

    // The rights are those that are printed.
    cluster.kubectl(&["-n", shop.name(), "delete", "role,rolebinding", "callback-guard"]);
    let _policies = cluster.apply_until_dropped(&policies(shop.name(), &image));
    label(&shop, &format!("{INJECT}=enabled"));
    // The image runs as any user, as OpenShift picks one.
    annotate(&shop, "callback-guard.io/run-as-user=1234567");
    the_policy_is_in_force(&shop);
    restart(&shop);
    let pods = shop.pods();
    assert!(pods.len() == 2 && pods.iter().all(has_sidecar), "{pods:#?}");
    the_sidecar_starts_first_and_the_app_is_unchanged(&shop);
    // Only the app allows: every fallback of this policy denies.
    shop.wait_for("allowed");
    the_printed_role_lets_the_sidecar_watch(&shop);
    a_cron_jobs_pod_has_the_sidecar_and_completes(&shop);
    openim_in_a_pod_trusts_by_a_label(&shop);

    label(&shop, &format!("{INJECT}-"));
    eventually("the label's end", || (sidecars(&dry_run(&shop, &json!({}))) == 0).then_some(()));
    restart(&shop);
    let pods = shop.pods();
    assert!(pods.len() == 2 && pods.iter().all(|pod| sidecars(pod) == 0), "{pods:#?}");
}

/// An annotation of the namespace, which is a setting of its pods.
fn annotate(shop: &Shop<'_>, annotation: &str) {
    shop.cluster.kubectl(&["annotate", "namespace", shop.name(), annotation]);
}

fn label(shop: &Shop<'_>, label: &str) {
    shop.cluster.kubectl(&["label", "namespace", shop.name(), label]);
}

/// `kubectl rollout restart`, until every pod is the new one.
fn restart(shop: &Shop<'_>) {
    shop.cluster.kubectl(&["-n", shop.name(), "rollout", "restart", "deployment/shop"]);
    let status = ["-n", shop.name(), "rollout", "status", "deployment/shop", "--timeout=120s"];
    shop.cluster.kubectl(&status);
    eventually("the end of the old pods", || {
        let pods = shop.cluster.pods(shop.name(), "app=shop");
        (pods.len() == 2).then_some(())
    });
}

/// A pod of the shop as the API server would create it now.
fn dry_run(shop: &Shop<'_>, labels: &Value) -> Value {
    let deployment = shop.cluster.get(shop.name(), &["deployment", "shop"]).expect("it was applied");
    let mut spec = deployment["spec"]["template"]["spec"].clone();
    spec.as_object_mut().expect("an object").remove("schedulerName");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "labels": labels}, "spec": spec,
    });
    let made = Client::of(shop.cluster).dry_run(shop.name(), &pod);
    assert!(made.is_success(), "{made:?}");
    made.body
}

fn the_policy_is_in_force(shop: &Shop<'_>) {
    eventually("the policy, the label and the setting", || {
        let pod = dry_run(shop, &json!({}));
        let user = &pod["spec"]["initContainers"][0]["securityContext"]["runAsUser"];
        (has_sidecar(&pod) && user == 1_234_567).then_some(())
    });
    let out = dry_run(shop, &json!({INJECT: "disabled"}));
    assert_eq!(sidecars(&out), 0, "{out}");
}

fn the_sidecar_starts_first_and_the_app_is_unchanged(shop: &Shop<'_>) {
    let deployment = shop.cluster.get(shop.name(), &["deployment", "shop"]).expect("it was applied");
    assert_eq!(deployment["spec"]["template"]["spec"]["initContainers"], Value::Null, "{deployment}");
    for pod in shop.pod_names() {
        let line = |container: &str, text: &str| {
            eventually(text, || {
                let log = shop.cluster.log(shop.name(), &pod, container);
                log.into_iter().find(|line| line.text.contains(text))
            })
        };
        let (guard, app) = (line("callback-guard", "\"Listening\""), line("app", "app started"));
        assert!(guard.time < app.time, "{pod}: {guard:?} {app:?}");
    }
}

/// The mounted ConfigMap would do as well, minutes later: the guard says where its policy is from.
fn the_printed_role_lets_the_sidecar_watch(shop: &Shop<'_>) {
    shop.patch(&deny(5200, ""));
    for pod in shop.pod_names() {
        eventually("the policy by the watch", || {
            let log = shop.cluster.log(shop.name(), &pod, "callback-guard");
            let by_watch =
                |text: &str| text.contains("A policy is in force") && text.contains("\"configmap\"");
            (log.iter().filter(|line| by_watch(&line.text)).count() >= 2).then_some(())
        });
    }
    shop.behave("delay=5s");
    shop.wait_for("denied 5200");
    shop.behave("delay=0s");
    shop.wait_for("allowed");
}

/// A CronJob that nobody changed.
const CRON_JOB: &str = r#"
apiVersion: batch/v1
kind: CronJob
metadata: {name: bill, namespace: NAMESPACE}
spec:
  schedule: "* * * * *"
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      backoffLimit: 0
      template:
        metadata: {labels: {app: bill}}
        spec:
          restartPolicy: Never
          securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
          containers:
          - name: app
            image: callback-guard.test/app:1
            args: [job, --lasts=1s]
            securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;

fn a_cron_jobs_pod_has_the_sidecar_and_completes(shop: &Shop<'_>) {
    shop.cluster.apply(&CRON_JOB.replace("NAMESPACE", shop.name()));
    // Its minute comes within one; what follows is waited for on its own.
    let begun = || shop.cluster.pods(shop.name(), "app=bill").pop();
    eventually("the pod of a CronJob", begun);
    let pod =
        eventually("the end of its job", || begun().filter(|pod| pod["status"]["phase"] == "Succeeded"));
    assert!(has_sidecar(&pod), "{pod}");
    shop.cluster.kubectl(&["-n", shop.name(), "delete", "cronjob", "bill"]);
}

/// OpenIM's own client, in pods that trust and that do not. Both have a bundle file with a root of the test's own, where an image
/// has the system's.
const OPENIM: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {callback-guard.io/trust: TRUST}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: openim
    image: callback-guard.test/openim:1
    args: [pause]
    securityContext:
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
    volumeMounts:
    - {name: bundle, mountPath: /etc/ssl/certs/ca-certificates.crt, subPath: ca-certificates.crt, readOnly: true}
    - {name: tmp, mountPath: /tmp}
  volumes:
  - {name: bundle, configMap: {name: system-bundle}}
  - {name: tmp, emptyDir: {}}
"#;

fn openim_in_a_pod_trusts_by_a_label(shop: &Shop<'_>) {
    let cluster = shop.cluster;
    cluster.import(&openim_image());
    let namespace = cluster.namespace(&["pod-security.kubernetes.io/enforce=restricted"]);
    let system = Authority::new("a root in the system's bundle");
    config_map(&namespace, "callback-guard-ca", "ca.crt", &Authority::common().pem(), cluster);
    config_map(&namespace, "system-bundle", "ca-certificates.crt", &system.pem(), cluster);
    let listed = TlsHost::start(cluster.host(), &system);
    let unlisted = TlsHost::start(cluster.host(), &Authority::new("a root that nobody trusts"));
    for (name, trust, wanted) in [("trusting", "enabled", "allowed"), ("plain", "disabled", "error")] {
        let pod = OPENIM.replace("NAME", name).replace("TRUST", trust);
        cluster.try_apply(&pod, &["-n", &namespace.name]).unwrap_or_else(|said| panic!("{said}"));
        let ready = ["-n", &namespace.name, "wait", "--for=condition=Ready", "--timeout=90s"];
        cluster.kubectl(&[&ready[..], &[&format!("pod/{name}")]].concat());
        let ask = |url: &str| openim(cluster, &namespace.name, name, job("call", url));
        let guarded = ask(&shop.url());
        assert_eq!(guarded["verdict"], wanted, "{name}: {guarded}");
        assert_eq!(ask(&listed.url())["verdict"], "allowed", "{name}: a root of the system's bundle");
        let unknown = ask(&unlisted.url());
        assert_eq!(unknown["verdict"], "error", "{name}: {unknown}");
    }
}

fn config_map(namespace: &Namespace<'_>, name: &str, key: &str, text: &str, cluster: &Cluster) {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace.name},
        "data": {key: text},
    });
    cluster.apply(&map.to_string());
}

/// What OpenIM's client in a pod concludes of one callback.
fn openim(cluster: &Cluster, namespace: &str, pod: &str, job: Value) -> Value {
    let mut command = cluster.kubectl_command();
    command.args(["-n", namespace, "exec", "-i", pod, "-c", "openim", "--", "/judge"]);
    Judge::run(command).ask([job].into_iter()).remove(0)
}

pub(crate) fn openim_image() -> PathBuf {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/image");
    let mut command = clean(script);
    let built = run(command.arg("openim").env("CARGO_TARGET_DIR", target()), None);
    PathBuf::from(built.unwrap_or_else(|said| panic!("tests/image openim: {said}")).trim())
}
