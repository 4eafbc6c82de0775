//! From the local application into the mesh, top to bottom in the order a request passes.
//!
//! accept → what is it for → what does the control plane say about that → what does it speak →
//! HTTP: record · respond · limit · route (then [`route`]: filters · deadline · retry · split;
//! [`backend`]: balance; [`endpoint`]: count · pool · connect) / bytes: [`tcp`].

mod backend;
mod egress;
mod endpoint;
mod retry;
mod route;
mod session;
mod target;
mod tcp;
mod wishes;

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use hyper::body::Incoming;
use mesh_layers::{Body, BoxError, ConcurrencyLimit, Request, Response};
use mesh_model::{Direction, Reason, Target};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use tracing::Instrument;

pub(crate) use self::backend::BackendStack;
use self::backend::Backends;
use self::route::{HttpRouter, RoutedProtocol, Routes, TcpRouter};
pub(crate) use self::target::TargetStack;
use self::target::{Onward, Targets};
use self::tcp::First;
use crate::config::Config;
use crate::detect::{Detected, Detector, PATIENCE};
use crate::discovery::{Discovery, Resolution};
use crate::error::{Failure, MeshError};
use crate::exchange::{Exchange, Recorder};
use crate::http::forward;
use crate::http::server::{Server, Version};
use crate::http::upgrade::Upgrade;
use crate::identity::Identity;
use crate::io::Io;
use crate::telemetry::Detected as DetectedLabel;

/// The outbound half of one worker.
#[derive(Debug)]
pub(crate) struct Outbound {
    config: Arc<Config>,
    recorder: Arc<Recorder>,
    server: Arc<Server>,
    limit: ConcurrencyLimit,
    targets: Targets,
    backends: Arc<Backends>,
    /// Targets whose server spoke first, so that their next connections need not wait.
    server_first: Mutex<HashMap<Target, ()>>,
}

/// How a connection says what it is for.
#[derive(Clone, Debug)]
pub(crate) enum Via {
    /// It was redirected here; this is where it was going.
    Original(SocketAddr),
    /// The listener stands for an authority.
    Upstream(String),
    /// The client knows that it speaks to a proxy: absolute-form requests and CONNECT.
    Explicit,
}

/// Targets remembered as server-first; beyond, all are forgotten and learned again.
const MAX_SERVER_FIRST: usize = 1_024;

impl Outbound {
    pub(crate) fn new(
        config: &Arc<Config>,
        discovery: &Discovery,
        recorder: &Arc<Recorder>,
        identity: &Identity,
        server: &Arc<Server>,
    ) -> Arc<Self> {
        let backends = Arc::new(Backends::new(
            Arc::clone(config),
            discovery.clone(),
            Arc::clone(recorder),
            identity.clone(),
        ));
        Arc::new(Self {
            limit: ConcurrencyLimit::new(config.limits.max_in_flight),
            targets: Targets::new(
                &config.limits,
                discovery.clone(),
                Arc::clone(&backends),
                Arc::clone(&recorder.telemetry),
            ),
            config: Arc::clone(config),
            recorder: Arc::clone(recorder),
            server: Arc::clone(server),
            backends,
            server_first: Mutex::default(),
        })
    }

    /// One client connection, to its end.
    pub(crate) async fn connection(self: Arc<Self>, client: SocketAddr, io: Io, via: Via) {
        let target = match via {
            Via::Explicit => return self.explicit(client, io).await,
            Via::Original(addr) => Target::Addr(addr),
            Via::Upstream(authority) => Target::Authority(authority),
        };
        let span = tracing::debug_span!("outbound.connection", %target, %client);
        self.fixed(client, io, target).instrument(span).await;
    }

