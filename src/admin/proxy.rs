//! What the admin port of `proxy` shows.
//!
//! | path | what |
//! |---|---|
//! | `GET /policy` | what is in force, as JSON, and why the last edit is not |
//! | `GET /decisions` | the last 300, the newest first, as JSON; no content of messages |
//! | `GET /` | the same for people |
//! | `GET /after` | the queue of events, as JSON |
//! | `POST /after/drop` | gives up all events in the queue |
//! | `POST /drain` | the pod is ending |

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tracing::info;

use super::page::{self, escaped, row};
use super::{Answer, Pages, Route};
use crate::deliveries::Deliveries;
use crate::drain::{Drain, Stage};
use crate::held::Held;
use crate::metrics::Metrics;
use crate::metrics::admin::AdminMetrics;
use crate::metrics::catalog::Audience;
use crate::ready::Readiness;
use crate::source::Publisher;
use crate::status::Recent;
use crate::tls::{self, Tls};

mod events;

/// Columns of the table of decisions, by the keys of their log line.
const COLUMNS: [&str; 8] =
    ["timestamp", "verdict", "origin", "cause", "command", "rule", "duration_ms", "operationID"];

/// What the admin port shows, and the one thing it can set off.
#[derive(Debug)]
pub struct ProxyPages {
    /// The policy, and why the last one was refused.
    pub policy: Publisher,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is missing.
    pub readiness: Readiness,
    /// The pod's end.
    pub drain: Arc<Drain>,
    /// The last decisions.
    pub recent: Recent,
    /// Events that are delivered in the background.
    pub deliveries: Arc<Deliveries>,
    /// Bytes held.
    pub held: Held,
    /// The certificate, once there is one.
    pub tls: Arc<OnceLock<Tls>>,
    /// The ConfigMap that is watched, where one is.
    pub configmap: Option<String>,
    /// Where the app is, for the page.
    pub upstream: String,
    /// When the process began.
    pub started: Instant,
}

impl Pages for ProxyPages {
    const ROUTES: &'static [Route<ProxyPages>] = &[
        Route { path: "/policy", method: Method::GET, answer: |pages| super::json(&pages.policy()) },
        Route { path: "/decisions", method: Method::GET, answer: ProxyPages::decisions },
        Route { path: "/after", method: Method::GET, answer: |pages| super::json(&events::json(pages)) },
        Route { path: "/after/drop", method: Method::POST, answer: events::drop_all },
        Route { path: "/drain", method: Method::POST, answer: ProxyPages::drain },
    ];

    fn missing(&self) -> Vec<String> {
        let mut missing = self.readiness.missing();
        if self.drain.watch().stage() >= Stage::Ending {
            missing.push("draining".to_owned());
        }
        missing
    }

    fn metrics(&self, audience: Audience) -> String {
        let held = (self.held.bytes(), self.held.limit());
        self.metrics.after().queue(&self.deliveries.status());
        self.metrics.text(audience, &self.policy.current(), held, SystemTime::now())
    }

    fn admin_metrics(&self) -> &AdminMetrics {
        self.metrics.admin()
    }

    fn page(&self) -> String {
        render(self)
    }
}

impl ProxyPages {
    fn decisions(&self) -> Answer {
        super::json_text(format!("[{}]\n", self.recent.lines().join(",\n")))
    }

    fn drain(&self) -> Answer {
        if self.drain.advance(Stage::Leaving, Instant::now()) {
            info!("The pod is ending: callers are told to go elsewhere");
        }
        super::text(StatusCode::OK, "draining\n")
    }

    fn policy(&self) -> Value {
        let now = self.policy.current();
        let [refused_policy, refused_override] = self.policy.refused();
        let over = now.over.as_ref().map(|over| {
            let mut json = over.to_json();
            json["active"] = json!(over.active(SystemTime::now()));
            json
        });
        json!({
            "source": now.source.label(),
            "revision": now.revision,
            "hash": now.policy.hash(),
            "policy": now.policy.to_json(),
            "override": over,
            "refusedPolicy": refused_policy,
            "refusedOverride": refused_override,
            "watch": self.configmap.as_ref().map(|name| json!({
                "configmap": name,
                "connected": self.policy.watched().is_connected(),
                "exists": self.policy.watched().exists(),
                "problem": self.policy.watched().problem.reason(),
                "cacheProblem": self.policy.not_kept(),
            })),
        })
    }
}

