//! What `admission-policy --helm` prints, rendered by Helm itself in a chart of the test. It must be the objects that
//! `admission-policy` prints for the same values. This takes no cluster, only Go, which builds Helm.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use callback_guard::sidecar::annotations::{Kind, settings};
use serde_json::{Value, json};

use super::cluster::{clean, run, script};
use super::support::Folder;

/// The namespace of the release.
const OWN: &str = "guard";

/// The version of the chart's app, which is the default of the image's tag.
const APP_VERSION: &str = "9.9.9";

/// The flags that all values below have in common with the program's output.
const OWN_FLAG: [&str; 2] = ["--own-namespace", OWN];

/// A chart with nothing in it but the template.
fn chart(values: &str) -> Folder {
    static TEMPLATE: OnceLock<String> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| printed(&["--helm"]));
    let folder = Folder::new();
    folder.write(
        "Chart.yaml",
        format!("apiVersion: v2\nname: guard\nversion: 0.1.0\nappVersion: \"{APP_VERSION}\"\n"),
    );
    folder.write("values.yaml", values);
    std::fs::create_dir(folder.path().join("templates")).expect("a folder in a fresh one");
    folder.write("templates/policy.yaml", template);
    folder
}

fn printed(flags: &[&str]) -> String {
    let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
    run(command.arg("admission-policy").args(flags), None)
        .unwrap_or_else(|said| panic!("admission-policy {flags:?}: {said}"))
}

fn helm(chart: &Folder, arguments: &[&str]) -> Result<String, String> {
    run(clean(script()).arg("helm").args(arguments).arg(chart.path()), None)
}

/// Helm's output for a chart with these values, or what it says.
fn try_template(values: &str, arguments: &[&str]) -> Result<String, String> {
    helm(&chart(values), &[&["template", "release", "--namespace", OWN], arguments].concat())
}

#[track_caller]
fn template(values: &str) -> String {
    try_template(values, &[]).unwrap_or_else(|said| panic!("{values}\n{said}"))
}

/// The objects of a stream, by kind, namespace and name. Each document must be an object: `kubectl apply` refuses others.
#[track_caller]
fn objects(stream: &str) -> BTreeMap<String, Value> {
    let mut objects = BTreeMap::new();
    let documents =
        stream.strip_prefix("---\n").unwrap_or_else(|| panic!("begins with no document: {stream:.80}"));
    for document in documents.split("\n---\n") {
        let object: Value =
            serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}\n{document}"));
        assert!(object["apiVersion"].is_string() && object["kind"].is_string(), "no object: {document:?}");
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = format!("{} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        assert!(objects.insert(key.clone(), object).is_none(), "{key} is there twice");
    }
    objects
}

/// Helm renders from these values the objects that the program prints with these flags.
#[track_caller]
fn assert_same(values: &str, flags: &[&str]) {
    let (rendered, printed) =
        (objects(&template(values)), objects(&printed(&[&OWN_FLAG[..], flags].concat())));
    let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&rendered), names(&printed), "{values}");
    for (name, object) in &rendered {
        assert_eq!(object, &printed[name], "{name}\n{values}\n{flags:?}");
    }
    assert!(hash(&rendered).len() == 16, "{rendered:?}");
}

/// The hash in the label of the pods.
fn hash(objects: &BTreeMap<String, Value>) -> String {
    let policy = &objects["MutatingAdmissionPolicy /callback-guard"];
    let patch = policy["spec"]["mutations"][0]["jsonPatch"]["expression"].as_str().expect("a text");
    let (_, label) = patch.split_once("'callback-guard.io/injected': '").expect("the label");
    label.split_once('\'').expect("a literal").0.rsplit_once('-').expect("version and hash").1.to_owned()
}

/// The settings in the policy.
fn settings_of(rendered: &str) -> Value {
    let objects = objects(rendered);
    let variables = &objects["MutatingAdmissionPolicy /callback-guard"]["spec"]["variables"];
    let variable = variables.as_array().expect("a list").iter().find(|one| one["name"] == "settings");
    serde_json::from_str(variable.expect("settings")["expression"].as_str().expect("a text")).expect("JSON")
}

const MINIMAL: &str = "namespaces: [{name: a}]\nsidecar: {image: 'guard:1'}\n";

#[test]
fn minimal_values_render_what_the_program_prints_with_its_defaults() {
    assert_same(MINIMAL, &["--namespaces", "a", "--image", "guard:1"]);
    assert_same(
        "{namespaces: [{name: a, policy: x}], sidecar: {image: {repository: guard}}, other: 1}",
        &["--namespaces", "a", "--image", "guard:9.9.9"],
    );
}

#[test]
fn helm_renders_the_same_bytes_twice() {
    let chart = chart(MINIMAL);
    let template = || helm(&chart, &["template", "release", "--namespace", OWN]).expect("rendered");
    assert_eq!(template(), template());
}

