//! The end of a cluster, in every way it can come: nothing is left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use super::cluster::{Cluster, Line, Stage, can_hold, clean, run, signal};
use super::remains::{Remains, cgroups};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: pod, namespace: default}
spec:
  terminationGracePeriodSeconds: 600
  containers:
  - {name: app, image: "callback-guard.test/app:1", args: [serve]}
"#;

/// A node of its own with a pod on it, and everything it consists of.
fn node() -> (Cluster, Remains) {
    let cluster = Cluster::start(Stage::B);
    cluster.apply(POD);
    cluster.kubectl(&["wait", "pod/pod", "--for=condition=Ready", "--timeout=60s"]);
    let remains = Remains::of(&cluster);
    // Supervisor, holder, first process, seven components, a shim, and two containers.
    assert!(remains.count() >= 13, "{remains:?}");
    // Of the cluster: network, mounts, processes. Of the pod: at least network and mounts.
    assert!(remains.namespaces() >= 5, "{remains:?}");
    assert!(!cgroups(cluster.number()).is_empty());
    (cluster, remains)
}

#[test]
fn the_end_of_its_input_leaves_nothing() {
    if !can_hold(Stage::A) {
        return;
    }
    let cluster = Cluster::start(Stage::A);
    let remains = Remains::of(&cluster);
    // Supervisor, holder, first process, etcd, kube-apiserver.
    assert!(remains.count() >= 5, "{remains:?}");
    cluster.end();
    assert!(cluster.said().contains("standard input has ended"), "{}", cluster.said());
    remains.assert_gone();
}

#[test]
fn sigterm_leaves_nothing_of_a_node_with_pods() {
    if !can_hold(Stage::B) {
        return;
    }
    let (cluster, remains) = node();
    signal(cluster.supervisor(), libc::SIGTERM);
    assert_eq!(cluster.wait_for_supervisor(), 143);
    remains.assert_gone();
}

#[test]
fn sigkill_and_down_leave_nothing_of_a_node_with_pods() {
    if !can_hold(Stage::B) {
        return;
    }
    let (cluster, remains) = node();
    signal(cluster.supervisor(), libc::SIGKILL);
    assert_eq!(cluster.wait_for_supervisor(), -1);
    assert!(cluster.folder().exists(), "nobody could remove it");
    let down = run(clean(script()).arg("down").arg(cluster.folder()), None);
    down.unwrap_or_else(|said| panic!("{said}"));
    remains.assert_gone();
}

#[test]
fn sigint_while_it_comes_up_leaves_nothing() {
    if !can_hold(Stage::A) {
        return;
    }
    let look = |line: &Line<'_>| {
        if line.text.contains("stage A starts") {
            signal(line.supervisor, libc::SIGINT);
        }
    };
    let said = Cluster::try_start(Stage::A, &[], look).expect_err("it was interrupted");
    assert!(said.contains("SIGINT: taking it down"), "{said}");
    assert!(!started_in(&said).exists(), "{said}");
}

#[test]
fn a_component_that_fails_is_shown_and_leaves_nothing() {
    let Some(cluster) = Cluster::shared(Stage::A) else { return };
    let assets = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("assets-{}", std::process::id()));
    fs::create_dir_all(&assets).expect("a folder");
    let path = fs::read_to_string(cluster.folder().join("path")).expect("the cluster stands");
    for program in ["kube-apiserver", "kubectl"] {
        let found = path
            .trim()
            .split(':')
            .map(|folder| PathBuf::from(folder).join(program))
            .find(|path| path.exists());
        symlink(found.expect("it runs"), assets.join(program)).expect("a link");
    }
    fs::write(assets.join("etcd"), "#!/bin/sh\necho 'etcd: no space left on this device'\nexit 3\n")
        .expect("a file");
    fs::set_permissions(assets.join("etcd"), fs::Permissions::from_mode(0o755)).expect("own file");

    let variables = [("KUBEBUILDER_ASSETS", assets.to_str().expect("UTF-8"))];
    let said = Cluster::try_start(Stage::A, &variables, |_| {}).expect_err("etcd does not run");
    fs::remove_dir_all(&assets).expect("own folder");
    assert!(said.contains("etcd has ended"), "{said}");
    assert!(said.contains("no space left on this device"), "{said}");
    assert!(!started_in(&said).exists(), "{said}");
}

#[test]
fn an_asset_that_is_missing_is_named() {
    if !can_hold(Stage::A) {
        return;
    }
    let variables = [("KUBEBUILDER_ASSETS", "/nowhere")];
    let said = Cluster::try_start(Stage::A, &variables, |_| {}).expect_err("nothing is there");
    assert!(said.contains("KUBEBUILDER_ASSETS=/nowhere has no program etcd"), "{said}");
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/cluster")
}

/// The folder that a supervisor named when it began.
fn started_in(said: &str) -> PathBuf {
    let folder = said.lines().find_map(|line| line.split_once(" starts in ")).expect("it began").1;
    PathBuf::from(folder)
}
