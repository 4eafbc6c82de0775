//! The edge: what clients outside of the mesh send, top to bottom in the order a request passes.
//!
//! The control plane says which ports there are and what is served on each; listeners open and close as
//! it does. accept → a place for the client's address → what does it speak → TLS that ends here
//! ([`certificates`]), or is passed on by its server name → HTTP: what strangers may not say is taken
//! away ([`request`]) → as any outbound request, by the routes of the port / bytes.

mod certificates;
mod metrics;
mod places;
mod port;
mod request;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::Direction;
use mesh_model::gateway::GatewayConfig;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub(crate) use self::metrics::GatewayMetrics;
use self::metrics::Refused;
use self::places::Places;
use self::port::{Port, Secured};
use self::request::Front;
use crate::config::{Config, EdgeConfig};
use crate::detect::{Detected, Detector};
use crate::http::server::{Server, Version};
use crate::io::Io;
use crate::listen;
use crate::outbound::Outbound;
use crate::worker::Accepting;

/// What the control plane has said of the gateway; nothing before it has.
pub(crate) type Feed = watch::Receiver<Option<Arc<GatewayConfig>>>;

/// Before a port that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The edge half of one worker.
#[derive(Debug)]
pub(crate) struct Gateway {
    edge: EdgeConfig,
    config: Arc<Config>,
    outbound: Arc<Outbound>,
    server: Arc<Server>,
    places: Arc<Places>,
    metrics: GatewayMetrics,
    feed: Feed,
    ports: Mutex<BTreeMap<u16, Arc<Port>>>,
    /// Cancelled once every port that was told first was tried.
    tried: CancellationToken,
}

impl Gateway {
    pub(crate) fn new(
        config: &Arc<Config>,
        edge: &EdgeConfig,
        outbound: &Arc<Outbound>,
        server: &Arc<Server>,
        metrics: &GatewayMetrics,
        feed: Feed,
    ) -> Arc<Self> {
        Arc::new(Self {
            edge: edge.clone(),
            config: Arc::clone(config),
            outbound: Arc::clone(outbound),
            server: Arc::clone(server),
            places: Places::new(edge.max_client_connections),
            metrics: metrics.clone(),
            feed,
            ports: Mutex::default(),
            tried: CancellationToken::new(),
        })
    }

    /// Completes once the control plane has said what to serve, and every port of it was tried.
    pub(crate) async fn tried(&self) {
        self.tried.cancelled().await;
    }

    /// Keeps the listeners as the control plane says, until the drain.
    pub(crate) async fn run(self: Arc<Self>, accepting: Accepting) {
        let mut feed = self.feed.clone();
        loop {
            let config = feed.borrow_and_update().clone();
            let told = config.is_some();
            let complete = config.is_none_or(|config| self.apply(&config, &accepting));
            if told {
                self.tried.cancel();
            }
            let again = async {
                match complete {
                    true => std::future::pending().await,
                    false => tokio::time::sleep(RETRY).await,
                }
            };
            tokio::select! {
                changed = feed.changed() => if changed.is_err() { return },
                () = again => {}
                () = self.server.drain().cancelled() => return,
            }
        }
    }

    /// Opens, changes and closes ports; says whether all of them are open.
    fn apply(self: &Arc<Self>, config: &GatewayConfig, accepting: &Accepting) -> bool {
        let mut ports = self.ports.lock();
        ports.retain(|number, port| {
            let stays = config.ports.iter().any(|wanted| wanted.port == *number);
            if !stays {
                tracing::info!(port = number, "closing a port");
                port.close();
            }
            stays
        });
        for wanted in &config.ports {
            let port = ports
                .entry(wanted.port)
                .or_insert_with(|| Arc::new(Port::new(wanted.port, &self.outbound)));
            port.set(wanted);
            if !port.is_open() {
                self.open(port, accepting);
            }
        }
        ports.values().all(|port| port.is_open())
    }

