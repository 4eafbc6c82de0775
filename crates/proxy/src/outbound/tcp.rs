//! Connections that are carried as bytes: pick a backend, balance, connect, copy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mesh_layers::{BoxError, Lease};
use mesh_model::stats::StatProtocol;
use tokio::time::Instant;

use super::endpoint::EndpointService;
use super::route::TcpRouter;
use crate::detect::{Detected, Detector, Greeting, greeting};
use crate::error::Failure;
use crate::exchange::RouteInfo;
use crate::io::Io;
use crate::relay::relay_until;

/// Connections that fail are tried at other endpoints: nothing has been sent yet.
const CONNECT_TRIES: usize = 3;

/// A connection to an endpoint, not used yet.
pub(super) struct Connected {
    io: Io,
    lease: Lease<EndpointService>,
    route: Arc<RouteInfo>,
}

/// Carries a client's connection to an endpoint, to its end, or until `stop`.
pub(super) async fn forward(
    router: &TcpRouter,
    client: Io,
    sni: Option<&str>,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut stop = std::pin::pin!(stop);
    let connected = tokio::select! {
        connected = connect(router, sni) => connected?,
        () = &mut stop => return Ok(()),
    };
    carry(client, connected, stop).await;
    Ok(())
}

/// Opens a connection to an endpoint.
pub(super) async fn connect(router: &TcpRouter, sni: Option<&str>) -> Result<Connected, Failure> {
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let (route, backend) = router.pick(sni).map_err(|error| Failure::of(&error.into()))?;
        let acquired = backend.balancer().acquire(None, &tried).await;
        let mut lease = acquired.map_err(|error| Failure::of(&error.into()))?;
        let started = Instant::now();
        match lease.service().connect().await {
            Ok(io) => {
                lease.success(started.elapsed());
                return Ok(Connected { io, lease, route });
            }
            Err(error) => {
                lease.failure(None);
                lease.service().series(&route, StatProtocol::Tcp).failed(error.reason);
                tried.push(lease.addr());
                if tried.len() >= CONNECT_TRIES {
                    return Err(Failure::of(&(Box::new(error) as BoxError)));
                }
            }
        }
    }
}

/// Copies both ways until the connection ends, or `stop`; the endpoint counts as busy meanwhile.
pub(super) async fn carry(mut client: Io, connected: Connected, stop: impl Future<Output = ()>) {
    let Connected { io: mut server, lease, route } = connected;
    let series = lease.service().series(&route, StatProtocol::Tcp);
    series.opened();
    let (relayed, result) = relay_until(&mut client, &mut server, stop).await;
    series.closed(relayed.a_to_b, relayed.b_to_a);
    tracing::debug!(endpoint = %lease.addr(), ?relayed, ?result, "connection ended");
}

/// Who spoke first while both sides were silent.
pub(super) enum First {
    Client(Option<Detected>),
    /// Opaque, and already connected.
    Server(Connected),
}

/// Gives the server a chance to speak while the client is silent. The connection opened on this
/// suspicion is kept for `within` at most; the client may be silent for as long as it likes.
pub(super) async fn wait_for_first(
    router: &TcpRouter,
    client: &mut Io,
    detector: &mut Detector,
    within: Duration,
) -> std::io::Result<First> {
    let mut server = match connect(router, None).await {
        Ok(connected) => connected,
        // There may be no server to speak; the client still may.
        Err(failure) => {
            tracing::debug!(%failure, "nobody to speak first");
            return detector.run_once_begun(client, within).await.map(First::Client);
        }
    };
    let mut heard = BytesMut::new();
    let greeting = tokio::select! {
        detected = detector.run_once_begun(client, within) => return detected.map(First::Client),
        greeting = greeting(&mut server.io, &mut heard) => greeting,
        () = tokio::time::sleep(within) => Greeting::Untimely,
    };
    if greeting != Greeting::First {
        drop(server);
        return detector.run_once_begun(client, within).await.map(First::Client);
    }
    server.io.unread(heard.freeze());
    Ok(First::Server(server))
}
