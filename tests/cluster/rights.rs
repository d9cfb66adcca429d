//! The rights that `admission-policy --controller` prints, at a real API server: everything that the controller does is allowed, and
//! nothing beside it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::admission::printed;
use super::client::Client;
use super::cluster::{Applied, Cluster, Namespace, Stage, eventually, run};
use super::support::Folder;

const CONTROLLER: &str = "callback-guard-controller";

/// The namespaces of an installation, and one that has nothing to do with it.
struct Place<'c> {
    cluster: &'c Cluster,
    own: Namespace<'c>,
    served: Namespace<'c>,
    /// Served, with a TLS Secret of somebody else.
    external: Namespace<'c>,
    trusting: Namespace<'c>,
    unlisted: Namespace<'c>,
    folder: Folder,
}

impl<'c> Place<'c> {
    fn new(cluster: &'c Cluster) -> Place<'c> {
        let namespace = || cluster.namespace(&[]);
        let [own, served, external] = [(); 3].map(|()| namespace());
        Place {
            cluster,
            own,
            served,
            external,
            trusting: namespace(),
            unlisted: namespace(),
            folder: Folder::new(),
        }
    }

    /// What the program prints for the controller of this installation; without the policies, which other tests apply.
    fn manifests(&self) -> String {
        let namespaces = [self.served.name.clone(), self.external.name.clone()];
        let flags = [
            "--controller",
            "--own-namespace",
            &self.own.name,
            "--trust-namespaces",
            &self.trusting.name,
            "--external-tls",
            &self.external.name,
        ];
        let printed = printed(&namespaces, &flags);
        let of_controller = |object: &&str| object.contains(&format!("\n  name: {CONTROLLER}\n"));
        let objects: Vec<_> = printed.split("---\n").filter(of_controller).collect();
        assert_eq!(objects.len(), 1 + 2 * 5, "{printed}");
        objects.join("---\n")
    }

    /// What the API server's authorizer says about a request of the controller.
    fn is_allowed(
        &self,
        client: &mut Client,
        verb: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        let own = &self.own.name;
        let (group, resource) = resource.split_once('/').expect("group and resource");
        let (resource, part) = resource.split_once('/').unwrap_or((resource, ""));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{own}:{CONTROLLER}"),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{own}"), "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "version": "v1", "resource": resource, "subresource": part,
                    "namespace": namespace, "name": name,
                },
            },
        });
        let reply = client.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review);
        reply.body["status"]["allowed"].as_bool().unwrap_or_else(|| panic!("{reply:?}"))
    }

    /// What is allowed, each as it is asked for: `verb group/resource namespace/name`. A right to all objects of a kind is one to
    /// those of [`NAMES`].
    fn expected(&self) -> BTreeSet<String> {
        let read_and_apply = "list watch create patch";
        let [own, served, external, trusting] =
            [&self.own, &self.served, &self.external, &self.trusting].map(|place| place.name.as_str());
        let mut expected = BTreeSet::new();
        let mut allow = |namespace: &str, resource: &str, names: &[&str], verbs: &str| {
            for (name, verb) in names.iter().flat_map(|name| verbs.split(' ').map(move |verb| (name, verb))) {
                expected.insert(format!("{verb} {resource} {namespace}/{name}"));
            }
        };
        allow(own, "/secrets", &["callback-guard-ca"], read_and_apply);
        allow(own, "coordination.k8s.io/leases", &[CONTROLLER], "list watch create patch update");
        allow(own, "/events", &NAMES, "create patch");
        for namespace in [served, external] {
            allow(namespace, "/configmaps", &NAMES, "get list watch");
            allow(namespace, "/configmaps", &["callback-guard-ca", "callback-guard-policy"], "create patch");
            allow(namespace, "/pods", &NAMES, "list watch");
            allow(namespace, "/events", &NAMES, "create patch");
            allow("", "/namespaces", &[namespace], "list watch");
        }
        allow(served, "/secrets", &["callback-guard-tls"], read_and_apply);
        allow(trusting, "/configmaps", &["callback-guard-ca"], read_and_apply);
        let policies = "admissionregistration.k8s.io/mutatingadmissionpolicies";
        allow("", policies, &["callback-guard"], "list watch");
        expected
    }
}

