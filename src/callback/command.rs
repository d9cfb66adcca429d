//! The commands OpenIM sends: a table, never a prefix.
//!
//! `callbackBeforeAfterMsgCommand` is sent after the fact and `callbackAfterUserKickOffCommand` never, so
//! nothing about a command can be told from its name. The table is made from `callbacks.json` by `build.rs`.

use crate::go_json::{Field, Kind, Type};

/// When OpenIM sends a command: before it acts, and waits for the verdict; or after, and reads nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Synchronous: the answer decides.
    Before,
    /// Asynchronous: the answer is read by nobody (up to OpenIM v3.6 a refusal failed the operation).
    After,
    /// Not in the table. Newer servers send names that this version does not know.
    Unknown,
}

impl Phase {
    /// As written in a policy.
    pub const ALL: [(&'static str, Phase); 3] =
        [("Before", Phase::Before), ("After", Phase::After), ("Unknown", Phase::Unknown)];
}

/// What an allow must look like so that OpenIM then does what it was about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafeDefault {
    /// The five common fields suffice.
    Plain,
    /// OpenIM overwrites these fields with what the answer holds, also when it holds nothing: they are echoed
    /// from the request.
    Echo(&'static [&'static str]),
}

/// Which servers send a command for notifications, whose content types are
/// [`NOTIFICATIONS`](super::subject::NOTIFICATIONS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifications {
    /// None.
    Never,
    /// Releases (v3.8.x), and not OpenIM's main branch.
    Releases,
    /// All.
    Always,
}

/// One command of OpenIM.
#[derive(Debug)]
pub struct Command {
    /// The name today's server sends.
    pub name: &'static str,
    /// Before or after.
    pub phase: Phase,
    /// The allow that changes nothing.
    pub default: SafeDefault,
    /// Which servers send it for notifications too.
    pub notifications: Notifications,
    /// The fields of the request.
    pub request: RequestTable,
    /// The struct OpenIM decodes the answer into.
    pub response: &'static [Field],
    /// What the events of an after-command are ordered by; see [`OrderKey`].
    pub order_keys: &'static [OrderKey],
}

/// What an event is about, for deliveries in order. Of several alternatives the first counts whose fields are all filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderKey {
    /// What it is.
    pub kind: KeyKind,
    /// The fields of the request that hold it: one, or two for a pair.
    pub fields: &'static [&'static str],
}

/// What a key names. Events with the same kind and the same values have the same key, whatever their commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A user.
    User,
    /// A group.
    Group,
    /// Two users, whichever of them acts.
    Pair,
    /// A conversation.
    Conversation,
}

impl KeyKind {
    /// The word in the documentation.
    pub const fn label(self) -> &'static str {
        match self {
            KeyKind::User => "user",
            KeyKind::Group => "group",
            KeyKind::Pair => "sorted pair of users",
            KeyKind::Conversation => "conversation",
        }
    }
}

/// The fields of a request with their types; `nillable` where Go may send `null`.
#[derive(Debug)]
pub struct RequestTable {
    /// The catalogue's fields in the order Go sends them, then those of [`Watched`] that it lacks.
    pub fields: &'static [Field],
    /// How many of them are the catalogue's.
    pub known: usize,
    /// Where in `fields` each of [`Watched`] stands.
    pub watched: [usize; WATCHED],
}

/// How many fields the program reads itself.
pub const WATCHED: usize = 10;

/// The fields that the program reads itself; as an index into [`RequestTable::watched`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// `callbackCommand`
    Command,
    /// `operationID`
    OperationId,
    /// `contentType`
    ContentType,
    /// `sessionType`
    SessionType,
    /// `platformID`
    PlatformId,
    /// `senderPlatformID`
    SenderPlatformId,
    /// `sendID`
    SendId,
    /// `recvID`
    RecvId,
    /// `groupID`
    GroupId,
    /// `msgFrom`
    MsgFrom,
}

/// The table of a command, or of one that is not known.
pub fn request_table(command: Option<&'static Command>) -> &'static RequestTable {
    command.map_or(&UNKNOWN_REQUEST, |command| &command.request)
}

include!(concat!(env!("OUT_DIR"), "/commands.rs"));

/// The fields every answer has, and all that a command outside the table is known to read.
pub static COMMON_RESPONSE: &[Field] = &[
    Field { name: "actionCode", ty: Type { kind: Kind::INT32, nillable: false } },
    Field { name: "errCode", ty: Type { kind: Kind::INT32, nillable: false } },
    Field { name: "errMsg", ty: Type { kind: Kind::Str, nillable: false } },
    Field { name: "errDlt", ty: Type { kind: Kind::Str, nillable: false } },
    Field { name: "nextCode", ty: Type { kind: Kind::INT32, nillable: false } },
];

/// Finds a command by today's name or by one that an earlier server, or the published documentation, used.
pub fn lookup(name: &str) -> Option<&'static Command> {
    find(name).map(|(_, command)| command)
}

/// The same, with the name as the table has it.
pub fn find(name: &str) -> Option<(&'static str, &'static Command)> {
    let at = NAMES.binary_search_by(|(known, ..)| (*known).cmp(name)).ok()?;
    let (name, command, _) = NAMES[at];
    Some((name, &COMMANDS[command]))
}

