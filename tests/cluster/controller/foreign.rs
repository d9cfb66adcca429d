//! Objects that somebody else made or changed, namespaces that go away, webhooks that refuse: each is named with what to do, nothing
//! of somebody else is touched, and what is served goes on.

use serde_json::{Value, json};

use super::super::cluster::eventually;
use super::super::replica::Replica;
use super::{Installation, OWN, SERVED, TRUSTING, openssl};

fn secret(namespace: &str, name: &str, data: &Value) -> String {
    let kind = if data["tls.crt"].is_null() { "Opaque" } else { "kubernetes.io/tls" };
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    })
    .to_string()
}

#[test]
fn objects_of_somebody_else_are_named_and_left_alone_and_the_controllers_own_come_once_they_are_gone() {
    let Some(installed) = Installation::new() else { return };
    let cluster = &installed.cluster;
    cluster.apply(&secret(SERVED, "callback-guard-tls", &json!({"tls.crt": "theirs", "tls.key": "theirs"})));
    cluster.apply(&secret(OWN, "callback-guard-ca", &json!({"other": "theirs"})));
    cluster.kubectl(&[
        "-n",
        TRUSTING,
        "create",
        "configmap",
        "callback-guard-ca",
        "--from-literal=ca.crt=theirs",
    ]);
    let policy = [
        "-n",
        SERVED,
        "create",
        "configmap",
        "callback-guard-policy",
        "--from-literal=policy.yaml=mode: Observe",
    ];
    cluster.kubectl(&policy);
    let replica = installed.start("one", &[]);
    let ca = replica.wait_for_finding("ForeignObject", "Secret guard/callback-guard-ca");
    assert!(ca.contains("made by kubectl-client-side-apply") && ca.contains("delete or rename it"), "{ca}");
    cluster.kubectl(&["-n", OWN, "delete", "secret", "callback-guard-ca"]);
    let leaf = replica.wait_for_finding("ForeignObject", "Secret shop/callback-guard-tls");
    assert!(leaf.contains("--external-tls"), "{leaf}");
    replica.wait_for_finding("ForeignObject", "ConfigMap openim/callback-guard-ca");
    let events = || installed.events(SERVED, "Secret", "callback-guard-tls", "ForeignObject");
    eventually("an Event about it", || (!events().is_empty()).then_some(()));
    let unlabeled = replica.wait_for_finding("UnlabeledPolicy", "ConfigMap shop/callback-guard-policy");
    assert!(
        unlabeled.contains("label configmap callback-guard-policy callback-guard.io/policy=true"),
        "{unlabeled}"
    );
    let theirs = |namespace, kind, name, key, text: &str| {
        assert_eq!(
            installed.text(namespace, kind, name, key).as_deref(),
            Some(text),
            "{kind} {namespace}/{name}"
        );
    };
    theirs(SERVED, "secret", "callback-guard-tls", "tls.crt", "theirs");
    theirs(TRUSTING, "configmap", "callback-guard-ca", "ca.crt", "theirs");
    theirs(SERVED, "configmap", "callback-guard-policy", "policy.yaml", "mode: Observe");

    cluster.kubectl(&["-n", SERVED, "delete", "secret", "callback-guard-tls"]);
    cluster.kubectl(&["-n", TRUSTING, "delete", "configmap", "callback-guard-ca"]);
    cluster.kubectl(&[
        "-n",
        SERVED,
        "label",
        "configmap",
        "callback-guard-policy",
        "callback-guard.io/policy=true",
    ]);
    installed.certificate(SERVED, None);
    assert!(installed.bundle().contains("CERTIFICATE"));
    replica.wait_for_no_finding("ForeignObject");
    replica.wait_for_no_finding("UnlabeledPolicy");
}

#[test]
fn what_the_controller_made_is_put_right_and_the_starter_policy_is_made_once() {
    let Some(installed) = Installation::new() else { return };
    let cluster = &installed.cluster;
    let replica = installed.start("one", &[]);
    let first = installed.certificate(SERVED, None);
    let bundle = installed.bundle();
    let starter = eventually("the starter policy", || {
        installed.text(SERVED, "configmap", "callback-guard-policy", "policy.yaml")
    });
    assert!(starter.contains("version: 1"), "{starter}");

    // By hand, as an operator may by accident.
    let patch = |namespace: &str, what: &str, name: &str, patch: Value| {
        cluster.kubectl(&["-n", namespace, "patch", what, name, "--type=merge", "-p", &patch.to_string()]);
    };
    patch(TRUSTING, "configmap", "callback-guard-ca", json!({"data": {"ca.crt": "wrong"}}));
    eventually("the CA again", || (installed.bundle() == bundle).then_some(()));
    patch(SERVED, "secret", "callback-guard-tls", json!({"data": {"tls.crt": "d3Jvbmc="}}));
    let second = installed.certificate(SERVED, Some("wrong"));
    assert_ne!(second, first);
    cluster.kubectl(&["-n", SERVED, "delete", "secret", "callback-guard-tls"]);
    let third = installed.certificate(SERVED, Some(&second));

    // OpenIM trusts the CA, so it comes back from memory.
    cluster.kubectl(&["-n", OWN, "delete", "secret", "callback-guard-ca"]);
    eventually("the CA's Secret", || installed.text(OWN, "secret", "callback-guard-ca", "tls.crt"));
    assert_eq!(installed.bundle(), bundle);
    assert_eq!(installed.certificate(SERVED, None), third, "nothing has to be signed for it");

    // Deleted on purpose, it stays so, also for the next leader.
    cluster.kubectl(&["-n", SERVED, "delete", "configmap", "callback-guard-policy"]);
    replica.signal(libc::SIGTERM);
    assert_eq!(replica.wait(), 0);
    let next = installed.start("two", &[]);
    next.wait_to_lead();
    cluster.kubectl(&["-n", SERVED, "delete", "secret", "callback-guard-tls"]);
    // What comes after it shows that the next leader has looked at all of it.
    installed.certificate(SERVED, Some(&third));
    next.wait_for_line("The certificate of the sidecars is signed", 0);
    assert_eq!(installed.text(SERVED, "configmap", "callback-guard-policy", "policy.yaml"), None);
}

