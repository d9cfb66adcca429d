//! What the controller costs: `cargo bench --bench controller`, about 4 minutes plus the builds.
//!
//! Three installations, each with an API server and etcd of its own on this machine: 1, 50 and 200 namespaces with ten
//! guarded pods each, and the controller as `cargo build --release` builds it. They are started one after the other and
//! then observed together while nothing happens. Requests are counted in the API server's audit log.
//!
//! In the largest installation a second replica waits for the Lease. Later pods are created there while the policies are
//! missing, and the time until the controller's log names each of them is measured.
//!
//! An existing cluster (`CALLBACK_GUARD_TEST_CLUSTER`) is not used: what else it does would be measured too.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use audit::{Audit, Entry};
use client::Client;
use cluster::{Cluster, PATIENCE, Stage};
use crowd::{Crowd, create_pod, memory};
use k8s_openapi::jiff::Timestamp;
use replica::Replica;

#[path = "../tests/cluster/audit.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod audit;
#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/cluster/client.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod client;
#[path = "../tests/cluster/cluster.rs"]
mod cluster;
#[path = "../tests/cluster/crowd.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod crowd;
#[path = "../tests/cluster/process.rs"]
#[allow(dead_code, unused_imports, reason = "the audit log's tests use it")]
mod process;
#[path = "../tests/cluster/replica.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod replica;
#[path = "../tests/support/mod.rs"]
mod support;

/// Namespaces of each installation; the last one is the largest.
const NAMESPACES: [usize; 3] = [1, 50, 200];

/// Guarded pods in each namespace.
const PODS: usize = 10;

/// How long the installations are observed at rest. An API server sends a bookmark on each watch every 60 to 75 seconds.
const WINDOW: Duration = Duration::from_secs(75);

/// A controller without a request for so long, apart from its Lease, has settled.
const QUIET: Duration = Duration::from_secs(3);

/// Pods created while the policies have been missing for some time.
const AT_REST: usize = 20;

/// Pods created as soon as the policies are missing. Each needs the policies deleted and applied once.
const AT_ONCE: usize = 5;

const LEADER: &str = "bench-leader";
const WAITING: &str = "bench-waiting";

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    bench::run("controller", || measure().map(|()| true))
}

fn measure() -> Result<(), Failure> {
    if !cluster::can_hold(Stage::A) {
        return Err("this machine cannot run the test cluster".into());
    }
    // The build comes first: it would slow down what is measured.
    let folder = bench::Folder::new("controller")?;
    let program = bench::guard_program(&folder)?;
    println!("`cargo bench --bench controller` on {}\n", bench::machine());
    let clusters = NAMESPACES.map(|_| Cluster::start(Stage::A));
    let mut installations = Vec::new();
    for (cluster, namespaces) in clusters.iter().zip(NAMESPACES) {
        installations.push(Installation::start(cluster, &program, namespaces)?);
    }
    let largest = installations.last().ok_or("no installation")?;
    let waiting = largest.start_waiting()?;

    let leaders = installations.iter().map(|of| Window::begin(of.cluster, LEADER, &of.leader));
    let leaders: Vec<_> = leaders.collect();
    let second = Window::begin(largest.cluster, WAITING, &waiting);
    bench::pause(WINDOW);
    let rests = leaders.into_iter().map(Window::end).collect::<Result<Vec<_>, _>>()?;
    print_leaders(&installations, &rests);
    print_waiting(&second.end()?);
    drop(waiting);

    print_detection(largest)?;
    println!("\n{}", bench::machine());
    Ok(())
}

// --- an installation ---

/// Namespaces with guarded pods, and the controller that has started and settled.
struct Installation<'c> {
    cluster: &'c Cluster,
    crowd: Crowd<'c>,
    leader: Replica,
    /// From the start of the process until all pods were counted and all certificates signed.
    took: Duration,
    /// Requests until the controller had settled, without those for the Lease.
    requests: usize,
}

