//! A long run in which everything goes wrong at once: `cargo bench --bench soak -- --for 60m` (a minute without `--for`; `--callers 2` has
//! twice as many good callers). Good callers
//! over HTTP/1.1 and HTTP/2, an app whose answers are late, broken, cut off or wrong, bad callers beside them, a policy edit each second, a new
//! certificate each minute (twice at least), and connections that end after five seconds.
//!
//! The exit code is 1 if a callback that was accepted got no verdict or not its own, or if more than one in 1,000 came later than
//! 50 ms behind its deadline: ten times what is promised, as in the tests. What the machine itself stood still is taken off there
//! (`tests/hostile/pauses.rs`); the figures printed are as they were measured.
//!
//! A callback is not accepted if its connection ended before anything of it was read, as an announced end allows: Go then sends it
//! again over the next connection, and so do these callers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use http::StatusCode;
use rustls::ClientConfig;
use tokio::task::LocalSet;

use app::App;
use bad::Bad;
use calls::{Answer, Case, Failure, MIXED, POLICY, Sender, case, is_intended};
use certificates::Authority;
use figures::{Lateness, Line};
use pauses::Pauses;
use support::{Folder, MEASURED_CORE, OTHER_CORE, Started};

#[allow(dead_code, reason = "shared with `promise`")]
#[path = "promise/app.rs"]
mod app;
#[path = "soak/bad.rs"]
mod bad;
#[path = "promise/calls.rs"]
mod calls;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/support/certificates.rs"]
mod certificates;
#[path = "soak/figures.rs"]
mod figures;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/support/frames.rs"]
mod frames;
#[path = "../tests/hostile/pauses.rs"]
mod pauses;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/hostile/priority.rs"]
mod priority;
mod support;

/// What was promised, behind the deadline.
const PROMISED: Duration = Duration::from_millis(5);

/// What is still taken for in time: the promise with the tests' margin.
const IN_TIME: Duration = Duration::from_millis(50);

/// Longer than any timeout: what is not there by then does not come.
const MISSING: Duration = Duration::from_secs(10);

/// Between two edits of the policy.
const EDIT: Duration = Duration::from_secs(1);

/// How many edits an answer may lag behind: the file is watched, not asked for with each callback.
const LAG: u64 = 5;

/// Callers, each of which sends the next callback when it has its answer: over HTTP/1.1 with a connection of their own, over HTTP/2 in
/// groups. `--callers` multiplies them.
const H1_CALLERS: usize = 48;
const H2_CONNECTIONS: usize = 6;
const H2_CALLERS: usize = 24;

/// How often a callback is sent again that was not accepted.
const TRIES: usize = 5;

/// Those of `promise`, without the last: an app that means to answer 50 ms before the deadline is too late itself when the machine
/// stands still, and then the fallback is right.
const CASES: &[Case] = MIXED.split_at(MIXED.len() - 1).0;

/// Answered by the rule that is edited; its `errCode` says by which edit.
const EDITED: Case = case("rule that is edited", ["edited", "healthy", ""], 1000, None, 0);
const FIRST_CODE: u64 = 6_000;

/// How many edits have a code of their own: refusals have 5000 to 9999.
const CODES: u64 = 4_000;

fn main() -> ExitCode {
    support::run("soak", measure)
}

