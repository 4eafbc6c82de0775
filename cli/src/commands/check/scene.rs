//! What checks look at: the mesh, and answers that several of them need, each asked for once.

use std::time::Duration;

use mesh_api::ext;
use tokio::sync::OnceCell;

use crate::connect::{Mesh, locate};
use crate::context::Context;
use crate::error::CliError;
use crate::state_dir::{DEFAULT_MESH, StateDir, StateRoot};

const CONNECTING: Duration = Duration::from_secs(3);

/// An answer, or why there is none.
type Answer<T> = OnceCell<Result<T, String>>;

#[derive(Debug)]
pub(super) struct Scene {
    /// The mesh that is meant, if it runs.
    pub(super) dir: Result<StateDir, CliError>,
    /// The connection to its control plane, and what that said about itself.
    pub(super) mesh: Result<(Mesh, ext::InfoReply), CliError>,
    pub(super) state: StateRoot,
    /// The name the user gave, or the default.
    pub(super) name: String,
    namespace: String,
    pods: Answer<Vec<ext::Pod>>,
    services: Answer<Vec<ext::Workload>>,
    proxies: Answer<Vec<ext::ProxyRow>>,
}

impl Scene {
    pub(super) async fn look(namespace: Option<String>, cx: &mut Context) -> Self {
        let dir = locate(&cx.global, &cx.state);
        let greeting = async {
            let mesh = cx.connect().await?.silent();
            let info = mesh.info().await?;
            Ok((mesh, info))
        };
        let late = || {
            Err(CliError::timed_out(format!("it did not answer within {} s", CONNECTING.as_secs())))
        };
        let mesh = tokio::time::timeout(CONNECTING, greeting).await.unwrap_or_else(|_| late());
        Self {
            dir,
            mesh,
            state: cx.state.clone(),
            name: cx.global.local.clone().unwrap_or_else(|| DEFAULT_MESH.to_owned()),
            namespace: namespace.unwrap_or_default(),
            pods: OnceCell::new(),
            services: OnceCell::new(),
            proxies: OnceCell::new(),
        }
    }

    /// Whether there is no mesh that could be checked.
    pub(super) fn is_absent(&self) -> bool {
        self.dir.is_err()
    }

    /// The connection. Checks that need the control plane run only if it is there.
    pub(super) fn mesh(&self) -> Result<&Mesh, String> {
        self.mesh.as_ref().map(|(mesh, _)| mesh).map_err(ToString::to_string)
    }

    pub(super) fn info(&self) -> Result<&ext::InfoReply, String> {
        self.mesh.as_ref().map(|(_, info)| info).map_err(ToString::to_string)
    }

    /// Every running or starting pod, terminating ones left out.
    pub(super) async fn pods(&self) -> Result<&[ext::Pod], String> {
        let asked = async {
            let found = self.mesh()?.resources(self.all("pod")).await.map_err(|e| e.to_string())?;
            let pods = found.into_iter().flat_map(|workload| workload.pods);
            Ok(pods.filter(|pod| !pod.terminating).collect())
        };
        slice(self.pods.get_or_init(|| asked).await)
    }

    pub(super) async fn services(&self) -> Result<&[ext::Workload], String> {
        let asked =
            async { self.mesh()?.resources(self.all("service")).await.map_err(|e| e.to_string()) };
        slice(self.services.get_or_init(|| asked).await)
    }

    pub(super) async fn proxies(&self) -> Result<&[ext::ProxyRow], String> {
        let asked =
            async { self.mesh()?.proxies(self.all("pod")).await.map_err(|e| e.to_string()) };
        slice(self.proxies.get_or_init(|| asked).await)
    }

    /// All objects of a kind, in the namespace that was asked for.
    pub(super) fn all(&self, kind: &str) -> ext::Selector {
        ext::Selector {
            kind: kind.to_owned(),
            namespace: self.namespace.clone(),
            ..Default::default()
        }
    }
}

fn slice<T>(answer: &Result<Vec<T>, String>) -> Result<&[T], String> {
    answer.as_deref().map_err(Clone::clone)
}
