//! Quantities of Kubernetes, compared by value: `1`, `1000m` and `1e0` are the same.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/> has the grammar.

use serde_json::Value;

/// A quantity as a whole number of billionths. Kubernetes rounds what is finer up to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quantity(i128);

impl Quantity {
    /// Whether it is more than nothing: Kubernetes takes a limit of zero for none.
    pub(super) fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// Reads a quantity as a manifest has it, a text or a number. `None`: it is not one, or is larger than this program
    /// reckons with.
    pub(super) fn of(value: &Value) -> Option<Quantity> {
        match value {
            Value::String(text) => Quantity::parse(text),
            Value::Number(number) => Quantity::parse(&number.to_string()),
            // Kubernetes reads null as zero here.
            Value::Null => Some(Quantity(0)),
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn parse(text: &str) -> Option<Quantity> {
        let (negative, text) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let number =
            text.find(|letter: char| letter != '.' && !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let (factor, power) = scale(suffix)?;
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let digits: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        let power = 9 + power - i32::try_from(fraction.len()).ok()?;
        let scaled = digits.checked_mul(factor)?;
        let billionths = if power >= 0 {
            scaled.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
        } else {
            let by = 10_i128.checked_pow(power.unsigned_abs())?;
            // Away from zero, as Kubernetes does.
            scaled.checked_add(by - 1)? / by
        };
        Some(Quantity(if negative { -billionths } else { billionths }))
    }
}

/// What a suffix multiplies by: a power of 1024, and a power of ten.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if let Some(place) = binary.iter().position(|known| *known == suffix) {
        return Some((1024_i128.pow(u32::try_from(place + 1).ok()?), 0));
    }
    let decimal = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    if let Some((_, power)) = decimal.iter().find(|(known, _)| *known == suffix) {
        return Some((1, *power));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let power = exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?;
    (-18..=18).contains(&power).then_some((1, power))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_worth_the_same_is_equal_however_it_is_written() {
        for (a, b) in [
            (json!("1"), json!("1000m")),
            (json!(1), json!("1")),
            (json!(0.5), json!("500m")),
            (json!("1Gi"), json!("1024Mi")),
            (json!("1Gi"), json!("1073741824")),
            (json!("1e3"), json!("1k")),
            (json!("12E-1"), json!("1.2")),
            (json!("1.50"), json!("+1500m")),
            (json!(".5"), json!("0.5")),
            (json!("0.0000000001"), json!("1n")),
        ] {
            assert!(Quantity::of(&a).is_some(), "{a}");
            assert_eq!(Quantity::of(&a), Quantity::of(&b), "{a} {b}");
        }
        assert_ne!(Quantity::of(&json!("1G")), Quantity::of(&json!("1Gi")));
        assert!(Quantity::of(&json!("1")) < Quantity::of(&json!("1001m")));
        assert!(!Quantity::parse("0").is_some_and(Quantity::is_positive));
        for text in ["", "x", "1x", "1.2.3", ".", "1mi", "1e", "1e99", "--1", "1 "] {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
    }
}
