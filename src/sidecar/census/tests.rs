use serde_json::json;

use super::super::INJECTED;
use super::*;

const CURRENT: &str = "1-aa";

/// A running pod of the namespace `shop`, created at the second 100, with this metadata beside.
fn pod(metadata: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "app-x1", "creationTimestamp": "1970-01-01T00:01:40Z"},
        "spec": {"containers": [{"name": "app"}]}, "status": {"phase": "Running"},
    });
    for (key, value) in metadata.as_object().into_iter().flatten() {
        pod["metadata"][key] = value.clone();
    }
    pod
}

fn asking() -> Value {
    pod(json!({"labels": {"callback-guard.io/inject": "enabled"}}))
}

/// The pod as the policy made it, with this label.
fn injected(label: &str) -> Value {
    let mut pod = pod(json!({
        "labels": {format!("{PREFIX}{INJECTED}"): label},
        "annotations": {"callback-guard.io/injected-by": "policy"},
    }));
    pod["spec"]["initContainers"] = json!([{"name": CONTAINER, "restartPolicy": "Always"}]);
    pod
}

/// In a namespace that asks since this second.
#[track_caller]
fn state_since(pod: &Value, labeled_since: Option<i64>) -> PodState {
    let installation = Installation::of_image("guard:1");
    let metadata = json!({"labels": {"callback-guard.io/inject": "enabled"}});
    let surroundings = Surroundings {
        namespace: "shop",
        metadata: &metadata,
        labeled_since,
        installation: &installation,
        current: Some(CURRENT),
    };
    state(pod, &surroundings)
}

fn state_of(pod: &Value) -> PodState {
    state_since(pod, Some(50))
}

const FINE: PodState = PodState::Guarded { stale: false, in_front: None };

#[test]
fn a_pod_that_asked_and_has_no_sidecar_is_naked_unless_it_is_older_than_the_label() {
    for (labeled_since, expected) in [
        (Some(99), PodState::Naked),
        // The same second.
        (Some(100), PodState::Naked),
        (Some(101), PodState::NotRestarted),
        (None, PodState::Naked),
    ] {
        assert_eq!(state_since(&pod(json!({})), labeled_since), expected, "{labeled_since:?}");
        assert_eq!(state_since(&asking(), labeled_since), PodState::Naked, "its own label asks");
    }
    for created in [Value::Null, json!(5), json!("yesterday")] {
        let pod = pod(json!({"creationTimestamp": created}));
        assert_eq!(state_since(&pod, Some(101)), PodState::Naked, "{created}");
    }
}

#[test]
fn pods_that_did_not_ask_or_have_ended_are_not_ours() {
    let with = |pointer: &str, value: Value| {
        let mut pod = pod(json!({}));
        *pod.pointer_mut(pointer).expect("it is there") = value;
        pod
    };
    for phase in ["Succeeded", "Failed", "Unknown", "", "running"] {
        assert_eq!(state_of(&with("/status/phase", phase.into())), PodState::NotOurs, "{phase}");
    }
    assert_eq!(state_of(&with("/status/phase", json!(1))), PodState::NotOurs);
    for status in [json!({"phase": "Pending"}), json!({"phase": null}), json!({}), Value::Null] {
        assert_eq!(state_of(&with("/status", status.clone())), PodState::Naked, "{status}");
    }
    let deleted = json!({"deletionTimestamp": "2026-12-01T10:00:00Z"});
    assert_eq!(state_of(&pod(deleted.clone())), PodState::NotOurs);
    assert_eq!(state_of(&pod(json!({"deletionTimestamp": null}))), PodState::Naked);
    let mut terminating = injected(CURRENT);
    terminating["metadata"]["deletionTimestamp"] = deleted["deletionTimestamp"].clone();
    assert_eq!(state_of(&terminating), PodState::NotOurs);
    let disabled = pod(json!({"labels": {"callback-guard.io/inject": "disabled"}}));
    assert_eq!(state_of(&disabled), PodState::NotOurs);

    // In a namespace that does not ask.
    let installation = Installation::of_image("guard:1");
    for metadata in [json!({}), json!({"labels": {"callback-guard.io/inject": "disabled"}}), Value::Null] {
        let surroundings = Surroundings {
            namespace: "shop",
            metadata: &metadata,
            labeled_since: None,
            installation: &installation,
            current: Some(CURRENT),
        };
        assert_eq!(state(&pod(json!({})), &surroundings), PodState::NotOurs, "{metadata}");
        assert_eq!(state(&asking(), &surroundings), PodState::Naked, "{metadata}");
        assert_eq!(state(&injected(CURRENT), &surroundings), FINE, "{metadata}");
    }
}

