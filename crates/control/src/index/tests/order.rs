//! Whatever the order of events, the end is the same, and watchers have seen it.

use std::sync::Arc;

use mesh_model::authz::{Action, DefaultAccess};
use mesh_model::egress::EgressAction;
use mesh_model::route::{Fault, FaultKind, HostMatch, Ratio};
use proptest::prelude::*;

use super::*;
use crate::index::Watched;
use crate::index::authz::MESH_NAMESPACE;
use crate::index::object::{EgressPolicy, TrafficLimits, TrafficPolicy, ZonePreference};

/// A small world in which everything can refer to everything.
fn object() -> impl Strategy<Value = Object> {
    let small = 0..3u8;
    prop_oneof![
        (0..2u8, any::<bool>()).prop_map(|(ports, _)| Object::Namespace(Namespace {
            name: "shop".into(),
            opaque_ports: (ports == 1).then(|| PortSet(vec![80..=80, 8080..=8080])),
            ..Namespace::default()
        })),
        (small.clone(), 1..3u8, 0..5u8).prop_map(|(name, host, protocol)| {
            use AppProtocol::{Grpc, Http1, Http2, Opaque, Unknown};
            let protocol = [Unknown, Http1, Http2, Grpc, Opaque][usize::from(protocol)];
            let of = service(&format!("s{name}"), &format!("10.0.0.{host}"));
            Object::Service(with_protocol(of, protocol))
        }),
        (small.clone(), 1..4u8, any::<[bool; 3]>()).prop_map(
            |(name, host, [ready, meshed, out])| {
                let of = pod(&format!("p{name}"), &format!("127.0.0.{host}"));
                Object::Pod(Pod {
                    node: meshed.then(|| "n".into()),
                    ready,
                    terminating: out,
                    proxy: meshed.then(|| "0.1.0".into()),
                    zone: (meshed && out).then(|| "b".into()),
                    ..of
                })
            }
        ),
        (small.clone(), small.clone(), small.clone(), any::<[bool; 2]>()).prop_map(
            |(service, a, b, [zoned, hinted])| {
                let (a, b) = (format!("p{a}"), format!("p{b}"));
                let pods = [(a.as_str(), "127.0.0.1"), (b.as_str(), "127.0.0.2")];
                let mut slice = slice(&format!("s{service}"), &pods);
                for (address, zone) in slice.addresses.iter_mut().zip(["a", "b"]) {
                    address.zone = zoned.then(|| zone.into());
                    address.node = Some("n".into());
                    address.hints = if hinted { vec![zone.into()] } else { Vec::new() };
                }
                Object::EndpointSlice(slice)
            }
        ),
        (small.clone(), small.clone(), 0..3u8).prop_map(|(name, of, target)| {
            let of_route = |kind, name: &str| PolicyTarget::Route {
                kind,
                name: format!("{name}{of}"),
                rule: None,
            };
            let (target, zones) = match target {
                0 => {
                    let target = PolicyTarget::Service { name: format!("s{of}"), port: None };
                    (target, Some(ZonePreference::Require))
                }
                1 => (of_route(Kind::HttpRoute, "r"), None),
                _ => (of_route(Kind::GrpcRoute, "g"), None),
            };
            Object::TrafficPolicy(TrafficPolicy {
                name: shop(&format!("t{name}")),
                created: None,
                target,
                balancing: None,
                breaker: None,
                limits: TrafficLimits::default(),
                retry_budget: None,
                retry: None,
                zones,
                faults: vec![Fault {
                    meta: mesh_model::Meta::Default(format!("t{name}")),
                    headers: Vec::new(),
                    ratio: Ratio { numerator: 1, denominator: 2 },
                    kind: FaultKind::Delay(std::time::Duration::from_secs(1)),
                    until: None,
                }],
            })
        }),
        (small.clone(), small.clone(), small.clone(), any::<bool>()).prop_map(
            |(name, parent, backend, foreign)| {
                let namespace = if foreign { "bank" } else { "shop" };
                let name = Name::new(namespace, format!("r{name}"));
                let mut route =
                    http_route(name, &format!("s{parent}"), &[(&format!("s{backend}"), 1)]);
                let gateway = shop(&format!("e{parent}"));
                route.head.gateways = vec![GatewayRef { gateway, ..GatewayRef::default() }];
                Object::HttpRoute(route)
            }
        ),
        (small.clone(), small.clone(), 0..4u8).prop_map(|(name, of, target)| {
            let name_of = |kind: &str| format!("{kind}{of}");
            let target = match target {
                0 => PolicyTarget::Namespace,
                1 => PolicyTarget::Service { name: name_of("s"), port: None },
                2 => PolicyTarget::Route { kind: Kind::HttpRoute, name: name_of("r"), rule: None },
                _ => PolicyTarget::Route { kind: Kind::GrpcRoute, name: name_of("g"), rule: None },
            };
            Object::AuthorizationPolicy(AuthorizationPolicy {
                name: shop(&format!("a{name}")),
                target,
                action: Action::Allow,
                from: Vec::new(),
                to: Vec::new(),
            })
        }),
        (small.clone(), any::<[bool; 2]>()).prop_map(|(name, [wide, denies])| {
            let target = match wide {
                true => PolicyTarget::Namespace,
                false => PolicyTarget::Pods { labels: Labels::new(), port: None },
            };
            Object::PortPolicy(PortPolicy {
                name: shop(&format!("o{name}")),
                created: None,
                target,
                default_access: denies.then_some(DefaultAccess::Deny),
                protocol: None,
                rate_limit: None,
                concurrency: Some(name.into()),
                faults: Vec::new(),
            })
        }),
        (small.clone(), any::<[bool; 2]>()).prop_map(|(name, [of_mesh, allows])| {
            let namespace = if of_mesh { MESH_NAMESPACE } else { "shop" };
            let default = if allows { EgressAction::Allow } else { EgressAction::Deny };
            let name = Name::new(namespace, format!("l{name}"));
            Object::EgressPolicy(EgressPolicy { name, default: Some(default), rules: Vec::new() })
        }),
        (small.clone(), 80..82u16, any::<[bool; 3]>()).prop_map(
            |(name, port, [wide, open, ours])| {
                let host = (!wide).then(|| HostMatch::Exact(format!("h{name}.test")));
                let listener = Listener {
                    name: "http".into(),
                    port,
                    host,
                    protocol: ListenerProtocol::Http,
                    certificates: Vec::new(),
                    namespaces: match open {
                        true => AllowedNamespaces::All,
                        false => AllowedNamespaces::Same,
                    },
                    kinds: vec![Kind::HttpRoute],
                    foreign_kinds: Vec::new(),
                };
                Object::Gateway(Gateway {
                    name: shop(&format!("e{name}")),
                    created: None,
                    class: if ours { GATEWAY_CLASS } else { "other" }.into(),
                    listeners: vec![listener],
                })
            }
        ),
        (small.clone(), small).prop_map(|(name, parent)| {
            let head = http_route(shop(&format!("g{name}")), &format!("s{parent}"), &[]).head;
            Object::GrpcRoute(GrpcRoute { head, ..GrpcRoute::default() })
        }),
    ]
}

