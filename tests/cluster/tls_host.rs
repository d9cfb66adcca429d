//! A host on the network that is not ours: HTTPS with a certificate of the test's choice, and one answer to everything.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::support::Authority;

/// What OpenIM reads as an allow.
const ALLOW: &str = r#"{"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#;

/// A running host. It stops when it is dropped.
pub(crate) struct TlsHost {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TlsHost {
    /// Serves on a free port of this address, with a certificate that this authority has signed.
    pub(crate) fn start(on: Ipv4Addr, authority: &Authority) -> TlsHost {
        let listener = TcpListener::bind((on, 0)).expect("a free port of the host's end");
        let address = listener.local_addr().expect("bound");
        let tls = Arc::new(server_config(authority, on));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = stream.and_then(|stream| answer(stream, &tls)) {
                    eprintln!("{address}: {error}");
                }
            }
        };
        let thread = thread::Builder::new().name("tls-host".to_owned()).spawn(serve).expect("a thread");
        TlsHost { address, stop, thread: Some(thread) }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Drop for TlsHost {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which then sees it.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The configuration of a server with a certificate for this address.
pub(crate) fn server_config(authority: &Authority, address: Ipv4Addr) -> ServerConfig {
    let mut params = CertificateParams::new(vec![address.to_string()]).expect("an address");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let issued = authority.issue(params);
    let chain = vec![CertificateDer::from_pem_slice(issued.cert.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).expect("PEM");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of the provider")
        .with_no_client_auth()
        .with_single_cert(chain, key);
    config.expect("the key of the certificate")
}

/// Reads one request and answers it.
fn answer(stream: TcpStream, tls: &Arc<ServerConfig>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let connection = ServerConnection::new(Arc::clone(tls)).map_err(std::io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or_default();
        }
        line.clear();
    }
    std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    let mut stream = reader.into_inner();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", ALLOW.len());
    stream.write_all(format!("{head}{ALLOW}").as_bytes())?;
    stream.conn.send_close_notify();
    stream.flush()
}
