//! What becomes of events, with OpenIM's own client and its AsyncPost: `cargo bench --bench events`, some two minutes; it takes Go.
//!
//! 1. 120 messages, one after another, while the app needs 8 s for each after-command and answers everything else at once.
//! 2. Events at a steady rate while the app is away for 30 s.
//! 3. Callbacks that OpenIM waits for, beside a queue of 10,000 events and beside an empty one, in turns.
//!
//! The guard is the program of this profile; nothing here depends on how fast it is but the third.

#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/openim/judge.rs"]
mod judge;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use judge::Judge;
use support::app::ALLOW;
use support::{Act, App, Asked, Authority, Call, Caller, Folder, Guard};

const BEFORE: &str = "callbackBeforeSendSingleMsgCommand";
const AFTER: &str = "callbackAfterSendSingleMsgCommand";

/// The messages and the slowness of a run against a whole OpenIM server, which took 30.0 s without the guard and lost 104 events.
const MESSAGES: usize = 120;
const SLOW: Duration = Duration::from_secs(8);

/// How long after the last message is looked for the first time.
const SOON: Duration = Duration::from_secs(5);

/// `timeout` of OpenIM's webhooks.yml as shipped.
const OPENIM_TIMEOUT: u64 = 5;

/// When nothing has come for so long, nothing will: longer than an attempt and the pause behind it.
const STILL: Duration = Duration::from_secs(25);
const LONGEST: Duration = Duration::from_secs(330);

/// The steady events: how many, and milliseconds between two.
const EVENTS: usize = 1_200;
const PAUSE: u64 = 50;
const WORK: Duration = Duration::from_millis(40);
const UP: Duration = Duration::from_secs(10);
const AWAY: Duration = Duration::from_secs(30);

/// Callbacks in each turn, and turns.
const CALLS: usize = 500;
const TURNS: usize = 20;
const QUEUED: usize = 10_000;

fn main() -> ExitCode {
    bench::run("events", || {
        println!("`cargo bench --bench events` on {}\n", bench::machine());
        judge::built();
        let slow = ["without the guard", "guard, delivery: Inline", "guard, delivery: Background"];
        let slow = slow.map(|how| thread::spawn(move || slow_app(how)));
        let away = ["WhenNotTaken", "WhenUnsure"].map(|redeliver| thread::spawn(move || restart(redeliver)));
        println!("{MESSAGES} messages while the app needs {SLOW:?} for each after-command:\n");
        println!(
            "| | took | messages over 1 s | worst | events arrived {SOON:?} later | in the end | lost |"
        );
        println!("|---|--:|--:|--:|--:|--:|--:|");
        let mut good = true;
        for run in slow {
            let row = run.join().map_err(|_| "a run panicked")?;
            println!("{}", row.text);
            good &= row.good;
        }
        println!("\n{EVENTS} events, {} a second, while the app is away for {AWAY:?}:\n", 1_000 / PAUSE);
        println!("| redeliver | arrived | delivered | twice | lost | of them with a line |");
        println!("|---|--:|--:|--:|--:|--:|");
        for run in away {
            let row = run.join().map_err(|_| "a run panicked")?;
            println!("{}", row.text);
            good &= row.good;
        }
        good &= beside_a_full_queue()?;
        println!("\n{}", bench::machine());
        Ok(good)
    })
}

struct Row {
    text: String,
    good: bool,
}

fn sample(command: &str) -> Value {
    let mut sample = support::callbacks::sample(command);
    sample["callbackCommand"] = command.into();
    sample["operationID"] = "OPERATION".into();
    sample
}

fn judge(folder: &Folder) -> Judge {
    let trusted = folder.write("ca.pem", Authority::common().pem());
    Judge::with_environment(&[("SSL_CERT_FILE", trusted.to_str().expect("UTF-8"))])
}

/// The events that the app got, by their operation ID.
fn arrived(app: &App) -> BTreeMap<String, usize> {
    let mut arrived = BTreeMap::new();
    for asked in app.asked().iter().filter(|asked| asked.command() == AFTER) {
        *arrived.entry(asked.values("operationID")[0].to_owned()).or_insert(0) += 1;
    }
    arrived
}

