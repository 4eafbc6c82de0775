//! The filters of rules and backends.

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_model::route::{
    Cors, FailureInjector, Filter, HeaderModifier, InjectedFailure, Listed, Origin, PathModifier,
    Ratio, Redirect, Rewrite,
};

use super::shape;
use crate::index::object::{Name, RouteFilter};
use crate::source::Finding;

/// Converts filters. One that the mesh cannot do makes the requests it stands for fail with 500:
/// they must not pass as if it had been done.
pub(super) fn convert(
    filters: &[shape::Filter],
    route: &Name,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Vec<RouteFilter> {
    let mut converted = Vec::with_capacity(filters.len());
    for (index, filter) in filters.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let modifier = |modifier: &Option<shape::HeaderModifier>, field, findings: &mut _| {
            let modifier = modifier.as_ref();
            header_modifier(modifier.unwrap_or(&EMPTY), &format!("{at}.{field}"), findings)
        };
        let is = match filter.r#type.as_str() {
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
            "URLRewrite" => match &filter.url_rewrite {
                Some(rewrite) => Filter::Rewrite(convert_rewrite(rewrite, &at, findings)),
                None => unsupported(&filter.r#type, &at, findings),
            },
            "CORS" => match &filter.cors {
                Some(cors) => Filter::Cors(convert_cors(cors, &at, findings)),
                None => unsupported(&filter.r#type, &at, findings),
            },
            "RequestMirror" => match &filter.request_mirror {
                Some(mirror) => {
                    converted.extend(convert_mirror(mirror, route, &at, findings));
                    continue;
                }
                None => unsupported(&filter.r#type, &at, findings),
            },
            _ => unsupported(&filter.r#type, &at, findings),
        };
        converted.push(RouteFilter::Is(is));
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
    Redirect {
        scheme: redirect.scheme.clone(),
        host: redirect.hostname.clone(),
        port,
        path: path_modifier(redirect.path.as_ref(), &format!("{at}.requestRedirect"), findings),
        status,
    }
}

fn path_modifier(
    path: Option<&shape::PathModifier>,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Option<PathModifier> {
    let path = path?;
    let full = path.replace_full_path.clone().map(PathModifier::Full);
    let modifier = full.or_else(|| path.replace_prefix_match.clone().map(PathModifier::Prefix))?;
    let (PathModifier::Full(text) | PathModifier::Prefix(text)) = &modifier;
    let sound = text.parse::<http::uri::PathAndQuery>().is_ok_and(|path| path.query().is_none());
    // To replace a prefix by nothing is to take it away.
    if text.is_empty() && matches!(modifier, PathModifier::Prefix(_)) {
        return Some(PathModifier::Prefix("/".to_owned()));
    }
    if !(sound && text.starts_with('/')) {
        findings.push(Finding::error(
            format!("{at}.path"),
            format!("`{text}` is not a path: it starts with `/` and has no query"),
        ));
        return None;
    }
    Some(modifier)
}

fn convert_rewrite(rewrite: &shape::Rewrite, at: &str, findings: &mut Vec<Finding>) -> Rewrite {
    let host = rewrite.hostname.as_ref().and_then(|host| {
        let authority = host.parse::<http::uri::Authority>().ok();
        let value = authority.and_then(|_| HeaderValue::from_str(host).ok());
        if value.is_none() {
            let message = format!("`{host}` is not a host name");
            findings.push(Finding::error(format!("{at}.urlRewrite.hostname"), message));
        }
        value
    });
    let path = path_modifier(rewrite.path.as_ref(), &format!("{at}.urlRewrite"), findings);
    Rewrite { host, path }
}

fn convert_cors(cors: &shape::Cors, at: &str, findings: &mut Vec<Finding>) -> Cors {
    let mut origins = Vec::with_capacity(cors.allow_origins.len());
    for (index, text) in cors.allow_origins.iter().enumerate() {
        match Origin::new(text) {
            Some(origin) => origins.push(origin),
            None => findings.push(Finding::error(
                format!("{at}.cors.allowOrigins[{index}]"),
                format!("`{text}` is not an origin such as https://shop.example, nor `*`"),
            )),
        }
    }
    let mut listed = |names: &[String], field: &str| {
        if names.iter().any(|name| name == "*") {
            return Listed::Any;
        }
        for (index, name) in names.iter().enumerate() {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                let message = format!("`{name}` is not a name");
                findings.push(Finding::error(format!("{at}.cors.{field}[{index}]"), message));
            }
        }
        Listed::These(names.join(", "))
    };
    let (methods, headers, expose) = (
        listed(&cors.allow_methods, "allowMethods"),
        listed(&cors.allow_headers, "allowHeaders"),
        listed(&cors.expose_headers, "exposeHeaders"),
    );
    let max_age = cors.max_age.unwrap_or(CORS_MAX_AGE);
    let max_age = u32::try_from(max_age).unwrap_or_else(|_| {
        let message = format!("{max_age} is not a number of seconds");
        findings.push(Finding::error(format!("{at}.cors.maxAge"), message));
        0
    });
    let credentials = cors.allow_credentials.unwrap_or(false);
    Cors { origins, methods, headers, expose, credentials, max_age }
}

/// Seconds, as Gateway API has it.
const CORS_MAX_AGE: i64 = 5;

fn convert_mirror(
    mirror: &shape::Mirror,
    route: &Name,
    at: &str,
    findings: &mut Vec<Finding>,
) -> Option<RouteFilter> {
    let at = format!("{at}.requestMirror");
    let ratio = match (&mirror.fraction, mirror.percent) {
        (Some(_), Some(_)) => {
            findings.push(Finding::error(at, "has both percent and fraction; give one of them"));
            return None;
        }
        (Some(fraction), None) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, percent) => (percent.unwrap_or(100), 100),
    };
    let sound = |(numerator, denominator): (i64, i64)| {
        let numerator = u32::try_from(numerator).ok()?;
        let denominator = u32::try_from(denominator).ok().filter(|d| *d > 0 && *d >= numerator)?;
        Some(Ratio { numerator, denominator })
    };
    let Some(ratio) = sound(ratio) else {
        findings.push(Finding::error(at, "the share of the requests is not between none and all"));
        return None;
    };
    let at = format!("{at}.backendRef");
    let target = super::target(&mirror.backend_ref, route, &at, findings)?;
    Some(RouteFilter::Mirror { target, ratio })
}
