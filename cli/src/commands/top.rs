//! `meshctl top`: the busiest requests, live, by source, destination, method and path. Built on tap.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mesh_api::ext::mesh_tap_event::Tapped;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use super::tap::event::{Side, std_duration, succeeded};
use super::tap::filter::FilterArgs;
use super::tap::line::direction;
use super::tap::stream::{End, Limits, Seen, Tap};
use crate::context::Context;
use crate::error::CliError;
use crate::output::live::Live;
use crate::output::{Cell, Column, Format, Table, format};
use crate::units;

/// How often the table is painted.
const REFRESH: Duration = Duration::from_secs(1);
/// Rows beyond this are counted as one, so that paths with ids in them can't fill the memory.
const MAX_ROWS: usize = 5_000;
/// What is listed as JSON or on a pipe.
const LISTED: usize = 100;
const OTHER: &str = "(other)";
/// What `tap` writes for the server's side.
const IN: &str = "in";

/// Show the busiest requests as a live table
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct TopArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Watch for this time, print the table once and end
    #[arg(long)]
    pub once: bool,
    /// How long to watch with --once
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::parse_duration, requires = "once")]
    pub duration: Duration,
    /// Output format
    #[arg(long, short, value_name = "FORMAT", default_value = "table",
          value_parser = Format::among(["table", "wide", "json"]))]
    pub output: Format,
}

const HELP: &str = "\
A request between two pods that are both watched is counted once, as the server saw it (in). \
DIR out is what the client saw of a server that is not watched, or of a request that never \
arrived. Paths are shown without their query.

JSON: {seconds, requests, rows, more, skipped}; a row has direction, source, destination, \
method, path, count, best_ms, worst_ms, last_ms and success (0 to 1). Without --once it is a \
line a second.";

