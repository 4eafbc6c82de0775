//! Which rule of which route a request matches.
//!
//! The most specific match wins, as Gateway API has it: host, then path (exact over prefix over
//! regex, longer first), then method, number of headers, number of query parameters; for gRPC host,
//! service, method, number of headers. The first rule wins a tie. Prefixes match whole segments;
//! regular expressions must match the whole value.

mod cover;
mod precedence;
#[cfg(test)]
mod tests;

use http::request::Parts;
use http::{HeaderMap, Uri};

pub use self::cover::{Cover, Position, Shadowed, shadowed};
pub use self::precedence::{Candidate, Miss, Outcome, candidates};
use crate::route::{
    GrpcMatch, HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch, Route, Rule, ValueMatch,
};

/// A regular expression that must match a whole value. Compares by its source.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: String,
    regex: regex::bytes::Regex,
}

/// Upper bound on a compiled expression, and on what matching keeps to be fast, so that routes cannot
/// exhaust a proxy. Bytes.
const REGEX_SIZE_LIMIT: usize = 128 << 10;

impl Pattern {
    /// Compiles `source`.
    ///
    /// # Errors
    /// When it is not a regular expression, or one that compiles to more than 128 KiB.
    pub fn new(source: &str) -> Result<Self, InvalidPattern> {
        let regex = regex::bytes::RegexBuilder::new(&format!("^(?:{source})$"))
            .size_limit(REGEX_SIZE_LIMIT)
            .dfa_size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|error| InvalidPattern { pattern: source.into(), error: Box::new(error) })?;
        Ok(Self { source: source.into(), regex })
    }

    pub fn as_str(&self) -> &str {
        &self.source
    }

    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

/// A route's regular expression that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the regular expression `{pattern}` is not valid: {error}")]
pub struct InvalidPattern {
    pattern: String,
    error: Box<regex::Error>,
}

/// How specific a match is; greater is more specific.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    host: (u8, usize),
    /// Of gRPC, the service.
    path: (u8, usize),
    /// Of gRPC, the length of its name.
    method: usize,
    headers: usize,
    query: usize,
}

/// Of a match that says nothing of the path: it means the prefix `/`.
const ANY_PATH: (u8, usize) = (2, 0);

impl Specificity {
    /// Of a rule without matches.
    fn anything() -> Self {
        Self { path: ANY_PATH, ..Self::default() }
    }
}

/// A kind of match: HTTP or gRPC.
pub trait MatchRequest {
    /// Whether the request matches, and how specifically (the host is left to the route).
    fn match_request(&self, req: &Parts) -> Option<Specificity> {
        self.miss(req).is_none().then(|| self.specificity())
    }
    /// The first condition that does not hold.
    fn miss(&self, req: &Parts) -> Option<Miss<'_>>;
    /// How specific it is, whatever the request.
    fn specificity(&self) -> Specificity;
    /// The prefix that a `ReplacePrefixMatch` would replace.
    fn prefix(&self) -> Option<&str>;
    fn names_method(&self) -> bool;
}

/// Whether every match of a rule names its method: the rule then knows what it lets be retried.
pub fn names_methods<M: MatchRequest>(matches: &[M]) -> bool {
    !matches.is_empty() && matches.iter().all(M::names_method)
}

/// The rule a request goes by.
#[derive(Debug)]
pub struct Found<'a, M, R> {
    /// Index into the routes given.
    pub route: usize,
    /// Index into that route's rules.
    pub rule: usize,
    pub rule_ref: &'a Rule<M, R>,
    /// The matched path prefix, when the match was one.
    pub prefix: Option<&'a str>,
}

