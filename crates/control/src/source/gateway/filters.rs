//! The filters of rules and backends.

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_model::route::{
    FailureInjector, Filter, HeaderModifier, InjectedFailure, PathModifier, Ratio, Redirect,
};

use super::shape;
use crate::source::Finding;

/// Converts filters. One that the mesh cannot do makes the requests it stands for fail with 500:
/// they must not pass as if it had been done.
pub(super) fn convert(
    filters: &[shape::Filter],
    at: &str,
    findings: &mut Vec<Finding>,
) -> Vec<Filter> {
    let mut converted = Vec::with_capacity(filters.len());
    for (index, filter) in filters.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let modifier = |modifier: &Option<shape::HeaderModifier>, field, findings: &mut _| {
            let modifier = modifier.as_ref();
            header_modifier(modifier.unwrap_or(&EMPTY), &format!("{at}.{field}"), findings)
        };
        converted.push(match filter.r#type.as_str() {
            "RequestHeaderModifier" => Filter::RequestHeaders(modifier(
                &filter.request_header_modifier,
                "requestHeaderModifier",
                findings,
            )),
            "ResponseHeaderModifier" => Filter::ResponseHeaders(modifier(
                &filter.response_header_modifier,
                "responseHeaderModifier",
                findings,
            )),
            "RequestRedirect" => match &filter.request_redirect {
                Some(redirect) => Filter::Redirect(convert_redirect(redirect, &at, findings)),
                None => unsupported(&filter.r#type, &at, findings),
            },
            _ => unsupported(&filter.r#type, &at, findings),
        });
    }
    converted
}

const EMPTY: shape::HeaderModifier =
    shape::HeaderModifier { set: Vec::new(), add: Vec::new(), remove: Vec::new() };

fn unsupported(name: &str, at: &str, findings: &mut Vec<Finding>) -> Filter {
    let message = format!("the filter {name} is not supported");
    findings
        .push(Finding::warning(format!("{at}.type"), format!("{message}; its requests get 500")));
    Filter::Fail(FailureInjector {
        failure: InjectedFailure::Http(StatusCode::INTERNAL_SERVER_ERROR),
        message,
        ratio: Ratio { numerator: 1, denominator: 1 },
    })
}

fn header_modifier(
    modifier: &shape::HeaderModifier,
    at: &str,
    findings: &mut Vec<Finding>,
) -> HeaderModifier {
    let mut pairs = |values: &[shape::Value], list: &str| {
        let mut converted = Vec::with_capacity(values.len());
        for (index, header) in values.iter().enumerate() {
            let name = HeaderName::from_bytes(header.name.as_bytes());
            match (name, HeaderValue::from_str(&header.value)) {
                (Ok(name), Ok(value)) => converted.push((name, value)),
                _ => findings.push(Finding::error(
                    format!("{at}.{list}[{index}]"),
                    format!("`{}: {}` is not a header", header.name, header.value),
                )),
            }
        }
        converted
    };
    let (set, add) = (pairs(&modifier.set, "set"), pairs(&modifier.add, "add"));
    let mut remove = Vec::with_capacity(modifier.remove.len());
    for (index, name) in modifier.remove.iter().enumerate() {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => remove.push(name),
            Err(_) => findings.push(Finding::error(
                format!("{at}.remove[{index}]"),
                format!("`{name}` is not the name of a header"),
            )),
        }
    }
    HeaderModifier { set, add, remove }
}

fn convert_redirect(redirect: &shape::Redirect, at: &str, findings: &mut Vec<Finding>) -> Redirect {
    let status = redirect.status_code.unwrap_or(302);
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(StatusCode::is_redirection).unwrap_or_else(|| {
        findings.push(Finding::error(
            format!("{at}.requestRedirect.statusCode"),
            "is not a status of redirection, such as 302",
        ));
        StatusCode::FOUND
    });
    let port = redirect.port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    if redirect.port.is_some() && port.is_none() {
        findings.push(Finding::error(format!("{at}.requestRedirect.port"), "is not a port"));
    }
    let path = redirect.path.as_ref().and_then(|path| {
        let full = path.replace_full_path.clone().map(PathModifier::Full);
        full.or_else(|| path.replace_prefix_match.clone().map(PathModifier::Prefix))
    });
    Redirect {
        scheme: redirect.scheme.clone(),
        host: redirect.hostname.clone(),
        port,
        path,
        status,
    }
}
