//! Identity: how a proxy gets its certificate, and learns which roots to trust.

use std::fmt;
use std::time::SystemTime;

/// A proxy asks to have its key certified.
#[derive(Clone, PartialEq, Eq)]
pub struct CertifyRequest {
    /// The identity it wants.
    pub id: String,
    /// What proves that it may have that.
    pub token: String,
    /// A certificate signing request in DER.
    pub request: Vec<u8>,
}

/// Without the token, which is a secret.
impl fmt::Debug for CertifyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertifyRequest").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A certificate for a proxy's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// DER, as everything here.
    pub leaf: Vec<u8>,
    /// From the issuer's to the one below the root.
    pub intermediates: Vec<Vec<u8>>,
    pub not_after: SystemTime,
}

impl Certified {
    /// The whole chain, leaf first.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        std::iter::once(&self.leaf).chain(&self.intermediates).cloned().collect()
    }
}

/// The roots a mesh trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustRoots {
    /// Certificates in PEM, one after the other.
    pub pem: String,
    pub trust_domain: String,
}
