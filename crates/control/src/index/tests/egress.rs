//! What EgressPolicies make of what leaves.

use mesh_model::Meta;
use mesh_model::egress::{Departure, EgressAction, EgressRule, HostName};
use mesh_model::meta::ResourceRef;
use mesh_model::route::HostMatch;

use proptest::prelude::*;

use super::*;
use crate::index::authz::MESH_NAMESPACE;
use crate::index::object::{EgressPolicy, policy_ref};

use EgressAction::{Allow, Deny};

fn policy(
    namespace: &str,
    name: &str,
    default: Option<EgressAction>,
    rules: &[(EgressAction, &str)],
) -> EgressPolicy {
    let name = Name::new(namespace, name);
    let rule = |(action, host): &(EgressAction, &str)| EgressRule {
        meta: Meta::Resource(ResourceRef {
            section: (*host).into(),
            ..policy_ref(Kind::EgressPolicy, &name)
        }),
        action: *action,
        hosts: vec![HostMatch::parse(host).unwrap()],
        networks: Vec::new(),
        ports: Vec::new(),
    };
    EgressPolicy { rules: rules.iter().map(rule).collect(), default, name: name.clone() }
}

fn index(policies: impl IntoIterator<Item = EgressPolicy>) -> Index {
    let mut index = Index::default();
    policies.into_iter().for_each(|policy| index.apply(Object::EgressPolicy(policy)));
    index
}

fn decided(index: &Index, namespace: &str, host: &str) -> (bool, String) {
    let rules = index.objects().egress_rules(namespace);
    let names = [HostName::new(host).unwrap()];
    let verdict = rules.decide(Departure { names: &names, ip: None, port: 443 });
    (verdict.allowed, verdict.by.to_string())
}

#[test]
fn without_policies_everything_may_leave() {
    assert_eq!(decided(&index([]), "shop", "a.test"), (true, "default/egress".into()));
}

#[test]
fn the_namespace_speaks_before_the_mesh_except_to_what_is_denied() {
    let index = index([
        policy(MESH_NAMESPACE, "mesh", Some(Deny), &[(Allow, "base.test"), (Deny, "bad.test")]),
        policy("shop", "web", None, &[(Allow, "a.test"), (Allow, "bad.test")]),
        policy("open", "all", Some(Allow), &[(Deny, "base.test")]),
    ]);
    let by = |text: &str| text.to_owned();
    for (namespace, host, expected) in [
        ("shop", "a.test", (true, by("EgressPolicy/shop/web#a.test"))),
        ("shop", "b.test", (false, by("EgressPolicy/mesh-system/mesh#default"))),
        ("shop", "base.test", (true, by("EgressPolicy/mesh-system/mesh#base.test"))),
        ("shop", "bad.test", (false, by("EgressPolicy/mesh-system/mesh#bad.test"))),
        ("open", "b.test", (true, by("EgressPolicy/open/all#default"))),
        ("open", "base.test", (false, by("EgressPolicy/open/all#base.test"))),
        ("open", "bad.test", (false, by("EgressPolicy/mesh-system/mesh#bad.test"))),
        ("bank", "a.test", (false, by("EgressPolicy/mesh-system/mesh#default"))),
        (MESH_NAMESPACE, "base.test", (true, by("EgressPolicy/mesh-system/mesh#base.test"))),
    ] {
        assert_eq!(decided(&index, namespace, host), expected, "{namespace} {host}");
    }
}

#[test]
fn of_two_defaults_the_stricter_counts() {
    let index =
        index([policy("shop", "a", Some(Allow), &[]), policy("shop", "b", Some(Deny), &[])]);
    let expected = (false, "EgressPolicy/shop/b#default".to_owned());
    assert_eq!(decided(&index, "shop", "a.test"), expected);
}

