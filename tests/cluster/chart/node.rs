//! The chart on a real node, from `helm install` to a guarded app and out again, by nothing but the commands that Helm prints. They are
//! read from its notes and run as they are, by bash, with OpenIM's own client as the caller.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::admission::{has_sidecar, sidecars};
use super::super::client::Client;
use super::super::cluster::{Cluster, eventually, run};
use super::super::dns::NameServer;
use super::super::image::node_with_images;
use super::super::openim::OpenIm;
use super::super::operator::{EXAMPLE, Operator, RELEASE};
use super::super::shop::Counts;

/// The word that the example app refuses, with the app's own code. Fallbacks are allows, so that they are seen.
const REFUSED: &str = "to the casino";

/// What OpenIM concludes of a message with that word, if the app was called.
const BY_APP: &str = "denied 5001";

/// Another served namespace, with the policy to start from; and one whose policy is in the values.
const STARTER: &str = "stall";
const IN_VALUES: &str = "bank";

/// A namespace whose certificate is not the controller's.
const OTHER_TLS: &str = "lab";

const VALUES: &str = r#"
namespaces:
- {name: callback-guard-example, services: [app]}
- {name: stall}
- {name: bank, policy: {version: 1, defaults: {timeout: 1s}}}
- {name: lab, tls: {source: secret}}
trust: {namespaces: [openim]}
"#;

/// OpenIM as its users deploy it: a Deployment that calls the URL of its configuration.
const OPENIM: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: msg-rpc-server, namespace: openim}
spec:
  selector: {matchLabels: {app: openim}}
  template:
    metadata: {labels: {app: openim}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: openim, image: "callback-guard.test/openim:1", args: [pause]}
"#;

/// All conclusions are the app's.
#[track_caller]
fn assert_by_app(counts: &Counts, least: u64) {
    assert!(counts.len() == 1 && counts.get("denied").is_some_and(|count| *count >= least), "{counts:?}");
}

#[test]
fn from_helm_install_to_a_guarded_app_and_out_again() {
    let Some((cluster, image)) = node_with_images() else { return };
    // The name that the chart and the manifests have, as it is on the nodes after `kind load`. A debug build has another.
    let name = format!("docker.io/library/callback-guard:{}", env!("CARGO_PKG_VERSION"));
    if image.ends_with(":debug") {
        let tag = ["-n", "k8s.io", "images", "tag", &image, &name];
        run(cluster.command_inside("ctr").args(tag), None).unwrap_or_else(|said| panic!("{said}"));
    }
    let operator = Operator::new(&cluster, VALUES);

    nothing_is_installed_if_a_namespace_is_missing(&operator);
    apps_run_before(&operator);
    let service = cluster.get(EXAMPLE, &["service", "app"]).expect("it was applied");
    let address =
        service["spec"]["clusterIP"].as_str().and_then(|text| text.parse().ok()).expect("an address");
    let _names = NameServer::start(cluster.host(), &format!("app.{EXAMPLE}.svc"), address);
    let old = format!("http://app.{EXAMPLE}.svc/");

    let begun = Instant::now();
    operator.install().unwrap_or_else(|said| panic!("helm install: {said}"));
    println!("helm install --wait: {:?}", begun.elapsed());
    the_cluster_has_what_the_chart_renders(&operator);
    for heading in ["1. Label", "2. Add", "3. Have"] {
        operator.follow(heading);
    }
    let pods = operator.pods();
    assert!(pods.len() == 2 && pods.iter().all(has_sidecar), "{pods:#?}");
    let openim = OpenIm::start(&cluster, "openim", &json!({}));
    let deployment = cluster.get("openim", &["deployment", "msg-rpc-server"]).expect("it was applied");
    let env = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(env[0]["name"], "IMENV_WEBHOOKS_URL", "{env}");
    let url = env[0]["value"].as_str().expect("a text").to_owned();
    assert_eq!(url, format!("https://app.{EXAMPLE}.svc"));
    eventually("the app's verdicts through the guard", || {
        (openim.ask(&url, REFUSED).starts_with(BY_APP) && openim.ask(&url, "hello") == "allowed")
            .then_some(())
    });
    println!("helm install to the first guarded callback: {:?}", begun.elapsed());
    operator.follow("Verify");

    an_edit_is_in_force_and_a_broken_one_is_not(&operator, &openim, &url);
    an_override_by_one_patch_is_over_by_itself(&operator, &openim, &url);
    an_upgrade_and_a_rollback_lose_nothing(&operator, &openim, &url);
    the_removal_of_the_notes_loses_nothing(&operator, &openim, &url, &old);
    the_commands_of_the_documentation_do_the_same(&operator);
}

