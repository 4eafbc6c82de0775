//! `meshctl stat egress`: figures of hosts outside of the mesh, as the proxies of their clients saw them.
//!
//! No object stands for such a host; it is known by the name under which proxies count it. A row is one
//! host as one namespace uses it.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::ext::stat_request::ClientSide;
use mesh_api::ext::{self, ObjectRef, StatReply, StatRequest, StatRow};
use mesh_model::egress::egress_host;

use super::ask::{Asker, stats};
use super::mesh::{Failure, must_exist};
use super::select::select;
use super::stat::{Figures, Told, read, window};
use crate::index::object::Pod;
use crate::state::Shared;

/// The resource type by which such hosts are asked for.
pub(super) const EGRESS: &str = "egress";

/// Rows of a reply. Each proxy tells a bounded number of hosts; a mesh has many proxies.
const MAX_ROWS: usize = 5_000;

/// Whether a request is about hosts outside of the mesh.
pub(super) fn is_meant(request: &StatRequest) -> bool {
    request.selectors.iter().any(|selector| selector.kind == EGRESS)
}

/// Answers a request.
///
/// # Errors
/// When it cannot be understood, or names clients that do not exist.
pub(super) async fn stat(
    shared: &Shared,
    asker: &Asker,
    request: StatRequest,
) -> Result<StatReply, Failure> {
    let wanted = Wanted::new(&request)?;
    let ask = clients(shared, &request)?;
    let (told, unreachable) = read(stats(ask, asker, window(request.window_seconds)).await);
    Ok(StatReply { rows: wanted.rows(&told), view: "client".into(), unreachable })
}

fn clients(shared: &Shared, request: &StatRequest) -> Result<Vec<Arc<Pod>>, Failure> {
    let index = shared.index.read();
    let objects = index.objects();
    let pods: Vec<Arc<Pod>> = match &request.client_side {
        None => objects.pods().cloned().collect(),
        Some(ClientSide::From(selector)) => {
            let selected = select(objects, selector)?;
            must_exist(&selected, std::slice::from_ref(selector))?;
            selected.into_iter().flat_map(|selected| selected.pods).collect()
        }
        Some(ClientSide::To(_)) => {
            let message = "hosts outside of the mesh send nothing that a proxy counts; use --from";
            return Err(Failure::Invalid(message.into()));
        }
    };
    let mut pods: Vec<_> = pods.into_iter().filter(|pod| pod.meshed() && pod.running).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    pods.dedup_by(|a, b| a.name == b.name);
    Ok(pods)
}

/// Which hosts, and what rows are split by.
struct Wanted<'a> {
    selectors: &'a [ext::Selector],
    by: &'a str,
}

impl<'a> Wanted<'a> {
    fn new(request: &'a StatRequest) -> Result<Self, Failure> {
        let invalid = |message: &str| Err(Failure::Invalid(message.into()));
        let selectors = request.selectors.as_slice();
        if selectors.iter().any(|selector| selector.kind != EGRESS) {
            return invalid("egress is asked for alone: its rows are not those of objects");
        }
        if selectors.iter().any(|selector| !selector.labels.is_empty()) {
            return invalid("hosts outside of the mesh have no labels; name them, or use --from");
        }
        match request.by.as_str() {
            by @ ("" | "route" | "pod") => Ok(Self { selectors, by }),
            _ => invalid("hosts outside of the mesh are their own backends; use --by route or pod"),
        }
    }

    fn rows(&self, told: &[Told]) -> Vec<StatRow> {
        let mut groups: BTreeMap<(&str, &str, &str), (Figures, u32)> = BTreeMap::new();
        for told in told {
            let namespace = told.pod.name.namespace.as_str();
            for (key, totals, tcp_open) in &told.series {
                let Some(host) = egress_host(&key.parent).filter(|host| self.is(host, namespace))
                else {
                    continue;
                };
                let by = match self.by {
                    "route" => &key.route,
                    "pod" => told.pod.name.name.as_str(),
                    _ => "",
                };
                let group = groups.entry((namespace, host, by)).or_default();
                group.0.add(totals, *tcp_open);
                group.1 = group.1.max(told.covered);
            }
        }
        let row = |((namespace, host, by), (figures, covered)): (_, (Figures, u32))| StatRow {
            r#ref: Some(egress_ref(namespace, host)),
            by: str::to_owned(by),
            covered_seconds: covered,
            totals: Some(figures.encode()),
            ..StatRow::default()
        };
        let groups = groups.into_iter().filter(|(_, (figures, _))| !figures.is_empty());
        groups.take(MAX_ROWS).map(row).collect()
    }

    fn is(&self, host: &str, namespace: &str) -> bool {
        self.selectors.iter().any(|selector| {
            (selector.name.is_empty() || selector.name.eq_ignore_ascii_case(host))
                && (selector.namespace.is_empty() || selector.namespace == namespace)
        })
    }
}

/// A host outside of the mesh, for rows and edges. `namespace` is that of its clients.
pub(super) fn egress_ref(namespace: &str, host: &str) -> ObjectRef {
    ObjectRef { kind: EGRESS.into(), name: host.into(), namespace: namespace.into() }
}
