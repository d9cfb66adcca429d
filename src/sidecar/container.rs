//! What is put into a pod: our container and its volumes, as templates, and the values that go into them.

use serde_json::Value;

use super::annotations::{Effect, Settings, settings};
use super::kind::NONE;
use super::pod;
use super::template::{Node, Part, Values, of, only_if, text, texts};
use super::{ADMIN_PORT, CONTAINER, Upstream};

const TLS: &str = "callback-guard-tls";
const POLICY: &str = "callback-guard-policy";
const POLICY_CACHE: &str = "callback-guard-policy-cache";
const API_TOKEN: &str = "callback-guard-api-token";
/// Names of our volumes.
pub(super) const VOLUMES: [&str; 4] = [TLS, POLICY, POLICY_CACHE, API_TOKEN];

const TLS_FOLDER: &str = "/etc/callback-guard/tls";
const POLICY_FOLDER: &str = "/etc/callback-guard/policy";
const POLICY_CACHE_FOLDER: &str = "/var/cache/callback-guard";
/// Where client libraries look for it.
const API_TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// 0444: our user is not root, and the volumes are mounted in our container alone.
pub(super) const READABLE: i64 = 0o444;

/// What Kubernetes itself requests: an hour, and the seven seconds by which it tells its own tokens from others.
const TOKEN_SECONDS: i64 = 3607;

/// The grace periods that `proxy` accepts, seconds: it refuses one too short to shut down in, and one of more than an hour.
pub(super) const GRACE_RANGE: [i64; 2] = [2, 3600];

/// The CPU limit in a Guaranteed pod, which needs one.
pub(super) const GUARANTEED_CPU: &str = "1";

/// The memory for callbacks in a pod with resources of its own as a whole: the kubelet then sets the pod's limit on our
/// container, and half of that is not ours.
const HELD_IN_POD_LIMIT: &str = "128MiB";

/// The connections in such a pod: what fits a quarter of 256 MiB, twice what is held, as `proxy` reckons it.
const CONNECTIONS_IN_POD_LIMIT: usize = 1560;

/// The container, to be the first of `initContainers`.
pub(super) fn container() -> Node {
    let probe = |path: &str, period: i64, failures: i64| {
        Node::Object(vec![
            ("httpGet", Node::Object(vec![("path", text(path)), ("port", Node::IntOf("admin"))])),
            ("periodSeconds", Node::Int(period)),
            ("timeoutSeconds", Node::Int(2)),
            ("failureThreshold", Node::Int(failures)),
        ])
    };
    let port = |name: &str, number| {
        Node::Object(vec![
            ("name", text(name)),
            ("containerPort", Node::IntOf(number)),
            ("protocol", text("TCP")),
        ])
    };
    let drain = Node::Object(vec![("command", texts(&["/callback-guard", "drain"]))]);
    Node::Object(vec![
        ("name", text(CONTAINER)),
        ("image", of("image")),
        ("imagePullPolicy", only_if("image-pull-policy-set", of("image-pull-policy"))),
        // This makes it a sidecar: it starts before the app and stops after it.
        ("restartPolicy", text("Always")),
        ("command", texts(&["/callback-guard"])),
        ("args", Node::List(arguments())),
        ("env", environment()),
        ("ports", Node::List(vec![port(CONTAINER, "listen"), port(ADMIN_PORT, "admin")])),
        // The app starts once the process is up, whether there is a certificate yet or not; readiness waits for it.
        ("startupProbe", probe("/livez", 1, 60)),
        ("readinessProbe", probe("/readyz", 2, 3)),
        ("livenessProbe", probe("/livez", 10, 3)),
        ("lifecycle", Node::Object(vec![("preStop", Node::Object(vec![("exec", drain)]))])),
        ("securityContext", security()),
        ("resources", only_if("own-resources", resources())),
        // `kubectl describe pod` then shows why it exited: the end of its log.
        ("terminationMessagePolicy", text("FallbackToLogsOnError")),
        ("volumeMounts", mounts()),
    ])
}

