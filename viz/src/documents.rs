//! The documents the page is drawn from. Latencies are milliseconds; what is not known is `null`.

use mesh_api::ext::{EdgesReply, ObjectRef, StatReply, Totals};
use mesh_model::stats;
use serde::Serialize;

/// `/api/stat`: one row per workload, as its own proxies counted.
#[derive(Debug, Serialize)]
pub struct Stat {
    pub rows: Vec<Row>,
    /// Pods whose proxies did not answer, each with the reason.
    pub unreachable: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub namespace: String,
    pub meshed: u32,
    pub running: u32,
    #[serde(flatten)]
    pub figures: Figures,
    /// Why there are no figures; empty if there are.
    pub no_data: String,
}

/// `/api/edges`: who talks to whom, as the clients counted.
#[derive(Debug, Serialize)]
pub struct Edges {
    pub edges: Vec<Edge>,
}

#[derive(Debug, Serialize)]
pub struct Edge {
    pub source: String,
    pub destination: String,
    pub service: String,
    pub protocol: String,
    pub secured: bool,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// 0.0…1.0
    pub success: Option<f64>,
    pub rps: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub tcp_open: u64,
}

impl From<StatReply> for Stat {
    fn from(reply: StatReply) -> Self {
        let row = |row: mesh_api::ext::StatRow| {
            let object = row.r#ref.unwrap_or_default();
            Row {
                name: object.name,
                namespace: object.namespace,
                meshed: row.meshed_pods,
                running: row.running_pods,
                figures: figures(row.totals, row.covered_seconds),
                no_data: row.no_data,
            }
        };
        let unreachable = reply.unreachable.into_iter();
        Self {
            rows: reply.rows.into_iter().map(row).collect(),
            unreachable: unreachable
                .map(|u| format!("{}/{}: {}", u.namespace, u.pod, u.error))
                .collect(),
        }
    }
}

impl From<EdgesReply> for Edges {
    fn from(reply: EdgesReply) -> Self {
        let edge = |edge: mesh_api::ext::Edge| Edge {
            source: name(edge.source),
            destination: name(edge.destination),
            service: edge.service,
            protocol: edge.protocol,
            secured: edge.secured,
            figures: figures(edge.totals, edge.covered_seconds),
        };
        Self { edges: reply.edges.into_iter().map(edge).collect() }
    }
}

fn name(object: Option<ObjectRef>) -> String {
    let object = object.unwrap_or_default();
    match object.namespace.is_empty() {
        true => object.name,
        false => format!("{}/{}", object.namespace, object.name),
    }
}

fn figures(totals: Option<Totals>, covered_seconds: u32) -> Figures {
    let Some(wire) = totals else { return Figures::default() };
    let tcp_open = wire.tcp_open;
    let Ok(totals) = stats::Totals::try_from(wire) else { return Figures::default() };
    let quantile = |q| totals.latency.quantile(q).map(|d| d.as_secs_f64() * 1e3);
    let requests = totals.requests();
    let seconds = f64::from(covered_seconds);
    Figures {
        success: totals.success_rate(),
        rps: (covered_seconds > 0 && requests > 0).then(|| requests as f64 / seconds),
        p50_ms: quantile(0.5),
        p95_ms: quantile(0.95),
        p99_ms: quantile(0.99),
        tcp_open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::ext::StatRow;

    #[test]
    fn no_traffic_is_not_zero() {
        let rows = vec![StatRow {
            no_data: "no traffic".into(),
            covered_seconds: 30,
            ..StatRow::default()
        }];
        let stat = Stat::from(StatReply { rows, ..StatReply::default() });
        let json = serde_json::to_value(&stat).unwrap();
        assert_eq!(json["rows"][0]["rps"], serde_json::Value::Null);
        assert_eq!(json["rows"][0]["success"], serde_json::Value::Null);
    }

    #[test]
    fn names_carry_their_namespace() {
        let object =
            ObjectRef { kind: "deployment".into(), name: "web".into(), namespace: "shop".into() };
        assert_eq!(name(Some(object)), "shop/web");
        assert_eq!(name(None), "");
    }
}
