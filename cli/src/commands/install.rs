//! `meshctl install`, `upgrade` and `diff`: the mesh of a cluster as the values say.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use mesh_tls::{Issuer, TrustBundle};

use crate::cluster::Cluster;
use crate::cluster::objects::{Applying, FIELD_MANAGER, SECRET};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::install::plan::Plan;
use crate::install::record::Record;
use crate::install::{apply, ask, record};
use crate::manifests::values::{Overrides, Profile};
use crate::manifests::{Installation, Manifest, documents};
use crate::output::{Format, format};
use crate::units;

/// What the mesh is to be like.
#[derive(Args, Debug)]
pub struct ValueArgs {
    /// Where the values begin
    #[arg(long, value_enum, value_name = "NAME")]
    pub profile: Option<Profile>,
    /// A value by its path, such as controlPlane.replicas=3; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A YAML file of values; may be repeated, later ones win and --set wins over all
    #[arg(long = "values", short = 'f', value_name = "FILE")]
    pub values: Vec<PathBuf>,
}

/// How it is done.
#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Just show: client prints the objects, server asks the API server what would change
    #[arg(long, value_enum, value_name = "WHERE")]
    pub dry_run: Option<DryRun>,
    /// How --dry-run=client prints
    #[arg(long, short, value_name = "FORMAT", default_value = "yaml",
          value_parser = Format::among(["yaml", "json", "name"]))]
    pub output: Format,
    /// Take over fields that others have set
    #[arg(long)]
    pub force_conflicts: bool,
    /// How long the control plane may take to be ready; 0s does not wait
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::parse_duration)]
    pub wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// Print what would be applied, for kubectl apply -f - or a GitOps repository
    Client,
    /// Ask the API server
    Server,
}

/// Install the mesh into a cluster
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct InstallArgs {
    #[command(flatten)]
    pub values: ValueArgs,
    #[command(flatten)]
    pub apply: ApplyArgs,
    /// Roots, issuer certificate and issuer key (PEM) instead of new ones that the control plane makes
    #[arg(long, value_name = "CA,CERT,KEY", value_delimiter = ',', num_args = 1)]
    pub identity_issuer_files: Vec<PathBuf>,
}

const HELP: &str = "\
Everything is applied server-side: definitions, then the rest, then it waits until the \
control plane is ready. The same again changes nothing. docs/kubernetes.md lists the values.

meshctl install --dry-run=client -o yaml | kubectl apply -f - does the same; the text is the \
same for the same values and holds no keys.";

/// Bring the mesh of a cluster to this meshctl's version
///
/// Values stay as they were, but for those given now; the issuer of certificates stays.
#[derive(Args, Debug)]
pub struct UpgradeArgs {
    #[command(flatten)]
    pub values: ValueArgs,
    #[command(flatten)]
    pub apply: ApplyArgs,
    /// Forget the values of before; the profile stays
    #[arg(long)]
    pub reset_values: bool,
}

/// Show what installing or upgrading would change in the cluster
///
/// Exits with 0 if nothing, 1 if something, more than 1 after a failure, as kubectl diff does.
#[derive(Args, Debug)]
pub struct DiffArgs {
    #[command(flatten)]
    pub values: ValueArgs,
    /// Forget the values of before; the profile stays
    #[arg(long)]
    pub reset_values: bool,
    /// Show what taking over the fields of others would change, too
    #[arg(long)]
    pub force_conflicts: bool,
}

pub(super) async fn install(args: InstallArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let issuer = match args.identity_issuer_files.as_slice() {
        [] => None,
        [roots, certificate, key] => Some(read_issuer(roots, certificate, key)?),
        _ => {
            return Err(CliError::usage("--identity-issuer-files takes three files")
                .hint("--identity-issuer-files ca.crt,tls.crt,tls.key"));
        }
    };
    let installation = args.values.installation(Record::default(), cx)?;
    bring(&installation, &args.apply, issuer, "Install", cx).await
}

pub(super) async fn upgrade(args: UpgradeArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let cluster = cx.cluster().await?;
    let before = record::read(&cluster).await?.ok_or_else(|| {
        CliError::missing(format!(
            "there is no mesh in the namespace {} of the kube context \"{}\"",
            cluster.mesh_namespace, cluster.context
        ))
        .hint("meshctl install")
    })?;
    let before = if args.reset_values { before.without_values() } else { before };
    let installation = args.values.installation(before, cx)?;
    bring(&installation, &args.apply, None, "Upgrade", cx).await
}

pub(super) async fn diff(args: DiffArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let differing = async {
        let cluster = cx.cluster().await?;
        let before = record::read(&cluster).await?.unwrap_or_default();
        let before = if args.reset_values { before.without_values() } else { before };
        let installation = args.values.installation(before, cx)?;
        let plan = Plan::of(&cluster, &installation.render()?, args.force_conflicts).await?;
        cx.ui.print(&plan.diff())?;
        Ok(!plan.is_empty())
    };
    match differing.await {
        Ok(true) => Ok(ExitCode::FAILURE),
        Ok(false) => Ok(ExitCode::SUCCESS),
        // 1 would mean that there are differences.
        Err(CliError { kind: Kind::Failed | Kind::Missing, message, hint }) => {
            Err(CliError { kind: Kind::Unreachable, message, hint })
        }
        Err(error) => Err(error),
    }
}

