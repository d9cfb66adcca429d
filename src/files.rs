//! Noticing that files changed, and reading them with a bound.
//!
//! Certificates, client CAs, passwords and policies are all files that someone replaces under a running
//! process: `kubectl`, cert-manager, an editor, `cp`. Each does it differently (a symlink swap, a rename, a
//! write in place, first one file of a pair and later the other), and none of them says when it is done.
//!
//! So files are polled. Four times a second each path is looked up through its symlinks; what that yields is
//! the [`Fingerprint`]. When it differs from the last one the files are being replaced, and when two looks in a row
//! agree again they are loaded: an editor that empties a file before it writes it, or writes it in pieces, is not read
//! half-way, where what stands there may well be good by itself (an empty policy is). Polling rather than inotify:
//!
//! * inotify instances are few (`fs.inotify.max_user_instances` is 128 per user, and all pods of a node that run
//!   under one user share them), and a process that gets none would never see a renewed certificate;
//! * inotify watches inodes, and Kubernetes replaces what a path leads to by swapping the symlink `..data` two
//!   levels up; network file systems and FUSE report nothing at all;
//! * it costs a few `stat` calls, some 2 microseconds each.
//!
//! The calls block: a mounted Secret answers from memory, and a thread to wait for it would cost more than the
//! wait. A file system over a network may hang, so watches belong on a runtime that serves no callbacks.

use std::convert::Infallible;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often files are looked at. A change is in force within two of these, one to notice it and one to see that it is
/// over; where another follows at once within three.
pub const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How many looks in a row may find something new before the files are loaded as they are: a file that is written all
/// the time must not stay unread, and each of two quick edits is in force within a second.
const MOVING_POLLS: u32 = 3;

/// After how many polls a load that failed is tried again with the files unchanged: once a minute. Some failures
/// end by themselves, as when a certificate becomes valid or a directory above the file becomes searchable.
const RETRY_POLLS: u32 = 240;

/// Files that are written all the time and never load are reported after this many loads all the same, two seconds
/// after the first change was seen: a writer that is never done must not stay unmentioned.
const FAILING_LOADS: u32 = 3;

/// What a set of paths led to at one moment: equal fingerprints mean that nothing was replaced or written.
///
/// It holds device, inode, size, and the times of the last write and of the last change of the inode (which no
/// tool can set back), all of the file behind the symlinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    stamps: Vec<(PathBuf, Stamp)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamp {
    Found { dev: u64, inode: u64, size: u64, written: (i64, i64), changed: (i64, i64) },
    Missing(io::ErrorKind),
}

impl Fingerprint {
    /// Looks at each of the paths now.
    ///
    /// Take it *before* loading the files for the first time: a change that falls between the two is then seen.
    #[must_use]
    pub fn of(paths: &[PathBuf]) -> Self {
        Self { stamps: paths.iter().map(|path| (path.clone(), Stamp::of(path))).collect() }
    }

    /// Looks at the same paths again; true when something is different. The new look replaces the old.
    fn renew(&mut self) -> bool {
        let mut changed = false;
        for (path, stamp) in &mut self.stamps {
            let now = Stamp::of(path);
            changed |= *stamp != now;
            *stamp = now;
        }
        changed
    }
}

impl Stamp {
    fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(found) => Self::Found {
                dev: found.dev(),
                inode: found.ino(),
                size: found.size(),
                written: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            },
            Err(error) => Self::Missing(error.kind()),
        }
    }
}

/// What a [`Watch`] has to say about its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News<T, E> {
    /// They hold something new, and it loaded.
    Changed(T),
    /// After a reported failure they hold again what is in force already.
    Restored,
    /// They changed and do not load, also at a second try; what is in force stays. Told once for each change.
    Failed(E),
}

/// A set of files, what they were like when last looked at, and how to load them.
///
/// `load` returns `Ok(None)` when it read everything well and found what is in force already (a `touch`, a
/// resync of the kubelet): only it knows what to compare.
#[derive(Debug)]
pub struct Watch<L> {
    seen: Fingerprint,
    stage: Stage,
    /// A failure was told, and nothing good since.
    in_failure: bool,
    load: L,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The files are as they were when they were last loaded.
    Settled,
    /// The last so many looks each found something new, and nothing was loaded since. So many loads failed before, and
    /// nobody was told.
    Moving { polls: u32, failures: u32 },
    /// The files as they are failed to load once, and nobody was told: the writer may be between two files of a pair.
    Doubtful { failures: u32 },
    /// A failure was told; so many polls are left until the next try.
    Told { polls_left: u32 },
}

