//! The listeners, and how they end.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use mesh_api::server::control_plane_routes;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::admin;
use crate::config::Config;
use crate::identity::Authority;
use crate::services::Control;
use crate::services::mesh::MeshService;
use crate::state::Shared;

/// Streams to proxies never end by themselves; they are cut after this.
const GRACE: Duration = Duration::from_millis(500);
/// A proxy that vanished without a word is noticed within the sum of these.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the control plane could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("another control plane listens on {}", path.display())]
    SocketInUse { path: PathBuf },
    #[error("--webhook: no Kubernetes API server is known")]
    NoCluster { source: Box<kube::Error> },
    #[error("cannot watch for signals")]
    Signals { source: io::Error },
    #[error("serving failed")]
    Serve { source: tonic::transport::Error },
}

/// Everything the control plane listens on.
pub(crate) struct Listeners {
    proxies: TcpListener,
    admin: TcpListener,
    socket: Option<(UnixListener, PathBuf)>,
}

impl Listeners {
    pub(crate) async fn bind(config: &Config) -> Result<Self, StartError> {
        let socket = match &config.socket {
            Some(path) => Some((bind_socket(path).await?, path.clone())),
            None => None,
        };
        Ok(Self { proxies: tcp(config.listen).await?, admin: tcp(config.admin).await?, socket })
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
        let ended = |stop: &CancellationToken| stop.clone().cancelled_owned();

        let of = (Arc::clone(&shared), authority.clone());
        tokio::spawn(admin::serve(self.admin, of, stop.clone()));
        let mut ready = shared.watch_ready();
        let control = Control::new(shared, authority);
        let routes = control_plane_routes(control).add_service(mesh.into_server());
        let told = routes.clone();
        let incoming = TcpIncoming::from(self.proxies).with_nodelay(Some(true));
        let proxies = async {
            // Until everything has been told, "not found" would be a lie on which proxies act.
            // They wait in the listener's queue meanwhile.
            tokio::select! {
                _ = ready.wait_for(|ready| *ready) => {}
                () = stop.cancelled() => return Ok(()),
            }
            server().add_routes(told).serve_with_incoming_shutdown(incoming, ended(&stop)).await
        };
        let (listener, path) = self.socket.unzip();
        let people = async {
            match listener {
                Some(listener) => {
                    let incoming = UnixListenerStream::new(listener);
                    // All of it here, too: `meshctl check` asks what proxies ask, and reaches us by
                    // this socket only when we are in another network namespace.
                    let server = server().add_routes(routes);
                    server.serve_with_incoming_shutdown(incoming, ended(&stop)).await
                }
                None => {
                    stop.cancelled().await;
                    Ok(())
                }
            }
        };
        let serving = async { tokio::try_join!(proxies, people).map(drop) };
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

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
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
        let listeners = Listeners { proxies, admin, socket: None };
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
