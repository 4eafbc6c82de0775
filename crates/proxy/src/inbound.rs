//! From the mesh to the local application, top to bottom in the order a request passes.
//!
//! accept → the port's policy → TLS of ours ends here → what does it speak → HTTP: record · respond ·
//! limit · authorise · rate-limit · the port's own limit · local forward / bytes: authorise, connect, copy.

mod port;
mod rate_limit;
mod spoken;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use mesh_layers::{Body, BoxError, ConcurrencyLimit, Request, Response};
use mesh_model::stats::StatProtocol;
use mesh_model::{Direction, Reason};
use mesh_tls::TransportHeader;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use tracing::Instrument;

use self::port::{Head, Port};
pub(crate) use self::rate_limit::RateLimiter;
use crate::config::Config;
use crate::detect::{Detected, Detector};
use crate::discovery::{Discovery, PortRules};
use crate::error::{Failure, MeshError};
use crate::exchange::{Exchange, Recorder};
use crate::http::filters::Done;
use crate::http::forward;
use crate::http::server::Server;
use crate::http::upgrade::Upgrade;
use crate::identity::Identity;
use crate::io::Io;
use crate::relay::relay_until;

/// Tells the application who called; only this proxy may say so.
const CLIENT_ID: &str = "l5d-client-id";
const L5D_CLIENT_ID: http::HeaderName = http::HeaderName::from_static(CLIENT_ID);

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
    ports: Mutex<HashMap<SocketAddr, Kept>>,
}

/// A port, and when somebody last used it.
#[derive(Debug)]
struct Kept {
    port: Arc<Port>,
    used: Instant,
}

impl Kept {
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.port) == 1
    }
}

/// Ports of the workload that are kept; a port scan must not grow this without bound.
const MAX_PORTS: usize = 256;
/// A port that nobody has been connected to for so long is forgotten, its figures aside.
const PORT_IDLE: Duration = Duration::from_secs(600);

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

    /// The port of a connection that was redirected on its way to `to`. `None` closes it: this proxy
    /// leads to its own pod, and to no more ports of it than can be kept.
    pub(crate) fn redirected(&self, client: SocketAddr, to: SocketAddr) -> Option<Arc<Port>> {
        let own = &self.config.pod_ips;
        if !own.is_empty() && !own.iter().any(|ip| ip.to_canonical() == to.ip().to_canonical()) {
            tracing::info!(%client, %to, "connection closed: no address of this pod");
            return None;
        }
        let port = self.port(to, &[]);
        if port.is_none() {
            tracing::info!(%client, %to, limit = MAX_PORTS, "connection closed: too many ports in use");
        }
        port
    }

    /// The port that connections to `local` are for. `forward` is where its application listens.
    /// `None`: too many are in use.
    pub(crate) fn port(&self, local: SocketAddr, forward: &[SocketAddr]) -> Option<Arc<Port>> {
        let mut ports = self.ports.lock();
        if let Some(kept) = ports.get(&local) {
            return Some(Arc::clone(&kept.port));
        }
        if ports.len() >= MAX_PORTS {
            ports.retain(|_, kept| !kept.is_idle());
        }
        // The workload's declared ports are there from the start and stay.
        if ports.len() >= MAX_PORTS && forward.is_empty() {
            return None;
        }
        let (config, discovery) = (&self.config, &self.discovery);
        let encrypts = self.identity.id().is_some();
        let port = Port::new(local, forward, config, discovery, &self.recorder, encrypts);
        let port = Arc::new(port);
        ports.insert(local, Kept { port: Arc::clone(&port), used: Instant::now() });
        Some(port)
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
        let Some(port) = self.port(to, &[]) else {
            let client = client.addr;
            return tracing::info!(%client, %to, "direct connection closed: too many ports in use");
        };
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
        // Opened to hear whether the application speaks first; kept when TLS of ours ends.
        let mut app = None;
        let mut detected = self.detect(&mut io, &port, &rules, &mut app).await;
        if let Ok(Some(Detected::Tls { sni })) = &detected
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
            detected = self.detect(&mut io, &port, &rules, &mut app).await;
        }
        let detected = match detected {
            Ok(Some(detected)) => detected,
            Ok(None) => return,
            Err(error) => {
                return tracing::debug!(client = %client.addr, %error, "client connection");
            }
        };
        match detected {
            Detected::Http(version) => {
                drop(app);
                let (this, server) = (Arc::clone(&self), Arc::clone(&self.server));
                let service = move |request| {
                    let (this, port) = (Arc::clone(&this), Arc::clone(&port));
                    let client = client.clone();
                    async move { this.exchange(client, port, request).await }
                };
                server.serve(io, version, service).await;
            }
            _ if rules.protocol.is_http() => refuse_bytes(&client, &port),
            _ => self.bytes(client, io, port, &rules, app).await,
        }
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
        match &result {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                tracing::info!(client = %addr, %error, "connection cut");
            }
            _ => tracing::debug!(client = %addr, ?relayed, ?result, "connection ended"),
        }
    }

    /// Lets go of connections and ports that have been idle for too long.
    pub(crate) fn expire(&self, now: Instant) {
        self.ports.lock().retain(|_, kept| {
            kept.port.expire(now);
            if !kept.is_idle() {
                kept.used = now;
            }
            now.saturating_duration_since(kept.used) < PORT_IDLE
        });
    }

    /// What this half believes, for `/config`.
    pub(crate) fn describe(&self) -> Vec<Value> {
        let ports = self.ports.lock();
        let mut ports: Vec<_> = ports.values().map(|kept| &kept.port).collect();
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
    let delay = match span.in_scope(|| port.authorize(&rules, client, &mut request))? {
        Done::Answer(response) => return Ok(response),
        Done::Delay(delay) => delay,
        Done::Nothing => Duration::ZERO,
    };
    port.forward(&rules, request, delay).await
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
    let headers = request.headers_mut();
    if headers.keys().any(reads_as_client_id) {
        let forged: Vec<_> =
            headers.keys().filter(|name| reads_as_client_id(name)).cloned().collect();
        for name in forged {
            headers.remove(name);
        }
    }
    let id = client.id.as_deref().and_then(|id| http::HeaderValue::from_str(id).ok());
    if let Some(id) = id {
        request.headers_mut().insert(L5D_CLIENT_ID, id);
    }
}

