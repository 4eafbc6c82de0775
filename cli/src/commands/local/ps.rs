//! `meshctl local ps`: the pods of a local mesh and their processes.

use std::process::ExitCode;

use serde::Serialize;

use crate::context::Context;
use crate::error::CliError;
use crate::local::client::Supervisor;
use crate::local::protocol::{PodRow, Status};
use crate::output::table::{Tone, optional};
use crate::output::{Cell, Column, Format, Table, format};
use crate::state_dir::StateDir;
use crate::units;

/// List the pods and their processes
#[derive(clap::Args, Debug)]
#[command(after_long_help = HELP)]
pub struct PsArgs {
    /// Only this namespace
    #[arg(long, short, value_name = "NS")]
    pub namespace: Option<String>,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml", "name"]))]
    pub output: Format,
}

const HELP: &str = "\
APP and PROXY are process ids. wide adds where the application listens for each port
and what a pod lacks to be ready.

JSON and YAML: {name, mode, number, supervisor_pid, control {pid, ready, restarts}, pods}.
A pod has namespace, name, owner, ip, ready, state, restarts, app_pid, proxy_pid,
created, waiting_for and ports, pairs of the declared port and the application's.";

#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a str,
    mode: crate::local::address::Mode,
    number: u8,
    supervisor_pid: u32,
    control: Option<Control>,
    pods: Vec<&'a PodRow>,
}

#[derive(Debug, Serialize)]
struct Control {
    pid: Option<u32>,
    ready: bool,
    restarts: u32,
}

pub(super) async fn run(
    args: PsArgs,
    dir: &StateDir,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    let status = Supervisor::connect(dir).await?.status().await?;
    let namespace = args.namespace.as_deref();
    match args.output {
        Format::Json => cx.ui.print(&format::json(&report(&status, namespace))?)?,
        Format::Yaml => cx.ui.print(&format::yaml(&report(&status, namespace))?)?,
        Format::Name => {
            for pod in pods(&status, namespace) {
                cx.ui.line(&format!("pod/{}", pod.name))?;
            }
        }
        wanted => {
            let table = table(&status, namespace, wanted == Format::Wide);
            if table.is_empty() {
                cx.ui.note("no pods");
            } else {
                cx.ui.print(&table.render(cx.ui.out_style))?;
            }
            if let Some(control) = status.control.filter(|control| !control.ready) {
                let why = control.process.last_exit.unwrap_or("it is starting".to_owned());
                cx.ui.note(&format!("the control plane is not ready: {why}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The pods as people read them.
pub(crate) fn table(status: &Status, namespace: Option<&str>, wide: bool) -> Table {
    let mut columns = vec![
        Column::left("NAMESPACE"),
        Column::left("POD"),
        Column::left("STATUS"),
        Column::right("RESTARTS"),
        Column::left("IP"),
        Column::right("APP"),
        Column::right("PROXY"),
        Column::right("AGE"),
    ];
    if wide {
        columns.extend([Column::left("PORTS"), Column::left("WAITING_FOR")]);
    }
    let mut table = Table::new(columns);
    for pod in pods(status, namespace) {
        let mut cells = vec![
            Cell::from(pod.namespace.as_str()),
            Cell::from(pod.name.as_str()),
            Cell::from(pod.state.as_str()).tone(tone(&pod.state)),
            Cell::from(pod.restarts.to_string()),
            Cell::from(pod.ip.to_string()),
            optional(pod.app_pid, |pid| pid.to_string()),
            optional(pod.proxy_pid, |pid| pid.to_string()),
            optional(age(&pod.created), units::age),
        ];
        if wide {
            let ports = pod.ports.iter().map(|(declared, app)| format!("{declared}→{app}"));
            cells.push(Cell::from(ports.collect::<Vec<_>>().join(",")));
            cells.push(Cell::from(pod.waiting_for.clone().unwrap_or_default()));
        }
        table.row(cells);
    }
    table
}

fn tone(state: &str) -> Tone {
    match state {
        "Running" => Tone::Good,
        "CrashLoopBackOff" | "Error" => Tone::Bad,
        "Terminating" => Tone::Faint,
        _ => Tone::Warn,
    }
}

fn pods<'a>(status: &'a Status, namespace: Option<&'a str>) -> impl Iterator<Item = &'a PodRow> {
    status.pods.iter().filter(move |pod| namespace.is_none_or(|ns| pod.namespace == ns))
}

fn report<'a>(status: &'a Status, namespace: Option<&'a str>) -> Report<'a> {
    Report {
        name: &status.name,
        mode: status.mode,
        number: status.number,
        supervisor_pid: status.supervisor.pid,
        control: status.control.as_ref().map(|control| Control {
            pid: control.process.running().map(|process| process.pid),
            ready: control.ready,
            restarts: control.process.restarts,
        }),
        pods: pods(status, namespace).collect(),
    }
}

/// Whole seconds since a time in RFC 3339.
fn age(created: &str) -> Option<u64> {
    let created: jiff::Timestamp = created.parse().ok()?;
    let seconds = jiff::Timestamp::now().as_second() - created.as_second();
    Some(u64::try_from(seconds).unwrap_or(0))
}
