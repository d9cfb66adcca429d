//! The body of a request on its way in. What is read over HTTP/1.1 while no part of it comes is something else: trailers, which
//! hyper buffers up to the limit of a head, and extensions of chunks.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::stream::Activity;

/// A body whose connection learns when a part of it has come.
pub(super) struct Followed {
    body: Incoming,
    activity: Rc<Activity>,
}

impl Followed {
    pub(super) fn new(body: Incoming, activity: &Rc<Activity>) -> Followed {
        Followed { body, activity: Rc::clone(activity) }
    }
}

impl Body for Followed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.is_data()
        {
            self.activity.took();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
