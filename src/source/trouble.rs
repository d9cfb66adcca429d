//! What went wrong with the API server, for the one who has to mend it: what was tried, what came of it, what to check.

use std::fmt::Write as _;
use std::io;

use kube::Error;
use kube::core::Status;

use super::config_map::Name;

/// How much of a server's own words is told.
const WORDS_LIMIT: usize = 300;

/// Where the API server is and what is used there, in words; no secret among them.
#[derive(Debug)]
pub(super) struct Place {
    /// `https://10.0.0.1:443`
    pub(super) address: String,
    /// What said so: the service account of this pod, or a kubeconfig with its path.
    pub(super) from: String,
    /// What the server was shown.
    pub(super) credential: String,
    /// What its certificate is held against.
    pub(super) authority: String,
}

/// Why a request came to no answer, or its answer to no end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The token cannot be used.
    #[error("{0}")]
    Token(String),
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
    /// A line that no ConfigMap is long enough for.
    #[error("a line of more than {0} bytes came: no ConfigMap is that large")]
    TooLong(usize),
    /// A request that cannot be written.
    #[error("{0}")]
    Request(http::Error),
}

/// One sentence: what was tried, what the server said, what to check.
pub(super) fn told(error: &Error, place: &Place, name: &Name) -> String {
    let Place { address, from, credential, authority } = place;
    #[allow(clippy::wildcard_enum_match_arm, reason = "what is left cannot come from a list or a watch")]
    match error {
        Error::Api(status) => answered(status, place, name),
        Error::Service(error) => match error.downcast_ref::<Failure>() {
            Some(Failure::Connect(error)) => format!(
                "{address} cannot be connected: {error}; check that the API server runs and that the address of {from} \
                 and the network policies of this namespace let the pod reach it"
            ),
            Some(Failure::Tls(error)) => format!(
                "{address} was connected and TLS with it failed: {error}; check that {authority} is the authority of \
                 this API server"
            ),
            Some(Failure::Token(problem)) => {
                format!("{address} was not asked: {problem}; check that the token is mounted and readable")
            }
            Some(other) => format!("{address} was asked for ConfigMap {name} and gave no answer: {other}"),
            None => format!("{address} cannot be asked: {error}"),
        },
        Error::ReadEvents(error) => format!("the watch at {address} was cut: {error}"),
        Error::SerdeError(error) => format!(
            "{address} was asked for ConfigMap {name} and its answer cannot be read: {}; check that the server of {from} \
             is a Kubernetes API server, shown {credential}",
            bounded(&error.to_string())
        ),
        other => format!("{address} was asked for ConfigMap {name}: {}", bounded(&other.to_string())),
    }
}

fn answered(status: &Status, place: &Place, name: &Name) -> String {
    let Place { address, from, credential, .. } = place;
    let (code, Name { namespace, name: object }) = (status.code, name);
    let mut text = format!("{address} was asked for ConfigMap {name} and said {code}");
    let words = bounded(if status.message.is_empty() { &status.reason } else { &status.message });
    if !words.is_empty() {
        let _ = write!(text, " ({words})");
    }
    let check = match code {
        401 => format!("check {credential}: the server does not know whose it is, or it has expired"),
        403 => format!(
            "check that a Role in namespace {namespace} has the rule {{apiGroups: [\"\"], resources: [configmaps], \
             resourceNames: [{object}], verbs: [get, list, watch]}} and that a RoleBinding there gives it to this pod's \
             service account"
        ),
        404 => format!("check that the server of {from} is a Kubernetes API server"),
        410 => "the place where the watch was to go on is gone, so the ConfigMap is listed anew".to_owned(),
        429 => "the server is overloaded, and is asked again no sooner than it wants to be".to_owned(),
        500.. => "check the API server and its etcd".to_owned(),
        _ => return text,
    };
    let _ = write!(text, "; {check}");
    text
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

    fn name() -> Name {
        Name { namespace: "shop".to_owned(), name: "policy".to_owned() }
    }

    fn said(code: u16, message: &str) -> String {
        told(&Error::Api(Status::failure(message, "").with_code(code).boxed()), &place(), &name())
    }

    #[test]
    fn each_answer_is_told_with_what_was_asked_what_was_said_and_what_to_check() {
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
    fn each_failure_before_an_answer_names_what_to_check() {
        let failed = |failure: Failure| told(&Error::Service(failure.into()), &place(), &name());
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(failed(Failure::Connect(refused())).contains("address of the service account of this pod"));
        assert!(
            failed(Failure::Tls(io::Error::other("UnknownIssuer"))).contains("check that /run/ca.crt is")
        );
        assert!(
            failed(Failure::Token("the token file /t is empty".to_owned())).contains("/t is empty; check")
        );
    }

    #[test]
    fn a_page_instead_of_a_status_is_cut_and_stays_on_one_line() {
        let text = said(502, &"<html>\n".repeat(1000));
        assert!(text.len() < 600 && !text.contains('\n') && text.contains('…'), "{text}");
        assert_eq!(bounded(" short "), "short");
    }
}
