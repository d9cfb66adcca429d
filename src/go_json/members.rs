//! An object without some of its fields.

use super::decode::find;
use super::{Field, SyntaxError, Token, Tokens, unquote};

/// The object without its members for these fields (indices into `fields`): in every spelling that Go takes for one of them,
/// and each time that it is there. Gone with a member are a comma and the space around it; every other byte stays. A document
/// that is no object stays as it is.
pub fn without(bytes: &[u8], fields: &[Field], unwanted: &[usize]) -> Result<Vec<u8>, SyntaxError> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut tokens = Tokens::new(bytes);
    if !matches!(tokens.next()?, Some((Token::BeginObject, _))) {
        return Ok(bytes.to_vec());
    }
    // What is in front of this is in `out`, or is left out.
    let mut from = 0;
    // Behind the last member that stays, and behind the last of all.
    let (mut kept_end, mut end) = (None, 0);
    // Where the members begin that are left out and have none behind them yet that stays.
    let mut gap = None;
    while let Some((Token::Key, key)) = tokens.next()? {
        let field = find(fields, unquote(key.of(bytes)).as_bytes());
        let start = key.start as usize;
        let (value, _) = tokens.next()?.ok_or(SyntaxError::End)?;
        if matches!(value, Token::BeginObject | Token::BeginArray) {
            tokens.skip_container()?;
        }
        end = tokens.offset();
        if field.is_some_and(|field| unwanted.contains(&field)) {
            gap.get_or_insert(start);
            continue;
        }
        if let Some(gap) = gap.take() {
            out.extend_from_slice(&bytes[from..gap]);
            from = start;
        }
        kept_end = Some(end);
    }
    if let Some(gap) = gap {
        // The comma in front goes too.
        out.extend_from_slice(&bytes[from..kept_end.unwrap_or(gap)]);
        from = end;
    }
    out.extend_from_slice(&bytes[from..]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_json::{Kind, Type};

    const TEXT: Type = Type { kind: Kind::Str, nillable: true };
    const FIELDS: &[Field] =
        &[Field { name: "a", ty: TEXT }, Field { name: "ex", ty: TEXT }, Field { name: "kiss", ty: TEXT }];

    fn left(text: &str) -> String {
        String::from_utf8(without(text.as_bytes(), FIELDS, &[1, 2]).expect("JSON")).expect("UTF-8")
    }

    #[test]
    fn a_member_goes_with_one_comma_and_every_other_byte_stays() {
        for (object, expected) in [
            (r#"{"ex":1}"#, "{}"),
            (r#"{"ex":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"a":2,"ex":1}"#, r#"{"a":2}"#),
            (r#"{"a":2,"ex":1,"b":3}"#, r#"{"a":2,"b":3}"#),
            (
                r#"{"ex":1,"kiss":1,"a":2,"ex":[{"ex":"]"}],"kiss":{},"b":3,"ex":1,"ex":1}"#,
                r#"{"a":2,"b":3}"#,
            ),
            (r#"{"ex":1,"ex":2}"#, "{}"),
            (
                "\r\n{ \"b\" : 1.0 ,\t\"ex\" : { } , \"a\" :\"\\u00e4\" }\n",
                "\r\n{ \"b\" : 1.0 ,\t\"a\" :\"\\u00e4\" }\n",
            ),
            ("{ \"a\" : 1 , \"ex\" : 2 }", "{ \"a\" : 1 }"),
            ("{ \"ex\" : 2 }", "{  }"),
        ] {
            assert_eq!(left(object), expected, "{object}");
        }
    }

    #[test]
    fn every_spelling_that_go_takes_for_the_field_is_meant_and_no_other() {
        for key in ["ex", "EX", "eX", r"\u0065x", r"E\u0078"] {
            assert_eq!(left(&format!(r#"{{"a":1,"{key}":2}}"#)), r#"{"a":1}"#, "{key}");
        }
        // The Kelvin sign and the long s fold to k and s.
        for key in ["kiss", "\u{212a}i\u{17f}S", r"\u212aiss"] {
            assert_eq!(left(&format!(r#"{{"{key}":2,"a":1}}"#)), r#"{"a":1}"#, "{key}");
        }
        for other in
            [r#"{"e":1,"exx":2,"ex ":3}"#, r#"{"a":{"ex":1},"b":[{"ex":2}]}"#, "{}", "null", "[1]", "7"]
        {
            assert_eq!(left(other), other);
        }
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        assert!(without(br#"{"ex":1,}"#, FIELDS, &[1]).is_err());
        assert!(without(br#"{"ex":1"#, FIELDS, &[1]).is_err());
    }
}
