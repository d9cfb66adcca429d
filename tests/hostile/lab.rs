//! A guard as `inject` starts it, good callers and an app beside it, and what an attack made of them.

#![allow(dead_code, reason = "the test target and the benchmark each use their own part of this")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::task::LocalSet;

use crate::cgroup::Cgroup;
use crate::good::{self, Good, Kind, Sample};
use crate::pauses::Pauses;
use crate::probe::{PROBE_TIMEOUT, metric, page, status};
use crate::setup::{MEMORY_LIMIT, Setup, announce, injected, limited, prepare_guard};
use crate::support::{Authority, Guard};
use crate::toy::Toy;

/// The most that a good caller's answer may be late beside an attack: ten times what is promised. The figures themselves are the
/// benchmark's.
pub(crate) const LATENESS: Duration = Duration::from_millis(50);

/// One answer in so many may be later, and one of an attack: where real-time tasks leave ordinary ones nothing, Linux takes a core from them
/// for 50 ms of a second (its "fair server"), and a pause of the machine may begin and end between two looks.
const LATE_SHARE: usize = 1_000;

/// The part of new connections, one in so many, that a flood of handshakes may turn away.
const FRESH_REFUSED_SHARE: usize = 20;

/// The same for a callback that comes with a new connection: its handshake waits behind those under way, a thousand in a flood of them.
const FRESH_LATENESS: Duration = Duration::from_secs(1);

/// The most that may be resident when an attack is over: a quarter of the limit. An idle guard has some 15 MiB, and the allocator keeps
/// some.
const RESIDENT_AFTER: u64 = 64 << 20;

/// How long the memory of an attack may stay when its connections are closed.
const RECOVERY: Duration = Duration::from_secs(10);

/// The longest that an attack may take, however it goes.
const LONGEST: Duration = Duration::from_secs(25);

/// A lab: one at a time in this process, for they need the machine.
pub(crate) struct Lab {
    // In the order of their ends.
    guard: Guard,
    _app: Toy,
    cgroup: Option<Cgroup>,
    pauses: Pauses,
    measured: bool,
    complaints: Vec<String>,
    peak: Option<u64>,
    _turn: MutexGuard<'static, ()>,
}

/// What attackers know.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) h1: Arc<ClientConfig>,
    pub(crate) h2: Arc<ClientConfig>,
    /// When attackers stop.
    pub(crate) until: Instant,
}

/// What came of an attack.
struct Row {
    attack: &'static str,
    /// Of the good callers' answers over kept connections: median, p99 and worst.
    lateness: [Duration; 3],
    answers: usize,
    wrong: usize,
    peak: Option<u64>,
    /// What became of the attacker.
    fate: String,
}

/// The head of the table of all attacks.
pub(crate) const HEAD: &str = "| attack | lateness p50 ms | p99 ms | worst ms | wrong or missing | of answers | peak MiB | the attacker |\n\
    |---|--:|--:|--:|--:|--:|--:|---|";

/// What ought to have been otherwise, in all labs of this process.
static OTHERWISE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The same, so far.
pub(crate) fn otherwise() -> Vec<String> {
    lock(&OTHERWISE).clone()
}

