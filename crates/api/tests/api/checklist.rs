//! Each rule of the emit checklist is noticed where it is broken, and only there.

use std::time::Duration;

use linkerd2_proxy_api::destination::{self as dst, DestinationProfile};
use linkerd2_proxy_api::http_route as parts;
use linkerd2_proxy_api::meta::{Metadata, Resource, metadata};
use linkerd2_proxy_api::{inbound as srv, outbound as pb};
use mesh_api::Wire;
use mesh_api::validate::{self, Rule, Violation};
use mesh_model::outbound::Refuse;
use mesh_model::{Destination, Endpoint, Profile, TlsIdentity};
use pb::proxy_protocol::Kind;

use crate::values;

#[test]
fn an_outbound_policy_that_breaks_a_rule_is_noticed() {
    type Break = fn(&mut pb::OutboundPolicy);
    let table: &[(Rule, &str, Break)] = &[
        (Rule::Metadata, "metadata", |p| p.metadata = None),
        (Rule::Resource, "metadata", |p| p.metadata = unnamed_group()),
        (Rule::Empty, "protocol", |p| p.protocol = None),
        (Rule::Empty, "protocol", |p| p.protocol.as_mut().unwrap().kind = None),
        (Rule::Metadata, "routes[0].metadata", |p| route(p).metadata = None),
        (Rule::Rules, "routes[0].rules", |p| route(p).rules.clear()),
        (Rule::Distribution, "rules[0].backends", |p| rule(p).backends = None),
        (Rule::Distribution, "rules[0].backends", |p| distribution(p).kind = None),
        (Rule::Backends, "rules[0].backends", |p| first_available(p, Vec::new())),
        (Rule::Backends, "backends[0].backend", |p| first_available(p, vec![Default::default()])),
        (Rule::Weights, "rules[0].backends", |p| random(p).iter_mut().for_each(|b| b.weight = 0)),
        (Rule::Weights, "rules[0].backends", |p| random(p).clear()),
        (Rule::Metadata, "backends[0].backend.metadata", |p| backend(p, 0).metadata = None),
        (Rule::Resource, "backend.metadata", |p| backend(p, 0).metadata = unnamed_group()),
        (Rule::Queue, "backends[0].backend.queue", |p| backend(p, 0).queue = None),
        (Rule::Queue, "backend.queue", |p| queue(p).capacity = 0),
        (Rule::Queue, "backend.queue", |p| queue(p).failfast_timeout = None),
        (Rule::BackendKind, "backends[0].backend", |p| backend(p, 0).kind = None),
        (Rule::DiscoveryPath, "balancer.discovery", |p| balancer(p).discovery = None),
        (Rule::DiscoveryPath, "balancer.discovery.dst.path", |p| path(p, "tax")),
        (Rule::DiscoveryPath, "balancer.discovery.dst.path", |p| path(p, ":80")),
        (Rule::DiscoveryPath, "balancer.discovery.dst.path", |p| path(p, "tax:0")),
        (Rule::DiscoveryPath, "balancer.discovery.dst.path", |p| path(p, "tax:http")),
        (Rule::Load, "balancer.load", |p| balancer(p).load = None),
        (Rule::Load, "balancer.load", |p| peak_ewma(p).default_rtt = None),
        (Rule::Load, "balancer.load", |p| peak_ewma(p).decay = None),
        (Rule::ForwardPort, "backends[1].backend.forward.addr", |p| {
            forward(p).addr.as_mut().unwrap().port = 0;
        }),
        (Rule::Address, "backends[1].backend.forward.addr", |p| forward(p).addr = None),
        (Rule::Identity, "forward.tls_identity", |p| identity(p).server_name = None),
        (Rule::Identity, "forward.tls_identity", |p| identity(p).strategy = None),
        (Rule::RetryConditions, "retry.conditions", |p| retry(p).conditions = None),
        (Rule::RetryConditions, "retry.conditions", |p| {
            retry(p).conditions.as_mut().unwrap().status_ranges[0].end = 600;
        }),
        (Rule::MaxRetries, "retry.max_retries", |p| retry(p).max_retries = 65_536),
        (Rule::Backoff, "retry.backoff", |p| {
            retry(p).backoff.as_mut().unwrap().min_backoff = None;
        }),
        (Rule::Breaker, "failure_accrual", |p| accrual(p).kind = None),
        (Rule::Backoff, "failure_accrual.backoff", |p| unified(p).backoff = None),
        (Rule::Backoff, "failure_accrual.backoff", |p| backoff(p).max_backoff = seconds(0)),
        (Rule::Backoff, "failure_accrual.backoff", |p| backoff(p).min_backoff = seconds(0)),
        (Rule::Backoff, "failure_accrual.backoff", |p| backoff(p).min_backoff = seconds(-1)),
        (Rule::Backoff, "failure_accrual.backoff", |p| backoff(p).jitter_ratio = f32::NAN),
        (Rule::Backoff, "failure_accrual.backoff", |p| backoff(p).jitter_ratio = -0.1),
        (Rule::SuccessRate, "unified", |p| unified(p).success_rate_threshold = 1.1),
        (Rule::SuccessRate, "unified", |p| unified(p).success_rate_threshold = f64::NAN),
        (Rule::SuccessRate, "unified", |p| unified(p).decay = seconds(0)),
        (Rule::SuccessRate, "unified", |p| unified(p).min_requests = 1_000_001),
        (Rule::Filter, "rules[0].filters[0]", |p| rule(p).filters[0].kind = None),
        (Rule::Ratio, "filters[0].failure_injector.ratio", |p| ratio(p).denominator = 0),
        (Rule::Ratio, "filters[0].failure_injector.ratio", |p| ratio(p).numerator = 101),
        (Rule::RedirectPath, "filters[1].redirect.path", |p| {
            redirect(p).path.as_mut().unwrap().replace = None;
        }),
        (Rule::RedirectPath, "filters[1].redirect.path", |p| {
            let relative = parts::path_modifier::Replace::Full("elsewhere".into());
            redirect(p).path.as_mut().unwrap().replace = Some(relative);
        }),
        (Rule::Filter, "backends[1].filters[0]", |p| {
            let none = pb::http_route::Filter { kind: None };
            random(p)[1].backend.as_mut().unwrap().filters.push(none);
        }),
    ];
    let good = values::outbound_http().to_proto().unwrap();
    assert_eq!(validate::outbound(&good), Ok(()));
    for (rule, field, break_it) in table {
        let mut policy = good.clone();
        break_it(&mut policy);
        expect(validate::outbound(&policy), *rule, field);
    }
}

