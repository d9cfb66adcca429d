//! `proxy`: load and bind everything, serve, and end in the order in which nothing is lost.
//!
//! The main thread runs admin, reloading and the end. One thread accepts, and each worker has its own, all with a runtime of
//! their own.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use self::backstop::Backstop;
use self::certificate::Certificate;
use self::max_connections::MaxConnections;
use self::max_held::{Follower, Found};
use self::threads::Threads;
use super::args::{self, ADMIN_PORT, LISTEN_PORT};
use super::process::{Signals, bind, local_runtime, open, report_panics};
use crate::admin;
use crate::admin::proxy::ProxyPages;
use crate::basic_auth::{self, BasicAuth};
use crate::callback::OPERATION_ID_LIMIT;
use crate::cgroup::Cgroup;
use crate::decode::DecodeThread;
use crate::deliveries::Deliveries;
use crate::descriptors::{self, Shortage};
use crate::drain::{self, Drain, Stage};
use crate::files::Fingerprint;
use crate::held::{Accounts, Held};
use crate::log;
use crate::memory;
use crate::metrics::Metrics;
use crate::proxy::{Config, Shared};
use crate::ready::Readiness;
use crate::server::{Bound, FAREWELLS, Limits, Pressure};
use crate::source::boot::{NoPolicy, Places, boot};
use crate::source::cache::{Cache, Kept};
use crate::source::{self, Publisher};
use crate::status::Recent;
use crate::tls::{self, Tls};
use crate::upstream::{KEPT_CONNECTIONS, Reuse};

pub(super) use certificate::load_client_ca;

mod after;
mod backstop;
mod certificate;
mod max_connections;
mod max_held;
mod threads;

/// How much earlier than the pod's grace period the end is over: time for the exit itself.
const BEFORE_THE_KILL: Duration = Duration::from_secs(1);

/// How long callbacks that were cut short have to be written out.
const LAST_WRITES: Duration = Duration::from_millis(500);

/// Open files that no flag counts: listeners, runtimes, signals, the log, files that are read, the API server.
const OTHER_FILES: usize = 64;

/// How long an answer may wait to be taken: the longest OpenIM waits (15 s), and a little more.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may stay without a first request. Go's default closes an idle connection after 90 s. OpenIM's client has
/// no such limit, and keeps two connections that it opened for callbacks which then went over others; it takes their end well
/// unless it sends a callback in this very moment.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How often the end looks whether it is over.
const TICK: Duration = Duration::from_millis(10);

/// Runs the proxy to its end and gives the exit code.
pub fn run(config: args::Proxy) -> u8 {
    let started = Instant::now();
    descriptors::set_aside(config.admin_limits.connections);
    // While there is one thread.
    memory::give_back_large_blocks();
    let max_connections = MaxConnections::new(config.max_connections, &Cgroup::own());
    let descriptors = descriptors::reserve(open_files(&config, max_connections.count));
    // kube's client takes the process's; everything else is handed its own.
    let _ = tls::provider().as_ref().clone().install_default();
    let queue = log::Queue::start(std::io::stdout());
    log::install(&queue, config.log_level, config.log_format);
    let code = match Loaded::new(&config, &queue, started) {
        Ok(loaded) => {
            warn_of_a_short_grace_period(&config);
            warn_of_few_descriptors(descriptors);
            max_connections.log();
            loaded.serve(&config, max_connections.count)
        }
        Err(problems) => {
            super::complain(&problems);
            super::PROBLEM
        }
    };
    queue.flush();
    code
}

/// Everything that can be wrong at the start, done: files read, ports bound.
struct Loaded {
    started: Instant,
    log: log::Queue,
    metrics: Arc<Metrics>,
    certificate: Certificate,
    auth: Option<BasicAuth>,
    auth_reloader: Option<basic_auth::Reloader>,
    publisher: Publisher,
    kept: Kept,
    in_force: tokio::sync::watch::Receiver<Arc<crate::in_force::InForce>>,
    policy_seen: [Option<Fingerprint>; 2],
    listener: Bound,
    admin: Bound,
}

