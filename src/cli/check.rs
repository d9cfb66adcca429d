//! `check`: what the proxy would make of a policy, before it is in a cluster.
//!
//! A file holds a policy, an override, or manifests with ConfigMaps that hold them. Nothing is judged here:
//! every document goes through the same door as in the proxy, and what comes back is printed.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::rc::Rc;
use std::time::SystemTime;

use serde_json::{Value as Json, json};

use crate::policy::spec::{self, Limits, Node, Value};
use crate::policy::{self, Problem, Problems, Warnings, overrides};

/// The keys of a ConfigMap that are read.
const POLICY_KEY: &str = "policy.yaml";
const OVERRIDE_KEY: &str = "override.yaml";

/// A file of manifests may be all of a chart.
pub(super) const MANIFESTS: Limits = Limits { bytes: 32 * 1024 * 1024, nodes: 2_000_000 };

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: problems and warnings to standard error, one a line; a summary to standard output.
    Text,
    /// For programs: one object to standard output.
    Json,
}

/// Checks every file, `-` being standard input, and prints all that is wrong. Gives the exit code: 0 when
/// every policy is usable, warnings or not; 1 when one is not, when a file cannot be read, and when there
/// was nothing to check.
///
/// An override is judged as of `now`.
pub fn run(
    files: &[String],
    format: Format,
    stdin: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
    now: SystemTime,
) -> u8 {
    let mut report = Report::default();
    for file in files {
        match read(file, stdin) {
            Ok(text) => FileCheck { file, now, documents: 1, report: &mut report }.text(&text),
            Err(message) => report.entries.push(Entry {
                file: file.clone(),
                document: None,
                source: Source::File,
                problems: vec![whole(format!("cannot be read: {message}"))],
                warnings: Vec::new(),
            }),
        }
    }
    let printed = match format {
        Format::Text => err
            .write_all(report.findings().as_bytes())
            .and_then(|()| out.write_all(report.summary(files.len()).as_bytes())),
        Format::Json => writeln!(out, "{:#}", report.to_json()),
    };
    u8::from(printed.is_err() || !report.ok())
}

/// The text of a file, `-` being standard input.
pub(super) fn read(file: &str, stdin: &mut dyn Read) -> Result<String, String> {
    // One byte more than may be there, so that too much is told from just enough.
    let limit = MANIFESTS.bytes as u64 + 1;
    let mut bytes = Vec::new();
    let read = if file == "-" {
        stdin.take(limit).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| format!("not UTF-8: {}", error.utf8_error()))
}

fn whole(message: String) -> Problem {
    Problem { path: String::new(), message, line: None, column: None }
}

/// Where a checked text stands within its file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// The file itself: it cannot be read, or is no YAML.
    File,
    /// A document that is a policy.
    Policy,
    /// A document that is an override.
    Override,
    /// A key of a ConfigMap; positions count from the beginning of its text.
    Key { map: String, key: &'static str },
}

impl Source {
    fn words(&self) -> String {
        match self {
            Source::File => "file".to_owned(),
            Source::Policy => "policy".to_owned(),
            Source::Override => "override".to_owned(),
            Source::Key { map, key } => format!("{map}, key {key}"),
        }
    }
}

/// What came of one text.
#[derive(Debug)]
struct Entry {
    file: String,
    /// Which document of the file, from 1, where it has several.
    document: Option<usize>,
    source: Source,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Entry {
    fn settle<T>(&mut self, compiled: Result<(T, Warnings), Problems>) {
        match compiled {
            Ok((_, warnings)) => self.warnings.extend(warnings),
            Err(problems) => self.problems.extend(problems),
        }
    }

    fn place(&self) -> String {
        let place = place(&self.file, self.document);
        match &self.source {
            Source::File | Source::Policy | Source::Override => place,
            Source::Key { .. } => format!("{place}: {}", self.source.words()),
        }
    }
}

fn place(file: &str, document: Option<usize>) -> String {
    match document {
        Some(number) => format!("{file}:document {number}"),
        None => file.to_owned(),
    }
}

#[derive(Debug, Default)]
struct Report {
    entries: Vec<Entry>,
    skipped: Vec<(String, Option<usize>, String)>,
}

impl Report {
    fn checked(&self) -> usize {
        self.entries.iter().filter(|entry| entry.source != Source::File).count()
    }

    fn ok(&self) -> bool {
        self.checked() > 0 && self.entries.iter().all(|entry| entry.problems.is_empty())
    }

    fn findings(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            let place = entry.place();
            let problems = entry.problems.iter().map(|problem| ("", problem));
            let warnings = entry.warnings.iter().map(|warning| ("warning: ", warning));
            for (kind, problem) in problems.chain(warnings) {
                let at = problem.place();
                writeln!(text, "{place}{at}: {kind}{problem}").expect("writing to a string must not fail");
            }
        }
        text
    }

