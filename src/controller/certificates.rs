//! What a namespace gets of the authority: its bundle in a ConfigMap, and the certificate of its sidecars in a Secret.

use std::rc::Rc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::info;

use super::Shared;
use super::ca::{encoded, plain};
use super::owned::{Found, Owned, config_map, secret};
use super::write::Writer;
use crate::authority::{Authority, CertificateState};
use crate::sidecar::admission::trust::{AUTHORITY, AUTHORITY_KEY};
use crate::tls::Utc;

/// The annotation on the ConfigMap with the bundle that says that the starter policy was made, or not needed.
const STARTER: &str = "callback-guard.io/starter-policy";

/// The certificates of the authority, for those who have to trust it.
pub(super) struct Bundle {
    shared: Rc<Shared>,
    config_map: Owned<ConfigMap>,
    /// Whether the namespace has had its starter policy. Kept as an annotation, so that it is made once and not again after
    /// it was deleted.
    starter: bool,
    /// The authority whose bundle the ConfigMap has.
    good: Option<Rc<Authority>>,
}

impl Bundle {
    /// Follows the ConfigMap within `tasks`.
    pub(super) fn follow(
        shared: &Rc<Shared>,
        namespace: &str,
        writer: &Writer,
        news: &Rc<Notify>,
        tasks: &mut JoinSet<()>,
    ) -> Bundle {
        let remedy =
            "delete or rename it, and the controller publishes the CA; until then what is in it is trusted";
        let target = config_map(namespace, AUTHORITY);
        let config_map = Owned::follow(target, remedy, writer, (&shared.findings, news), tasks);
        Bundle { shared: Rc::clone(shared), config_map, starter: false, good: None }
    }

    /// Publishes what is to be trusted now.
    pub(super) async fn keep(&mut self, authority: &Rc<Authority>) {
        // What expires makes another authority.
        let same = self.good.as_ref().is_some_and(|good| Rc::ptr_eq(good, authority));
        if same && self.config_map.is_unchanged() {
            return;
        }
        self.good = None;
        let bundle = authority.bundle(self.shared.clocks());
        let is_good = match self.config_map.look().0 {
            Found::Unknown | Found::Foreign => return,
            Found::Absent => false,
            Found::Ours(found) => {
                let annotations = found.metadata.annotations.unwrap_or_default();
                let marked = annotations.contains_key(STARTER);
                let good = marked || !self.starter;
                self.starter |= marked;
                let published = found.data.as_ref().and_then(|data| data.get(AUTHORITY_KEY));
                self.report_other(published.map_or("", String::as_str), &bundle);
                good && found.data.is_some_and(|data| data.get(AUTHORITY_KEY) == Some(&bundle))
            }
        };
        if is_good {
            self.config_map.is_good();
            self.good = Some(Rc::clone(authority));
            return;
        }
        if !self.config_map.is_due() {
            return;
        }
        let mut annotations = Map::new();
        if self.starter {
            annotations.insert(STARTER.to_owned(), json!("done"));
        }
        let object = json!({"metadata": {"annotations": annotations}, "data": {AUTHORITY_KEY: bundle}});
        if self.config_map.write(object).await.is_some() {
            info!(configmap = %self.config_map.about(), "The CA is published");
        }
    }

    /// Reports a CA that has nothing in common with what was published: who has read that trusts no certificate of now.
    fn report_other(&self, published: &str, bundle: &str) {
        const END: &str = "-----END CERTIFICATE-----";
        let blocks =
            |text: &str| text.split_inclusive(END).map(|block| block.trim().to_owned()).collect::<Vec<_>>();
        let now = blocks(bundle);
        let is_ca = published.contains(END);
        if is_ca && !blocks(published).iter().any(|block| block.ends_with(END) && now.contains(block)) {
            let text = format!(
                "The CA in {} was replaced by one that nobody has seen before, as if its Secret had been lost: programs that \
                 have read it, as OpenIM does when it starts, trust no certificate that is signed now. Restart OpenIM, or stop the \
                 controller and restore the Secret {AUTHORITY} from a backup",
                self.config_map.about()
            );
            self.config_map.problem(REPLACED, Some(text));
        }
    }

    /// The namespace was made again: whatever was in it is gone.
    pub(super) fn begin_anew(&mut self) {
        (self.starter, self.good) = (false, None);
    }

