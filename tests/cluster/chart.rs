//! The chart `charts/callback-guard`, as Helm itself renders it. This takes no cluster, only Go, which builds Helm; what an
//! installation does is in `node`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::Value;

use super::cluster::{clean, run, script};
use super::helm::{objects, printed};
use super::operator::RELEASE;
use super::support::Folder;

mod node;

/// The chart, or another place of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn chart() -> PathBuf {
    repository("charts/callback-guard")
}

fn helm(arguments: &[&str], chart: &Path) -> Result<String, String> {
    run(clean(script()).arg("helm").args(arguments).arg(chart), None)
}

/// The chart of the repository, rendered with more arguments.
fn try_template(arguments: &[&str]) -> Result<String, String> {
    helm(&[&["template", RELEASE, "--namespace", RELEASE], arguments].concat(), &chart())
}

#[track_caller]
fn template(arguments: &[&str]) -> String {
    try_template(arguments).unwrap_or_else(|said| panic!("{arguments:?}\n{said}"))
}

/// The same with values as YAML.
fn with_values(values: &str, arguments: &[&str]) -> Result<String, String> {
    let folder = Folder::new();
    let path = folder.write("values.yaml", values);
    try_template(&[&["--values", path.to_str().expect("UTF-8")], arguments].concat())
}

/// The files of example values, by name.
fn examples() -> BTreeMap<String, String> {
    let files = fs::read_dir(chart().join("ci")).expect("a folder of the chart");
    let paths = files.map(|file| file.expect("an entry").path());
    let named = paths.map(|path| {
        let name = path.file_name().expect("a name").to_string_lossy();
        let name = name
            .strip_suffix("-values.yaml")
            .unwrap_or_else(|| panic!("{name}: NAME-values.yaml"))
            .to_owned();
        (name, path.to_str().expect("UTF-8").to_owned())
    });
    named.collect()
}

/// What Helm prints, without what a template says of its origin, and without the expressions of the admission policies: those are
/// compared with what the program prints.
fn shortened(rendered: &str) -> String {
    let mut text = String::new();
    let mut skipped = None;
    for line in rendered.lines() {
        let indent = line.len() - line.trim_start().len();
        // A list is as deep as its key.
        if skipped
            .is_some_and(|depth| indent > depth || (indent == depth && line.trim_start().starts_with("- ")))
        {
            continue;
        }
        skipped = None;
        let key = line.trim();
        if ["variables:", "validations:", "mutations:"].contains(&key) && indent == 2 {
            skipped = Some(indent);
            text.push_str(&format!("{line} # as `callback-guard admission-policy` prints them\n"));
        } else if !line.starts_with("# Source:") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Compares with a file of the repository, or writes it.
#[track_caller]
fn assert_golden(path: &str, found: &str) {
    let file = repository(path);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, found).expect("a file of the repository");
        return;
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert!(expected == found, "{path} differs; if that is meant, UPDATE_GOLDEN=1 writes it\n{found}");
}

#[test]
fn each_file_of_example_values_renders_as_before_and_twice_the_same_bytes() {
    let examples = examples();
    assert_eq!(examples.keys().collect::<Vec<_>>(), ["everything", "ha", "minimal", "openshift"]);
    for (name, path) in examples {
        let rendered = template(&["--values", &path]);
        assert!(rendered == template(&["--values", &path]), "{name}: two renderings differ");
        assert_golden(&format!("tests/cluster/golden/chart-{name}.yaml"), &shortened(&rendered));
    }
}

#[test]
fn helm_lint_has_no_warning_about_any_example() {
    for (_, path) in examples() {
        helm(&["lint", "--strict", "--values", &path], &chart())
            .unwrap_or_else(|said| panic!("{path}: {said}"));
    }
    // The negative twin: without a namespace the chart cannot be rendered.
    let said = helm(&["lint", "--strict"], &chart()).expect_err("no namespace");
    assert!(said.contains("/namespaces"), "{said}");
}

#[test]
fn an_example_sets_every_value() {
    let path = &examples()["everything"];
    let read = |path: &Path| -> Value {
        serde_saphyr::from_str(&fs::read_to_string(path).expect("a file of the chart")).expect("YAML")
    };
    let (set, known) = (read(Path::new(path)), read(&chart().join("values.yaml")));
    for section in ["trust", "image", "sidecar", "injection", "controller", "networkPolicy"] {
        let keys =
            |value: &Value| value[section].as_object().expect(section).keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&set), keys(&known), "{section}");
    }
    let keys = |value: &Value| value.as_object().expect("values").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&set), keys(&known));
}

