use std::cell::Cell;

use super::tokens::plain_run;
use super::*;

static INNER: &[Field] = &[
    Field { name: "userID", ty: Type { kind: Kind::Str, nillable: true } },
    Field { name: "ex", ty: Type { kind: Kind::Str, nillable: true } },
];
static FIELDS: &[Field] = &[
    Field { name: "nextCode", ty: Type { kind: Kind::INT32, nillable: false } },
    Field { name: "msg", ty: Type { kind: Kind::Str, nillable: false } },
    Field { name: "content", ty: Type { kind: Kind::Str, nillable: true } },
    Field {
        name: "ids",
        ty: Type { kind: Kind::List(&Type { kind: Kind::Str, nillable: false }), nillable: true },
    },
    Field {
        name: "list",
        ty: Type { kind: Kind::List(&Type { kind: Kind::Struct(INNER), nillable: true }), nillable: true },
    },
    Field { name: "info", ty: Type { kind: Kind::Struct(INNER), nillable: true } },
    Field {
        name: "options",
        ty: Type { kind: Kind::Map(&Type { kind: Kind::Bool, nillable: false }), nillable: true },
    },
    Field { name: "data", ty: Type { kind: Kind::Bytes, nillable: true } },
    Field { name: "count", ty: Type { kind: Kind::UINT32, nillable: false } },
    Field { name: "ok", ty: Type { kind: Kind::Bool, nillable: false } },
];

