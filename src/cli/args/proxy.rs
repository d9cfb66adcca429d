//! The arguments of `proxy`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use super::problems::{Problems, one_of, path, socket};
use crate::admin;
use crate::basic_auth;
use crate::callback::target::UpstreamForm;
use crate::cli::proxy::load_client_ca;
use crate::log::Format;
use crate::source::{config_map, file};
use crate::tls;
use crate::upstream::Address;

mod after;

use after::AfterLimits;

/// Default ports of the two listeners, on every address of the pod.
pub const LISTEN_PORT: u16 = 8443;
/// See [`LISTEN_PORT`].
pub const ADMIN_PORT: u16 = 9090;

/// Default of `--max-admin-connections`: kubelet's probes, a scraper or two and a person need ten; a crowd of 5,000 new
/// connections a second leaves each 50 ms for its request.
pub(super) const MAX_ADMIN_CONNECTIONS: &str = "256";

/// Default of `--admin-timeout`: probes are done in milliseconds, and a slow port-forward in seconds.
pub(super) const ADMIN_TIMEOUT: &str = "10s";

/// Default of `--max-request-size`. The largest request that OpenIM v3.8.3 sent in a run of all its commands has 2,152 bytes:
/// `callbackBeforeGroupOnlinePushCommand` about a new group, 245 bytes for each member that is named. OpenIM itself has no limit. With 2 MiB such a
/// notification may name 8,000 members, and a `userIDList` 150,000 users with IDs of ten digits (30,000 with the longest, of 64
/// letters).
pub(super) const MAX_REQUEST_SIZE: &str = "2MiB";

/// Default of `--max-answer-size`. The largest answers replace or echo a list of the request (`userIDList` of
/// `callbackBeforeOfflinePushCommand`, `users` of `callbackBeforeUserRegisterCommand`: 135 bytes a user, 15,000 users) and are no larger
/// than it. The largest published example has 279 bytes.
pub(super) const MAX_ANSWER_SIZE: &str = "2MiB";

/// The least that `--max-held` may be, bytes.
pub const LEAST_HELD: usize = MIB;

pub(super) const LEVELS: [(&str, LevelFilter); 5] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
];

pub(super) const LOG_FORMATS: [(&str, Format); 2] = [("json", Format::Json), ("text", Format::Text)];

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1 << 20;

/// The most that a flag may count.
const MOST: usize = 1_000_000;

macro_rules! proxy_args {
    ($($(#[doc = $doc:literal])+ $field:ident $flag:literal $env:literal $value:literal $default:expr;)*) => {
        /// As typed: everything is text.
        #[derive(Debug, clap::Args)]
        pub(super) struct ProxyArgs {
            $(
                $(#[doc = $doc])+
                #[arg(long = $flag, env = $env, hide_env_values = true, value_name = $value, default_value = $default,
                      hide_default_value = $default.is_empty(), allow_hyphen_values = true)]
                $field: String,
            )*
            /// Serve with a certificate made at the start, for localhost and the pod's name; for trying things out
            #[arg(long, env = "CALLBACK_GUARD_TLS_SELF_SIGNED", hide_env_values = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            tls_self_signed: String,
            /// Start without good certificate files, and listen as soon as they are there; until then /readyz says why not
            #[arg(long, env = "CALLBACK_GUARD_TLS_WAIT", hide_env_values = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            tls_wait: String,
            /// Let --upstream name a host that is not loopback: the gateway form
            #[arg(long, env = "CALLBACK_GUARD_ALLOW_REMOTE_UPSTREAM", hide_env_values = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            allow_remote_upstream: String,
            /// Use connections to the app for more than one callback; false: no verdict can be that of another callback
            /// [default: true]
            #[arg(long, env = "CALLBACK_GUARD_UPSTREAM_REUSE", hide_env_values = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "true", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            upstream_reuse: String,
            /// Fail at the start when there is no good policy, instead of serving with the built-in defaults
            #[arg(long, env = "CALLBACK_GUARD_REQUIRE_POLICY", hide_env_values = true, value_name = "BOOL",
                  num_args = 0..=1, default_value = "false", default_missing_value = "true",
                  hide_default_value = true, require_equals = true)]
            require_policy: String,
        }
    };
}

