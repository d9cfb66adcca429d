//! What OpenIM would do with each field of an allow: replace, keep, wipe, ignore.

use crate::callback::Callback;
use crate::callback::command::{COMMON_RESPONSE, Command};
use crate::go_json::{self, Token, Tokens, Value};

/// Longest value that is shown.
const SHOWN_CHARS: usize = 48;

/// Most fields of an answer that are told and that OpenIM does not know.
const UNKNOWN_FIELDS: usize = 16;

// Command, field, effect: the catalogue's words.
include!(concat!(env!("OUT_DIR"), "/effects.rs"));

/// What OpenIM does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// Takes the answer's value.
    Replaces,
    /// Takes the answer's value, which is the request's.
    Echoes,
    /// Takes what is not there: the request's value is lost.
    Wipes,
    /// Stays with the request's value: the answer's is empty.
    Keeps,
    /// Reads it and does nothing.
    Ignores,
    /// Knows no such field.
    Unknown,
}

impl Does {
    /// The word for people and programs.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Does::Replaces => "replaces",
            Does::Echoes => "echoes",
            Does::Wipes => "wipes",
            Does::Keeps => "keeps",
            Does::Ignores => "ignores",
            Does::Unknown => "unknown",
        }
    }
}

/// One field of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) field: String,
    pub(super) does: Does,
    /// The answer's value, its beginning; empty where there is none.
    pub(super) value: String,
    /// The catalogue's words; for an unknown field, the known one it resembles.
    pub(super) why: String,
}

/// What OpenIM does with the fields of an answer that it could parse and that allows.
pub(super) fn of(callback: &Callback, answer: &[u8]) -> Vec<Effect> {
    let Some(command) = callback.command() else { return Vec::new() };
    let Ok(decoded) = go_json::decode(answer, command.response) else { return Vec::new() };
    let described =
        EFFECTS.iter().find(|(name, _)| *name == command.name).map_or(&[][..], |(_, fields)| fields);
    let mut effects = Vec::new();
    for (at, field) in command.response.iter().enumerate().skip(COMMON_RESPONSE.len()) {
        let Some((_, why)) = described.iter().find(|(name, _)| *name == field.name) else { continue };
        let value = decoded.root.field(at);
        let raw = decoded.last[at].map(|span| span.of(answer));
        let asked = callback.value(field.name);
        let does = match raw {
            _ if ignored(why) => raw.map(|_| Does::Ignores),
            _ if why.starts_with("ALWAYS") && *value == Value::Zero => {
                asked.filter(|asked| !matches!(*asked, b"null" | b"\"\"")).map(|_| Does::Wipes)
            }
            None => None,
            Some(_) if keeps(why, value, answer) => Some(Does::Keeps),
            Some(raw) if asked == Some(raw) => Some(Does::Echoes),
            Some(_) => Some(Does::Replaces),
        };
        effects.extend(does.map(|does| Effect {
            field: field.name.to_owned(),
            does,
            value: raw.map(shown).unwrap_or_default(),
            why: (*why).to_owned(),
        }));
    }
    effects.extend(unknown(command, answer));
    effects
}

fn ignored(why: &str) -> bool {
    ["IGNORED", "no effect", "never used"].iter().any(|words| why.contains(words))
}

fn keeps(why: &str, value: &Value, answer: &[u8]) -> bool {
    match value {
        Value::Zero => true,
        Value::List(list) => list.elements().is_empty() && why.starts_with("len>0"),
        Value::Str(span) => span.of(answer) == b"\"\"" && why.starts_with("non-empty"),
        Value::Int(_) | Value::Bool(_) | Value::Map(_) | Value::Struct(_) => false,
    }
}

/// OpenIM looks the group up by the ID of the answer: an answer without it cannot be applied.
pub(super) fn lost_group(effects: &[Effect]) -> Option<String> {
    let lost = effects.iter().any(|effect| {
        effect.field == "groupID" && effect.why.starts_with("ALWAYS") && {
            effect.does == Does::Wipes || (effect.does == Does::Replaces && effect.value == "\"\"")
        }
    });
    lost.then(|| {
        "groupID is overwritten with nothing: OpenIM then finds no group \"\" (error 1004)".to_owned()
    })
}

