//! What a policy may look at in a callback.

use std::borrow::Cow;

use super::command::{Command, Phase};

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

    /// Today's name of the command where it is in the table, else the name as sent.
    pub fn canonical_name(&self) -> &str {
        self.command.map_or(self.name, |command| command.name)
    }
}
