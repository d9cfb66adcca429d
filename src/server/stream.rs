//! A connection's stream: what it is doing, what it may read and write in one turn, and when a head on it has taken too long.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use super::answer::Unwritten;
use super::frames::Frames;
use super::rarely::Gate;
use super::records::{Barren, Transport};
use crate::cause::Overload;
use crate::held::{Account, Holding};
use crate::metrics::BadHttp;
use crate::turns::Turn;

/// What may be read of a head over HTTP/1.1 before it counts among the bytes held: one read, which may have a body behind the
/// head.
const FREE_HEAD_BYTES: usize = 16 << 10;

/// The same behind a head, while no part of its body comes.
const FREE_TRAILER_BYTES: usize = 8 << 10;

/// In which steps the memory that a connection keeps is counted. Below the first it is part of what every connection has.
const SHARE_STEP: usize = 16 << 10;

/// What an answer over HTTP/1.1 and a head over HTTP/2 count in a turn beside their bytes: small ones that come together take more time
/// than those say. With them a long turn of 0.3 ms has some 20 callbacks.
const ANSWER_WORK: usize = 512;
const HEAD_WORK: usize = 256;

/// How many callbacks in so long a caller may abandon, if they are more than half of all: a caller with a timeout shorter than
/// the policy's abandons some, and an attacker nearly all.
const ABANDONED_LIMIT: u32 = 100;
const ABANDONED_WINDOW: Duration = Duration::from_secs(10);

/// What a connection is doing, seen by its stream, its service and whoever drives it.
pub(super) struct Activity {
    pub(super) h2: bool,
    /// Requests being answered.
    pub(super) active: Cell<usize>,
    /// When the last answer ended, or the connection began.
    pub(super) quiet_since: Cell<Instant>,
    /// Bytes read since the last request began or ended, or a part of its body came: a head or trailers under way.
    unread_head: Cell<usize>,
    /// Whether the end was announced, or is with the next answer.
    pub(super) ending: Cell<bool>,
    /// Requests that came.
    begun: Cell<u64>,
    /// Answers that are not written yet.
    pub(super) unwritten: Rc<Unwritten>,
    /// Bytes of larger bodies that callbacks in hand have.
    bodies: Cell<usize>,
    /// Memory that a head or trailers under way and the HTTP/2 decoder keep.
    share: RefCell<Option<Holding>>,
    /// Why it is to end, set by whoever finds that out.
    verdict: Cell<Option<Ending>>,
    /// Why reading failed, if not for what the socket says.
    pub(super) refused: Cell<Option<(BadHttp, &'static str)>>,
    /// Nothing more is read.
    pub(super) deaf: Cell<bool>,
    /// Who ends a connection that is not read any more once nothing is in hand.
    driver: RefCell<Option<Waker>>,
    abandoned: Cell<Abandoned>,
}

/// Why a connection is to end before its age, beside its own errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// At once: not even a refusal can be kept for it.
    NoMemory,
    /// After what is in hand: what it keeps does not fit.
    Crowded,
    /// After what is in hand, and it is not read any more: it abandons what it asks.
    Abandons,
}

/// Callbacks that were abandoned in this window.
#[derive(Clone, Copy)]
struct Abandoned {
    since: Instant,
    begun: u64,
    count: u32,
}

impl Activity {
    pub(super) fn new(h2: bool) -> Activity {
        let now = Instant::now();
        Activity {
            h2,
            active: Cell::new(0),
            quiet_since: Cell::new(now),
            unread_head: Cell::new(0),
            ending: Cell::new(false),
            begun: Cell::new(0),
            unwritten: Rc::default(),
            bodies: Cell::new(0),
            share: RefCell::default(),
            verdict: Cell::new(None),
            refused: Cell::new(None),
            deaf: Cell::new(false),
            driver: RefCell::default(),
            abandoned: Cell::new(Abandoned { since: now, begun: 0, count: 0 }),
        }
    }

    /// Whether a request ever came.
    pub(super) fn served(&self) -> bool {
        self.begun.get() > 0
    }

