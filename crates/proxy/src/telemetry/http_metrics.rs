//! The cumulative families of requests: per endpoint, per route and per backend of a route.
//!
//! Route-level families are sums over the endpoint-level ones, made at a scrape, so that a request
//! pays for being counted once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mesh_model::{Direction, Meta, Reason};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use super::labels::{self, Detail, EndpointSet, HttpLabels, LabelSet, Pairs, Rendered};
use super::responses::{Class, Counted, HttpSeries, Latency, Spread};

/// Sums of one parent's route, or of one backend of it.
#[derive(Debug, Default)]
struct RouteSums {
    statuses: BTreeMap<(u16, Option<Reason>), u64>,
    latency: Latency,
    requests: u64,
}

type RouteFamily = BTreeMap<Rendered, RouteSums>;

impl RouteSums {
    /// Of a route, requests count; of a backend, every try.
    fn add(&mut self, counted: &Counted, tries: bool) {
        self.requests += counted.requests;
        for (class, count) in &counted.responses.outcomes {
            if class.given_up && !tries {
                continue;
            }
            *self.statuses.entry((class.status, class.reason)).or_default() += count;
        }
        for (_, latency) in &counted.responses.latency {
            self.latency.merge(latency);
        }
    }
}

struct RouteSet<'a> {
    parent: &'a Meta,
    route: &'a Meta,
    backend: Option<&'a Meta>,
}

impl Pairs for RouteSet<'_> {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        labels::meta("parent", self.parent, Detail::Port, visit);
        labels::meta("route", self.route, Detail::Object, visit);
        if let Some(backend) = self.backend {
            labels::meta("backend", backend, Detail::Port, visit);
        }
    }
}

/// The labels of a response besides its series'.
struct ClassSet(Class);

impl Pairs for ClassSet {
    fn pairs(&self, visit: &mut dyn FnMut(&str, &str)) {
        let Class { status, success, grpc_status, reason, given_up: _ } = self.0;
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

type Labelled = ((Direction, HttpLabels), Arc<HttpSeries>);

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
    let mut sums: BTreeMap<Rendered, Counted> = BTreeMap::new();
    for ((direction, labels), series) in all {
        let labels = Rendered::of(&EndpointSet(*direction, labels));
        sums.entry(labels).or_default().merge(&series.counted());
    }
    let help = "Requests seen";
    let mut family = encoder.encode_descriptor("request", help, None, MetricType::Counter)?;
    for (labels, counted) in &sums {
        counter(&mut family, labels, counted.requests)?;
    }
    let help = "Responses seen to their end, by their outcome";
    let mut family = encoder.encode_descriptor("response", help, None, MetricType::Counter)?;
    for (labels, counted) in &sums {
        let mut outcomes: BTreeMap<Class, u64> = BTreeMap::new();
        for (class, count) in &counted.responses.outcomes {
            *outcomes.entry(Class { given_up: false, ..*class }).or_default() += count;
        }
        for (class, count) in outcomes {
            counter(&mut family, &(labels, ClassSet(class)), count)?;
        }
    }
    let help = "Milliseconds from a request's head to its response's end";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor("response_latency_ms", help, None, kind)?;
    for (labels, counted) in &sums {
        for (status, latency) in &counted.responses.latency {
            histogram(&mut family, &(labels, StatusSet(*status)), &latency.millis())?;
        }
    }
    Ok(())
}

fn route_level(encoder: &mut DescriptorEncoder<'_>, all: &[Labelled]) -> fmt::Result {
    let (mut routes, mut backends) = (RouteFamily::new(), RouteFamily::new());
    for ((direction, labels), series) in all {
        let (Direction::Outbound, Some(parent), Some(route)) =
            (*direction, &labels.parent, &labels.route)
        else {
            continue;
        };
        let counted = series.counted();
        let set = RouteSet { parent, route, backend: None };
        routes.entry(Rendered::of(&set)).or_default().add(&counted, false);
        if let Some(backend) = &labels.backend {
            let set = RouteSet { backend: Some(backend), ..set };
            backends.entry(Rendered::of(&set)).or_default().add(&counted, true);
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

fn durations(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &RouteFamily,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (set, sums) in all {
        histogram(&mut family, set, &sums.latency.seconds())?;
    }
    Ok(())
}

fn statuses(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &RouteFamily,
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

fn histogram(family: &mut MetricEncoder<'_>, labels: &impl Pairs, spread: &Spread) -> fmt::Result {
    let labels = LabelSet(labels);
    let Spread { sum, count, buckets } = spread;
    family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
}
