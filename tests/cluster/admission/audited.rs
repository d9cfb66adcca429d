//! What the policies leave in the audit log: the reason why a pod that asked has no sidecar, and nothing of other pods.

use serde_json::{Value, json};

use super::super::audit::{Audit, Entry};
use super::super::client::Reply;
use super::{INJECT, annotated, has_sidecar, ours, pod, with_client};

/// The failed validations of a request, as the API server writes them into its annotations.
fn failures(entry: &Entry) -> Vec<Value> {
    let text = entry.annotation("validation.policy.admission.k8s.io/validation_failure");
    text.map(|text| serde_json::from_str(text).expect("a list as JSON")).unwrap_or_default()
}

/// Asserts that the log has one failed validation for the one warning of an answer, in the same words and with this reason.
#[track_caller]
fn assert_audited(audit: &Audit, reply: &Reply, reason: &str) {
    let entry = audit.request_of(reply);
    let (failures, warnings) = (failures(&entry), ours(reply));
    assert!(failures.len() == 1 && warnings.len() == 1, "{reason}: {entry:?} {reply:?}");
    let failure = &failures[0];
    assert_eq!(failure["validationActions"], json!(["Warn", "Audit"]), "{reason}: {failure}");
    for part in ["message", "policy", "binding"] {
        let text = failure[part].as_str().unwrap_or_default();
        assert!(
            !text.is_empty() && warnings[0].contains(text),
            "{reason}: {part} of {failure}: {warnings:?}"
        );
    }
    let message = failure["message"].as_str().unwrap_or_default();
    assert!(message.split(": ").any(|part| part == reason), "{reason}: {message}");
}

#[test]
fn a_pod_that_asked_and_has_no_sidecar_leaves_the_reason_in_the_audit_log() {
    with_client(|admission, client| {
        let asking = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let not_listed = format!("not-audited-{}", std::process::id());
        admission.prepare(client, &not_listed, &json!({}), &json!({}));
        let audit = Audit::of(admission.cluster).since_now();
        let with = |pointer: &str, value: Value| {
            let mut pod = pod();
            let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
            pod.pointer_mut(parent).expect("the place above it")[last] = value;
            pod
        };
        for (namespace, pod, reason) in [
            (&asking, annotated("workers", "0"), "invalid-annotation"),
            (&asking, annotated("wrokers", "2"), "unknown-annotation"),
            (&asking, with("/metadata/labels", json!({INJECT: "true"})), "invalid-label"),
            (&asking, with("/spec/hostNetwork", json!(true)), "host-network"),
            (&asking, with("/spec/containers/0/ports", json!([{"containerPort": 18443}])), "port-in-use"),
            (&not_listed, with("/metadata/labels", json!({INJECT: "enabled"})), "namespace-not-listed"),
        ] {
            let made = client.dry_run(namespace, &pod);
            assert!(made.is_success() && !has_sidecar(&made.body), "{reason}: {made:?}");
            assert_audited(&audit, &made, reason);
        }
    });
}

#[test]
fn a_workload_whose_pods_cannot_have_the_sidecar_leaves_the_reason_too() {
    with_client(|admission, client| {
        let asking = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let audit = Audit::of(admission.cluster).since_now();
        for (pod, reason) in [(annotated("workers", "0"), Some("invalid-annotation")), (pod(), None)] {
            let annotations = &pod["metadata"]["annotations"];
            let template =
                json!({"metadata": {"labels": {"a": "b"}, "annotations": annotations}, "spec": pod["spec"]});
            let deployment = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
                "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template},
            });
            let made = client
                .create(&format!("/apis/apps/v1/namespaces/{asking}/deployments?dryRun=All"), &deployment);
            assert!(made.is_success(), "{made:?}");
            match reason {
                Some(reason) => assert_audited(&audit, &made, reason),
                None => assert_eq!(failures(&audit.request_of(&made)), Vec::<Value>::new(), "{made:?}"),
            }
        }
    });
}

#[test]
fn a_pod_with_the_sidecar_and_one_that_did_not_ask_leave_nothing_in_the_audit_log() {
    with_client(|admission, client| {
        let asking = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let plain = admission.namespace(client, &json!({}), &json!({}));
        let audit = Audit::of(admission.cluster).since_now();
        let mut disabled = pod();
        disabled["metadata"]["labels"] = json!({INJECT: "disabled"});
        for (namespace, pod, wanted) in
            [(&asking, pod(), true), (&plain, pod(), false), (&asking, disabled, false)]
        {
            let made = client.dry_run(namespace, &pod);
            assert_eq!((has_sidecar(&made.body), ours(&made)), (wanted, vec![]), "{made:?}");
            let entry = audit.request_of(&made);
            assert_eq!(entry.resource(), "pods", "{entry:?}");
            assert_eq!(failures(&entry), Vec::<Value>::new(), "{entry:?}");
        }
    });
}
