//! The promise, measured: an answer by the deadline, whatever the app does. `cargo bench --bench promise`, some two
//! minutes; the exit code is 1 if any answer is missing or is not the one the policy says.
//!
//! A scripted app on real sockets, callers over TLS with HTTP/1.1 and HTTP/2, the guard between them on a core of its
//! own. The lateness of an answer is the time of its last byte at the caller, less the time the caller had written the
//! request's last byte, less the timeout of the rule that matched; below zero it is early. The caller's own delays count
//! against the guard. The promise is a lateness of at most 5 ms for 9,999 of 10,000.
//!
//! A virtual machine whose host has other work stands still for milliseconds now and then, and nobody inside can answer
//! meanwhile. So on each core a thread that goes before every other one (`SCHED_FIFO`) sleeps for half a millisecond, again and
//! again, and notes where it was woken late: what it could not do, neither guard nor caller could. The column `less pauses`
//! is the p99.99 of lateness less the pauses noted near the two ends of each callback; what is left is the guard's, the
//! callers' and the app's own. Where such a thread is refused (it needs root, or `CAP_SYS_NICE`) nothing is taken off, and the
//! output says so.
//!
//! The program measured is the one `cargo build --release` makes, and the bench has cargo make it first; see
//! `guard_program` in `benches/support`.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use app::App;
use calls::{Case, Failure, MIXED, POLICY, Sender, case, is_intended};
use support::{Folder, MEASURED_CORE, OTHER_CORE, Started};

#[path = "promise/app.rs"]
mod app;
#[path = "promise/calls.rs"]
mod calls;
mod support;

/// What was promised, behind the deadline.
const PROMISED: Duration = Duration::from_millis(5);

/// Longer than any timeout: what is not there by then does not come.
const MISSING: Duration = Duration::from_secs(10);

const H1_CALLERS: usize = 64;
const H2_CONNECTIONS: usize = 6;
const H2_CALLERS: usize = 32;

/// Callers at once where every answer comes at once: more would only queue for their own core.
const FEW: usize = 8;

/// Put one by one, with the app in a certain state.
const UNREACHABLE: [Case; 1] =
    [case("unreachable", ["deny", "healthy", "unreachable"], 1000, Some(5200), 10_000)];
const OVERLOADED: [Case; 1] =
    [case("overloaded", ["one", "silent", "overloaded"], 14_000, Some(5201), 10_000)];
const TRIPPING: [Case; 1] =
    [case("(failures that open the breaker)", ["breaker", "status", "status"], 1000, Some(5202), 20)];
const BREAKER: [Case; 1] =
    [case("breaker-open", ["breaker", "status", "breaker-open"], 1000, Some(5202), 10_000)];

fn main() -> ExitCode {
    support::run("promise", measure)
}

