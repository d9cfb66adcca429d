//! The audit log of a cluster's API server: every request with its user, its right and its answer, and no bodies.
//!
//! The API server writes a request to the log before it completes the answer. So whatever a client has received a complete
//! answer to is in the log; only the end of a watch has to be waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::client::{Client, Reply};
use super::cluster::{Cluster, Stage, eventually};
use super::process::Process;

/// The log from some place on.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    from: u64,
}

/// One event. A watch has two of the same ID: when it starts and when it ends.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The event as the API server wrote it (`audit.k8s.io/v1`).
    pub(crate) event: Value,
}

/// What a request needs to be allowed, as RBAC has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Right {
    /// Empty for an object of the whole cluster.
    pub(crate) namespace: String,
    pub(crate) group: String,
    /// `pods/status` with a subresource; a path like `/readyz` for what is no resource.
    pub(crate) resource: String,
    /// Empty for all of them. RBAC knows no name for a plain create.
    pub(crate) name: String,
    pub(crate) verb: String,
}

/// The name of a service account as a user.
pub(crate) fn account(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

impl Audit {
    /// The whole log of a cluster.
    pub(crate) fn of(cluster: &Cluster) -> Audit {
        let path = cluster.folder().join("log/audit.log");
        assert!(
            path.exists(),
            "{} is missing: the cluster is of an older tests/cluster/cluster",
            path.display()
        );
        Audit { path, from: 0 }
    }

    /// The same log from now on.
    pub(crate) fn since_now(&self) -> Audit {
        let length = self.path.metadata().expect("the log is there").len();
        Audit { path: self.path.clone(), from: length }
    }

    /// What was written so far, in the order of writing.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut file = File::open(&self.path).expect("the log can be read");
        // With the byte before, which tells whether a line begins here. A line that was being written at the mark is
        // left out, and so is one that is being written now.
        file.seek(SeekFrom::Start(self.from.saturating_sub(1))).expect("a place in a file");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("the log can be read");
        let begin = match self.from {
            0 => 0,
            _ => bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1),
        };
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = bytes.get(begin..end).unwrap_or_default().split(|byte| *byte == b'\n');
        let events = lines.filter(|line| !line.is_empty());
        events.map(|line| Entry { event: serde_json::from_slice(line).expect("a line is JSON") }).collect()
    }

    /// The requests of a user: `admin`, or an [`account`].
    pub(crate) fn by_user(&self, user: &str) -> Vec<Entry> {
        self.entries().into_iter().filter(|entry| entry.user() == user).collect()
    }

    /// The requests of a program: of all whose `User-Agent` begins so.
    pub(crate) fn by_agent(&self, prefix: &str) -> Vec<Entry> {
        self.entries().into_iter().filter(|entry| entry.user_agent().starts_with(prefix)).collect()
    }

    /// The request that this was the answer to.
    #[track_caller]
    pub(crate) fn request_of(&self, reply: &Reply) -> Entry {
        let found = self.entries().into_iter().find(|entry| entry.id() == reply.audit_id);
        found.unwrap_or_else(|| panic!("not in the audit log: {reply:?}"))
    }

    /// Every right that a user's requests needed, with the status codes of the answers. Where [`Entry::is_allowed`] says yes,
    /// 403 is the answer of admission, or there was no right to create what the request would have created.
    pub(crate) fn used_rights(&self, user: &str) -> BTreeMap<Right, BTreeSet<u16>> {
        let mut used: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for entry in self.by_user(user) {
            for right in entry.rights() {
                used.entry(right).or_default().insert(entry.code());
            }
        }
        used
    }
}