impl Loaded {
    /// Loads and binds, and reports all that is wrong together.
    fn new(config: &args::Proxy, log: &log::Queue, started: Instant) -> Result<Loaded, Vec<String>> {
        let mut problems = Vec::new();
        let metrics = Arc::new(Metrics::new(log.dropped()));
        let certificate = note(&mut problems, Certificate::load(config));
        let auth = config.basic_auth_file.clone().map(basic_auth::open).transpose();
        let auth = note(&mut problems, auth.map_err(|error| error.to_string()));
        let (publisher, in_force) = Publisher::new(Arc::clone(&metrics));
        let seen = |path: &Option<_>| path.as_ref().map(|path| Fingerprint::of(std::slice::from_ref(path)));
        let policy_seen = [seen(&config.policy_file), seen(&config.override_file)];
        let (kept, policy) = load_policy(config, &publisher);
        let _ = note(&mut problems, policy);
        let waiting = matches!(certificate, Some(Certificate::Awaited { .. }));
        let take = if waiting { Bound::reserved } else { Bound::new };
        let listener = note(&mut problems, bind("--listen", config.listen, LISTEN_PORT, take));
        let admin = note(&mut problems, bind("--admin-listen", config.admin_listen, ADMIN_PORT, Bound::new));
        let (Some(certificate), Some(auth), Some(listener), Some(admin)) =
            (certificate, auth, listener, admin)
        else {
            return Err(problems);
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let (auth, auth_reloader) = auth.unzip();
        let log = log.clone();
        Ok(Loaded {
            started,
            log,
            metrics,
            certificate,
            auth,
            auth_reloader,
            publisher,
            kept,
            in_force,
            policy_seen,
            listener,
            admin,
        })
    }

    fn serve(self, config: &args::Proxy, max_connections: usize) -> u8 {
        let metrics = Arc::clone(&self.metrics);
        report_panics(move || metrics.panicked());
        let (drain, watch) = Drain::new(Instant::now());
        let readiness = Readiness::default();
        let held = Held::new(config.max_held.unwrap_or(max_held::WITHOUT_LIMIT));
        let follower = match config.max_held {
            Some(_) => None,
            None => Some(Follower::start(Cgroup::own(), held.clone(), Found::log)),
        };
        let deliveries =
            after::deliveries(config, self.in_force.clone(), Arc::clone(&self.metrics), self.log.clone());
        let shared = Arc::new(Shared {
            config: proxy_config(config),
            in_force: self.in_force,
            deliveries: Arc::clone(&deliveries),
            auth: self.auth,
            metrics: Arc::clone(&self.metrics),
            log: self.log,
            decode: DecodeThread::start(held.clone(), config.max_in_flight),
            accounts: Accounts::new(held.clone(), config.max_in_flight),
            reuse: Arc::new(Reuse::new(config.upstream_reuse, self.metrics.unsolicited_answers())),
            recent: Recent::default(),
        });
        let drain = Arc::new(drain);
        let tls = Arc::new(OnceLock::new());
        let pages = ProxyPages {
            policy: self.publisher.clone(),
            metrics: Arc::clone(&self.metrics),
            readiness: readiness.clone(),
            drain: Arc::clone(&drain),
            recent: shared.recent.clone(),
            deliveries,
            held,
            tls: Arc::clone(&tls),
            configmap: config.policy_configmap.as_ref().map(ToString::to_string),
            upstream: config.upstream.to_string(),
            started: self.started,
        };
        let metrics = self.metrics;
        let service = Service { shared, max_connections, drain, watch, readiness, metrics, tls };
        let (listen, admin_listen) = (self.listener, self.admin.address());
        local_runtime().block_on(async {
            let (listener, mut signals) = match open(self.admin) {
                Ok(opened) => opened,
                Err(error) => {
                    error!(%error, "Neither the admin port can be served nor signals be received");
                    return super::PROBLEM;
                }
            };
            tokio::task::spawn_local(admin::serve(Rc::new(pages), listener, config.admin_limits));
            tokio::task::spawn_local(memory::give_back(Arc::clone(&service.metrics)));
            if let Some(follower) = follower {
                tokio::task::spawn_local(follower.run(Found::log));
            }
            follow(config, self.publisher, self.policy_seen, self.kept);
            let certificate = tokio::select! {
                ready = self.certificate.ready(&service.readiness, &service.metrics, admin_listen) => ready,
                signal = signals.next() => {
                    info!(signal, "Ending: there was no certificate to serve with, so nobody was served");
                    return 0;
                }
            };
            service.run(listen, certificate, self.auth_reloader, signals, admin_listen, config).await
        })
    }
}

/// What is the same whether the certificate is there at the start or comes later.
struct Service {
    shared: Arc<Shared>,
    max_connections: usize,
    drain: Arc<Drain>,
    watch: drain::Watch,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    /// Set once.
    tls: Arc<OnceLock<Tls>>,
}

impl Service {
    /// Listens, and serves to the end. Gives the exit code.
    async fn run(
        self,
        listener: Bound,
        (tls, reloader): (Tls, Option<tls::Reloader>),
        auth_reloader: Option<basic_auth::Reloader>,
        signals: Signals,
        admin_listen: std::net::SocketAddr,
        config: &args::Proxy,
    ) -> u8 {
        self.metrics.certificate(not_after(&tls));
        let listen = listener.address();
        let listener = match listener.into_listener() {
            Ok(listener) => listener,
            Err(error) => {
                error!(%error, listen.addr = %listen, "--listen: cannot be listened on");
                return super::PROBLEM;
            }
        };
        let tls = self.tls.get_or_init(|| tls).clone();
        let deliveries = Arc::clone(&self.shared.deliveries);
        let threads = Threads {
            shared: self.shared,
            tls: tls.clone(),
            limits: limits(config),
            max_connections: self.max_connections,
            pressure: Pressure::default(),
            drain: self.watch,
            accepting: Arc::new(AtomicBool::new(true)),
        };
        let (dead, died) = mpsc::unbounded_channel();
        let latch = self.readiness.latch("listener");
        let workers = threads.start_workers(config.workers, &dead).await;
        // Whoever reads the line below may rely on /readyz.
        threads.start_accepting(listener, workers.clone(), latch, dead).await;
        let backstop = Backstop::new(Cgroup::own(), threads.pressure.clone(), workers, &self.metrics);
        tokio::task::spawn_local(backstop.run());
        reload(reloader, auth_reloader, &tls, &self.metrics);
        info!(
            version = env!("CARGO_PKG_VERSION"),
            listen.addr = %listen,
            admin.addr = %admin_listen,
            upstream.addr = %config.upstream,
            "Listening"
        );
        let end = End {
            drain: &self.drain,
            metrics: &self.metrics,
            deliveries: &deliveries,
            accepting: &threads.accepting,
            config,
        };
        let code = live(signals, died, &end).await;
        deliveries.close();
        code
    }
}

/// Waits for the signal, and then for the end. Gives the exit code.
async fn live(mut signals: Signals, mut died: mpsc::UnboundedReceiver<()>, end: &End<'_>) -> u8 {
    tokio::select! {
        signal = signals.next() => info!(signal, "Ending"),
        _ = died.recv() => {
            error!("A worker has died: this is a bug");
            return super::PROBLEM;
        }
    }
    tokio::select! {
        () = end.run() => {
            info!("Everything is answered");
            0
        }
        _ = signals.next() => {
            warn!("A second signal: ending at once");
            super::PROBLEM
        }
    }
}

/// Most files that the process has open at once, by its bounds: callers, the app, idle connections to it, the admin port.
fn open_files(config: &args::Proxy, max_connections: usize) -> u64 {
    let workers = config.workers * (KEPT_CONNECTIONS + FAREWELLS);
    let bounds = max_connections + config.max_in_flight + config.after.in_flight + workers;
    (bounds + config.admin_limits.connections + OTHER_FILES) as u64
}

fn warn_of_few_descriptors(descriptors: Result<(), Shortage>) {
    if let Err(Shortage { wanted, limit }) = descriptors {
        warn!(
            wanted,
            limit,
            "--max-connections and --max-in-flight add up to more open files than the system allows this process (ulimit \
             -Hn): beyond the limit new connections wait, and callbacks get the fallback for `overloaded`. Raise the limit, \
             or lower the flags"
        );
    }
}

/// Says what of the two drain flags the grace period leaves no time for: the end is cut short to fit, and callbacks that
/// would have had an answer of the app get the fallback for `draining`.
fn warn_of_a_short_grace_period(config: &args::Proxy) {
    let wanted = config.drain_delay + config.drain_timeout + 2 * LAST_WRITES + BEFORE_THE_KILL;
    if wanted > config.grace_period {
        warn!(
            drain_delay = ?config.drain_delay,
            drain_timeout = ?config.drain_timeout,
            grace_period = ?config.grace_period,
            wanted = ?wanted,
            "--drain-delay and --drain-timeout do not fit into --grace-period: the end is cut short"
        );
    }
}

/// What the end of the process has to do with.
struct End<'e> {
    drain: &'e Drain,
    metrics: &'e Metrics,
    deliveries: &'e Deliveries,
    /// Whether the accept loop goes on.
    accepting: &'e AtomicBool,
    config: &'e args::Proxy,
}

