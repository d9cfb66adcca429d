use serde_json::{Value, json};

use super::patch::Operation;
use super::*;

fn installation() -> Installation {
    Installation {
        own_namespace: Some("callback-guard".to_owned()),
        ..Installation::of_image("callback-guard:1")
    }
}

fn app() -> Value {
    json!({"metadata": {"name": "app"}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}})
}

/// The app with one thing set.
fn with(pointer: &str, value: Value) -> Value {
    let mut pod = app();
    let (mut at, mut rest) = (String::new(), pointer);
    while let Some((part, below)) = rest.strip_prefix('/').and_then(|rest| rest.split_once('/')) {
        at = format!("{at}/{part}");
        if pod.pointer(&at).is_none() {
            assert!(Operation::Add { path: at.clone(), value: json!({}) }.apply(&mut pod), "{at}");
        }
        rest = &rest[1 + part.len()..];
        assert!(rest.ends_with(below));
    }
    assert!(Operation::Add { path: pointer.to_owned(), value }.apply(&mut pod), "{pointer}");
    pod
}

fn annotated(name: &str, value: impl Into<Value>) -> Value {
    with(&Annotation::pointer(name), value.into())
}

/// A request by somebody who named the pod, which is in the namespace `shop` with this metadata.
fn request(namespace_metadata: Option<&Value>) -> Request<'_> {
    Request { namespace: Some("shop"), namespace_metadata, by_name: true }
}

fn by_name(pod: &Value) -> Injection {
    inject(pod, &request(None), &installation())
}

#[track_caller]
fn patched(pod: &Value) -> Value {
    let Injection::Patch { steps, .. } = by_name(pod) else { panic!("{:?}", by_name(pod)) };
    let mut after = pod.clone();
    for step in &steps {
        assert!(matches!(step, Operation::Add { .. }), "{step:?}");
        assert!(step.apply(&mut after), "{step:?}");
    }
    after
}

#[track_caller]
fn restored(pod: &Value) -> Value {
    let Removal::Patch(steps) = uninject(pod) else { panic!("not injected: {pod}") };
    let mut after = pod.clone();
    assert!(steps.iter().all(|step| step.apply(&mut after)), "{steps:?}");
    after
}

#[track_caller]
fn refused(pod: &Value) -> Vec<String> {
    match by_name(pod) {
        Injection::Refused(problems) => problems.into_iter().map(|problem| problem.message).collect(),
        other @ (Injection::Patch { .. } | Injection::Skipped(_)) => panic!("{other:?}"),
    }
}

#[test]
fn labels_and_namespaces_say_who_gets_it() {
    let label = |value: &str| with("/metadata/labels/callback-guard.io~1inject", value.into());
    let of = |pod: &Value, namespace: &str, of_namespace| {
        let namespaces = Some(vec!["shop".to_owned(), "kube-system".to_owned()]);
        let metadata = json!({"labels": {"callback-guard.io/inject": of_namespace}});
        let request =
            Request { namespace: Some(namespace), namespace_metadata: Some(&metadata), by_name: false };
        match inject(pod, &request, &Installation { namespaces, ..installation() }) {
            Injection::Patch { .. } => "injected",
            Injection::Skipped(reason) => reason.words().name,
            Injection::Refused(_) => "refused",
        }
    };
    for (pod, namespace, of_namespace, expected) in [
        (app(), "shop", None, "not-asked"),
        (app(), "shop", Some("disabled"), "not-asked"),
        (app(), "shop", Some("enabled"), "injected"),
        (label("enabled"), "shop", None, "injected"),
        (label("enabled"), "shop", Some("disabled"), "injected"),
        (label("disabled"), "shop", Some("enabled"), "disabled"),
        (label("true"), "shop", Some("enabled"), "refused"),
        (label("enabled"), "other", None, "namespace-not-listed"),
        (label("enabled"), "kube-system", None, "system-namespace"),
        (label("enabled"), "kube-node-lease", None, "system-namespace"),
        (label("enabled"), "callback-guard", None, "own-namespace"),
    ] {
        assert_eq!(of(&pod, namespace, of_namespace), expected, "{namespace} {of_namespace:?} {pod}");
    }
    assert_eq!(by_name(&label("disabled")), Injection::Skipped(Reason::Disabled));
    assert!(matches!(by_name(&app()), Injection::Patch { .. }));
}

