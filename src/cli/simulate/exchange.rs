//! One callback and its answer, with the bytes and the clock of Go's client.

use std::cell::Cell;
use std::io::Read as _;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::timeout_at;

use super::bodies::{Sample, Sending};
use super::dial::{Connection, Dialer, Sender};
use super::failure::{Failure, Phase};
use crate::callback::OPERATION_ID;
use crate::callback::target::Form;

/// Longest answer that is read, packed or unpacked. OpenIM has no limit, and no app has that much to say.
const ANSWER_LIMIT: usize = 16 << 20;

/// An answer that was read whole.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Unpacked where the app packed it with gzip, as Go does.
    pub(super) body: Bytes,
    pub(super) unpacked: bool,
    pub(super) h2: bool,
}

/// How every callback of a run is sent.
pub(super) struct Caller {
    pub(super) dialer: Dialer,
    pub(super) form: Form,
    pub(super) timeout: Duration,
}

impl Caller {
    /// Sends a callback and reads its answer. The clock began at `began`, for a callback that had to wait for its
    /// turn before it was sent.
    pub(super) async fn ask(
        &self,
        sample: &Sample,
        sending: &Sending,
        began: Instant,
        phase: &Cell<Phase>,
    ) -> Result<Answer, Failure> {
        let exchange = self.exchange(sample, sending, phase);
        match timeout_at((began + self.timeout).into(), exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::timeout(phase.get(), self.timeout)),
        }
    }

    /// Makes a connection and keeps it, to see whether one can be made.
    pub(super) async fn reached(&self, phase: &Cell<Phase>) -> Result<(), Failure> {
        let reached = async {
            let connection = self.dialer.connection(phase).await?;
            self.dialer.keep(connection).await;
            Ok(())
        };
        match timeout_at((Instant::now() + self.timeout).into(), reached).await {
            Ok(reached) => reached,
            Err(_) => Err(Failure::timeout(phase.get(), self.timeout)),
        }
    }

    async fn exchange(
        &self,
        sample: &Sample,
        sending: &Sending,
        phase: &Cell<Phase>,
    ) -> Result<Answer, Failure> {
        let target = self.dialer.place.target(&sample.name, self.form, sample.key.as_deref());
        loop {
            let connection = self.dialer.connection(phase).await?;
            let h2 = matches!(connection.sender, Sender::H2(_));
            let request = self.request(&target, sending, h2)?;
            phase.set(Phase::Asked);
            match self.send(&connection, request).await {
                Ok(response) => {
                    phase.set(Phase::Answering);
                    let (head, body) = response.into_parts();
                    let body = whole(body).await?;
                    let (body, unpacked) = unpacked(&head.headers, body)?;
                    self.dialer.keep(connection).await;
                    return Ok(Answer { status: head.status, headers: head.headers, body, unpacked, h2 });
                }
                // Closed before a byte of the callback was on its way: Go takes another connection too.
                Err(Refused { unsent: true, .. }) if connection.reused => self.dialer.forget(&connection),
                Err(refused) => return Err(self.failure(&connection, &refused.error)),
            }
        }
    }

    /// The request in Go's order: its own headers, then those that were set, sorted, then the coding it takes.
    fn request(&self, target: &str, sending: &Sending, h2: bool) -> Result<Request<Full<Bytes>>, Failure> {
        let place = &self.dialer.place;
        let wrong = || Failure::malformed("a target that cannot be sent");
        let mut request =
            Request::builder().method(Method::POST).uri(place.uri(target, h2).ok_or_else(wrong)?);
        if !h2 {
            request = request.header(header::HOST, &place.authority);
        }
        let agent = if h2 { "Go-http-client/2.0" } else { "Go-http-client/1.1" };
        request = request
            .header(header::USER_AGENT, agent)
            .header(header::CONTENT_LENGTH, HeaderValue::from(sending.body.len()));
        if let Some(authorization) = &place.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
            .header(OPERATION_ID, &sending.operation_id)
            .header(header::ACCEPT_ENCODING, "gzip");
        request.body(Full::new(sending.body.clone())).map_err(|_| wrong())
    }

    async fn send(
        &self,
        connection: &Connection,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Refused> {
        match &connection.sender {
            Sender::H1(sender) => {
                let sent = sender.borrow_mut().try_send_request(request);
                sent.await.map_err(|mut error| Refused {
                    unsent: error.take_message().is_some(),
                    error: error.into_error(),
                })
            }
            Sender::H2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await.map_err(|error| Refused { unsent: true, error })?;
                let sent = sender.try_send_request(request);
                sent.await.map_err(|mut error| Refused {
                    unsent: error.take_message().is_some(),
                    error: error.into_error(),
                })
            }
        }
    }

    fn failure(&self, connection: &Connection, error: &hyper::Error) -> Failure {
        match connection.first.get() {
            // The first byte of a TLS alert, or of a handshake.
            Some(21 | 22) => Failure::is_tls(&self.dialer.place),
            Some(_) if error.is_parse() => Failure::malformed(&error.to_string()),
            Some(_) if connection.reused => Failure::closed(),
            Some(_) => Failure::cut(),
            None if error.is_parse() => Failure::malformed(&error.to_string()),
            None => Failure::closed(),
        }
    }
}

/// A callback that was not answered, and whether it is certain that nothing of it was sent.
struct Refused {
    unsent: bool,
    error: hyper::Error,
}

async fn whole(mut body: Incoming) -> Result<Bytes, Failure> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is_parse() { Failure::malformed(&error.to_string()) } else { Failure::cut() }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > ANSWER_LIMIT {
            return Err(Failure::too_large(ANSWER_LIMIT));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Go unpacks gzip and nothing else.
fn unpacked(headers: &HeaderMap, body: Bytes) -> Result<(Bytes, bool), Failure> {
    let coding = headers.get(header::CONTENT_ENCODING);
    if !coding.is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"gzip")) {
        return Ok((body, false));
    }
    let mut unpacked = Vec::new();
    let mut reader = flate2::read::MultiGzDecoder::new(&body[..]).take(ANSWER_LIMIT as u64 + 1);
    reader.read_to_end(&mut unpacked).map_err(|_| Failure::bad_gzip())?;
    if unpacked.len() > ANSWER_LIMIT {
        return Err(Failure::too_large(ANSWER_LIMIT));
    }
    Ok((unpacked.into(), true))
}