#[test]
fn detection_needs_all_its_parts() {
    type Break = fn(&mut pb::proxy_protocol::Detect);
    let table: &[(Rule, &str, Break)] = &[
        (Rule::Detect, "protocol.detect.timeout", |d| d.timeout = None),
        (Rule::Detect, "protocol.detect.http1", |d| d.http1 = None),
        (Rule::Detect, "protocol.detect.http2", |d| d.http2 = None),
        (Rule::Detect, "protocol.detect.opaque", |d| d.opaque = None),
        (Rule::Routes, "detect.opaque.routes", |d| d.opaque.as_mut().unwrap().routes.clear()),
        (Rule::Metadata, "detect.http2.routes[0].metadata", |d| {
            d.http2.as_mut().unwrap().routes[0].metadata = None;
        }),
        (Rule::Breaker, "detect.http1.failure_accrual", |d| {
            d.http1.as_mut().unwrap().failure_accrual.as_mut().unwrap().kind = None;
        }),
    ];
    let good = values::outbound_detect().to_proto().unwrap();
    assert_eq!(validate::outbound(&good), Ok(()));
    for (rule, field, break_it) in table {
        let mut policy = good.clone();
        let Kind::Detect(detect) = kind(&mut policy) else { unreachable!() };
        break_it(detect);
        expect(validate::outbound(&policy), *rule, field);
    }
}

#[test]
fn an_opaque_policy_has_one_route_with_one_rule() {
    type Break = fn(&mut Vec<pb::OpaqueRoute>);
    let table: &[(Rule, &str, Break)] = &[
        (Rule::Routes, "opaque.routes", |routes| routes.push(routes[0].clone())),
        (Rule::Routes, "opaque.routes", Vec::clear),
        (Rule::Rules, "routes[0].rules", |routes| routes[0].rules.clear()),
        (Rule::Rules, "routes[0].rules", |routes| {
            let rule = routes[0].rules[0].clone();
            routes[0].rules.push(rule);
        }),
        (Rule::Filter, "rules[0].filters[0]", |routes| routes[0].rules[0].filters[0].kind = None),
        (Rule::Metadata, "routes[0].metadata", |routes| routes[0].metadata = None),
    ];
    let good = values::outbound_opaque(Some(Refuse::Forbidden)).to_proto().unwrap();
    assert_eq!(validate::outbound(&good), Ok(()));
    for (rule, field, break_it) in table {
        let mut policy = good.clone();
        let Kind::Opaque(opaque) = kind(&mut policy) else { unreachable!() };
        break_it(&mut opaque.routes);
        expect(validate::outbound(&policy), *rule, field);
    }
}

