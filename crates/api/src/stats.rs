//! Figures, records and filters as they travel in `mesh.ext.v1`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_model::stats::{Histogram, SeriesKey, StatProtocol, Totals};
use mesh_model::tap::{Record, StatusFilter, TapFilter};
use mesh_model::{Direction, Reason};

use crate::convert::net::{read_duration, read_port, write_duration};
use crate::convert::{bounded, list};
use crate::error::{At, ConversionError, Result};
use crate::ext;
use crate::limit;

/// Longer texts of a record or key are no names.
const MAX_TEXT: usize = 16 << 10;
/// Larger counts are no counts of ten minutes. With this bound, the figures of thousands of proxies
/// add up without overflow.
const MAX_COUNT: u64 = 1 << 50;

impl From<&Histogram> for ext::Histogram {
    fn from(histogram: &Histogram) -> Self {
        let (buckets, counts) =
            histogram.buckets().iter().map(|(bucket, count)| (u32::from(*bucket), *count)).unzip();
        Self { buckets, counts }
    }
}

impl TryFrom<ext::Histogram> for Histogram {
    type Error = ConversionError;

    fn try_from(proto: ext::Histogram) -> Result<Self> {
        if proto.buckets.len() != proto.counts.len() {
            return Err(ConversionError::invalid("counts", "there are not as many as buckets"));
        }
        bounded(proto.buckets.len(), "buckets", limit::ITEMS)?;
        let mut histogram = Self::default();
        for (bucket, count) in proto.buckets.into_iter().zip(proto.counts) {
            let bucket = u16::try_from(bucket)
                .map_err(|_| ConversionError::invalid("buckets", format!("{bucket} is none")))?;
            histogram.add(bucket, read_count(count, "counts")?);
        }
        Ok(histogram)
    }
}

/// `tcp_open`, a gauge of its own, is left 0.
impl From<&Totals> for ext::Totals {
    fn from(totals: &Totals) -> Self {
        let reason = |(reason, count): &(Reason, u64)| (reason.code().to_owned(), *count);
        Self {
            success: totals.success,
            failure: totals.failure,
            classes: totals.classes.to_vec(),
            latency: Some((&totals.latency).into()),
            first_byte: Some((&totals.first_byte).into()),
            retries: totals.retries,
            request_bytes: totals.request_bytes,
            response_bytes: totals.response_bytes,
            reasons: totals.reasons.iter().map(reason).collect(),
            tcp_opened: totals.tcp_opened,
            tcp_closed: totals.tcp_closed,
            tcp_open: 0,
        }
    }
}

/// Reasons this version does not know are left out; they are failures all the same.
impl TryFrom<ext::Totals> for Totals {
    type Error = ConversionError;

    fn try_from(proto: ext::Totals) -> Result<Self> {
        let mut totals = Self {
            success: read_count(proto.success, "success")?,
            failure: read_count(proto.failure, "failure")?,
            classes: read_classes(&proto.classes)?,
            latency: proto.latency.unwrap_or_default().try_into().at("latency")?,
            first_byte: proto.first_byte.unwrap_or_default().try_into().at("first_byte")?,
            retries: read_count(proto.retries, "retries")?,
            request_bytes: read_count(proto.request_bytes, "request_bytes")?,
            response_bytes: read_count(proto.response_bytes, "response_bytes")?,
            reasons: Vec::new(),
            tcp_opened: read_count(proto.tcp_opened, "tcp_opened")?,
            tcp_closed: read_count(proto.tcp_closed, "tcp_closed")?,
        };
        for (code, count) in proto.reasons {
            if let Some(reason) = Reason::from_code(&code) {
                totals.add_reason(reason, read_count(count, "reasons")?);
            }
        }
        Ok(totals)
    }
}

fn read_count(count: u64, field: &str) -> Result<u64> {
    if count > MAX_COUNT {
        return Err(ConversionError::invalid(field, format!("{count} is too many to be true")));
    }
    Ok(count)
}

/// Five, or none where nothing was counted.
fn read_classes(classes: &[u64]) -> Result<[u64; 5]> {
    if classes.is_empty() {
        return Ok([0; 5]);
    }
    classes.iter().try_for_each(|count| read_count(*count, "classes").map(drop))?;
    classes.try_into().map_err(|_| {
        ConversionError::invalid("classes", format!("has {} items, not five", classes.len()))
    })
}