pub(super) async fn run(args: TopArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let request = args.filter.request(false, false)?;
    let mesh = cx.connect().await?.silent();
    let limits = Limits { count: None, duration: args.once.then_some(args.duration) };
    let mut tap = Tap::start(&mesh, request, limits, cx).await?;
    let mut board = Board::default();
    let mut live = Live::new(&cx.ui);
    let started = Instant::now();
    let mut ticks = tokio::time::interval_at(started + REFRESH, REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let seen = tokio::select! {
            biased;
            _ = ticks.tick(), if !args.once => None,
            seen = tap.next(cx) => Some(seen?),
        };
        match seen {
            None => show(&args, &board, started.elapsed(), &mut live, cx)?,
            Some(Seen::Request(tapped)) => board.add(&tapped),
            Some(Seen::End(End::Interrupted)) => return Err(CliError::interrupted()),
            Some(Seen::End(End::Done)) => {
                let elapsed = started.elapsed();
                let text = match args.output {
                    Format::Json => format::json(&board.ranking(elapsed))?,
                    wanted => {
                        board.ranking(elapsed).table(wanted == Format::Wide).render(cx.ui.out_style)
                    }
                };
                cx.ui.print(&text)?;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

fn show(
    args: &TopArgs,
    board: &Board,
    elapsed: Duration,
    live: &mut Live,
    cx: &mut Context,
) -> Result<(), CliError> {
    let ranking = board.ranking(elapsed);
    if args.output == Format::Json {
        return Ok(cx.ui.print(&format::json_line(&ranking)?)?);
    }
    let mut text = format!(
        "{} in {}{}, ^C ends\n\n",
        units::plural(usize::try_from(ranking.requests).unwrap_or(usize::MAX), "request"),
        units::age(elapsed.as_secs()),
        match ranking.skipped {
            0 => String::new(),
            skipped => format!(", {skipped} left out by --max-rps"),
        },
    );
    text += &ranking.table(args.output == Format::Wide).render(cx.ui.out_style);
    Ok(live.paint(&text)?)
}

/// What was seen, by kind of request.
#[derive(Debug, Default)]
struct Board {
    rows: HashMap<Key, Tally>,
    /// Who told what they received.
    servers: HashSet<String>,
    skipped: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    direction: &'static str,
    source: String,
    destination: String,
    method: String,
    path: String,
}

#[derive(Clone, Debug, Default)]
struct Tally {
    count: u64,
    good: u64,
    best: Duration,
    worst: Duration,
    last: Duration,
}

impl Board {
    fn add(&mut self, tapped: &Tapped) {
        let event = tapped.event.clone().unwrap_or_default();
        self.skipped += event.skipped;
        let mut key = Key {
            direction: direction(&event),
            source: Side::source(tapped, &event).short(),
            destination: Side::destination(tapped, &event).short(),
            method: if event.method.is_empty() { "TCP".to_owned() } else { event.method.clone() },
            path: event.path.split('?').next().unwrap_or_default().to_owned(),
        };
        if key.direction == IN && self.servers.len() < MAX_ROWS {
            self.servers.insert(key.destination.clone());
        }
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            key = Key { path: OTHER.to_owned(), ..key };
            // Even sources and methods could be made up.
            if self.rows.len() >= 2 * MAX_ROWS && !self.rows.contains_key(&key) {
                let other = || OTHER.to_owned();
                key = Key { source: other(), destination: other(), method: other(), ..key };
            }
        }
        let latency = event.duration.as_ref().map(std_duration).unwrap_or_default();
        self.rows.entry(key).or_default().add(latency, succeeded(&event));
    }

    fn ranking(&self, elapsed: Duration) -> Ranking {
        // What the server told is not counted again.
        let twice = |key: &Key| key.direction != IN && self.servers.contains(&key.destination);
        let mut rows: Vec<(&Key, &Tally)> =
            self.rows.iter().filter(|(key, _)| !twice(key)).collect();
        let requests = rows.iter().map(|(_, tally)| tally.count).sum();
        rows.sort_by(|(a, x), (b, y)| y.count.cmp(&x.count).then_with(|| a.cmp(b)));
        let more = rows.len().saturating_sub(LISTED);
        rows.truncate(LISTED);
        Ranking {
            seconds: elapsed.as_secs_f64(),
            requests,
            rows: rows.into_iter().map(|(key, tally)| Row::new(key, tally)).collect(),
            more,
            skipped: self.skipped,
        }
    }
}

impl Tally {
    fn add(&mut self, latency: Duration, good: bool) {
        self.best = if self.count == 0 { latency } else { self.best.min(latency) };
        self.worst = self.worst.max(latency);
        self.last = latency;
        self.count += 1;
        self.good += u64::from(good);
    }
}

/// The document of `-o json`.
#[derive(Debug, Serialize)]
struct Ranking {
    seconds: f64,
    requests: u64,
    rows: Vec<Row>,
    /// Kinds of requests that are not listed.
    more: usize,
    /// Requests that `--max-rps` left out.
    skipped: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    direction: &'static str,
    source: String,
    destination: String,
    method: String,
    path: String,
    count: u64,
    best_ms: f64,
    worst_ms: f64,
    last_ms: f64,
    success: f64,
}

impl Row {
    fn new(key: &Key, tally: &Tally) -> Self {
        let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
        Self {
            direction: key.direction,
            source: key.source.clone(),
            destination: key.destination.clone(),
            method: key.method.clone(),
            path: key.path.clone(),
            count: tally.count,
            best_ms: millis(tally.best),
            worst_ms: millis(tally.worst),
            last_ms: millis(tally.last),
            success: tally.good as f64 / tally.count.max(1) as f64,
        }
    }
}

impl Ranking {
    /// Figures first: what a narrow terminal cuts off is the end of long paths.
    fn table(&self, wide: bool) -> Table {
        let mut columns: Vec<Column> =
            ["COUNT", "SUCCESS", "BEST", "WORST"].map(Column::right).to_vec();
        if wide {
            columns.push(Column::right("LAST"));
            columns.extend(["DIR", "SOURCE", "DESTINATION", "REQUEST"].map(Column::left));
        } else {
            columns.extend(["DIR", "REQUEST"].map(Column::left));
        }
        let mut table = Table::new(columns);
        for row in &self.rows {
            let latency = |ms: f64| Cell::from(units::latency(Duration::from_secs_f64(ms / 1e3)));
            let mut cells = vec![
                Cell::from(row.count.to_string()),
                Cell::from(units::percent(row.success)),
                latency(row.best_ms),
                latency(row.worst_ms),
            ];
            let (source, destination) = (row.source.as_str(), row.destination.as_str());
            let request = format!("{} {}", row.method, row.path);
            if wide {
                cells.push(latency(row.last_ms));
                cells.extend([row.direction, source, destination, &request].map(Cell::from));
            } else {
                cells.extend([
                    Cell::from(row.direction),
                    Cell::from(format!("{source} → {destination}  {request}")),
                ]);
            }
            table.row(cells);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::ext;

    use super::*;
    use crate::commands::tap::tests::sample;

    fn request(path: &str, millis: i32, status: u32) -> Tapped {
        let mut tapped = sample();
        let event = tapped.event.as_mut().unwrap();
        event.path = path.into();
        event.status = status;
        event.duration = Some(prost_types::Duration { seconds: 0, nanos: millis * 1_000_000 });
        tapped
    }

    #[test]
    fn requests_are_counted_by_path_without_query() {
        let mut board = Board::default();
        board.add(&request("/a?x=1", 5, 200));
        board.add(&request("/a?x=2", 9, 500));
        board.add(&request("/b", 1, 200));
        let table = board.ranking(Duration::from_secs(5)).table(false).render(Default::default());
        crate::testing::golden("top.txt", &table);
    }

    #[test]
    fn what_both_sides_tell_is_counted_once() {
        let mut sent = request("/a", 7, 200);
        sent.event.as_mut().unwrap().direction = ext::Direction::Outbound.into();
        let mut board = Board::default();
        board.add(&sent);
        assert_eq!(board.ranking(Duration::ZERO).rows[0].direction, "out");
        board.add(&request("/a", 5, 200));
        let ranking = board.ranking(Duration::ZERO);
        assert_eq!((ranking.requests, ranking.rows[0].direction), (1, "in"));
    }

    #[test]
    fn paths_that_never_repeat_do_not_fill_the_memory() {
        let mut board = Board::default();
        for id in 0..3 * MAX_ROWS {
            board.add(&request(&format!("/user/{id}"), 1, 200));
        }
        assert_eq!(board.rows.len(), MAX_ROWS + 1);
        assert_eq!(board.ranking(Duration::ZERO).rows[0].path, OTHER);
    }
}
