//! The proxy against its peers and against the least program that does the same hop, side by side in one run:
//! `cargo bench -p mesh-integration --bench peers [-- --quick --only http1,memory --hops envoy,mesh -o json]`.
//!
//! Proxies run on one core with one worker each, load and backend on another; every hop of a row is started before the
//! first is measured, rounds alternate between them, and medians count. What is not installed is left out by name.
//! `docs/performance.md` says how to read the result. Read [`rows`] for what is sent, [`hops`] for what it is sent
//! through, [`machine`] for how CPU time is told apart from that of other programs.

mod hops;
mod instructions;
mod machine;
mod report;
mod rows;
mod targets;

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use mesh_integration::load::backend::Backend;

use crate::hops::{Hop, Site, Skipped, Watched};
use crate::machine::{Cores, Patience};
use crate::report::{Format, Report};
use crate::rows::{Row, Timing};

/// Compares the proxy with its peers on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Short windows and no counting of instructions: three minutes at most instead of half an hour.
    #[arg(long)]
    quick: bool,
    /// Rows to measure; all of them when left out.
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    only: Vec<Row>,
    /// Hops to measure; every one that is installed when left out.
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    hops: Vec<Hop>,
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// Rounds of each row, whose median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds the whole run may wait for other programs to leave the cores alone; 15 or 180 when left out.
    #[arg(long)]
    patience: Option<u64>,
    /// Passed by `cargo bench`, and only by it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if !args.bench {
        // `cargo test --all-targets` runs benches too; a measurement is not a test.
        let hint = "nothing measured: run `cargo bench -p mesh-integration --bench peers`";
        return Ok(writeln!(std::io::stderr(), "{hint}")?);
    }
    if chosen(&args.hops).contains(&Hop::Linkerd) {
        hops::move_to_namespace()?;
    }
    let cores = Cores::pick()?;
    machine::allow_many_files()?;
    let backend = start_backend(cores)?;
    let site = Site::new(cores, backend)?;
    let timing = if args.quick { Timing::quick(args.rounds) } else { Timing::full(args.rounds) };
    let mut bench = Bench {
        patience: Patience::new(args.patience.map_or(timing.patience, Duration::from_secs)),
        report: Report::new(machine::describe(cores)),
        site,
        timing,
    };
    for row in rows(&args) {
        bench.row(row, &chosen(&args.hops));
    }
    bench.report.write(args.output, &mut std::io::stdout())
}

/// Counting instructions is slow, and not what a quick look is for.
fn rows(args: &Args) -> Vec<Row> {
    let mut rows = chosen(&args.only);
    if args.quick && args.only.is_empty() {
        rows.retain(|row| *row != Row::Instructions);
    }
    rows
}

struct Bench {
    site: Site,
    timing: Timing,
    patience: Patience,
    report: Report,
}

impl Bench {
    fn row(&mut self, row: Row, hops: &[Hop]) {
        if row == Row::Instructions {
            for &hop in hops {
                progress(&format!("{row}: {hop}"));
                let counted = instructions::measure(&mut self.site, hop);
                if let Some(sample) = self.noted(row, hop, counted) {
                    self.report.add(row, hop, sample);
                }
            }
            return;
        }
        let mut running = Vec::new();
        for &hop in hops {
            progress(&format!("{row}: starting {hop}"));
            let started = if row.through_a_pair() {
                self.site.start_pair(hop, row.traffic())
            } else {
                self.site.start(hop, row.traffic(), Watched::No)
            };
            running.extend(self.noted(row, hop, started).map(|proxy| (hop, proxy)));
        }
        for round in 1..=row.rounds(&self.timing) {
            running.retain(|(hop, proxy)| {
                progress(&format!("{row}: round {round}, {hop}"));
                let sample = row.measure(&self.site, proxy, &self.timing, &mut self.patience);
                let sample = sample.map(Some).map_err(Skipped::Failed);
                let sample = self.noted(row, *hop, sample);
                let goes_on = sample.is_some();
                if let Some(sample) = sample {
                    self.report.add(row, *hop, sample);
                }
                goes_on
            });
        }
    }

    /// What there is, after noting in the report why there is nothing.
    fn noted<T>(&mut self, row: Row, hop: Hop, result: Result<Option<T>, Skipped>) -> Option<T> {
        match result {
            Ok(there) => there,
            Err(Skipped::NotInstalled(why)) => {
                self.report.skip(hop, why);
                None
            }
            Err(Skipped::Failed(error)) => {
                self.report.fail(row, hop, &error);
                None
            }
        }
    }
}

/// On a thread of its own that shares the load's core.
fn start_backend(cores: Cores) -> anyhow::Result<hops::BackendAddrs> {
    machine::pin(cores.load)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let backend =
        runtime.block_on(Backend::bind(hops::backend_ip())).context("the backend's ports")?;
    let addrs = hops::BackendAddrs { http1: backend.http1_addr()?, http2: backend.http2_addr()? };
    std::thread::Builder::new().name("backend".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                served = backend.serve() => served,
                _ = tokio::signal::ctrl_c() => {
                    hops::stop_all();
                    std::process::exit(130);
                }
            }
        })
    })?;
    Ok(addrs)
}

fn chosen<T: clap::ValueEnum>(given: &[T]) -> Vec<T> {
    if given.is_empty() { T::value_variants().to_vec() } else { given.to_vec() }
}

/// One line, rewritten, on a terminal's stderr; nothing elsewhere.
fn progress(what: &str) {
    use std::io::IsTerminal;
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        // Progress that cannot be shown is not worth failing for.
        let _ = write!(stderr, "\r\x1b[K{what}").and_then(|()| stderr.flush());
    }
}

/// For the few places that wait for a foreign program, which announces nothing.
#[expect(clippy::disallowed_methods, reason = "a foreign program gives no event to wait for")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
