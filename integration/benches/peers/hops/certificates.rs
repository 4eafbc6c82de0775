//! Who the two proxies of a pair are: a root and an issuer made for this run, and certificates for proxies that do not
//! have themselves certified.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use mesh_tls::{Id, Root, WorkloadId};
use rcgen::{
    Certificate, CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256,
};

use super::mesh::NAMESPACE;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder with `roots.pem`, `issuer.pem` and `issuer-key.pem`, as our control plane reads it.
pub(super) struct Certificates {
    root: Root,
    folder: PathBuf,
}

/// Files in PEM.
pub(super) struct Certified {
    pub(super) id: Id,
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    pub(super) roots: PathBuf,
}

impl Certificates {
    pub(super) fn make(folder: &Path) -> anyhow::Result<Self> {
        let root = Root::generate("bench", DAY, DAY)?;
        for (name, text) in [
            ("roots.pem", &root.root),
            ("issuer.pem", &root.issuer),
            ("issuer-key.pem", &root.issuer_key),
        ] {
            fs::write(folder.join(name), text)?;
        }
        Ok(Self { root, folder: folder.to_owned() })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn roots(&self) -> PathBuf {
        self.folder.join("roots.pem")
    }

    /// The certificate under the root's, which signs those of proxies.
    pub(super) fn issuer(&self) -> &str {
        &self.root.issuer
    }

    /// A key made and certified for this service account, the files in `dir`.
    pub(super) fn certify(&self, account: &str, dir: &Path) -> anyhow::Result<Certified> {
        let id = id(account)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = self.sign(&id, &key)?;
        let (chain_file, key_file) = (dir.join("chain.pem"), dir.join("key.pem"));
        fs::write(&chain_file, leaf.pem() + &self.root.issuer)?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok(Certified { id, chain: chain_file, key: key_file, roots: self.roots() })
    }

    pub(super) fn sign(&self, id: &Id, key: &KeyPair) -> anyhow::Result<Certificate> {
        let mut params = CertificateParams::new([id.to_string()])?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer_key = KeyPair::from_pem(&self.root.issuer_key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.root.issuer, issuer_key)?;
        Ok(params.signed_by(key, &issuer)?)
    }
}

/// The identity of a service account of the bench.
pub(super) fn id(account: &str) -> anyhow::Result<Id> {
    let id = WorkloadId {
        service_account: account.to_owned(),
        namespace: NAMESPACE.to_owned(),
        control_namespace: "mesh-system".to_owned(),
        trust_domain: "cluster.local".to_owned(),
    };
    id.id().context("an account's name is a label")
}
