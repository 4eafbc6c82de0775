//! What the load generator counted, a slot a second, so that any recent window can be summed up.
//!
//! Time is passed in, as the duration since the beginning: nothing here reads a clock.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest window, in seconds; older slots are forgotten.
pub(super) const MAX_WINDOW: u64 = 120;
/// Three digits: a quantile is within 0.1 % of the true one.
const DIGITS: u8 = 3;
const MAX_MICROS: u64 = 60_000_000;

/// The sums over a window. Latencies are in milliseconds, to the end of the response, and absent without requests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in super::super) struct Summary {
    pub requests: u64,
    /// Requests answered with a status below 500 to the end.
    pub success: u64,
    /// 5xx, and everything that kept a response from completing.
    pub failures: u64,
    /// `success / requests`, from 0 to 1.
    pub success_rate: Option<f64>,
    pub rps: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    /// What the window really covers: less than asked for right after the start.
    pub window_seconds: f64,
    /// Requests that were due but never sent, because all of `--concurrency` was taken. Since the start.
    pub skipped: u64,
}

#[derive(Debug)]
struct Slot {
    second: u64,
    tally: Tally,
}

#[derive(Debug)]
struct Tally {
    failures: u64,
    /// In microseconds; its length is the number of requests.
    latencies: Histogram<u32>,
}

/// The recent slots, and everything since the start.
#[derive(Debug)]
pub(super) struct Stats {
    slots: VecDeque<Slot>,
    total: Tally,
    skipped: u64,
}

impl Stats {
    pub(super) fn new() -> Self {
        Self { slots: VecDeque::new(), total: Tally::new(), skipped: 0 }
    }

    /// A request completed at `at`. A request belongs to the second it ends in.
    pub(super) fn record(&mut self, at: Duration, latency: Duration, success: bool) {
        let second = at.as_secs();
        self.total.record(latency, success);
        if self.slots.back().is_none_or(|slot| slot.second < second) {
            self.slots.push_back(Slot { second, tally: Tally::new() });
            while self.slots.front().is_some_and(|slot| slot.second + MAX_WINDOW <= second) {
                self.slots.pop_front();
            }
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.tally.record(latency, success);
        }
    }

    pub(super) fn skip(&mut self, requests: u64) {
        self.skipped += requests;
    }

    /// The last `window` seconds as of `at`: the running second and the `window - 1` before it.
    pub(super) fn summary(&self, at: Duration, window: u64) -> Summary {
        let first = (at.as_secs() + 1).saturating_sub(window);
        let mut sum = Tally::new();
        for slot in self.slots.iter().filter(|slot| slot.second >= first) {
            sum.add(&slot.tally);
        }
        sum.summary(at.saturating_sub(Duration::from_secs(first)), self.skipped)
    }

    /// Everything since the start, up to `at`.
    pub(super) fn total(&self, at: Duration) -> Summary {
        self.total.summary(at, self.skipped)
    }
}

impl Tally {
    fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, MAX_MICROS, DIGITS);
        Self { failures: 0, latencies: latencies.expect("the constant bounds are valid") }
    }

    fn record(&mut self, latency: Duration, success: bool) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros);
        self.failures += u64::from(!success);
    }

    fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.failures += other.failures;
    }

    fn summary(&self, covered: Duration, skipped: u64) -> Summary {
        let requests = self.latencies.len();
        let success = requests.saturating_sub(self.failures);
        let seconds = covered.as_secs_f64();
        let quantile =
            |q| (requests > 0).then(|| self.latencies.value_at_quantile(q) as f64 / 1000.0);
        Summary {
            requests,
            success,
            failures: self.failures,
            success_rate: (requests > 0).then(|| success as f64 / requests as f64),
            rps: (seconds > 0.0).then(|| requests as f64 / seconds),
            p50_ms: quantile(0.50),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            window_seconds: seconds,
            skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn near(value: Option<f64>, expected: f64) {
        let value = value.unwrap();
        assert!((value / expected - 1.0).abs() < 0.001, "{value} is not about {expected}");
    }

    #[test]
    fn nothing_is_not_zero() {
        let summary = Stats::new().summary(Duration::ZERO, 60);
        assert_eq!(summary.requests, 0);
        assert_eq!(summary.rps, None);
        assert_eq!(summary.success_rate, None);
        assert_eq!(summary.p99_ms, None);
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let mut stats = Stats::new();
        for n in 1..=1000 {
            stats.record(ms(n), ms(n), true);
        }
        let summary = stats.summary(ms(1000), 60);
        near(summary.p50_ms, 500.0);
        near(summary.p95_ms, 950.0);
        near(summary.p99_ms, 990.0);
        assert_eq!(summary.rps, Some(1000.0));
    }

    #[test]
    fn failures_are_requests_too() {
        let mut stats = Stats::new();
        for n in 0..10 {
            stats.record(ms(500), ms(1), n != 0);
        }
        let summary = stats.summary(ms(2000), 60);
        assert_eq!((summary.requests, summary.success, summary.failures), (10, 9, 1));
        assert_eq!(summary.success_rate, Some(0.9));
        assert_eq!(summary.rps, Some(5.0));
    }

    #[test]
    fn a_window_takes_the_running_second_and_those_before_it() {
        let mut stats = Stats::new();
        for second in 0..10 {
            stats.record(ms(second * 1000), ms(1), true);
            stats.record(ms(second * 1000 + 999), ms(1), true);
        }
        let summary = stats.summary(ms(9999), 3);
        assert_eq!(summary.requests, 6);
        assert_eq!(summary.window_seconds, 2.999);
        let later = stats.summary(ms(10_500), 3);
        assert_eq!((later.requests, later.window_seconds), (4, 2.5));
        let much_later = stats.summary(ms(100_000), 3);
        assert_eq!((much_later.requests, much_later.rps), (0, Some(0.0)));
    }

    #[test]
    fn old_slots_are_forgotten_and_the_total_is_not() {
        let mut stats = Stats::new();
        for second in 0..1000 {
            stats.record(Duration::from_secs(second), ms(1), true);
        }
        assert_eq!(stats.slots.len() as u64, MAX_WINDOW);
        assert_eq!(stats.summary(Duration::from_secs(999), MAX_WINDOW).requests, MAX_WINDOW);
        assert_eq!(stats.total(Duration::from_secs(1000)).requests, 1000);
    }

    #[test]
    fn a_latency_beyond_the_histogram_counts_as_its_maximum() {
        let mut stats = Stats::new();
        stats.record(ms(0), Duration::MAX, true);
        near(stats.summary(ms(1000), 60).p50_ms, 60_000.0);
    }
}
