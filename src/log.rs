//! Log lines through a bounded queue to a writer of their own.
//!
//! Whoever reads the log may stop reading, and a server that writes to its standard output itself then stops
//! answering. Here a line is bytes appended to a buffer under a short lock; a thread takes the buffer away and
//! writes it. When the buffer is full, lines are dropped and counted. The thread sleeps while there is nothing to
//! write, and is woken by the first line only: a busy guard costs it one wake-up for many lines.
//!
//! Lines about callbacks are formatted here by hand, ten times cheaper than through `tracing`; all others go through
//! `tracing` into the same queue.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use tracing::Dispatch;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::callback::SHOWN_OPERATION_ID;
use crate::reply::{Origin, Why};
use crate::verdict::{Finding, Findings, Verdict};
pub use delivery::Delivery;
pub use repeated::Repeated;
pub use text::{is_unsafe, shown};
use text::{quoted, safe};

mod delivery;
mod repeated;
mod text;

/// Bytes of lines that may wait: some 3,000 of them.
const QUEUE_BYTES: usize = 1 << 20;

/// How long the writer lets lines gather behind the first one.
const GATHER: Duration = Duration::from_millis(10);

/// How long the time of day may be worked out from the monotonic clock.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// How long the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_millis(500);

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The queue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queue {
    shared: Arc<Shared>,
    dropped: Counter,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// Whether the writer has taken lines that are not written yet.
    writing: bool,
}

impl Queue {
    /// Starts the writer. It ends with the process.
    pub fn start(mut out: impl Write + Send + 'static) -> Queue {
        let shared =
            Arc::new(Shared { state: Mutex::default(), filled: Condvar::new(), written: Condvar::new() });
        let queue = Queue { shared: Arc::clone(&shared), dropped: Counter::default() };
        let write = move || {
            let mut lines = Vec::new();
            loop {
                {
                    let mut state = lock(&shared.state);
                    state.writing = false;
                    shared.written.notify_all();
                    while state.waiting.is_empty() {
                        state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
                #[allow(
                    clippy::disallowed_methods,
                    reason = "this thread does nothing else; lines gather meanwhile"
                )]
                thread::sleep(GATHER);
                {
                    let mut state = lock(&shared.state);
                    std::mem::swap(&mut state.waiting, &mut lines);
                    state.writing = true;
                }
                // Nobody can be told that the log cannot be written.
                let _ = out.write_all(&lines).and_then(|()| out.flush());
                lines.clear();
            }
        };
        let started = thread::Builder::new().name("log".to_owned()).spawn(write);
        started.expect("a process that cannot start its second thread cannot serve");
        queue
    }

    /// A queue that nothing is written from.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn unwritten() -> Queue {
        let shared = Shared { state: Mutex::default(), filled: Condvar::new(), written: Condvar::new() };
        Queue { shared: Arc::new(shared), dropped: Counter::default() }
    }

    /// Takes the lines that wait.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.shared.state).waiting)
    }

    /// Appends a line, its newline included; drops it when the queue is full.
    pub fn push(&self, line: &[u8]) {
        let mut state = lock(&self.shared.state);
        if state.waiting.len() + line.len() > QUEUE_BYTES {
            drop(state);
            self.dropped.inc();
            return;
        }
        let first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        drop(state);
        if first {
            self.shared.filled.notify_one();
        }
    }

    /// Counts what was dropped.
    pub fn dropped(&self) -> Counter {
        self.dropped.clone()
    }

    /// Waits until everything is written, or half a second has passed: a reader that is gone does not hold up the end.
    pub fn flush(&self) {
        repeated::write_all_waiting();
        let until = Instant::now() + FLUSH;
        let mut state = lock(&self.shared.state);
        while state.writing || !state.waiting.is_empty() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.shared.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends everything that is logged through `tracing` into the queue. Once a process; later calls do nothing.
pub fn install(queue: &Queue, level: LevelFilter, format: Format) {
    let _ = dispatch(queue, level, format).try_init();
}

/// What sends everything that is logged through `tracing` into the queue.
pub(crate) fn dispatch(queue: &Queue, level: LevelFilter, format: Format) -> Dispatch {
    // What libraries say below a warning is for those who write them: frames and states, a dozen lines a callback.
    let theirs = level.min(LevelFilter::WARN);
    // kube writes whole answers of the API server into its warnings; what is wrong there is told by `source`.
    let filter = Targets::new().with_default(theirs).with_target("kube_client", LevelFilter::OFF);
    // h2 warns of each odd frame, and a caller sends millions of them; what ends a connection is counted and logged here.
    let filter = filter.with_target("h2", LevelFilter::OFF);
    let filter = filter.with_target("callback_guard", level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(Lines(queue.clone(), format)).with_target(false);
    match format {
        Format::Json => Dispatch::new(registry.with(layer.json().flatten_event(true))),
        Format::Text => Dispatch::new(registry.with(layer.with_ansi(false).compact())),
    }
}

struct Lines(Queue, Format);

/// One line under construction; pushed whole when it is done.
struct Line(Queue, Format, Vec<u8>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.0.clone(), self.1, Vec::new())
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.2.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.0.push(&safe(&self.2, self.1));
    }
}

