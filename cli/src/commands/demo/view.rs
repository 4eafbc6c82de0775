//! The picture of the demo: how each workload does, how the split falls, who talks to whom.

use std::time::Duration;

use mesh_api::ext::{self, Selector};

use crate::commands::stat::{Figures as Numbers, Layout, Report};
use crate::connect::{Mesh, Place};
use crate::error::CliError;
use crate::local::protocol::Status;
use crate::output::table::optional;
use crate::output::{Cell, Column, Table, Ui};
use crate::state_dir::StateDir;
use crate::units;

const NAMESPACE: &str = "shop";
/// The service that the demo's route splits.
const SPLIT: &str = "checkout";
/// The span of time the figures are about: short enough to see changes soon.
const WINDOW: u32 = 20;

/// What the control plane answered just now.
#[derive(Debug)]
pub(super) struct Figures {
    stat: Result<ext::StatReply, CliError>,
    split: Option<ext::StatReply>,
    edges: Option<ext::EdgesReply>,
}

impl Figures {
    /// Asks for all of it. That the control plane is away for a moment is part of the picture.
    pub(super) async fn ask(dir: &StateDir) -> Self {
        let mesh = match Mesh::at(Place::Local(dir.clone())).await {
            Ok(mesh) => mesh,
            Err(error) => return Self { stat: Err(error), split: None, edges: None },
        };
        let selector = |kind: &str, name: &str| Selector {
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            labels: String::new(),
        };
        let request = |selector: Selector, by: &str| ext::StatRequest {
            selectors: vec![selector],
            window_seconds: WINDOW,
            client_side: None,
            by: by.to_owned(),
        };
        let edges = ext::EdgesRequest {
            selectors: vec![selector("deployment", "")],
            window_seconds: WINDOW,
        };
        let (stat, split, edges) = tokio::join!(
            mesh.stat(request(selector("deployment", ""), "")),
            mesh.stat(request(selector("service", SPLIT), "backend")),
            mesh.edges(edges),
        );
        Self { stat, split: split.ok(), edges: edges.ok() }
    }
}

/// The whole picture, most important first: a low terminal cuts it at the bottom.
pub(super) fn picture(status: &Status, figures: &Figures, dir: &StateDir, ui: &Ui) -> String {
    let style = ui.out_style;
    let (ready, all) = (status.pods.iter().filter(|pod| pod.ready).count(), status.pods.len());
    let title = format!("local mesh \"{}\": {ready}/{all} pods ready, last {WINDOW}s", status.name);
    let mut text = format!("{}\n", style.bold(&title));
    if ui.out_tty {
        text += &format!("{}\n", style.dim(&hints(dir)));
    }
    text += "\n";
    match &figures.stat {
        Ok(stat) => {
            let report = Report::from_reply(stat.clone(), Duration::from_secs(WINDOW.into()));
            let layout = Layout { wide: false, by: None, namespaces: false };
            text += &layout.table(&report).render(style);
        }
        Err(error) => text += &format!("{}\n", style.yellow(&format!("no figures now: {error}"))),
    }
    if let Some(split) = figures.split.as_ref().and_then(split_line) {
        text += &format!("\n{split}\n");
    }
    if let Some(edges) = &figures.edges {
        text += &format!("\n{}", edges_table(edges).render(style));
    }
    text
}

/// What to try in a second terminal.
pub(super) fn hints(dir: &StateDir) -> String {
    let flag = match dir.flag() {
        flag if flag.is_empty() => flag,
        _ => format!(" --local={}", dir.name),
    };
    format!("^C ends it. Another terminal: meshctl tap deploy/web{flag}; stat deploy, edges, check")
}

/// `checkout is split: 74.8% checkout-v1:8080, 25.2% checkout-v2:8080`
fn split_line(reply: &ext::StatReply) -> Option<String> {
    let requests = |row: &ext::StatRow| {
        row.totals.as_ref().map_or(0, |totals| totals.success.saturating_add(totals.failure))
    };
    let rows: Vec<_> = reply.rows.iter().filter(|row| requests(row) > 0).collect();
    let all: u64 = rows.iter().map(|row| requests(row)).sum();
    if rows.len() < 2 {
        return None;
    }
    let parts = rows.iter().map(|row| {
        let share = requests(row) as f64 / all as f64;
        let name = row.by.rsplit('/').next().unwrap_or(&row.by);
        format!("{} {name}", units::percent(share))
    });
    Some(format!("{SPLIT} is split: {}", parts.collect::<Vec<_>>().join(", ")))
}

fn edges_table(reply: &ext::EdgesReply) -> Table {
    let mut table = Table::new([
        Column::left("SOURCE"),
        Column::left("DESTINATION"),
        Column::left("PROTO"),
        Column::right("SUCCESS"),
        Column::right("RPS"),
        Column::right("P95"),
        Column::right("CONN/S"),
    ]);
    let mut edges: Vec<_> = reply.edges.iter().collect();
    let name =
        |end: &Option<ext::ObjectRef>| end.as_ref().map_or(String::new(), |end| end.name.clone());
    edges.sort_by_key(|edge| (name(&edge.source), name(&edge.destination)));
    for edge in edges {
        let opened =
            edge.totals.as_ref().filter(|_| edge.protocol == "tcp").map(|totals| totals.tcp_opened);
        let seconds = f64::from(edge.covered_seconds.max(1));
        let numbers = edge.totals.as_ref().map(|totals| Numbers::new(totals, edge.covered_seconds));
        let numbers = numbers.unwrap_or_default();
        table.row([
            Cell::from(name(&edge.source)),
            Cell::from(name(&edge.destination)),
            Cell::from(edge.protocol.as_str()),
            optional(numbers.success, units::percent),
            optional(numbers.rps, units::rate),
            optional(numbers.latency_ms_p95, |ms| {
                units::latency(Duration::from_secs_f64(ms / 1e3))
            }),
            optional(opened, |count| units::rate(count as f64 / seconds)),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(by: &str, success: u64) -> ext::StatRow {
        let totals = ext::Totals { success, ..Default::default() };
        ext::StatRow { by: by.to_owned(), totals: Some(totals), ..Default::default() }
    }

    #[test]
    fn the_split_is_told_in_shares() {
        let rows =
            vec![row("Service/shop/checkout-v1:8080", 3), row("Service/shop/checkout-v2:8080", 1)];
        let line = split_line(&ext::StatReply { rows, ..Default::default() }).unwrap();
        assert!(line.contains("checkout-v1:8080, ") && line.contains("75.00"), "{line}");
        let rows = vec![row("Service/shop/checkout-v1:8080", 3)];
        assert_eq!(split_line(&ext::StatReply { rows, ..Default::default() }), None);
    }

    #[test]
    fn edges_are_sorted_and_fit_eighty_columns() {
        let end = |name: &str| Some(ext::ObjectRef { name: name.to_owned(), ..Default::default() });
        let edge = |source: &str, destination: &str| ext::Edge {
            source: end(source),
            destination: end(destination),
            protocol: "http".to_owned(),
            covered_seconds: 10,
            totals: Some(ext::Totals {
                success: 100,
                classes: vec![0, 100, 0, 0, 0],
                ..Default::default()
            }),
            ..Default::default()
        };
        let edges = vec![edge("web", "checkout-v1"), edge("checkout-v1", "shipping-slow")];
        let text = edges_table(&ext::EdgesReply { edges, ..Default::default() })
            .render(crate::output::Style::default());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("checkout-v1") && lines[2].starts_with("web"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    }
}
