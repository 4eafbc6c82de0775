//! What comes out: the median figures of every hop, the ratio of ours to each, and the targets of
//! `docs/performance.md` with whether they are met.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::hops::Hop;
use crate::rows::{Row, Sample};
use crate::targets::{TARGETS, Verdict};

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// What is measured, in the order of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    RequestsPerSecond,
    GibPerSecond,
    CpuMicrosPerRequest,
    P50Micros,
    P99Micros,
    /// What the hop adds to the latency without one.
    AddedP50Micros,
    AddedP99Micros,
    IdleMib,
    KibPerIdleConnection,
    InstructionsPerRequest,
}

impl Figure {
    pub(crate) fn heading(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests/s",
            Self::GibPerSecond => "GiB/s",
            Self::CpuMicrosPerRequest => "CPU µs/request",
            Self::P50Micros => "p50 µs",
            Self::P99Micros => "p99 µs",
            Self::AddedP50Micros => "added p50 µs",
            Self::AddedP99Micros => "added p99 µs",
            Self::IdleMib => "idle RSS MiB",
            Self::KibPerIdleConnection => "KiB/idle connection",
            Self::InstructionsPerRequest => "instructions/request",
        }
    }

    fn decimals(self) -> usize {
        match self {
            Self::GibPerSecond => 2,
            Self::CpuMicrosPerRequest | Self::IdleMib | Self::KibPerIdleConnection => 1,
            _ => 0,
        }
    }

    /// The columns of a row, and whether a ratio goes with each.
    fn of(row: Row) -> &'static [(Self, bool)] {
        match row {
            Row::Http1 | Row::Http2 | Row::Tcp | Row::MtlsHttp1 | Row::MtlsHttp2 => &[
                (Self::RequestsPerSecond, true),
                (Self::CpuMicrosPerRequest, true),
                (Self::P50Micros, false),
                (Self::P99Micros, false),
            ],
            Row::Latency | Row::MtlsLatency => &[
                (Self::AddedP50Micros, true),
                (Self::AddedP99Micros, true),
                (Self::CpuMicrosPerRequest, true),
            ],
            Row::Large | Row::TcpLarge | Row::MtlsLarge | Row::MtlsTcpLarge => {
                &[(Self::GibPerSecond, true), (Self::CpuMicrosPerRequest, true)]
            }
            Row::Memory => &[(Self::IdleMib, true), (Self::KibPerIdleConnection, true)],
            Row::Instructions => &[(Self::InstructionsPerRequest, true)],
        }
    }
}

/// Everything measured so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    samples: BTreeMap<(Row, Hop), Vec<Sample>>,
    notes: BTreeSet<String>,
}

/// The medians of one hop in one row.
#[derive(Debug, Serialize)]
pub(crate) struct Medians {
    pub(crate) figures: BTreeMap<Figure, f64>,
    rounds: usize,
    /// No round had the cores to itself.
    disturbed: bool,
}

pub(crate) type Table = BTreeMap<Row, BTreeMap<Hop, Medians>>;

#[derive(Serialize)]
struct Json<'a> {
    machine: &'a str,
    rows: &'a Table,
    targets: Vec<Verdict>,
    notes: &'a BTreeSet<String>,
}

impl Report {
    pub(crate) fn new(machine: String) -> Self {
        Self { machine, samples: BTreeMap::new(), notes: BTreeSet::new() }
    }

    pub(crate) fn add(&mut self, row: Row, hop: Hop, sample: Sample) {
        self.samples.entry((row, hop)).or_default().push(sample);
    }

    pub(crate) fn skip(&mut self, hop: Hop, why: &str) {
        self.notes.insert(format!("{hop}: {why}"));
    }

    pub(crate) fn fail(&mut self, row: Row, hop: Hop, error: &anyhow::Error) {
        self.notes.insert(format!("{row}, {hop}: {error:#}"));
    }

