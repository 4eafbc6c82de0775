//! `meshctl version`: what runs here and there.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::output::{Format, format};
use crate::units;

/// Show the version of meshctl and of the control plane
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct VersionArgs {
    /// Don't ask the control plane
    #[arg(long)]
    pub client: bool,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
A control plane that can't be reached is no error here. JSON and YAML: {client, \
control_plane: {version, source, uptime_seconds} or null}.";

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    control_plane: Option<ControlPlane>,
}

#[derive(Debug, Serialize)]
struct ControlPlane {
    version: String,
    source: String,
    uptime_seconds: u64,
}

pub(super) async fn run(args: VersionArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let asked = if args.client { None } else { Some(ask(cx).await) };
    let (control_plane, error) = match asked {
        None => (None, None),
        Some(Ok(found)) => (Some(found), None),
        Some(Err(error)) => (None, Some(error)),
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), control_plane };
    let text = match args.output {
        Format::Json => format::json(&versions)?,
        Format::Yaml => format::yaml(&versions)?,
        _ => versions.lines(),
    };
    cx.ui.print(&text)?;
    if let Some(error) = error {
        cx.ui.note(&format!("control plane: {error}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(cx: &mut Context) -> Result<ControlPlane, CliError> {
    let info = cx.connect().await?.info().await?;
    Ok(ControlPlane {
        version: info.version,
        source: info.source,
        uptime_seconds: info.uptime_seconds,
    })
}

impl Versions {
    fn lines(&self) -> String {
        let mut text = format!("client:        {}\n", self.client);
        if let Some(of) = &self.control_plane {
            text += &format!(
                "control plane: {} ({}, up {})\n",
                of.version,
                of.source,
                units::age(of.uptime_seconds)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;

    use crate::testing::{FakeMesh, run_alone};

    #[tokio::test]
    async fn both_sides_or_just_this_one() {
        let info = ext::InfoReply {
            version: "0.1.0".into(),
            source: "local".into(),
            uptime_seconds: 125,
            ..Default::default()
        };
        let mesh = FakeMesh { info, ..FakeMesh::default() };
        let own = concat!("client:        ", env!("CARGO_PKG_VERSION"), "\n");
        let both = mesh.clone().run("version").await;
        assert_eq!(both.out, format!("{own}control plane: 0.1.0 (local, up 2m5s)\n"));
        assert_eq!(mesh.run("version --client").await.out, own);
        let alone = run_alone("version").await;
        assert_eq!(
            (alone.out.as_str(), alone.err.as_str()),
            (own, "control plane: no local mesh is running, and no kube context is set\n")
        );
        assert!(alone.result.is_ok());
    }
}
