//! What a workload is warned about: what stops the guard, and nothing else.

use serde_json::{Value, json};

use super::super::client::Client;
use super::{INJECT, injected, installation, ours, pod, with_client};

/// A workload of this kind around a pod.
fn workload(kind: &str, pod: &Value) -> (String, Value) {
    let (group, plural) = match kind {
        "Deployment" => ("apps", "deployments"),
        "StatefulSet" => ("apps", "statefulsets"),
        "DaemonSet" => ("apps", "daemonsets"),
        "Job" => ("batch", "jobs"),
        "CronJob" => ("batch", "cronjobs"),
        other => panic!("{other} is no workload of the tests"),
    };
    let mut template = json!({"metadata": pod["metadata"], "spec": pod["spec"]});
    template["metadata"].as_object_mut().expect("an object").remove("name");
    if template["metadata"]["labels"].is_null() {
        template["metadata"]["labels"] = json!({});
    }
    template["metadata"]["labels"]["app"] = "x".into();
    let spec = match kind {
        "CronJob" => {
            template["spec"]["restartPolicy"] = "Never".into();
            json!({"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"template": template}}})
        }
        "Job" => {
            template["spec"]["restartPolicy"] = "Never".into();
            template["metadata"]["labels"].as_object_mut().expect("labels").remove("app");
            json!({"template": template})
        }
        _ => json!({"selector": {"matchLabels": {"app": "x"}}, "template": template}),
    };
    let object =
        json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": "x"}, "spec": spec});
    (format!("/apis/{group}/v1/namespaces/NAMESPACE/{plural}?dryRun=All"), object)
}

fn warned(client: &mut Client, namespace: &str, (path, object): &(String, Value)) -> Vec<String> {
    let made = client.create(&path.replace("NAMESPACE", namespace), object);
    assert!(made.is_success(), "{}: {made:?}", object["kind"]);
    ours(&made).into_iter().map(str::to_owned).collect()
}

fn labeled(mut pod: Value) -> Value {
    pod["metadata"]["labels"] = json!({INJECT: "enabled"});
    pod
}

/// Pods, and what their workload is warned about when they ask.
fn cases() -> Vec<(Value, Option<&'static str>)> {
    let with = |pointer: &str, value: Value| {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({});
        let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
        pod.pointer_mut(parent).expect("the place above it")[last] = value;
        pod
    };
    let annotation = |name: &str, value: &str| {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({name: value});
        pod
    };
    vec![
        (pod(), None),
        // Advice is not for every `kubectl apply`: a guess is reported with the pod.
        (with("/spec/containers/0/ports", json!([])), None),
        (annotation("callback-guard.io/workers", "2"), None),
        (annotation("callback-guard.io/workers", "0"), Some("invalid-annotation: callback-guard.io/workers")),
        (
            annotation("callback-guard.io/wrokers", "2"),
            Some("unknown-annotation: \"callback-guard.io/wrokers\""),
        ),
        (annotation("callback-guard.io/inject", "enabled"), Some("is a label")),
        (with("/spec/hostNetwork", json!(true)), Some("host-network: ")),
        (with("/spec/containers/0/ports", json!([{"containerPort": 18443}])), Some("port-in-use: ")),
        (with("/spec/containers/0/ports", json!([{"containerPort": 18443, "protocol": "UDP"}])), None),
        (
            with("/spec/containers/0/ports", json!([{"containerPort": 1, "name": "guard-admin"}])),
            Some("port-in-use: "),
        ),
        (
            with("/spec/initContainers", json!([{"name": "callback-guard", "image": "busybox"}])),
            Some("already-injected: "),
        ),
    ]
}

const KINDS: [&str; 5] = ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"];

#[test]
fn a_workload_whose_pods_ask_is_warned_about_what_stops_the_guard() {
    with_client(|admission, client| {
        let asking = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let plain = admission.namespace(client, &json!({}), &json!({}));
        for kind in KINDS {
            for (pod, wanted) in cases() {
                let both = [(&asking, pod.clone()), (&plain, labeled(pod.clone()))];
                for (namespace, pod) in both {
                    let warnings = warned(client, namespace, &workload(kind, &pod));
                    let what = format!("{kind} {}: {warnings:?}", pod["metadata"]);
                    match wanted {
                        Some(wanted) => {
                            assert!(warnings.len() == 1 && warnings[0].contains(wanted), "{what}")
                        }
                        None => assert!(warnings.is_empty(), "{what}"),
                    }
                }
            }
        }
    });
}

#[test]
fn a_workload_whose_pods_do_not_ask_or_have_the_sidecar_is_not_warned() {
    with_client(|admission, client| {
        let asking = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let plain = admission.namespace(client, &json!({}), &json!({}));
        for kind in KINDS {
            for (pod, _) in
                cases().into_iter().filter(|(pod, _)| pod["metadata"]["annotations"][INJECT].is_null())
            {
                let mut out = pod.clone();
                out["metadata"]["labels"] = json!({INJECT: "disabled"});
                assert_eq!(warned(client, &plain, &workload(kind, &pod)), [""; 0], "{kind} {pod}");
                assert_eq!(warned(client, &asking, &workload(kind, &out)), [""; 0], "{kind} {out}");
            }
            let by_file = injected(&pod(), None, &installation()).expect("it is injected");
            assert_eq!(warned(client, &asking, &workload(kind, &by_file)), [""; 0], "{kind}");
        }
    });
}

#[test]
fn the_label_on_the_workload_is_pointed_to_its_place() {
    with_client(|admission, client| {
        let plain = admission.namespace(client, &json!({}), &json!({}));
        let asking = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        for kind in KINDS {
            for value in ["enabled", "disabled", "true"] {
                let (path, mut object) = workload(kind, &pod());
                object["metadata"]["labels"] = json!({INJECT: value});
                let warnings = warned(client, &plain, &(path, object));
                let place = "spec.template.metadata.labels";
                assert!(warnings.len() == 1 && warnings[0].contains(place), "{kind} {value}: {warnings:?}");
            }
            let (path, mut object) = workload(kind, &pod());
            object["metadata"]["annotations"] = json!({INJECT: "enabled"});
            let warnings = warned(client, &plain, &(path, object));
            assert!(
                warnings.len() == 1 && warnings[0].contains("label-as-annotation"),
                "{kind}: {warnings:?}"
            );
            // The same where the namespace asks: the pods have the sidecar, and no word says otherwise.
            let (path, mut object) = workload(kind, &pod());
            object["metadata"]["labels"] = json!({INJECT: "disabled"});
            let warnings = warned(client, &asking, &(path, object));
            let right = warnings.len() == 1
                && warnings[0].contains("label-on-workload")
                && !warnings[0].contains("no sidecar");
            assert!(right, "{kind}: {warnings:?}");
            for (key, in_namespace, wanted) in [
                ("callback-guard.io/trust", &plain, "label-on-workload"),
                ("callback-guard.io/upstream-port", &asking, "annotation-on-workload"),
            ] {
                let (path, mut object) = workload(kind, &pod());
                let map = if wanted.starts_with("label") { "labels" } else { "annotations" };
                object["metadata"][map] = json!({key: "3000"});
                let warnings = warned(client, in_namespace, &(path, object));
                assert!(warnings.len() == 1 && warnings[0].contains(wanted), "{kind} {key}: {warnings:?}");
            }
            let mut trusting = pod();
            trusting["metadata"]["labels"] = json!({"callback-guard.io/trust": "true"});
            let warnings = warned(client, &plain, &workload(kind, &trusting));
            assert!(
                warnings.len() == 1 && warnings[0].contains("trust: Unsupported value"),
                "{kind}: {warnings:?}"
            );
            // Both places are right: charts label everything alike.
            let (path, mut object) = workload(kind, &labeled(pod()));
            object["metadata"]["labels"] = json!({INJECT: "enabled"});
            assert_eq!(warned(client, &plain, &(path, object)), [""; 0], "{kind}");
        }
    });
}
