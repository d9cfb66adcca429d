//! The memory limit of the container that this process runs in, and how much is in use: those of its control group (cgroup).
//!
//! cgroup v2 has it in `memory.max`, v1 in `memory.limit_in_bytes`. If both versions are mounted, `/proc/self/cgroup` says
//! which one controls memory, and it names the path of the group. In a container that path is `/` if it has a cgroup
//! namespace, as is usual with v2; without one, as is usual with v1, it is the node's path, and the container has its own
//! group mounted as the root. So the file is looked for at the path first, and then at the root.
//!
//! Only the group itself is read. A limit further up, as of the whole pod, is not visible from inside a container.

use std::path::{Path, PathBuf};

use crate::files::read_bounded;

/// Most bytes that are read of a file: a path of `/proc/self/cgroup` may have 4096, and there are a dozen.
const FILE_LIMIT_BYTES: u64 = 64 << 10;

/// From here on a number stands for no limit: v1 has no word for it, and writes the largest multiple of a page that a
/// signed number can hold, which is a little less than 2^63.
const NO_LIMIT: u64 = 1 << 62;

/// How much of a file that is not understood is shown.
const SHOWN_CHARS: usize = 80;

/// The control group of this process.
#[derive(Clone, Debug)]
pub struct Cgroup {
    membership: PathBuf,
    root: PathBuf,
    /// `/proc/self/status`
    process: PathBuf,
}

impl Cgroup {
    /// The group of this process, where Linux shows it.
    pub fn own() -> Cgroup {
        Cgroup::at("/proc/self/cgroup", "/sys/fs/cgroup")
    }

    /// The group that the file `membership` names, below the folder `root`.
    pub fn at(membership: impl Into<PathBuf>, root: impl Into<PathBuf>) -> Cgroup {
        let process = "/proc/self/status".into();
        Cgroup { membership: membership.into(), root: root.into(), process }
    }

    /// The group, of a process with this file `status`.
    #[cfg(test)]
    pub(crate) fn of_process(self, status: impl Into<PathBuf>) -> Cgroup {
        Cgroup { process: status.into(), ..self }
    }

    /// The limit of memory in bytes; `None` without one.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read or understood, and what was found there.
    pub fn memory_limit(&self) -> Result<Option<u64>, String> {
        let (version, folders) = self.folders()?;
        let file = version.files().limit;
        let Some(path) = folders.iter().map(|folder| folder.join(file)).find(|path| path.exists()) else {
            // The root of a machine has no such file, nor has a group for which memory is not controlled.
            if version == Version::Two
                && folders.iter().any(|folder| folder.join("cgroup.controllers").exists())
            {
                return Ok(None);
            }
            return Err(format!("{}: no such file", folders[1].join(file).display()));
        };
        let text = read(&path)?;
        match text.trim() {
            "max" => Ok(None),
            number => match number.parse() {
                Ok(bytes) => Ok(Some(bytes).filter(|bytes| *bytes < NO_LIMIT)),
                Err(_) => {
                    Err(format!("{}: {} is neither a number of bytes nor max", path.display(), shown(&text)))
                }
            },
        }
    }

    /// Memory in use that the kernel cannot take back, in bytes: that of the group without the cache of files that were not used
    /// for long, as kubelet counts it. Where the group does not show it, what is resident of this process.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read or understood.
    pub fn memory_used(&self) -> Result<u64, String> {
        let (version, folders) = self.folders()?;
        let Files { used, inactive, .. } = version.files();
        let Some(folder) = folders.iter().find(|folder| folder.join(used).exists()) else {
            let status = read(&self.process)?;
            let kib = number(&status, "VmRSS:")
                .ok_or_else(|| format!("{}: has no line VmRSS with a number", self.process.display()))?;
            return Ok(kib << 10);
        };
        let path = folder.join(used);
        let text = read(&path)?;
        let all: u64 = text
            .trim()
            .parse()
            .map_err(|_| format!("{}: {} is not a number of bytes", path.display(), shown(&text)))?;
        let stat = read(&folder.join("memory.stat")).unwrap_or_default();
        Ok(all.saturating_sub(number(&stat, inactive).unwrap_or(0)))
    }

