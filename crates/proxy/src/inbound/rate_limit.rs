//! Local rate limits: so many requests a second in all, of each client, and of each value of a header.
//!
//! One per port, shared by all workers, and made anew only when the limit is another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use mesh_model::inbound::{Rate, RateLimit};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Clients, and values of the header, whose rates are kept apart; beyond, they share one.
const MAX_KEPT: usize = 10_000;
/// How often a full table is looked through for those who have been quiet.
const SWEEP: Duration = Duration::from_secs(1);

/// The buckets of one port.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    limit: RateLimit,
    overrides: HashMap<String, Rate>,
    /// Unforeseeable: nobody is to make two values fall together.
    hasher: ahash::RandomState,
    buckets: Mutex<Buckets>,
}

/// A bound that a request would have to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Total,
    Client,
    Header,
}

#[derive(Debug)]
struct Buckets {
    total: Bucket,
    clients: Table,
    headers: Table,
}

/// Buckets by the hash of what they belong to, so that long names cost no memory.
#[derive(Debug)]
struct Table {
    kept: HashMap<u64, Bucket>,
    /// Of those for whom there was no room.
    others: Bucket,
    swept: Instant,
}

/// The moment up to which the allowance is used (GCRA): no refill to run.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    /// What taking one more makes of it, if that is within the rate.
    fn next(self, rate: Rate, now: Instant) -> Option<Self> {
        if rate.per_second == 0 {
            return None;
        }
        let interval = Duration::from_secs(1) / rate.per_second;
        // What is saved of an interval when a request comes late is not lost, or a rate of which requests
        // come at other times than its own would be less. It never makes one whole request more at once.
        let saved = now.checked_sub(interval).unwrap_or(now) + Duration::from_nanos(1);
        let used = self.0.map_or(now, |used| used.max(saved)) + interval;
        let reach = interval.saturating_mul(rate.burst.max(1));
        (now.checked_add(reach)? >= used).then_some(Self(Some(used)))
    }

    fn is_full(self, now: Instant) -> bool {
        self.0.is_none_or(|used| used <= now)
    }
}

impl Table {
    fn new(now: Instant) -> Self {
        Self { kept: HashMap::new(), others: Bucket::default(), swept: now }
    }

    fn bucket(&mut self, key: u64, now: Instant) -> &mut Bucket {
        if self.kept.len() >= MAX_KEPT && !self.kept.contains_key(&key) {
            // One who has not used anything is as one who never came.
            if now.saturating_duration_since(self.swept) >= SWEEP {
                self.swept = now;
                self.kept.retain(|_, bucket| !bucket.is_full(now));
            }
            if self.kept.len() >= MAX_KEPT {
                return &mut self.others;
            }
        }
        self.kept.entry(key).or_default()
    }
}

impl RateLimiter {
    pub(crate) fn new(limit: &RateLimit) -> Self {
        let now = Instant::now();
        let named = limit.overrides.iter();
        let named = named.flat_map(|(rate, ids)| ids.iter().map(|id| (id.clone(), *rate)));
        Self {
            limit: limit.clone(),
            overrides: named.collect(),
            hasher: ahash::RandomState::new(),
            buckets: Mutex::new(Buckets {
                total: Bucket::default(),
                clients: Table::new(now),
                headers: Table::new(now),
            }),
        }
    }

    pub(crate) fn limit(&self) -> &RateLimit {
        &self.limit
    }

    /// Takes one more request, or says which bound it would break; it is then counted nowhere.
    pub(crate) fn admit(
        &self,
        identity: Option<&str>,
        ip: IpAddr,
        headers: &HeaderMap,
        now: Instant,
    ) -> Result<(), Bound> {
        let of_client = identity.and_then(|id| self.overrides.get(id)).copied();
        let of_client = of_client.or(self.limit.identity).map(|rate| {
            let key = match identity {
                Some(id) => self.hasher.hash_one(id),
                None => self.hasher.hash_one(ip.to_canonical()),
            };
            (rate, key)
        });
        let of_header = self.limit.header.as_ref().map(|header| {
            let value = headers.get(&header.name).map(|value| value.as_bytes());
            (header.rate, self.hasher.hash_one(value))
        });
        let mut buckets = self.buckets.lock();
        let Buckets { total, clients, headers } = &mut *buckets;
        let mut client = of_client.map(|(rate, key)| (clients.bucket(key, now), rate));
        let mut header = of_header.map(|(rate, key)| (headers.bucket(key, now), rate));
        let mut total = self.limit.total.map(|rate| (total, rate));
        let after = |bucket: &Option<(&mut Bucket, Rate)>, bound| match bucket {
            None => Ok(Bucket::default()),
            Some((bucket, rate)) => bucket.next(*rate, now).ok_or(bound),
        };
        // All of them or none: what one refuses must not cost the others anything.
        let next = [
            after(&client, Bound::Client)?,
            after(&header, Bound::Header)?,
            after(&total, Bound::Total)?,
        ];
        for (bucket, next) in [&mut client, &mut header, &mut total].into_iter().zip(next) {
            if let Some((bucket, _)) = bucket {
                **bucket = next;
            }
        }
        Ok(())
    }
}

