//! The fields of an answer that OpenIM writes through a pointer which may be nil. v3.8.3 exits then: the panic is caught,
//! logged, and raised again. v3.8.3-patch.16 and main fail the operation.

use crate::callback::Callback;
use crate::go_json::{Decoded, Field, Value};

/// Those of an answer to this callback. `offlinePushInfo` is written to the message's, and `ex` to the update's, which the
/// request shows on no version; `nickName` and `faceURL` to the update's, which is nil if the request has `null`.
pub fn crashing_fields(callback: &Callback) -> impl Iterator<Item = &'static str> {
    let names: &[&str] = match callback.command().map(|command| command.name) {
        Some("callbackBeforeMsgModifyCommand") => &["offlinePushInfo"],
        Some("callbackBeforeUpdateUserInfoExCommand") => &["nickName", "faceURL", "ex"],
        Some(_) | None => &[],
    };
    names.iter().copied().filter(|name| callback.value(name).is_none())
}

/// Those that this answer sets, as indices into `fields`.
pub(super) fn set(decoded: &Decoded, fields: &[Field], callback: &Callback) -> Vec<usize> {
    crashing_fields(callback)
        .filter_map(|name| super::index_of(fields, name))
        .filter(|at| *decoded.root.field(*at) != Value::Zero)
        .collect()
}

/// Whether OpenIM is sure to fail on it: of the others the request does not tell.
pub(super) fn is_certain(name: &str) -> bool {
    matches!(name, "nickName" | "faceURL")
}
