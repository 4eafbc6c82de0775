//! What the floor programs share: connections as they are, and in a pair of them, mTLS on the side of the other.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_tls::{Credentials, Id, Issuer, Key, TrustBundle, WorkloadId};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

/// Longer than any bench.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A connection in the clear or secured. Boxed, so that TLS takes no memory of those that have none.
pub type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// Both sides of a floor program.
#[derive(Clone, Debug)]
pub struct Sides {
    upstream: SocketAddr,
    secured: Secured,
}

#[derive(Clone, Debug)]
enum Secured {
    Neither,
    Upstream(Arc<Credentials>),
    Accepted(Arc<Credentials>),
}

impl Sides {
    /// From the arguments `UPSTREAM` and, in a pair, `tls-upstream|tls-accepted FOLDER`. The folder has a mesh's issuer,
    /// with which each program certifies itself.
    ///
    /// # Errors
    /// When the arguments are others, or the issuer is of no use.
    pub fn new(upstream: &str, secured: &[String]) -> io::Result<Self> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let upstream = upstream.parse().map_err(|_| invalid("UPSTREAM is IP:PORT"))?;
        let secured = match secured {
            [] => Secured::Neither,
            [side, folder] if side == "tls-upstream" => Secured::Upstream(certified(folder)?),
            [side, folder] if side == "tls-accepted" => Secured::Accepted(certified(folder)?),
            _ => return Err(invalid("after the protocol: tls-upstream|tls-accepted FOLDER")),
        };
        Ok(Self { upstream, secured })
    }

    /// Makes an accepted connection ready for use.
    ///
    /// # Errors
    /// When the client does not prove that it is of the mesh.
    pub async fn accepted(&self, socket: TcpStream) -> io::Result<Stream> {
        socket.set_nodelay(true)?;
        let Secured::Accepted(credentials) = &self.secured else {
            return Ok(Either::Left(socket));
        };
        let accepted = mesh_tls::accept(credentials, socket).await.map_err(io::Error::other)?;
        Ok(Either::Right(Box::new(accepted.io)))
    }

    /// Opens a connection to the upstream.
    ///
    /// # Errors
    /// When it refuses, or does not prove that it is of the mesh.
    pub async fn connect(&self) -> io::Result<Stream> {
        let socket = TcpStream::connect(self.upstream).await?;
        socket.set_nodelay(true)?;
        let Secured::Upstream(credentials) = &self.secured else {
            return Ok(Either::Left(socket));
        };
        let id = credentials.id().as_str();
        let secured = mesh_tls::connect(credentials, socket, id, id, false).await;
        Ok(Either::Right(Box::new(secured.map_err(io::Error::other)?)))
    }
}

/// Credentials from the issuer in a folder. Both programs of a pair have the same identity.
fn certified(folder: &str) -> io::Result<Arc<Credentials>> {
    let read = |name| fs::read_to_string(Path::new(folder).join(name));
    let bundle = TrustBundle::from_pem(&read("roots.pem")?).map_err(io::Error::other)?;
    let issuer = Issuer::from_pem(&read("issuer.pem")?, &read("issuer-key.pem")?);
    let issuer = issuer.map_err(io::Error::other)?;
    let (id, key) = (id(), Key::generate());
    let issued = issuer.certify(&key.request(&id), &id, LIFETIME).map_err(io::Error::other)?;
    let credentials = Credentials::new(&id, &key, &issued.chain(), &bundle);
    Ok(Arc::new(credentials.map_err(io::Error::other)?))
}

fn id() -> Id {
    let id = WorkloadId {
        service_account: "floor".to_owned(),
        namespace: "bench".to_owned(),
        control_namespace: "mesh-system".to_owned(),
        trust_domain: "cluster.local".to_owned(),
    };
    id.id().expect("its parts are labels")
}
