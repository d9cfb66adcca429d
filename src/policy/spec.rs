//! The document as written: a tree of nodes, each with its position, so that every problem can be named with
//! its path, line and column in one run.
//!
//! The tree keeps scalars as text and says whether they stood in quotes. YAML readers differ in what they
//! make of `yes`, `010` or `1_000`; here nothing is made of them, and who reads a field can say what it
//! found.

use std::collections::HashMap;
use std::rc::Rc;

use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span, StrInput, Tag};

use super::problem::Problem;

/// Nested collections; a policy needs five, a manifest some twelve.
const NESTING_LIMIT: usize = 64;

/// The same with aliases followed: what is freed or walked level by level has to fit on a stack.
const DEPTH_LIMIT: usize = 2 * NESTING_LIMIT;

/// How much a text may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of text.
    pub(crate) bytes: usize,
    /// Nodes, those that an alias repeats counted each time: a few lines of aliases of aliases would
    /// otherwise stand for more nodes than there is memory.
    pub(crate) nodes: usize,
}

/// A policy, or an override. A ConfigMap holds at most 1 MiB in all.
pub(crate) const DOCUMENT: Limits = Limits { bytes: 1024 * 1024, nodes: 50_000 };

/// Where something stands, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

/// One value of the document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Position,
    /// How many nodes this one is, itself included.
    weight: usize,
    /// How many levels of them there are.
    depth: usize,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// A scalar. `plain` is one without quotes, whose type would be guessed from its text.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Rc<Node>>),
    /// A mapping in the order of the text, repeated keys included.
    Map(Vec<(Rc<Node>, Rc<Node>)>),
    /// A value with a tag that says something else than what the value is anyway.
    Tagged(String),
}

/// What a plain scalar would be taken for by a reader of YAML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Nothing, `~`, `null`.
    Null,
    /// `true`, and what only older readers take for it, as `yes` and `off`.
    Bool,
    /// `5`, and what only some readers take for a number, as `010`, `1_000`, `0x1F` and `1:30`.
    Number,
    /// Text.
    Text,
}

impl Node {
    /// Whether the node is there but empty.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if plain_type(text) == Plain::Null)
    }

    /// The value of a key of a mapping; the first where there are several.
    pub(crate) fn get(&self, key: &str) -> Option<&Rc<Node>> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(name, _)| name.scalar() == Some(key)).map(|(_, value)| value)
    }

    /// The text of a scalar.
    pub(crate) fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            Value::List(_) | Value::Map(_) | Value::Tagged(_) => None,
        }
    }
}

/// What readers of YAML 1.1 and 1.2 would take a scalar without quotes for.
pub(crate) fn plain_type(text: &str) -> Plain {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "" | "~" | "null" => return Plain::Null,
        "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" => return Plain::Bool,
        ".inf" | "+.inf" | "-.inf" | ".nan" => return Plain::Number,
        _ => {}
    }
    let digits = lower.strip_prefix(['+', '-']).unwrap_or(&lower).replace('_', "");
    let radix = |prefix: &str, radix| {
        digits
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_digit(radix)))
    };
    let starts = digits.strip_prefix('.').unwrap_or(&digits).starts_with(|c: char| c.is_ascii_digit());
    let decimal = starts && digits.parse::<f64>().is_ok();
    let sexagesimal = starts
        && digits.contains(':')
        && digits
            .split(':')
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    if decimal || sexagesimal || radix("0x", 16) || radix("0o", 8) || radix("0b", 2) {
        Plain::Number
    } else {
        Plain::Text
    }
}

/// Reads every document of a text. What stands before a syntax error is returned along with it; a document
/// that holds nothing is left out.
pub(crate) fn documents(text: &str, limits: Limits) -> (Vec<Rc<Node>>, Option<Problem>) {
    if text.len() > limits.bytes {
        let message = format!("Too long: {} bytes: must be at most {} bytes", text.len(), limits.bytes);
        return (Vec::new(), Some(Problem { path: String::new(), message, line: None, column: None }));
    }
    let mut options = Options::default();
    // Else the parser gives up on a text that opens with more comments than it cares to buffer.
    options.set_emit_comments(false);
    options.flow_nesting_limit = NESTING_LIMIT;
    options.block_nesting_limit = NESTING_LIMIT;
    let mut tree =
        Tree { open: Vec::new(), anchors: HashMap::new(), roots: Vec::new(), nodes: 0, limit: limits.nodes };
    for event in Parser::with_options(StrInput::new(text), options) {
        let step = match event {
            Ok((event, span)) => tree.take(event, position(&span)),
            Err(error) => {
                let marker = error.marker();
                let at = Position { line: narrow(marker.line()), column: narrow(marker.col() + 1) };
                Err(problem(at, &format!("Invalid YAML: {}", error.info())))
            }
        };
        if let Err(problem) = step {
            return (tree.finished(), Some(problem));
        }
    }
    (tree.finished(), None)
}