#[test]
fn the_admission_policies_and_rights_are_those_that_the_program_prints() {
    let flags =
        ["--controller", "--own-namespace", RELEASE, "--namespaces", "shop", "--trust-namespaces", "openim"];
    let rendered = objects(&template(&["--values", &examples()["minimal"], "--no-hooks"]));
    let printed = objects(&printed(&flags));
    for (name, mut object) in printed {
        let mut found = rendered.get(&name).unwrap_or_else(|| panic!("no {name}")).clone();
        if name.starts_with("ServiceAccount") {
            assert_eq!(found["automountServiceAccountToken"].take(), false);
            found.as_object_mut().expect("an object").remove("automountServiceAccountToken");
        }
        let labels = |object: &mut Value| object["metadata"]["labels"].take();
        let (expected, all) = (labels(&mut object), labels(&mut found));
        for (label, value) in expected.as_object().expect("labels") {
            assert_eq!(&all[label], value, "{name}");
        }
        assert_eq!(found, object, "{name}");
    }
}

/// Everything is labeled, and nothing is rendered outside of the namespaces of the values.
#[test]
fn every_object_has_the_labels_and_belongs_to_a_namespace_of_the_values() {
    for (name, path) in examples() {
        for (object, value) in objects(&template(&["--values", &path])) {
            if object.starts_with("ConfigMap guard-system/") {
                continue; // an extra object of the user
            }
            let labels = &value["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{name}: {object}");
            assert_eq!(labels["app.kubernetes.io/instance"], RELEASE, "{name}: {object}");
            if name == "everything" {
                assert_eq!(labels["cost-center"], "42", "{object}");
            }
            let namespaces = ["", RELEASE, "guard-system", "shop", "bank", "club", "lab", "openim"];
            let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default();
            assert!(namespaces.contains(&namespace), "{name}: {object}");
        }
    }
}

/// Values on top of those of the minimal installation.
fn on_top(more: &str) -> String {
    format!("namespaces: [{{name: shop}}]\n{more}\n")
}

#[test]
fn a_wrong_value_is_refused_by_the_schema_with_its_path() {
    for (values, path, sentence) in [
        ("{}".to_owned(), "/namespaces", "minItems: got 0, want 1"),
        ("namespaces: shop".to_owned(), "/namespaces", "got string, want array"),
        ("namespaces: [shop]".to_owned(), "/namespaces/0", "got string, want object"),
        ("namespaces: [{services: [a]}]".to_owned(), "/namespaces/0", "missing property 'name'"),
        (
            "namespaces: [{name: shop, tls: {source: vault}}]".to_owned(),
            "/namespaces/0/tls/source",
            "value must be one of",
        ),
        (on_top("colour: red"), "", "additional properties 'colour' not allowed"),
        (on_top("sidecar: {worker: 2}"), "/sidecar", "additional properties 'worker' not allowed"),
        (on_top("sidecar: {policy-source: poll}"), "/sidecar/policy-source", "value must be one of"),
        (on_top("controller: {replicas: 0}"), "/controller/replicas", "minimum: got 0, want 1"),
        (on_top("controller: {replicas: two}"), "/controller/replicas", "got string, want integer"),
        (on_top("image: {digest: 'sha256:1'}"), "/image/digest", "'sha256:1' does not match pattern"),
        (
            on_top("image: {registry: 'https://r.example'}"),
            "/image/registry",
            "'https://r.example' does not match pattern",
        ),
        (on_top("image: {repository: 'guard:1'}"), "/image/repository", "'guard:1' does not match pattern"),
        (
            "namespaces: [{name: shop, services: [app, app]}]".to_owned(),
            "/namespaces/0/services",
            "items at 0 and 1 are equal",
        ),
        (
            on_top("controller: {extraEnv: [{name: A, value: 5}]}"),
            "/controller/extraEnv/0/value",
            "got number, want string",
        ),
        (on_top("image: {name: x}"), "/image", "additional properties 'name' not allowed"),
        (on_top("injection: {failurePolicy: ignore}"), "/injection/failurePolicy", "value must be one of"),
        (on_top("trust: {namespace: openim}"), "/trust", "additional properties 'namespace' not allowed"),
        (on_top("networkPolicy: {enabled: 'yes'}"), "/networkPolicy/enabled", "got string, want boolean"),
        (on_top("gateway: {}"), "", "additional properties 'gateway' not allowed"),
    ] {
        let said = with_values(&values, &[]).expect_err(&values);
        let line = format!("at '{path}': {sentence}");
        assert!(said.contains(&line), "{values}\n{line}\n{said}");
    }
    // Several at once.
    let said = with_values(&on_top("colour: red\ncontroller: {replicas: 0}"), &[]).expect_err("two");
    assert!(said.contains("'colour' not allowed") && said.contains("at '/controller/replicas'"), "{said}");
    with_values(&on_top("global: {any: thing}\nenabled: true"), &[]).expect("let through");
}

