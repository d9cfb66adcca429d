//! What of a connection's life takes a quarter of an hour at the command line, in milliseconds.

use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

use super::*;
use crate::drain::Drain;
use crate::tls::{self, SelfSigned};

struct Nothing;

impl Handler for Nothing {
    type Admitted = ();

    fn admit(&self, _: &mut request::Parts) -> Option<()> {
        Some(())
    }

    async fn answer<B: Body<Data = Bytes>>(
        self: Rc<Self>,
        _: Request<B>,
        _: SocketAddr,
        (): (),
    ) -> Response<AnswerBody> {
        Response::new(AnswerBody { bytes: Bytes::new(), share: None })
    }
}

/// An idle HTTP/1.1 connection to a server whose connections are past their age at once.
async fn idle_connection(
    idle_timeout: Duration,
    drain: &Drain,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let made = SelfSigned::new(&[], tls::now()).expect("its own names are good");
    let bound = Bound::new("127.0.0.1:0".parse().expect("an address"), 1).expect("loopback");
    let address = bound.address();
    let server = Server {
        handler: Rc::new(Nothing),
        tls: Tls::fixed(&made.credentials, None),
        limits: Limits {
            handshake_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            header_limit: 1 << 10,
            large_field_limit: 0,
            connection_age: Duration::from_millis(1),
            idle_timeout,
        },
        connections: Arc::new(Semaphore::new(8)),
        turns: Rc::default(),
        held: Held::new(1 << 20),
        metrics: Arc::new(Metrics::new(Counter::default())),
        drain: drain.watch(),
    };
    let mut sockets = bound.into_sockets().expect("it listens");
    let socket = sockets.pop().expect("one worker, one socket");
    tokio::task::spawn_local(Rc::new(server).serve(socket));
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(made.certificate_pem.as_bytes()).expect("PEM");
    roots.add(root).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(address).await.expect("it listens");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("a handshake")
}

#[tokio::test]
async fn an_idle_connection_past_its_age_is_closed_after_the_idle_timeout_and_not_before() {
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        let mut long = idle_connection(Duration::from_secs(3600), &drain).await;
        let mut short = idle_connection(Duration::from_millis(50), &drain).await;
        let mut byte = [0];
        let end = timeout(Duration::from_secs(30), short.read(&mut byte)).await;
        assert_eq!(end.expect("50 ms have passed").expect("a clean end"), 0);
        assert!(timeout(Duration::ZERO, long.read(&mut byte)).await.is_err(), "an hour has not passed");
    };
    LocalSet::new().run_until(work).await;
}
