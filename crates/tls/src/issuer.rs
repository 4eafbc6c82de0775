//! The certificate authority of a mesh: an intermediate, the issuer, that a root signed.
//!
//! The root's key is needed once, to sign an issuer. [`Root::generate`] forgets it after that unless it
//! is asked for; a control plane never has it.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::{Certificate, Id, TrustBundle, WorkloadId};

/// Clocks differ: certificates are valid from a moment before they are made.
const CLOCK_SKEW: Duration = Duration::from_secs(20);

/// Signs certificates of workloads.
pub struct Issuer {
    signer: rcgen::Issuer<'static, KeyPair>,
    /// The issuer's own certificate first, then those up to the root.
    chain: Vec<CertificateDer<'static>>,
    certificate: Certificate,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// An issuer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("the issuer's certificate: {0}")]
    Certificate(String),
    #[error("the issuer's key: {0}")]
    Key(String),
    #[error("the issuer's certificate is not one of a certificate authority")]
    NoAuthority,
    #[error("the issuer's key does not belong to its certificate")]
    Mismatch,
    #[error("no root of the trust bundle signed the issuer's certificate: {0}")]
    Untrusted(String),
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A request is not certified.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the certificate signing request is malformed or not signed by its key: {0}")]
    Malformed(String),
    #[error("the request is for a key that is not P-256")]
    Key,
    #[error("the request names `{0}`, not just the identity it was made for")]
    Names(String),
    #[error("the issuer's certificate has expired")]
    Expired,
    #[error("{0} has no namespace and service account to certify")]
    Identity(String),
}

/// A certificate of a workload.
#[derive(Clone, Debug)]
pub struct Issued {
    pub leaf: Vec<u8>,
    /// From the issuer's to the one below the root.
    pub intermediates: Vec<Vec<u8>>,
    pub not_after: SystemTime,
}

/// A request in DER has at most so many bytes.
const MAX_REQUEST: usize = 8 * 1024;

impl Issuer {
    /// Reads an issuer's chain and key in PEM.
    ///
    /// # Errors
    /// When they are malformed, or do not belong together.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, IssuerError> {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| IssuerError::Certificate(error.to_string()))?;
        let first = chain.first();
        let first = first.ok_or_else(|| IssuerError::Certificate("there is none".to_owned()))?;
        let certificate = Certificate::read(first);
        let certificate = certificate.map_err(|e| IssuerError::Certificate(e.to_string()))?;
        if !certificate.is_ca {
            return Err(IssuerError::NoAuthority);
        }
        let key = KeyPair::from_pem(key).map_err(|error| IssuerError::Key(error.to_string()))?;
        if !certified_key_is(first, &key.subject_public_key_info()) {
            return Err(IssuerError::Mismatch);
        }
        let signer = rcgen::Issuer::from_ca_cert_der(first, key)?;
        Ok(Self { signer, chain, certificate })
    }

    /// The issuer's own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What kind of key it signs with, such as `ECDSA P-256`.
    pub fn key_type(&self) -> &'static str {
        let algorithm = self.signer.key().algorithm();
        let known = [
            (&PKCS_ECDSA_P256_SHA256, "ECDSA P-256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "ECDSA P-384"),
            (&rcgen::PKCS_ED25519, "Ed25519"),
        ];
        let known = known.into_iter().find(|(known, _)| *known == algorithm);
        known.map_or("RSA or another", |(_, name)| name)
    }

    /// Whether a root of the bundle signed it.
    ///
    /// # Errors
    /// When none did, or the certificate is not valid now.
    pub fn verify(&self, bundle: &TrustBundle) -> Result<(), IssuerError> {
        let key = crate::Key::generate();
        let id: Id = "probe.mesh.serviceaccount.identity.mesh.local".parse().expect("an identity");
        let issued = self.certify(&key.request(&id), &id, Duration::from_secs(60));
        let issued = issued.map_err(|refused| IssuerError::Untrusted(refused.to_string()))?;
        let credentials = crate::Credentials::new(&id, &key, &issued.chain(), bundle);
        credentials.map(drop).map_err(|error| IssuerError::Untrusted(error.to_string()))
    }

    /// Certifies the key of a request (DER) for `id`, for `lifetime` at most: no certificate outlives
    /// its issuer's.
    ///
    /// # Errors
    /// When the request is not for just this identity.
    pub fn certify(&self, request: &[u8], id: &Id, lifetime: Duration) -> Result<Issued, Refused> {
        if request.len() > MAX_REQUEST {
            return Err(Refused::Malformed("it is too long".to_owned()));
        }
        let parsed =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
                .map_err(|error| Refused::Malformed(error.to_string()))?;
        let key = &parsed.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(Refused::Key);
        }
        let names = parsed.params.subject_alt_names.as_slice();
        if !matches!(names, [SanType::DnsName(name)] if name.as_str() == id.as_str()) {
            let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
            return Err(Refused::Names(names.join(", ")));
        }
        let now = SystemTime::now();
        let not_after = (now + lifetime).min(self.certificate.not_after);
        if not_after <= now {
            return Err(Refused::Expired);
        }
        // Nothing else of the request is taken over: it could ask to be an authority.
        let params = leaf(id, now - CLOCK_SKEW, not_after)?;
        let signed = params.signed_by(key, &self.signer);
        let signed = signed.map_err(|error| Refused::Malformed(error.to_string()))?;
        let intermediates = self.chain.iter().map(|der| der.to_vec()).collect();
        Ok(Issued { leaf: signed.der().to_vec(), intermediates, not_after })
    }
}

