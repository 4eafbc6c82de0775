//! Filters of rules and backends: the four sets of them, and their parts.

use http::{HeaderName, HeaderValue, StatusCode};
use linkerd2_proxy_api::{grpc_route as grpc, http_route as pb, http_types, inbound, outbound};
use mesh_model::route::{
    FailureInjector, Filter, HeaderModifier, InjectedFailure, PathModifier, Ratio, Redirect,
};

use super::net::read_port;
use super::{list, required};
use crate::error::{At, ConversionError, Result};
use crate::limit;

pub(super) fn read_outbound_http(proto: outbound::http_route::Filter) -> Result<Filter> {
    use outbound::http_route::filter::Kind;
    match required(proto.kind, "kind")? {
        Kind::FailureInjector(f) => read_http_failure(f).at("failure_injector"),
        Kind::RequestHeaderModifier(m) => {
            read_headers(m.set, m.add, m.remove).map(Filter::RequestHeaders)
        }
        Kind::ResponseHeaderModifier(m) => {
            read_headers(m.set, m.add, m.remove).map(Filter::ResponseHeaders)
        }
        Kind::Redirect(r) => read_redirect(r).at("redirect"),
    }
}

pub(super) fn write_outbound_http(filter: &Filter) -> Result<outbound::http_route::Filter> {
    use outbound::http_route::filter::Kind;
    let kind = match filter {
        Filter::Fail(f) => Kind::FailureInjector(write_http_failure(f)?),
        Filter::RequestHeaders(m) => Kind::RequestHeaderModifier(write_request_headers(m)),
        Filter::ResponseHeaders(m) => Kind::ResponseHeaderModifier(pb::ResponseHeaderModifier {
            add: write_headers(&m.add),
            set: write_headers(&m.set),
            remove: write_names(&m.remove),
        }),
        Filter::Redirect(r) => Kind::Redirect(write_redirect(r)),
        _ => return Err(no_words(filter)),
    };
    Ok(outbound::http_route::Filter { kind: Some(kind) })
}

pub(super) fn read_outbound_grpc(proto: outbound::grpc_route::Filter) -> Result<Filter> {
    use outbound::grpc_route::filter::Kind;
    match required(proto.kind, "kind")? {
        Kind::FailureInjector(f) => read_grpc_failure(f).at("failure_injector"),
        Kind::RequestHeaderModifier(m) => {
            read_headers(m.set, m.add, m.remove).map(Filter::RequestHeaders)
        }
    }
}

pub(super) fn write_outbound_grpc(filter: &Filter) -> Result<outbound::grpc_route::Filter> {
    use outbound::grpc_route::filter::Kind;
    let kind = match filter {
        Filter::Fail(f) => Kind::FailureInjector(write_grpc_failure(f)?),
        Filter::RequestHeaders(m) => Kind::RequestHeaderModifier(write_request_headers(m)),
        _ => return Err(no_words(filter)),
    };
    Ok(outbound::grpc_route::Filter { kind: Some(kind) })
}

pub(super) fn read_inbound_http(proto: inbound::http_route::Filter) -> Result<Filter> {
    use inbound::http_route::filter::Kind;
    match required(proto.kind, "kind")? {
        Kind::FailureInjector(f) => read_http_failure(f).at("failure_injector"),
        Kind::RequestHeaderModifier(m) => {
            read_headers(m.set, m.add, m.remove).map(Filter::RequestHeaders)
        }
        Kind::Redirect(r) => read_redirect(r).at("redirect"),
    }
}

pub(super) fn write_inbound_http(filter: &Filter) -> Result<inbound::http_route::Filter> {
    use inbound::http_route::filter::Kind;
    let kind = match filter {
        Filter::Fail(f) => Kind::FailureInjector(write_http_failure(f)?),
        Filter::RequestHeaders(m) => Kind::RequestHeaderModifier(write_request_headers(m)),
        Filter::Redirect(r) => Kind::Redirect(write_redirect(r)),
        _ => return Err(no_words(filter)),
    };
    Ok(inbound::http_route::Filter { kind: Some(kind) })
}

