//! Which callbacks a rule is for. Made once when a policy is compiled, so that asking allocates nothing.

use std::time::Duration;

use serde_json::{Map, Value};

use super::glob::{Glob, Pairs};
use crate::callback::command::{self, Command, Phase};
use crate::callback::subject::Subject;

/// The commands named by a policy or an override.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Commands {
    /// As written.
    source: Vec<String>,
    /// One bit for each command of the table whose today's name is named or fits a pattern.
    known: Vec<u64>,
    /// Names outside the table.
    others: Vec<Box<str>>,
    globs: Vec<Glob>,
}

impl Commands {
    pub(super) fn new(source: Vec<String>) -> Commands {
        let mut known = vec![0; command::all().len().div_ceil(64)];
        let (mut others, mut globs) = (Vec::new(), Vec::new());
        for name in &source {
            if name.contains('*') {
                globs.push(Glob::new(name));
            } else if let Some(command) = command::lookup(name) {
                mark(&mut known, command);
            } else {
                others.push(Box::from(name.as_str()));
            }
        }
        for command in command::all() {
            if globs.iter().any(|glob| glob.matches(command.name)) {
                mark(&mut known, command);
            }
        }
        Commands { source, known, others, globs }
    }

    pub(super) fn source(&self) -> &[String] {
        &self.source
    }

    /// Whether the command is named, by today's name or an alias of it, or a pattern fits the name as sent or
    /// today's.
    pub(super) fn contain(&self, subject: &Subject<'_>) -> bool {
        match subject.command {
            Some(command) => self.has(command) || (subject.name != command.name && self.fit(subject.name)),
            None => self.others.iter().any(|other| **other == *subject.name) || self.fit(subject.name),
        }
    }

    fn fit(&self, name: &str) -> bool {
        any_matches(&self.globs, name)
    }

    fn has(&self, command: &'static Command) -> bool {
        let index = index(command);
        self.known.get(index / 64).is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    /// The commands of the table that are named, if nothing else is.
    fn only_known(&self) -> Option<impl Iterator<Item = &'static Command>> {
        (self.others.is_empty() && self.globs.is_empty())
            .then(|| command::all().iter().filter(|command| self.has(command)))
    }

    fn cover(&self, other: &Commands, steps: &mut Steps) -> bool {
        let named = other.source.iter().filter(|name| !name.contains('*'));
        for name in named {
            let covered = match command::lookup(name) {
                Some(command) => self.has(command),
                None => {
                    steps.take(self.others.len() + self.globs.len())
                        && (self.others.iter().any(|own| **own == **name) || self.fit(name))
                }
            };
            if !covered {
                return false;
            }
        }
        globs_cover(&self.globs, &other.globs, steps)
    }
}

fn mark(bits: &mut [u64], command: &'static Command) {
    let index = index(command);
    bits[index / 64] |= 1 << (index % 64);
}

/// The place of a command in the table: every `Command` there is stands in it.
fn index(command: &'static Command) -> usize {
    let offset = std::ptr::from_ref(command).addr().wrapping_sub(command::all().as_ptr().addr());
    offset / size_of::<Command>()
}

/// What a callback must be like for a rule. A key that is `None` is not looked at; a key the callback lacks
/// does not match.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Match {
    pub(super) commands: Option<Commands>,
    pub(super) phases: Option<Vec<Phase>>,
    pub(super) content_types: Option<Integers>,
    pub(super) session_types: Option<Integers>,
    pub(super) platform_ids: Option<Integers>,
    pub(super) send_ids: Option<Vec<Glob>>,
    pub(super) recv_ids: Option<Vec<Glob>>,
    pub(super) group_ids: Option<Vec<Glob>>,
}

impl Match {
    /// Whether the rule is for this callback: every key that is written fits.
    pub(super) fn fits(&self, subject: &Subject<'_>) -> bool {
        self.misfit(subject).is_none()
    }

