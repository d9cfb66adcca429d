//! What pages for people are made of: one screen, no script, no picture, nothing fetched.

use std::fmt::Write as _;

use crate::log::is_unsafe;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em;max-width:80em;color:#222}\
h1{font-size:1.3em}h2{font-size:1.05em;margin-top:1.6em}table{border-collapse:collapse}\
td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top;white-space:nowrap}th{font-weight:600;color:#555}\
.text,.bad{white-space:pre-wrap}.bad{color:#b00020}.ok{color:#1b6e20}.dim{color:#777}\
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}th,.dim{color:#999}.bad{color:#ff8a80}.ok{color:#81c784}}";

/// What a browser may do with a page: show it with [`STYLE`], which is named by its SHA-256, and nothing else. The page
/// reloads itself and has links, which need no permission.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'sha256-AkRNL58u1vggzlw2ywP/mxIfzmnbSYv+0vfmLpVr/yo='; base-uri 'none'; \
form-action 'none'; frame-ancestors 'none'";

/// Begins a page that reloads itself every 5 s: to its heading, `NAME VERSION`. End tags may be left out.
pub fn begin(name: &str) -> String {
    format!(
        "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><meta http-equiv=refresh \
         content=5><title>{name}</title><style>{STYLE}</style><h1>{name} {}</h1>",
        env!("CARGO_PKG_VERSION")
    )
}

/// Adds a problem in red; lines of `reason` stay lines.
pub fn problem(out: &mut String, what: &str, reason: &str) {
    let _ = write!(out, "<p class=bad>{what}:\n{}</p>", escaped(reason));
}

/// Adds a row to a table of names and values.
pub fn row(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "<tr><th>{}<td>{}", escaped(name), escaped(value));
}

/// Text that cannot be markup, also within quotes, and cannot reorder what is shown.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(letter),
            other if is_unsafe(other) => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    #[test]
    fn what_comes_from_outside_cannot_become_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
        assert_eq!(escaped("a\u{9b}b\u{202e}c\u{2028}d\ne"), "a\u{fffd}b\u{fffd}c\u{fffd}d\ne");
        let mut out = String::new();
        problem(&mut out, "Refused", "<b>\n<i>");
        row(&mut out, "<u>", "<s>");
        assert_eq!(out, "<p class=bad>Refused:\n&lt;b&gt;\n&lt;i&gt;</p><tr><th>&lt;u&gt;<td>&lt;s&gt;");
    }

    #[test]
    fn the_policy_of_pages_allows_their_style_and_no_other() {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, STYLE.as_bytes());
        let hash = base64::engine::general_purpose::STANDARD.encode(digest);
        assert!(CONTENT_SECURITY_POLICY.contains(&format!("style-src 'sha256-{hash}';")), "{hash}");
        assert!(begin("x").contains(&format!("<style>{STYLE}</style>")));
    }
}
