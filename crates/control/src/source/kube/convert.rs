//! Objects of an API server as events of the source.
//!
//! What an API server has validated is not complained about again; findings are about our annotations,
//! our kinds, and routes.

use gateway_api::experimental::{
    gatewayclasses, gateways, grpcroutes, httproutes, referencegrants, tcproutes, tlsroutes,
};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::core::{DynamicObject, ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::state::{Force, Item};
use super::status::{Subject, is_route};
use crate::index::identity::MeshNames;
use crate::index::object::{Kind, Name, Object, Workload};
use crate::source::kubernetes::{self, Converted, controller, name_of, slice};
use crate::source::{Finding, Severity, gateway, policy};

/// The name of an object of a kind.
pub(super) fn name(kind: Kind, meta: &ObjectMeta) -> Name {
    match kind {
        Kind::Namespace | Kind::GatewayClass => {
            Name::new("", meta.name.clone().unwrap_or_default())
        }
        _ => name_of(meta),
    }
}

pub(super) fn namespace(object: &core::Namespace) -> Item {
    let (namespace, findings) = kubernetes::namespace(object);
    Item { findings, ..Item::new(Name::new("", &namespace.name), Object::Namespace(namespace)) }
}

pub(super) fn service(object: &core::Service) -> Item {
    let (service, mut findings) = kubernetes::service(object);
    // Ports of UDP and external names are in every cluster, and nobody's mistake.
    findings.retain(|finding| finding.field.starts_with("metadata."));
    Item { findings, ..Item::new(service.name.clone(), Object::Service(service)) }
}

pub(super) fn endpoint_slice(object: &discovery::EndpointSlice) -> Item {
    let slice = slice::endpoint_slice(object).map(|slice| Box::new(Object::EndpointSlice(slice)));
    Item {
        name: name_of(&object.metadata),
        force: slice.map_or(Force::Ignore, Force::Apply),
        findings: Vec::new(),
        controller: None,
        subject: None,
    }
}

pub(super) fn pod(object: &core::Pod) -> Item {
    let (pod, findings) = kubernetes::pod(object);
    let controller = controller(&object.metadata);
    Item { findings, controller, ..Item::new(pod.name.clone(), Object::Pod(pod)) }
}

/// A workload, of which the labels are enough. What another workload made is not spoken of itself.
pub(super) fn workload(kind: Kind, meta: &ObjectMeta) -> Item {
    let name = name_of(meta);
    let controller = controller(meta);
    let labels = meta.labels.clone().unwrap_or_default();
    let annotations = kubernetes::own_annotations(meta);
    let object = Object::Workload(Workload { kind, name: name.clone(), labels, annotations });
    let force = match controller {
        Some(_) => Force::Ignore,
        None => Force::Apply(Box::new(object)),
    };
    Item { name, force, findings: Vec::new(), controller, subject: None }
}

/// A Secret with a certificate. One that makes no sense leaves the last one in force.
pub(super) fn secret(object: &core::Secret) -> Item {
    let name = name_of(&object.metadata);
    let mut findings = Vec::new();
    let force = match gateway::tls_secret(object) {
        None => Force::Ignore,
        Some(certificate) => match &certificate.content {
            Ok(_) => Force::Apply(Box::new(Object::Certificate(certificate))),
            Err(why) => {
                findings.push(Finding::error("data", why.clone()));
                Force::Keep
            }
        },
    };
    Item { name, force, findings, controller: None, subject: None }
}

/// A route, a policy or a Gateway. Each is read by itself, so that one which makes no sense is one problem, and
/// not the end of the whole list.
pub(super) fn custom(kind: Kind, names: &MeshNames, gateway: bool, object: DynamicObject) -> Item {
    let name = name(kind, &object.metadata);
    let mut subject = Subject::new(&object);
    let is_route = is_route(kind);
    let (object, mut findings) = read(kind, names, object);
    if is_route {
        // What is for other controllers is nobody's mistake.
        let others = |found: &Finding| found.field.starts_with("spec.parentRefs");
        findings.retain(|found| found.severity == Severity::Error || !others(found));
    }
    let force = match object {
        _ if is_route && !subject.is_ours(gateway) => {
            findings.clear();
            Force::Ignore
        }
        Some(object) if Item::is_good(&findings) => Force::Apply(Box::new(object)),
        _ => Force::Keep,
    };
    subject.findings.clone_from(&findings);
    let subject = (kind != Kind::ReferenceGrant).then_some(subject);
    Item { name, force, findings, controller: None, subject }
}

fn read(kind: Kind, names: &MeshNames, mut object: DynamicObject) -> Converted<Option<Object>> {
    // Large, and nothing in it is for us.
    object.metadata.managed_fields = None;
    let value = match serde_json::to_value(object) {
        Ok(value) => value,
        Err(error) => return (None, vec![Finding::error("", error.to_string())]),
    };
    let read = match kind {
        Kind::HttpRoute => parse(value, |route: &httproutes::HttpRoute| {
            map(gateway::http_route(route), Object::HttpRoute)
        }),
        Kind::GrpcRoute => parse(value, |route: &grpcroutes::GrpcRoute| {
            map(gateway::grpc_route(route), Object::GrpcRoute)
        }),
        Kind::TcpRoute => parse(value, |route: &tcproutes::TcpRoute| {
            map(gateway::tcp_route(route), Object::TcpRoute)
        }),
        Kind::TlsRoute => parse(value, |route: &tlsroutes::TlsRoute| {
            map(gateway::tls_route(route), Object::TlsRoute)
        }),
        Kind::ReferenceGrant => parse(value, |grant: &referencegrants::ReferenceGrant| {
            map(gateway::reference_grant(grant), Object::ReferenceGrant)
        }),
        Kind::GatewayClass => parse(value, |class: &gatewayclasses::GatewayClass| {
            map(gateway::gateway_class(class), Object::GatewayClass)
        }),
        Kind::Gateway => parse(value, |gateway: &gateways::Gateway| {
            map(gateway::gateway(gateway), Object::Gateway)
        }),
        Kind::AuthorizationPolicy => parse(value, |policy: &policy::AuthorizationPolicyObject| {
            map(policy::authorization_policy(policy, names), Object::AuthorizationPolicy)
        }),
        Kind::ServerPolicy => parse(value, |policy: &policy::ServerPolicyObject| {
            map(policy::server_policy(policy, names), Object::PortPolicy)
        }),
        Kind::BackendTrafficPolicy => {
            parse(value, |policy: &policy::BackendTrafficPolicyObject| {
                map(policy::backend_traffic_policy(policy), Object::TrafficPolicy)
            })
        }
        Kind::EgressPolicy => parse(value, |policy: &policy::EgressPolicyObject| {
            map(policy::egress_policy(policy, names), Object::EgressPolicy)
        }),
        _ => return (None, Vec::new()),
    };
    match read {
        Ok((object, findings)) => (Some(object), findings),
        Err(finding) => (None, vec![finding]),
    }
}

fn map<T>((value, findings): Converted<T>, into: impl FnOnce(T) -> Object) -> Converted<Object> {
    (into(value), findings)
}

fn parse<T: DeserializeOwned>(
    value: Value,
    convert: impl FnOnce(&T) -> Converted<Object>,
) -> Result<Converted<Object>, Finding> {
    match serde_path_to_error::deserialize::<_, T>(value) {
        Ok(object) => Ok(convert(&object)),
        Err(error) => {
            let field = error.path().to_string();
            let field = if field == "." { String::new() } else { field };
            Err(Finding::error(field, error.into_inner().to_string()))
        }
    }
}
