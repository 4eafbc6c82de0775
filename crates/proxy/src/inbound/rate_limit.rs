//! Local rate limits: so many requests a second, with a burst of one second's worth.

use std::collections::HashMap;
use std::time::Duration;

use mesh_model::inbound::RateLimit;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Clients whose rates are kept apart; beyond, they share one.
const MAX_CLIENTS: usize = 10_000;

/// The buckets of one port.
#[derive(Debug)]
pub(super) struct RateLimiter {
    limit: RateLimit,
    total: Mutex<Bucket>,
    clients: Mutex<HashMap<String, Bucket>>,
}

/// The moment up to which the allowance is used (GCRA): no refill to run.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Option<Instant>);

impl Bucket {
    fn take(&mut self, per_second: u32, now: Instant) -> bool {
        if per_second == 0 {
            return false;
        }
        let burst = Duration::from_secs(1);
        let used = self.0.map_or(now, |used| used.max(now));
        let next = used + burst / per_second;
        if next > now + burst {
            return false;
        }
        self.0 = Some(next);
        true
    }
}

impl RateLimiter {
    pub(super) fn new(limit: &RateLimit) -> Self {
        Self { limit: limit.clone(), total: Mutex::default(), clients: Mutex::default() }
    }

    pub(super) fn is_for(&self, limit: &RateLimit) -> bool {
        self.limit == *limit
    }

    /// Whether one more request of this client is within the limits.
    pub(super) fn admit(&self, client: &str, now: Instant) -> bool {
        let named = self.limit.overrides.iter().find(|(_, ids)| ids.iter().any(|id| id == client));
        if let Some(rate) = named.map(|(rate, _)| *rate).or(self.limit.identity) {
            let mut clients = self.clients.lock();
            let key = match clients.contains_key(client) || clients.len() < MAX_CLIENTS {
                true => client,
                false => "",
            };
            if !clients.entry(key.to_owned()).or_default().take(rate, now) {
                return false;
            }
        }
        self.limit.total.is_none_or(|rate| self.total.lock().take(rate, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::Meta;

    fn limiter(total: Option<u32>, identity: Option<u32>) -> RateLimiter {
        let overrides = vec![(1, vec!["slow".to_owned()])];
        RateLimiter::new(&RateLimit {
            meta: Meta::Default("test".into()),
            total,
            identity,
            overrides,
        })
    }

    fn admitted(limiter: &RateLimiter, client: &str, seconds: u64) -> u32 {
        let start = Instant::now();
        let moments = (0..seconds * 1000).map(|ms| start + Duration::from_millis(ms));
        moments.map(|now| u32::from(limiter.admit(client, now))).sum()
    }

    #[test]
    fn the_rate_is_kept_after_the_burst() {
        let admitted = admitted(&limiter(Some(100), None), "a", 10);
        assert!((1_000..=1_101).contains(&admitted), "{admitted}");
    }

    #[test]
    fn clients_have_rates_of_their_own() {
        let limiter = limiter(None, Some(10));
        assert!(admitted(&limiter, "a", 1) >= 10);
        assert!(admitted(&limiter, "b", 1) >= 10);
        assert!(admitted(&limiter, "slow", 10) <= 11);
    }

    #[test]
    fn zero_admits_nobody() {
        assert_eq!(admitted(&limiter(Some(0), None), "a", 1), 0);
    }
}
