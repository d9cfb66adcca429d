//! The same pod through both ways in: the policy in a namespace that asks, and `inject -f` in one that does not.
//!
//! Compared is what the API server makes of both. Left out is what differs by design: the hash (one of the sidecar, one of the
//! policy), the notes of who injected and for `uninject`, and the order of the volumes, because the API server's own volume
//! comes before or after ours.

use std::fs;
use std::path::PathBuf;

use callback_guard::sidecar::{self, Injection, Installation, KnownBy, Problem, Reason, Request, workload};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use super::super::client::Client;
use super::{INJECT, injected, installation, ours, sidecars, with_client};

/// A pod as it is compared.
fn compared(reply: &Value) -> Value {
    let mut pod = json!({"metadata": reply["metadata"], "spec": reply["spec"]});
    let metadata = pod["metadata"].as_object_mut().expect("an object");
    let of_server = [
        "uid",
        "creationTimestamp",
        "resourceVersion",
        "managedFields",
        "generation",
        "namespace",
        "name",
        "generateName",
    ];
    for name in of_server {
        metadata.remove(name);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        for name in ["injected-hash", "injected-paths", "injected-by"] {
            annotations.remove(&format!("callback-guard.io/{name}"));
        }
    }
    if let Some(label) =
        metadata.get_mut("labels").and_then(|labels| labels.get_mut("callback-guard.io/injected"))
    {
        let version =
            label.as_str().and_then(|label| label.rsplit_once('-')).map(|(version, _)| version.to_owned());
        *label = version.into();
    }
    // The API server makes up the end of this name.
    let text = pod.to_string();
    let own = text.find("kube-api-access-").map(|at| text[at..at + "kube-api-access-".len() + 5].to_owned());
    let mut pod: Value = own.map_or(pod, |own| {
        serde_json::from_str(&text.replace(&own, "kube-api-access")).expect("it was JSON")
    });
    if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
        volumes.sort_by_key(|volume| volume["name"].to_string());
    }
    pod
}

/// A namespace that asks for sidecars and one that does not, with the same settings.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) asking: String,
    pub(super) plain: String,
    pub(super) metadata: Value,
}

/// What became of a pod, if both ways agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Injected,
    Plain,
    Invalid,
}

/// Sends a pod both ways.
pub(super) fn both(
    client: &mut Client,
    pair: &Pair,
    pod: &Value,
    installation: &Installation,
) -> Result<Fate, String> {
    let mut pod = pod.clone();
    (pod["apiVersion"], pod["kind"]) = ("v1".into(), "Pod".into());
    if !pod["metadata"].is_object() {
        pod["metadata"] = json!({});
    }
    pod["metadata"].as_object_mut().expect("an object").remove("namespace");
    pod["metadata"]["name"] = "app".into();
    let by_policy = client.dry_run(&pair.asking, &pod);
    let of_file = injected(&pod, Some(&pair.metadata), installation);
    if let Err(reason) = &of_file {
        let untouched = client.dry_run(&pair.plain, &pod);
        if !untouched.is_success() {
            return same_refusal(by_policy.message(), untouched.message()).map(|()| Fate::Invalid);
        }
        if compared(&by_policy.body) != compared(&untouched.body) {
            return Err(format!("inject -f says {reason:?}, the policy made {}", by_policy.body));
        }
        // A pod that has the sidecar, and one that says disabled, are as they were meant.
        let silent = [Reason::Disabled, Reason::AlreadyInjected].map(Injection::Skipped).contains(reason)
            && (sidecars(&by_policy.body) == 1 || *reason == Injection::Skipped(Reason::Disabled));
        let warnings = ours(&by_policy);
        let names_the_reason = |warning: &&str| match reason {
            Injection::Skipped(reason) => warning.contains(&format!("{reason}: ")),
            Injection::Refused(problems) => {
                let told = reported(problems);
                !told.is_empty() && told.iter().all(|problem| names(warning, problem))
            }
            Injection::Patch { .. } => false,
        };
        let told = if silent {
            warnings.is_empty()
        } else {
            warnings.len() == 1 && warnings.iter().all(names_the_reason)
        };
        return if told { Ok(Fate::Plain) } else { Err(format!("{reason:?}: {warnings:?}")) };
    }
    let by_file = client.dry_run(&pair.plain, &of_file.expect("looked at above"));
    if !by_file.is_success() {
        return same_refusal(by_policy.message(), by_file.message()).map(|()| Fate::Invalid);
    }
    if !by_policy.is_success() {
        return Err(format!("refused with the policy alone: {}", by_policy.message()));
    }
    if by_policy.body["metadata"]["annotations"]["callback-guard.io/injected-by"] != "policy" {
        return Err(format!("no word of the policy: {}", by_policy.body));
    }
    let (one, other) = (compared(&by_policy.body), compared(&by_file.body));
    let wanted: &[&str] = if is_guess(&pod, pair, installation) { &["upstream-guessed: "] } else { &[] };
    let warnings = ours(&by_policy);
    if warnings.len() != wanted.len()
        || warnings.iter().zip(wanted).any(|(warning, name)| !warning.contains(name))
    {
        return Err(format!("warned of {warnings:?}, expected {wanted:?}"));
    }
    if one == other {
        Ok(Fate::Injected)
    } else {
        Err(format!("by the policy {one:#}\nby inject -f {other:#}"))
    }
}