    /// A connection to a forward proxy: every request names its own target.
    async fn explicit(self: Arc<Self>, client: SocketAddr, mut io: Io) {
        let mut detector = Detector::default();
        let detected = detector.run_within(&mut io, self.config.limits.header_timeout).await;
        detector.finish(&mut io);
        match detected {
            Ok(Some(Detected::Http(version))) => {
                let this = Arc::clone(&self);
                let service = move |request| Arc::clone(&this).proxied(client, request);
                self.server.serve(io, version, service).await;
            }
            Ok(Some(_)) => {
                let message = "only HTTP requests and CONNECT name their target";
                self.refuse(&"forward proxy", client, &unknown_target(message));
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// A connection whose target is known from the start.
    async fn fixed(self: Arc<Self>, client: SocketAddr, mut io: Io, target: Target) {
        let stack = self.targets.get(&target);
        let known = match stack.onward().await {
            Ok(Onward::Outside(egress, rules)) => {
                return self.leaving(client, io, stack, (egress, rules)).await;
            }
            Ok(Onward::Mesh(routes)) => Ok(routes),
            Err(error) => Err(error),
        };
        let opaque = match known.as_deref().map(|routes| &routes.protocol) {
            Ok(RoutedProtocol::Opaque(tcp)) => Some(tcp),
            _ => None,
        };
        if let Some(tcp) = opaque {
            return self.bytes(tcp, client, io, None, &target).await;
        }
        let limit = self.config.limits.header_timeout;
        let (tcp, within) = match known.as_deref().map(|routes| &routes.protocol) {
            Ok(RoutedProtocol::Detect { tcp, timeout, .. }) => (Some(tcp), *timeout),
            Ok(RoutedProtocol::Tls(tcp)) => (Some(tcp), limit),
            _ => (None, limit),
        };
        let router = tcp.map(|tcp| move || Some(tcp));
        let detected = match self.detect(&mut io, router, within, &target).await {
            Ok(Some(detected)) => detected,
            Ok(None) => return,
            Err(error) => return tracing::debug!(%target, %client, %error, "client connection"),
        };
        match (detected, tcp) {
            (Spoken::First(Detected::Http(version)), _) => {
                self.serve(client, version, stack, io).await;
            }
            (Spoken::First(Detected::Tls { sni }), Some(tcp)) => {
                self.bytes(tcp, client, io, sni.as_deref(), &target).await;
            }
            (Spoken::First(Detected::Opaque), Some(tcp)) => {
                self.bytes(tcp, client, io, None, &target).await;
            }
            (Spoken::Server(connected), _) => tcp::carry(io, connected, pending()).await,
            (Spoken::First(_), None) => {
                let failure = match known {
                    Err(error) => Failure::of(&error.into()),
                    Ok(_) => unknown_target("the service speaks HTTP only, this client does not"),
                };
                self.refuse(&target, client, &failure);
            }
        }
    }

    /// The requests of a connection.
    async fn serve(
        self: Arc<Self>,
        client: SocketAddr,
        version: Version,
        stack: Arc<TargetStack>,
        io: Io,
    ) {
        let this = Arc::clone(&self);
        let port = match stack.target() {
            Target::Addr(addr) => addr.port(),
            Target::Authority(authority) => port_of(authority),
        };
        let service = move |request| {
            let (this, stack) = (Arc::clone(&this), Arc::clone(&stack));
            let request = http::Request::map(request, Body::from);
            async move { this.exchange(client, port, version, stack, request, any).await }
        };
        self.server.serve(io, version, service).await;
    }

    /// What a connection speaks. Where bytes can be carried, a server that speaks first is heard.
    async fn detect<'a>(
        &self,
        io: &mut Io,
        tcp: Option<impl FnOnce() -> Option<&'a TcpRouter>>,
        within: Duration,
        target: &Target,
    ) -> std::io::Result<Option<Spoken>> {
        if tcp.is_some() && self.server_first.lock().contains_key(target) {
            return Ok(Some(Spoken::First(Detected::Opaque)));
        }
        let started = Instant::now();
        let mut detector = Detector::default();
        let span = tracing::debug_span!("outbound.detect");
        let detected = async {
            if let Ok(detected) = tokio::time::timeout(PATIENCE, detector.run(io)).await {
                return detected.map(First::Client);
            }
            let tcp = tcp.filter(|_| !detector.has_read()).and_then(|tcp| tcp());
            match tcp {
                Some(tcp) => tcp::wait_for_first(tcp, io, &mut detector, within).await,
                None => detector.run_within(io, within).await.map(First::Client),
            }
        };
        let first = detected.instrument(span).await?;
        detector.finish(io);
        let spoken = match first {
            First::Client(None) => return Ok(None),
            First::Client(Some(detected)) => Spoken::First(detected),
            First::Server(connected) => {
                let mut remembered = self.server_first.lock();
                if remembered.len() >= MAX_SERVER_FIRST {
                    remembered.clear();
                }
                remembered.insert(target.clone(), ());
                Spoken::Server(connected)
            }
        };
        let detect = &self.recorder.telemetry.detect;
        detect.record(Direction::Outbound, spoken.label(), started.elapsed());
        Ok(Some(spoken))
    }

    async fn bytes(
        &self,
        router: &TcpRouter,
        client: SocketAddr,
        io: Io,
        sni: Option<&str>,
        target: &Target,
    ) {
        if let Err(failure) = tcp::forward(router, io, sni, pending()).await {
            self.refuse(target, client, &failure);
        }
    }

    /// A request to a forward proxy.
    async fn proxied(
        self: Arc<Self>,
        client: SocketAddr,
        mut request: http::Request<Incoming>,
    ) -> Response {
        let grpc = mesh_layers::is_grpc(request.headers());
        let Some(authority) = forward::authority_of(&request) else {
            let message = "the request names no host: a forward proxy needs absolute-form";
            return unknown_target(message).response(grpc);
        };
        let target = match target_of(&authority, request.method() == Method::CONNECT) {
            Ok(target) => target,
            Err(failure) => return failure.response(grpc),
        };
        if matches!(target, Target::Addr(addr) if self.config.outbound.addrs.contains(&addr)) {
            let message = format!("{target} is this proxy itself");
            return Failure { reason: Reason::LoopDetected, message }.response(grpc);
        }
        if request.method() == Method::CONNECT {
            let upgrade = Upgrade::of(&mut request);
            let tasks = Arc::clone(&self.server);
            tasks.spawn(async move {
                match upgrade.into_io().await {
                    Ok(io) => self.fixed(client, io, target).await,
                    Err(error) => tracing::debug!(%error, "tunnel did not open"),
                }
            });
            return Response::new(Body::empty());
        }
        let version = match request.version() {
            http::Version::HTTP_2 => Version::Http2,
            _ => Version::Http1,
        };
        let stack = self.targets.get(&target);
        let port = port_of(authority.as_str());
        self.exchange(client, port, version, stack, request.map(Body::from), any).await
    }

    /// A stack for what is not discovered but told.
    pub(crate) fn stack(
        &self,
        target: &Target,
        resolution: watch::Receiver<Resolution>,
    ) -> Arc<TargetStack> {
        self.targets.told(target, resolution)
    }

    /// Carries a connection as bytes, by its server name if it is TLS.
    pub(crate) async fn carry(
        &self,
        stack: &TargetStack,
        client: SocketAddr,
        io: Io,
        sni: Option<&str>,
    ) {
        let onward = stack.onward().await;
        let routes = match &onward {
            Ok(Onward::Mesh(routes)) => Some(&routes.protocol),
            Ok(Onward::Outside(..)) | Err(_) => None,
        };
        match routes {
            Some(RoutedProtocol::Opaque(tcp) | RoutedProtocol::Tls(tcp)) => {
                self.bytes(tcp, client, io, sni, stack.target()).await;
            }
            _ => {
                let failure = unknown_target("nothing is routed as bytes there");
                self.refuse(stack.target(), client, &failure);
            }
        }
    }

    /// One request with its response: recorded, answered whatever happens, limited, admitted, routed.
    pub(crate) async fn exchange(
        self: Arc<Self>,
        client: SocketAddr,
        port: u16,
        version: Version,
        stack: Arc<TargetStack>,
        mut request: Request,
        admit: impl Fn(&mut Request) -> Result<(), MeshError>,
    ) -> Response {
        let client_version = request.version();
        let upgrade = forward::wants_upgrade(&request).then(|| Upgrade::of(&mut request));
        let host = upgrade.is_some().then(|| egress::host_of(&request)).flatten();
        let exchange =
            Exchange::begin(&self.recorder, Direction::Outbound, client, port, &mut request);
        forward::prepare_request(&mut request, upgrade.is_some());
        let span = tracing::debug_span!("outbound.request", method = %request.method(),
            path = request.uri().path());
        let limited = service_fn(|request| dispatch(&stack, version, &admit, request));
        let mut limited = self.limit.layer(limited);
        let result = limited.call(request).instrument(span).await;
        let mut response = match result {
            Ok(response) => exchange.respond(response),
            Err(error) => exchange.fail(&Failure::of(&error)),
        };
        forward::response_to(client_version, &mut response);
        if let Some(upgrade) = upgrade
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            upgrade.join(&mut response, &self.server, stack.revoked(host, client));
        }
        response
    }

    fn refuse(&self, target: &dyn std::fmt::Display, client: SocketAddr, failure: &Failure) {
        tracing::info!(%target, %client, %failure, "connection closed");
    }

    /// All backends in use, for gauges, `stat` and `/config`.
    pub(crate) fn backends(&self) -> Vec<Arc<BackendStack>> {
        self.backends.named()
    }

    /// Lets go of what has not been used for a while.
    pub(crate) fn expire(&self, now: Instant) {
        self.targets.expire(now);
        for backend in self.backends.all() {
            backend.expire(now);
        }
    }

    /// What this half believes, for `/config`.
    pub(crate) fn describe(&self) -> Vec<serde_json::Value> {
        self.targets.describe()
    }
}

/// Who spoke, and what.
enum Spoken {
    First(Detected),
    Server(tcp::Connected),
}

impl Spoken {
    fn label(&self) -> DetectedLabel {
        match self {
            Self::First(detected) => detected.label(),
            Self::Server(_) => DetectedLabel::ServerFirst,
        }
    }
}

/// The application's own requests are all admitted.
fn any(_: &mut Request) -> Result<(), MeshError> {
    Ok(())
}

/// Hands a request to the router of what the client speaks.
async fn dispatch(
    stack: &TargetStack,
    version: Version,
    admit: impl Fn(&mut Request) -> Result<(), MeshError>,
    mut request: Request,
) -> Result<Response, BoxError> {
    forward::check_host(&request)?;
    admit(&mut request)?;
    let routes = match stack.onward().await? {
        Onward::Mesh(routes) => routes,
        Onward::Outside(egress, rules) => egress.request(&rules, &request)?,
    };
    router(&routes, version)?.call(request)?.await
}

fn router(routes: &Routes, version: Version) -> Result<&HttpRouter, MeshError> {
    match (&routes.protocol, version) {
        (RoutedProtocol::Detect { http1, .. }, Version::Http1) => Ok(http1),
        (RoutedProtocol::Detect { http2, .. }, Version::Http2) => Ok(http2),
        (RoutedProtocol::Http(http), _) => Ok(http),
        (RoutedProtocol::Tls(_) | RoutedProtocol::Opaque(_), _) => {
            let message = format!("{} takes no HTTP requests: use CONNECT", routes.meta);
            Err(MeshError::new(Reason::UnknownTarget, message))
        }
    }
}

/// The target an authority names, and whether it is one.
fn target_of(authority: &http::uri::Authority, connect: bool) -> Result<Target, Failure> {
    if authority.as_str().contains('@') {
        return Err(unknown_target("an authority with user information is no target"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = match authority.port_u16() {
        Some(port) => port,
        None if connect => return Err(unknown_target("CONNECT needs a port")),
        None => 80,
    };
    match host.parse() {
        Ok(ip) => Ok(Target::Addr(SocketAddr::new(ip, port))),
        Err(_) => Ok(Target::Authority(format!("{}:{port}", host.to_ascii_lowercase()))),
    }
}

fn port_of(authority: &str) -> u16 {
    authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80)
}

fn unknown_target(message: &str) -> Failure {
    Failure { reason: Reason::UnknownTarget, message: message.to_owned() }
}
