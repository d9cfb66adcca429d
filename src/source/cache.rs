//! The last good policy from a ConfigMap, kept on disk for a container that restarts while the API server is away.
//!
//! One file in a folder of one pod: an `emptyDir` outlives its containers and nothing else. Policy and override stand
//! in it as they were written, so that whatever version of the program reads them judges them anew.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{error, info};

use super::Publisher;
use super::config_map::Name;
use crate::files::{ReadError, read_bounded};

/// The file in the folder.
const FILE: &str = "last-good.json";

/// A ConfigMap holds at most 1 MiB, of which JSON makes 6 MiB at the worst.
const LIMIT_BYTES: u64 = 8 << 20;

/// The folder of `--policy-cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// What is kept: the texts that were good last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The `resourceVersion` of the ConfigMap that had the policy.
    pub revision: String,
    /// The policy's text; none where no good one came yet.
    pub policy: Option<String>,
    /// The override's text; none where there is none.
    pub over: Option<String>,
}

impl Cache {
    /// A folder, which need not be there yet.
    pub fn new(folder: &Path) -> Cache {
        Cache { folder: folder.to_owned() }
    }

    /// What was kept of this ConfigMap; nothing where there is no file, or it is about another ConfigMap.
    ///
    /// # Errors
    ///
    /// The file and why it cannot be read or used.
    pub fn load(&self, name: &Name) -> Result<Kept, String> {
        let path = self.path();
        let bytes = match read_bounded(&path, LIMIT_BYTES) {
            Ok(bytes) => bytes,
            Err(ReadError::Missing { .. }) => return Ok(Kept::default()),
            Err(error) => return Err(error.to_string()),
        };
        let found: Value = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{}: not what was written here: {error}", path.display()))?;
        if found["configmap"] != name.to_string() {
            let whose = found["configmap"].as_str().unwrap_or("nobody");
            return Err(format!("{}: is about ConfigMap {whose}, expected {name}", path.display()));
        }
        let text = |key: &str| found[key].as_str().map(str::to_owned);
        let revision = text("resourceVersion").unwrap_or_default();
        Ok(Kept { revision, policy: text("policy"), over: text("override") })
    }

    /// Writes what is kept in the place of what was, whole or not at all.
    ///
    /// # Errors
    ///
    /// The folder or file and what the operating system said.
    fn store(&self, name: &Name, kept: &Kept) -> Result<(), String> {
        let Kept { revision, policy, over } = kept;
        let text = json!({
            "configmap": name.to_string(), "resourceVersion": revision, "policy": policy, "override": over,
        });
        let (path, new) = (self.path(), self.folder.join(format!("{FILE}.new")));
        let told = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(0o700).create(&self.folder).map_err(|error| told(&self.folder, error))?;
        let written = create_private(&new).and_then(|mut file| file.write_all(text.to_string().as_bytes()));
        written.map_err(|error| told(&new, error))?;
        // A rename is atomic for the next reader; the loss of it with the node loses the emptyDir too, so no fsync.
        fs::rename(&new, &path).map_err(|error| told(&path, error))
    }

    /// The file, for who has to be told of it.
    pub fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }
}

/// A new file that only we may read. What is there under its name is taken away, not followed and not reused: a link may lead
/// elsewhere, and a file made by another keeps its mode.
fn create_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    // Whatever the umask left of it.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Hands over what is to be kept. The disk is somebody else's trouble: the last one handed over is what is written.
#[derive(Debug)]
pub(super) struct Keeper(watch::Sender<Arc<Kept>>);

impl Keeper {
    /// Starts the task that writes. Runs inside a runtime; each write has a thread of its own, as a disk may hang.
    pub(super) fn start(cache: Cache, name: Name, publisher: Publisher) -> Keeper {
        let (sender, receiver) = watch::channel(Arc::default());
        tokio::spawn(write(cache, name, publisher, receiver));
        Keeper(sender)
    }

    pub(super) fn keep(&self, kept: &Kept) {
        self.0.send_replace(Arc::new(kept.clone()));
    }
}

