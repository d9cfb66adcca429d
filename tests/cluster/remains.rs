//! What a cluster consists of on this machine, to see that nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::cluster::{Cluster, eventually};

/// Everything that must be gone after its end.
#[derive(Debug)]
pub(crate) struct Remains {
    folder: PathBuf,
    number: u8,
    /// Number and time of the start, which tells a process from a later one of the same number.
    processes: BTreeSet<(u32, String)>,
    /// `net:[4026532310]`, and those of mounts, processes and pods.
    namespaces: BTreeSet<String>,
}

impl Remains {
    /// Of a cluster that stands: the holder's descendants, the containers among them, and their namespaces.
    pub(crate) fn of(cluster: &Cluster) -> Remains {
        let all = processes();
        let mut members = BTreeSet::from([cluster.holder()]);
        loop {
            let more: Vec<u32> = all
                .iter()
                .filter(|process| members.contains(&process.parent) && !members.contains(&process.pid))
                .map(|process| process.pid)
                .collect();
            if more.is_empty() {
                break;
            }
            members.extend(more);
        }
        let ours = namespaces("self");
        let namespaces =
            members.iter().flat_map(|pid| namespaces(&pid.to_string())).filter(|name| !ours.contains(name));
        let namespaces = namespaces.collect();
        members.insert(cluster.supervisor());
        let processes = all.into_iter().filter(|process| members.contains(&process.pid));
        let processes = processes.map(|process| (process.pid, process.began)).collect();
        Remains { folder: cluster.folder().to_owned(), number: cluster.number(), processes, namespaces }
    }

    /// How many processes it has.
    pub(crate) fn count(&self) -> usize {
        self.processes.len()
    }

    /// How many namespaces of the kernel it has.
    pub(crate) fn namespaces(&self) -> usize {
        self.namespaces.len()
    }

    /// Asserts that nothing is left. The kernel takes network namespaces apart in its own time, so that is waited for.
    pub(crate) fn assert_gone(&self) {
        let mut left = Vec::new();
        for process in processes() {
            if self.processes.contains(&(process.pid, process.began.clone())) {
                left.push(format!("process {} {}", process.pid, process.name));
            }
            let shared = namespaces(&process.pid.to_string());
            left.extend(
                shared
                    .intersection(&self.namespaces)
                    .map(|name| format!("{name} of process {}", process.pid)),
            );
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("Linux");
        let folder = self.folder.to_string_lossy();
        left.extend(
            mounts.lines().filter(|line| line.contains(&*folder)).map(|line| format!("mount {line}")),
        );
        left.extend(cgroups(self.number).into_iter().map(|path| format!("cgroup {}", path.display())));
        if self.folder.exists() {
            left.push(format!("folder {folder}"));
        }
        assert!(left.is_empty(), "left behind: {left:#?}");
        let device = PathBuf::from(format!("/sys/class/net/callguard{}", self.number));
        eventually("the end of the network device", || (!device.exists()).then_some(()));
    }
}

/// The cgroups of a cluster.
pub(crate) fn cgroups(number: u8) -> Vec<PathBuf> {
    let name = format!("callback-guard-{number}");
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([root]).map(|path| path.join(&name)).filter(|path| path.exists()).collect()
}

#[derive(Debug)]
struct Process {
    pid: u32,
    parent: u32,
    began: String,
    name: String,
}

fn processes() -> Vec<Process> {
    let numbers = fs::read_dir("/proc").expect("Linux").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    numbers.filter_map(process).collect()
}

/// `None` when it has just ended.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything.
    let (before, after) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after.split(' ').collect();
    // A zombie has ended; who has not taken note of it is another matter.
    if fields.first() == Some(&"Z") {
        return None;
    }
    let name = before.split_once('(')?.1.to_owned();
    Some(Process { pid, parent: fields.get(1)?.parse().ok()?, began: (*fields.get(19)?).to_owned(), name })
}

fn namespaces(pid: &str) -> BTreeSet<String> {
    let links = fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten();
    links.filter_map(|link| Some(fs::read_link(link.path()).ok()?.to_string_lossy().into_owned())).collect()
}
