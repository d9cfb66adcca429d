//! Admin ports: plain HTTP; in the proxy on a thread of its own, so that a busy data plane cannot fail its own probes.
//!
//! | path | who | what |
//! |---|---|---|
//! | `GET /livez` | all | 200 while the process runs |
//! | `GET /readyz` | all | 200, or 503 with the names of what is missing |
//! | `GET /metrics` | all | OpenMetrics text |
//! | `GET /` | loopback | a page for people |
//! | [`Pages::ROUTES`] | loopback | what this program adds |
//!
//! Loopback is `kubectl port-forward` and whatever runs in the pod. No environment and no secret is shown.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

pub mod page;
pub mod proxy;

/// Connections at once: kubelet's probes, a scraper or two, a person.
pub const CONNECTIONS: usize = 64;

/// How long the head of a request may take, and an idle connection stay.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the accept loop rests after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Paths for callers from everywhere.
const OPEN: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// A response of an admin port.
pub type Answer = Response<Full<Bytes>>;

/// What an admin port shows.
pub trait Pages: Sized + 'static {
    /// Paths for callers on loopback, in the order in which a 404 lists them. `/` and the open paths are not among them.
    const ROUTES: &'static [Route<Self>];

    /// What `/readyz` lacks; ready if empty.
    fn missing(&self) -> Vec<String>;

    /// OpenMetrics text for `/metrics`.
    fn metrics(&self) -> String;

    /// The HTML document at `/`.
    fn page(&self) -> String;
}

/// A path for callers on loopback.
#[derive(Debug)]
pub struct Route<P> {
    /// The whole path: `/policy`.
    pub path: &'static str,
    /// `GET`, which includes `HEAD`, or `POST`, which web pages may not send.
    pub method: Method,
    /// Makes the response: see [`text`] and [`json`].
    pub answer: fn(&P) -> Answer,
}

/// Serves for ever. Runs inside a `LocalSet` or a local runtime.
pub async fn serve<P: Pages>(pages: Rc<P>, listener: TcpListener) {
    accept(Rc::new(move |request, peer| answer(&*pages, request, peer)), listener).await;
}

/// What answers a request: the pages with their type forgotten, so that the server is compiled once.
type Answering = dyn Fn(&Request<Incoming>, SocketAddr) -> Answer;

async fn accept(answer: Rc<Answering>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "A connection to the admin port cannot be accepted; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = Rc::clone(&answer);
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, peer);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            // A probe that closes its connection early is not a problem.
            drop((served, permit));
        });
    }
}

fn answer<P: Pages, B>(pages: &P, request: &Request<B>, peer: SocketAddr) -> Answer {
    let path = request.uri().path();
    let open = OPEN.contains(&path);
    let route = P::ROUTES.iter().find(|route| route.path == path);
    if !open && path != "/" && route.is_none() {
        let own = P::ROUTES.iter().map(|route| route.path);
        let paths: Vec<_> = ["/"].into_iter().chain(OPEN).chain(own).collect();
        return text(StatusCode::NOT_FOUND, &format!("there is {}\n", paths.join(", ")));
    }
    if !open && !peer.ip().to_canonical().is_loopback() {
        return text(StatusCode::FORBIDDEN, "for callers on loopback alone: use kubectl port-forward\n");
    }
    let allowed = route.map_or(&Method::GET, |route| &route.method);
    if request.method() != allowed && !(request.method() == Method::HEAD && allowed == Method::GET) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is for {allowed}\n"));
        let allowed = HeaderValue::from_str(allowed.as_str()).expect("a method's name is visible ASCII");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    // A web page can make the browser of whoever forwards this port send a POST; browsers then add this header.
    if allowed == Method::POST && request.headers().contains_key(header::ORIGIN) {
        return text(StatusCode::FORBIDDEN, "not for web pages\n");
    }
    match (path, route) {
        ("/livez", _) => text(StatusCode::OK, "ok\n"),
        ("/readyz", _) => ready(&pages.missing()),
        ("/metrics", _) => content(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            pages.metrics(),
        ),
        (_, Some(route)) => (route.answer)(pages),
        (_, None) => content(StatusCode::OK, "text/html; charset=utf-8", pages.page()),
    }
}