/// The keys of an answer that no field of the command takes.
fn unknown(command: &Command, answer: &[u8]) -> Vec<Effect> {
    let (mut tokens, mut found) = (Tokens::new(answer), Vec::new());
    while let Ok(Some((token, span))) = tokens.next() {
        if token != Token::Key || tokens.depth() != 1 || found.len() == UNKNOWN_FIELDS {
            continue;
        }
        let key = go_json::unquote(span.of(answer)).into_owned();
        if command.response.iter().any(|field| go_json::folds_to(key.as_bytes(), field.name)) {
            continue;
        }
        let words = key.replace(['_', '-'], "");
        let near = command.response.iter().find(|field| go_json::folds_to(words.as_bytes(), field.name));
        found.push(Effect {
            field: key.chars().take(SHOWN_CHARS).collect(),
            does: Does::Unknown,
            value: String::new(),
            why: near.map_or_else(String::new, |field| format!("did you mean {}?", field.name)),
        });
    }
    found
}

/// The beginning of a value, on one line.
fn shown(raw: &[u8]) -> String {
    let text = go_json::lossy(raw);
    let mut short: String = text.chars().filter(|letter| !letter.is_control()).take(SHOWN_CHARS).collect();
    if text.chars().count() > SHOWN_CHARS {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::callback::command;
    use crate::cli::simulate::bodies::{Sample, Samples, Server};

    fn told(command: &str, answer: &str) -> Vec<(String, &'static str)> {
        let sample = Sample::of(command, Server::V38, Samples::Usual).remove(0);
        let callback = sample.callback(&sample.sending(1)).expect("a callback");
        of(&callback, answer.as_bytes())
            .into_iter()
            .map(|effect| (effect.field, effect.does.label()))
            .collect()
    }

    fn row(field: &str, does: &'static str) -> (String, &'static str) {
        (field.to_owned(), does)
    }

    #[test]
    fn every_field_of_an_answer_has_its_effect_or_belongs_to_an_after_command() {
        for command in command::all().iter().filter(|command| command.phase == command::Phase::Before) {
            let described = EFFECTS.iter().find(|(name, _)| *name == command.name).expect("a row").1;
            for field in &command.response[command::COMMON_RESPONSE.len()..] {
                assert!(
                    described.iter().any(|(name, _)| *name == field.name),
                    "{} {}",
                    command.name,
                    field.name
                );
            }
        }
    }

    #[test]
    fn fields_are_honoured_ignored_kept_wiped_or_unknown() {
        let online = "callbackBeforeOnlinePushCommand";
        assert_eq!(told(online, r#"{"userIDList":["a"]}"#), [row("userIDList", "ignores")]);
        let offline = "callbackBeforeOfflinePushCommand";
        assert_eq!(told(offline, r#"{"userIDList":["a"]}"#), [row("userIDList", "replaces")]);
        assert_eq!(told(offline, r#"{"userIDList":[]}"#), [row("userIDList", "keeps")]);
        assert_eq!(
            told(offline, r#"{"USERIDLIST":null,"data":{}}"#),
            [row("userIDList", "keeps"), row("data", "unknown")]
        );
        let info = "callbackBeforeSetGroupInfoCommand";
        assert_eq!(told(info, "{}"), [row("groupID", "wipes"), row("groupName", "wipes")]);
        assert_eq!(
            told(info, r#"{"groupID":"2349876510","groupName":"x","notification":""}"#),
            [row("groupID", "echoes"), row("groupName", "replaces"), row("notification", "ignores")]
        );
        assert_eq!(told("callbackBeforeAddFriendCommand", r#"{"actionCode":0}"#), []);
    }

    #[test]
    fn an_answer_that_loses_the_group_cannot_be_applied() {
        let sample = Sample::of("callbackBeforeSetGroupInfoExCommand", Server::V38, Samples::Usual).remove(0);
        let callback = sample.callback(&sample.sending(1)).expect("a callback");
        for (answer, lost) in
            [("{}", true), (r#"{"groupID":""}"#, true), (r#"{"groupID":"2349876510"}"#, false)]
        {
            assert_eq!(lost_group(&of(&callback, answer.as_bytes())).is_some(), lost, "{answer}");
        }
    }

    #[test]
    fn snake_case_is_told_with_the_field_that_was_meant() {
        let sample = Sample::of("callbackBeforeOfflinePushCommand", Server::V38, Samples::Usual).remove(0);
        let callback = sample.callback(&sample.sending(1)).expect("a callback");
        let effects = of(&callback, br#"{"user_id_list":["a"],"action_code":0}"#);
        let hints: Vec<_> = effects.iter().map(|effect| effect.why.as_str()).collect();
        assert_eq!(hints, ["did you mean userIDList?", "did you mean actionCode?"]);
    }
}
