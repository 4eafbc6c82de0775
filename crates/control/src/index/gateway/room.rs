//! How much of all that is for the gateway it is told.
//!
//! Anyone who may write a Gateway or a route takes part in one message, and a reader that finds it too
//! large or too long takes none of it. So the oldest objects are offered first, and those that nothing is
//! left for are left out, and named. What is left out is never held: offers are made one by one.

use std::collections::BTreeMap;

use mesh_api::{WholePolicy, WireSize, limit};
use mesh_model::gateway::EdgeCertificate;
use mesh_model::meta::Meta;
use mesh_model::outbound::{
    Forward, HttpPolicy, HttpRoute, OutboundPolicy, Protocol, TcpPolicy, TcpRoute,
};
use mesh_model::route::{Filter, HttpMatch, Rule};

use crate::index::object::{ListenerProtocol, Name};

/// A port, and what is spoken there.
pub(super) type Place = (u16, ListenerProtocol);

/// Bytes of all HTTP routes in a message, of all certificates, and of all TLS routes. What is left is
/// for the names of listeners and all that every policy has.
const HTTP_BYTES: usize = limit::MESSAGE_BYTES / 2;
const CERTIFICATE_BYTES: usize = limit::MESSAGE_BYTES / 4;
const TLS_BYTES: usize = limit::MESSAGE_BYTES / 8;
/// Objects that the log names of those that were left out.
const NAMED: usize = 10;

/// Something for a place, and the object that asks for it.
#[derive(Debug)]
pub(super) struct Offer<T> {
    pub(super) object: Name,
    pub(super) place: Place,
    pub(super) what: T,
}

/// What is at each place.
pub(super) type Taken<T> = BTreeMap<Place, Vec<T>>;

/// HTTP routes for which there is room.
pub(super) fn http_routes(offers: impl Iterator<Item = Offer<HttpRoute>>) -> Taken<HttpRoute> {
    #[derive(Default)]
    struct Lists {
        rules: usize,
        additions: usize,
        patterns: usize,
    }
    let mut bytes = 0;
    let mut lists: BTreeMap<Place, Lists> = BTreeMap::new();
    take("routes", offers, |place, route| {
        let have = lists.entry(place).or_default();
        // One rule is for what no route is for. A route without rules counts as one, too.
        let rules = have.rules + route.rules.len().max(1);
        if rules >= limit::RULES {
            return false;
        }
        let patterns = have.patterns + route.rules.iter().map(patterns).sum::<usize>();
        if patterns > limit::PATTERNS {
            return false;
        }
        let routes = [route.clone()].into();
        let protocol = Protocol::Http1(HttpPolicy { routes, breaker: None });
        let Some(size) = size(protocol) else { return false };
        let additions = have.additions + size.additions;
        if additions > limit::ADDITIONS || bytes + size.bytes > HTTP_BYTES {
            return false;
        }
        bytes += size.bytes;
        *have = Lists { rules, additions, patterns };
        true
    })
}

/// TLS routes for which there is room.
pub(super) fn tls_routes(offers: impl Iterator<Item = Offer<TcpRoute>>) -> Taken<TcpRoute> {
    let mut bytes = 0;
    let mut lists: BTreeMap<Place, usize> = BTreeMap::new();
    take("TLS routes", offers, |place, route| {
        let have = lists.entry(place).or_default();
        if *have + 1 >= limit::ROUTES {
            return false;
        }
        let routes = [route.clone()].into();
        let Some(size) = size(Protocol::Tls(TcpPolicy { routes })) else { return false };
        if bytes + size.bytes > TLS_BYTES {
            return false;
        }
        bytes += size.bytes;
        *have += 1;
        true
    })
}

/// Certificates for which there is room.
pub(super) fn certificates(
    offers: impl Iterator<Item = Offer<EdgeCertificate>>,
) -> Taken<EdgeCertificate> {
    let mut bytes = 0;
    let mut lists: BTreeMap<Place, usize> = BTreeMap::new();
    take("certificates", offers, |place, certificate| {
        let have = lists.entry(place).or_default();
        let size = certificate.chain.len() + certificate.key.0.len();
        if *have == limit::ITEMS || bytes + size > CERTIFICATE_BYTES {
            return false;
        }
        bytes += size;
        *have += 1;
        true
    })
}

fn patterns(rule: &Rule<HttpMatch, Forward>) -> usize {
    let of_faults = rule.filters.iter().map(|filter| match filter {
        Filter::Fault(fault) => fault.patterns(),
        _ => 0,
    });
    rule.matches.iter().map(HttpMatch::patterns).chain(of_faults).sum()
}

/// What a policy of these routes alone takes; `None` if it cannot be told to anybody.
fn size(protocol: Protocol) -> Option<WireSize> {
    WholePolicy(OutboundPolicy { meta: Meta::Default("gateway".into()), protocol }).size().ok()
}

fn take<T>(
    what: &str,
    offers: impl Iterator<Item = Offer<T>>,
    mut fits: impl FnMut(Place, &T) -> bool,
) -> Taken<T> {
    let mut taken = Taken::new();
    let (mut left_out, mut named) = (0_usize, Vec::new());
    for offer in offers {
        if fits(offer.place, &offer.what) {
            taken.entry(offer.place).or_default().push(offer.what);
        } else {
            left_out += 1;
            if named.len() < NAMED {
                named.push(offer.object.to_string());
            }
        }
    }
    if left_out > 0 {
        tracing::warn!(what, left_out, of = named.join(", "), "too much for one gateway");
    }
    taken
}