    /// The first key that does not fit, as it is called in a policy.
    pub(super) fn misfit(&self, subject: &Subject<'_>) -> Option<&'static str> {
        let number = |wanted: &Option<Integers>, found: &[Option<i64>]| {
            wanted.as_ref().is_none_or(|wanted| found.iter().flatten().any(|found| wanted.contain(*found)))
        };
        let text = |wanted: &Option<Vec<Glob>>, found: Option<&str>| {
            wanted.as_ref().is_none_or(|wanted| found.is_some_and(|found| any_matches(wanted, found)))
        };
        if !self.commands.as_ref().is_none_or(|commands| commands.contain(subject)) {
            Some("commands")
        } else if !self.phases.as_ref().is_none_or(|phases| phases.contains(&subject.phase())) {
            Some("phase")
        } else if !number(&self.content_types, &[subject.content_type]) {
            Some("contentTypes")
        } else if !number(&self.session_types, &[subject.session_type]) {
            Some("sessionTypes")
        } else if !number(&self.platform_ids, &subject.platform_ids) {
            Some("platformIDs")
        } else if !text(&self.send_ids, subject.send_id.as_deref()) {
            Some("sendIDs")
        } else if !text(&self.recv_ids, subject.recv_id.as_deref()) {
            Some("recvIDs")
        } else if !text(&self.group_ids, subject.group_id.as_deref()) {
            Some("groupIDs")
        } else {
            None
        }
    }

    /// Whether it looks further than at the command.
    pub(super) fn looks_into_bodies(&self) -> bool {
        let Match {
            commands: _,
            phases: _,
            content_types,
            session_types,
            platform_ids,
            send_ids,
            recv_ids,
            group_ids,
        } = self;
        [content_types, session_types, platform_ids].into_iter().any(Option::is_some)
            || [send_ids, recv_ids, group_ids].into_iter().any(Option::is_some)
    }

    /// How long it may take at the most to hold its patterns against a callback.
    pub(super) fn worst_time(&self) -> Duration {
        let commands = self.commands.as_ref().map(|commands| &commands.globs);
        let lists = [commands, self.send_ids.as_ref(), self.recv_ids.as_ref(), self.group_ids.as_ref()];
        lists.into_iter().flatten().flatten().map(Glob::worst_time).sum()
    }

    /// Whether it fits every callback that `other` fits. May be `false` where that is not plain to see, or
    /// where finding out takes more steps than there are; never `true` without cause.
    pub(super) fn covers(&self, other: &Match, steps: &mut Steps) -> bool {
        fn key<T>(wide: &Option<T>, narrow: &Option<T>, mut covers: impl FnMut(&T, &T) -> bool) -> bool {
            match (wide, narrow) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(wide), Some(narrow)) => covers(wide, narrow),
            }
        }
        steps.take(1)
            && self.covers_phases(other)
            && key(&self.content_types, &other.content_types, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.session_types, &other.session_types, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.platform_ids, &other.platform_ids, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.commands, &other.commands, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.send_ids, &other.send_ids, |wide, narrow| globs_cover(wide, narrow, steps))
            && key(&self.recv_ids, &other.recv_ids, |wide, narrow| globs_cover(wide, narrow, steps))
            && key(&self.group_ids, &other.group_ids, |wide, narrow| globs_cover(wide, narrow, steps))
    }

    fn covers_phases(&self, other: &Match) -> bool {
        let Some(wide) = &self.phases else { return true };
        if Phase::ALL.iter().all(|(_, phase)| wide.contains(phase)) {
            return true;
        }
        if let Some(narrow) = &other.phases
            && narrow.iter().all(|phase| wide.contains(phase))
        {
            return true;
        }
        // A list of commands of the table says which phases there can be.
        let known = other.commands.as_ref().and_then(Commands::only_known);
        known.is_some_and(|mut known| known.all(|command| wide.contains(&command.phase)))
    }

    /// As in a policy.
    pub(super) fn to_json(&self) -> Value {
        let mut json = Map::new();
        let mut add = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                json.insert(key.to_owned(), value);
            }
        };
        let globs =
            |globs: &Option<Vec<Glob>>| globs.as_ref().map(|globs| globs.iter().map(Glob::source).collect());
        let integers =
            |list: &Option<Integers>| list.as_ref().map(|list| list.0.iter().copied().collect::<Value>());
        let word = |phase: &Phase| {
            Phase::ALL.iter().find(|(_, known)| known == phase).map(|(word, _)| *word).unwrap_or_default()
        };
        add("commands", self.commands.as_ref().map(|it| it.source.iter().map(String::as_str).collect()));
        add("phase", self.phases.as_ref().map(|phases| phases.iter().map(word).collect()));
        add("contentTypes", integers(&self.content_types));
        add("sessionTypes", integers(&self.session_types));
        add("platformIDs", integers(&self.platform_ids));
        add("sendIDs", globs(&self.send_ids));
        add("recvIDs", globs(&self.recv_ids));
        add("groupIDs", globs(&self.group_ids));
        Value::Object(json)
    }
}

fn any_matches(globs: &[Glob], text: &str) -> bool {
    let pairs = Pairs::of(text);
    globs.iter().any(|glob| glob.matches_with(text, pairs))
}

fn globs_cover(wide: &[Glob], narrow: &[Glob], steps: &mut Steps) -> bool {
    narrow.iter().all(|narrow| steps.take(wide.len()) && wide.iter().any(|wide| wide.covers(narrow)))
}

/// A set of integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Integers(Vec<i64>);

impl Integers {
    pub(super) fn new(mut list: Vec<i64>) -> Integers {
        list.sort_unstable();
        list.dedup();
        Integers(list)
    }

    fn contain(&self, number: i64) -> bool {
        self.0.binary_search(&number).is_ok()
    }

