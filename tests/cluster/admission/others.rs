//! The policy among everything else that looks at a pod: Pod Security, other webhooks, LimitRanges, quotas, large pods.

use serde_json::{Value, json};

use super::super::cluster::{eventually, run};
use super::super::cost;
use super::super::support::Folder;
use super::super::webhook::{Webhook, first_init_container};
use super::{IMAGE, INJECT, has_sidecar, injected, installation, ours, pod, printed, sidecars, with_client};

/// The pod as Pod Security's `restricted` requires it.
fn restricted() -> Value {
    let mut pod = pod();
    pod["spec"]["securityContext"] =
        json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    pod["spec"]["containers"][0]["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    pod
}

#[test]
fn pod_security_restricted_admits_the_sidecar() {
    with_client(|admission, client| {
        let labels = json!({INJECT: "enabled", "pod-security.kubernetes.io/enforce": "restricted"});
        let namespace = admission.namespace_without_probe(client, &labels);
        let made = eventually("a pod", || {
            Some(client.dry_run(&namespace, &restricted()))
                .filter(|made| !made.message().contains("service account"))
        });
        assert!(made.is_success() && has_sidecar(&made.body), "{made:?}");
        let loose = client.dry_run(&namespace, &pod());
        assert!(loose.message().contains("violates PodSecurity"), "{loose:?}");
        assert!(!loose.message().contains("callback-guard"), "only the app is at fault: {loose:?}");
    });
}

#[test]
fn a_dry_run_shows_the_sidecar_and_stores_nothing_and_a_creation_stores_it() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        assert!(has_sidecar(&client.dry_run(&namespace, &pod()).body));
        assert_eq!(client.get(&path).body["items"], json!([]));
        let mut named = pod();
        named["metadata"] = json!({"generateName": "app-"});
        for _ in 0..3 {
            let made = client.create(&path, &named);
            assert!(made.is_success() && has_sidecar(&made.body), "{made:?}");
        }
        let items = client.get(&path).body["items"].as_array().expect("a list").clone();
        assert!(items.len() == 3 && items.iter().all(has_sidecar), "{items:?}");
        let manifest = pod().to_string();
        let arguments =
            ["-n", &namespace, "--dry-run=server", "-o", "jsonpath={.spec.initContainers[*].name}"];
        let shown = admission.cluster.try_apply(&manifest, &arguments);
        assert_eq!(shown, Ok("callback-guard".to_owned()), "what kubectl shows to a user");
        // A debugging container comes to a pod that has its sidecar, and changes nothing about it.
        let name = items[0]["metadata"]["name"].as_str().expect("a name");
        let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}});
        let path = format!("{path}/{name}/ephemeralcontainers");
        let debugged = client.patch(&path, &debug);
        assert!(
            debugged.is_success() && has_sidecar(&debugged.body) && ours(&debugged).is_empty(),
            "{debugged:?}"
        );
    });
}

#[test]
fn another_webhook_that_comes_first_leaves_one_sidecar_and_is_reported() {
    with_client(|admission, client| {
        let name = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let webhook = Webhook::start(admission.cluster.host(), first_init_container);
        let configured = webhook.configure(&format!("first-{name}"), &name, "IfNeeded", admission.cluster);
        let made = client.dry_run(&name, &pod());
        let warnings = ours(&made);
        assert_eq!(sidecars(&made.body), 1, "{made:?}");
        assert_eq!(made.body["spec"]["initContainers"][0]["name"], "first", "{made:?}");
        assert!(warnings.len() == 1 && warnings[0].contains("not-first: "), "{warnings:?}");
        drop(configured);
        let after = eventually("a pod without the webhook", || {
            Some(client.dry_run(&name, &pod())).filter(|made| !made.body.to_string().contains("\"first\""))
        });
        assert_eq!((sidecars(&after.body), ours(&after)), (1, vec![]), "{after:?}");
    });
}

#[test]
fn a_label_that_another_webhook_sets_is_too_late_and_reported() {
    with_client(|admission, client| {
        let name = admission.namespace(client, &json!({}), &json!({}));
        // The API server calls again only the policies that it called before.
        let webhook = Webhook::start(admission.cluster.host(), |request| {
            let labels = json!({INJECT: "enabled"});
            match request["object"]["metadata"]["labels"][INJECT].as_str() {
                Some(_) => vec![],
                None => vec![json!({"op": "add", "path": "/metadata/labels", "value": labels})],
            }
        });
        let configured = webhook.configure(&format!("labels-{name}"), &name, "Never", admission.cluster);
        let made = client.dry_run(&name, &pod());
        let warnings = ours(&made);
        assert!(sidecars(&made.body) == 0 && warnings.len() == 1, "{made:?}");
        assert!(warnings[0].contains("not-applied: "), "{warnings:?}");
        drop(configured);
    });
}