/// The problems that the policy reports. While a value is invalid it does not look for conflicts, because it could not convert
/// the value; `inject -f` looks for them among the others.
fn reported(problems: &[Problem]) -> Vec<&Problem> {
    let any_invalid = problems.iter().any(|problem| problem.reason == Reason::InvalidAnnotation);
    problems.iter().filter(|problem| !(any_invalid && problem.reason == Reason::Conflict)).collect()
}

/// Whether a warning has the reason of a problem of `inject -f`, and names the label or annotation that it is about. A long
/// list of reasons is cut.
fn names(warning: &str, problem: &Problem) -> bool {
    let about = problem.pointer.rsplit_once("~1").map_or("", |(_, name)| name);
    let whole = warning.contains(&format!("{}: ", problem.reason)) && warning.contains(about);
    whole || warning.ends_with("...")
}

/// Whether `inject -f` guesses where the app is called.
fn is_guess(pod: &Value, pair: &Pair, installation: &Installation) -> bool {
    let request = Request { namespace: None, namespace_metadata: Some(&pair.metadata), by_name: true };
    match sidecar::inject(pod, &request, installation) {
        Injection::Patch { upstream, .. } => upstream.known_by == KnownBy::Nothing,
        Injection::Skipped(_) | Injection::Refused(_) => false,
    }
}

/// Whether the API server refuses both for the same faults of the pod, whose order is by chance.
fn same_refusal(one: &str, other: &str) -> Result<(), String> {
    let faults = |text: &str| {
        if let Some(undecodable) = text.strip_prefix("Pod in version") {
            return Some(vec![undecodable.to_owned()]);
        }
        let list = text.split_once("is invalid: ").map(|(_, list)| list.trim_matches(['[', ']']).to_owned());
        let mut faults: Vec<_> = list?.split(", spec.").map(str::to_owned).collect();
        faults[0] = faults[0].trim_start_matches("spec.").to_owned();
        faults.sort();
        Some(faults)
    };
    let same = faults(one).is_some() && faults(one) == faults(other);
    if same { Ok(()) } else { Err(format!("refused differently: {one:?} and {other:?}")) }
}

#[test]
fn every_golden_manifest_is_the_same_by_both_ways() {
    with_client(|admission, client| {
        let without_settings = pair(admission, client, &json!({}));
        let mut counts = [0, 0, 0];
        let (mut unread, mut invalid) = (Vec::new(), Vec::new());
        for path in manifests() {
            let text = fs::read_to_string(&path).expect("a manifest");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let documents: Vec<_> =
                documents(&text).iter().map(|text| serde_saphyr::from_str::<Value>(text)).collect();
            unread.extend(documents.iter().filter(|document| document.is_err()).map(|_| name.clone()));
            let documents: Vec<_> = documents.into_iter().flatten().collect();
            // The settings of a namespace in the file, one pair for each.
            let settings = |namespace: Option<&str>| {
                let of = documents.iter().find(|object| {
                    object["kind"] == "Namespace" && object["metadata"]["name"].as_str() == namespace
                });
                of.map(|object| object["metadata"]["annotations"].clone()).filter(Value::is_object)
            };
            for document in &documents {
                for workload in workload::workloads(document) {
                    let Some(pod) = document.pointer(&workload.pod) else { continue };
                    let settings = settings(workload.namespace.as_deref());
                    let own = settings.map(|settings| pair(admission, client, &settings));
                    let pair = own.as_ref().unwrap_or(&without_settings);
                    match both(client, pair, pod, &installation()) {
                        Ok(fate) => {
                            counts[fate as usize] += 1;
                            if fate == Fate::Invalid {
                                invalid.push(workload.title());
                            }
                        }
                        Err(difference) => panic!("{name}: {}: {difference}", workload.title()),
                    }
                }
            }
        }
        assert_eq!(unread, ["wrong.yaml"], "documents that no YAML reader takes");
        assert_eq!(invalid, ["Pod b", "Pod mirror", "Pod bad"], "pods that the API server takes neither way");
        assert_eq!(counts, [45, 8, 3], "injected, plain, invalid");
    });
}