fn measure() -> Result<bool, Failure> {
    let folder = Folder::new("promise")?;
    folder.certificate()?;
    let policy = folder.write("policy.yaml", POLICY)?;
    let program = support::guard_program(&folder)?;
    support::pin(OTHER_CORE)?;
    support::reserve_descriptors()?;
    println!("`cargo bench --bench promise` on {}\n", support::machine());
    let guard = |upstream: SocketAddr| -> Result<(Started, SocketAddr), Failure> {
        let (address, admin) = (support::free_address()?, support::free_address()?);
        let mut command = Command::new(&program);
        command.arg("proxy").args(["--listen", &address.to_string(), "--admin-listen", &admin.to_string()]);
        command.args(["--upstream", &format!("http://{upstream}"), "--require-policy", "--policy-file"]);
        command.arg(&policy).arg("--tls-cert").arg(folder.path("cert.pem"));
        command.arg("--tls-key").arg(folder.path("key.pem"));
        let mut guard = Started::new(&mut command, MEASURED_CORE)?;
        guard.listens(address)?;
        Ok((guard, address))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let measured = local.block_on(&runtime, async {
        let app = App::start().await?;
        let (_guard, address) = guard(app.address())?;
        let (_lonely, nobody) = guard(support::free_address()?)?;
        let watchers = [MEASURED_CORE, OTHER_CORE].map(Watcher::start);
        let tallies = run(address, nobody, &folder, &app).await;
        let [guards, callers] = watchers.map(Watcher::stop);
        Ok::<_, Failure>((tallies?, [guards?, callers?]))
    })?;
    let (tallies, cores) = measured;
    Ok(report(&tallies, &cores))
}

async fn run(
    address: SocketAddr,
    nobody: SocketAddr,
    folder: &Folder,
    app: &App,
) -> Result<Vec<Tally>, Failure> {
    let callers = Callers::connect(address, folder).await?;
    let mut tallies = callers.put(&MIXED, usize::MAX).await;
    // One callback of the rule waits for an app that says nothing; there is no place beside it.
    let waiting = callers.dedicated(&OVERLOADED[0]).await?;
    app.asked("one").await;
    tallies.extend(callers.put(&OVERLOADED, FEW).await);
    drop(waiting);
    // From then on the breaker is open for longer than the bench runs.
    tallies.extend(callers.put(&TRIPPING, 1).await);
    tallies.extend(callers.put(&BREAKER, FEW).await);
    drop(callers);
    let callers = Callers::connect(nobody, folder).await?;
    tallies.extend(callers.put(&UNREACHABLE, FEW).await);
    Ok(tallies)
}

/// Prints the table; whether every answer was the one intended.
fn report(tallies: &[Tally], cores: &[Watched; 2]) -> bool {
    println!(
        "| cause | over | answers | wrong or missing | p50 ms | p99 ms | p99.99 ms | worst ms | less pauses | worst | deadline + 5 ms |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|");
    let pauses = joined(cores);
    let promised = PROMISED.as_secs_f64() * 1e3;
    for tally in tallies {
        let mut late: Vec<f64> = tally.times.iter().map(|times| tally.late_ms(*times)).collect();
        let mut less: Vec<f64> = tally.times.iter().map(|times| tally.less_pauses(*times, &pauses)).collect();
        late.sort_by(f64::total_cmp);
        less.sort_by(f64::total_cmp);
        let at = |share| support::quantile(&late, share).unwrap_or(f64::NAN);
        let less_at = |share| support::quantile(&less, share).unwrap_or(f64::NAN);
        let held = match tally.wrong {
            0 if at(0.9999) <= promised => "held",
            0 if less_at(0.9999) <= promised => "held but for pauses",
            _ => "**not held**",
        };
        println!(
            "| {} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {held} |",
            tally.name,
            tally.over,
            late.len(),
            tally.wrong,
            at(0.5),
            at(0.99),
            at(0.9999),
            at(1.0),
            less_at(0.9999),
            less_at(1.0),
        );
    }
    let whose = match cores.iter().find_map(|core| core.among_others.as_ref()) {
        None => "The machine itself: a thread that goes before every other one,",
        Some(why) => &format!("Nothing is taken off in `less pauses`: {why}. A thread like any other,"),
    };
    println!("\n{whose} asleep for 0.5 ms at a time, is woken late by:\n");
    println!("| core | times | p50 ms | p99 ms | p99.99 ms | worst ms | pauses |");
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (core, watched) in ["the guard's", "the callers' and the app's"].into_iter().zip(cores) {
        let mut late = watched.late.clone();
        late.sort();
        let at = |share| support::quantile(&late, share).unwrap_or_default().as_secs_f64() * 1e3;
        let (middle, most, rare, worst) = (at(0.5), at(0.99), at(0.9999), at(1.0));
        let count = watched.pauses.len();
        println!("| {core} | {} | {middle:.2} | {most:.2} | {rare:.2} | {worst:.2} | {count} |", late.len());
    }
    let wrong: usize = tallies.iter().map(|tally| tally.wrong).sum();
    let answers: usize = tallies.iter().map(|tally| tally.times.len()).sum();
    println!("\n{answers} answers, {wrong} wrong or missing; {}", support::machine());
    wrong == 0
}

/// What came of a case over one protocol.
struct Tally {
    name: &'static str,
    over: &'static str,
    timeout: Duration,
    /// When the request's last byte was written, and when the answer's was there.
    times: Vec<(Instant, Instant)>,
    wrong: usize,
}

impl Tally {
    fn late_ms(&self, (written, ended): (Instant, Instant)) -> f64 {
        ((ended - written).as_secs_f64() - self.timeout.as_secs_f64()) * 1e3
    }

    /// Lateness less the pauses that can have been its reason: those as long after the request as the answer was late,
    /// when its deadline was set, and those from a millisecond before the deadline on.
    fn less_pauses(&self, (written, ended): (Instant, Instant), pauses: &[Pause]) -> f64 {
        let late = self.late_ms((written, ended));
        let Some(behind) = (ended - written).checked_sub(self.timeout) else { return late };
        let begun = written + behind;
        let deadline = written + self.timeout - Duration::from_millis(1);
        // No pause counts twice where the one reaches into the other.
        let near = [(written, begun), (deadline.max(begun), ended)];
        let from = pauses.partition_point(|pause| pause.1 <= written);
        let near_pauses = pauses[from..].iter().take_while(|pause| pause.0 < ended);
        let paused: Duration = near_pauses
            .flat_map(|pause| {
                near.map(|part| pause.1.min(part.1).saturating_duration_since(pause.0.max(part.0)))
            })
            .sum();
        late - paused.as_secs_f64() * 1e3
    }
}

/// A time in which a core ran nothing at all.
type Pause = (Instant, Instant);

/// Goes before everything else on a core, and notes when the core itself stood still.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<io::Result<Watched>>,
}

