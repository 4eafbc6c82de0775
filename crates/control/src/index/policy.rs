//! What proxies are told: outbound policies of services, profiles, policies of their own ports.
//!
//! Pure functions of the objects. Routes are in [`super::routes`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::authz::PortAuthz;
use mesh_model::inbound::{Authorization, Authorize, PortProtocol, ServerPolicy, ServerProtocol};
use mesh_model::meta::ResourceRef;
use mesh_model::outbound::{Breaker, GrpcPolicy, HttpPolicy, OutboundPolicy, Protocol, TcpPolicy};
use mesh_model::route::{Backoff, HttpMatch, PathMatch, Route, Rule};
use mesh_model::{Meta, Profile};

use super::Objects;
use super::authz;
use super::lookup;
use super::object::{AppProtocol, Name, Pod, Service};
use super::ports;

/// How long a silent client is waited for. Our proxy never waits that long: it lets the server
/// speak first long before, and this is only the outer bound.
pub const DETECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports of protocols in which the server speaks first, or that are no HTTP for other reasons.
pub const DEFAULT_OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// The breaker of services that do not ask for another.
pub const DEFAULT_BREAKER: Breaker = Breaker {
    consecutive: Some(7),
    success_rate: None,
    backoff: Backoff {
        min: Duration::from_secs(1),
        max: Duration::from_secs(60),
        jitter: 0.5,
        respect_retry_after: false,
    },
    min_ready: 1,
};

impl Objects {
    /// What clients in the namespace `client` do with traffic to a service's port; `None` when
    /// there is no such port.
    pub fn outbound_policy(
        &self,
        service: &Name,
        port: u16,
        client: &str,
    ) -> Option<OutboundPolicy> {
        let object = self.services.get(service)?;
        let app_protocol = object.port(port)?.app_protocol;
        let breaker = self.breaker(service, port);
        let http = || HttpPolicy { routes: self.http_policy(service, port, client), breaker };
        let grpc = || GrpcPolicy { routes: self.grpc_policy(service, port, client), breaker };
        let opaque = || TcpPolicy { routes: self.tcp_policy(service, port, client) };
        let tls = self.tls_policy(service, port, client);
        let protocol = if self.service_port_is_opaque(object, port) {
            Protocol::Opaque(opaque())
        } else if !tls.is_empty() && !self.has_http_route(service, port, client) {
            // Of kinds of routes at one port Gateway API prefers the one that says most.
            Protocol::Tls(TcpPolicy { routes: tls })
        } else {
            let has_grpc_route = self.has_grpc_route(service, port, client);
            match app_protocol {
                AppProtocol::Http1 => Protocol::Http1(http()),
                AppProtocol::Grpc => Protocol::Grpc(grpc()),
                AppProtocol::Http2 | AppProtocol::Unknown if has_grpc_route => {
                    Protocol::Grpc(grpc())
                }
                AppProtocol::Http2 => Protocol::Http2(http()),
                AppProtocol::Unknown | AppProtocol::Opaque => {
                    let http = http();
                    Protocol::Detect {
                        timeout: DETECT_TIMEOUT,
                        http1: http.clone(),
                        http2: http,
                        opaque: opaque(),
                    }
                }
            }
        };
        let meta = ResourceRef::service(&service.namespace, &service.name, port);
        Some(OutboundPolicy { meta: Meta::Resource(meta), protocol })
    }

    /// What is known of a service's port besides its policy.
    pub fn service_profile(&self, service: &Name, port: u16) -> Option<Profile> {
        let object = self.services.get(service)?;
        object.port(port)?;
        Some(Profile {
            name: Some(lookup::path(service, port)),
            opaque: self.service_port_is_opaque(object, port),
            endpoint: None,
        })
    }

    /// What is known of an address: a service's, a pod's, or nobody's, about which nothing is.
    pub fn address_profile(&self, addr: SocketAddr) -> Profile {
        if let Some(service) = self.service_by_ip(addr.ip()) {
            return self.service_profile(&service.name, addr.port()).unwrap_or_default();
        }
        if let Some(pod) = self.pod_by_ip(addr.ip()) {
            return Profile {
                name: None,
                opaque: self.pod_port_is_opaque(pod, addr.port()),
                endpoint: Some(self.pod_endpoint(pod, addr)),
            };
        }
        let opaque = DEFAULT_OPAQUE_PORTS.contains(&addr.port());
        Profile { name: None, opaque, endpoint: None }
    }

