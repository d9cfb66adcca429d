//! The bound on bytes held: one count for all requests and answers of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Up to this size an answer is not tied to its share: there are no more small ones than callbacks in flight.
pub const SMALL_BODY_BYTES: usize = 8 << 10;

/// What a callback takes from its first byte to the last of its answer, beside its head and bodies: stream, tasks, frames and the
/// answer's head. Measured over HTTP/2: 10 to 12 KiB.
pub const CALLBACK_BYTES: usize = 12 << 10;

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
    bytes: AtomicUsize,
}

/// The bound would be passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A share of the count, given back when it is dropped.
#[derive(Debug)]
#[must_use = "what is held is given back when this is dropped"]
pub struct Holding {
    shared: Arc<Shared>,
    bytes: usize,
    of_answer: bool,
}

impl Held {
    /// A count with a bound in bytes.
    pub fn new(limit: usize) -> Held {
        Held {
            shared: Arc::new(Shared {
                limit: AtomicUsize::new(limit),
                former_limit: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
            }),
        }
    }

    /// A share of nothing, to grow with a callback.
    pub fn nothing(&self) -> Holding {
        Holding { shared: Arc::clone(&self.shared), bytes: 0, of_answer: false }
    }

    /// A share of nothing, to grow with the answer to a callback that was let in.
    pub fn nothing_for_answer(&self) -> Holding {
        Holding { shared: Arc::clone(&self.shared), bytes: 0, of_answer: true }
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
        if limit < old {
            self.shared.former_limit.fetch_max(old, Ordering::Relaxed);
        } else if self.bytes() <= limit {
            self.shared.former_limit.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Holding {
    /// Bytes of this share.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Parts the share: what is returned has all beyond so many bytes, and is given back by itself.
    pub fn split_off(&mut self, bytes: usize) -> Holding {
        let beyond = self.bytes.saturating_sub(bytes);
        self.bytes -= beyond;
        Holding { shared: Arc::clone(&self.shared), bytes: beyond, of_answer: self.of_answer }
    }

    /// Takes a part back that was split off.
    pub fn join(&mut self, mut part: Holding) {
        debug_assert!(Arc::ptr_eq(&self.shared, &part.shared), "a part of this share");
        self.bytes += std::mem::take(&mut part.bytes);
    }

    /// Makes the share no larger than this: what it was for was dropped.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.bytes -= less;
        self.shared.bytes.fetch_sub(less, Ordering::Relaxed);
    }

    /// Makes the share this large; it never shrinks here. At the bound nothing changes.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Full> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return Ok(()) };
        let mut limit = self.shared.limit.load(Ordering::Relaxed);
        if self.of_answer {
            limit = limit.max(self.shared.former_limit.load(Ordering::Relaxed));
        }
        let grown = |held: usize| held.checked_add(more).filter(|held| *held <= limit);
        match self.shared.bytes.try_update(Ordering::Relaxed, Ordering::Relaxed, grown) {
            Ok(_) => {
                self.bytes = bytes;
                Ok(())
            }
            Err(_) => Err(Full),
        }
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
    let _ = holding.grow_to(body.len());
    Bytes::from_owner(Tied(body, holding))
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_counts_until_it_is_dropped_and_the_bound_holds() {
        let held = Held::new(10);
        let (mut one, mut two) = (held.nothing(), held.nothing());
        assert_eq!(one.grow_to(6), Ok(()));
        assert_eq!(one.grow_to(4), Ok(()), "growing never shrinks");
        assert_eq!(two.grow_to(5), Err(Full));
        assert_eq!(two.grow_to(4), Ok(()));
        assert_eq!(held.bytes(), 10);
        drop(one);
        assert_eq!(held.bytes(), 4);
        assert_eq!(two.grow_to(10), Ok(()));
        assert_eq!(two.grow_to(usize::MAX), Err(Full), "an overflow is no way around the bound");
        two.shrink_to(3);
        assert_eq!((two.bytes(), held.bytes()), (3, 3));
        two.shrink_to(9);
        assert_eq!((two.bytes(), held.bytes()), (3, 3), "shrinking never grows");
    }

    #[test]
    fn a_part_that_was_split_off_counts_by_itself_until_it_is_dropped_or_taken_back() {
        let held = Held::new(10);
        let mut share = held.nothing();
        assert_eq!(share.grow_to(8), Ok(()));
        let mut part = share.split_off(3);
        assert_eq!((share.bytes(), part.bytes(), held.bytes()), (3, 5, 8));
        assert_eq!((part.grow_to(7), part.grow_to(8)), (Ok(()), Err(Full)));
        share.join(part);
        assert_eq!((share.bytes(), held.bytes()), (10, 10));
        drop(share.split_off(4));
        assert_eq!((share.bytes(), held.bytes()), (4, 4));
        assert_eq!(share.split_off(5).bytes(), 0, "there is nothing beyond");
        drop(share);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn a_lower_bound_takes_nothing_away_and_lets_nothing_in_until_enough_is_given_back() {
        let held = Held::new(100);
        let (mut one, mut two) = (held.nothing(), held.nothing());
        assert_eq!((one.grow_to(60), two.grow_to(30)), (Ok(()), Ok(())));
        held.set_limit(50);
        assert_eq!((held.limit(), held.bytes()), (50, 90));
        assert_eq!(two.grow_to(31), Err(Full));
        assert_eq!(two.grow_to(30), Ok(()), "what it has it keeps");
        assert_eq!(held.nothing().grow_to(1), Err(Full));
        drop(one);
        assert_eq!((held.bytes(), two.grow_to(51), two.grow_to(50)), (30, Err(Full), Ok(())));
        held.set_limit(100);
        assert_eq!(two.grow_to(100), Ok(()), "a higher bound is in force at once");
    }

    #[test]
    fn answers_have_the_former_bound_until_no_more_is_held_than_the_lower_one() {
        let held = Held::new(100);
        let mut callback = held.nothing();
        assert_eq!(callback.grow_to(60), Ok(()));
        for lower in [50, 40, 40] {
            held.set_limit(lower);
            let mut answer = held.nothing_for_answer();
            assert_eq!((answer.grow_to(40), answer.grow_to(41)), (Ok(()), Err(Full)), "{lower}");
            assert_eq!(held.nothing().grow_to(1), Err(Full), "{lower}");
        }
        drop(callback);
        held.set_limit(40);
        let mut answer = held.nothing_for_answer();
        assert_eq!((answer.grow_to(41), answer.grow_to(40)), (Err(Full), Ok(())));
    }

    #[test]
    fn a_tied_body_counts_for_as_long_as_any_part_of_it_is_there() {
        let held = Held::new(100);
        let body = tie(Bytes::from(vec![0; 60]), held.nothing());
        assert_eq!(held.bytes(), 60);
        let part = body.slice(10..20);
        drop(body);
        assert_eq!(held.bytes(), 60);
        drop(part);
        assert_eq!(held.bytes(), 0);
    }
}
