//! What proxies are told, as their own client hears it.

use futures_util::StreamExt;
use mesh_api::client::{ControlClient, UpdateStream};
use mesh_api::{Update, Workload};
use mesh_model::inbound::ServerProtocol;
use mesh_model::outbound::{Protocol, Strategy};
use mesh_model::{Destination, ResourceRef, Target};
use tonic::Code;

use super::*;

async fn client(world: &World) -> ControlClient {
    let workload = Workload { namespace: "shop".into(), pod: "web-1".into() };
    ControlClient::new(ControlClient::lazy_channel(world.addr), workload)
}

async fn heard<T: std::fmt::Debug>(stream: &mut UpdateStream<T>) -> T {
    match next(stream).await.expect("the stream ended").unwrap() {
        Update::Valid(value) => value,
        Update::Invalid(error) => panic!("{error}"),
    }
}

fn authority(text: &str) -> Target {
    Target::Authority(text.into())
}

#[tokio::test]
async fn a_policy_comes_at_once_and_follows_changes() {
    let world = World::start(1).await;
    world.apply(service("tax"));
    let client = client(&world).await;
    for target in ["tax:8080", "tax.shop:8080", "tax.shop.svc.cluster.local:8080", "10.0.0.1:8080"]
    {
        let target = target.parse().map_or_else(|_| authority(target), Target::Addr);
        let mut policies = client.watch_outbound(&target).await.unwrap();
        assert_eq!(heard(&mut policies).await.meta.to_string(), "Service/shop/tax:8080");
    }

    let mut policies = client.watch_outbound(&authority("tax:8080")).await.unwrap();
    assert!(matches!(heard(&mut policies).await.protocol, Protocol::Detect { .. }));
    let Object::Service(mut tax) = service("tax") else { unreachable!() };
    tax.ports[0].app_protocol = AppProtocol::Grpc;
    world.apply(Object::Service(tax));
    assert!(matches!(heard(&mut policies).await.protocol, Protocol::Grpc(_)));

    // Gone: the stream ends, and asking again says why.
    world.shared.index.write().delete(&service("tax").key());
    assert!(next(&mut policies).await.is_none());
    let status = client.watch_outbound(&authority("tax:8080")).await.map(drop).unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "Service shop/tax does not exist")
    );
}

#[tokio::test]
async fn unknown_is_not_found_and_nonsense_is_invalid() {
    let world = World::start(1).await;
    world.apply(service("tax"));
    let client = client(&world).await;
    let code = async |target: Target| client.watch_outbound(&target).await.map(drop).unwrap_err();
    let missing_port = code(authority("tax")).await;
    assert_eq!(missing_port.code(), Code::NotFound);
    assert_eq!(missing_port.message(), "Service shop/tax has no port 80; it has 8080");
    assert_eq!(code(authority("www.example.com:80")).await.code(), Code::NotFound);
    assert_eq!(code(Target::Addr("192.0.2.1:80".parse().unwrap())).await.code(), Code::NotFound);
    assert_eq!(
        client.watch_destination("tax:http").await.map(drop).unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        client.watch_destination("other:80").await.map(drop).unwrap_err().code(),
        Code::NotFound
    );
}

