//! What a policy may look at in a callback.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use super::command::{Command, Phase};

/// The content types of notifications, as OpenIM compares them: from `NotificationBegin` to `NotificationEnd` of its
/// protocol's constants, both included.
pub const NOTIFICATIONS: RangeInclusive<i64> = 1000..=5000;

/// Whose message a callback is about, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Messages {
    /// A user's, or one that an administrator sends as a user.
    Users,
    /// OpenIM's own: a member was kicked, a friend was added, a message was read.
    Notifications,
}

impl Messages {
    /// As written in a policy.
    pub const ALL: [(&'static str, Messages); 2] =
        [("Users", Messages::Users), ("Notifications", Messages::Notifications)];

    /// As written in a policy.
    pub const fn label(self) -> &'static str {
        match self {
            Messages::Users => "Users",
            Messages::Notifications => "Notifications",
        }
    }
}

/// The parts of one callback that rules match on. A field is `None` when the callback lacks it, or holds
/// something that is not of the catalogue's type.
#[derive(Clone, Debug, Default)]
pub struct Subject<'c> {
    /// The command as it was sent; empty in a rejected callback that named none.
    pub name: &'c str,
    /// The table's entry, found by name or alias.
    pub command: Option<&'static Command>,
    /// `contentType`.
    pub content_type: Option<i64>,
    /// `msgFrom`.
    pub msg_from: Option<i64>,
    /// `sessionType`.
    pub session_type: Option<i64>,
    /// `platformID` and `senderPlatformID`.
    pub platform_ids: [Option<i64>; 2],
    /// `sendID`.
    pub send_id: Option<Cow<'c, str>>,
    /// `recvID`.
    pub recv_id: Option<Cow<'c, str>>,
    /// `groupID`.
    pub group_id: Option<Cow<'c, str>>,
}

impl Subject<'_> {
    /// Before, after, or not in the table.
    pub fn phase(&self) -> Phase {
        self.command.map_or(Phase::Unknown, |command| command.phase)
    }

    /// Whose message it is about, if it has a content type.
    pub fn messages(&self) -> Option<Messages> {
        let notification = NOTIFICATIONS.contains(&self.content_type?);
        Some(if notification { Messages::Notifications } else { Messages::Users })
    }

    /// Today's name of the command where it is in the table, else the name as sent.
    pub fn canonical_name(&self) -> &str {
        self.command.map_or(self.name, |command| command.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_from_1000_to_5000_both_included() {
        let of = |content_type| Subject { content_type, ..Subject::default() }.messages();
        for number in [1000, 1001, 1508, 2200, 4999, 5000] {
            assert_eq!(of(Some(number)), Some(Messages::Notifications), "{number}");
        }
        for number in [-1, 0, 101, 113, 203, 999, 5001, i64::MAX] {
            assert_eq!(of(Some(number)), Some(Messages::Users), "{number}");
        }
        assert_eq!(of(None), None);
    }
}
