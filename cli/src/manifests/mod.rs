//! What an installation consists of: the documents of `manifests/mesh/` with [`values`] put in their place.
//!
//! The documents are read as the types that Kubernetes has for them, so that what is changed is changed by field, and
//! what comes out is the same for the same values.

mod control_plane;
mod gateway;
mod injector;
#[cfg(test)]
mod tests;
pub mod values;

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use mesh_control::inject::options::Options;
use mesh_control::inject::settings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::values::{Overrides, Profile, Values};
use crate::cluster::CONTROL_PLANE;
use crate::error::CliError;

const NAMESPACE: &str = include_str!("../../../manifests/mesh/namespace.yaml");
const RBAC: &str = include_str!("../../../manifests/mesh/rbac.yaml");
const CONFIG: &str = include_str!("../../../manifests/mesh/config.yaml");
const CONTROL: &str = include_str!("../../../manifests/mesh/control-plane.yaml");
const GATEWAY: &str = include_str!("../../../manifests/mesh/gateway.yaml");
const INJECTOR: &str = include_str!("../../../manifests/mesh/injector.yaml");

/// The label that all objects of the mesh have, and its value.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "mesh");
/// Who wrote an object.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "meshctl");
const NAME_LABEL: &str = "app.kubernetes.io/name";
const VERSION_LABEL: &str = "app.kubernetes.io/version";

/// The ConfigMap that tells what the mesh was installed with.
pub const INSTALLATION: &str = "mesh-install";
pub const PROFILE_KEY: &str = "profile";
pub const VALUES_KEY: &str = "values.yaml";
/// The ConfigMap with the injector's settings.
pub const MESH_CONFIG: &str = "mesh-config";

/// What is to be installed.
#[derive(Clone, Debug, PartialEq)]
pub struct Installation {
    /// Of the control plane.
    pub namespace: String,
    pub profile: Profile,
    pub overrides: Overrides,
    pub values: Values,
}

/// One object of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub kind: String,
    pub api_version: String,
    pub name: String,
    pub namespace: Option<String>,
    pub value: Value,
    /// The same as text, without a leading `---`.
    pub yaml: String,
}