fn nothing_is_installed_if_a_namespace_is_missing(operator: &Operator<'_>) {
    operator.run(&format!("kubectl create namespace {STARTER}"));
    let said = operator.install().expect_err("namespaces are missing");
    for name in [EXAMPLE, IN_VALUES, OTHER_TLS, "openim"] {
        assert!(
            said.contains(&format!("there is no namespace \"{name}\": create it first")),
            "{name}\n{said}"
        );
    }
    assert!(!said.contains(&format!("\"{STARTER}\"")), "{said}");
    assert_eq!(operator.run(&format!("helm list -n {RELEASE} -q")).trim(), "");
    assert_eq!(operator.of_ours(), Vec::<String>::new());
}

/// The example as it is in the repository, the same app in the other namespaces, and OpenIM.
fn apps_run_before(operator: &Operator<'_>) {
    operator.run("kubectl apply -f manifests/example");
    operator.run("kubectl create namespace openim");
    operator.run(&format!("kubectl create namespace {IN_VALUES}"));
    operator.run(&format!("kubectl create namespace {OTHER_TLS}"));
    operator.run(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=own \
         -keyout own.key -out own.crt && \
         kubectl -n {OTHER_TLS} create secret tls callback-guard-tls --cert=own.crt --key=own.key"
    ));
    for namespace in [STARTER, IN_VALUES, OTHER_TLS] {
        operator.run(&format!(
            "sed 's/{EXAMPLE}/{namespace}/; s/replicas: 2/replicas: 1/' manifests/example/03-app.yaml | kubectl apply -f -"
        ));
    }
    operator.cluster.apply(OPENIM);
    operator.run(&format!("kubectl -n {EXAMPLE} rollout status deployment --timeout=120s"));
    assert!(operator.pods().iter().all(|pod| !has_sidecar(pod)));
}

fn the_cluster_has_what_the_chart_renders(operator: &Operator<'_>) {
    let template = format!(
        "helm template {RELEASE} charts/callback-guard -n {RELEASE} --no-hooks --values values.yaml --kube-version 1.37.2"
    );
    let diff =
        operator.try_run(&format!("{template} | kubectl diff -f -")).unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(diff, "");
    // The negative twin: another value is seen.
    let other = operator.try_run(&format!("{template} --set controller.replicas=3 | kubectl diff -f -"));
    assert!(other.expect_err("a difference").contains("replicas: 3"));
    let objects = operator.run(&format!("{template} | grep -c '^kind: '"));
    println!("objects of four namespaces and one of OpenIM: {}", objects.trim());
    println!("{}", operator.run(&format!("kubectl -n {RELEASE} get pods -o wide")));
}

fn an_edit_is_in_force_and_a_broken_one_is_not(operator: &Operator<'_>, openim: &OpenIm<'_>, url: &str) {
    let edit = operator.notes("Change the policy").remove(0);
    // `kubectl edit` opens what this names: here a program that edits, in place of a person.
    let with = |expression: &str| format!("KUBE_EDITOR='sed -i \"{expression}\"' {edit}");
    let rule = "s/    rules:/    rules:\\\\n      - {name: night, match: {commands: [callbackBeforeSendSingleMsgCommand]}, answer: Deny, deny: {errCode: 5300}}/";
    operator.run(&with(rule));
    eventually("the edit in force", || openim.ask(url, "hello").starts_with("denied 5300").then_some(()));
    operator.run(&with("s/fallback: Allow/fallback: Alow/"));
    let events = format!(
        "-n {EXAMPLE} get events --field-selector reason=InvalidPolicy -o jsonpath={{.items[*].message}}"
    );
    let message = eventually("the Event about the broken policy", || {
        operator.try_run(&format!("kubectl {events}")).ok().filter(|message| !message.is_empty())
    });
    assert!(message.contains("fallback") && message.contains("Alow"), "{message}");
    for _ in 0..10 {
        let said = openim.ask(url, "hello");
        assert!(said.starts_with("denied 5300"), "{said}");
    }
    operator.run(&with("s/fallback: Alow/fallback: Allow/"));
}

