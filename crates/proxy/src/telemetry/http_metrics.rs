//! The cumulative families of requests: per endpoint, per route and per backend of a route.
//!
//! Route-level families are sums over the endpoint-level ones, made at a scrape, so that a request
//! pays for being counted once.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mesh_model::{Direction, Meta, Reason};
use parking_lot::Mutex;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use super::Finished;
use super::labels::{self, EndpointSet, HttpLabels, LabelSet, Pairs};

/// Upper bounds of `response_latency_ms`, in milliseconds.
const LATENCY_MS: [u32; 25] = [
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1_000, 2_000, 3_000, 4_000, 5_000,
    10_000, 20_000, 30_000, 40_000, 50_000,
];
/// Upper bounds of the route-level durations, each one of [`LATENCY_MS`] too.
const ROUTE_MS: [u32; 4] = [50, 500, 1_000, 10_000];
/// Distinct outcomes a series gathers before it hands them over.
const PENDING: usize = 16;
/// Distinct outcomes kept per set of labels; more fall into one without a status.
const OUTCOMES: usize = 128;

/// The outcome of a response, as far as it makes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    status: u16,
    success: bool,
    grpc_status: Option<u16>,
    reason: Option<Reason>,
}

impl Class {
    pub(super) fn of(finished: &Finished) -> Self {
        let Finished { status, success, grpc_status, reason, .. } = *finished;
        Self { status, success, grpc_status, reason }
    }

    fn unspecific(self) -> Self {
        Self { status: 0, success: self.success, grpc_status: None, reason: None }
    }
}

/// Outcomes counted, and latencies by status.
#[derive(Debug, Default)]
pub(super) struct Responses {
    outcomes: Vec<(Class, u64)>,
    latency: Vec<(u16, Latency)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    buckets: [u64; LATENCY_MS.len() + 1],
    micros: u64,
}

impl Responses {
    /// Counts a response; `false`, and nothing counted, if there is no room for another outcome.
    pub(super) fn add(&mut self, class: Class, took: Duration) -> bool {
        let counted = self.count(class, 1, PENDING);
        if counted {
            self.latency_of(class.status).record(took);
        }
        counted
    }

    /// Counts a request that got no response, which has no latency.
    pub(super) fn add_failure(&mut self, reason: Reason) -> bool {
        let class = Class { status: 0, success: false, grpc_status: None, reason: Some(reason) };
        self.count(class, 1, PENDING)
    }

    fn count(&mut self, class: Class, count: u64, room: usize) -> bool {
        if let Some((_, counted)) = self.outcomes.iter_mut().find(|(known, _)| *known == class) {
            *counted += count;
            return true;
        }
        let fits = self.outcomes.len() < room;
        if fits {
            self.outcomes.push((class, count));
        }
        fits
    }

    fn latency_of(&mut self, status: u16) -> &mut Latency {
        let at = self.latency.iter().position(|(known, _)| *known == status);
        let at = at.unwrap_or_else(|| {
            self.latency.push((status, Latency::default()));
            self.latency.len() - 1
        });
        &mut self.latency[at].1
    }

    fn merge(&mut self, other: &Self) {
        for (class, count) in &other.outcomes {
            if !self.count(*class, *count, OUTCOMES) {
                // Room is kept for these two: one for success, one for failure.
                self.count(class.unspecific(), *count, OUTCOMES + 2);
            }
        }
        for (status, latency) in &other.latency {
            let known = self.latency.iter().any(|(have, _)| have == status);
            let status = if known || self.latency.len() < OUTCOMES { *status } else { 0 };
            self.latency_of(status).merge(latency);
        }
    }
}

impl Latency {
    fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = LATENCY_MS.partition_point(|bound| u64::from(*bound) * 1_000 < micros);
        self.buckets[at] += 1;
        self.micros = self.micros.saturating_add(micros);
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// `(upper bound, count)` in milliseconds, not accumulated.
    fn millis(&self) -> Vec<(f64, u64)> {
        let bounds = LATENCY_MS.iter().map(|ms| f64::from(*ms)).chain([f64::INFINITY]);
        bounds.zip(self.buckets).collect()
    }

    /// The same in seconds and in the coarser steps of the route-level families.
    fn seconds(&self) -> Vec<(f64, u64)> {
        let mut at = 0;
        let mut coarse = |bound: u32| {
            let upto = LATENCY_MS.partition_point(|ms| *ms <= bound);
            let count = self.buckets[at..upto].iter().sum();
            at = upto;
            (f64::from(bound) / 1_000.0, count)
        };
        let mut buckets: Vec<_> = ROUTE_MS.into_iter().map(&mut coarse).collect();
        buckets.push((f64::INFINITY, self.buckets[at..].iter().sum()));
        buckets
    }
}

/// What is counted for one set of labels since the proxy started.
#[derive(Debug, Default)]
pub(super) struct HttpSeries {
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    requests: u64,
    responses: Responses,
}

impl HttpSeries {
    pub(super) fn add_requests(&self, count: u64) {
        self.counted.lock().requests += count;
    }

    /// Takes over what a series gathered, and empties it.
    pub(super) fn absorb(&self, responses: &mut Responses) {
        self.counted.lock().responses.merge(responses);
        responses.outcomes.clear();
        responses.latency.clear();
    }
}

/// Sums of one parent's route, or of one backend of it.
#[derive(Debug, Default)]
struct RouteSums {
    statuses: BTreeMap<(u16, Option<Reason>), u64>,
    latency: Latency,
    requests: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct RouteSet<'a> {
    parent: &'a Meta,
    route: &'a Meta,
    backend: Option<&'a Meta>,
}

