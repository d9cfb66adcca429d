//! The last line about an event that is delivered in the background.

use std::fmt::Write as _;
use std::time::Duration;

use super::text::{quoted, shown};
use super::{Format, beginning, digits};

/// What became of an event.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'d> {
    /// OpenIM's tracing ID; its beginning is shown.
    pub operation_id: &'d str,
    /// The command as it was sent.
    pub command: &'d str,
    /// The rule that matched.
    pub rule: &'d str,
    /// Why it was given up; `None` if it was delivered.
    pub lost: Option<&'static str>,
    /// How often it was sent.
    pub attempts: u32,
    /// From its acceptance to the last attempt.
    pub waited: Duration,
    /// How long the last attempt took, if there was one.
    pub took: Option<Duration>,
    /// The status of the last answer, if there was one.
    pub status: Option<u16>,
    /// Names the event, as the app was told.
    pub id: u128,
    /// What the last attempt failed with; never content of a message.
    pub detail: Option<&'d str>,
}

impl Delivery<'_> {
    /// Whether somebody should look at it.
    pub fn is_warning(&self) -> bool {
        self.lost.is_some()
    }

    /// The line, its newline included, appended to `line`; `stamp` is a [`timestamp`](super::timestamp).
    pub fn write(&self, line: &mut String, format: Format, stamp: &str) {
        match format {
            Format::Json => self.json(line, stamp),
            Format::Text => self.text(line, stamp),
        }
    }

    fn json(&self, line: &mut String, stamp: &str) {
        let (level, message, delivery) = match self.lost {
            None => ("INFO", "Event delivered", "delivered"),
            Some(_) => ("WARN", "Event lost", "lost"),
        };
        let _ = write!(
            line,
            "{{\"timestamp\":\"{stamp}\",\"level\":\"{level}\",\"message\":\"{message}\",\"operationID\":"
        );
        quoted(line, beginning(self.operation_id));
        line.push_str(",\"command\":");
        quoted(line, beginning(self.command));
        line.push_str(",\"rule\":");
        quoted(line, self.rule);
        let reason = self.lost.unwrap_or_default();
        let _ = write!(
            line,
            ",\"delivery\":\"{delivery}\",\"reason\":\"{reason}\",\"attempts\":{},\"waited_ms\":",
            self.attempts
        );
        millis(line, self.waited);
        if let Some(took) = self.took {
            line.push_str(",\"duration_ms\":");
            millis(line, took);
        }
        if let Some(status) = self.status {
            let _ = write!(line, ",\"status\":{status}");
        }
        let _ = write!(line, ",\"deliveryID\":\"{:032x}\"", self.id);
        if let Some(detail) = self.detail {
            line.push_str(",\"detail\":");
            quoted(line, detail);
        }
        line.push_str("}\n");
    }

    fn text(&self, line: &mut String, stamp: &str) {
        let (level, delivery) = if self.is_warning() { ("WARN", "lost") } else { ("INFO", "delivered") };
        let why = self.lost.map(|reason| format!("/{reason}")).unwrap_or_default();
        let _ = write!(line, "{} {level:>5} ", stamp.get(11..23).unwrap_or(stamp));
        let _ = write!(line, "{:<46} {:<40}", format!("{delivery}{why}"), shown(beginning(self.command)));
        let _ = write!(line, " operationID={}", shown(beginning(self.operation_id)));
        if !self.rule.is_empty() && self.rule != "default" {
            let _ = write!(line, " rule={:?}", self.rule);
        }
        let _ = write!(line, " attempts={} waited={}ms", self.attempts, self.waited.as_millis());
        if let Some(status) = self.status {
            let _ = write!(line, " status={status}");
        }
        let _ = write!(line, " deliveryID={:032x}", self.id);
        if let Some(detail) = self.detail {
            let _ = write!(line, " detail={detail:?}");
        }
        line.push('\n');
    }
}

fn millis(line: &mut String, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    digits(line, micros / 1000, 1);
    line.push('.');
    digits(line, micros % 1000, 3);
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: Delivery<'_> = Delivery {
        operation_id: "op\n1",
        command: "callbackAfterQuitGroupCommand",
        rule: "events",
        lost: None,
        attempts: 2,
        waited: Duration::from_micros(1_012_345),
        took: Some(Duration::from_micros(7_050)),
        status: Some(204),
        id: 0xab,
        detail: None,
    };

    fn line(delivery: Delivery<'_>, format: Format) -> String {
        let mut line = String::new();
        delivery.write(&mut line, format, "2026-11-27T20:00:00.123Z");
        line
    }

    #[test]
    fn the_line_of_a_delivered_event_has_all_that_is_known() {
        assert_eq!(
            line(DELIVERY, Format::Json),
            concat!(
                r#"{"timestamp":"2026-11-27T20:00:00.123Z","level":"INFO","message":"Event delivered","operationID":"op\u000a1","#,
                r#""command":"callbackAfterQuitGroupCommand","rule":"events","delivery":"delivered","reason":"","attempts":2,"#,
                r#""waited_ms":1012.345,"duration_ms":7.050,"status":204,"deliveryID":"000000000000000000000000000000ab"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_line_of_a_lost_event_has_no_more_than_there_was() {
        let lost = Delivery {
            lost: Some("expired"),
            attempts: 0,
            took: None,
            status: None,
            detail: Some("connection refused"),
            ..DELIVERY
        };
        let json = line(lost, Format::Json);
        assert!(json.contains(r#""level":"WARN","message":"Event lost""#), "{json}");
        assert!(json.contains(r#""delivery":"lost","reason":"expired","attempts":0"#), "{json}");
        assert!(json.contains(r#""detail":"connection refused"}"#), "{json}");
        assert!(!json.contains("duration_ms") && !json.contains("status"), "{json}");
        let text = line(lost, Format::Text);
        assert!(text.contains("WARN lost/expired ") && text.lines().count() == 1, "{text}");
    }
}