/// The names that are asked for; the empty one is every object, or one whose name is not in the request.
const NAMES: [&str; 7] = [
    "",
    "callback-guard",
    "callback-guard-ca",
    "callback-guard-controller",
    "callback-guard-policy",
    "callback-guard-tls",
    "other",
];

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What is asked for in each namespace.
const NAMESPACED: [&str; 11] = [
    "/secrets",
    "/configmaps",
    "/pods",
    "/pods/exec",
    "/pods/log",
    "/events",
    "events.k8s.io/events",
    "/serviceaccounts",
    "coordination.k8s.io/leases",
    "rbac.authorization.k8s.io/roles",
    "apps/replicasets",
];

/// What is asked for in the cluster.
const OF_CLUSTER: [&str; 5] = [
    "/namespaces",
    "/nodes",
    "admissionregistration.k8s.io/mutatingadmissionpolicies",
    "admissionregistration.k8s.io/mutatingwebhookconfigurations",
    "rbac.authorization.k8s.io/clusterroles",
];

/// Applies what is printed, as kubectl does it.
fn applied<'c>(place: &Place<'c>) -> Applied<'c> {
    let manifests = place.manifests();
    let applied = place.cluster.apply_until_dropped(&manifests);
    let path = place.folder.write("printed.yaml", manifests);
    let diff = run(place.cluster.kubectl_command().arg("diff").arg("-f").arg(path), None);
    assert_eq!(diff, Ok(String::new()), "what the server has differs from what is printed");
    applied
}

/// One cluster has one ClusterRole of this name.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn with_rights(test: impl FnOnce(&Place<'_>, &mut Client)) {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = Place::new(cluster);
    let _applied = applied(&place);
    let mut client = Client::of(cluster);
    // The API server sees Roles and bindings in caches of its own, each in its time.
    for (verb, resource, namespace, name) in [
        ("list", "/namespaces", "", place.served.name.as_str()),
        ("list", "coordination.k8s.io/leases", &place.own.name, CONTROLLER),
        ("list", "/pods", &place.served.name, ""),
        ("list", "/pods", &place.external.name, ""),
        ("list", "/configmaps", &place.trusting.name, "callback-guard-ca"),
    ] {
        eventually("the Roles in force", || {
            place.is_allowed(&mut client, verb, resource, namespace, name).then_some(())
        });
    }
    test(&place, &mut client);
}

#[test]
fn the_controller_may_do_what_its_roles_list_and_nothing_else() {
    with_rights(|place, client| {
        let places = [&place.own, &place.served, &place.external, &place.trusting, &place.unlisted];
        let places: Vec<_> = places.iter().map(|place| place.name.as_str()).collect();
        let names_of_places: Vec<_> = NAMES.into_iter().chain(places.iter().copied()).collect();
        let namespaced = places.iter().flat_map(|namespace| {
            NAMESPACED.iter().map(move |resource| (*namespace, *resource, NAMES.to_vec()))
        });
        let of_cluster = OF_CLUSTER.iter().map(|resource| ("", *resource, names_of_places.clone()));
        let mut allowed = BTreeSet::new();
        for (namespace, resource, names) in namespaced.chain(of_cluster) {
            for (name, verb) in names.iter().flat_map(|name| VERBS.map(|verb| (*name, verb))) {
                if place.is_allowed(client, verb, resource, namespace, name) {
                    allowed.insert(format!("{verb} {resource} {namespace}/{name}"));
                }
            }
        }
        let expected = place.expected();
        let missing: Vec<_> = expected.difference(&allowed).collect();
        let too_much: Vec<_> = allowed.difference(&expected).collect();
        assert!(missing.is_empty() && too_much.is_empty(), "missing: {missing:#?}\ntoo much: {too_much:#?}");
    });
}

