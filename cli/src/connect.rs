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
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::output::Ui;
use crate::state_dir::{StateDir, StateRoot};

/// How long an answer may take. The control plane gives each proxy 2 s, so this is never the first to give up.
const DEADLINE: Duration = Duration::from_secs(10);
/// After this long the user is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers about large meshes are larger than gRPC's usual 4 MiB.
const MAX_MESSAGE: usize = 64 << 20;

impl Context {
    /// Connects to the mesh that the global flags name.
    pub async fn connect(&mut self) -> Result<Mesh, CliError> {
        let dir = locate(&self.global, &self.state)?;
        let socket = dir.control_socket();
        if self.global.verbose {
            self.ui.note(&format!("mesh: local \"{}\" at {}", dir.name, socket.display()));
        }
        Ok(Mesh { waiting: Some(self.ui.clone()), ..Mesh::at(dir).await? })
    }
}

/// Finds the local mesh that is meant.
pub fn locate(global: &Global, state: &StateRoot) -> Result<StateDir, CliError> {
    if global.context.is_some() || global.kubeconfig.is_some() {
        return Err(CliError::unreachable(
            "this version of meshctl knows local meshes only; --context and --kubeconfig come with Kubernetes support",
        )
        .hint("meshctl demo, then the same command without them"));
    }
    let running = state.running();
    let names: Vec<&str> = running.iter().map(|dir| dir.name.as_str()).collect();
    let Some(name) = &global.local else {
        return match running.as_slice() {
            [] => Err(CliError::unreachable("no local mesh is running").hint("meshctl demo")),
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

/// The cause that says most.
fn innermost<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

/// A mesh that answered.
#[derive(Clone, Debug)]
pub struct Mesh {
    client: MeshClient<Channel>,
    channel: Channel,
    pub dir: StateDir,
    /// Where the user is told that an answer takes long; nowhere while something else is painted there.
    waiting: Option<Ui>,
}

impl Mesh {
    /// Connects to the control plane of this local mesh.
    pub async fn at(dir: StateDir) -> Result<Self, CliError> {
        let connected = unix_channel(dir.control_socket()).await;
        let channel = connected.map_err(|error| silent(&dir, &error))?;
        Ok(Self::new(channel, dir))
    }

    fn new(channel: Channel, dir: StateDir) -> Self {
        let client = MeshClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        Self { client, channel, dir, waiting: None }
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
