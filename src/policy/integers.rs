//! Sets of integers, written as numbers and ranges.

use serde_json::{Value, json};

use super::reader::{Field, Findings};
use super::rule::Steps;
use super::spec::{Plain, Value as Written, plain_type};

/// OpenIM's fields are of Go's int32.
const BOUNDS: Range = (i32::MIN as i64, i32::MAX as i64);

/// The most letters that may be between two numbers that are taken for a range, as in `1000 to 5000`.
const BETWEEN: usize = 8;

/// Both ends, each included.
pub(super) type Range = (i64, i64);

/// A set of integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Integers {
    /// As written, sorted, each once. A number is a range of one.
    written: Vec<Range>,
    /// The same numbers in as few ranges as possible, sorted.
    ranges: Vec<Range>,
}

impl Integers {
    /// The numbers of all ranges; the first end of each is at most the second.
    pub(super) fn new(mut written: Vec<Range>) -> Integers {
        written.sort_unstable();
        written.dedup();
        let mut ranges: Vec<Range> = Vec::with_capacity(written.len());
        for (first, last) in written.iter().copied() {
            match ranges.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => ranges.push((first, last)),
            }
        }
        Integers { written, ranges }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn contain(&self, number: i64) -> bool {
        self.around(number).is_some()
    }

    /// The range that a number is in.
    fn around(&self, number: i64) -> Option<Range> {
        let at = self.ranges.partition_point(|(first, _)| *first <= number).checked_sub(1)?;
        Some(self.ranges[at]).filter(|(_, last)| number <= *last)
    }

    /// Whether all of `other` is in it; `false` if there are not enough steps to find out.
    pub(super) fn cover(&self, other: &Integers, steps: &mut Steps) -> bool {
        let covers = |(first, last): &Range| self.around(*first).is_some_and(|around| *last <= around.1);
        steps.take(other.ranges.len()) && other.ranges.iter().all(covers)
    }

    /// What is in both.
    pub(super) fn both(&self, other: &Integers) -> Integers {
        let meet = |a: &Range, b: &Range| (a.0.max(b.0), a.1.min(b.1));
        let pairs = self.ranges.iter().flat_map(|a| other.ranges.iter().map(move |b| meet(a, b)));
        Integers::new(pairs.filter(|(first, last)| first <= last).collect())
    }

    /// As in a policy.
    pub(super) fn to_json(&self) -> Value {
        let shown = |(first, last): &Range| {
            if first == last { json!(first) } else { json!(format!("{first}-{last}")) }
        };
        self.written.iter().map(shown).collect()
    }
}

/// Reads a number.
pub(super) fn number(field: &Field<'_>, findings: &mut Findings) -> Option<Range> {
    if ends(field).is_some() {
        field.invalid(findings, "must be an integer: only contentTypes takes ranges");
        return None;
    }
    field.integer(BOUNDS, findings).map(|number| (number, number))
}

/// Reads a number, or a range as in `"1000-5000"`.
pub(super) fn number_or_range(field: &Field<'_>, findings: &mut Findings) -> Option<Range> {
    let Some((first, between, last)) = ends(field) else {
        let wrong = match &field.node.value {
            Written::Scalar { text, plain: true } if plain_type(text) == Plain::Number => {
                return field.integer(BOUNDS, findings).map(|number| (number, number));
            }
            Written::Scalar { text, plain: false } if plain_type(text) == Plain::Number => {
                "must be an integer without quotes, or a range as in \"1000-5000\""
            }
            Written::Scalar { .. } | Written::List(_) | Written::Map(_) | Written::Tagged(_) => {
                "must be an integer, or a range as in \"1000-5000\""
            }
        };
        field.invalid(findings, wrong);
        return None;
    };
    let most = BOUNDS.1;
    let end = |text: &str| text.parse::<i64>().ok().filter(|number| *number <= most);
    let exact = |text: &str| text.len() == 1 || !text.starts_with('0');
    match (end(first), end(last)) {
        (Some(low), Some(high)) if low > high => {
            field.invalid(findings, &format!("ends before it begins; did you mean \"{high}-{low}\"?"));
        }
        (Some(low), Some(high)) if between == "-" && exact(first) && exact(last) => return Some((low, high)),
        (Some(low), Some(high)) => {
            field.invalid(findings, &format!("is not a range; did you mean \"{low}-{high}\"?"));
        }
        (None, _) | (_, None) => field.invalid(findings, &format!("both ends must be at most {most}")),
    }
    None
}