#[test]
fn each_pod_of_the_never_list_is_skipped_by_name_and_its_twin_is_not() {
    let port = |number: u32, name: &str| json!([{"name": name, "containerPort": number}]);
    let init = |name: &str| json!([{"name": name, "image": "x"}]);
    for (pointer, skipped, twin, reason) in [
        ("/metadata/annotations/kubernetes.io~1config.mirror", json!("a1b2"), Value::Null, Reason::MirrorPod),
        ("/spec/hostNetwork", json!(true), json!(false), Reason::HostNetwork),
        ("/spec/os/name", json!("windows"), json!("linux"), Reason::Windows),
        ("/spec/nodeSelector/kubernetes.io~1os", json!("windows"), json!("linux"), Reason::Windows),
        ("/spec/containers/0/ports", port(18443, "x"), port(8443, "x"), Reason::PortInUse),
        ("/spec/containers/0/ports", port(19090, "x"), port(9090, "x"), Reason::PortInUse),
        ("/spec/containers/0/ports", port(1, "callback-guard"), port(1, "guard"), Reason::PortInUse),
        ("/spec/containers/0/ports", port(1, "guard-admin"), port(1, "admin"), Reason::PortInUse),
        ("/spec/initContainers", init("callback-guard"), init("callback"), Reason::AlreadyInjected),
    ] {
        assert_eq!(by_name(&with(pointer, skipped)), Injection::Skipped(reason), "{pointer}");
        let twin = with(pointer, twin);
        assert!(matches!(by_name(&twin), Injection::Patch { .. }), "{twin}: {:?}", by_name(&twin));
    }
    let mut moved = with("/spec/containers/0/ports", port(18443, "x"));
    moved["metadata"]["annotations"] = json!({"callback-guard.io/listen-port": "28443"});
    assert!(matches!(by_name(&moved), Injection::Patch { .. }));
}

#[test]
fn names_of_reasons_and_notices_are_unlike_each_other() {
    let reasons = Reason::ALL.iter().map(|reason| reason.words());
    let mut names: Vec<_> = reasons.chain(Notice::ALL.iter().map(|notice| notice.words())).collect();
    names.sort_unstable_by_key(|words| words.name);
    names.dedup_by_key(|words| words.name);
    assert_eq!(names.len(), Reason::ALL.len() + Notice::ALL.len());
}

#[test]
fn injected_twice_is_injected_once_and_taken_out_leaves_no_trace() {
    let sleep = |pod: Value| {
        let mut pod = pod;
        pod["metadata"]["annotations"] = json!({"callback-guard.io/app-pre-stop-sleep": "5s"});
        pod
    };
    for pod in [
        app(),
        json!({"spec": {"containers": [{"name": "app"}]}}),
        with("/metadata/annotations", json!({})),
        with("/metadata/annotations/kubectl.kubernetes.io~1default-container", json!("other")),
        with("/spec/initContainers", json!([{"name": "first"}])),
        with("/spec/volumes", json!([])),
        with("/spec/unknown/field", json!([1, {"a": null}])),
        sleep(app()),
        sleep(with("/spec/containers/0/lifecycle", json!({}))),
        sleep(with("/spec/containers/0/lifecycle/postStart", json!({"sleep": {"seconds": 1}}))),
        sleep(with("/spec/containers/0/lifecycle/preStop", json!({"sleep": {"seconds": 1}}))),
    ] {
        let after = patched(&pod);
        assert_eq!(by_name(&after), Injection::Skipped(Reason::AlreadyInjected));
        assert_eq!(restored(&after), pod);
        assert_eq!(uninject(&pod), Removal::NotInjected);
    }
    assert_eq!(
        uninject(&with("/spec/initContainers", json!([{"name": "callback-guard"}]))),
        Removal::NotInjected
    );
}

#[test]
fn what_others_added_since_stays_and_a_forged_note_takes_nothing() {
    let mut after = patched(&app());
    after["spec"]["volumes"].as_array_mut().expect("a list").push(json!({"name": "theirs"}));
    after["metadata"]["annotations"]["theirs"] = json!("x");
    let mut expected = app();
    expected["spec"]["volumes"] = json!([{"name": "theirs"}]);
    expected["metadata"]["annotations"] = json!({"theirs": "x"});
    assert_eq!(restored(&after), expected);

    let mut forged = patched(&app());
    forged["metadata"]["annotations"]["callback-guard.io/injected-paths"] =
        json!("[\"/spec/containers\", \"/spec\", \"\", \"/spec/containers/0/lifecycle\", 7]");
    assert_eq!(restored(&forged)["spec"]["containers"], app()["spec"]["containers"]);
}

