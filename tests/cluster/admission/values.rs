//! Every value that an annotation cannot have, at both layers: a pod without a sidecar, and one warning that says why.

use callback_guard::sidecar::annotations::{Kind, TABLE, settings};
use serde_json::{Value, json};

use super::super::client::Reply;
use super::super::cluster::eventually;
use super::{INJECT, annotated, ours, pod, sidecars, with_client};

/// Values that no annotation of this kind can have: beside the bounds, and what people and attackers write.
fn bad_values(kind: Kind) -> Vec<String> {
    let mut values: Vec<String> = match kind {
        Kind::Port { least: 1 } => vec!["0", "65536", "http"],
        Kind::Port { .. } => vec!["1023", "65536", "+8443", "8443 "],
        Kind::Count { .. } => vec!["0", "1.5", "-1", "9223372036854775808"],
        Kind::Time { .. } => {
            vec![
                "5",
                "1h1s",
                "3 s",
                "-1s",
                "1d",
                "999999999h",
                "9999999h",
                "9999h9999h9999h",
                "1e3s",
                "1.5ms",
            ]
        }
        Kind::SecondsOrNone { .. } => vec!["5", "0s", "1.5s", "1500ms", "2h", "99999999s", "-1s", "40s"],
        Kind::OneOf(_) => vec!["Path", "both"],
        Kind::Name => vec!["A", "a..b", "-a", "a_b", "a/b"],
        Kind::Namespace => vec!["a.b"],
        Kind::Image => vec!["a b", "\u{fc}", "a\nb"],
        Kind::Cpu => vec!["9m", "65", "1.5", "100M", "+2", "none"],
        Kind::CpuOrNone => vec!["9m", "65", "1e3", "None", "0"],
        Kind::Memory => vec!["31Mi", "65Gi", "64", "64M", "1.5Gi", "lots"],
        Kind::User => vec!["0", "-1", "2147483648", "root", "99999999999999999999"],
        Kind::Written => vec!["x", "[]"],
    }
    .into_iter()
    .map(str::to_owned)
    .collect();
    if let Kind::Count { most, .. } = kind {
        values.push((most + 1).to_string());
    }
    // The API server drops a warning with a control character.
    values.extend(["a\u{1b}b", "\u{0}", "\u{1}", "\u{7f}", "\u{85}"].map(str::to_owned));
    values.extend([String::new(), "\n".to_owned(), "'\"\\{}' + string(1)".to_owned(), "x".repeat(10_000)]);
    if kind == Kind::Image {
        // Whether a reference is one, the kubelet decides.
        values.retain(|value| !value.starts_with('\'') && !value.is_empty());
        values.push(String::new());
    }
    values
}

/// What is wrong with a reply to a bad value; nothing if it is a plain pod and one warning with all there is to know.
fn fault(reply: &Reply, name: &str, value: &str, wanted: &str) -> Option<String> {
    let warnings = ours(reply);
    let plain = reply.is_success() && sidecars(&reply.body) == 0;
    let quoted = format!("{value:?}");
    let control = value.chars().any(char::is_control);
    let quoted = if control { "a text with control characters".to_owned() } else { quoted };
    let shown = if value.len() > 60 { &quoted[..61] } else { quoted.as_str() };
    let told = warnings.len() == 1
        && warnings[0].contains(&format!("callback-guard.io/{name}"))
        && warnings[0].contains(wanted)
        && (wanted.starts_with("Not allowed") || warnings[0].contains(shown))
        && !warnings[0].contains("variables.");
    (!plain || !told)
        .then(|| format!("{name}={value:?}: {} {:?} {}", reply.status, reply.warnings, reply.message()))
}

/// Each row with each bad value, and what the warning has to say.
fn cases() -> Vec<(&'static str, String, String)> {
    let of_row = TABLE.iter().flat_map(|row| {
        let wanted = if row.is_setting() { row.kind.wanted() } else { "Not allowed: ".to_owned() };
        bad_values(row.kind).into_iter().map(move |value| {
            // A sleep as long as the grace period is a valid value in itself.
            let conflict = (row.name, value.as_str()) == ("app-pre-stop-sleep", "40s");
            let wanted = if conflict { "must be shorter".to_owned() } else { wanted.clone() };
            (row.name, value, wanted)
        })
    });
    of_row.collect()
}

#[test]
fn every_bad_value_of_a_pod_makes_it_plain_with_one_warning() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let cases = cases();
        assert!(cases.len() > 150, "{}", cases.len());
        let faults: Vec<_> = cases
            .iter()
            .filter_map(|(name, value, wanted)| {
                fault(&client.dry_run(&namespace, &annotated(name, value)), name, value, wanted)
            })
            .collect();
        assert!(faults.is_empty(), "{} of {}: {faults:#?}", faults.len(), cases.len());
    });
}