impl End<'_> {
    /// Goes through the stages of the end, each as long as it needs and no longer than it may.
    async fn run(&self) {
        let End { drain, metrics, config, .. } = self;
        let watch = drain.watch();
        let signalled = Instant::now();
        // Told before the signal that the pod is ending: the pod's clock has been running since then.
        let since = if watch.stage() == Stage::Leaving { watch.since() } else { signalled };
        let last = since + config.grace_period - BEFORE_THE_KILL;
        drain.advance(Stage::Ending, signalled);
        self.deliveries.hurry();
        tokio::time::sleep_until((since + config.drain_delay).min(last).into()).await;
        drain.advance(Stage::Closed, Instant::now());
        // What is cut has to be written, and idle connections to be closed, before the pod's own end.
        let latest_cut = last.checked_sub(2 * LAST_WRITES).unwrap_or(signalled).max(signalled);
        let cut = (Instant::now() + config.drain_timeout).min(latest_cut);
        // Whoever was in the queue is counted once the accept loop is over.
        let all_gone = || !self.accepting.load(Ordering::Acquire) && metrics.connections() == 0;
        let delivered = || self.deliveries.are_over(signalled);
        wait(cut, || all_gone() && delivered()).await;
        let cut_short = !all_gone();
        if cut_short {
            drain.advance(Stage::Cut, Instant::now());
            wait(Instant::now() + LAST_WRITES, || metrics.in_flight() == 0).await;
        }
        // An app in the same pod that still answers gets what there is time for.
        if !after::is_remote(&config.upstream) {
            wait(latest_cut, delivered).await;
        }
        // Before the workers end, and with them what they are sending.
        self.deliveries.close();
        drain.advance(Stage::Over, Instant::now());
        if cut_short {
            wait(Instant::now() + LAST_WRITES, || metrics.connections() == 0).await;
        }
    }
}

