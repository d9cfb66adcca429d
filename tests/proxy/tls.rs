//! TLS as callers see it: versions, ALPN and names, and credentials that are replaced while callbacks come in.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use rcgen::{CertificateParams, date_time_ymd};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::support::caller::{plain, secure, try_secure};
use crate::support::certificates::Issued;
use crate::support::{App, Authority, Call, Caller, Guard, Load, Raw, eventually, within};

const COMMAND: &str = "callbackBeforeSendSingleMsgCommand";
const HANDSHAKES: &str = "callback_guard_tls_handshake_failures_total";
const RELOADS: &str = "callback_guard_tls_reload_failures_total";
const EXPIRY: &str = "callback_guard_certificate_expiry_timestamp_seconds";

/// What a new certificate's line says.
const SERVED: &str = "A new certificate is served";

/// 2031-01-01 as seconds since 1970.
const YEAR_2031: f64 = 1_924_992_000.0;

fn roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(Authority::common().pem().as_bytes()).expect("PEM");
    roots.add(authority).expect("an authority");
    Arc::new(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A caller that speaks this version alone.
fn speaking(version: &'static rustls::SupportedProtocolVersion, alpn: &[&str]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[version]).expect("a version of the provider");
    let mut config = builder.with_root_certificates(roots()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

#[tokio::test]
async fn both_versions_speak_what_the_caller_offers_and_http_1_without_an_offer() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let offers: [(&[&str], Option<&[u8]>); 5] = [
        (&["h2"], Some(b"h2")),
        (&["http/1.1"], Some(b"http/1.1")),
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["spdy/3", "http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ];
    for version in [&TLS13, &TLS12] {
        for (offered, chosen) in offers {
            let stream = secure(&guard, speaking(version, offered)).await;
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(version.version), "{offered:?}");
            assert_eq!(session.alpn_protocol(), chosen, "{offered:?}");
            let answer = Caller::over(stream).await.send(&Call::new(COMMAND)).await;
            assert_eq!(answer.told(), "allow upstream -", "{offered:?}");
        }
    }
    assert_eq!(guard.count(HANDSHAKES, &[]), 0.0);
}

#[tokio::test]
async fn a_caller_that_offers_only_another_protocol_is_refused() {
    let guard = Guard::with("").start();
    for version in [&TLS13, &TLS12] {
        assert!(try_secure(&guard, speaking(version, &["spdy/3"])).await.is_err());
    }
    guard.wait_for_metric(&format!("{HANDSHAKES}{{reason=\"no-common-alpn\"}}"), 2.0).await;
}

#[tokio::test]
async fn older_versions_are_refused_with_an_alert_and_counted_as_such() {
    let guard = Guard::with("").start();
    for version in 0..=2 {
        // A ClientHello (RFC 4346, section 7.4.1.2) for one cipher suite, no session and no extension.
        let hello = [&[3, version][..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
        let length = u8::try_from(hello.len()).expect("a short one");
        let mut caller = Raw::over(plain(&guard).await);
        caller.send([&[0x16, 3, 1, 0, length + 4, 1, 0, 0, length][..], &hello].concat()).await;
        let told = caller.rest().await;
        // A fatal alert; rustls says handshake_failure before it comes to look at the version.
        assert_eq!((told.len(), told[0], &told[3..6]), (7, 0x15, &[0, 2, 2][..]), "3.{version}");
    }
    guard.wait_for_metric(&format!("{HANDSHAKES}{{reason=\"protocol-version\"}}"), 3.0).await;
    secure(&guard, speaking(&TLS12, &["h2"])).await;
}

/// Checks the certificate and not the name in it.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            other => panic!("the certificate bears that name: {other:?}"),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[tokio::test]
async fn a_caller_that_asks_for_another_name_or_none_is_served_all_the_same() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(), provider()).build();
    let any_name = Arc::new(AnyName(verifier.expect("an authority")));
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.expect("versions of the provider").dangerous();
    let lenient = builder.with_custom_certificate_verifier(any_name).with_no_client_auth();
    // An address is not sent as a name (RFC 6066, section 3).
    let rows = [
        (Arc::new(lenient), "elsewhere.example"),
        (Authority::common().trusted_by(&["h2"], None), "127.0.0.1"),
    ];
    for (config, name) in rows {
        let stream = plain(&guard).await;
        let name = ServerName::try_from(name).expect("a name");
        let stream = within("a handshake", TlsConnector::from(config).connect(name, stream)).await;
        let answer = Caller::over(stream.expect("a handshake")).await.send(&Call::new(COMMAND)).await;
        assert_eq!(answer.told(), "allow upstream -");
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

/// The certificate that a new connection is served.
async fn served(guard: &Guard) -> CertificateDer<'static> {
    let stream = secure(guard, Authority::common().trusted_by(&["h2"], None)).await;
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
}

async fn is_served(guard: &Guard, issued: &Issued) {
    let wanted = der(&issued.cert);
    let look = async { while served(guard).await != wanted {} };
    within("the new certificate", look).await;
}

/// Puts a pair into a mounted folder as the kubelet does: a new folder, then `..data` leads there, all at once.
fn mount(folder: &Path, round: usize, issued: &Issued) {
    let new = folder.join(format!("..round-{round}"));
    std::fs::create_dir_all(&new).expect("a folder");
    std::fs::write(new.join("tls.crt"), &issued.cert).expect("a file");
    std::fs::write(new.join("tls.key"), &issued.key).expect("a file");
    symlink(new.file_name().expect("a name"), folder.join("..data_tmp")).expect("a symlink");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("a rename");
    if round == 0 {
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), folder.join(name)).expect("a symlink");
        }
    } else {
        let _ = std::fs::remove_dir_all(folder.join(format!("..round-{}", round - 1)));
    }
}

/// Replaces what the folder holds, one file after the other, as `cp` and an editor do.
fn replace(folder: &Path, issued: &Issued) {
    for (name, contents) in [("tls.crt", &issued.cert), ("tls.key", &issued.key)] {
        std::fs::write(folder.join("new"), contents).expect("a file");
        std::fs::rename(folder.join("new"), folder.join(name)).expect("a rename");
    }
}

#[tokio::test]
async fn certificates_are_replaced_under_load_and_no_callback_fails() {
    let app = App::allowing();
    let builder = Guard::with("").upstream(&app);
    let folder = builder.folder().join("mounted");
    std::fs::create_dir_all(&folder).expect("a folder");
    let first = Authority::common().server();
    mount(&folder, 0, &first);
    let builder = builder.flag("--tls-cert", folder.join("tls.crt"));
    let guard = builder.flag("--tls-key", folder.join("tls.key")).start();
    let mut old = [Caller::h1(&guard).await, Caller::h2(&guard).await];
    assert_eq!(served(&guard).await, der(&first.cert));
    let load = Load::start(&guard, COMMAND, 3, 5);
    for round in 1..=20 {
        let next = Authority::common().server();
        match round {
            1..=12 => mount(&folder, round, &next),
            _ => replace(&folder, &next),
        }
        is_served(&guard, &next).await;
        load.wait_for_more(10).await;
    }
    for caller in &mut old {
        assert_eq!(caller.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
    }
    let report = load.stop();
    assert_eq!((report.lost, report.unmade, report.refused), (Vec::new(), Vec::new(), 0));
    assert_eq!(report.told.keys().collect::<Vec<_>>(), ["allow upstream -"]);
    assert!(report.connections > 20, "{} connections", report.connections);
    assert_eq!(guard.metric(RELOADS), 0.0);
    assert_eq!(guard.count(HANDSHAKES, &[]), 0.0);
    let lines = guard.log_lines();
    assert_eq!(lines.iter().filter(|line| line.contains(SERVED)).count(), 20);
}

/// Puts the pair in the place of the one that the guard was started with.
fn put(guard: &Guard, cert: &str, key: &str) {
    guard.write("cert.pem", cert);
    guard.write("key.pem", key);
}

fn errors(guard: &Guard) -> Vec<String> {
    guard.log_lines().into_iter().filter(|line| line.contains("\"level\":\"ERROR\"")).collect()
}

fn ending(year: i32) -> Issued {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(year, 1, 1);
    Authority::common().issue(params)
}

#[tokio::test]
async fn a_broken_pair_leaves_the_old_one_serving_until_a_good_one_comes() {
    let app = App::allowing();
    let guard = Guard::with("").upstream(&app).start();
    let (first, other, expired) = (ending(2031), Authority::common().server(), ending(2021));
    put(&guard, &first.cert, &first.key);
    is_served(&guard, &first).await;
    guard.wait_for_metric(EXPIRY, YEAR_2031).await;
    let mut old = Caller::h1(&guard).await;
    let cut = &first.cert[..first.cert.len() / 2];
    let rows = [
        ("another's key", first.cert.as_str(), other.key.as_str(), "key.pem"),
        ("another's certificate", &other.cert, &first.key, "key.pem"),
        ("garbage for a certificate", "garbage", &first.key, "cert.pem"),
        ("garbage for a key", &first.cert, "garbage", "key.pem"),
        ("half a certificate", cut, &first.key, "cert.pem"),
        ("nothing", "", "", "cert.pem"),
        ("expired", &expired.cert, &expired.key, "cert.pem"),
    ];
    let mut failures = 0;
    for (what, cert, key, named) in rows {
        put(&guard, cert, key);
        failures += 1;
        stays_served(&guard, &first, &mut old, failures, what, named).await;
    }
    for named in ["key.pem", "cert.pem"] {
        put(&guard, &first.cert, &first.key);
        guard.wait_for_metric(RELOADS, f64::from(failures)).await;
        std::fs::remove_file(guard.path(named)).expect("it was there");
        failures += 1;
        stays_served(&guard, &first, &mut old, failures, "deleted", named).await;
    }
    put(&guard, &other.cert, &other.key);
    is_served(&guard, &other).await;
    assert_ne!(guard.metric(EXPIRY), YEAR_2031);
    assert_eq!(errors(&guard).len(), failures as usize, "one line for each, and no more");
    assert_eq!(old.send(&Call::new(COMMAND)).await.told(), "allow upstream -");
}

async fn stays_served(
    guard: &Guard,
    first: &Issued,
    old: &mut Caller,
    failures: u32,
    what: &str,
    named: &str,
) {
    guard.wait_for_metric(RELOADS, f64::from(failures)).await;
    let told = eventually("a line", || errors(guard).get(failures as usize - 1).cloned()).await;
    assert!(told.contains("The new certificate is refused; the old one goes on serving"), "{what}: {told}");
    assert!(told.contains(named), "{what}: {told}");
    assert_eq!(served(guard).await, der(&first.cert), "{what}");
    assert_eq!(guard.metric(EXPIRY), YEAR_2031, "{what}");
    assert_eq!(old.send(&Call::new(COMMAND)).await.told(), "allow upstream -", "{what}");
}

/// Whether a caller with this certificate gets an answer.
async fn lets_in(guard: &Guard, own: &Issued) -> bool {
    let config = Authority::common().trusted_by(&["http/1.1"], Some(own));
    let Ok(stream) = try_secure(guard, config).await else { return false };
    let mut caller = Raw::over(stream);
    caller.send(Call::new(COMMAND).bytes()).await;
    caller.answer().await.is_some_and(|answer| answer.told() == "allow upstream -")
}

#[tokio::test]
async fn a_new_client_authority_counts_for_new_connections_and_a_broken_one_for_none() {
    let (old, new) = (Authority::new("old callers"), Authority::new("new callers"));
    let (known, later) = (old.client(), new.client());
    let app = App::allowing();
    let guard = Guard::with("").file("--client-ca", "callers.pem", old.pem()).upstream(&app).start();
    assert!(lets_in(&guard, &known).await && !lets_in(&guard, &later).await);
    let kept = secure(&guard, Authority::common().trusted_by(&["h2"], Some(&known))).await;
    let mut kept = Caller::over(kept).await;
    guard.write("callers.pem", "garbage");
    guard.wait_for_metric(RELOADS, 1.0).await;
    assert!(lets_in(&guard, &known).await && !lets_in(&guard, &later).await, "the old one stays");
    guard.wait_for_log(|line| line.contains("ERROR") && line.contains("--client-ca"));
    guard.write("callers.pem", [old.pem(), new.pem()].concat());
    within("both", async { while !lets_in(&guard, &later).await {} }).await;
    assert!(lets_in(&guard, &known).await, "two authorities are two");
    guard.write("callers.pem", new.pem());
    within("the new one alone", async { while lets_in(&guard, &known).await {} }).await;
    assert!(lets_in(&guard, &later).await);
    assert_eq!(kept.send(&Call::new(COMMAND)).await.told(), "allow upstream -", "it was let in before");
    assert_eq!(guard.metric(RELOADS), 1.0);
}

/// What a caller with this pair is told.
async fn told(caller: &mut Caller, pair: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    caller.send(&Call::new(COMMAND).header("Authorization", format!("Basic {encoded}"))).await.told()
}

#[tokio::test]
async fn new_passwords_count_at_once_on_kept_connections_and_a_broken_file_changes_nothing() {
    const YES: &str = "allow upstream -";
    const NO: &str = "deny rejection unauthorized";
    let app = App::allowing();
    let guard = Guard::with("").file("--basic-auth-file", "users", "openim:first\n").upstream(&app).start();
    let mut caller = Caller::h2(&guard).await;
    assert_eq!(told(&mut caller, "openim:first").await, YES);
    assert_eq!(told(&mut caller, "openim:second").await, NO);
    for broken in ["openim-without-a-colon:\n", "", "openim:a\nnonsense\n"] {
        let before = errors(&guard).len();
        guard.write("users", broken);
        let line = eventually("a line", || errors(&guard).get(before).cloned()).await;
        assert!(line.contains("The new credentials of callers are refused"), "{line}");
        assert_eq!(told(&mut caller, "openim:first").await, YES);
    }
    guard.write("users", "openim:first\n");
    guard.wait_for_log(|line| line.contains("holds again what is in force"));
    guard.write("users", "openim:first\nopenim:second\n");
    within("both", async { while told(&mut caller, "openim:second").await != YES {} }).await;
    assert_eq!(told(&mut caller, "openim:first").await, YES);
    guard.write("users", "openim:second\n");
    within("the second alone", async { while told(&mut caller, "openim:first").await != NO {} }).await;
    assert_eq!(told(&mut caller, "openim:second").await, YES);
    assert!(caller.is_open());
}
