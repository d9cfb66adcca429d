//! A memory cgroup as the kubelet makes one for the container, in both versions of cgroup. It is removed when it is dropped; what a
//! killed test left is removed by the next one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PREFIX: &str = "callback-guard-hostile-";

/// Where the versions have their groups, and the names of the files: limit, most that was used.
const VERSIONS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    ("/sys/fs/cgroup", "memory.max", "memory.peak"),
];

/// How long the kernel may take to let go of a group whose last process has ended.
const REMOVAL: Duration = Duration::from_secs(2);

pub(crate) struct Cgroup {
    folder: PathBuf,
    peak: &'static str,
}

impl Cgroup {
    /// A group with this limit in bytes, or why this machine has none.
    pub(crate) fn limited_to(bytes: u64) -> Result<Cgroup, String> {
        let mut reasons = Vec::new();
        for (root, limit, peak) in VERSIONS {
            let root = Path::new(root);
            if !root.join("cgroup.procs").exists() {
                reasons.push(format!("{}: not mounted", root.display()));
                continue;
            }
            remove_left_overs(root);
            match Cgroup::make(root, limit, peak, bytes) {
                Ok(cgroup) => return Ok(cgroup),
                Err(error) => reasons.push(format!("{}: {error}", root.display())),
            }
        }
        Err(reasons.join("; "))
    }

    fn make(root: &Path, limit: &str, peak: &'static str, bytes: u64) -> io::Result<Cgroup> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = root.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&folder)?;
        let cgroup = Cgroup { folder, peak };
        if !cgroup.folder.join(limit).exists() {
            return Err(io::Error::other(format!(
                "a new group has no {limit}: the controller is not enabled"
            )));
        }
        fs::write(cgroup.folder.join(limit), bytes.to_string())?;
        // Nothing of it may go to the swap instead. Not every kernel has these.
        for (file, value) in
            [("memory.memsw.limit_in_bytes", bytes.to_string()), ("memory.swap.max", "0".into())]
        {
            let _ = fs::write(cgroup.folder.join(file), value);
        }
        Ok(cgroup)
    }

    /// What a new process does to be a member: one write, to a file that is open already.
    pub(crate) fn joining(&self) -> io::Result<impl FnMut() -> io::Result<()> + Send + Sync + 'static> {
        let mut members: File = OpenOptions::new().write(true).open(self.folder.join("cgroup.procs"))?;
        // 0 is whoever writes.
        Ok(move || members.write_all(b"0"))
    }

    /// How many processes the kernel killed here for want of memory.
    pub(crate) fn killed(&self) -> u64 {
        let files = ["memory.events", "memory.oom_control"].map(|file| self.folder.join(file));
        let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
        let lines: Vec<String> =
            texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        lines.iter().filter_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok()).sum()
    }

    /// The most bytes that were used, the page cache included, where the kernel has it.
    pub(crate) fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.folder.join(self.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let until = Instant::now() + REMOVAL;
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < until {
            std::thread::yield_now();
        }
    }
}

/// Removes the groups of tests that are gone.
fn remove_left_overs(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
