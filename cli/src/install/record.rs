//! What a mesh was installed with, as the ConfigMap that every installation has tells.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use crate::cluster::Cluster;
use crate::error::CliError;
use crate::manifests::values::{Overrides, Profile};
use crate::manifests::{INSTALLATION, PROFILE_KEY, VALUES_KEY};

/// The profile, and what differs from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    pub profile: Profile,
    pub overrides: Overrides,
}

impl Record {
    /// Nothing but the profile: without values of its own, a mesh is still what it was installed as.
    pub fn without_values(self) -> Self {
        Self { overrides: Overrides::default(), ..self }
    }
}

/// Reads it; none if there is no mesh.
pub async fn read(cluster: &Cluster) -> Result<Option<Record>, CliError> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
    let doing = format!("read ConfigMap/{INSTALLATION} in {}", cluster.mesh_namespace);
    let Some(map) = cluster.ask(&doing, api.get_opt(INSTALLATION)).await? else { return Ok(None) };
    let data = map.data.unwrap_or_default();
    let text = |key: &str| data.get(key).map(String::as_str).unwrap_or_default();
    let profile = Profile::from_name(text(PROFILE_KEY)).ok_or_else(|| {
        CliError::failed(format!(
            "ConfigMap/{INSTALLATION} names no profile that this meshctl knows: \"{}\"",
            text(PROFILE_KEY)
        ))
        .hint("meshctl install --profile NAME")
    })?;
    let name = format!("ConfigMap/{INSTALLATION}: {VALUES_KEY}");
    Ok(Some(Record { profile, overrides: Overrides::from_yaml(&name, text(VALUES_KEY))? }))
}
