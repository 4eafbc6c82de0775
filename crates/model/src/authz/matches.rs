//! Whether a rule applies to a request.

use std::borrow::Cow;
use std::cell::OnceCell;

use super::{
    Action, Ambiguous, AuthorizationRule, AuthzRequest, ClientMatch, HttpRequest, IdentityPattern,
    Operation, Outcome, Probe, RouteScope, Source, canonical,
};
use crate::matching::{host_in, match_hosts};
use crate::route::{HeaderMatch, HttpMatch};

/// A request, and what has been worked out about it.
pub(super) struct Subject<'a> {
    request: AuthzRequest<'a>,
    path: OnceCell<Result<Cow<'a, str>, Ambiguous>>,
}

/// Whether a condition holds; where that is uncertain the rule's action decides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    No,
    Uncertain,
    Yes,
}

/// How a request is read that servers read in different ways.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// As any of them could.
    Any,
    /// As all of them must.
    All,
}

impl Holds {
    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    /// The best of several.
    fn any(all: impl Iterator<Item = Self>) -> Self {
        let mut best = Self::No;
        for holds in all {
            match holds {
                Self::Yes => return Self::Yes,
                Self::Uncertain => best = Self::Uncertain,
                Self::No => {}
            }
        }
        best
    }
}

impl<'a> Subject<'a> {
    pub(super) fn new(request: AuthzRequest<'a>) -> Self {
        Self { request, path: OnceCell::new() }
    }

    pub(super) fn is_probe(&self, probe: &Probe) -> bool {
        self.request.http.is_some_and(|http| {
            *http.method == probe.method
                && self.path(http).is_ok_and(|path| probe.path.matches(path))
        })
    }

    pub(super) fn outcome(&self, rule: &AuthorizationRule) -> Outcome {
        if rule.route.is_none() && rule.to.is_empty() {
            let names_client = self.is_from_any(rule);
            return if names_client { Outcome::Applies } else { Outcome::OtherClients };
        }
        let Some(http) = self.request.http else {
            // Bytes could be such requests in a form that only the application understands.
            return match rule.action == Action::Deny && self.is_from_any(rule) {
                true => Outcome::Applies,
                false => Outcome::NotHttp,
            };
        };
        let (strict, reading) = match rule.action {
            Action::Deny | Action::Audit => (true, Reading::Any),
            Action::Allow => (false, Reading::All),
        };
        let in_route = match &rule.route {
            None => Holds::Yes,
            Some(scope) => self.is_of_route(scope, http, reading),
        };
        if in_route == Holds::No {
            return Outcome::OtherRoute;
        }
        if !self.is_from_any(rule) {
            return Outcome::OtherClients;
        }
        let requested = match rule.to.is_empty() {
            true => Holds::Yes,
            false => Holds::any(rule.to.iter().map(|to| self.is_to(to, http, reading))),
        };
        match (requested, in_route) {
            (Holds::No, _) => Outcome::OtherRequests,
            (Holds::Yes, Holds::Yes) => Outcome::Applies,
            // What may be denied is, what may not be allowed is not.
            _ if strict => Outcome::Applies,
            _ => Outcome::AmbiguousPath,
        }
    }

    fn path(&self, http: HttpRequest<'a>) -> Result<&str, Ambiguous> {
        let path = self.path.get_or_init(|| canonical(http.uri.path()));
        path.as_deref().map_err(|ambiguous| *ambiguous)
    }

    fn is_from_any(&self, rule: &AuthorizationRule) -> bool {
        rule.from.is_empty() || rule.from.iter().any(|source| self.is_from(source, rule.action))
    }

    fn is_from(&self, source: &Source, action: Action) -> bool {
        let client = match (&source.client, self.request.identity) {
            (ClientMatch::Anyone, _) => true,
            (ClientMatch::Unauthenticated, identity) => {
                identity.is_none() || action == Action::Allow
            }
            (_, None) => false,
            (ClientMatch::Authenticated, Some(_)) => true,
            (ClientMatch::Among(patterns), Some(identity)) => {
                patterns.iter().any(|pattern| pattern.matches(identity))
            }
        };
        let networks = &source.networks;
        client && (networks.is_empty() || networks.iter().any(|n| n.contains(self.request.client)))
    }

    /// A request that could be of the route is governed by its rules, also where that it is cannot be
    /// said for sure.
    fn is_of_route(&self, scope: &RouteScope, http: HttpRequest<'a>, reading: Reading) -> Holds {
        if match_hosts(&scope.hosts, host_in(http.uri, http.headers)).is_none() {
            return Holds::No;
        }
        if scope.matches.is_empty() {
            return Holds::Yes;
        }
        Holds::any(scope.matches.iter().map(|matched| self.is_match(matched, http, reading)))
    }

    fn is_match(&self, matched: &HttpMatch, http: HttpRequest<'a>, reading: Reading) -> Holds {
        let may_hold = matched.method.as_ref().is_none_or(|method| method == http.method)
            && has_headers(&matched.headers, http, Reading::Any)
            && matched.query.iter().all(|query| query.may_match(http.uri));
        let path = match &matched.path {
            _ if !may_hold => return Holds::No,
            None => Holds::Yes,
            Some(path) => match self.path(http) {
                Ok(canonical) => Holds::of(path.matches(canonical)),
                Err(Ambiguous) => Holds::Uncertain,
            },
        };
        let holds = reading == Reading::Any
            || (has_headers(&matched.headers, http, Reading::All)
                && matched.query.iter().all(|query| query.must_match(http.uri)));
        match path {
            Holds::Yes if !holds => Holds::Uncertain,
            path => path,
        }
    }

    fn is_to(&self, to: &Operation, http: HttpRequest<'a>, reading: Reading) -> Holds {
        let holds = (to.methods.is_empty() || to.methods.contains(http.method))
            && has_headers(&to.headers, http, reading);
        if !holds || to.paths.is_empty() {
            return Holds::of(holds);
        }
        match self.path(http) {
            Ok(canonical) => Holds::of(to.paths.iter().any(|path| path.matches(canonical))),
            Err(Ambiguous) => Holds::Uncertain,
        }
    }
}

/// A header that is repeated has its values joined, as routes have it; but applications take the first
/// or the last, too.
fn has_headers(wanted: &[HeaderMatch], http: HttpRequest<'_>, reading: Reading) -> bool {
    wanted.iter().all(|header| {
        let joined = header.matches(http.uri, http.headers);
        let mut single = http.headers.get_all(&header.name).iter();
        let mut matches = |value: &http::HeaderValue| header.value.matches(value.as_bytes());
        match reading {
            Reading::Any => joined || single.any(&mut matches),
            // Of `Host` there is one, and HTTP/2 has it elsewhere.
            Reading::All => {
                joined && (header.name == http::header::HOST || single.all(&mut matches))
            }
        }
    })
}

impl IdentityPattern {
    /// Identities are names of DNS, which have no case.
    pub fn matches(&self, identity: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.eq_ignore_ascii_case(identity),
            Self::Suffix(suffix) => identity
                .len()
                .checked_sub(suffix.len())
                .and_then(|at| identity.split_at_checked(at))
                .is_some_and(|(before, end)| {
                    end.eq_ignore_ascii_case(suffix)
                        && before.strip_suffix('.').is_some_and(|first| !first.is_empty())
                }),
        }
    }
}