#[test]
fn a_tls_policy_has_routes_with_one_rule_each() {
    let good = values::outbound_tls().to_proto().unwrap();
    assert_eq!(validate::outbound(&good), Ok(()));
    let broken = |break_it: fn(&mut Vec<pb::TlsRoute>)| {
        let mut policy = good.clone();
        let Kind::Tls(tls) = kind(&mut policy) else { unreachable!() };
        break_it(&mut tls.routes);
        validate::outbound(&policy)
    };
    expect(broken(Vec::clear), Rule::Routes, "tls.routes");
    expect(broken(|routes| routes[0].rules.clear()), Rule::Rules, "tls.routes[0].rules");
    expect(broken(|routes| routes[0].metadata = None), Rule::Metadata, "routes[0].metadata");
}

#[test]
fn a_grpc_policy_that_breaks_a_rule_is_noticed() {
    let good = values::outbound_grpc().to_proto().unwrap();
    assert_eq!(validate::outbound(&good), Ok(()));
    let broken = |break_it: fn(&mut pb::proxy_protocol::Grpc)| {
        let mut policy = good.clone();
        let Kind::Grpc(grpc) = kind(&mut policy) else { unreachable!() };
        break_it(grpc);
        validate::outbound(&policy)
    };
    let conditions = broken(|grpc| {
        grpc.routes[0].rules[0].retry.as_mut().unwrap().conditions = None;
    });
    expect(conditions, Rule::RetryConditions, "grpc.routes[0].rules[0].retry.conditions");
    let filter = broken(|grpc| grpc.routes[0].rules[0].filters[0].kind = None);
    expect(filter, Rule::Filter, "rules[0].filters[0]");
    expect(broken(|grpc| grpc.routes[0].rules.clear()), Rule::Rules, "routes[0].rules");
    expect(broken(|grpc| grpc.routes[0].metadata = None), Rule::Metadata, "routes[0].metadata");
}

#[test]
fn an_update_that_breaks_a_rule_is_noticed() {
    let endpoint = Endpoint {
        identity: Some(TlsIdentity { id: "web".into(), server_name: "web".into() }),
        resource: Some(values::meta("web")),
        ..Endpoint::plain("10.0.0.1:80".parse().unwrap())
    };
    let add = Destination::Add { endpoints: vec![endpoint], labels: Default::default() };
    let good = add.to_proto().unwrap();
    assert_eq!(validate::destination(&good), Ok(()));
    let broken = |break_it: fn(&mut dst::WeightedAddr)| {
        let mut update = good.clone();
        let Some(dst::update::Update::Add(add)) = &mut update.update else { unreachable!() };
        break_it(&mut add.addrs[0]);
        validate::destination(&update)
    };
    expect(broken(|e| e.addr = None), Rule::Address, "add.addrs[0].addr");
    expect(broken(|e| e.addr.as_mut().unwrap().ip = None), Rule::Address, "addrs[0].addr");
    expect(broken(|e| e.resource_ref = unnamed_group()), Rule::Resource, "resource_ref.metadata");
    let nameless = broken(|e| e.tls_identity.as_mut().unwrap().server_name = None);
    expect(nameless, Rule::Identity, "add.addrs[0].tls_identity");

    expect(validate::destination(&dst::Update { update: None }), Rule::Empty, "update");
    let remove = dst::AddrSet { addrs: vec![Default::default()] };
    let remove = dst::Update { update: Some(dst::update::Update::Remove(remove)) };
    expect(validate::destination(&remove), Rule::Address, "remove.addrs[0].addr");
}

#[test]
fn a_profile_leaves_routing_to_the_policy() {
    let named = Profile { name: Some("web.shop".into()), ..Profile::default() };
    let good = named.to_proto().unwrap();
    assert_eq!(validate::profile(&good), Ok(()));
    let breaks: &[fn(&mut DestinationProfile)] = &[
        |p| p.routes.push(Default::default()),
        |p| p.dst_overrides.push(Default::default()),
        |p| p.retry_budget = Some(Default::default()),
        |p| p.endpoint = Some(Default::default()),
    ];
    for break_it in breaks {
        let mut profile = good.clone();
        break_it(&mut profile);
        expect(validate::profile(&profile), Rule::Profile, "");
    }
    let nowhere = DestinationProfile { endpoint: Some(Default::default()), ..Default::default() };
    expect(validate::profile(&nowhere), Rule::Address, "endpoint.addr");
}

