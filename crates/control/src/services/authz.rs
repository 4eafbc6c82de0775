//! `meshctl authz`: which policies apply to what, and everything that decides about one client.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::Wire;
use mesh_api::ext::{
    AuthorizationRow, AuthorizationsReply, AuthorizedClient, AuthorizingPort, ObjectRef,
    PortAuthorizationsReply, PortAuthorizationsRequest, Selector,
};

use super::mesh::{Failure, must_exist};
use super::select::select;
use crate::index::Objects;
use crate::index::lookup::{Wanted, understand_authority};
use crate::index::object::{Name, Pod};
use crate::state::Shared;

/// Rules and defaults of the ports of what is selected.
///
/// # Errors
/// When the selector cannot be understood, or names what does not exist.
pub(super) fn authorizations(
    shared: &Shared,
    selector: &Selector,
) -> Result<AuthorizationsReply, Failure> {
    let index = shared.index.read();
    let objects = index.objects();
    let selected = select(objects, selector)?;
    must_exist(&selected, std::slice::from_ref(selector))?;
    let mut rows = Vec::new();
    for selected in selected {
        let service = selected.service.as_ref();
        let pods = selected.pods.iter();
        let ports: Vec<(&Arc<Pod>, u16)> = pods
            .flat_map(|pod| objects.ports_of(pod, service).into_iter().map(move |port| (pod, port)))
            .collect();
        let numbers: BTreeSet<u16> = ports.iter().map(|(_, port)| *port).collect();
        for number in numbers {
            let pods = ports.iter().filter(|(_, port)| *port == number).map(|(pod, _)| *pod);
            of_port(objects, &selected.object, pods, number, &mut rows);
        }
    }
    Ok(AuthorizationsReply { rows })
}

/// What applies to a port of some pods, each once: rules first, then the defaults.
fn of_port<'a>(
    objects: &Objects,
    object: &ObjectRef,
    pods: impl Iterator<Item = &'a Arc<Pod>>,
    port: u16,
    rows: &mut Vec<AuthorizationRow>,
) {
    let (mut rules, mut defaults) = (Vec::new(), Vec::new());
    let add = |rows: &mut Vec<AuthorizationRow>, row| {
        if !rows.contains(&row) {
            rows.push(row);
        }
    };
    for pod in pods {
        let authz = objects.port_authz(&pod.name, port);
        let row = |policy: &mesh_model::Meta| AuthorizationRow {
            r#ref: Some(object.clone()),
            port: u32::from(port),
            policy: policy.to_string(),
            ..AuthorizationRow::default()
        };
        for rule in authz.rules.iter() {
            let row = AuthorizationRow {
                action: rule.action.as_str().into(),
                from: rule.describe_from(),
                to: rule.describe_to(),
                ..row(&rule.meta)
            };
            add(&mut rules, row);
        }
        let action = authz.default.access.as_str().into();
        add(&mut defaults, AuthorizationRow { action, ..row(&authz.default.meta) });
    }
    rows.append(&mut rules);
    rows.append(&mut defaults);
}

/// The rules of the ports behind an authority, and who the client is to them.
///
/// # Errors
/// When client or server cannot be understood, or are not there.
pub(super) fn port_authorizations(
    shared: &Shared,
    request: &PortAuthorizationsRequest,
) -> Result<PortAuthorizationsReply, Failure> {
    let index = shared.index.read();
    let objects = index.objects();
    let clients = clients(objects, request)?;
    let mut ports = Vec::new();
    for (pod, port) in servers(objects, &request.authority)? {
        let authz = objects.port_authz(&pod, port);
        let authorization = authz.to_proto().map_err(|e| Failure::Invalid(e.to_string()))?;
        ports.push(AuthorizingPort {
            pod: pod.name,
            namespace: pod.namespace,
            port: u32::from(port),
            authorization: Some(authorization),
        });
    }
    if ports.is_empty() {
        return Err(Failure::NotFound(format!("no pod is behind {}", request.authority)));
    }
    Ok(PortAuthorizationsReply { clients, ports })
}

fn clients(
    objects: &Objects,
    request: &PortAuthorizationsRequest,
) -> Result<Vec<AuthorizedClient>, Failure> {
    let addresses: Vec<IpAddr> = match &request.client {
        Some(selector) => {
            let selected = select(objects, selector)?;
            must_exist(&selected, std::slice::from_ref(selector))?;
            selected.iter().flat_map(|s| &s.pods).filter_map(|pod| pod.ip).collect()
        }
        // Nobody in particular: just the port is of interest.
        None if request.client_address.is_empty() => return Ok(Vec::new()),
        None => {
            let text = &request.client_address;
            let ip = text.parse().map_err(|_| {
                Failure::Invalid(format!("`{text}` is neither a resource nor an IP address"))
            })?;
            vec![ip]
        }
    };
    if addresses.is_empty() {
        return Err(Failure::NotFound("the client has no running pods".into()));
    }
    let client = |ip: IpAddr| {
        let pod = objects.pod_by_ip(ip);
        let identity = pod.and_then(|pod| objects.identity_of(pod)).map(|id| id.to_string());
        AuthorizedClient {
            address: ip.to_string(),
            identity: identity.unwrap_or_default(),
            pod: pod.map(|pod| pod.name.name.clone()).unwrap_or_default(),
            namespace: pod.map(|pod| pod.name.namespace.clone()).unwrap_or_default(),
        }
    };
    Ok(addresses.into_iter().map(client).collect())
}

/// The pods behind an authority, and their port.
fn servers(objects: &Objects, authority: &str) -> Result<BTreeSet<(Name, u16)>, Failure> {
    let wanted = understand_authority(authority, "default");
    let wanted = wanted.map_err(|error| Failure::Invalid(error.to_string()))?;
    let (service, port) = match wanted {
        Some(Wanted::Service { name, port }) => (name, port),
        Some(Wanted::Address(addr)) => match objects.service_by_ip(addr.ip()) {
            Some(service) => (service.name.clone(), addr.port()),
            None => {
                let pod = objects.pod_by_ip(addr.ip());
                let pod = pod.ok_or_else(|| {
                    Failure::NotFound(format!("{addr} is neither a Service's address nor a pod's"))
                })?;
                return Ok([(pod.name.clone(), addr.port())].into());
            }
        },
        None => {
            return Err(Failure::NotFound(format!("{authority} is not the name of a Service")));
        }
    };
    objects.service(&service).filter(|object| object.port(port).is_some()).ok_or_else(|| {
        Failure::NotFound(match objects.service(&service) {
            None => format!("Service {service} does not exist"),
            Some(_) => format!("Service {service} has no port {port}"),
        })
    })?;
    Ok(objects.targets_of(&service, port))
}
