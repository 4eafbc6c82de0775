//! The public roots of the mesh, where the injector's pods and people find them: the ConfigMap
//! `mesh-trust-roots`, kept as the issuer's folder says.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;

use super::FIELD_MANAGER;
use super::watch::why;
use crate::identity::Authority;
use crate::inject::settings::{ROOTS_CONFIG_MAP as NAME, ROOTS_KEY as KEY};

/// Somebody may have changed or deleted it.
const LOOK: Duration = Duration::from_secs(30);

/// Keeps the ConfigMap while this replica is the one that writes. Never returns.
pub(super) async fn run(
    client: Client,
    namespace: String,
    authority: Arc<Authority>,
    mut leader: watch::Receiver<bool>,
) {
    let api = Api::<ConfigMap>::namespaced(client, &namespace);
    let mut roots = authority.watch_roots();
    loop {
        if leader.wait_for(|leader| *leader).await.is_err() {
            return;
        }
        let pem = roots.borrow_and_update().as_ref().map(|roots| roots.pem.clone());
        if let Some(pem) = pem
            && let Err(error) = write(&api, &pem).await
        {
            tracing::warn!(why = why(&error), "the ConfigMap {NAME} cannot be kept up");
        }
        tokio::select! {
            _ = roots.changed() => {}
            _ = leader.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn write(api: &Api<ConfigMap>, pem: &str) -> Result<(), kube::Error> {
    let have = api.get_opt(NAME).await?;
    let have = have.as_ref().and_then(|map| map.data.as_ref()?.get(KEY));
    if have.is_some_and(|have| have == pem) {
        return Ok(());
    }
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME },
        "data": { KEY: pem },
    });
    let by = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(NAME, &by, &Patch::Apply(&map)).await?;
    tracing::info!("the ConfigMap {NAME} has the roots as they are now");
    Ok(())
}