#[test]
fn a_limit_range_and_a_quota_are_content_with_the_sidecar_or_say_what_they_want() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let bounds = json!({
            "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "bounds"}, "spec": {"limits": [{
                "type": "Container", "max": {"memory": "128Mi"}, "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "10m"},
            }]},
        });
        let path = format!("/api/v1/namespaces/{namespace}");
        assert!(client.create(&format!("{path}/limitranges"), &bounds).is_success());
        // The sidecar's own limit is above the maximum, and the message says so.
        let made = eventually("the LimitRange", || {
            Some(client.dry_run(&namespace, &pod())).filter(|made| !made.is_success())
        });
        assert!(
            made.message().contains("maximum memory usage per Container is 128Mi, but limit is 256Mi"),
            "{made:?}"
        );
        let mut small = pod();
        small["metadata"]["annotations"] = json!({"callback-guard.io/memory-limit": "128Mi"});
        let made = client.dry_run(&namespace, &small);
        assert!(made.is_success() && has_sidecar(&made.body), "{made:?}");
        // The default of the LimitRange is the sidecar's limit too, because it has none of its own.
        assert_eq!(made.body["spec"]["initContainers"][0]["resources"]["limits"]["cpu"], "200m", "{made:?}");

        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"},
            "spec": {"hard": {"requests.cpu": "150m", "requests.memory": "1Gi"}},
        });
        let other = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let path = format!("/api/v1/namespaces/{other}");
        assert!(client.create(&format!("{path}/resourcequotas"), &quota).is_success());
        // Its controller is not there: the status is what it would write.
        let status = json!({"status": {"hard": quota["spec"]["hard"], "used": {"requests.cpu": "0", "requests.memory": "0"}}});
        assert!(client.patch(&format!("{path}/resourcequotas/quota/status"), &status).is_success());
        let mut small = pod();
        small["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "140m", "memory": "64Mi"}});
        eventually("the quota", || {
            client.dry_run(&other, &small).message().contains("exceeded quota").then_some(())
        });
        let mut smaller = small.clone();
        smaller["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "40m", "memory": "64Mi"}});
        let made = client.dry_run(&other, &smaller);
        assert!(made.is_success() && has_sidecar(&made.body), "{made:?}");
        small["metadata"]["annotations"] = json!({"callback-guard.io/cpu-request": "10m"});
        assert!(client.dry_run(&other, &small).is_success());
    });
}

/// A pod of so many containers with so many ports.
fn large(containers: usize, ports: usize) -> Value {
    let ports = |container: usize| -> Value {
        (0..ports)
            .map(|port| json!({"containerPort": 20_000 + (container * ports + port) % 40_000}))
            .collect()
    };
    let containers: Vec<_> = (0..containers)
        .map(|number| json!({"name": format!("c{number}"), "image": "app:1", "ports": ports(number)}))
        .collect();
    let mut pod = pod();
    pod["spec"]["containers"] = containers.into();
    pod["metadata"]["annotations"] = json!({"callback-guard.io/app-pre-stop-sleep": "5s"});
    pod
}

#[test]
fn a_pod_of_200_containers_with_50_ports_each_gets_its_sidecar() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let made = client.dry_run(&namespace, &large(200, 50));
        assert!(made.is_success() && has_sidecar(&made.body), "{} {}", made.status, made.message());
        let warnings = ours(&made);
        assert!(warnings.len() == 1 && warnings[0].contains("upstream-guessed: "), "{warnings:?}");
        let hooks = made.body["spec"]["containers"].as_array().expect("containers");
        assert!(hooks.iter().all(|container| container["lifecycle"]["preStop"]["sleep"]["seconds"] == 5));
    });
}

