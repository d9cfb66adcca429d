//! What a client makes of a certificate chain.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};

use super::ca::CaCertificate;
use crate::tls::{self, BadName, Standing};

/// Checks that a client with these roots accepts a chain for every name at `now`, in seconds since 1970.
///
/// Go and OpenSSL check the dates of a root and rustls does not, so a root counts only while it is valid.
///
/// # Errors
///
/// Why the client would refuse the chain.
pub(super) fn accepts<'a>(
    roots: impl IntoIterator<Item = &'a CaCertificate>,
    chain: &[CertificateDer<'_>],
    names: &[ServerName<'_>],
    now: i64,
) -> Result<(), Error> {
    let mut store = RootCertStore::empty();
    for root in roots.into_iter().filter(|root| root.validity.at(now) == Standing::Valid) {
        store.add(root.der.clone())?;
    }
    let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), tls::provider());
    // It fails only without roots.
    let verifier = verifier.build().map_err(|_| unknown())?;
    let (leaf, intermediates) = chain.split_first().ok_or_else(unknown)?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    for name in names {
        verifier.verify_server_cert(leaf, intermediates, name, &[], now)?;
    }
    Ok(())
}

/// The names that a client would connect to: for a wildcard, a host below it.
pub(super) fn server_names(names: &[String]) -> Result<Vec<ServerName<'static>>, BadName> {
    let server_name = |name: &String| {
        let host = match name.strip_prefix("*.") {
            Some(domain) => format!("host.{domain}"),
            None => name.clone(),
        };
        ServerName::try_from(host).map_err(|_| BadName { name: name.clone() })
    };
    names.iter().map(server_name).collect()
}