#[test]
fn an_opaque_profile_needs_a_policy_that_agrees() {
    let profile = |opaque| Profile { opaque, ..Profile::default() }.to_proto().unwrap();
    let detect = values::outbound_detect().to_proto().unwrap();
    let opaque = values::outbound_opaque(None).to_proto().unwrap();
    let http = values::outbound_http().to_proto().unwrap();
    assert_eq!(validate::profile_beside(&profile(true), &detect), Ok(()));
    assert_eq!(validate::profile_beside(&profile(true), &opaque), Ok(()));
    assert_eq!(validate::profile_beside(&profile(false), &http), Ok(()));
    let disagreeing = validate::profile_beside(&profile(true), &http);
    expect(disagreeing, Rule::OpaqueProfile, "opaque_protocol");
}

#[test]
fn a_server_policy_that_breaks_a_rule_is_noticed() {
    type Break = fn(&mut srv::Server);
    let table: &[(Rule, &str, Break)] = &[
        (Rule::ServerLabels, "labels", |s| drop(s.labels.remove("name"))),
        (Rule::ServerLabels, "labels", |s| drop(s.labels.remove("group"))),
        (Rule::ServerLabels, "labels", |s| drop(s.labels.insert("kind".into(), String::new()))),
        (Rule::Empty, "protocol", |s| s.protocol = None),
        (Rule::Detect, "protocol.timeout", |s| server_detect(s).timeout = None),
        (Rule::Metadata, "protocol.rate_limit.metadata", |s| {
            server_detect(s).http_local_rate_limit.as_mut().unwrap().metadata = None;
        }),
        (Rule::Metadata, "http_routes[0].metadata", |s| {
            server_detect(s).http_routes[0].metadata = None;
        }),
        (Rule::Rules, "http_routes[0]", |s| server_detect(s).http_routes[0].rules.clear()),
        (Rule::Filter, "rules[0].filters[0]", |s| {
            server_detect(s).http_routes[0].rules[0].filters[0].kind = None;
        }),
        (Rule::Authorization, "http_routes[0].authorizations[0].authentication", |s| {
            server_detect(s).http_routes[0].authorizations[0].authentication = None;
        }),
        (Rule::Metadata, "authorizations[0].metadata", |s| s.authorizations[0].metadata = None),
        (Rule::Authorization, "authorizations[0].networks", |s| {
            s.authorizations[0].networks.clear();
        }),
        (Rule::Authorization, "authorizations[0].networks", |s| {
            s.authorizations[0].networks[0].net = None;
        }),
        (Rule::Authorization, "authorizations[0].authentication", |s| {
            let anyone = srv::authn::PermitMeshTls { clients: None };
            s.authorizations[0].authentication.as_mut().unwrap().permit =
                Some(srv::authn::Permit::MeshTls(anyone));
        }),
    ];
    let good = values::server().to_proto().unwrap();
    assert_eq!(validate::server(&good), Ok(()));
    for (rule, field, break_it) in table {
        let mut server = good.clone();
        break_it(&mut server);
        expect(validate::server(&server), *rule, field);
    }
}

fn expect(checked: Result<(), Violation>, rule: Rule, field: &str) {
    let violation = checked.expect_err(&format!("{rule:?} at {field} went unnoticed"));
    assert_eq!(violation.rule, rule, "{violation}");
    assert!(violation.field.ends_with(field), "{violation}: expected {field}");
}

