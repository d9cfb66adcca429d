//! Why there is no answer: one sentence that says what it was, and one that says what to try.

use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error as TlsError, InvalidMessage};

use super::place::Place;

/// Why there is no answer. OpenIM calls each of them 90004 NetworkError and fails the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// What it was, in lower case.
    pub(super) sentence: String,
    /// What to try.
    pub(super) remedy: String,
}

/// The closed set of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    UnknownHost,
    Refused,
    Unreachable,
    NotTls,
    IsTls,
    Untrusted,
    WrongName,
    WrongTime,
    BadCertificate,
    Tls,
    Timeout(Phase),
    Closed,
    Cut,
    Malformed,
    TooLarge,
    BadGzip,
}

impl Kind {
    /// The word for programs.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Kind::UnknownHost => "unknown-host",
            Kind::Refused => "refused",
            Kind::Unreachable => "unreachable",
            Kind::NotTls => "not-tls",
            Kind::IsTls => "is-tls",
            Kind::Untrusted => "untrusted-certificate",
            Kind::WrongName => "certificate-for-another-name",
            Kind::WrongTime => "certificate-out-of-time",
            Kind::BadCertificate => "bad-certificate",
            Kind::Tls => "tls",
            Kind::Timeout(_) => "timeout",
            Kind::Closed => "closed",
            Kind::Cut => "cut",
            Kind::Malformed => "malformed",
            Kind::TooLarge => "too-large",
            Kind::BadGzip => "bad-gzip",
        }
    }

    /// Whether every other callback would meet it too, so that one is enough.
    pub(super) const fn concerns_all(self) -> bool {
        match self {
            Kind::UnknownHost
            | Kind::Refused
            | Kind::Unreachable
            | Kind::NotTls
            | Kind::IsTls
            | Kind::Untrusted
            | Kind::WrongName
            | Kind::WrongTime
            | Kind::BadCertificate
            | Kind::Tls
            | Kind::Timeout(Phase::Connecting | Phase::Greeting) => true,
            Kind::Timeout(_)
            | Kind::Closed
            | Kind::Cut
            | Kind::Malformed
            | Kind::TooLarge
            | Kind::BadGzip => false,
        }
    }
}

/// What was being done when time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Phase {
    Waiting,
    Connecting,
    Greeting,
    Asked,
    Answering,
}

impl Failure {
    pub(super) fn new(kind: Kind, sentence: impl Into<String>, remedy: impl Into<String>) -> Failure {
        // A certificate's names, say, are written by others.
        let shown = |text: String| text.replace(char::is_control, "");
        Failure { kind, sentence: shown(sentence.into()), remedy: shown(remedy.into()) }
    }

    pub(super) fn unknown_host(place: &Place) -> Failure {
        let host = &place.host;
        Failure::new(
            Kind::UnknownHost,
            format!("no host {host:?} can be found"),
            "check the spelling; a name of a Kubernetes Service is known in its cluster alone",
        )
    }

    pub(super) fn connecting(place: &Place, error: &io::Error) -> Failure {
        let (host, port) = (&place.host, place.port);
        if error.kind() == io::ErrorKind::ConnectionRefused {
            return Failure::new(
                Kind::Refused,
                format!("nothing listens on port {port} of {host}"),
                "start the app, or give the port it listens on",
            );
        }
        Failure::new(
            Kind::Unreachable,
            format!("port {port} of {host} cannot be reached: {error}"),
            "check the address, and what stands between here and there",
        )
    }

