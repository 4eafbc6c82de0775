//! Our client on our server: what a control plane says arrives, in order and at once.

use std::net::SocketAddr;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use linkerd2_proxy_api::destination::GetDestination;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::inbound::PortSpec;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::outbound::TrafficSpec;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use mesh_api::client::{ControlClient, UpdateStream};
use mesh_api::server::{ControlPlane, Refusal, control_plane_routes};
use mesh_api::{BackendExtension, Update, Workload};
use mesh_model::inbound::ServerPolicy;
use mesh_model::outbound::Strategy;
use mesh_model::{Destination, Endpoint, OutboundPolicy, Profile, ResourceRef, Target};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Code, Status};

use crate::serve::{PATIENCE, Serving};
use crate::values;

/// Knows one service, `tax.shop:80`, and what the test tells it about that.
#[derive(Clone)]
struct Fake {
    updates: watch::Receiver<Destination>,
    policies: watch::Receiver<OutboundPolicy>,
}

fn known(what: &str) -> Result<(), Refusal> {
    match what {
        "tax.shop:80" | "10.0.0.1:80" => Ok(()),
        "" | "garbage" => Err(Refusal::InvalidArgument(format!("`{what}` is no target"))),
        _ => Err(Refusal::NotFound(format!("`{what}` is unknown"))),
    }
}

impl ControlPlane for Fake {
    fn destination(
        &self,
        path: &str,
        _: &Workload,
    ) -> Result<BoxStream<'static, Destination>, Refusal> {
        known(path)?;
        Ok(WatchStream::new(self.updates.clone()).boxed())
    }

    /// Says who asked for what.
    fn profile(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, Profile>, Refusal> {
        known(&target.to_string())?;
        let kind = if matches!(target, Target::Addr(_)) { "addr" } else { "authority" };
        let name = Some(format!("{kind} {target} for {from}"));
        let profile = Profile { name, ..Profile::default() };
        Ok(stream::iter([profile]).chain(stream::pending()).boxed())
    }

    fn outbound(
        &self,
        target: &Target,
        _: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal> {
        if *target == Target::Addr(addr(7)) {
            let policies = [values::outbound_http(), unsendable(), values::outbound_grpc()];
            return Ok(stream::iter(policies).boxed());
        }
        known(&target.to_string())?;
        Ok(WatchStream::new(self.policies.clone()).boxed())
    }

    fn server_policy(
        &self,
        workload: &Workload,
        port: u16,
    ) -> Result<BoxStream<'static, ServerPolicy>, Refusal> {
        if (&*workload.pod, port) != ("web-1", 80) {
            return Err(Refusal::NotFound(format!("{workload} has no port {port}")));
        }
        Ok(stream::iter([values::server()]).chain(stream::pending()).boxed())
    }

    fn backend_extension(
        &self,
        key: &ResourceRef,
    ) -> Result<BoxStream<'static, BackendExtension>, Refusal> {
        assert_eq!(*key, ResourceRef::service("shop", "tax", 80));
        let hash_header = Some(http::HeaderName::from_static("x-user"));
        let extension = BackendExtension {
            strategy: Strategy::RingHash,
            hash_header,
            ..BackendExtension::default()
        };
        Ok(stream::iter([extension]).chain(stream::pending()).boxed())
    }
}

fn unsendable() -> OutboundPolicy {
    let nameless = mesh_model::Meta::Default(String::new());
    OutboundPolicy { meta: nameless, ..values::outbound_http() }
}

struct Mesh {
    updates: watch::Sender<Destination>,
    policies: watch::Sender<OutboundPolicy>,
    serving: Serving,
    client: ControlClient,
}

fn mesh() -> Mesh {
    let (updates, update) = watch::channel(Destination::NoEndpoints { exists: true });
    let (policies, policy) = watch::channel(values::outbound_detect());
    let serving = Serving::new(control_plane_routes(Fake { updates: update, policies: policy }));
    let workload = Workload { namespace: "shop".into(), pod: "web-1".into() };
    let client = ControlClient::new(ControlClient::lazy_channel(serving.addr), workload);
    Mesh { updates, policies, serving, client }
}

