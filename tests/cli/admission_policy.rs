//! `admission-policy`: its mistakes, and the objects that it prints. What a real API server makes of them is tested in
//! `tests/cluster/admission`, and what Helm makes of its template in `tests/cluster/helm.rs`.

use serde_json::Value;

use crate::program::Folder;

const BEHIND: &str = "\nFor the flags and their defaults: callback-guard admission-policy --help\n";

/// A command line that is right.
const GOOD: &str = "admission-policy --namespaces a,b --own-namespace guard --image guard:1 --set run-as-user=none --image-pull-secrets p";

fn printed(line: &str) -> String {
    Folder::new().run(line).code(0).err("").out
}

/// The objects of a stream, every one of which is one.
fn objects(stream: &str) -> Vec<Value> {
    let documents = stream.strip_prefix("---\n").expect("begins with a document").split("\n---\n");
    documents
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}")))
        .collect()
}

/// Kind, namespace and name of an object.
fn title(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// The hash in the label of the pods.
fn hash(stream: &str) -> String {
    let (_, label) = stream.split_once("'callback-guard.io/injected': '").expect("the label");
    let label = label.split_once('\'').expect("a literal").0;
    let (version, hash) = label.rsplit_once('-').expect("version and hash");
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert!(hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{label}");
    hash.to_owned()
}

#[test]
fn every_mistake_is_reported_at_once_with_its_flag() {
    let folder = Folder::new();
    let line = "admission-policy --namespaces a,A/b,kube-system,guard --own-namespace guard --image= --policy-configmap -x \
                --set nothing --set lisen-port=1 --set workers=0 --set log-level=off --set log-level=info --set image=a \
                --set inject=enabled --image-pull-secrets B --bogus --helm=maybe";
    let ran = folder.run(line).code(2).out("");
    ran.problems_of(
        &[
            "--policy-configmap",
            "-x",
            "--bogus",
            "--helm",
            "--namespaces",
            "--namespaces",
            "--namespaces",
            "--image",
            "--set",
            "--set",
            "--set",
            "--set",
            "--set",
            "--set",
            "--image-pull-secrets",
        ],
        BEHIND,
    )
    .err_has("--namespaces: Invalid value: \"A/b\": must be a name of a namespace, ")
    .err_has("--namespaces: \"guard\" is --own-namespace, whose pods never get a sidecar\n")
    .err_has("--namespaces: \"kube-system\": pods there never get a sidecar\n")
    .err_has("--set: \"nothing\" is not NAME=VALUE; the names are upstream-port, ")
    .err_has("--set: lisen-port: Unknown annotation: did you mean \"callback-guard.io/listen-port\"?\n")
    .err_has("--set: workers: Invalid value: \"0\": must be a whole number, 1 to 64\n")
    .err_has("--set: log-level: is set twice, to \"off\" and to \"info\"\n")
    .err_has("--set: image: has a flag of its own: --image\n")
    .err_has("--set: inject: Not allowed: is a label")
    .err_has("--image-pull-secrets: Invalid value: \"B\"");
}

#[test]
fn the_namespaces_must_be_there() {
    let folder = Folder::new();
    for (line, flags) in [
        ("admission-policy", &["--namespaces"][..]),
        ("admission-policy --namespaces=", &["--namespaces"]),
        ("admission-policy --namespaces , --set x", &["--namespaces", "--set"]),
        ("admission-policy --helm=false --own-namespace A", &["--namespaces", "--own-namespace"]),
        ("admission-policy --namespaces kube-node-lease", &["--namespaces"]),
    ] {
        folder.run(line).code(2).out("").problems_of(flags, BEHIND);
    }
    folder.run("admission-policy").err_has("--namespaces: is missing\n");
    // Negative twin.
    folder.run("admission-policy --namespaces a").code(0);
    folder.program("admission-policy").env("CALLBACK_GUARD_NAMESPACES", "a").run().code(0);
}

#[test]
fn a_template_takes_no_other_flag() {
    let folder = Folder::new();
    for other in [
        "--namespaces a",
        "--own-namespace guard",
        "--image a:1",
        "--policy-configmap a",
        "--tls-secret a",
        "--set workers=2",
        "--image-pull-secrets a",
        "--trust-namespaces a",
        "--external-tls a",
    ] {
        let ran = folder.run(&format!("admission-policy --helm {other}")).code(2).out("");
        ran.problems_of(&["--helm"], BEHIND).err_has("from the chart's values: remove the other flags\n");
    }
    let both = folder.run("admission-policy --helm --set workers=0").code(2).out("");
    both.problems_of(&["--set"], BEHIND);
    let template = folder.run("admission-policy --helm").code(0).err("").out;
    assert!(
        template.starts_with("{{/* Generated by callback-guard admission-policy --helm."),
        "{template:.80}"
    );
    folder.run("admission-policy --helm=true").code(0).out(&template);
    assert!(!has_marker(&template), "a marker is left");
}

/// Whether a text has one of the generator's own markers.
fn has_marker(text: &str) -> bool {
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let parts: Vec<_> = text.split('@').collect();
    // What is between two of them.
    parts.len() > 2 && parts[1..parts.len() - 1].iter().any(|part| is_name(part))
}

#[test]
fn the_objects_are_there_in_the_order_in_which_they_are_applied() {
    let printed = printed(GOOD);
    let objects = objects(&printed);
    let names: Vec<_> = objects.iter().map(title).collect();
    let expected = [
        "MutatingAdmissionPolicy /callback-guard",
        "MutatingAdmissionPolicyBinding /callback-guard-pod",
        "MutatingAdmissionPolicyBinding /callback-guard-namespace",
        "ValidatingAdmissionPolicy /callback-guard",
        "ValidatingAdmissionPolicyBinding /callback-guard-pod",
        "ValidatingAdmissionPolicyBinding /callback-guard-namespace",
        "ValidatingAdmissionPolicy /callback-guard-namespaces",
        "ValidatingAdmissionPolicyBinding /callback-guard-namespaces",
        "ValidatingAdmissionPolicy /callback-guard-workloads",
        "ValidatingAdmissionPolicyBinding /callback-guard-workloads",
        "ValidatingAdmissionPolicy /callback-guard-trust",
        "ValidatingAdmissionPolicyBinding /callback-guard-trust-pod",
        "ValidatingAdmissionPolicyBinding /callback-guard-trust-namespace",
        "MutatingAdmissionPolicy /callback-guard-trust",
        "MutatingAdmissionPolicyBinding /callback-guard-trust-pod",
        "MutatingAdmissionPolicyBinding /callback-guard-trust-namespace",
        "Role a/callback-guard",
        "RoleBinding a/callback-guard",
        "Role b/callback-guard",
        "RoleBinding b/callback-guard",
    ];
    assert_eq!(names, expected);
    // A binding is behind its policy and names it.
    for (at, binding) in
        objects.iter().enumerate().filter(|(_, object)| object["spec"]["policyName"].is_string())
    {
        let policy = objects[..at].iter().find(|object| {
            binding["kind"] == format!("{}Binding", object["kind"].as_str().unwrap_or_default())
                && binding["spec"]["policyName"] == object["metadata"]["name"]
        });
        assert!(policy.is_some(), "{binding}");
    }
    assert!(!has_marker(&printed) && !printed.contains("{{"), "something is not filled in");
}

#[test]
fn a_marker_is_seen() {
    assert!(has_marker("a: '@own-namespace@'") && has_marker("x@y.z @hash@"));
    assert!(!has_marker("a@b") && !has_marker("a@ b@c"));
}

#[test]
fn an_image_with_the_name_of_a_marker_is_printed_as_it_is() {
    for image in
        ["@settings@", "x@namespaces@@hash@y", "@own-namespace@@pull-secrets@@namespace@@policy-configmap@"]
    {
        let printed = printed(&format!("admission-policy --namespaces a --image {image}"));
        let settings = objects(&printed)[0]["spec"]["variables"].as_array().expect("a list").iter().find_map(
            |variable| {
                let expression =
                    variable["expression"].as_str().filter(|_| variable["name"] == "settings")?;
                Some(serde_json::from_str::<Value>(expression).expect("JSON"))
            },
        );
        assert_eq!(settings.expect("the settings")["image"], image);
    }
}

#[test]
fn the_output_is_the_same_each_time() {
    for line in [GOOD, "admission-policy --helm"] {
        assert_eq!(printed(line), printed(line));
    }
    // The order of the flags has no meaning, and neither have a name that comes twice and the prefix of an annotation.
    let other = "admission-policy --image-pull-secrets p,p --image guard:1 --set callback-guard.io/run-as-user=none --own-namespace guard \
                 --namespaces a --namespaces b,a";
    assert_eq!(printed(GOOD), printed(other));
}

#[test]
fn the_hash_of_the_label_is_over_what_a_pod_gets_and_nothing_else() {
    let base = printed(GOOD);
    for more in ["--set workers=2", "--set log-level=info", "--tls-secret a", "--policy-configmap a"] {
        assert_ne!(hash(&printed(&format!("{GOOD} {more}"))), hash(&base), "{more}");
    }
    assert_ne!(hash(&printed(&format!("{GOOD},q"))), hash(&base), "another pull secret");
    assert_ne!(hash(&printed(&GOOD.replace("guard:1", "guard:2"))), hash(&base), "another image");
    for (old, new) in [("a,b", "a,b,c"), ("a,b", "c"), ("--own-namespace guard", "--own-namespace other")] {
        let other = printed(&GOOD.replace(old, new));
        assert_ne!(other, base);
        assert_eq!(hash(&other), hash(&base), "{new}");
    }
}

#[test]
fn the_policy_has_the_label_that_it_writes_and_no_other_object_has_it() {
    let printed = printed(GOOD);
    let mut labeled = objects(&printed);
    labeled.retain(|object| !object["metadata"]["labels"]["callback-guard.io/injected"].is_null());
    assert_eq!(labeled.len(), 1, "{labeled:?}");
    assert_eq!(
        (&labeled[0]["kind"], &labeled[0]["metadata"]["name"]),
        (&"MutatingAdmissionPolicy".into(), &"callback-guard".into())
    );
    let label = format!("{}-{}", env!("CARGO_PKG_VERSION"), hash(&printed));
    assert_eq!(labeled[0]["metadata"]["labels"]["callback-guard.io/injected"], label);
}

const CONTROLLER: &str = " --controller --trust-namespaces openim,a,other --trust-namespaces openim --external-tls b --tls-secret t";

/// The rights of each Role that is printed for the controller: its title, and a line for each resource.
fn rights(stream: &str) -> Vec<(String, Vec<String>)> {
    let list = |value: &Value| {
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.collect::<Vec<_>>().join(",")
    };
    let line = |rule: &Value| {
        let (group, resources) = (list(&rule["apiGroups"]), list(&rule["resources"]));
        let names =
            if rule["resourceNames"].is_null() { "*".to_owned() } else { list(&rule["resourceNames"]) };
        format!("{group}/{resources} {names}: {}", list(&rule["verbs"]))
    };
    let roles = objects(stream)
        .into_iter()
        .filter(|object| object["metadata"]["name"] == "callback-guard-controller");
    let roles = roles.filter(|object| object["rules"].is_array());
    roles
        .map(|role| (title(&role), role["rules"].as_array().expect("rules").iter().map(line).collect()))
        .collect()
}

#[test]
fn the_controller_gets_a_service_account_and_the_least_rights_in_each_namespace() {
    let plain = printed(&format!("{GOOD} --tls-secret t"));
    let with_controller = printed(&format!("{GOOD}{CONTROLLER}"));
    let added = with_controller.strip_prefix(&plain).expect("what is printed without it comes first");
    let titles: Vec<_> = objects(added).iter().map(title).collect();
    let name = "callback-guard-controller";
    let mut expected = vec![format!("ServiceAccount guard/{name}")];
    for namespace in ["guard", "a", "b", "openim", "other"] {
        expected.extend(["Role", "RoleBinding"].map(|kind| format!("{kind} {namespace}/{name}")));
    }
    expected.extend(["ClusterRole", "ClusterRoleBinding"].map(|kind| format!("{kind} /{name}")));
    assert_eq!(titles, expected);

    let served = [
        "/configmaps *: get,list,watch",
        "/configmaps callback-guard-ca,callback-guard-policy: create,patch",
        "/pods *: list,watch",
        "/events *: create,patch",
    ];
    let trusting = ["/configmaps callback-guard-ca: list,watch,create,patch"];
    let expected = [
        (
            "Role guard",
            vec![
                "/secrets callback-guard-ca: list,watch,create,patch",
                "coordination.k8s.io/leases callback-guard-controller: list,watch,create,patch,update",
                "/events *: create,patch",
            ],
        ),
        ("Role a", [&["/secrets t: list,watch,create,patch"], &served[..]].concat()),
        ("Role b", served.to_vec()),
        ("Role openim", trusting.to_vec()),
        ("Role other", trusting.to_vec()),
        (
            "ClusterRole ",
            vec![
                "/namespaces a,b: list,watch",
                "admissionregistration.k8s.io/mutatingadmissionpolicies callback-guard: list,watch",
            ],
        ),
    ];
    let found = rights(added);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((title, rights), (role, expected)) in found.into_iter().zip(expected) {
        assert_eq!(
            (title, rights),
            (format!("{role}/{name}"), expected.into_iter().map(str::to_owned).collect())
        );
    }
}

#[test]
fn every_binding_of_the_controller_is_of_its_role_to_its_service_account() {
    let objects = objects(&printed(&format!("{GOOD}{CONTROLLER}")));
    let name = "callback-guard-controller";
    let ours: Vec<_> = objects.iter().filter(|object| object["metadata"]["name"] == name).collect();
    let bindings: Vec<_> = ours.iter().filter(|object| object["subjects"].is_array()).collect();
    assert_eq!(bindings.len(), 6);
    for binding in bindings {
        let subject = serde_json::json!({"kind": "ServiceAccount", "name": name, "namespace": "guard"});
        assert_eq!(binding["subjects"], serde_json::json!([subject]));
        let role = ours.iter().find(|object| {
            object["kind"] == binding["roleRef"]["kind"]
                && object["metadata"]["namespace"] == binding["metadata"]["namespace"]
        });
        let role = role.unwrap_or_else(|| panic!("{binding}"));
        assert_eq!(binding["kind"], format!("{}Binding", role["kind"].as_str().expect("a kind")));
        assert_eq!((&binding["roleRef"]["name"], &role["metadata"]["name"]), (&name.into(), &name.into()));
    }
}

#[test]
fn mistakes_about_the_controller_are_reported_at_once() {
    let folder = Folder::new();
    for (line, flags, sentence) in [
        ("--controller", &["--own-namespace"][..], "--own-namespace: is missing beside --controller\n"),
        ("--controller --own-namespace=", &["--own-namespace"], "is missing beside --controller"),
        ("--controller=yes", &["--controller"], "--controller: \"yes\" is none of true, false\n"),
        (
            "--helm=x --controller=y",
            &["--helm", "--controller"],
            "--controller: \"y\" is none of true, false\n",
        ),
        ("--trust-namespaces b", &["--trust-namespaces"], "--trust-namespaces: needs --controller\n"),
        ("--external-tls a", &["--external-tls"], "--external-tls: needs --controller\n"),
        ("--controller=false --external-tls a", &["--external-tls"], "needs --controller"),
        (
            "--controller --own-namespace g --trust-namespaces B,kube-system,g --external-tls A/b,c",
            &[
                "--trust-namespaces",
                "--trust-namespaces",
                "--trust-namespaces",
                "--external-tls",
                "--external-tls",
            ],
            "--external-tls: \"c\" is not in --namespaces\n",
        ),
    ] {
        let ran = folder.run(&format!("admission-policy --namespaces a {line}")).code(2).out("");
        ran.problems_of(flags, BEHIND).err_has(sentence);
    }
    let ran = folder.run(
        "admission-policy --namespaces a --own-namespace g --controller --trust-namespaces g,kube-system",
    );
    ran.err_has("--trust-namespaces: \"g\" is --own-namespace, whose pods never get the CA\n")
        .err_has("--trust-namespaces: \"kube-system\": pods there never get the CA\n");
    let both = folder.run("admission-policy --helm --controller").code(2).out("");
    both.problems_of(&["--controller"], BEHIND)
        .err_has("--controller: cannot be combined with --helm: remove one of them\n");
    // Negative twins.
    folder.run("admission-policy --helm --controller=false --trust-namespaces=").code(0);
    folder.run("admission-policy --namespaces a --controller --own-namespace g").code(0);
    let lists = ("CALLBACK_GUARD_TRUST_NAMESPACES", "CALLBACK_GUARD_EXTERNAL_TLS");
    let program = folder.program("admission-policy --namespaces a").env(lists.0, "").env(lists.1, "");
    program.run().code(0);
}

#[test]
fn settings_with_which_no_pod_would_get_a_sidecar_are_refused() {
    for (settings, wanted) in [
        (
            "cpu-request=2,cpu-limit=1",
            "--set: cpu-request: Invalid value: \"2\": is more than cpu-limit, which is 1",
        ),
        (
            "listen-port=9000,admin-port=9000",
            "--set: admin-port: Invalid value: \"9000\": listen-port is the same",
        ),
        ("listen-port=19090", "--set: listen-port: Invalid value: \"19090\": admin-port is the same"),
        (
            "upstream-port=18443",
            "--set: upstream-port: Invalid value: \"18443\": must not be a port of the sidecar itself",
        ),
    ] {
        for command in ["admission-policy --namespaces a", "inject -f none.yaml"] {
            Folder::new().run(&format!("{command} --set {settings}")).code(2).err_has(wanted);
        }
    }
    Folder::new().run("admission-policy --namespaces a --set cpu-request=1,cpu-limit=1").code(0);
}

#[test]
fn the_default_image_is_a_warning_and_another_is_none() {
    let warning = "--image: warning: callback-guard:";
    Folder::new().run("admission-policy --namespaces a").code(0).err_has(warning);
    Folder::new().run("admission-policy --namespaces a --image registry.example/guard:1").code(0).err("");
    Folder::new().run("admission-policy --helm").code(0).err("");
}
