//! Filters of all kinds of routes.

use linkerd2_proxy_api::http_route::{Ratio, RequestRedirect, path_modifier::Replace};
use linkerd2_proxy_api::{inbound, outbound};

use super::{Checked, Rule, holds, present};
use crate::error::At;

pub(super) fn outbound_http(filter: &outbound::http_route::Filter) -> Checked {
    use outbound::http_route::filter::Kind;
    match present(filter.kind.as_ref(), Rule::Filter)? {
        Kind::FailureInjector(failure) => ratio(failure.ratio),
        Kind::Redirect(redirect) => self::redirect(redirect),
        Kind::RequestHeaderModifier(_) | Kind::ResponseHeaderModifier(_) => Ok(()),
    }
}

pub(super) fn outbound_grpc(filter: &outbound::grpc_route::Filter) -> Checked {
    use outbound::grpc_route::filter::Kind;
    match present(filter.kind.as_ref(), Rule::Filter)? {
        Kind::FailureInjector(failure) => ratio(failure.ratio),
        Kind::RequestHeaderModifier(_) => Ok(()),
    }
}

pub(super) fn opaque(filter: &outbound::opaque_route::Filter) -> Checked {
    present(filter.kind.as_ref(), Rule::Filter).map(drop)
}

pub(super) fn tls(filter: &outbound::tls_route::Filter) -> Checked {
    present(filter.kind.as_ref(), Rule::Filter).map(drop)
}

pub(super) fn inbound_http(filter: &inbound::http_route::Filter) -> Checked {
    use inbound::http_route::filter::Kind;
    match present(filter.kind.as_ref(), Rule::Filter)? {
        Kind::FailureInjector(failure) => ratio(failure.ratio),
        Kind::Redirect(redirect) => self::redirect(redirect),
        Kind::RequestHeaderModifier(_) => Ok(()),
    }
}

pub(super) fn inbound_grpc(filter: &inbound::grpc_route::Filter) -> Checked {
    use inbound::grpc_route::filter::Kind;
    match present(filter.kind.as_ref(), Rule::Filter)? {
        Kind::FailureInjector(failure) => ratio(failure.ratio),
        Kind::RequestHeaderModifier(_) => Ok(()),
    }
}

/// Unset is all.
fn ratio(ratio: Option<Ratio>) -> Checked {
    let sound = |ratio: Ratio| ratio.denominator > 0 && ratio.numerator <= ratio.denominator;
    holds(ratio.is_none_or(sound), Rule::Ratio).at("failure_injector.ratio")
}

fn redirect(redirect: &RequestRedirect) -> Checked {
    let Some(path) = &redirect.path else { return Ok(()) };
    let absolute = match &path.replace {
        Some(Replace::Full(path) | Replace::Prefix(path)) => path.starts_with('/'),
        None => false,
    };
    holds(absolute, Rule::RedirectPath).at("redirect.path")
}
