//! Turns `src/callback/callbacks.json`, the one list of what OpenIM sends and reads, into static tables.
//!
//! The JSON is the data that a person checks against OpenIM's code; the tables are what the program uses, so
//! that nothing is parsed at start and the two cannot differ.

use std::fmt::Write as _;
use std::{env, fs, path::Path};

use serde_json::Value;

const CATALOGUE: &str = "src/callback/callbacks.json";

/// What the program looks at in every callback, in the order of `Watched` in `src/callback/command.rs`.
const WATCHED: &[(&str, &str)] = &[
    ("callbackCommand", "Str"),
    ("operationID", "Str"),
    ("contentType", "INT64"),
    ("sessionType", "INT64"),
    ("platformID", "INT64"),
    ("senderPlatformID", "INT64"),
    ("sendID", "Str"),
    ("recvID", "Str"),
    ("groupID", "Str"),
    ("msgFrom", "INT64"),
];

fn main() {
    println!("cargo::rerun-if-changed={CATALOGUE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=AWS_LC_SYS_NO_JITTER_ENTROPY");
    if env::var_os("AWS_LC_SYS_NO_JITTER_ENTROPY").is_none() {
        println!(
            "cargo::warning=AWS_LC_SYS_NO_JITTER_ENTROPY is not set (is .cargo/config.toml missing?): the \
             program works, and gives its first TLS answer some 30 ms later"
        );
    }
    let text = fs::read_to_string(CATALOGUE).expect("the catalogue must be readable");
    let catalogue: Vec<Value> = serde_json::from_str(&text).expect("the catalogue must be a JSON array");
    let out = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("commands.rs");
    fs::write(&out, tables(&catalogue)).expect("OUT_DIR must be writable");
    fs::write(out.with_file_name("effects.rs"), effects(&catalogue)).expect("OUT_DIR must be writable");
}

/// What OpenIM does with each field of an answer, by command and field.
fn effects(catalogue: &[Value]) -> String {
    let mut out = String::from("pub(super) static EFFECTS: &[(&str, &[(&str, &str)])] = &[\n");
    for entry in catalogue {
        let described = entry["effectOfResponseFields"].as_object().into_iter().flatten();
        // A key may name several fields; those that begin with an underscore name none.
        let fields: Vec<_> = described
            .filter(|(names, _)| !names.starts_with('_'))
            .flat_map(|(names, effect)| names.split(", ").map(|name| (name.to_owned(), effect.as_str())))
            .collect();
        write!(out, "({:?}, &[", text(entry, "command")).expect("writing to a string must not fail");
        for (name, effect) in fields {
            write!(out, "({name:?}, {:?}),", effect.expect("an effect is a text"))
                .expect("writing to a string must not fail");
        }
        out.push_str("]),\n");
    }
    out.push_str("];\n");
    out
}

fn tables(catalogue: &[Value]) -> String {
    let mut out = String::from("pub(super) static COMMANDS: &[Command] = &[\n");
    let mut names = Vec::new();
    for (index, entry) in catalogue.iter().enumerate() {
        let name = text(entry, "command");
        names.push((name.to_owned(), index, false));
        for alias in array(entry, "aliases") {
            let alias = text(alias, "name");
            // An alias that is a command of its own (the published page's name) keeps its own entry.
            if !catalogue.iter().any(|other| text(other, "command") == alias) {
                names.push((alias.to_owned(), index, true));
            }
        }
        let phase = match text(entry, "kind") {
            "before" => "Before",
            "after" => "After",
            other => panic!("{name}: kind {other:?} is neither before nor after"),
        };
        let common: Vec<_> =
            array(entry, "responseFields").iter().take(5).map(|field| text(field, "name")).collect();
        assert_eq!(common, ["actionCode", "errCode", "errMsg", "errDlt", "nextCode"], "{name}");
        let default = match text(&entry["safeDefault"], "mode") {
            "static" => "SafeDefault::Plain".to_owned(),
            "echo" => format!("SafeDefault::Echo(&{:?})", strings(&entry["safeDefault"], "echoFromRequest")),
            other => panic!("{name}: safe default {other:?} is neither static nor echo"),
        };
        let notifications = match entry["notifications"].as_str() {
            None => "Never",
            Some("releases") => "Releases",
            Some("always") => "Always",
            Some(other) => panic!("{name}: notifications {other:?} is neither releases nor always"),
        };
        writeln!(
            out,
            "Command {{ name: {name:?}, phase: Phase::{phase}, default: {default}, \
             notifications: Notifications::{notifications}, request: {}, response: &[{}], order_keys: &[{}] }},",
            request(array(entry, "requestFields")),
            fields(array(entry, "responseFields"), "pointerOrSlice"),
            order_keys(entry),
        )
        .expect("writing to a string must not fail");
    }
    names.sort();
    names.dedup_by(|a, b| {
        assert!(a.0 != b.0 || a.1 == b.1, "{} is an alias of two commands", a.0);
        a.0 == b.0
    });
    out.push_str("];\n\n/// For a command that is not in the table: only what a policy may look at.\n");
    writeln!(out, "pub(super) static UNKNOWN_REQUEST: RequestTable = {};", request(&[]))
        .expect("writing to a string must not fail");
    out.push_str("\n/// Name, index into `COMMANDS`, whether it is an alias; sorted by name.\n");
    out.push_str("pub(super) static NAMES: &[(&str, usize, bool)] = &[\n");
    for (name, index, alias) in names {
        writeln!(out, "({name:?}, {index}, {alias}),").expect("writing to a string must not fail");
    }
    out.push_str("];\n");
    out
}

