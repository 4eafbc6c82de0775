//! How a rule spreads traffic over backends. The API has one such message per kind of route, all
//! alike; a macro makes them one.

use std::sync::Arc;

use linkerd2_proxy_api::outbound::{grpc_route, http_route, opaque_route, tls_route};
use mesh_model::route::Distribution;

use super::{list, required};
use crate::error::{At, ConversionError, Result};
use crate::limit;

/// Any kind of route's distribution.
pub(super) trait PbDistribution: Sized {
    type RouteBackend;
    fn unwrap_kind(self) -> Result<Kind<Self::RouteBackend>>;
    fn wrap_kind(kind: Kind<Self::RouteBackend>) -> Self;
}

pub(super) enum Kind<P> {
    Empty,
    First(Vec<P>),
    Random(Vec<(Option<P>, u32)>),
}

macro_rules! pb_distribution {
    ($($module:ident),*) => { $(
        impl PbDistribution for $module::Distribution {
            type RouteBackend = $module::RouteBackend;

            fn unwrap_kind(self) -> Result<Kind<Self::RouteBackend>> {
                use $module::distribution::Kind as Pb;
                Ok(match required(self.kind, "kind")? {
                    Pb::Empty(_) => Kind::Empty,
                    Pb::FirstAvailable(first) => Kind::First(first.backends),
                    Pb::RandomAvailable(random) => {
                        Kind::Random(random.backends.into_iter().map(|b| (b.backend, b.weight)).collect())
                    }
                })
            }

            fn wrap_kind(kind: Kind<Self::RouteBackend>) -> Self {
                use $module::distribution::{Empty, FirstAvailable, Kind as Pb, RandomAvailable};
                let weighted = |(backend, weight)| $module::WeightedRouteBackend { backend, weight };
                let kind = match kind {
                    Kind::Empty => Pb::Empty(Empty {}),
                    Kind::First(backends) => Pb::FirstAvailable(FirstAvailable { backends }),
                    Kind::Random(backends) => Pb::RandomAvailable(RandomAvailable {
                        backends: backends.into_iter().map(weighted).collect(),
                    }),
                };
                Self { kind: Some(kind) }
            }
        }
    )* };
}

pb_distribution!(http_route, grpc_route, opaque_route, tls_route);

pub(super) fn read_distribution<D: PbDistribution, B>(
    proto: Option<D>,
    mut read: impl FnMut(D::RouteBackend) -> Result<B>,
) -> Result<Distribution<B>> {
    let mut read = |backend| read(backend).map(Arc::new);
    match required(proto, "backends")?.unwrap_kind().at("backends")? {
        Kind::Empty => Ok(Distribution::Empty),
        Kind::First(backends) if backends.is_empty() => Ok(Distribution::Empty),
        Kind::First(backends) => {
            list(backends, "backends", limit::ITEMS, read).map(Distribution::FirstAvailable)
        }
        Kind::Random(backends) => {
            if backends.iter().all(|(_, weight)| *weight == 0) {
                return Err(ConversionError::invalid("backends", "no weight is above 0"));
            }
            list(backends, "backends", limit::ITEMS, |(backend, weight)| {
                Ok((read(required(backend, "backend")?)?, weight))
            })
            .map(Distribution::Random)
        }
    }
}

pub(super) fn write_distribution<D: PbDistribution, B>(
    distribution: &Distribution<B>,
    mut write: impl FnMut(&B) -> Result<D::RouteBackend>,
) -> Result<Option<D>> {
    let mut write = |index, backend: &B| write(backend).at_index("backends", index);
    let kind = match distribution {
        Distribution::Empty => Kind::Empty,
        Distribution::FirstAvailable(backends) => Kind::First(
            backends.iter().enumerate().map(|(i, b)| write(i, b)).collect::<Result<_>>()?,
        ),
        Distribution::Random(backends) => Kind::Random(
            backends
                .iter()
                .enumerate()
                .map(|(i, (backend, weight))| Ok((Some(write(i, backend)?), *weight)))
                .collect::<Result<_>>()?,
        ),
    };
    Ok(Some(D::wrap_kind(kind)))
}
