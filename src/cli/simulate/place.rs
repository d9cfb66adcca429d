//! What stands in `webhooks.url`, and what OpenIM makes of it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::uri::{Authority, PathAndQuery};

use crate::callback::command;
use crate::callback::target::Form;
use crate::callback::target::percent_decoded;

/// An app's URL as it stands in OpenIM's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether it begins with `https`.
    pub tls: bool,
    /// The host without brackets: what is looked up, and what a certificate must be for.
    pub host: String,
    /// The port, that of the scheme where none is given.
    pub port: u16,
    /// Host and port as written: the header `Host`.
    pub authority: String,
    /// The value of `Authorization`, where the URL has a user.
    pub authorization: Option<String>,
    /// Path and query as written.
    base: String,
}

impl Place {
    /// Reads a URL; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Place, String> {
        let expected = || format!("{text:?} is not a URL, as in http://127.0.0.1:8080/callback");
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err(format!("{other}:// is not what OpenIM can send to: http:// or https://")),
        };
        if rest.contains('#') {
            return Err("has a `#`: OpenIM appends the command behind it, where it is never sent".to_owned());
        }
        let (authority, base) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, authority),
        };
        let authority = authority.strip_suffix(':').unwrap_or(authority);
        let parsed: Authority = authority.parse().map_err(|_| expected())?;
        let host = parsed.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((_, port)) => port.parse().ok().filter(|port| *port > 0).ok_or_else(expected)?,
            None => [80, 443][usize::from(tls)],
        };
        if host.is_empty() {
            return Err(expected());
        }
        let place = Place {
            tls,
            host,
            port,
            authority: authority.to_owned(),
            authorization: user.map(basic),
            base: base.to_owned(),
        };
        place.target("callbackX", Form::Path, None).parse::<PathAndQuery>().map_err(|_| expected())?;
        place.names_no_command()?;
        Ok(place)
    }

    /// OpenIM appends the command itself: a URL that has one already is not what stands in its configuration.
    fn names_no_command(&self) -> Result<(), String> {
        let words = self.base.split(['/', '?', '&', '=']);
        match words.filter(|word| !word.is_empty()).find(|word| command::lookup(word).is_some()) {
            Some(name) => Err(format!("has {name} in it, which OpenIM appends itself: leave it out")),
            None => Ok(()),
        }
    }

    /// The request target for a command: OpenIM appends text to text, whatever comes of it. `key` is a query that
    /// some commands have.
    pub fn target(&self, command: &str, form: Form, key: Option<&str>) -> String {
        let base = &self.base;
        let appended = match (form, key) {
            (Form::Path, Some(key)) if !base.contains('?') => format!("{base}/{command}?key={key}"),
            (Form::Path, _) => format!("{base}/{command}"),
            (Form::Query, _) => format!("{base}?command={command}"),
        };
        if appended.starts_with('/') { appended } else { format!("/{appended}") }
    }

    /// The target as it is put into a request: in HTTP/2 the scheme and the host go with it.
    pub(super) fn uri(&self, target: &str, h2: bool) -> Option<Uri> {
        let scheme = if self.tls { "https" } else { "http" };
        if h2 { format!("{scheme}://{}{target}", self.authority).parse().ok() } else { target.parse().ok() }
    }
}

/// Without the user, whose password is nobody's business.
impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.base)
    }
}

/// As Go makes it of a URL's user, escapes resolved.
fn basic(user: &str) -> String {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let pair = [&percent_decoded(name)[..], b":", &percent_decoded(password)].concat();
    format!("Basic {}", STANDARD.encode(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_appended_as_text_whatever_comes_of_it() {
        let name = "callbackX";
        for (url, path, query) in [
            ("http://h", "/callbackX", "/?command=callbackX"),
            ("http://h/", "//callbackX", "/?command=callbackX"),
            ("http://h/cb", "/cb/callbackX", "/cb?command=callbackX"),
            ("http://h/cb?token=x", "/cb?token=x/callbackX", "/cb?token=x?command=callbackX"),
            ("http://h?token=x", "/?token=x/callbackX", "/?token=x?command=callbackX"),
        ] {
            let place = Place::parse(url).expect(url);
            assert_eq!(place.target(name, Form::Path, None), path, "{url}");
            assert_eq!(place.target(name, Form::Query, None), query, "{url}");
        }
        let place = Place::parse("http://h/cb").expect("a URL");
        assert_eq!(place.target(name, Form::Path, Some("a%3D")), "/cb/callbackX?key=a%3D");
    }

    #[test]
    fn host_port_and_user_are_taken_apart() {
        for (url, tls, host, port, authority) in [
            ("http://127.0.0.1:8080/cb", false, "127.0.0.1", 8080, "127.0.0.1:8080"),
            ("https://App.example", true, "App.example", 443, "App.example"),
            ("HTTP://h:", false, "h", 80, "h"),
            ("http://[::1]:81", false, "::1", 81, "[::1]:81"),
            ("http://[::1]/", false, "::1", 80, "[::1]"),
            ("https://u:p@h:8443/cb", true, "h", 8443, "h:8443"),
        ] {
            let place = Place::parse(url).expect(url);
            assert_eq!((place.tls, &*place.host, place.port), (tls, host, port), "{url}");
            assert_eq!(place.authority, authority, "{url}");
            assert!(!place.to_string().contains('@'), "{place}");
        }
        let user = |url| Place::parse(url).expect("a URL").authorization;
        assert_eq!(user("http://user:pa%20ss@h").as_deref(), Some("Basic dXNlcjpwYSBzcw=="));
        assert_eq!(user("http://user@h").as_deref(), Some("Basic dXNlcjo="));
        assert_eq!(user("http://h/@"), None);
    }

    #[test]
    fn what_cannot_be_a_webhook_url_is_refused_with_the_reason() {
        for (url, why) in [
            ("127.0.0.1:8080", "is not a URL"),
            ("ftp://h", "http:// or https://"),
            ("http://", "is not a URL"),
            ("http://h:0", "is not a URL"),
            ("http://h:99999", "is not a URL"),
            ("http://a b/", "is not a URL"),
            ("http://h/a b", "is not a URL"),
            ("http://h/#top", "never sent"),
            ("http://h/callbackBeforeAddFriendCommand", "leave it out"),
            ("http://h/?command=callbackBeforeAddFriendCommand", "leave it out"),
        ] {
            let found = Place::parse(url).expect_err(url);
            assert!(found.contains(why), "{url}: {found}");
        }
    }
}
