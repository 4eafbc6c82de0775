//! The one pod that a command is about, as `POD`, `NAMESPACE/POD` or `TYPE/NAME`.

use mesh_api::ext;

use crate::commands::shared;
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::CliError;
use crate::selector;

/// A pod with a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) ip: String,
}

/// Finds it. Of a workload's pods it is the first; the user is told.
pub(super) async fn find(
    word: &str,
    namespace: Option<&str>,
    mesh: &Mesh,
    cx: &mut Context,
) -> Result<Pod, CliError> {
    let selector = selector::of_pods(word, namespace)?;
    let found = match mesh.resources(selector.clone()).await {
        Ok(found) => found,
        Err(error) => return Err(shared::propose(mesh, [&selector], error).await),
    };
    let pods: Vec<&ext::Pod> = found.iter().flat_map(|workload| &workload.pods).collect();
    let Some(first) = pods.first() else {
        return Err(if found.is_empty() {
            shared::no_such(mesh, &selector).await
        } else {
            CliError::missing(format!("{} has no running pods", selector::describe(&selector)))
                .hint("meshctl proxy status, which lists every proxy")
        });
    };
    if let Some(other) = pods.iter().find(|pod| pod.namespace != first.namespace) {
        let error =
            format!("{word} is in the namespaces {} and {}", first.namespace, other.namespace);
        return Err(CliError::usage(error).hint(format!("-n {}", first.namespace)));
    }
    // Rather one whose proxy can answer.
    let chosen = pods.iter().find(|pod| pod.meshed).unwrap_or(first);
    if !chosen.meshed {
        return Err(CliError::failed(format!(
            "pod {}/{} has no proxy",
            chosen.namespace, chosen.name
        )));
    }
    if pods.len() > 1 {
        cx.ui.note(&format!("pod {}, one of {}", chosen.name, pods.len()));
    }
    Ok(Pod {
        namespace: chosen.namespace.clone(),
        name: chosen.name.clone(),
        ip: chosen.ip.clone(),
    })
}
