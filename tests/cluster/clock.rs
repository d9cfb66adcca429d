//! A process whose clock differs from this machine's: libfaketime (Debian: faketime) changes the time of day that it reads, and
//! nothing else. Its waits and timeouts, its children's programs and the times of files stay as they are.
//!
//! The program must be linked dynamically, as our debug build is: kubectl, etcd and the image of the guard are not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use callback_guard::log::timestamp;

use super::cluster::{clean, eventually, run};
use super::process::Process;
use super::support::{Act, App, Call, Caller, Folder, Guard};

/// A clock for any number of processes, which follow it at once when it is shifted. Drop it after they have ended.
#[derive(Debug)]
pub(crate) struct Clock {
    folder: Folder,
    library: PathBuf,
}

impl Clock {
    /// A clock that is shifted from this machine's: see [`Clock::shift`].
    pub(crate) fn new(shift: &str) -> Clock {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
        let library = libraries.into_iter().find(|library| library.exists());
        let library = library.expect("libfaketime is missing (Debian: faketime); tests/run installs it");
        let clock = Clock { folder: Folder::new(), library };
        clock.shift(shift);
        clock
    }

    /// Shifts it from this machine's clock, not from where it is: `+1d`, `-90` (seconds), `+0`.
    pub(crate) fn shift(&self, by: &str) {
        assert!(by.starts_with(['+', '-']), "{by}: a time without a sign would stop the clock");
        self.folder.write("clock", format!("{by}\n"));
    }

    /// The variables that have a process use this clock.
    pub(crate) fn variables(&self) -> [(&'static str, String); 5] {
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        [
            ("LD_PRELOAD", path(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", path(&self.folder.path().join("clock"))),
            // Read each time: the default is every 10 s.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
    }

    /// Has a command use this clock.
    pub(crate) fn apply<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        // It would override the file.
        command.env_remove("FAKETIME").envs(self.variables())
    }
}

impl Drop for Clock {
    /// Removes what libfaketime leaves in `/dev/shm` when its process is killed.
    fn drop(&mut self) {
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid =
                ["faketime_shm_", "sem.faketime_sem_"].iter().find_map(|prefix| name.strip_prefix(prefix));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

const DAY: i64 = 86_400;

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time - by } else { time + by }
}

#[test]
fn a_command_reads_the_shifted_time_and_one_without_the_clock_does_not() {
    let clock = Clock::new("+0");
    for (shift, seconds) in [("+1d", DAY), ("-1d", -DAY), ("+90", 90), ("+0", 0)] {
        clock.shift(shift);
        for (apply, seconds) in [(true, seconds), (false, 0)] {
            let mut date = clean("date");
            if apply {
                clock.apply(&mut date);
            }
            let before = SystemTime::now();
            let read = run(date.args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]), None).expect("date prints a time");
            assert_time(read.trim(), before, seconds);
        }
    }
}

#[test]
fn a_wait_ends_while_the_clock_is_shifted_back() {
    let clock = Clock::new("+1d");
    let sleeping = Process::start(clock.apply(clean("sleep").arg("1")));
    clock.shift("-1d");
    assert_eq!(sleeping.wait_exit(), 0);
}

#[tokio::test]
async fn a_guard_logs_the_shifted_time_and_its_timeouts_pass_as_without_it() {
    let clock = Clock::new("+1d");
    let app = App::start(|_| vec![Act::Silence]);
    let guard =
        Guard::with("defaults: {timeout: 1500ms, fallback: Deny, deny: {errCode: 5001}}").upstream(&app);
    let guard = clock.variables().iter().fold(guard, |guard, (name, value)| guard.env(name, value));
    let before = SystemTime::now();
    let guard = guard.start();
    let listening = guard.wait_for_log(|line| line.contains("\"Listening\""));
    let listening: serde_json::Value = serde_json::from_str(&listening).expect("a line is JSON");
    assert_time(listening["timestamp"].as_str().expect("a text"), before, DAY);
    assert_eq!(guard.admin("/livez").0, 200);

    let mut caller = Caller::h2(&guard).await;
    for (round, (shift, seconds)) in [("-1d", -DAY), ("+0", 0)].into_iter().enumerate() {
        // Shifted while a timeout runs.
        let call = Call::new("callbackBeforeSendSingleMsgCommand");
        let shifting = async {
            app.wait_for_asked(2 * round + 1).await;
            clock.shift(shift);
        };
        let (answer, ()) = tokio::join!(caller.send(&call), shifting);
        assert_eq!(answer.json()["errCode"], 5001);
        // The guard's log reads the time of day once a second, so this one's line has a time read after the shift.
        let call = Call::new("callbackBeforeSendSingleMsgCommand");
        let before = SystemTime::now();
        assert_eq!(caller.send(&call).await.json()["errCode"], 5001);
        let line = guard.decision(&call.operation_id());
        assert_time(line["timestamp"].as_str().expect("a text"), before, seconds);
        assert_eq!(guard.admin("/livez").0, 200);
    }
}

/// Asserts that a time was read between `before` and now, on a clock that is so many seconds ahead; give or take 1 s.
#[track_caller]
fn assert_time(read: &str, before: SystemTime, ahead: i64) {
    let [from, to] = [(before, ahead - 1), (SystemTime::now(), ahead + 1)].map(|(time, seconds)| {
        let mut text = String::new();
        timestamp(&mut text, shifted(time, seconds));
        text
    });
    assert!(*from <= *read && *read <= *to, "{read} is not from {from} to {to}");
}

#[test]
fn what_a_killed_process_leaves_in_memory_is_removed() {
    let clock = Clock::new("+1d");
    let sleeping = Process::start(clock.apply(clean("sleep").arg("1000")));
    let left = Path::new("/dev/shm").join(format!("faketime_shm_{}", sleeping.pid()));
    eventually("its shared memory", || left.exists().then_some(()));
    drop(Clock::new("+0"));
    assert!(left.exists(), "its process runs");
    // Killed, so it cannot remove anything itself.
    drop(sleeping);
    drop(clock);
    assert!(!left.exists());
}
