//! How loaded an endpoint seems: a moving latency that believes bad news at once.
//!
//! Peak EWMA: a sample above the estimate replaces it, one below pulls it down as time passes, and
//! without samples it decays, so that a slow endpoint is tried again. A penalty for answering 429
//! is kept beside it and forgotten at its own pace.

use std::time::Duration;

use tokio::time::Instant;

/// Differences below this are noise of the machine, not of the endpoint: the number of pending
/// requests decides there.
const FLOOR_NANOS: f64 = 1_000_000.0;

/// Artificial latency for endpoints that answer 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// Added when the answer has no `Retry-After`.
    pub penalty: Duration,
    /// The most that is taken from a `Retry-After`.
    pub max_retry_after: Duration,
    pub decay: Duration,
}

/// An exponentially decaying value in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Decaying {
    nanos: f64,
    updated: Instant,
}

impl Decaying {
    fn kept(&self, decay: Duration, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.updated);
        // Within a hundredth of the decay nothing changes that a comparison would notice.
        if elapsed < decay / 128 {
            return 1.0;
        }
        (-elapsed.as_secs_f64() / decay.as_secs_f64().max(1e-9)).exp()
    }

    fn value(&self, decay: Duration, now: Instant) -> f64 {
        self.nanos * self.kept(decay, now)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Load {
    rtt: Decaying,
    decay: Duration,
    penalty: Option<(Decaying, Penalty)>,
}

impl Load {
    pub(super) fn new(
        default_rtt: Duration,
        decay: Duration,
        penalty: Option<Penalty>,
        now: Instant,
    ) -> Self {
        let rtt = Decaying { nanos: nanos(default_rtt), updated: now };
        let none = Decaying { nanos: 0.0, updated: now };
        Self { rtt, decay, penalty: penalty.map(|penalty| (none, penalty)) }
    }

    /// A request took so long.
    pub(super) fn observe(&mut self, rtt: Duration, now: Instant) {
        let sample = nanos(rtt);
        self.rtt.nanos = if sample >= self.rtt.nanos {
            sample
        } else {
            let elapsed = now.saturating_duration_since(self.rtt.updated).as_secs_f64();
            let kept = (-elapsed / self.decay.as_secs_f64().max(1e-9)).exp();
            sample + (self.rtt.nanos - sample) * kept
        };
        self.rtt.updated = now;
    }

    /// A request took at least so long, or failed after it: bad news only, since failing fast must
    /// not attract traffic.
    pub(super) fn observe_at_least(&mut self, rtt: Duration, now: Instant) {
        if nanos(rtt) > self.rtt.value(self.decay, now) {
            self.observe(rtt, now);
        }
    }

    /// The endpoint asked to be spared.
    pub(super) fn penalize(&mut self, retry_after: Option<Duration>, now: Instant) {
        if let Some((state, config)) = &mut self.penalty {
            let hint = retry_after.map(|hint| hint.min(config.max_retry_after));
            let penalty = nanos(hint.unwrap_or(config.penalty));
            *state = Decaying { nanos: penalty.max(state.value(config.decay, now)), updated: now };
        }
    }

    /// The estimated latency.
    pub(super) fn rtt(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.rtt.value(self.decay, now) as u64)
    }

    /// What a request would seem to cost here: latency and penalty, in nanoseconds, never below
    /// the floor.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let penalty = match &self.penalty {
            Some((state, config)) if state.nanos > 0.0 => state.value(config.decay, now),
            _ => 0.0,
        };
        self.rtt.value(self.decay, now).max(FLOOR_NANOS) + penalty
    }
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn load(now: Instant) -> Load {
        let penalty =
            Penalty { penalty: 5 * SECOND, max_retry_after: 20 * SECOND, decay: 10 * SECOND };
        Load::new(30 * MS, 10 * SECOND, Some(penalty), now)
    }

    #[test]
    fn believes_a_peak_at_once_and_recovers_with_time() {
        let start = Instant::now();
        let mut load = load(start);
        assert_eq!(load.rtt(start), 30 * MS);
        load.observe(500 * MS, start);
        assert_eq!(load.rtt(start), 500 * MS);
        load.observe(10 * MS, start);
        assert_eq!(load.rtt(start), 500 * MS, "no time has passed");
        let later = start + 10 * SECOND;
        load.observe(10 * MS, later);
        // 10 + 490 / e
        assert_eq!(load.rtt(later).as_millis(), 190);
    }

    #[test]
    fn decays_without_samples_down_to_the_floor() {
        let start = Instant::now();
        let mut load = load(start);
        load.observe(SECOND, start);
        assert_eq!(load.rtt(start + 10 * SECOND).as_millis(), 367);
        assert_eq!(load.cost(start + 3600 * SECOND), FLOOR_NANOS);
    }

    #[test]
    fn failing_fast_does_not_look_good() {
        let start = Instant::now();
        let mut load = load(start);
        load.observe_at_least(MS, start + 5 * SECOND);
        assert_eq!(load.rtt(start), 30 * MS);
        load.observe_at_least(SECOND, start);
        assert_eq!(load.rtt(start), SECOND);
    }

    #[test]
    fn a_penalty_adds_to_the_cost_and_is_forgotten() {
        let start = Instant::now();
        let mut load = load(start);
        let plain = load.cost(start);
        load.penalize(None, start);
        assert_eq!(load.cost(start), plain + 5e9);
        load.penalize(Some(3600 * SECOND), start);
        assert_eq!(load.cost(start), plain + 20e9, "a hint is capped");
        load.penalize(Some(SECOND), start);
        assert_eq!(load.cost(start), plain + 20e9, "and does not shorten what is there");
        assert!(load.cost(start + 100 * SECOND) < plain + 1e6);
    }
}
