//! What is counted about the connections of callers beside how many are open.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use self::labels::ConnectionEndLabel;
use super::catalog::Catalog;

/// Why the guard ended a connection before its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// A new connection took its place: there were as many as `--max-connections`.
    Limit,
    /// A new connection took its place: no descriptor was free.
    OpenFiles,
    /// No request came on it in time.
    NoRequest,
    /// The container's memory is nearly used up.
    Memory,
}

impl ConnectionEnd {
    /// All of them, in the order of the documentation.
    pub const ALL: [ConnectionEnd; 4] =
        [ConnectionEnd::Limit, ConnectionEnd::OpenFiles, ConnectionEnd::NoRequest, ConnectionEnd::Memory];

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            ConnectionEnd::Limit => "limit",
            ConnectionEnd::OpenFiles => "open-files",
            ConnectionEnd::NoRequest => "no-request",
            ConnectionEnd::Memory => "memory",
        }
    }
}

mod labels {
    use super::ConnectionEnd;
    use crate::metrics::catalog::{labels, one_of};

    labels! {
        ConnectionEndLabel { reason: &'static str = one_of(ConnectionEnd::ALL.map(ConnectionEnd::label)) }
    }
}

/// Counts connections that the guard ended, and pauses of accepting. Clones count together.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    ended: Family<ConnectionEndLabel, Counter>,
    pauses: Counter,
}

impl Default for ConnectionMetrics {
    fn default() -> ConnectionMetrics {
        let ended = Family::<ConnectionEndLabel, Counter>::default();
        for reason in ConnectionEnd::ALL {
            let _ = ended.get_or_create(&ConnectionEndLabel { reason: reason.label() });
        }
        ConnectionMetrics { ended, pauses: Counter::default() }
    }
}

impl ConnectionMetrics {
    /// Registers what is counted.
    pub fn register(&self, to: &mut Catalog) {
        let help = "Connections from callers that were closed to make room, or because no request came";
        to.add("connections_ended", help, self.ended.clone());
        let help = "Pauses of accepting connections because the container's memory was nearly used up";
        to.add("accept_pauses", help, self.pauses.clone());
    }

    /// A connection was ended.
    pub fn ended(&self, reason: ConnectionEnd) {
        self.ended.get_or_create(&ConnectionEndLabel { reason: reason.label() }).inc();
    }

    /// No connection is accepted from now on, for a while.
    pub fn paused(&self) {
        self.pauses.inc();
    }
}