fn arguments() -> Vec<Node> {
    let joined = |parts: &[&str], last: Part| {
        Node::Text(parts.iter().map(|part| Part::Is((*part).to_owned())).chain([last]).collect())
    };
    let mut arguments = vec![
        text("proxy"),
        joined(&["--listen=[::]:"], Part::Number("listen")),
        text(format!("--tls-cert={TLS_FOLDER}/tls.crt")),
        text(format!("--tls-key={TLS_FOLDER}/tls.key")),
        text("--tls-wait"),
        // The guard itself dials both loopback addresses for this name.
        joined(&["--upstream=http://localhost:"], Part::Number("upstream")),
        text(format!("--policy-file={POLICY_FOLDER}/policy.yaml")),
        text(format!("--override-file={POLICY_FOLDER}/override.yaml")),
        Node::Text(vec![
            Part::Is("--grace-period=".to_owned()),
            Part::Number("grace"),
            Part::Is("s".to_owned()),
        ]),
        // With a limit of the container's own, `proxy` follows that.
        only_if("pod-resources", text(format!("--max-held={HELD_IN_POD_LIMIT}"))),
        only_if("pod-resources", text(format!("--max-connections={CONNECTIONS_IN_POD_LIMIT}"))),
        only_if("watch", joined(&["--policy-configmap=$(POD_NAMESPACE)/"], Part::Of("policy-configmap"))),
        only_if("watch", text(format!("--policy-cache={POLICY_CACHE_FOLDER}"))),
    ];
    for row in settings().filter(|row| row.effect == Effect::Flag) {
        let argument = joined(&["--", row.name, "="], Part::Of(row.name));
        arguments.push(only_if(condition_that_set(row.name), argument));
    }
    arguments
}

/// The condition that a layer sets this row.
pub(super) fn condition_that_set(row: &str) -> String {
    format!("{row}-set")
}

fn environment() -> Node {
    let namespace = Node::Object(vec![("fieldPath", text("metadata.namespace"))]);
    Node::List(vec![
        Node::Object(vec![
            ("name", text("POD_NAMESPACE")),
            ("valueFrom", Node::Object(vec![("fieldRef", namespace)])),
        ]),
        // Not an argument: `drain` in the preStop hook reads it too.
        Node::Object(vec![
            ("name", text("CALLBACK_GUARD_ADMIN_LISTEN")),
            ("value", Node::Text(vec![Part::Is("[::]:".to_owned()), Part::Number("admin")])),
        ]),
    ])
}

/// Pod Security's `restricted` requires these on the container.
fn security() -> Node {
    Node::Object(vec![
        ("runAsNonRoot", Node::Bool(true)),
        ("runAsUser", only_if("fixed-user", Node::IntOf("user"))),
        ("allowPrivilegeEscalation", Node::Bool(false)),
        ("readOnlyRootFilesystem", Node::Bool(true)),
        ("capabilities", Node::Object(vec![("drop", texts(&["ALL"]))])),
        ("seccompProfile", Node::Object(vec![("type", text("RuntimeDefault"))])),
    ])
}

fn resources() -> Node {
    let limits =
        vec![("cpu", only_if("cpu-limited", of("cpu-limit-in-force"))), ("memory", of("memory-limit"))];
    let requests = vec![("cpu", of("cpu-request-in-force")), ("memory", of("memory-request-in-force"))];
    Node::Object(vec![("requests", Node::Map(requests)), ("limits", Node::Map(limits))])
}

fn mounts() -> Node {
    let mount = |name: &str, path: &str, read_only: bool| {
        let mut fields = vec![("name", text(name)), ("mountPath", text(path))];
        if read_only {
            fields.push(("readOnly", Node::Bool(true)));
        }
        Node::Object(fields)
    };
    Node::List(vec![
        mount(TLS, TLS_FOLDER, true),
        // Whole, without a subPath: those are not updated.
        mount(POLICY, POLICY_FOLDER, true),
        only_if("watch", mount(POLICY_CACHE, POLICY_CACHE_FOLDER, false)),
        only_if("watch", mount(API_TOKEN, API_TOKEN_FOLDER, true)),
    ])
}

