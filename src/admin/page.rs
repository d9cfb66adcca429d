//! The status page: one screen, no script, no picture, nothing fetched.

use std::fmt::Write as _;
use std::time::SystemTime;

use serde_json::Value;

use super::Admin;
use crate::tls;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em;max-width:80em;color:#222}\
h1{font-size:1.3em}h2{font-size:1.05em;margin-top:1.6em}table{border-collapse:collapse}\
td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top;white-space:nowrap}th{font-weight:600;color:#555}\
.bad{color:#b00020;white-space:pre-wrap}.ok{color:#1b6e20}.dim{color:#777}\
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}th,.dim{color:#999}.bad{color:#ff8a80}.ok{color:#81c784}}";

/// Columns of the table of decisions, by the keys of their log line.
const COLUMNS: [&str; 8] =
    ["timestamp", "verdict", "origin", "cause", "command", "rule", "duration_ms", "operationID"];

/// The whole page.
pub(super) fn render(admin: &Admin) -> String {
    let mut out = format!(
        "<!doctype html><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><meta http-equiv=refresh \
         content=5><title>callback-guard</title><style>{STYLE}</style><h1>callback-guard {}</h1>",
        env!("CARGO_PKG_VERSION")
    );
    let now = admin.policy.current();
    for refused in admin.policy.refused().into_iter().flatten() {
        let _ = write!(out, "<p class=bad>Refused, and not in force:\n{}</p>", escaped(&refused));
    }
    if let Some(problem) = admin.policy.watched().problem.reason() {
        let _ = write!(out, "<p class=bad>The ConfigMap cannot be watched:\n{}</p>", escaped(&problem));
    }
    if let Some(problem) = admin.policy.not_kept() {
        let _ =
            write!(out, "<p class=bad>The last good policy is not kept on disk:\n{}</p>", escaped(&problem));
    }
    out.push_str("<table>");
    row(&mut out, "up", &format!("{} s", admin.started.elapsed().as_secs()));
    row(&mut out, "stage", &format!("{:?}", admin.drain.watch().stage()));
    let missing = admin.readiness.missing();
    let ready = if missing.is_empty() { "yes".to_owned() } else { format!("no: {}", missing.join(", ")) };
    row(&mut out, "ready", &ready);
    row(&mut out, "app", &admin.upstream);
    let certificate = match admin.tls.get() {
        Some(tls) => format!("ends in {} days", (tls.validity().not_after - tls::now()) / 86_400),
        None => "none yet".to_owned(),
    };
    row(&mut out, "certificate", &certificate);
    let counts = (admin.metrics.in_flight(), admin.metrics.connections());
    row(&mut out, "now", &format!("{} callbacks in flight, {} connections", counts.0, counts.1));
    row(&mut out, "memory", &format!("{} of {} bytes held", admin.held.bytes(), admin.held.limit()));
    row(&mut out, "policy", &format!("{} {} {}", now.source.label(), now.policy.hash(), now.revision));
    if let Some(name) = &admin.configmap {
        let connected = admin.policy.watched().is_connected();
        row(&mut out, "watch", &format!("{name}: {}", if connected { "connected" } else { "not connected" }));
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
    decisions(&mut out, &admin.recent.lines());
    out.push_str("<p class=dim><a href=/policy>policy</a> · <a href=/decisions>decisions</a> · <a href=/metrics>metrics</a>");
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

fn row(out: &mut String, name: &str, value: &str) {
    let _ = write!(out, "<tr><th>{}<td>{}", escaped(name), escaped(value));
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_cannot_become_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }

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