async fn wait(until: Instant, done: impl Fn() -> bool) -> bool {
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Notes a problem, or several: a line each.
fn note<T>(problems: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|text| problems.extend(text.lines().map(str::to_owned))).ok()
}

/// Puts in force what serves until the ConfigMap has been seen; gives what the cache held. It fails only where a policy
/// is required and there is none.
fn load_policy(config: &args::Proxy, publisher: &Publisher) -> (Kept, Result<(), String>) {
    let cache = config.policy_cache.as_deref().map(Cache::new);
    let places = Places {
        policy_file: config.policy_file.as_deref(),
        override_file: config.override_file.as_deref(),
        cache: cache.as_ref().zip(config.policy_configmap.as_ref()),
        watched: config.policy_configmap.is_some(),
    };
    let (kept, found) = boot(places, publisher);
    let required = found.map_err(|NoPolicy(problems)| match problems.is_empty() {
        true => "--require-policy: needs a --policy-file, or a --policy-cache that holds one; a ConfigMap is not there \
                 yet at the start"
            .to_owned(),
        false => problems.join("\n"),
    });
    (kept, if config.require_policy { required } else { Ok(()) })
}

fn follow(config: &args::Proxy, publisher: Publisher, [policy, over]: [Option<Fingerprint>; 2], kept: Kept) {
    if let (Some(path), Some(seen)) = (config.policy_file.clone(), policy) {
        tokio::task::spawn_local(source::file::follow_policy(path, seen, publisher.clone()));
    }
    if let (Some(path), Some(seen)) = (config.override_file.clone(), over) {
        tokio::task::spawn_local(source::file::follow_override(path, seen, publisher.clone()));
    }
    if let Some(name) = config.policy_configmap.clone() {
        let cache = config.policy_cache.as_deref().map(|folder| (Cache::new(folder), kept));
        tokio::task::spawn_local(source::watch::follow_config_map(name, publisher.clone(), cache));
    }
    tokio::task::spawn_local(async move { publisher.tell_override().await });
}

