//! What the admin port counts about itself, in every program that has one.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use self::labels::ClosedLabel;
use super::catalog::Catalog;

/// Why the admin port closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// A new connection took its place: there were as many as `--max-admin-connections`.
    Limit,
    /// A new connection took its place: no descriptor was free.
    OpenFiles,
    /// It sent no request, or did not read its answer, within `--admin-timeout`.
    Timeout,
}

impl Closed {
    /// All of them, in the order of the documentation.
    pub const ALL: [Closed; 3] = [Closed::Limit, Closed::OpenFiles, Closed::Timeout];

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            Closed::Limit => "limit",
            Closed::OpenFiles => "open-files",
            Closed::Timeout => "timeout",
        }
    }
}

mod labels {
    use super::Closed;
    use crate::metrics::catalog::{labels, one_of};

    labels! {
        ClosedLabel { reason: &'static str = one_of(Closed::ALL.map(Closed::label)) }
    }
}

/// Counts connections that the admin port closed. Clones count together.
#[derive(Clone, Debug)]
pub struct AdminMetrics {
    closed: Family<ClosedLabel, Counter>,
}

impl Default for AdminMetrics {
    fn default() -> AdminMetrics {
        let closed = Family::<ClosedLabel, Counter>::default();
        for reason in Closed::ALL {
            let _ = closed.get_or_create(&ClosedLabel { reason: reason.label() });
        }
        AdminMetrics { closed }
    }
}

impl AdminMetrics {
    /// Registers what is counted.
    pub fn register(&self, to: &mut Catalog) {
        let help = "Connections to the admin port that it closed before their request was answered";
        to.add("admin_connections_closed", help, self.closed.clone());
    }

    /// A connection was closed.
    pub fn closed(&self, reason: Closed) {
        self.closed.get_or_create(&ClosedLabel { reason: reason.label() }).inc();
    }
}