#[test]
fn no_policy_costs_more_than_a_hundredth_of_the_budget_for_a_pod_of_20_containers() {
    let policies = printed(&["shop".to_owned()], &["--own-namespace", "guard"]);
    let mut everything = large(20, 5);
    for row in callback_guard::sidecar::annotations::settings() {
        let value = match row.name {
            "upstream-form" => "query",
            "upstream-reuse" => "false",
            "policy-source" => "watch",
            "image-pull-policy" => "Always",
            "image" => IMAGE,
            "log-level" => "debug",
            "app-pre-stop-sleep" | "drain-delay" | "drain-timeout" | "max-connection-age" => "5s",
            "cpu-request" | "cpu-limit" => "500m",
            "memory-request" | "memory-limit" => "128Mi",
            "upstream-port" => "3000",
            "listen-port" => "8443",
            "admin-port" => "9090",
            "workers" => "2",
            "after-in-flight" => "8",
            "after-queue" => "5000",
            "run-as-user" => "1000",
            _ => "name",
        };
        everything["metadata"]["annotations"][format!("callback-guard.io/{}", row.name)] = value.into();
    }
    // A row that is missing above would make the policy stop early, and cost little.
    let with_sidecar =
        injected(&everything, None, &installation()).expect("every value is one that its row allows");
    let mut wrong = everything.clone();
    for (_, value) in wrong["metadata"]["annotations"].as_object_mut().expect("annotations") {
        *value = "\u{fc} not allowed".into();
    }
    let namespace = json!({"name": "shop", "labels": {INJECT: "enabled", "callback-guard.io/trust": "enabled"},
        "annotations": {"callback-guard.io/workers": "3"}});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}, "annotations": wrong["metadata"]["annotations"]}, "spec": wrong["spec"],
        }},
    });
    let of_namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
        "annotations": wrong["metadata"]["annotations"], "labels": {INJECT: "enabled"}}});
    let objects = json!([
        {"name": "small", "object": pod(), "namespace": namespace},
        {"name": "20 containers", "object": large(20, 5), "namespace": namespace},
        {"name": "20 containers, every annotation", "object": everything, "namespace": namespace},
        {"name": "20 containers, every annotation wrong", "object": wrong, "namespace": namespace},
        {"name": "20 containers, with the sidecar", "object": with_sidecar, "namespace": namespace},
        {"name": "deployment", "object": deployment, "namespace": namespace},
        {"name": "namespace", "object": of_namespace},
    ]);
    let costs = cost::cost(&policies, &objects);
    let entries = costs.as_array().expect("a list");
    // Pods: two mutating policies and two validating ones; a workload and a namespace: one each.
    assert_eq!(entries.len(), 5 * 4 + 2, "{costs:#}");
    for entry in entries {
        assert_eq!(entry["compileErrors"], json!([]), "{entry}");
        assert!(entry["error"].as_str().is_none_or(str::is_empty), "{entry}");
        let (cost, budget) =
            (entry["cost"].as_u64().expect("a cost"), entry["budget"].as_u64().expect("a budget"));
        eprintln!("CEL cost of {} for {}: {cost} of {budget}", entry["policy"], entry["object"]);
        assert!(cost > 0 && cost * 100 <= budget, "{entry}");
    }
}

#[test]
fn what_is_printed_and_applied_differs_in_nothing_from_what_the_server_has() {
    with_client(|admission, _| {
        let folder = Folder::new();
        let path = folder.write("printed.yaml", &admission.applied);
        let diff = |path: &std::path::Path| {
            run(admission.cluster.kubectl_command().arg("diff").arg("-f").arg(path), None)
        };
        assert_eq!(diff(&path), Ok(String::new()));
        let changed = admission.applied.replace("failurePolicy: Ignore", "failurePolicy: Fail");
        let changed = diff(&folder.write("changed.yaml", changed)).expect_err("a difference is exit code 1");
        assert!(changed.contains("+  failurePolicy: Fail"), "{changed}");
    });
}

#[test]
fn the_metrics_that_the_documentation_names_are_those_of_the_api_server() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        assert!(has_sidecar(&client.dry_run(&namespace, &pod()).body));
        assert_eq!(ours(&client.dry_run(&namespace, &super::annotated("workers", "0"))).len(), 1);
        let metrics = admission.cluster.kubectl(&["get", "--raw", "/metrics"]);
        let document = include_str!("../../../docs/injection.md");
        let names: std::collections::BTreeSet<_> = document
            .split(|letter: char| !letter.is_ascii_lowercase() && letter != '_')
            .filter(|word| word.starts_with("apiserver_"))
            .collect();
        assert!(names.len() >= 4, "{names:?}");
        for name in names {
            let series = metrics
                .lines()
                .find(|line| line.starts_with(name) && line.contains("policy=\"callback-guard\""));
            assert!(series.is_some(), "{name} is no metric of the API server");
        }
        let of = |metric: &str, labels: &[&str]| {
            let line =
                |line: &&str| line.starts_with(metric) && labels.iter().all(|label| line.contains(label));
            metrics.lines().any(|text| line(&text))
        };
        let mutating = "apiserver_mutating_admission_policy_check_total{";
        assert!(of(mutating, &["error_type=\"no_error\"", "policy=\"callback-guard\""]));
        let validating = "apiserver_validating_admission_policy_check_total{";
        assert!(of(validating, &["error_type=\"invalid_error\"", "enforcement_action=\"warn\""]));
    });
}
