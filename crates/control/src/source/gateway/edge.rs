//! Gateways, their classes, and the Secrets with what they present to clients.

use gateway_api::experimental::{gatewayclasses, gateways};
use k8s_openapi::api::core::v1 as core;
use mesh_api::limit;
use mesh_model::gateway::PrivateKey;
use mesh_model::route::HostMatch;
use mesh_tls::EdgeKey;

use super::{GROUP, is_secret};
use crate::index::object::{
    AllowedNamespaces, Certificate, CertificateContent, CertificateRef, Expression,
    GATEWAY_CONTROLLER, Gateway, GatewayClass, Kind, Listener, ListenerProtocol, Name,
    NamespaceSelector, Requirement,
};
use crate::source::Finding;
use crate::source::kubernetes::{Converted, name_of};

/// The type of Secrets with certificates.
pub const TLS_SECRET: &str = "kubernetes.io/tls";
/// More are no use to anybody.
const MAX_LISTENERS: usize = 64;

pub fn gateway_class(object: &gatewayclasses::GatewayClass) -> Converted<GatewayClass> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let ours = object.spec.controller_name == GATEWAY_CONTROLLER;
    (GatewayClass { name, ours }, Vec::new())
}

pub fn gateway(object: &gateways::Gateway) -> Converted<Gateway> {
    let mut findings = Vec::new();
    let name = name_of(&object.metadata);
    let spec = &object.spec;
    for (field, given) in [
        ("addresses", spec.addresses.as_ref().is_some_and(|list| !list.is_empty())),
        ("tls", spec.tls.is_some()),
        ("infrastructure", spec.infrastructure.is_some()),
    ] {
        if given {
            let message = "is not supported and has no effect";
            findings.push(Finding::warning(format!("spec.{field}"), message));
        }
    }
    if spec.listeners.len() > MAX_LISTENERS {
        let message = format!("has more than {MAX_LISTENERS} listeners");
        findings.push(Finding::error("spec.listeners", message));
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (index, listener) in spec.listeners.iter().enumerate().take(MAX_LISTENERS) {
        let at = format!("spec.listeners[{index}]");
        if listeners.iter().any(|before| before.name == listener.name) {
            let message = format!("two listeners are called `{}`", listener.name);
            findings.push(Finding::error(format!("{at}.name"), message));
        }
        listeners.extend(convert(listener, &name, &at, &mut findings));
    }
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    let class = spec.gateway_class_name.clone();
    (Gateway { name, created, class, listeners }, findings)
}

fn convert(
    listener: &gateways::GatewayListeners,
    gateway: &Name,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Option<Listener> {
    let Some(port) = u16::try_from(listener.port).ok().filter(|port| *port > 0) else {
        findings.push(Finding::error(format!("{at}.port"), "is not a port from 1 to 65535"));
        return None;
    };
    let passes = listener.tls.as_ref().and_then(|tls| tls.mode.as_ref())
        == Some(&gateways::GatewayListenersTlsMode::Passthrough);
    let protocol = match (listener.protocol.as_str(), passes) {
        ("HTTP", _) => ListenerProtocol::Http,
        ("HTTPS", false) => ListenerProtocol::Https,
        ("TLS", true) => ListenerProtocol::Tls,
        ("TCP", _) => ListenerProtocol::Tcp,
        ("HTTPS", true) => {
            let message = "of HTTPS is Terminate; to pass TLS on, use the protocol TLS";
            findings.push(Finding::error(format!("{at}.tls.mode"), message));
            return None;
        }
        ("TLS", false) => {
            let message = "Terminate is supported for the protocol HTTPS only; use Passthrough";
            findings.push(Finding::error(format!("{at}.tls.mode"), message));
            return None;
        }
        (other, _) => {
            let message = format!("`{other}` is not supported; HTTP, HTTPS, TLS and TCP are");
            findings.push(Finding::error(format!("{at}.protocol"), message));
            return None;
        }
    };
    let given = listener.hostname.as_deref().filter(|host| !host.is_empty());
    let host = given.and_then(HostMatch::parse);
    if let (Some(given), None) = (given, &host) {
        let message = format!("`{given}` is not a host name, nor one after `*.`");
        findings.push(Finding::error(format!("{at}.hostname"), message));
        return None;
    }
    let certificates: Vec<_> = listener
        .tls
        .iter()
        .filter(|_| protocol == ListenerProtocol::Https)
        .flat_map(|tls| tls.certificate_refs.iter().flatten())
        .map(|of| {
            let kind = of.kind.as_deref().unwrap_or("Secret");
            match is_secret(of.group.as_deref(), kind) {
                true => {
                    let namespace = of.namespace.as_deref().unwrap_or(&gateway.namespace);
                    CertificateRef::Secret(Name::new(namespace, &of.name))
                }
                false => CertificateRef::Unusable(format!("a {kind} holds no certificate")),
            }
        })
        .collect();
    if protocol == ListenerProtocol::Https && certificates.is_empty() {
        let message = "HTTPS needs a Secret with a certificate";
        findings.push(Finding::error(format!("{at}.tls.certificateRefs"), message));
    }
    let (kinds, foreign_kinds) = kinds(listener, protocol);
    for kind in &foreign_kinds {
        let message = format!("{kind} is none of what {} takes", listener.protocol);
        findings.push(Finding::warning(format!("{at}.allowedRoutes.kinds"), message));
    }
    Some(Listener {
        name: listener.name.clone(),
        port,
        host: host.filter(|_| protocol != ListenerProtocol::Tcp),
        protocol,
        certificates,
        namespaces: namespaces(listener, at, findings),
        kinds,
        foreign_kinds,
    })
}

/// The kinds of routes that a listener takes, and those it wants and cannot have.
fn kinds(
    listener: &gateways::GatewayListeners,
    protocol: ListenerProtocol,
) -> (Vec<Kind>, Vec<String>) {
    let wanted = listener.allowed_routes.as_ref().and_then(|allowed| allowed.kinds.as_ref());
    let Some(wanted) = wanted.filter(|kinds| !kinds.is_empty()) else {
        return (protocol.kinds().to_vec(), Vec::new());
    };
    let (mut kinds, mut foreign) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let own = wanted.group.as_deref().is_none_or(|group| group == GROUP);
        match protocol.kinds().iter().find(|kind| own && kind.as_str() == wanted.kind) {
            Some(kind) => kinds.push(*kind),
            None => foreign.push(wanted.kind.clone()),
        }
    }
    (kinds, foreign)
}

fn namespaces(
    listener: &gateways::GatewayListeners,
    at: &str,
    findings: &mut Vec<Finding>,
) -> AllowedNamespaces {
    use gateways::GatewayListenersAllowedRoutesNamespacesFrom as From;
    let of = listener.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    let Some(of) = of else { return AllowedNamespaces::Same };
    match (&of.from, &of.selector) {
        (None | Some(From::Same), _) => AllowedNamespaces::Same,
        (Some(From::All), _) => AllowedNamespaces::All,
        (Some(From::Selector), None) => {
            let field = format!("{at}.allowedRoutes.namespaces.selector");
            findings.push(Finding::error(field, "is needed where `from` is Selector"));
            AllowedNamespaces::Same
        }
        (Some(From::Selector), Some(selector)) => {
            let mut expressions = Vec::new();
            for expression in selector.match_expressions.iter().flatten() {
                let values = expression.values.clone().unwrap_or_default();
                let is = match expression.operator.as_str() {
                    "In" => Requirement::In(values),
                    "NotIn" => Requirement::NotIn(values),
                    "Exists" => Requirement::Exists,
                    "DoesNotExist" => Requirement::Absent,
                    other => {
                        let field = format!("{at}.allowedRoutes.namespaces.selector");
                        let message = format!("`{other}` is no operator");
                        findings.push(Finding::error(field, message));
                        continue;
                    }
                };
                expressions.push(Expression { key: expression.key.clone(), is });
            }
            let labels = selector.match_labels.clone().unwrap_or_default();
            AllowedNamespaces::Selector(NamespaceSelector { labels, expressions })
        }
    }
}

/// A Secret with a certificate; `None` for those of other types.
pub fn tls_secret(object: &core::Secret) -> Option<Certificate> {
    if object.type_.as_deref() != Some(TLS_SECRET) {
        return None;
    }
    let text = |key: &str| {
        let encoded = object.data.as_ref().and_then(|data| data.get(key));
        let plain = object.string_data.as_ref().and_then(|data| data.get(key));
        let encoded = encoded.map(|bytes| String::from_utf8(bytes.0.clone()).unwrap_or_default());
        // As an API server has it.
        plain.cloned().or(encoded).ok_or_else(|| format!("it has no {key}"))
    };
    let read = || {
        let (chain, key) = (text("tls.crt")?, text("tls.key")?);
        if chain.len() + key.len() > limit::PEM_BYTES {
            return Err(format!(
                "its tls.crt and tls.key have {} bytes, which is more than {}",
                chain.len() + key.len(),
                limit::PEM_BYTES
            ));
        }
        EdgeKey::from_pem(&chain, &key).map_err(|error| error.to_string())?;
        Ok(CertificateContent { chain, key: PrivateKey(key) })
    };
    Some(Certificate { name: name_of(&object.metadata), content: read() })
}
