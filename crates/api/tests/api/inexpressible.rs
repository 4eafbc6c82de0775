//! Model values that the API has no words for: an error that names the field, or the nearest thing
//! that means the same.

use http::StatusCode;
use linkerd2_proxy_api::inbound::proxy_protocol::Kind as ServerKind;
use mesh_api::{EncodeError, WholePolicy, Wire};
use mesh_model::inbound::{Rate, ServerPolicy, ServerProtocol};
use mesh_model::outbound::{Forward, Protocol, TcpPolicy};
use mesh_model::route::{
    Filter, GrpcCodes, InjectedFailure, Mirror, PathModifier, QueryMatch, Ratio, Rewrite, Route,
    ValueMatch,
};
use mesh_model::{Endpoint, OutboundPolicy, Profile};

use crate::values;

#[test]
fn what_cannot_be_said_is_named() {
    type Spoil = fn(&mut OutboundPolicy);
    let table: &[(&str, &str, Spoil)] = &[
        ("unsupported", "grpc.routes[0].rules[0].filters[0]", |p| {
            *grpc_filter(p) = values::redirect();
        }),
        ("unsupported", "grpc.routes[0].rules[0].filters[0]", |p| {
            *grpc_filter(p) = values::failure(InjectedFailure::Http(StatusCode::BAD_GATEWAY));
        }),
        ("unsupported", "grpc.routes[0].rules[0].retry.conditions", |p| {
            grpc_action(p).retry.as_mut().unwrap().grpc = GrpcCodes::default().with(2);
        }),
        ("unsupported", "grpc.routes[0].rules[0].retry.conditions", |p| {
            grpc_action(p).retry.as_mut().unwrap().statuses = vec![500..=500];
        }),
        ("invalid", "grpc.routes[0].rules[0].timeouts.request", |p| {
            grpc_action(p).timeouts.request = Some(std::time::Duration::MAX);
        }),
    ];
    for (reason, field, spoil) in table {
        let mut policy = values::outbound_grpc();
        spoil(&mut policy);
        let error = policy.to_proto().expect_err(field);
        assert_eq!(error.field(), format!("protocol.{field}"), "{error}");
        assert_eq!(error.reason(), *reason, "{error}");
    }
}

#[test]
fn an_http_rule_retries_on_statuses_and_compares_text() {
    let spoilt = |spoil: fn(&mut mesh_model::outbound::HttpRoute)| {
        let mut policy = values::outbound_http();
        let Protocol::Http1(http) = &mut policy.protocol else { unreachable!() };
        let mut route = http.routes[0].clone();
        spoil(&mut route);
        http.routes = [route].into();
        policy.to_proto().unwrap_err().to_string()
    };
    let retry = spoilt(|route| {
        route.rules[0].action.retry.as_mut().unwrap().grpc = GrpcCodes::default().with(14);
    });
    assert!(retry.contains("rules[0].retry.conditions: an HTTP route"), "{retry}");
    let query = spoilt(|route| {
        let value = ValueMatch::Exact(vec![0xff]);
        route.rules[0].matches[0].query.push(QueryMatch { name: "q".into(), value });
    });
    assert!(query.contains("matches[0].query_params[0].value"), "{query}");
}

#[test]
fn an_opaque_route_has_no_snis() {
    let mut policy = values::outbound_opaque(None);
    let Protocol::Tls(TcpPolicy { routes }) = values::outbound_tls().protocol else {
        unreachable!()
    };
    policy.protocol = Protocol::Opaque(TcpPolicy { routes });
    let error = policy.to_proto().unwrap_err();
    assert_eq!(error.field(), "protocol.opaque.routes[0].snis");
}

#[test]
fn a_rate_of_nothing_would_be_no_limit() {
    let mut policy = values::server();
    let ServerProtocol::Detect { limit: Some(limit), .. } = &mut policy.protocol else {
        unreachable!()
    };
    limit.total = Some(Rate { per_second: 0, burst: 1 });
    let error = policy.to_proto().unwrap_err();
    assert_eq!(error.field(), "protocol.detect.http_local_rate_limit.total");
}

#[test]
fn rules_with_authorizations_of_their_own_become_routes() {
    let rules = ["a", "a", "b", "a"].map(values::server_rule);
    let route = Route { meta: values::meta("route"), hosts: Vec::new(), rules: rules.into() };
    let policy = ServerPolicy {
        protocol: ServerProtocol::Http2 { routes: [route].into(), limit: None },
        ..values::server()
    };
    let proto = policy.encode().unwrap();
    let Some(ServerKind::Http2(http2)) = proto.protocol.clone().unwrap().kind else {
        unreachable!()
    };
    let sizes: Vec<_> = http2.routes.iter().map(|route| route.rules.len()).collect();
    assert_eq!(sizes, [2, 1, 1]);

    let back = ServerPolicy::from_proto(proto).unwrap();
    let ServerProtocol::Http2 { routes, .. } = back.protocol else { unreachable!() };
    let authorized: Vec<_> = routes
        .iter()
        .flat_map(|route| &route.rules)
        .map(|rule| rule.action.authorizations[0].meta.name().to_owned())
        .collect();
    assert_eq!(authorized, ["a", "a", "b", "a"]);
}