impl Installation<'_> {
    fn start<'c>(
        cluster: &'c Cluster,
        program: &Path,
        namespaces: usize,
    ) -> Result<Installation<'c>, Failure> {
        let crowd = Crowd::create(cluster, program, namespaces, PODS);
        let log = Audit::of(cluster);
        let mut command = crowd.controller(namespaces, LEADER);
        bench::end_with_this_process(&mut command);
        let started = Instant::now();
        let leader = Replica::run(command);
        // The admin port is not used before: a page of 200 namespaces would be part of the start.
        until("all certificates", || signed(&leader) == namespaces)?;
        until("all pods", || guarded(&leader) == namespaces * PODS)?;
        let took = started.elapsed();
        settle(cluster)?;
        let requests = sent(&log, LEADER).filter(|entry| !is_lease(entry)).count();
        Ok(Installation { cluster, crowd, leader, took, requests })
    }

    /// Starts a second replica, which has seen the Lease when this returns.
    fn start_waiting(&self) -> Result<Replica, Failure> {
        let mut command = self.crowd.controller(1, WAITING);
        bench::end_with_this_process(&mut command);
        let waiting = Replica::run(command);
        until("the second replica", || waiting.page("/readyz").starts_with("ok"))?;
        Ok(waiting)
    }
}

/// Certificates that a controller has signed for namespaces.
fn signed(replica: &Replica) -> usize {
    let lines = replica.log();
    lines.iter().filter(|line| line["message"] == "The certificate of the sidecars is signed").count()
}

/// Pods that a controller has counted as guarded.
fn guarded(replica: &Replica) -> usize {
    let text = replica.page("/metrics");
    let counts = text.lines().filter(|line| line.contains("controller_pods{state=\"guarded\""));
    counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok()).sum()
}

/// Waits until the controller of this cluster has sent no request for some time, apart from its Lease.
fn settle(cluster: &Cluster) -> Result<(), Failure> {
    let log = Audit::of(cluster);
    until("a controller that has settled", || {
        let log = log.since_now();
        bench::pause(QUIET);
        sent(&log, LEADER).all(|entry| is_lease(&entry))
    })
}

/// The requests of the replica with this identity, each once.
fn sent(log: &Audit, identity: &str) -> impl Iterator<Item = Entry> {
    entries(log, identity).filter(|entry| entry.verb() != "watch" || entry.stage() == "ResponseStarted")
}

/// The entries of the replica with this identity. A watch has two: when it starts and when it ends.
fn entries(log: &Audit, identity: &str) -> impl Iterator<Item = Entry> {
    let agent = format!(" {identity}");
    log.by_agent("callback-guard/").into_iter().filter(move |entry| entry.user_agent().ends_with(&agent))
}

fn is_lease(entry: &Entry) -> bool {
    entry.resource() == "leases"
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Failure> {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("still waiting for {what}").into());
        }
        bench::pause(Duration::from_millis(5));
    }
    Ok(())
}

// --- at rest ---

/// A replica that is being observed.
struct Window {
    whole: Audit,
    log: Audit,
    identity: &'static str,
    pid: u32,
    begun: Instant,
    cpu: Duration,
}

/// What a replica needs at rest. Requests are per hour.
struct Rest {
    renewals: f64,
    others: f64,
    /// Watches that end by their time and are started again.
    watches_again: f64,
    watches: usize,
    connections: usize,
    /// CPU time as a share of a core.
    cpu: f64,
    resident: u64,
    peak: u64,
}

impl Window {
    fn begin(cluster: &Cluster, identity: &'static str, replica: &Replica) -> Window {
        let (whole, pid) = (Audit::of(cluster), replica.pid());
        let log = whole.since_now();
        Window { whole, log, identity, pid, begun: Instant::now(), cpu: cpu_time(pid) }
    }

    fn end(self) -> Result<Rest, Failure> {
        let (lasted, cpu) = (self.begun.elapsed(), cpu_time(self.pid).saturating_sub(self.cpu));
        let (leases, others): (Vec<_>, Vec<_>) = sent(&self.log, self.identity).partition(is_lease);
        let watches = self.open_watches();
        let seconds: Option<Vec<_>> = watches.values().map(timeout_seconds).collect();
        let seconds = seconds.ok_or("a watch without a timeout")?;
        let (resident, peak) = memory(self.pid);
        Ok(Rest {
            renewals: frequency(&leases)? * 3600.0,
            others: others.len() as f64 * 3600.0 / lasted.as_secs_f64(),
            watches_again: seconds.iter().map(|seconds| 3600.0 / seconds).sum(),
            watches: watches.len(),
            connections: connections(self.pid)?,
            cpu: cpu.as_secs_f64() / lasted.as_secs_f64(),
            resident,
            peak,
        })
    }

