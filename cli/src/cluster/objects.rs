//! Objects of the kinds that the mesh consists of: read, applied and deleted without a type for each.

use std::future::Future;
use std::time::Duration;

use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde_json::Value;

use super::{Asked, Cluster, refusal};
use crate::error::CliError;
use crate::manifests::Manifest;

/// Who we are among those who own fields.
pub const FIELD_MANAGER: &str = "meshctl";
/// Changes pass the webhooks of others, which may take their time.
const CHANGE: Duration = Duration::from_secs(30);

/// A kind, and how the API server calls it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub kind: &'static str,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    pub namespaced: bool,
}

const fn kind(
    kind: &'static str,
    group: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { kind, group, version: "v1", plural, namespaced }
}

const RBAC: &str = "rbac.authorization.k8s.io";
/// The group of the kinds of Gateway API, which are definitions that a cluster may lack.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// In the order in which they are removed: whoever could be hindered by what is going to be away goes first.
pub const KINDS: [Kind; 13] = [
    kind(
        "MutatingWebhookConfiguration",
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        false,
    ),
    kind("GatewayClass", GATEWAY_API, "gatewayclasses", false),
    kind("Deployment", "apps", "deployments", true),
    kind("PodDisruptionBudget", "policy", "poddisruptionbudgets", true),
    kind("Service", "", "services", true),
    kind("ConfigMap", "", "configmaps", true),
    kind("RoleBinding", RBAC, "rolebindings", true),
    kind("Role", RBAC, "roles", true),
    kind("ClusterRoleBinding", RBAC, "clusterrolebindings", false),
    kind("ClusterRole", RBAC, "clusterroles", false),
    kind("ServiceAccount", "", "serviceaccounts", true),
    kind("CustomResourceDefinition", "apiextensions.k8s.io", "customresourcedefinitions", false),
    kind("Namespace", "", "namespaces", false),
];

/// Secrets and leases are the control plane's own and are only ever removed by name.
pub const SECRET: Kind = kind("Secret", "", "secrets", true);
pub const LEASE: Kind = kind("Lease", "coordination.k8s.io", "leases", true);

/// What people keep in a namespace and would miss. Workloads come before their pods, as they are the better examples.
/// A cluster need not have all of these kinds.
pub const KEPT: [Kind; 14] = [
    kind("Deployment", "apps", "deployments", true),
    kind("StatefulSet", "apps", "statefulsets", true),
    kind("DaemonSet", "apps", "daemonsets", true),
    kind("CronJob", "batch", "cronjobs", true),
    kind("Job", "batch", "jobs", true),
    kind("Pod", "", "pods", true),
    kind("Service", "", "services", true),
    kind("ConfigMap", "", "configmaps", true),
    SECRET,
    kind("PersistentVolumeClaim", "", "persistentvolumeclaims", true),
    kind("Gateway", GATEWAY_API, "gateways", true),
    kind("HTTPRoute", GATEWAY_API, "httproutes", true),
    kind("GRPCRoute", GATEWAY_API, "grpcroutes", true),
    // `v1` is of newer releases only.
    Kind { version: "v1beta1", ..kind("ReferenceGrant", GATEWAY_API, "referencegrants", true) },
];

/// Where the mesh's own pods tell how they are.
pub const POD: Kind = kind("Pod", "", "pods", true);
pub const EVENT: Kind = kind("Event", "", "events", true);

/// The group of the mesh's own policies.
const POLICY: &str = "policy.meshctl.dev";

/// What tells a mesh what to do, in all namespaces.
pub const TOLD: [Kind; 8] = [
    Kind {
        version: "v1alpha1",
        ..kind("AuthorizationPolicy", POLICY, "authorizationpolicies", true)
    },
    Kind { version: "v1alpha1", ..kind("ServerPolicy", POLICY, "serverpolicies", true) },
    Kind {
        version: "v1alpha1",
        ..kind("BackendTrafficPolicy", POLICY, "backendtrafficpolicies", true)
    },
    Kind { version: "v1alpha1", ..kind("EgressPolicy", POLICY, "egresspolicies", true) },
    kind("Gateway", GATEWAY_API, "gateways", true),
    kind("HTTPRoute", GATEWAY_API, "httproutes", true),
    kind("GRPCRoute", GATEWAY_API, "grpcroutes", true),
    Kind { version: "v1beta1", ..kind("ReferenceGrant", GATEWAY_API, "referencegrants", true) },
];

impl Kind {
    /// That of a manifest.
    pub fn of(name: &str) -> Result<&'static Self, CliError> {
        KINDS.iter().find(|kind| kind.kind == name).ok_or_else(|| {
            CliError::failed(format!("meshctl does not install objects of the kind {name}"))
        })
    }

    /// `deployments.apps`, as access reviews and people name it.
    pub fn resource(&self) -> (&'static str, &'static str) {
        (self.group, self.plural)
    }

    fn api_resource(&self) -> ApiResource {
        let gvk = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&gvk, self.plural)
    }
}

/// How something is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applying {
    /// Look what would come of it.
    pub dry_run: bool,
    /// Take fields over from whoever has set them.
    pub force: bool,
}

