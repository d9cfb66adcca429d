//! How the demo looks: plain lines of at most 80 columns, colour where the reader has any.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use super::caller::{Outcome, Seen};

/// Widest line. A terminal of 80 columns breaks after it.
const WIDTH: usize = 79;

/// What the columns of a table are indented to. The last one takes what is left.
const COLUMNS: [usize; 4] = [2, 14, 34, 54];

/// Where the numbers of the summary stand.
const TALLY_COLUMNS: [usize; 3] = [2, 25, 49];

/// A colour, by its ANSI code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// As the terminal writes by itself.
    Plain,
    /// For headings.
    Bold,
    /// For what is read last.
    Dim,
    /// For what went well.
    Green,
    /// For refusals.
    Yellow,
    /// For what was lost.
    Red,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Paint::Plain => "0",
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Green => "32",
            Paint::Yellow => "33",
            Paint::Red => "31",
        }
    }
}

/// Where the demo is shown.
pub(super) struct Screen {
    out: Box<dyn Write>,
    colour: bool,
}

impl Screen {
    /// Standard output, in colour where that is a terminal and `NO_COLOR` and `TERM` have nothing against it.
    pub(super) fn stdout() -> Screen {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let colour = io::stdout().is_terminal() && !set("NO_COLOR") && !dumb;
        Screen { out: Box::new(io::stdout()), colour }
    }

    /// Whether a person is watching, who needs time to read.
    pub(super) fn is_watched() -> bool {
        io::stdout().is_terminal()
    }

    /// An empty line.
    pub(super) fn gap(&mut self) -> Result<(), String> {
        self.line("")
    }

    /// A line as it is.
    pub(super) fn line(&mut self, text: &str) -> Result<(), String> {
        let written = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
        written.map_err(|error| format!("the output cannot be written: {error}"))
    }

    /// A heading.
    pub(super) fn heading(&mut self, text: &str) -> Result<(), String> {
        let text = self.painted(Paint::Bold, text);
        self.line(&text)
    }

    /// A paragraph, broken into lines that begin with `indent` spaces.
    pub(super) fn paragraph(&mut self, indent: usize, paint: Paint, text: &str) -> Result<(), String> {
        for line in wrapped(text, WIDTH - indent) {
            let line = format!("{:indent$}{}", "", self.painted(paint, &line));
            self.line(&line)?;
        }
        Ok(())
    }

    /// The head of a table of callbacks.
    pub(super) fn table_head(&mut self) -> Result<(), String> {
        let words = ["callback", "without the guard", "with the guard", "decided by"];
        let head = self.row(&COLUMNS, words.map(|word| (word.to_owned(), Paint::Dim)));
        self.line(&head)
    }

    /// A callback, without the guard and with it.
    pub(super) fn callback(
        &mut self,
        label: &str,
        without: &Seen,
        with: &Seen,
        misread: bool,
    ) -> Result<(), String> {
        let without = match misread {
            true => (format!("{:<11} {:>6}", "allowed (!)", time(without.took)), Paint::Red),
            false => cell(without),
        };
        let decided_by = (with.decided_by.clone(), Paint::Plain);
        let line = self.row(&COLUMNS, [(label.to_owned(), Paint::Plain), without, cell(with), decided_by]);
        self.line(&line)
    }

    /// What a table has no columns for.
    pub(super) fn fact(&mut self, what: &str, paint: Paint, text: &str) -> Result<(), String> {
        let line = format!("  {what:<18} {}", self.painted(paint, text));
        self.line(&line)
    }

    /// A line of the summary.
    pub(super) fn tally(
        &mut self,
        what: &str,
        without: (String, Paint),
        with: (String, Paint),
    ) -> Result<(), String> {
        let line = self.row(&TALLY_COLUMNS, [(what.to_owned(), Paint::Plain), without, with]);
        self.line(&line)
    }

    /// A text in its colour.
    pub(super) fn painted(&self, paint: Paint, text: &str) -> String {
        if !self.colour || paint == Paint::Plain || text.is_empty() {
            return text.to_owned();
        }
        format!("\x1b[{}m{text}\x1b[0m", paint.code())
    }

    /// Cells at their columns, a blank at least between two.
    fn row<const N: usize>(&self, columns: &[usize; N], cells: [(String, Paint); N]) -> String {
        let (mut line, mut at) = (String::new(), 0);
        for (column, (text, paint)) in columns.iter().zip(cells) {
            let blanks = column.saturating_sub(at).max(usize::from(at > 0));
            let _ = write!(line, "{:blanks$}{}", "", self.painted(paint, &text));
            at += blanks + text.chars().count();
        }
        line
    }
}

/// An outcome and its time, 18 columns wide.
fn cell(seen: &Seen) -> (String, Paint) {
    let paint = match seen.outcome {
        Outcome::Allowed => Paint::Green,
        Outcome::Denied(_) => Paint::Yellow,
        Outcome::Lost(_) => Paint::Red,
    };
    (format!("{:<11} {:>6}", seen.outcome.to_string(), time(seen.took)), paint)
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

/// Breaks a text between words.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_at_most_and_six_columns() {
        for (micros, expected) in [
            (40, "0.0 ms"),
            (1_234, "1.2 ms"),
            (9_960, "10 ms"),
            (501_400, "501 ms"),
            (999_600, "1.00 s"),
            (2_003_000, "2.00 s"),
            (40_100_000, "40 s"),
        ] {
            let shown = time(Duration::from_micros(micros));
            assert_eq!(shown, expected);
            assert!(shown.len() <= 6);
        }
    }

    #[test]
    fn the_widest_row_fits_and_has_colours_on_a_terminal_alone() {
        let seen = |outcome, decided_by: &str| Seen {
            outcome,
            took: Duration::from_millis(501),
            decided_by: decided_by.to_owned(),
        };
        let mut screen = Screen { out: Box::new(io::sink()), colour: false };
        let cells = |screen: &Screen| {
            let lost = cell(&seen(Outcome::Lost(90004), ""));
            let denied = cell(&seen(Outcome::Denied(5100), ""));
            let by = ("fallback: refused-by-app".to_owned(), Paint::Plain);
            screen.row(&COLUMNS, [("new group".to_owned(), Paint::Plain), lost, denied, by])
        };
        let plain = cells(&screen);
        assert_eq!(plain, "  new group   lost 90004  501 ms  denied 5100 501 ms  fallback: refused-by-app");
        assert!(plain.len() <= WIDTH, "{}", plain.len());
        screen.colour = true;
        let painted = cells(&screen);
        assert!(painted.contains("\x1b[31mlost 90004  501 ms\x1b[0m"), "{painted:?}");
        assert_eq!(painted.replace("\x1b[31m", "").replace("\x1b[33m", "").replace("\x1b[0m", ""), plain);
    }

    #[test]
    fn paragraphs_break_between_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("unbreakably long", 3), ["unbreakably", "long"]);
        assert_eq!(wrapped("", 3), [""]);
    }
}
