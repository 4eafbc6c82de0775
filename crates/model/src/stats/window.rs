//! Ten minutes of figures in slots of one second, the older ones in slots of ten.

use std::collections::VecDeque;
use std::time::Duration;

use super::Histogram;
use crate::Reason;

/// The longest window that can be asked for. Seconds.
pub const WINDOW_SECONDS: u64 = 600;
/// Seconds kept one by one; older ones are merged by tens.
const FINE_SECONDS: u64 = 70;
const COARSE: u64 = 10;

/// Sums over some span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub success: u64,
    pub failure: u64,
    /// By status class, 1xx…5xx.
    pub classes: [u64; 5],
    /// Until the response's end.
    pub latency: Histogram,
    /// Until the response's head.
    pub first_byte: Histogram,
    pub retries: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Failures the mesh caused, by reason, sorted.
    pub reasons: Vec<(Reason, u64)>,
    pub tcp_opened: u64,
    pub tcp_closed: u64,
}

impl Totals {
    pub fn requests(&self) -> u64 {
        self.success + self.failure
    }

    /// Share of successes, 0.0…1.0; `None` without requests.
    pub fn success_rate(&self) -> Option<f64> {
        let all = self.requests();
        (all > 0).then(|| self.success as f64 / all as f64)
    }

    /// Counts failures the mesh caused.
    pub fn add_reason(&mut self, reason: Reason, count: u64) {
        match self.reasons.binary_search_by_key(&reason, |(r, _)| *r) {
            Ok(at) => self.reasons[at].1 += count,
            Err(at) => self.reasons.insert(at, (reason, count)),
        }
    }

    /// Counts one finished exchange.
    pub fn add_response(&mut self, status: u16, success: bool, first: Duration, end: Duration) {
        if success {
            self.success += 1;
        } else {
            self.failure += 1;
        }
        if let Some(class) = usize::from(status / 100).checked_sub(1).filter(|c| *c < 5) {
            self.classes[class] += 1;
        }
        self.first_byte.record(first);
        self.latency.record(end);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        self.success += other.success;
        self.failure += other.failure;
        for (mine, theirs) in self.classes.iter_mut().zip(other.classes) {
            *mine += theirs;
        }
        self.latency.merge(&other.latency);
        self.first_byte.merge(&other.first_byte);
        self.retries += other.retries;
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        for (reason, count) in &other.reasons {
            self.add_reason(*reason, *count);
        }
        self.tcp_opened += other.tcp_opened;
        self.tcp_closed += other.tcp_closed;
    }
}

/// A sliding window of [`Totals`]. At most about 125 slots, however busy.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Oldest first: `(first second, seconds, totals)`.
    slots: VecDeque<(u64, u64, Totals)>,
}

impl Window {
    /// The totals of the second `now`, to add to. Time going backwards counts as standing still.
    pub fn at(&mut self, now: u64) -> &mut Totals {
        let fresh = self.slots.back().is_none_or(|(start, span, _)| start + span <= now);
        if fresh {
            self.compact(now);
            self.slots.push_back((now, 1, Totals::default()));
        }
        let last = self.slots.len() - 1;
        &mut self.slots[last].2
    }

    /// Sums over the `seconds` whole seconds before `now`; the running one is left out, so that a
    /// rate is not diluted by a second that is not over.
    pub fn sum(&self, now: u64, seconds: u64) -> Totals {
        let from = now.saturating_sub(seconds.min(WINDOW_SECONDS));
        let mut totals = Totals::default();
        for (start, span, slot) in &self.slots {
            if *start >= from && start + span <= now {
                totals.merge(slot);
            }
        }
        totals
    }

    /// The last second anything was counted in.
    pub fn last_used(&self) -> Option<u64> {
        self.slots.back().map(|(start, span, _)| start + span - 1)
    }

    /// Forgets what is too old and merges what is too fine.
    fn compact(&mut self, now: u64) {
        while self.slots.front().is_some_and(|(start, span, _)| start + span + WINDOW_SECONDS < now)
        {
            self.slots.pop_front();
        }
        let mut merged: VecDeque<(u64, u64, Totals)> = VecDeque::with_capacity(self.slots.len());
        for (start, span, totals) in self.slots.drain(..) {
            if start + FINE_SECONDS < now {
                let aligned = start - start % COARSE;
                match merged.back_mut() {
                    Some((have, _, into)) if *have == aligned => {
                        into.merge(&totals);
                        continue;
                    }
                    _ => merged.push_back((aligned, COARSE, totals)),
                }
            } else {
                merged.push_back((start, span, totals));
            }
        }
        self.slots = merged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(window: &mut Window, second: u64) {
        window.at(second).success += 1;
    }

    #[test]
    fn the_running_second_is_left_out() {
        let mut window = Window::default();
        count(&mut window, 100);
        count(&mut window, 101);
        assert_eq!(window.sum(101, 60).success, 1);
        assert_eq!(window.sum(102, 60).success, 2);
    }

    #[test]
    fn a_minute_is_exact_and_ten_minutes_stay_bounded() {
        let mut window = Window::default();
        for second in 0..10_000 {
            count(&mut window, second);
            assert!(window.slots.len() <= 140, "{} slots", window.slots.len());
        }
        assert_eq!(window.sum(10_000, 60).success, 60);
        assert_eq!(window.sum(10_000, 1).success, 1);
        let ten_minutes = window.sum(10_000, 600).success;
        assert!((590..=600).contains(&ten_minutes), "{ten_minutes}");
    }

    #[test]
    fn gaps_count_nothing() {
        let mut window = Window::default();
        count(&mut window, 5);
        count(&mut window, 5_000);
        assert_eq!(window.sum(5_001, 600).success, 1);
        assert_eq!(window.sum(5_100, 60).success, 0);
    }

    #[test]
    fn a_clock_that_goes_backwards_loses_nothing() {
        let mut window = Window::default();
        count(&mut window, 50);
        count(&mut window, 40);
        assert_eq!(window.sum(51, 60).success, 2);
    }
}
