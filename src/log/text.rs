//! Characters that a line must not pass on as they are.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::Format;

/// Whether a character could end a line, control a terminal or reorder what is shown: controls (C0, DEL, C1), line and paragraph
/// separators, marks of writing direction.
pub const fn is_unsafe(letter: char) -> bool {
    matches!(
        letter,
        '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
    )
}

/// A text from outside for a line or a page for people: U+FFFD in the place of each unsafe character, line breaks and tabs too.
pub fn shown(text: &str) -> String {
    text.chars().map(|letter| if is_unsafe(letter) { '\u{fffd}' } else { letter }).collect()
}

/// A JSON string.
pub(super) fn quoted(line: &mut String, text: &str) {
    line.push('"');
    if text.bytes().all(|byte| matches!(byte, 0x20..0x7f) && byte != b'"' && byte != b'\\') {
        line.push_str(text);
    } else {
        for letter in text.chars() {
            match letter {
                '"' => line.push_str("\\\""),
                '\\' => line.push_str("\\\\"),
                other => escaped(line, other),
            }
        }
    }
    line.push('"');
}

fn escaped(line: &mut String, letter: char) {
    if is_unsafe(letter) {
        // All of them are in the basic plane: one escape each.
        let _ = write!(line, "\\u{:04x}", u32::from(letter));
    } else {
        line.push(letter);
    }
}

/// A whole line made by others, its newline included, without unsafe characters. In JSON they can only be inside a string. In text,
/// lines of a field stay lines, but are indented: none looks like the beginning of another line of the log.
pub(super) fn safe(line: &[u8], format: Format) -> Cow<'_, [u8]> {
    let (text, end) = match line.strip_suffix(b"\n") {
        Some(text) => (text, "\n"),
        None => (line, ""),
    };
    if text.iter().all(|byte| matches!(byte, 0x20..0x7f)) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len() + 16);
    for letter in String::from_utf8_lossy(text).chars() {
        match (format, letter) {
            (Format::Json, letter) => escaped(&mut out, letter),
            (Format::Text, '\n') => out.push_str("\n    "),
            (Format::Text, '\t') => out.push('\t'),
            (Format::Text, letter) if is_unsafe(letter) => out.push('\u{fffd}'),
            (Format::Text, letter) => out.push(letter),
        }
    }
    out.push_str(end);
    Cow::Owned(out.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind, and the ends of each range.
    const UNSAFE: &str = "\0\t\n\r\u{1b}\u{1f}\u{7f}\u{80}\u{85}\u{9b}\u{9f}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}";
    /// Their neighbors, and what writing needs.
    const SAFE: &str = " ~\u{a0}é中\u{61b}\u{61d}\u{200d}\u{2010}\u{2027}\u{202f}\u{2065}\u{206a}\u{fffd}🙂";

    #[test]
    fn a_json_string_has_no_unsafe_character_and_means_the_same() {
        let mut line = String::new();
        quoted(&mut line, &format!("\"\\{UNSAFE}{SAFE}"));
        assert!(!line.contains(is_unsafe), "{line:?}");
        assert!(line.contains(SAFE), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), format!("\"\\{UNSAFE}{SAFE}"));
    }

    #[test]
    fn a_text_for_people_has_a_sign_in_their_place() {
        let text = shown(&format!("{UNSAFE}{SAFE}"));
        assert_eq!(text, format!("{}{SAFE}", "\u{fffd}".repeat(UNSAFE.chars().count())));
    }

    #[test]
    fn a_line_of_others_keeps_its_meaning_or_its_lines() {
        let json = serde_json::json!({ "reason": format!("{UNSAFE}{SAFE}") });
        let line = safe(format!("{json}\n").as_bytes(), Format::Json).into_owned();
        let text = String::from_utf8(line).expect("UTF-8");
        let text = text.strip_suffix('\n').expect("one line");
        assert!(!text.contains(is_unsafe), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(text).expect("JSON"), json);
        let line = safe("reason=a\u{9b}31m\nWARN forged\tx\r\n".as_bytes(), Format::Text).into_owned();
        assert_eq!(
            String::from_utf8(line).expect("UTF-8"),
            "reason=a\u{fffd}31m\n    WARN forged\tx\u{fffd}\n"
        );
        // The twin: a plain line is not even copied.
        assert!(matches!(safe(b"plain\n", Format::Text), Cow::Borrowed(b"plain\n")));
    }
}