impl Lab {
    pub(crate) fn start(setup: Setup) -> Lab {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = lock(&TURN);
        reserve_descriptors();
        let measured = announce(&setup.program);
        let app = Toy::start(setup.answers.iter().cloned());
        let policy =
            format!("defaults: {{callerTimeout: 5s, timeout: 2s}}\nrules:\n{}{}", good::RULES, setup.rules);
        let mut builder = Guard::with(policy).under(&[], &setup.program).flag("--upstream", app.url());
        for (name, value) in injected(&setup.program) {
            builder = match value {
                Some(value) => builder.flag(&name, value),
                None => builder.switch(&name),
            };
        }
        for (name, value) in &setup.flags {
            builder = builder.flag(name, value);
        }
        if let Some(issued) = &setup.certificate {
            builder = builder.file("--tls-cert", "own-cert.pem", &issued.cert);
            builder = builder.file("--tls-key", "own-key.pem", &issued.key);
        }
        let cgroup = limited();
        if let Some(cgroup) = &cgroup {
            builder = builder.before(cgroup.joining().expect("a group's list of processes"));
        }
        let guard = builder.before(prepare_guard).start();
        let complaints = Vec::new();
        Lab {
            guard,
            _app: app,
            cgroup,
            pauses: Pauses::watch(),
            measured,
            complaints,
            peak: None,
            _turn: turn,
        }
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The most bytes that the process had in the last attack.
    pub(crate) fn peak(&self) -> Option<u64> {
        self.peak
    }

    /// Something that ought to be otherwise; the test fails for it at its end.
    pub(crate) fn complain(&mut self, about: impl Into<String>) {
        let about = about.into();
        lock(&OTHERWISE).push(about.clone());
        self.complaints.push(about);
    }

    /// Runs an attack for so many seconds beside the good callers. It returns what became of the attackers; whatever they
    /// opened is closed when it returns.
    pub(crate) fn attack(
        &mut self,
        attack: &'static str,
        kinds: &'static [Kind],
        seconds: u64,
        work: impl AsyncFnOnce(Target) -> String,
    ) -> &mut Lab {
        if !self.guard.is_running() {
            self.complain(format!("{attack}: not tried, the guard is gone"));
            return self;
        }
        let _ = fs::write(format!("/proc/{}/clear_refs", self.guard.pid()), "5");
        let good = Good::start(self.guard.listen(), kinds);
        let target = Target {
            listen: self.guard.listen(),
            admin: self.guard.admin_address(),
            h1: Authority::common().trusted_by(&["http/1.1"], None),
            h2: Authority::common().trusted_by(&["h2"], None),
            until: Instant::now() + Duration::from_secs(seconds),
        };
        let fate = attackers(work(target));
        let resident = self.resident();
        let peak = status(self.guard.pid(), "VmHWM:").max(resident);
        let peak = peak.or_else(|| self.cgroup.as_ref().and_then(Cgroup::peak));
        self.peak = peak;
        self.recovers(attack);
        let samples = good.stop();
        let late = self.judge(attack, &samples);
        self.is_empty(attack);
        let fresh = samples.iter().filter(|sample| sample.kind == Kind::Fresh && sample.wrong.is_none());
        let fate = match fresh.map(Sample::lateness).max() {
            Some(worst) => format!("{fate}; the slowest new connection with its callback {}", millis(worst)),
            None => fate,
        };
        let row = Row {
            attack,
            lateness: [0.5, 0.99, 1.0].map(|share| quantile(&late, share)),
            answers: samples.len(),
            wrong: samples.iter().filter(|sample| sample.wrong.is_some()).count(),
            peak,
            fate,
        };
        println!("{row}");
        let _ = io::stdout().flush();
        self
    }

    /// Memory comes back while the good callers go on, and the process lives.
    fn recovers(&mut self, attack: &str) {
        let begun = Instant::now();
        while self.guard.is_running() && begun.elapsed() < RECOVERY {
            if self.resident().is_some_and(|bytes| bytes <= RESIDENT_AFTER) {
                break;
            }
            pause(Duration::from_millis(50));
        }
        let killed = self.cgroup.as_ref().map_or(0, Cgroup::killed);
        match self.resident() {
            _ if killed > 0 => {
                self.complain(format!("{attack}: killed for want of memory, {} MiB", MEMORY_LIMIT >> 20))
            }
            None => self.complain(format!("{attack}: the guard is gone")),
            Some(bytes) if bytes > RESIDENT_AFTER => {
                let [found, wanted] = [bytes, RESIDENT_AFTER].map(|bytes| bytes >> 20);
                self.complain(format!(
                    "{attack}: {found} MiB are resident {} s after it, more than {wanted}",
                    RECOVERY.as_secs()
                ));
            }
            Some(_) => {}
        }
    }

    /// Every answer came, was right and in time; returns how late those of kept connections were, in order.
    fn judge(&mut self, attack: &str, samples: &[Sample]) -> Vec<Duration> {
        // Newcomers compete with whoever floods the same thread with handshakes: one in so many may be turned away.
        let fresh = samples.iter().filter(|sample| sample.kind == Kind::Fresh);
        let (fresh, refused) = (fresh.clone().count(), fresh.filter(|sample| sample.wrong.is_some()).count());
        let reasons = good::reasons(samples);
        let only_fresh = samples.iter().all(|sample| sample.wrong.is_none() || sample.kind == Kind::Fresh);
        let tolerated = only_fresh && refused <= fresh / FRESH_REFUSED_SHARE;
        if !reasons.is_empty() && !tolerated {
            let (_, overloads) =
                page(self.guard.admin_address(), "/metrics", PROBE_TIMEOUT).unwrap_or_default();
            let overloads: Vec<_> =
                overloads.lines().filter(|line| line.contains("overloads_total{")).collect();
            self.complain(format!(
                "{attack}: of {} answers wrong or missing: {reasons:?}; {overloads:?}",
                samples.len()
            ));
        }
        if samples.is_empty() {
            self.complain(format!("{attack}: the good callers sent nothing"));
        }
        let answered = || samples.iter().filter(|sample| sample.wrong.is_none());
        let bound = |kind| if kind == Kind::Fresh { FRESH_LATENESS } else { LATENESS };
        let late_of_ones_own = |sample: &&Sample| {
            let paused = self.pauses.within(sample.sent, sample.ended);
            sample.lateness().saturating_sub(paused) > bound(sample.kind)
        };
        let late: Vec<_> = answered().filter(late_of_ones_own).collect();
        let allowed = (samples.len() / LATE_SHARE).max(1);
        if let Some(worst) = late.iter().max_by_key(|sample| sample.lateness())
            && self.measured
            && late.len() > allowed
        {
            let (count, kind, lateness) = (late.len(), worst.kind, millis(worst.lateness()));
            let bound = millis(bound(kind));
            self.complain(format!(
                "{attack}: {count} of {} answers are too late, the worst by {lateness} ({kind:?}, {bound} are allowed)",
                samples.len(),
            ));
        }
        let kept = answered().filter(|sample| sample.kind != Kind::Fresh);
        let mut all: Vec<_> = kept.map(Sample::lateness).collect();
        all.sort();
        all
    }

    /// With nobody there nothing is held, and the probe answers.
    fn is_empty(&mut self, attack: &str) {
        if !self.guard.is_running() {
            return;
        }
        if let Err(error) = page(self.guard.admin_address(), "/livez", PROBE_TIMEOUT) {
            self.complain(format!("{attack}: /livez does not answer after it: {error}"));
        }
        let begun = Instant::now();
        let held = loop {
            let held = metric(self.guard.admin_address(), "callback_guard_held_bytes");
            if held == Ok(0.0) || begun.elapsed() > RECOVERY {
                break held;
            }
            pause(Duration::from_millis(20));
        };
        if held != Ok(0.0) {
            self.complain(format!("{attack}: held_bytes is {held:?} after it"));
        }
    }

    fn resident(&self) -> Option<u64> {
        status(self.guard.pid(), "VmRSS:").filter(|_| self.guard.is_running())
    }

    /// The end: fails for everything that ought to be otherwise.
    #[track_caller]
    pub(crate) fn hold(&mut self) {
        let complaints = std::mem::take(&mut self.complaints);
        let logged = self.logged();
        assert!(complaints.is_empty(), "{}\nlogged beside callbacks: {logged:#?}", complaints.join("\n"));
    }

    /// The messages of the guard's log but for those about callbacks, each with how many lines there are and the last of them.
    fn logged(&self) -> BTreeMap<String, (usize, String)> {
        let mut found = BTreeMap::<String, (usize, String)>::new();
        for line in self.guard.log_lines() {
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            let message = parsed["message"].as_str().unwrap_or("not JSON").to_owned();
            if message != "Callback answered" {
                let (count, last) = found.entry(message).or_default();
                *count += 1;
                *last = line;
            }
        }
        found
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99, worst] = self.lateness.map(|late| format!("{:.1}", late.as_secs_f64() * 1e3));
        let peak =
            self.peak.map_or_else(|| "?".to_owned(), |bytes| format!("{:.0}", bytes as f64 / 1_048_576.0));
        let Row { attack, answers, wrong, fate, .. } = self;
        write!(out, "| {attack} | {p50} | {p99} | {worst} | {wrong} | {answers} | {peak} | {fate} |")
    }
}