/// kubectl with the token of the service account.
struct Controller<'p> {
    place: &'p Place<'p>,
    kubeconfig: PathBuf,
}

impl Controller<'_> {
    fn ask(&self, arguments: &[&str]) -> Result<String, String> {
        self.place.cluster.kubectl_as(&self.kubeconfig, arguments)
    }

    fn get(&self, path: &str) -> Result<String, String> {
        self.ask(&["get", "--raw", path])
    }

    fn file(&self, object: &Value) -> String {
        let path = self.place.folder.write("object.json", object.to_string());
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Server-side apply, as the controller writes.
    fn apply(&self, object: &Value) -> Result<String, String> {
        let file = self.file(object);
        let manager = format!("--field-manager={CONTROLLER}");
        self.ask(&["apply", "--server-side", "--validate=false", &manager, "-f", &file])
    }

    /// Reads one object by its name, by list and by a watch that the server closes.
    fn follow(&self, path: &str, name: &str) -> Result<String, String> {
        let selected = format!("{path}?fieldSelector=metadata.name%3D{name}");
        self.get(&format!("{selected}&watch=true&timeoutSeconds=1"))?;
        self.get(&selected)
    }
}

fn with_controller(test: impl FnOnce(&Controller<'_>)) {
    with_rights(|place, _| {
        let own = &place.own.name;
        let token = place.cluster.token(own, CONTROLLER);
        test(&Controller { place, kubeconfig: place.cluster.kubeconfig_of(own, &token) });
    });
}

#[track_caller]
fn assert_forbidden(what: &str, said: Result<String, String>) {
    let said = said.expect_err(what);
    assert!(said.contains("Forbidden") || said.contains("forbidden"), "{what}: {said}");
}

/// An object with this beside its name.
fn object(kind: &str, namespace: &Namespace<'_>, name: &str, rest: Value) -> Value {
    let mut object = rest;
    object["apiVersion"] = if kind == "Lease" { "coordination.k8s.io/v1" } else { "v1" }.into();
    object["kind"] = kind.into();
    object["metadata"] = json!({"namespace": namespace.name, "name": name});
    object
}

fn secret(namespace: &Namespace<'_>, name: &str, text: &str) -> Value {
    object("Secret", namespace, name, json!({"stringData": {"x": text}}))
}

fn config_map(namespace: &Namespace<'_>, name: &str, text: &str) -> Value {
    object("ConfigMap", namespace, name, json!({"data": {"x": text}}))
}

fn event(namespace: &Namespace<'_>, count: u32) -> Value {
    let about = json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace.name, "name": "app"});
    let rest = json!({"involvedObject": about, "reason": "NakedPods", "message": "x", "type": "Warning", "count": count});
    object("Event", namespace, "naked", rest)
}

/// Where objects of a kind of the first group are.
fn path(namespace: &Namespace<'_>, resource: &str) -> String {
    format!("/api/v1/namespaces/{}/{resource}", namespace.name)
}

const NAMESPACES: &str = "/api/v1/namespaces";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies";

