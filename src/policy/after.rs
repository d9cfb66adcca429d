//! How the events of after-commands get to the app: the key `after` of the defaults and of rules.

use std::time::Duration;

use serde_json::{Value, json};

use super::duration;
use super::plan::Rule;
use super::problem::Problem;
use super::reader::{Field, Findings, Keys, Table};
use super::{Delivery, Order, Redeliver};
use crate::callback::command::{self, Phase};
use crate::callback::subject::Subject;

const KEYS: [&str; 5] = ["delivery", "timeout", "keepFor", "redeliver", "order"];

/// Keys of a rule that are about an answer within OpenIM's patience, which a background delivery does not need.
const INLINE_KEYS: [&str; 3] = ["timeout", "breaker", "maxInFlight"];

/// Three times what OpenIM waits for at the most by default: an app may work on an event for longer than on a verdict.
const TIMEOUT: Duration = Duration::from_secs(15);
const TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(300));

/// A pod is replaced, or an image pulled, within this time.
const KEEP_FOR: Duration = Duration::from_secs(300);
const KEEP_FOR_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3_600));

/// Default of `--after-queue`: how many events may wait.
pub const QUEUE_EVENTS: usize = 10_000;

/// Events a second that a queue should have room for until `keepFor` is over. A hundred users who are online make some two events
/// a second.
const EXPECTED_EVENTS_PER_SECOND: u64 = 10;

/// How events of after-commands are delivered. Fixed for each event when it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct After {
    /// `delivery`
    pub delivery: Delivery,
    /// `timeout`: how long the app has for one attempt, 10 ms to 5 minutes.
    pub timeout: Duration,
    /// `keepFor`: how long after its acceptance an attempt may still begin, 1 s to 24 hours.
    pub keep_for: Duration,
    /// `redeliver`
    pub redeliver: Redeliver,
    /// `order`
    pub order: Order,
}

impl Default for After {
    /// In the background, 15 s, 5 minutes, repeated if not taken, in no order.
    fn default() -> After {
        After {
            delivery: Delivery::Background,
            timeout: TIMEOUT,
            keep_for: KEEP_FOR,
            redeliver: Redeliver::WhenNotTaken,
            order: Order::None,
        }
    }
}

impl After {
    pub(super) fn to_json(self) -> Value {
        json!({
            "delivery": self.delivery.label(),
            "timeout": duration::display(self.timeout),
            "keepFor": duration::display(self.keep_for),
            "redeliver": self.redeliver.label(),
            "order": self.order.label(),
        })
    }
}

/// Puts what is written over `after`, key by key.
pub(super) fn read(table: &Table<'_>, after: &mut After, findings: &mut Findings) {
    let Some(field) = table.section("after") else { return };
    let Some(keys) = Table::read(field, &KEYS, Keys::Fields, findings) else { return };
    let delivery = keys.get("delivery").and_then(|field| field.choice(Delivery::ALL, findings));
    after.delivery = delivery.unwrap_or(after.delivery);
    let mut between = |key, (least, most)| {
        keys.get(key).and_then(|field| field.duration(least, Some((most, "")), findings))
    };
    after.timeout = between("timeout", TIMEOUT_RANGE).unwrap_or(after.timeout);
    let keep_for = between("keepFor", KEEP_FOR_RANGE);
    after.keep_for = keep_for.unwrap_or(after.keep_for);
    let redeliver = keys.get("redeliver").and_then(|field| field.choice(Redeliver::ALL, findings));
    after.redeliver = redeliver.unwrap_or(after.redeliver);
    let order = keys.get("order").and_then(|field| field.choice(Order::ALL, findings));
    after.order = order.unwrap_or(after.order);
    if let (Some(keep_for), Some(field)) = (keep_for, keys.get("keepFor")) {
        long_keeping(keep_for, field, findings);
    }
    if after.delivery == Delivery::Inline {
        for key in &KEYS[1..] {
            if let Some(field) = keys.get(key) {
                let message =
                    "No effect: with delivery Inline the rule's timeout counts, and nothing is kept";
                findings.warning(&field.path, field.node.at, message);
            }
        }
    }
}

fn long_keeping(keep_for: Duration, field: &Field<'_>, findings: &mut Findings) {
    if keep_for.as_secs().saturating_mul(EXPECTED_EVENTS_PER_SECOND) <= QUEUE_EVENTS as u64 {
        return;
    }
    let rate = QUEUE_EVENTS as f64 / keep_for.as_secs_f64();
    let message = format!(
        "Small queue: the {QUEUE_EVENTS} events of the default --after-queue are full after {} if more than {rate:.1} come in a \
         second, and further ones are lost; one command may have half of them. Raise --after-queue and --after-queue-bytes",
        duration::display(keep_for)
    );
    findings.warning(&field.path, field.node.at, message);
}

/// Warns of keys that the callbacks of a rule make no use of.
pub(super) fn unused_keys(field: &Field<'_>, rule: &Rule, findings: &mut Findings) {
    let fits = |phase: Phase| {
        let mut commands = command::all().iter().filter(|command| command.phase == phase);
        commands.any(|command| rule.matches.may_fit(command))
    };
    let written = |key: &str| {
        let node = field.node.get(key)?;
        Some(Problem {
            path: format!("{}.{key}", field.path),
            message: String::new(),
            line: Some(node.at.line),
            column: Some(node.at.column),
        })
    };
    let only_after = fits(Phase::After) && !fits(Phase::Before);
    if only_after && rule.answer.is_none() && rule.after.delivery == Delivery::Background {
        for found in INLINE_KEYS.iter().filter_map(|key| written(key)) {
            let message = "No effect: events of after-commands are delivered in the background; see after.timeout, or set \
                           after.delivery to Inline"
                .to_owned();
            findings.warnings.push(Problem { message, ..found });
        }
    }
    // A name outside of the table may be a newer server's, and is never delivered in the background.
    if !fits(Phase::After)
        && let Some(found) = written("after")
    {
        let message = "No effect: the rule is for no after-command".to_owned();
        findings.warnings.push(Problem { message, ..found });
    }
}

impl super::rule::Match {
    /// Whether there may be a callback of this command that it fits.
    fn may_fit(&self, command: &'static command::Command) -> bool {
        let subject = Subject { name: command.name, command: Some(command), ..Subject::default() };
        self.commands.as_ref().is_none_or(|commands| commands.contain(&subject))
            && self.phases.as_ref().is_none_or(|phases| phases.contains(&command.phase))
    }
}

#[cfg(test)]
mod tests;
