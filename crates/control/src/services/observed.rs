//! What the pods of a workload were asked for, gathered from their proxies.

use std::sync::Arc;

use mesh_api::ext::{MeshObservedReply, MeshObservedRequest, ObservedRequest, PodObserved};

use super::ask::{Asker, ask};
use super::mesh::{Failure, must_exist};
use super::select::select;
use super::stat::window;
use crate::index::object::Pod;
use crate::state::Shared;

/// Answers a request.
///
/// # Errors
/// When it cannot be understood, or names what does not exist.
pub(super) async fn observed(
    shared: &Shared,
    asker: &Asker,
    request: MeshObservedRequest,
) -> Result<MeshObservedReply, Failure> {
    let pods: Vec<Arc<Pod>> = {
        let index = shared.index.read();
        let selector = request.selector.unwrap_or_default();
        let selected = select(index.objects(), &selector)?;
        must_exist(&selected, std::slice::from_ref(&selector))?;
        let mut pods: Vec<_> = selected.into_iter().flat_map(|selected| selected.pods).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods.dedup_by(|a, b| a.name == b.name);
        pods
    };
    let window_seconds = window(request.window_seconds);
    let told = ask(pods, asker, |_, mut client| async move {
        client.observed(ObservedRequest { window_seconds }).await.map(tonic::Response::into_inner)
    });
    let told = told.await;
    let mut pods: Vec<PodObserved> = told
        .answers
        .into_iter()
        .map(|(pod, observed)| PodObserved {
            pod: pod.name.name.clone(),
            namespace: pod.name.namespace.clone(),
            observed: Some(observed),
        })
        .collect();
    pods.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    Ok(MeshObservedReply { pods, unreachable: told.unreachable })
}
