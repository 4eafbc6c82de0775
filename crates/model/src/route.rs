//! Routes, shared by both directions: matches, filters, timeouts, retries.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

pub use crate::cors::{Cors, Listed, Origin};
use crate::matching::Pattern;
use crate::meta::Meta;
use crate::outbound::Backend;

/// A route: hosts it answers for, and its rules. `M` is [`HttpMatch`] or [`GrpcMatch`].
#[derive(Clone, Debug, PartialEq)]
pub struct Route<M, R> {
    pub meta: Meta,
    /// Empty: any host.
    pub hosts: Vec<HostMatch>,
    pub rules: Vec<Rule<M, R>>,
}

/// One rule: when any of `matches` holds (or there are none), `action` applies.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule<M, R> {
    pub matches: Vec<M>,
    pub filters: Vec<Filter>,
    pub action: R,
}

/// A host pattern of a route. Hosts compare without port and without case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    Exact(String),
    /// `*.example.com` is `["example", "com"]`; at least one more label must stand before it.
    Suffix(Vec<String>),
}

/// `shop.example`, `*.shop.example`
impl fmt::Display for HostMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact),
            Self::Suffix(labels) => write!(f, "*.{}", labels.join(".")),
        }
    }
}

/// Conditions on one HTTP request; all must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
    pub method: Option<Method>,
}

impl HttpMatch {
    /// How many regular expressions it has.
    pub fn patterns(&self) -> usize {
        let values = self.headers.iter().map(|header| matches!(header.value, ValueMatch::Regex(_)));
        let values =
            values.chain(self.query.iter().map(|q| matches!(q.value, ValueMatch::Regex(_))));
        let path = matches!(self.path, Some(PathMatch::Regex(_)));
        usize::from(path) + values.filter(|is_pattern| *is_pattern).count()
    }
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    Exact(String),
    /// Whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    Regex(Pattern),
}

/// A condition on one header.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    pub name: HeaderName,
    pub value: ValueMatch,
}

/// A condition on one query parameter; the first occurrence counts.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryMatch {
    pub name: String,
    pub value: ValueMatch,
}

/// Equality, or a regular expression that must match the whole value.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatch {
    Exact(Vec<u8>),
    Regex(Pattern),
}

/// Conditions on one gRPC call; all must hold. An empty name matches any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GrpcMatch {
    pub service: Option<String>,
    pub method: Option<String>,
    pub headers: Vec<HeaderMatch>,
}

/// What a rule does to a request or its response.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Answers a share of the requests itself.
    Fail(FailureInjector),
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect(Redirect),
    /// What follows are extensions: the linkerd2 proxy API has no words for them (`mesh.ext.v1`).
    Rewrite(Rewrite),
    Mirror(Box<Mirror>),
    Cors(Cors),
    Fault(Fault),
}

/// Answers `ratio` of the requests with a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureInjector {
    pub failure: InjectedFailure,
    pub message: String,
    pub ratio: Ratio,
}

/// The failure to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedFailure {
    Http(StatusCode),
    /// A gRPC status code.
    Grpc(u16),
}

/// A share, `numerator / denominator`, with `denominator` > 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    pub numerator: u32,
    pub denominator: u32,
}

impl Ratio {
    /// Whether a uniformly random `draw` falls into the share.
    pub fn covers(self, draw: u32) -> bool {
        // Scales the draw to the denominator instead of taking it modulo, which would be biased.
        (u64::from(draw) * u64::from(self.denominator)) >> 32 < u64::from(self.numerator)
    }
}

/// Changes to a message's headers, applied in the order add, set, remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderModifier {
    /// Applies the changes.
    pub fn apply(&self, headers: &mut http::HeaderMap) {
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Answers with a redirection; parts left `None` stay those of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathModifier>,
    pub status: StatusCode,
}

/// By what, and at which port, a client came in, as the listener knows it: an extension of requests at
/// the edge. What a request says of that itself, the client has said; most say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// Over TLS.
    pub secured: bool,
    /// The listener's.
    pub port: u16,
}

impl Entrance {
    pub fn scheme(self) -> &'static str {
        if self.secured { "https" } else { "http" }
    }
}

impl Redirect {
    /// Where it leads a request of this head, of whose path the rule matched `prefix`. `port` is the
    /// one of the request's authority, which counts where no [`Entrance`] is known.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn location(
        &self,
        head: &http::request::Parts,
        port: Option<u16>,
        prefix: &str,
    ) -> Result<String, &'static str> {
        let entrance = head.extensions.get::<Entrance>();
        let (own_scheme, own_port) = match entrance {
            Some(entrance) => (Some(entrance.scheme()), Some(entrance.port)),
            None => (head.uri.scheme_str(), port),
        };
        let scheme = self.scheme.as_deref().or(own_scheme).unwrap_or("http");
        let host = self.host.as_deref().unwrap_or_else(|| crate::matching::request_host(head));
        if host.is_empty() {
            return Err("the request names no host");
        }
        let well_known = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        // A scheme that was asked for brings its own port, if it has one.
        let port = self.port.or(well_known.filter(|_| self.scheme.is_some())).or(own_port);
        let authority = match port.filter(|_| port != well_known) {
            None => host.to_owned(),
            Some(port) => format!("{host}:{port}"),
        };
        let path = match &self.path {
            None => head.uri.path().to_owned(),
            Some(modifier) => modifier.replace(head.uri.path(), prefix),
        };
        let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let location: Uri = format!("{scheme}://{authority}{path}{query}")
            .parse()
            .map_err(|_| "the new location is not a URI")?;
        Ok(location.to_string())
    }
}

