//! The services over real connections on loopback.

mod authz;
mod figures;
mod people;
mod proxies;
mod what_if;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use mesh_api::ext::mesh_client::MeshClient;
use mesh_api::ext::proxy_server::{Proxy, ProxyServer};
use mesh_api::ext::{self, Selector};
use mesh_api::server::control_plane_routes;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::Control;
use super::mesh::MeshService;
use crate::index::authz::Defaults;
use crate::index::identity::MeshNames;
use crate::index::object::*;
use crate::state::Shared;

/// More than anything here needs, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// A control plane and the proxies it asks, gone when dropped.
struct World {
    shared: Arc<Shared>,
    addr: SocketAddr,
    _stop: DropGuard,
}

impl World {
    /// Serves; proxies are asked at `proxy_port`.
    async fn start(proxy_port: u16) -> Self {
        Self::with(proxy_port, Shared::default()).await
    }

    /// The same in a mesh with identity.
    async fn with_identity(proxy_port: u16) -> Self {
        let names = Some(MeshNames::default());
        Self::with(proxy_port, Shared::new(Defaults::default(), names)).await
    }

    async fn with(proxy_port: u16, shared: Shared) -> Self {
        shared.set_ready();
        Self::begun(proxy_port, shared).await
    }

    /// One that may not know the mesh yet.
    async fn begun(proxy_port: u16, shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mesh = MeshService::new(Arc::clone(&shared), "local").with_proxy_port(proxy_port);
        let routes = control_plane_routes(Control::new(Arc::clone(&shared), None))
            .add_service(mesh.into_server());
        let stop = serve(listener, routes);
        Self { shared, addr, _stop: stop }
    }

    fn apply(&self, object: Object) {
        self.shared.index.write().apply(object);
    }

    async fn client(&self) -> MeshClient<Channel> {
        MeshClient::connect(format!("http://{}", self.addr)).await.unwrap()
    }
}

fn serve(listener: TcpListener, routes: tonic::service::Routes) -> DropGuard {
    let stop = CancellationToken::new();
    let server = Server::builder().add_routes(routes);
    let running = server.serve_with_incoming(TcpListenerStream::new(listener));
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            result = running => result.unwrap(),
            () = stopped.cancelled() => {}
        }
    });
    stop.drop_guard()
}

async fn next<S: futures_util::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("nothing came")
}

/// A proxy that says what it is told to.
#[derive(Clone, Default)]
struct FakeProxy {
    notable: ext::NotableReply,
    observed: ext::ObservedReply,
    series: Vec<ext::Series>,
    breakers: Vec<ext::Breaker>,
    events: Vec<ext::TapEvent>,
    config: String,
}

#[tonic::async_trait]
impl Proxy for FakeProxy {
    async fn stats(
        &self,
        request: Request<ext::StatsRequest>,
    ) -> Result<Response<ext::StatsReply>, Status> {
        Ok(Response::new(ext::StatsReply {
            covered_seconds: request.get_ref().window_seconds.min(30),
            series: self.series.clone(),
            overflowed_series: 0,
            breakers: self.breakers.clone(),
        }))
    }

    async fn notable(
        &self,
        _: Request<ext::NotableRequest>,
    ) -> Result<Response<ext::NotableReply>, Status> {
        Ok(Response::new(self.notable.clone()))
    }

    type TapStream = futures_util::stream::BoxStream<'static, Result<ext::TapEvent, Status>>;

    /// Its events, and then silence.
    async fn tap(&self, _: Request<ext::TapRequest>) -> Result<Response<Self::TapStream>, Status> {
        let events = futures_util::stream::iter(self.events.clone().into_iter().map(Ok));
        Ok(Response::new(events.chain(futures_util::stream::pending()).boxed()))
    }

    async fn observed(
        &self,
        _: Request<ext::ObservedRequest>,
    ) -> Result<Response<ext::ObservedReply>, Status> {
        Ok(Response::new(self.observed.clone()))
    }

    async fn config(
        &self,
        _: Request<ext::ConfigRequest>,
    ) -> Result<Response<ext::ConfigReply>, Status> {
        Ok(Response::new(ext::ConfigReply { json: self.config.clone() }))
    }
}

/// Serves at a port of one address; 0 is any port.
async fn fake(ip: &str, port: u16, proxy: FakeProxy) -> (u16, DropGuard) {
    let ip: IpAddr = ip.parse().unwrap();
    let listener = TcpListener::bind(SocketAddr::new(ip, port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = tonic::service::Routes::new(ProxyServer::new(proxy));
    (port, serve(listener, routes))
}

fn service(name: &str) -> Object {
    Object::Service(Service {
        name: Name::new("shop", name),
        cluster_ips: vec!["10.0.0.1".parse().unwrap()],
        ports: vec![ServicePort { port: 8080, ..ServicePort::default() }],
        ..Service::default()
    })
}

fn pod(name: &str, ip: &str) -> Pod {
    let owner = name.split('-').next().unwrap();
    Pod {
        name: Name::new("shop", name),
        ip: Some(ip.parse().unwrap()),
        service_account: owner.into(),
        owner: Some((Kind::Deployment, owner.into())),
        running: true,
        ready: true,
        proxy: Some("0.1.0".into()),
        ..Pod::default()
    }
}

fn slice(service: &str, pods: &[(&str, &str)]) -> Object {
    let addresses = pods.iter().map(|(pod, ip)| EndpointAddress {
        ip: ip.parse().unwrap(),
        pod: Some((*pod).into()),
        draining: false,
        ready: true,
        zone: None,
        node: None,
        hints: Vec::new(),
    });
    Object::EndpointSlice(EndpointSlice {
        name: Name::new("shop", format!("{service}.8080")),
        service: service.into(),
        ports: vec![(String::new(), 8080)],
        addresses: addresses.collect(),
    })
}

fn selector(kind: &str, name: &str) -> Selector {
    Selector { kind: kind.into(), name: name.into(), ..Selector::default() }
}
