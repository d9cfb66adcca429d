//! The authority as the data of a Secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::ca::{Ca, CaCertificate, pem};
use super::client::{accepts, server_names};
use super::{Authority, Next, Previous};
use crate::tls::{self, Credentials, PairError, Problem, Validity};

/// The present CA, under the names of a Secret of type `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// The next CA as signed by the present one.
const NEXT_CROSS: &str = "next-cross.crt";
/// The CAs before the present one that have not expired, the newest first.
const PREVIOUS: &str = "previous.crt";
/// The present CA as signed by the first of `previous.crt`, that one as signed by the second, and so on.
const CROSS: &str = "cross.crt";

/// A name to sign a certificate for that nobody gets.
const PROBE: &str = "probe.callback-guard.svc";

impl Authority {
    /// Reads what [`Authority::to_data`] wrote, or what an operator put there: `tls.crt` and `tls.key` are enough, and
    /// other keys than those of [`Authority::to_data`] are ignored.
    ///
    /// It is proved that clients accept what the CAs sign, and that each cross certificate leads to the CA before.
    /// Whether the CAs are valid at the moment is not checked: see [`Authority::rolled`].
    ///
    /// # Errors
    ///
    /// Every problem at once. Each text begins with the key of the Secret that has to change, and repeats nothing of
    /// what was stored.
    pub fn from_data(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, Vec<String>> {
        let mut reader = Reader { data, problems: Vec::new() };
        let present = reader.ca(CERTIFICATE, KEY);
        let next = reader.next(present.as_ref());
        let previous = reader.previous(present.as_ref());
        match (present, reader.problems.is_empty()) {
            (Some(present), true) => Ok(Self { present: Arc::new(present), next, previous }),
            (_, _) => Err(reader.problems),
        }
    }

    /// The data of the Secret, without those keys that there is nothing for.
    #[must_use]
    pub fn to_data(&self) -> BTreeMap<&'static str, String> {
        let certificate = |der: &CertificateDer<'_>| pem("CERTIFICATE", der);
        let mut data = BTreeMap::from([
            (CERTIFICATE, certificate(&self.present.certificate.der)),
            (KEY, self.present.key_pem()),
        ]);
        if let Some(next) = &self.next {
            data.insert(NEXT_CERTIFICATE, certificate(&next.ca.certificate.der));
            data.insert(NEXT_KEY, next.ca.key_pem());
            data.insert(NEXT_CROSS, certificate(&next.cross));
        }
        let previous = self.previous.iter().map(|previous| certificate(&previous.certificate.der));
        data.insert(PREVIOUS, previous.collect());
        let crosses = self.previous.iter().map_while(|previous| previous.cross.as_ref());
        data.insert(CROSS, crosses.map(certificate).collect());
        data.retain(|_, text| !text.is_empty());
        data
    }
}

