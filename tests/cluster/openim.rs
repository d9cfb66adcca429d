//! OpenIM's own client in a pod, from the first callback to the last in one process.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::judge::Judge;
use super::shop::{Counts, job};

/// Its calls end when the ConfigMap `stop` has the key of a load.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: openim, labels: LABELS}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: openim
    image: callback-guard.test/openim:1
    args: [pause]
    securityContext:
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
      seccompProfile: {type: RuntimeDefault}
    volumeMounts:
    - {name: stop, mountPath: /stop}
    - {name: tmp, mountPath: /tmp}
  volumes:
  - {name: stop, configMap: {name: stop}}
  - {name: tmp, emptyDir: {}}
"#;

/// A pod with OpenIM's client.
pub(crate) struct OpenIm<'c> {
    cluster: &'c Cluster,
    namespace: String,
}

impl<'c> OpenIm<'c> {
    /// Starts it, with these labels. The image has to be there.
    pub(crate) fn start(cluster: &'c Cluster, namespace: &str, labels: &Value) -> OpenIm<'c> {
        cluster.kubectl(&["-n", namespace, "create", "configmap", "stop"]);
        cluster
            .try_apply(&POD.replace("LABELS", &labels.to_string()), &["-n", namespace])
            .unwrap_or_else(|said| panic!("{said}"));
        cluster.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "pod/openim", "--timeout=90s"]);
        OpenIm { cluster, namespace: namespace.to_owned() }
    }

    fn judge(&self, seconds: u32) -> Judge {
        let mut command = self.cluster.kubectl_command_for(seconds);
        command.args(["-n", &self.namespace, "exec", "-i", "openim", "-c", "openim", "--", "/judge"]);
        Judge::run(command)
    }

    /// What OpenIM concludes of one callback about a message with this text: `allowed`, `denied 5001`.
    pub(crate) fn ask(&self, url: &str, text: &str) -> String {
        let mut job = job("call", url);
        job["request"]["content"] = json!(text);
        let conclusion = self.judge(60).ask([job].into_iter()).remove(0);
        match conclusion["verdict"].as_str() {
            Some("allowed") => "allowed".to_owned(),
            verdict => {
                format!("{} {} {}", verdict.unwrap_or("nothing"), conclusion["code"], conclusion["message"])
            }
        }
    }

    /// Eight callbacks at a time with this text, each `pause` milliseconds after the one before, until the load is stopped.
    pub(crate) fn load(&self, url: &str, text: Option<&str>, pause: u32) -> Load<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("load-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut job = job("steady", url);
        for (key, value) in
            [("times", json!(8)), ("pause", json!(pause)), ("until", json!(format!("/stop/{name}")))]
        {
            job[key] = value;
        }
        if let Some(text) = text {
            job["request"]["content"] = json!(text);
        }
        // The client itself ends after five minutes.
        let mut judge = self.judge(360);
        let thread = thread::spawn(move || {
            let counts = judge.ask([job].into_iter()).remove(0);
            serde_json::from_value(counts).expect("counts by conclusion")
        });
        Load { openim: self, name, thread }
    }
}

/// Callbacks that go on until they are stopped.
pub(crate) struct Load<'o> {
    openim: &'o OpenIm<'o>,
    name: String,
    thread: thread::JoinHandle<Counts>,
}

impl Load<'_> {
    /// Stops it. Returns what OpenIM concluded.
    pub(crate) fn stop(self) -> Counts {
        let patch = json!({"data": {self.name: "yes"}}).to_string();
        let OpenIm { cluster, namespace } = self.openim;
        cluster.kubectl(&["-n", namespace, "patch", "configmap", "stop", "--type=merge", "-p", &patch]);
        self.thread.join().expect("the load")
    }
}
