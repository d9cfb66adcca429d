//! Plays OpenIM: sends callbacks as its servers do, and concludes what they conclude.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::callback::{Callback, RawRequest};
use crate::policy::Validation;
use crate::tls;
use crate::verdict::{self, Conclusion};

/// How long OpenIM waits in the demo: `timeout` of its `webhooks.yml`, where the default is five seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// `NetworkError` in OpenIM's code.
const NETWORK_ERROR: i32 = 90004;

/// `DataError`.
const DATA_ERROR: i32 = 90007;

/// What a panic becomes: an internal error of the server.
const SERVER_ERROR: i32 = 500;

/// Stands in the bodies for the operation ID, which is new for each callback.
const PLACE_OF_ID: &str = "OPERATION-ID";

/// A callback as one of OpenIM's servers sends it, and how the demo calls it.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) label: &'static str,
    command: &'static str,
    body: &'static str,
}

/// A text message.
pub(super) const MESSAGE: Sample = Sample {
    label: "message",
    command: "callbackBeforeSendSingleMsgCommand",
    body: r#"{"sendID":"8112345670","callbackCommand":"callbackBeforeSendSingleMsgCommand","serverMsgID":"3314df86c67cdb1e6b776c9ee50f61ea","clientMsgID":"e076b0b51e0ff49040a0fb1110443ae2","operationID":"OPERATION-ID","senderPlatformID":2,"senderNickname":"Ana","sessionType":1,"msgFrom":100,"contentType":101,"status":1,"sendTime":1730891241668,"createTime":1730891241515,"content":"{\"content\":\"dinner at eight?\"}","seq":0,"atUserList":null,"faceURL":"https://cdn.example.com/a.png?x=1\u0026y=2","ex":"","recvID":"9857614859"}"#,
};

/// A text message that the app refuses.
pub(super) const SPAM: Sample = Sample {
    label: "spam",
    command: "callbackBeforeSendSingleMsgCommand",
    body: r#"{"sendID":"7700112233","callbackCommand":"callbackBeforeSendSingleMsgCommand","serverMsgID":"80c1d5f0a4fb4b5c9f2a9b7e55d20c11","clientMsgID":"1f0c9f0be4a84dc2a2f0a6a1c6f5a0aa","operationID":"OPERATION-ID","senderPlatformID":1,"senderNickname":"Lucky","sessionType":1,"msgFrom":100,"contentType":101,"status":1,"sendTime":1730891242668,"createTime":1730891242515,"content":"{\"content\":\"win at our casino today\"}","seq":0,"atUserList":null,"faceURL":"","ex":"","recvID":"9857614859"}"#,
};

/// A picture.
pub(super) const PICTURE: Sample = Sample {
    label: "picture",
    command: "callbackBeforeSendGroupMsgCommand",
    body: r#"{"sendID":"8112345670","callbackCommand":"callbackBeforeSendGroupMsgCommand","serverMsgID":"5a0e37ddc59d4b0dbb4d0a4ac6a4e7d3","clientMsgID":"b0d6f35f40514dcd8cf3ad5f8f3a5d10","operationID":"OPERATION-ID","senderPlatformID":2,"senderNickname":"Ana","sessionType":3,"msgFrom":100,"contentType":102,"status":1,"sendTime":1730891243668,"createTime":1730891243515,"content":"{\"sourcePicture\":{\"type\":\"png\",\"size\":20480,\"width\":640,\"height\":480,\"url\":\"https://cdn.example.com/p.png\"}}","seq":0,"atUserList":null,"faceURL":"","ex":"","groupID":"2349876510"}"#,
};

/// A push to those who are online.
pub(super) const PUSH: Sample = Sample {
    label: "push",
    command: "callbackBeforeOnlinePushCommand",
    body: r#"{"callbackCommand":"callbackBeforeOnlinePushCommand","operationID":"OPERATION-ID","platformID":2,"platform":"Android","userIDList":["9857614859","8112345670"],"clientMsgID":"e076b0b51e0ff49040a0fb1110443ae2","sendID":"8112345670","groupID":"","contentType":101,"sessionType":1,"atUserIDList":null,"content":"{\"content\":\"dinner at eight?\"}"}"#,
};

