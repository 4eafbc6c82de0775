//! The connection to the control plane: which mesh is meant, how it is reached, and what its refusals mean.
//!
//! Every answer has a deadline, so that no command hangs.

use std::error::Error as _;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_api::Workload;
use mesh_api::client::ControlClient;
use mesh_api::ext::mesh_client::MeshClient;
use mesh_api::ext::{self, Selector};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

use crate::args::Global;
use crate::cluster::Cluster;
use crate::cluster::refusal::carried_by_status;
use crate::context::Context;
use crate::error::{CliError, Kind, innermost};
use crate::output::Ui;
use crate::state_dir::{StateDir, StateRoot};

/// How long an answer may take. The control plane gives each proxy 2 s, so this is never the first to give up.
const DEADLINE: Duration = Duration::from_secs(10);
/// After this long the user is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers about large meshes are larger than gRPC's usual 4 MiB.
const MAX_MESSAGE: usize = 64 << 20;

/// A mesh that commands can be about.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this machine.
    Local(StateDir),
    /// In a cluster.
    Cluster(Cluster),
}

impl Place {
    /// The directory of a local mesh.
    pub fn local(&self) -> Option<&StateDir> {
        match self {
            Self::Local(dir) => Some(dir),
            Self::Cluster(_) => None,
        }
    }

    /// The cluster of a mesh in one.
    pub fn cluster(&self) -> Option<&Cluster> {
        match self {
            Self::Local(_) => None,
            Self::Cluster(cluster) => Some(cluster),
        }
    }
}

impl Context {
    /// The mesh that is meant: what the flags say; a running local mesh if no kube context is set; the current
    /// context.
    pub async fn place(&self) -> Result<Place, CliError> {
        if self.global.local.is_some() {
            return locate(&self.global, &self.state).map(Place::Local);
        }
        match self.kube.choose(&self.global)? {
            Some(chosen) => Ok(Place::Cluster(chosen.cluster(&self.global).await?)),
            None => locate(&self.global, &self.state).map(Place::Local),
        }
    }

    /// The cluster that is meant, for commands that make no sense on one machine.
    pub async fn cluster(&self) -> Result<Cluster, CliError> {
        if self.global.local.is_some() {
            return Err(CliError::usage("this is done to clusters, not to local meshes")
                .hint("meshctl local up -f FILE starts a local mesh"));
        }
        let chosen = self.kube.choose(&self.global)?.ok_or_else(|| {
            CliError::unreachable("no kube context is set")
                .hint("--context NAME, or kubectl config use-context NAME")
        })?;
        let cluster = chosen.cluster(&self.global).await?;
        self.tell(&Place::Cluster(cluster.clone()));
        Ok(cluster)
    }

    /// Connects to the mesh that is meant.
    pub async fn connect(&mut self) -> Result<Mesh, CliError> {
        let place = self.place().await?;
        self.tell(&place);
        let mesh = Mesh::at(place).await.map_err(|error| self.or_local(error))?;
        Ok(Mesh { waiting: Some(self.ui.clone()), ..mesh })
    }

    fn tell(&self, place: &Place) {
        if self.global.verbose {
            let which = match place {
                Place::Local(dir) => {
                    format!("local \"{}\" at {}", dir.name, dir.control_socket().display())
                }
                Place::Cluster(cluster) => format!(
                    "cluster \"{}\" at {}, namespace {}",
                    cluster.context, cluster.server, cluster.mesh_namespace
                ),
            };
            self.ui.clone().note(&format!("mesh: {which}"));
        }
    }

    /// Who did not say which mesh may have meant the one on this machine.
    fn or_local(&self, error: CliError) -> CliError {
        let unsaid = self.global.context.is_none() && self.global.kubeconfig.is_none();
        match self.state.running().first() {
            Some(dir) if unsaid && self.global.local.is_none() => {
                error.hint(format!("--local={}, a local mesh, is running", dir.name))
            }
            _ => error,
        }
    }
}

