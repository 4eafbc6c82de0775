//! The configuration: arguments or variables in, one resolved value out.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use jiff::SignedDuration;
use mesh_model::authz::DefaultAccess;
use mesh_model::inbound::Cidr;
use tracing_subscriber::EnvFilter;

use crate::identity;
use crate::index::authz::Defaults;
use crate::index::identity::MeshNames;
use crate::source::kube;
use crate::webhook;

/// The control plane of the mesh.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-control", version)]
pub struct Args {
    /// Where the mesh's objects come from
    #[arg(long, value_enum, default_value_t = SourceKind::Local, env = "MESH_CONTROL_SOURCE")]
    pub source: SourceKind,
    /// Folder with `manifests/` and `pods/`, for the local source
    #[arg(long, value_name = "DIR", env = "MESH_CONTROL_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// What to call this replica where replicas agree on who writes; the kube source's
    #[arg(
        long,
        value_name = "NAME",
        default_value = "mesh-control",
        env = "MESH_CONTROL_POD_NAME"
    )]
    pub pod_name: String,
    /// Address for proxies
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:8086",
        env = "MESH_CONTROL_LISTEN"
    )]
    pub listen: SocketAddr,
    /// Unix socket for meshctl
    #[arg(long, value_name = "PATH", env = "MESH_CONTROL_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Loopback address for meshctl, as an alternative to a socket
    #[arg(long, value_name = "IP:PORT", env = "MESH_CONTROL_API")]
    pub api: Option<SocketAddr>,
    /// Address of /ready, /live and /metrics
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:9990",
        env = "MESH_CONTROL_ADMIN"
    )]
    pub admin: SocketAddr,
    /// Address of the admission webhook (HTTPS), on Kubernetes
    #[arg(long, value_name = "IP:PORT", env = "MESH_CONTROL_WEBHOOK")]
    pub webhook: Option<SocketAddr>,
    /// Folder with the settings of injected proxies: the mounted ConfigMap `mesh-config`
    #[arg(long, value_name = "DIR", requires = "webhook", env = "MESH_CONTROL_INJECT_SETTINGS")]
    pub inject_settings: Option<PathBuf>,
    /// Folder with `roots.pem`, `issuer.pem` and `issuer-key.pem` (or `ca.crt`, `tls.crt` and
    /// `tls.key`); without it pods have no identities
    #[arg(long, value_name = "DIR", env = "MESH_CONTROL_IDENTITY_DIR")]
    pub identity_dir: Option<PathBuf>,
    /// Take these from the Secret `mesh-identity-issuer`, which is made if there is none; for the kube
    /// source
    #[arg(long, conflicts_with = "identity_dir", env = "MESH_CONTROL_IDENTITY_SECRET")]
    pub identity_secret: bool,
    /// Tell the proxy at the edge what Gateways ask for, and watch those and Secrets with certificates; for
    /// the kube source, as the local one always does
    #[arg(long, env = "MESH_CONTROL_GATEWAY")]
    pub gateway: bool,
    /// What identities end with
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        env = "MESH_CONTROL_TRUST_DOMAIN"
    )]
    pub trust_domain: String,
    /// The namespace of the control plane, a part of identities
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "mesh-system",
        env = "MESH_CONTROL_NAMESPACE"
    )]
    pub control_namespace: String,
    /// How long certificates of workloads are valid
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "24h",
        value_parser = lifetime,
        env = "MESH_CONTROL_CERTIFICATE_LIFETIME"
    )]
    pub certificate_lifetime: Duration,
    /// Who may use ports about which no policy says anything
    #[arg(
        long,
        value_name = "ACCESS",
        default_value = "all-unauthenticated",
        value_parser = default_access(),
        env = "MESH_CONTROL_DEFAULT_INBOUND_POLICY"
    )]
    pub default_inbound_policy: DefaultAccess,
    /// What `cluster-…` policies take for the cluster [default: private addresses]
    #[arg(
        long,
        value_name = "CIDR,…",
        value_delimiter = ',',
        env = "MESH_CONTROL_CLUSTER_NETWORKS"
    )]
    pub cluster_networks: Vec<Cidr>,
    /// What to log: a level, or `target=level,…`
    #[arg(long, default_value = "info", env = "MESH_CONTROL_LOG")]
    pub log: String,
    /// How log lines look
    #[arg(long, value_enum, default_value_t = LogFormat::Plain, env = "MESH_CONTROL_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// Files on this machine
    Local,
    /// An API server of Kubernetes: the cluster it runs in, or that of the kubeconfig
    Kube,
}

