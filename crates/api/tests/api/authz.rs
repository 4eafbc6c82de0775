//! Authorization rules: they come back as they were, and whatever is missing or unknown makes a
//! message an error. A rule that lost a condition would let in more than it says.

use futures_util::StreamExt;
use mesh_api::client::ControlClient;
use mesh_api::server::{ControlPlane, Refusal, control_plane_routes};
use mesh_api::{BackendExtension, Update, Wire, Workload, ext};
use mesh_model::authz::{
    Action, AuthorizationRule, ClientMatch, DefaultAccess, DefaultRule, Operation, PathPattern,
    PortAuthz, Probe, RouteScope, Source,
};
use mesh_model::inbound::{
    Concurrency, HeaderRate, PortExtension, PortLimits, PortProtocol, Rate, RateLimit, ServerPolicy,
};
use mesh_model::{Destination, OutboundPolicy, Profile, ResourceRef, Target};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;
use tonic::Code;

use crate::serve::{PATIENCE, Serving};
use crate::strategies::{
    cidr, fault, header_match, header_name, host, http_match, meta, method, network,
};
use crate::{hostile, round_trip};

fn rule() -> impl Strategy<Value = AuthorizationRule> {
    let identity = "(\\*\\.)?[a-z]{1,4}(\\.[a-z]{1,4}){0,2}";
    let identities = vec(identity.prop_map(|text| text.parse().unwrap()), 0..3);
    let client = prop_oneof![
        Just(ClientMatch::Anyone),
        Just(ClientMatch::Unauthenticated),
        Just(ClientMatch::Authenticated),
        identities.prop_map(ClientMatch::Among),
    ];
    let source =
        (client, vec(network(), 0..3)).prop_map(|(client, networks)| Source { client, networks });
    let operation = (vec(path(), 0..3), vec(method(), 0..3), vec(header_match(), 0..2))
        .prop_map(|(paths, methods, headers)| Operation { paths, methods, headers });
    let scope = (meta(), vec(host(), 0..3), vec(http_match(), 0..3))
        .prop_map(|(route, hosts, matches)| RouteScope { route, hosts, matches });
    let action = select(Action::ALL.to_vec());
    (meta(), action, option::of(scope), vec(source, 0..3), vec(operation, 0..3)).prop_map(
        |(meta, action, route, from, to)| AuthorizationRule { meta, action, route, from, to },
    )
}

fn path() -> impl Strategy<Value = PathPattern> {
    "(/[a-z.]{1,3}x){0,3}(/\\*)?"
        .prop_map(|text| PathPattern::new(if text.is_empty() { "/" } else { &text }).unwrap())
}

fn authz() -> impl Strategy<Value = PortAuthz> {
    let access = select(DefaultAccess::ALL.to_vec());
    let default = (access, meta(), vec(cidr(), 0..3))
        .prop_map(|(access, meta, cluster)| DefaultRule { access, meta, cluster: cluster.into() });
    let probe = (method(), path()).prop_map(|(method, path)| Probe { method, path });
    (vec(rule(), 0..4), default, vec(probe, 0..2)).prop_map(|(rules, default, probes)| PortAuthz {
        rules: rules.into(),
        default,
        probes: probes.into(),
    })
}

fn limits() -> impl Strategy<Value = PortLimits> {
    let rate = || (any::<u32>(), 1u32..).prop_map(|(per_second, burst)| Rate { per_second, burst });
    let overrides = vec((rate(), vec("[a-z]{1,4}", 0..3)), 0..3);
    let header = (header_name(), rate()).prop_map(|(name, rate)| HeaderRate { name, rate });
    let limit = (meta(), option::of(rate()), option::of(rate()), overrides, option::of(header))
        .prop_map(|(meta, total, identity, overrides, header)| RateLimit {
            meta,
            total,
            identity,
            overrides,
            header,
        });
    let concurrency = (meta(), any::<u32>()).prop_map(|(meta, max)| Concurrency { meta, max });
    (option::of(limit), option::of(concurrency))
        .prop_map(|(rate, concurrency)| PortLimits { rate, concurrency })
}

fn extension() -> impl Strategy<Value = PortExtension> {
    (authz(), select(PortProtocol::ALL.to_vec()), limits(), vec(fault(), 0..3)).prop_map(
        |(authz, protocol, limits, faults)| PortExtension { authz, protocol, limits, faults },
    )
}

proptest! {
    #[test]
    fn all_of_a_port_comes_back(extension in extension()) {
        round_trip::comes_back(&extension)?;
    }

    #[test]
    fn no_port_panics(extension in extension(), edits in hostile::edits()) {
        let bytes = extension.to_proto().unwrap().encode_to_vec();
        hostile::survives::<PortExtension>(&hostile::spoil(bytes, &edits));
    }

    #[test]
    fn rules_come_back(authz in authz()) {
        round_trip::comes_back(&authz)?;
    }

    #[test]
    fn no_rule_panics(authz in authz(), edits in hostile::edits()) {
        let bytes = authz.to_proto().unwrap().encode_to_vec();
        hostile::survives::<PortAuthz>(&hostile::spoil(bytes, &edits));
    }
}

fn sample() -> PortAuthz {
    PortAuthz {
        rules: Vec::from([AuthorizationRule {
            meta: mesh_model::Meta::Default("x".into()),
            action: Action::Allow,
            route: None,
            from: vec![Source { client: ClientMatch::Authenticated, networks: vec![] }],
            to: vec![Operation::default()],
        }])
        .into(),
        default: DefaultRule {
            access: DefaultAccess::Deny,
            meta: mesh_model::Meta::Default("deny".into()),
            cluster: Default::default(),
        },
        probes: Default::default(),
    }
}

