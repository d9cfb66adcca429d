//! Objects of one kind, listed once and then watched for as long as somebody wants to know.
//!
//! They are selected by a name, which is all that the Role of a sidecar allows, or by labels. kube's client lists and watches;
//! what happens between two watches is here and not in kube's `watcher`, which of three things does not do what a
//! sidecar among ten thousand has to: a 410 that answers the watch itself makes it ask the same again for ever, a
//! `Retry-After` is not heard, and a watch that ends as soon as it begins is begun again at once, without a rest.
//!
//! | how a watch ends | what follows |
//! |---|---|
//! | its time is over, or half a line | the next at once, from the last version seen, without a list |
//! | it ends within a second, twice in a row | as after an error |
//! | an error, a cut, a dead connection | a random wait, then from the last version seen |
//! | 410 Gone, an ERROR event, an answer that cannot be read | a random wait, then a list |
//! | an answer with Retry-After | no sooner than that, within a bound |
//!
//! The waits are random so that ten thousand sidecars do not come back to a restarted API server together.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Error, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::connect::{Door, Opened};
use super::trouble::{Action, Failure, Target, explain};

/// How long one watch lasts, in seconds, at random between these: an hour keeps ten thousand sidecars at three
/// re-watches a second, and the spread keeps them apart.
const WATCH_SECONDS: (u32, u32) = (3_000, 3_600);

/// The first and the longest wait after an error; the wait is a random part of it.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The longest that a server's Retry-After keeps us away: it is a hint, and a day of it would be an outage.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(120);

/// A watch that ends sooner says nothing good of the server.
const SHORT: Duration = Duration::from_secs(1);

/// A watch that lasted so long, or delivered something, makes the next wait a first one.
const LONG: Duration = Duration::from_secs(10);

/// Whoever wants to know.
pub trait Observer<K> {
    /// A list begins: an object that it does not bring is gone.
    fn listing(&mut self);
    /// An object as it is now, from a list or a watch.
    fn found(&mut self, object: K);
    /// The list is complete.
    fn listed(&mut self);
    /// An object was deleted. As it was last.
    fn deleted(&mut self, object: K);
    /// Whether a watch is under way. Not called for the moment between two watches.
    fn connected(&mut self, _connected: bool) {}
    /// Why the objects cannot be watched, in a sentence; the same as before is not reported again.
    fn trouble(&mut self, problem: &str);
    /// They are watched again after trouble.
    fn recovered(&mut self);
}

/// What is followed.
#[derive(Clone, Debug)]
pub struct Followed {
    /// For texts; with a name, that object alone is selected.
    pub target: Target,
    /// Selects by labels; empty: all.
    pub labels: String,
    /// Objects in one page of a list; `None`: the whole list at once, from the API server's cache at first.
    pub page: Option<u32>,
}

/// Follows objects for ever. `api` makes the way to them of a client.
pub async fn follow<K>(
    followed: Followed,
    door: impl Door,
    api: impl Fn(Client) -> Api<K>,
    observer: impl Observer<K>,
) where
    K: Clone + DeserializeOwned + Debug + kube::Resource + 'static,
{
    let mut follower = Follower {
        fields: followed.target.name.as_ref().map(|name| format!("metadata.name={name}")).unwrap_or_default(),
        followed,
        observer,
        version: None,
        listed: false,
        heard: false,
        reported: None,
        kind: std::marker::PhantomData,
    };
    let mut rests = Rests::default();
    loop {
        let begun = Instant::now();
        follower.heard = false;
        let cut = follower.once(&door, &api).await.err();
        let rest = rests.after(begun.elapsed(), follower.heard, cut.as_ref().map(|cut| cut.away));
        if let Some(Cut { problem, relist, .. }) = cut {
            follower.trouble(problem);
            if relist {
                follower.version = None;
            }
        }
        if rest > Duration::ZERO {
            follower.observer.connected(false);
            sleep(rest).await;
        }
    }
}

/// How long to stay away between two watches.
#[derive(Debug, Default)]
struct Rests {
    waits: Waits,
    short_ends: u32,
}