    /// Bytes of memory that it keeps from others: larger bodies of callbacks in hand, answers that wait to be taken, a head under way, and
    /// the buffers that the HTTP/2 decoder's table keeps.
    pub(super) fn kept_bytes(&self) -> usize {
        self.bodies.get() + self.unwritten.bytes() + self.share.borrow().as_ref().map_or(0, Holding::bytes)
    }

    pub(super) fn begin(self: &Rc<Self>) -> Active {
        self.active.set(self.active.get() + 1);
        self.unread_head.set(0);
        self.begun.set(self.begun.get() + 1);
        if !self.h2 {
            // The callback counts its head itself.
            self.share.take();
        }
        Active { activity: Rc::clone(self), answered: false, body: Cell::new(0) }
    }

    /// A part of a body came, or its answer is done: what was read before it is in no buffer any more.
    pub(super) fn took(&self) {
        if self.unread_head.replace(0) >= FREE_TRAILER_BYTES && !self.h2 {
            self.share.take();
        }
    }

    /// Ends the connection, unless it ends for another reason already. Without memory it ends at once, whatever else was found.
    pub(super) fn end(&self, why: Ending) {
        if why == Ending::NoMemory {
            self.deaf.set(true);
            self.verdict.set(Some(why));
        }
        self.verdict.set(self.verdict.get().or(Some(why)));
    }

    /// Whether it ends before anything more is read.
    pub(super) fn has_no_memory(&self) -> bool {
        self.verdict.get() == Some(Ending::NoMemory)
    }

    /// Why it is to end, if that was not told before.
    pub(super) fn take_verdict(&self) -> Option<Ending> {
        self.verdict.take()
    }

    /// Notes why reading fails, and fails it: what comes through HTTP/2 is a kind and a text alone.
    fn refuse(&self, fault: BadHttp, text: &'static str) -> io::Error {
        self.refused.set(Some((fault, text)));
        io::Error::other(text)
    }

    /// Whether nothing is read any more, and nothing is in hand. Wakes the task when that is so.
    pub(super) fn is_through(&self, cx: &Context<'_>) -> bool {
        if !self.deaf.get() {
            return false;
        }
        *self.driver.borrow_mut() = Some(cx.waker().clone());
        self.active.get() == 0 && self.unwritten.is_empty()
    }

    /// Counts memory that the connection keeps beside its callbacks.
    fn keep(&self, bytes: usize, account: &Arc<Account>) -> Result<(), Overload> {
        let bytes = if bytes < SHARE_STEP { 0 } else { bytes.next_multiple_of(SHARE_STEP) };
        let mut share = self.share.borrow_mut();
        let kept = share.as_ref().map_or(0, Holding::bytes);
        if bytes <= kept && (bytes > 0 || kept == 0) && bytes + 2 * SHARE_STEP > kept {
            return Ok(());
        }
        if bytes < kept {
            *share = None;
        }
        if bytes == 0 {
            return Ok(());
        }
        share.get_or_insert_with(|| Arc::clone(account).nothing(None)).grow_to(bytes)
    }

    fn abandon(&self) {
        let mut abandoned = self.abandoned.get();
        let now = Instant::now();
        if now.saturating_duration_since(abandoned.since) > ABANDONED_WINDOW {
            abandoned = Abandoned { since: now, begun: self.begun.get() - 1, count: 0 };
        }
        abandoned.count += 1;
        self.abandoned.set(abandoned);
        let begun = self.begun.get() - abandoned.begun;
        if abandoned.count > ABANDONED_LIMIT && u64::from(abandoned.count) * 2 > begun {
            self.deaf.set(true);
            self.end(Ending::Abandons);
        }
    }
}

/// A request being answered, until it is dropped.
pub(super) struct Active {
    activity: Rc<Activity>,
    answered: bool,
    /// Bytes of its body, if that is larger.
    body: Cell<usize>,
}

