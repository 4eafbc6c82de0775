//! From the mesh to the local application, top to bottom in the order a request passes.
//!
//! accept → the port's policy → what does it speak → HTTP: record · respond · limit · authorise ·
//! rate-limit · local forward / bytes: authorise, connect, copy.

mod port;
mod rate_limit;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::StatusCode;
use hyper::body::Incoming;
use mesh_layers::{Body, BoxError, ConcurrencyLimit, Request, Response};
use mesh_model::inbound::{ServerPolicy, ServerProtocol};
use mesh_model::stats::StatProtocol;
use mesh_model::{Direction, Reason};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use tracing::Instrument;

use self::port::Port;
use crate::config::Config;
use crate::detect::{Detected, Detector, PATIENCE};
use crate::discovery::Discovery;
use crate::error::{Failure, MeshError};
use crate::exchange::{Exchange, Recorder};
use crate::http::forward;
use crate::http::server::Server;
use crate::http::upgrade::Upgrade;
use crate::io::Io;
use crate::relay::relay;
use crate::telemetry::Detected as DetectedLabel;

/// Tells the application who called; only this proxy may say so.
const L5D_CLIENT_ID: http::HeaderName = http::HeaderName::from_static("l5d-client-id");

/// The inbound half of one worker.
#[derive(Debug)]
pub(crate) struct Inbound {
    config: Arc<Config>,
    discovery: Discovery,
    recorder: Arc<Recorder>,
    server: Arc<Server>,
    limit: ConcurrencyLimit,
    ports: Mutex<HashMap<SocketAddr, Arc<Port>>>,
}

/// Ports of the workload that are kept; a port scan must not grow this without bound.
const MAX_PORTS: usize = 256;

impl Inbound {
    pub(crate) fn new(
        config: &Arc<Config>,
        discovery: &Discovery,
        recorder: &Arc<Recorder>,
        server: &Arc<Server>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limit: ConcurrencyLimit::new(config.limits.max_in_flight),
            config: Arc::clone(config),
            discovery: discovery.clone(),
            recorder: Arc::clone(recorder),
            server: Arc::clone(server),
            ports: Mutex::default(),
        })
    }

    /// The port that connections to `local` are for. `forward` is where its application listens.
    pub(crate) fn port(&self, local: SocketAddr, forward: &[SocketAddr]) -> Arc<Port> {
        let mut ports = self.ports.lock();
        if let Some(port) = ports.get(&local) {
            return Arc::clone(port);
        }
        if ports.len() >= MAX_PORTS {
            ports.retain(|_, port| Arc::strong_count(port) > 1);
        }
        let port = Port::new(local, forward, &self.config, &self.discovery, &self.recorder);
        let port = Arc::new(port);
        ports.insert(local, Arc::clone(&port));
        port
    }

    /// One connection to a port, to its end.
    pub(crate) async fn connection(self: Arc<Self>, client: SocketAddr, io: Io, port: Arc<Port>) {
        let span = tracing::debug_span!("inbound.connection", %client, port = port.number());
        self.serve(client, io, port).instrument(span).await;
    }

    async fn serve(self: Arc<Self>, client: SocketAddr, mut io: Io, port: Arc<Port>) {
        let policy = match port.policy().await {
            Ok(policy) => policy,
            Err(error) => return refuse(client, &port, &Failure::of(&error.into())),
        };
        let detected = match self.detect(&mut io, &port, &policy).await {
            Ok(Some(detected)) => detected,
            Ok(None) => return,
            Err(error) => return tracing::debug!(%client, %error, "client connection"),
        };
        match detected {
            Spoken::First(Detected::Http(version)) => {
                let (this, server) = (Arc::clone(&self), Arc::clone(&self.server));
                let service = move |request| {
                    let (this, port) = (Arc::clone(&this), Arc::clone(&port));
                    async move { this.exchange(client, port, request).await }
                };
                server.serve(io, version, service).await;
            }
            Spoken::First(_) => self.bytes(client, io, &port, &policy, None).await,
            Spoken::Server(server) => self.bytes(client, io, &port, &policy, Some(server)).await,
        }
    }

    /// What a connection speaks; an application that speaks first is heard.
    async fn detect(
        &self,
        io: &mut Io,
        port: &Port,
        policy: &ServerPolicy,
    ) -> std::io::Result<Option<Spoken>> {
        let (may_be_bytes, within) = match policy.protocol {
            ServerProtocol::Opaque | ServerProtocol::Tls => {
                return Ok(Some(Spoken::First(Detected::Opaque)));
            }
            ServerProtocol::Detect { timeout, .. } => (true, timeout),
            _ => (false, self.config.limits.header_timeout),
        };
        if may_be_bytes && port.speaks_first() {
            return Ok(Some(Spoken::First(Detected::Opaque)));
        }
        let started = Instant::now();
        let mut detector = Detector::default();
        let span = tracing::debug_span!("inbound.detect");
        let spoken = async {
            if let Ok(detected) = tokio::time::timeout(PATIENCE, detector.run(io)).await {
                return detected.map(|detected| detected.map(Spoken::First));
            }
            if may_be_bytes && !detector.has_read() {
                return wait_for_first(port, io, &mut detector, within).await;
            }
            let detected = detector.run_within(io, within).await?;
            Ok(detected.map(Spoken::First))
        };
        let spoken = spoken.instrument(span).await?;
        detector.finish(io);
        if let Some(spoken) = &spoken {
            let detect = &self.recorder.telemetry.detect;
            detect.record(Direction::Inbound, spoken.label(), started.elapsed());
        }
        Ok(spoken)
    }

    /// One request with its response: recorded, answered whatever happens, limited, authorised.
    async fn exchange(
        self: Arc<Self>,
        client: SocketAddr,
        port: Arc<Port>,
        request: http::Request<Incoming>,
    ) -> Response {
        let client_version = request.version();
        let mut request = request.map(Body::from);
        forward::restore_orig_proto(&mut request);
        let upgrade = forward::wants_upgrade(&request).then(|| Upgrade::of(&mut request));
        let number = port.number();
        let exchange =
            Exchange::begin(&self.recorder, Direction::Inbound, client, number, &mut request);
        forward::prepare_request(&mut request, upgrade.is_some());
        request.headers_mut().remove(L5D_CLIENT_ID);
        let span = tracing::debug_span!("inbound.request", method = %request.method(),
            path = request.uri().path());
        let mut limited =
            self.limit.layer(service_fn(|request| dispatch(&port, client.ip(), request)));
        let result = limited.call(request).instrument(span).await;
        let mut response = match result {
            Ok(response) => exchange.respond(response),
            Err(error) => exchange.fail(&Failure::of(&local(error))),
        };
        forward::response_to(client_version, &mut response);
        if let Some(upgrade) = upgrade
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            upgrade.join(&mut response, &self.server);
        }
        response
    }

    /// Carries a connection's bytes to the application.
    async fn bytes(
        &self,
        client: SocketAddr,
        mut io: Io,
        port: &Port,
        policy: &ServerPolicy,
        server: Option<Io>,
    ) {
        if let Err(error) = port.authorize_connection(policy, client.ip()) {
            return refuse(client, port, &Failure::of(&error.into()));
        }
        let series = port.series(client.ip(), StatProtocol::Tcp, None);
        let connected = match server {
            Some(server) => Ok(server),
            None => port.connect().await,
        };
        let mut server = match connected {
            Ok(server) => server,
            Err(error) => {
                let failure = Failure::of(&local(error.into()));
                series.failed(failure.reason);
                return refuse(client, port, &failure);
            }
        };
        series.opened();
        let (relayed, result) = relay(&mut io, &mut server).await;
        series.closed(relayed.a_to_b, relayed.b_to_a);
        tracing::debug!(%client, ?relayed, ?result, "connection ended");
    }

    /// Lets go of connections that have been idle for too long.
    pub(crate) fn expire(&self, now: Instant) {
        for port in self.ports.lock().values() {
            port.expire(now);
        }
    }

    /// What this half believes, for `/config`.
    pub(crate) fn describe(&self) -> Vec<Value> {
        let ports = self.ports.lock();
        let mut ports: Vec<_> = ports.values().collect();
        ports.sort_by_key(|port| port.number());
        ports.into_iter().map(|port| port.describe()).collect()
    }
}

