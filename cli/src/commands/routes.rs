//! `meshctl routes`: which routes apply to a resource, what they match, where they send, and their policies.

use std::process::ExitCode;

use clap::Args;
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

/// Show which routes apply to a resource
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct RoutesArgs {
    /// What the routes are about: TYPE, TYPE/NAME or TYPE NAME
    #[arg(value_name = "RESOURCE", default_value = "svc", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml", "name"]))]
    pub output: Format,
}

const HELP: &str = "\
Of several matches, the first that fits a request decides. wide is one line a match.

JSON and YAML: {routes: [{route, parent, status, matches: [{match, backends, policy}]}]}.";

const ACCEPTED: &str = "Accepted";

/// Whether a route of this status is in force. It may say more, as in `Accepted: for clients in …`.
pub(crate) fn accepted(status: &str) -> bool {
    status.is_empty() || status.starts_with(ACCEPTED)
}

/// The document of `-o json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) routes: Vec<Route>,
}

/// A route attached to a parent.
#[derive(Debug, Serialize)]
pub(crate) struct Route {
    route: String,
    parent: String,
    status: String,
    matches: Vec<Match>,
}

#[derive(Debug, Serialize)]
struct Match {
    r#match: String,
    backends: String,
    policy: Option<String>,
}

pub(super) async fn run(args: RoutesArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let selectors = Selectors::parse(&args.resources, &args.scope)?;
    let mesh = cx.connect().await?;
    let report = Report::ask(&mesh, &selectors).await?;
    if report.routes.is_empty() {
        for named in selectors.0.iter().filter(|s| !s.name.is_empty()) {
            if mesh.resources(named.clone()).await?.is_empty() {
                return Err(shared::no_such(&mesh, named).await);
            }
        }
        cx.ui.note(&format!("no routes apply to {}", selectors.describe()));
        return Ok(ExitCode::SUCCESS);
    }
    let style = cx.ui.out_style;
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        Format::Yaml => format::yaml(&report)?,
        Format::Name => report.routes.iter().map(|route| format!("{}\n", route.route)).collect(),
        Format::Wide => report.table().render(style),
        _ => report.paragraphs(style),
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    pub(crate) async fn ask(mesh: &Mesh, selectors: &Selectors) -> Result<Self, CliError> {
        Ok(Self::new(shared::of_all(mesh, selectors, Mesh::routes).await?))
    }

    /// Gathers the matches of each route; their order is the order of precedence.
    fn new(rows: Vec<ext::RouteRow>) -> Self {
        let mut routes: Vec<Route> = Vec::new();
        for row in rows {
            let of = Match {
                r#match: row.r#match,
                backends: row.backends,
                policy: Some(row.policy).filter(|policy| !policy.is_empty()),
            };
            match routes.iter_mut().find(|r| r.route == row.route && r.parent == row.parent) {
                Some(route) => route.matches.push(of),
                None => routes.push(Route {
                    route: row.route,
                    parent: row.parent,
                    status: row.status,
                    matches: vec![of],
                }),
            }
        }
        routes.sort_by(|a, b| (&a.parent, &a.route).cmp(&(&b.parent, &b.route)));
        Self { routes }
    }

    /// One paragraph a route: backends and policies are too long for a table of 80 columns.
    pub(crate) fn paragraphs(&self, style: Style) -> String {
        let mut text = String::new();
        for (at, route) in self.routes.iter().enumerate() {
            let gap = if at > 0 { "\n" } else { "" };
            let status = match route.status.as_str() {
                "" | ACCEPTED => String::new(),
                status if accepted(status) => format!("  {}", style.dim(&clean(status))),
                status => format!("  {}", Tone::Bad.paint(style, &clean(status))),
            };
            text += &format!(
                "{gap}{} → {}{status}\n",
                style.bold(&clean(&route.route)),
                clean(&route.parent)
            );
            for of in &route.matches {
                text += &format!(
                    "  {}\n",
                    if of.r#match.is_empty() { "*".into() } else { clean(&of.r#match) }
                );
                let backends =
                    if of.backends.is_empty() { "-".into() } else { clean(&of.backends) };
                text += &format!("    to      {backends}\n");
                if let Some(policy) = &of.policy {
                    text += &format!("    policy  {}\n", clean(policy));
                }
            }
        }
        text
    }

    fn table(&self) -> Table {
        let headings = ["ROUTE", "PARENT", "STATUS", "MATCH", "BACKENDS", "POLICY"];
        let mut table = Table::new(headings.map(Column::left));
        for route in &self.routes {
            for of in &route.matches {
                table.row([
                    Cell::from(route.route.as_str()),
                    Cell::from(route.parent.as_str()),
                    Cell::from(route.status.as_str()),
                    Cell::from(of.r#match.as_str()),
                    Cell::from(of.backends.as_str()),
                    Cell::from(of.policy.clone().unwrap_or_default()),
                ]);
            }
        }
        table
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden, workload};

    pub(crate) fn rows() -> Vec<ext::RouteRow> {
        let row = |matching: &str, backends: &str, policy: &str| ext::RouteRow {
            route: "HTTPRoute/shop/checkout".into(),
            parent: "Service/shop/checkout:8080".into(),
            r#match: matching.into(),
            backends: backends.into(),
            policy: policy.into(),
            status: "Accepted".into(),
        };
        let split = "checkout-v1:8080 75%, checkout-v2:8080 25%";
        vec![
            row("Exact /buy POST", split, "retry 2 on 500-504; request 5s"),
            row("PathPrefix /", split, ""),
            ext::RouteRow {
                route: "HTTPRoute/shop/tax".into(),
                parent: "Service/shop/tax:8080".into(),
                status: "RefNotResolved: no service tax-v3".into(),
                ..row("PathPrefix /", "", "")
            },
        ]
    }

    #[tokio::test]
    async fn paragraphs_table_and_documents() {
        let mesh = FakeMesh { routes: rows(), ..FakeMesh::default() };
        golden("routes.txt", &mesh.clone().run("routes").await.out);
        golden("routes-wide.txt", &mesh.clone().run("routes svc/checkout -o wide").await.out);
        golden("routes.json", &mesh.run("routes svc -o json").await.out);
    }

    #[tokio::test]
    async fn nothing_applies() {
        let mesh = FakeMesh {
            workloads: vec![workload("service", "shop", "tax", 1)],
            ..FakeMesh::default()
        };
        let ran = mesh.clone().run("routes svc/tax -n shop").await;
        assert_eq!(ran.err, "no routes apply to service/tax in shop\n");
        assert!(mesh.run("routes svc/none").await.result.is_err());
    }
}