/// Finds the local mesh that is meant.
pub fn locate(global: &Global, state: &StateRoot) -> Result<StateDir, CliError> {
    if global.context.is_some() || global.kubeconfig.is_some() {
        return Err(CliError::usage(
            "this is about local meshes, and --context is about a cluster",
        )
        .hint("the same command without --context and --kubeconfig"));
    }
    let running = state.running();
    let names: Vec<&str> = running.iter().map(|dir| dir.name.as_str()).collect();
    let Some(name) = &global.local else {
        return match running.as_slice() {
            [] => {
                // A mesh in a directory that is refused does not count as running.
                state.check()?;
                Err(CliError::unreachable("no local mesh is running, and no kube context is set")
                    .hint("meshctl demo; or --context NAME for a cluster"))
            }
            [only] => Ok(only.clone()),
            _ => Err(CliError::usage(format!(
                "several local meshes are running: {}",
                names.join(", ")
            ))
            .hint(format!("--local={} says which is meant", names[0]))),
        };
    };
    let dir = state.mesh(name)?;
    if dir.is_running() {
        return Ok(dir);
    }
    let error = CliError::unreachable(format!("the local mesh \"{name}\" is not running"));
    Err(match names.first() {
        Some(other) => error.hint(format!("--local={other}, which is")),
        None => error.hint("meshctl demo, or meshctl local up -f FILE"),
    })
}

async fn unix_channel(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name in the URI goes into the `:authority` header only.
    Endpoint::from_static("http://control.mesh").connect_with_connector(connector).await
}

fn silent(dir: &StateDir, error: &tonic::transport::Error) -> CliError {
    CliError::unreachable(format!(
        "the control plane of the local mesh \"{}\" does not answer: {}",
        dir.name,
        innermost(error)
    ))
    .hint("meshctl local logs control")
}

/// A mesh that answered.
#[derive(Clone, Debug)]
pub struct Mesh {
    client: MeshClient<Channel>,
    channel: Channel,
    pub place: Place,
    /// Where the user is told that an answer takes long; nowhere while something else is painted there.
    waiting: Option<Ui>,
}

impl Mesh {
    /// Connects to the control plane of this mesh.
    pub async fn at(place: Place) -> Result<Self, CliError> {
        let channel = match &place {
            Place::Local(dir) => {
                let connected = unix_channel(dir.control_socket()).await;
                connected.map_err(|error| silent(dir, &error))?
            }
            Place::Cluster(cluster) => cluster.control_channel().await?,
        };
        let client = MeshClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        Ok(Self { client, channel, place, waiting: None })
    }

    /// Says nothing about waiting, for views that own the terminal.
    #[must_use]
    pub fn silent(self) -> Self {
        Self { waiting: None, ..self }
    }

    /// Asks what the proxy of this workload would.
    pub fn as_proxy(&self, workload: Workload) -> ControlClient {
        ControlClient::new(self.channel.clone(), workload)
    }

    pub async fn info(&self) -> Result<ext::InfoReply, CliError> {
        self.answer(Box::pin(self.client.clone().info(ext::InfoRequest {}))).await
    }

    /// Completes when the control plane has taken in what its source holds now.
    pub async fn refresh(&self) -> Result<(), CliError> {
        self.answer(Box::pin(self.client.clone().refresh(ext::RefreshRequest {}))).await?;
        Ok(())
    }

    pub async fn resources(&self, selector: Selector) -> Result<Vec<ext::Workload>, CliError> {
        Ok(self.answer(Box::pin(self.client.clone().resources(selector))).await?.workloads)
    }

    pub async fn stat(&self, request: ext::StatRequest) -> Result<ext::StatReply, CliError> {
        self.answer(Box::pin(self.client.clone().stat(request))).await
    }

    pub async fn edges(&self, request: ext::EdgesRequest) -> Result<ext::EdgesReply, CliError> {
        self.answer(Box::pin(self.client.clone().edges(request))).await
    }

    /// The stream lasts until it is dropped or the control plane ends.
    pub async fn tap(
        &self,
        request: ext::MeshTapRequest,
    ) -> Result<Streaming<ext::MeshTapEvent>, CliError> {
        self.answer(Box::pin(self.client.clone().tap(request))).await
    }

    pub async fn endpoints(
        &self,
        request: ext::EndpointsRequest,
    ) -> Result<ext::EndpointsReply, CliError> {
        self.answer(Box::pin(self.client.clone().endpoints(request))).await
    }

