//! The webhook's serving certificate: made by whichever replica comes first, kept in a Secret that all
//! of them share, renewed long before it ends, and told to the API server as `caBundle`.
//!
//! A new certificate comes with an authority of its own, whose key nobody keeps. The old authority
//! stays in the bundle beside the new one, so that replicas which still serve the old certificate are
//! trusted, and the bundle is told before the new certificate is served.

mod keep;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub use self::keep::{Keeper, SECRET, WEBHOOK};

const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Clocks differ: certificates are valid from a moment before they are made.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What is served right now.
#[derive(Debug, Default)]
pub struct Serving(RwLock<Option<Arc<ServerConfig>>>);

impl Serving {
    /// `None` before there is a certificate.
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        self.0.read().clone()
    }

    pub fn install(&self, pair: &Pair) {
        *self.0.write() = Some(Arc::clone(&pair.config));
    }
}

/// A certificate with its key and authorities.
#[derive(Clone, Debug)]
pub struct Pair {
    /// PEM: the authority that signed it, and the one before.
    pub authorities: String,
    pub certificate: String,
    pub key: String,
    /// Of the certificate, first and last moment.
    validity: (SystemTime, SystemTime),
    names: Vec<String>,
    config: Arc<ServerConfig>,
}

/// A Secret that cannot be served from.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error("{what} is not PEM: {error}")]
    Pem { what: &'static str, error: String },
    #[error("the certificate cannot be read: {0}")]
    Certificate(#[from] mesh_tls::CertificateError),
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl Pair {
    /// Makes one for these names: DNS names, or IP addresses.
    ///
    /// # Errors
    /// When a name is none, or the system has no randomness.
    pub fn generate(names: &[String], before: Option<&Self>) -> Result<Self, PairError> {
        let now = SystemTime::now();
        let params = |common: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, common);
            params.not_before = (now - CLOCK_SKEW).into();
            params.not_after = (now + LIFETIME).into();
            params
        };
        let mut authority = params("mesh webhook authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut authorities = authority.self_signed(&authority_key)?.pem();
        if let Some(first) = before.and_then(|before| first_certificate(&before.authorities)) {
            authorities.push_str(first);
        }
        let mut leaf = params("mesh webhook");
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        for name in names {
            leaf.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(authority, authority_key))?;
        Self::read(authorities, leaf.pem(), key.serialize_pem())
    }

    /// Reads one from PEM.
    ///
    /// # Errors
    /// When any of it is malformed, or the key is another certificate's.
    pub fn read(authorities: String, certificate: String, key: String) -> Result<Self, PairError> {
        let chain = certificates("tls.crt", &certificate)?;
        certificates("ca.crt", &authorities)?;
        let read = mesh_tls::Certificate::read(&chain[0])?;
        let private = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| PairError::Pem { what: "tls.key", error: error.to_string() })?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)?;
        config.alpn_protocols = ALPN.map(Into::into).into();
        Ok(Self {
            authorities,
            certificate,
            key,
            validity: (read.not_before, read.not_after),
            names: read.names,
            config: Arc::new(config),
        })
    }

    /// Whether it can go on being served: two thirds of its life are not over, and it has the names.
    pub fn is_good(&self, names: &[String], now: SystemTime) -> bool {
        let (first, last) = self.validity;
        let life = last.duration_since(first).unwrap_or_default();
        let named = |name: &String| {
            // IP addresses are for tests and are not among the names that are read.
            name.parse::<std::net::IpAddr>().is_ok() || self.names.contains(name)
        };
        first <= now && now < first + life * 2 / 3 && names.iter().all(named)
    }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let error = |error: String| PairError::Pem { what, error };
    let all = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|e| error(e.to_string()))?;
    if all.is_empty() { Err(error("there is no certificate in it".into())) } else { Ok(all) }
}

/// Up to the end of its last line.
fn first_certificate(pem: &str) -> Option<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let end = pem.find(END)? + END.len();
    Some(pem.get(..end + 1).unwrap_or(&pem[..end]))
}
