//! What `admission-policy --helm` prints, rendered by Helm itself in a chart of the test. It must be the objects that
//! `admission-policy` prints for the same values. This takes no cluster, only Go, which builds Helm.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use callback_guard::cli::admission_policy::IMAGE_SETTINGS;
use callback_guard::sidecar::annotations::{Annotation, Kind, settings};
use serde_json::{Value, json};

use super::cluster::{clean, run, script};
use super::support::Folder;

/// The namespace of the release.
const OWN: &str = "guard";

/// The version of the chart's app, which is the default of the image's tag.
const APP_VERSION: &str = "9.9.9";

/// The flags that all values below have in common with the program's output.
const OWN_FLAGS: [&str; 3] = ["--controller", "--own-namespace", OWN];

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
    folder.write("templates/_admission.tpl", template);
    folder.write("templates/all.yaml", "{{ include \"callback-guard.admission\" . }}");
    folder
}

pub(crate) fn printed(flags: &[&str]) -> String {
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
pub(crate) fn objects(stream: &str) -> BTreeMap<String, Value> {
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
        (objects(&template(values)), objects(&printed(&[&OWN_FLAGS[..], flags].concat())));
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

const MINIMAL: &str = "namespaces: [{name: a}]\nimage: {repository: guard, tag: '1'}\n";

#[test]
fn minimal_values_render_what_the_program_prints_with_its_defaults() {
    assert_same(MINIMAL, &["--namespaces", "a", "--image", "guard:1"]);
    assert_same(
        "{namespaces: [{name: a, policy: x}], image: {repository: guard}, other: 1}",
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

/// The settings that a chart takes from `sidecar`.
fn in_sidecar() -> impl Iterator<Item = &'static Annotation> {
    settings().filter(|row| !IMAGE_SETTINGS.contains(&row.name))
}

#[test]
fn every_setting_is_taken_as_a_text_and_as_a_bare_word_or_number() {
    let (mut bare, mut quoted) = (String::new(), String::new());
    let mut flags = ["--namespaces", "a,b", "--image", "guard:1", "--set", "image-pull-policy=Never"]
        .map(str::to_owned)
        .to_vec();
    for row in in_sidecar() {
        let (yaml, text) = sample(row.name, row.kind);
        bare.push_str(&format!("  {}: {yaml}\n", row.name));
        quoted.push_str(&format!("  {}: {}\n", row.name, json!(text)));
        if ["policy-configmap", "tls-secret"].contains(&row.name) {
            flags.extend([format!("--{}", row.name), text.to_owned()]);
        } else {
            flags.extend(["--set".to_owned(), format!("{}={text}", row.name)]);
        }
    }
    assert!(in_sidecar().count() > 15);
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    for settings in [bare, quoted] {
        let image = "image: {repository: guard, tag: '1', pullPolicy: Never}";
        assert_same(
            &format!("{image}\nnamespaces: [{{name: a}}, {{name: b}}]\nsidecar:\n{settings}"),
            &flags,
        );
    }
}

/// Values at the borders of every kind, and beside them.
const BORDERS: [&str; 66] = [
    "",
    "0",
    "1",
    "64",
    "65",
    "1023",
    "1024",
    "08080",
    "65535",
    "65536",
    "65532",
    "2147483647",
    "2147483648",
    "99999",
    "100000",
    "+2",
    "-1",
    "1.0",
    "1e3",
    "none",
    "None",
    "0s",
    "1s",
    "1.5s",
    "1.5m",
    "1.001s",
    "1500ms",
    "2000ms",
    "1h",
    "60m",
    "59m60s",
    "1h1ms",
    "3600000ms",
    "3600001ms",
    "9999h",
    "10000h",
    "1d",
    "5",
    "3 s",
    "1.5ms",
    "1.0001s",
    "1ms1ms1ms1ms1ms1ms1ms1ms1ms1ms1ms",
    "9m",
    "10m",
    "64000m",
    "64001m",
    "250m",
    "31Mi",
    "32Mi",
    "64Gi",
    "65Gi",
    "65536Mi",
    "65537Mi",
    "64M",
    "1.5Gi",
    "off",
    "info",
    "Info",
    "watch",
    "a",
    "a-b.c0",
    "a..b",
    "-a",
    "a_b",
    "\u{fc}",
    "a\n",
];

#[test]
fn a_chart_takes_the_values_of_a_setting_that_an_annotation_takes() {
    for text in BORDERS {
        let sidecar: BTreeMap<_, _> = in_sidecar().map(|row| (row.name, text)).collect();
        let values =
            json!({"namespaces": [{"name": "a"}], "image": {"repository": "guard"}, "sidecar": sidecar});
        let said = try_template(&values.to_string(), &[]).err().unwrap_or_default();
        // An empty text is no value.
        let problem = |row: &Annotation| row.kind.check(text).err().filter(|_| !text.is_empty());
        for row in in_sidecar() {
            let path = format!("\nsidecar.{}: ", row.name);
            match problem(row) {
                Some(problem) => {
                    assert!(said.contains(&format!("{path}{problem}")), "{path}{problem}\n{said}")
                }
                None => assert!(!said.contains(&path), "{path}{text:?}\n{said}"),
            }
        }
    }
}

#[test]
fn a_chart_refuses_the_contradictions_that_the_flag_set_refuses() {
    let program = |settings: &[&str]| {
        let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
        command.args(["admission-policy", "--namespaces", "a", "--image", "guard:1"]);
        run(command.args(settings.iter().flat_map(|setting| ["--set", setting])), None).err()
    };
    for settings in [
        &["cpu-request=2", "cpu-limit=1999m"][..],
        &["cpu-request=2", "cpu-limit=2000m"],
        &["cpu-request=2"],
        &["memory-request=257Mi"],
        &["memory-request=256Mi"],
        &["memory-request=2Gi", "memory-limit=2047Mi"],
        &["memory-request=2Gi", "memory-limit=2048Mi"],
        &["listen-port=19090"],
        &["admin-port=18443"],
        &["admin-port=18443", "listen-port=18444"],
        &["admin-port=9443", "listen-port=9443"],
        &["admin-port=09443", "listen-port=9443"],
        &["upstream-port=18443"],
        &["upstream-port=19090", "admin-port=19091"],
        &["upstream-port=9443", "listen-port=9443"],
    ] {
        let pairs = settings.iter().map(|setting| setting.split_once('=').expect("a pair"));
        let sidecar: BTreeMap<_, _> = pairs.collect();
        let values =
            json!({"namespaces": [{"name": "a"}], "image": {"repository": "guard"}, "sidecar": sidecar});
        let said = try_template(&values.to_string(), &[]).err();
        let Some(expected) = program(settings) else {
            assert_eq!(said, None, "{settings:?}");
            continue;
        };
        let said = said.unwrap_or_else(|| panic!("rendered from {settings:?}; expected {expected}"));
        let sentences =
            expected.lines().filter_map(|line| line.split_once("--set: ")).map(|(_, sentence)| sentence);
        let sentences: Vec<_> = sentences.collect();
        assert!(!sentences.is_empty(), "{expected}");
        for sentence in sentences {
            assert!(said.contains(&format!("\nsidecar.{sentence}")), "{sentence}\n{said}");
        }
    }
}

#[test]
fn all_problems_are_reported_at_once_with_their_paths() {
    let values = "namespaces: [{name: A}, {name: kube-system}, x]\ntrust: {namespaces: [guard, B]}\n\
                  imagePullSecrets: [C]\nimage: {tag: 1}\nsidecar: {workers: 0, cpu-limit: 9m, colour: red}\n";
    let said = try_template(values, &[]).expect_err("nothing of it is right");
    for path in [
        "namespaces[0].name",
        "namespaces[1].name",
        "namespaces[2]",
        "trust.namespaces[0]",
        "trust.namespaces[1]",
        "imagePullSecrets[0]",
        "image.repository",
        "sidecar.workers",
        "sidecar.cpu-limit",
        "sidecar.colour",
    ] {
        assert!(said.contains(&format!("\n{path}: ")), "{path}\n{said}");
    }
}

#[test]
fn a_setting_is_the_same_from_whichever_side_helm_gets_it() {
    let expected = settings_of(&template(&format!("{MINIMAL}sidecar: {{run-as-user: '1000650000'}}\n")));
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
    let values = format!(
        "{MINIMAL}imagePullSecrets: null\ntrust: null\n\
         sidecar: {{workers: null, cpu-limit: '', tls-secret: null, policy-configmap: ''}}\n"
    );
    assert_same(&values, &["--namespaces", "a", "--image", "guard:1"]);
    // Helm takes a default of the chart away for a null of the user.
    let rendered =
        try_template(&values.replace("workers: null", "workers: 3"), &["--set", "sidecar.workers=null"]);
    assert_eq!(settings_of(&rendered.expect("rendered")), settings_of(&template(&values)));
}

#[test]
fn an_image_is_made_of_its_parts() {
    for (image, reference) in [
        ("{registry: r.example, repository: team/guard, tag: v1}", "r.example/team/guard:v1"),
        ("{registry: 'r.example:5000', repository: guard}", "r.example:5000/guard:9.9.9"),
        ("{registry: r.example, repository: guard, tag: null, digest: ''}", "r.example/guard:9.9.9"),
        ("{registry: '', repository: guard, tag: v1}", "guard:v1"),
        ("{repository: guard, tag: 20260131}", "guard:20260131"),
        (
            "{registry: r.example, repository: guard, tag: v1, digest: 'sha256:0af'}",
            "r.example/guard@sha256:0af",
        ),
        ("{repository: guard, digest: 'sha256:0af'}", "guard@sha256:0af"),
    ] {
        let values = format!("namespaces: [{{name: a}}]\nimage: {image}\n");
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
        let reference = format!("--image={odd}/{odd}:{odd}");
        let parts = json!({"registry": odd, "repository": odd, "tag": odd});
        let values = json!({"namespaces": [{"name": "a"}], "image": parts}).to_string();
        assert_same(&values, &["--namespaces", "a", &reference]);
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
        let values = format!("namespaces: {namespaces}\nimage: {{repository: guard, tag: '1'}}\n");
        assert_same(&values, &["--namespaces", flag, "--image", "guard:1"]);
        let objects = objects(&template(&values));
        // One for its pods, one for the controller; and one for that in its own namespace.
        assert_eq!(objects.keys().filter(|name| name.starts_with("Role ")).count(), 2 * number + 1);
    }
}

#[test]
fn namespaces_of_openim_and_those_with_another_certificate_have_the_rights_that_they_need() {
    let values = format!(
        "{}trust: {{namespaces: [openim, b, openim]}}\n",
        MINIMAL.replace("[{name: a}]", "[{name: a, tls: {source: secret}}, {name: b, tls: {source: controller}}, {name: c, tls: {source: certManager}}]")
    );
    assert_same(
        &values,
        &[
            "--namespaces",
            "a,b,c",
            "--image",
            "guard:1",
            "--trust-namespaces",
            "openim,b",
            "--external-tls",
            "a,c",
        ],
    );
}

#[test]
fn the_namespace_of_the_release_may_look_like_a_number_and_be_overridden() {
    let chart = chart(MINIMAL);
    let printed =
        printed(&["--controller", "--own-namespace", "123", "--namespaces", "a", "--image", "guard:1"]);
    for arguments in
        [&["--namespace", "123"][..], &["--namespace", "other", "--set-string", "namespaceOverride=123"]]
    {
        let rendered = helm(&chart, &[&["template", "release"], arguments].concat()).expect("rendered");
        assert_eq!(objects(&rendered), objects(&printed));
    }
}

#[test]
fn another_value_renders_other_objects() {
    let base = "namespaces: [{name: a}]\nimagePullSecrets: [one]\nimage: {repository: guard}\nsidecar: {workers: 2}\n";
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

#[track_caller]
fn assert_refused(values: &str, sentence: &str) {
    let said = try_template(values, &[]).expect_err(values);
    assert!(said.contains(sentence), "{values}\n{said}");
}

#[test]
fn a_wrong_value_fails_with_its_name_and_what_to_set() {
    let image = |image: &str| format!("namespaces: [{{name: a}}]\nimage: {image}\n");
    let sidecar = |settings: &str| format!("{MINIMAL}sidecar: {settings}\n");
    let missing = "image.repository: is missing: set it to";
    for (values, sentence) in [
        ("namespaces: [{name: a}]\n".to_owned(), missing),
        (image("null"), missing),
        (image("{}"), missing),
        (image("{tag: v1}"), missing),
        (image("{repository: ''}"), missing),
        (image("'guard:1'"), "image: must be an object"),
        (image("[a]"), "image: must be an object"),
        (image("{repository: 'a b'}"), "image: Invalid value: \"a b:9.9.9\": must be an image, a reference"),
        (
            image("{repository: guard, tag: 1.10}"),
            "image.tag: Invalid value: 1.1: must be a string: put it in quotes",
        ),
        (
            image("{repository: guard, pullpolicy: Always}"),
            "image.pullpolicy: Unknown value: known are registry,",
        ),
        (
            image("{repository: guard, pullPolicy: always}"),
            "image.pullPolicy: Invalid value: \"always\": must be one of Always,",
        ),
        (sidecar("text"), "sidecar: must be an object"),
        (sidecar("{listenPort: 1}"), "sidecar.listenPort: Unknown setting: known are admin-port, "),
        (sidecar("{image: a}"), "sidecar.image: Unknown setting"),
        (sidecar("{injected-by: x}"), "sidecar.injected-by: Unknown setting"),
        (
            sidecar("{workers: true}"),
            "sidecar.workers: Invalid value: true: must be a string: put it in quotes",
        ),
        (sidecar("{log-level: on}"), "sidecar.log-level: Invalid value: true"),
        (sidecar("{workers: {a: 1}}"), "sidecar.workers: Invalid value: {\"a\":1}: must be a string"),
        (sidecar("{cpu-limit: 0.5}"), "sidecar.cpu-limit: Invalid value: 0.5: must be a string"),
    ] {
        assert_refused(&values, sentence);
    }
}

#[test]
fn a_wrong_name_fails_with_its_place_and_what_to_set() {
    let namespaces = |list: &str| format!("namespaces: {list}\nimage: {{repository: guard}}\n");
    let secrets = |list: &str| format!("{MINIMAL}imagePullSecrets: {list}\n");
    let trust = |trust: &str| format!("{MINIMAL}trust: {trust}\n");
    for (values, sentence) in [
        ("image: {repository: a}\n".to_owned(), "namespaces: is missing: set it to a list"),
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
        (trust("[a]"), "trust: must be an object with a list"),
        (trust("{namespaces: a}"), "trust: must be an object with a list"),
        (trust("{namespaces: [A]}"), "trust.namespaces[0]: Invalid value: \"A\""),
        (trust("{namespaces: [guard]}"), "trust.namespaces[0]: \"guard\" is the namespace of this release"),
        (
            trust("{namespaces: [a, kube-system]}"),
            "trust.namespaces[1]: \"kube-system\": pods there never get the CA",
        ),
    ] {
        assert_refused(&values, sentence);
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
