//! Sane values of every model type that travels: what a control plane may emit.
//!
//! Values have one form each: what means the same (`Some("")` and `None` for a gRPC service, a
//! timeout of 0 and none) occurs only in the form that comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use mesh_model::endpoint::{Endpoint, Http2Params, Labels, Profile, ProtocolHint};
use mesh_model::inbound::{
    Authentication, Authorization, Authorize, Cidr, Network, Rate, RateLimit, ServerPolicy,
    ServerProtocol,
};
use mesh_model::matching::Pattern;
use mesh_model::outbound::{
    Backend, BackendKind, Balance, Breaker, Forward, GrpcPolicy, HttpPolicy, OutboundPolicy,
    Penalty, Protocol, Queue, Refuse, RouteBackend, SuccessRate, TcpPolicy, TcpRoute,
};
use mesh_model::route::{
    Backoff, Cors, Distribution, FailureInjector, Fault, FaultKind, Filter, GrpcCodes, GrpcMatch,
    HeaderMatch, HeaderModifier, HostMatch, HttpMatch, InjectedFailure, Listed, Mirror, Origin,
    PathMatch, PathModifier, QueryMatch, Ratio, Redirect, Retry, Rewrite, Route, Rule, Session,
    SessionBy, Timeouts, ValueMatch,
};
use mesh_model::{Destination, Meta, ResourceRef, TlsIdentity};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

pub(crate) fn name() -> impl Strategy<Value = String> + Clone {
    "[a-z][a-z0-9-]{0,8}"
}

pub(crate) fn duration() -> impl Strategy<Value = Duration> + Clone {
    (0u64..3600, 1u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos))
}

pub(crate) fn labels() -> impl Strategy<Value = Labels> {
    btree_map(name(), ".{0,8}", 0..4).prop_map(Arc::new)
}

pub(crate) fn meta() -> impl Strategy<Value = Meta> {
    prop_oneof![name().prop_map(Meta::Default), resource().prop_map(Meta::Resource)]
}

pub(crate) fn resource() -> impl Strategy<Value = ResourceRef> {
    let section = prop_oneof![Just(String::new()), name()];
    (name(), name(), name(), name(), section, option::of(1u16..)).prop_map(
        |(group, kind, name, namespace, section, port)| ResourceRef {
            group,
            kind,
            name,
            namespace,
            section,
            port,
        },
    )
}

pub(crate) fn endpoint() -> BoxedStrategy<Endpoint> {
    let identity = prop_oneof![
        (name(), name()).prop_map(|(id, server_name)| TlsIdentity { id, server_name }),
        (name(), name()).prop_map(|(id, server_name)| {
            TlsIdentity { id: format!("spiffe://{id}/ns/x"), server_name }
        }),
    ];
    let hint = select(vec![ProtocolHint::None, ProtocolHint::H2, ProtocolHint::Opaque]);
    let addr = (any::<std::net::IpAddr>(), 1u16..).prop_map(SocketAddr::from);
    (
        (addr, any::<u32>(), labels(), option::of(identity), hint),
        (option::of(1u16..), option::of(name()), http2(), option::of(meta())),
    )
        .prop_map(
            |(
                (addr, weight, labels, identity, hint),
                (opaque_transport, authority_override, http2, resource),
            )| Endpoint {
                addr,
                weight,
                labels,
                identity,
                hint,
                opaque_transport,
                authority_override,
                http2,
                resource,
            },
        )
        .boxed()
}

fn http2() -> impl Strategy<Value = Http2Params> {
    let size = || option::of(1u32..);
    let alive = || option::of(duration());
    ((size(), size(), any::<bool>()), (alive(), alive(), any::<bool>()), (size(), size(), size()))
        .prop_map(
            |((connection, stream, adaptive), (interval, timeout, idle), (reset, frame, send))| {
                Http2Params {
                    initial_connection_window: connection,
                    initial_stream_window: stream,
                    adaptive_flow_control: adaptive,
                    keep_alive_interval: interval,
                    keep_alive_timeout: timeout,
                    keep_alive_while_idle: idle,
                    max_concurrent_reset_streams: reset,
                    max_frame_size: frame,
                    max_send_buf_size: send,
                }
            },
        )
}

