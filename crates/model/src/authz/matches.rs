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
        let strict = rule.action != Action::Allow;
        let in_route = match &rule.route {
            None => Holds::Yes,
            Some(scope) => self.is_of_route(scope, http, strict),
        };
        if in_route == Holds::No {
            return Outcome::OtherRoute;
        }
        if !self.is_from_any(rule) {
            return Outcome::OtherClients;
        }
        let requested = match rule.to.is_empty() {
            true => Holds::Yes,
            false => Holds::any(rule.to.iter().map(|to| self.is_to(to, http, strict))),
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

    fn is_of_route(&self, scope: &RouteScope, http: HttpRequest<'a>, strict: bool) -> Holds {
        if match_hosts(&scope.hosts, host_in(http.uri, http.headers)).is_none() {
            return Holds::No;
        }
        if scope.matches.is_empty() {
            return Holds::Yes;
        }
        Holds::any(scope.matches.iter().map(|matched| self.is_match(matched, http, strict)))
    }

    fn is_match(&self, matched: &HttpMatch, http: HttpRequest<'a>, strict: bool) -> Holds {
        let holds = matched.method.as_ref().is_none_or(|method| method == http.method)
            && has_headers(&matched.headers, http, strict)
            && matched.query.iter().all(|query| query.matches(http.uri));
        match (&matched.path, holds) {
            (_, false) => Holds::No,
            (None, true) => Holds::Yes,
            (Some(path), true) => match self.path(http) {
                Ok(canonical) => Holds::of(path.match_path(canonical).is_some()),
                Err(Ambiguous) => Holds::Uncertain,
            },
        }
    }

    fn is_to(&self, to: &Operation, http: HttpRequest<'a>, strict: bool) -> Holds {
        let holds = (to.methods.is_empty() || to.methods.contains(http.method))
            && has_headers(&to.headers, http, strict);
        if !holds || to.paths.is_empty() {
            return Holds::of(holds);
        }
        match self.path(http) {
            Ok(canonical) => Holds::of(to.paths.iter().any(|path| path.matches(canonical))),
            Err(Ambiguous) => Holds::Uncertain,
        }
    }
}

/// A header that is repeated has its values joined, as routes have it. To deny, one of them is
/// enough: applications take the first or the last.
fn has_headers(wanted: &[HeaderMatch], http: HttpRequest<'_>, strict: bool) -> bool {
    wanted.iter().all(|header| {
        header.matches(http.uri, http.headers)
            || (strict
                && http
                    .headers
                    .get_all(&header.name)
                    .iter()
                    .any(|value| header.value.matches(value.as_bytes())))
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
