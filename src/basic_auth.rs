//! Who may call, by user and password.
//!
//! OpenIM has no setting for a secret that it would show to the app, but Go sends the userinfo of a URL as HTTP
//! Basic authentication (RFC 7617): `https://user:password@app:8443/` in `webhooks.url` is the one way to know
//! the open-source server by. Here is the other half: a file of the pairs that are let in.
//!
//! The comparison must not tell by its duration which user exists, how much of a password was right, or where in
//! the file an entry stands. So what was sent is hashed as a whole, and the hash is compared with that of *each*
//! entry, in constant time and without stopping at the one that fits.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use tokio::sync::watch;

use crate::files::{Fingerprint, News, POLL_INTERVAL, ReadError, Watch, read_bounded};

/// A thousand pairs, each of a thousand bytes.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Every entry is compared for every callback: at 4 nanoseconds each this is 4 microseconds.
const ENTRIES_LIMIT: usize = 1000;

/// So many malformed lines are named; whoever has more has one mistake many times.
const NAMED_LINES: usize = 10;

/// What is longer belongs to nobody: a line of the file is shorter. Four thirds of it is base64.
const PAIR_LIMIT_BYTES: usize = 4096;

/// RFC 7617 wants the padding, and some clients leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The pairs that are let in, as hashes.
#[derive(Clone)]
pub struct Credentials {
    digests: Vec<Digest>,
}

impl Credentials {
    /// Reads one `user:password` a line.
    ///
    /// The password is all that follows the first colon, and may hold colons; a user cannot. A user may have
    /// several lines: that is how a password is changed without a moment in which neither works. Blank lines and
    /// lines that begin with `#` are skipped, so no user's name begins with `#`. Lines end with LF or CR LF.
    ///
    /// # Errors
    ///
    /// When there is no pair, there are too many, or any line is not one: somebody would be locked out by a
    /// typing error that nobody sees.
    pub fn parse(content: &[u8]) -> Result<Self, Problem> {
        // Editors on Windows write it, and it would become the beginning of the first user's name.
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        let mut digests = Vec::new();
        let mut bad = Vec::new();
        for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() || line.starts_with(b"#") {
                continue;
            }
            match fault(line) {
                None => digests.push(digest(&SHA256, line)),
                Some(fault) => bad.push(BadLine { line: index + 1, fault }),
            }
        }
        if !bad.is_empty() {
            return Err(Problem::BadLines(bad));
        }
        match digests.len() {
            0 => Err(Problem::Empty),
            found if found > ENTRIES_LIMIT => Err(Problem::TooMany { found }),
            _ => Ok(Self { digests }),
        }
    }

    /// Whether the value of an `Authorization` header is one of the pairs. No header is none of them.
    #[must_use]
    pub fn verify(&self, authorization_header: Option<&[u8]>) -> bool {
        let Some(pair) = authorization_header.and_then(pair) else { return false };
        let given = digest(&SHA256, &pair);
        let mut fits = false;
        for known in &self.digests {
            // `|` and not `||`, which would skip the rest.
            fits |= verify_slices_are_equal(known.as_ref(), given.as_ref()).is_ok();
        }
        fits
    }

    /// How many pairs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.digests.len()
    }

    fn is(&self, other: &Self) -> bool {
        let bytes =
            |credentials: &Self| credentials.digests.iter().flat_map(Digest::as_ref).copied().collect();
        let (ours, theirs): (Vec<u8>, Vec<u8>) = (bytes(self), bytes(other));
        ours == theirs
    }
}

/// `user:password` out of `Basic dXNlcjpwYXNzd29yZA==`. What can be told from here is what the caller sent, not
/// what we know, so it may return early.
fn pair(header: &[u8]) -> Option<Vec<u8>> {
    const SCHEME: &[u8] = b"basic";
    let header = header.trim_ascii();
    let (scheme, encoded) = header.split_at_checked(SCHEME.len())?;
    // RFC 9110, 11.1 and 11.4: the scheme in any case, then one or more spaces.
    let encoded = encoded.strip_prefix(b" ")?.trim_ascii_start();
    if !scheme.eq_ignore_ascii_case(SCHEME) || encoded.len() > PAIR_LIMIT_BYTES.div_ceil(3) * 4 {
        return None;
    }
    BASE64.decode(encoded).ok()
}

fn fault(line: &[u8]) -> Option<Fault> {
    if line.len() > PAIR_LIMIT_BYTES {
        return Some(Fault::TooLong);
    }
    let Ok(text) = std::str::from_utf8(line) else { return Some(Fault::NotUtf8) };
    // RFC 7617, 2: neither part may hold control characters.
    if text.chars().any(char::is_control) {
        return Some(Fault::Control);
    }
    let Some((user, password)) = text.split_once(':') else { return Some(Fault::NoColon) };
    if user.is_empty() {
        Some(Fault::NoUser)
    } else if password.is_empty() {
        Some(Fault::NoPassword)
    } else if text.trim() != text {
        Some(Fault::Space)
    } else {
        None
    }
}

