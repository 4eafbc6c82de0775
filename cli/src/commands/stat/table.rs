//! The figures as a table, and what is to be said about those that are missing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use super::By;
use super::report::{Report, Row};
use crate::commands::shared;
use crate::output::table::{Tone, optional};
use crate::output::{Cell, Column, Table};
use crate::selector::short_kind;
use crate::units;

/// Which columns the table has.
pub(crate) struct Layout {
    pub(crate) wide: bool,
    pub(crate) by: Option<By>,
    /// Show namespaces even if there is just one.
    pub(crate) namespaces: bool,
}

impl Layout {
    pub(crate) fn table(&self, report: &Report) -> Table {
        let several =
            |of: fn(&Row) -> &str| report.rows.iter().map(of).collect::<BTreeSet<_>>().len() > 1;
        let namespaces = self.namespaces || several(|row| &row.namespace);
        let kinds = several(|row| &row.kind);

        let mut columns = Vec::new();
        columns.extend(namespaces.then_some(Column::left("NAMESPACE")));
        columns.push(Column::left("NAME"));
        columns.extend(self.by.map(|by| Column::left(heading(by))));
        // What rows are split by says nothing about pods.
        columns.extend(self.by.is_none().then_some(Column::right("MESHED")));
        columns.extend(["SUCCESS", "RPS", "P50", "P95", "P99"].map(Column::right));
        if self.wide {
            columns.extend(["TTFB_P95", "REQ_B/S", "RESP_B/S", "RETRY/S"].map(Column::right));
        }
        columns.push(Column::right("TCP_CONN"));
        if self.wide {
            columns.extend(["BREAKERS", "REASONS"].map(Column::left));
        }

        let mut table = Table::new(columns);
        for row in &report.rows {
            let mut cells: Vec<Cell> = Vec::new();
            cells.extend(namespaces.then(|| Cell::from(row.namespace.as_str())));
            cells.push(Cell::from(if kinds {
                format!("{}/{}", short_kind(&row.kind), row.name)
            } else {
                row.name.clone()
            }));
            if self.by.is_some() {
                cells.push(optional(row.by.as_deref(), |by| self.short(by, &row.namespace)));
            }
            cells.extend(self.by.is_none().then(|| meshed(row)));
            cells.extend(self.figures(row));
            table.row(cells);
        }
        table
    }

    fn figures(&self, row: &Row) -> Vec<Cell> {
        let of = &row.figures;
        let millis =
            |ms: Option<f64>| optional(ms, |ms| units::latency(Duration::from_secs_f64(ms / 1e3)));
        let mut cells = vec![
            optional(of.success, units::percent).tone(tone_of_success(of.success)),
            optional(of.rps, units::rate),
            millis(of.latency_ms_p50),
            millis(of.latency_ms_p95),
            millis(of.latency_ms_p99),
        ];
        if self.wide {
            cells.push(millis(of.first_byte_ms_p95));
            cells.extend(
                [of.request_bytes_rate, of.response_bytes_rate]
                    .map(|rate| optional(rate, units::bytes)),
            );
            cells.push(optional(of.retries_rate, units::rate));
        }
        cells.push(optional(of.tcp_open_connections, |count| count.to_string()));
        if self.wide {
            cells.extend(
                [breakers(row), reasons(row)].map(|text| Cell::from(text).tone(Tone::Warn)),
            );
        }
        cells
    }

    /// A route or backend without what every line would repeat; the whole of it in the wide table.
    fn short(&self, by: &str, namespace: &str) -> String {
        if self.wide { by.to_owned() } else { shared::short_reference(by, namespace) }
    }
}

fn heading(by: By) -> &'static str {
    match by {
        By::Route => "ROUTE",
        By::Backend => "BACKEND",
        By::Pod => "POD",
    }
}

fn meshed(row: &Row) -> Cell {
    // A host outside of the mesh.
    if row.kind == "egress" {
        return Cell::missing();
    }
    let short = row.meshed_pods < row.running_pods;
    let tone = if short { Tone::Warn } else { Tone::Plain };
    Cell::from(format!("{}/{}", row.meshed_pods, row.running_pods)).tone(tone)
}

/// Green while all is well, red when a user would notice.
fn tone_of_success(success: Option<f64>) -> Tone {
    match success {
        None => Tone::Plain,
        Some(share) if share >= 0.99 => Tone::Good,
        Some(share) if share >= 0.95 => Tone::Warn,
        Some(_) => Tone::Bad,
    }
}

/// `1 ejected, 2 probing`
fn breakers(row: &Row) -> String {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for breaker in &row.breakers {
        *states.entry(breaker.state.as_str()).or_default() += 1;
    }
    let counts: Vec<String> =
        states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(", ")
}

/// `2 connection-closed, 1 request-timeout`: tries the mesh failed, also those that a retry made good.
fn reasons(row: &Row) -> String {
    let mut reasons: Vec<(&String, &u64)> = row.figures.reasons.iter().collect();
    reasons.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
    let counts: Vec<String> =
        reasons.iter().map(|(code, count)| format!("{count} {code}")).collect();
    counts.join(", ")
}

/// Why figures are missing: the resources (or pods, where rows are pods) by reason, then the proxies that did not answer.
pub(super) fn notes(report: &Report) -> Vec<String> {
    let mut silent: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for row in &report.rows {
        if let Some(why) = &row.no_data {
            let name = match &row.by {
                Some(pod) => format!("{}/{pod}", short_kind("pod")),
                None => format!("{}/{}", short_kind(&row.kind), row.name),
            };
            let names = silent.entry(why).or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let mut notes: Vec<String> = silent
        .into_iter()
        .map(|(why, names)| {
            let span = match why {
                "no traffic" => format!(" in the last {}", units::age(report.window_seconds)),
                _ => String::new(),
            };
            format!("{why}{span}: {}", names.join(", "))
        })
        .collect();
    notes.extend(shared::lost_notes(&report.unreachable));
    notes
}