impl Pairs for RouteSet<'_> {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        labels::meta("parent", self.parent, true, visit);
        labels::meta("route", self.route, true, visit);
        if let Some(backend) = self.backend {
            labels::meta("backend", backend, true, visit);
        }
    }
}

/// The labels of a response besides its series'.
struct ClassSet(Class);

impl Pairs for ClassSet {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        let Class { status, success, grpc_status, reason } = self.0;
        visit("status_code", &code(status));
        visit("classification", if success { "success" } else { "failure" });
        visit("grpc_status", &grpc_status.map(|code| code.to_string()).unwrap_or_default());
        visit("error", reason.map_or("", Reason::code));
    }
}

struct StatusSet(u16);

impl Pairs for StatusSet {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("status_code", &code(self.0));
    }
}

struct RouteStatusSet((u16, Option<Reason>));

impl Pairs for RouteStatusSet {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        visit("http_status", &code(self.0.0));
        visit("error", self.0.1.map_or("", Reason::code));
    }
}

fn code(status: u16) -> String {
    if status == 0 { String::new() } else { status.to_string() }
}

type Labelled = ((Direction, HttpLabels), std::sync::Arc<HttpSeries>);

/// Writes all families of requests.
pub(super) fn encode(
    mut encoder: DescriptorEncoder<'_>,
    all: &[Labelled],
    overflowed: u64,
) -> fmt::Result {
    endpoint_level(&mut encoder, all)?;
    route_level(&mut encoder, all)?;
    let help = "Series that found no place in the proxy's table and were counted together";
    let mut family = encoder.encode_descriptor(
        "telemetry_overflowed_series",
        help,
        None,
        MetricType::Counter,
    )?;
    family.encode_counter(&overflowed, None::<&Exemplar<NoLabelSet, u64>>)
}

fn endpoint_level(encoder: &mut DescriptorEncoder<'_>, all: &[Labelled]) -> fmt::Result {
    let help = "Requests seen";
    let mut family = encoder.encode_descriptor("request", help, None, MetricType::Counter)?;
    for ((direction, labels), series) in all {
        counter(&mut family, &EndpointSet(*direction, labels), series.counted.lock().requests)?;
    }
    let help = "Responses seen to their end, by their outcome";
    let mut family = encoder.encode_descriptor("response", help, None, MetricType::Counter)?;
    for ((direction, labels), series) in all {
        for (class, count) in &series.counted.lock().responses.outcomes {
            counter(&mut family, &(EndpointSet(*direction, labels), ClassSet(*class)), *count)?;
        }
    }
    let help = "Milliseconds from a request's head to its response's end";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("response_latency_ms", help, None, kind)?;
    for ((direction, labels), series) in all {
        for (status, latency) in &series.counted.lock().responses.latency {
            let labels = (EndpointSet(*direction, labels), StatusSet(*status));
            let sum = latency.micros as f64 / 1_000.0;
            histogram(&mut family, &labels, sum, latency.count(), &latency.millis())?;
        }
    }
    Ok(())
}

fn route_level(encoder: &mut DescriptorEncoder<'_>, all: &[Labelled]) -> fmt::Result {
    let (mut routes, mut backends) = (BTreeMap::new(), BTreeMap::new());
    for ((direction, labels), series) in all {
        let (Direction::Outbound, Some(parent), Some(route)) =
            (*direction, &labels.parent, &labels.route)
        else {
            continue;
        };
        let counted = series.counted.lock();
        add_sums(routes.entry(RouteSet { parent, route, backend: None }).or_default(), &counted);
        if let Some(backend) = &labels.backend {
            let set = RouteSet { parent, route, backend: Some(backend) };
            add_sums(backends.entry(set).or_default(), &counted);
        }
    }
    let name = "outbound_http_route_request_duration_seconds";
    durations(encoder, name, "Seconds from a request's head to its response's end", &routes)?;
    let name = "outbound_http_route_request_statuses";
    statuses(encoder, name, "Finished requests of a route by status", &routes)?;

    let help = "Requests sent to a backend of a route";
    let name = "outbound_http_route_backend_requests";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (set, sums) in &backends {
        counter(&mut family, set, sums.requests)?;
    }
    let name = "outbound_http_route_backend_response_duration_seconds";
    durations(encoder, name, "Seconds until the end of a backend's response", &backends)?;
    let name = "outbound_http_route_backend_response_statuses";
    statuses(encoder, name, "Finished responses of a backend by status", &backends)
}

fn add_sums(sums: &mut RouteSums, counted: &Counted) {
    sums.requests += counted.requests;
    for (class, count) in &counted.responses.outcomes {
        *sums.statuses.entry((class.status, class.reason)).or_default() += count;
    }
    for (_, latency) in &counted.responses.latency {
        sums.latency.merge(latency);
    }
}

fn durations(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &BTreeMap<RouteSet<'_>, RouteSums>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (set, RouteSums { latency, .. }) in all {
        let sum = latency.micros as f64 / 1e6;
        histogram(&mut family, set, sum, latency.count(), &latency.seconds())?;
    }
    Ok(())
}

fn statuses(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &BTreeMap<RouteSet<'_>, RouteSums>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (set, sums) in all {
        for (status, count) in &sums.statuses {
            counter(&mut family, &(set, RouteStatusSet(*status)), *count)?;
        }
    }
    Ok(())
}

/// One line of a counter family.
pub(super) fn counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl Pairs,
    count: u64,
) -> fmt::Result {
    let labels = LabelSet(labels);
    family.encode_family(&labels)?.encode_counter(&count, None::<&Exemplar<NoLabelSet, u64>>)
}

fn histogram(
    family: &mut MetricEncoder<'_>,
    labels: &impl Pairs,
    sum: f64,
    count: u64,
    buckets: &[(f64, u64)],
) -> fmt::Result {
    let labels = LabelSet(labels);
    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
}
