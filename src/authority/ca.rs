//! One CA: its certificate, and for the present and the next one the key.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::X509Certificate;

use super::MAX_CROSSES;
use crate::tls::Validity;

/// The last second that a certificate can name: 9999-12-31T23:59:59Z.
const LAST: i64 = 253_402_300_799;

/// The certificate of a CA whose key may be gone.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct CaCertificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) validity: Validity,
    /// The subject's DER: what certificates signed by this CA have as their issuer.
    pub(super) subject: Vec<u8>,
}

impl CaCertificate {
    /// Reads a certificate and checks that clients accept it as a CA. The errors are all that is wrong, each the end
    /// of a sentence about the certificate.
    ///
    /// rustls ignores the key usages of a root and Go does not, so they are checked here.
    pub(super) fn read(der: CertificateDer<'static>) -> Result<Self, Vec<&'static str>> {
        const UNREADABLE: &str = "cannot be read as an X.509 certificate";
        let Some((validity, x509)) = Validity::of_certificate(&der).zip(parse(&der)) else {
            return Err(vec![UNREADABLE]);
        };
        let (Ok(constraints), Ok(usage), Ok(extended)) =
            (x509.basic_constraints(), x509.key_usage(), x509.extended_key_usage())
        else {
            return Err(vec![UNREADABLE]);
        };
        let mut faults = Vec::new();
        if !constraints.is_some_and(|extension| extension.value.ca) {
            faults.push("is not a CA certificate: its basic constraints do not include CA:TRUE");
        }
        if usage.is_some_and(|extension| !extension.value.key_cert_sign()) {
            faults.push("must not sign certificates: its key usage does not include keyCertSign");
        }
        if extended.is_some_and(|extension| !extension.value.server_auth && !extension.value.any) {
            faults.push("must not sign for servers: its extended key usage does not include serverAuth");
        }
        // An empty one would match every issuer that has no name, and rcgen panics at an empty part.
        if x509.subject().iter().next().is_none()
            || x509.subject().iter().any(|part| part.iter().count() == 0)
        {
            faults.push("has an empty subject");
        }
        let subject = x509.subject().as_raw().to_vec();
        if RootCertStore::empty().add(der.clone()).is_err() {
            faults.push(UNREADABLE);
        }
        if faults.is_empty() { Ok(Self { der, validity, subject }) } else { Err(faults) }
    }

    /// Whether it has not expired at `now`, in seconds since 1970.
    pub(super) fn is_unexpired(&self, now: i64) -> bool {
        now <= self.validity.not_after
    }
}

/// The X.509 certificate in `der`, if there is that and nothing else.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    rest.is_empty().then_some(certificate)
}

/// A CA that can sign.
pub(super) struct Ca {
    pub(super) certificate: CaCertificate,
    key: PrivateKeyDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// A CA that was stored. The caller has proved that the key belongs to the certificate.
    pub(super) fn read(
        certificate: CaCertificate,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, &'static str> {
        let pair = KeyPair::try_from(&key).map_err(|_| "holds a key that cannot sign certificates")?;
        let issuer = Issuer::from_ca_cert_der(&certificate.der, pair)
            .map_err(|_| "has a subject that the certificates signed with it could not name")?;
        Ok(Self { certificate, key, issuer })
    }

    /// A new CA whose certificate is signed by itself.
    pub(super) fn new(validity: Validity) -> Self {
        let (params, key) = fresh(validity);
        let der = params.self_signed(&key).expect("a fresh key must sign").der().clone();
        Self::from_own(der, params, key)
    }

    /// A new CA signed by itself, and its cross certificate: the same signed by this one, valid for `cross`.
    pub(super) fn successor(&self, validity: Validity, cross: Validity) -> (Self, CertificateDer<'static>) {
        let (mut params, key) = fresh(validity);
        let der = params.self_signed(&key).expect("a fresh key must sign").der().clone();
        set_dates(&mut params, cross);
        let cross = params.signed_by(&key, &self.issuer).expect("a CA that was proved must sign");
        (Self::from_own(der, params, key), cross.der().clone())
    }

    fn from_own(der: CertificateDer<'static>, params: CertificateParams, key: KeyPair) -> Self {
        let certificate = CaCertificate::read(der);
        let Ok(certificate) = certificate else { unreachable!("our own CA certificate must be one") };
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Self { certificate, key: der, issuer: Issuer::new(params, key) }
    }

    /// Signs a server certificate with a key of its own.
    ///
    /// # Errors
    ///
    /// When a name is not ASCII.
    pub(super) fn sign(
        &self,
        names: &[String],
        validity: Validity,
    ) -> Result<(CertificateDer<'static>, KeyPair), rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        set_dates(&mut params, validity);
        // Clients look at the alternative names only. A common name has at most 64 bytes, so none of them fits for sure.
        params.distinguished_name.push(DnType::CommonName, "callback-guard");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let der = params.signed_by(&key, &self.issuer)?.der().clone();
        Ok((der, key))
    }

    /// The key as PEM.
    #[expect(clippy::wildcard_enum_match_arm, reason = "an enum of rustls that may grow")]
    pub(super) fn key_pem(&self) -> String {
        let label = match &self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem(label, self.key.secret_der())
    }
}

/// The parameters of a new CA, and its P-256 key.
fn fresh(validity: Validity) -> (CertificateParams, KeyPair) {
    let key = KeyPair::generate().expect("aws-lc must make a P-256 key");
    let mut params = CertificateParams::default();
    set_dates(&mut params, validity);
    // Each CA has a subject of its own: a client finds the issuer of a certificate by the subject.
    let id: String = params.key_identifier(&key).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("callback-guard CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(MAX_CROSSES));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    (params, key)
}

fn set_dates(params: &mut CertificateParams, validity: Validity) {
    // rustls reads no date before 1970.
    let date = |seconds: i64| {
        let since_1970 = u64::try_from(seconds.min(LAST)).unwrap_or(0);
        date_time_ymd(1970, 1, 1) + Duration::from_secs(since_1970)
    };
    (params.not_before, params.not_after) = (date(validity.not_before), date(validity.not_after));
}

/// A PEM block, in lines of 64 characters as RFC 7468 asks for.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
