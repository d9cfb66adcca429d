//! Where a request target names its command, and how to name it elsewhere.
//!
//! OpenIM 3.5 and later appends `/command` to `webhooks.url` as text, so that a query in that URL ends up in
//! front of it; earlier servers, and the published documentation, send `?command=`.

use std::borrow::Cow;

use http::Uri;

use super::command::{self, Command};
use super::rejection::Rejection;

/// Longest name of a command that is taken; the longest of today has 49 letters.
const NAME_LIMIT: usize = 128;

/// The command of a request target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    name: Cow<'static, str>,
    place: Place,
}

/// What else of the target is about the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing: the path is the app's.
    Parameter,
    /// The path's last segment.
    Segment,
    /// The end of the query.
    QueryEnd,
}

/// Where a caller names the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Behind the last slash.
    Path,
    /// As `command=`.
    Query,
}

/// How the app wants to be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamForm {
    /// The target travels as it came.
    #[default]
    AsReceived,
    /// `/prefix/command`
    Path,
    /// `/prefix?command=command`
    Query,
}

impl Target {
    /// Finds the command in a request target.
    pub fn parse(uri: &Uri) -> Result<Target, Rejection> {
        Target::parse_known(uri).map(|(target, _)| target)
    }

    /// The same, with the table's entry of the command, if it is in the table.
    pub(super) fn parse_known(uri: &Uri) -> Result<(Target, Option<&'static Command>), Rejection> {
        let found = |name, place| {
            let (name, command) = checked(name)?;
            Ok((Target { name, place }, command))
        };
        let (path, query) = (uri.path(), uri.query());
        let segment = path.rsplit_once('/').map_or(path, |(_, segment)| segment);
        let mut named: Option<&str> = None;
        // To an app that decodes keys, ignores their case or also splits at a semicolon it names the command, and would to us
        // under another name.
        let hidden = |part: &str| {
            part.split(';').enumerate().any(|(at, part)| {
                let key = part.split('=').next().unwrap_or_default();
                (at > 0 || key != "command") && percent_decoded(key).eq_ignore_ascii_case(b"command")
            })
        };
        if query.is_some_and(|query| query.split('&').any(hidden)) {
            return Err(Rejection::NoCommand);
        }
        for value in query
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|part| part.strip_prefix("command="))
        {
            match named {
                Some(first) if first != value => {
                    return Err(Rejection::two_commands("one command=", first, "another", value));
                }
                _ => named = Some(value),
            }
        }
        if let Some(name) = named {
            let in_path = command::lookup(segment).is_some();
            if in_path && segment != name {
                return Err(Rejection::two_commands("the path", segment, "command=", name));
            }
            let place = if in_path { Place::Segment } else { Place::Parameter };
            return found(name, place);
        }
        // With a query in webhooks.url the appended "/command" stands behind it.
        if let Some((_, name)) = query.and_then(|query| query.rsplit_once('/'))
            && (command::lookup(name).is_some() || command::lookup(segment).is_none())
        {
            return found(name, Place::QueryEnd);
        }
        found(segment, Place::Segment)
    }

    /// The target of a request that names no command at all.
    pub fn none() -> Target {
        Target { name: Cow::Borrowed(""), place: Place::Segment }
    }

    /// The command as it was sent.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The target for an app that wants this form: the command in its place, every other parameter as it was.
    pub fn rewritten<'u>(&self, uri: &'u Uri, form: UpstreamForm) -> Cow<'u, str> {
        let as_received = || Cow::Borrowed(uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str));
        if self.name.is_empty() || form == UpstreamForm::AsReceived {
            return as_received();
        }
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let (prefix, query) = match self.place {
            Place::Parameter => (path, without_command(query)),
            Place::Segment => {
                (path.rsplit_once('/').map_or("", |(before, _)| before), without_command(query))
            }
            Place::QueryEnd => (path, query.rsplit_once('/').map_or("", |(before, _)| before).to_owned()),
        };
        let (prefix, name) = (prefix.trim_end_matches('/'), &self.name);
        Cow::Owned(match (form, query.as_str()) {
            (UpstreamForm::AsReceived, _) => return as_received(),
            (UpstreamForm::Path, "") => format!("{prefix}/{name}"),
            (UpstreamForm::Path, query) => format!("{prefix}/{name}?{query}"),
            (UpstreamForm::Query, query) => {
                let prefix = if prefix.is_empty() { "/" } else { prefix };
                let and = if query.is_empty() { "" } else { "&" };
                format!("{prefix}?command={name}{and}{query}")
            }
        })
    }
}

