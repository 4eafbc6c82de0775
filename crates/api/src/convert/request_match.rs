//! What requests a route answers for: hosts, and conditions on HTTP and gRPC requests.

use http::Method;
use linkerd2_proxy_api::http_route::query_param_match;
use linkerd2_proxy_api::http_route::{self as pb, header_match, host_match, path_match};
use linkerd2_proxy_api::{grpc_route as grpc, http_types, tls_route as tls};
use mesh_model::matching::Pattern;
use mesh_model::route::{
    GrpcMatch, HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch, ValueMatch,
};

use super::filter::read_name;
use super::{list, required, write_list};
use crate::error::{At, ConversionError, Result};
use crate::limit;

pub(super) fn read_hosts(hosts: Vec<pb::HostMatch>) -> Result<Vec<HostMatch>> {
    list(hosts, "hosts", limit::ITEMS, |host| match required(host.r#match, "match")? {
        host_match::Match::Exact(exact) => Ok(HostMatch::Exact(exact)),
        host_match::Match::Suffix(suffix) => Ok(read_suffix(suffix.reverse_labels)),
    })
}

pub(super) fn write_hosts(hosts: &[HostMatch]) -> Vec<pb::HostMatch> {
    let write = |host: &HostMatch| match host {
        HostMatch::Exact(exact) => host_match::Match::Exact(exact.clone()),
        HostMatch::Suffix(labels) => {
            host_match::Match::Suffix(host_match::Suffix { reverse_labels: reversed(labels) })
        }
    };
    hosts.iter().map(|host| pb::HostMatch { r#match: Some(write(host)) }).collect()
}

pub(super) fn read_snis(snis: Vec<tls::SniMatch>) -> Result<Vec<HostMatch>> {
    list(snis, "snis", limit::ITEMS, |sni| match required(sni.r#match, "match")? {
        tls::sni_match::Match::Exact(exact) => Ok(HostMatch::Exact(exact)),
        tls::sni_match::Match::Suffix(suffix) => Ok(read_suffix(suffix.reverse_labels)),
    })
}

pub(super) fn write_snis(snis: &[HostMatch]) -> Vec<tls::SniMatch> {
    let write = |sni: &HostMatch| match sni {
        HostMatch::Exact(exact) => tls::sni_match::Match::Exact(exact.clone()),
        HostMatch::Suffix(labels) => {
            let reverse_labels = reversed(labels);
            tls::sni_match::Match::Suffix(tls::sni_match::Suffix { reverse_labels })
        }
    };
    snis.iter().map(|sni| tls::SniMatch { r#match: Some(write(sni)) }).collect()
}

/// `*.example.com` is `[com, example]` on the wire, `[example, com]` in the model.
fn read_suffix(mut reverse_labels: Vec<String>) -> HostMatch {
    reverse_labels.reverse();
    HostMatch::Suffix(reverse_labels)
}

fn reversed(labels: &[String]) -> Vec<String> {
    labels.iter().rev().cloned().collect()
}

pub(super) fn read_http_match(proto: pb::HttpRouteMatch) -> Result<HttpMatch> {
    let method = proto.method.map(Method::try_from).transpose();
    Ok(HttpMatch {
        path: proto.path.map(read_path).transpose().at("path")?,
        headers: list(proto.headers, "headers", limit::CONDITIONS, read_header)?,
        query: list(proto.query_params, "query_params", limit::CONDITIONS, read_query)?,
        method: method.map_err(|error| ConversionError::invalid("method", error))?,
    })
}

/// How many regular expressions a match has, none of which is compiled yet.
pub(super) fn http_patterns(proto: &pb::HttpRouteMatch) -> usize {
    let path = proto.path.as_ref().and_then(|path| path.kind.as_ref());
    let is_query = |query: &&pb::QueryParamMatch| {
        matches!(query.value, Some(query_param_match::Value::Regex(_)))
    };
    usize::from(matches!(path, Some(path_match::Kind::Regex(_))))
        + header_patterns(&proto.headers)
        + proto.query_params.iter().filter(is_query).count()
}

/// The same of gRPC.
pub(super) fn grpc_patterns(proto: &grpc::GrpcRouteMatch) -> usize {
    header_patterns(&proto.headers)
}

fn header_patterns(headers: &[pb::HeaderMatch]) -> usize {
    let regex =
        |header: &&pb::HeaderMatch| matches!(header.value, Some(header_match::Value::Regex(_)));
    headers.iter().filter(regex).count()
}

pub(super) fn write_http_match(matched: &HttpMatch) -> Result<pb::HttpRouteMatch> {
    Ok(pb::HttpRouteMatch {
        path: matched.path.as_ref().map(write_path),
        headers: matched.headers.iter().map(write_header).collect(),
        query_params: write_list(&matched.query, "query_params", write_query)?,
        method: matched.method.clone().map(http_types::HttpMethod::from),
    })
}

pub(super) fn read_grpc_match(proto: grpc::GrpcRouteMatch) -> Result<GrpcMatch> {
    let rpc = proto.rpc.unwrap_or_default();
    Ok(GrpcMatch {
        service: Some(rpc.service).filter(|name| !name.is_empty()),
        method: Some(rpc.method).filter(|name| !name.is_empty()),
        headers: list(proto.headers, "headers", limit::CONDITIONS, read_header)?,
    })
}

pub(super) fn write_grpc_match(matched: &GrpcMatch) -> grpc::GrpcRouteMatch {
    let rpc = grpc::GrpcRpcMatch {
        service: matched.service.clone().unwrap_or_default(),
        method: matched.method.clone().unwrap_or_default(),
    };
    grpc::GrpcRouteMatch {
        rpc: Some(rpc),
        headers: matched.headers.iter().map(write_header).collect(),
    }
}

fn read_path(proto: pb::PathMatch) -> Result<PathMatch> {
    Ok(match required(proto.kind, "kind")? {
        path_match::Kind::Exact(path) => PathMatch::Exact(path),
        path_match::Kind::Prefix(prefix) => PathMatch::Prefix(prefix),
        path_match::Kind::Regex(regex) => PathMatch::Regex(read_regex(&regex)?),
    })
}

fn write_path(path: &PathMatch) -> pb::PathMatch {
    let kind = match path {
        PathMatch::Exact(path) => path_match::Kind::Exact(path.clone()),
        PathMatch::Prefix(prefix) => path_match::Kind::Prefix(prefix.clone()),
        PathMatch::Regex(pattern) => path_match::Kind::Regex(pattern.as_str().into()),
    };
    pb::PathMatch { kind: Some(kind) }
}

fn read_header(proto: pb::HeaderMatch) -> Result<HeaderMatch> {
    let name = read_name(&proto.name)?;
    let value = match required(proto.value, "value")? {
        header_match::Value::Exact(exact) => ValueMatch::Exact(exact),
        header_match::Value::Regex(regex) => ValueMatch::Regex(read_regex(&regex)?),
    };
    Ok(HeaderMatch { name, value })
}

fn write_header(header: &HeaderMatch) -> pb::HeaderMatch {
    let value = match &header.value {
        ValueMatch::Exact(exact) => header_match::Value::Exact(exact.clone()),
        ValueMatch::Regex(pattern) => header_match::Value::Regex(pattern.as_str().into()),
    };
    pb::HeaderMatch { name: header.name.to_string(), value: Some(value) }
}

fn read_query(proto: pb::QueryParamMatch) -> Result<QueryMatch> {
    let value = match required(proto.value, "value")? {
        query_param_match::Value::Exact(exact) => ValueMatch::Exact(exact.into_bytes()),
        query_param_match::Value::Regex(regex) => ValueMatch::Regex(read_regex(&regex)?),
    };
    Ok(QueryMatch { name: proto.name, value })
}

fn write_query(query: &QueryMatch) -> Result<pb::QueryParamMatch> {
    let value = match &query.value {
        ValueMatch::Exact(exact) => {
            let text = String::from_utf8(exact.clone());
            query_param_match::Value::Exact(text.map_err(|_| {
                ConversionError::unsupported("value", "only text can be compared with")
            })?)
        }
        ValueMatch::Regex(pattern) => query_param_match::Value::Regex(pattern.as_str().into()),
    };
    Ok(pb::QueryParamMatch { name: query.name.clone(), value: Some(value) })
}

fn read_regex(source: &str) -> Result<Pattern> {
    Pattern::new(source).map_err(|error| ConversionError::invalid("regex", error))
}
