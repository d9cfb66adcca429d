//! The namespaces of an installation, as `admission-policy` and `controller` take them: the rights that one prints are those that the
//! other needs, so the same flags go to both.

use super::inject::names;
use super::problems::Problems;
use crate::sidecar::SYSTEM_NAMESPACES;
use crate::sidecar::annotations::Kind;

/// As typed.
#[derive(Debug, clap::Args)]
pub(super) struct ScopeArgs {
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
    /// Served namespace whose TLS Secret you provide yourself, so that the controller has no right to it. May be
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

/// What was typed, with every mistake noted.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) served: Vec<String>,
    pub(super) own: Option<String>,
    pub(super) trusting: Vec<String>,
    /// Of those that are served.
    pub(super) external_tls: Vec<String>,
}

impl ScopeArgs {
    /// Whether any namespace was typed.
    pub(super) fn is_empty(&self) -> bool {
        let Self { namespaces, own_namespace, trust_namespaces, external_tls } = self;
        [namespaces, trust_namespaces, external_tls]
            .into_iter()
            .flatten()
            .chain(own_namespace)
            .all(String::is_empty)
    }

    /// Whether a namespace is served.
    pub(super) fn serves_any(&self) -> bool {
        self.namespaces.iter().any(|name| !name.is_empty())
    }

    /// Reads the names, and whether they fit together.
    pub(super) fn read(self, problems: &mut Problems) -> Namespaces {
        let served = names("--namespaces", Kind::Namespace, self.namespaces, problems);
        let own = self.own_namespace.filter(|own| !own.is_empty());
        if let Some(own) = &own {
            problems.read("--own-namespace", own, |text| Kind::Namespace.check(text));
        }
        never("--namespaces", &served, own.as_deref(), "get a sidecar", problems);
        let trusting = names("--trust-namespaces", Kind::Namespace, self.trust_namespaces, problems);
        never("--trust-namespaces", &trusting, own.as_deref(), "get the CA", problems);
        let external_tls = names("--external-tls", Kind::Namespace, self.external_tls, problems);
        for name in external_tls.iter().filter(|name| !served.contains(name)) {
            if Kind::Namespace.check(name).is_ok() {
                problems.add("--external-tls", format!("{name:?} is not in --namespaces"));
            }
        }
        Namespaces { served, own, trusting, external_tls }
    }
}

/// Notes the namespaces whose pods never get what the flag is about.
fn never(flag: &str, names: &[String], own: Option<&str>, what: &str, problems: &mut Problems) {
    for name in names {
        if own == Some(name) {
            problems.add(flag, format!("{name:?} is --own-namespace, whose pods never {what}"));
        }
        if SYSTEM_NAMESPACES.contains(&name.as_str()) {
            problems.add(flag, format!("{name:?}: pods there never {what}"));
        }
    }
}
