//! From the mesh to the local application, top to bottom in the order a request passes.
//!
//! accept → the port's policy → TLS of ours ends here → what does it speak → HTTP: record · respond ·
//! limit · authorise · rate-limit · the port's own limit · local forward / bytes: authorise, connect, copy.

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
use mesh_model::inbound::{PortProtocol, ServerProtocol};
use mesh_model::stats::StatProtocol;
use mesh_model::{Direction, Reason};
use mesh_tls::TransportHeader;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use tracing::Instrument;

use self::port::{Head, Port};
pub(crate) use self::rate_limit::RateLimiter;
use crate::config::Config;
use crate::detect::{Detected, Detector, PATIENCE};
use crate::discovery::{Discovery, PortRules};
use crate::error::{Failure, MeshError};
use crate::exchange::{Exchange, Recorder};
use crate::http::forward;
use crate::http::server::Server;
use crate::http::upgrade::Upgrade;
use crate::identity::Identity;
use crate::io::Io;
use crate::relay::relay_until;
use crate::telemetry::Detected as DetectedLabel;

/// Tells the application who called; only this proxy may say so.
const L5D_CLIENT_ID: http::HeaderName = http::HeaderName::from_static("l5d-client-id");

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) addr: SocketAddr,
    /// The identity it has proven.
    pub(crate) id: Option<Arc<str>>,
}