fn measure() -> Result<bool, Failure> {
    let (length, times) = (length()?, times()?);
    let folder = Folder::new("soak")?;
    let program = support::guard_program(&folder)?;
    support::reserve_descriptors()?;
    write_certificate(&folder)?;
    write_policy(&folder, 0)?;
    let seconds = length.as_secs();
    println!("`cargo bench --bench soak -- --for {seconds}s --callers {times}` on {}\n", support::machine());
    let (address, upstream) = (support::free_address()?, support::free_address()?);
    let mut command = Command::new(&program);
    command.arg("proxy").args(["--listen", &address.to_string(), "--admin-listen", "127.0.0.1:0"]);
    command.args([
        "--upstream",
        &format!("http://{upstream}"),
        "--max-connection-age",
        "5s",
        "--policy-file",
    ]);
    command.arg(folder.path("policy.yaml")).arg("--tls-cert").arg(folder.path("cert.pem"));
    command.arg("--tls-key").arg(folder.path("key.pem"));
    // SAFETY: a system call alone; refused to those who may not, which the output says.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            let _ = priority::first_in(priority::GUARD);
            Ok(())
        });
    }
    let mut guard = Started::new(&mut command, MEASURED_CORE)?;
    guard.listens(address)?;
    let configs = ["http/1.1", "h2"].map(|alpn| Authority::common().trusted_by(&[alpn], None));
    let edits = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let callers = {
        let (configs, edits, stop) = (configs.clone(), Arc::clone(&edits), Arc::clone(&stop));
        thread::spawn(move || good_callers(address, upstream, times, configs, edits, &stop))
    };
    let bad = Bad::start(address, configs);
    let mut watched = Watched::default();
    let changed = change(&folder, begun + length, &edits, || watched.note(&guard, begun));
    stop.store(true, Ordering::Relaxed);
    let tally = callers.join().map_err(|_| "the good callers' thread panicked")??;
    let deeds = bad.stop();
    // Connections end within moments; what then is open is the guard's own.
    support::pause(Duration::from_secs(2));
    let left = descriptors(guard.id());
    Ok(report(&tally, &watched, &deeds, changed?, left))
}

/// The value of this option; empty if it has none.
fn option(name: &str) -> Option<String> {
    let mut arguments = env::args().skip_while(|argument| argument != name);
    arguments.next().map(|_| arguments.next().unwrap_or_default())
}

/// `--for 90s`, `--for 60m`, `--for 8h`; a minute without.
fn length() -> Result<Duration, Failure> {
    let Some(text) = option("--for") else { return Ok(Duration::from_secs(60)) };
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).unwrap_or_default();
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    match number.parse::<u64>() {
        Ok(number @ 1..) if seconds > 0 => Ok(Duration::from_secs(number * seconds)),
        _ => Err(format!("--for {text:?}: expected a time as 90s, 60m or 8h").into()),
    }
}

/// `--callers 4`; once without.
fn times() -> Result<usize, Failure> {
    let Some(text) = option("--callers") else { return Ok(1) };
    match text.parse() {
        Ok(times @ 1..=16) => Ok(times),
        _ => Err(format!("--callers {text:?}: expected 1 to 16, how many times as many good callers").into()),
    }
}

fn write_certificate(folder: &Folder) -> Result<(), Failure> {
    let issued = Authority::common().server();
    replace(folder, "cert.pem", &issued.cert)?;
    replace(folder, "key.pem", &issued.key)
}

fn write_policy(folder: &Folder, edit: u64) -> Result<(), Failure> {
    let code = FIRST_CODE + edit % CODES;
    let rule = format!(
        "  - {{name: edited, match: {{sendIDs: [edited]}}, answer: Deny, deny: {{errCode: {code}}}}}\n"
    );
    replace(folder, "policy.yaml", &format!("{}{rule}", POLICY.trim_start()))
}

/// Writes a file as one rename.
fn replace(folder: &Folder, name: &str, text: &str) -> Result<(), Failure> {
    let new = folder.write(&format!("{name}.new"), text)?;
    Ok(fs::rename(new, folder.path(name))?)
}

/// Edits the policy and renews the certificate until then; how often each.
fn change(
    folder: &Folder,
    until: Instant,
    edits: &AtomicU64,
    mut each_second: impl FnMut(),
) -> Result<[u64; 2], Failure> {
    let begun = Instant::now();
    // A run of a minute sees a new one too.
    let renewal = Duration::from_secs(60).min((until - begun) / 3);
    let (mut made, mut certificates) = (0, 0);
    while Instant::now() < until {
        support::pause(EDIT.min(until.saturating_duration_since(Instant::now())));
        made += 1;
        // Counted first: no answer is ahead of the count.
        edits.store(made, Ordering::SeqCst);
        write_policy(folder, made)?;
        if begun.elapsed() >= renewal * (certificates + 1) {
            certificates += 1;
            write_certificate(folder)?;
        }
        each_second();
    }
    Ok([made, u64::from(certificates)])
}