impl Manifest {
    /// `Deployment/mesh-control`
    pub fn title(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

impl Installation {
    pub fn new(namespace: &str, profile: Profile, overrides: Overrides) -> Result<Self, CliError> {
        let values = overrides.resolve(profile)?;
        Ok(Self { namespace: namespace.to_owned(), profile, overrides, values })
    }

    /// Every object, in the order in which they can be applied.
    pub fn render(&self) -> Result<Vec<Manifest>, CliError> {
        let mut out = Rendering { installation: self, manifests: Vec::new() };
        let mut namespace: Namespace = read(NAMESPACE, 0)?;
        namespace.metadata.name = Some(self.namespace.clone());
        out.cluster("mesh", namespace)?;
        for definition in mesh_control::source::policy::crds() {
            out.cluster("mesh", definition)?;
        }
        self.rbac(&mut out)?;
        out.namespaced("mesh", self.config()?)?;
        out.namespaced("mesh", self.record()?)?;
        out.namespaced(CONTROL_PLANE, read::<Service>(CONTROL, 1)?)?;
        if self.values.control_plane.spread {
            out.namespaced(CONTROL_PLANE, read::<PodDisruptionBudget>(CONTROL, 2)?)?;
        }
        let deployment: Deployment = read(CONTROL, 3)?;
        out.namespaced(CONTROL_PLANE, control_plane::filled_in(deployment, self))?;
        if self.values.injector.enabled {
            out.cluster("mesh-injector", injector::filled_in(read(INJECTOR, 0)?, self))?;
        }
        if self.values.gateway.enabled {
            self.gateway(&mut out)?;
        }
        Ok(out.manifests)
    }

    /// All of it as one text.
    pub fn yaml(&self) -> Result<String, CliError> {
        Ok(documents(&self.render()?))
    }

    fn rbac(&self, out: &mut Rendering<'_>) -> Result<(), CliError> {
        let here = |subjects: &mut Option<Vec<Subject>>| {
            for subject in subjects.iter_mut().flatten() {
                subject.namespace = Some(self.namespace.clone());
            }
        };
        out.namespaced(CONTROL_PLANE, read::<ServiceAccount>(CONTROL, 0)?)?;
        out.cluster(CONTROL_PLANE, read::<ClusterRole>(RBAC, 0)?)?;
        let mut binding: ClusterRoleBinding = read(RBAC, 1)?;
        here(&mut binding.subjects);
        out.cluster(CONTROL_PLANE, binding)?;
        out.namespaced(CONTROL_PLANE, read::<Role>(RBAC, 2)?)?;
        let mut binding: RoleBinding = read(RBAC, 3)?;
        here(&mut binding.subjects);
        out.namespaced(CONTROL_PLANE, binding)
    }

    fn gateway(&self, out: &mut Rendering<'_>) -> Result<(), CliError> {
        out.namespaced(gateway::NAME, read::<ServiceAccount>(GATEWAY, 0)?)?;
        out.cluster(gateway::NAME, read::<ClusterRole>(GATEWAY, 1)?)?;
        let mut binding: ClusterRoleBinding = read(GATEWAY, 2)?;
        for subject in binding.subjects.iter_mut().flatten() {
            subject.namespace = Some(self.namespace.clone());
        }
        out.cluster(gateway::NAME, binding)?;
        out.namespaced(gateway::NAME, gateway::service(read(GATEWAY, 3)?, self))?;
        out.namespaced(gateway::NAME, gateway::deployment(read(GATEWAY, 4)?, self))?;
        out.class(gateway::NAME, read(GATEWAY, 5)?)
    }

    /// What the injector and `meshctl inject` read: the names of annotations, and the names of the mesh.
    fn config(&self) -> Result<ConfigMap, CliError> {
        let Values { identity, cluster_domain, .. } = &self.values;
        let switch = if identity.enabled { "enabled" } else { "disabled" };
        let mesh = [
            (settings::CONTROL_NAMESPACE, self.namespace.clone()),
            (settings::TRUST_DOMAIN, identity.trust_domain.clone()),
            (settings::CLUSTER_DOMAIN, cluster_domain.clone()),
            (settings::IDENTITY, switch.to_owned()),
        ];
        let defaults = Options::default();
        let proxies = self.values.proxy_options().map(|(_, option, value)| (option, value));
        let set = mesh.into_iter().chain(proxies).filter(|(option, value)| {
            // An empty one takes the injector's default away.
            !value.is_empty() || defaults.get(option).is_some()
        });
        let mut config: ConfigMap = read(CONFIG, 0)?;
        config.data = Some(set.map(|(key, value)| (key.to_owned(), value)).collect());
        Ok(config)
    }

    /// What `upgrade` goes on with.
    fn record(&self) -> Result<ConfigMap, CliError> {
        let values = serde_saphyr::to_string(&self.overrides).map_err(unwritable)?;
        Ok(ConfigMap {
            metadata: ObjectMeta { name: Some(INSTALLATION.to_owned()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([
                (PROFILE_KEY.to_owned(), self.profile.as_str().to_owned()),
                (VALUES_KEY.to_owned(), values),
            ])),
            ..ConfigMap::default()
        })
    }
}

/// Several manifests as one text.
pub fn documents(manifests: &[Manifest]) -> String {
    manifests.iter().map(|manifest| format!("---\n{}", manifest.yaml)).collect()
}

struct Rendering<'a> {
    installation: &'a Installation,
    manifests: Vec<Manifest>,
}

impl Rendering<'_> {
    fn namespaced<K>(&mut self, name: &str, mut object: K) -> Result<(), CliError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + k8s_openapi::Resource
            + Serialize,
    {
        object.meta_mut().namespace = Some(self.installation.namespace.clone());
        self.add(name, object)
    }

    fn cluster<K>(&mut self, name: &str, object: K) -> Result<(), CliError>
    where
        K: Resource<DynamicType = ()> + k8s_openapi::Resource + Serialize,
    {
        self.add(name, object)
    }

    /// A GatewayClass, for which Kubernetes itself has no type.
    fn class(&mut self, name: &str, mut value: Value) -> Result<(), CliError> {
        for (key, text) in labels(name) {
            value["metadata"]["labels"][key] = text.into();
        }
        let yaml = serde_saphyr::to_string(&value).map_err(unwritable)?;
        let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        self.manifests.push(Manifest {
            kind: text("/kind").to_owned(),
            api_version: text("/apiVersion").to_owned(),
            name: text("/metadata/name").to_owned(),
            namespace: None,
            yaml,
            value,
        });
        Ok(())
    }

    fn add<K>(&mut self, name: &str, mut object: K) -> Result<(), CliError>
    where
        K: Resource<DynamicType = ()> + k8s_openapi::Resource + Serialize,
    {
        object.meta_mut().labels.get_or_insert_default().extend(labels(name));
        let value = serde_json::to_value(&object).map_err(unwritable)?;
        let yaml = serde_saphyr::to_string(&object).map_err(unwritable)?;
        let meta = object.meta();
        self.manifests.push(Manifest {
            kind: <K as k8s_openapi::Resource>::KIND.to_owned(),
            api_version: <K as k8s_openapi::Resource>::API_VERSION.to_owned(),
            name: meta.name.clone().unwrap_or_default(),
            namespace: meta.namespace.clone(),
            value,
            yaml,
        });
        Ok(())
    }
}

/// The labels of an object of the mesh; `name` is what it belongs to.
fn labels(name: &str) -> impl Iterator<Item = (String, String)> {
    let version = (VERSION_LABEL, env!("CARGO_PKG_VERSION"));
    let all = [(NAME_LABEL, name), PART_OF, MANAGED_BY, version];
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter()
}

/// A document of a file, by its place in it.
fn read<T: DeserializeOwned>(text: &str, at: usize) -> Result<T, CliError> {
    let broken = |why: &str| CliError::failed(format!("a bundled manifest is broken: {why}"));
    let document = text.split("\n---\n").nth(at).ok_or_else(|| broken("a document is missing"))?;
    serde_saphyr::from_str(document).map_err(|error| broken(&error.to_string()))
}

/// The name of a variant as values have it.
fn text_of(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn unwritable(error: impl std::fmt::Display) -> CliError {
    CliError::failed(format!("the manifests can't be written: {error}"))
}
