//! A consistent-hash ring.
//!
//! An endpoint's points depend on its address and its number of points alone, so removing one moves
//! only the keys it had. The number follows from the weight relative to the largest, rounded up to
//! a power of two: a change of weights or of the number of endpoints moves other keys only when
//! such a power is crossed. All proxies with the same endpoints have the same ring.

use std::net::{IpAddr, SocketAddr};

/// Points in all, at most, as long as there are not more endpoints.
const MAX_POINTS: u64 = 1 << 16;
/// Points of an endpoint of the largest weight, at most. 256 keep most shares within a tenth.
const MAX_POINTS_EACH: u64 = 256;

#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Hash and index of the endpoint, by hash.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// A ring of endpoints `(address, weight)`, known by their position. Those of weight 0 are left
    /// out, unless all are.
    pub(super) fn new(endpoints: &[(SocketAddr, u32)]) -> Self {
        let heaviest = endpoints.iter().map(|(_, weight)| *weight).max().unwrap_or(0);
        let full = u64::from(heaviest).max(1).next_power_of_two();
        let crowd = (endpoints.len() as u64).max(1).next_power_of_two();
        let each = (MAX_POINTS / crowd).clamp(1, MAX_POINTS_EACH);
        let mut points = Vec::new();
        for (index, (addr, weight)) in endpoints.iter().enumerate() {
            if *weight == 0 && heaviest > 0 {
                continue;
            }
            let weight = u64::from((*weight).max(1));
            let count = (weight * each).div_ceil(full);
            let seed = hash_addr(addr);
            // Fewer points are always the first of more.
            points.extend((0..count).map(|point| (mix(seed ^ mix(point)), index as u32)));
        }
        points.sort_unstable();
        Self { points }
    }

    /// The owner of a key, and then whoever would own it if those before were gone. Owners repeat.
    pub(super) fn walk(&self, key: u64) -> impl Iterator<Item = usize> {
        let key = mix(key);
        let start = self.points.partition_point(|(hash, _)| *hash < key);
        let (before, after) = self.points.split_at(start);
        after.iter().chain(before).map(|(_, index)| *index as usize)
    }
}

fn hash_addr(addr: &SocketAddr) -> u64 {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let high = mix((ip >> 64) as u64);
    mix(high ^ ip as u64) ^ mix(u64::from(addr.port()) << 32)
}

/// The finalizer of splitmix64: small, well mixed, and the same everywhere.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn addr(n: u32) -> SocketAddr {
        SocketAddr::new(IpAddr::V4((0x0a00_0000 + n).into()), 8080)
    }

    fn owners(endpoints: &[(SocketAddr, u32)], keys: u64) -> Vec<SocketAddr> {
        let ring = Ring::new(endpoints);
        (0..keys).map(|key| endpoints[ring.walk(key).next().unwrap()].0).collect()
    }

    fn share(owners: &[SocketAddr], of: SocketAddr) -> f64 {
        owners.iter().filter(|owner| **owner == of).count() as f64 / owners.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn removing_one_moves_only_its_keys(
            addrs in prop::collection::btree_set(0u32..1 << 24, 2..20),
            gone in any::<prop::sample::Index>(),
        ) {
            let mut endpoints: Vec<_> = addrs.into_iter().map(|n| (addr(n), 10_000)).collect();
            let before = owners(&endpoints, 2000);
            let gone = endpoints.remove(gone.index(endpoints.len())).0;
            let after = owners(&endpoints, 2000);
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(before == after || *before == gone);
                prop_assert_ne!(*after, gone);
            }
        }

        #[test]
        fn the_order_of_the_endpoints_does_not_matter(
            addrs in prop::collection::btree_map(0u32..1 << 24, 1u32..50, 1..20),
        ) {
            let mut endpoints: Vec<_> = addrs.into_iter().map(|(n, w)| (addr(n), w)).collect();
            let before = owners(&endpoints, 500);
            endpoints.reverse();
            prop_assert_eq!(before, owners(&endpoints, 500));
        }
    }

    #[test]
    fn shares_follow_the_weights() {
        let endpoints = [(addr(1), 1024), (addr(2), 512), (addr(3), 512), (addr(4), 0)];
        let owners = owners(&endpoints, 20_000);
        for (n, expected) in [(1, 0.5), (2, 0.25), (3, 0.25), (4, 0.0)] {
            let share = share(&owners, addr(n));
            assert!((share - expected).abs() < 0.06, "endpoint {n}: {share}");
        }
    }

    #[test]
    fn equal_weights_get_equal_shares() {
        let endpoints: Vec<_> = (0..10).map(|n| (addr(n), 1)).collect();
        let owners = owners(&endpoints, 20_000);
        for (addr, _) in endpoints {
            let share = share(&owners, addr);
            assert!((0.08..0.12).contains(&share), "{addr}: {share}");
        }
    }

    #[test]
    fn a_walk_meets_every_endpoint() {
        let endpoints: Vec<_> = (0..10).map(|n| (addr(n), 1)).collect();
        let mut met: Vec<usize> = Ring::new(&endpoints).walk(7).collect();
        met.sort_unstable();
        met.dedup();
        assert_eq!(met, (0..10).collect::<Vec<_>>());
        assert_eq!(Ring::new(&[]).walk(7).next(), None);
    }

    #[test]
    fn its_size_is_bounded_whatever_the_weights() {
        let weights = [1, 10_000, u32::MAX];
        for count in [1u32, 500, 5_000, 70_000] {
            let endpoints: Vec<_> =
                (0..count).map(|n| (addr(n), weights[n as usize % 3])).collect();
            let ring = Ring::new(&endpoints);
            assert!(ring.points.len() <= (MAX_POINTS as usize).max(endpoints.len()));
            assert!(ring.points.len() >= endpoints.len(), "everybody is on it");
        }
        assert_eq!(Ring::new(&[(addr(1), 0), (addr(2), 0)]).points.len(), 512);
    }
}