#[test]
fn an_authorization_without_networks_is_left_out() {
    let mut policy = values::server();
    let mut nobody = values::authorization("nobody");
    nobody.networks.clear();
    policy.authorizations = [nobody, values::authorization("somebody")].into();
    let proto = policy.encode().unwrap();
    assert_eq!(proto.authorizations.len(), 1);
}

#[test]
fn a_profile_with_an_endpoint_has_no_name() {
    let profile = Profile {
        name: Some("web.shop".into()),
        opaque: true,
        endpoint: Some(Endpoint::plain("10.0.0.1:80".parse().unwrap())),
    };
    let proto = profile.encode().unwrap();
    assert_eq!(proto.fully_qualified_name, "");
    assert!(proto.opaque_protocol && proto.endpoint.is_some());
}

#[test]
fn a_value_that_must_not_be_sent_says_which_rule_it_breaks() {
    let mut policy = values::outbound_http();
    let Protocol::Http1(http) = &mut policy.protocol else { unreachable!() };
    let mut route = http.routes[0].clone();
    let Filter::Fail(failure) = &mut route.rules[0].filters[0] else { unreachable!() };
    failure.ratio = Ratio { numerator: 2, denominator: 1 };
    http.routes = [route].into();
    let error = policy.encode().unwrap_err();
    assert!(matches!(error, EncodeError::Violation(_)));
    assert_eq!(
        error.to_string(),
        "breaks a rule of the API: protocol.http1.routes[0].rules[0].filters[0]\
         .failure_injector.ratio: a ratio is between 0 and 1"
    );
}

fn grpc_action(policy: &mut OutboundPolicy) -> &mut Forward {
    &mut grpc_rule(policy).action
}

fn grpc_filter(policy: &mut OutboundPolicy) -> &mut Filter {
    &mut grpc_rule(policy).filters[0]
}

fn grpc_rule(
    policy: &mut OutboundPolicy,
) -> &mut mesh_model::route::Rule<mesh_model::route::GrpcMatch, Forward> {
    let Protocol::Grpc(grpc) = &mut policy.protocol else { unreachable!() };
    let routes = std::sync::Arc::get_mut(&mut grpc.routes).expect("nobody shares them");
    &mut routes[0].rules[0]
}

#[test]
fn a_policy_is_lowered_without_letting_requests_go_astray() {
    let mut policy = values::outbound_http();
    let Protocol::Http1(http) = &mut policy.protocol else { unreachable!() };
    let mut route = http.routes[0].clone();
    let ratio = Ratio { numerator: 1, denominator: 2 };
    let backend = route.rules[0].action.backends.backends().next().unwrap().backend.clone();
    route.rules[0].filters = vec![
        Filter::Mirror(Box::new(Mirror { backend, ratio })),
        Filter::Rewrite(Rewrite { path: Some(PathModifier::Full("/v2".into())), host: None }),
    ];
    http.routes = [route].into();
    let read = OutboundPolicy::from_proto(policy.encode().unwrap()).unwrap();
    let Protocol::Http1(http) = &read.protocol else { unreachable!() };
    let [Filter::Fail(fail)] = &http.routes[0].rules[0].filters[..] else { panic!("{http:?}") };
    assert_eq!(fail.failure, InjectedFailure::Http(StatusCode::INTERNAL_SERVER_ERROR));
}

#[test]
fn additions_out_of_place_are_refused() {
    let mut policy = values::outbound_http();
    let Protocol::Http1(http) = &mut policy.protocol else { unreachable!() };
    let mut route = http.routes[0].clone();
    route.rules[0].filters = vec![Filter::Rewrite(Rewrite::default())];
    http.routes = [route].into();
    let sound = WholePolicy(policy).encode().unwrap();
    type Spoil = fn(&mut mesh_api::ext::Addition);
    let table: &[(&str, Spoil)] = &[
        ("table", |addition| addition.table = 7),
        ("table", |addition| addition.table = 2),
        ("route", |addition| addition.route = 1),
        ("rule", |addition| addition.rule = u32::MAX),
        ("backend", |addition| addition.backend = Some(9)),
        ("position", |addition| addition.position = 1),
        ("what", |addition| addition.what = None),
    ];
    for (field, spoil) in table {
        let mut spoilt = sound.clone();
        spoil(&mut spoilt.additions[0]);
        let error = WholePolicy::from_proto(spoilt).expect_err(field);
        assert_eq!(error.field(), format!("additions[0].{field}"), "{error}");
    }
    let mut garbled = sound;
    garbled.policy = vec![0xff];
    assert_eq!(WholePolicy::from_proto(garbled).unwrap_err().field(), "policy");
}
