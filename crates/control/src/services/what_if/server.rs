//! What is behind a backend: how clients balance, the endpoints, and who may.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_api::ext::{WhatIfBackend, WhatIfEndpoint, WhatIfVerdict};
use mesh_model::Meta;
use mesh_model::authz::{AuthzRequest, Basis, HttpRequest, decide};
use mesh_model::endpoint::Endpoint;
use mesh_model::inbound::{PortLimits, Rate, RateLimit};
use mesh_model::outbound::Breaker;
use mesh_model::route::Fault;

use super::Question;
use super::effects::{Sent, share};
use crate::index::object::{Name, Pod};
use crate::services::words;

/// Who asks.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) namespace: String,
    /// `deployment/web`
    pub(super) what: String,
    pub(super) pods: Vec<Arc<Pod>>,
}

impl Client {
    pub(super) fn notes(&self) -> Vec<String> {
        let what = &self.what;
        let unmeshed = self.pods.iter().filter(|pod| !pod.meshed()).count();
        let mut notes = Vec::new();
        if self.pods.is_empty() {
            notes.push(format!("{what} has no running pods: who may do what is left open"));
        } else if unmeshed == self.pods.len() {
            notes.push(format!("{what} has no proxy: none of this applies to its requests"));
        } else if unmeshed > 0 {
            let all = self.pods.len();
            notes.push(format!("{unmeshed} of {all} pods of {what} have no proxy"));
        }
        notes
    }
}

impl Question<'_> {
    /// A backend and its endpoints; `sent` is `None` of bytes.
    pub(super) fn backend(
        &self,
        meta: &Meta,
        breaker: Option<Breaker>,
        sent: Option<&Sent>,
    ) -> WhatIfBackend {
        let mut told = WhatIfBackend { backend: meta.to_string(), ..WhatIfBackend::default() };
        if let Some(sent) = sent {
            told.method = sent.head.method.to_string();
            told.authority = sent.authority().to_owned();
            told.path = sent.path().to_owned();
            told.breaker = breaker.map_or_else(|| "none".into(), words::breaker);
        }
        let Some(service) = meta.resource().filter(|of| of.kind == "Service") else { return told };
        let name = Name::new(&service.namespace, &service.name);
        let port = service.port.unwrap_or_default();
        told.balancer = words::balancer(&self.objects.backend_extension(&name, port));
        let endpoints = self.endpoints(&name, port);
        told.endpoints = endpoints.values().map(|of| self.endpoint(of, sent)).collect();
        told
    }

    /// Those that the client's pods use, each in its zone.
    fn endpoints(&self, service: &Name, port: u16) -> BTreeMap<SocketAddr, Arc<Endpoint>> {
        let pods = self.client.pods.iter();
        let mut zones: BTreeSet<_> = pods.map(|pod| self.objects.zone_of(&pod.name)).collect();
        if zones.is_empty() {
            zones.insert(None);
        }
        let sets = zones.into_iter().map(|zone| self.objects.endpoints_from(service, port, zone));
        sets.flatten().flat_map(|set| set.endpoints).collect()
    }

    fn endpoint(&self, endpoint: &Endpoint, sent: Option<&Sent>) -> WhatIfEndpoint {
        let label = |name: &str| endpoint.labels.get(name).cloned().unwrap_or_default();
        let identity = endpoint.identity.as_ref();
        let mut told = WhatIfEndpoint {
            address: endpoint.addr.to_string(),
            pod: label("pod"),
            namespace: label("namespace"),
            identity: identity.map(|identity| identity.id.clone()).unwrap_or_default(),
            ..WhatIfEndpoint::default()
        };
        let pod = self.objects.pod(&Name::new(&told.namespace, &told.pod));
        if let Some(pod) = pod.filter(|pod| pod.meshed()) {
            let port = endpoint.addr.port();
            told.verdict = self.verdict(pod, port, identity.is_some(), sent);
            let extension = self.objects.port_extension(&pod.name, port);
            told.faults = sent.map(|sent| faults(&extension.faults, sent)).unwrap_or_default();
            told.limits = limits(extension.limits);
        }
        told
    }

    /// What the endpoint's proxy decides about the client's pods; `None` when there are none.
    fn verdict(
        &self,
        server: &Pod,
        port: u16,
        with_tls: bool,
        sent: Option<&Sent>,
    ) -> Option<WhatIfVerdict> {
        let authz = self.objects.port_authz(&server.name, port);
        let mut verdicts: Vec<WhatIfVerdict> = Vec::new();
        for pod in &self.client.pods {
            let Some(client) = pod.ip else { continue };
            let identity = self.objects.identity_of(pod).filter(|_| with_tls);
            let http = sent.map(|sent| HttpRequest {
                method: &sent.head.method,
                uri: &sent.head.uri,
                headers: &sent.head.headers,
            });
            let identity = identity.as_ref().map(|id| id.as_str());
            let verdict = decide(&authz, &AuthzRequest { client, identity, http });
            let why = match verdict.basis {
                Basis::Probe => "it is a health probe that the workload declares".into(),
                Basis::Denied => "the policy denies it".into(),
                Basis::Allowed => "the policy allows it".into(),
                Basis::NoneMatched => "it governs, and no policy that allows applies".into(),
                Basis::Default => format!(
                    "no policy decides, and the default is {}",
                    authz.default.access.as_str()
                ),
            };
            let decided = verdict.decided.to_string();
            verdicts.push(WhatIfVerdict { allowed: verdict.allowed, decided, why });
        }
        let (all, refused) = (verdicts.len(), verdicts.iter().filter(|v| !v.allowed).count());
        let mut verdict = match verdicts.iter().position(|verdict| !verdict.allowed) {
            Some(at) => verdicts.swap_remove(at),
            None => verdicts.into_iter().next()?,
        };
        if refused > 0 && refused < all {
            verdict.why += &format!(" (for {refused} of {all} pods of {})", self.client.what);
        }
        Some(verdict)
    }
}

/// Those that the request may meet.
fn faults(all: &[Fault], sent: &Sent) -> Vec<String> {
    let now = SystemTime::now();
    let meant = all.iter().filter(|fault| fault.means(&sent.head.uri, &sent.head.headers, now));
    let told = |of: &Fault| {
        format!("by {} {} {} of the requests", of.meta, words::fault_kind(of.kind), share(of.ratio))
    };
    meant.map(told).collect()
}

fn limits(limits: PortLimits) -> Vec<String> {
    let rate = limits.rate.as_ref().map(describe_limit);
    let in_flight = limits.concurrency.map(|of| format!("{} at a time by {}", of.max, of.meta));
    rate.into_iter().chain(in_flight).collect()
}

fn describe_limit(limit: &RateLimit) -> String {
    let rate = |rate: Rate, of: String| format!("{}/s {of}", rate.per_second);
    let total = limit.total.map(|of| rate(of, "in all".into()));
    let each = limit.identity.map(|of| rate(of, "of each client".into()));
    let others =
        limit.overrides.iter().map(|(of, ids)| rate(*of, format!("of {}", ids.join(", "))));
    let by_header = limit.header.as_ref();
    let by_header =
        by_header.map(|of| rate(of.rate, format!("of each value of the header {}", of.name)));
    let parts = total.into_iter().chain(each).chain(others).chain(by_header);
    let parts: Vec<String> = parts.collect();
    format!("{} by {}", parts.join(", "), limit.meta)
}
