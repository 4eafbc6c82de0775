//! `meshctl proxy status`: every proxy, whether it answers, is in sync and of our version.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::Args;
use mesh_api::ext;
use serde::Serialize;

use crate::commands::shared;
use crate::completing;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Cell, Column, Format, Table, clean, format};
use crate::selector::{Scope, Selectors};
use crate::units;

/// Show whether each proxy is reachable, ready and in sync
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct StatusArgs {
    /// Whose proxies: TYPE, TYPE/NAME or TYPE NAME
    #[arg(value_name = "RESOURCE", default_value = "po", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml", "name"]))]
    pub output: Format,
}

const HELP: &str = "\
SYNC is the streams to the control plane that are up, of those wanted. REJECTED counts \
updates the proxy could not use; the last good one stays in force.

JSON and YAML: {proxies}; a proxy has namespace, pod, ip, reachable, error, ready, version, \
uptime_seconds, streams_up, streams_wanted, config_rejected and rss_bytes.";

#[derive(Debug, Serialize)]
struct Report {
    proxies: Vec<Proxy>,
}

#[derive(Debug, Serialize)]
struct Proxy {
    namespace: String,
    pod: String,
    ip: String,
    reachable: bool,
    error: Option<String>,
    ready: bool,
    version: String,
    uptime_seconds: u64,
    streams_up: u32,
    streams_wanted: u32,
    config_rejected: u64,
    rss_bytes: u64,
}

pub(super) async fn run(args: StatusArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let selectors = Selectors::parse(&args.resources, &args.scope)?;
    let mesh = cx.connect().await?;
    let mut rows = Vec::new();
    for selector in &selectors.0 {
        match mesh.proxies(selector.clone()).await {
            Ok(found) => rows.extend(found),
            Err(error) => return Err(shared::propose(&mesh, [selector], error).await),
        }
    }
    let report = Report::new(rows);
    if report.proxies.is_empty() {
        return shared::nothing(&mesh, &selectors, cx).await;
    }
    cx.ui.print(&match args.output {
        Format::Json => format::json(&report)?,
        Format::Yaml => format::yaml(&report)?,
        Format::Name => report.proxies.iter().map(|proxy| format!("pod/{}\n", proxy.pod)).collect(),
        wanted => {
            let namespaces = args.scope.all_namespaces;
            report.table(namespaces, wanted == Format::Wide).render(cx.ui.out_style)
        }
    })?;
    if args.output.is_for_people() {
        for proxy in &report.proxies {
            if let Some(error) = &proxy.error {
                cx.ui.note(&format!(
                    "not reachable: {}/{}: {}",
                    proxy.namespace,
                    proxy.pod,
                    clean(error)
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(rows: Vec<ext::ProxyRow>) -> Self {
        let mut proxies: Vec<Proxy> = rows.into_iter().map(Proxy::from).collect();
        proxies.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
        proxies.dedup_by(|a, b| a.namespace == b.namespace && a.pod == b.pod);
        Self { proxies }
    }

    fn table(&self, namespaces: bool, wide: bool) -> Table {
        let known: BTreeSet<&str> =
            self.proxies.iter().map(|proxy| proxy.namespace.as_str()).collect();
        let namespaces = namespaces || known.len() > 1;
        let mut columns = Vec::new();
        columns.extend(namespaces.then_some(Column::left("NAMESPACE")));
        columns.extend(["POD", "READY", "VERSION"].map(Column::left));
        columns.extend(["SYNC", "REJECTED", "RSS", "UPTIME"].map(Column::right));
        if wide {
            columns.push(Column::left("IP"));
        }
        let mut table = Table::new(columns);
        for proxy in &self.proxies {
            let mut cells = Vec::new();
            cells.extend(namespaces.then(|| Cell::from(proxy.namespace.as_str())));
            cells.push(Cell::from(proxy.pod.as_str()));
            cells.extend(proxy.cells());
            if wide {
                cells.push(Cell::from(proxy.ip.as_str()));
            }
            table.row(cells);
        }
        table
    }
}

impl Proxy {
    fn cells(&self) -> Vec<Cell> {
        if !self.reachable {
            let unknown = std::iter::repeat_with(Cell::missing).take(5);
            return [Cell::from("no").tone(Tone::Bad)].into_iter().chain(unknown).collect();
        }
        let in_sync = self.streams_up >= self.streams_wanted;
        vec![
            if self.ready { Cell::from("yes") } else { Cell::from("no").tone(Tone::Bad) },
            Cell::from(self.version.as_str()),
            Cell::from(format!("{}/{}", self.streams_up, self.streams_wanted)).tone(if in_sync {
                Tone::Plain
            } else {
                Tone::Bad
            }),
            Cell::from(self.config_rejected.to_string()).tone(if self.config_rejected > 0 {
                Tone::Warn
            } else {
                Tone::Plain
            }),
            Cell::from(units::bytes(self.rss_bytes as f64)),
            Cell::from(units::age(self.uptime_seconds)),
        ]
    }
}

impl From<ext::ProxyRow> for Proxy {
    fn from(row: ext::ProxyRow) -> Self {
        Self {
            namespace: row.namespace,
            pod: row.pod,
            ip: row.ip,
            reachable: row.reachable,
            error: Some(row.error).filter(|error| !error.is_empty()),
            ready: row.ready,
            version: row.version,
            uptime_seconds: row.uptime_seconds,
            streams_up: row.streams_up,
            streams_wanted: row.streams_wanted,
            config_rejected: row.config_rejected,
            rss_bytes: row.rss_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{FakeMesh, golden, proxy_row};

    #[tokio::test]
    async fn tables_and_documents() {
        let mut lost = proxy_row("tax-1");
        (lost.reachable, lost.error) = (false, "connection refused".into());
        let mut behind = proxy_row("web-2");
        (behind.streams_up, behind.config_rejected) = (3, 2);
        let proxies = vec![proxy_row("web-1"), behind, lost];
        let mesh = FakeMesh { proxies, ..FakeMesh::default() };
        let ran = mesh.clone().run("proxy status").await;
        golden("proxy-status.txt", &ran.out);
        assert_eq!(ran.err, "not reachable: shop/tax-1: connection refused\n");
        golden("proxy-status-wide.txt", &mesh.clone().run("proxy status -A -o wide").await.out);
        golden("proxy-status.json", &mesh.run("proxy status -o json").await.out);
    }
}
