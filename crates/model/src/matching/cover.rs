//! Matches that can never decide: others take all of their requests, or no request fulfils them.
//!
//! What is told is true of every request (a property test tries); of what only several others
//! together take, nothing is told.

use super::{MatchRequest, named};
use crate::route::{
    GrpcMatch, HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch, Route, ValueMatch,
};

/// Where a match stands: route, rule, match. A rule without matches has one, its 0th.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub route: usize,
    pub rule: usize,
    pub matched: usize,
}

/// A match that never decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadowed {
    pub at: Position,
    /// The match of another rule that takes all of its requests.
    pub by: Position,
}

/// Two kinds of conditions that compare.
pub trait Cover: MatchRequest + Default {
    /// Whether every request that fulfils `other` fulfils this.
    fn covers(&self, other: &Self) -> bool;
    /// Why no request can fulfil it.
    fn impossible(&self) -> Option<String>;
}

/// The matches of routes, given in their order, that never decide.
pub fn shadowed<M: Cover, R>(routes: &[Route<M, R>]) -> Vec<Shadowed> {
    let any = M::default();
    let mut all: Vec<(Position, &[HostMatch], &M)> = Vec::new();
    for (route, of) in routes.iter().enumerate() {
        for (rule, of_rule) in of.rules.iter().enumerate() {
            let matches = of_rule.matches.iter().chain(of_rule.matches.is_empty().then_some(&any));
            all.extend(matches.enumerate().map(|(matched, found)| {
                (Position { route, rule, matched }, of.hosts.as_slice(), found)
            }));
        }
    }
    let by = |&(at, hosts, found): &(Position, &[HostMatch], &M)| {
        let wins = |&&(by, by_hosts, other): &&(Position, &[HostMatch], &M)| {
            let (mine, its) = (found.specificity(), other.specificity());
            (by.route, by.rule) != (at.route, at.rule)
                && (its > mine || (its == mine && by < at))
                && has_hosts(by_hosts, hosts)
                && other.covers(found)
        };
        all.iter().find(wins).map(|(by, ..)| Shadowed { at, by: *by })
    };
    all.iter().filter_map(by).collect()
}

/// Whether a route with the hosts `these` is as close as one with `those` to each of its requests.
fn has_hosts(these: &[HostMatch], those: &[HostMatch]) -> bool {
    match (these, those) {
        ([], []) => true,
        ([], _) | (_, []) => false,
        _ => those.iter().all(|host| these.contains(host)),
    }
}

impl Cover for HttpMatch {
    fn covers(&self, other: &Self) -> bool {
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(path), Some(other)) => path.covers(other),
            (Some(path), None) => path.covers(&PathMatch::Prefix("/".into())),
        };
        let method = self.method.is_none() || self.method == other.method;
        path && method
            && self.headers.iter().all(|header| header.is_implied(&other.headers))
            && self.query.iter().all(|query| query.is_implied(&other.query))
    }

    fn impossible(&self) -> Option<String> {
        self.path.as_ref().and_then(PathMatch::impossible).or_else(|| {
            let headers = self.headers.iter().map(|h| (h.name.as_str(), &h.value));
            contradiction("header", headers).or_else(|| {
                contradiction("query", self.query.iter().map(|q| (q.name.as_str(), &q.value)))
            })
        })
    }
}

impl Cover for GrpcMatch {
    fn covers(&self, other: &Self) -> bool {
        let wider = |mine: Option<&String>, its: Option<&String>| {
            named(mine).is_none() || named(mine) == named(its)
        };
        wider(self.service.as_ref(), other.service.as_ref())
            && wider(self.method.as_ref(), other.method.as_ref())
            && self.headers.iter().all(|header| header.is_implied(&other.headers))
    }

    fn impossible(&self) -> Option<String> {
        let names = [named(self.service.as_ref()), named(self.method.as_ref())];
        let slash = names.into_iter().flatten().find(|name| name.contains('/'));
        slash.map(|name| format!("`{name}` has a slash, which no gRPC name has")).or_else(|| {
            contradiction("header", self.headers.iter().map(|h| (h.name.as_str(), &h.value)))
        })
    }
}

impl PathMatch {
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(prefix), _) if prefix.trim_end_matches('/').is_empty() => true,
            (Self::Regex(mine), Self::Regex(its)) => mine == its,
            (_, Self::Exact(exact)) => self.matches(exact),
            (Self::Prefix(_), Self::Prefix(prefix)) => self.matches(prefix.trim_end_matches('/')),
            _ => false,
        }
    }

    fn impossible(&self) -> Option<String> {
        let (Self::Exact(path) | Self::Prefix(path)) = self else { return None };
        if !path.starts_with('/') {
            return Some(format!("`{path}` does not begin with a slash, as every path does"));
        }
        let odd = path.chars().find(|c| matches!(c, '?' | '#'))?;
        Some(format!("`{path}` has a {odd}, which is never part of a path"))
    }
}

impl HeaderMatch {
    fn is_implied(&self, by: &[Self]) -> bool {
        by.iter().any(|other| other.name == self.name && self.value.covers(&other.value))
    }
}

impl QueryMatch {
    fn is_implied(&self, by: &[Self]) -> bool {
        by.iter().any(|other| other.name == self.name && self.value.covers(&other.value))
    }
}

impl ValueMatch {
    fn covers(&self, other: &Self) -> bool {
        self == other
            || matches!((self, other), (Self::Regex(_), Self::Exact(exact)) if self.matches(exact))
    }

    /// Whether there is no value for both, as far as that is easily seen.
    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(exact), other) | (other, Self::Exact(exact)) => !other.matches(exact),
            (Self::Regex(_), Self::Regex(_)) => false,
        }
    }
}

fn contradiction<'a>(
    what: &str,
    conditions: impl Iterator<Item = (&'a str, &'a ValueMatch)> + Clone,
) -> Option<String> {
    let mut rest = conditions;
    while let Some((name, value)) = rest.next() {
        let mut others = rest.clone().filter(|(other, _)| *other == name);
        if others.any(|(_, other)| value.excludes(other)) {
            return Some(format!("{what} {name} would have to have two values at once"));
        }
    }
    None
}