/// Finds the most specific rule for a request.
pub fn find<'a, M: MatchRequest, R>(
    routes: &'a [Route<M, R>],
    req: &Parts,
) -> Option<Found<'a, M, R>> {
    let host = request_host(req);
    let mut best: Option<(Specificity, Found<'a, M, R>)> = None;
    for (route_index, route) in routes.iter().enumerate() {
        let Some(host) = match_hosts(&route.hosts, host) else { continue };
        for (rule_index, rule) in route.rules.iter().enumerate() {
            let Some((specificity, prefix)) = match_rule(rule, req) else { continue };
            let specificity = Specificity { host, ..specificity };
            if best.as_ref().is_none_or(|(found, _)| specificity > *found) {
                let found = Found { route: route_index, rule: rule_index, rule_ref: rule, prefix };
                best = Some((specificity, found));
            }
        }
    }
    best.map(|(_, found)| found)
}

fn match_rule<'a, M: MatchRequest, R>(
    rule: &'a Rule<M, R>,
    req: &Parts,
) -> Option<(Specificity, Option<&'a str>)> {
    if rule.matches.is_empty() {
        return Some((Specificity::anything(), Some("/")));
    }
    let mut best = None;
    for candidate in &rule.matches {
        let Some(specificity) = candidate.match_request(req) else { continue };
        if best.as_ref().is_none_or(|(found, _)| specificity > *found) {
            best = Some((specificity, candidate.prefix()));
        }
    }
    best
}

/// The host a request is for: the URI's, else the `Host` header's, without port.
pub fn request_host(req: &Parts) -> &str {
    host_in(&req.uri, &req.headers)
}

pub(crate) fn host_in<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    let authority = uri
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| headers.get(http::header::HOST).and_then(|host| host.to_str().ok()));
    host_of(authority.unwrap_or_default())
}

/// `host:port` without its port; brackets of an IPv6 address stay.
pub fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

pub(crate) fn match_hosts(hosts: &[HostMatch], host: &str) -> Option<(u8, usize)> {
    if hosts.is_empty() {
        return Some((0, 0));
    }
    hosts.iter().filter_map(|pattern| pattern.match_host(host)).max()
}

impl HostMatch {
    /// Specificity of the match of a host or SNI, `None` without one.
    pub fn match_host(&self, host: &str) -> Option<(u8, usize)> {
        let host = host.strip_suffix('.').unwrap_or(host);
        match self {
            Self::Exact(exact) => exact.eq_ignore_ascii_case(host).then_some((2, exact.len())),
            Self::Suffix(labels) => {
                let mut rest = host.rsplit('.');
                for label in labels.iter().rev() {
                    if !rest.next().is_some_and(|have| have.eq_ignore_ascii_case(label)) {
                        return None;
                    }
                }
                rest.next().is_some_and(|more| !more.is_empty()).then_some((1, labels.len()))
            }
        }
    }
}

impl MatchRequest for HttpMatch {
    fn miss(&self, req: &Parts) -> Option<Miss<'_>> {
        if self.path.as_ref().is_some_and(|path| !path.matches(req.uri.path())) {
            return Some(Miss::Path);
        }
        if self.method.as_ref().is_some_and(|method| *method != req.method) {
            return Some(Miss::Method);
        }
        miss_headers(&self.headers, req)
            .or_else(|| self.query.iter().find(|q| !q.matches(&req.uri)).map(Miss::Query))
    }

    fn specificity(&self) -> Specificity {
        Specificity {
            host: (0, 0),
            path: self.path.as_ref().map_or(ANY_PATH, PathMatch::specificity),
            method: usize::from(self.method.is_some()),
            headers: self.headers.len(),
            query: self.query.len(),
        }
    }

    fn prefix(&self) -> Option<&str> {
        match &self.path {
            None => Some("/"),
            Some(PathMatch::Prefix(prefix)) => Some(prefix),
            Some(_) => None,
        }
    }

    fn names_method(&self) -> bool {
        self.method.is_some()
    }
}

