use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::{ClientHello, Id, Issuer, Key, Root, TrustBundle, client_hello};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A certificate authority and its bundle.
struct Mesh {
    root: String,
    issuer: Issuer,
    bundle: TrustBundle,
}

impl Mesh {
    fn new() -> Self {
        let root = Root::generate("test", 240 * HOUR, 24 * HOUR).unwrap();
        Self {
            issuer: Issuer::from_pem(&root.issuer, &root.issuer_key).unwrap(),
            bundle: TrustBundle::from_pem(&root.root).unwrap(),
            root: root.root,
        }
    }

    fn credentials(&self, account: &str) -> Credentials {
        let (id, key) = (id(account), Key::generate());
        let issued = self.issuer.certify(&key.request(&id), &id, HOUR).unwrap();
        Credentials::new(&id, &key, &issued.chain(), &self.bundle).unwrap()
    }
}

fn id(account: &str) -> Id {
    format!("{account}.shop.serviceaccount.identity.mesh-system.cluster.local").parse().unwrap()
}

/// Both sides of one handshake.
async fn shake(
    client: &Credentials,
    server: &Credentials,
    wanted: &str,
    transport: bool,
) -> (Result<TlsStream<tokio::io::DuplexStream>, HandshakeError>, Result<Arc<str>, HandshakeError>)
{
    let (a, b) = duplex(64 * 1024);
    let accepting = async {
        let Accepted { mut io, client, transport: accepted } = accept(server, b).await?;
        assert_eq!(accepted, transport);
        io.write_all(b"welcome").await?;
        io.shutdown().await?;
        Ok(client)
    };
    let name = server.id().as_str();
    tokio::join!(connect(client, a, wanted, name, transport), accepting)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let mesh = Mesh::new();
    let (web, tax) = (mesh.credentials("web"), mesh.credentials("tax"));
    for (wanted, transport) in [
        (id("tax").as_str(), false),
        (id("tax").as_str(), true),
        ("spiffe://cluster.local/ns/shop/sa/tax", false),
    ] {
        let (connected, client) = shake(&web, &tax, wanted, transport).await;
        let mut connected = connected.unwrap();
        assert_eq!(&*client.unwrap(), id("web").as_str());
        let (_, session) = connected.get_ref();
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let group = session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        let mut said = String::new();
        connected.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "welcome");
    }
}

#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let mesh = Mesh::new();
    let (web, bank) = (mesh.credentials("web"), mesh.credentials("bank"));
    let (connected, _) = shake(&web, &bank, id("tax").as_str(), false).await;
    assert!(matches!(connected, Err(HandshakeError::Identity { .. })), "{connected:?}");
}

#[tokio::test]
async fn another_mesh_is_refused_by_both_sides() {
    let (ours, mut theirs) = (Mesh::new().credentials("web"), Mesh::new().credentials("web"));
    let (connected, _) = shake(&ours, &theirs, id("web").as_str(), false).await;
    assert!(matches!(connected, Err(HandshakeError::Tls(_))), "{connected:?}");
    // A client that would take any server is still refused by the server.
    theirs.client = trusting(&ours, &theirs);
    let (_, client) = shake(&theirs, &ours, id("web").as_str(), false).await;
    assert!(matches!(client, Err(HandshakeError::Tls(_))), "{client:?}");
}

/// The client configuration of `holder`, which trusts whom `truster` trusts.
fn trusting(truster: &Credentials, holder: &Credentials) -> Arc<rustls::ClientConfig> {
    let mut config = (*truster.client).clone();
    config.client_auth_cert_resolver = Arc::clone(&holder.client.client_auth_cert_resolver);
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

#[tokio::test]
async fn the_reception_lets_in_who_has_no_certificate_yet_but_no_stranger() {
    let mesh = Mesh::new();
    let (control, key) = (id("mesh-control"), Key::generate());
    let chain = mesh.issuer.certify(&key.request(&control), &control, HOUR).unwrap().chain();
    let reception = Reception::new(&key, &chain, &mesh.bundle).unwrap();

    let (a, b) = duplex(64 * 1024);
    let visitor = Visitor::new(&mesh.bundle);
    let visit = visitor.connect(a, control.as_str());
    let (visited, received) = tokio::join!(visit, reception.accept(b));
    visited.unwrap();
    assert_eq!(received.unwrap().1, None);

    let (a, b) = duplex(64 * 1024);
    let web = mesh.credentials("web");
    let connect = connect(&web, a, control.as_str(), control.as_str(), false);
    let (connected, received) = tokio::join!(connect, reception.accept(b));
    connected.unwrap();
    assert_eq!(received.unwrap().1.as_deref(), Some(id("web").as_str()));

    let (a, b) = duplex(64 * 1024);
    let mut stranger = Mesh::new().credentials("web");
    stranger.client = trusting(&web, &stranger);
    let connect = super::connect(&stranger, a, control.as_str(), control.as_str(), false);
    let (_, received) = tokio::join!(connect, reception.accept(b));
    assert!(matches!(received, Err(HandshakeError::Tls(_))), "{received:?}");

    let (a, b) = duplex(64 * 1024);
    let visitor = Visitor::new(&Mesh::new().bundle);
    let (visited, _) = tokio::join!(visitor.connect(a, control.as_str()), reception.accept(b));
    assert!(matches!(visited, Err(HandshakeError::Tls(_))), "{visited:?}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let mesh = Mesh::new();
    let (mut web, tax) = (mesh.credentials("web"), mesh.credentials("tax"));
    let mut config = (*web.client).clone();
    config.client_auth_cert_resolver = Arc::new(Nobody);
    web.client = Arc::new(config);
    let (_, client) = shake(&web, &tax, id("tax").as_str(), false).await;
    assert!(matches!(client, Err(HandshakeError::Tls(_))), "{client:?}");
}

/// A client that has no certificate.
#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn a_chain_to_no_root_of_the_bundle_makes_no_credentials() {
    let (id, key) = (id("web"), Key::generate());
    let issued = Mesh::new().issuer.certify(&key.request(&id), &id, HOUR).unwrap();
    let refused = Credentials::new(&id, &key, &issued.chain(), &Mesh::new().bundle);
    assert!(matches!(refused, Err(crate::CredentialsError::Untrusted(_))), "{refused:?}");
}

#[tokio::test]
async fn a_bundle_of_two_roots_takes_both() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let both = TrustBundle::from_pem(&format!("{}{}", old.root, new.root)).unwrap();
    let with_both = |mesh: &Mesh, account: &str| {
        let (id, key) = (id(account), Key::generate());
        let issued = mesh.issuer.certify(&key.request(&id), &id, HOUR).unwrap();
        Credentials::new(&id, &key, &issued.chain(), &both).unwrap()
    };
    let (web, tax) = (with_both(&old, "web"), with_both(&new, "tax"));
    let (connected, client) = shake(&web, &tax, id("tax").as_str(), false).await;
    connected.unwrap();
    client.unwrap();
}

#[tokio::test]
async fn the_hello_names_the_server() {
    let mesh = Mesh::new();
    let web = mesh.credentials("web");
    let (a, mut b) = duplex(64 * 1024);
    let connecting = tokio::spawn(async move { connect(&web, a, "x", "tax.shop", false).await });
    let mut bytes = vec![0; 16 * 1024];
    let mut read = 0;
    let hello = loop {
        read += b.read(&mut bytes[read..]).await.unwrap();
        match client_hello(&bytes[..read]) {
            ClientHello::Incomplete => {}
            hello => break hello,
        }
    };
    assert_eq!(hello, ClientHello::Complete { sni: Some("tax.shop".into()) });
    connecting.abort();
}