/// The documents of a manifest, cut at its markers.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else {
            documents.last_mut().expect("never empty").extend([line, "\n"]);
        }
    }
    let is_comment = |line: &str| line.trim().is_empty() || line.starts_with('#');
    documents.retain(|document| !document.lines().all(is_comment));
    documents
}

fn manifests() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/manifests");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the manifests").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|ending| ending == "yaml" || ending == "json"));
    files.sort();
    files
}

fn pair(admission: &super::Admission, client: &mut Client, annotations: &Value) -> Pair {
    Pair {
        asking: admission.namespace(client, &json!({INJECT: "enabled"}), annotations),
        plain: admission.namespace(client, &json!({}), annotations),
        metadata: json!({"annotations": annotations}),
    }
}

/// How many random pods go both ways, unless PROPTEST_CASES says otherwise.
const CASES: u32 = 300;

#[test]
fn random_pods_are_the_same_by_both_ways() {
    with_client(|admission, client| {
        let mut layers = TestRunner::deterministic();
        let annotations = proptest::collection::vec(annotation(), 0..4);
        let mut settings = || -> Value {
            let drawn = annotations.new_tree(&mut layers).expect("a case").current();
            Value::Object(
                drawn.into_iter().filter(|(key, _)| key.starts_with("callback-guard.io/")).collect(),
            )
        };
        let pairs: Vec<_> = (0..12).map(|_| pair(admission, client, &settings())).collect();
        let pairs: Vec<_> = pairs.into_iter().chain([pair(admission, client, &json!({}))]).collect();
        let mut fates = [0_u32, 0, 0];
        let given = Config::default();
        let cases = if std::env::var_os("PROPTEST_CASES").is_some() { given.cases } else { CASES };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..given });
        let counted = std::cell::RefCell::new((&mut fates, client));
        let run = runner.run(&(0..pairs.len(), pods()), |(pair, pod)| {
            let (fates, client) = &mut *counted.borrow_mut();
            let fate = both(client, &pairs[pair], &pod, &installation()).map_err(TestCaseError::fail)?;
            fates[fate as usize] += 1;
            Ok(())
        });
        if let Err(error) = run {
            panic!("{error}");
        }
        eprintln!("random pods, injected, plain, invalid: {fates:?}");
        // Of a few cases nothing is expected.
        let part = |of: u32| cases / of;
        assert!(fates[0] >= part(6) && fates[1] >= part(12), "injected, plain, invalid: {fates:?}");
    });
}

/// Mostly valid pods, with what matters to an injection in many forms.
fn pods() -> impl Strategy<Value = Value> {
    let extras = proptest::collection::vec(select(spec_fields()), 0..3);
    let annotations = proptest::collection::vec(annotation(), 0..4);
    let containers = proptest::collection::vec(container(), 1..4);
    let inits = proptest::collection::vec(container(), 0..2);
    (containers, inits, extras, annotations, any::<bool>()).prop_map(
        |(containers, inits, extras, annotations, labeled)| {
            let named = |containers: Vec<Value>, prefix: &str| -> Value {
                let name = |(number, mut container): (usize, Value)| {
                    if container["name"].is_null() {
                        container["name"] = format!("{prefix}{number}").into();
                    }
                    container
                };
                containers.into_iter().enumerate().map(name).collect()
            };
            let mut spec = json!({"containers": named(containers, "app")});
            if !inits.is_empty() {
                // Only a sidecar of the app's own may have probes and hooks.
                let as_sidecar = |mut container: Value| {
                    container["restartPolicy"] = "Always".into();
                    container
                };
                spec["initContainers"] = named(inits.into_iter().map(as_sidecar).collect(), "init");
            }
            for (key, value) in extras {
                spec[key] = value;
            }
            let mut metadata = json!({"name": "app"});
            if !annotations.is_empty() {
                metadata["annotations"] = Value::Object(annotations.into_iter().collect());
            }
            if labeled {
                metadata["labels"] = json!({"app": "shop"});
            }
            json!({"metadata": metadata, "spec": spec})
        },
    )
}

