//! The bound on bytes held: one count for all requests and answers of the process, of which callers and commands have shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::cause::Overload;
use pool::{Pool, Terms};

pub use account::{Account, Accounts, Identity, Place};

mod account;
mod pool;

/// Up to this size an answer is not tied to its share: there are no more small ones than callbacks in flight.
pub const SMALL_BODY_BYTES: usize = 8 << 10;

/// What a callback takes from its first byte to the last of its answer, beside its head and large bodies: stream, tasks, frames
/// and the answer's head, measured over HTTP/2 as 10 to 12 KiB; and a body of [`FREE_BODY_BYTES`] each way.
pub const CALLBACK_BYTES: usize = 16 << 10;

/// A body of this size, or the beginning of a larger one, is counted with its callback: nearly all have less.
pub const FREE_BODY_BYTES: usize = 2 << 10;

/// The count, shared by all threads.
#[derive(Clone, Debug)]
pub struct Held {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit: AtomicUsize,
    /// A higher bound that answers have for a while; 0 without one.
    former_limit: AtomicUsize,
    bytes: Pool,
}

/// Bytes that a caller holds for a command, given back when this is dropped.
#[derive(Debug)]
#[must_use = "what is held is given back when this is dropped"]
pub struct Holding {
    account: Arc<Account>,
    command: usize,
    bytes: usize,
    of_answer: bool,
}

impl Held {
    /// A count with a bound in bytes.
    pub fn new(limit: usize) -> Held {
        let (limit, former_limit) = (AtomicUsize::new(limit), AtomicUsize::new(0));
        Held { shared: Arc::new(Shared { limit, former_limit, bytes: Pool::new() }) }
    }

    /// The bound in bytes.
    pub fn limit(&self) -> usize {
        self.shared.limit.load(Ordering::Relaxed)
    }

    /// Changes the bound. Under a lower one than before nothing is taken away: callbacks are refused until enough is given
    /// back, and answers are still read up to the former bound, because their callbacks were let in under it. That ends
    /// at the first call, with the same bound or another, that finds no more held than the bound.
    pub fn set_limit(&self, limit: usize) {
        let old = self.shared.limit.swap(limit, Ordering::Relaxed);
        // With nothing held nobody was let in under the old bound, as at the start, which has none of its own.
        if limit < old && self.bytes() > 0 {
            self.shared.former_limit.fetch_max(old, Ordering::Relaxed);
        } else if self.bytes() <= limit {
            self.shared.former_limit.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.taken()
    }
}

impl Holding {
    fn of(account: Arc<Account>, command: usize) -> Holding {
        Holding { account, command, bytes: 0, of_answer: false }
    }

    /// A share of nothing, to grow with the answer to this callback, which was let in.
    pub fn nothing_for_answer(&self) -> Holding {
        Holding { account: Arc::clone(&self.account), command: self.command, bytes: 0, of_answer: true }
    }

    /// A place among the callbacks in flight, for this one.
    pub fn take_place(&self) -> Result<Place<'_>, Overload> {
        self.account.take_place(self.command)
    }

    /// The number of the caller, for as long as it is connected.
    pub fn caller(&self) -> usize {
        self.account.number()
    }

    /// Bytes of this share.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Parts the share: what is returned has all beyond so many bytes, and is given back by itself.
    pub fn split_off(&mut self, bytes: usize) -> Holding {
        let beyond = self.bytes.saturating_sub(bytes);
        self.bytes -= beyond;
        let (account, of_answer) = (Arc::clone(&self.account), self.of_answer);
        Holding { account, command: self.command, bytes: beyond, of_answer }
    }

    /// Takes a part back that was split off.
    pub fn join(&mut self, mut part: Holding) {
        let whole = Arc::ptr_eq(&self.account, &part.account) && self.command == part.command;
        debug_assert!(whole, "a part of this share");
        self.bytes += std::mem::take(&mut part.bytes);
    }

    /// Makes the share this large for an answer that is owed: the bound of the process holds, whatever the caller has. At the
    /// bound nothing changes.
    pub fn grow_owed(&mut self, bytes: usize) -> Result<(), Overload> {
        self.grow(bytes, false)
    }

    /// Makes the share no larger than this: what it was for was dropped.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.account.held().shared.bytes.give_back(less, &self.account.bytes, self.command);
    }

    /// Makes the share as large as `before`, and a body of so many bytes.
    pub fn grow_with_body(&mut self, before: usize, body: usize) -> Result<(), Overload> {
        if body <= FREE_BODY_BYTES { Ok(()) } else { self.grow_to(before + body - FREE_BODY_BYTES) }
    }

    /// Makes the share this large; it never shrinks here. At the bound nothing changes.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Overload> {
        self.grow(bytes, true)
    }

    fn grow(&mut self, bytes: usize, shared: bool) -> Result<(), Overload> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return Ok(()) };
        let counts = &self.account.held().shared;
        let mut limit = counts.limit.load(Ordering::Relaxed);
        if self.of_answer {
            limit = limit.max(counts.former_limit.load(Ordering::Relaxed));
        }
        let terms = Terms { limit, shared };
        counts.bytes.take(more, &self.account.bytes, self.command, terms).map_err(Overload::Held)?;
        self.bytes = bytes;
        Ok(())
    }
}

/// Ties a body's share to the body itself, which may wait for a caller who reads slowly. Where the bound is reached the
/// body is kept all the same: it is an answer that is owed.
pub fn tie(body: Bytes, mut holding: Holding) -> Bytes {
    struct Tied(Bytes, #[allow(dead_code, reason = "given back when it is dropped")] Holding);
    impl AsRef<[u8]> for Tied {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let _ = holding.grow(body.len(), false);
    Bytes::from_owner(Tied(body, holding))
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let counts = &self.account.held().shared;
            counts.bytes.give_back(self.bytes, &self.account.bytes, self.command);
        }
    }
}

#[cfg(test)]
mod tests;