/// Authorises a request and forwards it to the application.
async fn dispatch(port: &Port, client: IpAddr, mut request: Request) -> Result<Response, BoxError> {
    forward::check_host(&request)?;
    let policy = port.policy().await?;
    let span = tracing::debug_span!("inbound.authorize");
    let answer = span.in_scope(|| port.authorize(&policy, client, &mut request))?;
    match answer {
        Some(response) => Ok(response),
        None => port.forward(request).await,
    }
}

/// Names failures of the connection to the application as such: nothing reached it.
fn local(error: BoxError) -> BoxError {
    let failure = Failure::of(&error);
    let reason = match failure.reason {
        Reason::ConnectRefused | Reason::ConnectTimeout | Reason::ConnectFailed => {
            Reason::LocalRefused
        }
        _ => return error,
    };
    MeshError::new(reason, failure.message).into()
}

fn refuse(client: SocketAddr, port: &Port, failure: &Failure) {
    tracing::info!(%client, port = port.number(), %failure, "connection closed");
}

/// Who spoke, and what.
enum Spoken {
    First(Detected),
    /// The application, on the connection opened to it.
    Server(Io),
}

impl Spoken {
    fn label(&self) -> DetectedLabel {
        match self {
            Self::First(detected) => detected.label(),
            Self::Server(_) => DetectedLabel::ServerFirst,
        }
    }
}

/// Gives the application a chance to speak while the client is silent. The connection opened on this
/// suspicion is kept for `within` at most.
async fn wait_for_first(
    port: &Port,
    client: &mut Io,
    detector: &mut Detector,
    within: Duration,
) -> std::io::Result<Option<Spoken>> {
    if let Ok(mut server) = port.connect().await {
        let mut greeting = BytesMut::with_capacity(512);
        let spoken = tokio::select! {
            detected = detector.run(client) => return Ok(detected?.map(Spoken::First)),
            read = server.read_buf(&mut greeting) => matches!(read, Ok(1..)),
            () = tokio::time::sleep(within) => false,
        };
        if spoken {
            server.unread(greeting.freeze());
            port.spoke_first();
            return Ok(Some(Spoken::Server(server)));
        }
    }
    Ok(detector.run(client).await?.map(Spoken::First))
}