#[test]
fn every_bad_value_of_a_namespace_makes_its_pods_plain_with_one_warning_and_is_reported_with_the_namespace() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let path = format!("/api/v1/namespaces/{namespace}");
        for (name, value, wanted) in cases() {
            let key = format!("callback-guard.io/{name}");
            let reply = client.patch(&path, &json!({"metadata": {"annotations": {&key: value}}}));
            // Only a pod knows its grace period.
            let conflict = wanted == "must be shorter";
            // The API server judges a patch once more if it began with an old object: the last warning is the new one's.
            let last = ours(&reply).pop().unwrap_or_default();
            let told = last.contains(&key) && last.contains(&wanted);
            assert!(reply.is_success() && (told || conflict), "{name}={value:?}: {reply:?}");
            let mut last = None;
            eventually(&format!("a warning about {name}={value:?}"), || {
                last = fault(&client.dry_run(&namespace, &pod()), name, &value, &wanted);
                last.is_none().then_some(())
            });
            let cleaned = client.patch(&path, &json!({"metadata": {"annotations": {&key: null}}}));
            assert!(cleaned.is_success(), "{cleaned:?}");
        }
    });
}

#[test]
fn a_value_of_the_pod_mends_a_bad_one_of_its_namespace() {
    with_client(|admission, client| {
        let bad = json!({"callback-guard.io/workers": "0"});
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &bad);
        eventually("the warning", || (!ours(&client.dry_run(&namespace, &pod())).is_empty()).then_some(()));
        let mended = client.dry_run(&namespace, &annotated("workers", "2"));
        assert_eq!((sidecars(&mended.body), ours(&mended).len()), (1, 0), "{mended:?}");
    });
}

#[test]
fn names_that_no_annotation_has_are_all_in_one_warning() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({
            "callback-guard.io/listen-prot": "1", "callback-guard.io/colour": "red", "callback-guard.io/workers": "0",
            "other.io/listen-prot": "1",
        });
        let reply = client.dry_run(&namespace, &pod);
        let warnings = ours(&reply);
        assert_eq!((sidecars(&reply.body), warnings.len()), (0, 1), "{reply:?}");
        let known: Vec<_> = settings().map(|row| row.name).collect();
        for part in [
            "callback-guard.io/listen-prot",
            "callback-guard.io/colour",
            "invalid-annotation",
            &known.join(", "),
        ] {
            assert!(warnings[0].contains(part), "{part}: {}", warnings[0]);
        }
        assert!(!warnings[0].contains("other.io"), "{}", warnings[0]);
        let many: serde_json::Map<_, _> =
            (0..500).map(|number| (format!("callback-guard.io/x{number}"), Value::from("1"))).collect();
        pod["metadata"]["annotations"] = many.into();
        let reply = client.dry_run(&namespace, &pod);
        let warnings = ours(&reply);
        assert_eq!((sidecars(&reply.body), warnings.len()), (0, 1), "{reply:?}");
        assert!(warnings[0].contains("unknown-annotation: ") && warnings[0].len() < 1_300, "{}", warnings[0]);
    });
}

#[test]
fn a_reason_beside_a_value_with_a_control_character_is_told_too() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let mut pod = annotated("workers", "\u{1}");
        pod["spec"]["hostNetwork"] = true.into();
        let reply = client.dry_run(&namespace, &pod);
        let warnings = ours(&reply);
        assert!(warnings.len() == 1 && warnings[0].contains("host-network: "), "{reply:?}");
    });
}

#[test]
fn annotations_that_leave_no_room_make_a_plain_pod_and_not_a_refused_one() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let key = "example.org/large";
        let with = |bytes: usize| {
            let mut pod = pod();
            pod["metadata"]["annotations"] = json!({key: "x".repeat(bytes - key.len())});
            pod
        };
        let most = (256 << 10) - (1 << 10);
        assert_eq!(sidecars(&client.dry_run(&namespace, &with(most)).body), 1);
        for bytes in [most + 1, 256 << 10] {
            let reply = client.dry_run(&namespace, &with(bytes));
            let warnings = ours(&reply);
            assert!(
                reply.is_success() && sidecars(&reply.body) == 0 && warnings.len() == 1,
                "{}",
                reply.message()
            );
            assert!(warnings[0].contains("annotations-too-long: "), "{}", warnings[0]);
        }
    });
}

#[test]
fn settings_that_contradict_each_other_are_reported_with_their_layer() {
    with_client(|admission, client| {
        let namespace = admission.namespace(client, &json!({INJECT: "enabled"}), &json!({}));
        let path = format!("/api/v1/namespaces/{namespace}");
        for (settings, wanted) in [
            (
                json!({"cpu-request": "2", "cpu-limit": "100m"}),
                "conflict: callback-guard.io/cpu-request of the namespace",
            ),
            (json!({"listen-port": "19090"}), "conflict: callback-guard.io/listen-port of the namespace"),
            (json!({"upstream-port": "18443"}), "conflict: callback-guard.io/upstream-port of the namespace"),
        ] {
            let names = ["cpu-request", "cpu-limit", "listen-port", "upstream-port"];
            let annotations: serde_json::Map<_, _> = names
                .iter()
                .map(|name| (format!("callback-guard.io/{name}"), settings[name].clone()))
                .collect();
            let changed = client.patch(&path, &json!({"metadata": {"annotations": annotations}}));
            let warnings = ours(&changed);
            assert!(warnings.last().is_some_and(|last| last.contains(wanted)), "{wanted}: {warnings:?}");
            eventually(wanted, || {
                let reply = client.dry_run(&namespace, &pod());
                let warnings = ours(&reply);
                (sidecars(&reply.body) == 0 && warnings.len() == 1 && warnings[0].contains(wanted))
                    .then_some(())
            });
        }
    });
}
