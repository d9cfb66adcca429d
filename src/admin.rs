//! Admin ports: plain HTTP; in the proxy on a thread of its own, so that a busy data plane cannot fail its own probes.
//!
//! | path | who | what |
//! |---|---|---|
//! | `GET /livez` | all | 200 while the process runs |
//! | `GET /readyz` | all | 200, or 503 with the names of what is missing |
//! | `GET /metrics` | all | OpenMetrics text; on loopback also how full the process is |
//! | `GET /` | loopback | a page for people |
//! | [`Pages::ROUTES`] | loopback | what this program adds |
//!
//! Loopback is `kubectl port-forward` and whatever runs in the pod, but no web page of somebody else: see [`caller`]. No
//! environment and no secret is shown.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::net::TcpListener;

use self::caller::Ends;
use crate::metrics::admin::AdminMetrics;
use crate::metrics::catalog::Audience;

pub use self::connections::Limits;

mod caller;
mod connections;
pub mod page;
pub mod proxy;

/// Paths for callers from everywhere.
const OPEN: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// How long the same text of `/metrics` serves callers from elsewhere. A crowd of them then costs neither the time to make
/// it nor the memory to hold it for each.
const SCRAPE_STAYS: Duration = Duration::from_millis(500);

/// Headers of every response, against browsers that load a page in the name of another: nothing is fetched, framed,
/// guessed or kept.
const SECURITY: [(HeaderName, &str); 7] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, page::CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A response of an admin port.
pub type Answer = Response<Full<Bytes>>;

/// What an admin port shows.
pub trait Pages: Sized + 'static {
    /// Paths for callers on loopback, in the order in which a 404 lists them. `/` and the open paths are not among them.
    const ROUTES: &'static [Route<Self>];

    /// What `/readyz` lacks; ready if empty.
    fn missing(&self) -> Vec<String>;

    /// OpenMetrics text for `/metrics`.
    fn metrics(&self, audience: Audience) -> String;

    /// Where the port counts what it does itself.
    fn admin_metrics(&self) -> &AdminMetrics;

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
pub async fn serve<P: Pages>(pages: Rc<P>, listener: TcpListener, limits: Limits) {
    let metrics = pages.admin_metrics().clone();
    let site = Site { pages, scraped: RefCell::new(None) };
    connections::accept(Rc::new(move |request, ends| site.answer(request, ends)), listener, limits, metrics)
        .await;
}

/// The pages, and the text of `/metrics` that was made last for callers from elsewhere.
struct Site<P> {
    pages: Rc<P>,
    scraped: RefCell<Option<(Instant, Bytes)>>,
}

impl<P: Pages> Site<P> {
    fn answer<B>(&self, request: &Request<B>, ends: Ends) -> Answer {
        let path = request.uri().path();
        let open = OPEN.contains(&path);
        let route = P::ROUTES.iter().find(|route| route.path == path);
        if !open && path != "/" && route.is_none() {
            let own = P::ROUTES.iter().map(|route| route.path);
            let paths: Vec<_> = ["/"].into_iter().chain(OPEN).chain(own).collect();
            return text(StatusCode::NOT_FOUND, &format!("there is {}\n", paths.join(", ")));
        }
        let refusal = caller::refusal(request, ends);
        if let Some(reason) = refusal.filter(|_| !open) {
            return text(StatusCode::FORBIDDEN, &format!("{reason}\n"));
        }
        let allowed = route.map_or(&Method::GET, |route| &route.method);
        if request.method() != allowed && !(request.method() == Method::HEAD && allowed == Method::GET) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is for {allowed}\n"));
            let allowed = HeaderValue::from_str(allowed.as_str()).expect("a method's name is visible ASCII");
            response.headers_mut().insert(header::ALLOW, allowed);
            return response;
        }
        match (path, route) {
            ("/livez", _) => text(StatusCode::OK, "ok\n"),
            ("/readyz", _) => ready(&self.pages.missing()),
            ("/metrics", _) => content(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                match refusal {
                    None => self.pages.metrics(Audience::Loopback).into(),
                    Some(_) => self.scrape(Instant::now()),
                },
            ),
            (_, Some(route)) => (route.answer)(&self.pages),
            (_, None) => content(StatusCode::OK, "text/html; charset=utf-8", self.pages.page().into()),
        }
    }

    fn scrape(&self, now: Instant) -> Bytes {
        let mut scraped = self.scraped.borrow_mut();
        if let Some((at, text)) = &*scraped
            && now.saturating_duration_since(*at) < SCRAPE_STAYS
        {
            return text.clone();
        }
        let text = Bytes::from(self.pages.metrics(Audience::All));
        *scraped = Some((now, text.clone()));
        text
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
    content(status, "text/plain; charset=utf-8", text.to_owned().into())
}

/// A response of JSON, indented for people.
pub fn json(value: &Value) -> Answer {
    json_text(format!("{value:#}\n"))
}

/// A response of JSON that is already text.
pub fn json_text(text: String) -> Answer {
    content(StatusCode::OK, "application/json", text.into())
}

fn content(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(SECURITY.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

#[cfg(test)]
mod tests;