impl Cluster {
    /// Objects of a kind, in this namespace if the kind has namespaces.
    pub fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.api_resource())
        } else {
            Api::all_with(self.client.clone(), &kind.api_resource())
        }
    }

    /// The object that a manifest describes, as it is now.
    pub async fn live(&self, manifest: &Manifest) -> Result<Option<DynamicObject>, CliError> {
        let api = self.api(Kind::of(&manifest.kind)?, self.namespace_of(manifest));
        let doing = format!("read {}", manifest.title());
        self.ask(&doing, api.get_opt(&manifest.name)).await
    }

    /// The kinds that the API server has of a group and version, such as `apps/v1`; none if it does not know them.
    pub async fn kinds(&self, api_version: &str) -> Result<Vec<String>, CliError> {
        let asked = async {
            let listed = match api_version.contains('/') {
                true => self.client.list_api_group_resources(api_version).await,
                false => self.client.list_core_api_resources(api_version).await,
            };
            match listed {
                Err(error) if refusal::is_missing(&error) => Ok(Vec::new()),
                listed => listed.map(|list| list.resources),
            }
        };
        let resources = self.ask(&format!("list the kinds of {api_version}"), asked).await?;
        Ok(resources.into_iter().map(|resource| resource.kind).collect())
    }

    /// Server-side apply.
    pub async fn apply(
        &self,
        manifest: &Manifest,
        applying: Applying,
    ) -> Result<DynamicObject, CliError> {
        let api = self.api(Kind::of(&manifest.kind)?, self.namespace_of(manifest));
        let params = PatchParams {
            dry_run: applying.dry_run,
            force: applying.force,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Apply(&manifest.value);
        let asked = api.patch(&manifest.name, &params, &patch);
        self.change(&format!("apply {}", manifest.title()), asked).await
    }

    /// Objects that we have installed, of this kind.
    pub async fn installed(&self, kind: &Kind) -> Result<Vec<DynamicObject>, CliError> {
        let ((part, mesh), (by, us)) = (crate::manifests::PART_OF, crate::manifests::MANAGED_BY);
        let ours = ListParams::default().labels(&format!("{part}={mesh},{by}={us}"));
        let api = self.api(kind, &self.mesh_namespace);
        let asked = async {
            match api.list(&ours).await {
                // A cluster need not have all kinds.
                Err(error) if refusal::is_missing(&error) => Ok(Vec::new()),
                answer => answer.map(|found| found.items),
            }
        };
        self.ask(&format!("list {}", kind.plural), asked).await
    }

    /// Objects of a kind in a namespace, or in all; none of a kind that the cluster lacks.
    pub async fn list(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        limit: u32,
    ) -> Result<Vec<DynamicObject>, CliError> {
        let api = match namespace {
            Some(namespace) => self.api(kind, namespace),
            None => Api::all_with(self.client.clone(), &kind.api_resource()),
        };
        let params = ListParams::default().limit(limit);
        let asked = async {
            match api.list(&params).await {
                Err(error) if refusal::is_missing(&error) => Ok(Vec::new()),
                answer => answer.map(|found| found.items),
            }
        };
        self.ask(&format!("list {}", kind.plural), asked).await
    }

    /// Deletes an object with all that it owns; that it is gone already will do.
    pub async fn delete(&self, kind: &Kind, name: &str) -> Result<(), CliError> {
        let api = self.api(kind, &self.mesh_namespace);
        let asked = async {
            match api.delete(name, &DeleteParams::background()).await {
                Err(error) if refusal::is_missing(&error) => Ok(()),
                answer => answer.map(drop),
            }
        };
        self.change(&format!("delete {}/{name}", kind.kind), asked).await
    }

    /// Whether an object is there, even if it is going.
    pub async fn exists(&self, kind: &Kind, name: &str) -> Result<bool, CliError> {
        let api = self.api(kind, &self.mesh_namespace);
        let found =
            self.ask(&format!("read {}/{name}", kind.kind), api.get_metadata_opt(name)).await?;
        Ok(found.is_some())
    }

    /// As [`Self::ask`], with the patience that a change needs.
    pub fn change<'a, T: 'a>(
        &'a self,
        doing: &'a str,
        asked: impl Future<Output = Result<T, kube::Error>> + Send + 'a,
    ) -> Asked<'a, T> {
        Box::pin(async move {
            match tokio::time::timeout(CHANGE, asked).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(kube::Error::Api(status))) if status.code == 409 && is_conflict(&status) => {
                    Err(conflict(doing, &status))
                }
                Ok(Err(error)) => Err(refusal(self, doing, &error)),
                Err(_) => Err(CliError::timed_out(format!(
                    "the API server did not {doing} within {} s",
                    CHANGE.as_secs()
                ))
                .hint("the same command again; what is done already is not done twice")),
            }
        })
    }

    fn namespace_of<'a>(&'a self, manifest: &'a Manifest) -> &'a str {
        manifest.namespace.as_deref().unwrap_or(&self.mesh_namespace)
    }
}

/// Whether others own fields that were to be changed.
fn is_conflict(status: &kube::core::Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "FieldManagerConflict")
}

fn conflict(doing: &str, status: &kube::core::Status) -> CliError {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let fields: Vec<String> =
        causes.map(|cause| format!("{} ({})", cause.field, cause.message)).collect();
    CliError::failed(format!("can't {doing}: others have set {}", fields.join(", ")))
        .hint("set it in your values, or --force-conflicts to take it over")
}

/// Whether a condition of this type is true.
pub fn has_condition(object: &impl Serialize, wanted: &str) -> bool {
    let value = serde_json::to_value(object).unwrap_or_default();
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == wanted && c["status"] == "True")
}

/// `Deployment/mesh-control`
pub fn title(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("", |types| types.kind.as_str());
    format!("{kind}/{}", object.name_any())
}
