//! `meshctl edges`: who talks to whom, over what, and whether it was secured.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_api::ext;
use serde::Serialize;

use super::identity::account;
use super::shared::{self, Lost};
use super::stat::Figures;
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::{Tone, optional};
use crate::output::{Cell, Column, Format, Table, format};
use crate::selector::{Scope, Selectors, short_kind};
use crate::units;

/// Show who talks to whom
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct EdgesArgs {
    /// Whose connections, in both directions: TYPE, TYPE/NAME or TYPE NAME
    #[arg(value_name = "RESOURCE", default_value = "deploy", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// The span of time to look back, 10s to 10m
    #[arg(long = "time", short = 't', value_name = "TIME", default_value = "1m", value_parser = shared::window)]
    pub window: Duration,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
Peers outside the mesh are listed by their address. The figures are the client's, or the \
server's where the client has no proxy.

JSON and YAML: {window_seconds, edges, unreachable}. An edge has source and destination \
{kind, namespace, name}, service, protocol, secured, no_tls_reason, client_identity, \
server_identity, covered_seconds and the figures of stat. wide has the service accounts that both \
ends proved to be, or why the hop was not secured.";

/// The document of `-o json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    window_seconds: u64,
    pub(crate) edges: Vec<Edge>,
    unreachable: Vec<Lost>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Edge {
    source: End,
    destination: End,
    service: Option<String>,
    protocol: String,
    secured: bool,
    no_tls_reason: Option<String>,
    /// Of those who are this end, joined by `, ` if they differ.
    client_identity: Option<String>,
    server_identity: Option<String>,
    covered_seconds: u32,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct End {
    kind: String,
    namespace: String,
    name: String,
}

pub(super) async fn run(args: EdgesArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let selectors = Selectors::parse(&args.resources, &args.scope)?;
    let window_seconds = u32::try_from(args.window.as_secs()).unwrap_or(u32::MAX);
    let request = ext::EdgesRequest { selectors: selectors.0.clone(), window_seconds };
    let mesh = cx.connect().await?;
    let reply = match mesh.edges(request).await {
        Ok(reply) => reply,
        Err(error) => return Err(shared::propose(&mesh, &selectors.0, error).await),
    };
    let report = Report::new(reply, args.window);
    match args.output {
        Format::Json => cx.ui.print(&format::json(&report)?)?,
        Format::Yaml => cx.ui.print(&format::yaml(&report)?)?,
        _ if report.edges.is_empty() => {
            for named in selectors.0.iter().filter(|s| !s.name.is_empty()) {
                if mesh.resources(named.clone()).await?.is_empty() {
                    return Err(shared::no_such(&mesh, named).await);
                }
            }
            let window = units::age(report.window_seconds);
            cx.ui
                .note(&format!("{} had no connections in the last {window}", selectors.describe()));
        }
        wanted => cx.ui.print(&report.table(wanted == Format::Wide).render(cx.ui.out_style))?,
    }
    if args.output.is_for_people() {
        shared::lost_notes(&report.unreachable).for_each(|note| cx.ui.note(&note));
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    pub(crate) fn new(reply: ext::EdgesReply, window: Duration) -> Self {
        let mut edges: Vec<Edge> = reply.edges.into_iter().map(Edge::from).collect();
        edges.sort_by(|a, b| {
            let key =
                |edge: &Edge| (edge.source.clone(), edge.destination.clone(), edge.service.clone());
            key(a).cmp(&key(b))
        });
        Self {
            window_seconds: window.as_secs(),
            edges,
            unreachable: reply.unreachable.into_iter().map(Lost::from).collect(),
        }
    }

    pub(crate) fn table(&self, wide: bool) -> Table {
        let ends = || self.edges.iter().flat_map(|edge| [&edge.source, &edge.destination]);
        let inside: BTreeSet<&str> =
            ends().map(|end| end.namespace.as_str()).filter(|ns| !ns.is_empty()).collect();
        // The kind that most have goes without saying.
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for end in ends().filter(|end| !end.is_outside()) {
            *counts.entry(&end.kind).or_default() += 1;
        }
        let usual = counts.iter().max_by_key(|(_, count)| **count).map_or("", |(kind, _)| *kind);
        let names = Names { usual, namespaces: inside.len() > 1 };

        let mut columns = vec![Column::left("SOURCE"), Column::left("DESTINATION")];
        columns.push(Column::left("SERVICE"));
        columns.push(Column::left("PROTO"));
        columns.push(Column::left("SECURED"));
        columns.extend(["SUCCESS", "RPS", "P95"].map(Column::right));
        if wide {
            columns.extend(["P50", "P99", "REQ_B/S", "RESP_B/S", "TCP_CONN"].map(Column::right));
            columns
                .extend(["CLIENT_ACCOUNT", "SERVER_ACCOUNT", "WHY_NOT_SECURED"].map(Column::left));
        }
        let mut table = Table::new(columns);
        for edge in &self.edges {
            table.row(edge.cells(names, wide));
        }
        table
    }
}

/// What of a name has to be shown to tell it from others.
#[derive(Clone, Copy)]
struct Names<'a> {
    /// The kind that is left out.
    usual: &'a str,
    namespaces: bool,
}

impl Edge {
    fn cells(&self, names: Names<'_>, wide: bool) -> Vec<Cell> {
        let of = &self.figures;
        let millis =
            |ms: Option<f64>| optional(ms, |ms| units::latency(Duration::from_secs_f64(ms / 1e3)));
        let secured = if self.secured { "yes" } else { "no" };
        let service =
            self.service.as_deref().map(|s| shared::short_reference(s, self.destination.home()));
        let mut cells = vec![
            self.source.cell(names),
            self.destination.cell(names),
            Cell::from(service.unwrap_or_default()),
            Cell::from(self.protocol.as_str()),
            Cell::from(secured).tone(if self.secured { Tone::Good } else { Tone::Plain }),
            optional(of.success, units::percent),
            optional(of.rps, units::rate),
            millis(of.latency_ms_p95),
        ];
        if wide {
            cells.extend([of.latency_ms_p50, of.latency_ms_p99].map(millis));
            cells.extend(
                [of.request_bytes_rate, of.response_bytes_rate]
                    .map(|rate| optional(rate, units::bytes)),
            );
            cells.push(optional(of.tcp_open_connections, |count| count.to_string()));
            cells.extend(
                [&self.client_identity, &self.server_identity]
                    .map(|ids| optional(ids.as_deref(), accounts)),
            );
            cells.push(Cell::from(self.no_tls_reason.clone().unwrap_or_default()));
        }
        cells
    }
}

/// `web.shop, load.shop`
fn accounts(identities: &str) -> String {
    identities.split(", ").map(account).collect::<Vec<_>>().join(", ")
}

impl From<ext::Edge> for Edge {
    fn from(edge: ext::Edge) -> Self {
        let text = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            source: End::from(edge.source.unwrap_or_default()),
            destination: End::from(edge.destination.unwrap_or_default()),
            service: text(edge.service),
            protocol: edge.protocol,
            secured: edge.secured,
            no_tls_reason: text(edge.no_tls_reason),
            client_identity: text(edge.client_identity),
            server_identity: text(edge.server_identity),
            covered_seconds: edge.covered_seconds,
            figures: edge
                .totals
                .map(|totals| Figures::new(&totals, edge.covered_seconds))
                .unwrap_or_default(),
        }
    }
}

impl From<ext::ObjectRef> for End {
    fn from(of: ext::ObjectRef) -> Self {
        Self { kind: of.kind, namespace: of.namespace, name: of.name }
    }
}

impl End {
    /// The namespace it is in, or is.
    fn home(&self) -> &str {
        if self.kind == "namespace" { &self.name } else { &self.namespace }
    }

    fn is_outside(&self) -> bool {
        self.kind == "external"
    }

    fn cell(&self, names: Names<'_>) -> Cell {
        if self.is_outside() {
            return Cell::from(self.name.as_str()).tone(Tone::Faint);
        }
        let mut text = self.name.clone();
        if names.namespaces && !self.namespace.is_empty() {
            text = format!("{}/{text}", self.namespace);
        }
        if self.kind != names.usual {
            text = format!("{}/{text}", short_kind(&self.kind));
        }
        Cell::from(text)
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;

    use crate::testing::{FakeMesh, golden, object, totals};

    fn mesh() -> FakeMesh {
        let edge = |source, destination, protocol: &str| ext::Edge {
            source: Some(source),
            destination: Some(destination),
            service: "Service/shop/tax:8080".into(),
            protocol: protocol.into(),
            no_tls_reason: "disabled".into(),
            covered_seconds: 60,
            totals: Some(totals(590, 10, 12)),
            ..Default::default()
        };
        let deploy = |name| object("deployment", "shop", name);
        let external = ext::ObjectRef {
            kind: "external".into(),
            name: "10.0.0.9".into(),
            ..Default::default()
        };
        let mut tcp = edge(deploy("checkout"), deploy("ledger"), "tcp");
        tcp.totals = Some(ext::Totals { tcp_open: 4, request_bytes: 6_000, ..Default::default() });
        tcp.service = String::new();
        tcp.secured = true;
        tcp.no_tls_reason = String::new();
        let id =
            |account| format!("{account}.shop.serviceaccount.identity.mesh-system.cluster.local");
        tcp.client_identity = [id("checkout"), id("other")].join(", ");
        tcp.server_identity = id("ledger");
        FakeMesh {
            edges: ext::EdgesReply {
                edges: vec![
                    tcp,
                    edge(deploy("checkout"), deploy("tax"), "http"),
                    edge(external, deploy("tax"), "http"),
                ],
                unreachable: vec![],
            },
            ..FakeMesh::default()
        }
    }

    #[tokio::test]
    async fn tables_and_documents() {
        golden("edges.txt", &mesh().run("edges").await.out);
        golden("edges-wide.txt", &mesh().run("edges deploy -o wide").await.out);
        golden("edges.json", &mesh().run("edges deploy -o json").await.out);
    }

    #[tokio::test]
    async fn silence_is_explained() {
        let ran = FakeMesh::default().run("edges deploy -n shop").await;
        assert_eq!(ran.err, "deployments in shop had no connections in the last 1m\n");
        let error = FakeMesh::default().run("edges deploy/none").await.result.unwrap_err();
        assert_eq!(error.message, "there is no deployment/none");
    }
}
