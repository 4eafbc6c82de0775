//! Opaque and TLS routes: one rule each, without matches other than the SNI.

use linkerd2_proxy_api::opaque_route::{Forbidden, Invalid};
use linkerd2_proxy_api::outbound::{self as pb, opaque_route, tls_route};
use mesh_model::outbound::{Backend, Refuse, TcpRoute};
use mesh_model::route::Distribution;

use super::backend::{read_backend, write_backend};
use super::distribution::{PbDistribution, read_distribution, write_distribution};
use super::meta::{read_meta, write_meta};
use super::request_match::{read_snis, write_snis};
use super::{list, required, write_list};
use crate::error::{At, ConversionError, Result};
use crate::limit;

/// The rules of a destination have no conditions, so that a second route could never be reached.
pub(super) fn read_opaque_routes(routes: Vec<pb::OpaqueRoute>) -> Result<Vec<TcpRoute>> {
    let routes: Vec<_> = list(routes, "routes", limit::ROUTES, |route| {
        let rule = only(route.rules, "rules")?;
        let (backends, refuse) = read_rule(rule.backends, rule.filters).at("rules[0]")?;
        let meta = read_meta(route.metadata, "metadata")?;
        Ok(TcpRoute { meta, snis: Vec::new(), backends, refuse })
    })?;
    only(routes, "routes").map(|route| vec![route])
}

pub(super) fn write_opaque_routes(routes: &[TcpRoute]) -> Result<Vec<pb::OpaqueRoute>> {
    write_list(routes, "routes", |route| {
        if !route.snis.is_empty() {
            return Err(ConversionError::unsupported("snis", "an opaque route cannot match SNIs"));
        }
        let rule = opaque_route::Rule {
            backends: write_backends(&route.backends)?,
            filters: route.refuse.iter().map(write_opaque_filter).collect(),
        };
        Ok(pb::OpaqueRoute { metadata: Some(write_meta(&route.meta)), rules: vec![rule] })
    })
}

pub(super) fn read_tls_routes(routes: Vec<pb::TlsRoute>) -> Result<Vec<TcpRoute>> {
    list(routes, "routes", limit::ROUTES, |route| {
        let rule = only(route.rules, "rules")?;
        let (backends, refuse) = read_rule(rule.backends, rule.filters).at("rules[0]")?;
        let meta = read_meta(route.metadata, "metadata")?;
        Ok(TcpRoute { meta, snis: read_snis(route.snis)?, backends, refuse })
    })
}

pub(super) fn write_tls_routes(routes: &[TcpRoute]) -> Result<Vec<pb::TlsRoute>> {
    write_list(routes, "routes", |route| {
        let rule = tls_route::Rule {
            backends: write_backends(&route.backends)?,
            filters: route.refuse.iter().map(write_tls_filter).collect(),
        };
        Ok(pb::TlsRoute {
            metadata: Some(write_meta(&route.meta)),
            snis: write_snis(&route.snis),
            rules: vec![rule],
        })
    })
}

fn only<T>(items: Vec<T>, field: &str) -> Result<T> {
    let have = items.len();
    match <[T; 1]>::try_from(items) {
        Ok([item]) => Ok(item),
        Err(_) => Err(ConversionError::invalid(field, format!("has {have} items, not one"))),
    }
}

/// The parts that opaque and TLS routes have in common, as prost generates them twice.
trait PbRouteBackend: Sized {
    type Filter;
    fn split(self) -> (Option<pb::Backend>, Vec<Self::Filter>);
    fn new(backend: pb::Backend) -> Self;
    fn refusal(filter: Self::Filter) -> Result<Refuse>;
}

macro_rules! pb_route_backend {
    ($($module:ident),*) => { $(
        impl PbRouteBackend for $module::RouteBackend {
            type Filter = $module::Filter;

            fn split(self) -> (Option<pb::Backend>, Vec<Self::Filter>) {
                (self.backend, self.filters)
            }

            fn new(backend: pb::Backend) -> Self {
                Self { backend: Some(backend), filters: Vec::new() }
            }

            fn refusal(filter: Self::Filter) -> Result<Refuse> {
                Ok(match required(filter.kind, "kind")? {
                    $module::filter::Kind::Invalid(invalid) => Refuse::Invalid(invalid.message),
                    $module::filter::Kind::Forbidden(_) => Refuse::Forbidden,
                })
            }
        }
    )* };
}