pub(super) fn read_inbound_grpc(proto: inbound::grpc_route::Filter) -> Result<Filter> {
    use inbound::grpc_route::filter::Kind;
    match required(proto.kind, "kind")? {
        Kind::FailureInjector(f) => read_grpc_failure(f).at("failure_injector"),
        Kind::RequestHeaderModifier(m) => {
            read_headers(m.set, m.add, m.remove).map(Filter::RequestHeaders)
        }
    }
}

pub(super) fn write_inbound_grpc(filter: &Filter) -> Result<inbound::grpc_route::Filter> {
    use inbound::grpc_route::filter::Kind;
    let kind = match filter {
        Filter::Fail(f) => Kind::FailureInjector(write_grpc_failure(f)?),
        Filter::RequestHeaders(m) => Kind::RequestHeaderModifier(write_request_headers(m)),
        _ => return Err(no_words(filter)),
    };
    Ok(inbound::grpc_route::Filter { kind: Some(kind) })
}

/// A filter this kind of route cannot carry. It is refused rather than dropped: a header that is
/// not removed may be a secret.
fn no_words(filter: &Filter) -> ConversionError {
    let what = match filter {
        Filter::Fail(_) => "failures of this protocol",
        Filter::RequestHeaders(_) => "changes to request headers",
        Filter::ResponseHeaders(_) => "changes to response headers",
        Filter::Redirect(_) => "redirects",
        Filter::Rewrite(_) => "rewrites",
        Filter::Mirror(_) => "mirrors",
        Filter::Cors(_) => "answers for CORS",
        Filter::Fault(_) => "faults",
    };
    ConversionError::unsupported("", format!("routes of this kind cannot carry {what}"))
}

fn read_http_failure(proto: pb::HttpFailureInjector) -> Result<Filter> {
    Ok(Filter::Fail(FailureInjector {
        failure: InjectedFailure::Http(read_status(proto.status, "status")?),
        message: proto.message,
        ratio: read_ratio(proto.ratio)?,
    }))
}

fn write_http_failure(injector: &FailureInjector) -> Result<pb::HttpFailureInjector> {
    let InjectedFailure::Http(status) = injector.failure else {
        return Err(no_words(&Filter::Fail(injector.clone())));
    };
    Ok(pb::HttpFailureInjector {
        status: u32::from(status.as_u16()),
        message: injector.message.clone(),
        ratio: Some(write_ratio(injector.ratio)),
    })
}

fn read_grpc_failure(proto: grpc::GrpcFailureInjector) -> Result<Filter> {
    let code = u16::try_from(proto.code)
        .map_err(|_| ConversionError::invalid("code", format!("{} is no code", proto.code)))?;
    Ok(Filter::Fail(FailureInjector {
        failure: InjectedFailure::Grpc(code),
        message: proto.message,
        ratio: read_ratio(proto.ratio)?,
    }))
}

fn write_grpc_failure(injector: &FailureInjector) -> Result<grpc::GrpcFailureInjector> {
    let InjectedFailure::Grpc(code) = injector.failure else {
        return Err(no_words(&Filter::Fail(injector.clone())));
    };
    Ok(grpc::GrpcFailureInjector {
        code: u32::from(code),
        message: injector.message.clone(),
        ratio: Some(write_ratio(injector.ratio)),
    })
}

/// Unset means all.
fn read_ratio(proto: Option<pb::Ratio>) -> Result<Ratio> {
    let Some(pb::Ratio { numerator, denominator }) = proto else {
        return Ok(Ratio { numerator: 1, denominator: 1 });
    };
    if denominator == 0 {
        return Err(ConversionError::invalid("ratio.denominator", "must not be 0"));
    }
    Ok(Ratio { numerator, denominator })
}

fn write_ratio(ratio: Ratio) -> pb::Ratio {
    pb::Ratio { numerator: ratio.numerator, denominator: ratio.denominator }
}

