//! The arguments of `inject` and `uninject`.

use super::Problems;
use crate::cli::inject::{Manifests, Task};
use crate::sidecar::SidecarSpec;
use crate::sidecar::annotations::Kind;

/// What the image is called where nobody says otherwise.
const IMAGE: &str = concat!("callback-guard:", env!("CARGO_PKG_VERSION"));

/// `inject` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct InjectArgs {
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
    /// The sidecar's image
    #[arg(long, env = "CALLBACK_GUARD_IMAGE", hide_env_values = true, value_name = "IMAGE", default_value = IMAGE)]
    image: String,
    /// The ConfigMap with the policy, in each pod's namespace; it need not be there
    #[arg(
        long,
        env = "CALLBACK_GUARD_POLICY_CONFIGMAP",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "callback-guard-policy"
    )]
    policy_configmap: String,
    /// The Secret with tls.crt and tls.key, in each pod's namespace; the sidecar waits for it
    #[arg(
        long,
        env = "CALLBACK_GUARD_TLS_SECRET",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "callback-guard-tls"
    )]
    tls_secret: String,
}

/// `uninject` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct UninjectArgs {
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
    pub(super) files: Vec<String>,
}

impl InjectArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<Manifests> {
        let files = problems.required_list("--filename", self.files);
        let mut checked = |flag: &str, text: String, kind: Kind| {
            problems.read(flag, &text, |text| kind.check(text)).map(|()| text)
        };
        let image = checked("--image", self.image, Kind::Image);
        let policy_configmap = checked("--policy-configmap", self.policy_configmap, Kind::Name);
        let tls_secret = checked("--tls-secret", self.tls_secret, Kind::Name);
        let spec = SidecarSpec {
            image: image?,
            policy_configmap: policy_configmap?,
            tls_secret: tls_secret?,
            own_namespace: None,
            namespaces: None,
        };
        Some(Manifests { files: files?, task: Task::Inject(spec) })
    }
}
