//! Which callbacks a rule is for. Made once when a policy is compiled, so that asking allocates nothing.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value};

use super::glob::{Glob, Pairs};
use super::integers::Integers;
use crate::callback::command::{self, Command, Notifications, Phase};
use crate::callback::subject::{Messages, NOTIFICATIONS, Subject};

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

    /// Whether it fits the command under today's name.
    pub(super) fn has(&self, command: &'static Command) -> bool {
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
    pub(super) messages: Option<Messages>,
    pub(super) content_types: Option<Integers>,
    pub(super) msg_from: Option<Integers>,
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
        } else if self.messages.is_some() && self.messages != subject.messages() {
            Some("messages")
        } else if !number(&self.content_types, &[subject.content_type]) {
            Some("contentTypes")
        } else if !number(&self.msg_from, &[subject.msg_from]) {
            Some("msgFrom")
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
            messages,
            content_types,
            msg_from,
            session_types,
            platform_ids,
            send_ids,
            recv_ids,
            group_ids,
        } = self;
        messages.is_some()
            || [content_types, msg_from, session_types, platform_ids].into_iter().any(Option::is_some)
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
            && self.covers_contents(other, steps)
            && key(&self.msg_from, &other.msg_from, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.session_types, &other.session_types, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.platform_ids, &other.platform_ids, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.commands, &other.commands, |wide, narrow| wide.cover(narrow, steps))
            && key(&self.send_ids, &other.send_ids, |wide, narrow| globs_cover(wide, narrow, steps))
            && key(&self.recv_ids, &other.recv_ids, |wide, narrow| globs_cover(wide, narrow, steps))
            && key(&self.group_ids, &other.group_ids, |wide, narrow| globs_cover(wide, narrow, steps))
    }

    fn covers_contents(&self, other: &Match, steps: &mut Steps) -> bool {
        if self.messages.is_none() && self.content_types.is_none() {
            return true;
        }
        let (wide, narrow) = (self.contents(), other.contents());
        matches!((wide, narrow), (Some(wide), Some(narrow)) if wide.cover(&narrow, steps))
    }

    /// The content types that `messages` and `contentTypes` leave; `None` if there is neither.
    pub(super) fn contents(&self) -> Option<Cow<'_, Integers>> {
        let kind = self.messages.map(content_types);
        match (kind, &self.content_types) {
            (None, None) => None,
            (None, Some(listed)) => Some(Cow::Borrowed(listed)),
            (Some(kind), None) => Some(Cow::Owned(kind)),
            (Some(kind), Some(listed)) => Some(Cow::Owned(kind.both(listed))),
        }
    }

    /// What it fits of the notifications that some server sends with a command, and waits for the answer: itself, with
    /// nothing but that left. `None` if it fits none of them.
    pub(super) fn of_notifications(&self, command: &'static Command) -> Option<Match> {
        let asked = command.phase == Phase::Before && command.notifications != Notifications::Never;
        let named = self.commands.as_ref().is_none_or(|commands| commands.has(command));
        let phase = self.phases.as_ref().is_none_or(|phases| phases.contains(&command.phase));
        if !(asked && named && phase) {
            return None;
        }
        // A key that the command lacks never fits.
        let has =
            |name: &str| command.request.fields[..command.request.known].iter().any(|it| it.name == name);
        let keys = [
            (self.msg_from.is_some(), has("msgFrom")),
            (self.session_types.is_some(), has("sessionType")),
            (self.platform_ids.is_some(), has("platformID") || has("senderPlatformID")),
            (self.send_ids.is_some(), has("sendID")),
            (self.recv_ids.is_some(), has("recvID")),
            (self.group_ids.is_some(), has("groupID")),
        ];
        if keys.iter().any(|(wanted, has)| *wanted && !has)
            || self.msg_from.as_ref().is_some_and(|from| !from.contain(FROM_SYSTEM))
        {
            return None;
        }
        let kind = content_types(Messages::Notifications);
        let left = self.contents().map_or_else(|| kind.clone(), |contents| contents.both(&kind));
        (!left.is_empty()).then(|| Match {
            commands: Some(Commands::new(vec![command.name.to_owned()])),
            messages: None,
            content_types: Some(left),
            ..self.clone()
        })
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
        let integers = |list: &Option<Integers>| list.as_ref().map(Integers::to_json);
        let word = |phase: &Phase| {
            Phase::ALL.iter().find(|(_, known)| known == phase).map(|(word, _)| *word).unwrap_or_default()
        };
        add("commands", self.commands.as_ref().map(|it| it.source.iter().map(String::as_str).collect()));
        add("phase", self.phases.as_ref().map(|phases| phases.iter().map(word).collect()));
        add("messages", self.messages.map(|messages| Value::from(messages.label())));
        add("contentTypes", integers(&self.content_types));
        add("msgFrom", integers(&self.msg_from));
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

/// `msgFrom` of a notification: OpenIM's `SysMsgType`.
const FROM_SYSTEM: i64 = 200;

/// The content types of users' messages, or of notifications.
fn content_types(messages: Messages) -> Integers {
    let (first, last) = (*NOTIFICATIONS.start(), *NOTIFICATIONS.end());
    Integers::new(match messages {
        Messages::Users => vec![(i64::MIN, first - 1), (last + 1, i64::MAX)],
        Messages::Notifications => vec![(first, last)],
    })
}

/// How much work is left for finding rules that another covers. Comparing every rule with every other could
/// keep a webhook busy for minutes; a warning that is not given does no harm.
#[derive(Debug)]
pub(super) struct Steps(usize);

impl Steps {
    pub(super) fn new(steps: usize) -> Steps {
        Steps(steps)
    }

    /// Whether there are none left, so that a `false` says nothing.
    pub(super) fn spent(&self) -> bool {
        self.0 == 0
    }

    pub(super) fn take(&mut self, steps: usize) -> bool {
        let enough = self.0 >= steps;
        self.0 = self.0.saturating_sub(steps);
        enough
    }
}

#[cfg(test)]
mod tests;