/// What can be asked of an index, as text that compares.
fn everything(index: &Index) -> Vec<String> {
    let objects = index.objects();
    let mut all = vec![format!("{:?}", objects.gateway_config())];
    all.extend(["shop", "bank"].map(|of| format!("{:?}", objects.egress_rules(of))));
    for n in 0..3 {
        let (service, pod) = (shop(&format!("s{n}")), shop(&format!("p{n}")));
        for client in ["shop", "bank"] {
            all.push(format!("{:?}", objects.outbound_policy(&service, 8080, client)));
        }
        all.push(format!("{:?}", objects.endpoints(&service, 8080)));
        all.push(format!("{:?}", objects.endpoints_from(&service, 8080, Some("a"))));
        all.push(format!("{:?}", objects.backend_extension(&service, 8080)));
        all.push(format!("{:?}", objects.zone_of(&pod)));
        all.push(format!("{:?}", objects.server_policy(&pod, 80)));
        all.push(format!("{:?}", objects.port_extension(&pod, 80)));
        all.push(format!("{:?}", objects.pods_of_service(&service)));
        for ip in ["10.0.0.", "127.0.0."] {
            let address = addr(&format!("{ip}{}:8080", n + 1));
            all.push(format!("{:?}", objects.address_profile(address)));
        }
    }
    all
}

fn told<T: std::fmt::Debug>(watched: Option<Watched<T>>) -> String {
    // A watch that ended is the same as nothing to watch.
    let live = watched.filter(|watched| watched.has_changed().is_ok());
    format!("{:?}", live.map(|watched| Arc::clone(&watched.borrow())))
}

