//! The roots that are trusted.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::Certificate;

/// One or more root certificates. While a root is replaced there are two.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    pem: Arc<str>,
}

/// A bundle has none of the roots it should have.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the trust bundle is not PEM: {0}")]
    Pem(String),
    #[error("the trust bundle has no certificate")]
    Empty,
    #[error("certificate {number} of the trust bundle cannot be a root: {why}")]
    Root { number: usize, why: String },
    #[error("the trust bundle has more than {MAX_ROOTS} certificates")]
    TooMany,
}

/// More have no use, and every handshake looks at all of them.
const MAX_ROOTS: usize = 16;

impl TrustBundle {
    /// Reads certificates in PEM.
    ///
    /// # Errors
    /// When there is none, or one cannot be a root.
    pub fn from_pem(pem: &str) -> Result<Self, BundleError> {
        let roots = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let mut roots = roots.map_err(|error| BundleError::Pem(error.to_string()))?;
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        if roots.len() > MAX_ROOTS {
            return Err(BundleError::TooMany);
        }
        let mut store = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            let refused = |why: String| BundleError::Root { number: index + 1, why };
            let read = Certificate::read(root).map_err(|error| refused(error.to_string()))?;
            if !read.is_ca {
                return Err(refused("it is not one of a certificate authority".to_owned()));
            }
            store.add(root.clone()).map_err(|error| refused(error.to_string()))?;
        }
        if store.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self { roots, store: Arc::new(store), pem: pem.into() })
    }

    /// The roots in DER, sorted.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// As they were read.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of each root in hexadecimal, sorted.
    pub fn fingerprints(&self) -> Vec<String> {
        let hex = |root: &CertificateDer<'_>| {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, root);
            digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        let mut all: Vec<_> = self.roots.iter().map(hex).collect();
        all.sort();
        all
    }

    pub(crate) fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots
    }
}
