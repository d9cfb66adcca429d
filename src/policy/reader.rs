//! Reads a tree field by field and notes each problem where it stands, instead of stopping at the first.
//!
//! A reader that finds nothing usable notes why and returns `None`: the caller goes on with whatever is
//! left, and the document as a whole is refused in the end.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::duration;
use super::problem::Problem;
use super::spec::{Node, Plain, Position, Value, plain_type};
use super::suggest;

/// A value longer than this is cut where it is repeated in a problem.
const SHOWN_CHARS: usize = 64;

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Findings {
    pub(super) fn problem(&mut self, path: &str, at: Position, message: impl Into<String>) {
        self.problems.push(finding(path, at, message.into()));
    }

    pub(super) fn warning(&mut self, path: &str, at: Position, message: impl Into<String>) {
        self.warnings.push(finding(path, at, message.into()));
    }

    /// In the order of the text.
    pub(super) fn sort(&mut self) {
        let place = |finding: &Problem| (finding.line, finding.column);
        self.problems.sort_by_key(place);
        self.warnings.sort_by_key(place);
    }
}

fn finding(path: &str, at: Position, message: String) -> Problem {
    Problem { path: path.to_owned(), message, line: Some(at.line), column: Some(at.column) }
}

/// One value with its path.
#[derive(Clone, Debug)]
pub(super) struct Field<'n> {
    pub(super) node: &'n Node,
    pub(super) path: String,
}

impl<'n> Field<'n> {
    /// The document itself.
    pub(super) fn root(node: &'n Node) -> Field<'n> {
        Field { node, path: String::new() }
    }

    /// Notes `Invalid value: FOUND: RULE`.
    pub(super) fn invalid(&self, findings: &mut Findings, rule: &str) {
        let message = format!("Invalid value: {}: {rule}", shown(self.node));
        findings.problem(&self.path, self.node.at, message);
    }

    fn wrong_type(&self, findings: &mut Findings, wanted: &str) {
        let hint = match &self.node.value {
            Value::Tagged(tag) => format!("; the tag {tag} is not supported"),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => String::new(),
        };
        self.invalid(findings, &format!("must be {wanted}{hint}"));
    }

    /// A text: in quotes, or such that no reader of YAML takes it for something else.
    pub(super) fn string(&self, findings: &mut Findings) -> Option<&'n str> {
        let Value::Scalar { text, plain } = &self.node.value else {
            self.wrong_type(findings, "a string");
            return None;
        };
        let taken_for = match plain_type(text) {
            Plain::Text => return Some(text),
            Plain::Null | Plain::Bool | Plain::Number if !plain => return Some(text),
            Plain::Null => {
                self.wrong_type(findings, "a string");
                return None;
            }
            Plain::Bool => "a boolean",
            Plain::Number => "a number",
        };
        self.invalid(
            findings,
            &format!("must be a string, and without quotes this may be read as {taken_for}: write {text:?}"),
        );
        None
    }

    /// A text of at most `limit` bytes.
    pub(super) fn bounded_string(&self, limit: usize, findings: &mut Findings) -> Option<&'n str> {
        let text = self.string(findings)?;
        if text.len() > limit {
            let message = format!("Too long: {} bytes: must be at most {limit} bytes", text.len());
            findings.problem(&self.path, self.node.at, message);
            return None;
        }
        Some(text)
    }

    /// A whole number in plain decimal digits, within bounds.
    pub(super) fn integer(&self, range: (i64, i64), findings: &mut Findings) -> Option<i64> {
        let Value::Scalar { text, plain: true } = &self.node.value else {
            self.wrong_type(findings, "an integer");
            return None;
        };
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            self.wrong_type(findings, "an integer in decimal digits");
            return None;
        }
        if digits.len() > 1 && digits.starts_with('0') {
            self.invalid(findings, "must be an integer without leading zeros, which may be read as octal");
            return None;
        }
        let (least, most) = range;
        match text.parse::<i64>() {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            Ok(_) | Err(_) => {
                self.invalid(findings, &format!("must be between {least} and {most}"));
                None
            }
        }
    }

    /// A number with or without a fraction, greater than 0 and at most 1.
    pub(super) fn share(&self, findings: &mut Findings) -> Option<f64> {
        const RULE: &str = "must be a number greater than 0 and at most 1";
        let Value::Scalar { text, plain: true } = &self.node.value else {
            self.invalid(findings, RULE);
            return None;
        };
        let decimal = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let leading_zero = text.len() > 1 && text.starts_with('0') && !text.starts_with("0.");
        match text.parse::<f64>() {
            Ok(number) if decimal && !leading_zero && number > 0.0 && number <= 1.0 => Some(number),
            Ok(_) | Err(_) => {
                self.invalid(findings, RULE);
                None
            }
        }
    }

    /// A duration within bounds; `most_is` says where the upper bound comes from.
    pub(super) fn duration(
        &self,
        least: Duration,
        most: Option<(Duration, &str)>,
        findings: &mut Findings,
    ) -> Option<Duration> {
        let Value::Scalar { text, .. } = &self.node.value else {
            self.invalid(findings, &duration::DurationError::Malformed.to_string());
            return None;
        };
        let duration = match duration::parse(text) {
            Ok(duration) => duration,
            Err(error) => {
                self.invalid(findings, &error.to_string());
                return None;
            }
        };
        if duration < least {
            self.invalid(findings, &format!("must be at least {}", duration::display(least)));
            return None;
        }
        if let Some((most, most_is)) = most
            && duration > most
        {
            self.invalid(findings, &format!("must be at most {}{most_is}", duration::display(most)));
            return None;
        }
        Some(duration)
    }

    /// One of a closed set of words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)], findings: &mut Findings) -> Option<T> {
        let found = self.node.scalar().and_then(|text| choices.iter().find(|(word, _)| *word == text));
        if let Some((_, choice)) = found {
            return Some(*choice);
        }
        let mut message = format!("Unsupported value: {}: supported values: ", shown(self.node));
        for (index, (word, _)) in choices.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(message, "{comma}{word:?}").expect("writing to a string must not fail");
        }
        findings.problem(&self.path, self.node.at, message);
        None
    }

    /// The elements of a list of at least one and at most `limit`.
    pub(super) fn elements(&self, limit: usize, findings: &mut Findings) -> Option<Vec<Field<'n>>> {
        let Value::List(items) = &self.node.value else {
            let hint = match &self.node.value {
                Value::Scalar { text, .. } if !self.node.is_null() => {
                    format!("a list, as in [{}]", cut(text))
                }
                Value::Scalar { .. } | Value::Map(_) | Value::Tagged(_) | Value::List(_) => {
                    "a list".to_owned()
                }
            };
            self.wrong_type(findings, &hint);
            return None;
        };
        if items.len() > limit {
            let message = format!("Too many: {}: must have at most {limit} items", items.len());
            findings.problem(&self.path, self.node.at, message);
            return None;
        }
        let element = |(index, node): (usize, &'n std::rc::Rc<Node>)| Field {
            node,
            path: format!("{}[{index}]", self.path),
        };
        Some(items.iter().enumerate().map(element).collect())
    }
}

