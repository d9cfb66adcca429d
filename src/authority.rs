//! The certificate authority of the sidecars: what it signs, and when it is replaced.
//!
//! `controller` stores it in one Secret. Nothing is read or written here, and time is an argument.
//!
//! A client such as OpenIM reads the CA bundle once, when it starts, and may run for years. So the next CA is in the
//! bundle as soon as the present one signs. Each CA has two certificates: one signed by itself, which is in the bundle,
//! and the cross certificate, signed by the CA before it. The cross certificate is served together with what the CA signs
//! until the CA before it has expired:
//!
//! ```text
//! CA 1   |======== signs ========|-- expires
//! CA 2   |- - - - published - - -|======== signs ========|-- expires
//! CA 3                           |- - - - published - - -|======== signs ========|--
//!        a client loads                                  a certificate of CA 3 is served with
//!        CA 1 and CA 2                                   CA 3 signed by CA 2: the client accepts it
//! ```
//!
//! So a client survives two replacements without a restart. It needs one only when the CA expires that was the next one
//! when it started.

mod ca;
mod certificate;
mod client;
mod secret;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use self::ca::{Ca, CaCertificate, pem};
pub use self::certificate::{CertificateState, RenewalReason, SignError, Signed};
use crate::tls::Validity;

/// Certificates begin that long before they are signed, in seconds. The clock of a machine may be wrong by a day: what
/// it signs while ahead must not be invalid for everyone else until their clocks get there.
const BACKDATED: i64 = 48 * 3600;

/// Most cross certificates in a chain, and most previous CAs that are kept. One is usual. A second is needed if longer
/// certificate lifetimes replace two CAs at once, or if the two clocks differ by the lifetime of a CA.
const MAX_CROSSES: u8 = 4;

/// Shortest lifetime of a CA, in seconds: a third of half of it is one second.
const SHORTEST: i64 = 6;

/// Longest lifetime of a CA, a thousand years in seconds: the dates of certificates end with the year 9999.
const LONGEST: i64 = 1000 * 365 * 24 * 3600;

/// How long certificates are valid from when they are signed. (They are also valid for some time before.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a CA; six seconds at least, and a thousand years at most.
    pub authority: Duration,
    /// Of a server's certificate; three seconds at least, and half of `authority` at most. Renewed when a third is left.
    pub certificate: Duration,
}

impl Lifetimes {
    fn authority_seconds(&self) -> i64 {
        seconds(self.authority).clamp(SHORTEST, LONGEST)
    }

    fn certificate_seconds(&self) -> i64 {
        seconds(self.certificate).min(self.authority_seconds() / 2).max(SHORTEST / 2)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// Two readings of the present time, in seconds since 1970: of this machine's clock and of the API server's. While the
/// right time is one of them, or between them, clients whose clocks are right accept what is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Decides from when a certificate is valid, and whether an old one is still needed.
    pub earlier: i64,
    /// Decides when something is due, and until when a certificate is valid.
    pub later: i64,
}

impl Clocks {
    /// From the two readings in any order.
    #[must_use]
    pub fn new(one: i64, other: i64) -> Self {
        Self { earlier: one.min(other), later: one.max(other) }
    }
}

/// The CA that signs, the one that will follow it, and those before it that have not expired.
#[derive(Clone)]
pub struct Authority {
    present: Arc<Ca>,
    /// Missing only if the present CA was brought by an operator; the first [`Authority::rolled`] makes one.
    next: Option<Next>,
    /// The newest first.
    previous: Vec<Previous>,
}

#[derive(Clone)]
struct Next {
    ca: Arc<Ca>,
    /// The next CA as signed by the present one.
    cross: CertificateDer<'static>,
}

/// A CA that no longer signs.
#[derive(Clone)]
struct Previous {
    certificate: CaCertificate,
    /// The CA after it, as signed by this one. Once one of them has none, those before it have none.
    cross: Option<CertificateDer<'static>>,
}

impl Authority {
    /// A new authority, valid for the lifetime of a CA from the later clock on.
    #[must_use]
    pub fn new(lifetimes: &Lifetimes, clocks: Clocks) -> Self {
        let present = Ca::new(Validity {
            not_before: clocks.earlier.saturating_sub(BACKDATED),
            not_after: clocks.later.saturating_add(lifetimes.authority_seconds()),
        });
        let next = Some(Next::after(&present, lifetimes, clocks));
        Self { present: Arc::new(present), next, previous: Vec::new() }
    }