#[test]
fn the_sidecar_is_the_first_init_container_and_restarts_always() {
    let after = patched(&with("/spec/initContainers", json!([{"name": "first"}])));
    let names: Vec<_> = after["spec"]["initContainers"].as_array().expect("a list").iter().collect();
    assert_eq!((&names[0]["name"], &names[1]["name"]), (&json!("callback-guard"), &json!("first")));
    assert_eq!(names[0]["restartPolicy"], "Always");
    assert_eq!(after["spec"]["containers"], app()["spec"]["containers"]);
}

#[test]
fn only_app_containers_without_a_hook_get_the_sleep_and_only_if_asked() {
    let two = json!([
        {"name": "a"}, {"name": "b", "lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}
    ]);
    let mut pod = with("/spec/containers", two.clone());
    assert_eq!(patched(&pod)["spec"]["containers"], two);
    pod["metadata"]["annotations"] = json!({"callback-guard.io/app-pre-stop-sleep": "5s"});
    let after = patched(&pod);
    assert_eq!(after["spec"]["containers"][0]["lifecycle"], json!({"preStop": {"sleep": {"seconds": 5}}}));
    assert_eq!(after["spec"]["containers"][1], two[1]);
    let namespace = json!({"annotations": {"callback-guard.io/app-pre-stop-sleep": "5s"}});
    pod["metadata"]["annotations"] = json!({"callback-guard.io/app-pre-stop-sleep": "none"});
    let Injection::Patch { steps, .. } = inject(&pod, &request(Some(&namespace)), &installation()) else {
        panic!("none is a value")
    };
    assert!(!steps.iter().any(|step| step.path().contains("lifecycle")), "the pod switches it off");
    pod["metadata"]["annotations"] = json!({"callback-guard.io/app-pre-stop-sleep": "5s"});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(5);
    assert_eq!(
        refused(&pod),
        ["Invalid value: \"5s\": must be shorter than the pod's terminationGracePeriodSeconds, 5"]
    );
}

fn args(pod: &Value) -> Vec<String> {
    let after = patched(pod);
    let args = after["spec"]["initContainers"][0]["args"].as_array().expect("arguments");
    args.iter().map(|arg| arg.as_str().expect("a text").to_owned()).collect()
}

#[test]
fn the_grace_period_is_the_pods_within_what_the_proxy_takes() {
    for (seconds, expected) in
        [(Value::Null, "30s"), (json!(45), "45s"), (json!(0), "2s"), (json!(86_400), "3600s")]
    {
        let found = args(&with("/spec/terminationGracePeriodSeconds", seconds));
        assert!(found.contains(&format!("--grace-period={expected}")), "{expected} {found:?}");
    }
}

#[test]
fn callbacks_go_to_the_one_port_that_the_pod_declares_or_probes_and_a_guess_is_a_warning() {
    let ports = |ports: Value| with("/spec/containers/0/ports", ports);
    let declared =
        |numbers: &[u32]| ports(numbers.iter().map(|port| json!({"containerPort": port})).collect());
    let probed = |mut pod: Value, probe: &str, handler: &str, port: Value| {
        pod["spec"]["containers"][0][probe] = json!({handler: {"port": port}});
        pod
    };
    let two = || declared(&[3000, 9100]);
    let named =
        || ports(json!([{"containerPort": 3000, "name": "web"}, {"containerPort": 9100, "name": "metrics"}]));
    let asked = |pod: &Value| match by_name(pod) {
        Injection::Patch { upstream, warnings, .. } => (upstream.port, warnings.len()),
        other @ (Injection::Skipped(_) | Injection::Refused(_)) => panic!("{other:?}"),
    };
    for (pod, expected) in [
        (app(), (8080, 1)),
        (declared(&[3000]), (3000, 0)),
        (declared(&[3000, 3000]), (3000, 0)),
        (declared(&[3000, 8080]), (8080, 1)),
        (two(), (8080, 1)),
        (ports(json!([{"containerPort": 9000, "protocol": "UDP"}])), (8080, 1)),
        (ports(json!([{"containerPort": 3000, "protocol": ""}])), (3000, 0)),
        (
            ports(
                json!([{"containerPort": 3000, "protocol": "TCP"}, {"containerPort": 9000, "protocol": "UDP"}]),
            ),
            (3000, 0),
        ),
        (probed(app(), "readinessProbe", "httpGet", json!(3000)), (3000, 0)),
        (probed(app(), "startupProbe", "grpc", json!(3000)), (3000, 0)),
        (probed(two(), "livenessProbe", "tcpSocket", json!(9100)), (9100, 0)),
        (probed(named(), "livenessProbe", "httpGet", json!("web")), (3000, 0)),
        (probed(named(), "livenessProbe", "httpGet", json!("none")), (8080, 1)),
        (probed(declared(&[3000]), "readinessProbe", "httpGet", json!(9100)), (3000, 0)),
        (
            with(
                "/spec/containers/0/readinessProbe",
                json!({"httpGet": {"port": 9000, "host": "elsewhere"}}),
            ),
            (8080, 1),
        ),
        (
            probed(
                probed(two(), "livenessProbe", "httpGet", json!(3000)),
                "readinessProbe",
                "httpGet",
                json!(9100),
            ),
            (8080, 1),
        ),
    ] {
        assert_eq!(asked(&pod), expected, "{pod}");
    }
    let mut said = two();
    said["metadata"]["annotations"] = json!({"callback-guard.io/upstream-port": "3000"});
    assert_eq!(asked(&said), (3000, 0));
}

#[test]
fn the_sidecar_never_calls_itself() {
    let message = "must not be a port of the sidecar itself";
    assert_eq!(
        refused(&annotated("upstream-port", "18443")),
        [format!("Invalid value: \"18443\": {message}")]
    );
    // The guess, and a port that only a probe names.
    assert_eq!(refused(&annotated("listen-port", "8080")), [format!("Invalid value: \"8080\": {message}")]);
    let probed = with("/spec/containers/0/readinessProbe", json!({"tcpSocket": {"port": 19090}}));
    assert_eq!(refused(&probed), [format!("Invalid value: \"19090\": {message}")]);
    let mut moved = probed;
    moved["metadata"]["annotations"] = json!({"callback-guard.io/admin-port": "19091"});
    assert!(matches!(by_name(&moved), Injection::Patch { .. }));
}

#[test]
fn a_udp_port_is_no_clash_and_a_tcp_one_is() {
    let port = |protocol: &str| {
        with("/spec/containers/0/ports", json!([{"containerPort": 18443, "protocol": protocol}]))
    };
    assert!(matches!(by_name(&port("UDP")), Injection::Patch { .. }));
    assert_eq!(by_name(&port("TCP")), Injection::Skipped(Reason::PortInUse));
}

#[test]
fn settings_of_the_namespace_go_before_the_installation_and_those_of_the_pod_before_both() {
    let mut installation = installation();
    installation.settings.extend([("workers", "2".to_owned()), ("run-as-user", "none".to_owned())]);
    let namespace =
        json!({"annotations": {"callback-guard.io/workers": "3", "callback-guard.io/log-level": "warn"}});
    let text = |pod: &Value, namespace: Option<&Value>| match inject(pod, &request(namespace), &installation)
    {
        Injection::Patch { steps, .. } => {
            steps.iter().map(|step| step.to_json().to_string()).collect::<String>()
        }
        other @ (Injection::Skipped(_) | Injection::Refused(_)) => panic!("{other:?}"),
    };
    let of_installation = text(&app(), None);
    assert!(of_installation.contains("--workers=2") && !of_installation.contains("runAsUser"));
    let of_namespace = text(&app(), Some(&namespace));
    assert!(of_namespace.contains("--workers=3") && of_namespace.contains("--log-level=warn"));
    let of_pod = text(&annotated("workers", "4"), Some(&namespace));
    assert!(of_pod.contains("--workers=4") && of_pod.contains("--log-level=warn"));

    let wrong = json!({"annotations": {"callback-guard.io/workers": "0"}});
    let Injection::Refused(problems) = inject(&app(), &request(Some(&wrong)), &installation) else {
        panic!("a wrong value of a namespace is a problem")
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].layer, Layer::Namespace);
}

