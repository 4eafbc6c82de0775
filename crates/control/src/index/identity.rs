//! Who a pod is, in a mesh with identity.

use mesh_model::TlsIdentity;
use mesh_tls::{Id, WorkloadId};

use super::Objects;
use super::authz::MESH_NAMESPACE;
use super::lookup::CLUSTER_DOMAIN;
use super::object::Pod;

/// What all identities of a mesh end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshNames {
    /// Where the control plane lives.
    pub control_namespace: String,
    pub trust_domain: String,
}

impl Default for MeshNames {
    fn default() -> Self {
        Self { control_namespace: MESH_NAMESPACE.into(), trust_domain: CLUSTER_DOMAIN.into() }
    }
}

impl MeshNames {
    /// What the identities of a namespace end in.
    pub fn suffix(&self, namespace: &str) -> String {
        let Self { control_namespace, trust_domain } = self;
        format!("{namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}")
    }

    /// The identity of a service account. `None`: its name makes none, since dots are in it.
    pub fn id(&self, namespace: &str, service_account: &str) -> Option<Id> {
        let parts = WorkloadId {
            service_account: service_account.into(),
            namespace: namespace.into(),
            control_namespace: self.control_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
        };
        parts.id()
    }

    /// The control plane's own identity.
    pub fn control_plane(&self) -> Option<Id> {
        let own = self.id(&self.control_namespace, "any")?;
        WorkloadId::of(&own)?.control_plane()
    }
}

impl Objects {
    /// What the names of identities end with; `None` in a mesh without identity.
    pub fn identity(&self) -> Option<&MeshNames> {
        self.identity.as_ref()
    }

    /// What a pod proves to be; `None` without a proxy, or in a mesh without identity.
    pub fn identity_of(&self, pod: &Pod) -> Option<Id> {
        let names = self.identity().filter(|_| pod.meshed())?;
        names.id(&pod.name.namespace, &pod.service_account)
    }

    /// Whom to expect behind a pod's proxy; `None` means plaintext.
    pub(super) fn tls_identity(&self, pod: &Pod) -> Option<TlsIdentity> {
        let id = self.identity_of(pod)?;
        Some(TlsIdentity { id: id.to_string(), server_name: id.to_string() })
    }
}
