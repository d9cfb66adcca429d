//! The sidecar as a template: one tree that is rendered twice, as JSON for `inject -f` and as CEL for the admission
//! policy, so that the two cannot differ but in the values that go into it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A value of the container or of a volume.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// A text, put together from parts.
    Text(Vec<Part>),
    /// A number that is the same for every pod.
    Int(i64),
    /// A number of [`Values`].
    IntOf(&'static str),
    /// `true` or `false`.
    Bool(bool),
    /// An object of the Kubernetes API, with its fields.
    Object(Vec<(&'static str, Node)>),
    /// A map whose keys are data, such as the resources of a container.
    Map(Vec<(&'static str, Node)>),
    /// A list.
    List(Vec<Node>),
    /// A field or an item that is only there if a condition of [`Values`] holds.
    If(String, Box<Node>),
}

/// A part of a text.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// The same for every pod.
    Is(String),
    /// A text of [`Values`].
    Of(&'static str),
    /// A number of [`Values`].
    Number(&'static str),
}

pub(super) fn text(text: impl Into<String>) -> Node {
    Node::Text(vec![Part::Is(text.into())])
}

pub(super) fn of(name: &'static str) -> Node {
    Node::Text(vec![Part::Of(name)])
}

pub(super) fn texts(texts: &[&str]) -> Node {
    Node::List(texts.iter().map(|one| text(*one)).collect())
}

pub(super) fn only_if(condition: impl Into<String>, node: Node) -> Node {
    Node::If(condition.into(), Box::new(node))
}

/// What goes into a template for one pod. In CEL each is a variable of the same name.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub(super) texts: BTreeMap<&'static str, String>,
    pub(super) numbers: BTreeMap<&'static str, i64>,
    pub(super) conditions: BTreeMap<String, bool>,
}

impl Values {
    fn text(&self, name: &str) -> &str {
        self.texts.get(name).unwrap_or_else(|| unreachable!("a template names the unknown text {name}"))
    }

    fn number(&self, name: &str) -> i64 {
        *self.numbers.get(name).unwrap_or_else(|| unreachable!("a template names the unknown number {name}"))
    }

    fn holds(&self, name: &str) -> bool {
        let holds = self.conditions.get(name);
        *holds.unwrap_or_else(|| unreachable!("a template names the unknown condition {name}"))
    }
}

impl Node {
    /// As JSON; `None` if its condition does not hold.
    pub(super) fn json(&self, values: &Values) -> Option<Value> {
        Some(match self {
            Node::Text(parts) => parts.iter().map(|part| part.text(values)).collect::<String>().into(),
            Node::Int(number) => (*number).into(),
            Node::IntOf(name) => values.number(name).into(),
            Node::Bool(is) => (*is).into(),
            Node::Object(fields) | Node::Map(fields) => {
                let fields =
                    fields.iter().filter_map(|(key, node)| Some(((*key).to_owned(), node.json(values)?)));
                Value::Object(fields.collect::<Map<_, _>>())
            }
            Node::List(items) => items.iter().filter_map(|item| item.json(values)).collect(),
            Node::If(condition, node) if values.holds(condition) => return node.json(values),
            Node::If(..) => return None,
        })
    }

    /// The condition under which it is there, if it has one, and what is there then.
    pub(super) fn condition(&self) -> (Option<&str>, &Node) {
        if let Node::If(condition, node) = self { (Some(condition), node) } else { (None, self) }
    }

    /// As CEL. `kind` is the name of its type, `Object.spec.volumes` say, from which those of its fields follow.
    pub(super) fn cel(&self, kind: &str) -> String {
        match self {
            Node::Text(parts) => text_in_cel(parts),
            Node::Int(number) => number.to_string(),
            Node::IntOf(name) => variable(name),
            Node::Bool(is) => is.to_string(),
            Node::Object(fields) => {
                let fields = fields.iter().map(|(key, node)| field(key, node, &format!("{kind}.{key}")));
                format!("{kind}{{{}}}", joined(fields.collect()))
            }
            Node::Map(fields) => {
                let fields = fields.iter().map(|(key, node)| field(&quoted(key), node, kind));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
            }
            Node::List(items) => {
                // Items with a condition are lists of their own.
                let mut lists: Vec<(Option<&str>, Vec<String>)> = Vec::new();
                for item in items {
                    let (condition, item) = item.condition();
                    match lists.last_mut() {
                        Some((last, list)) if *last == condition => list.push(item.cel(kind)),
                        Some(_) | None => lists.push((condition, vec![item.cel(kind)])),
                    }
                }
                let lists = lists.into_iter().map(|(condition, items)| {
                    let list = format!("[{}]", joined(items));
                    condition
                        .map_or(list.clone(), |condition| format!("({} ? {list} : [])", variable(condition)))
                });
                lists.collect::<Vec<_>>().join("\n+ ")
            }
            Node::If(condition, node) => {
                let value = node.cel(kind);
                format!("{} ? optional.of({value}) : optional.none()", variable(condition))
            }
        }
    }
}

/// Parts as one sum, literals beside each other as one.
fn text_in_cel(parts: &[Part]) -> String {
    let mut terms = Vec::new();
    let mut literal = String::new();
    for part in parts {
        match part {
            Part::Is(text) => literal.push_str(text),
            Part::Of(_) | Part::Number(_) => {
                if !literal.is_empty() {
                    terms.push(quoted(&std::mem::take(&mut literal)));
                }
                terms.push(part.cel());
            }
        }
    }
    if !literal.is_empty() || terms.is_empty() {
        terms.push(quoted(&literal));
    }
    terms.join(" + ")
}

/// Items on one line, or on a line each if that would be long.
fn joined(items: Vec<String>) -> String {
    const LINE: usize = 100;
    let line = items.join(", ");
    if line.len() > LINE { items.join(",\n") } else { line }
}

/// A field with its value; one with a condition is optional.
fn field(key: &str, node: &Node, kind: &str) -> String {
    let optional = if matches!(node, Node::If(..)) { "?" } else { "" };
    format!("{optional}{key}: {}", node.cel(kind))
}

impl Part {
    fn text(&self, values: &Values) -> String {
        match self {
            Part::Is(text) => text.clone(),
            Part::Of(name) => values.text(name).to_owned(),
            Part::Number(name) => values.number(name).to_string(),
        }
    }

    fn cel(&self) -> String {
        match self {
            Part::Is(text) => quoted(text),
            Part::Of(name) => variable(name),
            Part::Number(name) => format!("string({})", variable(name)),
        }
    }
}

/// A variable of the policy: `cpu-limit` is `variables.cpuLimit`.
pub(super) fn variable(name: &str) -> String {
    format!("variables.{}", identifier(name))
}

/// `cpu-limit` as a name in CEL: `cpuLimit`.
pub(super) fn identifier(name: &str) -> String {
    let mut parts = name.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let (head, tail) = part.split_at(1.min(part.len()));
        name + &head.to_ascii_uppercase() + tail
    })
}

/// A text as a literal of CEL.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))
}
