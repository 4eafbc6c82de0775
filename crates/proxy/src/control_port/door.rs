//! Who may ask the control port.
//!
//! Callers on this machine, a port-forward among them, ask in the clear. Of all others only the
//! control plane may, in a mesh with identity: whoever can ask sees every request.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use crate::identity::Identity;

const HANDSHAKE: Duration = Duration::from_secs(2);

/// The connection to serve; `None` for those who may not ask.
pub(super) async fn admit(
    stream: TcpStream,
    peer: SocketAddr,
    identity: &Identity,
) -> Option<Either<TcpStream, TlsStream<TcpStream>>> {
    let control_plane = match identity.control_plane() {
        Some(id) if !peer.ip().to_canonical().is_loopback() => id,
        _ => return Some(Either::Left(stream)),
    };
    let credentials = identity.credentials()?;
    let accepting = mesh_tls::accept(&credentials, stream);
    match tokio::time::timeout(HANDSHAKE, accepting).await {
        Ok(Ok(accepted)) if *accepted.client == *control_plane.as_str() => {
            Some(Either::Right(accepted.io))
        }
        Ok(Ok(accepted)) => {
            tracing::warn!(%peer, client = %accepted.client, "only the control plane may ask here");
            None
        }
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "only the control plane may ask here");
            None
        }
        Err(_) => None,
    }
}
