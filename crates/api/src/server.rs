//! The control plane's side: gRPC services over a [`ControlPlane`] that speaks the model.

use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::{self, BoxStream, StreamExt};
use linkerd2_proxy_api::destination::destination_server::{self, DestinationServer};
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update};
use linkerd2_proxy_api::identity::identity_server::{Identity, IdentityServer};
use linkerd2_proxy_api::identity::{CertifyRequest as PbCertifyRequest, CertifyResponse};
use linkerd2_proxy_api::inbound::inbound_server_policies_server::{
    InboundServerPolicies, InboundServerPoliciesServer,
};
use linkerd2_proxy_api::inbound::{PortSpec, Server};
use linkerd2_proxy_api::outbound::outbound_policies_server::{
    OutboundPolicies, OutboundPoliciesServer,
};
use linkerd2_proxy_api::outbound::{OutboundPolicy as PbOutboundPolicy, TrafficSpec};
use mesh_model::egress::EgressRules;
use mesh_model::gateway::GatewayConfig;
use mesh_model::inbound::{PortExtension, ServerPolicy};
use mesh_model::{Destination, OutboundPolicy, Profile, ResourceRef, Target};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::convert::identity::read_request;
use crate::convert::meta::{read_key, read_path, read_target};
use crate::convert::net::read_port;
use crate::error::ConversionError;
use crate::ext::extensions_server::{Extensions, ExtensionsServer};
use crate::ext::{
    self, EgressKey, GatewayKey, OutboundKey, PortKey, ResourceKey, TrustBundleRequest,
};
use crate::{BackendExtension, Certified, CertifyRequest, TrustRoots, WholePolicy, Wire, Workload};

/// Endpoints put into one message; more go into several. Keeps messages below the 4 MiB that
/// readers take by default.
const ENDPOINTS_A_MESSAGE: usize = 2_000;

/// What a control plane knows. Every stream yields its first item at once, and ends only with the
/// control plane or with what it is about; to send only changes is the control plane's business.
pub trait ControlPlane: Clone + Send + Sync + 'static {
    /// Endpoints of a `name:port`.
    ///
    /// # Errors
    /// See [`Refusal`]; so for all of these.
    fn destination(
        &self,
        path: &str,
        from: &Workload,
    ) -> Result<BoxStream<'static, Destination>, Refusal>;

    fn profile(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, Profile>, Refusal>;

    fn outbound(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal>;

    /// The same for proxies that ask by linkerd2-proxy-api alone. They may have to be told more where
    /// others are told by an extension.
    fn plain_outbound(
        &self,
        target: &Target,
        from: &Workload,
    ) -> Result<BoxStream<'static, OutboundPolicy>, Refusal> {
        self.outbound(target, from)
    }

    /// The policy of one of the workload's own ports.
    fn server_policy(
        &self,
        workload: &Workload,
        port: u16,
    ) -> Result<BoxStream<'static, ServerPolicy>, Refusal>;

    fn backend_extension(
        &self,
        key: &ResourceRef,
    ) -> Result<BoxStream<'static, BackendExtension>, Refusal>;

    /// Certifies a proxy's key. A mesh has no identity unless it says so here.
    fn certify(&self, _: CertifyRequest) -> BoxFuture<'static, Result<Certified, Refusal>> {
        future::ready(Err(Refusal::no_identity())).boxed()
    }

    /// The roots to trust.
    fn trust_roots(&self, _: &Workload) -> Result<BoxStream<'static, TrustRoots>, Refusal> {
        Err(Refusal::no_identity())
    }

    /// All the rules of one of the workload's own ports. Without it, proxies go by
    /// [`Self::server_policy`].
    fn port_extension(
        &self,
        _workload: &Workload,
        _port: u16,
    ) -> Result<BoxStream<'static, PortExtension>, Refusal> {
        Err(Refusal::Unimplemented("there is no such extension".into()))
    }

    /// What a workload may send out of the mesh. Without it, anything.
    fn egress(&self, _from: &Workload) -> Result<BoxStream<'static, EgressRules>, Refusal> {
        Err(Refusal::Unimplemented("there is no such extension".into()))
    }

    /// What the proxy at the edge listens on, for whoever proves by a token to be one.
    fn gateway(
        &self,
        _from: &Workload,
        _token: String,
    ) -> BoxFuture<'static, Result<BoxStream<'static, GatewayConfig>, Refusal>> {
        future::ready(Err(Refusal::Unimplemented("there is no such extension".into()))).boxed()
    }
}

