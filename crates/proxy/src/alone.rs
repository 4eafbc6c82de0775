//! The outbound half by itself, in the thread of whoever runs it: what `benches/outbound.rs` measures.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use mesh_api::client::ControlClient;
use mesh_model::Direction;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigErrors};
use crate::discovery::Discovery;
use crate::exchange::Recorder;
use crate::http::activity::Sweeper;
use crate::http::server::Server;
use crate::identity::Identity;
use crate::io::Io;
use crate::outbound::{Outbound, Via};
use crate::resolve::Resolver;
use crate::telemetry::{
    AccessLog, Peer, Telemetry, TelemetryConfig, TransportLabels, TransportSeries,
};

/// An outbound half with everything switched on that is by default. Nothing listens.
#[derive(Debug)]
pub struct OutboundAlone {
    outbound: Arc<Outbound>,
    transport: Arc<TransportSeries>,
}

impl OutboundAlone {
    /// Lives in the runtime that it is made in, and is told what to do by this control plane.
    ///
    /// # Errors
    /// None: the defaults are a configuration.
    pub fn new(client: ControlClient) -> Result<Self, ConfigErrors> {
        let config = Arc::new(Config::from_vars([])?);
        let telemetry = Telemetry::new(&TelemetryConfig::default());
        let labels = TransportLabels::new(Direction::Outbound, Peer::Src, None);
        let transport = telemetry.transport.series(&labels);
        let runtime = Handle::current();
        let discovery =
            Discovery::new(Some(client), Resolver::default(), runtime, Arc::clone(&telemetry));
        let access_log = AccessLog::new(config.access_log);
        let recorder = Arc::new(Recorder { telemetry, access_log, tracer: None });
        let sweeper = Sweeper::new(config.limits.header_timeout);
        let server = Server::new(&config.limits, Arc::clone(&sweeper), CancellationToken::new());
        tokio::spawn(sweeper.run());
        let identity = Identity::default();
        let outbound = Outbound::new(&config, &discovery, &recorder, &identity, &Arc::new(server));
        Ok(Self { outbound, transport })
    }

    /// Serves a connection of an application to this authority, until it ends.
    pub async fn serve(&self, stream: TcpStream, authority: &str) {
        let io = Io::new(stream, self.transport.open());
        let client = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let via = Via::Upstream(authority.to_owned());
        Arc::clone(&self.outbound).connection(client, io, via).await;
    }
}
