//! What a workload needs for handshakes: its certified key, and whom it trusts.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::{Certificate, Id, Key, TRANSPORT_ALPN, TrustBundle};

/// Sessions that may be resumed, for each side. They end with these credentials, so that nobody
/// resumes what a new trust bundle would refuse.
const SESSIONS: usize = 256;

/// Credentials of one workload. New ones are made for each renewal and each change of the bundle.
#[derive(Debug)]
pub struct Credentials {
    id: Id,
    certificate: Certificate,
    bundle: TrustBundle,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    /// With [`TRANSPORT_ALPN`].
    pub(crate) transport: Arc<ClientConfig>,
}

/// A certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("there is no certificate")]
    Empty,
    #[error("the certificate is malformed")]
    Malformed,
    #[error("the certificate is not for {wanted} but for {got}")]
    Identity { wanted: Id, got: String },
    #[error("the certificate is not valid under the trust bundle: {0}")]
    Untrusted(rustls::Error),
    #[error("the certificate does not fit the key: {0}")]
    Key(rustls::Error),
}

impl Credentials {
    /// A key with the chain (DER, leaf first) that certifies it as `id`'s.
    ///
    /// # Errors
    /// When the chain is not for this key and identity, or the bundle does not make it valid now.
    pub fn new(
        id: &Id,
        key: &Key,
        chain: &[Vec<u8>],
        bundle: &TrustBundle,
    ) -> Result<Self, CredentialsError> {
        let leaf = chain.first().ok_or(CredentialsError::Empty)?;
        let certificate = Certificate::read(leaf).map_err(|_| CredentialsError::Malformed)?;
        if !certificate.proves(id.as_str()) {
            let got = certificate.names.join(", ");
            return Err(CredentialsError::Identity { wanted: id.clone(), got });
        }
        let chain = as_rustls(chain);
        let verifier = Arc::new(ChainVerifier::new(bundle));
        verifier
            .verify_chain(&chain[0], &chain[1..], UnixTime::now())
            .map_err(CredentialsError::Untrusted)?;
        let server = server_config(key, &chain, bundle, Clients::Certified);
        let server = server.map_err(CredentialsError::Key)?;
        let client = client_config(verifier)
            .with_client_auth_cert(chain.clone(), private_key(key))
            .map(resumable)
            .map_err(CredentialsError::Key)?;
        let mut transport = client.clone();
        transport.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];
        transport.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self {
            id: id.clone(),
            certificate,
            bundle: bundle.clone(),
            server: Arc::new(server),
            client: Arc::new(client),
            transport: Arc::new(transport),
        })
    }

    pub fn id(&self) -> &Id {
        &self.id
    }

    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }
}

/// X25519MLKEM768 comes first in its list of key exchanges.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn private_key(key: &Key) -> PrivateKeyDer<'static> {
    key.der().into()
}

/// Which clients a server takes. A certificate of another mesh is refused in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clients {
    Certified,
    Anyone,
}

fn server_config(
    key: &Key,
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    clients: Clients,
) -> Result<ServerConfig, rustls::Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(bundle.store()), provider())
            // Naming the roots would tell strangers whom we trust, and makes handshakes longer.
            .clear_root_hint_subjects();
    let verifier = match clients {
        Clients::Certified => verifier,
        Clients::Anyone => verifier.allow_unauthenticated(),
    };
    let clients = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.to_vec(), private_key(key))?;
    config.alpn_protocols = vec![TRANSPORT_ALPN.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.send_tls13_tickets = 1;
    Ok(config)
}

fn client_config(verifier: Arc<ChainVerifier>) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn resumable(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    config
}

fn as_rustls(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

/// A client that has no certificate yet: it asks the control plane for its first one.
#[derive(Clone, Debug)]
pub struct Visitor {
    pub(crate) client: Arc<ClientConfig>,
}

impl Visitor {
    /// Takes servers whose certificate ends at a root of the bundle.
    pub fn new(bundle: &TrustBundle) -> Self {
        let client = client_config(Arc::new(ChainVerifier::new(bundle))).with_no_client_auth();
        Self { client: Arc::new(client) }
    }
}

/// The server's side where clients without a certificate are let in and known as nobody: the control
/// plane, which is where they get one.
#[derive(Debug)]
pub struct Reception {
    pub(crate) server: Arc<ServerConfig>,
}

impl Reception {
    /// A key with the chain (DER, leaf first) that certifies it.
    ///
    /// # Errors
    /// When the chain is not for this key.
    pub fn new(
        key: &Key,
        chain: &[Vec<u8>],
        bundle: &TrustBundle,
    ) -> Result<Self, CredentialsError> {
        let config = server_config(key, &as_rustls(chain), bundle, Clients::Anyone);
        Ok(Self { server: Arc::new(config.map_err(CredentialsError::Key)?) })
    }
}

/// Verifies that a server's chain ends at a root. Whether the certificate has the identity that the
/// connection is for is checked after the handshake (see `connect`): that may be a URI, which is not
/// the name asked for in the handshake.
#[derive(Debug)]
struct ChainVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    fn new(bundle: &TrustBundle) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { roots: Arc::clone(bundle.store()), algorithms }
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_chain(leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
