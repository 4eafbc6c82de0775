//! Who certifies: from the files of a local mesh, or from the Secret of one in a cluster.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use mesh_tls::{Issuer, TrustBundle};

use super::catalog::Outcome;
use crate::cluster::Cluster;
use crate::connect::Place;
use crate::error::CliError;
use crate::local::authority::{Authority, Root, roots_of};
use crate::manifests::MESH_CONFIG;

const SECRET: &str = mesh_control::identity::secret::NAME;

/// What it holds, as far as it can be read.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) roots: Result<Vec<Root>, CliError>,
    pub(super) issuer: Result<Issuer, CliError>,
    /// Whether a trusted root signed the issuer.
    pub(super) verified: Result<(), CliError>,
}

impl Held {
    /// That of a mesh, or why there is none.
    pub(super) async fn of(place: &Place) -> Result<Self, Outcome> {
        match place {
            Place::Local(dir) => {
                let authority = Authority::of(dir).ok_or_else(without)?;
                Ok(Self {
                    roots: authority.roots(),
                    issuer: authority.issuer(),
                    verified: authority.verify().map(drop),
                })
            }
            Place::Cluster(cluster) => Self::of_cluster(cluster).await,
        }
    }

    async fn of_cluster(cluster: &Cluster) -> Result<Self, Outcome> {
        let namespace = &cluster.mesh_namespace;
        let skipped = |error: CliError| Outcome::Skipped(error.message);
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
        let doing = format!("read ConfigMap/{MESH_CONFIG}");
        let config = cluster.ask(&doing, maps.get_opt(MESH_CONFIG)).await.map_err(skipped)?;
        let data = config.and_then(|config| config.data).unwrap_or_default();
        if data.get("identity").is_some_and(|identity| identity == "disabled") {
            return Err(without());
        }
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
        let found = cluster.ask(&format!("read Secret/{SECRET}"), secrets.get_opt(SECRET)).await;
        let secret = found.map_err(skipped)?.ok_or_else(|| {
            let message = format!("there is no Secret/{SECRET} in {namespace}");
            Outcome::failed(message, "meshctl local logs control; it makes the Secret")
        })?;
        let data = secret.data.unwrap_or_default();
        let text = |key: &str| {
            let bytes = data.get(key).ok_or_else(|| wrong(key, &"it is missing"))?;
            String::from_utf8(bytes.0.clone()).map_err(|_| wrong(key, &"it is not PEM"))
        };
        let roots = text("ca.crt");
        let issuer = || {
            Issuer::from_pem(&text("tls.crt")?, &text("tls.key")?).map_err(|e| wrong("tls.crt", &e))
        };
        let verified = || {
            let bundle =
                TrustBundle::from_pem(&text("ca.crt")?).map_err(|e| wrong("ca.crt", &e))?;
            issuer()?.verify(&bundle).map_err(|e| wrong("tls.crt", &e))
        };
        Ok(Self {
            roots: roots.and_then(|text| roots_of(format!("Secret/{SECRET}").as_ref(), &text)),
            issuer: issuer(),
            verified: verified(),
        })
    }
}

fn wrong(key: &str, why: &dyn std::fmt::Display) -> CliError {
    CliError::failed(format!("Secret/{SECRET}: {key}: {why}"))
}

fn without() -> Outcome {
    Outcome::Skipped("the mesh is without identity".to_owned())
}