impl Active {
    /// So many bytes of its body are kept.
    pub(super) fn keeps(&self, bytes: usize) {
        let bodies = &self.activity.bodies;
        bodies.set(bodies.get() - self.body.replace(bytes) + bytes);
    }

    /// Its answer is there.
    pub(super) fn answered(&mut self) {
        self.answered = true;
    }
}

impl Deref for Active {
    type Target = Activity;

    fn deref(&self) -> &Activity {
        &self.activity
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.activity.active.set(self.activity.active.get() - 1);
        self.activity.bodies.set(self.activity.bodies.get() - self.body.get());
        self.activity.took();
        self.activity.quiet_since.set(Instant::now());
        if !self.answered {
            self.activity.abandon();
        }
        if let Some(driver) = self.activity.driver.take() {
            driver.wake();
        }
    }
}

/// A caller's stream. It ends when a head takes too long, whose time runs from its first byte, so that an idle connection is
/// left alone; and it reads and writes in turns.
pub(super) struct Watched<S> {
    stream: S,
    activity: Rc<Activity>,
    limit: Duration,
    /// Runs while a head is under way, and how many heads there were before it.
    timer: Option<(Pin<Box<Sleep>>, u64)>,
    /// hyper reads several times a callback; the socket has something once.
    readable: Gate,
    turn: Turn,
    /// Over HTTP/2.
    frames: Option<Box<Frames>>,
    account: Arc<Account>,
    barren: Barren,
    /// Callbacks and bytes of answers that the frames were credited with.
    credited: u64,
    written: usize,
}

impl<S: Transport> Watched<S> {
    pub(super) fn new(
        stream: S,
        activity: Rc<Activity>,
        limit: Duration,
        turn: Turn,
        account: Arc<Account>,
    ) -> Watched<S> {
        let frames = activity.h2.then(|| Box::new(Frames::new(activity.quiet_since.get())));
        let (timer, readable) = (None, Gate::new());
        let barren = Barren::default();
        let (credited, written) = (0, 0);
        Watched { stream, activity, limit, timer, readable, turn, frames, account, barren, credited, written }
    }

