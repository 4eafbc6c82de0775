//! Every match there is for a request, in the order in which they win, and why each does not.
//!
//! It says what [`super::find`] decides (a property test compares), in the words that people need.

use std::cmp::Reverse;
use std::fmt;

use http::request::Parts;

use super::{MatchRequest, Specificity, match_hosts, request_host};
use crate::route::{HeaderMatch, HostMatch, QueryMatch, Route, ValueMatch};

/// A match of a rule and what it has to do with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<'a> {
    /// Index into the routes given.
    pub route: usize,
    /// Index into that route's rules.
    pub rule: usize,
    /// Index into that rule's matches; `None` when the rule has none and takes any request.
    pub matched: Option<usize>,
    pub specificity: Specificity,
    pub outcome: Outcome<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<'a> {
    Wins,
    /// It matches, and one that is more specific, or comes first, does too.
    Loses,
    Misses(Miss<'a>),
}

/// The first condition that does not hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Miss<'a> {
    /// None of these.
    Host(&'a [HostMatch]),
    Path,
    Method,
    /// Of gRPC.
    Service,
    Header(&'a HeaderMatch),
    Query(&'a QueryMatch),
}

impl fmt::Display for Miss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = |value: &ValueMatch| match value {
            ValueMatch::Exact(exact) => format!("is not {}", String::from_utf8_lossy(exact)),
            ValueMatch::Regex(pattern) => format!("does not match {}", pattern.as_str()),
        };
        match self {
            Self::Host(hosts) => {
                let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                write!(f, "the host is not {}", hosts.join(" or "))
            }
            Self::Path => f.write_str("the path is another"),
            Self::Method => f.write_str("the method is another"),
            Self::Service => f.write_str("the gRPC service is another"),
            Self::Header(header) => write!(f, "header {} {}", header.name, is(&header.value)),
            Self::Query(query) => write!(f, "query {} {}", query.name, is(&query.value)),
        }
    }
}

/// All matches of the routes, most specific first; of equals, in the order given.
pub fn candidates<'a, M: MatchRequest, R>(
    routes: &'a [Route<M, R>],
    req: &Parts,
) -> Vec<Candidate<'a>> {
    let host = request_host(req);
    let mut ranked: Vec<Candidate<'a>> = Vec::new();
    for (route_index, route) in routes.iter().enumerate() {
        let host = match_hosts(&route.hosts, host);
        let of_host = host.is_none().then_some(Miss::Host(&route.hosts));
        for (rule_index, rule) in route.rules.iter().enumerate() {
            let mut add = |matched, specificity, miss: Option<Miss<'a>>| {
                let outcome = of_host.or(miss).map_or(Outcome::Loses, Outcome::Misses);
                let specificity = Specificity { host: host.unwrap_or_default(), ..specificity };
                let (route, rule) = (route_index, rule_index);
                ranked.push(Candidate { route, rule, matched, specificity, outcome });
            };
            if rule.matches.is_empty() {
                add(None, Specificity::anything(), None);
            }
            for (index, candidate) in rule.matches.iter().enumerate() {
                add(Some(index), candidate.specificity(), candidate.miss(req));
            }
        }
    }
    // Stable, so that equals stay in their order.
    ranked.sort_by_key(|candidate| Reverse(candidate.specificity));
    if let Some(first) = ranked.iter_mut().find(|c| c.outcome == Outcome::Loses) {
        first.outcome = Outcome::Wins;
    }
    ranked
}

impl Specificity {
    /// In what it is less specific than another; `None` if it is not.
    pub fn behind(self, other: Self) -> Option<&'static str> {
        let parts = [
            (self.host.cmp(&other.host), "its host"),
            (self.path.cmp(&other.path), "its path"),
            (self.method.cmp(&other.method), "its method"),
            (self.headers.cmp(&other.headers), "the number of its headers"),
            (self.query.cmp(&other.query), "the number of its query parameters"),
        ];
        let (order, part) = parts.into_iter().find(|(order, _)| order.is_ne())?;
        order.is_lt().then_some(part)
    }
}
