//! A control plane that knows one service, of two endpoints.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use mesh_api::client::ControlClient;
use mesh_api::server::{ControlPlane, Refusal, control_plane_routes};
use mesh_api::{BackendExtension, Workload};
use mesh_model::endpoint::{Endpoint, Labels};
use mesh_model::inbound::ServerPolicy;
use mesh_model::outbound::{
    Backend, BackendKind, Balance, Forward, HttpPolicy, Protocol, Queue, RouteBackend,
};
use mesh_model::route::{Distribution, Route, Rule, Timeouts};
use mesh_model::{Destination, Meta, OutboundPolicy, Profile, ResourceRef, Target};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub(crate) const AUTHORITY: &str = "web.test:80";

#[derive(Clone, Debug)]
struct OneService {
    endpoints: Vec<SocketAddr>,
}

/// Serves in the runtime of the caller.
pub(crate) async fn start(endpoints: Vec<SocketAddr>) -> std::io::Result<ControlClient> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let addr = listener.local_addr()?;
    let routes = control_plane_routes(OneService { endpoints });
    tokio::spawn(
        Server::builder().add_routes(routes).serve_with_incoming(TcpIncoming::from(listener)),
    );
    let workload = Workload { namespace: "test".into(), pod: "client".into() };
    Ok(ControlClient::new(ControlClient::lazy_channel(addr), workload))
}

/// Said once, and then nothing more.
fn once<T: Send + 'static>(said: T) -> BoxStream<'static, T> {
    stream::iter([said]).chain(stream::pending()).boxed()
}

fn unknown<T>() -> Result<T, Refusal> {
    Err(Refusal::NotFound("this bench has one service".into()))
}

impl ControlPlane for OneService {
    fn destination(
        &self,
        _: &str,
        _: &Workload,
    ) -> Result<BoxStream<'static, Destination>, Refusal> {
        let endpoints = self.endpoints.iter().copied().map(Endpoint::plain).collect();
        Ok(once(Destination::Add { endpoints, labels: Labels::default() }))
    }

    fn profile(&self, _: &Target, _: &Workload) -> Result<BoxStream<'static, Profile>, Refusal> {
        unknown()
    }

    fn outbound(
        &self,
        _: &Target,
        _: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal> {
        let service = || Meta::Resource(ResourceRef::service("test", "web", 80));
        let backend = Backend {
            meta: service(),
            queue: Queue { capacity: 10_000, failfast_timeout: Duration::from_secs(3) },
            kind: BackendKind::Balance(Balance {
                path: AUTHORITY.into(),
                default_rtt: Duration::from_millis(30),
                decay: Duration::from_secs(10),
                penalty: None,
            }),
        };
        let backend = Arc::new(RouteBackend { filters: Vec::new(), backend });
        let action = Forward {
            backends: Distribution::FirstAvailable(vec![backend]),
            timeouts: Timeouts { request: Some(Duration::from_secs(60)), ..Timeouts::default() },
            retry: None,
            session: None,
            allow_request_headers: false,
        };
        let route = Route {
            meta: Meta::Default("http".into()),
            hosts: Vec::new(),
            rules: vec![Rule { matches: Vec::new(), filters: Vec::new(), action }],
        };
        let http = HttpPolicy { routes: Arc::new([route]), breaker: None };
        Ok(once(OutboundPolicy { meta: service(), protocol: Protocol::Http1(http) }))
    }

    fn server_policy(
        &self,
        _: &Workload,
        _: u16,
    ) -> Result<BoxStream<'static, ServerPolicy>, Refusal> {
        unknown()
    }

    fn backend_extension(
        &self,
        _: &ResourceRef,
    ) -> Result<BoxStream<'static, BackendExtension>, Refusal> {
        unknown()
    }
}
