//! Spans of requests, sent to an OpenTelemetry collector.
//!
//! A request with a valid trace context is sampled if whoever began the trace sampled it; any other
//! with the configured probability. Only a sampled request costs anything: its span is begun and
//! ended on the data path, without I/O, and handed to the queue of [`export`].

mod context;
mod export;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use http::Method;
use mesh_layers::Request;
use mesh_model::{Direction, Meta, Reason};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

pub(crate) use self::export::Exporter;
use self::export::{Counts, QUEUE};
use super::Telemetry;
use crate::config::Config;
use crate::http::forward;

/// Bytes kept of a text that clients choose, so that the queue is bounded in bytes, too.
const MAX_TEXT: usize = 1_024;

/// Where spans go: `http://HOST:PORT`, without TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(String);

impl FromStr for OtlpEndpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WANTED: &str = "is not http://HOST:PORT";
        let uri: http::Uri = text.parse().map_err(|_| WANTED)?;
        let fits = uri.scheme_str() == Some("http")
            && uri.port_u16().is_some()
            && uri.path_and_query().is_none_or(|path| path == "/");
        if fits { Ok(Self(text.to_owned())) } else { Err(WANTED) }
    }
}

/// The share of traces begun here that are sampled, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleShare(f64);

impl Default for SampleShare {
    fn default() -> Self {
        Self(0.01)
    }
}

impl FromStr for SampleShare {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(Self).ok_or("is not a share between 0 and 1, such as 0.01")
    }
}

/// Begins and ends spans.
#[derive(Debug)]
pub(crate) struct Tracer {
    share: SampleShare,
    scope: InstrumentationScope,
    queue: mpsc::Sender<SpanData>,
    counts: Counts,
}

/// The span of a request on its way.
#[derive(Debug)]
pub(crate) struct Span {
    context: SpanContext,
    parent: SpanId,
    kind: SpanKind,
    started: SystemTime,
    method: &'static str,
    attributes: Vec<KeyValue>,
}

/// What a request's record knows at its end.
#[derive(Debug)]
pub(crate) struct SpanEnd<'a> {
    pub(crate) duration: Duration,
    pub(crate) route: Option<&'a Meta>,
    pub(crate) backend: Option<&'a str>,
    /// Outbound: where the last try went.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) attempts: u32,
    /// 0 if the client went away before there was an answer.
    pub(crate) status: u16,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) success: Option<bool>,
    pub(crate) reason: Option<Reason>,
}

impl Tracer {
    /// Starts to export on the current runtime, if the configuration names a collector.
    ///
    /// # Errors
    /// The exporter's, about its configuration.
    pub(crate) fn start(
        config: &Config,
        telemetry: &Telemetry,
    ) -> Result<Option<(Self, Exporter)>, ExporterBuildError> {
        let Some(OtlpEndpoint(endpoint)) = &config.otlp_endpoint else { return Ok(None) };
        let exporter = export::otlp(endpoint, &config.pod_namespace, &config.pod_name)?;
        let (tracer, spans) = Self::new(config.trace_sample, QUEUE);
        telemetry.register(tracer.counts.clone());
        let exporter = Exporter::spawn(exporter, spans, &tracer.counts);
        Ok(Some((tracer, exporter)))
    }

    fn new(share: SampleShare, queue: usize) -> (Self, mpsc::Receiver<SpanData>) {
        let (queue, spans) = mpsc::channel(queue);
        let scope = InstrumentationScope::builder("mesh-proxy");
        let scope = scope.with_version(env!("CARGO_PKG_VERSION")).build();
        (Self { share, scope, queue, counts: Counts::default() }, spans)
    }

    /// Begins the span of a request if it is sampled, and makes it the parent of what the request
    /// will cause further on.
    pub(crate) fn begin(
        &self,
        direction: Direction,
        client: SocketAddr,
        request: &mut Request,
    ) -> Option<Box<Span>> {
        let parent = context::extract(request.headers());
        let sampled = match &parent {
            Some(parent) => parent.is_sampled(),
            None => rand::random_bool(self.share.0),
        };
        if !sampled {
            return None;
        }
        let root = || TraceId::from(rand::random_range(1..=u128::MAX));
        let context = SpanContext::new(
            parent.as_ref().map_or_else(root, SpanContext::trace_id),
            SpanId::from(rand::random_range(1..=u64::MAX)),
            TraceFlags::SAMPLED,
            false,
            parent.as_ref().map(|parent| parent.trace_state().clone()).unwrap_or_default(),
        );
        let span = Span {
            parent: parent.as_ref().map_or(SpanId::INVALID, SpanContext::span_id),
            kind: match direction {
                Direction::Inbound => SpanKind::Server,
                Direction::Outbound => SpanKind::Client,
            },
            started: SystemTime::now(),
            method: known(request.method()),
            attributes: describe(direction, client, request),
            context,
        };
        context::inject(request.headers_mut(), &span.context, parent.is_none());
        Some(Box::new(span))
    }