impl<L, T, E> Watch<L>
where
    L: FnMut() -> Result<Option<T>, E>,
{
    /// A watch over the files of `seen`, which the caller took before it loaded them for the first time.
    #[must_use]
    pub fn new(seen: Fingerprint, load: L) -> Self {
        Self { seen, stage: Stage::Settled, in_failure: false, load }
    }

    /// Looks at the files every `every`, for ever, and passes on what there is to say.
    pub async fn run(mut self, every: Duration, mut tell: impl FnMut(News<T, E>)) -> Infallible {
        let mut ticks = interval(every);
        // A process that was suspended has no use for the looks it missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(news) = self.poll() {
                tell(news);
            }
        }
    }

    /// One look at the files.
    pub fn poll(&mut self) -> Option<News<T, E>> {
        let changed = self.seen.renew();
        let due = if changed { self.moved() } else { self.stood_still() };
        if !due {
            return None;
        }
        match (self.load)() {
            Ok(found) => self.loaded(found, changed),
            Err(error) => self.failed(error),
        }
    }

    /// Whether files that are still being written are loaded all the same.
    fn moved(&mut self) -> bool {
        let (polls, failures) = match self.stage {
            Stage::Settled | Stage::Told { .. } => (1, 0),
            Stage::Moving { polls, failures } => (polls + 1, failures),
            Stage::Doubtful { failures } => (1, failures),
        };
        self.stage = Stage::Moving { polls, failures };
        polls >= MOVING_POLLS
    }

    fn stood_still(&mut self) -> bool {
        match &mut self.stage {
            Stage::Settled => false,
            Stage::Moving { .. } | Stage::Doubtful { .. } | Stage::Told { polls_left: 0 } => true,
            Stage::Told { polls_left } => {
                *polls_left -= 1;
                false
            }
        }
    }

    fn loaded(&mut self, found: Option<T>, changed: bool) -> Option<News<T, E>> {
        // What was still being written is read again when it is whole.
        self.stage = if changed { Stage::Moving { polls: 0, failures: 0 } } else { Stage::Settled };
        let was_in_failure = std::mem::take(&mut self.in_failure);
        match found {
            Some(new) => Some(News::Changed(new)),
            None => was_in_failure.then_some(News::Restored),
        }
    }

    fn failed(&mut self, error: E) -> Option<News<T, E>> {
        let told = Stage::Told { polls_left: RETRY_POLLS };
        match std::mem::replace(&mut self.stage, told) {
            Stage::Told { .. } => None,
            Stage::Moving { failures, .. } if failures + 1 < FAILING_LOADS => {
                self.stage = Stage::Doubtful { failures: failures + 1 };
                None
            }
            Stage::Settled | Stage::Moving { .. } | Stage::Doubtful { .. } => {
                self.in_failure = true;
                Some(News::Failed(error))
            }
        }
    }
}

/// Why a file could not be read. Each text begins with the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nothing is there, or a symlink leads nowhere.
    #[error("{}: no such file", path.display())]
    Missing {
        /// As it was given.
        path: PathBuf,
    },
    /// The file, or a directory above it, is closed to this process.
    #[error("{}: permission denied{facts}; expected a file that this process may read", path.display())]
    Denied {
        /// As it was given.
        path: PathBuf,
        /// Mode and owner, where they could be seen.
        facts: String,
    },
    /// A directory, pipe, socket or device: none can be read a second time, or watched.
    #[error("{}: is {found}, expected a regular file", path.display())]
    NotAFile {
        /// As it was given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// The file is larger than what is read.
    #[error("{}: is {}, at most {} is read", path.display(), size_text(*found), size_text(*limit))]
    TooLarge {
        /// As it was given.
        path: PathBuf,
        /// Its size in bytes, or the first size over the limit where it grew while it was read.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Anything else the operating system says.
    #[error("{}: cannot be read: {reason}", path.display())]
    Io {
        /// As it was given.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
}

/// Reads a whole regular file of at most `limit` bytes.
///
/// # Errors
///
/// When there is none, it may not be read, is something else than a regular file, or is larger.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let failed = |error: io::Error| ReadError::from_io(path, &error);
    // Not blocking: opening a pipe for reading would otherwise wait for a writer, for ever.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(ReadError::NotAFile { path: path.to_owned(), found: kind_text(&facts) });
    }
    if facts.len() > limit {
        return Err(ReadError::TooLarge { path: path.to_owned(), found: facts.len(), limit });
    }
    let mut content = Vec::with_capacity(usize::try_from(facts.len()).unwrap_or(0));
    file.take(limit.saturating_add(1)).read_to_end(&mut content).map_err(failed)?;
    let found = content.len() as u64;
    if found > limit {
        return Err(ReadError::TooLarge { path: path.to_owned(), found, limit });
    }
    Ok(content)
}

impl ReadError {
    fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        if error.kind() == io::ErrorKind::NotFound {
            return Self::Missing { path };
        }
        if error.kind() == io::ErrorKind::PermissionDenied {
            let facts = fs::metadata(&path).map_or_else(
                |_| String::new(),
                |facts| {
                    format!(" (mode {:04o}, owner {}:{})", facts.mode() & 0o7777, facts.uid(), facts.gid())
                },
            );
            return Self::Denied { path, facts };
        }
        // A socket cannot be opened at all, so it is not seen by the check on the open file.
        if let Ok(facts) = fs::metadata(&path)
            && !facts.is_file()
        {
            return Self::NotAFile { path, found: kind_text(&facts) };
        }
        Self::Io { path, reason: error.to_string() }
    }
}

fn kind_text(facts: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = facts.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// `1MiB`, `1.3MiB`, `12 bytes`; rounded up, so that what is over a limit never looks like the limit.
fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{bytes} bytes");
    };
    let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit));
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole}{name}"),
        (whole, part) => format!("{whole}.{part}{name}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
