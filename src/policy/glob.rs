//! Strings in which one or more `*` stands for any run of characters, the empty one included.

/// A pattern, cut at its stars once so that matching allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob {
    source: Box<str>,
    /// What stands between the stars; a single piece means that there is no star.
    pieces: Box<[Box<str>]>,
}

impl Glob {
    pub(super) fn new(source: &str) -> Glob {
        Glob { source: source.into(), pieces: source.split('*').map(Box::from).collect() }
    }

    /// As it was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it stands for the whole of `text`. Taking the first place where each middle piece fits is
    /// enough: a later one leaves less for the pieces behind it.
    pub(super) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &*self.pieces else { return *text == *self.source };
        let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
            return false;
        };
        for piece in middle.iter().filter(|piece| !piece.is_empty()) {
            let Some(at) = rest.find(&**piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        true
    }

    /// Whether it matches everything that `other` matches. A star of `other` may stand for anything, so only
    /// a star of this one covers it: the pieces of this one hold no star, hence matching it against the
    /// pattern as a text says just that. May be `false` for a pattern that is covered in a less obvious way.
    pub(super) fn covers(&self, other: &Glob) -> bool {
        self.matches(&other.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_run() {
        for (pattern, yes, no) in [
            ("bot-1", &["bot-1"][..], &["bot-", "bot-11", "Bot-1", ""][..]),
            ("bot-*", &["bot-", "bot-1", "bot-*"], &["bot", "abot-1"]),
            ("*-bot", &["-bot", "a-bot"], &["a-bots"]),
            ("*", &["", "x"], &[]),
            ("***", &["", "x"], &[]),
            ("a*b", &["ab", "axb", "abab"], &["a", "b", "aba"]),
            ("a*a", &["aa", "aba"], &["a"]),
            ("a*b*c", &["abc", "axbxc", "abbcc"], &["acb", "ac"]),
            ("*b*b*", &["bb", "abcbd"], &["b", "abc"]),
            ("ü*ü", &["üü", "üxü"], &["ü", "uü"]),
            ("", &[""], &["x"]),
            (
                "callbackBefore*PushCommand",
                &["callbackBeforePushCommand", "callbackBeforeOnlinePushCommand"],
                &["callbackBeforeSendSingleMsgCommand"],
            ),
        ] {
            let glob = Glob::new(pattern);
            for text in yes {
                assert!(glob.matches(text), "{pattern} {text}");
            }
            for text in no {
                assert!(!glob.matches(text), "{pattern} {text}");
            }
        }
    }

    #[test]
    fn covering_is_sound() {
        for (wide, narrow, covers) in [
            ("*", "a*b", true),
            ("a*", "ab*", true),
            ("a*", "abc", true),
            ("a*c", "a*b*c", true),
            ("a**", "a*", true),
            ("ab*", "a*", false),
            ("a*b", "a*", false),
            ("a", "*", false),
            ("a*bc", "a*c", false),
        ] {
            assert_eq!(Glob::new(wide).covers(&Glob::new(narrow)), covers, "{wide} {narrow}");
        }
    }
}
