//! Answers on their way out: what they keep in memory, and since when, until their last byte is written.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};

use crate::held::Holding;
use crate::wire::AnswerBody;

/// The answers of one connection that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<usize>>,
    count: Cell<usize>,
    bytes: Cell<usize>,
    /// Where on the wire ends what TLS has encrypted and the kernel has not taken; 0 if it has all.
    end: Cell<u64>,
    /// Answers that are written, and whose last bytes may be there.
    unsent: RefCell<VecDeque<Unsent>>,
}

/// An answer until so much was sent on the wire.
#[derive(Debug)]
struct Unsent {
    end: u64,
    at: usize,
    bytes: usize,
    _share: Option<Holding>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    /// It was not there yet when the connection was looked at last.
    New,
    /// It was there at this time.
    Since(Instant),
}

impl Unwritten {
    /// Bytes of their bodies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.get()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    /// Since when the oldest one waits, by the times of these looks.
    pub(super) fn oldest(&self, now: Instant) -> Option<Instant> {
        let mut oldest = None;
        for place in &mut *self.places.borrow_mut() {
            let since = match *place {
                Place::Free => continue,
                Place::New => {
                    *place = Place::Since(now);
                    now
                }
                Place::Since(since) => since,
            };
            oldest = Some(oldest.map_or(since, |oldest: Instant| oldest.min(since)));
        }
        oldest
    }

    /// Whether TLS has something that the kernel has not taken.
    pub(super) fn has_unsent(&self) -> bool {
        self.end.get() != 0
    }

    /// So much was sent on the wire, and what TLS has ends here; `None` if it has nothing.
    pub(super) fn sending(&self, sent: u64, end: Option<u64>) {
        self.end.set(end.unwrap_or(0));
        loop {
            let mut unsent = self.unsent.borrow_mut();
            if unsent.front().is_none_or(|first| end.is_some() && first.end > sent) {
                break;
            }
            let first = unsent.pop_front().expect("looked at above");
            self.leave(first.at, first.bytes);
        }
        // What no answer is known to wait in, a head say, has its time too.
        if let Some(end) = end.filter(|_| self.unsent.borrow().is_empty()) {
            let at = self.enter(0);
            self.unsent.borrow_mut().push_back(Unsent { end, at, bytes: 0, _share: None });
        }
    }

    fn enter(&self, bytes: usize) -> usize {
        self.count.set(self.count.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        let mut places = self.places.borrow_mut();
        if let Some(at) = self.free.borrow_mut().pop() {
            places[at] = Place::New;
            return at;
        }
        places.push(Place::New);
        places.len() - 1
    }

    fn leave(&self, at: usize, bytes: usize) {
        self.count.set(self.count.get() - 1);
        self.bytes.set(self.bytes.get() - bytes);
        self.places.borrow_mut()[at] = Place::Free;
        self.free.borrow_mut().push(at);
    }
}

/// The body of an answer. It owns the share of memory that its callback was counted with, until the kernel has it.
#[derive(Debug)]
pub(super) struct Outgoing(Option<Written>);

/// The bytes of an answer, as hyper writes them.
pub(super) struct Written {
    bytes: Bytes,
    entered: usize,
    at: usize,
    unwritten: Rc<Unwritten>,
    share: Option<Holding>,
}

impl Outgoing {
    /// An answer of this connection. One with nothing in it gives its share back at once.
    pub(super) fn new(answer: AnswerBody, unwritten: &Rc<Unwritten>) -> Outgoing {
        let AnswerBody { bytes, share } = answer;
        if bytes.is_empty() {
            return Outgoing(None);
        }
        let (entered, unwritten) = (bytes.len(), Rc::clone(unwritten));
        Outgoing(Some(Written { at: unwritten.enter(entered), bytes, entered, unwritten, share }))
    }
}

impl Body for Outgoing {
    type Data = Written;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Written>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |written| written.bytes.len() as u64))
    }
}

impl Buf for Written {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let Written { at, entered, unwritten, share, bytes } = self;
        // One that was abandoned before its last byte was written has nothing to wait for.
        if !unwritten.has_unsent() || bytes.has_remaining() {
            return unwritten.leave(*at, *entered);
        }
        let unsent = Unsent { end: unwritten.end.get(), at: *at, bytes: *entered, _share: share.take() };
        unwritten.unsent.borrow_mut().push_back(unsent);
    }
}

