//! One thread of the data path: its listeners, its two halves, and their upkeep. Workers share
//! nothing but what the control runtime feeds them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::Direction;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, InboundPort, Upstream};
use crate::discovery::Discovery;
use crate::exchange::Recorder;
use crate::gateway::{Feed, Gateway, GatewayMetrics};
use crate::http::activity::Sweeper;
use crate::http::server::Server;
use crate::identity::Identity;
use crate::inbound::Inbound;
use crate::io::Io;
use crate::listen::{self, ListenError, Open};
use crate::outbound::{Outbound, Via};
use crate::telemetry::{Peer, TransportLabels, TransportSeries};

/// How often idle connections and targets are let go of.
const UPKEEP: Duration = Duration::from_secs(1);

/// A worker before it runs.
#[derive(Debug)]
pub(crate) struct Worker {
    config: Arc<Config>,
    recorder: Arc<Recorder>,
    server: Arc<Server>,
    sweeper: Arc<Sweeper>,
    outbound: Arc<Outbound>,
    inbound: Arc<Inbound>,
    gateway: Option<Arc<Gateway>>,
    listeners: Listeners,
}

#[derive(Debug)]
struct Listeners {
    outbound: Vec<std::net::TcpListener>,
    upstreams: Vec<(Upstream, std::net::TcpListener)>,
    inbound: std::net::TcpListener,
    ports: Vec<(InboundPort, std::net::TcpListener)>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Self, ListenError> {
        let shared = config.threads > 1;
        let upstream = |upstream: &Upstream| {
            let listener = listen::bind("upstream", upstream.listen, shared)?;
            Ok((upstream.clone(), listener))
        };
        let port = |port: &InboundPort| {
            Ok((port.clone(), listen::bind("inbound port", port.listen, shared)?))
        };
        Ok(Self {
            outbound: listen::bind_all("outbound", &config.outbound.addrs, shared)?,
            upstreams: config.outbound.upstreams.iter().map(upstream).collect::<Result<_, _>>()?,
            inbound: listen::bind("inbound", config.inbound.addr, shared)?,
            ports: config.inbound.ports.iter().map(port).collect::<Result<_, _>>()?,
        })
    }
}

impl Worker {
    /// Binds the worker's listeners; connections wait there until it runs.
    pub(crate) fn bind(
        config: &Arc<Config>,
        discovery: &Discovery,
        recorder: &Arc<Recorder>,
        identity: &Identity,
        gateway: Option<&(Feed, GatewayMetrics)>,
        drain: &CancellationToken,
    ) -> Result<Self, ListenError> {
        let sweeper = Sweeper::new(config.limits.header_timeout);
        let server = Server::new(&config.limits, Arc::clone(&sweeper), drain.clone());
        let server = Arc::new(server);
        let outbound = Outbound::new(config, discovery, recorder, identity, &server);
        let gateway = config.gateway.as_ref().zip(gateway).map(|(edge, (feed, metrics))| {
            Gateway::new(config, edge, &outbound, &server, metrics, feed.clone())
        });
        Ok(Self {
            listeners: Listeners::bind(config)?,
            gateway,
            outbound,
            inbound: Inbound::new(config, discovery, recorder, identity, &server),
            config: Arc::clone(config),
            recorder: Arc::clone(recorder),
            server,
            sweeper,
        })
    }

    pub(crate) fn outbound(&self) -> &Arc<Outbound> {
        &self.outbound
    }

    pub(crate) fn inbound(&self) -> &Arc<Inbound> {
        &self.inbound
    }

    pub(crate) fn gateway(&self) -> Option<&Arc<Gateway>> {
        self.gateway.as_ref()
    }

