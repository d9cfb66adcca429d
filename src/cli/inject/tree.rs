//! A document whose scalars stay as they were written and whose keys stay in their order: `010` and `yes` mean to
//! the next reader what they meant before.

use serde_json::{Map, Number, Value as Json};

use crate::policy::spec::{Node, Plain, Position, Value, plain_type};
use crate::sidecar::patch::{Operation, unescaped};

/// A value of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    /// A scalar without quotes that is no text to some reader: a number, a boolean, null.
    Plain(String),
    /// A text.
    Text {
        text: String,
        /// Whether it stood in quotes, or has to.
        quoted: bool,
    },
    /// A list.
    List(Vec<Tree>),
    /// A mapping. Kubernetes knows no keys but texts.
    Map(Vec<(String, Tree)>),
}

/// What a document of Kubernetes cannot have, and where.
pub(super) type Unfit = (Position, String);

impl Tree {
    /// Reads a node; anchors were resolved by the reader, merge keys are here.
    pub(super) fn of(node: &Node) -> Result<Tree, Unfit> {
        match &node.value {
            Value::Scalar { text, plain } if *plain && plain_type(text) != Plain::Text => {
                Ok(Tree::Plain(text.clone()))
            }
            Value::Scalar { text, plain } => Ok(Tree::Text { text: text.clone(), quoted: !plain }),
            Value::List(items) => {
                items.iter().map(|item| Tree::of(item)).collect::<Result<_, _>>().map(Tree::List)
            }
            Value::Map(entries) => {
                let mut map: Vec<(String, Tree)> = Vec::new();
                let mut merged = Vec::new();
                for (key, value) in entries {
                    let Some(name) = key.scalar() else {
                        return Err((key.at, "a key that is no text".to_owned()));
                    };
                    let is_merge = name == "<<" && matches!(key.value, Value::Scalar { plain: true, .. });
                    if is_merge {
                        merged.push((value.at, Tree::of(value)?));
                    } else if map.iter().any(|(known, _)| known == name) {
                        return Err((key.at, format!("the key {name:?} comes twice")));
                    } else {
                        map.push((name.to_owned(), Tree::of(value)?));
                    }
                }
                for (at, tree) in merged {
                    merge(&mut map, tree).ok_or((at, "<< takes a mapping, or a list of them".to_owned()))?;
                }
                Ok(Tree::Map(map))
            }
            Value::Tagged(tag) => Err((node.at, format!("a value with the tag {tag}: write it without"))),
        }
    }

    /// A value of a patch. Maps of JSON have no order here: names come first, as people write it.
    pub(super) fn of_json(value: &Json) -> Tree {
        match value {
            Json::Null | Json::Bool(_) | Json::Number(_) => Tree::Plain(value.to_string()),
            Json::String(text) => Tree::Text { text: text.clone(), quoted: false },
            Json::Array(items) => Tree::List(items.iter().map(Tree::of_json).collect()),
            Json::Object(map) => {
                let (names, rest): (Vec<_>, Vec<_>) = map.iter().partition(|(key, _)| *key == "name");
                let entries = names.into_iter().chain(rest);
                Tree::Map(entries.map(|(key, value)| (key.clone(), Tree::of_json(value))).collect())
            }
        }
    }

