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
    use mesh_tls::{Credentials, Id, Issuer, Key, Root, TrustBundle};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::IdentityConfig;

    const DAY: Duration = Duration::from_secs(86_400);

    /// An authority, and the identity of a proxy that it has certified.
    struct Certified {
        bundle: TrustBundle,
        issuer: Issuer,
        identity: Identity,
        id: Id,
        control_plane: Id,
    }

    impl Certified {
        fn new() -> Self {
            let root = Root::generate("test", DAY * 2, DAY).unwrap();
            let bundle = TrustBundle::from_pem(&root.root).unwrap();
            let issuer = Issuer::from_pem(&root.issuer, &root.issuer_key).unwrap();
            let id: Id =
                "web.shop.serviceaccount.identity.mesh-system.cluster.local".parse().unwrap();
            let control_plane = mesh_tls::WorkloadId::of(&id).unwrap().control_plane().unwrap();
            let identity = Identity::new(&IdentityConfig {
                control_plane: control_plane.clone(),
                id: id.clone(),
                token_file: "/nowhere".into(),
                trust_bundle: bundle.clone(),
                state_dir: None,
            });
            let certified = Self { bundle, issuer, identity, id, control_plane };
            certified.identity.certify(certified.credentials(&certified.id));
            certified
        }

        fn credentials(&self, id: &Id) -> Credentials {
            let key = Key::generate();
            let issued = self.issuer.certify(&key.request(id), id, DAY / 2).unwrap();
            Credentials::new(id, &key, &issued.chain(), &self.bundle).unwrap()
        }
    }

    /// Whether a client at `peer` is let in that shakes hands with these credentials, or not at all.
    async fn is_let_in(
        peer: &str,
        identity: &Identity,
        client: Option<(&Credentials, &Id)>,
    ) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (client_side, accepted) =
            tokio::try_join!(TcpStream::connect(addr), listener.accept()).unwrap();
        let knocking = async {
            match client {
                Some((credentials, server)) => {
                    let server = server.as_str();
                    let tls = mesh_tls::connect(credentials, client_side, server, server, false);
                    drop(tls.await);
                }
                None => drop(client_side),
            }
        };
        let (admitted, ()) =
            tokio::join!(admit(accepted.0, peer.parse().unwrap(), identity), knocking);
        admitted.is_some()
    }

    #[tokio::test]
    async fn elsewhere_only_the_control_plane_is_let_in() {
        let mesh = Certified::new();
        let control_plane = mesh.credentials(&mesh.control_plane);
        let member_id =
            "api.shop.serviceaccount.identity.mesh-system.cluster.local".parse().unwrap();
        let member = mesh.credentials(&member_id);
        let foreign = Certified::new();
        let foreign = foreign.credentials(&foreign.control_plane);
        for (client, admitted) in [
            (Some(&control_plane), true),
            (Some(&member), false),
            (Some(&foreign), false),
            (None, false),
        ] {
            let client = client.map(|client| (client, &mesh.id));
            let let_in = is_let_in("10.0.0.1:1", &mesh.identity, client).await;
            assert_eq!(let_in, admitted, "{:?}", client.map(|(client, _)| client.id().clone()));
        }
    }

    #[tokio::test]
    async fn callers_of_the_pod_need_prove_nothing() {
        let mesh = Certified::new();
        for peer in ["127.0.0.1:1", "[::ffff:127.0.0.1]:1", "[::1]:1"] {
            assert!(is_let_in(peer, &mesh.identity, None).await, "{peer}");
        }
        // Nobody can prove anything in a mesh without identities.
        assert!(is_let_in("10.0.0.1:1", &Identity::default(), None).await);
    }
}