// The defaults, with their reasons. A flag with an empty default has none.
proxy_args! {
    /// TLS listener; port 0 takes a free one, which the log names [default: [::]:8443, or 0.0.0.0:8443 without IPv6]
    listen "listen" "CALLBACK_GUARD_LISTEN" "ADDR:PORT" "";
    /// PEM file with the certificate chain, the server's own first; watched
    tls_cert "tls-cert" "CALLBACK_GUARD_TLS_CERT" "FILE" "";
    /// PEM file with the private key; watched
    tls_key "tls-key" "CALLBACK_GUARD_TLS_KEY" "FILE" "";
    /// The app: http://HOST:PORT on loopback, or unix:/PATH; localhost means 127.0.0.1 or [::1], wherever the app listens
    upstream "upstream" "CALLBACK_GUARD_UPSTREAM" "URL" "http://127.0.0.1:8080";
    /// How the app wants its URLs: as-received, path (/PREFIX/COMMAND) or query (/PREFIX?command=COMMAND)
    upstream_form "upstream-form" "CALLBACK_GUARD_UPSTREAM_FORM" "FORM" "as-received";
    /// File with the policy; watched [default: the built-in policy]
    policy_file "policy-file" "CALLBACK_GUARD_POLICY_FILE" "FILE" "";
    /// File with the override; watched, and need not be there
    override_file "override-file" "CALLBACK_GUARD_OVERRIDE_FILE" "FILE" "";
    /// ConfigMap with the policy, watched through the API server; once it is there, the files are no longer read
    policy_configmap "policy-configmap" "CALLBACK_GUARD_POLICY_CONFIGMAP" "NS/NAME" "";
    /// Folder where the last good policy of the ConfigMap is kept, for a restart with the API server away
    policy_cache "policy-cache" "CALLBACK_GUARD_POLICY_CACHE" "FOLDER" "";
    /// Plain HTTP: probes, metrics, and on loopback the status page [default: [::]:9090, or 0.0.0.0:9090 without IPv6]
    admin_listen "admin-listen" "CALLBACK_GUARD_ADMIN_LISTEN" "ADDR:PORT" "";
    /// Open connections of the admin port; at the limit the oldest is closed for a new one
    max_admin_connections "max-admin-connections" "CALLBACK_GUARD_MAX_ADMIN_CONNECTIONS" "COUNT" MAX_ADMIN_CONNECTIONS;
    /// How long a connection to the admin port may last as a whole
    admin_timeout "admin-timeout" "CALLBACK_GUARD_ADMIN_TIMEOUT" "TIME" ADMIN_TIMEOUT;
    /// Threads that answer callbacks, 1 to 64
    workers "workers" "CALLBACK_GUARD_WORKERS" "COUNT" "1";
    /// PEM file with the authorities whose clients may call; watched. OpenIM itself has no client certificate
    client_ca "client-ca" "CALLBACK_GUARD_CLIENT_CA" "FILE" "";
    /// File with one user:password a line; watched. OpenIM sends those of webhooks.url
    basic_auth_file "basic-auth-file" "CALLBACK_GUARD_BASIC_AUTH_FILE" "FILE" "";
    /// Open connections of callers; at the limit the longest idle one is closed for a new one [default: what fits a quarter of the
    /// container's memory limit at the start, 42KiB each, at most 10000; 10000 without one]
    max_connections "max-connections" "CALLBACK_GUARD_MAX_CONNECTIONS" "COUNT" "";
    /// Callbacks put to the app at once, of which a caller and a command have shares; further ones are answered by the
    /// fallback for `overloaded`
    max_in_flight "max-in-flight" "CALLBACK_GUARD_MAX_IN_FLIGHT" "COUNT" "1024";
    /// Memory for callbacks in progress, shared in the same way; beyond it, the fallback for `overloaded` [default: half of the container's memory
    /// limit, followed when it changes; 256MiB without one]
    max_held "max-held" "CALLBACK_GUARD_MAX_HELD" "SIZE" "";
    /// Events of after-commands sent to the app at once; OpenIM has its answer by then
    after_in_flight "after-in-flight" "CALLBACK_GUARD_AFTER_IN_FLIGHT" "COUNT" after::IN_FLIGHT;
    /// Events that wait for the app or are being sent to it; one command may have half of them, and further ones are lost
    after_queue "after-queue" "CALLBACK_GUARD_AFTER_QUEUE" "COUNT" "10000";
    /// Memory for these events; one command may have half of it [default: an eighth of the container's memory limit at the start;
    /// 32MiB without one]
    after_queue_bytes "after-queue-bytes" "CALLBACK_GUARD_AFTER_QUEUE_BYTES" "SIZE" "";
    /// Body of a callback
    max_request_size "max-request-size" "CALLBACK_GUARD_MAX_REQUEST_SIZE" "SIZE" MAX_REQUEST_SIZE;
    /// Body of the app's answer
    max_answer_size "max-answer-size" "CALLBACK_GUARD_MAX_ANSWER_SIZE" "SIZE" MAX_ANSWER_SIZE;
    /// Head of a callback, with 32 bytes added for each field; the operation ID may have 64 KiB on top, as OpenIM joins up
    /// to 500 of them
    max_header_size "max-header-size" "CALLBACK_GUARD_MAX_HEADER_SIZE" "SIZE" "16KiB";
    /// TLS handshake
    handshake_timeout "handshake-timeout" "CALLBACK_GUARD_HANDSHAKE_TIMEOUT" "TIME" "5s";
    /// Head of a callback, from its first byte
    header_timeout "header-timeout" "CALLBACK_GUARD_HEADER_TIMEOUT" "TIME" "5s";
    /// When a connection is ended gracefully, give or take a tenth: Go would keep it for ever, and new pods see none
    max_connection_age "max-connection-age" "CALLBACK_GUARD_MAX_CONNECTION_AGE" "TIME" "10m";
    /// How long a connection past its age may be idle before it is closed, at least 15m: Go loses a POST on a closed one
    idle_timeout "idle-timeout" "CALLBACK_GUARD_IDLE_TIMEOUT" "TIME" "15m";
    /// How long new connections are accepted once the pod is ending
    drain_delay "drain-delay" "CALLBACK_GUARD_DRAIN_DELAY" "TIME" "3s";
    /// How long callbacks in flight have after that before they are answered with the fallback for `draining`
    drain_timeout "drain-timeout" "CALLBACK_GUARD_DRAIN_TIMEOUT" "TIME" "20s";
    /// The pod's terminationGracePeriodSeconds: the end is over a second before it
    grace_period "grace-period" "CALLBACK_GUARD_GRACE_PERIOD" "TIME" "30s";
    /// off, error, warn, info or debug. A callback is a line: info where the app or a rule decided, else warn
    log_level "log-level" "CALLBACK_GUARD_LOG_LEVEL" "LEVEL" "info";
    /// json, or text for people
    log_format "log-format" "CALLBACK_GUARD_LOG_FORMAT" "FORMAT" "json";
}