impl Rests {
    /// After a watch that lasted so long, delivered something or not, and was cut or ended: a cut comes with what the
    /// server said of when to come back.
    fn after(&mut self, lasted: Duration, heard: bool, cut: Option<Duration>) -> Duration {
        if heard || lasted >= LONG {
            self.waits = Waits::default();
        }
        let short = cut.is_none() && lasted < SHORT;
        self.short_ends = if short { self.short_ends + 1 } else { 0 };
        match cut {
            Some(away) => away.min(RETRY_AFTER_LIMIT) + self.waits.next(),
            None if self.short_ends < 2 => Duration::ZERO,
            None => self.waits.next(),
        }
    }
}

/// Why a watch has ended otherwise than by its time.
struct Cut {
    /// In a sentence.
    problem: String,
    /// How long the server wants to be left alone.
    away: Duration,
    /// What is known of the place in the server's history is worth nothing any more.
    relist: bool,
}

struct Follower<K, O> {
    followed: Followed,
    fields: String,
    observer: O,
    /// The place in the server's history where the watch goes on; none: what there is has to be listed.
    version: Option<String>,
    /// It was listed before.
    listed: bool,
    /// An event or a bookmark came since the watch began.
    heard: bool,
    /// The trouble that was reported last and is not over.
    reported: Option<String>,
    kind: std::marker::PhantomData<fn(K)>,
}

impl<K, O> Follower<K, O>
where
    K: Clone + DeserializeOwned + Debug + kube::Resource + 'static,
    O: Observer<K>,
{
    /// Lists if that is needed, and watches to the end of one watch.
    async fn once(&mut self, door: &impl Door, api: impl Fn(Client) -> Api<K>) -> Result<(), Cut> {
        let opened = door.open().await;
        let Opened { client, last, place } =
            opened.map_err(|problem| Cut { problem, away: Duration::ZERO, relist: false })?;
        self.watch(api(client)).await.map_err(|mut error| {
            // JSON of somebody who is no API server says no code.
            if let Error::Api(status) = &mut error
                && status.code == 0
            {
                status.code = last.status();
            }
            // Large objects: fewer of them fit into an answer.
            if is_too_long(&error) {
                self.followed.page = self.followed.page.map(|page| (page / 2).max(1));
            }
            Cut {
                problem: explain(&error, &place, Action::Read, &self.followed.target),
                away: last.retry_after(),
                relist: makes_the_place_worthless(&error),
            }
        })
    }

    async fn watch(&mut self, api: Api<K>) -> Result<(), Error> {
        let version = match &self.version {
            Some(version) => version.clone(),
            None => self.list(&api).await?,
        };
        let (least, most) = WATCH_SECONDS;
        let seconds = least + (f64::from(most - least) * random()) as u32;
        let mut asked = WatchParams::default().timeout(seconds);
        if !self.fields.is_empty() {
            asked = asked.fields(&self.fields);
        }
        if !self.followed.labels.is_empty() {
            asked = asked.labels(&self.followed.labels);
        }
        let mut events = pin!(api.watch(&asked, &version).await?);
        // A client has a queue and a task of its own, 13 KiB that the watch would keep for an hour.
        drop(api);
        self.connected();
        while let Some(event) = events.next().await {
            self.take(event?)?;
        }
        Ok(())
    }

    async fn list(&mut self, api: &Api<K>) -> Result<String, Error> {
        let mut asked = ListParams::default();
        if !self.fields.is_empty() {
            asked = asked.fields(&self.fields);
        }
        if !self.followed.labels.is_empty() {
            asked = asked.labels(&self.followed.labels);
        }
        asked = match self.followed.page {
            Some(page) => asked.limit(page),
            // At the start whatever is at hand will do, the watch brings it up to date. Later it must not be older than
            // what was seen, as another API server's may be.
            None if !self.listed => asked.match_any(),
            None => asked,
        };
        let mut begun = false;
        loop {
            let list = api.list(&asked).await?;
            if !std::mem::replace(&mut begun, true) {
                self.observer.listing();
            }
            let next = list.metadata.continue_.filter(|token| !token.is_empty());
            list.items.into_iter().for_each(|object| self.observer.found(object));
            if let Some(token) = next {
                asked = asked.continue_token(&token);
                continue;
            }
            self.listed = true;
            let version = list.metadata.resource_version.unwrap_or_default();
            self.version = Some(version.clone());
            self.observer.listed();
            return Ok(version);
        }
    }

    /// Reports an event, and takes note of where it is in the server's history. Each is reported, also of many in one go: the
    /// last may be broken, and the one before it not.
    fn take(&mut self, event: WatchEvent<K>) -> Result<(), Error> {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version();
                self.observer.found(object);
                version
            }
            WatchEvent::Deleted(object) => {
                let version = object.resource_version();
                self.observer.deleted(object);
                version
            }
            WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => {
                // Whatever went wrong inside the server, a list begins anew.
                self.version = None;
                return Err(Error::Api(status));
            }
        };
        // A list alone, or an error, would make each wait a first one where watches keep failing.
        self.heard = true;
        if let Some(version) = version.filter(|version| !version.is_empty()) {
            self.version = Some(version);
        }
        Ok(())
    }

    fn connected(&mut self) {
        if self.reported.take().is_some() {
            self.observer.recovered();
        }
        self.observer.connected(true);
    }

    fn trouble(&mut self, problem: String) {
        if self.reported.as_ref() != Some(&problem) {
            self.observer.trouble(&problem);
            self.reported = Some(problem);
        }
    }
}

