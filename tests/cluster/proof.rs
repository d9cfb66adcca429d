//! The whole way on a real node: what an operator does, what a pod goes through, and what OpenIM's own client sees of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::{Cluster, Following, Logged, Stage, can_hold, eventually, undisturbed};
use super::image::image;
use super::shop::{Counts, Load, Shop, deny};

/// A node of its own, with our image: others are talking to the API server of the shared one, which is stopped here.
fn node() -> Option<(Cluster, String)> {
    if !can_hold(Stage::B) {
        return None;
    }
    let cluster = Cluster::start(Stage::B);
    let (archive, image) = image();
    cluster.import(&archive);
    Some((cluster, image))
}

fn loads(shop: &Shop<'_>) -> [Load; 2] {
    [false, true].map(|h1| shop.load(h1))
}

/// Every callback of both protocols was allowed, which with these policies only the app does.
fn all_allowed(loads: [Load; 2]) {
    for (load, protocol) in loads.into_iter().zip(["h2", "h1"]) {
        let counts = load.end();
        assert!(counts.len() == 1 && counts["allowed"] > 50, "over {protocol}: {counts:?}");
    }
}

/// No callback was lost, and each got one of these.
fn only(counts: &Counts, wanted: &[&str]) {
    let found: BTreeSet<_> = counts.keys().map(String::as_str).collect();
    assert!(found.is_subset(&wanted.iter().copied().collect()) && !found.is_empty(), "{counts:?}");
}

fn field(line: &Logged, name: &str) -> Option<String> {
    let line: Value = serde_json::from_str(&line.text).ok()?;
    Some(line[name].as_str()?.to_owned())
}

fn guard_log(shop: &Shop<'_>, pod: &str) -> Vec<Logged> {
    shop.cluster.log(shop.name(), pod, "callback-guard")
}

#[test]
fn from_inject_to_a_fallback_within_a_second_of_an_edit_and_an_api_server_that_is_away() {
    let _undisturbed = undisturbed();
    let Some((cluster, image)) = node() else { return };
    let shop = Shop::new(&cluster, image, &deny(5100, ""));
    shop.roll_out(&shop.injected("inject", &shop.manifest("{}")));
    the_sidecar_starts_first(&shop);
    shop.wait_for("allowed");

    shop.behave("delay=5s");
    shop.wait_for("denied 5100");
    an_edit_is_in_force_within_a_second(&shop);
    shop.wait_for("denied 5200");
    shop.behave("delay=0s");
    shop.wait_for("allowed");
    let loads = loads(&shop);
    shop.behave("delay=5s");
    shop.wait_for("denied 5200");
    shop.behave("listener=close");
    shop.wait_for("denied 5200");
    the_pods_are_ready_and_have_not_restarted(&shop);
    shop.behave("delay=0s");
    shop.behave("listener=open");
    shop.wait_for("allowed");
    for load in loads {
        let counts = load.end();
        only(&counts, &["allowed", "denied"]);
        assert_eq!(counts.len(), 2, "{counts:?}");
    }
    the_api_server_goes_away_and_a_sidecar_dies(&shop);
}

fn the_sidecar_starts_first(shop: &Shop<'_>) {
    let pods = shop.pod_names();
    assert_eq!(pods.len(), 2);
    for pod in pods {
        let listening = guard_log(shop, &pod).into_iter().find(|line| line.text.contains("\"Listening\""));
        let app = shop.cluster.log(shop.name(), &pod, "app");
        let started = app.into_iter().find(|line| line.text.contains("app started"));
        let (listening, started) = (listening.expect("it serves"), started.expect("it serves"));
        assert!(listening.time < started.time, "{pod}: {listening:?} {started:?}");
    }
}

/// Between the end of `kubectl patch` and the guard's own word for it: as of the log, whose clock is this machine's.
fn an_edit_is_in_force_within_a_second(shop: &Shop<'_>) {
    shop.patch(&deny(5200, ""));
    let patched = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output();
    let patched = String::from_utf8(patched.expect("date is there").stdout).expect("a time");
    for pod in shop.pod_names() {
        let told = eventually("the edit", || {
            guard_log(shop, &pod)
                .into_iter()
                .filter(|line| line.text.contains("A policy is in force") && line.text.contains("configmap"))
                .nth(1)
        });
        let took = seconds(&told.time) - seconds(&patched);
        // Across midnight it is a day less.
        assert!(took < 1.0, "{pod}: {took} s");
    }
}