fn whole() -> PortExtension {
    PortExtension {
        authz: sample(),
        protocol: PortProtocol::Http1,
        limits: PortLimits::default(),
        faults: Vec::new(),
    }
}

#[test]
fn a_limit_is_whole_or_an_error() {
    let read = |spoil: fn(&mut ext::PortAuthorization)| {
        let mut proto = whole().to_proto().unwrap();
        spoil(&mut proto);
        PortExtension::from_proto(proto).unwrap_err().to_string()
    };
    assert!(read(|port| port.protocol = 99).starts_with("protocol: is missing"));
    let error = read(|port| port.rate_limit = Some(ext::PortRateLimit::default()));
    assert!(error.starts_with("rate_limit.meta"), "{error}");
    let error = read(|port| {
        let total = Some(ext::PortRate { per_second: 5, burst: 0 });
        port.rate_limit = Some(ext::PortRateLimit {
            meta: Some(ext::PolicyMeta { default_name: "x".into(), ..Default::default() }),
            total,
            ..Default::default()
        });
    });
    assert!(error.starts_with("rate_limit.total.burst"), "{error}");
}

fn spoilt(spoil: impl FnOnce(&mut ext::PortAuthorization)) -> String {
    let mut proto = sample().to_proto().unwrap();
    spoil(&mut proto);
    PortAuthz::from_proto(proto).unwrap_err().to_string()
}

#[test]
fn nothing_is_left_out_of_a_rule() {
    assert!(spoilt(|authz| authz.default = None).starts_with("default: is missing"));
    assert!(spoilt(|authz| authz.default.as_mut().unwrap().access = 0).contains("access"));
    assert!(spoilt(|authz| authz.rules[0].action = 0).starts_with("rules[0].action: is missing"));
    assert!(spoilt(|authz| authz.rules[0].action = 99).starts_with("rules[0].action: is missing"));
    assert!(spoilt(|authz| authz.rules[0].meta = None).starts_with("rules[0].meta: is missing"));
    let error = spoilt(|authz| authz.rules[0].from[0].client = 99);
    assert!(error.starts_with("rules[0].from[0].client: is missing"), "{error}");
    let error = spoilt(|authz| authz.rules[0].to[0].paths.push("/a/../b".into()));
    assert!(error.starts_with("rules[0].to[0].paths[0].path:"), "{error}");
    let network = ext::SourceNetwork { net: "10.0.0.0/33".into(), except: vec![] };
    let error = spoilt(|authz| authz.rules[0].from[0].networks.push(network));
    assert!(error.starts_with("rules[0].from[0].networks[0].net:"), "{error}");
    let header = ext::ValueCondition { name: "x".into(), value: None };
    let error = spoilt(|authz| authz.rules[0].to[0].headers.push(header));
    assert!(error.starts_with("rules[0].to[0].headers[0].value: is missing"), "{error}");
    let scope = ext::RouteScope::default();
    let error = spoilt(|authz| authz.rules[0].route = Some(scope));
    assert!(error.starts_with("rules[0].route.route: is missing"), "{error}");
    let error = spoilt(|authz| authz.rules = vec![authz.rules[0].clone(); 1_001]);
    assert!(error.contains("more than the 1000 allowed"), "{error}");
}

/// Knows ports below 1000 only, or no extensions at all.
#[derive(Clone)]
struct Fake {
    extended: bool,
}

type Told<T> = Result<futures_util::stream::BoxStream<'static, T>, Refusal>;

fn nothing<T>() -> Told<T> {
    Err(Refusal::NotFound("nothing is known".into()))
}

impl ControlPlane for Fake {
    fn destination(&self, _: &str, _: &Workload) -> Told<Destination> {
        nothing()
    }

    fn profile(&self, _: &Target, _: &Workload) -> Told<Profile> {
        nothing()
    }

    fn outbound(&self, _: &Target, _: &Workload) -> Told<OutboundPolicy> {
        nothing()
    }

    fn server_policy(&self, _: &Workload, _: u16) -> Told<ServerPolicy> {
        nothing()
    }

    fn backend_extension(&self, _: &ResourceRef) -> Told<BackendExtension> {
        nothing()
    }

    fn port_extension(&self, workload: &Workload, port: u16) -> Told<PortExtension> {
        if !self.extended {
            return Err(Refusal::Unimplemented("there is no such extension".into()));
        }
        assert_eq!((workload.to_string().as_str(), port), ("shop/web-1", 80));
        let told = futures_util::stream::iter([whole()]);
        Ok(told.chain(futures_util::stream::pending()).boxed())
    }
}

#[tokio::test]
async fn a_port_can_be_watched_where_there_are_extensions() {
    let workload = Workload { namespace: "shop".into(), pod: "web-1".into() };
    let client = |serving: &Serving| {
        ControlClient::new(ControlClient::lazy_channel(serving.addr), workload.clone())
    };
    let serving = Serving::new(control_plane_routes(Fake { extended: true }));
    let mut told = client(&serving).watch_port_extension(80).await.unwrap();
    let first = tokio::time::timeout(PATIENCE, told.next()).await.unwrap();
    assert_eq!(first.unwrap().unwrap(), Update::Valid(whole()));

    let serving = Serving::new(control_plane_routes(Fake { extended: false }));
    let refused = client(&serving).watch_port_extension(80).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