    pub async fn routes(&self, selector: Selector) -> Result<Vec<ext::RouteRow>, CliError> {
        Ok(self.answer(Box::pin(self.client.clone().routes(selector))).await?.routes)
    }

    pub async fn authorizations(
        &self,
        selector: Selector,
    ) -> Result<Vec<ext::AuthorizationRow>, CliError> {
        Ok(self.answer(Box::pin(self.client.clone().authorizations(selector))).await?.rows)
    }

    pub async fn port_authorizations(
        &self,
        request: ext::PortAuthorizationsRequest,
    ) -> Result<ext::PortAuthorizationsReply, CliError> {
        self.answer(Box::pin(self.client.clone().port_authorizations(request))).await
    }

    pub async fn observed(
        &self,
        request: ext::MeshObservedRequest,
    ) -> Result<ext::MeshObservedReply, CliError> {
        self.answer(Box::pin(self.client.clone().observed(request))).await
    }

    pub async fn what_if(&self, request: ext::WhatIfRequest) -> Result<ext::WhatIfReply, CliError> {
        self.answer(Box::pin(self.client.clone().what_if(request))).await
    }

    pub async fn analyze(
        &self,
        request: ext::AnalyzeRequest,
    ) -> Result<ext::AnalyzeReply, CliError> {
        self.answer(Box::pin(self.client.clone().analyze(request))).await
    }

    pub async fn notable(
        &self,
        request: ext::MeshNotableRequest,
    ) -> Result<ext::MeshNotableReply, CliError> {
        self.answer(Box::pin(self.client.clone().notable(request))).await
    }

    pub async fn proxies(&self, selector: Selector) -> Result<Vec<ext::ProxyRow>, CliError> {
        Ok(self.answer(Box::pin(self.client.clone().proxies(selector))).await?.proxies)
    }

    /// The call is boxed, as those of gRPC are large and every command holds several.
    async fn answer<T>(
        &self,
        mut asked: Pin<Box<impl Future<Output = Result<Response<T>, Status>>>>,
    ) -> Result<T, CliError> {
        let patient = async {
            tokio::select! {
                answer = &mut asked => return answer,
                () = tokio::time::sleep(PATIENCE) => {}
            }
            let _progress =
                self.waiting.as_ref().map(|ui| ui.progress("waiting for the control plane"));
            asked.await
        };
        match tokio::time::timeout(DEADLINE, patient).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refusal(&status)),
            Err(_) => {
                let late =
                    format!("the control plane did not answer within {} s", DEADLINE.as_secs());
                Err(CliError::timed_out(late).hint("meshctl check"))
            }
        }
    }

    /// One proxy's own account of itself, a JSON document.
    pub async fn proxy_config(&self, namespace: &str, pod: &str) -> Result<String, CliError> {
        let request =
            ext::ProxyConfigRequest { pod: pod.to_owned(), namespace: namespace.to_owned() };
        Ok(self.answer(Box::pin(self.client.clone().proxy_config(request))).await?.json)
    }
}

/// What a gRPC status means for the user. The control plane's own statuses have no cause; where there is one, the
/// connection was lost.
pub fn refusal(status: &Status) -> CliError {
    if let Some(ours) = carried_by_status(status) {
        return ours.clone();
    }
    if let Some(cause) = status.source() {
        return CliError::unreachable(format!("lost the control plane: {}", innermost(cause)))
            .hint("meshctl check");
    }
    let text = status.message();
    match status.code() {
        Code::Unavailable | Code::Cancelled => CliError::unreachable(text).hint("meshctl check"),
        Code::PermissionDenied | Code::Unauthenticated => {
            CliError::unreachable(format!("the control plane does not allow this: {text}"))
        }
        Code::DeadlineExceeded => CliError::timed_out(text).hint("meshctl check"),
        Code::InvalidArgument => CliError::new(Kind::Usage, text),
        Code::Unimplemented => CliError::failed("the control plane does not know this request")
            .hint("meshctl version, to compare its version with this one's"),
        Code::NotFound => CliError::missing(text),
        Code::FailedPrecondition | Code::ResourceExhausted => CliError::failed(text),
        other => CliError::failed(format!("the control plane failed: {text} ({other:?})"))
            .hint("meshctl check"),
    }
}
