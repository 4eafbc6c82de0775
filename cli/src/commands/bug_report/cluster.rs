//! Of a cluster: the objects that the mesh consists of, those that tell it what to do, and logs.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DynamicObject, ListParams, LogParams};
use serde_json::{Value, json};

use super::archive::Archive;
use crate::cluster::Cluster;
use crate::cluster::objects::{EVENT, KINDS, Kind, POD, TOLD};
use crate::error::CliError;
use crate::output::Ui;

/// Objects of a kind.
const MAX_OBJECTS: u32 = 500;
/// Proxies whose logs are in it, and lines of the end of each log.
const MAX_PROXIES: usize = 20;
const LINES: i64 = 2_000;
const MAX_LOG: i64 = 2 << 20;
/// The name of the proxy's container.
const PROXY: &str = "mesh-proxy";

pub(super) async fn add(of: &Cluster, ui: &Ui, archive: &mut Archive) -> Result<(), CliError> {
    for kind in &KINDS {
        let _progress = ui.progress(&format!("objects: {}", kind.kind));
        objects(kind, of.installed(kind).await, archive)?;
    }
    for kind in [&POD, &EVENT] {
        objects(kind, of.list(kind, Some(&of.mesh_namespace), MAX_OBJECTS).await, archive)?;
    }
    for kind in &TOLD {
        let _progress = ui.progress(&format!("objects: {}", kind.kind));
        objects(kind, of.list(kind, None, MAX_OBJECTS).await, archive)?;
    }
    let nodes: Api<Node> = Api::all(of.client.clone());
    let limit = ListParams::default().limit(MAX_OBJECTS);
    match of.ask("list nodes", nodes.list(&limit)).await {
        Err(error) => archive.error("objects/nodes.json", &error.to_string())?,
        Ok(nodes) => {
            let infos = nodes.items.into_iter().map(|node| {
                let info = node.status.and_then(|status| status.node_info);
                json!({ "name": node.metadata.name, "labels": node.metadata.labels, "info": info })
            });
            archive.objects("objects/nodes.json", Value::Array(infos.collect()))?;
        }
    }
    logs(of, ui, archive).await
}

fn objects(
    kind: &Kind,
    found: Result<Vec<DynamicObject>, CliError>,
    archive: &mut Archive,
) -> Result<(), CliError> {
    let file = format!("objects/{}.json", kind.resource().1);
    match found {
        Err(error) => archive.error(&file, &error.to_string()),
        Ok(found) if found.is_empty() => Ok(()),
        Ok(found) => archive.objects(&file, json!(found)),
    }
}

async fn logs(of: &Cluster, ui: &Ui, archive: &mut Archive) -> Result<(), CliError> {
    let (mesh, all): (Api<Pod>, Api<Pod>) =
        (Api::namespaced(of.client.clone(), &of.mesh_namespace), Api::all(of.client.clone()));
    let limit = ListParams::default().limit(MAX_OBJECTS);
    let mut wanted = Vec::new();
    match of.ask("list the mesh's pods", mesh.list(&limit)).await {
        Err(error) => archive.error("logs", &error.to_string())?,
        Ok(pods) => wanted.extend(pods.items.iter().flat_map(|pod| containers(pod, |_| true))),
    }
    match of.ask("list pods", all.list(&limit)).await {
        Err(error) => archive.error("logs of proxies", &error.to_string())?,
        Ok(mut pods) => {
            pods.items.retain(|pod| pod.metadata.namespace.as_ref() != Some(&of.mesh_namespace));
            // Those in trouble first.
            pods.items.sort_by_key(is_ready);
            let proxies = pods.items.iter().flat_map(|pod| containers(pod, |name| name == PROXY));
            wanted.extend(proxies.take(MAX_PROXIES));
        }
    }
    for Container { namespace, pod, name, restarted } in wanted {
        let _progress = ui.progress(&format!("the log of {name} of {pod}"));
        let api: Api<Pod> = Api::namespaced(of.client.clone(), &namespace);
        for previous in [false, true].into_iter().take(1 + usize::from(restarted)) {
            let params = LogParams {
                container: Some(name.clone()),
                limit_bytes: Some(MAX_LOG),
                tail_lines: Some(LINES),
                timestamps: true,
                previous,
                ..LogParams::default()
            };
            let which = if previous { ".previous" } else { "" };
            let file = format!("logs/{namespace}.{pod}.{name}{which}.log");
            match of.ask("read logs", api.logs(&pod, &params)).await {
                Ok(text) => archive.text(&file, &text)?,
                Err(error) => archive.error(&file, &error.to_string())?,
            }
        }
    }
    Ok(())
}

struct Container {
    namespace: String,
    pod: String,
    name: String,
    restarted: bool,
}

fn containers(pod: &Pod, is_wanted: impl Fn(&str) -> bool) -> Vec<Container> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let status = pod.status.as_ref();
    let statuses = status.and_then(|status| status.container_statuses.as_ref());
    let init = status.and_then(|status| status.init_container_statuses.as_ref());
    let restarted = |name: &str| {
        let mut all = statuses.into_iter().chain(init).flatten();
        all.any(|status| status.name == name && status.restart_count > 0)
    };
    let names = spec.init_containers.iter().flatten().chain(&spec.containers);
    let names = names.map(|container| &container.name).filter(|name| is_wanted(name));
    let found = names.map(|name| Container {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        name: name.clone(),
        restarted: restarted(name),
    });
    found.collect()
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status.into_iter().flat_map(|of| of.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
