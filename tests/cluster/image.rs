//! The image, in a pod.

use std::env;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use super::admission::node::openim_image;
use super::cluster::{Cluster, Stage, can_hold, clean, eventually, target};
use super::dns::NameServer;

/// A guard that finds its app by a name.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: guard, namespace: NAMESPACE}
spec:
  containers:
  - name: guard
    image: IMAGE
    imagePullPolicy: Never
    args: [proxy, --tls-self-signed, --allow-remote-upstream, "--upstream=http://app.test:8080",
           "--listen=0.0.0.0:18443", "--admin-listen=0.0.0.0:19090", --log-level=debug]
    readinessProbe: {httpGet: {port: 19090, path: /readyz}, periodSeconds: 1}
    securityContext:
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
---
apiVersion: v1
kind: Pod
metadata: {name: app, namespace: NAMESPACE}
spec:
  containers:
  - name: app
    image: callback-guard.test/app:1
    args: [serve, '--response={"actionCode":0,"errCode":5099,"errMsg":"by name","errDlt":"","nextCode":1}']
    readinessProbe: {httpGet: {port: 8081, path: /control}, periodSeconds: 1}
    securityContext:
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
"#;

/// The one in the sample that is sent.
const OPERATION_ID: &str = "operationID: 1730891241515000001";

/// The archive with our image: the one of the release that `tests/run` has built, or a debug build that is made now. With
/// it the image's name.
pub(crate) fn image() -> (PathBuf, String) {
    if let Some(archive) = env::var_os("CALLBACK_GUARD_TEST_IMAGE") {
        return (PathBuf::from(archive), format!("callback-guard:{}", env!("CARGO_PKG_VERSION")));
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/image");
    let mut command = clean(script);
    command.args(["guard", "--debug"]).env("CARGO_TARGET_DIR", target()).stderr(Stdio::inherit());
    let built = command.output().expect("bash is there");
    assert!(built.status.success(), "tests/image guard --debug failed; what it said stands above");
    let archive = String::from_utf8(built.stdout).expect("a path").trim().to_owned();
    (PathBuf::from(archive), "callback-guard.test/callback-guard:debug".to_owned())
}

/// A node of its own with our image, whose name is returned, and with OpenIM's client. Mounted ConfigMaps and Secrets follow a change
/// within seconds. `None` where the machine cannot hold a node.
pub(crate) fn node_with_images() -> Option<(Cluster, String)> {
    if !can_hold(Stage::B) {
        return None;
    }
    let variables = [("CALLBACK_GUARD_TEST_SYNC_FREQUENCY", "1s")];
    let cluster = Cluster::try_start(Stage::B, &variables, |_| {}).unwrap_or_else(|said| panic!("{said}"));
    let (archive, image) = image();
    cluster.import(&archive);
    cluster.import(&openim_image());
    Some((cluster, image))
}

#[test]
fn the_image_runs_restricted_and_finds_its_app_by_name() {
    let Some(cluster) = Cluster::shared(Stage::B) else { return };
    let (archive, image) = image();
    cluster.import(&archive);
    let namespace = cluster.namespace(&["pod-security.kubernetes.io/enforce=restricted"]);
    let name = namespace.name.as_str();
    let pods = POD.replace("NAMESPACE", name).replace("IMAGE", &image);
    cluster.apply(&pods);
    cluster.kubectl(&["-n", name, "wait", "pod/app", "pod/guard", "--for=condition=Ready", "--timeout=90s"]);
    let address = |pod: &str| {
        let pod = cluster.get(name, &["pod", pod]).expect("it is Ready");
        pod["status"]["podIP"].as_str().and_then(|text| text.parse().ok()).expect("an address")
    };
    let (app, guard): (std::net::Ipv4Addr, std::net::Ipv4Addr) = (address("app"), address("guard"));
    let _names = NameServer::start(cluster.host(), "app.test", app);

    let body = include_str!("../support/openim/samples/callbackBeforeSendSingleMsgCommand/request.json");
    let url = format!("https://{guard}:18443/callbackBeforeSendSingleMsgCommand");
    let answer = eventually("the app's verdict", || {
        let mut curl = cluster.command_in_network("curl");
        curl.args([
            "-sk",
            "-m",
            "10",
            "-H",
            "Content-Type: application/json",
            "-H",
            OPERATION_ID,
            "-d",
            body,
            &url,
        ]);
        let answer: Value = serde_json::from_slice(&curl.output().expect("curl runs").stdout).ok()?;
        (answer["errMsg"] == "by name").then_some(answer)
    });
    assert_eq!(answer["errCode"], 5099);

    // The process, as the machine sees it.
    let container = cluster.containers(name, "guard", "guard").remove(0);
    let tasks =
        super::cluster::run(cluster.command_inside("ctr").args(["-n", "k8s.io", "tasks", "ls"]), None);
    let tasks = tasks.expect("ctr answers");
    let pid = tasks.lines().find(|line| line.starts_with(&container.id)).expect("it runs");
    let pid = pid.split_whitespace().nth(1).expect("a number").to_owned();
    let status = super::cluster::run(cluster.command_inside("cat").arg(format!("/proc/{pid}/status")), None);
    let status = status.expect("it runs");
    assert!(status.contains("\nUid:\t65532\t65532\t65532\t65532\n"), "{status}");
    // The program and its licence; what is in etc are the places of kubelet's own mounts.
    let found =
        cluster.command_inside("find").args([&format!("/proc/{pid}/root/"), "-xdev", "-type", "f"]).output();
    let found = String::from_utf8(found.expect("find runs").stdout).expect("paths");
    let mut files: Vec<_> = found.lines().filter_map(|line| line.split("/root/").nth(1)).collect();
    files.sort_unstable();
    assert_eq!(files, ["LICENSE", "callback-guard", "etc/hostname", "etc/hosts", "etc/resolv.conf"]);
}
