//! What would become of a cluster, object by object, as its API server says: a server-side dry run of everything.

use std::collections::BTreeMap;

use kube::api::DynamicObject;
use serde_json::Value;
use similar::TextDiff;

use crate::cluster::Cluster;
use crate::cluster::objects::{Applying, GATEWAY_API, KINDS, Kind, title};
use crate::error::CliError;
use crate::manifests::Manifest;
use crate::output::{Style, format};

/// One object and what becomes of it.
#[derive(Debug)]
pub struct Planned {
    /// `Deployment/mesh-control`
    pub title: String,
    pub change: Change,
}

#[derive(Debug)]
pub enum Change {
    Create {
        after: String,
    },
    Update {
        before: String,
        after: String,
    },
    Unchanged,
    /// It is no longer a part of the mesh.
    Remove {
        before: String,
    },
}

/// What a cluster becomes, in the order in which it does.
#[derive(Debug)]
pub struct Plan {
    pub planned: Vec<Planned>,
    /// What is to be removed.
    pub stale: Vec<DynamicObject>,
}

impl Plan {
    /// Asks what applying these would change.
    pub async fn of(
        cluster: &Cluster,
        manifests: &[Manifest],
        force: bool,
    ) -> Result<Self, CliError> {
        if let Some(there) = mesh_elsewhere(cluster).await? {
            return Err(CliError::failed(format!(
                "this cluster has a mesh already, in the namespace {there}"
            ))
            .hint(format!("--mesh-namespace {there}; or meshctl uninstall it first")));
        }
        every_kind_is_known(cluster, manifests).await?;
        let mut planned = Vec::new();
        for manifest in manifests {
            let change = match cluster.live(manifest).await? {
                None => Change::Create { after: text(&manifest.value)? },
                Some(live) => {
                    let applying = Applying { dry_run: true, force };
                    let wanted = cluster.apply(manifest, applying).await?;
                    let (before, after) = (readable(&live)?, readable(&wanted)?);
                    if before == after {
                        Change::Unchanged
                    } else {
                        Change::Update { before, after }
                    }
                }
            };
            planned.push(Planned { title: manifest.title(), change });
        }
        let stale = stale(cluster, manifests).await?;
        for object in &stale {
            let change = Change::Remove { before: readable(object)? };
            planned.push(Planned { title: title(object), change });
        }
        Ok(Self { planned, stale })
    }

    pub fn is_empty(&self) -> bool {
        self.planned.iter().all(|planned| matches!(planned.change, Change::Unchanged))
    }

    /// A line for each object that is touched, and how many are not.
    pub fn summary(&self, style: Style) -> String {
        let mut text = String::new();
        let mut same = 0;
        for Planned { title, change } in &self.planned {
            text += &match change {
                Change::Create { .. } => format!("  {} {title}\n", style.green("+ create")),
                Change::Update { .. } => format!("  {} {title}\n", style.yellow("~ change")),
                Change::Remove { .. } => format!("  {} {title}\n", style.red("- remove")),
                Change::Unchanged => {
                    same += 1;
                    continue;
                }
            };
        }
        if same > 0 {
            text += &format!("    {same} stay as they are\n");
        }
        text
    }

    /// As `diff -u`.
    pub fn diff(&self) -> String {
        let mut text = String::new();
        for Planned { title, change } in &self.planned {
            let (before, after) = match change {
                Change::Create { after } => ("", after.as_str()),
                Change::Update { before, after } => (before.as_str(), after.as_str()),
                Change::Remove { before } => (before.as_str(), ""),
                Change::Unchanged => continue,
            };
            let diff = TextDiff::from_lines(before, after);
            let names = (format!("live/{title}"), format!("new/{title}"));
            text += &diff.unified_diff().header(&names.0, &names.1).to_string();
        }
        text
    }
}

/// The namespace of the cluster's mesh, if it is not the one that is meant. Roles, webhooks and definitions are of the
/// whole cluster: two meshes would take them from each other.
pub async fn mesh_elsewhere(cluster: &Cluster) -> Result<Option<String>, CliError> {
    let bindings = cluster.installed(Kind::of("ClusterRoleBinding")?).await?;
    let mut namespaces = bindings.iter().filter_map(|binding| {
        binding.data.pointer("/subjects/0/namespace").and_then(Value::as_str)
    });
    Ok(namespaces.find(|there| *there != cluster.mesh_namespace).map(str::to_owned))
}

/// An installation that the API server does not understand would stop half way.
async fn every_kind_is_known(cluster: &Cluster, manifests: &[Manifest]) -> Result<(), CliError> {
    let mut known: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for manifest in manifests.iter().filter(|manifest| !is_defined(manifest, manifests)) {
        let (kind, version) = (&manifest.kind, manifest.api_version.as_str());
        if !known.contains_key(version) {
            known.insert(version, cluster.kinds(version).await?);
        }
        if known[version].contains(kind) {
            continue;
        }
        let error =
            CliError::failed(format!("the API server does not know the kind {kind} of {version}"));
        return Err(match version.starts_with(GATEWAY_API) {
            true => error.hint(
                "install the CustomResourceDefinitions of Gateway API, or leave gateway.enabled off",
            ),
            false => error.hint("meshctl check --pre, which tells what an installation needs"),
        });
    }
    Ok(())
}

/// Whether the kind comes with the installation.
fn is_defined(manifest: &Manifest, manifests: &[Manifest]) -> bool {
    let group = manifest.api_version.split_once('/').map_or("", |(group, _)| group);
    let definitions = manifests.iter().filter(|of| of.kind == "CustomResourceDefinition");
    let mut specs = definitions.map(|definition| &definition.value["spec"]);
    specs.any(|spec| spec["group"] == group && spec["names"]["kind"] == manifest.kind.as_str())
}

/// Objects of an earlier installation that are not among the manifests any more.
async fn stale(cluster: &Cluster, manifests: &[Manifest]) -> Result<Vec<DynamicObject>, CliError> {
    let mut stale = Vec::new();
    for kind in &KINDS {
        // Definitions take the users' policies with them.
        if matches!(kind.kind, "CustomResourceDefinition" | "Namespace") {
            continue;
        }
        let found = cluster.installed(kind).await?.into_iter().map(|object| named(kind, object));
        stale.extend(found.filter(|object| {
            let name = object.metadata.name.as_deref();
            !manifests.iter().any(|m| m.kind == kind.kind && Some(m.name.as_str()) == name)
        }));
    }
    Ok(stale)
}

/// Lists leave the kind out.
pub fn named(kind: &Kind, mut object: DynamicObject) -> DynamicObject {
    let types = object.types.get_or_insert_default();
    kind.kind.clone_into(&mut types.kind);
    object
}

/// What people look at: without what the API server keeps for itself.
fn readable(object: &DynamicObject) -> Result<String, CliError> {
    let mut value = serde_json::to_value(object)
        .map_err(|error| CliError::failed(format!("{}: {error}", title(object))))?;
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        for own in [
            "managedFields",
            "resourceVersion",
            "generation",
            "uid",
            "creationTimestamp",
            "selfLink",
        ] {
            meta.remove(own);
        }
    }
    text(&value)
}

fn text(value: &Value) -> Result<String, CliError> {
    format::yaml(value)
}
