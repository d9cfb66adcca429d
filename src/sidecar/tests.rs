use serde_json::{Value, json};

use super::patch::Operation;
use super::*;

fn spec() -> SidecarSpec {
    SidecarSpec {
        image: "callback-guard:1".to_owned(),
        policy_configmap: "callback-guard-policy".to_owned(),
        tls_secret: "callback-guard-tls".to_owned(),
        own_namespace: Some("callback-guard".to_owned()),
        namespaces: None,
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
    with(&annotations::pointer(name), value.into())
}

fn by_name(pod: &Value) -> Injection {
    inject(pod, &Request { namespace: Some("shop"), asked: Asked::ByName }, &spec())
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
        let spec =
            SidecarSpec { namespaces: Some(vec!["shop".to_owned(), "kube-system".to_owned()]), ..spec() };
        let asked = Asked::ByLabel { of_namespace };
        match inject(pod, &Request { namespace: Some(namespace), asked }, &spec) {
            Injection::Patch { .. } => "injected",
            Injection::Skipped(reason) => reason.name(),
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
    assert_eq!(by_name(&label("disabled")), Injection::Skipped(Skip::Disabled));
    assert!(matches!(by_name(&app()), Injection::Patch { .. }));
}

#[test]
fn each_pod_of_the_never_list_is_skipped_by_name_and_its_twin_is_not() {
    let port = |number: u32, name: &str| json!([{"name": name, "containerPort": number}]);
    let init = |name: &str| json!([{"name": name, "image": "x"}]);
    for (pointer, skipped, twin, reason) in [
        ("/metadata/annotations/kubernetes.io~1config.mirror", json!("a1b2"), Value::Null, Skip::MirrorPod),
        ("/spec/hostNetwork", json!(true), json!(false), Skip::HostNetwork),
        ("/spec/os/name", json!("windows"), json!("linux"), Skip::Windows),
        ("/spec/nodeSelector/kubernetes.io~1os", json!("windows"), json!("linux"), Skip::Windows),
        ("/spec/containers/0/ports", port(18443, "x"), port(8443, "x"), Skip::PortInUse),
        ("/spec/containers/0/ports", port(19090, "x"), port(9090, "x"), Skip::PortInUse),
        ("/spec/containers/0/ports", port(1, "callback-guard"), port(1, "guard"), Skip::PortInUse),
        ("/spec/initContainers", init("callback-guard"), init("callback"), Skip::AlreadyInjected),
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
fn names_of_skips_are_unlike_each_other() {
    let mut names: Vec<_> = Skip::ALL.iter().map(|skip| skip.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Skip::ALL.len());
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
        assert_eq!(by_name(&after), Injection::Skipped(Skip::AlreadyInjected));
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
fn the_app_is_asked_at_its_only_port_or_at_the_one_that_is_said() {
    let declared = |ports: &[u32]| {
        let ports: Vec<_> = ports.iter().map(|port| json!({"containerPort": port})).collect();
        with("/spec/containers/0/ports", json!(ports))
    };
    let asked = |pod: &Value| match by_name(pod) {
        Injection::Patch { upstream_port, warnings, .. } => (upstream_port, warnings.len()),
        other @ (Injection::Skipped(_) | Injection::Refused(_)) => panic!("{other:?}"),
    };
    assert_eq!(asked(&app()), (8080, 0));
    assert_eq!(asked(&declared(&[3000])), (3000, 0));
    assert_eq!(asked(&declared(&[3000, 3000])), (3000, 0));
    assert_eq!(asked(&declared(&[3000, 8080])), (8080, 0));
    assert_eq!(asked(&declared(&[3000, 9100])), (8080, 1));
    let mut said = declared(&[3000, 9100]);
    said["metadata"]["annotations"] = json!({"callback-guard.io/upstream-port": "3000"});
    assert_eq!(asked(&said), (3000, 0));
    assert_eq!(
        refused(&annotated("upstream-port", "18443")),
        ["Invalid value: \"18443\": must not be a port of the sidecar itself"]
    );
}

#[test]
fn a_guaranteed_pod_stays_so_and_another_gets_requests_below_its_limits() {
    let of = |pod: &Value| patched(pod)["spec"]["initContainers"][0]["resources"].clone();
    let limits = json!({"cpu": "1", "memory": "256Mi"});
    let with_resources = |value: Value| with("/spec/containers/0/resources", value);
    let burstable = json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": limits});
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
        (with("/spec/resources", json!({"limits": {"cpu": "1"}})), &Value::Null),
        (with("/spec/resources", json!({})), &burstable),
    ] {
        assert_eq!(of(&pod), *expected, "{pod}");
    }
    let small = of(&annotated("memory-limit", "32Mi"));
    assert_eq!(small["requests"], json!({"cpu": "100m", "memory": "32Mi"}));
    assert!(args(&app()).contains(&"--max-held=128MiB".to_owned()));
    assert!(args(&annotated("memory-limit", "1Gi")).contains(&"--max-held=512MiB".to_owned()));
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
        "Not allowed: a hash of what was injected",
        "Invalid value: 9090: must be a string: put it in quotes",
        "Invalid value: \"loud\": must be off, error, warn, info, debug",
        "Invalid value: \"0\": must be a whole number, 1 to 64",
        "Invalid value: \"2\": is more than callback-guard.io/cpu-limit, which is 1",
        "Invalid value: \"No_Name\": must be a name, lower-case",
        "Invalid value: \"1500ms\": must be a duration, whole seconds, 1s to 60m",
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
        ("upstream-port", "3000", "--upstream=http://127.0.0.1:3000"),
        ("upstream-form", "query", "--upstream-form=query"),
        ("listen-port", "8443", "\"containerPort\":8443"),
        ("admin-port", "9090", "[::]:9090"),
        ("policy-configmap", "mine", "$(POD_NAMESPACE)/mine"),
        ("tls-secret", "mine", "\"secretName\":\"mine\""),
        ("image", "registry.example/guard@sha256:0", "\"image\":\"registry.example/guard@sha256:0\""),
        ("image-pull-policy", "Never", "\"imagePullPolicy\":\"Never\""),
        ("cpu-request", "50m", "\"cpu\":\"50m\""),
        ("cpu-limit", "2", "\"cpu\":\"2\""),
        ("memory-request", "32Mi", "\"memory\":\"32Mi\""),
        ("memory-limit", "2Gi", "--max-held=1024MiB"),
        ("workers", "4", "--workers=4"),
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