/// A value that is allowed, as people write it in YAML, without quotes where they leave them out.
fn sample(name: &str, kind: Kind) -> (&'static str, &'static str) {
    let same = |text| (text, text);
    match kind {
        Kind::Port { .. } if name == "admin-port" => same("9443"),
        // No port of the sidecar's own.
        Kind::Port { least: 1 } => same("3000"),
        Kind::Port { .. } => same("8443"),
        Kind::Count { .. } | Kind::CpuOrNone => same("2"),
        Kind::Time { .. } => same("1.5s"),
        Kind::SecondsOrNone { .. } => same("5s"),
        // YAML reads `off` as false.
        Kind::OneOf(words) if words.contains(&"off") => same("off"),
        Kind::OneOf(words) => same(words.last().expect("a word")),
        // A number or a boolean for YAML.
        Kind::Name if name == "tls-secret" => ("'123'", "123"),
        Kind::Name => ("'true'", "true"),
        Kind::Image => same("guard:1"),
        Kind::Cpu => same("1"),
        Kind::Memory => same("128Mi"),
        // Go prints it as 1.00065e+09.
        Kind::User => same("1000650000"),
        Kind::Namespace | Kind::Written => panic!("{name} cannot be set"),
    }
}

#[test]
fn every_setting_is_taken_as_a_text_and_as_a_bare_word_or_number() {
    let (mut bare, mut quoted) = (String::new(), String::new());
    let mut flags = vec!["--namespaces".to_owned(), "a,b".to_owned()];
    for row in settings() {
        let (yaml, text) = sample(row.name, row.kind);
        bare.push_str(&format!("  {}: {yaml}\n", row.name));
        quoted.push_str(&format!("  {}: {}\n", row.name, json!(text)));
        if ["image", "policy-configmap", "tls-secret"].contains(&row.name) {
            flags.extend([format!("--{}", row.name), text.to_owned()]);
        } else {
            flags.extend(["--set".to_owned(), format!("{}={text}", row.name)]);
        }
    }
    assert!(settings().count() > 15);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    for settings in [bare, quoted] {
        assert_same(&format!("namespaces: [{{name: a}}, {{name: b}}]\nsidecar:\n{settings}"), &flags);
    }
}

#[test]
fn a_setting_is_the_same_from_whichever_side_helm_gets_it() {
    let expected =
        settings_of(&template(&MINIMAL.replace("'guard:1'", "'guard:1', run-as-user: '1000650000'")));
    assert_eq!(expected["run-as-user"], "1000650000");
    for flag in ["--set", "--set-string", "--set-json"] {
        let rendered = try_template(MINIMAL, &[flag, "sidecar.run-as-user=1000650000"]);
        assert_eq!(settings_of(&rendered.expect("rendered")), expected, "{flag}");
    }
    let file = Folder::new();
    let path = file.write("values.yaml", "sidecar: {run-as-user: 1000650000}");
    let rendered = try_template(MINIMAL, &["--values", path.to_str().expect("UTF-8")]);
    assert_eq!(settings_of(&rendered.expect("rendered")), expected);
}

#[test]
fn settings_that_are_null_or_empty_are_not_set() {
    let values = "namespaces: [{name: a}]\nimagePullSecrets: null\n\
                  sidecar: {image: 'guard:1', workers: null, cpu-limit: '', tls-secret: null, policy-configmap: ''}\n";
    assert_same(values, &["--namespaces", "a", "--image", "guard:1"]);
    // Helm takes a default of the chart away for a null of the user.
    let rendered =
        try_template(&values.replace("workers: null", "workers: 3"), &["--set", "sidecar.workers=null"]);
    assert_eq!(settings_of(&rendered.expect("rendered")), settings_of(&template(values)));
}

#[test]
fn an_image_is_a_text_or_its_parts() {
    for (image, reference) in [
        ("registry.example:5000/team/guard:1.2", "registry.example:5000/team/guard:1.2"),
        ("{registry: r.example, repository: team/guard, tag: v1}", "r.example/team/guard:v1"),
        ("{registry: r.example, repository: guard}", "r.example/guard:9.9.9"),
        ("{registry: r.example, repository: guard, tag: null, digest: ''}", "r.example/guard:9.9.9"),
        ("{registry: '', repository: guard, tag: v1}", "guard:v1"),
        ("{repository: guard, tag: 20260131}", "guard:20260131"),
        (
            "{registry: r.example, repository: guard, tag: v1, digest: 'sha256:0af'}",
            "r.example/guard@sha256:0af",
        ),
        ("{repository: guard, digest: 'sha256:0af'}", "guard@sha256:0af"),
    ] {
        let values = format!("namespaces: [{{name: a}}]\nsidecar: {{image: {image}}}\n");
        assert_same(&values, &["--namespaces", "a", "--image", reference]);
    }
}