/// The guard's size, a figure a second.
#[derive(Default)]
struct Watched {
    /// Bytes by hours.
    resident: Line,
    descriptors: Line,
}

impl Watched {
    fn note(&mut self, guard: &Started, begun: Instant) {
        let hours = begun.elapsed().as_secs_f64() / 3600.0;
        self.resident.add(hours, guard.memory().resident as f64 * 1024.0);
        self.descriptors.add(hours, descriptors(guard.id()) as f64);
    }
}

fn descriptors(id: u32) -> u64 {
    fs::read_dir(format!("/proc/{id}/fd")).map_or(0, |entries| entries.count() as u64)
}

/// What came of the good callers.
struct Tally {
    /// Of callbacks whose deadline came.
    lateness: Lateness,
    callbacks: u64,
    faulted: u64,
    /// Answered by the rule that is edited.
    edited: u64,
    /// By which edits.
    codes: [u64; 2],
    again: u64,
    connections: u64,
    /// Accepted, and without a verdict: what happened to how many.
    missing: BTreeMap<String, u64>,
    wrong: BTreeMap<String, u64>,
    behind_promise: u64,
    behind_margin: u64,
    /// Why nobody goes before anybody, if that is refused.
    among_others: Option<String>,
}

/// Runs the app and the good callers on this thread.
fn good_callers(
    address: SocketAddr,
    upstream: SocketAddr,
    times: usize,
    configs: [Arc<ClientConfig>; 2],
    edits: Arc<AtomicU64>,
    stop: &AtomicBool,
) -> Result<Tally, String> {
    let pauses = Pauses::watch();
    support::pin(OTHER_CORE).map_err(|error| error.to_string())?;
    let among_others = priority::first_in(priority::GOOD_CALLERS).err().map(|error| error.to_string());
    let tally = RefCell::new(Tally {
        lateness: Lateness::new(),
        callbacks: 0,
        faulted: 0,
        edited: 0,
        codes: [u64::MAX, 0],
        again: 0,
        connections: 0,
        missing: BTreeMap::new(),
        wrong: BTreeMap::new(),
        behind_promise: 0,
        behind_margin: 0,
        among_others,
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let local = LocalSet::new();
    let callers = Rc::new(Callers { address, configs, edits, stopped: Cell::new(false), pauses, tally });
    local.block_on(&runtime, async {
        let _app = App::start_at(upstream).await.map_err(|error| error.to_string())?;
        let mut at_work = Vec::new();
        let h1 = (0..times * H1_CALLERS).map(|_| (Rc::new(Connection::new(false)), 1));
        let h2 = (0..times * H2_CONNECTIONS).map(|_| (Rc::new(Connection::new(true)), H2_CALLERS));
        for (connection, count) in h1.chain(h2) {
            for _ in 0..count {
                let seed = at_work.len() as u64 + 1;
                at_work
                    .push(tokio::task::spawn_local(Rc::clone(&callers).call(Rc::clone(&connection), seed)));
            }
        }
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        callers.stopped.set(true);
        for caller in at_work {
            caller.await.map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    })?;
    drop(local);
    let callers = Rc::into_inner(callers).ok_or("a caller is still at work")?;
    Ok(callers.tally.into_inner())
}

struct Callers {
    address: SocketAddr,
    configs: [Arc<ClientConfig>; 2],
    edits: Arc<AtomicU64>,
    stopped: Cell<bool>,
    pauses: Pauses,
    tally: RefCell<Tally>,
}

/// A connection, made anew when it has ended; over HTTP/2 several callers share one.
struct Connection {
    h2: bool,
    sender: tokio::sync::Mutex<Option<Sender>>,
}

impl Connection {
    fn new(h2: bool) -> Connection {
        Connection { h2, sender: tokio::sync::Mutex::new(None) }
    }
}

impl Callers {
    async fn call(self: Rc<Self>, connection: Rc<Connection>, seed: u64) {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        while !self.stopped.get() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let case = CASES.get((random % (CASES.len() as u64 + 1)) as usize).unwrap_or(&EDITED);
            self.once(&connection, case).await;
        }
    }

    /// One callback, until it was accepted.
    async fn once(&self, connection: &Connection, case: &Case) {
        for _ in 0..TRIES {
            let edits_before = self.edits.load(Ordering::SeqCst);
            let asked = tokio::time::timeout(case.timeout + MISSING, self.ask(connection, case)).await;
            match asked {
                Ok(Ok(answer)) => return self.judge(case, &answer, edits_before),
                Ok(Err(error)) if was_not_accepted(error.as_ref()) => self.tally.borrow_mut().again += 1,
                Ok(Err(error)) => return self.missed(words(error.as_ref())),
                Err(_) => return self.missed("no answer".to_owned()),
            }
        }
        self.missed(format!("not accepted {TRIES} times"));
    }

    async fn ask(&self, connection: &Connection, case: &Case) -> Result<Answer, Failure> {
        let mut place = connection.sender.lock().await;
        let mut sender = match place.take().filter(Sender::is_open) {
            Some(sender) => sender,
            None => {
                self.tally.borrow_mut().connections += 1;
                Sender::connect(self.address, &self.configs[usize::from(connection.h2)], connection.h2)
                    .await?
            }
        };
        if let Some(again) = sender.again() {
            *place = Some(again);
            drop(place);
            return sender.ask(case).await;
        }
        let answer = sender.ask(case).await;
        if answer.is_ok() {
            *place = Some(sender);
        }
        answer
    }

    fn missed(&self, why: String) {
        let mut tally = self.tally.borrow_mut();
        tally.callbacks += 1;
        *tally.missing.entry(why).or_default() += 1;
    }

    fn judge(&self, case: &Case, answer: &Answer, edits_before: u64) {
        let mut tally = self.tally.borrow_mut();
        tally.callbacks += 1;
        let right = if case.sender == EDITED.sender {
            tally.edited += 1;
            let possible = edits_before.saturating_sub(LAG)..=self.edits.load(Ordering::SeqCst);
            let code = code_of(answer);
            let edit = possible.into_iter().rev().find(|edit| Some(FIRST_CODE + edit % CODES) == code);
            if let Some(edit) = edit {
                tally.codes = [tally.codes[0].min(edit), tally.codes[1].max(edit)];
            }
            edit.is_some()
        } else {
            tally.faulted += u64::from(!case.script.starts_with("healthy"));
            is_intended(answer, case)
        };
        if !right {
            let header =
                |name: &str| answer.headers.get(name).map_or("-", |value| value.to_str().unwrap_or("?"));
            let told = ["verdict", "origin", "cause"]
                .map(|name| header(&format!("callback-guard-{name}")).to_owned());
            let told = format!("{} {}: {}", case.name, answer.status.as_u16(), told.join(" "));
            *tally.wrong.entry(told).or_default() += 1;
        }
        let late = (answer.ended - answer.written).saturating_sub(case.timeout);
        if case.cause == "timeout" {
            tally.lateness.add(late);
        }
        if late > PROMISED {
            tally.behind_promise += 1;
            let own = late.saturating_sub(self.pauses.within(answer.written, answer.ended));
            tally.behind_margin += u64::from(own > IN_TIME);
        }
    }
}

/// The `errCode` of a rule's refusal, if the answer is one.
fn code_of(answer: &Answer) -> Option<u64> {
    let is = |name, value| answer.headers.get(name).is_some_and(|found| found == value);
    let by_rule = is("callback-guard-verdict", "deny")
        && is("callback-guard-origin", "rule")
        && answer.status == StatusCode::OK;
    let text = std::str::from_utf8(&answer.body).ok().filter(|_| by_rule)?;
    let (_, rest) = text.split_once("\"errCode\":")?;
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Whether the connection ended before the callback was read: also if a GOAWAY without an error names an earlier stream as the last
/// one (RFC 9113, section 6.8). Go sends it again then, without being asked.
fn was_not_accepted(error: &(dyn std::error::Error + 'static)) -> bool {
    let early =
        error.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_canceled() || error.is_closed());
    let words = words(error);
    let unread = [
        "refused stream before processing",
        "http2 error: connection error received: not a result of an error",
    ];
    early || unread.iter().any(|text| words.contains(text))
}

/// An error with all its causes.
fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Prints the figures; whether all is as it has to be.
fn report(
    tally: &Tally,
    watched: &Watched,
    deeds: &BTreeMap<&'static str, u64>,
    [edits, certificates]: [u64; 2],
    left: u64,
) -> bool {
    let missing: u64 = tally.missing.values().sum();
    let wrong: u64 = tally.wrong.values().sum();
    let late = &tally.lateness;
    let mib = |bytes: f64| bytes / 1_048_576.0;
    let resident = || watched.resident.values().map(mib);
    println!("| figure | value |\n|---|--:|");
    let row = |name: &str, value: String| println!("| {name} | {value} |");
    row("callbacks accepted", tally.callbacks.to_string());
    row("of them while the app failed them", tally.faulted.to_string());
    row("non-verdicts", missing.to_string());
    row("wrong verdicts", wrong.to_string());
    row("sent again, as their connection had ended", tally.again.to_string());
    let at = [0.5, 0.99, 0.9999].map(|share| format!("{:.2}", late.ms_at(share))).join(", ");
    row("lateness behind a deadline, p50, p99, p99.99, worst, ms", format!("{at}, {:.2}", late.worst_ms()));
    row("deadlines that came", late.count().to_string());
    row("later than 5 ms", tally.behind_promise.to_string());
    row("later than 50 ms, without the machine's own pauses", tally.behind_margin.to_string());
    row("resident memory, first, most, last, MiB", {
        let (first, last) = (resident().next().unwrap_or_default(), resident().last().unwrap_or_default());
        format!("{first:.1}, {:.1}, {last:.1}", resident().fold(0.0, f64::max))
    });
    row("growth of resident memory, MiB an hour", format!("{:.1}", mib(watched.resident.slope())));
    let most = watched.descriptors.values().fold(0.0, f64::max);
    row("open descriptors, most, at the end", format!("{most:.0}, {left}"));
    row("connections of good callers", tally.connections.to_string());
    let [first, last] = tally.codes;
    row("policy edits; seen in answers, from, to", format!("{edits}; {first}, {last}"));
    row("certificates", certificates.to_string());
    row("bad callers", deeds.values().sum::<u64>().to_string());
    println!(
        "\nBad callers: {}",
        deeds.iter().map(|(deed, count)| format!("{count} x {deed}")).collect::<Vec<_>>().join(", ")
    );
    for (what, found) in [("non-verdicts", &tally.missing), ("wrong", &tally.wrong)] {
        found.iter().for_each(|(why, count)| println!("- {what}: {count} x {why}"));
    }
    if let Some(why) = &tally.among_others {
        println!(
            "\nSCHED_FIFO is refused ({why}): lateness is that of a machine with other work, and not judged"
        );
    }
    println!("\n{}", support::machine());
    let in_time = tally.among_others.is_some() || tally.behind_margin * 1_000 <= tally.callbacks;
    // An edit is applied within some seconds, so the last answers are from one of the last edits.
    let edited = tally.edited == 0 || last + LAG >= edits;
    // A process that is gone has none.
    let alive = left > 0;
    missing == 0 && wrong == 0 && in_time && edited && alive
}
