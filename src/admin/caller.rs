//! Who is on loopback: a process of the pod, or whoever may forward its port.
//!
//! The peer's address alone does not show it. The inbound proxy of a service mesh connects from 127.0.0.6 or 127.0.0.1 to the
//! pod's own address, in the name of anybody. So the address that was connected to has to be loopback too, which is where
//! `kubectl port-forward` and the preStop hook connect to.
//!
//! And a browser on the machine of whoever forwards the port sends what any web page asks for. A page whose name was made to
//! lead to 127.0.0.1 (DNS rebinding) is recognized by its Host; a page of another site by its Origin or Sec-Fetch-Site,
//! which browsers add and pages cannot change.

use std::net::{IpAddr, SocketAddr};

use http::uri::Authority;
use http::{HeaderMap, HeaderName, Request, header};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The addresses of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

/// Why a caller may not see what is for loopback, or nothing if it may.
pub(super) fn refusal<B>(request: &Request<B>, ends: Ends) -> Option<&'static str> {
    if !is_loopback(ends.peer.ip()) || !is_loopback(ends.local.ip()) {
        return Some("only for callers on loopback: use kubectl port-forward");
    }
    let headers = request.headers();
    let target_is_local = request.uri().authority().is_none_or(is_local_host);
    if !target_is_local || !has_local_host(headers) {
        return Some("the Host must be localhost or a loopback address: use http://localhost:PORT");
    }
    if headers.contains_key(header::ORIGIN) || !is_of_same_site(headers) {
        return Some("not for other web pages: type the address into the browser, or use curl");
    }
    None
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Exactly one Host, as RFC 9112 section 3.2 requires; browsers always send one.
fn has_local_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().ok().and_then(|host| host.parse().ok()).is_some_and(|host| is_local_host(&host))
}

fn is_local_host(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(is_loopback)
}

/// `none` is an address that was typed or a bookmark. Programs other than browsers do not send the header.
fn is_of_same_site(headers: &HeaderMap) -> bool {
    headers.get_all(SEC_FETCH_SITE).iter().all(|site| site == "same-origin" || site == "none")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(peer: &str, local: &str, target: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let address = |text: &str| SocketAddr::new(text.parse().expect("an address"), 1);
        let ends = Ends { peer: address(peer), local: address(local) };
        refusal(&request.body(()).expect("a request"), ends).is_some()
    }

    #[test]
    fn both_ends_have_to_be_loopback() {
        let refused = |peer, local| is_refused(peer, local, "/", &[("host", "localhost")]);
        let near = ["127.0.0.1", "127.0.0.6", "::1", "::ffff:127.0.0.1"];
        let far = ["10.0.0.1", "::", "fd77::1", "::ffff:10.0.0.1", "0.0.0.0"];
        for near in near {
            assert!(!refused(near, "127.0.0.1") && !refused("::1", near), "{near}");
            for far in far {
                assert!(refused(near, far), "from {near} to {far}: a mesh");
                assert!(refused(far, near), "from {far} to {near}");
                assert!(refused(far, far), "from {far}");
            }
        }
    }

    #[test]
    fn the_host_has_to_be_loopback_too() {
        let refused = |host: &str| is_refused("127.0.0.1", "127.0.0.1", "/", &[("host", host)]);
        for host in [
            "localhost",
            "LocalHost:9090",
            "127.0.0.1",
            "127.1.2.3:80",
            "[::1]",
            "[::1]:9090",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(!refused(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil@localhost",
            "10.0.0.1:9090",
            "0.0.0.0:9090",
            "[::]:9090",
            "[fd77::1]",
            "[localhost]",
            "2130706433",
            "localhost evil",
            "",
        ] {
            assert!(refused(host), "{host}");
        }
        let with = |target: &str, headers: &[(&str, &str)]| is_refused("::1", "::1", target, headers);
        assert!(with("/", &[]), "none");
        assert!(with("/", &[("host", "localhost"), ("host", "localhost")]), "two");
        assert!(with("http://evil.example/", &[("host", "localhost")]), "another in the target");
        assert!(!with("http://localhost:9090/", &[("host", "localhost")]), "the twin");
    }

    #[test]
    fn pages_of_other_sites_are_refused_and_people_are_not() {
        let refused = |headers: &[(&str, &str)]| {
            let headers: Vec<_> = [("host", "localhost")].iter().chain(headers).copied().collect();
            is_refused("127.0.0.1", "127.0.0.1", "/", &headers)
        };
        for (name, value, is) in [
            ("origin", "http://evil.example", true),
            ("origin", "null", true),
            ("origin", "http://localhost", true),
            ("sec-fetch-site", "cross-site", true),
            ("sec-fetch-site", "same-site", true),
            ("sec-fetch-site", "", true),
            ("sec-fetch-site", "same-origin", false),
            ("sec-fetch-site", "none", false),
            ("sec-fetch-mode", "navigate", false),
        ] {
            assert_eq!(refused(&[(name, value)]), is, "{name}: {value}");
        }
        assert!(refused(&[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")]));
    }
}