/// Texts that mean something to YAML, to Go's templates, to CEL, to JSON, to regular expressions or to the generator.
const ODD: [&str; 12] = [
    "a'b\"c",
    "{{.Values.namespaces}}",
    "{{`",
    "}}{{-fail(`x`)-}}",
    "{{/*",
    "<a>&amp;b",
    r"\n\u0041\\$1",
    "'+string(1)+'",
    "@settings@",
    "@namespaces@@hash@@own-namespace@@template-hash@",
    "#&*!|>%@`[],:-?",
    "---",
];

#[test]
fn odd_characters_of_an_image_come_out_as_data() {
    for odd in ODD {
        let reference = format!("--image={odd}");
        let values =
            |image: Value| json!({"namespaces": [{"name": "a"}], "sidecar": {"image": image}}).to_string();
        assert_same(&values(json!(odd)), &["--namespaces", "a", &reference]);
        let reference = format!("--image={odd}/{odd}:{odd}");
        let parts = json!({"registry": odd, "repository": odd, "tag": odd});
        assert_same(&values(parts), &["--namespaces", "a", &reference]);
    }
}

#[test]
fn odd_characters_of_any_setting_come_out_as_data() {
    for odd in ODD.into_iter().chain(["a\nb", "\t ", "\u{fc}\u{2028}\u{1f980}"]) {
        let settings: BTreeMap<_, _> = settings().map(|row| (row.name, odd)).collect();
        let values = json!({"namespaces": [{"name": "a"}], "sidecar": settings}).to_string();
        let rendered = template(&values);
        assert_eq!(settings_of(&rendered), json!(settings));
        assert_eq!(objects(&rendered)["Role a/callback-guard"]["rules"][0]["resourceNames"], json!([odd]));
    }
}

#[test]
fn pull_secrets_are_texts_or_objects_with_a_name() {
    for (secrets, flag) in [
        ("[one]", "one"),
        ("[{name: one}]", "one"),
        ("[two, {name: one}, two]", "two,one"),
        ("['123', {name: 'true'}, 456]", "123,true,456"),
    ] {
        let flags = ["--namespaces", "a", "--image", "guard:1", "--image-pull-secrets", flag];
        assert_same(&format!("{MINIMAL}imagePullSecrets: {secrets}\n"), &flags);
    }
    assert_same(&format!("{MINIMAL}imagePullSecrets: []\n"), &["--namespaces", "a", "--image", "guard:1"]);
}

#[test]
fn every_namespace_has_its_objects() {
    for (namespaces, flag, number) in [
        ("[{name: a}]", "a", 1),
        ("[{name: c, policy: ''}, {name: a}, {name: b}]", "c,a,b", 3),
        ("[{name: '123'}, {name: 'true'}, {name: '1e3'}, {name: 456}]", "123,true,1e3,456", 4),
    ] {
        let values = format!("namespaces: {namespaces}\nsidecar: {{image: 'guard:1'}}\n");
        assert_same(&values, &["--namespaces", flag, "--image", "guard:1"]);
        let objects = objects(&template(&values));
        assert_eq!(objects.keys().filter(|name| name.starts_with("Role ")).count(), number);
    }
}

#[test]
fn the_namespace_of_the_release_may_look_like_a_number() {
    let chart = chart(MINIMAL);
    let rendered = helm(&chart, &["template", "release", "--namespace", "123"]).expect("rendered");
    let printed = printed(&["--own-namespace", "123", "--namespaces", "a", "--image", "guard:1"]);
    assert_eq!(objects(&rendered), objects(&printed));
}

#[test]
fn another_value_renders_other_objects() {
    let base = "namespaces: [{name: a}]\nimagePullSecrets: [one]\nsidecar: {image: {repository: guard}, workers: 2}\n";
    let rendered = objects(&template(base));
    for (old, new, same_hash) in [
        ("name: a", "name: b", true),
        ("workers: 2", "workers: 3", false),
        ("workers: 2", "log-level: info", false),
        ("repository: guard", "repository: guards", false),
        ("repository: guard", "repository: guard, tag: v1", false),
        ("repository: guard", "repository: guard, registry: r", false),
        ("[one]", "[two]", false),
        ("[one]", "[]", false),
    ] {
        let values = base.replace(old, new);
        assert_ne!(values, base);
        let other = objects(&template(&values));
        assert_ne!(other, rendered, "{values}");
        assert_eq!(hash(&other) == hash(&rendered), same_hash, "{values}");
    }
}

