//! A workload's private key, and the request to certify it.

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::Id;

/// A P-256 key. It is made here and never leaves the process.
pub struct Key {
    pair: KeyPair,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// # Panics
    /// When the system has no randomness.
    pub fn generate() -> Self {
        let pair =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system has randomness");
        Self { pair }
    }

    /// A certificate signing request in DER whose one DNS SAN is `id`.
    pub fn request(&self, id: &Id) -> Vec<u8> {
        let mut params = CertificateParams::default();
        let name = id.as_str().try_into().expect("an identity is ASCII");
        params.subject_alt_names = vec![SanType::DnsName(name)];
        params.distinguished_name = rcgen::DistinguishedName::new();
        // A common name has at most 64 characters; identities may be longer, and nobody reads it.
        params.distinguished_name.push(DnType::CommonName, "mesh workload");
        let request = params.serialize_request(&self.pair).expect("a P-256 key can sign");
        request.der().to_vec()
    }

    pub(crate) fn der(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pair.serialize_der())
    }
}