fn the_pods_are_ready_and_have_not_restarted(shop: &Shop<'_>) {
    for pod in shop.pods() {
        let status = &pod["status"];
        let conditions = status["conditions"].as_array().expect("a list");
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").expect("a condition");
        assert_eq!(ready["status"], "True", "{status}");
        for container in ["initContainerStatuses", "containerStatuses"] {
            assert_eq!(status[container][0]["restartCount"], 0, "{status}");
        }
    }
}

fn the_api_server_goes_away_and_a_sidecar_dies(shop: &Shop<'_>) {
    let cluster = shop.cluster;
    let pods = shop.pod_names();
    let loads = loads(shop);
    cluster.stop("kube-apiserver", "KILL");
    let away = Instant::now();
    eventually("thirty seconds without an API server", || {
        (away.elapsed() > Duration::from_secs(30)).then_some(())
    });
    all_allowed(loads);

    // A crash of one sidecar: its callbacks are cut, and it comes back with the policy of the last edit.
    let before = cluster.containers(shop.name(), &pods[0], "callback-guard").remove(0);
    cluster.kill_container(&before);
    let line = eventually("the policy after a crash", || {
        let log = guard_log(shop, &pods[0]);
        let starts: Vec<_> = log
            .iter()
            .enumerate()
            .filter(|(_, line)| line.text.contains("\"Listening\""))
            .map(|(at, _)| at)
            .collect();
        let again = *starts.get(1)?;
        log[..again].iter().rev().find(|line| line.text.contains("A policy is in force")).cloned()
    });
    let source = field(&line, "policy.source").expect("a line of the guard");
    assert!(["file", "cache"].contains(&source.as_str()), "{line:?}");
    eventually("its listener", || {
        cluster.containers(shop.name(), &pods[0], "callback-guard").pop().filter(|now| *now != before)
    });
    let hashes: BTreeSet<_> = pods
        .iter()
        .filter_map(|pod| {
            let log = guard_log(shop, pod);
            let last = log.iter().rev().find(|line| line.text.contains("A policy is in force"))?;
            field(last, "policy.hash")
        })
        .collect();
    assert_eq!(hashes.len(), 1, "the one that crashed has the policy of the other: {hashes:?}");
    cluster.start_again("kube-apiserver");
    cluster.wait_for_api();
    shop.wait_for("allowed");
}

#[test]
fn a_rollout_under_load_a_job_and_the_way_back() {
    let _undisturbed = undisturbed();
    let Some((cluster, image)) = node() else { return };
    let shop = Shop::new(&cluster, image, &deny(5100, ""));
    let sleeping = shop.manifest("{callback-guard.io/app-pre-stop-sleep: 8s}");
    shop.roll_out(&shop.injected("inject", &sleeping));
    shop.wait_for("allowed");

    // With the app's sleep: the app answers every callback, also those of the pods that end.
    let old = follow(&shop);
    let loads_with = loads(&shop);
    let restarted = sleeping.replace("{callback-guard.io", "{example.org/round: '1', callback-guard.io");
    shop.roll_out(&shop.injected("inject", &restarted));
    let ended = old.into_iter().map(Ended::wait).collect::<Vec<_>>();
    for ended in &ended {
        ended.guard_outlived_the_app_within(Duration::from_secs(30));
        assert_eq!(ended.causes(), BTreeSet::new(), "with the app's sleep there is no fallback");
    }
    all_allowed(loads_with);

    // Without it: no callback fails, and what falls back does so because the pod is ending.
    shop.patch(&deny(5100, ", fallbackFor: {draining: Allow}"));
    let plain = shop.manifest("{example.org/round: '2'}");
    shop.roll_out(&shop.injected("inject", &plain));
    shop.wait_for("allowed");
    let old = follow(&shop);
    let loads_without = loads(&shop);
    let again = shop.manifest("{example.org/round: '3'}");
    shop.roll_out(&shop.injected("inject", &again));
    let ended = old.into_iter().map(Ended::wait).collect::<Vec<_>>();
    for ended in &ended {
        ended.guard_outlived_the_app_within(Duration::from_secs(30));
        let draining = BTreeSet::from(["draining".to_owned()]);
        assert!(
            ended.causes().is_subset(&draining),
            "{}: {:?}: {:#?}",
            ended.pod,
            ended.causes(),
            ended.guard
        );
    }
    all_allowed(loads_without);

    a_job_with_a_sidecar_completes(&shop);
    the_way_back_leaves_nothing(&shop, &again);
}

