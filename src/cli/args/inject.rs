//! The arguments of `inject`, `uninject` and `admission-policy`.

use std::collections::BTreeMap;

use super::Problems;
use super::scope::{Namespaces, ScopeArgs};
use crate::cli::admission_policy::{AdmissionPolicy, Values};
use crate::cli::inject::{Manifests, Task};
use crate::sidecar::admission::rights::Scope;
use crate::sidecar::annotations::{Kind, PREFIX, setting, settings};
use crate::sidecar::{self, IMAGE, Installation, POLICY_CONFIGMAP, TLS_SECRET, annotations};

/// Settings of an installation, as typed, without the image.
#[derive(Debug, clap::Args)]
pub(super) struct SettingsArgs {
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
}

/// What holds for all pods of an installation, as typed.
#[derive(Debug, clap::Args)]
struct InstallationArgs {
    /// The sidecar's image
    #[arg(long, env = "CALLBACK_GUARD_IMAGE", hide_env_values = true, value_name = "IMAGE", default_value = IMAGE)]
    image: String,
    #[command(flatten)]
    settings: SettingsArgs,
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

/// `admission-policy` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct AdmissionPolicyArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    installation: InstallationArgs,
    /// Also print the service account of `callback-guard controller` and its rights. Needs the flag --own-namespace
    #[arg(long, env = "CALLBACK_GUARD_CONTROLLER", hide_env_values = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    controller: String,
    /// Print the Helm template callback-guard.admission, which takes all of this from the chart's values
    #[arg(long, env = "CALLBACK_GUARD_HELM", hide_env_values = true, value_name = "BOOL", num_args = 0..=1,
          default_value = "false", default_missing_value = "true", hide_default_value = true,
          require_equals = true)]
    helm: String,
}

impl InstallationArgs {
    fn read(self, problems: &mut Problems) -> Installation {
        let mut installation = self.settings.read_with(self.image, problems);
        installation.image_pull_secrets =
            names("--image-pull-secrets", Kind::Name, self.image_pull_secrets, problems);
        installation
    }
}

impl SettingsArgs {
    /// Settings of an installation whose image is nobody's question.
    pub(super) fn read(self, problems: &mut Problems) -> Installation {
        self.read_with(IMAGE.to_owned(), problems)
    }

    fn read_with(self, image: String, problems: &mut Problems) -> Installation {
        let mut settings: BTreeMap<&'static str, String> = BTreeMap::new();
        let flags =
            [("image", image), ("policy-configmap", self.policy_configmap), ("tls-secret", self.tls_secret)];
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
        let installation = Installation { settings, ..Installation::default() };
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
pub(super) fn names(flag: &str, kind: Kind, texts: Vec<String>, problems: &mut Problems) -> Vec<String> {
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

impl AdmissionPolicyArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<AdmissionPolicy> {
        let helm = problems.switch("--helm", &self.helm);
        let controller = problems.switch("--controller", &self.controller);
        if helm == Some(true) {
            let installation = self.installation.read(problems);
            if !self.scope.is_empty() || installation != Installation::of_image(IMAGE) {
                problems.add(
                    "--helm",
                    "takes the namespaces and settings from the chart's values: remove the other flags",
                );
            }
            if controller == Some(true) {
                problems.add("--controller", "cannot be combined with --helm: remove one of them");
            }
            return Some(AdmissionPolicy { values: Values::OfChart });
        }
        if helm == Some(false) && !self.scope.serves_any() {
            problems.add("--namespaces", "is missing");
        }
        let Namespaces { served, own, trusting, external_tls } = self.scope.read(problems);
        let mut installation = self.installation.read(problems);
        for (flag, names) in [("--trust-namespaces", &trusting), ("--external-tls", &external_tls)] {
            if controller == Some(false) && !names.is_empty() {
                problems.add(flag, "needs --controller");
            }
        }
        if controller == Some(true) && own.is_none() {
            problems.add("--own-namespace", "is missing beside --controller");
        }
        let scope = own.clone().filter(|_| controller == Some(true)).map(|own_namespace| Scope {
            own_namespace,
            trust_namespaces: trusting,
            external_tls,
        });
        helm?;
        controller?;
        installation.own_namespace = own;
        installation.namespaces = Some(served);
        Some(AdmissionPolicy {
            values: Values::Are { installation: Box::new(installation), controller: scope },
        })
    }
}