    /// Reads into the buffer, or into its beginning where frames may begin.
    fn read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let limit = self.frames.as_ref().map_or(usize::MAX, |frames| frames.read_limit());
        let stream = Pin::new(&mut self.stream);
        self.readable.poll(cx, |cx| {
            if buffer.remaining() <= limit {
                return stream.poll_read(cx, buffer);
            }
            let mut part = buffer.take(limit);
            let start = part.filled().as_ptr();
            ready!(stream.poll_read(cx, &mut part))?;
            assert_eq!(start, part.filled().as_ptr(), "a read fills the buffer that it was handed");
            let count = part.filled().len();
            // SAFETY: `part` is the beginning of what is not filled of `buffer`, and so many bytes of it are filled now.
            #[allow(unsafe_code, reason = "what tokio's own `Take` does; to fill the part with zeros first costs more than the read")]
            unsafe {
                buffer.assume_init(count);
            }
            buffer.advance(count);
            Poll::Ready(Ok(()))
        })
    }

    /// Follows what came on the wire and the plaintext that came of it. Returns whether there may be more.
    fn below(&mut self, plain: usize) -> io::Result<bool> {
        let Some(wire) = self.stream.wire() else { return Ok(false) };
        let Some((work, stopped)) = self.barren.follow(wire, plain) else {
            return Err(self.activity.refuse(BadHttp::Flood, "TLS records that carry nothing"));
        };
        self.turn.spend(work);
        Ok(stopped)
    }

    /// Notes what was written and is not with the kernel yet.
    fn sending(&self) {
        let (unwritten, unsent) = (&self.activity.unwritten, self.stream.has_unsent());
        if unsent || unwritten.has_unsent() {
            let (sent, end) = self.stream.sent();
            unwritten.sending(sent, unsent.then_some(end));
        }
    }

    /// Follows what was read.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<()> {
        let activity = &self.activity;
        let Some(frames) = &mut self.frames else {
            activity.unread_head.set(activity.unread_head.get() + bytes.len());
            return Ok(());
        };
        let begun = activity.begun.get();
        if begun > self.credited {
            frames.callbacks((begun - self.credited) as u32);
            self.credited = begun;
        }
        let blocks = frames.blocks();
        let streams = activity.active.get() + activity.unwritten.count();
        frames
            .read(bytes, streams, Instant::now)
            .map_err(|abuse| activity.refuse(BadHttp::Flood, abuse.text()))?;
        let heads = frames.blocks() - blocks;
        if heads > 0 {
            self.turn.spend(heads as usize * HEAD_WORK);
            self.turn.pieces(heads as u32);
        }
        let (head, pinned) = (frames.head_bytes(), frames.pinned_bytes());
        if head > 0 && activity.keep(head + pinned, &self.account).is_err() {
            return Err(activity.refuse(BadHttp::NoMemory, "a head, and the bytes held are at --max-held"));
        }
        if head == 0 && heads > 0 && activity.keep(pinned, &self.account).is_err() {
            // A caller that heeds its GOAWAY sends no further heads.
            if activity.ending.get() {
                return Err(activity.refuse(BadHttp::NoMemory, "header fields that the connection keeps"));
            }
            activity.end(Ending::Crowded);
        }
        Ok(())
    }

    /// Whether more may be read of a head over HTTP/1.1, or of trailers, that did not end in what was read so far.
    fn may_grow(&self) -> io::Result<()> {
        let (activity, head) = (&self.activity, self.activity.unread_head.get());
        let free = if activity.active.get() > 0 { FREE_TRAILER_BYTES } else { FREE_HEAD_BYTES };
        if activity.h2 || head < free {
            return Ok(());
        }
        // A buffer that grows is as large again.
        let kept = activity.keep(2 * head, &self.account);
        kept.map_err(|_| {
            activity.refuse(BadHttp::NoMemory, "a head or trailers, and the bytes held are at --max-held")
        })
    }

    /// Whether the caller owes us the rest of something, and how many heads it has sent before: over HTTP/1 a head that has
    /// begun, over HTTP/2 the preface or a head. (DATA that stalls there is waited for by its callback.)
    fn owes(&self) -> Option<u64> {
        let activity = &self.activity;
        match &self.frames {
            Some(frames) => frames.owes().then(|| frames.blocks()),
            None => {
                (activity.active.get() == 0 && activity.unread_head.get() > 0).then(|| activity.begun.get())
            }
        }
    }

    fn wrote(&mut self, count: usize) {
        self.sending();
        if let Some(frames) = &mut self.frames {
            self.turn.spend(count);
            self.written += count;
            if self.written >= 1 << 10 {
                frames.written((self.written >> 10) as u32);
                self.written %= 1 << 10;
            }
        } else {
            self.turn.spend(count + ANSWER_WORK);
        }
    }
}

impl<S: Transport> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.activity.deaf.get() {
            // Whoever drives the connection ends it.
            return Poll::Pending;
        }
        ready!(this.turn.poll(cx));
        this.may_grow()?;
        let before = buffer.filled().len();
        let polled = this.read(cx, buffer);
        let stopped = this.below(buffer.filled().len() - before)?;
        match polled {
            Poll::Ready(Ok(())) => {
                let read = &buffer.filled()[before..];
                this.turn.spend(read.len());
                return Poll::Ready(this.follow(read));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending if stopped => {}
            Poll::Pending => this.turn.pause(),
        }
        let Some(head) = this.owes() else {
            this.timer = None;
            return Poll::Pending;
        };
        if this.timer.as_ref().is_none_or(|(_, timed)| *timed != head) {
            this.timer = Some((Box::pin(sleep_until((Instant::now() + this.limit).into())), head));
        }
        let (timer, _) = this.timer.as_mut().expect("set above");
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(this.activity.refuse(BadHttp::SlowHead, "the head took too long")))
    }
}

impl<S: Transport> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.turn.poll(cx));
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes))?;
        this.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.sending();
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.turn.poll(cx));
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices))?;
        this.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