/// Runs attackers on this thread, which is like any other; what they opened is closed then.
fn attackers(work: impl Future<Output = String>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let bounded = async { tokio::time::timeout(LONGEST, work).await };
    let fate = LocalSet::new().block_on(&runtime, bounded);
    runtime.shutdown_background();
    fate.unwrap_or_else(|_| "cut off".to_owned())
}

/// Attackers need more descriptors than a shell allows. The kernel's table is made as large at once: whoever fills it in a process of several
/// threads sleeps for 7 to 30 ms, and here that would be the app or a good caller.
fn reserve_descriptors() {
    /// More than any attack opens.
    const OPEN: libc::rlim_t = 1 << 15;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls only read or write the limit, and open and close a descriptor that nobody else has.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            let last = limit.rlim_cur.min(OPEN) - 1;
            let copy = libc::fcntl(libc::STDIN_FILENO, libc::F_DUPFD_CLOEXEC, last as libc::c_int);
            if copy >= 0 {
                libc::close(copy);
            }
        }
    }
}

/// Sleeps; no runtime runs on a thread that calls this.
pub(crate) fn pause(time: Duration) {
    #[allow(clippy::disallowed_methods, reason = "the test's thread waits for a process")]
    std::thread::sleep(time);
}

pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The smallest that at least this share of them does not pass.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
