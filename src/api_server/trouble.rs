//! What went wrong with the API server, for whoever has to mend it: what was asked, what the server said, what to check.

use std::fmt;
use std::fmt::Write as _;
use std::io;

use kube::Error;
use kube::core::Status;

/// How much of a server's own words is repeated, in characters.
const WORDS_LIMIT: usize = 300;

/// Where the API server is and what is used there, in words; no secret among them.
#[derive(Debug)]
pub struct Place {
    /// `https://10.0.0.1:443`
    pub(super) address: String,
    /// What said so: the service account of this pod, or a kubeconfig with its path.
    pub(super) from: String,
    /// What the server was shown.
    pub(super) credential: String,
    /// What its certificate is checked against.
    pub(super) authority: String,
}

/// The objects that a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `ConfigMap`
    pub kind: &'static str,
    /// Group of the API; empty for the core.
    pub group: &'static str,
    /// `configmaps`
    pub resource: &'static str,
    /// `None` for objects of the whole cluster.
    pub namespace: Option<String>,
    /// `None`: several of the namespace.
    pub name: Option<String>,
}

impl fmt::Display for Target {
    /// `ConfigMap shop/policy`, `MutatingAdmissionPolicy callback-guard`, `pods in namespace shop`
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(out, "{} {namespace}/{name}", self.kind),
            (None, Some(name)) => write!(out, "{} {name}", self.kind),
            (Some(namespace), None) => write!(out, "{} in namespace {namespace}", self.resource),
            (None, None) => write!(out, "all {}", self.resource),
        }
    }
}

/// What is done with a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Listed and watched; some read it alone as well.
    Read,
    /// Server-side apply.
    Apply,
    /// Replaced as a whole.
    Replace,
}

impl Action {
    fn words(self) -> &'static str {
        match self {
            Action::Read => "asked for",
            Action::Apply => "asked to apply",
            Action::Replace => "asked to replace",
        }
    }

    /// The verbs that a Role has to allow.
    fn verbs(self) -> &'static str {
        match self {
            Action::Read => "get, list, watch",
            Action::Apply => "create, patch",
            Action::Replace => "update",
        }
    }
}

/// Why a request came to no answer, or its answer to no end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// No way to the API server, or the token cannot be used.
    #[error("{0}")]
    Access(String),
    /// No connection.
    #[error("{0}")]
    Connect(io::Error),
    /// A connection, and no TLS on it.
    #[error("{0}")]
    Tls(io::Error),
    /// A connection that ended before the answer, or something that is no HTTP.
    #[error("{0}")]
    Http(hyper::Error),
    /// Neither a byte nor an end for so many seconds.
    #[error("nothing came for {0} s, not even a bookmark: the connection is dead")]
    Silent(u64),
    /// A line that no object is long enough for.
    #[error("a line of more than {0} bytes came: no object is that large")]
    TooLong(usize),
    /// A request that cannot be written.
    #[error("{0}")]
    Request(http::Error),
}

/// One sentence: what was asked, what the server said, what to check.
pub fn explain(error: &Error, place: &Place, action: Action, target: &Target) -> String {
    let Place { address, from, credential, authority } = place;
    let asked = action.words();
    #[allow(clippy::wildcard_enum_match_arm, reason = "what is left cannot come from these requests")]
    match error {
        Error::Api(status) => answered(status, place, action, target),
        Error::Service(error) => match error.downcast_ref::<Failure>() {
            Some(Failure::Connect(error)) => format!(
                "{address} cannot be connected: {error}; check that the API server runs and that the address of {from} \
                 and the network policies of this namespace let the pod reach it"
            ),
            Some(Failure::Tls(error)) => format!(
                "{address} was connected and TLS with it failed: {error}; check that {authority} is the authority of \
                 this API server"
            ),
            Some(Failure::Access(problem)) => {
                format!("{address} was not asked: {problem}; check that the token is mounted and readable")
            }
            Some(other) => format!("{address} was {asked} {target} and gave no answer: {other}"),
            None => format!("{address} cannot be asked: {error}"),
        },
        Error::ReadEvents(error) => format!("the watch at {address} was cut: {error}"),
        Error::SerdeError(error) => format!(
            "{address} was {asked} {target} and its answer cannot be read: {}; check that the server of {from} \
             is a Kubernetes API server, shown {credential}",
            bounded(&error.to_string())
        ),
        other => format!("{address} was {asked} {target}: {}", bounded(&other.to_string())),
    }
}

fn answered(status: &Status, place: &Place, action: Action, target: &Target) -> String {
    let Place { address, from, credential, .. } = place;
    let code = status.code;
    let mut text = format!("{address} was {} {target} and said {code}", action.words());
    let words = bounded(if status.message.is_empty() { &status.reason } else { &status.message });
    if !words.is_empty() {
        let _ = write!(text, " ({words})");
    }
    let check = match code {
        // What refuses after the rights were checked names itself.
        _ if words.contains("being terminated") => "the namespace is being deleted: nothing to do".to_owned(),
        _ if words.contains("admission webhook") => {
            "an admission webhook of this cluster refuses it: let it pass objects of callback-guard, or leave out the \
             namespace"
                .to_owned()
        }
        _ if words.contains("exceeded quota") => "the quota of the namespace is used up: raise it".to_owned(),
        404 if action != Action::Read => "the namespace does not exist: create it".to_owned(),
        401 => format!("check {credential}: the server does not know whose it is, or it has expired"),
        403 => format!("check that {}", missing_right(action, target)),
        404 => format!("check that the server of {from} is a Kubernetes API server"),
        410 => "the place where the watch was to go on is gone, so it is listed anew".to_owned(),
        429 => "the server is overloaded, and is asked again no sooner than it wants to be".to_owned(),
        500.. => "check the API server and its etcd".to_owned(),
        _ => return text,
    };
    let _ = write!(text, "; {check}");
    text
}

