//! An outbound policy whole, in our own words where the linkerd2 API has none.
//!
//! What the API cannot say is taken out of the policy and travels beside it, with its place
//! ([`split`]); the reader puts it back ([`merge`]). For readers that know the API only, a policy is
//! lowered ([`lower`]): what merely adds something is left out, and requests that must not go on
//! without what is missing fail.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode};
use linkerd2_proxy_api::outbound as pb;
use mesh_model::OutboundPolicy;
use mesh_model::outbound::{Forward, GrpcPolicy, HttpPolicy, Protocol, RouteBackend};
use mesh_model::route::{
    Cors, Distribution, FailureInjector, Fault, FaultKind, Filter, HeaderModifier, InjectedFailure,
    Listed, Mirror, Origin, PathModifier, Ratio, Rewrite, Route, Rule, Session, SessionBy,
};
use prost::Message;

use super::authz::{read_header, read_policy_meta, write_header, write_policy_meta};
use super::backend::{read_backend, write_backend};
use super::filter::{check_path, read_name, read_status};
use super::{list, required};
use crate::Wire;
use crate::error::{At, ConversionError, Result};
use crate::ext::addition::{Table, What};
use crate::ext::value_condition::Value;
use crate::ext::{self, cors, fault, header_modifier, session, url_rewrite};
use crate::limit;
use crate::validate::{self, Violation};
use crate::wire::EncodeError;

/// A policy with all of its parts. Readers of the linkerd2 API get it lowered, see [`Wire`] for
/// [`OutboundPolicy`].
#[derive(Clone, Debug, PartialEq)]
pub struct WholePolicy(pub OutboundPolicy);

impl Wire for WholePolicy {
    type Proto = ext::OutboundPolicy;

    fn from_proto(proto: ext::OutboundPolicy) -> Result<Self> {
        let policy = pb::OutboundPolicy::decode(proto.policy.as_slice())
            .map_err(|error| ConversionError::invalid("policy", error))?;
        let mut policy = OutboundPolicy::from_proto(policy).at("policy")?;
        super::bounded(proto.additions.len(), "additions", limit::ADDITIONS)?;
        let patterns = proto.additions.iter().map(patterns).sum();
        super::bounded(patterns, "additions.fault.headers.regex", limit::PATTERNS)?;
        for (index, addition) in proto.additions.into_iter().enumerate() {
            add(&mut policy, addition).at_index("additions", index)?;
        }
        Ok(Self(policy))
    }

    fn to_proto(&self) -> Result<ext::OutboundPolicy> {
        let mut additions = Additions::default();
        let policy = additions.take_from(&self.0)?;
        Ok(ext::OutboundPolicy {
            policy: super::outbound::write(&policy)?.encode_to_vec(),
            additions: additions.taken,
        })
    }

    fn validate(proto: &ext::OutboundPolicy) -> std::result::Result<(), Violation> {
        // What was encoded a moment ago can be decoded.
        pb::OutboundPolicy::decode(proto.policy.as_slice())
            .map_or(Ok(()), |policy| validate::outbound(&policy))
    }
}

/// How much of a message something takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireSize {
    pub bytes: usize,
    /// Of those that [`limit::ADDITIONS`] bounds.
    pub additions: usize,
}

impl WholePolicy {
    /// # Errors
    /// When it cannot be sent at all.
    pub fn size(&self) -> std::result::Result<WireSize, EncodeError> {
        let proto = self.encode()?;
        Ok(WireSize { bytes: proto.encoded_len(), additions: proto.additions.len() })
    }
}

/// What a policy is for readers that know the linkerd2 API only.
pub(super) fn lower(policy: &OutboundPolicy) -> Result<OutboundPolicy> {
    Additions { lowers: true, ..Additions::default() }.take_from(policy)
}

/// A kind of match, for what its routes' filters can say.
trait Speaks {
    fn says(filter: &Filter) -> bool;
    fn failure() -> InjectedFailure;
}

impl Speaks for mesh_model::route::HttpMatch {
    fn says(filter: &Filter) -> bool {
        !is_extension(filter)
    }