#[test]
fn what_is_in_the_way_has_the_name_that_the_policy_warns_with() {
    let annotated = |annotations: Value| pod(json!({"annotations": annotations}));
    let mut on_the_node = pod(json!({}));
    on_the_node["spec"]["hostNetwork"] = true.into();
    // Several at once, in the reverse order.
    let mut several = annotated(json!({
        "callback-guard.io/wrokers": "1", "callback-guard.io/workers": "0", "callback-guard.io/admin-port": "18443",
    }));
    let unknown =
        annotated(json!({"callback-guard.io/admin-port": "18443", "callback-guard.io/colour": "red"}));
    assert_eq!(state_of(&several), PodState::Skipped(Reason::InvalidAnnotation));
    several["spec"]["volumes"] = json!([{"name": "callback-guard-tls"}]);
    for (pod, reason) in [
        (on_the_node, Reason::HostNetwork),
        (several, Reason::VolumeInUse),
        (unknown, Reason::UnknownAnnotation),
        (annotated(json!({"callback-guard.io/admin-port": "18443"})), Reason::Conflict),
        (pod(json!({"labels": {"callback-guard.io/inject": "true"}})), Reason::InvalidLabel),
    ] {
        // What is in the way matters more than its age: a restart does not help.
        for since in [Some(50), Some(101), None] {
            assert_eq!(state_since(&pod, since), PodState::Skipped(reason), "{pod}");
        }
    }
}

#[test]
fn a_pod_of_another_policy_is_stale_and_one_of_inject_is_not() {
    let stale = PodState::Guarded { stale: true, in_front: None };
    assert_eq!(state_of(&injected(CURRENT)), FINE);
    assert_eq!(state_of(&injected("1-ab")), stale);
    let mut by_file = injected("1-ab");
    by_file["metadata"]["annotations"] = json!({"callback-guard.io/injected-hash": "ab"});
    assert_eq!(state_of(&by_file), FINE);
    let (installation, metadata) = (Installation::of_image("guard:1"), json!({}));
    let surroundings = Surroundings {
        namespace: "shop",
        metadata: &metadata,
        labeled_since: None,
        installation: &installation,
        current: None,
    };
    assert_eq!(state(&injected("1-ab"), &surroundings), FINE, "what is current is not known");
}

#[test]
fn an_init_container_in_front_is_named_and_one_behind_is_not() {
    let with_inits = |label: &str, names: &[&str]| {
        let mut pod = injected(label);
        let inits = names.iter().map(|name| json!({"name": name, "restartPolicy": "Always"}));
        pod["spec"]["initContainers"] = inits.collect();
        pod
    };
    let behind = |name: &str, stale| PodState::Guarded { stale, in_front: Some(name.to_owned()) };
    assert_eq!(state_of(&with_inits(CURRENT, &["callback-guard", "mesh"])), FINE);
    assert_eq!(state_of(&with_inits(CURRENT, &["mesh", "callback-guard"])), behind("mesh", false));
    assert_eq!(state_of(&with_inits("1-ab", &["mesh", "callback-guard"])), behind("mesh", true));
    assert_eq!(state_of(&with_inits("1-ab", &["", "callback-guard"])), behind("", true));
}

#[test]
fn a_label_without_a_sidecar_guards_nothing() {
    let mut only_labeled = injected(CURRENT);
    only_labeled["spec"]["initContainers"] = json!([{"name": "mesh"}]);
    only_labeled["metadata"]["annotations"] = json!({});
    assert_eq!(state_of(&only_labeled), PodState::Naked);
    for containers in [
        json!({"initContainers": [{"name": CONTAINER}], "containers": [{"name": "app"}]}),
        json!({"containers": [{"name": CONTAINER, "restartPolicy": "Always"}]}),
    ] {
        only_labeled["spec"] = containers;
        assert_eq!(state_of(&only_labeled), PodState::Skipped(Reason::AlreadyInjected), "{only_labeled}");
    }
    // A sidecar without the label is one of somebody else.
    let mut without_label = injected(CURRENT);
    without_label["metadata"]["labels"] = json!({});
    assert_eq!(state_of(&without_label), PodState::Skipped(Reason::AlreadyInjected));
}

#[test]
fn the_label_is_as_old_as_its_earliest_manager() {
    let entry = |time: &str, label: &str| {
        json!({
            "manager": "m", "operation": "Update", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {".": {}, label: {}}}},
        })
    };
    let ours = "f:callback-guard.io/inject";
    let of = |value: &str, entries: Value| {
        label_time(&json!({
            "creationTimestamp": "1970-01-01T00:00:01Z", "labels": {"callback-guard.io/inject": value},
            "managedFields": entries,
        }))
    };
    let (early, late) = ("1970-01-01T00:00:30Z", "1970-01-01T00:01:00Z");
    for (entries, expected) in [
        (json!([entry(late, ours)]), Some(60)),
        (json!([entry(late, ours), entry(early, ours)]), Some(30)),
        (json!([entry(early, "f:team"), entry(late, ours)]), Some(60)),
        (json!([entry(early, "f:team")]), None),
        (json!([entry("soon", ours)]), None),
        (json!([entry("soon", ours), entry(late, ours)]), Some(60)),
        (json!([{}, null, 1, entry(late, ours)]), Some(60)),
        (json!([]), None),
        (json!({}), None),
        (Value::Null, None),
    ] {
        assert_eq!(of("enabled", entries.clone()), expected, "{entries}");
        assert_eq!(of("disabled", entries), None);
    }
    assert_eq!(label_time(&Value::Null), None);
}