    /// What a failed handshake means, as far as its error tells.
    pub(super) fn handshake(place: &Place, error: &io::Error) -> Failure {
        let host = &place.host;
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        let (kind, sentence) = match tls {
            Some(TlsError::InvalidCertificate(certificate)) => {
                return Failure::certificate(place, certificate);
            }
            Some(TlsError::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                return Failure::not_tls(place);
            }
            Some(TlsError::PeerIncompatible(_)) => {
                (Kind::Tls, format!("{host} speaks neither TLS 1.3 nor 1.2 as it is spoken today"))
            }
            Some(TlsError::AlertReceived(alert)) => {
                (Kind::Tls, format!("{host} ended the TLS handshake with the alert {alert:?}"))
            }
            Some(other) => (Kind::Tls, format!("the TLS handshake with {host} failed: {other}")),
            None => (Kind::Tls, format!("{host} closed the connection during the TLS handshake")),
        };
        Failure::new(kind, sentence, "look into the app's log; `openssl s_client -connect` shows more")
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "an enum of rustls that may grow")]
    fn certificate(place: &Place, error: &CertificateError) -> Failure {
        use CertificateError as C;
        let host = &place.host;
        let own = "OpenIM would not accept it either: give the app a certificate for this name, or name it as it does";
        let trust =
            "--ca FILE trusts its authority and --insecure anyone; OpenIM needs the authority in its image";
        match error {
            C::UnknownIssuer | C::BadSignature => Failure::new(
                Kind::Untrusted,
                format!("the certificate of {host} is of an authority that is not trusted here"),
                trust,
            ),
            C::NotValidForName => {
                Failure::new(Kind::WrongName, format!("the certificate is not for {host}"), own)
            }
            C::NotValidForNameContext { presented, .. } => {
                let names: Vec<_> = presented.iter().take(4).map(|name| bare(name)).collect();
                let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
                Failure::new(
                    Kind::WrongName,
                    format!("the certificate is for {names}, and not for {host}"),
                    own,
                )
            }
            C::Expired | C::ExpiredContext { .. } => Failure::new(
                Kind::WrongTime,
                format!("the certificate of {host} has expired"),
                "renew it; if it is new, look at the clocks",
            ),
            C::NotValidYet | C::NotValidYetContext { .. } => Failure::new(
                Kind::WrongTime,
                format!("the certificate of {host} is not valid yet"),
                "look at the clocks of both machines",
            ),
            // webpki's own error, which rustls hands on as it is.
            C::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => Failure::new(
                Kind::Untrusted,
                format!("the certificate of {host} is signed by itself, and not trusted here"),
                trust,
            ),
            other => Failure::new(
                Kind::BadCertificate,
                format!("the certificate of {host} cannot be accepted: {other}"),
                "make a server certificate that an authority signed, with the host among its names",
            ),
        }
    }

    pub(super) fn not_tls(place: &Place) -> Failure {
        let rest = place.to_string();
        let plain = rest.strip_prefix("https").unwrap_or_default();
        Failure::new(
            Kind::NotTls,
            format!(
                "port {} of {} does not speak TLS, but plain HTTP or something else",
                place.port, place.host
            ),
            format!("http{plain}, or the port with TLS"),
        )
    }

    pub(super) fn is_tls(place: &Place) -> Failure {
        let rest = place.to_string();
        let tls = rest.strip_prefix("http").unwrap_or_default();
        Failure::new(
            Kind::IsTls,
            format!("port {} of {} speaks TLS, and was asked in plain HTTP", place.port, place.host),
            format!("https{tls}"),
        )
    }

    pub(super) fn timeout(phase: Phase, timeout: Duration) -> Failure {
        let time = format!("{} s", timeout.as_secs());
        let (sentence, remedy) = match phase {
            Phase::Waiting => (
                format!("no connection became free within {time}"),
                "make the app faster: OpenIM has at most 100 connections a process",
            ),
            Phase::Connecting => (
                format!("the app could not be connected to within {time}"),
                "check the address, and what stands between here and there",
            ),
            Phase::Greeting => (
                format!("the TLS handshake was not done within {time}"),
                "check that the port speaks TLS and that the app is not stuck",
            ),
            Phase::Asked => (
                format!("the app did not answer within {time}"),
                "answer first and work later, or put callback-guard before the app",
            ),
            Phase::Answering => (
                format!("the app began to answer and did not end within {time}"),
                "send the answer whole, with its Content-Length",
            ),
        };
        Failure::new(Kind::Timeout(phase), sentence, remedy)
    }

    pub(super) fn closed() -> Failure {
        Failure::new(
            Kind::Closed,
            "the app closed the connection without an answer",
            "look into the app's log for the error; a kept connection must not be closed under a callback",
        )
    }

    pub(super) fn cut() -> Failure {
        Failure::new(
            Kind::Cut,
            "the app closed the connection in the middle of its answer",
            "compare the answer's Content-Length with its body",
        )
    }

    pub(super) fn malformed(what: &str) -> Failure {
        Failure::new(
            Kind::Malformed,
            format!("what the app answered is not HTTP: {what}"),
            "check that this is the app's HTTP port",
        )
    }

    pub(super) fn too_large(limit: usize) -> Failure {
        Failure::new(
            Kind::TooLarge,
            format!("the answer is longer than {} MiB and was not read to its end", limit >> 20),
            "answer with the fields of a callback alone; OpenIM reads without a limit until its timeout",
        )
    }

    pub(super) fn bad_gzip() -> Failure {
        Failure::new(
            Kind::BadGzip,
            "the answer says Content-Encoding: gzip, and cannot be unpacked",
            "do not compress answers, or check what sets that header",
        )
    }
}

/// A name out of a certificate, without the debug dress that rustls gives it.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

/// A failure as one sentence with its remedy.
impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}; try: {}", self.sentence, self.remedy)
    }
}