    /// Whether the namespace has had its starter policy; `None` if that is not known, or could not be noted.
    pub(super) fn had_starter(&mut self) -> Option<bool> {
        let (found, changed) = self.config_map.look();
        if changed {
            // Seen here, and not looked at for what it holds.
            self.good = None;
        }
        match found {
            Found::Ours(found) => {
                self.starter |= found.metadata.annotations.unwrap_or_default().contains_key(STARTER);
                Some(self.starter)
            }
            Found::Absent => Some(self.starter),
            Found::Unknown | Found::Foreign => None,
        }
    }

    /// The namespace has its starter policy, or needs none.
    pub(super) fn has_starter(&mut self) {
        self.starter = true;
    }
}

/// The reason of a finding about a CA that has replaced an unrelated one. It stays for the term.
const REPLACED: &str = "AuthorityReplaced";

/// The reason of a finding about a certificate that could not be signed.
const NOT_SIGNED: &str = "NotSigned";

/// The certificate of a namespace's sidecars.
pub(super) struct Leaf {
    shared: Rc<Shared>,
    namespace: String,
    names: Vec<String>,
    secret: Owned<Secret>,
    /// What was found good, and until when no other look is needed, in seconds since 1970 of the later clock.
    good: Option<(Rc<Authority>, i64)>,
}

impl Leaf {
    /// Follows the Secret within `tasks`. The certificate is for these names.
    pub(super) fn follow(
        shared: &Rc<Shared>,
        namespace: &str,
        names: Vec<String>,
        writer: &Writer,
        (news, tasks): (&Rc<Notify>, &mut JoinSet<()>),
    ) -> Leaf {
        let target = secret(namespace, shared.config.tls_secret());
        let remedy = "delete or rename it, and the controller creates its own, or name the namespace in --external-tls";
        let secret = Owned::follow(target, remedy, writer, (&shared.findings, news), tasks);
        Leaf { shared: Rc::clone(shared), namespace: namespace.to_owned(), names, secret, good: None }
    }

    /// Signs a certificate if the one that is served should be another.
    pub(super) async fn keep(&mut self, authority: &Rc<Authority>) {
        let clocks = self.shared.clocks();
        let lifetimes = &self.shared.config.lifetimes;
        let is_good = |(by, until): &(Rc<Authority>, i64)| Rc::ptr_eq(by, authority) && clocks.later < *until;
        if self.secret.is_unchanged() && self.good.as_ref().is_some_and(is_good) {
            return;
        }
        let reason = match self.secret.look().0 {
            Found::Unknown | Found::Foreign => return,
            Found::Absent => "there was none".to_owned(),
            Found::Ours(found) => {
                let data = plain(found.data.unwrap_or_default());
                let part = |key: &str| data.get(key).map(Vec::as_slice).unwrap_or_default();
                match authority.judge(part("tls.crt"), part("tls.key"), &self.names, lifetimes, clocks) {
                    CertificateState::Good { renew_at, not_after } => {
                        self.shared.metrics.certificate(&self.namespace, not_after);
                        self.secret.is_good();
                        self.good = Some((Rc::clone(authority), renew_at));
                        return;
                    }
                    CertificateState::Due(reason) => reason.to_string(),
                }
            }
        };
        self.good = None;
        if !self.secret.is_due() {
            return;
        }
        let signed = match authority.sign(&self.names, lifetimes, clocks) {
            Ok(signed) => signed,
            Err(error) => {
                let text = format!("{} cannot be signed: {error}; what is served stays", self.secret.about());
                self.shared.metrics.renewed(false);
                self.secret.failed();
                return self.secret.problem(NOT_SIGNED, Some(text));
            }
        };
        self.secret.problem(NOT_SIGNED, None);
        let data = [("tls.crt", signed.chain_pem), ("tls.key", signed.key_pem)].into();
        let object: Value = json!({"type": "kubernetes.io/tls", "data": encoded(&data)});
        let written = self.secret.write(object).await.is_some();
        self.shared.metrics.renewed(written);
        if written {
            self.shared.metrics.certificate(&self.namespace, signed.not_after);
            let not_after = Utc(signed.not_after);
            info!(secret = %self.secret.about(), reason, %not_after, "The certificate of the sidecars is signed");
        }
    }
}
