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

#[cfg(test)]
mod tests {
    use mesh_tls::TrustBundle;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::IdentityConfig;

    #[tokio::test]
    async fn elsewhere_only_the_control_plane_is_let_in() {
        let day = Duration::from_secs(86_400);
        let root = mesh_tls::Root::generate("test", day * 2, day).unwrap();
        let id = "web.shop.serviceaccount.identity.mesh-system.cluster.local".parse().unwrap();
        let identity = Identity::new(&IdentityConfig {
            control_plane: mesh_tls::WorkloadId::of(&id).unwrap().control_plane().unwrap(),
            id,
            token_file: "/nowhere".into(),
            trust_bundle: TrustBundle::from_pem(&root.root).unwrap(),
            state_dir: None,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        for (peer, identity, admitted) in [
            ("127.0.0.1:1", &identity, true),
            ("[::ffff:127.0.0.1]:1", &identity, true),
            ("10.0.0.1:1", &identity, false),
            // Nobody can prove anything in a mesh without identities.
            ("10.0.0.1:1", &Identity::default(), true),
        ] {
            let (stream, _) =
                tokio::try_join!(TcpStream::connect(addr), listener.accept()).unwrap();
            let let_in = admit(stream, peer.parse().unwrap(), identity).await;
            assert_eq!(let_in.is_some(), admitted, "{peer}");
        }
    }
}