/// What `proxy` was told.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where callbacks come to; `None`: the default, with its way back to IPv4.
    pub listen: Option<SocketAddr>,
    /// Where the certificate is from.
    pub tls: TlsSource,
    /// `--tls-wait`; never with `--tls-self-signed`.
    pub tls_wait: bool,
    /// `--client-ca`
    pub client_ca: Option<PathBuf>,
    /// `--basic-auth-file`
    pub basic_auth_file: Option<PathBuf>,
    /// `--upstream`
    pub upstream: Address,
    /// `--upstream-form`
    pub upstream_form: UpstreamForm,
    /// `--upstream-reuse`
    pub upstream_reuse: bool,
    /// `--policy-file`
    pub policy_file: Option<PathBuf>,
    /// `--override-file`
    pub override_file: Option<PathBuf>,
    /// `--policy-configmap`
    pub policy_configmap: Option<config_map::Name>,
    /// `--policy-cache`; never without `--policy-configmap`.
    pub policy_cache: Option<PathBuf>,
    /// `--require-policy`
    pub require_policy: bool,
    /// Where the admin port is; `None` as above.
    pub admin_listen: Option<SocketAddr>,
    /// `--max-admin-connections` and `--admin-timeout`
    pub admin_limits: admin::Limits,
    /// `--workers`
    pub workers: usize,
    /// `--max-connections`; `None`: what fits the container's memory limit.
    pub max_connections: Option<usize>,
    /// `--max-in-flight`
    pub max_in_flight: usize,
    /// `--max-held`, bytes; `None`: half of the container's memory limit.
    pub max_held: Option<usize>,
    /// `--after-in-flight`, `--after-queue` and `--after-queue-bytes`
    pub after: AfterLimits,
    /// `--max-request-size`, bytes
    pub max_request_size: usize,
    /// `--max-answer-size`, bytes
    pub max_answer_size: usize,
    /// `--max-header-size`, bytes
    pub max_header_size: usize,
    /// `--handshake-timeout`
    pub handshake_timeout: Duration,
    /// `--header-timeout`
    pub header_timeout: Duration,
    /// `--max-connection-age`
    pub max_connection_age: Duration,
    /// `--idle-timeout`
    pub idle_timeout: Duration,
    /// `--drain-delay`
    pub drain_delay: Duration,
    /// `--drain-timeout`
    pub drain_timeout: Duration,
    /// `--grace-period`
    pub grace_period: Duration,
    /// `--log-level`
    pub log_level: LevelFilter,
    /// `--log-format`
    pub log_format: Format,
}