fn render(pages: &ProxyPages) -> String {
    let mut out = page::begin("callback-guard");
    let now = pages.policy.current();
    for refused in pages.policy.refused().into_iter().flatten() {
        page::problem(&mut out, "Refused, and not in force", &refused);
    }
    if let Some(problem) = pages.policy.watched().problem.reason() {
        page::problem(&mut out, "The ConfigMap cannot be watched", &problem);
    }
    if let Some(problem) = pages.policy.not_kept() {
        page::problem(&mut out, "The last good policy is not kept on disk", &problem);
    }
    out.push_str("<table>");
    row(&mut out, "up", &format!("{} s", pages.started.elapsed().as_secs()));
    row(&mut out, "stage", &format!("{:?}", pages.drain.watch().stage()));
    let missing = pages.readiness.missing();
    let ready = if missing.is_empty() { "yes".to_owned() } else { format!("no: {}", missing.join(", ")) };
    row(&mut out, "ready", &ready);
    row(&mut out, "app", &pages.upstream);
    let certificate = match pages.tls.get() {
        Some(tls) => format!("ends in {} days", (tls.validity().not_after - tls::now()) / 86_400),
        None => "none yet".to_owned(),
    };
    row(&mut out, "certificate", &certificate);
    let counts = (pages.metrics.in_flight(), pages.metrics.connections());
    row(&mut out, "now", &format!("{} callbacks in flight, {} connections", counts.0, counts.1));
    row(&mut out, "memory", &format!("{} of {} bytes held", pages.held.bytes(), pages.held.limit()));
    row(&mut out, "policy", &format!("{} {} {}", now.source.label(), now.policy.hash(), now.revision));
    if let Some(name) = &pages.configmap {
        let watched = pages.policy.watched();
        let connected = if watched.is_connected() { "connected" } else { "not connected" };
        let absent = if watched.exists() == Some(false) { ", no such ConfigMap" } else { "" };
        row(&mut out, "watch", &format!("{name}: {connected}{absent}"));
    }
    row(&mut out, "mode", now.policy.mode().label());
    match &now.over {
        Some(over) if over.active(SystemTime::now()) => {
            row(&mut out, "override", &format!("until {}: {}", over.until_text(), over.reason()));
        }
        Some(_) | None => row(&mut out, "override", "none"),
    }
    for (rule, breaker) in now.breakers() {
        row(&mut out, &format!("breaker of {rule}"), breaker.state().label());
    }
    out.push_str("</table>");
    events::section(&mut out, pages);
    decisions(&mut out, &pages.recent.lines());
    out.push_str("<p class=dim><a href=/policy>policy</a> · <a href=/decisions>decisions</a> · <a href=/after>events</a> · <a href=/metrics>metrics</a>");
    out
}

fn decisions(out: &mut String, lines: &[String]) {
    let _ = write!(out, "<h2>The last {} decisions</h2><table><tr>", lines.len());
    for column in COLUMNS {
        let _ = write!(out, "<th>{column}");
    }
    for line in lines {
        let decision: Value = serde_json::from_str(line).unwrap_or_default();
        out.push_str("<tr>");
        for column in COLUMNS {
            let text = match &decision[column] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    other.to_string()
                }
            };
            let class = match (column, text.as_str()) {
                ("verdict", "allow") => " class=ok",
                ("origin", "fallback" | "rejection") => " class=bad",
                _ => "",
            };
            let _ = write!(out, "<td{class}>{}", escaped(&text));
        }
    }
    out.push_str("</table>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_a_row() {
        let mut out = String::new();
        decisions(
            &mut out,
            &[r#"{"verdict":"allow","origin":"fallback","duration_ms":1.5,"command":"<x>"}"#.to_owned()],
        );
        for part in ["<td class=ok>allow", "<td class=bad>fallback", "<td>1.5", "<td>&lt;x&gt;"] {
            assert!(out.contains(part), "{part} in {out}");
        }
    }
}