    /// What the proxy of a pod does with connections to one of its ports, as far as the linkerd2 API
    /// can say it.
    pub fn server_policy(&self, pod: &Name, port: u16) -> ServerPolicy {
        let authz = self.port_authz(pod, port);
        let authorizations = authz::for_others(&authz);
        let routes = || http_routes(&authz, &authorizations);
        // Rates by a header alone are none to that API.
        let limit = self.port_limits(pod, port).rate.filter(|limit| {
            limit.total.is_some() || limit.identity.is_some() || !limit.overrides.is_empty()
        });
        let protocol = match self.port_protocol(pod, port) {
            PortProtocol::Opaque => ServerProtocol::Opaque,
            PortProtocol::Http1 => ServerProtocol::Http1 { routes: routes(), limit },
            // gRPC is HTTP/2, and a limit is for HTTP only.
            PortProtocol::Grpc if limit.is_some() => {
                ServerProtocol::Http2 { routes: routes(), limit }
            }
            PortProtocol::Http2 => ServerProtocol::Http2 { routes: routes(), limit },
            PortProtocol::Grpc => {
                let routes = Arc::new([route("grpc", Vec::new(), &authorizations)]);
                ServerProtocol::Grpc { routes }
            }
            PortProtocol::Detect => {
                ServerProtocol::Detect { timeout: DETECT_TIMEOUT, routes: routes(), limit }
            }
        };
        let governing = self.governing(pod, self.pods.get(pod).map(|pod| &**pod), port);
        let by = governing.top().map_or_else(|| authz.default.meta.clone(), ports::meta);
        let labels = Arc::new(authz::labels(&by));
        ServerPolicy { protocol, authorizations, labels }
    }

    /// Whether a pod's port takes opaque bytes.
    pub(super) fn pod_port_is_opaque(&self, pod: &Pod, port: u16) -> bool {
        let governing = self.governing(&pod.name, Some(pod), port);
        if let Some((_, protocol)) = governing.first(|policy| policy.protocol) {
            return protocol == PortProtocol::Opaque;
        }
        match &pod.opaque_ports {
            Some(ports) => ports.contains(port),
            None => self.is_opaque_by_namespace(&pod.name.namespace, port),
        }
    }

    fn service_port_is_opaque(&self, service: &Service, port: u16) -> bool {
        let app_protocol = service.port(port).map(|port| port.app_protocol).unwrap_or_default();
        match (&service.opaque_ports, app_protocol) {
            (Some(ports), _) if ports.contains(port) => true,
            (_, AppProtocol::Opaque) => true,
            // Somebody who says what a port speaks knows better than a list of defaults.
            (Some(_), _) | (None, AppProtocol::Http1 | AppProtocol::Http2 | AppProtocol::Grpc) => {
                false
            }
            (None, AppProtocol::Unknown) => {
                self.is_opaque_by_namespace(&service.name.namespace, port)
            }
        }
    }

    pub(super) fn is_opaque_by_namespace(&self, namespace: &str, port: u16) -> bool {
        match self.namespace_opaque_ports(namespace) {
            Some(ports) => ports.contains(port),
            None => DEFAULT_OPAQUE_PORTS.contains(&port),
        }
    }

    /// What the services in front of a pod say its port speaks, if they agree.
    pub(super) fn pod_app_protocol(&self, pod: &Name, port: u16) -> AppProtocol {
        let mut told: Option<AppProtocol> = None;
        for slice in self.slices_with(pod) {
            let service = Name::new(&slice.name.namespace, &slice.service);
            let Some(service) = self.services.get(&service) else { continue };
            let names = slice.ports.iter().filter(|(_, target)| *target == port);
            for (name, _) in names {
                let Some(port) = service.ports.iter().find(|port| port.name == *name) else {
                    continue;
                };
                match told {
                    None => told = Some(port.app_protocol),
                    Some(same) if same == port.app_protocol => {}
                    Some(_) => return AppProtocol::Unknown,
                }
            }
        }
        told.unwrap_or_default()
    }
}

/// The routes of a port for proxies that do not know our extensions: declared probes for everybody,
/// anything else for those whom the port lets in.
fn http_routes(
    authz: &PortAuthz,
    authorizations: &Arc<[Authorization]>,
) -> Arc<[Route<HttpMatch, Authorize>]> {
    let probes = authz.probes.iter().map(|probe| HttpMatch {
        path: Some(PathMatch::Exact(probe.path.to_string())),
        method: Some(probe.method.clone()),
        ..HttpMatch::default()
    });
    let probes: Vec<HttpMatch> = probes.collect();
    let of_probes =
        (!probes.is_empty()).then(|| route("probe", probes, &authz::everybody("probe")));
    of_probes.into_iter().chain([route("http", Vec::new(), authorizations)]).collect()
}

fn route<M>(
    name: &str,
    matches: Vec<M>,
    authorizations: &Arc<[Authorization]>,
) -> Route<M, Authorize> {
    let action = Authorize { authorizations: Arc::clone(authorizations) };
    Route {
        meta: Meta::Default(name.into()),
        hosts: Vec::new(),
        rules: vec![Rule { matches, filters: Vec::new(), action }],
    }
}