/// Whether applications read a header of this name as [`L5D_CLIENT_ID`].
fn reads_as_client_id(name: &http::HeaderName) -> bool {
    name.as_str().len() == CLIENT_ID.len() && forward::reads_as_prefix(name, CLIENT_ID)
}

/// Closes a connection that is not HTTP where nothing else is taken.
fn refuse_bytes(client: &Client, port: &Port) {
    let message = "this port takes HTTP only, and the connection is something else";
    let failure = Failure { reason: Reason::BadRequest, message: message.to_owned() };
    port.series(client, StatProtocol::Tcp, None).failed(failure.reason);
    refuse(client, port, &failure);
}

fn refuse(client: &Client, port: &Port, failure: &Failure) {
    tracing::info!(client = %client.addr, port = port.number(), %failure, "connection closed");
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::config::PREFIX;
    use crate::http::activity::Sweeper;
    use crate::resolve::Resolver;
    use crate::telemetry::{AccessLog, Telemetry, TelemetryConfig};

    fn inbound(settings: &[(&str, &str)]) -> Arc<Inbound> {
        let settings =
            settings.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).into()));
        let config = Arc::new(Config::from_vars(settings).unwrap());
        let telemetry = Telemetry::new(&TelemetryConfig::default());
        let runtime = tokio::runtime::Handle::current();
        let discovery = Discovery::new(None, Resolver::default(), runtime, Arc::clone(&telemetry));
        let access_log = AccessLog::new(config.access_log);
        let recorder = Arc::new(Recorder { telemetry, access_log, tracer: None });
        let sweeper = Sweeper::new(config.limits.header_timeout);
        let server = Arc::new(Server::new(&config.limits, sweeper, CancellationToken::new()));
        Inbound::new(&config, &discovery, &recorder, &Identity::default(), &server)
    }

    #[tokio::test]
    async fn redirected_connections_lead_to_the_pod_only() {
        let client = "10.0.0.9:1".parse().unwrap();
        for (ips, to, expected) in [
            ("10.0.0.7,fd00::7", "10.0.0.7:80", true),
            ("10.0.0.7,fd00::7", "[fd00::7]:80", true),
            ("10.0.0.7,fd00::7", "[::ffff:10.0.0.7]:80", true),
            ("10.0.0.7,fd00::7", "10.0.0.8:80", false),
            ("10.0.0.7,fd00::7", "127.0.0.1:80", false),
            ("10.0.0.7,fd00::7", "169.254.169.254:80", false),
            ("10.0.0.7", "[fd00::7]:80", false),
            // Nobody has told which addresses the pod has.
            ("", "10.0.0.8:80", true),
        ] {
            let inbound = inbound(&[("POD_IPS", ips)]);
            let led = inbound.redirected(client, to.parse().unwrap());
            assert_eq!(led.is_some(), expected, "{to} of {ips}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ports_in_use_are_bounded_and_idle_ones_forgotten() {
        let inbound = inbound(&[]);
        let client = "10.0.0.9:1".parse().unwrap();
        let to = |number: usize| SocketAddr::new([10, 0, 0, 7].into(), number as u16);
        let declared = inbound.port(to(8080), &[to(9000)]).unwrap();
        let held: Vec<_> =
            (1..MAX_PORTS).map(|number| inbound.redirected(client, to(number)).unwrap()).collect();
        assert!(inbound.redirected(client, to(20_000)).is_none(), "all are in use");
        assert!(inbound.redirected(client, to(1)).is_some(), "those that are known go on");
        drop(held);
        for number in 1..3 * MAX_PORTS {
            assert!(
                inbound.redirected(client, to(number)).is_some(),
                "a scan makes room for others"
            );
            assert!(inbound.ports.lock().len() <= MAX_PORTS);
        }
        tokio::time::advance(PORT_IDLE).await;
        inbound.expire(Instant::now());
        assert_eq!(inbound.ports.lock().keys().copied().collect::<Vec<_>>(), [to(8080)]);
        drop(declared);
    }

    #[test]
    fn no_spelling_of_the_callers_name_is_passed_on() {
        for (id, expected) in [(None, vec![]), (Some("web"), vec!["web"])] {
            let client = Client { addr: "10.0.0.1:1".parse().unwrap(), id: id.map(Into::into) };
            let mut request = Request::new(Body::empty());
            for name in
                ["l5d-client-id", "l5d_client_id", "l5d_client-id", "l5d.client~id", "x-client-id"]
            {
                let name: http::HeaderName = name.parse().unwrap();
                request.headers_mut().append(name, http::HeaderValue::from_static("admin"));
            }
            tell_client(&client, &mut request);
            let said: Vec<_> = request.headers().get_all(L5D_CLIENT_ID).iter().collect();
            assert_eq!(said, expected);
            assert_eq!(request.headers().len(), 1 + expected.len(), "{:?}", request.headers());
        }
    }
}
