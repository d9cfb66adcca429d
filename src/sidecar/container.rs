//! What is put into a pod: our container and its volumes.

use serde_json::{Value, json};

use super::annotations::Annotations;
use super::{CONTAINER, SidecarSpec};

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
const READABLE: u32 = 0o444;

/// What Kubernetes itself asks for: an hour, and the seven seconds by which it tells its own tokens from others.
const TOKEN_SECONDS: u32 = 3607;

/// What the pod's container is made from.
pub(super) struct Plan<'p> {
    pub(super) spec: &'p SidecarSpec,
    pub(super) annotations: &'p Annotations,
    /// The app's port.
    pub(super) upstream_port: u32,
    /// `terminationGracePeriodSeconds`.
    pub(super) grace_seconds: u64,
    pub(super) resources: Resources,
}

/// How the container's resources are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resources {
    /// Requests and limits.
    Burstable,
    /// Requests equal to the limits, so that the pod stays Guaranteed.
    Guaranteed,
    /// None of its own: the pod has some as a whole, which the sums of its containers may not exceed.
    OfPod,
}

impl Plan<'_> {
    fn name<'a>(&'a self, annotation: &str, default: &'a str) -> &'a str {
        self.annotations.given(annotation).unwrap_or(default)
    }

    fn watches(&self) -> bool {
        self.annotations.text("policy-source") == "watch"
    }

    fn policy_configmap(&self) -> &str {
        self.name("policy-configmap", &self.spec.policy_configmap)
    }

    /// The container, to be the first of `initContainers`.
    pub(super) fn container(&self) -> Value {
        let admin = self.annotations.number("admin-port");
        let probe = |path: &str, period: u32, failures: u32| {
            json!({
                "httpGet": {"path": path, "port": admin},
                "periodSeconds": period,
                "timeoutSeconds": 2,
                "failureThreshold": failures,
            })
        };
        let mut container = json!({
            "name": CONTAINER,
            "image": self.name("image", &self.spec.image),
            // This makes it a sidecar: started before the app, ended after it.
            "restartPolicy": "Always",
            "command": ["/callback-guard"],
            "args": self.args(),
            "env": [
                {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                // Not an argument: `drain` in the hook below reads it too.
                {"name": "CALLBACK_GUARD_ADMIN_LISTEN", "value": format!("[::]:{admin}")},
            ],
            "ports": [
                {"name": CONTAINER, "containerPort": self.annotations.number("listen-port"), "protocol": "TCP"},
                {"name": "guard-admin", "containerPort": admin, "protocol": "TCP"},
            ],
            // The app starts once the process is up, whether there is a certificate yet or not; being ready waits for it.
            "startupProbe": probe("/livez", 1, 60),
            "readinessProbe": probe("/readyz", 2, 3),
            "livenessProbe": probe("/livez", 10, 3),
            "lifecycle": {"preStop": {"exec": {"command": ["/callback-guard", "drain"]}}},
            // Pod Security's `restricted` wants these on the container.
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": self.mounts(),
        });
        if let Some(policy) = self.annotations.given("image-pull-policy") {
            container["imagePullPolicy"] = policy.into();
        }
        let of = |name| self.annotations.text(name);
        let limits = json!({"cpu": of("cpu-limit"), "memory": of("memory-limit")});
        let request = |name, limit| self.annotations.request(name, limit);
        let requests = match self.resources {
            Resources::Burstable => json!({
                "cpu": request("cpu-request", "cpu-limit"),
                "memory": request("memory-request", "memory-limit"),
            }),
            Resources::Guaranteed => limits.clone(),
            Resources::OfPod => return container,
        };
        container["resources"] = json!({"requests": requests, "limits": limits});
        container
    }

    fn args(&self) -> Vec<String> {
        let listen = self.annotations.number("listen-port");
        // The proxy refuses a period too short to end anything in, and one of more than an hour.
        let grace = self.grace_seconds.clamp(2, 3600);
        let held = (self.annotations.number("memory-limit") / 2).max(1);
        let mut args = vec![
            "proxy".to_owned(),
            format!("--listen=[::]:{listen}"),
            format!("--tls-cert={TLS_FOLDER}/tls.crt"),
            format!("--tls-key={TLS_FOLDER}/tls.key"),
            "--tls-wait".to_owned(),
            format!("--upstream=http://127.0.0.1:{}", self.upstream_port),
            format!("--policy-file={POLICY_FOLDER}/policy.yaml"),
            format!("--override-file={POLICY_FOLDER}/override.yaml"),
            format!("--grace-period={grace}s"),
            format!("--max-held={held}MiB"),
        ];
        if self.watches() {
            args.push(format!("--policy-configmap=$(POD_NAMESPACE)/{}", self.policy_configmap()));
            args.push(format!("--policy-cache={POLICY_CACHE_FOLDER}"));
        }
        for name in ["upstream-form", "workers", "log-level", "drain-delay", "drain-timeout"] {
            args.extend(self.annotations.given(name).map(|value| format!("--{name}={value}")));
        }
        args
    }

    fn mounts(&self) -> Value {
        let mut mounts = vec![
            json!({"name": TLS, "mountPath": TLS_FOLDER, "readOnly": true}),
            // Whole, without a subPath: those are not updated.
            json!({"name": POLICY, "mountPath": POLICY_FOLDER, "readOnly": true}),
        ];
        if self.watches() {
            mounts.push(json!({"name": POLICY_CACHE, "mountPath": POLICY_CACHE_FOLDER}));
            mounts.push(json!({"name": API_TOKEN, "mountPath": API_TOKEN_FOLDER, "readOnly": true}));
        }
        mounts.into()
    }

    /// Our volumes.
    pub(super) fn volumes(&self) -> Vec<Value> {
        let secret = self.name("tls-secret", &self.spec.tls_secret);
        let mut volumes = vec![
            // Optional: a missing one would hold the pod in ContainerCreating, where nobody says why.
            json!({"name": TLS, "secret": {"secretName": secret, "defaultMode": READABLE, "optional": true}}),
            json!({"name": POLICY, "configMap": {
                "name": self.policy_configmap(), "defaultMode": READABLE, "optional": true
            }}),
        ];
        if self.watches() {
            // A policy is at most 1 MiB.
            volumes.push(json!({"name": POLICY_CACHE, "emptyDir": {"sizeLimit": "16Mi"}}));
            // Our own: it is there with `automountServiceAccountToken: false` too, and where something is mounted at
            // the standard path, Kubernetes mounts nothing else there.
            volumes.push(json!({"name": API_TOKEN, "projected": {"defaultMode": READABLE, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
                ]}},
            ]}}));
        }
        volumes
    }
}
