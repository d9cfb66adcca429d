//! What injection by admission policies costs: `cargo bench --bench injection`, about 90 seconds plus the builds.
//!
//! Both measurements use a real Kubernetes on this machine and the objects that the release build prints for
//! `callback-guard admission-policy`:
//!
//! - How long a pod creation takes: an API server with etcd, real creations, one at a time. A namespace that asks for
//!   sidecars and one that does not take turns in random order. This runs in blocks: in each, first without policies, then
//!   with them. So changes of the machine's speed affect all three alike.
//! - How long it takes from the label to the first guarded callback: a node, and a Deployment that nobody edits.
//!
//! The etcd of the test cluster does not wait for its disk. If it did, every creation would take longer and the ratios
//! would be smaller.
//!
//! An existing cluster (`CALLBACK_GUARD_TEST_CLUSTER`) is not used: what else it does would be measured too.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use client::Client;
use cluster::{Applied, Cluster, Stage, clean, eventually, run, target};
use serde_json::{Value, json};
use shop::{Shop, deny};
use support::{Authority, Folder};

#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/cluster/client.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod client;
#[path = "../tests/cluster/cluster.rs"]
mod cluster;
#[path = "../tests/openim/judge.rs"]
mod judge;
#[path = "../tests/cluster/shop.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod shop;
#[path = "../tests/support/mod.rs"]
mod support;

/// Pods created for each column.
const CREATIONS: usize = 1_000;

/// Blocks that these are divided into.
const BLOCKS: usize = 5;

/// Pods created before each measurement, in each namespace, and before the first one, while the API server is new.
const WARM_UP: usize = 50;
const FIRST_WARM_UP: usize = 500;

/// Rounds of the second measurement.
const ROUNDS: usize = 3;

/// Time between two callbacks while the first guarded one is awaited.
const INTERVAL: Duration = Duration::from_millis(50);

/// Longest wait for the first guarded callback.
const PATIENCE: Duration = Duration::from_secs(90);

/// The label that asks for a sidecar.
const INJECT: &str = "callback-guard.io/inject";

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    bench::run("injection", || measure().map(|()| true))
}

fn measure() -> Result<(), Failure> {
    if !cluster::can_hold(Stage::B) {
        return Err("this machine cannot run the test cluster".into());
    }
    // All builds come first: they would slow down what is measured.
    let folder = bench::Folder::new("injection")?;
    let program = bench::guard_program(&folder)?;
    let archive = image()?;
    println!("`cargo bench --bench injection` on {}\n", bench::machine());
    creations(&program)?;
    println!("\n{}\n", bench::machine());
    first_callbacks(&program, &archive)?;
    println!("\n{}", bench::machine());
    Ok(())
}

/// The name of the image in the archive of [`image`].
const IMAGE: &str = concat!("callback-guard:", env!("CARGO_PKG_VERSION"));

/// The archive of `tests/image guard`, built now unless `CALLBACK_GUARD_TEST_IMAGE` names one.
fn image() -> Result<PathBuf, Failure> {
    if let Some(archive) = env::var_os("CALLBACK_GUARD_TEST_IMAGE") {
        return Ok(PathBuf::from(archive));
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image");
    let mut command = clean(script);
    command.arg("guard").env("CARGO_TARGET_DIR", target()).stderr(Stdio::inherit());
    let built = command.output()?;
    if !built.status.success() {
        return Err("tests/image guard failed".into());
    }
    Ok(PathBuf::from(String::from_utf8(built.stdout)?.trim()))
}

/// Applies the policies for these namespaces and waits until the API server applies them to pods. Dropping the returned
/// value deletes them.
fn apply_policies<'c>(
    cluster: &'c Cluster,
    program: &Path,
    namespaces: &[&str],
) -> Result<Applied<'c>, Failure> {
    let mut command = clean(program);
    command.args(["admission-policy", "--image", IMAGE, "--namespaces", &namespaces.join(",")]);
    let applied = cluster.apply_until_dropped(&run(&mut command, None)?);
    for namespace in namespaces {
        wait_for_policies(cluster, namespace, true);
    }
    Ok(applied)
}

/// Waits until the policies apply to pods of this namespace, or no longer do: the one that injects, the one that warns
/// and the one that adds the guard's authority.
fn wait_for_policies(cluster: &Cluster, namespace: &str, wanted: bool) {
    let mut client = Client::of(cluster);
    let mut labeled = pod("probe");
    labeled["metadata"]["labels"] = json!({INJECT: "enabled", "callback-guard.io/trust": "enabled"});
    let mut wrong = labeled.clone();
    wrong["metadata"]["annotations"] = json!({"callback-guard.io/workers": "0"});
    eventually("the policies", || {
        let (labeled, wrong) = (client.dry_run(namespace, &labeled), client.dry_run(namespace, &wrong));
        let trusts = labeled.body.to_string().contains("SSL_CERT_DIR");
        let all = [has_sidecar(&labeled.body), trusts, !wrong.warnings.is_empty()];
        (labeled.is_success() && wrong.is_success() && all == [wanted; 3]).then_some(())
    });
}