#[test]
fn a_wrong_value_fails_with_its_name_and_what_to_set() {
    let sidecar = |settings: &str| format!("namespaces: [{{name: a}}]\nsidecar: {settings}\n");
    let namespaces = |list: &str| format!("namespaces: {list}\nsidecar: {{image: 'guard:1'}}\n");
    let secrets = |list: &str| format!("{MINIMAL}imagePullSecrets: {list}\n");
    let image = |image: &str| sidecar(&format!("{{image: {image}}}"));
    let missing = "sidecar.image: is missing: set it to";
    for (values, sentence) in [
        ("namespaces: [{name: a}]\n".to_owned(), missing),
        (sidecar("null"), missing),
        (sidecar("{}"), missing),
        (sidecar("text"), "sidecar: must be an object"),
        (image("''"), missing),
        (image("null"), missing),
        (image("[a]"), "sidecar.image: Invalid value: [\"a\"]: must be a string"),
        (image("{tag: v1}"), "sidecar.image.repository: is missing"),
        (image("{repository: ''}"), "sidecar.image.repository: is missing"),
        (
            image("{repository: guard, tag: 1.10}"),
            "sidecar.image.tag: Invalid value: 1.1: must be a string: put it in quotes",
        ),
        (
            image("{repository: guard, pullPolicy: Always}"),
            "sidecar.image.pullPolicy: Unknown value: known are registry,",
        ),
        (
            sidecar("{image: a, listenPort: 1}"),
            "sidecar.listenPort: Unknown setting: known are upstream-port, ",
        ),
        (sidecar("{image: a, injected-by: x}"), "sidecar.injected-by: Unknown setting"),
        (
            sidecar("{image: a, workers: true}"),
            "sidecar.workers: Invalid value: true: must be a string: put it in quotes",
        ),
        (sidecar("{image: a, log-level: on}"), "sidecar.log-level: Invalid value: true"),
        (
            sidecar("{image: a, workers: {a: 1}}"),
            "sidecar.workers: Invalid value: {\"a\":1}: must be a string",
        ),
        (sidecar("{image: a, cpu-limit: 0.5}"), "sidecar.cpu-limit: Invalid value: 0.5: must be a string"),
        ("sidecar: {image: a}\n".to_owned(), "namespaces: is missing: set it to a list"),
        (namespaces("[]"), "namespaces: is missing"),
        (namespaces("null"), "namespaces: is missing"),
        (namespaces("a"), "namespaces: is missing"),
        (namespaces("[a]"), "namespaces[0]: Invalid value: \"a\": must be an object with a name"),
        (
            namespaces("[{name: a}, {}]"),
            "namespaces[1].name: Invalid value: \"\": must be a name of a namespace, lower-case letters",
        ),
        (namespaces("[{name: A}]"), "namespaces[0].name: Invalid value: \"A\""),
        (namespaces("[{name: \"a'\\n\"}]"), "namespaces[0].name: Invalid value: "),
        (namespaces("[{name: '{{ .x }}'}]"), "namespaces[0].name: Invalid value: \"{{ .x }}\""),
        (
            namespaces("[{name: kube-system}]"),
            "namespaces[0].name: \"kube-system\": pods there never get a sidecar",
        ),
        (namespaces("[{name: guard}]"), "namespaces[0].name: \"guard\" is the namespace of this release"),
        (namespaces("[{name: a}, {name: a}]"), "namespaces[1].name: \"a\" is listed twice"),
        (secrets("one"), "imagePullSecrets: must be a list"),
        (secrets("[{}]"), "imagePullSecrets[0].name: Invalid value: \"\""),
        (secrets("[a, B]"), "imagePullSecrets[1]: Invalid value: \"B\""),
        (secrets("['']"), "imagePullSecrets[0]: Invalid value: \"\""),
    ] {
        let said = try_template(&values, &[]).expect_err(&values);
        assert!(said.contains(sentence), "{values}\n{said}");
    }
}

#[test]
fn helm_lint_has_no_warning() {
    let good = format!("{MINIMAL}imagePullSecrets: [one]\n");
    helm(&chart(&good), &["lint", "--strict"]).unwrap_or_else(|said| panic!("{said}"));
    let broken = chart(&good);
    broken.write("templates/other.yaml", "kind: x\nmetadata: {name: A_}\n");
    let said = helm(&broken, &["lint", "--strict"]).expect_err("not a name");
    assert!(said.contains("templates/other.yaml"), "{said}");
}

#[test]
fn helm_sees_nothing_of_the_users_own_configuration() {
    let mut command = clean(script());
    for name in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME", "HELM_PLUGINS", "HELM_NAMESPACE"] {
        command.env(name, "of-the-user");
    }
    let said = run(command.args(["helm", "env"]), None).expect("helm env");
    assert!(!said.contains("of-the-user") && said.contains("HELM_NAMESPACE=\"default\""), "{said}");
    let home = std::env::temp_dir();
    let home = home.to_str().expect("UTF-8");
    for name in ["HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME", "HELM_PLUGINS"] {
        assert!(said.contains(&format!("{name}=\"{home}/")), "{name}: {said}");
    }
}
