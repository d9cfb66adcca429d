//! What is printed: lines of 80 columns for people, JSON for programs, JUnit's XML for CI.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::advice::{Advice, Severity};
use super::effects::Does;
use super::failure::Failure;
use super::judge::{Judged, Outcome, seen};
use super::load::Loaded;
use crate::callback::target::Form;

/// Widest line. A terminal of 80 columns breaks after it.
const WIDTH: usize = 79;

/// Where the outcome stands: behind the longest command.
const OUTCOME_COLUMN: usize = 51;

/// How wide it is.
const OUTCOME_WIDTH: usize = 19;

/// One callback and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) command: String,
    /// What is special about the callback; empty for the usual one.
    pub(super) special: String,
    pub(super) operation_id: String,
    pub(super) status: Option<u16>,
    pub(super) h2: bool,
    pub(super) took: Duration,
    pub(super) judged: Judged,
}

/// A whole run.
#[derive(Debug)]
pub(super) struct Run {
    /// The URL without its user.
    pub(super) url: String,
    pub(super) form: Form,
    pub(super) timeout: Duration,
    pub(super) cases: Vec<Case>,
    /// Why it ended before its end.
    pub(super) stopped: Option<Failure>,
    pub(super) loaded: Option<Loaded>,
}

impl Run {
    /// Whether the exit code is 1.
    pub(super) fn is_bad(&self) -> bool {
        self.stopped.is_some()
            || self.cases.iter().any(|case| case.judged.is_bad())
            || self.loaded.as_ref().is_some_and(|loaded| loaded.bad() > 0)
    }
}

/// A colour, by its ANSI code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Green => "32",
            Paint::Yellow => "33",
            Paint::Red => "31",
        }
    }
}

/// Lines for people.
pub(super) struct Screen<'o> {
    out: &'o mut dyn Write,
    colour: bool,
    headed: bool,
}

