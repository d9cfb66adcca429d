//! Why a handshake failed, as a metric label.

use std::io;

use rustls::{AlertDescription, Error, PeerIncompatible};

/// Why a handshake failed. A closed set, so that it can be a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// It was not done in time.
    Timeout,
    /// The caller speaks HTTP without TLS: `http://` in its URL.
    PlainHttp,
    /// A client CA is set and the caller presented no certificate.
    NoClientCertificate,
    /// The caller's certificate is not one that we accept: of another authority, expired, not for clients.
    BadCertificate,
    /// The caller does not accept *our* certificate, and said so: of an authority it does not know, expired, for
    /// another name. Go says `bad_certificate` for all of these.
    UnknownCa,
    /// Neither TLS 1.3 nor 1.2 on the caller's side.
    ProtocolVersion,
    /// No cipher suite, group or signature scheme in common.
    NoCommonCipher,
    /// The caller's ALPN list has neither `h2` nor `http/1.1`.
    NoCommonAlpn,
    /// Not TLS, or TLS that breaks the rules.
    Garbage,
    /// The caller closed or reset the connection without a word, as a port scan or a TCP probe does.
    Closed,
    /// Any other error of the connection.
    Io,
}

impl HandshakeFailure {
    /// All of them, for metrics that start at zero.
    pub const ALL: [Self; 11] = [
        Self::Timeout,
        Self::PlainHttp,
        Self::NoClientCertificate,
        Self::BadCertificate,
        Self::UnknownCa,
        Self::ProtocolVersion,
        Self::NoCommonCipher,
        Self::NoCommonAlpn,
        Self::Garbage,
        Self::Closed,
        Self::Io,
    ];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::PlainHttp => "plain-http",
            Self::NoClientCertificate => "no-client-certificate",
            Self::BadCertificate => "bad-certificate",
            Self::UnknownCa => "unknown-ca",
            Self::ProtocolVersion => "protocol-version",
            Self::NoCommonCipher => "no-common-cipher",
            Self::NoCommonAlpn => "no-common-alpn",
            Self::Garbage => "garbage",
            Self::Closed => "closed",
            Self::Io => "io",
        }
    }

    /// What the error of a TLS accept means. [`PlainHttp`](Self::PlainHttp) is never among it: that is for who has
    /// seen the first bytes, see [`looks_like_plain_http`].
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "an enum of the standard library that may grow")]
    pub fn of(error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            return Self::of_tls(tls);
        }
        match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Io,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "enums of rustls that may grow")]
    fn of_tls(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::NoClientCertificate,
            Error::InvalidCertificate(_) => Self::BadCertificate,
            Error::NoApplicationProtocol => Self::NoCommonAlpn,
            Error::PeerIncompatible(what) => match what {
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                // Came with TLS 1.2, and is looked for before the version is.
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Self::ProtocolVersion,
                _ => Self::NoCommonCipher,
            },
            Error::AlertReceived(alert) => Self::of_alert(*alert),
            _ => Self::Garbage,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "an enum of rustls that may grow")]
    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            // A signature did not fit: the caller trusts another certificate of the same name.
            | AlertDescription::DecryptError
            | AlertDescription::UnrecognisedName => Self::UnknownCa,
            AlertDescription::ProtocolVersion | AlertDescription::InappropriateFallback => {
                Self::ProtocolVersion
            }
            AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
                Self::NoCommonCipher
            }
            AlertDescription::NoApplicationProtocol => Self::NoCommonAlpn,
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => Self::Closed,
            _ => Self::Garbage,
        }
    }
}

/// Whether the first bytes of a connection are those of HTTP without TLS, of HTTP/1 as of HTTP/2.
///
/// Three bytes suffice; no TLS record begins with a letter.
#[must_use]
pub fn looks_like_plain_http(first: &[u8]) -> bool {
    const STARTS: [&[u8]; 10] = [
        b"GET ",
        b"POST ",
        b"PUT ",
        b"HEAD ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"TRACE ",
        b"CONNECT ",
        // RFC 9113, 3.4: the client connection preface.
        b"PRI * HTTP/2.0\r\n",
    ];
    let agrees = |start: &&[u8]| first.iter().zip(*start).all(|(found, expected)| found == expected);
    first.len() >= 3 && STARTS.iter().any(agrees)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CertificateError, InvalidMessage};

    #[test]
    fn errors_of_the_connection_are_told_apart() {
        let rows = [
            (io::ErrorKind::UnexpectedEof, "closed"),
            (io::ErrorKind::ConnectionReset, "closed"),
            (io::ErrorKind::TimedOut, "timeout"),
            (io::ErrorKind::Other, "io"),
            // The kind that errors of TLS have, without one.
            (io::ErrorKind::InvalidData, "io"),
        ];
        for (kind, label) in rows {
            assert_eq!(HandshakeFailure::of(&kind.into()).label(), label, "{kind:?}");
        }
    }

    #[test]
    fn errors_of_tls_are_told_apart_by_whose_fault_they_are() {
        let rows = [
            (Error::NoCertificatesPresented, "no-client-certificate"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "bad-certificate"),
            (Error::AlertReceived(AlertDescription::BadCertificate), "unknown-ca"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "unknown-ca"),
            (Error::AlertReceived(AlertDescription::CertificateExpired), "unknown-ca"),
            (Error::AlertReceived(AlertDescription::DecryptError), "unknown-ca"),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), "protocol-version"),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), "no-common-cipher"),
            (Error::AlertReceived(AlertDescription::DecodeError), "garbage"),
            (Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered), "protocol-version"),
            (Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon), "no-common-cipher"),
            (Error::NoApplicationProtocol, "no-common-alpn"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "garbage"),
        ];
        for (error, label) in rows {
            let text = format!("{error:?}");
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(HandshakeFailure::of(&error).label(), label, "{text}");
        }
    }

    #[test]
    fn no_two_failures_share_a_label() {
        let mut labels = HandshakeFailure::ALL.map(HandshakeFailure::label);
        labels.sort_unstable();
        assert!(labels.windows(2).all(|pair| pair[0] != pair[1]), "{labels:?}");
    }

    #[test]
    fn plain_http_is_recognised_by_three_bytes_and_tls_never_is() {
        for first in [
            &b"POS"[..],
            b"POST /callback",
            b"POST / HTTP/1.1\r\n",
            b"GET",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            b"OPTIONS * ",
        ] {
            assert!(looks_like_plain_http(first), "{first:?}");
        }
        for first in
            [&b""[..], b"PO", b"\x16\x03\x01", b"POSTS", b"get / ", b"SSH-2.0-", b"PRIM", b"\x80\x2e\x01"]
        {
            assert!(!looks_like_plain_http(first), "{first:?}");
        }
    }
}