async fn write(cache: Cache, name: Name, publisher: Publisher, mut receiver: watch::Receiver<Arc<Kept>>) {
    let mut in_failure = false;
    while receiver.changed().await.is_ok() {
        let kept = Arc::clone(&receiver.borrow_and_update());
        let (cache, name) = (cache.clone(), name.clone());
        let written = tokio::task::spawn_blocking(move || cache.store(&name, &kept)).await;
        let failed = written.unwrap_or_else(|error| Err(error.to_string())).err();
        match &failed {
            Some(reason) if !in_failure => error!(
                reason,
                "The last good policy cannot be kept on disk (--policy-cache); it is in force all the same, but a \
                 restart with the API server away would not have it"
            ),
            None if in_failure => info!("The last good policy is kept on disk again"),
            Some(_) | None => {}
        }
        in_failure = failed.is_some();
        publisher.cache_problem(failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    fn name() -> Name {
        "shop/policy".parse().expect("valid")
    }

    fn kept(policy: &str) -> Kept {
        Kept { revision: "7".to_owned(), policy: Some(policy.to_owned()), over: None }
    }

    #[test]
    fn what_is_kept_is_read_again_and_replaced_whole() {
        let folder = Folder::new();
        let cache = Cache::new(&folder.path("made/when/needed"));
        assert_eq!(cache.load(&name()), Ok(Kept::default()), "nothing yet");
        for policy in ["mode: Observe\n", "\u{feff}mode: Enforce # \"quoted\" \\ \u{1}"] {
            cache.store(&name(), &kept(policy)).expect("stored");
            assert_eq!(cache.load(&name()), Ok(kept(policy)));
        }
        let files = fs::read_dir(cache.path().parent().expect("a folder")).expect("readable").count();
        assert_eq!(files, 1, "no half file is left");
    }

    #[test]
    fn what_is_about_another_config_map_or_was_cut_is_not_used() {
        let folder = Folder::new();
        let cache = Cache::new(&folder.path("cache"));
        cache.store(&name(), &kept("")).expect("stored");
        let other = cache.load(&"shop/other".parse().expect("valid")).expect_err("another's");
        assert!(other.contains("shop/policy") && other.contains("expected shop/other"), "{other}");
        fs::write(cache.path(), "{\"configmap\": \"shop/po").expect("writable");
        assert!(cache.load(&name()).expect_err("half").contains("last-good.json"));
        fs::write(cache.path(), vec![b' '; (LIMIT_BYTES + 1) as usize]).expect("writable");
        assert!(cache.load(&name()).expect_err("too large").contains("at most 8MiB"));
    }

    #[test]
    fn what_is_kept_is_private_and_goes_nowhere_else() {
        let folder = Folder::new();
        let cache = Cache::new(&folder.path("made/cache"));
        let mode = |path: &Path| fs::symlink_metadata(path).expect("there").permissions().mode() & 0o777;
        cache.store(&name(), &kept("one")).expect("stored");
        assert_eq!(mode(&cache.path()), 0o600);
        assert_eq!(mode(&folder.path("made/cache")), 0o700);
        // A link under the name that is written to, and a file that all may read and write.
        let (new, elsewhere) = (folder.path("made/cache/last-good.json.new"), folder.path("elsewhere"));
        fs::write(&elsewhere, "theirs").expect("writable");
        std::os::unix::fs::symlink(&elsewhere, &new).expect("a link");
        cache.store(&name(), &kept("two")).expect("stored");
        assert_eq!(fs::read_to_string(&elsewhere).expect("readable"), "theirs");
        fs::write(&new, "").expect("writable");
        fs::set_permissions(&new, Permissions::from_mode(0o666)).expect("ours");
        cache.store(&name(), &kept("three")).expect("stored");
        assert_eq!((mode(&cache.path()), cache.load(&name())), (0o600, Ok(kept("three"))));
        assert!(fs::symlink_metadata(cache.path()).expect("there").is_file());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = Folder::new();
        folder.put("file", "");
        let failed = Cache::new(&folder.path("file/below")).store(&name(), &kept("")).expect_err("a file");
        assert!(failed.contains("file/below"), "{failed}");
    }
}