struct Reader<'a> {
    data: &'a BTreeMap<String, Vec<u8>>,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// Notes a problem of the text under a key.
    fn note(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.problems.push(format!("{key}: {problem}"));
    }

    fn value(&mut self, key: &str) -> Option<&[u8]> {
        if !self.data.contains_key(key) {
            self.note(key, "is missing");
        }
        self.data.get(key).map(Vec::as_slice)
    }

    fn parsed<T>(&mut self, key: &str, parse: impl FnOnce(&[u8]) -> Result<T, Problem>) -> Option<T> {
        let parsed = parse(self.value(key)?);
        parsed.map_err(|problem| self.note(key, problem)).ok()
    }

    /// The one certificate under a key.
    fn certificate(&mut self, key: &str) -> Option<CertificateDer<'static>> {
        let mut certificates = self.parsed(key, tls::certificates)?;
        if certificates.len() > 1 {
            self.note(key, format_args!("holds {} certificates, expected one", certificates.len()));
            return None;
        }
        certificates.pop()
    }

    fn ca_certificate(&mut self, key: &str) -> Option<CaCertificate> {
        let read = CaCertificate::read(self.certificate(key)?);
        read.map_err(|faults| faults.iter().for_each(|fault| self.note(key, fault))).ok()
    }

    /// A CA with its key, proved to sign what a client accepts.
    fn ca(&mut self, certificate_key: &str, key_key: &str) -> Option<Ca> {
        let certificate = self.ca_certificate(certificate_key);
        let key = self.parsed(key_key, tls::private_key);
        let (certificate, key) = certificate.zip(key)?;
        if let Err(error) = self.pair(certificate_key, key_key) {
            match error {
                PairError::Certificate(problem) => self.note(certificate_key, problem),
                PairError::Key(problem) => self.note(key_key, problem),
            }
            return None;
        }
        let ca = Ca::read(certificate, key).map_err(|fault| self.note(certificate_key, fault)).ok()?;
        if let Err(error) = prove(&ca, &[], &ca.certificate) {
            self.note(certificate_key, format_args!("a client would refuse what it signs ({error})"));
            return None;
        }
        Some(ca)
    }

    fn pair(&self, certificate: &str, key: &str) -> Result<Credentials, PairError> {
        Credentials::from_pem(&self.data[certificate], &self.data[key])
    }

    /// The next CA. It may be missing as a whole, as in a Secret that an operator wrote.
    fn next(&mut self, present: Option<&Ca>) -> Option<Next> {
        let keys = [NEXT_CERTIFICATE, NEXT_KEY, NEXT_CROSS];
        if !keys.iter().any(|key| self.data.contains_key(*key)) {
            return None;
        }
        let ca = self.ca(NEXT_CERTIFICATE, NEXT_KEY);
        let cross = self.certificate(NEXT_CROSS);
        let (ca, cross) = ca.zip(cross)?;
        if let Err(error) = prove(&ca, std::slice::from_ref(&cross), &present?.certificate) {
            self.note(
                NEXT_CROSS,
                format_args!(
                    "is not the CA of {NEXT_CERTIFICATE} signed by that of {CERTIFICATE}, or a client would refuse \
                     it ({error}); remove {}, and a new next CA is made",
                    keys.join(", ")
                ),
            );
            return None;
        }
        Some(Next { ca: Arc::new(ca), cross })
    }

    /// The CAs before the present one, with the cross certificates by which what it signs leads to each of them.
    fn previous(&mut self, present: Option<&Ca>) -> Vec<Previous> {
        let mut optional = |key: &str| {
            let is_there = self.data.contains_key(key);
            is_there.then(|| self.parsed(key, tls::certificates)).flatten().unwrap_or_default()
        };
        let (certificates, crosses) = (optional(PREVIOUS), optional(CROSS));
        let mut previous = Vec::new();
        for (number, der) in (1..).zip(certificates) {
            let cross = crosses.get(number - 1).cloned();
            match CaCertificate::read(der) {
                Ok(certificate) => previous.push((number, Previous { certificate, cross })),
                Err(faults) => faults
                    .iter()
                    .for_each(|fault| self.note(PREVIOUS, format_args!("certificate {number} {fault}"))),
            }
        }
        let known = previous.iter().take_while(|(_, previous)| previous.cross.is_some());
        for (number, Previous { certificate, .. }) in known {
            let proof = present.map(|present| prove(present, &crosses[..*number], certificate));
            if let Some(Err(error)) = proof {
                let what = format_args!(
                    "certificate {number} does not lead to certificate {number} of {PREVIOUS}, or a client would \
                     refuse it ({error})"
                );
                self.note(CROSS, what);
                break;
            }
        }
        if crosses.len() > previous.len() {
            let what =
                format!("{} certificates, more than the {} of {PREVIOUS}", crosses.len(), previous.len());
            self.note(CROSS, format_args!("holds {what}"));
        }
        previous.into_iter().map(|(_, previous)| previous).collect()
    }
}

/// Signs a certificate, and checks that a client that trusts only `root` accepts it with these cross certificates, at a
/// time at which all of them should be valid.
fn prove(ca: &Ca, crosses: &[CertificateDer<'static>], root: &CaCertificate) -> Result<(), String> {
    let names = [PROBE.to_owned()];
    let (leaf, _) = ca.sign(&names, ca.certificate.validity).map_err(|error| error.to_string())?;
    let chain: Vec<_> = std::iter::once(leaf).chain(crosses.iter().cloned()).collect();
    let validities = chain.iter().filter_map(|der| Validity::of_certificate(der)).chain([root.validity]);
    let now = validities.map(|validity| validity.not_before).max().unwrap_or_default();
    let hosts = server_names(&names).map_err(|error| error.to_string())?;
    accepts([root], &chain, &hosts, now).map_err(|error| error.to_string())
}
