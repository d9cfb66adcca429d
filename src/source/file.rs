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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::pin::pin;
    use std::sync::Arc;

    use tokio::time::timeout;

    use super::*;
    use crate::files::tests::Folder;
    use crate::metrics::Metrics;

    /// The first rules that are in force while a policy file is emptied, and written so many looks later.
    async fn first_rules(looks: u32) -> Vec<String> {
        let folder = Folder::new();
        let (old, new) = ("{rules: [{name: old}]}", "{rules: [{name: new}]}");
        let path = folder.put("policy.yaml", old);
        let metrics = Arc::new(Metrics::new(prometheus_client::metrics::counter::Counter::default()));
        let publisher = Publisher::new(metrics).0;
        let mut follow = pin!(follow_policy(
            path.clone(),
            Fingerprint::of(std::slice::from_ref(&path)),
            publisher.clone()
        ));
        let (policy, warnings) = policy(&path).expect("good");
        publisher.policy(policy, &warnings, SourceKind::File, shown(&path));
        let mut seen = Vec::new();
        for poll in 0..looks + 6 {
            if poll == 2 {
                fs::write(&path, "").expect("writable");
            }
            if poll == 2 + looks {
                fs::write(&path, new).expect("writable");
            }
            timeout(POLL_INTERVAL, follow.as_mut()).await.expect_err("it never ends");
            let rule = publisher.current().policy.rules()[0].name.to_string();
            if seen.last() != Some(&rule) {
                seen.push(rule);
            }
        }
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_an_editor_empties_before_it_writes_it_does_not_give_way_to_the_defaults() {
        assert_eq!(first_rules(1).await, ["old", "new"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_stays_empty_does() {
        assert_eq!(first_rules(2).await, ["old", "default", "new"]);
    }
}
