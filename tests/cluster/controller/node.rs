//! The controller as a Deployment on a real node: certificates and CAs change under OpenIM's own client, which never restarts, and
//! pods that are not guarded as they should be are named with what mends them.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use super::super::admission::{INJECT, has_sidecar, sidecars};
use super::super::client::Client;
use super::super::cluster::{Cluster, clean, eventually, run};
use super::super::dns::NameServer;
use super::super::image::node_with_images;
use super::super::openim::OpenIm;
use super::super::shop::Shop;
use super::super::webhook::{Webhook, first_init_container};
use super::openssl;

/// How long a certificate lasts here. It is renewed each 20 s.
const CERTIFICATE: &str = "30s";

/// How long a CA lasts. The next one signs after 84 s, and the one after that after 198 s, while OpenIM's client, which
/// knows the first two, still can verify it: until 228 s.
const CA: &str = "114s";

/// The manifest of the documentation.
fn documented() -> String {
    let page = include_str!("../../../docs/controller.md");
    let (_, manifest) = page.split_once("```yaml\n").expect("a manifest");
    manifest.split_once("```").expect("its end").0.to_owned()
}

/// The cluster, and the names of what is in it.
struct Installed<'c> {
    cluster: &'c Cluster,
    image: &'c str,
    own: String,
    openim: String,
    served: Vec<String>,
}

impl Installed<'_> {
    /// What the program prints for these namespaces, with more flags.
    fn policies(&self, more: &[&str]) -> String {
        let mut command = clean(env!("CARGO_BIN_EXE_callback-guard"));
        command.args([
            "admission-policy",
            "--image",
            self.image,
            "--controller",
            "--own-namespace",
            &self.own,
        ]);
        command.args(["--namespaces", &self.served.join(","), "--trust-namespaces", &self.openim]).args(more);
        run(&mut command, None).unwrap_or_else(|said| panic!("admission-policy: {said}"))
    }

    /// Applies the manifest of the documentation, with these namespaces and short lifetimes.
    fn start_controller(&self) {
        let mut manifest = documented();
        for (documented, here) in [
            ("namespace: callback-guard}", format!("namespace: {}}}", self.own)),
            ("--own-namespace=callback-guard", format!("--own-namespace={}", self.own)),
            ("--namespaces=shop", format!("--namespaces={}", self.served.join(","))),
            ("--trust-namespaces=openim", format!("--trust-namespaces={}", self.openim)),
            (
                "image: REGISTRY/callback-guard:0.2.0",
                format!("image: {}\n        imagePullPolicy: Never", self.image),
            ),
            (
                "        ports:",
                format!(
                    "        - --certificate-lifetime={CERTIFICATE}\n        - --ca-lifetime={CA}\n        ports:"
                ),
            ),
        ] {
            assert_eq!(manifest.matches(documented).count(), 1, "{documented} in {manifest}");
            manifest = manifest.replace(documented, &here);
        }
        self.cluster.apply(&manifest);
        let name = "deployment/callback-guard-controller";
        self.cluster.kubectl(&["-n", &self.own, "rollout", "status", name, "--timeout=120s"]);
    }

    /// The metrics of the leader.
    fn metrics(&self) -> String {
        eventually("the leader's metrics", || {
            let pods = self.cluster.pods(&self.own, "app=callback-guard-controller");
            let texts = pods.iter().filter_map(|pod| {
                let url = format!("http://{}:9090/metrics", pod["status"]["podIP"].as_str()?);
                run(self.cluster.command_in_network("curl").args(["-sSf", "-m", "10", &url]), None).ok()
            });
            texts
                .into_iter()
                .find(|text| text.lines().any(|line| line == "callback_guard_controller_leader 1"))
        })
    }

    /// Waits until so many pods of a namespace are in this state.
    fn wait_for_pods(&self, namespace: &str, state: &str, count: usize) {
        let line =
            format!("callback_guard_controller_pods{{state=\"{state}\",namespace=\"{namespace}\"}} {count}");
        eventually(&line, || self.metrics().lines().any(|found| found == line).then_some(()));
    }

    /// The message of an Event about an object, by its reason; with what is to be in it.
    fn event(&self, namespace: &str, (kind, name): (&str, &str), reason: &str, part: &str) -> String {
        eventually(&format!("{reason} about {kind} {namespace}/{name}"), || {
            let selector = format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
            let events = self.cluster.get(namespace, &["events", "--field-selector", &selector]).ok()?;
            let messages = events["items"].as_array()?.iter().filter_map(|event| event["message"].as_str());
            messages.map(str::to_owned).find(|message| message.contains(part))
        })
    }

    /// Runs the command at the end of a message, as an operator copies it.
    fn run_printed(&self, message: &str) {
        let at = message.rfind("kubectl ").unwrap_or_else(|| panic!("no command in {message:?}"));
        let arguments: Vec<_> = message[at..].split_whitespace().skip(1).collect();
        self.cluster.kubectl(&arguments);
    }

    /// A Deployment of the test's app, with more of its pods' spec.
    fn deploy(&self, namespace: &str, name: &str, spec: &Value) {
        let mut pod = json!({
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "app", "image": "callback-guard.test/app:1", "args": ["serve"],
                "ports": [{"containerPort": 8080}],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        });
        let more = spec.as_object().expect("an object").clone();
        pod.as_object_mut().expect("an object").extend(more);
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
            },
        });
        self.cluster.apply(&deployment.to_string());
        eventually("a pod", || {
            (!self.cluster.pods(namespace, &format!("app={name}")).is_empty()).then_some(())
        });
    }

    /// Waits until new pods of a namespace have a sidecar, or have none.
    fn wait_for_policy(&self, namespace: &str, injects: bool) {
        let probe = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
            "spec": {
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "app", "image": "x", "ports": [{"containerPort": 8080}],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        });
        eventually("the policy", || {
            let pod = Client::of(self.cluster).dry_run(namespace, &probe);
            (pod.is_success() && (sidecars(&pod.body) > 0) == injects).then_some(())
        });
    }
}

