//! A certificate out of thin air, for a laptop and for the demo.

use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

use super::Credentials;

/// Thirty days: longer than anybody's demo, and short enough that nobody takes it for a real one.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Clocks differ: a caller whose clock is behind ours would find the certificate not yet valid.
const BACKDATED: Duration = Duration::from_secs(3600);

/// The names that every self-signed certificate has.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A self-signed certificate with its key.
#[derive(Debug)]
pub struct SelfSigned {
    /// What the listener uses.
    pub credentials: Credentials,
    /// The certificate as PEM, for a caller that is to trust it (`curl --cacert`).
    pub certificate_pem: String,
}

/// A name that cannot stand in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot stand in a certificate, expected a DNS name or an IP address")]
pub struct BadName {
    /// As it was given.
    pub name: String,
}

impl SelfSigned {
    /// Makes a P-256 key and a certificate for localhost, the two loopback addresses and `names` (DNS names or
    /// IP addresses), valid from `now` (seconds since 1970) for [`LIFETIME`].
    ///
    /// # Errors
    ///
    /// When one of the names is neither a DNS name nor an IP address.
    pub fn new(names: &[String], now: i64) -> Result<Self, BadName> {
        for name in names {
            let plausible = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control());
            if !plausible || CertificateParams::new(vec![name.clone()]).is_err() {
                return Err(BadName { name: name.clone() });
            }
        }
        let mut all: Vec<String> = NAMES.map(str::to_owned).to_vec();
        all.extend(names.iter().filter(|name| !NAMES.contains(&name.as_str())).cloned());
        let mut params =
            CertificateParams::new(all).expect("names that were checked one by one must do together");
        let since_1970 = Duration::from_secs(u64::try_from(now).unwrap_or(0));
        let now = date_time_ymd(1970, 1, 1) + since_1970;
        (params.not_before, params.not_after) = (now - BACKDATED, now + LIFETIME);
        // Not an authority: rustls refuses one as a server's own certificate. It is trusted by being listed.
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::CommonName, "callback-guard self-signed");
        let key = KeyPair::generate().expect("aws-lc must make a P-256 key");
        let certificate_pem = params.self_signed(&key).expect("a fresh key must sign").pem();
        let credentials = Credentials::from_pem(certificate_pem.as_bytes(), key.serialize_pem().as_bytes())
            .expect("a certificate and its own key must match");
        Ok(Self { credentials, certificate_pem })
    }
}
