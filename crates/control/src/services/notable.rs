//! Requests that proxies remember, gathered from them.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::ext::{
    MeshNotableReply, MeshNotableRequest, NotableExchange, NotableRequest, ObjectRef, PodNotable, Selector,
};

use super::ask::{Asker, ask};
use super::mesh::{Failure, must_exist};
use super::select::{owner_ref, select};
use crate::index::Objects;
use crate::index::object::Pod;
use crate::state::Shared;

/// Answers a request.
///
/// # Errors
/// When it cannot be understood, or names what does not exist.
pub(super) async fn notable(
    shared: &Shared,
    asker: &Asker,
    request: MeshNotableRequest,
) -> Result<MeshNotableReply, Failure> {
    let MeshNotableRequest { selector, id, limit } = request;
    let pods: Vec<Arc<Pod>> = {
        let index = shared.index.read();
        let selector = selector.unwrap_or(Selector { kind: "pod".into(), ..Selector::default() });
        let selected = select(index.objects(), &selector)?;
        must_exist(&selected, std::slice::from_ref(&selector))?;
        let mut pods: Vec<_> = selected.into_iter().flat_map(|selected| selected.pods).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods.dedup_by(|a, b| a.name == b.name);
        pods
    };
    let told = ask(pods, asker, |mut client| {
        let request = NotableRequest { id: id.clone(), limit };
        async move { client.notable(request).await.map(tonic::Response::into_inner) }
    });
    let told = told.await;
    let index = shared.index.read();
    let proxies = u32::try_from(told.answers.len()).unwrap_or(u32::MAX);
    let mut requests: Vec<PodNotable> = Vec::new();
    for (pod, reply) in told.answers {
        requests.extend(reply.requests.into_iter().map(|request| PodNotable {
            pod: pod.name.name.clone(),
            namespace: pod.name.namespace.clone(),
            peer: peer(index.objects(), &request),
            request: Some(request),
        }));
    }
    let started = |of: &PodNotable| of.request.as_ref().map_or(0, |r| r.started_unix_ms);
    requests.sort_by_key(|of| Reverse(started(of)));
    if limit > 0 {
        requests.truncate(limit as usize);
    }
    Ok(MeshNotableReply { requests, unreachable: told.unreachable, proxies })
}

/// Who is at the other end: the client of a request that came in, the server of one that went out.
fn peer(objects: &Objects, request: &NotableExchange) -> Option<ObjectRef> {
    let address = match request.direction() {
        mesh_api::ext::Direction::Inbound => &request.source,
        _ => &request.tries.last()?.endpoint,
    };
    let ip = address.parse::<SocketAddr>().ok()?.ip();
    objects.pod_by_ip(ip).map(|pod| owner_ref(pod))
}
