//! Which addresses of a service's slices are its endpoints.

use super::*;

fn address(pod: &str, pod_ip: &str, ready: bool, draining: bool) -> EndpointAddress {
    EndpointAddress {
        ip: ip(pod_ip),
        pod: Some(pod.into()),
        ready,
        draining,
        zone: None,
        node: None,
        hints: Vec::new(),
    }
}

/// The endpoints of a service with these addresses in two slices.
fn endpoints(cluster_ips: &[&str], slices: [Vec<EndpointAddress>; 2]) -> Vec<String> {
    let cluster_ips = cluster_ips.iter().map(|text| ip(text)).collect();
    let mut all = vec![Object::Service(Service { cluster_ips, ..service("web", "10.0.0.1") })];
    for (number, addresses) in slices.into_iter().enumerate() {
        let name = |address: &EndpointAddress| address.pod.clone().unwrap();
        let pods = addresses.iter().map(|at| pod(&name(at), &at.ip.to_string()));
        all.extend(pods.map(Object::Pod));
        let name = shop(&format!("web-{number}"));
        all.push(Object::EndpointSlice(EndpointSlice { name, addresses, ..slice("web", &[]) }));
    }
    let set = index(all).objects().endpoints(&shop("web"), 8080).unwrap();
    set.endpoints.keys().map(|addr| addr.ip().to_string()).collect()
}

#[test]
fn what_is_ending_is_an_endpoint_only_while_nothing_is_ready() {
    let ready = |up| {
        vec![
            address("a", "10.1.0.1", up, false),
            address("b", "10.1.0.2", false, true),
            address("c", "10.1.0.3", false, false),
        ]
    };
    assert_eq!(endpoints(&["10.0.0.1"], [ready(true), vec![]]), ["10.1.0.1"]);
    assert_eq!(endpoints(&["10.0.0.1"], [ready(false), vec![]]), ["10.1.0.2"]);
}

#[test]
fn a_pod_with_two_addresses_is_one_endpoint() {
    let slices = || {
        let both = |ip| address("both", ip, true, false);
        [
            vec![both("10.1.0.1"), address("old", "10.1.0.2", true, false)],
            vec![both("fd00::1"), address("new", "fd00::3", true, false)],
        ]
    };
    let v4_first = ["10.1.0.1", "10.1.0.2", "fd00::3"];
    assert_eq!(endpoints(&["10.0.0.1", "fd00::a"], slices()), v4_first);
    assert_eq!(endpoints(&[], slices()), v4_first);
    let v6_first = ["10.1.0.2", "fd00::1", "fd00::3"];
    assert_eq!(endpoints(&["fd00::a", "10.0.0.1"], slices()), v6_first);
}

#[test]
fn a_pod_that_is_gone_is_no_endpoint_and_one_that_comes_late_is() {
    let slice = slice("web", &[("web-1", "10.1.0.1"), ("web-2", "10.1.0.2")]);
    let mut index = index(vec![
        Object::Service(service("web", "10.0.0.1")),
        Object::Pod(pod("web-1", "10.1.0.1")),
        Object::EndpointSlice(EndpointSlice { ports: vec![(String::new(), 80)], ..slice }),
    ]);
    let mut watch = index.watch_endpoints(&shop("web"), 8080, &None).unwrap();
    let mut told = || {
        let set = watch.borrow_and_update();
        set.endpoints.keys().map(|addr| addr.ip().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(told(), ["10.1.0.1"]);
    index.apply(Object::Pod(pod("web-2", "10.1.0.2")));
    assert_eq!(told(), ["10.1.0.1", "10.1.0.2"]);
    index.delete(&Object::Pod(pod("web-1", "10.1.0.1")).key());
    assert_eq!(told(), ["10.1.0.2"]);
}