/// A value as it is repeated in a problem: a text in quotes as JSON would have it, the rest as written.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Scalar { text, plain: true } if plain_type(text) == Plain::Null => "null".to_owned(),
        Value::Scalar { text, plain: true } if plain_type(text) != Plain::Text => cut(text),
        Value::Scalar { text, .. } => format!("{:?}", cut(text)),
        Value::List(items) if items.is_empty() => "[]".to_owned(),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
        Value::Tagged(tag) => cut(tag),
    }
}

fn cut(text: &str) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(SHOWN_CHARS).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

/// How the path of a key continues that of its mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Fields, with a dot: `rules[0].timeout`.
    Fields,
    /// Entries, in brackets: `fallbackFor[timeout]`.
    Entries,
}

/// The entries of a mapping whose keys are known.
#[derive(Debug)]
pub(super) struct Table<'n> {
    entries: HashMap<&'n str, Field<'n>>,
}

impl<'n> Table<'n> {
    /// Reads a mapping, and notes keys that are unknown, repeated or no text.
    pub(super) fn read(
        field: &Field<'n>,
        known: &[&str],
        keys: Keys,
        findings: &mut Findings,
    ) -> Option<Table<'n>> {
        let Value::Map(pairs) = &field.node.value else {
            field.wrong_type(findings, "a mapping of keys to values");
            return None;
        };
        let mut entries: HashMap<&'n str, Field<'n>> = HashMap::new();
        let mut lines: HashMap<&'n str, u32> = HashMap::new();
        for (key, value) in pairs {
            let Some(name) = key.scalar() else {
                findings.problem(&field.path, key.at, "Invalid key: must be text");
                continue;
            };
            let path = match keys {
                Keys::Fields if field.path.is_empty() => cut(name),
                Keys::Fields => format!("{}.{}", field.path, cut(name)),
                Keys::Entries => format!("{}[{}]", field.path, cut(name)),
            };
            if let Some(line) = lines.get(name) {
                findings.problem(&path, key.at, format!("Duplicate key: it stands in line {line} already"));
                continue;
            }
            lines.insert(name, key.at.line);
            if known.contains(&name) {
                entries.insert(name, Field { node: value, path });
            } else {
                findings.problem(&path, key.at, unknown_key(name, known));
            }
        }
        Some(Table { entries })
    }

    /// The value of a key, if it is there.
    pub(super) fn get(&self, key: &str) -> Option<&Field<'n>> {
        self.entries.get(key)
    }

    /// The value of a key that may be left empty, as when all that stands below it is commented out.
    pub(super) fn section(&self, key: &str) -> Option<&Field<'n>> {
        self.get(key).filter(|field| !field.node.is_null())
    }
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    if name == "<<" {
        return "Unknown key: merge keys are not supported; repeat the keys".to_owned();
    }
    match suggest::nearest_key(name, known) {
        Some(near) => format!("Unknown key: did you mean {near:?}?"),
        None => format!("Unknown key: known keys are {}", known.join(", ")),
    }
}
