//! An operator at a terminal: bash with kubectl and Helm, and the commands that Helm prints, run as they are.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cluster::{Cluster, clean, run, script};
use super::support::Folder;

/// The release, and its namespace.
pub(crate) const RELEASE: &str = "callback-guard";

/// The namespace of `manifests/example`.
pub(crate) const EXAMPLE: &str = "callback-guard-example";

/// A cluster, and bash as an operator has it.
pub(crate) struct Operator<'c> {
    pub(crate) cluster: &'c Cluster,
    /// The folder where commands run: it has `charts`, `manifests` and `values.yaml`, and `bin/helm`.
    folder: Folder,
}

impl<'c> Operator<'c> {
    /// With these values of the chart.
    pub(crate) fn new(cluster: &'c Cluster, values: &str) -> Operator<'c> {
        let folder = Folder::new();
        fs::create_dir(folder.path().join("bin")).expect("a folder in a fresh one");
        for name in ["charts", "manifests"] {
            let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            std::os::unix::fs::symlink(place, folder.path().join(name)).expect("a fresh name");
        }
        folder.write("values.yaml", values);
        let helm = format!("#!/bin/sh\nexec {} helm \"$@\"\n", script().display());
        let helm = folder.write("bin/helm", helm);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(helm, mode).expect("it was just written");
        Operator { cluster, folder }
    }

    /// Runs a command; what it prints, or what it says when it fails.
    pub(crate) fn try_run(&self, command: &str) -> Result<String, String> {
        let bin: PathBuf = self.folder.path().join("bin");
        let mut bash = clean("timeout");
        bash.args(["300", "bash", "-euo", "pipefail", "-c", command])
            .env("KUBECONFIG", self.cluster.folder().join("kubeconfig"))
            .env("PATH", format!("{}:{}", bin.display(), self.cluster.path()))
            .current_dir(self.folder.path());
        run(&mut bash, None)
    }

    #[track_caller]
    pub(crate) fn run(&self, command: &str) -> String {
        self.try_run(command).unwrap_or_else(|said| panic!("{command}\n{said}"))
    }

    /// The commands below a heading of the notes, without the comments.
    pub(crate) fn notes(&self, heading: &str) -> Vec<String> {
        let notes = self.run(&format!("helm get notes {RELEASE} -n {RELEASE}"));
        let lines = notes.lines().skip_while(|line| !line.starts_with(heading));
        let section = lines.skip(1).take_while(|line| line.is_empty() || line.starts_with(' '));
        let mut commands = Vec::new();
        let mut is_choice = false;
        for line in section.filter_map(|line| line.strip_prefix("     ")) {
            let comment = line.strip_prefix("# ");
            // Of several commands the first one is chosen.
            commands.extend(
                comment.filter(|_| is_choice).or(Some(line).filter(|_| comment.is_none())).map(str::to_owned),
            );
            is_choice = comment == Some("Choose one:");
        }
        assert!(!commands.is_empty(), "{heading}\n{notes}");
        commands
    }

    /// Runs the commands below a heading of the notes.
    pub(crate) fn follow(&self, heading: &str) {
        for command in self.notes(heading) {
            self.run(&command);
        }
    }

    pub(crate) fn install(&self) -> Result<String, String> {
        self.try_run(&format!(
            "helm install {RELEASE} charts/callback-guard -n {RELEASE} --create-namespace --wait --values values.yaml"
        ))
    }

    pub(crate) fn upgrade(&self, more: &str) -> Result<String, String> {
        self.try_run(&format!(
            "helm upgrade {RELEASE} charts/callback-guard -n {RELEASE} --wait --values values.yaml {more}"
        ))
    }

    /// The pods of the example, without those that are being deleted.
    pub(crate) fn pods(&self) -> Vec<Value> {
        let pods = self.cluster.pods(EXAMPLE, "app=app");
        pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// The policy in a namespace.
    pub(crate) fn policy(&self, namespace: &str) -> String {
        let map = self.cluster.get(namespace, &["configmap", "callback-guard-policy"]).expect("it is there");
        map["data"]["policy.yaml"].as_str().expect("a text").to_owned()
    }

    /// Everything that has our name, whatever its kind, without Events and namespaces.
    pub(crate) fn of_ours(&self) -> Vec<String> {
        let kinds = self.run("kubectl api-resources --verbs=list -o name");
        let kinds: Vec<_> =
            kinds.lines().filter(|kind| !kind.starts_with("events") && *kind != "namespaces").collect();
        let found = self.run(&format!(
            "kubectl get -A {} --no-headers -o custom-columns=K:kind,S:.metadata.namespace,N:.metadata.name",
            kinds.join(",")
        ));
        let named = found.lines().filter(|line| {
            line.split_whitespace().last().is_some_and(|name| name.contains("callback-guard"))
        });
        let mut named: Vec<_> =
            named.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        named.sort();
        named
    }
}