fn an_override_by_one_patch_is_over_by_itself(operator: &Operator<'_>, openim: &OpenIm<'_>, url: &str) {
    let commands = operator.notes("In an incident");
    let (command, end) = (&commands[0], &commands[1]);
    operator.run(command);
    eventually("the override", || (openim.ask(url, REFUSED) == "allowed").then_some(()));
    operator.run(end);
    eventually("the early end of the override", || {
        openim.ask(url, "hello").starts_with("denied 5300").then_some(())
    });
    // The same with seconds in place of an hour.
    assert!(command.contains("+1 hour"), "{command}");
    operator.run(&command.replace("+1 hour", "+8 seconds"));
    eventually("the end of the override", || {
        openim.ask(url, "hello").starts_with("denied 5300").then_some(())
    });
    // The rule of the night goes with it.
    let edit = operator.notes("Change the policy").remove(0);
    operator.run(&format!("KUBE_EDITOR='sed -i \"/name: night/d\"' {edit}"));
    eventually("the app's verdict", || openim.ask(url, REFUSED).starts_with(BY_APP).then_some(()));
}

/// Creates pods in the example until `over` is set: how many, and how many of them without exactly one sidecar.
fn creations(cluster: &Cluster, over: &AtomicBool) -> (usize, usize) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"},
        "spec": {"containers": [{"name": "app", "image": "x", "ports": [{"containerPort": 8080}]}]},
    });
    let mut client = Client::of(cluster);
    let (mut created, mut naked) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let reply = client.dry_run(EXAMPLE, &pod);
        assert!(reply.is_success(), "{reply:?}");
        created += 1;
        naked += usize::from(sidecars(&reply.body) != 1);
    }
    (created, naked)
}

fn an_upgrade_and_a_rollback_lose_nothing(operator: &Operator<'_>, openim: &OpenIm<'_>, url: &str) {
    let cluster = operator.cluster;
    // Edits by hand: of the policy to start from, which is the user's, and of the one in the values, which is Helm's.
    let edit = |namespace: &str| {
        operator.run(&format!(
            "KUBE_EDITOR='sed -i \"s/version: 1/version: 1 # by hand/\"' kubectl -n {namespace} edit configmap callback-guard-policy"
        ));
    };
    edit(STARTER);
    edit(IN_VALUES);
    let notes = operator.run(&format!("helm get notes {RELEASE} -n {RELEASE}"));
    assert!(
        notes.contains(&format!("The policy of {IN_VALUES} is in the values of this release")),
        "{notes}"
    );
    assert!(!notes.contains(&format!("The policy of {STARTER} is in the values")), "{notes}");

    let load = openim.load(url, Some(REFUSED), 20);
    let over = AtomicBool::new(false);
    let (created, naked) = thread::scope(|scope| {
        let creations = scope.spawn(|| creations(cluster, &over));
        let said = operator.upgrade("--set sidecar.workers=2").expect_err("an edit by hand is in the way");
        assert!(said.contains("conflict") && said.contains("callback-guard-policy"), "{said}");
        operator
            .upgrade("--set sidecar.workers=2 --force-conflicts")
            .unwrap_or_else(|said| panic!("upgrade: {said}"));
        assert!(operator.policy(STARTER).contains("# by hand"), "{}", operator.policy(STARTER));
        assert!(!operator.policy(IN_VALUES).contains("# by hand"), "{}", operator.policy(IN_VALUES));
        // The new sidecar, also under load.
        wait_for_new_pods(operator, "the upgrade", |pod| pod.to_string().contains("--workers=2"));
        restart(operator);
        assert!(operator.pods().iter().all(|pod| pod.to_string().contains("--workers=2")));
        operator.run(&format!("helm rollback {RELEASE} 1 -n {RELEASE} --wait"));
        wait_for_new_pods(operator, "the rollback", |pod| !pod.to_string().contains("--workers=2"));
        restart(operator);
        assert!(
            operator.pods().iter().all(|pod| has_sidecar(pod) && !pod.to_string().contains("--workers=2"))
        );
        over.store(true, Ordering::Relaxed);
        creations.join().expect("pods can be created")
    });
    println!("{created} pods created during upgrade and rollback, {naked} without exactly one sidecar");
    assert!(created > 100 && naked == 0, "{created} {naked}");
    let counts = load.stop();
    println!("during upgrade and rollback: {counts:?}");
    assert_by_app(&counts, 100);
    assert!(operator.policy(STARTER).contains("# by hand"), "{}", operator.policy(STARTER));
    a_policy_moves_into_the_values_and_stays_when_it_leaves_them(operator);
    // Helm writes logs of a test to standard error.
    let test = operator.run(&format!("helm test {RELEASE} -n {RELEASE} 2>&1"));
    assert_eq!(test.matches("Phase:          Succeeded").count(), 4, "{test}");
    for namespace in [EXAMPLE, STARTER, IN_VALUES, OTHER_TLS] {
        assert!(
            test.contains(&format!("https://callback-guard-test.{namespace}.svc:18443/")),
            "{namespace}\n{test}"
        );
    }
}