    /// The watches that have started and have not ended.
    fn open_watches(&self) -> BTreeMap<String, Entry> {
        let mut open = BTreeMap::new();
        for entry in entries(&self.whole, self.identity).filter(|entry| entry.verb() == "watch") {
            if entry.stage() == "ResponseStarted" {
                open.insert(entry.id().to_owned(), entry);
            } else {
                open.remove(entry.id());
            }
        }
        open
    }
}

/// Requests per second of some that come regularly; 0 for none. A window has one more or less of them, by chance.
fn frequency(requests: &[Entry]) -> Result<f64, Failure> {
    let [first, .., last] = requests else { return Ok(0.0) };
    let time = |entry: &Entry| entry.received().parse::<Timestamp>();
    let between = time(last)?.duration_since(time(first)?);
    Ok((requests.len() - 1) as f64 / between.as_secs_f64())
}

/// How long a watch was requested for.
fn timeout_seconds(watch: &Entry) -> Option<f64> {
    let (_, query) = watch.uri().split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix("timeoutSeconds="))?.parse().ok()
}

/// CPU time of all threads. The kernel counts it in nanoseconds here, and in hundredths of a second in `stat`.
fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// Connections to the API server.
fn connections(pid: u32) -> Result<usize, Failure> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok()?.to_str().map(str::to_owned));
    let sockets: BTreeSet<_> = targets.collect();
    // Remote address and port in hexadecimal are the third column, the inode is the tenth. 192B is 6443.
    let table = fs::read_to_string("/proc/net/tcp")?;
    let of_process = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let inode = columns.get(9).map(|inode| format!("socket:[{inode}]"));
        columns.get(2).is_some_and(|remote| remote.ends_with(":192B"))
            && inode.is_some_and(|inode| sockets.contains(&inode))
    };
    Ok(table.lines().filter(of_process).count())
}

