//! What proxies believe: `meshctl proxy status`, `proxy config` and `endpoints`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::ext::{
    ConfigReply, ConfigRequest, EndpointRow, EndpointsReply, EndpointsRequest, ProxiesReply,
    ProxyCertificate, ProxyConfigRequest, ProxyEndpoint, ProxyEndpoints, ProxyIdentity, ProxyRow,
    Selector,
};
use mesh_model::meta::ResourceRef;
use mesh_model::{Endpoint, ProtocolHint};
use serde::Deserialize;

use super::ask::{Answers, Asker, ask};
use super::mesh::{Failure, must_exist};
use super::select::select;
use crate::index::Objects;
use crate::index::lookup::{Wanted, understand_authority};
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// The parts of a proxy's account of itself that are used here. What is missing is at its default:
/// the proxy may be of another version.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Account {
    version: String,
    uptime_seconds: u64,
    ready: bool,
    rss_bytes: u64,
    control: ControlStreams,
    outbound: Outbound,
    identity: Option<Identity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Identity {
    id: String,
    certificate: Option<Certificate>,
    roots: Vec<String>,
    renewals: u64,
    failures: u64,
    last_error: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Certificate {
    serial: String,
    issuer: String,
    not_before: u64,
    not_after: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ControlStreams {
    streams_up: u32,
    streams_wanted: u32,
    config_rejected: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outbound {
    backends: Vec<Backend>,
}

/// One balancer; a proxy may have several for a service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Backend {
    /// `Service/shop/tax:8080`
    backend: String,
    endpoints: Vec<Held>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Held {
    address: String,
    state: String,
    rtt_ms: f64,
    in_flight: u32,
}

/// The proxies of what is selected.
///
/// # Errors
/// When the selector cannot be understood, or names what does not exist.
pub(super) async fn proxies(
    shared: &Shared,
    asker: &Asker,
    selector: Selector,
) -> Result<ProxiesReply, Failure> {
    let pods: BTreeMap<Name, Arc<Pod>> = {
        let index = shared.index.read();
        let selected = select(index.objects(), &selector)?;
        must_exist(&selected, std::slice::from_ref(&selector))?;
        let pods = selected.into_iter().flat_map(|selected| selected.pods);
        pods.filter(|pod| pod.meshed()).map(|pod| (pod.name.clone(), pod)).collect()
    };
    let Answers { answers, unreachable } = accounts(pods.values().cloned(), asker).await;
    let mut rows: BTreeMap<Name, ProxyRow> = BTreeMap::new();
    for (pod, account) in answers {
        let row = ProxyRow {
            reachable: true,
            version: account.version,
            uptime_seconds: account.uptime_seconds,
            streams_up: account.control.streams_up,
            streams_wanted: account.control.streams_wanted,
            config_rejected: account.control.config_rejected,
            rss_bytes: account.rss_bytes,
            ready: account.ready,
            identity: account.identity.map(ProxyIdentity::from),
            ..head(&pod)
        };
        rows.insert(pod.name.clone(), row);
    }
    for lost in unreachable {
        let name = Name::new(lost.namespace, lost.pod);
        if let Some(pod) = pods.get(&name) {
            // What the pod says of its proxy is still known.
            let version = pod.proxy.clone().unwrap_or_default();
            rows.insert(name, ProxyRow { error: lost.error, version, ..head(pod) });
        }
    }
    Ok(ProxiesReply { proxies: rows.into_values().collect() })
}

impl From<Identity> for ProxyIdentity {
    fn from(told: Identity) -> Self {
        let certificate = told.certificate.map(|told| ProxyCertificate {
            serial: told.serial,
            issuer: told.issuer,
            not_before: told.not_before,
            not_after: told.not_after,
        });
        Self {
            id: told.id,
            certificate,
            roots: told.roots,
            renewals: told.renewals,
            failures: told.failures,
            last_error: told.last_error.unwrap_or_default(),
        }
    }
}

fn head(pod: &Pod) -> ProxyRow {
    ProxyRow {
        pod: pod.name.name.clone(),
        namespace: pod.name.namespace.clone(),
        ip: pod.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        ..ProxyRow::default()
    }
}

async fn accounts(pods: impl Iterator<Item = Arc<Pod>>, asker: &Asker) -> Answers<Account> {
    ask(pods.collect(), asker, |_, mut client| async move {
        let json = client.config(ConfigRequest {}).await?.into_inner().json;
        serde_json::from_str(&json).map_err(|error| {
            tonic::Status::internal(format!("its account of itself cannot be read: {error}"))
        })
    })
    .await
}

/// One proxy's account of itself, as it gave it.
///
/// # Errors
/// When there is no such pod, it has no proxy, or the proxy does not answer.
pub(super) async fn proxy_config(
    shared: &Shared,
    asker: &Asker,
    request: ProxyConfigRequest,
) -> Result<ConfigReply, Failure> {
    let name = Name::new(request.namespace, request.pod);
    let pod = shared.index.read().objects().pod(&name).cloned();
    let Some(pod) = pod else {
        return Err(Failure::NotFound(format!("pod {name} does not exist")));
    };
    if !pod.meshed() {
        return Err(Failure::NotFound(format!("pod {name} has no proxy")));
    }
    let mut answers = ask(vec![pod], asker, |_, mut client| async move {
        client.config(ConfigRequest {}).await.map(tonic::Response::into_inner)
    })
    .await;
    match (answers.answers.pop(), answers.unreachable.pop()) {
        (Some((_, config)), _) => Ok(config),
        (None, Some(lost)) => Err(Failure::Unreachable(format!(
            "the proxy of {name} does not answer: {}",
            lost.error
        ))),
        (None, None) => Err(Failure::Unreachable(format!("pod {name} is not running"))),
    }
}

/// The endpoints of an authority, as the index has them and as proxies hold them.
///
/// # Errors
/// When the authority cannot be understood or is nobody's.
pub(super) async fn endpoints(
    shared: &Shared,
    asker: &Asker,
    request: EndpointsRequest,
) -> Result<EndpointsReply, Failure> {
    let (service, rows, meshed) = {
        let index = shared.index.read();
        let objects = index.objects();
        let (service, rows) = of_authority(objects, &request.authority)?;
        let meshed: Vec<Arc<Pod>> = objects.pods().filter(|pod| pod.meshed()).cloned().collect();
        (service, rows, meshed)
    };
    let mut reply = EndpointsReply { service, endpoints: rows, proxies: Vec::new() };
    if request.from_proxies {
        let mut answers = accounts(meshed.into_iter(), asker).await.answers;
        answers.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        for (pod, account) in answers {
            if let Some(endpoints) = held(&account, &reply.service) {
                reply.proxies.push(ProxyEndpoints {
                    pod: pod.name.name.clone(),
                    namespace: pod.name.namespace.clone(),
                    endpoints,
                });
            }
        }
    }
    Ok(reply)
}

fn of_authority(objects: &Objects, text: &str) -> Result<(String, Vec<EndpointRow>), Failure> {
    let wanted = understand_authority(text, "default");
    let wanted = wanted.map_err(|error| Failure::Invalid(error.to_string()))?;
    let missing = |what: String| Failure::NotFound(format!("{text}: {what}"));
    let (name, port) = match wanted {
        None => return Err(missing("is not the name of a Service".into())),
        Some(Wanted::Service { name, port }) => (name, port),
        Some(Wanted::Address(addr)) => match objects.service_by_ip(addr.ip()) {
            Some(service) => (service.name.clone(), addr.port()),
            None => {
                let profile = objects.address_profile(addr);
                let endpoint = profile
                    .endpoint
                    .ok_or_else(|| missing("is neither a Service's address nor a pod's".into()))?;
                return Ok((String::new(), vec![row(objects, &endpoint)]));
            }
        },
    };
    let set = objects.endpoints(&name, port).ok_or_else(|| {
        missing(match objects.service(&name) {
            None => format!("Service {name} does not exist"),
            Some(_) => format!("Service {name} has no port {port}"),
        })
    })?;
    let service = ResourceRef::service(&name.namespace, &name.name, port).to_string();
    Ok((service, set.endpoints.values().map(|endpoint| row(objects, endpoint)).collect()))
}

fn row(objects: &Objects, endpoint: &Endpoint) -> EndpointRow {
    let pod = objects.pod_by_ip(endpoint.addr.ip());
    let hint = match endpoint.hint {
        ProtocolHint::None => "",
        ProtocolHint::H2 => "h2",
        ProtocolHint::Opaque => "opaque",
    };
    EndpointRow {
        address: endpoint.addr.to_string(),
        pod: pod.map(|pod| pod.name.name.clone()).unwrap_or_default(),
        namespace: pod.map(|pod| pod.name.namespace.clone()).unwrap_or_default(),
        weight: endpoint.weight,
        hint: hint.into(),
        identity: endpoint.identity.as_ref().map(|id| id.id.clone()).unwrap_or_default(),
    }
}

/// What a proxy holds of a service, over all its balancers for it; `None` when it has none.
fn held(account: &Account, service: &str) -> Option<Vec<ProxyEndpoint>> {
    let balancers: Vec<&Backend> =
        account.outbound.backends.iter().filter(|backend| backend.backend == service).collect();
    if balancers.is_empty() {
        return None;
    }
    let mut endpoints: BTreeMap<(Option<SocketAddr>, &str), ProxyEndpoint> = BTreeMap::new();
    for held in balancers.iter().flat_map(|balancer| &balancer.endpoints) {
        let key = (held.address.parse().ok(), held.address.as_str());
        let endpoint = endpoints.entry(key).or_insert_with(|| ProxyEndpoint {
            address: held.address.clone(),
            state: held.state.clone(),
            ..ProxyEndpoint::default()
        });
        endpoint.in_flight += held.in_flight;
        endpoint.rtt_ms = endpoint.rtt_ms.max(held.rtt_ms);
        // One balancer that keeps it out is worth telling.
        if held.state != "ready" {
            endpoint.state.clone_from(&held.state);
        }
    }
    Some(endpoints.into_values().collect())
}
