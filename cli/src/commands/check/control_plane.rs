//! Checks of the control plane: it answers `meshctl`, and it answers what proxies ask.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mesh_api::client::{ControlClient, UpdateStream};
use mesh_api::{Update, Workload};
use mesh_model::Target;
use tokio_stream::StreamExt;
use tonic::Status;

use super::catalog::Outcome;
use super::scene::Scene;
use crate::units;

/// Every stream must say something at once.
const FIRST_MESSAGE: Duration = Duration::from_secs(2);
const REMEDY: &str = "meshctl local logs control, which says why";

pub(super) async fn answers(scene: Arc<Scene>) -> Outcome {
    match &scene.mesh {
        Ok((_, info)) => {
            let uptime = units::age(info.uptime_seconds);
            let pods = units::plural(info.pods as usize, "pod");
            Outcome::Passed(format!(
                "up {uptime}, {pods}, {}",
                units::plural(info.services as usize, "service")
            ))
        }
        Err(error) => Outcome::failed(error.to_string(), error.hint.as_deref().unwrap_or(REMEDY)),
    }
}

pub(super) async fn version(scene: Arc<Scene>) -> Outcome {
    let own = env!("CARGO_PKG_VERSION");
    match scene.info() {
        Ok(info) if info.version == own => Outcome::Passed(own.to_owned()),
        Ok(info) => Outcome::failed(
            format!("the control plane is of version {}, meshctl of {own}", info.version),
            "restart the mesh with this meshctl: meshctl local down, then up",
        ),
        Err(why) => Outcome::Skipped(why),
    }
}

pub(super) async fn destination(scene: Arc<Scene>) -> Outcome {
    ask(scene, async |client, probe| first(client.watch_destination(&probe.authority)).await).await
}

pub(super) async fn profile(scene: Arc<Scene>) -> Outcome {
    ask(scene, async |client, probe| first(client.watch_profile(&probe.target())).await).await
}

pub(super) async fn outbound(scene: Arc<Scene>) -> Outcome {
    ask(scene, async |client, probe| first(client.watch_outbound(&probe.target())).await).await
}

pub(super) async fn inbound(scene: Arc<Scene>) -> Outcome {
    ask(scene, async |client, probe| first(client.watch_port(probe.port)).await).await
}

/// Whom to ask about, and on whose behalf.
struct Probe {
    workload: Workload,
    /// `name.namespace.svc.cluster.local:port`
    authority: String,
    port: u16,
}

impl Probe {
    fn target(&self) -> Target {
        Target::Authority(self.authority.clone())
    }
}

async fn ask(
    scene: Arc<Scene>,
    question: impl AsyncFnOnce(ControlClient, &Probe) -> Result<(), String>,
) -> Outcome {
    let probe = match probe(&scene).await {
        Ok(probe) => probe,
        Err(why) => return Outcome::Skipped(why),
    };
    let client = match scene.mesh() {
        Ok(mesh) => mesh.as_proxy(probe.workload.clone()),
        Err(why) => return Outcome::Skipped(why),
    };
    match question(client, &probe).await {
        Ok(()) => Outcome::passed(),
        Err(error) => Outcome::failed(format!("about {}: {error}", probe.authority), REMEDY),
    }
}

/// Any service and any pod will do.
async fn probe(scene: &Scene) -> Result<Probe, String> {
    let services = scene.services().await?;
    let pods = scene.pods().await?;
    let named =
        services.iter().find_map(|service| Some((service.r#ref.as_ref()?, service.ports.first()?)));
    let (of, port) = named.ok_or("there is no service to ask about")?;
    let pod = pods.iter().find(|pod| pod.namespace == of.namespace).or(pods.first());
    let pod = pod.ok_or("there is no pod to ask for")?;
    Ok(Probe {
        workload: Workload { namespace: pod.namespace.clone(), pod: pod.name.clone() },
        authority: format!("{}.{}.svc.cluster.local:{}", of.name, of.namespace, port.port),
        port: u16::try_from(port.port).unwrap_or_default(),
    })
}

/// Waits for a stream's first message and looks whether it can be understood.
async fn first<T>(
    watch: impl Future<Output = Result<UpdateStream<T>, Status>>,
) -> Result<(), String> {
    let message = async {
        let mut stream =
            watch.await.map_err(|status| format!("{}: {}", status.code(), status.message()))?;
        match stream.next().await {
            Some(Ok(Update::Valid(_))) => Ok(()),
            Some(Ok(Update::Invalid(error))) => Err(format!("the answer is not valid: {error}")),
            Some(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
            None => Err("the stream ended at once".to_owned()),
        }
    };
    let late = || Err(format!("no message within {} s", FIRST_MESSAGE.as_secs()));
    tokio::time::timeout(FIRST_MESSAGE, message).await.unwrap_or_else(|_| late())
}
