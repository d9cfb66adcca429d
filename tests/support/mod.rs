//! What tests of the whole program share: the real binary, a scripted app behind it, callers in front of it.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part of this")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(crate) use app::{Act, App, Asked, Gate};
pub(crate) use callbacks::{Call, Ending, OpenIm, openim_verdict};
pub(crate) use caller::{Answer, Caller, Raw};
pub(crate) use certificates::Authority;
pub(crate) use guard::Guard;
pub(crate) use load::Load;

pub(crate) mod app;
pub(crate) mod callbacks;
pub(crate) mod caller;
pub(crate) mod certificates;
pub(crate) mod frames;
pub(crate) mod guard;
pub(crate) mod lines;
pub(crate) mod load;
pub(crate) mod tls_records;

/// Longest wait for anything that has to happen: an upper bound against hanging, never a measure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for something that has to happen.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting for {what}"),
    }
}

/// A folder of one test, removed at its end.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// A fresh one.
    pub(crate) fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("callback-guard-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file as one rename, the way an editor does, and gives its path.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let (path, new) = (self.0.join(name), self.0.join(format!("{name}.new")));
        std::fs::write(&new, contents).expect("a file in a temporary folder");
        std::fs::rename(&new, &path).expect("a rename in a temporary folder");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Asks again and again until there is something, with a breath in between for those who make it.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, look).await
}

/// An error with all its causes.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