/// The source, and what it needs to know.
#[derive(Clone, Debug)]
pub enum Source {
    Local { state_dir: PathBuf },
    Kube(kube::Settings),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Plain,
    Json,
}

fn default_access() -> impl TypedValueParser<Value = DefaultAccess> {
    PossibleValuesParser::new(DefaultAccess::ALL.map(DefaultAccess::as_str))
        .map(|name| DefaultAccess::from_name(&name).unwrap_or(DefaultAccess::Deny))
}

/// The resolved configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub listen: SocketAddr,
    pub socket: Option<PathBuf>,
    /// Whoever reaches it may ask whatever meshctl can.
    pub api: Option<SocketAddr>,
    pub admin: SocketAddr,
    /// What identities end with, also those in policies of a mesh without.
    pub names: MeshNames,
    /// `None`: pods have no identities.
    pub identity: Option<identity::Settings>,
    /// `None`: pods are given no proxies.
    pub webhook: Option<webhook::Config>,
    pub defaults: Defaults,
    pub log: String,
    pub log_format: LogFormat,
}

/// Shorter ones would be renewed all the time, longer ones are of use to thieves.
const LIFETIMES: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(365 * 24 * 60 * 60);

/// `24h`, `90s`, `1h 30m`
fn lifetime(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
    parsed
        .filter(|duration| LIFETIMES.contains(duration))
        .ok_or_else(|| "write a duration from 10s to 8760h, such as 24h".to_owned())
}

/// Arguments that cannot be used; says of each what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct InvalidArgs {
    problems: Vec<String>,
}

impl TryFrom<Args> for Config {
    type Error = InvalidArgs;