#[test]
fn a_namespace_that_is_disabled_keeps_its_pods_plain_unless_they_ask() {
    let namespace = json!({"labels": {"callback-guard.io/inject": "disabled"}});
    let of = |pod: &Value| inject(pod, &request(Some(&namespace)), &installation());
    assert_eq!(of(&app()), Injection::Skipped(Reason::Disabled));
    let label = with("/metadata/labels/callback-guard.io~1inject", "enabled".into());
    assert!(matches!(of(&label), Injection::Patch { .. }));
}

#[test]
fn pull_secrets_are_added_once_and_taken_out_again() {
    let installation =
        Installation { image_pull_secrets: vec!["a".to_owned(), "b".to_owned()], ..installation() };
    for (before, after) in [
        (app(), json!([{"name": "a"}, {"name": "b"}])),
        (with("/spec/imagePullSecrets", json!([{"name": "b"}])), json!([{"name": "b"}, {"name": "a"}])),
    ] {
        let Injection::Patch { steps, .. } = inject(&before, &request(None), &installation) else {
            panic!("it is injected")
        };
        let mut pod = before.clone();
        assert!(steps.iter().all(|step| step.apply(&mut pod)));
        assert_eq!(pod["spec"]["imagePullSecrets"], after);
        assert_eq!(restored(&pod), before);
    }
    assert_eq!(patched(&app())["spec"]["imagePullSecrets"], Value::Null);
}

