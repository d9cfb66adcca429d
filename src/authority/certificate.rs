//! The certificates of the servers: signing one, and deciding whether a stored one is still good.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::ca::{parse, pem};
use super::client::{accepts, server_names};
use super::{Authority, BACKDATED, Clocks, Lifetimes};
use crate::tls::{BadName, Credentials, PairError, Validity};

/// A server certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    /// The server's certificate, and the cross certificates that lead from its CA to the previous ones.
    pub chain_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
    /// The last second of the certificate, in seconds since 1970.
    pub not_after: i64,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// Why no certificate is signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No client could connect to one of the names.
    #[error(transparent)]
    Name(#[from] BadName),
    /// There is no name.
    #[error("no name to sign a certificate for")]
    NoName,
    /// The CA has expired, or is not valid yet.
    #[error("the CA {fault}")]
    Dates {
        /// As [`Validity::fault`] says it.
        fault: String,
    },
    /// What was signed would have to be replaced at once: the CA should have been replaced, or excludes a name.
    #[error("the CA cannot sign a usable certificate: {0}")]
    Unusable(RenewalReason),
}

/// Whether a stored server certificate can stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateState {
    /// It is what it should be.
    Good {
        /// When it is due for renewal, in seconds since 1970. It can be due earlier for another reason than its age.
        renew_at: i64,
        /// Its last second.
        not_after: i64,
    },
    /// It has to be replaced.
    Due(RenewalReason),
}

/// Why a server certificate is replaced. The texts name no more of what was stored than its dates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenewalReason {
    /// The certificate or the key cannot be used, or not together.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// It has expired, or is not valid yet.
    #[error("the certificate {fault}")]
    Dates {
        /// As [`Validity::fault`] says it.
        fault: String,
    },
    /// Its time is nearly over.
    #[error("less than a third of the certificate lifetime is left")]
    Age,
    /// It is not for the names that it should be for.
    #[error("the certificate is for other names: {missing} missing, {extra} unexpected")]
    Names {
        /// How many names it lacks.
        missing: usize,
        /// How many names it has beyond the expected ones.
        extra: usize,
    },
    /// No CA of the bundle has signed it.
    #[error("the certificate is not signed by a CA of the bundle")]
    Issuer,
    /// After the server's certificate there are other certificates than the cross certificates.
    #[error(
        "the chain has other certificates after the first one than the {expected} cross certificates expected"
    )]
    Chain {
        /// How many cross certificates there should be.
        expected: usize,
    },
    /// A client would refuse it for another reason.
    #[error("a client would refuse the certificate: {0}")]
    Refused(String),
}

impl Authority {
    /// Makes a key and signs a certificate for these names (DNS names, with a leading `*.` or not, and IP addresses).
    /// Call [`Authority::rolled`] first: it decides whether this CA is still the one to sign with.
    ///
    /// The result is proved: [`Authority::judge`] says [`CertificateState::Good`] at the same clocks, so a caller that
    /// signs what is due comes to an end.
    ///
    /// # Errors
    ///
    /// When a name is unusable, or the certificate would be.
    pub fn sign(&self, names: &[String], lifetimes: &Lifetimes, clocks: Clocks) -> Result<Signed, SignError> {
        if names.is_empty() {
            return Err(SignError::NoName);
        }
        server_names(names)?;
        let clocks = self.plausible(clocks);
        let ca = &self.present.certificate;
        if let Some(fault) = fault(ca.validity, clocks) {
            return Err(SignError::Dates { fault });
        }
        // The later clock: one that is behind would shorten the certificate, and have it renewed at every look.
        let not_after =
            clocks.later.saturating_add(lifetimes.certificate_seconds()).min(ca.validity.not_after);
        let not_before = clocks.earlier.saturating_sub(BACKDATED).max(ca.validity.not_before);
        let (leaf, key) = self.present.sign(names, Validity { not_before, not_after }).map_err(|_| {
            // What passed as a host name is ASCII, and nothing else can fail.
            SignError::Name(BadName { name: names.join(", ") })
        })?;
        let crosses = self.crosses(&ca.subject, clocks).unwrap_or_default();
        let chain: Vec<_> = std::iter::once(&leaf).chain(crosses).collect();
        let chain_pem: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let key_pem = key.serialize_pem();
        match self.judge(chain_pem.as_bytes(), key_pem.as_bytes(), names, lifetimes, clocks) {
            CertificateState::Good { .. } => Ok(Signed { chain_pem, key_pem, not_after }),
            CertificateState::Due(reason) => Err(SignError::Unusable(reason)),
        }
    }

