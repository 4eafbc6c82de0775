//! `meshctl authz`: which authorization policies apply to a resource; by `can`, what comes of them; and by
//! `generate`, which would allow what was observed.

mod can;
mod generate;
mod watch;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use mesh_api::ext;
use serde::Serialize;

use super::shared;
use crate::completing;
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Cell, Column, Format, Style, Table, clean, format};
use crate::selector::{Scope, Selectors};

/// Show who may use a resource, and ask whether somebody may
#[derive(Args, Debug)]
#[command(after_long_help = HELP, args_conflicts_with_subcommands = true)]
pub struct AuthzArgs {
    #[command(subcommand)]
    pub command: Option<AuthzCommand>,
    /// What the policies are about: TYPE, TYPE/NAME or TYPE NAME
    #[arg(value_name = "RESOURCE", default_value = "deploy", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml", "name"]))]
    pub output: Format,
}

#[derive(Debug, Subcommand)]
pub enum AuthzCommand {
    // Both are large.
    Can(Box<can::CanArgs>),
    Generate(generate::GenerateArgs),
}

const HELP: &str = "\
A policy that denies goes before those that allow; where one that allows is about a port, one of \
them must match; else the port's default decides. wide is one line a policy.

JSON and YAML: {ports: [{kind, name, namespace, port, policies: [{policy, action, from, to}], \
defaults: [{policy, access}]}]}.";

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Report {
    ports: Vec<Port>,
}

#[derive(Debug, Serialize)]
struct Port {
    kind: String,
    name: String,
    namespace: String,
    port: u32,
    policies: Vec<Policy>,
    /// Several if the pods differ.
    defaults: Vec<Default>,
}

#[derive(Debug, Serialize)]
struct Policy {
    policy: String,
    action: String,
    from: String,
    to: String,
}

#[derive(Debug, Serialize)]
struct Default {
    policy: String,
    access: String,
}

pub(super) async fn run(args: AuthzArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    match args.command {
        Some(AuthzCommand::Can(args)) => return can::run(*args, cx).await,
        Some(AuthzCommand::Generate(args)) => return generate::run(args, cx).await,
        None => {}
    }
    let selectors = Selectors::parse(&args.resources, &args.scope)?;
    let mesh = cx.connect().await?;
    let report = Report::ask(&mesh, &selectors).await?;
    if report.ports.is_empty() {
        for named in selectors.0.iter().filter(|s| !s.name.is_empty()) {
            if mesh.resources(named.clone()).await?.is_empty() {
                return Err(shared::no_such(&mesh, named).await);
            }
        }
        cx.ui.note(&format!("{} has no running pods with ports", selectors.describe()));
        return Ok(ExitCode::SUCCESS);
    }
    let style = cx.ui.out_style;
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        Format::Yaml => format::yaml(&report)?,
        Format::Name => report.names(),
        Format::Wide => report.table().render(style),
        _ => report.paragraphs(style),
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    async fn ask(mesh: &Mesh, selectors: &Selectors) -> Result<Self, CliError> {
        Ok(Self::new(shared::of_all(mesh, selectors, Mesh::authorizations).await?))
    }

    fn new(rows: Vec<ext::AuthorizationRow>) -> Self {
        let mut ports: Vec<Port> = Vec::new();
        for row in rows {
            let of = row.r#ref.unwrap_or_default();
            let is_of = |port: &Port| {
                (&port.kind, &port.name, &port.namespace, port.port)
                    == (&of.kind, &of.name, &of.namespace, row.port)
            };
            let at = ports.iter().position(is_of).unwrap_or_else(|| {
                ports.push(Port {
                    kind: of.kind,
                    name: of.name,
                    namespace: of.namespace,
                    port: row.port,
                    policies: Vec::new(),
                    defaults: Vec::new(),
                });
                ports.len() - 1
            });
            let port = &mut ports[at];
            // Only rules say whom they are about.
            if row.from.is_empty() {
                port.defaults.push(Default { policy: row.policy, access: row.action });
            } else {
                let (action, from, to) = (row.action, row.from, row.to);
                port.policies.push(Policy { policy: row.policy, action, from, to });
            }
        }
        Self { ports }
    }

    fn names(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for policy in self.ports.iter().flat_map(|port| &port.policies) {
            if !names.contains(&policy.policy.as_str()) {
                names.push(&policy.policy);
            }
        }
        names.into_iter().map(|name| format!("{name}\n")).collect()
    }

    /// One paragraph a port: identities are too long for a table of 80 columns.
    fn paragraphs(&self, style: Style) -> String {
        let mut text = String::new();
        for (at, port) in self.ports.iter().enumerate() {
            let gap = if at > 0 { "\n" } else { "" };
            let title = format!("{}/{}:{}", port.kind, port.name, port.port);
            text += &format!("{gap}{} in {}\n", style.bold(&clean(&title)), clean(&port.namespace));
            for of in &port.policies {
                text += &format!("  {}  {}\n", action(&of.action, style), clean(&of.policy));
                text += &format!("    from  {}\n", clean(&of.from));
                text += &format!("    to    {}\n", clean(&of.to));
            }
            for of in &port.defaults {
                let by = match of.policy.strip_prefix("default/") {
                    Some(_) => String::new(),
                    None => format!("  {}", style.dim(&clean(&of.policy))),
                };
                text += &format!("  default  {}{by}\n", clean(&of.access));
            }
        }
        text
    }

    fn table(&self) -> Table {
        let headings = ["NAMESPACE", "RESOURCE", "POLICY", "ACTION", "FROM", "TO"];
        let mut table = Table::new(headings.map(Column::left));
        for port in &self.ports {
            let resource = format!("{}/{}:{}", port.kind, port.name, port.port);
            let mut row = |policy: &str, action: &str, from: &str, to: &str| {
                let cells = [&port.namespace, resource.as_str(), policy, action, from, to];
                table.row(cells.map(Cell::from));
            };
            for of in &port.policies {
                row(&of.policy, &of.action, &of.from, &of.to);
            }
            for of in &port.defaults {
                row(&of.policy, &of.access, "", "");
            }
        }
        table
    }
}