/// Why a control plane does not answer a request. The texts are for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is known of the target: a proxy goes on to its original destination.
    NotFound(String),
    /// The request is malformed. Foreign proxies reset client connections on it.
    InvalidArgument(String),
    /// Whoever asks did not prove that it may.
    PermissionDenied(String),
    /// This mesh does not have that.
    Unimplemented(String),
    /// Not now, but asking again makes sense.
    Unavailable(String),
}

impl Refusal {
    /// The answer about identity in a mesh that has none.
    pub fn no_identity() -> Self {
        Self::Unimplemented("this mesh has no identity".into())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(message) => Self::not_found(message),
            Refusal::InvalidArgument(message) => Self::invalid_argument(message),
            Refusal::PermissionDenied(message) => Self::permission_denied(message),
            Refusal::Unimplemented(message) => Self::unimplemented(message),
            Refusal::Unavailable(message) => Self::unavailable(message),
        }
    }
}

/// Destination, outbound and inbound policy, identity, and our extensions.
pub fn control_plane_routes(control_plane: impl ControlPlane) -> Routes {
    let service = Service(control_plane);
    Routes::new(DestinationServer::new(service.clone()))
        .add_service(OutboundPoliciesServer::new(service.clone()))
        .add_service(InboundServerPoliciesServer::new(service.clone()))
        .add_service(IdentityServer::new(service.clone()))
        .add_service(ExtensionsServer::new(service))
}

#[derive(Clone)]
struct Service<C>(C);

