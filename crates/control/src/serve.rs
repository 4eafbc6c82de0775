//! The listeners, and how they end.

pub(crate) mod places;
mod secured;

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use futures_util::Stream;
use mesh_api::server::control_plane_routes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};

use crate::admin;
use crate::config::Config;
use crate::identity::Authority;
use crate::index::identity::MeshNames;
use crate::services::Control;
use crate::services::mesh::MeshService;
use crate::source::kube::NoCluster;
use crate::state::Shared;

/// Streams to proxies never end by themselves; they are cut after this.
const GRACE: Duration = Duration::from_millis(500);
/// A proxy that vanished without a word is noticed within the sum of these.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one connection: a proxy has a few for each target and port.
const MAX_STREAMS: u32 = 10_000;

/// Why the control plane could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("another control plane listens on {}", path.display())]
    SocketInUse { path: PathBuf },
    #[error("cannot watch for signals")]
    Signals { source: io::Error },
    #[error(transparent)]
    Cluster(#[from] NoCluster),
    #[error("serving failed")]
    Serve { source: tonic::transport::Error },
}

/// Everything the control plane listens on.
pub(crate) struct Listeners {
    proxies: TcpListener,
    admin: TcpListener,
    /// For people.
    api: Option<TcpListener>,
    socket: Option<(UnixListener, PathBuf)>,
}

impl Listeners {
    pub(crate) async fn bind(config: &Config) -> Result<Self, StartError> {
        let socket = match &config.socket {
            Some(path) => Some((bind_socket(path).await?, path.clone())),
            None => None,
        };
        let api = match config.api {
            Some(addr) => Some(tcp(addr).await?),
            None => None,
        };
        let (proxies, admin) = (tcp(config.listen).await?, tcp(config.admin).await?);
        Ok(Self { proxies, admin, api, socket })
    }

    /// Serves until a signal comes.
    pub(crate) async fn serve(
        self,
        shared: Arc<Shared>,
        authority: Option<Arc<Authority>>,
        source: &'static str,
    ) -> Result<(), StartError> {
        let signals = |source| StartError::Signals { source };
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        let stop = CancellationToken::new();
        let mesh = MeshService::new(Arc::clone(&shared), source);

        let of = (Arc::clone(&shared), authority.clone());
        tokio::spawn(admin::serve(self.admin, of, stop.clone()));
        let routes = control_plane_routes(Control::new(Arc::clone(&shared), authority.clone()));
        // All of it for people, too: `meshctl check` asks what proxies ask.
        let all = routes.clone().add_service(mesh.into_server());
        let mesh = authority.map(|authority| authority.settings().names.clone());
        let (socket, path) = self.socket.unzip();
        let serving = async {
            tokio::try_join!(
                serve_proxies(self.proxies, shared, mesh, [&routes, &all], &stop),
                serve_people(socket.map(UnixListenerStream::new), &all, &stop),
                serve_people(self.api.map(TcpIncoming::from), &all, &stop),
            )
            .map(drop)
        };
        let asked_to_end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("ending");
            stop.cancel();
            tokio::time::sleep(GRACE).await;
        };
        tracing::info!("started");
        let result = tokio::select! {
            result = serving => result.map_err(|source| StartError::Serve { source }),
            () = asked_to_end => Ok(()),
        };
        if let Some(path) = path {
            // The next one removes it if this fails.
            let _ = fs::remove_file(path);
        }
        result
    }
}

/// Serves proxies once all is known: before, "not found" would be a lie on which they act. They wait in
/// the listener's queue meanwhile. On this machine that is in the clear and all is told; others
/// are told what proxies need, and in a mesh with identity only after they proved who they are.
async fn serve_proxies(
    listener: TcpListener,
    shared: Arc<Shared>,
    identity: Option<MeshNames>,
    [for_proxies, all]: [&Routes; 2],
    stop: &CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let mut ready = shared.watch_ready();
    tokio::select! {
        _ = ready.wait_for(|ready| *ready) => {}
        () = stop.cancelled() => return Ok(()),
    }
    let ended = stop.clone().cancelled_owned();
    let local = listener.local_addr().is_ok_and(|addr| addr.ip().is_loopback());
    if let Some(mesh) = identity.filter(|_| !local) {
        let incoming = secured::incoming(listener, shared.own.clone(), mesh);
        let server = server().layer(secured::Guard).add_routes(for_proxies.clone());
        return server.serve_with_incoming_shutdown(incoming, ended).await;
    }
    let routes = if local { all } else { for_proxies };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    server().add_routes(routes.clone()).serve_with_incoming_shutdown(incoming, ended).await
}

async fn serve_people<I, Io>(
    incoming: Option<I>,
    routes: &Routes,
    stop: &CancellationToken,
) -> Result<(), tonic::transport::Error>
where
    I: Stream<Item = io::Result<Io>>,
    Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let Some(incoming) = incoming else { return Ok(()) };
    let ended = stop.clone().cancelled_owned();
    server().add_routes(routes.clone()).serve_with_incoming_shutdown(incoming, ended).await
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
}

pub(crate) async fn tcp(addr: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| StartError::Listen { address: addr.to_string(), source })
}

/// Listens on a path, for this user only. A socket that nobody listens on any more is replaced.
async fn bind_socket(path: &Path) -> Result<UnixListener, StartError> {
    let error = |source| StartError::Listen { address: path.display().to_string(), source };
    match tokio::net::UnixStream::connect(path).await {
        Ok(_) => return Err(StartError::SocketInUse { path: path.to_owned() }),
        // Connecting to an ordinary file is refused, too.
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            if fs::metadata(path).map_err(error)?.file_type().is_socket() {
                fs::remove_file(path).map_err(error)?;
            }
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(error)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use mesh_api::Workload;
    use mesh_api::client::ControlClient;
    use mesh_model::Target;

    use super::*;
    use crate::index::object::{Name, Object, Service, ServicePort};

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(bind_socket(&path).await.unwrap());
        assert!(path.exists(), "what a crash leaves behind");
        let live = bind_socket(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = bind_socket(&path).await;
        assert!(matches!(second, Err(StartError::SocketInUse { .. })));
        drop(live);
    }

    #[tokio::test]
    async fn proxies_are_not_told_that_something_is_missing_before_all_is_known() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (proxies, admin) = (tcp(any).await.unwrap(), tcp(any).await.unwrap());
        let addr = proxies.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let listeners = Listeners { proxies, admin, api: None, socket: None };
        let serving = tokio::spawn(listeners.serve(Arc::clone(&shared), None, "local"));

        let client = ControlClient::new(ControlClient::lazy_channel(addr), Workload::default());
        let target = Target::Authority("tax.shop:8080".into());
        let asked = tokio::spawn(async move { client.watch_outbound(&target).await.map(drop) });
        tokio::net::TcpStream::connect(addr).await.unwrap();
        shared.index.write().apply(Object::Service(Service {
            name: Name::new("shop", "tax"),
            ports: vec![ServicePort { port: 8080, ..ServicePort::default() }],
            ..Service::default()
        }));
        shared.set_ready();
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, asked).await.unwrap().unwrap().unwrap();
        serving.abort();
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(bind_socket(&path).await.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }
}
