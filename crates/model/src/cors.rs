//! Cross-origin resource sharing, as Gateway API has routes answer for it.

use std::fmt;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Who may read responses from pages of other origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    pub origins: Vec<Origin>,
    /// The safelisted ones (GET, HEAD, POST) need no mention.
    pub methods: Listed,
    pub headers: Listed,
    pub expose: Listed,
    /// Cookies may come along.
    pub credentials: bool,
    /// How long browsers may remember a preflight's answer. Seconds.
    pub max_age: u32,
}

/// Names, as the value of a header, or any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    Any,
    /// `a, b`; empty means none.
    These(String),
}

impl Default for Listed {
    fn default() -> Self {
        Self::These(String::new())
    }
}

/// Which origins are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Any,
    /// `https://shop.example:8443`; a `*` in the host stands for any characters.
    Pattern(String),
}

impl Origin {
    /// Reads `*` or `scheme://host[:port]`.
    pub fn new(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let (scheme, host, _) = parts(text)?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-.*[]:".contains(&b);
        let sound = matches!(scheme, "http" | "https")
            && !host.is_empty()
            && host.bytes().all(fits)
            && host.matches('*').count() <= 1;
        sound.then(|| Self::Pattern(text.to_ascii_lowercase()))
    }

    fn matches(&self, origin: &str) -> bool {
        let Self::Pattern(pattern) = self else { return true };
        let origin = origin.to_ascii_lowercase();
        let (Some(wanted), Some(have)) = (parts(pattern), parts(&origin)) else { return false };
        let host = match wanted.1.split_once('*') {
            None => wanted.1 == have.1,
            Some((before, after)) => {
                have.1.len() > before.len() + after.len()
                    && have.1.starts_with(before)
                    && have.1.ends_with(after)
            }
        };
        host && wanted.0 == have.0 && wanted.2 == have.2
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::Pattern(pattern) => pattern,
        })
    }
}

/// Scheme, host and port of an origin; the port is the scheme's where there is none.
fn parts(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, authority) = origin.split_once("://")?;
    let default = if scheme == "https" { 443 } else { 80 };
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => Some((scheme, host, port.parse().ok()?)),
        _ => Some((scheme, authority, default)),
    }
}

impl Cors {
    /// What to answer a preflight request with; `None` when it is none. To an origin that may not,
    /// the answer says nothing, which is how browsers understand it.
    pub fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<HeaderMap> {
        let wanted = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        if *method != Method::OPTIONS || wanted.is_none() || !headers.contains_key(ORIGIN) {
            return None;
        }
        let mut answer = HeaderMap::new();
        if !self.allow_origin(headers, &mut answer) {
            return Some(answer);
        }
        let mut list = |name: HeaderName, listed: &Listed, asked: Option<&HeaderValue>| {
            let value = match listed {
                // With credentials browsers do not understand `*`: what was asked for is repeated.
                Listed::Any => asked.cloned(),
                Listed::These(names) => {
                    HeaderValue::from_str(names).ok().filter(|names| !names.is_empty())
                }
            };
            if let Some(value) = value {
                answer.insert(name, value);
            }
        };
        list(ACCESS_CONTROL_ALLOW_METHODS, &self.methods, wanted);
        let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
        list(ACCESS_CONTROL_ALLOW_HEADERS, &self.headers, asked);
        answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(self.max_age));
        Some(answer)
    }

    /// Adds what browsers need to know to a response. `request` holds the request's headers.
    pub fn respond(&self, request: &HeaderMap, response: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            response.remove(name);
        }
        if !self.allow_origin(request, response) {
            return;
        }
        let exposed = match &self.expose {
            Listed::Any if self.credentials => None,
            Listed::Any => Some(HeaderValue::from_static("*")),
            Listed::These(names) => {
                HeaderValue::from_str(names).ok().filter(|names| !names.is_empty())
            }
        };
        if let Some(exposed) = exposed {
            response.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
    }

    fn allow_origin(&self, request: &HeaderMap, response: &mut HeaderMap) -> bool {
        // Whatever the answer is, it is for this origin only.
        response.append(VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = request.get(ORIGIN) else { return false };
        let Ok(text) = origin.to_str() else { return false };
        if !self.origins.iter().any(|allowed| allowed.matches(text)) {
            return false;
        }
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn cors(origins: &[&str]) -> Cors {
        Cors {
            origins: origins.iter().map(|text| Origin::new(text).unwrap()).collect(),
            methods: Listed::These("GET, PUT".into()),
            headers: Listed::Any,
            expose: Listed::These("x-total".into()),
            credentials: false,
            max_age: 5,
        }
    }

    #[test]
    fn origins_match_whole() {
        let table = [
            ("https://shop.example", "https://shop.example", true),
            ("https://shop.example", "https://SHOP.example:443", true),
            ("https://shop.example", "http://shop.example", false),
            ("https://shop.example", "https://shop.example.evil", false),
            ("https://shop.example:8443", "https://shop.example", false),
            ("https://*.example", "https://a.b.example", true),
            ("https://*.example", "https://.example", false),
            ("https://*.example", "https://example", false),
            ("http://*", "http://anything:80", true),
            ("*", "null", true),
            ("https://shop.example", "null", false),
        ];
        for (pattern, origin, expected) in table {
            let matches = Origin::new(pattern).unwrap().matches(origin);
            assert_eq!(matches, expected, "{pattern} {origin}");
        }
        for bad in ["shop.example", "ftp://shop.example", "https://", "https://a/b", "https://a:x"]
        {
            assert!(Origin::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_preflight_is_answered_for_its_origin() {
        let cors = cors(&["https://*.example"]);
        let asked = headers(&[
            ("origin", "https://www.example"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "x-a, x-b"),
        ]);
        let answer = cors.preflight(&Method::OPTIONS, &asked).unwrap();
        assert_eq!(answer["access-control-allow-origin"], "https://www.example");
        assert_eq!(answer["access-control-allow-methods"], "GET, PUT");
        assert_eq!(answer["access-control-allow-headers"], "x-a, x-b");
        assert_eq!(answer["access-control-max-age"], "5");
        assert!(!answer.contains_key("access-control-allow-credentials"));

        let mut other = asked.clone();
        other.insert(ORIGIN, HeaderValue::from_static("https://evil.test"));
        let answer = cors.preflight(&Method::OPTIONS, &other).unwrap();
        assert!(!answer.contains_key("access-control-allow-origin"));
        assert!(cors.preflight(&Method::GET, &asked).is_none());
        assert!(cors.preflight(&Method::OPTIONS, &headers(&[])).is_none(), "an ordinary OPTIONS");
    }

    #[test]
    fn responses_say_whom_they_are_for() {
        let cors = Cors { credentials: true, ..cors(&["*"]) };
        let mut response = headers(&[("access-control-allow-origin", "*")]);
        cors.respond(&headers(&[("origin", "https://a.test")]), &mut response);
        assert_eq!(response["access-control-allow-origin"], "https://a.test");
        assert_eq!(response["access-control-allow-credentials"], "true");
        assert_eq!(response["access-control-expose-headers"], "x-total");
        assert_eq!(response["vary"], "Origin");
        let mut same_origin = HeaderMap::new();
        cors.respond(&HeaderMap::new(), &mut same_origin);
        assert!(!same_origin.contains_key("access-control-allow-origin"));
    }
}