/// A replacement of the whole path, or of the prefix that the rule matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    Full(String),
    Prefix(String),
}

impl PathModifier {
    /// The path that takes the place of `path`, of which the rule matched `prefix`.
    pub fn replace(&self, path: &str, prefix: &str) -> String {
        let new = match self {
            Self::Full(full) => return full.clone(),
            Self::Prefix(new) => new.trim_end_matches('/'),
        };
        let rest = path.strip_prefix(prefix.trim_end_matches('/')).unwrap_or_default();
        match format!("{new}{rest}") {
            empty if empty.is_empty() => "/".to_owned(),
            path => path,
        }
    }
}

/// Sends requests on under another host or path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub host: Option<HeaderValue>,
    pub path: Option<PathModifier>,
}

/// Sends a share of the requests to another backend, too, whose answers nobody hears.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    pub backend: Backend,
    pub ratio: Ratio,
}

/// Fails or delays a share of the requests, for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The object that asks for it.
    pub meta: Meta,
    /// Only requests with all of these.
    pub headers: Vec<HeaderMatch>,
    pub ratio: Ratio,
    pub kind: FaultKind,
    /// It ends then, whoever forgets it.
    pub until: Option<SystemTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Abort(InjectedFailure),
    Delay(Duration),
}

impl Fault {
    /// Longer delays, one or several together, are no trial any more.
    pub const MAX_DELAY: Duration = Duration::from_secs(60 * 60);

    /// How many regular expressions it has.
    pub fn patterns(&self) -> usize {
        let regex = |header: &&HeaderMatch| matches!(header.value, ValueMatch::Regex(_));
        self.headers.iter().filter(regex).count()
    }

    /// Whether a request of this time may be hit.
    pub fn means(&self, uri: &Uri, headers: &HeaderMap, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < until)
            && self.headers.iter().all(|header| header.matches(uri, headers))
    }
}

/// Keeps the requests of one client at the endpoint that had its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Of the cookie or header that says which endpoint that is.
    pub name: String,
    pub by: SessionBy,
    /// How long after its beginning it ends.
    pub absolute: Option<Duration>,
    /// How long after its last request it ends.
    pub idle: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionBy {
    Cookie {
        /// Browsers keep it when they end.
        permanent: bool,
    },
    Header,
}

/// Time limits of a request; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's first byte to the response's last.
    pub request: Option<Duration>,
    /// From the request's last byte to the response's last.
    pub response: Option<Duration>,
    /// Without a frame in either direction.
    pub idle: Option<Duration>,
}

/// When and how often a request may be tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Tries after the first.
    pub max_retries: u32,
    /// Larger request bodies are not kept for another try. Bytes.
    pub max_request_bytes: u32,
    /// HTTP statuses that call for another try.
    pub statuses: Vec<RangeInclusive<u16>>,
    pub grpc: GrpcCodes,
    /// Limit of one try until its response's head.
    pub timeout: Option<Duration>,
    pub backoff: Option<Backoff>,
}

/// Whether requests of a method may be processed twice, as HTTP has it.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// A set of gRPC status codes 0…31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcCodes(pub u32);

impl GrpcCodes {
    /// The set with `code` added; codes above 31 do not exist and are ignored.
    #[must_use]
    pub fn with(self, code: u16) -> Self {
        Self(self.0 | 1u32.checked_shl(u32::from(code)).unwrap_or(0))
    }

    pub fn contains(self, code: u16) -> bool {
        1u32.checked_shl(u32::from(code)).is_some_and(|bit| self.0 & bit != 0)
    }
}

/// Exponential backoff with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub min: Duration,
    pub max: Duration,
    /// Share of the base that may be added at random, ≥ 0.
    pub jitter: f32,
    /// Take a `Retry-After` of the response as the first backoff.
    pub respect_retry_after: bool,
}

/// How a rule's traffic is spread over its backends.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution<B> {
    /// No backend: 503 for HTTP, close for TCP.
    Empty,
    /// The first one that has an endpoint ready.
    FirstAvailable(Vec<Arc<B>>),
    /// At random by weight; at least one weight is > 0.
    Random(Vec<(Arc<B>, u32)>),
}

impl<B> Distribution<B> {
    /// The backends, in their order.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<B>> {
        let (first, random) = match self {
            Self::Empty => (&[][..], &[][..]),
            Self::FirstAvailable(backends) => (backends.as_slice(), &[][..]),
            Self::Random(backends) => (&[][..], backends.as_slice()),
        };
        first.iter().chain(random.iter().map(|(backend, _)| backend))
    }

    pub fn backend_mut(&mut self, index: usize) -> Option<&mut Arc<B>> {
        match self {
            Self::Empty => None,
            Self::FirstAvailable(backends) => backends.get_mut(index),
            Self::Random(backends) => backends.get_mut(index).map(|(backend, _)| backend),
        }
    }
}
