//! What ServerPolicies make of ports.

use std::time::Duration;

use mesh_model::Meta;
use mesh_model::authz::DefaultAccess;
use mesh_model::inbound::{PortProtocol, Rate, RateLimit, ServerProtocol};
use mesh_model::route::{Fault, FaultKind, Ratio};

use super::*;
use crate::index::conflicts::Before;
use crate::index::object::{
    ContainerPort, Kind, ObjectKey, PolicyTarget, PortPolicy, PortRef, policy_ref,
};

fn web() -> Pod {
    let ports = [80, 81].map(|port| ContainerPort { name: format!("p{port}"), port });
    let owner = Some((Kind::Deployment, "web".to_owned()));
    Pod { owner, ports: ports.into(), ..pod("web-1", "127.0.0.1") }
}

fn policy(name: &str, created: i64, port: Option<u16>) -> PortPolicy {
    let target = PolicyTarget::Workload {
        kind: Kind::Deployment,
        name: "web".into(),
        port: port.map(PortRef::Number),
    };
    PortPolicy {
        name: shop(name),
        created: Some(created),
        target,
        default_access: None,
        protocol: None,
        rate_limit: None,
        concurrency: None,
        faults: Vec::new(),
    }
}

fn limit(name: &str, total: u32) -> Option<RateLimit> {
    Some(RateLimit {
        meta: mesh_model::Meta::Resource(policy_ref(Kind::ServerPolicy, &shop(name))),
        total: Some(Rate::per_second(total)),
        identity: None,
        overrides: Vec::new(),
        header: None,
    })
}

fn index(policies: impl IntoIterator<Item = PortPolicy>) -> Index {
    let mut index = Index::default();
    index.apply(Object::Pod(web()));
    policies.into_iter().for_each(|policy| index.apply(Object::PortPolicy(policy)));
    index
}

#[test]
fn one_port_goes_before_all_field_by_field() {
    let index = index([
        PortPolicy {
            default_access: Some(DefaultAccess::Deny),
            concurrency: Some(9),
            ..policy("all", 1, None)
        },
        PortPolicy {
            rate_limit: limit("one", 5),
            concurrency: Some(3),
            ..policy("one", 2, Some(80))
        },
    ]);
    let of = |port| index.objects().port_extension(&shop("web-1"), port);
    assert_eq!(of(80).limits.rate, limit("one", 5));
    assert_eq!(of(80).limits.concurrency.unwrap().max, 3);
    assert_eq!(of(80).authz.default.access, DefaultAccess::Deny, "it stays closed");
    assert_eq!((of(81).limits.rate, of(81).limits.concurrency.unwrap().max), (None, 9));
    assert!(index.objects().conflicts().is_empty());
}

#[test]
fn of_two_about_the_same_the_older_one_counts() {
    let younger = PortPolicy { rate_limit: limit("a", 5), ..policy("a", 2, Some(80)) };
    let older = PortPolicy { concurrency: Some(3), ..policy("b", 1, Some(80)) };
    let mut index = index([younger, older]);
    let key = |name| ObjectKey { kind: Kind::ServerPolicy, name: shop(name) };
    let limits = index.objects().port_extension(&shop("web-1"), 80).limits;
    assert_eq!((limits.rate, limits.concurrency.unwrap().max), (None, 3));
    let before = Before { policy: &shop("b"), everywhere: true };
    assert_eq!(index.objects().before(&key("a")), Some(before));
    assert_eq!(index.objects().before(&key("b")), None);

    let mut watch = index.watch_port(&shop("web-1"), 80);
    watch.mark_unchanged();
    index.delete(&key("b"));
    assert_eq!(watch.borrow_and_update().limits.rate, limit("a", 5), "and then the other");

    // The same port under its name: the same only where a pod says so.
    let PolicyTarget::Workload { kind, name, .. } = policy("c", 9, None).target else { panic!() };
    let target = PolicyTarget::Workload { kind, name, port: Some(PortRef::Name("p80".into())) };
    index.apply(Object::PortPolicy(PortPolicy {
        target,
        concurrency: Some(1),
        ..policy("c", 9, None)
    }));
    let before = Before { policy: &shop("a"), everywhere: false };
    assert_eq!(index.objects().before(&key("c")), Some(before));
}

#[test]
fn a_protocol_is_what_the_policy_says_to_both_sides() {
    let said = |protocol, limited: bool| {
        let rate_limit = limited.then(|| limit("p", 5)).flatten();
        let protocol = Some(protocol);
        let index = index([PortPolicy { protocol, rate_limit, ..policy("p", 1, Some(80)) }]);
        let pod = shop("web-1");
        let ours = index.objects().port_extension(&pod, 80);
        (ours.protocol, index.objects().server_policy(&pod, 80))
    };
    let (ours, theirs) = said(PortProtocol::Opaque, false);
    assert_eq!((ours, theirs.protocol), (PortProtocol::Opaque, ServerProtocol::Opaque));
    assert_eq!(theirs.labels["name"], "p");
    assert!(matches!(said(PortProtocol::Grpc, false).1.protocol, ServerProtocol::Grpc { .. }));
    let (ours, theirs) = said(PortProtocol::Grpc, true);
    assert_eq!(ours, PortProtocol::Grpc);
    let ServerProtocol::Http2 { limit: Some(told), .. } = theirs.protocol else { panic!() };
    assert_eq!(Some(told), limit("p", 5), "the linkerd2 API limits HTTP only");

    let mut index = index([]);
    let mut profile = index.watch_address_profile(addr("127.0.0.1:80"));
    assert!(!profile.borrow_and_update().opaque);
    let protocol = Some(PortProtocol::Opaque);
    index.apply(Object::PortPolicy(PortPolicy { protocol, ..policy("p", 1, Some(80)) }));
    assert!(profile.borrow_and_update().opaque, "those who connect are told");
}

#[test]
fn faults_are_those_of_all_policies_and_no_rivals() {
    let fault = |name: &str| Fault {
        meta: Meta::Default(name.into()),
        headers: Vec::new(),
        ratio: Ratio { numerator: 1, denominator: 2 },
        kind: FaultKind::Delay(Duration::from_millis(5)),
        until: None,
    };
    let with = |name, created, port| PortPolicy {
        faults: vec![fault(name)],
        ..policy(name, created, port)
    };
    let governs = PortPolicy { concurrency: Some(3), ..policy("c", 3, Some(80)) };
    let mut index = index([with("a", 1, Some(80)), with("b", 2, None), governs]);
    let mut watch = index.watch_port(&shop("web-1"), 80);
    let told = watch.borrow_and_update().clone();
    assert_eq!(told.faults, [fault("a"), fault("b")]);
    // That "a" is older makes it no rival: it says nothing of limits.
    assert_eq!(told.limits.concurrency.as_ref().unwrap().max, 3);
    assert!(index.objects().conflicts().is_empty());
    assert_eq!(index.objects().port_extension(&shop("web-1"), 81).faults, [fault("b")]);

    index.delete(&ObjectKey { kind: Kind::ServerPolicy, name: shop("b") });
    assert_eq!(watch.borrow_and_update().faults, [fault("a")]);
    let many = (0..10).map(|n| PortPolicy {
        faults: vec![fault("many"); 16],
        ..policy(&format!("many-{n}"), 1, None)
    });
    many.for_each(|policy| index.apply(Object::PortPolicy(policy)));
    assert_eq!(watch.borrow_and_update().faults.len(), mesh_api::limit::FAULTS);
}