fn problem(at: Position, message: &str) -> Problem {
    Problem { path: String::new(), message: message.to_owned(), line: Some(at.line), column: Some(at.column) }
}

fn position(span: &Span) -> Position {
    Position { line: narrow(span.start.line()), column: narrow(span.start.col() + 1) }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A collection whose end has not come yet.
struct Open {
    at: Position,
    anchor: usize,
    tag: Option<String>,
    map: bool,
    weight: usize,
    depth: usize,
    items: Vec<Rc<Node>>,
}

struct Tree {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    roots: Vec<Rc<Node>>,
    nodes: usize,
    limit: usize,
}

impl Tree {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser's enum may grow, by events that are no nodes"
    )]
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Problem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text = text.into_owned();
                let value = match tag.as_deref().map(tag_name) {
                    None => Value::Scalar { plain: style == ScalarStyle::Plain, text },
                    Some(tag) if tag == "!!str" || tag == "!" => Value::Scalar { text, plain: false },
                    Some(tag) => Value::Tagged(tag),
                };
                self.close(Node { value, at, weight: 1, depth: 1 }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => self.start(at, anchor, tag.as_deref(), false),
            Event::MappingStart(_, anchor, tag) => self.start(at, anchor, tag.as_deref(), true),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { at, anchor, tag, map, weight, depth, items }) = self.open.pop() else {
                    return Ok(());
                };
                let value = match tag {
                    Some(tag) => Value::Tagged(tag),
                    None if map => Value::Map(pairs(items)),
                    None => Value::List(items),
                };
                self.close(Node { value, at, weight, depth }, anchor)
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor).cloned() {
                Some(node) => self.add(Rc::new(Node { at, ..(*node).clone() })),
                None => Err(problem(at, "Invalid YAML: an alias that stands within what it stands for")),
            },
            // What is left says nothing about the tree: the beginning and end of the stream and its
            // documents.
            _ => Ok(()),
        }
    }

    fn start(&mut self, at: Position, anchor: usize, tag: Option<&Tag>, map: bool) -> Result<(), Problem> {
        let own = if map { "!!map" } else { "!!seq" };
        let tag = tag.map(tag_name).filter(|tag| tag != own && tag != "!");
        self.open.push(Open { at, anchor, tag, map, weight: 1, depth: 1, items: Vec::new() });
        Ok(())
    }

    fn close(&mut self, node: Node, anchor: usize) -> Result<(), Problem> {
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        // What a collection holds was counted when it was added.
        self.nodes += 1;
        self.place(node)
    }

    /// Adds what an alias repeats.
    fn add(&mut self, node: Rc<Node>) -> Result<(), Problem> {
        self.nodes = self.nodes.saturating_add(node.weight);
        self.place(node)
    }

    fn place(&mut self, node: Rc<Node>) -> Result<(), Problem> {
        if self.nodes > self.limit {
            let message = format!("Too many: must have at most {} values, aliases repeated", self.limit);
            return Err(problem(node.at, &message));
        }
        if self.open.len() + node.depth > DEPTH_LIMIT {
            return Err(problem(node.at, &format!("Too deep: must have at most {DEPTH_LIMIT} levels")));
        }
        match self.open.last_mut() {
            Some(open) => {
                open.depth = open.depth.max(node.depth + 1);
                open.weight = open.weight.saturating_add(node.weight);
                open.items.push(node);
            }
            None => self.roots.push(node),
        }
        Ok(())
    }

    fn finished(self) -> Vec<Rc<Node>> {
        self.roots.into_iter().filter(|root| !root.is_null()).collect()
    }
}

fn pairs(items: Vec<Rc<Node>>) -> Vec<(Rc<Node>, Rc<Node>)> {
    let mut items = items.into_iter();
    let mut pairs = Vec::with_capacity(items.len() / 2);
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        pairs.push((key, value));
    }
    pairs
}

