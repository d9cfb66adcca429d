//! What the controller counts.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use self::labels::{NamespaceLabel, PodLabels, ReasonLabel, ResultLabel};
use super::pods::STATES;
use crate::metrics::admin::AdminMetrics;
use crate::metrics::catalog::{Audience, Catalog, Entry};
use crate::sidecar::Reason;

/// Results of a write.
const RESULTS: [&str; 2] = ["succeeded", "failed"];

mod labels {
    //! The labels: each comes from a closed set, or from the flags.

    use super::{RESULTS, STATES};
    use crate::metrics::catalog::{labels, one_of};

    labels! {
        PodLabels {
            state: &'static str = one_of(STATES),
            namespace: String = "a namespace of `--namespaces`",
        }
        ReasonLabel { reason: &'static str = "a [reason](annotations.md#why-a-pod-has-no-sidecar)" }
        NamespaceLabel { namespace: String = "a namespace of `--namespaces`" }
        ResultLabel { result: &'static str = one_of(RESULTS) }
    }
}

/// Everything that is counted. One to a process.
pub struct Metrics {
    catalog: Catalog,
    pods: Family<PodLabels, Gauge>,
    skipped: Family<ReasonLabel, Gauge>,
    certificate_expiry: Family<NamespaceLabel, Gauge<i64, AtomicI64>>,
    authority_expiry: Gauge<i64, AtomicI64>,
    renewals: Family<ResultLabel, Counter>,
    policies_broken: Gauge,
    leader: Gauge,
    admin: AdminMetrics,
    /// What is added up over namespaces.
    of_namespaces: RefCell<BTreeMap<String, OfNamespace>>,
}

/// What is known of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfNamespace {
    /// Pods by state.
    pub pods: BTreeMap<&'static str, i64>,
    /// When the certificate expires, in seconds since 1970.
    pub not_after: Option<i64>,
    /// Invalid policies.
    pub broken: usize,
    skipped: HashMap<Reason, i64>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers every metric. `dropped` counts log lines that were not written.
    pub fn new(dropped: Counter) -> Metrics {
        let mut metrics = Metrics {
            catalog: Catalog::new("callback_guard"),
            pods: Family::default(),
            skipped: Family::default(),
            certificate_expiry: Family::default(),
            authority_expiry: Gauge::default(),
            renewals: Family::default(),
            policies_broken: Gauge::default(),
            leader: Gauge::default(),
            admin: AdminMetrics::default(),
            of_namespaces: RefCell::default(),
        };
        let to = &mut metrics.catalog;
        to.add("controller_pods", "Pods of the namespaces served", metrics.pods.clone());
        let help = "Pods that asked for a sidecar and cannot have one";
        to.add("controller_skipped_pods", help, metrics.skipped.clone());
        to.add_seconds(
            "controller_certificate_expiry_timestamp",
            "When the certificate of a namespace's sidecars expires, in seconds since 1970",
            metrics.certificate_expiry.clone(),
        );
        to.add_seconds(
            "controller_ca_expiry_timestamp",
            "When the CA that signs expires, in seconds since 1970; its successor takes over before; 0 if this replica does not lead",
            metrics.authority_expiry.clone(),
        );
        to.add("controller_renewals", "Certificates and CAs signed and written", metrics.renewals.clone());
        let help = "Policy ConfigMaps that are invalid";
        to.add("controller_policies_broken", help, metrics.policies_broken.clone());
        to.add(
            "controller_leader",
            "1 while this replica holds the Lease, and writes",
            metrics.leader.clone(),
        );
        to.add("log_lines_dropped", "Log lines dropped (queue full)", dropped);
        metrics.admin.register(to);
        for result in RESULTS {
            let _ = metrics.renewals.get_or_create(&ResultLabel { result });
        }
        metrics
    }

    /// The text of `/metrics`.
    pub fn text(&self, audience: Audience) -> String {
        self.catalog.text(audience)
    }

    /// What the admin port counts.
    pub fn admin(&self) -> &AdminMetrics {
        &self.admin
    }

    /// Every metric, for a reference.
    pub fn entries(&self) -> &[Entry] {
        self.catalog.entries()
    }

    /// Whether this replica holds the Lease. One that does not looks after nothing, and has nothing to report.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        self.pods.clear();
        self.skipped.clear();
        self.certificate_expiry.clear();
        self.authority_expiry.set(0);
        self.policies_broken.set(0);
        self.of_namespaces.borrow_mut().clear();
    }

    /// Every namespace of which something is known, by name.
    pub fn namespaces(&self) -> BTreeMap<String, OfNamespace> {
        self.of_namespaces.borrow().clone()
    }

    /// When the CA that signs expires, in seconds since 1970; 0 if it is not known.
    pub fn authority_not_after(&self) -> i64 {
        self.authority_expiry.get()
    }

    /// Whether this replica holds the Lease.
    pub fn is_leader(&self) -> bool {
        self.leader.get() == 1
    }

    /// A namespace is not there: nothing is known of it.
    pub fn forget(&self, namespace: &str) {
        self.certificate_expiry.remove(&NamespaceLabel { namespace: namespace.to_owned() });
        self.of_namespaces.borrow_mut().remove(namespace);
    }

    /// The pods of a namespace.
    pub fn pods(&self, namespace: &str, counts: &BTreeMap<&'static str, i64>) {
        for (state, count) in counts {
            let labels = PodLabels { state, namespace: namespace.to_owned() };
            self.pods.get_or_create(&labels).set(*count);
        }
        self.of(namespace, |of| of.pods.clone_from(counts));
    }

    fn of(&self, namespace: &str, change: impl FnOnce(&mut OfNamespace)) {
        change(self.of_namespaces.borrow_mut().entry(namespace.to_owned()).or_default());
    }

    /// The pods of a namespace that cannot have a sidecar.
    pub fn skipped(&self, namespace: &str, counts: &HashMap<Reason, i64>) {
        self.of(namespace, |of| of.skipped.clone_from(counts));
        let all = self.of_namespaces.borrow();
        for reason in Reason::ALL {
            let sum: i64 = all.values().filter_map(|of| of.skipped.get(&reason)).sum();
            let labels = ReasonLabel { reason: reason.words().name };
            if sum > 0 || self.skipped.get(&labels).is_some() {
                self.skipped.get_or_create(&labels).set(sum);
            }
        }
    }

    /// The certificate of a namespace expires at this second since 1970.
    pub fn certificate(&self, namespace: &str, not_after: i64) {
        self.certificate_expiry
            .get_or_create(&NamespaceLabel { namespace: namespace.to_owned() })
            .set(not_after);
        self.of(namespace, |of| of.not_after = Some(not_after));
    }

    /// The CA that signs expires at this second since 1970.
    pub fn authority(&self, not_after: i64) {
        self.authority_expiry.set(not_after);
    }

    /// A certificate or a CA was written, or could not be.
    pub fn renewed(&self, succeeded: bool) {
        let result = RESULTS[usize::from(!succeeded)];
        self.renewals.get_or_create(&ResultLabel { result }).inc();
    }

    /// How many policies of a namespace are invalid.
    pub fn policies_broken(&self, namespace: &str, count: usize) {
        self.of(namespace, |of| of.broken = count);
        let sum: usize = self.of_namespaces.borrow().values().map(|of| of.broken).sum();
        self.policies_broken.set(i64::try_from(sum).unwrap_or(i64::MAX));
    }
}
