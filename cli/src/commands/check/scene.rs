//! What checks look at: the mesh, and answers that several of them need, each asked for once.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use mesh_api::ext;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::authority::Held;
use super::catalog::Outcome;
use crate::cluster::{CONTROL_PLANE, Cluster};
use crate::connect::{Mesh, Place};
use crate::context::Context;
use crate::error::CliError;
use crate::state_dir::{DEFAULT_MESH, StateDir, StateRoot};

const CONNECTING: Duration = Duration::from_secs(4);

/// An answer, or why there is none.
type Answer<T> = OnceCell<Result<T, String>>;

#[derive(Debug)]
pub(super) struct Scene {
    /// The mesh that is meant. Of a local one: if it runs.
    place: Result<Place, CliError>,
    /// What the API server says about itself, in a cluster.
    api: Result<ApiServer, CliError>,
    /// Whether a mesh is installed there.
    installed: Result<(), CliError>,
    /// The connection to its control plane, and what that said about itself.
    pub(super) mesh: Result<(Mesh, ext::InfoReply), CliError>,
    pub(super) state: StateRoot,
    /// The name the user gave, or the default.
    pub(super) name: String,
    namespace: String,
    pods: Answer<Vec<ext::Pod>>,
    services: Answer<Vec<ext::Workload>>,
    proxies: Answer<Vec<ext::ProxyRow>>,
    authority: OnceCell<Result<Held, Outcome>>,
}

/// An API server that answered.
#[derive(Clone, Debug)]
pub(super) struct ApiServer {
    /// `v1.36.2`
    pub(super) version: String,
    pub(super) major: u32,
    pub(super) minor: u32,
    /// Its clock, and ours when it was asked.
    pub(super) date: Option<SystemTime>,
    pub(super) asked: SystemTime,
}

impl Scene {
    pub(super) async fn look(namespace: Option<String>, cx: &mut Context) -> Self {
        let place = cx.place().await;
        let nobody = || CliError::unreachable("no cluster is meant");
        let (api, installed) = match &place {
            Ok(Place::Cluster(cluster)) => match ApiServer::greet(cluster).await {
                Ok(api) => (Ok(api), installed(cluster).await),
                Err(error) => (Err(error.clone()), Err(error)),
            },
            _ => (Err(nobody()), Err(nobody())),
        };
        let in_cluster = matches!(place, Ok(Place::Cluster(_)));
        let mesh = match &installed {
            Err(error) if in_cluster => Err(error.clone()),
            _ => greet(cx).await,
        };
        Self {
            place,
            api,
            installed,
            mesh,
            state: cx.state.clone(),
            name: cx.global.local.clone().unwrap_or_else(|| DEFAULT_MESH.to_owned()),
            namespace: namespace.unwrap_or_default(),
            pods: OnceCell::new(),
            services: OnceCell::new(),
            proxies: OnceCell::new(),
            authority: OnceCell::new(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster().is_some()
    }

    pub(super) fn cluster(&self) -> Option<&Cluster> {
        self.place.as_ref().ok().and_then(Place::cluster)
    }

    /// The directory of a local mesh, if it runs.
    pub(super) fn dir(&self) -> Result<&StateDir, CliError> {
        let place = self.place.as_ref().map_err(Clone::clone)?;
        place.local().ok_or_else(|| CliError::unreachable("the mesh is in a cluster"))
    }

    pub(super) fn api(&self) -> Result<&ApiServer, &CliError> {
        self.api.as_ref()
    }

    pub(super) fn installed(&self) -> Result<(), &CliError> {
        self.installed.as_ref().copied()
    }

    /// Whether there is nothing that could be checked; `pre`: whether there is nowhere for a mesh to be.
    pub(super) fn is_absent(&self, pre: bool) -> bool {
        match (self.is_cluster(), pre) {
            (true, true) => self.api.is_err(),
            (true, false) => self.installed.is_err(),
            (false, true) => false,
            (false, false) => self.place.is_err(),
        }
    }

    /// Who certifies, or why that can't be looked at.
    pub(super) async fn authority(&self) -> Result<&Held, &Outcome> {
        let held = async {
            match &self.place {
                Ok(place) => Held::of(place).await,
                Err(error) => Err(Outcome::Skipped(error.message.clone())),
            }
        };
        self.authority.get_or_init(|| held).await.as_ref()
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
            let pods = pods.filter(|pod| !pod.terminating);
            let Some(cluster) = self.cluster() else { return Ok(pods.collect()) };
            // What is not to be in the mesh is nobody's fault.
            let wanted = in_the_mesh(cluster).await.map_err(|error| error.message)?;
            Ok(pods.filter(|pod| pod.meshed || wanted.contains(&pod.namespace)).collect())
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

/// The local mesh or the cluster's, if its control plane answers.
async fn greet(cx: &mut Context) -> Result<(Mesh, ext::InfoReply), CliError> {
    let greeting = async {
        let mesh = cx.connect().await?.silent();
        let info = mesh.info().await?;
        Ok((mesh, info))
    };
    let late =
        || Err(CliError::timed_out(format!("it did not answer within {} s", CONNECTING.as_secs())));
    tokio::time::timeout(CONNECTING, greeting).await.unwrap_or_else(|_| late())
}

async fn installed(cluster: &Cluster) -> Result<(), CliError> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
    let doing = format!("read Deployment/{CONTROL_PLANE} in {}", cluster.mesh_namespace);
    match cluster.ask(&doing, api.get_metadata_opt(CONTROL_PLANE)).await? {
        Some(_) => Ok(()),
        None => Err(CliError::unreachable(format!(
            "there is no mesh in the namespace {} of the kube context \"{}\"",
            cluster.mesh_namespace, cluster.context
        ))
        .hint("meshctl check --pre, then meshctl install")),
    }
}

/// Namespaces whose pods get a proxy.
async fn in_the_mesh(cluster: &Cluster) -> Result<Vec<String>, CliError> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let labelled = ListParams::default().labels("meshctl.dev/inject=enabled");
    let found = cluster.ask("list namespaces", api.list_metadata(&labelled)).await?;
    Ok(found.iter().map(ResourceExt::name_any).collect())
}

impl ApiServer {
    async fn greet(cluster: &Cluster) -> Result<Self, CliError> {
        let asked = SystemTime::now();
        let greeting = async {
            let request = http::Request::get("/version").body(kube::client::Body::empty());
            let response = cluster.client.send(request.map_err(kube::Error::HttpError)?).await?;
            let date = response.headers().get(http::header::DATE).cloned();
            let status = response.status();
            let body = response.into_body().collect_bytes().await?;
            Ok((status, date, body))
        };
        let (status, date, body) = cluster.ask("read its version", greeting).await?;
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        if !status.is_success() {
            return Err(CliError::unreachable(format!(
                "the API server {} does not tell its version: {status} {}",
                cluster.server,
                text("message")
            ))
            .hint(format!("kubectl --context {} auth whoami", cluster.context)));
        }
        // Some vendors write `31+`.
        let number = |key: &str| {
            text(key).trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default()
        };
        let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        Ok(Self {
            version: text("gitVersion"),
            major: number("major"),
            minor: number("minor"),
            date,
            asked,
        })
    }
}

fn slice<T>(answer: &Result<Vec<T>, String>) -> Result<&[T], String> {
    answer.as_deref().map_err(Clone::clone)
}