impl Entry {
    fn text(&self, pointer: &str) -> &str {
        self.event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The request's ID, which its answer has in the header `Audit-Id`.
    pub(crate) fn id(&self) -> &str {
        self.text("/auditID")
    }

    /// `ResponseStarted` for a watch that has begun, `ResponseComplete` for every answer that is complete, or `Panic`.
    pub(crate) fn stage(&self) -> &str {
        self.text("/stage")
    }

    /// Empty if the client has no valid credentials.
    pub(crate) fn user(&self) -> &str {
        self.text("/user/username")
    }

    /// The pod whose token the client has; empty for a token that is not bound to a pod.
    pub(crate) fn pod(&self) -> &str {
        self.text("/user/extra/authentication.kubernetes.io~1pod-name/0")
    }

    pub(crate) fn user_agent(&self) -> &str {
        self.text("/userAgent")
    }

    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub(crate) fn verb(&self) -> &str {
        self.text("/verb")
    }

    /// Path and query.
    pub(crate) fn uri(&self) -> &str {
        self.text("/requestURI")
    }

    pub(crate) fn namespace(&self) -> &str {
        self.text("/objectRef/namespace")
    }

    pub(crate) fn group(&self) -> &str {
        self.text("/objectRef/apiGroup")
    }

    /// Without the subresource.
    pub(crate) fn resource(&self) -> &str {
        self.text("/objectRef/resource")
    }

    pub(crate) fn subresource(&self) -> &str {
        self.text("/objectRef/subresource")
    }

    /// Of the one object that the request is about; also for a list or a watch that selects one by its name.
    pub(crate) fn name(&self) -> &str {
        self.text("/objectRef/name")
    }

    /// The name that the query's `fieldSelector` selects.
    pub(crate) fn selected_name(&self) -> Option<String> {
        let (_, query) = self.uri().split_once('?')?;
        let selectors = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="))?;
        let selectors = decoded(selectors);
        let name = selectors.split(',').find_map(|selector| selector.strip_prefix("metadata.name="))?;
        Some(name.trim_start_matches('=').to_owned())
    }

    /// The status code of the answer.
    pub(crate) fn code(&self) -> u16 {
        let code = self.event["responseStatus"]["code"].as_u64();
        code.and_then(|code| code.try_into().ok()).unwrap_or_default()
    }

    /// When the request arrived: RFC 3339 in UTC with microseconds, whose order is that of their letters.
    pub(crate) fn received(&self) -> &str {
        self.text("/requestReceivedTimestamp")
    }

    /// When the answer began or was complete, which the stage says.
    pub(crate) fn answered(&self) -> &str {
        self.text("/stageTimestamp")
    }

    /// An annotation of the event, from RBAC and from admission.
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.event["annotations"][name].as_str()
    }

    /// Whether RBAC allowed the request itself. `false` as well for a client that has no valid credentials.
    pub(crate) fn is_allowed(&self) -> bool {
        self.annotation("authorization.k8s.io/decision") == Some("allow")
    }

    /// What it needed: more than one right if a patch or an update has created its object, for which the API server asks
    /// RBAC a second time, with the name.
    pub(crate) fn rights(&self) -> Vec<Right> {
        let right = |name: &str, verb: &str| Right {
            namespace: self.namespace().to_owned(),
            group: self.group().to_owned(),
            resource: match (self.resource(), self.subresource()) {
                ("", _) => self.uri().split('?').next().unwrap_or_default().to_owned(),
                (resource, "") => resource.to_owned(),
                (resource, subresource) => format!("{resource}/{subresource}"),
            },
            name: name.to_owned(),
            verb: verb.to_owned(),
        };
        match self.verb() {
            // The event has the name of the new object, which RBAC did not see.
            "create" if self.subresource().is_empty() => vec![right("", "create")],
            verb @ ("patch" | "update") if self.code() == 201 => {
                vec![right(self.name(), verb), right(self.name(), "create")]
            }
            verb => vec![right(self.name(), verb)],
        }
    }
}

impl Right {
    pub(crate) fn new(namespace: &str, group: &str, resource: &str, name: &str, verb: &str) -> Right {
        let [namespace, group, resource, name, verb] =
            [namespace, group, resource, name, verb].map(str::to_owned);
        Right { namespace, group, resource, name, verb }
    }
}