#[test]
fn changes_are_told_to_those_concerned() {
    let mut index = index([]);
    let mut shop = index.watch_egress("shop");
    let mut bank = index.watch_egress("bank");
    shop.borrow_and_update();
    bank.borrow_and_update();
    index.apply(Object::EgressPolicy(policy("shop", "web", Some(Deny), &[])));
    assert!(shop.has_changed().unwrap());
    assert!(!bank.has_changed().unwrap());
    assert_eq!(shop.borrow_and_update().default.action, Deny);

    index.apply(Object::EgressPolicy(policy(MESH_NAMESPACE, "mesh", Some(Deny), &[])));
    assert!(bank.has_changed().unwrap());
    assert!(!shop.has_changed().unwrap(), "its own default goes before");

    let key = ObjectKey { kind: Kind::EgressPolicy, name: Name::new("shop", "web") };
    index.delete(&key);
    let now = shop.borrow_and_update().default.meta.to_string();
    assert_eq!(now, "EgressPolicy/mesh-system/mesh#default");
}

#[test]
fn more_than_is_told_is_denied() {
    let rule = |n: usize| EgressRule {
        meta: Meta::Default(format!("item {n}")),
        action: Allow,
        hosts: Vec::new(),
        networks: Vec::new(),
        ports: vec![443],
    };
    let of = |name: &str, items: usize| EgressPolicy {
        rules: (0..items).map(rule).collect(),
        ..policy("shop", name, Some(Allow), &[])
    };
    let mesh = policy(MESH_NAMESPACE, "mesh", None, &[(Deny, "bad.test")]);
    let mut index = index([of("many", 999), mesh]);
    let denied = |by: &str| (false, by.to_owned());
    let by_mesh = denied("EgressPolicy/mesh-system/mesh#bad.test");
    assert_eq!(decided(&index, "shop", "bad.test"), by_mesh);
    assert_eq!(decided(&index, "shop", "a.test"), (true, "default/item 0".into()));

    index.apply(Object::EgressPolicy(of("more", 1)));
    assert_eq!(decided(&index, "shop", "a.test"), denied("default/too-many-egress-rules"));
    assert_eq!(decided(&index, "bank", "bad.test"), by_mesh);
    assert_eq!(decided(&index, "bank", "a.test"), (true, "default/egress".into()));
    let policy = for_others(&index, "shop", "192.0.2.1:443").unwrap();
    assert!(!told(&policy, Some("a.test"), true).0);

    let parts = EgressRule { ports: (1..=9_003).collect(), ..rule(0) };
    index.apply(Object::EgressPolicy(EgressPolicy { rules: vec![parts], ..of("more", 0) }));
    assert!(!decided(&index, "shop", "a.test").0, "10 001 ports, and a host");
}

/// What a proxy is told that knows no egress rules.
fn for_others(index: &Index, namespace: &str, to: &str) -> Option<OutboundPolicy> {
    let (objects, to) = (index.objects(), addr(to));
    let opaque = objects.address_profile(to).opaque;
    let rules = objects.egress_rules(namespace);
    objects.is_outside(to.ip()).then(|| crate::index::egress_for_others(&rules, to, opaque))?
}

/// What a linkerd2 proxy makes of its policy: the most specific host wins, and a filter fails. Where it is
/// told of TLS it closes what names no host.
fn told(policy: &OutboundPolicy, host: Option<&str>, tls: bool) -> (bool, String) {
    use mesh_model::route::Filter;
    let best = |hosts: &[HostMatch]| match (hosts, host) {
        ([], _) => Some((0, 0)),
        (_, None) => None,
        (hosts, Some(host)) => hosts.iter().filter_map(|of| of.match_host(host)).max(),
    };
    let routes: Vec<_> = match &policy.protocol {
        Protocol::Detect { opaque, .. } if tls => {
            opaque.routes.iter().map(|r| (best(&r.snis), r.refuse.is_none(), &r.meta)).collect()
        }
        Protocol::Detect { http1, .. } => http1
            .routes
            .iter()
            .map(|r| {
                let fails = r.rules[0].filters.iter().any(|of| matches!(of, Filter::Fail(_)));
                (best(&r.hosts), !fails, &r.meta)
            })
            .collect(),
        Protocol::Tls(_) if !tls || host.is_none() => return (false, "no server name".into()),
        Protocol::Tls(tcp) | Protocol::Opaque(tcp) => {
            tcp.routes.iter().map(|r| (best(&r.snis), r.refuse.is_none(), &r.meta)).collect()
        }
        _ => panic!("{policy:?}"),
    };
    let found = routes.into_iter().filter_map(|(fits, allowed, by)| Some((fits?, allowed, by)));
    let (_, allowed, by) = found.max_by_key(|(fits, ..)| *fits).unwrap();
    (allowed, by.to_string())
}