/// A small app that declares its port. Pod Security admits it under `restricted`.
fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "app", "image": "app:1", "ports": [{"containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/ready"}, "periodSeconds": 1},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

fn has_sidecar(pod: &Value) -> bool {
    let inits = pod["spec"]["initContainers"].as_array();
    inits.is_some_and(|inits| inits.iter().any(|container| container["name"] == "callback-guard"))
}

// --- the time of a pod creation ---

/// A namespace, and a connection of its own to the API server.
struct Creator {
    client: Client,
    path: String,
    created: usize,
}

impl Creator {
    fn new(cluster: &Cluster, namespace: &str) -> Creator {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        Creator { client: Client::of(cluster), path, created: 0 }
    }

    /// Creates a pod: milliseconds from the request to the whole answer, and whether the pod has a sidecar.
    fn create(&mut self) -> Result<(f64, bool), Failure> {
        let body = pod(&format!("app-{}", self.created)).to_string();
        self.created += 1;
        let started = Instant::now();
        let reply = self.client.try_send("POST", &self.path, "application/json", &body)?;
        let took = started.elapsed();
        if reply.status != 201 {
            return Err(format!("POST {}: {} {}", self.path, reply.status, reply.message()).into());
        }
        Ok((took.as_secs_f64() * 1e3, has_sidecar(&reply.body)))
    }
}

/// Creates pods in turns, so many for each namespace, in random order within each pair: milliseconds for each. Fails if
/// a pod has a sidecar and should not, or the reverse.
fn take_turns(
    creators: &mut [Creator; 2],
    injected: [bool; 2],
    count: usize,
) -> Result<[Vec<f64>; 2], Failure> {
    let mut times = [Vec::new(), Vec::new()];
    // A xorshift generator with a fixed seed: the same order in every run.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..count {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let first = usize::from(random >> 63 == 1);
        for which in [first, 1 - first] {
            let (time, has) = creators[which].create()?;
            if has != injected[which] {
                return Err(
                    format!("{}: sidecar {has}, expected {}", creators[which].path, injected[which]).into()
                );
            }
            times[which].push(time);
        }
    }
    Ok(times)
}

fn creations(program: &Path) -> Result<(), Failure> {
    let cluster = Cluster::start(Stage::A);
    let asking = cluster.namespace(&["callback-guard.io/inject=enabled"]);
    let other = cluster.namespace(&[]);
    let names = [asking.name.as_str(), other.name.as_str()];
    let mut creators = names.map(|name| Creator::new(&cluster, name));
    take_turns(&mut creators, [false, false], FIRST_WARM_UP)?;
    let mut measure = |injected: [bool; 2], count: usize| {
        take_turns(&mut creators, injected, WARM_UP)?;
        take_turns(&mut creators, injected, count)
    };
    let (mut asked, mut not_asked, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..BLOCKS {
        without.push(sorted(measure([false, false], CREATIONS / BLOCKS / 2)?.concat()));
        let applied = apply_policies(&cluster, program, &names)?;
        let [with_sidecar, plain] = measure([true, false], CREATIONS / BLOCKS)?;
        asked.push(sorted(with_sidecar));
        not_asked.push(sorted(plain));
        drop(applied);
        for name in names {
            wait_for_policies(&cluster, name, false);
        }
    }
    println!(
        "Milliseconds of a pod creation at kube-apiserver {}, {CREATIONS} in each column; in parentheses the range of {BLOCKS} \
         blocks\n",
        version(&cluster)?
    );
    println!(
        "| | sidecar injected | not asked for | no policies | added by the sidecar | added to other pods |\n\
         |---|--:|--:|--:|--:|--:|"
    );
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let columns = [&asked, &not_asked, &without];
        let all = columns.map(|blocks| at(&sorted(blocks.concat()), share));
        let ranges = columns.map(|blocks| {
            let blocks = sorted(blocks.iter().map(|block| at(block, share)).collect());
            format!("({:.2} .. {:.2})", at(&blocks, 0.0), at(&blocks, 1.0))
        });
        let cells = [0, 1, 2].map(|column| format!("{:.2} {}", all[column], ranges[column]));
        let [asked, not_asked, without] = all;
        println!(
            "| {name} | {} | {} | {} |",
            cells.join(" | "),
            added(asked, not_asked),
            added(not_asked, without)
        );
    }
    Ok(())
}

/// A difference in milliseconds with the ratio: `+0.50 (x1.25)`.
fn added(more: f64, less: f64) -> String {
    format!("{:+.2} (x{:.2})", more - less, more / less)
}