/// One series; `tcp_open` is the number of connections open now.
pub fn write_series(key: &SeriesKey, totals: &Totals, tcp_open: u64) -> ext::Series {
    ext::Series {
        direction: write_direction(Some(key.direction)),
        protocol: key.protocol.as_str().into(),
        peer: key.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        port: u32::from(key.port),
        parent: key.parent.to_string(),
        route: key.route.to_string(),
        backend: key.backend.to_string(),
        totals: Some(ext::Totals { tcp_open, ..totals.into() }),
        identity: key.identity.as_deref().unwrap_or_default().to_owned(),
    }
}

/// What [`write_series`] wrote.
///
/// # Errors
/// When a part cannot be read; the error names it.
pub fn read_series(series: ext::Series) -> Result<(SeriesKey, Totals, u64)> {
    let totals = series.totals.unwrap_or_default();
    let protocol = match series.protocol.as_str() {
        "http" => StatProtocol::Http,
        "grpc" => StatProtocol::Grpc,
        "tcp" => StatProtocol::Tcp,
        other => {
            return Err(ConversionError::invalid("protocol", format!("`{other}` is none")));
        }
    };
    let key = SeriesKey {
        direction: read_direction(series.direction)?
            .ok_or_else(|| ConversionError::missing("direction"))?,
        protocol,
        peer: read_peer(&series.peer)?,
        port: read_port(series.port, "port")?,
        parent: read_text(series.parent, "parent")?.into(),
        route: read_text(series.route, "route")?.into(),
        backend: read_text(series.backend, "backend")?.into(),
        identity: match read_text(series.identity, "identity")? {
            none if none.is_empty() => None,
            identity => Some(identity.into()),
        },
    };
    let tcp_open = read_count(totals.tcp_open, "totals.tcp_open")?;
    Ok((key, totals.try_into().at("totals")?, tcp_open))
}

fn read_peer(peer: &str) -> Result<Option<IpAddr>> {
    if peer.is_empty() {
        return Ok(None);
    }
    peer.parse()
        .map(Some)
        .map_err(|_| ConversionError::invalid("peer", format!("`{peer}` is no address")))
}

fn read_text(text: String, field: &str) -> Result<String> {
    bounded(text.len(), field, MAX_TEXT)?;
    Ok(text)
}

/// `show_secrets`, which is about the answer and not about what matches, is left false.
impl From<&TapFilter> for ext::TapFilter {
    fn from(filter: &TapFilter) -> Self {
        let status = |status: StatusFilter| match status {
            StatusFilter::Code(code) => code.to_string(),
            StatusFilter::Class(class) => format!("{class}xx"),
        };
        Self {
            direction: write_direction(filter.direction),
            method: filter.method.clone().unwrap_or_default(),
            path: filter.path.clone().unwrap_or_default(),
            authority: filter.authority.clone().unwrap_or_default(),
            status: filter.status.map(status).unwrap_or_default(),
            peers: filter.peers.iter().map(ToString::to_string).collect(),
            headers: write_headers(&filter.headers),
            with_headers: filter.with_headers,
            show_secrets: false,
            reason: filter.reason.map(|reason| reason.code().to_owned()).unwrap_or_default(),
        }
    }
}

impl TryFrom<ext::TapFilter> for TapFilter {
    type Error = ConversionError;

    fn try_from(proto: ext::TapFilter) -> Result<Self> {
        let set = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            direction: read_direction(proto.direction)?,
            method: set(proto.method),
            path: set(proto.path),
            authority: set(proto.authority),
            status: read_status_filter(&proto.status)?,
            reason: read_reason(&proto.reason)?,
            peers: list(proto.peers, "peers", limit::ENDPOINTS, |peer: String| {
                read_peer(&peer)?.ok_or_else(|| ConversionError::missing("peer"))
            })?,
            headers: read_headers(proto.headers, "headers")?,
            with_headers: proto.with_headers,
        })
    }
}

/// `503` or `5xx`; empty is none.
fn read_status_filter(text: &str) -> Result<Option<StatusFilter>> {
    let filter = match (text, text.strip_suffix("xx")) {
        ("", _) => return Ok(None),
        (_, Some(class)) => {
            class.parse().ok().filter(|class| (1..=5).contains(class)).map(StatusFilter::Class)
        }
        (_, None) => {
            text.parse().ok().filter(|code| (100..1000).contains(code)).map(StatusFilter::Code)
        }
    };
    filter.map(Some).ok_or_else(|| {
        let why = format!("`{text}` is neither a status such as 503 nor a class such as 5xx");
        ConversionError::invalid("status", why)
    })
}