#[test]
fn a_pod_that_the_policy_injected_is_told_apart_from_one_that_nobody_did() {
    let mut pod = with("/spec/initContainers", json!([{"name": "callback-guard"}]));
    assert_eq!(uninject(&pod), Removal::NotInjected);
    pod["metadata"]["annotations"] = json!({"callback-guard.io/injected-by": "policy"});
    assert_eq!(uninject(&pod), Removal::InjectedByPolicy);
}

#[test]
fn an_injected_pod_is_found_by_its_label_and_equal_sidecars_have_equal_ones() {
    let label = |pod: &Value| {
        let text = patched(pod)["metadata"]["labels"]["callback-guard.io/injected"].clone();
        text.as_str().expect("a label").to_owned()
    };
    let version = env!("CARGO_PKG_VERSION");
    assert!(label(&app()).starts_with(&format!("{version}-")), "{}", label(&app()));
    assert_eq!(label(&app()), label(&with("/spec/containers/0/env", json!([]))));
    assert_ne!(label(&app()), label(&annotated("workers", "2")));
}

#[test]
fn a_guaranteed_pod_stays_so_and_another_gets_no_cpu_limit_unasked() {
    let of = |pod: &Value| patched(pod)["spec"]["initContainers"][0]["resources"].clone();
    let with_resources = |value: Value| with("/spec/containers/0/resources", value);
    let burstable = json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}});
    let limits = json!({"cpu": "1", "memory": "256Mi"});
    let guaranteed = json!({"requests": limits, "limits": limits});
    for (pod, expected) in [
        (app(), &burstable),
        (with_resources(json!({"limits": {"cpu": "1"}})), &burstable),
        (
            with_resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})),
            &burstable,
        ),
        (with_resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), &guaranteed),
        (with_resources(json!({"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": 1}})), &guaranteed),
        (
            with_resources(json!({
                "limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}
            })),
            &guaranteed,
        ),
        // Kubernetes takes a limit of zero for none, and null for zero.
        (
            with_resources(json!({"limits": {"cpu": 1, "memory": "1Gi"}, "requests": {"cpu": null}})),
            &burstable,
        ),
        (with_resources(json!({"limits": {"cpu": "0", "memory": "1Gi"}})), &burstable),
        (with("/spec/resources", json!({"limits": {"cpu": "1"}})), &Value::Null),
        (with("/spec/resources", json!({})), &burstable),
    ] {
        assert_eq!(of(&pod), *expected, "{pod}");
    }
    let mut none = with_resources(json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
    none["metadata"]["annotations"] = json!({"callback-guard.io/cpu-limit": "none"});
    assert_eq!(of(&none), guaranteed, "a Guaranteed pod needs a limit");
    let small = of(&annotated("memory-limit", "32Mi"));
    assert_eq!(small["requests"], json!({"cpu": "100m", "memory": "32Mi"}));
    let limited = of(&annotated("cpu-limit", "50m"));
    assert_eq!(limited["requests"]["cpu"], "50m");
    assert_eq!(limited["limits"]["cpu"], "50m");
}