fn spec_fields() -> Vec<(&'static str, Value)> {
    vec![
        ("terminationGracePeriodSeconds", json!(0)),
        ("terminationGracePeriodSeconds", json!(7)),
        ("terminationGracePeriodSeconds", json!(100_000)),
        ("hostNetwork", json!(true)),
        ("hostNetwork", json!(false)),
        ("os", json!({"name": "linux"})),
        ("nodeSelector", json!({"kubernetes.io/os": "windows"})),
        ("nodeSelector", json!({"kubernetes.io/os": "linux", "disk": "ssd"})),
        ("automountServiceAccountToken", json!(false)),
        ("volumes", json!([])),
        ("volumes", json!([{"name": "data", "emptyDir": {}}])),
        ("volumes", json!([{"name": "callback-guard-tls", "emptyDir": {}}])),
        ("imagePullSecrets", json!([{"name": "mine"}])),
        ("securityContext", json!({"runAsUser": 1000})),
        ("resources", json!({"limits": {"cpu": "4", "memory": "8Gi"}})),
        ("resources", json!({"requests": {"cpu": "1"}, "limits": {"cpu": "4000m"}})),
        ("resources", json!({})),
        ("restartPolicy", json!("Never")),
        ("shareProcessNamespace", json!(true)),
    ]
}

fn container() -> impl Strategy<Value = Value> {
    // Each with a limit that is not below it, in whatever spelling.
    let cpu = select(vec![
        (Value::Null, Value::Null),
        (json!("1"), json!(1)),
        (json!(1), json!("1000m")),
        (json!("1e0"), json!("1")),
        (json!("0.5"), json!("500m")),
        (json!("500m"), json!("1")),
        (json!("250m"), Value::Null),
        (Value::Null, json!("1.50")),
        (json!("0"), json!("0")),
        (Value::Null, json!("0")),
    ]);
    let memory = select(vec![
        (Value::Null, Value::Null),
        (json!("1Gi"), json!("1024Mi")),
        (json!(1_073_741_824), json!("1Gi")),
        (json!("1e9"), json!("1G")),
        (json!("1G"), json!("1Gi")),
        (json!("64Mi"), Value::Null),
        (Value::Null, json!("128974848")),
    ]);
    let ports = proptest::collection::vec(port(), 0..3);
    let probes = proptest::collection::vec(probe(), 0..3);
    let lifecycle = select(vec![
        Value::Null,
        Value::Null,
        json!({}),
        json!({"preStop": {"exec": {"command": ["x"]}}}),
        json!({"postStart": {"exec": {"command": ["x"]}}}),
    ]);
    let name = prop_oneof![30 => Just(Value::Null), 1 => Just(json!("callback-guard"))];
    (ports, probes, (cpu, memory), lifecycle, name).prop_map(
        |(ports, probes, ((cpu, cpu_limit), (memory, memory_limit)), lifecycle, name)| {
            let mut container = json!({"image": "app:1", "ports": ports, "name": name});
            for (kind, probe) in probes {
                container[kind] = probe;
            }
            let some = |map: Value| {
                let map = map.as_object().expect("an object").clone();
                map.into_iter().filter(|(_, value)| !value.is_null()).collect::<serde_json::Map<_, _>>()
            };
            container["resources"] = json!({
                "requests": some(json!({"cpu": cpu, "memory": memory})),
                "limits": some(json!({"cpu": cpu_limit, "memory": memory_limit})),
            });
            if !lifecycle.is_null() {
                container["lifecycle"] = lifecycle;
            }
            container
        },
    )
}

