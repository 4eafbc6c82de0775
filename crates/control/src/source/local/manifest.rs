//! One manifest file: its objects, or what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use gateway_api::experimental::{
    gatewayclasses, gateways, grpcroutes, httproutes, referencegrants, tcproutes, tlsroutes,
};
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;

use super::addresses;
use super::yaml::{self, Document};
use crate::index::identity::MeshNames;
use crate::index::object::{Kind, Name, Object, ObjectKey, POLICY_GROUP, Service, Workload};
use crate::source::gateway::TLS_SECRET;
use crate::source::kubernetes::{Converted, name_of};
use crate::source::{Finding, Problem, Severity, gateway, kubernetes, policy};

/// What a file declares.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Declared {
    Object(Object),
    Service(LocalService),
}

impl Declared {
    pub(crate) fn key(&self) -> ObjectKey {
        match self {
            Self::Object(object) => object.key(),
            Self::Service(service) => {
                ObjectKey { kind: Kind::Service, name: service.service.name.clone() }
            }
        }
    }
}

/// A Service with what a cluster's controllers would make endpoints and addresses of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LocalService {
    pub(crate) service: Service,
    pub(crate) selector: BTreeMap<String, String>,
    /// By the port's name.
    pub(crate) targets: Vec<(String, TargetPort)>,
    /// Has no address of its own and gets none.
    pub(crate) headless: bool,
    /// Clients are to use the endpoints of their own zone (`trafficDistribution`).
    pub(crate) spreads_by_zone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetPort {
    Number(u16),
    /// Of the container's port with this name.
    Name(String),
}

/// The contents of a file.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) declared: Vec<Declared>,
    pub(crate) problems: Vec<Problem>,
}

impl Manifest {
    /// Whether the file may come into force.
    pub(crate) fn is_good(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity != Severity::Error)
    }
}

/// Reads the text of a file.
pub(crate) fn read(file: &Path, text: &str, names: &MeshNames) -> Manifest {
    let mut manifest = Manifest::default();
    let mut seen = BTreeSet::new();
    for document in yaml::documents(text) {
        let document = match document {
            Ok(document) => document,
            Err(invalid) => {
                let finding = Finding::error("", invalid.message);
                manifest.problems.push(problem(file, String::new(), invalid.line, finding));
                continue;
            }
        };
        let about = about(&document);
        let (declared, mut findings) = convert(&document, names);
        if let Some(declared) = declared {
            if seen.insert(declared.key()) {
                manifest.declared.push(declared);
            } else {
                let message = "is in this file twice; remove one of them";
                findings.push(Finding::error("metadata.name", message));
            }
        }
        for finding in findings {
            let line = document.line(&finding.field);
            manifest.problems.push(problem(file, about.clone(), line, finding));
        }
    }
    manifest
}

pub(crate) fn problem(file: &Path, object: String, line: u32, finding: Finding) -> Problem {
    Problem {
        severity: finding.severity,
        object,
        file: Some(file.to_owned()),
        line,
        field: finding.field,
        message: finding.message,
    }
}

/// `HTTPRoute/shop/checkout`, as far as it can be told.
pub(crate) fn about(document: &Document) -> String {
    let kind = document.root.text(&["kind"]).unwrap_or_default();
    let name = document.root.text(&["metadata", "name"]).unwrap_or_default();
    let namespace = document.root.text(&["metadata", "namespace"]);
    match (kind, name) {
        ("", _) => String::new(),
        (kind, "") => kind.to_owned(),
        ("Namespace", name) => format!("Namespace/{name}"),
        (kind, name) => format!("{kind}/{}/{name}", namespace.unwrap_or("default")),
    }
}

fn convert(document: &Document, names: &MeshNames) -> Converted<Option<Declared>> {
    let api_version = document.root.text(&["apiVersion"]).unwrap_or_default();
    let Some(kind) = document.root.text(&["kind"]) else {
        return (None, vec![Finding::error("kind", "an object needs apiVersion and kind")]);
    };
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let object = |(object, findings): Converted<Object>| (Some(Declared::Object(object)), findings);
    let parsed = match (group, kind) {
        ("", "Namespace") => parse(document, |o: &core::Namespace| {
            object(map(kubernetes::namespace(o), Object::Namespace))
        }),
        ("", "Service") => parse(document, |o| {
            let (service, findings) = local_service(o);
            (Some(Declared::Service(service)), findings)
        }),
        ("apps", "Deployment") => {
            parse(document, |o: &apps::Deployment| object(workload(Kind::Deployment, &o.metadata)))
        }
        ("apps", "StatefulSet") => parse(document, |o: &apps::StatefulSet| {
            object(workload(Kind::StatefulSet, &o.metadata))
        }),
        ("gateway.networking.k8s.io", "HTTPRoute") => {
            parse(document, |o: &httproutes::HttpRoute| {
                object(map(gateway::http_route(o), Object::HttpRoute))
            })
        }
        ("gateway.networking.k8s.io", "GRPCRoute") => {
            parse(document, |o: &grpcroutes::GrpcRoute| {
                object(map(gateway::grpc_route(o), Object::GrpcRoute))
            })
        }
        ("gateway.networking.k8s.io", "TCPRoute") => parse(document, |o: &tcproutes::TcpRoute| {
            object(map(gateway::tcp_route(o), Object::TcpRoute))
        }),
        ("gateway.networking.k8s.io", "TLSRoute") => parse(document, |o: &tlsroutes::TlsRoute| {
            object(map(gateway::tls_route(o), Object::TlsRoute))
        }),
        ("gateway.networking.k8s.io", "ReferenceGrant") => {
            parse(document, |o: &referencegrants::ReferenceGrant| {
                object(map(gateway::reference_grant(o), Object::ReferenceGrant))
            })
        }
        ("gateway.networking.k8s.io", "GatewayClass") => {
            parse(document, |o: &gatewayclasses::GatewayClass| {
                object(map(gateway::gateway_class(o), Object::GatewayClass))
            })
        }
        ("gateway.networking.k8s.io", "Gateway") => parse(document, |o: &gateways::Gateway| {
            object(map(gateway::gateway(o), Object::Gateway))
        }),
        ("", "Secret") => parse(document, secret),
        (POLICY_GROUP, "AuthorizationPolicy") => {
            parse(document, |o: &policy::AuthorizationPolicyObject| {
                object(map(policy::authorization_policy(o, names), Object::AuthorizationPolicy))
            })
        }
        (POLICY_GROUP, "ServerPolicy") => parse(document, |o: &policy::ServerPolicyObject| {
            object(map(policy::server_policy(o, names), Object::PortPolicy))
        }),
        (POLICY_GROUP, "BackendTrafficPolicy") => {
            parse(document, |o: &policy::BackendTrafficPolicyObject| {
                object(map(policy::backend_traffic_policy(o), Object::TrafficPolicy))
            })
        }
        (POLICY_GROUP, "EgressPolicy") => parse(document, |o: &policy::EgressPolicyObject| {
            object(map(policy::egress_policy(o, names), Object::EgressPolicy))
        }),
        // Running pods are told by the supervisor; an account is only a name so far.
        ("", "Pod" | "ServiceAccount") => return (None, Vec::new()),
        ("", "List") => {
            let message = "write the items of a List as documents of their own, divided by `---`";
            return (None, vec![Finding::error("kind", message)]);
        }
        _ => {
            let message = format!("{kind} has no meaning on one machine; it is left out");
            return (None, vec![Finding::warning("kind", message)]);
        }
    };
    let (declared, mut findings) = parsed.unwrap_or_else(|finding| (None, vec![finding]));
    if let Some(declared) = &declared {
        check_name(&declared.key().name, &mut findings);
    }
    (declared, findings)
}