/// A new group.
pub(super) const GROUP: Sample = Sample {
    label: "new group",
    command: "callbackBeforeCreateGroupCommand",
    body: r#"{"operationID":"OPERATION-ID","callbackCommand":"callbackBeforeCreateGroupCommand","groupID":"","groupName":"team","notification":"","introduction":"","faceURL":"","ownerUserID":"","createTime":0,"memberCount":0,"ex":"","status":0,"creatorUserID":"","groupType":2,"needVerification":0,"lookMemberInfo":0,"applyMemberFriend":0,"notificationUpdateTime":0,"notificationUserID":"","initMemberList":[{"userID":"8112345670","roleLevel":100},{"userID":"9857614859","roleLevel":20}]}"#,
};

impl Sample {
    /// The body with this operation ID.
    pub(super) fn body(&self, operation_id: &str) -> String {
        self.body.replace(PLACE_OF_ID, operation_id)
    }

    /// The path OpenIM appends to its URL.
    pub(super) fn path(&self) -> String {
        format!("/{}", self.command)
    }
}

/// What OpenIM does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Goes on.
    Allowed,
    /// Refuses, and the user sees this code.
    Denied(i32),
    /// Gives up the operation with an error of its own.
    Lost(i32),
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Allowed => out.write_str("allowed"),
            Outcome::Denied(code) => write!(out, "denied {code}"),
            Outcome::Lost(code) => write!(out, "lost {code}"),
        }
    }
}

/// What became of a callback.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) outcome: Outcome,
    /// From sending to the last byte of the answer, or to giving up.
    pub(super) took: Duration,
    /// Who decided, as the guard's headers say; `nobody` without an answer of the guard.
    pub(super) decided_by: String,
}

/// OpenIM, as far as the demo needs it.
#[derive(Debug)]
pub(super) struct Caller {
    app: SocketAddr,
    authority: String,
    guard: http2::SendRequest<Full<Bytes>>,
    sent: Cell<u64>,
}

impl Caller {
    /// Connects to the guard by TLS and HTTP/2, verifying its certificate, and keeps the connection as Go does.
    pub(super) async fn connect(
        app: SocketAddr,
        guard: SocketAddr,
        certificate: &Path,
    ) -> Result<Caller, String> {
        let connect = async {
            let stream = TcpStream::connect(guard).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let name = ServerName::try_from("localhost").expect("a constant name");
            let stream = connector(certificate)?.connect(name, stream).await;
            let stream = TokioIo::new(stream.map_err(|error| error.to_string())?);
            http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| error.to_string())
        };
        let connected = timeout(PATIENCE, connect).await.unwrap_or_else(|_| Err("no answer".to_owned()));
        let (sender, connection) =
            connected.map_err(|error| format!("the guard cannot be connected to: {error}"))?;
        // What ends a connection is met again by the next callback.
        tokio::task::spawn_local(async move { drop(connection.await) });
        let authority = format!("localhost:{}", guard.port());
        Ok(Caller { app, authority, guard: sender, sent: Cell::new(0) })
    }

    /// Asks the app itself, as OpenIM does where there is no guard.
    pub(super) async fn ask_app(&self, sample: &Sample) -> Seen {
        let (body, id) = self.next(sample);
        let target = sample.path();
        let request = request(&target, &body, &id)
            .header(header::HOST, self.app.to_string())
            .header(header::USER_AGENT, "Go-http-client/1.1");
        let exchange = async {
            let stream = TcpStream::connect(self.app).await.ok()?;
            let mut builder = http1::Builder::new();
            // Go writes `Operationid` and so on.
            builder.title_case_headers(true);
            let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
            tokio::task::spawn_local(async move { drop(connection.await) });
            let request = request.body(Full::new(Bytes::from(body.clone()))).ok()?;
            whole(sender.send_request(request).await.ok()?).await
        };
        self.concluded(&target, &body, &id, exchange).await
    }

    /// Asks the guard.
    pub(super) async fn ask_guard(&self, sample: &Sample) -> Seen {
        let (body, id) = self.next(sample);
        let target = format!("https://{}{}", self.authority, sample.path());
        let request = request(&target, &body, &id).header(header::USER_AGENT, "Go-http-client/2.0");
        let mut sender = self.guard.clone();
        let exchange = async {
            sender.ready().await.ok()?;
            let request = request.body(Full::new(Bytes::from(body.clone()))).ok()?;
            whole(sender.send_request(request).await.ok()?).await
        };
        self.concluded(&target, &body, &id, exchange).await
    }

    fn next(&self, sample: &Sample) -> (String, String) {
        self.sent.set(self.sent.get() + 1);
        let id = format!("17308912415150{:05}", self.sent.get());
        (sample.body(&id), id)
    }

    /// Waits as long as OpenIM does, and concludes.
    async fn concluded(
        &self,
        target: &str,
        body: &str,
        id: &str,
        exchange: impl Future<Output = Option<(HeaderMap, Bytes)>>,
    ) -> Seen {
        let began = Instant::now();
        let answer = timeout(PATIENCE, exchange).await.ok().flatten();
        let took = began.elapsed();
        match answer {
            Some((headers, answer)) => {
                let outcome = conclude(&answer, target, body, id);
                Seen { outcome, took, decided_by: decided_by(&headers) }
            }
            None => Seen { outcome: Outcome::Lost(NETWORK_ERROR), took, decided_by: "nobody".to_owned() },
        }
    }
}