pb_route_backend!(opaque_route, tls_route);

/// A filter of this kind always refuses, so the first one decides. On a backend it refuses only
/// what falls to that backend: the model has that for all backends or for none.
fn read_rule<D, P>(
    distribution: Option<D>,
    filters: Vec<P::Filter>,
) -> Result<(Distribution<Backend>, Option<Refuse>)>
where
    D: PbDistribution<RouteBackend = P>,
    P: PbRouteBackend,
{
    let filters: Vec<Refuse> = list(filters, "filters", limit::ITEMS, P::refusal)?;
    let read = read_distribution(distribution, |backend| {
        let (backend, filters) = P::split(backend);
        let filters: Vec<Refuse> = list(filters, "filters", limit::ITEMS, P::refusal)?;
        match filters.into_iter().next() {
            // It may have no address at all: nothing is to reach it.
            Some(refuse) => Ok(Err(refuse)),
            None => read_backend(required(backend, "backend")?).at("backend").map(Ok),
        }
    })?;
    let (backends, refused) = separate(read)?;
    Ok((backends, filters.into_iter().next().or(refused)))
}

type MaybeRefused = std::result::Result<Backend, Refuse>;

fn separate(read: Distribution<MaybeRefused>) -> Result<(Distribution<Backend>, Option<Refuse>)> {
    let outcomes: Vec<&MaybeRefused> = match &read {
        Distribution::Empty => Vec::new(),
        Distribution::FirstAvailable(backends) => backends.iter().map(AsRef::as_ref).collect(),
        Distribution::Random(backends) => backends.iter().map(|(b, _)| b.as_ref()).collect(),
    };
    let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).cloned();
    if refused.is_some() {
        if outcomes.iter().any(|outcome| outcome.is_ok()) {
            let why = "some backends of a TCP route are refused, others are not";
            return Err(ConversionError::unsupported("backends", why));
        }
        return Ok((Distribution::Empty, refused));
    }
    let backend = |b: std::sync::Arc<MaybeRefused>| match std::sync::Arc::unwrap_or_clone(b) {
        Ok(backend) => Some(std::sync::Arc::new(backend)),
        Err(_) => None,
    };
    let backends = match read {
        Distribution::Empty => Distribution::Empty,
        Distribution::FirstAvailable(backends) => {
            Distribution::FirstAvailable(backends.into_iter().filter_map(backend).collect())
        }
        Distribution::Random(backends) => Distribution::Random(
            backends.into_iter().filter_map(|(b, weight)| Some((backend(b)?, weight))).collect(),
        ),
    };
    Ok((backends, None))
}

fn write_backends<D>(backends: &Distribution<Backend>) -> Result<Option<D>>
where
    D: PbDistribution,
    D::RouteBackend: PbRouteBackend,
{
    write_distribution(backends, |backend| {
        write_backend(backend).at("backend").map(D::RouteBackend::new)
    })
}

fn write_opaque_filter(refuse: &Refuse) -> opaque_route::Filter {
    let kind = match refuse {
        Refuse::Forbidden => opaque_route::filter::Kind::Forbidden(Forbidden {}),
        Refuse::Invalid(message) => {
            opaque_route::filter::Kind::Invalid(Invalid { message: message.clone() })
        }
    };
    opaque_route::Filter { kind: Some(kind) }
}

fn write_tls_filter(refuse: &Refuse) -> tls_route::Filter {
    let kind = match refuse {
        Refuse::Forbidden => tls_route::filter::Kind::Forbidden(Forbidden {}),
        Refuse::Invalid(message) => {
            tls_route::filter::Kind::Invalid(Invalid { message: message.clone() })
        }
    };
    tls_route::Filter { kind: Some(kind) }
}