/// Our volumes.
pub(super) fn volumes() -> Vec<Node> {
    let volume = |name: &str, kind: &'static str, of: Vec<(&'static str, Node)>| {
        Node::Object(vec![("name", text(name)), (kind, Node::Object(of))])
    };
    let readable = ("defaultMode", Node::Int(READABLE));
    let optional = ("optional", Node::Bool(true));
    let item = |key: &str| Node::Object(vec![("key", text(key)), ("path", text(key))]);
    let namespace = Node::Object(vec![
        ("path", text("namespace")),
        (
            "fieldRef",
            Node::Object(vec![("apiVersion", text("v1")), ("fieldPath", text("metadata.namespace"))]),
        ),
    ]);
    let token = vec![("path", text("token")), ("expirationSeconds", Node::Int(TOKEN_SECONDS))];
    let sources = Node::List(vec![
        Node::Object(vec![("serviceAccountToken", Node::Object(token))]),
        Node::Object(vec![(
            "configMap",
            Node::Object(vec![
                ("name", text("kube-root-ca.crt")),
                ("items", Node::List(vec![item("ca.crt")])),
            ]),
        )]),
        Node::Object(vec![("downwardAPI", Node::Object(vec![("items", Node::List(vec![namespace]))]))]),
    ]);
    vec![
        // Optional: a missing Secret would hold the pod in ContainerCreating, where nothing says why.
        volume(TLS, "secret", vec![("secretName", of("tls-secret")), readable.clone(), optional.clone()]),
        volume(POLICY, "configMap", vec![("name", of("policy-configmap")), readable.clone(), optional]),
        // A policy is at most 1 MiB.
        only_if("watch", volume(POLICY_CACHE, "emptyDir", vec![("sizeLimit", text("16Mi"))])),
        // Our own token: it is there with `automountServiceAccountToken: false` too, and if something is mounted at the
        // standard path, Kubernetes mounts nothing else there.
        only_if("watch", volume(API_TOKEN, "projected", vec![readable, ("sources", sources)])),
    ]
}

/// How the container's resources are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resources {
    /// Requests and limits.
    Burstable,
    /// Requests equal to the limits, so that the pod stays Guaranteed.
    Guaranteed,
    /// None of its own: the pod has some as a whole, and the sums of its containers may not exceed them.
    OfPod,
}

/// What goes into the templates for this pod. `variables` in `admission/variables.rs` computes the same in CEL.
pub(super) fn values(pod: &Value, settings_of_pod: &Settings, upstream: Upstream) -> Values {
    let mut values = Values::default();
    for row in settings() {
        values.texts.insert(row.name, settings_of_pod.text(row.name).to_owned());
        values.conditions.insert(condition_that_set(row.name), settings_of_pod.given(row.name).is_some());
    }
    let resources = pod::resources(pod);
    let guaranteed = resources == Resources::Guaranteed;
    let cpu_limit = match settings_of_pod.text("cpu-limit") {
        NONE if guaranteed => GUARANTEED_CPU,
        text => text,
    };
    let memory_limit = settings_of_pod.text("memory-limit");
    let lowered = |request, limit| settings_of_pod.lowered(request, limit);
    let [cpu_request, memory_request] = if guaranteed {
        [cpu_limit, memory_limit]
    } else {
        [lowered("cpu-request", "cpu-limit"), lowered("memory-request", "memory-limit")]
    };
    values.texts.extend([
        ("cpu-limit-in-force", cpu_limit.to_owned()),
        ("cpu-request-in-force", cpu_request.to_owned()),
        ("memory-request-in-force", memory_request.to_owned()),
    ]);
    let [least, most] = GRACE_RANGE;
    let user = settings_of_pod.text("run-as-user");
    values.numbers.extend([
        ("listen", settings_of_pod.port("listen-port").into()),
        ("admin", settings_of_pod.port("admin-port").into()),
        ("upstream", upstream.port.into()),
        ("grace", pod::grace_seconds(pod).clamp(least, most)),
        ("user", user.parse().unwrap_or_default()),
    ]);
    let of_pod = resources == Resources::OfPod;
    values.conditions.extend([
        ("own-resources".to_owned(), !of_pod),
        ("pod-resources".to_owned(), of_pod),
        ("cpu-limited".to_owned(), cpu_limit != NONE),
        ("fixed-user".to_owned(), user != NONE),
        ("watch".to_owned(), settings_of_pod.text("policy-source") == "watch"),
    ]);
    values
}