    /// Decides whether a stored certificate chain with its key can stay: every client that trusts the bundle accepts it
    /// for each of the names, at either clock and at any time between them, and it is not yet due for renewal. (A clock
    /// that is before the CA was made is wrong, if the other one is not, and does not count.)
    ///
    /// A certificate of a previous CA stays until its own renewal, so that a new CA does not replace all at once.
    #[must_use]
    pub fn judge(
        &self,
        chain: &[u8],
        key: &[u8],
        names: &[String],
        lifetimes: &Lifetimes,
        clocks: Clocks,
    ) -> CertificateState {
        match self.check(chain, key, names, lifetimes, clocks) {
            Ok((renew_at, not_after)) => CertificateState::Good { renew_at, not_after },
            Err(reason) => CertificateState::Due(reason),
        }
    }

    fn check(
        &self,
        chain: &[u8],
        key: &[u8],
        names: &[String],
        lifetimes: &Lifetimes,
        clocks: Clocks,
    ) -> Result<(i64, i64), RenewalReason> {
        let clocks = self.plausible(clocks);
        let pair = Credentials::from_pem(chain, key)?;
        let validity = pair.validity();
        if let Some(fault) = fault(validity, clocks) {
            return Err(RenewalReason::Dates { fault });
        }
        let renew_at = validity.not_after.saturating_sub(lifetimes.certificate_seconds() / 3);
        if clocks.later >= renew_at {
            return Err(RenewalReason::Age);
        }
        let chain = pair.chain();
        let unreadable = || RenewalReason::Refused("it cannot be read as an X.509 certificate".to_owned());
        let leaf = parse(&chain[0]).ok_or_else(unreadable)?;
        check_names(&leaf, names)?;
        let crosses = self.crosses(leaf.issuer().as_raw(), clocks).ok_or(RenewalReason::Issuer)?;
        if !chain[1..].iter().eq(crosses.iter().copied()) {
            return Err(RenewalReason::Chain { expected: crosses.len() });
        }
        let hosts = server_names(names).map_err(|error| RenewalReason::Refused(error.to_string()))?;
        for now in [clocks.earlier, clocks.later] {
            accepts(self.trusted(clocks), chain, &hosts, now)
                .map_err(|error| RenewalReason::Refused(error.to_string()))?;
        }
        Ok((renew_at, validity.not_after))
    }

    /// The clocks, without the earlier one if it is before the CA was made and the later one is not.
    fn plausible(&self, clocks: Clocks) -> Clocks {
        let begin = self.present.certificate.validity.not_before;
        Clocks { earlier: clocks.earlier.max(begin.min(clocks.later)), ..clocks }
    }

    /// The cross certificates that are served after a certificate of the CA with this subject: each leads one CA
    /// further back, as far as CAs have not expired. `None`: there is no such CA.
    fn crosses(&self, subject: &[u8], clocks: Clocks) -> Option<Vec<&CertificateDer<'static>>> {
        let position = self.certificates().position(|ca| ca.subject == subject)?;
        // The cross certificate of each CA by the one before it, in the order of `certificates`.
        let next = self.next.iter().map(|next| (Some(&next.cross), &self.present.certificate));
        let previous = self.previous.iter().map(|previous| (previous.cross.as_ref(), &previous.certificate));
        let crosses = next.chain(previous).skip(position);
        Some(crosses.map_while(|(cross, by)| cross.filter(|_| by.is_unexpired(clocks.earlier))).collect())
    }
}

/// What is wrong with these dates by one of the clocks.
fn fault(validity: Validity, clocks: Clocks) -> Option<String> {
    validity.fault(clocks.earlier).or_else(|| validity.fault(clocks.later))
}

/// Compares the alternative names of a certificate with those that it should have.
fn check_names(leaf: &X509Certificate<'_>, names: &[String]) -> Result<(), RenewalReason> {
    let canonical = |name: &String| match name.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => name.to_ascii_lowercase(),
    };
    let expected: BTreeSet<_> = names.iter().map(canonical).collect();
    let extension = leaf.subject_alternative_name().ok().flatten();
    let general = extension.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let found: BTreeSet<_> = general.iter().map(text).collect();
    let (missing, extra) = (expected.difference(&found).count(), found.difference(&expected).count());
    if missing + extra > 0 { Err(RenewalReason::Names { missing, extra }) } else { Ok(()) }
}

/// An alternative name in the form of the names that are asked for; of another kind, in one that none of them has.
fn text(name: &GeneralName<'_>) -> String {
    if let GeneralName::DNSName(name) = name {
        return name.to_ascii_lowercase();
    }
    if let GeneralName::IPAddress(bytes) = name {
        let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
        if let Ok(address) = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)) {
            return address.to_string();
        }
    }
    format!("{name:?}")
}