/// The two numbers of a text that has two, one at each end, and what is between them.
fn ends<'n>(field: &Field<'n>) -> Option<(&'n str, &'n str, &'n str)> {
    let text = field.node.scalar().map(str::trim)?;
    let last = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let first = &text[..text.len() - last.len()];
    let between = last.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let last = &last[between.len()..];
    let joins = !between.is_empty() && between.chars().count() <= BETWEEN;
    // 1.5, 1_000 and 1e3 are numbers to one reader of YAML or another.
    let one = plain_type(text) == Plain::Number && !between.contains([':', '-']) && between != "..";
    let joins = joins && !one && !between.contains(|letter: char| letter.is_ascii_digit());
    (joins && !first.is_empty() && !last.is_empty()).then_some((first, between, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_its_ends_and_nothing_outside() {
        let set = Integers::new(vec![(1000, 5000), (101, 101)]);
        for (number, contained) in
            [(100, false), (101, true), (102, false), (999, false), (1000, true), (3000, true), (5000, true)]
        {
            assert_eq!(set.contain(number), contained, "{number}");
        }
        assert!(!set.contain(5001) && !set.contain(i64::MIN) && !set.contain(i64::MAX));
        assert!(!Integers::new(Vec::new()).contain(0));
    }

    #[test]
    fn ranges_that_overlap_or_touch_are_one_and_are_shown_as_written() {
        let set = Integers::new(vec![(5, 9), (1, 3), (4, 4), (2, 2), (5, 9), (20, 30), (22, 23)]);
        assert_eq!(set.ranges, [(1, 9), (20, 30)]);
        assert_eq!(set.to_json(), json!(["1-3", 2, 4, "5-9", "20-30", "22-23"]));
        assert_eq!(Integers::new(vec![(i64::MAX, i64::MAX), (0, i64::MAX)]).ranges, [(0, i64::MAX)]);
    }

    #[test]
    fn a_set_covers_what_is_within_it_whichever_way_both_are_written() {
        let set = |ranges: &[Range]| Integers::new(ranges.to_vec());
        for (wide, narrow, covers) in [
            (set(&[(1, 3)]), set(&[(1, 1), (2, 2), (3, 3)]), true),
            (set(&[(1, 1), (2, 2), (3, 3)]), set(&[(1, 3)]), true),
            (set(&[(1, 3)]), set(&[(1, 4)]), false),
            (set(&[(1, 3), (5, 9)]), set(&[(2, 6)]), false),
            (set(&[(1, 3)]), set(&[]), true),
            (set(&[]), set(&[(1, 1)]), false),
        ] {
            assert_eq!(wide.cover(&narrow, &mut Steps::new(100)), covers, "{wide:?} {narrow:?}");
        }
        assert!(!set(&[(1, 3)]).cover(&set(&[(1, 3)]), &mut Steps::new(0)), "out of steps");
    }

    #[test]
    fn what_two_sets_have_in_common_is_in_both() {
        let set = Integers::new(vec![(1, 3), (10, 20)]);
        assert_eq!(set.both(&Integers::new(vec![(3, 12), (20, 30)])).ranges, [(3, 3), (10, 12), (20, 20)]);
        assert!(set.both(&Integers::new(vec![(4, 9)])).is_empty());
    }
}
