//! The admin port: plain HTTP, on a thread of its own, so that a busy data plane cannot fail its own probes.
//!
//! | path | who | what |
//! |---|---|---|
//! | `GET /livez` | all | 200 while the process runs |
//! | `GET /readyz` | all | 200, or 503 with the names of what is missing |
//! | `GET /metrics` | all | OpenMetrics text |
//! | `GET /policy` | loopback | what is in force, as JSON, and why the last edit is not |
//! | `GET /decisions` | loopback | the last 300, the newest first, as JSON; no content of messages |
//! | `GET /` | loopback | the same for people |
//! | `POST /drain` | loopback | the pod is ending |
//!
//! Loopback is `kubectl port-forward` and whatever runs in the pod. No environment and no secret is shown.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::drain::{Drain, Stage};
use crate::held::Held;
use crate::metrics::Metrics;
use crate::ready::Readiness;
use crate::source::Publisher;
use crate::status::Recent;
use crate::tls::Tls;

mod page;

/// Connections at once: kubelet's probes, a scraper or two, a person.
pub const CONNECTIONS: usize = 64;

/// How long the head of a request may take, and an idle connection stay.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the accept loop rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the admin port shows, and the one thing it can set off.
#[derive(Debug)]
pub struct Admin {
    /// The policy, and why the last one was refused.
    pub policy: Publisher,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is missing.
    pub readiness: Readiness,
    /// The pod's end.
    pub drain: Arc<Drain>,
    /// The last decisions.
    pub recent: Recent,
    /// Bytes held.
    pub held: Held,
    /// The certificate, once there is one.
    pub tls: Arc<OnceLock<Tls>>,
    /// The ConfigMap that is watched, where one is.
    pub configmap: Option<String>,
    /// Where the app is, for the page.
    pub upstream: String,
    /// When the process began.
    pub started: Instant,
}

impl Admin {
    /// Serves for ever. Runs inside a `LocalSet` or a local runtime.
    pub async fn serve(self: Rc<Self>, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit =
                Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "A connection to the admin port cannot be accepted; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let admin = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request| {
                    let response = admin.answer(&request, peer);
                    async move { Ok::<_, std::convert::Infallible>(response) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                // A probe that goes away early is nobody's trouble.
                drop((served, permit));
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>, peer: SocketAddr) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let allowed = if path == "/drain" { Method::POST } else { Method::GET };
        let open = matches!(path, "/livez" | "/readyz" | "/metrics");
        let known = open || matches!(path, "/" | "/policy" | "/decisions" | "/drain");
        if !known {
            return text(
                StatusCode::NOT_FOUND,
                "there is /, /livez, /readyz, /metrics, /policy, /decisions, /drain\n",
            );
        }
        if !open && !peer.ip().to_canonical().is_loopback() {
            return text(StatusCode::FORBIDDEN, "for callers on loopback alone: use kubectl port-forward\n");
        }
        if *request.method() != allowed && !(request.method() == Method::HEAD && allowed == Method::GET) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is for {allowed}\n"));
            let allowed = HeaderValue::from_str(allowed.as_str()).expect("a method's name is visible ASCII");
            response.headers_mut().insert(header::ALLOW, allowed);
            return response;
        }
        match path {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(),
            "/metrics" => self.metrics(),
            "/policy" => json_text(&self.policy()),
            "/decisions" => {
                let lines = self.recent.lines();
                content(StatusCode::OK, "application/json", format!("[{}]\n", lines.join(",\n")))
            }
            // A page in the browser of whoever forwards this port may ask, and is told apart by what browsers add.
            "/drain" if request.headers().contains_key(header::ORIGIN) => {
                text(StatusCode::FORBIDDEN, "not for web pages\n")
            }
            "/drain" => {
                if self.drain.advance(Stage::Leaving, Instant::now()) {
                    info!("The pod is ending: callers are told to go elsewhere");
                }
                text(StatusCode::OK, "draining\n")
            }
            _ => content(StatusCode::OK, "text/html; charset=utf-8", page::render(self)),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let mut missing = self.readiness.missing();
        if self.drain.watch().stage() >= Stage::Ending {
            missing.push("draining".to_owned());
        }
        if missing.is_empty() {
            return text(StatusCode::OK, "ok\n");
        }
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {}\n", missing.join(", ")))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let held = (self.held.bytes(), self.held.limit());
        let metrics = self.metrics.text(&self.policy.current(), held, SystemTime::now());
        content(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics)
    }

    fn policy(&self) -> Value {
        let now = self.policy.current();
        let [refused_policy, refused_override] = self.policy.refused();
        let over = now.over.as_ref().map(|over| {
            let mut json = over.to_json();
            json["active"] = json!(over.active(SystemTime::now()));
            json
        });
        json!({
            "source": now.source.label(),
            "revision": now.revision,
            "hash": now.policy.hash(),
            "policy": now.policy.to_json(),
            "override": over,
            "refusedPolicy": refused_policy,
            "refusedOverride": refused_override,
            "watch": self.configmap.as_ref().map(|name| json!({
                "configmap": name,
                "connected": self.policy.watched().is_connected(),
                "problem": self.policy.watched().problem.reason(),
                "cacheProblem": self.policy.not_kept(),
            })),
        })
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    content(status, "text/plain; charset=utf-8", text.to_owned())
}

fn json_text(json: &Value) -> Response<Full<Bytes>> {
    content(StatusCode::OK, "application/json", format!("{json:#}\n"))
}

fn content(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
