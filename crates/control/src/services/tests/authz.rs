//! What `meshctl authz` is told.

use mesh_api::Wire;
use mesh_model::authz::{Action, DefaultAccess, PortAuthz};

use super::*;
use crate::index::object::{AuthorizationPolicy, PolicyTarget};

async fn world() -> World {
    let world = World::start(1).await;
    world.apply(service("tax"));
    world.apply(Object::Pod(pod("tax-1", "127.77.9.1")));
    let closed = Some(DefaultAccess::Deny);
    world.apply(Object::Pod(Pod { default_access: closed, ..pod("tax-2", "127.77.9.2") }));
    world.apply(Object::Pod(pod("web-1", "127.77.9.3")));
    world.apply(slice("tax", &[("tax-1", "127.77.9.1"), ("tax-2", "127.77.9.2")]));
    world.apply(Object::AuthorizationPolicy(AuthorizationPolicy {
        name: Name::new("shop", "p"),
        target: PolicyTarget::Service { name: "tax".into(), port: None },
        action: Action::Deny,
        from: Vec::new(),
        to: Vec::new(),
    }));
    world
}

#[tokio::test]
async fn policies_and_defaults_of_a_services_ports() {
    let world = world().await;
    let rows = async |kind: &str, name: &str| {
        let selector = Selector { kind: kind.into(), name: name.into(), ..Selector::default() };
        let reply = world.client().await.authorizations(selector).await?;
        let row = |row: ext::AuthorizationRow| {
            [row.port.to_string(), row.policy, row.action, row.from, row.to].join(" ")
        };
        Ok::<_, tonic::Status>(reply.into_inner().rows.into_iter().map(row).collect::<Vec<_>>())
    };
    let of_service = rows("service", "tax").await.unwrap();
    assert_eq!(
        of_service,
        [
            "8080 AuthorizationPolicy/shop/p Deny anyone everything",
            "8080 default/all-unauthenticated all-unauthenticated  ",
            "8080 default/deny deny  ",
        ]
    );
    assert!(rows("pod", "web-1").await.unwrap().iter().all(|row| !row.contains("shop/p")));
    assert!(rows("service", "none").await.is_err());
}

#[tokio::test]
async fn a_question_gets_the_rules_and_the_client() {
    let world = world().await;
    let ask = async |client: &str, authority: &str| {
        let selector = Selector { kind: "pod".into(), name: client.into(), ..Selector::default() };
        let is_address = client.parse::<std::net::IpAddr>().is_ok();
        let request = ext::PortAuthorizationsRequest {
            client: (!is_address).then_some(selector),
            client_address: if is_address { client.into() } else { String::new() },
            authority: authority.into(),
        };
        world.client().await.port_authorizations(request).await.map(tonic::Response::into_inner)
    };
    let reply = ask("web-1", "tax.shop:8080").await.unwrap();
    let client = &reply.clients[0];
    assert_eq!((client.address.as_str(), client.pod.as_str()), ("127.77.9.3", "web-1"));
    assert_eq!(client.identity, "", "it proves none");
    let pods: Vec<_> = reply.ports.iter().map(|port| port.pod.as_str()).collect();
    assert_eq!(pods, ["tax-1", "tax-2"]);
    let authz = PortAuthz::from_proto(reply.ports[1].authorization.clone().unwrap()).unwrap();
    assert_eq!(authz.rules[0].meta.to_string(), "AuthorizationPolicy/shop/p");
    assert_eq!(authz.default.access, DefaultAccess::Deny);

    let nobody = ext::PortAuthorizationsRequest {
        authority: "tax.shop:8080".into(),
        ..ext::PortAuthorizationsRequest::default()
    };
    let reply = world.client().await.port_authorizations(nobody).await.unwrap().into_inner();
    assert_eq!((reply.clients.len(), reply.ports.len()), (0, 2));

    let reply = ask("192.0.2.1", "127.77.9.1:9999").await.unwrap();
    assert_eq!((reply.clients[0].pod.as_str(), reply.ports[0].port), ("", 9999));
    for (client, authority) in [
        ("web-1", "tax.shop:1"),
        ("web-1", "none.shop:8080"),
        ("web-1", "192.0.2.7:80"),
        ("none", "tax.shop:8080"),
        ("web-1", "tax.shop:x"),
    ] {
        assert!(ask(client, authority).await.is_err(), "{client} {authority}");
    }
}

#[tokio::test]
async fn the_clients_identity_is_that_of_its_account() {
    let world = World::with_identity(1).await;
    world.apply(service("tax"));
    world.apply(Object::Pod(pod("tax-1", "127.77.9.1")));
    world.apply(slice("tax", &[("tax-1", "127.77.9.1")]));
    world.apply(Object::Pod(pod("web-1", "127.77.9.3")));
    world.apply(Object::Pod(Pod { proxy: None, ..pod("old-1", "127.77.9.4") }));
    for (client, identity) in [
        ("127.77.9.3", "web.shop.serviceaccount.identity.mesh-system.cluster.local"),
        ("127.77.9.4", ""),
        ("192.0.2.1", ""),
    ] {
        let request = ext::PortAuthorizationsRequest {
            client_address: client.into(),
            authority: "tax.shop:8080".into(),
            ..ext::PortAuthorizationsRequest::default()
        };
        let reply = world.client().await.port_authorizations(request).await.unwrap().into_inner();
        assert_eq!(reply.clients[0].identity, identity, "{client}");
    }
}

#[tokio::test]
async fn what_was_observed_is_told_by_pod() {
    let observed = ext::ObservedReply { left_out: 3, ..ext::ObservedReply::default() };
    let (port, _tax) = fake("127.77.7.1", 0, FakeProxy { observed, ..FakeProxy::default() }).await;
    let world = World::start(port).await;
    world.apply(Object::Pod(pod("tax-1", "127.77.7.1")));
    world.apply(Object::Pod(pod("tax-2", "127.77.7.2")));
    let ask = async |name: &str| {
        let selector =
            Selector { kind: "deployment".into(), name: name.into(), ..Selector::default() };
        let request = ext::MeshObservedRequest { selector: Some(selector), window_seconds: 60 };
        world.client().await.observed(request).await.map(tonic::Response::into_inner)
    };
    let reply = ask("tax").await.unwrap();
    assert_eq!((reply.pods[0].pod.as_str(), reply.unreachable[0].pod.as_str()), ("tax-1", "tax-2"));
    assert_eq!(reply.pods[0].observed.as_ref().unwrap().left_out, 3);
    assert!(ask("none").await.is_err());
}