/// The inbound half of one worker.
#[derive(Debug)]
pub(crate) struct Inbound {
    config: Arc<Config>,
    discovery: Discovery,
    recorder: Arc<Recorder>,
    identity: Identity,
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
        identity: &Identity,
        server: &Arc<Server>,
    ) -> Arc<Self> {
        Arc::new(Self {
            limit: ConcurrencyLimit::new(config.limits.max_in_flight),
            config: Arc::clone(config),
            discovery: discovery.clone(),
            recorder: Arc::clone(recorder),
            identity: identity.clone(),
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
        let (config, discovery) = (&self.config, &self.discovery);
        let encrypts = self.identity.id().is_some();
        let port = Port::new(local, forward, config, discovery, &self.recorder, encrypts);
        let port = Arc::new(port);
        ports.insert(local, Arc::clone(&port));
        port
    }

    /// One connection to a port, to its end.
    pub(crate) async fn connection(self: Arc<Self>, client: SocketAddr, io: Io, port: Arc<Port>) {
        let span = tracing::debug_span!("inbound.connection", %client, port = port.number());
        let client = Client { addr: client, id: None };
        self.serve(client, io, port).instrument(span).await;
    }

    /// One connection to this proxy itself, at its address `local`: the client's proxy secures it and
    /// says which port it is for.
    pub(crate) async fn direct(self: Arc<Self>, client: SocketAddr, io: Io, local: IpAddr) {
        let span = tracing::debug_span!("inbound.direct", %client);
        let within = self.config.limits.header_timeout;
        let told =
            tokio::time::timeout(within, self.told(client, io)).instrument(span.clone()).await;
        let told = told.unwrap_or_else(|_| Err(format!("it took longer than {within:?}")));
        let (client, io, header) = match told {
            Ok(told) => told,
            Err(why) => return tracing::info!(%client, %why, "direct connection closed"),
        };
        let to = SocketAddr::new(local, header.port);
        if !self.is_of_workload(to) {
            let client = client.addr;
            return tracing::info!(%client, %to, "direct connection closed: no port of the workload");
        }
        let port = self.port(to, &[]);
        self.serve(client, io, port).instrument(span).await;
    }

    /// Shakes hands and reads the transport header.
    async fn told(
        &self,
        client: SocketAddr,
        mut io: Io,
    ) -> Result<(Client, Io, TransportHeader), String> {
        let mut detector = Detector::default();
        let detected = detector.run(&mut io).await;
        detector.finish(&mut io);
        let Ok(Some(Detected::Tls { sni })) = detected else {
            return Err("it is not secured".to_owned());
        };
        if !self.is_ours(sni.as_deref()) {
            return Err(format!("it is for {}", sni.as_deref().unwrap_or("nobody")));
        }
        let (client, mut io, transport) = self.terminate(client, io).await?;
        if !transport {
            return Err("it has no transport header".to_owned());
        }
        let header = TransportHeader::read(&mut io).await.map_err(|error| error.to_string())?;
        Ok((client, io, header))
    }

    /// Whether connections may be forwarded there: never to the proxy itself, and where ports are
    /// declared, to these alone.
    fn is_of_workload(&self, to: SocketAddr) -> bool {
        let Config { inbound, outbound, control_listen, admin_addr, .. } = &*self.config;
        let own = [inbound.addr, *control_listen, *admin_addr];
        let own = own.into_iter().chain(outbound.addrs.iter().copied());
        let mut own = own.chain(outbound.upstreams.iter().map(|u| u.listen));
        let declared = &inbound.ports;
        !own.any(|addr| addr.port() == to.port())
            && (declared.is_empty() || declared.iter().any(|port| port.listen == to))
    }

    /// Whether a handshake for this name ends here; any other passes through.
    fn is_ours(&self, sni: Option<&str>) -> bool {
        self.identity.id().is_some_and(|id| sni == Some(id.as_str()))
    }

    /// The server's side of mTLS: who the client is, what it says, and whether a transport header
    /// follows.
    async fn terminate(&self, client: SocketAddr, io: Io) -> Result<(Client, Io, bool), String> {
        let credentials = self.identity.credentials();
        let credentials = credentials.ok_or("this proxy has no certificate yet")?;
        let span = tracing::debug_span!("inbound.tls");
        let accepting = mesh_tls::accept(&credentials, io).instrument(span);
        let within = self.config.limits.header_timeout;
        let accepted = tokio::time::timeout(within, accepting).await;
        let accepted = accepted.map_err(|_| format!("no TLS handshake within {within:?}"))?;
        let accepted = accepted.map_err(|error| error.to_string())?;
        let client = Client { addr: client, id: Some(accepted.client) };
        Ok((client, Io::secured(accepted.io), accepted.transport))
    }

    async fn serve(self: Arc<Self>, mut client: Client, mut io: Io, port: Arc<Port>) {
        let rules = match port.rules().await {
            Ok(rules) => rules,
            Err(error) => return refuse(&client, &port, &Failure::of(&error.into())),
        };
        let mut detected = self.detect(&mut io, &port, &rules).await;
        if let Ok(Some(Spoken::First(Detected::Tls { sni }))) = &detected
            && client.id.is_none()
            && self.is_ours(sni.as_deref())
        {
            match self.terminate(client.addr, io).await {
                Ok((proved, secured, false)) => (client, io) = (proved, secured),
                Ok((_, _, true)) => {
                    let why = "a transport header is for the direct port";
                    return tracing::info!(client = %client.addr, why, "connection closed");
                }
                Err(why) => {
                    return tracing::info!(client = %client.addr, %why, "connection closed");
                }
            }
            detected = self.detect(&mut io, &port, &rules).await;
        }
        let detected = match detected {
            Ok(Some(detected)) => detected,
            Ok(None) => return,
            Err(error) => {
                return tracing::debug!(client = %client.addr, %error, "client connection");
            }
        };
        match detected {
            Spoken::First(Detected::Http(version)) => {
                let (this, server) = (Arc::clone(&self), Arc::clone(&self.server));
                let service = move |request| {
                    let (this, port) = (Arc::clone(&this), Arc::clone(&port));
                    let client = client.clone();
                    async move { this.exchange(client, port, request).await }
                };
                server.serve(io, version, service).await;
            }
            // TLS that is not ours is the application's own business.
            Spoken::First(Detected::Opaque) if rules.protocol.is_http() => {
                let message = format!("port {} takes {}", port.number(), rules.protocol.as_str());
                refuse(&client, &port, &Failure { reason: Reason::BadRequest, message });
            }
            Spoken::First(_) => self.bytes(client, io, port, &rules, None).await,
            Spoken::Server(server) => self.bytes(client, io, port, &rules, Some(server)).await,
        }
    }

    /// What a connection speaks; an application that speaks first is heard.
    async fn detect(
        &self,
        io: &mut Io,
        port: &Port,
        rules: &PortRules,
    ) -> std::io::Result<Option<Spoken>> {
        let (may_be_bytes, within) = match (rules.protocol, &rules.policy.protocol) {
            (PortProtocol::Opaque, _) => return Ok(Some(Spoken::First(Detected::Opaque))),
            (PortProtocol::Detect, ServerProtocol::Detect { timeout, .. }) => (true, *timeout),
            // The one stream may be ahead of the other for a moment.
            (PortProtocol::Detect, _) => (true, self.config.limits.header_timeout),
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
        client: Client,
        port: Arc<Port>,
        request: http::Request<Incoming>,
    ) -> Response {
        let client_version = request.version();
        let mut request = request.map(Body::from);
        forward::restore_orig_proto(&mut request);
        let upgrade = forward::wants_upgrade(&request).then(|| Upgrade::of(&mut request));
        let number = port.number();
        let (from, direction) = (client.addr, Direction::Inbound);
        let exchange = Exchange::begin(&self.recorder, direction, from, number, &mut request);
        forward::prepare_request(&mut request, upgrade.is_some());
        tell_client(&client, &mut request);
        let head = upgrade.as_ref().map(|_| Head::of(&request));
        let span = tracing::debug_span!("inbound.request", method = %request.method(),
            path = request.uri().path());
        let mut limited = self.limit.layer(service_fn(|request| dispatch(&port, &client, request)));
        let result = limited.call(request).instrument(span).await;
        let mut response = match result {
            Ok(response) => exchange.respond(response),
            Err(error) => exchange.fail(&Failure::of(&local(error))),
        };
        forward::response_to(client_version, &mut response);
        if let Some(upgrade) = upgrade
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let revoked = Arc::clone(&port).revoked(client, head);
            upgrade.join(&mut response, &self.server, revoked);
        }
        response
    }

    /// Carries a connection's bytes to the application, until the rules stop allowing it.
    async fn bytes(
        &self,
        client: Client,
        mut io: Io,
        port: Arc<Port>,
        rules: &PortRules,
        server: Option<Io>,
    ) {
        let series = port.series(&client, StatProtocol::Tcp, None);
        if let Err(error) = port.authorize_connection(rules, &client) {
            let failure = Failure::of(&error.into());
            series.failed(failure.reason);
            return refuse(&client, &port, &failure);
        }
        let connected = match server {
            Some(server) => Ok(server),
            None => port.connect().await,
        };
        let mut server = match connected {
            Ok(server) => server,
            Err(error) => {
                let failure = Failure::of(&local(error.into()));
                series.failed(failure.reason);
                return refuse(&client, &port, &failure);
            }
        };
        series.opened();
        let addr = client.addr;
        let revoked = port.revoked(client, None);
        let (relayed, result) = relay_until(&mut io, &mut server, revoked).await;
        series.closed(relayed.a_to_b, relayed.b_to_a);
        tracing::debug!(client = %addr, ?relayed, ?result, "connection ended");
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
async fn dispatch(
    port: &Port,
    client: &Client,
    mut request: Request,
) -> Result<Response, BoxError> {
    forward::check_host(&request)?;
    let rules = port.rules().await?;
    let span = tracing::debug_span!("inbound.authorize");
    let answer = span.in_scope(|| port.authorize(&rules, client, &mut request))?;
    match answer {
        Some(response) => Ok(response),
        None => port.forward(&rules, request).await,
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

/// Says who called, and nobody but this proxy does.
fn tell_client(client: &Client, request: &mut Request) {
    request.headers_mut().remove(L5D_CLIENT_ID);
    let id = client.id.as_deref().and_then(|id| http::HeaderValue::from_str(id).ok());
    if let Some(id) = id {
        request.headers_mut().insert(L5D_CLIENT_ID, id);
    }
}

fn refuse(client: &Client, port: &Port, failure: &Failure) {
    tracing::info!(client = %client.addr, port = port.number(), %failure, "connection closed");
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
