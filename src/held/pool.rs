//! What is shared: bytes, or places in flight. One count for the process, one for each command, and one for each caller, which
//! the caller's [`Account`](super::Account) has.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::callback::command;
use crate::cause::Exhausted;

/// The counts of the process and of each command.
#[derive(Debug)]
pub(super) struct Pool {
    taken: AtomicUsize,
    /// In the order of the table of commands; unknown ones share the last.
    commands: Box<[AtomicUsize]>,
}

/// How much may be taken, and by whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The bound of the process.
    pub(super) limit: usize,
    /// Whether a caller and a command may have their shares alone.
    pub(super) shared: bool,
}

impl Pool {
    pub(super) fn new() -> Pool {
        let commands = (0..command::PLACES).map(|_| AtomicUsize::new(0)).collect();
        Pool { taken: AtomicUsize::new(0), commands }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes `more`, or nothing. The bound of the process is never passed, whatever other threads do.
    pub(super) fn take(
        &self,
        more: usize,
        of_caller: &AtomicUsize,
        command: usize,
        Terms { limit, shared }: Terms,
    ) -> Result<(), Exhausted> {
        if more > limit {
            return Err(Exhausted::Process);
        }
        let of_command = &self.commands[command];
        // Before the check: of two threads that take for the same caller, one at least sees both.
        of_caller.fetch_add(more, Ordering::Relaxed);
        of_command.fetch_add(more, Ordering::Relaxed);
        let passed = |taken: usize| {
            let free = limit.checked_sub(taken).and_then(|free| free.checked_sub(more));
            let Some(free) = free else { return Some(Exhausted::Process) };
            let shares = (of_caller.load(Ordering::Relaxed), of_command.load(Ordering::Relaxed));
            if shared { share_passed(shares.0, shares.1, free) } else { None }
        };
        let grown = |taken: usize| passed(taken).is_none().then(|| taken + more);
        // Who sees a count of the process sees the counts of the callers and commands it is made of.
        let Err(taken) = self.taken.try_update(Ordering::AcqRel, Ordering::Acquire, grown) else {
            return Ok(());
        };
        let exhausted = passed(taken).unwrap_or(Exhausted::Process);
        of_caller.fetch_sub(more, Ordering::Relaxed);
        of_command.fetch_sub(more, Ordering::Relaxed);
        Err(exhausted)
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&self, bytes: usize, of_caller: &AtomicUsize, command: usize) {
        self.taken.fetch_sub(bytes, Ordering::AcqRel);
        of_caller.fetch_sub(bytes, Ordering::Relaxed);
        self.commands[command].fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Which share is passed, if a caller has so much, its command so much, and so much is free.
///
/// A share is four times what is free, that is four fifths of what the others leave. Were that all, a caller at its share
/// with one command would starve its own other commands, and the command for all other callers: the two counts would be one. So what
/// a caller has of a command is bounded once more, by four times what is free of the smaller share: alone it gets four fifths of
/// four fifths. What a caller has of a command is not counted; it is no more than the smaller of the two counts. With `m` the
/// smaller count, `M` the larger and `f` what is free, the larger share could still grow by `(4f - M) / 5`, and
/// `m <= 4 (4f - M) / 5` is `5m + 4M <= 16f`. That includes `M <= 4f`.
fn share_passed(caller: usize, command: usize, free: usize) -> Option<Exhausted> {
    let wide = |count: usize| count as u128;
    let (least, most) = (wide(caller.min(command)), wide(caller.max(command)));
    if 5 * least + 4 * most <= 16 * wide(free) {
        return None;
    }
    // What is named is what weighs most.
    Some(if wide(caller) > 2 * wide(command) {
        Exhausted::Caller
    } else if wide(command) > 2 * wide(caller) {
        Exhausted::Command
    } else {
        Exhausted::CallersCommand
    })
}
