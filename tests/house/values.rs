//! The chart's values.yaml as a document: its comments become the JSON schema that Helm checks values with, and the table of the
//! chart's README.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// A value of the chart, or a section of values.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The keys that lead to it.
    pub(crate) path: Vec<String>,
    /// Its comment, in one line.
    pub(crate) comment: String,
    /// The default; of a section all that is in it.
    pub(crate) default: Value,
    /// What the line `@schema` says, beside what follows from the default.
    pub(crate) schema: Map<String, Value>,
    /// Whether entries of their own are in it.
    pub(crate) is_section: bool,
}

/// Reads values.yaml, in the order of its lines. Panics if a value has no comment.
pub(crate) fn entries(text: &str) -> Vec<Entry> {
    let all: Value = serde_saphyr::from_str(text).expect("values.yaml is YAML");
    let (mut comments, mut found, mut parents) =
        (Vec::new(), Vec::<Entry>::new(), Vec::<(usize, String)>::new());
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if let Some(comment) = content.strip_prefix('#') {
            comments.push(comment.trim());
            continue;
        }
        let written = std::mem::take(&mut comments);
        let Some((key, _)) = content.split_once(':').filter(|_| !content.starts_with('-')) else { continue };
        while parents.last().is_some_and(|(depth, _)| *depth >= indent) {
            parents.pop();
        }
        parents.push((indent, key.to_owned()));
        let path: Vec<_> = parents.iter().map(|(_, key)| key.clone()).collect();
        let default =
            all.pointer(&format!("/{}", path.join("/"))).unwrap_or_else(|| panic!("{path:?}")).clone();
        let schema = written.iter().find_map(|line| line.strip_prefix("@schema "));
        let schema =
            schema.map(|json| serde_json::from_str(json).unwrap_or_else(|error| panic!("{path:?}: {error}")));
        let words: Vec<_> = written.into_iter().filter(|line| !line.starts_with("@schema ")).collect();
        found.push(Entry {
            path,
            comment: words.join(" "),
            default,
            schema: schema.unwrap_or_default(),
            is_section: false,
        });
    }
    let commented: Vec<_> =
        found.iter().filter(|entry| !entry.comment.is_empty()).map(|entry| entry.path.clone()).collect();
    let holds =
        |path: &[String]| commented.iter().any(|other| other.len() > path.len() && other.starts_with(path));
    for entry in &mut found {
        entry.is_section = entry.default.is_object() && holds(&entry.path);
    }
    // What is inside of a value has no comment, and is not a value of its own.
    let values: Vec<_> =
        found.iter().filter(|entry| !entry.is_section).map(|entry| entry.path.clone()).collect();
    found.retain(|entry| {
        !values.iter().any(|value| entry.path.len() > value.len() && entry.path.starts_with(value))
    });
    for entry in &found {
        assert!(entry.is_section || !entry.comment.is_empty(), "{:?} has no comment", entry.path);
    }
    found
}

/// values.schema.json: nothing that values.yaml does not have, but for what Helm hands to a sub-chart.
pub(crate) fn schema(entries: &[Entry]) -> String {
    let mut schema = section("Values of the chart callback-guard", entries, &[]);
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["properties"]["global"] =
        json!({"type": "object", "description": "Values for all charts of a parent; not used."});
    schema["properties"]["enabled"] =
        json!({"type": "boolean", "description": "For the condition of a parent chart; not used."});
    serde_json::to_string_pretty(&schema).expect("JSON") + "\n"
}

fn section(comment: &str, entries: &[Entry], path: &[String]) -> Value {
    let mut properties = Map::new();
    for entry in
        entries.iter().filter(|entry| entry.path.len() == path.len() + 1 && entry.path.starts_with(path))
    {
        let schema =
            if entry.is_section { section(&entry.comment, entries, &entry.path) } else { value(entry) };
        properties.insert(entry.path.last().expect("a key").clone(), schema);
    }
    let mut schema = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !comment.is_empty() {
        schema["description"] = json!(comment);
    }
    schema
}

fn value(entry: &Entry) -> Value {
    let kind = match &entry.default {
        Value::Null => None,
        Value::Bool(_) => Some("boolean"),
        Value::Number(_) => Some("integer"),
        Value::String(_) => Some("string"),
        Value::Array(_) => Some("array"),
        Value::Object(_) => Some("object"),
    };
    let mut schema = entry.schema.clone();
    if !schema.contains_key("enum") && !schema.contains_key("type") {
        let kind = kind.unwrap_or_else(|| panic!("{:?}: no default, and @schema has no type", entry.path));
        schema.insert("type".to_owned(), json!(kind));
    }
    schema.insert("description".to_owned(), json!(entry.comment));
    schema.insert("default".to_owned(), entry.default.clone());
    Value::Object(schema)
}

/// The rows of the table of values.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut text = String::from("| value | default | what it is |\n|---|---|---|\n");
    for entry in entries.iter().filter(|entry| !entry.comment.is_empty()) {
        let default = if entry.is_section { String::new() } else { format!("`{}`", entry.default) };
        let path = entry.path.join(".");
        writeln!(text, "| `{path}` | {default} | {} |", entry.comment.replace('|', "\\|")).expect("a string");
    }
    text
}

#[test]
fn comments_become_a_schema_and_a_table() {
    let text = "# A file.\n\n# One of\n# two lines.\n# @schema {\"minimum\": 1}\na: 1\nb:\n  # Free.\n  c:\n    d: x\n  # @schema {\"enum\": [\"\", \"x\"]}\n  # Words.\n  e: \"\"\n";
    let found = entries(text);
    let paths: Vec<_> = found.iter().map(|entry| entry.path.join(".")).collect();
    assert_eq!(paths, ["a", "b", "b.c", "b.e"]);
    let schema: Value = serde_json::from_str(&schema(&found)).expect("JSON");
    let a = &schema["properties"]["a"];
    assert_eq!(
        *a,
        json!({"type": "integer", "minimum": 1, "default": 1, "description": "One of two lines."})
    );
    let b = &schema["properties"]["b"];
    assert_eq!(b["additionalProperties"], false);
    assert_eq!(b["properties"]["c"]["default"], json!({"d": "x"}));
    assert_eq!(b["properties"]["e"]["enum"], json!(["", "x"]));
    assert!(b["properties"]["e"].get("type").is_none());
    let table = table(&found);
    assert!(
        table.contains("| `a` | `1` | One of two lines. |\n| `b.c` | `{\"d\":\"x\"}` | Free. |\n"),
        "{table}"
    );
}

#[test]
#[should_panic(expected = "has no comment")]
fn a_value_without_a_comment_is_seen() {
    entries("# Fine.\na: 1\nb: 2\n");
}