fn unnamed_group() -> Option<Metadata> {
    let resource = Resource {
        kind: "a".into(),
        name: "b".into(),
        namespace: "c".into(),
        ..Default::default()
    };
    Some(Metadata { kind: Some(metadata::Kind::Resource(resource)) })
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn kind(policy: &mut pb::OutboundPolicy) -> &mut Kind {
    policy.protocol.as_mut().unwrap().kind.as_mut().unwrap()
}

fn http1(policy: &mut pb::OutboundPolicy) -> &mut pb::proxy_protocol::Http1 {
    let Kind::Http1(http1) = kind(policy) else { unreachable!() };
    http1
}

fn route(policy: &mut pb::OutboundPolicy) -> &mut pb::HttpRoute {
    &mut http1(policy).routes[0]
}

fn rule(policy: &mut pb::OutboundPolicy) -> &mut pb::http_route::Rule {
    &mut route(policy).rules[0]
}

fn retry(policy: &mut pb::OutboundPolicy) -> &mut pb::http_route::Retry {
    rule(policy).retry.as_mut().unwrap()
}

fn distribution(policy: &mut pb::OutboundPolicy) -> &mut pb::http_route::Distribution {
    rule(policy).backends.as_mut().unwrap()
}

fn first_available(policy: &mut pb::OutboundPolicy, backends: Vec<pb::http_route::RouteBackend>) {
    use pb::http_route::distribution::{FirstAvailable, Kind};
    distribution(policy).kind = Some(Kind::FirstAvailable(FirstAvailable { backends }));
}

fn random(policy: &mut pb::OutboundPolicy) -> &mut Vec<pb::http_route::WeightedRouteBackend> {
    use pb::http_route::distribution::Kind;
    let Some(Kind::RandomAvailable(random)) = &mut distribution(policy).kind else {
        unreachable!()
    };
    &mut random.backends
}

fn backend(policy: &mut pb::OutboundPolicy, index: usize) -> &mut pb::Backend {
    random(policy)[index].backend.as_mut().unwrap().backend.as_mut().unwrap()
}

fn queue(policy: &mut pb::OutboundPolicy) -> &mut pb::Queue {
    backend(policy, 0).queue.as_mut().unwrap()
}

fn balancer(policy: &mut pb::OutboundPolicy) -> &mut pb::backend::BalanceP2c {
    let Some(pb::backend::Kind::Balancer(balancer)) = &mut backend(policy, 0).kind else {
        unreachable!()
    };
    balancer
}

fn path(policy: &mut pb::OutboundPolicy, path: &str) {
    use pb::backend::endpoint_discovery::{DestinationGet, Kind};
    let get = DestinationGet { path: path.into() };
    balancer(policy).discovery.as_mut().unwrap().kind = Some(Kind::Dst(get));
}

fn peak_ewma(policy: &mut pb::OutboundPolicy) -> &mut pb::backend::balance_p2c::PeakEwma {
    use pb::backend::balance_p2c::Load;
    let Some(Load::PeakEwma(load)) = &mut balancer(policy).load else { unreachable!() };
    load
}

fn forward(policy: &mut pb::OutboundPolicy) -> &mut dst::WeightedAddr {
    let Some(pb::backend::Kind::Forward(forward)) = &mut backend(policy, 1).kind else {
        unreachable!()
    };
    forward
}

fn identity(policy: &mut pb::OutboundPolicy) -> &mut dst::TlsIdentity {
    forward(policy).tls_identity.as_mut().unwrap()
}

fn accrual(policy: &mut pb::OutboundPolicy) -> &mut pb::FailureAccrual {
    http1(policy).failure_accrual.as_mut().unwrap()
}

fn unified(policy: &mut pb::OutboundPolicy) -> &mut pb::failure_accrual::Unified {
    let Some(pb::failure_accrual::Kind::Unified(unified)) = &mut accrual(policy).kind else {
        unreachable!()
    };
    unified
}

fn backoff(policy: &mut pb::OutboundPolicy) -> &mut pb::ExponentialBackoff {
    unified(policy).backoff.as_mut().unwrap()
}

fn ratio(policy: &mut pb::OutboundPolicy) -> &mut parts::Ratio {
    let Some(pb::http_route::filter::Kind::FailureInjector(failure)) =
        &mut rule(policy).filters[0].kind
    else {
        unreachable!()
    };
    failure.ratio.as_mut().unwrap()
}

fn redirect(policy: &mut pb::OutboundPolicy) -> &mut parts::RequestRedirect {
    let Some(pb::http_route::filter::Kind::Redirect(redirect)) = &mut rule(policy).filters[1].kind
    else {
        unreachable!()
    };
    redirect
}

fn server_detect(server: &mut srv::Server) -> &mut srv::proxy_protocol::Detect {
    let kind = server.protocol.as_mut().unwrap().kind.as_mut().unwrap();
    let srv::proxy_protocol::Kind::Detect(detect) = kind else { unreachable!() };
    assert_eq!(detect.timeout, seconds(Duration::from_secs(10).as_secs() as i64));
    detect
}