/// One callback's line.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'d> {
    /// OpenIM's tracing ID; its beginning is shown.
    pub operation_id: &'d str,
    /// What the request's header had in its place; its beginning is shown.
    pub header_operation_id: Option<&'d str>,
    /// The command as it was sent.
    pub command: &'d str,
    /// The rule that matched; empty for a rejection.
    pub rule: &'d str,
    /// What was answered.
    pub verdict: Verdict,
    /// Who decided.
    pub origin: Origin,
    /// Why it was not the app.
    pub why: Why,
    /// What was corrected or noticed.
    pub findings: Findings,
    /// From the end of the head to the answer.
    pub took: Duration,
    /// What went wrong, in words; never content of a message.
    pub detail: Option<&'d str>,
    /// What would have been answered, were the mode not Observe.
    pub instead: Option<(Verdict, Why)>,
    /// The reason of the override that decided.
    pub over: Option<&'d str>,
}

impl Decision<'_> {
    /// Whether somebody should look at it: neither the app nor a rule decided, or OpenIM might have ended on what the app said.
    pub fn is_warning(&self) -> bool {
        self.level() == LevelFilter::WARN
    }

    /// How much it matters. The line of an event that is delivered in the background is its last one, which comes later.
    pub fn level(&self) -> LevelFilter {
        match self.origin {
            Origin::Upstream | Origin::Rule if self.findings.has(Finding::CrashPrevented) => {
                LevelFilter::WARN
            }
            Origin::Upstream | Origin::Rule => LevelFilter::INFO,
            Origin::Fallback | Origin::Rejection => LevelFilter::WARN,
            Origin::Queued => LevelFilter::DEBUG,
        }
    }

    fn level_word(&self) -> &'static str {
        match self.level() {
            LevelFilter::WARN => "WARN",
            LevelFilter::DEBUG => "DEBUG",
            _ => "INFO",
        }
    }

    /// Adds how many such callbacks a line stands for.
    pub fn add_count(line: &mut String, format: Format, count: u64) {
        line.truncate(line.trim_end_matches(['}', '\n']).len());
        let _ = match format {
            Format::Json => writeln!(line, ",\"count\":{count}}}"),
            Format::Text => writeln!(line, " count={count}"),
        };
    }

    /// The line, its newline included, appended to `line`; `stamp` is a [`timestamp`].
    pub fn write(&self, line: &mut String, format: Format, stamp: &str) {
        match format {
            Format::Json => self.json(line, stamp),
            Format::Text => self.text(line, stamp),
        }
    }

    fn json(&self, line: &mut String, stamp: &str) {
        line.push_str("{\"timestamp\":\"");
        line.push_str(stamp);
        line.push_str("\",\"level\":\"");
        line.push_str(self.level_word());
        line.push_str("\",\"message\":\"Callback answered\",\"operationID\":");
        quoted(line, beginning(self.operation_id));
        if let Some(id) = self.header_operation_id {
            line.push_str(",\"headerOperationID\":");
            quoted(line, beginning(id));
        }
        line.push_str(",\"command\":");
        quoted(line, beginning(self.command));
        line.push_str(",\"rule\":");
        quoted(line, self.rule);
        verdict(line, ",\"verdict\":\"", self.verdict, ",\"errCode\":");
        line.push_str(",\"origin\":\"");
        line.push_str(self.origin.label());
        line.push_str("\",\"cause\":\"");
        line.push_str(self.why.label());
        line.push('"');
        if !self.findings.is_empty() {
            let _ = write!(line, ",\"finding\":\"{}\"", self.findings);
        }
        let micros = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        line.push_str(",\"duration_ms\":");
        digits(line, micros / 1000, 1);
        line.push('.');
        digits(line, micros % 1000, 3);
        if let Some((would, why)) = self.instead {
            verdict(line, ",\"enforceVerdict\":\"", would, ",\"enforceErrCode\":");
            let _ = write!(line, ",\"enforceCause\":\"{}\"", why.label());
        }
        for (key, text) in [(",\"override\":", self.over), (",\"detail\":", self.detail)] {
            if let Some(text) = text {
                line.push_str(key);
                quoted(line, text);
            }
        }
        line.push_str("}\n");
    }

    fn text(&self, line: &mut String, stamp: &str) {
        let level = self.level_word();
        let _ = write!(line, "{} {level:>5} ", stamp.get(11..23).unwrap_or(stamp));
        match self.verdict {
            Verdict::Allow => line.push_str("allow     "),
            Verdict::Deny { code } => {
                let _ = write!(line, "deny {code:<5}");
            }
        }
        let micros = self.took.as_micros();
        let millis = format!("{}.{:01}ms", micros / 1000, micros % 1000 / 100);
        let why = if self.why == Why::Nothing { String::new() } else { format!("/{}", self.why.label()) };
        let origin = format!("{}{why}", self.origin.label());
        let _ = write!(line, " {millis:>10}  {origin:<24} {:<40}", shown(beginning(self.command)));
        let _ = write!(line, " operationID={}", shown(beginning(self.operation_id)));
        if let Some(id) = self.header_operation_id {
            let _ = write!(line, " headerOperationID={}", shown(beginning(id)));
        }
        if !self.rule.is_empty() && self.rule != "default" {
            let _ = write!(line, " rule={:?}", self.rule);
        }
        if !self.findings.is_empty() {
            let _ = write!(line, " finding={}", self.findings);
        }
        if let Some((would, why)) = self.instead {
            let _ = write!(line, " enforce={would:?}/{}", why.label());
        }
        for (key, text) in [("override", self.over), ("detail", self.detail)] {
            if let Some(text) = text {
                let _ = write!(line, " {key}={text:?}");
            }
        }
        line.push('\n');
    }
}

