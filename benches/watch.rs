//! How soon an edit of the policy is in force, and what a watch costs: `cargo bench --bench watch`, some two minutes.
//!
//! A real kube-apiserver and etcd on this machine, twenty guards as `cargo build --release` makes them, each watching
//! the same ConfigMap with a service account's token. A hundred edits by `kubectl patch`, one after the other. An edit
//! is in force in a guard when the guard says so in its log: the time is the one of that line, on the clock of the same
//! machine.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::{Cluster, Stage};
use serde_json::{Value, json};

#[path = "../tests/cluster/cluster.rs"]
mod cluster;
mod support;

const GUARDS: usize = 20;
const EDITS: usize = 100;

/// How long a guard may take to say that an edit is in force before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long guards are left alone before their memory is read.
const REST: Duration = Duration::from_secs(10);

/// For how many sidecars the cost is worked out.
const MANY: f64 = 10_000.0;

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    support::run("watch", || measure().map(|()| true))
}

/// A guard, and the versions that it says are in force, with the second since 1970.
struct Watching {
    child: Child,
    in_force: Receiver<(String, f64)>,
}

impl Watching {
    fn start(program: &Path, configmap: &str, kubeconfig: &Path) -> Result<Watching, Failure> {
        let mut child = Command::new(program)
            .args(["proxy", "--tls-self-signed", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .args(["--policy-configmap", configmap])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let (sender, in_force) = mpsc::channel();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
                if line["message"] == "A policy is in force"
                    && let (Some(revision), Some(time)) =
                        (line["policy.revision"].as_str(), line["timestamp"].as_str())
                    && let Some(version) = revision.rsplit(' ').next()
                {
                    let _ = sender.send((version.to_owned(), seconds(time)));
                }
            }
        });
        Ok(Watching { child, in_force })
    }

    /// When this version came into force.
    fn wait_for(&self, version: &str) -> Result<f64, Failure> {
        loop {
            let (found, time) = self.in_force.recv_timeout(PATIENCE)?;
            if found == version {
                return Ok(time);
            }
        }
    }

    /// Resident and proportional memory in MiB.
    fn memory(&self) -> [f64; 2] {
        let id = self.child.id();
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN)
                / 1024.0
        };
        [field("status", "VmRSS:"), field("smaps_rollup", "Pss:")]
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The seconds of the day of an RFC 3339 time in UTC: all of a bench within one day is compared.
fn seconds(time: &str) -> f64 {
    let clock = time.split('T').nth(1).unwrap_or_default().trim_end_matches('Z');
    clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap_or(f64::NAN))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(f64::NAN, |since| since.as_secs_f64() % 86_400.0)
}

