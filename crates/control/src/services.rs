//! What the control plane serves: policies and endpoints to proxies, answers to `meshctl`.
//!
//! [`Control`] is the index as proxies see it; [`mesh`] answers people by asking proxies. The
//! messages themselves are the business of `mesh-api`.

mod analysis;
mod ask;
mod authz;
mod destination;
mod edges;
mod egress;
pub mod mesh;
mod notable;
mod observed;
mod ports;
mod proxies;
mod routes;
mod select;
mod stat;
mod tap;
#[cfg(test)]
mod tests;
mod what_if;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, StreamExt};
use mesh_api::server::{ControlPlane, Refusal};
use mesh_api::{BackendExtension, Certified, CertifyRequest, TrustRoots, Workload};
use mesh_model::egress::EgressRules;
use mesh_model::gateway::GatewayConfig;
use mesh_model::inbound::{PortExtension, ServerPolicy};
use mesh_model::{Destination, OutboundPolicy, Profile, ResourceRef, Target};
use tokio_stream::wrappers::WatchStream;

use crate::identity::Authority;
use crate::index::lookup::{self, Wanted};
use crate::index::object::{GATEWAY_NAME, Name};
use crate::index::{Index, Watched, egress_for_others};
use crate::state::Shared;

/// The index as a control plane of linkerd2-proxy-api.
#[derive(Clone, Debug)]
pub struct Control {
    shared: Arc<Shared>,
    authority: Option<Arc<Authority>>,
}

impl Control {
    /// Without an authority the mesh has no identity.
    pub fn new(shared: Arc<Shared>, authority: Option<Arc<Authority>>) -> Self {
        Self { shared, authority }
    }
}

impl ControlPlane for Control {
    fn destination(
        &self,
        path: &str,
        from: &Workload,
    ) -> Result<BoxStream<'static, Destination>, Refusal> {
        let wanted = lookup::understand_authority(path, namespace(from)).map_err(malformed)?;
        let (service, port) = service_of(&self.shared.index.read(), wanted, path)?;
        let client = Name::new(&from.namespace, &from.pod);
        let told = destination::stream(&self.shared, &service, port, &client);
        told.ok_or_else(|| no_such_port(&self.shared.index.read(), &service, port))
    }

    fn profile(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, Profile>, Refusal> {
        let wanted = lookup::understand(target, namespace(from)).map_err(malformed)?;
        let mut index = self.shared.index.write();
        match wanted {
            Some(Wanted::Address(addr)) => Ok(values(index.watch_address_profile(addr))),
            Some(Wanted::Service { name, port }) => {
                let profiles = index.watch_service_profile(&name, port);
                profiles.map(values).ok_or_else(|| no_such_port(&index, &name, port))
            }
            None => Err(outside(&target.to_string())),
        }
    }

    fn outbound(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal> {
        let client = namespace(from);
        let wanted = lookup::understand(target, client).map_err(malformed)?;
        let mut index = self.shared.index.write();
        let (service, port) = service_of(&index, wanted, &target.to_string())?;
        let policies = index.watch_outbound(&service, port, client);
        policies.map(values).ok_or_else(|| no_such_port(&index, &service, port))
    }

    fn plain_outbound(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal> {
        match self.outbound(target, from) {
            Err(Refusal::NotFound(why)) => {
                let leaving = leaving(&mut self.shared.index.write(), target, namespace(from));
                leaving.ok_or(Refusal::NotFound(why))
            }
            told => told,
        }
    }

    fn server_policy(
        &self,
        workload: &Workload,
        port: u16,
    ) -> Result<BoxStream<'static, ServerPolicy>, Refusal> {
        let pod = Name::new(&workload.namespace, &workload.pod);
        Ok(values(self.shared.index.write().watch_server(&pod, port)))
    }

    fn port_extension(
        &self,
        workload: &Workload,
        port: u16,
    ) -> Result<BoxStream<'static, PortExtension>, Refusal> {
        let pod = Name::new(&workload.namespace, &workload.pod);
        Ok(values(self.shared.index.write().watch_port(&pod, port)))
    }

    fn backend_extension(
        &self,
        key: &ResourceRef,
    ) -> Result<BoxStream<'static, BackendExtension>, Refusal> {
        if key.kind != "Service" {
            return Err(Refusal::NotFound(format!("{} has no extensions", key.kind)));
        }
        let service = Name::new(&key.namespace, &key.name);
        let port = key.port.unwrap_or_default();
        Ok(values(self.shared.index.write().watch_backend(&service, port)))
    }

    fn egress(&self, from: &Workload) -> Result<BoxStream<'static, EgressRules>, Refusal> {
        Ok(values(self.shared.index.write().watch_egress(namespace(from))))
    }

    fn certify(&self, asked: CertifyRequest) -> BoxFuture<'static, Result<Certified, Refusal>> {
        match self.authority.clone() {
            Some(authority) => async move { authority.certify(asked).await }.boxed(),
            None => future::ready(Err(Refusal::no_identity())).boxed(),
        }
    }

    fn gateway(
        &self,
        from: &Workload,
        token: String,
    ) -> BoxFuture<'static, Result<BoxStream<'static, GatewayConfig>, Refusal>> {
        let (this, from) = (self.clone(), from.clone());
        async move {
            let secure = match &this.authority {
                Some(authority) => {
                    is_gateway(authority, &token, &from).await?;
                    true
                }
                None => false,
            };
            let configs = values(this.shared.index.write().watch_gateway());
            // Keys are for nobody who cannot prove who it is.
            Ok(if secure { configs } else { configs.map(in_the_clear).boxed() })
        }
        .boxed()
    }

    fn trust_roots(&self, _: &Workload) -> Result<BoxStream<'static, TrustRoots>, Refusal> {
        self.authority.as_ref().ok_or_else(Refusal::no_identity)?.roots()
    }
}

