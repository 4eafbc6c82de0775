//! Which cluster is meant: the flags, the files that kubectl reads too, or the cluster that we run in.

use std::io;
use std::path::Path;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::{CONNECT, Cluster};
use crate::args::Global;
use crate::error::CliError;
use crate::selector;

/// Where kubeconfigs come from if no flag says so.
#[derive(Clone, Debug, Default)]
pub enum KubeFiles {
    /// `KUBECONFIG` or `~/.kube/config`, else the service account of the pod that we run in.
    #[default]
    OfProcess,
    /// Just this one.
    Given(Box<Kubeconfig>),
}

/// A kubeconfig, and the context of it that is meant.
#[derive(Debug)]
pub struct Chosen {
    kubeconfig: Kubeconfig,
    /// `None`: the cluster around us.
    context: Option<String>,
}

impl KubeFiles {
    /// The cluster that the flags mean, or the current context; none if there is no current context.
    pub fn choose(&self, global: &Global) -> Result<Option<Chosen>, CliError> {
        let kubeconfig = match (&global.kubeconfig, self) {
            (Some(path), _) => {
                Kubeconfig::read_from(path).map_err(|error| unreadable(path, &error))?
            }
            (None, Self::Given(kubeconfig)) => (**kubeconfig).clone(),
            (None, Self::OfProcess) => match Kubeconfig::read() {
                Ok(kubeconfig) => kubeconfig,
                // As kubectl has it: a file that is not there is an empty one.
                Err(KubeconfigError::ReadConfig(error, _))
                    if error.kind() == io::ErrorKind::NotFound =>
                {
                    Kubeconfig::default()
                }
                Err(KubeconfigError::FindPath) => Kubeconfig::default(),
                Err(KubeconfigError::ReadConfig(error, path)) => {
                    return Err(unreadable(&path, &error));
                }
                Err(error) => return Err(unreadable(Path::new("the kubeconfig"), &error)),
            },
        };
        let current = kubeconfig.current_context.clone().filter(|name| !name.is_empty());
        let Some(context) = global.context.clone().or(current) else {
            if let Some(path) = &global.kubeconfig {
                let message = format!("{} has no current context", path.display());
                return Err(
                    CliError::unreachable(message).hint("--context NAME says which is meant")
                );
            }
            let around_us = matches!(self, Self::OfProcess)
                && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
            return Ok(around_us.then_some(Chosen { kubeconfig, context: None }));
        };
        if !kubeconfig.contexts.iter().any(|known| known.name == context) {
            return Err(unknown(&context, &kubeconfig));
        }
        Ok(Some(Chosen { kubeconfig, context: Some(context) }))
    }
}

impl Chosen {
    /// Reads the credentials. Nothing is sent yet.
    pub async fn cluster(self, global: &Global) -> Result<Cluster, CliError> {
        let name = self.context.clone().unwrap_or_else(|| "in-cluster".to_owned());
        let broken = |error: &dyn std::error::Error| {
            CliError::unreachable(format!("the kube context \"{name}\" can't be used: {error}"))
                .hint(format!("kubectl --context {name} version, which needs the same"))
        };
        let mut config = match self.context.clone() {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context), ..Default::default() };
                let config = Config::from_custom_kubeconfig(self.kubeconfig, &options).await;
                config.map_err(|error| broken(&error))?
            }
            None => Config::incluster().map_err(|error| broken(&error))?,
        };
        config.connect_timeout = Some(CONNECT);
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|error| broken(&error))?;
        Ok(Cluster {
            client,
            context: name,
            server: server.trim_end_matches('/').to_owned(),
            mesh_namespace: global.mesh_namespace.clone(),
        })
    }
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError::unreachable(format!("can't read {}: {error}", path.display()))
        .hint("kubectl config view, which reads the same")
}

fn unknown(context: &str, kubeconfig: &Kubeconfig) -> CliError {
    let error = CliError::unreachable(format!("there is no kube context \"{context}\""));
    let names = kubeconfig.contexts.iter().map(|known| known.name.as_str());
    match names.min_by_key(|name| selector::distance(context, name)) {
        Some(nearest) => error.hint(format!("--context {nearest}, or kubectl config get-contexts")),
        None => error.hint("kubectl config get-contexts; the kubeconfig has none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "
apiVersion: v1
kind: Config
current-context: dev
contexts: [{name: dev, context: {cluster: c}}, {name: prod, context: {cluster: c}}]
clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]
";

    fn files(text: &str) -> KubeFiles {
        KubeFiles::Given(Box::new(Kubeconfig::from_yaml(text).unwrap()))
    }

    fn flags(context: Option<&str>) -> Global {
        Global { context: context.map(str::to_owned), ..Global::default() }
    }

    #[tokio::test]
    async fn a_flag_beats_the_current_context() {
        for (flag, want) in [(None, "dev"), (Some("prod"), "prod")] {
            let global = flags(flag);
            let chosen = files(TWO).choose(&global).unwrap().unwrap();
            let cluster = chosen.cluster(&global).await.unwrap();
            assert_eq!(
                (cluster.context.as_str(), cluster.server.as_str()),
                (want, "http://127.0.0.1:1")
            );
        }
    }

    #[test]
    fn unknown_contexts_are_told_with_the_nearest() {
        let error = files(TWO).choose(&flags(Some("prd"))).unwrap_err();
        assert_eq!(error.message, "there is no kube context \"prd\"");
        assert!(error.hint.unwrap().contains("--context prod"));
    }

    #[test]
    fn without_contexts_there_is_no_cluster() {
        assert!(files("").choose(&flags(None)).unwrap().is_none());
        let missing = Global { kubeconfig: Some("/nonexistent".into()), ..Global::default() };
        assert!(files("").choose(&missing).unwrap_err().message.contains("/nonexistent"));
    }
}
