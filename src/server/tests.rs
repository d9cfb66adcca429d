//! What of a connection's life takes minutes at the command line, in milliseconds.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::*;
use crate::drain::Drain;
use crate::held::Held;
use crate::tls::{self, SelfSigned, Tls};

/// Answers each request with so many bytes, once its body is read.
struct Sized(usize);

impl Handler for Sized {
    type Admitted = ();

    fn admit(&self, _: &mut request::Parts, _: &Arc<Account>) -> Option<()> {
        Some(())
    }

    async fn answer<B: CallerBody>(
        self: Rc<Self>,
        _: &mut request::Parts,
        mut body: Pin<&mut B>,
        _: SocketAddr,
        (): &mut (),
    ) -> Response<AnswerBody> {
        while let Some(Ok(_)) = body.frame().await {}
        Response::new(AnswerBody { bytes: vec![0; self.0].into(), share: None })
    }
}

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// An HTTP/1.1 connection to a server with these limits, whose answers have so many bytes.
async fn connection(limits: Limits, answer_bytes: usize, drain: &Drain) -> Stream {
    let made = SelfSigned::new(&[], tls::now()).expect("its own names are good");
    let bound = Bound::new("127.0.0.1:0".parse().expect("an address")).expect("loopback");
    let address = bound.address();
    let metrics = Arc::new(Metrics::new(Counter::default()));
    let (worker, inbox) = worker();
    let acceptor = Acceptor {
        tls: Tls::fixed(&made.credentials, None),
        limits: limits.clone(),
        max_connections: 8,
        pressure: Pressure::default(),
        metrics: Arc::clone(&metrics),
        drain: drain.watch(),
        workers: Workers::new(vec![worker]),
    };
    let server = Server {
        handler: Rc::new(Sized(answer_bytes)),
        limits,
        turns: Rc::default(),
        accounts: Accounts::new(Held::new(1 << 20), 8),
        metrics,
        drain: drain.watch(),
    };
    let turns = Rc::clone(&server.turns);
    tokio::task::spawn_local(async move { turns.keep().await });
    tokio::task::spawn_local(Rc::new(server).serve(inbox));
    tokio::task::spawn_local(Rc::new(acceptor).run(bound.into_listener().expect("it listens")));
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

fn limits(connection_age: Duration, idle_timeout: Duration, answer_timeout: Duration) -> Limits {
    let (handshake_timeout, header_timeout) = (Duration::from_secs(30), Duration::from_secs(30));
    let (header_limit, large_field_limit) = (1 << 10, 0);
    Limits {
        handshake_timeout,
        header_timeout,
        header_limit,
        large_field_limit,
        connection_age,
        idle_timeout,
        answer_timeout,
        first_request_timeout: HOUR,
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// Whether the server ends this connection within a while; what it sent before is taken.
async fn ends(stream: &mut Stream, within: Duration) -> bool {
    let all = async { while !matches!(stream.read(&mut [0; 1024]).await, Ok(0) | Err(_)) {} };
    timeout(within, all).await.is_ok()
}

#[tokio::test]
async fn an_answer_that_is_not_taken_in_time_ends_its_connection_a_byte_now_and_then_or_not() {
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        let impatient = limits(HOUR, HOUR, Duration::from_millis(300));
        // More than both kernels hold.
        let mut slow = connection(impatient.clone(), 64 << 20, &drain).await;
        let mut quick = connection(impatient.clone(), 64 << 10, &drain).await;
        let mut patient = connection(limits(HOUR, HOUR, HOUR), 64 << 20, &drain).await;
        for stream in [&mut slow, &mut quick, &mut patient] {
            stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
        }
        let mut taken = 0;
        let drip = async {
            loop {
                sleep(Duration::from_millis(20)).await;
                match slow.read(&mut [0; 64]).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => taken += count,
                }
            }
        };
        // What both kernels hold is still to be had, a little at a time: so the end itself is looked for.
        let _ = timeout(Duration::from_secs(2), drip).await;
        assert!(ends(&mut slow, Duration::from_secs(30)).await, "it was not taken");
        assert!(!ends(&mut quick, Duration::from_millis(600)).await, "it was taken");
        assert!(!ends(&mut patient, Duration::from_millis(10)).await, "an hour has not passed");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_idle_connection_past_its_age_is_closed_after_the_idle_timeout_and_not_before() {
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        let past_its_age = Limits { connection_age: Duration::from_millis(1), ..limits(HOUR, HOUR, HOUR) };
        let mut long = connection(past_its_age.clone(), 0, &drain).await;
        let short = Limits { idle_timeout: Duration::from_millis(50), ..past_its_age };
        let mut short = connection(short, 0, &drain).await;
        let mut byte = [0];
        let end = timeout(Duration::from_secs(30), short.read(&mut byte)).await;
        assert_eq!(end.expect("50 ms have passed").expect("a clean end"), 0);
        assert!(timeout(Duration::ZERO, long.read(&mut byte)).await.is_err(), "an hour has not passed");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_its_time_and_not_before() {
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        let patient = limits(HOUR, HOUR, HOUR);
        let mut long = connection(patient.clone(), 0, &drain).await;
        let short = Limits { first_request_timeout: Duration::from_millis(50), ..patient };
        let mut short = connection(short, 0, &drain).await;
        let mut byte = [0];
        let end = timeout(Duration::from_secs(30), short.read(&mut byte)).await;
        assert_eq!(end.expect("50 ms have passed").expect("a clean end"), 0);
        assert!(timeout(Duration::ZERO, long.read(&mut byte)).await.is_err(), "an hour has not passed");
    };
    LocalSet::new().run_until(work).await;
}

/// Notes whose requests it answers.
#[derive(Default)]
struct Noting(std::cell::RefCell<Vec<SocketAddr>>);

impl Handler for Noting {
    type Admitted = ();

    fn admit(&self, _: &mut request::Parts, _: &Arc<Account>) -> Option<()> {
        Some(())
    }

    async fn answer<B: CallerBody>(
        self: Rc<Self>,
        _: &mut request::Parts,
        _: Pin<&mut B>,
        peer: SocketAddr,
        (): &mut (),
    ) -> Response<AnswerBody> {
        self.0.borrow_mut().push(peer);
        Response::new(AnswerBody { bytes: Bytes::from_static(b"{}"), share: None })
    }
}

#[tokio::test]
async fn between_two_answers_of_a_caller_only_some_of_400_streams_of_another_have_their_turn() {
    const STREAMS_AT_ONCE: usize = 400;
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        let (handler, turns) = (Rc::<Noting>::default(), Rc::<Turns>::default());
        let server = Rc::new(Server {
            handler: Rc::clone(&handler),
            limits: limits(HOUR, HOUR, HOUR),
            turns: Rc::clone(&turns),
            accounts: Accounts::new(Held::new(1 << 20), 8),
            metrics: Arc::new(Metrics::new(Counter::default())),
            drain: drain.watch(),
        });
        tokio::task::spawn_local(async move { turns.keep().await });
        let [many, one] = [1, 2].map(|host| SocketAddr::from(([127, 0, 0, host], 1)));
        let (mut streams, served) = tokio::io::duplex(1 << 20);
        tokio::task::spawn_local(Rc::clone(&server).speak_alone(served, true, many));
        let (mut calls, served) = tokio::io::duplex(1 << 20);
        tokio::task::spawn_local(Rc::clone(&server).speak_alone(served, false, one));
        // POST, https, `/`: heads of three bytes, each with the end of its stream.
        let head = |number: u32| {
            [&[0, 0, 3, 1, 5][..], &(2 * number + 1).to_be_bytes(), &[0x83, 0x87, 0x84]].concat()
        };
        let heads = (0..STREAMS_AT_ONCE as u32).flat_map(head);
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        streams.write_all(&preface.iter().copied().chain(heads).collect::<Vec<_>>()).await.expect("room");
        let mut most = 0;
        let mut before = 0;
        while before < STREAMS_AT_ONCE {
            calls.write_all(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("room");
            let mut answer = [0; 1024];
            assert!(calls.read(&mut answer).await.expect("an answer") > 0);
            let now = handler.0.borrow().iter().filter(|peer| **peer == many).count();
            most = most.max(now - before);
            before = now;
        }
        assert!(most <= 64, "{most} streams had their turn between two answers");
    };
    timeout(Duration::from_secs(30), LocalSet::new().run_until(work)).await.expect("all are answered");
}

/// A stream below which something waits for the kernel, or not.
struct Stuck {
    stream: tokio::io::DuplexStream,
    stuck: bool,
}

impl Transport for Stuck {
    fn wire(&mut self) -> Option<&mut records::Wire> {
        None
    }

    fn has_unsent(&self) -> bool {
        self.stuck
    }

    fn sent(&self) -> (u64, u64) {
        (0, 1)
    }
}

impl AsyncRead for Stuck {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stuck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stuck { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn server(answer_bytes: usize, limits: Limits, drain: &Drain) -> Rc<Server<Sized>> {
    let turns = Rc::<Turns>::default();
    let kept = Rc::clone(&turns);
    tokio::task::spawn_local(async move { kept.keep().await });
    Rc::new(Server {
        handler: Rc::new(Sized(answer_bytes)),
        limits,
        turns,
        accounts: Accounts::new(Held::new(1 << 20), 8),
        metrics: Arc::new(Metrics::new(Counter::default())),
        drain: drain.watch(),
    })
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_with_tls_and_not_with_the_kernel_is_not_taken() {
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        for (stuck, bytes, h2) in
            [(true, 100, false), (true, 0, false), (true, 100, true), (false, 100, false), (false, 100, true)]
        {
            let server = server(bytes, limits(HOUR, HOUR, Duration::from_secs(20)), &drain);
            let (mut caller, stream) = tokio::io::duplex(1 << 16);
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let connections = Connections::new(HOUR);
            let registered = connections.register(Instant::now(), None);
            let account = server.accounts.open(Identity::of(peer.ip(), None));
            let serving = server.speak(Stuck { stream, stuck }, h2, (peer, account), &registered);
            let request: &[u8] = if h2 {
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x03\x01\x05\0\0\0\x01\x83\x87\x84"
            } else {
                b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"
            };
            caller.write_all(request).await.expect("room");
            let begun = tokio::time::Instant::now();
            let ended = timeout(Duration::from_secs(30), serving).await.is_ok();
            assert_eq!(ended, stuck, "{bytes} bytes, HTTP/2 {h2}");
            let expected = Duration::from_secs(if stuck { 20 } else { 30 });
            assert!(begun.elapsed().abs_diff(expected) < Duration::from_millis(100), "{:?}", begun.elapsed());
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn trailers_over_http1_count_among_the_bytes_held() {
    let work = async {
        let (drain, _watch) = Drain::new(Instant::now());
        let head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n";
        for (bytes, held, ends) in
            [(60_000, 1 << 20, false), (60_000, 64 << 10, true), (6000, 4 << 10, false)]
        {
            let large = Limits { header_limit: 100 << 10, ..limits(HOUR, HOUR, HOUR) };
            let mut server = server(100, large, &drain);
            let held = Held::new(held);
            Rc::get_mut(&mut server).expect("nobody has it").accounts = Accounts::new(held.clone(), 8);
            let (mut caller, stream) = tokio::io::duplex(1 << 10);
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            tokio::task::spawn_local(server.speak_alone(stream, false, peer));
            let sent = async {
                caller.write_all(head).await?;
                caller.write_all(&[&b"a: "[..], &vec![b'x'; bytes]].concat()).await?;
                while held.bytes() == 0 && bytes > 10_000 {
                    tokio::task::yield_now().await;
                }
                let counted = held.bytes();
                caller.write_all(b"\r\n\r\n").await?;
                let mut answer = [0; 1024];
                caller.read(&mut answer).await.map(|read| (counted, read))
            };
            let sent = timeout(Duration::from_secs(30), sent).await.expect("something comes of it");
            assert_eq!(!sent.as_ref().is_ok_and(|(_, read)| *read > 0), ends, "{bytes}: {sent:?}");
            if bytes > 10_000 && !ends {
                assert!(sent.expect("an answer").0 >= 2 * 48_000, "trailers are twice in memory");
            }
            assert_eq!(held.bytes(), 0, "{bytes}: given back");
        }
    };
    LocalSet::new().run_until(work).await;
}