pub(crate) fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        (vec(endpoint(), 0..4), labels())
            .prop_map(|(endpoints, labels)| Destination::Add { endpoints, labels }),
        vec(any::<SocketAddr>(), 0..4).prop_map(|addrs| {
            // Scope and flow of an IPv6 address do not travel.
            let plain = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port());
            Destination::Remove(addrs.into_iter().map(plain).collect())
        }),
        any::<bool>().prop_map(|exists| Destination::NoEndpoints { exists }),
    ]
}

pub(crate) fn profile() -> impl Strategy<Value = Profile> {
    prop_oneof![
        (option::of(name()), any::<bool>()).prop_map(|(name, opaque)| Profile {
            name,
            opaque,
            endpoint: None
        }),
        (endpoint(), any::<bool>()).prop_map(|(e, opaque)| Profile {
            name: None,
            opaque,
            endpoint: Some(e)
        }),
    ]
}

pub(crate) fn host() -> impl Strategy<Value = HostMatch> {
    prop_oneof![name().prop_map(HostMatch::Exact), vec(name(), 1..4).prop_map(HostMatch::Suffix),]
}

fn pattern() -> impl Strategy<Value = Pattern> {
    select(vec!["a.*", "[0-9]+", "/x/(a|b)", ""]).prop_map(|source| Pattern::new(source).unwrap())
}

pub(crate) fn header_name() -> impl Strategy<Value = HeaderName> + Clone {
    name().prop_map(|name| HeaderName::try_from(name).unwrap())
}

pub(crate) fn header_match() -> impl Strategy<Value = HeaderMatch> {
    let value = prop_oneof![
        vec(any::<u8>(), 0..6).prop_map(ValueMatch::Exact),
        pattern().prop_map(ValueMatch::Regex),
    ];
    (header_name(), value).prop_map(|(name, value)| HeaderMatch { name, value })
}

pub(crate) fn http_match() -> BoxedStrategy<HttpMatch> {
    let path = prop_oneof![
        name().prop_map(|path| PathMatch::Exact(format!("/{path}"))),
        name().prop_map(|path| PathMatch::Prefix(format!("/{path}"))),
        pattern().prop_map(PathMatch::Regex),
    ];
    let value = prop_oneof![
        ".{0,6}".prop_map(|text| ValueMatch::Exact(text.into_bytes())),
        pattern().prop_map(ValueMatch::Regex),
    ];
    let query = (name(), value).prop_map(|(name, value)| QueryMatch { name, value });
    (option::of(path), vec(header_match(), 0..3), vec(query, 0..3), option::of(method()))
        .prop_map(|(path, headers, query, method)| HttpMatch { path, headers, query, method })
        .boxed()
}

pub(crate) fn method() -> impl Strategy<Value = Method> {
    select(vec![
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::CONNECT,
        Method::HEAD,
        Method::TRACE,
        Method::from_bytes(b"PURGE").unwrap(),
    ])
}

fn grpc_match() -> impl Strategy<Value = GrpcMatch> {
    (option::of(name()), option::of(name()), vec(header_match(), 0..3))
        .prop_map(|(service, method, headers)| GrpcMatch { service, method, headers })
}

fn fail(failure: impl Strategy<Value = InjectedFailure>) -> impl Strategy<Value = Filter> {
    let ratio = (1u32.., any::<u32>()).prop_map(|(denominator, n)| Ratio {
        numerator: n % denominator.saturating_add(1),
        denominator,
    });
    (failure, ".{0,8}", ratio).prop_map(|(failure, message, ratio)| {
        Filter::Fail(FailureInjector { failure, message, ratio })
    })
}

fn http_failure() -> impl Strategy<Value = InjectedFailure> {
    (100u16..1000).prop_map(|s| InjectedFailure::Http(StatusCode::from_u16(s).unwrap()))
}

fn header_modifier() -> impl Strategy<Value = HeaderModifier> {
    let byte = prop_oneof![0x20u8..0x7f, 0x80u8..=0xff];
    let value = vec(byte, 0..8).prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap());
    let headers = vec((header_name(), value), 0..3);
    (headers.clone(), headers, vec(header_name(), 0..3))
        .prop_map(|(set, add, remove)| HeaderModifier { set, add, remove })
}

