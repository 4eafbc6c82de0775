//! The conditions of a route's rules.
//!
//! A match that cannot be understood is reported and left out; the object is then not in force, so
//! that leaving it out cannot widen a rule.

use http::{HeaderName, Method as HttpMethod};
use mesh_model::matching::Pattern;
use mesh_model::route::{GrpcMatch, HeaderMatch, HttpMatch, PathMatch, QueryMatch, ValueMatch};

use super::shape::{Match, Method, Path, Value};
use crate::source::Finding;

pub(super) fn http(matches: &[Match], at: &str, findings: &mut Vec<Finding>) -> Vec<HttpMatch> {
    let of = |(index, found): (usize, &Match)| {
        let at = format!("{at}.matches[{index}]");
        let method = match &found.method {
            Some(Method::Http(method)) => {
                let parsed = HttpMethod::from_bytes(method.as_bytes());
                parsed.map_err(|_| report(findings, &at, "method", "is not a method")).ok()
            }
            _ => None,
        };
        let path = found.path.as_ref().and_then(|path| path_match(path, &at, findings));
        let query = found.query_params.iter().enumerate().filter_map(|(index, param)| {
            let at = format!("{at}.queryParams[{index}]");
            let value = value_match(param, &at, findings)?;
            Some(QueryMatch { name: param.name.clone(), value })
        });
        let query = query.collect();
        HttpMatch { path, headers: headers(&found.headers, &at, findings), query, method }
    };
    matches.iter().enumerate().map(of).collect()
}

pub(super) fn grpc(matches: &[Match], at: &str, findings: &mut Vec<Finding>) -> Vec<GrpcMatch> {
    let of = |(index, found): (usize, &Match)| {
        let at = format!("{at}.matches[{index}]");
        let (mut service, mut method) = (None, None);
        if let Some(Method::Grpc { service: s, method: m, r#type }) = &found.method {
            if r#type.as_deref() == Some("RegularExpression") {
                report(findings, &at, "method.type", "only Exact is supported for gRPC methods");
            }
            (service, method) = (s.clone(), m.clone());
        }
        GrpcMatch { service, method, headers: headers(&found.headers, &at, findings) }
    };
    matches.iter().enumerate().map(of).collect()
}

fn path_match(path: &Path, at: &str, findings: &mut Vec<Finding>) -> Option<PathMatch> {
    let value = path.value.as_deref().unwrap_or("/");
    match path.r#type.as_deref().unwrap_or("PathPrefix") {
        "RegularExpression" => match Pattern::new(value) {
            Ok(pattern) => Some(PathMatch::Regex(pattern)),
            Err(error) => {
                report(findings, at, "path.value", &error.to_string());
                None
            }
        },
        _ if !value.starts_with('/') => {
            report(findings, at, "path.value", "a path starts with `/`");
            None
        }
        "Exact" => Some(PathMatch::Exact(value.into())),
        _ => Some(PathMatch::Prefix(value.into())),
    }
}

fn headers(headers: &[Value], at: &str, findings: &mut Vec<Finding>) -> Vec<HeaderMatch> {
    let mut converted: Vec<HeaderMatch> = Vec::new();
    for (index, header) in headers.iter().enumerate() {
        let at = format!("{at}.headers[{index}]");
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else {
            report(findings, &at, "name", "is not the name of a header");
            continue;
        };
        // Of headers that name the same field, Gateway API has the first one count.
        if converted.iter().any(|before| before.name == name) {
            continue;
        }
        if let Some(value) = value_match(header, &at, findings) {
            converted.push(HeaderMatch { name, value });
        }
    }
    converted
}

fn value_match(value: &Value, at: &str, findings: &mut Vec<Finding>) -> Option<ValueMatch> {
    if value.r#type.as_deref() != Some("RegularExpression") {
        return Some(ValueMatch::Exact(value.value.clone().into_bytes()));
    }
    match Pattern::new(&value.value) {
        Ok(pattern) => Some(ValueMatch::Regex(pattern)),
        Err(error) => {
            report(findings, at, "value", &error.to_string());
            None
        }
    }
}

fn report(findings: &mut Vec<Finding>, at: &str, field: &str, message: &str) {
    findings.push(Finding::error(format!("{at}.{field}"), message));
}