#[test]
fn a_wrong_combination_is_refused_with_what_to_set() {
    for (values, sentence) in [
        (on_top("injection: {mode: webhook}"), "injection.mode: webhook is not in this version: remove it"),
        (on_top("injection: {timeoutSeconds: 3}"), "injection.timeoutSeconds: is only for mode webhook"),
        (
            on_top("networkPolicy: {from: [{podSelector: {}}]}"),
            "networkPolicy.from: has no effect: set networkPolicy.enabled to true, or remove it",
        ),
        (
            "namespaces: [{name: shop, tls: {source: certManager}}]".to_owned(),
            "namespaces[0].tls.issuerRef: is missing beside source certManager: set its name",
        ),
        (
            "namespaces: [{name: shop, tls: {issuerRef: {name: x}}}]".to_owned(),
            "namespaces[0].tls.issuerRef: is only for source certManager: remove it",
        ),
        (
            on_top("controller: {extraArgs: [--log-level=debug, --namespaces=a]}"),
            "controller.extraArgs[1]: \"--namespaces=a\" is set from namespaces: remove it",
        ),
        (
            "namespaces: [{name: shop, tls: {source: secret}}]\ntrust: {namespaces: [openim]}".to_owned(),
            "trust.namespaces: the controller publishes its own CA there, and no namespace has a certificate of it",
        ),
        (
            on_top("sidecar: {policy-configmap: callback-guard-ca}"),
            "sidecar.policy-configmap: Invalid value: \"callback-guard-ca\": is the ConfigMap with the CA",
        ),
        ("namespaces: [{name: callback-guard}]".to_owned(), "is the namespace of this release"),
        (
            on_top("sidecar: {listen-port: 19090}"),
            "sidecar.listen-port: Invalid value: \"19090\": admin-port is the same",
        ),
        (
            on_top("sidecar: {drain-delay: 2h}"),
            "sidecar.drain-delay: Invalid value: \"2h\": must be a duration, 0s to 60m",
        ),
    ] {
        let said = with_values(&values, &[]).expect_err(&values);
        assert!(said.contains(sentence), "{values}\n{sentence}\n{said}");
        assert!(said.contains("the values have problems, and nothing was changed:\n"), "{said}");
    }
    let said =
        with_values(&on_top("injection: {mode: webhook, timeoutSeconds: 3}\nsidecar: {workers: 65}"), &[]);
    let said = said.expect_err("three");
    for path in ["injection.mode: ", "injection.timeoutSeconds: ", "sidecar.workers: "] {
        assert!(said.contains(&format!("\n{path}")), "{path}\n{said}");
    }
}

/// Helm takes a value of the chart away for a null of the user.
#[test]
fn a_null_in_the_place_of_any_value_renders_valid_objects_or_says_what_is_wrong() {
    let text = fs::read_to_string(chart().join("values.yaml")).expect("a file of the chart");
    let values: Value = serde_saphyr::from_str(&text).expect("values.yaml is YAML");
    let mut paths = Vec::new();
    let mut sections = vec![(String::new(), &values)];
    while let Some((path, section)) = sections.pop() {
        for (key, value) in section.as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            sections.push((path.clone(), value));
            paths.push(path);
        }
    }
    assert!(paths.len() > 60, "{paths:?}");
    for path in paths {
        match with_values(&on_top(""), &["--set", &format!("{path}=null")]) {
            Ok(rendered) => {
                for (name, object) in objects(&rendered) {
                    let text = object.to_string();
                    assert!(!text.contains(":null") && !text.contains("<nil>"), "{path}: {name}: {text}");
                }
            }
            Err(said) => {
                let ours = "the values have problems, and nothing was changed:\n";
                assert!(said.contains(ours) || said.contains("at '"), "{path}\n{said}");
            }
        }
    }
}

