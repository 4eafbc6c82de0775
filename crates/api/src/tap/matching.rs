//! Which requests a controller wants to see.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use http::Method;
use mesh_model::endpoint::Labels;
use mesh_model::inbound::Cidr;

/// A condition on a request, possibly made of others.
#[derive(Clone, Debug, PartialEq)]
pub enum TapMatch {
    All(Vec<TapMatch>),
    Any(Vec<TapMatch>),
    Not(Box<TapMatch>),
    Source(TcpMatch),
    Destination(TcpMatch),
    Scheme(String),
    Method(Method),
    Authority(StringMatch),
    Path(StringMatch),
    DestinationLabel { key: String, value: String },
    RouteLabel { key: String, value: String },
}

/// A condition on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpMatch {
    Net(Cidr),
    Ports(RangeInclusive<u16>),
}

/// A condition on a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
}

/// What is known of a request when its endpoint is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub source: SocketAddr,
    pub destination: Option<SocketAddr>,
    pub scheme: &'a str,
    pub method: &'a Method,
    pub authority: &'a str,
    pub path: &'a str,
    pub destination_labels: &'a Labels,
    pub route_labels: &'a Labels,
}

impl TapMatch {
    /// Whether the request is one of those asked for.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.matches(subject)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(subject)),
            Self::Not(part) => !part.matches(subject),
            Self::Source(tcp) => tcp.matches(subject.source),
            Self::Destination(tcp) => subject.destination.is_some_and(|addr| tcp.matches(addr)),
            Self::Scheme(scheme) => scheme.eq_ignore_ascii_case(subject.scheme),
            Self::Method(method) => method == subject.method,
            Self::Authority(text) => text.matches(subject.authority),
            Self::Path(text) => text.matches(subject.path),
            Self::DestinationLabel { key, value } => {
                subject.destination_labels.get(key) == Some(value)
            }
            Self::RouteLabel { key, value } => subject.route_labels.get(key) == Some(value),
        }
    }
}

impl TcpMatch {
    fn matches(&self, addr: SocketAddr) -> bool {
        match self {
            Self::Net(net) => net.contains(addr.ip()),
            Self::Ports(ports) => ports.contains(&addr.port()),
        }
    }
}

impl StringMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == text,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(condition: &TapMatch) -> bool {
        let label = |key: &str, value: &str| Labels::new([(key.into(), value.into())].into());
        condition.matches(&Subject {
            source: "10.0.0.1:4000".parse().unwrap(),
            destination: None,
            scheme: "http",
            method: &Method::GET,
            authority: "tax.shop:8080",
            path: "/rates/7",
            destination_labels: &label("pod", "tax-1"),
            route_labels: &label("route", "tax"),
        })
    }

    fn text(text: &str) -> String {
        text.into()
    }

    #[test]
    fn conditions_combine() {
        let path = |prefix| TapMatch::Path(StringMatch::Prefix(text(prefix)));
        let get = TapMatch::Method(Method::GET);
        assert!(matches(&TapMatch::All(vec![path("/rates"), get.clone()])));
        assert!(!matches(&TapMatch::All(vec![path("/other"), get.clone()])));
        assert!(matches(&TapMatch::Any(vec![path("/other"), get.clone()])));
        assert!(!matches(&TapMatch::Any(vec![])));
        assert!(matches(&TapMatch::All(vec![])));
        assert!(!matches(&TapMatch::Not(Box::new(get))));
    }

    #[test]
    fn each_part_of_a_request_can_be_asked_for() {
        let net = |addr: &str, prefix| TcpMatch::Net(Cidr { addr: addr.parse().unwrap(), prefix });
        let label = |value: &str| (text("pod"), text(value));
        for (condition, expected) in [
            (TapMatch::Source(net("10.0.0.0", 8)), true),
            (TapMatch::Source(net("11.0.0.0", 8)), false),
            (TapMatch::Source(TcpMatch::Ports(4000..=4000)), true),
            (TapMatch::Source(TcpMatch::Ports(1..=3999)), false),
            (TapMatch::Destination(net("0.0.0.0", 0)), false),
            (TapMatch::Scheme(text("HTTP")), true),
            (TapMatch::Authority(StringMatch::Exact(text("tax.shop:8080"))), true),
            (TapMatch::Authority(StringMatch::Exact(text("tax.shop"))), false),
            (TapMatch::DestinationLabel { key: label("").0, value: text("tax-1") }, true),
            (TapMatch::DestinationLabel { key: label("").0, value: text("tax-2") }, false),
            (TapMatch::RouteLabel { key: text("route"), value: text("tax") }, true),
            (TapMatch::RouteLabel { key: text("pod"), value: text("tax-1") }, false),
        ] {
            assert_eq!(matches(&condition), expected, "{condition:?}");
        }
    }
}
