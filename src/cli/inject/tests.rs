use super::*;

struct Ran {
    code: u8,
    out: String,
    err: String,
}

fn run_on(task: Task, text: &str) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let config = Manifests { files: vec!["-".to_owned()], task };
    let code = run(&config, &mut text.as_bytes(), &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code, out: text(out), err: text(err) }
}

#[track_caller]
fn injected(text: &str) -> String {
    let ran = run_on(Task::Inject(Installation::of_image("callback-guard:1")), text);
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.out
}

#[track_caller]
fn restored(text: &str) -> String {
    let ran = run_on(Task::Uninject, text);
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.out
}

fn read(text: &str) -> Tree {
    let (roots, problem) = spec::documents(text, MANIFESTS);
    assert_eq!(problem, None, "{text}");
    Tree::of(&roots[0]).expect("a tree")
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: app\nspec:\n  containers:\n  - name: app\n    image: app:1\n";

#[test]
fn what_readers_of_yaml_disagree_about_stays_as_it_was_written() {
    let env = "    env: [{name: a, value: \"yes\"}, {name: b, value: '010'}, {name: c, value: \"1e3\"}, {name: d, value: '~'}, \
               {name: e, value: \"\"}, {name: f, value: 010}, {name: g, value: yes}, {name: h, value: 1e3}, {name: i}, \
               {name: j, value: \"a\\u0007b\\u0085c\\\"\\\\\"}, {name: 'k: #', value: '- x'}, {name: l, value: \"2001-01-01\"}]\n\
               \x20   args:\n    - |\n      # no comment\n        in\n\n      out\n    - |-\n      a\n      b\n    - |+\n      a\n\n    - \" x\\n y\"\n\
               \x20   - >\n      folded\n      text\n    - [[], {}, [a, [b]], null, ]\n";
    let text = format!("{POD}{env}");
    let out = injected(&text);
    assert!(
        out.contains("value: \"yes\"\n") && out.contains("value: yes\n") && out.contains("value: 010\n"),
        "{out}"
    );
    let back = restored(&out);
    assert!(read(&back).means(&read(&text)), "{back}");
    assert_eq!(injected(&out), out);
    assert_eq!(restored(&back), back);
}

#[test]
fn documents_that_are_left_alone_stay_as_they_are_and_comments_around_a_changed_one_too() {
    let other = "# a comment\nkind:   Service   # odd\napiVersion: v1\ndata: |\n  ---\n  x\n";
    let text = format!("{other}---\n# Source: chart\n{POD}# behind\n--- # next\n{other}...\n");
    let out = injected(&text);
    assert!(out.starts_with(&format!("{other}---\n# Source: chart\napiVersion: v1\n")), "{out}");
    assert!(out.ends_with(&format!("# behind\n--- # next\n{other}...\n")), "{out}");
    assert_eq!(injected(other), other);
    let crlf = other.replace('\n', "\r\n");
    assert_eq!(injected(&crlf), crlf);
    for text in ["", "# only\n", "---\n---\n", "a: 1", "kind: Custom\nvalue: !mine 5\nvalue: 6\n"] {
        assert_eq!(injected(text), text);
    }
}

#[test]
fn a_comment_at_the_end_of_a_text_is_text() {
    let text = format!("{POD}    args:\n    - |\n      x\n      # y\n");
    let back = restored(&injected(&text));
    assert!(read(&back).means(&read(&text)), "{back}");
}

#[test]
fn json_stays_json_with_its_keys_in_order() {
    let text = r#"{"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [{"name": "x", "image": "\u00e9 \"\\ \n"}], "z": 1.50, "a": null}}"#;
    let out = injected(text);
    serde_json::from_str::<Json>(&out).expect("JSON");
    assert!(
        out.starts_with(
            "{\n  \"kind\": \"Pod\",\n  \"apiVersion\": \"v1\",\n  \"spec\": {\n    \"containers\""
        ),
        "{out}"
    );
    assert!(out.contains("\"z\": 1.50,"), "{out}");
    assert!(read(&restored(&out)).means(&read(text)));
}

#[test]
fn anchors_and_merge_keys_are_written_out() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: &m {name: x}\nspec:\n  <<: &s {containers: [{name: a}], x: *m}\n  x: own\n";
    let out = injected(text);
    let json = read(&restored(&out)).to_json();
    assert_eq!(json["spec"], serde_json::json!({"x": "own", "containers": [{"name": "a"}]}));
}

#[test]
fn what_is_wrong_is_told_with_document_and_line_and_nothing_is_written() {
    for (text, expected) in [
        (format!("{POD}---\na: [1\n"), "-:document 2:10:4: Invalid YAML: "),
        (
            format!("a: 1\n---\n{POD}    name: b\n"),
            "-:document 2:11:5: Invalid manifest: the key \"name\" comes twice\n",
        ),
        (
            POD.replace("app:1", "!x app:1"),
            "-:8:15: Invalid manifest: a value with the tag !x: write it without\n",
        ),
        (
            POD.replace("  name: app\nspec", "  annotations: {callback-guard.io/listen-prot: '1'}\nspec"),
            "-:4:48: Pod: metadata.annotations[callback-guard.io/listen-prot]: Unknown annotation: did you mean \
             \"callback-guard.io/listen-port\"?\n",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {}\n".to_owned(),
            "-:3:7: Deployment: spec.template: Required value: has the pod\n",
        ),
    ] {
        let ran = run_on(Task::Inject(Installation::of_image("callback-guard:1")), &text);
        assert!(
            ran.code == 1 && ran.out.is_empty() && ran.err.starts_with(expected),
            "{}{}",
            ran.err,
            ran.out
        );
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn files_are_put_behind_each_other_as_documents() {
    for (first, second, expected) in [
        ("a: 1", "b: 2", "a: 1\n---\nb: 2"),
        ("a: 1\n", "---\nb: 2\n", "a: 1\n---\nb: 2\n"),
        ("a: 1\n", "%YAML 1.2\n---\nb: 2\n", "a: 1\n...\n%YAML 1.2\n---\nb: 2\n"),
        ("", "b: 2", "b: 2"),
        ("a: 1", "", "a: 1"),
    ] {
        let mut written = String::new();
        join(&mut written, first);
        join(&mut written, second);
        assert_eq!(written, expected);
    }
}