    fn summary(&self, files: usize) -> String {
        let mut text = String::new();
        for (file, document, reason) in &self.skipped {
            writeln!(text, "{}: skipped: {reason}", place(file, *document))
                .expect("writing to a string must not fail");
        }
        let problems: usize = self.entries.iter().map(|entry| entry.problems.len()).sum();
        let warnings: usize = self.entries.iter().map(|entry| entry.warnings.len()).sum();
        let checked = match self.checked() {
            0 => "nothing to check".to_owned(),
            number => format!("{} checked", count(number, "document")),
        };
        writeln!(
            text,
            "{checked} in {}: {}, {}",
            count(files, "file"),
            count(problems, "problem"),
            count(warnings, "warning")
        )
        .expect("writing to a string must not fail");
        text
    }

    fn to_json(&self) -> Json {
        let problem = |problem: &Problem| {
            json!({
                "path": problem.path,
                "message": problem.message,
                "line": problem.line,
                "column": problem.column,
            })
        };
        let entry = |entry: &Entry| {
            json!({
                "file": entry.file,
                "document": entry.document.unwrap_or(1),
                "source": entry.source.words(),
                "problems": entry.problems.iter().map(problem).collect::<Vec<_>>(),
                "warnings": entry.warnings.iter().map(problem).collect::<Vec<_>>(),
            })
        };
        let skipped = |skipped: &(String, Option<usize>, String)| {
            let (file, document, reason) = skipped;
            json!({ "file": file, "document": document.unwrap_or(1), "reason": reason })
        };
        json!({
            "files": self.entries.iter().map(entry).collect::<Vec<_>>(),
            "skipped": self.skipped.iter().map(skipped).collect::<Vec<_>>(),
            "ok": self.ok(),
        })
    }
}

fn count(number: usize, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{s}")
}

/// The check of one file.
struct FileCheck<'r> {
    file: &'r str,
    now: SystemTime,
    /// How many documents the file has.
    documents: usize,
    report: &'r mut Report,
}

