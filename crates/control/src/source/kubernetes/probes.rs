//! The health probes that a container declares. They are allowed whatever policies say.

use http::Method;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_model::authz::{PathPattern, Probe};

use crate::index::object::PortProbe;

/// What kubelets ask of gRPC servers.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Probes whose port or path cannot be understood are left out, as are those that send no request.
pub(super) fn of_container(container: &core::Container) -> Vec<PortProbe> {
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let mut declared = Vec::new();
    for probe in probes.into_iter().flatten() {
        let asked = probe.http_get.as_ref().and_then(|get| {
            let path = get.path.as_deref().unwrap_or("/");
            let path = path.split(['?', '#']).next().unwrap_or_default();
            Some((number(container, &get.port)?, Method::GET, path))
        });
        let asked = asked.or_else(|| {
            let port = u16::try_from(probe.grpc.as_ref()?.port).ok()?;
            Some((port, Method::POST, GRPC_HEALTH))
        });
        let Some((port, method, path)) = asked else { continue };
        // A star would cover paths that nobody declared.
        let exact = PathPattern::new(path).ok().filter(|_| !path.contains('*'));
        if let Some(path) = exact {
            let probe = PortProbe { port, probe: Probe { method, path } };
            if !declared.contains(&probe) {
                declared.push(probe);
            }
        }
    }
    declared
}

fn number(container: &core::Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named.and_then(|port| u16::try_from(port.container_port).ok())
        }
    }
}