fn tax() -> Target {
    Target::Authority("tax.shop:80".into())
}

/// What comes next, in bounded time.
async fn next<T>(stream: &mut UpdateStream<T>) -> Option<Result<Update<T>, Status>> {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("the stream is silent")
}

async fn valid<T: std::fmt::Debug>(stream: &mut UpdateStream<T>) -> T {
    match next(stream).await {
        Some(Ok(Update::Valid(value))) => value,
        other => panic!("{other:?}"),
    }
}

fn addr(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

#[tokio::test]
async fn an_outbound_policy_comes_at_once_and_changes_after_it() {
    let mesh = mesh();
    let mut policies = mesh.client.watch_outbound(&tax()).await.unwrap();
    assert_eq!(valid(&mut policies).await, values::outbound_detect());
    mesh.policies.send(values::outbound_grpc()).unwrap();
    assert_eq!(valid(&mut policies).await, values::outbound_grpc());
}

#[tokio::test]
async fn endpoints_come_and_go() {
    let mesh = mesh();
    let mut updates = mesh.client.watch_destination("tax.shop:80").await.unwrap();
    assert_eq!(valid(&mut updates).await, Destination::NoEndpoints { exists: true });
    let add = Destination::Add {
        endpoints: vec![Endpoint::plain(addr(1)), Endpoint::plain(addr(2))],
        labels: Default::default(),
    };
    mesh.updates.send(add.clone()).unwrap();
    assert_eq!(valid(&mut updates).await, add);
    mesh.updates.send(Destination::Remove(vec![addr(1)])).unwrap();
    assert_eq!(valid(&mut updates).await, Destination::Remove(vec![addr(1)]));
}

#[tokio::test]
async fn many_endpoints_come_in_parts_that_any_reader_takes() {
    let mesh = mesh();
    let labels = [("pod".to_owned(), "x".repeat(300))];
    let endpoint = |n: u32| Endpoint {
        labels: std::sync::Arc::new(labels.clone().into()),
        ..Endpoint::plain(SocketAddr::from((n.to_be_bytes(), 80)))
    };
    let endpoints: Vec<_> = (0..10_500).map(endpoint).collect();
    let labels = Default::default();
    mesh.updates.send(Destination::Add { endpoints: endpoints.clone(), labels }).unwrap();
    let channel = ControlClient::lazy_channel(mesh.serving.addr);
    // With the limits of a reader that sets none.
    let request = GetDestination { path: "tax.shop:80".into(), ..Default::default() };
    let response = DestinationClient::new(channel).get(request).await.unwrap();
    let parts = response.into_inner().take(3).map(|part| part.unwrap()).collect::<Vec<_>>();
    assert_eq!(tokio::time::timeout(PATIENCE, parts).await.unwrap().len(), 3);

    let mut updates = mesh.client.watch_destination("tax.shop:80").await.unwrap();
    let mut have = Vec::new();
    while have.len() < endpoints.len() {
        let Destination::Add { endpoints, .. } = valid(&mut updates).await else { panic!() };
        have.extend(endpoints);
    }
    assert_eq!(have, endpoints);
}

#[tokio::test]
async fn a_profile_knows_who_asks_for_what() {
    let mesh = mesh();
    let mut profiles = mesh.client.watch_profile(&tax()).await.unwrap();
    let name = valid(&mut profiles).await.name.unwrap();
    assert_eq!(name, "authority tax.shop:80 for shop/web-1");
    let mut profiles = mesh.client.watch_profile(&Target::Addr(addr(1))).await.unwrap();
    let name = valid(&mut profiles).await.name.unwrap();
    assert_eq!(name, "addr 10.0.0.1:80 for shop/web-1");
}

#[tokio::test]
async fn a_port_and_a_backend_can_be_watched() {
    let mesh = mesh();
    let mut policies = mesh.client.watch_port(80).await.unwrap();
    assert_eq!(valid(&mut policies).await, values::server());

    let key = ResourceRef::service("shop", "tax", 80);
    let mut extensions = mesh.client.watch_backend(&key).await.unwrap();
    let extension = valid(&mut extensions).await;
    assert_eq!(extension.strategy, Strategy::RingHash);
    assert_eq!(extension.hash_header.unwrap(), "x-user");
}

#[tokio::test]
async fn a_refusal_is_a_status() {
    let mesh = mesh();
    let unknown = Target::Authority("nobody:80".into());
    let code = |status: Status| status.code();
    let outbound = mesh.client.watch_outbound(&unknown).await.map(drop).map_err(code);
    assert_eq!(outbound, Err(Code::NotFound));
    let profile = mesh.client.watch_profile(&unknown).await.map(drop).map_err(code);
    assert_eq!(profile, Err(Code::NotFound));
    let destination = mesh.client.watch_destination("nobody:80").await.map(drop).map_err(code);
    assert_eq!(destination, Err(Code::NotFound));
    let port = mesh.client.watch_port(81).await.map(drop).map_err(code);
    assert_eq!(port, Err(Code::NotFound));

    let garbage = Target::Authority("garbage".into());
    let outbound = mesh.client.watch_outbound(&garbage).await.map(drop).map_err(code);
    assert_eq!(outbound, Err(Code::InvalidArgument));
}

#[tokio::test]
async fn malformed_requests_never_reach_the_control_plane() {
    let mesh = mesh();
    let channel = || ControlClient::lazy_channel(mesh.serving.addr);
    let mut outbound = OutboundPoliciesClient::new(channel());
    let status = outbound.get(TrafficSpec::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("target: is missing"), "{status:?}");

    let mut destination = DestinationClient::new(channel());
    let status = destination.get_profile(GetDestination::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let mut inbound = InboundServerPoliciesClient::new(channel());
    for (workload, port) in [("shop:web-1", 70_000), ("nonsense", 80)] {
        let spec = PortSpec { workload: workload.into(), port };
        let status = inbound.get_port(spec).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{workload} {port}");
    }
}

#[tokio::test]
async fn the_unary_calls_answer_with_the_first_message() {
    let mesh = mesh();
    let channel = || ControlClient::lazy_channel(mesh.serving.addr);
    let spec = PortSpec { workload: "shop:web-1".into(), port: 80 };
    let server = InboundServerPoliciesClient::new(channel()).get_port(spec).await.unwrap();
    assert!(server.into_inner().protocol.is_some());

    use linkerd2_proxy_api::outbound::traffic_spec::Target;
    let target = Some(Target::Authority("tax.shop:80".into()));
    let spec = TrafficSpec { target, source_workload: "whatever".into() };
    let policy = OutboundPoliciesClient::new(channel()).get(spec).await.unwrap();
    assert!(policy.into_inner().metadata.is_some());
}

#[tokio::test]
async fn what_must_not_be_sent_is_withheld() {
    let mesh = mesh();
    let mut policies = mesh.client.watch_outbound(&Target::Addr(addr(7))).await.unwrap();
    assert_eq!(valid(&mut policies).await, values::outbound_http());
    assert_eq!(valid(&mut policies).await, values::outbound_grpc());
    assert!(next(&mut policies).await.is_none());
}

/// Silence would hang the reader.
#[tokio::test]
async fn a_watch_that_cannot_begin_fails() {
    let mesh = mesh();
    mesh.policies.send(unsendable()).unwrap();
    let mut policies = mesh.client.watch_outbound(&tax()).await.unwrap();
    let status = next(&mut policies).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("metadata"), "{status:?}");
}

#[tokio::test]
async fn a_watch_ends_when_the_control_plane_goes() {
    let mesh = mesh();
    let mut updates = mesh.client.watch_destination("tax.shop:80").await.unwrap();
    valid(&mut updates).await;
    mesh.serving.go().await;
    match next(&mut updates).await {
        None | Some(Err(_)) => {}
        Some(Ok(update)) => panic!("{update:?}"),
    }
    let again = mesh.client.watch_destination("tax.shop:80");
    let again = tokio::time::timeout(PATIENCE, again).await.expect("no answer");
    assert!(again.is_err());
}