/// Waits until no more events come.
fn in_the_end(mut arrived: impl FnMut() -> usize, wanted: usize) -> usize {
    let begun = Instant::now();
    let (mut last, mut since) = (arrived(), Instant::now());
    while last < wanted && since.elapsed() < STILL && begun.elapsed() < LONGEST {
        bench::pause(Duration::from_millis(200));
        let now = arrived();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

fn slow_app(how: &str) -> Row {
    let app = App::start(|asked: &Asked| {
        let work = if asked.command() == AFTER { vec![Act::Work(SLOW)] } else { Vec::new() };
        [work, vec![Act::json(ALLOW)]].concat()
    });
    let policy = how.strip_prefix("guard, ").map(|delivery| format!("defaults: {{after: {{{delivery}}}}}"));
    let guard = policy.map(|policy| Guard::with(policy).upstream(&app).start());
    let url = match &guard {
        Some(guard) => format!("https://localhost:{}/cb", guard.listen().port()),
        None => format!("{}/cb", app.url()),
    };
    let folder = Folder::new();
    let begun = Instant::now();
    let answer = judge(&folder).ask(
        [json!({
            "do": "messages", "url": url, "times": MESSAGES, "timeout": OPENIM_TIMEOUT,
            "command": BEFORE, "request": sample(BEFORE), "after": AFTER, "afterRequest": sample(AFTER),
        })]
        .into_iter(),
    );
    let took = begun.elapsed();
    let times: Vec<f64> =
        serde_json::from_value(answer[0].clone()).unwrap_or_else(|_| panic!("{how}: {answer:?}"));
    bench::pause(SOON);
    let soon = arrived(&app).len();
    let end = in_the_end(|| arrived(&app).len(), MESSAGES);
    let (over, worst) =
        (times.iter().filter(|time| **time > 1_000.0).count(), times.iter().copied().fold(0.0, f64::max));
    let good = !how.contains("Background") || (over == 0 && end == MESSAGES);
    let text = format!(
        "| {how} | {:.1} s | {over} | {worst:.0} ms | {soon} | {end} | {} |",
        took.as_secs_f64(),
        MESSAGES - end
    );
    Row { text, good }
}

fn restart(redeliver: &str) -> Row {
    let script = |_: &Asked| vec![Act::Work(WORK), Act::json(ALLOW)];
    let app = App::start(script);
    let address = app.url().trim_start_matches("http://").parse().expect("an address");
    let policy = format!("defaults: {{after: {{redeliver: {redeliver}}}}}");
    let guard = Guard::with(policy).upstream(&app).start();
    let url = format!("https://localhost:{}/cb", guard.listen().port());
    let folder = Folder::new();
    let mut judge = judge(&folder);
    let sending = thread::spawn(move || {
        let job = json!({
            "do": "messages", "url": url, "times": EVENTS, "timeout": OPENIM_TIMEOUT, "pause": PAUSE,
            "after": AFTER, "afterRequest": sample(AFTER),
        });
        judge.ask([job].into_iter());
        // OpenIM's own queue is emptied.
        bench::pause(Duration::from_secs(2));
    });
    bench::pause(UP);
    // Killed with what it has in work.
    let mut seen = arrived(&app);
    drop(app);
    bench::pause(AWAY);
    let app = App::start_at(address, script);
    let _ = sending.join();
    let before = seen.len();
    in_the_end(|| before + arrived(&app).len(), EVENTS);
    for (id, times) in arrived(&app) {
        *seen.entry(id).or_insert(0) += times;
    }
    let twice = seen.values().filter(|times| **times > 1).count();
    guard.wait_for_log(|line| line.contains("\"delivery\":"));
    let lines = guard.log_lines();
    let count = |delivery: &str| {
        let quoted = format!("\"delivery\":\"{delivery}\"");
        lines.iter().filter(|line| line.contains(&quoted)).count()
    };
    let (delivered, lost) = (count("delivered"), count("lost"));
    let counted = guard.count("callback_guard_after_lost_total", &[]);
    let good =
        delivered + lost == EVENTS && counted == lost as f64 && (redeliver == "WhenNotTaken" || lost == 0);
    let text = format!("| {redeliver} | {} | {delivered} | {twice} | {counted} | {lost} |", seen.len());
    Row { text, good }
}

/// Resident memory of a guard, KiB.
fn resident(guard: &Guard) -> i64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", guard.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Callbacks that OpenIM waits for, in turns at two guards.
fn beside_a_full_queue() -> Result<bool, Box<dyn Error>> {
    let app = App::allowing();
    let mut until = String::new();
    callback_guard::log::timestamp(&mut until, SystemTime::now() + Duration::from_secs(3_600));
    let over =
        format!("{{answer: Allow, commands: [\"callbackAfter*\"], until: \"{until}\", reason: bench}}");
    let guard = || {
        Guard::with("")
            .upstream(&app)
            .file("--override-file", "override.yaml", &over)
            .flag("--after-queue", (2 * QUEUED).to_string())
            .flag("--after-queue-bytes", "64MiB")
            .start_quietly("off")
    };
    let (empty, full) = (guard(), guard());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let times = runtime.block_on(async {
        let mut filler = Caller::h1(&full).await;
        let event = Call::new(AFTER);
        for _ in 0..QUEUED {
            filler.send(&event).await;
        }
        let mut callers = [Caller::h1(&empty).await, Caller::h1(&full).await];
        let mut times = [Vec::new(), Vec::new()];
        let call = Call::new(BEFORE);
        for _ in 0..TURNS {
            for (caller, times) in callers.iter_mut().zip(&mut times) {
                for _ in 0..CALLS {
                    let begun = Instant::now();
                    caller.send(&call).await;
                    times.push(begun.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
        times
    });
    let queued = full.metric("callback_guard_after_queue_events");
    println!("\nCallbacks that OpenIM waits for, {} of each in turns, one after another:\n", TURNS * CALLS);
    println!("| events queued | p50 | p99 |");
    println!("|--:|--:|--:|");
    let at = |times: &[f64], share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let mut medians = Vec::new();
    for (queued, mut times) in [0.0, queued].into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        medians.push(at(&times, 0.5));
        println!("| {queued} | {:.0} us | {:.0} us |", at(&times, 0.5), at(&times, 0.99));
    }
    let (counted, taken) =
        (full.metric("callback_guard_after_queue_bytes") / 1024.0, resident(&full) - resident(&empty));
    println!("\nThese events count as {counted:.0} KiB, and take {taken} KiB of resident memory.");
    // In turns on one machine: a tenth is more than the noise of a median.
    Ok(queued == QUEUED as f64 && medians[1] < 1.1 * medians[0])
}