/// The right that a 403 says is missing, as a Role has it.
fn missing_right(action: Action, target: &Target) -> String {
    let Target { group, resource, namespace, name, .. } = target;
    let names = name.as_ref().map(|name| format!("resourceNames: [{name}], ")).unwrap_or_default();
    let verbs = action.verbs();
    let rule = format!("{{apiGroups: [\"{group}\"], resources: [{resource}], {names}verbs: [{verbs}]}}");
    match namespace {
        Some(namespace) => format!(
            "a Role in namespace {namespace} has the rule {rule} and that a RoleBinding there gives it to this pod's \
             service account"
        ),
        None => format!(
            "a ClusterRole has the rule {rule} and that a ClusterRoleBinding gives it to this pod's service account"
        ),
    }
}

/// A server's words on one line, cut where they are long.
fn bounded(text: &str) -> String {
    let mut words: String = text.trim().chars().take(WORDS_LIMIT).collect();
    words = words.replace(char::is_control, " ");
    if text.trim().chars().nth(WORDS_LIMIT).is_some() {
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            address: "https://10.0.0.1:443".to_owned(),
            from: "the service account of this pod".to_owned(),
            credential: "the token in /run/token".to_owned(),
            authority: "/run/ca.crt".to_owned(),
        }
    }

    fn target() -> Target {
        let name = Some("policy".to_owned());
        Target {
            kind: "ConfigMap",
            group: "",
            resource: "configmaps",
            namespace: Some("shop".to_owned()),
            name,
        }
    }

    fn refused(code: u16, message: &str, action: Action, target: &Target) -> String {
        explain(&Error::Api(Status::failure(message, "").with_code(code).boxed()), &place(), action, target)
    }

    fn said(code: u16, message: &str) -> String {
        refused(code, message, Action::Read, &target())
    }

    #[test]
    fn each_answer_is_explained_by_what_was_asked_what_was_said_and_what_to_check() {
        for (code, check) in [
            (401, "check the token in /run/token"),
            (403, "resources: [configmaps], resourceNames: [policy], verbs: [get, list, watch]}"),
            (404, "is a Kubernetes API server"),
            (410, "listed anew"),
            (429, "no sooner"),
            (503, "etcd"),
        ] {
            let text = said(code, "because");
            let asked = format!(
                "https://10.0.0.1:443 was asked for ConfigMap shop/policy and said {code} (because); "
            );
            assert!(text.starts_with(&asked) && text.contains(check), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
        assert!(said(403, "").contains("in namespace shop"), "{}", said(403, ""));
    }

    #[test]
    fn a_refused_write_names_the_right_or_the_webhook_or_the_namespace_that_goes() {
        let role = refused(403, "User \"x\" cannot patch", Action::Apply, &target());
        assert!(
            role.contains("asked to apply ConfigMap shop/policy") && role.contains("verbs: [create, patch]}"),
            "{role}"
        );
        let cluster = Target { namespace: None, name: None, ..target() };
        let role = refused(403, "", Action::Read, &cluster);
        let rule = "a ClusterRole has the rule {apiGroups: [\"\"], resources: [configmaps], verbs: [get, list, watch]}";
        assert!(role.contains("asked for all configmaps") && role.contains(rule), "{role}");
        let webhook = refused(403, "admission webhook \"w\" denied", Action::Apply, &target());
        assert!(webhook.contains("an admission webhook") && !webhook.contains("Role"), "{webhook}");
        let missing = refused(404, "namespaces \"shop\" not found", Action::Apply, &target());
        assert!(missing.ends_with("the namespace does not exist: create it"), "{missing}");
        let quota = refused(403, "exceeded quota: q", Action::Apply, &target());
        assert!(quota.contains("raise it") && !quota.contains("Role"), "{quota}");
        let gone = refused(403, "because it is being terminated", Action::Apply, &target());
        assert!(gone.ends_with("is being deleted: nothing to do"), "{gone}");
    }

    #[test]
    fn each_failure_before_an_answer_names_what_to_check() {
        let failed =
            |failure: Failure| explain(&Error::Service(failure.into()), &place(), Action::Read, &target());
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(failed(Failure::Connect(refused())).contains("address of the service account of this pod"));
        assert!(
            failed(Failure::Tls(io::Error::other("UnknownIssuer"))).contains("check that /run/ca.crt is")
        );
        assert!(
            failed(Failure::Access("the token file /t is empty".to_owned())).contains("/t is empty; check")
        );
    }

    #[test]
    fn a_page_instead_of_a_status_is_cut_and_stays_on_one_line() {
        let text = said(502, &"<html>\n".repeat(1000));
        assert!(text.len() < 600 && !text.contains('\n') && text.contains('…'), "{text}");
        assert_eq!(bounded(" short "), "short");
    }
}
