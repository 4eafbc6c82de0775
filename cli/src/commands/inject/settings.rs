//! How proxies are set up: as the cluster's mesh says, else by this version's defaults.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use mesh_control::inject::Settings;
use mesh_control::inject::settings::{CONFIG_MAP, IDENTITY, ROOTS_CONFIG_MAP, ROOTS_KEY};
use mesh_tls::TrustBundle;

use super::InjectArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::output::clean;

/// What the cluster says.
#[derive(Debug, Default)]
struct Told {
    config: BTreeMap<String, String>,
    roots: Option<String>,
}

pub(super) async fn gather(args: &InjectArgs, cx: &mut Context) -> Result<Settings, CliError> {
    let mut settings = Settings { inject_unlabelled: true, ..Settings::default() };
    let namespace = cx.global.mesh_namespace.clone();
    settings.names.control_namespace.clone_from(&namespace);
    let told = if args.offline {
        Err("--offline".to_owned())
    } else {
        ask(cx, &namespace).await.map_err(|error| error.message)
    };
    let told = told.unwrap_or_else(|why| {
        cx.ui.note(&format!(
            "the mesh's settings are not known ({}); those of meshctl {} apply",
            clean(&why),
            env!("CARGO_PKG_VERSION")
        ));
        Told::default()
    });
    let mut findings = Vec::new();
    settings.take(&told.config, &mut findings);
    for finding in findings {
        cx.ui.note(&format!(
            "ConfigMap {namespace}/{CONFIG_MAP}: {}: {}",
            clean(&finding.field),
            clean(&finding.message)
        ));
    }
    settings.trust_roots = roots(args, told)?;
    set(&mut settings, &args.set)?;
    Ok(settings)
}

async fn ask(cx: &Context, namespace: &str) -> Result<Told, CliError> {
    let cluster = cx.cluster().await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let get = async |name: &str| -> Result<BTreeMap<String, String>, CliError> {
        let doing = format!("read ConfigMap {name} in {namespace}");
        let found = cluster.ask(&doing, maps.get_opt(name)).await?;
        let none = || CliError::missing(format!("there is no ConfigMap {namespace}/{name}"));
        Ok(found.ok_or_else(none)?.data.unwrap_or_default())
    };
    let config = get(CONFIG_MAP).await?;
    let roots = get(ROOTS_CONFIG_MAP).await.ok().and_then(|mut data| data.remove(ROOTS_KEY));
    Ok(Told { config, roots })
}

/// There is no default for whom to trust.
fn roots(args: &InjectArgs, told: Told) -> Result<Option<String>, CliError> {
    let disabled = told.config.get(IDENTITY).is_some_and(|value| value.trim() == "disabled");
    if args.no_identity || (disabled && args.manual_roots.is_none()) {
        return Ok(None);
    }
    let (pem, from) = match &args.manual_roots {
        Some(path) => {
            let shown = path.display().to_string();
            let read = fs::read_to_string(path);
            (read.map_err(|error| CliError::failed(format!("{shown}: {error}")))?, shown)
        }
        None => {
            let pem = told.roots.ok_or_else(|| {
                CliError::unreachable("the trust roots of the mesh are not known").hint(
                    "--manual-roots FILE, --no-identity for a mesh without mTLS, or --enable, which \
                     leaves it to the cluster",
                )
            })?;
            (pem, format!("ConfigMap {ROOTS_CONFIG_MAP}"))
        }
    };
    match TrustBundle::from_pem(&pem) {
        Ok(_) => Ok(Some(pem)),
        Err(error) => Err(CliError::failed(format!("{from}: {error}"))),
    }
}

fn set(settings: &mut Settings, pairs: &[String]) -> Result<(), CliError> {
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or_else(|| {
            CliError::usage(format!("--set {pair}: write KEY=VALUE")).hint("--set image.tag=0.1.0")
        })?;
        let image = settings.options.get("proxy-image").unwrap_or_default().to_owned();
        let (repository, tag) = split_image(&image);
        let name = repository.rsplit_once('/').map_or(repository, |(_, name)| name);
        let (key, value) = match key {
            "image.registry" => {
                ("proxy-image", format!("{}/{name}{tag}", value.trim_end_matches('/')))
            }
            "image.tag" => ("proxy-image", format!("{repository}:{value}")),
            "image.pullPolicy" => ("proxy-image-pull-policy", value.to_owned()),
            _ => (key, value.to_owned()),
        };
        let mut findings = Vec::new();
        settings.options.take_plain(&[(key.to_owned(), value)].into(), &mut findings);
        if let Some(finding) = findings.first() {
            return Err(CliError::usage(format!("--set {pair}: {}", finding.message)));
        }
    }
    Ok(())
}

/// `registry:5000/a/b:1` as `registry:5000/a/b` and `:1`.
fn split_image(image: &str) -> (&str, &str) {
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    let tag = image[name..].find([':', '@']).map_or(image.len(), |at| name + at);
    image.split_at(tag)
}
