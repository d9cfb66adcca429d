//! Which known word was meant by an unknown one.

use std::sync::LazyLock;

use super::glob::Glob;
use crate::callback::command;

/// Every name of the table in lower case, with the name.
static COMMANDS: LazyLock<Vec<(String, &'static str)>> =
    LazyLock::new(|| command::names().map(|(name, _)| (name.to_ascii_lowercase(), name)).collect());

/// Edits that make one name of a command into another by mistake. Real names differ by more where they mean
/// different things, so a newer server's command is not taken for a slip.
const COMMAND_EDITS: usize = 2;

/// A stem shorter than this is too little to tell a slip from another word.
const STEM_CHARS: usize = 6;

/// The known key that `unknown` is nearest to, if it is near enough to have been meant: equal but for case,
/// or within a third of its length in edits.
pub(crate) fn nearest_key<'k>(unknown: &str, known: &[&'k str]) -> Option<&'k str> {
    if unknown.len() > 64 {
        return None;
    }
    let lower = unknown.to_ascii_lowercase();
    let allowed = (unknown.len() / 3).clamp(1, 3);
    let edits = |key: &str| distance(&lower, &key.to_ascii_lowercase(), allowed);
    known
        .iter()
        .copied()
        .map(|key| (edits(key), key))
        .filter(|(edits, _)| *edits <= allowed)
        .min()
        .map(|it| it.1)
}

/// The command of the table that an unknown name resembles: equal but for case, or for the words `callback`
/// and `Command` around it, or within two edits.
pub(crate) fn resembling_command(unknown: &str) -> Option<&'static str> {
    if unknown.len() > 128 {
        return None;
    }
    let meant = unknown.to_ascii_lowercase();
    let mut best: Option<(usize, &'static str)> = None;
    for (known, name) in &*COMMANDS {
        let whole = edits(&meant, known);
        let stems = if stem(&meant) == stem(known) {
            Some(0)
        } else if stem(&meant).len() >= STEM_CHARS {
            edits(stem(&meant), stem(known))
        } else {
            None
        };
        if let Some(edits) = whole.into_iter().chain(stems).min()
            && best.is_none_or(|(least, _)| edits < least)
        {
            best = Some((edits, name));
        }
    }
    best.map(|(_, name)| name)
}

/// The pattern that was meant by one that fits no name of the table: with the letter case of the names it then fits, or
/// with what is before its first `*` within two edits of how a name begins.
pub(crate) fn resembling_pattern(pattern: &str) -> Option<String> {
    if pattern.len() > 128 {
        return None;
    }
    let pieces: Vec<_> = pattern.split('*').map(str::to_ascii_lowercase).collect();
    let (first, rest) = pieces.split_first()?;
    // Today's names first: of the earlier ones some begin in upper case.
    let mut names =
        command::all().iter().map(|command| command.name).chain(command::names().map(|(name, _)| name));
    if let Some(cased) = names.find_map(|name| in_case_of(&pieces, &name.to_ascii_lowercase(), name)) {
        return Some(cased);
    }
    // What begins a name: its words, and nothing that ends within one.
    let (_, begins) = command::all()
        .iter()
        .flat_map(|command| {
            let ends = command.name.char_indices().filter(|(_, letter)| letter.is_ascii_uppercase());
            ends.map(|(at, _)| at).chain([command.name.len()]).map(|at| &command.name[..at])
        })
        .filter_map(|begins| edits(first, &begins.to_ascii_lowercase()).map(|edits| (edits, begins)))
        .filter(|(edits, begins)| first.len() >= STEM_CHARS && edits * 3 < begins.len())
        .min_by_key(|(edits, _)| *edits)?;
    let tail = &pattern[pattern.len() - rest.iter().map(|piece| piece.len() + 1).sum::<usize>()..];
    let meant = format!("{begins}{tail}");
    let glob = Glob::new(&meant);
    command::names().any(|(name, _)| glob.matches(name)).then_some(meant)
}

/// The pieces of a pattern with the letter case of a name that they fit but for it.
fn in_case_of(pieces: &[String], lower: &str, name: &str) -> Option<String> {
    let (first, rest) = pieces.split_first()?;
    let (last, middle) = rest.split_last()?;
    let end = lower.len().checked_sub(last.len()).filter(|end| *end >= first.len())?;
    if !lower.starts_with(first.as_str()) || !lower.ends_with(last.as_str()) {
        return None;
    }
    let (mut at, mut cased) = (first.len(), name[..first.len()].to_owned());
    for piece in middle {
        let found = at + lower[at..end].find(piece.as_str())?;
        at = found + piece.len();
        cased = cased + "*" + &name[found..at];
    }
    Some(cased + "*" + &name[end..])
}

