//! The arguments of `controller`.

use std::net::SocketAddr;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use super::inject::SettingsArgs;
use super::log::LogArgs;
use super::problems::{Problems, socket};
use super::proxy::{ADMIN_TIMEOUT, MAX_ADMIN_CONNECTIONS, admin_limits};
use super::scope::{Namespaces, ScopeArgs};
use crate::admin;
use crate::authority::Lifetimes;
use crate::controller::Served;
use crate::log::Format;
use crate::sidecar::Installation;
use crate::sidecar::annotations::Kind;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A century: what an X.509 certificate can say, and nobody means.
const LONGEST: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// `controller` as typed.
#[derive(Debug, clap::Args)]
pub(super) struct ControllerArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Service that OpenIM calls by its short names too, NAME and NAME.NS; NAME.NS.svc needs no flag. May be repeated, or hold
    /// several with commas
    #[arg(
        long,
        env = "CALLBACK_GUARD_SERVICES",
        hide_env_values = true,
        value_name = "NS/NAME",
        value_delimiter = ','
    )]
    services: Vec<String>,
    /// Suffix of the names of Services
    #[arg(
        long,
        env = "CALLBACK_GUARD_CLUSTER_DOMAIN",
        hide_env_values = true,
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    cluster_domain: String,
    /// How long a CA signs; its successor is published from its first day
    #[arg(
        long,
        env = "CALLBACK_GUARD_CA_LIFETIME",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "87600h"
    )]
    ca_lifetime: String,
    /// How long a certificate is valid; renewed when a third is left
    #[arg(
        long,
        env = "CALLBACK_GUARD_CERTIFICATE_LIFETIME",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "2160h"
    )]
    certificate_lifetime: String,
    /// Name of this replica, different from all others [default: the host's name and a random number]
    #[arg(
        long,
        env = "CALLBACK_GUARD_IDENTITY",
        hide_env_values = true,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    identity: String,
    /// How long the Lease of a leader that is silent lasts, in whole seconds; it writes for two thirds of that
    #[arg(
        long,
        env = "CALLBACK_GUARD_LEASE_DURATION",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "15s"
    )]
    lease_duration: String,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Plain HTTP: probes, metrics, and on loopback the status page [default: [::]:9090, or 0.0.0.0:9090 without IPv6]
    #[arg(
        long,
        env = "CALLBACK_GUARD_ADMIN_LISTEN",
        hide_env_values = true,
        value_name = "ADDR:PORT",
        default_value = "",
        hide_default_value = true
    )]
    admin_listen: String,
    /// Open connections of the admin port; at the limit the oldest is closed for a new one
    #[arg(
        long,
        env = "CALLBACK_GUARD_MAX_ADMIN_CONNECTIONS",
        hide_env_values = true,
        value_name = "COUNT",
        default_value = MAX_ADMIN_CONNECTIONS
    )]
    max_admin_connections: String,
    /// How long a connection to the admin port may last as a whole
    #[arg(
        long,
        env = "CALLBACK_GUARD_ADMIN_TIMEOUT",
        hide_env_values = true,
        value_name = "TIME",
        default_value = ADMIN_TIMEOUT
    )]
    admin_timeout: String,
    #[command(flatten)]
    log: LogArgs,
}

/// A `controller` without mistakes.
#[derive(Clone, Debug)]
pub struct Controller {
    /// What it is to do, but for the name of this replica.
    pub own_namespace: String,
    /// `--namespaces`, with `--external-tls` and `--services`.
    pub namespaces: Vec<Served>,
    /// `--trust-namespaces`, without those that are served.
    pub trust_namespaces: Vec<String>,
    /// `--cluster-domain`
    pub cluster_domain: String,
    /// `--ca-lifetime` and `--certificate-lifetime`
    pub lifetimes: Lifetimes,
    /// `--identity`
    pub identity: Option<String>,
    /// `--lease-duration`
    pub lease_duration: Duration,
    /// Settings of the installation.
    pub installation: Installation,
    /// `--admin-listen`; `None`: the default.
    pub admin_listen: Option<SocketAddr>,
    /// `--max-admin-connections` and `--admin-timeout`
    pub admin_limits: admin::Limits,
    /// `--log-level`
    pub log_level: LevelFilter,
    /// `--log-format`
    pub log_format: Format,
}

