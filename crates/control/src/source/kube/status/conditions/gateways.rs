//! The status of Gateways and their classes, and of routes at them.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{Verdict, accepted, are_there, condition, short};
use crate::index::Objects;
use crate::index::gateway::{Conflict, Placed};
use crate::index::object::{GatewayRef, Kind, ListenerProtocol, Name, ObjectKey};
use crate::source::kube::status::Subject;

const GROUP: &str = "gateway.networking.k8s.io";

pub(super) fn is_gateway(parent: &Value) -> bool {
    matches!(parent["kind"].as_str(), None | Some("Gateway"))
        && matches!(parent["group"].as_str(), None | Some(GROUP))
}

/// Whether a route's parent is a Gateway that the mesh serves.
pub(super) fn is_ours(parent: &Value, namespace: &str, objects: &Objects) -> bool {
    let gateway = || objects.gateway(&reference(parent, namespace).gateway);
    is_gateway(parent) && gateway().is_some_and(|gateway| objects.serves(gateway))
}

fn reference(parent: &Value, namespace: &str) -> GatewayRef {
    let text = |field: &str| parent[field].as_str();
    let port = parent["port"].as_u64().map(|port| u16::try_from(port).unwrap_or_default());
    GatewayRef {
        gateway: Name::new(
            text("namespace").unwrap_or(namespace),
            text("name").unwrap_or_default(),
        ),
        port,
        section: text("sectionName").map(str::to_owned),
    }
}