proptest! {
    #[test]
    fn the_order_of_events_does_not_matter(
        objects in proptest::collection::vec(object(), 1..12),
        others in proptest::collection::vec(object(), 0..6),
        order in any::<u64>(),
    ) {
        // The last one of each key counts.
        let mut last: Vec<Object> = Vec::new();
        for object in objects {
            last.retain(|have| have.key() != object.key());
            last.push(object);
        }
        let straight = index(last.clone());

        // The same in another order, with detours.
        let mut crooked = Index::default();
        for object in others {
            crooked.apply(object);
        }
        let mut shuffled = last.clone();
        let mut seed = order;
        for i in (1..shuffled.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let stale: Vec<ObjectKey> = {
            let objects = crooked.objects();
            let services = objects.services().map(|o| ObjectKey { kind: Kind::Service, name: o.name.clone() });
            let pods = objects.pods().map(|o| ObjectKey { kind: Kind::Pod, name: o.name.clone() });
            let http = objects.http_routes().map(|o| ObjectKey { kind: Kind::HttpRoute, name: o.head.name.clone() });
            let grpc = objects.grpc_routes().map(|o| ObjectKey { kind: Kind::GrpcRoute, name: o.head.name.clone() });
            let slices = (0..3).map(|n| ObjectKey { kind: Kind::EndpointSlice, name: shop(&format!("s{n}.80")) });
            let ns = [ObjectKey { kind: Kind::Namespace, name: Name::new("", "shop") }];
            let policies = (0..3).flat_map(|n| {
                let key = |kind, name: &str| ObjectKey { kind, name: shop(&format!("{name}{n}")) };
                let egress = [MESH_NAMESPACE, "shop"].map(|of| ObjectKey {
                    kind: Kind::EgressPolicy,
                    name: Name::new(of, format!("l{n}")),
                });
                [
                    key(Kind::AuthorizationPolicy, "a"),
                    key(Kind::BackendTrafficPolicy, "t"),
                    key(Kind::ServerPolicy, "o"),
                ].into_iter().chain(egress)
            });
            let gateways = (0..3).map(|n| ObjectKey { kind: Kind::Gateway, name: shop(&format!("e{n}")) });
            services.chain(policies).chain(gateways).chain(pods).chain(http).chain(grpc).chain(slices).chain(ns).collect()
        };
        shuffled.into_iter().for_each(|object| crooked.apply(object));
        for key in stale.into_iter().filter(|key| last.iter().all(|object| object.key() != *key)) {
            crooked.delete(&key);
        }
        prop_assert_eq!(everything(&straight), everything(&crooked));
    }

    #[test]
    fn watchers_see_what_a_fresh_look_would(
        before in proptest::collection::vec(object(), 0..8),
        after in proptest::collection::vec((object(), any::<bool>()), 1..8),
    ) {
        let mut index = index(before);
        let names: Vec<(Name, Name)> =
            (0..3).map(|n| (shop(&format!("s{n}")), shop(&format!("p{n}")))).collect();
        let addresses: Vec<SocketAddr> = ["10.0.0.1", "10.0.0.2", "127.0.0.1", "127.0.0.2", "127.0.0.3"]
            .map(|text| SocketAddr::new(ip(text), 8080))
            .into();
        let watches: Vec<_> = names.iter().map(|(service, pod)| (
            index.watch_outbound(service, 8080, "shop"),
            index.watch_outbound(service, 8080, "bank"),
            index.watch_endpoints(service, 8080, &Some("a".into())),
            index.watch_service_profile(service, 8080),
            index.watch_server(pod, 80),
        )).collect();
        let gateway = index.watch_gateway();
        let egress = ["shop", "bank"].map(|of| (of, index.watch_egress(of)));
        let backends: Vec<_> = names.iter().map(|(service, _)| index.watch_backend(service, 8080)).collect();
        let zones: Vec<_> = names.iter().map(|(_, pod)| index.watch_zone(pod)).collect();
        let authz: Vec<_> = names.iter().map(|(_, pod)| index.watch_port(pod, 80)).collect();
        let profiles: Vec<_> = addresses.iter().map(|a| index.watch_address_profile(*a)).collect();
        for (object, delete) in after {
            let key = object.key();
            index.apply(object);
            if delete {
                index.delete(&key);
            }
        }
        for ((service, pod), (shop_policy, bank_policy, endpoints, profile, server)) in names.iter().zip(watches) {
            let objects = index.objects();
            let now = |client| objects.outbound_policy(service, 8080, client).map(Arc::new);
            // One that was not there cannot be watched; one that came back has new watchers.
            let ended = |watched: &Option<Watched<OutboundPolicy>>| {
                watched.as_ref().is_none_or(|w| w.has_changed().is_err())
            };
            if !ended(&shop_policy) {
                prop_assert_eq!(told(shop_policy), format!("{:?}", now("shop")));
                prop_assert_eq!(told(bank_policy), format!("{:?}", now("bank")));
                let of_zone = objects.endpoints_from(service, 8080, Some("a"));
                prop_assert_eq!(told(endpoints), format!("{of_zone:?}"));
                prop_assert_eq!(told(profile), format!("{:?}", objects.service_profile(service, 8080)));
            }
            prop_assert_eq!(told(Some(server)), format!("{:?}", Some(objects.server_policy(pod, 80))));
        }
        prop_assert_eq!(told(Some(gateway)), format!("{:?}", Some(index.objects().gateway_config())));
        for (of, rules) in egress {
            prop_assert_eq!(told(Some(rules)), format!("{:?}", Some(index.objects().egress_rules(of))));
        }
        for ((service, _), backend) in names.iter().zip(backends) {
            prop_assert_eq!(told(Some(backend)), format!("{:?}", Some(index.objects().backend_extension(service, 8080))));
        }
        for ((_, pod), authz) in names.iter().zip(authz) {
            prop_assert_eq!(told(Some(authz)), format!("{:?}", Some(index.objects().port_extension(pod, 80))));
        }
        for ((_, pod), zone) in names.iter().zip(zones) {
            let zone = zone.borrow().clone();
            prop_assert_eq!(zone.as_deref(), index.objects().zone_of(pod));
        }
        for (address, profile) in addresses.into_iter().zip(profiles) {
            prop_assert_eq!(told(Some(profile)), format!("{:?}", Some(index.objects().address_profile(address))));
        }
    }
}
