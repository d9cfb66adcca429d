//! The listener's side of TLS: certificate and key, who may call, and replacing both while calls come in.
//!
//! Everything is proved before it is used: a pair that does not parse or does not match never becomes the one
//! that serves. What serves is a [`ServerConfig`] behind an `Arc`; each connection takes the current one when it
//! begins and keeps it, so a replacement concerns new connections and no others.

mod client_ca;
mod handshake;
mod pem;
mod reload;
mod self_signed;
mod validity;

use std::fmt;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};
use tokio::sync::watch;

pub use self::client_ca::ClientCa;
pub use self::handshake::{HandshakeFailure, looks_like_plain_http};
pub use self::pem::Problem;
pub use self::reload::{Error, Errors, Files, Flag, ReloadEvent, Reloader, open, wait};
pub use self::self_signed::{BadName, LIFETIME as SELF_SIGNED_LIFETIME, SelfSigned};
pub use self::validity::{Standing, Utc, Validity, now};

/// Offered to the caller in this order: HTTP/2 carries many callbacks at once.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The cryptography of this program. It is passed explicitly wherever rustls wants one: the process-wide default
/// is whoever's came first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A certificate chain and its key that were proved to go together.
#[derive(Clone)]
pub struct Credentials {
    certified: Arc<CertifiedKey>,
    validity: Validity,
}

/// What is wrong with a pair, by the half that has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The certificate chain.
    #[error("certificate: {0}")]
    Certificate(Problem),
    /// The private key.
    #[error("private key: {0}")]
    Key(Problem),
}

impl Credentials {
    /// Reads a chain (the server's own certificate first) and a key (PKCS#8, PKCS#1 or SEC 1), and checks that
    /// each certificate can be read and that the key is that of the first. Both may stand in one file.
    ///
    /// Whether the certificate is valid at the moment is not checked here: see [`Credentials::validity`].
    ///
    /// # Errors
    ///
    /// When one of the two cannot be used, or not with the other.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PairError> {
        let chain = self::chain(chain).map_err(PairError::Certificate)?;
        let key = signing_key(key).map_err(PairError::Key)?;
        let (line, leaf) = &chain[0];
        let unreadable = PairError::Certificate(Problem::NotACertificate { line: *line });
        let validity = Validity::of_certificate(leaf).ok_or_else(|| unreadable.clone())?;
        let mut certified = CertifiedKey::new(chain.iter().map(|(_, der)| der.clone()).collect(), key);
        match certified.keys_match() {
            // A key that does not tell its public half cannot be compared; those of aws-lc all tell.
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(mismatch(&mut certified));
            }
            Err(_) => return Err(unreadable),
        }
        Ok(Self { certified: Arc::new(certified), validity })
    }

    /// From when until when the server's own certificate is valid. Those of its issuers do not count: chains
    /// that carry an expired root beside a valid path are common, and work.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The server's own certificate and those after it, in their order.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }
}

/// The certificates of a chain file in their order; never empty.
pub(crate) fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    Ok(chain(content)?.into_iter().map(|(_, der)| der).collect())
}

/// The certificates of a chain file, each with its line; never empty.
fn chain(content: &[u8]) -> Result<Vec<(usize, CertificateDer<'static>)>, Problem> {
    let mut chain = Vec::new();
    let mut keys = 0;
    for block in pem::blocks(content)? {
        let line = block.line;
        if block.is_certificate() {
            let der: CertificateDer<'static> = block.parse()?;
            Validity::of_certificate(&der).ok_or(Problem::NotACertificate { line })?;
            chain.push((line, der));
        } else if block.is_key() {
            keys += 1;
        } else if !block.is_curve() {
            return Err(Problem::Unexpected { line, expected: "CERTIFICATE" });
        }
    }
    if chain.is_empty() {
        let found =
            if keys > 0 { "found a private key: are the two files swapped?" } else { "found no PEM block" };
        return Err(Problem::Nothing { expected: "certificate", found: found.to_owned() });
    }
    Ok(chain)
}

/// The one private key of a key file, ready to sign.
fn signing_key(content: &[u8]) -> Result<Arc<dyn SigningKey>, Problem> {
    provider().key_provider.load_private_key(private_key(content)?).map_err(|_| Problem::BadKey)
}

/// Whether a key file holds a key that can be used, with whatever certificate.
fn usable_key(content: &[u8]) -> Result<(), Problem> {
    signing_key(content).map(drop)
}