/// Where the certificate is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSource {
    /// `--tls-cert` and `--tls-key`
    Files {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// `--tls-self-signed`
    SelfSigned,
}

impl ProxyArgs {
    /// What was typed, where all of it is right.
    pub(super) fn read(&self, problems: &mut Problems) -> Option<Proxy> {
        let listen = problems.read_optional("--listen", &self.listen, socket);
        let admin_listen = problems.read_optional("--admin-listen", &self.admin_listen, socket);
        let admin_limits = admin_limits(&self.max_admin_connections, &self.admin_timeout, problems);
        let tls = tls_source(self, problems);
        let tls_wait = tls_wait(self, problems);
        let upstream = upstream(self, problems);
        let upstream_form = upstream_form(self, problems);
        let upstream_reuse = problems.switch("--upstream-reuse", &self.upstream_reuse);
        let policy_configmap =
            problems.read_optional("--policy-configmap", &self.policy_configmap, str::parse);
        let policy_cache = policy_cache(self, problems);
        let require_policy = problems.switch("--require-policy", &self.require_policy);
        let workers = problems.count("--workers", &self.workers, 1, 64);
        let max_connections = problems.optional_count("--max-connections", &self.max_connections, 1, MOST);
        let max_in_flight = problems.count("--max-in-flight", &self.max_in_flight, 1, MOST);
        let max_held = problems.optional_size("--max-held", &self.max_held, LEAST_HELD, usize::MAX / 2);
        let after = after::limits(self, problems);
        let max_request_size = problems.size("--max-request-size", &self.max_request_size, 1024, 1024 * MIB);
        let max_answer_size = problems.size("--max-answer-size", &self.max_answer_size, 1024, 1024 * MIB);
        let max_header_size = problems.size("--max-header-size", &self.max_header_size, 4096, 4 * MIB);
        let tenth = SECOND / 10;
        let handshake_timeout = problems.time("--handshake-timeout", &self.handshake_timeout, tenth, HOUR);
        let header_timeout = problems.time("--header-timeout", &self.header_timeout, tenth, HOUR);
        let max_connection_age =
            problems.time("--max-connection-age", &self.max_connection_age, SECOND, 24 * 7 * HOUR);
        let idle_timeout = problems.time("--idle-timeout", &self.idle_timeout, HOUR / 4, 24 * HOUR);
        let drain_delay = problems.time("--drain-delay", &self.drain_delay, Duration::ZERO, HOUR);
        let drain_timeout = problems.time("--drain-timeout", &self.drain_timeout, Duration::ZERO, HOUR);
        let grace_period = problems.time("--grace-period", &self.grace_period, 2 * SECOND, HOUR);
        let log_level = problems.read("--log-level", &self.log_level, |text| one_of(text, &LEVELS));
        let log_format = problems.read("--log-format", &self.log_format, |text| one_of(text, &LOG_FORMATS));
        Some(Proxy {
            listen: listen?,
            tls: tls?,
            tls_wait: tls_wait?,
            client_ca: path(&self.client_ca),
            basic_auth_file: path(&self.basic_auth_file),
            upstream: upstream?,
            upstream_form: upstream_form?,
            upstream_reuse: upstream_reuse?,
            policy_file: path(&self.policy_file),
            override_file: path(&self.override_file),
            policy_configmap: policy_configmap?,
            policy_cache: policy_cache?,
            require_policy: require_policy?,
            admin_listen: admin_listen?,
            admin_limits: admin_limits?,
            workers: workers?,
            max_connections: max_connections?,
            max_in_flight: max_in_flight?,
            max_held: max_held?,
            after: after?,
            max_request_size: max_request_size?,
            max_answer_size: max_answer_size?,
            max_header_size: max_header_size?,
            handshake_timeout: handshake_timeout?,
            header_timeout: header_timeout?,
            max_connection_age: max_connection_age?,
            idle_timeout: idle_timeout?,
            drain_delay: drain_delay?,
            drain_timeout: drain_timeout?,
            grace_period: grace_period?,
            log_level: log_level?,
            log_format: log_format?,
        })
    }

