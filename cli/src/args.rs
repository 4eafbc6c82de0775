//! The command line as clap sees it: global flags and the list of commands.
//!
//! A command's own flags are in its file in `commands/`.

use clap::{Args, Parser, Subcommand};

use crate::commands;

/// A service mesh you can read: see who talks to whom, how well, and live.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Commands,
}

/// Where the control plane is if nobody says otherwise.
pub const MESH_NAMESPACE: &str = "mesh-system";

/// Which mesh is meant, for every command that reads one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Mesh")]
pub struct Global {
    /// The local mesh of this name instead of a cluster
    #[arg(long, global = true, value_name = "NAME", num_args = 0..=1, require_equals = true,
          default_missing_value = "default", conflicts_with_all = ["context", "kubeconfig"])]
    pub local: Option<String>,
    /// The cluster of this kubeconfig context
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubeconfig file to take the context from
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// The namespace of the control plane in the cluster
    #[arg(long, global = true, value_name = "NS", default_value = MESH_NAMESPACE)]
    pub mesh_namespace: String,
    /// Say first which mesh is asked
    #[arg(long, short, global = true)]
    pub verbose: bool,
}

impl Default for Global {
    fn default() -> Self {
        Self {
            local: None,
            context: None,
            kubeconfig: None,
            mesh_namespace: MESH_NAMESPACE.to_owned(),
            verbose: false,
        }
    }
}

/// Every command, in the order of the help.
#[derive(Debug, Subcommand)]
pub enum Commands {
    Demo(commands::demo::DemoArgs),
    Local(commands::local::LocalArgs),
    Run(commands::run::RunArgs),
    Install(commands::install::InstallArgs),
    Upgrade(commands::install::UpgradeArgs),
    Diff(commands::install::DiffArgs),
    Uninstall(commands::uninstall::UninstallArgs),
    Stat(commands::stat::StatArgs),
    Tap(commands::tap::TapArgs),
    Top(commands::top::TopArgs),
    Edges(commands::edges::EdgesArgs),
    Routes(commands::routes::RoutesArgs),
    Authz(commands::authz::AuthzArgs),
    Endpoints(commands::endpoints::EndpointsArgs),
    Describe(commands::describe::DescribeArgs),
    Fault(commands::fault::FaultArgs),
    Proxy(commands::proxy::ProxyArgs),
    Identity(commands::identity::IdentityArgs),
    Inject(commands::inject::InjectArgs),
    Uninject(commands::inject::UninjectArgs),
    Check(commands::check::CheckArgs),
    Analyze(commands::analyze::AnalyzeArgs),
    Explain(commands::explain::ExplainArgs),
    BugReport(commands::bug_report::BugReportArgs),
    Version(commands::version::VersionArgs),
    Completion(commands::completion::CompletionArgs),
}
