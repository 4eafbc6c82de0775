//! `meshctl describe`: one resource from all sides: its pods, what it receives and sends, its routes.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_api::ext;
use serde::Serialize;

use super::{edges, routes, shared, stat};
use crate::completing;
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::CliError;
use crate::output::table::Tone;
use crate::output::{Cell, Column, Format, Style, Table, clean, format};
use crate::selector::{Scope, Selectors};
use crate::units;

/// The span of time that the figures are about. Seconds.
const WINDOW: u32 = 60;

/// Show a resource from all sides: pods, traffic, peers, routes
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct DescribeArgs {
    /// What to describe: TYPE/NAME or TYPE NAME
    #[arg(required = true, value_name = "RESOURCE", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "json", "yaml"]))]
    pub output: Format,
}

const HELP: &str = "\
JSON and YAML: a list of {kind, namespace, name, cluster_ip, ports, pods, stat, edges, \
routes}, the last three as of the commands of these names.";

/// One resource, as in `-o json`.
#[derive(Debug, Serialize)]
struct Description {
    kind: String,
    namespace: String,
    name: String,
    cluster_ip: Option<String>,
    ports: Vec<Port>,
    pods: Vec<Pod>,
    stat: stat::Report,
    edges: edges::Report,
    routes: routes::Report,
}

#[derive(Debug, Serialize)]
struct Port {
    name: String,
    port: u32,
    protocol: String,
}

#[derive(Debug, Serialize)]
struct Pod {
    name: String,
    ip: String,
    ready: bool,
    meshed: bool,
    terminating: bool,
}