/// Whether the Gateway takes the route as it is in force; one that is not says so itself.
pub(super) fn takes(
    key: &ObjectKey,
    parent: &Value,
    objects: &Objects,
    listeners: &[Placed<'_>],
) -> Result<(), Verdict> {
    let parent = reference(parent, &key.name.namespace);
    let attach = |head, hosts: &[_]| objects.attach(listeners, key.kind, head, hosts, &parent);
    let attached = match key.kind {
        Kind::HttpRoute => objects.http_route(&key.name).map(|r| attach(&r.head, &r.hosts)),
        Kind::GrpcRoute => objects.grpc_route(&key.name).map(|r| attach(&r.head, &r.hosts)),
        Kind::TlsRoute => objects.tls_route(&key.name).map(|r| attach(&r.head, &r.snis)),
        _ => objects.tcp_route(&key.name).map(|r| attach(&r.head, &[])),
    };
    match attached {
        Some(Err(why)) => Err(Verdict::no(why.reason(), why.to_string())),
        Some(Ok(())) | None => Ok(()),
    }
}

/// A class that is ours.
pub(super) fn class(
    key: &ObjectKey,
    subject: &Subject,
    objects: &Objects,
    now: Timestamp,
) -> Option<Value> {
    objects.gateway_class(&key.name.name).filter(|class| class.ours)?;
    let verdict = Verdict::yes("Accepted", "the mesh serves its Gateways");
    let list = [condition("Accepted", verdict, subject.generation, &subject.have, now)];
    (!are_there(&subject.have, &list)).then(|| json!({ "conditions": list }))
}

/// A Gateway that is ours, and its listeners.
pub(super) fn gateway(
    key: &ObjectKey,
    subject: &Subject,
    objects: &Objects,
    listeners: &[Placed<'_>],
    now: Timestamp,
) -> Option<Value> {
    let Some(gateway) = objects.gateway(&key.name) else {
        return unreadable(key, subject, objects, now);
    };
    if !objects.serves(gateway) {
        return None;
    }
    let addresses: Vec<Value> = objects.gateway_addresses().iter().map(address).collect();
    let own: Vec<_> = listeners.iter().filter(|placed| placed.gateway.name == key.name).collect();
    let listeners: Vec<Value> =
        own.iter().map(|placed| listener(placed, subject, objects, now)).collect();
    let served = own.iter().filter(|placed| is_served(placed, objects)).count();
    let mut accepted = accepted(key, subject, objects);
    if accepted.status == "True" && served < own.len() {
        accepted.reason = "ListenersNotValid";
        accepted.message = short(format!(
            "{served} of its {} listeners are served; their conditions say why",
            own.len()
        ));
    }
    let programmed = match served {
        0 => Verdict::no("Invalid", "none of its listeners is served"),
        _ => Verdict::yes("Programmed", "the gateway has been told of it"),
    };
    let of = |kind, verdict| condition(kind, verdict, subject.generation, &subject.have, now);
    let conditions = vec![of("Accepted", accepted), of("Programmed", programmed)];
    let same = are_there(&subject.have, &conditions)
        && subject.addresses == addresses
        && subject.listeners.len() == listeners.len()
        && listeners.iter().all(|wanted| {
            let mut have = subject.listeners.iter();
            let have = have.find(|have| have["name"] == wanted["name"]);
            have.is_some_and(|have| {
                let list = |of: &Value| of["conditions"].as_array().cloned().unwrap_or_default();
                have["attachedRoutes"] == wanted["attachedRoutes"]
                    && have["supportedKinds"] == wanted["supportedKinds"]
                    && are_there(&list(have), &list(wanted))
            })
        });
    (!same).then(
        || json!({ "addresses": addresses, "conditions": conditions, "listeners": listeners }),
    )
}

/// A Gateway that never made sense, if its class is ours.
fn unreadable(
    key: &ObjectKey,
    subject: &Subject,
    objects: &Objects,
    now: Timestamp,
) -> Option<Value> {
    subject.class.as_ref().filter(|class| objects.serves_class(class))?;
    let of = |kind, verdict| condition(kind, verdict, subject.generation, &subject.have, now);
    let programmed = Verdict::no("Invalid", "the gateway has not been told of it");
    let list = [of("Accepted", accepted(key, subject, objects)), of("Programmed", programmed)];
    (!are_there(&subject.have, &list)).then(|| json!({ "conditions": list }))
}

fn address(text: &String) -> Value {
    let kind = match text.parse::<IpAddr>() {
        Ok(_) => "IPAddress",
        Err(_) => "Hostname",
    };
    json!({ "type": kind, "value": text })
}

fn is_served(placed: &Placed<'_>, objects: &Objects) -> bool {
    let mut refs = placed.listener.certificates.iter();
    placed.conflict.is_none()
        && (placed.listener.protocol != ListenerProtocol::Https
            || objects.identity().is_some()
                && refs.any(|of| objects.certificate(&placed.gateway.name, of).is_ok()))
}

fn listener(placed: &Placed<'_>, subject: &Subject, objects: &Objects, now: Timestamp) -> Value {
    let Placed { gateway, listener, conflict } = placed;
    let mut known = subject.listeners.iter();
    let before = known.find(|before| before["name"] == listener.name.as_str());
    let before = before.and_then(|before| before["conditions"].as_array());
    let before = before.map(Vec::as_slice).unwrap_or_default();
    let refused = listener.certificates.iter().find_map(|of| {
        let why = objects.certificate(&gateway.name, of).err()?;
        Some(Verdict::no(why.reason(), short(why.to_string())))
    });
    let foreign = listener.foreign_kinds.first();
    let foreign = foreign.map(|kind| {
        Verdict::no("InvalidRouteKinds", short(format!("{kind} is none of what it takes")))
    });
    let resolved = refused.or(foreign);
    let resolved =
        resolved.unwrap_or_else(|| Verdict::yes("ResolvedRefs", "all it refers to is there"));
    let conflicted = match conflict {
        Some(Conflict::Protocol) => Verdict {
            status: "True",
            ..Verdict::no("ProtocolConflict", "an older listener speaks something else at its port")
        },
        Some(Conflict::Host) => Verdict {
            status: "True",
            ..Verdict::no("HostnameConflict", "an older listener has its hostname, or all like it")
        },
        Some(Conflict::TooMany) => Verdict::no("NoConflicts", "older listeners leave no room"),
        None => Verdict::no("NoConflicts", "no other listener is in its way"),
    };
    let accepted = match conflict {
        Some(Conflict::TooMany) => {
            Verdict::no("TooManyListeners", "older listeners are as many as a gateway has")
        }
        Some(_) => Verdict::no("PortUnavailable", "another listener has the port or the hostname"),
        None => Verdict::yes("Accepted", "it is in force"),
    };
    let programmed = match is_served(placed, objects) {
        true => Verdict::yes("Programmed", "the gateway has been told of it"),
        false if objects.identity().is_none() => {
            Verdict::no("Invalid", "a mesh without identity has no HTTPS")
        }
        false => Verdict::no("Invalid", "it is not served"),
    };
    let of = |kind, verdict| condition(kind, verdict, subject.generation, before, now);
    let kinds = listener.kinds.iter().map(|kind| json!({ "group": GROUP, "kind": kind.as_str() }));
    json!({
        "name": listener.name,
        "attachedRoutes": objects.attached_routes(placed),
        "supportedKinds": kinds.collect::<Vec<_>>(),
        "conditions": [
            of("Accepted", accepted),
            of("Conflicted", conflicted),
            of("ResolvedRefs", resolved),
            of("Programmed", programmed),
        ],
    })
}
