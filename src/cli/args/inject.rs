//! The arguments of `inject`, `uninject` and `admission-policy`.

use std::collections::BTreeMap;

use super::Problems;
use crate::cli::admission_policy::{AdmissionPolicy, Values};
use crate::cli::inject::{Manifests, Task};
use crate::sidecar::admission::rights::Scope;
use crate::sidecar::annotations::{Kind, PREFIX, setting, settings};
use crate::sidecar::{
    self, IMAGE, Installation, POLICY_CONFIGMAP, SYSTEM_NAMESPACES, TLS_SECRET, annotations,
};

/// What holds for all pods of an installation, as typed.
#[derive(Debug, clap::Args)]
struct InstallationArgs {
    /// The sidecar's image
    #[arg(long, env = "CALLBACK_GUARD_IMAGE", hide_env_values = true, value_name = "IMAGE", default_value = IMAGE)]
    image: String,
    /// The ConfigMap with the policy, in each pod's namespace; it is optional
    #[arg(
        long,
        env = "CALLBACK_GUARD_POLICY_CONFIGMAP",
        hide_env_values = true,
        value_name = "NAME",
        default_value = POLICY_CONFIGMAP
    )]
    policy_configmap: String,
    /// The Secret with tls.crt and tls.key, in each pod's namespace; the sidecar waits for it
    #[arg(
        long,
        env = "CALLBACK_GUARD_TLS_SECRET",
        hide_env_values = true,
        value_name = "NAME",
        default_value = TLS_SECRET
    )]
    tls_secret: String,
    /// Setting for all pods, named like an annotation without its prefix: run-as-user=none. Annotations of a namespace
    /// or a pod override it. May be repeated, or hold several with commas
    #[arg(
        long,
        env = "CALLBACK_GUARD_SET",
        hide_env_values = true,
        value_name = "NAME=VALUE",
        value_delimiter = ','
    )]
    set: Vec<String>,
    /// Secret for pulling the image, added to those of the pod. May be repeated, or hold several with commas
    #[arg(
        long,
        env = "CALLBACK_GUARD_IMAGE_PULL_SECRETS",
        hide_env_values = true,
        value_name = "NAME",
        value_delimiter = ','
    )]
    image_pull_secrets: Vec<String>,
}

/// The files of `inject` and `uninject` as typed; all of `uninject`.
#[derive(Debug, clap::Args)]
pub(super) struct FilesArgs {
    /// Manifests as YAML or JSON, several documents and lists included; `-` is standard input. May be repeated, or hold
    /// several with commas
    #[arg(
        short = 'f',
        long = "filename",
        env = "CALLBACK_GUARD_FILENAME",
        hide_env_values = true,
        value_name = "FILE",
        value_delimiter = ',',
        required = true
    )]
    files: Vec<String>,
}

/// `inject` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct InjectArgs {
    #[command(flatten)]
    files: FilesArgs,
    #[command(flatten)]
    installation: InstallationArgs,
}

/// Whose rights are to be printed, as typed.
#[derive(Debug, clap::Args)]
struct RightsArgs {
    /// Also print the service account of `callback-guard controller` and its rights. Needs the flag --own-namespace
    #[arg(long, env = "CALLBACK_GUARD_CONTROLLER", hide_env_values = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    controller: String,
    /// Namespace of OpenIM, where the controller publishes its CA certificate and nothing else. May be repeated, or hold
    /// several with commas
    #[arg(
        long,
        env = "CALLBACK_GUARD_TRUST_NAMESPACES",
        hide_env_values = true,
        value_name = "NAME",
        value_delimiter = ','
    )]
    trust_namespaces: Vec<String>,
    /// Served namespace whose TLS Secret you provide yourself, so that the controller gets no right to it. May be
    /// repeated, or hold several with commas
    #[arg(
        long,
        env = "CALLBACK_GUARD_EXTERNAL_TLS",
        hide_env_values = true,
        value_name = "NAME",
        value_delimiter = ','
    )]
    external_tls: Vec<String>,
}

/// `admission-policy` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct AdmissionPolicyArgs {
    /// Namespace whose pods may get a sidecar. May be repeated, or hold several with commas
    #[arg(
        long,
        env = "CALLBACK_GUARD_NAMESPACES",
        hide_env_values = true,
        value_name = "NAME",
        value_delimiter = ','
    )]
    namespaces: Vec<String>,
    /// Namespace of callback-guard itself, whose pods never get a sidecar
    #[arg(long, env = "CALLBACK_GUARD_OWN_NAMESPACE", hide_env_values = true, value_name = "NAME")]
    own_namespace: Option<String>,
    #[command(flatten)]
    installation: InstallationArgs,
    #[command(flatten)]
    rights: RightsArgs,
    /// Print a Helm template that takes all of this from the chart's values
    #[arg(long, env = "CALLBACK_GUARD_HELM", hide_env_values = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    helm: String,
}

impl InstallationArgs {
    fn read(self, problems: &mut Problems) -> Installation {
        let mut settings: BTreeMap<&'static str, String> = BTreeMap::new();
        let flags = [
            ("image", self.image),
            ("policy-configmap", self.policy_configmap),
            ("tls-secret", self.tls_secret),
        ];
        for (name, text) in flags {
            let row = setting(name).unwrap_or_else(|| unreachable!("{name} is a row of the table"));
            problems.read(&format!("--{name}"), &text, |text| row.kind.check(text));
            settings.insert(row.name, text);
        }
        for text in self.set.iter().filter(|text| !text.is_empty()) {
            if let Some((name, value)) = problems.read("--set", text, |text| read_setting(text, &settings)) {
                settings.insert(name, value);
            }
        }
        let image_pull_secrets = names("--image-pull-secrets", Kind::Name, self.image_pull_secrets, problems);
        let installation =
            Installation { settings, image_pull_secrets, own_namespace: None, namespaces: None };
        for (name, message) in sidecar::contradictions_of(&installation) {
            problems.add("--set", format!("{name}: {message}"));
        }
        installation
    }
}