#[test]
fn certificates_and_cas_change_under_openims_client_and_pods_are_named_with_what_mends_them() {
    let Some((cluster, image)) = node_with_images() else { return };
    let shop = Shop::bare(&cluster, image.clone());
    let (own, openim) = (cluster.namespace(&[]), cluster.namespace(&[]));
    let stall = cluster.namespace(&[]);
    let installed = Installed {
        cluster: &cluster,
        image: &image,
        own: own.name.clone(),
        openim: openim.name.clone(),
        served: vec![shop.name().to_owned(), stall.name.clone()],
    };
    cluster.apply(&installed.policies(&[]));
    installed.start_controller();

    // A guarded app, as in the documentation: a label, and a restart.
    cluster.kubectl(&["label", "namespace", shop.name(), &format!("{INJECT}=enabled")]);
    cluster.kubectl(&["annotate", "namespace", shop.name(), "callback-guard.io/max-connection-age=1s"]);
    installed.wait_for_policy(shop.name(), true);
    shop.roll_out(&shop.manifest("{}"));
    let pods = shop.pods();
    assert!(pods.len() == 2 && pods.iter().all(has_sidecar), "{pods:#?}");

    let host = format!("shop.{}.svc", shop.name());
    let _names = NameServer::start(cluster.host(), &host, shop.address().parse().expect("an address"));
    let trusting = json!({"callback-guard.io/trust": "enabled"});
    eventually("the CA for OpenIM", || {
        cluster.get(&installed.openim, &["configmap", "callback-guard-ca"]).ok()
    });
    let openim = OpenIm::start(&cluster, &installed.openim, &trusting);
    let load = openim.load(&format!("https://{host}/cb"), None, 50);
    thread::scope(|scope| {
        let others = scope.spawn(|| what_is_wrong_is_named_and_mended(&installed, &stall.name));
        let changes = Changes::watch(&installed, shop.name());
        let counts = load.stop();
        println!("{changes:?} under {counts:?}");
        assert!(counts.len() == 1 && counts["allowed"] > 1_000, "{counts:?}");
        no_handshake_failed(&cluster, &shop);
        others.join().expect("the other half");
    });
}

/// What was served, by the serial numbers of certificates and the issuers' names.
#[derive(Debug, Default)]
struct Changes {
    certificates: BTreeSet<String>,
    issuers: BTreeSet<String>,
    authorities: BTreeSet<String>,
}

