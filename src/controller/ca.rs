//! The certificate authority, kept in one Secret of the controller's own namespace.
//!
//! What is signed with has been stored before: a new authority is written first, against the version that was seen, and used
//! once the API server has taken it. If somebody deletes the Secret, the authority in memory is written again, because clients
//! trust it; if somebody changes it to what cannot be used, it is left as it is and the last good one signs on.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::Shared;
use super::owned::{Found, Owned, secret};
use super::write::Writer;
use crate::authority::Authority;
use crate::sidecar::admission::trust::AUTHORITY;
use crate::tls::Utc;

/// How often it is looked at the clock.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The reason of a finding about an authority that cannot be used.
const INVALID: &str = "InvalidAuthority";

/// The authority in force, once there is one.
pub(super) type InForce = watch::Receiver<Option<Rc<Authority>>>;

/// Keeps the authority.
pub(super) struct Keeper {
    shared: Rc<Shared>,
    secret: Owned<Secret>,
    news: Rc<Notify>,
    in_force: watch::Sender<Option<Rc<Authority>>>,
    /// Whether the Secret holds what is in force.
    is_stored: bool,
}

impl Keeper {
    /// Keeps the authority within `tasks`. Nothing is in force yet.
    pub(super) fn start(shared: &Rc<Shared>, writer: &Writer, tasks: &mut JoinSet<()>) -> InForce {
        let (in_force, receiver) = watch::channel(None);
        let target = secret(&shared.config.own_namespace, AUTHORITY);
        let news = Rc::new(Notify::new());
        let remedy =
            "delete or rename it, and the controller creates its own; until then no certificate is signed";
        let secret = Owned::follow(target, remedy, writer, (&shared.findings, &news), tasks);
        let shared = Rc::clone(shared);
        let mut keeper = Keeper { shared, secret, news: Rc::clone(&news), in_force, is_stored: false };
        tasks.spawn_local(async move {
            loop {
                tokio::select! {
                    () = news.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
                keeper.look().await;
            }
        });
        receiver
    }

    async fn look(&mut self) {
        match self.secret.look() {
            (Found::Unknown | Found::Foreign, _) => {}
            (Found::Absent, _) => {
                self.secret.problem(INVALID, None);
                // Without content first: of two that do so, one fills it, against the version that both have seen.
                if self.secret.is_due() && self.secret.write(json!({"type": "Opaque"})).await.is_some() {
                    self.news.notify_one();
                }
            }
            (Found::Ours(secret), changed) => {
                let data = plain(secret.data.unwrap_or_default());
                if data.is_empty() {
                    if self.secret.is_due() {
                        self.fill().await;
                    }
                } else if changed {
                    self.read(&data);
                }
                self.renew().await;
            }
        }
        if let Some(authority) = self.in_force.borrow().as_ref() {
            self.shared.metrics.authority(authority.not_after());
            self.shared.last_authority.replace(Some(Rc::clone(authority)));
        }
    }

    /// Fills a Secret without content: with the authority that is in force, if it was deleted.
    async fn fill(&mut self) {
        let authority =
            self.in_force.borrow().clone().or_else(|| self.shared.last_authority.borrow().clone());
        match authority {
            Some(authority) => {
                self.store(authority, "The CA is stored again: its Secret was deleted or emptied").await
            }
            None => {
                let authority = Authority::new(&self.shared.config.lifetimes, self.shared.clocks());
                self.store(Rc::new(authority), "The CA is created").await;
            }
        }
    }

    /// Reads what the Secret holds; what cannot be used changes nothing.
    fn read(&mut self, data: &BTreeMap<String, Vec<u8>>) {
        let read = Authority::from_data(data);
        self.is_stored = read.is_ok();
        match read {
            Ok(authority) => {
                self.secret.problem(INVALID, None);
                let same =
                    self.in_force.borrow().as_ref().is_some_and(|now| now.to_data() == authority.to_data());
                if !same {
                    self.in_force.send_replace(Some(Rc::new(authority)));
                }
            }
            Err(problems) => {
                let on = match self.in_force.borrow().is_some() {
                    true => "The last good authority signs on as long as this replica leads",
                    false => "Until then no certificate is signed; those that are served stay",
                };
                let text = format!(
                    "{} cannot be used: {}; restore it from a backup, or delete it and restart OpenIM once the controller \
                     has created another. {on}",
                    self.secret.about(),
                    problems.join("; ")
                );
                self.secret.problem(INVALID, Some(text));
            }
        }
    }

    /// Stores the authority that should be in force now, if it is another one.
    async fn renew(&mut self) {
        let now = self.in_force.borrow().clone();
        let Some(now) = now.filter(|_| self.is_stored && self.secret.is_due()) else { return };
        if let Some(next) = now.rolled(&self.shared.config.lifetimes, self.shared.clocks()) {
            // A successor that was missing is added, and a CA that has expired is taken away, without another one signing.
            let done = match next.not_after() == now.not_after() {
                true => "The CA is completed, or one that has expired is taken away",
                false => "The CA is renewed: the next one signs",
            };
            self.store(Rc::new(next), done).await;
        }
    }

    /// Writes an authority, and then puts it in force.
    async fn store(&mut self, authority: Rc<Authority>, done: &'static str) {
        let object = json!({"type": "Opaque", "data": encoded(&authority.to_data())});
        let written = self.secret.write(object).await.is_some();
        self.shared.metrics.renewed(written);
        if written {
            info!(secret = %self.secret.about(), not_after = %Utc(authority.not_after()), "{done}");
            self.secret.problem(INVALID, None);
            self.is_stored = true;
            self.in_force.send_replace(Some(authority));
        }
    }
}

/// The data of a Secret as bytes.
pub(super) fn plain(data: BTreeMap<String, ByteString>) -> BTreeMap<String, Vec<u8>> {
    data.into_iter().map(|(key, bytes)| (key, bytes.0)).collect()
}

/// Texts as the data of a Secret, which JSON has in base64.
pub(super) fn encoded(data: &BTreeMap<&'static str, String>) -> Value {
    let encode = |text: &String| json!(ByteString(text.clone().into_bytes()));
    data.iter().map(|(key, text)| ((*key).to_owned(), encode(text))).collect::<serde_json::Map<_, _>>().into()
}
