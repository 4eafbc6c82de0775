//! Takes a mesh out of a cluster. What is gone already is passed over, so that it can be resumed after any failure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;

use super::plan::named;
use crate::cluster::Cluster;
use crate::cluster::objects::{KINDS, Kind, LEASE, SECRET, title};
use crate::error::CliError;
use crate::manifests::PART_OF;
use crate::output::Ui;

/// Pods with it have a proxy.
const PROXY_VERSION: &str = "meshctl.dev/proxy-version";
/// Objects that the control plane makes for itself.
const ITS_OWN: [(&Kind, &str); 4] = [
    (&SECRET, "mesh-identity-issuer"),
    (&SECRET, "mesh-webhook-cert"),
    (&LEASE, "mesh-control"),
    (&KINDS[4], "mesh-trust-roots"),
];
/// Pods are looked through in pages of this many.
const PAGE: u32 = 500;
const LOOK: Duration = Duration::from_millis(500);

/// What is to be removed.
#[derive(Debug)]
pub struct Removal {
    /// In this order.
    pub objects: Vec<DynamicObject>,
    /// Definitions that stay.
    pub kept: Vec<DynamicObject>,
    /// The namespace, if it has nothing but the mesh in it.
    pub namespace: Option<String>,
    /// What keeps the namespace.
    pub others: Vec<String>,
}

impl Removal {
    pub async fn of(cluster: &Cluster, purge_crds: bool) -> Result<Self, CliError> {
        let mut removal =
            Self { objects: Vec::new(), kept: Vec::new(), namespace: None, others: Vec::new() };
        for kind in &KINDS {
            let found =
                cluster.installed(kind).await?.into_iter().map(|object| named(kind, object));
            match kind.kind {
                "Namespace" => {
                    let mut names = found.map(|object| object.name_any());
                    removal.namespace = names.find(|name| *name == cluster.mesh_namespace);
                }
                "CustomResourceDefinition" if !purge_crds => removal.kept.extend(found),
                _ => removal.objects.extend(found),
            }
        }
        if removal.namespace.is_some() {
            removal.others = foreign(cluster).await?;
            if !removal.others.is_empty() {
                removal.namespace = None;
            }
        }
        Ok(removal)
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.namespace.is_none()
    }

    pub fn summary(&self, cluster: &Cluster) -> String {
        let mut text: String =
            self.objects.iter().map(|object| format!("  - remove {}\n", title(object))).collect();
        match &self.namespace {
            Some(name) => {
                text +=
                    &format!("  - remove Namespace/{name}, the issuer's key and all else in it\n")
            }
            None if !self.others.is_empty() => {
                text += &format!(
                    "  - remove the control plane's Secrets; Namespace/{} stays: {} is in it\n",
                    cluster.mesh_namespace,
                    self.others.join(", ")
                );
            }
            None => {}
        }
        if !self.kept.is_empty() {
            let names: Vec<String> = self.kept.iter().map(ResourceExt::name_any).collect();
            text += &format!(
                "    keep {} with their policies (--purge-crds removes them)\n",
                names.join(", ")
            );
        }
        text
    }

    /// Does it, and waits until it is done.
    pub async fn run(
        &self,
        cluster: &Cluster,
        limit: Duration,
        ui: &mut Ui,
    ) -> Result<(), CliError> {
        let mut going: Vec<(&Kind, String)> = Vec::new();
        for object in &self.objects {
            let kind = Kind::of(object.types.as_ref().map_or("", |types| types.kind.as_str()))?;
            let _line = ui.progress(&format!("removing {}", title(object)));
            cluster.delete(kind, &object.name_any()).await?;
            going.push((kind, object.name_any()));
        }
        for (kind, name) in ITS_OWN {
            cluster.delete(kind, name).await?;
        }
        if let Some(name) = &self.namespace {
            cluster.delete(Kind::of("Namespace")?, name).await?;
            going.push((Kind::of("Namespace")?, name.clone()));
        }
        let until = Instant::now() + limit;
        for (kind, name) in going {
            let _line = ui.progress(&format!("waiting for {}/{name} to be gone", kind.kind));
            while cluster.exists(kind, &name).await? {
                if Instant::now() >= until {
                    let late =
                        format!("{}/{name} is not gone after {} s", kind.kind, limit.as_secs());
                    let (_, plural) = kind.resource();
                    return Err(CliError::timed_out(late).hint(format!(
                        "{} get {plural} {name} -o yaml, whose conditions and finalizers say why; then the same again",
                        cluster.kubectl()
                    )));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }
}

/// What else is in the namespace, a few examples.
async fn foreign(cluster: &Cluster) -> Result<Vec<String>, CliError> {
    const EXAMPLES: usize = 3;
    let (client, namespace) = (cluster.client.clone(), &cluster.mesh_namespace);
    let (part, mesh) = PART_OF;
    let others = ListParams::default().labels(&format!("{part}!={mesh}")).limit(PAGE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    let pods = cluster.ask("list pods", pods.list_metadata(&others)).await?;
    let services = cluster.ask("list services", services.list_metadata(&others)).await?;
    let maps = cluster.ask("list configmaps", maps.list_metadata(&others)).await?;
    // Kubernetes and its vendors put their roots into every namespace.
    let own = |name: &str| name == "mesh-trust-roots" || name.ends_with("ca.crt");
    let mut found: Vec<String> = Vec::new();
    found.extend(pods.iter().map(|pod| format!("Pod/{}", pod.name_any())));
    found.extend(services.iter().map(|service| format!("Service/{}", service.name_any())));
    found.extend(
        maps.iter()
            .map(ResourceExt::name_any)
            .filter(|name| !own(name))
            .map(|name| format!("ConfigMap/{name}")),
    );
    found.truncate(EXAMPLES);
    Ok(found)
}

/// Pods that have a proxy and have not ended: `namespace/name`.
pub async fn meshed_pods(cluster: &Cluster) -> Result<Vec<String>, CliError> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let mut meshed = Vec::new();
    let mut page =
        ListParams::default().fields("status.phase!=Succeeded,status.phase!=Failed").limit(PAGE);
    loop {
        let found = cluster.ask("list pods", pods.list_metadata(&page)).await?;
        let with_proxy =
            found.items.iter().filter(|pod| pod.annotations().contains_key(PROXY_VERSION));
        meshed.extend(
            with_proxy
                .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())),
        );
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(meshed),
        }
    }
}

/// How many objects of our kinds a definition's removal takes along.
pub async fn instances(cluster: &Cluster, definition: &DynamicObject) -> Result<usize, CliError> {
    let text = |pointer: &str| {
        definition.data.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    };
    let gvk = kube::core::GroupVersionKind::gvk(
        text("/spec/group"),
        text("/spec/versions/0/name"),
        text("/spec/names/kind"),
    );
    let resource = kube::api::ApiResource::from_gvk_with_plural(&gvk, text("/spec/names/plural"));
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let doing = format!("list {}", text("/spec/names/plural"));
    Ok(cluster.ask(&doing, api.list_metadata(&ListParams::default())).await?.items.len())
}
