//! Who may call: those with a certificate that one of these authorities signed.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::pem::{Problem, blocks};
use super::provider;

/// The authorities of a client CA file. A caller without a certificate of theirs does not get past the
/// handshake.
#[derive(Clone)]
pub struct ClientCa {
    verifier: Arc<dyn ClientCertVerifier>,
    authorities: Vec<CertificateDer<'static>>,
}

impl ClientCa {
    /// Reads one or more CA certificates.
    ///
    /// # Errors
    ///
    /// When there is none, or *any* block cannot be used: a list that lost an entry locks out callers who were
    /// let in before.
    pub fn from_pem(content: &[u8]) -> Result<Self, Problem> {
        const EXPECTED: &str = "CERTIFICATE blocks alone";
        let mut roots = RootCertStore::empty();
        let mut authorities = Vec::new();
        for block in blocks(content)? {
            let line = block.line;
            if !block.is_certificate() {
                return Err(Problem::Unexpected { line, expected: EXPECTED });
            }
            let certificate: CertificateDer<'static> = block.parse()?;
            roots.add(certificate.clone()).map_err(|_| Problem::NotACertificate { line })?;
            authorities.push(certificate);
        }
        if roots.is_empty() {
            let found = "found no PEM block at all".to_owned();
            return Err(Problem::Nothing { expected: "CA certificate", found });
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .expect("a verifier with roots and without revocation lists must build");
        Ok(Self { verifier, authorities })
    }

    /// How many authorities there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.authorities.len()
    }

    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }
}

impl PartialEq for ClientCa {
    /// The same authorities in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.authorities == other.authorities
    }
}

impl fmt::Debug for ClientCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCa").field("count", &self.count()).finish_non_exhaustive()
    }
}
