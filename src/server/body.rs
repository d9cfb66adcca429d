//! Bodies on their way in: what their connection keeps of them is known to whoever looks for the one that pins the most memory. What is
//! read over HTTP/1.1 while no part of a body comes is something else: trailers, which hyper buffers up to the limit of a head, and
//! extensions of chunks. So the connection learns of each part that has come.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::stream::Active;
use crate::wire::CallerBody;

/// The body of a request.
pub(super) struct Counted<'a> {
    body: &'a mut Incoming,
    request: &'a Active,
}

impl<'a> Counted<'a> {
    /// The body of this request.
    pub(super) fn new(body: &'a mut Incoming, request: &'a Active) -> Counted<'a> {
        Counted { body, request }
    }
}

impl Body for Counted<'_> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut *self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && frame.is_data()
        {
            self.request.took();
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

impl CallerBody for Counted<'_> {
    fn keeps(&self, bytes: usize) {
        self.request.keeps(bytes);
    }
}