fn connector(certificate: &Path) -> Result<TlsConnector, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("{}: {error}", certificate.display());
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(certificate).map_err(|error| unreadable(&error))?;
    roots.add(certificate).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("aws-lc has cipher suites for the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The head of a callback, with the headers Go's client sends.
fn request(target: &str, body: &str, operation_id: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri(target)
        .header(header::CONTENT_LENGTH, body.len())
        .header(header::CONTENT_TYPE, "application/json; charset=utf-8")
        .header("operationid", operation_id)
        .header(header::ACCEPT_ENCODING, "gzip")
}

async fn whole(response: Response<Incoming>) -> Option<(HeaderMap, Bytes)> {
    let (head, body) = response.into_parts();
    Some((head.headers, body.collect().await.ok()?.to_bytes()))
}

/// What OpenIM's code makes of an answer; it never looks at the status.
fn conclude(answer: &[u8], target: &str, body: &str, operation_id: &str) -> Outcome {
    let (head, ()) =
        request(target, body, operation_id).body(()).expect("the request was sent like this").into_parts();
    let raw = RawRequest { head, body: Bytes::copy_from_slice(body.as_bytes()) };
    let callback = Callback::parse(raw, &Validation::default(), String::new)
        .map_err(|(_, rejection)| rejection)
        .expect("the demo's callbacks are those of OpenIM");
    match verdict::openim(answer, &callback) {
        Conclusion::Allowed => Outcome::Allowed,
        Conclusion::Denied { code } => Outcome::Denied(code),
        Conclusion::DataError(_) => Outcome::Lost(DATA_ERROR),
        Conclusion::Fails(_) => Outcome::Lost(SERVER_ERROR),
    }
}

/// `fallback: timeout`, from the headers of the guard's answer.
fn decided_by(headers: &HeaderMap) -> String {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let why = match value("callback-guard-cause") {
        "" => value("callback-guard-finding"),
        cause => cause,
    };
    let origin = value("callback-guard-origin");
    if why.is_empty() { origin.to_owned() } else { format!("{origin}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_a_callback_and_gets_the_conclusion_of_its_answer() {
        for sample in [&MESSAGE, &SPAM, &PICTURE, &PUSH, &GROUP] {
            let body = sample.body("1");
            assert!(!body.contains(PLACE_OF_ID), "{}", sample.label);
            for (answer, expected) in [
                (r#"{"actionCode":0,"nextCode":0}"#, Outcome::Allowed),
                (r#"{"actionCode":0,"errCode":5001,"nextCode":1}"#, Outcome::Denied(5001)),
                (r#"{"actionCode":1,"errCode":5001,"nextCode":1}"#, Outcome::Allowed),
                (r#"{"actionCode":0,"nextCode":""}"#, Outcome::Lost(DATA_ERROR)),
                ("<html>", Outcome::Lost(DATA_ERROR)),
            ] {
                assert_eq!(conclude(answer.as_bytes(), &sample.path(), &body, "1"), expected, "{answer}");
            }
        }
    }

    #[test]
    fn who_decided_is_told_with_its_cause_or_finding() {
        let told = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().expect("a value"));
            }
            decided_by(&headers)
        };
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[("callback-guard-origin", "upstream")]), "upstream");
        let fallback = [("callback-guard-origin", "fallback"), ("callback-guard-cause", "timeout")];
        assert_eq!(told(&fallback), "fallback: timeout");
        let found = [("callback-guard-origin", "upstream"), ("callback-guard-finding", "code-as-string")];
        assert_eq!(told(&found), "upstream: code-as-string");
    }
}