    fn try_from(args: Args) -> Result<Self, InvalidArgs> {
        let mut problems = Vec::new();
        match (&args.state_dir, args.source) {
            (Some(folder), SourceKind::Local) if !folder.is_dir() => {
                let folder = folder.display();
                problems.push(format!("--state-dir {folder}: there is no such folder"));
            }
            (None, SourceKind::Local) => {
                problems.push("--state-dir: the local source needs a folder to read".to_owned());
            }
            _ => {}
        }
        if let Some(parent) = args.socket.as_ref().and_then(|socket| socket.parent())
            && !parent.as_os_str().is_empty()
            && !parent.is_dir()
        {
            problems.push(format!("--socket: there is no folder {}", parent.display()));
        }
        if let Some(api) = args.api.filter(|api| !api.ip().is_loopback()) {
            problems.push(format!(
                "--api {api}: whoever reaches it may tap the mesh; write a loopback address"
            ));
        }
        if let Err(error) = EnvFilter::try_new(&args.log) {
            problems.push(format!("--log {}: {error}; write a level such as `info`", args.log));
        }
        if let Some(folder) = args.identity_dir.as_ref().filter(|folder| !folder.is_dir()) {
            problems.push(format!("--identity-dir {}: there is no such folder", folder.display()));
        }
        let names = MeshNames {
            control_namespace: args.control_namespace,
            trust_domain: args.trust_domain,
        };
        if names.id("default", "default").is_none() {
            problems.push(format!(
                "--control-namespace {} --trust-domain {}: no identity can end with these; write \
                 names such as mesh-system and cluster.local",
                names.control_namespace, names.trust_domain
            ));
        }
        if args.identity_secret && args.source == SourceKind::Local {
            problems.push("--identity-secret: there are no Secrets without --source kube".into());
        }
        if args.webhook.is_some() && args.source == SourceKind::Local {
            problems.push("--webhook: there is no admission without --source kube".into());
        }
        if !problems.is_empty() {
            return Err(InvalidArgs { problems });
        }
        let origin = match args.identity_dir {
            Some(folder) => Some(identity::Origin::Folder(folder)),
            None => args.identity_secret.then_some(identity::Origin::Secret),
        };
        let webhook = args.webhook.map(|listen| webhook::Config {
            listen,
            settings: args.inject_settings,
            names: names.clone(),
        });
        let mut defaults = Defaults { access: args.default_inbound_policy, ..Defaults::default() };
        if !args.cluster_networks.is_empty() {
            defaults.cluster = args.cluster_networks.into();
        }
        let source = match args.source {
            SourceKind::Local => Source::Local { state_dir: args.state_dir.unwrap_or_default() },
            SourceKind::Kube => {
                let replica = args.pod_name;
                Source::Kube(kube::Settings {
                    names: names.clone(),
                    replica,
                    gateway: args.gateway,
                })
            }
        };
        Ok(Self {
            source,
            listen: args.listen,
            socket: args.socket,
            api: args.api,
            admin: args.admin,
            names: names.clone(),
            identity: origin.map(|origin| identity::Settings {
                origin,
                names,
                lifetime: args.certificate_lifetime,
            }),
            webhook,
            defaults,
            log: args.log,
            log_format: args.log_format,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let wrong = [
            ("--state-dir", "/nowhere"),
            ("--socket", "/nowhere/s"),
            ("--api", "0.0.0.0:8085"),
            ("--log", "a=b=c"),
            ("--identity-dir", "/nowhere"),
            ("--trust-domain", "Cluster.Local"),
            ("--webhook", "127.0.0.1:8443"),
        ];
        let args = wrong.iter().flat_map(|(flag, value)| [*flag, *value]);
        let args = Args::parse_from(["mesh-control"].into_iter().chain(args));
        let error = Config::try_from(args).unwrap_err().to_string();
        for (part, _) in wrong {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn only_the_local_source_needs_a_folder() {
        let config =
            |args: &[&str]| Config::try_from(Args::parse_from(["mesh-control"].iter().chain(args)));
        let error = config(&[]).unwrap_err().to_string();
        assert!(error.contains("--state-dir"), "{error}");
        let source = config(&["--source", "kube", "--pod-name", "mesh-control-1"]).unwrap().source;
        let Source::Kube(settings) = &source else { panic!("{source:?}") };
        assert_eq!(settings.replica, "mesh-control-1");
    }

    #[test]
    fn there_is_no_identity_without_a_folder() {
        let args = |more: &[&str]| {
            let args = ["mesh-control", "--state-dir", "/"].iter().chain(more);
            Args::try_parse_from(args)
        };
        let config = |more: &[&str]| Config::try_from(args(more).unwrap()).unwrap();
        assert!(config(&["--trust-domain", "example.org"]).identity.is_none());
        let identity = config(&["--identity-dir", "/"]).identity.unwrap();
        let id = identity.names.id("shop", "web").unwrap();
        assert_eq!(id.as_str(), "web.shop.serviceaccount.identity.mesh-system.cluster.local");
        assert_eq!(identity.lifetime, Duration::from_secs(24 * 60 * 60));
        for lifetime in ["0s", "-1h", "9s", "forever", "8761h", ""] {
            let refused = args(&["--certificate-lifetime", lifetime]);
            assert!(refused.is_err(), "{lifetime}");
        }
        let identity = config(&["--identity-dir", "/", "--certificate-lifetime", "90s"]).identity;
        assert_eq!(identity.unwrap().lifetime, Duration::from_secs(90));
    }

    #[test]
    fn defaults_are_loopback() {
        let args = ["mesh-control", "--state-dir", "/"];
        let config = Config::try_from(Args::parse_from(args)).unwrap();
        assert!(config.listen.ip().is_loopback() && config.admin.ip().is_loopback());
        assert_eq!(config.defaults.access, DefaultAccess::AllUnauthenticated);
    }

    #[test]
    fn who_may_use_ports_by_default_is_a_name_or_an_error() {
        let parse = |flags: [&str; 2]| {
            Args::try_parse_from(["mesh-control", "--state-dir", "/"].iter().chain(&flags))
        };
        let args = parse(["--default-inbound-policy", "cluster-authenticated"]).unwrap();
        assert_eq!(args.default_inbound_policy, DefaultAccess::ClusterAuthenticated);
        assert!(parse(["--default-inbound-policy", "open"]).is_err());
        let args = parse(["--cluster-networks", "10.0.0.0/8,fd00::/8"]).unwrap();
        assert_eq!(Config::try_from(args).unwrap().defaults.cluster.len(), 2);
        assert!(parse(["--cluster-networks", "ten"]).is_err());
    }
}
