//! The certificate that the proxy serves with: there at the start, or waited for.
//!
//! A pod whose Secret is not there yet can hang in `ContainerCreating` without a word, or run a guard that says what it
//! waits for. `--tls-wait` is for the second.

use std::net::SocketAddr;
use std::path::Path;

use tracing::{info, warn};

use crate::cli::args::{self, TlsSource};
use crate::files::read_bounded;
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::tls::{self, ClientCa, Files, SelfSigned, Tls};

/// What the start found.
pub(super) enum Certificate {
    /// It can serve.
    Ready(Tls, Option<tls::Reloader>),
    /// `--tls-wait`: it cannot yet.
    Awaited {
        /// The files to wait for.
        files: Files,
        /// Why not yet.
        errors: tls::Errors,
    },
}

impl Certificate {
    /// Loads it, or makes it.
    ///
    /// # Errors
    ///
    /// All that is wrong, a line each, each beginning with its flag; never what is waited for.
    pub(super) fn load(config: &args::Proxy) -> Result<Certificate, String> {
        let TlsSource::Files { cert, key } = &config.tls else {
            return self_signed(config.client_ca.as_deref());
        };
        let files = Files { cert: cert.clone(), key: key.clone(), client_ca: config.client_ca.clone() };
        match tls::open(files.clone()) {
            Ok((tls, reloader)) => {
                warn_of(&reloader);
                Ok(Certificate::Ready(tls, Some(reloader)))
            }
            Err(errors) if config.tls_wait => Ok(Certificate::Awaited { files, errors }),
            Err(errors) => Err(errors.to_string()),
        }
    }

    /// Waits until it can serve. Who waits is not ready, and is told why.
    pub(super) async fn ready(
        self,
        readiness: &Readiness,
        metrics: &Metrics,
        admin: SocketAddr,
    ) -> (Tls, Option<tls::Reloader>) {
        let (files, errors) = match self {
            Certificate::Ready(tls, reloader) => return (tls, reloader),
            Certificate::Awaited { files, errors } => (files, errors),
        };
        let latch = readiness.latch("tls");
        let tell = |errors: &tls::Errors| {
            let reason = errors.to_string();
            latch.because(&reason.replace('\n', "; "));
            metrics.certificate_refused();
            warn!(
                reason,
                admin.addr = %admin,
                "Waiting for the certificate (--tls-wait): callers are refused until its files are good"
            );
        };
        tell(&errors);
        let (tls, reloader) = tls::wait(files, errors, tell).await;
        warn_of(&reloader);
        info!("The certificate is there");
        (tls, Some(reloader))
    }
}

fn warn_of(reloader: &tls::Reloader) {
    if let Some(warning) = reloader.warning() {
        warn!(problem = warning, "The certificate is served all the same");
    }
}

fn self_signed(client_ca: Option<&Path>) -> Result<Certificate, String> {
    let client_ca = client_ca.map(load_client_ca).transpose()?;
    let names: Vec<String> =
        std::env::var("HOSTNAME").ok().into_iter().filter(|name| !name.is_empty()).collect();
    let made = SelfSigned::new(&names, tls::now()).or_else(|_| SelfSigned::new(&[], tls::now()));
    let made = made.map_err(|error| format!("--tls-self-signed: {error}"))?;
    warn!("The certificate is self-signed: callers must be told to trust it");
    Ok(Certificate::Ready(Tls::fixed(&made.credentials, client_ca.as_ref()), None))
}

/// Reads the authorities of `--client-ca`; the error names the flag.
pub(in crate::cli) fn load_client_ca(path: &Path) -> Result<ClientCa, String> {
    let bytes = read_bounded(path, 1 << 20).map_err(|error| format!("--client-ca: {error}"))?;
    ClientCa::from_pem(&bytes).map_err(|problem| format!("--client-ca: {}: {problem}", path.display()))
}