fn redirect() -> BoxedStrategy<Filter> {
    let scheme = select(vec![Scheme::HTTP, Scheme::HTTPS, Scheme::try_from("ftp").unwrap()]);
    let path = prop_oneof![
        name().prop_map(|path| PathModifier::Full(format!("/{path}"))),
        name().prop_map(|path| PathModifier::Prefix(format!("/{path}"))),
    ];
    let status = (300u16..400).prop_map(|s| StatusCode::from_u16(s).unwrap());
    let scheme = scheme.prop_map(|scheme| scheme.to_string());
    (option::of(scheme), option::of(name()), option::of(1u16..), option::of(path), status)
        .prop_map(|(scheme, host, port, path, status)| {
            Filter::Redirect(Redirect { scheme, host, port, path, status })
        })
        .boxed()
}

fn http_filter() -> BoxedStrategy<Filter> {
    prop_oneof![inbound_http_filter(), header_modifier().prop_map(Filter::ResponseHeaders)].boxed()
}

fn inbound_http_filter() -> BoxedStrategy<Filter> {
    prop_oneof![
        fail(http_failure()),
        header_modifier().prop_map(Filter::RequestHeaders),
        redirect(),
    ]
    .boxed()
}

fn grpc_filter() -> BoxedStrategy<Filter> {
    prop_oneof![
        fail((0u16..17).prop_map(InjectedFailure::Grpc)),
        header_modifier().prop_map(Filter::RequestHeaders),
    ]
    .boxed()
}

/// What the linkerd2 API has no words for.
fn extension() -> BoxedStrategy<Filter> {
    let ratio = || {
        (0u32..100, 1u32..100).prop_map(|(numerator, denominator)| Ratio { numerator, denominator })
    };
    let path = prop_oneof![
        name().prop_map(|path| PathModifier::Full(format!("/{path}"))),
        name().prop_map(|path| PathModifier::Prefix(format!("/{path}"))),
    ];
    let host = name().prop_map(|host| HeaderValue::from_str(&host).unwrap());
    let rewrite = (option::of(host), option::of(path))
        .prop_map(|(host, path)| Filter::Rewrite(Rewrite { host, path }));
    let mirror = (backend(), ratio())
        .prop_map(|(backend, ratio)| Filter::Mirror(Box::new(Mirror { backend, ratio })));
    let listed = || prop_oneof![Just(Listed::Any), name().prop_map(Listed::These)];
    let origin = select(vec!["*", "https://*.example", "http://a.example:8080"]);
    let cors = (vec(origin, 0..3), listed(), listed(), listed(), any::<bool>(), any::<u32>())
        .prop_map(|(origins, methods, headers, expose, credentials, max_age)| {
            let origins = origins.into_iter().map(|origin| Origin::new(origin).unwrap()).collect();
            Filter::Cors(Cors { origins, methods, headers, expose, credentials, max_age })
        });
    let fault = fault().prop_map(Filter::Fault);
    prop_oneof![rewrite, mirror, cors, fault].boxed()
}

pub(crate) fn fault() -> impl Strategy<Value = Fault> {
    let ratio = (0u32..100, 1u32..100)
        .prop_map(|(numerator, denominator)| Ratio { numerator, denominator });
    let kind = prop_oneof![
        http_failure().prop_map(FaultKind::Abort),
        (0u16..17).prop_map(|code| FaultKind::Abort(InjectedFailure::Grpc(code))),
        (0u64..1 << 40).prop_map(|delay| FaultKind::Delay(Duration::from_millis(delay))),
    ];
    let until = option::of(
        (1u64..1 << 45).prop_map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms)),
    );
    (meta(), vec(header_match(), 0..2), ratio, kind, until)
        .prop_map(|(meta, headers, ratio, kind, until)| Fault { meta, headers, ratio, kind, until })
}

fn session() -> impl Strategy<Value = Session> {
    let by = select(vec![
        SessionBy::Header,
        SessionBy::Cookie { permanent: true },
        SessionBy::Cookie { permanent: false },
    ]);
    let limit = || option::of((1u64..1 << 40).prop_map(Duration::from_millis));
    (select(vec!["shop", "x-session"]), by, limit(), limit())
        .prop_map(|(name, by, absolute, idle)| Session { name: name.into(), by, absolute, idle })
}

