//! Rules in words, the same wherever people read them.

use std::fmt;

use super::{AuthorizationRule, ClientMatch, Operation, RouteScope, Source};
use crate::inbound::Network;
use crate::route::{HeaderMatch, HostMatch, HttpMatch, PathMatch, ValueMatch};

impl AuthorizationRule {
    /// Whom it is about, as `anyone`, or `*.shop.serviceaccount… in 10.0.0.0/8; unauthenticated`.
    pub fn describe_from(&self) -> String {
        if self.from.is_empty() {
            return "anyone".into();
        }
        join(self.from.iter(), "; ")
    }

    /// What it is about, as `everything`, or `GET /v1/*; requests of HTTPRoute/shop/tax`.
    pub fn describe_to(&self) -> String {
        let operations = join(self.to.iter(), "; ");
        match (&self.route, operations.as_str()) {
            (None, "") => "everything".into(),
            (None, _) => operations,
            (Some(scope), "") => scope.to_string(),
            (Some(scope), _) => format!("{operations} of {scope}"),
        }
    }
}

fn join<T: fmt::Display>(items: impl Iterator<Item = T>, by: &str) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(by)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.client {
            ClientMatch::Anyone => f.write_str("anyone")?,
            ClientMatch::Unauthenticated => f.write_str("unauthenticated")?,
            ClientMatch::Authenticated => f.write_str("authenticated")?,
            ClientMatch::Among(patterns) => f.write_str(&join(patterns.iter(), ", "))?,
        }
        if !self.networks.is_empty() {
            write!(f, " in {}", join(self.networks.iter().map(Net), ", "))?;
        }
        Ok(())
    }
}

struct Net<'a>(&'a Network);

impl fmt::Display for Net<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.net)?;
        if !self.0.except.is_empty() {
            write!(f, " without {}", join(self.0.except.iter(), ", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.methods.is_empty() {
            parts.push(join(self.methods.iter(), ","));
        }
        if !self.paths.is_empty() {
            parts.push(join(self.paths.iter(), ","));
        }
        parts.extend(self.headers.iter().map(header));
        f.write_str(if parts.is_empty() { "any request" } else { "" })?;
        f.write_str(&parts.join(" "))
    }
}

impl fmt::Display for RouteScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests of {}", self.route)?;
        let hosts = self.hosts.iter().map(|host| match host {
            HostMatch::Exact(host) => host.clone(),
            HostMatch::Suffix(labels) => format!("*.{}", labels.join(".")),
        });
        let parts: Vec<String> = hosts.chain(self.matches.iter().map(http_match)).collect();
        if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
    }
}

fn http_match(matched: &HttpMatch) -> String {
    let mut parts = Vec::new();
    parts.extend(matched.method.as_ref().map(ToString::to_string));
    parts.extend(matched.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(prefix) => format!("{}/*", prefix.trim_end_matches('/')),
        PathMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
    }));
    parts.extend(matched.headers.iter().map(header));
    let query = matched.query.iter().map(|query| format!("?{}{}", query.name, value(&query.value)));
    parts.extend(query);
    if parts.is_empty() { "any request".into() } else { parts.join(" ") }
}

fn header(header: &HeaderMatch) -> String {
    format!("{}{}", header.name, value(&header.value))
}

fn value(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(exact) => format!("={}", String::from_utf8_lossy(exact)),
        ValueMatch::Regex(pattern) => format!("~{}", pattern.as_str()),
    }
}
