//! What pods and namespaces of a real API server are to the census.

use std::time::{SystemTime, UNIX_EPOCH};

use callback_guard::sidecar::census::{self, PodState, Surroundings};
use callback_guard::sidecar::{Installation, Reason};
use serde_json::{Value, json};

use super::super::client::Client;
use super::super::cluster::eventually;
use super::super::webhook::{Webhook, first_init_container};
use super::{Admission, INJECT, annotated, has_sidecar, installation, pod, with_client};

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("before the end of time")
}

/// Times of the API server are whole seconds: what comes after this has a later one.
fn next_second() -> i64 {
    let before = now();
    eventually("the next second", || (now() > before).then(now))
}

/// A namespace with what the census needs of it.
struct Place<'c> {
    admission: &'c Admission,
    name: String,
    installation: Installation,
}

impl Place<'_> {
    fn metadata(&self, client: &mut Client) -> Value {
        client.get(&format!("/api/v1/namespaces/{}", self.name)).body["metadata"].take()
    }

    fn create(&self, client: &mut Client, name: &str, mut pod: Value) -> Value {
        pod["metadata"]["name"] = name.into();
        let made = client.create(&format!("/api/v1/namespaces/{}/pods", self.name), &pod);
        assert!(made.is_success(), "{made:?}");
        made.body
    }

    /// What the stored pod is now.
    fn state(&self, client: &mut Client, name: &str) -> PodState {
        let pod = client.get(&format!("/api/v1/namespaces/{}/pods/{name}", self.name)).body;
        assert_eq!(pod["metadata"]["name"], name, "{pod}");
        self.state_of(client, &pod)
    }

    fn state_of(&self, client: &mut Client, pod: &Value) -> PodState {
        let metadata = self.metadata(client);
        let current = self.current();
        let surroundings = Surroundings {
            namespace: &self.name,
            metadata: &metadata,
            labeled_since: census::label_time(&metadata),
            installation: &self.installation,
            current: Some(&current),
        };
        census::state(pod, &surroundings)
    }

    /// As docs/injection.md reads it.
    fn current(&self) -> String {
        let path = r"jsonpath={.metadata.labels.callback-guard\.io/injected}";
        let current =
            self.admission.cluster.kubectl(&["get", "mutatingadmissionpolicy", "callback-guard", "-o", path]);
        assert!(current.starts_with(env!("CARGO_PKG_VERSION")), "{current:?}");
        current
    }

    fn label(&self, client: &mut Client, labels: Value) {
        let patch = json!({"metadata": {"labels": labels}});
        let patched = client.patch(&format!("/api/v1/namespaces/{}", self.name), &patch);
        assert!(patched.is_success(), "{patched:?}");
    }
}

fn place<'c>(admission: &'c Admission, client: &mut Client, labels: &Value) -> Place<'c> {
    let name = admission.namespace(client, labels, &json!({}));
    Place { admission, name, installation: installation() }
}

const FINE: PodState = PodState::Guarded { stale: false, in_front: None };

#[test]
fn a_pod_is_what_the_label_of_its_namespace_and_the_policy_make_of_it() {
    with_client(|admission, client| {
        let place = place(admission, client, &json!({}));
        place.create(client, "old", pod());
        assert_eq!(place.state(client, "old"), PodState::NotOurs);
        let before = next_second();
        place.label(client, json!({INJECT: "enabled"}));
        let since = census::label_time(&place.metadata(client)).expect("the API server notes it");
        assert!((before..=now()).contains(&since), "{before} {since}");
        eventually("the label's effect", || {
            has_sidecar(&client.dry_run(&place.name, &pod()).body).then_some(())
        });

        place.create(client, "new", pod());
        place.create(client, "wrong", annotated("workers", "0"));
        let mut on_the_node = pod();
        on_the_node["spec"]["hostNetwork"] = true.into();
        on_the_node["spec"]["containers"][0]["ports"][0]["hostPort"] = 3000.into();
        place.create(client, "on-the-node", on_the_node);
        let mut without = pod();
        without["metadata"]["labels"] = json!({INJECT: "disabled"});
        place.create(client, "without", without);
        for (name, expected) in [
            ("old", PodState::NotRestarted),
            ("new", FINE),
            ("wrong", PodState::Skipped(Reason::InvalidAnnotation)),
            ("on-the-node", PodState::Skipped(Reason::HostNetwork)),
            ("without", PodState::NotOurs),
        ] {
            assert_eq!(place.state(client, name), expected, "{name}");
        }

        // Labels of a pod that exists change nothing about its containers.
        let injected = |label: &str| json!({"callback-guard.io/injected": label});
        let stale = PodState::Guarded { stale: true, in_front: None };
        for (name, labels, expected) in [
            ("old", json!({INJECT: "enabled"}), PodState::Naked),
            ("new", injected("0-0"), stale),
            ("wrong", injected(&place.current()), PodState::Skipped(Reason::InvalidAnnotation)),
        ] {
            let path = format!("/api/v1/namespaces/{}/pods/{name}", place.name);
            assert!(client.patch(&path, &json!({"metadata": {"labels": labels}})).is_success());
            assert_eq!(place.state(client, name), expected, "{name}");
        }
    });
}

#[test]
fn the_time_of_a_label_is_its_own_or_later_and_another_managers_change_does_not_move_it() {
    with_client(|admission, client| {
        let place = place(admission, client, &json!({INJECT: "enabled"}));
        let first = census::label_time(&place.metadata(client)).expect("the API server notes it");
        next_second();
        let other = admission.cluster.kubectl(&["label", "namespace", &place.name, "team=a"]);
        assert!(other.contains("labeled"), "{other}");
        assert_eq!(census::label_time(&place.metadata(client)), Some(first), "another manager");
        let second = next_second();
        place.label(client, json!({"team": "b"}));
        let renewed = census::label_time(&place.metadata(client)).expect("the label is still there");
        assert!(renewed >= second, "{first} {second} {renewed}: the same manager");
        let last = next_second();
        place.label(client, json!({INJECT: "disabled"}));
        assert_eq!(census::label_time(&place.metadata(client)), None);
        place.label(client, json!({INJECT: "enabled"}));
        let again = census::label_time(&place.metadata(client)).expect("it is back");
        assert!(again >= last, "{last} {again}");
    });
}

#[test]
fn a_pod_behind_another_injector_is_not_first() {
    with_client(|admission, client| {
        let place = place(admission, client, &json!({INJECT: "enabled"}));
        let webhook = Webhook::start(admission.cluster.host(), first_init_container);
        let name = place.name.clone();
        let configured = webhook.configure(&format!("census-{name}"), &name, "IfNeeded", admission.cluster);
        let made = client.dry_run(&name, &pod()).body;
        let expected = PodState::Guarded { stale: false, in_front: Some("first".to_owned()) };
        assert_eq!(place.state_of(client, &made), expected, "{made}");
        drop(configured);
    });
}