/// Any outbound policy, with extensions put into some of its rules and backends.
pub(crate) fn whole_outbound() -> BoxedStrategy<OutboundPolicy> {
    let extensions = vec((extension(), any::<Index>(), any::<bool>()), 0..6);
    let headers = header_modifier().prop_map(Filter::ResponseHeaders);
    (outbound(), extensions, option::of(session()), option::of((headers, any::<Index>())))
        .prop_map(|(mut policy, extensions, session, headers)| {
            match &mut policy.protocol {
                Protocol::Detect { http1, http2, .. } => {
                    let (first, second) = extensions.split_at(extensions.len() / 2);
                    extend(&mut http1.routes, first, session.as_ref());
                    extend(&mut http2.routes, second, None);
                }
                Protocol::Http1(http) | Protocol::Http2(http) => {
                    extend(&mut http.routes, &extensions, session.as_ref());
                }
                Protocol::Grpc(grpc) => {
                    let mut extensions = extensions;
                    extensions.extend(headers.map(|(headers, at)| (headers, at, true)));
                    extend(&mut grpc.routes, &extensions, session.as_ref());
                }
                Protocol::Opaque(_) | Protocol::Tls(_) => {}
            }
            policy
        })
        .boxed()
}

fn extend<M: Clone>(
    routes: &mut Arc<[Route<M, Forward>]>,
    extensions: &[(Filter, Index, bool)],
    session: Option<&Session>,
) {
    if routes.is_empty() {
        return;
    }
    let mut all = routes.to_vec();
    for (filter, index, to_rule) in extensions {
        let count = all.len();
        let rule = all[index.index(count)].rules.first_mut().unwrap();
        rule.action.session = session.cloned();
        let filters = match rule.action.backends.backend_mut(0) {
            Some(backend) if !to_rule => &mut Arc::make_mut(backend).filters,
            _ => &mut rule.filters,
        };
        filters.insert(index.index(filters.len() + 1), filter.clone());
    }
    *routes = all.into();
}

fn backend() -> BoxedStrategy<Backend> {
    let penalty = (duration(), duration(), duration()).prop_map(|(penalty, max, decay)| Penalty {
        penalty,
        max_retry_after: max,
        decay,
    });
    let balance = (name(), 1u16.., duration(), duration(), option::of(penalty)).prop_map(
        |(name, port, default_rtt, decay, penalty)| {
            let path = format!("{name}:{port}");
            BackendKind::Balance(Balance { path, default_rtt, decay, penalty })
        },
    );
    let kind = prop_oneof![endpoint().prop_map(BackendKind::Forward), balance];
    let queue = (1u32.., duration())
        .prop_map(|(capacity, failfast_timeout)| Queue { capacity, failfast_timeout });
    (meta(), queue, kind).prop_map(|(meta, queue, kind)| Backend { meta, queue, kind }).boxed()
}

fn distribution<B: std::fmt::Debug + Clone>(
    backend: impl Strategy<Value = B> + Clone,
) -> impl Strategy<Value = Distribution<B>> {
    let shared = backend.prop_map(Arc::new);
    let weighted = (vec((shared.clone(), any::<u32>()), 0..2), shared.clone(), 1u32..);
    prop_oneof![
        Just(Distribution::Empty),
        vec(shared, 1..3).prop_map(Distribution::FirstAvailable),
        weighted.prop_map(|(mut backends, last, weight)| {
            backends.push((last, weight));
            Distribution::Random(backends)
        }),
    ]
}

fn backoff() -> impl Strategy<Value = Backoff> {
    (duration(), duration(), 0.0f32..=100.0, any::<bool>()).prop_map(
        |(min, more, jitter, respect_retry_after)| Backoff {
            min,
            max: min + more,
            jitter,
            respect_retry_after,
        },
    )
}

fn retry(
    conditions: impl Strategy<Value = (Vec<std::ops::RangeInclusive<u16>>, GrpcCodes)>,
) -> impl Strategy<Value = Retry> {
    (0u32..=65535, any::<u32>(), conditions, option::of(duration()), option::of(backoff()))
        .prop_map(|(max_retries, max_request_bytes, (statuses, grpc), timeout, backoff)| Retry {
            max_retries,
            max_request_bytes,
            statuses,
            grpc,
            timeout,
            backoff,
        })
}

fn http_retry() -> impl Strategy<Value = Retry> {
    let range = (100u16..600, 0u16..100).prop_map(|(start, n)| start..=(start + n).min(599));
    retry(vec(range, 0..3).prop_map(|statuses| (statuses, GrpcCodes::default())))
}

