//! What an installation takes and brings: `cargo bench --bench chart`, about two minutes plus the builds.
//!
//! On a real node that has the images, with the example of the repository: the time from `helm install` to the first callback that the app
//! answers through the guard, by the commands that Helm prints; the objects installed; requests and limits; the size of the chart.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use cluster::{Cluster, Stage, clean, eventually, run, target};
use operator::{EXAMPLE, Operator, RELEASE};
use serde_json::Value;

#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/cluster/cluster.rs"]
mod cluster;
#[path = "../tests/cluster/operator.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod operator;
#[path = "../tests/support/mod.rs"]
mod support;

/// Installations, each in a cluster without anything of the one before.
const ROUNDS: usize = 3;

/// One namespace, one of OpenIM.
const VALUES: &str =
    "namespaces:\n- {name: callback-guard-example, services: [app]}\ntrust: {namespaces: [openim]}\n";

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    bench::run("chart", || measure().map(|()| true))
}

/// What a script of `tests` prints.
fn printed(script: &str, argument: &str) -> Result<PathBuf, Failure> {
    let mut command = clean(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script));
    command.arg(argument).env("CARGO_TARGET_DIR", target()).stderr(Stdio::inherit());
    let done = command.output()?;
    if !done.status.success() {
        return Err(format!("tests/{script} {argument} failed").into());
    }
    Ok(PathBuf::from(String::from_utf8(done.stdout)?.trim()))
}

fn measure() -> Result<(), Failure> {
    if !cluster::can_hold(Stage::B) {
        return Err("this machine cannot run the test cluster".into());
    }
    // All builds come first: they would slow down what is measured.
    let image = match env::var_os("CALLBACK_GUARD_TEST_IMAGE") {
        Some(archive) => PathBuf::from(archive),
        None => printed("image", "guard")?,
    };
    let chart = printed("release", "chart")?;
    let cluster = Cluster::start(Stage::B);
    cluster.import(&image);
    println!("`cargo bench --bench chart` on {}\n", bench::machine());
    let operator = Operator::new(&cluster, VALUES);
    operator.run("kubectl create namespace openim");
    operator.run("kubectl apply -f manifests/example");
    operator.run(&format!("kubectl -n {EXAMPLE} rollout status deployment --timeout=120s"));
    println!(
        "| seconds since `helm install` started | it returned | first guarded callback | both pods guarded |"
    );
    println!("|---|--:|--:|--:|");
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    for number in 1..=ROUNDS {
        let times = round(&operator)?;
        println!("| round {number} | {:.2} | {:.2} | {:.2} |", times[0], times[1], times[2]);
        if number < ROUNDS {
            // The last one stays, and is described below.
            remove(&operator);
        }
        for (column, time) in columns.iter_mut().zip(times) {
            column.push(time);
        }
    }
    let [installed, first, all] = columns.map(|mut column| {
        column.sort_by(f64::total_cmp);
        column[column.len() / 2]
    });
    println!("| median | {installed:.2} | {first:.2} | {all:.2} |\n");
    sizes(&operator, &chart)?;
    println!("\n{}", bench::machine());
    Ok(())
}

/// Seconds from the start of `helm install` to its end, to the first guarded callback and to the end of the rollout.
fn round(operator: &Operator<'_>) -> Result<[f64; 3], Failure> {
    let started = Instant::now();
    let seconds = || started.elapsed().as_secs_f64();
    operator.install()?;
    let installed = seconds();
    // The Service's port first: the first guarded pod is then reached as soon as it is Ready.
    operator.follow("2. Add");
    let commands = operator.notes("1. Label");
    let (wait, others) = commands.split_last().ok_or("no commands in the notes")?;
    let (status, others) = others.split_last().ok_or("no commands in the notes")?;
    others.iter().for_each(|command| drop(operator.run(command)));
    eventually("the first guarded callback", || is_guarded(operator).then_some(()));
    let first = seconds();
    operator.run(status);
    operator.run(wait);
    Ok([installed, first, seconds()])
}

/// Sends a callback over a fresh connection; whether the app's own answer came back through the guard, which is verified by the CA
/// that the controller has published for OpenIM.
fn is_guarded(operator: &Operator<'_>) -> bool {
    let cluster = operator.cluster;
    let folder = support::Folder::new();
    let ca = ["-n", "openim", "get", "configmap", "callback-guard-ca", "-o", "jsonpath={.data.ca\\.crt}"];
    let Ok(pem) = cluster.try_kubectl(&ca) else { return false };
    let authority = folder.write("ca.pem", pem);
    let Ok(service) = cluster.get(EXAMPLE, &["service", "app"]) else { return false };
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
    let host = format!("app.{EXAMPLE}.svc");
    let id = format!("operationID: {}", bench::OPERATION_ID);
    let mut curl = cluster.command_in_network("curl");
    curl.args(["-s", "-m", "1", "-D", "-", "-o", "/dev/null", "--cacert"]).arg(authority);
    curl.args(["--resolve", &format!("{host}:443:{address}"), "-H", "Content-Type: application/json"]);
    curl.args(["-H", &id, "-d", bench::SAMPLE, &format!("https://{host}/{}", bench::COMMAND)]);
    let head = run(&mut curl, None).unwrap_or_default();
    head.lines().any(|line| line.trim().eq_ignore_ascii_case("callback-guard-origin: upstream"))
}

/// As the notes say, but for OpenIM, which is not here.
fn remove(operator: &Operator<'_>) {
    let commands = operator.notes("Remove it").into_iter().filter(|command| !command.contains("openim"));
    let rest = operator.notes("What the controller");
    for command in commands.chain(rest) {
        operator.run(&command);
    }
    // The policy is one of them, and is of the example.
    operator.run("kubectl apply -f manifests/example");
}

fn sizes(operator: &Operator<'_>, chart: &Path) -> Result<(), Failure> {
    let manifest = operator.run(&format!("helm get manifest {RELEASE} -n {RELEASE}"));
    let kinds: Vec<_> = manifest.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    let admission = kinds.iter().filter(|kind| kind.contains("AdmissionPolicy")).count();
    println!("| | |\n|---|--:|");
    println!(
        "| objects for one namespace and one of OpenIM | {}, of them {admission} admission policies and bindings |",
        kinds.len()
    );
    let pods = |namespace: &str, label: &str| operator.cluster.pods(namespace, label);
    let controller = pods(RELEASE, "app.kubernetes.io/component=controller");
    let one = controller.first().ok_or("no controller")?;
    let container = &one["spec"]["containers"][0];
    println!("| controller, each of {} replicas | {} |", controller.len(), resources(container));
    let guarded = pods(EXAMPLE, "callback-guard.io/injected");
    let sidecar = &guarded.first().ok_or("no guarded pod")?["spec"]["initContainers"][0];
    println!("| sidecar, in each guarded pod | {} |", resources(sidecar));
    let bytes = std::fs::metadata(chart)?.len();
    println!("| chart archive (`tests/release chart`) | {:.1} KiB |", bytes as f64 / 1024.0);
    Ok(())
}

/// Requests and limits of a container, in words.
fn resources(container: &Value) -> String {
    let amount =
        |kind: &str, name: &str| container["resources"][kind][name].as_str().unwrap_or("none").to_owned();
    format!(
        "requests {} CPU, {}; limits {} CPU, {}",
        amount("requests", "cpu"),
        amount("requests", "memory"),
        amount("limits", "cpu"),
        amount("limits", "memory")
    )
}