fn port() -> impl Strategy<Value = Value> {
    let number = prop_oneof![20 => select(vec![3000, 3000, 8080, 9100, 53]), 1 => select(vec![18443, 19090])];
    let name = prop_oneof![
        20 => select(vec![Value::Null, Value::Null, json!("web"), json!("metrics")]),
        1 => select(vec![json!("callback-guard"), json!("guard-admin")]),
    ];
    let protocol =
        select(vec![Value::Null, Value::Null, json!(""), json!("TCP"), json!("UDP"), json!("SCTP")]);
    (number, name, protocol).prop_map(
        |(number, name, protocol)| json!({"containerPort": number, "name": name, "protocol": protocol}),
    )
}

fn probe() -> impl Strategy<Value = (&'static str, Value)> {
    let kind = select(vec!["readinessProbe", "livenessProbe", "startupProbe"]);
    let handler = select(vec![
        json!({"httpGet": {"port": 3000}}),
        json!({"httpGet": {"port": "web", "path": "/health"}}),
        json!({"tcpSocket": {"port": 9100}}),
        json!({"tcpSocket": {"port": "metrics"}}),
        json!({"grpc": {"port": 4000}}),
        json!({"httpGet": {"port": 8080}}),
        json!({"httpGet": {"port": 9000, "host": "elsewhere.example"}}),
        json!({"tcpSocket": {"port": 9000, "host": ""}}),
        json!({"exec": {"command": ["x"]}}),
    ]);
    (kind, handler)
}

fn annotation() -> impl Strategy<Value = (String, Value)> {
    let good = [
        ("upstream-port", &["3000", "65535", "08080"][..]),
        ("upstream-form", &["path", "query"]),
        ("upstream-reuse", &["true", "false"]),
        ("listen-port", &["8443", "9100", "3000"]),
        ("admin-port", &["9090", "9100"]),
        ("policy-configmap", &["mine"]),
        ("policy-source", &["watch", "volume"]),
        ("tls-secret", &["mine", "a.b"]),
        ("app-pre-stop-sleep", &["5s", "2000ms", "0.1m", "6s500ms500ms"]),
        ("image", &["registry.example/guard@sha256:0"]),
        ("image-pull-policy", &["Never"]),
        ("run-as-user", &["1000", "none"]),
        ("cpu-request", &["50m", "1"]),
        ("cpu-limit", &["2", "none", "0100m"]),
        ("memory-request", &["128Mi"]),
        ("memory-limit", &["1Gi", "64Mi", "1024Mi"]),
        ("workers", &["4", "01"]),
        ("after-in-flight", &["1", "1024"]),
        ("after-queue", &["1", "99999"]),
        ("log-level", &["debug"]),
        ("drain-delay", &["0s", "1.5s", "1m30s"]),
        ("drain-timeout", &["10s"]),
        ("max-connection-age", &["1s", "1h"]),
    ];
    let bad = [
        ("upstream-port", &["0", "18443"][..]),
        ("upstream-form", &["Path"]),
        ("upstream-reuse", &["False", "0"]),
        ("listen-port", &["19090", "80"]),
        ("admin-port", &["18443"]),
        ("policy-configmap", &["Mine"]),
        ("app-pre-stop-sleep", &["1m", "1.5s"]),
        ("image", &["a b"]),
        ("run-as-user", &["0"]),
        ("cpu-request", &["3"]),
        ("memory-request", &["1Gi"]),
        ("workers", &["65"]),
        ("after-in-flight", &["0", "1025"]),
        ("after-queue", &["0", "100000"]),
        ("drain-delay", &["2h"]),
        ("drain-timeout", &["10"]),
        ("max-connection-age", &["999ms"]),
        ("colour", &["red"]),
        ("injected-hash", &["0"]),
    ];
    let pairs = |values: &[(&str, &[&str])]| -> Vec<(String, Value)> {
        let of_row = |(name, values): &(&str, &[&str])| -> Vec<_> {
            values.iter().map(|value| (format!("callback-guard.io/{name}"), Value::from(*value))).collect()
        };
        values.iter().flat_map(of_row).collect()
    };
    let other = ("kubectl.kubernetes.io/default-container".to_owned(), json!("app1"));
    prop_oneof![12 => select(pairs(&good)), 1 => select(pairs(&bad)), 1 => Just(other)]
}
