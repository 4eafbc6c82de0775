//! The proxy's side: watches on the control plane, in terms of the model.
//!
//! A watch ends with an error or without one; to watch again is the caller's business, as it knows
//! how long to wait and what to go on with meanwhile.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::destination::GetDestination;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use linkerd2_proxy_api::inbound::PortSpec;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::outbound::TrafficSpec;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use mesh_model::egress::EgressRules;
use mesh_model::gateway::GatewayConfig;
use mesh_model::inbound::{PortExtension, ServerPolicy};
use mesh_model::{Destination, OutboundPolicy, Profile, ResourceRef, Target};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::convert::identity::write_request;
use crate::convert::meta::{write_key, write_target};
use crate::ext::extensions_client::ExtensionsClient;
use crate::ext::{EgressKey, GatewayKey, OutboundKey, PortKey, TrustBundleRequest};
use crate::limit;
use crate::{
    BackendExtension, Certified, CertifyRequest, TrustRoots, Update, WholePolicy, Wire, Workload,
};

/// With a handshake, if there is one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a control plane says, until it or the connection ends.
pub type UpdateStream<T> = BoxStream<'static, Result<Update<T>, Status>>;

/// Asks one control plane on behalf of one workload. Clones share the connection.
#[derive(Clone, Debug)]
pub struct ControlClient {
    channel: Channel,
    workload: Workload,
}

/// A channel over connections that `connect` makes: when it is used, and again after every failure.
/// It notices within 13 s that the other side went silent. Needs a tokio runtime.
pub fn channel<F, Io>(connect: impl Fn() -> F + Send + Sync + 'static) -> Channel
where
    F: Future<Output = io::Result<Io>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connect = Arc::new(connect);
    let connector = tower::service_fn(move |_: http::Uri| {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connect());
        async move {
            match connecting.await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    });
    // The name goes into `:authority` only.
    Endpoint::from_static("http://control.mesh")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}

impl ControlClient {
    pub fn new(channel: Channel, workload: Workload) -> Self {
        Self { channel, workload }
    }