/// Reads `NAME=VALUE`, one that is not set yet.
fn read_setting(
    text: &str,
    known: &BTreeMap<&'static str, String>,
) -> Result<(&'static str, String), String> {
    let Some((name, value)) = text.split_once('=') else {
        let names: Vec<_> = settings().map(|row| row.name).collect();
        return Err(format!("{text:?} is not NAME=VALUE; the names are {}", names.join(", ")));
    };
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let (row, value) =
        annotations::read(name, &value.into()).map_err(|message| format!("{name}: {message}"))?;
    if let Some(other) = known.get(row.name) {
        let flag = ["image", "policy-configmap", "tls-secret"].contains(&row.name);
        return Err(if flag {
            format!("{name}: has a flag of its own: --{name}")
        } else {
            format!("{name}: is set twice, to {other:?} and to {value:?}")
        });
    }
    Ok((row.name, value))
}

/// Reads names; one that is set to nothing is none.
fn names(flag: &str, kind: Kind, texts: Vec<String>, problems: &mut Problems) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for text in texts.into_iter().filter(|text| !text.is_empty()) {
        problems.read(flag, &text, |text| kind.check(text));
        if !names.contains(&text) {
            names.push(text);
        }
    }
    names
}

impl FilesArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<Vec<String>> {
        problems.required_list("--filename", self.files)
    }
}

impl InjectArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<Manifests> {
        let files = self.files.read(problems);
        let installation = self.installation.read(problems);
        Some(Manifests { files: files?, task: Task::Inject(installation) })
    }
}

impl RightsArgs {
    /// Whether any namespace was typed.
    fn has_namespaces(&self) -> bool {
        self.trust_namespaces.iter().chain(&self.external_tls).any(|name| !name.is_empty())
    }

    /// `None` without the controller.
    fn read(self, own: Option<&str>, namespaces: &[String], problems: &mut Problems) -> Option<Scope> {
        let is_wanted = problems.switch("--controller", &self.controller);
        let read = |flag, texts, problems: &mut Problems| {
            let names = names(flag, Kind::Namespace, texts, problems);
            if is_wanted == Some(false) && !names.is_empty() {
                problems.add(flag, "needs --controller");
            }
            names
        };
        let trust_namespaces = read("--trust-namespaces", self.trust_namespaces, problems);
        for name in &trust_namespaces {
            if SYSTEM_NAMESPACES.contains(&name.as_str()) {
                problems.add("--trust-namespaces", format!("{name:?}: pods there never get the CA"));
            }
            if own == Some(name) {
                let problem = format!("{name:?} is --own-namespace, whose pods never get the CA");
                problems.add("--trust-namespaces", problem);
            }
        }
        let external_tls = read("--external-tls", self.external_tls, problems);
        for name in external_tls.iter().filter(|name| !namespaces.contains(name)) {
            if Kind::Namespace.check(name).is_ok() {
                problems.add("--external-tls", format!("{name:?} is not in --namespaces"));
            }
        }
        if is_wanted == Some(true) && own.is_none() {
            problems.add("--own-namespace", "is missing beside --controller");
        }
        let own_namespace = own.filter(|_| is_wanted == Some(true))?.to_owned();
        Some(Scope { own_namespace, trust_namespaces, external_tls })
    }
}

impl AdmissionPolicyArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<AdmissionPolicy> {
        let helm = problems.switch("--helm", &self.helm);
        let has_namespaces = !self.namespaces.is_empty();
        let namespaces = names("--namespaces", Kind::Namespace, self.namespaces, problems);
        if helm == Some(false) && namespaces.is_empty() {
            problems.add("--namespaces", "is missing");
        }
        let own_namespace = self.own_namespace.filter(|own| !own.is_empty());
        if let Some(own) = &own_namespace {
            problems.read("--own-namespace", own, |text| Kind::Namespace.check(text));
            if namespaces.contains(own) {
                problems.add(
                    "--namespaces",
                    format!("{own:?} is --own-namespace, whose pods never get a sidecar"),
                );
            }
        }
        for name in namespaces.iter().filter(|name| SYSTEM_NAMESPACES.contains(&name.as_str())) {
            problems.add("--namespaces", format!("{name:?}: pods there never get a sidecar"));
        }
        let mut installation = self.installation.read(problems);
        if helm == Some(true) {
            let own = installation == Installation::of_image(IMAGE);
            if has_namespaces || own_namespace.is_some() || !own || self.rights.has_namespaces() {
                problems.add(
                    "--helm",
                    "takes the namespaces and settings from the chart's values: remove the other flags",
                );
            }
            if problems.switch("--controller", &self.rights.controller) == Some(true) {
                problems.add("--controller", "cannot be combined with --helm: remove one of them");
            }
            return Some(AdmissionPolicy { values: Values::OfChart });
        }
        let controller = self.rights.read(own_namespace.as_deref(), &namespaces, problems);
        helm?;
        installation.own_namespace = own_namespace;
        installation.namespaces = Some(namespaces);
        Some(AdmissionPolicy { values: Values::Are { installation: Box::new(installation), controller } })
    }
}
