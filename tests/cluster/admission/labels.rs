//! Who gets a sidecar: labels of the pod and of its namespace, and the namespaces that are left alone.

use serde_json::{Value, json};

use super::super::cluster::eventually;
use super::{INJECT, OWN, has_sidecar, ours, pod, sidecars, with_client};

fn labeled(value: &str) -> Value {
    let mut pod = pod();
    pod["metadata"]["labels"] = json!({INJECT: value});
    pod
}

#[test]
fn nine_combinations_of_labels_make_a_sidecar_or_a_plain_pod() {
    with_client(|admission, client| {
        for (of_namespace, wanted) in [
            (json!({}), [false, true, false]),
            (json!({INJECT: "enabled"}), [true, true, false]),
            (json!({INJECT: "disabled"}), [false, true, false]),
        ] {
            let namespace = admission.namespace(client, &of_namespace, &json!({}));
            for (pod, wanted) in [pod(), labeled("enabled"), labeled("disabled")].iter().zip(wanted) {
                let made = client.dry_run(&namespace, pod);
                let what = format!("{of_namespace} {}: {made:?}", pod["metadata"]);
                assert_eq!((sidecars(&made.body), ours(&made)), (usize::from(wanted), vec![]), "{what}");
            }
        }
    });
}

#[test]
fn a_label_with_another_value_makes_a_plain_pod_and_one_warning() {
    with_client(|admission, client| {
        for labels in [json!({INJECT: "enabled"}), json!({})] {
            let namespace = admission.namespace(client, &labels, &json!({}));
            for value in ["true", "Enabled", "", "false"] {
                let made = client.dry_run(&namespace, &labeled(value));
                let warnings = ours(&made);
                assert_eq!((sidecars(&made.body), warnings.len()), (0, 1), "{value:?}: {made:?}");
                let wanted =
                    format!("Unsupported value: {value:?}: supported values: \"enabled\", \"disabled\"");
                assert!(warnings[0].contains(&wanted), "{value:?}: {}", warnings[0]);
            }
        }
    });
}

#[test]
fn namespaces_that_are_not_served_make_plain_pods_and_their_pods_say_why() {
    with_client(|admission, client| {
        let not_listed = format!("not-served-{}", std::process::id());
        for name in [&not_listed, OWN] {
            admission.prepare(client, name, &json!({}), &json!({}));
        }
        for (namespace, reason) in [
            (not_listed.as_str(), "namespace-not-listed"),
            (OWN, "own-namespace"),
            ("kube-system", "system-namespace"),
            ("kube-node-lease", "system-namespace"),
        ] {
            if namespace.starts_with("kube-") {
                admission.prepare(client, namespace, &json!({}), &json!({}));
            }
            let made = client.dry_run(namespace, &labeled("enabled"));
            let warnings = ours(&made);
            assert!(
                made.is_success() && sidecars(&made.body) == 0 && warnings.len() == 1,
                "{namespace}: {made:?}"
            );
            assert!(warnings[0].contains(&format!("{reason}: ")), "{}", warnings[0]);
            let reasons = ["system-namespace", "own-namespace", "namespace-not-listed"];
            assert_eq!(
                reasons.iter().filter(|reason| warnings[0].contains(**reason)).count(),
                1,
                "{}",
                warnings[0]
            );
            let silent = client.dry_run(namespace, &pod());
            assert_eq!((sidecars(&silent.body), ours(&silent)), (0, vec![]), "nobody asked: {silent:?}");
        }
    });
}

#[test]
fn a_namespace_is_warned_about_what_a_stranger_gets_wrong_first() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({}), &json!({}));
        let path = format!("/api/v1/namespaces/{namespace}?dryRun=All");
        let not_served = format!("/api/v1/namespaces/not-served-either-{}", std::process::id());
        admission.prepare(client, not_served.rsplit('/').next().expect("a name"), &json!({}), &json!({}));
        let not_served = format!("{not_served}?dryRun=All");
        for (path, metadata, wanted) in [
            (&path, json!({"labels": {INJECT: "enabled"}}), None),
            (&path, json!({"labels": {INJECT: "disabled"}}), None),
            (&path, json!({"annotations": {"callback-guard.io/workers": "2", "unrelated.io/x": "y"}}), None),
            (
                &path,
                json!({"labels": {INJECT: "on"}}),
                Some("invalid-label: callback-guard.io/inject: Unsupported value: \"on\""),
            ),
            (
                &path,
                json!({"labels": {"callback-guard.io/trust": "yes"}}),
                Some("callback-guard.io/trust: Unsupported value"),
            ),
            (&path, json!({"annotations": {INJECT: "enabled"}}), Some("is a label")),
            (
                &path,
                json!({"annotations": {"callback-guard.io/wrokers": "2"}}),
                Some("unknown-annotation: \"callback-guard.io/wrokers\""),
            ),
            (
                &path,
                json!({"annotations": {"callback-guard.io/workers": "many"}}),
                Some("must be a whole number, 1 to 64"),
            ),
            (&not_served, json!({"labels": {INJECT: "enabled"}}), Some("namespace-not-listed: ")),
            (&not_served, json!({"labels": {INJECT: "disabled"}}), None),
            (
                &"/api/v1/namespaces/kube-system?dryRun=All".to_owned(),
                json!({"labels": {INJECT: "enabled"}}),
                Some("system-namespace: "),
            ),
        ] {
            let changed = client.patch(path, &json!({"metadata": metadata}));
            let warnings = ours(&changed);
            assert!(changed.is_success(), "{metadata}: {changed:?}");
            match wanted {
                Some(wanted) => {
                    assert!(warnings.len() == 1 && warnings[0].contains(wanted), "{metadata}: {warnings:?}");
                }
                None => assert!(warnings.is_empty(), "{metadata}: {warnings:?}"),
            }
        }
    });
}

#[test]
fn a_label_that_comes_or_goes_acts_on_the_next_pod() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({}), &json!({}));
        let path = format!("/api/v1/namespaces/{namespace}");
        for (value, wanted) in [(json!("enabled"), true), (Value::Null, false), (json!("enabled"), true)] {
            client.patch(&path, &json!({"metadata": {"labels": {INJECT: value}}}));
            eventually("the label's effect", || {
                (has_sidecar(&client.dry_run(&namespace, &pod()).body) == wanted).then_some(())
            });
        }
    });
}