    /// The version that controls memory, and where the group's files may be.
    fn folders(&self) -> Result<(Version, [PathBuf; 2]), String> {
        let membership = read(&self.membership)?;
        let Some((version, group)) = group(&membership) else {
            let found = shown(&membership);
            return Err(format!(
                "{}: names no cgroup that controls memory: {found}",
                self.membership.display()
            ));
        };
        let root = match version {
            Version::One => self.root.join("memory"),
            Version::Two => self.root.clone(),
        };
        Ok((version, [root.join(group.trim_start_matches('/')), root]))
    }
}

/// Version of the interface, with its names of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

struct Files {
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: what files take that were not used for long, of the group and those below it.
    inactive: &'static str,
}

impl Version {
    fn files(self) -> Files {
        match self {
            Version::One => Files {
                limit: "memory.limit_in_bytes",
                used: "memory.usage_in_bytes",
                inactive: "total_inactive_file ",
            },
            Version::Two => Files { limit: "memory.max", used: "memory.current", inactive: "inactive_file " },
        }
    }
}

/// The group that controls memory, in the lines of `/proc/self/cgroup`: `4:memory:/a` for v1, `0::/a` for v2.
fn group(membership: &str) -> Option<(Version, &str)> {
    let lines = || membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let one = lines().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let found = match one {
        Some((_, path)) => (Version::One, path),
        None => (Version::Two, lines().find(|(controllers, _)| controllers.is_empty())?.1),
    };
    // A group outside of the namespace begins with `/..`, and its place is not below the root.
    let (version, path) = found;
    Some((version, if path.split('/').any(|part| part == "..") { "/" } else { path }))
}

