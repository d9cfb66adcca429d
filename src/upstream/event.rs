//! Sends an event: a request whose answer nobody waits for but the queue, and of which the status alone counts. What matters
//! here is whether the app can have seen it.

use std::cell::Cell;
use std::time::Instant;

use http::StatusCode;
use std::rc::Rc;

use super::connection::{Connection, Found};
use super::framing::Framing;
use super::outcome::Failure;
use super::{Ended, ONE_WRITE, Presence, Upstream, last_on_its_connection};
use crate::turns::Turn;

/// How far an event got: what a deadline finds.
#[derive(Debug, Default)]
pub struct Progress {
    /// A byte of it may have been written to a connection that was not closed before.
    sent: Cell<bool>,
    status: Cell<Option<StatusCode>>,
}

impl Progress {
    /// Whether the app may have seen it.
    pub fn is_sent(&self) -> bool {
        self.sent.get()
    }

    /// The status of the answer, once its head is there.
    pub fn status(&self) -> Option<StatusCode> {
        self.status.get()
    }
}

/// Why an event has no answer.
#[derive(Debug)]
pub enum Undelivered {
    /// It is certain that the app has seen nothing of it.
    NotReached(Failure),
    /// It may have.
    Unsure(Failure),
}

impl Upstream {
    /// Sends an event once, `head` as it goes over the wire, and returns the status of the answer. Its body is read and thrown
    /// away: of no more than the bytes of an answer's body, so that the connection can be used again.
    ///
    /// Dropping the future ends the exchange and its connection; `progress` knows how far it got.
    ///
    /// # Errors
    ///
    /// There is no status.
    pub async fn deliver(
        &self,
        mut head: Vec<u8>,
        mut body: &[u8],
        progress: &Progress,
    ) -> Result<StatusCode, Undelivered> {
        let mut begun = Instant::now();
        if !self.reuse.is_allowed(begun) {
            last_on_its_connection(&mut head);
        }
        if body.len() + head.len() <= ONE_WRITE {
            head.extend_from_slice(body);
            body = &[];
        }
        let status = loop {
            let pooled = self.pooled_connection(begun);
            let is_new = pooled.is_none();
            let mut connection = match pooled {
                Some(connection) => connection,
                None => self.connect_for_event().await.map_err(Undelivered::NotReached)?,
            };
            progress.sent.set(true);
            let before = connection.written;
            let sent = connection.send((&head, body), self.head_limit).await;
            let answer = match connection.head(self.head_limit).await {
                Ok(answer) => answer,
                Err(no_head) => match self.without_head(&connection, before, sent, no_head) {
                    // The app had closed this one before our bytes came.
                    Ended::Unread if !is_new => {
                        progress.sent.set(false);
                        begun = Instant::now();
                        continue;
                    }
                    Ended::Unread => {
                        let error = std::io::ErrorKind::ConnectionReset.into();
                        return Err(Undelivered::NotReached(self.unreachable(error)));
                    }
                    Ended::Failed(failure) => return Err(Undelivered::Unsure(failure)),
                },
            };
            progress.status.set(Some(answer.status));
            let turn = Turn::new(Rc::clone(&self.lane));
            let whole = connection.skip_body(answer.framing, self.answer_limit, turn).await;
            if whole && !connection.buffer.is_empty() {
                self.unsolicited(Instant::now());
            } else if whole && answer.keep_alive && sent.is_ok() && answer.framing != Framing::UntilEnd {
                self.keep(connection, begun);
            }
            break answer.status;
        };
        self.keep_head(head);
        Ok(status)
    }

    /// A new connection. An app that is gone is not waited for: the event waits elsewhere.
    async fn connect_for_event(&self) -> Result<Connection, Failure> {
        let connection = Connection::open(&self.dialer).await.map_err(|error| self.unreachable(error))?;
        self.presence.set(Presence::Here);
        if connection.found() == Found::Unsolicited {
            self.unsolicited(Instant::now());
            return Err(Failure::NotHttp("an answer before any request".to_owned()));
        }
        Ok(connection)
    }
}
