//! Certificate, key and client CA from files, now and whenever they change.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{
    ClientCa, Credentials, PairError, Problem, Publisher, Standing, Tls, Validity, chain, now, usable_key,
};
use crate::files::{Fingerprint, News, POLL_INTERVAL, ReadError, Watch, read_bounded};

/// A chain has some 5 KiB; the whole list of the public web's authorities as PEM has some 220.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Where the credentials of a listener are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate chain, the server's own first.
    pub cert: PathBuf,
    /// The private key; may be the same file.
    pub key: PathBuf,
    /// The authorities whose callers are let in; absent, everybody is.
    pub client_ca: Option<PathBuf>,
}

/// The flag that named a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// `--tls-cert`
    TlsCert,
    /// `--tls-key`
    TlsKey,
    /// `--client-ca`
    ClientCa,
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TlsCert => "--tls-cert",
            Self::TlsKey => "--tls-key",
            Self::ClientCa => "--client-ca",
        })
    }
}

/// Why the files cannot be used. Each text begins with the flag and the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{flag}: {error}")]
    Read {
        /// Whose file.
        flag: Flag,
        /// Why not.
        error: ReadError,
    },
    /// A file was read and cannot be used.
    #[error("{flag}: {}: {problem}", path.display())]
    Content {
        /// Whose file.
        flag: Flag,
        /// As it was given.
        path: PathBuf,
        /// Why not.
        problem: Problem,
    },
}

/// All that is wrong with the files; never empty. As text, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Each for itself.
    pub fn iter(&self) -> std::slice::Iter<'_, Error> {
        self.0.iter()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(out, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

impl From<Error> for Errors {
    fn from(error: Error) -> Errors {
        Errors(vec![error])
    }
}

/// What became of a change of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadEvent {
    /// What they hold now is in force.
    Reloaded {
        /// That of the new certificate.
        validity: Validity,
        /// The certificate is outside of its time, as the old one was.
        warning: Option<String>,
    },
    /// After a failure they hold again what is in force.
    Restored,
    /// What they hold cannot be used; what was in force stays.
    Failed {
        /// Flag, path and what is wrong.
        reason: String,
    },
}

/// Follows the files of a [`Tls`].
#[derive(Debug)]
#[must_use = "nothing is reloaded unless it runs"]
pub struct Reloader {
    files: Files,
    seen: Fingerprint,
    publisher: Publisher,
    warning: Option<String>,
}

struct Loaded {
    credentials: Credentials,
    client_ca: Option<ClientCa>,
}

/// Loads the files for the first time.
///
/// A certificate that is expired or not valid yet is taken all the same, as a guard that does not start stops
/// the app: see [`Reloader::warning`].
///
/// # Errors
///
/// Every file that cannot be read, and everything in them that cannot be used.
pub fn open(files: Files) -> Result<(Tls, Reloader), Errors> {
    let seen = Fingerprint::of(&files.paths());
    let loaded = files.load()?;
    let (publisher, tls) = Tls::new(&loaded.credentials, loaded.client_ca.as_ref());
    let warning = files.warning(loaded.credentials.validity(), now());
    Ok((tls, Reloader { files, seen, publisher, warning }))
}

/// Waits for files that could not be loaded until they can, and tells each reason why not yet that differs from the one
/// before. Gives what [`open`] gives.
pub async fn wait(files: Files, first: Errors, mut tell: impl FnMut(&Errors)) -> (Tls, Reloader) {
    // Taken before the first look of this function, and that look is a load: nothing falls in between.
    let seen = Fingerprint::of(&files.paths());
    let mut told = first;
    let mut loaded = open(files.clone());
    let mut watch = Watch::new(seen, || open(files.clone()).map(Some));
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    loop {
        match loaded {
            Ok(opened) => return opened,
            Err(errors) if errors != told => {
                tell(&errors);
                told = errors;
            }
            Err(_) => {}
        }
        loaded = loop {
            ticks.tick().await;
            match watch.poll() {
                Some(News::Changed(opened)) => break Ok(opened),
                Some(News::Failed(errors)) => break Err(errors),
                Some(News::Restored) | None => {}
            }
        };
    }
}

