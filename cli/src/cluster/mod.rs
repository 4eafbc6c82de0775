//! A Kubernetes cluster as meshctl reaches it: with the user's own kubeconfig and rights, and nothing else.
//!
//! [`kubeconfig`] finds the cluster that is meant, [`refusal`](mod@refusal) says what its errors mean, [`tunnel`] is the way to a pod's
//! port, and [`objects`] reads and writes objects of every kind that the mesh consists of.

pub mod kubeconfig;
pub mod objects;
pub mod refusal;
#[cfg(test)]
mod tests;
pub mod tunnel;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use kube::Client;

use crate::error::CliError;

pub use kubeconfig::KubeFiles;
pub use refusal::refusal;

/// How long the API server may take for an answer. A command that reads does so within 5 s, or says that it can't.
pub const ANSWER: Duration = Duration::from_millis(4_500);
/// How long a connection to it may take.
const CONNECT: Duration = Duration::from_secs(3);

/// The name of the control plane's Deployment, Service, service account and of its pods' label.
pub const CONTROL_PLANE: &str = "mesh-control";

/// The Secret that holds the next root and issuer while they are replaced.
pub const NEXT_ISSUER: &str = "mesh-identity-next";

/// An answer that is waited for.
pub type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, CliError>> + Send + 'a>>;

/// A cluster that is meant. That it answers is another matter.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    /// The kubeconfig's name for it.
    pub context: String,
    /// The address of its API server.
    pub server: String,
    /// The namespace of the control plane.
    pub mesh_namespace: String,
}

impl Cluster {
    /// Waits for an answer of the API server, not for ever; `doing` completes "not allowed to …". Boxed, as the
    /// futures of requests are large.
    pub fn ask<'a, T: 'a>(
        &'a self,
        doing: &'a str,
        asked: impl Future<Output = Result<T, kube::Error>> + Send + 'a,
    ) -> Asked<'a, T> {
        Box::pin(async move {
            match tokio::time::timeout(ANSWER, asked).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(refusal(self, doing, &error)),
                Err(_) => Err(refusal::silence(self)),
            }
        })
    }

    /// `kubectl --context NAME -n NAMESPACE`, for hints.
    pub fn kubectl(&self) -> String {
        format!("kubectl --context {} -n {}", self.context, self.mesh_namespace)
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("context", &self.context)
            .field("server", &self.server)
            .field("mesh_namespace", &self.mesh_namespace)
            .finish_non_exhaustive()
    }
}
