//! The rights that are printed are those that are used: none is refused, and none is left over.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::audit::{Audit, Right, account};
use super::super::cluster::eventually;
use super::{Installation, OWN, SERVED, TRUSTING};

/// What the Roles and the ClusterRole of the controller grant: each verb on each object.
fn granted(installed: &Installation) -> BTreeSet<Right> {
    let role = |namespace: &str, kind: &str| {
        let role = installed.cluster.get(namespace, &[kind, "callback-guard-controller"]);
        role.unwrap_or_else(|said| panic!("{kind} in {namespace}: {said}"))
    };
    let own = [OWN, TRUSTING].into_iter().chain(installed.served.iter().map(String::as_str));
    let roles = own.map(|namespace| role(namespace, "role")).chain([role(OWN, "clusterrole")]);
    let mut granted = BTreeSet::new();
    for role in roles {
        let list = |value: &Value| -> Vec<String> {
            let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        };
        for rule in role["rules"].as_array().expect("a list") {
            let mut names = list(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for name in names {
                for verb in list(&rule["verbs"]) {
                    granted.insert(Right {
                        namespace: role["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
                        group: list(&rule["apiGroups"]).remove(0),
                        resource: list(&rule["resources"]).remove(0),
                        name: name.clone(),
                        verb,
                    });
                }
            }
        }
    }
    granted
}

#[test]
fn the_rights_that_are_used_are_those_that_are_granted_and_none_is_refused() {
    let Some(installed) = Installation::of(&[SERVED, "external"], &["--external-tls", "external"]) else {
        return;
    };
    let cluster = &installed.cluster;
    let lifetimes =
        ["--external-tls=external", "--certificate-lifetime=10s", "--ca-lifetime=30s", "--lease-duration=3s"];
    let first = installed.start("first", &lifetimes);
    first.wait_to_lead();
    everything_that_it_does(&installed, SERVED, true);
    everything_that_it_does(&installed, "external", false);
    // The CA is renewed, with all that follows of it; then another takes over.
    first.wait_for_line("The CA is renewed", 0);
    let second = installed.start("second", &lifetimes);
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait(), 0);
    second.wait_for_line("The certificate of the sidecars is signed", 1);
    // An Event about a Secret of the controller's own namespace.
    let patch = r#"{"data":{"next.crt":"d3Jvbmc="}}"#;
    cluster.kubectl(&["-n", OWN, "patch", "secret", "callback-guard-ca", "--type=merge", "-p", patch]);
    second.wait_for_finding("InvalidAuthority", "Secret guard/callback-guard-ca");
    let seen = || installed.events(OWN, "Secret", "callback-guard-ca", "InvalidAuthority");
    eventually("an Event in its own namespace", || (!seen().is_empty()).then_some(()));
    cluster.kubectl(&["-n", OWN, "delete", "event", "--all"]);
    second.signal(libc::SIGTERM);
    assert_eq!(second.wait(), 0);

    let mut used: BTreeMap<Right, BTreeSet<u16>> = BTreeMap::new();
    for (right, codes) in Audit::of(cluster).used_rights(&account(OWN, "callback-guard-controller")) {
        assert!(!codes.contains(&403), "refused: {right:?} {codes:?}");
        used.entry(right).or_default().extend(codes);
    }
    // Where no names are granted, what was used of any name counts.
    let granted = granted(&installed);
    let is_it = |granted: &Right, used: &Right| {
        let same = (&granted.namespace, &granted.group, &granted.resource, &granted.verb)
            == (&used.namespace, &used.group, &used.resource, &used.verb);
        same && (granted.name.is_empty() || granted.name == used.name)
    };
    let unused: Vec<_> = granted.iter().filter(|right| !used.keys().any(|used| is_it(right, used))).collect();
    assert!(unused.is_empty(), "granted and not used: {unused:#?}");
    let beyond: Vec<_> = used.keys().filter(|used| !granted.iter().any(|right| is_it(right, used))).collect();
    assert!(beyond.is_empty(), "used and not granted: {beyond:#?}");
    assert!(granted.len() > 30 && granted.iter().any(|right| right.namespace == TRUSTING), "{granted:#?}");
}

/// Certificate, CA, starter policy, and what is reported as Events; each is written once more after it was there.
fn everything_that_it_does(installed: &Installation, namespace: &str, signs: bool) {
    let cluster = &installed.cluster;
    eventually("the starter policy", || {
        installed.text(namespace, "configmap", "callback-guard-policy", "policy.yaml")
    });
    if signs {
        let first = installed.certificate(namespace, None);
        installed.certificate(namespace, Some(&first));
    } else {
        assert_eq!(
            installed.text(namespace, "secret", "callback-guard-tls", "tls.crt"),
            None,
            "somebody else does"
        );
    }
    let patch = |text: &str| {
        let patch = serde_json::json!({"data": {"policy.yaml": text}}).to_string();
        let name = "callback-guard-policy";
        cluster.kubectl(&["-n", namespace, "patch", "configmap", name, "--type=merge", "-p", &patch]);
    };
    let events = |reason: &str| installed.events(namespace, "ConfigMap", "callback-guard-policy", reason);
    for broken in ["mode: a", "mode: b"] {
        patch(broken);
        let part = broken.replace("mode: ", "\"") + "\"";
        let named = || events("InvalidPolicy").iter().any(|message| message.contains(&part));
        eventually("InvalidPolicy", || named().then_some(()));
    }
    patch("mode: Observe");
    eventually("PolicyMended", || (!events("PolicyMended").is_empty()).then_some(()));
    eventually("the CA", || installed.text(namespace, "configmap", "callback-guard-ca", "ca.crt"));
    cluster.kubectl(&[
        "-n",
        namespace,
        "patch",
        "configmap",
        "callback-guard-ca",
        "--type=merge",
        "-p",
        r#"{"data":{"ca.crt":"x"}}"#,
    ]);
    eventually("the CA again", || {
        let text = installed.text(namespace, "configmap", "callback-guard-ca", "ca.crt")?;
        text.contains("CERTIFICATE").then_some(())
    });
}