    pub(crate) fn write(&self, format: Format, out: &mut impl Write) -> anyhow::Result<()> {
        let table = self.table();
        let targets = TARGETS.iter().filter_map(|target| target.judge(&table));
        match format {
            Format::Json => {
                let json = Json {
                    machine: &self.machine,
                    rows: &table,
                    targets: targets.collect(),
                    notes: &self.notes,
                };
                serde_json::to_writer_pretty(&mut *out, &json)?;
                writeln!(out)?;
            }
            Format::Table => {
                writeln!(out, "{}", self.machine)?;
                writeln!(out, "÷ is ours divided by that hop's")?;
                for (row, hops) in &table {
                    write_row(*row, hops, out)?;
                }
                self.write_foot(&table, targets.collect(), out)?;
            }
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        for ((row, hop), samples) in &self.samples {
            table.entry(*row).or_default().insert(*hop, medians(samples));
        }
        for row in [Row::Latency, Row::MtlsLatency] {
            if let Some(hops) = table.get_mut(&row) {
                add_added(hops);
            }
        }
        table
    }

    fn write_foot(
        &self,
        table: &Table,
        targets: Vec<Verdict>,
        out: &mut impl Write,
    ) -> io::Result<()> {
        if !targets.is_empty() {
            writeln!(out, "\ntargets")?;
        }
        for verdict in targets {
            writeln!(out, "  {verdict}")?;
        }
        let disturbed = table.values().flat_map(BTreeMap::values);
        if disturbed.into_iter().any(|medians| medians.disturbed) {
            writeln!(
                out,
                "\n~ disturbed: other programs used these cores in every round; measure again"
            )?;
        }
        if !self.notes.is_empty() {
            writeln!(out, "\nnot measured")?;
        }
        for note in &self.notes {
            writeln!(out, "  {note}")?;
        }
        Ok(())
    }
}

/// Of the rounds that were not disturbed, if there are any.
fn medians(samples: &[Sample]) -> Medians {
    let disturbed = samples.iter().all(|sample| sample.disturbed);
    let counted: Vec<&Sample> =
        samples.iter().filter(|sample| disturbed || !sample.disturbed).collect();
    let mut values: BTreeMap<Figure, Vec<f64>> = BTreeMap::new();
    for sample in &counted {
        for (figure, value) in &sample.figures {
            values.entry(*figure).or_default().push(*value);
        }
    }
    let figures =
        values.into_iter().filter_map(|(figure, values)| Some((figure, median(values)?))).collect();
    Medians { figures, rounds: counted.len(), disturbed }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (middle, odd) = (values.len() / 2, values.len() % 2 == 1);
    let above = *values.get(middle)?;
    Some(if odd { above } else { f64::midpoint(values[middle - 1], above) })
}

/// Subtracts what the same load sees without a hop.
fn add_added(hops: &mut BTreeMap<Hop, Medians>) {
    let pairs =
        [(Figure::P50Micros, Figure::AddedP50Micros), (Figure::P99Micros, Figure::AddedP99Micros)];
    for (total, added) in pairs {
        let direct = hops.get(&Hop::Direct);
        let Some(direct) = direct.and_then(|medians| medians.figures.get(&total)).copied() else {
            continue;
        };
        for (_, medians) in hops.iter_mut().filter(|(hop, _)| **hop != Hop::Direct) {
            if let Some(value) = medians.figures.get(&total).copied() {
                medians.figures.insert(added, value - direct);
            }
        }
    }
}

fn write_row(row: Row, hops: &BTreeMap<Hop, Medians>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{}", row.title())?;
    let columns = Figure::of(row);
    write!(out, "  {:<10}", "")?;
    for (figure, compared) in columns {
        write!(out, "{:>21}", figure.heading())?;
        if *compared {
            write!(out, "{:>8}", "÷")?;
        }
    }
    writeln!(out)?;
    for (hop, medians) in hops {
        write!(out, "  {:<10}", hop.to_string())?;
        for (figure, compared) in columns {
            let value = medians.figures.get(figure).copied();
            let mark = if medians.disturbed { "~" } else { "" };
            let value = value.map(|value| format!("{mark}{value:.*}", figure.decimals()));
            write!(out, "{:>21}", value.as_deref().unwrap_or("–"))?;
            if *compared {
                let ratio = ratio(hops, *figure, *hop).map(|ratio| format!("{ratio:.2}"));
                write!(out, "{:>8}", ratio.as_deref().unwrap_or(""))?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Ours divided by the other's, where both have the figure.
pub(crate) fn ratio(hops: &BTreeMap<Hop, Medians>, figure: Figure, other: Hop) -> Option<f64> {
    let ours = hops.get(&Hop::Mesh)?.figures.get(&figure)?;
    let theirs = hops.get(&other)?.figures.get(&figure)?;
    (other != Hop::Mesh && *theirs > 0.0).then_some(ours / theirs)
}

/// As it is written on the command line.
pub(crate) fn value_name(value: &impl ValueEnum, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let name = value.to_possible_value();
    f.pad(name.as_ref().map_or("", |name| name.get_name()))
}