#[tokio::test]
async fn endpoints_come_as_changes_and_the_end_is_said() {
    let world = World::start(1).await;
    world.apply(service("tax"));
    world.apply(Object::Pod(pod("tax-1", "127.1.0.1")));
    world.apply(Object::Pod(pod("tax-2", "127.1.0.2")));
    let client = client(&world).await;
    let path = "tax.shop.svc.cluster.local:8080";
    let mut updates = client.watch_destination(path).await.unwrap();
    assert_eq!(heard(&mut updates).await, Destination::NoEndpoints { exists: true });

    let addresses = |update: Destination| match update {
        Destination::Add { endpoints, .. } => {
            endpoints.into_iter().map(|e| e.addr.to_string()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    world.apply(slice("tax", &[("tax-1", "127.1.0.1")]));
    assert_eq!(addresses(heard(&mut updates).await), ["127.1.0.1:8080"]);
    world.apply(slice("tax", &[("tax-1", "127.1.0.1"), ("tax-2", "127.1.0.2")]));
    assert_eq!(addresses(heard(&mut updates).await), ["127.1.0.2:8080"], "only the new one");
    world.apply(slice("tax", &[("tax-2", "127.1.0.2")]));
    assert_eq!(
        heard(&mut updates).await,
        Destination::Remove(vec!["127.1.0.1:8080".parse().unwrap()])
    );

    world.shared.index.write().delete(&service("tax").key());
    assert_eq!(heard(&mut updates).await, Destination::NoEndpoints { exists: false });
    assert!(next(&mut updates).await.is_none());
}

#[tokio::test]
async fn profiles_tell_services_pods_and_nobody_apart() {
    let world = World::start(1).await;
    world.apply(service("tax"));
    world.apply(Object::Pod(pod("tax-1", "127.1.0.1")));
    let client = client(&world).await;
    let profile = async |text: &str| {
        let target = text.parse().map_or_else(|_| authority(text), Target::Addr);
        heard(&mut client.watch_profile(&target).await.unwrap()).await
    };
    let name = Some("tax.shop.svc.cluster.local:8080".to_owned());
    assert_eq!(profile("10.0.0.1:8080").await.name, name);
    assert_eq!(profile("tax:8080").await.name, name);
    assert_eq!(profile("127.1.0.1:80").await.endpoint.unwrap().addr.port(), 80);
    let nobody = profile("192.0.2.1:80").await;
    assert_eq!((nobody.name, nobody.endpoint), (None, None));
}

#[tokio::test]
async fn a_proxy_may_ask_for_its_ports_before_its_pod_is_known() {
    let world = World::start(1).await;
    let mut policies = client(&world).await.watch_port(8080).await.unwrap();
    assert!(matches!(heard(&mut policies).await.protocol, ServerProtocol::Detect { .. }));
    let opaque_ports = Some(PortSet(vec![8080..=8080]));
    world.apply(Object::Pod(Pod { opaque_ports, ..pod("web-1", "127.1.0.9") }));
    assert_eq!(heard(&mut policies).await.protocol, ServerProtocol::Opaque);
}

#[tokio::test]
async fn balancers_are_told_by_our_extension() {
    let world = World::start(1).await;
    let client = client(&world).await;
    let key = ResourceRef::service("shop", "tax", 8080);
    let mut extensions = client.watch_backend(&key).await.unwrap();
    assert_eq!(heard(&mut extensions).await.strategy, Strategy::PeakEwma);
    let Object::Service(mut tax) = service("tax") else { unreachable!() };
    tax.balancer = Balancer {
        strategy: Strategy::RingHash,
        hash_header: Some(http::HeaderName::from_static("x-user")),
    };
    world.apply(Object::Service(tax));
    let extension = heard(&mut extensions).await;
    assert_eq!(extension.strategy, Strategy::RingHash);
    assert_eq!(extension.hash_header.unwrap(), "x-user");
}

/// Everything the default world leads to must be sendable: `mesh-api` withholds what is not.
#[tokio::test]
async fn everything_can_be_sent() {
    let world = World::start(1).await;
    let protocols = [
        AppProtocol::Unknown,
        AppProtocol::Http1,
        AppProtocol::Http2,
        AppProtocol::Grpc,
        AppProtocol::Opaque,
    ];
    let client = client(&world).await;
    world.apply(slice("tax", &[("web-1", "127.1.0.1")]));
    for app_protocol in protocols {
        let Object::Service(mut tax) = service("tax") else { unreachable!() };
        tax.ports[0].app_protocol = app_protocol;
        tax.breaker = (app_protocol == AppProtocol::Http2).then_some(None);
        world.apply(Object::Service(tax));
        heard(&mut client.watch_outbound(&authority("tax:8080")).await.unwrap()).await;
        heard(&mut client.watch_port(8080).await.unwrap()).await;
    }
    // A route with nothing usable in it.
    let parent = ServiceRef { service: Name::new("shop", "tax"), ..ServiceRef::default() };
    let head = RouteHead {
        name: Name::new("shop", "r"),
        created: None,
        parents: vec![parent],
        ..RouteHead::default()
    };
    let backend = |target| BackendRef { target, weight: 1, filters: Vec::new() };
    let gone = BackendTarget::Service { service: Name::new("shop", "gone"), port: 1 };
    let backends = vec![backend(gone), backend(BackendTarget::Unusable("no".into()))];
    let rules = [Vec::new(), backends.clone()];
    let rules = rules.map(|backends| RouteRule { backends, ..RouteRule::default() }).into();
    world.apply(service("tax"));
    world.apply(Object::HttpRoute(HttpRoute { head: head.clone(), hosts: Vec::new(), rules }));
    world.apply(Object::TcpRoute(TcpRoute { head, backends }));
    let mut policies = client.watch_outbound(&authority("tax:8080")).await.unwrap();
    assert!(matches!(heard(&mut policies).await.protocol, Protocol::Detect { .. }));
    assert!(policies.next().now_or_never_is_none());
}

/// Whether nothing has come yet.
trait Quiet {
    fn now_or_never_is_none(self) -> bool;
}

impl<F: Future + Unpin> Quiet for F {
    fn now_or_never_is_none(self) -> bool {
        futures_util::FutureExt::now_or_never(self).is_none()
    }
}

#[tokio::test]
async fn what_leaves_is_told_to_each_in_its_words() {
    use mesh_model::egress::EgressAction;

    let world = World::start(1).await;
    let client = client(&world).await;
    let mut rules = client.watch_egress().await.unwrap();
    assert_eq!(heard(&mut rules).await.default.action, EgressAction::Allow);
    let outside = Target::Addr("192.0.2.1:443".parse().unwrap());
    let refused = async || client.watch_outbound(&outside).await.map(drop).unwrap_err().code();
    assert_eq!(refused().await, Code::NotFound, "nothing has to be said");

    let name = Name::new("shop", "web");
    let policy = |default| EgressPolicy { name: name.clone(), default, rules: Vec::new() };
    world.apply(Object::EgressPolicy(policy(Some(EgressAction::Deny))));
    assert_eq!(heard(&mut rules).await.default.action, EgressAction::Deny);
    // Ours know the rules: to them it is still nobody.
    let whole = client.watch_whole_outbound(&outside).await.map(drop).unwrap_err();
    assert_eq!(whole.code(), Code::NotFound);
    let mut policies = client.watch_outbound(&outside).await.unwrap();
    let Protocol::Detect { opaque, .. } = heard(&mut policies).await.protocol else { panic!() };
    assert!(opaque.routes[0].refuse.is_some(), "{opaque:?}");
    // An address that comes to be a pod's is no longer one of others.
    world.apply(Object::Pod(pod("new-1", "192.0.2.1")));
    assert!(next(&mut policies).await.is_none());
    assert_eq!(refused().await, Code::NotFound);

    let elsewhere = Target::Addr("192.0.2.2:80".parse().unwrap());
    let mut policies = client.watch_outbound(&elsewhere).await.unwrap();
    assert!(matches!(heard(&mut policies).await.protocol, Protocol::Detect { .. }));
    world.shared.index.write().delete(&ObjectKey { kind: Kind::EgressPolicy, name });
    assert!(next(&mut policies).await.is_none(), "there is nothing to be said any more");
}
