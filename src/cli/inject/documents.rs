//! A stream of YAML cut into its documents, so that those that are left alone stay as they are, byte for byte.
//!
//! A line that begins with `---` or `...` and a blank, or is no more than that, is a marker wherever it stands: in a
//! block scalar and in quotes too (YAML 1.2.2, section 9.1.2 and the rule `c-forbidden`).

/// One document and what stands before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Document<'t> {
    /// The line it begins in, from 1.
    pub(super) line: u32,
    /// Directives, the marker, and comments up to the first line of content.
    pub(super) head: &'t str,
    /// From the first line of content; empty in a document that holds nothing.
    pub(super) body: &'t str,
    /// Comments behind it that begin in the first column, and what follows them: further in they may be text.
    pub(super) tail: &'t str,
}

impl<'t> Document<'t> {
    /// Whether it holds nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.body.trim().is_empty()
    }

    /// All of it.
    pub(super) fn text(&self, whole: &'t str) -> &'t str {
        let start = self.head.as_ptr() as usize - whole.as_ptr() as usize;
        &whole[start..start + self.head.len() + self.body.len() + self.tail.len()]
    }
}

fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix('\u{feff}').unwrap_or(line).strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
}

/// Whether nothing stands in this line but a comment.
fn is_blank(line: &str) -> bool {
    let line = line.trim_start_matches(['\u{feff}', ' ', '\t']).trim_end();
    line.is_empty() || line.starts_with('#')
}

/// Cuts a text; put together again, the pieces are the text.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut at = 0;
    // Whether the marker `---`, or content, of the document has come.
    let mut open = false;
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let directive = !open && line.starts_with('%');
        if is_marker(line, "---") {
            if open {
                documents.push(document(&text[start..at], start_line));
                (start, start_line) = (at, number);
            }
            open = true;
        } else if is_marker(line, "...") {
            documents.push(document(&text[start..at + line.len()], start_line));
            (start, start_line) = (at + line.len(), number + 1);
            open = false;
        } else if !is_blank(line) && !directive {
            open = true;
        }
        at += line.len();
    }
    if start < text.len() {
        documents.push(document(&text[start..], start_line));
    }
    documents
}

fn document(text: &str, line: u32) -> Document<'_> {
    let mut head = 0;
    let mut marked = !text.split_inclusive('\n').any(|line| is_marker(line, "---"));
    for line in text.split_inclusive('\n') {
        let marker = !marked && is_marker(line, "---");
        if marker && !is_blank(&line.trim_start_matches('\u{feff}')[3..]) {
            // `--- {a: b}`: what follows the marker is content.
            head += line.find("---").unwrap_or_default() + 3;
            break;
        }
        if marked && !is_blank(line) {
            break;
        }
        marked |= marker;
        head += line.len();
    }
    let (mut tail, mut at) = (text.len(), text.len());
    for line in text[head..].split_inclusive('\n').rev() {
        if !is_blank(line) && !is_marker(line, "...") {
            break;
        }
        at -= line.len();
        if line.starts_with('#') || is_marker(line, "...") {
            tail = at;
        }
    }
    Document { line, head: &text[..head], body: &text[head..tail], tail: &text[tail..] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(text: &str) -> Vec<(u32, &str)> {
        let found = split(text);
        let joined: String = found.iter().map(|one| one.text(text)).collect();
        assert_eq!(joined, text);
        found.into_iter().filter(|one| !one.body.is_empty()).map(|one| (one.line, one.body)).collect()
    }

    #[test]
    fn documents_are_cut_at_markers_and_nowhere_else() {
        for (text, expected) in [
            ("", &[][..]),
            ("# only\n\n---\n", &[]),
            ("a: 1", &[(1, "a: 1")]),
            ("# c\n---\n# d\na: 1\n# e\n---\nb: 2\n", &[(1, "a: 1\n"), (6, "b: 2\n")]),
            ("a: 1\n--- # next\nb: 2\n", &[(1, "a: 1\n"), (2, "b: 2\n")]),
            ("a: |\n  x\n  ---\n  y\n", &[(1, "a: |\n  x\n  ---\n  y\n")]),
            ("a: 1\n---b: 2\n", &[(1, "a: 1\n---b: 2\n")]),
            ("a: 1\n...\n# between\n%YAML 1.2\n---\nb: 2\n", &[(1, "a: 1\n"), (3, "b: 2\n")]),
            ("%YAML 1.2\n---\na: 1\n", &[(1, "a: 1\n")]),
            ("--- {a: 1}\n--- {b: 2}\n", &[(1, " {a: 1}\n"), (2, " {b: 2}\n")]),
            ("\u{feff}---\r\na: 1\r\n---\r\nb: 2\r\n", &[(1, "a: 1\r\n"), (3, "b: 2\r\n")]),
            ("---\n---\na: 1\n", &[(2, "a: 1\n")]),
        ] {
            assert_eq!(bodies(text), expected, "{text:?}");
        }
    }
}
