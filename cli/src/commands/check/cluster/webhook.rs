//! Checks of the injector, as the API server meets it.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use super::super::catalog::Outcome;
use super::super::scene::Scene;
use super::{of, refused};
use crate::cluster::{CONTROL_PLANE, Cluster};
use crate::error::{CliError, innermost};

const CONFIGURATION: &str = "mesh-injector";
const PORT: u16 = 8443;
/// Any namespace but that of the control plane would do.
const SOMEWHERE: &str = "default";
const PROXY: &str = "mesh-proxy";
const RESTART: &str =
    "meshctl local logs control; a restart of it makes the certificate known again";

/// What stands in the cluster, if the injector is a part of the mesh.
async fn configuration(
    cluster: &Cluster,
) -> Result<Option<MutatingWebhookConfiguration>, CliError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    cluster.ask("read webhook configurations", api.get_opt(CONFIGURATION)).await
}

/// The API server trusts one authority; whoever answers must have its certificate, for the Service's name.
pub(in super::super) async fn certificate(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    let hooks = match configuration(cluster).await {
        Err(error) => return refused(&error),
        Ok(None) => return absent(),
        Ok(Some(found)) => found.webhooks.unwrap_or_default(),
    };
    for hook in hooks {
        let bundle = hook.client_config.ca_bundle.map(|bytes| bytes.0).unwrap_or_default();
        if bundle.is_empty() {
            return Outcome::failed(
                format!(
                    "the webhook {} has no caBundle yet, so that the API server trusts nobody",
                    hook.name
                ),
                RESTART,
            );
        }
        match handshake(cluster, &bundle).await {
            Err(Lost::NotReached(error)) => return refused(&error),
            Err(Lost::NotTrusted(why)) => {
                return Outcome::failed(
                    format!(
                        "the injector's certificate does not fit the caBundle of {}: {why}",
                        hook.name
                    ),
                    RESTART,
                );
            }
            Ok(()) => {}
        }
    }
    Outcome::passed()
}

enum Lost {
    NotReached(CliError),
    NotTrusted(String),
}

async fn handshake(cluster: &Cluster, bundle: &[u8]) -> Result<(), Lost> {
    let untrusted =
        |error: &(dyn std::error::Error + 'static)| Lost::NotTrusted(innermost(error).to_string());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle) {
        roots.add(root.map_err(|error| untrusted(&error))?).map_err(|error| untrusted(&error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| untrusted(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = format!("{CONTROL_PLANE}.{}.svc", cluster.mesh_namespace);
    let name = ServerName::try_from(name).map_err(|error| untrusted(&error))?;
    let pod = cluster.control_pod().await.map_err(Lost::NotReached)?;
    let stream =
        cluster.forward(&cluster.mesh_namespace, &pod, PORT).await.map_err(Lost::NotReached)?;
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    shaken.map(drop).map_err(|error| untrusted(&error))
}

/// A pod is created and not kept: is there a proxy in what comes back?
pub(in super::super) async fn injects(scene: Arc<Scene>) -> Outcome {
    let cluster = match of(&scene) {
        Ok(cluster) => cluster,
        Err(outcome) => return outcome,
    };
    match configuration(cluster).await {
        Err(error) => return refused(&error),
        Ok(None) => return absent(),
        Ok(Some(_)) => {}
    }
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), SOMEWHERE);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let doing = format!("create a pod in {SOMEWHERE} as a trial");
    match cluster.ask(&doing, api.create(&params, &sample())).await {
        Err(error) => refused(&error),
        Ok(pod) if has_proxy(&pod) => Outcome::passed(),
        Ok(_) => Outcome::failed(
            "a pod that asks for a proxy is created without one",
            "meshctl check --only webhook-certificate; meshctl local logs control",
        ),
    }
}

fn absent() -> Outcome {
    Outcome::Skipped("the mesh was installed without the injector".to_owned())
}

fn sample() -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("meshctl-check-{}", std::process::id())),
            labels: Some([("meshctl.dev/inject".to_owned(), "enabled".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "app".to_owned(),
                image: Some("example.invalid/app".to_owned()),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn has_proxy(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|c| c.name == PROXY)
}