#[test]
fn a_ca_that_cannot_be_used_is_named_key_by_key_and_what_is_served_goes_on() {
    let Some(installed) = Installation::new() else { return };
    let cluster = &installed.cluster;
    let good = installed.start("one", &[]);
    let served = installed.certificate(SERVED, None);
    let bundle = installed.bundle();
    good.signal(libc::SIGTERM);
    assert_eq!(good.wait(), 0);
    let backup = cluster.get(OWN, &["secret", "callback-guard-ca"]).expect("it is there");

    for (data, part) in [
        (json!({"tls.crt": "Z2FyYmFnZQ=="}), "tls.crt"),
        (json!({"tls.key": backup["data"]["next.key"]}), "tls.key"),
    ] {
        let patch = json!({"data": data}).to_string();
        cluster.kubectl(&["-n", OWN, "patch", "secret", "callback-guard-ca", "--type=merge", "-p", &patch]);
        let replica = installed.start("two", &[]);
        let text = replica.wait_for_finding("InvalidAuthority", "Secret guard/callback-guard-ca");
        assert!(text.contains(part) && text.contains("restore it from a backup, or delete it"), "{text}");
        assert!(!text.contains("garbage"), "no text repeats what a Secret holds: {text}");
        let held = cluster.get(OWN, &["secret", "callback-guard-ca"]).expect("it is there");
        for (key, value) in data.as_object().expect("an object") {
            assert_eq!(held["data"][key], *value, "left as it is");
        }
        assert_eq!(installed.certificate(SERVED, None), served);
        assert_eq!(installed.bundle(), bundle);

        let restore = json!({"data": backup["data"]}).to_string();
        cluster.kubectl(&["-n", OWN, "patch", "secret", "callback-guard-ca", "--type=merge", "-p", &restore]);
        replica.wait_for_no_finding("InvalidAuthority");
        assert_eq!(installed.bundle(), bundle);
    }
}

#[test]
fn a_ca_restored_from_a_backup_is_used_and_one_that_was_lost_raises_an_alarm() {
    let Some(installed) = Installation::new() else { return };
    let cluster = &installed.cluster;
    let end = |replica: Replica| {
        replica.signal(libc::SIGTERM);
        assert_eq!(replica.wait(), 0);
    };
    let first = installed.start("first", &[]);
    let served = installed.certificate(SERVED, None);
    let bundle = installed.bundle();
    first.wait_for_no_finding("AuthorityReplaced");
    end(first);
    let backup = cluster.kubectl(&["-n", OWN, "get", "secret", "callback-guard-ca", "-o", "json"]);
    cluster.kubectl(&["-n", OWN, "delete", "secret", "callback-guard-ca"]);
    // As an operator applies it: without what only the API server may set.
    let mut restored: Value = serde_json::from_str(&backup).expect("kubectl writes JSON");
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        restored["metadata"].as_object_mut().expect("an object").remove(field);
    }
    cluster.apply(&restored.to_string());
    let second = installed.start("second", &[]);
    second.wait_for_line("This replica leads", 0);
    eventually("the restored CA", || {
        second.metric("callback_guard_controller_ca_expiry_timestamp_seconds").filter(|seconds| *seconds > 0)
    });
    second.wait_for_no_finding("ForeignObject");
    assert_eq!((installed.bundle(), installed.certificate(SERVED, None)), (bundle, served.clone()));
    end(second);

    cluster.kubectl(&["-n", OWN, "delete", "secret", "callback-guard-ca"]);
    let third = installed.start("third", &[]);
    let alarm = third.wait_for_finding("AuthorityReplaced", "ConfigMap openim/callback-guard-ca");
    assert!(alarm.contains("Restart OpenIM"), "{alarm}");
    installed.certificate(SERVED, Some(&served));
}

#[test]
fn a_namespace_that_goes_away_and_a_webhook_that_refuses_are_named_and_others_are_served() {
    let Some(installed) = Installation::of(&[SERVED, "gone", "refused"], &[]) else { return };
    let cluster = &installed.cluster;
    // Nothing on stage A ends it: it stays in the state in which it refuses new objects.
    cluster.kubectl(&["delete", "namespace", "gone", "--wait=false"]);
    let refuses = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "refuses"},
        "webhooks": [{
            "name": "secrets.webhook.test", "clientConfig": {"url": "https://127.0.0.1:1/"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["*"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "refused"}},
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1, "failurePolicy": "Fail",
        }],
    });
    cluster.apply(&refuses.to_string());
    let replica = installed.start("one", &[]);
    replica.wait_for_finding("NoNamespace", "Namespace gone");
    let refused = replica.wait_for_finding("NotWritten", "Secret refused/callback-guard-tls");
    assert!(refused.contains("secrets.webhook.test"), "{refused}");
    let served = installed.certificate(SERVED, None);
    assert!(openssl(&served, &["-noout", "-checkend", "3600"]).is_ok());
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", "refuses"]);
    installed.certificate("refused", None);
    replica.wait_for_no_finding("NotWritten");
}