pub(super) async fn run(args: DescribeArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let selectors = Selectors::parse(&args.resources, &args.scope)?;
    let mesh = cx.connect().await?;
    let mut all = Vec::new();
    for selector in &selectors.0 {
        let found = match mesh.resources(selector.clone()).await {
            Ok(found) => found,
            Err(error) => return Err(shared::propose(&mesh, [selector], error).await),
        };
        for workload in found {
            all.push(Description::ask(&mesh, workload).await?);
        }
    }
    if all.is_empty() {
        return shared::nothing(&mesh, &selectors, cx).await;
    }
    let style = cx.ui.out_style;
    cx.ui.print(&match args.output {
        Format::Json => format::json(&all)?,
        Format::Yaml => format::yaml(&all)?,
        _ => all.iter().map(|of| of.text(style)).collect::<Vec<_>>().join("\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Description {
    async fn ask(mesh: &Mesh, workload: ext::Workload) -> Result<Self, CliError> {
        let of = workload.r#ref.unwrap_or_default();
        let selector = ext::Selector {
            kind: of.kind.clone(),
            name: of.name.clone(),
            namespace: of.namespace.clone(),
            labels: String::new(),
        };
        let selectors = Selectors(vec![selector.clone()]);
        let window = Duration::from_secs(u64::from(WINDOW));
        let stat = ext::StatRequest {
            selectors: selectors.0.clone(),
            window_seconds: WINDOW,
            ..Default::default()
        };
        let edges = ext::EdgesRequest { selectors: selectors.0.clone(), window_seconds: WINDOW };
        let (stat, edges, routes) =
            tokio::join!(mesh.stat(stat), mesh.edges(edges), routes::Report::ask(mesh, &selectors));
        Ok(Self {
            kind: of.kind,
            namespace: of.namespace,
            name: of.name,
            cluster_ip: Some(workload.cluster_ip).filter(|ip| !ip.is_empty()),
            ports: workload.ports.into_iter().map(Port::from).collect(),
            pods: workload.pods.into_iter().map(Pod::from).collect(),
            stat: stat::Report::from_reply(stat?, window),
            edges: edges::Report::new(edges?, window),
            routes: routes?,
        })
    }

    fn text(&self, style: Style) -> String {
        let place = if self.namespace.is_empty() {
            String::new()
        } else {
            format!(" in {}", self.namespace)
        };
        let mut text = style.bold(&format!("{}/{}{place}", self.kind, self.name)) + "\n";
        if let Some(ip) = &self.cluster_ip {
            let ports = self.ports.iter().map(|p| format!("{} {}", p.port, p.protocol));
            text += &format!(
                "Address: {}; ports {}\n",
                clean(ip),
                ports.collect::<Vec<_>>().join(", ")
            );
        }
        text += &shared::section("Pods", &self.pods_text(style));
        text += &shared::section(
            &format!("Received in the last {}", units::age(u64::from(WINDOW))),
            &self.stat_text(style),
        );
        let edges = if self.edges.edges.is_empty() {
            "nobody\n".to_owned()
        } else {
            self.edges.table(false).render(style)
        };
        text += &shared::section("Talked with", &edges);
        let routes = if self.routes.routes.is_empty() {
            "none\n".to_owned()
        } else {
            self.routes.paragraphs(style)
        };
        text + &shared::section("Routes", &routes)
    }

    fn pods_text(&self, style: Style) -> String {
        if self.pods.is_empty() {
            return "none\n".to_owned();
        }
        let mut table = Table::new(["POD", "IP", "READY", "MESHED"].map(Column::left));
        for pod in &self.pods {
            let ready = match (pod.terminating, pod.ready) {
                (true, _) => Cell::from("terminating").tone(Tone::Faint),
                (false, true) => Cell::from("yes"),
                (false, false) => Cell::from("no").tone(Tone::Bad),
            };
            let meshed = if pod.meshed { "yes" } else { "no" };
            table.row([
                Cell::from(pod.name.as_str()),
                Cell::from(pod.ip.as_str()),
                ready,
                Cell::from(meshed),
            ]);
        }
        table.render(style)
    }

    fn stat_text(&self, style: Style) -> String {
        match self.stat.rows.as_slice() {
            [only] if only.no_data.is_some() => {
                format!("no figures: {}\n", only.no_data.as_deref().unwrap_or_default())
            }
            [] => "no figures\n".to_owned(),
            _ => stat::Layout { wide: false, by: None, namespaces: false }
                .table(&self.stat)
                .render(style),
        }
    }
}

impl From<ext::Port> for Port {
    fn from(port: ext::Port) -> Self {
        Self { name: port.name, port: port.port, protocol: port.protocol }
    }
}

impl From<ext::Pod> for Pod {
    fn from(pod: ext::Pod) -> Self {
        Self {
            name: pod.name,
            ip: pod.ip,
            ready: pod.ready,
            meshed: pod.meshed,
            terminating: pod.terminating,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;

    use crate::commands::routes::tests::rows;
    use crate::testing::{FakeMesh, golden, object, totals, workload};

    #[tokio::test]
    async fn all_sides_of_a_service() {
        let mut service = workload("service", "shop", "checkout", 2);
        service.cluster_ip = "198.18.128.7".into();
        service.ports =
            vec![ext::Port { name: "http".into(), port: 8080, protocol: "http".into() }];
        service.pods[1].ready = false;
        let row = ext::StatRow {
            r#ref: Some(object("service", "shop", "checkout")),
            meshed_pods: 2,
            running_pods: 2,
            covered_seconds: 60,
            totals: Some(totals(300, 3, 8)),
            ..Default::default()
        };
        let mesh = FakeMesh {
            workloads: vec![service],
            stat: ext::StatReply { rows: vec![row], view: "client".into(), unreachable: vec![] },
            routes: rows(),
            ..FakeMesh::default()
        };
        golden("describe.txt", &mesh.clone().run("describe svc/checkout").await.out);
        let json = mesh.run("describe svc/checkout -o json").await.out;
        let described: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(described[0]["ports"][0]["port"], 8080);
        assert_eq!(described[0]["stat"]["rows"][0]["requests"], 303);
    }
}