/// The beginning of an operation ID or a command: both are as long as a caller likes.
pub fn beginning(text: &str) -> &str {
    if text.len() <= SHOWN_OPERATION_ID {
        return text;
    }
    text.char_indices().nth(SHOWN_OPERATION_ID).map_or(text, |(end, _)| &text[..end])
}

fn verdict(line: &mut String, key: &str, verdict: Verdict, code_key: &str) {
    line.push_str(key);
    match verdict {
        Verdict::Allow => line.push_str("allow\""),
        Verdict::Deny { code } => {
            let _ = write!(line, "deny\"{code_key}{code}");
        }
    }
}

/// Where the milliseconds stand in a [`timestamp`].
const MILLIS_AT: usize = "2000-01-01T00:00:00.".len();

/// The time of the last line. Of the next one mostly the milliseconds alone are new, and those are told by the clock that
/// has been read anyway: the time of day is asked once a second.
#[derive(Debug, Default)]
pub struct Clock {
    read: Option<(Instant, SystemTime)>,
    second: u64,
    stamp: String,
}

impl Clock {
    /// The [`timestamp`] of this moment.
    pub fn stamp(&mut self, now: Instant) -> &str {
        let read = self.read.map(|(at, time)| (now.saturating_duration_since(at), time));
        let time = match read {
            Some((since, time)) if since < READ_AGAIN => time + since,
            _ => {
                let time = SystemTime::now();
                self.read = Some((now, time));
                time
            }
        };
        self.of(time)
    }

