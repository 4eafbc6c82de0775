//! `meshctl stat`: how well workloads are doing, from the sliding windows that their proxies keep.
//!
//! [`report`] turns the answer into figures, [`table`] shows them to people.

mod report;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use mesh_api::ext;
use mesh_api::ext::stat_request::ClientSide;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::shared;
use crate::completing;
use crate::connect::Mesh;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::output::live::Live;
use crate::output::{Format, format};
use crate::selector::{Scope, Selectors};
use crate::units;

pub(crate) use report::{Figures, Report};
pub(crate) use table::Layout;

/// How often `--watch` asks again. The proxies' windows advance by seconds.
const REFRESH: Duration = Duration::from_secs(2);

/// Show success rate, requests per second and latencies of workloads
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct StatArgs {
    /// What to show: TYPE, TYPE/NAME or TYPE NAME, several of them
    #[arg(required = true, value_name = "RESOURCE", add = completing::resources())]
    pub resources: Vec<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// The span of time the figures are about, 10s to 10m
    #[arg(long = "time", short = 't', value_name = "TIME", default_value = "1m", value_parser = shared::window)]
    pub window: Duration,
    /// Only what they send to this resource, as they saw it
    #[arg(long, value_name = "RESOURCE", conflicts_with = "from", add = completing::resources())]
    pub to: Option<String>,
    /// Only what this resource sends to them, as it saw it
    #[arg(long, value_name = "RESOURCE", add = completing::resources())]
    pub from: Option<String>,
    /// A row for each of these instead of one for each resource
    #[arg(long, value_enum, value_name = "WHAT")]
    pub by: Option<By>,
    /// Refresh until interrupted
    #[arg(long, short)]
    pub watch: bool,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json", "yaml", "csv", "name"]))]
    pub output: Format,
}

const HELP: &str = "\
meshctl stat deploy                                        every deployment
meshctl stat deploy/web --to svc/checkout --by backend     where its requests go
meshctl stat svc -o wide                                   retries, breakers, reasons
meshctl stat egress --by route                             what leaves the mesh

SUCCESS counts HTTP statuses below 500 and gRPC codes that are not the server's fault. \
Latencies last until the response's end. MESHED is ready proxies of running pods. The \
default view is the server side: what the workloads received. With --to, --from, and for \
services, it is the client side: what the meshed clients saw.

JSON and YAML: {view, window_seconds, rows, unreachable: [{namespace, pod, error}]}. A row \
has namespace, kind, name, by, meshed_pods, ready_pods, running_pods, covered_seconds, \
requests, failures, success (0 to 1), rps, latency_ms_p50, latency_ms_p95, latency_ms_p99, \
first_byte_ms_p50, first_byte_ms_p95, first_byte_ms_p99, retries_rate, request_bytes_rate, \
response_bytes_rate, tcp_open_connections, status_classes (1xx to 5xx), reasons {code: \
count}, breakers [{backend, endpoint, state}] and no_data, which says why there are no \
figures. What is not known is null. With --watch it is one line a refresh.";

/// What `--by` splits rows into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    Route,
    Backend,
    Pod,
}

impl By {
    fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Backend => "backend",
            Self::Pod => "pod",
        }
    }
}

