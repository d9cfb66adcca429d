use std::cell::Cell;

use super::*;

struct Shop {
    missing: Vec<String>,
    /// How often metrics were made.
    made: Cell<u32>,
}

impl Pages for Shop {
    const ROUTES: &'static [Route<Shop>] = &[
        Route { path: "/status", method: Method::GET, answer: |_| json(&serde_json::json!({"open": true})) },
        Route { path: "/close", method: Method::POST, answer: |_| text(StatusCode::OK, "closed\n") },
    ];

    fn missing(&self) -> Vec<String> {
        self.missing.clone()
    }

    fn metrics(&self, audience: Audience) -> String {
        format!("# {audience:?} {}\n", self.made.replace(self.made.get() + 1))
    }

    fn admin_metrics(&self) -> &AdminMetrics {
        unreachable!("no connection is served")
    }

    fn page(&self) -> String {
        "<!doctype html>".to_owned()
    }
}

const NEAR: [u8; 4] = [127, 0, 0, 1];
const FAR: [u8; 4] = [10, 0, 0, 1];

fn site(missing: &[&str]) -> Site<Shop> {
    let missing = missing.iter().map(|name| (*name).to_owned()).collect();
    Site { pages: Rc::new(Shop { missing, made: Cell::new(0) }), scraped: RefCell::new(None) }
}

fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(path).header(header::HOST, "localhost").body(()).expect("a request")
}

fn asked(method: &str, path: &str, from: [u8; 4]) -> u16 {
    let ends = Ends { peer: (from, 1).into(), local: (NEAR, 2).into() };
    site(&[]).answer(&request(method, path), ends).status().as_u16()
}

async fn body_of(site: &Site<Shop>, path: &str, from: [u8; 4]) -> String {
    let response =
        site.answer(&request("GET", path), Ends { peer: (from, 1).into(), local: (NEAR, 2).into() });
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("it is whole");
    String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8")
}

async fn body(path: &str, missing: &[&str]) -> String {
    body_of(&site(missing), path, NEAR).await
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
        assert_eq!(asked(method, path, NEAR), near, "{method} {path}");
        assert_eq!(asked(method, path, FAR), far, "{method} {path} from elsewhere");
    }
}

#[test]
fn a_web_page_of_another_site_sees_what_is_open_and_no_more() {
    for (method, path, status) in [
        ("GET", "/livez", 200),
        ("GET", "/metrics", 200),
        ("GET", "/", 403),
        ("GET", "/status", 403),
        ("POST", "/close", 403),
    ] {
        for (name, value) in
            [("origin", "http://shop.example"), ("sec-fetch-site", "cross-site"), ("host", "shop.example")]
        {
            let mut request = request(method, path);
            request.headers_mut().insert(name, HeaderValue::from_static(value));
            let ends = Ends { peer: (NEAR, 1).into(), local: (NEAR, 2).into() };
            assert_eq!(site(&[]).answer(&request, ends).status().as_u16(), status, "{path} {name}: {value}");
        }
    }
}

#[tokio::test]
async fn callers_from_elsewhere_share_a_text_of_metrics_and_see_less() {
    let site = site(&[]);
    for expected in ["# Loopback 0\n", "# Loopback 1\n"] {
        assert_eq!(body_of(&site, "/metrics", NEAR).await, expected, "as of now");
    }
    for _ in 0..3 {
        assert_eq!(body_of(&site, "/metrics", FAR).await, "# All 2\n");
    }
    let later = Instant::now() + SCRAPE_STAYS;
    assert_eq!(site.scrape(later), "# All 3\n");
    assert_eq!(site.scrape(later), "# All 3\n");
}

#[test]
fn every_response_has_the_headers_that_browsers_obey() {
    for path in ["/", "/livez", "/metrics", "/status", "/nowhere", "/close"] {
        let ends = Ends { peer: (NEAR, 1).into(), local: (NEAR, 2).into() };
        let response = site(&[]).answer(&request("GET", path), ends);
        for (name, value) in SECURITY {
            assert_eq!(response.headers()[&name], value, "{path} {name}");
        }
    }
}

#[tokio::test]
async fn a_wrong_path_lists_the_right_ones() {
    assert_eq!(body("/statu", &[]).await, "there is /, /livez, /readyz, /metrics, /status, /close\n");
}

#[tokio::test]
async fn not_ready_names_what_is_missing() {
    assert_eq!(body("/readyz", &[]).await, "ok\n");
    assert_eq!(body("/readyz", &["tls (no file)", "listener"]).await, "not ready: tls (no file), listener\n");
}
