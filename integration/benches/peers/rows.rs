//! The rows of the comparison: what is sent, and what one measurement of it yields.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use mesh_integration::load::backend::LARGE_PATH;
use mesh_integration::load::{self, Outcome, Pace, Plan, Protocol, idle};
use serde::Serialize;

use crate::hops::{Proxy, Site, Traffic};
use crate::machine::{self, DISTURBED, Patience, Usage};
use crate::report::Figure;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Row {
    Http1,
    Http2,
    Latency,
    Large,
    Tcp,
    TcpLarge,
    MtlsHttp1,
    MtlsHttp2,
    MtlsLatency,
    MtlsLarge,
    MtlsTcpLarge,
    Memory,
    Instructions,
}

/// How long everything takes.
#[derive(Debug)]
pub(crate) struct Timing {
    rounds: usize,
    warm_up: Duration,
    window: Duration,
    pub(crate) patience: Duration,
}

/// The figures of one measurement, those that the row yields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) figures: BTreeMap<Figure, f64>,
    /// Other programs used the cores meanwhile.
    pub(crate) disturbed: bool,
}

impl Row {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, small bodies, 32 connections, as fast as it goes",
            Self::Http2 => {
                "HTTP/2 cleartext, small bodies, 4 connections of 16 streams, as fast as it goes"
            }
            Self::Latency => {
                "HTTP/1.1, small bodies, 1000 requests a second, open loop over 32 connections"
            }
            Self::Large => "HTTP/1.1, bodies of 1 MiB, 8 connections, as fast as it goes",
            Self::Tcp => "opaque TCP, small messages both ways, 32 connections, as fast as it goes",
            Self::TcpLarge => {
                "opaque TCP, 1 MiB at a time one way, 8 connections, as fast as it goes"
            }
            Self::MtlsHttp1 => {
                "two hops with mTLS: HTTP/1.1, small bodies, 32 connections, as fast as it goes"
            }
            Self::MtlsHttp2 => {
                "two hops with mTLS: HTTP/2, small bodies, 4 connections of 16 streams, as fast as it goes"
            }
            Self::MtlsLatency => {
                "two hops with mTLS: HTTP/1.1, small bodies, 1000 requests a second, open loop over 32 connections"
            }
            Self::MtlsLarge => {
                "two hops with mTLS: HTTP/1.1, bodies of 1 MiB, 8 connections, as fast as it goes"
            }
            Self::MtlsTcpLarge => {
                "two hops with mTLS: opaque TCP, 1 MiB at a time one way, 8 connections, as fast as it goes"
            }
            Self::Memory => "memory",
            Self::Instructions => "HTTP/1.1, small bodies, one connection, under callgrind",
        }
    }

    pub(crate) fn traffic(self) -> Traffic {
        match self {
            Self::Http1 | Self::Latency | Self::Large | Self::Memory | Self::Instructions => {
                Traffic::Http1
            }
            Self::MtlsHttp1 | Self::MtlsLatency | Self::MtlsLarge => Traffic::Http1,
            Self::Http2 | Self::MtlsHttp2 => Traffic::Http2,
            Self::Tcp | Self::TcpLarge | Self::MtlsTcpLarge => Traffic::Tcp,
        }
    }

    /// Whether requests pass a proxy at each end, with mTLS between the two.
    pub(crate) fn through_a_pair(self) -> bool {
        match self {
            Self::MtlsHttp1
            | Self::MtlsHttp2
            | Self::MtlsLatency
            | Self::MtlsLarge
            | Self::MtlsTcpLarge => true,
            Self::Http1 | Self::Http2 | Self::Latency | Self::Large => false,
            Self::Tcp | Self::TcpLarge | Self::Memory | Self::Instructions => false,
        }
    }

    /// Memory depends on the program alone, not on who else is busy.
    pub(crate) fn rounds(self, timing: &Timing) -> usize {
        if self == Self::Memory { 1 } else { timing.rounds }
    }

    pub(crate) fn measure(
        self,
        site: &Site,
        proxy: &Proxy,
        timing: &Timing,
        patience: &mut Patience,
    ) -> anyhow::Result<Sample> {
        if self == Self::Memory {
            return memory(proxy);
        }
        let plan = self.plan(proxy, timing);
        let sample = under_load(&plan, site, proxy)?;
        if !sample.disturbed || patience.is_over() {
            return Ok(sample);
        }
        patience.spend(plan.warm_up + plan.window);
        patience.wait_for_quiet(site.cores())?;
        under_load(&plan, site, proxy)
    }

    fn plan(self, proxy: &Proxy, timing: &Timing) -> Plan {
        let large =
            matches!(self, Self::Large | Self::TcpLarge | Self::MtlsLarge | Self::MtlsTcpLarge);
        let (protocol, connections) = match self {
            _ if large => (Protocol::Http1, 8),
            Self::Http2 | Self::MtlsHttp2 => (Protocol::Http2 { streams: 16 }, 4),
            Self::Memory | Self::Instructions => (Protocol::Http1, 1),
            _ => (Protocol::Http1, 32),
        };
        Plan {
            target: proxy.addr,
            authority: proxy.authority.clone(),
            path: if large { LARGE_PATH } else { "/" }.to_owned(),
            protocol,
            connections,
            pace: match self {
                Self::Latency | Self::MtlsLatency => Pace::Open { rate: 1000 },
                _ => Pace::Saturate,
            },
            warm_up: if self.through_a_pair() {
                timing.warm_up.max(HANDSHAKES)
            } else {
                timing.warm_up
            },
            window: timing.window,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::report::value_name(self, f)
    }
}