    /// The value as Kubernetes reads it: its YAML is that of version 1.1.
    pub(super) fn to_json(&self) -> Json {
        match self {
            Tree::Plain(text) => scalar(text),
            Tree::Text { text, .. } => Json::String(text.clone()),
            Tree::List(items) => items.iter().map(Tree::to_json).collect(),
            Tree::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| (key.clone(), value.to_json()));
                Json::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// Whether a reader takes both for the same, quotes aside.
    pub(super) fn means(&self, other: &Tree) -> bool {
        let null = |text: &str| text.is_empty() || text == "null";
        match (self, other) {
            (Tree::Plain(a), Tree::Plain(b)) => a == b || null(a) && null(b),
            (Tree::Text { text: a, .. }, Tree::Text { text: b, .. }) => a == b,
            (Tree::List(a), Tree::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.means(b)),
            (Tree::Map(a), Tree::Map(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && a.1.means(&b.1))
            }
            (Tree::Plain(_) | Tree::Text { .. } | Tree::List(_) | Tree::Map(_), _) => false,
        }
    }

    fn pointer_mut(&mut self, pointer: &str) -> Option<&mut Tree> {
        let mut parts = pointer.split('/').skip(1).map(unescaped);
        parts.try_fold(self, |tree, part| match tree {
            Tree::Map(entries) => entries.iter_mut().find(|(key, _)| *key == part).map(|(_, value)| value),
            Tree::List(items) => items.get_mut(part.parse::<usize>().ok()?),
            Tree::Plain(_) | Tree::Text { .. } => None,
        })
    }

    /// Takes a step of a patch. Gives whether it could be taken.
    pub(super) fn apply(&mut self, step: &Operation) -> bool {
        let Some((parent, last)) = step.path().rsplit_once('/') else { return false };
        let last = unescaped(last);
        match (self.pointer_mut(parent), step) {
            (Some(Tree::Map(entries)), Operation::Add { value, .. }) => {
                let value = Tree::of_json(value);
                match entries.iter_mut().find(|(key, _)| *key == last) {
                    Some((_, known)) => *known = value,
                    None => entries.push((last, value)),
                }
                true
            }
            (Some(Tree::Map(entries)), Operation::Remove { .. }) => {
                let place = entries.iter().position(|(key, _)| *key == last);
                place.map(|place| entries.remove(place)).is_some()
            }
            (Some(Tree::List(items)), Operation::Add { value, .. }) => {
                let place = if last == "-" { Some(items.len()) } else { last.parse().ok() };
                let place = place.filter(|place| *place <= items.len());
                place.map(|place| items.insert(place, Tree::of_json(value))).is_some()
            }
            (Some(Tree::List(items)), Operation::Remove { .. }) => {
                let place = last.parse().ok().filter(|place: &usize| *place < items.len());
                place.map(|place| items.remove(place)).is_some()
            }
            (Some(Tree::Plain(_) | Tree::Text { .. }) | None, _) => false,
        }
    }
}

/// Puts in what a mapping does not have of its own.
fn merge(map: &mut Vec<(String, Tree)>, tree: Tree) -> Option<()> {
    match tree {
        Tree::Map(entries) => {
            for (key, value) in entries {
                if !map.iter().any(|(known, _)| *known == key) {
                    map.push((key, value));
                }
            }
            Some(())
        }
        Tree::List(items) => {
            items.into_iter().try_for_each(|item| matches!(item, Tree::Map(_)).then(|| merge(map, item))?)
        }
        Tree::Plain(_) | Tree::Text { .. } => None,
    }
}

fn scalar(text: &str) -> Json {
    match text.to_ascii_lowercase().as_str() {
        "" | "~" | "null" => return Json::Null,
        "true" | "yes" | "on" | "y" => return Json::Bool(true),
        "false" | "no" | "off" | "n" => return Json::Bool(false),
        _ => {}
    }
    let digits = text.replace('_', "");
    let (sign, bare) = digits.strip_prefix('-').map_or(("", digits.as_str()), |bare| ("-", bare));
    let bare = bare.strip_prefix('+').unwrap_or(bare);
    let radix = |rest: &str, radix| i64::from_str_radix(&format!("{sign}{rest}"), radix).ok();
    let whole = match bare.as_bytes() {
        [b'0', b'x' | b'X', ..] => radix(&bare[2..], 16),
        [b'0', b'o' | b'O', ..] => radix(&bare[2..], 8),
        [b'0', b'b' | b'B', ..] => radix(&bare[2..], 2),
        [b'0', _, ..] if bare.bytes().all(|byte| byte.is_ascii_digit()) => radix(&bare[1..], 8),
        _ => radix(bare, 10),
    };
    let fraction = || format!("{sign}{bare}").parse().ok().and_then(Number::from_f64).map(Json::Number);
    whole.map(Json::from).or_else(fraction).unwrap_or_else(|| Json::String(text.to_owned()))
}