impl ValueArgs {
    /// What is to be installed where there was `before`.
    fn installation(&self, before: Record, cx: &Context) -> Result<Installation, CliError> {
        let mut overrides = before.overrides;
        for path in &self.values {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|error| CliError::usage(format!("can't read {name}: {error}")))?;
            overrides.merge(Overrides::from_yaml(&name, &text)?);
        }
        for assignment in &self.set {
            overrides.set(assignment)?;
        }
        let profile = self.profile.unwrap_or(before.profile);
        Installation::new(&cx.global.mesh_namespace, profile, overrides)
    }
}

async fn bring(
    installation: &Installation,
    args: &ApplyArgs,
    issuer: Option<Secret>,
    verb: &str,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let manifests = installation.render()?;
    if args.dry_run == Some(DryRun::Client) {
        cx.ui.print(&printed(&manifests, args.output)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = cx.cluster().await?;
    let progress = cx.ui.progress("asking the API server what would change");
    let plan = Plan::of(&cluster, &manifests, args.force_conflicts).await;
    drop(progress);
    let plan = plan?;
    let place =
        format!("{} of \"{}\" ({})", cluster.mesh_namespace, cluster.context, cluster.server);
    cx.ui.note(&format!(
        "The mesh in the namespace {place}, profile {}:",
        installation.profile.as_str()
    ));
    cx.ui.note(plan.summary(cx.ui.err_style).trim_end());
    if args.dry_run == Some(DryRun::Server) {
        return Ok(ExitCode::SUCCESS);
    }
    if plan.is_empty() && issuer.is_none() {
        cx.ui.note("nothing to do");
    } else {
        ask::confirm(&format!("{verb}?"), args.yes, &mut cx.ui)?;
        if let Some(secret) = issuer {
            put_issuer(&cluster, &manifests, secret).await?;
        }
        apply::apply(&cluster, &manifests, &plan, args.force_conflicts, &mut cx.ui).await?;
    }
    if args.wait.is_zero() {
        return Ok(ExitCode::SUCCESS);
    }
    apply::wait_ready(&cluster, args.wait, &cx.ui).await?;
    cx.ui.note("the control plane is ready; next:");
    cx.ui.note("  kubectl label namespace NAME meshctl.dev/inject=enabled");
    cx.ui.note("  kubectl -n NAME rollout restart deployment");
    Ok(ExitCode::SUCCESS)
}

fn printed(manifests: &[Manifest], wanted: Format) -> Result<String, CliError> {
    match wanted {
        Format::Json => {
            let items: Vec<_> = manifests.iter().map(|manifest| &manifest.value).collect();
            format::json(&serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}))
        }
        Format::Name => Ok(manifests.iter().map(|manifest| manifest.title() + "\n").collect()),
        _ => Ok(documents(manifests)),
    }
}

/// The Secret of an issuer from files, if they are any good.
fn read_issuer(roots: &PathBuf, certificate: &PathBuf, key: &PathBuf) -> Result<Secret, CliError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path)
            .map_err(|error| CliError::usage(format!("can't read {}: {error}", path.display())))
    };
    let wrong = |path: &PathBuf, error: &dyn std::fmt::Display| {
        CliError::usage(format!("{}: {error}", path.display()))
    };
    let (ca, chain, secret) = (read(roots)?, read(certificate)?, read(key)?);
    let bundle = TrustBundle::from_pem(&ca).map_err(|error| wrong(roots, &error))?;
    let issuer = Issuer::from_pem(&chain, &secret).map_err(|error| wrong(certificate, &error))?;
    issuer.verify(&bundle).map_err(|error| wrong(certificate, &error))?;
    let bytes = |text: String| ByteString(text.into_bytes());
    let data = [("ca.crt", ca), ("tls.crt", chain), ("tls.key", secret)];
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(mesh_control::identity::secret::NAME.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data.map(|(name, text)| (name.to_owned(), bytes(text))).into()),
        ..Secret::default()
    })
}

/// Puts the issuer there before a control plane could make its own. One that is there is never replaced.
async fn put_issuer(
    cluster: &Cluster,
    manifests: &[Manifest],
    secret: Secret,
) -> Result<(), CliError> {
    let name = mesh_control::identity::secret::NAME;
    if cluster.exists(&SECRET, name).await? {
        return Err(CliError::failed(format!(
            "Secret/{name} is there already, and every certificate of the mesh hangs on it"
        ))
        .hint("docs/kubernetes.md, which tells how an issuer is replaced without an outage"));
    }
    let namespace = manifests.iter().find(|manifest| manifest.kind == "Namespace");
    if let Some(namespace) = namespace {
        cluster.apply(namespace, Applying::default()).await?;
    }
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.mesh_namespace);
    let params =
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    cluster.change(&format!("create Secret/{name}"), api.create(&params, &secret)).await?;
    Ok(())
}