/// The logs of a pod's two containers, to the pod's end.
struct Ending {
    pod: String,
    guard: Following,
    app: Following,
}

fn follow(shop: &Shop<'_>) -> Vec<Ending> {
    let follow = |pod: &str, container: &str| shop.cluster.follow(shop.name(), pod, container);
    let pods = shop.pod_names();
    pods.into_iter()
        .map(|pod| Ending { guard: follow(&pod, "callback-guard"), app: follow(&pod, "app"), pod })
        .collect()
}

struct Ended {
    pod: String,
    guard: Vec<Logged>,
    app: Vec<Logged>,
}

impl Ended {
    fn wait(ending: Ending) -> Ended {
        Ended { pod: ending.pod, guard: ending.guard.wait_for_end(), app: ending.app.wait_for_end() }
    }

    /// The causes of all answers that were not the app's.
    fn causes(&self) -> BTreeSet<String> {
        self.guard.iter().filter_map(|line| field(line, "cause")).filter(|cause| !cause.is_empty()).collect()
    }

    /// The last line of a log with this text.
    fn find<'l>(&self, log: &'l [Logged], text: &str) -> &'l Logged {
        let line = log.iter().rev().find(|line| line.text.contains(text));
        line.unwrap_or_else(|| panic!("{}: nobody says {text:?}: {log:#?}", self.pod))
    }

    fn guard_outlived_the_app_within(&self, grace: Duration) {
        let leaving = self.find(&self.guard, "The pod is ending");
        let app = self.find(&self.app, "app ended");
        let guard = self.find(&self.guard, "Everything is answered");
        assert!(app.time < guard.time, "{}: {app:?} {guard:?}", self.pod);
        let took = seconds(&guard.time) - seconds(&leaving.time);
        assert!(took < grace.as_secs_f64(), "{}: {took} s", self.pod);
    }
}

/// The seconds of the day of an RFC 3339 time in UTC.
fn seconds(time: &str) -> f64 {
    let clock = time.trim().split('T').nth(1).expect("a time").trim_end_matches('Z').to_owned();
    clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
}

fn a_job_with_a_sidecar_completes(shop: &Shop<'_>) {
    let job = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: bill, namespace: NAMESPACE}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: callback-guard.test/app:1
        args: [job, --lasts=2s]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"#;
    shop.cluster.apply(&shop.injected("inject", &job.replace("NAMESPACE", shop.name())));
    let wait = ["-n", shop.name(), "wait", "job/bill", "--for=condition=Complete", "--timeout=90s"];
    shop.cluster.kubectl(&wait);
}

fn the_way_back_leaves_nothing(shop: &Shop<'_>, manifest: &str) {
    let injected = shop.injected("inject", manifest);
    assert_eq!(shop.injected("inject", &injected), injected, "twice is once");
    let back = shop.injected("uninject", &injected);
    shop.roll_out(&back);
    let pods = eventually("pods without a sidecar", || {
        let pods = shop.pods();
        (pods.len() == 2 && pods.iter().all(|pod| pod["spec"]["initContainers"].is_null())).then_some(pods)
    });
    for pod in pods {
        assert_eq!(pod["spec"]["containers"].as_array().map(Vec::len), Some(1), "{pod}");
        let annotations = pod["metadata"]["annotations"].to_string();
        assert!(!annotations.contains("callback-guard.io"), "{annotations}");
    }
    // As before: the manifest of the developer changes nothing any more.
    let said = shop.cluster.apply(manifest);
    assert!(said.contains("unchanged"), "{said}");
}