    /// A plaintext channel to an address; see [`channel`].
    pub fn lazy_channel(addr: SocketAddr) -> Channel {
        channel(move || async move {
            let stream = TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    /// Routes, backends and breaker of a target.
    ///
    /// # Errors
    /// `NotFound` when the control plane knows nothing of the target; otherwise it failed to answer.
    pub async fn watch_outbound(
        &self,
        target: &Target,
    ) -> Result<UpdateStream<OutboundPolicy>, Status> {
        let request = TrafficSpec {
            source_workload: self.workload.encode(),
            target: Some(write_target(target)),
        };
        let mut client = OutboundPoliciesClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.watch(request).await?))
    }

    /// Routes, backends and breaker of a target, with what linkerd2-proxy-api cannot say of them.
    ///
    /// # Errors
    /// As [`Self::watch_outbound`], and `Unimplemented` when the control plane has no extensions.
    pub async fn watch_whole_outbound(
        &self,
        target: &Target,
    ) -> Result<UpdateStream<OutboundPolicy>, Status> {
        let request = OutboundKey { workload: self.workload.encode(), target: target.to_string() };
        let mut client = ExtensionsClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        let policies = updates::<WholePolicy>(client.watch_outbound(request).await?);
        Ok(mapped(policies, |WholePolicy(policy)| policy))
    }

    /// Endpoints of a balancer's `name:port`. The first `Add` of each watch replaces what was
    /// known before.
    ///
    /// # Errors
    /// As [`Self::watch_outbound`].
    pub async fn watch_destination(&self, path: &str) -> Result<UpdateStream<Destination>, Status> {
        let mut client = DestinationClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.get(self.destination(path)).await?))
    }

    /// What else is known of a target.
    ///
    /// # Errors
    /// As [`Self::watch_outbound`].
    pub async fn watch_profile(&self, target: &Target) -> Result<UpdateStream<Profile>, Status> {
        let request = self.destination(&target.to_string());
        let mut client = DestinationClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.get_profile(request).await?))
    }

    /// The policy of one of the workload's own ports.
    ///
    /// # Errors
    /// As [`Self::watch_outbound`].
    pub async fn watch_port(&self, port: u16) -> Result<UpdateStream<ServerPolicy>, Status> {
        let request = PortSpec { workload: self.workload.encode(), port: u32::from(port) };
        let mut client = InboundServerPoliciesClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.watch_port(request).await?))
    }

    /// What linkerd2-proxy-api cannot say of a backend.
    ///
    /// # Errors
    /// `Unimplemented` when the control plane has no extensions; otherwise as
    /// [`Self::watch_outbound`].
    pub async fn watch_backend(
        &self,
        key: &ResourceRef,
    ) -> Result<UpdateStream<BackendExtension>, Status> {
        let request = write_key(key, self.workload.to_string());
        let mut client = ExtensionsClient::new(self.channel.clone());
        Ok(updates(client.watch_backend(request).await?))
    }

    /// Has a key certified for `id`, by a request in DER and a token that proves the right to it. How
    /// long to wait is the caller's business.
    ///
    /// # Errors
    /// `Unimplemented` in a mesh without identity, `PermissionDenied` when the token does not prove
    /// that much, `InvalidArgument` when the request is of no use; `Internal` when the answer makes no
    /// sense.
    pub async fn certify(
        &self,
        id: &str,
        token: &str,
        request_der: Vec<u8>,
    ) -> Result<Certified, Status> {
        let request = CertifyRequest { id: id.into(), token: token.into(), request: request_der };
        let mut client = IdentityClient::new(self.channel.clone());
        let answer = client.certify(write_request(request)).await?;
        Certified::from_proto(answer.into_inner())
            .map_err(|error| Status::internal(format!("the answer to Certify: {error}")))
    }

    /// The roots to trust, in PEM.
    ///
    /// # Errors
    /// `Unimplemented` in a mesh without identity, or when the control plane has no extensions.
    pub async fn watch_trust_bundle(&self) -> Result<UpdateStream<String>, Status> {
        let request = TrustBundleRequest { workload: self.workload.to_string() };
        let mut client = ExtensionsClient::new(self.channel.clone());
        let roots = updates::<TrustRoots>(client.watch_trust_bundle(request).await?);
        Ok(mapped(roots, |roots| roots.pem))
    }

    /// All the rules of one of the workload's own ports.
    ///
    /// # Errors
    /// As [`Self::watch_backend`].
    pub async fn watch_port_extension(
        &self,
        port: u16,
    ) -> Result<UpdateStream<PortExtension>, Status> {
        let request = PortKey { workload: self.workload.encode(), port: u32::from(port) };
        let mut client = ExtensionsClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.watch_port_authorization(request).await?))
    }

    /// What the proxy at the edge listens on. The token proves that it is one; it is empty in a mesh
    /// without identity.
    ///
    /// # Errors
    /// `PermissionDenied` when the token does not prove that; otherwise as [`Self::watch_backend`].
    pub async fn watch_gateway(&self, token: &str) -> Result<UpdateStream<GatewayConfig>, Status> {
        let request = GatewayKey { workload: self.workload.encode(), token: token.into() };
        let mut client = ExtensionsClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.watch_gateway(request).await?))
    }

    /// What the workload may send out of the mesh.
    ///
    /// # Errors
    /// As [`Self::watch_backend`].
    pub async fn watch_egress(&self) -> Result<UpdateStream<EgressRules>, Status> {
        let request = EgressKey { workload: self.workload.encode() };
        let mut client = ExtensionsClient::new(self.channel.clone())
            .max_decoding_message_size(limit::MESSAGE_BYTES);
        Ok(updates(client.watch_egress(request).await?))
    }

    fn destination(&self, path: &str) -> GetDestination {
        GetDestination {
            scheme: "k8s".into(),
            path: path.into(),
            context_token: self.workload.encode(),
        }
    }
}

fn mapped<T: 'static, U: 'static>(
    updates: UpdateStream<T>,
    map: impl Fn(T) -> U + Copy + Send + 'static,
) -> UpdateStream<U> {
    let read = move |update| match update {
        Update::Valid(value) => Update::Valid(map(value)),
        Update::Invalid(error) => Update::Invalid(error),
    };
    updates.map(move |message| message.map(read)).boxed()
}

fn updates<T>(response: tonic::Response<Streaming<T::Proto>>) -> UpdateStream<T>
where
    T: Wire + 'static,
    T::Proto: Send + 'static,
{
    let read = |proto| match T::from_proto(proto) {
        Ok(value) => Update::Valid(value),
        Err(error) => Update::Invalid(error),
    };
    response.into_inner().map(move |message| message.map(read)).boxed()
}