fn map<T>((value, findings): Converted<T>, into: impl FnOnce(T) -> Object) -> Converted<Object> {
    (into(value), findings)
}

fn parse<T: DeserializeOwned>(
    document: &Document,
    convert: impl FnOnce(&T) -> Converted<Option<Declared>>,
) -> Result<Converted<Option<Declared>>, Finding> {
    match serde_path_to_error::deserialize::<_, T>(document.root.to_json()) {
        Ok(object) => Ok(convert(&object)),
        Err(error) => {
            let field = error.path().to_string();
            let field = if field == "." { String::new() } else { field };
            Err(Finding::error(field, error.into_inner().to_string()))
        }
    }
}

fn secret(object: &core::Secret) -> Converted<Option<Declared>> {
    let Some(certificate) = gateway::tls_secret(object) else {
        let message = format!("Secrets have a meaning if they are {TLS_SECRET}; it is left out");
        return (None, vec![Finding::warning("type", message)]);
    };
    let mut findings = Vec::new();
    if let Err(why) = &certificate.content {
        findings.push(Finding::error("data", why.clone()));
    }
    (Some(Declared::Object(Object::Certificate(certificate))), findings)
}

fn check_name(name: &Name, findings: &mut Vec<Finding>) {
    let valid = |text: &str| {
        text.len() <= 253
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    if name.name.is_empty() {
        findings.push(Finding::error("metadata.name", "an object needs a name"));
    } else if !valid(&name.name) {
        let message = format!("`{}` may have lower case letters, digits, - and . only", name.name);
        findings.push(Finding::error("metadata.name", message));
    } else if !valid(&name.namespace) {
        let message = format!("`{}` is not the name of a namespace", name.namespace);
        findings.push(Finding::error("metadata.namespace", message));
    }
}

fn workload(kind: Kind, meta: &ObjectMeta) -> Converted<Object> {
    let labels = meta.labels.clone().unwrap_or_default();
    let annotations = kubernetes::own_annotations(meta);
    (Object::Workload(Workload { kind, name: name_of(meta), labels, annotations }), Vec::new())
}

fn local_service(object: &core::Service) -> Converted<LocalService> {
    let (mut service, mut findings) = kubernetes::service(object);
    let spec = object.spec.clone().unwrap_or_default();
    let headless = spec.type_.as_deref() == Some("ExternalName")
        || spec.cluster_ip.as_deref().is_some_and(|ip| ip.eq_ignore_ascii_case("none"));
    if service.cluster_ips.iter().any(|ip| addresses::in_range(*ip)) {
        findings.push(Finding::warning(
            "spec.clusterIP",
            "the local mesh gives out addresses of this range itself, and gives the Service another",
        ));
        service.cluster_ips.clear();
    }
    let mut targets = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let name = port.name.clone().unwrap_or_default();
        if service.ports.iter().all(|known| known.name != name) {
            continue;
        }
        let target = match &port.target_port {
            None => u16::try_from(port.port).ok().map(TargetPort::Number),
            Some(IntOrString::Int(number)) => {
                u16::try_from(*number).ok().filter(|n| *n > 0).map(TargetPort::Number)
            }
            Some(IntOrString::String(name)) => Some(match name.parse() {
                Ok(number) => TargetPort::Number(number),
                Err(_) => TargetPort::Name(name.clone()),
            }),
        };
        match target {
            Some(target) => targets.push((name, target)),
            None => findings.push(Finding::error(
                format!("spec.ports[{index}].targetPort"),
                "is not a port from 1 to 65535",
            )),
        }
    }
    let selector = spec.selector.unwrap_or_default();
    let spreads_by_zone = spec.traffic_distribution.is_some();
    (LocalService { service, selector, targets, headless, spreads_by_zone }, findings)
}