impl MatchRequest for GrpcMatch {
    fn miss(&self, req: &Parts) -> Option<Miss<'_>> {
        let mut segments = req.uri.path().strip_prefix('/').unwrap_or_default().splitn(2, '/');
        let (Some(service), Some(method)) = (segments.next(), segments.next()) else {
            return Some(Miss::Path);
        };
        if named(self.service.as_ref()).is_some_and(|wanted| wanted != service) {
            return Some(Miss::Service);
        }
        if named(self.method.as_ref()).is_some_and(|wanted| wanted != method) {
            return Some(Miss::Method);
        }
        miss_headers(&self.headers, req)
    }

    fn specificity(&self) -> Specificity {
        Specificity {
            host: (0, 0),
            path: (ANY_PATH.0, named(self.service.as_ref()).map_or(0, str::len)),
            method: named(self.method.as_ref()).map_or(0, str::len),
            headers: self.headers.len(),
            query: 0,
        }
    }

    fn prefix(&self) -> Option<&str> {
        None
    }

    fn names_method(&self) -> bool {
        self.method.is_some()
    }
}

/// An empty name is none.
fn named(name: Option<&String>) -> Option<&str> {
    name.map(String::as_str).filter(|name| !name.is_empty())
}

fn miss_headers<'a>(headers: &'a [HeaderMatch], req: &Parts) -> Option<Miss<'a>> {
    headers.iter().find(|header| !header.matches(&req.uri, &req.headers)).map(Miss::Header)
}

impl PathMatch {
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(prefix.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }

    fn specificity(&self) -> (u8, usize) {
        match self {
            Self::Exact(exact) => (3, exact.len()),
            Self::Prefix(prefix) => (2, prefix.trim_end_matches('/').len()),
            Self::Regex(pattern) => (1, pattern.as_str().len()),
        }
    }
}

impl HeaderMatch {
    pub(crate) fn matches(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        if self.name == http::header::HOST {
            // HTTP/2 carries it as the URI's authority.
            let host = uri.authority().map(|authority| authority.as_str().as_bytes());
            let header = || headers.get(&self.name).map(http::HeaderValue::as_bytes);
            return host.or_else(header).is_some_and(|value| self.value.matches(value));
        }
        let mut values = headers.get_all(&self.name).iter();
        let Some(first) = values.next() else { return false };
        let Some(second) = values.next() else { return self.value.matches(first.as_bytes()) };
        // Repeated fields mean their comma-separated list (RFC 9110, 5.3).
        let mut joined = first.as_bytes().to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        }
        self.value.matches(&joined)
    }
}

impl QueryMatch {
    /// Of a parameter that is repeated, the first value counts.
    pub(crate) fn matches(&self, uri: &Uri) -> bool {
        let query = uri.query().unwrap_or_default();
        params(query, &['&'], &self.name).next().is_some_and(|value| self.has(&value))
    }

    /// Whether some server could find a value that matches: it may take the last, or separate
    /// parameters by `;`.
    pub(crate) fn may_match(&self, uri: &Uri) -> bool {
        let query = uri.query().unwrap_or_default();
        [&['&'][..], &['&', ';']]
            .iter()
            .any(|separators| params(query, separators, &self.name).any(|value| self.has(&value)))
    }

    /// Whether every server must find one that does.
    pub(crate) fn must_match(&self, uri: &Uri) -> bool {
        let query = uri.query().unwrap_or_default();
        self.matches(uri)
            && [&['&'][..], &['&', ';']].iter().all(|separators| {
                params(query, separators, &self.name).all(|value| self.has(&value))
            })
    }

    fn has(&self, value: &str) -> bool {
        self.value.matches(value.as_bytes())
    }
}

impl ValueMatch {
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact == value,
            Self::Regex(pattern) => pattern.matches(value),
        }
    }
}

/// The values of a query parameter, percent-decoded where they need to be.
fn params<'a>(
    query: &'a str,
    separators: &'a [char],
    name: &'a str,
) -> impl Iterator<Item = std::borrow::Cow<'a, str>> {
    query.split(separators).filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

fn decode(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return text.into();
    }
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', ..) => {
                decoded.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned().into()
}