    /// Ends a span and hands it to the exporter, unless too many wait already.
    pub(crate) fn finish(&self, span: Span, end: &SpanEnd<'_>) {
        let Span { context, parent, kind, started, method, mut attributes } = span;
        let error = error(&kind, end);
        if let Some(error) = &error {
            attributes.push(KeyValue::new("error.type", error.clone()));
        }
        end.describe(&mut attributes);
        // By convention an unknown method is `HTTP` in names. Nobody named a default route.
        let method = if method == OTHER { "HTTP" } else { method };
        let name = match end.route.filter(|route| route.resource().is_some()) {
            Some(route) => format!("{method} {route}").into(),
            None => method.into(),
        };
        let data = SpanData {
            parent_span_is_remote: parent != SpanId::INVALID,
            span_context: context,
            parent_span_id: parent,
            span_kind: kind,
            name,
            start_time: started,
            // A clock that is set meanwhile changes no duration.
            end_time: started + end.duration,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        };
        if self.queue.try_send(data).is_err() {
            self.counts.queue_full.inc();
        }
    }
}

/// What the conventions want for a method that is none of HTTP's own.
const OTHER: &str = "_OTHER";

fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => OTHER,
    }
}

/// What is known of a request at its beginning. Queries are left out: they may carry secrets.
fn describe(direction: Direction, client: SocketAddr, request: &Request) -> Vec<KeyValue> {
    let method = known(request.method());
    let mut attributes = Vec::with_capacity(16);
    attributes.push(KeyValue::new("http.request.method", method));
    if method == OTHER {
        let original = text(request.method().as_str());
        attributes.push(KeyValue::new("http.request.method_original", original));
    }
    attributes.push(KeyValue::new("url.path", text(request.uri().path())));
    let scheme = request.uri().scheme_str().unwrap_or("http");
    attributes.push(KeyValue::new("url.scheme", text(scheme)));
    if let Some(authority) = forward::authority_of(request) {
        attributes.push(KeyValue::new("server.address", text(authority.host())));
        let port = authority.port_u16().unwrap_or(80);
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
    if direction == Direction::Inbound {
        peer(client, &mut attributes);
    }
    attributes
}

impl SpanEnd<'_> {
    fn describe(&self, attributes: &mut Vec<KeyValue>) {
        if self.status != 0 {
            let status = i64::from(self.status);
            attributes.push(KeyValue::new("http.response.status_code", status));
        }
        if let Some(status) = self.grpc_status {
            attributes.push(KeyValue::new("rpc.grpc.status_code", i64::from(status)));
        }
        if let Some(endpoint) = self.endpoint {
            peer(endpoint, attributes);
        }
        if let Some(route) = self.route {
            attributes.push(KeyValue::new("mesh.route", route.to_string()));
        }
        if let Some(backend) = self.backend {
            attributes.push(KeyValue::new("mesh.backend", backend.to_owned()));
        }
        if let Some(reason) = self.reason {
            attributes.push(KeyValue::new("mesh.reason", reason.code()));
        }
        attributes.push(KeyValue::new("mesh.attempts", i64::from(self.attempts)));
    }
}

fn peer(addr: SocketAddr, attributes: &mut Vec<KeyValue>) {
    attributes.push(KeyValue::new("network.peer.address", addr.ip().to_string()));
    attributes.push(KeyValue::new("network.peer.port", i64::from(addr.port())));
}

/// What went wrong. By convention a 4xx is the client's error and not the server's.
fn error(kind: &SpanKind, end: &SpanEnd<'_>) -> Option<String> {
    let from = if *kind == SpanKind::Client { 400 } else { 500 };
    let failed = end.success == Some(false) || end.status >= from;
    failed.then(|| match (end.reason, end.grpc_status) {
        (Some(reason), _) => reason.code().to_owned(),
        (None, Some(code)) if code != 0 => code.to_string(),
        _ => end.status.to_string(),
    })
}

fn text(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}