    /// What is wrong with the files that were named, where something else is wrong already and nothing will be run: who
    /// mends that should not meet the files next. Only those whose flags are themselves right.
    pub(super) fn read_files(&self, problems: &mut Problems) {
        let client_ca = path(&self.client_ca);
        let found = match (path(&self.tls_cert), path(&self.tls_key), &*self.tls_self_signed) {
            // Missing files are what it waits for.
            _ if self.tls_wait != "false" => Ok(()),
            (Some(cert), Some(key), "false") => tls::open(tls::Files { cert, key, client_ca })
                .map(|_| ())
                .map_err(|errors| errors.to_string()),
            _ => client_ca.map_or(Ok(()), |path| load_client_ca(&path).map(|_| ())),
        };
        problems.found.extend(found.err().iter().flat_map(|text| text.lines()).map(str::to_owned));
        if let Some(Err(error)) = path(&self.basic_auth_file).map(basic_auth::open) {
            problems.found.extend(error.to_string().lines().map(str::to_owned));
        }
        // A policy that is not required, or may come out of the cache, is no failure at the start.
        let required = self.require_policy == "true" && self.policy_cache.is_empty();
        let policy = path(&self.policy_file).filter(|_| required).map(|path| file::policy(&path));
        if let Some(Err(reason)) = policy {
            problems.found.extend(reason.lines().map(|line| format!("--policy-file: {line}")));
        }
    }
}

/// The bounds of an admin port.
pub(super) fn admin_limits(
    connections: &str,
    timeout: &str,
    problems: &mut Problems,
) -> Option<admin::Limits> {
    let connections = problems.count("--max-admin-connections", connections, 8, 65_536);
    let timeout = problems.time("--admin-timeout", timeout, SECOND, HOUR);
    Some(admin::Limits { connections: connections?, timeout: timeout? })
}

