//! What a proxy at the edge of the mesh listens on, and for whom.

use std::fmt;

use crate::outbound::OutboundPolicy;
use crate::route::HostMatch;

/// All ports of a gateway, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayConfig {
    pub ports: Vec<GatewayPort>,
}

/// One port, with all listeners on it. One without anything is listened on all the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayPort {
    pub port: u16,
    /// Requests in the clear.
    pub http: Option<OutboundPolicy>,
    pub https: Option<Https>,
    /// Bytes: by the server name of TLS clients, or all of them.
    pub bytes: Option<OutboundPolicy>,
}

/// Requests over TLS that ends at the gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Https {
    pub policy: OutboundPolicy,
    pub certificates: Vec<EdgeCertificate>,
}

/// What is presented to clients that ask for a host.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeCertificate {
    /// Of the listener; `None` is any.
    pub host: Option<HostMatch>,
    /// PEM, the leaf first.
    pub chain: String,
    pub key: PrivateKey,
}

/// A private key in PEM, which no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub String);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// How well a listener's host fits the name that a client asks for; the greatest is the listener's that
/// a client means.
pub fn listener_fits(listener: Option<&HostMatch>, name: &str) -> Option<(u8, usize)> {
    match listener {
        None => Some((0, 0)),
        Some(host) => host.match_host(name),
    }
}

impl HostMatch {
    /// `shop.example`, or `*.shop.example`; `None` for what is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (bare, wildcard) = match text.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        if bare.is_empty() || bare.contains('*') || bare.split('.').any(str::is_empty) {
            return None;
        }
        Some(match wildcard {
            true => Self::Suffix(bare.split('.').map(str::to_owned).collect()),
            false => Self::Exact(bare.to_owned()),
        })
    }

    /// Whether all names that `other` stands for are among its own.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exact(name)) => self.match_host(name).is_some(),
            (Self::Exact(_), Self::Suffix(_)) => false,
            (Self::Suffix(own), Self::Suffix(other)) => {
                let mut pairs = own.iter().rev().zip(other.iter().rev());
                own.len() <= other.len() && pairs.all(|(a, b)| a.eq_ignore_ascii_case(b))
            }
        }
    }

    /// The names that both stand for.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.covers(other) {
            return Some(other.clone());
        }
        other.covers(self).then(|| self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> HostMatch {
        HostMatch::parse(text).unwrap()
    }

    #[test]
    fn hosts_are_names_or_wildcards() {
        for text in ["shop.example", "*.shop.example", "a"] {
            assert_eq!(host(text).to_string(), text);
        }
        for text in ["", "*", "*.", "a..b", "*.*.b", "a.*.b", ".a"] {
            assert_eq!(HostMatch::parse(text), None, "{text}");
        }
    }

    #[test]
    fn hosts_intersect_as_the_specification_has_it() {
        for (one, other, both) in [
            ("a.example", "a.example", Some("a.example")),
            ("A.example", "a.EXAMPLE", Some("a.EXAMPLE")),
            ("*.example", "a.example", Some("a.example")),
            ("*.example", "b.a.example", Some("b.a.example")),
            ("*.example", "*.a.example", Some("*.a.example")),
            ("*.example", "example", None),
            ("*.example", "*.other", None),
            ("a.example", "b.example", None),
        ] {
            let both = both.map(host);
            assert_eq!(host(one).intersect(&host(other)), both, "{one} {other}");
            let turned = host(other).intersect(&host(one)).map(|host| host.to_string());
            let same = turned.map(|host| host.to_ascii_lowercase());
            assert_eq!(same, both.map(|host| host.to_string().to_ascii_lowercase()));
        }
    }

    #[test]
    fn the_key_is_not_told() {
        let key = PrivateKey("secret".into());
        let certificate = EdgeCertificate { host: None, chain: String::new(), key };
        assert!(!format!("{certificate:?}").contains("secret"));
    }
}
