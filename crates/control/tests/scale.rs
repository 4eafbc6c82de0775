//! The index with a large cluster in it: how much memory it takes, and how long a change.

#![allow(clippy::unwrap_used, reason = "a test that meets what it does not expect ends")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use mesh_control::index::Index;
use mesh_control::index::object::{
    EndpointAddress, EndpointSlice, Kind, Name, Object, Pod, Service, ServicePort,
};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
/// Services that proxies ask about.
const WATCHED: u32 = 1_000;
const CHANGES: u32 = 2_000;

/// Of tests, which are not optimised and share the machine.
const MEMORY: u64 = 1 << 30;
const LATENCY: Duration = Duration::from_millis(100);

fn address(base: u32, number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(base + number))
}

fn name(service: u32) -> Name {
    Name::new(format!("team-{}", service % 100), format!("service-{service}"))
}

fn labels(service: u32) -> std::collections::BTreeMap<String, String> {
    let pairs = [("app", format!("service-{service}")), ("pod-template-hash", "5d4c8b7f9".into())];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

fn pod(service: u32, number: u32) -> Pod {
    let Name { namespace, name } = name(service);
    Pod {
        name: Name::new(namespace, format!("{name}-5d4c8b7f9-{number:05}")),
        ip: Some(address(0x0a10_0000, service * ENDPOINTS + number)),
        service_account: name.clone(),
        owner: Some((Kind::Deployment, name)),
        labels: labels(service),
        running: true,
        ready: true,
        proxy: Some("0.1.0".into()),
        ..Pod::default()
    }
}

fn slice(service: u32, ready: u32) -> EndpointSlice {
    let pods = (0..ENDPOINTS).map(|number| pod(service, number));
    let addresses = pods.enumerate().map(|(number, pod)| EndpointAddress {
        ip: pod.ip.unwrap(),
        pod: Some(pod.name.name),
        ready: number < ready as usize,
        draining: false,
        zone: Some("zone-a".into()),
        node: None,
        hints: Vec::new(),
    });
    let Name { namespace, name } = name(service);
    EndpointSlice {
        name: Name::new(namespace, format!("{name}-x7k2p")),
        service: name,
        ports: vec![("http".into(), 8080)],
        addresses: addresses.collect(),
    }
}

/// Bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn ten_thousand_services_and_a_hundred_thousand_endpoints() {
    let before = resident();
    let started = Instant::now();
    let mut index = Index::default();
    for service in 0..SERVICES {
        let port = ServicePort { name: "http".into(), port: 80, ..ServicePort::default() };
        index.apply(Object::Service(Service {
            name: name(service),
            labels: labels(service),
            cluster_ips: vec![address(0x0a00_0000, service)],
            ports: vec![port],
            ..Service::default()
        }));
        for number in 0..ENDPOINTS {
            index.apply(Object::Pod(pod(service, number)));
        }
        index.apply(Object::EndpointSlice(slice(service, ENDPOINTS)));
    }
    let (filled, memory) = (started.elapsed(), resident().saturating_sub(before));

    let sets: Vec<_> =
        (0..WATCHED).map(|n| index.watch_endpoints(&name(n), 80, &None).unwrap()).collect();
    let policies: Vec<_> =
        (0..WATCHED).map(|n| index.watch_outbound(&name(n), 80, "team-0").unwrap()).collect();
    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|change| {
            let service = (change * 7919) % SERVICES;
            let object = Object::EndpointSlice(slice(service, ENDPOINTS - 1 - change % 2));
            let started = Instant::now();
            index.apply(object);
            started.elapsed()
        })
        .collect();
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    let changed = sets.iter().filter(|set| set.has_changed().unwrap()).count();
    assert!(changed > 0 && policies.iter().all(|policy| !policy.has_changed().unwrap()));

    let pods = SERVICES * ENDPOINTS;
    let line = format!(
        "index with {SERVICES} Services, {pods} pods and endpoints: {} MiB, {} bytes an endpoint, \
         filled in {filled:?}; a changed slice p50 {:?}, p99 {:?}, max {:?}\n",
        memory >> 20,
        memory / u64::from(pods),
        at(50),
        at(99),
        at(100),
    );
    // Past the test runner's capturing of output; nobody is there to be told when it fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
    assert!(memory < MEMORY, "{line}");
    assert!(at(99) < LATENCY, "{line}");
}