/// The content of an answer stays out of it.
impl fmt::Debug for Written {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Written").field("left", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::held::{Accounts, Held, Identity};

    fn answer(held: &Held, bytes: &'static str) -> AnswerBody {
        let account = Accounts::new(held.clone(), 8).open(Identity::of([127, 0, 0, 1].into(), None));
        let mut share = account.nothing(None);
        share.grow_to(bytes.len()).expect("there is room");
        AnswerBody { bytes: Bytes::from_static(bytes.as_bytes()), share: Some(share) }
    }

    #[tokio::test]
    async fn an_answer_keeps_its_share_until_its_last_byte_is_written() {
        let (held, unwritten) = (Held::new(100), Rc::new(Unwritten::default()));
        let mut body = Outgoing::new(answer(&held, "an answer"), &unwritten);
        assert_eq!((held.bytes(), unwritten.bytes(), body.size_hint().exact()), (9, 9, Some(9)));
        let mut data = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
        assert!(body.is_end_stream() && body.frame().await.is_none());
        data.advance(8);
        assert_eq!((data.remaining(), held.bytes(), unwritten.bytes()), (1, 9, 9), "not its last");
        drop(data);
        assert_eq!((held.bytes(), unwritten.bytes(), unwritten.is_empty()), (0, 0, true));
        let dropped = Outgoing::new(answer(&held, "an answer"), &unwritten);
        drop(dropped);
        assert_eq!((held.bytes(), unwritten.is_empty()), (0, true), "a caller that has gone");
    }

    #[test]
    fn an_answer_with_nothing_in_it_keeps_nothing() {
        let (held, unwritten) = (Held::new(100), Rc::new(Unwritten::default()));
        let mut empty = answer(&held, "an answer");
        empty.bytes = Bytes::new();
        let body = Outgoing::new(empty, &unwritten);
        assert_eq!((held.bytes(), unwritten.is_empty(), body.is_end_stream()), (0, true, true));
    }

    #[tokio::test]
    async fn an_answer_whose_end_tls_has_keeps_its_share_and_its_time_until_it_is_sent() {
        let (held, unwritten) = (Held::new(100), Rc::new(Unwritten::default()));
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let written = |count| {
            let mut body = Outgoing::new(answer(&held, "an answer"), &unwritten);
            assert!(unwritten.oldest(start).is_some());
            let mut data = body.0.take().expect("it has a body");
            data.advance(count);
            drop(data);
        };
        unwritten.sending(50, Some(100));
        assert_eq!(
            unwritten.oldest(later(1)),
            Some(later(1)),
            "what is unsent has its time without an answer"
        );
        written(9);
        assert_eq!((held.bytes(), unwritten.bytes(), unwritten.oldest(later(2))), (9, 9, Some(start)));
        unwritten.sending(99, Some(140));
        written(9);
        assert_eq!(held.bytes(), 18, "a byte of each is missing");
        unwritten.sending(100, Some(150));
        assert_eq!((held.bytes(), unwritten.bytes()), (9, 9), "the first is sent, the second is not");
        written(8);
        assert_eq!(held.bytes(), 9, "one that was abandoned waits for nothing");
        unwritten.sending(120, None);
        assert_eq!((held.bytes(), unwritten.is_empty(), unwritten.has_unsent()), (0, true, false));
        written(9);
        assert_eq!((held.bytes(), unwritten.is_empty()), (0, true), "the twin: the kernel has it");
    }

    #[test]
    fn the_oldest_is_the_one_that_was_there_at_the_earliest_look_whatever_was_written_meanwhile() {
        let (held, unwritten) = (Held::new(100), Rc::new(Unwritten::default()));
        let enter = || Outgoing::new(answer(&held, "x"), &unwritten);
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(unwritten.oldest(start), None);
        let first = enter();
        assert_eq!(unwritten.oldest(later(1)), Some(later(1)), "it may have come just now");
        let second = enter();
        assert_eq!(unwritten.oldest(later(2)), Some(later(1)));
        drop(first);
        let third = enter();
        assert_eq!(unwritten.oldest(later(3)), Some(later(2)), "a place that was used again is new");
        drop(second);
        assert_eq!(unwritten.oldest(later(4)), Some(later(3)));
        drop(third);
        assert_eq!((unwritten.oldest(later(5)), unwritten.places.borrow().len()), (None, 2));
    }
}