#[test]
fn labels_of_the_user_do_not_replace_ours() {
    let labels = "{app.kubernetes.io/component: x, app.kubernetes.io/managed-by: x, team: a}";
    let values = on_top(&format!(
        "commonLabels: {labels}\ninjection: {{labels: {labels}}}\ncontroller: {{podLabels: {labels}}}"
    ));
    for (name, object) in objects(&with_values(&values, &[]).expect("rendered")) {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{name}");
        assert_eq!(labels["team"], "a", "{name}");
        if name.starts_with("Deployment") {
            assert_eq!(labels["app.kubernetes.io/component"], "controller");
            assert_eq!(object["spec"]["template"]["metadata"]["labels"], *labels);
        }
    }
    let said = with_values(&on_top("commonLabels: {callback-guard.io/injected: x}"), &[]);
    let said = said.expect_err("one of ours");
    let sentence =
        "commonLabels: \"callback-guard.io/injected\" is a label of callback-guard itself: remove it";
    assert!(said.contains(sentence), "{said}");
}

#[test]
fn a_number_with_a_zero_in_front_is_decimal() {
    let values = on_top("sidecar: {run-as-user: '0755', listen-port: '08443', admin-port: '09090'}");
    let rendered = objects(&with_values(&values, &[]).expect("rendered"));
    let deployment = &rendered[&format!("Deployment {RELEASE}/{RELEASE}-controller")];
    assert_eq!(deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"], 755);
}

#[test]
fn names_are_names_of_dns_whatever_the_release_is_called() {
    let values = Folder::new();
    let path = values.write("values.yaml", on_top(""));
    for release in ["callback-guard", "a.b", &format!("{}.b", "a".repeat(51)), &"a".repeat(53)] {
        let arguments =
            ["template", release, "--namespace", RELEASE, "--values", path.to_str().expect("UTF-8")];
        let rendered = helm(&arguments, &chart()).expect("rendered");
        for (name, object) in objects(&rendered) {
            let name = object["metadata"]["name"].as_str().unwrap_or_else(|| panic!("{name}: no name"));
            let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            assert!(
                name.len() <= 63 && name.bytes().all(is_label) && !name.ends_with('-'),
                "{release}: {name}"
            );
        }
    }
}

#[test]
fn the_notes_fit_what_is_installed() {
    let notes = |values: &str| {
        let folder = Folder::new();
        let path = folder.write("values.yaml", values);
        let values = ["--values", path.to_str().expect("UTF-8")];
        let arguments =
            [&["install", RELEASE, "--namespace", RELEASE, "--dry-run=client"][..], &values].concat();
        let said = helm(&arguments, &chart()).unwrap_or_else(|said| panic!("{said}"));
        said.split_once("\nNOTES:\n").expect("notes").1.to_owned()
    };
    let one = "namespaces: [{name: shop, services: [app]}]\n";
    let two =
        "namespaces: [{name: shop, services: [app]}, {name: lab, services: [app], tls: {source: secret}}]\n";
    let trust = "trust: {namespaces: [openim]}\n";
    let set = "     kubectl -n openim set env deployment --all IMENV_WEBHOOKS_URL=https://";
    for (values, has, has_not) in [
        (format!("{one}{trust}"), &*format!("{set}app.shop.svc\n"), "Choose one"),
        (
            on_top(trust),
            "# kubectl -n openim set env deployment --all IMENV_WEBHOOKS_URL=https://SERVICE.shop.svc",
            set,
        ),
        (one.replace("[app]", "[app, web]") + trust, "# Choose one:\n     # kubectl", set),
        (one.to_owned(), "First add the namespace to trust.namespaces", "create configmap callback-guard-ca"),
        (
            one.replace("[app]", "[app], tls: {source: secret}"),
            "create configmap callback-guard-ca --from-file=ca.crt",
            "trust.namespaces",
        ),
        (
            format!("{two}{trust}"),
            "For the certificates in lab OpenIM needs yours too",
            "create configmap callback",
        ),
        (format!("{one}sidecar: {{policy-source: volume}}\n"), "within two minutes", "within a second"),
        (one.to_owned(), "in force within a second", "in the values of this release"),
        (
            one.replace("[app]", "[app], policy: {version: 1}"),
            "The policy of shop is in the values of this release",
            "SERVICE",
        ),
        (
            format!("{one}namespaceOverride: other\nfullnameOverride: guard\n"),
            "kubectl -n other logs deployment/guard-controller",
            "kubectl -n callback-guard ",
        ),
        (
            format!("{one}sidecar: {{policy-configmap: mine, tls-secret: own}}\n"),
            "delete --ignore-not-found configmap/mine configmap/callback-guard-ca secret/own\n",
            "callback-guard-policy",
        ),
        (
            format!("{one}trust: {{namespaces: [shop]}}\n"),
            "kubectl label namespace shop callback-guard.io/trust=enabled",
            "delete --ignore-not-found configmap/callback-guard-ca\n",
        ),
    ] {
        let found = notes(&values);
        assert!(found.contains(has), "{values}\n{has}\n{found}");
        assert!(!found.contains(has_not), "{values}\n{has_not}\n{found}");
    }
}

#[test]
fn an_older_cluster_is_refused_with_what_to_do() {
    let minimal = examples().remove("minimal").expect("it is there");
    let of = |version: &str, more: &[&str]| {
        try_template(&[&["--values", &minimal, "--kube-version", version], more].concat())
    };
    let said = of("1.32.9", &[]).expect_err("too old");
    assert!(said.contains("requires kubeVersion: >=1.33.0-0"), "{said}");
    for version in ["1.33.0", "v1.34.4", "1.35.10-gke.1"] {
        for mode in ["auto", "policy"] {
            let said = of(version, &["--set", &format!("injection.mode={mode}")]).expect_err(version);
            assert!(said.contains("Kubernetes serves since 1.36") && said.contains("inject -f"), "{said}");
            assert!(said.contains(version.trim_start_matches('v')), "{said}");
        }
        let served = ["--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"];
        of(version, &served).expect("the cluster has the kind");
    }
    for version in ["1.36.0", "v1.36.6-eks-abc", "1.37.2"] {
        of(version, &[]).expect(version);
    }
}

#[test]
fn openshift_gets_no_user_id_from_us() {
    let users = |name: &str| -> Vec<Value> {
        let rendered = objects(&template(&["--values", &examples()[name]]));
        let deployment = &rendered[&format!("Deployment {RELEASE}/{RELEASE}-controller")]["spec"]["template"];
        let test = &rendered[&format!("Pod shop/{RELEASE}-test-shop")];
        [deployment, test].map(|pod| pod["spec"]["securityContext"]["runAsUser"].clone()).to_vec()
    };
    assert_eq!(users("openshift"), [Value::Null, Value::Null]);
    assert_eq!(users("minimal"), [65532, 65532]);
}

#[test]
fn a_parent_chart_may_give_it_another_name() {
    let folder = Folder::new();
    folder.write(
        "Chart.yaml",
        "apiVersion: v2\nname: parent\nversion: 1.0.0\ndependencies:\n\
         - {name: callback-guard, version: 0.x.x, alias: guard, condition: guard.enabled}\n",
    );
    let packaged = folder.path().join("charts");
    fs::create_dir(&packaged).expect("a folder in a fresh one");
    helm(&["package", "--destination", packaged.to_str().expect("UTF-8")], &chart()).expect("packaged");
    let values = "global: {registry: x}\nguard:\n  enabled: true\n  namespaces: [{name: shop}]\n  trust: {namespaces: [openim]}\n";
    folder.write("values.yaml", values);
    let render = || helm(&["template", RELEASE, "--namespace", RELEASE], folder.path());
    let alone = objects(&template(&["--values", &examples()["minimal"]]));
    assert_eq!(objects(&render().expect("rendered")), alone);
    folder.write("values.yaml", values.replace("true", "false"));
    assert_eq!(render().expect("nothing to render").trim(), "");
    folder.write("values.yaml", format!("{values}  colour: red\n"));
    let said = render().expect_err("unknown");
    assert!(said.contains("additional properties 'colour' not allowed"), "{said}");
}

/// The manifests for an installation without Helm: our own namespace, and what the chart renders for the example.
fn install_manifest() -> String {
    let arguments = ["--no-hooks", "--set", "namespaces[0].name=callback-guard-example"];
    let namespace = format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {RELEASE}\n");
    let rendered = template(&arguments);
    format!(
        "# callback-guard {} without Helm, for the namespace callback-guard-example: kubectl apply -f install.yaml\n\
         # Rendered from charts/callback-guard. For other namespaces and settings:\n\
         #   helm template {RELEASE} charts/callback-guard --namespace {RELEASE} --no-hooks --values VALUES.yaml\n\
         {namespace}{rendered}",
        env!("CARGO_PKG_VERSION")
    )
}

#[test]
fn the_manifests_without_helm_are_what_the_chart_renders() {
    assert_golden("manifests/install.yaml", &install_manifest());
}
