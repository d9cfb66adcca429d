//! A client of the API server that sees what kubectl shows: the status, the object and the warnings. One connection, kept
//! between requests, so that a thousand of them take seconds.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use super::cluster::{Cluster, PATIENCE};

/// A client with the administrator's certificate.
pub(crate) struct Client {
    runtime: Runtime,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// What the API server said.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The texts of its warnings.
    pub(crate) warnings: Vec<String>,
    /// The request in the audit log.
    pub(crate) audit_id: String,
    /// The object, or a Status.
    pub(crate) body: Value,
}

impl Reply {
    /// Whether an object was created or changed.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The message of a Status.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

impl Client {
    pub(crate) fn of(cluster: &Cluster) -> Client {
        let pki = cluster.folder().join("pki");
        let read = |name: &str| fs::read(pki.join(name)).expect("the cluster's certificates");
        let certificates = |name: &str| {
            CertificateDer::pem_slice_iter(&read(name)).collect::<Result<Vec<_>, _>>().expect("PEM")
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificates("ca.crt").remove(0)).expect("an authority");
        let key = PrivateKeyDer::from_pem_slice(&read("admin.key")).expect("PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of the provider")
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates("admin.crt"), key)
            .expect("a certificate with its key");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Client {
            runtime: runtime.expect("a runtime"),
            address: SocketAddr::from((cluster.node(), 6443)),
            tls: Arc::new(tls),
            sender: None,
        }
    }

    /// Sends one request. `Err`: there was no answer; nothing is sent again.
    pub(crate) fn try_send(
        &mut self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> Result<Reply, String> {
        let open = self.sender.take().filter(|sender| !sender.is_closed());
        let (address, tls) = (self.address, Arc::clone(&self.tls));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", address.to_string())
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a request");
        let exchange = async {
            let mut sender = match open {
                Some(sender) => sender,
                None => connect(address, tls).await?,
            };
            sender.ready().await.map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            let warnings = head.headers.get_all("warning").iter();
            let warnings =
                warnings.map(|value| warning(&String::from_utf8_lossy(value.as_bytes()))).collect();
            let audit_id = head.headers.get("audit-id").and_then(|value| value.to_str().ok());
            let audit_id = audit_id.unwrap_or_default().to_owned();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            Ok((sender, Reply { status: head.status.as_u16(), warnings, audit_id, body }))
        };
        let done = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await });
        let (sender, reply) = done.unwrap_or_else(|_| Err("no answer in time".to_owned()))?;
        self.sender = Some(sender);
        Ok(reply)
    }

    /// The same with an API server that answers.
    #[track_caller]
    fn send(&mut self, method: &str, path: &str, kind: &str, body: &Value) -> Reply {
        let sent = self.try_send(method, path, kind, &body.to_string());
        sent.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Creates an object; the path is that of its kind: `/api/v1/namespaces/shop/pods`.
    #[track_caller]
    pub(crate) fn create(&mut self, path: &str, object: &Value) -> Reply {
        self.send("POST", path, "application/json", object)
    }

    /// What would come of a pod in this namespace; nothing is stored.
    #[track_caller]
    pub(crate) fn dry_run(&mut self, namespace: &str, pod: &Value) -> Reply {
        self.create(&format!("/api/v1/namespaces/{namespace}/pods?dryRun=All"), pod)
    }

    /// Changes an object by a merge patch.
    #[track_caller]
    pub(crate) fn patch(&mut self, path: &str, patch: &Value) -> Reply {
        self.send("PATCH", path, "application/merge-patch+json", patch)
    }

    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.send("GET", path, "application/json", &Value::Null)
    }
}

async fn connect(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The text of a Warning header, `299 - "TEXT"`, in which quotes and backslashes are escaped (RFC 7234, section 5.5).
fn warning(value: &str) -> String {
    let text = value.splitn(3, ' ').nth(2).unwrap_or(value);
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let mut letters = text.chars();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        plain.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    plain
}