#[test]
fn bounds_on_memory_follow_the_containers_limit_unless_that_is_the_pods() {
    let bounds = |pod: &Value| {
        let is_bound = |arg: &String| arg.starts_with("--max-held") || arg.starts_with("--max-connections=");
        args(pod).into_iter().filter(is_bound).collect::<Vec<_>>()
    };
    assert_eq!(bounds(&app()), [""; 0]);
    assert_eq!(bounds(&annotated("memory-limit", "1Gi")), [""; 0]);
    let of_pod = with("/spec/resources", json!({"limits": {"memory": "1Gi"}}));
    assert_eq!(bounds(&of_pod), ["--max-held=128MiB", "--max-connections=1560"]);
}

#[test]
fn with_the_policy_from_a_volume_the_pod_gets_no_token() {
    let token = |pod: &Value| patched(pod).to_string().contains("serviceAccountToken");
    assert!(token(&app()) && args(&app()).iter().any(|arg| arg.starts_with("--policy-configmap=")));
    let volume = annotated("policy-source", "volume");
    assert!(!token(&volume) && !args(&volume).iter().any(|arg| arg.starts_with("--policy-configmap=")));
}

#[test]
fn every_mistake_in_the_annotations_is_told_at_once_with_what_is_right() {
    let mut pod = app();
    pod["metadata"]["annotations"] = json!({
        "callback-guard.io/listen-prot": "1",
        "callback-guard.io/colour": "red",
        "callback-guard.io/inject": "enabled",
        "callback-guard.io/injected-hash": "0",
        "callback-guard.io/admin-port": 9090,
        "callback-guard.io/log-level": "loud",
        "callback-guard.io/workers": "0",
        "callback-guard.io/cpu-request": "2",
        "callback-guard.io/cpu-limit": "1",
        "callback-guard.io/tls-secret": "No_Name",
        "callback-guard.io/app-pre-stop-sleep": "1500ms",
        "unrelated.io/listen-port": "x",
    });
    pod["spec"]["volumes"] = json!([{"name": "callback-guard-tls"}]);
    let found = refused(&pod).join("\n");
    for part in [
        "did you mean \"callback-guard.io/listen-port\"?",
        "Unknown annotation: known under callback-guard.io/ are upstream-port, ",
        "Not allowed: is a label: ",
        "Not allowed: the hash that the label",
        "Invalid value: 9090: must be a string: put it in quotes",
        "Invalid value: \"loud\": must be one of off, error, warn, info, debug",
        "Invalid value: \"0\": must be a whole number, 1 to 64",
        "Invalid value: \"2\": is more than callback-guard.io/cpu-limit, which is 1",
        "Invalid value: \"No_Name\": must be a name, lower-case",
        "Invalid value: \"1500ms\": must be a duration, whole seconds, 1s to 60m, or `none`",
        "\"callback-guard-tls\": the sidecar has a volume of that name",
    ] {
        assert!(found.contains(part), "{part} is not in\n{found}");
    }
    assert_eq!(found.lines().count(), 11, "{found}");
}

#[test]
fn every_annotation_takes_its_own_default_and_a_value_of_each_kind_acts() {
    for row in annotations::TABLE.iter().filter(|row| row.kind.check(row.default).is_ok()) {
        assert!(
            matches!(by_name(&annotated(row.name, row.default)), Injection::Patch { .. }),
            "{}",
            row.name
        );
    }
    let plain = patched(&app()).to_string();
    for (name, value, shows) in [
        ("upstream-port", "3000", "--upstream=http://localhost:3000"),
        ("upstream-form", "query", "--upstream-form=query"),
        ("upstream-reuse", "false", "--upstream-reuse=false"),
        ("listen-port", "8443", "\"containerPort\":8443"),
        ("admin-port", "9090", "[::]:9090"),
        ("policy-configmap", "mine", "$(POD_NAMESPACE)/mine"),
        ("tls-secret", "mine", "\"secretName\":\"mine\""),
        ("image", "registry.example/guard@sha256:0", "\"image\":\"registry.example/guard@sha256:0\""),
        ("image-pull-policy", "Never", "\"imagePullPolicy\":\"Never\""),
        ("cpu-request", "50m", "\"cpu\":\"50m\""),
        ("cpu-limit", "2", "\"cpu\":\"2\""),
        ("memory-request", "32Mi", "\"memory\":\"32Mi\""),
        ("memory-limit", "2Gi", "\"memory\":\"2Gi\""),
        ("run-as-user", "1000", "\"runAsUser\":1000"),
        ("workers", "4", "--workers=4"),
        ("after-in-flight", "8", "--after-in-flight=8"),
        ("after-queue", "5000", "--after-queue=5000"),
        ("log-level", "debug", "--log-level=debug"),
        ("drain-delay", "0s", "--drain-delay=0s"),
        ("drain-timeout", "1m", "--drain-timeout=1m"),
    ] {
        assert!(patched(&annotated(name, value)).to_string().contains(shows), "{name}");
        assert!(!plain.contains(shows), "{name}");
    }
    assert_eq!(
        refused(&annotated("admin-port", "18443")),
        ["Invalid value: \"18443\": callback-guard.io/listen-port is the same"]
    );
}

