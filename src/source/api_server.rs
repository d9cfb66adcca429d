//! The way to the API server, for kube's client: a connection for each request, over our own TLS.
//!
//! A sidecar asks for one object and then watches it for an hour, so there is nothing to pool. kube's own stack for this
//! (a pool, a connector, the platform's trust store) would be a fifth of the binary.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fs, io};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::client::Body as Asked;
use kube::config::AuthInfo;
use kube::{Client, Config};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::tls;

/// How long connecting may take, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection with nothing on it for so long is dead: the API server sends a bookmark each minute.
const SILENCE: Duration = Duration::from_secs(180);

type Error = Box<dyn std::error::Error + Send + Sync>;
type Answering = Pin<Box<dyn Future<Output = Result<Response<Heard>, Error>> + Send>>;

/// A client for the cluster around this pod, or for the one of the kubeconfig.
///
/// # Errors
///
/// What was tried and why it did not work, in a sentence.
pub(super) async fn client() -> Result<Client, String> {
    let config = Config::infer().await.map_err(|error| {
        format!("neither the service account of a pod nor a kubeconfig can be used: {error}")
    })?;
    let namespace = config.default_namespace.clone();
    Ok(Client::new(ApiServer { server: Arc::new(Server::new(config)?) }, namespace))
}

/// Where it is, and how to be believed there.
struct Server {
    url: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    auth: AuthInfo,
}

impl Server {
    fn new(config: Config) -> Result<Server, String> {
        let url = config.cluster_url;
        let host = url.host().ok_or_else(|| format!("{url} names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = url.scheme_str() != Some("http");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            let name = config.tls_server_name.unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).map_err(|error| format!("{url}: {error}"))?;
            let roots = config.root_cert.unwrap_or_default();
            Some((TlsConnector::from(Arc::new(trust(roots, &config.auth_info)?)), name))
        } else {
            None
        };
        Ok(Server { url, host, port, tls, auth: config.auth_info })
    }

    /// The token is read anew each time: the kubelet renews it within its hour.
    fn authorization(&self) -> Result<Option<HeaderValue>, Error> {
        let token = match (&self.auth.token, &self.auth.token_file) {
            (Some(token), _) => token.expose_secret().to_owned(),
            (None, Some(file)) => {
                fs::read_to_string(file).map_err(|error| format!("token file {file}: {error}"))?
            }
            (None, None) => return Ok(None),
        };
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn trust(roots: Vec<Vec<u8>>, auth: &AuthInfo) -> Result<ClientConfig, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.into())
            .map_err(|error| format!("the API server's authority cannot be used: {error}"))?;
    }
    if store.is_empty() {
        return Err(
            "no authority to know the API server by (ca.crt of the service account, or the kubeconfig's)"
                .to_owned(),
        );
    }
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store);
    let data = |data: &Option<String>, file: &Option<String>| match (data, file) {
        (Some(data), _) => BASE64_STANDARD.decode(data).map(Some).map_err(|error| error.to_string()),
        (None, Some(file)) => fs::read(file).map(Some).map_err(|error| format!("{file}: {error}")),
        (None, None) => Ok(None),
    };
    let certificate = data(&auth.client_certificate_data, &auth.client_certificate)?;
    let key = auth.client_key_data.as_ref().map(|key| key.expose_secret().to_owned());
    let (Some(certificate), Some(key)) = (certificate, data(&key, &auth.client_key)?) else {
        return Ok(builder.with_no_client_auth());
    };
    let wrong = |error: &dyn std::fmt::Display| {
        format!("the kubeconfig's client certificate cannot be used: {error}")
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong(&error))?;
    builder.with_client_auth_cert(chain.map_err(|error| wrong(&error))?, key).map_err(|error| wrong(&error))
}

/// The service that kube's client sends its requests through.
struct ApiServer {
    server: Arc<Server>,
}

impl tower_service::Service<Request<Asked>> for ApiServer {
    type Response = Response<Heard>;
    type Error = Error;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Asked>) -> Answering {
        let server = Arc::clone(&self.server);
        Box::pin(async move { ask(&server, request).await })
    }
}

async fn ask(server: &Server, mut request: Request<Asked>) -> Result<Response<Heard>, Error> {
    let authority = server.url.authority().map_or("", |authority| authority.as_str());
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(authority)?);
    if let Some(authorization) = server.authorization()? {
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
    }
    // A cluster may be behind a path; what kube asks for begins with /api.
    let base = server.url.path().trim_end_matches('/');
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    *request.uri_mut() = format!("{base}{target}").parse()?;
    let connected = timeout(CONNECT, async {
        let tcp = TcpStream::connect((server.host.as_str(), server.port)).await?;
        match &server.tls {
            None => handshake(tcp).await,
            Some((connector, name)) => handshake(connector.connect(name.clone(), tcp).await?).await,
        }
    });
    let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection in time");
    let mut sender = connected.await.map_err(|_| late())??;
    let answer = timeout(SILENCE, sender.send_request(request)).await.map_err(|_| late())??;
    // The sender goes along: its connection ends when nobody can ask any more.
    Ok(answer.map(|body| Heard { body, silence: Box::pin(sleep(SILENCE)), _sender: sender }))
}

async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Asked>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // How it ended is told by the body, or by the request that is under way.
        let _ = connection.await;
    });
    Ok(sender)
}

/// An answer's body that ends with an error when nothing comes for too long.
struct Heard {
    body: Incoming,
    silence: Pin<Box<Sleep>>,
    _sender: http1::SendRequest<Asked>,
}

impl Body for Heard {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        this.silence.as_mut().poll(cx).map(|()| {
            let text = "the watch is dead: not even a bookmark for three minutes";
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, text).into()))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
