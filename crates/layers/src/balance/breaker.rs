//! The circuit breaker of one endpoint: a plain state machine, told the time and what happened.
//!
//! Closed → open for a term → half-open, where exactly one request probes → closed, or open for
//! twice the term. The balancer keeps an open endpoint out of its picks and decides whether one may
//! be ejected at all (the floor); see `state.rs`.

use std::time::Duration;

use tokio::time::Instant;

use crate::Backoff;

/// When an endpoint is taken out of service, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerConfig {
    /// This many failures in a row open it. `None` and 0: never.
    pub consecutive: Option<u32>,
    pub success_rate: Option<SuccessRate>,
    /// A response whose head takes longer than this is a failure, the client's time to send the request
    /// not counted.
    pub latency: Option<Duration>,
    /// The terms of an open breaker, longer each time a probe fails.
    pub backoff: Backoff,
    /// Take a `Retry-After` of the failure as the term, within the bounds of `backoff`.
    pub respect_retry_after: bool,
    /// Never eject an endpoint if fewer than these would stay in service. 0: all may be ejected,
    /// and requests then fail with [`super::Reason::AllEjected`].
    pub min_ready_endpoints: u32,
}

/// Opens a breaker when the moving success rate falls below a threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// 0.0…1.0.
    pub threshold: f64,
    /// How fast the past is forgotten.
    pub decay: Duration,
    /// Responses seen before it may open.
    pub min_requests: u32,
}

impl Default for BreakerConfig {
    /// Seven failures in a row, for 1 s to 60 s.
    fn default() -> Self {
        Self {
            consecutive: Some(7),
            success_rate: None,
            latency: None,
            backoff: Backoff {
                min: Duration::from_secs(1),
                max: Duration::from_secs(60),
                jitter: 0.5,
            },
            respect_retry_after: false,
            min_ready_endpoints: 0,
        }
    }
}

/// A change of an endpoint's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Ejected for so long.
    Opened { term: Duration, cause: Cause },
    /// The term is over: one request may probe it.
    HalfOpened,
    /// Back in service.
    Closed,
}

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Consecutive,
    SuccessRate,
    ProbeFailed,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Closed,
    Open { since: Instant, until: Instant },
    HalfOpen { probing: bool },
}

#[derive(Debug)]
pub(super) struct Breaker {
    phase: Phase,
    /// Failures in a row, while closed.
    consecutive: u32,
    rate: Rate,
    /// Terms served since it was closed.
    step: u32,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self { phase: Phase::Closed, consecutive: 0, rate: Rate::new(now), step: 0 }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn consecutive_failures(&self) -> u32 {
        self.consecutive
    }

    /// A success while closed.
    pub(super) fn success(&mut self, config: &BreakerConfig, now: Instant) {
        if self.phase == Phase::Closed {
            self.consecutive = 0;
            if let Some(rate) = &config.success_rate {
                self.rate.record(true, rate.decay, now);
            }
        }
    }

    /// A failure while closed; the cause for which it should open, if it should.
    pub(super) fn failure(&mut self, config: &BreakerConfig, now: Instant) -> Option<Cause> {
        if self.phase != Phase::Closed {
            return None;
        }
        self.consecutive = self.consecutive.saturating_add(1);
        if let Some(rate) = &config.success_rate {
            self.rate.record(false, rate.decay, now);
        }
        self.wants_to_open(config)
    }

    fn wants_to_open(&self, config: &BreakerConfig) -> Option<Cause> {
        if config.consecutive.is_some_and(|max| max > 0 && self.consecutive >= max) {
            return Some(Cause::Consecutive);
        }
        let rate = config.success_rate.as_ref()?;
        let low = self.rate.seen >= rate.min_requests && self.rate.value() < rate.threshold;
        low.then_some(Cause::SuccessRate)
    }

    pub(super) fn open(
        &mut self,
        config: &BreakerConfig,
        cause: Cause,
        retry_after: Option<Duration>,
        now: Instant,
    ) -> Transition {
        let bounds = &config.backoff;
        let hint = retry_after.filter(|_| config.respect_retry_after);
        let term = match hint {
            Some(hint) => hint.min(bounds.max).max(bounds.min),
            None => bounds.delay(self.step),
        };
        // A term beyond what an instant can hold is for ever; a century is as good.
        let until = now.checked_add(term).unwrap_or(now + CENTURY);
        self.phase = Phase::Open { since: now, until };
        self.step = self.step.saturating_add(1);
        Transition::Opened { term, cause }
    }

    /// Half-opens if the term is over.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Transition> {
        match self.phase {
            Phase::Open { until, .. } if until <= now => {
                self.phase = Phase::HalfOpen { probing: false };
                Some(Transition::HalfOpened)
            }
            _ => None,
        }
    }

    /// Whether the caller is the one to probe.
    pub(super) fn take_probe(&mut self) -> bool {
        let takes = self.phase == Phase::HalfOpen { probing: false };
        if takes {
            self.phase = Phase::HalfOpen { probing: true };
        }
        takes
    }

    /// The probe told nothing: another may be sent.
    pub(super) fn return_probe(&mut self) {
        if self.phase == (Phase::HalfOpen { probing: true }) {
            self.phase = Phase::HalfOpen { probing: false };
        }
    }

    pub(super) fn close(&mut self, now: Instant) -> Transition {
        *self = Self::new(now);
        Transition::Closed
    }
}

