//! A proxy's account of itself, as far as it is shown to people. What a proxy of another version leaves out is at its
//! default; the whole of it is in `-o yaml`.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::outline::outline;
use crate::commands::shared;
use crate::output::table::{Tone, optional};
use crate::output::{Cell, Column, Style, Table, clean};
use crate::units;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Account {
    pod: String,
    namespace: String,
    version: String,
    uptime_seconds: u64,
    ready: bool,
    rss_bytes: u64,
    open_connections: u64,
    control: Control,
    inbound: Inbound,
    outbound: Outbound,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Control {
    address: Option<String>,
    streams_up: u32,
    streams_wanted: u32,
    config_rejected: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Inbound {
    ports: Vec<Port>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    listen: String,
    forward: Vec<String>,
    policy: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outbound {
    targets: Vec<Target>,
    backends: Vec<Backend>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Target {
    target: String,
    policy: Policy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Policy {
    state: String,
    reason: String,
    resource: String,
    policy: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Backend {
    backend: String,
    parent: String,
    strategy: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    address: String,
    state: String,
    weight: u32,
    in_flight: u32,
    consecutive_failures: u32,
    rtt_ms: f64,
}

impl Account {
    /// All of it in short.
    pub(super) fn summary(&self, style: Style) -> String {
        let ready = if self.ready { "ready" } else { "not ready" };
        let mut text = format!(
            "{}\n  {ready}, version {}, up {}, {}, {}\n",
            style.bold(&format!("pod/{} in {}", clean(&self.pod), clean(&self.namespace))),
            clean(&self.version),
            units::age(self.uptime_seconds),
            units::bytes(self.rss_bytes as f64),
            units::plural(
                usize::try_from(self.open_connections).unwrap_or(usize::MAX),
                "open connection"
            ),
        );
        text += &match &self.control.address {
            None => "  without a control plane\n".to_owned(),
            Some(address) => format!(
                "  control plane {}: {} of {} streams up, {} rejected\n",
                clean(address),
                self.control.streams_up,
                self.control.streams_wanted,
                units::plural(
                    usize::try_from(self.control.config_rejected).unwrap_or(usize::MAX),
                    "update"
                ),
            ),
        };
        for (heading, table) in
            [("Ports", self.ports()), ("Targets", self.targets()), ("Endpoints", self.endpoints())]
        {
            if !table.is_empty() {
                text += &shared::section(heading, &table.render(style));
            }
        }
        text
    }

    /// What the applications of this pod asked for, and what the proxy was told about it.
    pub(super) fn routes(&self, style: Style) -> String {
        let of = |target: &Target| {
            let heading = format!("{} → {}", target.target, target.policy.verdict());
            paragraph(&heading, &outline(&target.policy.policy), style)
        };
        self.outbound.targets.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// Who may come in where.
    pub(super) fn policies(&self, style: Style) -> String {
        let of = |port: &Port| {
            let heading = format!("{} → {}", port.listen, port.forward.join(" or "));
            let known = Some(outline(&port.policy)).filter(|text| !text.is_empty());
            paragraph(&heading, known.as_deref().unwrap_or("not known yet"), style)
        };
        self.inbound.ports.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn endpoints(&self) -> Table {
        let mut table = Table::new([
            Column::left("BACKEND"),
            Column::left("ADDRESS"),
            Column::left("STATE"),
            Column::right("WEIGHT"),
            Column::right("IN_FLIGHT"),
            Column::right("FAILURES"),
            Column::right("RTT"),
        ]);
        for backend in &self.outbound.backends {
            for of in &backend.endpoints {
                let tone = if of.state == "ready" { Tone::Plain } else { Tone::Warn };
                let rtt = Some(of.rtt_ms).filter(|ms| *ms > 0.0);
                table.row([
                    Cell::from(shared::short_reference(&backend.backend, &self.namespace)),
                    Cell::from(of.address.as_str()),
                    Cell::from(of.state.as_str()).tone(tone),
                    Cell::from(shared::weight(of.weight).to_string()),
                    Cell::from(of.in_flight.to_string()),
                    Cell::from(of.consecutive_failures.to_string()),
                    optional(rtt, |ms| units::latency(Duration::from_secs_f64(ms / 1e3))),
                ]);
            }
        }
        table
    }

    fn ports(&self) -> Table {
        let mut table = Table::new(["LISTEN", "FORWARD"].map(Column::left));
        for port in &self.inbound.ports {
            table.row([Cell::from(port.listen.as_str()), Cell::from(port.forward.join(" or "))]);
        }
        table
    }

    fn targets(&self) -> Table {
        let mut table = Table::new(["TARGET", "IS", "BALANCED"].map(Column::left));
        for target in &self.outbound.targets {
            let parent = &target.policy.resource;
            let mut strategies: Vec<&str> = self
                .outbound
                .backends
                .iter()
                .filter(|backend| backend.parent == *parent)
                .map(|backend| backend.strategy.as_str())
                .collect();
            strategies.dedup();
            table.row([
                Cell::from(target.target.as_str()),
                Cell::from(target.policy.verdict()),
                Cell::from(strategies.join(", ")),
            ]);
        }
        table
    }
}

impl Policy {
    /// The resource it is, or why that is not known.
    fn verdict(&self) -> String {
        match (self.resource.as_str(), self.reason.as_str()) {
            ("", "") => self.state.clone(),
            ("", reason) => format!("{}: {reason}", self.state),
            (resource, _) => resource.to_owned(),
        }
    }
}

fn paragraph(heading: &str, text: &str, style: Style) -> String {
    let lines = text.lines().map(|line| format!("  {}\n", clean(line)));
    format!("{}\n{}", style.bold(&clean(heading)), lines.collect::<String>())
}
