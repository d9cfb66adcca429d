//! `--stay`: everything keeps running, and whoever wants to try it is told how.

use std::net::SocketAddr;

use serde_json::Value;

use super::app::{BAD_WORD, Behaviour};
use super::caller::MESSAGE;
use super::folder::Folder;
use super::guard::Guard;
use super::screen::{Paint, Screen};

/// The operation ID of what is sent by hand: header and body must have the same.
const BY_HAND: &str = "by-hand-1";

/// Says where everything is.
pub(super) fn introduce(
    screen: &mut Screen,
    guard: &Guard,
    folder: &Folder,
    switchboard: SocketAddr,
) -> Result<(), String> {
    let url = format!("https://localhost:{}", guard.listen.port());
    let names = Behaviour::ALL.map(|(name, _)| name).join(", ");
    screen.gap()?;
    screen.heading("It keeps running until Ctrl-C")?;
    screen.line(&format!("  the guard    {url}"))?;
    screen.line(&format!("  its status   http://{}/", guard.admin))?;
    screen.line(&format!("  its policy   {}", folder.policy().display()))?;
    screen.paragraph(15, Paint::Plain, "edit it: in force within a second")?;
    screen.line(&format!("  the app      curl -X POST http://{switchboard}/behave/slow"))?;
    screen.paragraph(15, Paint::Plain, &format!("or {names}"))?;
    screen.gap()?;
    let message = folder.write_callback(&MESSAGE.body(BY_HAND))?;
    screen.paragraph(
        2,
        Paint::Plain,
        &format!("Ask about a message as OpenIM does, from another terminal; with the word {BAD_WORD} in it, the app refuses:"),
    )?;
    screen.gap()?;
    screen.line(&format!("curl -i --cacert {} \\", folder.certificate().display()))?;
    screen.line(&format!("  -H 'Content-Type: application/json' -H 'operationID: {BY_HAND}' \\"))?;
    screen.line(&format!("  -d @{} \\", message.display()))?;
    screen.line(&format!("  {url}{}", MESSAGE.path()))?;
    screen.gap()?;
    screen.line("  What the guard decides, as it happens:")
}

/// Shows what the guard logs. Returns when it has ended, which it should not.
pub(super) async fn follow(screen: &mut Screen, guard: &mut Guard) -> Result<(), String> {
    guard.forget_lines();
    while let Some(line) = guard.next_line().await {
        match line["message"].as_str() {
            Some("Callback answered") => screen.line(&decision(&line))?,
            Some(message) => screen.paragraph(2, Paint::Dim, &told(message, &line))?,
            None => {}
        }
    }
    Err("the guard has ended by itself".to_owned())
}

/// A line about a callback: verdict, time, who decided, command.
fn decision(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    let verdict = match line["errCode"].as_i64() {
        Some(code) => format!("{} {code}", text("verdict")),
        None => text("verdict").to_owned(),
    };
    let decided_by = match (text("cause"), text("finding")) {
        ("", "") => text("origin").to_owned(),
        ("", why) | (why, _) => format!("{}: {why}", text("origin")),
    };
    let took = line["duration_ms"].as_f64().unwrap_or_default();
    let command = text("command");
    let command = command.strip_prefix("callback").unwrap_or(command);
    let command = command.strip_suffix("Command").unwrap_or(command);
    format!("  {verdict:<9} {took:>6.1} ms  {decided_by:<24}  {command}")
}

/// Any other line, with its reason where it has one.
fn told(message: &str, line: &Value) -> String {
    match line["reason"].as_str() {
        Some(reason) => format!("{message}: {reason}"),
        None => message.to_owned(),
    }
}