impl Timing {
    pub(crate) fn quick(rounds: usize) -> Self {
        Self {
            rounds,
            warm_up: Duration::from_millis(50),
            window: Duration::from_millis(250),
            patience: Duration::from_secs(15),
        }
    }

    pub(crate) fn full(rounds: usize) -> Self {
        Self {
            rounds,
            warm_up: Duration::from_millis(500),
            window: Duration::from_secs(4),
            patience: Duration::from_secs(180),
        }
    }
}

/// Within this every connection has been secured, which costs a proxy about as much as a hundred requests.
const HANDSHAKES: Duration = Duration::from_millis(300);

fn under_load(plan: &Plan, site: &Site, proxy: &Proxy) -> anyhow::Result<Sample> {
    let mut usage = Vec::with_capacity(2);
    let pids = proxy.pids();
    let outcome = load::run(plan, &mut || usage.push(Usage::now(site.cores(), &pids)))?;
    let mut usage = usage.into_iter();
    let (before, after) = usage.next().zip(usage.next()).context("the window")?;
    let (before, after) = (before?, after?);
    ensure!(outcome.requests > 0, "no request was answered");
    ensure!(outcome.failed == 0, "{} of {} answers were not 200", outcome.failed, outcome.requests);
    let cpu = after.proxy.saturating_sub(before.proxy);
    let cpu = (!pids.is_empty()).then_some(cpu);
    Ok(sample(plan, &outcome, cpu, before.foreign(&after)))
}

fn sample(plan: &Plan, outcome: &Outcome, cpu: Option<Duration>, foreign: f64) -> Sample {
    let seconds = outcome.elapsed.as_secs_f64();
    let requests = outcome.requests as f64;
    let micros = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1e3;
    let mut figures = BTreeMap::from([
        (Figure::RequestsPerSecond, requests / seconds),
        (Figure::P50Micros, micros(0.5)),
        (Figure::P99Micros, micros(0.99)),
    ]);
    if let Some(cpu) = cpu {
        let micros = cpu.as_secs_f64() * 1e6;
        figures.insert(Figure::CpuMicrosPerRequest, micros / requests);
    }
    if plan.path == LARGE_PATH {
        let gib = outcome.body_bytes as f64 / f64::from(1 << 30);
        figures.insert(Figure::GibPerSecond, gib / seconds);
    }
    Sample { figures, disturbed: foreign > DISTURBED }
}

const IDLE_CONNECTIONS: usize = 1000;

/// Of the proxy as it started, and of connections that were used once each.
fn memory(proxy: &Proxy) -> anyhow::Result<Sample> {
    let Some(&pid) = proxy.pids().first() else {
        return Ok(Sample::default());
    };
    let settled = || {
        crate::pause(Duration::from_millis(300));
        machine::resident(pid)
    };
    let idle = settled()?;
    // What the first request alone costs is not what each connection costs.
    let _first = idle::hold(proxy.addr, &proxy.authority, 8)?;
    let before = settled()?;
    let held = idle::hold(proxy.addr, &proxy.authority, IDLE_CONNECTIONS)?;
    let after = settled()?;
    drop(held);
    let grown = after.saturating_sub(before) as f64;
    Ok(Sample {
        figures: BTreeMap::from([
            (Figure::IdleMib, idle as f64 / 1024.0),
            (Figure::KibPerIdleConnection, grown / IDLE_CONNECTIONS as f64),
        ]),
        disturbed: false,
    })
}