/// What the edge is told holds private keys: it has to prove who it is, on this machine, too.
async fn is_gateway(authority: &Authority, token: &str, from: &Workload) -> Result<(), Refusal> {
    let owner = authority.owner(token).await?;
    let wanted = Name::new(&authority.settings().names.control_namespace, GATEWAY_NAME);
    if owner != wanted {
        tracing::warn!(%owner, ?from, "refused to tell it what the gateway serves");
        let message = format!("the token is the service account {owner}'s, not {wanted}'s");
        return Err(Refusal::PermissionDenied(message));
    }
    Ok(())
}

/// Without what takes keys.
fn in_the_clear(mut config: GatewayConfig) -> GatewayConfig {
    for port in &mut config.ports {
        port.https = None;
    }
    config
}

/// The namespace in which a client's short names are meant.
fn namespace(from: &Workload) -> &str {
    if from.namespace.is_empty() { "default" } else { &from.namespace }
}

fn service_of(index: &Index, wanted: Option<Wanted>, target: &str) -> Result<(Name, u16), Refusal> {
    match wanted {
        Some(Wanted::Service { name, port }) => Ok((name, port)),
        Some(Wanted::Address(addr)) => match index.objects().service_by_ip(addr.ip()) {
            Some(service) => Ok((service.name.clone(), addr.port())),
            None => Err(Refusal::NotFound(format!("{addr} is not the address of a Service"))),
        },
        None => Err(outside(target)),
    }
}

fn outside(target: &str) -> Refusal {
    Refusal::NotFound(format!("{target} is not the name of a Service"))
}

fn malformed(error: lookup::InvalidTarget) -> Refusal {
    Refusal::InvalidArgument(error.to_string())
}

fn no_such_port(index: &Index, service: &Name, port: u16) -> Refusal {
    Refusal::NotFound(match index.objects().service(service) {
        None => format!("Service {service} does not exist"),
        Some(object) => {
            let ports: Vec<String> = object.ports.iter().map(|p| p.port.to_string()).collect();
            format!("Service {service} has no port {port}; it has {}", ports.join(", "))
        }
    })
}

/// What a proxy that knows no egress rules is told of an address outside of the mesh, for as long as it
/// is there and there is anything to tell.
fn leaving(
    index: &mut Index,
    target: &Target,
    namespace: &str,
) -> Option<BoxStream<'static, OutboundPolicy>> {
    let Target::Addr(addr) = target else { return None };
    let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
    if !index.objects().is_outside(addr.ip()) {
        return None;
    }
    let rules = index.watch_egress(namespace);
    if rules.borrow().allow_everything() {
        return None;
    }
    let mut profiles = index.watch_address_profile(addr);
    let opaque = profiles.borrow().opaque;
    let becomes_known = async move {
        let known = |profile: &Arc<Profile>| profile.endpoint.is_some() || profile.name.is_some();
        // Without a sender nothing will change any more.
        if profiles.wait_for(known).await.is_err() {
            future::pending::<()>().await;
        }
    };
    let policies =
        WatchStream::new(rules).map(move |rules| egress_for_others(&rules, addr, opaque));
    let policies = policies.take_while(|policy| future::ready(policy.is_some()));
    let policies = policies.filter_map(future::ready).take_until(Box::pin(becomes_known));
    Some(policies.boxed())
}

/// What it is now, then what it becomes, until it is gone.
fn values<T: Clone + Send + Sync + 'static>(watched: Watched<T>) -> BoxStream<'static, T> {
    WatchStream::new(watched).map(|value| (*value).clone()).boxed()
}