fn grpc_retry() -> impl Strategy<Value = Retry> {
    let codes = subsequence(vec![1u16, 4, 8, 13, 14], 0..=5);
    retry(codes.prop_map(|codes| {
        (Vec::new(), codes.into_iter().fold(GrpcCodes::default(), GrpcCodes::with))
    }))
}

fn forward(
    filter: BoxedStrategy<Filter>,
    retry: impl Strategy<Value = Retry> + 'static,
) -> BoxedStrategy<Forward> {
    let backend = (vec(filter, 0..2), backend())
        .prop_map(|(filters, backend)| RouteBackend { filters, backend });
    let limit = || option::of(duration());
    let timeouts = (limit(), limit(), limit()).prop_map(|(request, response, idle)| Timeouts {
        request,
        response,
        idle,
    });
    (distribution(backend), timeouts, option::of(retry), any::<bool>())
        .prop_map(|(backends, timeouts, retry, allow_request_headers)| Forward {
            backends,
            timeouts,
            retry,
            allow_request_headers,
            session: None,
        })
        .boxed()
}

fn route<M: std::fmt::Debug, R: std::fmt::Debug>(
    matches: impl Strategy<Value = M>,
    filter: BoxedStrategy<Filter>,
    action: impl Strategy<Value = R>,
) -> impl Strategy<Value = Route<M, R>> {
    let rule = (vec(matches, 0..3), vec(filter, 0..3), action)
        .prop_map(|(matches, filters, action)| Rule { matches, filters, action });
    (meta(), vec(host(), 0..3), vec(rule, 1..3)).prop_map(|(meta, hosts, rules)| Route {
        meta,
        hosts,
        rules,
    })
}

fn breaker() -> BoxedStrategy<Breaker> {
    let decay = duration().prop_map(|decay| decay + Duration::from_millis(10));
    let rate =
        (0.001f64..=1.0, decay, 0u32..=1_000_000).prop_map(|(threshold, decay, min_requests)| {
            SuccessRate { threshold, decay, min_requests }
        });
    let conditions = prop_oneof![
        (1u32..).prop_map(|failures| (Some(failures), None)),
        rate.clone().prop_map(|rate| (None, Some(rate))),
        (1u32.., rate).prop_map(|(failures, rate)| (Some(failures), Some(rate))),
    ];
    (conditions, backoff(), any::<u32>())
        .prop_map(|((consecutive, success_rate), backoff, min_ready)| Breaker {
            consecutive,
            success_rate,
            backoff,
            min_ready,
        })
        .boxed()
}

fn http_policy() -> BoxedStrategy<HttpPolicy> {
    let route = route(http_match(), http_filter(), forward(http_filter(), http_retry()));
    (vec(route, 0..3), option::of(breaker()))
        .prop_map(|(routes, breaker)| HttpPolicy { routes: routes.into(), breaker })
        .boxed()
}

fn grpc_policy() -> BoxedStrategy<GrpcPolicy> {
    let route = route(grpc_match(), grpc_filter(), forward(grpc_filter(), grpc_retry()));
    (vec(route, 0..3), option::of(breaker()))
        .prop_map(|(routes, breaker)| GrpcPolicy { routes: routes.into(), breaker })
        .boxed()
}

fn tcp_route(snis: impl Strategy<Value = Vec<HostMatch>>) -> impl Strategy<Value = TcpRoute> {
    let refuse = prop_oneof![Just(Refuse::Forbidden), ".{0,8}".prop_map(Refuse::Invalid)];
    (meta(), snis, distribution(backend()), option::of(refuse))
        .prop_map(|(meta, snis, backends, refuse)| TcpRoute { meta, snis, backends, refuse })
}

fn opaque_policy() -> BoxedStrategy<TcpPolicy> {
    tcp_route(Just(Vec::new())).prop_map(|route| TcpPolicy { routes: [route].into() }).boxed()
}

