//! What is wrong with a policy, said so that its author finds it: where, what, and what would be right.

use std::fmt;

/// One problem or warning: a field path, a sentence in kubectl's form, and a position where there is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Which field, as in `rules[0].timeout`; empty for the document as a whole.
    pub path: String,
    /// What is wrong with it, as in `Invalid value: "0s": must be at least 10ms`.
    pub message: String,
    /// The line in the text, from 1.
    pub line: Option<u32>,
    /// The column in the text, from 1, in characters.
    pub column: Option<u32>,
}

impl Problem {
    /// Where it is in the text, to stand after the name of the text: `:2:12`, `:2`, or nothing.
    pub fn place(&self) -> String {
        let column = self.column.map(|column| format!(":{column}")).unwrap_or_default();
        self.line.map(|line| format!(":{line}{column}")).unwrap_or_default()
    }
}

impl fmt::Display for Problem {
    /// `path: message`; the message alone where there is no path. The position is left to who prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that makes a document unusable; never empty. In the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(super) Vec<Problem>);

/// What is worth a look in a document that works all the same. In the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings(pub(super) Vec<Problem>);

impl fmt::Display for Problems {
    /// One line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

macro_rules! list {
    ($name:ident) => {
        impl $name {
            /// One after the other.
            pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
                self.0.iter()
            }

            /// How many.
            pub fn len(&self) -> usize {
                self.0.len()
            }

            /// Whether there is none.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        impl IntoIterator for $name {
            type Item = Problem;
            type IntoIter = std::vec::IntoIter<Problem>;

            fn into_iter(self) -> Self::IntoIter {
                self.0.into_iter()
            }
        }

        impl<'l> IntoIterator for &'l $name {
            type Item = &'l Problem;
            type IntoIter = std::slice::Iter<'l, Problem>;

            fn into_iter(self) -> Self::IntoIter {
                self.0.iter()
            }
        }
    };
}

list!(Problems);
list!(Warnings);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_printed_with_its_path_where_it_has_one() {
        let at = |path: &str| Problem {
            path: path.to_owned(),
            message: "Required value".to_owned(),
            line: Some(1),
            column: None,
        };
        assert_eq!(at("until").to_string(), "until: Required value");
        assert_eq!(at("").to_string(), "Required value");
        assert_eq!(Problems(vec![at("a"), at("b")]).to_string(), "a: Required value\nb: Required value");
    }
}
