//! What tests of the edge need: Gateways and their routes, certificates that clients trust, and clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::client::http::Body;
use crate::mesh::NAMESPACE;

/// A Gateway of the mesh's class.
pub fn gateway(name: &str, listeners: &[Value]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": { "gatewayClassName": "mesh", "listeners": listeners },
    })
}

/// A listener of requests in the clear.
pub fn http(port: u16) -> Value {
    json!({ "name": format!("http-{port}"), "port": port, "protocol": "HTTP" })
}

/// A listener of HTTPS for a host, with the Secret that is called as its first label.
pub fn https(port: u16, host: &str) -> Value {
    let secret = secret_of(host);
    json!({
        "name": format!("https-{secret}"),
        "port": port,
        "protocol": "HTTPS",
        "hostname": host,
        "tls": { "certificateRefs": [{ "name": secret }] },
    })
}

/// A route of a Gateway to the port 80 of the Service of its own name.
pub fn route(kind: &str, gateway: &str, name: &str, hosts: &[&str]) -> Value {
    let version = if matches!(kind, "TCPRoute") { "v1alpha2" } else { "v1" };
    let mut route = json!({
        "apiVersion": format!("gateway.networking.k8s.io/{version}"),
        "kind": kind,
        "metadata": { "name": format!("{gateway}-{name}"), "namespace": NAMESPACE },
        "spec": {
            "parentRefs": [{ "name": gateway }],
            "rules": [{ "backendRefs": [{ "name": name, "port": 80 }] }],
        },
    });
    if !hosts.is_empty() {
        route["spec"]["hostnames"] = json!(hosts);
    }
    route
}

fn secret_of(host: &str) -> String {
    host.split('.').find(|label| *label != "*").unwrap_or_default().to_owned()
}

/// A certificate authority that clients of a test trust.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    file: PathBuf,
}

impl Authority {
    /// A new one, whose certificate is in a file of this folder.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn new(folder: &Path) -> Self {
        let key = KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "clients trust it");
        let pem = params.self_signed(&key).expect("a key that can sign").pem();
        let file = folder.join("ca.pem");
        std::fs::write(&file, &pem).expect("a file in the temporary folder");
        Self { issuer: Issuer::new(params, key), pem, file }
    }

    /// Where clients that are programs find it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// A Secret with a certificate for a host, new with each call.
    ///
    /// # Panics
    /// When the host is none.
    pub fn secret(&self, host: &str) -> Value {
        let key = KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("a host");
        let now = std::time::SystemTime::now();
        params.not_before = now.into();
        params.not_after = (now + std::time::Duration::from_secs(80 * 24 * 60 * 60)).into();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).expect("a key that can sign").pem();
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": { "name": secret_of(host), "namespace": NAMESPACE },
            "stringData": { "tls.crt": leaf + &self.pem, "tls.key": key.serialize_pem() },
        })
    }

    fn client(&self, http2: bool) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let own = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("its own PEM");
        roots.add(own).expect("a root");
        let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
        let mut config = ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let protocol: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// Opens a connection for a host.
    ///
    /// # Errors
    /// When there is no connection, or none that can be trusted.
    ///
    /// # Panics
    /// When the host is none.
    pub async fn open(&self, addr: SocketAddr, host: &str, http2: bool) -> std::io::Result<Https> {
        let name = ServerName::try_from(host.to_owned()).expect("a host");
        let stream = TcpStream::connect(addr).await?;
        let stream = self.client(http2).connect(name, stream).await?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = certificates.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        let io = TokioIo::new(stream);
        let sender = if http2 {
            let made = http2::handshake(TokioExecutor::new(), io).await;
            let (sender, connection) = made.map_err(std::io::Error::other)?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(std::io::Error::other)?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Ok(Https { leaf, sender })
    }
}

/// A connection of a client that has verified its server.
#[derive(Debug)]
pub struct Https {
    /// The certificate of the server, in DER.
    pub leaf: Vec<u8>,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Https {
    /// # Errors
    /// When the connection breaks.
    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}
