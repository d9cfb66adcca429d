//! The policy that makes pods trust the guard's authority. What their programs make of it is seen on a node.

use serde_json::{Value, json};

use super::super::client::{Client, Reply};
use super::super::webhook::{Webhook, first_init_container};
use super::{ours, pod, with_client};

const TRUST: &str = "callback-guard.io/trust";
const FOLDERS: &str = "/etc/ssl/certs:/etc/pki/tls/certs:/callback-guard-ca";

/// A pod with an init container, and with this container beside the app.
fn trusting(more: Value) -> Value {
    let mut pod = pod();
    pod["metadata"]["labels"] = json!({TRUST: "enabled"});
    pod["spec"]["initContainers"] = json!([{"name": "first", "image": "x"}]);
    pod["spec"]["containers"].as_array_mut().expect("containers").push(more);
    pod
}

/// The variable of each container, and whether it has the mount.
fn trust(pod: &Value) -> Vec<(Option<&str>, bool)> {
    let containers = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
    let of = |container: &'_ Value| {
        let env = container["env"].as_array();
        let value = env.and_then(|env| {
            env.iter().find(|one| one["name"] == "SSL_CERT_DIR")?["value"].as_str().map(str::to_owned)
        });
        let mounts = container["volumeMounts"].as_array();
        let mounted =
            mounts.is_some_and(|mounts| mounts.iter().any(|one| one["mountPath"] == "/callback-guard-ca"));
        (value, mounted)
    };
    let found: Vec<_> = containers.into_iter().flatten().flatten().map(of).collect();
    found.into_iter().map(|(value, mounted)| (value.map(|value| &*value.leak()), mounted)).collect()
}

fn made(client: &mut Client, namespace: &str, pod: &Value) -> Reply {
    let made = client.dry_run(namespace, pod);
    assert!(made.is_success(), "{made:?}");
    assert_eq!(ours(&made), [""; 0], "{made:?}");
    made
}

/// The same for a pod that asked, and has a reason to be left alone.
fn left_alone(client: &mut Client, namespace: &str, pod: &Value) {
    let made = client.dry_run(namespace, pod);
    let warnings = ours(&made);
    assert!(made.is_success() && warnings.len() == 1, "{made:?}");
    assert!(warnings[0].contains("not-trusting: "), "{warnings:?}");
    assert!(trust(&made.body).iter().all(|(value, mounted)| value.is_none() && !mounted), "{made:?}");
}

#[test]
fn a_pod_that_asks_has_the_authority_in_each_container_that_does_not_say_otherwise() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({}), &json!({}));
        let own = json!({"name": "own", "image": "x", "env": [{"name": "SSL_CERT_DIR", "value": "/mine"}]});
        let reply = made(client, &namespace, &trusting(own));
        let wanted = [(Some(FOLDERS), true), (Some(FOLDERS), true), (Some("/mine"), false)];
        assert_eq!(trust(&reply.body), wanted);
        let volumes = reply.body["spec"]["volumes"].as_array().expect("volumes");
        let ours: Vec<_> = volumes.iter().filter(|volume| volume["name"] == "callback-guard-ca").collect();
        assert_eq!(ours.len(), 1, "{reply:?}");
        assert_eq!(ours[0]["configMap"]["name"], "callback-guard-ca");
        assert_eq!(ours[0]["configMap"]["optional"], true, "a pod starts without it: {reply:?}");
        assert_eq!(ours[0]["configMap"]["items"], json!([{"key": "ca.crt", "path": "ca.crt"}]));
        assert_eq!(reply.body["spec"]["initContainers"].as_array().map(Vec::len), Some(1), "no sidecar");
        // With variables of its own it keeps them.
        let other = json!({"name": "other", "image": "x", "env": [{"name": "A", "value": "b"}]});
        let reply = made(client, &namespace, &trusting(other));
        assert_eq!(reply.body["spec"]["containers"][1]["env"][0], json!({"name": "A", "value": "b"}));
        assert_eq!(trust(&reply.body)[2], (Some(FOLDERS), true));
    });
}

#[test]
fn who_trusts_is_said_by_the_pod_or_its_namespace_and_the_pod_wins() {
    with_client(|admission, client| {
        for (of_namespace, of_pod, wanted) in [
            (json!({}), json!({}), false),
            (json!({}), json!({TRUST: "enabled"}), true),
            (json!({TRUST: "enabled"}), json!({}), true),
            (json!({TRUST: "enabled"}), json!({TRUST: "disabled"}), false),
            (json!({TRUST: "disabled"}), json!({TRUST: "enabled"}), true),
        ] {
            let namespace = admission.namespace(client, &of_namespace, &json!({}));
            let mut pod = pod();
            pod["metadata"]["labels"] = of_pod.clone();
            let reply = made(client, &namespace, &pod);
            let trusts = trust(&reply.body).iter().any(|(value, _)| value.is_some());
            assert_eq!(trusts, wanted, "{of_namespace} {of_pod}");
        }
    });
}