    fn of(&mut self, time: SystemTime) -> &str {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() == self.second && !self.stamp.is_empty() {
            self.stamp.truncate(MILLIS_AT);
            digits(&mut self.stamp, since.subsec_millis().into(), 3);
            self.stamp.push('Z');
        } else {
            self.second = since.as_secs();
            self.stamp.clear();
            timestamp(&mut self.stamp, time);
        }
        &self.stamp
    }
}

/// RFC 3339 in UTC with milliseconds, appended. Days become a date by Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>).
pub fn timestamp(line: &mut String, now: SystemTime) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let parts =
        [(year, 4, '-'), (month, 2, '-'), (day, 2, 'T'), (hour, 2, ':'), (minute, 2, ':'), (second, 2, '.')];
    for (number, width, behind) in parts {
        digits(line, number, width);
        line.push(behind);
    }
    digits(line, millis.into(), 3);
    line.push('Z');
}

/// A number with zeros in front up to a width. Every line has nine of them, a third of its cost by std's formatting.
fn digits(line: &mut String, mut number: u64, width: usize) {
    if number < 1000 && width <= 3 {
        let written = if number < 10 { 1 } else { 2 + usize::from(number >= 100) };
        let end = 3 * (number as usize + 1);
        line.push_str(&THREE_DIGITS[end - written.max(width)..end]);
        return;
    }
    let mut text = [b'0'; 20];
    let mut at = text.len();
    while number > 0 || at > text.len() - width {
        at -= 1;
        text[at] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    line.push_str(std::str::from_utf8(&text[at..]).unwrap_or_default());
}

/// All numbers below 1,000 with zeros in front, one behind the other: of a callback's line all but the date is such numbers.
static THREE_DIGITS: &str = {
    const TEXT: [u8; 3000] = {
        let mut text = [b'0'; 3000];
        let mut number = 0;
        while number < 1000 {
            text[3 * number] += (number / 100) as u8;
            text[3 * number + 1] += (number / 10 % 10) as u8;
            text[3 * number + 2] += (number % 10) as u8;
            number += 1;
        }
        text
    };
    match std::str::from_utf8(&TEXT) {
        Ok(text) => text,
        Err(_) => unreachable!(),
    }
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Cause;

    fn at(seconds: u64) -> String {
        let mut out = String::new();
        timestamp(&mut out, UNIX_EPOCH + Duration::from_secs(seconds));
        out
    }

    #[test]
    fn numbers_have_as_many_zeros_in_front_as_they_need() {
        for number in (0..1100).chain([9_999, 10_000, u64::MAX]) {
            for width in 0..5 {
                let mut written = String::new();
                digits(&mut written, number, width);
                assert_eq!(written, format!("{number:0width$}"));
            }
        }
    }

    #[test]
    fn timestamps_are_dates() {
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00.000Z");
        assert_eq!(at(1_795_392_000 - 1), "2026-11-22T23:59:59.000Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn a_clock_tells_the_time_of_each_line() {
        let mut clock = Clock::default();
        for millis in [0, 7, 999, 1000, 1999, 1500, 951_868_799_999, 951_868_800_000] {
            let now = UNIX_EPOCH + Duration::from_millis(millis);
            let mut expected = String::new();
            timestamp(&mut expected, now);
            assert_eq!(clock.of(now), expected);
        }
    }

    #[test]
    fn a_clock_asks_for_the_time_of_day_once_a_second() {
        let mut clock = Clock::default();
        let begun = Instant::now();
        let stamp = |clock: &mut Clock, millis| clock.stamp(begun + Duration::from_millis(millis)).to_owned();
        let first = stamp(&mut clock, 0);
        let read = clock.read;
        clock.read = read.map(|(at, _)| (at, UNIX_EPOCH));
        assert_eq!(stamp(&mut clock, 999), "1970-01-01T00:00:00.999Z");
        // In between it may have been set.
        assert!(stamp(&mut clock, 1000) >= first);
        assert_ne!(clock.read, read);
    }

    fn decision() -> Decision<'static> {
        Decision {
            operation_id: "16464\"\n",
            header_operation_id: None,
            command: "callbackBeforeSendSingleMsgCommand",
            rule: "pictures",
            verdict: Verdict::Deny { code: 5101 },
            origin: Origin::Fallback,
            why: Why::Cause(Cause::Timeout),
            findings: [Finding::FieldType].into_iter().collect(),
            took: Duration::from_micros(300_042),
            detail: Some("no whole answer"),
            instead: None,
            over: None,
        }
    }

    #[test]
    fn a_decision_is_one_json_object_with_its_fields() {
        let mut line = String::new();
        decision().write(&mut line, Format::Json, &at(0));
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        for (key, expected) in [
            ("operationID", "16464\"\n"),
            ("command", "callbackBeforeSendSingleMsgCommand"),
            ("rule", "pictures"),
            ("verdict", "deny"),
            ("origin", "fallback"),
            ("cause", "timeout"),
            ("finding", "field-type"),
            ("level", "WARN"),
        ] {
            assert_eq!(json[key], expected, "{key}");
        }
        assert_eq!(json["errCode"], 5101);
        assert_eq!(json["duration_ms"], 300.042);
    }

    #[test]
    fn a_count_is_one_more_field() {
        for (format, expected) in
            [(Format::Json, ",\"detail\":\"{}\",\"count\":7}\n"), (Format::Text, " detail=\"{}\" count=7\n")]
        {
            let mut line = String::new();
            Decision { detail: Some("{}"), ..decision() }.write(&mut line, format, &at(0));
            Decision::add_count(&mut line, format, 7);
            assert!(line.ends_with(expected), "{line}");
        }
    }

    #[test]
    fn no_text_of_a_decision_is_passed_on_with_unsafe_characters() {
        let sly = "a\u{9b}31m\u{2028}b\u{202e}c\n";
        for format in [Format::Json, Format::Text] {
            let mut line = String::new();
            let (detail, over) = (Some(sly), Some(sly));
            Decision { operation_id: sly, command: sly, rule: sly, detail, over, ..decision() }.write(
                &mut line,
                format,
                &at(0),
            );
            let line = line.strip_suffix('\n').expect("a line");
            assert!(!line.contains(is_unsafe), "{line:?}");
        }
    }

    #[test]
    fn a_long_operation_id_is_cut_and_a_line_for_people_has_no_control_characters() {
        let long = "é".repeat(40_000);
        let mut line = String::new();
        Decision { operation_id: &long, command: &long, ..decision() }.write(&mut line, Format::Json, &at(0));
        assert!(line.len() < 1000, "{} bytes", line.len());
        line.clear();
        decision().write(&mut line, Format::Text, &at(0));
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_never_time() {
        struct Stalled(std::sync::mpsc::Receiver<()>);
        impl Write for Stalled {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stalled) = std::sync::mpsc::channel();
        let queue = Queue::start(Stalled(stalled));
        let line = vec![b'x'; 1000];
        for _ in 0..3 * QUEUE_BYTES / 1000 {
            queue.push(&line);
        }
        let dropped = queue.dropped().get();
        assert!(dropped as usize >= QUEUE_BYTES / 1000, "{dropped} dropped");
        drop(release);
        queue.flush();
        queue.push(&line);
        assert_eq!(queue.dropped().get(), dropped, "a reader that is back gets lines again");
    }
}
