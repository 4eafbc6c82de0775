//! Messages of other and worse control planes: an error that names the field, never a panic, and
//! no more than a proxy can hold. What is merely unusual is read as it is meant.

use std::time::Duration;

use linkerd2_proxy_api::{destination as dst, http_route as parts, inbound as srv, outbound as pb};
use mesh_api::{BackendExtension, Wire, ext};
use mesh_model::inbound::{Authentication, ServerPolicy};
use mesh_model::outbound::{BackendKind, Protocol, Refuse};
use mesh_model::route::{Distribution, Filter, PathModifier};
use mesh_model::stats::Totals;
use mesh_model::tap::TapFilter;
use mesh_model::{Destination, Meta, OutboundPolicy, Profile};
use pb::proxy_protocol::Kind;
use proptest::prelude::*;
use prost::Message;

use crate::{strategies, values};

/// A few bytes of a message changed, as a bug or an attacker would.
pub(crate) fn spoil(mut bytes: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    for (at, byte) in edits {
        if !bytes.is_empty() {
            let at = at % bytes.len();
            bytes[at] = *byte;
        }
    }
    bytes
}

/// Reads it, and writes what could be read; both may fail, neither may panic.
pub(crate) fn survives<T: Wire>(bytes: &[u8])
where
    T::Proto: Message + Default,
{
    if let Ok(value) = T::Proto::decode(bytes).map(T::from_proto) {
        let _ = value.map(|value| value.encode());
    }
}

pub(crate) fn edits() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)
}

proptest! {
    #[test]
    fn no_outbound_policy_panics(policy in strategies::outbound(), edits in edits()) {
        survives::<OutboundPolicy>(&spoil(policy.to_proto().unwrap().encode_to_vec(), &edits));
    }

    #[test]
    fn no_server_policy_panics(server in strategies::server(), edits in edits()) {
        survives::<ServerPolicy>(&spoil(server.to_proto().unwrap().encode_to_vec(), &edits));
    }

    #[test]
    fn no_update_panics(update in strategies::destination(), edits in edits()) {
        survives::<Destination>(&spoil(update.to_proto().unwrap().encode_to_vec(), &edits));
    }

    #[test]
    fn no_profile_panics(profile in strategies::profile(), edits in edits()) {
        survives::<Profile>(&spoil(profile.to_proto().unwrap().encode_to_vec(), &edits));
    }
}

fn outbound(spoil: impl FnOnce(&mut pb::proxy_protocol::Http1)) -> Result<OutboundPolicy, String> {
    let mut policy = values::outbound_http().to_proto().unwrap();
    let Some(Kind::Http1(http1)) = &mut policy.protocol.as_mut().unwrap().kind else {
        unreachable!()
    };
    spoil(http1);
    OutboundPolicy::from_proto(policy).map_err(|error| format!("{} {error}", error.reason()))
}

fn rule(spoil: impl FnOnce(&mut pb::http_route::Rule)) -> Result<OutboundPolicy, String> {
    outbound(|http1| spoil(&mut http1.routes[0].rules[0]))
}

fn backend(spoil: impl FnOnce(&mut pb::Backend)) -> Result<OutboundPolicy, String> {
    rule(|rule| spoil(first_backend(rule).backend.as_mut().unwrap()))
}

fn first_backend(rule: &mut pb::http_route::Rule) -> &mut pb::http_route::RouteBackend {
    use pb::http_route::distribution::Kind;
    let Some(Kind::RandomAvailable(random)) = &mut rule.backends.as_mut().unwrap().kind else {
        unreachable!()
    };
    random.backends[0].backend.as_mut().unwrap()
}