/// The number in the line that begins so.
fn number(text: &str, line: &str) -> Option<u64> {
    text.lines().find_map(|found| found.strip_prefix(line))?.split_whitespace().next()?.parse().ok()
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = read_bounded(path, FILE_LIMIT_BYTES).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn shown(text: &str) -> String {
    format!("{:?}", text.trim().chars().take(SHOWN_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::tests::Folder;

    const V1: &str = "5:cpu,cpuacct:/a\n4:memory:/pod/one\n1:name=systemd:/b\n0::/other\n";
    const V2: &str = "0::/pod/one\n";
    const NAMESPACE: &str = "0::/\n";

    /// A root with these files; the limit, and the folder's own path written as `@` in an error.
    fn limit(membership: &str, files: &[(&str, &str)]) -> Result<Option<u64>, String> {
        let folder = Folder::new();
        let root = folder.path("root");
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let cgroup = Cgroup::at(folder.put("membership", membership), root);
        let place = folder.path("").display().to_string();
        cgroup.memory_limit().map_err(|error| error.replace(&place, "@/"))
    }

    #[test]
    fn the_limit_is_that_of_the_own_group_or_of_the_root_of_a_container() {
        for (membership, files, expected) in [
            (NAMESPACE, &[("memory.max", "134217728\n")][..], 128 << 20),
            (V2, &[("pod/one/memory.max", "1048576\n"), ("memory.max", "7\n")], 1 << 20),
            (V2, &[("memory.max", "134217728\n")], 128 << 20),
            ("0::/../../other\n", &[("memory.max", "134217728\n")], 128 << 20),
            (V1, &[("memory/memory.limit_in_bytes", "134217728\n")], 128 << 20),
            (
                V1,
                &[
                    ("memory/pod/one/memory.limit_in_bytes", "1048576\n"),
                    ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("memory.max", "7\n"),
                ],
                1 << 20,
            ),
            ("3:hugetlb,memory:/\n", &[("memory/memory.limit_in_bytes", "0")], 0),
        ] {
            assert_eq!(limit(membership, files), Ok(Some(expected)), "{membership:?} {files:?}");
        }
    }

    /// What is in use, with these files below the root.
    fn used(membership: &str, files: &[(&str, &str)]) -> Result<u64, String> {
        let folder = Folder::new();
        let root = folder.path("root");
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("below the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let status = folder.put("status", "Name:\tguard\nVmHWM:\t 9999 kB\nVmRSS:\t    2048 kB\n");
        let cgroup = Cgroup::at(folder.put("membership", membership), root).of_process(status);
        let place = folder.path("").display().to_string();
        cgroup.memory_used().map_err(|error| error.replace(&place, "@/"))
    }

    #[test]
    fn what_is_in_use_leaves_out_files_that_the_kernel_can_drop() {
        let stat = "cache 900\ninactive_file 300\nactive_file 500\ntotal_inactive_file 400\n";
        for (membership, files, expected) in [
            (NAMESPACE, &[("memory.current", "1000\n"), ("memory.stat", stat)][..], 700),
            (V2, &[("pod/one/memory.current", "1000\n"), ("memory.stat", stat)], 1000),
            (V1, &[("memory/memory.usage_in_bytes", "1000\n"), ("memory/memory.stat", stat)], 600),
            (NAMESPACE, &[("memory.current", "100\n"), ("memory.stat", stat)], 0),
            (NAMESPACE, &[("memory.current", "1000\n"), ("memory.stat", "inactive_file x\n")], 1000),
            // The group does not show it.
            (NAMESPACE, &[("memory.max", "5000\n")], 2 << 20),
            (V1, &[("memory/memory.limit_in_bytes", "5000\n")], 2 << 20),
        ] {
            assert_eq!(used(membership, files), Ok(expected), "{membership:?} {files:?}");
        }
        let error = "@/root/memory.current: \"max\" is not a number of bytes".to_owned();
        assert_eq!(used(NAMESPACE, &[("memory.current", "max\n")]), Err(error));
    }

    #[test]
    fn without_a_limit_there_is_none_and_it_is_no_mistake() {
        for (membership, files) in [
            (NAMESPACE, &[("memory.max", "max\n")][..]),
            (V2, &[("pod/one/memory.max", "max\n"), ("memory.max", "7\n")]),
            // The root of a machine; a group for which memory is not controlled.
            (NAMESPACE, &[("cgroup.controllers", "cpu memory\n")]),
            (V2, &[("pod/one/cgroup.controllers", "cpu\n")]),
            // Pages of 4 KiB, of 64 KiB, and old kernels.
            (V1, &[("memory/memory.limit_in_bytes", "9223372036854771712\n")]),
            (V1, &[("memory/memory.limit_in_bytes", "9223372036854710272\n")]),
            (V1, &[("memory/memory.limit_in_bytes", "18446744073709551615\n")]),
        ] {
            assert_eq!(limit(membership, files), Ok(None), "{membership:?} {files:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named_with_what_was_found() {
        for (membership, files, expected) in [
            ("", &[][..], "@/membership: names no cgroup that controls memory: \"\""),
            ("4:cpu:/a\n", &[], "@/membership: names no cgroup that controls memory: \"4:cpu:/a\""),
            ("garbage", &[], "@/membership: names no cgroup that controls memory: \"garbage\""),
            (NAMESPACE, &[], "@/root/memory.max: no such file"),
            (V1, &[("memory.max", "7")], "@/root/memory/memory.limit_in_bytes: no such file"),
            (
                NAMESPACE,
                &[("memory.max", "")],
                "@/root/memory.max: \"\" is neither a number of bytes nor max",
            ),
            (
                NAMESPACE,
                &[("memory.max", "128Mi\n")],
                "@/root/memory.max: \"128Mi\" is neither a number of bytes nor max",
            ),
            (V1, &[("memory/memory.limit_in_bytes", "-1\n")], {
                "@/root/memory/memory.limit_in_bytes: \"-1\" is neither a number of bytes nor max"
            }),
            (
                NAMESPACE,
                &[("memory.max/file", "")],
                "@/root/memory.max: is a directory, expected a regular file",
            ),
        ] {
            assert_eq!(limit(membership, files), Err(expected.to_owned()), "{membership:?} {files:?}");
        }
        let missing = Cgroup::at("/nowhere/cgroup", "/nowhere").memory_limit();
        assert_eq!(missing, Err("/nowhere/cgroup: no such file".to_owned()));
        let long = limit(NAMESPACE, &[("memory.max", &"x".repeat(9999))]).expect_err("garbage");
        assert!(long.len() < 200, "{long}");
    }
}
