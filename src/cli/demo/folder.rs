//! The demo's own folder: certificate, key and policy. It is removed when the demo ends.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

/// The names a caller on this machine may use.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A demo that is kept running overnight must still have a valid certificate.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// Names that are taken before another one is tried; only this process makes them.
const ATTEMPTS: u32 = 10;

/// A folder that only this user may read.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder, with a certificate for localhost, its key, and this policy.
    pub(super) fn new(policy: &str) -> Result<Folder, String> {
        let path = made().map_err(|error| format!("no temporary folder can be made: {error}"))?;
        let folder = Folder { path };
        let (certificate, key) = certificate();
        folder.write(&folder.certificate(), &certificate)?;
        folder.write(&folder.key(), &key)?;
        folder.write_policy(policy)?;
        Ok(folder)
    }

    /// The certificate as PEM, which the caller trusts.
    pub(super) fn certificate(&self) -> PathBuf {
        self.path.join("cert.pem")
    }

    /// Its key as PEM.
    pub(super) fn key(&self) -> PathBuf {
        self.path.join("key.pem")
    }

    /// The policy file.
    pub(super) fn policy(&self) -> PathBuf {
        self.path.join("policy.yaml")
    }

    /// Writes the policy file in place, as most editors do.
    pub(super) fn write_policy(&self, text: &str) -> Result<(), String> {
        self.write(&self.policy(), text)
    }

    /// Writes a callback for curl to send, and says where.
    pub(super) fn write_callback(&self, text: &str) -> Result<PathBuf, String> {
        let path = self.path.join("message.json");
        self.write(&path, text)?;
        Ok(path)
    }

    /// Whole or not at all: who looks at the file in between must not find it empty, which is a good policy too.
    fn write(&self, path: &Path, text: &str) -> Result<(), String> {
        let new = path.with_extension("new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
        written.map_err(|error| format!("{} cannot be written: {error}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing can be done about a folder that cannot be removed, and the system clears it away in time.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn made() -> io::Result<PathBuf> {
    let process = std::process::id();
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for attempt in 0..ATTEMPTS {
        let path = std::env::temp_dir().join(format!("callback-guard-demo-{process}-{attempt}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// A certificate and its key as PEM. Both are on disk, where curl finds the one and the guard both.
fn certificate() -> (String, String) {
    let names: Vec<String> = NAMES.map(str::to_owned).to_vec();
    let mut params = CertificateParams::new(names).expect("three constant names must do");
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = date_time_ymd(1970, 1, 1) + since_1970;
    (params.not_before, params.not_after) = (now - Duration::from_secs(3600), now + LIFETIME);
    // Trusted by being listed: an authority's own certificate would be refused as a server's.
    params.is_ca = IsCa::ExplicitNoCa;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.distinguished_name.push(DnType::CommonName, "callback-guard demo");
    let key = KeyPair::generate().expect("aws-lc must make a P-256 key");
    let certificate = params.self_signed(&key).expect("a fresh key must sign");
    (certificate.pem(), key.serialize_pem())
}