/// The name, if it can be one, with its entry in the table: nearly every name is there, and needs no copy and no check.
fn checked(name: &str) -> Result<(Cow<'static, str>, Option<&'static Command>), Rejection> {
    if let Some((name, command)) = command::find(name) {
        return Ok((Cow::Borrowed(name), Some(command)));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(plain) {
        return Err(Rejection::NoCommand);
    }
    Ok((Cow::Owned(name.to_owned()), None))
}

/// The bytes of a text with `%41` in it; what is no such escape stays.
pub(crate) fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &tail[2..];
            }
            Some(_) | None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn without_command(query: &str) -> String {
    let rest: Vec<_> = query.split('&').filter(|part| !part.starts_with("command=")).collect();
    rest.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(target: &str) -> Result<String, Rejection> {
        Target::parse(&target.parse().expect("a valid target")).map(|target| target.name.into_owned())
    }

    #[test]
    fn the_command_stands_behind_the_last_slash_or_in_the_parameter() {
        for (target, expected) in [
            ("/callbackBeforeSendSingleMsgCommand", "callbackBeforeSendSingleMsgCommand"),
            ("/a/b//callbackX", "callbackX"),
            ("/cb/callbackAfterMsgSaveDBCommand?key=eyJz%3D%3D", "callbackAfterMsgSaveDBCommand"),
            ("/cb/callbackAfterMsgSaveDBCommand?key=a/b", "callbackAfterMsgSaveDBCommand"),
            ("/cb?token=x/callbackBeforeAddFriendCommand", "callbackBeforeAddFriendCommand"),
            ("/cb?token=x/callbackOfTomorrow", "callbackOfTomorrow"),
            ("/?command=callbackX&contenttype=json", "callbackX"),
            ("/any/path?contenttype=json&command=callbackBeforePushCommand", "callbackBeforePushCommand"),
            ("/callbackBeforePushCommand?command=callbackBeforePushCommand", "callbackBeforePushCommand"),
            ("/any?command=callbackX&command=callbackX", "callbackX"),
        ] {
            assert_eq!(name(target), Ok(expected.to_owned()), "{target}");
        }
    }

    #[test]
    fn no_command_and_two_commands_are_rejected() {
        for target in
            ["/", "/cb/", "/?command=", "/cb?command=a%2Fb", "/a%20b", "/callbackX?%63ommand=callbackY"]
        {
            assert_eq!(name(target), Err(Rejection::NoCommand), "{target}");
        }
        let long = format!("/{}", "c".repeat(NAME_LIMIT + 1));
        assert_eq!(name(&long), Err(Rejection::NoCommand));
        assert!(name(&long[..long.len() - 1]).is_ok());
        for target in
            ["/callbackBeforePushCommand?command=callbackX", "/?command=callbackX&command=callbackY"]
        {
            assert!(matches!(name(target), Err(Rejection::TwoCommands { .. })), "{target}");
        }
    }

    #[test]
    fn a_target_is_rewritten_in_both_directions_and_keeps_every_other_parameter() {
        let rows = [
            ("/cb/callbackX?key=a%3D", "/cb/callbackX?key=a%3D", "/cb?command=callbackX&key=a%3D"),
            ("/callbackX", "/callbackX", "/?command=callbackX"),
            (
                "/cb?command=callbackX&contenttype=json",
                "/cb/callbackX?contenttype=json",
                "/cb?command=callbackX&contenttype=json",
            ),
            ("/cb?token=x/callbackX", "/cb/callbackX?token=x", "/cb?command=callbackX&token=x"),
        ];
        for (target, path, query) in rows {
            let uri: Uri = target.parse().expect("a valid target");
            let parsed = Target::parse(&uri).expect("a command");
            assert_eq!(parsed.rewritten(&uri, UpstreamForm::AsReceived), target);
            assert_eq!(parsed.rewritten(&uri, UpstreamForm::Path), path);
            assert_eq!(parsed.rewritten(&uri, UpstreamForm::Query), query);
        }
    }
}
