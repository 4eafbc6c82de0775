//! TLS at the edge of the mesh: servers for clients that are nobody of it, with certificates that
//! others issued.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::Certificate;
use crate::credentials::provider;

const HTTP_2: &[u8] = b"h2";
const HTTP_11: &[u8] = b"http/1.1";

/// Sessions that may be resumed.
const SESSIONS: usize = 4_096;
/// Certificates of a chain.
const MAX_CHAIN: usize = 16;

/// A certificate with its chain and key, ready for handshakes.
#[derive(Clone)]
pub struct EdgeKey {
    certificate: Certificate,
    key: Arc<CertifiedKey>,
}

/// A certificate and a key that are of no use.
#[derive(Debug, thiserror::Error)]
pub enum EdgeKeyError {
    #[error("the certificate is not PEM: {0}")]
    Chain(String),
    #[error("there is no certificate")]
    Empty,
    #[error("there are more than {MAX_CHAIN} certificates")]
    TooMany,
    #[error("the certificate is malformed")]
    Malformed,
    /// Not with the parser's words, which may repeat the key.
    #[error("the key is not one in PEM (PKCS#8, PKCS#1 or SEC1)")]
    NoKey,
    #[error(
        "the key is of a kind that is not supported; RSA, ECDSA (P-256, P-384) and Ed25519 are"
    )]
    KindOfKey,
    #[error("the key is not the certificate's")]
    OtherKey,
}

impl EdgeKey {
    /// Reads a chain, leaf first, and the leaf's key, both in PEM.
    ///
    /// # Errors
    /// When they are malformed or do not belong together. Whether clients trust the chain, and whether
    /// it is valid now, is not asked.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, EdgeKeyError> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| EdgeKeyError::Chain(error.to_string()))?;
        if chain.len() > MAX_CHAIN {
            return Err(EdgeKeyError::TooMany);
        }
        let leaf = chain.first().ok_or(EdgeKeyError::Empty)?;
        let certificate = Certificate::read(leaf).map_err(|_| EdgeKeyError::Malformed)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| EdgeKeyError::NoKey)?;
        let key = provider().key_provider.load_private_key(key);
        let key = CertifiedKey::new(chain, key.map_err(|_| EdgeKeyError::KindOfKey)?);
        key.keys_match().map_err(|_| EdgeKeyError::OtherKey)?;
        Ok(Self { certificate, key: Arc::new(key) })
    }

    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Whether the certificate is for a host, as clients judge it: a wildcard is for one label.
    pub fn is_for(&self, host: &str) -> bool {
        self.certificate.names.iter().any(|name| match name.strip_prefix("*.") {
            None => name.eq_ignore_ascii_case(host),
            Some(name) => {
                host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(name))
            }
        })
    }
}

impl fmt::Debug for EdgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EdgeKey").field(&self.certificate.names).finish()
    }
}

/// Chooses what to present to a client by the name it asks for, if it asks for one. `None` refuses it.
pub trait Choose: fmt::Debug + Send + Sync + 'static {
    fn choose(&self, name: Option<&str>) -> Option<&EdgeKey>;
}

/// The server's side of TLS 1.2 and 1.3, for HTTP. Another one takes its place when certificates change,
/// which connections that are open do not notice.
#[derive(Clone, Debug)]
pub struct EdgeServer {
    config: Arc<ServerConfig>,
}

/// A connection whose TLS ends here.
#[derive(Debug)]
pub struct EdgeAccepted<Io> {
    pub io: TlsStream<Io>,
    /// The name that the client asked for, in lower case.
    pub name: Option<String>,
    /// `None`: it has not said what it speaks.
    pub http2: Option<bool>,
}

impl EdgeServer {
    pub fn new(choose: impl Choose) -> Self {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(choose)));
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_11.to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        Self { config: Arc::new(config) }
    }

    /// Cancelling it closes the connection.
    ///
    /// # Errors
    /// When the client is refused, or goes away.
    pub async fn accept<Io>(&self, io: Io) -> io::Result<EdgeAccepted<Io>>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(Arc::clone(&self.config)).accept(io).await?;
        let (_, session) = stream.get_ref();
        let name = session.server_name().map(str::to_ascii_lowercase);
        let http2 = session.alpn_protocol().map(|protocol| protocol == HTTP_2);
        Ok(EdgeAccepted { io: stream.into(), name, http2 })
    }
}

#[derive(Debug)]
struct Resolver<C>(C);

impl<C: Choose> ResolvesServerCert for Resolver<C> {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.choose(hello.server_name()).map(|found| Arc::clone(&found.key))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn made(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn a_certificate_and_its_key_belong_together() {
        let (chain, key) = made(&["shop.example", "*.api.example"]);
        let read = EdgeKey::from_pem(&chain, &key).unwrap();
        for (host, is_for) in [
            ("shop.example", true),
            ("SHOP.example", true),
            ("a.shop.example", false),
            ("v1.api.example", true),
            ("a.v1.api.example", false),
            ("api.example", false),
        ] {
            assert_eq!(read.is_for(host), is_for, "{host}");
        }
        let (_, other) = made(&["shop.example"]);
        assert!(matches!(EdgeKey::from_pem(&chain, &other), Err(EdgeKeyError::OtherKey)));
        assert!(matches!(EdgeKey::from_pem(&chain, &chain), Err(EdgeKeyError::NoKey)));
        assert!(matches!(EdgeKey::from_pem(&key, &key), Err(EdgeKeyError::Empty)));
        assert!(matches!(EdgeKey::from_pem("", ""), Err(EdgeKeyError::Empty)));
        let broken = "-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n";
        assert!(EdgeKey::from_pem(broken, &key).is_err());
        let long = chain.repeat(MAX_CHAIN + 1);
        assert!(matches!(EdgeKey::from_pem(&long, &key), Err(EdgeKeyError::TooMany)));
    }

    #[test]
    fn nothing_of_the_key_is_told() {
        let (chain, key) = made(&["shop.example"]);
        let secret = key.lines().nth(1).unwrap();
        let read = EdgeKey::from_pem(&chain, &key).unwrap();
        assert!(!format!("{read:?}").contains(secret));
        let broken = key.replace("PRIVATE KEY-----\n", "PRIVATE KEY-----\n%");
        let error = EdgeKey::from_pem(&chain, &broken).unwrap_err();
        assert!(!error.to_string().contains(secret), "{error}");
    }
}