fn read_redirect(proto: pb::RequestRedirect) -> Result<Filter> {
    let path = match proto.path {
        None => None,
        Some(modifier) => Some(read_path(required(modifier.replace, "path.replace")?)?),
    };
    let scheme = proto.scheme.map(http::uri::Scheme::try_from).transpose();
    let scheme = scheme.map_err(|error| ConversionError::invalid("scheme", error))?;
    let status = if proto.status == 0 { 301 } else { proto.status };
    Ok(Filter::Redirect(Redirect {
        scheme: scheme.map(|scheme| scheme.to_string()),
        host: Some(proto.host).filter(|host| !host.is_empty()),
        port: Some(read_port(proto.port, "port")?).filter(|port| *port != 0),
        path,
        status: read_status(status, "status")?,
    }))
}

fn read_path(replace: pb::path_modifier::Replace) -> Result<PathModifier> {
    Ok(match replace {
        pb::path_modifier::Replace::Full(path) => PathModifier::Full(check_path(path)?),
        pb::path_modifier::Replace::Prefix(prefix) => PathModifier::Prefix(check_path(prefix)?),
    })
}

pub(super) fn check_path(path: String) -> Result<String> {
    if !path.starts_with('/') {
        return Err(ConversionError::invalid("path", format!("`{path}` does not start with /")));
    }
    Ok(path)
}

fn write_redirect(redirect: &Redirect) -> pb::RequestRedirect {
    let replace = redirect.path.clone().map(|path| match path {
        PathModifier::Full(path) => pb::path_modifier::Replace::Full(path),
        PathModifier::Prefix(prefix) => pb::path_modifier::Replace::Prefix(prefix),
    });
    pb::RequestRedirect {
        scheme: redirect.scheme.as_deref().map(http_types::Scheme::from),
        host: redirect.host.clone().unwrap_or_default(),
        port: redirect.port.map(u32::from).unwrap_or_default(),
        path: replace.map(|replace| pb::PathModifier { replace: Some(replace) }),
        status: u32::from(redirect.status.as_u16()),
    }
}

pub(super) fn read_status(status: u32, field: &str) -> Result<StatusCode> {
    u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| ConversionError::invalid(field, format!("{status} is no HTTP status")))
}

fn read_headers(
    set: Option<http_types::Headers>,
    add: Option<http_types::Headers>,
    remove: Vec<String>,
) -> Result<HeaderModifier> {
    Ok(HeaderModifier {
        set: list(set.unwrap_or_default().headers, "set", limit::ITEMS, read_header)?,
        add: list(add.unwrap_or_default().headers, "add", limit::ITEMS, read_header)?,
        remove: list(remove, "remove", limit::ITEMS, |name| read_name(&name))?,
    })
}

fn read_header(proto: http_types::headers::Header) -> Result<(HeaderName, HeaderValue)> {
    let value = HeaderValue::from_bytes(&proto.value)
        .map_err(|_| ConversionError::invalid(&proto.name, "the value is no header value"))?;
    Ok((read_name(&proto.name)?, value))
}

pub(super) fn read_name(name: &str) -> Result<HeaderName> {
    HeaderName::try_from(name)
        .map_err(|_| ConversionError::invalid("name", format!("`{name}` is no header name")))
}

fn write_request_headers(modifier: &HeaderModifier) -> pb::RequestHeaderModifier {
    pb::RequestHeaderModifier {
        add: write_headers(&modifier.add),
        set: write_headers(&modifier.set),
        remove: write_names(&modifier.remove),
    }
}

fn write_headers(headers: &[(HeaderName, HeaderValue)]) -> Option<http_types::Headers> {
    let headers = headers.iter().map(|(name, value)| http_types::headers::Header {
        name: name.to_string(),
        value: value.as_bytes().to_vec(),
    });
    Some(http_types::Headers { headers: headers.collect() }).filter(|h| !h.headers.is_empty())
}

fn write_names(names: &[HeaderName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}
