//! `meshctl describe`: one resource from all sides: what applies to it and who says so, its pods, what it receives
//! and sends.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_api::ext;
use serde::Serialize;

use super::analyze::Finding;
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

/// Show a resource from all sides: what applies to it and why, pods, traffic, peers
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
JSON and YAML: a list of {kind, namespace, name, cluster_ip, ports: [{name, port, protocol, why}], settings: \
[{name, value, why}], pods, endpoints, stat, edges, routes, policies: [{port, policy, action, from, to}], \
findings}; stat, edges and routes are as of the commands of these names, findings as of analyze.";

/// One resource, as in `-o json`.
#[derive(Debug, Serialize)]
struct Description {
    kind: String,
    namespace: String,
    name: String,
    cluster_ip: Option<String>,
    ports: Vec<Port>,
    settings: Vec<Setting>,
    pods: Vec<Pod>,
    endpoints: Vec<Endpoint>,
    stat: stat::Report,
    edges: edges::Report,
    routes: routes::Report,
    policies: Vec<Policy>,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Port {
    name: String,
    port: u32,
    protocol: String,
    /// Who says so.
    why: String,
}

#[derive(Debug, Serialize)]
struct Setting {
    name: String,
    value: String,
    why: String,
}

/// Of a service.
#[derive(Debug, Serialize)]
struct Endpoint {
    port: u32,
    address: String,
    pod: String,
}

#[derive(Debug, Serialize)]
struct Policy {
    port: u32,
    policy: String,
    action: String,
    from: String,
    to: String,
}

#[derive(Debug, Serialize)]
struct Pod {
    name: String,
    ip: String,
    ready: bool,
    meshed: bool,
    terminating: bool,
    identity: Option<String>,
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
        let analyze =
            ext::AnalyzeRequest { selector: Some(selector.clone()), ..Default::default() };
        let (stat, edges, routes, policies, findings, endpoints) = tokio::join!(
            mesh.stat(stat),
            mesh.edges(edges),
            routes::Report::ask(mesh, &selectors),
            mesh.authorizations(selector),
            mesh.analyze(analyze),
            endpoints_of(mesh, &of, &workload.ports),
        );
        Ok(Self {
            kind: of.kind,
            namespace: of.namespace,
            name: of.name,
            cluster_ip: Some(workload.cluster_ip).filter(|ip| !ip.is_empty()),
            ports: workload.ports.into_iter().map(Port::from).collect(),
            settings: workload.settings.into_iter().map(Setting::from).collect(),
            endpoints: endpoints?,
            policies: policies?.into_iter().map(Policy::from).collect(),
            findings: findings?.diagnoses.into_iter().map(Finding::from).collect(),
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
            text += &format!("Address: {}\n", clean(ip));
        }
        text += &some("Ports", &self.ports_text(style));
        let settings = self.settings.iter();
        let settings = settings.map(|of| format!("{}: {} ({})\n", of.name, of.value, of.why));
        text += &some(
            "Clients use it with",
            &settings.map(|line| clean_line(&line)).collect::<String>(),
        );
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
        text += &shared::section("Routes", &routes);
        text += &some("Endpoints", &self.endpoints_text(style));
        text += &some("Who may", &self.policies_text(style));
        text + &some("Findings", &self.findings.iter().map(|f| f.text(style)).collect::<String>())
    }

    fn ports_text(&self, style: Style) -> String {
        let mut table = Table::new([
            Column::right("PORT"),
            Column::left("NAME"),
            Column::left("PROTOCOL"),
            Column::left("BY"),
        ]);
        for port in &self.ports {
            table.row([
                Cell::from(port.port.to_string()),
                Cell::from(port.name.as_str()),
                Cell::from(port.protocol.as_str()),
                Cell::from(port.why.as_str()),
            ]);
        }
        if table.is_empty() { String::new() } else { table.render(style) }
    }

    fn endpoints_text(&self, style: Style) -> String {
        let mut table =
            Table::new([Column::right("PORT"), Column::left("ADDRESS"), Column::left("POD")]);
        for endpoint in &self.endpoints {
            table.row([
                Cell::from(endpoint.port.to_string()),
                Cell::from(endpoint.address.as_str()),
                Cell::from(endpoint.pod.as_str()),
            ]);
        }
        if table.is_empty() { String::new() } else { table.render(style) }
    }