/// What a core did to the thread that went before all others.
struct Watched {
    late: Vec<Duration>,
    pauses: Vec<Pause>,
    /// Why it did not go before all others: then what it saw may be the load's own doing, and is no pause.
    among_others: Option<String>,
}

impl Watcher {
    /// How long it sleeps, and the shortest lateness that is noted as a pause.
    const STEP: Duration = Duration::from_micros(500);
    const PAUSE: Duration = Duration::from_micros(250);

    fn start(core: usize) -> Watcher {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            support::pin(core)?;
            let among_others = support::go_before_all().err().map(|error| error.to_string());
            let mut watched = Watched { late: Vec::new(), pauses: Vec::new(), among_others };
            while !stopped.load(Ordering::Relaxed) {
                let due = Instant::now() + Self::STEP;
                support::pause(Self::STEP);
                let woken = Instant::now();
                let mut behind = woken.saturating_duration_since(due);
                if behind >= Self::PAUSE && watched.among_others.is_none() {
                    watched.pauses.push((due, woken));
                }
                watched.late.push(behind);
                // Callbacks do not wait for one another: others would have been due while this one slept on.
                while behind > Self::STEP {
                    behind -= Self::STEP;
                    watched.late.push(behind);
                }
            }
            Ok(watched)
        });
        Watcher { stop, thread }
    }

    fn stop(self) -> io::Result<Watched> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("the thread that watches a core panicked"))?
    }
}