#[test]
fn a_pod_of_another_shape_is_refused_and_says_where() {
    for (pod, pointer) in [
        (json!({}), "/spec/containers"),
        (json!(null), "/spec/containers"),
        (json!({"spec": {"containers": []}}), "/spec/containers"),
        (json!({"spec": {"containers": {}}}), "/spec/containers"),
        (json!({"spec": {"containers": ["x"]}}), "/spec/containers/0"),
        (with("/spec/volumes", json!({})), "/spec/volumes"),
        (with("/spec/initContainers", json!("x")), "/spec/initContainers"),
        (with("/metadata/annotations", json!([])), "/metadata/annotations"),
    ] {
        match by_name(&pod) {
            Injection::Refused(problems) => assert_eq!(problems[0].pointer, pointer, "{pod}"),
            other @ (Injection::Patch { .. } | Injection::Skipped(_)) => panic!("{pod}: {other:?}"),
        }
    }
}

#[test]
fn every_problem_has_a_reason_and_its_twin_has_none() {
    let label = |value: Value| with("/metadata/labels/callback-guard.io~1inject", value);
    let volumes = |name: &str| with("/spec/volumes", json!([{"name": name}]));
    let long = |bytes: usize| with("/metadata/annotations/x", "x".repeat(bytes).into());
    let mut seen = Vec::new();
    for (pod, reason, twin) in [
        (label("true".into()), Reason::InvalidLabel, label("enabled".into())),
        (label(true.into()), Reason::InvalidLabel, label("enabled".into())),
        (with("/spec/containers", json!([])), Reason::NoContainers, app()),
        (with("/spec/containers", Value::Null), Reason::NoContainers, app()),
        (with("/spec/containers/0", json!(1)), Reason::Malformed, with("/spec/containers/0", json!({}))),
        (with("/spec/volumes", json!("x")), Reason::Malformed, with("/spec/volumes", json!([]))),
        (
            with("/metadata/annotations", json!(1)),
            Reason::Malformed,
            with("/metadata/annotations", json!({})),
        ),
        (volumes("callback-guard-tls"), Reason::VolumeInUse, volumes("tls")),
        (long(ANNOTATION_BYTES), Reason::AnnotationsTooLong, long(ANNOTATION_BYTES - 1)),
        (annotated("workers", "0"), Reason::InvalidAnnotation, annotated("workers", "1")),
        (annotated("workers", 1), Reason::InvalidAnnotation, annotated("workers", "1")),
        (annotated("inject", "enabled"), Reason::InvalidAnnotation, annotated("workers", "1")),
        (annotated("injected-by", "policy"), Reason::InvalidAnnotation, annotated("workers", "1")),
        (annotated("wrokers", "1"), Reason::UnknownAnnotation, annotated("workers", "1")),
        (annotated("admin-port", "18443"), Reason::Conflict, annotated("admin-port", "18444")),
        (annotated("upstream-port", "19090"), Reason::Conflict, annotated("upstream-port", "19091")),
        (annotated("app-pre-stop-sleep", "30s"), Reason::Conflict, annotated("app-pre-stop-sleep", "29s")),
    ] {
        match by_name(&pod) {
            Injection::Refused(problems) => {
                let reasons: Vec<_> = problems.iter().map(|problem| problem.reason).collect();
                assert_eq!(reasons, [reason], "{problems:?}");
            }
            other @ (Injection::Patch { .. } | Injection::Skipped(_)) => panic!("{other:?}, not {reason}"),
        }
        assert!(matches!(by_name(&twin), Injection::Patch { .. }), "{reason}: {:?}", by_name(&twin));
        assert!(!reason.is_skipped(), "{reason}");
        seen.push(reason);
    }
    let never_seen: Vec<_> =
        Reason::ALL.into_iter().filter(|reason| !reason.is_skipped() && !seen.contains(reason)).collect();
    assert_eq!(never_seen, []);
}

