//! The tour: seven scenes, each with its claims. What is claimed of the guard is checked against what it did.

use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::app::{App, Behaviour, REFUSAL};
use super::caller::{Caller, GROUP, MESSAGE, Outcome, PATIENCE, PICTURE, PUSH, SPAM, Sample, Seen};
use super::folder::Folder;
use super::guard::Guard;
use super::screen::{Paint, Screen, time};
use super::tally::Tally;

/// The policy of the tour.
pub(super) const POLICY: &str = include_str!("policy.yaml");

/// The line of [`POLICY`] that scene 6 edits, what it becomes, and a typing error of it.
const EDITED: [&str; 3] = ["\n    fallback: Allow", "\n    fallback: Deny", "\n    fallback: Denny"];

/// `errCode` where the policy's defaults refuse.
const DEFAULT_DENIAL: i32 = 5100;

/// `errCode` where the rule for pictures refuses.
const PICTURE_DENIAL: i32 = 5101;

/// How long the app has by that policy.
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);

/// How long it has for a push.
const PUSH_TIMEOUT: Duration = Duration::from_millis(100);

/// How much later than the deadline an answer may be seen. The guard is a millisecond late at most; the machine
/// that plays all the parts at once may be busy.
const BUSY: Duration = Duration::from_millis(500);

/// What is promised of an edit.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(1);

/// Between two looks whether an edit is in force.
const LOOK: Duration = Duration::from_millis(50);

/// Time to read a scene.
const READING: Duration = Duration::from_millis(1_100);

/// Pushes of the last scene, and how many of them wait for OpenIM's own timeout.
const PUSHES: u32 = 20;
/// See [`PUSHES`]. More would make everybody wait.
const MEASURED: u32 = 2;

/// What a scene claims of a callback: the conclusion without the guard, the one with it, and who decides that.
type Claim = (Outcome, Outcome, &'static str);

/// The tour, and everything that takes part.
pub(super) struct Tour<'a> {
    pub(super) screen: &'a mut Screen,
    pub(super) app: &'a App,
    pub(super) guard: &'a mut Guard,
    pub(super) caller: Rc<Caller>,
    pub(super) folder: &'a Folder,
    pub(super) tally: Tally,
    /// What did not come as claimed.
    pub(super) broken: Vec<String>,
}

