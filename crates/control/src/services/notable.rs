//! Requests that proxies remember, gathered from them.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::ext::{
    MeshNotableReply, MeshNotableRequest, NotableExchange, NotableRequest, ObjectRef, PodNotable,
    Selector,
};

use super::ask::{Asker, ask};
use super::mesh::{Failure, must_exist};
use super::select::{Selected, owner_ref, select};
use crate::index::Objects;
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// How many requests an answer has at most, also if the asker sets no limit.
const MAX_REQUESTS: usize = 10_000;

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
    let (pods, wanted) = {
        let index = shared.index.read();
        let objects = index.objects();
        let every_pod = || Selector { kind: "pod".into(), ..Selector::default() };
        let selector = selector.unwrap_or_else(every_pod);
        let selected = select(objects, &selector)?;
        must_exist(&selected, std::slice::from_ref(&selector))?;
        let wanted = Wanted::new(&selected);
        let mut pods: Vec<Arc<Pod>> = if wanted.services.is_empty() {
            selected.into_iter().flat_map(|selected| selected.pods).collect()
        } else {
            // Its clients know why it could not be reached.
            objects.pods().cloned().collect()
        };
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods.dedup_by(|a, b| a.name == b.name);
        (pods, wanted)
    };
    // Of a service's clients, what they sent elsewhere is left out here.
    let of_each = if wanted.services.is_empty() { limit } else { 0 };
    let keep = match limit {
        0 => MAX_REQUESTS,
        limit => MAX_REQUESTS.min(limit as usize),
    };
    let wanted = &wanted;
    let told = ask(pods, asker, |pod, mut client| {
        let request = NotableRequest { id: id.clone(), limit: of_each };
        let pod = pod.name.clone();
        async move {
            let reply = client.notable(request).await?.into_inner();
            let mut requests = reply.requests;
            // Here, so that what nobody will see is not held until all have answered.
            requests.retain(|request| wanted.is(&pod, request));
            requests.sort_by_key(|request| Reverse(request.started_unix_ms));
            requests.truncate(keep);
            Ok(requests)
        }
    });
    let told = told.await;
    let index = shared.index.read();
    let proxies = u32::try_from(told.answers.len()).unwrap_or(u32::MAX);
    let mut requests: Vec<PodNotable> = Vec::new();
    for (pod, about) in told.answers {
        requests.extend(about.into_iter().map(|request| PodNotable {
            pod: pod.name.name.clone(),
            namespace: pod.name.namespace.clone(),
            peer: peer(index.objects(), &request),
            request: Some(request),
        }));
    }
    let started = |of: &PodNotable| of.request.as_ref().map_or(0, |r| r.started_unix_ms);
    requests.sort_by_key(|of| Reverse(started(of)));
    requests.truncate(keep);
    Ok(MeshNotableReply { requests, unreachable: told.unreachable, proxies })
}

/// Of services, which requests are about them; else all are.
struct Wanted {
    /// `Service/shop/tax`
    services: Vec<String>,
    pods: Vec<Name>,
}

impl Wanted {
    fn new(selected: &[Selected]) -> Self {
        let services = selected.iter().filter_map(|selected| selected.service.as_ref());
        let services = services.map(|service| format!("Service/{service}")).collect();
        let pods = selected.iter().flat_map(|s| &s.pods).map(|pod| pod.name.clone()).collect();
        Self { services, pods }
    }

    fn is(&self, pod: &Name, request: &NotableExchange) -> bool {
        if self.services.is_empty() {
            return true;
        }
        match request.direction() {
            mesh_api::ext::Direction::Inbound => self.pods.contains(pod),
            _ => {
                // Without its port.
                let parent = request.parent.rsplit_once(':').map_or("", |(service, _)| service);
                self.services.iter().any(|service| service == parent)
            }
        }
    }
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