    fn open(self: &Arc<Self>, port: &Arc<Port>, accepting: &Accepting) {
        let addr = SocketAddr::new(self.edge.listen, port.number);
        let stop = self.server.drain().child_token();
        let opened = listen::bind("gateway", addr, self.config.threads > 1)
            .map_err(|error| error.to_string())
            .and_then(|listener| {
                let (this, of) = (Arc::clone(self), Arc::clone(port));
                let route = move |_: &_, _| {
                    let (gateway, port) = (Arc::clone(&this), Arc::clone(&of));
                    Some(move |client, io| gateway.connection(client, io, port))
                };
                let direction = Direction::Outbound;
                let started = accepting.start_until(listener, direction, stop.clone(), route);
                started.map_err(|error| error.to_string())
            });
        match opened {
            Ok(()) => {
                tracing::info!(%addr, "listening at the edge");
                port.opened(stop);
            }
            Err(error) => {
                self.metrics.listen_failed();
                if port.failed(error.clone()) {
                    tracing::error!(%addr, error, retry = ?RETRY, "a port of the gateway is not served");
                }
            }
        }
    }

    /// One connection of a client, to its end.
    async fn connection(self: Arc<Self>, client: SocketAddr, mut io: Io, port: Arc<Port>) {
        let Some(place) = self.places.take(client.ip()) else {
            self.metrics.refused(Refused::TooManyConnections);
            return tracing::debug!(%client, "too many connections of one address");
        };
        io.hold(place);
        let span = tracing::debug_span!("gateway.connection", port = port.number, %client);
        self.serve(client, io, &port).instrument(span).await;
    }

    async fn serve(self: &Arc<Self>, client: SocketAddr, mut io: Io, port: &Arc<Port>) {
        let serving = port.serving();
        if serving.tcp {
            return self.outbound.carry(&port.bytes.stack, client, io, None).await;
        }
        match self.detect(&mut io).await {
            Some(Detected::Http(version)) if serving.http => {
                let front = Front::new(client, port, None);
                self.http(front, &port.http.stack, io, version).await;
            }
            Some(Detected::Tls { sni }) if serving.passes(sni.as_deref()) => {
                self.outbound.carry(&port.bytes.stack, client, io, sni.as_deref()).await;
            }
            Some(Detected::Tls { .. }) if serving.secured.is_some() => {
                let secured = serving.secured.iter().next();
                let Some(secured) = secured else { return };
                Box::pin(self.https(client, io, port, secured)).await;
            }
            Some(detected) => {
                self.metrics.refused(Refused::Protocol);
                tracing::debug!(%client, ?detected, "the port does not serve that");
            }
            None => {}
        }
    }

    /// TLS that ends here, and what is in it.
    async fn https(
        self: &Arc<Self>,
        client: SocketAddr,
        io: Io,
        port: &Arc<Port>,
        secured: &Arc<Secured>,
    ) {
        let limit = self.config.limits.header_timeout;
        let accepted = match tokio::time::timeout(limit, secured.server.accept(io)).await {
            Ok(Ok(accepted)) => accepted,
            Ok(Err(error)) => {
                self.metrics.refused(Refused::Handshake);
                return tracing::debug!(%client, %error, "no TLS with a client");
            }
            Err(_) => {
                self.metrics.refused(Refused::Handshake);
                return tracing::debug!(%client, "a client's TLS handshake took too long");
            }
        };
        let listener = secured.table.listener(accepted.name.as_deref());
        let mut io = Io::secured(accepted.io);
        let version = match accepted.http2 {
            Some(true) => Version::Http2,
            Some(false) => Version::Http1,
            None => match self.detect(&mut io).await {
                Some(Detected::Http(version)) => version,
                _ => return self.metrics.refused(Refused::Protocol),
            },
        };
        let front = Front::new(client, port, Some((Arc::clone(&secured.table), listener)));
        self.http(front, &port.https.stack, io, version).await;
    }

    async fn http(
        self: &Arc<Self>,
        front: Front,
        stack: &Arc<crate::outbound::TargetStack>,
        io: Io,
        version: Version,
    ) {
        let (this, front, stack) = (Arc::clone(self), Arc::new(front), Arc::clone(stack));
        let service = move |request| {
            let (this, front, stack) = (Arc::clone(&this), Arc::clone(&front), Arc::clone(&stack));
            async move { this.request(front, version, stack, request).await }
        };
        self.server.serve(io, version, service).await;
    }

    async fn detect(&self, io: &mut Io) -> Option<Detected> {
        let mut detector = Detector::default();
        let detected = detector.run_within(io, self.config.limits.header_timeout).await;
        detector.finish(io);
        detected.ok().flatten()
    }

    /// What is served, for `/config`. Without any key.
    pub(crate) fn describe(&self) -> Vec<Value> {
        self.ports.lock().values().map(|port| port.describe()).collect()
    }
}