fn owned_by(reference: Value, hash: &str) -> Owner {
    let labels = if hash.is_empty() { json!({}) } else { json!({"pod-template-hash": hash}) };
    owner(&pod(json!({"uid": "u1", "ownerReferences": [reference], "labels": labels})))
}

#[test]
fn the_owner_is_the_controller_of_a_pod_or_the_deployment_behind_it() {
    let reference = |version: &str, kind: &str, name: &str| json!({"apiVersion": version, "kind": kind, "name": name, "uid": "u2", "controller": true});
    let own = |version: &str, kind: &str, name: &str, uid: Option<&str>| Owner {
        api_version: version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.map(str::to_owned),
    };
    let replicas = |name: &str| own("apps/v1", "ReplicaSet", name, Some("u2"));
    for (version, kind, name, hash, expected) in [
        ("apps/v1", "ReplicaSet", "app-7d9f", "7d9f", own("apps/v1", "Deployment", "app", None)),
        ("apps/v1", "ReplicaSet", "app-7d9f", "", replicas("app-7d9f")),
        ("apps/v1", "ReplicaSet", "app-7d9f", "9f", replicas("app-7d9f")),
        ("apps/v1", "ReplicaSet", "7d9f", "7d9f", replicas("7d9f")),
        ("apps/v1", "ReplicaSet", "a.-7d9f", "7d9f", own("v1", "Pod", "app-x1", Some("u1"))),
        ("apps/v1", "StatefulSet", "db", "", own("apps/v1", "StatefulSet", "db", Some("u2"))),
        ("apps/v1", "StatefulSet", "db-7d9f", "7d9f", own("apps/v1", "StatefulSet", "db-7d9f", Some("u2"))),
        ("batch/v1", "Job", "import-2955", "", own("batch/v1", "Job", "import-2955", Some("u2"))),
        ("x.io/v1", "ReplicaSet", "a-7", "7", own("x.io/v1", "ReplicaSet", "a-7", Some("u2"))),
        ("v1", "ReplicationController", "rc", "", own("v1", "ReplicationController", "rc", Some("u2"))),
    ] {
        assert_eq!(owned_by(reference(version, kind, name), hash), expected, "{kind} {name} {hash}");
    }
    let itself = own("v1", "Pod", "app-x1", Some("u1"));
    let mut another = reference("apps/v1", "StatefulSet", "db");
    another["controller"] = false.into();
    // No object can be called so.
    let forged = [
        reference("apps/v1", "StatefulSet", "db; reboot"),
        reference("apps/v1", "StatefulSet", ""),
        reference("apps/v1", "State`full", "db"),
        reference("apps/v1/x", "StatefulSet", "db"),
        reference("$(x)", "StatefulSet", "db"),
        json!({"controller": true}),
        json!("db"),
        another,
    ];
    for reference in forged {
        assert_eq!(owned_by(reference.clone(), "7"), itself, "{reference}");
    }
    assert_eq!(owner(&Value::Null), own("v1", "Pod", "", None));
}

#[test]
fn what_replaces_a_pod_depends_on_its_owner_and_has_names_alone() {
    let remedy = |version: &str, kind: &str, name: &str, namespace: &str, pod: &str| {
        let owner = Owner {
            api_version: version.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: None,
        };
        owner.remedy(namespace, pod)
    };
    let delete = "delete its pods one at a time: kubectl -n shop delete pod a-1";
    for (version, kind, expected) in [
        ("apps/v1", "Deployment", Some("kubectl -n shop rollout restart deployment/a")),
        ("apps/v1", "StatefulSet", Some("kubectl -n shop rollout restart statefulset/a")),
        ("apps/v1", "DaemonSet", Some("kubectl -n shop rollout restart daemonset/a")),
        ("apps/v1", "ReplicaSet", Some(delete)),
        ("v1", "ReplicationController", Some(delete)),
        ("batch/v1", "Job", Some("delete it and create it again")),
        ("v1", "Pod", Some("delete it and create it again")),
        ("apps.kruise.io/v1", "StatefulSet", None),
        ("argoproj.io/v1alpha1", "Rollout", None),
        ("v1", "Node", None),
    ] {
        assert_eq!(remedy(version, kind, "a", "shop", "a-1").as_deref(), expected, "{version} {kind}");
    }
    for (name, namespace) in [("a b", "shop"), ("a;b", "shop"), ("-a", "shop"), ("", "shop"), ("a", "shop|x")]
    {
        assert_eq!(remedy("apps/v1", "Deployment", name, namespace, "a-1"), None, "{name} {namespace}");
    }
    assert_eq!(remedy("apps/v1", "ReplicaSet", "a", "shop", "$(a)"), None);
}