fn measure() -> Result<(), Failure> {
    if !cluster::can_hold(Stage::A) {
        return Err("this machine cannot hold an API server".into());
    }
    let folder = support::Folder::new("watch")?;
    let program = support::guard_program(&folder)?;
    let cluster = Cluster::shared(Stage::A).ok_or("no cluster")?;
    let namespace = cluster.namespace(&[]);
    let name = namespace.name.as_str();
    cluster.kubectl(&["-n", name, "create", "serviceaccount", "shop"]);
    cluster.kubectl(&["-n", name, "create", "configmap", "policy", "--from-literal=policy.yaml=version: 1"]);
    cluster.kubectl(&[
        "-n",
        name,
        "create",
        "role",
        "policy",
        "--verb=get,list,watch",
        "--resource=configmaps",
        "--resource-name=policy",
    ]);
    let account = format!("--serviceaccount={name}:shop");
    cluster.kubectl(&["-n", name, "create", "rolebinding", "policy", "--role=policy", &account]);
    let kubeconfig = cluster.kubeconfig_of(name, &cluster.token(name, "shop"));

    println!("`cargo bench --bench watch` on {}\n", support::machine());
    let before = server(cluster);
    let configmap = format!("{name}/policy");
    let guards: Result<Vec<_>, _> =
        (0..GUARDS).map(|_| Watching::start(&program, &configmap, &kubeconfig)).collect();
    let guards = guards?;
    let version = version(cluster, name)?;
    for guard in &guards {
        guard.wait_for(&version)?;
    }
    support::pause(REST);
    let after = server(cluster);
    edits(cluster, name, &guards)?;
    support::pause(REST);
    let memory: Vec<_> = guards.iter().map(Watching::memory).collect();
    let of = |at: usize| sorted(memory.iter().map(|memory| memory[at]).collect());
    println!("\n| a guard that watches, at rest after {EDITS} edits | median | most |\n|---|--:|--:|");
    for (what, values) in [("resident memory", of(0)), ("its share of what is shared (PSS)", of(1))] {
        println!("| {what} | {:.1} MiB | {:.1} MiB |", at(&values, 0.5), at(&values, 1.0));
    }
    println!("\n| the API server | with none | with {GUARDS} | for {MANY} on paper |\n|---|--:|--:|--:|");
    for (what, factor) in
        [("go_goroutines", 1.0), ("process_resident_memory_bytes", 1.0 / f64::from(1 << 20))]
    {
        let (none, all) = (before.get(what).copied(), after.get(what).copied());
        let (none, all) = (none.unwrap_or(f64::NAN) * factor, all.unwrap_or(f64::NAN) * factor);
        let many = none + (all - none) / GUARDS as f64 * MANY;
        println!("| {what}{} | {none:.0} | {all:.0} | {many:.0} |", if factor < 1.0 { ", MiB" } else { "" });
    }
    let object = cluster.get(name, &["configmap", "policy"])?.to_string().len() as f64;
    println!(
        "| bytes that an edit sends, MiB | 0 | {:.3} | {:.1} |",
        object * GUARDS as f64 / 1048576.0,
        object * MANY / 1048576.0
    );
    println!(
        "| watches begun again a second (each lasts 50 to 60 min) | 0 | {:.3} | {:.1} |",
        GUARDS as f64 / 3300.0,
        MANY / 3300.0
    );
    println!("\n{}", support::machine());
    Ok(())
}

fn edits(cluster: &Cluster, name: &str, guards: &[Watching]) -> Result<(), Failure> {
    let (mut from_start, mut from_end) = (Vec::new(), Vec::new());
    for edit in 0..EDITS {
        let policy = format!("defaults: {{deny: {{errCode: {}}}}}", 5100 + edit);
        let patch = json!({"data": {"policy.yaml": policy}}).to_string();
        let begun = now();
        let said = cluster.kubectl(&[
            "-n",
            name,
            "patch",
            "configmap",
            "policy",
            "--type=merge",
            "-p",
            &patch,
            "-o",
            "jsonpath={.metadata.resourceVersion}",
        ]);
        let ended = now();
        for guard in guards {
            let time = guard.wait_for(said.trim())?;
            from_start.push((time - begun) * 1e3);
            from_end.push((time - ended) * 1e3);
        }
    }
    println!("| {EDITS} edits, in force in each of {GUARDS} guards | p50 | p99 | worst |\n|---|--:|--:|--:|");
    for (what, times) in [
        ("since `kubectl patch` was started", from_start),
        ("since `kubectl patch` returned; negative: before it", from_end),
    ] {
        let times = sorted(times);
        println!(
            "| {what} | {:.0} ms | {:.0} ms | {:.0} ms |",
            at(&times, 0.5),
            at(&times, 0.99),
            at(&times, 1.0)
        );
    }
    Ok(())
}

fn version(cluster: &Cluster, namespace: &str) -> Result<String, Failure> {
    let found = cluster.get(namespace, &["configmap", "policy"])?;
    Ok(found["metadata"]["resourceVersion"].as_str().ok_or("no version")?.to_owned())
}

/// What the API server says of itself.
fn server(cluster: &Cluster) -> BTreeMap<String, f64> {
    let text = cluster.kubectl(&["get", "--raw", "/metrics"]);
    let figures = text.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    figures.collect()
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn at(sorted: &[f64], share: f64) -> f64 {
    support::quantile(sorted, share).unwrap_or(f64::NAN)
}