type Messages<T> = BoxStream<'static, Result<T, Status>>;
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl<C: ControlPlane> destination_server::Destination for Service<C> {
    type GetStream = Messages<Update>;
    type GetProfileStream = Messages<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Answer<Self::GetStream> {
        let GetDestination { path, context_token, .. } = request.into_inner();
        if path.is_empty() {
            return Err(malformed(&ConversionError::missing("path")));
        }
        let updates = self.0.destination(&path, &asking(&context_token))?;
        let parts = updates.flat_map(|update| stream::iter(split(update)));
        Ok(Response::new(messages(parts.boxed(), format!("destination {path}"))))
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Answer<Self::GetProfileStream> {
        let GetDestination { path, context_token, .. } = request.into_inner();
        let target = read_path(&path, "path").map_err(|e| malformed(&e))?;
        let profiles = self.0.profile(&target, &asking(&context_token))?;
        Ok(Response::new(messages(profiles, format!("profile {path}"))))
    }
}

impl<C: ControlPlane> Service<C> {
    fn outbound(&self, spec: TrafficSpec) -> Result<Messages<PbOutboundPolicy>, Status> {
        let target = read_target(spec.target).map_err(|e| malformed(&e))?;
        let policies = self.0.plain_outbound(&target, &asking(&spec.source_workload))?;
        Ok(messages(policies, format!("outbound policy {target}")))
    }

    fn inbound(&self, spec: &PortSpec) -> Result<Messages<Server>, Status> {
        let (workload, port) = own_port(&spec.workload, spec.port)?;
        let policies = self.0.server_policy(&workload, port)?;
        Ok(messages(policies, format!("inbound policy {workload}:{port}")))
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> OutboundPolicies for Service<C> {
    type WatchStream = Messages<PbOutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Answer<PbOutboundPolicy> {
        first(self.outbound(request.into_inner())?).await
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Answer<Self::WatchStream> {
        self.outbound(request.into_inner()).map(Response::new)
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> InboundServerPolicies for Service<C> {
    type WatchPortStream = Messages<Server>;

    async fn get_port(&self, request: Request<PortSpec>) -> Answer<Server> {
        first(self.inbound(request.get_ref())?).await
    }

    async fn watch_port(&self, request: Request<PortSpec>) -> Answer<Self::WatchPortStream> {
        self.inbound(request.get_ref()).map(Response::new)
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> Extensions for Service<C> {
    type WatchBackendStream = Messages<ext::BackendExtension>;

    async fn watch_backend(
        &self,
        request: Request<ResourceKey>,
    ) -> Answer<Self::WatchBackendStream> {
        let key = read_key(request.into_inner()).map_err(|e| malformed(&e))?;
        let extensions = self.0.backend_extension(&key)?;
        Ok(Response::new(messages(extensions, format!("extension of {key}"))))
    }

    type WatchTrustBundleStream = Messages<ext::TrustBundle>;

    async fn watch_trust_bundle(
        &self,
        request: Request<TrustBundleRequest>,
    ) -> Answer<Self::WatchTrustBundleStream> {
        let roots = self.0.trust_roots(&asking(&request.get_ref().workload))?;
        Ok(Response::new(messages(roots, "roots to trust".into())))
    }

    type WatchPortAuthorizationStream = Messages<ext::PortAuthorization>;

    async fn watch_port_authorization(
        &self,
        request: Request<PortKey>,
    ) -> Answer<Self::WatchPortAuthorizationStream> {
        let PortKey { workload, port } = request.into_inner();
        let (workload, port) = own_port(&workload, port)?;
        let rules = self.0.port_extension(&workload, port)?;
        Ok(Response::new(messages(rules, format!("rules of {workload}:{port}"))))
    }

    type WatchOutboundStream = Messages<ext::OutboundPolicy>;

    async fn watch_outbound(
        &self,
        request: Request<OutboundKey>,
    ) -> Answer<Self::WatchOutboundStream> {
        let OutboundKey { workload, target } = request.into_inner();
        let target = read_path(&target, "target").map_err(|e| malformed(&e))?;
        let policies = self.0.outbound(&target, &asking(&workload))?;
        let whole = policies.map(WholePolicy).boxed();
        Ok(Response::new(messages(whole, format!("whole outbound policy {target}"))))
    }

    type WatchGatewayStream = Messages<ext::GatewayConfig>;

    async fn watch_gateway(
        &self,
        request: Request<GatewayKey>,
    ) -> Answer<Self::WatchGatewayStream> {
        let GatewayKey { workload, token } = request.into_inner();
        let configs = self.0.gateway(&asking(&workload), token).await?;
        Ok(Response::new(messages(configs, format!("gateway of {workload:?}"))))
    }

    type WatchEgressStream = Messages<ext::EgressRules>;

    async fn watch_egress(&self, request: Request<EgressKey>) -> Answer<Self::WatchEgressStream> {
        let from = asking(&request.get_ref().workload);
        let rules = self.0.egress(&from)?;
        Ok(Response::new(messages(rules, format!("egress of {from}"))))
    }
}

#[tonic::async_trait]
impl<C: ControlPlane> Identity for Service<C> {
    async fn certify(&self, request: Request<PbCertifyRequest>) -> Answer<CertifyResponse> {
        let request = read_request(request.into_inner()).map_err(|e| malformed(&e))?;
        let certified = self.0.certify(request).await?;
        let answer = certified.encode().map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(answer))
    }
}

/// A port of the workload that asks.
fn own_port(workload: &str, port: u32) -> Result<(Workload, u16), Status> {
    let port = read_port(port, "port").map_err(|e| malformed(&e))?;
    let workload = Workload::parse(workload)
        .ok_or_else(|| malformed(&ConversionError::invalid("workload", "names no pod")))?;
    Ok((workload, port))
}

fn malformed(error: &ConversionError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Who asks, as far as it says so: it only decides what names without a namespace mean.
fn asking(context: &str) -> Workload {
    Workload::parse(context).unwrap_or_default()
}

/// What goes out. A value that breaks the rules of the API is logged and withheld, and the reader
/// keeps the last good one. If there is none yet, the stream fails instead: a silent one would hang
/// the reader.
fn messages<T>(values: BoxStream<'static, T>, about: String) -> Messages<T::Proto>
where
    T: Wire + Send + 'static,
    T::Proto: Send + 'static,
{
    let mut sent = false;
    values
        .filter_map(move |value| {
            let message = match value.encode() {
                Ok(proto) => {
                    sent = true;
                    Some(Ok(proto))
                }
                Err(error) => {
                    tracing::error!(%about, %error, sent, "withheld a message that cannot be sent");
                    (!sent).then(|| Err(Status::internal(format!("{about} {error}"))))
                }
            };
            std::future::ready(message)
        })
        .boxed()
}

async fn first<T>(mut messages: Messages<T>) -> Answer<T> {
    match messages.next().await {
        Some(message) => message.map(Response::new),
        None => Err(Status::unavailable("the control plane is shutting down")),
    }
}

/// Large additions go in parts.
fn split(update: Destination) -> Vec<Destination> {
    match update {
        Destination::Add { endpoints, labels } if endpoints.len() > ENDPOINTS_A_MESSAGE => {
            endpoints
                .chunks(ENDPOINTS_A_MESSAGE)
                .map(|part| Destination::Add { endpoints: part.to_vec(), labels: labels.clone() })
                .collect()
        }
        Destination::Remove(addrs) if addrs.len() > ENDPOINTS_A_MESSAGE => addrs
            .chunks(ENDPOINTS_A_MESSAGE)
            .map(|part| Destination::Remove(part.to_vec()))
            .collect(),
        other => vec![other],
    }
}
