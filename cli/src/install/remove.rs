//! Takes a mesh out of a cluster. What is gone already is passed over, so that it can be resumed after any failure.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt};
use mesh_control::inject::settings::ROOTS_CONFIG_MAP;
use mesh_control::source::kubernetes::PROXY_VERSION_ANNOTATION;
use mesh_control::{identity, source, webhook};
use serde_json::Value;
use tokio::time::Instant;

use super::plan::{mesh_elsewhere, named};
use crate::cluster::objects::{KEPT, KINDS, Kind, LEASE, SECRET, title};
use crate::cluster::{Cluster, NEXT_ISSUER, refusal};
use crate::error::CliError;
use crate::manifests::PART_OF;
use crate::output::Ui;

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
    /// What the control plane has made for itself.
    pub its_own: Vec<(&'static Kind, &'static str)>,
}

impl Removal {
    pub async fn of(cluster: &Cluster, purge_crds: bool) -> Result<Self, CliError> {
        if let Some(there) = mesh_elsewhere(cluster).await? {
            return Err(CliError::failed(format!(
                "the mesh of this cluster is in the namespace {there}, not in {}",
                cluster.mesh_namespace
            ))
            .hint(format!("meshctl uninstall --mesh-namespace {there}")));
        }
        let mut removal = Self {
            objects: Vec::new(),
            kept: Vec::new(),
            namespace: None,
            others: Vec::new(),
            its_own: Vec::new(),
        };
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
            removal.others = foreign(cluster, &removal.kept).await?;
            if !removal.others.is_empty() {
                removal.namespace = None;
            }
        }
        for (kind, name) in its_own()? {
            if cluster.exists(kind, name).await? {
                removal.its_own.push((kind, name));
            }
        }
        Ok(removal)
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.namespace.is_none() && self.its_own.is_empty()
    }

    pub fn summary(&self, cluster: &Cluster) -> String {
        let mut text: String =
            self.objects.iter().map(|object| format!("  - remove {}\n", title(object))).collect();
        match &self.namespace {
            Some(name) => {
                text +=
                    &format!("  - remove Namespace/{name}, the issuer's key and all else in it\n")
            }
            None => {
                let own = self.its_own.iter();
                text.extend(own.map(|(kind, name)| format!("  - remove {}/{name}\n", kind.kind)));
            }
        }
        if !self.others.is_empty() {
            text += &format!(
                "    keep Namespace/{} with what is in it, such as {}\n",
                cluster.mesh_namespace,
                self.others.join(", ")
            );
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
        // Those too that have come into being since.
        for (kind, name) in its_own()? {
            let _line = ui.progress(&format!("removing {}/{name}", kind.kind));
            cluster.delete(kind, name).await?;
            going.push((kind, name.to_owned()));
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

/// Objects that the control plane makes for itself.
fn its_own() -> Result<[(&'static Kind, &'static str); 5], CliError> {
    Ok([
        (&SECRET, identity::secret::NAME),
        (&SECRET, NEXT_ISSUER),
        (&SECRET, webhook::certificate::SECRET),
        (&LEASE, source::kube::LEASE),
        (Kind::of("ConfigMap")?, ROOTS_CONFIG_MAP),
    ])
}

/// What else is in the namespace, a few examples; objects of the kinds that are kept are among it.
async fn foreign(cluster: &Cluster, kept: &[DynamicObject]) -> Result<Vec<String>, CliError> {
    const EXAMPLES: usize = 3;
    let (part, mesh) = PART_OF;
    let others = ListParams::default().labels(&format!("{part}!={mesh}")).limit(PAGE);
    let own = its_own()?;
    let mut found: Vec<String> = Vec::new();
    for kind in &KEPT {
        // Tokens belong to service accounts.
        let others = match kind.kind {
            "Secret" => others.clone().fields("type!=kubernetes.io/service-account-token"),
            _ => others.clone(),
        };
        let (_, plural) = kind.resource();
        let api = cluster.api(kind, &cluster.mesh_namespace);
        let asked = async {
            match api.list_metadata(&others).await {
                Err(error) if refusal::is_missing(&error) => Ok(Vec::new()),
                answer => answer.map(|found| found.items),
            }
        };
        let there = cluster.ask(&format!("list {plural}"), asked).await?;
        let names = there.iter().map(ResourceExt::name_any).filter(|name| {
            // Kubernetes and its vendors put their roots into every namespace.
            let vendors = kind.kind == "ConfigMap" && name.ends_with("ca.crt");
            !vendors && !own.iter().any(|(of, own)| of.kind == kind.kind && name == own)
        });
        found.extend(names.map(|name| format!("{}/{name}", kind.kind)));
    }
    for definition in kept {
        let names = instances(cluster, definition, Some(&cluster.mesh_namespace)).await?;
        let kind = definition.data.pointer("/spec/names/kind").and_then(Value::as_str);
        found.extend(names.iter().map(|name| format!("{}/{name}", kind.unwrap_or_default())));
    }
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
        let with_proxy = found
            .items
            .iter()
            .filter(|pod| pod.annotations().contains_key(PROXY_VERSION_ANNOTATION));
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

/// The objects of a kind of ours, everywhere or in this namespace, by name.
pub async fn instances(
    cluster: &Cluster,
    definition: &DynamicObject,
    namespace: Option<&str>,
) -> Result<Vec<String>, CliError> {
    let text = |pointer: &str| {
        definition.data.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    };
    let gvk = kube::core::GroupVersionKind::gvk(
        text("/spec/group"),
        text("/spec/versions/0/name"),
        text("/spec/names/kind"),
    );
    let resource = kube::api::ApiResource::from_gvk_with_plural(&gvk, text("/spec/names/plural"));
    let client = cluster.client.clone();
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let doing = format!("list {}", text("/spec/names/plural"));
    let found = cluster.ask(&doing, api.list_metadata(&ListParams::default())).await?;
    Ok(found.iter().map(ResourceExt::name_any).collect())
}