fn policies() -> Vec<Value> {
    let namespaces = Some(vec!["shop".to_owned(), "bar".to_owned()]);
    admission::objects(&Installation { namespaces, ..installation() })
}

/// Every expression of a policy, variables with their names.
fn expressions(policy: &Value) -> Vec<(String, String)> {
    let spec = &policy["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<_> =
        list(&spec["variables"]).iter().map(|one| (text(&one["name"]), text(&one["expression"]))).collect();
    for one in list(&spec["mutations"]) {
        found.push((String::new(), text(&one["jsonPatch"]["expression"])));
    }
    for one in list(&spec["validations"]) {
        found.push((String::new(), text(&one["expression"])));
        found.push((String::new(), text(&one["messageExpression"])));
    }
    found
}

#[test]
fn every_row_of_the_table_is_in_the_policies_with_its_check_and_its_words() {
    let policies = policies();
    let text = |kind: &str, name: &str| {
        let policy = policies.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        let policy = policy.unwrap_or_else(|| panic!("no {kind} {name}"));
        expressions(policy).into_iter().map(|(_, text)| text + "\n").collect::<String>()
    };
    let all = [
        text("MutatingAdmissionPolicy", "callback-guard"),
        text("ValidatingAdmissionPolicy", "callback-guard"),
        text("ValidatingAdmissionPolicy", "callback-guard-workloads"),
        text("ValidatingAdmissionPolicy", "callback-guard-namespaces"),
    ];
    for row in annotations::TABLE {
        for text in &all {
            assert!(text.contains(&format!("'callback-guard.io/{}'", row.name)), "{}", row.name);
        }
        for text in all.iter().filter(|_| row.is_setting()) {
            let words = template::quoted(&format!(": {}", row.kind.wanted()));
            assert!(text.contains(&words), "{}: {words}", row.name);
        }
        if row.effect == annotations::Effect::Flag {
            assert!(all[0].contains(&format!("['--{}=' + variables.", row.name)), "{}", row.name);
        }
    }
    // Those that did not ask are not looked at, and the API server rejects a malformed pod.
    let never_warned = [Reason::NotAsked, Reason::Disabled, Reason::Malformed];
    for reason in Reason::ALL.into_iter().filter(|reason| !never_warned.contains(reason)) {
        assert!(all[1].contains(&format!("'{reason}: ")), "{reason}");
    }
    let trust = text("ValidatingAdmissionPolicy", "callback-guard-trust");
    for notice in Notice::ALL {
        let name = format!("'{}: ", notice.words().name);
        assert!(all.iter().chain([&trust]).any(|text| text.contains(&name)), "{name}");
    }
}

#[test]
fn a_variable_is_defined_before_it_is_used_and_used_where_it_is_defined() {
    for policy in policies().iter().filter(|one| one["spec"]["variables"].is_array()) {
        let expressions = expressions(policy);
        let mut known: Vec<&str> = Vec::new();
        for (name, text) in &expressions {
            for used in text.split("variables.").skip(1) {
                let used: String = used.chars().take_while(char::is_ascii_alphanumeric).collect();
                assert!(known.contains(&used.as_str()), "{}: {used} in {text}", policy["metadata"]["name"]);
            }
            known.push(name);
        }
        for name in known.iter().filter(|name| !name.is_empty()) {
            let reference = format!("variables.{name}");
            let used = expressions.iter().any(|(_, text)| text.contains(&reference));
            assert!(used, "{}: {name} is not used", policy["metadata"]["name"]);
        }
    }
}

#[test]
fn the_hash_changes_with_the_settings_and_not_with_the_namespaces() {
    let of = |installation: &Installation| admission::hash(installation);
    let plain = of(&installation());
    assert_eq!(plain.len(), 16);
    let more = Installation { namespaces: Some(vec!["shop".to_owned()]), ..installation() };
    assert_eq!(of(&more), plain);
    let mut other = installation();
    other.settings.insert("workers", "2".to_owned());
    assert_ne!(of(&other), plain);
    let other = Installation { image_pull_secrets: vec!["a".to_owned()], ..installation() };
    assert_ne!(of(&other), plain);
}

#[test]
fn texts_are_literals_of_cel_and_names_its_identifiers() {
    assert_eq!(template::quoted("it's\\ \n"), r"'it\'s\\ \n'");
    assert_eq!(template::identifier("cpu-limit-in-force"), "cpuLimitInForce");
    assert_eq!(template::identifier("image"), "image");
}
