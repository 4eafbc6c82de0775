//! Subscriptions from the wire, messages to it.

use ::http::{HeaderMap, Method};
use linkerd2_proxy_api::http_types;
use linkerd2_proxy_api::tap::{self as pb, observe_request as req, tap_event};
use mesh_model::Direction;
use mesh_model::endpoint::Labels;
use req::r#match::{Http, Match, Tcp, http, http::string_match, tcp};
use tap_event::http as event;

use super::{StreamEnd, StringMatch, TapEvent, TapMatch, TapMessage, TapSubscription, TcpMatch};
use crate::convert::net::{read_cidr, read_port, write_duration};
use crate::convert::{list, required};
use crate::error::{At, ConversionError, Result};
use crate::limit;

/// Conditions within conditions; prost itself gives up at 100.
const MAX_DEPTH: usize = 16;

pub(super) fn read_subscription(proto: pb::ObserveRequest) -> Result<TapSubscription> {
    use req::extract::{Extract, http::Extract as HttpExtract};
    let extract = proto.extract.and_then(|extract| extract.extract);
    let with_headers = match extract {
        Some(Extract::Http(http)) => matches!(http.extract, Some(HttpExtract::Headers(_))),
        None => false,
    };
    let filter = proto.r#match.map(|proto| read_match(proto, MAX_DEPTH)).transpose();
    Ok(TapSubscription { limit: proto.limit, filter: filter.at("match")?, with_headers })
}

fn read_match(proto: req::Match, depth: usize) -> Result<TapMatch> {
    let Some(depth) = depth.checked_sub(1) else {
        let why = format!("conditions are nested more than {MAX_DEPTH} deep");
        return Err(ConversionError::invalid("", why));
    };
    let all = |seq: req::r#match::Seq, field: &str| {
        list(seq.matches, field, limit::CONDITIONS, |part| read_match(part, depth))
    };
    Ok(match required(proto.r#match, "match")? {
        Match::All(seq) => TapMatch::All(all(seq, "all")?),
        Match::Any(seq) => TapMatch::Any(all(seq, "any")?),
        Match::Not(part) => TapMatch::Not(Box::new(read_match(*part, depth).at("not")?)),
        Match::Source(tcp) => TapMatch::Source(read_tcp(tcp).at("source")?),
        Match::Destination(tcp) => TapMatch::Destination(read_tcp(tcp).at("destination")?),
        Match::Http(http) => read_http(http).at("http")?,
        Match::DestinationLabel(label) => {
            TapMatch::DestinationLabel { key: label.key, value: label.value }
        }
        Match::RouteLabel(label) => TapMatch::RouteLabel { key: label.key, value: label.value },
    })
}

fn read_tcp(proto: Tcp) -> Result<TcpMatch> {
    match required(proto.r#match, "match")? {
        tcp::Match::Netmask(netmask) => {
            let net =
                linkerd2_proxy_api::net::IpNetwork { ip: netmask.ip, prefix_len: netmask.mask };
            read_cidr(net, "netmask").map(TcpMatch::Net)
        }
        tcp::Match::Ports(ports) => {
            // Either end unset means the other alone.
            let (min, max) = match (ports.min, ports.max) {
                (0, max) => (max, max),
                (min, 0) => (min, min),
                range => range,
            };
            Ok(TcpMatch::Ports(read_port(min, "ports.min")?..=read_port(max, "ports.max")?))
        }
    }
}

fn read_http(proto: Http) -> Result<TapMatch> {
    Ok(match required(proto.r#match, "match")? {
        http::Match::Scheme(scheme) => {
            let scheme = ::http::uri::Scheme::try_from(scheme);
            let scheme = scheme.map_err(|error| ConversionError::invalid("scheme", error))?;
            TapMatch::Scheme(scheme.to_string())
        }
        http::Match::Method(method) => {
            let method = Method::try_from(method);
            TapMatch::Method(method.map_err(|error| ConversionError::invalid("method", error))?)
        }
        http::Match::Authority(text) => TapMatch::Authority(read_string(text).at("authority")?),
        http::Match::Path(text) => TapMatch::Path(read_string(text).at("path")?),
    })
}

fn read_string(proto: http::StringMatch) -> Result<StringMatch> {
    Ok(match required(proto.r#match, "match")? {
        string_match::Match::Exact(exact) => StringMatch::Exact(exact),
        string_match::Match::Prefix(prefix) => StringMatch::Prefix(prefix),
    })
}

/// `base` tells this process's ids from those of another.
pub(super) fn write_message(message: TapMessage, base: u32) -> pb::TapEvent {
    let id = Some(event::StreamId { base, stream: message.id });
    let direction = match message.direction {
        Direction::Inbound => tap_event::ProxyDirection::Inbound,
        Direction::Outbound => tap_event::ProxyDirection::Outbound,
    };
    let endpoint_meta = |labels: &Labels| tap_event::EndpointMeta { labels: write_labels(labels) };
    pb::TapEvent {
        source: Some(message.source.into()),
        source_meta: Some(endpoint_meta(&message.source_labels)),
        route_meta: Some(tap_event::RouteMeta { labels: write_labels(&message.route_labels) }),
        destination: message.destination.map(Into::into),
        destination_meta: Some(endpoint_meta(&message.destination_labels)),
        proxy_direction: direction.into(),
        event: Some(tap_event::Event::Http(tap_event::Http {
            event: Some(write_event(message.event, id)),
        })),
    }
}

fn write_event(event: TapEvent, id: Option<event::StreamId>) -> event::Event {
    // Durations of requests are far below the bound of `write_duration`.
    let duration = |duration| write_duration(duration, "").ok();
    match event {
        TapEvent::RequestInit { method, scheme, authority, path, headers } => {
            event::Event::RequestInit(event::RequestInit {
                id,
                method: Some(method.into()),
                scheme: Some(scheme.as_str().into()),
                authority,
                path,
                headers: write_headers(&headers),
            })
        }
        TapEvent::ResponseInit { since_request, status, headers } => {
            event::Event::ResponseInit(event::ResponseInit {
                id,
                since_request_init: duration(since_request),
                http_status: u32::from(status),
                headers: write_headers(&headers),
            })
        }
        TapEvent::ResponseEnd { since_request, since_response, response_bytes, end, trailers } => {
            event::Event::ResponseEnd(event::ResponseEnd {
                id,
                since_request_init: duration(since_request),
                since_response_init: duration(since_response),
                response_bytes,
                eos: write_end(end),
                trailers: write_headers(&trailers),
            })
        }
    }
}

fn write_end(end: StreamEnd) -> Option<pb::Eos> {
    let end = match end {
        StreamEnd::Complete => return None,
        StreamEnd::Grpc(code) => pb::eos::End::GrpcStatusCode(u32::from(code)),
        StreamEnd::Reset(code) => pb::eos::End::ResetErrorCode(code),
    };
    Some(pb::Eos { end: Some(end) })
}

fn write_headers(headers: &HeaderMap) -> Option<http_types::Headers> {
    let headers = headers.iter().map(|(name, value)| http_types::headers::Header {
        name: name.to_string(),
        value: value.as_bytes().to_vec(),
    });
    Some(http_types::Headers { headers: headers.collect() }).filter(|h| !h.headers.is_empty())
}

fn write_labels(labels: &Labels) -> std::collections::HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