impl Issued {
    /// Leaf first.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        [std::slice::from_ref(&self.leaf), &self.intermediates].concat()
    }
}

/// An uncompressed point of P-256.
const P256_POINT: usize = 65;

fn leaf(
    id: &Id,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, Refused> {
    let refused = || Refused::Identity(id.to_string());
    let spiffe = WorkloadId::of(id).ok_or_else(refused)?.spiffe();
    let mut params = CertificateParams::default();
    params.distinguished_name = named("mesh workload");
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.subject_alt_names = vec![
        SanType::DnsName(id.as_str().try_into().map_err(|_| refused())?),
        SanType::URI(spiffe.try_into().map_err(|_| refused())?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A new root, with a first issuer. The root's key is gone.
#[derive(Debug)]
pub struct Root {
    /// PEM.
    pub root: String,
    pub issuer: String,
    pub issuer_key: String,
}

impl Root {
    /// Makes a root that is valid for `root_lifetime`, and an issuer for `issuer_lifetime`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(
        name: &str,
        root_lifetime: Duration,
        issuer_lifetime: Duration,
    ) -> Result<Self, IssuerError> {
        let now = SystemTime::now();
        let authority = |kind: &str, below: u8, lifetime: Duration| {
            let mut params = CertificateParams::default();
            params.distinguished_name = named(&format!("{name} {kind}"));
            params.not_before = (now - CLOCK_SKEW).into();
            params.not_after = (now + lifetime).into();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.use_authority_key_identifier_extension = true;
            params
        };
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = authority("root", 1, root_lifetime);
        let root_certificate = root.self_signed(&root_key)?;
        let issuer_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuer = authority("issuer", 0, issuer_lifetime.min(root_lifetime));
        let issuer = issuer.signed_by(&issuer_key, &rcgen::Issuer::new(root, root_key))?;
        Ok(Self {
            root: root_certificate.pem(),
            issuer: issuer.pem(),
            issuer_key: issuer_key.serialize_pem(),
        })
    }
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn certified_key_is(certificate: &[u8], key: &[u8]) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(certificate).is_ok_and(|(_, read)| read.public_key().raw == key)
}

#[cfg(test)]
mod tests;