fn accrual(
    spoil: impl FnOnce(&mut pb::failure_accrual::Unified),
) -> Result<OutboundPolicy, String> {
    outbound(|http1| {
        let Some(pb::failure_accrual::Kind::Unified(unified)) =
            &mut http1.failure_accrual.as_mut().unwrap().kind
        else {
            unreachable!()
        };
        spoil(unified);
    })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[test]
fn the_field_at_fault_is_named() {
    let first = "protocol.http1.routes[0].rules[0]";
    let in_backend = format!("{first}.backends[0].backend");
    let route = "protocol.http1.routes[0]";
    let table: Vec<(String, Result<OutboundPolicy, String>)> = vec![
        (format!("missing {route}.metadata"), outbound(|h| h.routes[0].metadata = None)),
        (
            format!("missing {route}.hosts[0].match"),
            outbound(|h| h.routes[0].hosts[0].r#match = None),
        ),
        (
            "missing protocol.http1.failure_accrual.kind".into(),
            outbound(|h| {
                h.failure_accrual.as_mut().unwrap().kind = None;
            }),
        ),
        (format!("missing {first}.backends"), rule(|r| r.backends = None)),
        (
            format!("missing {first}.backends.kind"),
            rule(|r| r.backends.as_mut().unwrap().kind = None),
        ),
        (format!("missing {first}.filters[0].kind"), rule(|r| r.filters[0].kind = None)),
        (
            format!("missing {first}.matches[0].path.kind"),
            rule(|r| r.matches[0].path.as_mut().unwrap().kind = None),
        ),
        (
            format!("missing {first}.retry.conditions"),
            rule(|r| {
                r.retry.as_mut().unwrap().conditions = None;
            }),
        ),
        (format!("missing {in_backend}.kind"), backend(|b| b.kind = None)),
        (format!("missing {in_backend}.queue"), backend(|b| b.queue = None)),
        (
            format!("missing {in_backend}.queue.failfast_timeout"),
            backend(|b| {
                b.queue.as_mut().unwrap().failfast_timeout = None;
            }),
        ),
        (
            format!("missing {in_backend}.balancer.load"),
            backend(|b| {
                let Some(pb::backend::Kind::Balancer(balancer)) = &mut b.kind else {
                    unreachable!()
                };
                balancer.load = None;
            }),
        ),
        (
            format!("missing {in_backend}.balancer.discovery"),
            backend(|b| {
                let Some(pb::backend::Kind::Balancer(balancer)) = &mut b.kind else {
                    unreachable!()
                };
                balancer.discovery = None;
            }),
        ),
        (
            format!("invalid {in_backend}.forward.addr"),
            backend(|b| {
                let addr = dst::WeightedAddr {
                    addr: Some(std::net::SocketAddr::from(([10, 0, 0, 1], 0)).into()),
                    ..Default::default()
                };
                b.kind = Some(pb::backend::Kind::Forward(addr));
            }),
        ),
        (
            format!("invalid {first}.timeouts.request"),
            rule(|r| {
                r.timeouts.as_mut().unwrap().request = seconds(-1);
            }),
        ),
        (
            format!("invalid {first}.timeouts.idle"),
            rule(|r| {
                r.timeouts.as_mut().unwrap().idle = seconds(i64::MAX);
            }),
        ),
        (
            format!("invalid {first}.retry.backoff.max_backoff"),
            rule(|r| {
                let backoff = r.retry.as_mut().unwrap().backoff.as_mut().unwrap();
                backoff.min_backoff = seconds(61);
            }),
        ),
        (
            format!("invalid {first}.retry.conditions.status_ranges[0]"),
            rule(|r| {
                let conditions = r.retry.as_mut().unwrap().conditions.as_mut().unwrap();
                conditions.status_ranges[0].start = 505;
            }),
        ),
        (
            format!("invalid {first}.matches[0].method"),
            rule(|r| {
                let unknown = linkerd2_proxy_api::http_types::http_method::Type::Registered(99);
                r.matches[0].method.as_mut().unwrap().r#type = Some(unknown);
            }),
        ),
        (
            format!("invalid {first}.matches[0].path.regex"),
            rule(|r| {
                let regex = parts::path_match::Kind::Regex("(".into());
                r.matches[0].path = Some(parts::PathMatch { kind: Some(regex) });
            }),
        ),
        (
            format!("invalid {first}.matches[0].path.regex"),
            rule(|r| {
                let regex = parts::path_match::Kind::Regex(".{1000}{1000}".into());
                r.matches[0].path = Some(parts::PathMatch { kind: Some(regex) });
            }),
        ),
        (
            format!("invalid {first}.matches[0].headers[0].name"),
            rule(|r| {
                let value = Some(parts::header_match::Value::Exact(Vec::new()));
                r.matches[0].headers = vec![parts::HeaderMatch { name: "no name".into(), value }];
            }),
        ),
        (
            "invalid protocol.http1.failure_accrual.unified.success_rate_threshold".into(),
            accrual(|unified| unified.success_rate_threshold = f64::NAN),
        ),
        (
            "missing protocol.http1.failure_accrual.backoff".into(),
            accrual(|unified| unified.backoff = None),
        ),
    ];
    for (expected, read) in table {
        let error = read.expect_err(&expected);
        assert!(error.starts_with(&format!("{expected}: ")), "{error}\nexpected {expected}");
    }
}

#[test]
fn weights_that_are_all_zero_are_refused() {
    let zero = rule(|rule| {
        use pb::http_route::distribution::Kind;
        let Some(Kind::RandomAvailable(random)) = &mut rule.backends.as_mut().unwrap().kind else {
            unreachable!()
        };
        random.backends.iter_mut().for_each(|backend| backend.weight = 0);
    });
    assert!(zero.unwrap_err().ends_with(".backends: no weight is above 0"));
}

#[test]
fn a_message_has_bounds() {
    let routes = outbound(|http1| {
        let bare = pb::HttpRoute { rules: Vec::new(), ..http1.routes[0].clone() };
        http1.routes = vec![bare; 1_001];
    });
    assert!(routes.unwrap_err().starts_with("too-many protocol.http1.routes: has 1001"));
    // In all routes together.
    let rules = outbound(|http1| {
        let mut route = http1.routes[0].clone();
        route.rules = vec![Default::default(); 501];
        http1.routes = vec![route; 2];
    });
    assert!(rules.unwrap_err().starts_with("too-many protocol.http1.routes.rules: has 1002"));
    let headers = rule(|rule| {
        let value = Some(parts::header_match::Value::Exact(Vec::new()));
        let header = parts::HeaderMatch { name: "x".into(), value };
        rule.matches[0].headers = vec![header; 65];
    });
    assert!(headers.unwrap_err().contains("matches[0].headers: has 65 items"));

    let endpoint = dst::WeightedAddr {
        addr: Some(std::net::SocketAddr::from(([10, 0, 0, 1], 80)).into()),
        ..Default::default()
    };
    let add = |count| {
        let set =
            dst::WeightedAddrSet { addrs: vec![endpoint.clone(); count], ..Default::default() };
        Destination::from_proto(dst::Update { update: Some(dst::update::Update::Add(set)) })
    };
    assert!(add(10_000).is_ok());
    assert_eq!(add(10_001).unwrap_err().reason(), "too-many");
}

#[test]
fn an_unknown_kind_of_message_is_an_error_of_that_message() {
    let protocol = Some(pb::ProxyProtocol { kind: None });
    let policy = pb::OutboundPolicy { protocol, ..values::outbound_http().to_proto().unwrap() };
    assert_eq!(OutboundPolicy::from_proto(policy).unwrap_err().field(), "protocol.kind");

    let update = dst::Update { update: None };
    assert_eq!(Destination::from_proto(update).unwrap_err().field(), "update");

    let mut server = values::server().to_proto().unwrap();
    let permit = Some(srv::authn::Permit::MeshTls(srv::authn::PermitMeshTls { clients: None }));
    server.authorizations[0].authentication = Some(srv::Authn { permit });
    let error = ServerPolicy::from_proto(server).unwrap_err();
    assert_eq!(error.field(), "authorizations[0].authentication.meshTLS.clients");

    let extension = ext::BackendExtension { strategy: 99, ..Default::default() };
    assert_eq!(BackendExtension::from_proto(extension).unwrap_err().field(), "strategy");
}

#[test]
fn an_identity_without_server_name_is_plaintext_to_nobody() {
    let read = |strategy| {
        let endpoint = dst::WeightedAddr {
            addr: Some(std::net::SocketAddr::from(([10, 0, 0, 1], 80)).into()),
            tls_identity: Some(dst::TlsIdentity { strategy: Some(strategy), server_name: None }),
            ..Default::default()
        };
        let profile = dst::DestinationProfile { endpoint: Some(endpoint), ..Default::default() };
        Profile::from_proto(profile)
    };
    use dst::tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};
    let dns = read(Strategy::DnsLikeIdentity(DnsLikeIdentity { name: "web.shop".into() }));
    let identity = dns.unwrap().endpoint.unwrap().identity.unwrap();
    assert_eq!((&*identity.id, &*identity.server_name), ("web.shop", "web.shop"));

    let uri = read(Strategy::UriLikeIdentity(UriLikeIdentity { uri: "spiffe://a".into() }));
    assert_eq!(uri.unwrap_err().field(), "endpoint.tls_identity.server_name");
}

/// A backendRef that leads nowhere, as the reference control plane puts it.
#[test]
fn a_backend_that_always_fails_needs_no_address() {
    let dangling = |ratio| {
        rule(|rule| {
            let failure = parts::HttpFailureInjector { status: 500, message: "no".into(), ratio };
            let kind = pb::http_route::filter::Kind::FailureInjector(failure);
            let backend = first_backend(rule);
            backend.filters = vec![pb::http_route::Filter { kind: Some(kind) }];
            backend.backend.as_mut().unwrap().kind = None;
        })
    };
    assert!(dangling(None).is_ok());
    assert!(dangling(Some(parts::Ratio { numerator: 1, denominator: 2 })).is_err());
}

#[test]
fn a_tcp_backend_that_is_refused_refuses_the_route() {
    use pb::opaque_route::{Filter, distribution::Kind as Spread, filter};
    let read = |refused: &[bool]| {
        let mut policy = values::outbound_opaque(None).to_proto().unwrap();
        let Some(Kind::Opaque(opaque)) = &mut policy.protocol.as_mut().unwrap().kind else {
            unreachable!()
        };
        let spread = &mut opaque.routes[0].rules[0].backends.as_mut().unwrap().kind;
        let Some(Spread::FirstAvailable(first)) = spread else { unreachable!() };
        let good = first.backends[0].clone();
        let invalid = linkerd2_proxy_api::opaque_route::Invalid { message: "no".into() };
        let filter = Filter { kind: Some(filter::Kind::Invalid(invalid)) };
        let mut bad = good.clone();
        bad.filters = vec![filter];
        bad.backend.as_mut().unwrap().kind = None;
        let backends = refused.iter().map(|refused| if *refused { &bad } else { &good });
        first.backends = backends.cloned().collect();
        OutboundPolicy::from_proto(policy)
    };
    let Protocol::Opaque(tcp) = read(&[true, true]).unwrap().protocol else { unreachable!() };
    assert_eq!(tcp.routes[0].refuse, Some(Refuse::Invalid("no".into())));
    assert_eq!(tcp.routes[0].backends, Distribution::Empty);
    assert_eq!(read(&[true, false]).unwrap_err().reason(), "unsupported");
}

#[test]
fn what_is_left_out_has_the_reference_proxys_default() {
    use pb::backend::balance_p2c::{Load, PenaltyPeakEwma};
    let policy = backend(|backend| {
        let Some(pb::backend::Kind::Balancer(balancer)) = &mut backend.kind else { unreachable!() };
        balancer.load = Some(Load::PenaltyPeakEwma(PenaltyPeakEwma::default()));
    });
    let Protocol::Http1(http) = policy.unwrap().protocol else { unreachable!() };
    let Distribution::Random(backends) = &http.routes[0].rules[0].action.backends else {
        unreachable!()
    };
    let BackendKind::Balance(balance) = &backends[0].0.backend.kind else { unreachable!() };
    assert_eq!(balance.default_rtt, Duration::from_millis(30));
    assert_eq!(balance.penalty.unwrap().max_retry_after, Duration::from_secs(300));

    let policy = accrual(|unified| unified.decay = None).unwrap();
    let Protocol::Http1(http) = policy.protocol else { unreachable!() };
    let rate = http.breaker.unwrap().success_rate.unwrap();
    assert_eq!(rate.decay, Duration::from_secs(10));
}

#[test]
fn a_condition_set_to_zero_is_none() {
    let policy = accrual(|unified| unified.success_rate_threshold = 0.0).unwrap();
    let Protocol::Http1(http) = policy.protocol else { unreachable!() };
    let breaker = http.breaker.unwrap();
    assert_eq!((breaker.consecutive, breaker.success_rate), (Some(7), None));

    let policy = accrual(|unified| {
        unified.success_rate_threshold = 0.0;
        unified.max_consecutive_failures = 0;
    });
    let Protocol::Http1(http) = policy.unwrap().protocol else { unreachable!() };
    assert_eq!(http.breaker, None);

    let policy = rule(|rule| rule.timeouts.as_mut().unwrap().request = seconds(0)).unwrap();
    let Protocol::Http1(http) = policy.protocol else { unreachable!() };
    assert_eq!(http.routes[0].rules[0].action.timeouts.request, None);
}

#[test]
#[expect(deprecated, reason = "older control planes say `request_timeout`")]
fn the_old_timeout_counts_only_without_the_new_ones() {
    let request = |new: bool| {
        let policy = rule(|rule| {
            rule.request_timeout = seconds(5);
            rule.timeouts = new.then(Default::default);
        });
        let Protocol::Http1(http) = policy.unwrap().protocol else { unreachable!() };
        http.routes[0].rules[0].action.timeouts.request
    };
    assert_eq!(request(false), Some(Duration::from_secs(5)));
    assert_eq!(request(true), None);
}

#[test]
fn a_redirect_is_permanent_unless_it_says_otherwise() {
    let read = |path: &str| {
        rule(|rule| {
            let replace = Some(parts::path_modifier::Replace::Prefix(path.into()));
            let redirect = parts::RequestRedirect {
                path: Some(parts::PathModifier { replace }),
                ..Default::default()
            };
            let kind = pb::http_route::filter::Kind::Redirect(redirect);
            rule.filters = vec![pb::http_route::Filter { kind: Some(kind) }];
        })
    };
    let Protocol::Http1(http) = read("/new").unwrap().protocol else { unreachable!() };
    let Filter::Redirect(redirect) = &http.routes[0].rules[0].filters[0] else { unreachable!() };
    assert_eq!(redirect.status, 301);
    assert_eq!(redirect.path, Some(PathModifier::Prefix("/new".into())));
    assert!(read("new").unwrap_err().contains("`new` does not start with /"));
}

#[test]
fn authorizations_of_older_control_planes_are_read() {
    let mut server = values::server().to_proto().unwrap();
    let authz = &mut server.authorizations[0];
    authz.metadata = None;
    authz.labels = [("kind", "server"), ("name", "web"), ("group", "policy.linkerd.io")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let mut nobody = authz.clone();
    nobody.networks.clear();
    server.authorizations.push(nobody);
    let read = ServerPolicy::from_proto(server.clone()).unwrap();
    assert_eq!(read.authorizations.len(), 1, "one without networks lets nobody in");
    let Meta::Resource(resource) = &read.authorizations[0].meta else { unreachable!() };
    assert_eq!((&*resource.kind, &*resource.name), ("server", "web"));
    assert_eq!(read.authorizations[0].authentication, Authentication::MeshTls);

    server.authorizations[0].labels.clear();
    let error = ServerPolicy::from_proto(server).unwrap_err();
    assert_eq!(error.field(), "authorizations[0].metadata");
}

#[test]
fn figures_that_do_not_add_up_are_refused() {
    let histogram = ext::Histogram { buckets: vec![1, 2], counts: vec![1] };
    let totals = ext::Totals { latency: Some(histogram), ..Default::default() };
    assert_eq!(Totals::try_from(totals).unwrap_err().field(), "latency.counts");

    let totals = ext::Totals { retries: u64::MAX, ..Default::default() };
    assert_eq!(Totals::try_from(totals).unwrap_err().field(), "retries");

    let totals = ext::Totals { classes: vec![1, 2, 3], ..Default::default() };
    assert_eq!(Totals::try_from(totals).unwrap_err().field(), "classes");

    let reasons = [("from-the-future".to_owned(), 3), ("no-route".to_owned(), 2)];
    let totals = ext::Totals { failure: 5, reasons: reasons.into(), ..Default::default() };
    let totals = Totals::try_from(totals).unwrap();
    assert_eq!(totals.reasons, [(mesh_model::Reason::NoRoute, 2)]);
}

#[test]
fn a_filter_that_cannot_be_meant_is_refused() {
    for status in ["6xx", "0xx", "xx", "99", "1000", "5XX", "ok"] {
        let filter = ext::TapFilter { status: status.into(), ..Default::default() };
        let error = TapFilter::try_from(filter).unwrap_err();
        assert_eq!(error.field(), "status", "{status}");
    }
    let filter = ext::TapFilter { peers: vec!["web".into()], ..Default::default() };
    assert_eq!(TapFilter::try_from(filter).unwrap_err().field(), "peers[0].peer");
    let filter = ext::TapFilter { direction: 7, ..Default::default() };
    assert_eq!(TapFilter::try_from(filter).unwrap_err().field(), "direction");
}