proptest! {
    /// Other proxies decide as ours do where they can tell by name, and never let out more.
    #[test]
    fn others_are_told_the_same(
        items in proptest::collection::vec((any::<bool>(), 0..6usize, 0..3usize), 0..6),
        open in any::<bool>(),
        host in 0..7usize,
        (ip, port) in (0..2usize, 0..2usize),
        tls in any::<bool>(),
    ) {
        let hosts = ["a.test", "*.a.test", "b.a.test", "*.test", "c.b.a.test", ""];
        let networks = ["192.0.2.0/24", "198.51.100.0/24", ""];
        let mut of = policy("shop", "web", Some(if open { Allow } else { Deny }), &[]);
        of.rules = items
            .iter()
            .enumerate()
            .map(|(at, (deny, host, network))| EgressRule {
                meta: Meta::Default(format!("item {at}")),
                action: if *deny { Deny } else { Allow },
                hosts: HostMatch::parse(hosts[*host]).into_iter().collect(),
                networks: networks[*network]
                    .parse()
                    .map(|net| mesh_model::inbound::Network { net, except: Vec::new() })
                    .into_iter()
                    .collect(),
                ports: Vec::new(),
            })
            .collect();
        let index = index([of]);
        let host = ["a.test", "b.a.test", "c.b.a.test", "x.a.test", "x.test", "other", ""][host];
        let ip: IpAddr = ["192.0.2.1", "203.0.113.1"][ip].parse().unwrap();
        let port = [443, 80][port];
        let names: Vec<_> = HostName::new(host).into_iter().collect();
        let rules = index.objects().egress_rules("shop");
        let ours = rules.decide(Departure { names: &names, ip: Some(ip), port });
        let to = SocketAddr::new(ip, port).to_string();
        let Some(theirs) = for_others(&index, "shop", &to) else {
            prop_assert!(ours.allowed);
            return Ok(());
        };
        let host = Some(host).filter(|host| !host.is_empty());
        let theirs = told(&theirs, host, tls).0;
        prop_assert!(ours.allowed || !theirs, "wider");
        if port == 80 && !tls || port == 443 && tls && host.is_some() {
            prop_assert_eq!(theirs, ours.allowed);
        }
    }
}

#[test]
fn others_are_told_of_addresses_outside_of_the_mesh_only() {
    let mut index = index([policy("shop", "web", Some(Deny), &[(Allow, "a.test")])]);
    index.apply(Object::Service(service("tax", "10.0.0.1")));
    index.apply(Object::Pod(pod("web-1", "10.1.0.1")));
    let of = |namespace: &str, to: &str| for_others(&index, namespace, to);
    for known in ["10.0.0.1:443", "10.1.0.1:443", "127.0.0.1:443"] {
        assert_eq!(of("shop", known), None, "{known}");
    }
    assert_eq!(of("bank", "192.0.2.1:443"), None, "nothing is denied there");
    let https = of("shop", "192.0.2.1:443").unwrap();
    let by = |text: &str| text.to_owned();
    let default = by("EgressPolicy/shop/web#default");
    assert_eq!(told(&https, Some("a.test"), true), (true, by("EgressPolicy/shop/web#a.test")));
    assert_eq!(told(&https, Some("b.test"), true), (false, default.clone()));
    assert!(!told(&https, None, true).0);
    let http = of("shop", "192.0.2.1:80").unwrap();
    assert!(told(&http, Some("a.test"), false).0);
    assert_eq!(told(&http, None, true), (false, default.clone()), "its bytes are not told apart");
    let database = of("shop", "192.0.2.1:5432").unwrap();
    assert_eq!(told(&database, Some("a.test"), true), (false, default));
    assert!(matches!(database.protocol, Protocol::Opaque(_)));
}