    fn failure() -> InjectedFailure {
        InjectedFailure::Http(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Speaks for mesh_model::route::GrpcMatch {
    fn says(filter: &Filter) -> bool {
        !is_extension(filter) && !matches!(filter, Filter::ResponseHeaders(_))
    }

    fn failure() -> InjectedFailure {
        const UNAVAILABLE: u16 = 14;
        InjectedFailure::Grpc(UNAVAILABLE)
    }
}

fn is_extension(filter: &Filter) -> bool {
    match filter {
        Filter::Fail(_)
        | Filter::RequestHeaders(_)
        | Filter::ResponseHeaders(_)
        | Filter::Redirect(_) => false,
        Filter::Rewrite(_) | Filter::Mirror(_) | Filter::Cors(_) | Filter::Fault(_) => true,
    }
}

/// Takes out of a policy what the linkerd2 API cannot say.
#[derive(Default)]
struct Additions {
    /// Nobody will put it back.
    lowers: bool,
    taken: Vec<ext::Addition>,
}

/// Where something was.
#[derive(Clone, Copy)]
struct Place {
    table: Table,
    route: usize,
    rule: usize,
    backend: Option<usize>,
}

impl Additions {
    fn take_from(&mut self, policy: &OutboundPolicy) -> Result<OutboundPolicy> {
        let protocol = match &policy.protocol {
            Protocol::Detect { timeout, http1, http2, opaque } => Protocol::Detect {
                timeout: *timeout,
                http1: self.http(http1, Table::Routes)?,
                http2: self.http(http2, Table::Http2)?,
                opaque: opaque.clone(),
            },
            Protocol::Http1(http) => Protocol::Http1(self.http(http, Table::Routes)?),
            Protocol::Http2(http) => Protocol::Http2(self.http(http, Table::Routes)?),
            Protocol::Grpc(grpc) => Protocol::Grpc(GrpcPolicy {
                routes: self.routes(&grpc.routes, Table::Routes)?,
                breaker: grpc.breaker,
            }),
            Protocol::Opaque(_) | Protocol::Tls(_) => policy.protocol.clone(),
        };
        Ok(OutboundPolicy { meta: policy.meta.clone(), protocol })
    }

    fn http(&mut self, policy: &HttpPolicy, table: Table) -> Result<HttpPolicy> {
        let routes = self.routes(&policy.routes, table)?;
        Ok(HttpPolicy { routes, breaker: policy.breaker })
    }

    fn routes<M: Speaks + Clone>(
        &mut self,
        routes: &Arc<[Route<M, Forward>]>,
        table: Table,
    ) -> Result<Arc<[Route<M, Forward>]>> {
        if routes.iter().flat_map(|route| &route.rules).all(says_all) {
            return Ok(Arc::clone(routes));
        }
        let of = |(index, route): (usize, &Route<M, Forward>)| {
            let rules = route.rules.iter().enumerate().map(|(rule, of)| {
                self.rule(of, Place { table, route: index, rule, backend: None })
            });
            let rules = rules.collect::<Result<_>>()?;
            Ok(Route { meta: route.meta.clone(), hosts: route.hosts.clone(), rules })
        };
        routes.iter().enumerate().map(of).collect()
    }

    fn rule<M: Speaks + Clone>(
        &mut self,
        rule: &Rule<M, Forward>,
        place: Place,
    ) -> Result<Rule<M, Forward>> {
        let filters = self.filters::<M>(&rule.filters, place)?;
        let action = &rule.action;
        if let Some(session) = action.session.as_ref().filter(|_| !self.lowers) {
            self.put(place, 0, What::Session(write_session(session)?));
        }
        let mut backend = |(index, backend): (usize, &Arc<RouteBackend>)| {
            if backend.filters.iter().all(M::says) {
                return Ok(Arc::clone(backend));
            }
            let place = Place { backend: Some(index), ..place };
            let filters = self.filters::<M>(&backend.filters, place)?;
            Ok(Arc::new(RouteBackend { filters, backend: backend.backend.clone() }))
        };
        let backends = match &action.backends {
            Distribution::Empty => Distribution::Empty,
            Distribution::FirstAvailable(backends) => Distribution::FirstAvailable(
                backends.iter().enumerate().map(backend).collect::<Result<_>>()?,
            ),
            Distribution::Random(backends) => Distribution::Random(
                backends
                    .iter()
                    .enumerate()
                    .map(|(index, (of, weight))| Ok((backend((index, of))?, *weight)))
                    .collect::<Result<_>>()?,
            ),
        };
        let action = Forward { backends, session: None, ..action.clone() };
        Ok(Rule { matches: rule.matches.clone(), filters, action })
    }

    fn filters<M: Speaks>(&mut self, filters: &[Filter], place: Place) -> Result<Vec<Filter>> {
        let mut left = Vec::with_capacity(filters.len());
        for (index, filter) in filters.iter().enumerate() {
            if M::says(filter) {
                left.push(filter.clone());
            } else if !self.lowers {
                self.put(place, index, write_filter(filter).at_index("filters", index)?);
            } else if must_not_be_left_out(filter) {
                left.push(Filter::Fail(FailureInjector {
                    failure: M::failure(),
                    message: "the route needs a proxy of this mesh".into(),
                    ratio: Ratio { numerator: 1, denominator: 1 },
                }));
            }
        }
        Ok(left)
    }

    fn put(&mut self, place: Place, position: usize, what: What) {
        let index = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        self.taken.push(ext::Addition {
            table: place.table.into(),
            route: index(place.route),
            rule: index(place.rule),
            backend: place.backend.map(index),
            position: index(position),
            what: Some(what),
        });
    }
}

fn says_all<M: Speaks>(rule: &Rule<M, Forward>) -> bool {
    let mut of_backends = rule.action.backends.backends().flat_map(|backend| &backend.filters);
    rule.action.session.is_none() && rule.filters.iter().all(M::says) && of_backends.all(M::says)
}

/// A request that is not rewritten goes to the wrong place, and a response header that is not removed
/// may be a secret.
fn must_not_be_left_out(filter: &Filter) -> bool {
    matches!(filter, Filter::Rewrite(_) | Filter::ResponseHeaders(_))
}

/// Puts an addition back.
fn add(policy: &mut OutboundPolicy, addition: ext::Addition) -> Result<()> {
    let table = Table::try_from(addition.table).map_err(|_| ConversionError::missing("table"))?;
    match (&mut policy.protocol, table) {
        (
            Protocol::Detect { http1: http, .. } | Protocol::Http1(http) | Protocol::Http2(http),
            Table::Routes,
        )
        | (Protocol::Detect { http2: http, .. }, Table::Http2) => {
            add_to(&mut http.routes, addition)
        }
        (Protocol::Grpc(grpc), Table::Routes) => add_to(&mut grpc.routes, addition),
        _ => Err(ConversionError::invalid("table", "the policy has no such routes")),
    }
}

fn add_to<M: Clone>(routes: &mut Arc<[Route<M, Forward>]>, addition: ext::Addition) -> Result<()> {
    let index = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
    let none = |field: &str| ConversionError::invalid(field, "there is none");
    let route = Arc::make_mut(routes).get_mut(index(addition.route));
    let rules = &mut route.ok_or_else(|| none("route"))?.rules;
    let rule = rules.get_mut(index(addition.rule)).ok_or_else(|| none("rule"))?;
    let filters = match addition.backend {
        None => &mut rule.filters,
        Some(backend) => {
            let backend = rule.action.backends.backend_mut(index(backend));
            &mut Arc::make_mut(backend.ok_or_else(|| none("backend"))?).filters
        }
    };
    let filter = match required(addition.what, "what")? {
        What::Session(session) => {
            rule.action.session = Some(read_session(session).at("session")?);
            return Ok(());
        }
        What::Rewrite(rewrite) => Filter::Rewrite(read_rewrite(rewrite).at("rewrite")?),
        What::Mirror(mirror) => Filter::Mirror(Box::new(read_mirror(&mirror).at("mirror")?)),
        What::Cors(cors) => Filter::Cors(read_cors(cors).at("cors")?),
        What::Fault(fault) => Filter::Fault(read_fault(fault).at("fault")?),
        What::ResponseHeaders(headers) => {
            Filter::ResponseHeaders(read_headers(headers).at("response_headers")?)
        }
    };
    let position = usize::try_from(addition.position).unwrap_or(usize::MAX);
    if position > filters.len() || position >= limit::ITEMS {
        return Err(ConversionError::invalid("position", "there are not so many filters"));
    }
    filters.insert(position, filter);
    Ok(())
}

fn write_filter(filter: &Filter) -> Result<What> {
    Ok(match filter {
        Filter::Rewrite(rewrite) => What::Rewrite(write_rewrite(rewrite)),
        Filter::Mirror(mirror) => What::Mirror(ext::RequestMirror {
            backend: write_backend(&mirror.backend).at("backend")?.encode_to_vec(),
            share: Some(write_share(mirror.ratio)),
        }),
        Filter::Cors(cors) => What::Cors(write_cors(cors)),
        Filter::Fault(fault) => What::Fault(write_fault(fault)?),
        Filter::ResponseHeaders(headers) => What::ResponseHeaders(write_headers(headers)),
        Filter::Fail(_) | Filter::RequestHeaders(_) | Filter::Redirect(_) => {
            return Err(ConversionError::unsupported("", "the linkerd2 API says it"));
        }
    })
}

fn read_rewrite(proto: ext::UrlRewrite) -> Result<Rewrite> {
    let host = match proto.host.as_slice() {
        [] => None,
        host => Some(
            HeaderValue::from_bytes(host)
                .map_err(|_| ConversionError::invalid("host", "is no header value"))?,
        ),
    };
    let path = match proto.path {
        None => None,
        Some(url_rewrite::Path::Full(path)) => Some(PathModifier::Full(check_path(path)?)),
        Some(url_rewrite::Path::Prefix(prefix)) => Some(PathModifier::Prefix(check_path(prefix)?)),
    };
    Ok(Rewrite { host, path })
}

fn write_rewrite(rewrite: &Rewrite) -> ext::UrlRewrite {
    ext::UrlRewrite {
        host: rewrite.host.as_ref().map(|host| host.as_bytes().to_vec()).unwrap_or_default(),
        path: rewrite.path.clone().map(|path| match path {
            PathModifier::Full(path) => url_rewrite::Path::Full(path),
            PathModifier::Prefix(prefix) => url_rewrite::Path::Prefix(prefix),
        }),
    }
}

fn read_mirror(proto: &ext::RequestMirror) -> Result<Mirror> {
    let backend = pb::Backend::decode(proto.backend.as_slice())
        .map_err(|error| ConversionError::invalid("backend", error))?;
    Ok(Mirror { backend: read_backend(backend).at("backend")?, ratio: read_share(proto.share)? })
}

fn read_share(proto: Option<ext::Share>) -> Result<Ratio> {
    let ext::Share { numerator, denominator } = required(proto, "share")?;
    if denominator == 0 {
        return Err(ConversionError::invalid("share.denominator", "must not be 0"));
    }
    Ok(Ratio { numerator, denominator })
}

fn write_share(ratio: Ratio) -> ext::Share {
    ext::Share { numerator: ratio.numerator, denominator: ratio.denominator }
}

fn read_cors(proto: ext::Cors) -> Result<Cors> {
    let names = |names: Option<cors::Names>, field| {
        let names = required(names, field)?;
        let sound = HeaderValue::from_str(&names.list).is_ok();
        match names.any {
            true => Ok(Listed::Any),
            false if sound => Ok(Listed::These(names.list)),
            false => Err(ConversionError::invalid(field, "is no header value")),
        }
    };
    Ok(Cors {
        origins: list(proto.origins, "origins", limit::CONDITIONS, |text: String| {
            let invalid = || ConversionError::invalid("", format!("`{text}` is no origin"));
            Origin::new(&text).ok_or_else(invalid)
        })?,
        methods: names(proto.methods, "methods")?,
        headers: names(proto.headers, "headers")?,
        expose: names(proto.expose, "expose")?,
        credentials: proto.credentials,
        max_age: proto.max_age_seconds,
    })
}

fn write_cors(cors: &Cors) -> ext::Cors {
    let names = |listed: &Listed| {
        Some(match listed {
            Listed::Any => cors::Names { any: true, list: String::new() },
            Listed::These(list) => cors::Names { any: false, list: list.clone() },
        })
    };
    ext::Cors {
        origins: cors.origins.iter().map(ToString::to_string).collect(),
        methods: names(&cors.methods),
        headers: names(&cors.headers),
        expose: names(&cors.expose),
        credentials: cors.credentials,
        max_age_seconds: cors.max_age,
    }
}

/// How many regular expressions an addition has, none of which is compiled yet.
fn patterns(addition: &ext::Addition) -> usize {
    match &addition.what {
        Some(What::Fault(fault)) => {
            let regex = |of: &&ext::ValueCondition| matches!(of.value, Some(Value::Regex(_)));
            fault.headers.iter().filter(regex).count()
        }
        _ => 0,
    }
}

pub(super) fn read_fault(proto: ext::Fault) -> Result<Fault> {
    let kind = match required(proto.kind, "kind")? {
        fault::Kind::HttpStatus(status) => {
            FaultKind::Abort(InjectedFailure::Http(read_status(status, "http_status")?))
        }
        fault::Kind::GrpcCode(code) => {
            FaultKind::Abort(InjectedFailure::Grpc(u16::try_from(code).map_err(|_| {
                ConversionError::invalid("grpc_code", format!("{code} is no code"))
            })?))
        }
        fault::Kind::DelayMilliseconds(delay) => FaultKind::Delay(Duration::from_millis(delay)),
    };
    let until = match proto.until {
        0 => None,
        until => {
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(until));
            Some(at.ok_or_else(|| ConversionError::invalid("until", "is no time"))?)
        }
    };
    Ok(Fault {
        meta: read_policy_meta(proto.meta, "meta")?,
        headers: list(proto.headers, "headers", limit::CONDITIONS, read_header)?,
        ratio: read_share(proto.share)?,
        kind,
        until,
    })
}

pub(super) fn write_fault(fault: &Fault) -> Result<ext::Fault> {
    let kind = match fault.kind {
        FaultKind::Abort(InjectedFailure::Http(status)) => {
            fault::Kind::HttpStatus(status.as_u16().into())
        }
        FaultKind::Abort(InjectedFailure::Grpc(code)) => fault::Kind::GrpcCode(code.into()),
        FaultKind::Delay(delay) => fault::Kind::DelayMilliseconds(millis(delay, "delay")?),
    };
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(ext::Fault {
        meta: Some(write_policy_meta(&fault.meta)),
        headers: fault.headers.iter().map(write_header).collect(),
        share: Some(write_share(fault.ratio)),
        kind: Some(kind),
        // One that ended before there was time ends at its beginning.
        until: fault.until.map_or(Ok(0), |at| millis(since(at), "until").map(|at| at.max(1)))?,
    })
}

fn millis(duration: Duration, field: &str) -> Result<u64> {
    u64::try_from(duration.as_millis())
        .map_err(|_| ConversionError::unsupported(field, "is too long"))
}

fn read_headers(proto: ext::HeaderModifier) -> Result<HeaderModifier> {
    let header = |header: header_modifier::Header| {
        let value = HeaderValue::from_bytes(&header.value)
            .map_err(|_| ConversionError::invalid(&header.name, "the value is no header value"))?;
        Ok((read_name(&header.name)?, value))
    };
    Ok(HeaderModifier {
        set: list(proto.set, "set", limit::ITEMS, header)?,
        add: list(proto.add, "add", limit::ITEMS, header)?,
        remove: list(proto.remove, "remove", limit::ITEMS, |name: String| read_name(&name))?,
    })
}

fn write_headers(modifier: &HeaderModifier) -> ext::HeaderModifier {
    let headers = |headers: &[(HeaderName, HeaderValue)]| {
        let header = |(name, value): &(HeaderName, HeaderValue)| header_modifier::Header {
            name: name.to_string(),
            value: value.as_bytes().to_vec(),
        };
        headers.iter().map(header).collect()
    };
    ext::HeaderModifier {
        add: headers(&modifier.add),
        set: headers(&modifier.set),
        remove: modifier.remove.iter().map(ToString::to_string).collect(),
    }
}

fn read_session(proto: ext::Session) -> Result<Session> {
    let by = match session::By::try_from(proto.by) {
        Ok(session::By::Cookie) => SessionBy::Cookie { permanent: false },
        Ok(session::By::PermanentCookie) => SessionBy::Cookie { permanent: true },
        Ok(session::By::Header) => SessionBy::Header,
        Ok(session::By::UnknownBy) | Err(_) => return Err(ConversionError::missing("by")),
    };
    // What is the name of a header is one of a cookie, too.
    read_name(&proto.name)?;
    let limit = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
    Ok(Session {
        name: proto.name,
        by,
        absolute: limit(proto.absolute_milliseconds),
        idle: limit(proto.idle_milliseconds),
    })
}

fn write_session(session: &Session) -> Result<ext::Session> {
    let by = match session.by {
        SessionBy::Cookie { permanent: false } => session::By::Cookie,
        SessionBy::Cookie { permanent: true } => session::By::PermanentCookie,
        SessionBy::Header => session::By::Header,
    };
    let limit = |limit: Option<Duration>, field| limit.map_or(Ok(0), |limit| millis(limit, field));
    Ok(ext::Session {
        name: session.name.clone(),
        by: by.into(),
        absolute_milliseconds: limit(session.absolute, "absolute")?,
        idle_milliseconds: limit(session.idle, "idle")?,
    })
}