impl Reloader {
    /// What is wrong with the certificate that was loaded first, though it serves.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Follows the files for ever, and tells what became of each change.
    pub async fn run(self, mut on_event: impl FnMut(ReloadEvent)) -> Infallible {
        let Self { files, seen, publisher, warning: _ } = self;
        let load = || files.load_new(&publisher);
        let tell = |news| on_event(apply(&publisher, &files, news));
        Watch::new(seen, load).run(POLL_INTERVAL, tell).await
    }
}

fn apply(publisher: &Publisher, files: &Files, news: News<Loaded, Errors>) -> ReloadEvent {
    match news {
        News::Changed(loaded) => {
            publisher.publish(&loaded.credentials, loaded.client_ca.as_ref());
            let validity = loaded.credentials.validity();
            ReloadEvent::Reloaded { validity, warning: files.warning(validity, now()) }
        }
        News::Restored => ReloadEvent::Restored,
        News::Failed(error) => ReloadEvent::Failed { reason: error.to_string() },
    }
}

impl Files {
    fn paths(&self) -> Vec<PathBuf> {
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten().cloned().collect()
    }

    fn load(&self) -> Result<Loaded, Errors> {
        let mut errors = Vec::new();
        let mut read = |flag, path: &Path| {
            let content = read_bounded(path, FILE_LIMIT_BYTES);
            content.map_err(|error| errors.push(Error::Read { flag, error })).ok()
        };
        let (cert, key) = (read(Flag::TlsCert, &self.cert), read(Flag::TlsKey, &self.key));
        let client_ca = self.client_ca.as_ref().map(|path| (path, read(Flag::ClientCa, path)));
        let mut wrong = |flag, path: &Path, problem| {
            errors.push(Error::Content { flag, path: path.to_owned(), problem });
        };
        let credentials = match (&cert, &key) {
            (Some(cert), Some(key)) => match Credentials::from_pem(cert, key) {
                Ok(credentials) => Some(credentials),
                Err(PairError::Key(problem)) => {
                    wrong(Flag::TlsKey, &self.key, problem);
                    None
                }
                // Half a pair is looked at for itself: it may be wrong too.
                Err(PairError::Certificate(problem)) => {
                    wrong(Flag::TlsCert, &self.cert, problem);
                    usable_key(key).unwrap_or_else(|problem| wrong(Flag::TlsKey, &self.key, problem));
                    None
                }
            },
            (cert, key) => {
                let bad = cert.as_ref().and_then(|cert| chain(cert).err());
                bad.into_iter().for_each(|problem| wrong(Flag::TlsCert, &self.cert, problem));
                let bad = key.as_ref().and_then(|key| usable_key(key).err());
                bad.into_iter().for_each(|problem| wrong(Flag::TlsKey, &self.key, problem));
                None
            }
        };
        let client_ca = client_ca.and_then(|(path, content)| {
            let loaded = ClientCa::from_pem(&content?);
            loaded.map_err(|problem| wrong(Flag::ClientCa, path, problem)).ok()
        });
        match credentials {
            Some(credentials) if errors.is_empty() => Ok(Loaded { credentials, client_ca }),
            Some(_) | None => Err(Errors(errors)),
        }
    }

    /// Loads the files and says whether they hold something else than what is in force, and something no worse.
    fn load_new(&self, publisher: &Publisher) -> Result<Option<Loaded>, Errors> {
        let loaded = self.load()?;
        if publisher.holds(&loaded.credentials, loaded.client_ca.as_ref()) {
            return Ok(None);
        }
        let now = now();
        if publisher.validity().at(now) == Standing::Valid
            && let Some(fault) = loaded.credentials.validity().fault(now)
        {
            let problem = Problem::Worse { fault };
            return Err(Error::Content { flag: Flag::TlsCert, path: self.cert.clone(), problem }.into());
        }
        Ok(Some(loaded))
    }

    fn warning(&self, validity: Validity, now: i64) -> Option<String> {
        let fault = validity.fault(now)?;
        Some(format!(
            "{}: {}: the certificate {fault}; it serves all the same",
            Flag::TlsCert,
            self.cert.display()
        ))
    }
}