fn action(action: &str, style: Style) -> String {
    let padded = format!("{action:<5}");
    match action {
        "Deny" => Tone::Bad.paint(style, &padded),
        "Allow" => Tone::Good.paint(style, &padded),
        _ => padded,
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden, object, workload};

    fn row(policy: &str, action: &str, from: &str, to: &str) -> ext::AuthorizationRow {
        ext::AuthorizationRow {
            r#ref: Some(object("deployment", "shop", "finance")),
            port: 8080,
            policy: policy.into(),
            action: action.into(),
            from: from.into(),
            to: to.into(),
        }
    }

    #[tokio::test]
    async fn paragraphs_table_and_documents() {
        let portal = "portal.shop.serviceaccount.identity.mesh-system.cluster.local";
        let authorizations = vec![
            row("AuthorizationPolicy/shop/no-admin", "Deny", "anyone", "/admin/*"),
            row("AuthorizationPolicy/shop/finance", "Allow", portal, "GET /v1/*"),
            row("default/deny", "deny", "", ""),
            ext::AuthorizationRow {
                port: 9090,
                ..row("ServerPolicy/shop/metrics", "cluster-unauthenticated", "", "")
            },
        ];
        let mesh = FakeMesh { authorizations, ..FakeMesh::default() };
        golden("authz.txt", &mesh.clone().run("authz deploy/finance").await.out);
        golden("authz-wide.txt", &mesh.clone().run("authz deploy -o wide").await.out);
        golden("authz.json", &mesh.clone().run("authz -o json").await.out);
        let names = mesh.run("authz -o name").await.out;
        assert_eq!(names, "AuthorizationPolicy/shop/no-admin\nAuthorizationPolicy/shop/finance\n");
    }

    #[tokio::test]
    async fn nothing_is_there() {
        let workloads = vec![workload("deployment", "shop", "idle", 0)];
        let mesh = FakeMesh { workloads, ..FakeMesh::default() };
        let ran = mesh.clone().run("authz deploy/idle -n shop").await;
        assert_eq!(ran.err, "deployment/idle in shop has no running pods with ports\n");
        assert!(mesh.run("authz deploy/none").await.result.is_err());
    }
}
