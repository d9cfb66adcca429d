//! Strings in which one or more `*` stands for any run of characters, the empty one included.

use std::time::Duration;

/// Longest text that a pattern with a star matches, in bytes. OpenIM's IDs have at most 64 characters, its commands 50; what
/// a caller sends may have megabytes, and each pattern of each rule would look at all of it.
pub(super) const TEXT_LIMIT_BYTES: usize = 1 << 10;

/// What comparing takes, and what searching a text of that length takes at the most: the text (a periodic one is the worst),
/// and each piece, some two nanoseconds for each of its bytes. Measured with Rust 1.95 on a core of 2 to 3 GHz.
const EXACT_NANOS: u64 = 5;
const SEARCH_NANOS: u64 = 1_500;
const PIECE_NANOS: u64 = 20;

/// A pattern, cut at its stars once so that matching allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob {
    source: Box<str>,
    /// What stands between the stars; a single piece means that there is no star.
    pieces: Box<[Box<str>]>,
    /// The pairs of letters in all pieces.
    pairs: Pairs,
}

/// A set of pairs of neighboring bytes, a bit for several of them. A text that lacks a pair of a pattern does not match, and
/// finding that out takes a nanosecond, where searching the text for a piece takes a hundred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pairs(u128);

impl Pairs {
    /// The pairs of a text. Of one that is longer than a pattern may match: none.
    pub(super) fn of(text: &str) -> Pairs {
        let text = if text.len() > TEXT_LIMIT_BYTES { "" } else { text };
        let bits = text.as_bytes().windows(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        // Fibonacci hashing: 7 bits of the product.
        Pairs(bits.fold(0, |set, pair| set | 1 << (pair.wrapping_mul(40_503) >> 9)))
    }

    fn lack(self, wanted: Pairs) -> bool {
        wanted.0 & !self.0 != 0
    }
}

impl Glob {
    pub(super) fn new(source: &str) -> Glob {
        let pieces: Box<[Box<str>]> = source.split('*').map(Box::from).collect();
        let pairs = Pairs(pieces.iter().fold(0, |set, piece| set | Pairs::of(piece).0));
        Glob { source: source.into(), pieces, pairs }
    }

    /// As it was written.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it stands for the whole of `text`. With a star it does not match more than [`TEXT_LIMIT_BYTES`].
    pub(super) fn matches(&self, text: &str) -> bool {
        self.matches_with(text, Pairs::of(text))
    }

    /// The same, when the pairs of the text are known: for many patterns and one text. Taking the first place where each
    /// middle piece fits is enough: a later one leaves less for the pieces behind it.
    pub(super) fn matches_with(&self, text: &str, pairs: Pairs) -> bool {
        let [first, middle @ .., last] = &*self.pieces else { return *text == *self.source };
        if text.len() > TEXT_LIMIT_BYTES || pairs.lack(self.pairs) {
            return false;
        }
        let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
            return false;
        };
        for piece in middle.iter().filter(|piece| !piece.is_empty()) {
            let Some(at) = rest.find(&**piece) else { return false };
            rest = &rest[at + piece.len()..];
        }
        true
    }

    /// How long matching takes at the most, whatever the text. (Each search goes on where the one before it ended.)
    pub(super) fn worst_time(&self) -> Duration {
        let searched = match &*self.pieces {
            [_, middle @ .., _] => middle.iter().filter(|piece| !piece.is_empty()).count() as u64,
            _ => 0,
        };
        let search = SEARCH_NANOS + searched * PIECE_NANOS + 2 * self.source.len() as u64;
        Duration::from_nanos(EXACT_NANOS + if searched == 0 { 0 } else { search })
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
    fn a_text_above_the_limit_matches_no_star() {
        let long = |bytes: usize| "a".repeat(bytes);
        for pattern in ["*", "a*", "*a", "*a*"] {
            assert!(Glob::new(pattern).matches(&long(TEXT_LIMIT_BYTES)), "{pattern}");
            assert!(!Glob::new(pattern).matches(&long(TEXT_LIMIT_BYTES + 1)), "{pattern}");
        }
        // Without a star the lengths are compared first.
        assert!(Glob::new(&long(TEXT_LIMIT_BYTES + 1)).matches(&long(TEXT_LIMIT_BYTES + 1)));
    }

    #[test]
    fn pairs_rule_out_most_patterns_and_never_one_that_matches() {
        let text = "user-1764";
        let pairs = Pairs::of(text);
        for start in 0..text.len() {
            for end in start..=text.len() {
                assert!(!pairs.lack(Glob::new(&format!("*{}*", &text[start..end])).pairs), "{start} {end}");
            }
        }
        // Nine bytes have eight pairs: of four pairs at random one in 65,536 patterns has all.
        let ruled_out =
            (10_000..20_000).filter(|number| pairs.lack(Glob::new(&format!("*z{number}*")).pairs));
        assert!(ruled_out.count() > 9_900);
    }

    #[test]
    fn the_estimate_counts_searches() {
        let nanos = |pattern: &str| Glob::new(pattern).worst_time().as_nanos();
        for (cheap, dear) in [("abc", "*abc*"), ("abc*", "a*b*c"), ("*", "*a*"), ("*a*", "*a*b*")] {
            assert!(nanos(cheap) < nanos(dear), "{cheap} {dear}");
        }
        assert_eq!(nanos("abc"), nanos("abc*"));
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