pub(crate) fn outbound() -> BoxedStrategy<OutboundPolicy> {
    let tls = vec(tcp_route(vec(host(), 0..3)), 1..3)
        .prop_map(|routes| Protocol::Tls(TcpPolicy { routes: routes.into() }));
    let detect = (duration(), http_policy(), http_policy(), opaque_policy()).prop_map(
        |(timeout, http1, http2, opaque)| Protocol::Detect { timeout, http1, http2, opaque },
    );
    let protocol = prop_oneof![
        detect,
        http_policy().prop_map(Protocol::Http1),
        http_policy().prop_map(Protocol::Http2),
        grpc_policy().prop_map(Protocol::Grpc),
        opaque_policy().prop_map(Protocol::Opaque),
        tls,
    ];
    (meta(), protocol).prop_map(|(meta, protocol)| OutboundPolicy { meta, protocol }).boxed()
}

pub(crate) fn cidr() -> impl Strategy<Value = Cidr> {
    (any::<std::net::IpAddr>(), 0u8..=128).prop_map(|(addr, prefix)| Cidr {
        addr,
        prefix: if addr.is_ipv4() { prefix.min(32) } else { prefix },
    })
}

pub(crate) fn network() -> impl Strategy<Value = Network> {
    (cidr(), vec(cidr(), 0..2)).prop_map(|(net, except)| Network { net, except })
}

fn authorization() -> BoxedStrategy<Authorization> {
    let authentication = prop_oneof![
        Just(Authentication::Unauthenticated),
        Just(Authentication::MeshTls),
        (vec(name(), 0..3), vec(vec(name(), 0..3), 0..3)).prop_map(|(identities, suffixes)| {
            Authentication::Identities { identities, suffixes }
        }),
    ];
    let labels = btree_map(name(), name(), 0..3);
    (meta(), vec(network(), 1..3), authentication, labels)
        .prop_map(|(meta, networks, authentication, labels)| Authorization {
            meta,
            networks,
            authentication,
            labels,
        })
        .boxed()
}

fn authorizations() -> impl Strategy<Value = Arc<[Authorization]>> {
    vec(authorization(), 0..3).prop_map(Into::into)
}

/// The API authorises whole routes, so that all rules of a route have the same authorizations.
fn server_route<M: std::fmt::Debug>(
    matches: impl Strategy<Value = M>,
    filter: BoxedStrategy<Filter>,
) -> impl Strategy<Value = Route<M, Authorize>> {
    (route(matches, filter, Just(())), authorizations()).prop_map(|(route, authorizations)| {
        let rules = route.rules.into_iter().map(|rule| Rule {
            matches: rule.matches,
            filters: rule.filters,
            action: Authorize { authorizations: authorizations.clone() },
        });
        Route { meta: route.meta, hosts: route.hosts, rules: rules.collect() }
    })
}

fn rate_limit() -> impl Strategy<Value = RateLimit> {
    let rate = || (1u32..).prop_map(Rate::per_second);
    let overrides = vec((rate(), vec(name(), 0..3)), 0..3);
    (meta(), option::of(rate()), option::of(rate()), overrides).prop_map(
        |(meta, total, identity, overrides)| RateLimit {
            meta,
            total,
            identity,
            overrides,
            header: None,
        },
    )
}

pub(crate) fn server() -> BoxedStrategy<ServerPolicy> {
    let http = || {
        let routes = vec(server_route(http_match(), inbound_http_filter()), 0..3);
        (routes.prop_map(Arc::from), option::of(rate_limit()))
    };
    let grpc = vec(server_route(grpc_match(), grpc_filter()), 0..3);
    let protocol = prop_oneof![
        (duration(), http()).prop_map(|(timeout, (routes, limit))| ServerProtocol::Detect {
            timeout,
            routes,
            limit
        }),
        http().prop_map(|(routes, limit)| ServerProtocol::Http1 { routes, limit }),
        http().prop_map(|(routes, limit)| ServerProtocol::Http2 { routes, limit }),
        grpc.prop_map(|routes| ServerProtocol::Grpc { routes: routes.into() }),
        Just(ServerProtocol::Opaque),
        Just(ServerProtocol::Tls),
    ];
    let labels = btree_map(name(), name(), 0..2).prop_map(|mut labels: BTreeMap<_, _>| {
        for key in ["group", "kind", "name"] {
            labels.insert(key.to_owned(), format!("the-{key}"));
        }
        Arc::new(labels)
    });
    (protocol, authorizations(), labels)
        .prop_map(|(protocol, authorizations, labels)| ServerPolicy {
            protocol,
            authorizations,
            labels,
        })
        .boxed()
}