    /// The authority that should be in force now, if that is another one; `None` if nothing is due.
    ///
    /// The next CA takes over as soon as a certificate signed now would outlive the present one. After a long absence the
    /// next one may be as old; then a new one takes over, and what it signs still leads to those before it.
    #[must_use]
    pub fn rolled(&self, lifetimes: &Lifetimes, clocks: Clocks) -> Option<Self> {
        let mut rolled = self.clone();
        rolled.drop_expired(clocks, false);
        let mut changed = rolled.previous.len() < self.previous.len();
        if rolled.next.is_none() {
            rolled.next = Some(Next::after(&rolled.present, lifetimes, clocks));
            changed = true;
        }
        // The second one is made now, so it is always enough.
        for _ in 0..2 {
            if rolled.not_after().saturating_sub(clocks.later) >= lifetimes.certificate_seconds() {
                break;
            }
            rolled.replace_present(lifetimes, clocks);
            changed = true;
        }
        changed.then_some(rolled)
    }

    fn replace_present(&mut self, lifetimes: &Lifetimes, clocks: Clocks) {
        let next = self.next.take().unwrap_or_else(|| Next::after(&self.present, lifetimes, clocks));
        let present = std::mem::replace(&mut self.present, next.ca);
        let certificate = present.certificate.clone();
        if certificate.is_unexpired(clocks.earlier) {
            self.previous.insert(0, Previous { certificate, cross: Some(next.cross) });
            self.previous.truncate(usize::from(MAX_CROSSES));
        } else {
            self.drop_expired(clocks, true);
        }
        self.next = Some(Next::after(&self.present, lifetimes, clocks));
    }

    /// Drops the previous CAs that have expired. Their cross certificates go with them, and so do those of the CAs
    /// before an expired one: they lead to it. `broken`: the present CA cannot be reached from the previous ones.
    fn drop_expired(&mut self, clocks: Clocks, mut broken: bool) {
        self.previous.retain_mut(|previous| {
            let stays = previous.certificate.is_unexpired(clocks.earlier);
            broken |= !stays;
            if broken {
                previous.cross = None;
            }
            stays
        });
    }

    /// PEM of the CA certificates that clients must trust: the next one, the present one, and the previous ones that have
    /// not expired.
    #[must_use]
    pub fn bundle(&self, clocks: Clocks) -> String {
        self.trusted(clocks).map(|ca| pem("CERTIFICATE", &ca.der)).collect()
    }

    /// The last second of the CA that signs now, in seconds since 1970. It is replaced earlier.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.present.certificate.validity.not_after
    }

    /// Every CA, from the next one back to the oldest.
    fn certificates(&self) -> impl Iterator<Item = &CaCertificate> {
        let next = self.next.iter().map(|next| &next.ca.certificate);
        let previous = self.previous.iter().map(|previous| &previous.certificate);
        next.chain([&self.present.certificate]).chain(previous)
    }

    /// Every CA of the bundle.
    fn trusted(&self, clocks: Clocks) -> impl Iterator<Item = &CaCertificate> {
        self.certificates().filter(move |ca| ca.is_unexpired(clocks.earlier))
    }
}

impl Next {
    /// Made when `present` begins to sign. It lasts a lifetime longer, so that a client that loads both and never
    /// restarts has the whole time in which this one signs, and the rest until it expires.
    fn after(present: &Ca, lifetimes: &Lifetimes, clocks: Clocks) -> Self {
        let not_before = clocks.earlier.saturating_sub(BACKDATED);
        let not_after = present.certificate.validity.not_after;
        let cross = Validity { not_before, not_after };
        let not_after = not_after.max(clocks.later).saturating_add(lifetimes.authority_seconds());
        let (ca, cross) = present.successor(Validity { not_before, not_after }, cross);
        Self { ca: Arc::new(ca), cross }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let previous = self.previous.len();
        f.debug_struct("Authority")
            .field("not_after", &self.not_after())
            .field("previous", &previous)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