fn read_reason(code: &str) -> Result<Option<Reason>> {
    if code.is_empty() {
        return Ok(None);
    }
    let why = || ConversionError::invalid("reason", format!("`{code}` is no reason code"));
    Reason::from_code(code).map(Some).ok_or_else(why)
}

/// `skipped` is left 0.
impl From<&Record> for ext::TapEvent {
    fn from(record: &Record) -> Self {
        // Durations of requests are far below the bound of `write_duration`.
        let duration = |duration: Duration| write_duration(duration, "").ok();
        Self {
            id: record.id,
            started_unix_ms: record.started_unix_ms,
            direction: write_direction(Some(record.direction)),
            source: record.source.to_string(),
            destination: record.destination.map(|addr| addr.to_string()).unwrap_or_default(),
            method: record.method.clone(),
            scheme: record.scheme.clone(),
            authority: record.authority.clone(),
            path: record.path.clone(),
            parent: record.parent.clone(),
            route: record.route.clone(),
            backend: record.backend.clone(),
            status: u32::from(record.status),
            grpc_status: record.grpc_status.map(u32::from),
            reason: record.reason.map(|reason| reason.code().to_owned()).unwrap_or_default(),
            attempts: record.attempts,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            first_byte: record.first_byte.and_then(duration),
            duration: duration(record.duration),
            tls: record.tls.clone().unwrap_or_default(),
            request_headers: write_headers(&record.request_headers),
            response_headers: write_headers(&record.response_headers),
            skipped: 0,
            policy: record.policy.clone().unwrap_or_default(),
        }
    }
}

/// A reason this version does not know is left out.
impl TryFrom<ext::TapEvent> for Record {
    type Error = ConversionError;

    fn try_from(proto: ext::TapEvent) -> Result<Self> {
        let code = |value: u32, field: &str| {
            u16::try_from(value)
                .map_err(|_| ConversionError::invalid(field, format!("{value} is none")))
        };
        let first_byte = proto.first_byte.map(|d| read_duration(Some(d), "first_byte"));
        Ok(Self {
            id: proto.id,
            started_unix_ms: proto.started_unix_ms,
            direction: read_direction(proto.direction)?
                .ok_or_else(|| ConversionError::missing("direction"))?,
            source: read_addr(&proto.source, "source")?
                .ok_or_else(|| ConversionError::missing("source"))?,
            destination: read_addr(&proto.destination, "destination")?,
            method: proto.method,
            scheme: proto.scheme,
            authority: proto.authority,
            path: proto.path,
            parent: proto.parent,
            route: proto.route,
            backend: proto.backend,
            status: code(proto.status, "status")?,
            grpc_status: proto.grpc_status.map(|s| code(s, "grpc_status")).transpose()?,
            reason: Reason::from_code(&proto.reason),
            attempts: proto.attempts,
            request_bytes: proto.request_bytes,
            response_bytes: proto.response_bytes,
            first_byte: first_byte.transpose()?,
            duration: read_duration(proto.duration, "duration")?,
            tls: Some(proto.tls).filter(|id| !id.is_empty()),
            policy: Some(proto.policy).filter(|policy| !policy.is_empty()),
            request_headers: read_headers(proto.request_headers, "request_headers")?,
            response_headers: read_headers(proto.response_headers, "response_headers")?,
        })
    }
}

fn read_addr(text: &str, field: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| ConversionError::invalid(field, format!("`{text}` is no address")))
}

fn write_direction(direction: Option<Direction>) -> i32 {
    match direction {
        None => ext::Direction::Unspecified,
        Some(Direction::Inbound) => ext::Direction::Inbound,
        Some(Direction::Outbound) => ext::Direction::Outbound,
    }
    .into()
}

fn read_direction(direction: i32) -> Result<Option<Direction>> {
    match ext::Direction::try_from(direction) {
        Ok(ext::Direction::Unspecified) => Ok(None),
        Ok(ext::Direction::Inbound) => Ok(Some(Direction::Inbound)),
        Ok(ext::Direction::Outbound) => Ok(Some(Direction::Outbound)),
        Err(_) => Err(ConversionError::missing("direction")),
    }
}

fn write_headers(headers: &[(String, String)]) -> Vec<ext::Header> {
    let header =
        |(name, value): &(String, String)| ext::Header { name: name.clone(), value: value.clone() };
    headers.iter().map(header).collect()
}

fn read_headers(headers: Vec<ext::Header>, field: &str) -> Result<Vec<(String, String)>> {
    list(headers, field, limit::ITEMS, |header: ext::Header| Ok((header.name, header.value)))
}