impl FileCheck<'_> {
    fn text(&mut self, text: &str) {
        let (roots, problem) = spec::documents(text, MANIFESTS);
        self.documents = roots.len() + usize::from(problem.is_some());
        let manifest = |root: &Node| root.get("apiVersion").is_some() || root.get("kind").is_some();
        let mut bare = 0;
        for (index, root) in roots.iter().enumerate() {
            let number = index + 1;
            if manifest(root) {
                self.manifest(number, root, None);
                continue;
            }
            bare += 1;
            let mut entry = self.document(number, root, text);
            if bare > 1 {
                let message =
                    "Too many: the proxy takes one document a file; an override is a file of its own";
                let (message, line, column) = (message.to_owned(), Some(root.at.line), Some(root.at.column));
                entry.problems.push(Problem { path: String::new(), message, line, column });
            }
            self.report.entries.push(entry);
        }
        if let Some(problem) = problem {
            let mut entry = self.entry(self.documents, Source::File);
            entry.problems.push(problem);
            self.report.entries.push(entry);
        } else if roots.is_empty() {
            let mut entry = self.entry(1, Source::Policy);
            entry.settle(policy::compile(text));
            entry.warnings.push(whole("Empty: the built-in defaults are in force".to_owned()));
            self.report.entries.push(entry);
        }
    }

    fn entry(&self, number: usize, source: Source) -> Entry {
        Entry {
            file: self.file.to_owned(),
            document: (self.documents > 1).then_some(number),
            source,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Checks a document that is no manifest: a policy, or an override where it has what only one of those
    /// has.
    fn document(&self, number: usize, root: &Node, text: &str) -> Entry {
        let is_override = root.get("until").is_some() || root.get("reason").is_some();
        let source = if is_override { Source::Override } else { Source::Policy };
        let mut entry = self.entry(number, source);
        // Alone in its file it goes in as the text that the proxy would read, bounds included.
        match (is_override, self.documents == 1) {
            (true, true) => entry.settle(overrides::compile(text, self.now)),
            (true, false) => entry.settle(overrides::compile_node(root, self.now)),
            (false, true) => entry.settle(policy::compile(text)),
            (false, false) => entry.settle(policy::compile_node(root)),
        }
        entry
    }

    /// Checks the keys of a ConfigMap, and the items of a list; says why it leaves out anything else. Items
    /// of a typed list do not name their kind.
    fn manifest(&mut self, number: usize, root: &Node, kind_of_list: Option<&str>) {
        let kind = root.get("kind").and_then(|kind| kind.scalar()).or(kind_of_list).unwrap_or("no kind");
        if let (Some(item_kind), Some(Value::List(items))) =
            (kind.strip_suffix("List"), root.get("items").map(|items| &items.value))
        {
            for item in items {
                self.manifest(number, item, (!item_kind.is_empty()).then_some(item_kind));
            }
            return;
        }
        let map = format!("{kind}{}", name_of(root));
        if kind != "ConfigMap" {
            return self.skip(number, format!("{map} is not a ConfigMap"));
        }
        let keys = [POLICY_KEY, OVERRIDE_KEY];
        let data = root.get("data");
        let found = keys.map(|key| (key, data.and_then(|data| data.get(key))));
        if found.iter().all(|(_, text)| text.is_none()) {
            return self.skip(number, format!("{map} has neither {POLICY_KEY} nor {OVERRIDE_KEY}"));
        }
        for (key, node) in found {
            if let Some(node) = node {
                let entry = self.key(number, &map, key, node);
                self.report.entries.push(entry);
            }
        }
    }

    fn key(&self, number: usize, map: &str, key: &'static str, node: &Rc<Node>) -> Entry {
        let mut entry = self.entry(number, Source::Key { map: map.to_owned(), key });
        match node.scalar() {
            Some(text) if key == POLICY_KEY => entry.settle(policy::compile(text)),
            Some(text) => entry.settle(overrides::compile(text, self.now)),
            None => entry.problems.push(whole(format!(
                "Invalid value: must be text; in line {} of the file write {key}: | and indent what follows",
                node.at.line
            ))),
        }
        entry
    }

    fn skip(&mut self, number: usize, reason: String) {
        let document = (self.documents > 1).then_some(number);
        self.report.skipped.push((self.file.to_owned(), document, reason));
    }
}

/// ` NAMESPACE/NAME` of a manifest, as far as it says.
fn name_of(root: &Node) -> String {
    let metadata = root.get("metadata");
    let part = |key| metadata.and_then(|metadata| metadata.get(key)).and_then(|part| part.scalar());
    match (part("namespace"), part("name")) {
        (Some(namespace), Some(name)) => format!(" {namespace}/{name}"),
        (None, Some(name)) => format!(" {name}"),
        (_, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;

    /// 2026-12-01T00:00:00Z.
    const NOW: Duration = Duration::from_secs(1_796_083_200);

    struct Ran {
        code: u8,
        out: String,
        err: String,
    }

    fn run_on(files: &[&str], stdin: &str, format: Format) -> Ran {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let now = SystemTime::UNIX_EPOCH + NOW;
        let code = run(&files, format, &mut stdin.as_bytes(), &mut out, &mut err, now);
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Ran { code, out: text(out), err: text(err) }
    }

    fn piped(text: &str) -> Ran {
        run_on(&["-"], text, Format::Text)
    }

    fn fixtures(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/policies").join(folder);
        let entries = std::fs::read_dir(&folder).expect("the folder of fixtures");
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        files.sort();
        assert!(!files.is_empty(), "{folder:?}");
        files
    }

    #[test]
    fn every_valid_fixture_is_fine_and_quiet() {
        for path in fixtures("valid") {
            let ran = run_on(&[path.to_str().expect("UTF-8")], "", Format::Text);
            assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{path:?}");
        }
    }

    #[test]
    fn every_invalid_fixture_has_exactly_its_problems() {
        for path in fixtures("invalid") {
            let text = std::fs::read_to_string(&path).expect("readable");
            let expected = std::fs::read_to_string(path.with_extension("stderr")).unwrap_or_default();
            let ran = piped(&text);
            assert_eq!(ran.err.replace("-:", "FILE:"), expected, "{path:?}");
            assert_eq!(ran.code, 1, "{path:?}");
        }
    }

    #[test]
    fn a_policy_is_told_from_an_override() {
        let good = piped("rules: []\n");
        assert_eq!(
            (good.code, good.out.as_str()),
            (0, "1 document checked in 1 file: 0 problems, 0 warnings\n")
        );
        let bad = piped("rulse: []\n");
        assert_eq!((bad.code, bad.err.as_str()), (1, "-:1:1: rulse: Unknown key: did you mean \"rules\"?\n"));
        let over = piped("answer: Allow\nuntil: 2026-12-02T00:00:00Z\nreason: a drill\n");
        assert_eq!((over.code, over.err.as_str()), (0, ""));
        let past = piped("answer: Allow\nuntil: 2026-11-02T00:00:00Z\nreason: a drill\n");
        assert_eq!(past.code, 0);
        assert_eq!(
            past.err,
            "-:2:8: warning: until: Past: \"2026-11-02T00:00:00Z\": the override is inert\n"
        );
    }

    const CONFIG_MAPS: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: guard, namespace: chat}
data:
  policy.yaml: |
    defaults:
      timeout: 0s
  override.yaml: |
    answer: Allow
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {a: b}
---
apiVersion: v1
kind: List
items:
- kind: ConfigMap
  metadata: {name: listed}
  data: {policy.yaml: 'mode: Observe', other: x}
";

    #[test]
    fn config_maps_are_checked_and_the_rest_is_skipped() {
        let ran = piped(CONFIG_MAPS);
        assert_eq!(
            ran.err,
            "-:document 1: ConfigMap chat/guard, key policy.yaml:2:12: defaults.timeout: Invalid value: \"0s\": \
             must be at least 10ms\n\
             -:document 1: ConfigMap chat/guard, key override.yaml:1:1: until: Required value\n\
             -:document 1: ConfigMap chat/guard, key override.yaml:1:1: reason: Required value\n"
        );
        assert_eq!(
            ran.out,
            "-:document 2: skipped: Deployment app is not a ConfigMap\n\
             -:document 3: skipped: ConfigMap other has neither policy.yaml nor override.yaml\n\
             3 documents checked in 1 file: 3 problems, 0 warnings\n"
        );
        assert_eq!(ran.code, 1);
    }

    #[test]
    fn a_typed_list_and_json_are_manifests_too() {
        let text = r#"{"apiVersion": "v1", "kind": "ConfigMapList", "items": [
            {"metadata": {"name": "guard"}, "data": {"policy.yaml": "version: 2\n"}}]}"#;
        let ran = piped(text);
        assert_eq!(
            ran.err,
            "-: ConfigMap guard, key policy.yaml:1:10: version: Unsupported value: 2: supported values: \"1\"\n"
        );
        let nested = piped("kind: ConfigMap\ndata:\n  policy.yaml:\n    mode: Observe\n");
        assert_eq!(
            (nested.code, nested.err.as_str()),
            (
                1,
                "-: ConfigMap, key policy.yaml: Invalid value: must be text; in line 4 of the file write \
                 policy.yaml: | and indent what follows\n"
            )
        );
    }

    #[test]
    fn several_documents_are_counted_from_one_and_go_on_after_a_bad_one() {
        let ran = piped("mode: Obsrve\n---\nmode: Observe\n---\nmode: [\n");
        assert_eq!(ran.code, 1);
        let lines: Vec<_> = ran.err.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "-:document 1:1:7: mode: Unsupported value: \"Obsrve\": supported values: \"Enforce\", \"Observe\"",
                "-:document 2:3:1: Too many: the proxy takes one document a file; an override is a file of its own",
            ]
        );
        assert!(lines[2].starts_with("-:document 3:"), "{lines:?}");
        assert!(lines[2].contains("Invalid YAML: "), "{lines:?}");
    }

    #[test]
    fn nothing_to_check_is_a_failure_and_so_is_a_file_that_is_not_there() {
        let none = piped("kind: Secret\nmetadata: {name: x}\n");
        assert_eq!(none.code, 1);
        assert_eq!(
            none.out,
            "-: skipped: Secret x is not a ConfigMap\nnothing to check in 1 file: 0 problems, 0 warnings\n"
        );
        let missing = run_on(&["/nonexistent.yaml", "-"], "version: 1", Format::Text);
        assert_eq!(missing.code, 1);
        assert!(missing.err.starts_with("/nonexistent.yaml: cannot be read: "), "{}", missing.err);
        assert_eq!(missing.out, "1 document checked in 2 files: 1 problem, 0 warnings\n");
        assert_eq!(run_on(&[], "", Format::Text).code, 1);
        let empty = piped("# nothing yet\n");
        assert_eq!(
            (empty.code, empty.err.as_str()),
            (0, "-: warning: Empty: the built-in defaults are in force\n")
        );
    }

    #[test]
    fn json_holds_the_same() {
        let ran = run_on(&["-"], "version: 1\nmodes: x\n", Format::Json);
        let json: Json = serde_json::from_str(&ran.out).expect("JSON");
        assert_eq!(
            json,
            json!({
                "files": [{
                    "file": "-",
                    "document": 1,
                    "source": "policy",
                    "problems": [{
                        "path": "modes",
                        "message": "Unknown key: did you mean \"mode\"?",
                        "line": 2,
                        "column": 1,
                    }],
                    "warnings": [],
                }],
                "skipped": [],
                "ok": false,
            })
        );
        assert_eq!((ran.code, ran.err.as_str()), (1, ""));
        let maps = run_on(&["-"], CONFIG_MAPS, Format::Json);
        let json: Json = serde_json::from_str(&maps.out).expect("JSON");
        assert_eq!(json["files"][0]["source"], "ConfigMap chat/guard, key policy.yaml");
        assert_eq!(json["skipped"][0]["reason"], "Deployment app is not a ConfigMap");
        assert_eq!(run_on(&["-"], "version: 1", Format::Json).code, 0);
    }
}