#[test]
fn a_pod_with_both_labels_has_the_sidecar_and_the_app_trusts_and_the_sidecar_does_not_need_to() {
    with_client(|admission, client| {
        let namespace =
            admission.namespace(client, &json!({super::INJECT: "enabled", TRUST: "enabled"}), &json!({}));
        let reply = made(client, &namespace, &pod());
        assert!(super::has_sidecar(&reply.body), "{reply:?}");
        assert_eq!(trust(&reply.body), [(None, false), (Some(FOLDERS), true)]);
    });
}

#[test]
fn a_container_that_another_webhook_adds_has_the_authority_too() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({TRUST: "enabled"}), &json!({}));
        let webhook = Webhook::start(admission.cluster.host(), first_init_container);
        let name = format!("trust-{namespace}");
        let configured = webhook.configure(&name, &namespace, "Never", admission.cluster);
        let reply = made(client, &namespace, &pod());
        assert_eq!(reply.body["spec"]["initContainers"][0]["name"], "first", "{reply:?}");
        assert_eq!(trust(&reply.body), [(Some(FOLDERS), true), (Some(FOLDERS), true)], "{reply:?}");
        let volumes = reply.body["spec"]["volumes"].as_array().expect("volumes");
        assert_eq!(
            volumes.iter().filter(|volume| volume["name"] == "callback-guard-ca").count(),
            1,
            "{volumes:?}"
        );
        drop(configured);
    });
}

#[test]
fn a_volume_or_a_mount_that_is_there_already_is_left_alone() {
    with_client(|admission, client| {
        admission.prepare(client, "kube-node-lease", &json!({}), &json!({}));
        let namespace = admission.namespace(client, &json!({}), &json!({}));
        let mut taken = trusting(json!({"name": "other", "image": "x"}));
        taken["spec"]["volumes"] = json!([{"name": "callback-guard-ca", "emptyDir": {}}]);
        left_alone(client, &namespace, &taken);
        for path in ["/callback-guard-ca", "/callback-guard-ca/", "/callback-guard-ca/ca.crt"] {
            let mut mounted = trusting(json!({
                "name": "other", "image": "x", "volumeMounts": [{"name": "mine", "mountPath": path}],
            }));
            mounted["spec"]["volumes"] = json!([{"name": "mine", "emptyDir": {}}]);
            let reply = made(client, &namespace, &mounted);
            let [first, app, other] = trust(&reply.body).try_into().expect("three containers");
            assert_eq!((first, app, other.0), ((Some(FOLDERS), true), (Some(FOLDERS), true), None), "{path}");
            let mounts = &reply.body["spec"]["containers"][1]["volumeMounts"];
            assert!(!mounts.to_string().contains("\"callback-guard-ca\""), "{path}: {mounts}");
        }
        let mut device = trusting(json!({
            "name": "other", "image": "x", "volumeDevices": [{"name": "mine", "devicePath": "/callback-guard-ca"}],
        }));
        device["spec"]["volumes"] = json!([{"name": "mine", "persistentVolumeClaim": {"claimName": "mine"}}]);
        let reply = made(client, &namespace, &device);
        assert_eq!(trust(&reply.body)[2], (None, false), "{reply:?}");
        let mut windows = trusting(json!({"name": "other", "image": "x"}));
        windows["spec"]["os"] = json!({"name": "windows"});
        left_alone(client, &namespace, &windows);
        let mut alone = pod();
        alone["metadata"]["labels"] = json!({TRUST: "enabled"});
        left_alone(client, "kube-node-lease", &alone);
        // A name that only begins like the folder's is another place.
        let mut near = trusting(json!({
            "name": "other", "image": "x", "volumeMounts": [{"name": "mine", "mountPath": "/callback-guard-cache"}],
        }));
        near["spec"]["volumes"] = json!([{"name": "mine", "emptyDir": {}}]);
        let reply = made(client, &namespace, &near);
        assert_eq!(trust(&reply.body)[2], (Some(FOLDERS), true), "{reply:?}");
    });
}

#[test]
fn another_value_of_the_label_is_one_warning() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({}), &json!({}));
        for value in ["true", ""] {
            let mut pod = pod();
            pod["metadata"]["labels"] = json!({TRUST: value});
            let reply = client.dry_run(&namespace, &pod);
            let warnings = ours(&reply);
            assert!(reply.is_success() && warnings.len() == 1, "{value:?}: {reply:?}");
            assert!(
                warnings[0].contains(&format!("{TRUST}: Unsupported value: {value:?}")),
                "{}",
                warnings[0]
            );
        }
    });
}