/// The edits between two names of commands, if they are few enough for a slip.
fn edits(a: &str, b: &str) -> Option<usize> {
    if a.len().abs_diff(b.len()) > COMMAND_EDITS {
        return None;
    }
    Some(distance(a, b, COMMAND_EDITS)).filter(|edits| *edits <= COMMAND_EDITS)
}

fn stem(lower: &str) -> &str {
    let rest = lower.strip_prefix("callback").unwrap_or(lower);
    rest.strip_suffix("command").unwrap_or(rest)
}

/// How many bytes to add, drop, change or swap with a neighbour, to make one text from the other; anything
/// greater than `limit` once it cannot be less.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut row = vec![0; b.len() + 1];
    let mut least_above = 0;
    for i in 1..=a.len() {
        row[0] = i;
        let mut least = i;
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut edits = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                edits = edits.min(before[j - 2] + 1);
            }
            row[j] = edits;
            least = least.min(edits);
        }
        // The next row is made from this one, and by a swap from the one above it plus one.
        if least > limit && least_above >= limit {
            return limit + 1;
        }
        least_above = least;
        std::mem::swap(&mut before, &mut above);
        std::mem::swap(&mut above, &mut row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_as_far_as_it_is_asked() {
        for (a, b, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("timeout", "timeuot", 1),
            ("abc", "abd", 1),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
            ("abcdef", "fedcba", 5),
        ] {
            for limit in 0..8 {
                for found in [distance(a, b, limit), distance(b, a, limit)] {
                    assert!(found == edits || (edits > limit && found > limit), "{a} {b} {limit}: {found}");
                }
            }
        }
    }

    #[test]
    fn the_nearest_key_is_near() {
        let known = ["timeout", "fallback", "fallbackFor", "name"];
        for (unknown, key) in [
            ("timeuot", Some("timeout")),
            ("Timeout", Some("timeout")),
            ("fallbackfor", Some("fallbackFor")),
            ("fallBack", Some("fallback")),
            ("nam", Some("name")),
            ("retries", None),
            ("x", None),
        ] {
            assert_eq!(nearest_key(unknown, &known), key, "{unknown}");
        }
    }

    #[test]
    fn a_slip_resembles_its_command_and_a_new_name_resembles_none() {
        for (unknown, meant) in [
            ("callbackBeforeSendSingelMsgCommand", Some("callbackBeforeSendSingleMsgCommand")),
            ("CallbackBeforeSendSingleMsgCommand", Some("callbackBeforeSendSingleMsgCommand")),
            ("callbackBeforeSendSingleMsg", Some("callbackBeforeSendSingleMsgCommand")),
            ("beforeSendSingleMsg", Some("callbackBeforeSendSingleMsgCommand")),
            ("callbackBeforeSendSingleMsgComand", Some("callbackBeforeSendSingleMsgCommand")),
            ("calbackBeforeSendSingleMsgCommand", Some("callbackBeforeSendSingleMsgCommand")),
            ("callbackBeforeSendChannelMsgCommand", None),
            ("callbackAfterAddBlackCommand", None),
            ("somethingElse", None),
            ("callbackCommand", None),
        ] {
            assert_eq!(resembling_command(unknown), meant, "{unknown}");
        }
    }

    #[test]
    fn a_pattern_with_a_slip_resembles_one_that_fits_and_a_new_one_resembles_none() {
        for (pattern, meant) in [
            ("callbackbefore*", Some("callbackBefore*")),
            ("Callback*PushCommand", Some("callback*PushCommand")),
            ("callback*pushcommand", Some("callback*PushCommand")),
            ("*SENDGROUP*", Some("*SendGroup*")),
            ("callbackBefroe*", Some("callbackBefore*")),
            ("calbackAfter*Command", Some("callbackAfter*Command")),
            ("callbackBeforeSned*MsgCommand", Some("callbackBeforeSend*MsgCommand")),
            ("callbackBeforeChannel*", None),
            ("x*", None),
            ("é*é", None),
        ] {
            let found = resembling_pattern(pattern);
            assert_eq!(found.as_deref(), meant, "{pattern}");
            if let Some(meant) = meant {
                assert!(command::names().any(|(name, _)| Glob::new(meant).matches(name)), "{meant}");
            }
        }
    }
}