fn reload(
    certificate: Option<tls::Reloader>,
    auth: Option<basic_auth::Reloader>,
    tls: &Tls,
    metrics: &Arc<Metrics>,
) {
    if let Some(reloader) = certificate {
        let (tls, metrics) = (tls.clone(), Arc::clone(metrics));
        let tell = move |event| match event {
            tls::ReloadEvent::Reloaded { validity: _, warning } => {
                metrics.certificate(not_after(&tls));
                info!(problem = warning, "A new certificate is served");
            }
            tls::ReloadEvent::Restored => info!("The certificate files hold again what is served"),
            tls::ReloadEvent::Failed { reason } => {
                metrics.certificate_refused();
                error!(reason, "The new certificate is refused; the old one goes on serving");
            }
        };
        tokio::task::spawn_local(async move { reloader.run(tell).await });
    }
    if let Some(reloader) = auth {
        let metrics = Arc::clone(metrics);
        let tell = move |event| match event {
            basic_auth::ReloadEvent::Reloaded { count } => {
                info!(count, "New credentials of callers are in force")
            }
            basic_auth::ReloadEvent::Restored => info!("The credentials file holds again what is in force"),
            basic_auth::ReloadEvent::Failed { reason } => {
                metrics.certificate_refused();
                error!(reason, "The new credentials of callers are refused; the old ones stay in force");
            }
        };
        tokio::task::spawn_local(async move { reloader.run(tell).await });
    }
}

fn not_after(tls: &Tls) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(tls.validity().not_after).unwrap_or(0))
}

fn proxy_config(config: &args::Proxy) -> Config {
    Config {
        upstream: config.upstream.clone(),
        upstream_form: config.upstream_form,
        max_request_size: config.max_request_size,
        max_answer_size: config.max_answer_size,
        max_header_size: config.max_header_size,
        log_level: config.log_level,
        log_format: config.log_format,
    }
}

fn limits(config: &args::Proxy) -> Limits {
    Limits {
        handshake_timeout: config.handshake_timeout,
        header_timeout: config.header_timeout,
        header_limit: config.max_header_size,
        large_field_limit: OPERATION_ID_LIMIT,
        connection_age: config.max_connection_age,
        idle_timeout: config.idle_timeout,
        answer_timeout: ANSWER_TIMEOUT,
        first_request_timeout: FIRST_REQUEST_TIMEOUT,
    }
}
