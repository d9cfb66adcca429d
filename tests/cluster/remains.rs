//! What a cluster consists of on this machine, to see that nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::cluster::{Cluster, Stage, can_hold, eventually};

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
        let mut members = descendants(&all, cluster.holder());
        let namespaces = members.iter().flat_map(|pid| namespaces_of_its_own(*pid)).collect();
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
        let all = processes();
        for process in &all {
            if self.processes.contains(&(process.pid, process.began.clone())) {
                left.push(format!("process {} {}", process.pid, process.name));
            }
        }
        left.extend(orphans_in(&self.namespaces, &all));
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

/// Processes in these namespaces that are nobody's. The kernel gives the number of a namespace that ended to the next new
/// one, which may be that of a cluster of a test beside this one; but whatever such a test has started descends from this
/// process, and what a cluster leaves behind, its supervisor gone, does not.
fn orphans_in(namespaces_of_it: &BTreeSet<String>, all: &[Process]) -> Vec<String> {
    let theirs = descendants(all, std::process::id());
    let mut found = Vec::new();
    for process in all.iter().filter(|process| !theirs.contains(&process.pid)) {
        let shared = namespaces(&process.pid.to_string());
        let shared = shared.intersection(namespaces_of_it);
        found.extend(shared.map(|name| format!("{name} of process {} {}", process.pid, process.name)));
    }
    found
}

/// A process and all that it has started, and these in turn.
fn descendants(all: &[Process], root: u32) -> BTreeSet<u32> {
    let mut members = BTreeSet::from([root]);
    loop {
        let of_them =
            |process: &&Process| members.contains(&process.parent) && !members.contains(&process.pid);
        let more: Vec<u32> = all.iter().filter(of_them).map(|process| process.pid).collect();
        if more.is_empty() {
            return members;
        }
        members.extend(more);
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

/// Those of a process that are not those of the tests.
fn namespaces_of_its_own(pid: u32) -> BTreeSet<String> {
    &namespaces(&pid.to_string()) - &namespaces("self")
}

#[test]
fn a_process_left_in_a_namespace_is_found_and_what_a_test_beside_this_one_has_started_is_not() {
    if !can_hold(Stage::A) {
        return;
    }
    let started = |shell: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", shell]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("root may make a mount namespace");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
        out.read_line(&mut line).expect("its number");
        (child, line.trim().parse::<u32>().expect("a number"))
    };
    // Each ends with its standard input, which is ours.
    let (mut child, pid) = started("echo $$; exec cat");
    let its = namespaces_of_its_own(pid);
    let found = orphans_in(&its, &processes());
    assert_eq!((its.len(), found.len()), (1, 0), "{found:?}");
    drop(child.stdin.take());
    child.wait().expect("it ends");

    let (mut shell, orphan) = started("exec 3<&0; cat <&3 >/dev/null & echo $!");
    // `wait` would close the input.
    eventually("the end of the shell", || shell.try_wait().expect("a child").map(|_| ()));
    // The shell ends without waiting for it to be more than a copy of itself.
    eventually("the orphan to be cat", || process(orphan).filter(|orphan| orphan.name == "cat"));
    let found = orphans_in(&namespaces_of_its_own(orphan), &processes());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(&format!("of process {orphan} cat")), "{found:?}");
    drop(shell.stdin.take());
    eventually("the end of the orphan", || process(orphan).is_none().then_some(()));
}