impl<'o> Screen<'o> {
    pub(super) fn new(out: &'o mut dyn Write, colour: bool) -> Screen<'o> {
        Screen { out, colour, headed: false }
    }

    fn painted(&self, paint: Paint, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", paint.code()) } else { text.to_owned() }
    }

    /// A paragraph whose first line begins with `lead`, in its colour, and the others under its end; without one the
    /// text has the colour.
    fn paragraph(&mut self, indent: usize, lead: &str, paint: Paint, text: &str) -> io::Result<()> {
        let blank = " ".repeat(lead.chars().count());
        for (at, line) in wrapped(text, WIDTH - indent - blank.len()).iter().enumerate() {
            let (lead, line) = match lead {
                "" => (String::new(), self.painted(paint, line)),
                lead if at == 0 => (self.painted(paint, lead), line.clone()),
                _ => (blank.clone(), line.clone()),
            };
            writeln!(self.out, "{:indent$}{lead}{line}", "")?;
        }
        Ok(())
    }

    /// Whom OpenIM is asking, once.
    pub(super) fn head(&mut self, run: &Run) -> io::Result<()> {
        if self.headed {
            return Ok(());
        }
        self.headed = true;
        let text = format!(
            "OpenIM, played here, asks {} and waits {} s for each answer.",
            run.url,
            run.timeout.as_secs()
        );
        self.paragraph(0, "", Paint::Bold, &text)?;
        writeln!(self.out)
    }

    /// One callback: a line, and below it what there is to say.
    pub(super) fn case(&mut self, case: &Case) -> io::Result<()> {
        let Case { command, special, took, judged, .. } = case;
        let paint = match &judged.outcome {
            Outcome::Network(_) | Outcome::Data(_) | Outcome::Fails(_) => Paint::Red,
            Outcome::Denied { .. } | Outcome::Redirected { .. } => Paint::Yellow,
            Outcome::Allowed | Outcome::Unread if judged.is_bad() => Paint::Yellow,
            Outcome::Allowed | Outcome::Unread => Paint::Green,
        };
        let label = format!("{:<OUTCOME_WIDTH$}", judged.outcome.label());
        let label = self.painted(paint, &label);
        writeln!(self.out, "{command:<OUTCOME_COLUMN$}{label}{:>9}", time(*took))?;
        if !special.is_empty() {
            self.paragraph(2, "", Paint::Dim, special)?;
        }
        if let Some(text) = judged.outcome.explanation() {
            self.paragraph(2, "", paint, &text)?;
        }
        for found in &judged.findings {
            self.finding(found, None)?;
        }
        self.effects(judged)
    }

    fn finding(&mut self, found: &Advice, times: Option<u64>) -> io::Result<()> {
        let paint = if found.severity == Severity::Serious { Paint::Red } else { Paint::Yellow };
        let times = times.map(|times| format!(" ({times} times)")).unwrap_or_default();
        let text = format!("{}{times}. {}", found.name, found.why);
        self.paragraph(2, &format!("{}: ", found.severity.label()), paint, &text)?;
        self.paragraph(4, "try: ", Paint::Dim, found.hint)?;
        self.paragraph(4, "see: ", Paint::Dim, &found.documentation())
    }

    fn effects(&mut self, judged: &Judged) -> io::Result<()> {
        for does in [Does::Wipes, Does::Replaces, Does::Echoes, Does::Keeps, Does::Ignores, Does::Unknown] {
            let of_this = judged.effects.iter().filter(|effect| effect.does == does);
            let words: Vec<_> = of_this
                .map(|effect| match does {
                    Does::Replaces => format!("{} with {}", effect.field, effect.value),
                    Does::Unknown if !effect.why.is_empty() => format!("{} ({})", effect.field, effect.why),
                    Does::Wipes | Does::Echoes | Does::Keeps | Does::Ignores | Does::Unknown => {
                        effect.field.clone()
                    }
                })
                .collect();
            if !words.is_empty() {
                self.paragraph(2, &format!("{:<9}", does.label()), Paint::Dim, &words.join(", "))?;
            }
        }
        Ok(())
    }

    /// What it all came to.
    pub(super) fn summary(&mut self, run: &Run) -> io::Result<()> {
        let cases = &run.cases;
        let count = |wanted: &dyn Fn(&Outcome) -> bool| {
            cases.iter().filter(|case| wanted(&case.judged.outcome)).count()
        };
        let found = |severity| {
            let findings = cases.iter().flat_map(|case| &case.judged.findings);
            findings.filter(|found| found.severity == severity).count()
        };
        let mut parts = vec![
            plural(count(&|outcome| *outcome == Outcome::Allowed), "allowed", "allowed"),
            plural(count(&|outcome| matches!(outcome, Outcome::Denied { .. })), "denied", "denied"),
            plural(count(&Outcome::is_error), "error", "errors"),
        ];
        let unread = count(&|outcome| *outcome == Outcome::Unread);
        if unread > 0 {
            parts.push(format!("{unread} read by nobody"));
        }
        let text = format!(
            "{}: {}; {}, {}.",
            plural(cases.len(), "callback", "callbacks"),
            parts.join(", "),
            plural(found(Severity::Serious), "serious finding", "serious findings"),
            plural(found(Severity::Note), "note", "notes"),
        );
        writeln!(self.out)?;
        self.paragraph(0, "", Paint::Bold, &text)
    }

    /// What a load came to.
    pub(super) fn load(&mut self, loaded: &Loaded) -> io::Result<()> {
        let histogram = &loaded.histogram;
        let text = format!(
            "{} callbacks in {}: {:.1} a second of the {} asked for, at most {} at once.",
            histogram.total(),
            time(loaded.took),
            loaded.rate_reached(),
            loaded.wanted.rate,
            loaded.wanted.concurrency
        );
        self.paragraph(0, "", Paint::Bold, &text)?;
        writeln!(self.out)?;
        for (label, count) in &loaded.outcomes {
            writeln!(self.out, "  {label:<40} {count:>8}")?;
        }
        writeln!(self.out)?;
        self.out.write_all(histogram.bars().as_bytes())?;
        writeln!(self.out)?;
        let at = |share| time(histogram.quantile(share));
        writeln!(
            self.out,
            "  p50 {}   p90 {}   p99 {}   max {}",
            at(0.5),
            at(0.9),
            at(0.99),
            time(histogram.longest())
        )?;
        writeln!(self.out, "  each counted from when it was due, waiting for its turn included")?;
        if loaded.late > 0 {
            let text = format!(
                "{} were sent more than 10 ms after they were due, the latest by {}: this machine was too slow",
                loaded.late,
                time(loaded.latest)
            );
            self.paragraph(2, "", Paint::Yellow, &text)?;
        }
        if !loaded.findings.is_empty() || !loaded.failures.is_empty() {
            writeln!(self.out)?;
        }
        for (failure, count) in loaded.failures.values() {
            self.paragraph(2, &format!("{count} times: "), Paint::Red, &failure.to_string())?;
        }
        for (found, count) in loaded.findings.values() {
            self.finding(found, Some(*count))?;
        }
        Ok(())
    }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A time of three digits, as a person says it.
pub(super) fn time(took: Duration) -> String {
    let millis = took.as_secs_f64() * 1000.0;
    match millis {
        ..9.95 => format!("{millis:.1} ms"),
        ..999.5 => format!("{millis:.0} ms"),
        ..9_995.0 => format!("{:.2} s", millis / 1000.0),
        _ => format!("{:.0} s", millis / 1000.0),
    }
}

/// Breaks a text between words, and a word that is longer than a line within it. What an app may have put there to
/// move the cursor is left out.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let letters: Vec<char> = word.chars().filter(|letter| !letter.is_control()).collect();
        for part in letters.chunks(width) {
            let part: String = part.iter().collect();
            let line = lines.last_mut().expect("there is always one");
            if line.is_empty() {
                *line = part;
            } else if line.chars().count() + 1 + part.chars().count() <= width {
                line.push(' ');
                line.push_str(&part);
            } else {
                lines.push(part);
            }
        }
    }
    lines
}