impl Changes {
    /// Watches until the certificate was renewed ten times and the CA twice, and the third CA's certificate has been served
    /// for some seconds.
    fn watch(installed: &Installed<'_>, namespace: &str) -> Changes {
        let mut changes = Changes::default();
        let mut first = None;
        while changes.certificates.len() < 11 || changes.issuers.len() < 3 {
            let found = eventually("the next certificate", || {
                let pem = secret(installed.cluster, namespace, "callback-guard-tls");
                let serial = printed(&pem, &["-noout", "-serial"]);
                let issuer = printed(&pem, &["-noout", "-issuer"]);
                (!changes.certificates.contains(&serial)).then_some((serial, issuer))
            });
            changes.certificates.insert(found.0);
            changes.issuers.insert(found.1);
            let authority = secret(installed.cluster, &installed.own, "callback-guard-ca");
            first.get_or_insert_with(|| authority.clone());
            changes.authorities.insert(printed(&authority, &["-noout", "-subject"]));
        }
        // The pods have it, and have served it.
        let newest =
            printed(&secret(installed.cluster, namespace, "callback-guard-tls"), &["-noout", "-serial"]);
        eventually("the newest certificate in the pods", || {
            let pods = installed.cluster.pods(namespace, "app=shop");
            let served =
                pods.iter().filter_map(|pod| served(installed.cluster, pod["status"]["podIP"].as_str()?));
            (served.filter(|serial| *serial == newest).count() == pods.len()).then_some(())
        });
        let expired = openssl(&first.expect("it was seen"), &["-noout", "-checkend", "0"]).is_ok();
        assert!(!expired, "the first CA has expired while the client ran");
        changes
    }
}

/// The certificate of a Secret.
fn secret(cluster: &Cluster, namespace: &str, name: &str) -> String {
    let arguments = [
        "-n",
        namespace,
        "get",
        "secret",
        name,
        "-o",
        r#"go-template={{index .data "tls.crt" | base64decode}}"#,
    ];
    eventually("a Secret", || cluster.try_kubectl(&arguments).ok().filter(|pem| pem.contains("CERTIFICATE")))
}

/// What openssl prints of the first certificate of a PEM text.
fn printed(pem: &str, arguments: &[&str]) -> String {
    openssl(pem, arguments).unwrap_or_else(|said| panic!("openssl: {said}"))
}

/// The serial number of what a pod serves.
fn served(cluster: &Cluster, address: &str) -> Option<String> {
    let mut command = cluster.command_in_network("openssl");
    command.args(["s_client", "-connect", &format!("{address}:18443")]);
    let text = run(&mut command, None).ok()?;
    let at = text.find("-----BEGIN CERTIFICATE")?;
    Some(printed(&text[at..], &["-noout", "-serial"]))
}

fn no_handshake_failed(cluster: &Cluster, shop: &Shop<'_>) {
    for pod in shop.pods() {
        let url = format!("http://{}:19090/metrics", pod["status"]["podIP"].as_str().expect("it runs"));
        let text = run(cluster.command_in_network("curl").args(["-sSf", "-m", "10", &url]), None);
        let text = text.unwrap_or_else(|said| panic!("{url}: {said}"));
        let refused = text.lines().filter(|line| {
            line.starts_with("callback_guard_tls_handshake_failures_total") && !line.contains("\"closed\"")
        });
        let refused: Vec<_> = refused.collect();
        assert!(refused.is_empty(), "{refused:?}");
        assert!(text.contains("callback_guard_callbacks_total"), "{text}");
    }
}

/// The other half, in a namespace of its own.
fn what_is_wrong_is_named_and_mended(installed: &Installed<'_>, stall: &str) {
    pods_older_than_the_label_raise_no_alarm(installed, stall);
    a_naked_pod_is_named_and_mended(installed, stall);
    a_pod_that_cannot_have_a_sidecar_is_named(installed, stall);
    a_sidecar_behind_another_container_is_named_with_it(installed, stall);
    a_stale_pod_is_named_and_mended(installed, stall);
    a_broken_policy_is_named_in_the_words_of_check_and_its_mending_too(installed, stall);
}

