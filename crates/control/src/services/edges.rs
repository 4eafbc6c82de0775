//! `meshctl edges`: who talks to whom.
//!
//! The client side counts, as it also knows of requests that never arrived. What servers saw is
//! used only for peers that no client accounts for: those without a proxy, and outsiders.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::ext::{Edge, EdgesReply, EdgesRequest, ObjectRef};
use mesh_model::Direction;
use mesh_model::egress::egress_host;
use mesh_model::stats::{SeriesKey, StatProtocol};

use super::ask::{Asker, stats};
use super::egress::egress_ref;
use super::mesh::{Failure, must_exist};
use super::select::{owner_ref, pod_ref, select_all};
use super::stat::{Figures, Told, read, service_name, window};
use crate::index::Objects;
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// Answers a request.
///
/// # Errors
/// When it cannot be understood, or names what does not exist.
pub(super) async fn edges(
    shared: &Shared,
    asker: &Asker,
    request: EdgesRequest,
) -> Result<EdgesReply, Failure> {
    let (scope, ask) = {
        let index = shared.index.read();
        let objects = index.objects();
        let ask: Vec<Arc<Pod>> = objects.pods().cloned().collect();
        (Scope::new(objects, &request)?, ask)
    };
    let (told, unreachable) = read(stats(ask, asker, window(request.window_seconds)).await);
    Ok(EdgesReply { edges: gather(&scope, &told), unreachable })
}

/// Whose edges are wanted, and as what ends are spoken of.
struct Scope {
    pods: HashSet<Name>,
    services: HashSet<Name>,
    level: Level,
    by_ip: BTreeMap<IpAddr, Arc<Pod>>,
    identities: HashMap<Name, String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Pod,
    Owner,
    Namespace,
}

impl Scope {
    fn new(objects: &Objects, request: &EdgesRequest) -> Result<Self, Failure> {
        let selected = select_all(objects, &request.selectors)?;
        must_exist(&selected, &request.selectors)?;
        let all = |kind: &str| request.selectors.iter().all(|selector| selector.kind == kind);
        let level = if all("pod") {
            Level::Pod
        } else if all("namespace") {
            Level::Namespace
        } else {
            Level::Owner
        };
        let pods = selected.iter().flat_map(|s| s.pods.iter().map(|pod| pod.name.clone()));
        Ok(Self {
            pods: pods.collect(),
            services: selected.iter().filter_map(|s| s.service.clone()).collect(),
            level,
            by_ip: objects.pods_by_ip(),
            identities: objects
                .pods()
                .filter_map(|pod| Some((pod.name.clone(), objects.identity_of(pod)?.to_string())))
                .collect(),
        })
    }

    fn end(&self, pod: &Pod) -> ObjectRef {
        match self.level {
            Level::Pod => pod_ref(pod),
            Level::Owner => owner_ref(pod),
            Level::Namespace => ObjectRef {
                kind: "namespace".into(),
                name: pod.name.namespace.clone(),
                namespace: String::new(),
            },
        }
    }

    /// Whom a pod proves to be.
    fn identity(&self, pod: &Pod) -> Option<String> {
        self.identities.get(&pod.name).cloned()
    }

    fn has(&self, pod: &Pod) -> bool {
        self.pods.contains(&pod.name)
    }
}

/// What distinguishes edges; both ends as kind, namespace and name.
type Key = ((String, String, String), (String, String, String), String, StatProtocol);

#[derive(Default)]
struct Edges(BTreeMap<Key, Edge>, BTreeMap<Key, Figures>);

impl Edges {
    fn add(&mut self, edge: Edge, protocol: StatProtocol, told: &Told, of: &Counted<'_>) {
        let id = |end: &Option<ObjectRef>| {
            let end = end.clone().unwrap_or_default();
            (end.kind, end.namespace, end.name)
        };
        let key = (id(&edge.source), id(&edge.destination), edge.service.clone(), protocol);
        let (_, totals, tcp_open) = of;
        self.1.entry(key.clone()).or_default().add(totals, *tcp_open);
        let (secured, reason) = (edge.secured, edge.no_tls_reason.clone());
        let proved = [edge.client_identity.clone(), edge.server_identity.clone()];
        let edge = self.0.entry(key).or_insert(edge);
        // One series in the clear is enough for the edge not to be.
        if !secured && edge.secured {
            edge.secured = false;
            edge.no_tls_reason = reason;
        }
        let [client, server] = proved;
        join(&mut edge.client_identity, &client);
        join(&mut edge.server_identity, &server);
        edge.covered_seconds = edge.covered_seconds.max(told.covered);
    }

    fn finish(mut self) -> Vec<Edge> {
        let figures = &mut self.1;
        let finished = self.0.into_iter().filter_map(|(key, edge)| {
            let figures = figures.remove(&key).filter(|figures| !figures.is_empty())?;
            Some(Edge { totals: Some(figures.encode()), ..edge })
        });
        finished.collect()
    }
}