/// For programs.
pub(super) fn json(run: &Run) -> Json {
    let form = if run.form == Form::Path { "path" } else { "query" };
    json!({
        "url": run.url,
        "form": form,
        "timeoutSeconds": run.timeout.as_secs(),
        "ok": !run.is_bad(),
        "stopped": run.stopped.as_ref().map(failure_json),
        "callbacks": run.cases.iter().map(|case| case_json(case, run.timeout)).collect::<Vec<_>>(),
        "load": run.loaded.as_ref().map(load_json),
    })
}

fn failure_json(failure: &Failure) -> Json {
    json!({"kind": failure.kind.label(), "problem": failure.sentence, "try": failure.remedy})
}

fn finding_json(found: &Advice) -> Json {
    json!({
        "name": found.name,
        "severity": found.severity.label(),
        "found": found.found,
        "why": found.why,
        "try": found.hint,
        "documentation": found.documentation(),
    })
}

fn case_json(case: &Case, timeout: Duration) -> Json {
    let Judged { outcome, findings, effects } = &case.judged;
    let (code, user) = match outcome {
        Outcome::Denied { code } => (Some(*code), seen(*code)),
        Outcome::Network(_) => (Some(90004), None),
        Outcome::Data(_) => (Some(90007), None),
        Outcome::Allowed | Outcome::Unread | Outcome::Redirected { .. } | Outcome::Fails(_) => (None, None),
    };
    let failure = if let Outcome::Network(failure) = outcome { Some(failure_json(failure)) } else { None };
    let fields = effects.iter().map(|effect| {
        json!({"name": effect.field, "does": effect.does.label(), "value": effect.value, "why": effect.why})
    });
    json!({
        "command": case.command,
        "sample": case.special,
        "operationID": case.operation_id,
        "outcome": outcome.name(),
        "errCode": code,
        "seenByUser": user,
        "explanation": outcome.explanation(),
        "failure": failure,
        "status": case.status,
        "http": case.status.map(|_| if case.h2 { "2" } else { "1.1" }),
        "tookMilliseconds": millis(case.took),
        "shareOfTimeout": (case.took.as_secs_f64() / timeout.as_secs_f64() * 1000.0).round() / 1000.0,
        "findings": findings.iter().map(finding_json).collect::<Vec<_>>(),
        "fields": fields.collect::<Vec<_>>(),
    })
}