impl Tour<'_> {
    /// Plays all scenes.
    pub(super) async fn play(&mut self) -> Result<(), String> {
        self.healthy().await?;
        self.slow().await?;
        self.dead().await?;
        self.wrong().await?;
        self.contradictory().await?;
        self.edited().await?;
        self.queued().await?;
        self.app_is(Behaviour::Healthy).await
    }

    async fn healthy(&mut self) -> Result<(), String> {
        self.scene(
            "1. The app is well",
            "The guard passes its answers on as they are; upstream is the app.",
        )?;
        let allowed = (Outcome::Allowed, Outcome::Allowed, "upstream");
        self.ask(&MESSAGE, allowed).await?;
        let denied = Outcome::Denied(REFUSAL);
        self.ask(&SPAM, (denied, denied, "upstream")).await?;
        self.pause().await
    }

    async fn slow(&mut self) -> Result<(), String> {
        let why = "OpenIM waits its whole timeout, and then the message is lost (90004 NetworkError). \
                   The guard answers when the app's 500 ms are over.";
        self.scene("2. The app hangs", why)?;
        self.app_is(Behaviour::Slow).await?;
        self.ask(&MESSAGE, (Outcome::Lost(90004), Outcome::Allowed, "fallback: timeout")).await?;
        self.pause().await
    }

    async fn dead(&mut self) -> Result<(), String> {
        let why = "Connections are refused, as while it restarts: whatever is asked in that moment is lost.";
        self.scene("3. The app is gone", why)?;
        self.app_is(Behaviour::Dead).await?;
        let claim = (Outcome::Lost(90004), Outcome::Allowed, "fallback: unreachable");
        self.ask(&MESSAGE, claim).await?;
        self.ask(&GROUP, claim).await?;
        self.pause().await
    }

    async fn wrong(&mut self) -> Result<(), String> {
        let why = "OpenIM's documentation shows \"nextCode\": \"\" as an allow, and its server fails on it (90007 \
                   DataError). The guard corrects what is plainly meant.";
        self.scene("4. The app answers with wrong JSON types, or with HTML", why)?;
        self.app_is(Behaviour::WrongTypes).await?;
        let lost = Outcome::Lost(90007);
        self.ask(&PUSH, (lost, Outcome::Allowed, "upstream: code-as-string")).await?;
        self.ask(&SPAM, (lost, Outcome::Denied(REFUSAL), "upstream: code-as-string")).await?;
        self.app_is(Behaviour::Html).await?;
        self.ask(&MESSAGE, (lost, Outcome::Allowed, "fallback: status")).await?;
        self.pause().await
    }

    async fn contradictory(&mut self) -> Result<(), String> {
        let why = "actionCode 1 with nextCode 1 reads like a refusal, and OpenIM goes on (!). The policy \
                   here refuses where the app could not decide.";
        self.scene("5. The app contradicts itself", why)?;
        self.app_is(Behaviour::Contradictory).await?;
        let denied = Outcome::Denied(DEFAULT_DENIAL);
        self.ask(&SPAM, (Outcome::Allowed, denied, "fallback: refused-by-app")).await?;
        self.pause().await
    }

    async fn edited(&mut self) -> Result<(), String> {
        let why = "The app is gone again, and somebody decides that no picture may pass unseen. On \
                   Kubernetes this is kubectl edit; here it is a file.";
        self.scene("6. The policy is edited while everything runs", why)?;
        self.app_is(Behaviour::Dead).await?;
        let lost = Outcome::Lost(90004);
        self.ask(&PICTURE, (lost, Outcome::Allowed, "fallback: unreachable")).await?;
        let [before, after, typo] = EDITED;
        self.show_edit(before, after)?;
        self.folder.write_policy(&POLICY.replace(before, after))?;
        let took = self.until_pictures_are_denied().await;
        let words = match took {
            Some(took) => format!("in force after {}, with no restart", time(took)),
            None => format!("not in force after {}", time(IN_FORCE_WITHIN)),
        };
        self.screen.paragraph(2, Paint::Plain, &words)?;
        self.screen.gap()?;
        self.claim(took.is_some(), "an edit of the policy is in force within a second");
        let denied = (lost, Outcome::Denied(PICTURE_DENIAL), "fallback: unreachable");
        self.ask(&PICTURE, denied).await?;
        self.pause().await?;

        self.screen.gap()?;
        self.screen.paragraph(2, Paint::Plain, "Then a slip of the finger:")?;
        self.show_edit(after, typo)?;
        self.guard.forget_lines();
        self.folder.write_policy(&POLICY.replace(before, typo))?;
        let refused =
            self.guard.logged("The policy is refused; the last good one stays in force", 3 * IN_FORCE_WITHIN);
        let reason = refused.await.and_then(|line| line["reason"].as_str().map(str::to_owned));
        self.claim(reason.is_some(), "a broken edit of the policy is refused");
        let words = reason.unwrap_or_else(|| "the guard says nothing about it".to_owned());
        self.screen.paragraph(2, Paint::Yellow, &format!("refused: {words}"))?;
        self.screen.paragraph(2, Paint::Plain, "The last good policy stays in force:")?;
        self.screen.gap()?;
        self.ask(&PICTURE, denied).await?;
        self.folder.write_policy(POLICY)?;
        self.pause().await
    }

    /// Asks until an edit shows; tells how long that took.
    async fn until_pictures_are_denied(&mut self) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() < IN_FORCE_WITHIN {
            let seen = self.caller.ask_guard(&PICTURE).await;
            self.count_guard(&PICTURE, &seen);
            if seen.outcome == Outcome::Denied(PICTURE_DENIAL) {
                return Some(began.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
        None
    }

    async fn queued(&mut self) -> Result<(), String> {
        let why = "OpenIM's push server takes one message at a time: a slow push holds up all behind it. \
                   Here a push waits 100 ms, and a breaker spares most even that.";
        self.scene(&format!("7. {PUSHES} pushes in a row while the app hangs"), why)?;
        self.app_is(Behaviour::Slow).await?;
        let caller = Rc::clone(&self.caller);
        let without = tokio::task::spawn_local(async move {
            let mut seen = Vec::new();
            for _ in 0..MEASURED {
                seen.push(caller.ask_app(&PUSH).await);
            }
            seen
        });
        self.queued_with().await?;
        let without = without.await.map_err(|error| format!("the caller failed: {error}"))?;
        let measured: Duration = without.iter().map(|seen| seen.took).sum();
        for seen in &without {
            self.tally.without_guard(seen);
        }
        let words = format!(
            "{} and all lost: computed from {MEASURED} that took {}",
            time(measured * PUSHES / MEASURED),
            time(measured)
        );
        self.screen.fact("without the guard", Paint::Red, &words)?;
        self.pause().await
    }

    async fn queued_with(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let mut waited = 0;
        let mut allowed = 0;
        for _ in 0..PUSHES {
            let seen = self.caller.ask_guard(&PUSH).await;
            self.count_guard(&PUSH, &seen);
            waited += u32::from(seen.decided_by == "fallback: timeout");
            allowed += u32::from(seen.outcome == Outcome::Allowed);
        }
        let took = began.elapsed();
        let words = format!(
            "{} and {} lost: {waited} waited, {} met an open breaker",
            time(took),
            if allowed == PUSHES { "none".to_owned() } else { (PUSHES - allowed).to_string() },
            PUSHES - waited
        );
        self.claim(allowed == PUSHES, "every push is allowed while the app hangs");
        self.claim(waited < PUSHES, "the breaker opens");
        self.claim(took < PATIENCE, "twenty pushes take less than one takes without the guard");
        let paint = if allowed == PUSHES { Paint::Green } else { Paint::Red };
        self.screen.fact("with the guard", paint, &words)
    }

    /// Asks both ways at once, shows the two conclusions side by side, and checks the claim.
    async fn ask(&mut self, sample: &Sample, (without, with, decided_by): Claim) -> Result<(), String> {
        let (app, guard) = tokio::join!(self.caller.ask_app(sample), self.caller.ask_guard(sample));
        self.tally.without_guard(&app);
        self.count_guard(sample, &guard);
        // OpenIM goes on where the app meant to refuse.
        let misread = without == Outcome::Allowed && matches!(with, Outcome::Denied(_));
        self.tally.misread(misread && app.outcome == without, misread && guard.outcome == without);
        self.claim(
            app.outcome == without,
            &format!("a {} without the guard is {without}, and was {}", sample.label, app.outcome),
        );
        self.claim(
            guard.outcome == with && guard.decided_by == decided_by,
            &format!(
                "a {} with the guard is {with} by {decided_by}, and was {} by {}",
                sample.label, guard.outcome, guard.decided_by
            ),
        );
        self.screen.callback(sample.label, &app, &guard, misread)
    }

    fn count_guard(&mut self, sample: &Sample, seen: &Seen) {
        let timeout = timeout_of(sample);
        self.tally.with_guard(seen, timeout);
        self.claim(!matches!(seen.outcome, Outcome::Lost(_)), "no callback is lost with the guard");
        self.claim(
            seen.took <= timeout + BUSY,
            &format!("a {} is answered by its deadline of {}", sample.label, time(timeout)),
        );
    }

    fn claim(&mut self, holds: bool, what: &str) {
        if !holds && !self.broken.iter().any(|known| known == what) {
            self.broken.push(what.to_owned());
        }
    }

    fn scene(&mut self, title: &str, why: &str) -> Result<(), String> {
        self.screen.gap()?;
        self.screen.heading(title)?;
        self.screen.paragraph(2, Paint::Plain, why)?;
        self.screen.gap()?;
        if title.starts_with("7.") { Ok(()) } else { self.screen.table_head() }
    }

    fn show_edit(&mut self, before: &str, after: &str) -> Result<(), String> {
        let quoted = |sign, text: &str| format!("      {sign} {}", text.trim_start_matches('\n'));
        self.screen.gap()?;
        let removed = self.screen.painted(Paint::Red, &quoted('-', before));
        self.screen.line(&removed)?;
        let added = self.screen.painted(Paint::Green, &quoted('+', after));
        self.screen.line(&added)?;
        self.screen.gap()
    }

    fn app_is(&self, behaviour: Behaviour) -> impl Future<Output = Result<(), String>> {
        let changed = self.app.behave(behaviour);
        async { changed.await.map_err(|error| format!("the toy app cannot change: {error}")) }
    }

    async fn pause(&self) -> Result<(), String> {
        if Screen::is_watched() {
            tokio::time::sleep(READING).await;
        }
        Ok(())
    }
}

/// How long the policy of the tour gives the app.
fn timeout_of(sample: &Sample) -> Duration {
    if sample.label == PUSH.label { PUSH_TIMEOUT } else { TIMEOUT }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;

    #[test]
    fn the_policy_is_good_its_edit_too_and_the_slip_is_one_problem() {
        let [before, after, typo] = EDITED;
        assert_eq!(POLICY.matches(before).count(), 1, "the edit must meet one line");
        let (policy, warnings) = policy::compile(POLICY).expect("the policy of the tour");
        assert_eq!((policy.caller_timeout(), warnings.len()), (PATIENCE, 0));
        assert!(policy::compile(&POLICY.replace(before, after)).is_ok());
        let problems = policy::compile(&POLICY.replace(before, typo)).expect_err("a slip");
        assert_eq!(problems.len(), 1);
    }
}