#[test]
fn with_its_token_the_controller_keeps_its_objects_and_deletes_none() {
    with_controller(|controller| {
        let Place { own, served, external, trusting, .. } = controller.place;
        // Created by the first apply, changed by the second.
        for (namespace, kind, name) in [
            (own, "Secret", "callback-guard-ca"),
            (served, "Secret", "callback-guard-tls"),
            (served, "ConfigMap", "callback-guard-ca"),
            (served, "ConfigMap", "callback-guard-policy"),
            (external, "ConfigMap", "callback-guard-ca"),
            (external, "ConfigMap", "callback-guard-policy"),
            (trusting, "ConfigMap", "callback-guard-ca"),
        ] {
            let of_kind = if kind == "Secret" { secret } else { config_map };
            for text in ["one", "two"] {
                let applied = controller.apply(&of_kind(namespace, name, text));
                applied.unwrap_or_else(|said| panic!("{kind} {}/{name}: {said}", namespace.name));
            }
            let path = path(namespace, &format!("{}s", kind.to_lowercase()));
            let read = controller.follow(&path, name).expect("it is read by its name");
            assert!(read.contains(&format!("\"name\":\"{name}\"")), "{read}");
            let object = format!("{path}/{name}");
            assert_forbidden(&object, controller.ask(&["delete", "--raw", &object]));
        }
        for namespace in [own, served, external] {
            for count in 1..=2 {
                controller.apply(&event(namespace, count)).expect("an Event, and its renewal");
            }
        }
        for resource in ["configmaps", "pods"] {
            for query in ["", "?labelSelector=a&watch=true&timeoutSeconds=1"] {
                let all = path(served, &format!("{resource}{query}"));
                controller.get(&all).expect("all are read in a served namespace");
            }
        }
        controller.follow(NAMESPACES, &served.name).expect("a served namespace");
        controller.follow(POLICIES, "callback-guard").expect("the policy");
    });
}

#[test]
fn with_its_token_the_controller_takes_its_lease_over_by_an_update() {
    with_controller(|controller| {
        let own = &controller.place.own;
        let lease =
            |holder: &str| object("Lease", own, CONTROLLER, json!({"spec": {"holderIdentity": holder}}));
        controller.apply(&lease("a")).expect("the first to come");
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", own.name);
        let read = controller.follow(&leases, CONTROLLER).expect("it is read by its name");
        let read: Value = serde_json::from_str(&read).expect("JSON");
        let mut next = lease("b");
        next["metadata"] = read["items"][0]["metadata"].clone();
        assert!(next["metadata"]["resourceVersion"].is_string(), "{read}");
        let lease = format!("{leases}/{CONTROLLER}");
        let file = controller.file(&next);
        let update = || controller.ask(&["replace", "--raw", &lease, "-f", &file]);
        update().expect("the next to come");
        assert!(update().expect_err("an old version").contains("Conflict"));
        assert_forbidden("a deletion", controller.ask(&["delete", "--raw", &lease]));
        assert_forbidden("another Lease", controller.follow(&leases, "other"));
    });
}

#[test]
fn with_its_token_the_controller_reaches_no_neighbor_of_its_objects() {
    with_controller(|controller| {
        let Place { own, served, external, trusting, unlisted, .. } = controller.place;
        for (namespace, name) in [
            (served, "other"),
            (served, "callback-guard-ca"),
            (external, "callback-guard-tls"),
            (trusting, "callback-guard-ca"),
            (own, "callback-guard-tls"),
            (unlisted, "callback-guard-tls"),
        ] {
            let secrets = path(namespace, "secrets");
            assert_forbidden(&secrets, controller.follow(&secrets, name));
            assert_forbidden(&secrets, controller.get(&secrets));
            assert_forbidden(&secrets, controller.apply(&secret(namespace, name, "x")));
        }
        for (namespace, name) in [
            (served, "other"),
            (own, "callback-guard-ca"),
            (trusting, "other"),
            (unlisted, "callback-guard-ca"),
        ] {
            assert_forbidden(name, controller.apply(&config_map(namespace, name, "x")));
        }
        // A creation by POST has no name in its request.
        let file = controller.file(&secret(served, "callback-guard-tls", "x"));
        let posted = controller.ask(&["create", "--raw", &path(served, "secrets"), "-f", &file]);
        assert_forbidden("a POST", posted);
        for (path, name) in [
            (NAMESPACES, unlisted.name.as_str()),
            (NAMESPACES, &trusting.name),
            (POLICIES, "callback-guard-trust"),
            (&path(trusting, "configmaps"), "other"),
        ] {
            assert_forbidden(path, controller.follow(path, name));
            assert_forbidden(path, controller.get(path));
        }
        assert_forbidden("an Event", controller.apply(&event(trusting, 1)));
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"namespace": served.name, "name": CONTROLLER}, "rules": [],
        });
        assert_forbidden("its own Role", controller.apply(&role));
    });
}
