use std::fs;
use std::process::Command;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::files::tests::Folder;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

#[derive(Clone)]
struct Pair {
    cert: String,
    key: String,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn signed(params: &CertificateParams, issuer: &Issuer) -> Pair {
    let key = KeyPair::generate().unwrap();
    Pair { cert: params.signed_by(&key, issuer).unwrap().pem(), key: key.serialize_pem() }
}

fn pair() -> Pair {
    signed(&params("localhost"), &authority("an authority"))
}

fn dated(from: i32, until: i32) -> Pair {
    let mut params = params("localhost");
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    signed(&params, &authority("an authority"))
}

fn problem(cert: &str, key: &str) -> PairError {
    Credentials::from_pem(cert.as_bytes(), key.as_bytes()).unwrap_err()
}

mod pairs {
    use super::*;

    #[test]
    fn a_pair_of_each_algorithm_is_taken() {
        let algorithms: [&'static SignatureAlgorithm; 3] =
            [&rcgen::PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        for algorithm in algorithms {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let cert = params("localhost").self_signed(&key).unwrap().pem();
            Credentials::from_pem(cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        }
    }

    /// With keys as OpenSSL writes them; PKCS#8 alone is what rcgen can write.
    #[test]
    fn each_form_of_a_key_is_taken_and_an_encrypted_one_is_named() {
        let folder = Folder::new();
        let openssl = |arguments: &str| {
            let arguments = arguments.replace('@', &format!("{}/", folder.path("").display()));
            let output = Command::new("openssl").args(arguments.split_whitespace()).output();
            let output = output.expect("openssl must be installed to run the tests");
            assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        };
        openssl("ecparam -genkey -name prime256v1 -out @ec.pem");
        openssl("genrsa -out @rsa8.pem 2048");
        openssl("rsa -in @rsa8.pem -traditional -out @rsa.pem");
        openssl("genpkey -algorithm ed25519 -out @ed.pem");
        for (name, label) in
            [("ec", "EC PARAMETERS"), ("rsa8", "PRIVATE KEY"), ("rsa", "RSA PRIVATE"), ("ed", "")]
        {
            openssl(&format!("req -x509 -key @{name}.pem -subj /CN=localhost -out @{name}.crt"));
            let read = |ending| fs::read_to_string(folder.path(&format!("{name}.{ending}"))).unwrap();
            assert!(read("pem").contains(label), "{name}");
            Credentials::from_pem(read("crt").as_bytes(), read("pem").as_bytes()).unwrap();
        }
        openssl("pkcs8 -topk8 -in @ec.pem -passout pass:x -out @encrypted8.pem");
        openssl("rsa -aes128 -in @rsa8.pem -traditional -passout pass:x -out @encrypted.pem");
        for name in ["encrypted8.pem", "encrypted.pem"] {
            let key = fs::read_to_string(folder.path(name)).unwrap();
            assert_eq!(problem(&pair().cert, &key), PairError::Key(Problem::Encrypted), "{name}");
        }
    }

    #[test]
    fn both_may_stand_in_one_file() {
        let Pair { cert, key } = pair();
        let both = format!("subject=/CN=localhost\n{cert}\n{key}");
        Credentials::from_pem(both.as_bytes(), both.as_bytes()).unwrap();
    }

    #[test]
    fn the_key_of_another_certificate_is_refused() {
        assert_eq!(problem(&pair().cert, &pair().key), PairError::Key(Problem::Mismatch));
    }

    #[test]
    fn a_chain_with_its_issuer_first_is_named() {
        let issuer = authority("an authority");
        let Pair { cert, key } = signed(&params("localhost"), &issuer);
        let root = issuer.as_ref().pem();
        Credentials::from_pem(format!("{cert}{root}").as_bytes(), key.as_bytes()).unwrap();
        let expected = PairError::Certificate(Problem::Order { position: 2 });
        assert_eq!(problem(&format!("{root}{cert}"), &key), expected);
    }

    #[test]
    fn a_damaged_chain_is_refused_and_never_shortened() {
        let Pair { cert, key } = pair();
        let lines = cert.lines().count();
        let line = lines + 1;
        let second = |text: &str| problem(&format!("{cert}{text}"), &key);
        let rows = [
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                Problem::NotACertificate { line },
            ),
            ("-----BEGIN CERTIFICATE-----\nA%AA\n-----END CERTIFICATE-----\n", Problem::NotBase64 { line }),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", Problem::Unfinished { line }),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END TRUST-----\n", Problem::Unfinished { line }),
            ("----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", Problem::Marker { line }),
            ("-----BEGIN CERTIFICATE----\nAAAA\n-----END CERTIFICATE-----\n", Problem::Marker { line }),
            (
                "  -----BEGIN CERTIFICATE-----\n  AAAA\n  -----END CERTIFICATE-----\n",
                Problem::Marker { line },
            ),
            (
                "-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n",
                Problem::Unexpected { line, expected: "CERTIFICATE" },
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(second(text), PairError::Certificate(expected), "{text}");
        }
    }

    #[test]
    fn a_certificate_cut_short_anywhere_is_refused() {
        let Pair { cert, key } = pair();
        for length in 0..cert.trim_end().len() - "-----".len() {
            assert!(Credentials::from_pem(&cert.as_bytes()[..length], key.as_bytes()).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_not_one_key_is_named_and_no_byte_of_it_is_shown() {
        let Pair { cert, key } = pair();
        let body: String = key.lines().filter(|line| !line.starts_with('-')).collect();
        let dsa = key.replace("PRIVATE KEY", "DSA PRIVATE KEY");
        let cut = &key[..key.len() / 2];
        let rows = [
            (String::new(), "private key: is empty"),
            ("hello".to_owned(), "private key: holds no private key; found no PEM block"),
            (
                cert.clone(),
                "private key: holds no private key; found a certificate: are the two files swapped?",
            ),
            (format!("{key}{key}"), "private key: holds 2 private keys, expected one"),
            (
                dsa,
                "private key: the private key cannot be used, expected RSA of 2048 to 8192 bits, ECDSA over",
            ),
            (
                format!("{}AAAA{}", &key[..28], &key[key.trim_end().len() - 26..]),
                "private key: the private key cannot be used, expected",
            ),
            (cut.to_owned(), "private key: line 1: the block that begins here has no END line"),
            (key.replace("\nM", "\n%"), "private key: line 1: the block that begins here is not base64"),
        ];
        for (text, expected) in rows {
            let error = problem(&cert, &text);
            assert!(error.to_string().starts_with(expected), "{error}");
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(
                    !body
                        .as_bytes()
                        .windows(12)
                        .any(|part| shown.contains(std::str::from_utf8(part).unwrap()))
                );
            }
        }
        let swapped = problem(&key, &key).to_string();
        let expected = "certificate: holds no certificate; found a private key: are the two files swapped?";
        assert_eq!(swapped, expected);
    }
}

mod self_signed_ones {
    use super::*;

    #[tokio::test]
    async fn each_name_is_trusted_and_no_other() {
        let made = SelfSigned::new(&["guard.example".to_owned(), "10.1.2.3".to_owned()], now()).unwrap();
        let tls = Tls::fixed(&made.credentials, None);
        let client = client(&made.certificate_pem, None, &[&TLS13]);
        let names = ["localhost", "127.0.0.1", "::1", "guard.example", "10.1.2.3"];
        for name in names {
            handshake(&tls, &client, name).await.unwrap();
        }
        for name in ["other.example", "10.1.2.4"] {
            let (failure, _) = handshake(&tls, &client, name).await.unwrap_err();
            assert_eq!(failure, HandshakeFailure::UnknownCa, "{name}");
        }
    }

    #[test]
    fn it_is_valid_for_thirty_days_and_was_an_hour_ago() {
        let day = 24 * 3600;
        let validity = SelfSigned::new(&[], 1_800_000_000).unwrap().credentials.validity();
        let expected = Validity { not_before: 1_800_000_000 - 3600, not_after: 1_800_000_000 + 30 * day };
        assert_eq!(validity, expected);
    }

    #[test]
    fn a_name_that_is_none_is_refused_and_a_repeated_one_is_not() {
        for name in ["", "a b", "中文"] {
            assert_eq!(
                SelfSigned::new(&[name.to_owned()], 0).unwrap_err(),
                BadName { name: name.to_owned() }
            );
        }
        SelfSigned::new(&["localhost".to_owned(), "::1".to_owned()], now()).unwrap();
    }
}

/// A caller that trusts `root`, with a certificate of its own or without.
fn client(root: &str, own: Option<&Pair>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    match own {
        None => builder.with_no_client_auth(),
        Some(Pair { cert, key }) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    }
}

#[derive(Debug, PartialEq)]
struct Agreed {
    version: ProtocolVersion,
    alpn: Option<Vec<u8>>,
    /// The DER of what the server presented.
    leaf: Vec<u8>,
    /// The client was sent a ticket, or a session ID that it could come back with.
    resumed_next_time: bool,
}

type ServerStream = tokio_rustls::server::TlsStream<DuplexStream>;
type ClientStream = tokio_rustls::client::TlsStream<DuplexStream>;

async fn connect(
    tls: &Tls,
    client: &ClientConfig,
    name: &str,
) -> Result<(ServerStream, ClientStream), (HandshakeFailure, String)> {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(client.clone()));
    let (server, client) = tokio::join!(
        async {
            let mut stream = TlsAcceptor::from(tls.config()).accept(near).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            Ok::<_, std::io::Error>(stream)
        },
        async {
            let mut stream = connector.connect(name, far).await?;
            // Only the answer tells a TLS 1.3 client that its certificate was taken.
            stream.read_u8().await?;
            Ok::<_, std::io::Error>(stream)
        }
    );
    match server {
        Ok(server) => Ok((server, client.unwrap())),
        Err(error) => Err((HandshakeFailure::of(&error), error.to_string())),
    }
}

async fn handshake(
    tls: &Tls,
    client: &ClientConfig,
    name: &str,
) -> Result<Agreed, (HandshakeFailure, String)> {
    let (server, near) = connect(tls, client, name).await?;
    let (_, state) = near.get_ref();
    let leaf = state.peer_certificates().unwrap()[0].to_vec();
    let version = state.protocol_version().unwrap();
    let alpn = state.alpn_protocol().map(<[u8]>::to_vec);
    assert_eq!(alpn.as_deref(), server.get_ref().1.alpn_protocol());
    let tickets = state.tls13_tickets_received() > 0;
    let again = if tickets { true } else { Box::pin(resumes(tls, client, name)).await };
    Ok(Agreed { version, alpn, leaf, resumed_next_time: again })
}

async fn resumes(tls: &Tls, client: &ClientConfig, name: &str) -> bool {
    let (_, near) = connect(tls, client, name).await.unwrap();
    near.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
}

mod handshakes {
    use super::*;

    type Offer<'a> = &'a [&'a [u8]];

    #[tokio::test]
    async fn both_versions_are_spoken_and_the_newer_is_preferred_and_nothing_is_resumed() {
        let made = SelfSigned::new(&[], now()).unwrap();
        let tls = Tls::fixed(&made.credentials, None);
        let leaf = CertificateDer::from_pem_slice(made.certificate_pem.as_bytes()).unwrap().to_vec();
        let rows: [(&[&'static SupportedProtocolVersion], _); 3] = [
            (&[&TLS12, &TLS13], ProtocolVersion::TLSv1_3),
            (&[&TLS13], ProtocolVersion::TLSv1_3),
            (&[&TLS12], ProtocolVersion::TLSv1_2),
        ];
        for (versions, version) in rows {
            let agreed = handshake(&tls, &client(&made.certificate_pem, None, versions), "localhost").await;
            let expected = Agreed { version, alpn: None, leaf: leaf.clone(), resumed_next_time: false };
            assert_eq!(agreed.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn http_2_is_preferred_whatever_the_order_of_the_caller() {
        let made = SelfSigned::new(&[], now()).unwrap();
        let tls = Tls::fixed(&made.credentials, None);
        let mut client = client(&made.certificate_pem, None, &[&TLS13]);
        let rows: [(Offer<'_>, Option<&[u8]>); 4] = [
            (&[b"http/1.1", b"h2"], Some(b"h2")),
            (&[b"h2"], Some(b"h2")),
            (&[b"http/1.1"], Some(b"http/1.1")),
            (&[], None),
        ];
        for (offered, expected) in rows {
            client.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
            let agreed = handshake(&tls, &client, "localhost").await.unwrap();
            assert_eq!(agreed.alpn.as_deref(), expected);
        }
        client.alpn_protocols = vec![b"spdy/3".to_vec()];
        let (failure, _) = handshake(&tls, &client, "localhost").await.unwrap_err();
        assert_eq!(failure, HandshakeFailure::NoCommonAlpn);
    }

    #[tokio::test]
    async fn a_caller_needs_a_certificate_of_the_client_ca_in_both_versions() {
        let made = SelfSigned::new(&[], now()).unwrap();
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let list =
            format!("# who may call\n{}\n{}", authority("a second").as_ref().pem(), ours.as_ref().pem());
        let ca = ClientCa::from_pem(list.as_bytes()).unwrap();
        assert_eq!(ca.count(), 2);
        let tls = Tls::fixed(&made.credentials, Some(&ca));
        let (known, stranger) = (signed(&params("caller"), &ours), signed(&params("caller"), &theirs));
        let mut expired = params("caller");
        expired.not_after = date_time_ymd(2000, 1, 1);
        let expired = signed(&expired, &ours);
        for version in [&TLS12, &TLS13] {
            let call = |own: Option<&Pair>| client(&made.certificate_pem, own, &[version]);
            handshake(&tls, &call(Some(&known)), "localhost").await.unwrap();
            let rows = [
                (None, HandshakeFailure::NoClientCertificate),
                (Some(&expired), HandshakeFailure::BadCertificate),
            ];
            for (own, expected) in rows {
                let (failure, text) = handshake(&tls, &call(own), "localhost").await.unwrap_err();
                assert_eq!(failure, expected, "{text}");
            }
            // rustls does not send what the server's list of authorities rules out.
            let (failure, text) = handshake(&tls, &call(Some(&stranger)), "localhost").await.unwrap_err();
            let refused = [HandshakeFailure::NoClientCertificate, HandshakeFailure::BadCertificate];
            assert!(refused.contains(&failure), "{text}");
        }
    }

    #[tokio::test]
    async fn a_caller_that_does_not_trust_us_is_told_from_one_that_we_do_not_trust() {
        let made = SelfSigned::new(&[], now()).unwrap();
        let tls = Tls::fixed(&made.credentials, None);
        // Of the same name as ours and with another key; and of another name.
        let namesake = SelfSigned::new(&[], now()).unwrap().certificate_pem;
        let stranger = authority("a stranger").as_ref().pem();
        for trusted in [namesake, stranger] {
            let client = client(&trusted, None, &[&TLS13, &TLS12]);
            let (failure, text) = handshake(&tls, &client, "localhost").await.unwrap_err();
            assert_eq!(failure, HandshakeFailure::UnknownCa, "{text}");
        }
    }

    #[tokio::test]
    async fn what_is_not_tls_is_told_apart() {
        let made = SelfSigned::new(&[], now()).unwrap();
        let tls = Tls::fixed(&made.credentials, None);
        let accept = async |bytes: &[u8]| {
            let (near, mut far) = duplex(1 << 10);
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            let error = TlsAcceptor::from(tls.config()).accept(near).await.map(|_| ()).unwrap_err();
            HandshakeFailure::of(&error)
        };
        assert_eq!(accept(b"POST /callback HTTP/1.1\r\n\r\n").await, HandshakeFailure::Garbage);
        assert_eq!(accept(b"").await, HandshakeFailure::Closed);
        assert_eq!(accept(b"\x16\x03\x01").await, HandshakeFailure::Closed);
        // A ClientHello of TLS 1.0 and nothing newer: one suite, no compression, no extension.
        let hello =
            [&b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01"[..], &[7; 32], b"\x00\x00\x02\xc0\x13\x01\x00"];
        assert_eq!(accept(&hello.concat()).await, HandshakeFailure::ProtocolVersion);
    }

    #[tokio::test]
    async fn a_connection_keeps_what_it_began_with_and_the_next_gets_the_new() {
        let (old, new) = (SelfSigned::new(&[], now()).unwrap(), SelfSigned::new(&[], now()).unwrap());
        let (publisher, tls) = Tls::new(&old.credentials, None);
        let (mut server, mut near) =
            connect(&tls, &client(&old.certificate_pem, None, &[&TLS13]), "localhost").await.unwrap();
        publisher.publish(&new.credentials, None);
        handshake(&tls, &client(&new.certificate_pem, None, &[&TLS13]), "localhost").await.unwrap();
        handshake(&tls, &client(&old.certificate_pem, None, &[&TLS13]), "localhost").await.unwrap_err();
        near.write_all(b"still here").await.unwrap();
        near.flush().await.unwrap();
        let mut read = [0; 10];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"still here");
    }
}

mod client_cas {
    use super::*;

    #[test]
    fn a_list_with_one_damaged_entry_is_refused() {
        let good = authority("good").as_ref().pem();
        let line = good.lines().count() + 1;
        let rows = [
            (String::new(), Problem::Empty),
            (
                "nothing here".to_owned(),
                Problem::Nothing {
                    expected: "CA certificate",
                    found: "found no PEM block at all".to_owned(),
                },
            ),
            (
                format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                Problem::NotACertificate { line },
            ),
            (format!("{good}{}", &good[..good.len() - 30]), Problem::Unfinished { line }),
            (
                format!("{good}{}", pair().key),
                Problem::Unexpected { line, expected: "CERTIFICATE blocks alone" },
            ),
            (format!("{good}{}", good.replace("-----BEGIN", "---BEGIN")), Problem::Marker { line }),
        ];
        for (text, expected) in rows {
            assert_eq!(ClientCa::from_pem(text.as_bytes()).unwrap_err(), expected);
        }
        assert_eq!(ClientCa::from_pem(good.as_bytes()).unwrap().count(), 1);
    }
}

mod reloads {
    use super::*;
    use crate::files::POLL_INTERVAL;

    struct Running {
        tls: Tls,
        events: UnboundedReceiver<ReloadEvent>,
    }

    impl Running {
        fn new(folder: &Folder, client_ca: bool) -> Self {
            let (tls, reloader) = open(files(folder, client_ca)).unwrap();
            let (sender, events) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(reloader.run(move |event| sender.send(event).unwrap()));
            Self { tls, events }
        }

        /// What is told within so many polls. Time is paused: it passes when nothing else is to do.
        async fn within(&mut self, polls: u32) -> Vec<ReloadEvent> {
            let mut told = Vec::new();
            let end = tokio::time::Instant::now() + POLL_INTERVAL * polls + Duration::from_millis(1);
            while let Ok(event) = tokio::time::timeout_at(end, self.events.recv()).await {
                told.push(event.unwrap());
            }
            told
        }

        fn leaf(&self) -> CertificateDer<'static> {
            // What a connection would be served.
            self.tls.current.borrow().credentials.certified.cert[0].clone()
        }
    }

    fn files(folder: &Folder, client_ca: bool) -> Files {
        let client_ca = client_ca.then(|| folder.path("ca.crt"));
        Files { cert: folder.path("tls.crt"), key: folder.path("tls.key"), client_ca }
    }

    fn der(pair: &Pair) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()
    }

    fn put(folder: &Folder, pair: &Pair) {
        folder.put("tls.crt", &pair.cert);
        folder.put("tls.key", &pair.key);
    }

    fn reloaded(pair: &Pair) -> ReloadEvent {
        let validity = Validity::of_certificate(&der(pair)).unwrap();
        ReloadEvent::Reloaded { validity, warning: None }
    }

    fn failed(text: &str) -> Vec<ReloadEvent> {
        vec![ReloadEvent::Failed { reason: text.to_owned() }]
    }

    fn mounted(pair: &Pair) -> [(&'static str, &[u8]); 2] {
        [("tls.crt", pair.cert.as_bytes()), ("tls.key", pair.key.as_bytes())]
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_renewed_by_kubernetes_serves_without_a_restart() {
        let (folder, old, new) = (Folder::new(), pair(), pair());
        folder.mount("2026_01", &mounted(&old));
        let mut running = Running::new(&folder, false);
        assert_eq!((running.within(4).await, running.leaf()), (vec![], der(&old)));
        folder.mount("2026_02", &mounted(&new));
        assert_eq!((running.within(4).await, running.leaf()), (vec![reloaded(&new)], der(&new)));
        folder.mount("2026_03", &mounted(&new));
        assert_eq!(running.within(4).await, vec![]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_pair_keeps_the_old_is_told_once_and_its_repair_is_told() {
        let (folder, old) = (Folder::new(), pair());
        put(&folder, &old);
        let mut running = Running::new(&folder, false);
        running.within(1).await;
        let path = folder.put("tls.key", pair().key);
        let expected = format!(
            "--tls-key: {}: the private key does not belong to the first certificate of the certificate file",
            path.display()
        );
        assert_eq!((running.within(1000).await, running.leaf()), (failed(&expected), der(&old)));
        folder.put("tls.key", &old.key);
        assert_eq!((running.within(4).await, running.leaf()), (vec![ReloadEvent::Restored], der(&old)));
        let new = pair();
        put(&folder, &new);
        assert_eq!((running.within(4).await, running.leaf()), (vec![reloaded(&new)], der(&new)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_whose_key_comes_one_poll_later_is_one_reload_and_no_failure() {
        let (folder, old, new) = (Folder::new(), pair(), pair());
        put(&folder, &old);
        let mut running = Running::new(&folder, false);
        running.within(1).await;
        folder.put("tls.crt", &new.cert);
        assert_eq!((running.within(1).await, running.leaf()), (vec![], der(&old)));
        folder.put("tls.key", &new.key);
        assert_eq!((running.within(4).await, running.leaf()), (vec![reloaded(&new)], der(&new)));
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_disappear_keep_the_old_and_may_come_back() {
        let (folder, old, new) = (Folder::new(), pair(), pair());
        put(&folder, &old);
        let mut running = Running::new(&folder, false);
        running.within(1).await;
        fs::remove_file(folder.path("tls.crt")).unwrap();
        let expected = format!("--tls-cert: {}: no such file", folder.path("tls.crt").display());
        assert_eq!((running.within(10).await, running.leaf()), (failed(&expected), der(&old)));
        put(&folder, &new);
        assert_eq!((running.within(4).await, running.leaf()), (vec![reloaded(&new)], der(&new)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_or_early_certificate_does_not_replace_a_valid_one() {
        let (folder, old) = (Folder::new(), pair());
        put(&folder, &old);
        let mut running = Running::new(&folder, false);
        running.within(1).await;
        let rows = [(dated(2001, 2002), "expired at 2002-01-01T00:00:00Z, now is "), {
            (dated(2900, 2901), "is not valid before 2900-01-01T00:00:00Z, now is ")
        }];
        for (worse, expected) in rows {
            put(&folder, &worse);
            let told = running.within(4).await;
            let [ReloadEvent::Failed { reason }] = &told[..] else { panic!("{told:?}") };
            assert!(reason.starts_with("--tls-cert: ") && reason.contains(expected), "{reason}");
            assert!(reason.ends_with("; the one in force is valid, so it stays"), "{reason}");
            assert_eq!(running.leaf(), der(&old));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_certificate_serves_at_the_start_with_a_warning_and_gives_way() {
        let (folder, expired, other) = (Folder::new(), dated(2001, 2002), dated(2003, 2004));
        put(&folder, &expired);
        let (_, reloader) = open(files(&folder, false)).unwrap();
        let warning = reloader.warning().unwrap().to_owned();
        let expected = format!(
            "--tls-cert: {}: the certificate expired at 2002-01-01T00:00:00Z, now is ",
            folder.path("tls.crt").display()
        );
        assert!(warning.starts_with(&expected) && warning.ends_with("; it serves all the same"), "{warning}");

        let mut running = Running::new(&folder, false);
        running.within(1).await;
        // Not better than what serves, nor worse.
        put(&folder, &other);
        let told = running.within(4).await;
        assert!(matches!(&told[..], [ReloadEvent::Reloaded { warning: Some(_), .. }]), "{told:?}");
        let valid = pair();
        put(&folder, &valid);
        assert_eq!((running.within(4).await, running.leaf()), (vec![reloaded(&valid)], der(&valid)));
        assert_eq!(running.tls.validity(), Validity::of_certificate(&der(&valid)).unwrap());
        assert_eq!(open(files(&folder, false)).unwrap().1.warning(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_client_ca_decides_who_may_call_from_then_on() {
        let folder = Folder::new();
        let made = SelfSigned::new(&[], now()).unwrap();
        let key = KeyPair::generate().unwrap();
        let root = params("localhost").self_signed(&key).unwrap().pem();
        drop(made);
        put(&folder, &Pair { cert: root.clone(), key: key.serialize_pem() });
        let (first, second) = (authority("first"), authority("second"));
        folder.put("ca.crt", first.as_ref().pem());
        let mut running = Running::new(&folder, true);
        running.within(1).await;
        let (one, two) = (signed(&params("caller"), &first), signed(&params("caller"), &second));
        let calls = async |tls: &Tls| {
            let mut let_in = [false; 2];
            for (let_in, own) in let_in.iter_mut().zip([&one, &two]) {
                let client = client(&root, Some(own), &[&TLS13]);
                *let_in = handshake(tls, &client, "localhost").await.is_ok();
            }
            let_in
        };
        assert_eq!(calls(&running.tls).await, [true, false]);

        folder.put(
            "ca.crt",
            format!("{}{}", second.as_ref().pem(), first.as_ref().pem().replace("MII", "%%%")),
        );
        let told = running.within(4).await;
        let [ReloadEvent::Failed { reason }] = &told[..] else { panic!("{told:?}") };
        assert!(reason.starts_with("--client-ca: ") && reason.ends_with("is not base64"), "{reason}");
        assert_eq!(calls(&running.tls).await, [true, false]);

        folder.put("ca.crt", second.as_ref().pem());
        assert!(matches!(running.within(4).await[..], [ReloadEvent::Reloaded { .. }]));
        assert_eq!(calls(&running.tls).await, [false, true]);
    }

    #[test]
    fn what_is_wrong_at_the_start_is_named_with_its_flag() {
        let folder = Folder::new();
        let text = |client_ca| open(files(&folder, client_ca)).map(|_| ()).unwrap_err().to_string();
        let path = |name: &str| folder.path(name).display().to_string();
        let good = pair();
        let missing = |flag: &str, name: &str| format!("--{flag}: {}: no such file", path(name));
        // All that is wrong, together; the half of a pair that is there is looked at too.
        let both = [missing("tls-cert", "tls.crt"), missing("tls-key", "tls.key")].join("\n");
        assert_eq!(text(false), both);
        assert_eq!(text(true), format!("{both}\n{}", missing("client-ca", "ca.crt")));
        folder.put("tls.key", "");
        assert_eq!(
            text(false),
            format!("{}\n--tls-key: {}: is empty", missing("tls-cert", "tls.crt"), path("tls.key"))
        );
        std::fs::remove_file(path("tls.key")).unwrap();
        folder.put("tls.crt", &good.cert);
        assert_eq!(text(false), format!("--tls-key: {}: no such file", path("tls.key")));
        folder.put("tls.key", "");
        assert_eq!(text(false), format!("--tls-key: {}: is empty", path("tls.key")));
        folder.put("tls.key", &good.key);
        assert_eq!(text(true), format!("--client-ca: {}: no such file", path("ca.crt")));
        folder.put("ca.crt", "\n");
        assert_eq!(text(true), format!("--client-ca: {}: is empty", path("ca.crt")));
        folder.put("tls.crt", vec![b'\n'; (1 << 20) + 1]);
        assert_eq!(text(false), format!("--tls-cert: {}: is 1.1MiB, at most 1MiB is read", path("tls.crt")));
    }
}