fn tag_name(tag: &Tag) -> String {
    if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix()) } else { tag.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Rc<Node> {
        let (mut roots, problem) = documents(text, DOCUMENT);
        assert_eq!((roots.len(), problem), (1, None), "{text}");
        roots.remove(0)
    }

    fn broken(text: &str) -> Problem {
        documents(text, DOCUMENT).1.expect("a problem")
    }

    #[test]
    fn every_node_has_its_position() {
        let root = one("# first\na: 1\nb:\n  - x\n  - {c: d}\n");
        let list = root.get("b").expect("b");
        let Value::List(items) = &list.value else { panic!("{list:?}") };
        assert_eq!(root.get("a").expect("a").at, Position { line: 2, column: 4 });
        assert_eq!(items[0].at, Position { line: 4, column: 5 });
        assert_eq!(items[1].get("c").expect("c").at, Position { line: 5, column: 9 });
    }

    #[test]
    fn scalars_stay_text_and_quotes_are_known() {
        let root = one("- yes\n- 'yes'\n- 010\n- !!str 010\n- !!int 5\n- |\n  off\n");
        let Value::List(items) = &root.value else { panic!("{root:?}") };
        let scalar = |text: &str, plain| Value::Scalar { text: text.to_owned(), plain };
        let values: Vec<_> = items.iter().map(|item| item.value.clone()).collect();
        assert_eq!(
            values,
            [
                scalar("yes", true),
                scalar("yes", false),
                scalar("010", true),
                scalar("010", false),
                Value::Tagged("!!int".to_owned()),
                scalar("off\n", false),
            ]
        );
    }

    #[test]
    fn plain_scalars_are_sorted_as_any_reader_might() {
        for (texts, expected) in [
            (&["", "~", "null", "NULL"][..], Plain::Null),
            (&["true", "False", "yes", "No", "ON", "off", "y", "N"], Plain::Bool),
            (
                &[
                    "0", "-5", "+5", "010", "1_000", "0x1F", "0o17", "0b11", "1.5", ".5", "1e3", ".inf",
                    ".NaN", "1:30",
                ],
                Plain::Number,
            ),
            (
                &[
                    "2s", "bot-*", "10.0.0.1", "1.5s", "nope", "truest", "inf", "nan", "e3", "0x", "-",
                    "a:1", "1:a", ".",
                ],
                Plain::Text,
            ),
        ] {
            for text in texts {
                assert_eq!(plain_type(text), expected, "{text}");
            }
        }
    }

    #[test]
    fn documents_are_told_apart_and_empty_ones_left_out() {
        for (text, count) in [
            ("", 0),
            ("# only a comment\n", 0),
            ("---\n", 0),
            ("---\n---\na: 1\n...\n---\nb: 2\n", 2),
            ("a: 1", 1),
        ] {
            let (roots, problem) = documents(text, DOCUMENT);
            assert_eq!((roots.len(), problem), (count, None), "{text:?}");
        }
        let many_comments = "# comment\n".repeat(1_000) + "a:\n" + &"  # comment\n".repeat(1_000) + "  - b\n";
        one(&many_comments);
    }

    #[test]
    fn aliases_are_followed_and_a_bomb_is_refused_at_once() {
        let root = one("a: &x [1, 2]\nb: *x\n");
        assert_eq!(root.get("a").expect("a").value, root.get("b").expect("b").value);
        assert_eq!(root.get("b").expect("b").at, Position { line: 2, column: 4 });

        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..30 {
            let below = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{below}"); 10].join(", "));
        }
        let start = std::time::Instant::now();
        let problem = broken(&bomb);
        assert!(start.elapsed() < std::time::Duration::from_millis(500));
        assert!(problem.message.starts_with("Too many: must have at most 50000 values"), "{problem:?}");
        let mut tower = "a0: &a0 [x]\n".to_owned();
        for level in 1..200 {
            let below = level - 1;
            tower += &format!("a{level}: &a{level} [*a{below}]\n");
        }
        assert_eq!(broken(&tower).message, "Too deep: must have at most 128 levels");
        assert!(broken("a: &x [*x]\n").message.contains("alias"));
        assert!(broken("a: *nobody\n").message.starts_with("Invalid YAML: "));
    }

    #[test]
    fn a_syntax_error_has_its_position_and_keeps_what_stood_before() {
        let (roots, problem) = documents("a: 1\n---\nb: [1\n", DOCUMENT);
        assert_eq!(roots.len(), 1);
        let problem = problem.expect("unclosed");
        assert!(problem.message.starts_with("Invalid YAML: "), "{problem:?}");
        assert!(problem.line.is_some_and(|line| line >= 3), "{problem:?}");
    }

    #[test]
    fn a_text_beyond_the_limits_is_refused() {
        assert_eq!(documents(&" ".repeat(DOCUMENT.bytes), DOCUMENT), (Vec::new(), None));
        assert_eq!(
            broken(&" ".repeat(DOCUMENT.bytes + 1)).message,
            "Too long: 1048577 bytes: must be at most 1048576 bytes"
        );
        assert!(broken(&"[".repeat(200)).message.starts_with("Invalid YAML: "));
        assert!(broken(&"- ".repeat(200)).message.starts_with("Invalid YAML: "));
    }
}