fn ready(missing: &[String]) -> Answer {
    if missing.is_empty() {
        return text(StatusCode::OK, "ok\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {}\n", missing.join(", ")))
}

/// A response of plain text, which ends with a line feed.
pub fn text(status: StatusCode, text: &str) -> Answer {
    content(status, "text/plain; charset=utf-8", text.to_owned())
}

/// A response of JSON, indented for people.
pub fn json(value: &Value) -> Answer {
    json_text(format!("{value:#}\n"))
}

/// A response of JSON that is already text.
pub fn json_text(text: String) -> Answer {
    content(StatusCode::OK, "application/json", text)
}

fn content(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shop(Vec<String>);

    impl Pages for Shop {
        const ROUTES: &'static [Route<Shop>] = &[
            Route {
                path: "/status",
                method: Method::GET,
                answer: |_| json(&serde_json::json!({"open": true})),
            },
            Route { path: "/close", method: Method::POST, answer: |_| text(StatusCode::OK, "closed\n") },
        ];

        fn missing(&self) -> Vec<String> {
            self.0.clone()
        }

        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }

        fn page(&self) -> String {
            "<!doctype html>".to_owned()
        }
    }

    const NEAR: [u8; 4] = [127, 0, 0, 1];
    const FAR: [u8; 4] = [10, 0, 0, 1];

    fn asked(method: &str, path: &str, from: [u8; 4], origin: bool) -> u16 {
        let mut request = Request::builder().method(method).uri(path).body(()).expect("a request");
        if origin {
            request.headers_mut().insert(header::ORIGIN, HeaderValue::from_static("http://shop.example"));
        }
        answer(&Shop(Vec::new()), &request, (from, 1).into()).status().as_u16()
    }

    async fn body(path: &str, missing: &[&str]) -> String {
        let shop = Shop(missing.iter().map(|name| (*name).to_owned()).collect());
        let request = Request::builder().uri(path).body(()).expect("a request");
        let response = answer(&shop, &request, (NEAR, 1).into());
        let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("it is whole");
        String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8")
    }

    #[test]
    fn who_may_ask_for_what_and_how() {
        for (path, method, near, far) in [
            ("/livez", "GET", 200, 200),
            ("/readyz", "HEAD", 200, 200),
            ("/metrics", "GET", 200, 200),
            ("/metrics", "POST", 405, 405),
            ("/", "GET", 200, 403),
            ("/", "POST", 405, 403),
            ("/status", "HEAD", 200, 403),
            ("/status", "DELETE", 405, 403),
            ("/close", "POST", 200, 403),
            ("/close", "GET", 405, 403),
            ("/close", "HEAD", 405, 403),
            ("/policy", "GET", 404, 404),
            ("/status/", "GET", 404, 404),
        ] {
            assert_eq!(asked(method, path, NEAR, false), near, "{method} {path}");
            assert_eq!(asked(method, path, FAR, false), far, "{method} {path} from elsewhere");
        }
    }

    #[test]
    fn a_web_page_may_look_and_change_nothing() {
        assert_eq!(asked("GET", "/status", NEAR, true), 200);
        assert_eq!(asked("POST", "/close", NEAR, true), 403);
    }

    #[tokio::test]
    async fn a_wrong_path_lists_the_right_ones() {
        assert_eq!(body("/statu", &[]).await, "there is /, /livez, /readyz, /metrics, /status, /close\n");
    }

    #[tokio::test]
    async fn not_ready_names_what_is_missing() {
        assert_eq!(body("/readyz", &[]).await, "ok\n");
        assert_eq!(
            body("/readyz", &["tls (no file)", "listener"]).await,
            "not ready: tls (no file), listener\n"
        );
    }
}
