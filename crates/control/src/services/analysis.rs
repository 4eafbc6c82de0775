//! `meshctl analyze` of a running mesh.

use std::collections::BTreeSet;

use mesh_api::ext::{self, AnalyzeReply, AnalyzeRequest, Manifest};

use super::mesh::{Failure, must_exist};
use super::select::select;
use crate::analyze::{Diagnosis, Scene, analyze as look, analyze_over};
use crate::index::Objects;
use crate::index::identity::MeshNames;
use crate::index::object::{Kind, Name, PolicyTarget, RouteHead};
use crate::overlay::Overlay;
use crate::source::kube::state::{OPTIONAL, REQUIRED};
use crate::state::Shared;

/// Answers a request.
///
/// # Errors
/// When the manifests are too large, or the selector makes no sense.
pub(super) fn analyze(shared: &Shared, request: &AnalyzeRequest) -> Result<AnalyzeReply, Failure> {
    let overlay = overlay(shared, &request.manifests)?;
    let problems = shared.problems();
    let index = shared.index.read();
    let objects = index.objects();
    let mut found = if overlay.is_empty() {
        look(&Scene { objects, problems: &problems, written: &[], complete: true })
    } else {
        analyze_over(objects, &problems, &overlay, true)
    };
    if !request.namespace.is_empty() {
        found.retain(|d| namespace_of(&d.object) == request.namespace);
    }
    if let Some(selector) = &request.selector {
        let selected = select(objects, selector)?;
        must_exist(&selected, std::slice::from_ref(selector))?;
        let about = about(objects, &selected);
        found.retain(|d| about.contains(&d.object));
    }
    let kinds = REQUIRED.iter().chain(&OPTIONAL);
    let count = kinds.map(|kind| objects.names(*kind).len()).sum::<usize>();
    Ok(AnalyzeReply {
        diagnoses: found.into_iter().map(diagnosis).collect(),
        objects: u32::try_from(count).unwrap_or(u32::MAX),
    })
}

/// Reads manifests as they would mean in this mesh.
pub(super) fn overlay(shared: &Shared, manifests: &[Manifest]) -> Result<Overlay, Failure> {
    let names = shared.index.read().objects().identity().cloned();
    let names = names.unwrap_or_else(MeshNames::default);
    let texts = manifests.iter().map(|manifest| (manifest.name.as_str(), manifest.text.as_str()));
    Overlay::read(texts, &names).map_err(|error| Failure::Invalid(error.to_string()))
}

fn diagnosis(found: Diagnosis) -> ext::Diagnosis {
    ext::Diagnosis {
        code: found.code.as_str().into(),
        severity: found.level.as_str().into(),
        object: found.object,
        field: found.field,
        file: found.file.map(|file| file.display().to_string()).unwrap_or_default(),
        line: found.line,
        message: found.message,
        remedy: found.code.remedy().into(),
    }
}

/// Of `Service/shop/tax` and `Namespace/shop` it is `shop`.
fn namespace_of(object: &str) -> &str {
    object.split('/').nth(1).unwrap_or_default()
}

/// The objects that are selected, and those that are about them.
fn about(objects: &Objects, selected: &[super::select::Selected]) -> BTreeSet<String> {
    let mut about = BTreeSet::new();
    let mut services: BTreeSet<Name> = BTreeSet::new();
    for selected in selected {
        let of = &selected.object;
        let kind =
            Kind::workload(&of.kind).map_or_else(|| capital(&of.kind), |k| k.as_str().into());
        let place =
            if of.namespace.is_empty() { String::new() } else { format!("{}/", of.namespace) };
        about.insert(format!("{kind}/{place}{}", of.name));
        about.extend(selected.pods.iter().map(|pod| format!("Pod/{}", pod.name)));
        match &selected.service {
            Some(service) => services.extend([service.clone()]),
            None => {
                let of_pods =
                    selected.pods.iter().flat_map(|pod| objects.services_of_pod(&pod.name));
                services.extend(of_pods);
            }
        }
        for policy in objects.authorization_policies() {
            if is_about(objects, &policy.target, &policy.name, selected) {
                about.insert(format!("AuthorizationPolicy/{}", policy.name));
            }
        }
        for policy in objects.port_policies() {
            if is_about(objects, &policy.target, &policy.name, selected) {
                about.insert(format!("ServerPolicy/{}", policy.name));
            }
        }
    }
    let attached =
        |head: &RouteHead| head.parents.iter().any(|parent| services.contains(&parent.service));
    let heads = objects
        .http_routes()
        .map(|route| (Kind::HttpRoute, &route.head))
        .chain(objects.grpc_routes().map(|route| (Kind::GrpcRoute, &route.head)))
        .chain(objects.tcp_routes().map(|route| (Kind::TcpRoute, &route.head)))
        .chain(objects.tls_routes().map(|route| (Kind::TlsRoute, &route.head)));
    about.extend(
        heads
            .filter(|(_, head)| attached(head))
            .map(|(kind, head)| format!("{}/{}", kind.as_str(), head.name)),
    );
    about.extend(services.iter().map(|service| format!("Service/{service}")));
    about
}

fn is_about(
    objects: &Objects,
    target: &PolicyTarget,
    policy: &Name,
    selected: &super::select::Selected,
) -> bool {
    selected.pods.iter().any(|pod| {
        pod.name.namespace == policy.namespace
            && objects
                .ports_of(pod, selected.service.as_ref())
                .into_iter()
                .any(|port| objects.is_target(target, &pod.name, Some(pod), port))
    })
}

fn capital(kind: &str) -> String {
    let mut chars = kind.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