/// A value of a query without its percent-encoding.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let digits = rest.clone().take(2).map(char::from).collect::<String>();
        match (byte, u8::from_str_radix(&digits, 16)) {
            (b'%', Ok(decoded)) => {
                bytes.push(decoded);
                rest.nth(1);
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The service account `shop`, which may read the ConfigMap `policy`, and apply another, `state`.
pub(crate) const ACCOUNT: &str = r"
apiVersion: v1
kind: ServiceAccount
metadata: {name: shop, namespace: NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: shop, namespace: NAMESPACE}
rules:
- {apiGroups: [''], resources: [configmaps], resourceNames: [policy], verbs: [get, list, watch]}
- {apiGroups: [''], resources: [configmaps], resourceNames: [state], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: shop, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: shop}
subjects:
- {kind: ServiceAccount, name: shop, namespace: NAMESPACE}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: policy, namespace: NAMESPACE}
data: {policy.yaml: 'defaults: {fallback: Deny}'}
";

#[test]
fn the_rights_that_an_account_used_are_those_of_its_requests_and_of_no_other_user() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    let name = namespace.name.as_str();
    cluster.apply(&ACCOUNT.replace("NAMESPACE", name));
    let kubeconfig = cluster.kubeconfig_of(name, &cluster.token(name, "shop"));
    let audit = Audit::of(cluster).since_now();
    let (folder, user) = (super::support::Folder::new(), account(name, "shop"));
    let asked = |arguments: &[&str]| cluster.kubectl_as(&kubeconfig, arguments);
    // A request by its path: for anything else kubectl asks first what resources there are.
    let path = |rest: &str| format!("/api/v1/namespaces/{name}/{rest}");
    let apply = |object: &str, value: &str| {
        let metadata = json!({"name": object, "namespace": name});
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"key": value}});
        let file = folder.write("object.json", object.to_string());
        let file = file.to_str().expect("UTF-8");
        asked(&["apply", "--server-side", "--validate=false", "--field-manager=shop", "-f", file])
    };
    asked(&["get", "--raw", &path("configmaps/policy")]).expect("the Role allows it");
    asked(&["get", "--raw", &path("configmaps?fieldSelector=metadata.name%3Dpolicy")])
        .expect("the Role allows it");
    asked(&["get", "--raw", &path("secrets/any")]).expect_err("the Role does not allow it");
    for value in ["first", "second"] {
        apply("state", value).expect("the Role allows it");
    }
    apply("other", "first").expect_err("the Role does not allow it");

    let mut used = audit.used_rights(&user);
    used.retain(|right, _| !right.resource.starts_with('/'));
    let right = |resource, name: &str, verb| Right::new(&namespace.name, "", resource, name, verb);
    let expected = [
        (right("configmaps", "policy", "get"), vec![200]),
        (right("configmaps", "policy", "list"), vec![200]),
        (right("secrets", "any", "get"), vec![403]),
        (right("configmaps", "state", "patch"), vec![200, 201]),
        (right("configmaps", "state", "create"), vec![201]),
        (right("configmaps", "other", "patch"), vec![403]),
    ];
    let expected: BTreeMap<_, BTreeSet<u16>> =
        expected.into_iter().map(|(right, codes)| (right, codes.into_iter().collect())).collect();
    assert_eq!(used, expected);

    let entries = audit.by_user(&user);
    for entry in &entries {
        assert_eq!(entry.is_allowed(), entry.code() != 403, "{entry:?}");
        assert_eq!(entry.stage(), "ResponseComplete", "{entry:?}");
        assert!(entry.user_agent().starts_with("kubectl/"), "{entry:?}");
        assert!(entry.received() <= entry.answered() && entry.received().ends_with('Z'), "{entry:?}");
    }
    let list = entries.iter().find(|entry| entry.verb() == "list").expect("it was sent");
    assert_eq!((list.name(), list.selected_name().as_deref()), ("policy", Some("policy")), "{list:?}");
    assert_eq!(audit.by_agent("kubectl/").iter().filter(|entry| entry.user() == user).count(), entries.len());
    assert!(audit.by_agent("another").is_empty());
    assert!(audit.used_rights(&account(name, "default")).is_empty(), "it sent nothing");
    assert!(audit.since_now().by_user(&user).is_empty(), "nothing since");
}

#[test]
fn the_token_of_a_pod_names_the_pod_and_that_of_an_account_does_not() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    let name = namespace.name.as_str();
    cluster.kubectl(&["-n", name, "run", "shop-1", "--image=callback-guard.test/app:1"]);
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=shop-1"];
    let bound = [&["-n", name, "create", "token", "default"], &bound[..]].concat();
    for (token, pod) in [(cluster.kubectl(&bound), "shop-1"), (cluster.token(name, "default"), "")] {
        let audit = Audit::of(cluster).since_now();
        let kubeconfig = cluster.kubeconfig_of(name, token.trim());
        cluster.kubectl_as(&kubeconfig, &["get", "--raw", "/version"]).expect("everybody may");
        let entries = audit.by_user(&account(name, "default"));
        assert_eq!(entries.iter().map(Entry::pod).collect::<Vec<_>>(), [pod], "{entries:?}");
    }
}