/// What is wrong with a file of pairs. No text made of it repeats what the file holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no pair in it.
    #[error("holds no pair, expected one `user:password` a line; nobody could call")]
    Empty,
    /// There are more pairs than are compared.
    #[error("holds {found} pairs, at most {ENTRIES_LIMIT} are compared")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// Lines that are not pairs, all of them.
    #[error("{}", lines_text(.0))]
    BadLines(Vec<BadLine>),
}

/// A line that is not a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is no colon in it.
    NoColon,
    /// Nothing stands before the colon.
    NoUser,
    /// Nothing stands after the colon.
    NoPassword,
    /// It begins or ends with a space: nobody sees it, and it would be part of the user or the password.
    Space,
    /// It holds a control character, a tab for instance.
    Control,
    /// It is not UTF-8.
    NotUtf8,
    /// It is longer than what is compared.
    TooLong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoColon => f.write_str("no colon, expected `user:password`"),
            Self::NoUser => f.write_str("no user before the colon"),
            Self::NoPassword => f.write_str("no password after the colon"),
            Self::Space => f.write_str("begins or ends with a space"),
            Self::Control => f.write_str("holds a control character"),
            Self::NotUtf8 => f.write_str("is not UTF-8"),
            Self::TooLong => write!(f, "is longer than {PAIR_LIMIT_BYTES} bytes"),
        }
    }
}

fn lines_text(bad: &[BadLine]) -> String {
    let named: Vec<String> =
        bad.iter().take(NAMED_LINES).map(|bad| format!("line {}: {}", bad.line, bad.fault)).collect();
    match bad.len() - named.len() {
        0 => named.join("; "),
        more => format!("{}; and {more} more lines", named.join("; ")),
    }
}

/// Why the file cannot be used. Each text begins with the flag and the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("--basic-auth-file: {0}")]
    Read(ReadError),
    /// It was read and cannot be used.
    #[error("--basic-auth-file: {}: {problem}", path.display())]
    Content {
        /// As it was given.
        path: PathBuf,
        /// Why not.
        problem: Problem,
    },
}

/// What became of a change of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadEvent {
    /// What it holds now is in force.
    Reloaded {
        /// How many pairs there are now.
        count: usize,
    },
    /// After a failure it holds again what is in force.
    Restored,
    /// What it holds cannot be used; what was in force stays.
    Failed {
        /// Flag, path and what is wrong.
        reason: String,
    },
}

/// The pairs in force. Clones follow the same [`Reloader`].
#[derive(Debug, Clone)]
pub struct BasicAuth {
    current: watch::Receiver<Arc<Credentials>>,
}

impl BasicAuth {
    /// The pairs in force now.
    #[must_use]
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.current.borrow())
    }

    /// Whether the value of an `Authorization` header is let in now.
    #[must_use]
    pub fn verify(&self, authorization_header: Option<&[u8]>) -> bool {
        self.credentials().verify(authorization_header)
    }
}

/// Follows the file of a [`BasicAuth`].
#[derive(Debug)]
#[must_use = "nothing is reloaded unless it runs"]
pub struct Reloader {
    path: PathBuf,
    seen: Fingerprint,
    current: watch::Sender<Arc<Credentials>>,
}

/// Loads the file for the first time.
///
/// # Errors
///
/// When it cannot be read, or is malformed anywhere.
pub fn open(path: PathBuf) -> Result<(BasicAuth, Reloader), Error> {
    let seen = Fingerprint::of(std::slice::from_ref(&path));
    let (sender, receiver) = watch::channel(Arc::new(load(&path)?));
    Ok((BasicAuth { current: receiver }, Reloader { path, seen, current: sender }))
}

fn load(path: &Path) -> Result<Credentials, Error> {
    let content = read_bounded(path, FILE_LIMIT_BYTES).map_err(Error::Read)?;
    Credentials::parse(&content).map_err(|problem| Error::Content { path: path.to_owned(), problem })
}

impl Reloader {
    /// Follows the file for ever, and tells what became of each change.
    pub async fn run(self, mut on_event: impl FnMut(ReloadEvent)) -> Infallible {
        let Self { path, seen, current } = self;
        let load = || {
            let found = load(&path)?;
            Ok((!found.is(&current.borrow())).then_some(found))
        };
        let tell = |news: News<Credentials, Error>| {
            on_event(match news {
                News::Changed(credentials) => {
                    let count = credentials.count();
                    current.send_replace(Arc::new(credentials));
                    ReloadEvent::Reloaded { count }
                }
                News::Restored => ReloadEvent::Restored,
                News::Failed(error) => ReloadEvent::Failed { reason: error.to_string() },
            });
        };
        Watch::new(seen, load).run(POLL_INTERVAL, tell).await
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("count", &self.count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