const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A success rate over exponentially forgotten counts, so that a burst weighs as much as a trickle.
#[derive(Debug)]
struct Rate {
    updated: Instant,
    successes: f64,
    total: f64,
    /// Responses ever seen, for the cold start.
    seen: u32,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { updated: now, successes: 0.0, total: 0.0, seen: 0 }
    }

    fn record(&mut self, success: bool, decay: Duration, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        let kept = (-elapsed / decay.as_secs_f64().max(1e-9)).exp();
        self.updated = now;
        self.successes = self.successes * kept + if success { 1.0 } else { 0.0 };
        self.total = self.total * kept + 1.0;
        self.seen = self.seen.saturating_add(1);
    }

    fn value(&self) -> f64 {
        if self.total > 0.0 { self.successes / self.total } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> BreakerConfig {
        let backoff = Backoff { min: SECOND, max: 4 * SECOND, jitter: 0.0 };
        BreakerConfig { consecutive: Some(3), backoff, ..BreakerConfig::default() }
    }

    fn term(transition: Transition) -> u64 {
        match transition {
            Transition::Opened { term, .. } => term.as_secs(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn consecutive_failures_open_it_and_a_success_starts_the_count_anew() {
        let (config, now) = (config(), Instant::now());
        let mut breaker = Breaker::new(now);
        breaker.failure(&config, now);
        breaker.failure(&config, now);
        breaker.success(&config, now);
        assert_eq!(breaker.consecutive_failures(), 0);
        assert_eq!(breaker.failure(&config, now), None);
        assert_eq!(breaker.failure(&config, now), None);
        assert_eq!(breaker.failure(&config, now), Some(Cause::Consecutive));
    }

    #[test]
    fn each_failed_probe_doubles_the_term_and_a_good_one_resets_it() {
        let (config, mut now) = (config(), Instant::now());
        let mut breaker = Breaker::new(now);
        let mut terms = vec![];
        for _ in 0..4 {
            let opened = breaker.open(&config, Cause::ProbeFailed, None, now);
            terms.push(term(opened));
            let Phase::Open { until, .. } = breaker.phase() else { panic!() };
            assert_eq!(breaker.tick(until - Duration::from_nanos(1)), None);
            assert_eq!(breaker.tick(until), Some(Transition::HalfOpened));
            now = until;
        }
        assert_eq!(terms, [1, 2, 4, 4]);
        breaker.close(now);
        assert_eq!(term(breaker.open(&config, Cause::Consecutive, None, now)), 1);
    }

    #[test]
    fn exactly_one_probe() {
        let (config, now) = (config(), Instant::now());
        let mut breaker = Breaker::new(now);
        assert!(!breaker.take_probe(), "closed");
        breaker.open(&config, Cause::Consecutive, None, now);
        assert!(!breaker.take_probe(), "open");
        breaker.tick(now + SECOND);
        assert!(breaker.take_probe());
        assert!(!breaker.take_probe());
        breaker.return_probe();
        assert!(breaker.take_probe());
    }

    #[test]
    fn late_results_do_not_count_while_it_is_open() {
        let (config, now) = (config(), Instant::now());
        let mut breaker = Breaker::new(now);
        breaker.open(&config, Cause::Consecutive, None, now);
        breaker.success(&config, now);
        for _ in 0..5 {
            assert_eq!(breaker.failure(&config, now), None);
        }
        assert!(matches!(breaker.phase(), Phase::Open { .. }));
    }

    #[test]
    fn success_rate_opens_it_after_a_minimum_and_forgets() {
        let rate = SuccessRate { threshold: 0.8, decay: 10 * SECOND, min_requests: 5 };
        let config = BreakerConfig { consecutive: None, success_rate: Some(rate), ..config() };
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        for _ in 0..3 {
            assert_eq!(breaker.failure(&config, now), None, "too few to tell");
        }
        breaker.success(&config, now);
        assert_eq!(breaker.failure(&config, now), Some(Cause::SuccessRate));

        let mut breaker = Breaker::new(now);
        for _ in 0..20 {
            breaker.success(&config, now);
        }
        for _ in 0..4 {
            assert_eq!(breaker.failure(&config, now), None, "not below 80 %");
        }
        // 40 s later hardly anything of the good times counts.
        assert_eq!(breaker.failure(&config, now + 40 * SECOND), Some(Cause::SuccessRate));
    }

    #[test]
    fn retry_after_is_taken_within_bounds() {
        let (mut config, now) = (config(), Instant::now());
        let open = |config: &BreakerConfig, hint: u32| {
            term(Breaker::new(now).open(config, Cause::Consecutive, Some(SECOND * hint), now))
        };
        assert_eq!(open(&config, 3), 1, "not asked to");
        config.respect_retry_after = true;
        assert_eq!(open(&config, 3), 3);
        assert_eq!(open(&config, 0), 1);
        assert_eq!(open(&config, 3600), 4);
    }

    #[test]
    fn endless_terms_do_not_overflow() {
        let backoff = Backoff { min: Duration::MAX, max: Duration::MAX, jitter: 1.0 };
        let config = BreakerConfig { backoff, ..config() };
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        breaker.open(&config, Cause::Consecutive, None, now);
        assert_eq!(breaker.tick(now + 3600 * SECOND), None);
    }
}
