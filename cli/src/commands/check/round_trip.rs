//! Checks of the observability path: a question goes to every proxy and comes back.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::ext;
use mesh_api::ext::mesh_tap_event::Event;

use super::catalog::{Finding, Outcome};
use super::scene::Scene;

/// How long a tap may take to reach every proxy. The control plane gives each 2 s and then tries again.
const PATIENCE: Duration = Duration::from_millis(4_500);
const REMEDY: &str = "meshctl check --only proxies-reachable";

pub(super) async fn stat(scene: Arc<Scene>) -> Outcome {
    let mesh = match scene.mesh() {
        Ok(mesh) => mesh,
        Err(why) => return Outcome::Skipped(why),
    };
    let request = ext::StatRequest {
        selectors: vec![scene.all("pod")],
        window_seconds: 60,
        ..Default::default()
    };
    match mesh.stat(request).await {
        Err(error) => Outcome::failed(error.to_string(), REMEDY),
        Ok(reply) if !reply.unreachable.is_empty() => {
            lost(&reply.unreachable, "proxies gave no figures")
        }
        Ok(reply) if reply.rows.is_empty() => Outcome::Skipped("there are no pods".to_owned()),
        Ok(_) => Outcome::passed(),
    }
}

pub(super) async fn tap(scene: Arc<Scene>) -> Outcome {
    let mesh = match scene.mesh() {
        Ok(mesh) => mesh,
        Err(why) => return Outcome::Skipped(why),
    };
    let request = ext::MeshTapRequest {
        selectors: vec![scene.all("pod")],
        filter: Some(ext::TapFilter::default()),
        max_rps: 1,
        to: None,
    };
    let mut stream = match mesh.tap(request).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::failed(error.to_string(), REMEDY),
    };
    let mut last = ext::mesh_tap_event::TapStatus::default();
    let reached = async {
        loop {
            match stream.message().await {
                Err(status) => return Err(status.message().to_owned()),
                Ok(None) => return Err("the stream ended at once".to_owned()),
                Ok(Some(message)) => {
                    if let Some(Event::Status(status)) = message.event {
                        last = status;
                        if last.tapped == last.pods {
                            return Ok(());
                        }
                    }
                }
            }
        }
    };
    match tokio::time::timeout(PATIENCE, reached).await {
        Ok(Err(why)) => Outcome::failed(why, REMEDY),
        Ok(Ok(())) if last.pods == 0 => Outcome::Skipped("no pod has a proxy".to_owned()),
        Ok(Ok(())) => Outcome::passed(),
        Err(_) => {
            let message = format!("tap reached {} of {} proxies", last.tapped, last.pods);
            lost(&last.unreachable, &message)
        }
    }
}

fn lost(unreachable: &[ext::Unreachable], message: &str) -> Outcome {
    let objects =
        unreachable.iter().map(|lost| format!("{}/{}: {}", lost.namespace, lost.pod, lost.error));
    Outcome::Failed(Finding {
        message: message.to_owned(),
        objects: objects.collect(),
        remedy: REMEDY.to_owned(),
    })
}