impl Bound {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Total => "in all",
            Self::Client => "of this client",
            Self::Header => "with this value of its header",
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use mesh_model::Meta;
    use mesh_model::inbound::HeaderRate;
    use proptest::prelude::*;

    use super::*;

    const NONE: RateLimit = RateLimit {
        meta: Meta::Default(String::new()),
        total: None,
        identity: None,
        overrides: Vec::new(),
        header: None,
    };

    fn per_second(rate: u32) -> Option<Rate> {
        Some(Rate::per_second(rate))
    }

    fn ip(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(number).into()
    }

    /// Of one request each millisecond.
    fn admitted(limiter: &RateLimiter, id: &str, headers: &HeaderMap, seconds: u64) -> u32 {
        let start = Instant::now();
        let moments = (0..seconds * 1000).map(|ms| start + Duration::from_millis(ms));
        let admit = |now| limiter.admit(Some(id), ip(1), headers, now);
        moments.map(|now| u32::from(admit(now).is_ok())).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However requests come, no more pass than the rate and one burst, and no fewer than the
        /// rate if there are always more than enough.
        #[test]
        fn the_rate_is_kept(per_second in 1u32..400, burst in 1u32..500) {
            let rate = Rate { per_second, burst };
            let limiter = RateLimiter::new(&RateLimit { total: Some(rate), ..NONE });
            let admitted = admitted(&limiter, "a", &HeaderMap::new(), 10);
            prop_assert!(admitted <= 10 * per_second + burst, "{}", admitted);
            prop_assert!(admitted + 1 >= 10 * per_second, "{}", admitted);
        }
    }

    #[test]
    fn clients_and_values_have_rates_of_their_own() {
        let rate = Rate { per_second: 10, burst: 1 };
        let overrides = vec![(Rate { per_second: 1, burst: 1 }, vec!["slow".to_owned()])];
        let name = http::header::USER_AGENT;
        let header =
            Some(HeaderRate { name: name.clone(), rate: Rate { per_second: 5, burst: 1 } });
        let limiter = RateLimiter::new(&RateLimit { identity: Some(rate), overrides, ..NONE });
        let none = HeaderMap::new();
        for (client, expected) in [("a", 100), ("b", 100), ("slow", 10)] {
            assert_eq!(admitted(&limiter, client, &none, 10), expected, "{client}");
        }
        let limiter = RateLimiter::new(&RateLimit { header, ..NONE });
        for value in ["x", "y"] {
            let headers = [(name.clone(), HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(admitted(&limiter, "a", &headers, 10), 50);
        }
        assert_eq!(admitted(&limiter, "a", &none, 10), 50, "without it, there is one more value");
    }

    #[test]
    fn what_one_bound_refuses_costs_the_others_nothing() {
        let limit = RateLimit { total: per_second(10), identity: per_second(3), ..NONE };
        let limiter = RateLimiter::new(&limit);
        let now = Instant::now();
        let admit = |client| limiter.admit(Some(client), ip(1), &HeaderMap::new(), now);
        for _ in 0..100 {
            let _ = admit("greedy");
        }
        assert_eq!(admit("greedy"), Err(Bound::Client));
        for client in ["a", "b"] {
            assert!((0..3).all(|_| admit(client).is_ok()), "{client}");
        }
        assert!(admit("c").is_ok());
        assert_eq!(admit("c"), Err(Bound::Total));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_quiet() {
        let limiter = RateLimiter::new(&RateLimit { identity: per_second(1), ..NONE });
        let none = HeaderMap::new();
        let start = Instant::now();
        let kept = || limiter.buckets.lock().clients.kept.len();
        for number in 0..2 * MAX_KEPT as u32 {
            let _ = limiter.admit(None, ip(number), &none, start);
        }
        assert_eq!(kept(), MAX_KEPT);
        let newcomer = ip(u32::MAX);
        assert_eq!(limiter.admit(None, newcomer, &none, start), Err(Bound::Client));
        let later = start + Duration::from_secs(2);
        assert_eq!(limiter.admit(None, newcomer, &none, later), Ok(()));
        assert_eq!(kept(), 1);
    }

    #[test]
    fn zero_admits_nobody() {
        let limiter = RateLimiter::new(&RateLimit { total: per_second(0), ..NONE });
        assert_eq!(admitted(&limiter, "a", &HeaderMap::new(), 1), 0);
    }
}