fn is_too_long(error: &Error) -> bool {
    let Error::Service(error) = error else { return false };
    matches!(error.downcast_ref::<Failure>(), Some(Failure::TooLong(_)))
}

/// Whether going on from the last version seen can only fail again.
fn makes_the_place_worthless(error: &Error) -> bool {
    #[allow(clippy::wildcard_enum_match_arm, reason = "all other errors say nothing about the place")]
    match error {
        Error::Api(status) => matches!(status.code, 400 | 410),
        Error::SerdeError(_) | Error::FromUtf8(_) => true,
        _ => false,
    }
}

/// A wait that doubles up to its bound; each a random part of it ("full jitter").
#[derive(Debug)]
struct Waits(Duration);

impl Default for Waits {
    fn default() -> Waits {
        Waits(WAITS.0)
    }
}

impl Waits {
    fn next(&mut self) -> Duration {
        let wait = self.0.mul_f64(random());
        self.0 = (self.0 * 2).min(WAITS.1);
        wait
    }
}

/// A number from 0 to 1, different for each process and call; for spreading, not for secrets.
fn random() -> f64 {
    RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn waits_grow_and_stay_within_their_bound() {
        let mut waits = Waits::default();
        let drawn: Vec<_> = (0..20).map(|_| waits.next()).collect();
        assert!(drawn[0] <= WAITS.0 && drawn.iter().all(|wait| *wait <= WAITS.1), "{drawn:?}");
        assert_eq!(waits.0, WAITS.1);
    }

    #[test]
    fn a_watch_that_ends_by_its_time_is_begun_again_at_once_and_one_that_keeps_ending_rests() {
        let mut rests = Rests::default();
        for _ in 0..100 {
            assert_eq!(rests.after(Duration::from_secs(3_000), false, None), Duration::ZERO);
        }
        assert_eq!(rests.after(Duration::ZERO, true, None), Duration::ZERO, "once is no habit");
        let longest = (0..100).map(|_| rests.after(Duration::ZERO, true, None)).max().expect("some");
        assert!(longest > Duration::ZERO && longest <= WAITS.0, "{longest:?}");
        assert_eq!(rests.after(SHORT, true, None), Duration::ZERO);
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_wants_within_a_bound() {
        let wants = |seconds| Rests::default().after(SHORT, false, Some(Duration::from_secs(seconds)));
        assert!(wants(0) <= WAITS.0);
        assert!((Duration::from_secs(7)..=Duration::from_secs(8)).contains(&wants(7)));
        assert!(wants(86_400) <= RETRY_AFTER_LIMIT + WAITS.0);
    }

    #[test]
    fn only_what_is_about_the_place_in_the_history_makes_it_worthless() {
        let said = |code| Error::Api(Status::failure("", "").with_code(code).boxed());
        for (code, worthless) in
            [(400, true), (410, true), (401, false), (403, false), (429, false), (500, false)]
        {
            assert_eq!(makes_the_place_worthless(&said(code)), worthless, "{code}");
        }
        assert!(!makes_the_place_worthless(&Error::ReadEvents(std::io::Error::other("cut"))));
    }
}
