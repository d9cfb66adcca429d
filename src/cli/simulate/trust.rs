//! Whom to trust: as OpenIM does, or as the developer of an app says.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::tls::{self, Standing, Validity};

/// Where Go looks for the authorities of a Linux machine, in its order; the first that is there counts.
const AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those that this machine trusts, as OpenIM does.
    System,
    /// `--ca`: those of a PEM file.
    File(std::path::PathBuf),
    /// `--insecure`: anyone.
    Anyone,
}

/// A TLS client that trusts so; the error names the flag that is wrong.
pub(super) fn connector(trust: &Trust) -> Result<TlsConnector, String> {
    let provider = tls::provider();
    let (roots, own) = match trust {
        Trust::Anyone => (None, Vec::new()),
        Trust::File(path) => given(path).map(|(roots, own)| (Some(roots), own))?,
        Trust::System => (Some(system()?), Vec::new()),
    };
    let signed = roots.map(|roots| {
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .expect("a verifier with roots and without revocation lists must build")
    });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("aws-lc has cipher suites for the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { signed, own, provider }))
        .with_no_client_auth();
    // Go offers these two, in this order.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Every certificate of the file, or none: a list that lost one is noticed much later.
fn given(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let wrong = |why: &dyn std::fmt::Display| format!("--ca: {}: {why}", path.display());
    let text = fs::read(path).map_err(|error| wrong(&error))?;
    let (mut roots, mut certificates) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|_| wrong(&"has a PEM block that cannot be read"))?;
        certificates.push(certificate.clone());
        roots.add(certificate).map_err(|_| wrong(&"has a certificate that is not X.509 of version 3"))?;
    }
    if roots.is_empty() { Err(wrong(&"holds no certificate in PEM")) } else { Ok((roots, certificates)) }
}

/// What this machine trusts; one certificate in it that nobody can read takes nothing from the rest.
fn system() -> Result<RootCertStore, String> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
    let paths = match &named {
        Some(path) => vec![Path::new(path)],
        None => AUTHORITIES.map(Path::new).to_vec(),
    };
    let mut roots = RootCertStore::empty();
    if let Some(text) = paths.iter().find_map(|path| fs::read(path).ok()) {
        let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
        roots.add_parsable_certificates(certificates);
    }
    if roots.is_empty() {
        let place = named.map_or_else(|| AUTHORITIES[0].into(), |path| path.to_string_lossy().into_owned());
        return Err(format!(
            "--ca: this machine names no authority it trusts ({place}): give --ca, or --insecure"
        ));
    }
    Ok(roots)
}

/// What Go accepts: a certificate that a trusted authority signed, or one that is itself among those trusted, as a
/// self-signed one made with `openssl req -x509` is. That one calls itself an authority, which webpki takes for none
/// of a server.
#[derive(Debug)]
struct Verifier {
    /// None for `--insecure`.
    signed: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of `--ca`.
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn itself(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        match Validity::of_certificate(certificate).map(|validity| validity.at(now)) {
            Some(Standing::Valid) => Ok(()),
            Some(Standing::Expired) => Err(CertificateError::Expired.into()),
            Some(Standing::NotYetValid) => Err(CertificateError::NotValidYet.into()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(signed) = &self.signed else { return Ok(ServerCertVerified::assertion()) };
        if self.own.iter().any(|own| own == certificate) {
            return self.itself(certificate, name, now).map(|()| ServerCertVerified::assertion());
        }
        signed.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
