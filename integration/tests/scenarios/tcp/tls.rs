//! TLS from application to application: the mesh sees the server's name, and nothing else.

use std::sync::Arc;

use mesh_integration::app::TcpApp;
use mesh_integration::mesh::{Mesh, Pod, Service};
use mesh_integration::scripted::{self, ScriptedControlPlane};
use mesh_integration::wait::{until, within};
use mesh_model::endpoint::Endpoint;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// An application that proves to be `name` and says so.
struct Secure {
    app: TcpApp,
    certificate: CertificateDer<'static>,
}

impl Secure {
    async fn start(name: &'static str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let app = TcpApp::start(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                // Connections opened on suspicion, and clients that trust somebody else.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut question = [0; 5];
                stream.read_exact(&mut question).await.unwrap();
                stream.write_all(&[name.as_bytes(), b" heard ", &question].concat()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        })
        .await;
        Self { app, certificate }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Asks for `name`, trusting one certificate only.
async fn ask(
    addr: std::net::SocketAddr,
    name: &'static str,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let asking = async {
        let stream = TcpStream::connect(addr).await?;
        let mut stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await?;
        stream.write_all(b"hello").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    within("an answer over TLS", asking).await
}

#[tokio::test]
async fn tls_needs_no_configuration() {
    let secure = Secure::start("one.example").await;
    let client = Pod::new("client").upstream("one:443");
    let one = Pod::new("one").port(8443, secure.app.addr());
    let service = Service::new("one", 8443).on(443);
    let mesh = Mesh::builder().pod(client).pod(one).service(service).start().await;
    let upstream = mesh.pod("client").upstream(0);
    let answer = ask(upstream, "one.example", &secure.certificate).await.unwrap();
    assert_eq!(answer, "one.example heard hello");
    for (pod, direction) in [("client", "outbound"), ("one", "inbound")] {
        let sidecar = mesh.pod(pod);
        let labels = [&*format!("direction=\"{direction}\""), "peer=\"src\""];
        assert!(sidecar.metric("tcp_open_total", &labels).await >= 1.0);
        assert_eq!(sidecar.metric("response_total", &[]).await, 0.0, "it is not HTTP");
    }
}

#[tokio::test]
async fn the_server_name_decides_where_tls_goes() {
    let (one, two) = (Secure::start("one.example").await, Secure::start("two.example").await);
    let control = ScriptedControlPlane::start().await;
    let mesh = Mesh::builder()
        .controlled_by(control.addr())
        .pod(Pod::new("client").upstream("secure:443"))
        .pod(Pod::new("one").port(8443, one.app.addr()))
        .pod(Pod::new("two").port(8443, two.app.addr()))
        .start()
        .await;
    for pod in ["one", "two"] {
        let endpoint = Endpoint::plain(mesh.pod(pod).inbound(8443));
        control.endpoints(&format!("{pod}:443"), vec![endpoint]);
    }
    let routes = [("one.example", "one:443"), ("two.example", "two:443")];
    control.outbound("secure:443", scripted::tls(&routes));
    let upstream = mesh.pod("client").upstream(0);
    for (name, secure) in [("one.example", &one), ("two.example", &two)] {
        let answer = ask(upstream, name, &secure.certificate).await.unwrap();
        assert_eq!(answer, format!("{name} heard hello"));
    }
    let error = ask(upstream, "three.example", &one.certificate).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
    // The line comes after the connection was closed.
    until("the refusal in the log", async || {
        let log = mesh.pod("client").log();
        (log.contains("no-route") && log.contains("three.example")).then_some(())
    })
    .await;
}