fn tls_source(typed: &ProxyArgs, problems: &mut Problems) -> Option<TlsSource> {
    let self_signed = problems.switch("--tls-self-signed", &typed.tls_self_signed)?;
    match (path(&typed.tls_cert), path(&typed.tls_key), self_signed) {
        (Some(cert), Some(key), false) => return Some(TlsSource::Files { cert, key }),
        (None, None, true) => return Some(TlsSource::SelfSigned),
        (None, None, false) => {
            problems.add(
                "--tls-cert",
                "no certificate: give --tls-cert and --tls-key, or --tls-self-signed to try things out",
            );
        }
        (_, _, true) => {
            problems.add("--tls-self-signed", "stands beside --tls-cert or --tls-key: give one or the other")
        }
        (Some(_), None, false) => problems.add("--tls-key", "is missing beside --tls-cert"),
        (None, Some(_), false) => problems.add("--tls-cert", "is missing beside --tls-key"),
    }
    None
}

fn upstream_form(typed: &ProxyArgs, problems: &mut Problems) -> Option<UpstreamForm> {
    problems.read("--upstream-form", &typed.upstream_form, |text| {
        let forms = [
            ("as-received", UpstreamForm::AsReceived),
            ("path", UpstreamForm::Path),
            ("query", UpstreamForm::Query),
        ];
        one_of(text, &forms)
    })
}

fn tls_wait(typed: &ProxyArgs, problems: &mut Problems) -> Option<bool> {
    let wait = problems.switch("--tls-wait", &typed.tls_wait)?;
    if wait && typed.tls_self_signed == "true" {
        problems.add("--tls-wait", "stands beside --tls-self-signed, which has no files to wait for");
        return None;
    }
    Some(wait)
}

fn policy_cache(typed: &ProxyArgs, problems: &mut Problems) -> Option<Option<PathBuf>> {
    let folder = path(&typed.policy_cache);
    if folder.is_some() && typed.policy_configmap.is_empty() {
        problems.add("--policy-cache", "needs --policy-configmap: only what comes from a ConfigMap is kept");
        return None;
    }
    Some(folder)
}

fn upstream(typed: &ProxyArgs, problems: &mut Problems) -> Option<Address> {
    let remote = problems.switch("--allow-remote-upstream", &typed.allow_remote_upstream);
    let address = problems.read("--upstream", &typed.upstream, address)?;
    let loopback = match &address {
        Address::Ip(address) => address.ip().to_canonical().is_loopback(),
        Address::Name(..) => false,
        Address::Loopback(_) | Address::Unix(_) => true,
    };
    if !loopback && !remote? {
        problems.add(
            "--upstream",
            format!("{address} is not loopback: the app is expected in the same pod (--allow-remote-upstream lifts this)"),
        );
        return None;
    }
    Some(address)
}

/// The default listener: every address of both families.
pub fn any(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port), SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)]
}

fn address(text: &str) -> Result<Address, String> {
    let expected = || format!("{text:?} is neither http://HOST:PORT nor unix:/PATH");
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(expected()) };
    }
    if text.starts_with("https://") {
        return Err(format!("{text:?}: TLS ends here, the app is asked over plain HTTP: http://HOST:PORT"));
    }
    let authority = text
        .strip_prefix("http://")
        .map(|rest| rest.strip_suffix('/').unwrap_or(rest))
        .ok_or_else(expected)?;
    if let Ok(address) = authority.parse() {
        return Ok(Address::Ip(address));
    }
    let (host, port) = authority.rsplit_once(':').ok_or_else(expected)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    match port.parse() {
        Ok(port) if port > 0 && host.eq_ignore_ascii_case("localhost") => Ok(Address::Loopback(port)),
        Ok(port) if port > 0 && !host.is_empty() && host.bytes().all(plain) => {
            Ok(Address::Name(host.to_owned(), port))
        }
        _ => Err(expected()),
    }
}