#[test]
fn a_watch_is_in_the_log_when_it_starts_and_again_when_it_ends() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    let name = namespace.name.as_str();
    let audit = Audit::of(cluster).since_now();
    let stages = || {
        let entries = audit.entries().into_iter();
        let watches: Vec<_> =
            entries.filter(|entry| entry.verb() == "watch" && entry.namespace() == name).collect();
        assert!(watches.iter().all(|entry| entry.id() == watches[0].id()), "{watches:?}");
        for watch in &watches {
            assert_eq!((watch.name(), watch.selected_name().as_deref()), ("one", Some("one")), "{watch:?}");
            assert_eq!(watch.rights(), [Right::new(name, "", "configmaps", "one", "watch")]);
        }
        watches.iter().map(|entry| entry.stage().to_owned()).collect::<Vec<_>>()
    };
    let url = format!("/api/v1/namespaces/{name}/configmaps?watch=1&fieldSelector=metadata.name%3Done");
    let mut kubectl = cluster.endless_kubectl(&cluster.folder().join("kubeconfig"));
    let watching = Process::start(kubectl.args(["get", "--raw", &url]));
    eventually("the start of the watch", || (stages() == ["ResponseStarted"]).then_some(()));
    drop(watching);
    eventually("the end of the watch", || {
        (stages() == ["ResponseStarted", "ResponseComplete"]).then_some(())
    });
}

#[test]
fn every_answer_is_in_the_log_before_its_client_has_it_and_no_secret_is() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let namespace = cluster.namespace(&[]);
    let audit = Audit::of(cluster).since_now();
    let mut client = Client::of(cluster);
    let path = format!("/api/v1/namespaces/{}/secrets", namespace.name);
    for number in 0..100 {
        let metadata =
            json!({"name": format!("secret-{number}"), "annotations": {"a": "annotation-of-a-secret"}});
        let data = json!({"key": "content-of-a-secret"});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data});
        let created = client.create(&path, &secret);
        let entry = audit.request_of(&created);
        assert_eq!((entry.code(), entry.verb(), entry.user()), (201, "create", "admin"), "{entry:?}");
        assert_eq!(entry.rights(), [Right::new(&namespace.name, "", "secrets", "", "create")]);
    }
    let read = client.get(&path);
    // "content-of-a-secret" in base64.
    let (content, encoded) = ("content-of-a-secret", "Y29udGVudC1vZi1hLXNlY3JldA==");
    assert!(read.body.to_string().contains(encoded), "the client has it: {read:?}");
    assert_eq!(audit.request_of(&read).verb(), "list");
    for entry in audit.entries() {
        let text = entry.event.to_string();
        let leaks = [content, encoded, "annotation-of-a-secret"].iter().any(|secret| text.contains(secret));
        assert!(!leaks, "{text}");
    }
}

#[test]
fn a_patch_that_creates_needs_two_rights_and_one_that_does_not_needs_one() {
    let entry = |verb: &str, code: u16, uri: &str, reference: Value| Entry {
        event: json!({
            "verb": verb, "requestURI": uri, "objectRef": reference, "responseStatus": {"code": code},
        }),
    };
    let lease = json!({"namespace": "shop", "name": "leader", "apiGroup": "coordination.k8s.io", "resource": "leases"});
    let needs = |name: &str, verb: &str| Right::new("shop", "coordination.k8s.io", "leases", name, verb);
    for (verb, code, expected) in [
        ("patch", 201, vec![needs("leader", "patch"), needs("leader", "create")]),
        ("patch", 200, vec![needs("leader", "patch")]),
        ("patch", 409, vec![needs("leader", "patch")]),
        ("update", 201, vec![needs("leader", "update"), needs("leader", "create")]),
        ("update", 200, vec![needs("leader", "update")]),
        ("create", 201, vec![needs("", "create")]),
        ("get", 200, vec![needs("leader", "get")]),
    ] {
        assert_eq!(entry(verb, code, "/", lease.clone()).rights(), expected, "{verb} {code}");
    }
    let token =
        json!({"namespace": "shop", "name": "app", "resource": "serviceaccounts", "subresource": "token"});
    let of_token = entry("create", 201, "/", token).rights();
    assert_eq!(of_token, [Right::new("shop", "", "serviceaccounts/token", "app", "create")]);
    let of_path = entry("get", 200, "/readyz?verbose", Value::Null).rights();
    assert_eq!(of_path, [Right::new("", "", "/readyz", "", "get")]);

    for (uri, expected) in [
        ("/x?watch=1&fieldSelector=metadata.name%3Dpolicy&limit=1", Some("policy")),
        ("/x?fieldSelector=a%3Db%2Cmetadata.name%3D%3Dpolicy", Some("policy")),
        ("/x?fieldSelector=metadata.namespace%3Dpolicy", None),
        ("/x?labelSelector=metadata.name%3Dpolicy", None),
        ("/x", None),
    ] {
        assert_eq!(entry("list", 200, uri, Value::Null).selected_name().as_deref(), expected, "{uri}");
    }
}