pub(super) async fn run(args: StatArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let selectors = Selectors::parse(&args.resources, &args.scope)?;
    let request = request(&args, &selectors)?;
    let mesh = cx.connect().await?;
    if args.watch {
        return watch(&args, request, &mesh.silent(), cx).await;
    }
    let reply = match mesh.stat(request.clone()).await {
        Ok(reply) => reply,
        Err(error) => return Err(shared::propose(&mesh, named(&request), error).await),
    };
    let report = Report::from_reply(reply, args.window);
    if report.rows.is_empty() {
        return shared::nothing(&mesh, &selectors, cx).await;
    }
    cx.ui.print(&render(&args, &report, cx)?)?;
    if args.output.is_for_people() {
        for note in table::notes(&report) {
            cx.ui.note(&note);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn request(args: &StatArgs, selectors: &Selectors) -> Result<ext::StatRequest, CliError> {
    let other = |word: &Option<String>| {
        word.as_ref().map(|word| Selectors::parse_one(word, &args.scope)).transpose()
    };
    let to = other(&args.to)?.map(ClientSide::To);
    let from = other(&args.from)?.map(ClientSide::From);
    Ok(ext::StatRequest {
        selectors: selectors.0.clone(),
        window_seconds: u32::try_from(args.window.as_secs()).unwrap_or(u32::MAX),
        client_side: to.or(from),
        by: args.by.map_or("", By::as_str).to_owned(),
    })
}

/// Everything the request names.
fn named(request: &ext::StatRequest) -> impl Iterator<Item = &ext::Selector> {
    let other = request.client_side.as_ref().map(|side| match side {
        ClientSide::To(other) | ClientSide::From(other) => other,
    });
    request.selectors.iter().chain(other)
}

/// Shows it again and again until the user has enough. A control plane that goes away for a while is waited for.
async fn watch(
    args: &StatArgs,
    request: ext::StatRequest,
    mesh: &Mesh,
    cx: &mut Context,
) -> Result<ExitCode, CliError> {
    // Without a handler, ^C would leave the terminal on the alternate screen.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut live = Live::new(&cx.ui);
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let reply = tokio::select! {
            biased;
            _ = interrupt.recv() => return Err(CliError::interrupted()),
            reply = async {
                ticks.tick().await;
                mesh.stat(request.clone()).await
            } => reply,
        };
        let report = match reply {
            Ok(reply) => Report::from_reply(reply, args.window),
            Err(error) if matches!(error.kind, Kind::Unreachable | Kind::TimedOut) => {
                live.paint(&format!("{error}; asking again every {} s\n", REFRESH.as_secs()))?;
                continue;
            }
            Err(error) => return Err(shared::propose(mesh, named(&request), error).await),
        };
        if args.output == Format::Json {
            cx.ui.print(&format::json_line(&report)?)?;
            continue;
        }
        let mut text = render(args, &report, cx)?;
        if args.output.is_for_people() {
            for note in table::notes(&report) {
                text += &format!("{note}\n");
            }
        }
        live.paint(&text)?;
    }
}

fn render(args: &StatArgs, report: &Report, cx: &Context) -> Result<String, CliError> {
    match args.output {
        Format::Json => format::json(report),
        Format::Yaml => format::yaml(report),
        Format::Csv => format::csv(&report.rows, report::CSV_FIELDS),
        Format::Name => {
            let names = report.rows.iter().map(|row| format!("{}/{}\n", row.kind, row.name));
            Ok(names.collect())
        }
        wanted => {
            let layout = Layout {
                wide: wanted == Format::Wide,
                by: args.by,
                namespaces: args.scope.all_namespaces,
            };
            Ok(format!("{}\n{}", title(args, report), layout.table(report).render(cx.ui.out_style)))
        }
    }
}

/// Which view of which span of time this is.
fn title(args: &StatArgs, report: &Report) -> String {
    let view = match (report.view.as_str(), &args.to, &args.from) {
        ("server", ..) => "server side, what they received".to_owned(),
        (_, Some(to), _) => format!("client side, what they sent to {to}"),
        (_, _, Some(from)) => format!("client side, what {from} sent to them"),
        _ => "client side, what meshed clients sent to them".to_owned(),
    };
    let covered = report.rows.iter().map(|row| row.covered_seconds).max().unwrap_or(0);
    let short = match u64::from(covered) {
        0 => String::new(),
        seconds if seconds + 1 < report.window_seconds => {
            format!(" ({} covered so far)", units::age(seconds))
        }
        _ => String::new(),
    };
    format!("View: {view}, last {}{short}", units::age(report.window_seconds))
}

#[cfg(test)]
mod tests;
