//! The body of an answer: bounded in its lines, and dead if nothing comes for too long.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::connect::Error;
use super::trouble::Failure;

/// A connection with nothing on it for so long is dead: the API server sends a bookmark each minute, give or take.
pub(super) const SILENCE: Duration = Duration::from_secs(150);

/// An object holds at most 1.5 MiB in etcd, of which JSON makes 6 MiB at the worst; a line is no longer.
const LINE_LIMIT_BYTES: usize = 8 << 20;

/// An answer's body that ends with an error when nothing comes for too long, or a line has no end. `guard` is dropped with it.
pub(super) struct Heard<B, G> {
    body: B,
    silence: Pin<Box<Sleep>>,
    /// Bytes since the last end of a line.
    line: usize,
    _guard: G,
}

impl<B, G> Heard<B, G> {
    pub(super) fn new(body: B, guard: G) -> Heard<B, G> {
        Heard { body, silence: Box::pin(sleep(SILENCE)), line: 0, _guard: guard }
    }
}

impl<B, G: Unpin> Body for Heard<B, G>
where
    B: Body<Data = Bytes, Error: Into<Error>> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            return this
                .silence
                .as_mut()
                .poll(cx)
                .map(|()| Some(Err(Failure::Silent(SILENCE.as_secs()).into())));
        };
        this.silence.as_mut().reset(Instant::now() + SILENCE);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            match data.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => this.line = data.len() - end - 1,
                None => this.line += data.len(),
            }
            if this.line > LINE_LIMIT_BYTES {
                return Poll::Ready(Some(Err(Failure::TooLong(LINE_LIMIT_BYTES).into())));
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::advance;

    use super::*;

    /// A body that the test feeds.
    fn fed() -> (
        futures::channel::mpsc::UnboundedSender<Bytes>,
        Heard<impl Body<Data = Bytes, Error = Infallible> + Unpin, ()>,
    ) {
        use futures::StreamExt as _;
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        (sender, Heard::new(StreamBody::new(receiver.map(|data| Ok(Frame::data(data)))), ()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_a_byte_is_dead_after_its_time_and_one_with_bookmarks_is_not() {
        let (sender, mut heard) = fed();
        let begun = Instant::now();
        for _ in 0..5 {
            advance(Duration::from_secs(60)).await;
            sender.unbounded_send(Bytes::from_static(b"{}\n")).expect("the body listens");
            assert!(matches!(heard.frame().await, Some(Ok(_))), "a bookmark a minute keeps it alive");
        }
        // The clock runs ahead by itself while there is nothing else to do.
        let error = heard.frame().await.expect("not an end").expect_err("dead");
        assert_eq!(begun.elapsed().as_secs(), 5 * 60 + 150);
        assert!(error.to_string().contains("150 s"), "{error}");
        drop(sender);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_refused_and_long_watches_of_lines_are_not() {
        let (sender, mut heard) = fed();
        let mebibyte = Bytes::from(vec![b' '; 1 << 20]);
        let mut line = vec![b' '; 1 << 20];
        line.push(b'\n');
        for _ in 0..20 {
            sender.unbounded_send(line.clone().into()).expect("the body listens");
            assert!(matches!(heard.frame().await, Some(Ok(_))));
        }
        for _ in 0..8 {
            sender.unbounded_send(mebibyte.clone()).expect("the body listens");
            assert!(matches!(heard.frame().await, Some(Ok(_))));
        }
        sender.unbounded_send(mebibyte).expect("the body listens");
        assert!(heard.frame().await.expect("not an end").is_err());
    }
}
