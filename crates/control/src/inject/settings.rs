//! What all proxies of a mesh have in common: from the ConfigMap `mesh-config`, flags and the trust
//! roots.

use std::collections::BTreeMap;

use super::options::Options;
use crate::index::identity::MeshNames;
use crate::source::Finding;

/// ConfigMap with the mesh's settings. Its keys are those of [`Options`] (`proxy-image: …`), defaults
/// for all pods, and [`CONTROL_NAMESPACE`], [`TRUST_DOMAIN`], [`CLUSTER_DOMAIN`] and [`IDENTITY`]. The
/// control plane reads it as a mounted folder with a file per key.
pub const CONFIG_MAP: &str = "mesh-config";
/// ConfigMap with the public trust roots.
pub const ROOTS_CONFIG_MAP: &str = "mesh-trust-roots";
/// The key of [`ROOTS_CONFIG_MAP`].
pub const ROOTS_KEY: &str = "roots.pem";

pub const CONTROL_NAMESPACE: &str = "control-namespace";
pub const TRUST_DOMAIN: &str = "trust-domain";
pub const CLUSTER_DOMAIN: &str = "cluster-domain";
/// `enabled` or `disabled` (profile `no-tls`).
pub const IDENTITY: &str = "identity";

const SERVICE: &str = "mesh-control";
const PROXIES_PORT: u16 = 8086;

/// How proxies are set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub names: MeshNames,
    /// Names of services end with it.
    pub cluster_domain: String,
    /// What annotations can change for a pod or namespace.
    pub options: Options,
    /// PEM. `None`: proxies have no identities, and all is plaintext.
    pub trust_roots: Option<String>,
    /// What happens to pods about which nothing is said.
    pub inject_unlabelled: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            names: MeshNames {
                control_namespace: "mesh-system".into(),
                trust_domain: "cluster.local".into(),
            },
            cluster_domain: "cluster.local".into(),
            options: Options::default(),
            trust_roots: None,
            inject_unlabelled: false,
        }
    }
}

impl Settings {
    /// Takes the keys of [`CONFIG_MAP`]; says what is wrong with them.
    pub fn take(&mut self, config: &BTreeMap<String, String>, findings: &mut Vec<Finding>) {
        let mut names = self.names.clone();
        let mut options = BTreeMap::new();
        for (key, value) in config {
            let value = value.trim().to_owned();
            match key.as_str() {
                CONTROL_NAMESPACE => names.control_namespace = value,
                TRUST_DOMAIN => names.trust_domain = value,
                CLUSTER_DOMAIN => self.cluster_domain = value,
                IDENTITY => {}
                _ => drop(options.insert(key.clone(), value)),
            }
        }
        if names.id("default", "default").is_some() {
            self.names = names;
        } else {
            let message = format!(
                "no identity can end with {} and {}",
                names.control_namespace, names.trust_domain
            );
            findings
                .push(Finding::warning(format!("{CONTROL_NAMESPACE}, {TRUST_DOMAIN}"), message));
        }
        self.options.take_plain(&options, findings);
    }

    /// `mesh-control.mesh-system.svc.cluster.local:8086`
    pub fn control_addr(&self) -> String {
        let (namespace, domain) = (&self.names.control_namespace, &self.cluster_domain);
        format!("{SERVICE}.{namespace}.svc.{domain}:{PROXIES_PORT}")
    }

    /// Who answers there.
    pub fn control_identity(&self) -> String {
        self.identity_of(SERVICE, &self.names.control_namespace)
    }

    /// The identity of a service account, either of which may be a reference to a variable.
    pub(super) fn identity_of(&self, account: &str, namespace: &str) -> String {
        let MeshNames { control_namespace, trust_domain } = &self.names;
        format!("{account}.{namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}")
    }
}
