//! A JSON patch (RFC 6902), as far as an injection needs one: `add`, and `remove` for its undoing.

use serde_json::{Value, json};

/// One step of a patch. Its path is a JSON pointer (RFC 6901); `-` behind a list stands for its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Puts a value where there is none (or null), or before a place of a list.
    Add {
        /// Where.
        path: String,
        /// What.
        value: Value,
    },
    /// Takes away what is there.
    Remove {
        /// Where.
        path: String,
    },
}

impl Operation {
    /// Its path.
    pub fn path(&self) -> &str {
        match self {
            Operation::Add { path, .. } | Operation::Remove { path } => path,
        }
    }

    /// The same step within something larger, at whose pointer `base` this one's document stands.
    pub fn below(self, base: &str) -> Operation {
        match self {
            Operation::Add { path, value } => Operation::Add { path: format!("{base}{path}"), value },
            Operation::Remove { path } => Operation::Remove { path: format!("{base}{path}") },
        }
    }

    /// As RFC 6902 writes it.
    pub fn to_json(&self) -> Value {
        match self {
            Operation::Add { path, value } => json!({"op": "add", "path": path, "value": value}),
            Operation::Remove { path } => json!({"op": "remove", "path": path}),
        }
    }

    /// Takes this step. Gives whether it could be taken: the place above it is there, and a removed thing too.
    pub fn apply(&self, document: &mut Value) -> bool {
        let Some((parent, last)) = self.path().rsplit_once('/') else { return false };
        let last = unescaped(last);
        match (document.pointer_mut(parent), self) {
            (Some(Value::Object(map)), Operation::Add { value, .. }) => {
                map.insert(last, value.clone());
                true
            }
            (Some(Value::Object(map)), Operation::Remove { .. }) => map.remove(&last).is_some(),
            (Some(Value::Array(list)), Operation::Add { value, .. }) => {
                let place = if last == "-" { Some(list.len()) } else { last.parse().ok() };
                let place = place.filter(|place| *place <= list.len());
                place.map(|place| list.insert(place, value.clone())).is_some()
            }
            (Some(Value::Array(list)), Operation::Remove { .. }) => {
                let place = last.parse().ok().filter(|place: &usize| *place < list.len());
                place.map(|place| list.remove(place)).is_some()
            }
            _ => false,
        }
    }
}

/// A key as one part of a pointer.
pub fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The key that one part of a pointer stands for.
pub fn unescaped(part: &str) -> String {
    part.replace("~1", "/").replace("~0", "~")
}

/// A copy that is changed step by step, with the steps.
pub(super) struct Draft {
    pub(super) document: Value,
    pub(super) steps: Vec<Operation>,
}

impl Draft {
    pub(super) fn of(document: &Value) -> Draft {
        Draft { document: document.clone(), steps: Vec::new() }
    }

    /// Takes a step, and notes it if it could be taken.
    pub(super) fn step(&mut self, step: Operation) {
        if step.apply(&mut self.document) {
            self.steps.push(step);
        }
    }

    pub(super) fn add(&mut self, path: impl Into<String>, value: Value) {
        self.step(Operation::Add { path: path.into(), value });
    }

    pub(super) fn remove(&mut self, path: impl Into<String>) {
        self.step(Operation::Remove { path: path.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_where_they_can_be_and_change_nothing_where_not() {
        let add = |path: &str| Operation::Add { path: path.to_owned(), value: json!(7) };
        let remove = |path: &str| Operation::Remove { path: path.to_owned() };
        for (step, result) in [
            (add("/b"), Some(json!({"a": [1, 2], "x/y": 0, "b": 7}))),
            (add("/a/0"), Some(json!({"a": [7, 1, 2], "x/y": 0}))),
            (add("/a/2"), Some(json!({"a": [1, 2, 7], "x/y": 0}))),
            (add("/a/-"), Some(json!({"a": [1, 2, 7], "x/y": 0}))),
            (add("/x~1y"), Some(json!({"a": [1, 2], "x/y": 7}))),
            (remove("/x~1y"), Some(json!({"a": [1, 2]}))),
            (remove("/a/1"), Some(json!({"a": [1], "x/y": 0}))),
            (add("/a/3"), None),
            (add("/c/d"), None),
            (add("/x~1y/d"), None),
            (remove("/c"), None),
            (remove("/a/2"), None),
            (remove("/a/-"), None),
            (remove(""), None),
        ] {
            let before = json!({"a": [1, 2], "x/y": 0});
            let mut document = before.clone();
            assert_eq!(step.apply(&mut document), result.is_some(), "{step:?}");
            assert_eq!(document, result.unwrap_or(before), "{step:?}");
        }
    }

    #[test]
    fn a_step_is_written_as_the_standard_has_it() {
        let add = Operation::Add { path: "/a~1b".to_owned(), value: json!({}) };
        assert_eq!(add.clone().below("/items/0").path(), "/items/0/a~1b");
        assert_eq!(add.to_json(), json!({"op": "add", "path": "/a~1b", "value": {}}));
        assert_eq!(
            Operation::Remove { path: "/a".to_owned() }.to_json(),
            json!({"op": "remove", "path": "/a"})
        );
        assert_eq!(unescaped(&escaped("a/b~1~c")), "a/b~1~c");
    }
}