/// The pauses of both cores in their order, those that overlap joined.
fn joined(cores: &[Watched; 2]) -> Vec<Pause> {
    let mut all: Vec<Pause> = cores.iter().flat_map(|core| core.pauses.iter().copied()).collect();
    all.sort();
    let mut joined: Vec<Pause> = Vec::new();
    for (from, to) in all {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// The callers, each of which asks and waits and asks again.
struct Callers {
    idle: RefCell<Vec<Sender>>,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Callers {
    async fn connect(address: SocketAddr, folder: &Folder) -> Result<Callers, Failure> {
        let (h1, h2) = (folder.client_config(b"http/1.1")?, folder.client_config(b"h2")?);
        let mut idle = Vec::new();
        for _ in 0..H2_CONNECTIONS {
            let first = Sender::connect(address, &h2, true).await?;
            idle.extend((1..H2_CALLERS).filter_map(|_| first.again()));
            idle.push(first);
        }
        for at in 0..H1_CALLERS {
            // Spread, so that few callers are also a mix of both.
            let place = (at * idle.len() / H1_CALLERS).min(idle.len());
            idle.insert(place, Sender::connect(address, &h1, false).await?);
        }
        Ok(Callers { idle: RefCell::new(idle), address, tls: h1 })
    }

    /// Asks once on a connection of its own, until what is returned is dropped.
    async fn dedicated(&self, case: &'static Case) -> Result<Waiting, Failure> {
        let mut sender = Sender::connect(self.address, &self.tls, false).await?;
        Ok(Waiting(tokio::task::spawn_local(async move {
            let _ = sender.ask(case).await;
        })))
    }

    /// Puts cases in random order, with so many callers at once, and tallies each by protocol.
    async fn put(&self, cases: &'static [Case], callers: usize) -> Vec<Tally> {
        let mut order: Vec<usize> =
            cases.iter().enumerate().flat_map(|(at, case)| std::iter::repeat_n(at, case.count)).collect();
        shuffle(&mut order);
        let tally = |over| {
            let of = |case: &Case| Tally {
                name: case.name,
                over,
                timeout: case.timeout,
                times: Vec::new(),
                wrong: 0,
            };
            RefCell::new(cases.iter().map(of).collect::<Vec<_>>())
        };
        let run = Rc::new(Run { cases, order: RefCell::new(order), h1: tally("h1"), h2: tally("h2") });
        let mut idle = self.idle.take();
        let few = callers.min(idle.len());
        let mut at_work = Vec::new();
        for number in 0..few {
            // Few callers come from all over the list, so that both protocols are among them.
            let place = (few - 1 - number) * idle.len() / (few - number);
            let sender = idle.swap_remove(place);
            // Callers that began together would time out together, and be one another's queue.
            let start = Duration::from_millis(number as u64);
            at_work.push(tokio::task::spawn_local(Rc::clone(&run).work(sender, start)));
        }
        for caller in at_work {
            idle.extend(caller.await.ok().flatten());
        }
        self.idle.replace(idle);
        let (mut h1, h2) = (run.h1.take(), run.h2.take());
        // A callback that nobody was left to put is an answer that is missing.
        run.order.take().into_iter().for_each(|at| h1[at].wrong += 1);
        let tallies = h1.into_iter().zip(h2).flat_map(|(h1, h2)| [h1, h2]);
        tallies.filter(|tally| !tally.times.is_empty() || tally.wrong > 0).collect()
    }
}

/// What the callers of one throng share.
struct Run {
    cases: &'static [Case],
    /// What is still to be put, as places in `cases`.
    order: RefCell<Vec<usize>>,
    h1: RefCell<Vec<Tally>>,
    h2: RefCell<Vec<Tally>>,
}

impl Run {
    /// Asks and waits and asks again, until nothing is left. A connection that failed is not given back.
    async fn work(self: Rc<Self>, mut sender: Sender, start: Duration) -> Option<Sender> {
        tokio::time::sleep(start).await;
        loop {
            let Some(at) = self.order.borrow_mut().pop() else { return Some(sender) };
            let case = &self.cases[at];
            let asked = tokio::time::timeout(case.timeout + MISSING, sender.ask(case)).await;
            let tallies = if sender.over() == "h2" { &self.h2 } else { &self.h1 };
            let tally = &mut tallies.borrow_mut()[at];
            let Ok(Ok(answer)) = asked else {
                tally.wrong += 1;
                return None;
            };
            tally.wrong += usize::from(!is_intended(&answer, case));
            tally.times.push((answer.written, answer.ended));
        }
    }
}

/// A callback under way, given up when this is dropped.
struct Waiting(tokio::task::JoinHandle<()>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The same order in every run.
fn shuffle(items: &mut [usize]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for end in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        items.swap(end, (state % (end as u64 + 1)) as usize);
    }
}
