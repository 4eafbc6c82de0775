//! Which endpoints clients of a zone are told.

use mesh_model::outbound::RetryBudget;

use super::*;
use crate::index::Zone;
use crate::index::object::{
    PolicyTarget, PortRef, TrafficLimits, TrafficPolicy, ZonePreference, ZonePreference::*,
};

/// A ready pod in a zone, with hints for these zones.
fn address(number: u8, zone: &str, hints: &[&str]) -> EndpointAddress {
    EndpointAddress {
        ip: IpAddr::from([10, 1, 0, number]),
        pod: Some(format!("web-{number}")),
        ready: true,
        draining: false,
        zone: Some(zone.into()),
        node: Some(format!("node-{zone}")),
        hints: hints.iter().map(|zone| (*zone).to_owned()).collect(),
    }
}

fn slice_of(addresses: Vec<EndpointAddress>) -> Object {
    Object::EndpointSlice(EndpointSlice { addresses, ..slice("web", &[]) })
}

fn web(addresses: Vec<EndpointAddress>) -> Index {
    let service = Object::Service(service("web", "10.0.0.1"));
    let pods = (1..=3)
        .map(|number| Object::Pod(pod(&format!("web-{number}"), &format!("10.1.0.{number}"))));
    index(pods.chain([service, slice_of(addresses)]).collect())
}

fn policy(zones: ZonePreference) -> Object {
    Object::TrafficPolicy(TrafficPolicy {
        name: shop("zones"),
        created: Some(2),
        target: PolicyTarget::Service { name: "web".into(), port: Some(PortRef::Number(8080)) },
        balancing: None,
        breaker: None,
        limits: TrafficLimits::default(),
        retry_budget: None,
        retry: None,
        zones: Some(zones),
        faults: Vec::new(),
    })
}

fn hosts(set: &crate::index::endpoints::EndpointSet) -> Vec<u8> {
    let last = |addr: &SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    set.endpoints.keys().map(last).collect()
}

fn from(index: &Index, zone: Option<&str>) -> Vec<u8> {
    hosts(&index.objects().endpoints_from(&shop("web"), 8080, zone).unwrap())
}

#[test]
fn hints_count_as_kube_proxy_counts_them() {
    let hinted = || vec![address(1, "a", &["a"]), address(2, "b", &["b", "c"])];
    let index = web(hinted());
    assert_eq!(from(&index, Some("a")), [1]);
    assert_eq!(from(&index, Some("b")), [2]);
    assert_eq!(from(&index, Some("c")), [2]);
    assert_eq!(from(&index, Some("d")), [1, 2], "none fits");
    assert_eq!(from(&index, None), [1, 2], "nobody knows where the client is");
    assert_eq!(hosts(&index.objects().endpoints(&shop("web"), 8080).unwrap()), [1, 2]);

    let with = |more: EndpointAddress| web(hinted().into_iter().chain([more]).collect());
    assert_eq!(from(&with(address(3, "a", &[])), Some("a")), [1, 2, 3], "one has no hints");
    let unready = EndpointAddress { ready: false, ..address(3, "a", &[]) };
    assert_eq!(from(&with(unready), Some("a")), [1], "of those that are ready all have");
    let ending = |of| EndpointAddress { ready: false, draining: true, ..of };
    let index = web(hinted().into_iter().map(ending).collect());
    assert_eq!(from(&index, Some("a")), [1, 2], "nothing is ready");
}

#[test]
fn a_policy_goes_before_hints_and_watchers_are_told() {
    let mut index = web(vec![address(1, "a", &["a"]), address(2, "b", &["b"])]);
    let zone = |zone: &str| -> Zone { Some(zone.into()) };
    let mut of_a = index.watch_endpoints(&shop("web"), 8080, &zone("a")).unwrap();
    let mut of_c = index.watch_endpoints(&shop("web"), 8080, &zone("c")).unwrap();
    let mut of_none = index.watch_endpoints(&shop("web"), 8080, &None).unwrap();
    let mut told = move || {
        [&mut of_a, &mut of_c, &mut of_none].map(|watch| hosts(&watch.borrow_and_update().clone()))
    };
    assert_eq!(told(), [vec![1], vec![1, 2], vec![1, 2]]);
    index.apply(policy(Ignore));
    assert_eq!(told(), [vec![1, 2], vec![1, 2], vec![1, 2]]);
    index.apply(policy(Require));
    assert_eq!(told(), [vec![1], vec![], vec![]]);
    index.apply(policy(Prefer));
    assert_eq!(told(), [vec![1], vec![1, 2], vec![1, 2]]);

    // The last of the zone: its clients go elsewhere, or nowhere.
    let down = EndpointAddress { ready: false, draining: true, ..address(1, "a", &["a"]) };
    index.apply(slice_of(vec![down, address(2, "b", &["b"])]));
    assert_eq!(told(), [vec![2], vec![2], vec![2]]);
    index.apply(policy(Require));
    assert_eq!(told(), [vec![1], vec![], vec![]], "what is ending is better than nothing");

    // An older policy about the same, which says nothing of zones, goes before it.
    let budget = Some(RetryBudget { percent: 1, min_per_second: 1 });
    let Object::TrafficPolicy(zones) = policy(Require) else { panic!() };
    let older = TrafficPolicy {
        name: shop("older"),
        created: Some(1),
        retry_budget: budget,
        zones: None,
        ..zones
    };
    index.apply(Object::TrafficPolicy(older));
    assert_eq!(told(), [vec![2], vec![2], vec![2]]);
}

#[test]
fn the_zone_of_a_pod_is_told_by_itself_its_slice_or_its_node() {
    let on = |node: &str, zone: Option<&str>| Pod {
        node: Some(node.into()),
        zone: zone.map(str::to_owned),
        ..pod("client", "10.2.0.1")
    };
    let mut index = Index::default();
    let mut zone = index.watch_zone(&shop("client"));
    let mut told = move || zone.borrow_and_update().clone();
    index.apply(Object::Pod(on("node-a", None)));
    assert_eq!(told(), None);
    // Another pod of its node is an endpoint.
    index.apply(slice_of(vec![address(1, "a", &[]), address(2, "b", &[])]));
    assert_eq!(told().as_deref(), Some("a"));
    index.apply(Object::Pod(on("node-b", None)));
    assert_eq!(told().as_deref(), Some("b"));
    // It is one itself.
    let own = EndpointAddress { pod: Some("client".into()), node: None, ..address(3, "c", &[]) };
    let own = EndpointSlice { addresses: vec![own], ..slice("own", &[]) };
    index.apply(Object::EndpointSlice(own));
    assert_eq!(told().as_deref(), Some("c"));
    index.apply(Object::Pod(on("node-b", Some("d"))));
    assert_eq!(told().as_deref(), Some("d"));

    index.apply(Object::Pod(on("node-b", None)));
    index.delete(&ObjectKey { kind: Kind::EndpointSlice, name: shop("own.80") });
    assert_eq!(told().as_deref(), Some("b"));
    index.delete(&ObjectKey { kind: Kind::EndpointSlice, name: shop("web.80") });
    assert_eq!(told(), None, "nobody says so any more");
}