fn print_leaders(installations: &[Installation<'_>], rests: &[Rest]) {
    let header = NAMESPACES.map(|count| count.to_string()).join(" | ");
    println!("| namespaces, {PODS} guarded pods in each | {header} | each more |\n|---|--:|--:|--:|--:|");
    let row = |name: &str, digits: usize, unit: &str, values: Vec<f64>| {
        let last = values.len() - 1;
        let more = (values[last] - values[0]) / (NAMESPACES[last] - NAMESPACES[0]) as f64;
        let more_digits = digits + 2;
        // The addition makes a zero of a negative zero.
        let cell = |value: f64, digits: usize| format!("{:.digits$}{unit}", value + 0.0);
        let cells: Vec<_> = values.iter().map(|value| cell(*value, digits)).collect();
        let is_zero = cell(more.abs(), more_digits) == cell(0.0, more_digits);
        let more = if is_zero { "0".to_owned() } else { cell(more, more_digits) };
        println!("| {name} | {} | {more} |", cells.join(" | "));
    };
    let of = |value: fn(&Rest) -> f64| rests.iter().map(value).collect::<Vec<_>>();
    let at_start = |value: fn(&Installation<'_>) -> f64| installations.iter().map(value).collect::<Vec<_>>();
    let start = "start, until all pods are counted and all certificates signed";
    row(start, 2, " s", at_start(|of| of.took.as_secs_f64()));
    row("requests of the start", 0, "", at_start(|of| of.requests as f64));
    row("resident memory", 1, " MiB", of(|rest| mebibytes(rest.resident)));
    row("resident memory, peak", 1, " MiB", of(|rest| mebibytes(rest.peak)));
    row("open watches", 0, "", of(|rest| rest.watches as f64));
    row("connections to the API server", 0, "", of(|rest| rest.connections as f64));
    row("requests per hour: the Lease, measured", 0, "", of(|rest| rest.renewals));
    row("requests per hour: others, measured", 0, "", of(|rest| rest.others));
    row("requests per hour: watches started again, computed", 0, "", of(|rest| rest.watches_again));
    row("requests per hour: sum", 0, "", of(Rest::requests));
    row("CPU time per hour", 1, " s", of(|rest| rest.cpu * 3600.0));
    row("CPU time as a share of a core", 2, " %", of(|rest| rest.cpu * 100.0));
    println!(
        "\nThe rows below the start are at rest. Measured: in the API server's audit log for {} s. Computed: a watch lasts 50 to\n\
         60 minutes, so none ends within that time; each counts once per timeout that it was requested with.",
        WINDOW.as_secs()
    );
}

impl Rest {
    fn requests(&self) -> f64 {
        self.renewals + self.others + self.watches_again
    }
}

fn print_waiting(rest: &Rest) {
    println!("\n| a second replica, which waits for the Lease | at rest |\n|---|--:|");
    println!("| resident memory | {:.1} MiB |", mebibytes(rest.resident));
    println!("| requests per hour: measured | {:.0} |", rest.renewals + rest.others);
    println!("| requests per hour: watches started again, computed | {:.0} |", rest.watches_again);
    println!("| CPU time per hour | {:.2} s |", rest.cpu * 3600.0);
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

// --- pods without a sidecar ---

fn print_detection(of: &Installation<'_>) -> Result<(), Failure> {
    let log = Audit::of(of.cluster).since_now();
    of.crowd.apply_policies(false);
    settle(of.cluster)?;
    let listed_again = sent(&log, LEADER).filter(|entry| !is_lease(entry)).count();
    let at_rest = (0..AT_REST).map(|number| of.detect(&format!("rest-{number}"), number));
    let at_rest = at_rest.collect::<Result<Vec<_>, _>>()?;
    of.crowd.apply_policies(true);
    settle(of.cluster)?;
    let mut at_once = Vec::new();
    for number in 0..AT_ONCE {
        of.crowd.apply_policies(false);
        at_once.push(of.detect(&format!("once-{number}"), AT_REST + number)?);
        of.crowd.apply_policies(true);
        settle(of.cluster)?;
    }
    let namespaces = NAMESPACES[NAMESPACES.len() - 1];
    println!(
        "\n| {namespaces} namespaces: from the answer to a pod's creation to the log line that names it | pods | median | max |\n\
         |---|--:|--:|--:|"
    );
    for (name, times) in
        [("the policies are missing", at_rest), ("the policies were deleted just before", at_once)]
    {
        let times = sorted(times);
        println!("| {name} | {} | {:.1} ms | {:.1} ms |", times.len(), at(&times, 0.5), at(&times, 1.0));
    }
    println!(
        "\nWhen the policies are deleted or changed, all pods are listed again: {listed_again} requests. Resident memory after {} such\n\
         changes: {:.1} MiB.",
        2 * (1 + AT_ONCE),
        mebibytes(memory(of.leader.pid()).0)
    );
    Ok(())
}

impl Installation<'_> {
    /// Creates a pod while the policies are missing: milliseconds from the answer to the log line that names it.
    fn detect(&self, name: &str, number: usize) -> Result<f64, Failure> {
        let last = NAMESPACES[NAMESPACES.len() - 1];
        // Not in the order of the names: 37 has no divisor in common with 200.
        let namespace = self.crowd.name(number * 37 % last);
        let mut client = Client::of(self.cluster);
        create_pod(&mut client, namespace, name);
        let created = Timestamp::now();
        let about = format!("Pod {namespace}/{name}");
        let mut named = None;
        until(&about, || {
            let lines = self.leader.log();
            let line = lines
                .iter()
                .rev()
                .find(|line| line["reason"] == "NakedPods" && line["about"] == about.as_str());
            named = line.and_then(|line| line["timestamp"].as_str()?.parse::<Timestamp>().ok());
            named.is_some()
        })?;
        let named = named.ok_or("no time in the log")?;
        Ok((named.as_microsecond() - created.as_microsecond()) as f64 / 1e3)
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn at(sorted: &[f64], share: f64) -> f64 {
    bench::quantile(sorted, share).unwrap_or(f64::NAN)
}