fn load_json(loaded: &Loaded) -> Json {
    let histogram = &loaded.histogram;
    let at = |share| millis(histogram.quantile(share));
    let with_count = |mut json: Json, count: u64| {
        json["times"] = count.into();
        json
    };
    json!({
        "rate": loaded.wanted.rate,
        "rateReached": loaded.rate_reached(),
        "seconds": loaded.took.as_secs_f64(),
        "concurrency": loaded.wanted.concurrency,
        "callbacks": histogram.total(),
        "bad": loaded.bad(),
        "outcomes": loaded.outcomes,
        "latencyMilliseconds": {
            "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": millis(histogram.longest()),
        },
        "buckets": histogram.buckets()
            .map(|(bound, count)| json!({"below": millis(bound), "count": count})).collect::<Vec<_>>(),
        "late": loaded.late,
        "latestMilliseconds": millis(loaded.latest),
        "failures": loaded.failures.values()
            .map(|(failure, count)| with_count(failure_json(failure), *count)).collect::<Vec<_>>(),
        "findings": loaded.findings.values()
            .map(|(found, count)| with_count(finding_json(found), *count)).collect::<Vec<_>>(),
    })
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// One test case for CI.
struct Test {
    name: String,
    took: Duration,
    /// Element and its attribute `type`.
    bad: Option<(&'static str, &'static str)>,
    message: String,
    text: String,
}

/// For CI: a test case a command, failed where the app should be mended.
pub(super) fn junit(run: &Run) -> String {
    let mut tests: Vec<Test> = run.cases.iter().map(test).collect();
    if let Some(loaded) = &run.loaded {
        tests.extend(loaded.commands.iter().map(|(command, (count, bad))| Test {
            name: command.clone(),
            took: loaded.histogram.quantile(0.99),
            bad: (*bad > 0).then_some(("failure", "load")),
            message: format!("{bad} of {count} answers were not good"),
            text: loaded.outcomes.iter().map(|(label, count)| format!("{count} {label}\n")).collect(),
        }));
    }
    if let Some(failure) = &run.stopped {
        tests.push(Test {
            name: "the app can be asked".to_owned(),
            took: Duration::ZERO,
            bad: Some(("error", failure.kind.label())),
            message: failure.to_string(),
            text: String::new(),
        });
    }
    let count = |element| tests.iter().filter(|test| test.bad.is_some_and(|bad| bad.0 == element)).count();
    let time: Duration = tests.iter().map(|test| test.took).sum();
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" time=\"{:.3}\"",
        tests.len(),
        count("failure"),
        count("error"),
        time.as_secs_f64()
    );
    let suite = escaped(&format!("callback-guard simulate {}", run.url));
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {counts}>\n  <testsuite name=\"{suite}\" {counts}>\n"
    );
    for test in &tests {
        test.write(&mut out);
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

fn test(case: &Case) -> Test {
    let Judged { outcome, findings, .. } = &case.judged;
    let serious = findings.iter().find(|found| found.severity == Severity::Serious);
    let bad = match (outcome.is_error(), serious) {
        (true, _) => Some(("error", outcome.name())),
        (false, Some(found)) => Some(("failure", found.name)),
        (false, None) => None,
    };
    let mut message = outcome.label();
    if let Some(more) = outcome.explanation() {
        let _ = write!(message, ": {more}");
    } else if let Some(found) = serious {
        let _ = write!(message, ": {}", found.found);
    }
    let lines = findings.iter().map(|found| {
        let Advice { name, severity, why, hint, .. } = found;
        format!("{}: {name}. {why} Try: {hint} ({})\n", severity.label(), found.documentation())
    });
    let special = if case.special.is_empty() { String::new() } else { format!(" ({})", case.special) };
    Test { name: format!("{}{special}", case.command), took: case.took, bad, message, text: lines.collect() }
}

impl Test {
    fn write(&self, out: &mut String) {
        let (name, took) = (escaped(&self.name), self.took.as_secs_f64());
        let head =
            format!("    <testcase classname=\"callback-guard.simulate\" name=\"{name}\" time=\"{took:.3}\"");
        let text = escaped(&self.text);
        let _ = match self.bad {
            Some((element, kind)) => writeln!(
                out,
                "{head}>\n      <{element} type=\"{kind}\" message=\"{}\">{text}</{element}>\n    </testcase>",
                escaped(&self.message)
            ),
            None if text.is_empty() => writeln!(out, "{head}/>"),
            None => writeln!(out, "{head}>\n      <system-out>{text}</system-out>\n    </testcase>"),
        };
    }
}

/// Text for an attribute or an element; what XML cannot hold at all becomes U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\t' => out.push(letter),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_holds_whatever_an_app_says() {
        assert_eq!(
            escaped("<a b=\"c\">&'\u{1}\u{ffff}é\n"),
            "&lt;a b=&quot;c&quot;&gt;&amp;&apos;\u{fffd}\u{fffd}é\n"
        );
    }

    #[test]
    fn lines_break_between_words_and_in_a_word_that_is_too_long() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakable", 4), ["unbr", "eaka", "ble"]);
        assert_eq!(wrapped("", 4), [""]);
        assert_eq!(wrapped("a\u{1b}[2J\u{9b}b c", 9), ["a[2Jb c"]);
    }

    #[test]
    fn the_longest_row_fits_and_has_colours_on_a_terminal_alone() {
        let case = Case {
            command: "callbackBeforeCreateSingleChatConversationsCommand".to_owned(),
            special: "a notification: a member was kicked".to_owned(),
            operation_id: String::new(),
            status: Some(200),
            h2: false,
            took: Duration::from_millis(501),
            judged: Judged {
                outcome: Outcome::Fails("why".to_owned()),
                findings: Vec::new(),
                effects: Vec::new(),
            },
        };
        for colour in [false, true] {
            let mut out = Vec::new();
            Screen::new(&mut out, colour).case(&case).expect("a Vec takes everything");
            let text = String::from_utf8(out).expect("UTF-8");
            assert_eq!(text.contains('\x1b'), colour);
            if !colour {
                assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            }
        }
    }
}