/// What the events of an after-command are ordered by: the first alternative whose fields are all filled in.
fn order_keys(entry: &Value) -> String {
    let mut out = String::new();
    for key in array(entry, "orderKeys") {
        let kind = match text(key, "kind") {
            "user" => "User",
            "group" => "Group",
            "pair" => "Pair",
            "conversation" => "Conversation",
            other => panic!("{}: no rule for the order key {other:?}", text(entry, "command")),
        };
        let fields = strings(key, "fields");
        write!(out, "OrderKey {{ kind: KeyKind::{kind}, fields: &{fields:?} }},")
            .expect("writing to a string must not fail");
    }
    out
}

/// The catalogue's fields, behind them those that are watched and that the catalogue lacks for this command.
fn request(known: &[Value]) -> String {
    let mut list = fields(known, "nullable");
    let mut count = known.len();
    let mut watched = Vec::new();
    for (name, kind) in WATCHED {
        let at = known.iter().position(|field| text(field, "name") == *name).unwrap_or_else(|| {
            write!(list, "Field {{ name: {name:?}, ty: Type {{ kind: Kind::{kind}, nillable: true }} }},")
                .expect("writing to a string must not fail");
            count += 1;
            count - 1
        });
        watched.push(at);
    }
    format!("RequestTable {{ fields: &[{list}], known: {}, watched: {watched:?} }}", known.len())
}

fn fields(fields: &[Value], nillable: &str) -> String {
    fields.iter().map(|field| self::field(field, nillable)).collect()
}

fn field(field: &Value, nillable: &str) -> String {
    let name = text(field, "name");
    let items = field.get("items").and_then(Value::as_array);
    let nested = || {
        let items: String = items
            .unwrap_or_else(|| panic!("{name}: no items"))
            .iter()
            .map(|item| self::field(item, "nullable"))
            .collect();
        format!("Kind::Struct(&[{items}])")
    };
    let list = |of: String, nil: bool| format!("Kind::List(&Type {{ kind: {of}, nillable: {nil} }})");
    let scalar = |json: &str| match json {
        "string" => "Kind::Str".to_owned(),
        "boolean" => "Kind::Bool".to_owned(),
        "integer(int32)" => "Kind::INT32".to_owned(),
        "integer(uint32)" => "Kind::UINT32".to_owned(),
        "integer(int64)" | "integer" => "Kind::INT64".to_owned(),
        other => panic!("{name}: no rule for the JSON type {other:?}"),
    };
    let json = text(field, "jsonType");
    let kind = match json {
        "object" => nested(),
        // Go's type is a slice of pointers: an element may be null.
        "array<object>" => list(nested(), true),
        "map<string,boolean>" => "Kind::Map(&Type { kind: Kind::Bool, nillable: false })".to_owned(),
        "string(base64)|array<integer 0..255>" => "Kind::Bytes".to_owned(),
        _ => match json.strip_prefix("array<").and_then(|rest| rest.strip_suffix('>')) {
            Some(element) => list(scalar(element), false),
            None => scalar(json),
        },
    };
    // Slices, maps and pointers are nil in Go's type whatever the catalogue's flag is called for this side.
    let go = field.get("goType").and_then(Value::as_str).unwrap_or_default();
    let nil = field.get(nillable).and_then(Value::as_bool).unwrap_or(false)
        || go.starts_with('*')
        || go.starts_with("[]")
        || go.starts_with("map");
    format!("Field {{ name: {name:?}, ty: Type {{ kind: {kind}, nillable: {nil} }} }},")
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is not a string in {value}"))
}

fn array<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value, key: &str) -> Vec<String> {
    array(value, key).iter().map(|item| item.as_str().expect("a field's name").to_owned()).collect()
}