impl ControllerArgs {
    pub(super) fn read(self, problems: &mut Problems) -> Option<Controller> {
        let Namespaces { served, own, trusting, external_tls } = self.scope.read(problems);
        let own_namespace = problems.required("--own-namespace", own);
        let services = services(&self.services, &served, problems);
        let trust_namespaces = trusting.into_iter().filter(|name| !served.contains(name)).collect();
        let cluster_domain = problems.read("--cluster-domain", &self.cluster_domain, domain);
        let lifetimes = lifetimes(&self.ca_lifetime, &self.certificate_lifetime, problems);
        let identity = problems.read_optional("--identity", &self.identity, replica);
        let lease_duration = problems.time("--lease-duration", &self.lease_duration, 3 * SECOND, HOUR);
        if lease_duration.is_some_and(|duration| duration.subsec_nanos() > 0) {
            problems.add("--lease-duration", format!("{:?} is not whole seconds", self.lease_duration));
        }
        let mut installation = self.settings.read(problems);
        installation.own_namespace = own_namespace.clone();
        installation.namespaces = Some(served.clone());
        let admin_listen = problems.read_optional("--admin-listen", &self.admin_listen, socket);
        let admin_limits = admin_limits(&self.max_admin_connections, &self.admin_timeout, problems);
        let (log_level, log_format) = self.log.read(problems);
        let namespaces = served.into_iter().map(|name| Served {
            services: services
                .iter()
                .filter(|(of, _)| *of == name)
                .map(|(_, service)| service.clone())
                .collect(),
            external_tls: external_tls.contains(&name),
            name,
        });
        Some(Controller {
            namespaces: namespaces.collect(),
            own_namespace: own_namespace?,
            trust_namespaces,
            cluster_domain: cluster_domain?,
            lifetimes: lifetimes?,
            identity: identity?,
            lease_duration: lease_duration?,
            installation,
            admin_listen: admin_listen?,
            admin_limits: admin_limits?,
            log_level: log_level?,
            log_format: log_format?,
        })
    }
}

/// Reads `NS/NAME`, of namespaces that are served.
fn services(texts: &[String], namespaces: &[String], problems: &mut Problems) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let read = problems.read("--services", text, |text| {
            let (namespace, name) =
                text.split_once('/').ok_or_else(|| format!("{text:?} is not NS/NAME of a Service"))?;
            if !namespaces.iter().any(|served| served == namespace) {
                return Err(format!("{text:?}: {namespace:?} is not in --namespaces"));
            }
            Kind::Namespace.check(name).map_err(|problem| format!("{text:?}: {problem}"))?;
            Ok((namespace.to_owned(), name.to_owned()))
        });
        found.extend(read.filter(|service| !found.contains(service)));
    }
    found
}

/// A name that a Lease, a log and a header can have.
fn replica(text: &str) -> Result<String, String> {
    let fits = text.len() <= 200 && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("{text:?} is not a name of at most 200 visible ASCII characters"))
}

/// A DNS name in small letters.
fn domain(text: &str) -> Result<String, String> {
    let is_label = |label: &str| Kind::Namespace.check(label).is_ok();
    let fits = text.len() <= 200 && text.split('.').all(is_label);
    fits.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is not a domain, as in cluster.local"))
}

fn lifetimes(authority: &str, certificate: &str, problems: &mut Problems) -> Option<Lifetimes> {
    let read = (
        problems.time("--ca-lifetime", authority, 20 * SECOND, LONGEST),
        problems.time("--certificate-lifetime", certificate, 10 * SECOND, LONGEST),
    );
    let (authority, certificate) = (read.0?, read.1?);
    if authority < 2 * certificate {
        problems.add(
            "--certificate-lifetime",
            "is more than half of --ca-lifetime, whose successor then comes too late",
        );
    }
    Some(Lifetimes { authority, certificate })
}