/// How many places [`place`] knows.
pub const PLACES: usize = COMMANDS.len() + 1;

/// The place of a command in the table; of one that is not in it, the place behind the last.
pub fn place(command: Option<&'static Command>) -> usize {
    let Some(command) = command else { return COMMANDS.len() };
    let offset = std::ptr::from_ref(command).addr() - COMMANDS.as_ptr().addr();
    offset / size_of::<Command>()
}

/// Every command of the table.
pub fn all() -> &'static [Command] {
    COMMANDS
}

/// Every name of the table with the command it stands for: today's names and the aliases, sorted.
pub fn names() -> impl Iterator<Item = (&'static str, &'static Command)> {
    NAMES.iter().map(|(name, index, _)| (*name, &COMMANDS[*index]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_54_commands_are_known_by_name_and_by_alias() {
        assert_eq!(all().len(), 54);
        for (name, command) in names() {
            assert!(std::ptr::eq(lookup(name).expect(name), command));
        }
        assert!(lookup("callbackBeforeNothingCommand").is_none());
        assert!(lookup("").is_none());
    }

    #[test]
    fn each_command_has_a_place_of_its_own_and_unknown_ones_share_the_last() {
        let places: Vec<_> = all().iter().map(|command| place(Some(command))).collect();
        assert_eq!(places, (0..PLACES - 1).collect::<Vec<_>>());
        assert_eq!(place(lookup("callbackBeforeNothingCommand")), PLACES - 1);
    }

    #[test]
    fn the_phase_comes_from_the_table_and_not_from_the_prefix() {
        assert_eq!(lookup("callbackBeforeAfterMsgCommand").map(|c| c.phase), Some(Phase::After));
        assert_eq!(lookup("callbackBeforeSendSingleMsgCommand").map(|c| c.phase), Some(Phase::Before));
    }

    #[test]
    fn notifications_are_sent_with_the_commands_that_servers_were_seen_to_send_them_with() {
        let with = |wanted| -> Vec<_> {
            all()
                .iter()
                .filter(|command| command.notifications == wanted)
                .map(|command| command.name)
                .collect()
        };
        assert_eq!(
            with(Notifications::Releases),
            [
                "callbackAfterSendSingleMsgCommand",
                "callbackBeforeSendGroupMsgCommand",
                "callbackAfterSendGroupMsgCommand"
            ]
        );
        assert_eq!(
            with(Notifications::Always),
            [
                "callbackBeforeOfflinePushCommand",
                "callbackBeforeOnlinePushCommand",
                "callbackBeforeGroupOnlinePushCommand"
            ]
        );
    }

    #[test]
    fn an_alias_is_today_s_command_and_a_published_name_stays_itself() {
        let today = lookup("callbackBeforeOnlinePushCommand").expect("known");
        assert!(std::ptr::eq(lookup("callbackOnlinePushCommand").expect("an alias"), today));
        assert_eq!(lookup("callbackBeforePushCommand").map(|c| c.name), Some("callbackBeforePushCommand"));
    }

    #[test]
    fn each_watched_field_stands_where_the_table_says() {
        let names = [
            (Watched::Command, "callbackCommand"),
            (Watched::OperationId, "operationID"),
            (Watched::ContentType, "contentType"),
            (Watched::SessionType, "sessionType"),
            (Watched::PlatformId, "platformID"),
            (Watched::SenderPlatformId, "senderPlatformID"),
            (Watched::SendId, "sendID"),
            (Watched::RecvId, "recvID"),
            (Watched::GroupId, "groupID"),
            (Watched::MsgFrom, "msgFrom"),
        ];
        for table in all().iter().map(Some).chain([None]).map(request_table) {
            for (watched, name) in names {
                assert_eq!(table.fields[table.watched[watched as usize]].name, name);
            }
        }
        assert_eq!(request_table(None).known, 0);
    }

    #[test]
    fn only_after_commands_have_order_keys_and_of_those_all_but_the_registration_of_many_users() {
        for command in all() {
            let named = !command.order_keys.is_empty();
            let expected =
                command.phase == Phase::After && command.name != "callbackAfterUserRegisterCommand";
            assert_eq!(named, expected, "{}", command.name);
            for key in command.order_keys {
                let fields = if key.kind == KeyKind::Pair { 2 } else { 1 };
                assert_eq!(key.fields.len(), fields, "{}", command.name);
                for name in key.fields {
                    let field = command.request.fields.iter().find(|field| field.name == *name);
                    assert_eq!(field.map(|field| field.ty.kind), Some(Kind::Str), "{}: {name}", command.name);
                }
            }
        }
    }

    #[test]
    fn only_the_two_set_group_info_commands_echo() {
        let echoing: Vec<_> =
            all().iter().filter(|c| c.default != SafeDefault::Plain).map(|c| c.name).collect();
        assert_eq!(echoing, ["callbackBeforeSetGroupInfoCommand", "callbackBeforeSetGroupInfoExCommand"]);
    }
}
