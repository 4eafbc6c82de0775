//! The way to a port of a pod: the API server's port-forward, so that who may reach it is decided by Kubernetes' RBAC.

use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Uri};

use super::objects::has_condition;
use super::refusal::{self, carried};
use super::{CONTROL_PLANE, Cluster};
use crate::error::{CliError, innermost};

/// Where the control plane's API for meshctl is, on the pod's loopback.
const API_PORT: u16 = 8085;

impl Cluster {
    /// A channel to the API of the control plane. Every connection of it goes to a pod that is ready then.
    pub async fn control_channel(&self) -> Result<Channel, CliError> {
        let cluster = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let cluster = cluster.clone();
            // Boxed, as the future is large.
            Box::pin(async move {
                let pod = cluster.control_pod().await?;
                let stream = cluster.forward(&cluster.mesh_namespace, &pod, API_PORT).await?;
                Ok::<_, CliError>(TokioIo::new(stream))
            })
        });
        // The name in the URI goes into the `:authority` header only.
        let endpoint = Endpoint::from_static("http://control.mesh");
        let connecting = endpoint.connect_with_connector(connector);
        match tokio::time::timeout(super::ANSWER, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(carried(&error).cloned().unwrap_or_else(|| {
                CliError::unreachable(format!(
                    "the control plane in {} does not answer: {}",
                    self.mesh_namespace,
                    innermost(&error)
                ))
                .hint("meshctl check")
            })),
            Err(_) => Err(refusal::silence(self)),
        }
    }

    /// The control plane's pods, ready or not.
    pub async fn control_pods(&self) -> Result<Vec<Pod>, CliError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.mesh_namespace);
        let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROL_PLANE}"));
        let doing = format!("list pods in the namespace {}", self.mesh_namespace);
        Ok(self.ask(&doing, api.list(&ours)).await?.items)
    }

    /// The name of a control-plane pod that is ready.
    pub async fn control_pod(&self) -> Result<String, CliError> {
        let namespace = &self.mesh_namespace;
        let found = self.control_pods().await?;
        if found.is_empty() {
            return Err(CliError::unreachable(format!(
                "there is no mesh in the namespace {namespace} of the kube context \"{}\"",
                self.context
            ))
            .hint("meshctl install; or --mesh-namespace NS, or --local for a local mesh"));
        }
        let count = found.len();
        let ready = found
            .into_iter()
            .find(|pod| has_condition(pod, "Ready") && pod.metadata.deletion_timestamp.is_none());
        ready.and_then(|pod| pod.metadata.name).ok_or_else(|| {
            CliError::unreachable(format!(
                "none of the {count} control-plane pods in {namespace} is ready"
            ))
            .hint("meshctl check, which says why")
        })
    }

    /// Opens a connection to a port of a pod.
    pub async fn forward(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, CliError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let doing =
            format!("open a port-forward (create and get on pods/portforward in {namespace})");
        let mut forwarder = self.ask(&doing, pods.portforward(pod, &[port])).await?;
        let stream = forwarder.take_stream(port);
        stream.ok_or_else(|| CliError::failed(format!("the port-forward to {pod} has no stream")))
    }
}
