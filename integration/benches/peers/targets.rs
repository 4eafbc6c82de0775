//! The targets of `docs/performance.md`, judged within one run.

use std::fmt;

use serde::Serialize;

use crate::hops::Hop;
use crate::report::{Figure, Table, ratio};
use crate::rows::Row;

pub(crate) struct Target {
    row: Row,
    figure: Figure,
    against: Against,
    limit: Limit,
}

enum Against {
    /// A ratio, to be kept with each of these that was measured.
    Each(&'static [Hop]),
    /// The figure itself.
    Itself,
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// A target, and how far it is met.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    target: String,
    measured: f64,
    met: bool,
}

const MESHES: &[Hop] = &[Hop::Envoy, Hop::Linkerd];
/// Over two hops. That the better of them counts is in how a target is judged.
const PAIRS: &[Hop] = &[Hop::Envoy, Hop::EnvoyH2, Hop::Linkerd];

const fn target(row: Row, figure: Figure, against: Against, limit: Limit) -> Target {
    Target { row, figure, against, limit }
}

pub(crate) const TARGETS: &[Target] = {
    use Against::{Each, Itself};
    use Figure::{
        AddedP50Micros, AddedP99Micros, CpuMicrosPerRequest, GibPerSecond, IdleMib,
        KibPerIdleConnection, RequestsPerSecond,
    };
    use Limit::{AtLeast, AtMost};
    &[
        target(Row::Http1, CpuMicrosPerRequest, Each(MESHES), AtMost(0.70)),
        target(Row::Http1, CpuMicrosPerRequest, Each(&[Hop::Floor]), AtMost(1.35)),
        target(Row::Http1, RequestsPerSecond, Each(MESHES), AtLeast(1.4)),
        target(Row::Http2, CpuMicrosPerRequest, Each(MESHES), AtMost(0.95)),
        target(Row::Latency, AddedP50Micros, Each(MESHES), AtMost(1.0)),
        target(Row::Latency, AddedP99Micros, Each(MESHES), AtMost(1.0)),
        target(Row::Large, GibPerSecond, Each(&[Hop::Direct]), AtLeast(0.98)),
        target(Row::TcpLarge, CpuMicrosPerRequest, Each(&[Hop::Splice]), AtMost(1.0)),
        target(Row::MtlsHttp1, CpuMicrosPerRequest, Each(PAIRS), AtMost(0.65)),
        target(Row::MtlsHttp1, CpuMicrosPerRequest, Each(&[Hop::Floor]), AtMost(1.40)),
        target(Row::MtlsHttp1, RequestsPerSecond, Each(PAIRS), AtLeast(1.5)),
        target(Row::MtlsHttp2, CpuMicrosPerRequest, Each(PAIRS), AtMost(0.70)),
        target(Row::MtlsHttp2, RequestsPerSecond, Each(PAIRS), AtLeast(1.5)),
        target(Row::MtlsLatency, AddedP50Micros, Each(PAIRS), AtMost(1.0)),
        target(Row::MtlsLatency, AddedP99Micros, Each(PAIRS), AtMost(1.0)),
        // It stands for ztunnel, which nobody packages and which is of layer 4 too.
        target(Row::MtlsLarge, GibPerSecond, Each(&[Hop::FloorTcp]), AtLeast(1.0)),
        target(Row::Memory, IdleMib, Itself, AtMost(8.0)),
        target(Row::Memory, KibPerIdleConnection, Itself, AtMost(8.0)),
    ]
};

impl Target {
    /// By the hardest of the hops it names; `None` when ours or all of them were not measured.
    pub(crate) fn judge(&self, table: &Table) -> Option<Verdict> {
        let hops = table.get(&self.row)?;
        let measured = match self.against {
            Against::Itself => *hops.get(&Hop::Mesh)?.figures.get(&self.figure)?,
            Against::Each(others) => {
                let ratios = others.iter().filter_map(|other| ratio(hops, self.figure, *other));
                match self.limit {
                    Limit::AtMost(_) => ratios.max_by(f64::total_cmp)?,
                    Limit::AtLeast(_) => ratios.min_by(f64::total_cmp)?,
                }
            }
        };
        let met = match self.limit {
            Limit::AtMost(limit) => measured <= limit,
            Limit::AtLeast(limit) => measured >= limit,
        };
        Some(Verdict { target: self.to_string(), measured, met })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.row, self.figure.heading())?;
        let (sign, limit) = match self.limit {
            Limit::AtMost(limit) => ("≤", limit),
            Limit::AtLeast(limit) => ("≥", limit),
        };
        write!(f, " {sign} {limit}")?;
        if let Against::Each(others) = self.against {
            let others: Vec<String> = others.iter().map(Hop::to_string).collect();
            write!(f, " × {}", others.join(" and "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = if self.met { "met   " } else { "missed" };
        write!(f, "{met} {}: {:.2}", self.target, self.measured)
    }
}