    fn cover(&self, other: &Integers, steps: &mut Steps) -> bool {
        steps.take(other.0.len()) && other.0.iter().all(|number| self.contain(*number))
    }
}

/// How much work is left for finding rules that another covers. Comparing every rule with every other could
/// keep a webhook busy for minutes; a warning that is not given does no harm.
#[derive(Debug)]
pub(super) struct Steps(usize);

impl Steps {
    pub(super) fn new(steps: usize) -> Steps {
        Steps(steps)
    }

    fn take(&mut self, steps: usize) -> bool {
        let enough = self.0 >= steps;
        self.0 = self.0.saturating_sub(steps);
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn subject(name: &str) -> Subject<'_> {
        Subject { name, command: command::lookup(name), ..Subject::default() }
    }

    fn commands(names: &[&str]) -> Commands {
        Commands::new(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn globs(patterns: &[&str]) -> Option<Vec<Glob>> {
        Some(patterns.iter().map(|pattern| Glob::new(pattern)).collect())
    }

    fn ints(list: &[i64]) -> Option<Integers> {
        Some(Integers::new(list.to_vec()))
    }

    #[test]
    fn every_command_of_the_table_has_its_own_place() {
        for (at, command) in command::all().iter().enumerate() {
            assert_eq!(index(command), at);
            let only = commands(&[command.name]);
            for other in command::all() {
                assert_eq!(
                    only.contain(&subject(other.name)),
                    std::ptr::eq(command, other),
                    "{}",
                    other.name
                );
            }
        }
    }

    #[test]
    fn an_alias_and_today_s_name_are_equal() {
        let (alias, today) = ("callbackOnlinePushCommand", "callbackBeforeOnlinePushCommand");
        for written in [alias, today] {
            for sent in [alias, today] {
                assert!(commands(&[written]).contain(&subject(sent)), "{written} {sent}");
            }
            assert!(!commands(&[written]).contain(&subject("callbackBeforeOfflinePushCommand")));
        }
    }

    #[test]
    fn a_pattern_is_held_against_the_name_as_sent_and_today_s() {
        let alias = subject("callbackOnlinePushCommand");
        assert!(commands(&["callbackOnline*"]).contain(&alias));
        assert!(commands(&["callbackBeforeOnline*"]).contain(&alias));
        assert!(!commands(&["callbackOnline*"]).contain(&subject("callbackBeforeOnlinePushCommand")));
        assert!(!commands(&["callbackAfter*"]).contain(&alias));
        assert!(commands(&["*"]).contain(&subject("somethingNew")));
        assert!(commands(&["something*"]).contain(&subject("somethingNew")));
        assert!(commands(&["somethingNew"]).contain(&subject("somethingNew")));
        assert!(!commands(&["somethingNew"]).contain(&subject("somethingElse")));
    }

    #[test]
    fn keys_are_joined_by_and_their_elements_by_or() {
        let rule =
            Match { content_types: ints(&[101, 102]), send_ids: globs(&["bot-*", "u1"]), ..Match::default() };
        let with = |content_type, send_id: Option<&'static str>| Subject {
            content_type,
            send_id: send_id.map(Cow::Borrowed),
            ..Subject::default()
        };
        for (content_type, send_id, fits) in [
            (Some(101), Some("bot-9"), true),
            (Some(102), Some("u1"), true),
            (Some(103), Some("u1"), false),
            (Some(101), Some("u2"), false),
            (None, Some("u1"), false),
            (Some(101), None, false),
        ] {
            assert_eq!(rule.fits(&with(content_type, send_id)), fits, "{content_type:?} {send_id:?}");
        }
        assert!(Match::default().fits(&Subject::default()));
    }

    #[test]
    fn each_key_reads_its_own_field() {
        let id = || Some(Cow::Borrowed("x"));
        let base = Subject::default;
        let rows: [(Match, Subject<'_>); 8] = [
            (
                Match { commands: Some(commands(&["callbackAfterUserOnlineCommand"])), ..Match::default() },
                subject("callbackAfterUserOnlineCommand"),
            ),
            (
                Match { phases: Some(vec![Phase::After]), ..Match::default() },
                subject("callbackBeforeAfterMsgCommand"),
            ),
            (
                Match { content_types: ints(&[1]), ..Match::default() },
                Subject { content_type: Some(1), ..base() },
            ),
            (
                Match { session_types: ints(&[1]), ..Match::default() },
                Subject { session_type: Some(1), ..base() },
            ),
            (
                Match { platform_ids: ints(&[1]), ..Match::default() },
                Subject { platform_ids: [None, Some(1)], ..base() },
            ),
            (Match { send_ids: globs(&["x"]), ..Match::default() }, Subject { send_id: id(), ..base() }),
            (Match { recv_ids: globs(&["x"]), ..Match::default() }, Subject { recv_id: id(), ..base() }),
            (Match { group_ids: globs(&["x"]), ..Match::default() }, Subject { group_id: id(), ..base() }),
        ];
        for (row, (rule, _)) in rows.iter().enumerate() {
            for (column, (_, subject)) in rows.iter().enumerate() {
                // The first subject is of an after-command too.
                let expected = row == column || (row == 1 && column == 0);
                assert_eq!(rule.fits(subject), expected, "rule {row}, subject {column}");
            }
        }
        let first = Match { platform_ids: ints(&[1]), ..Match::default() };
        assert!(first.fits(&Subject { platform_ids: [Some(1), Some(2)], ..base() }));
        let unknown = Match { phases: Some(vec![Phase::Unknown]), ..Match::default() };
        assert!(unknown.fits(&subject("somethingNew")));
    }

    #[test]
    fn every_key_but_the_command_and_its_phase_looks_into_bodies() {
        let base = Match::default;
        for (rule, looks) in [
            (base(), false),
            (
                Match { commands: Some(commands(&["new"])), phases: Some(vec![Phase::Before]), ..base() },
                false,
            ),
            (Match { content_types: ints(&[1]), ..base() }, true),
            (Match { session_types: ints(&[1]), ..base() }, true),
            (Match { platform_ids: ints(&[1]), ..base() }, true),
            (Match { send_ids: globs(&["x"]), ..base() }, true),
            (Match { recv_ids: globs(&["x"]), ..base() }, true),
            (Match { group_ids: globs(&["x"]), ..base() }, true),
        ] {
            assert_eq!(rule.looks_into_bodies(), looks, "{rule:?}");
        }
    }

    #[test]
    fn every_key_counts_in_covering() {
        let keys = [
            Match { commands: Some(commands(&["new"])), ..Match::default() },
            Match { phases: Some(vec![Phase::Before]), ..Match::default() },
            Match { content_types: ints(&[1]), ..Match::default() },
            Match { session_types: ints(&[1]), ..Match::default() },
            Match { platform_ids: ints(&[1]), ..Match::default() },
            Match { send_ids: globs(&["x"]), ..Match::default() },
            Match { recv_ids: globs(&["x"]), ..Match::default() },
            Match { group_ids: globs(&["x"]), ..Match::default() },
        ];
        for (at, wide) in keys.iter().enumerate() {
            for (other, narrow) in keys.iter().enumerate() {
                assert_eq!(wide.covers(narrow, &mut Steps::new(1_000)), at == other, "{wide:?}\n{narrow:?}");
            }
        }
    }

    #[test]
    fn one_rule_covers_another_key_by_key() {
        let single = "callbackBeforeSendSingleMsgCommand";
        let named = |names: &[&str]| Match { commands: Some(commands(names)), ..Match::default() };
        let senders = |patterns: &[&str]| Match { send_ids: globs(patterns), ..Match::default() };
        let types = |list: &[i64]| Match { content_types: ints(list), ..Match::default() };
        let phases = |list: &[Phase]| Match { phases: Some(list.to_vec()), ..Match::default() };
        let every = [Phase::Before, Phase::After, Phase::Unknown];
        for (wide, narrow, covers) in [
            (Match::default(), senders(&["a"]), true),
            (senders(&["*"]), Match::default(), false),
            (senders(&["a*"]), senders(&["a1", "ab*"]), true),
            (senders(&["a*"]), senders(&["a1", "b"]), false),
            (types(&[1, 2]), types(&[2]), true),
            (types(&[2]), types(&[1, 2]), false),
            (named(&["callbackBefore*"]), named(&[single]), true),
            (named(&[single]), named(&["callbackBefore*"]), false),
            (named(&["callbackBefore*"]), named(&["callbackBeforeSend*"]), true),
            (named(&["callbackOnlinePushCommand"]), named(&["callbackBeforeOnlinePushCommand"]), true),
            (named(&["new"]), named(&["new"]), true),
            (named(&["n*"]), named(&["new"]), true),
            (named(&["other"]), named(&["new"]), false),
            (named(&[single]), senders(&["a"]), false),
            (phases(&every), Match::default(), true),
            (phases(&[Phase::Before]), phases(&[Phase::Before]), true),
            (phases(&[Phase::Before]), phases(&[Phase::Before, Phase::After]), false),
            (phases(&[Phase::Before]), named(&[single]), true),
            (phases(&[Phase::After]), named(&[single]), false),
            (phases(&[Phase::Before]), named(&["callbackBeforeSend*"]), false),
        ] {
            assert_eq!(wide.covers(&narrow, &mut Steps::new(1_000)), covers, "{wide:?}\n{narrow:?}");
        }
        assert!(!senders(&["a*"]).covers(&senders(&["a1"]), &mut Steps::new(1)), "out of steps");
    }
}
