//! Writes a [`Tree`] as YAML or as JSON, so that every reader of either reads the same.

use super::tree::Tree;
use crate::policy::spec::{Plain, plain_type};

/// As block YAML, lists as deep as the key they stand under, as kubectl writes it.
pub(super) fn yaml(tree: &Tree) -> String {
    let mut text = String::new();
    match tree {
        Tree::Map(entries) if !entries.is_empty() => map(&mut text, entries, 0),
        Tree::List(items) if !items.is_empty() => list(&mut text, items, 0),
        Tree::Plain(_) | Tree::Text { .. } | Tree::List(_) | Tree::Map(_) => {
            text.push_str(&leaf(tree, 0));
            text.push('\n');
        }
    }
    text
}

fn map(text: &mut String, entries: &[(String, Tree)], indent: usize) {
    for (index, (key, value)) in entries.iter().enumerate() {
        // The first key of an item stands behind its dash.
        if index > 0 || !text.ends_with("- ") {
            text.push_str(&" ".repeat(indent));
        }
        text.push_str(&line(key, false));
        text.push(':');
        match value {
            Tree::Map(entries) if !entries.is_empty() => {
                text.push('\n');
                map(text, entries, indent + 2);
            }
            Tree::List(items) if !items.is_empty() => {
                text.push('\n');
                list(text, items, indent);
            }
            Tree::Plain(_) | Tree::Text { .. } | Tree::List(_) | Tree::Map(_) => {
                text.push(' ');
                text.push_str(&leaf(value, indent + 2));
                text.push('\n');
            }
        }
    }
}

fn list(text: &mut String, items: &[Tree], indent: usize) {
    for item in items {
        text.push_str(&" ".repeat(indent));
        match item {
            Tree::Map(entries) if !entries.is_empty() => {
                text.push_str("- ");
                map(text, entries, indent + 2);
            }
            Tree::List(items) if !items.is_empty() => {
                text.push_str("-\n");
                list(text, items, indent + 2);
            }
            Tree::Plain(_) | Tree::Text { .. } | Tree::List(_) | Tree::Map(_) => {
                text.push_str("- ");
                text.push_str(&leaf(item, indent + 2));
                text.push('\n');
            }
        }
    }
}

/// What needs no lines of its own, without its line's end.
fn leaf(tree: &Tree, indent: usize) -> String {
    match tree {
        Tree::Plain(text) if text.is_empty() => "null".to_owned(),
        Tree::Plain(text) => text.clone(),
        Tree::Text { text, quoted } => block(text, indent).unwrap_or_else(|| line(text, *quoted)),
        Tree::List(_) => "[]".to_owned(),
        Tree::Map(_) => "{}".to_owned(),
    }
}

/// A text of several lines as they are, where nothing in it could be read otherwise.
fn block(text: &str, indent: usize) -> Option<String> {
    let plain = |letter: char| letter == '\n' || letter == '\t' || is_printable(letter);
    let blank_line = |line: &str| !line.is_empty() && line.trim().is_empty();
    if !text.contains('\n')
        || text.starts_with([' ', '\t', '\n'])
        || !text.chars().all(plain)
        || text.split('\n').any(blank_line)
    {
        return None;
    }
    let body = text.trim_end_matches('\n');
    let chomping = match text.len() - body.len() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    let mut written = format!("|{chomping}");
    for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
        written.push('\n');
        if !line.is_empty() {
            written.push_str(&" ".repeat(indent));
            written.push_str(line);
        }
    }
    Some(written)
}

/// Printable in every version of YAML, and no end of a line in any.
fn is_printable(letter: char) -> bool {
    matches!(letter, ' '..='~' | '\u{a1}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{10000}'..)
}

/// A text in one line, in quotes unless it is a word that nobody takes for anything else.
fn line(text: &str, quoted: bool) -> String {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte);
    let inner = |byte: u8| word(byte) || b" :@=+,".contains(&byte);
    let bytes = text.as_bytes();
    let safe = bytes.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'/')
        && bytes.last().is_some_and(|last| word(*last))
        && bytes.iter().all(|byte| inner(*byte))
        && !text.contains(": ")
        && plain_type(text) == Plain::Text;
    if safe && !quoted { text.to_owned() } else { in_quotes(text) }
}

fn in_quotes(text: &str) -> String {
    let mut written = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            '\r' => written.push_str("\\r"),
            letter if is_printable(letter) => written.push(letter),
            // What is not printable is below U+10000.
            letter => written.push_str(&format!("\\u{:04x}", u32::from(letter))),
        }
    }
    written.push('"');
    written
}

/// As JSON with an indentation of two; what is plain was JSON before.
pub(super) fn json(tree: &Tree) -> String {
    let mut text = String::new();
    json_value(&mut text, tree, 0);
    text.push('\n');
    text
}

fn json_value(text: &mut String, tree: &Tree, indent: usize) {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match tree {
        Tree::Plain(plain) => text.push_str(plain),
        Tree::Text { text: own, .. } => text.push_str(&quoted(own)),
        Tree::List(items) if items.is_empty() => text.push_str("[]"),
        Tree::Map(entries) if entries.is_empty() => text.push_str("{}"),
        Tree::List(items) => {
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index == 0 { "[\n" } else { ",\n" });
                text.push_str(&" ".repeat(indent + 2));
                json_value(text, item, indent + 2);
            }
            text.push_str(&format!("\n{}]", " ".repeat(indent)));
        }
        Tree::Map(entries) => {
            for (index, (key, value)) in entries.iter().enumerate() {
                text.push_str(if index == 0 { "{\n" } else { ",\n" });
                text.push_str(&format!("{}{}: ", " ".repeat(indent + 2), quoted(key)));
                json_value(text, value, indent + 2);
            }
            text.push_str(&format!("\n{}}}", " ".repeat(indent)));
        }
    }
}