/// Identities of one end.
const MAX_IDENTITIES: usize = 8;

/// Adds an identity to those of an end.
fn join(all: &mut String, one: &str) {
    const COMMA: &str = ", ";
    let known = all.split(COMMA);
    if one.is_empty() || known.clone().any(|known| known == one) || known.count() >= MAX_IDENTITIES
    {
        return;
    }
    let mut sorted: Vec<&str> =
        all.split(COMMA).chain([one]).filter(|text| !text.is_empty()).collect();
    sorted.sort_unstable();
    *all = sorted.join(COMMA);
}

type Counted<'a> = (&'a SeriesKey, &'a mesh_model::stats::Totals, u64);

fn gather(scope: &Scope, told: &[Told]) -> Vec<Edge> {
    let accounted: HashSet<&Name> = told.iter().map(|told| &told.pod.name).collect();
    let mut edges = Edges::default();
    for told in told {
        for (key, totals, tcp_open) in &told.series {
            let counted = (key, totals, *tcp_open);
            let edge = match key.direction {
                Direction::Outbound => sent(scope, told, key),
                Direction::Inbound => received(scope, told, key, &accounted),
            };
            if let Some(edge) = edge {
                edges.add(edge, key.protocol, told, &counted);
            }
        }
    }
    edges.finish()
}

/// The edge of what a proxy sent.
fn sent(scope: &Scope, told: &Told, key: &SeriesKey) -> Option<Edge> {
    let service = service_name(&key.parent);
    let backend = service_name(&key.backend).or_else(|| service.clone());
    let peer = key.peer.and_then(|ip| scope.by_ip.get(&ip));
    let wanted = scope.has(&told.pod)
        || peer.is_some_and(|pod| scope.has(pod))
        || [&service, &backend].into_iter().flatten().any(|s| scope.services.contains(s));
    if !wanted {
        return None;
    }
    let outside = egress_host(&key.parent);
    let destination = match (peer, key.peer, backend) {
        (Some(pod), ..) => scope.end(pod),
        // It has no namespace of its own: all who use it meet there.
        _ if let Some(host) = outside => egress_ref("", host),
        (None, Some(ip), _) => external(ip),
        // No endpoint was chosen: all that is known is the service.
        (None, None, Some(service)) => {
            ObjectRef { kind: "service".into(), name: service.name, namespace: service.namespace }
        }
        (None, None, None) => return None,
    };
    let why = match (peer, key.peer) {
        (Some(pod), _) if pod.meshed() => NO_IDENTITY,
        (None, None) => "not-connected",
        _ => "destination-not-meshed",
    };
    let proved = [scope.identity(&told.pod), key.identity.as_deref().map(str::to_owned)];
    Some(edge(scope.end(&told.pod), destination, key, why, proved))
}

/// The edge of what a proxy received, unless the client's proxy has told of it.
fn received(
    scope: &Scope,
    told: &Told,
    key: &SeriesKey,
    accounted: &HashSet<&Name>,
) -> Option<Edge> {
    let ip = key.peer?;
    let peer = scope.by_ip.get(&ip);
    if peer.is_some_and(|pod| accounted.contains(&pod.name)) {
        return None;
    }
    if !scope.has(&told.pod) && !peer.is_some_and(|pod| scope.has(pod)) {
        return None;
    }
    let source = peer.map_or_else(|| external(ip), |pod| scope.end(pod));
    let why = match peer {
        Some(pod) if pod.meshed() => NO_IDENTITY,
        _ => "source-not-meshed",
    };
    let proved = [key.identity.as_deref().map(str::to_owned), scope.identity(&told.pod)];
    Some(edge(source, scope.end(&told.pod), key, why, proved))
}

/// Both ends have proxies, and one of them no certificate.
const NO_IDENTITY: &str = "no-identity";

/// `proved`: the client's and the server's identity, as far as the hop was secured.
fn edge(
    source: ObjectRef,
    destination: ObjectRef,
    key: &SeriesKey,
    why: &str,
    proved: [Option<String>; 2],
) -> Edge {
    let secured = key.identity.is_some();
    let [client, server] = proved.map(|id| id.filter(|_| secured).unwrap_or_default());
    Edge {
        source: Some(source),
        destination: Some(destination),
        service: key.parent.to_string(),
        protocol: key.protocol.as_str().into(),
        secured,
        no_tls_reason: if secured { String::new() } else { why.into() },
        covered_seconds: 0,
        totals: None,
        client_identity: client,
        server_identity: server,
    }
}

fn external(ip: IpAddr) -> ObjectRef {
    ObjectRef { kind: "external".into(), name: ip.to_string(), namespace: String::new() }
}
