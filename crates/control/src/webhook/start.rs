//! Puts the webhook together from the control plane's configuration.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use kube::Client;
use parking_lot::RwLock;
use tokio::task::JoinSet;

use super::Webhook;
use super::certificate::{Keeper, Serving, WEBHOOK};
use crate::identity::Authority;
use crate::index::identity::MeshNames;
use crate::inject::Settings;
use crate::serve::{self, StartError};
use crate::state::Shared;

/// How often the settings are read again: kubelets take a minute to bring a new ConfigMap.
const RESCAN: Duration = Duration::from_secs(10);
/// Of one setting, bytes.
const MAX_VALUE: u64 = 64 << 10;
const MAX_SETTINGS: usize = 128;

/// Where the webhook listens, and what it injects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    /// The mounted ConfigMap `mesh-config`, a file per key.
    pub settings: Option<PathBuf>,
    pub names: MeshNames,
}

/// Starts the webhook and what keeps its certificate and its settings.
///
/// # Errors
/// When the address cannot be had.
pub async fn start(
    config: Config,
    client: Client,
    shared: Arc<Shared>,
    authority: Option<Arc<Authority>>,
    running: &mut JoinSet<()>,
) -> Result<(), StartError> {
    let listener = serve::tcp(config.listen).await?;
    let first = read(&config).await.unwrap_or_else(|| defaults(&config));
    let settings = Arc::new(RwLock::new(first));
    let serving = Arc::new(Serving::default());
    let namespace = &config.names.control_namespace;
    let keeper = Keeper {
        client: client.clone(),
        namespace: namespace.clone(),
        webhook: WEBHOOK.into(),
        names: vec![format!("mesh-control.{namespace}.svc")],
        serving: Arc::clone(&serving),
    };
    running.spawn(keeper.run());
    running.spawn(follow(config, Arc::clone(&settings)));
    let current = move || {
        let mut settings = settings.read().clone();
        if let Some(authority) = &authority {
            // Without roots a pod would be injected without identity.
            settings.trust_roots = Some(authority.watch_roots().borrow().as_ref()?.pem.clone());
        }
        Some(settings)
    };
    running.spawn(Webhook::new(shared, client, current).serve(listener, serving));
    Ok(())
}

/// Reads the settings again and again.
async fn follow(config: Config, settings: Arc<RwLock<Settings>>) {
    loop {
        tokio::time::sleep(RESCAN).await;
        // What was good last stays in force.
        let Some(read) = read(&config).await else { continue };
        if *settings.read() != read {
            tracing::info!("proxies are injected with other settings from now on");
            *settings.write() = read;
        }
    }
}

fn defaults(config: &Config) -> Settings {
    Settings { names: config.names.clone(), ..Settings::default() }
}

/// `None`: they cannot be read.
async fn read(config: &Config) -> Option<Settings> {
    let mut settings = defaults(config);
    let Some(folder) = config.settings.clone() else { return Some(settings) };
    let shown = folder.display().to_string();
    let values = tokio::task::spawn_blocking(move || values(&folder)).await;
    match values.unwrap_or_else(|error| Err(error.into())) {
        Ok(values) => {
            let mut findings = Vec::new();
            settings.take(&values, &mut findings);
            // The flags say who we are; the ConfigMap says it to others.
            settings.names = config.names.clone();
            for finding in findings {
                let (key, problem) = (finding.field, finding.message);
                tracing::warn!(key, problem, "a setting of injected proxies is not in force");
            }
        }
        Err(error) => {
            tracing::warn!(%error, folder = shown, "cannot read the settings of proxies");
            return None;
        }
    }
    Some(settings)
}

/// The files of a mounted ConfigMap.
fn values(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for entry in fs::read_dir(folder)?.take(MAX_SETTINGS) {
        let entry = entry?;
        // Kubelets keep the versions in hidden folders.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || !entry.path().is_file() {
            continue;
        }
        let mut value = String::new();
        fs::File::open(entry.path())?.take(MAX_VALUE).read_to_string(&mut value)?;
        values.insert(name, value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_are_the_files_of_a_mounted_config_map() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("..2026_11_26");
        fs::create_dir(&data).unwrap();
        for (name, value) in [("proxy-log-level", "debug\n"), ("control-namespace", "elsewhere")] {
            fs::write(data.join(name), value).unwrap();
            std::os::unix::fs::symlink(data.join(name), folder.path().join(name)).unwrap();
        }
        let names =
            MeshNames { control_namespace: "mesh".into(), trust_domain: "cluster.local".into() };
        let listen = "127.0.0.1:0".parse().unwrap();
        let config = Config { listen, settings: Some(folder.path().into()), names: names.clone() };
        let settings = read(&config).await.unwrap();
        assert_eq!(settings.options.get("proxy-log-level"), Some("debug"));
        assert_eq!(settings.names, names);
        let missing = Config { settings: Some("/nowhere".into()), ..config };
        assert!(read(&missing).await.is_none());
        assert_eq!(defaults(&missing).options, Settings::default().options);
    }
}