/// The one private key of a key file.
pub(crate) fn private_key(content: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
    let mut key = None;
    let (mut found, mut certificates) = (0, 0);
    for block in pem::blocks(content)? {
        let line = block.line;
        if block.is_key() {
            if block.is_encrypted() {
                return Err(Problem::Encrypted);
            }
            if !block.is_usable_key() {
                return Err(Problem::BadKey);
            }
            found += 1;
            key = Some(block.parse()?);
        } else if block.is_certificate() {
            certificates += 1;
        } else if !block.is_curve() {
            return Err(Problem::Unexpected { line, expected: "PRIVATE KEY" });
        }
    }
    match key {
        Some(key) if found == 1 => Ok(key),
        Some(_) => Err(Problem::ManyKeys { found }),
        None => {
            let swapped = "found a certificate: are the two files swapped?";
            let found = if certificates > 0 { swapped } else { "found no PEM block" };
            Err(Problem::Nothing { expected: "private key", found: found.to_owned() })
        }
    }
}

/// Looks whether the key is that of a later certificate of the chain, as when the issuer was put first.
fn mismatch(certified: &mut CertifiedKey) -> PairError {
    let key = certified.key.public_key();
    let belongs = |der: &CertificateDer<'_>| {
        ParsedCertificate::try_from(der)
            .is_ok_and(|parsed| key.as_ref() == Some(&parsed.subject_public_key_info()))
    };
    match certified.cert.iter().position(belongs) {
        Some(index) => PairError::Certificate(Problem::Order { position: index + 1 }),
        None => PairError::Key(Problem::Mismatch),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("validity", &self.validity).finish_non_exhaustive()
    }
}

/// The current configuration of a listener. Clones follow the same [`Publisher`].
#[derive(Debug, Clone)]
pub struct Tls {
    current: watch::Receiver<InForce>,
}

/// The other end of a [`Tls`]: what is published here is what the next connection gets.
#[derive(Debug)]
pub struct Publisher {
    current: watch::Sender<InForce>,
}

#[derive(Debug, Clone)]
struct InForce {
    config: Arc<ServerConfig>,
    credentials: Credentials,
    client_ca: Option<ClientCa>,
}

impl Tls {
    /// A configuration that can be replaced, as by who signs short-lived certificates in memory.
    #[must_use]
    pub fn new(credentials: &Credentials, client_ca: Option<&ClientCa>) -> (Publisher, Self) {
        let (sender, receiver) = watch::channel(InForce::new(credentials, client_ca));
        (Publisher { current: sender }, Self { current: receiver })
    }

    /// A configuration that stays as it is.
    #[must_use]
    pub fn fixed(credentials: &Credentials, client_ca: Option<&ClientCa>) -> Self {
        Self::new(credentials, client_ca).1
    }

    /// What a connection that begins now uses, to its end.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.borrow().config)
    }

    /// The same, and whether it asks callers for a certificate.
    #[must_use]
    pub fn in_force(&self) -> (Arc<ServerConfig>, bool) {
        let current = self.current.borrow();
        (Arc::clone(&current.config), current.client_ca.is_some())
    }

    /// The validity of the certificate that serves now.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.current.borrow().credentials.validity
    }
}

impl Publisher {
    /// Puts these in force for every connection that begins from now on.
    pub fn publish(&self, credentials: &Credentials, client_ca: Option<&ClientCa>) {
        self.current.send_replace(InForce::new(credentials, client_ca));
    }

    /// Whether these are what is in force. The chain tells the key too: only the one that belongs to it is taken.
    fn holds(&self, credentials: &Credentials, client_ca: Option<&ClientCa>) -> bool {
        let current = self.current.borrow();
        current.credentials.certified.cert == credentials.certified.cert
            && current.client_ca.as_ref() == client_ca
    }

    fn validity(&self) -> Validity {
        self.current.borrow().credentials.validity
    }
}

impl InForce {
    fn new(credentials: &Credentials, client_ca: Option<&ClientCa>) -> Self {
        let config = Arc::new(server_config(credentials, client_ca));
        Self { config, credentials: credentials.clone(), client_ca: client_ca.cloned() }
    }
}

fn server_config(credentials: &Credentials, client_ca: Option<&ClientCa>) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("aws-lc has cipher suites for both versions");
    let builder = match client_ca {
        Some(authorities) => builder.with_client_cert_verifier(authorities.verifier()),
        None => builder.with_no_client_auth(),
    };
    let resolver = SingleCertAndKey::from(Arc::clone(&credentials.certified));
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    // Nobody resumes: Go's client has no session cache unless it is given one, and OpenIM gives it none. So
    // tickets would be bytes for nothing, and a resumed session would outlive a client CA that was withdrawn.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config
}

#[cfg(test)]
mod tests;