fn pods_older_than_the_label_raise_no_alarm(installed: &Installed<'_>, stall: &str) {
    installed.deploy(stall, "older", &json!({}));
    // Times have whole seconds, and a pod of the label's own second is younger.
    let made = installed.cluster.pods(stall, "app=older")[0]["metadata"]["creationTimestamp"].clone();
    eventually("the next second", || {
        let now = run(clean("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]), None).expect("a time");
        (json!(now.trim()) != made).then_some(())
    });
    installed.cluster.kubectl(&["label", "namespace", stall, &format!("{INJECT}=enabled")]);
    installed.wait_for_policy(stall, true);
    installed.wait_for_pods(stall, "not-restarted", 1);
    installed.wait_for_pods(stall, "naked", 0);
    let events = installed.cluster.get(stall, &["events"]).expect("events can be listed").to_string();
    assert!(!events.contains("NakedPods") && !events.contains("NotRestarted"), "{events}");
    installed.cluster.kubectl(&["-n", stall, "delete", "deployment", "older"]);
}

fn a_naked_pod_is_named_and_mended(installed: &Installed<'_>, stall: &str) {
    installed.cluster.kubectl(&["delete", "mutatingadmissionpolicy", "callback-guard"]);
    installed.wait_for_policy(stall, false);
    installed.deploy(stall, "naked", &json!({}));
    installed.cluster.apply(&installed.policies(&[]));
    installed.wait_for_policy(stall, true);
    installed.wait_for_pods(stall, "naked", 1);
    let message = installed.event(stall, ("Deployment", "naked"), "NakedPods", "kubectl ");
    installed.run_printed(&message);
    installed.wait_for_pods(stall, "naked", 0);
    installed.wait_for_pods(stall, "guarded", 1);
}

fn a_pod_that_cannot_have_a_sidecar_is_named(installed: &Installed<'_>, stall: &str) {
    installed.deploy(stall, "host", &json!({"hostNetwork": true}));
    let message = installed.event(stall, ("Deployment", "host"), "SkippedPods", "host-network");
    assert!(message.contains("as a Deployment in front of the app"), "what to do: {message}");
    let line = "callback_guard_controller_skipped_pods{reason=\"host-network\"} 1";
    eventually(line, || installed.metrics().contains(line).then_some(()));
    installed.cluster.kubectl(&["-n", stall, "delete", "deployment", "host"]);
    installed.wait_for_pods(stall, "skipped", 0);
}

fn a_sidecar_behind_another_container_is_named_with_it(installed: &Installed<'_>, stall: &str) {
    let webhook = Webhook::start(installed.cluster.host(), first_init_container);
    let configured = webhook.configure("first", stall, "Never", installed.cluster);
    installed.deploy(stall, "behind", &json!({}));
    installed.wait_for_pods(stall, "not-first", 1);
    installed.event(stall, ("Deployment", "behind"), "SidecarNotFirst", "\"first\"");
    drop(configured);
    installed.cluster.kubectl(&["-n", stall, "delete", "deployment", "behind"]);
    installed.wait_for_pods(stall, "not-first", 0);
}

fn a_stale_pod_is_named_and_mended(installed: &Installed<'_>, stall: &str) {
    installed.cluster.apply(&installed.policies(&["--set", "workers=2"]));
    installed.wait_for_pods(stall, "stale", 1);
    let message = installed.event(stall, ("Deployment", "naked"), "StalePods", "kubectl ");
    installed.run_printed(&message);
    installed.wait_for_pods(stall, "stale", 0);
    installed.wait_for_pods(stall, "guarded", 1);
}

fn a_broken_policy_is_named_in_the_words_of_check_and_its_mending_too(
    installed: &Installed<'_>,
    stall: &str,
) {
    let cluster = installed.cluster;
    let patch = |text: &str| {
        let patch = json!({"data": {"policy.yaml": text}}).to_string();
        let name = "callback-guard-policy";
        cluster.kubectl(&["-n", stall, "patch", "configmap", name, "--type=merge", "-p", &patch]);
    };
    let starter = cluster.get(stall, &["configmap", "callback-guard-policy"]).expect("the starter policy");
    let starter = starter["data"]["policy.yaml"].as_str().expect("a text").to_owned();
    patch("mode: Obsrve\n");
    let policy = ("ConfigMap", "callback-guard-policy");
    let words =
        "policy.yaml:1:7: mode: Unsupported value: \"Obsrve\": supported values: \"Enforce\", \"Observe\"";
    installed.event(stall, policy, "InvalidPolicy", words);
    let broken = "callback_guard_controller_policies_broken 1";
    eventually(broken, || installed.metrics().contains(broken).then_some(()));
    patch(&starter);
    installed.event(stall, policy, "PolicyMended", "valid again");
    let mended = "callback_guard_controller_policies_broken 0";
    eventually(mended, || installed.metrics().contains(mended).then_some(()));
}
