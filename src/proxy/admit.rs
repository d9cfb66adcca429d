//! Lets a callback in when its head comes: counts what it takes of memory, and refuses at once what is too large.
//!
//! Over HTTP/2 the heads of many streams are decoded in one go, and one of them may take seven times its size in memory. So
//! a head is judged in the poll that decoded it, and one that is refused is dropped before the next.

use std::sync::Arc;

use http::request;

use super::Proxy;
use crate::callback::rejection::Rejection;
use crate::callback::{Callback, Named};
use crate::cause::Overload;
use crate::held::{Account, CALLBACK_BYTES, Holding};
use crate::wire::{self, HeadSize};

/// What was found out when the head of a request came.
#[derive(Debug)]
pub struct Admitted {
    /// Its share of memory.
    pub(super) share: Holding,
    /// What its target says.
    pub(super) named: Result<Named, Rejection>,
    /// Why it is not let in; its head was stripped then.
    pub(super) refused: Option<NotAdmitted>,
}

/// Why a callback is answered without a look at its body.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    Rejected(Rejection),
    Overloaded(Overload),
}

/// Up to this size an ID counts with its callback: an ID of one operation has less than 64 bytes.
const FREE_ID_BYTES: usize = 256;

/// Bytes of an ID that takes the header's place, beside the request's own: the ID, and the head to the app that has it. An ID
/// of the header is counted with the head.
pub(super) fn replaced_id_bytes(callback: &Callback) -> usize {
    let id = callback.operation_id();
    if id.replaces_header() && id.text.len() > FREE_ID_BYTES { 2 * id.text.len() } else { 0 }
}

/// Counts them.
pub(super) fn count_replaced_id(callback: &Callback, share: &mut Holding) -> Result<(), Overload> {
    match replaced_id_bytes(callback) {
        0 => Ok(()),
        bytes => share.grow_to(share.bytes() + bytes),
    }
}

impl Admitted {
    /// Judges a head, and strips it if it is refused. `None`: not even a refusal can be counted.
    pub(super) fn of(proxy: &Proxy, head: &mut request::Parts, account: &Arc<Account>) -> Option<Admitted> {
        let size = HeadSize::of(head);
        let named = Named::of(&head.uri);
        let command = named.as_ref().ok().and_then(Named::command);
        let mut share = Arc::clone(account).nothing(command);
        let refused = match size.fault(proxy.shared.config.max_header_size) {
            // Who may not call learns nothing else.
            Some(fault) => NotAdmitted::Rejected(proxy.unknown_caller(head).unwrap_or(fault)),
            None => match share.grow_to(CALLBACK_BYTES + size.memory()) {
                Ok(()) => return Some(Admitted { share, named, refused: None }),
                Err(overload) => NotAdmitted::Overloaded(overload),
            },
        };
        wire::strip(head);
        if share.grow_to(CALLBACK_BYTES).is_err() {
            share = account.refusal(CALLBACK_BYTES).ok()?;
        }
        Some(Admitted { share, named, refused: Some(refused) })
    }
}
