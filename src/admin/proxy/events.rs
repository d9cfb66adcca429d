//! The queue of events on the admin port.

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tracing::warn;

use super::super::page::{escaped, row};
use super::super::{Answer, text};
use super::ProxyPages;
use crate::log;

/// The queue as JSON.
pub(super) fn json(pages: &ProxyPages) -> Value {
    let (status, bounds) = (pages.deliveries.status(), pages.deliveries.bounds());
    let commands: serde_json::Map<_, _> =
        status.commands.iter().map(|(name, events)| ((*name).to_owned(), json!(events))).collect();
    json!({
        "events": status.events,
        "inFlight": status.in_flight,
        "bytes": status.bytes,
        "oldestSeconds": status.oldest.map(seconds),
        "commands": commands,
        "limits": { "events": bounds.events, "bytes": bounds.bytes, "inFlight": bounds.in_flight },
        "lastError": pages.deliveries.last_error().map(|error| {
            let mut at = String::new();
            log::timestamp(&mut at, error.at);
            json!({ "at": at, "command": error.command, "text": error.text })
        }),
    })
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

/// Gives up all events that are not being sent.
pub(super) fn drop_all(pages: &ProxyPages) -> Answer {
    let events = pages.deliveries.drop_all();
    warn!(events, "The queue of events was emptied by hand");
    text(StatusCode::OK, &format!("{events} events dropped\n"))
}

/// The queue for people. A page has no button, because it may send nothing: the command is shown instead.
pub(super) fn section(out: &mut String, pages: &ProxyPages) {
    let (status, bounds) = (pages.deliveries.status(), pages.deliveries.bounds());
    let _ = write!(out, "<h2>{} events in the queue</h2><table>", status.events);
    row(out, "in flight", &format!("{} of {}", status.in_flight, bounds.in_flight));
    row(out, "memory", &format!("{} of {} bytes", status.bytes, bounds.bytes));
    if let Some(oldest) = status.oldest {
        row(out, "oldest", &format!("{} s", oldest.as_secs()));
    }
    for (command, events) in &status.commands {
        row(out, command, &events.to_string());
    }
    if let Some(error) = pages.deliveries.last_error() {
        let mut at = String::new();
        log::timestamp(&mut at, error.at);
        row(out, "last error", &format!("{at} {}: {}", error.command, error.text));
    }
    out.push_str("</table>");
    if status.events > 0 {
        let _ = write!(
            out,
            "<p class=dim>Drop all: {}</p>",
            escaped("curl -X POST http://localhost:PORT/after/drop")
        );
    }
}