/// The policy that the controller created, which somebody has edited.
fn a_policy_moves_into_the_values_and_stays_when_it_leaves_them(operator: &Operator<'_>) {
    let path = "namespaces[1].policy.defaults.timeout=1500ms";
    let said = operator.upgrade(&format!("--set {path}")).expect_err("it is not Helm's");
    assert!(said.contains("callback-guard-policy") && said.contains("ownership"), "{said}");
    let adopt = format!("--set {path} --take-ownership --force-conflicts");
    operator.upgrade(&adopt).unwrap_or_else(|said| panic!("upgrade: {said}"));
    assert_eq!(operator.policy(STARTER), "defaults:\n  timeout: 1500ms\n");
    operator.upgrade("").unwrap_or_else(|said| panic!("upgrade: {said}"));
    assert_eq!(operator.policy(STARTER), "defaults:\n  timeout: 1500ms\n", "it is the user's again");
}

/// Waits until a new pod of the example would be so: the API server takes a second or two for policies and labels.
fn wait_for_new_pods(operator: &Operator<'_>, what: &str, wanted: impl Fn(&Value) -> bool) {
    eventually(what, || {
        let dry = format!("kubectl -n {EXAMPLE} run probe --image=x --port=8080 --dry-run=server -o json");
        let pod = serde_json::from_str(&operator.try_run(&dry).ok()?).expect("JSON");
        wanted(&pod).then_some(())
    });
}

fn restart(operator: &Operator<'_>) {
    operator.run(&format!("kubectl -n {EXAMPLE} rollout restart deployment"));
    operator.run(&format!("kubectl -n {EXAMPLE} rollout status deployment --timeout=180s"));
}

fn the_removal_of_the_notes_loses_nothing(
    operator: &Operator<'_>,
    openim: &OpenIm<'_>,
    url: &str,
    old: &str,
) {
    let (removal, rest) = (operator.notes("Remove it"), operator.notes("What the controller"));
    // OpenIM calls the guard until it was restarted with the URL of before, and the app from then on.
    let back =
        removal.iter().position(|command| command.contains("patch service")).expect("the port goes away");
    let guarded = openim.load(url, Some(REFUSED), 20);
    removal[..back].iter().for_each(|command| drop(operator.run(command)));
    let deployment = operator.cluster.get("openim", &["deployment", "msg-rpc-server"]).expect("it is there");
    assert!(!deployment.to_string().contains("IMENV_WEBHOOKS_URL"), "{deployment}");
    let plain = openim.load(old, Some(REFUSED), 20);
    assert_by_app(&guarded.stop(), 50);
    removal[back..].iter().for_each(|command| drop(operator.run(command)));
    let pods = operator.pods();
    assert!(pods.len() == 2 && pods.iter().all(|pod| !has_sidecar(pod)), "{pods:#?}");
    let counts = plain.stop();
    println!("during the removal: {counts:?}");
    assert_by_app(&counts, 50);

    let mut left = operator.of_ours();
    left.retain(|object| !object.starts_with("EndpointSlice") && !object.starts_with("Endpoints"));
    let expected = [
        "ConfigMap bank callback-guard-ca",
        "ConfigMap bank callback-guard-policy",
        "ConfigMap callback-guard-example callback-guard-ca",
        "ConfigMap callback-guard-example callback-guard-policy",
        "ConfigMap lab callback-guard-ca",
        "ConfigMap lab callback-guard-policy",
        "ConfigMap openim callback-guard-ca",
        "ConfigMap stall callback-guard-ca",
        "ConfigMap stall callback-guard-policy",
        "Lease callback-guard callback-guard-controller",
        "Secret bank callback-guard-tls",
        "Secret callback-guard callback-guard-ca",
        "Secret callback-guard-example callback-guard-tls",
        "Secret lab callback-guard-tls",
        "Secret stall callback-guard-tls",
    ];
    assert_eq!(left, expected);
    rest.iter().for_each(|command| drop(operator.run(command)));
    assert_eq!(
        operator.of_ours(),
        [format!("Secret {OTHER_TLS} callback-guard-tls")],
        "that one is the user's"
    );
    operator.run(&format!("kubectl delete namespace {OTHER_TLS} --wait"));
    restart(operator);
    assert!(operator.pods().iter().all(|pod| !has_sidecar(pod)));
}