/// The decoded struct as text: `field=value`, `_` for a zero value, `()` for a struct.
fn show(bytes: &[u8], value: &Value) -> String {
    let join = |values: &[Value]| values.iter().map(|value| show(bytes, value)).collect::<Vec<_>>().join(",");
    match value {
        Value::Zero => "_".to_owned(),
        Value::Int(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Str(span) => format!("{:?}", unquote(span.of(bytes))),
        Value::List(list) => format!("[{}]", join(list.elements())),
        Value::Map(map) => {
            let entry = |(key, value): &(Cow<'_, str>, &Value)| format!("{key:?}:{}", show(bytes, value));
            format!("{{{}}}", map.entries(bytes).iter().map(entry).collect::<Vec<_>>().join(","))
        }
        Value::Struct(fields) => format!("({})", join(fields)),
    }
}

fn read(text: impl AsRef<[u8]>) -> String {
    let bytes = text.as_ref();
    let decoded = match decode(bytes, FIELDS) {
        Ok(decoded) => decoded,
        Err(error) => return format!("syntax: {error}"),
    };
    if decoded.error_count > 0 {
        return format!("wrong types: {}", decoded.error_count);
    }
    let set = FIELDS.iter().enumerate().filter(|(index, _)| *decoded.root.field(*index) != Value::Zero);
    let fields: Vec<_> = set
        .map(|(index, field)| format!("{}={}", field.name, show(bytes, decoded.root.field(index))))
        .collect();
    fields.join(" ")
}

fn table(rows: &[(&str, &str)]) {
    for (input, expected) in rows {
        assert_eq!(read(input), *expected, "of {input}");
    }
}

#[test]
fn keys_match_in_any_letter_case_and_with_the_two_signs_that_fold_to_ascii() {
    table(&[
        (r#"{"nextCode":1}"#, "nextCode=1"),
        (r#"{"NEXTCODE":1}"#, "nextCode=1"),
        (r#"{"next\u0043ode":1}"#, "nextCode=1"),
        ("{\"m\u{17f}g\":\"a\"}", r#"msg="a""#),
        ("{\"o\u{212a}\":true}", "ok=true"),
        (r#"{"m\u017Fg":"a"}"#, r#"msg="a""#),
        // Twins: an underscore, a longer key, a shorter one, and another letter are other keys.
        (r#"{"next_code":1}"#, ""),
        (r#"{"nextCodes":1}"#, ""),
        (r#"{"nextCod":1}"#, ""),
        ("{\"m\u{df}g\":\"a\"}", ""),
    ]);
}

#[test]
fn of_two_scalars_the_last_one_wins_and_null_leaves_them_alone() {
    table(&[
        (r#"{"nextCode":0,"nextCode":1}"#, "nextCode=1"),
        (r#"{"nextCode":1,"NEXTCODE":0}"#, "nextCode=0"),
        (r#"{"nextCode":1,"nextCode":null}"#, "nextCode=1"),
        (r#"{"content":"x","content":null}"#, ""),
        (r#"{"nextCode":1,"nextCode":"x"}"#, "wrong types: 1"),
    ]);
}

#[test]
fn objects_and_array_elements_merge_into_what_is_there() {
    table(&[
        (r#"{"info":{"userID":"a"},"info":{"ex":"e"}}"#, r#"info=("a","e")"#),
        (r#"{"info":{"userID":"a"},"info":null,"info":{"ex":"e"}}"#, r#"info=(_,"e")"#),
        (r#"{"list":[{"userID":"a"}],"list":[{"ex":"e"}]}"#, r#"list=[("a","e")]"#),
        (r#"{"list":[{"userID":"a"},{"userID":"b"}],"list":[{"ex":"e"}]}"#, r#"list=[("a","e")]"#),
        // What a shorter array left behind its end is found again by a longer one.
        (
            r#"{"list":[{"userID":"a"},{"userID":"b"}],"list":[{}],"list":[{},{"ex":"e"}]}"#,
            r#"list=[("a",_),("b","e")]"#,
        ),
        // An empty array and null start afresh.
        (r#"{"list":[{"userID":"a"}],"list":[],"list":[{"ex":"e"}]}"#, r#"list=[(_,"e")]"#),
        (r#"{"list":[{"userID":"a"}],"list":null,"list":[{"ex":"e"}]}"#, r#"list=[(_,"e")]"#),
        (r#"{"list":[{"userID":"a"}],"list":[null]}"#, "list=[_]"),
        (r#"{"ids":["a","b"],"ids":[null,"c"]}"#, r#"ids=["a","c"]"#),
        (r#"{"ids":[null]}"#, "ids=[_]"),
        (r#"{"options":{"a":true},"options":{"b":false,"a":false}}"#, r#"options={"a":false,"b":false}"#),
        (r#"{"options":{"a":true,"\u0061":null}}"#, r#"options={"a":_}"#),
    ]);
}

#[test]
fn one_wrong_type_anywhere_is_an_error_and_an_unknown_key_may_hold_anything() {
    table(&[
        (r#"{"ids":["a",1]}"#, "wrong types: 1"),
        (r#"{"ids":{}}"#, "wrong types: 1"),
        (r#"{"info":[]}"#, "wrong types: 1"),
        (r#"{"list":[{"userID":5}]}"#, "wrong types: 1"),
        (r#"{"ok":1}"#, "wrong types: 1"),
        (r#"{"options":{"a":1}}"#, "wrong types: 1"),
        (r#"{"unknown":{"userID":5,"x":[1,{}]},"ok":true}"#, "ok=true"),
        ("[]", "wrong types: 1"),
        ("0", "wrong types: 1"),
        (r#""x""#, "wrong types: 1"),
        ("null", ""),
        ("{}", ""),
    ]);
}

#[test]
fn an_integer_is_digits_alone_and_within_its_range() {
    table(&[
        (r#"{"nextCode":2147483647}"#, "nextCode=2147483647"),
        (r#"{"nextCode":-2147483648}"#, "nextCode=-2147483648"),
        (r#"{"nextCode":2147483648}"#, "wrong types: 1"),
        (r#"{"nextCode":99999999999999999999}"#, "wrong types: 1"),
        (r#"{"nextCode":-0}"#, "nextCode=0"),
        (r#"{"count":-0}"#, "wrong types: 1"),
        (r#"{"count":4294967295}"#, "count=4294967295"),
        (r#"{"nextCode":1.0}"#, "wrong types: 1"),
        (r#"{"nextCode":1e0}"#, "wrong types: 1"),
        (r#"{"nextCode":"1"}"#, "wrong types: 1"),
        (r#"{"nextCode":true}"#, "wrong types: 1"),
    ]);
}

#[test]
fn bytes_are_base64_with_padding_or_an_array_of_small_numbers() {
    table(&[
        (r#"{"data":"AAEC"}"#, r#"data="AAEC""#),
        (r#"{"data":"AA\nEC"}"#, r#"data="AA\nEC""#),
        (r#"{"data":"AB=="}"#, r#"data="AB==""#),
        (r#"{"data":"AAE"}"#, "wrong types: 1"),
        (r#"{"data":"A*=="}"#, "wrong types: 1"),
        (r#"{"data":[0,255]}"#, "data=[0,255]"),
        (r#"{"data":[256]}"#, "wrong types: 1"),
        (r#"{"data":"AQI=","data":[null,7,9]}"#, "data=[1,7,9]"),
    ]);
}

#[test]
fn strings_are_read_with_gos_replacements() {
    table(&[
        (r#"{"msg":"a\ud800b"}"#, "msg=\"a\u{fffd}b\""),
        (r#"{"msg":"\ud83d\ude00"}"#, "msg=\"\u{1f600}\""),
        (r#"{"msg":"\ud83d\u0041"}"#, "msg=\"\u{fffd}A\""),
        (r#"{"msg":"\ude00"}"#, "msg=\"\u{fffd}\""),
        (r#"{"msg":"\"\\\/\b\f\n\r\t"}"#, r#"msg="\"\\/\u{8}\u{c}\n\r\t""#),
    ]);
    // One replacement for each byte that is not UTF-8: two for a sequence that breaks off after two.
    assert_eq!(read(b"{\"msg\":\"\xe2\x84A\"}"), "msg=\"\u{fffd}\u{fffd}A\"");
    assert_eq!(read(b"{\"msg\":\"\xff\"}"), "msg=\"\u{fffd}\"");
}

#[test]
fn what_is_not_json_is_a_syntax_error_even_behind_a_wrong_type() {
    for input in [
        "",
        " \r\n\t",
        "{",
        "{\"nextCode\":\"\",",
        "{\"a\":1,}",
        "[1,]",
        "{\"a\" 1}",
        "{a:1}",
        "{'a':1}",
        "{}x",
        "{}{}",
        "{}\0",
        "\u{feff}{}",
        "+1",
        "01",
        "1.",
        "1e",
        "-",
        ".5",
        "tru",
        "nul",
        "nulll",
        "TRUE",
        "{\"a\":/*x*/1}",
        "[}",
        "{]",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"a\nb\"",
        "\"\t\"",
        "\"",
        "{\"a\":1 \"b\":2}",
        "NaN",
        ",",
        ":",
        "]",
        "}",
    ] {
        assert!(read(input).starts_with("syntax: "), "{input:?} gave {}", read(input));
    }
    for input in [" null ", "{}\n\n \t", "{ \"a\" : [ ] , \"b\" : -0.5e+10 }", "{\"a\":[[],[{}]]}"] {
        assert_eq!(read(input), "", "{input:?}");
    }
}

#[test]
fn every_truncation_of_a_document_is_a_syntax_error() {
    let whole =
        r#"{"nextCode":1,"msg":"a\u0041","list":[{"userID":"x"},null],"options":{"a":true},"u":[1.5e3,{}]}"#;
    assert!(!read(whole).starts_with("syntax"));
    for end in 0..whole.len() {
        assert!(read(&whole[..end]).starts_with("syntax: "), "cut at {end}");
    }
}

#[test]
fn nesting_is_bounded_where_gos_is() {
    let nested = |depth: usize| format!("{{\"x\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    assert_eq!(read(nested(DEPTH_LIMIT)), "");
    assert_eq!(read(nested(DEPTH_LIMIT + 1)), "syntax: nested deeper than 10000 levels");
}

#[test]
fn a_flood_of_values_is_refused_before_it_fills_the_memory() {
    let flood = |count: usize| format!("{{\"list\":[{}null]}}", "null,".repeat(count - 1));
    assert!(!read(flood(1000)).starts_with("syntax"));
    assert!(read(flood(VALUES_LIMIT + 1)).starts_with("syntax: more values"));
}

thread_local! {
    /// How many strings this thread has unquoted: what reading compares, it unquotes first.
    static UNQUOTED: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn count_unquoted() {
    UNQUOTED.set(UNQUOTED.get() + 1);
}

/// How many strings are unquoted by this.
fn unquoted<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = UNQUOTED.get();
    let done = work();
    (UNQUOTED.get() - before, done)
}

#[test]
fn a_map_costs_what_it_is_long_whatever_its_keys_are() {
    let distinct = |count: usize| (0..count).map(|n| format!("\"\\u0061{n}\":true")).collect::<Vec<_>>();
    // The last key again and again, behind many others; and each key again in a second object.
    let repeated =
        |count: usize| [distinct(count), vec![format!("\"a{}\":false", count - 1); 3 * count]].concat();
    let objects =
        |count: usize| [distinct(count).join(","), distinct(count).join("},\"options\":{")].join(",");
    for count in [1_000, 4_000] {
        for (text, written) in [
            (distinct(count).join(","), count),
            (repeated(count).join(","), 4 * count),
            (objects(count), 2 * count),
        ] {
            let text = format!("{{\"options\":{{{text}}}}}");
            let (unquoted_to_decode, decoded) = unquoted(|| decode(text.as_bytes(), FIELDS).expect("valid"));
            assert_eq!(unquoted_to_decode, 0, "keys are not looked at");
            let Value::Map(map) = decoded.root.field(6) else { panic!("{:?}", decoded.root) };
            let (unquoted_to_read, entries) = unquoted(|| map.entries(text.as_bytes()));
            assert_eq!((unquoted_to_read, entries.len()), (written, count), "each key once");
        }
    }
    assert_eq!(
        read(format!("{{\"options\":{{{}}}}}", repeated(2).join(","))),
        r#"options={"a0":true,"a1":false}"#
    );
}

#[test]
fn repeated_keys_and_bytes_that_become_a_list_count_as_values() {
    let same_key =
        |count: usize| format!("{{\"options\":{{{}\"a\":true}}}}", "\"a\":true,".repeat(count - 1));
    assert_eq!(read(same_key(VALUES_LIMIT / 2 - 5)), r#"options={"a":true}"#);
    assert!(read(same_key(VALUES_LIMIT / 2 + 1)).starts_with("syntax: more values"));
    let bytes = |groups: usize| format!("{{\"data\":\"{}\",\"data\":[]}}", "AAAA".repeat(groups));
    assert_eq!(read(bytes(VALUES_LIMIT / 3 - 5)), "data=[]");
    assert!(read(bytes(VALUES_LIMIT / 3 + 1)).starts_with("syntax: more values"));
}

#[test]
fn the_place_of_the_last_value_of_each_field_is_known() {
    let text = br#"{"nextCode":1,"info":{"ex":"e"},"nextCode": 25 }"#;
    let decoded = decode(text, FIELDS).expect("valid");
    assert_eq!(decoded.last[0].map(|span| span.of(text)), Some(&b"25"[..]));
    assert_eq!(decoded.last[5].map(|span| span.of(text)), Some(&br#"{"ex":"e"}"#[..]));
    assert_eq!(decoded.last[1], None);
    assert_eq!(decoded.end, text.len() - 1);
}

#[test]
fn a_plain_run_ends_at_the_first_byte_that_needs_a_look() {
    for stop in [b'"', b'\\', 0x1f, 0x00] {
        for at in 0..40 {
            let mut bytes = vec![b'a'; 40];
            bytes[at] = stop;
            assert_eq!(plain_run(&bytes), at, "0x{stop:02x} at {at}");
        }
    }
    assert_eq!(plain_run(&[0x20, 0x21, 0x7f, 0x80, 0xff, b'!', b'[', b']', b'#']), 9);
}

#[test]
fn a_string_is_read_alike_whatever_its_length_and_what_is_behind_it() {
    for length in 0..40 {
        for behind in ["", "   ", "                    "] {
            let text = "a".repeat(length);
            let document = format!("\"{text}\"{behind}");
            let mut tokens = Tokens::new(document.as_bytes());
            assert_eq!(tokens.next(), Ok(Some((Token::Str, Span::new(0, length + 2)))), "{document}");
            assert_eq!((tokens.escaped(), tokens.next()), (false, Ok(None)), "{document}");
            for at in 0..length {
                let (before, after) = (&text[..at], &text[at + 1..]);
                let escape = format!("\"{before}\\n{after}\"{behind}");
                let mut tokens = Tokens::new(escape.as_bytes());
                assert_eq!(tokens.next(), Ok(Some((Token::Str, Span::new(0, length + 3)))), "{escape}");
                assert!(tokens.escaped(), "{escape}");
                let control = format!("\"{before}\n{after}\"{behind}");
                let expected = Expected::StringByte;
                let error = SyntaxError::Byte { at: at as u32 + 1, found: b'\n', expected };
                assert_eq!(Tokens::new(control.as_bytes()).next(), Err(error), "{control:?}");
            }
            let end = &document.as_bytes()[..=length];
            assert_eq!(Tokens::new(end).next(), Err(SyntaxError::End), "{document}");
        }
    }
}

#[test]
fn a_text_is_told_with_and_without_escapes() {
    for (raw, text, is) in [
        (r#""group""#, "group", true),
        (r#""gr\u006fup""#, "group", true),
        (r#""groups""#, "group", false),
        (r#""""#, "", true),
        (r#""a\n""#, "a\n", true),
        (r#""a\\n""#, r"a\n", true),
        (r#""a\n""#, r"a\n", false),
    ] {
        assert_eq!(is_text(raw.as_bytes(), text), is, "{raw} {text:?}");
    }
}

/// Documents of a few hundred KiB, of every shape that takes a loop of its own: tokens, a string, escapes, digits, space.
fn long_documents() -> Vec<String> {
    let fill = |text: &str| text.repeat(300_000 / text.len());
    vec![
        format!("{{\"x\":[{}0]}}", fill("0,")),
        format!("{{\"x\":[{}0]}}", fill(&format!("{}{},", "[".repeat(99), "]".repeat(99)))),
        format!("{{\"list\":[{}{{}}]}}", fill("{\"userID\":\"a\"},")),
        format!("{{\"options\":{{{}\"a\":true}}}}", fill("\"a\":true,")),
        format!("{{\"msg\":\"{}\"}}", fill("plain ")),
        format!("{{\"msg\":\"{}\"}}", fill("\\n")),
        format!("{{\"msg\":\"{}\"}}", fill("\\u00e9")),
        format!("{{\"{}\":0}}", fill("k")),
        format!("{{\"x\":{}}}", fill("7")),
        format!("{{\"x\":0.{}}}", fill("7")),
        format!("{{{}\"x\":0}}", fill(" ")),
        format!("{{\"data\":\"{}\"}}", fill("AAAA")),
    ]
}

#[test]
fn a_long_walk_ends_soon_after_it_is_cancelled_and_else_reads_what_a_short_one_reads() {
    let cancelled = cancel::Cancel::default();
    cancelled.cancel();
    for text in long_documents() {
        let beginning = &text[..20];
        let read = |text: &str| {
            let mut tokens = Tokens::new(text.as_bytes());
            let mut last = 0;
            loop {
                match tokens.next() {
                    Ok(Some((_, span))) => last = span.end as usize,
                    Ok(None) => return (Ok(()), last),
                    Err(error) => return (Err(error), last),
                }
            }
        };
        assert_eq!(read(&text), (Ok(()), text.len()), "{beginning}");
        assert_eq!(decode(text.as_bytes(), FIELDS).expect("JSON").error_count, 0, "{beginning}");
        let (result, last) = cancel::watched(&cancelled, || read(&text));
        assert!(matches!(result, Err(SyntaxError::Cancelled | SyntaxError::End)), "{beginning}: {result:?}");
        assert!(last <= cancel::STRIDE + 16, "{beginning}: {last}");
        cancel::watched(&cancelled, || decode(text.as_bytes(), FIELDS)).expect_err(beginning);
        // A flag that is not set stops nothing, nor does one that is set stop a short walk.
        let reading = cancel::Cancel::default();
        assert_eq!(cancel::watched(&reading, || read(&text)), (Ok(()), text.len()), "{beginning}");
        assert_eq!(cancel::watched(&cancelled, || read("{\"x\":[0]}")), (Ok(()), 9));
    }
}

#[test]
fn a_string_is_read_the_same_wherever_it_is_looked_at() {
    // Every place of a quote, an escape and a control character around the edge of a stride.
    for before in cancel::STRIDE - 12..cancel::STRIDE + 4 {
        let text = |inside: &str| format!("\"{}{inside}\"", "x".repeat(before));
        for inside in ["", "y", "\\n", "\\u0041z", "é"] {
            let text = text(inside);
            let mut tokens = Tokens::new(text.as_bytes());
            assert_eq!(tokens.next(), Ok(Some((Token::Str, Span::new(0, text.len())))), "{before} {inside}");
            assert_eq!(tokens.escaped(), inside.contains('\\'));
            assert_eq!(tokens.next(), Ok(None));
        }
        let at = before as u32 + 1;
        let control = SyntaxError::Byte { at, found: 1, expected: Expected::StringByte };
        assert_eq!(Tokens::new(text("\u{1}").as_bytes()).next(), Err(control));
        assert_eq!(Tokens::new(text("").trim_end_matches('"').as_bytes()).next(), Err(SyntaxError::End));
    }
}

#[test]
fn utf8_is_checked_in_parts_as_it_is_whole() {
    for before in cancel::STRIDE - 5..cancel::STRIDE + 2 {
        for behind in ["", "x", "é", "€", "😀", "😀😀"] {
            let text = format!("{}{behind}{}", "x".repeat(before), "é".repeat(cancel::STRIDE));
            assert_eq!(check_utf8(text.as_bytes()), Ok(()), "{before} {behind}");
            for wrong in [&b"\xff"[..], b"\x80", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80"] {
                for rest in [&b""[..], b"x", "é".as_bytes()] {
                    let bytes =
                        [&text.as_bytes()[..before], behind.as_bytes(), wrong, rest, b"\xff"].concat();
                    let whole = std::str::from_utf8(&bytes).expect_err("not UTF-8").valid_up_to();
                    assert_eq!(check_utf8(&bytes), Err(whole), "{before} {behind} {wrong:?}");
                    let cut = &bytes[..bytes.len() - 1];
                    let whole = std::str::from_utf8(cut).map(|_| ()).map_err(|error| error.valid_up_to());
                    assert_eq!(check_utf8(cut), whole, "{before} {behind} {wrong:?}");
                }
            }
        }
    }
}

#[test]
fn a_number_of_more_digits_than_64_bits_hold_is_no_integer_and_is_not_read() {
    for (text, number) in [
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("-9223372036854775809", None),
        ("92233720368547758070", None),
        ("-92233720368547758080", None),
    ] {
        assert_eq!(integer(text.as_bytes(), i64::MIN, i64::MAX), number, "{text}");
    }
}
