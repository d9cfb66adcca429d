//! A policy file and an override file, followed while the process runs.

use std::path::{Path, PathBuf};

use crate::files::{Fingerprint, News, POLL_INTERVAL, ReadError, Watch, read_bounded};
use crate::in_force::SourceKind;
use crate::policy::{Override, Policy, Warnings};

use super::{Publisher, TEXT_LIMIT_BYTES, compile, compile_override, shown};

/// A text has this limit wherever it comes from.
const FILE_LIMIT_BYTES: u64 = TEXT_LIMIT_BYTES as u64;

/// Follows a policy file for ever. `seen` was taken before it was loaded for the first time.
pub async fn follow_policy(path: PathBuf, seen: Fingerprint, publisher: Publisher) {
    let load = || {
        if publisher.is_from_cluster() {
            return Ok(None);
        }
        let (policy, warnings) = policy(&path)?;
        let now = publisher.current();
        let same = now.policy.hash() == policy.hash() && now.source == SourceKind::File;
        Ok((!same).then_some((policy, warnings)))
    };
    let tell = |news: News<(Policy, Warnings), String>| match news {
        News::Changed((policy, warnings)) => {
            publisher.policy(policy, &warnings, SourceKind::File, shown(&path));
        }
        News::Restored => publisher.policy_is_good(),
        News::Failed(reason) => publisher.refused_policy(&shown(&path), reason),
    };
    Watch::new(seen, load).run(POLL_INTERVAL, tell).await;
}

/// Follows an override file for ever.
pub async fn follow_override(path: PathBuf, seen: Fingerprint, publisher: Publisher) {
    let load = || {
        if publisher.is_from_cluster() {
            return Ok(None);
        }
        let (over, warnings) = over(&path)?;
        let same = publisher.current().over == over;
        Ok((!same).then_some((over, warnings)))
    };
    let tell = |news: News<(Option<Override>, Warnings), String>| match news {
        News::Changed((over, warnings)) => publisher.over(over, &warnings),
        News::Restored => publisher.override_is_good(),
        News::Failed(reason) => publisher.refused_override(&shown(&path), reason),
    };
    Watch::new(seen, load).run(POLL_INTERVAL, tell).await;
}

/// Reads a policy.
///
/// # Errors
///
/// Why the file cannot be read, or every problem of what is in it, a line each.
pub fn policy(path: &Path) -> Result<(Policy, Warnings), String> {
    let bytes = read_bounded(path, FILE_LIMIT_BYTES).map_err(|error| error.to_string())?;
    compile(&text(path, bytes)?)
}

/// Reads an override; a file that is not there is none.
///
/// # Errors
///
/// As for a policy.
pub(super) fn over(path: &Path) -> Result<(Option<Override>, Warnings), String> {
    match read_bounded(path, FILE_LIMIT_BYTES) {
        Ok(bytes) => compile_override(&text(path, bytes)?),
        Err(ReadError::Missing { .. }) => Ok((None, Warnings::default())),
        Err(error) => Err(error.to_string()),
    }
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| format!("{}: not UTF-8: {}", path.display(), error.utf8_error()))
}