    pub(crate) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Serves until the drain has begun and every connection has ended.
    pub(crate) async fn run(self) -> std::io::Result<()> {
        let Self { config, recorder, server, sweeper, outbound, inbound, gateway, listeners } =
            self;
        let accepting = Accepting { max: config.limits.max_connections, recorder, server };
        for listener in listeners.outbound {
            let this = Arc::clone(&outbound);
            accepting.start(listener, Direction::Outbound, move |stream, _| {
                let via = listen::original_dst(stream).map_or(Via::Explicit, Via::Original);
                let outbound = Arc::clone(&this);
                Some(move |client, io| outbound.connection(client, io, via))
            })?;
        }
        for (upstream, listener) in listeners.upstreams {
            let this = Arc::clone(&outbound);
            accepting.start(listener, Direction::Outbound, move |_, _| {
                let (outbound, via) =
                    (Arc::clone(&this), Via::Upstream(upstream.authority.clone()));
                Some(move |client, io| outbound.connection(client, io, via))
            })?;
        }
        let this = Arc::clone(&inbound);
        accepting.start(listeners.inbound, Direction::Inbound, move |stream, client| {
            let local = listen::local_addr(stream).ok()?;
            let inbound = Arc::clone(&this);
            let port = match listen::original_dst(stream) {
                Some(to) => Some(this.redirected(client, to)?),
                None => None,
            };
            Some(async move |client, io| match port {
                Some(port) => inbound.connection(client, io, port).await,
                // It was not redirected: it is for this proxy, which has to be told where it goes.
                None => inbound.direct(client, io, local.ip()).await,
            })
        })?;
        for (port, listener) in listeners.ports {
            let this = Arc::clone(&inbound);
            // Asked for now, so that its policy is there when the first connection is.
            let port = this.port(port.listen, &port.forward).ok_or_else(|| {
                let listen = port.listen;
                std::io::Error::other(format!("inbound port {listen} has nowhere to forward to"))
            })?;
            accepting.start(listener, Direction::Inbound, move |_, _| {
                let (inbound, port) = (Arc::clone(&this), Arc::clone(&port));
                Some(move |client, io| inbound.connection(client, io, port))
            })?;
        }
        if let Some(gateway) = gateway {
            tokio::spawn(gateway.run(accepting.clone()));
        }
        tokio::spawn(sweeper.run());
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            loop {
                ticks.tick().await;
                let now = Instant::now();
                outbound.expire(now);
                inbound.expire(now);
            }
        });
        accepting.server.drained().await;
        Ok(())
    }
}

/// What all accept loops share.
#[derive(Clone, Debug)]
pub(crate) struct Accepting {
    max: usize,
    recorder: Arc<Recorder>,
    server: Arc<Server>,
}

impl Accepting {
    /// Starts accepting; `route` says what is to be done with a connection, `None` closes it.
    fn start<S, F>(
        &self,
        listener: std::net::TcpListener,
        direction: Direction,
        route: impl Fn(&TcpStream, SocketAddr) -> Option<S> + Send + Sync + 'static,
    ) -> std::io::Result<()>
    where
        S: FnOnce(SocketAddr, Io) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        self.start_until(listener, direction, self.server.drain().clone(), route)
    }

    /// The same until `stop`; what has been accepted goes on.
    pub(crate) fn start_until<S, F>(
        &self,
        listener: std::net::TcpListener,
        direction: Direction,
        stop: CancellationToken,
        route: impl Fn(&TcpStream, SocketAddr) -> Option<S> + Send + Sync + 'static,
    ) -> std::io::Result<()>
    where
        S: FnOnce(SocketAddr, Io) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let local = listener.local_addr()?;
        let labels = TransportLabels::new(direction, Peer::Src, Some(local));
        let transport: Arc<TransportSeries> = self.recorder.telemetry.transport.series(&labels);
        let (max, server) = (self.max, Arc::clone(&self.server));
        tokio::spawn(async move {
            let serve = |stream: TcpStream, client, open: Open| {
                let Some(serve) = route(&stream, client) else { return };
                let mut io = Io::new(stream, transport.open());
                io.hold(open);
                server.spawn(serve(client, io));
            };
            listen::accept(listener, max, &stop, serve).await;
        });
        Ok(())
    }
}
