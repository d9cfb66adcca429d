//! PEM files, read strictly: each block must be whole and of a known kind.
//!
//! A lenient reader skips what it does not understand, and a trust list with a damaged block then is a shorter
//! list, a chain one certificate less; both are noticed only by those who can no longer connect. Text outside
//! of blocks stays allowed: tools write the subject's name there.
//!
//! No text made here repeats what a file holds: it may be a key.

use rustls::pki_types::pem::{Error as Unreadable, PemObject};

/// What is wrong with the content of a certificate, key or client CA file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is nothing in it.
    #[error("is empty")]
    Empty,
    /// It has no block of the kind that is looked for.
    #[error("holds no {expected}; {found}")]
    Nothing {
        /// What is looked for.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
    /// A line that was surely meant to begin a block does not.
    #[error(
        "line {line}: looks like the beginning of a block, expected `-----BEGIN ...-----` and nothing else"
    )]
    Marker {
        /// Counted from 1.
        line: usize,
    },
    /// A block has no end.
    #[error(
        "line {line}: the block that begins here has no END line of the same kind; the file may be cut short"
    )]
    Unfinished {
        /// Where the block begins.
        line: usize,
    },
    /// A block is not base64.
    #[error("line {line}: the block that begins here is not base64")]
    NotBase64 {
        /// Where the block begins.
        line: usize,
    },
    /// A block of a kind that has no place in this file.
    #[error("line {line}: unexpected kind of block, expected {expected}")]
    Unexpected {
        /// Where the block begins.
        line: usize,
        /// What the file may hold.
        expected: &'static str,
    },
    /// A certificate that is not one.
    #[error("line {line}: the certificate that begins here is not X.509 of version 3")]
    NotACertificate {
        /// Where the block begins.
        line: usize,
    },
    /// The private key needs a passphrase.
    #[error("the private key is encrypted, expected one without a passphrase (`openssl pkey` removes it)")]
    Encrypted,
    /// More than one private key.
    #[error("holds {found} private keys, expected one")]
    ManyKeys {
        /// How many.
        found: usize,
    },
    /// Not a key that can sign for TLS.
    #[error(
        "the private key cannot be used, expected RSA of 2048 to 8192 bits, ECDSA over P-256, P-384 or P-521, or \
         Ed25519, as PKCS#8, PKCS#1 or SEC 1"
    )]
    BadKey,
    /// The key is that of another certificate.
    #[error("the private key does not belong to the first certificate of the certificate file")]
    Mismatch,
    /// The key is that of a later certificate of the chain.
    #[error(
        "the private key belongs to certificate {position}, expected the server's own certificate first and those \
         of its issuers after it"
    )]
    Order {
        /// Counted from 1.
        position: usize,
    },
    /// Outside of its time, while what it would replace is within.
    #[error("the certificate {fault}; the one in force is valid, so it stays")]
    Worse {
        /// As [`Validity::fault`](super::Validity::fault) says it.
        fault: String,
    },
}

/// One block of a PEM file.
pub(super) struct Block<'a> {
    /// The line it begins in, counted from 1.
    pub(super) line: usize,
    pub(super) label: &'a [u8],
    /// From its BEGIN line up to that of the next block.
    text: &'a [u8],
}

/// The blocks of a file, their BEGIN lines checked, their content not yet.
pub(super) fn blocks(content: &[u8]) -> Result<Vec<Block<'_>>, Problem> {
    if content.trim_ascii().is_empty() {
        return Err(Problem::Empty);
    }
    let mut blocks: Vec<Block<'_>> = Vec::new();
    let mut begin = 0;
    for (index, text) in content.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let line = text.trim_ascii_end();
        if let Some(label) = line.strip_prefix(b"-----BEGIN ").and_then(|rest| rest.strip_suffix(b"-----")) {
            blocks.push(Block { line: index + 1, label, text: &content[begin..] });
        } else if is_broken_marker(line) {
            return Err(Problem::Marker { line: index + 1 });
        }
        begin += text.len();
    }
    let mut end = content.len();
    for block in blocks.iter_mut().rev() {
        let start = content.len() - block.text.len();
        block.text = &content[start..end];
        end = start;
    }
    Ok(blocks)
}

/// Indented (as when copied out of YAML), with a dash too few, or with a typographic one.
fn is_broken_marker(line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    let is_dash = |byte: &u8| *byte == b'-' || !byte.is_ascii();
    let dashes = line.iter().take_while(|byte| is_dash(byte)).count();
    dashes > 0 && line[dashes..].trim_ascii_start().starts_with(b"BEGIN ")
}

impl Block<'_> {
    /// The content of the block as the kind that its label promised.
    #[expect(clippy::wildcard_enum_match_arm, reason = "an enum of rustls that may grow")]
    pub(super) fn parse<T: PemObject>(&self) -> Result<T, Problem> {
        let line = self.line;
        T::from_pem_slice(self.text).map_err(|error| match error {
            Unreadable::Base64Decode(_) => Problem::NotBase64 { line },
            Unreadable::MissingSectionEnd { .. } => Problem::Unfinished { line },
            // The label was checked, so what else there is concerns the block's own text.
            _ => Problem::Marker { line },
        })
    }

    pub(super) fn is_certificate(&self) -> bool {
        self.label == b"CERTIFICATE"
    }

    pub(super) fn is_key(&self) -> bool {
        self.label.ends_with(b"PRIVATE KEY")
    }

    /// PKCS#8, PKCS#1 or SEC 1; there is DSA, and OpenSSH's own form, too.
    pub(super) fn is_usable_key(&self) -> bool {
        matches!(self.label, b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY")
    }

    /// Encrypted as PKCS#8, or in the way of OpenSSL before it.
    pub(super) fn is_encrypted(&self) -> bool {
        let headed =
            |line: &[u8]| line.starts_with(b"Proc-Type:") && line.trim_ascii_end().ends_with(b"ENCRYPTED");
        self.label == b"ENCRYPTED PRIVATE KEY" || self.text.split(|byte| *byte == b'\n').any(headed)
    }

    /// What `openssl ecparam -genkey` writes before the key; the key names its curve itself.
    pub(super) fn is_curve(&self) -> bool {
        self.label == b"EC PARAMETERS"
    }
}