fn version(cluster: &Cluster) -> Result<String, Failure> {
    let version: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/version"]))?;
    Ok(version["gitVersion"].as_str().unwrap_or("of an unknown version").to_owned())
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

fn at(sorted: &[f64], share: f64) -> f64 {
    bench::quantile(sorted, share).unwrap_or(f64::NAN)
}

// --- from the label to the first guarded callback ---

/// An unchanged Deployment of two pods behind its Service, and what a callback needs.
struct Callbacks<'c> {
    shop: Shop<'c>,
    url: String,
    folder: Folder,
}

impl Callbacks<'_> {
    /// Sends a callback over a fresh connection; whether the app's own answer came back through the guard.
    fn is_guarded(&self) -> bool {
        let mut curl = self.shop.cluster.command_in_network("curl");
        let authority = self.folder.path().join("ca.pem");
        let id = format!("operationID: {}", bench::OPERATION_ID);
        curl.args(["-s", "-m", "1", "-D", "-", "-o", "/dev/null", "--cacert"]).arg(authority);
        curl.args(["-H", "Content-Type: application/json", "-H", &id, "-d", bench::SAMPLE, &self.url]);
        let head = run(&mut curl, None).unwrap_or_default();
        head.lines().any(|line| line.trim().eq_ignore_ascii_case("callback-guard-origin: upstream"))
    }

    fn kubectl(&self, arguments: &[&str]) {
        self.shop.cluster.kubectl(&[&["-n", self.shop.name()], arguments].concat());
    }

    fn restart(&self) {
        self.kubectl(&["rollout", "restart", "deployment/shop"]);
    }

    /// Waits until the rollout is complete and every pod is injected, or none is. Plain ones also wait until the others
    /// are deleted: a terminating pod may still answer.
    fn wait_for_rollout(&self, injected: bool) {
        self.kubectl(&["rollout", "status", "deployment/shop", "--timeout=120s"]);
        eventually("the pods", || {
            let pods = if injected {
                self.shop.pods()
            } else {
                self.shop.cluster.pods(self.shop.name(), "app=shop")
            };
            (pods.len() == 2 && pods.iter().all(|pod| has_sidecar(pod) == injected)).then_some(())
        });
    }

    /// Seconds from the start of `kubectl label` to the end of `kubectl rollout restart`, to the first guarded callback
    /// and to the end of the rollout.
    fn round(&self) -> Result<[f64; 3], Failure> {
        self.wait_for_rollout(false);
        if self.is_guarded() {
            return Err("a callback is guarded before the namespace has its label".into());
        }
        let started = Instant::now();
        let seconds = || started.elapsed().as_secs_f64();
        self.kubectl(&["label", "namespace", self.shop.name(), "callback-guard.io/inject=enabled"]);
        self.restart();
        let commands = seconds();
        loop {
            let asked = Instant::now();
            if self.is_guarded() {
                break;
            }
            if started.elapsed() > PATIENCE {
                return Err("no guarded callback in time".into());
            }
            bench::pause(INTERVAL.saturating_sub(asked.elapsed()));
        }
        let first = seconds();
        self.wait_for_rollout(true);
        let all = seconds();
        self.kubectl(&["label", "namespace", self.shop.name(), "callback-guard.io/inject-"]);
        self.restart();
        Ok([commands, first, all])
    }
}

fn first_callbacks(program: &Path, archive: &Path) -> Result<(), Failure> {
    let cluster = Cluster::start(Stage::B);
    cluster.import(archive);
    let shop = Shop::new(&cluster, IMAGE.to_owned(), &deny(5100, ""));
    let _applied = apply_policies(&cluster, program, &[shop.name()])?;
    let service = cluster.get(shop.name(), &["service", "shop"])?;
    let address = service["spec"]["clusterIP"].as_str().ok_or("the Service has no address")?;
    let url = format!("https://{address}/{}", bench::COMMAND);
    let folder = Folder::new();
    folder.write("ca.pem", Authority::common().pem());
    shop.roll_out(&shop.manifest("{}"));

    let callbacks = Callbacks { shop, url, folder };
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    println!(
        "| seconds since `kubectl label namespace` started | `kubectl rollout restart` returned | first guarded callback \
         | both pods guarded |\n|---|--:|--:|--:|"
    );
    for number in 1..=ROUNDS {
        let times = callbacks.round()?;
        row(&format!("round {number}"), times);
        for (column, time) in columns.iter_mut().zip(times) {
            column.push(time);
        }
    }
    row("median", columns.map(|column| at(&sorted(column), 0.5)));
    Ok(())
}

fn row(name: &str, [commands, first, all]: [f64; 3]) {
    println!("| {name} | {commands:.2} | {first:.2} | {all:.2} |");
}