/// The blocks of commands of docs/install.md that are marked as tested, each with its heading.
fn documented() -> Vec<(String, String)> {
    let page = include_str!("../../../docs/install.md");
    let mut heading = "";
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    let mut is_tested = false;
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix('#') {
            heading = text.trim_start_matches(['#', ' ']);
        } else if line == "```sh" {
            let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            if is_tested {
                blocks.push((heading.to_owned(), block.join("\n")));
            }
            is_tested = false;
        } else if line == "*Tested:*" {
            is_tested = true;
        }
    }
    blocks
}

fn the_commands_of_the_documentation_do_the_same(operator: &Operator<'_>) {
    operator.run(&format!("kubectl delete namespace {EXAMPLE} openim {RELEASE} --wait"));
    let (without_helm, with_helm): (Vec<_>, Vec<_>) =
        documented().into_iter().partition(|(heading, _)| heading == "Without Helm");
    let headings: Vec<_> = with_helm.iter().map(|(heading, _)| heading.as_str()).collect();
    assert_eq!(
        headings,
        ["An app to guard", "Install", "Install", "OpenIM", "The policy", "Upgrade", "Remove", "Remove"]
    );
    let guarded = |expected: usize| {
        let count = operator.pods().iter().filter(|pod| has_sidecar(pod)).count();
        assert_eq!(count, expected, "{:#?}", operator.pods());
    };
    for (heading, block) in with_helm {
        if heading == "Remove" && block.contains("helm uninstall") {
            guarded(2);
        }
        if heading == "OpenIM" {
            operator.cluster.apply(OPENIM);
        }
        // An editor that changes nothing.
        operator.run(&format!("export KUBE_EDITOR=true\n{block}"));
    }
    guarded(0);
    assert_eq!(operator.of_ours(), Vec::<String>::new());

    let [(_, install), (_, remove)] = &without_helm[..] else { panic!("{without_helm:?}") };
    operator.run(install);
    operator.run(&format!("kubectl -n {RELEASE} rollout status deployment --timeout=120s"));
    operator.run(&format!("kubectl label namespace {EXAMPLE} callback-guard.io/inject=enabled"));
    wait_for_new_pods(operator, "the policy", has_sidecar);
    restart(operator);
    guarded(2);
    // Applied again, nothing changes.
    let again = operator.run(install);
    // kubectl replaces the selector of a PodDisruptionBudget, and calls that a change.
    let is_same =
        |line: &str| line.ends_with(" unchanged") || line.starts_with("poddisruptionbudget.policy/");
    assert!(again.lines().all(is_same), "{again}");
    operator.run(&format!("kubectl label namespace {EXAMPLE} callback-guard.io/inject-"));
    wait_for_new_pods(operator, "no label", |pod| !has_sidecar(pod));
    restart(operator);
    operator.run(remove);
    assert!(
        !operator.of_ours().iter().any(|object| object.contains("AdmissionPolicy")),
        "{:?}",
        operator.of_ours()
    );
    guarded(0);
}