    fn policies_text(&self, style: Style) -> String {
        let mut table = Table::new([
            Column::right("PORT"),
            Column::left("ACTION"),
            Column::left("POLICY"),
            Column::left("FROM"),
            Column::left("TO"),
        ]);
        for of in &self.policies {
            table.row([
                Cell::from(of.port.to_string()),
                Cell::from(of.action.as_str()),
                Cell::from(of.policy.as_str()),
                Cell::from(of.from.as_str()),
                Cell::from(of.to.as_str()),
            ]);
        }
        if table.is_empty() { String::new() } else { table.render(style) }
    }

    fn pods_text(&self, style: Style) -> String {
        if self.pods.is_empty() {
            return "none\n".to_owned();
        }
        let mut table = Table::new(["POD", "IP", "READY", "MESHED", "IDENTITY"].map(Column::left));
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
                Cell::from(pod.identity.clone().unwrap_or_default()),
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
        Self { name: port.name, port: port.port, protocol: port.protocol, why: port.why }
    }
}

impl From<ext::Setting> for Setting {
    fn from(of: ext::Setting) -> Self {
        Self { name: of.name, value: of.value, why: of.why }
    }
}

impl From<ext::AuthorizationRow> for Policy {
    fn from(row: ext::AuthorizationRow) -> Self {
        let ext::AuthorizationRow { port, policy, action, from, to, .. } = row;
        Self { port, policy, action, from, to }
    }
}

/// Where requests to a service end, by its ports; nothing else has endpoints.
async fn endpoints_of(
    mesh: &Mesh,
    of: &ext::ObjectRef,
    ports: &[ext::Port],
) -> Result<Vec<Endpoint>, CliError> {
    let mut endpoints = Vec::new();
    for port in ports.iter().filter(|_| of.kind == "service") {
        let authority = format!("{}.{}:{}", of.name, of.namespace, port.port);
        let request = ext::EndpointsRequest { authority, from_proxies: false };
        let rows = mesh.endpoints(request).await?.endpoints;
        endpoints.extend(rows.into_iter().map(|row| Endpoint {
            port: port.port,
            address: row.address,
            pod: row.pod,
        }));
    }
    Ok(endpoints)
}

fn some(heading: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { shared::section(heading, text) }
}

fn clean_line(text: &str) -> String {
    crate::output::clean_lines(text).into_owned()
}

impl From<ext::Pod> for Pod {
    fn from(pod: ext::Pod) -> Self {
        Self {
            name: pod.name,
            ip: pod.ip,
            ready: pod.ready,
            meshed: pod.meshed,
            terminating: pod.terminating,
            identity: Some(pod.identity).filter(|id| !id.is_empty()),
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
        service.ports = vec![ext::Port {
            name: "http".into(),
            port: 8080,
            protocol: "http".into(),
            why: "appProtocol of the Service".into(),
        }];
        service.settings = vec![ext::Setting {
            name: "balancer".into(),
            value: "peak-ewma".into(),
            why: "the default".into(),
        }];
        service.pods[0].identity = "checkout.shop.serviceaccount.identity.mesh".into();
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
            endpoints: ext::EndpointsReply {
                endpoints: vec![ext::EndpointRow {
                    address: "127.101.0.1:8080".into(),
                    pod: "checkout-1".into(),
                    ..Default::default()
                }],
                ..Default::default()
            },
            authorizations: vec![ext::AuthorizationRow {
                port: 8080,
                policy: "default/all-unauthenticated".into(),
                action: "all-unauthenticated".into(),
                ..Default::default()
            }],
            analysis: ext::AnalyzeReply {
                diagnoses: vec![ext::Diagnosis {
                    code: "MESH104".into(),
                    severity: "warning".into(),
                    object: "HTTPRoute/shop/checkout".into(),
                    message: "no request is left for it".into(),
                    remedy: "remove it".into(),
                    ..Default::default()
                }],
                objects: 1,
            },
            ..FakeMesh::default()
        };
        golden("describe.txt", &mesh.clone().run("describe svc/checkout").await.out);
        let json = mesh.run("describe svc/checkout -o json").await.out;
        let described: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(described[0]["ports"][0]["port"], 8080);
        assert_eq!(described[0]["stat"]["rows"][0]["requests"], 303);
    }
}
